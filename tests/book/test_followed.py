"""Whether students look where they were drawn to: the command at scale smoke."""

import pytest

from book import followed
from lrkd.study import presets
from lrkd.study.answer_plan import ATTENTION, MAIN, Place
from lrkd.study.spec import config_hash


@pytest.mark.slow
def test_every_network_is_held_against_the_truth_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LRKD_RUNS", str(tmp_path / "runs"))
    scale = presets.SCALES["smoke"]
    place = Place(scale, epochs=1, lr=0.05)
    specs = [place.spec(entrant, 0, "T") for entrant in (MAIN[0], *ATTENTION[1:])]
    found = list(followed.rows(specs, people=6))
    assert {row["config"] for row in found} == set(map(config_hash, specs))
    assert len({(row["config"], row["map"]) for row in found}) == len(found)
    assert all(-1 <= row["rank_low"] <= row["rank"] <= row["rank_high"] <= 1 for row in found)
    trained = {path.name for path in (tmp_path / "runs").iterdir()}
    assert list(followed.rows(specs, people=6)) == found, "and nothing is trained again"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == trained
