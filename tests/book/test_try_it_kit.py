"""What the page Try it is given, and the pipeline that its script repeats."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kit import try_it

from lrkd.data.degradation import degrade
from lrkd.data.renderer import FaceModel
from lrkd.data.tables import Faces
from lrkd.errors import DataError
from lrkd.evaluation import separation, verification
from lrkd.onnx import recogniser
from lrkd.study import presets, spec

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


def test_scores_are_those_of_the_pairs(smoke):
    test, network = spec.splits(presets.SCALES["smoke"]).test, Pixels()
    found = try_it.scores(network, test, [4, 8])
    assert [one.side for one in found] == [4, 8]
    features = network(try_it.seen(np.asarray(test.images), 8, 8))
    values = verification.cosine_scores(features[test.pairs.left], features[test.pairs.right])
    genuine = test.pairs.same
    np.testing.assert_array_equal(found[1].genuine, np.histogram(values[genuine], try_it.BINS, (-1, 1))[0])
    assert found[1].impostor.sum() == (~genuine).sum()
    for far, cut in found[1].threshold.items():
        assert (values[~genuine] >= cut).mean() <= far
        assert (
            found[1].accepted[far]
            == (values[genuine] >= cut).mean()
            == separation.tar_at_far(values, genuine, [far])[0]
        )


def test_scores_need_pairs(smoke):
    train = spec.splits(presets.SCALES["smoke"]).train
    assert isinstance(train, Faces)
    with pytest.raises(DataError, match="has no verification pairs"):
        try_it.scores(Pixels(), train, [8])


def test_strangers_age_and_are_drawn_once():
    world = FaceModel()
    pictures, ages = try_it.strangers(world, 2, 3, 24, seed=5)
    assert (pictures.shape, pictures.dtype, ages.shape) == ((2, 3, 24, 24, 3), np.uint8, (2, 3))
    assert (np.diff(ages) > 0).all()
    np.testing.assert_array_equal(pictures, try_it.strangers(world, 2, 3, 24, seed=5)[0])
    assert not np.array_equal(pictures, try_it.strangers(world, 2, 3, 24, seed=6)[0])


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


def test_painted_maps_are_vermilion_where_it_falls_and_blue_where_it_rises():
    maps = np.zeros((1, 2, 2))
    maps[0, 0] = 0.5, -0.5
    shown = try_it.painted(np.zeros((1, 3, 2, 2)), maps)
    np.testing.assert_array_equal(shown[0, 0], [[213, 94, 0], [0, 114, 178]])
    assert np.ptp(shown[0, 1]) == 0


class Still:
    def _repr_html_(self) -> str:
        return '<img alt="{data} still">'


def test_the_page_holds_its_data_and_a_picture():
    pictures, ages = try_it.strangers(FaceModel(), 2, 3, 24, seed=5)
    counts = np.arange(try_it.BINS)
    one = try_it.Scores(6, counts, counts[::-1], {0.01: 0.5, 0.1: 0.25}, {0.01: 0.5, 0.1: 0.75})
    text = try_it.tool(pictures, ages, [one], 16, Still(), "a < b")._repr_html_()
    assert '<img alt="{data} still">' in text
    assert "<figcaption>a &lt; b</figcaption>" in text
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    assert (data["side"], data["size"], [one["name"] for one in data["people"]]) == (24, 16, ["A", "B"])
    assert data["scores"][0]["cuts"] == [{"far": 0.01, "at": 0.5}, {"far": 0.1, "at": 0.25}]
    assert data["scores"][0]["genuine"] == counts.tolist()
    assert len(data["people"][1]["pictures"]) == 3
