"""Attention maps: fusing, similarity, ground truth, chance; and Grad-CAM beside a network's own maps.

There is one map an image, (N,h,w), larger where the network attends more. Every measure is one number an image, so that
the caller can take the mean over images and the interval over the people that they show.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor, nn

from lrkd.errors import DataError, needed


def upsample(maps: Tensor, size: int) -> Tensor:
    """Resample maps bilinearly: (N,1,h,w) or (N,h,w) -> (N,size,size)."""
    maps = maps if maps.ndim == 4 else maps[:, None]
    return F.interpolate(maps.float(), (size, size), mode="bilinear", align_corners=False)[:, 0]


def standardise(maps: Tensor) -> Tensor:
    """Scale each map to mean 0 and standard deviation 1: (N,...) -> (N,...); one without spread becomes zero."""
    flat = maps.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    spread = centred.square().mean(1, keepdim=True).sqrt()
    level = 1e-6 * flat.abs().amax(1, keepdim=True)
    return (centred / torch.where(spread > level, spread, torch.inf)).view(maps.shape)


def fuse(maps: Sequence[Tensor], size: int) -> Tensor:
    """Average the maps of several blocks into one, a block (N,1,h,w) or (N,h,w) -> (N,size,size).

    Each is first brought to the image's size and standardised image by image: every block has the same weight, whatever
    its scale and resolution.

    Raises:
        DataError: There are no maps.
    """
    if not maps:
        raise DataError("maps: expected at least one block's, got none; a network without attention has none")
    return torch.stack([standardise(upsample(one, size)) for one in maps]).mean(0)


def cosines(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Compute the cosine of each image's two maps: (N,...), (N,...) -> (N,); 0 where a map is zero."""
    x, y = _rows(a, b)
    return _products(x, y)


def pearson(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Compute Pearson's r over the pixels of each image's maps: (N,...), (N,...) -> (N,); 0 where one has no spread."""
    x, y = _rows(a, b)
    return _products(_centred(x), _centred(y))


def ranks(maps: ArrayLike) -> np.ndarray:
    """Rank the pixels of each map, 1 the lowest, ties sharing their mean: (N,...) -> (N,...) float.

    `pearson` of two maps' ranks is Spearman's rank correlation, which compares their order alone, not their scale.
    """
    x = np.asarray(maps)
    return stats.rankdata(x.reshape(len(x), -1), axis=1).reshape(x.shape)


def shifted(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Compute the mean Pearson's r over images at every cyclic shift: (N,H,W), (N,H,W) -> (H,W), [0,0] without a shift.

    The level of chance for smooth maps: a shifted map is as smooth and as peaked as before, but does not know where the
    face is. Over all shifts the mean is zero; their spread says what a mean correlation can reach by chance.

    Raises:
        DataError: The maps are not (N,H,W), or of two shapes.
    """
    shape = np.shape(a)
    if len(shape) != 3:
        raise DataError(f"a: expected (N,H,W), got {shape}")
    spectra = []
    for rows in _rows(a, b):
        centred = _centred(rows)
        norm = np.linalg.norm(centred, axis=1, keepdims=True)
        spectra.append(np.fft.rfft2((centred / np.where(norm > 0, norm, 1)).reshape(shape)))
    return np.fft.irfft2((spectra[0].conj() * spectra[1]).mean(0), s=shape[1:])


def top(target: ArrayLike, share: float = 0.1) -> np.ndarray:
    """Mark the pixels with the highest values of each map: (N,H,W) -> (N,H,W) bool, a share of all, in (0,1)."""
    values = np.asarray(target)
    if not 0 < share < 1:
        raise DataError(f"share: expected a share of the pixels between 0 and 1, exclusive, got {share}")
    rows = values.reshape(len(values), -1)
    count = max(1, round(share * rows.shape[1]))
    found = np.zeros(rows.shape, dtype=bool)
    np.put_along_axis(found, np.argpartition(rows, -count, axis=1)[:, -count:], True, axis=1)
    return found.reshape(values.shape)


def pointing(maps: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Play the pointing game: (N,H,W) maps, (N,H,W) bool -> (N,), whether the highest pixel lies in the target.

    Where several pixels share the maximum, the share of them that hit. The chance of a hit is the target's share of the
    pixels. After Zhang et al., Top-down Neural Attention by Excitation Backprop (arXiv 1608.00507), without tolerance.
    """
    x, y = _rows(maps, target)
    highest = x == x.max(1, keepdims=True)
    return (highest * y).sum(1) / highest.sum(1)


def share(maps: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """Compute the share of each image's attention on a (soft) mask: (N,H,W) >= 0, (N,H,W) in [0,1] -> (N,).

    A map that is zero everywhere counts as flat: it has the mask's share of the area, which is also the level of
    chance.

    Raises:
        DataError: A value is below zero, or the shapes differ.
    """
    x, y = _rows(maps, mask)
    if x.min(initial=0) < 0:
        raise DataError(f"maps: expected attention of zero or more, got {x.min():.3g}")
    x = np.where(x.sum(1, keepdims=True) > 0, x, 1)
    return (x * y).sum(1) / x.sum(1)


def centre_map(size: int, sd: float = 0.2) -> np.ndarray:
    """Return a Gaussian at the image's centre, (size,size), a prior for faces; `sd` is a fraction of the side."""
    axis = (np.arange(size) + 0.5) / size - 0.5
    return np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sd**2))


def interval(values: ArrayLike, seed: int = 0, resamples: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Compute a 95 % bootstrap interval of the mean over the first axis, (N,...) -> low (...), high (...).

    Unit: an image, one a person. Percentile method; all columns are resampled together. Seeds of training are another
    source of variation that this does not see.

    Raises:
        DataError: There are fewer than two images.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        raise DataError(f"values: expected 2 or more images to resample, got {len(x)}")
    found = stats.bootstrap(
        (x,), np.mean, axis=0, n_resamples=resamples, vectorized=True, method="percentile", rng=seed
    ).confidence_interval
    return found.low, found.high


def check_packages() -> None:
    """Raise ConfigError where captum is not installed, which only `grad_cam` needs."""
    with needed("Grad-CAM", "book"):
        import captum.attr  # noqa: F401


def grad_cam(network: nn.Module, layers: Sequence[nn.Module], images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Compute Grad-CAM (arXiv 1610.02391) of a face network, by captum's LayerGradCam.

    What is explained is the cosine of each image's embedding with its target: the evidence on which verification
    decides. The network runs in its present mode and keeps no gradients.

    Args:
        network: Returns something with an `.embedding` (N,D).
        layers: Modules of it; of one that returns several tensors the first is explained.
        images: (N,3,S,S), as the network takes them.
        targets: (N,D), such as the mean embedding of other images of the person.

    Returns:
        A map (N,h,w) >= 0 for each layer.

    Raises:
        ConfigError: captum is not installed.
    """
    check_packages()
    from captum.attr import LayerGradCam

    targets = F.normalize(targets, dim=1)

    def evidence(x: Tensor) -> Tensor:
        return (F.normalize(network(x).embedding, dim=1) * targets).sum(1)

    maps = []
    for layer in layers:
        found = LayerGradCam(evidence, layer).attribute(images, relu_attributions=True)
        maps.append((found[0] if isinstance(found, tuple) else found)[:, 0].detach())
    return tuple(maps)


def _rows(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(v, dtype=np.float64) for v in (a, b))
    if x.shape != y.shape or x.ndim < 2:
        raise DataError(f"maps: expected two of one shape (N,...), one map an image, got {x.shape} and {y.shape}")
    return x.reshape(len(x), -1), y.reshape(len(y), -1)


def _centred(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(1, keepdims=True)
    flat = np.abs(centred).max(1, keepdims=True) <= 1e-9 * np.abs(x).max(1, keepdims=True)  # rounding is no spread
    return np.where(flat, 0, centred)


def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return (x * y).sum(1) / np.where(norm > 0, norm, 1)
