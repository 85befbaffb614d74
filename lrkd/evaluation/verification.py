"""From features to scores to accuracy: verification by folds or by a threshold from elsewhere.

Everywhere: a score is a cosine, higher means more alike; rates and accuracies are fractions in [0,1]; `same` is bool.

A face that was not found is a failure to enrol, and counts as it does in IJB's protocols: its pairs get the lowest
score, `LOWEST`, and are rejected at every threshold. So a genuine pair with such a face is an error, an impostor pair
is not, and no denominator gets smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lrkd.errors import ConfigError, DataError
from lrkd.evaluation.search import lost, rows, unit
from lrkd.evaluation.separation import check_same, check_scores

LOWEST = -1.0  # the lowest that a cosine can be


class PairTable(Protocol):
    """What `cross_resolution` reads of a table of P pairs, (P,) each: rows into the features, the truth, the fold."""

    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    fold: np.ndarray


@dataclass(frozen=True)
class Verification:
    """The outcome of F folds over n pairs; each is tested in its own fold, by the other folds' mean and threshold.

    Attributes:
        accuracy: (F,), a fraction.
        threshold: (F,), a cosine.
        scores: (n,), each pair's cosine as it was tested.
        correct: (n,) bool, which a bootstrap resamples.
    """

    accuracy: np.ndarray
    threshold: np.ndarray
    scores: np.ndarray
    correct: np.ndarray

    @property
    def mean(self) -> float:
        """The mean accuracy over the folds."""
        return float(self.accuracy.mean())

    @property
    def sd(self) -> float:
        """The standard deviation over folds (F-1), nan for one. Folds do not replicate training."""
        return float(self.accuracy.std(ddof=1)) if len(self.accuracy) > 1 else float("nan")


def kfold_verification(
    left: ArrayLike, right: ArrayLike, same: ArrayLike, folds: ArrayLike, *, missing: ArrayLike | None = None
) -> Verification:
    """Score pairs by the protocol of LFW, AgeDB-30 and CFP-FP: `(n,D), (n,D), (n,), (n,) -> Verification`.

    For each fold: subtract the mean of the other folds' features (left and right together), L2-normalise, score by
    the cosine, choose the threshold on the other folds (`best_threshold`), and count correct pairs in this fold;
    a pair is called the same when its score is above the threshold. A feature that equals the mean up to rounding (1e-6
    of its length) has no direction, and its pair scores 0. Computed in float64.

    Deviation from the published code: that searches 20,001 fixed thresholds; this search is exact.

    Args:
        left, right: features of the n pairs.
        same: (n,) bool, true for two images of one person.
        folds: (n,) whole numbers from 0; F is how many different ones there are.
        missing: (n,) bool, pairs with a face that was not found. They have no part in means and thresholds, score
            `LOWEST`, and are called different. None: there are none.

    Returns:
        The outcome, by rising number of the fold.

    Raises:
        DataError: Lengths differ, features are not finite, `same` is not bool, there are fewer than two folds, or the
            complement of a fold lacks genuine or impostor pairs and gives no threshold: `fixed_verification` takes
            one from elsewhere.
    """
    a, b, truth, lost = _pairs(left, right, same, missing)
    fold = _folds(folds, len(a))
    numbers, fold = np.unique(fold, return_inverse=True)
    member = fold == np.arange(len(numbers))[:, None]  # (F,n)
    for number, inside in zip(numbers, member, strict=True):
        rest = truth[~inside & ~lost]
        if len(np.unique(rest)) < 2:
            said = f"all pairs are {rest[0]}" if len(rest) else "there are no pairs"
            raise DataError(
                f"same: expected genuine and impostor pairs outside fold {number}, but {said}; without them take "
                f"{_ELSEWHERE}"
            )

    score = np.full((len(a), len(numbers)), LOWEST)
    score[~lost] = _centred_cosines(a[~lost], b[~lost], member[:, ~lost])
    taught = ~member & ~lost
    threshold = np.array([best_threshold(score[rows, f], truth[rows])[0] for f, rows in enumerate(taught)])
    own = score[np.arange(len(a)), fold]
    correct = ((own > threshold[fold]) & ~lost) == truth
    accuracy = np.bincount(fold, correct) / np.bincount(fold)
    return Verification(accuracy, threshold, own, correct)


def fit_threshold(
    left: ArrayLike, right: ArrayLike, same: ArrayLike, *, missing: ArrayLike | None = None
) -> tuple[float, np.ndarray]:
    """Take from all pairs what a fold takes from the others: `(n,D), (n,D), (n,) -> threshold, mean (D,)`.

    What `fixed_verification` needs to score other pairs: LFW's View 1 fits on its training pairs and tests on the rest.

    Raises:
        DataError: As `kfold_verification`, also where one kind of pairs is lacking.
    """
    a, b, truth, lost = _pairs(left, right, same, missing)
    a, b, truth = a[~lost], b[~lost], truth[~lost]
    if len(np.unique(truth)) < 2:
        raise DataError(
            f"same: expected pairs of both kinds, got {truth.sum()} genuine and {(~truth).sum()} impostor ones"
        )
    mean = (a.mean(0) + b.mean(0)) / 2
    return best_threshold(_cosines(a - mean, b - mean), truth)[0], mean


def fixed_verification(
    left: ArrayLike,
    right: ArrayLike,
    same: ArrayLike,
    threshold: float,
    *,
    mean: ArrayLike | None = None,
    missing: ArrayLike | None = None,
) -> Verification:
    """Score pairs at a threshold from elsewhere, in one fold: `(n,D), (n,D), (n,) -> Verification`; one pair suffices.

    Args:
        left, right, same, missing: As in `kfold_verification`.
        threshold: A pair is called the same when its cosine is above it.
        mean: (D,), subtracted from the features first, as `fit_threshold` gives it. None: the cosines are plain.

    Raises:
        ConfigError: The threshold is no number from -1 to 1.
        DataError: As `kfold_verification`.
    """
    if not -1 <= threshold <= 1:
        raise ConfigError(f"threshold: expected a cosine, from -1 to 1, got {threshold}")
    a, b, truth, lost = _pairs(left, right, same, missing)
    offset = np.zeros(a.shape[1]) if mean is None else np.asarray(mean, np.float64)
    score = np.where(lost, LOWEST, _cosines(a - offset, b - offset))
    correct = ((score > threshold) & ~lost) == truth
    return Verification(np.array([correct.mean()]), np.array([threshold], np.float64), score, correct)


_ELSEWHERE = "a threshold from elsewhere: fixed_verification, or --threshold of `lrkd verify`"


def _centred_cosines(a: np.ndarray, b: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Compute each pair's cosine after subtracting the mean of all features outside each fold: (n,F).

    (a-m)(b-m) = ab - m(a+b) + mm, so that all folds are three matrix products; the overall mean goes first, or the
    differences of large numbers would cost digits.
    """
    lengths = np.stack([_dots(a, a), _dots(b, b)])[..., None]
    grand = (a.sum(0) + b.sum(0)) / (2 * len(a))
    a, b = a - grand, b - grand
    inside = member.astype(np.float64)
    sums = inside @ a + inside @ b  # (F,D): every row is in one fold
    means = ((sums.sum(0) - sums) / (2 * (~member).sum(1))[:, None]).T
    am, bm, mm = a @ means, b @ means, (means**2).sum(0)
    dot = _dots(a, b)[:, None] - am - bm + mm
    squares = np.stack([_dots(a, a)[:, None] - 2 * am + mm, _dots(b, b)[:, None] - 2 * bm + mm])
    directed = (squares > 1e-12 * lengths).all(0)
    return np.where(directed, dot / np.sqrt(np.where(directed, squares[0] * squares[1], 1)), 0)


def _dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,D), (n,D) -> (n,), row by row, without an array of products."""
    return np.einsum("nd,nd->n", a, b)


def best_threshold(scores: ArrayLike, same: ArrayLike) -> tuple[float, float]:
    """Find the threshold with the highest accuracy, exactly: `(n,), (n,) -> (threshold, accuracy)`.

    Scores above the threshold are called the same. Candidates lie midway between neighbouring distinct scores, just
    below the lowest (all the same) and at the highest (none). Among equally good ones: the widest gap, then the lowest.
    """
    values, truth = check_scores(scores, same)
    order = np.argsort(values, kind="stable")
    values, truth = values[order], truth[order]
    # correct[k]: pairs called correctly when the k lowest are called different.
    correct = np.concatenate([[0], np.cumsum(~truth)]) + np.concatenate([np.cumsum(truth[::-1])[::-1], [0]])
    gap = np.diff(values)
    allowed = np.concatenate([[True], gap > 0, [True]])
    best = correct[allowed].max()
    width = np.concatenate([[0.0], gap, [0.0]])
    cut = int(np.argmax(np.where(allowed & (correct == best), width, -1.0)))
    if cut == 0:
        threshold = np.nextafter(values[0], -np.inf)
    elif cut == len(values):
        threshold = values[-1]
    else:
        middle = values[cut - 1] + gap[cut - 1] / 2
        threshold = middle if middle < values[cut] else values[cut - 1]  # neighbouring floats have no middle
    return float(threshold), float(best / len(values))


def cosine_scores(left: ArrayLike, right: ArrayLike) -> np.ndarray:
    """Compute cosines, nothing subtracted, 0 where a feature is zero: `(n,D), (n,D) -> (n,)` float64."""
    return _cosines(*_both(left, right))


def cross_resolution(features: Mapping[int, ArrayLike], pairs: PairTable) -> pd.DataFrame:
    """Measure the accuracy where left and right images have different sides: {side: (N,D)}, P pairs -> (S,S) table.

    Args:
        features: Those of all images, by side in pixels.
        pairs: Rows into them.

    Returns:
        The mean accuracy of `kfold_verification`, by the left image's side (rows) and the right one's (columns).

    Raises:
        DataError: A pair shows a row that the features lack; also as `kfold_verification`.
    """
    arrays = {side: np.asarray(array) for side, array in features.items()}
    index = np.concatenate([pairs.left, pairs.right])
    for side, array in arrays.items():
        if len(index) and not 0 <= index.min() <= index.max() < len(array):
            raise DataError(
                f"pairs: expected rows below {len(array)}, the features of side {side}, got "
                f"{index.min()} to {index.max()}"
            )
    table = [
        [kfold_verification(a[pairs.left], b[pairs.right], pairs.same, pairs.fold).mean for b in arrays.values()]
        for a in arrays.values()
    ]
    sides = list(arrays)
    return pd.DataFrame(table, index=pd.Index(sides, name="left"), columns=pd.Index(sides, name="right"))


def _both(left: ArrayLike, right: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = (rows(array, name).astype(np.float64, copy=False) for array, name in ((left, "left"), (right, "right")))
    if a.shape != b.shape:
        raise DataError(f"right: expected left's shape, {a.shape}, got {b.shape}")
    return a, b


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (unit(a) * unit(b)).sum(1)


def _pairs(
    left: ArrayLike, right: ArrayLike, same: ArrayLike, missing: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(n,D), (n,D) float64, (n,) bool, and (n,) bool: the pairs with a face that was not found."""
    a, b = _both(left, right)
    return a, b, check_same(same, len(a)), lost(missing, len(a), "a pair")


def _folds(folds: ArrayLike, count: int) -> np.ndarray:
    found = np.asarray(folds)
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise DataError(f"folds: expected whole numbers ({count},), one a pair, got {found.dtype} {found.shape}")
    if found.min() < 0:
        raise DataError(f"folds: expected numbers from 0, got {found.min()}")
    if found.min() == found.max():
        raise DataError(f"folds: expected at least 2, but all {count} pairs are in fold {found[0]}; take {_ELSEWHERE}")
    return found.astype(np.int64)
