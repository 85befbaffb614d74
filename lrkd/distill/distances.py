"""Distances between two tensors, one number a sample; normalisation is a separate step (`unit`).

A distance can be pickled, as studies send methods to other processes: so those with a parameter are small classes. In a
run's configuration it stands for what it computes, by `identity.described`: a lambda cannot stand there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from lrkd.distill.identifiers import described
from lrkd.errors import ConfigError

Distance = Callable[[Tensor, Tensor], Tensor]


class NormAngle(NamedTuple):
    """The two summands of a squared Euclidean distance, each (B,)."""

    norm: Tensor
    angle: Tensor


def unit(x: Tensor) -> Tensor:
    """(B,...) -> (B,D): each sample flattened and divided by its L2 norm (a zero sample stays zero)."""
    return F.normalize(x.flatten(1), dim=1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B,...), (B,...) -> (B,): 1 - cos(a, b) of the flattened samples, in [0, 2]; arXiv 2303.04681, eq. of L_point."""
    return 1 - (unit(a) * unit(b)).sum(1)


@dataclass(frozen=True)
class _Lp:
    p: float

    @property
    def __name__(self) -> str:
        return f"lp({self.p:g})" if float(f"{self.p:g}") == self.p else f"lp({self.p})"

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().pow(self.p).flatten(1).mean(1)


def lp(p: float) -> Distance:
    """The distance mean_i |a_i - b_i|^p, (B,...), (B,...) -> (B,), p >= 1; p = 2 is FitNet's MSE (arXiv 1412.6550).

    The mean instead of the sum keeps the scale independent of the map's size. No root is taken.
    """
    if not p >= 1:
        raise ConfigError(f"p is {p}: lp(p) is a distance for p >= 1")
    return _Lp(p)


def smooth_l1(a: Tensor, b: Tensor) -> Tensor:
    """(B,...), (B,...) -> (B,): mean Huber loss, quadratic below 1 and linear above."""
    return F.smooth_l1_loss(a, b, reduction="none").flatten(1).mean(1)


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """(B,...), (B,...) -> (B,): |a - b|, the root taken; 1e-12 under it keeps the derivative at a = b finite."""
    return (a - b).square().flatten(1).sum(1).add(1e-12).sqrt()


@dataclass(frozen=True)
class _OnUnit:
    distance: Distance

    @property
    def __name__(self) -> str:
        return f"on_unit({described(self.distance, 'distance')})"

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.distance(unit(a), unit(b))


def on_unit(distance: Distance) -> Distance:
    """The same distance after both samples are brought to norm 1 (L2 whatever the distance's p)."""
    return _OnUnit(distance)


def norm_angle_split(a: Tensor, b: Tensor) -> NormAngle:
    """|a-b|^2 = (|a|-|b|)^2 + 2|a||b|(1-cos), (B,...), (B,...) -> two (B,) summands, in the order (norm, angle)."""
    length_a, length_b = a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1)
    return NormAngle((length_a - length_b).square(), 2 * length_a * length_b * cosine(a, b))


def gradient_split(gradient: Tensor, at: Tensor) -> NormAngle:
    """|g|^2 = |g_norm|^2 + |g_angle|^2, (B,...), (B,...) -> two (B,) summands, in the order (norm, angle).

    g is a loss's gradient at the sample x = `at`: its part along x changes only the norm of x, the rest only its
    direction. Where x is zero all of g counts as norm.
    """
    g, along = gradient.flatten(1), unit(at)
    whole, norm = g.square().sum(1), (g * along).sum(1).square()
    norm = norm.where(at.flatten(1).any(1), whole)
    return NormAngle(norm, (whole - norm).clamp_min(0))
