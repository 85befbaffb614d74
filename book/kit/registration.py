"""Read the claims that were written down before the runs."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from lrkd.errors import DataError

COLUMNS = ("id", "claim", "endpoint", "method", "baseline", "test", "expected")
ENDPOINTS = ("accuracy", "auc", "information")
EXPECTED = {"superiority": ("greater", "less"), "equivalence": ("equal",)}


class Registration(NamedTuple):
    """What was registered.

    Attributes:
        settings: Names in lower case, and their text.
        hypotheses: A row each, with `COLUMNS`.
    """

    settings: dict[str, str]
    hypotheses: pd.DataFrame

    def number(self, name: str) -> float:
        """Return a setting that is a number, such as "alpha".

        Raises:
            DataError: The setting is missing, or is not a number.
        """
        if name not in self.settings:
            raise DataError(f"hypotheses: no setting {name!r}; there are {', '.join(self.settings)}")
        found = re.match(r"[-+]?(\d+\.?\d*|\.\d+)", self.settings[name])
        if not found:
            raise DataError(f"hypotheses: setting {name!r} is {self.settings[name]!r}, which is no number")
        return float(found[0])

    @property
    def seeds(self) -> int:
        """How many seeds each claim is to have, by the setting "seeds", written "10-15"."""
        found = re.fullmatch(r"(\d+)\D+(\d+)", self.settings.get("seeds", ""))
        if not found or int(found[2]) <= int(found[1]):
            raise DataError(
                f"hypotheses: seeds: expected two rising numbers such as 10-15, got {self.settings.get('seeds')!r}"
            )
        return int(found[2]) - int(found[1]) + 1

    @property
    def smallest(self) -> dict[str, float]:
        """The smallest effect that matters by endpoint, in the endpoint's own unit (accuracy: a fraction)."""
        found = {name: self.number(f"smallest effect on {name}") for name in self.hypotheses["endpoint"].unique()}
        for name, effect in found.items():
            if not effect > 0:
                raise DataError(f"hypotheses: the smallest effect on {name} is {effect}; it has to be above zero")
        return found


def read_hypotheses(text: str) -> Registration:
    """Read the settings and hypotheses of a page such as `book/hypotheses.md`.

    Under "## Settings" it has a table `setting | value` with `alpha` and, for each endpoint of a hypothesis, `smallest
    effect on <endpoint>`; under "## Hypotheses" one with `COLUMNS`: the endpoint is one of `ENDPOINTS`, the test
    `superiority` (expected `greater` or `less`) or `equivalence` (expected `equal`). Backticks and asterisks around a
    cell are taken off, ids are unique.

    Args:
        text: The page's Markdown.

    Raises:
        DataError: A table or cell is not as above; the message names its line.
    """
    settings = {row[0].lower(): row[1] for _, row in _table(text, "Settings", ("setting", "value"))}
    rows: list[dict[str, str]] = []
    for line, row in _table(text, "Hypotheses", COLUMNS):
        cell = dict(zip(COLUMNS, row, strict=True))
        for name, wanted in (("endpoint", ENDPOINTS), ("test", EXPECTED), ("expected", EXPECTED.get(cell["test"], ()))):
            if cell[name] not in wanted:
                raise DataError(
                    f"hypotheses, line {line}: {name}: expected one of {', '.join(wanted)}, got {cell[name]!r}"
                )
        if not all(row) or cell["id"] in {other["id"] for other in rows} or cell["method"] == cell["baseline"]:
            raise DataError(
                f"hypotheses, line {line}: {' | '.join(row)!r} needs an id of its own, two methods, and no empty cell"
            )
        rows.append(cell)
    found = Registration(settings, pd.DataFrame(rows, columns=list(COLUMNS)))
    if not 0 < found.number("alpha") < 0.5:
        raise DataError(f"hypotheses: alpha: expected a number between 0 and 0.5, got {found.number('alpha')}")
    _ = found.smallest
    return found


def _table(text: str, section: str, columns: Iterable[str]) -> list[tuple[int, list[str]]]:
    """(line number, cells) of the first table under the heading."""
    wanted, rows, inside = list(columns), [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            inside = line.lstrip("#").strip().lower() == section.lower()
        elif inside and line.lstrip().startswith("|"):
            cells = [cell.strip().strip("`*").strip() for cell in line.strip().strip("|").split("|")]
            if len(cells) != len(wanted):
                raise DataError(f"hypotheses, line {number}: expected {' | '.join(wanted)}, got {len(cells)} cells")
            rows.append((number, cells))
        elif inside and rows:
            break
    if len(rows) < 2 or [cell.lower() for cell in rows[0][1]] != wanted or set("".join(rows[1][1])) - set("-: "):
        where = f", line {rows[0][0]}" if rows else ""
        raise DataError(f"hypotheses{where}: no table {' | '.join(wanted)} with a line of dashes under ## {section}")
    return rows[2:]
