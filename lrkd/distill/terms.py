"""Terms: a loss with a weight and parameters, as data that describes itself.

A new loss is one function of the student's and the teacher's `View`, and one line: `Term("mine", 5.0, mine)`. The terms
of lrkd have a function each that says which tensors of the views a loss of `losses` takes, named after the term.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import interpolate

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
    """What a network shows to the losses of a batch.

    Attributes:
        embedding: (B,D).
        features: (B,C,h,w) a stage.
        hinted: The student's features through its hint layers; the teacher's as they are.
        channel: (B,C,1,1) a block, attention before the sigmoid.
        spatial: (B,1,h,w) a block, attention before the sigmoid.
        logits: (B,classes), cosine times scale, without a margin.
        labels: (B,).
        chosen: (B,) bool, of which images the teacher's features are learned; None: of all.
    """

    embedding: Tensor
    features: Sequence[Tensor]
    hinted: Sequence[Tensor]
    channel: Sequence[Tensor]
    spatial: Sequence[Tensor]
    logits: Tensor
    labels: Tensor
    chosen: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Term:
    """One weighted summand of a distillation loss, as data.

    Attributes:
        name: Its column in metrics.csv.
        weight: Finite.
        function: (student View, teacher View) -> scalar tensor, of a module or a `functools.partial` of such, as
            studies send it to other processes; a partial's parameters are the term's.
        hint: Whether it needs the student's features through hint layers (1x1 conv + BN, only in training).
        paired: Whether it holds all maps of the student against the teacher's, so that both must have as many.
    """

    name: str
    weight: float
    function: Callable[[View, View], Tensor] = field(repr=False)
    hint: bool = False
    paired: bool = False

    def __post_init__(self) -> None:
        for key, value in (("weight", self.weight), *self._parts[2].items()):
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{key} of the term {self.name!r}: expected a finite number, got {value}")

    @property
    def _parts(self) -> tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]:
        """The function without its parameters, and these."""
        f = self.function
        return (f.func, f.args, f.keywords) if isinstance(f, partial) else (f, (), {})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Term):
            return NotImplemented
        mine, theirs = ((t.name, t.weight, t.hint, t.paired, t._parts) for t in (self, other))
        return mine == theirs

    def __hash__(self) -> int:
        return hash((self.name, self.weight, self.hint, self.paired))

    @property
    def spec(self) -> tuple[tuple[str, Any], ...]:
        """Its parameters by name, as plain values; ConfigError for one that cannot be written, such as a lambda."""
        given = ((key, value) for key, value in self._parts[2].items() if key != "hint")
        return tuple((key, described(value, key) if callable(value) else value) for key, value in given)

    def describe(self) -> dict[str, Any]:
        """Write the term as plain values; two terms with equal descriptions compute the same.

        The function goes without saying where it is lrkd's own under the term's name.

        Raises:
            ConfigError: A lambda or a function made inside another, see `identifiers.described`.
        """
        told = {"name": self.name, "weight": self.weight, "hint": self.hint, **dict(self.spec)}
        function, positional, _ = self._parts
        own = getattr(function, "__module__", "") == __name__ and function.__name__ == f"_{self.name}"
        if positional or not own:
            what = f"the function of the term {self.name!r}"
            told["function"] = described(partial(function, *positional) if positional else function, what)
        return told


def feature(
    distance: Distance = cosine, weight: float = 20.0, stages: str | tuple[int, ...] = "all", hint: bool = True
) -> Term:
    """Compare feature maps by `feature_loss`.

    Args:
        distance: Between two maps.
        weight: F-SKD's by default.
        stages: Stage numbers from 0, or "all".
        hint: Whether the student's maps pass through hint layers first.

    Raises:
        ConfigError: Other stages.
    """
    if stages != "all" and not (isinstance(stages, tuple) and stages and all(isinstance(i, int) for i in stages)):
        raise ConfigError(f'stages: expected "all" or a tuple of stage numbers such as (2, 3), got {stages!r}')
    function = partial(_feature, distance=distance, stages=stages, hint=hint)
    return Term("feature", weight, function, hint, paired=stages == "all")


def _feature(student: View, teacher: View, distance: Distance, stages: str | tuple[int, ...], hint: bool) -> Tensor:
    s, t = (student.hinted if hint else student.features), teacher.features
    if stages != "all":
        if not all(-len(x) <= int(i) < len(x) for i in stages for x in (s, t)):
            raise ConfigError(
                f"stages: expected numbers below {len(s)} of the student and {len(t)} of the teacher, got {stages}"
            )
        s, t = [s[int(i)] for i in stages], [t[int(i)] for i in stages]
    return feature_loss(s, t, distance)


def cross(distance: Distance = cosine, weight: float = 4.0) -> Term:
    """Compare the relation of a sample to its partner on the last stage by `cross_loss`, F-SKD's second term."""
    return Term("cross", weight, partial(_cross, distance=distance), hint=True)


def _cross(student: View, teacher: View, distance: Distance) -> Tensor:
    partner = partners(teacher.embedding, teacher.labels)
    return cross_loss(student.hinted[-1], teacher.features[-1], partner, distance)


def attention(distance: Distance = cosine, weight: float = 5.0, centred: bool = False, constant: bool = False) -> Term:
    """Compare CBAM's channel and spatial maps of every block by `attention_loss`, whose options these are.

    Raises:
        ConfigError: Both centred and constant.
    """
    if centred and constant:
        raise ConfigError("attention: expected one of centred and constant, got both, and a centred constant is zero")
    # Committed runs are older than `constant` and their descriptions do not have it.
    options: dict[str, Any] = {"constant": True} if constant else {}
    function = partial(_attention, distance=distance, centred=centred, **options)
    return Term("attention", weight, function, paired=True)


def _attention(student: View, teacher: View, distance: Distance, centred: bool, constant: bool = False) -> Tensor:
    s, t = [*student.channel, *student.spatial], [*teacher.channel, *teacher.spatial]
    return attention_loss(s, t, distance, centred, constant)


def places(distance: Distance = cosine, weight: float = 5.0, constant: bool = False) -> Term:
    """Compare CBAM's spatial maps alone by `attention_loss`; a teacher with one map holds it against every block's.

    Args:
        distance: One number a sample.
        weight: Finite.
        constant: As in `attention`.
    """
    return Term("places", weight, partial(_places, distance=distance, constant=constant))


def _places(student: View, teacher: View, distance: Distance, constant: bool) -> Tensor:
    target = teacher.spatial
    if len(target) == 1:
        target = [interpolate(target[0], s.shape[2:], mode="bilinear", align_corners=False) for s in student.spatial]
    return attention_loss(student.spatial, target, distance, constant=constant)


def activation_attention(weight: float = 1000.0) -> Term:
    """Compare the energy of feature maps by `activation_attention_loss`: AT."""
    return Term("at", weight, _at, paired=True)


def _at(student: View, teacher: View) -> Tensor:
    return activation_attention_loss(student.features, teacher.features)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ConfigError(f"temperature: expected a number above zero, got {temperature}")


def logits(weight: float = 1.0, temperature: float = 4.0) -> Term:
    """Compare softened logits by `logit_loss`; ConfigError for a temperature that is not above zero."""
    _check_temperature(temperature)
    return Term("logits", weight, partial(_logits, temperature=temperature))


def _logits(student: View, teacher: View, temperature: float) -> Tensor:
    return logit_loss(student.logits, teacher.logits, temperature)


def relational(weight: float = 40.0, distance_weight: float = 1.0, angle_weight: float = 2.0) -> Term:
    """Compare the geometry of a batch of embeddings, `distance_weight` RKD-D + `angle_weight` RKD-A."""
    function = partial(_rkd, distance_weight=distance_weight, angle_weight=angle_weight)
    return Term("rkd", weight, function)


def _rkd(student: View, teacher: View, distance_weight: float, angle_weight: float) -> Tensor:
    s, t = student.embedding, teacher.embedding
    return distance_weight * rkd_distance_loss(s, t) + angle_weight * rkd_angle_loss(s, t)


def relation(weight: float = 4.0, temperature: float = 0.1) -> Term:
    """Compare the relations of embeddings by `relation_loss`, AIRD's; ConfigError for a temperature not above zero."""
    _check_temperature(temperature)
    return Term("relation", weight, partial(_relation, temperature=temperature))


def _relation(student: View, teacher: View, temperature: float) -> Tensor:
    return relation_loss(student.embedding, teacher.embedding, temperature)


def similarity_preserving(weight: float = 3000.0) -> Term:
    """Compare the similarities in a batch on the last stage by `similarity_preserving_loss`: SP."""
    return Term("sp", weight, _sp)


def _sp(student: View, teacher: View) -> Tensor:
    return similarity_preserving_loss(student.features[-1], teacher.features[-1])


def embedding(distance: Distance = cosine, weight: float = 20.0) -> Term:
    """Compare the embeddings themselves by a distance."""
    return Term("embedding", weight, partial(_embedding, distance=distance))


def _embedding(student: View, teacher: View, distance: Distance) -> Tensor:
    return distance(student.embedding, teacher.embedding).mean()


def octuplet(weight: float = 1.0, margin: float = 0.5) -> Term:
    """Apply `octuplet_loss` to the student's embeddings of small images and, as the teacher's, of the sharp ones."""
    return Term("octuplet", weight, partial(_octuplet, margin=margin))


def _octuplet(student: View, teacher: View, margin: float) -> Tensor:
    return octuplet_loss(student.embedding, teacher.embedding, student.labels, margin)


def regression(distance: Distance = cosine, weight: float = 20.0) -> Term:
    """Compare the embeddings of the chosen images: SKD (arXiv 1811.09998), see `lrkd.distill.selection`.

    Averaged over the chosen images of the batch, not over the batch, so that a smaller choice weighs no less; zero in a
    batch without any.
    """
    return Term("regression", weight, partial(_regression, distance=distance))


def _regression(student: View, teacher: View, distance: Distance) -> Tensor:
    each = distance(student.embedding, teacher.embedding)
    if teacher.chosen is None:
        return each.mean()
    return (each * teacher.chosen).sum() / teacher.chosen.sum().clamp_min(1)
