"""Power of paired comparisons."""

from bisect import bisect_left

import numpy as np
from scipy import stats

from lrkd.errors import check_inside


def power(d_z: float, n: int, alpha: float = 0.05) -> float:
    """Power of the two-sided paired t test with n seeds for a true d_z, by scipy's noncentral t. Unit: a seed.

    A d_z that is not known, nan, has power nan. Raises ConfigError for fewer than two seeds and alpha outside (0,.5).
    """
    check_inside("alpha", alpha, 0, 0.5)
    check_inside("n", n, 1, np.inf)
    limit, shift = stats.t.ppf(1 - alpha / 2, n - 1), abs(d_z) * np.sqrt(n)
    if not np.isfinite(shift):
        return 1.0 if np.isinf(shift) else np.nan
    # The far tail is below 3e-7 beyond 5, where scipy's may be nan, and so statsmodels' TTestPower, which adds it.
    wrong = stats.nct.cdf(-limit, n - 1, shift) if shift < 5 else 0.0
    return float(stats.nct.sf(limit, n - 1, shift) + wrong)


def seeds_needed(d_z: float, target: float = 0.8, alpha: float = 0.05, most: int = 100_000) -> float:
    """The least number of seeds, 2 or more, that finds a true d_z with power `target`; inf beyond `most`, nan for nan.

    Raises ConfigError as `power`, and for a target outside (0,1).
    """
    check_inside("target", target, 0, 1)
    if np.isnan(d_z):
        return np.nan
    counts = range(2, most + 1)
    place = bisect_left(counts, target, key=lambda n: power(d_z, n, alpha))
    return float(counts[place]) if place < len(counts) else np.inf


def detectable(n: int, target: float = 0.8, alpha: float = 0.05) -> float:
    """The least true d_z that n seeds find with power `target`; times the differences' sd it is an effect.

    Raises ConfigError as `power`, and for a target outside (alpha,1): alpha is what no effect at all reaches.
    """
    from scipy.optimize import brentq

    check_inside("target", target, alpha, 1)
    return float(brentq(lambda d: power(d, n, alpha) - target, 1e-6, 1e3, xtol=1e-9))
