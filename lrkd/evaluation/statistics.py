"""Statistics of the study: arrays in, numbers out. Every docstring names the unit that is taken to be independent."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from lrkd.errors import ConfigError, DataError, check_inside
from lrkd.evaluation.power import detectable, seeds_needed


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
    Raises DataError for fewer than two values, or values that are not finite, ConfigError for a level outside (0,1).
    """
    check_inside("level", level, 0, 1)
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
        raise DataError(f"values: {x.tolist()} are not two or more finite numbers, one a seed")
    mean, error = float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x)))
    if np.ptp(x) == 0:  # the error may be a rounding error above zero
        return Estimate(mean, mean, mean, 1.0 if mean == 0 else 0.0, len(x))
    reach = float(stats.t.ppf((1 + level) / 2, len(x) - 1)) * error
    return Estimate(mean, mean - reach, mean + reach, float(stats.ttest_1samp(x, 0).pvalue), len(x))


def summarise(frame: pd.DataFrame, by: Sequence[str], value: str = "accuracy", *, level: float = 0.95) -> pd.DataFrame:
    """Mean with its t interval for each cell of a results table: -> `*by, mean, low, high, n, missing`.

    Unit: a row of `frame` (one run's row of one protocol: choose the protocol first). A value that is not finite (of a
    run that diverged) is left out of the mean and counted in `missing`; a cell of one value has no interval. Cells come
    in the order in which the frame names them. Raises DataError for columns that the frame lacks.
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
    """Each method minus the baseline, unit by unit, in each cell: -> `method, *by, mean, low, high, p, n`.

    Unit: what `unit` names, a seed; only units that both methods have count. p is the paired t-test's, two-sided, not
    corrected (see `holm`); with one pair there is neither interval nor p, with none no row. Cells and methods come in
    the frame's order. Choose one protocol (and data, scale) first: DataError for two rows of one method, cell and unit,
    and for columns that the frame lacks.
    """
    unit, by = list(unit), list(by)
    check_columns(frame, ["method", *by, *unit, value])
    rows = frame.drop_duplicates(ignore_index=True)
    twice = rows.duplicated(["method", *by, *unit])
    if twice.any():
        first = rows.loc[twice.idxmax(), ["method", *by, *unit]].to_dict()
        raise DataError(f"frame: more than one row of {first}; choose one protocol, data and scale before comparing")
    rows = rows[np.isfinite(rows[value].astype(float))]
    base = rows[rows["method"] == baseline].set_index([*by, *unit])[value]
    if base.empty:
        raise DataError(f"baseline: no row of method {baseline!r} with a value of {value!r} in the frame")
    others = rows[rows["method"] != baseline]
    matched = others.join(base.rename("baseline"), on=[*by, *unit], how="inner")
    table = []
    for key, part in matched.groupby(["method", *by], sort=False):
        found = _estimate((part[value] - part["baseline"]).to_numpy(np.float64), level)
        table.append(dict(zip(["method", *by], key, strict=True)) | found._asdict())
    return pd.DataFrame(table, columns=["method", *by, "mean", "low", "high", "p", "n"])


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's adjusted p values of one family of comparisons: `(n,) -> (n,)`; nan (no test) stays nan and counts not."""
    values = np.asarray(p, dtype=np.float64)
    adjusted = values.copy()
    tested = np.flatnonzero(np.isfinite(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    # statsmodels' multipletests gives the same, but collects garbage at each call: a second in a large process.
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return adjusted


class Equivalence(NamedTuple):
    """Two one-sided t tests: p for "within the margin", and the interval of level 1 - 2 alpha that decides the same."""

    p: float
    low: float
    high: float


def tost(differences: ArrayLike, margin: float, alpha: float = 0.05) -> Equivalence:
    """Two one-sided paired t tests of (n,) differences against -margin and +margin. Unit: a seed.

    p is the larger of the two: below alpha exactly where the interval of level 1 - 2 alpha (90 %) lies inside the
    margins. Not finding a difference is no evidence for equality; this is. Schuirmann, J. Pharmacokin. Biopharm. 1987.
    Raises DataError as `mean_interval`, and for a margin that is not above zero, ConfigError for alpha outside (0,.5).
    """
    check_inside("alpha", alpha, 0, 0.5)
    if not margin > 0:
        raise DataError(f"margin is {margin}: the smallest difference that matters, above zero, is right")
    x = np.asarray(differences, dtype=np.float64)
    found = mean_interval(x, 1 - 2 * alpha)
    if found.low == found.high:
        return Equivalence(0.0 if abs(found.mean) < margin else 1.0, found.low, found.high)
    above = stats.ttest_1samp(x, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(x, margin, alternative="less").pvalue
    return Equivalence(float(max(above, below)), found.low, found.high)


def wilcoxon(differences: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of (n,) differences, exact for n up to 50. Unit: a seed.

    Zeros are left out (Wilcoxon's way); all of them zero is p = 1. With ties the exact distribution is enumerated up to
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
    """Bootstrap interval of the mean of (n,) differences: scipy's, `percentile` or `BCa`. Unit: a seed.

    It undercovers for few seeds: six values have only 462 different resamples, and their spread misses the factor
    sqrt(n / (n-1)) and the tail of Student's t. benchmarks/statistics.csv says by how much, and that BCa, which mends
    bias and skewness, does not mend this; hence the plain percentile. The t interval stands first wherever both do.
    Raises DataError for values that are not finite, ConfigError for a level outside (0,1), other methods, no resamples.
    """
    check_inside("level", level, 0, 1)
    if resamples < 1 or method not in ("percentile", "BCa"):
        raise ConfigError(f"resamples is {resamples}, method {method!r}: 1 or more, and percentile or BCa are right")
    x = _units(differences)
    if np.ptp(x) == 0:
        return float(x[0]), float(x[0])
    rng = np.random.default_rng(generator)
    drawn = stats.bootstrap((x,), np.mean, n_resamples=resamples, confidence_level=level, method=method, rng=rng)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def cohens_dz(differences: ArrayLike) -> float:
    """Mean over standard deviation (n-1) of (n,) paired differences. Unit: a seed. Infinite where all are equal."""
    x = _units(differences)
    if np.ptp(x) == 0:
        return 0.0 if x[0] == 0 else float(np.copysign(np.inf, x[0]))
    return float(x.mean() / x.std(ddof=1))


def probability_of_improvement(values: ArrayLike, baseline: ArrayLike) -> float:
    """P(a run of the method beats a run of the baseline): (n,), (m,) -> share of the n m couples, ties half.

    Unit: a seed, not paired: it answers for somebody who trains each once. Agarwal et al., NeurIPS 2021.
    """
    a, b = _units(values, 1), _units(baseline, 1)
    return float(((a[:, None] > b) + 0.5 * (a[:, None] == b)).mean())


def by_number(differences: ArrayLike, most: int | None = None, level: float = 0.95) -> pd.DataFrame:
    """What fewer or more seeds say: (n,) differences -> a row for 2..most seeds: `seeds, mean, low, high, p, measured`.

    Unit: a seed. Up to n: the t interval of the first so many (measured). Beyond: what to expect if mean and standard
    deviation stayed as they are with n, which is no data.
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
    unit: Sequence[str] = ("seed",),
    alpha: float = 0.05,
    target: float = 0.8,
    resamples: int = 2000,
    generator: np.random.Generator | int = 0,
) -> pd.DataFrame:
    """Everything that the study says about method minus baseline: one row a couple. Unit: what `unit` names, a seed.

    -> `method, baseline, n, lost` (units that only one of the two has: not trained yet, or diverged), `mean, low, high`
    (t interval of level 1 - alpha), `p` (paired t), `holm` (over these rows), `wilcoxon`, `boot_low, boot_high` (over
    seeds), `d_z`, `improvement` (probability), `tost, low90, high90` (level 1 - 2 alpha; against `margin`), `seeds`
    (that a true effect of this d_z needs for power `target`), `detectable` (least true difference that n units find
    with that power, at their sd). With fewer than two common units everything after `mean` is nan.

    frame: columns method, *unit and `value`, one row a run. Raises DataError for a method without rows, for columns
    that the frame lacks, and for two rows of one method and unit.
    """
    check_columns(frame, ["method", *unit, value])
    if frame.duplicated(["method", *unit]).any():
        first = frame.loc[frame.duplicated(["method", *unit]).idxmax(), ["method", *unit]].to_dict()
        raise DataError(f"frame: more than one row of {first}; choose one protocol, side and teacher before comparing")
    wide = frame.pivot(index=list(unit), columns="method", values=value)
    rng = np.random.default_rng(generator)
    rows = []
    for method, baseline in couples:
        for name in (method, baseline):
            if name not in wide:
                raise DataError(f"couples: no row of method {name!r}; there are {', '.join(map(str, wide.columns))}")
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
            row |= {"seeds": seeds_needed(d_z, target, alpha)}
            row |= {"detectable": detectable(len(x), target, alpha) * x.std(ddof=1)}
        rows.append(row)
    table = pd.DataFrame(rows, columns=COMPARISON)
    table["holm"] = holm(table["p"])
    return table


COMPARISON = [
    *("method", "baseline", "n", "lost", "mean", "low", "high", "p", "holm", "wilcoxon", "boot_low", "boot_high"),
    *("d_z", "improvement", "tost", "low90", "high90", "seeds", "detectable"),
]  # fmt: skip


def by_unit(values: ArrayLike, baseline: ArrayLike, level: float = 0.95) -> pd.DataFrame:
    """The same differences under two units: (S,P) of S seeds and P test items, twice -> `unit, n, mean, low, high, p`.

    Row "item": the papers' paired t test, which takes all S P values for independent (pseudo-replication: the items of
    one run share its weights). Row "seed": a paired t test of the S means; with one seed it has no interval.
    """
    a, b = np.atleast_2d(np.asarray(values, dtype=np.float64)), np.atleast_2d(np.asarray(baseline, dtype=np.float64))
    if a.shape != b.shape or a.ndim != 2:
        raise DataError(f"baseline: shape {b.shape} differs from the values' {a.shape}; both are (seeds, items)")
    found = {"item": _estimate((a - b).ravel(), level), "seed": _estimate((a - b).mean(1), level)}
    rows = [(unit, e.n, e.mean, e.low, e.high, e.p) for unit, e in found.items()]
    return pd.DataFrame(rows, columns=["unit", "n", "mean", "low", "high", "p"])


def against_itself(runs: Mapping[str, Sequence[ArrayLike]]) -> pd.DataFrame:
    """{method: [(P,) a run]} -> the test over items for each two runs of one method: `method, a, b, p`. Unit: an item.

    No method is better than itself, so every p below alpha is a false alarm of a test that took items for replicates.
    """
    rows = [
        (method, a, b, by_unit(values[a], values[b])["p"].iloc[0])
        for method, values in runs.items()
        for a, b in itertools.combinations(range(len(values)), 2)
    ]
    return pd.DataFrame(rows, columns=["method", "a", "b", "p"])


def spelled(table: pd.DataFrame, *, factor: float = 100, digits: int = 1, sign: bool = False) -> pd.Series:
    """Rows of `summarise` or `paired_differences` as text for a table: "80.7 [80.4, 81.0]", in percent by default.

    Without an interval the mean stands alone; without a mean there is a dash. sign: a plus for what is above zero.
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


def verdict(low: float, high: float) -> str:
    """What an interval says about its sign, to go into a sentence: "above zero", "below zero", or why neither."""
    if np.isnan(low) or np.isnan(high):
        return "without an interval"
    return "above zero" if low > 0 else "below zero" if high < 0 else "not told apart from zero"


def provenance(frame: pd.DataFrame) -> dict[str, int | str]:
    """Where a results table comes from, by its own columns: -> counts of runs, seeds, teachers, diverged, and texts.

    A run is a `config`. teachers: distinct `teacher_seed` among its students. Texts: data, scale, device, torch and
    commit, each with its values in their order, joined by commas.
    """
    texts = ("data", "scale", "device", "torch", "commit")
    check_columns(frame, ["config", "seed", "teacher_seed", "status", *texts])
    found: dict[str, int | str] = {
        "runs": int(frame["config"].nunique()),
        "seeds": int(frame["seed"].nunique()),
        "teachers": int(frame["teacher_seed"].nunique()),
        "diverged": int(frame.loc[frame["status"] != "ok", "config"].nunique()),
    }
    return found | {name: ", ".join(map(str, frame[name].dropna().unique())) for name in texts}


def _units(values: ArrayLike, least: int = 2) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < least or not np.isfinite(x).all():
        raise DataError(f"values: {x.tolist()} are not {least} or more finite numbers, one a seed")
    return x


def _estimate(values: np.ndarray, level: float) -> Estimate:
    """`mean_interval` that says nan where there are too few values for it."""
    if len(values) > 1:
        return mean_interval(values, level)
    mean = float(values[0]) if len(values) else np.nan
    return Estimate(mean, np.nan, np.nan, np.nan, len(values))


def check_columns(frame: pd.DataFrame, wanted: Iterable[str]) -> None:
    """DataError that names the first of these columns that the frame lacks, and what it has."""
    missing = [name for name in wanted if name not in frame]
    if missing:
        raise DataError(f"frame: has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}")
