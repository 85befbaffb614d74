"""Distillation losses: each against naive loops in float64 over the formula that its docstring names."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from torch import Tensor

from lrkd.distill import losses, terms
from lrkd.distill.distances import cosine, euclidean, lp
from lrkd.distill.terms import View
from lrkd.errors import ConfigError

B, STAGES = 4, ((3, 4, 4), (5, 2, 3))
TERMS = {
    "feature": terms.feature(),
    "feature-l2": terms.feature(lp(2), weight=3.0, stages=(1,), hint=False),
    "cross": terms.cross(),
    "attention": terms.attention(),
    "centred": terms.attention(centred=True),
    "at": terms.activation_attention(),
    "logits": terms.logits(),
    "rkd": terms.relational(),
    "sp": terms.similarity_preserving(),
    "relation": terms.relation(),
    "embedding": terms.embedding(euclidean),
}
EACH = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def view(seed: int, grad: bool = False) -> View:
    g = torch.Generator().manual_seed(seed)
    maps = [draw(g, B, *shape) for shape in STAGES]
    made = View(
        embedding=draw(g, B, 6),
        features=maps,
        hinted=[draw(g, B, *shape) for shape in STAGES],
        channel=[draw(g, B, c, 1, 1) for c in (4, 8)],
        spatial=[draw(g, B, 1, s, s) for s in (4, 2)],
        logits=3 * draw(g, B, 5),
        labels=torch.tensor([0, 1, 0, 2]),
    )
    for tensor in tensors(made) if grad else ():
        tensor.requires_grad_()
    return made


def tensors(of: View) -> list[Tensor]:
    return [of.embedding, *of.features, *of.hinted, *of.channel, *of.spatial, of.logits]


def flat_cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel(), b.ravel()
    return 1 - float(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))


def arrays(maps) -> list[np.ndarray]:
    return [x.detach().numpy() for x in maps]


# ------------------------------------------------------------------------------------------------- laws of all terms


@EACH
def test_zero_where_the_student_equals_the_teacher_and_positive_elsewhere(term):
    teacher = view(0)._replace(hinted=view(0).features)
    assert abs(term.function(teacher, teacher).item()) < 2e-6
    assert term.function(view(1), teacher).item() > 1e-3


@EACH
def test_gradients_reach_the_student_and_are_finite_at_equality(term):
    student, teacher = view(1, grad=True), view(0)
    term.function(student, teacher).backward()
    grads = [x.grad for x in tensors(student) if x.grad is not None]
    assert grads
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in grads)
    assert all(x.grad is None for x in tensors(teacher))
    twin = view(0, grad=True)
    twin = twin._replace(hinted=twin.features)
    term.function(twin, teacher).backward()
    assert all(x.grad.abs().max() < 1e3 for x in tensors(twin) if x.grad is not None)


@EACH
def test_gradients_are_the_derivatives(term):
    teacher, base = view(0), view(1)
    sizes = [x.numel() for x in tensors(base)]

    def value(flat: Tensor) -> Tensor:
        parts = iter(p.view_as(x) for p, x in zip(flat.split(sizes), tensors(base), strict=True))
        take = lambda group: [next(parts) for _ in group]  # noqa: E731
        student = View(
            next(parts),
            take(base.features),
            take(base.hinted),
            take(base.channel),
            take(base.spatial),
            next(parts),
            base.labels,
        )
        return term.function(student, teacher)

    flat = torch.cat([x.flatten() for x in tensors(base)]).requires_grad_()
    assert torch.autograd.gradcheck(value, (flat,), fast_mode=True)


@EACH
def test_a_term_travels_to_another_process_and_computes_the_same(term):
    again = pickle.loads(pickle.dumps(term))
    assert again == term
    assert again.describe() == term.describe()
    assert torch.equal(again.function(view(1), view(0)), term.function(view(1), view(0)))


@EACH
def test_the_order_of_the_batch_does_not_matter(term):
    if term.name == "cross":
        pytest.skip("where nobody has a partner of the same identity, the neighbour is one")
    order = torch.tensor([2, 0, 3, 1])

    def shuffled(v: View) -> View:
        return View(*([y[order] for y in x] if isinstance(x, list) else x[order] for x in v if x is not None))

    torch.testing.assert_close(
        term.function(shuffled(view(1)), shuffled(view(0))), term.function(view(1), view(0)), rtol=1e-9, atol=1e-12
    )


# ------------------------------------------------------------------------------------------------------------ F-SKD


def test_point_loss_is_the_mean_over_stages_and_batch_of_the_cosine_distance():
    s, t = view(1), view(0)
    wanted = np.mean(
        [
            np.mean([flat_cosine_distance(a[i], b[i]) for i in range(B)])
            for a, b in zip(arrays(s.hinted), arrays(t.features), strict=True)
        ]
    )
    assert losses.feature_loss(s.hinted, t.features, cosine).item() == pytest.approx(wanted, abs=1e-12)
    assert terms.feature().function(s, t).item() == pytest.approx(wanted, abs=1e-12)


def test_fitnet_is_the_mean_squared_error():
    s, t = view(1), view(0)
    wanted = np.mean([((a - b) ** 2).mean() for a, b in zip(arrays(s.hinted), arrays(t.features), strict=True)])
    assert terms.feature(lp(2)).function(s, t).item() == pytest.approx(wanted)


def test_stages_and_hints_choose_what_is_compared():
    s, t = view(1), view(0)
    for hint, maps in ((True, s.hinted), (False, s.features)):
        for stage in (0, 1):
            found = terms.feature(stages=(stage,), hint=hint).function(s, t)
            torch.testing.assert_close(found, cosine(maps[stage], t.features[stage]).mean())
    with pytest.raises(ConfigError, match=r"stages: expected .* got \(\)"):
        terms.feature(stages=())
    with pytest.raises(ConfigError, match=r"stages: expected .* got 'last'"):
        terms.feature(stages="last")


def test_a_stage_that_a_network_does_not_have_is_named():
    s, t = view(1), view(0)
    torch.testing.assert_close(terms.feature(stages=(-1,)).function(s, t), terms.feature(stages=(1,)).function(s, t))
    for stages in ((0, 2), (-3,)):
        with pytest.raises(
            ConfigError, match=r"stages: expected numbers below 2 of the student and 2 of the teacher, got \("
        ):
            terms.feature(stages=stages).function(s, t)
    with pytest.raises(ConfigError, match="below 1 of the student and 2 of the teacher"):
        terms.feature(stages=(1,), hint=False).function(s._replace(features=s.features[:1]), t)


def naive_relation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """R_XY = X^T Y' of one sample, X (C,h,w) over its Frobenius norm, position by position."""
    c, h, w = x.shape
    x, y = x / np.sqrt((x**2).sum()), y / np.sqrt((y**2).sum())
    found = np.empty((h * w, h * w))
    for p, q in itertools.product(range(h * w), range(h * w)):
        found[p, q] = sum(x[k, p // w, p % w] * y[k, q // w, q % w] for k in range(c))
    return found


def test_relation_map_position_by_position():
    x, y = view(0).features[1], view(1).features[1]
    found = losses.relation_map(x, y)
    assert found.shape == (B, 6, 6)
    for i in range(B):
        np.testing.assert_allclose(found[i].numpy(), naive_relation(x[i].numpy(), y[i].numpy()), atol=1e-12)


def test_cross_loss_as_the_formula_says():
    student, teacher, partner = view(1).hinted[1], view(0).features[1], torch.tensor([2, 0, 1, 0])
    low, high = student.numpy(), teacher.numpy()
    total = 0.0
    for i, j in enumerate(partner.tolist()):
        r_hh = naive_relation(high[i], high[j])
        r_hl, r_lh, r_ll = (naive_relation(*p) for p in ((high[i], low[j]), (low[i], high[j]), (low[i], low[j])))
        total += (flat_cosine_distance(r_hh, r_hl) + flat_cosine_distance(r_hh, r_lh)) / 2
        total += flat_cosine_distance(r_hh, r_ll)
    assert losses.cross_loss(student, teacher, partner).item() == pytest.approx(total / B, abs=1e-12)


def test_cross_term_takes_the_last_stage_and_the_teachers_partners():
    s, t = view(1), view(0)
    partner = losses.partners(t.embedding, t.labels)
    torch.testing.assert_close(
        terms.cross().function(s, t), losses.cross_loss(s.hinted[-1], t.features[-1], partner, cosine)
    )


def test_partners_are_the_nearest_of_the_same_identity_within_reach():
    angles = torch.tensor([0.0, 30, 50, 0, 200, 90])  # of embeddings in the plane
    labels = torch.tensor([0, 0, 0, 0, 0, 1])
    x = torch.stack((angles.deg2rad().cos(), angles.deg2rad().sin()), 1) * torch.arange(1, 7)[:, None]
    # 0 and 3 are the same image (cosine 1 > .99); 4 has all cosines <= 0 and 5 nobody: both take the next sample.
    assert losses.partners(x, labels).tolist() == [1, 2, 1, 1, 5, 0]


def test_partners_law_on_random_batches():
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        x, labels = draw(g, 24, 3), torch.randint(6, (24,), generator=g)
        e = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
        for i, found in enumerate(losses.partners(x, labels).tolist()):
            able = [j for j in range(24) if j != i and labels[j] == labels[i] and 0 < e[i] @ e[j] <= 0.99]
            assert found == (max(able, key=lambda j: e[i] @ e[j]) if able else (i + 1) % 24)
            assert found != i


# ----------------------------------------------------------------------------------------------------- attention, AT


def test_attention_is_summed_over_blocks_and_averaged_over_the_batch():
    s, t = view(1), view(0)
    wanted = 0.0
    for kind in ("channel", "spatial"):
        for a, b in zip(arrays(getattr(s, kind)), arrays(getattr(t, kind)), strict=True):
            wanted += np.mean([flat_cosine_distance(a[i], b[i]) for i in range(B)])
    assert terms.attention().function(s, t).item() == pytest.approx(wanted, abs=1e-12)


def with_common_map(of: View, seed: int) -> View:
    g = torch.Generator().manual_seed(seed)
    return of._replace(
        channel=[x + 5 * draw(g, 1, *x.shape[1:]) for x in of.channel],
        spatial=[x + 5 * draw(g, 1, *x.shape[1:]) for x in of.spatial],
    )


def test_centred_attention_does_not_see_a_map_common_to_all_images_and_the_plain_one_does():
    s, t = view(1), view(0)
    plain, centred = terms.attention().function, terms.attention(centred=True).function
    torch.testing.assert_close(centred(with_common_map(s, 7), with_common_map(t, 8)), centred(s, t))
    assert abs(plain(with_common_map(s, 7), with_common_map(t, 7)) - plain(s, t)) > 0.1
    a, b = s.channel[0].numpy(), t.channel[0].numpy()
    naive = np.mean([flat_cosine_distance(a[i] - a.mean(0), b[i] - b.mean(0)) for i in range(B)])
    found = losses.attention_loss([s.channel[0]], [t.channel[0]], centred=True)
    assert found.item() == pytest.approx(naive, abs=1e-12)


def test_a_constant_target_is_the_teachers_mean_map_and_says_nothing_of_the_image():
    s, t = view(1), view(0)
    constant = terms.attention(constant=True).function
    other = t._replace(channel=[x.roll(1, 0) for x in t.channel], spatial=[x.flip(0) for x in t.spatial])
    torch.testing.assert_close(constant(s, other), constant(s, t))
    assert abs(terms.attention().function(s, other) - terms.attention().function(s, t)) > 0.01
    a, b = s.channel[0].numpy(), t.channel[0].numpy()
    naive = np.mean([flat_cosine_distance(a[i], b.mean(0)) for i in range(B)])
    found = losses.attention_loss([s.channel[0]], [t.channel[0]], constant=True)
    assert found.item() == pytest.approx(naive, abs=1e-12)
    mean = [x.mean(0, keepdim=True).expand_as(x) for x in t.channel]
    torch.testing.assert_close(losses.attention_loss(mean, t.channel, constant=True), torch.zeros(()).double())


def test_a_constant_target_is_part_of_the_description_and_cannot_be_centred():
    assert dict(terms.attention(constant=True).describe())["constant"] is True
    assert "constant" not in terms.attention().describe(), "older runs keep their names"
    with pytest.raises(ConfigError, match=r"expected one of centred and constant, got both"):
        terms.attention(centred=True, constant=True)


def test_at_is_the_mse_of_unit_energy_maps_summed_over_stages():
    s, t = view(1), view(0)
    wanted = 0.0
    for a, b in zip(arrays(s.features), arrays(t.features), strict=True):
        for i in range(B):
            p, q = (a[i] ** 2).sum(0).ravel(), (b[i] ** 2).sum(0).ravel()
            wanted += ((p / np.linalg.norm(p) - q / np.linalg.norm(q)) ** 2).mean() / B
    assert terms.activation_attention(1000.0).function(s, t).item() == pytest.approx(wanted)


# ------------------------------------------------------------------------------------------------- logits and others


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logit_distillation_against_scipys_relative_entropy(temperature):
    s, t = view(1).logits.numpy(), view(0).logits.numpy()
    p, q = softmax(t / temperature, axis=1), softmax(s / temperature, axis=1)
    wanted = temperature**2 * entropy(p, q, axis=1).mean()
    found = terms.logits(1.0, temperature).function(view(1), view(0)).item()
    assert found == pytest.approx(wanted)
    gap = log_softmax(t / temperature, axis=1) - log_softmax(s / temperature, axis=1)
    assert found == pytest.approx(temperature**2 * (p * gap).sum(1).mean())


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_weight_is_finite(wrong):
    for make in (terms.feature, terms.attention, terms.logits, terms.relational):
        with pytest.raises(ConfigError, match=f"weight of the term .*: expected a finite number, got {wrong}"):
            make(weight=wrong)
    with pytest.raises(ConfigError, match="angle_weight of the term 'rkd'"):
        terms.relational(angle_weight=wrong)


@pytest.mark.parametrize("make", [terms.logits, terms.relation])
@pytest.mark.parametrize("wrong", [0, 0.0, -1.0, np.nan, np.inf])
def test_a_temperature_is_finite_and_above_zero(make, wrong):
    with pytest.raises(ConfigError, match=f"temperature.*: expected a .*number.*, got {wrong}"):
        make(temperature=wrong)


def test_logit_distillation_does_not_see_a_constant_added_to_all_logits():
    s, t = view(1).logits, view(0).logits
    shift = torch.tensor([[1.0], [-50], [1000], [0]], dtype=s.dtype)
    torch.testing.assert_close(losses.logit_loss(s + shift, t), losses.logit_loss(s, t))


def test_relation_row_by_row_against_scipys_relative_entropy():
    s, t = (
        v.embedding.numpy() / np.linalg.norm(v.embedding.numpy(), axis=1, keepdims=True) for v in (view(1), view(0))
    )

    def row(x: np.ndarray, y: np.ndarray, i: int) -> np.ndarray:
        return softmax([x[i] @ y[j] / 0.3 for j in range(B) if j != i])

    wanted = sum(entropy(row(t, t, i), row(s, y, i)) for i in range(B) for y in (s, t)) / B
    assert terms.relation(temperature=0.3).function(view(1), view(0)).item() == pytest.approx(wanted)


def test_relation_sees_directions_alone_and_its_own_half_no_turn_of_all():
    s, t = view(1).embedding, view(0).embedding
    torch.testing.assert_close(losses.relation_loss(7 * s, 3 * t), losses.relation_loss(s, t))
    turn = torch.linalg.qr(draw(torch.Generator().manual_seed(3), 6, 6)).Q
    turned = losses.relation_loss(t @ turn, t)  # the geometry is the teacher's, the place is not: S with T is left
    assert turned > 0.1
    off, unit = ~torch.eye(B, dtype=torch.bool), torch.nn.functional.normalize
    rows = [torch.log_softmax((unit(x) @ unit(t).T / 0.1)[off].view(B, -1), 1) for x in (t, t @ turn)]
    torch.testing.assert_close(turned, (rows[0].exp() * (rows[0] - rows[1])).sum() / B)


def test_relation_of_a_single_sample_is_nothing():
    assert losses.relation_loss(view(1).embedding[:1], view(0).embedding[:1]) == 0


def huber(d: float) -> float:
    return d * d / 2 if abs(d) < 1 else abs(d) - 0.5


def test_rkd_distance_pair_by_pair():
    def scaled(x: np.ndarray) -> np.ndarray:
        d = np.array([[np.linalg.norm(p - q) for q in x] for p in x])
        return d / np.mean([d[i, j] for i in range(B) for j in range(B) if i != j])

    s, t = view(1).embedding, view(0).embedding
    a, b = scaled(s.numpy()), scaled(t.numpy())
    wanted = np.mean([huber(a[i, j] - b[i, j]) for i in range(B) for j in range(B)])
    assert losses.rkd_distance_loss(s, t).item() == pytest.approx(wanted)
    torch.testing.assert_close(losses.rkd_distance_loss(9 * s + 4, t), losses.rkd_distance_loss(s, t))


def test_rkd_angle_triple_by_triple():
    def angle(x: np.ndarray, i: int, j: int, k: int) -> float:
        u, v = x[j] - x[i], x[k] - x[i]
        return float(u @ v) / (np.linalg.norm(u) * np.linalg.norm(v)) if j != i and k != i else 0.0

    s, t = view(1).embedding, view(0).embedding
    triples = itertools.product(range(B), repeat=3)
    wanted = np.mean([huber(angle(s.numpy(), *q) - angle(t.numpy(), *q)) for q in triples])
    assert losses.rkd_angle_loss(s, t).item() == pytest.approx(wanted)
    torch.testing.assert_close(losses.rkd_angle_loss(9 * s + 4, t), losses.rkd_angle_loss(s, t))


def test_rkd_term_weighs_distance_and_angle():
    s, t = view(1), view(0)
    found = terms.relational(40.0, 1.5, 0.25).function(s, t)
    distance = losses.rkd_distance_loss(s.embedding, t.embedding)
    torch.testing.assert_close(found, 1.5 * distance + 0.25 * losses.rkd_angle_loss(s.embedding, t.embedding))


def test_similarity_preserving_entry_by_entry():
    def gram(x: np.ndarray) -> np.ndarray:
        g = np.array([[(p * q).sum() for q in x] for p in x])
        return np.array([row / np.linalg.norm(row) for row in g])

    s, t = view(1).features[-1], view(0).features[-1]
    wanted = ((gram(s.numpy()) - gram(t.numpy())) ** 2).sum() / B**2
    assert losses.similarity_preserving_loss(s, t).item() == pytest.approx(wanted)
    assert terms.similarity_preserving().function(view(1), view(0)).item() == pytest.approx(wanted)


def test_embedding_term_is_the_batch_mean_of_the_distance():
    s, t = view(1), view(0)
    wanted = np.mean([np.linalg.norm(p - q) for p, q in zip(s.embedding.numpy(), t.embedding.numpy(), strict=True)])
    assert terms.embedding(euclidean).function(s, t).item() == pytest.approx(wanted)


def test_cosine_logits_are_scaled_cosines_with_the_class_weights():
    g = torch.Generator().manual_seed(3)
    x, w = draw(g, 3, 5), draw(g, 7, 5)
    found = losses.cosine_logits(x, w, 16.0)
    for i, j in itertools.product(range(3), range(7)):
        assert found[i, j].item() == pytest.approx(16 * (1 - flat_cosine_distance(x[i].numpy(), w[j].numpy())))


# -------------------------------------------------------------------------------------------------------- regression


def test_regression_averages_over_the_chosen_images():
    s, t = view(1), view(0)
    function = terms.regression(lp(2)).function
    each = [np.square(s.embedding[i].numpy() - t.embedding[i].numpy()).mean() for i in range(B)]
    assert function(s, t).item() == pytest.approx(np.mean(each), rel=1e-6)
    chosen = torch.arange(B) % 3 == 0
    found = function(s, t._replace(chosen=chosen))
    assert found.item() == pytest.approx(np.mean([each[i] for i in range(B) if i % 3 == 0]), rel=1e-6)
    assert function(s, t._replace(chosen=torch.zeros(B, dtype=torch.bool))).item() == 0


def test_regression_of_all_is_the_embedding_term():
    s, t = view(1), view(0)
    torch.testing.assert_close(terms.regression(cosine).function(s, t), terms.embedding(cosine).function(s, t))
