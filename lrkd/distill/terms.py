"""Terms: a loss with a weight and parameters, as data that describes itself."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from lrkd.distill.distances import Distance, cosine
from lrkd.distill.identifiers import described
from lrkd.distill.losses import (
    activation_attention_loss,
    attention_loss,
    cross_loss,
    feature_loss,
    logit_loss,
    octuplet_loss,
    partners,
    relation_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    similarity_preserving_loss,
)
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


@dataclass(frozen=True, eq=False)
class Term:
    """One weighted summand of a distillation loss, as data.

    function: (student View, teacher View) -> scalar tensor, one that can be pickled (of a module, or a `partial` of
    such), as studies send it to other processes; a partial's parameters are the term's.
    hint: whether it needs the student's features through hint layers (1x1 conv + BN, only in training).
    paired: whether it holds all maps of the student against the teacher's, so that both must have as many.
    """

    name: str
    weight: float
    function: Callable[[View, View], Tensor] = field(repr=False)
    hint: bool = False
    paired: bool = False

    def __post_init__(self) -> None:
        for key, value in (("weight", self.weight), *self._made[2].items()):
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{key} is {value}: a finite number is right for the term {self.name!r}")

    @property
    def _made(self) -> tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]:
        """The function without its parameters, and these."""
        f = self.function
        return (f.func, f.args, f.keywords) if isinstance(f, partial) else (f, (), {})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Term):
            return NotImplemented
        mine, theirs = ((t.name, t.weight, t.hint, t.paired, t._made) for t in (self, other))
        return mine == theirs

    def __hash__(self) -> int:
        return hash((self.name, self.weight, self.hint, self.paired))

    @property
    def spec(self) -> tuple[tuple[str, Any], ...]:
        """Its parameters by name, as plain values; ConfigError for one that has none, such as a lambda."""
        given = ((key, value) for key, value in self._made[2].items() if key != "hint")
        return tuple((key, described(value, key) if callable(value) else value) for key, value in given)

    def describe(self) -> dict[str, Any]:
        """The term as plain values; two terms with equal descriptions compute the same.

        A function that is not the one which lrkd has under the term's name is described by `identity.described`.
        Raises ConfigError for a lambda and a function made inside another, which cannot be told from their like.
        """
        told = {"name": self.name, "weight": self.weight, "hint": self.hint, **dict(self.spec)}
        function, positional, _ = self._made
        if positional or _FUNCTIONS.get(self.name) is not function:
            what = f"the function of the term {self.name!r}"
            told["function"] = described(partial(function, *positional) if positional else function, what)
        return told


def feature(
    distance: Distance = cosine, weight: float = 20.0, stages: str | tuple[int, ...] = "all", hint: bool = True
) -> Term:
    """Feature maps of the given stages (0-based, or "all") by `feature_loss`."""
    if stages != "all" and not (isinstance(stages, tuple) and stages and all(isinstance(i, int) for i in stages)):
        raise ConfigError(f'stages is {stages!r}: give "all" or a tuple of stage numbers such as (2, 3)')
    function = partial(_feature, distance=distance, stages=stages, hint=hint)
    return Term("feature", weight, function, hint, paired=stages == "all")


def _feature(student: View, teacher: View, distance: Distance, stages: str | tuple[int, ...], hint: bool) -> Tensor:
    s, t = (student.hinted if hint else student.features), teacher.features
    if stages != "all":
        if not all(-len(x) <= int(i) < len(x) for i in stages for x in (s, t)):
            raise ConfigError(f"stages is {stages}: the student's number of them is {len(s)}, the teacher's {len(t)}")
        s, t = [s[int(i)] for i in stages], [t[int(i)] for i in stages]
    return feature_loss(s, t, distance)


def cross(distance: Distance = cosine, weight: float = 4.0) -> Term:
    """The relation between a sample and its partner on the last stage by `cross_loss`."""
    return Term("cross", weight, partial(_cross, distance=distance), hint=True)


def _cross(student: View, teacher: View, distance: Distance) -> Tensor:
    partner = partners(teacher.embedding, teacher.labels)
    return cross_loss(student.hinted[-1], teacher.features[-1], partner, distance)


def attention(distance: Distance = cosine, weight: float = 5.0, centred: bool = False, constant: bool = False) -> Term:
    """CBAM's channel and spatial maps of every block by `attention_loss`. Raises ConfigError for centred constants."""
    if centred and constant:
        raise ConfigError("centred and constant are both set: a constant target that is centred is zero; choose one")
    # A constant target is younger than committed runs, whose descriptions do not know of it.
    options: dict[str, Any] = {"constant": True} if constant else {}
    function = partial(_attention, distance=distance, centred=centred, **options)
    return Term("attention", weight, function, paired=True)


def _attention(student: View, teacher: View, distance: Distance, centred: bool, constant: bool = False) -> Tensor:
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
    return Term("logits", weight, partial(_logits, temperature=temperature))


def _logits(student: View, teacher: View, temperature: float) -> Tensor:
    return logit_loss(student.logits, teacher.logits, temperature)


def relational(weight: float = 40.0, distance_weight: float = 1.0, angle_weight: float = 2.0) -> Term:
    """RKD on the embeddings: distance_weight RKD-D + angle_weight RKD-A."""
    function = partial(_relational, distance_weight=distance_weight, angle_weight=angle_weight)
    return Term("rkd", weight, function)


def _relational(student: View, teacher: View, distance_weight: float, angle_weight: float) -> Tensor:
    s, t = student.embedding, teacher.embedding
    return distance_weight * rkd_distance_loss(s, t) + angle_weight * rkd_angle_loss(s, t)


def relation(weight: float = 4.0, temperature: float = 0.1) -> Term:
    """AIRD's relation level by `relation_loss`, on the embeddings."""
    _check_temperature(temperature)
    return Term("relation", weight, partial(_relation, temperature=temperature))


def _relation(student: View, teacher: View, temperature: float) -> Tensor:
    return relation_loss(student.embedding, teacher.embedding, temperature)


def similarity_preserving(weight: float = 3000.0) -> Term:
    """SP on the last stage by `similarity_preserving_loss`."""
    return Term("sp", weight, _similarity_preserving)


def _similarity_preserving(student: View, teacher: View) -> Tensor:
    return similarity_preserving_loss(student.features[-1], teacher.features[-1])


def embedding(distance: Distance = cosine, weight: float = 20.0) -> Term:
    """The embeddings themselves by a distance."""
    return Term("embedding", weight, partial(_embedding, distance=distance))


def _embedding(student: View, teacher: View, distance: Distance) -> Tensor:
    return distance(student.embedding, teacher.embedding).mean()


def octuplet(weight: float = 1.0, margin: float = 0.5) -> Term:
    """The octuplet loss on the student's embeddings of small images and, as the teacher, of the sharp ones."""
    return Term("octuplet", weight, partial(_octuplet, margin=margin))


def _octuplet(student: View, teacher: View, margin: float) -> Tensor:
    return octuplet_loss(student.embedding, teacher.embedding, student.labels, margin)


def regression(distance: Distance = cosine, weight: float = 20.0) -> Term:
    """The embeddings of the chosen images by a distance: SKD (arXiv 1811.09998), see `lrkd.distill.selection`.

    Averaged over the chosen images of the batch, not over the batch, so that a smaller choice weighs no less; zero in a
    batch without any.
    """
    return Term("regression", weight, partial(_regression, distance=distance))


def _regression(student: View, teacher: View, distance: Distance) -> Tensor:
    each = distance(student.embedding, teacher.embedding)
    if teacher.chosen is None:
        return each.mean()
    return (each * teacher.chosen).sum() / teacher.chosen.sum().clamp_min(1)


# What goes without saying in a term's description, so that a run keeps its name: lrkd's function under a term's name.
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "feature": _feature,
    "cross": _cross,
    "attention": _attention,
    "at": _activation_attention,
    "logits": _logits,
    "rkd": _relational,
    "relation": _relation,
    "sp": _similarity_preserving,
    "embedding": _embedding,
    "regression": _regression,
}
