"""What was claimed before the runs, read from the page where it was written down, and what became of each claim."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from lrkd.errors import DataError
from lrkd.stats import holm

COLUMNS = ("id", "claim", "endpoint", "method", "baseline", "test", "expected")
ENDPOINTS = ("accuracy", "auc", "information")
EXPECTED = {"superiority": ("greater", "less"), "equivalence": ("equal",)}


class Registration(NamedTuple):
    """The settings as written (names in lower case -> text), and the hypotheses, a row each with `COLUMNS`."""

    settings: dict[str, str]
    hypotheses: pd.DataFrame

    def number(self, name: str) -> float:
        """A setting that is a number, such as "alpha"; DataError where it is missing or none."""
        if name not in self.settings:
            raise DataError(f"hypotheses: no setting {name!r}; there are {', '.join(self.settings)}")
        found = re.match(r"[-+]?(\d+\.?\d*|\.\d+)", self.settings[name])
        if not found:
            raise DataError(f"hypotheses: setting {name!r} is {self.settings[name]!r}, which is no number")
        return float(found[0])

    @property
    def smallest(self) -> dict[str, float]:
        """By endpoint the smallest effect that matters, in the endpoint's own unit (accuracy: a fraction)."""
        found = {name: self.number(f"smallest effect on {name}") for name in self.hypotheses["endpoint"].unique()}
        for name, effect in found.items():
            if not effect > 0:
                raise DataError(f"hypotheses: the smallest effect on {name} is {effect}; it has to be above zero")
        return found


def read_hypotheses(text: str) -> Registration:
    """The markdown of `book/hypotheses.md` -> its settings and hypotheses.

    Under "## Settings" a table `setting | value`, with `alpha` and, for each endpoint that a hypothesis has, `smallest
    effect on <endpoint>`; under "## Hypotheses" one with `COLUMNS`: endpoint is one of `ENDPOINTS`, test is
    `superiority` (expected `greater` or `less`) or `equivalence` (`equal`). Backticks and asterisks around a cell are
    taken off, ids are unique.
    Raises DataError that names the line.
    """
    settings = {row[0].lower(): row[1] for _, row in _table(text, "Settings", ("setting", "value"))}
    rows: list[dict[str, str]] = []
    for line, row in _table(text, "Hypotheses", COLUMNS):
        cell = dict(zip(COLUMNS, row, strict=True))
        for name, wanted in (("endpoint", ENDPOINTS), ("test", EXPECTED), ("expected", EXPECTED.get(cell["test"], ()))):
            if cell[name] not in wanted:
                raise DataError(
                    f"hypotheses, line {line}: {name} is {cell[name]!r}; right is one of {', '.join(wanted)}"
                )
        if not all(row) or cell["id"] in {other["id"] for other in rows} or cell["method"] == cell["baseline"]:
            raise DataError(
                f"hypotheses, line {line}: {' | '.join(row)!r} needs an id of its own, two methods, and no empty cell"
            )
        rows.append(cell)
    found = Registration(settings, pd.DataFrame(rows, columns=list(COLUMNS)))
    if not 0 < found.number("alpha") < 0.5:
        raise DataError(f"hypotheses: alpha is {found.number('alpha')}; right is a number between 0 and 0.5")
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
                raise DataError(f"hypotheses, line {number}: {len(cells)} cells; right are {' | '.join(wanted)}")
            rows.append((number, cells))
        elif inside and rows:
            break
    if len(rows) < 2 or [cell.lower() for cell in rows[0][1]] != wanted or set("".join(rows[1][1])) - set("-: "):
        where = f", line {rows[0][0]}" if rows else ""
        raise DataError(f"hypotheses{where}: no table {' | '.join(wanted)} with a line of dashes under ## {section}")
    return rows[2:]


def resolve(name: str, methods: Iterable[str]) -> str | None:
    """A method of a hypothesis among those that ran: itself, or the one "name@weight" that a ladder chose; else None.

    Raises DataError where two weights of that name ran.
    """
    there = sorted(set(methods))
    found = [m for m in there if m == name] or [m for m in there if m.partition("@")[0] == name]
    if len(found) > 1:
        raise DataError(f"hypotheses: {name!r} may be any of {', '.join(found)}; there must be one winner")
    return found[0] if found else None


def judge(
    hypotheses: pd.DataFrame, comparisons: pd.DataFrame, *, alpha: float, smallest: Mapping[str, float]
) -> pd.DataFrame:
    """Each hypothesis with its figures, `adjusted` p, `verdict` (confirmed, refuted, undecided) and `reason`.

    comparisons: rows of `stats.compare` with a column `endpoint`, under the names that the hypotheses use; one that is
    missing leaves its hypothesis undecided. Unit: that of the comparisons, a seed. The family of Holm's correction is
    all hypotheses that have a p: the paired t test's for superiority, TOST's for equivalence. smallest: by endpoint the
    effect that matters, which was also the margin of TOST; an endpoint without one refutes by the sign alone.

    Superiority is confirmed by an adjusted p below alpha with the expected sign; refuted by one with the other sign, or
    where the interval of level 1 - 2 alpha (one-sided, not corrected) ends below the smallest effect that matters.
    Equivalence is confirmed by an adjusted p below alpha, refuted where that interval lies wholly beyond the margin.
    All else is undecided: for want of seeds, as a rule, and no evidence for "the same".
    """
    keys = ["endpoint", "method", "baseline"]
    if comparisons.duplicated(keys).any():
        raise DataError(f"comparisons: more than one row of one of {', '.join(keys)}")
    table = hypotheses.merge(comparisons, how="left", on=keys, validate="many_to_one")
    table["adjusted"] = holm(table["p"].where(table["test"] == "superiority", table["tost"]))
    said = [_verdict(row, alpha, smallest.get(row["endpoint"])) for _, row in table.iterrows()]
    table["verdict"], table["reason"] = zip(*said, strict=True) if said else ([], [])
    return table


def _verdict(row: pd.Series, alpha: float, smallest: float | None) -> tuple[str, str]:
    if not np.isfinite(row["adjusted"]):
        return "undecided", "fewer than two units of both methods"
    sure = row["adjusted"] < alpha
    if row["test"] == "equivalence":
        if sure:
            return "confirmed", "the difference lies within the margin"
        if smallest is not None and (row["low90"] > smallest or row["high90"] < -smallest):
            return "refuted", "the difference lies beyond the margin"
        return "undecided", "neither shown to lie within the margin nor beyond it"
    sign = 1 if row["expected"] == "greater" else -1
    most = row["high90"] if sign > 0 else -row["low90"]
    negligible = smallest is not None and most < smallest
    if sure and sign * row["mean"] > 0:
        return "confirmed", "the expected sign" + (", yet less than the smallest effect that matters" * negligible)
    if sure:
        return "refuted", "the opposite sign"
    if negligible:
        return "refuted", "less than the smallest effect that matters"
    return "undecided", "neither shown to be there nor to be too small to matter"
