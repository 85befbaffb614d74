"""Worlds of which one thing is changed: what is changed, what stays, and the commands at scale smoke."""

import numpy as np
import pytest

from book import variations
from lrkd.data.renderer import FaceModel
from lrkd.study import presets, worlds
from lrkd.study.answer_plan import Chosen, Place
from lrkd.study.spec import config_hash

SMOKE, CPU = presets.SCALES["smoke"], presets.SCALES["cpu"]
CHOSEN = Chosen([], 0.05, {"embedding-cos": 4.0, "fskd": 1.0, "fskd-l2": 1.0, "askd": 1.0})


def test_more_people_are_shown_in_as_many_steps_beside_the_same_teacher():
    found = list(variations.people(CPU, 12, CHOSEN))
    shown = {count * CPU.population.many[1] * one.schedule.epochs for count, one in found}
    assert shown == {12 * CPU.population.train[0] * CPU.population.train[1]}
    for world in variations.WORLDS["people"]:
        taught = [one for _, one in found if one.world.number == world and one.teacher_run]
        place = Place(CPU, epochs=12, lr=0.05)
        own = place.spec(variations.PEOPLE[1], world, "T").teacher_run
        assert {config_hash(one.teacher_run) for one in taught} == {config_hash(own)}
    assert len({config_hash(one) for _, one in found}) == len(found)


def test_the_spectrum_goes_from_the_studys_turned_round_to_the_studys_own():
    own = FaceModel(**CPU.face).amplitudes
    assert variations.amplitudes(1, own) == own
    assert variations.amplitudes(0, own) == own[::-1]
    low, middle, high = zip(*(variations.amplitudes(f, own) for f in variations.FINENESS), strict=True)
    assert list(low) == sorted(low, reverse=True)
    assert list(high) == sorted(high)
    assert set(middle) == {own[1]}
    found = list(variations.spectrum(CPU, 12, CHOSEN))
    same = [one for fineness, one in found if fineness == 1 and one.world.number == 0]
    place = Place(CPU, epochs=6, lr=0.05)
    assert config_hash(same[0]) == config_hash(place.spec(variations.MAIN[0], 0, "S"))
    assert sum(one.role == "teacher" for _, one in found) == len(variations.FINENESS) * len(
        variations.WORLDS["spectrum"]
    )
    assert not any(one.world.judging for _, one in found)


@pytest.mark.slow
def test_what_is_trained_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LRKD_RUNS", str(tmp_path / "runs"))

    def again(count):
        return variations.train_at("people", SMOKE, tmp_path, 1, CHOSEN, only=count, workers=1, progress=False)

    first = again(1)
    assert set(first["method"]) == {"none"}
    assert set(first["at"]) == {4}
    table = again(2)
    assert set(table["role"]) == {"student"}
    assert table["config"].nunique() == 2
    assert list(again(2)["config"]) == list(table["config"])


def test_powers_of_all_bands_are_the_squared_differences():
    images = np.random.default_rng(0).integers(0, 256, (6, 24, 24, 3), np.uint8)
    left, right = np.array([0, 1, 2]), np.array([3, 4, 5])
    grey = images.mean(-1) / 255
    expected = np.square(grey[left] - grey[right]).sum((1, 2))
    np.testing.assert_allclose(variations.powers(images, left, right).sum(1), expected, rtol=1e-5)


def test_people_differ_more_than_images_of_one_person():
    faces = worlds.people(SMOKE, worlds.World(0), "validation").faces()
    rows = list(variations.differences(faces))
    assert sum(row["between"] for row in rows) > sum(row["within"] for row in rows)
    assert all(row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in rows)
