"""The ideal observer: how well anybody could tell, from the pixels alone, whether two images show one person.

Around a face the image is linear, x = mu + A i + B n + e: identity i and nuisance n standard normal, e the sensor's
noise. What the image says of (i, n) is then a normal posterior, and the likelihood ratio of "the same person" against
"two people" is a sum of independent squares whose distribution is known. Nobody who sees these images, has nothing but
the prior and lives in this linear world decides better; how far the renderer is from linear, `laplace` can show.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lrkd.errors import ConfigError, DataError
from lrkd.evaluation.fisher_maps import Derivatives, derivatives


def explained(found: Derivatives, noise: float) -> Tensor:
    """Compute which share of the prior's variance an image explains: I - C, C the posterior's covariance.

    With G the derivatives as rows, C = (I + G G^T / noise^2)^-1. The diagonal is the greatest R^2 at which each number
    can be estimated from the image. The block of the identity is A^T (A A^T + B B^T + noise^2)^-1 A: nuisance and
    noise are integrated out.

    Args:
        found: The face's derivatives, at the side that is seen.
        noise: The standard deviation of a pixel's noise, above zero.

    Returns:
        (D+K,D+K) float64, identity first.

    Raises:
        ConfigError: `noise` is not above zero.
    """
    if not noise > 0:
        raise ConfigError(f"noise: expected a standard deviation above zero, got {noise}")
    rows = torch.cat([found.identity.flatten(1), found.nuisance.flatten(1)]).double() / noise
    identity = torch.eye(len(rows), dtype=rows.dtype)
    return identity - torch.linalg.inv(identity + rows @ rows.T)


def correlations(left: Tensor, right: Tensor) -> np.ndarray:
    """Compute the canonical correlations of two images of one person, those of two people being zero.

    Args:
        left: (D,D), what an image explains of the identity: the first block of `explained`.
        right: (D,D), likewise; the two images may differ in side and in nuisance.

    Returns:
        (D,) in [0,1), falling: the square roots of the eigenvalues of left @ right.
    """
    values, vectors = torch.linalg.eigh(left)
    root = vectors * values.clamp(min=0).sqrt()
    return np.sqrt(torch.linalg.eigvalsh(root.T @ right @ root).flip(0).clamp(0, 1 - 1e-12).numpy())


def accuracy(correlation: ArrayLike) -> float:
    """Compute the share of right decisions by the likelihood ratio, as many pairs being of one person as of two.

    For each canonical pair (u, v) with correlation r the logarithm of the ratio is -log(1 - r^2) / 2 plus r / (1 + r)
    times ((u + v) / 2)^2 less r / (1 - r) times ((u - v) / 2)^2. Under either hypothesis the whole is a constant and a
    weighted sum of chi-squares, whose distribution is Imhof's integral (Biometrika 48, 1961).

    Args:
        correlation: (D,) in [0,1), see `correlations`.

    Returns:
        The accuracy, from .5 to 1, to about 1e-4.

    Raises:
        DataError: A correlation is not in [0,1).
    """
    r = np.asarray(correlation, np.float64)
    if not ((r >= 0) & (r < 1)).all():
        raise DataError(f"correlation: expected numbers from 0 to below 1, got {r.tolist()}")
    r = r[r > 1e-4]
    if not len(r):
        return 0.5
    constant = -0.5 * np.log1p(-np.square(r)).sum()
    same = _above(np.concatenate([r / 2, -r / 2]), -constant)
    other = _above(np.concatenate([r / (1 + r) / 2, -r / (1 - r) / 2]), -constant)
    return float(np.clip((same + 1 - other) / 2, 0.5, 1))


def _above(weights: np.ndarray, value: float) -> float:
    """The probability that a weighted sum of squared standard normals is above a value, by Imhof's integral."""
    scale = np.abs(weights).max()
    weights, value = weights / scale, value / scale
    log_u = np.linspace(np.log(1e-7), np.log(1e4), 12_001)
    u = np.exp(log_u)
    angle = 0.5 * np.arctan(u[:, None] * weights).sum(1) - 0.5 * value * u
    decay = 0.25 * np.log1p(np.square(u[:, None] * weights)).sum(1)
    return float(0.5 + np.trapezoid(np.sin(angle) * np.exp(-decay), log_u) / np.pi)


def log_ratio(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> float:
    """Compute the logarithm of the likelihood ratio of "the same person" against "two people" for two images.

    The integral of p(i|left) p(i|right) / p(i) over the identity, with normal posteriors and the standard normal prior.

    Args:
        left: Mean (D,) and covariance (D,D) of the identity given one image.
        right: Likewise.
    """
    total, pull = -torch.eye(len(left[0]), dtype=left[0].dtype), torch.zeros_like(left[0])
    value = torch.zeros((), dtype=left[0].dtype)
    for mean, covariance in (left, right):
        precision = torch.linalg.inv(covariance)
        value = value + torch.logdet(precision) - mean @ precision @ mean
        total, pull = total + precision, pull + precision @ mean
    return float(0.5 * (value - torch.logdet(total) + pull @ torch.linalg.solve(total, pull)))


def laplace(
    function: Callable[[Tensor], Tensor],
    seen: Tensor,
    start: Tensor,
    noise: float,
    steps: int = 10,
    step: float = 0,
) -> tuple[Tensor, Tensor]:
    """Fit what made each image, with a standard normal prior, and return Laplace's approximation of the posterior.

    Levenberg and Marquardt's method finds a mode near `start`. Where the function is linear, the result is exact.

    Args:
        function: (N,D) -> (N,3,S,S), whose rows do not depend on one another.
        seen: (N,3,S,S), the images.
        start: (N,D), where the search begins.
        noise: The standard deviation of a pixel's noise.
        steps: How many; each takes the derivatives anew.
        step: Of the derivatives, as in `derivatives`.

    Returns:
        The modes (N,D) and the covariances there (N,D,D), float64.
    """
    at, unit = start.double(), torch.eye(start.shape[1], dtype=torch.float64)
    damping = torch.full((len(at),), 1e-3, dtype=torch.float64)

    def miss(z: Tensor) -> Tensor:
        with torch.no_grad():
            return (seen.double() - function(z.to(start)).double()).flatten(1) / noise

    def slopes() -> Tensor:
        return derivatives(function, at.to(start), step=step).flatten(2).double() / noise

    left = miss(at)
    for _ in range(steps):
        by = slopes()
        curvature = by @ by.transpose(1, 2) + unit
        down = (by @ left[..., None])[..., 0] - at
        moved = torch.zeros(len(at), dtype=torch.bool)
        for _ in range(6):  # until each face has gone downhill, ever more damped
            there = at + torch.linalg.solve(curvature + damping[:, None, None] * curvature * unit, down)
            rest = miss(there)
            gain = left.square().sum(1) + at.square().sum(1) - rest.square().sum(1) - there.square().sum(1)
            good = (gain > 0) & ~moved
            at, left = torch.where(good[:, None], there, at), torch.where(good[:, None], rest, left)
            moved |= good
            damping = torch.where(good, damping / 4, torch.where(moved, damping, damping * 6))
            if moved.all():
                break
    by = slopes()
    return at, torch.linalg.inv(by @ by.transpose(1, 2) + unit)


def metamers(
    function: Callable[[Tensor], Tensor],
    seen: Tensor,
    at: Tensor,
    noise: float,
    generator: torch.Generator,
    steps: int = 6,
    step: float = 0,
) -> tuple[Tensor, Tensor]:
    """Draw others that look the same: one from the posterior of each image's numbers, by randomise-then-optimise.

    A draw of the prior is moved as little as makes it explain the image with fresh noise (Bardsley and others, SIAM J.
    Sci. Comput. 36, 2014). Where the function is linear these are draws of the posterior, exactly.

    Args:
        function: As in `laplace`.
        seen: (N,3,S,S), the images; repeat one for several draws.
        at: (N,D), numbers that explain each, where the search begins.
        noise: The standard deviation of a pixel's noise.
        generator: Draws prior and noise.
        steps: As in `laplace`.
        step: As in `laplace`.

    Returns:
        The numbers (N,D) float64, and the root mean square (N,) of what they leave of the image, in units of the noise:
        about 1 or less for one that looks the same; a draw whose search got lost has more, and is to be left out.
    """
    prior = torch.randn(at.shape, generator=generator, dtype=torch.float64)
    fresh = noise * torch.randn(seen.shape, generator=generator, dtype=torch.float64)

    def moved(z: Tensor) -> Tensor:  # by rows of its own, or where differences are taken by each of them several times
        return function(prior.to(z).repeat_interleave(len(z) // len(prior), 0) + z)

    found, _ = laplace(moved, seen + fresh, (at - prior).to(at.dtype), noise, steps, step)
    with torch.no_grad():
        left = (seen.double() - function((prior + found).to(at.dtype)).double()).flatten(1) / noise
    return prior + found, left.square().mean(1).sqrt()
