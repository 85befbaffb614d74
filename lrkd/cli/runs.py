"""`lrkd runs`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lrkd.cli.arguments import add_store, output_file
from lrkd.cli.output import show
from lrkd.errors import ConfigError, MissingError, RunError
from lrkd.files import read_table
from lrkd.study import experiment, store
from lrkd.study.results import DESCRIBED, description


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("config", nargs="*", help="a hash of a table's column config, or how it begins: show that run")
    parser.add_argument("--of", type=Path, nargs="+", metavar="CSV", help="tables whose runs --out describes")
    parser.add_argument(
        "--out", type=output_file, metavar="CSV", help="write the configuration of each run, a row a run"
    )
    add_store(parser)


def run(arguments: argparse.Namespace) -> None:
    """List the runs, show some, or write the configurations of those that tables name."""
    where = experiment.store_dir(arguments.runs)
    found = store.list_runs(where)
    if not found:
        raise MissingError(f"{where}: there are no runs here; `lrkd train` makes one, --runs names another store")
    if arguments.config:
        return _show_runs(found, arguments.config)
    if bool(arguments.of) != bool(arguments.out):
        raise ConfigError("--of names the tables and --out the file that describes their runs: give both or neither")
    if arguments.of:
        return _write_configs(found, arguments.of, arguments.out)
    show(pd.DataFrame({"run": one.path.name, **_outcome(one)} for one in found))


def _outcome(one: store.Run) -> dict[str, Any]:
    try:
        result: dict[str, Any] = one.result if one.finished else {"status": "not finished"}
        measures = result.get("measures")
        return {"status": result["status"], "accuracy": measures["test"]["accuracy"] if measures else None}
    except (RunError, KeyError, TypeError):
        return {"status": "unreadable"}


def _hash(one: store.Run) -> str:
    return one.path.name.rpartition("-")[2]


def _show_runs(found: Sequence[store.Run], wanted: Sequence[str]) -> None:
    for first in wanted:
        chosen = [one for one in found if _hash(one).startswith(first)]
        if not chosen:
            raise MissingError(
                f"{first}: no run of this store has a configuration hash that begins so; --runs names another "
                "store, and book/results/runs.csv has the configurations of the committed tables"
            )
        for one in chosen:
            told = {"run": str(one.path), "config": one.config, "result": one.result if one.finished else None}
            print(json.dumps(told, indent=1))


def _write_configs(found: Sequence[store.Run], tables: Sequence[Path], out: Path) -> None:
    """Add the configurations of the runs that the tables name."""
    DESCRIBED.check(out)
    others = [path for path in tables if path.resolve() != out.resolve()]
    named = [read_table(path).get("config", pd.Series(dtype=str)) for path in others]
    wanted = set().union(*(column.dropna() for column in named))
    made = [one for one in found if one.finished and _hash(one) in wanted]
    DESCRIBED.merge(out, description(made))
    there = len(wanted & set(DESCRIBED.read(out)["config"]))
    print(f"{out}: {there} runs of {len(wanted)} that are named")
