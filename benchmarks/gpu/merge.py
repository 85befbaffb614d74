"""`--merge DIR`: take what a GPU measured into book/results, or say what does not fit and change nothing."""

import io
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd

from lrkd.errors import DataError, LrkdError
from lrkd.study.results import write_table

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "book" / "results"
MOST = 64 * 2**20  # bytes of a table
NAME = re.compile(r"(gpu|answer)-[a-z0-9-]+\.csv")
RUNS = "-runs.csv"  # whose columns are what the configurations have
OTHERS = ("log.txt", "claims.csv")  # which a stage had to have
# What a table must have; of one whose rows are runs, what tells a run from others, and the hash of its configuration.
STAMP = ("device", "torch", "commit")
RUN = ("data", "scale", "role", "method", "side", "seed", "teacher_seed")
# Of a table whose rows are no runs, what was measured; measured again, its rows take the place of the old ones.
MEASURED = {
    "gpu-against-peer.csv": ["what", "batch", "device"],
    "gpu-correctness.csv": ["name", "device"],
    "gpu-device.csv": ["what", "device"],
    "gpu-faces.csv": ["px", "device"],
    "gpu-processes.csv": ["device"],
    "gpu-profile.csv": ["step", "model", "batch", "switches", "device"],
    "gpu-student-speed.csv": ["network", "engine", "batch", "device"],
    "gpu-train-step.csv": ["step", "model", "batch", "switches", "device"],
}


def read(source: Any, name: str) -> pd.DataFrame:
    """A table; configurations are kept as they are written."""
    text: Any = str if name.endswith(RUNS) else {"config": str, "commit": str}
    return pd.read_csv(source, dtype=text)


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables in a folder's archives. Raises DataError for an archive that is not whole, and for other files."""
    found: dict[str, pd.DataFrame] = {}
    archives = sorted(folder.glob("*.zip"))
    if not archives:
        raise DataError(f"{folder}: expected the archives that `python -m benchmarks.gpu_results` wrote, got none")
    for path in archives:
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.comment:
                    raise DataError(f"{path}: is of {archive.comment.decode(errors='replace')}: expected a GPU's")
                for item in archive.infolist():
                    if item.filename in OTHERS:
                        continue
                    if not NAME.fullmatch(item.filename) or item.file_size > MOST:
                        raise DataError(f"{path}: expected tables gpu-*.csv and answer-*.csv, got {item.filename!r}")
                    content = archive.read(item)
                    if not content.endswith(b"\n"):
                        raise DataError(f"{path}: {item.filename} does not end with a whole line")
                    table = read(io.BytesIO(content), item.filename)
                    if (before := found.get(item.filename)) is not None:
                        if list(before.columns) != list(table.columns):
                            raise DataError(f"{path}: {item.filename} has other columns in another archive")
                        table = pd.concat([before, table], ignore_index=True)  # two stages measure steps
                    found[item.filename] = table
        except DataError:
            raise
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise DataError(f"{path}: is not whole ({error}): bring it again") from error
    return found


def known_commit(commit: str) -> bool:
    """Whether a commit is of this repository's past, and nothing was changed on top of it."""
    if not re.fullmatch(r"[0-9a-f]{7,40}", commit):
        return False
    words = ["git", "-C", str(ROOT), "merge-base", "--is-ancestor", commit, "HEAD"]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


def check(name: str, new: pd.DataFrame, old: pd.DataFrame | None) -> None:
    """DataError where a table does not fit what is there: other columns, an unknown commit, another configuration."""
    if new.empty:
        raise DataError(f"{name}: has no row")
    needed = () if name.endswith(("-right.csv", "-people.csv", RUNS)) else STAMP
    if missing := [column for column in needed if column not in new]:
        raise DataError(f"{name}: has no column {', '.join(missing)}")
    if old is not None and not name.endswith(RUNS) and list(old.columns) != list(new.columns):
        odd = sorted(set(old.columns) ^ set(new.columns)) or ["in another order"]
        raise DataError(f"{name}: expected the columns of book/results/{name}, got others: {', '.join(odd)}")
    for commit in sorted(set(new["commit"].astype(str))) if "commit" in new else ():
        if not known_commit(commit):
            raise DataError(f"{name}: expected rows of commits before this one, without changes, got {commit!r}")
    if "config" not in new:
        return
    if new["config"].isna().any():
        raise DataError(f"{name}: a row has no config")
    if old is None or not {*RUN} <= set(new):
        return
    both = old.merge(new, on=list(RUN), suffixes=("", "_new"))
    other = both[both["config"] != both["config_new"]]
    if len(other):
        row = other.iloc[0]
        raise DataError(
            f"{name}: expected config {row['config']} for {row['method']}, side {row['side']}, seed {row['seed']}, got "
            f"{row['config_new']}: the configuration changed in between; remove the old rows, or measure again"
        )


def joined(name: str, new: pd.DataFrame, old: pd.DataFrame | None) -> pd.DataFrame:
    """The old rows and, of tables of runs, those of runs that they lack; of others, the new ones in place of the same.

    Raises DataError for a table of which nobody has said what makes two of its rows the same.
    """
    if old is None:
        return new
    if "config" in new:
        columns = old.columns if set(new) <= set(old) else new.columns.append(old.columns.difference(new.columns))
        return pd.concat([old, new[~new["config"].isin(old["config"])]], ignore_index=True)[columns]
    if name not in MEASURED:
        raise DataError(f"{name}: expected one of {', '.join(MEASURED)} or a table of runs")
    again = pd.MultiIndex.from_frame(old[MEASURED[name]]).isin(pd.MultiIndex.from_frame(new[MEASURED[name]]))
    return pd.concat([old[~again], new], ignore_index=True)


def merge(folder: Path, results: Path = RESULTS) -> int:
    """Take all tables, or none; -> the exit status."""
    try:
        found, whole = tables(folder), {}
        for name, new in found.items():
            path = results / name
            old = read(path, name) if path.exists() else None
            check(name, new, old)
            whole[path] = joined(name, new, old)
    except LrkdError as error:
        print(f"error: {error}; nothing was changed")
        return 2
    for path, table in whole.items():
        write_table(path, table)
        print(f"{path.name}: {len(table)} rows")
    print("now: lrkd runs --of book/results/*.csv --out book/results/runs.csv, and build the book")
    return 0
