"""`lrkd adapt`."""

import argparse

import pandas as pd

from lrkd.cli.arguments import add_setting, output_file
from lrkd.cli.output import show
from lrkd.study import experiment, grids, presets, shift_study
from lrkd.study.spec import PROCEDURAL, config_hash


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--out", type=output_file, metavar="CSV", help="the table; what it has is not measured again")
    add_setting(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure the runs on shifted faces, write the table and print the gains."""
    chosen = presets.scale(arguments.scale)
    wanted = grids.specs("aird", chosen, arguments.data)
    if arguments.data == PROCEDURAL:  # what trained them is in the matrix of kernels, which photographs lack
        others = [spec for spec in grids.specs("kernels", chosen) if spec.preset != wanted[-1].preset]
        wanted = [*wanted, *others]

    def write(frame: pd.DataFrame) -> None:
        if arguments.out:
            shift_study.TABLE.merge(arguments.out, frame)

    known = shift_study.TABLE.read(arguments.out) if arguments.out and arguments.out.exists() else None
    device = experiment.device_of(arguments.device)
    table = shift_study.gather(wanted, arguments.runs, known=known, on_table=write, device=device)
    there = set(table["config"])
    lacking = [spec for spec in wanted if spec.role == "student" and config_hash(spec) not in there]
    if missing := {f"{spec.method.name} ({spec.preset})" for spec in lacking}:
        print(f"Left out, as not all of their runs have finished: {', '.join(sorted(missing))}.")
    test = shift_study.gains(table[table["part"] == "test"])
    show(test.groupby(["shift", "level", "method"], sort=False)[["source", "accuracy", "gain"]].mean().reset_index())
