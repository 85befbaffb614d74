"""Distances: laws, naive recomputation, finite gradients where the two sides are equal."""

import math
import pickle

import numpy as np
import pytest
import torch
from scipy.spatial import distance as reference
from torch import Tensor

from lrkd.distill.distances import cosine, euclidean, gradient_split, lp, norm_angle_split, on_unit, smooth_l1, unit
from lrkd.errors import ConfigError

ALL = [cosine, lp(1), lp(2), lp(3), smooth_l1, euclidean, on_unit(euclidean), on_unit(lp(2))]
EACH = pytest.mark.parametrize("distance", ALL, ids=[d.__name__ for d in ALL])


def two(*shape: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (scale * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return a, b


@EACH
def test_one_number_a_sample_whatever_the_shape(distance):
    a, b = two(5, 3, 2, 2)
    found = distance(a, b)
    assert found.shape == (5,)
    torch.testing.assert_close(found, distance(a.flatten(1), b.flatten(1)))
    torch.testing.assert_close(found[2:3], distance(a[2:3], b[2:3]))  # a sample does not see its neighbours


@EACH
def test_zero_at_equality_symmetric_and_positive_elsewhere(distance):
    a, b = two(6, 9)
    torch.testing.assert_close(distance(a, a), torch.zeros(6, dtype=a.dtype), rtol=0, atol=2e-6)
    torch.testing.assert_close(distance(a, b), distance(b, a))
    assert (distance(a, b) > 0.01).all()


@EACH
def test_gradients_are_finite_at_equality_and_right_elsewhere(distance):
    a, b = two(3, 4)
    same = a.clone().requires_grad_()
    distance(same, a).sum().backward()
    assert same.grad.abs().max() < 10  # false for NaN too
    assert torch.autograd.gradcheck(lambda x, y: distance(x, y), (a.requires_grad_(), b.requires_grad_()))


@EACH
def test_a_distance_survives_pickling_with_its_name(distance):
    a, b = two(4, 5)
    again = pickle.loads(pickle.dumps(distance))
    assert again.__name__ == distance.__name__
    assert torch.equal(again(a, b), distance(a, b))


def test_against_naive_recomputation():
    a, b = two(5, 3, 2, 2, scale=2.0)
    for k, (x, y) in enumerate(zip(a.flatten(1).numpy(), b.flatten(1).numpy(), strict=True)):
        assert cosine(a, b)[k].item() == pytest.approx(reference.cosine(x, y), abs=1e-12)
        assert euclidean(a, b)[k].item() == pytest.approx(reference.euclidean(x, y), abs=1e-9)
        assert lp(1)(a, b)[k].item() == pytest.approx(reference.cityblock(x, y) / 12)
        assert lp(2)(a, b)[k].item() == pytest.approx(reference.sqeuclidean(x, y) / 12)
        assert lp(2.5)(a, b)[k].item() == pytest.approx(reference.minkowski(x, y, 2.5) ** 2.5 / 12)
        huber = [d * d / 2 if d < 1 else d - 0.5 for d in np.abs(x - y)]
        assert smooth_l1(a, b)[k].item() == pytest.approx(sum(huber) / 12)
        u, v = x / np.linalg.norm(x), y / np.linalg.norm(y)
        assert on_unit(euclidean)(a, b)[k].item() == pytest.approx(reference.euclidean(u, v), abs=1e-9)
        assert on_unit(lp(1))(a, b)[k].item() == pytest.approx(reference.cityblock(u, v) / 12)


def test_squared_l2_on_unit_vectors_is_twice_the_cosine_distance():
    a, b = two(7, 10)
    torch.testing.assert_close(10 * on_unit(lp(2))(a, b), 2 * cosine(a, b))
    torch.testing.assert_close(on_unit(euclidean)(a, b).square(), 2 * cosine(a, b), rtol=0, atol=1e-9)


def test_cosine_knows_direction_alone_and_lies_in_0_2():
    a, b = two(6, 4)
    lengths = torch.tensor([0.1, 0.5, 1, 2, 10, 1000], dtype=a.dtype)[:, None]
    torch.testing.assert_close(cosine(lengths * a, b), cosine(a, b))
    torch.testing.assert_close(cosine(a, -a), torch.full((6,), 2.0, dtype=a.dtype))
    torch.testing.assert_close(cosine(torch.eye(4), torch.eye(4).roll(1, 0)), torch.ones(4))
    assert not torch.allclose(lp(2)(2 * a, b), lp(2)(a, b))  # which L_p does not


def test_unit_has_length_one_and_leaves_zero_alone():
    a, _ = two(3, 2, 2, 2)
    a[1] = 0
    torch.testing.assert_close(unit(a).norm(dim=1), torch.tensor([1.0, 0, 1], dtype=a.dtype))
    assert unit(a).shape == (3, 8)
    assert cosine(a, a)[1] == 1, "a zero sample has no direction: it counts as orthogonal"


def test_norm_and_angle_are_the_two_summands_of_the_squared_distance():
    a, b = two(8, 3, 2, 2, scale=3.0)
    norm, angle = norm_angle_split(a, b)
    torch.testing.assert_close(norm + angle, (a - b).square().flatten(1).sum(1))
    torch.testing.assert_close(norm_angle_split(a, 5 * a).angle, torch.zeros(8, dtype=a.dtype), rtol=0, atol=1e-10)
    rotated = a.roll(1, 1)  # the same numbers in other places: another direction, the same length
    torch.testing.assert_close(norm_angle_split(a, rotated).norm, torch.zeros(8, dtype=a.dtype), rtol=0, atol=1e-12)
    assert (norm_angle_split(a, rotated).angle > 0.1).all()


@pytest.mark.parametrize("p", [0.5, 0, -1, math.nan])
def test_lp_below_one_is_refused(p):
    with pytest.raises(ConfigError, match=r"lp: expected p of at least 1, got"):
        lp(p)


def gradient(distance, a: Tensor, b: Tensor) -> Tensor:
    x = a.clone().requires_grad_()
    return torch.autograd.grad(distance(x, b).sum(), x)[0]


@EACH
def test_a_gradients_two_parts_sum_to_its_square(distance):
    a, b = two(6, 3, 2, 2, scale=2.0)
    g = gradient(distance, a, b)
    split = gradient_split(g, a)
    assert split.norm.shape == split.angle.shape == (6,)
    torch.testing.assert_close(split.norm + split.angle, g.square().flatten(1).sum(1))
    for k in range(6):
        along = float((g[k].flatten() @ a[k].flatten()) / a[k].norm())
        assert split.norm[k].item() == pytest.approx(along**2, abs=1e-12)


def test_a_step_along_the_parts_changes_length_or_direction_alone():
    a, b = two(5, 7)
    g = gradient(lp(2), a, b)
    along = (g * unit(a)).sum(1, keepdim=True) * unit(a)
    split = gradient_split(along, a)
    torch.testing.assert_close(split.angle, torch.zeros(5, dtype=a.dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(cosine(a - 0.1 * along, a), torch.zeros(5, dtype=a.dtype), rtol=0, atol=1e-12)
    rest = gradient_split(g - along, a)
    torch.testing.assert_close(rest.norm, torch.zeros(5, dtype=a.dtype), rtol=0, atol=1e-12)
    moved = (a - 1e-6 * (g - along)).norm(dim=1) - a.norm(dim=1)
    assert moved.abs().max() < 1e-10, "to first order"


def test_cosine_turns_and_half_the_squared_norm_only_shortens():
    a, b = two(6, 9)
    torch.testing.assert_close(
        gradient_split(gradient(cosine, a, b), a).norm, torch.zeros(6, dtype=a.dtype), rtol=0, atol=1e-20
    )
    whole = gradient_split(gradient(lambda x, _: x.square().sum(1) / 2, a, b), a)
    torch.testing.assert_close(whole.norm, a.square().sum(1))
    torch.testing.assert_close(whole.angle, torch.zeros(6, dtype=a.dtype), rtol=0, atol=1e-10)


@EACH
def test_behind_a_normalisation_no_distance_pulls_at_the_length(distance):
    a, b = two(6, 9, scale=3.0)
    split = gradient_split(gradient(on_unit(distance), a, b), a)
    assert (split.norm <= 1e-20 * split.angle + 1e-28).all()
    assert (split.angle > 1e-12).all()


def test_squared_l2_pulls_at_the_length_unless_it_has_followed_the_angle():
    a, b = two(6, 9)
    follows = unit(a) * (unit(a) * b).sum(1, keepdim=True)  # |s| = |t| cos(s, t)
    assert (gradient_split(gradient(lp(2), a, b), a).norm > 1e-6).all()
    at = gradient_split(gradient(lp(2), follows, b), follows)
    torch.testing.assert_close(at.norm, torch.zeros(6, dtype=a.dtype), rtol=0, atol=1e-20)


def test_at_zero_there_is_no_direction_and_all_of_a_gradient_is_length():
    g, at = two(3, 4)
    at[1] = 0
    split = gradient_split(g, at)
    assert split.angle[1] == 0
    assert split.norm[1].item() == pytest.approx(g[1].square().sum().item())
    assert split.angle[0] > 0
