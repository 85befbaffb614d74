"""The ideal observer: its accuracy against sampled pairs and dense densities, and its bounds against regression."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from torch import Tensor

from book.kit.ideal_observer import accuracy, correlations, explained, laplace, log_ratio, metamers
from lrkd.errors import ConfigError, DataError
from lrkd.evaluation.fisher_maps import Derivatives, fisher

D, K = 5, 3


def toy(seed: int, side: int = 4, size: float = 0.3) -> Derivatives:
    generator = torch.Generator().manual_seed(seed)
    made = (size * torch.randn(rows, 3, side, side, generator=generator, dtype=torch.float64) for rows in (D, K))
    return Derivatives(*made)


def sampled(found: Derivatives, noise: float, identity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a, b = (part.flatten(1).numpy() for part in found)
    return identity @ a + rng.standard_normal((len(identity), K)) @ b + noise * rng.standard_normal((1, a.shape[1]))


@pytest.mark.parametrize(("sides", "noise"), [((4, 4), (1.0, 1.0)), ((4, 1), (1.0, 0.4))])
def test_the_accuracy_is_that_of_sampled_pairs_decided_by_dense_densities(sides, noise):
    """LR-LR, and two images of other sides, each decided by its density under the two hypotheses."""
    found = [toy(seed, side) for seed, side in enumerate(sides)]
    dense = [(f.identity.flatten(1).numpy(), f.nuisance.flatten(1).numpy()) for f in found]
    own = [a.T @ a + b.T @ b + s**2 * np.eye(a.shape[1]) for (a, b), s in zip(dense, noise, strict=True)]
    cross = dense[0][0].T @ dense[1][0]
    rng, n = np.random.default_rng(0), 4000
    same = multivariate_normal(cov=np.block([[own[0], cross], [cross.T, own[1]]]))
    other = multivariate_normal(cov=np.block([[own[0], 0 * cross], [0 * cross.T, own[1]]]))
    right = [np.mean(same.logpdf(x) > other.logpdf(x)) for x in [same.rvs(n, random_state=rng)]]
    right += [np.mean(same.logpdf(x) < other.logpdf(x)) for x in [other.rvs(n, random_state=rng)]]
    known = [explained(f, s)[:D, :D] for f, s in zip(found, noise, strict=True)]
    theory = accuracy(correlations(*known))
    assert 0.6 < theory < 0.99
    assert theory == pytest.approx(np.mean(right), abs=4 * np.sqrt(0.25 / (2 * n)))


def test_the_ratio_of_posteriors_is_the_ratio_of_dense_densities():
    found, noise = [toy(0), toy(1)], 0.7
    rng = np.random.default_rng(2)
    dense = [(f.identity.flatten(1).numpy(), f.nuisance.flatten(1).numpy()) for f in found]
    own = [a.T @ a + b.T @ b + noise**2 * np.eye(a.shape[1]) for a, b in dense]
    cross = dense[0][0].T @ dense[1][0]
    images = [sampled(f, noise, rng.standard_normal((1, D)), rng)[0] for f in found]
    both = np.concatenate(images)
    wanted = multivariate_normal.logpdf(both, cov=np.block([[own[0], cross], [cross.T, own[1]]]))
    wanted -= sum(multivariate_normal.logpdf(x, cov=c) for x, c in zip(images, own, strict=True))
    posterior = []
    for f, (a, _), covariance, x in zip(found, dense, own, images, strict=True):
        mean = torch.from_numpy(a @ np.linalg.solve(covariance, x))
        posterior.append((mean, torch.eye(D, dtype=torch.float64) - explained(f, noise)[:D, :D]))
    assert log_ratio(*posterior) == pytest.approx(wanted)


def test_what_is_explained_is_the_r2_of_the_best_regression():
    """On its diagonal; and its block of the identity follows from the Fisher information alone."""
    found, noise = toy(3), 0.5
    a, b = (part.flatten(1).numpy() for part in found)
    share = explained(found, noise)
    rows = np.concatenate([a, b])
    covariance = rows.T @ rows + noise**2 * np.eye(rows.shape[1])
    np.testing.assert_allclose(share, rows @ np.linalg.solve(covariance, rows.T), atol=1e-10)
    information = a @ np.linalg.solve(b.T @ b + noise**2 * np.eye(a.shape[1]), a.T)
    assert float(fisher(found, noise).information.sum()) == pytest.approx(np.trace(information))
    np.testing.assert_allclose(share[:D, :D], information @ np.linalg.inv(np.eye(D) + information), atol=1e-10)


def test_accuracy_goes_from_chance_to_certainty_and_more_information_never_hurts():
    assert accuracy([]) == accuracy([0, 0]) == 0.5
    rising = [accuracy(np.full(3, r)) for r in (0.01, 0.1, 0.3, 0.6, 0.9, 0.99)]
    assert rising == sorted(rising)
    assert rising[0] == pytest.approx(0.5, abs=0.01)
    assert accuracy(np.full(60, 0.99)) == pytest.approx(1, abs=1e-4)
    assert accuracy([0.5, 0.5]) > accuracy([0.5]) > 0.5
    found = toy(4)
    at = [accuracy(correlations(*[explained(found, noise)[:D, :D]] * 2)) for noise in (0.1, 1.0, 10.0)]
    assert at == sorted(at, reverse=True)
    sharp, small = explained(found, 0.1)[:D, :D], explained(found, 1.0)[:D, :D]
    assert accuracy(correlations(small, small)) < accuracy(correlations(sharp, small)) < 1
    np.testing.assert_allclose(correlations(sharp, small), correlations(small, sharp), atol=1e-8)


def test_one_correlation_by_hand():
    """The sign of the ratio is that of a quadratic form in two normals: its cone has a known angle."""
    r = 0.6
    rng = np.random.default_rng(0)
    u, e = rng.standard_normal((2, 400_000))
    ratio = [
        -0.5 * np.log(1 - r**2) - (u**2 - 2 * r * u * v + v**2) / (2 * (1 - r**2)) + (u**2 + v**2) / 2
        for v in (r * u + np.sqrt(1 - r**2) * e, e)
    ]
    assert accuracy([r]) == pytest.approx((np.mean(ratio[0] > 0) + np.mean(ratio[1] < 0)) / 2, abs=0.002)


def test_laplace_is_exact_where_the_function_is_linear_and_finds_the_mode_where_it_is_not():
    found, noise = toy(5, 2, size=1.0), 0.3
    rows = torch.cat([part.flatten(1) for part in found])
    seen = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def linear(z: Tensor) -> Tensor:
        return (z @ rows).view(-1, 3, 2, 2)

    mean, covariance = laplace(linear, seen, torch.ones(2, D + K, dtype=torch.float64), noise)
    expected = torch.eye(D + K, dtype=torch.float64) - explained(found, noise)
    torch.testing.assert_close(covariance, expected.expand(2, -1, -1))
    torch.testing.assert_close(mean, seen.flatten(1) @ rows.T @ expected / noise**2)

    def bent(z: Tensor) -> Tensor:
        return torch.tanh(linear(z))

    modes, _ = laplace(bent, seen, torch.zeros(2, D + K, dtype=torch.float64), noise, steps=20)
    for image, mode in zip(seen, modes, strict=True):

        def cost(z: np.ndarray, image: Tensor = image) -> float:
            at = torch.from_numpy(z)
            return float((image - bent(at[None])).square().sum() / noise**2 + at.square().sum())

        best = minimize(cost, mode.numpy(), tol=1e-8)
        assert cost(mode.numpy()) < 0.9 * cost(np.zeros(D + K))
        assert cost(mode.numpy()) == pytest.approx(best.fun, rel=1e-4)


def test_metamers_are_draws_of_the_posterior_where_the_function_is_linear():
    found, noise = toy(6, 2, size=1.0), 0.3
    rows = torch.cat([part.flatten(1) for part in found])
    truth = torch.randn(1, D + K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def linear(z: Tensor) -> Tensor:
        return (z @ rows).view(-1, 3, 2, 2)

    seen = linear(truth) + noise * torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    n = 4000
    drawn, left = metamers(
        linear, seen.expand(n, -1, -1, -1), truth.expand(n, -1), noise, torch.Generator().manual_seed(0), steps=1
    )
    covariance = torch.eye(D + K, dtype=torch.float64) - explained(found, noise)
    mean = (seen.flatten(1) @ rows.T @ covariance / noise**2)[0]
    error = 5 * (covariance.diagonal() / n).sqrt()
    assert ((drawn.mean(0) - mean).abs() < error + 0.01 * mean.abs()).all()
    torch.testing.assert_close(
        torch.cov(drawn.T), covariance, atol=5 * float(covariance.max()) * (2 / n) ** 0.5, rtol=0
    )
    expected = (seen - linear(drawn)).flatten(1).square().mean(1).sqrt() / noise
    torch.testing.assert_close(left, expected)
    assert (left < 3).all()


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="noise: expected a standard deviation above zero, got 0"):
        explained(toy(0), 0)
    with pytest.raises(DataError, match=r"correlation: expected numbers from 0 to below 1, got \[1.0\]"):
        accuracy([1.0])
