"""Procedural faces: (identity, nuisance) -> image, differentiable in both, on any device.

A face lives in canonical coordinates (u right, v down, the image spans [-1, 1]). Pose maps each pixel to canonical
coordinates; a height field gives normals and shading; pigments, eyes, lips, hair and glasses are soft layers whose
edges are never sharper than a pixel, so that a render at 112 px, averaged down, looks like the render at 56 px.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrkd.data.face_layers import Face
from lrkd.data.face_quantities import (
    AGE_HIGH,
    AGE_LOW,
    BANDS,
    MOLE_SEATS,
    NUISANCE,
    PARTS,
    QUANTITIES,
    SKIN_BANDS,
    TEXELS,
)
from lrkd.errors import ConfigError

# Part of every run on rendered faces. Change it with any edit after which the same numbers render other pixels: then no
# run in a store and no table in book/results is of these faces any more. (It began as a hash of this file.)
RENDERER_VERSION = "d76c1c495f17a96d61ef0556754be993785def3b48db2fa63a0e999363745839"
_CPU_CHUNK = 60_000  # pixels drawn together: fields of this size stay in the cache


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

    identity_dim: int = len(QUANTITIES)
    nuisance_dim: int = len(NUISANCE)
    identity_names: tuple[str, ...] = tuple(q.name for _, q in QUANTITIES)
    nuisance_names: tuple[str, ...] = tuple(n.name for n in NUISANCE)

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
        f = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(TEXELS, 1 / TEXELS)], indexing="ij"))

        def pattern(response: np.ndarray) -> np.ndarray:
            field = np.fft.ifft2(np.fft.fft2(rng.standard_normal(f.shape)) * response).real
            return field.ravel() / field.std()

        self._skin = np.stack([pattern(np.exp(-0.5 * ((f - c) / (0.22 * c)) ** 2)) for c in SKIN_BANDS])
        self._hair = pattern(np.exp(-0.5 * ((f - 14) / 9) ** 2))
        self._drift = rng.standard_normal((self.identity_dim, self.identity_dim)) / math.sqrt(self.identity_dim)
        self._seats = np.array(MOLE_SEATS) + rng.normal(0, 0.04, (4, 2))
        self._scale = np.array([q.span * self.amplitudes[BANDS.index(b)] for b, q in QUANTITIES])
        self._age = np.array([q.age * q.span for _, q in QUANTITIES])
        self._centre = np.array([q.centre for _, q in QUANTITIES])
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
        for i, q in enumerate(NUISANCE):
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
        return torch.tensor([q.neutral for q in NUISANCE]).repeat(n, 1).to(self.device)

    def describe(self) -> pd.DataFrame:
        """One row a column of identity (groups low, mid, high) and nuisance: name, group, unit, low, high, sd, meaning.

        An identity column is a z-score in [-4, 4]; `quantity`, `quantity_low` and `quantity_high` say which range of
        the face it spans at a standard age, in `unit`.
        """
        rows = []
        for band, q in QUANTITIES:
            reach = 2 * math.tanh(2) * q.span * self.amplitudes[BANDS.index(band)]
            rows.append((q.name, band, q.unit, -4.0, 4.0, 1.0, q.meaning, q.centre - reach, q.centre + reach))
        for n in NUISANCE:
            rows.append((n.name, "nuisance", n.unit, n.low, n.high, n.sd, n.meaning, n.low, n.high))
        names = ["name", "group", "unit", "low", "high", "sd", "meaning", "quantity_low", "quantity_high"]
        return pd.DataFrame(rows, columns=names)

    def constant(self, name: str, like: Tensor, size: int = 0) -> Tensor:
        key = (name, size, like.device, like.dtype)
        if key not in self._cache:
            value = getattr(self, f"_{name}", None)
            if name == "skin":  # a pixel averages its area, so each band pales with the pixel's size
                value = self._skin * np.sinc(np.array(SKIN_BANDS) / size)[:, None]
            elif name == "noise":
                value = np.random.default_rng((self.seed, size)).standard_normal((8, 3 * size * size))
            self._cache[key] = torch.as_tensor(np.asarray(value), dtype=like.dtype, device=like.device)
        return self._cache[key]

    def quantities(self, identity: Tensor, nuisance: Tensor) -> dict[str, Tensor]:
        """(N,64), (N,K) -> every named quantity, each (N,1,1): the identity at that age, and the nuisance as it is."""
        z = 2 * torch.tanh(0.5 * identity)
        t = (nuisance[:, :1] - 0.5 * (AGE_LOW + AGE_HIGH)) / (0.5 * (AGE_HIGH - AGE_LOW))
        scale = self.constant("scale", identity)
        change = self.constant("age", identity) + 0.5 * scale * torch.tanh(z @ self.constant("drift", identity))
        values = self.constant("centre", identity) + scale * z + self.ageing * t * change
        p = {q.name: values[:, i, None, None] for i, (_, q) in enumerate(QUANTITIES)}
        p |= {q.name: nuisance[:, i, None, None] for i, q in enumerate(NUISANCE)}
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
            Face(self, i, n, size).draw(masks)
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
                return self.image(identity[some], nuisance[some], size)

        step = max(1, _CPU_CHUNK // max(1, size * size))
        if identity.device.type != "cpu" or workers < 2 or len(identity) <= step:
            with torch.no_grad():
                return self.image(identity, nuisance, size)
        self.image(identity[:1], nuisance[:1], size)  # bad input fails here, and the constants are made once
        try:
            with ThreadPoolExecutor(workers) as pool:
                return torch.cat(list(pool.map(draw, (slice(i, i + step) for i in range(0, len(identity), step)))))
        finally:
            torch.set_num_threads(threads)

    def image(self, identity: Tensor, nuisance: Tensor, size: int) -> Tensor:
        """`render` without masks."""
        image = self.render(identity, nuisance, size)
        assert isinstance(image, Tensor)
        return image

    def look_up(self, table: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Bilinear look-up in periodic patterns (N or 1, T*T) at (N,S,S) coordinates; one period is 2 units."""
        n, s, _ = x.shape
        x, y = x.flatten(1) * (0.5 * TEXELS), y.flatten(1) * (0.5 * TEXELS)
        x0, y0 = x.detach().floor(), y.detach().floor()
        fx, fy = x - x0, y - y0
        c0, r0 = x0.long() & (TEXELS - 1), y0.long() & (TEXELS - 1)
        c1, r1 = (c0 + 1) & (TEXELS - 1), ((r0 + 1) & (TEXELS - 1)) * TEXELS
        r0 = r0 * TEXELS
        table = table.expand(n, -1)
        top = torch.lerp(table.gather(1, r0 + c0), table.gather(1, r0 + c1), fx)
        bottom = torch.lerp(table.gather(1, r1 + c0), table.gather(1, r1 + c1), fx)
        return torch.lerp(top, bottom, fy).reshape(n, s, s)
