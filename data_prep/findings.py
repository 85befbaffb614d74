"""What is odd about a set and no error: copies of images, people in two splits, faces that are not aligned.

Each function gives lines for the terminal; who prepares a set hears of them before a figure depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from lrkd.data.images import dimensions
from lrkd.data.overlap import overlap

ALIGNED = 112  # pixels of the side of ArcFace's aligned faces


class _Table(NamedTuple):
    """Rows of a manifest, as `overlap` takes them."""

    names: list[str]
    labels: np.ndarray
    sha256: np.ndarray


def copies(people: list[str], sources: list[str], digests: list[str]) -> tuple[dict[str, int], list[str]]:
    """Count the images that are byte for byte an earlier one: of the same person, and of somebody else.

    Returns:
        `copies` and `copies_of_others`, where there are any, and what to say of them.
    """
    first: dict[str, int] = {}
    own, other = [], []
    for row, digest in enumerate(digests):
        before = first.setdefault(digest, row)
        if before != row:
            (own if people[before] == people[row] else other).append((before, row))
    counts, said = {}, []
    if own:
        a, b = own[0]
        counts["copies"] = len(own)
        said.append(
            f"{len(own)} images are copies of another one of the same person: {sources[a]} and {sources[b]} ..."
        )
    if other:
        a, b = other[0]
        pairs = {tuple(sorted((people[a], people[b]))) for a, b in other}
        counts["copies_of_others"] = len(other)
        said.append(
            f"{len(other)} images are copies of somebody else's ({len(pairs)} times two people that may be one): "
            f"{sources[a]} and {sources[b]} ..."
        )
    return counts, said


def between(splits: dict[str, list[int]], names: list[str], labels: list[int], digests: list[str]) -> list[str]:
    """Say which people of the training split are in another split too."""
    label, digest = np.array(labels), np.array(digests, dtype="S64")
    tables = {
        split: _Table(names, label[rows], digest[rows])
        for split, part in splits.items()
        for rows in [np.isin(label, part)]
    }
    return [
        f"people of the train split are in the {split} split: {found}"
        for split, table in tables.items()
        if split != "train" and "train" in tables and (found := overlap(tables["train"], table))
    ]


def unaligned(name: str, images: Iterable[bytes]) -> list[str]:
    """Say which share of the images is larger than aligned faces are, and so is shrunk whole, surroundings and all."""
    sizes = [dimensions(bytes(image)) for image in images]
    large = [size for size in sizes if size is not None and max(size) > ALIGNED]
    if not large:
        return []
    width, height = max(large)
    return [
        f"{name}: {len(large) / len(sizes):.0%} of {len(sizes)} images are larger than the {ALIGNED} px of aligned "
        f"faces (up to {width} x {height}) and shrunk whole: where they are not aligned, so much of each is no face"
    ]
