"""The student for photographs: what it is shown, how a rung is trained and chosen, and the file in the repository."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from book import student_photos as photos
from lrkd.data.pairs import Pairs
from lrkd.errors import ConfigError
from lrkd.onnx import export, recogniser
from lrkd.study import presets

FILE = photos.RESULTS / "photo-student.onnx"


def noise(count: int, size: int = 112) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def test_the_network_sees_averages_of_areas():
    images = noise(3)
    means = images.reshape(3, 16, 7, 16, 7, 3).mean((2, 4)).transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(photos.shown(images), means, atol=1e-5)
    np.testing.assert_allclose(photos.area(images, 16) * 2 - 1, means, atol=1e-5)
    smaller = photos.shown(images, 8)
    assert smaller.shape == (3, 3, 16, 16)
    assert smaller.std() < means.std()


def test_augmentation_is_seeded_and_keeps_to_the_range():
    x = photos.area(noise(20), 56)
    made = [photos.augmented(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert made[0].shape == (20, 3, 16, 16)
    assert 0 <= made[0].min() <= made[0].max() <= 1
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_pixels_are_plain_correlation():
    a, b = photos.pixels(noise(2))
    seen = photos.shown(noise(2)).reshape(2, -1)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert cosine == pytest.approx(np.corrcoef(seen)[0, 1], abs=1e-5)


def people(missing=None) -> SimpleNamespace:
    """Twelve pictures of four people with six pairs, embedded as what they are."""
    labels, rng = np.arange(12) % 4, np.random.default_rng(2)
    pairs = Pairs(np.arange(6), np.array([4, 5, 6, 7, 5, 6]), np.repeat([True, False], [4, 2]), np.zeros(6, np.int64))
    return SimpleNamespace(images=rng.standard_normal((12, 5)), labels=labels, pairs=pairs, missing=missing)


@pytest.mark.parametrize("gone", [None, 4])
def test_histograms_count_each_pair_once(gone):
    faces = people(None if gone is None else np.arange(12) == gone)
    unit = faces.images / np.linalg.norm(faces.images, axis=1, keepdims=True)
    impostor = [unit[i] @ unit[j] for i in range(12) for j in range(i) if i % 4 != j % 4 and gone not in (i, j)]
    pairs = zip(faces.pairs.left, faces.pairs.right, faces.pairs.same, strict=True)
    genuine = [unit[i] @ unit[j] for i, j, same in pairs if same and gone not in (i, j)]
    found = photos.histograms(lambda images: images, faces)
    for kind, values in (("genuine", genuine), ("impostor", impostor)):
        np.testing.assert_array_equal(found[kind], np.histogram(values, photos.BINS, (-1, 1))[0])


def test_gentle_augmentation_stays_nearer_to_the_plain_image():
    x = photos.area(noise(64, 56).repeat(2, 1).repeat(2, 2), 56)
    plain, off = torch.nn.functional.interpolate(x, 16, mode="area"), []
    for strength in (0.0, 0.5, 1.0):
        made = photos.augmented(x, torch.Generator().manual_seed(0), strength)
        near = torch.minimum((made - plain).square().mean((1, 2, 3)), (made - plain.flip(3)).square().mean((1, 2, 3)))
        off.append(float(near.mean()))
    assert off == sorted(off)


def embeddings(path, count: int = 256):
    np.save(path, np.random.default_rng(1).standard_normal((count, 9)).astype(np.float32))
    return path


@pytest.mark.parametrize("teacher", ["", "axes", "bridge"])
def test_a_rung_trains_and_is_the_same_again(teacher, tmp_path):
    rung, labels, rows = photos.Rung((4, 8), (1, 2), 6, 2, teacher), np.arange(256) % 16, np.arange(256)[::-1]
    table = embeddings(tmp_path / "e.npy")
    target = photos.targets(rung, table, labels, rows)
    assert (target is None) == (not teacher)
    train = partial(photos.train, rung, noise(256), torch.from_numpy(labels), target, seed=0)
    one, two = (train().state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    if teacher:
        assert target.shape == (256, 6)
        with pytest.raises(ConfigError, match="teacher is not given"):
            photos.targets(rung, None, labels, rows)


def test_rungs_of_several_sides_and_what_goes_on_with_a_network():
    x = photos.area(noise(4), 16)
    assert photos.resized(x, 16).equal(x)
    means = x.reshape(4, 3, 8, 2, 8, 2).mean((3, 5))
    for part in (photos.resized(x, 8), torch.from_numpy(photos.shown(noise(4), 8))):
        assert part.shape == (4, 3, 16, 16)
    enlarged = torch.nn.functional.interpolate(means, 16, mode="bicubic").clamp(0, 1)
    torch.testing.assert_close(photos.resized(x, 8), enlarged)
    labels = torch.arange(256) % 16
    plain = photos.Rung((4, 8), (1, 2), 6, 1)
    one = photos.train(plain, noise(256), labels, None, 0).state_dict()
    several = photos.train(plain._replace(sides=True), noise(256), labels, None, 0).state_dict()
    first = photos.train(plain, noise(256), labels, None, 0)
    further = photos.train(plain, noise(256), labels, None, 0, first).state_dict()
    for other in (several, further):
        assert not all(torch.equal(one[name], other[name]) for name in one)


def test_the_rendered_faces_are_as_large_as_what_is_augmented():
    faces, people = photos.rendered(presets.scale("smoke"))
    assert faces.shape[1:] == (photos.MIDDLE, photos.MIDDLE, 3)
    assert faces.dtype == np.uint8
    assert len(faces) == len(people)
    assert people.min() == 0


def test_who_has_no_class_is_learned_of_from_the_teacher_alone(tmp_path):
    labels, rows = np.where(np.arange(256) < 192, np.arange(256) % 16, -1), np.arange(256)
    rung, table = photos.Rung((4, 8), (1, 2), 6, 1, "bridge", everybody=True), embeddings(tmp_path / "e.npy")
    target = photos.targets(rung, table, labels, rows)
    known = photos.targets(rung, table, labels[:192], rows[:192])
    torch.testing.assert_close(target[:192], known), "the head is fitted to those with a class"
    made = photos.train(rung, noise(256), torch.from_numpy(labels), target, 0)
    other = target.clone()
    other[192:] = target[192:].flip(0)
    changed = photos.train(rung, noise(256), torch.from_numpy(labels), other, 0)
    assert not all(torch.equal(a, b) for a, b in zip(made.parameters(), changed.parameters(), strict=True))


def test_people_with_one_photograph_are_of_the_training_people_and_of_no_other_split(monkeypatch):
    labels = np.array([0, 0, 1, 1, 2, 3, 4, 4, 5])
    faces = SimpleNamespace(labels=labels, images=noise(9, 16), missing=np.arange(9) == 5)

    def part(*rows):
        return SimpleNamespace(rows=np.array(rows), images=faces.images[list(rows)], labels=labels[list(rows)])

    splits = SimpleNamespace(train=part(0, 1), validation=part(2, 3), test=part(6, 7))
    whole = SimpleNamespace(faces=faces, splits={"train": np.array([0, 1, 2, 3]), "test": np.array([4, 5])})
    monkeypatch.setattr(photos, "load_prepared", lambda data: whole)
    plain, every = (photos.Rung((4,), (1,), 6, 1, everybody=e) for e in (False, True))
    assert photos.shown_to(plain, None, splits)[2].tolist() == [0, 1]
    images, given, rows = photos.shown_to(every, None, splits)
    assert rows.tolist() == [0, 1, 4], "person 2; person 3 has no face that was found, and 5 is a test person"
    assert given.tolist() == [0, 0, -1]
    np.testing.assert_array_equal(images[2], faces.images[4])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["four-60-gentle", "patch-60-taught", "mobile-60-gentle", "shuffle-60-gentle"])
def test_networks_of_other_kinds_are_of_the_same_size(name, tmp_path):
    network = photos.network_of(photos.LADDER[name], seed=0).eval()
    again = photos.network_of(photos.LADDER[name], seed=0)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    made = export.export(network, tmp_path / "n.onnx", "int8", calibration=photos.shown(noise(16)))
    assert made(photos.shown(noise(2))).shape == (2, 56)
    assert 50_000 < made.bytes <= photos.LIMIT


def test_the_best_on_validation_people_is_taken_with_its_card(tmp_path):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 5))
    network.size = 16
    row = {"threshold": 0.5, "false_match_rate": 0.04, "images": 9, "people": 3, "bytes": 1.0, "seed": 0, "teacher": ""}
    row |= dict.fromkeys(("test", "test_8px", "test_10px", "test_12px"), 0.8)
    rows = [row | {"rung": "good", "validation": 0.8, "test": 0.7}, row | {"rung": "worse", "validation": 0.7}]
    rows += [row | {"rung": "too large", "validation": 0.9, "bytes": 57_001.0}]
    rows += [{"rung": "pixels", "seed": 0, "validation": 0.9}]
    photos.TABLE.merge(tmp_path / "t.csv", pd.DataFrame(rows))
    with pytest.raises(ConfigError, match=r"expected good-s0\.onnx, the best on validation people"):
        photos.choose(tmp_path, tmp_path / "t.csv", tmp_path)
    export.export(network, tmp_path / "good-s0.onnx")
    found = recogniser.load(photos.choose(tmp_path, tmp_path / "t.csv", tmp_path)).metadata
    assert (found["threshold"], found["false_match_rate"], found["faces"]) == ("0.5000", "0.0400", "five points")
    assert found["accuracy"].endswith("12 px 80.0%, 16 px 70.0%")
    network[1] = torch.nn.Linear(768, 50)
    export.export(network, tmp_path / "good-s0.onnx")
    with pytest.raises(ConfigError, match="expected at most 57000 bytes"):
        photos.choose(tmp_path, tmp_path / "t.csv", tmp_path)


@pytest.mark.skipif(not FILE.exists(), reason="`python -m book.student_photos choose` has not written the student")
def test_the_file_is_small_and_says_what_it_is():
    file, rows = recogniser.load(FILE), photos.TABLE.read(photos.RESULTS / "photo-student.csv")
    assert file.bytes <= 57_000
    own = rows.loc[rows[rows["bytes"] <= photos.LIMIT]["validation"].idxmax()]
    assert file.metadata.items() >= photos.card(own).items()
    assert own["test"] > rows.set_index("rung").loc["pixels", "test"] + 0.1


@pytest.mark.skipif(not FILE.exists(), reason="`python -m book.student_photos choose` has not written the student")
def test_the_scores_are_those_of_the_file():
    card, rows = recogniser.load(FILE).metadata, photos.SCORES.read(photos.RESULTS / "photo-scores.csv")
    assert set(rows["network"]) == {card["network"]}
    assert rows["side"].tolist() == list(photos.SIDES)
    own = rows.set_index("side").loc[photos.SIDE]
    assert own["threshold"] == pytest.approx(float(card["threshold"]), abs=1e-3)
    impostor = np.array(own["impostor"].split(), np.int64)
    edges = np.linspace(-1, 1, photos.BINS + 1)
    above = [impostor[edges[:-1] >= own["threshold"]].sum(), impostor[edges[1:] > own["threshold"]].sum()]
    low, high = (count / impostor.sum() for count in above)
    assert low <= own["false_match_rate"] <= high
    assert own["pairs"] == photos.PAIRS == 2 * np.array(own["genuine"].split(), np.int64).sum()


def test_what_the_page_of_the_recogniser_says_of_the_ladder_holds():
    every = photos.TABLE.read(photos.RESULTS / "photo-student.csv")
    rows = every[every["seed"] == 0].set_index("rung")
    steps = [f"four-60{end}" for end in ("", "-bridge", "-everybody", "-gentle", "-taught")]
    assert rows.loc[steps, "validation"].is_monotonic_increasing, "one step after the other"
    own = rows.loc["four-60-taught"]
    assert own["validation"] == every[every["bytes"] <= photos.LIMIT]["validation"].max()
    assert own["test"] >= 0.9, "the goal"
    assert rows.loc["four-120-gentle", "validation"] <= rows.loc["four-60-gentle", "validation"], "twice the training"
    in_vain = ["four-120-gentle", "four-120-taught", "four-60-rendered", "four-60-sides"]
    assert (rows.loc[in_vain, "validation"] < own["validation"]).all()
    fast, shuffle = rows.loc["patch-120-taught"], rows.loc["shuffle-60-gentle"]
    assert fast["bytes"] <= photos.LIMIT
    for name in ("test", "faces_per_cpu_s", "alone_per_cpu_s"):
        assert fast[name] > shuffle[name]
    peers = rows.loc[["mobile-60-gentle", "shuffle-60-gentle"]]
    assert (peers["test"] < own["test"]).all()
    assert (peers["bytes"] > own["bytes"]).all()
