"""The race of distances: which rung of its ladder each one takes, how soon its runs learn. Tables in, tables out."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lrkd.errors import DataError


def rungs(ladder: pd.DataFrame) -> pd.DataFrame:
    """The table of `lrkd study ladder` -> one row a run: `distance, weight, seed, accuracy, status`, sorted.

    accuracy: on the validation people, nan for a run that diverged. The teacher's rows, and all whose method has no
    weight in its name ("lp(2)@8"), are left out.
    """
    _columns(ladder, ["method", "seed", "status", "protocol", "accuracy"])
    kept = ladder["method"].astype(str).str.contains("@")
    kept &= (ladder["protocol"] == "validation") | (ladder["status"] != "ok")
    found = ladder[kept]
    parts = [name.rpartition("@") for name in found["method"]]
    table = pd.DataFrame(
        {
            "distance": [part[0] for part in parts],
            "weight": [float(part[2]) for part in parts],
            "seed": found["seed"].to_numpy(),
            "accuracy": found["accuracy"].where(found["status"] == "ok").to_numpy(np.float64),
            "status": found["status"].to_numpy(),
        }
    )
    return table.sort_values(["distance", "weight", "seed"], ignore_index=True)


def brackets(found: pd.DataFrame, matched: Mapping[str, float] | None = None) -> pd.DataFrame:
    """`rungs` -> one row a distance: what its ladder chose, and whether the choice lies between two that are worse.

    -> `distance, weight, accuracy` (the best rung's mean over seeds), `factor` (weight over the matched one, where
    `matched` has it), `rungs, diverged, below, above` (rungs at smaller and at greater weights than the best; diverged
    ones count, as they are worse), `bracket` ("both sides", "nothing below", "nothing above", "nothing finished"),
    `lead` (over the best other rung), `spread` (best minus worst finished rung). Distances come in the order of
    `matched`, or else of the table. Unit: a rung, one run each: a lead of less than the noise of a run chooses nothing.
    """
    _columns(found, ["distance", "weight", "accuracy", "status"])
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
    """What a run's trace comes to, one row a run: `config, method, seed, teacher_seed, final, auc, steps_0, ...`.

    traces: columns config, method, seed, teacher_seed, step, accuracy, a row an observation. final: the last accuracy;
    auc: the mean over the observations, which are evenly spaced; steps_k: the first observed step at which the accuracy
    is at least levels[k], nan for a run that never gets there (censored). Unit: a run. Raises DataError for columns
    that the table lacks.
    """
    keys = ["config", "method", "seed", "teacher_seed"]
    _columns(traces, [*keys, "step", "accuracy"])
    rows = []
    for key, part in traces.sort_values("step").groupby(keys, sort=False, dropna=False):
        step, accuracy = part["step"].to_numpy(), part["accuracy"].to_numpy(np.float64)
        row = dict(zip(keys, key, strict=True)) | {"final": accuracy[-1], "auc": accuracy.mean()}
        for k, level in enumerate(levels):
            there = accuracy >= level
            row[f"steps_{k}"] = float(step[there.argmax()]) if there.any() else np.nan
        rows.append(row)
    return pd.DataFrame(rows, columns=[*keys, "final", "auc", *(f"steps_{k}" for k in range(len(levels)))])


def _columns(frame: pd.DataFrame, wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in frame]:
        raise DataError(f"table: has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}")
