"""Worlds, and study answer: who is shown where, lengths and ladders by their rules, a whole cycle at smoke scale."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from kit import answer_claims
from scipy.spatial.distance import cdist

from lrkd.cli import program
from lrkd.distill import methods
from lrkd.errors import ConfigError, DataError
from lrkd.evaluation import endpoints, inference
from lrkd.study import answer, answer_plan, experiment, measures, results, runner, worlds
from lrkd.study import spec as study_spec
from lrkd.study.answer_plan import Entrant, Place
from lrkd.study.presets import SCALES
from lrkd.study.spec import Spec, config_hash, faces_of, run_config
from lrkd.study.worlds import World

SMOKE = SCALES["smoke"]
PLACE = Place(SMOKE, epochs=2)
NONE, COSINE = Entrant("none"), Entrant("embedding-cos")
pytestmark = pytest.mark.usefixtures("smoke")


# ------------------------------------------------------------------------------------------------------------- worlds


def test_no_person_is_in_two_sets_or_two_worlds():
    names = ("train", "many", "validation", "test")
    sets = [worlds.people(SMOKE, World(w), name).faces().identity for w in (0, 100) for name in names]
    sets += [getattr(study_spec.splits(SMOKE), part).identity for part in ("train", "validation", "test")]
    for a, b in itertools.combinations(sets, 2):
        assert cdist(a, b).min() > 1e-3


@pytest.mark.parametrize(
    ("setting", "teacher", "student"), [("S", "train", "train"), ("T", "many", "train"), ("D", "many", "many")]
)
def test_what_the_teacher_knows(setting, teacher, student):
    spec = PLACE.spec(COSINE, 0, setting)
    assert spec.setting == setting
    for role, wanted in ((spec.teacher_run, teacher), (spec, student)):
        assert faces_of(role, "train").digest == worlds.people(SMOKE, World(0), wanted).digest


def test_a_digest_is_known_before_anything_is_rendered():
    people = worlds.people(SMOKE, World(0), "validation")
    assert people.digest == people.faces().digest
    assert people.digest != replace(people, seed=1).digest


def test_a_run_sees_no_other_people_than_its_world_shows():
    choosing, judging = PLACE.spec(NONE, 1, "S"), PLACE.spec(NONE, 100, "S")
    assert set(run_config(choosing)["data"]) == {"source", "train", "validation"}
    assert set(run_config(judging)["data"]) == {"source", "train", "test"}
    with pytest.raises(ConfigError, match="world 1 does not show its test people"):
        faces_of(choosing, "test")
    with pytest.raises(ConfigError, match="world 100 does not show its validation people"):
        faces_of(judging, "validation")


def test_one_run_where_two_settings_name_the_same():
    assert (
        config_hash(PLACE.spec(NONE, 0, "S"))
        == config_hash(PLACE.spec(NONE, 0, "T"))
        != config_hash(PLACE.spec(NONE, 0, "D"))
    )
    assert PLACE.spec(NONE, 0, "T").setting == "S"
    taught = {setting: PLACE.spec(COSINE, 0, setting) for setting in worlds.SETTINGS}
    assert (
        config_hash(taught["T"].teacher_run)
        == config_hash(taught["D"].teacher_run)
        != config_hash(taught["S"].teacher_run)
    )
    assert len({config_hash(spec) for spec in taught.values()}) == 3


def test_many_people_take_a_student_as_many_steps_and_a_teacher_half_the_epochs():
    cpu = SCALES["cpu"]
    for epochs in answer_plan.LENGTHS:
        assert worlds.epochs_on(cpu, World(0, "T"), "student", epochs) == epochs
        assert worlds.epochs_on(cpu, World(0, "D"), "student", epochs) == max(1, round(epochs / 4))
        assert worlds.epochs_on(cpu, World(0, "D"), "teacher", epochs) == -(-epochs // 2)


def test_length_and_rate_are_part_of_a_runs_key_and_the_recipes_own_are_no_other_run():
    spec = PLACE.spec(NONE, 0, "S")
    assert len({config_hash(spec), config_hash(replace(spec, epochs=3)), config_hash(replace(spec, lr=0.1))}) == 3
    assert config_hash(replace(spec, lr=spec.schedule.lr)) == config_hash(spec)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: World(-1), "world: expected a whole number from 0 on, got -1"),
        (lambda: World(0, "U"), "setting: expected one of S, T, D, got 'U'"),
        (lambda: worlds.people(SCALES["full"], World(0), "train"), "scale full has no worlds"),
        (lambda: PLACE.spec(answer_plan.LOGITS, 0, "T"), "in setting T the teacher's classes are other people"),
        (lambda: Spec(methods.get("none"), 6, 0, SMOKE, "x", world=World(0, "T")), "photographs have one set"),
        (
            lambda: Spec(methods.get("none"), 6, 0, SMOKE, world=World(0), observations=3),
            "expected no student or teacher of its own",
        ),
    ],
)
def test_what_is_no_world_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


# ---------------------------------------------------------------------------------------------------------- endpoints


def test_endpoints_by_hand():
    faces = worlds.people(SMOKE, World(0), "validation").faces()
    rng = np.random.default_rng(0)
    own = rng.standard_normal((faces.classes, 6))[faces.labels]
    low, high, taught = (own + 0.9 * rng.standard_normal(own.shape) for _ in range(3))
    found = endpoints.measured(low, high, faces, taught)
    assert tuple(sorted(found)) == tuple(sorted(endpoints.ENDPOINTS))
    first = [int(np.flatnonzero(faces.labels == k)[0]) for k in range(faces.classes)]
    probes = [row for row in range(len(faces)) if row not in first]

    def cosines(gallery: np.ndarray) -> np.ndarray:
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (low[probes], gallery[first])]
        return unit[0] @ unit[1].T

    who = faces.labels[probes]
    for gallery, suffix in ((high, ""), (taught, "-teacher")):
        score = cosines(gallery)
        np.testing.assert_array_equal(found[f"rank1{suffix}"], score.argmax(1) == who)
        expected = np.zeros(len(probes), bool)
        for half in (0, 1):
            enrolled = np.arange(faces.classes) % 2 == half
            top, best = score[:, enrolled].max(1), np.flatnonzero(enrolled)[score[:, enrolled].argmax(1)]
            strangers = np.sort(top[who % 2 != half])[::-1]
            limit = strangers[int(0.01 * len(strangers))]
            mine = who % 2 == half
            expected[mine] = ((best == who) & (top > limit))[mine]
        np.testing.assert_array_equal(found[f"open-set{suffix}"], expected)


# --------------------------------------------------------------------------------------------- lengths and ladders


def measured(spec: Spec, value: float, status: str = "ok") -> pd.DataFrame:
    side = spec.sides[-1] if spec.sides else SMOKE.size
    row = {"role": spec.role, "method": spec.method.name, "world": spec.world.number, "epochs": spec.epochs}
    row |= {"people": "validation", "status": status, "side": side, "value": value, "config": config_hash(spec)}
    return pd.DataFrame([row | {"endpoint": endpoint} for endpoint in answer_plan.CHOSEN_BY])


def lengths(values: dict[int, float]) -> pd.DataFrame:
    specs = [(replace(PLACE, epochs=k).spec(NONE, w, "S"), v) for k, v in values.items() for w in (0, 1)]
    return pd.concat([measured(spec, value) for spec, value in specs])


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({3: 0.70, 6: 0.75, 12: 0.754, 24: 0.78}, 6),
        ({3: 0.70, 6: 0.69}, 3),
        ({3: 0.70, 6: 0.72, 12: 0.74, 24: 0.76, 48: 0.78}, 48),
    ],
)
def test_the_length_is_the_first_whose_doubling_gains_less_than_half_a_point(values, wanted):
    table = lengths(values)
    assert answer_plan.length(table) == wanted
    np.testing.assert_allclose(answer_plan.curve(table)["value"], list(values.values()))


def test_a_length_that_the_table_cannot_tell_yet():
    for table in (lengths({3: 0.7, 6: 0.8}), answer.read(Path("nowhere"), "length")):
        with pytest.raises(DataError, match="finish `lrkd study answer --part length` first"):
            answer_plan.length(table)


@pytest.mark.parametrize("peak", [1 / 64, 1 / 4, 1, 4, 64, 256])
def test_a_ladder_is_climbed_until_the_best_rung_is_bracketed(peak):
    known: dict[float, float] = {}
    for _ in range(9):
        wanted, best = answer_plan.climb(known.get, answer_plan.WEIGHTS)
        if best is not None:
            break
        known |= {rung: -abs(np.log(rung / peak)) for rung in wanted}
    assert best == pytest.approx(peak)
    assert min(wanted) < best < max(wanted)


def test_a_ladder_that_never_turns_ends():
    known: dict[float, float] = {}
    while (found := answer_plan.climb(known.get, (1.0, 4.0)))[1] is None:
        known |= {rung: rung for rung in found[0]}
    assert found[1] == max(found[0]) == 4.0 ** (1 + answer_plan.MORE)


def test_rates_come_first_and_a_diverged_rung_loses():
    table = answer.read(Path("nowhere"), "ladders")
    chosen = answer_plan.ladders(PLACE, [NONE, COSINE], table, "T")
    assert {spec.method.name for spec in chosen.wanted} == {"none"}
    assert len({spec.schedule.lr for spec in chosen.wanted}) == len(answer_plan.RATES)
    usual = PLACE.spec(NONE, 0, "T").schedule.lr
    table = pd.concat([measured(s, -abs(np.log(s.schedule.lr / usual / 2))) for s in chosen.wanted])
    chosen = answer_plan.ladders(PLACE, [NONE, COSINE], table, "T")
    assert chosen.lr == 2 * usual
    weights = sorted({s.method.terms[0].weight for s in chosen.wanted if s.method.terms})
    assert weights == [20 * f for f in sorted(answer_plan.WEIGHTS)]
    rungs = [s for s in chosen.wanted if s.method.terms]
    assert {s.schedule.lr for s in rungs} == {2 * usual}
    lost = [measured(s, 0.6 + s.method.terms[0].weight / 1e4, "diverged" if s.method.terms[0].weight == 320 else "ok")
            for s in rungs]  # fmt: skip
    chosen = answer_plan.ladders(PLACE, [NONE, COSINE], pd.concat([table, *lost]), "T")
    assert chosen.factors == {"embedding-cos": 4.0}
    assert chosen.factor(Entrant("embedding-shuffled", weighed_as="embedding-cos")) == 4.0
    with pytest.raises(DataError, match="fskd: its ladder has not ended"):
        chosen.factor(Entrant("fskd"))


def test_a_student_waits_for_its_own_teacher_and_for_no_other_length(tmp_path):
    short, long = (replace(PLACE, epochs=k).spec(COSINE, 0, "S") for k in (1, 2))
    assert runner._ready([short, long, long.teacher_run], [], tmp_path) == [short, long.teacher_run]
    assert runner._ready([short, long], [short.teacher_run], tmp_path) == [long]
    # A table has the teacher's rows, and the store no teacher: one student trains it, and others keep their place.
    other = replace(PLACE, epochs=1).spec(Entrant("fskd"), 0, "S")
    assert runner._ready([other, long], [short], tmp_path) == [long]


def test_every_claim_compares_entrants_that_run_where_it_is_judged():
    entrants = answer_plan.ENTRANTS | {entrant.name: entrant for entrant in answer_plan.ATTENTION}
    chosen = answer_plan.Chosen([], 0.1, dict.fromkeys(entrants, 1.0))
    place, everybody = Place(SCALES["cpu"], epochs=12, lr=0.1), tuple(answer_plan.ENTRANTS.values())
    made = {(s.setting, s.method.name, measures.trained_for(s)) for s in answer._worlds(place, chosen, everybody)}
    made |= {("T", entrant.method, "6") for entrant in answer_plan.ATTENTION}
    photographed = {"P": answer_plan.PHOTOGRAPHED}
    made |= {("T", name, trained) for s, name, trained in made if methods.get(name).teacher in ("none", "itself")}
    path = Path(__file__).resolve().parents[2] / "book" / "results"
    for claim in answer_claims.read(path / "claims.csv").itertuples():
        for name in (claim.method, claim.baseline.partition("@")[0]):
            entrant = entrants[name]
            if claim.setting in photographed:
                assert entrant in photographed[claim.setting]
                continue
            trained = {"small": claim.side, "hr": "hr"}.get(entrant.shown)
            assert any(s == claim.setting and m == entrant.method and trained in (None, t) for s, m, t in made), name


# ------------------------------------------------------------------------------------------------------ a whole cycle


@pytest.mark.slow
def test_machines_divide_the_work_by_entrants(cycle, capsys):
    tables, _, _ = cycle

    def listed(*names):
        words = ["study", "answer", "--part", "worlds", "--scale", "smoke", "--list", "--tables", str(tables)]
        assert program.main([*words, *(["--entrants", ",".join(names)] if names else [])]) == 0
        return {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]}

    parts = [listed(name) for name in ("none", "embedding-cos", "octuplet mixed", "embedding-own-side,logit-kd")]
    assert set.union(*parts) == listed()
    students = [{run for run in part if "-teacher-" not in run} for part in parts]
    assert sum(map(len, students)) == len(set.union(*students)) > 0, "no run is on two machines"


def change(patch, **values):
    """Give constants of the plan other values, wherever they are read."""
    for name, value in values.items():
        places = [module for module in (answer, answer_plan) if hasattr(module, name)]
        assert places, name
        for module in places:
            patch.setattr(module, name, value)


@pytest.fixture(scope="module")
def cycle(smoke, tmp_path_factory):
    """Length, ladders and worlds of three entrants and two worlds each: the folder of tables, and the run store."""
    tables, store = tmp_path_factory.mktemp("tables"), smoke / "answer"
    with pytest.MonkeyPatch.context() as patch:
        rest = tuple(answer_plan.ENTRANTS[name] for name in ("octuplet mixed", "embedding-own-side"))
        entrants = {e.name: e for e in (NONE, COSINE, *rest, answer_plan.LOGITS)}
        small = {"LENGTHS": (1, 2), "ENOUGH": 2.0, "MORE": 0, "RATES": (1.0, 2.0), "WEIGHTS": (1.0, 4.0)}
        own = {"MAIN": (NONE, COSINE), "REST": rest, "JUDGING": (100, 101), "FEW": (100, 101), "ENTRANTS": entrants}
        change(patch, **small, **own)

        def run(part, **more):
            more = {"workers": 1, "device": "cpu", "progress": False} | more
            return answer.run(part, SMOKE, tables, store, **more)

        run("length")
        run("ladders")
        with pytest.raises(DataError, match=r"claims\.csv: is not there"):
            run("worlds")
        (tables / "claims.csv").write_text("here\n")
        run("worlds")
        yield tables, store, run


@pytest.mark.slow
def test_choosing_shows_validation_people_and_judging_test_people(cycle):
    tables, _, _ = cycle
    for part in ("length", "ladders"):
        table = answer.read(tables, part)
        assert set(table["people"]) == {"validation"}
        assert set(table["world"]) == {0, 1}
    judged = answer.read(tables, "worlds")
    assert set(judged["people"]) == {"test"}
    assert set(judged["world"]) == {100, 101}
    assert set(judged["setting"]) == {"S", "T", "D"}


@pytest.mark.slow
def test_every_value_is_the_mean_of_the_bits_that_are_kept(cycle):
    tables, _, _ = cycle
    judged = answer.read(tables, "worlds")
    right = results.read_table(tables / "answer-worlds-right.csv", ("config", "right"))
    both = judged[judged["role"] == "student"].merge(right, on=["config", "side", "endpoint"], suffixes=("", "_bits"))
    assert len(both) == (judged["role"] == "student").sum()
    for row in both.itertuples():
        assert inference.unpack(row.right, row.n).mean() == pytest.approx(row.value, abs=1e-6)
    people = results.read_table(tables / "answer-worlds-people.csv", ("world", "what", "people"))
    assert len(people) == 6
    counts = {(row.world, row.what): len(inference.ids(row.people)) for row in people.itertuples()}
    for row in both.itertuples():
        assert counts[row.world, "left" if row.endpoint in endpoints.VERIFICATION else "probe"] == row.n


@pytest.mark.slow
def test_the_tables_are_the_memory(cycle, monkeypatch):
    tables, store, run = cycle
    before = {path.name: path.read_bytes() for path in tables.glob("*.csv")}
    monkeypatch.setattr(runner, "train", None)  # nobody may train
    moved = store.with_name("elsewhere")
    store.rename(moved)
    try:
        for part in ("length", "ladders", "worlds"):
            run(part)
    finally:
        shutil.rmtree(store, ignore_errors=True)
        moved.rename(store)
    assert {path.name: path.read_bytes() for path in tables.glob("*.csv")} == before


@pytest.mark.slow
def test_a_lost_row_is_trained_again_and_merges_with_the_others(cycle):
    tables, _, run = cycle
    path = answer.table_path(tables, "worlds")
    whole = answer.read(tables, "worlds")
    lost = whole.loc[whole["method"] == "octuplet", "config"].iloc[0]
    results.write_table(path, whole[whole["config"] != lost])
    again = run("worlds")
    columns = ["config", "side", "endpoint", "value"]
    pd.testing.assert_frame_equal(
        again[columns].sort_values(columns, ignore_index=True), whole[columns].sort_values(columns, ignore_index=True)
    )


@pytest.mark.slow
def test_two_workers_find_what_one_does(cycle, tmp_path):
    tables, _, _ = cycle
    (tmp_path / "tables").mkdir()
    answer.run("length", SMOKE, tmp_path / "tables", tmp_path / "runs", workers=2, device="cpu", progress=False)
    columns = ["config", "side", "endpoint", "value"]
    both = [answer.read(where, "length")[columns].sort_values(columns, ignore_index=True)
            for where in (tables, tmp_path / "tables")]  # fmt: skip
    known = both[1]["config"].isin(both[0]["config"])
    pd.testing.assert_frame_equal(both[0], both[1][known].reset_index(drop=True))


@pytest.mark.slow
def test_photographs_have_their_own_ladders_and_then_seeds_that_nothing_was_chosen_on(
    photographs, tmp_path, monkeypatch
):
    change(monkeypatch, MORE=0, RATES=(1.0, 2.0), WEIGHTS=(1.0, 4.0), FEW=(100, 101), PHOTOGRAPHED=(NONE, COSINE))
    (tmp_path / "claims.csv").write_text("here\n")
    more = {"source": photographs, "workers": 1, "device": "cpu", "progress": False}
    table = answer.run("photographs", SMOKE, tmp_path, tmp_path / "runs", **more)
    assert set(zip(table["world"], table["people"], strict=True)) == {
        *((0, "validation"), (1, "validation"), (100, "test"), (101, "test"))
    }
    people = results.read_table(tmp_path / "answer-photographs-people.csv", ("world",))
    assert set(people["world"]) == {-1}  # the same people for all seeds
    found = inference.entrants(table)
    right = results.read_table(tmp_path / "answer-photographs-right.csv", ("config",))
    claim = {"method": "embedding-cos", "baseline": "none", "endpoint": "lr-lr", "setting": "P", "side": "3"}
    told = inference.bootstrap_claim(found, right, people, claim, shared=True, resamples=200)
    assert (told.n, told.low <= told.mean <= told.high) == (2, True)
    for part, source in (("photographs", "procedural"), ("length", photographs)):
        with pytest.raises(ConfigError, match="a prepared folder for part photographs, and for that part alone"):
            answer.plan(part, SMOKE, source, tmp_path)


@pytest.mark.slow
def test_the_teachers_kept_words_train_the_same_student(cycle, tmp_path):
    from lrkd.training.acceleration import Speed

    spec = PLACE.spec(COSINE, 0, "S")
    kept, asked = (
        experiment.train(spec, tmp_path / str(cached), device="cpu", progress=False, speed=Speed(cache_teacher=cached))
        for cached in (True, False)
    )
    for a, b in zip(*(experiment.load(run)[0].state_dict().values() for run in (kept, asked)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
