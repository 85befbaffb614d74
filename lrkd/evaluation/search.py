"""Search of a gallery by probes, in blocks that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lrkd.errors import ConfigError, DataError

TIE = 1e-9
BLOCK = 2048


class Search(NamedTuple):
    """What each of P probes finds, (P,) each.

    Attributes:
        rank: The place 1..G of the best mate, 0 where the gallery has none.
        mate: The best mate's cosine, -inf where the gallery has none.
        top: The highest cosine of any gallery image.
    """

    rank: np.ndarray
    mate: np.ndarray
    top: np.ndarray


def search(
    gallery: ArrayLike, gallery_labels: ArrayLike, probe: ArrayLike, probe_labels: ArrayLike, block: int = BLOCK
) -> Search:
    """Compare every probe with the whole gallery: `(G,D), (G,), (P,D), (P,) -> Search`, in float64.

    The rank is 1 + the number of gallery images of other identities whose cosine is at least that of the best mate:
    ties (to 1e-9) count against the mate, so that a collapsed network ranks last, not first.

    Args:
        gallery, gallery_labels: Features and identities of G images.
        probe, probe_labels: Those of P images.
        block: Gallery images, and probes, of one matrix product.

    Raises:
        ConfigError: `block` is below 1.
        DataError: Shapes do not fit each other, or features are not finite.
    """
    shelf, wanted = rows(gallery, "gallery"), rows(probe, "probe")
    shelf_labels, wanted_labels = np.asarray(gallery_labels), np.asarray(probe_labels)
    if shelf.shape[1] != wanted.shape[1]:
        raise DataError(f"probe: expected {shelf.shape[1]} dimensions, as the gallery has, got {wanted.shape[1]}")
    for name, labels, count in (("gallery", shelf_labels, len(shelf)), ("probe", wanted_labels, len(wanted))):
        if labels.shape != (count,):
            raise DataError(f"{name}_labels: expected ({count},), one an image, got {labels.shape}")
    if block < 1:
        raise ConfigError(f"block: expected at least 1, got {block}")
    known = np.flatnonzero(np.isin(shelf_labels, wanted_labels))  # the only ones that can be a mate
    found = Search(np.zeros(len(wanted), np.int64), np.full(len(wanted), -np.inf), np.full(len(wanted), -np.inf))
    for part in blocks(len(wanted), block):
        a, names = unit(wanted[part]), wanted_labels[part, None]
        for some in blocks(len(known), block):
            score = a @ unit(shelf[known[some]]).T
            score[names != shelf_labels[known[some]]] = -np.inf
            np.maximum(found.mate[part], score.max(1), out=found.mate[part])
        level = found.mate[part, None] - TIE
        for some in blocks(len(shelf), block):
            score = a @ unit(shelf[some]).T
            np.maximum(found.top[part], score.max(1), out=found.top[part])
            found.rank[part] += ((score >= level) & (names != shelf_labels[some])).sum(1)
    found.rank[:] = np.where(np.isfinite(found.mate), found.rank + 1, 0)
    return found


def unit(x: np.ndarray) -> np.ndarray:
    """Scale features to unit length: (n,D) -> (n,D) float64; zero stays zero."""
    x = x.astype(np.float64, copy=False)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)


def rows(array: ArrayLike, name: str) -> np.ndarray:
    """Return an array of numbers (n,D) as it is; DataError, with its name, where it is none or not finite."""
    found = np.asarray(array)
    if found.ndim != 2 or 0 in found.shape or found.dtype.kind not in "fiu":
        raise DataError(
            f"{name}: expected numbers (n,D), at least one feature of one dimension, got {found.dtype} {found.shape}"
        )
    for part in blocks(len(found), 16384):
        finite = np.isfinite(found[part]).all(1)
        if not finite.all():
            row = part.start + int(np.argmin(finite))
            raise DataError(
                f"{name} row {row}: expected a finite feature, got one that is not; has the network diverged?"
            )
    return found


def lost(missing: ArrayLike | None, count: int, each: str) -> np.ndarray:
    """Return `missing` as (count,) bool, all false for None; DataError where it is no such array."""
    found = np.zeros(count, bool) if missing is None else np.asarray(missing)
    if found.dtype != np.bool_ or found.shape != (count,):
        raise DataError(f"missing: expected bool ({count},), one {each}, got {found.dtype} {found.shape}")
    return found


def ranks_of(ranks: Sequence[int]) -> np.ndarray:
    """Return ranks as an array; ConfigError where one is no whole number of at least 1."""
    wanted = np.asarray(ranks)
    if wanted.dtype.kind != "i" or (wanted < 1).any():
        raise ConfigError(f"ranks: expected whole numbers of at least 1, got {ranks}")
    return wanted


def blocks(count: int, block: int) -> Iterator[slice]:
    """Cut 0..count into slices of `block`, the last of which may be shorter."""
    return (slice(start, min(start + block, count)) for start in range(0, count, block))
