"""People and images that two tables share."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

# ------------------------------------------------------------------------------------------- who is in two sets


class Named(Protocol):
    """What `overlap` needs of `Layout` or `Faces`: names of the labels, labels and sha256 of the images."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def sha256(self) -> np.ndarray | None: ...


class Overlap(NamedTuple):
    """People and images of one table that another one has too; false where there are none."""

    people: tuple[str, ...]  # names of such people, by name or by the bytes of an image
    images: np.ndarray  # (N,) bool: these very bytes are there
    rows: np.ndarray  # (N,) bool: an image of such a person, or such an image

    def __bool__(self) -> bool:
        return bool(self.people)

    def __str__(self) -> str:
        first = f" (first {self.people[0]})" if self.people else ""
        return (
            f"{len(self.people)} people{first} with {int(self.rows.sum())} of {len(self.rows)} images, "
            f"{int(self.images.sum())} of them the very same files"
        )


def overlap(trained: Named, tested: Named) -> Overlap:
    """Say which people and images of `tested` are in `trained` as well.

    A person is in both by name, compared without case, accents and punctuation ("Zoë_Li" is "zoe li"), or by the bytes
    of an image. A name with a digit in it ("00000012", "test-000003") is a number of its own set, which another set
    gives to somebody else: it says something only where an image has the same number and the same bytes in both.

    Args:
        trained: The table that a network has learnt from; without `sha256` (rendered faces) it shares nothing.
        tested: The table to be scored, of N images.

    Returns:
        The people, sorted, and masks (N,) over the rows of `tested`; `tested.subset(~found.rows)` is the rest.
    """
    n = len(tested.labels)
    images = np.zeros(n, dtype=bool)
    if trained.sha256 is None or tested.sha256 is None:
        return Overlap((), images, images)
    images = np.isin(tested.sha256, trained.sha256)
    theirs = {label: _plain(trained.names[label]) for label in np.unique(trained.labels).tolist()}
    ours = {label: _plain(tested.names[label]) for label in np.unique(tested.labels).tolist()}
    rows = np.flatnonzero(np.isin(trained.sha256, tested.sha256[images]))
    told = {(trained.sha256[row], theirs[int(trained.labels[row])]) for row in rows}
    one_numbering = any((tested.sha256[row], ours[int(tested.labels[row])]) in told for row in np.flatnonzero(images))
    names = {name for name in theirs.values() if one_numbering or not any(map(str.isdigit, name))} - {""}
    shared = {label for label, name in ours.items() if name in names} | set(tested.labels[images].tolist())
    people = tuple(sorted(tested.names[label] for label in shared))
    return Overlap(people, images, np.isin(tested.labels, np.array(sorted(shared), dtype=np.int64)))


def _plain(name: str) -> str:
    """A name without case, accents and punctuation."""
    return "".join(c for c in unicodedata.normalize("NFKD", name).casefold() if c.isalnum())
