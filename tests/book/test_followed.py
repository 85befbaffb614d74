"""Whether students look where they were drawn to: the command at scale smoke."""

import pytest

from book import followed
from lrkd.study import presets
from lrkd.study.answer_plan import Chosen, Place


@pytest.mark.slow
def test_every_network_is_held_against_the_truth_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LRKD_RUNS", str(tmp_path / "runs"))
    scale = presets.SCALES["smoke"]
    place, chosen = Place(scale, epochs=1, lr=0.05), Chosen([], 0.05, {"askd-information": 1.0})
    found = list(followed.rows(place, chosen, 0, people=6))
    assert {row["method"] for row in found} == {entrant.name for entrant in followed.ASKED}
    assert len({row["config"] for row in found}) == len(followed.ASKED)
    assert len({(row["config"], row["map"]) for row in found}) == len(found)
    assert all(-1 <= row["rank_low"] <= row["rank"] <= row["rank_high"] <= 1 for row in found)
    trained = {path.name for path in (tmp_path / "runs").iterdir()}
    assert list(followed.rows(place, chosen, 0, people=6)) == found, "and nothing is trained again"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == trained
