"""Procedural faces: (identity, nuisance) -> image, differentiable in both, on any device.

A face lives in canonical coordinates (u right, v down, the image spans [-1, 1]). Pose maps each pixel to canonical
coordinates; a height field gives normals and shading; pigments, eyes, lips, hair and glasses are soft layers whose
edges are never sharper than a pixel, so that a render at 112 px, averaged down, looks like the render at 56 px.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrkd.errors import ConfigError

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
        _Quantity("head_width", 0.545, 0.024, _U, "half width of the head at the cheekbones", 0.2),
        _Quantity("skull_top", -0.80, 0.026, _U, "height of the top of the skull (v, down)"),
        _Quantity("chin", 0.70, 0.030, _U, "height of the chin (v, down)", 0.2),
        _Quantity("jaw_taper", 0.24, 0.055, "1", "share of the width that is lost towards the jaw", -0.5),
        _Quantity("squareness", 0.30, 0.11, "1", "squareness of the outline: 0 an ellipse, 1 a square", 0.4),
        _Quantity("cheekbones", 0.045, 0.032, "1", "relief of the cheekbones", -0.2),
        _Quantity("melanin", 0.42, 0.24, "1", "melanin of the skin: 0 light, 1 dark"),
        _Quantity("undertone", 0.0, 0.16, "1", "skin undertone: below 0 cool, above 0 warm"),
        _Quantity("flush", 0.20, 0.10, "1", "redness of cheeks, nose and ears", 0.3),
        _Quantity("hair_melanin", 0.66, 0.30, "1", "melanin of the hair: 0 blond, 1 black", -0.3),
        _Quantity("hair_red", 0.16, 0.20, "1", "red pigment of the hair"),
        _Quantity("hair_grey", -3.4, 0.9, "logit", "share of grey hair", 1.9),
        _Quantity("hair_length", -0.3, 1.35, "logit", "length of the hair: below 0 short, above 1 past the jaw", -0.2),
        _Quantity("hairline", -0.45, 0.055, _U, "height of the hairline (v, down)", -0.5),
        _Quantity("baldness", -1.6, 1.2, "logit", "how far the hair has receded", 0.7),
        _Quantity("hair_volume", 0.085, 0.030, _U, "thickness of the hair over the skull", -0.2),
        _Quantity("parting", 0.0, 0.16, "1", "slant of the hairline: below 0 swept left, above 0 right"),
        _Quantity("curl", -0.4, 1.4, "logit", "curliness of the hair"),
        _Quantity("ears", 0.0, 0.014, _U, "how far the ears stand off", 0.5),
        _Quantity("neck", 0.285, 0.030, _U, "half width of the neck", 0.2),
        _Quantity("beard", -2.6, 2.6, "logit", "density of the beard"),
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
        _Quantity("moles", 0.75, 0.22, "1", "darkness of the moles", 0.3),
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
_TEXELS = 128  # a period of the skin and hair patterns; one period spans the image
_SKIN_BANDS = (5.0, 9.0, 13.0, 18.0, 24.0)  # cycles an image width
_LIGHT_SKIN, _MELANIN, _BLOOD = (0.10, 0.26, 0.40), (0.95, 1.35, 1.75), (0.02, 0.75, 0.60)
_MOLE_SEATS = ((-0.26, 0.16), (0.30, 0.22), (0.13, -0.30), (-0.14, 0.52))


def _exp(x: Tensor) -> Tensor:
    """e^x without subnormal results, which are a hundred times slower on a CPU; exp2 is the fast one there."""
    return torch.exp2((1.4426950408889634 * x).clamp(min=-60))


def _square(x: Tensor) -> Tensor:
    return x * x


def _edge(distance: Tensor, px: Tensor | float, width: float = 0.004) -> Tensor:
    """Soft step at distance 0, `width` wide but never sharper than a pixel."""
    return torch.sigmoid((distance * (1 / (width + 0.28 * px))).clamp(-40, 40))


def _line(distance: Tensor, sigma: Tensor | float, px: Tensor | float) -> Tensor:
    """Gaussian ridge at distance 0; below a pixel it widens and pales, so that its integral stays."""
    wide = (sigma * sigma + 0.1 * px * px) ** 0.5
    return (sigma / wide) * _exp(-0.5 * (distance / wide) ** 2)


def _bump(x: Tensor, y: Tensor, sx: Tensor | float, sy: Tensor | float) -> Tensor:
    return _exp(-0.5 * ((x / sx) ** 2 + (y / sy) ** 2))


def _softplus(x: Tensor, width: float) -> Tensor:
    return 0.5 * (x + torch.sqrt(x * x + width * width))


def _rgb(*channels: Tensor) -> Tensor:
    return torch.stack(channels, dim=1)


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
        if len(amplitudes) != 3 or not all(math.isfinite(a) and a >= 0 for a in amplitudes):
            raise ConfigError(f"amplitudes={amplitudes!r}: give three finite numbers >= 0, for low, mid and high")
        if not (math.isfinite(nuisance_scale) and nuisance_scale >= 0):
            raise ConfigError(f"nuisance_scale={nuisance_scale!r}: give a finite number >= 0")
        self.seed, self.amplitudes, self.nuisance_scale, self.ageing = seed, tuple(amplitudes), nuisance_scale, ageing
        self.device = torch.device(device)
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

    def _constant(self, name: str, like: Tensor, size: int = 0) -> Tensor:
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
        scale = self._constant("scale", identity)
        change = self._constant("age", identity) + 0.5 * scale * torch.tanh(z @ self._constant("drift", identity))
        values = self._constant("centre", identity) + scale * z + self.ageing * t * change
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
        chunk = max(1, (100_000 if identity.device.type == "cpu" else 8_000_000) // (size * size))
        parts = [
            self._draw(i, n, size, masks) for i, n in zip(identity.split(chunk), nuisance.split(chunk), strict=True)
        ]
        images = torch.cat([image for image, _ in parts])
        if not masks:
            return images
        return images, {part: torch.cat([m[part] for _, m in parts]) for part in PARTS}

    def _sample(self, table: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Bilinear look-up in periodic patterns (N or 1, T*T) at (N,S,S) coordinates; one period is 2 units."""
        n, s, _ = x.shape
        x, y = (x.reshape(n, -1) * (0.5 * _TEXELS), y.reshape(n, -1) * (0.5 * _TEXELS))
        x0, y0 = x.detach().floor(), y.detach().floor()
        fx, fy = x - x0, y - y0
        c0, r0 = x0.long() & (_TEXELS - 1), y0.long() & (_TEXELS - 1)
        c1, r1 = (c0 + 1) & (_TEXELS - 1), ((r0 + 1) & (_TEXELS - 1)) * _TEXELS
        r0 = r0 * _TEXELS
        table = table.expand(n, -1)
        top = torch.lerp(table.gather(1, r0 + c0), table.gather(1, r0 + c1), fx)
        bottom = torch.lerp(table.gather(1, r1 + c0), table.gather(1, r1 + c1), fx)
        return torch.lerp(top, bottom, fy).reshape(n, s, s)

    def _draw(self, identity: Tensor, nuisance: Tensor, size: int, masks: bool) -> tuple[Tensor, dict[str, Tensor]]:
        p = self.quantities(identity, nuisance)
        axis = torch.linspace(-1 + 1 / size, 1 - 1 / size, size, dtype=identity.dtype, device=identity.device)
        y0, x0 = axis[:, None], axis[None, :]
        zoom = _exp(-p["scale"])
        px = 2 / size * zoom

        # Pose: image -> head plane, then two fixed-point steps against the parallax of the head's depth.
        c, s = torch.cos(p["roll"]) * zoom, torch.sin(p["roll"]) * zoom
        xs, ys = x0 - p["shift_x"], y0 - p["shift_y"]
        a, b = c * xs + s * ys, c * ys - s * xs
        cy, sy = torch.cos(p["yaw"]), torch.sin(p["yaw"])
        cp, sp = torch.cos(p["pitch"]), torch.sin(p["pitch"])
        u, v = a, b
        for _ in range(2):
            depth = 0.34 * _bump(u, v + 0.05, 0.42, 0.6) + 0.09 * _bump(u, v - p["nose_length"], 0.09, 0.14)
            u, v = (a - sy * depth) / cy, (b - sp * depth) / cp
        au = torch.sqrt(u * u + 1e-5)  # left and right folded together
        side = u / au

        # The outline: a squircle that tapers to jaw and forehead.
        jaw = p["chin"] + 0.05 * p["mouth_open"]
        low = torch.sigmoid((v - 0.34) / 0.13)
        half = p["head_width"] * (1 - p["jaw_taper"] * low - 0.10 * torch.sigmoid((-0.42 - v) / 0.10))
        vc = v + 0.06
        xx = (u / half) ** 2
        yy = (vc.clamp(max=0) / (-0.06 - p["skull_top"])) ** 2 + (vc.clamp(min=0) / (jaw + 0.06)) ** 2
        square = p["squareness"].clamp(0, 0.8)
        cross = xx * yy
        f = xx + yy - square * square * cross / (1 + 0.15 * cross)
        head = _edge((1 - torch.sqrt(f + 1e-6)) * 0.5, px)

        # Features in their own coordinates.
        ew = p["eye_size"]
        es, et = (au - p["eye_spacing"]) / ew, (v - p["eye_height"]) / ew
        et = et + p["eye_tilt"] * es
        epx = px / ew
        es2 = es * es
        mw = p["mouth_width"] * (1 + 0.14 * p["smile"] - 0.10 * p["mouth_open"])
        ms = u / mw
        ms2 = ms * ms
        corner = 0.030 * p["smile"]
        mt = v - p["mouth_height"] + corner * (ms2 - 0.5) / (1 + 0.2 * ms2)
        nt, nw = p["nose_length"], p["nose_width"]
        nv = v - nt

        # Height field and light.
        g = _softplus(1 - f, 0.15)
        eye_in = 1 - es2
        tip = _bump(u, nv, 0.062, 0.052)
        wing = _bump(au - 0.78 * nw, nv - 0.022, 0.30 * nw, 0.034)
        ridge_top = torch.sigmoid((v - p["eye_height"] - 0.01) / 0.045)
        under = torch.sigmoid((nt + 0.045 - v) / 0.016)
        ridge = _exp(-0.5 * (u / (0.036 + 0.10 * ridge_top * (v + 0.15))) ** 2)
        rise = p["nose_bridge"] * (0.45 + 0.55 * ridge_top + 1.2 * (v + 0.1) * ridge_top)
        lift = torch.sigmoid(p["nasolabial"] + 1.1 * p["smile"])
        fold_u = au - (nw * 0.95 + 0.55 * (v - nt) + 0.02)
        fold_v = _exp(-(((v - nt - 0.085) / 0.10) ** 2))
        fold = _line(fold_u, 0.014, px) * fold_v * lift
        cheek = _bump(au - 0.33, v - 0.16 + 0.02 * p["smile"], 0.12, 0.10)
        socket = _bump(au - 0.215, v - p["eye_height"] + 0.015, 0.11, 0.058)
        brow_v = v - p["eye_height"] + p["brow_height"] + 0.02 * p["brow_raise"]
        ridge_brow = _bump(au - 0.20, brow_v, 0.15, 0.045)
        lower_bulge = _bump(u, mt - 0.030 - 0.04 * p["mouth_open"], 0.62 * mw, 0.022)
        upper_bulge = _bump(u, mt + 0.022, 0.75 * mw, 0.02)
        chin_bump = _bump(u, v - jaw + 0.115, 0.12, 0.06)
        hollow = _bump(au - 0.36, v - 0.42, 0.10, 0.12)
        lines = torch.sigmoid(p["forehead_lines"] + 0.8 * p["brow_raise"])
        wrinkle = lines * torch.sin(v * 88 + 2.2 * au) * _bump(u, v + 0.36, 0.22, 0.055)
        height = (
            0.42 * torch.sqrt(g + 0.01)
            + ridge * rise * under * 0.9
            + p["nose_tip"] * tip
            + 0.040 * wing
            + (p["cheekbones"] + 0.012 * p["smile"]) * cheek
            - 0.045 * socket
            + 0.020 * ridge_brow
            + 0.020 * lower_bulge
            + 0.012 * upper_bulge
            + 0.030 * chin_bump
            - 0.018 * hollow
            - 0.022 * fold
            + 0.0035 * wrinkle
        )
        height = height * (cy * cp) - u * sy - v * sp
        step = 0.5 / px
        hx = torch.cat(
            [
                height[:, :, 1:2] - height[:, :, :1],
                0.5 * (height[:, :, 2:] - height[:, :, :-2]),
                height[:, :, -1:] - height[:, :, -2:-1],
            ],
            2,
        ) * (2 * step)
        hy = torch.cat(
            [height[:, 1:2] - height[:, :1], 0.5 * (height[:, 2:] - height[:, :-2]), height[:, -1:] - height[:, -2:-1]],
            1,
        ) * (2 * step)
        el, az = p["light_elevation"], p["light_azimuth"]
        lx, ly, lz = torch.sin(az) * torch.cos(el), -torch.sin(el), torch.cos(az) * torch.cos(el)
        inv = torch.rsqrt(1 + hx * hx + hy * hy)
        facing = (lz - lx * hx - ly * hy) * inv
        up = hy * inv  # v points down, so a surface that faces up has a rising height
        # The half vector between light and viewer; exp(k(x-1)) is close to the power x^k.
        norm = torch.rsqrt(2 + 2 * lz)
        shine = _exp(26 * (((1 + lz) - lx * hx - ly * hy) * inv * norm - 1))
        ambient = 0.30 + 0.10 * up
        wrap = _rgb(*(_softplus((facing + w) / (1 + w), 0.12) for w in (0.42, 0.32, 0.27)))
        light = ambient[:, None] + 0.92 * wrap

        # Skin pigments: melanin, blood and shadow, absorbing per channel.
        z = identity.new_zeros(())
        skin_weights = torch.cat([p[f"texture{i}"][:, 0] for i in range(1, len(_SKIN_BANDS) + 1)], 1)
        texture = self._sample(skin_weights @ self._constant("skin", identity, size), u, v)
        freckle = torch.sigmoid(p["freckles"] + 2.2 * texture) * _bump(u, v - 0.12, 0.30, 0.13)
        seats = self._constant("seats", identity)
        mole = z
        for i in range(4):
            du, dv = u - seats[i, 0] - p[f"mole{i + 1}_u"], v - seats[i, 1] - p[f"mole{i + 1}_v"]
            m_px = 0.013 * 0.013 / (0.013 * 0.013 + 0.1 * px * px)
            mole = mole + m_px * _exp(-0.5 * m_px / (0.013 * 0.013) * (du * du + dv * dv))
        melanin = _softplus(p["melanin"], 0.1) + 0.10 * texture + 0.35 * freckle
        blood = (
            p["flush"] * (0.5 + 1.2 * _bump(au - 0.31, v - 0.20, 0.13, 0.11) + 0.8 * tip + 0.6 * wing) - 0.06 * texture
        )
        nostril = _bump(au - 0.46 * nw, nv - 0.046, 0.021, 0.0115)
        shadow = (
            1.6 * nostril
            + 0.30 * _bump(u, nv - 0.068, nw * 0.9, 0.022)
            + 0.50 * fold
            + 0.16 * socket
            + 0.25 * _line(au - nw * 1.02, 0.010, px) * _bump(nv - 0.015, z, 0.035, 1.0)
            + 0.22 * _bump(u, mt - 0.085 - 0.07 * p["mouth_open"], 0.07, 0.018)
            + p["moles"] * 1.3 * mole
            + 0.10 * wrinkle
        )

        # Eyes: lids bound an opening over sclera, iris and pupil.
        open_ = p["eye_opening"] * (1 - 0.95 * p["blink"]) * (1 + 0.12 * p["brow_raise"] - 0.10 * p["smile"])
        lid = et + open_ * eye_in * (1 - 0.22 * es)
        floor = et - (0.20 + 0.06 * p["smile"] - 0.14 * p["blink"]) * eye_in * (1 + 0.15 * es)
        opening = _edge(lid, epx, 0.04) * _edge(-floor, epx, 0.04)
        at_eye = _exp(-(_square(_square(0.72 * es))) - _square(_square(0.45 * et)))
        lash = _line(lid - 0.02, 0.075, epx) * _exp(-(_square(_square(0.86 * es))))
        crease = _line(lid + p["lid_crease"] * (0.6 + 0.4 * eye_in), 0.07, epx) * _exp(-(_square(_square(0.85 * es))))
        bag = _line(floor - 0.30, 0.10, epx) * _exp(-(_square(_square(0.95 * es)))) * torch.sigmoid(p["eye_bags"])
        crow = (
            torch.sigmoid(p["crows_feet"] + 1.5 * p["smile"])
            * torch.sin(13 * et + 2.0 * es)
            * _bump(es - 1.55, et, 0.28, 0.40)
        )
        shadow = shadow + 0.38 * crease + 0.45 * bag + 0.20 * crow + 0.25 * _line(floor, 0.06, epx) * at_eye
        gx, gy = es - side * p["gaze_x"], et - p["gaze_y"] + 0.06
        ir = torch.sqrt(gx * gx + gy * gy + 1e-4)
        iris = _edge(p["iris_size"] - ir, epx, 0.03)
        pupil = _edge(0.19 - ir, epx, 0.03)
        rim = _line(ir - p["iris_size"], 0.08, epx)
        glint = _bump(gx - 0.16 * side * (0.4 + lx), gy + 0.17, 0.085, 0.085)
        im = _softplus(p["iris_melanin"], 0.2)
        iris_colour = _rgb(*(_exp(-a_ - b_ * im) for a_, b_ in ((1.70, 0.45), (1.05, 1.25), (0.62, 2.5))))
        lid_shade = 1 - 0.50 * _exp(-_softplus(lid, 0.05) / 0.17)
        sclera = _rgb(*((w - 0.14 * es2) * lid_shade for w in (0.80, 0.76, 0.73)))
        shade = (lid_shade * (1 - pupil) * (1 - 0.55 * rim) * (0.75 + 0.9 * ir))[:, None]
        eyes = torch.lerp(sclera, iris_colour * shade, iris[:, None]) * (0.55 + 0.45 * light) + 0.75 * glint[:, None]

        # Mouth: two lips round a gap that shows teeth.
        lip_in = 1 - ms2
        bow = 1 - 0.22 * _exp(-((u / 0.028) ** 2)) + 0.10 * _exp(-(((au - 0.045) / 0.03) ** 2))
        gap = (0.045 * _softplus(p["mouth_open"], 0.05) + 0.004 * _softplus(p["smile"], 0.2)) * lip_in
        top = mt + 0.25 * gap + p["upper_lip"].clamp(min=0.008) * bow * lip_in
        bottom = mt - gap - p["lower_lip"].clamp(min=0.012) * lip_in * (1 + 0.25 * lip_in)
        lips = _edge(top, px, 0.006) * _edge(-bottom, px, 0.008)
        inside = _edge(mt + 0.25 * gap - 0.002, px, 0.003) * _edge(gap - mt - 0.004, px, 0.003)
        teeth = _edge(0.020 + 0.010 * p["smile"] - mt - 0.25 * gap, px, 0.003) * _exp(-1.2 * ms2 * ms2)
        seam = _line(mt - 0.3 * gap, 0.0075, px) * _exp(-(_square(_square(0.92 * ms))))
        blood = blood + lips * p["lip_colour"] * 1.15
        shadow = shadow + lips * 0.12 + seam * 0.75
        skin = _rgb(
            *(
                _exp(-base - m * melanin - r * blood - 1.1 * shadow + tone * p["undertone"])
                for base, m, r, tone in zip(_LIGHT_SKIN, _MELANIN, _BLOOD, (0.08, 0.0, -0.55), strict=True)
            )
        )

        # Hair: an outer dome minus the opening for the face, down to a length; strands run along meridians.
        length = -0.16 + 1.35 * torch.sigmoid(2.2 * (p["hair_length"] + p["hair_length_change"] - 0.9))
        bald = torch.sigmoid(1.6 * (p["baldness"] - 0.2))
        curl = torch.sigmoid(2 * p["curl"])
        volume = p["hair_volume"].clamp(min=0.03) * (1 - 0.55 * bald) + 0.02 * curl
        vh = v + 0.10
        dome = vh.clamp(max=0)
        wide = p["head_width"] + volume * (0.75 + 0.9 * torch.sigmoid((length - 0.25) / 0.1) * torch.sigmoid(vh / 0.15))
        y2 = (dome / (-0.10 - p["skull_top"] + volume)) ** 2
        meridian = u * torch.rsqrt(_softplus(1 - y2, 0.35)) / wide
        strand = self._sample(self._constant("hair", identity)[None], 2.6 * meridian + p["parting"], 0.16 * v)
        coil = self._sample(self._constant("hair", identity)[None], 0.8 * u + p["curl"], 0.8 * v)
        strand = torch.lerp(strand, 1.2 * coil, curl)
        ho = (u / wide) ** 2 + y2
        outer = _edge((1 - torch.sqrt(ho + 1e-6)) * 0.55 + 0.010 * curl * coil, px, 0.007)
        line_v = (
            p["hairline"]
            + 0.55 * p["parting"] * u
            - (0.22 + 0.1 * bald) * bald
            - 0.03 * _exp(-((u / 0.1) ** 2)) * (1 - bald)
        )
        seat = 0.10
        wi = p["head_width"] * (0.90 - 0.05 * torch.sigmoid((length - 0.3) / 0.1))
        rim_y = (v - seat).clamp(max=0) / (line_v - seat)
        fi = (u / wi) ** 2
        oy = rim_y * rim_y
        fo = torch.sqrt(fi + oy - 0.35 * fi * oy / (1 + 0.15 * fi * oy) + 1e-6)
        front = (
            outer
            * _edge((fo - 1) * 0.42 + 0.012 * strand, px, 0.012)
            * torch.sigmoid((length - v + 0.02 * strand) / 0.025)
        )
        back = outer * torch.sigmoid((length - v + 0.03 * strand) / 0.03)
        grey = torch.sigmoid(p["hair_grey"])
        hm, hr = p["hair_melanin"].clamp(0.0, 1.3), _softplus(p["hair_red"], 0.1)
        pigment = [(0.32, 2.05, 0.15), (0.62, 2.15, 0.75), (1.15, 1.85, 1.0)]
        hair_base = _rgb(*(torch.lerp(_exp(-a_ - b_ * hm - c_ * hr), z + 0.52, grey) for a_, b_, c_ in pigment))
        hn = torch.rsqrt(1 + 0.4 * (u * u + v * v))
        hair_lit = (0.34 + 0.75 * _softplus((lx * 1.1 * u / wide + ly * 1.1 * v + 0.75 * lz) * hn, 0.2)) * (
            1 + 0.26 * strand
        )
        sheen = 0.16 * _exp(-(((ho - 0.62 + 0.03 * strand) / 0.16) ** 2)) * (1 - 0.6 * curl) * (1 + 0.5 * strand)
        hair = hair_base * hair_lit[:, None] + (sheen * (0.25 + hair_base.mean(1)))[:, None]

        # Brows and beard take the colour of the hair.
        bs = (au - 0.205 - 0.06 * (p["eye_spacing"] - 0.226)) / 0.125
        arch = p["brow_arch"] * (1 - (bs - 0.25) ** 2)
        knit = 0.035 * p["brow_raise"] * (0.3 - bs)
        bd = (brow_v + arch + p["brow_tilt"] * 0.125 * bs + 0.3 * knit) / (
            p["brow_thickness"].clamp(min=0.01) * (1.05 - 0.30 * bs)
        )
        brows = (
            _exp(-(_square(_square(bd))) - _square(_square(_square((bs - 0.05) / 1.05))))
            * p["brow_density"].clamp(0, 0.95)
            * (1 + 0.18 * strand).clamp(0, 1.05)
        )
        growth = p["beard"] + p["beard_change"]
        rim_b = 0.33 + 0.10 * _exp(-(_square(_square(u / 0.24)))) - 1.15 * (au - 0.36).clamp(min=0)
        whiskers = torch.sigmoid((v - rim_b) / 0.035) * torch.sigmoid(1.3 * growth + 0.35 * strand)
        tache = _bump(u, mt + 0.052, 0.11, 0.024) * torch.sigmoid(1.3 * growth + 1.3 * p["moustache"] + 1.2) * 1.1
        whiskers = (whiskers + tache - whiskers * tache).clamp(0, 1) * (1 - lips) * (0.86 + 0.1 * strand).clamp(0, 1)
        dark = hair_base * (0.42 + 0.42 * facing)[:, None]
        lit = skin * light + 0.10 * ((1 - whiskers) * shine * (1 + 1.2 * tip))[:, None]
        lit = torch.lerp(lit, eyes, opening[:, None])
        gape = _rgb(z + 0.10 + 0.55 * teeth, z + 0.035 + 0.56 * teeth, z + 0.035 + 0.50 * teeth) * (0.45 + 0.4 * light)
        lit = torch.lerp(lit, gape, inside[:, None])
        lit = torch.lerp(lit, dark, whiskers[:, None] * 0.9)
        lit = torch.lerp(lit, hair_base * 0.45, brows[:, None])
        lit = lit * (1 - 0.85 * lash * (1 - 0.5 * p["blink"]) * p["lashes"])[:, None]

        # Behind the head: background, hair, neck, clothes, ears.
        ramp = torch.sigmoid(1.2 * (x0 + y0) + 0.5 * p["blob1"])
        blobs = 0.22 * p["blob2"] * _bump(x0 - 0.7, y0 + 0.3 * p["blob3"], 0.35, 0.5) + 0.22 * p["blob4"] * _bump(
            x0 + 0.7, y0 - 0.3 * p["blob1"], 0.3, 0.6
        )
        tones = [torch.lerp(p[f"background_{c_}"], p[f"background2_{c_}"], ramp) for c_ in ("red", "green", "blue")]
        mean = (tones[0] + tones[1] + tones[2]) / 3
        image = _rgb(*((0.06 + 0.62 * torch.lerp(t_, mean, 0.55)) ** 2 * _exp(blobs) * 1.5 for t_ in tones))
        image = torch.lerp(image, hair * 0.55, back[:, None])
        nx = u / p["neck"]
        under_chin = 0.42 + 0.58 * torch.sigmoid((v - jaw - 0.14 + 0.35 * u * u) / 0.06)
        neck_lit = (
            (0.34 + 0.55 * _softplus(0.75 * lz + 0.55 * lx * nx - 0.25 * ly, 0.2))
            * under_chin
            * (1 - 0.22 * nx * nx / (1 + nx * nx))
        )
        plain = _rgb(
            *(
                _exp(-a_ - m * _softplus(p["melanin"], 0.1) - r * 0.8 * p["flush"] + tone * p["undertone"])
                for a_, m, r, tone in zip(_LIGHT_SKIN, _MELANIN, _BLOOD, (0.08, 0.0, -0.55), strict=True)
            )
        )
        neck = _edge(p["neck"] + 0.5 * _softplus(v - 0.84, 0.08) - au, px, 0.006) * _edge(v - 0.35, px, 0.02)
        image = torch.lerp(image, plain * neck_lit[:, None], neck[:, None])
        collar = (u / (p["neck"] * 1.08)) ** 2 + ((v - 0.80) / 0.15) ** 2
        cloth = _edge(v - 0.83 - 0.32 * u * u, px, 0.006) * _edge((collar - 1) * 0.12, px, 0.006)
        fabric = _rgb(*((0.05 + 0.75 * p[f"clothes_{c_}"]) ** 2 for c_ in ("red", "green", "blue")))
        cloth_lit = (0.42 + 0.45 * lz + 0.22 * lx * u) * (1 - 0.25 * _bump(u, v - 0.84, 0.4, 0.07))
        image = torch.lerp(image, fabric * cloth_lit[:, None], cloth[:, None])
        ex = (au - p["head_width"] * 0.975 - p["ears"]) / 0.062
        ey = (v - 0.06 + 0.25 * (au - p["head_width"])) / 0.125
        er = ex * ex + ey * ey
        ear = _edge((1 - torch.sqrt(er + 1e-6)) * 0.06, px)
        ear_lit = (0.36 + 0.5 * _softplus(0.7 * lz + 0.5 * lx * side, 0.2)) * (
            1 - 0.40 * _exp(-2.2 * ((ex - 0.1) ** 2 + ey * ey))
        )
        image = torch.lerp(image, plain * _rgb(z + ear_lit, 0.92 * ear_lit, 0.92 * ear_lit), ear[:, None])
        image = torch.lerp(image, lit, head[:, None])
        image = torch.lerp(image, hair, front[:, None])

        # In front: glasses and the patch.
        gs, gv = (au - p["eye_spacing"]) / (1.42 * ew), (v - p["eye_height"] - 0.02) / (1.12 * ew)
        gs2, gv2 = gs * gs, gv * gv
        gr = torch.sqrt(gs2 + gv2 - 0.8 * p["glasses_shape"] * gs2 * gv2 / (1 + 0.15 * gs2 * gv2) + 1e-4)
        bridge = _line(v - p["eye_height"] + 0.01 - 0.3 * (au * au), 0.011, px) * _edge(
            p["eye_spacing"] - 1.40 * ew - au, px
        )
        temple = _line(v - p["eye_height"] + 0.02, 0.010, px) * _edge(au - p["eye_spacing"] - 1.38 * ew, px) * head
        frame = (_line(gr - 1, 0.085, px / ew) + bridge + temple).clamp(max=1) * p["glasses"]
        lens = _edge((1 - gr) * ew, px) * p["glasses"]
        glare = 0.10 * lens * _exp(-(((gs + gv * 0.8 - 0.5) / 0.3) ** 2))
        tone = (0.03 + 0.45 * p["glasses_tone"] ** 2) * (0.6 + 0.4 * facing)
        image = image * (1 - 0.10 * lens)[:, None] + glare[:, None]
        image = torch.lerp(image, tone[:, None], (frame * 0.92)[:, None])
        ca, sa = torch.cos(p["occluder_angle"]), torch.sin(p["occluder_angle"])
        qx, qy = xs - p["occluder_x"], ys - p["occluder_y"]
        ox, oy = (ca * qx + sa * qy) / p["occluder_size"], (ca * qy - sa * qx) / (0.62 * p["occluder_size"])
        patch = _exp(-(((ox * ox) ** 2 + (oy * oy) ** 2) ** 2)) * p["occluder"]
        colour = _rgb(*((0.08 + 0.75 * p[f"occluder_{c_}"]) ** 2 + 0 * ox for c_ in ("red", "green", "blue")))
        image = torch.lerp(image, colour * (0.85 - 0.2 * oy)[:, None], patch[:, None])

        # Camera: light colour, exposure, a film curve, sensor noise.
        w, gn, e = p["light_warm"], p["light_green"], p["exposure"]
        gain = 1.55 * _exp(_rgb(e + w - 0.5 * gn, e + gn, e - w - 0.5 * gn))
        image = torch.sqrt(1 - _exp(-gain * image.clamp(min=0)) + 1e-4)
        weights = torch.cat([p[f"noise{i}"][:, 0] for i in range(1, 9)], 1)
        weights = weights * torch.rsqrt((weights * weights).sum(1, keepdim=True) + 1e-6)
        grain = (weights @ self._constant("noise", identity, size)).reshape(-1, 3, size, size)
        image = (image + p["noise"][:, None] * grain).clamp(0, 1)
        if not masks:
            return image, {}
        seen = head * (1 - front)
        eye_part = at_eye
        nose_part = (
            _exp(-((u / (0.45 * nw + 0.5 * _softplus(v - p["eye_height"], 0.05))) ** 4))
            * torch.sigmoid((nt + 0.06 - v) / 0.012)
            * ridge_top
        )
        mouth_part = lips
        brow_part = _exp(-(_square(_square(bd))) - _square(_square(_square((bs - 0.05) / 1.05))))
        out = {}
        rest = seen
        for name, part in (("eyes", eye_part), ("brows", brow_part), ("mouth", mouth_part), ("nose", nose_part)):
            out[name] = (rest * part)[:, None]
            rest = rest * (1 - part)
        out["skin"], out["hair"] = (
            rest[:, None],
            torch.maximum(front, back * (1 - head) * (1 - neck) * (1 - cloth))[:, None],
        )
        return image, out
