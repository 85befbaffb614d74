"""High resolution to low resolution: one function, every kernel, on any device.

Resampling is linear, so a kernel that takes H pixels to s is a small matrix (s,H), and an image goes down and up
again as `U D x (U D)^T`. The matrices are made once and kept; with sides or kernels drawn per image they are gathered,
and the whole batch is still two batched products.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrkd.errors import ConfigError

KERNELS = ("nearest", "bilinear", "area", "bicubic", "lanczos")


def _range(value: float | tuple[float, float]) -> tuple[float, float]:
    return (value[0], value[1]) if isinstance(value, tuple) else (value, value)


@dataclass(frozen=True)
class Degradation:
    """How an HR image becomes an LR one: blur (at "hr"), down, noise, 8 bits, JPEG, up, blur (at "up").

    Args:
        down: A kernel of `KERNELS`, or a tuple of kernels from which each image draws its own, independently of `up`.
        up: Likewise.
        blur: (horizontal, vertical) standard deviations in pixels of the HR image, 0 for none.
        blur_taps: How many weights of a sampled Gaussian, reflected at the border.
        blur_at: "hr" is a lens before the sensor, "up" comes after upsampling.
        noise: Standard deviation of Gaussian noise at LR size, in units of the intensity range [0,1]; or a range (low,
            high) from which each image draws its own.
        quantise: Round to 8 bits at LR size (gradients pass straight through).
        jpeg: Quality 1 to 100 at LR size, or a range (low, high) drawn per image; runs on the CPU and cuts the
            gradient.

    Raises:
        ConfigError: A kernel or a value that does not exist.
    """

    down: str | tuple[str, ...] = "area"
    up: str | tuple[str, ...] = "bicubic"
    blur: tuple[float, float] = (0.0, 0.0)
    blur_taps: int = 5
    blur_at: str = "hr"
    noise: float | tuple[float, float] = 0.0
    quantise: bool = False
    jpeg: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("down", "up", "blur", "noise", "jpeg"):
            value = getattr(self, name)
            if isinstance(value, list):  # as a configuration read from JSON has it
                object.__setattr__(self, name, tuple(value))
        for name, kernels in (("down", self.downs), ("up", self.ups)):
            for kernel in kernels or ("",):
                if kernel not in KERNELS:
                    raise ConfigError(f"{name}: unknown kernel {kernel!r}; known: {', '.join(KERNELS)}")
        if len(self.blur) != 2 or not all(0 <= sigma < float("inf") for sigma in self.blur):
            raise ConfigError(f"blur: {self.blur} is not (horizontal, vertical), two sigmas in pixels")
        if self.blur_taps < 1 or self.blur_taps % 2 == 0:
            raise ConfigError(f"blur_taps: {self.blur_taps} is not an odd number of at least 1")
        if self.blur_at not in ("hr", "up"):
            raise ConfigError(f'blur_at: {self.blur_at!r} is neither "hr" nor "up"')
        low, high = _range(self.noise)
        if not 0 <= low <= high < float("inf"):
            raise ConfigError(f"noise: {self.noise} is not a standard deviation of at least 0, or a range (low, high)")
        if self.jpeg is not None:
            low, high = _range(self.jpeg)
            if not (1 <= low <= high <= 100 and low == int(low) and high == int(high)):
                raise ConfigError(f"jpeg: {self.jpeg} is not a quality from 1 to 100, or a range (low, high)")

    @property
    def downs(self) -> tuple[str, ...]:
        return (self.down,) if isinstance(self.down, str) else tuple(self.down)

    @property
    def ups(self) -> tuple[str, ...]:
        return (self.up,) if isinstance(self.up, str) else tuple(self.up)

    @property
    def linear(self) -> bool:
        """Nothing happens at LR size, so down and up are one matrix."""
        return _range(self.noise)[1] == 0 and not self.quantise and self.jpeg is None


PRESETS: dict[str, Degradation] = {
    "area-bicubic": Degradation("area", "bicubic"),
    # F-SKD (arXiv 2303.04681): both directions drawn in training, bilinear both ways in testing.
    "fskd": Degradation(KERNELS, KERNELS),
    "fskd-test": Degradation("bilinear", "bilinear"),
    # A-SKD (arXiv 2209.14498) as coded: a RANGE of sigmas, [.1, 2], was passed as (x, y). So the horizontal kernel is
    # the identity and the vertical one .15 .22 .25 .22 .15: a vertical-only blur, almost surely never intended.
    # Sigma is in pixels of the image itself: A-SKD's are 112 px wide.
    "askd-compat": Degradation("nearest", "nearest", blur=(0.1, 2.0), blur_at="up"),
    # The same blur in both directions.
    "askd-isotropic": Degradation("nearest", "nearest", blur=(2.0, 2.0), blur_at="up"),
}


def degrade(
    images: Tensor,
    side: int | Tensor | Sequence[int],
    *,
    preset: str | Degradation = "area-bicubic",
    generator: torch.Generator | None = None,
    enlarge: bool = True,
) -> Tensor:
    """Make low-resolution versions of images, at HR size: `(B,C,H,H) -> (B,C,H,H)`, the same dtype and device.

    Differentiable in float images, except through JPEG. Computed in float32 (float64 for float64), also under autocast.

    Args:
        images: Float in [0,1] (the result is clamped to it), or uint8 (the result is rounded).
        side: LR side in pixels, 1 to H; a (B,) tensor with one an image; or a sequence from which each image draws one.
            A side says "degraded to", and no side (None, elsewhere) "as it is": at H resampling is the identity, but
            the preset's blur, noise and JPEG still apply.
        preset: A name of `PRESETS` or a `Degradation`.
        generator: Draws, on its own device, side, down, up, noise level, noise and quality, where they are random.
        enlarge: False gives the LR images themselves, (B,C,side,side): one side for all, and no blur after enlarging.

    Raises:
        ConfigError: An unknown preset or kernel, a side outside 1 to H, images that are not square or neither float nor
            uint8, or a draw without a generator.
    """
    spec = _spec(preset)
    _check_images(images)
    sides, which = _sides(side, images, generator)
    enlarge = enlarge or (which is None and sides[0] == images.shape[-1])
    if not enlarge and (which is not None or (any(spec.blur) and spec.blur_at == "up")):
        raise ConfigError(
            f"enlarge: False, but {'sides differ' if which is not None else 'the blur comes after enlarging'}: "
            "LR images of one size need one side, and a degradation that ends at it"
        )
    down = _draw(len(spec.downs), images, generator, "down kernel")
    up = _draw(len(spec.ups), images, generator, "up kernel")
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    with torch.autocast(images.device.type, enabled=False):
        x = images.to(dtype, memory_format=torch.contiguous_format)
        if images.dtype == torch.uint8:
            x = x / 255
        if not enlarge:
            noise, quality = _draw_noise(x, spec, generator), _draw_quality(x, spec, generator)
            x = _low(x, sides[0], down, spec, noise, quality)
        elif which is down is up is None or not spec.linear:
            x = _by_side(x, sides, which, down, up, spec, generator)
        else:
            index = _flat(_flat(which, len(spec.downs), down), len(spec.ups), up)
            x = _resample(x, x.shape[-1], "both", sides, index, spec)
        x = x.clamp(0, 1)
        return (x * 255).round().to(torch.uint8) if images.dtype == torch.uint8 else x.to(images.dtype)


def resampling_matrix(size: int, side: int, kernel: str) -> np.ndarray:
    """The (side,size) float64 matrix that resamples `size` pixels to `side`; every row sums to 1.

    nearest, bilinear, bicubic (a = -.75) and area equal torch's `interpolate` (pixel centres, no antialiasing), which
    is also cv2's convention; cv2's area differs from torch's (and ours) only where `side` does not divide `size`: it
    weights the pixels at a window's ends by their overlap, torch takes them whole. lanczos is cv2's LANCZOS4: 8 taps of
    sinc(t) sinc(t/4), normalised, edge pixels repeated, and, as in cv2, NOT widened when it shrinks, so it aliases.
    """
    if kernel not in KERNELS:
        raise ConfigError(f"unknown kernel {kernel!r}; known: {', '.join(KERNELS)}")
    if size == side:
        return np.eye(size)
    out = np.arange(side)
    matrix = np.zeros((side, size))
    if kernel == "nearest":
        matrix[out, out * size // side] = 1
        return matrix
    if kernel == "area":
        first, last = out * size // side, -((-(out + 1) * size) // side)
        inside = (np.arange(size) >= first[:, None]) & (np.arange(size) < last[:, None])
        return inside / (last - first)[:, None]
    centre = (out + 0.5) * size / side - 0.5
    left = np.floor(centre).astype(np.int64)
    reach = {"bilinear": 1, "bicubic": 2, "lanczos": 4}[kernel]
    taps = left[:, None] + np.arange(1 - reach, reach + 1)
    weights = _WEIGHTS[kernel](centre[:, None] - taps)
    weights /= weights.sum(1, keepdims=True)
    np.add.at(matrix, (out[:, None], taps.clip(0, size - 1)), weights)
    return matrix


def _cubic(t: np.ndarray, a: float = -0.75) -> np.ndarray:
    t = np.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    return np.where(t <= 1, near, np.where(t < 2, a * (t**3 - 5 * t**2 + 8 * t - 4), 0))


_WEIGHTS = {
    "bilinear": lambda t: np.clip(1 - np.abs(t), 0, None),
    "bicubic": _cubic,
    "lanczos": lambda t: np.sinc(t) * np.sinc(t / 4),
}


def _blur_matrix(size: int, sigma: float, taps: int) -> np.ndarray:
    """(size,size) float64: a sampled Gaussian of `taps` weights along one axis, reflected (edge not repeated)."""
    reach = taps // 2
    if sigma == 0 or reach == 0:
        return np.eye(size)
    if reach >= size:
        raise ConfigError(f"blur_taps: {taps} do not fit an image of {size} pixels; at most {2 * size - 1}")
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    at = np.abs(np.arange(size)[:, None] + offsets)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], np.minimum(at, 2 * (size - 1) - at)), weights / weights.sum())
    return matrix


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; from a CPU to a GPU without waiting for what the GPU is doing."""
    if x.device.type != "cpu" or device.type == "cpu":
        return x.to(device)
    return x.contiguous().pin_memory().to(device, non_blocking=True)


@functools.lru_cache(maxsize=512)
def _matrices(
    spec: Degradation, sigma: float, way: str, side: int, size: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """One axis at one side: "down" (D,side,size), "up" (U,size,side), or "both" (D*U,size,size), up running fastest."""
    blur = _blur_matrix(size, sigma, spec.blur_taps)
    before, after = (blur, np.eye(size)) if spec.blur_at == "hr" else (np.eye(size), blur)
    downs = [resampling_matrix(size, side, kernel) @ before for kernel in spec.downs]
    ups = [after @ resampling_matrix(side, size, kernel) for kernel in spec.ups]
    found = {"down": downs, "up": ups}.get(way) or [up @ down for down in downs for up in ups]
    # A tensor made in inference mode could not be used in training later, and this one is kept.
    with torch.inference_mode(False):
        return torch.from_numpy(np.stack(found)).to(device, dtype)


def _flat(index: Tensor | None, choices: int, choice: Tensor | None) -> Tensor | None:
    """The number of (index, choice) when the last runs fastest; None where there is no choice."""
    if index is None or choice is None:
        return choice if index is None else index
    return to_device(index, choice.device) * choices + choice


def _one_each(matrices: Tensor, index: Tensor | None) -> Tensor:
    """One matrix for all images (r,c), or one an image (B,1,r,c)."""
    return matrices[0] if index is None else matrices[to_device(index, matrices.device)][:, None]


def _resample(
    x: Tensor, size: int, way: str, sides: tuple[int, ...], index: Tensor | None, spec: Degradation
) -> Tensor:
    """`(B,C,h,h) -> (B,C,r,r)`: one matrix from the left (vertical) and one from the right (horizontal)."""
    found = [
        torch.cat([_matrices(spec, sigma, way, side, size, x.device, x.dtype) for side in sides]) for sigma in spec.blur
    ]
    horizontal, vertical = (_one_each(matrices, index) for matrices in found)
    return vertical @ (x @ horizontal.mT)


def _by_side(
    x: Tensor,
    sides: tuple[int, ...],
    which: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    spec: Degradation,
    generator: torch.Generator | None,
) -> Tensor:
    """The images of each side together, through real LR images: `(B,C,H,H) -> (B,C,H,H)`.

    All draws are made first and for all images, so that an image's own do not depend on the others' sides.
    """
    noise, quality = _draw_noise(x, spec, generator), _draw_quality(x, spec, generator)
    if which is None:
        return _at_side(x, sides[0], down, up, spec, noise, quality)
    order, parts = [], []
    for number, side in enumerate(sides):
        rows = (which == number).nonzero()[:, 0]
        if len(rows):
            own = [
                None if drawn is None else drawn[to_device(rows, drawn.device)] for drawn in (down, up, noise, quality)
            ]
            parts.append(_at_side(x[to_device(rows, x.device)], side, own[0], own[1], spec, own[2], own[3]))
            order.append(rows)
    return torch.cat(parts)[to_device(torch.cat(order).argsort(), x.device)] if parts else x


def _at_side(
    x: Tensor,
    side: int,
    down: Tensor | None,
    up: Tensor | None,
    spec: Degradation,
    noise: Tensor | None,
    quality: Tensor | None,
) -> Tensor:
    size = x.shape[-1]
    low = _low(x, side, down, spec, noise, quality)
    return _resample(low, size, "up", (side,), up, spec) if side < size or any(spec.blur) else low


def _low(
    x: Tensor, side: int, down: Tensor | None, spec: Degradation, noise: Tensor | None, quality: Tensor | None
) -> Tensor:
    """The LR images themselves, `(B,C,H,H) -> (B,C,side,side)`."""
    changes = side < x.shape[-1] or any(spec.blur)
    low = _resample(x, x.shape[-1], "down", (side,), down, spec) if changes else x
    if noise is not None:
        low = low + noise[..., :side, :side]
    if spec.quantise:
        low = low + ((low.clamp(0, 1) * 255).round() / 255 - low).detach()
    return low if quality is None else _jpeg(low, quality)


def _jpeg(x: Tensor, quality: Tensor) -> Tensor:
    if x.shape[1] not in (1, 3):
        raise ConfigError(f"jpeg: images of {x.shape[1]} channels; JPEG takes 1 or 3")
    from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg  # takes a second, and few degradations need it

    raw = (x.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    mode = ImageReadMode.GRAY if x.shape[1] == 1 else ImageReadMode.RGB
    coded = [decode_jpeg(encode_jpeg(image, int(q)), mode) for image, q in zip(raw, quality.tolist(), strict=True)]
    return torch.stack(coded).to(x.device, x.dtype) / 255 if coded else x


def _draw_noise(x: Tensor, spec: Degradation, generator: torch.Generator | None) -> Tensor | None:
    """(B,C,H,H); an LR image takes the corner that it needs."""
    low, high = _range(spec.noise)
    if high == 0:
        return None
    generator = _needed(generator, "noise")
    level = low + (high - low) * torch.rand(len(x), 1, 1, 1, generator=generator, device=generator.device)
    noise = level * torch.randn(x.shape, generator=generator, device=generator.device)
    return to_device(noise.to(x.dtype), x.device)


def _draw_quality(x: Tensor, spec: Degradation, generator: torch.Generator | None) -> Tensor | None:
    if spec.jpeg is None:
        return None
    low, high = _range(spec.jpeg)
    drawn = _draw(int(high - low) + 1, x, generator, "JPEG quality")
    return torch.full((len(x),), int(low)) if drawn is None else drawn + int(low)


def _spec(preset: str | Degradation) -> Degradation:
    if isinstance(preset, str) and preset not in PRESETS:
        raise ConfigError(f"preset: unknown degradation {preset!r}; known: {', '.join(PRESETS)}")
    return PRESETS[preset] if isinstance(preset, str) else preset


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[2] != images.shape[3]:
        got = f"{type(images).__name__} {tuple(getattr(images, 'shape', ()))}"
        raise ConfigError(f"images: expected a tensor (B,C,H,H), a batch of square images, got {got}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ConfigError(f"images: {images.dtype} is neither float in [0,1] nor uint8")


def _sides(
    side: int | Tensor | Sequence[int], images: Tensor, generator: torch.Generator | None
) -> tuple[tuple[int, ...], Tensor | None]:
    """The sides that occur (ascending for a tensor), and which of them each image takes; None: the only one."""
    which = None
    if isinstance(side, Tensor | np.ndarray) and side.ndim == 1:
        given = torch.as_tensor(side)
        if len(given) != len(images):
            raise ConfigError(f"side: {len(given)} sides for {len(images)} images; a tensor holds one an image")
        found, which = given.unique(return_inverse=True)
        sides = tuple(found.tolist())
    elif isinstance(side, Sequence) and not isinstance(side, str):
        sides = tuple(side)
    else:
        sides = (side.item() if isinstance(side, Tensor | np.ndarray) and side.ndim == 0 else side,)
    size = images.shape[-1]
    if not sides and len(images):
        raise ConfigError("side: an empty choice; give at least one side")
    for value in sides:
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 1 <= value <= size:
            raise ConfigError(f"side: {value!r} is not a whole number from 1 to {size}, the images' own side")
    sides = tuple(int(value) for value in sides) or (size,)
    if len(sides) == 1:
        return sides, None
    return sides, _draw(len(sides), images, generator, "side") if which is None else which


def _needed(generator: torch.Generator | None, what: str) -> torch.Generator:
    if generator is None:
        raise ConfigError(f"generator: None, but the {what} is drawn at random; pass a torch.Generator")
    return generator


def _draw(choices: int, images: Tensor, generator: torch.Generator | None, what: str) -> Tensor | None:
    if choices == 1:
        return None
    generator = _needed(generator, what)
    return torch.randint(choices, (len(images),), generator=generator, device=generator.device)
