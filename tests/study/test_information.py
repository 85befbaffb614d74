"""The renderer as a teacher of attention: its maps, what students are told of them, and a run towards each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lrkd.data.renderer import FaceModel
from lrkd.distill import methods
from lrkd.distill.distances import cosine
from lrkd.distill.terms import View, places
from lrkd.errors import ConfigError, DataError
from lrkd.evaluation.fisher_maps import Derivatives, fisher
from lrkd.models.wrap import Maps
from lrkd.study import answer, answer_plan, experiment, information, presets, worlds
from lrkd.study import spec as study_spec
from lrkd.study.spec import Spec, config_hash

SMOKE = presets.SCALES["smoke"]
SIDE = SMOKE.sides[-1]
NAMES = [entrant.method for entrant in answer_plan.ATTENTION]


def people(count: int = 4, images: int = 2):
    own = worlds.people(SMOKE, worlds.World(0), "validation")
    return replace(own, name="seen", identities=count, images=images, pairs=None).faces()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps that take no time."""
    rng = np.random.default_rng(0)

    def maps(faces, scale, side, device="cpu"):
        return rng.random((len(faces), side, side), np.float32)

    monkeypatch.setattr(information, "information_maps", maps)


@pytest.mark.parametrize("together", [1, 5])
def test_maps_are_those_of_fisher_and_are_computed_once(together, smoke, monkeypatch):
    """Of each image's own numbers, with the sensor's noise at that side; the derivatives are made up."""

    def slopes(model, identity, nuisance, spread, size, step=None):
        assert size == SMOKE.size
        if identity.ndim == 2:
            both = [slopes(model, *one, spread, size) for one in zip(identity, nuisance, strict=True)]
            return Derivatives(*(torch.stack(some) for some in zip(*both, strict=True)))
        rows = torch.outer(torch.stack([identity[:9].sum(), *nuisance[:3]]), torch.arange(1.0, 1 + 3 * size**2).sin())
        return Derivatives(rows[:2].view(2, 3, size, size), (rows[2:] * spread[0]).view(2, 3, size, size))

    monkeypatch.setattr(information, "_BLOCK", together)
    monkeypatch.setattr(information, "face_derivatives", slopes)
    faces = people()
    maps = information.information_maps(faces, SMOKE, SIDE)
    assert maps.shape == (8, SIDE, SIDE)
    model, nuisance = FaceModel(**SMOKE.face), torch.from_numpy(np.array(faces.nuisance))
    noise = nuisance[:, model.nuisance_names.index("noise")].square().mean().sqrt() * SIDE / SMOKE.size
    identity = torch.from_numpy(np.array(faces.identity))
    for row in range(8):
        own = slopes(model, identity[faces.labels[row]], nuisance[row], nuisance.std(0), SMOKE.size)
        expected = fisher(own.at_side(SIDE), float(noise)).information
        np.testing.assert_allclose(maps[row], expected, rtol=1e-4, atol=1e-4 * float(expected.max()))
    monkeypatch.setattr(information, "face_derivatives", None)
    np.testing.assert_array_equal(information.information_maps(faces, SMOKE, SIDE), maps)
    with pytest.raises(DataError, match="was not rendered here, so nobody knows where its information is"):
        information.information_maps(replace(faces, identity=None), SMOKE, SIDE)


def test_a_scrambled_map_has_the_same_values_elsewhere(drawn):
    faces = people()
    plain, mixed = (information.teacher(faces, SMOKE, 6, scrambled=which).table for which in (False, True))
    for table in (plain, mixed):
        torch.testing.assert_close(table.mean((1, 2)), torch.zeros(8), atol=1e-5, rtol=0)
        torch.testing.assert_close(table.square().mean((1, 2)), torch.ones(8))
    assert not torch.equal(plain, mixed)


def test_a_mirror_image_has_the_mirrored_map():
    table = torch.arange(24.0).view(4, 2, 3)
    answers, index = Maps(table).answers(4), torch.tensor([2, 0, 3])
    (plain,) = answers(index, None).spatial
    torch.testing.assert_close(plain[:, 0], table[index])
    (found,) = answers(index, torch.tensor([True, False, False])).spatial
    torch.testing.assert_close(found[0, 0], table[2].flip(1))
    torch.testing.assert_close(found[1:, 0], table[index[1:]])
    (other,) = Maps(table).answers(4, shuffled=True)(index, torch.tensor([True, False, False])).spatial
    torch.testing.assert_close(other[:, 0], torch.stack([table[3], table[2].flip(1), table[0]]))


def test_one_map_is_held_against_every_block_and_a_teacher_with_more_block_by_block():
    generator = torch.Generator().manual_seed(0)
    own = [torch.rand(3, 1, side, side, generator=generator) for side in (6, 3)]
    empty = torch.empty(0)

    def view(maps):
        return View(empty, (), (), (), maps, empty, empty)

    for target in ([torch.rand(3, 1, 3, 3, generator=generator)], [x + 1 for x in own]):
        large = torch.nn.functional.interpolate(target[0], (6, 6), mode="bilinear")
        full = target if len(target) == 2 else [large, *target]
        expected = sum(cosine(s, t).mean() for s, t in zip(own, full, strict=True))
        torch.testing.assert_close(places(cosine).function(view(own), view(target)), expected)
        mean = sum(cosine(s, t.mean(0, keepdim=True).expand_as(t)).mean() for s, t in zip(own, full, strict=True))
        torch.testing.assert_close(places(cosine, constant=True).function(view(own), view(target)), mean)


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_student_learns_from_the_renderer_without_another_network(smoke, drawn, name, tmp_path):
    spec = answer_plan.Place(SMOKE, epochs=1).spec(answer_plan.Entrant(name), 0, "T")
    assert spec.needs == {}
    assert study_spec.seed_of_teacher(spec) is None
    run = experiment.train(spec, tmp_path, device="cpu", progress=False)
    assert set(run.result["measures"]) == {f"{SIDE}/{end}" for end in ("lr-lr", "hr-lr", "rank1", "open-set")}
    losses = pd.read_csv(run.path / "metrics.csv")["places"]
    assert losses.between(0, 5 * 4 * 2).all(), "weight, blocks, and the largest distance"


def test_maps_have_one_side():
    with pytest.raises(ConfigError, match="side: method 'askd-information' has maps of one side: expected one, got"):
        Spec(methods.get("askd-information"), None, 0, SMOKE)


def test_the_part_of_attention_goes_on_from_the_ladder_of_rates(monkeypatch):
    """Its ladders lack what part ladders has; then each method runs in six worlds of setting T beside none."""
    tables: dict[str, pd.DataFrame] = {}
    monkeypatch.setattr(answer, "read", lambda folder, part: tables[part])
    monkeypatch.setattr(answer, "length", lambda table: 4)
    place = answer_plan.Place(SMOKE, epochs=2)

    def told(specs):
        columns = {"config": [config_hash(s) for s in specs], "people": "validation", "status": "ok", "side": SIDE}
        return pd.DataFrame(columns).assign(endpoint="lr-lr", value=0.6)

    empty = told([])
    rates = answer_plan.ladders(place, (), empty, "T").wanted
    tables |= {"length": empty, "ladders": empty, "attention": empty}
    with pytest.raises(DataError, match="the rates of none have not been compared"):
        answer.plan("attention", SMOKE, study_spec.PROCEDURAL, Path())
    tables["ladders"] = told(rates)
    first = answer.plan("attention", SMOKE, study_spec.PROCEDURAL, Path())
    assert {s.method.name for s in first if not s.world.judging} == {"askd-places", "askd-information"}
    assert not {config_hash(s) for s in first} & set(tables["ladders"]["config"])
    tables["attention"] = told([s for s in first if not s.world.judging])
    judged = [s for s in answer.plan("attention", SMOKE, study_spec.PROCEDURAL, Path()) if s.world.judging]
    assert len(judged) == 6 * (1 + len(NAMES))
    assert {s.method.name for s in judged} == {"none", *NAMES}
    assert {s.schedule.epochs for s in judged} == {4}
