"""Photographs from a prepared folder as face tables, split into people to train, validate and test on."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from lrkd.data.layout import Layout, read_layout
from lrkd.data.overlap import overlap
from lrkd.data.pairs import Pairs, firsts, make_pairs
from lrkd.data.tables import SPLITS, Faces, Splits, derived_seed, digest_of
from lrkd.errors import ConfigError, DataError

# -------------------------------------------------------------------------------------------------------- prepared


@dataclass(frozen=True, eq=False)
class Prepared:
    """A whole prepared set, not split: every face, the data set's own pairs by protocol, and meta.json.

    roles   rows of each role that the set's identification protocol knows (gallery, probe, distractor, ...), maybe none
    splits  labels of each split that the data set defines, maybe none
    """

    faces: Faces
    protocols: dict[str, Pairs]
    meta: dict[str, Any]
    roles: dict[str, np.ndarray] = field(default_factory=dict)
    splits: dict[str, np.ndarray] = field(default_factory=dict)

    def rows(self, role: str, split: str | None = None) -> np.ndarray:
        """(n,) int64 rows of `faces` with this role, in order; with `split` those of its people only.

        `faces.labels[rows]` says who they are. Raises ConfigError for a role or split that the set does not have.
        """
        if role not in self.roles:
            raise ConfigError(f"role {role!r}: {self.faces.name} has {', '.join(self.roles) or 'none'}")
        if split is None:
            return self.roles[role]
        if split not in self.splits:
            raise ConfigError(f"split {split!r}: {self.faces.name} has {', '.join(self.splits) or 'none'}")
        rows = self.roles[role]
        return rows[np.isin(self.faces.labels[rows], self.splits[split])]

    def protocol(self, name: str) -> Faces:
        """All faces with the pairs of one protocol. Nothing keeps these people out of a training set."""
        if name not in self.protocols:
            raise ConfigError(f"protocol {name!r}: {self.faces.name} has {', '.join(self.protocols) or 'none'}")
        return replace(self.faces, pairs=self.protocols[name])


def load_prepared(path: str | os.PathLike[str], checksum: bool = False) -> Prepared:
    """Open a prepared folder whole. `checksum` also compares every pixel with the sha256 in meta.json.

    Raises DataError naming the file, the line and the value where the folder contradicts itself.
    """
    layout = read_layout(path, checksum)
    return Prepared(_faces(layout), layout.protocols, layout.meta, layout.roles, layout.splits)


def prepared(
    path: str | os.PathLike[str],
    *,
    validation: float = 0.12,
    seed: int = 0,
    protocol: str | None = None,
    folds: int = 10,
    max_genuine: int | None = 15,
    min_images: int = 2,
) -> Splits:
    """Open a prepared folder as three identity-disjoint splits; images stay on disk.

    Where the data set defines splits (LFW View 1), its test people are the test split, and a share `validation` of its
    training people, drawn with `seed`, is the validation split. Otherwise people are dealt 70/10/20 with `seed`,
    at least four to validation and test.
    Photographs in which no face was found are not trained on; validation and test keep them, as misses. Training people
    with fewer than `min_images` images are dropped: one image teaches nothing about what stays the same. Validation and
    test get pairs from `make_pairs`, among images that are no copies of others; with `protocol` the test pairs are the
    data set's own.
    Warns where people or images of the training split are in another one too (`lrkd.data.overlap.overlap`).
    Raises DataError for a broken folder, for too few people, for a split without genuine pairs, and for a protocol
    whose people are not all in the test split.
    """
    if not 0 < validation < 1:
        raise ConfigError(f"validation={validation}: a share of the training people between 0 and 1 is right")
    layout = read_layout(path)
    whole = _faces(layout)
    people = _deal(layout, validation, seed)
    counts = np.bincount(whole.labels[~layout.missing], minlength=whole.classes)
    enough = people["train"][counts[people["train"]] >= min_images]
    if not people["train"].size:
        raise DataError(
            f"{layout.path}: {whole.classes} people: validation and test take at least four each, which leaves nobody "
            "to train with: more people are needed"
        )
    if not enough.size:
        raise DataError(
            f"{layout.path}: of its {len(layout.names)} people {len(people['train'])} are there to train on (the rest "
            f"are for validation and test, at least four each), and none of these has {min_images} images: add people, "
            f"or images of them, to the source and prepare the folder again"
        )
    made = {}
    for split in SPLITS:
        labels = enough if split == "train" else people[split]
        chosen = np.isin(whole.labels, labels)
        part = whole.subset(np.flatnonzero(chosen & ~layout.missing if split == "train" else chosen))
        pairs = None
        if split == "test" and protocol is not None:
            pairs = _own_pairs(layout, protocol, people, whole.labels)
        elif split != "train":
            try:
                once = firsts(layout.sha256[chosen])
                pairs = make_pairs(
                    part.labels, None, folds, derived_seed(seed, split), max_genuine=max_genuine, among=once
                )
            except DataError as error:
                raise DataError(f"{layout.path}, {split} split: {error}") from error
        digest = digest_of(whole.digest, split, labels.tolist(), pairs and [pairs.left.tolist(), pairs.right.tolist()])
        made[split] = replace(part, pairs=pairs, name=f"{whole.name}/{split}", digest=digest)
        if split != "train" and (found := overlap(made["train"], part)):
            warnings.warn(f"{layout.path}: people of its train split are in its {split} split: {found}", stacklevel=2)
    return Splits(**made)


def resized(splits: Splits, size: int) -> Splits:
    """The same splits with images of size px: `resized_faces` of each."""
    return Splits(*(resized_faces(getattr(splits, part), size) for part in SPLITS))


def resized_digest(faces: Faces, size: int) -> str:
    """The digest of the table that `resized_faces` makes, without making it; it raises the same errors."""
    if size < 1:
        raise ConfigError(f"size={size}: at least one pixel is needed")
    height, width = faces.images.shape[1:3]
    if (height, width) == (size, size):
        return faces.digest
    if min(height, width) < size:
        raise DataError(
            f"{faces.name}: its images are {height} x {width} px and this scale needs {size} px or more: prepare the "
            f"data with --size {size}, or choose a smaller scale"
        )
    return digest_of(faces.digest, "resized", size)


def resized_faces(faces: Faces, size: int) -> Faces:
    """The same table with images of size px, by antialiased bilinear interpolation, in memory where they shrink.

    Raises DataError for images smaller than that: enlarged ones would pass for HR and are none.
    """
    digest = resized_digest(faces, size)
    if digest == faces.digest:
        return faces
    images = np.empty((len(faces.images), size, size, 3), np.uint8)
    for start in range(0, len(images), 512):
        block = torch.from_numpy(np.array(faces.images[start : start + 512])).permute(0, 3, 1, 2).float()
        small = torch.nn.functional.interpolate(block, (size, size), mode="bilinear", antialias=True)
        images[start : start + 512] = small.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return replace(faces, images=images, digest=digest)


def _faces(layout: Layout) -> Faces:
    name = str(layout.meta["name"])
    return Faces(
        images=layout.images,
        labels=layout.labels,
        age=layout.age,
        pairs=None,
        names=layout.names,
        name=name,
        digest=layout.digest,
        missing=layout.missing if layout.missing.any() else None,
        sources=layout.sources,
        sha256=layout.sha256,
        rows=np.arange(len(layout.labels)),
    )


def _deal(layout: Layout, validation: float, seed: int) -> dict[str, np.ndarray]:
    """Labels of the three splits."""
    classes = len(layout.names)
    order = np.random.default_rng(derived_seed(seed, "deal")).permutation(classes)
    if {"train", "validation", "test"} <= set(layout.splits):
        return layout.splits
    if layout.splits:
        order = order[np.isin(order, layout.splits["train"])]
        held = max(4, round(validation * len(order)))  # four people are the least that verification needs
        return {"train": np.sort(order[held:]), "validation": np.sort(order[:held]), "test": layout.splits["test"]}
    test = classes - max(4, round(0.2 * classes))
    held = max(0, test - max(4, round(0.1 * classes)))
    return {s: np.sort(part) for s, part in zip(SPLITS, np.split(order, (held, max(test, 0))), strict=True)}


def _own_pairs(layout: Layout, protocol: str, people: dict[str, np.ndarray], labels: np.ndarray) -> Pairs:
    """The data set's own pairs, as rows of the test split."""
    file = layout.path / "pairs.csv"
    if protocol not in layout.protocols:
        raise ConfigError(f"protocol {protocol!r}: {file} has {', '.join(layout.protocols) or 'none'}")
    pairs = layout.protocols[protocol]
    used = np.unique(labels[np.concatenate((pairs.left, pairs.right))])
    if (outside := np.setdiff1d(used, people["test"])).size:
        raise DataError(
            f"{file}: {outside.size} of {used.size} people of protocol {protocol!r} are not in the test split (first: "
            f"{layout.names[outside[0]]}): use load_prepared(path).protocol({protocol!r}) for the whole set unsplit"
        )
    rows = np.flatnonzero(np.isin(labels, people["test"]))
    position = np.full(len(labels), -1, np.int64)
    position[rows] = np.arange(len(rows))
    return Pairs(position[pairs.left], position[pairs.right], pairs.same, pairs.fold, protocol)
