"""Measures of attention maps: against scipy and naive loops, and laws that hold whatever the map."""

import numpy as np
import pytest
import torch
from scipy import stats

from lrkd.errors import DataError
from lrkd.evaluation import attention
from lrkd.models import backbones

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 5, 6, 6))


def test_correlations_are_scipy_s():
    for a, b, r, rho, cosine in zip(
        A,
        B,
        attention.pearson(A, B),
        attention.pearson(*map(attention.ranks, (A, B))),
        attention.cosines(A, B),
        strict=True,
    ):
        assert r == pytest.approx(stats.pearsonr(a.ravel(), b.ravel()).statistic)
        assert rho == pytest.approx(stats.spearmanr(a.ravel(), b.ravel()).statistic)
        assert cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def test_ranks_share_ties_and_do_not_see_the_scale():
    tied = np.round(A)
    np.testing.assert_allclose(attention.ranks(tied)[2].ravel(), stats.rankdata(tied[2]))
    np.testing.assert_array_equal(attention.ranks(np.exp(3 * A) + 7), attention.ranks(A))


def test_a_map_without_spread_correlates_with_nothing():
    flat = np.full_like(A, 0.1)
    assert not attention.pearson(flat, B).any()
    assert not attention.pearson(attention.ranks(flat), attention.ranks(B)).any()
    assert not attention.shifted(flat, B).any()
    assert not attention.cosines(0 * A, B).any()


def test_shifts_are_rolls():
    """Every entry is the mean correlation after rolling the first map; over all shifts the mean is zero."""
    found = attention.shifted(A, B)
    for down, right in ((0, 0), (1, 0), (0, 2), (5, 3)):
        rolled = np.roll(A, (down, right), (1, 2))
        assert found[down, right] == pytest.approx(attention.pearson(rolled, B).mean())
    assert found.mean() == pytest.approx(0, abs=1e-12)
    with pytest.raises(DataError, match=r"a: expected \(N,H,W\), got \(6, 6\)"):
        attention.shifted(A[0], B[0])


def test_fused_maps_do_not_see_a_block_s_scale():
    """Each block is standardised, so stretching or moving one changes nothing, and one block alone is itself."""
    maps = [torch.randn(3, 1, side, side, generator=torch.Generator().manual_seed(side)) for side in (8, 4, 2)]
    fused = attention.fuse(maps, 16)
    assert fused.shape == (3, 16, 16)
    torch.testing.assert_close(
        attention.fuse([5 * maps[0] - 2, maps[1], 0.1 * maps[2]], 16), fused, rtol=1e-4, atol=1e-5
    )
    alone = attention.fuse(maps[:1], 16)
    np.testing.assert_allclose(alone.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(alone.square().mean((1, 2)), 1, rtol=1e-4)
    assert not attention.fuse([torch.full((2, 1, 4, 4), 0.1)], 8).any()
    with pytest.raises(DataError, match="maps: expected at least one block's, got none"):
        attention.fuse([], 8)


def test_upsampling_keeps_a_constant_and_a_full_map():
    torch.testing.assert_close(attention.upsample(torch.full((2, 1, 3, 3), 4.0), 9), torch.full((2, 9, 9), 4.0))
    x = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention.upsample(x, 6), x)


def test_the_top_is_the_largest_share():
    found = attention.top(A, 0.25)
    assert (found.sum((1, 2)) == 9).all()
    for values, best in zip(A, found, strict=True):
        assert values[best].min() > values[~best].max()
    with pytest.raises(DataError, match="share: expected a share of the pixels between 0 and 1, exclusive, got 0"):
        attention.top(A, 0)


def test_pointing_hits_what_it_points_at():
    best = attention.top(A, 0.1)
    assert (attention.pointing(A, best) == 1).all()
    assert (attention.pointing(-A, best) == 0).all()
    half = np.zeros((1, 2, 2))
    half[0, 0] = 1  # two places share the maximum, one of them is wanted
    assert attention.pointing(half, np.array([[[1, 0], [0, 0]]])) == 0.5


def test_random_places_hit_by_their_share():
    many = np.random.default_rng(1).random((4000, 6, 6))
    target = np.broadcast_to(attention.top(A[:1], 0.25), many.shape)
    assert attention.pointing(many, target).mean() == pytest.approx(0.25, abs=0.03)
    assert attention.share(many, target).mean() == pytest.approx(0.25, abs=0.01)


def test_shares_of_a_partition_sum_to_one():
    masks = np.random.default_rng(2).dirichlet(np.ones(4), (5, 6, 6)).transpose(3, 0, 1, 2)
    found = [attention.share(np.exp(A), mask) for mask in masks]
    np.testing.assert_allclose(np.sum(found, 0), 1)
    np.testing.assert_allclose(attention.share(0 * A, masks[0]), masks[0].mean((1, 2)))
    with pytest.raises(DataError, match="expected attention of zero or more, got -"):
        attention.share(A, masks[0])


def test_the_centre_is_in_the_centre():
    x = attention.centre_map(8)
    np.testing.assert_allclose(x, x[::-1, ::-1])
    assert np.unravel_index(x.argmax(), x.shape) in {(3, 3), (3, 4), (4, 3), (4, 4)}


def test_the_interval_covers_and_is_repeatable():
    """A mean of normal values: about the t interval, and the same with the same seed, column by column."""
    x = np.random.default_rng(3).normal(size=(100, 2))
    low, high = attention.interval(x, resamples=4000)
    expected = stats.t.interval(0.95, 99, x.mean(0), stats.sem(x))
    np.testing.assert_allclose((low, high), expected, atol=0.03)
    np.testing.assert_array_equal(attention.interval(x)[0], attention.interval(x)[0])
    with pytest.raises(DataError, match="expected 2 or more images to resample, got 1"):
        attention.interval(x[:1])


def test_maps_must_fit():
    with pytest.raises(DataError, match=r"expected two of one shape.* got \(5, 6, 6\) and \(4, 6, 6\)"):
        attention.pearson(A, B[:4])


def test_grad_cam_is_its_formula():
    """By hand: the gradient's mean over places weighs each channel of a block's output; what is negative goes."""
    network = backbones.small(16, 8, (4, 8), seed=0).eval()
    images, targets = (
        torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((3, 3, 16, 16), (3, 8))
    )
    blocks = [network.get_submodule(stage)[0] for stage in network.stages]
    found = attention.grad_cam(network, blocks, images, targets)
    assert [tuple(one.shape) for one in found] == [(3, 8, 8), (3, 4, 4)]
    out = network(images)
    evidence = torch.cosine_similarity(out.embedding, targets).sum()
    for features, cam in zip(out.features, found, strict=True):
        gradient = torch.autograd.grad(evidence, features, retain_graph=True)[0]
        expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu()
        assert expected.max() > 0
        torch.testing.assert_close(cam, expected, rtol=1e-4, atol=1e-8)
        assert not cam.requires_grad
    assert all(weight.grad is None for weight in network.parameters())
