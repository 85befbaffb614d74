"""lrkd.data.tables, lrkd.data.layout, lrkd.data.pairs: laws of the tables, the cache, the reader and the pairs."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import threading
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lrkd.data import renderer, shards
from lrkd.data.overlap import overlap
from lrkd.data.pairs import Pairs, make_pairs, mark_copies
from lrkd.data.prepared import load_prepared, prepared, resized, resized_faces
from lrkd.data.procedural import RenderedSplits, cache_dir
from lrkd.data.shards import NpyWriter, Shards
from lrkd.data.tables import Faces, Splits
from lrkd.errors import ConfigError, DataError, RunError

TINY = {"size": 12, "identities": (8, 8, 10), "images": 6, "pairs": (16, 40), "folds": 4}


class TinyModel:
    """Stands in for FaceModel: flat colours of identity and age, a thousand times faster."""

    identity_dim = 64
    nuisance_names = ("yaw", "age", "light")
    renders = 0
    pause = 0.0

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def sample_identity(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(n, 64, generator=generator)

    def sample_nuisance(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(n, 3, generator=generator)

    def images(self, identity: torch.Tensor, nuisance: torch.Tensor, size: int = 112) -> torch.Tensor:
        type(self).renders += 1
        time.sleep(self.pause)
        colour = identity[:, :3].sigmoid() * 0.8 + 0.2 * nuisance[:, 1:2] / 80
        return colour[:, :, None, None].expand(-1, -1, size, size)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """`RenderedSplits` over the stand-in, cached in a folder of this test."""
    monkeypatch.setattr(renderer, "FaceModel", TinyModel)
    monkeypatch.setattr(TinyModel, "renders", 0)

    def made(cache=tmp_path / "cache", **more):
        return RenderedSplits(**{**TINY, **more}).splits(cache)

    return made


# ---------------------------------------------------------------------------------------------------------- arrays


@pytest.fixture
def parts(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(256, size=(n, 4, 5, 3)).astype(np.uint8) for n in (3, 1, 6)]
    for i, array in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", array)
    maps = [np.load(tmp_path / f"{i}.npy", mmap_mode="r", allow_pickle=False) for i in range(3)]
    return Shards(maps), np.concatenate(arrays)


KEYS = [
    0,
    -1,
    np.int64(4),
    slice(2, 5),
    slice(None, None, -3),
    slice(7, 2),
    [9, 0, 3, 3, -1],
    np.array([], dtype=int),
    [],
    np.array([[0, 9], [4, 4]]),
    np.arange(10) % 3 == 0,
]


@pytest.mark.parametrize("key", KEYS, ids=repr)
@pytest.mark.parametrize("order", [None, [8, 2, 2, 5, 0, 9, 1, 3, 4, 6]])
def test_shards_index_like_one_array(parts, key, order):
    shards, whole = parts
    if order is not None:
        shards, whole = shards.pick(np.array(order)), whole[order]
    want = whole[np.asarray(key, dtype=int)] if isinstance(key, list) else whole[key]
    got = shards[key]
    assert got.shape == want.shape
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)
    assert (len(shards), shards.shape, shards.dtype, shards.ndim) == (10, (10, 4, 5, 3), np.uint8, 4)
    np.testing.assert_array_equal(np.asarray(shards), whole)


@pytest.mark.parametrize("key", [10, -11, [3, 10], [-11], np.ones(9, bool)], ids=repr)
def test_shards_refuse_rows_that_are_not_there(parts, key):
    with pytest.raises(IndexError):
        parts[0][key]
    with pytest.raises(TypeError, match="first axis"):
        parts[0][0, 1]
    with pytest.raises(DataError, match="row 10 of 10"):
        Shards([parts[1]], np.array([0, 10]))


def test_shards_refuse_mixed_arrays():
    good = np.zeros((2, 4, 4, 3), np.uint8)
    for bad in (good.astype(np.float32), np.zeros((2, 5, 4, 3), np.uint8), good[..., :1], good[0]):
        with pytest.raises(DataError, match="image array 1"):
            Shards([good, bad])


def test_npy_writer_writes_what_numpy_writes(tmp_path):
    whole = np.random.default_rng(1).integers(256, size=(1234, 3, 3, 3)).astype(np.uint8)
    with NpyWriter(tmp_path / "a.npy", (3, 3, 3)) as out:
        for start in range(0, len(whole), 100):
            out.append(whole[start : start + 100])
    np.save(tmp_path / "b.npy", whole)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def faces(n: int = 12, classes: int = 4, **more) -> Faces:
    labels = np.arange(n) % classes
    values = {
        "images": np.random.default_rng(2).integers(256, size=(n, 5, 5, 3)).astype(np.uint8),
        "labels": labels.astype(np.int64),
        "age": np.arange(n, dtype=np.float32),
        "pairs": Pairs(np.array([0, 1, 2]), np.array([4, 5, 3]), np.array([True, True, False]), np.array([0, 1, 1])),
        "names": tuple("abcdefgh"[:classes]),
        "name": "toy",
        "digest": "0",
        "identity": np.arange(classes, dtype=np.float32)[:, None].repeat(64, 1),
        "nuisance": np.arange(n, dtype=np.float32)[:, None],
    }
    return Faces(**{**values, **more})


def test_batch_is_channels_first_and_a_copy():
    table = faces()
    batch = table.batch(torch.tensor([3, 0, 3]))
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous()
    np.testing.assert_array_equal(batch.numpy(), np.moveaxis(table.images[[3, 0, 3]], 3, 1))
    batch.zero_()
    assert table.images[3].any()
    assert (table.size, table.classes, len(table)) == (5, 4, 12)


@pytest.mark.parametrize("disk", [False, True])
def test_subset_by_label_keeps_people_whole(tmp_path, disk):
    table = faces()
    if disk:
        np.save(tmp_path / "x.npy", table.images)
        table = replace(table, images=np.load(tmp_path / "x.npy", mmap_mode="r"))
    part = table.subset(labels=[3, 1])
    rows = np.array([1, 3, 5, 7, 9, 11])
    np.testing.assert_array_equal(part.images[:], table.images[rows])
    np.testing.assert_array_equal(part.labels, [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(part.age, rows)
    np.testing.assert_array_equal(part.nuisance[:, 0], rows)
    np.testing.assert_array_equal(part.identity[:, 0], [1, 3])
    assert part.names == ("b", "d")
    assert (part.pairs.left.tolist(), part.pairs.right.tolist()) == ([0], [2])  # 1,5 is the one pair left whole
    assert isinstance(part.images, Shards) == disk
    twice = part.subset(labels=[1])
    np.testing.assert_array_equal(twice.images[:], table.images[[3, 7, 11]])


def test_subset_by_row_without_relabel_keeps_names():
    part = faces().subset([7, 2], relabel=False)
    assert part.labels.tolist() == [3, 2]
    assert part.names == ("a", "b", "c", "d")
    assert part.pairs is None
    with pytest.raises(ConfigError):
        faces().subset()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": np.zeros((12, 5, 5, 3), np.float32)}, "float32"),
        ({"images": np.zeros((12, 3, 5, 5), np.uint8)}, r"\(12, 3, 5, 5\)"),
        ({"images": np.zeros((11, 5, 5, 3), np.uint8)}, "11 images but 12 labels"),
        ({"labels": np.full(12, 4)}, r"toy: label in row 0: expected 0\.\.3, got 4"),
        ({"labels": np.full(12, -1)}, r"toy: label in row 0: expected 0\.\.3, got -1"),
        ({"pairs": Pairs(np.array([0]), np.array([12]), np.array([True]), np.array([0]))}, r"0\.\.12"),
        (
            {"images": np.zeros((0, 5, 5, 3), np.uint8), "labels": np.zeros(0, int), "pairs": None},
            "toy: expected at least one image, got none",
        ),
    ],
)
def test_faces_refuse_what_does_not_fit(change, says):
    with pytest.raises(DataError, match=says):
        faces(**change)


# ----------------------------------------------------------------------------------------------------------- pairs


def people(seed: int, classes: int = 60, most: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.permutation(np.repeat(np.arange(classes) * 3, rng.integers(1, most, classes)))  # labels with gaps


def hold_laws(pairs: Pairs, labels: np.ndarray, folds: int, max_genuine: int | None) -> None:
    left, right = labels[pairs.left], labels[pairs.right]
    np.testing.assert_array_equal(pairs.same, left == right)
    assert (pairs.left != pairs.right).all()
    assert len({frozenset(p) for p in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)}) == len(pairs)
    members = [set(left[pairs.fold == f]) | set(right[pairs.fold == f]) for f in range(folds)]
    assert sum(map(len, members)) == len(set().union(*members))  # nobody in two folds
    assert set(pairs.fold.tolist()) == set(range(folds))
    for f in range(folds):
        assert pairs.same[pairs.fold == f].mean() == 0.5
    if max_genuine is not None:
        assert max(Counter(left[pairs.same].tolist()).values()) <= max_genuine


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "max_genuine"), [(None, 15), (None, 3), (200, None), (206, 8)])
def test_pairs_hold_their_laws(seed, count, max_genuine):
    labels = people(seed)
    pairs = make_pairs(labels, count, folds=5, seed=seed, max_genuine=max_genuine)
    hold_laws(pairs, labels, 5, max_genuine)
    if count is not None:
        assert len(pairs) == count
    else:
        sizes = np.unique(labels, return_counts=True)[1]
        assert pairs.same.sum() == np.minimum(sizes * (sizes - 1) // 2, max_genuine).sum()
        genuine = np.bincount(pairs.fold[pairs.same])
        assert genuine.max() - genuine.min() <= max_genuine
    again, other = (make_pairs(labels, count, 5, s, max_genuine=max_genuine) for s in (seed, seed + 1))
    np.testing.assert_array_equal(pairs.left, again.left)
    assert len(other) != len(pairs) or (other.left != pairs.left).any()


@pytest.mark.parametrize("seed", range(3))
def test_age_gap_holds_for_genuine_and_impostor_pairs(seed):
    labels, age = np.repeat(np.arange(30), 12), np.random.default_rng(seed).uniform(18, 80, 360)
    pairs = make_pairs(labels, 400, 10, seed, age_gap=(age, 31.0))
    hold_laws(pairs, labels, 10, 15)
    gaps = np.abs(age[pairs.left] - age[pairs.right])
    assert gaps.min() >= 31.0
    assert abs(gaps[pairs.same].mean() - gaps[~pairs.same].mean()) < 2.0  # age alone does not tell the two kinds apart


def test_impostors_are_drawn_over_people_not_images():
    labels = np.concatenate((np.zeros(400, int), np.repeat(np.arange(1, 40), 3)))
    pairs = make_pairs(labels, 80, folds=2, max_genuine=None)
    crowd = ((labels[pairs.left] == 0) | (labels[pairs.right] == 0))[~pairs.same].mean()
    assert crowd < 0.25  # over images it would be most of that person's fold


def test_genuine_pairs_are_spread_over_people():
    labels = np.repeat(np.arange(20), 10)
    pairs = make_pairs(labels, 80, folds=4, max_genuine=None)
    assert set(Counter(labels[pairs.left[pairs.same]].tolist()).values()) == {2}


def test_without_a_count_folds_follow_the_people():
    labels = np.array([0, 0, 1, 1, 2, 3, 4, 5])
    pairs = make_pairs(labels, None, folds=10)
    hold_laws(pairs, labels, 2, 15)
    crowded = np.array([0] * 6 + [1] + [2] * 6 + [3])  # 15 genuine pairs but 6 impostor pairs a fold
    hold_laws(make_pairs(crowded, None, folds=2), crowded, 2, 6)


@pytest.mark.parametrize(
    ("labels", "options", "error", "says"),
    [
        (np.arange(50), {}, DataError, "50 people, 0 of them"),
        (np.zeros(9, int), {}, DataError, "1 people, 1 of them"),
        (np.repeat(np.arange(6), 4), {"count": 20}, DataError, "cannot fill 10 folds: expected 20 people"),
        (np.repeat(np.arange(20), 2), {"count": 100}, DataError, "fold 0 has 2 genuine pairs of 5"),
        (np.repeat(np.arange(4), [9, 9, 1, 1]), {"count": 60, "folds": 2}, DataError, "impostor pairs of 15"),
        (np.repeat(np.arange(20), 2), {"count": 41}, ConfigError, "got 41"),
        (np.repeat(np.arange(20), 2), {"folds": 1}, ConfigError, "got 1"),
        (np.repeat(np.arange(20), 2), {"seed": -1}, ConfigError, "got -1 and 15"),
        (np.repeat(np.arange(20), 2), {"max_genuine": 0}, ConfigError, "got 0 and 0"),
        (np.repeat(np.arange(20), 2), {"age_gap": (np.zeros(3), 1.0)}, ConfigError, "ages of all 40"),
    ],
)
def test_impossible_pairs_are_refused(labels, options, error, says):
    with pytest.raises(error, match=says):
        make_pairs(labels, **options)


# ------------------------------------------------------------------------------------------------------ procedural


def test_procedural_keeps_its_promises(tiny):
    splits = tiny()
    assert isinstance(splits, Splits)
    for split, classes in zip((splits.train, splits.validation, splits.test), TINY["identities"], strict=True):
        assert split.images.shape == (classes * 6, 12, 12, 3)
        assert isinstance(split.images, np.memmap)
        np.testing.assert_array_equal(np.bincount(split.labels), np.full(classes, 6))
        assert (split.labels.dtype, split.age.dtype) == (np.int64, np.float32)
        # one image in each sixth of the range of ages
        strata = np.sort(((split.age - 18) / 60 * 6).astype(int).reshape(classes, 6), axis=1)
        np.testing.assert_array_equal(strata, np.tile(np.arange(6), (classes, 1)))
        np.testing.assert_array_equal(split.nuisance[:, 1], split.age)
        want = TinyModel().images(torch.from_numpy(split.identity)[split.labels], torch.from_numpy(split.nuisance), 12)
        np.testing.assert_array_equal(split.images, (want * 255).round().permute(0, 2, 3, 1).byte().numpy())
    assert splits.train.pairs is None
    for split, count in ((splits.validation, 16), (splits.test, 40)):
        assert len(split.pairs) == count
        hold_laws(split.pairs, split.labels, 4, None)
        assert np.abs(split.age[split.pairs.left] - split.age[split.pairs.right]).min() >= 30
    people = np.concatenate([s.identity for s in (splits.train, splits.validation, splits.test)])
    assert len(np.unique(people[:, 0])) == sum(TINY["identities"])
    assert len({splits.train.digest, splits.validation.digest, splits.test.digest, splits.digest}) == 4


def test_procedural_renders_once(tiny, monkeypatch):
    first = tiny()
    drawn = TinyModel.renders
    second = tiny()
    assert TinyModel.renders == drawn > 0
    assert first.digest == second.digest
    np.testing.assert_array_equal(first.test.images, second.test.images)
    np.testing.assert_array_equal(first.test.pairs.left, second.test.pairs.left)
    assert tiny(pairs=(16, 16)).test.digest != first.test.digest
    assert TinyModel.renders == drawn  # other pairs need no other images


@pytest.mark.parametrize("change", [{"seed": 1}, {"size": 13}, {"images": 7}, {"face": {"seed": 3}}], ids=str)
def test_other_parameters_are_other_data(tiny, change):
    first = tiny()
    drawn = TinyModel.renders
    other = tiny(**change)
    assert TinyModel.renders > drawn
    assert other.digest != first.digest


def test_a_new_renderer_is_other_data(tiny, monkeypatch):
    first = tiny()
    monkeypatch.setattr(renderer, "RENDERER_VERSION", "another")
    assert tiny().digest != first.digest


def test_test_people_do_not_depend_on_the_training_set(tiny):
    small, large = tiny(), tiny(identities=(20, 8, 10))
    np.testing.assert_array_equal(small.test.images, large.test.images)
    np.testing.assert_array_equal(small.test.pairs.left, large.test.pairs.left)


def test_two_at_a_time_render_once(tiny, monkeypatch):
    monkeypatch.setattr(TinyModel, "pause", 0.05)
    results: list[Splits] = []
    workers = [threading.Thread(target=lambda: results.append(tiny())) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert TinyModel.renders == 3  # one batch a split
    assert len({splits.digest for splits in results}) == 1
    assert len(results) == 3


def test_a_killed_render_leaves_nothing_that_looks_finished(tiny, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards.NpyWriter, "append", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tiny()
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]
    folder = next((tmp_path / "cache").iterdir()).with_suffix("")
    stale = folder.with_name(folder.name + ".tmp")  # what a kill -9 leaves
    stale.mkdir()
    (stale / "rubbish.npy").write_bytes(b"x")
    tiny()
    assert not stale.exists()
    assert not (folder / "rubbish.npy").exists()


def test_a_full_disk_is_one_error_and_leaves_nothing(tiny, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.NpyWriter, "append", full)
    with pytest.raises(RunError, match=r"no space left.*LRKD_CACHE"):
        tiny()
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_broken_cache_names_its_file(tiny, tmp_path):
    tiny()
    file = next((tmp_path / "cache").glob("*/test-images.npy"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"test-images.npy.*rendered again"):
        tiny()


def test_cache_dir_comes_from_argument_then_environment(monkeypatch):
    monkeypatch.delenv("LRKD_CACHE", raising=False)
    assert cache_dir() == Path(".cache/lrkd")
    monkeypatch.setenv("LRKD_CACHE", "/somewhere")
    assert cache_dir() == Path("/somewhere")
    assert cache_dir("here") == Path("here")


def test_a_cache_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="LRKD_CACHE"):
        tiny(cache=tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"size": 4}, ConfigError, "size=4"),
        ({"images": 1}, ConfigError, "images=1"),
        ({"identities": (8, 3, 8)}, ConfigError, "identities"),
        ({"identities": (8, 8)}, ConfigError, "identities"),
        ({"face": {"nose": 2}}, ConfigError, "nose"),
        ({"face": {"seed": {1, 2}}}, ConfigError, "plain"),
        ({"pairs": (16, 41)}, ConfigError, "got 41"),
        ({"pairs": (16, 4000)}, DataError, "genuine pairs"),
    ],
    ids=str,
)
def test_impossible_procedural_sets_are_refused(tiny, change, error, says):
    with pytest.raises(error, match=says):
        tiny(**change)


def test_values_that_are_not_finite_are_refused(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(TinyModel, "images", lambda self, i, n, size: torch.full((len(i), 3, size, size), torch.nan))
    with pytest.raises(DataError, match="not finite"):
        tiny()
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_the_real_renderer_fits(tmp_path):
    splits = RenderedSplits(16, (4, 4, 4), 4, (4, 4), folds=2, face={"nuisance_scale": 0.5}).splits(tmp_path)
    assert splits.train.images.std() > 10
    assert splits.train.nuisance.shape == (16, len(renderer.FaceModel().nuisance_names))
    assert splits.train.identity.shape == (4, 64)


# -------------------------------------------------------------------------------------------------------- prepared


def write_layout(folder: Path, counts: list[int], shards: int = 2, splits: dict | None = None) -> None:
    """The layout of data_prep/README.md, written naively: `counts` images of each person."""
    folder.mkdir()
    n = sum(counts)
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(3).integers(256, size=(n, 6, 6, 3)).astype(np.uint8)
    listed = []
    for i, part in enumerate(np.array_split(images, shards)):
        path = folder / f"images-{i:05d}.npy"
        np.save(path, part)
        listed.append({"file": path.name, "images": len(part), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    with (folder / "manifest.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(("index", "label", "name", "source", "sha256"))
        for i, label in enumerate(labels):
            out.writerow((i, label, f"P{label:03d}", f"P{label:03d}/{i}.jpg", hashlib.sha256(images[i]).hexdigest()))
    first = np.searchsorted(labels, np.arange(len(counts)))
    able = [k for k in range(len(counts)) if counts[k] > 1]
    with (folder / "pairs.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(("left", "right", "same", "fold", "protocol"))
        for k in able:
            out.writerow((first[k], first[k] + 1, 1, k % 2, "all"))
        out.writerow((first[0], first[-1], 0, 0, "all"))
        for k in able[-3:]:
            out.writerow((first[k], first[k] + 1, 1, 0, "last"))
    meta = {"name": "toy", "size": 6, "crop": None, "counts": {"images": n}, "shards": listed, "splits": splits or {}}
    (folder / "meta.json").write_text(json.dumps(meta))


COUNTS = [4, 1, 3, 2, 1, 5, 2, 2, 3, 1, 2, 4, 3, 2, 1, 2, 3, 2, 2, 3]
VIEW1 = {"train": list(range(12)), "test": list(range(12, 20))}


@pytest.fixture
def toy(tmp_path):
    write_layout(tmp_path / "toy", COUNTS)
    return tmp_path / "toy"


@pytest.fixture
def toy_split(tmp_path):
    write_layout(tmp_path / "split", COUNTS, splits=VIEW1)
    return tmp_path / "split"


def test_load_prepared_gives_everything(toy):
    whole = load_prepared(toy, checksum=True)
    assert len(whole.faces) == sum(COUNTS)
    assert whole.faces.names == tuple(f"P{k:03d}" for k in range(20))
    images = np.concatenate([np.load(f) for f in sorted(toy.glob("*.npy"))])
    np.testing.assert_array_equal(whole.faces.images[:], images)
    assert list(whole.protocols) == ["all", "last"]
    assert len(whole.protocol("last").pairs) == 3
    with pytest.raises(ConfigError, match="all, last"):
        whole.protocol("view2")


def names_of(splits: Splits) -> list[set[str]]:
    return [set(part.names) for part in (splits.train, splits.validation, splits.test)]


def test_defined_splits_are_kept_and_validation_comes_out_of_train(toy_split):
    splits = prepared(toy_split, validation=0.4)
    train, validation, test = names_of(splits)
    assert test == {f"P{k:03d}" for k in VIEW1["test"]}
    assert len(validation) == 5
    assert train | validation <= {f"P{k:03d}" for k in VIEW1["train"]}
    assert not train & validation
    assert {f"P{k:03d}" for k in VIEW1["train"] if COUNTS[k] > 1} <= train | validation
    assert np.bincount(splits.train.labels).min() >= 2  # people with one image are not trained on
    everyone = prepared(toy_split, validation=0.4, min_images=1)
    assert len(set(everyone.train.names) | validation) == 12
    whole = load_prepared(toy_split).faces
    for part in (splits.train, splits.validation, splits.test):
        rows = np.flatnonzero(np.isin(np.array(whole.names)[whole.labels], part.names))
        np.testing.assert_array_equal(part.images[:], whole.images[rows])
        np.testing.assert_array_equal(np.array(part.names)[part.labels], np.array(whole.names)[whole.labels[rows]])
    for part in (splits.validation, splits.test):
        hold_laws(part.pairs, part.labels, part.pairs.fold.max() + 1, 15)


def test_without_splits_people_are_dealt_70_10_20(tmp_path):
    write_layout(tmp_path / "many", [2] * 40)
    splits = prepared(tmp_path / "many")
    assert [len(names) for names in names_of(splits)] == [28, 4, 8]
    assert len(set().union(*names_of(splits))) == 40
    assert prepared(tmp_path / "many").digest == splits.digest
    other = prepared(tmp_path / "many", seed=1)
    assert names_of(other) != names_of(splits)
    assert other.digest != splits.digest


def test_small_sets_keep_enough_people_to_verify(tmp_path):
    write_layout(tmp_path / "few", [2] * 12)
    assert [len(names) for names in names_of(prepared(tmp_path / "few"))] == [4, 4, 4]
    write_layout(tmp_path / "fewer", [2] * 8)
    with pytest.raises(DataError, match="fewer: 8 people: validation and test take at least four each"):
        prepared(tmp_path / "fewer")


def test_resized_images_are_what_pillow_makes_of_them(toy_split):
    splits = prepared(toy_split, validation=0.4)
    small = resized(splits, 3)
    for old, new in ((splits.train, small.train), (splits.test, small.test)):
        want = [Image.fromarray(image).resize((3, 3), Image.Resampling.BILINEAR) for image in old.images[:]]
        assert np.abs(new.images.astype(int) - np.stack(want)).max() <= 1
        assert new.digest != old.digest
        np.testing.assert_array_equal(new.labels, old.labels)
    assert resized_faces(splits.train, 6) is splits.train
    with pytest.raises(DataError, match=r"6 x 6 px and this scale needs 7 px.*--size 7"):
        resized(splits, 7)


def test_a_protocol_replaces_the_test_pairs_unless_it_leaks(toy_split):
    splits = prepared(toy_split, validation=0.4, protocol="last")
    whole = load_prepared(toy_split)
    mine, all_ = splits.test.pairs, whole.protocols["last"]
    np.testing.assert_array_equal(splits.test.images[mine.left], whole.faces.images[all_.left])
    np.testing.assert_array_equal(splits.test.images[mine.right], whole.faces.images[all_.right])
    with pytest.raises(DataError, match=r"protocol 'all' are not in the test split \(first: P000\).*load_prepared"):
        prepared(toy_split, validation=0.4, protocol="all")
    with pytest.raises(ConfigError, match=r"protocol 'view3'.*all, last"):
        prepared(toy_split, validation=0.4, protocol="view3")


def test_single_image_people_leave_no_pairs_and_the_split_is_named(tmp_path):
    write_layout(tmp_path / "a", [1] * 8 + [2] * 8, splits={"train": list(range(8)), "test": list(range(8, 16))})
    with pytest.raises(DataError, match=r"of its 16 people 4 are there to train on .* none of these has 2 images"):
        prepared(tmp_path / "a", validation=0.5)
    write_layout(tmp_path / "b", [2] * 12 + [1] * 8, splits=VIEW1)
    with pytest.raises(DataError, match="b, test split: 8 people, 0 of them with a genuine pair"):
        prepared(tmp_path / "b", validation=0.4)
    with pytest.raises(
        ConfigError, match=r"validation: expected a share of the training people between 0 and 1, got 1\.5"
    ):
        prepared(tmp_path / "b", validation=1.5)


def test_age_column_is_read(toy):
    table = pd.read_csv(toy / "manifest.csv")
    table["age"] = np.linspace(18, 80, len(table))
    table.to_csv(toy / "manifest.csv", index=False)
    np.testing.assert_allclose(load_prepared(toy).faces.age, table["age"], rtol=1e-6)


def edit(file: str, row: int, column: str, value: object):
    """Set one cell of a CSV."""

    def change(folder: Path) -> None:
        table = pd.read_csv(folder / file, dtype=object, keep_default_na=False)
        table.loc[row, column] = value
        table.to_csv(folder / file, index=False)

    return change


def meta(**values: object):
    def change(folder: Path) -> None:
        old = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**old, **values}))

    return change


def save(file: str, array: np.ndarray):
    return lambda folder: np.save(folder / file, array)


def text(file: str, old: str, new: str):
    return lambda folder: (folder / file).write_text((folder / file).read_text().replace(old, new, 1))


def last_row(file: str):
    return lambda folder: (folder / file).write_text("\n".join((folder / file).read_text().splitlines()[:-1]) + "\n")


def cut(folder: Path) -> None:
    (folder / "images-00001.npy").write_bytes((folder / "images-00001.npy").read_bytes()[:-1])


def swap_pixels(folder: Path) -> None:
    path = folder / "images-00000.npy"
    np.save(path, np.load(path)[::-1])


BROKEN = [
    (lambda f: (f / "meta.json").unlink(), "toy: meta.json is missing"),
    (lambda f: (f / "manifest.csv").unlink(), "toy: manifest.csv is missing"),
    (lambda f: (f / "pairs.csv").unlink(), "toy: pairs.csv is missing"),
    (lambda f: (f / "images-00000.npy").unlink(), "images-00000.npy is missing"),
    (lambda f: (f / "images-00001.npy").unlink(), r"meta.json lists the shards"),
    (lambda f: (f / "images-00001.npy").rename(f / "images-00002.npy"), "images-00001.npy is missing"),
    (lambda f: (f / "meta.json").write_text("{"), "meta.json: not JSON"),
    (lambda f: (f / "meta.json").write_text("[]"), "meta.json: an object is missing"),
    (lambda f: (f / "meta.json").write_text('{"name": "x"}'), r"meta.json: \['size', 'crop', 'counts'\] is missing"),
    (meta(size=7), r"images-00000\.npy: expected uint8 \(n,7,7,3\) by meta\.json, got uint8 \(24, 6, 6, 3\)"),
    (meta(size="6"), r"meta\.json: size: expected the height of the images in pixels, got '6'"),
    (meta(shards=[{"file": "images-00000.npy"}]), "lists the shards"),
    (meta(splits=[1]), "splits is no object of lists"),
    (
        meta(splits={"train": [1]}),
        r"meta\.json: splits: expected train and test, and maybe validation, got \['train'\]",
    ),
    (meta(splits={"train": [0, 1], "test": [1]}), r"label 1 \(P001\) is in splits.train and splits.test"),
    (meta(splits={"train": [0], "test": [20]}), r"meta\.json: splits\.test holds 20: expected labels 0\.\.19"),
    (meta(splits={"train": [0], "test": []}), "splits.test is empty"),
    (cut, "images-00001.npy: cannot be read as .npy, broken or cut short"),
    (
        save("images-00000.npy", np.zeros((24, 6, 6, 3), np.float32)),
        r"images-00000\.npy: expected uint8 \(n,6,6,3\) by meta\.json, got float32 \(24, 6, 6, 3\)",
    ),
    (
        save("images-00000.npy", np.zeros((24, 6, 6), np.uint8)),
        r"images-00000\.npy: expected uint8 \(n,6,6,3\) by meta\.json, got uint8 \(24, 6, 6\)",
    ),
    (save("images-00000.npy", np.zeros((5, 6, 6, 3), np.uint8)), "images-00000.npy: 5 images: meta.json says 24"),
    (lambda f: (f / "images-00000.npy").write_bytes(b"no npy"), "images-00000.npy: cannot be read"),
    (
        last_row("manifest.csv"),
        r"manifest\.csv: expected one row an image, got 47 rows for 48 images in the \.npy files",
    ),
    (text("manifest.csv", "label", "lable"), "manifest.csv: no column label"),
    (lambda f: (f / "manifest.csv").write_text(""), "manifest.csv: no column index, label"),
    (lambda f: (f / "manifest.csv").write_bytes(b"\xff\xfe\x00"), "manifest.csv: cannot be read as UTF-8"),
    (text("manifest.csv", "P000,P000/1.jpg", "P000,x,P000/1.jpg"), r"manifest\.csv line 3: expected 5 fields, got 6"),
    (edit("manifest.csv", 5, "index", 4), r"manifest\.csv line 7: index: expected 5 \(rows count from 0\), got 4"),
    (edit("manifest.csv", 5, "index", "5.0"), r"manifest\.csv line 7: index: expected a whole number, got '5\.0'"),
    (edit("manifest.csv", 5, "label", "x"), r"manifest\.csv line 7: label: expected a whole number, got 'x'"),
    (edit("manifest.csv", 5, "label", -1), r"manifest\.csv line 7: label: expected 0 or more, got -1"),
    (edit("manifest.csv", 47, "label", 30), r"no image has label 20 \(of 0..30; 10 such empty identities\)"),
    (edit("manifest.csv", 47, "label", 10**9), "label 1000000000 for 48 images"),
    (edit("manifest.csv", 4, "label", 2), "no image has label 1"),
    (
        edit("manifest.csv", 1, "name", "Eve"),
        r"manifest\.csv line 3: label 0: expected one name, got 'Eve' here and 'P000' above",
    ),
    (
        edit("manifest.csv", 4, "name", "A"),
        r"manifest\.csv line 6: expected labels in the order of the names, got 'P000' for 0 and 'A' for 1",
    ),
    (
        edit("manifest.csv", 4, "name", "P000"),
        r"manifest\.csv line 6: expected labels in the order of the names, got 'P000' for 0 and 'P000' for 1",
    ),
    (edit("manifest.csv", 9, "source", "P000/1.jpg"), "line 11: source 'P000/1.jpg' comes twice"),
    (
        edit("manifest.csv", 9, "sha256", "abc"),
        r"manifest\.csv line 11: sha256: expected 64 lower-case hexadecimal digits, got 'abc'",
    ),
    (edit("manifest.csv", 9, "age", "old"), "column age"),
    (edit("pairs.csv", 0, "left", 48), r"pairs\.csv line 2: left: expected 0\.\.47, got 48"),
    (edit("pairs.csv", 0, "right", -1), r"pairs\.csv line 2: right: expected 0\.\.47, got -1"),
    (edit("pairs.csv", 0, "same", 2), r"pairs\.csv line 2: same: expected 0 or 1, got 2"),
    (edit("pairs.csv", 0, "same", "yes"), r"pairs\.csv line 2: same: expected a whole number, got 'yes'"),
    (edit("pairs.csv", 0, "same", 0), r"pairs\.csv line 2: same: expected 1, as the labels are 0 and 0, got 0"),
    (edit("pairs.csv", 0, "right", 0), "line 2: image 0 is paired with itself"),
    (edit("pairs.csv", 0, "fold", -1), r"pairs\.csv line 2: fold: expected 0 or more, got -1"),
    (text("pairs.csv", "0,1,1,0,all", "0,1,1,0,all\n1,0,1,0,all"), "line 3: pair 1,0 comes twice in protocol 'all'"),
    (text("pairs.csv", "protocol", "kind"), "pairs.csv: no column protocol"),
]


@pytest.mark.parametrize(("change", "says"), BROKEN, ids=[says[:48] for _, says in BROKEN])
def test_a_broken_folder_is_one_clear_error(toy, change, says):
    load_prepared(toy)
    change(toy)
    for read in (load_prepared, prepared):
        with pytest.raises(DataError, match=says):
            read(toy)


def test_more_bad_rows_are_counted(toy):
    for row in (3, 8):
        edit("pairs.csv", row, "fold", -1)(toy)
    with pytest.raises(
        DataError, match=r"pairs\.csv line 5: fold: expected 0 or more, got -1 \(and 1 more such rows\)"
    ):
        load_prepared(toy)


def test_checksum_sees_changed_pixels(toy):
    swap_pixels(toy)
    load_prepared(toy)  # rows and shapes still fit
    with pytest.raises(DataError, match=r"images-00000.npy: its sha256 is not the one in meta.json"):
        load_prepared(toy, checksum=True)


def test_pickles_are_not_loaded(toy):
    np.save(toy / "images-00000.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"images-00000.npy"):
        load_prepared(toy)


def test_no_such_folder(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder.*data_prep"):
        prepared(tmp_path / "nowhere")


def test_a_name_that_reads_as_missing_is_a_name(tmp_path):
    write_layout(tmp_path / "x", [2, 2])
    for row in (0, 1):
        edit("manifest.csv", row, "name", "NA")(tmp_path / "x")
    assert load_prepared(tmp_path / "x").faces.names == ("NA", "P001")


@pytest.mark.parametrize(
    "more",
    [
        {"indices": []},
        {"indices": np.zeros(0, np.int64)},
        {"indices": np.zeros(24, bool)},
        {"labels": []},
        {"labels": [99]},
    ],
)
def test_a_subset_of_nothing_is_refused_and_says_what_there_is(more):
    table = faces()
    if more.get("indices") is not None and np.asarray(more["indices"]).dtype == bool:
        more = {"indices": np.zeros(len(table), bool)}
    with pytest.raises(ConfigError, match=rf"(indices|labels) choose no row; .* {len(table)} rows"):
        table.subset(**more)


@pytest.mark.parametrize("bad", [[10_000], [0.5], 3, np.ones(3, bool)])
def test_rows_that_a_table_does_not_have_are_refused(bad):
    with pytest.raises(ConfigError, match=r"subset of .* rows: "):
        faces().subset(bad)


def test_a_subset_is_other_data():
    table = faces()
    digests = {table.subset(rows).digest for rows in ([0, 1], [1, 0], [0, 2])} | {table.digest}
    assert len(digests) == 4
    assert table.subset([1, 0]).digest == table.subset([1, 0]).digest


# ----------------------------------------------------------------------------------- missing faces, and who is shared


def with_column(folder: Path, name: str, values: list[object]) -> None:
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    table[name] = values
    table.to_csv(folder / "manifest.csv", index=False)


def test_missing_faces_stay_rows_but_are_not_trained_on(toy_split):
    missing = np.arange(sum(COUNTS)) % 4 == 0
    full = prepared(toy_split, validation=0.4)
    assert full.train.missing is None
    with_column(toy_split, "missing", missing.astype(int).tolist())
    whole = load_prepared(toy_split)
    np.testing.assert_array_equal(whole.faces.missing, missing)
    assert len(whole.protocol("all").pairs) == len(whole.protocols["all"])
    splits = prepared(toy_split, validation=0.4)
    assert not splits.train.missing.any()
    assert np.bincount(splits.train.labels).min() >= 2
    for part, before in ((splits.validation, full.validation), (splits.test, full.test)):
        np.testing.assert_array_equal(part.images[:], before.images[:])
        np.testing.assert_array_equal(part.pairs.left, before.pairs.left)
        assert part.missing.any()
        row = [whole.faces.sources.index(source) for source in part.sources]
        np.testing.assert_array_equal(part.missing, missing[row])
    np.testing.assert_array_equal(resized_faces(splits.test, 3).missing, splits.test.missing)


@pytest.mark.parametrize("value", ["", "2", "yes", "1.0", "-1"])
def test_a_missing_face_is_0_or_1(toy, value):
    with_column(toy, "missing", [0, 1, value] + [0] * (sum(COUNTS) - 3))
    with pytest.raises(
        DataError, match=r"manifest.csv line 4: missing: expected 1 where no face was found, else 0, got '"
    ):
        load_prepared(toy)


def named(*rows: tuple[str, str]) -> Faces:
    """Faces of (person, what the file's bytes are)."""
    names = tuple(sorted({person for person, _ in rows}))
    return faces(
        n=len(rows),
        images=np.zeros((len(rows), 4, 4, 3), np.uint8),
        labels=np.array([names.index(person) for person, _ in rows]),
        names=names,
        pairs=None,
        sha256=np.array([hashlib.sha256(data.encode()).hexdigest() for _, data in rows], dtype="S64"),
    )


@pytest.mark.parametrize(
    ("trained", "tested", "people", "images"),
    [
        ([("Ada", "1")], [("Ben", "2"), ("Cy", "3")], (), []),
        ([("Ada", "1")], [("Ben", "1"), ("Ben", "3"), ("Cy", "4")], ("Ben",), [0]),
        ([("Zoë_Li", "1"), ("Ada", "2")], [("zoe li", "3"), ("Eve", "4")], ("zoe li",), []),
        ([("00000001", "1"), ("00000002", "2")], [("00000001", "3")], (), []),
        ([("p1", "1"), ("p2", "2")], [("p1", "1"), ("p2", "3"), ("p3", "4")], ("p1", "p2"), [0]),
        ([("p1", "1"), ("p2", "2")], [("p2", "1"), ("p1", "3")], ("p2",), [0]),
        ([("---", "1")], [("***", "2")], (), []),
    ],
)
def test_people_of_two_tables_are_told_by_name_and_by_bytes(trained, tested, people, images):
    found = overlap(named(*trained), named(*tested))
    assert (found.people, np.flatnonzero(found.images).tolist()) == (people, images)
    assert found.rows.tolist() == [person in people for person, _ in tested]
    assert bool(found) == bool(people)


def test_an_overlap_says_how_many_and_rendered_faces_share_nothing():
    found = overlap(named(("Ada", "1"), ("Ben", "2")), named(("Ada", "1"), ("Ada", "3"), ("Ben", "4"), ("Cy", "5")))
    assert str(found) == "2 people (first Ada) with 3 of 4 images, 1 of them the very same files"
    assert not overlap(faces(), named(("a", "1")))
    assert not overlap(named(("a", "1")), faces())


def test_a_split_that_shares_people_with_training_is_said(toy_split):
    table = pd.read_csv(toy_split / "manifest.csv")
    first, last = (int(np.flatnonzero(table["label"] == label)[0]) for label in (5, 16))
    table.loc[last, "sha256"] = table.loc[first, "sha256"]
    table.to_csv(toy_split / "manifest.csv", index=False)
    for seed in range(8):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            splits = prepared(toy_split, validation=0.4, seed=seed)
        shared = "P005" in splits.train.names
        assert [str(w.message).rpartition("split: ")[2] for w in said] == shared * [
            f"1 people (first P016) with {COUNTS[16]} of {len(splits.test)} images, 1 of them the very same files"
        ]


def test_copies_take_no_part_in_pairs():
    labels = np.repeat(np.arange(6), 4)
    digests = np.array([f"{k % 4}{label}" for k, label in enumerate(labels)])
    digests[[1, 7, 20]] = digests[[0, 4, 8]]
    unique = mark_copies(labels, digests)
    assert np.flatnonzero(unique != labels).tolist() == [1, 7, 20]
    pairs = make_pairs(unique, None, folds=3)
    assert not {1, 7, 20} & {*pairs.left.tolist(), *pairs.right.tolist()}
    hold_laws(pairs, labels, 3, 15)
    rest = np.flatnonzero(unique >= 0)
    alone = make_pairs(labels[rest], None, folds=3)
    np.testing.assert_array_equal(pairs.left, rest[alone.left])


def test_a_count_may_be_the_most_that_is_wanted():
    labels = np.repeat(np.arange(6), 2)
    pairs = make_pairs(labels, 6000, 10, at_most=True)
    hold_laws(pairs, labels, 3, 15)
    assert len(pairs) == 12
    plenty = np.repeat(np.arange(20), 5)
    np.testing.assert_array_equal(make_pairs(plenty, 60, 10, at_most=True).left, make_pairs(plenty, 60, 10).left)


def test_pairs_touch_the_rows_of_either_image():
    pairs = Pairs(np.array([0, 1, 2]), np.array([1, 2, 3]), np.ones(3, bool), np.arange(3))
    assert pairs.touch(np.array([False, True, False, False])).tolist() == [True, True, False]
    assert pairs.touch(None).tolist() == [False] * 3


@pytest.mark.parametrize("seed", range(5))
def test_balanced_pairs_are_half_genuine_in_each_fold_and_lose_no_more_than_they_must(seed):
    rng = np.random.default_rng(seed)
    n = 200
    pairs = Pairs(*rng.integers(0, 99, (2, n)), rng.random(n) < 0.3, rng.integers(0, 7, n), "p")
    even = pairs.balanced(seed)
    for fold in range(7):
        both = [int((pairs.same[pairs.fold == fold] == kind).sum()) for kind in (True, False)]
        kept = even.same[even.fold == fold]
        assert kept.sum() == (~kept).sum() == min(both)
    rows = [tuple(row) for row in np.stack([pairs.left, pairs.right, pairs.same, pairs.fold], 1)]
    found = [tuple(row) for row in np.stack([even.left, even.right, even.same, even.fold], 1)]
    at = iter(rows)
    assert all(row in at for row in found), "in their order, and each once"
    assert even.protocol == "p"
    assert even.balanced(1).same.tolist() == even.same.tolist(), "nothing more to leave out"
    assert Pairs(pairs.left, pairs.right, np.ones(n, bool), pairs.fold).balanced() is None
