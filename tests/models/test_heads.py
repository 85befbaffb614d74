"""Margin heads: known angles, zero margins, ramps, finite gradients, AdaFace's statistics, bad labels."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lrkd.errors import ConfigError, DataError
from lrkd.models import heads
from lrkd.models.heads import AdaFace, ArcFace, CosFace, Head

ALL = [ArcFace, CosFace, AdaFace]
GIVEN = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(classes: int = 7, dim: int = 5, size: int = 12) -> tuple[Tensor, Tensor]:
    return (
        3 * torch.randn(size, dim, generator=generator(1), dtype=GIVEN),
        torch.randint(classes, (size,), generator=generator(2)),
    )


def at_angles(head: Head, angles: Tensor, norm: float = 1.0, ramp: float = 1.0) -> Tensor:
    """The label's logits over the scale, for embeddings at given angles from the centre of class 0 of two, in 2-D."""
    with torch.no_grad():
        head.double().weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    embedding = norm * torch.stack((angles.cos(), angles.sin()), 1)
    logits = head(embedding, torch.zeros(len(angles), dtype=torch.int64), ramp)
    torch.testing.assert_close(logits[:, 1], head.scale * angles.sin(), rtol=0, atol=1e-4)  # no margin off the label
    return logits[:, 0] / head.scale


ANGLES = torch.linspace(0.05, math.pi - 0.05, 61, dtype=GIVEN)


def test_cosface_at_given_angles():
    torch.testing.assert_close(at_angles(CosFace(2, 2, margin=0.35), ANGLES), ANGLES.cos() - 0.35)


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 3.0])
def test_arcface_at_given_angles_on_both_sides_of_pi(margin):
    found = at_angles(ArcFace(2, 2, margin=margin), ANGLES)
    for angle, value in zip(ANGLES.tolist(), found.tolist(), strict=True):
        beyond = angle + margin > math.pi
        wanted = math.cos(angle) - margin * math.sin(margin) if beyond else math.cos(angle + margin)
        assert value == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("margin", [0.2, 0.5, 1.0])
def test_arcface_falls_with_the_angle_even_beyond_pi(margin):
    assert (at_angles(ArcFace(2, 2, margin=margin), ANGLES).diff() < 0).all()


@pytest.mark.parametrize("kind", ALL)
def test_a_zero_margin_is_the_plain_scaled_cosine(kind):
    x, labels = batch()
    head = kind(7, 5, margin=0.0, scale=20.0).double()
    plain = 20 * torch.einsum(
        "bd,cd->bc", x / x.norm(dim=1, keepdim=True), head.weight / head.weight.norm(dim=1, keepdim=True)
    )
    torch.testing.assert_close(head(x, labels), plain)
    torch.testing.assert_close(kind(7, 5, margin=0.4, scale=20.0).double()(x, labels, ramp=0.0), plain)


@pytest.mark.parametrize("kind", ALL)
def test_half_a_ramp_is_half_the_margin(kind):
    x, labels = batch()
    whole, half = kind(7, 5, margin=0.6).double().eval(), kind(7, 5, margin=0.3).double().eval()
    torch.testing.assert_close(whole(x, labels, ramp=0.5), half(x, labels))
    assert not torch.allclose(whole(x, labels), half(x, labels))


@pytest.mark.parametrize("kind", ALL)
def test_a_larger_margin_lowers_the_label_and_leaves_the_others(kind):
    x, labels = batch()
    rows = torch.arange(len(labels))
    logits = [kind(7, 5, margin=m).double().eval()(x, labels) for m in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)]
    for smaller, larger in itertools.pairwise(logits):
        assert (larger[rows, labels] < smaller[rows, labels]).all()
        off = torch.ones_like(larger, dtype=torch.bool)
        off[rows, labels] = False
        assert torch.equal(larger[off], smaller[off])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ALL)
def test_gradients_are_finite_where_the_cosine_is_plus_or_minus_one(kind, dtype):
    head = kind(2, 3).to(dtype)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))
    x = torch.tensor([[5.0, 0, 0], [-5.0, 0, 0], [5.0, 1e-4, 0], [-5.0, 1e-4, 0], [0, 0, 0]], dtype=dtype)
    x.requires_grad_()
    for labels in (torch.zeros(5, dtype=torch.int64), torch.ones(5, dtype=torch.int64)):
        loss = F.cross_entropy(head(x, labels), labels)
        loss.backward()
        assert loss.isfinite()
        assert x.grad[:4].abs().max() < 1e4  # false for NaN too
        assert x.grad[4].isfinite().all(), "an embedding of zero"
        assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("kind", ALL)
def test_only_the_direction_of_the_class_centres_counts(kind):
    x, labels = batch()
    head = kind(7, 5).double().eval()
    before = head(x, labels)
    with torch.no_grad():
        head.weight.mul_(torch.linspace(0.1, 9, 7, dtype=GIVEN)[:, None])
    torch.testing.assert_close(head(x, labels), before)


@pytest.mark.parametrize("kind", ALL)
def test_under_autocast_the_logits_are_float32_and_as_exact_as_their_input(kind):
    x, labels = batch()
    head = kind(7, 5).eval()
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(x.bfloat16(), labels)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, head(x.bfloat16().float(), labels))


@pytest.mark.parametrize("kind", ALL)
def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(kind):
    before = torch.get_rng_state()
    a, b, c = kind(9, 4, seed=1), kind(9, 4, seed=1), kind(9, 4, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.weight, b.weight)
    assert not torch.equal(a.weight, c.weight)
    assert a.weight.shape == (9, 4)


# AdaFace


def adaface(mean: float = 10.0, std: float = 2.0, **options: float) -> AdaFace:
    head = AdaFace(2, 2, **options).double().eval()
    head.mean.fill_(mean)
    head.std.fill_(std)
    return head


def test_adaface_at_the_extreme_norms_and_at_the_mean_is_a_known_formula():
    m = 0.4
    low = at_angles(adaface(margin=m), ANGLES, norm=0.01)  # z = -1: ArcFace
    torch.testing.assert_close(low, (ANGLES + m).clamp(max=math.pi - 1e-3).cos())
    middle = at_angles(adaface(margin=m), ANGLES, norm=10.0)  # z = 0: CosFace
    torch.testing.assert_close(middle, ANGLES.cos() - m)
    high = at_angles(adaface(margin=m), ANGLES, norm=99.0)  # z = 1: a negative angle and twice the subtraction
    torch.testing.assert_close(high, (ANGLES - m).clamp(min=1e-3).cos() - 2 * m)


def test_adaface_in_between_equals_a_scalar_recomputation():
    head = adaface(margin=0.3, h=0.5)
    for norm in (7.5, 9.0, 11.0, 12.9):
        z = min(1.0, max(-1.0, (norm - 10) / (2 + 1e-3) * 0.5))
        found = at_angles(head, ANGLES, norm=norm)
        wanted = [math.cos(min(max(a - 0.3 * z, 1e-3), math.pi - 1e-3)) - 0.3 * z - 0.3 for a in ANGLES.tolist()]
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=GIVEN))


def test_adaface_clips_norms_at_100_and_lets_no_gradient_through_them():
    torch.testing.assert_close(
        at_angles(adaface(99.0, 50.0), ANGLES, norm=100.0), at_angles(adaface(99.0, 50.0), ANGLES, norm=1e6)
    )
    x, labels = batch(classes=2, dim=2)
    x.requires_grad_()
    adaface(3.0, 1.0)(x, labels).sum().backward()
    radial = (x.grad * x.detach()).sum(1)  # logits depend on the direction only
    torch.testing.assert_close(radial, torch.zeros_like(radial))


def test_adaface_averages_norms_over_training_batches_exactly():
    head = AdaFace(7, 5, rate=0.1).double()
    mean, std = 20.0, 100.0
    for seed in range(4):
        x = 4 * torch.randn(6, 5, generator=generator(seed), dtype=GIVEN)
        head(x, torch.arange(6))
        norms = [math.sqrt(sum(v * v for v in row)) for row in x.tolist()]
        centre = sum(norms) / 6
        mean = 0.9 * mean + 0.1 * centre
        std = 0.9 * std + 0.1 * math.sqrt(sum((n - centre) ** 2 for n in norms) / 5)
    assert head.mean.item() == pytest.approx(mean)
    assert head.std.item() == pytest.approx(std)


def test_adaface_keeps_its_statistics_in_evaluation_and_for_a_single_image():
    x, labels = batch()
    head = AdaFace(7, 5).double()
    head(x, labels)
    kept = {k: v.clone() for k, v in head.state_dict().items()}
    assert {"mean", "std"} < set(kept), "statistics travel with a checkpoint"
    head(x[:1], labels[:1])
    head.eval()(50 * x, labels)
    assert all(torch.equal(v, head.state_dict()[k]) for k, v in kept.items())
    head.train()(50 * x, labels)
    assert head.mean != kept["mean"]


# Bad input


@pytest.mark.parametrize(("label", "shown"), [(7, "7"), (-1, "-1"), (100, "100")])
def test_a_label_out_of_range_is_a_clear_error(label, shown):
    x, labels = batch()
    labels[3] = label
    with pytest.raises(DataError, match=f"labels: expected 0 to 6, as the head has 7 classes, got {shown}"):
        CosFace(7, 5).double()(x, labels)


@pytest.mark.parametrize("ramp", [-0.1, 1.1, math.nan])
def test_a_ramp_out_of_range_is_a_clear_error(ramp):
    with pytest.raises(ConfigError, match=r"ramp: expected a share of the margin in \[0,1\], got"):
        ArcFace(7, 5).double()(*batch(), ramp=ramp)


@pytest.mark.parametrize("bad", [{"classes": 0}, {"dim": 0}, {"scale": 0.0}, {"margin": -0.1}, {"margin": math.nan}])
@pytest.mark.parametrize("kind", ALL)
def test_an_impossible_option_is_a_clear_error(kind, bad):
    with pytest.raises(ConfigError, match="head: expected classes"):
        kind(**({"classes": 3, "dim": 4} | bad))


def test_arcfaces_margin_is_an_angle():
    with pytest.raises(ConfigError, match="radians below pi"):
        ArcFace(3, 4, margin=28.6)


def test_heads_are_built_by_name():
    head = heads.build("adaface", 3, 4, margin=0.2, seed=6)
    assert isinstance(head, AdaFace)
    assert head.margin == 0.2
    with pytest.raises(ConfigError, match="head: expected one of adaface, arcface, cosface, got 'softmax'"):
        heads.build("softmax", 3, 4)


# An independent library


@pytest.mark.filterwarnings("ignore")  # the library's own imports warn
@pytest.mark.parametrize("kind", [ArcFace, CosFace])
def test_losses_equal_pytorch_metric_learnings(kind):
    oracle = pytest.importorskip("pytorch_metric_learning.losses", reason="an optional oracle, not in the lock")
    x, labels = batch(size=64)
    head = kind(7, 5, scale=30.0, margin=0.5).double()
    margin = math.degrees(0.5) if kind is ArcFace else 0.5
    theirs = getattr(oracle, f"{kind.__name__}Loss")(
        num_classes=7, embedding_size=5, margin=margin, scale=30.0
    ).double()
    theirs.W.data.copy_(head.weight.detach().T)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    left, right = F.cross_entropy(head(a, labels), labels), theirs(b, labels)
    left.backward()
    right.backward()
    torch.testing.assert_close(left, right)
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(head.weight.grad, theirs.W.grad.T)


def test_a_norm_that_is_no_number_leaves_adafaces_statistics_as_they_are():
    head = heads.build("adaface", 3, 4).train()
    good = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    head(good, labels)
    before = head.mean.clone(), head.std.clone()
    bad = good.clone()
    bad[2, 1] = torch.nan
    head(bad, labels)
    assert (head.mean, head.std) == before
    head(good, labels)
    assert head.mean != before[0]
    assert head.mean.isfinite()
