"""A linear mixed model by restricted maximum likelihood, with variances at zero as a result."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from lrkd.errors import DataError, check_inside
from lrkd.evaluation.statistics import check_columns


class Mixed(NamedTuple):
    """A fitted model.

    Attributes:
        mean, low, high, p: The fixed effect of the method, with its interval, in units of the value.
        sd_seed, sd_teacher, sd_seed_method, sd_residual: Standard deviations of the random parts; nan for one that the
            design cannot separate from the residual.
        n, seeds, teachers: How many runs, seeds and teachers there are.
        note: What is special or went wrong, in words.
    """

    mean: float
    low: float
    high: float
    p: float
    sd_seed: float
    sd_teacher: float
    sd_seed_method: float
    sd_residual: float
    n: int
    seeds: int
    teachers: int
    note: str


def mixed_model(frame: pd.DataFrame, method: str, baseline: str, value: str = "accuracy", level: float = 0.95) -> Mixed:
    """Fit value ~ method with seed, teacher and seed by method as random parts, by REML. Unit: a run.

    Seed by method is in the model where some seed has a method twice: without it two teachers of one seed would count
    as two replicates of the difference. The interval and p are Student's with one degree of freedom less than there are
    seeds: normal ones are too narrow with six (benchmarks/statistics.csv). Two teachers are hardly a sample of
    teachers: their part has one degree of freedom. A part whose likelihood falls from zero on is zero: a singular fit,
    and a result.

    statsmodels' MixedLM maximises the same likelihood, but by the roots of the variances, whose slope at zero is zero
    whatever the data say: its optimisers stop there or near it, elsewhere with another BLAS kernel.

    Args:
        frame: Columns method, seed, teacher_seed and `value`, a row a run; best crossed (every seed with every teacher
            under both methods).
        method, baseline: The two that are compared.
        value: The column that is compared.
        level: Of the interval.

    Returns:
        The fit; `note` names parts that are zero or that the design lacks, and failures. Without a fit its numbers are
        nan.

    Raises:
        ConfigError: `level` is outside (0,1).
        DataError: The frame lacks a column, or one of the two has no finite value.
    """
    check_inside("level", level, 0, 1)
    check_columns(frame, ["method", "seed", "teacher_seed", value])
    rows = frame[frame["method"].isin([method, baseline])].dropna(subset=value)
    is_method = (rows["method"] == method).to_numpy(np.float64)
    counts = (len(rows), int(rows["seed"].nunique()), int(rows["teacher_seed"].nunique()))
    if not 0 < is_method.sum() < len(rows):
        raise DataError(f"frame: expected finite {value!r} of {method!r} and of {baseline!r}, got none of one")
    notes, parts = [], {"seed": rows["seed"].astype(str)}
    if counts[2] > 1 and rows["teacher_seed"].notna().all():
        parts["teacher"] = rows["teacher_seed"].astype(str)
    else:
        notes.append("no teacher part: one teacher, or a method without")
    if rows.duplicated(["method", "seed"]).any():
        parts["seed_method"] = rows["seed"].astype(str) + rows["method"]
    y = rows[value].to_numpy(np.float64)
    if counts[1] < 2 or np.ptp(y) == 0:
        note = "fewer than two seeds" if counts[1] < 2 else "all values are equal"
        nan = np.nan
        return Mixed(nan, nan, nan, nan, nan, nan, nan, nan, *counts, note)
    # In units of the spread, so that the optimiser's tolerances suit accuracies and rank correlations alike.
    scale = float(y.std())
    exog = np.column_stack([np.ones(len(rows)), is_method])
    same = [np.equal.outer(part.to_numpy(), part.to_numpy()) for part in parts.values()]
    together = np.stack([np.eye(len(rows)), *same]).astype(np.float64)
    found = optimize.minimize(
        _reml,
        np.full(len(together), 1 / len(together)),
        ((y - y.mean()) / scale, exog, together),
        "L-BFGS-B",
        jac=True,
        bounds=[(1e-9, None), *[(0, None)] * len(parts)],
        options={"ftol": 1e-12, "gtol": 1e-6},
    )
    inverse = np.linalg.inv(np.einsum("k,kij->ij", found.x, together))
    covariance = np.linalg.inv(exog.T @ inverse @ exog)
    mean = float((covariance @ exog.T @ inverse @ y)[1])
    error = float(np.sqrt(covariance[1, 1])) * scale
    residual, *sds = (float(np.sqrt(variance)) * scale for variance in found.x)
    zero = [name.replace("_", " by ") for name, sd in zip(parts, sds, strict=True) if sd == 0]
    notes += [f"{name}: zero, a singular fit" for name in zero]
    if not found.success:
        notes.append(f"did not converge: {found.message}")
    reach = float(stats.t.ppf((1 + level) / 2, counts[1] - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, counts[1] - 1)) if error > 0 else np.nan
    seed, teacher, both = (
        dict(zip(parts, sds, strict=True)).get(k, np.nan) for k in ("seed", "teacher", "seed_method")
    )
    return Mixed(mean, mean - reach, mean + reach, p, seed, teacher, both, residual, *counts, "; ".join(notes))


def _reml(variances: np.ndarray, y: np.ndarray, exog: np.ndarray, together: np.ndarray) -> tuple[float, np.ndarray]:
    """Compute the REML deviance of (n,) y, less a constant, and its slope by each of (K,) variances.

    Harville, JASA 1977. together: (K,n,n), 1 where two runs share a level of the part.
    """
    inverse = np.linalg.inv(np.einsum("k,kij->ij", variances, together))
    precision = exog.T @ inverse @ exog
    left = inverse - inverse @ exog @ np.linalg.solve(precision, exog.T @ inverse)
    rest = left @ y
    deviance = np.linalg.slogdet(precision)[1] - np.linalg.slogdet(inverse)[1] + y @ rest
    return float(deviance), (together * (left - np.outer(rest, rest))).sum((1, 2))
