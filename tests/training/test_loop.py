"""Training: resumed runs end on the same bits, only the student moves, schedules, stops, broken files."""

import csv
import errno
import itertools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch import nn
from torch.nn import functional as F

from lrkd.data import degradation
from lrkd.distill import losses
from lrkd.distill import terms as distill_terms
from lrkd.distill.distances import cosine, lp
from lrkd.distill.terms import Term, feature
from lrkd.errors import ConfigError, DataError, RunError, TrainingError
from lrkd.models import backbones, heads
from lrkd.models.saved import load_model, safetensors_bytes, save_model
from lrkd.training import batches, loop
from lrkd.training import step as step_
from lrkd.training.batches import augment, draw_augmentation, image_reader
from lrkd.training.schedule import ASKD_SCHEDULE, FSKD_SCHEDULE, Options, Schedule
from lrkd.training.step import Teacher, normalise

TESTS = Path(__file__).parent.parent


def run_until(step: int, **more):
    """A run that is asked to stop after so many steps of this call."""
    count = itertools.count(1)
    with pytest.raises(KeyboardInterrupt, match="stopped at step"):
        toys.train(stop=lambda: next(count) == step, **more)


# -------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_on_the_same_bits(tmp_path):
    uninterrupted, _ = toys.train(**toys.KILLED)
    done = subprocess.run(
        [sys.executable, str(TESTS / "toys.py"), str(tmp_path), "10", "7"],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    steps, signals = zip(*(map(int, line.split()) for line in done.stdout.splitlines()), strict=True)
    assert signals == (*[signal.SIGKILL] * 10, 0)
    assert len(set(steps[:-1])) > 3, "killed at different steps"
    assert steps[-1] < 60, "the last process went on from a checkpoint"
    assert toys.equal(torch.load(tmp_path / "final.pt", weights_only=True), uninterrupted)
    assert not toys.equal(toys.train(**{**toys.KILLED, "seed": 1})[0], uninterrupted)


@pytest.mark.parametrize("kind", ["onecycle", "step"])
def test_stopping_and_going_on_gives_the_same_weights_rows_and_lr(tmp_path, kind):
    how = {
        "schedule": Schedule(3, batch=16, lr=0.05, kind=kind, milestones=(1, 2)),
        "log_every": 2,
        "dropout": 0.3,
        "head": "adaface",
    }
    whole, fitted = toys.train(**how)
    for step in (2, 4, 2):  # even steps: a row is a mean over log_every steps, cut where the run was
        run_until(step, directory=tmp_path, **how)
    again, resumed = toys.train(directory=tmp_path, **how)
    assert toys.equal(again, whole)
    assert [{**row, "images_per_s": 0} for row in resumed.rows] == [{**row, "images_per_s": 0} for row in fitted.rows]


def test_a_checkpoint_of_the_last_step_has_nothing_left_to_do(tmp_path):
    whole, fitted = toys.train(directory=tmp_path)
    again, resumed = toys.train(directory=tmp_path, stop=lambda: pytest.fail("no step was left"))
    assert toys.equal(again, whole)
    assert resumed.rows == fitted.rows


def test_ctrl_c_finishes_the_step_saves_and_resumes(tmp_path):
    whole, _ = toys.train()
    count = itertools.count(1)

    def press() -> bool:
        if next(count) == 3:
            signal.raise_signal(signal.SIGINT)
        return False

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="train stopped at step 4 of 8"):
        toys.train(directory=tmp_path, stop=press)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4
    assert toys.equal(toys.train(directory=tmp_path)[0], whole)


def test_ctrl_c_in_the_last_step_is_not_forgotten(tmp_path):
    run_until(8, directory=tmp_path)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 8


def test_a_second_ctrl_c_stops_at_once():
    def press_twice() -> bool:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return pytest.fail("the second one was ignored")

    with pytest.raises(KeyboardInterrupt) as caught:
        toys.train(stop=press_twice)
    assert not str(caught.value)


# ----------------------------------------------------------------------------------------------------- same numbers


def test_the_seed_makes_the_numbers_and_the_global_generator_has_no_say():
    one, _ = toys.train(dropout=0.3)
    torch.manual_seed(12345)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state()
    same, _ = toys.train(dropout=0.3)
    assert torch.equal(torch.get_rng_state(), before)
    assert toys.equal(one, same)
    other, _ = toys.train(seed=1, dropout=0.3)
    assert not any(torch.equal(one[key], other[key]) for key in one if key.endswith(("conv.weight", "1.weight")))


def test_the_seed_of_fit_alone_changes_order_and_augmentation():
    found = []
    for seed in (0, 1):
        network, head = toys.pair(0)
        toys.fit(network, head, toys.faces(), schedule=Schedule(1, batch=16), seed=seed, progress=False)
        found.append(toys.state(network, head))
    assert not toys.equal(*found)


def test_batches_of_an_epoch_hold_each_image_once(monkeypatch):
    seen = []
    whole = augment
    monkeypatch.setattr(step_, "augment", lambda hr, *rest: (seen.append(hr.clone()), whole(hr, *rest))[1])
    faces = toys.faces()
    toys.train(distil=False, faces=faces)
    originals = {image.tobytes() for image in faces.images}
    epochs = [torch.cat(seen[k : k + 4]).mul(255).round().byte().permute(0, 2, 3, 1).numpy() for k in (0, 4)]
    assert all({image.tobytes() for image in epoch} == originals for epoch in epochs)
    assert not np.array_equal(*epochs)


def test_memory_mapped_images_read_batch_by_batch_give_the_same_bits(tmp_path, monkeypatch):
    faces = toys.faces()
    np.save(tmp_path / "x.npy", faces.images)
    mapped = replace(faces, images=np.load(tmp_path / "x.npy", mmap_mode="r"))
    resident, _ = toys.train(faces=faces)
    assert toys.equal(toys.train(faces=mapped)[0], resident)
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 100)
    read = image_reader(mapped, torch.device("cpu"), resident=False)
    assert not any(getattr(cell.cell_contents, "shape", ()) for cell in read.__closure__), "nothing was copied"
    assert toys.equal(toys.train(faces=mapped)[0], resident)
    parts = faces.subset(np.arange(len(faces)))
    assert toys.equal(toys.train(faces=replace(parts, digest=faces.digest))[0], resident)


def test_channels_last_is_another_order_of_the_same_sums():
    a, _ = toys.train(1, options=replace(toys.OPTIONS, channels_last=True, side=4))
    b, _ = toys.train(1, options=replace(toys.OPTIONS, channels_last=False, side=4))
    for key in a:
        torch.testing.assert_close(a[key].float(), b[key].float(), rtol=2e-3, atol=2e-4)


def test_bfloat16_trains_close_to_float32():
    f, exact = toys.train(options=replace(toys.OPTIONS, side=4), epochs=3, log_every=1)
    b, rough = toys.train(options=replace(toys.OPTIONS, side=4, precision="bfloat16"), epochs=3, log_every=1)
    assert all(value.dtype in (torch.float32, torch.int64) for value in b.values())
    assert not toys.equal(f, b)
    assert rough.rows[0]["loss"] == pytest.approx(exact.rows[0]["loss"], rel=0.05)
    assert rough.rows[-1]["feature"] < rough.rows[0]["feature"]


# --------------------------------------------------------------------------------------------------------- schedules


def rates(schedule: Schedule) -> list[float]:
    return [row["lr"] for row in toys.train(distil=False, schedule=schedule, log_every=1)[1].rows]


def test_step_schedule_divides_by_ten_after_each_milestone():
    found = rates(Schedule(4, batch=32, lr=0.08, kind="step", milestones=(1, 3)))
    # Two steps an epoch; a row shows the rate of the step that comes next.
    assert found == pytest.approx([0.08, 0.008, 0.008, 0.008, 0.008, 0.0008, 0.0008, 0.0008])


def test_onecycle_rises_for_three_tenths_and_falls_to_almost_nothing():
    total, peak, found = 40, 0.2, rates(Schedule(10, batch=16, lr=0.2))

    def cosine_between(a: float, b: float, share: float) -> float:
        return b + (a - b) / 2 * (1 + math.cos(math.pi * share))

    top, start, end = 0.3 * (total + 1) - 1, peak / 25, peak / 25e4
    wanted = [
        cosine_between(start, peak, k / top) if k <= top else cosine_between(peak, end, (k - top) / (total - top))
        for k in range(1, total + 1)
    ]
    assert found == pytest.approx(wanted, rel=1e-6)


def test_margin_ramp_grows_over_its_share_of_the_steps(monkeypatch):
    asked = []
    plain = heads.CosFace.harder
    monkeypatch.setattr(heads.CosFace, "harder", lambda self, c, e, m: (asked.append(m), plain(self, c, e, m))[1])
    _, fitted = toys.train(distil=False, schedule=Schedule(5, batch=32, ramp=0.4), log_every=1)
    shares = [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]
    assert [row["ramp"] for row in fitted.rows] == pytest.approx(shares)
    assert asked == pytest.approx([0.1 * share for share in shares])
    assert {row["ramp"] for row in toys.train(distil=False, schedule=Schedule(1, 16, ramp=0))[1].rows} == {1.0}


def test_one_step_of_sgd_as_by_hand():
    """Nesterov momentum starts as (1 + momentum) times the gradient with weight decay."""
    faces, schedule = toys.faces(images=8), Schedule(1, batch=32, lr=0.1, kind="step", ramp=0)
    network, head = toys.pair()
    start = toys.state(network, head)
    order = np.random.default_rng([3, 0]).permutation(32)
    x = normalise(torch.from_numpy(faces.images[order]).permute(0, 3, 1, 2).float() / 255)
    y = torch.from_numpy(faces.labels[order])
    F.cross_entropy(head(network.train()(x).embedding, y), y).backward()
    grads = {f"{k}.{name}": p.grad for k, m in enumerate((network, head)) for name, p in m.named_parameters()}
    network, head = toys.pair()
    options = replace(toys.OPTIONS, mirror=False, channels_last=False)
    toys.fit(network, head, faces, schedule=schedule, options=options, seed=3, progress=False)
    for key, after in toys.state(network, head).items():
        if key in grads:
            wanted = start[key] - 0.1 * 1.9 * (grads[key] + 5e-4 * start[key])
            torch.testing.assert_close(after, wanted, rtol=1e-4, atol=1e-6)


def test_the_papers_schedules():
    assert (FSKD_SCHEDULE.epochs, FSKD_SCHEDULE.batch, FSKD_SCHEDULE.milestones) == (24, 256, (10, 14, 18, 22))
    assert (ASKD_SCHEDULE.epochs, ASKD_SCHEDULE.batch, ASKD_SCHEDULE.milestones) == (20, 128, (5, 10, 14, 16))
    for schedule in (FSKD_SCHEDULE, ASKD_SCHEDULE):
        assert (schedule.lr, schedule.momentum, schedule.weight_decay, schedule.kind) == (0.1, 0.9, 5e-4, "step")


# ------------------------------------------------------------------------------------------------------ augmentation


def test_mirror_and_shift_against_a_naive_loop():
    images = torch.rand(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    draws = draw_augmentation(64, Options(shift=2), torch.Generator().manual_seed(5))
    found = augment(images, *draws)
    g = torch.Generator().manual_seed(5)
    flips = torch.rand(64, generator=g) < 0.5
    rows, columns = torch.randint(-2, 3, (2, 64, 1), generator=g)[..., 0].tolist()
    for n in range(64):
        source = images[n].flip(2) if flips[n] else images[n]
        for i, j in itertools.product(range(6), range(6)):
            a, b = min(max(i + rows[n], 0), 5), min(max(j + columns[n], 0), 5)
            assert torch.equal(found[n, :, i, j], source[:, a, b])
    assert set(rows) == set(columns) == {-2, -1, 0, 1, 2}
    assert 16 < int(flips.sum()) < 48


def test_without_augmentation_images_pass_as_they_are():
    images = torch.rand(4, 3, 6, 6)
    draws = draw_augmentation(4, Options(mirror=False), torch.Generator())
    assert augment(images, *draws) is images


def test_the_student_sees_the_degraded_and_the_teacher_the_hr_image():
    seen = {}
    network, head = toys.pair()
    teacher = Teacher(*toys.pair(9))

    def note(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        seen.setdefault("student" if module is network else "teacher", inputs[0].detach().clone())

    for module in (network, teacher.network):
        module.register_forward_pre_hook(note)
    options = Options(side=2, mirror=False, threads=1)
    toys.fit(
        network,
        head,
        toys.faces(),
        schedule=Schedule(1, 16),
        options=options,
        teacher=teacher,
        terms=(feature(),),
        progress=False,
    )
    hr = (seen["teacher"] + 1) / 2
    assert toys.faces().images[np.random.default_rng([0, 0]).permutation(64)[:16]].transpose(0, 3, 1, 2) / 255 == (
        pytest.approx(hr.numpy(), abs=1e-6)
    )
    torch.testing.assert_close(seen["student"], normalise(degradation.degrade(hr, 2)), rtol=0, atol=1e-5)
    assert -1 <= seen["student"].min() < -0.2 < 0.2 < seen["student"].max() <= 1


# ---------------------------------------------------------------------------------------------------------- teachers


@pytest.mark.parametrize("head", ["cosface", "adaface"])
def test_training_leaves_no_trace_in_the_teacher(head):
    teacher = Teacher(*toys.pair(9, head))
    teacher.network.train()  # as careless a caller as can be
    teacher.head.train()
    before = toys.state(teacher.network, teacher.head)
    network, classes = toys.pair(0, head)
    start = toys.state(network, classes)
    terms = (feature(), distill_terms.logits(), distill_terms.embedding())
    toys.fit(network, classes, toys.faces(), schedule=Schedule(2, 16), teacher=teacher, terms=terms, progress=False)
    assert toys.equal(toys.state(teacher.network, teacher.head), before)
    assert not teacher.network.training
    assert all(p.grad is None for p in (*teacher.network.parameters(), *teacher.head.parameters()))
    after = toys.state(network, classes)
    moved = {key for key in after if not torch.equal(after[key], start[key])}
    assert moved == set(after), "every weight and buffer of the student moves"


def views(shuffled: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Teacher embeddings as the terms saw them, and those of the batch's images in order."""
    caught = []

    def spy(student, teacher):
        caught.append(teacher.embedding)
        return cosine(student.embedding, teacher.embedding).mean()

    teacher = Teacher(*toys.pair(9), shuffled=shuffled)
    faces = toys.faces()
    network, head = toys.pair()
    toys.fit(
        network,
        head,
        faces,
        schedule=Schedule(1, 16),
        options=replace(toys.OPTIONS, mirror=False),
        teacher=teacher,
        terms=(Term("spy", 1.0, spy),),
        progress=False,
    )
    x = faces.batch(np.random.default_rng([0, 0]).permutation(64)[:16]).float() / 255
    with torch.no_grad():
        return caught[0], teacher.network(normalise(x)).embedding


def test_a_shuffled_teacher_is_shown_other_images():
    seen, own = views(shuffled=False)
    torch.testing.assert_close(seen, own, rtol=1e-4, atol=1e-5)
    seen, own = views(shuffled=True)
    torch.testing.assert_close(seen, own.roll(1, 0), rtol=1e-4, atol=1e-5)
    assert (cosine(seen, own) > 1e-3).all(), "nobody's teacher saw the student's image"


def test_a_teacher_without_terms_teaches_nothing():
    more = {"schedule": Schedule(1, 16), "teacher": Teacher(*toys.pair(9)), "progress": False}
    with pytest.raises(ConfigError, match="teacher: expected at least one term, got none"):
        toys.fit(*toys.pair(), toys.faces(), **more)


# ---------------------------------------------------------------------------------------------------------- learning


def accuracy(network: nn.Module, head: heads.Head) -> float:
    held = toys.faces(seed=5)
    with torch.inference_mode():
        embedding = network.eval()(normalise(held.batch(np.arange(len(held))).float() / 255)).embedding
        logits = losses.cosine_logits(embedding, head.weight, 1.0)
    return float((logits.argmax(1).numpy() == held.labels).mean())


def test_a_student_learns_an_easy_set():
    network, head = toys.pair()
    untrained = accuracy(network, head)
    schedule = Schedule(8, 16, lr=0.1)
    found = toys.fit(network, head, toys.faces(), schedule=schedule, options=toys.OPTIONS, progress=False, log_every=4)
    assert found.rows[-1]["loss"] < found.rows[0]["loss"] / 3
    assert found.rows[-1]["train_accuracy"] > 0.95 > found.rows[0]["train_accuracy"]
    assert accuracy(network, head) > max(0.95, untrained), "images never seen"


def test_distillation_brings_the_student_nearer_to_its_teacher_on_images_never_seen():
    held = normalise(toys.faces(seed=5).batch(np.arange(64)).float() / 255)
    near = {}
    for weight in (0.0, 20.0):
        teacher = Teacher(*toys.pair(9))
        network, head = toys.pair()
        terms = (distill_terms.embedding(weight=weight), feature(weight=weight))
        options = replace(toys.OPTIONS, side=4, mirror=False)
        fitted = toys.fit(
            network,
            head,
            toys.faces(),
            schedule=Schedule(8, 16, lr=0.05),
            options=options,
            teacher=teacher,
            terms=terms,
            progress=False,
        )
        with torch.inference_mode():
            s, t = network(normalise(degradation.degrade((held + 1) / 2, 4))), teacher.network(held)
            hinted = fitted.hints(s.features)
            near[weight] = [cosine(s.embedding, t.embedding).mean(), cosine(hinted[-1], t.features[-1]).mean()]
    assert all(taught < 0.6 * alone for taught, alone in zip(near[20.0], near[0.0], strict=True))


# ------------------------------------------------------------------------------------------------------------- rows


def test_rows_are_means_over_steps_and_metrics_csv_holds_them(tmp_path):
    fine = toys.train(log_every=1)[1].rows
    coarse = toys.train(log_every=3, directory=tmp_path, checkpoint_every=3)[1]
    assert [row["step"] for row in coarse.rows] == [3, 6, 8]
    assert list(coarse.rows[0]) == [
        *("step", "epoch", "lr", "ramp", "loss", "identity", "feature", "attention", "train_accuracy", "images_per_s")
    ]
    for key in ("loss", "identity", "feature", "attention", "train_accuracy"):
        values = [row[key] for row in fine]
        assert [row[key] for row in coarse.rows] == pytest.approx(
            [np.mean(values[0:3]), np.mean(values[3:6]), np.mean(values[6:8])]
        )
    for row in coarse.rows:
        assert row["loss"] == pytest.approx(row["identity"] + row["feature"] + row["attention"])
        assert row["epoch"] == row["step"] / 4
    with (tmp_path / "metrics.csv").open() as file:
        read = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert read == [pytest.approx(row, rel=1e-6) for row in coarse.rows]


@pytest.mark.parametrize(("log_every", "every"), [(4, 3), (3, 1), (20, 3), (5, 7)])
def test_a_row_is_the_mean_since_the_last_whatever_is_saved_between(tmp_path, log_every, every):
    fine = [row["loss"] for row in toys.train(log_every=1, epochs=3)[1].rows]
    how = {"log_every": log_every, "checkpoint_every": every, "epochs": 3}
    run_until(5, directory=tmp_path, **how)
    run_until(1, directory=tmp_path, **how)
    rows = toys.train(directory=tmp_path, **how)[1].rows
    ends = [*range(log_every, 12, log_every), 12]
    assert [row["step"] for row in rows] == ends
    wanted = [np.mean(fine[a:b]) for a, b in itertools.pairwise([0, *ends])]
    assert [row["loss"] for row in rows] == pytest.approx(wanted)
    whole = toys.train(**how)[1].rows
    assert [{**row, "images_per_s": 0} for row in rows] == [{**row, "images_per_s": 0} for row in whole], "to the bit"


def test_a_term_may_be_called_as_a_column_is():
    more = {"teacher": Teacher(*toys.pair(9)), "terms": (replace(feature(), name="loss"),), "progress": False}
    (row,) = toys.fit(*toys.pair(), toys.faces(), schedule=Schedule(1, 16), **more).rows
    assert row["loss"] == pytest.approx(row["identity"] + row["loss-2"])


def test_terms_of_one_name_have_a_column_each():
    def rows(*terms):
        more = {"teacher": Teacher(*toys.pair(9)), "terms": terms, "progress": False, "log_every": 1}
        return toys.fit(*toys.pair(), toys.faces(), schedule=Schedule(1, 16), **more).rows

    terms = (feature(), feature(lp(2), weight=1.0))
    for row in rows(*terms):
        assert row["feature"] != row["feature-2"]
        assert row["loss"] == pytest.approx(row["identity"] + row["feature"] + row["feature-2"])
    with pytest.raises(TrainingError, match="step 3: the loss term 'feature-3' is inf"):
        rows(*terms, Term("feature", 1.0, At(3, math.inf)))


def test_seconds_are_the_steps_over_their_speed():
    fitted = toys.train(log_every=3)[1]
    parts = [steps * 16 / row["images_per_s"] for steps, row in zip((3, 3, 2), fitted.rows, strict=True)]
    assert fitted.seconds == pytest.approx(sum(parts))


def test_observe_is_told_steps_and_hints_and_training_mode_comes_back():
    network, head = toys.pair()
    done = []

    def note(step: int, hints: nn.Module | None) -> None:
        assert network.training, "whatever the last look left"
        assert hints is None, "no term needs them"
        done.append(step)
        network.eval()

    toys.fit(network, head, toys.faces(), schedule=Schedule(3, 16), progress=False, observe=note)
    assert done == [4, 8, 12], "after every epoch of four steps"
    done.clear()
    toys.fit(network, head, toys.faces(), schedule=Schedule(3, 16), progress=False, observe=note, observe_every=5)
    assert done == [5, 10]
    assert not network.training
    assert not head.training


def test_a_run_that_is_looked_at_ends_on_the_same_bits():
    seen = []

    def look(step: int, hints: nn.Module | None) -> None:
        assert hints is not None
        features = [torch.ones(2, 4, 4, 4), torch.ones(2, 8, 2, 2)]
        seen.append((step, [stage.shape for stage in hints.eval()(features)]))

    plain, fitted = toys.train()
    looked, again = toys.train(observe=look, observe_every=3)
    assert [step for step, _ in seen] == [3, 6]
    assert seen[0][1] == [(2, 4, 4, 4), (2, 8, 2, 2)], "the hint layers, as they are"
    assert toys.equal(looked, plain)
    assert [{**row, "images_per_s": 0} for row in again.rows] == [{**row, "images_per_s": 0} for row in fitted.rows]


# ------------------------------------------------------------------------------------------------------------- stops


class At:
    """A term that is right until its k-th call."""

    def __init__(self, step: int, value: float) -> None:
        self.left, self.value = step, value

    def __call__(self, student, teacher):
        self.left -= 1
        return student.embedding.mean() * 0 + (self.value if self.left == 0 else 1.0)


@pytest.mark.parametrize(("value", "said"), [(math.nan, "nan"), (math.inf, "inf")])
@pytest.mark.parametrize("step", [1, 5])
def test_a_loss_that_is_not_finite_stops_with_step_term_and_hint(tmp_path, step, value, said):
    network, head = toys.pair()
    terms = (feature(), Term("mine", 2.0, At(step, value)))
    with pytest.raises(TrainingError, match=rf"step {step}: the loss term 'mine' is {said}; lower the learning rate"):
        toys.fit(
            network,
            head,
            toys.faces(),
            schedule=Schedule(3, 16),
            teacher=Teacher(*toys.pair(9)),
            terms=terms,
            progress=False,
            directory=tmp_path,
            checkpoint_every=4,
        )
    saved = tmp_path / "state.pt"
    assert saved.exists() == (step == 5), "the last whole checkpoint stays, and none is made after the fault"
    if step == 5:
        kept = torch.load(saved, weights_only=True)
        assert kept["step"] == 4
        assert all(x.isfinite().all() for x in kept["trained"].values())


def poison(step: int):
    """A term whose loss is finite and whose gradient, at one step, is not."""
    count = itertools.count(1)

    def compute(student, teacher):
        x = student.embedding.mean() * 0
        return (x.square() if next(count) == step else x + 1e-3).sqrt()  # the root's slope at zero

    return compute


@pytest.fixture
def told(monkeypatch):
    """Functions of a test may be local: nothing here is mixed up."""
    monkeypatch.setattr(Term, "describe", lambda term: {"name": term.name})


@pytest.mark.parametrize("saved", [True, False], ids=["directory", "none"])
@pytest.mark.parametrize(("step", "said"), [(3, "step (3|4): "), (4, "step (4|5): "), (8, "step 8: ")])
def test_an_update_that_is_not_finite_is_never_returned_nor_saved(tmp_path, told, step, said, saved):
    network, head = toys.pair()
    more = {"teacher": Teacher(*toys.pair(9)), "terms": (Term("mine", 1.0, poison(step)),), "progress": False}
    where = {"directory": tmp_path, "checkpoint_every": 2} if saved else {}
    with pytest.raises(TrainingError, match=said):
        toys.fit(network, head, toys.faces(), schedule=Schedule(2, 16), **more, **where)
    if saved:
        kept = torch.load(tmp_path / "state.pt", weights_only=True)
        assert kept["step"] == (step - 1) // 2 * 2, "the last good one"
        assert all(x.isfinite().all() for x in kept["trained"].values())


def test_the_fault_is_named_before_anyone_looks():
    """An observer that measures a network would only say that its embeddings are not finite."""
    network, head = toys.pair()
    more = {"teacher": Teacher(*toys.pair(9)), "terms": (Term("mine", 1.0, At(2, math.nan)),), "progress": False}
    seen = []
    with pytest.raises(TrainingError, match="step 2: the loss term 'mine' is nan"):
        toys.fit(
            network,
            head,
            toys.faces(),
            schedule=Schedule(1, 16),
            observe=lambda step, _: seen.append(step),
            observe_every=1,
            **more,
        )
    assert seen == [1]


def test_too_high_a_rate_is_named_as_the_identity_loss():
    with pytest.raises(TrainingError, match=r"step \d+: the loss term 'identity' is nan"):
        toys.train(distil=False, schedule=Schedule(8, 16, lr=1e30))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"epochs": 0}, "epochs of at least 1.*epochs=0"),
        ({"batch": 1}, "batch of at least 2.*batch=1"),
        ({"lr": 0}, "positive lr"),
        ({"lr": math.nan}, "positive lr"),
        ({"kind": "cosine"}, "kind: expected onecycle or step, got 'cosine'"),
    ],
)
def test_impossible_schedules(more, match):
    with pytest.raises(ConfigError, match=match):
        Schedule(**{"epochs": 1, **more})


def test_impossible_options_and_too_few_images():
    with pytest.raises(ConfigError, match="precision: expected float32 or bfloat16, got 'half'"):
        Options(precision="half")
    with pytest.raises(ConfigError, match="batch: expected at most 64, the number of training images, got 128"):
        toys.train(schedule=Schedule(1))
    with pytest.raises(ConfigError, match="side"):
        toys.train(options=Options(side=9))


def test_a_label_that_the_head_does_not_have():
    wrong = replace(toys.faces(classes=5), digest="five")
    with pytest.raises(DataError, match=r"labels: expected 0 to 3, as the head has 4 classes, got 4"):
        toys.train(faces=wrong)
    below = replace(toys.faces(), labels=toys.faces().labels, digest="below")
    below.labels[0] = -1  # as some data sets mark what has no class
    with pytest.raises(DataError, match=r"labels: expected 0 to 3, .* got -1"):
        toys.train(faces=below)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"faces": np.zeros((64, 8, 8, 3), np.uint8)}, "faces: expected a Dataset of .* got ndarray"),
        ({"network": torch.nn.Flatten()}, "network: expected a Network, got Flatten: .*lrkd.models.wrap.wrap"),
        ({"head": torch.nn.Linear(8, 4)}, r"head: expected one of `lrkd\.models\.heads\.build`, got Linear"),
        ({"head": heads.build("cosface", 4, 6)}, "head: expected one for embeddings of 8 numbers, .* got one for 6"),
    ],
)
def test_what_does_not_fit_together(more, match):
    network, head = toys.pair()
    given = {"network": network, "head": head, "faces": toys.faces(), "schedule": Schedule(1, 16)} | more
    with pytest.raises(ConfigError, match=match):
        loop.fit(**given)


# -------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"epochs": 3},
        {"distil": False},
        {"options": Options(side=4, threads=1)},
        {"faces": toys.faces(seed=4)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path, other):
    run_until(3, directory=tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(RunError, match=r"state\.pt: expected a checkpoint of this run"):
        toys.train(directory=tmp_path, **other)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run_until(3, directory=tmp_path)
    with pytest.raises(RunError, match=r"got one of another run \(different: head\)"):
        toys.train(directory=tmp_path, head="adaface")


def test_a_checkpoint_knows_everything_that_a_caller_brings(tmp_path):
    """Each run differs from the first in one thing, and is refused by its name; the first itself goes on."""
    faces, chosen = toys.faces(), torch.arange(64) % 2 == 0
    moved = faces.labels.copy()
    moved[[0, 1]] = (moved[[0, 1]] + 1) % 4

    def run(expected: str, **more) -> None:
        how = {"head": toys.pair()[1], "network": toys.pair()[0], "teacher": Teacher(*toys.pair(9), chosen=chosen)}
        how |= {"faces": faces, "terms": (distill_terms.regression(),), "schedule": Schedule(1, 16, lr=0.05)} | more
        count = itertools.count(1)
        with pytest.raises((RunError, KeyboardInterrupt), match=expected):
            toys.fit(**how, options=toys.OPTIONS, progress=False, directory=tmp_path, stop=lambda: next(count) == 1)

    run("stopped at step 1")
    for head in (
        heads.build("cosface", 4, 8, scale=16.0, margin=0.2),
        heads.build("cosface", 4, 8, scale=17.0, margin=0.1),
        heads.build("arcface", 4, 8, scale=16.0, margin=0.1),
        heads.build("adaface", 4, 8, scale=16.0, margin=0.1, h=0.2),
        heads.build("cosface", 5, 8, scale=16.0, margin=0.1),
    ):
        run(r"different: head\)", head=head)
    for network in (backbones.small(8, 8, (4, 16)), backbones.small(8, 8, (4, 8), dropout=0.1)):
        run(r"different: network\)", network=network)
    for teacher in (
        Teacher(*toys.pair(8), chosen=chosen),
        Teacher(toys.pair(9)[0], toys.pair(8)[1], chosen=chosen),
        Teacher(*toys.pair(9), shuffled=True, chosen=chosen),
    ):
        run(r"different: teacher\)", teacher=teacher)
    for other in (None, ~chosen):
        run(r"different: chosen\)", teacher=Teacher(*toys.pair(9), chosen=other))
    for data in (
        replace(faces, labels=moved),
        replace(faces, images=255 - faces.images),
        replace(faces.subset(np.arange(64)[::-1]), digest=faces.digest),
        faces.subset(np.arange(64)),
        faces.subset(np.arange(48)),
    ):
        few = data.labels.size < 64
        run(
            r"different: (chosen, )?data\)",
            faces=data,
            **({"teacher": Teacher(*toys.pair(9), chosen=chosen[:48])} if few else {}),
        )
    run(r"different: terms\)", terms=(distill_terms.regression(lp(2)),))
    run(r"different: schedule\)", schedule=Schedule(1, 16, lr=0.04))
    run("stopped at step 2")


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "text", "flipped"])
def test_a_broken_checkpoint_is_refused_by_name(tmp_path, damage):
    run_until(3, directory=tmp_path)
    path = tmp_path / "state.pt"
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut": whole[:middle],
            "empty": b"",
            "noise": np.random.default_rng(0).bytes(1000),
            "text": b"hello",
            "flipped": whole[:40] + bytes(b ^ 255 for b in whole[40:80]) + whole[80:],
        }[damage]
    )
    with pytest.raises(RunError, match=r"state\.pt: this checkpoint cannot be read \(\w+\); remove it to start anew"):
        toys.train(directory=tmp_path)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("plain", [True, False])
def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path, plain):
    mark, path = tmp_path / "executed", tmp_path / "state.pt"
    if plain:
        path.write_bytes(pickle.dumps(Hostile(mark)))
    else:
        torch.save({"fingerprint": Hostile(mark)}, path)
    with pytest.raises(RunError, match="cannot be read"):
        toys.train(directory=tmp_path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))
    assert mark.exists(), "it would have run"


def test_leftovers_of_a_killed_write_do_no_harm(tmp_path):
    whole, _ = toys.train()
    run_until(3, directory=tmp_path)
    for name in (".state.pt.part", ".metrics.csv.part"):
        (tmp_path / name).write_bytes(b"half a fi")
    assert toys.equal(toys.train(directory=tmp_path)[0], whole)
    assert {path.name for path in tmp_path.iterdir()} == {"state.pt", "metrics.csv"}


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    whole, _ = toys.train()
    run_until(3, directory=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(RunError, match=r"could not be written \(No space left on device\).*make room"):
            toys.train(directory=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert toys.equal(toys.train(directory=tmp_path)[0], whole)


# ------------------------------------------------------------------------------------------------------- model files


def test_a_model_file_gives_back_tensors_and_config(tmp_path):
    network, head = toys.pair(3, "adaface")
    config = {"model": {"name": "small"}, "é": [1, None]}
    save_model(tmp_path / "m.safetensors", network.to(memory_format=torch.channels_last), head, config)
    tensors, read = load_model(tmp_path / "m.safetensors")
    assert read == config
    wanted = toys.state(network, head)
    assert toys.equal(
        {key.replace("network.", "0.", 1).replace("head.", "1.", 1): value for key, value in tensors.items()}, wanted
    )
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors"}


@pytest.mark.parametrize("damage", ["missing", "folder", "cut", "text", "no config"])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "m.safetensors"
    save_model(path, *toys.pair(), {})
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "no config":
        path.write_bytes(safetensors_bytes({"x": torch.ones(1)}))
    elif damage != "missing":
        path.write_bytes({"cut": whole[: len(whole) // 2], "text": json.dumps({"a": 1}).encode()}[damage])
    with pytest.raises(RunError, match=r"m\.safetensors: expected a model written by lrkd"):
        load_model(path)
