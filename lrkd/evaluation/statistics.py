"""Statistics of the study: arrays in, numbers out. Every docstring names the unit that is taken to be independent.

Where a docstring says nothing else: values that are not finite or too few raise DataError, a table without a column
that is needed too, and a level outside (0,1) raises ConfigError.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from lrkd.errors import ConfigError, DataError, check_inside
from lrkd.evaluation.power import detectable, seeds_needed

POWER = 0.8  # that is wanted of a study


class Estimate(NamedTuple):
    """A mean with its interval; p is two-sided against zero, n is the number of units."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def mean_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
    """Compute mean and Student t interval of (n,) values, n >= 2. Unit: a seed (one training run each).

    For two methods give their differences seed by seed: p is then the paired t test's. Values that are all equal have
    an interval of no width, and p is 0, or 1 where they are zero.
    """
    check_inside("level", level, 0, 1)
    x = _units(values)
    mean, error = float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x)))
    if np.ptp(x) == 0:  # the error may be a rounding error above zero
        return Estimate(mean, mean, mean, 1.0 if mean == 0 else 0.0, len(x))
    reach = float(stats.t.ppf((1 + level) / 2, len(x) - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, len(x) - 1))  # ttest_1samp gives the same and takes five times as long
    return Estimate(mean, mean - reach, mean + reach, p, len(x))


def summarise(frame: pd.DataFrame, by: Sequence[str], value: str = "accuracy", *, level: float = 0.95) -> pd.DataFrame:
    """Compute the mean with its t interval for each cell of a results table. Unit: a row of `frame`.

    Args:
        frame: One run's row of one protocol each: choose the protocol first.
        by: The columns whose values make a cell.
        value: The column that is averaged.
        level: Of the interval.

    Returns:
        `*by, mean, low, high, n, missing`, cells in the frame's order. A value that is not finite (of a run that
        diverged) is left out of the mean and counted in `missing`; a cell of one value has no interval.
    """
    check_columns(frame, [*by, value])
    table = []
    for key, part in frame.groupby(list(by), sort=False, dropna=False):
        values = part[value].to_numpy(np.float64)
        kept = values[np.isfinite(values)]
        found = _estimate(kept, level)
        cell = dict(zip(by, key, strict=True))
        table.append(
            cell | {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}
            | {"missing": len(values) - len(kept)}
        )  # fmt: skip
    return pd.DataFrame(table, columns=[*by, "mean", "low", "high", "n", "missing"])


def paired_differences(
    frame: pd.DataFrame,
    baseline: str = "none",
    unit: Sequence[str] = ("seed",),
    by: Sequence[str] = ("side",),
    value: str = "accuracy",
    *,
    level: float = 0.95,
) -> pd.DataFrame:
    """Compare each method with the baseline, unit by unit, in each cell. Unit: what `unit` names, a seed.

    Args:
        frame: Columns method, `*unit`, `*by` and `value`, of one protocol, data set and scale.
        baseline: The method that is subtracted.
        unit: The columns that make a unit; only units that both methods have are counted.
        by: The columns that make a cell.
        value: The column that is compared.
        level: Of the interval.

    Returns:
        `method, *by, mean, low, high, p, n` in the frame's order. p is the paired t test's, two-sided, not corrected
        (see `holm`). With one pair there is neither interval nor p, with none no row.

    Raises:
        DataError: A method has two rows in one cell and unit, or the baseline has none.
    """
    unit, by = list(unit), list(by)
    check_columns(frame, ["method", *by, *unit, value])
    rows = frame.drop_duplicates(ignore_index=True)
    twice = rows.duplicated(["method", *by, *unit])
    if twice.any():
        first = rows.loc[twice.idxmax(), ["method", *by, *unit]].to_dict()
        raise DataError(f"frame: expected one row of {first}, got more; choose one protocol, data and scale first")
    rows = rows[np.isfinite(rows[value].astype(float))]
    base = rows[rows["method"] == baseline].set_index([*by, *unit])[value]
    if base.empty:
        raise DataError(f"baseline: expected a method with values of {value!r}, got {baseline!r}, which has none")
    others = rows[rows["method"] != baseline]
    matched = others.join(base.rename("baseline"), on=[*by, *unit], how="inner")
    table = []
    for key, part in matched.groupby(["method", *by], sort=False):
        found = _estimate((part[value] - part["baseline"]).to_numpy(np.float64), level)
        table.append(dict(zip(["method", *by], key, strict=True)) | found._asdict())
    return pd.DataFrame(table, columns=["method", *by, "mean", "low", "high", "p", "n"])


def holm(p: ArrayLike) -> np.ndarray:
    """Adjust the p values of one family by Holm's method: `(n,) -> (n,)`; nan (no test) stays nan, uncounted."""
    values = np.asarray(p, dtype=np.float64)
    adjusted = values.copy()
    tested = np.flatnonzero(np.isfinite(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    # statsmodels' multipletests gives the same, but collects garbage at each call: a second in a large process.
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return adjusted


class Equivalence(NamedTuple):
    """Two one-sided t tests: p of "within the margin", and the interval of level 1 - 2 alpha that decides the same."""

    p: float
    low: float
    high: float


def tost(differences: ArrayLike, margin: float, alpha: float = 0.05) -> Equivalence:
    """Test whether (n,) paired differences lie within a margin, by two one-sided t tests. Unit: a seed.

    p is the larger of the two: below alpha exactly where the interval of level 1 - 2 alpha (90 %) lies inside the
    margins. Not finding a difference is no evidence for equality; this is. Schuirmann, J. Pharmacokin. Biopharm. 1987.

    Args:
        differences: Method minus baseline.
        margin: The smallest difference that matters, above zero.
        alpha: The level, in (0,.5).

    Raises:
        ConfigError: `alpha` is out of range.
        DataError: `margin` is not above zero.
    """
    check_inside("alpha", alpha, 0, 0.5)
    if not margin > 0:
        raise DataError(f"margin: expected the smallest difference that matters, above zero, got {margin}")
    x = np.asarray(differences, dtype=np.float64)
    found = mean_interval(x, 1 - 2 * alpha)
    if found.low == found.high:
        return Equivalence(0.0 if abs(found.mean) < margin else 1.0, found.low, found.high)
    above = stats.ttest_1samp(x, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(x, margin, alternative="less").pvalue
    return Equivalence(float(max(above, below)), found.low, found.high)


def wilcoxon(differences: ArrayLike) -> float:
    """Compute the two-sided p of Wilcoxon's signed-rank test of (n,) differences, exact to n = 50. Unit: a seed.

    Zeros are left out, as Wilcoxon did; where all are zero p is 1. With ties the exact distribution is enumerated up to
    n = 12 and approximated by a normal one beyond. The least p that n seeds can give is 2^(1-n): .031 for six.
    """
    x = _units(differences)
    x = x[x != 0]
    if not len(x):
        return 1.0
    tied = len(np.unique(np.abs(x))) < len(x)
    method = stats.PermutationMethod(n_resamples=2**12) if tied and len(x) <= 12 else "auto" if tied else "exact"
    return float(stats.wilcoxon(x, method=method if len(x) <= 50 else "approx").pvalue)


def bootstrap_interval(
    differences: ArrayLike,
    level: float = 0.95,
    *,
    resamples: int = 2000,
    method: str = "percentile",
    generator: np.random.Generator | int = 0,
) -> tuple[float, float]:
    """Compute scipy's bootstrap interval of the mean of (n,) differences. Unit: a seed.

    It undercovers for few seeds: six values have only 462 different resamples, and their spread misses the factor
    sqrt(n / (n-1)) and the tail of Student's t. benchmarks/statistics.csv says by how much, and that BCa, which mends
    bias and skewness, does not mend this; hence the plain percentile. Where both are shown the t interval comes first.

    Args:
        differences: Method minus baseline.
        level: Of the interval.
        resamples: How many.
        method: "percentile" or "BCa".
        generator: Or its seed.

    Raises:
        ConfigError: Another method, or no resamples.
    """
    check_inside("level", level, 0, 1)
    if resamples < 1:
        raise ConfigError(f"resamples: expected at least 1, got {resamples}")
    if method not in ("percentile", "BCa"):
        raise ConfigError(f"method: expected percentile or BCa, got {method!r}")
    x = _units(differences)
    if np.ptp(x) == 0:
        return float(x[0]), float(x[0])
    rng = np.random.default_rng(generator)
    drawn = stats.bootstrap((x,), np.mean, n_resamples=resamples, confidence_level=level, method=method, rng=rng)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def cohens_dz(differences: ArrayLike) -> float:
    """Compute the mean over the standard deviation (n-1) of (n,) paired differences. Unit: a seed. inf if all equal."""
    x = _units(differences)
    if np.ptp(x) == 0:
        return 0.0 if x[0] == 0 else float(np.copysign(np.inf, x[0]))
    return float(x.mean() / x.std(ddof=1))


def probability_of_improvement(values: ArrayLike, baseline: ArrayLike) -> float:
    """Estimate P(a run of the method beats one of the baseline): (n,), (m,) -> share of the n m couples, ties half.

    Unit: a seed, not paired: what somebody can expect who trains each once. Agarwal et al., NeurIPS 2021.
    """
    a, b = _units(values, 1), _units(baseline, 1)
    return float(((a[:, None] > b) + 0.5 * (a[:, None] == b)).mean())


def by_number(differences: ArrayLike, most: int | None = None, level: float = 0.95) -> pd.DataFrame:
    """Tabulate what fewer or more seeds would say. Unit: a seed.

    Args:
        differences: (n,), n >= 2.
        most: The last number of seeds; default: n.
        level: Of the intervals.

    Returns:
        A row for 2..most seeds, `seeds, mean, low, high, p, measured`. Up to n: the t interval of the first so many
        (measured). Beyond: what to expect if mean and standard deviation stayed as they are with n, which is no data.
    """
    x = _units(differences)
    rows = []
    for count in range(2, max(most or 0, len(x)) + 1):
        if count <= len(x):
            found = mean_interval(x[:count], level)
        else:
            error = float(x.std(ddof=1) / np.sqrt(count))
            reach = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
            p = float(2 * stats.t.sf(abs(x.mean()) / error, count - 1)) if error else np.nan
            found = Estimate(float(x.mean()), float(x.mean()) - reach, float(x.mean()) + reach, p, count)
        rows.append((count, *found[:4], count <= len(x)))
    return pd.DataFrame(rows, columns=["seeds", "mean", "low", "high", "p", "measured"])


def compare(
    frame: pd.DataFrame,
    couples: Iterable[tuple[str, str]],
    *,
    margin: float,
    value: str = "accuracy",
    alpha: float = 0.05,
    resamples: int = 2000,
    generator: np.random.Generator | int = 0,
) -> pd.DataFrame:
    """Compute everything that the study says about method minus baseline, one row a couple. Unit: a seed.

    Args:
        frame: Columns method, seed and `value`, one row a run.
        couples: (method, baseline) each.
        margin: The smallest difference that matters, as in `tost`.
        value: The column that is compared.
        alpha: The level of all tests.
        resamples, generator: Of the bootstrap.

    Returns:
        The columns `COMPARISON`: `method, baseline, n, lost` (seeds that only one of the two has: not trained yet, or
        diverged), `mean, low, high` (t interval of level 1 - alpha), `p` (paired t), `holm` (over these rows),
        `wilcoxon`, `boot_low, boot_high`, `d_z`, `improvement` (probability), `tost, low90, high90` (level 1 - 2 alpha,
        against the margin), `seeds` (that a true effect of this d_z needs for power `POWER`), `detectable` (the least
        true difference that n seeds detect with that power, at their sd). With fewer than two common seeds everything
        after `mean` is nan.

    Raises:
        DataError: A method has no rows, or two of one seed.
    """
    check_columns(frame, ["method", "seed", value])
    twice = frame.duplicated(["method", "seed"])
    if twice.any():
        first = frame[twice].iloc[0][["method", "seed"]].to_dict()
        raise DataError(f"frame: expected one row of {first}, got more; choose one protocol, side and teacher first")
    wide = frame.pivot(index="seed", columns="method", values=value)
    rng = np.random.default_rng(generator)
    rows = []
    for method, baseline in couples:
        for name in (method, baseline):
            if name not in wide:
                raise DataError(f"couples: expected methods of {', '.join(map(str, wide.columns))}, got {name!r}")
        both = wide[[method, baseline]].dropna(how="all")
        a, b = both.dropna().to_numpy(np.float64).T
        x = a - b
        row = {"method": method, "baseline": baseline, "n": len(x), "lost": len(both) - len(x)}
        row["mean"] = x.mean() if len(x) else np.nan
        if len(x) > 1:
            found, equal, d_z = mean_interval(x, 1 - alpha), tost(x, margin, alpha), cohens_dz(x)
            low, high = bootstrap_interval(x, 1 - alpha, resamples=resamples, generator=rng)
            row |= {"low": found.low, "high": found.high, "p": found.p, "holm": np.nan, "wilcoxon": wilcoxon(x)}
            row |= {"boot_low": low, "boot_high": high, "d_z": d_z, "improvement": probability_of_improvement(a, b)}
            row |= {"tost": equal.p, "low90": equal.low, "high90": equal.high}
            row |= {"seeds": seeds_needed(d_z, POWER, alpha)}
            row |= {"detectable": detectable(len(x), POWER, alpha) * x.std(ddof=1)}
        rows.append(row)
    table = pd.DataFrame(rows, columns=COMPARISON)
    table["holm"] = holm(table["p"])
    return table


COMPARISON = [
    *("method", "baseline", "n", "lost", "mean", "low", "high", "p", "holm", "wilcoxon", "boot_low", "boot_high"),
    *("d_z", "improvement", "tost", "low90", "high90", "seeds", "detectable"),
]  # fmt: skip


def by_unit(values: ArrayLike, baseline: ArrayLike, level: float = 0.95) -> pd.DataFrame:
    """Test the same differences under two units: (S,P) of S seeds and P test items, twice.

    Returns:
        `unit, n, mean, low, high, p`. Row "item": the papers' paired t test, which takes all S P values to be
        independent (pseudo-replication: the items of one run share its weights). Row "seed": a paired t test of the S
        means; with one seed it has no interval.
    """
    a, b = np.atleast_2d(np.asarray(values, dtype=np.float64)), np.atleast_2d(np.asarray(baseline, dtype=np.float64))
    if a.shape != b.shape or a.ndim != 2:
        raise DataError(f"baseline: expected (seeds, items) as the values have, {a.shape}, got {b.shape}")
    found = {"item": _estimate((a - b).ravel(), level), "seed": _estimate((a - b).mean(1), level)}
    rows = [(unit, e.n, e.mean, e.low, e.high, e.p) for unit, e in found.items()]
    return pd.DataFrame(rows, columns=["unit", "n", "mean", "low", "high", "p"])


def against_itself(runs: Mapping[str, Sequence[ArrayLike]]) -> pd.DataFrame:
    """Test each two runs of one method over items: {method: [(P,) a run]} -> `method, a, b, p`. Unit: an item.

    No method is better than itself, so every p below alpha is a false alarm of a test that takes items for replicates.
    """
    rows = [
        (method, a, b, by_unit(values[a], values[b])["p"].iloc[0])
        for method, values in runs.items()
        for a, b in itertools.combinations(range(len(values)), 2)
    ]
    return pd.DataFrame(rows, columns=["method", "a", "b", "p"])


def spelled(table: pd.DataFrame, *, factor: float = 100, digits: int = 1, sign: bool = False) -> pd.Series:
    """Write rows of `summarise` or `paired_differences` as text for a table: "80.7 [80.4, 81.0]".

    Args:
        table: Columns mean, low and high. Without an interval the text is the mean, without a mean a dash.
        factor: Of all numbers; the default gives percent.
        digits: After the point.
        sign: Whether positive numbers get a plus.
    """
    form = f"{{:{'+' if sign else ''}.{digits}f}}"

    def spell(mean: float, low: float, high: float) -> str:
        if not np.isfinite(mean):
            return "–"
        middle, *ends = (form.format(factor * v).replace("-", "−") for v in (mean, low, high))
        return middle if np.isnan(low) else f"{middle} [{ends[0]}, {ends[1]}]"

    return pd.Series(
        [spell(*row) for row in table[["mean", "low", "high"]].to_numpy()], index=table.index, dtype=object
    )


def _units(values: ArrayLike, least: int = 2) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < least or not np.isfinite(x).all():
        raise DataError(f"values: expected {least} or more finite numbers, one a seed, got {x.tolist()}")
    return x


def _estimate(values: np.ndarray, level: float) -> Estimate:
    """Compute `mean_interval`, with nan where there are too few values for it."""
    if len(values) > 1:
        return mean_interval(values, level)
    mean = float(values[0]) if len(values) else np.nan
    return Estimate(mean, np.nan, np.nan, np.nan, len(values))


def check_columns(frame: pd.DataFrame, wanted: Iterable[str]) -> None:
    """Raise DataError for a table that lacks a column, with the columns that it has."""
    missing = [name for name in wanted if name not in frame]
    if missing:
        raise DataError(f"frame: expected a column {missing[0]!r}, got {', '.join(map(str, frame.columns))}")
