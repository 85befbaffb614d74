"""`verify` against naive loops over every threshold, scikit-learn, and simulations with a known truth."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve
from torch import nn

from lrkd.data.degradation import degrade
from lrkd.errors import ConfigError, DataError, TrainingError
from lrkd.evaluation.embedding import embed
from lrkd.evaluation.identification import probe_ranks, rank_k
from lrkd.evaluation.separation import bootstrap_identities, d_prime, eer, roc, separation, tar_at_far
from lrkd.evaluation.verification import (
    best_threshold,
    cosine_scores,
    cross_resolution,
    fit_threshold,
    fixed_verification,
    kfold_verification,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pair_features(count: int = 120, dim: int = 6, folds: int = 10, seed: int = 0, noise: float = 1.0):
    """Genuine pairs share a direction; both sides have a large common mean."""
    random = rng(seed)
    same = random.permutation(np.arange(count) % 2 == 0)
    left = random.normal(size=(count, dim))
    right = np.where(same[:, None], left, 0) + noise * random.normal(size=(count, dim))
    return left + 3, right + 3, same, random.permutation(np.arange(count) % folds)


@st.composite
def tied_scores(draw):
    """Few distinct values, so that ties within and between the kinds are the rule; both kinds occur."""
    count = draw(st.integers(2, 40))
    values = draw(st.lists(st.integers(-4, 4), min_size=count, max_size=count))
    same = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(lambda b: 0 < sum(b) < len(b)))
    return np.array(values) / 4, np.array(same)


# The threshold and the ten folds


@given(tied_scores())
@settings(max_examples=150, deadline=None)
def test_threshold_is_the_best_of_all_and_the_documented_one(case):
    scores, same = case
    threshold, accuracy = best_threshold(scores, same)
    assert ((scores > threshold) == same).mean() == pytest.approx(accuracy, abs=1e-15)
    levels = sorted(set(scores.tolist()))
    candidates = [(np.nextafter(levels[0], -np.inf), 0.0), (levels[-1], 0.0)]
    candidates += [((a + b) / 2, b - a) for a, b in itertools.pairwise(levels)]
    # Accuracy first, then the widest gap, then the lowest.
    ranked = sorted(candidates, key=lambda c: (-((scores > c[0]) == same).sum(), -c[1], c[0]))
    assert threshold == pytest.approx(ranked[0][0], abs=1e-15)


def test_threshold_between_neighbouring_floats():
    # The middle rounds to the lower one in one case and to the upper one in the other.
    for low in (0.1, np.nextafter(0.1, 1)):
        high = np.nextafter(low, 1)
        threshold, accuracy = best_threshold([low, high, high], np.array([False, True, True]))
        assert accuracy == 1
        assert low <= threshold < high


def test_threshold_does_not_depend_on_the_order():
    left, right, same, _ = pair_features(seed=5)
    scores = np.round(cosine_scores(left, right), 2)
    order = rng(1).permutation(len(scores))
    assert best_threshold(scores, same) == best_threshold(scores[order], same[order])


def naive_kfold(left, right, same, folds):
    """Loops over folds, pairs and every candidate threshold."""
    accuracy, own = [], np.zeros(len(same))
    for fold in range(folds.max() + 1):
        others = [i for i in range(len(same)) if folds[i] != fold]
        mean = np.mean([left[i] for i in others] + [right[i] for i in others], axis=0)
        scores = []
        for i in range(len(same)):
            a, b = left[i] - mean, right[i] - mean
            scores.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        levels = sorted(scores[i] for i in others)
        best = (-1, 0.0, 0.0)
        for a, b in itertools.pairwise(levels):
            right_ones = sum((scores[i] > (a + b) / 2) == same[i] for i in others)
            best = max(best, (right_ones, b - a, (a + b) / 2))
        test = [i for i in range(len(same)) if folds[i] == fold]
        accuracy.append(np.mean([(scores[i] > best[2]) == same[i] for i in test]))
        own[test] = [scores[i] for i in test]
    return np.array(accuracy), own


@pytest.mark.parametrize(("folds", "seed"), [(10, 0), (10, 1), (3, 2), (2, 3)])
def test_kfold_equals_the_naive_double_loop(folds, seed):
    left, right, same, fold = pair_features(60, 4, folds, seed)
    found = kfold_verification(left, right, same, fold)
    accuracy, scores = naive_kfold(left, right, same, fold)
    np.testing.assert_allclose(found.accuracy, accuracy, atol=1e-12)
    np.testing.assert_allclose(found.scores, scores, atol=1e-12)
    assert found.accuracy.shape == found.threshold.shape == (folds,)
    assert found.correct.dtype == bool
    assert found.mean == pytest.approx(accuracy.mean())
    assert found.sd == pytest.approx(accuracy.std(ddof=1))
    for number in range(folds):
        inside = fold == number
        assert found.correct[inside].mean() == pytest.approx(found.accuracy[number])
        np.testing.assert_array_equal(
            found.correct[inside], (found.scores[inside] > found.threshold[number]) == same[inside]
        )


def test_kfold_ignores_scale_shift_and_rotation():
    left, right, same, fold = pair_features()
    turn = np.linalg.qr(rng(9).normal(size=(6, 6)))[0]
    first = kfold_verification(left, right, same, fold)
    moved = kfold_verification(left @ turn * 7 + 1e5, right @ turn * 7 + 1e5, same, fold)
    np.testing.assert_allclose(first.scores, moved.scores, atol=1e-9)
    np.testing.assert_allclose(first.accuracy, moved.accuracy)


def test_kfold_at_its_ends():
    left, right, same, fold = pair_features(200, 32)
    assert kfold_verification(left, np.where(same[:, None], left, right), same, fold).mean == 1
    # Chance: thresholds fitted to noise stay within a few standard errors of one half.
    random = rng(4)
    noise = kfold_verification(random.normal(size=(2000, 8)), random.normal(size=(2000, 8)), *_balanced(2000))
    assert noise.mean == pytest.approx(0.5, abs=0.045)
    # A collapsed network has nothing left after the mean: all scores are 0 and the accuracy is one half.
    same_all = kfold_verification(np.full((200, 8), 0.3), np.full((200, 8), 0.3), *_balanced(200))
    assert (same_all.scores == 0).all()
    assert same_all.mean == 0.5


def _balanced(count: int):
    return np.arange(count) % 2 == 0, np.arange(count) // 2 % 10


def test_kfold_takes_float32_and_int_folds():
    left, right, same, fold = pair_features()
    found = kfold_verification(left.astype(np.float32), right.astype(np.float32), same, fold.astype(np.int32))
    np.testing.assert_allclose(found.scores, kfold_verification(left, right, same, fold).scores, atol=1e-6)


def bad_kfold(**change):
    left, right, same, fold = pair_features()
    given = {"left": left, "right": right, "same": same, "folds": fold, **change}
    return kfold_verification(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": np.ones((119, 6))}, r"right.*\(120, 6\), got \(119, 6\)"),
        ({"left": np.ones(120)}, r"left.*\(120,\)"),
        ({"same": np.ones(119, dtype=bool)}, r"same.*\(119,\)"),
        ({"same": np.full(120, 2)}, r"same: expected bool or 0 and 1 \(120,\).* got int64"),
        ({"same": np.ones(120, dtype=bool)}, "all pairs are True"),
        ({"same": np.arange(120) == 0, "folds": np.arange(120) % 10}, "outside fold 0, but all pairs are False"),
        ({"folds": np.zeros(120, dtype=int)}, "expected at least 2, but all 120 pairs are in fold 0.*--threshold"),
        ({"folds": np.arange(120) % 10 - 1}, "-1"),
        (
            {"same": np.arange(120) < 60, "folds": np.arange(120) // 60},
            "outside fold 0, but all pairs are False.*elsewhere",
        ),
        ({"missing": np.arange(120) % 10 != 3, "folds": np.arange(120) % 10}, "outside fold 3, but there are no pairs"),
        ({"missing": np.zeros(119, dtype=bool)}, r"missing: expected bool \(120,\), one a pair, got bool \(119,\)"),
        ({"missing": np.zeros(120)}, r"missing: expected bool .* got float64"),
        ({"folds": np.zeros(119, dtype=int)}, r"\(119,\)"),
        ({"folds": np.zeros(120)}, "float64"),
        ({"left": np.where(np.arange(120)[:, None] == 7, np.nan, 1.0) * np.ones((120, 6))}, "left.*row 7"),
        ({"right": np.where(np.arange(120)[:, None] == 9, np.inf, 1.0) * np.ones((120, 6))}, "right.*row 9"),
    ],
)
def test_kfold_refuses(change, message):
    with pytest.raises(DataError, match=message):
        bad_kfold(**change)


def test_folds_that_no_pair_has_are_no_folds():
    left, right, same, fold = pair_features(60, 4, 3, 2)
    found, spread = (kfold_verification(left, right, same, numbers) for numbers in (fold, np.array([2, 5, 9])[fold]))
    for a, b in zip(vars(found).values(), vars(spread).values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_fold_of_one_kind_is_scored_where_the_others_have_both():
    left, right, same, fold = pair_features(60, 4, 3, 2)
    fold[same] = fold[same] % 2  # no genuine pair in fold 2
    np.testing.assert_allclose(
        kfold_verification(left, right, same, fold).accuracy, naive_kfold(left, right, same, fold)[0]
    )


# Faces that were not found, and thresholds from elsewhere


def test_a_missing_face_is_an_error_of_a_genuine_pair_and_of_no_other():
    left, right, same, fold = pair_features(80, 4, 4, 1)
    gone = rng(3).random(80) < 0.2
    found = kfold_verification(left, right, same, fold, missing=gone)
    kept = kfold_verification(left[~gone], right[~gone], same[~gone], fold[~gone])
    np.testing.assert_array_equal(found.threshold, kept.threshold)
    np.testing.assert_array_equal(found.correct[~gone], kept.correct)
    np.testing.assert_array_equal(found.correct[gone], ~same[gone])
    assert (found.scores[gone] == -1).all()
    expected = [(kept.correct[fold[~gone] == f].sum() + (gone & ~same & (fold == f)).sum()) / 20 for f in range(4)]
    np.testing.assert_allclose(found.accuracy, expected)  # of 20 pairs a fold, as many as without a missing face
    # What stands at a missing face's place has no say, and no threshold is so low that it is accepted.
    wild = np.where(gone[:, None], 1e3, left)
    np.testing.assert_array_equal(found.correct, kfold_verification(wild, right, same, fold, missing=gone).correct)
    assert fixed_verification(left, right, same, -1.0, missing=gone).correct[gone & same].sum() == 0


def test_a_fixed_threshold_is_one_fold_taught_by_the_others():
    left, right, same, fold = pair_features(60, 4, 3, 2)
    gone = rng(3).random(60) < 0.1
    whole = kfold_verification(left, right, same, fold, missing=gone)
    for number in range(3):
        rest, own = fold != number, fold == number
        threshold, mean = fit_threshold(left[rest], right[rest], same[rest], missing=gone[rest])
        np.testing.assert_allclose(mean, np.concatenate([left[rest & ~gone], right[rest & ~gone]]).mean(0))
        found = fixed_verification(left[own], right[own], same[own], threshold, mean=mean, missing=gone[own])
        assert threshold == pytest.approx(whole.threshold[number], abs=1e-12)
        np.testing.assert_allclose(found.scores, whole.scores[own], atol=1e-12)
        np.testing.assert_array_equal(found.correct, whole.correct[own])
        assert found.mean == pytest.approx(whole.accuracy[number])
        assert np.isnan(found.sd)


def test_one_pair_is_scored_at_a_given_threshold():
    for same in (True, False):
        found = fixed_verification([[1.0, 0.0]], [[0.6, 0.8]], np.array([same]), 0.5)
        assert (found.scores.item(), found.mean, found.threshold.item()) == (pytest.approx(0.6), same, 0.5)
        assert fixed_verification([[1.0, 0.0]], [[0.6, 0.8]], np.array([same]), 0.6 + 1e-9).mean == (not same)
    with pytest.raises(ConfigError, match=r"threshold: expected a cosine, from -1 to 1, got 62"):
        fixed_verification([[1.0]], [[1.0]], np.array([True]), 62)
    with pytest.raises(DataError, match="same: expected pairs of both kinds, got 1 genuine and 0 impostor"):
        fit_threshold([[1.0]], [[1.0]], np.array([True]))


# ROC and what is read off it


@given(tied_scores())
@settings(max_examples=100, deadline=None)
def test_roc_equals_scikit_learn(case):
    scores, same = case
    far, tar, threshold = roc_curve(same, scores, drop_intermediate=False)
    found = roc(scores, same)
    np.testing.assert_allclose(found.far, far, atol=1e-15)
    np.testing.assert_allclose(found.tar, tar, atol=1e-15)
    np.testing.assert_array_equal(found.threshold, threshold)


@given(tied_scores(), st.sampled_from([0.0, 0.05, 0.1, 1 / 3, 0.5, 1.0]))
@settings(max_examples=100, deadline=None)
def test_tar_at_far_equals_the_naive_search(case, far):
    scores, same = case
    naive = 0.0
    for threshold in [*set(scores.tolist()), np.inf]:
        if (scores[~same] >= threshold).mean() <= far + 1e-12:
            naive = max(naive, (scores[same] >= threshold).mean())
    assert tar_at_far(scores, same, [far])[0] == pytest.approx(naive, abs=1e-15)


def test_tar_falls_with_far_and_ends_at_no_false_accept():
    scores = np.concatenate([rng(1).normal(1.5, 1, 500), rng(2).normal(0, 1, 500)])
    same = np.arange(1000) < 500
    tar = tar_at_far(scores, same)
    assert tar.shape == (4,)
    assert (np.diff(tar) <= 0).all()
    assert tar[3] == (scores[same] > scores[~same].max()).mean()


@given(tied_scores())
@settings(max_examples=100, deadline=None)
def test_eer_lies_on_the_roc_and_swaps(case):
    scores, same = case
    found = eer(scores, same)
    far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
    # On the piecewise linear curve through scikit-learn's points, 1 - TAR at FAR = EER is the EER.
    on_curve = [
        a + (b - a) * s
        for a, b, c, d in zip(far[:-1], far[1:], 1 - tar[:-1], 1 - tar[1:], strict=True)
        for s in [(c - a) / ((b - a) - (d - c))]
        if -1e-12 <= s <= 1 + 1e-12
    ]
    assert found == pytest.approx(on_curve[0], abs=1e-12)
    assert eer(-scores, ~same) == pytest.approx(found, abs=1e-12)


def test_eer_and_d_prime_of_two_normals():
    from scipy.stats import norm

    random = rng(3)
    scores = np.concatenate([random.normal(2, 1, 40000), random.normal(0, 1, 40000)])
    same = np.arange(80000) < 40000
    assert eer(scores, same) == pytest.approx(norm.cdf(-1), abs=0.005)
    assert d_prime(scores, same) == pytest.approx(2, abs=0.03)
    assert d_prime(scores * 5 + 1, same) == pytest.approx(d_prime(scores, same))
    assert d_prime([3.0, 5.0, 1.0, 2.0], np.array([True, True, False, False])) == pytest.approx(2.5 / np.sqrt(1.25))


@given(tied_scores())
@settings(max_examples=100, deadline=None)
def test_separation_equals_the_naive_counts(case):
    scores, same = case
    genuine, impostor = scores[same], scores[~same]
    if min(len(genuine), len(impostor)) < 2 or genuine.std() + impostor.std() == 0:
        return
    found = separation(scores, same, bins=7)
    shares = lambda at: ((genuine <= at).mean(), (impostor <= at).mean())  # noqa: E731
    levels = sorted(set(scores.tolist()))
    assert found.ks == pytest.approx(max(abs(a - b) for a, b in map(shares, levels)))
    way = sum(abs(np.subtract(*shares(low))) * (high - low) for low, high in itertools.pairwise(levels))
    assert found.wasserstein == pytest.approx(way), "the area between the two distribution functions"
    assert found.d_prime == d_prime(scores, same)
    low, width = scores.min(), np.ptp(scores) / 7
    bins = [((low + k * width), (low + (k + 1) * width)) for k in range(7)]
    inside = lambda x, a, b, last: ((x >= a) & ((x < b) | last)).mean()  # noqa: E731
    naive = sum(min(inside(genuine, a, b, k == 6), inside(impostor, a, b, k == 6)) for k, (a, b) in enumerate(bins))
    on_edge = np.isclose((scores[:, None] - low) / width, np.arange(1, 7)).any()  # where rounding chooses the bin
    assert on_edge or found.overlap == pytest.approx(naive)


def test_separation_of_two_normals_and_its_ends():
    from scipy import stats

    random = rng(5)
    scores = np.concatenate([random.normal(2, 1, 60000), random.normal(0, 1, 60000)])
    same = np.arange(120000) < 60000
    found = separation(scores, same)
    assert found.overlap == pytest.approx(2 * stats.norm.cdf(-1), abs=0.01)
    assert found.ks == pytest.approx(1 - 2 * stats.norm.cdf(-1), abs=0.01)
    assert found.wasserstein == pytest.approx(2, abs=0.03)
    assert found.ks == stats.ks_2samp(scores[same], scores[~same]).statistic
    scaled = separation(5 * scores + 1, same)
    assert scaled.overlap == pytest.approx(found.overlap)
    assert scaled[1:] == pytest.approx((found.d_prime, 5 * found.wasserstein, found.ks)), "only one has a unit"
    assert 1 - found.ks <= separation(scores, same, bins=2000).overlap + 0.02, "histograms only lose what tells apart"
    apart = separation([0.0, 0.1, 0.9, 1.0], np.array([False, False, True, True]))
    assert (apart.overlap, apart.ks) == (0, 1)
    with pytest.raises(ConfigError, match="bins: expected at least 1, got 0"):
        separation(scores, same, bins=0)


@pytest.mark.parametrize("function", [roc, tar_at_far, eer, d_prime, separation, best_threshold])
def test_labels_of_zeros_and_ones_are_those_of_booleans(function):
    """As scikit-learn has them, in lists too."""
    scores, same = [0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]
    wanted = function(np.array(scores), np.array(same, dtype=bool))
    np.testing.assert_equal(function(scores, same), wanted)
    np.testing.assert_equal(function(scores, np.array(same, dtype=np.float32)), wanted)


@pytest.mark.parametrize("function", [roc, tar_at_far, eer, d_prime, separation])
def test_curves_refuse(function):
    with pytest.raises(DataError, match="got 3 pairs that are all True"):
        function([1.0, 2.0, 3.0], np.ones(3, dtype=bool))
    with pytest.raises(DataError, match="scores: expected finite numbers, got nan in row 1"):
        function([1.0, np.nan, 3.0], np.array([True, False, True]))
    with pytest.raises(DataError, match=r"same: expected bool or 0 and 1 \(2,\).* got int64"):
        function([1.0, 2.0], [2, 0])
    with pytest.raises(DataError, match=r"got float64 .*: the scores come before the labels"):
        function([True, False], [0.3, 0.4])
    with pytest.raises(DataError, match=r"\(2,\)"):
        function([1.0, 2.0], np.array([True]))


def test_bad_rates_and_no_spread():
    scores, same = [0.0, 1.0, 0.0, 1.0], np.array([False, True, False, True])
    with pytest.raises(ConfigError, match="far"):
        tar_at_far(scores, same, [1.5])
    with pytest.raises(DataError, match="spread"):
        d_prime(scores, same)
    with pytest.raises(DataError, match="1 genuine"):
        d_prime(scores[:3], same[:3])


# Identification


@given(st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_ranks_equal_a_naive_sort(seed):
    random = rng(seed)
    # Small whole numbers, so that cosines tie often.
    gallery, probe = random.integers(-1, 2, (12, 2)) + 0.0, random.integers(-1, 2, (9, 2)) + 0.0
    names = np.concatenate([np.arange(4), random.integers(0, 6, 8)])
    wanted = random.integers(0, 4, 9)
    expected = []
    for row, label in zip(probe, wanted, strict=True):
        length = np.linalg.norm(gallery, axis=1) * np.linalg.norm(row)
        score = np.round(gallery @ row / np.where(length > 0, length, 1), 9)
        # Worst order among ties: everyone else comes first.
        order = sorted(range(12), key=lambda i, s=score, w=label: (-s[i], names[i] == w))
        expected.append(1 + next(place for place, i in enumerate(order) if names[i] == label))
    found = probe_ranks(gallery, names, probe, wanted, block=4)
    np.testing.assert_array_equal(found, expected)


def test_identification_of_clear_and_collapsed_features():
    centres = rng(1).normal(size=(30, 16))
    probe = np.repeat(centres, 2, axis=0) + 0.01 * rng(2).normal(size=(60, 16))
    labels = np.arange(30) * 10
    np.testing.assert_array_equal(rank_k(centres, labels, probe, np.repeat(labels, 2)), [1, 1, 1, 1])
    collapsed = probe_ranks(np.ones((30, 4)), labels, np.ones((60, 4)), np.repeat(labels, 2))
    assert (collapsed == 30).all()


def test_identification_refuses():
    gallery, labels = np.eye(4), np.arange(4)
    with pytest.raises(DataError, match="expected labels of the gallery, got 7"):
        rank_k(gallery, labels, np.eye(4)[:1], [7])
    with pytest.raises(DataError, match=r"expected 4 dimensions, as the gallery has, got 3"):
        rank_k(gallery, labels, np.ones((1, 3)), [1])
    with pytest.raises(DataError, match="gallery_labels"):
        rank_k(gallery, labels[:3], np.eye(4)[:1], [1])
    with pytest.raises(ConfigError, match="ranks"):
        rank_k(gallery, labels, np.eye(4)[:1], [1], ranks=[0, 1])


# Across resolutions


@dataclass(frozen=True)
class Table:
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    fold: np.ndarray


def test_cross_resolution_is_left_by_right():
    left, right, same, fold = pair_features(noise=0.2)
    everyone = np.concatenate([left, right])
    blurred = everyone + 3 * rng(7).normal(size=everyone.shape)
    table = Table(np.arange(120), np.arange(120, 240), same, fold)
    found = cross_resolution({48: everyone, 6: blurred}, table)
    assert found.index.name == "left"
    assert found.columns.name == "right"
    assert list(found.index) == list(found.columns) == [48, 6]
    assert found.loc[48, 6] == kfold_verification(left, blurred[120:], same, fold).mean
    assert found.loc[6, 48] == kfold_verification(blurred[:120], right, same, fold).mean
    assert found.loc[48, 48] > found.loc[48, 6] > found.loc[6, 6] - 0.1
    with pytest.raises(DataError, match="expected rows below 100, the features of side 6, got 0 to 239"):
        cross_resolution({48: everyone, 6: blurred[:100]}, table)


# Features of images


class Small(nn.Module):
    """A network with dropout and batch normalisation, so that a forgotten eval mode shows."""

    class Out(tuple):
        embedding: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(), nn.Linear(3 * 16 * 16, 5))

    def forward(self, x):
        out = Small.Out()
        out.embedding = self.body(x)
        return out


def faces(count: int = 11) -> np.ndarray:
    return rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def by_hand(model: nn.Module, images: np.ndarray, side: int | None) -> np.ndarray:
    rows = []
    model.eval()
    for image in images:
        x = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() / 255
        x = x if side is None else degrade(x, side)
        x = (x - 0.5) / 0.5
        with torch.no_grad():
            rows.append(torch.cat([model.body(x), model.body(torch.flip(x, dims=[3]))], 1)[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("side", [None, 4])
@pytest.mark.parametrize("batch", [1, 4, 256])
def test_embed_equals_one_by_one(side, batch):
    model, images = Small(), faces()
    expected = by_hand(model, images, side)
    found = embed(model, images, side=side, batch=batch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    single = embed(model, images, side=side, batch=batch, mirror=False)
    np.testing.assert_allclose(single, expected[:, :5], atol=1e-5)


def test_embed_of_mirror_images_swaps_the_halves():
    model, images = Small(), faces()
    first, second = embed(model, images, side=4), embed(model, images[:, :, ::-1], side=4)
    np.testing.assert_allclose(first, np.concatenate([second[:, 5:], second[:, :5]], 1), atol=1e-5)


def test_embed_mirrors_before_or_after_it_degrades():
    model, images = Small(), faces()
    kwargs = {"side": 4, "preset": "askd-compat"}
    after, before = embed(model, images, **kwargs), embed(model, images, mirror="first", **kwargs)
    mirrored = embed(model, images[:, :, ::-1], mirror=False, **kwargs)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    np.testing.assert_allclose(before[:, 5:], mirrored, atol=1e-5)
    assert np.abs(before[:, 5:] - after[:, 5:]).max() > 0.01, "nearest is not symmetric"
    area = embed(model, images, side=4, mirror="first")
    np.testing.assert_allclose(area, embed(model, images, side=4), atol=1e-5)


def test_embed_brings_what_is_larger_to_the_networks_size():
    """A network for small images is shown any side of large ones; at its own side they are degraded and no more."""
    look = torch.nn.Flatten()
    look.size = 8
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    for side in (4, 16, 32):
        seen = torch.nn.functional.interpolate(degrade(x, side), (8, 8), mode="bilinear", antialias=True)
        expected = (seen * 2 - 1).flatten(1).numpy()
        np.testing.assert_allclose(embed(look, images, side=side, mirror=False), expected, atol=1e-5)
    own = (degrade(x, 8, enlarge=False) * 2 - 1).flatten(1).numpy()
    np.testing.assert_allclose(embed(look, images, side=8, mirror=False), own, atol=1e-5)


def test_embed_puts_every_mode_back_and_changes_nothing():
    model = Small().train()
    model.body[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    embed(model, faces())
    assert model.training
    assert model.body[2].training
    assert not model.body[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_embed_reads_memory_maps_and_sliceables(tmp_path):
    images = faces()
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")

    class Sliced:
        def __len__(self):
            return len(images)

        def __getitem__(self, key):
            assert isinstance(key, slice)
            return images[key]

    model = Small()
    expected = embed(model, images, batch=4)
    np.testing.assert_array_equal(embed(model, mapped, batch=4), expected)
    np.testing.assert_array_equal(embed(model, Sliced(), batch=4), expected)


def test_embed_draws_from_its_seed():
    model, images = Small(), faces()
    first, again, other = (embed(model, images, side=4, preset="fskd", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_embed_takes_plain_tensors_and_networks_without_weights():
    images = faces(3)
    found = embed(nn.Flatten(), images, mirror=False)
    np.testing.assert_allclose(found, images.transpose(0, 3, 1, 2).reshape(3, -1) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("mirror", [True, False])
def test_embed_names_a_diverged_network(mirror):
    class Diverges(nn.Module):
        def forward(self, x):
            # Only an image with a black left edge comes out as NaN.
            return torch.where(x[..., 0].amax((1, 2))[:, None] == -1, torch.nan, 1.0) * torch.ones(1, 4)

    model, images = Diverges().train(), faces()
    images[5, :, -1 if mirror else 0] = 0
    with pytest.raises(TrainingError, match=r"Diverges: image 5: .*diverged"):
        embed(model, images, batch=4, mirror=mirror)
    assert model.training


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (faces().astype(np.float32), "float32"),
        (faces().transpose(0, 3, 1, 2), r"\(11, 3, 16, 16\)"),
        (faces()[0], r"\(16, 16, 3\)"),
        (faces()[:0], "none"),
    ],
)
def test_embed_refuses_images(images, message):
    with pytest.raises(DataError, match=message):
        embed(Small(), images)


def test_embed_refuses_options():
    with pytest.raises(ConfigError, match="batch: expected at least 1, got 0"):
        embed(Small(), faces(), batch=0)
    with pytest.raises(ConfigError, match="side: 17"):
        embed(Small(), faces(), side=17)


# The bootstrap over identities


def identity_pairs(people: int, genuine: int, impostors: int, random: np.random.Generator):
    left = np.concatenate([np.repeat(np.arange(people), genuine), random.integers(0, people, impostors)])
    step = np.concatenate([np.zeros(people * genuine, dtype=int), random.integers(1, people, impostors)])
    right = (left + step) % people
    return left, right, step == 0


def test_bootstrap_equals_resampling_by_hand():
    random = rng(0)
    left, right, same = identity_pairs(9, 3, 40, random)
    value = random.random(len(left))
    found = bootstrap_identities(value, left + 100, right + 100, resamples=50, generator=3)
    counts = np.random.default_rng(3).multinomial(9, np.full(9, 1 / 9), size=50)
    for draw, m in zip(found.draws, counts, strict=True):
        total = weight = 0.0
        for v, i, j, s in zip(value, left, right, same, strict=True):
            times = m[i] if s else m[i] * m[j]
            total, weight = total + times * v, weight + times
        assert draw == pytest.approx(total / weight)
    assert found.estimate == pytest.approx(value.mean())
    np.testing.assert_allclose([found.low, found.high], np.quantile(found.draws, [0.025, 0.975]))


def test_bootstrap_pairs_two_methods():
    random = rng(1)
    left, right, _same = identity_pairs(40, 10, 400, random)
    hard = random.random(40)[left] < 0.4
    one = ~hard | (random.random(800) < 0.5)
    two = one & (random.random(800) < 0.97)
    paired = bootstrap_identities(one, left, right, other=two)
    direct = bootstrap_identities(one.astype(float) - two, left, right)
    np.testing.assert_array_equal(paired.draws, direct.draws)
    assert paired.estimate == pytest.approx(one.mean() - two.mean())
    alone = bootstrap_identities(one, left, right)
    assert paired.high - paired.low < (alone.high - alone.low) / 2
    none = bootstrap_identities(one, left, right, other=one)
    assert none[:3] == (0, 0, 0)


def test_bootstrap_sees_the_person_not_the_pair():
    """All pairs of a person are right or wrong together: the error is that of 40 people, not of 800 pairs."""
    left, right, _same = identity_pairs(40, 20, 0, rng(2))
    correct = (np.arange(40) % 4 != 0)[left]
    found = bootstrap_identities(correct, left, right)
    assert found.draws.std() == pytest.approx(np.sqrt(0.75 * 0.25 / 40), rel=0.05)


@pytest.mark.parametrize("by_person", [True, False])
def test_bootstrap_covers(by_person):
    """150 simulated studies: the 90 % interval holds the truth about as often as it says; never much less often."""
    random, hits = rng(5), 0
    for study in range(150):
        left, right, _same = identity_pairs(50, 4, 200, random)
        ability = random.normal(0, 1 if by_person else 0, 50)
        value = 0.5 * (ability[left] + ability[right]) + random.normal(0, 0.3, len(left))
        found = bootstrap_identities(value, left, right, level=0.9, resamples=300, generator=study)
        hits += found.low <= 0 <= found.high
    assert hits / 150 >= 0.83
    assert hits / 150 <= (0.965 if by_person else 1)


def test_bootstrap_refuses():
    left, right, _same = identity_pairs(5, 2, 10, rng(0))
    value = np.ones(20)
    with pytest.raises(DataError, match="values: expected finite numbers, got nan in row 1"):
        bootstrap_identities(np.where(np.arange(20) == 1, np.nan, value), left, right)
    with pytest.raises(DataError, match=r"left, right: expected \(20,\) each, one a pair, got \(19,\)"):
        bootstrap_identities(value, left[1:], right[1:])
    with pytest.raises(DataError, match="2 or more identities"):
        bootstrap_identities(value[:2], left[:2], right[:2])
    with pytest.raises(DataError, match=r"other: expected \(20,\)"):
        bootstrap_identities(value, left, right, other=value[1:])
    with pytest.raises(ConfigError, match="level"):
        bootstrap_identities(value, left, right, level=95)
