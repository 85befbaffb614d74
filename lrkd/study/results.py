"""The tables of a study: results, pairs, traces, scores."""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lrkd import files
from lrkd.errors import RunError
from lrkd.files import Table, atomic
from lrkd.study import store
from lrkd.study.experiment import ended_well, find_run
from lrkd.study.measures import named_networks, pairs_of, result_rows
from lrkd.study.spec import Spec, config_hash, source_name, splits

RESULTS = ("config", "method", "side", "seed", "protocol", "accuracy")
# The tables of `lrkd study`: results, whether each pair was right, traces, and histograms of scores.
RUNS = Table("lrkd study", ("config",), RESULTS)
PAIRS = Table("lrkd study --pairs", ("config",), ("config", "correct"))
TRACES = Table("lrkd study --traces", ("config",), ("config", "method", "seed", "step", "accuracy"))
SCORES = Table(
    "lrkd study --scores",
    ("data", "scale", "role", "method", "side", "protocol", "student", "teacher", "preset"),
    ("data", "method", "side", "protocol", "low", "high", "genuine", "impostor", "runs"),
    most="runs",
)

# What each run of a table was: its configuration, flattened.
DESCRIBED = Table("lrkd runs", ("config",), ("role", "data.source", "method.name", "side", "seed", "config"))


def description(runs: Iterable[store.Run]) -> pd.DataFrame:
    """Describe finished runs, a row each: `config`, `commit`, and every value of the configuration that it was."""
    rows = [
        {"config": run.path.name.rpartition("-")[2], "commit": run.result["commit"], **store.flatten(run.config)}
        for run in runs
    ]
    order = list(DESCRIBED.columns)
    table = pd.DataFrame(rows, columns=None if rows else order, dtype=object)
    return table.sort_values(order, key=lambda column: column.astype(str))


def without_test(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep of a table what one may choose by: rows of validation people, and those of runs that diverged."""
    return frame[(frame["protocol"] == "validation") | (frame["status"] != "ok")] if len(frame) else frame


def results_table(wanted: Sequence[Spec], where: Path | None = None, known: pd.DataFrame | None = None) -> pd.DataFrame:
    """Make the results table of those runs that have finished, by an earlier table or in the store.

    Args:
        wanted: The runs, in the order of the rows.
        where: The run store.
        known: The earlier table, whose rows come first.

    Returns:
        One row a run and protocol, see `measures.result_rows`.
    """
    kept = {} if known is None else {str(name): part.to_dict("records") for name, part in known.groupby("config")}
    found = [(spec, find_run(spec, where)) for spec in wanted]
    return pd.DataFrame(
        row
        for spec, run in found
        for row in kept.get(config_hash(spec)) or (result_rows(spec, run) if run.finished else ())
    )


def pair_table(wanted: Sequence[Spec], where: Path | None = None) -> pd.DataFrame:
    """Make the table of whether each test pair was right: a row a run, `config, correct` (base64 of packed bits)."""
    rows = []
    for spec, run in ended_well(wanted, where):
        bits = np.packbits(_scores(run)[1].astype(bool)).tobytes()
        rows.append({"config": config_hash(spec), "correct": base64.b64encode(bits).decode()})
    return pd.DataFrame(rows)


def trace_table(wanted: Sequence[Spec], where: Path | None = None) -> pd.DataFrame:
    """Make the table of runs with observations: `config, method, seed, teacher_seed` and the columns of trace.csv."""
    rows = []
    for spec, run in ended_well(wanted, where):
        who = {
            "config": config_hash(spec),
            "method": spec.method.name,
            "seed": spec.seed,
            "teacher_seed": spec.teacher_seed,
        }
        if spec.observations:
            rows += [who | row for row in files.read_table(run.path / "trace.csv").to_dict("records")]
    return pd.DataFrame(rows)


def _scores(run: store.Run) -> np.ndarray:
    """The run's scores.npy, (4,P) as `evaluate` returned it."""
    try:
        scores: np.ndarray = np.load(run.path / "scores.npy", allow_pickle=False)
        return scores
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{run.path / 'scores.npy'}: cannot be read ({error}); remove the run directory") from error


def read_table(path: Path | str, columns: Sequence[str] = RESULTS) -> pd.DataFrame:
    """Read a table of `lrkd study` with at least these columns; DataError where it is none."""
    return files.read_table(path, columns, "lrkd study")


def score_table(wanted: Sequence[Spec], where: Path | None = None) -> pd.DataFrame:
    """Make histograms of the finished runs' test scores over [-1,1], pooled over seeds: genuine and impostor pairs.

    Returns:
        One row a role, method, side, protocol ("test", "test-hr-lr") and bin, with the number of runs pooled; also by
        student, teacher and preset where any run has another than the usual one.
    """
    edges = np.linspace(-1, 1, 51)
    usual = {"student": "", "teacher": "", "preset": ""}
    parts = []
    for spec, run in ended_well(wanted, where):
        same = pairs_of(splits(spec.scale, spec.source).test).same
        scores = _scores(run)
        who = {
            "data": source_name(spec),
            "scale": spec.scale.name,
            "role": spec.role,
            "method": spec.method.name,
            "side": spec.scale.size if spec.side is None else spec.side,
        }
        other = usual | named_networks(spec) | {"preset": "" if spec.preset == Spec.preset else spec.preset}
        for protocol, values in (("test", scores[0]), ("test-hr-lr", scores[2])):
            genuine, impostor = (np.histogram(values[kind].clip(-1, 1), edges)[0] for kind in (same, ~same))
            bins = {"low": edges[:-1], "high": edges[1:], "genuine": genuine, "impostor": impostor, "runs": 1}
            parts.append(pd.DataFrame({**who, "protocol": protocol, **other, **bins}))
    if not parts:
        return pd.DataFrame()
    by = [*who, "protocol", *usual, "low", "high"]
    table = pd.concat(parts).groupby(by, sort=False).sum().reset_index()
    return table.drop(columns=[name for name in usual if table[name].eq("").all()])


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a results table as CSV, atomically; fractions with six digits."""
    with atomic(path) as file:
        file.write(files.table_text(frame))
