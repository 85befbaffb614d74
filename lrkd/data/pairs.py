"""Verification pairs: which two images are compared, in folds that share no person."""

from __future__ import annotations

from dataclasses import dataclass, replace

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


def firsts(digests: np.ndarray) -> np.ndarray:
    """(N,) -> (M,) int64 rows, in order, of the images that are no copies of an earlier one, by their sha256."""
    return np.sort(np.unique(digests, return_index=True)[1]).astype(np.int64)


def make_pairs(
    labels: np.ndarray,
    count: int | None = None,
    folds: int = 10,
    seed: int = 0,
    *,
    age: np.ndarray | None = None,
    min_age_gap: float | None = None,
    max_genuine: int | None = 15,
    protocol: str = "generated",
    among: np.ndarray | None = None,
    at_most: bool = False,
) -> Pairs:
    """(N,) labels -> verification pairs, half genuine, in identity-disjoint folds.

    `count` pairs in all (even); or, without it, as many as there are with at most `max_genuine` genuine pairs a person,
    in fewer folds where there are too few people (two a fold, one of them with a genuine pair). With `at_most` a
    `count` may come out smaller, and in fewer folds, too. People are
    dealt to the folds so that each fold holds about the same number of genuine pairs; every fold has as many
    impostor as genuine pairs; its impostors are two of its own people, drawn uniformly over people, then over their
    images. No pair comes twice. With `min_age_gap` both kinds are at least that far apart in `age`, so age alone
    tells nothing. With `among`, pairs are of these rows only, as of those that are no copies of others (`firsts`).
    Raises DataError where the labels cannot give that many.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if folds < 2:
        raise ConfigError(f"folds={folds}: at least 2 are needed")
    if count is not None and (count < 2 * folds or count % 2):
        raise ConfigError(
            f"count={count}: an even number of at least {2 * folds} (a pair of each kind a fold) is right"
        )
    if seed < 0 or (max_genuine is not None and max_genuine < 1):
        raise ConfigError(f"seed={seed}, max_genuine={max_genuine}: a seed from 0 on and at least one pair are right")
    if min_age_gap is not None and (age is None or len(age) != len(labels)):
        raise ConfigError(f"min_age_gap needs the ages of all {len(labels)} images")
    if among is not None and len(among) < len(labels):
        rows = np.asarray(among, dtype=np.int64)
        made = make_pairs(
            labels[rows],
            count,
            folds,
            seed,
            age=None if age is None else np.asarray(age)[rows],
            min_age_gap=min_age_gap,
            max_genuine=max_genuine,
            protocol=protocol,
            at_most=at_most,
        )
        return replace(made, left=rows[made.left], right=rows[made.right])
    exact = count is not None and not at_most
    ages = None if min_age_gap is None or age is None else np.asarray(age, dtype=np.float64)
    gap = min_age_gap or 0.0
    rng = np.random.default_rng(seed)
    sizes = np.unique(labels, return_counts=True)[1]
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])

    genuine = []
    for rows in members:
        i, j = np.triu_indices(len(rows), 1)
        if ages is not None:
            far = np.abs(ages[rows[i]] - ages[rows[j]]) >= gap
            i, j = i[far], j[far]
        pick = rng.permutation(len(i))[:max_genuine]
        genuine.append(np.stack((rows[i[pick]], rows[j[pick]]), axis=1))
    able = sum(len(pairs) > 0 for pairs in genuine)
    if not exact:
        folds = max(2, min(folds, able, len(sizes) // 2))
    if len(sizes) < 2 * folds or able < folds:
        raise DataError(
            f"{len(sizes)} people, {able} of them with a genuine pair, cannot fill {folds} folds: {2 * folds} "
            f"people, and {folds} of them with two images or more, are needed"
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
                f"fold {f} has {len(pool)} genuine pairs of {max(need, 1)}: more images a person, fewer pairs or folds "
                "are needed"
            )
        others = _impostors([members[k] for k in people], need, rng, ages, gap, len(labels))
        if len(others) < need and (exact or not len(others)):
            raise DataError(
                f"fold {f} has {len(others)} impostor pairs of {need}: more people, fewer pairs or folds are needed"
            )
        need = len(others)
        pool = pool[np.lexsort((rng.random(len(pool)), turn))][:need]
        both = np.concatenate((pool, others))
        blocks.append((both, np.arange(2 * need) < need, np.full(2 * need, f)))
    both, same, fold = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return Pairs(both[:, 0].copy(), both[:, 1].copy(), same, fold.astype(np.int64), protocol)


def _impostors(
    members: list[np.ndarray], need: int, rng: np.random.Generator, ages: np.ndarray | None, gap: float, n: int
) -> np.ndarray:
    """(need,2) different rows of two different people, by rejection; fewer where there are no more."""
    sizes = np.array([len(rows) for rows in members])
    rows, starts, m = np.concatenate(members), np.cumsum(sizes) - sizes, len(members)
    keys = np.empty(0, np.int64)
    for _ in range(200):
        a = rng.integers(m, size=2 * need + 32)
        b = (a + rng.integers(1, m, size=len(a))) % m
        left, right = (rows[starts[k] + (rng.random(len(k)) * sizes[k]).astype(np.int64)] for k in (a, b))
        if ages is not None:
            far = np.abs(ages[left] - ages[right]) >= gap
            left, right = left[far], right[far]
        keys = np.concatenate((keys, np.minimum(left, right) * n + np.maximum(left, right)))
        keys = keys[np.sort(np.unique(keys, return_index=True)[1])][:need]
        if len(keys) == need:
            break
    return np.stack(np.divmod(keys, n), axis=1)
