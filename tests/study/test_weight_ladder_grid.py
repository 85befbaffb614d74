"""The studies behind the race: which runs, which winners; runs that look at themselves; tables of pairs and traces."""

import base64
import itertools
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kit import weight_ladder
from safetensors.torch import load_file

from lrkd.distill import methods
from lrkd.distill.terms import feature
from lrkd.errors import ConfigError, DataError
from lrkd.study import experiment, grids, results, runner
from lrkd.study import spec as study_spec
from lrkd.study.grids import CONFIRMING_SEEDS, LADDER_SEED, RUNGS, specs, winners
from lrkd.study.presets import SCALES
from lrkd.study.spec import Spec, teacher_spec

SMOKE = SCALES["smoke"]
pytestmark = pytest.mark.usefixtures("smoke")


def ladder(accuracies: dict[str, float | None]) -> pd.DataFrame:
    rows = [("none", "validation", 0.99, "ok"), ("none", "test", 0.99, "ok")]
    for name, accuracy in accuracies.items():
        if accuracy is None:
            rows.append((name, "test", None, "diverged"))
        else:
            rows += [(name, "validation", accuracy, "ok"), (name, "test", 1 - accuracy, "ok")]
    return pd.DataFrame(rows, columns=["method", "protocol", "accuracy", "status"]).assign(seed=LADDER_SEED)


EVEN = {f"{name}@{weight:g}": 0.7 for name, (_, weight) in methods.MATCHED.items()}


# ------------------------------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_a_ladder_has_the_same_rungs_for_every_distance_around_its_matched_weight(scale):
    teacher, *grid = specs("ladder", scale)
    assert teacher == teacher_spec(scale, 0)
    assert len({spec.method.name for spec in grid}) == len(grid) == len(RUNGS) * len(methods.MATCHED)
    assert {(spec.side, spec.seed, spec.teacher_seed) for spec in grid} == {(scale.sides[-1], LADDER_SEED, 0)}
    for name, (_, matched) in methods.MATCHED.items():
        weights = [s.method.terms[0].weight for s in grid if s.method.name.startswith(f"{name}@")]
        assert weights == pytest.approx([matched * rung for rung in RUNGS], rel=5e-3)
    assert RUNGS[0] == 1
    assert [s.method.terms[0].weight for s in grid[:8]] == [w for _, w in methods.MATCHED.values()], (
        "matched ones first"
    )


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_attention_is_looked_at_in_runs_of_core(scale):
    grid, core = specs("attention", scale), specs("core", scale)
    assert all(spec in core for spec in grid)
    names = ("none", "askd", "askd-centred", "askd-constant", "fskd")
    wanted = Counter({(name, side): 6 if side == scale.sides[-1] else 3 for name in names for side in scale.sides})
    assert Counter((s.method.name, s.side) for s in grid if s.role == "student") == wanted
    assert [s.seed for s in grid if s.role == "teacher"] == [0, 1]


def test_hypotheses_are_judged_by_seeds_and_teachers_that_nothing_was_chosen_on():
    table = ladder(EVEN | {"lp(2)@99": 0.8})
    grid = specs("hypotheses", SMOKE, ladder=table)
    students = [spec for spec in grid if spec.role == "student"]
    assert [s.seed for s in grid if s.role == "teacher"] == [2, 3]
    raced = {f"{name}@{weight:g}" for name, weight in winners(table).items()}
    assert "lp(2)@99" in raced
    assert {s.method.name for s in students} == {"none", "askd", "askd-centred", "askd-constant", *raced}
    for name, teachers in Counter((s.method.name, s.seed) for s in students).items():
        assert teachers == (2 if name[0].split("@")[0] in ("cosine", "lp(2)") else 1)
    for s in students:
        if s.method.name.split("@")[0] not in ("cosine", "lp(2)"):
            assert s.teacher_seed == 2 + s.seed % 2
        assert s.observations == (0 if s.method.name.startswith("askd") else 12)
    assert {s.seed for s in students} == set(CONFIRMING_SEEDS)
    assert len(students) == 6 * (1 + 8 + 3 + 2)
    seen = {(s.role, s.seed) for name in ("core", "book", "ladder") for s in specs(name, SMOKE)}
    assert not seen & {(s.role, s.seed) for s in grid}
    late = [s.method.name.split("@")[0] in grids.EXPLORATORY for s in students]
    assert late == sorted(late), "what no hypothesis needs comes last"


def test_hypotheses_without_a_ladder_or_with_half_of_one():
    with pytest.raises(ConfigError, match="takes its weights from study ladder: give its table by --ladder"):
        specs("hypotheses", SMOKE)
    table = ladder({name: 0.7 for name in EVEN if not name.startswith("lp(1")} | {"lp(1)@20": None})
    with pytest.raises(DataError, match=r"no validation row of lp\(1\), lp\(1\.5\): finish `lrkd study ladder` first"):
        specs("hypotheses", SMOKE, ladder=table)
    with pytest.raises(DataError, match="no validation row of cosine"):
        winners(ladder({}))


# ----------------------------------------------------------------------------------------------------------- winners


def test_a_winner_has_the_best_validation_accuracy():
    table = ladder(EVEN | {"cosine@5": 0.8, "cosine@80": 0.6, "lp(2)@32": None, "lp(4)@0.1": 0.71})
    assert winners(table) == {name: weight for name, (_, weight) in methods.MATCHED.items()} | {
        "cosine": 5,
        "lp(4)": 0.1,
    }


@pytest.mark.parametrize("seed", range(5))
def test_winners_are_the_stars_of_the_ladders_figure(seed):
    rng = np.random.default_rng(seed)
    names = [s.method.name for s in specs("ladder", SMOKE)[1:]]
    values = dict(zip(names, rng.uniform(0.6, 0.8, len(names)).tolist(), strict=True))
    lost = dict.fromkeys(rng.choice(names[8:], 6, replace=False))
    table = ladder(values | lost)
    chosen = weight_ladder.brackets(grids.rungs(table), {name: w for name, (_, w) in methods.MATCHED.items()})
    assert dict(zip(chosen["distance"], chosen["weight"], strict=True)) == winners(table)
    assert chosen["diverged"].sum() == 6


# --------------------------------------------------------------------------------------- runs that look at themselves

PLAIN = Spec(methods.weighed("lp(2)", 8), 6, 50, SMOKE)
SEEN = replace(PLAIN, observations=3)
BOOM = Spec(replace(methods.get("fskd"), name="boom", terms=(feature(weight=1e39),)), 6, 50, SMOKE, observations=3)
UNIT = replace(SEEN, method=methods.weighed("cosine", 20))
NONE = replace(SEEN, method=methods.get("none"))
RAN = [PLAIN, SEEN, UNIT, NONE, BOOM]


@pytest.fixture(scope="module")
def store(smoke):
    where = smoke / "race"
    runner.run_study([teacher_spec(SMOKE), *RAN], where, workers=1, device="cpu", progress=False)
    return where


def test_a_run_that_looks_at_itself_ends_on_the_bits_of_one_that_does_not(store):
    plain, seen = (load_file(experiment.find_run(spec, store).path / "model.safetensors") for spec in (PLAIN, SEEN))
    assert plain.keys() == seen.keys()
    assert all(np.array_equal(plain[name].numpy(), seen[name].numpy()) for name in plain)
    assert study_spec.config_hash(PLAIN) != study_spec.config_hash(SEEN)
    assert not (experiment.find_run(PLAIN, store).path / "trace.csv").exists()


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_was_stopped_leaves_the_trace_of_one_that_was_not(store, tmp_path, step):
    shutil.copytree(
        experiment.find_run(SEEN.teacher_run, store).path,
        tmp_path / experiment.find_run(SEEN.teacher_run, store).path.name,
    )
    count = itertools.count(1)
    with pytest.raises(KeyboardInterrupt):
        experiment.train(SEEN, tmp_path, device="cpu", progress=False, stop=lambda: next(count) == step)
    run = experiment.find_run(SEEN, tmp_path)
    whole = (experiment.find_run(SEEN, store).path / "trace.csv").read_bytes()
    assert (run.path / "trace.csv").read_bytes() != whole
    experiment.train(SEEN, tmp_path, device="cpu", progress=False)
    assert (run.path / "trace.csv").read_bytes() == whole


def test_observations_say_where_each_stage_stands(store):
    trace = results.trace_table([SEEN, UNIT, NONE], store).set_index(["method", "step"])
    features = [name for name in trace if name.partition("_")[0] in ("cosine", "norm", "radial")]
    assert trace.loc["none", features].isna().all(axis=None)
    taught = trace.drop("none", level="method")
    assert taught["accuracy"].between(0, 1).all()
    for k in range(1, len(features) // 4 + 1):
        assert taught[f"cosine_{k}"].between(-1, 1).all()
        assert (taught[f"norm_{k}"] > 0).all()
        assert taught[[f"norm_share_{k}", f"radial_{k}"]].ge(0).all(axis=None)
        assert taught[[f"norm_share_{k}", f"radial_{k}"]].le(1).all(axis=None)
        assert (trace.loc["cosine@20", f"radial_{k}"] < 1e-9).all(), "the cosine only turns"
        assert (trace.loc["lp(2)@8", f"radial_{k}"] > 1e-6).all()


# ------------------------------------------------------------------------------------------------------------ tables


def test_pairs_decode_to_the_stored_scores(store):
    table = results.pair_table(RAN, store)
    assert list(table["config"]) == [study_spec.config_hash(spec) for spec in RAN[:-1]], "a diverged run has no pairs"
    for spec, row in zip(RAN, table.itertuples(), strict=False):
        right = np.load(experiment.find_run(spec, store).path / "scores.npy")[1].astype(bool)
        bits = np.unpackbits(np.frombuffer(base64.b64decode(row.correct), np.uint8), count=len(right))
        assert np.array_equal(bits.astype(bool), right)
    accuracy = results.results_table(RAN, store).query("protocol == 'test'").dropna(subset="accuracy")["accuracy"]
    assert len(accuracy) == len(table)


def test_traces_are_those_of_the_runs_that_looked(store):
    table = results.trace_table(RAN, store)
    assert list(table["config"].unique()) == [study_spec.config_hash(spec) for spec in (SEEN, UNIT, NONE)]
    part = table[table["config"] == study_spec.config_hash(SEEN)]
    assert set(part["method"]) == {"lp(2)@8"}
    assert set(part[["seed", "teacher_seed"]].itertuples(index=False, name=None)) == {(50, 0)}
    own = pd.read_csv(experiment.find_run(SEEN, store).path / "trace.csv")
    pd.testing.assert_frame_equal(part[list(own)].reset_index(drop=True), own)
    assert own["step"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("collect", "kind"), [(results.pair_table, results.PAIRS), (results.trace_table, results.TRACES)]
)
def test_what_an_earlier_table_has_of_runs_that_the_store_lacks_is_kept(store, tmp_path, collect, kind):
    kind.merge(tmp_path / "t.csv", collect(RAN, store))
    before = (tmp_path / "t.csv").read_text()
    assert collect(RAN, tmp_path / "empty").empty
    kind.merge(tmp_path / "t.csv", collect(RAN, tmp_path / "empty"))
    kind.merge(tmp_path / "t.csv", collect([SEEN], store))
    assert (tmp_path / "t.csv").read_text() == before


def test_a_table_for_choosing_has_no_row_of_test_people():
    rows = [("a", "test", "ok"), ("a", "validation", "ok"), ("a", "test-hr-lr", "ok"), ("b", "test", "diverged")]
    table = pd.DataFrame(rows, columns=["config", "protocol", "status"])
    assert results.without_test(table).index.tolist() == [1, 3]
    assert results.without_test(table[:0]).empty
    committed = pd.read_csv(Path(__file__).parents[2] / "book/results/ladder.csv")
    assert set(committed["protocol"][committed["status"] == "ok"]) == {"validation"}
