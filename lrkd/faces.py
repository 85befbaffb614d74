"""Procedural faces: (identity, nuisance) -> image, differentiable in both, on any device.

A face lives in canonical coordinates (u right, v down, the image spans [-1, 1]). Pose maps each pixel to canonical
coordinates; a height field gives normals and shading; pigments, eyes, lips, hair and glasses are soft layers whose
edges are never sharper than a pixel, so that a render at 112 px, averaged down, looks like the render at 56 px.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrkd.errors import ConfigError

# Part of every run on rendered faces. Change it with any edit after which the same numbers render other pixels: then no
# run in a store and no table in book/results is of these faces any more. (It began as a hash of this file.)
RENDERER_VERSION = "d76c1c495f17a96d61ef0556754be993785def3b48db2fa63a0e999363745839"

BANDS = ("low", "mid", "high")
AGE_LOW, AGE_HIGH = 18.0, 78.0
PARTS = ("eyes", "nose", "mouth", "brows", "skin", "hair")


class _Quantity(NamedTuple):
    """One identity dimension: the quantity is centre + span * amplitude * z', z' = 2 tanh(z/2); `age` shifts z'."""

    name: str
    centre: float
    span: float
    unit: str
    meaning: str
    age: float = 0.0


_U = "half image widths"
_IDENTITY: Mapping[str, tuple[_Quantity, ...]] = {
    "low": (
        _Quantity("head_width", 0.555, 0.024, _U, "half width of the head at the cheekbones", 0.2),
        _Quantity("skull_top", -0.80, 0.026, _U, "height of the top of the skull (v, down)"),
        _Quantity("chin", 0.70, 0.030, _U, "height of the chin (v, down)", 0.2),
        _Quantity("jaw_taper", 0.19, 0.06, "1", "share of the width that is lost towards the jaw", -0.5),
        _Quantity("squareness", 0.30, 0.11, "1", "squareness of the outline: 0 an ellipse, 1 a square", 0.4),
        _Quantity("cheekbones", 0.045, 0.032, "1", "relief of the cheekbones", -0.2),
        _Quantity("melanin", 0.46, 0.36, "1", "melanin of the skin: 0 light, 1 dark"),
        _Quantity("undertone", 0.0, 0.16, "1", "skin undertone: below 0 cool, above 0 warm"),
        _Quantity("flush", 0.20, 0.10, "1", "redness of cheeks, nose and ears", 0.3),
        _Quantity("hair_melanin", 0.85, 0.52, "1", "melanin of the hair: 0 blond, 1 black", -0.3),
        _Quantity("hair_red", 0.16, 0.20, "1", "red pigment of the hair"),
        _Quantity("hair_grey", -3.4, 0.9, "logit", "share of grey hair", 1.9),
        _Quantity("hair_length", -0.3, 1.35, "logit", "length of the hair: below 0 short, above 1 past the jaw", -0.2),
        _Quantity("hairline", -0.545, 0.05, _U, "height of the hairline (v, down)", -0.5),
        _Quantity("baldness", -1.5, 1.6, "logit", "how far the hair has receded", 0.7),
        _Quantity("hair_volume", 0.085, 0.045, _U, "thickness of the hair over the skull", -0.2),
        _Quantity("parting", 0.0, 0.28, "1", "slant of the hairline: below 0 swept left, above 0 right"),
        _Quantity("fringe", -0.2, 1.3, "logit", "hair over the forehead"),
        _Quantity("curl", -0.8, 1.6, "logit", "curliness of the hair"),
        _Quantity("neck", 0.285, 0.030, _U, "half width of the neck", 0.2),
        _Quantity("beard", -1.9, 2.6, "logit", "density of the beard"),
        _Quantity("moustache", -1.5, 2.0, "logit", "density of the moustache, beard apart"),
    ),
    "mid": (
        _Quantity("eye_spacing", 0.226, 0.010, _U, "half distance of the eye centres"),
        _Quantity("eye_height", -0.06, 0.014, _U, "height of the eyes (v, down)"),
        _Quantity("eye_size", 0.112, 0.006, _U, "half width of an eye", -0.3),
        _Quantity("eye_tilt", 0.06, 0.065, "1", "slope of the eye axis: above 0 the outer corner is higher", -0.8),
        _Quantity("eye_opening", 0.40, 0.055, "eye half widths", "height of the upper lid", -0.5),
        _Quantity("lid_crease", 0.20, 0.055, "eye half widths", "distance of the lid crease from the lid", -0.4),
        _Quantity("iris_melanin", 0.70, 0.42, "1", "melanin of the iris: 0 blue, .5 green, 1 brown"),
        _Quantity("iris_size", 0.47, 0.022, "eye half widths", "radius of the iris"),
        _Quantity("lashes", 0.75, 0.16, "1", "darkness of the lash line", -0.5),
        _Quantity("brow_height", 0.150, 0.014, _U, "distance of the brows from the eyes", -0.7),
        _Quantity("brow_thickness", 0.023, 0.0042, _U, "half thickness of the brows", 0.3),
        _Quantity("brow_arch", 0.028, 0.014, _U, "arch of the brows"),
        _Quantity("brow_tilt", 0.00, 0.075, "1", "slope of the brows: above 0 the outer end is higher", -0.4),
        _Quantity("brow_density", 0.72, 0.13, "1", "opacity of the brows", -0.2),
        _Quantity("nose_length", 0.25, 0.018, _U, "height of the nose tip (v, down)", 0.5),
        _Quantity("nose_width", 0.098, 0.011, _U, "half width over the nostrils", 0.5),
        _Quantity("nose_bridge", 0.115, 0.020, _U, "relief of the nose bridge"),
        _Quantity("nose_tip", 0.075, 0.014, _U, "relief of the nose tip", 0.4),
        _Quantity("mouth_height", 0.425, 0.013, _U, "height of the mouth (v, down)", 0.2),
        _Quantity("mouth_width", 0.185, 0.013, _U, "half width of the mouth", 0.3),
        _Quantity("upper_lip", 0.036, 0.0075, _U, "height of the upper lip", -0.8),
        _Quantity("lower_lip", 0.048, 0.0085, _U, "height of the lower lip", -0.7),
        _Quantity("lip_colour", 0.55, 0.17, "1", "redness of the lips", -0.5),
    ),
    "high": (
        _Quantity("nasolabial", -1.4, 0.55, "logit", "depth of the folds from nose to mouth", 1.7),
        _Quantity("forehead_lines", -2.6, 0.65, "logit", "depth of the lines on the forehead", 1.9),
        _Quantity("eye_bags", -1.5, 0.55, "logit", "depth of the bags under the eyes", 1.5),
        _Quantity("crows_feet", -2.6, 0.6, "logit", "lines at the outer eye corners", 1.8),
        _Quantity("freckles", -2.6, 1.0, "logit", "density of freckles"),
        _Quantity("moles", 0.55, 0.20, "1", "darkness of the moles", 0.3),
        *(
            _Quantity(f"mole{i}_{axis}", 0.0, 0.10, _U, f"place of mole {i} from its seat in this world, {axis}")
            for i in (1, 2, 3, 4)
            for axis in ("u", "v")
        ),
        *(_Quantity(f"texture{i}", 0.0, 0.55, "1", f"weight of band-passed skin pattern {i}") for i in range(1, 6)),
    ),
}
_QUANTITIES = tuple((band, q) for band in BANDS for q in _IDENTITY[band])


class _Nuisance(NamedTuple):
    """One nuisance dimension. kind: normal (clipped to the range), uniform, or chance (1 with probability sd)."""

    name: str
    kind: str
    neutral: float
    sd: float
    low: float
    high: float
    unit: str
    meaning: str


_NUISANCE: tuple[_Nuisance, ...] = (
    _Nuisance("age", "uniform", 35.0, 17.3, AGE_LOW, AGE_HIGH, "years", "age"),
    _Nuisance("yaw", "normal", 0.0, 0.14, -0.6, 0.6, "rad", "turn of the head to the image's right"),
    _Nuisance("pitch", "normal", 0.0, 0.08, -0.35, 0.35, "rad", "nod of the head, down"),
    _Nuisance("roll", "normal", 0.0, 0.036, -0.3, 0.3, "rad", "tilt of the head, clockwise"),
    _Nuisance("scale", "normal", 0.0, 0.03, -0.15, 0.15, "ln", "logarithm of the size"),
    _Nuisance("shift_x", "normal", 0.0, 0.025, -0.15, 0.15, _U, "shift to the right"),
    _Nuisance("shift_y", "normal", 0.0, 0.025, -0.15, 0.15, _U, "shift down"),
    _Nuisance("smile", "normal", 0.15, 0.45, -1.0, 1.6, "1", "smile; below 0 a frown"),
    _Nuisance("mouth_open", "normal", 0.0, 0.35, 0.0, 1.2, "1", "opening of the mouth"),
    _Nuisance("brow_raise", "normal", 0.0, 0.5, -1.5, 1.5, "1", "raised or (below 0) knitted brows"),
    _Nuisance("blink", "normal", 0.0, 0.10, 0.0, 0.9, "1", "closing of the eyes"),
    _Nuisance("gaze_x", "normal", 0.0, 0.12, -0.4, 0.4, "eye half widths", "gaze to the right"),
    _Nuisance("gaze_y", "normal", 0.0, 0.05, -0.2, 0.2, "eye half widths", "gaze down"),
    _Nuisance(
        "hair_length_change", "normal", 0.0, 0.45, -2.0, 2.0, "1", "longer or shorter hair, in units of identity"
    ),
    _Nuisance("beard_change", "normal", 0.0, 0.30, -2.0, 2.0, "1", "more or less beard, in units of identity"),
    _Nuisance("light_azimuth", "normal", 0.0, 0.5, -1.3, 1.3, "rad", "light from the image's right"),
    _Nuisance("light_elevation", "normal", 0.55, 0.18, -0.2, 1.2, "rad", "light from above"),
    _Nuisance("light_warm", "normal", 0.0, 0.08, -0.3, 0.3, "ln", "light colour: red against blue"),
    _Nuisance("light_green", "normal", 0.0, 0.03, -0.15, 0.15, "ln", "light colour: green against magenta"),
    _Nuisance("exposure", "normal", 0.0, 0.16, -0.6, 0.6, "ln", "exposure"),
    _Nuisance("glasses", "chance", 0.0, 0.06, 0.0, 1.0, "opacity", "glasses"),
    _Nuisance("glasses_shape", "uniform", 0.5, 0.29, 0.0, 1.0, "1", "0 round, 1 square"),
    _Nuisance("glasses_tone", "uniform", 0.1, 0.29, 0.0, 1.0, "1", "0 dark, 1 light frame"),
    _Nuisance("occluder", "chance", 0.0, 0.10, 0.0, 1.0, "opacity", "a patch in front of the face"),
    _Nuisance("occluder_x", "uniform", 0.4, 0.4, -0.7, 0.7, _U, "its place, right"),
    _Nuisance("occluder_y", "uniform", 0.4, 0.4, -0.7, 0.7, _U, "its place, down"),
    _Nuisance("occluder_size", "uniform", 0.2, 0.06, 0.12, 0.32, _U, "half its width"),
    _Nuisance("occluder_angle", "uniform", 0.0, 0.9, -1.57, 1.57, "rad", "its turn"),
    *(
        _Nuisance(f"{what}_{c}", "uniform", v, 0.29, 0.0, 1.0, "1", f"{c} of the {long}")
        for what, long, values in (
            ("occluder", "patch", (0.3, 0.4, 0.6)),
            ("clothes", "clothes", (0.25, 0.3, 0.4)),
            ("background", "background, upper left", (0.55, 0.6, 0.65)),
            ("background2", "background, lower right", (0.4, 0.42, 0.45)),
        )
        for c, v in zip(("red", "green", "blue"), values, strict=True)
    ),
    *(_Nuisance(f"blob{i}", "normal", 0.0, 1.0, -3.0, 3.0, "1", f"blurred background shape {i}") for i in range(1, 5)),
    _Nuisance("noise", "uniform", 0.0, 0.0078, 0.0, 0.027, "1", "standard deviation of the sensor noise"),
    *(
        _Nuisance(f"noise{i}", "normal", 0.5, 1.0, -4.0, 4.0, "1", f"mixing weight {i} of the noise")
        for i in range(1, 9)
    ),
)
_RGB = ("red", "green", "blue")
_CPU_CHUNK = 60_000  # pixels drawn together: fields of this size stay in the cache
_TEXELS = 128  # a period of the skin and hair patterns; one period spans the image
_SKIN_BANDS = (5.0, 9.0, 13.0, 18.0, 24.0)  # cycles an image width
_LIGHT_SKIN, _MELANIN, _BLOOD = (0.10, 0.36, 0.60), (0.95, 1.30, 1.65), (0.02, 0.75, 0.60)
_MOLE_SEATS = ((-0.26, 0.16), (0.30, 0.22), (0.13, -0.30), (-0.14, 0.52))


_H = 0.8493218002880191  # sqrt(log2(e) / 2): exp(-x^2 / 2) = exp2(-(_H x)^2), and exp2 is the fast one on a CPU


def _edge(distance: Tensor, px: Tensor | float, width: float = 0.004) -> Tensor:
    """Soft step at distance 0, `width` wide but never sharper than a pixel."""
    return _step(distance, 1 / (width + 0.28 * px))


def _step(x: Tensor, slope: Tensor | float) -> Tensor:
    return torch.sigmoid((x * slope).clamp(-40, 40))  # beyond that are subnormal numbers, slow on a CPU


def _line(distance: Tensor, sigma: float, px: Tensor | float) -> Tensor:
    """Gaussian ridge at distance 0; below a pixel it widens and pales, so that its integral stays."""
    narrow = (sigma * sigma + 0.1 * px * px) ** -0.5
    return torch.exp2(-(distance * (_H * narrow)).square()) * (sigma * narrow)


def _bump(x: Tensor, y: Tensor, sx: Tensor | float, sy: Tensor | float) -> Tensor:
    a, b = x * (_H / sx), y * (_H / sy)
    return torch.exp2(-torch.addcmul(a.square(), b, b))


def _ridge(x: Tensor, sigma: Tensor | float) -> Tensor:
    return torch.exp2(-(x * (_H / sigma)).square())


def _plateau(x: Tensor, reach: Tensor | float) -> Tensor:
    """1 inside |x| < reach, falling as exp(-(x/reach)^4)."""
    return torch.exp2(-1.4427 * (x * (1 / reach)).square().square())


def _softplus(x: Tensor, width: float) -> Tensor:
    return 0.5 * (x + torch.sqrt(x * x + width * width))


def _round(x2: Tensor, y2: Tensor, squareness: Tensor | float) -> Tensor:
    """The squircle's radius (1 on the outline) from the squared coordinates."""
    cross = x2 * y2
    return torch.sqrt(x2 + y2 - squareness * cross / (1 + 0.15 * cross) + 1e-6)


def _rgb(*channels: Tensor) -> Tensor:
    return torch.stack(channels, dim=1)


def _number(x: object) -> bool:
    """Whether it is a finite number that is not below zero."""
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) and x >= 0


class FaceModel:
    """A world of procedural faces: fixed random patterns (from `seed`) and a renderer.

    `render(identity (N,64), nuisance (N,K)) -> (N,3,S,S)` in [0,1], a pure and differentiable function of both, also
    under torch.func. `amplitudes` scale the identity dimensions of the low, mid and high spatial bands (shape, skin and
    hair; features; folds, moles and texture); `nuisance_scale` scales the spread of sampled nuisances. Both set
    how hard recognition is. Soft clamp: a dimension acts through 2 tanh(z/2).
    """

    identity_dim: int = len(_QUANTITIES)
    nuisance_dim: int = len(_NUISANCE)
    identity_names: tuple[str, ...] = tuple(q.name for _, q in _QUANTITIES)
    nuisance_names: tuple[str, ...] = tuple(n.name for n in _NUISANCE)

    def __init__(
        self,
        seed: int = 0,
        amplitudes: tuple[float, float, float] = (0.7, 1.1, 1.4),
        nuisance_scale: float = 1.0,
        ageing: float = 0.8,
        device: torch.device | str = "cpu",
    ) -> None:
        if not isinstance(amplitudes, Sequence) or len(amplitudes) != 3 or not all(map(_number, amplitudes)):
            raise ConfigError(f"amplitudes={amplitudes!r}: give three finite numbers >= 0, for low, mid and high")
        if not _number(nuisance_scale):
            raise ConfigError(f"nuisance_scale={nuisance_scale!r}: give a finite number >= 0")
        if not _number(ageing):
            raise ConfigError(f"ageing={ageing!r}: give a finite number >= 0; 0 is no ageing, 0.8 the usual one")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigError(f"seed={seed!r}: give a whole number >= 0")
        self.seed, self.amplitudes, self.nuisance_scale, self.ageing = seed, tuple(amplitudes), nuisance_scale, ageing
        try:
            self.device = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"device={device!r}: give a device of torch, such as cpu or cuda") from error
        rng = np.random.default_rng(seed)
        f = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(_TEXELS, 1 / _TEXELS)], indexing="ij"))

        def pattern(response: np.ndarray) -> np.ndarray:
            field = np.fft.ifft2(np.fft.fft2(rng.standard_normal(f.shape)) * response).real
            return field.ravel() / field.std()

        self._skin = np.stack([pattern(np.exp(-0.5 * ((f - c) / (0.22 * c)) ** 2)) for c in _SKIN_BANDS])
        self._hair = pattern(np.exp(-0.5 * ((f - 14) / 9) ** 2))
        self._drift = rng.standard_normal((self.identity_dim, self.identity_dim)) / math.sqrt(self.identity_dim)
        self._seats = np.array(_MOLE_SEATS) + rng.normal(0, 0.04, (4, 2))
        self._cache: dict[tuple, Tensor] = {}

    def to(self, device: torch.device | str) -> FaceModel:
        """Sample on `device` from now on; `render` always works where its arguments are."""
        self.device = torch.device(device)
        return self

    def sample_identity(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """-> (n,64) standard normal, clipped to +-4. Without a generator: the model's own seed."""
        g = generator if generator is not None else torch.Generator().manual_seed(self.seed)
        return torch.randn(n, self.identity_dim, generator=g, device=g.device).clamp(-4, 4).to(self.device)

    def sample_nuisance(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """-> (n,K), each column inside its range of `describe()`. Without a generator: the model's own seed."""
        g = generator if generator is not None else torch.Generator().manual_seed(self.seed + 1)
        normal = torch.randn(n, self.nuisance_dim, generator=g, device=g.device)
        uniform = torch.rand(n, self.nuisance_dim, generator=g, device=g.device)
        columns = []
        for i, q in enumerate(_NUISANCE):
            if q.kind == "normal":
                own = 1.0 if q.name.startswith(("noise", "blob")) else self.nuisance_scale
                column = (q.neutral + own * q.sd * normal[:, i]).clamp(q.low, q.high)
            elif q.kind == "uniform":
                column = q.low + (q.high - q.low) * uniform[:, i]
            else:
                column = (uniform[:, i] < q.sd * self.nuisance_scale).float()
            columns.append(column)
        return torch.stack(columns, 1).to(self.device)

    def neutral(self, n: int) -> Tensor:
        """-> (n,K): frontal, 35 years, plain light, no glasses, no patch, no noise."""
        return torch.tensor([q.neutral for q in _NUISANCE]).repeat(n, 1).to(self.device)

    def describe(self) -> pd.DataFrame:
        """One row a column of identity (groups low, mid, high) and nuisance: name, group, unit, low, high, sd, meaning.

        An identity column is a z-score in [-4, 4]; `quantity`, `quantity_low` and `quantity_high` say which range of
        the face it spans at a standard age, in `unit`.
        """
        rows = []
        for band, q in _QUANTITIES:
            reach = 2 * math.tanh(2) * q.span * self.amplitudes[BANDS.index(band)]
            rows.append((q.name, band, q.unit, -4.0, 4.0, 1.0, q.meaning, q.centre - reach, q.centre + reach))
        for n in _NUISANCE:
            rows.append((n.name, "nuisance", n.unit, n.low, n.high, n.sd, n.meaning, n.low, n.high))
        names = ["name", "group", "unit", "low", "high", "sd", "meaning", "quantity_low", "quantity_high"]
        return pd.DataFrame(rows, columns=names)

    def constant(self, name: str, like: Tensor, size: int = 0) -> Tensor:
        key = (name, size, like.device, like.dtype)
        if key not in self._cache:
            value = getattr(self, f"_{name}", None)
            if name == "skin":  # a pixel averages its area, so each band pales with the pixel's size
                value = self._skin * np.sinc(np.array(_SKIN_BANDS) / size)[:, None]
            elif name == "noise":
                value = np.random.default_rng((self.seed, size)).standard_normal((8, 3 * size * size))
            elif name == "scale":
                value = np.array([q.span * self.amplitudes[BANDS.index(b)] for b, q in _QUANTITIES])
            elif name == "age":
                value = np.array([q.age * q.span for _, q in _QUANTITIES])
            elif name == "centre":
                value = np.array([q.centre for _, q in _QUANTITIES])
            self._cache[key] = torch.as_tensor(np.asarray(value), dtype=like.dtype, device=like.device)
        return self._cache[key]

    def quantities(self, identity: Tensor, nuisance: Tensor) -> dict[str, Tensor]:
        """(N,64), (N,K) -> every named quantity, each (N,1,1): the identity at that age, and the nuisance as it is."""
        z = 2 * torch.tanh(0.5 * identity)
        t = (nuisance[:, :1] - 0.5 * (AGE_LOW + AGE_HIGH)) / (0.5 * (AGE_HIGH - AGE_LOW))
        scale = self.constant("scale", identity)
        change = self.constant("age", identity) + 0.5 * scale * torch.tanh(z @ self.constant("drift", identity))
        values = self.constant("centre", identity) + scale * z + self.ageing * t * change
        p = {q.name: values[:, i, None, None] for i, (_, q) in enumerate(_QUANTITIES)}
        p |= {q.name: nuisance[:, i, None, None] for i, q in enumerate(_NUISANCE)}
        return p

    def __call__(
        self, identity: Tensor, nuisance: Tensor, size: int = 112, masks: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        return self.render(identity, nuisance, size, masks)

    def render(
        self, identity: Tensor, nuisance: Tensor, size: int = 112, masks: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """(N,64), (N,K) -> (N,3,S,S) in [0,1], RGB; with `masks` also {part: (N,1,S,S)} in [0,1].

        Parts are soft, all but disjoint, and follow the pose; glasses and the patch do not hide them. Raises
        ConfigError on wrong shapes, dtypes or sizes.
        """
        for name, x, width in (("identity", identity, self.identity_dim), ("nuisance", nuisance, self.nuisance_dim)):
            if x.ndim != 2 or x.shape[1] != width:
                raise ConfigError(f"{name} has shape {tuple(x.shape)}: it must be (N,{width})")
            if not x.is_floating_point():
                raise ConfigError(f"{name} has dtype {x.dtype}: it must be a floating point tensor")
        if len(identity) != len(nuisance):
            raise ConfigError(f"{len(identity)} identities but {len(nuisance)} nuisances: give one nuisance each")
        if isinstance(size, bool) or not isinstance(size, int) or size < 4:
            raise ConfigError(f"size={size!r}: it must be a whole number of pixels, 4 or more")
        nuisance = nuisance.to(identity.dtype)
        # Small chunks stay in the cache of a CPU; a GPU wants large ones.
        chunk = max(1, (_CPU_CHUNK if identity.device.type == "cpu" else 8_000_000) // (size * size))
        parts = [
            _Face(self, i, n, size).draw(masks)
            for i, n in zip(identity.split(chunk), nuisance.split(chunk), strict=True)
        ]
        images = torch.cat([image for image, _ in parts])
        if not masks:
            return images
        return images, {part: torch.cat([m[part] for _, m in parts]) for part in PARTS}

    def images(self, identity: Tensor, nuisance: Tensor, size: int = 112, workers: int | None = None) -> Tensor:
        """`render` without derivatives; on a CPU `workers` (torch's threads) chunks at a time.

        One thread a chunk: the operations are too small to gain from threads inside each of them.
        """
        threads = torch.get_num_threads()
        workers = threads if workers is None else workers

        def draw(some: slice) -> Tensor:
            torch.set_num_threads(1)  # of this worker; new threads inherit it until it is set back below
            with torch.no_grad():
                return self._image(identity[some], nuisance[some], size)

        step = max(1, _CPU_CHUNK // max(1, size * size))
        if identity.device.type != "cpu" or workers < 2 or len(identity) <= step:
            with torch.no_grad():
                return self._image(identity, nuisance, size)
        self._image(identity[:1], nuisance[:1], size)  # bad input fails here, and the constants are made once
        try:
            with ThreadPoolExecutor(workers) as pool:
                return torch.cat(list(pool.map(draw, (slice(i, i + step) for i in range(0, len(identity), step)))))
        finally:
            torch.set_num_threads(threads)

    def _image(self, identity: Tensor, nuisance: Tensor, size: int) -> Tensor:
        image = self.render(identity, nuisance, size)
        assert isinstance(image, Tensor)
        return image

    def look_up(self, table: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Bilinear look-up in periodic patterns (N or 1, T*T) at (N,S,S) coordinates; one period is 2 units."""
        n, s, _ = x.shape
        x, y = x.flatten(1) * (0.5 * _TEXELS), y.flatten(1) * (0.5 * _TEXELS)
        x0, y0 = x.detach().floor(), y.detach().floor()
        fx, fy = x - x0, y - y0
        c0, r0 = x0.long() & (_TEXELS - 1), y0.long() & (_TEXELS - 1)
        c1, r1 = (c0 + 1) & (_TEXELS - 1), ((r0 + 1) & (_TEXELS - 1)) * _TEXELS
        r0 = r0 * _TEXELS
        table = table.expand(n, -1)
        top = torch.lerp(table.gather(1, r0 + c0), table.gather(1, r0 + c1), fx)
        bottom = torch.lerp(table.gather(1, r1 + c0), table.gather(1, r1 + c1), fx)
        return torch.lerp(top, bottom, fy).reshape(n, s, s)


class _Face:
    """One chunk on its way to an image: coordinates first, then one method a part; fields die with their method."""

    def __init__(self, model: FaceModel, identity: Tensor, nuisance: Tensor, size: int) -> None:
        self.model, self.like, self.size = model, identity, size
        self.p = p = model.quantities(identity, nuisance)
        axis = torch.linspace(-1 + 1 / size, 1 - 1 / size, size, dtype=identity.dtype, device=identity.device)
        self.y0, self.x0 = axis[:, None], axis[None, :]
        zoom = torch.exp(-p["scale"])
        self.px = px = 2 / size * zoom
        # Pose: image -> head plane, then two fixed-point steps against the parallax of the head's depth.
        c, s = torch.cos(p["roll"]) * zoom, torch.sin(p["roll"]) * zoom
        self.xs, self.ys = self.x0 - p["shift_x"], self.y0 - p["shift_y"]
        a, b = c * self.xs + s * self.ys, c * self.ys - s * self.xs
        cy, sy, cp, sp = torch.cos(p["yaw"]), torch.sin(p["yaw"]), torch.cos(p["pitch"]), torch.sin(p["pitch"])
        self.turn = (cy * cp, sy, sp)
        u, v = a, b
        for _ in range(2):
            depth = 0.34 * _bump(u, v + 0.05, 0.42, 0.6) + 0.09 * _bump(u, v - p["nose_length"], 0.09, 0.14)
            u, v = (a - sy * depth) * (1 / cy), (b - sp * depth) * (1 / cp)
        self.u, self.v = u, v
        self.au = torch.sqrt(u * u + 1e-5)  # left and right folded together
        self.side = u / self.au
        # The outline: a squircle that tapers to jaw and forehead.
        self.jaw = p["chin"] + 0.05 * p["mouth_open"]
        taper = 1 - p["jaw_taper"] * _step(v - 0.36, 8.0) - 0.09 * _step(-0.42 - v, 10.0)
        vc = v + 0.06
        up, down = vc.clamp(max=0) * (1 / (-0.06 - p["skull_top"])), vc.clamp(min=0) * (1 / (self.jaw + 0.06))
        square = p["squareness"].clamp(0, 0.8)
        self.radius = _round((u / (taper * p["head_width"])).square(), up * up + down * down, square * square)
        self.head = _edge((1 - self.radius) * 0.5, px)
        # Features in their own coordinates: eye half widths; mouth half widths; below the nose tip.
        self.epx = px / p["eye_size"]
        self.es = (self.au - p["eye_spacing"]) * (1 / p["eye_size"])
        self.et = (v - p["eye_height"]) * (1 / p["eye_size"]) + p["eye_tilt"] * self.es
        self.mw = p["mouth_width"] * (1 + 0.14 * p["smile"] - 0.10 * p["mouth_open"])
        self.ms2 = (u * (1 / self.mw)).square()
        self.mt = v - p["mouth_height"] + 0.030 * p["smile"] * (self.ms2 - 0.5) / (1 + 0.2 * self.ms2)
        self.nv = v - p["nose_length"]
        self.brow_v = v - p["eye_height"] + p["brow_height"] + 0.02 * p["brow_raise"]
        el, az = p["light_elevation"], p["light_azimuth"]
        self.lx, self.ly, self.lz = torch.sin(az) * torch.cos(el), -torch.sin(el), torch.cos(az) * torch.cos(el)
        self.hair_base = self._hair_colour()

    def draw(self, masks: bool) -> tuple[Tensor, dict[str, Tensor]]:
        hair, front, back, strand, rim = self._hair()
        image = self._background()
        image = torch.lerp(image, hair * 0.5, back[:, None])
        image, body = self._body(image)
        image = torch.lerp(image, self._front(strand, rim), self.head[:, None])
        image = torch.lerp(image, hair, front[:, None])
        image = self._develop(self._patch(self._glasses(image)))
        return image, self._masks(front, back * (1 - body)) if masks else {}

    def _relief(self) -> tuple[Tensor, Tensor, Tensor]:
        """-> height of the skin, blood and shadow pigments that go with it, each (N,S,S)."""
        p, u, v, au, nv, px = self.p, self.u, self.v, self.au, self.nv, self.px
        nw = p["nose_width"]
        tip = _bump(u, nv, 0.062, 0.056)
        wing = _bump(au - 0.74 * nw, nv - 0.020, 0.30 * nw, 0.032)
        down = _step(v - p["eye_height"] - 0.01, 20.0)
        ridge = _ridge(u / (0.046 + 0.08 * down * (v + 0.10)), 1.0) * _step(0.045 - nv, 26.0)
        ridge = ridge * (p["nose_bridge"] * (0.40 + down * (0.66 + 1.2 * v))) * _step(self.brow_v + 0.03, 28.0)
        fold = _line(au - 0.95 * nw - 0.02 - 0.55 * nv, 0.014, px) * _ridge(nv - 0.085, 0.07)
        fold = fold * torch.sigmoid(p["nasolabial"] + 1.1 * p["smile"])
        cheek = _bump(au - 0.33, v - 0.16 + 0.02 * p["smile"], 0.12, 0.10)
        socket = _bump(au - 0.215, v - p["eye_height"] + 0.015, 0.11, 0.058)
        lines = torch.sigmoid(p["forehead_lines"] + 0.8 * p["brow_raise"])
        wrinkle = torch.sin(v * 88 + 2.2 * au) * _bump(u, v + 0.36, 0.22, 0.055) * lines
        height = (
            0.42 * torch.sqrt(_softplus(1 - self.radius.square(), 0.15) + 0.01)
            + 0.9 * ridge
            + p["nose_tip"] * tip
            + 0.036 * wing
            + (p["cheekbones"] + 0.012 * p["smile"]) * cheek
            - 0.048 * socket
            + 0.022 * _bump(au - 0.20, self.brow_v, 0.15, 0.045)
            + 0.020 * _bump(u, self.mt - 0.030 - 0.04 * p["mouth_open"], 0.62 * self.mw, 0.022)
            + 0.012 * _bump(u, self.mt + 0.022, 0.55 * self.mw, 0.02)
            + 0.030 * _bump(u, v - self.jaw + 0.115, 0.12, 0.06)
            - 0.018 * _bump(au - 0.36, v - 0.42, 0.10, 0.12)
            - 0.022 * fold
            + 0.006 * wrinkle
        )
        blush = _bump(au - 0.30, v - 0.20, 0.12, 0.10)
        blood = p["flush"] * (0.5 + 1.2 * blush + 0.8 * tip + 0.6 * wing)
        shadow = (
            1.0 * _bump(au - 0.48 * nw, nv - 0.042, 0.019, 0.009)
            + 0.18 * _bump(u, nv - 0.066, nw * 0.7, 0.018)
            + 0.55 * fold
            + 0.20 * socket
            + 0.28 * _line(au - nw * 1.0, 0.010, px) * _ridge(nv - 0.018, 0.030)
            + 0.20 * _bump(u, self.mt - 0.085 - 0.07 * p["mouth_open"], 0.07, 0.018)
            + 0.16 * wrinkle
        )
        return height, blood, shadow

    def _light(self, height: Tensor) -> tuple[Tensor, Tensor]:
        """Height -> light (N,3,S,S), wrapped so that the terminator is soft and reddish, and the shine (N,S,S)."""
        flat, sy, sp = self.turn
        h = height * flat - self.u * sy - self.v * sp
        k = 0.5 / self.px
        hx, hy = (h[:, :, 2:] - h[:, :, :-2]) * k, (h[:, 2:] - h[:, :-2]) * k
        hx = torch.cat([hx[:, :, :1], hx, hx[:, :, -1:]], 2)
        hy = torch.cat([hy[:, :1], hy, hy[:, -1:]], 1)
        inv = torch.rsqrt(1 + hx * hx + hy * hy)
        side = self.lx * hx + self.ly * hy
        facing = (self.lz - side) * inv
        # The half vector between light and viewer; exp(k (x - 1)) is close to the power x^k.
        shine = torch.exp2(36 * ((1 + self.lz - side) * inv * torch.rsqrt(2 + 2 * self.lz) - 1))
        ambient = 0.26 + 0.09 * (hy * inv)
        wraps = [(w, 1.0 / (1 + w)) for w in (0.40, 0.30, 0.25)]
        return _rgb(*(ambient + 1.06 * _softplus(facing * k_ + w * k_, 0.12) for w, k_ in wraps)), shine

    def _skin_colour(self, melanin: Tensor, blood: Tensor, shadow: Tensor | float) -> Tensor:
        """Pigments (N,h,w) -> reflectance (N,3,h,w): each absorbs per channel."""
        tone, table = self.p["undertone"], zip(_LIGHT_SKIN, _MELANIN, _BLOOD, (0.08, 0.0, -0.55), strict=True)
        return _rgb(
            *(
                torch.exp2((base + m * melanin + r * blood + 1.1 * shadow - t * tone) * -1.4427)
                for base, m, r, t in table
            )
        )

    def _front(self, strand: Tensor, rim: Tensor) -> Tensor:
        """The face without the hair of the head, as light (N,3,S,S)."""
        p, u, v = self.p, self.u, self.v
        height, blood, shadow = self._relief()
        light, shine = self._light(height)
        weights = torch.cat([p[f"texture{i}"][:, 0] for i in range(1, len(_SKIN_BANDS) + 1)], 1)
        texture = self.model.look_up(weights @ self.model.constant("skin", self.like, self.size), u, v)
        freckle = torch.sigmoid(p["freckles"] + 2.2 * texture) * _bump(u, v - 0.12, 0.30, 0.13)
        melanin = _softplus(p["melanin"], 0.1) + 0.034 * texture + 0.20 * freckle
        seats = self.model.constant("seats", self.like)
        tight = 1 / (0.011**2 + 0.1 * self.px * self.px)
        mole = torch.zeros_like(u)
        for i in range(len(_MOLE_SEATS)):
            du, dv = u - seats[i, 0] - p[f"mole{i + 1}_u"], v - seats[i, 1] - p[f"mole{i + 1}_v"]
            mole = mole + torch.exp2(torch.addcmul(du * du, dv, dv) * (-0.7213 * tight))
        lips, inside, gape, seam = self._mouth(light)
        eyes, opening, lash, creases = self._eyes(light)
        shadow = shadow + creases + 0.10 * lips + seam + p["moles"] * (0.011**2 * tight) * 1.1 * mole
        shadow = shadow + 0.35 * _step(rim - 0.95, 16.0)  # under the hair
        skin = self._skin_colour(melanin, blood - 0.04 * texture + lips * p["lip_colour"] * 1.5, shadow)
        whiskers, brows = self._whiskers(lips, strand), self._brows(strand)
        face = skin * light + (0.085 * (1 - whiskers) * shine)[:, None]
        face = torch.lerp(face, eyes, opening[:, None])
        face = torch.lerp(face, gape, inside[:, None])
        face = torch.lerp(face, self.hair_base * 0.33 * light, (whiskers * 0.92)[:, None])
        face = torch.lerp(face, self.hair_base * 0.38, brows[:, None])
        return face * (1 - lash)[:, None]

    def _eyes(self, light: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> eyeball (N,3,S,S), the lids' opening, lashes, and shadow of lid creases, bags and crow's feet."""
        p, es, et, epx = self.p, self.es, self.et, self.epx
        es2 = es * es
        inner = 1 - es2
        height = p["eye_opening"] * (1 - 0.95 * p["blink"]) * (1 + 0.12 * p["brow_raise"] - 0.08 * p["smile"])
        lid = et + height * inner * (1 - 0.22 * es)
        floor = et - (0.22 - 0.05 * p["smile"] - 0.16 * p["blink"]) * inner * (1 + 0.15 * es)
        opening = _edge(lid, epx, 0.03) * _edge(-floor, epx, 0.03)
        width = _plateau(es, 1.16)
        lash = _line(lid - 0.01, 0.085, epx) * width * (p["lashes"] * (1 - 0.4 * p["blink"]))
        lash = lash + 0.30 * _line(floor, 0.055, epx) * width * p["lashes"]
        creases = 0.42 * _line(lid + p["lid_crease"] * (0.6 + 0.4 * inner), 0.07, epx) * width
        creases = creases + (0.45 * torch.sigmoid(p["eye_bags"])) * _line(floor - 0.30, 0.10, epx) * width
        feet = torch.sin(13 * et + 2 * es) * _bump(es - 1.55, et, 0.28, 0.40)
        creases = creases + (0.22 * torch.sigmoid(p["crows_feet"] + 1.5 * p["smile"])) * feet
        gx, gy = es - self.side * p["gaze_x"], et - p["gaze_y"] + 0.06
        r = torch.sqrt(gx * gx + gy * gy + 1e-4)
        iris, pupil = _edge(p["iris_size"] - r, epx, 0.025), _edge(0.20 - r, epx, 0.03)
        m = _softplus(p["iris_melanin"], 0.2)
        colour = _rgb(*(torch.exp(-a - b * m) for a, b in ((1.75, 0.42), (1.10, 1.30), (0.62, 2.6))))
        dim = 1 - 0.55 * torch.exp2(_softplus(lid, 0.05) * -8.5)  # the shadow of the upper lid
        ball = torch.lerp((0.74 - 0.16 * es2)[:, None], colour * (0.55 + 1.1 * r)[:, None], iris[:, None])
        ball = ball * (dim * (1 - 0.95 * pupil) * (1 - 0.6 * _line(r - p["iris_size"], 0.08, epx)))[:, None]
        glint = _bump(gx - self.side * (0.07 + 0.16 * self.lx), gy + 0.17, 0.085, 0.085)
        return ball * (0.45 + 0.55 * light) + 0.8 * glint[:, None], opening, lash.clamp(max=0.95), creases

    def _mouth(self, light: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> lips, the gap between them, what it shows (N,3,S,S), and the seam's shadow."""
        p, mt, ms2, px = self.p, self.mt, self.ms2, self.px
        inner = 1 - ms2
        wide = 0.070 * _softplus(p["mouth_open"], 0.05) + 0.004 * _softplus(p["smile"], 0.2)
        gap = wide * inner
        roof = mt + 0.25 * gap
        bow = 1 - 0.24 * _ridge(self.u, 0.02) + 0.10 * _ridge(self.au - 0.045, 0.021)
        top = roof + p["upper_lip"].clamp(min=0.008) * bow * inner
        bottom = gap - mt + p["lower_lip"].clamp(min=0.012) * inner * (1.2 - 0.2 * ms2)
        lips = _edge(top, px, 0.006) * _edge(bottom, px, 0.008)
        inside = _edge(roof - 0.002, px, 0.003) * _edge(gap - mt - 0.004, px, 0.003) * _plateau(self.u, 0.95 * self.mw)
        inside = inside * (1 - torch.exp(-(wide / 0.01).square()))
        teeth = _edge(0.020 + 0.010 * p["smile"] - roof, px, 0.003) * _plateau(self.u, self.mw)
        seam = 0.85 * _line(mt - 0.3 * gap, 0.0075, px) * torch.exp2(-2.0 * (ms2 * ms2 * ms2))
        gape = _rgb(0.09 + 0.55 * teeth, 0.03 + 0.56 * teeth, 0.03 + 0.50 * teeth) * (0.40 + 0.45 * light)
        return lips, inside, gape, seam

    def _brow_area(self) -> Tensor:
        p = self.p
        s = (self.au - 0.205 - 0.06 * (p["eye_spacing"] - 0.226)) * 8.0
        rise = p["brow_arch"] * (1 - (s - 0.25).square()) + 0.125 * p["brow_tilt"] * s
        d = self.brow_v + rise + 0.0105 * p["brow_raise"] * (0.3 - s)
        d = d / (torch.sqrt(p["brow_thickness"].square() + 0.02 * self.px.square()) * (1.10 - 0.32 * s))
        return _plateau(d, 1.0) * torch.exp2(-1.4 * ((s - 0.05) * 0.95).square().square().square())

    def _brows(self, strand: Tensor) -> Tensor:
        return (self._brow_area() * self.p["brow_density"].clamp(0, 0.95) * (1 + 0.03 * strand)).clamp(0, 1)

    def _whiskers(self, lips: Tensor, strand: Tensor) -> Tensor:
        p, u = self.p, self.u
        growth = 2.0 * (p["beard"] + p["beard_change"])
        start = 0.31 + 0.11 * _plateau(u, 0.22) - 1.3 * (self.au - 0.31).clamp(min=0)
        beard = _step(self.v - start, 28.0) * torch.sigmoid(growth + 0.12 * strand)
        above = _bump(u, self.mt + 0.052, 0.11, 0.024) * torch.sigmoid(growth + 1.3 * p["moustache"] + 1.2)
        return (beard + above - beard * above) * (1 - lips) * (0.88 + 0.08 * strand).clamp(0, 1)

    def _hair_colour(self) -> Tensor:
        p = self.p
        m, r = p["hair_melanin"].clamp(0.0, 1.4), _softplus(p["hair_red"], 0.1)
        pigment = ((0.38, 2.1, 0.05), (0.72, 2.3, 0.75), (1.35, 2.0, 1.0))
        colour = _rgb(*(torch.exp(-a - b * m - c * r) for a, b, c in pigment))
        return torch.lerp(colour, torch.full_like(colour, 0.5), torch.sigmoid(p["hair_grey"])[:, None])

    def _hair(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """-> hair (N,3,S,S), its part before and behind the head, strands, and the face opening's radius.

        An outer dome minus the opening for the face, down to a length; strands run along the dome's meridians.
        """
        p, u, v, px = self.p, self.u, self.v, self.px
        long = p["hair_length"] + p["hair_length_change"] - 0.9
        length = -0.10 + 1.30 * torch.sigmoid(2.2 * long)
        bald, curl = torch.sigmoid(2.2 * (p["baldness"] - 0.3)), torch.sigmoid(2.5 * p["curl"])
        fringe = torch.sigmoid(2.5 * (p["fringe"] - 0.7)) * (1 - bald)
        volume = p["hair_volume"].clamp(min=0.025) * (1 - 0.7 * bald) + 0.04 * curl * (1 - bald)
        vh = v + 0.10
        dome = (vh.clamp(max=0) * (1 / (-0.10 - p["skull_top"] + volume))).square()
        full = torch.sigmoid(3 * (long + 0.9))
        wide = p["head_width"] + volume * (0.30 + 0.45 * full + 0.4 * curl) + (0.06 * full) * _step(vh, 7.0)
        across = u / wide
        table = self.model.constant("hair", self.like)[None]
        sweep = 2.2 * p["parting"] * (1 - full)
        comb = 1.25 * across * torch.rsqrt(_softplus(1 - dome, 0.35)) + sweep * v
        strand = self.model.look_up(table, comb, 0.2 * v)
        coil = self.model.look_up(table, 0.8 * u + p["curl"], 0.8 * v)
        pale = float(np.sinc(min(1.0, 34 / self.size)))  # a pixel averages the strands in it
        strand = torch.lerp(strand, 1.2 * coil, curl) * pale
        across2 = across * across
        outer = _edge((1 - torch.sqrt(across2 + dome + 1e-6)) * 0.55 + 0.012 * curl * coil, px, 0.007)
        line = p["hairline"] + 0.25 * fringe + 0.7 * p["parting"] * u - 0.42 * bald
        line = line - (0.02 * (1 - fringe)) * _ridge(u - 0.5 * p["parting"], 0.09)
        seat = 0.10
        over = ((v - seat).clamp(max=0) / (line - seat)).square()
        rim = _round((u * (1 / (p["head_width"] * (0.93 - 0.07 * full)))).square(), over, 0.62 - 0.3 * fringe)
        front = outer * _edge((rim - 1) * 0.42 + (0.006 + 0.010 * fringe) * strand, px, 0.012)
        ends = length - v + 0.02 * strand
        front, back = front * _step(ends, 36.0), outer * _step(ends, 30.0)
        lit = self.lx * 1.1 * across + self.ly * 1.1 * v + 0.75 * self.lz
        lit = (0.24 + 0.80 * _softplus(lit * torch.rsqrt(1 + 0.4 * (u * u + v * v)), 0.2)) * (1 + 0.17 * strand)
        sheen = _ridge(across2 + dome - 0.60 + 0.03 * strand, 0.12) * (0.10 + 0.05 * strand) * (1 - 0.6 * curl)
        hair = self.hair_base * lit[:, None] + (sheen[:, None] * (0.25 + self.hair_base))
        return hair, front, back, strand, rim

    def _background(self) -> Tensor:
        p, x, y = self.p, self.x0, self.y0
        ramp = torch.sigmoid(1.2 * (x + y) + 0.5 * p["blob1"])
        blobs = 0.25 * p["blob2"] * _bump(x - 0.7, y + 0.3 * p["blob3"], 0.35, 0.5)
        blobs = blobs + 0.25 * p["blob4"] * _bump(x + 0.7, y - 0.3 * p["blob1"], 0.3, 0.6)
        tones = _rgb(*(torch.lerp(p[f"background_{c}"], p[f"background2_{c}"], ramp) for c in _RGB))
        tones = torch.lerp(tones, tones.mean(1, keepdim=True), 0.6)
        return (0.06 + 0.70 * tones).square() * torch.exp2(blobs)[:, None] * 1.1

    def _body(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Neck, clothes and ears over the image; -> image and where they are."""
        p, u, v, au, px = self.p, self.u, self.v, self.au, self.px
        plain = self._skin_colour(_softplus(p["melanin"], 0.1), 0.8 * p["flush"], 0.0)
        nx = (u * (1 / p["neck"])).clamp(-2, 2)
        lit = 0.26 + 0.62 * _softplus(0.75 * self.lz + 0.55 * self.lx * nx - 0.25 * self.ly, 0.2)
        lit = lit * (0.48 + 0.52 * _step(v - self.jaw - 0.13 + 0.35 * u * u, 15.0)) * (1 - 0.08 * nx * nx)
        neck = _edge(p["neck"] + 0.5 * _softplus(v - 0.84, 0.08) - au, px, 0.006) * _edge(v - 0.35, px, 0.02)
        image = torch.lerp(image, plain * lit[:, None], neck[:, None])
        collar = (u * (1 / (p["neck"] * 1.08))).square() + ((v - 0.80) * (1 / 0.15)).square()
        cloth = _edge(v - 0.83 - 0.32 * u * u, px, 0.006) * _edge((collar - 1) * 0.12, px, 0.006)
        lit = (0.42 + 0.45 * self.lz + 0.22 * self.lx * u) * (1 - 0.25 * _bump(u, v - 0.84, 0.4, 0.07))
        fabric = _rgb(*(0.07 + 0.6 * p[f"clothes_{c}"] for c in _RGB))
        fabric = torch.lerp(fabric, fabric.mean(1, keepdim=True), 0.45).square()
        image = torch.lerp(image, fabric * lit[:, None], cloth[:, None])
        ex = (au - p["head_width"] * 0.98) * (1 / 0.060)
        ey = (v - 0.05) * (1 / 0.12) + 0.12 * ex
        ear = _edge((1 - torch.sqrt(ex * ex + ey * ey + 1e-6)) * 0.06, px)
        lit = (0.26 + 0.6 * _softplus(0.7 * self.lz + 0.5 * self.lx * self.side, 0.2)) * (
            1 - 0.45 * _bump(ex - 0.15, ey, 0.45, 0.5)
        )
        image = torch.lerp(image, plain * lit[:, None], ear[:, None])
        return image, (neck + cloth + ear).clamp(0, 1)

    def _glasses(self, image: Tensor) -> Tensor:
        p, au, px = self.p, self.au, self.px
        y = self.v - p["eye_height"]
        rx = 1.42 * p["eye_size"]
        gs, gv = (au - p["eye_spacing"]) * (1 / rx), (y - 0.02) * (1 / (1.12 * p["eye_size"]))
        r = _round(gs.square(), gv.square(), 0.8 * p["glasses_shape"])
        frame = _line(r - 1, 0.085, px / p["eye_size"])
        frame = frame + _line(y + 0.01 - 0.3 * (au * au), 0.011, px) * _edge(p["eye_spacing"] - rx - au, px)
        frame = frame + _line(y + 0.02, 0.010, px) * _edge(au - p["eye_spacing"] - rx, px) * self.head
        lens = _edge((1 - r) * p["eye_size"], px) * p["glasses"]
        glare = 0.10 * lens * _ridge(gs + 0.8 * gv - 0.5, 0.2)
        image = image * (1 - 0.10 * lens)[:, None] + glare[:, None]
        tone = 0.03 + 0.45 * p["glasses_tone"].square()
        return torch.lerp(image, tone[:, None], (frame.clamp(max=1) * (0.92 * p["glasses"]))[:, None])

    def _patch(self, image: Tensor) -> Tensor:
        p = self.p
        c, s = torch.cos(p["occluder_angle"]), torch.sin(p["occluder_angle"])
        qx, qy, half = self.xs - p["occluder_x"], self.ys - p["occluder_y"], 1 / p["occluder_size"]
        x, y = (c * qx + s * qy) * half, (c * qy - s * qx) * (half / 0.62)
        x4, y4 = x.square().square(), y.square().square()
        patch = torch.exp2(-(x4 + y4).square()) * p["occluder"]
        colour = _rgb(*(0.08 + 0.65 * p[f"occluder_{k}"] for k in _RGB))
        colour = torch.lerp(colour, colour.mean(1, keepdim=True), 0.4).square()
        return torch.lerp(image, colour * (0.85 - 0.2 * y.clamp(-1, 1))[:, None], patch[:, None])

    def _develop(self, image: Tensor) -> Tensor:
        """The camera: light colour, exposure, a film curve, sensor noise."""
        p = self.p
        warm, green, e = p["light_warm"], p["light_green"], p["exposure"]
        gain = -2.2 * torch.exp(_rgb(e + warm - 0.5 * green, e + green, e - warm - 0.5 * green))
        image = torch.sqrt(1.0001 - torch.exp2(gain * image.clamp(min=0)))
        weights = torch.cat([p[f"noise{i}"][:, 0] for i in range(1, 9)], 1)
        weights = weights * torch.rsqrt((weights * weights).sum(1, keepdim=True) + 1e-6) * p["noise"][:, 0]
        grain = weights @ self.model.constant("noise", self.like, self.size)
        return (image + grain.reshape(image.shape)).clamp(0, 1)

    def _masks(self, front: Tensor, back: Tensor) -> dict[str, Tensor]:
        p, v = self.p, self.v
        bridge = _plateau(self.u / (0.45 * p["nose_width"] + 0.5 * _softplus(v - p["eye_height"], 0.05)), 1.0)
        areas = {
            "eyes": _plateau(self.es, 1.4) * _plateau(self.et, 0.8),
            "brows": self._brow_area(),
            "mouth": _plateau(self.u, 1.02 * self.mw) * _plateau(self.mt - 0.01, 0.06 + 0.03 * p["mouth_open"]),
            "nose": bridge * _step(0.06 - self.nv, 80.0) * _step(v - p["eye_height"] - 0.01, 20.0),
        }
        rest = self.head * (1 - front)
        masks = {}
        for name, area in areas.items():
            masks[name] = (rest * area)[:, None]
            rest = rest * (1 - area)
        masks["skin"] = rest[:, None]
        masks["hair"] = (front + (1 - front) * back * (1 - self.head))[:, None]
        return masks
