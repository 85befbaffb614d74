"""Claims that cannot be judged are refused, with the row and the value."""

from pathlib import Path

import pytest
from kit import answer_claims

from lrkd.errors import DataError
from lrkd.evaluation.endpoints import ENDPOINTS

CLAIMS = Path(__file__).resolve().parents[2] / "book" / "results" / "claims.csv"
HEAD = ",".join(answer_claims.COLUMNS)
GOOD = "a,fskd helps,lr-lr,fskd,none,T,6,superiority,0.005,lr-lr"


def test_the_claims_can_be_judged_and_say_each_comparison_once():
    table = answer_claims.read(CLAIMS)
    assert set(table["endpoint"]) <= set(ENDPOINTS)
    assert not table.duplicated(["endpoint", "method", "baseline", "setting", "side"]).any()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lr-lr,fskd", "accuracy,fskd", "a: endpoint is 'accuracy': expected one of lr-lr, hr-lr"),
        ("none,T", "fskd,T", "a: baseline is 'fskd': expected another entrant"),
        ("none,T", "none@rank,T", "a: baseline is 'none@rank': expected after the @"),
        (",T,", ",U,", "a: setting is 'U': expected one of S, T, D, P"),
        (",6,", ",six,", "a: side is 'six': expected pixels, or hr"),
        ("superiority", "maybe", "a: test is 'maybe': expected one of superiority, equivalence"),
        ("0.005", "0", "a: margin is '0': expected a fraction above zero"),
        ("0.005", "inf", "a: margin is 'inf': expected a fraction above zero"),
        ("fskd helps", " ", "a: claim is ' ': expected some text"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(tmp_path, old, new, said):
    path = tmp_path / "claims.csv"
    path.write_text(f"{HEAD}\n{GOOD}\n")
    assert len(answer_claims.read(path)) == 1
    path.write_text(f"{HEAD}\n{GOOD.replace(old, new, 1)}\n")
    with pytest.raises(DataError) as error:
        answer_claims.read(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read as CSV"),
        ("id,claim\n", "expected the columns"),
        (f"{HEAD}\n", "expected a row for each claim, got none"),
        (f"{HEAD}\n{GOOD}\n{GOOD}\n", "a: id is 'a'"),
        (f"{HEAD}\n{GOOD}\n{GOOD.replace('a,', 'b,', 1).replace('lr-lr,fskd', 'rank1,fskd')}\n", "2 endpoints"),
    ],
)
def test_a_file_of_claims_that_is_none(tmp_path, text, said):
    (tmp_path / "claims.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        answer_claims.read(tmp_path / "claims.csv")
