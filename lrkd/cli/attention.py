"""`lrkd attention`."""

import argparse

from lrkd.cli.arguments import add_setting, output_file
from lrkd.cli.output import show
from lrkd.study import attention_study, grids, presets


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--out", type=output_file, metavar="CSV", help="the table: a row a run, kind of map and block")
    parser.add_argument(
        "--maps", type=output_file, metavar="NPZ", help="maps of a few faces, and where the information is"
    )
    add_setting(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure the runs' attention, write its tables and print the means."""
    attention_study.TABLE.check(arguments.out)
    wanted = grids.specs("attention", presets.scale(arguments.scale), arguments.data)
    table, maps = attention_study.gather(wanted, arguments.runs)
    if arguments.out:
        attention_study.TABLE.merge(arguments.out, table)
    if arguments.maps:
        attention_study.save_maps(arguments.maps, maps)
    fused = table[table["map"] == "fused"]
    columns = ["cosine_same", "cosine_other", "pearson_same", "pearson_other", "rank", "pointing", "accuracy"]
    show(fused.groupby(["kind", "role", "side", "method"], sort=False)[columns].mean().reset_index())
