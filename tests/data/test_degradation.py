"""`degrade` against torch's own resampling, naive recomputation, and the laws that any degradation obeys."""

import io
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate

from lrkd.data.degradation import KERNELS, PRESETS, Degradation, degrade, resampling_matrix
from lrkd.errors import ConfigError

TORCH = {"nearest": "nearest", "bilinear": "bilinear", "area": "area", "bicubic": "bicubic"}
PAIRS = list(itertools.product(KERNELS, KERNELS))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 4, size: int = 24, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=rng(seed)).to(dtype)


def by_torch(x: torch.Tensor, side: int, kernel: str) -> torch.Tensor:
    return interpolate(x, size=(side, side), mode=TORCH[kernel])


# The kernels


@pytest.mark.parametrize("kernel", list(TORCH))
@pytest.mark.parametrize(
    ("size", "side"), [(24, 6), (24, 7), (24, 5), (6, 24), (7, 24), (48, 13), (112, 14), (1, 5), (5, 1)]
)
def test_matrix_equals_torch(kernel, size, side):
    x = images(2, size, dtype=torch.float64)
    matrix = torch.from_numpy(resampling_matrix(size, side, kernel))
    torch.testing.assert_close(matrix @ x @ matrix.T, by_torch(x, side, kernel), rtol=0, atol=1e-12)


def lanczos4(row: np.ndarray, side: int) -> np.ndarray:
    """cv2's LANCZOS4 as its source defines it: a table of cosines and sines of 45 degree steps, then normalised."""
    s45 = math.sqrt(0.5)
    table = [(1, 0), (-s45, -s45), (0, 1), (s45, -s45), (-1, 0), (s45, s45), (0, -1), (-s45, s45)]
    out = []
    for i in range(side):
        centre = (i + 0.5) * len(row) / side - 0.5
        left = math.floor(centre)
        x = centre - left
        if x < 1e-7:
            weights = [float(k == 3) for k in range(8)]
        else:
            start = -(x + 3) * math.pi / 4
            angles = [-(x + 3 - k) * math.pi / 4 for k in range(8)]
            weights = [
                (a * math.sin(start) + b * math.cos(start)) / angle**2
                for (a, b), angle in zip(table, angles, strict=True)
            ]
        pixels = [row[min(max(left - 3 + k, 0), len(row) - 1)] for k in range(8)]
        out.append(sum(w * p for w, p in zip(weights, pixels, strict=True)) / sum(weights))
    return np.array(out)


@pytest.mark.parametrize(("size", "side"), [(24, 6), (24, 7), (7, 24), (24, 25), (9, 3), (3, 9)])
def test_lanczos_is_that_of_cv2(size, side):
    row = np.random.default_rng(0).random(size)
    np.testing.assert_allclose(resampling_matrix(size, side, "lanczos") @ row, lanczos4(row, side), atol=1e-9)


@given(st.sampled_from(KERNELS), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_matrix_rows_sum_to_one_and_mirror(kernel, size, side):
    matrix = resampling_matrix(size, side, kernel)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    if kernel != "nearest":  # nearest takes the pixel to the left of the middle, so it has a side
        np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-9)


def test_area_is_the_mean_of_each_block():
    x = images(2, 24)
    out = degrade(x, 6, preset=Degradation("area", "nearest"))
    for row, column in itertools.product(range(24), range(24)):
        top, left = row // 4 * 4, column // 4 * 4
        block = x[:, :, top : top + 4, left : left + 4].mean((2, 3))
        torch.testing.assert_close(out[:, :, row, column], block, rtol=0, atol=1e-6)


# One image's way down and up


@pytest.mark.parametrize(("down", "up"), [pair for pair in PAIRS if "lanczos" not in pair])
@pytest.mark.parametrize("side", [6, 7])
def test_down_and_up_equal_torch(down, up, side):
    x = images()
    expected = by_torch(by_torch(x, side, down), 24, up).clamp(0, 1)
    torch.testing.assert_close(degrade(x, side, preset=Degradation(down, up)), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("down", "up"), PAIRS)
@pytest.mark.parametrize("side", [1, 5, 6, 24])
def test_constant_stays_constant(down, up, side):
    level = torch.tensor([0.0, 0.3, 1.0]).reshape(1, 3, 1, 1).expand(2, 3, 24, 24)
    out = degrade(level, side, preset=Degradation(down, up, blur=(1.0, 2.0)))
    torch.testing.assert_close(out, level, rtol=0, atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_keep_shape_dtype_and_range(preset):
    for x in (images(3), images(3, dtype=torch.float16), (images(3) * 255).to(torch.uint8)):
        out = degrade(x, (6, 12, 24), preset=preset, generator=rng())
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert out.min() >= 0
        assert out.max() <= (1 if x.is_floating_point() else 255)


@pytest.mark.parametrize(("down", "up"), PAIRS)
def test_own_side_is_the_identity(down, up):
    x = images()
    raw = (x * 255).to(torch.uint8)
    preset = Degradation(down, up)
    assert torch.equal(degrade(x, 24, preset=preset), x)
    assert torch.equal(degrade(raw, 24, preset=preset), raw)
    # Among smaller ones too, where the images go through gathered matrices.
    sides = torch.tensor([24, 6, 24, 12])
    assert torch.equal(degrade(raw, sides, preset=preset)[[0, 2]], raw[[0, 2]])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_at_its_own_side_an_image_keeps_the_presets_blur_and_there_is_nothing_to_enlarge(preset, dtype):
    x = (images(3) * 255).to(dtype) if dtype == torch.uint8 else images(3)
    there, back = (degrade(x, 24, preset=preset, generator=rng(), enlarge=enlarge) for enlarge in (True, False))
    assert torch.equal(there, back)
    assert torch.equal(there, x) != any(PRESETS[preset].blur), "as it is, but for the blur"


@pytest.mark.parametrize("preset", ["area-bicubic", "askd-compat", "askd-isotropic", Degradation(quantise=True)])
def test_side_per_image_equals_one_by_one(preset):
    x = images(6)
    sides = torch.tensor([6, 24, 5, 6, 1, 12])
    alone = torch.cat([degrade(x[i : i + 1], int(side), preset=preset) for i, side in enumerate(sides)])
    torch.testing.assert_close(degrade(x, sides, preset=preset), alone, rtol=0, atol=2e-6)
    torch.testing.assert_close(degrade(x, sides.numpy(), preset=preset), alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("extra", [{}, {"quantise": True}])
def test_drawn_kernels_and_sides_are_those_of_some_single_degradation(extra):
    count, kernels, sides = 64, ("nearest", "bilinear", "lanczos"), (6, 12)
    x = images(1).expand(count, -1, -1, -1)
    out = degrade(x, sides, preset=Degradation(kernels, kernels, **extra), generator=rng())
    single = torch.cat(
        [
            degrade(x[:1], side, preset=Degradation(down, up, **extra))
            for side in sides
            for down in kernels
            for up in kernels
        ]
    )
    distance = (out[:, None] - single).abs().amax((2, 3, 4))
    assert distance.amin(1).max() < 1e-5
    # Down, up and side are drawn independently: 64 draws of 18 combinations leave few out.
    assert len(distance.argmin(1).unique()) >= 14


@pytest.mark.parametrize("preset", ["fskd", Degradation(noise=(0.0, 0.2), jpeg=(20, 90))])
def test_same_seed_same_result(preset):
    x = images(16)
    first, again, other = (degrade(x, (6, 12, 24), preset=preset, generator=rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    state = torch.random.get_rng_state()
    degrade(x, (6, 12), preset=preset, generator=rng())
    assert torch.equal(state, torch.random.get_rng_state())


@given(st.sampled_from(PAIRS), st.integers(1, 16), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_uint8_is_the_rounded_float(pair, side, seed):
    raw = (images(2, 16, seed) * 256).clamp(max=255).to(torch.uint8)
    preset = Degradation(*pair)
    exact = degrade(raw.double() / 255, side, preset=preset) * 255
    assert (degrade(raw, side, preset=preset) - exact).abs().max() <= 0.5 + 1e-3


def test_memory_formats_do_not_matter():
    x = images()
    other = x.contiguous(memory_format=torch.channels_last)
    for sides in (6, torch.tensor([6, 12, 5, 24])):
        assert torch.equal(degrade(x, sides), degrade(other, sides))


# Blur, noise, JPEG


def test_askd_compat_blurs_vertically_only():
    weights = torch.tensor([math.exp(-0.5 * (i / 2) ** 2) for i in range(-2, 3)])
    weights = weights / weights.sum()
    torch.testing.assert_close(weights, torch.tensor([0.15, 0.22, 0.25, 0.22, 0.15]), rtol=0, atol=0.005)
    columns = torch.rand(2, 3, 1, 24, generator=rng()).expand(-1, -1, 24, -1)
    torch.testing.assert_close(degrade(columns, 24, preset="askd-compat"), columns, rtol=0, atol=1e-6)
    point = torch.zeros(1, 3, 24, 24)
    point[..., 12, 7] = 1
    out = degrade(point, 24, preset="askd-compat")
    torch.testing.assert_close(out[0, 0, 10:15, 7], weights)
    assert out.sum() == pytest.approx(3)
    out = degrade(point, 24, preset="askd-isotropic")
    torch.testing.assert_close(out[0, 0, 10:15, 5:10], torch.outer(weights, weights))


@pytest.mark.parametrize("at", ["hr", "up"])
def test_blur_equals_a_reflected_convolution(at):
    x = images(dtype=torch.float64)
    offsets = torch.arange(-3, 4, dtype=torch.float64)
    h, v = (torch.exp(-0.5 * (offsets / sigma) ** 2) for sigma in (0.7, 1.9))
    kernel = torch.outer(v / v.sum(), h / h.sum()).expand(3, 1, 7, 7)

    def blur(y):
        return torch.nn.functional.conv2d(torch.nn.functional.pad(y, (3, 3, 3, 3), "reflect"), kernel, groups=3)

    low = by_torch(blur(x) if at == "hr" else x, 6, "area")
    high = by_torch(low, 24, "bilinear")
    preset = Degradation("area", "bilinear", blur=(0.7, 1.9), blur_taps=7, blur_at=at)
    torch.testing.assert_close(degrade(x, 6, preset=preset), blur(high) if at == "up" else high, rtol=0, atol=1e-12)


def test_noise_has_its_size_at_the_low_side():
    grey = torch.full((32, 3, 24, 24), 0.5)
    out = degrade(grey, 6, preset=Degradation("area", "nearest", noise=0.1), generator=rng())
    blocks = out.reshape(32, 3, 6, 4, 6, 4)
    assert torch.equal(blocks, blocks[:, :, :, :1, :, :1].expand_as(blocks))
    assert blocks[:, :, :, 0, :, 0].std().item() == pytest.approx(0.1, rel=0.05)
    assert out.mean().item() == pytest.approx(0.5, abs=0.01)
    levels = degrade(grey, 24, preset=Degradation(noise=(0.02, 0.12)), generator=rng()).std((1, 2, 3))
    assert 0.015 < levels.min() < 0.04
    assert 0.10 < levels.max() < 0.125


def test_noise_of_an_image_does_not_depend_on_the_others_sides():
    x, preset = images(3), Degradation(noise=0.1, jpeg=(30, 80))
    one = degrade(x, torch.tensor([6, 12, 6]), preset=preset, generator=rng())
    two = degrade(x, torch.tensor([5, 12, 24]), preset=preset, generator=rng())
    torch.testing.assert_close(one[1], two[1], rtol=0, atol=1e-6)
    assert not torch.equal(one[0], two[0])


def test_quantise_rounds_the_low_image():
    x = images()
    low = (by_torch(x, 6, "area") * 255).round() / 255
    out = degrade(x, 6, preset=Degradation("area", "nearest", quantise=True))
    torch.testing.assert_close(out, by_torch(low, 24, "nearest"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_is_that_of_pillow(quality):
    ramp = torch.linspace(0, 1, 24)
    x = torch.stack([ramp.expand(24, 24), ramp.flip(0).expand(24, 24).T, torch.outer(ramp, ramp)])[None]
    raw = (x * 255).round().to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(raw[0].permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    pillow = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)
    out = degrade(raw, 24, preset=Degradation(jpeg=quality))[0]
    assert (out.int() - pillow.int()).abs().max() <= 3
    assert not torch.equal(out, raw[0])


def test_lower_quality_is_further_away():
    x = images()
    error = [(degrade(x, 24, preset=Degradation(jpeg=q)) - x).abs().mean().item() for q in (100, 80, 40, 10)]
    assert error == sorted(error)
    assert error[0] < error[-1]
    assert degrade(x[:, :1], 6, preset=Degradation(jpeg=50)).shape == (4, 1, 24, 24)


# In training


@pytest.mark.parametrize("side", [3, (3, 6)])
def test_differentiable(side):
    x = (images(2, 8, dtype=torch.float64) * 0.4 + 0.3).requires_grad_()

    def function(y):
        return degrade(y, side, preset=Degradation(("area", "bicubic"), "lanczos", blur=(1.0, 0.5)), generator=rng())

    assert torch.autograd.gradcheck(function, (x,))


def test_matrices_made_without_gradients_serve_training():
    with torch.inference_mode():
        degrade(images(2, 20), 7)
    x = (images(2, 20) * 0.2 + 0.4).requires_grad_()
    degrade(x, 7).sum().backward()
    # Rows sum to 1, so the whole gradient is the number of results.
    assert x.grad.sum().item() == pytest.approx(2 * 3 * 20 * 20, rel=1e-5)


def test_autocast_does_not_coarsen_it():
    x = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = degrade(x, 6)
    assert torch.equal(out, degrade(x, 6))


@pytest.mark.parametrize("side", [6, 16, 32])
@pytest.mark.parametrize("preset", ["area-bicubic", "fskd-test", Degradation("bicubic", "area", quantise=True)])
def test_what_is_not_enlarged_is_what_is_enlarged_otherwise(preset, side):
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low = degrade(x, side, preset=preset, enlarge=False)
    assert low.shape == (3, 3, side, side)
    spec = PRESETS[preset] if isinstance(preset, str) else preset
    up = torch.from_numpy(resampling_matrix(side, 32, spec.up))
    if spec.down != "bicubic":  # which overshoots: clamped before and not after
        torch.testing.assert_close((up @ low @ up.T).clamp(0, 1), degrade(x, side, preset=preset))
    if side == 32 and not spec.quantise:
        assert torch.equal(low, x)


def test_images_that_are_not_enlarged_are_area_means():
    x = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    low = degrade(x, 16, enlarge=False)
    torch.testing.assert_close(low, torch.nn.functional.interpolate(x, size=16, mode="area"))


def test_noise_and_kernels_of_images_that_are_not_enlarged_are_drawn_alike():
    spec = Degradation(("area", "nearest"), "nearest", noise=0.1)
    x = torch.full((8, 3, 32, 32), 0.5)
    low = degrade(x, 8, preset=spec, generator=torch.Generator().manual_seed(3), enlarge=False)
    high = degrade(x, 8, preset=spec, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(low.repeat_interleave(4, 2).repeat_interleave(4, 3), high)


@pytest.mark.parametrize(
    ("side", "preset", "said"), [((6, 8), "area-bicubic", "sides differ"), (8, "askd-compat", "blur")]
)
def test_what_cannot_stay_small_is_refused(side, preset, said):
    with pytest.raises(ConfigError, match=f"enlarge: False, but .*{said}"):
        degrade(torch.rand(2, 3, 32, 32), side, preset=preset, generator=torch.Generator(), enlarge=False)


def test_empty_batch():
    for side in (6, (6, 12), torch.zeros(0, dtype=torch.int64)):
        assert degrade(images()[:0], side, preset=Degradation(jpeg=50), generator=rng()).shape == (0, 3, 24, 24)


# What a user gets wrong


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (0, "1 to 24"),
        (25, "25.*1 to 24"),
        (-3, "-3"),
        (6.5, "6.5"),
        (True, "True"),
        ("6", "'6'"),
        (None, "None"),
        ((), "empty"),
        ((6, 30), "30"),
        (torch.tensor([6, 6]), "2 sides for 4 images"),
        (torch.tensor([6, 6, 6, 99]), "99"),
        (torch.tensor([6.0, 6, 6, 7]), "6.0"),
    ],
)
def test_bad_side(side, message):
    with pytest.raises(ConfigError, match=message):
        degrade(images(), side, generator=rng())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down": "linear"}, "down.*'linear'.*bilinear"),
        ({"up": ("area", "lanczos4")}, "up.*'lanczos4'"),
        ({"up": ()}, "up"),
        ({"blur": (1.0, -1.0)}, "blur"),
        ({"blur_taps": 4}, "blur_taps.*4.*odd"),
        ({"blur_at": "lr"}, "blur_at.*'lr'"),
        ({"noise": -0.1}, "noise.*-0.1"),
        ({"noise": (0.2, 0.1)}, "noise"),
        ({"jpeg": 0}, "jpeg.*0.*100"),
        ({"jpeg": (50, 101)}, "jpeg"),
    ],
)
def test_bad_degradation(change, message):
    with pytest.raises(ConfigError, match=message):
        Degradation(**change)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(1, 3, 8, 9), {}, r"\(1, 3, 8, 9\)"),
        (torch.zeros(3, 8, 8), {}, "batch"),
        (np.zeros((1, 3, 8, 8)), {}, "expected a tensor .* got ndarray"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), {}, "int64"),
        (torch.zeros(1, 3, 8, 8), {"preset": "cubic"}, "'cubic'.*area-bicubic"),
        (torch.zeros(1, 3, 8, 8), {"preset": "fskd"}, "generator.*kernel"),
        (torch.zeros(1, 3, 8, 8), {"side": (4, 8)}, "generator.*side"),
        (torch.zeros(1, 3, 8, 8), {"preset": Degradation(noise=0.1)}, "generator.*noise"),
        (torch.zeros(1, 3, 8, 8), {"preset": Degradation(jpeg=(10, 20))}, "generator.*JPEG"),
        (torch.zeros(1, 2, 8, 8), {"preset": Degradation(jpeg=10)}, "2 channels"),
        (torch.zeros(1, 3, 8, 8), {"preset": Degradation(blur=(1.0, 1.0), blur_taps=17)}, "17"),
    ],
)
def test_bad_input(x, options, message):
    with pytest.raises(ConfigError, match=message):
        degrade(x, **{"side": 4, **options})


def test_presets_are_what_they_say():
    assert set(PRESETS) == {"area-bicubic", "fskd", "fskd-test", "askd-compat", "askd-isotropic"}
    x = images()
    assert torch.equal(degrade(x, 6), degrade(x, 6, preset=Degradation("area", "bicubic")))
    bilinear = by_torch(by_torch(x, 6, "bilinear"), 24, "bilinear")
    torch.testing.assert_close(degrade(x, 6, preset="fskd-test"), bilinear)
    assert set(PRESETS["fskd"].downs) == set(PRESETS["fskd"].ups) == set(KERNELS)
    # A configuration read from JSON has lists.
    assert Degradation(["area"], ["bicubic"], blur=[0.0, 0.0]) == replace(
        Degradation(), down=("area",), up=("bicubic",)
    )
