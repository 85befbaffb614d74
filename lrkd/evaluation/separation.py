"""How well scores separate genuine from impostor pairs: ROC, TAR@FAR, EER, d'.

Everywhere `scores` are (n,), higher meaning more alike, and `same` is (n,) bool, or 0 and 1
as scikit-learn has labels, true for two images of one person.
What needs pairs of both kinds raises DataError where one is lacking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse, stats

from lrkd.errors import ConfigError, DataError, check_inside

FARS = (1e-1, 1e-2, 1e-3, 1e-4)


class Roc(NamedTuple):
    """A receiver operating characteristic: (K,) each, by falling threshold from inf, of `score >= threshold`."""

    far: np.ndarray
    tar: np.ndarray
    threshold: np.ndarray


def roc(scores: ArrayLike, same: ArrayLike) -> Roc:
    """Compute false and true accept rates at every distinct score: `(n,), (n,) -> Roc`."""
    values, truth = check_scores(scores, same, both=True)
    order = np.argsort(-values, kind="stable")
    values, truth = values[order], truth[order]
    last = np.flatnonzero(np.append(np.diff(values) != 0, True))
    true, false = np.cumsum(truth)[last], np.cumsum(~truth)[last]
    start = np.zeros(1)
    return Roc(
        np.concatenate([start, false / false[-1]]),
        np.concatenate([start, true / true[-1]]),
        np.concatenate([[np.inf], values[last]]),
    )


def tar_at_far(scores: ArrayLike, same: ArrayLike, far: Sequence[float] = FARS) -> np.ndarray:
    """Compute the true accept rate at each false accept rate: `(n,), (n,) -> (len(far),)`.

    The best TAR whose measured FAR does not exceed the wanted one: never interpolated. With fewer than 1/far impostor
    pairs that is the TAR without any false accept, which says little: look at the number of impostor pairs first.

    Raises:
        ConfigError: `far` holds a rate outside [0,1].
    """
    wanted = np.atleast_1d(np.asarray(far, dtype=np.float64))
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise ConfigError(f"far: expected rates in [0,1], got {far}")
    curve = roc(scores, same)
    return curve.tar[np.searchsorted(curve.far, wanted * (1 + 1e-12), side="right") - 1]


def eer(scores: ArrayLike, same: ArrayLike) -> float:
    """Compute the equal error rate, where FAR meets 1 - TAR on straight lines between the ROC's points."""
    curve = roc(scores, same)
    excess = curve.far - (1 - curve.tar)  # rises from -1 to 1
    right = int(np.argmax(excess >= 0))
    share = -excess[right - 1] / (excess[right] - excess[right - 1])
    return float(curve.far[right - 1] + share * (curve.far[right] - curve.far[right - 1]))


def d_prime(scores: ArrayLike, same: ArrayLike) -> float:
    """Compute d' = (mean_g - mean_i) / sqrt((var_g + var_i) / 2) of genuine and impostor scores, variances with n-1.

    Raises:
        DataError: There are fewer than two pairs of a kind, or no spread within either.
    """
    values, truth = check_scores(scores, same, both=True)
    genuine, impostor = values[truth], values[~truth]
    if min(len(genuine), len(impostor)) < 2:
        raise DataError(f"same: expected 2 pairs of each kind, got {len(genuine)} genuine, {len(impostor)} impostor")
    pooled = np.sqrt((genuine.var(ddof=1) + impostor.var(ddof=1)) / 2)
    if pooled == 0:
        raise DataError("scores: expected a spread within genuine or impostor pairs, got none; d' is not defined")
    return float((genuine.mean() - impostor.mean()) / pooled)


class Separation(NamedTuple):
    """How far genuine scores lie from impostor ones; none of it is a test.

    Attributes:
        overlap: The area that the two normed histograms share, in [0,1].
        d_prime: See `d_prime`.
        wasserstein: The mean way from one distribution to the other, in units of the score.
        ks: The greatest distance of the two distribution functions (Kolmogorov and Smirnov), in [0,1]; 1 - ks is the
            least sum of both error rates at one threshold.
    """

    overlap: float
    d_prime: float
    wasserstein: float
    ks: float


def separation(scores: ArrayLike, same: ArrayLike, bins: int = 50) -> Separation:
    """Compare genuine with impostor scores in four ways: `(n,), (n,) -> Separation`.

    A pair is no independent unit (pairs share people, and all share one network), so there is no p value here: take
    an interval over seeds.

    Args:
        scores, same: As everywhere here.
        bins: Of the histograms, equally wide, from the lowest score to the highest.

    Raises:
        ConfigError: `bins` is below 1.
        DataError: As `d_prime`.
    """
    values, truth = check_scores(scores, same, both=True)
    if bins < 1:
        raise ConfigError(f"bins: expected at least 1, got {bins}")
    distance = d_prime(values, truth)  # first: it says what is wrong with scores that have no spread
    genuine, impostor = values[truth], values[~truth]
    edges = np.linspace(values.min(), values.max(), bins + 1)
    shares = [np.histogram(kind, edges)[0] / len(kind) for kind in (genuine, impostor)]
    ks = stats.ks_2samp(genuine, impostor, method="asymp").statistic
    way = stats.wasserstein_distance(genuine, impostor)
    return Separation(float(np.minimum(*shares).sum()), distance, float(way), float(ks))


class Interval(NamedTuple):
    """An estimate with its percentile bootstrap interval; `draws` (R,) are the resampled values."""

    estimate: float
    low: float
    high: float
    draws: np.ndarray


def bootstrap_identities(
    values: ArrayLike,
    left: ArrayLike,
    right: ArrayLike,
    *,
    other: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    generator: np.random.Generator | int = 0,
) -> Interval:
    """Compute an interval for the mean of a value per pair, with the IDENTITY as the unit: `(n,) each -> Interval`.

    Pairs that share a person are not independent, so I identities are drawn I times with replacement; with m_i draws of
    identity i a genuine pair weighs m_i and an impostor pair m_i m_j (the pigeonhole bootstrap: Owen, Annals of Applied
    Statistics 2007). It errs to the safe side: in a simulation of 50 people a 90 % interval held the truth in 89 % of
    the cases where values vary by person, in 97 % where each pair varies on its own.
    Thresholds stay as they were; seeds of training are another source of variation that this does not see.

    Args:
        values: (n,), such as the `correct` of a `Verification`.
        left, right: (n,) identities of the two images; a pair is genuine where they are equal.
        other: (n,), the same pairs under another method: the interval is then for mean(values - other), paired.
        level: Of the interval.
        resamples: How many; one in which no pair is drawn is left out.
        generator: Or its seed.

    Raises:
        ConfigError: `level` or `resamples` is out of range.
        DataError: Lengths differ, values are not finite, or there are fewer than two identities.
    """
    score = finite_values(values, "values")
    if other is not None:
        second = finite_values(other, "other")
        if second.shape != score.shape:
            raise DataError(f"other: expected ({len(score)},), one a pair, got {second.shape}")
        score = score - second
    ends = np.stack([np.asarray(left), np.asarray(right)]) if np.shape(left) == np.shape(right) else np.empty((2, 0))
    if ends.shape != (2, len(score)):
        raise DataError(
            f"left, right: expected ({len(score)},) each, one a pair, got {np.shape(left)} and {np.shape(right)}"
        )
    check_inside("level", level, 0, 1)
    if resamples < 1:
        raise ConfigError(f"resamples: expected at least 1, got {resamples}")
    names, who = np.unique(ends, return_inverse=True)
    who = who.reshape(ends.shape)
    same, count = who[0] == who[1], len(names)
    if count < 2:
        raise DataError(f"left, right: expected 2 or more identities to resample, got {count}")

    # m G + m' V m for all resamples at once: sums of genuine pairs by person, of impostor pairs by couple.
    rng = np.random.default_rng(generator)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)  # (R,I)

    def total(value: np.ndarray) -> np.ndarray:
        genuine = np.bincount(who[0, same], value[same], minlength=count)
        couples = sparse.csr_array((value[~same], (who[0, ~same], who[1, ~same])), shape=(count, count))
        return drawn @ genuine + ((couples.T @ drawn.T).T * drawn).sum(1)

    weight = total(np.ones(len(score)))
    draws = total(score)[weight > 0] / weight[weight > 0]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(score.mean()), float(low), float(high), draws)


def check_same(same: ArrayLike, count: int) -> np.ndarray:
    """Return `same` as (count,) bool; DataError where it is neither that nor 0 and 1."""
    found = np.asarray(same)
    if found.shape != (count,) or not (found.dtype == np.bool_ or np.isin(found, (0, 1)).all()):
        swapped = ": the scores come before the labels" if found.dtype.kind == "f" else ""
        raise DataError(
            f"same: expected bool or 0 and 1 ({count},), one a pair, true for genuine ones, got {found.dtype} "
            f"{found.shape}{swapped}"
        )
    return found.astype(bool)


def finite_values(values: ArrayLike, name: str) -> np.ndarray:
    """Return (n,) values in float64; DataError, with their name, where there are none or one is not finite."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) == 0:
        raise DataError(f"{name}: expected (n,) numbers, at least one, got shape {found.shape}")
    if not np.isfinite(found).all():
        row = int(np.argmin(np.isfinite(found)))
        raise DataError(f"{name}: expected finite numbers, got {found[row]} in row {row}")
    return found


def check_scores(scores: ArrayLike, same: ArrayLike, both: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return scores in float64 and `same`, (n,) each; DataError where they do not fit, or lack one of `both` kinds."""
    values = finite_values(scores, "scores")
    truth = check_same(same, len(values))
    if both and len(np.unique(truth)) < 2:
        raise DataError(f"same: expected genuine and impostor pairs, got {len(truth)} pairs that are all {truth[0]}")
    return values, truth
