"""The table of the photograph student by side and framing: what is shown, who is scored, where errors are counted."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import outside_teacher
from book import photo_sides as sides
from book.student_photos import pixels
from lrkd.data.alignment import TEMPLATE
from lrkd.data.degradation import degrade
from lrkd.data.pairs import Pairs
from lrkd.data.prepared import Prepared
from lrkd.data.tables import Faces
from lrkd.errors import DataError
from lrkd.evaluation.verification import kfold_verification
from lrkd.onnx import recogniser


def lfw(people: int = 40, images: int = 3, seed: int = 0) -> Prepared:
    """People of 112 px with a pattern each, dealt to two splits, and pairs of all of them in ten folds."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people), images)
    pattern = rng.integers(40, 216, (people, 7, 7, 3)).repeat(16, 1).repeat(16, 2)
    noisy = np.clip(pattern[labels] + rng.integers(-30, 31, (len(labels), 112, 112, 3)), 0, 255).astype(np.uint8)
    names = tuple(f"person {chr(65 + k // 26)}{chr(65 + k % 26)}" for k in range(people))
    faces = Faces(noisy, labels, None, None, names, "lfw", "x")
    same = np.arange(2 * people) % 2 == 0
    left = np.repeat(np.arange(people), 2) * images
    right = np.where(same, left + 1, (left + 2 * images) % len(labels))
    pairs = Pairs(left, right, same, np.arange(2 * people) // 8, "view2")
    half = np.arange(people) < people // 2
    return Prepared(faces, {"view2": pairs}, {}, splits={"train": np.flatnonzero(half), "test": np.flatnonzero(~half)})


def test_whoever_may_have_been_trained_on_is_left_out():
    whole = lfw()
    held = SimpleNamespace(names=whole.faces.names[:3], labels=np.array([0, 1, 1, 2]))
    assert sides.taught(whole, SimpleNamespace(validation=held)) == set(whole.faces.names[3:20])


def test_the_networks_are_shown_what_the_side_leaves(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    found = sides.degraded(images, 16)
    assert np.abs(found - (degrade(x, 16) * 255).permute(0, 2, 3, 1).numpy()).max() <= 0.5 + 1e-3
    name, embed = sides.student(sides.RESULTS / "photo-student.onnx")
    assert name == "photo-student.onnx"
    network = recogniser.load(sides.RESULTS / name)
    plain = network((degrade(x, 16, enlarge=False) * 2 - 1).numpy())
    np.testing.assert_allclose(embed(images, 16), plain, atol=1e-4)
    assert embed(images, 8).shape == embed(images, 48).shape == plain.shape
    monkeypatch.setattr(outside_teacher, "embeddings", lambda path, seen, rows: seen[rows])
    name, embed = sides.outside(Path("x/net.tflite"))
    assert name == "net.tflite"
    np.testing.assert_array_equal(embed(images, 16), found)


def test_nobody_who_was_trained_on_is_shown_and_half_the_pairs_are_genuine():
    whole = lfw()
    trained = set(whole.faces.names[:13])
    pairs, gallery, probes = sides.shown(whole, trained)
    labels = whole.faces.labels
    for rows in (pairs.left, pairs.right, gallery, probes):
        assert not trained & {whole.faces.names[label] for label in labels[rows]}
    for fold in np.unique(pairs.fold):
        assert pairs.same[pairs.fold == fold].mean() == 0.5
    assert sorted(labels[gallery]) == list(range(20, 40))
    assert len(probes) == 2 * 20
    with pytest.raises(DataError, match="expected LFW whole"):
        sides.shown(whole, set(whole.faces.names))


def test_a_row_is_verification_and_rank_1_with_their_intervals():
    whole = lfw()
    pairs, gallery, probes = sides.shown(whole, set())
    x = pixels(whole.faces.images)
    row, verified, hits = sides.measured(x, whole, pairs, gallery, probes)
    expected = kfold_verification(x[pairs.left], x[pairs.right], pairs.same, pairs.fold)
    assert row["accuracy"] == pytest.approx(expected.correct.mean())
    np.testing.assert_array_equal(verified.correct, expected.correct)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    nearest = gallery[(unit[probes] @ unit[gallery].T).argmax(1)]
    assert row["rank1"] == pytest.approx((whole.faces.labels[nearest] == whole.faces.labels[probes]).mean())
    np.testing.assert_array_equal(hits, whole.faces.labels[nearest] == whole.faces.labels[probes])
    assert row["low"] <= row["accuracy"] <= row["high"]
    assert row["rank1_low"] <= row["rank1"] <= row["rank1_high"]
    assert (row["pairs"], row["probes"], row["missed"]) == (len(pairs), len(probes), 0)


def test_size_and_turns_are_those_of_the_landmarks():
    turn = 1.5 * np.array([[0.8, -0.6], [0.6, 0.8]])
    aside, down = TEMPLATE.copy(), TEMPLATE.copy()
    aside[2, 0] += 0.2 * 35.2372
    down[2, 1] += 0.1 * 35.2372
    told = sides.poses(np.stack([TEMPLATE, TEMPLATE @ turn.T + 9, TEMPLATE * 0.5, aside, down]))
    np.testing.assert_allclose(told["size"][:3], [112, 168, 56])
    np.testing.assert_allclose(np.diff(told["turned aside"][[0, 3]]), 0.2, atol=0.01)
    np.testing.assert_allclose(told["turned aside"][:3], told["turned aside"][0], atol=1e-9)
    np.testing.assert_allclose(told["turned up or down"], [0, 0, 0, 0, 0.1], atol=0.01)


def test_errors_are_counted_in_thirds_of_the_pairs():
    whole = lfw()
    pairs = whole.protocols["view2"]
    x = np.random.default_rng(0).standard_normal((len(whole.faces), 5))
    verified = kfold_verification(x[pairs.left], x[pairs.right], pairs.same, pairs.fold)
    size = np.random.default_rng(1).random(len(x))
    rows = list(sides.failures(verified, pairs, whole.faces.labels, {"size": size, "turned aside": size}))
    assert [(row["by"], row["third"]) for row in rows] == [
        (by, k) for by in ("size", "turned aside") for k in (1, 2, 3)
    ]
    for row, worse in zip(rows, [np.minimum] * 3 + [np.maximum] * 3, strict=True):
        value = worse(size[pairs.left], size[pairs.right])
        inside = (value >= row["from"]) & ((value < row["to"]) | (row["third"] == 3))
        for kind, same in (("genuine", True), ("impostor", False)):
            some = inside & (pairs.same == same)
            assert row[kind] == some.sum()
            assert row[f"{kind}_errors"] == pytest.approx((~verified.correct[some]).mean())
    assert sum(row["genuine"] + row["impostor"] for row in rows) == 2 * len(pairs)


def test_the_committed_tables_are_whole():
    rows, failed = (
        table.read(sides.RESULTS / f"photo-{name}.csv")
        for table, name in zip(sides.TABLES, ("sides", "failures"), strict=True)
    )
    grid = {(framing, side) for framing in ("five points", "centre") for side in sides.SIDES}
    for _, some in rows.groupby("network"):
        assert set(zip(some["framing"], some["side"], strict=True)) == grid
    for of in ("accuracy", "rank1"):
        low, high = ("low", "high") if of == "accuracy" else ("rank1_low", "rank1_high")
        assert (rows[low].le(rows[of]) & rows[of].le(rows[high])).all()
    own = rows[rows["network"].eq("photo-student.onnx") & rows["framing"].eq("five points") & rows["side"].eq(16)]
    for _, some in failed.groupby("by"):
        assert some["genuine"].sum() == some["impostor"].sum() == own["pairs"].item() / 2
        errors = (some["genuine"] * some["genuine_errors"] + some["impostor"] * some["impostor_errors"]).sum()
        assert 1 - errors / own["pairs"].item() == pytest.approx(own["accuracy"].item(), abs=1e-3)
