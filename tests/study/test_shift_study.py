"""What `lrkd adapt` measures: by hand where that is possible, once only, and with networks that stay as they were."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toys

from lrkd.cli import program
from lrkd.data.degradation import PRESETS
from lrkd.distill import methods
from lrkd.errors import RunError
from lrkd.evaluation import embedding, verification
from lrkd.evaluation.batchnorm import FaceBN
from lrkd.study import experiment, grids, presets, results, runner, shift_bench, shift_study
from lrkd.study import spec as study_spec
from lrkd.study.shift_bench import BATCH, DIALS, KEY, LEVELS, Cast, Condition, Setting, Student

SMOKE = presets.SCALES["smoke"]
SIDE = SMOKE.sides[-1]
WANTED = [study_spec.Spec(methods.get(name), SIDE, seed, SMOKE) for seed in (0, 1) for name in ("none", "aird")]
ABROAD = study_spec.Spec(methods.get("none"), SIDE, 0, SMOKE, preset="askd-compat")
LABELS = np.repeat(np.arange(5), 4)


@pytest.fixture(scope="module")
def shown(smoke: Path) -> Cast:
    return shift_bench.cast(study_spec.splits(SMOKE).test, SMOKE, SIDE, "area-bicubic", 1000)


@pytest.fixture(scope="module")
def student(smoke: Path) -> Student:
    runner.run_study(WANTED[:1], workers=1, device="cpu", progress=False)
    return Student(WANTED[0], experiment.find_run(WANTED[0]), "cpu")


@pytest.fixture(scope="module")
def gathered(student: Student) -> pd.DataFrame:
    """Two of the four runs are there, and one with another kernel; two dials a shift will do."""
    runner.run_study([*WANTED[:2], ABROAD], workers=1, device="cpu", progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shift_bench, "DIALS", DIALS[-2:])
        return shift_study.gather([*WANTED, ABROAD])


@pytest.mark.parametrize("order", ["shuffled 0", "shuffled 3", "sorted", "domains"])
@pytest.mark.parametrize("size", [1, 3, 8, 20, 64])
def test_batches_hold_every_row_and_are_of_one_size(order, size):
    given = shift_bench.batches(Setting(batch=size, order=order), LABELS)
    assert {len(part) for part in given} == {min(size, len(LABELS))}
    assert set(np.concatenate(given)) == set(range(len(LABELS)))
    assert len(given) == -(-len(LABELS) // size)


def test_orders_are_what_they_are_called():
    sorted_, domains = (shift_bench.batches(Setting(batch=10, order=name), LABELS) for name in ("sorted", "domains"))
    assert [len(np.unique(LABELS[part])) for part in sorted_] == [3, 3]
    assert [set(part % 2) for part in domains] == [{0}, {1}]
    alone = shift_bench.batches(Setting(order="one person"), LABELS)
    assert [set(LABELS[part]) for part in alone] == [{k} for k in range(5)]
    one, other = (shift_bench.batches(Setting(order=f"shuffled {k}"), LABELS)[0] for k in (1, 2))
    assert (one != other).any()


def test_features_are_those_of_embed_whatever_the_batches(shown, student):
    faces = shown.scene.faces
    wanted = embedding.embed(student.network, faces.images, side=SIDE, mirror=False)
    for setting in (Setting(), Setting(batch=5, order="sorted"), Setting(batch=1, order="shuffled 2")):
        found, adapted = student.features(shown.seen(Condition()), setting, faces.labels)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert adapted is None
    sharp = embedding.embed(student.network, faces.images, mirror=False)
    np.testing.assert_allclose(student.sharp(Setting(), shown), sharp, atol=1e-5)


@pytest.mark.parametrize("adaptation_", ["source", "facebn", "online", "prior", "adabn"])
def test_the_network_stays_as_it_was_to_the_bit(shown, student, adaptation_):
    before = toys.state(student.network)
    setting = Setting(adaptation_, 0.5, batch=8)
    low, adapted = student.features(shown.seen(Condition("dark", 0.05, 1.0)), setting, shown.scene.faces.labels)
    assert toys.equal(before, toys.state(student.network))
    assert not student.network.training
    assert (adapted is None) == (adaptation_ == "source")
    plain, _ = student.features(shown.seen(Condition("dark", 0.05, 1.0)), Setting(), shown.scene.faces.labels)
    assert np.allclose(low, plain) == (adaptation_ == "source")


def test_facebn_at_a_setting_by_hand(shown, student):
    x, labels = shown.seen(Condition("noise", 0.05, 0.5)), shown.scene.faces.labels
    setting = Setting("facebn", 0.3, batch=16, order="shuffled 1", least=2)
    found, _ = student.features(x, setting, labels)
    with torch.inference_mode(), FaceBN(student.network, 0.3, least=2):
        for part in shift_bench.batches(setting, labels)[:-1]:  # of the last, some rows were seen before
            wanted = student.network(2 * x[part] - 1).embedding
            once = ~np.isin(part, shift_bench.batches(setting, labels)[-1])
            np.testing.assert_allclose(found[part[once]], wanted[once], atol=1e-4)


def test_measures_by_hand(shown, student):
    faces, rng = shown.scene.faces, np.random.default_rng(0)
    low, high = rng.normal(size=(2, len(faces), 5)) + 2 * rng.normal(size=(faces.classes, 5))[faces.labels]
    pairs = faces.pairs
    wanted = verification.kfold_verification(low[pairs.left], low[pairs.right], pairs.same, pairs.fold).mean
    assert shift_bench.accuracy(low, shown) == wanted
    found = shift_bench.against_sharp(low, high, shown)
    assert set(shown.gallery) | set(shown.probes) == set(range(len(faces)))
    assert not set(shown.gallery) & set(shown.probes)
    known = np.unique(faces.labels[shown.gallery])
    assert len(known) == -(-faces.classes // 2)
    pool = np.stack([np.mean([v / np.linalg.norm(v) for v in high[shown.gallery][faces.labels[shown.gallery] == k]], 0)
                     for k in known])  # fmt: skip
    score = np.array([[p @ g / np.linalg.norm(p) / np.linalg.norm(g) for g in pool] for p in low[shown.probes]])
    who = faces.labels[shown.probes]
    top, mated = score.max(1), np.isin(who, known)
    threshold = min(t for t in [*top[~mated], np.inf] if (top[~mated] >= t).mean() <= 0.3)
    mate = np.array(
        [row[known == label][0] if label in known else np.nan for row, label in zip(score, who, strict=True)]
    )
    above = mate > np.sort(top[~mated & (top < threshold)])[-1]  # just above the first that is too many
    assert found["tpir20_at_fpir_0.3"] == pytest.approx(above[mated].mean())
    assert found["tpir20_at_fpir_0.1"] <= found["tpir20_at_fpir_0.2"] <= found["tpir20_at_fpir_0.3"]


def test_conditions_are_what_they_are_called(shown):
    plain = shown.seen(Condition())
    assert torch.equal(plain, shown.scene.seen())
    assert torch.equal(shown.seen(Condition("side 6")), shown.scene._replace(side=6).seen())
    assert torch.equal(shown.seen(Condition("kernel area")), shown.seen(Condition("kernel area")))
    assert not torch.equal(shown.seen(Condition("kernel nearest")), shown.seen(Condition("kernel askd-compat")))
    half, dark = (shown.seen(Condition(name, 0.05, 0.5)) for name in ("half dark", "dark"))
    assert torch.equal(half[::2], plain[::2])
    assert torch.equal(half[1::2], dark[1::2])
    assert torch.equal(shown.sharp(), shown.scene.faces.batch(np.arange(len(plain))) / 255)


def test_the_cast_are_whole_people_with_pairs_far_apart_in_age(shown):
    faces = shown.scene.faces
    assert np.bincount(faces.labels).tolist() == [6] * 8
    assert (np.abs(faces.age[faces.pairs.left] - faces.age[faces.pairs.right]) >= 30).all()
    few = shift_bench.cast(study_spec.splits(SMOKE).test, SMOKE, SIDE, "fskd", images=24)
    assert few.scene.faces.classes == 4
    assert few.scene.degradation == PRESETS["fskd-test"]


def test_photographs_are_cast_without_ages(photographs, smoke):
    found = shift_bench.cast(study_spec.splits(SMOKE, photographs).test, SMOKE, SIDE, "area-bicubic", 1000)
    assert found.scene.model is None
    assert len(found.gallery)


def rows(part: str, **columns) -> pd.DataFrame:
    frame = pd.DataFrame(columns)
    return frame.assign(part=part, config="a" + frame.get("seed", pd.Series(0, frame.index)).astype(str))


def test_calibration_reads_the_dial_off_the_mean_loss():
    dials = [0.0, *DIALS]
    loss = {"dark": [0, 0.01, 0.03, 0.025, 0.04, 0.08], "pose": [0, 0, 0.001, 0.004, 0.007, 0.01]}
    made = [
        {"shift": shift if dial else "none", "dial": dial, "seed": seed, "accuracy": 0.8 - lost + 0.01 * (seed - 0.5)}
        for shift, values in loss.items() for dial, lost in zip(dials, values, strict=True) for seed in (0, 1)
    ]  # fmt: skip
    found = shift_study.calibration(rows("calibration", **pd.DataFrame(made).drop_duplicates().to_dict("list")))
    found = found.set_index(["shift", "level"])
    assert found.loc[("dark", 0.02), "dial"] == pytest.approx(0.1875, abs=1e-3)
    assert found.loc[("dark", 0.05), "dial"] == pytest.approx(0.8125, abs=1e-3)
    assert np.isnan(found.loc[("dark", 0.1), "dial"])
    assert found.loc["pose", "dial"].isna().all()
    assert found.loc["pose", "most"].tolist() == pytest.approx([0.01] * 3)


def chosen(gain) -> shift_study.Choice:
    made = [
        {"shift": shift, "adaptation": kind, "momentum": a, "batch": b, "accuracy": 0.7 + (0 if kind == "source" else
         gain(shift, a, b)), "seed": seed, "level": 0.0, "dial": 0.0}
        for seed in (0, 1) for shift in ("none", "dark", "noise")
        for kind, a, b in [("source", 0.0, BATCH), *(("facebn", a, b) for a in (0.1, 1.0) for b in (2, 32, BATCH))]
    ]  # fmt: skip
    return shift_study.choice(rows("choice", **pd.DataFrame(made).to_dict("list")))


def test_the_choice_weighs_no_shift_as_much_as_all_of_them():
    found = chosen(lambda shift, a, b: a * {"none": -0.004, "dark": 0.05, "noise": 0.01}[shift] * (1 if b > 2 else 2))
    assert (found.momentum, found.least) == (1.0, 32)
    score = found.score.set_index(["momentum", "batch"])
    assert score.loc[(1.0, BATCH), ["unshifted", "shifted", "score"]].tolist() == pytest.approx([-0.004, 0.03, 0.013])
    found = chosen(lambda shift, a, b: -a * (0.1 if shift == "none" else -0.02))
    assert (found.momentum, found.least) == (0.1, 2 * BATCH)
    hole = chosen(lambda shift, a, b: -0.1 if b == 32 else 0.1)
    assert hole.least == BATCH


def test_gains_are_run_by_run():
    frame = rows("test", shift=["none", "none", "dark"], level=[0.0, 0, 0.05], dial=[0, 0, 0.3], seed=[0, 0, 0],
                 adaptation=["source", "facebn", "facebn"], accuracy=[0.7, 0.72, 0.6])  # fmt: skip
    found = shift_study.gains(frame)
    assert found["gain"].tolist() == pytest.approx([0.02])  # dark has nothing to be held against


@pytest.mark.slow
def test_a_row_a_measurement_of_what_is_there(gathered):
    assert set(gathered["config"]) == {study_spec.config_hash(spec) for spec in (*WANTED[:2], ABROAD)}
    once = gathered[gathered["part"] != "layers"]
    assert not once.duplicated([*KEY, "config"]).any()
    assert once["accuracy"].between(0, 1).all()
    test = gathered[gathered["part"] == "test"]
    assert set(test["adaptation"]) == {"source", "facebn"}
    assert test.filter(like="tpir20").notna().all(axis=None)
    own = test[(test["shift"] == "none") & (test["adaptation"] == "source")]
    assert set(own["method"]) == {"none", "aird"}
    layers = gathered[gathered["part"] == "layers"]
    assert layers["moved"].ge(0).all()
    assert set(layers["method"]) == {"none"}
    reached = shift_study.calibration(gathered).dropna()
    assert set(reached["level"]) <= set(LEVELS)


def test_each_seed_meets_the_test_faces_in_an_order_of_its_own():
    conditions = [Condition("dark", 0.05, 0.3), Condition("half dark")]
    students = [SimpleNamespace(spec=SimpleNamespace(seed=seed)) for seed in (0, 3)]
    settings = [Setting(), Setting("facebn", 0.3), Setting("facebn", 0.3, order="domains")]
    found = [
        (student.spec.seed, setting.order) for _, student, setting in shift_study._met(conditions, students, settings)
    ]
    once = [(0, "shuffled 0")] * 2 + [(0, "domains"), (3, "shuffled 0"), (3, "shuffled 3"), (3, "domains")]
    assert found == 2 * once, "unadapted, the order does not matter"


@pytest.mark.slow
def test_what_was_trained_with_another_kernel_is_in_the_matrix_of_kernels_alone(gathered):
    away = gathered[gathered["preset"] == "askd-compat"]
    assert set(away["part"]) == {"matrix"}
    matrix = gathered[(gathered["part"] == "matrix") & gathered["shift"].str.startswith("kernel ")]
    every = matrix.groupby("config")["shift"].agg(set)
    assert len(every) == 3
    assert all(tested == every.iloc[0] for tested in every)
    assert {"kernel area-bicubic", "kernel askd-compat", "kernel lanczos"} <= every.iloc[0]
    test = gathered[(gathered["part"] == "test") & (gathered["shift"] == "none")]
    own = matrix[matrix["shift"] == "kernel area-bicubic"].merge(test, on=["config", "adaptation"])
    assert len(own) == 4
    np.testing.assert_array_equal(own["accuracy_x"], own["accuracy_y"])


def test_the_study_of_kernels_has_every_kernel_for_every_seed():
    wanted = grids.specs("kernels", presets.SCALES["cpu"])
    assert {(spec.preset, spec.seed) for spec in wanted} == {(p, s) for p in grids.TRAINED_KERNELS for s in range(3)}
    assert len({study_spec.config_hash(spec) for spec in wanted}) == len(wanted) == 12
    core = {study_spec.config_hash(spec) for spec in grids.specs("core", presets.SCALES["cpu"])}
    assert sum(study_spec.config_hash(spec) in core for spec in wanted) == 3


@pytest.mark.slow
def test_what_is_known_is_not_measured_again(gathered, tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    results.write_table(path, gathered)
    known = results.read_table(path, ["config", *KEY])
    monkeypatch.setattr(shift_bench, "DIALS", DIALS[-2:])
    monkeypatch.setattr(Student, "measured", lambda *_: pytest.fail("measured again"))
    again = shift_study.gather([*WANTED, ABROAD], known=known)
    assert len(again) == len(gathered)
    np.testing.assert_allclose(again["accuracy"], gathered["accuracy"], rtol=1e-5)


@pytest.mark.slow
def test_while_it_measures_nothing_known_is_lost(gathered, monkeypatch):
    """Whoever stops it must find in the file what was there before, also of parts that were not reached."""
    monkeypatch.setattr(shift_bench, "DIALS", DIALS[-2:])
    lacking, written = gathered["part"].isin(["calibration", "matrix"]) & (gathered["shift"] == "none"), []
    lacking |= gathered["shift"] == "kernel lanczos"
    stale = gathered[gathered["part"] == "test"].head(1).assign(part="matrix", shift="kernel of old")
    known = pd.concat([gathered[~lacking], stale])
    again = shift_study.gather([*WANTED, ABROAD], known=known, on_table=written.append)
    assert [len(frame) for frame in written] == [len(gathered) + 1 - gap for gap in (lacking.sum() - 1, 0)]
    assert len(again) == len(gathered), "what nothing has asked for goes at the end"


@pytest.mark.slow
def test_the_same_twice(gathered, shown, student):
    """Evaluated anew, a row of the table comes out the same."""
    row = gathered[(gathered["part"] == "test") & (gathered["adaptation"] == "facebn")].iloc[0]
    assert row["config"] == study_spec.config_hash(WANTED[0])
    setting = Setting(**{name: row[name] for name in Setting._fields})
    x = shown.seen(Condition(row["shift"], row["level"], row["dial"]))
    (found,) = student.measured(x, setting, shown, "test")
    for name, value in found.items():
        assert row[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.slow
def test_without_a_student_to_calibrate_there_is_an_error(gathered, tmp_path):
    for wanted, where in ((WANTED, tmp_path), (WANTED[1:2], None)):
        with pytest.raises(RunError, match="no student without a teacher of scale smoke, 3 px and a seed below 3"):
            shift_study.gather(wanted, where)


@pytest.mark.slow
def test_the_command_writes_the_table_and_says_what_is_missing(gathered, tmp_path, capsys, monkeypatch):
    out = tmp_path / "adaptation.csv"
    results.write_table(out, gathered)
    monkeypatch.setattr(shift_bench, "DIALS", DIALS[-2:])
    monkeypatch.setattr(grids, "specs", lambda name, *_: {"aird": WANTED, "kernels": [ABROAD]}[name])
    assert program.main(["adapt", "--scale", "smoke", "--out", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "Left out, as not all of their runs have finished: aird (area-bicubic), none (area-bicubic)." in said
    assert "gain" in said
    assert len(results.read_table(out, KEY)) == len(gathered)
    out.write_text("config,method\n")
    assert program.main(["adapt", "--scale", "smoke", "--out", str(out)]) == 2
    assert "has no column" in capsys.readouterr().err
