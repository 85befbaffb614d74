"""Margin-softmax heads: ArcFace, CosFace, AdaFace.

A head turns embeddings into scaled cosines with the class centres, with the label's one made harder by a margin; cross
entropy of the result is the identity loss. Heads compute in float32 at least, whatever autocast says.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrkd.errors import ConfigError, DataError

# Away from +-1 the derivatives of angle and sine stay below 1 / sqrt(2 EPSILON), about 700.
EPSILON = 1e-6


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise DataError where one of the labels, of which there must be some, is not of 0..classes-1."""
    for label in map(int, labels.aminmax()):
        if not 0 <= label < classes:
            raise DataError(f"labels: expected 0 to {classes - 1}, as the head has {classes} classes, got {label}")


class Head(nn.Module, ABC):
    """(B,D) embeddings, (B,) int64 labels -> (B,C) logits: scale * cosine, with a margin at the label.

    Args:
        classes: How many people, C.
        dim: Length of an embedding, D.
        scale: Of the cosines.
        margin: At the label.
        seed: Of the class centres `weight` (C,D), Xavier uniform.

    Raises:
        ConfigError: A bad option, or, of `forward`, a ramp outside [0,1].
        DataError: Of `forward`, a label outside 0..C-1.
    """

    def __init__(self, classes: int, dim: int, *, scale: float = 32.0, margin: float = 0.5, seed: int = 0) -> None:
        super().__init__()
        if classes < 1 or dim < 1 or not scale > 0 or not margin >= 0:
            raise ConfigError(
                f"head: expected classes and dim of at least 1, scale > 0 and margin >= 0, got classes {classes}, "
                f"dim {dim}, scale {scale} and margin {margin}"
            )
        self.classes, self.scale, self.margin = classes, scale, margin
        self.weight = nn.Parameter(torch.empty(classes, dim))
        nn.init.xavier_uniform_(self.weight, generator=torch.Generator().manual_seed(seed))

    def forward(self, embedding: Tensor, labels: Tensor, ramp: float | Tensor = 1.0) -> Tensor:
        """Compute the logits (B,C); `ramp` scales the margin, so that training can start without one."""
        if not isinstance(ramp, Tensor) and not 0 <= ramp <= 1:  # a tensor's value would have to be waited for
            raise ConfigError(f"ramp: expected a share of the margin in [0,1], got {ramp}")
        if len(labels) and not labels.is_cuda:  # there the question would stall every step; `fit` asks once
            check_labels(labels, self.classes)
        with torch.autocast(embedding.device.type, enabled=False):
            x = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
            cosine = F.linear(F.normalize(x), F.normalize(self.weight).to(x.dtype)).clamp(-1 + EPSILON, 1 - EPSILON)
            rows = labels[:, None]
            harder = self.harder(cosine.gather(1, rows), x, self.margin * ramp)
            return self.scale * cosine.scatter(1, rows, harder)

    @abstractmethod
    def harder(self, cosine: Tensor, embedding: Tensor, margin: float | Tensor) -> Tensor:
        """Make the cosines at the labels (B,1) harder by the ramped margin -> (B,1); embeddings are (B,D)."""


class CosFace(Head):
    """CosFace (arXiv 1801.09414, eq. 4): scale * (cos theta - m). F-SKD: scale 32, margin .4."""

    def __init__(self, classes: int, dim: int, *, scale: float = 32.0, margin: float = 0.4, seed: int = 0) -> None:
        super().__init__(classes, dim, scale=scale, margin=margin, seed=seed)

    def harder(self, cosine: Tensor, embedding: Tensor, margin: float | Tensor) -> Tensor:
        return cosine - margin


class ArcFace(Head):
    """ArcFace (arXiv 1801.07698, eq. 3): scale * cos(theta + m), m in radians below pi. A-SKD: scale 32, margin .5.

    cos(theta + m) would rise again beyond theta = pi - m. There the logit is scale * (cos theta - m sin m), as in the
    authors' first code and in A-SKD's: still falling with theta, with a step at pi - m.
    """

    def __init__(self, classes: int, dim: int, *, scale: float = 32.0, margin: float = 0.5, seed: int = 0) -> None:
        super().__init__(classes, dim, scale=scale, margin=margin, seed=seed)
        if margin >= torch.pi:
            raise ConfigError(f"margin: expected an angle in radians below pi for ArcFace, got {margin}")

    def harder(self, cosine: Tensor, embedding: Tensor, margin: float | Tensor) -> Tensor:
        angle = cosine.acos()
        sine = margin.sin() if isinstance(margin, Tensor) else math.sin(margin)
        return torch.where(angle + margin <= torch.pi, (angle + margin).cos(), cosine - margin * sine)


class AdaFace(Head):
    """AdaFace (arXiv 2204.00964, eqs. 6 to 10): the margin follows the embedding's norm, a proxy of image quality.

    With z = `clip((norm(x) - mean) / std * h, -1, 1)` the label's cosine becomes `cos(theta - m z) - (m z + m)`:
    ArcFace-like for low norms, CosFace-like at the mean. theta - m z stays within [.001, pi - .001]. No gradient flows
    through z. F-SKD: scale 32, margin .4.

    mean and std are exponential averages over batches (rate `rate`, from 20 and 100 as in the authors' code) of norms
    clipped to [.001, 100], kept as buffers and updated in training mode only: a teacher's pass in evaluation mode
    leaves them as they are, and so does a batch with a norm that is not a number.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: int,
        dim: int,
        *,
        scale: float = 32.0,
        margin: float = 0.4,
        h: float = 0.333,
        rate: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(classes, dim, scale=scale, margin=margin, seed=seed)
        self.h, self.rate = h, rate
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("std", torch.tensor(100.0))

    def harder(self, cosine: Tensor, embedding: Tensor, margin: float | Tensor) -> Tensor:
        norm = embedding.detach().norm(dim=1, keepdim=True).clamp(1e-3, 100)
        if self.training and len(norm) > 1:
            for kept, found in ((self.mean, norm.mean()), (self.std, norm.std())):
                found = found.to(kept.dtype)
                kept.lerp_(torch.where(found.isfinite(), found, kept), self.rate)
        z = ((norm - self.mean) / (self.std + 1e-3) * self.h).clamp(-1, 1)
        angle = (cosine.acos() - margin * z).clamp(1e-3, torch.pi - 1e-3)
        return angle.cos() - (margin * z + margin)


HEADS: dict[str, Callable[..., Head]] = {"arcface": ArcFace, "cosface": CosFace, "adaface": AdaFace}


def build(name: str, classes: int, dim: int, **options: float) -> Head:
    """Build a head by its name in HEADS.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in HEADS:
        raise ConfigError(f"head: expected one of {', '.join(sorted(HEADS))}, got {name!r}")
    return HEADS[name](classes, dim, **options)
