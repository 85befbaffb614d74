"""Statistics of the study: arrays in, numbers out. Every docstring names the unit that is taken to be independent."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lrkd.errors import DataError


class Estimate(NamedTuple):
    """A mean with its interval; p is two-sided against zero, n counts the units."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def mean_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
    """Mean and Student t interval of (n,) values, n >= 2. Unit: a seed (one training run each).

    For paired differences of two methods give their differences seed by seed: p is then the paired t-test's. Values
    that are all equal have an interval of no width, and p is 0, or 1 where they are zero.
    Raises DataError for fewer than two values, or values that are not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
        raise DataError(f"values: {x.tolist()} are not two or more finite numbers, one a seed")
    mean, error = float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x)))
    if error == 0:
        return Estimate(mean, mean, mean, 1.0 if mean == 0 else 0.0, len(x))
    reach = float(stats.t.ppf((1 + level) / 2, len(x) - 1)) * error
    return Estimate(mean, mean - reach, mean + reach, float(stats.ttest_1samp(x, 0).pvalue), len(x))
