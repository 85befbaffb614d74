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
    """(P,) each: the place 1..G of the best mate (0 where the gallery has none), its cosine, the highest cosine."""

    rank: np.ndarray
    mate: np.ndarray
    top: np.ndarray


def search(
    gallery: ArrayLike, gallery_labels: ArrayLike, probe: ArrayLike, probe_labels: ArrayLike, block: int = BLOCK
) -> Search:
    """Compare every probe with the whole gallery: `(G,D), (G,), (P,D), (P,) -> Search`, in float64.

    rank: 1 + the gallery images of other identities whose cosine is at least that of the best mate: ties (to 1e-9)
    count against, so that a collapsed network ranks last, not first. mate is -inf for a probe without a mate.
    block: gallery images, and probes, of one matrix product.

    Raises DataError for shapes that do not fit each other and features that are not finite.
    """
    shelf, wanted = rows(gallery, "gallery"), rows(probe, "probe")
    shelf_labels, wanted_labels = np.asarray(gallery_labels), np.asarray(probe_labels)
    if shelf.shape[1] != wanted.shape[1]:
        raise DataError(f"probe: {wanted.shape[1]} dimensions, but the gallery has {shelf.shape[1]}")
    for name, labels, count in (("gallery", shelf_labels, len(shelf)), ("probe", wanted_labels, len(wanted))):
        if labels.shape != (count,):
            raise DataError(f"{name}_labels: shape {labels.shape} is not ({count},), one an image")
    if block < 1:
        raise ConfigError(f"block: {block} is not at least 1")
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
    """(n,D) -> (n,D) float64 of unit length; zero stays zero."""
    x = x.astype(np.float64, copy=False)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    unit: np.ndarray = x / np.where(norm > 0, norm, 1)
    return unit


def rows(array: ArrayLike, name: str) -> np.ndarray:
    """(n,D) as it is, if it is that and finite; DataError with the first row that is not."""
    found = np.asarray(array)
    if found.ndim != 2 or 0 in found.shape or found.dtype.kind not in "fiu":
        raise DataError(
            f"{name}: {found.dtype} {found.shape} is not numbers (n,D), at least one feature of one dimension"
        )
    for part in blocks(len(found), 16384):
        finite = np.isfinite(found[part]).all(1)
        if not finite.all():
            row = part.start + int(np.argmin(finite))
            raise DataError(f"{name}: the feature in row {row} is not finite; a diverged network gives such features")
    return found


def lost(missing: ArrayLike | None, count: int, each: str) -> np.ndarray:
    """(count,) bool, all false for None; DataError where `missing` is no such array."""
    found = np.zeros(count, bool) if missing is None else np.asarray(missing)
    if found.dtype != np.bool_ or found.shape != (count,):
        raise DataError(f"missing: expected bool ({count},), one {each}, got {found.dtype} {found.shape}")
    return found


def ranks_of(ranks: Sequence[int]) -> np.ndarray:
    wanted = np.asarray(ranks)
    if wanted.dtype.kind != "i" or (wanted < 1).any():
        raise ConfigError(f"ranks: {ranks} holds a rank that is not a whole number of at least 1")
    return wanted


def blocks(count: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, count)) for start in range(0, count, block))
