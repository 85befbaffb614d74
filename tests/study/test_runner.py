"""Studies at smoke scale: grids, tables, two workers against one, diverged runs, measures recomputed from scores."""

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from lrkd.distill import methods
from lrkd.distill.terms import Term, feature
from lrkd.errors import ConfigError, DataError, RunError, TrainingError
from lrkd.evaluation import embedding
from lrkd.models import saved
from lrkd.study import experiment, presets, results, runner
from lrkd.study import spec as study_spec
from lrkd.study.grids import specs
from lrkd.study.measures import evaluate, pairs_of, result_rows
from lrkd.study.presets import SCALES, Recipe
from lrkd.study.spec import Spec, teacher_spec
from lrkd.training.schedule import Schedule

SMOKE = SCALES["smoke"]
pytestmark = pytest.mark.usefixtures("smoke")

COLUMNS = [
    *("data", "scale", "role", "method", "side", "seed", "teacher_seed", "status", "protocol", "accuracy"),
    *("tar_at_far_1e-1", "tar_at_far_1e-2", "tar_at_far_1e-3", "eer", "d_prime", "rank1", "rank5"),
    *("cosine_features", "cosine_attention", "cosine_embedding"),
    *("seconds", "device", "torch", "commit", "config"),
]


def spec(name: str = "none", side: int | None = 6, seed: int = 0, **more) -> Spec:
    return Spec(methods.get(name), side, seed, SMOKE, **more)


BOOM = replace(methods.get("fskd"), name="boom", terms=(feature(weight=1e39),))
WANTED = [
    teacher_spec(SMOKE),
    spec("none", None),
    spec("none"),
    spec("fskd-cross"),
    spec("askd", preset="fskd"),
    Spec(BOOM, 6, 0, SMOKE),
    spec("random-teacher"),
    spec("shuffled-teacher"),
    spec("rkd", seed=1),
]


@pytest.fixture(scope="module")
def store(smoke):
    return smoke / "study"


@pytest.fixture(scope="module")
def studied(store):
    """One worker trains the grid; the tables that it showed on the way."""
    seen = []
    frame = runner.run_study(WANTED, store, workers=1, device="cpu", progress=False, on_table=seen.append)
    return frame, seen


# ------------------------------------------------------------------------------------------------------------ scales


def test_scales_have_names_and_recipes_for_both_kinds_of_data():
    assert list(SCALES) == ["smoke", "cpu", "gpu", "full", "gpu50"]
    for name, scale in SCALES.items():
        assert scale.name == name
        assert set(scale.recipes) == {"procedural", "prepared"}
        assert list(scale.sides) == [scale.size // 2, scale.size // 4, scale.size // 8]
    assert SCALES["cpu"].size == 48
    assert SCALES["gpu"].size == SCALES["full"].size == 112


def test_the_scale_comes_from_the_word_the_environment_or_the_machine(monkeypatch):
    assert presets.scale("cpu") is SCALES["cpu"]
    assert presets.scale() is SMOKE  # LRKD_SCALE of these tests
    monkeypatch.delenv("LRKD_SCALE")
    assert presets.scale() is SCALES["gpu" if torch.cuda.is_available() else "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert presets.scale() is SCALES["gpu"]
    monkeypatch.setenv("LRKD_SCALE", "huge")
    with pytest.raises(ConfigError, match="scale: expected one of smoke, cpu, gpu, full, gpu50, got 'huge'"):
        presets.scale()


def test_the_store_comes_from_the_argument_or_the_environment(monkeypatch, tmp_path):
    assert experiment.store_dir(tmp_path) == tmp_path
    monkeypatch.setenv("LRKD_RUNS", "/there")
    assert str(experiment.store_dir()) == "/there"
    monkeypatch.delenv("LRKD_RUNS")
    assert str(experiment.store_dir()) == "runs"


def test_devices_that_are_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert experiment.device_of() == experiment.device_of("cpu") == "cpu"
    for name in ("cuda", "cuda:0", "tpu", "CPU"):
        with pytest.raises(ConfigError, match=f"device: expected one of cpu on this machine, got '{name}'"):
            experiment.device_of(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [experiment.device_of(name) for name in (None, "cuda:1", "cpu")] == ["cuda", "cuda:1", "cpu"]
    with pytest.raises(ConfigError, match="expected one of cpu, cuda, cuda:0, cuda:1 on this machine"):
        experiment.device_of("cuda:2")


# ------------------------------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_core_is_every_method_side_and_six_seeds_over_two_teachers(scale):
    grid = specs("core", scale)
    teachers, students = grid[:2], grid[2:]
    assert [(s.role, s.seed, s.side) for s in teachers] == [("teacher", 0, None), ("teacher", 1, None)]
    assert all(s.role == "student" and s.teacher_seed == s.seed % 2 for s in students)
    one_stage = {name for name, method in methods.METHODS.items() if method.start is None and not method.compact}
    compared = one_stage - {"aird-instance", "aird-relation", "aird-rkd"} - set(methods.OF_WORLDS)
    wanted = set(itertools.product(compared, scale.sides, range(6)))
    wanted |= {("none", None, seed) for seed in range(6)}
    assert Counter((s.method.name, s.side, s.seed) for s in students) == Counter(wanted)
    assert len(grid) == 2 + 18 * 3 * 6 + 6
    assert {s.side for s in students[: 18 * 6]} == {scale.sides[-1]}, "the strongest degradation first"
    assert len({s.method.name for s in students[:18]}) == 18, "seed by seed"


def test_airds_weights_are_chosen_on_other_seeds_than_it_is_compared_on():
    choosing, confirming = (
        [s for s in specs(name, SCALES["cpu"]) if s.role == "student"] for name in ("relations", "aird")
    )
    told = {tuple((term["name"], term["weight"]) for term in s.method.describe()["terms"]) for s in choosing}
    assert len(told) == len(choosing) == 1 + 3 + 3 + 9 + 6
    assert {s.seed for s in choosing}.isdisjoint(s.seed for s in confirming)
    names = {"none", "fskd", "askd", "embedding-cos", "aird", "aird-instance", "aird-relation", "aird-rkd"}
    assert Counter((s.method.name, s.side, s.seed) for s in confirming) == Counter(
        itertools.product(names, (6,), range(6))
    )
    assert all(s.teacher_seed == s.seed % 2 for s in confirming)


def test_book_is_what_is_trained_live():
    grid = specs("book", SCALES["cpu"])
    assert [s.role for s in grid].count("teacher") == 1
    live = [(name, 6, 0) for name in ("none", "fskd", "fskd-l2", "askd", "embedding-cos")]
    assert Counter((s.method.name, s.side, s.seed) for s in grid[1:]) == Counter(live)
    assert {s.schedule.epochs for s in grid[1:]} == {2}
    assert all(s.teacher_run == grid[0] for s in grid[2:])  # it is trained as long as everywhere


def test_photographs_get_four_methods_at_the_hardest_side(photographs):
    grid = specs("core", SMOKE, photographs)
    assert [s.role for s in grid].count("teacher") == 2
    counts = Counter((s.method.name, s.side) for s in grid[2:])
    hard = {(name, 3): 6 for name in ("none", "fskd", "askd", "embedding-cos")}
    assert counts == hard | {("none", side): 3 for side in (None, 12, 6)}
    assert all(s.recipe is SMOKE.recipes["prepared"] for s in grid)


def test_deep_is_the_papers_methods_and_their_controls():
    grid = specs("deep", SCALES["gpu50"])
    assert [s.role for s in grid[:2]] == ["teacher", "teacher"]
    names = ("none", "fskd", "askd", "askd-centred", "embedding-cos", "fskd-l2")
    assert Counter((s.method.name, s.side, s.seed) for s in grid[2:]) == Counter(
        itertools.product(names, (14, 28, 56), range(3))
    )
    assert {s.side for s in grid[2 : 2 + 6 * 3]} == {14}
    assert grid[0].model["name"] == "iresnet50"


def test_unknown_study():
    with pytest.raises(ConfigError, match=r"study: expected one of core, book.*got 'nore'"):
        specs("nore", SMOKE)


def test_a_spec_knows_its_teacher():
    assert spec("none").teacher_run is None
    assert spec("random-teacher").teacher_run is None
    for name in ("fskd", "shuffled-teacher"):
        assert spec(name, seed=4, teacher_seed=1).teacher_run == teacher_spec(SMOKE, 1)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"side": 0}, "side: expected 1 to 24 pixels at scale smoke .*got 0"),
        ({"side": 25}, "side: expected .*got 25"),
        ({"side": -6}, "side: expected .*got -6"),
        ({"side": (6, 99)}, "side: expected .*got 99"),
        ({"side": 6.0}, r"side: expected .*got 6\.0"),
        ({"preset": "fksd"}, "preset: expected one of area-bicubic.*got 'fksd'"),
        ({"seed": -1}, "seed: expected a whole number from 0 .*got -1"),
        ({"teacher_seed": -1}, "teacher-seed: expected a whole number .*got -1"),
        ({"seed": 2**70}, "seed: expected a whole number"),
    ],
)
def test_impossible_specs(more, match):
    with pytest.raises(ConfigError, match=match):
        spec(**more)


def test_configurations_differ_where_runs_do_and_only_there():
    base = spec("fskd")
    others = [
        spec("fskd", 3),
        spec("fskd", None),
        spec("fskd", (3, 6)),
        spec("fskd", seed=1),
        spec("fskd", teacher_seed=1),
        spec("fskd", preset="fskd"),
        spec("fskd-l2"),
        teacher_spec(SMOKE),
        replace(base, scale=replace(SMOKE, options=replace(SMOKE.options, precision="bfloat16"))),
        replace(base, scale=replace(SMOKE, head={**SMOKE.head, "margin": 0.2})),
    ]
    names = [experiment.find_run(s).path.name for s in (base, *others)]
    assert len(set(names)) == len(names)
    told = replace(base, method=replace(base.method, title="another title"))
    assert experiment.find_run(told) == experiment.find_run(base)
    assert study_spec.run_config(spec("none", teacher_seed=1)) == study_spec.run_config(spec("none")), (
        "no teacher, whichever it is"
    )
    assert json.loads(json.dumps(study_spec.run_config(spec("fskd", (3, 6))), allow_nan=False))
    assert study_spec.run_name(spec("fskd", (3, 6), 2, teacher_seed=1)) == "procedural-smoke-fskd-3-6-s2-t1"
    assert study_spec.run_name(spec("none", None, 2)) == "procedural-smoke-none-hr-s2"


# ------------------------------------------------------------------------------------------------------------ tables


def test_the_table_has_a_row_a_run_and_protocol(studied):
    frame, _ = studied
    assert list(frame.columns) == COLUMNS
    four = ["validation", "test", "test-hr-lr", "identification"]
    for one in WANTED:
        rows = frame[frame["config"] == experiment.find_run(one).path.name.rsplit("-", 1)[1]]
        extra = ["test-at-12", "test-at-6", "test-at-3"] if one.role == "teacher" else []
        assert sorted(rows["protocol"]) == (["test"] if one.method is BOOM else sorted(four + extra))
        assert set(rows["method"]) == {one.method.name}
        assert set(rows["side"]) == {24 if one.side is None else 6}
        assert set(rows["seed"]) == {one.seed}
        assert (rows["seconds"].isna() | (rows["seconds"] > 0)).all()
    assert set(frame["data"]) == {"procedural"}
    assert frame["torch"].eq(torch.__version__).all()
    assert frame["commit"].str.fullmatch(r"[0-9a-f]{7,}\+?|unknown").all()
    assert frame.loc[frame["method"] == "none", "teacher_seed"].isna().all()
    verified = frame[frame["protocol"].str.startswith(("test", "validation")) & (frame["status"] == "ok")]
    assert verified["accuracy"].between(0.2, 1).all()
    assert verified[["eer", "d_prime", "tar_at_far_1e-1"]].notna().all(axis=None)
    ranked = frame[frame["protocol"] == "identification"]
    assert (ranked["rank1"] <= ranked["rank5"]).all()
    assert ranked["accuracy"].isna().all()
    agreed = frame[frame["cosine_features"].notna()]
    assert set(agreed["method"]) == {"fskd-cross", "askd", "random-teacher", "shuffled-teacher", "rkd"}
    assert set(agreed["protocol"]) == {"test"}
    assert agreed[["cosine_features", "cosine_attention", "cosine_embedding"]].abs().le(1).all(axis=None)


def test_a_diverged_run_is_a_row_and_stops_nothing(studied, store):
    frame, _ = studied
    row = frame[frame["method"] == "boom"].iloc[0]
    assert (row["status"], row["protocol"]) == ("diverged", "test")
    assert np.isnan(row["accuracy"])
    assert (frame[frame["method"] != "boom"]["status"] == "ok").all()
    run = experiment.find_run(WANTED[5], store)
    assert "the loss term 'feature' is inf" in run.result["reason"]
    assert not (run.path / "state.pt").exists()
    with pytest.raises(TrainingError, match=r"boom.*step 1: the loss term 'feature'"):
        experiment.train(WANTED[5], store, progress=False)
    with pytest.raises(RunError, match="diverged and left no network"):
        experiment.load(run)


def test_the_table_grows_run_by_run(studied):
    frame, seen = studied
    counts = [one["config"].nunique() for one in seen]
    assert counts == sorted(set(counts)), "after several runs at once where writing takes longer than they do"
    assert counts[-1] == len(WANTED)
    pd.testing.assert_frame_equal(seen[-1], frame)


def test_what_is_done_is_not_trained_again(studied, store, monkeypatch):
    monkeypatch.setattr(experiment, "fit", lambda *args, **more: pytest.fail("trained twice"))
    again = runner.run_study(WANTED, store, workers=2, device="cpu", progress=False)
    pd.testing.assert_frame_equal(again, studied[0])
    assert experiment.train(WANTED[3], store, progress=False).finished
    assert {path.name for path in experiment.find_run(WANTED[3], store).path.iterdir()} == {
        *("config.json", "metrics.csv", "model.safetensors", "result.json", "scores.npy", ".lock")
    }


@pytest.mark.slow
def test_two_workers_give_the_bits_of_one(studied, store, tmp_path):
    some = [WANTED[0], *WANTED[2:6]]
    frame = runner.run_study(some, tmp_path, workers=2, device="cpu", progress=False)
    wanted = studied[0]
    wanted = wanted[wanted["config"].isin(frame["config"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        *(table.drop(columns=["seconds", "commit"]) for table in (frame, wanted)), check_exact=True
    )
    for one in some:
        if one.method is not BOOM:
            for name in ("model.safetensors", "scores.npy"):
                a, b = (experiment.find_run(one, where).path / name for where in (tmp_path, store))
                assert a.read_bytes() == b.read_bytes()


def test_a_study_that_was_stopped_goes_on(studied, store, tmp_path):
    """Ctrl-C in the third step of a student, then again: the same bits."""
    one = spec("none")
    count = itertools.count(1)
    with pytest.raises(KeyboardInterrupt):
        experiment.train(one, tmp_path, progress=False, stop=lambda: next(count) == 2)
    run = experiment.find_run(one, tmp_path)
    assert (run.path / "state.pt").exists()
    assert not run.finished
    assert results.results_table([one], tmp_path).empty
    runner.run_study([one], tmp_path, workers=1, device="cpu", progress=False)
    assert (run.path / "model.safetensors").read_bytes() == (
        experiment.find_run(one, store).path / "model.safetensors"
    ).read_bytes()


def test_a_teacher_that_diverged_is_an_error_now_and_later(tmp_path, monkeypatch):
    recipe = replace(SMOKE.recipes["procedural"], teacher=replace(SMOKE.recipes["procedural"].teacher, lr=1e30))
    wild = replace(SMOKE, recipes={**SMOKE.recipes, "procedural": recipe})
    wanted = [teacher_spec(wild), Spec(methods.get("fskd"), 6, 0, wild)]
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"procedural-smoke-teacher-hr-s0.*the loss term 'identity' is nan"):
            runner.run_study(wanted, tmp_path, workers=1, device="cpu", progress=False)
    assert not experiment.find_run(wanted[1], tmp_path).finished


def test_a_collapsed_network_has_diverged(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "embed", lambda model, images, **more: np.ones((len(images), 4), np.float32))
    with pytest.raises(TrainingError, match="all embeddings are the same"):
        experiment.train(spec("none", seed=9), tmp_path, progress=False)
    assert experiment.find_run(spec("none", seed=9), tmp_path).result["status"] == "diverged"


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_than_one_worker(tmp_path, workers):
    with pytest.raises(ConfigError, match=f"workers: expected at least 1, got {workers}"):
        runner.run_study(WANTED, tmp_path, workers=workers)


def test_a_method_that_cannot_travel_is_named_before_workers_start(tmp_path):
    made: dict = {"__name__": "nowhere"}
    exec("def mine(s, t): return s.embedding.sum() * 0", made)
    local = replace(methods.get("fskd"), terms=(Term("mine", 1.0, made["mine"]),))
    wanted = [Spec(local, 6, seed, SMOKE, teacher_seed=0) for seed in (0, 1)]
    with pytest.raises(ConfigError, match=r"cannot be sent to a worker .*in a module, or take workers=1"):
        runner.run_study(wanted, tmp_path, workers=2, device="cpu", progress=False)


# ---------------------------------------------------------------------------------------------------------- measures


def naive_tar(scores: np.ndarray, same: np.ndarray, far: float) -> float:
    rates = [((scores[~same] >= t).mean(), (scores[same] >= t).mean()) for t in (np.inf, *scores)]
    return max(true for false, true in rates if false <= far)


@pytest.mark.parametrize("index", [0, 2, 3, 4])
def test_measures_are_those_of_the_stored_scores(studied, store, index):
    one = WANTED[index]
    run = experiment.find_run(one, store)
    scores = np.load(run.path / "scores.npy")
    pairs = study_spec.splits(SMOKE).test.pairs
    assert scores.shape == (4, len(pairs))
    for protocol, (score, correct) in (("test", scores[:2]), ("test-hr-lr", scores[2:])):
        measures = run.result["measures"][protocol]
        folds = [correct[pairs.fold == fold].mean() for fold in np.unique(pairs.fold)]
        assert measures["accuracy"] == pytest.approx(np.mean(folds))
        assert set(np.unique(correct)) <= {0, 1}
        for name, far in (("1e-1", 0.1), ("1e-2", 0.01), ("1e-3", 0.001)):
            assert measures[f"tar_at_far_{name}"] == pytest.approx(naive_tar(score, pairs.same, far))
        genuine, impostor = score[pairs.same], score[~pairs.same]
        spread = np.sqrt((genuine.var(ddof=1) + impostor.var(ddof=1)) / 2)
        assert measures["d_prime"] == pytest.approx((genuine.mean() - impostor.mean()) / spread, rel=1e-4)
    if one.side is None:
        assert np.array_equal(scores[:2], scores[2:]), "HR against HR is the one protocol"
    else:
        assert not np.array_equal(scores[0], scores[2])


def test_a_loaded_network_gives_the_measures_again(studied, store):
    for one in (WANTED[0], WANTED[2]):
        run = experiment.find_run(one, store)
        network, head = experiment.load(run)
        measures, scores = evaluate(one, network, None, None, "cpu")
        assert np.array_equal(scores, np.load(run.path / "scores.npy"))
        assert measures == run.result["measures"]
        assert not network.training
        assert head.weight.shape == (16, 32)


def test_identification_by_hand(studied, store):
    network, _ = experiment.load(experiment.find_run(WANTED[2], store))
    test = study_spec.splits(SMOKE).test
    high = embedding.embed(network, test.images)
    low = embedding.embed(network, test.images, side=6)
    high, low = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (high, low))
    first = [int(np.flatnonzero(test.labels == label)[0]) for label in range(8)]
    places = []
    for probe in sorted(set(range(len(test))) - set(first)):
        cosines = [float(low[probe] @ high[row]) for row in first]
        places.append(sorted(range(8), key=lambda k, c=cosines: -c[k]).index(test.labels[probe]))
    found = experiment.find_run(WANTED[2], store).result["measures"]["identification"]
    assert found == pytest.approx(
        {"rank1": np.mean([p < 1 for p in places]), "rank5": np.mean([p < 5 for p in places])}
    )


def test_a_score_table_counts_every_pair(studied, store):
    frame = results.score_table(WANTED, store)
    same = study_spec.splits(SMOKE).test.pairs.same
    assert "boom" not in set(frame["method"])
    for _, part in frame.groupby(["role", "method", "side", "protocol"]):
        assert len(part) == 50
        assert (part["low"].iloc[0], part["high"].iloc[-1]) == (-1, 1)
        assert part["genuine"].sum() == same.sum() * part["runs"].iloc[0]
        assert part["impostor"].sum() == (~same).sum() * part["runs"].iloc[0]
    scores = np.load(experiment.find_run(WANTED[3], store).path / "scores.npy")[2]
    part = frame[(frame["method"] == "fskd-cross") & (frame["protocol"] == "test-hr-lr")]
    for _, row in part.iterrows():
        inside = (scores >= row["low"]) & ((scores < row["high"]) | (row["high"] == 1))
        assert (row["genuine"], row["impostor"]) == ((inside & same).sum(), (inside & ~same).sum())
    assert results.score_table([spec(seed=77)], store).empty


def test_a_table_is_written_whole_and_read_back(studied, tmp_path):
    frame, _ = studied
    results.write_table(tmp_path / "t.csv", frame)
    read = pd.read_csv(tmp_path / "t.csv", dtype={"config": str, "commit": str, "torch": str})
    assert list(read.columns) == COLUMNS
    assert read["accuracy"].to_numpy() == pytest.approx(frame["accuracy"].to_numpy(), rel=1e-5, nan_ok=True)
    with pytest.raises(RunError, match=r"t\.csv: could not be written"):
        results.write_table(tmp_path / "none" / "t.csv", frame)


# ------------------------------------------------------------------------------------------------------ broken stores


@pytest.fixture
def broken(studied, store, tmp_path):
    """A finished run, copied to be damaged."""
    original = experiment.find_run(WANTED[2], store).path
    copy = tmp_path / original.name
    copy.mkdir()
    for path in original.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return experiment.find_run(WANTED[2], tmp_path)


def test_a_model_of_another_network_is_refused(broken, store):
    other = experiment.find_run(WANTED[0], store).path / "model.safetensors"
    tensors, made = saved.load_model(other)
    model = made["model"]
    for config in (
        {**made, "model": {**model, "widths": [8, 8, 16, 32]}},
        {**made, "model": 3},
        {**made, "model": {"name": "unheard of"}},
        {**made, "head": []},
        {},
    ):
        save_file(tensors, broken.path / "model.safetensors", {"config": json.dumps(config)})
        with pytest.raises(RunError, match=r"model\.safetensors: its tensors do not fit its config"):
            experiment.load(broken)


def test_broken_files_are_named(broken):
    (broken.path / "scores.npy").write_bytes(b"not numpy")
    with pytest.raises(RunError, match=r"scores\.npy: cannot be read"):
        results.score_table([WANTED[2]], broken.path.parent)
    (broken.path / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"model\.safetensors: expected a model"):
        experiment.load(broken)
    (broken.path / "result.json").write_text("{")
    with pytest.raises(RunError, match=r"result\.json: cannot be read as JSON"):
        results.results_table([WANTED[2]], broken.path.parent)


# ------------------------------------------------------------------------------------------------------- photographs


def test_prepared_photographs_go_all_the_way(photographs, tmp_path):
    wanted = [teacher_spec(SMOKE, 0, photographs), spec("fskd", 6, source=photographs)]
    frame = runner.run_study(wanted, tmp_path, workers=1, device="cpu", progress=False)
    assert list(frame.columns) == COLUMNS
    assert set(frame["data"]) == {"people"}
    assert (frame["status"] == "ok").all()
    run = experiment.find_run(wanted[1], tmp_path)
    assert run.path.name.startswith("people-smoke-fskd-6-s0-t0-")
    assert run.config["data"]["source"] == "people", "no path is part of what a run is"
    assert photographs not in json.dumps(run.config)
    parts = study_spec.splits(SMOKE, photographs)
    assert parts.train.images.shape[1:] == (24, 24, 3)
    assert experiment.load(run)[1].weight.shape[0] == parts.train.classes


def test_a_run_finds_its_photographs_from_any_folder(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(photographs).parent)
    relative = spec("none", 6, source=Path(photographs).name)
    assert study_spec.config_hash(relative) == study_spec.config_hash(spec("none", 6, source=photographs))
    run = experiment.train(relative, tmp_path, device="cpu", progress=False)
    assert run.result["source"] == str(Path(photographs).resolve())
    assert photographs not in json.dumps([*result_rows(relative, run), run.config])


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"neither 'procedural' nor a prepared folder; `python -m data_prep` makes one"):
        study_spec.splits(SMOKE, str(tmp_path / "nowhere"))


def test_a_table_stands_in_for_a_store_that_is_gone(studied, tmp_path, monkeypatch):
    """What a results file has is kept word for word and not trained; what it lacks is."""
    frame, _ = studied
    kept = frame[frame["method"] != "rkd"]
    results.write_table(tmp_path / "t.csv", kept)
    known = results.read_table(tmp_path / "t.csv")
    monkeypatch.setattr(experiment, "fit", lambda *args, **more: pytest.fail("trained twice"))
    pd.testing.assert_frame_equal(
        runner.run_study(WANTED[:-1], tmp_path / "empty", device="cpu", known=known), known, check_dtype=False
    )
    assert not (tmp_path / "empty").exists()
    with pytest.raises(pytest.fail.Exception, match="trained twice"):
        runner.run_study(WANTED, tmp_path / "empty", workers=1, device="cpu", progress=False, known=known)


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"t\.csv: is no such table of `lrkd study`: it has no column accuracy"):
        results.read_table(tmp_path / "t.csv")


def test_one_teacher_serves_students_of_every_degradation():
    assert spec("fskd", preset="fskd").teacher_run == spec("fskd").teacher_run


@pytest.mark.slow
def test_workers_of_a_killed_study_do_not_stay(tmp_path):
    words = ["study", "book", "--scale", "smoke", "--workers", "2", "--runs", str(tmp_path)]
    killed = subprocess.Popen([sys.executable, "-m", "lrkd", *words], stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children")
    wait_until(lambda: len(children.read_text().split()) >= 3)  # a tracker of resources, and two workers
    workers = [Path(f"/proc/{pid}/stat") for pid in children.read_text().split()]
    killed.kill()
    killed.wait()
    wait_until(lambda: not any(worker.exists() and ") Z " not in worker.read_text() for worker in workers))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.slow
def test_ctrl_c_while_a_worker_starts_waits_and_is_not_lost(times):
    code = f"""
import signal
from lrkd.study.runner import _uninterrupted
try:
    with _uninterrupted():
        for _ in range({times}):
            signal.raise_signal(signal.SIGINT)
        print("whole")
except KeyboardInterrupt:
    print("then stopped")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["whole", "then stopped", ""]


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


# -------------------------------------------------------------------------------------------------- what is not there


def test_a_changed_scale_has_other_faces():
    """Of any name: what is rendered is what the scale says."""
    small = replace(SMOKE, identities=(5, 9, 10))
    assert [part.classes for part in (study_spec.splits(small).train, study_spec.splits(small).test)] == [5, 10]
    assert study_spec.splits(SMOKE).train.classes == SMOKE.identities[0]
    assert study_spec.config_hash(spec()) != study_spec.config_hash(replace(spec(), scale=small))
    fewer = replace(SMOKE, pairs=(20, 24), images=4)
    assert len(study_spec.splits(fewer).train) == 4 * SMOKE.identities[0]
    assert len(pairs_of(study_spec.splits(fewer).test)) == 24


def test_of_few_people_a_batch_is_all_of_their_images_and_it_is_said_once(photographs, tmp_path, capsys):
    large = {kind: Recipe(Schedule(1, batch=128), Schedule(1, batch=128)) for kind in SMOKE.recipes}
    few = Spec(methods.get("none"), 6, 0, replace(SMOKE, recipes=large), photographs)
    there = len(study_spec.splits(few.scale, photographs).train)
    assert few.schedule == Schedule(1, batch=there)
    assert there < 128
    for seed in (0, 1):
        run = experiment.train(replace(few, seed=seed), tmp_path, device="cpu")
        assert run.result["status"] == "ok"
        assert run.config["schedule"]["batch"] == there
    said = capsys.readouterr()
    assert (said.out + said.err).count(f"a batch is all of its {there} training images") == 1


@pytest.mark.parametrize("error", [ConfigError, DataError])
def test_a_run_that_could_not_begin_leaves_nothing_in_the_store(tmp_path, monkeypatch, error):
    def refused(*_, **__):
        raise error("it cannot be")

    monkeypatch.setattr(experiment, "fit", refused)
    with pytest.raises(error, match="it cannot be"):
        experiment.train(spec("fskd"), tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == [], "neither the teacher's folder nor the student's"


def test_a_run_that_has_begun_is_not_thrown_away(tmp_path, monkeypatch):
    def stopped(*given):
        (given[-1].directory / "state.pt").write_bytes(b"hours")
        raise DataError("a disk is gone")

    monkeypatch.setattr(experiment, "fit", stopped)
    with pytest.raises(DataError):
        experiment.train(spec("none"), tmp_path, progress=False)
    assert (experiment.find_run(spec("none"), tmp_path).path / "state.pt").read_bytes() == b"hours"


class Poor(runner.Workers):
    """Two processes whose GPU has no memory left."""

    def __init__(self):
        self.count = 2

    def __exit__(self, *error):
        pass

    def submit(self, spec, how):
        failed = Future()
        failed.set_exception(torch.OutOfMemoryError("CUDA out of memory"))
        return failed


def test_a_worker_without_memory_is_one_clear_error(tmp_path):
    with pytest.raises(RunError, match="worker process died, perhaps for want of memory; the same command goes on"):
        runner.run_study([spec()], tmp_path, workers=Poor(), device="cpu", progress=False)
