"""Distillation losses: functions of tensors and a distance, and `Term`, which names one with its weight as data.

Every function averages over the batch. Student tensors come first, teacher tensors second; the teacher's carry no
gradient (the caller runs it under `torch.no_grad`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lrkd.distances import Distance, cosine, lp
from lrkd.errors import ConfigError


class View(NamedTuple):
    """What a network shows to the losses: `models.Output`, the hinted features and the logits without a margin."""

    embedding: Tensor  # (B,D)
    features: Sequence[Tensor]  # a stage each, (B,C,h,w)
    hinted: Sequence[Tensor]  # the student's features through its hint layers; the teacher's as they are
    channel: Sequence[Tensor]  # a block each, (B,C,1,1)
    spatial: Sequence[Tensor]  # a block each, (B,1,h,w)
    logits: Tensor  # (B,classes), cosine times scale
    labels: Tensor  # (B,)
    chosen: Tensor | None = None  # (B,) bool: of which images the teacher's features are learned; None: of all


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], distance: Distance) -> Tensor:
    """Mean over stages and batch of distance(S_l, T_l); (B,C,h,w) a stage -> ().

    L_point of F-SKD (arXiv 2303.04681) with `cosine`; FitNet (arXiv 1412.6550) with `lp(2)`.
    """
    return torch.stack([distance(s, t).mean() for s, t in zip(student, teacher, strict=True)]).mean()


def relation_map(x: Tensor, y: Tensor) -> Tensor:
    """R_XY = X^T Y with X = x/|x|_F: (B,C,h,w), (B,C,h,w) -> (B,hw,hw), position by position (arXiv 2303.04681)."""
    return F.normalize(x.flatten(1), dim=1).view(*x.shape[:2], -1).transpose(1, 2) @ F.normalize(
        y.flatten(1), dim=1
    ).view(*y.shape[:2], -1)


def partners(teacher: Tensor, labels: Tensor) -> Tensor:
    """(B,D) teacher embeddings, (B,) labels -> (B,) index of each sample's partner for `cross_loss`.

    The nearest other sample of the same identity whose teacher cosine lies in (0, .99]; where the batch has none, the
    next sample (batches are shuffled, so this is the in-batch shuffle of arXiv 2303.04681's code).
    """
    similarity = F.normalize(teacher, dim=1) @ F.normalize(teacher, dim=1).T
    wanted = (labels[:, None] == labels[None]) & (similarity > 0) & (similarity <= 0.99)
    wanted.fill_diagonal_(False)
    best = similarity.masked_fill(~wanted, -2).argmax(1)
    following = torch.arange(len(labels), device=labels.device).roll(-1)
    return torch.where(wanted.any(1), best, following)


def cross_loss(student: Tensor, teacher: Tensor, partner: Tensor, distance: Distance = cosine) -> Tensor:
    """L_cross of F-SKD on one stage, (B,C,h,w), (B,C,h,w), (B,) partner indices -> (), arXiv 2303.04681.

    [d(R_HH, R_HL) + d(R_HH, R_LH)] / 2 + d(R_HH, R_LL), H the teacher's map, L the student's, R from a sample to its
    partner.
    """
    s2, t2 = student[partner], teacher[partner]
    target = relation_map(teacher, t2)
    mixed = distance(relation_map(teacher, s2), target) + distance(relation_map(student, t2), target)
    return (mixed / 2 + distance(relation_map(student, s2), target)).mean()


def attention_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    distance: Distance = cosine,
    centred: bool = False,
    constant: bool = False,
) -> Tensor:
    """Sum over blocks of the batch mean of distance(map_S, map_T) on pre-sigmoid maps -> () (arXiv 2209.14498).

    `centred` first takes the batch mean off both maps, so that a map common to all images carries no loss; `constant`
    puts the batch mean of the teacher's maps in place of each, so that nothing else carries one (both ours).
    """

    def centre(x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True) if centred else x

    def target(x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True).expand_as(x) if constant else x

    pairs = zip(student, teacher, strict=True)
    return torch.stack([distance(centre(s), centre(target(t))).mean() for s, t in pairs]).sum()


def activation_attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """AT (arXiv 1612.03928, p = 2): sum over stages of the MSE of unit-norm maps sum_c F_c^2; (B,C,h,w) each -> ()."""

    def energy(x: Tensor) -> Tensor:
        return F.normalize(x.square().mean(1).flatten(1), dim=1)

    return torch.stack([lp(2)(energy(s), energy(t)).mean() for s, t in zip(student, teacher, strict=True)]).sum()


def logit_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 KL(softmax(teacher/T) | softmax(student/T)), (B,classes) twice -> (), arXiv 1503.02531."""
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def _pairwise(x: Tensor) -> Tensor:
    """(B,D) -> (B,B) Euclidean distances with a finite derivative at zero and a zero diagonal."""
    squared = (x[:, None] - x[None]).square().sum(2)
    return squared.clamp_min(1e-12).sqrt() * (1 - torch.eye(len(x), device=x.device, dtype=x.dtype))


def _off_diagonal(x: Tensor) -> Tensor:
    """(B,B) -> (B,B-1) without the diagonal; a mask would make a GPU wait for how many there are."""
    count = len(x)
    return x.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)


def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-D: Huber loss of pairwise distances over their batch mean, (B,D) twice -> (), arXiv 1904.05068, eq. 6."""

    def scaled(x: Tensor) -> Tensor:
        distances = _pairwise(x)
        return distances / _off_diagonal(distances).mean()

    return F.smooth_l1_loss(scaled(student), scaled(teacher))


def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-A: Huber loss of the cosines of all triangles' angles, (B,D) twice -> (), arXiv 1904.05068, eq. 9."""

    def angles(x: Tensor) -> Tensor:
        edges = F.normalize(x[None] - x[:, None], dim=2)  # (B,B,D)
        return edges @ edges.transpose(1, 2)  # (B,B,B)

    return F.smooth_l1_loss(angles(student), angles(teacher))


def relation_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Relation level of AIRD, (B,D) twice -> (): KL(p(T,T) | p(S,S)) + KL(p(T,T) | p(S,T)), averaged over the batch.

    p(X,Y): the row softmaxes of the in-batch cosines of X with Y over the temperature, without the diagonal: to whom a
    sample is how close. S with S is the student's own geometry, S with T its place in the teacher's. A re-derivation
    from the abstract of arXiv 2409.02049, which gives no equation; a batch of one has no relation and no loss.
    """
    s, t = F.normalize(student, dim=1), F.normalize(teacher, dim=1)

    def rows(x: Tensor, y: Tensor) -> Tensor:
        return F.log_softmax(_off_diagonal(x @ y.T / temperature), dim=1)

    target = rows(t, t)
    mine, crossed = (F.kl_div(rows(s, y), target, reduction="batchmean", log_target=True) for y in (s, t))
    return mine + crossed


def similarity_preserving_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """SP: |G_S - G_T|_F^2 / B^2 of row-normalised (B,B) Gram matrices, (B,...) twice -> (), arXiv 1907.09682, eq. 4."""

    def gram(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return F.normalize(flat @ flat.T, dim=1)

    return (gram(student) - gram(teacher)).square().mean()


def octuplet_loss(low: Tensor, high: Tensor, labels: Tensor, margin: float = 0.5) -> Tensor:
    """Octuplet loss (arXiv 2207.06726), (B,D) small, (B,D) sharp, (B,) labels -> (): four batch-hard triplet losses.

    Anchors and their candidates are sharp and sharp, sharp and small, small and sharp, small and small; of each the
    mean over anchors of max(0, margin + |a - farthest of the same person| - |a - nearest of another|), added up.
    Embeddings are brought to unit length first. Ours: across resolutions an image's other form is of the same person
    too (a batch drawn at random has few second images of a person); an anchor without a positive or a negative costs
    nothing.
    """
    same = labels[:, None] == labels[None]
    low, high = F.normalize(low, dim=1), F.normalize(high, dim=1)

    def triplets(a: Tensor, b: Tensor, positive: Tensor) -> Tensor:
        distance = (2 - 2 * a @ b.T).clamp_min(1e-8).sqrt()
        far = distance.masked_fill(~positive, -torch.inf).amax(1)
        near = distance.masked_fill(same, torch.inf).amin(1)
        usable = positive.any(1) & ~same.all(1)
        return torch.where(usable, F.relu(margin + far - near), 0).mean()

    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    within = triplets(high, high, others) + triplets(low, low, others)
    return within + triplets(high, low, same) + triplets(low, high, same)


def cosine_logits(embedding: Tensor, weight: Tensor, scale: float) -> Tensor:
    """(B,D) embeddings, (classes,D) head weights -> (B,classes): the head's logits without a margin."""
    return scale * F.normalize(embedding, dim=1) @ F.normalize(weight, dim=1).T


@dataclass(frozen=True)
class Term:
    """One weighted summand of a distillation loss, as data.

    function: (student View, teacher View) -> scalar tensor, one that can be pickled (of a module, or a `partial` of
    such), as studies send it to other processes. spec: what it is, in plain values, for the run's config.
    hint: whether it needs the student's features through hint layers (1x1 conv + BN, only in training).
    paired: whether it holds all maps of the student against the teacher's, so that both must have as many.
    """

    name: str
    weight: float
    function: Callable[[View, View], Tensor] = field(repr=False, compare=False)
    spec: tuple[tuple[str, Any], ...] = ()
    hint: bool = False
    paired: bool = False

    def __post_init__(self) -> None:
        for key, value in (("weight", self.weight), *self.spec):
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{key} is {value}: a finite number is right for the term {self.name!r}")

    def describe(self) -> dict[str, Any]:
        """The term as plain values; two terms with equal descriptions compute the same."""
        return {"name": self.name, "weight": self.weight, "hint": self.hint, **dict(self.spec)}


def feature(
    distance: Distance = cosine, weight: float = 20.0, stages: str | tuple[int, ...] = "all", hint: bool = True
) -> Term:
    """Feature maps of the given stages (0-based, or "all") by `feature_loss`."""
    if stages != "all" and not (isinstance(stages, tuple) and stages and all(isinstance(i, int) for i in stages)):
        raise ConfigError(f'stages is {stages!r}: give "all" or a tuple of stage numbers such as (2, 3)')
    function = partial(_feature, distance=distance, stages=stages, hint=hint)
    spec = (("distance", distance.__name__), ("stages", stages))
    return Term("feature", weight, function, spec, hint, paired=stages == "all")


def _feature(student: View, teacher: View, distance: Distance, stages: str | tuple[int, ...], hint: bool) -> Tensor:
    s, t = (student.hinted if hint else student.features), teacher.features
    if stages != "all":
        if not all(-len(x) <= int(i) < len(x) for i in stages for x in (s, t)):
            raise ConfigError(f"stages is {stages}: the student's number of them is {len(s)}, the teacher's {len(t)}")
        s, t = [s[int(i)] for i in stages], [t[int(i)] for i in stages]
    return feature_loss(s, t, distance)


def cross(distance: Distance = cosine, weight: float = 4.0) -> Term:
    """The relation between a sample and its partner on the last stage by `cross_loss`."""
    return Term("cross", weight, partial(_cross, distance=distance), (("distance", distance.__name__),), hint=True)


def _cross(student: View, teacher: View, distance: Distance) -> Tensor:
    partner = partners(teacher.embedding, teacher.labels)
    return cross_loss(student.hinted[-1], teacher.features[-1], partner, distance)


def attention(distance: Distance = cosine, weight: float = 5.0, centred: bool = False, constant: bool = False) -> Term:
    """CBAM's channel and spatial maps of every block by `attention_loss`. Raises ConfigError for centred constants."""
    if centred and constant:
        raise ConfigError("centred and constant are both set: a constant target that is centred is zero; choose one")
    function = partial(_attention, distance=distance, centred=centred, constant=constant)
    spec: tuple[tuple[str, Any], ...] = (("distance", distance.__name__), ("centred", centred))
    return Term("attention", weight, function, (*spec, ("constant", True)) if constant else spec, paired=True)


def _attention(student: View, teacher: View, distance: Distance, centred: bool, constant: bool) -> Tensor:
    s, t = [*student.channel, *student.spatial], [*teacher.channel, *teacher.spatial]
    return attention_loss(s, t, distance, centred, constant)


def activation_attention(weight: float = 1000.0) -> Term:
    """AT by `activation_attention_loss`."""
    return Term("at", weight, _activation_attention, paired=True)


def _activation_attention(student: View, teacher: View) -> Tensor:
    return activation_attention_loss(student.features, teacher.features)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}: a number above zero is right")


def logits(weight: float = 1.0, temperature: float = 4.0) -> Term:
    """Logit distillation by `logit_loss`."""
    _check_temperature(temperature)
    return Term("logits", weight, partial(_logits, temperature=temperature), (("temperature", temperature),))


def _logits(student: View, teacher: View, temperature: float) -> Tensor:
    return logit_loss(student.logits, teacher.logits, temperature)


def relational(weight: float = 40.0, distance_weight: float = 1.0, angle_weight: float = 2.0) -> Term:
    """RKD on the embeddings: distance_weight RKD-D + angle_weight RKD-A."""
    function = partial(_relational, distance_weight=distance_weight, angle_weight=angle_weight)
    return Term("rkd", weight, function, (("distance_weight", distance_weight), ("angle_weight", angle_weight)))


def _relational(student: View, teacher: View, distance_weight: float, angle_weight: float) -> Tensor:
    s, t = student.embedding, teacher.embedding
    return distance_weight * rkd_distance_loss(s, t) + angle_weight * rkd_angle_loss(s, t)


def relation(weight: float = 4.0, temperature: float = 0.1) -> Term:
    """AIRD's relation level by `relation_loss`, on the embeddings."""
    _check_temperature(temperature)
    return Term("relation", weight, partial(_relation, temperature=temperature), (("temperature", temperature),))


def _relation(student: View, teacher: View, temperature: float) -> Tensor:
    return relation_loss(student.embedding, teacher.embedding, temperature)


def similarity_preserving(weight: float = 3000.0) -> Term:
    """SP on the last stage by `similarity_preserving_loss`."""
    return Term("sp", weight, _similarity_preserving)


def _similarity_preserving(student: View, teacher: View) -> Tensor:
    return similarity_preserving_loss(student.features[-1], teacher.features[-1])


def embedding(distance: Distance = cosine, weight: float = 20.0) -> Term:
    """The embeddings themselves by a distance."""
    return Term("embedding", weight, partial(_embedding, distance=distance), (("distance", distance.__name__),))


def _embedding(student: View, teacher: View, distance: Distance) -> Tensor:
    return distance(student.embedding, teacher.embedding).mean()


def octuplet(weight: float = 1.0, margin: float = 0.5) -> Term:
    """The octuplet loss on the student's embeddings of small images and, as the teacher, of the sharp ones."""
    return Term("octuplet", weight, partial(_octuplet, margin=margin), (("margin", margin),))


def _octuplet(student: View, teacher: View, margin: float) -> Tensor:
    return octuplet_loss(student.embedding, teacher.embedding, student.labels, margin)


def regression(distance: Distance = cosine, weight: float = 20.0) -> Term:
    """The embeddings of the chosen images by a distance: SKD (arXiv 1811.09998), see `lrkd.select`.

    Averaged over the chosen images of the batch, not over the batch, so that a smaller choice weighs no less; zero in a
    batch without any.
    """
    return Term("regression", weight, partial(_regression, distance=distance), (("distance", distance.__name__),))


def _regression(student: View, teacher: View, distance: Distance) -> Tensor:
    each = distance(student.embedding, teacher.embedding)
    if teacher.chosen is None:
        return each.mean()
    return (each * teacher.chosen).sum() / teacher.chosen.sum().clamp_min(1)
