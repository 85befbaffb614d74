"""Small students in two stages: what they see, where they begin, which features they learn, what is measured."""

import re
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lrkd.data.degradation import degrade
from lrkd.distill import methods, selection
from lrkd.distill.terms import View
from lrkd.errors import ConfigError
from lrkd.evaluation import embedding, verification
from lrkd.models.backbones import Hints
from lrkd.study import experiment, measures, runner, teaching
from lrkd.study import spec as study_spec
from lrkd.study.grids import DESIGN, SMALL_SIDE, specs
from lrkd.study.presets import DESIGNS, SCALES
from lrkd.study.spec import Spec, teacher_spec

SMOKE = SCALES["smoke"]
pytestmark = pytest.mark.usefixtures("smoke")
KINDS = ("graph", "top", "random")


def spec(name: str, seed: int = 0, **more) -> Spec:
    more = {"side": 8, "student": "mobile-xs", **more}
    return Spec(methods.get(name), more.pop("side"), seed, SMOKE, **more)


@pytest.fixture(scope="module")
def store(smoke):
    return smoke / "two-stages"


@pytest.fixture(scope="module")
def studied(store):
    """By two workers, in an order in which what is needed comes last."""
    wanted = [spec(name) for name in ("skd", "skd-none", "skd-all")]
    return runner.run_study(wanted, store, workers=2, device="cpu", progress=False)


@pytest.mark.slow
def test_what_a_run_needs_is_trained_first_and_once(studied, store):
    assert list(studied["method"].unique()) == ["skd", "skd-none", "skd-all"]
    assert (studied["status"] == "ok").all()
    assert set(studied["student"]) == {"mobile-xs"}
    assert len(list(store.iterdir())) == 5, "three of them, one start, one teacher"
    assert experiment.find_run(spec("none"), store).finished


@pytest.mark.slow
def test_a_run_begins_with_the_weights_that_it_is_lent(studied, store, tmp_path, monkeypatch):
    class Begun(Exception):
        pass

    def fit(network, head, *given):
        raise Begun(network, head)

    monkeypatch.setattr(experiment, "fit", fit)
    lent, lent_head = experiment.load(experiment.find_run(spec("none"), store))
    fresh = replace(spec("skd-none"), method=replace(methods.get("skd-none"), name="other"))
    with pytest.raises(Begun) as begun:
        experiment.train(fresh, store, progress=False)
    for given, own in zip(begun.value.args, (lent, lent_head), strict=True):
        state = own.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in given.state_dict().items())


def test_a_start_is_of_the_same_seed_side_and_design():
    one = spec("skd", seed=3, teacher_seed=1)
    assert one.start == spec("none", seed=3, teacher_seed=1)
    assert list(one.needs) == ["teacher", "start"]
    assert study_spec.run_config(one)["start"] == study_spec.config_hash(one.start)
    assert study_spec.config_hash(one.start) == study_spec.config_hash(spec("none", seed=3)), (
        "a run without a teacher is one for all"
    )
    assert spec("none").start is None
    assert "start" not in study_spec.run_config(spec("none"))
    assert {study_spec.run_config(spec(name))["start"] for name in ("skd", "skd-all", "skd-none")} == {
        study_spec.config_hash(spec("none"))
    }


@pytest.mark.slow
def test_the_network_is_of_the_design_and_takes_images_of_the_side(studied, store):
    run = experiment.find_run(spec("skd"), store)
    assert run.path.name.startswith("procedural-smoke-skd-mobile-xs-8-s0-t0-")
    network, _ = experiment.load(run)
    assert (network.size, network.widths) == (8, DESIGNS["mobile-xs"]["widths"])
    faces = study_spec.splits(SMOKE).test
    x = torch.from_numpy(np.array(faces.images[:6])).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        small = network(degrade(x, 8, enlarge=False) * 2 - 1).embedding.numpy()
    np.testing.assert_allclose(embedding.embed(network, faces.images[:6], side=8, mirror=False), small, atol=1e-5)


@pytest.mark.slow
def test_measures_of_a_small_student(studied, store):
    faces = study_spec.splits(SMOKE).test
    pairs = measures.pairs_of(faces)
    teacher, _ = experiment.load(experiment.find_run(study_spec.teacher_spec(SMOKE), store))
    rows = studied.set_index(["method", "protocol"])
    for name in ("skd", "skd-none"):
        run = experiment.find_run(spec(name), store)
        network, _ = experiment.load(run)
        low, high = embedding.embed(network, faces.images, side=8), embedding.embed(teacher, faces.images)
        scores = np.load(run.path / "scores.npy")
        found = verification.kfold_verification(low[pairs.left], low[pairs.right], pairs.same, pairs.fold)
        assert rows.loc[(name, "test"), "accuracy"] == pytest.approx(found.mean)
        assert pd.isna(rows.loc[(name, "test"), "cosine_attention"])
        if name == "skd":
            mixed = verification.kfold_verification(high[pairs.left], low[pairs.right], pairs.same, pairs.fold)
            assert rows.loc[(name, "test-hr-lr"), "accuracy"] == pytest.approx(mixed.mean)
            np.testing.assert_allclose(scores[2], mixed.scores, atol=1e-5)
            assert -1 <= rows.loc[(name, "test"), "cosine_embedding"] <= 1
        else:
            assert (name, "test-hr-lr") not in rows.index, "nobody's features stand in for HR ones"
            assert (name, "identification") not in rows.index
            assert np.isnan(scores[2:]).all()


@pytest.mark.slow
def test_without_scikit_learn_nothing_is_trained_and_what_is_there_is_found(studied, store, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for name in ("skd", "skd-top"):
        with pytest.raises(ConfigError, match=r"selecting features needs sklearn.*: pip install 'lrkd\[book\]'"):
            experiment.train(spec(name), tmp_path, device="cpu", progress=False)
    assert not list(tmp_path.iterdir())
    assert experiment.train(spec("skd"), store, device="cpu", progress=False).finished


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_choices_have_their_size_and_kind(studied, store, fraction):
    faces, teacher = study_spec.splits(SMOKE).train, experiment.find_run(study_spec.teacher_spec(SMOKE), store)
    picked = {}
    for kind in KINDS:
        one = replace(spec("skd"), method=methods.skd(methods.Choice(kind, fraction)))
        picked[kind] = experiment._chosen(one, teacher, "cpu").numpy()
        assert picked[kind].sum() == round(fraction * len(faces))
    unary, found = experiment.selection(methods.Choice("graph", fraction), faces, teacher)
    assert unary[picked["top"]].min() >= unary[~picked["top"]].max(initial=0)
    network, _ = experiment.load(teacher)
    features = embedding.embed(network, faces.images, mirror=False)
    np.testing.assert_array_equal(unary, selection.unaries(features, faces.labels))
    np.testing.assert_array_equal(found.chosen, picked["graph"])
    if fraction == 0.5:
        other = replace(spec("skd", seed=1), method=methods.skd(methods.Choice("random", fraction)))
        assert (experiment._chosen(other, teacher, "cpu").numpy() != picked["random"]).any(), "another seed"
    assert experiment._chosen(spec("skd-all"), teacher, "cpu") is None


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"student": "tiny"}, r"student: expected a network \(.*mobile-xs.*, got 'tiny'"),
        ({"side": None}, "side: 'mobile-xs' takes LR images of one size: expected one side, got None"),
        ({"side": (6, 8)}, r"side: 'mobile-xs' takes .*, got \(6, 8\)"),
    ],
)
def test_impossible_designs(more, match):
    with pytest.raises(ConfigError, match=match):
        spec("none", **more)


@pytest.mark.parametrize("design", ["mobile-xs", "plain-s"])
@pytest.mark.parametrize("name", [name for name, method in methods.METHODS.items() if method.terms])
def test_exactly_the_methods_that_cannot_work_with_a_design_are_refused_before_anything_is_trained(name, design):
    terms, x = methods.get(name).terms, torch.rand(4, 3, 24, 24)
    student, teacher = (teaching.build(one, 0, 10)[0] for one in (spec("none", student=design), teacher_spec(SMOKE)))
    s, t = student(x[..., :8, :8]), teacher(x)

    def train() -> None:
        hints = Hints(student.widths, teacher.widths) if any(term.hint for term in terms) else None
        features, labels = hints(s.features) if hints else s.features, torch.tensor([0, 0, 1, 1])
        views = [
            View(out.embedding, out.features, hinted, out.channel, out.spatial, out.embedding, labels)
            for out, hinted in ((s, features), (t, t.features))
        ]
        assert all(term.function(*views).isfinite() for term in terms)

    try:
        train()
    except (ValueError, RuntimeError):
        with pytest.raises(ConfigError, match=rf"{design} .*method '{name}'|method '{name}': .*{design}") as raised:
            experiment.check(spec(name, student=design))
        assert re.search("these methods work: .*(embedding|rkd|shuffled|none of lrkd)", str(raised.value))
    else:
        experiment.check(spec(name, student=design))


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("side", [6, 16, 32])
def test_every_design_takes_every_side(design, side):
    network, _ = teaching.build(Spec(methods.get("none"), side, 0, SCALES["cpu"], student=design), 0, 10)
    assert network.eval()(torch.zeros(2, 3, side, side)).embedding.shape == (2, 128)


# ------------------------------------------------------------------------------------------------------------- grids


def test_the_studies_of_the_small_student():
    scale = SCALES["cpu"]
    designs = specs("designs", scale)
    assert {one.student for one in designs if one.side == SMALL_SIDE} == set(DESIGNS)
    assert {one.side for one in designs if one.student == DESIGN} == {6, 8, 12, 16, 24, 32}
    confirming = specs("selection", scale)
    students = [one for one in confirming if one.role == "student"]
    assert len(students) == 6 * 6
    assert {one.method.name for one in students} == {"none", "skd", "skd-all", "skd-top", "skd-random", "skd-none"}
    choosing = specs("fractions", scale)
    chosen_on = {one.seed for one in (*designs, *choosing) if one.role == "student"}
    assert chosen_on.isdisjoint(one.seed for one in students), "what was chosen on is not reported on"
    for grid in (designs, confirming, choosing):
        keys = [study_spec.config_hash(one) for one in grid]
        assert len(set(keys)) == len(keys)
