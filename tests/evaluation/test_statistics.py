"""The mean with its interval: scipy as the oracle, constant and bad values, coverage by simulation."""

import math

import numpy as np
import pytest
from scipy import stats as scipy

from lrkd.errors import DataError
from lrkd.evaluation.statistics import mean_interval


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 6, 30])
def test_against_scipys_t_test(n, level):
    x = np.random.default_rng(n).normal(0.3, 2, n)
    found, wanted = mean_interval(x, level), scipy.ttest_1samp(x, 0)
    low, high = wanted.confidence_interval(level)
    assert (found.mean, found.n) == (pytest.approx(x.mean()), n)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, wanted.pvalue))


def test_differences_give_the_paired_t_test():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 8)) + rng.normal(size=8)
    assert mean_interval(a - b).p == pytest.approx(scipy.ttest_rel(a, b).pvalue)


def test_the_interval_excludes_zero_exactly_when_p_is_below_its_level():
    rng = np.random.default_rng(2)
    outcomes = set()
    for _ in range(200):
        found = mean_interval(rng.normal(0.8, 1, 6))
        assert (found.low > 0 or found.high < 0) == (found.p < 0.05)
        outcomes.add(found.p < 0.05)
    assert outcomes == {True, False}


def test_ninety_five_of_a_hundred_intervals_hold_the_mean():
    rng = np.random.default_rng(3)
    held = [(e := mean_interval(rng.normal(5, 3, 4))).low <= 5 <= e.high for _ in range(1500)]
    assert 0.93 < np.mean(held) < 0.97


@pytest.mark.parametrize("value", [0.1, 0.3, 1 + 1e-9, -2.0, 1e-30])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_equal_values_have_no_width_and_no_warning(value, n):
    assert mean_interval([value] * n) == (pytest.approx(value), pytest.approx(value), pytest.approx(value), 0.0, n)


def test_no_difference_at_all_is_p_one():
    assert mean_interval([0, 0, 0]) == (0, 0, 0, 1.0, 3)


@pytest.mark.parametrize("bad", [[], [1.0], [1.0, math.nan], [math.inf, 1.0], [[1.0, 2.0], [3.0, 4.0]]])
def test_fewer_than_two_or_not_finite_is_refused(bad):
    with pytest.raises(DataError, match="expected 2 or more finite numbers"):
        mean_interval(bad)
