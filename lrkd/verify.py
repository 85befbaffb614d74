"""From features to scores to accuracy: verification, and how sure one can be; with all of `lrkd.identify`.

Everywhere: a score is a cosine, higher means more alike; rates and accuracies are fractions in [0,1]; `same` is bool.

A face that was not found is a failure to enrol, and counts as it does in IJB's protocols: its pairs get the lowest
score, `LOWEST`, and are rejected at every threshold. So a genuine pair with such a face is an error, an impostor pair
is not, and no denominator gets smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy import sparse, stats
from torch import nn
from tqdm.auto import tqdm

from lrkd.degrade import Degradation, degrade
from lrkd.errors import ConfigError, DataError, TrainingError
from lrkd.identify import (
    OpenSet,
    Search,
    Templates,
    cmc,
    fuse,
    identification,
    lost,
    open_set,
    probe_ranks,
    rank_k,
    rank_table,
    read_templates,
    rows,
    search,
    template_scores,
    templates,
    unit,
)

__all__ = [
    "Interval", "OpenSet", "Roc", "Search", "Separation", "Templates", "Verification", "best_threshold",
    "bootstrap_identities", "cmc", "cosine_scores", "cross_resolution", "d_prime", "eer", "embed", "fit_threshold",
    "fixed_verification", "fuse",
    "identification", "kfold_verification", "open_set", "probe_ranks", "rank_k", "rank_table", "read_templates", "roc",
    "search", "separation", "tar_at_far", "template_scores", "templates",
]  # fmt: skip

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
LOWEST = -1.0  # the lowest that a cosine can be


class PairTable(Protocol):
    """What `cross_resolution` reads of a table of P pairs: rows into the features, (P,) each."""

    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    fold: np.ndarray


@dataclass(frozen=True)
class Verification:
    """Outcome of F folds over n pairs; each pair is tested in its own fold, with the other folds' mean and threshold.

    accuracy, threshold: (F,). scores, correct: (n,), each pair as it was tested; a bootstrap resamples `correct`.
    """

    accuracy: np.ndarray
    threshold: np.ndarray
    scores: np.ndarray
    correct: np.ndarray

    @property
    def mean(self) -> float:
        """Mean accuracy over the folds."""
        return float(self.accuracy.mean())

    @property
    def sd(self) -> float:
        """Standard deviation over the folds (F-1), nan for one. Folds fit a threshold: no replicates of training."""
        return float(self.accuracy.std(ddof=1)) if len(self.accuracy) > 1 else float("nan")


def kfold_verification(
    left: ArrayLike, right: ArrayLike, same: ArrayLike, folds: ArrayLike, *, missing: ArrayLike | None = None
) -> Verification:
    """Score pairs by the protocol of LFW, AgeDB-30 and CFP-FP: `(n,D), (n,D), (n,), (n,) -> Verification`.

    For each fold: subtract the mean of the other folds' features (left and right together), L2-normalise, score by
    the cosine, choose the threshold on the other folds (`best_threshold`), and count what is right in this fold;
    a pair is called the same when its score is above the threshold. A feature that equals the mean up to rounding (1e-6
    of its length) has no direction, and its pair scores 0. Computed in float64.

    Deviation from the published code: that searches 20,001 fixed thresholds; this search is exact.

    Args:
        left, right: features of the n pairs.
        same: (n,) bool, true for two images of one person.
        folds: (n,) whole numbers from 0; those that no pair has are no folds, so F may be less than the highest + 1.
        missing: (n,) bool, pairs with a face that was not found. They have no part in means and thresholds, score
            `LOWEST`, and are called different. None: there are none.

    Returns:
        The outcome, by rising number of the fold.

    Raises:
        DataError: for lengths that differ, features that are not finite, `same` not bool, fewer than two folds, and
            folds whose complement lacks genuine or impostor pairs, of which there is no threshold to be had:
            `fixed_verification` takes one from elsewhere.
    """
    a, b, truth, lost = _pairs(left, right, same, missing)
    fold = _folds(folds, len(a))
    numbers, fold = np.unique(fold, return_inverse=True)
    member = fold == np.arange(len(numbers))[:, None]  # (F,n)
    for number, inside in zip(numbers, member, strict=True):
        rest = truth[~inside & ~lost]
        if len(np.unique(rest)) < 2:
            said = f"all pairs are {rest[0]}" if len(rest) else "there are no pairs"
            raise DataError(f"same: outside fold {number} {said}; both kinds are needed, or {_ELSEWHERE}")

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
        DataError: as `kfold_verification` does, also where one kind of pairs is lacking.
    """
    a, b, truth, lost = _pairs(left, right, same, missing)
    a, b, truth = a[~lost], b[~lost], truth[~lost]
    if len(np.unique(truth)) < 2:
        raise DataError(f"same: {truth.sum()} genuine and {(~truth).sum()} impostor pairs; both kinds are needed")
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
        left, right, same, missing: as in `kfold_verification`.
        threshold: a pair is called the same when its cosine is above it.
        mean: (D,), subtracted from the features first, as `fit_threshold` gives it. None: the cosines are plain.

    Raises:
        DataError: as `kfold_verification` does. ConfigError: for a threshold that is no number from -1 to 1.
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
    """(n,F): each pair's cosine after subtracting the mean of all features outside each fold.

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
    """The threshold with the highest accuracy, and that accuracy: `(n,), (n,) -> (threshold, accuracy)`; exact.

    Scores above the threshold are called the same. Candidates lie midway between neighbouring distinct scores, just
    below the lowest (all the same) and at the highest (none). Among equally good ones: the widest gap, then the lowest.
    """
    values, truth = _scores(scores, same)
    order = np.argsort(values, kind="stable")
    values, truth = values[order], truth[order]
    # right[k]: pairs called correctly when the k lowest are called different.
    right = np.concatenate([[0], np.cumsum(~truth)]) + np.concatenate([np.cumsum(truth[::-1])[::-1], [0]])
    gap = np.diff(values)
    allowed = np.concatenate([[True], gap > 0, [True]])
    best = right[allowed].max()
    width = np.concatenate([[0.0], gap, [0.0]])
    cut = int(np.argmax(np.where(allowed & (right == best), width, -1.0)))
    if cut == 0:
        threshold = np.nextafter(values[0], -np.inf)
    elif cut == len(values):
        threshold = values[-1]
    else:
        middle = values[cut - 1] + gap[cut - 1] / 2
        threshold = middle if middle < values[cut] else values[cut - 1]  # neighbouring floats have no middle
    return float(threshold), float(best / len(values))


class Roc(NamedTuple):
    """(K,) each, by falling threshold from inf: accepting `score >= threshold` gives these rates."""

    far: np.ndarray
    tar: np.ndarray
    threshold: np.ndarray


def roc(scores: ArrayLike, same: ArrayLike) -> Roc:
    """False and true accept rates at every distinct score: `(n,), (n,) -> Roc`. Needs both kinds of pairs."""
    values, truth = _scores(scores, same, both=True)
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
    """True accept rate at each false accept rate: `(n,), (n,) -> (len(far),)`.

    The best TAR whose measured FAR does not exceed the wanted one: never interpolated. With fewer than 1/far impostors
    that is the TAR without any false accept, which says little: look at the number of impostors first.
    """
    wanted = np.atleast_1d(np.asarray(far, dtype=np.float64))
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise ConfigError(f"far: {far} holds a rate outside [0,1]")
    curve = roc(scores, same)
    return curve.tar[np.searchsorted(curve.far, wanted * (1 + 1e-12), side="right") - 1]


def eer(scores: ArrayLike, same: ArrayLike) -> float:
    """Equal error rate: `(n,), (n,) -> rate` where FAR meets 1 - TAR, on straight lines between the ROC's points."""
    curve = roc(scores, same)
    excess = curve.far - (1 - curve.tar)  # rises from -1 to 1
    right = int(np.argmax(excess >= 0))
    share = -excess[right - 1] / (excess[right] - excess[right - 1])
    return float(curve.far[right - 1] + share * (curve.far[right] - curve.far[right - 1]))


def d_prime(scores: ArrayLike, same: ArrayLike) -> float:
    """Genuine against impostor scores: (mean_g - mean_i) / sqrt((var_g + var_i) / 2), the variances with n-1."""
    values, truth = _scores(scores, same, both=True)
    genuine, impostor = values[truth], values[~truth]
    if min(len(genuine), len(impostor)) < 2:
        raise DataError(f"same: {len(genuine)} genuine and {len(impostor)} impostor pairs; d' needs 2 of each")
    pooled = np.sqrt((genuine.var(ddof=1) + impostor.var(ddof=1)) / 2)
    if pooled == 0:
        raise DataError("scores: no spread within genuine or impostor pairs; d' is not defined")
    return float((genuine.mean() - impostor.mean()) / pooled)


class Separation(NamedTuple):
    """How far genuine scores lie from impostor ones; none of it is a test."""

    overlap: float
    d_prime: float
    wasserstein: float
    ks: float


def separation(scores: ArrayLike, same: ArrayLike, bins: int = 50) -> Separation:
    """Genuine against impostor scores in four ways: `(n,), (n,) -> Separation`.

    overlap: the area that the two normed histograms share, in [0,1], over `bins` equal bins from the lowest score to
    the highest. d_prime: `d_prime`. wasserstein: the mean way that scores have to go from one distribution to the
    other, in units of the score. ks: Kolmogorov and Smirnov's greatest distance of the two distribution functions, in
    [0,1]; 1 - ks is the least sum of both error rates at one threshold.

    A pair is no independent unit (pairs share people, and all share one network), so that no p value stands here: take
    an interval over seeds. Raises DataError as `d_prime` does.
    """
    values, truth = _scores(scores, same, both=True)
    if bins < 1:
        raise ConfigError(f"bins: {bins} is not at least 1")
    distance = d_prime(values, truth)  # first: it says what is wrong with scores that have no spread
    genuine, impostor = values[truth], values[~truth]
    edges = np.linspace(values.min(), values.max(), bins + 1)
    shares = [np.histogram(kind, edges)[0] / len(kind) for kind in (genuine, impostor)]
    ks = stats.ks_2samp(genuine, impostor, method="asymp").statistic
    way = stats.wasserstein_distance(genuine, impostor)
    return Separation(float(np.minimum(*shares).sum()), distance, float(way), float(ks))


def cosine_scores(left: ArrayLike, right: ArrayLike) -> np.ndarray:
    """`(n,D), (n,D) -> (n,)` cosines in float64, nothing subtracted; 0 where a feature is zero."""
    return _cosines(*_both(left, right))


def cross_resolution(features: Mapping[int, ArrayLike], pairs: PairTable) -> pd.DataFrame:
    """Accuracy when the left image has one side and the right another: {side: (N,D)}, P pairs -> (S,S) table.

    Rows: the left image's side; columns: the right image's; mean accuracy of `kfold_verification`.
    """
    arrays = {side: np.asarray(array) for side, array in features.items()}
    index = np.concatenate([pairs.left, pairs.right])
    for side, array in arrays.items():
        if len(index) and not 0 <= index.min() <= index.max() < len(array):
            raise DataError(f"pairs: rows {index.min()} to {index.max()}, but side {side} has {len(array)} features")
    table = [
        [kfold_verification(a[pairs.left], b[pairs.right], pairs.same, pairs.fold).mean for b in arrays.values()]
        for a in arrays.values()
    ]
    sides = list(arrays)
    return pd.DataFrame(table, index=pd.Index(sides, name="left"), columns=pd.Index(sides, name="right"))


def embed(
    model: nn.Module,
    images: Any,
    *,
    side: int | None = None,
    preset: str | Degradation = "area-bicubic",
    mirror: bool = True,
    mirror_first: bool = False,
    batch: int = 256,
    device: torch.device | str | None = None,
    seed: int = 0,
    amp: torch.dtype | None = None,
    channels_last: bool = True,
    progress: bool = False,
) -> np.ndarray:
    """Features of images: uint8 `(N,H,W,3) -> (N,2D)` float32, those of the image beside those of its mirror image.

    images: an array, a memory map, or anything with a length and slices that are such arrays; read `batch` at a time.
    side: degrade to this side first, and enlarge again unless it is the model's own `size`; None: as they are. At the
        images' own side `degrade` resamples nothing, but the preset's blur, noise and JPEG remain.
    preset: as in `degrade`, with random draws from `seed`.
    mirror: False gives (N,D). mirror_first: degrade the mirror image itself, as A-SKD does, instead of mirroring the
    degraded image; only kernels that are not symmetric, such as nearest, tell the two apart.
    device: where to run; None: where the model is (else the model is moved, and stays).
    amp: autocast to this dtype. channels_last: memory format of the network's input. progress: show a bar.

    The network sees RGB in [-1,1]. It runs in eval mode without gradients; every submodule's own mode is put back. It
    returns a tensor (B,D) or something with such an `.embedding`.

    Raises DataError for images of another type or shape, TrainingError for an embedding that is not finite (a diverged
    network would otherwise score exactly 50 %).
    """
    if batch < 1:
        raise ConfigError(f"batch: {batch} is not at least 1")
    if len(images) == 0:
        raise DataError("images: there are none to embed")
    place = torch.device(device or next((weight.device for weight in model.parameters()), "cpu"))
    model.to(place)
    generator = torch.Generator().manual_seed(seed)
    found = []
    with _evaluation(model), torch.inference_mode():
        for start in tqdm(range(0, len(images), batch), desc="embed", unit="batch", disable=not progress, leave=False):
            block = np.array(images[start : start + batch])  # a copy: memory maps are read-only
            if block.dtype != np.uint8 or block.ndim != 4 or block.shape[3] != 3:
                raise DataError(f"images: {block.dtype} {block.shape} is not uint8 (N,H,W,3)")
            x = torch.from_numpy(block).permute(0, 3, 1, 2).to(place).float() / 255
            if mirror and mirror_first:
                x = torch.cat([x, x.flip(3)])
            if side is not None:
                enlarge = getattr(model, "size", None) != side
                x = degrade(x, side, preset=preset, generator=generator, enlarge=enlarge)
            x = (x - 0.5) / 0.5
            if mirror and not mirror_first:
                x = torch.cat([x, x.flip(3)])
            if channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(place.type, dtype=amp, enabled=amp is not None):
                out = model(x)
            out = getattr(out, "embedding", out).float().cpu()
            if not out.isfinite().all():
                bad = start + int((~out.isfinite().all(1)).nonzero()[0, 0]) % len(block)
                raise TrainingError(
                    f"{type(model).__name__}: the embedding of image {bad} is not finite; the network has diverged "
                    "(lower the learning rate or a term's weight)"
                )
            found.append(torch.cat(out.chunk(2), dim=1) if mirror else out)
    return torch.cat(found).numpy()


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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
    same: ArrayLike,
    *,
    other: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    generator: np.random.Generator | int = 0,
) -> Interval:
    """Interval for the mean of a value per pair, with the IDENTITY as the unit: `(n,) each -> Interval`.

    values: (n,), for an accuracy `Verification.correct`. left, right: (n,) identities of the two images.
    other: the same pairs under another method: the interval is then for mean(values - other), paired.

    Pairs that share a person are not independent, so I identities are drawn I times with replacement; with m_i draws of
    identity i a genuine pair weighs m_i and an impostor pair m_i m_j (the pigeonhole bootstrap: Owen, Annals of Applied
    Statistics 2007). It errs to the safe side: in a simulation of 50 people a 90 % interval held the truth in 89 % of
    the cases where values vary by person, in 97 % where each pair varies on its own.
    Thresholds stay as they were; seeds of training are another source of variation that this does not see.

    Raises DataError for lengths that differ, values not finite, genuine pairs of two identities, and fewer than 2.
    """
    score, truth = _scores(values, same)
    if other is not None:
        score = score - _scores(other, truth)[0]
    ends = np.stack([np.asarray(left), np.asarray(right)]) if np.shape(left) == np.shape(right) else np.empty((2, 0))
    if ends.shape != (2, len(score)):
        raise DataError(f"left, right: shapes {np.shape(left)}, {np.shape(right)} are not ({len(score)},), one a pair")
    if ((ends[0] == ends[1]) != truth).any():
        pair = int(np.argmax((ends[0] == ends[1]) != truth))
        raise DataError(f"same: pair {pair} is {truth[pair]}, but it shows {ends[0, pair]} and {ends[1, pair]}")
    if not 0 < level < 1 or resamples < 1:
        raise ConfigError(f"level: {level}, resamples: {resamples}; wanted: a level inside (0,1), 1 or more resamples")
    names, who = np.unique(ends, return_inverse=True)
    who = who.reshape(ends.shape)
    count = len(names)
    if count < 2:
        raise DataError(f"left, right: {count} identity; a bootstrap over identities needs 2 or more")

    # m G + m' V m for all resamples at once: sums of genuine pairs by person, of impostor pairs by couple.
    rng = np.random.default_rng(generator)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)  # (R,I)

    def total(value: np.ndarray) -> np.ndarray:
        genuine = np.bincount(who[0, truth], value[truth], minlength=count)
        couples = sparse.csr_array((value[~truth], (who[0, ~truth], who[1, ~truth])), shape=(count, count))
        return drawn @ genuine + ((couples.T @ drawn.T).T * drawn).sum(1)

    weight = total(np.ones(len(score)))
    draws = total(score)[weight > 0] / weight[weight > 0]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(score.mean()), float(low), float(high), draws)


def _both(left: ArrayLike, right: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = (rows(array, name).astype(np.float64, copy=False) for array, name in ((left, "left"), (right, "right")))
    if a.shape != b.shape:
        raise DataError(f"right: shape {b.shape} differs from left's {a.shape}")
    return a, b


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found: np.ndarray = (unit(a) * unit(b)).sum(1)
    return found


def _pairs(
    left: ArrayLike, right: ArrayLike, same: ArrayLike, missing: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(n,D), (n,D) float64, (n,) bool, and (n,) bool: the pairs with a face that was not found."""
    a, b = _both(left, right)
    return a, b, _labels(same, len(a)), lost(missing, len(a), "a pair")


def _labels(same: ArrayLike, count: int) -> np.ndarray:
    found = np.asarray(same)
    if found.dtype != np.bool_:
        raise DataError(f"same: {found.dtype} is not bool (True for genuine pairs)")
    if found.shape != (count,):
        raise DataError(f"same: shape {found.shape} is not ({count},), one a pair")
    return found


def _folds(folds: ArrayLike, count: int) -> np.ndarray:
    found = np.asarray(folds)
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise DataError(f"folds: {found.dtype} {found.shape} is not whole numbers ({count},), one a pair")
    if found.min() < 0:
        raise DataError(f"folds: expected numbers from 0, got {found.min()}")
    if found.min() == found.max():
        raise DataError(f"folds: all {count} pairs are in fold {found[0]}; at least 2 are needed, or {_ELSEWHERE}")
    return found.astype(np.int64)


def _scores(scores: ArrayLike, same: ArrayLike, both: bool = False) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise DataError(f"scores: shape {values.shape} is not (n,), at least one score")
    if not np.isfinite(values).all():
        raise DataError(f"scores: score {int(np.argmin(np.isfinite(values)))} is not finite")
    truth = _labels(same, len(values))
    if both and len(np.unique(truth)) < 2:
        raise DataError(f"same: all {len(truth)} pairs are {truth[0]}; both kinds are needed")
    return values, truth
