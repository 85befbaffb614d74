"""Face tables: images, labels, pairs, and the three identity-disjoint splits.

Tuning looks at `validation` only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lrkd.data.layout import Shards
from lrkd.data.pairs import Pairs
from lrkd.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Faces:
    """A table of faces.

    images    (N,H,W,3) uint8 RGB: an ndarray, a memory map or `Shards`
    labels    (N,) int64, each below `classes` = len(names)
    age       (N,) float32 or None
    pairs     verification pairs over these rows, or None
    names     one name an identity, in the order of the labels
    digest    hash of what the data is made from, for run keys
    identity  (C,64) float32 latent identities of rendered faces, or None
    nuisance  (N,K) float32 latent nuisance of rendered faces, or None
    missing   (N,) bool: no face was found in this photograph, which protocols count as a miss; None where all were
    sources   (N,) names of the photographs, or None
    sha256    (N,) S64 of the photographs' bytes, for `lrkd.data.overlap.overlap`, or None
    rows      (N,) int64 rows of the prepared folder's manifest that these are, or None
    Raises DataError where these do not fit each other.
    """

    images: Any
    labels: np.ndarray
    age: np.ndarray | None
    pairs: Pairs | None
    names: tuple[str, ...]
    name: str
    digest: str
    identity: np.ndarray | None = None
    nuisance: np.ndarray | None = None
    missing: np.ndarray | None = None
    sources: tuple[str, ...] | None = None
    sha256: np.ndarray | None = None
    rows: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape, n = tuple(self.images.shape), len(self.labels)
        if len(shape) != 4 or shape[3] != 3 or self.images.dtype != np.uint8:
            raise DataError(f"{self.name}: images are {self.images.dtype} {shape}: uint8 (N,H,W,3) is right")
        if shape[0] != n:
            raise DataError(f"{self.name}: {shape[0]} images but {n} labels: one label an image is right")
        if n == 0:
            raise DataError(f"{self.name}: no images: at least one is needed")
        if (bad := np.flatnonzero((self.labels < 0) | (self.labels >= self.classes))).size:
            raise DataError(f"{self.name}: label {self.labels[bad[0]]} in row {bad[0]}: 0..{self.classes - 1} is right")
        if self.pairs is not None and len(self.pairs):
            low = min(self.pairs.left.min(), self.pairs.right.min())
            high = max(self.pairs.left.max(), self.pairs.right.max())
            if low < 0 or high >= n:
                raise DataError(f"{self.name}: pairs name rows {low}..{high}: 0..{n - 1} is right")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """Height of the images in pixels."""
        return int(self.images.shape[1])

    def batch(self, indices: Any) -> torch.Tensor:
        """(B,) rows -> (B,3,H,W) uint8, contiguous, on the CPU."""
        images = np.asarray(self.images[np.asarray(indices, dtype=np.int64)])
        return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))

    def subset(self, indices: Any = None, *, labels: Any = None, relabel: bool = True) -> Faces:
        """The faces of some rows, or of some identities; lazy where the images are on disk.

        With `relabel` the labels become 0..C'-1 in the old order and `names` shrinks; without, both stay.
        Pairs survive where both images do.
        """
        if (indices is None) == (labels is None):
            raise ConfigError("subset takes either row indices or labels=")
        if labels is not None:
            rows = np.flatnonzero(np.isin(self.labels, np.asarray(labels)))
        else:
            try:
                rows = np.arange(len(self))[np.asarray(indices) if len(indices) else []]
            except (IndexError, TypeError) as error:
                raise ConfigError(f"subset of {self.name}, {len(self)} rows: {error}") from error
        if not rows.size:
            raise ConfigError(
                f"subset of {self.name}: {'labels' if indices is None else 'indices'} choose no row; at least one of "
                f"its {len(self)} rows or {self.classes} identities (0 to {self.classes - 1}) is needed"
            )
        position = np.full(len(self), -1, np.int64)
        position[rows] = np.arange(len(rows))
        kept, new = np.unique(self.labels[rows], return_inverse=True)
        images = Shards([self.images]) if isinstance(self.images, np.memmap) else self.images
        return replace(
            self,
            images=images.pick(rows) if isinstance(images, Shards) else images[rows],
            labels=new.astype(np.int64) if relabel else self.labels[rows],
            age=None if self.age is None else self.age[rows],
            pairs=None if self.pairs is None else self.pairs.keep(position),
            names=tuple(self.names[k] for k in kept) if relabel else self.names,
            identity=self.identity[kept] if relabel and self.identity is not None else self.identity,
            nuisance=None if self.nuisance is None else self.nuisance[rows],
            digest=digest_of(self.digest, "subset", hashlib.sha256(rows.astype(np.int64).data).hexdigest(), relabel),
            missing=None if self.missing is None else self.missing[rows],
            sources=None if self.sources is None else tuple(self.sources[row] for row in rows),
            sha256=None if self.sha256 is None else self.sha256[rows],
            rows=None if self.rows is None else self.rows[rows],
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """Three identity-disjoint tables; tuning looks at `validation` only, `test` is for the last word."""

    train: Faces
    validation: Faces
    test: Faces

    @property
    def digest(self) -> str:
        return digest_of(self.train.digest, self.validation.digest, self.test.digest)


def digest_of(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def derived_seed(seed: int, *words: str) -> int:
    """An independent seed for each purpose: a hash, so that neighbouring seeds share no stream."""
    text = json.dumps([seed, *words])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
