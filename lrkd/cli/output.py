"""What commands print."""

import sys
from collections.abc import Iterable

import pandas as pd


def show(frame: pd.DataFrame) -> None:
    """Print a table; numbers with four digits."""
    print(frame.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}"))


def warn(text: str) -> None:
    """Print a warning on stderr."""
    print(f"lrkd: warning: {text}", file=sys.stderr)


def first_few(names: Iterable[str], most: int = 3) -> str:
    """Join the first of some names, and say how many more there are."""
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
