"""Linear probes: how well a linear map reads known numbers from embeddings, for people it has not seen."""

import numpy as np
from numpy.typing import ArrayLike

from lrkd.errors import DataError

PENALTIES = tuple(float(10.0**power) for power in range(-6, 3))


def linear_r2(
    features: ArrayLike, targets: ArrayLike, people: ArrayLike, folds: int = 5, penalties: tuple[float, ...] = PENALTIES
) -> np.ndarray:
    """Cross-validate a ridge regression over people: R^2 = 1 - squared error / squared deviation from the mean.

    The mean is that of the training people. The people of a fold are predicted by a regression on those of the
    others; its penalty, one for each target, is the best for the next fold by a regression without both.

    Args:
        features: (N,D), each standardised here.
        targets: (N,T).
        people: (N,) labels; all images of a person are in one fold.
        folds: At least 3.
        penalties: Of the sum of squared weights, to choose among, per training image.

    Returns:
        (T,), at most 1, below 0 where the training mean is better.

    Raises:
        DataError: The arrays do not fit together, or there are fewer people than folds.
    """
    x, y, who = np.asarray(features, np.float64), np.asarray(targets, np.float64), np.asarray(people)
    if x.ndim != 2 or y.ndim != 2 or not len(x) == len(y) == len(who):
        raise DataError(f"expected (N,D) features, (N,T) targets, (N,) people, got {x.shape}, {y.shape}, {who.shape}")
    _, place = np.unique(who, return_inverse=True)
    if folds < 3 or place.max() + 1 < folds:
        raise DataError(f"folds: expected 3 or more and as many people, got {folds} folds, {place.max() + 1} people")
    order = np.random.default_rng(0).permutation(place.max() + 1) % folds
    fold = order[place]
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-12)
    error, spread = np.zeros(y.shape[1]), np.zeros(y.shape[1])
    for k in range(folds):
        held, inner = fold == k, fold == (k + 1) % folds
        rest = ~held & ~inner
        tried = np.stack([np.square(p - y[inner]).sum(0) for p in _ridge(x[rest], y[rest], x[inner], penalties)])
        best = tried.argmin(0)
        found = np.stack(_ridge(x[~held], y[~held], x[held], penalties))
        error += np.square(found[best, :, np.arange(y.shape[1])].T - y[held]).sum(0)
        spread += np.square(y[~held].mean(0) - y[held]).sum(0)
    return np.asarray(1 - error / np.maximum(spread, 1e-12))


def _ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray, penalties: tuple[float, ...]) -> list[np.ndarray]:
    """The predictions for `new` at each penalty, by one decomposition of x."""
    mean, offset = x.mean(0), y.mean(0)
    values, vectors = np.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    onto, turned = vectors.T @ (x - mean).T @ (y - offset) / len(x), (new - mean) @ vectors
    return [turned @ (onto / (values.clip(0) + p)[:, None]) + offset for p in penalties]
