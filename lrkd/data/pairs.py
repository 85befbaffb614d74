"""Verification pairs: which two images are compared, in folds that share no person."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lrkd.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Pairs:
    """Verification pairs: `left`, `right` (P,) int64 rows of the images, `same` (P,) bool, `fold` (P,) int64."""

    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    fold: np.ndarray
    protocol: str = "generated"

    def __len__(self) -> int:
        return len(self.left)

    def touch(self, rows: np.ndarray | None) -> np.ndarray:
        """(P,) bool: the pairs of which an image is one of the rows, (N,) bool; None is no row."""
        none = np.zeros(len(self), bool)
        return none if rows is None else rows[self.left] | rows[self.right]

    def keep(self, position: np.ndarray) -> Pairs | None:
        """Pairs after images moved: `position` (N,) gives each old row's new row, or -1 if it is gone."""
        left, right = position[self.left], position[self.right]
        ok = (left >= 0) & (right >= 0)
        return Pairs(left[ok], right[ok], self.same[ok], self.fold[ok], self.protocol) if ok.any() else None

    def balanced(self, seed: int = 0) -> Pairs | None:
        """As many genuine as impostor pairs in each fold, drawn of those that are more; None where none is left."""
        rng, kept = np.random.default_rng(seed), []
        for fold in np.unique(self.fold):
            kinds = [np.flatnonzero((self.fold == fold) & (self.same == kind)) for kind in (True, False)]
            kept += [rng.permutation(rows)[: min(map(len, kinds))] for rows in kinds]
        ok = np.sort(np.concatenate(kept))
        return Pairs(self.left[ok], self.right[ok], self.same[ok], self.fold[ok], self.protocol) if len(ok) else None


def mark_copies(labels: np.ndarray, digests: np.ndarray | None) -> np.ndarray:
    """Set the label of every image that is a copy of an earlier one to -1, which keeps it out of `make_pairs`.

    Args:
        labels: (N,) labels.
        digests: (N,) sha256 of the image files; None (rendered faces) has no copies.

    Returns:
        (N,) int64 labels.
    """
    marked = np.full(len(labels), -1, np.int64)
    first = slice(None) if digests is None else np.unique(digests, return_index=True)[1]
    marked[first] = labels[first]
    return marked


def make_pairs(
    labels: np.ndarray,
    count: int | None = None,
    folds: int = 10,
    seed: int = 0,
    *,
    age_gap: tuple[np.ndarray, float] | None = None,
    max_genuine: int | None = 15,
    at_most: bool = False,
) -> Pairs:
    """Draw verification pairs, half of them genuine, in identity-disjoint folds.

    People are dealt to the folds so that each fold holds about the same number of genuine pairs. Every fold has as many
    impostor as genuine pairs; its impostors are two of its own people, drawn uniformly over people, then over their
    images. No pair comes twice.

    Args:
        labels: (N,) whose image each is; images with a negative label are in no pair (`mark_copies`).
        count: An even number of pairs in all. None: as many as there are, in fewer folds where there are too few people
            (two a fold, one of them with a genuine pair).
        folds: The number of folds.
        seed: Draws the pairs.
        age_gap: (N,) ages and the least gap between the two of a pair, genuine or impostor, so that age alone tells
            nothing.
        max_genuine: The most genuine pairs of one person; None: no limit.
        at_most: Whether a `count` may come out smaller, and in fewer folds.

    Returns:
        The pairs, in the order of the folds; in each, the genuine ones first.

    Raises:
        ConfigError: Impossible arguments.
        DataError: The labels cannot give that many.
    """
    labels = np.asarray(labels, dtype=np.int64)
    _check_options(len(labels), count, folds, seed, max_genuine, age_gap)
    exact = count is not None and not at_most
    rng = np.random.default_rng(seed)
    used = np.flatnonzero(labels >= 0)
    sizes = np.unique(labels[used], return_counts=True)[1]
    members = np.split(used[np.argsort(labels[used], kind="stable")], np.cumsum(sizes)[:-1])
    genuine = [_genuine(rows, rng, max_genuine, age_gap) for rows in members]
    able = sum(len(pairs) > 0 for pairs in genuine)
    if not exact:
        folds = max(2, min(folds, able, len(sizes) // 2))
    if len(sizes) < 2 * folds or able < folds:
        raise DataError(
            f"{len(sizes)} people, {able} of them with a genuine pair, cannot fill {folds} folds: expected {2 * folds} "
            f"people, and {folds} of them with two images or more"
        )
    order = rng.permutation(len(members))
    order = order[np.argsort([-len(genuine[k]) for k in order], kind="stable")]
    deal = np.arange(len(order)) % (2 * folds)
    deal = np.minimum(deal, 2 * folds - 1 - deal)  # 0 1 .. 9 9 .. 1 0: there and back, so that folds come out even

    blocks = []
    for f in range(folds):
        people = order[deal == f]
        pool = np.concatenate([genuine[k] for k in people])
        turn = np.concatenate([np.arange(len(genuine[k])) for k in people])  # one pair a person, then a second, ...
        need = len(pool) if count is None else count // 2 // folds + (f < count // 2 % folds)
        need = need if exact else min(need, len(pool))
        if len(pool) < max(need, 1):
            raise DataError(
                f"fold {f} has {len(pool)} genuine pairs of {max(need, 1)}: expected more images a person, or fewer "
                "pairs or folds"
            )
        others = _impostors([members[k] for k in people], need, rng, age_gap, len(labels))
        if len(others) < need and (exact or not len(others)):
            raise DataError(
                f"fold {f} has {len(others)} impostor pairs of {need}: expected more people, or fewer pairs or folds"
            )
        need = len(others)
        pool = pool[np.lexsort((rng.random(len(pool)), turn))][:need]
        both = np.concatenate((pool, others))
        blocks.append((both, np.arange(2 * need) < need, np.full(2 * need, f)))
    both, same, fold = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return Pairs(both[:, 0].copy(), both[:, 1].copy(), same, fold.astype(np.int64))


def _check_options(
    images: int,
    count: int | None,
    folds: int,
    seed: int,
    max_genuine: int | None,
    age_gap: tuple[np.ndarray, float] | None,
) -> None:
    if folds < 2:
        raise ConfigError(f"folds: expected at least 2, got {folds}")
    if count is not None and (count < 2 * folds or count % 2):
        raise ConfigError(
            f"count: expected an even number of at least {2 * folds} (a pair of each kind a fold), got {count}"
        )
    if seed < 0 or (max_genuine is not None and max_genuine < 1):
        raise ConfigError(f"expected a seed of 0 or more and max_genuine of 1 or more, got {seed} and {max_genuine}")
    if age_gap is not None and len(age_gap[0]) != images:
        raise ConfigError(f"age_gap: expected the ages of all {images} images, got {len(age_gap[0])}")


def _genuine(
    rows: np.ndarray, rng: np.random.Generator, most: int | None, age_gap: tuple[np.ndarray, float] | None
) -> np.ndarray:
    """(n,2) pairs among the images of one person."""
    i, j = np.triu_indices(len(rows), 1)
    far = _apart(rows[i], rows[j], age_gap)
    i, j = i[far], j[far]
    pick = rng.permutation(len(i))[:most]
    return np.stack((rows[i[pick]], rows[j[pick]]), axis=1)


def _apart(left: np.ndarray, right: np.ndarray, age_gap: tuple[np.ndarray, float] | None) -> np.ndarray | slice:
    """Which pairs are far enough apart in age."""
    if age_gap is None:
        return slice(None)
    ages = np.asarray(age_gap[0], dtype=np.float64)
    return np.abs(ages[left] - ages[right]) >= age_gap[1]


def _impostors(
    members: list[np.ndarray], need: int, rng: np.random.Generator, age_gap: tuple[np.ndarray, float] | None, n: int
) -> np.ndarray:
    """(need,2) different rows of two different people, by rejection; fewer where there are no more."""
    sizes = np.array([len(rows) for rows in members])
    rows, starts, m = np.concatenate(members), np.cumsum(sizes) - sizes, len(members)
    keys = np.empty(0, np.int64)
    for _ in range(200):
        a = rng.integers(m, size=2 * need + 32)
        b = (a + rng.integers(1, m, size=len(a))) % m
        left, right = (rows[starts[k] + (rng.random(len(k)) * sizes[k]).astype(np.int64)] for k in (a, b))
        far = _apart(left, right, age_gap)
        left, right = left[far], right[far]
        keys = np.concatenate((keys, np.minimum(left, right) * n + np.maximum(left, right)))
        keys = keys[np.sort(np.unique(keys, return_index=True)[1])][:need]
        if len(keys) == need:
            break
    return np.stack(np.divmod(keys, n), axis=1)
