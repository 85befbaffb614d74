"""Distances between two tensors, one number a sample; normalisation is a separate step (`unit`).

A distance can be pickled, as studies send methods to other processes: so those with a parameter are small classes. In a
run's configuration it is written as what it computes, by `identifiers.described`: a lambda cannot be.
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
    """The two summands of a squared Euclidean length.

    Attributes:
        norm: (B,), what changes the sample's norm alone.
        angle: (B,), what changes its direction.
    """

    norm: Tensor
    angle: Tensor


def unit(x: Tensor) -> Tensor:
    """Flatten each sample and divide it by its L2 norm; a zero sample stays zero.

    Args:
        x: (B,...).

    Returns:
        (B,D).
    """
    return F.normalize(x.flatten(1), dim=1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Compute `1 - cos(a, b)` of the flattened samples (F-SKD, arXiv 2303.04681, the distance of L_point).

    Args:
        a: (B,...).
        b: (B,...).

    Returns:
        (B,) in [0,2]; 1 where a sample is zero.
    """
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
    """Make the distance `mean_i |a_i - b_i|^p`; p = 2 is FitNet's mean squared error (arXiv 1412.6550).

    The mean instead of the sum keeps the scale independent of the map's size. No root is taken.

    Args:
        p: At least 1.

    Returns:
        The distance, (B,...), (B,...) -> (B,).

    Raises:
        ConfigError: p below 1.
    """
    if not p >= 1:
        raise ConfigError(f"lp: expected p of at least 1, got {p}")
    return _Lp(p)


def smooth_l1(a: Tensor, b: Tensor) -> Tensor:
    """Compute the mean Huber loss, quadratic below a difference of 1 and linear above.

    Args:
        a: (B,...).
        b: (B,...).

    Returns:
        (B,).
    """
    return F.smooth_l1_loss(a, b, reduction="none").flatten(1).mean(1)


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Compute the norm of `a - b`, the root taken; 1e-12 under it keeps the derivative at a = b finite.

    Args:
        a: (B,...).
        b: (B,...).

    Returns:
        (B,).
    """
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
    """Make the same distance of samples that are first brought to an L2 norm of 1.

    Args:
        distance: Any distance.

    Returns:
        The distance, (B,...), (B,...) -> (B,).
    """
    return _OnUnit(distance)


def norm_angle_split(a: Tensor, b: Tensor) -> NormAngle:
    """Split `|a-b|^2 = (|a|-|b|)^2 + 2|a||b|(1-cos(a,b))` into its two summands.

    Args:
        a: (B,...).
        b: (B,...).

    Returns:
        The summands, (B,) each.
    """
    length_a, length_b = a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1)
    return NormAngle((length_a - length_b).square(), 2 * length_a * length_b * cosine(a, b))


def gradient_split(gradient: Tensor, at: Tensor) -> NormAngle:
    """Split a loss's squared gradient at a sample into the part along the sample and the rest.

    The part along x changes only the norm of x, the rest only its direction. Where x is zero all of it counts as norm.

    Args:
        gradient: (B,...).
        at: (B,...), the samples x.

    Returns:
        The two parts of the gradient's squared length, (B,) each.
    """
    g, along = gradient.flatten(1), unit(at)
    whole, norm = g.square().sum(1), (g * along).sum(1).square()
    norm = norm.where(at.flatten(1).any(1), whole)
    return NormAngle(norm, (whole - norm).clamp_min(0))
