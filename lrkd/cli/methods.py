"""`lrkd methods`."""

import argparse

import pandas as pd

from lrkd.cli.output import show
from lrkd.distill.methods import METHODS
from lrkd.distill.terms import Term


def options(parser: argparse.ArgumentParser) -> None:
    """Add nothing."""


def run(arguments: argparse.Namespace) -> None:
    """Print the methods."""
    rows = [
        {
            "method": method.name,
            "teacher": method.teacher,
            "terms": " + ".join(map(_formula, method.terms)),
            "source": method.source,
        }
        for method in METHODS.values()
    ]
    show(pd.DataFrame(rows))


def _formula(term: Term) -> str:
    return f"{term.weight:g} {term.name}({', '.join(f'{key}={value}' for key, value in term.spec)})"
