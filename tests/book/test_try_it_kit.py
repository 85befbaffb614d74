"""What the page Try it is given, and the pipeline that its script repeats."""

import base64
import io
import json
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from kit import try_it
from PIL import Image

from lrkd.data import alignment
from lrkd.data.degradation import degrade
from lrkd.data.renderer import FaceModel
from lrkd.errors import DataError
from lrkd.evaluation import verification
from lrkd.onnx import recogniser

NOISE = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)


class Pixels:
    """A network whose embedding is its input less its mean, times weights."""

    size = 8

    def __init__(self) -> None:
        self.weights = np.random.default_rng(1).normal(size=(3 * self.size**2, 12))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        flat = x.reshape(len(x), -1)
        return ((flat - flat.mean(1, keepdims=True)) @ self.weights).astype(np.float32)


def test_at_its_own_side_a_network_is_given_what_the_study_gives_it():
    given = try_it.seen(NOISE, 16, 16)
    assert (given.shape, given.dtype) == ((3, 3, 16, 16), np.float32)
    network = torch.nn.Flatten()
    network.size = 16
    np.testing.assert_allclose(given, recogniser.inputs(network, NOISE, side=16), atol=1e-6)


@pytest.mark.parametrize("side", [1, 6, 11, 15])
def test_fewer_pixels_are_enlarged_as_degrade_enlarges(side):
    low = degrade(torch.from_numpy(NOISE).permute(0, 3, 1, 2) / 255, side, enlarge=False)
    large = F.interpolate(low, 16, mode="bicubic").clamp(0, 1)
    np.testing.assert_allclose(try_it.seen(NOISE, side, 16), 2 * large.numpy() - 1, atol=1e-5)


@pytest.mark.parametrize("side", [17, 20, 31, 48])
def test_more_pixels_are_shrunk_once_more(side):
    low = degrade(torch.from_numpy(NOISE).permute(0, 3, 1, 2) / 255, side, enlarge=False)
    own = degrade(low, 16, enlarge=False)
    np.testing.assert_allclose(try_it.seen(NOISE, side, 16), 2 * own.numpy() - 1, atol=1e-5)


@pytest.mark.parametrize(("images", "side"), [(NOISE, 0), (NOISE, 49), (NOISE / 255, 6), (NOISE[:, :40], 6)])
def test_other_pictures_and_sides_are_refused(images, side):
    with pytest.raises(DataError, match=f"at side {side} is not uint8"):
        try_it.seen(images, side, 16)


def test_strangers_age_and_are_drawn_once():
    world = FaceModel()
    images, ages, points = try_it.strangers(world, 2, 3, 24, seed=5)
    assert (images.shape, images.dtype, ages.shape) == ((2, 3, 24, 24, 3), np.uint8, (2, 3))
    assert points.shape == (2, 3, 5, 2)
    assert (np.diff(ages) > 0).all()
    np.testing.assert_array_equal(images, try_it.strangers(world, 2, 3, 24, seed=5).images)
    assert not np.array_equal(images, try_it.strangers(world, 2, 3, 24, seed=6).images)


def test_landmarks_lie_on_the_parts_that_are_drawn(monkeypatch):
    world, kept = FaceModel(), []
    images = world.images
    monkeypatch.setattr(world, "images", lambda who, how, size: kept.append((who, how)) or images(who, how, size=size))
    points = try_it.strangers(world, 4, 3, 64, seed=1).points.reshape(-1, 5, 2)
    masks = world(*kept[0], size=64, masks=True)[1]
    at = np.arange(64)
    for part, landmarks in (("eyes", points[:, :2]), ("mouth", points[:, 3:])):
        shown = masks[part][:, 0].double().numpy()
        centre = np.stack([(shown.sum(1) * at).sum(1), (shown.sum(2) * at).sum(1)], 1) / shown.sum((1, 2))[:, None]
        off = landmarks.mean(1) - centre
        assert np.abs(off).max() < 5, "the turn of the head moves them a little"
        assert np.abs(off.mean(0)).max() < 1.5
    assert (points[:, 0, 0] < points[:, 1, 0]).all()


def test_occlusion_is_what_covering_changes():
    network, (left, right) = Pixels(), try_it.seen(NOISE[:2], 8, 8)
    similarity, maps = try_it.occlusion(network, left, right)
    assert similarity == pytest.approx(
        verification.cosine_scores(network(left[None]), network(right[None]))[0], abs=1e-6
    )
    total, count = np.zeros((8, 8)), np.zeros((8, 8))
    for top in (0, 2, 4):
        for start in (0, 2, 4):
            covered = right.copy()
            for colour in range(3):
                covered[colour, top : top + 4, start : start + 4] = right[colour].mean()
            fall = similarity - verification.cosine_scores(network(left[None]), network(covered[None]))[0]
            total[top : top + 4, start : start + 4] += fall
            count[top : top + 4, start : start + 4] += 1
    np.testing.assert_allclose(maps[1], total / count, atol=1e-6)


def test_nothing_is_hidden_in_a_picture_of_one_colour():
    plain, other = np.full((3, 8, 8), 0.25, np.float32), try_it.seen(NOISE[:1], 8, 8)[0]
    plain[:, 0, :2] = 0.2, 0.3  # or its embedding would have no direction
    _, maps = try_it.occlusion(Pixels(), plain, other)
    assert np.abs(maps[0][4:, 4:]).max() < 1e-5 < np.abs(maps[0][:2, :2]).max()


def test_the_same_picture_twice_can_only_lose():
    left = try_it.seen(NOISE[:1], 8, 8)[0]
    similarity, maps = try_it.occlusion(Pixels(), left, left)
    assert similarity == pytest.approx(1)
    assert maps.min() >= -1e-9


TABLE = pd.DataFrame(
    {"side": [8, 16], "threshold": [0.3, 0.2], "false_match_rate": [0.2, 0.1], "people": [5, 5]}
    | {kind: [" ".join(map(str, range(100)))] * 2 for kind in ("genuine", "impostor")}
)


def test_the_page_holds_its_data():
    network = SimpleNamespace(size=16, metadata=dict.fromkeys(("trained_on", "not_for", "threshold_data"), "a < b"))
    drawn = try_it.strangers(FaceModel(), 2, 3, 24, seed=5)
    text = try_it.tool(network, TABLE, drawn)._repr_html_()
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    assert (data["size"], data["aligned"], data["card"]["not_for"]) == (16, 112, "a < b")
    np.testing.assert_allclose(data["template"], alignment.TEMPLATE)
    assert [row["side"] for row in data["scores"]] == [8, 16]
    assert data["scores"][1]["genuine"] == list(range(100))
    file = io.BytesIO(base64.b64decode(data["people"][1][2]["webp"]))
    np.testing.assert_array_equal(np.asarray(Image.open(file)), drawn.images[1, 2])
    np.testing.assert_allclose(data["people"][1][2]["points"], drawn.points[1, 2], atol=0.01)


def test_a_panel_a_side_is_drawn():
    fig = try_it.distributions(TABLE)
    assert [ax.get_title("left") or ax.get_title() for ax in fig.axes] == [
        f"{row.side} px: {row.threshold:.2f}" for row in TABLE.itertuples()
    ]
    plt.close(fig)
