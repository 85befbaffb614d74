"""Linear probes: against scikit-learn's regressions fold by fold, and what must and must not be read."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from book.kit.linear_probe import linear_r2
from lrkd.errors import DataError


def made(people: int = 60, images: int = 4, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(people), images)
    x = rng.standard_normal((len(who), 5)) + rng.standard_normal((people, 5))[who]
    return x, x @ rng.standard_normal((5, 3)) + noise * rng.standard_normal((len(who), 3)), who


def test_it_is_a_ridge_regression_cross_validated_over_people():
    x, y, who = made()
    scaled = (x - x.mean(0)) / x.std(0)
    fold = (np.random.default_rng(0).permutation(60) % 5)[who]
    predicted, mean = np.empty_like(y), np.empty_like(y)
    for k in range(5):
        rest = fold != k
        predicted[~rest] = Ridge(alpha=0.1 * rest.sum()).fit(scaled[rest], y[rest]).predict(scaled[~rest])
        mean[~rest] = y[rest].mean(0)
    expected = 1 - np.square(y - predicted).sum(0) / np.square(y - mean).sum(0)
    np.testing.assert_allclose(linear_r2(x, y, who, penalties=(0.1,)), expected)
    assert (linear_r2(x, y, who) >= expected - 1e-3).all()


def test_what_is_linear_is_read_and_what_is_not_there_is_not():
    x, y, who = made(noise=0)
    np.testing.assert_allclose(linear_r2(x, y, who), 1, atol=1e-6)
    noise = np.random.default_rng(1).standard_normal((len(who), 2))
    assert (np.abs(linear_r2(x, noise, who)) < 0.05).all()
    of_each = np.random.default_rng(2).standard_normal((60, 2))[who]
    assert (linear_r2(np.eye(60)[who], of_each, who) < 0.05).all(), "knowing who it is tells nothing of others"
    np.testing.assert_allclose(linear_r2(7 * x + 3, y, who), linear_r2(x, y, who))


def test_bad_input_is_named():
    x, y, who = made()
    with pytest.raises(DataError, match=r"expected \(N,D\) features"):
        linear_r2(x[1:], y, who)
    with pytest.raises(DataError, match="got 5 folds, 2 people"):
        linear_r2(x[:8], y[:8], who[:8])
