"""What study `answer` claims, written down before its judging runs: one row of claims.csv a claim, checked on reading.

A claim compares two entrants of study `answer` at one endpoint, in one setting and at one side of the small images. The
smallest differences that matter: half a point of verification, the gain below which doubling the training is not worth
it; two points of a search, which at a thousand people is one more of fifty probes found, about what half a point
of verification is worth there.
"""

from pathlib import Path

import pandas as pd

from lrkd.errors import DataError
from lrkd.evaluation.endpoints import ENDPOINTS
from lrkd.study.worlds import SETTINGS

COLUMNS = ("id", "claim", "endpoint", "method", "baseline", "setting", "side", "test", "margin", "family")
PHOTOGRAPHS = "P"  # the setting of a claim on photographs
TESTS = ("superiority", "equivalence")


def read(path: Path) -> pd.DataFrame:
    """Read claims.csv.

    endpoint: of `endpoints.ENDPOINTS`. method, baseline: entrants; a baseline "none@rank1" is measured at another
    endpoint than the method. side: in pixels, or "hr". test: what is claimed, "superiority" of the method or
    "equivalence". margin: the smallest difference that matters, a fraction. family: claims that are corrected together.

    Args:
        path: The file.

    Returns:
        Its rows with COLUMNS, margin a number.

    Raises:
        DataError: A claim cannot be judged; names the file, the row's id and the value.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({' '.join(str(error).split())})") from error
    if tuple(table.columns) != COLUMNS:
        raise DataError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {', '.join(table.columns)}")
    if table.empty:
        raise DataError(f"{path}: expected a row for each claim, got none")

    def refuse(bad: "pd.Series[bool]", column: str, right: str) -> None:
        if bad.any():
            row = table[bad].iloc[0]
            raise DataError(f"{path}: {row['id'] or 'a row'}: {column} is {row[column]!r}: expected {right}")

    for column in COLUMNS:
        refuse(table[column].str.strip() == "", column, "some text")
    refuse(table["id"].duplicated(), "id", "another one, as each comes once")
    refuse(~table["endpoint"].isin(ENDPOINTS), "endpoint", f"one of {', '.join(ENDPOINTS)}")
    other = table["baseline"].str.partition("@")[2]
    refuse((other != "") & ~other.isin(ENDPOINTS), "baseline", f"after the @ one of {', '.join(ENDPOINTS)}")
    refuse(table["method"] == table["baseline"], "baseline", "another entrant than the method")
    refuse(~table["setting"].isin([*SETTINGS, PHOTOGRAPHS]), "setting", f"one of {', '.join([*SETTINGS, PHOTOGRAPHS])}")
    refuse(~(table["side"].str.isdecimal() | (table["side"] == "hr")), "side", "pixels, or hr")
    refuse(~table["test"].isin(TESTS), "test", f"one of {', '.join(TESTS)}")
    margin = pd.to_numeric(table["margin"], errors="coerce")
    refuse(~((margin > 0) & (margin < 1)), "margin", "a fraction above zero")
    for family, part in table.groupby("family"):
        if part["endpoint"].nunique() > 1:
            raise DataError(
                f"{path}: family {family!r} has claims at {part['endpoint'].nunique()} endpoints: expected one"
            )
    return table.assign(margin=margin)
