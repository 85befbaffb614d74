"""Gains over a baseline at each scale, read from committed tables."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from lrkd.evaluation import statistics
from lrkd.study.results import read_table

ORIGIN = ("scale", "device", "commit")


def at_scales(*names: str, folder: Path = Path("results")) -> tuple[dict[str, pd.DataFrame], str]:
    """Read the tables `NAME.csv` and `gpu-NAME.csv` of a folder that are there.

    Args:
        names: Names of studies.
        folder: Where the tables are.

    Returns:
        Tables by file and scale, as a title has them, "gpu-core.csv, scale gpu"; and what to say of scale gpu: runs,
        device and commit, or the command that would write what is not measured yet.
    """
    files = [folder / f"{start}{name}.csv" for start in ("", "gpu-") for name in names]
    tables, said, missing = {}, [], [file for file in files[len(names) :] if not file.exists()]
    for file in filter(Path.exists, files):
        table = read_table(file, ("config", *ORIGIN))
        scales, *where = (", ".join(map(str, table[of].dropna().unique())) for of in ORIGIN)
        tables[f"{file.name}, scale {scales}"] = table
        if file in files[len(names) :]:
            runs = table["config"].nunique()
            said.append(f"book/results/{file.name}, {runs} runs on {where[0]}, commit {where[1]}")
    if missing:
        listed = ", ".join(f"book/results/{file.name}" for file in missing)
        said.append(f"not measured yet; on a GPU make gpu-results or lrkd study would write {listed}")
    return tables, f"At scale gpu (112 pixels): {'; '.join(said)}."


def gains(table: pd.DataFrame, baseline: str = "none") -> pd.DataFrame:
    """Compare the students on test people at the table's least side, by `statistics.paired_differences`.

    Args:
        table: Of `lrkd study`.
        baseline: The method that the others are compared with.

    Returns:
        Those that have an interval, by method: `side, mean, low, high, p, n`; empty while the baseline has none.
    """
    tested = table[(table["role"] == "student") & (table["protocol"] == "test")]
    hard = tested[tested["side"] == tested["side"].min()]
    if not hard.loc[hard["method"] == baseline, "accuracy"].notna().any():
        return pd.DataFrame(columns=["side", "mean", "low", "high", "p", "n"])
    found = statistics.paired_differences(hard, baseline)
    return found[found["n"] > 1].set_index("method")


def tuned(name: str) -> bool:
    """Tell whether a method's weight was searched for in this study, as of AIRD, SKD and "lp(2)@8"."""
    return "@" in name or name.startswith(("aird", "skd"))


def elsewhere(table: pd.DataFrame, couples: Iterable[tuple[str, str]] | None = None, baseline: str = "none") -> str:
    """Say in a sentence what the other protocols show, for a figure in which small images meet small ones.

    Args:
        table: The figure's.
        couples: (method, baseline) to compare; default: all methods with `baseline`.
        baseline: The method that the others are compared with.

    Returns:
        The sentence, at the least side. Unit: a seed, the mean over its teachers; 95 % t intervals, not corrected. A
        weight in a method's name ("lp(2)@8") is left out.
    """
    students = table[(table["role"] == "student") & (table["status"] == "ok")]
    students = students[students["side"] == students["side"].min()]
    students = students.assign(method=students["method"].str.partition("@")[0])
    told = []
    for title, protocol, value in (
        ("sharp against small", "test-hr-lr", "accuracy"),
        ("rank 1", "identification", "rank1"),
    ):
        part = students[students["protocol"] == protocol].groupby(["method", "seed"])[value].mean().unstack("method")
        wanted = [(name, baseline) for name in part if name != baseline] if couples is None else list(couples)
        both = [(part[a] - part[b]).dropna() for a, b in wanted if a in part and b in part]
        found = [statistics.mean_interval(x) for x in both if len(x) > 1]
        above, below = sum(one.low > 0 for one in found), sum(one.high < 0 for one in found)
        told.append(f"{title} ({protocol}), {above} of {len(found)} above zero and {below} below")
    return f"By the same runs, with uncorrected intervals: {'; '.join(told)}."


def gains_at_scales(
    *names: str, baseline: str = "none", folder: Path = Path("results")
) -> tuple[dict[str, pd.DataFrame], str]:
    """Compute `gains` of each of `at_scales` that has any, by its name and side; and what to say of scale gpu."""
    tables, said = at_scales(*names, folder=folder)
    found = {name: gains(table, baseline) for name, table in tables.items()}
    return {f"{name}, {part['side'].iloc[0]} px": part for name, part in found.items() if len(part)}, said


def small_images(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Show what resolution costs test people: the HR teacher shown images of each side, and students trained at each.

    Args:
        table: Of `lrkd study`.

    Returns:
        By what they are `side, mean, low, high, n` from the largest side down; the students have no teacher. Unit: a
        run; fewer than three have no interval.
    """
    tested = table[table["protocol"].str.fullmatch(r"test|test-at-\d+")]
    shown = tested["protocol"].str.extract(r"(\d+)")[0].astype(float).fillna(tested["side"]).astype(int)
    fed = statistics.summarise(tested.assign(side=shown)[tested["role"] == "teacher"], ["side"])
    fed.loc[fed["n"] < 3, ["low", "high"]] = np.nan
    own = statistics.summarise(tested[(tested["role"] == "student") & (tested["method"] == "none")], ["side"])
    parts = {"HR teacher, shown small images": fed, "trained at each size, no teacher": own}
    return {what: part.sort_values("side", ascending=False) for what, part in parts.items()}
