"""Statistics of the study: arrays in, numbers out. Every docstring names the unit that is taken to be independent."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
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
    _columns(frame, [*by, value])
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
    _columns(frame, ["method", *by, *unit, value])
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
    from statsmodels.stats.multitest import multipletests  # not everywhere where training runs

    values = np.asarray(p, dtype=np.float64)
    adjusted = values.copy()
    tested = np.isfinite(values)
    if tested.any():
        adjusted[tested] = multipletests(values[tested], method="holm")[1]
    return adjusted


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
    _columns(frame, ["config", "seed", "teacher_seed", "status", *texts])
    found: dict[str, int | str] = {
        "runs": int(frame["config"].nunique()),
        "seeds": int(frame["seed"].nunique()),
        "teachers": int(frame["teacher_seed"].nunique()),
        "diverged": int(frame.loc[frame["status"] != "ok", "config"].nunique()),
    }
    return found | {name: ", ".join(map(str, frame[name].dropna().unique())) for name in texts}


def _estimate(values: np.ndarray, level: float) -> Estimate:
    """`mean_interval` that says nan where there are too few values for it."""
    if len(values) > 1:
        return mean_interval(values, level)
    mean = float(values[0]) if len(values) else np.nan
    return Estimate(mean, np.nan, np.nan, np.nan, len(values))


def _columns(frame: pd.DataFrame, wanted: Iterable[str]) -> None:
    missing = [name for name in wanted if name not in frame]
    if missing:
        raise DataError(f"frame: has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}")
