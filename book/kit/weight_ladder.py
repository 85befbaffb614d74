"""The ladders of distances: which weight each one takes, how soon its runs learn. Tables in, tables out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lrkd.evaluation.statistics import check_columns, holm, paired_differences, spelled
from lrkd.files import read_table

CHANCE = 0.5
RUN = ("config", "method", "seed", "teacher_seed")
STAGES = tuple(f"{what}_{k}" for what in ("cosine", "norm", "norm_share", "radial") for k in range(1, 5))
COLUMNS = ("scale", *RUN, "status", "protocol", "accuracy", "step", "device", "torch", "commit", "data", *STAGES)


def read(path: Path | str) -> pd.DataFrame:
    """Read a table of `lrkd study`; where the file is not there yet, one with `COLUMNS` and no row."""
    return read_table(path, ["config"], "lrkd study") if Path(path).exists() else pd.DataFrame(columns=list(COLUMNS))


def brackets(found: pd.DataFrame, matched: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Say what each distance's ladder chose, and whether the choice lies between two rungs that are worse.

    Args:
        found: Of `grids.rungs`.
        matched: The matched weight of each distance, where it is known; also the order of the rows.

    Returns:
        One row a distance: `distance, weight, accuracy` (the best rung's mean over seeds), `factor` (weight over the
        matched one), `rungs, diverged, below, above` (rungs at smaller and at greater weights than the best; diverged
        ones count, as they are worse), `bracket` ("both sides", "nothing below", "nothing above", "nothing finished"),
        `lead` (over the best other rung), `spread` (best minus worst finished rung). Unit: a rung, one run each: a lead
        of less than the noise of a run chooses nothing.
    """
    check_columns(found, ["distance", "weight", "accuracy", "status"])
    named = list(dict.fromkeys(found["distance"]))
    rows = []
    for distance in [name for name in matched or named if name in named]:
        part = found[found["distance"] == distance]
        mean = part.groupby("weight")["accuracy"].mean().sort_index()
        row = {"distance": distance, "rungs": len(mean), "diverged": int((part["status"] != "ok").sum())}
        if mean.isna().all():
            rows.append(row | {"bracket": "nothing finished"})
            continue
        best, others = float(mean.idxmax()), mean.drop(mean.idxmax()).dropna()
        below, above = int((mean.index < best).sum()), int((mean.index > best).sum())
        rows.append(
            row
            | {"weight": best, "accuracy": mean.max(), "below": below, "above": above}
            | {"factor": best / matched[distance] if matched else np.nan}
            | {"lead": mean.max() - others.max(), "spread": mean.max() - mean.min()}
            | {"bracket": "both sides" if below and above else "nothing above" if below else "nothing below"}
        )
    return pd.DataFrame(rows, columns=BRACKET)


BRACKET = [
    *("distance", "weight", "accuracy", "factor", "rungs", "diverged", "below", "above", "bracket", "lead", "spread"),
]


def converged(traces: pd.DataFrame, levels: Sequence[float] = ()) -> pd.DataFrame:
    """Say how soon each run learnt.

    Args:
        traces: `config, method, seed, teacher_seed, step, accuracy`, a row an observation.
        levels: Accuracies to be reached.

    Returns:
        One row a run: `config, method, seed, teacher_seed, final, auc, steps_0, ...`. final: the last accuracy; auc:
        the mean over the observations, which are evenly spaced; steps_k: the first observed step at which the accuracy
        is at least `levels[k]`, nan for a run that never gets there (censored).

    Raises:
        DataError: The table lacks a column.
    """
    keys = list(RUN)
    check_columns(traces, [*keys, "step", "accuracy"])
    rows = []
    for key, part in traces.sort_values("step").groupby(keys, sort=False, dropna=False):
        step, accuracy = part["step"].to_numpy(), part["accuracy"].to_numpy(np.float64)
        row = dict(zip(keys, key, strict=True)) | {"final": accuracy[-1], "auc": accuracy.mean()}
        for k, level in enumerate(levels):
            there = accuracy >= level
            row[f"steps_{k}"] = float(step[there.argmax()]) if there.any() else np.nan
        rows.append(row)
    return pd.DataFrame(rows, columns=[*keys, "final", "auc", *(f"steps_{k}" for k in range(len(levels)))])


def entrants(
    results: pd.DataFrame, traces: pd.DataFrame, teachers: Sequence[int], levels: Sequence[float] = ()
) -> pd.DataFrame:
    """Take the students of distances and of none from the tables of `lrkd study hypotheses`, on test people.

    Args:
        results: Results of the study.
        traces: Its traces.
        teachers: The seeds of its teachers.
        levels: Of `converged`.

    Returns:
        One row a run: `method` (the distance, or "none"), `weight` (nan for none), `seed, teacher_seed, status,
        accuracy`, what `converged` says, and `own`: whether the teacher is the seed's own, `teachers[seed mod their
        number]`, always for none. A run that diverged has chance as accuracy, final and auc, and reaches no level.
    """
    check_columns(results, [*RUN, "status", "protocol", "accuracy"])
    raced = results["method"].astype(str).str.contains("@") | (results["method"] == "none")
    if "role" in results:
        raced &= results["role"] == "student"
    rows = results[raced & (results["protocol"] == "test")]
    names = rows["method"].astype(str).str.partition("@")
    lost = (rows["status"] != "ok").to_numpy()
    table = rows[["config", "seed", "teacher_seed", "status", "accuracy"]].assign(
        method=names[0] if len(rows) else None,
        weight=pd.to_numeric(names[2], errors="coerce") if len(rows) else np.nan,
        own=[
            method == "none" or t == teachers[int(s) % len(teachers)]
            for method, s, t in zip(rows["method"], rows["seed"], rows["teacher_seed"], strict=True)
        ],
    )
    ran = converged(traces, levels).drop(columns=["method", "seed", "teacher_seed"])
    table = table.merge(ran, how="left", on="config", validate="one_to_one")
    for name in ("accuracy", "final", "auc"):
        table[name] = table[name].astype(float).mask(lost, CHANCE)
    return table.astype({"own": bool})


def differences(
    raced: pd.DataFrame,
    baseline: str,
    value: str = "accuracy",
    order: Sequence[str] = (),
    crossed: Sequence[str] = (),
) -> pd.DataFrame:
    """Subtract the baseline from each method, seed by seed; a seed is the unit.

    Args:
        raced: Of `entrants`. A seed's value is that of its own teacher.
        baseline: A method; without a run of it there is no row.
        value: The column to compare.
        order: Of the methods; those without a pair of runs are left out.
        crossed: Methods between which a seed's value is the mean over all teachers, of the seeds that have as many runs
            as any.

    Returns:
        `method, mean, low, high, p, n, holm`. p: the paired t test's; holm: corrected over these rows.
    """
    columns = ["method", "mean", "low", "high", "p", "n", "holm"]
    if baseline not in set(raced.loc[raced[value].notna(), "method"]):
        return pd.DataFrame(columns=columns)
    parts = [paired_differences(raced[raced["own"]], baseline, by=(), value=value)]
    if baseline in crossed:
        couples = raced[raced["method"].isin(crossed)].groupby(["method", "seed"])[value].agg(["mean", "count"])
        whole = couples[couples["count"] == couples["count"].max()].rename(columns={"mean": value}).reset_index()
        both = paired_differences(whole, baseline, by=(), value=value)
        parts = [parts[0][~parts[0]["method"].isin(both["method"])], both]
    table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    named = [name for name in order or dict.fromkeys(raced["method"]) if name in set(table["method"])]
    table = table.set_index("method").loc[named].reset_index()
    return table.assign(holm=holm(table["p"]))[columns]


def levels(raced: pd.DataFrame) -> tuple[float, float]:
    """Find two levels that nobody chose: the mean final accuracy of none, and the least of a distance.

    Args:
        raced: Of `entrants`; those with their own teacher count.

    Returns:
        The two levels, nan where there are no runs.
    """
    ends = raced[raced["own"]].groupby("method")["final"].mean()
    return float(ends.get("none", np.nan)), float(ends.drop("none", errors="ignore").min())


def told(table: pd.DataFrame) -> dict[str, str]:
    """Put `differences` into words by method: "+1.2 [0.3, 2.1]; p = .012": percentage points, t interval, Holm's p."""
    p = [
        " " if np.isnan(v) else "; p < .001" if v < 0.0005 else f"; p = {v:.3f}".replace("0.", ".")
        for v in table["holm"]
    ]
    return {
        name: text + more.rstrip()
        for name, text, more in zip(table["method"], spelled(table, sign=True), p, strict=True)
    }
