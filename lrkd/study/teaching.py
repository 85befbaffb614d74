"""Who teaches a run, and whether what its method needs is there: checked before anything is trained."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lrkd import userfile
from lrkd.data.layout import read_layout
from lrkd.data.tables import Faces
from lrkd.distill import methods, parts
from lrkd.distill.terms import Term, View
from lrkd.errors import ConfigError, first_line
from lrkd.models import backbones, heads
from lrkd.models.backbones import Hints
from lrkd.models.heads import Head
from lrkd.models.layers import Network, Output, evaluating
from lrkd.models.wrap import Embeddings
from lrkd.study import networks
from lrkd.study.spec import PROCEDURAL, Spec, teacher_label, teacher_spec


def build(spec: Spec, seed: int, classes: int) -> tuple[Network, Head]:
    """Make a run's network and head, untrained.

    Raises:
        ConfigError: A user's network for images that are neither as large as the data's nor as the run's side.
    """
    made = spec.model
    if "function" in made:
        found = userfile.load_object(spec.student)
        network = networks.make_network(found, made["size"], made["embedding"], seed)
        if network.size not in {spec.scale.size, spec.side}:
            raise ConfigError(
                f"student {spec.student}: expected a network for images of {spec.scale.size} px, or of the run's side "
                f"{spec.side}, got one for {network.size} px"
            )
    else:
        network = backbones.build(**made, seed=seed)
    return network, heads.build(classes=classes, dim=network.embedding, seed=seed, **spec.scale.head)


def untrained_teacher(spec: Spec, classes: int) -> tuple[Network, Head]:
    """Make the network of method "random-teacher" and its like."""
    return build(
        teacher_spec(spec.scale, spec.teacher_seed, spec.source, spec.teacher), 1000 + spec.teacher_seed, classes
    )


def lent_network(spec: Spec, faces: Faces) -> Network:
    """Load a teacher from a file for a run's training images; one for images of another size is shown them resized."""
    count = len(faces) if spec.source == PROCEDURAL else len(read_layout(spec.source).labels)
    size, length = spec.scale.size, spec.scale.embedding
    return networks.resized(
        networks.load_teacher(spec.teacher, size, length, spec.teacher_seed, rows=faces.rows, count=count), size
    )


def check(spec: Spec, student: tuple[Network, Head], teacher: Network, head: Head | None) -> None:
    """Raise ConfigError where a run's method needs what its networks do not show, or what does not fit together.

    Args:
        spec: The run.
        student: Its network and head.
        teacher: Its teacher, for images of the data's size, trained or not.
        head: The teacher's, whose classes are the student's; None without.
    """
    method, (network, own) = spec.method, student
    kinds = {method.teacher, "trained"}
    known = {name: other.terms for name, other in methods.METHODS.items() if other.teacher in kinds}
    named = {
        "student": spec.student or type(network).__name__,
        "teacher": teacher_label(spec) or type(teacher).__name__,
    }
    parts.check(method.terms, network, own, role="student", name=named["student"], method=method.name, methods=known)
    parts.check(method.terms, teacher, head, name=named["teacher"], method=method.name, methods=known)
    shown = _answers(spec, network, teacher)
    _check_losses(method.name, lambda: _losses(method.terms, network, teacher, *shown))
    said = _misfit(method.terms, network, teacher, *shown)
    if said is None or _misfit(method.terms, teacher, teacher, shown[1], shown[1]) is not None:
        return  # a loss that fails of a network and itself does so for another reason, such as too few images
    fit = [name for name, terms in known.items() if _fits(terms, network, teacher, head, shown)]
    stages = [", ".join("x".join(map(str, part.shape[1:])) for part in out.features) for out in shown]
    if stages[0] != stages[1] and any("features" in parts.read(term) for term in method.terms):
        said = f"the shapes of their stages differ: {stages[0]} of the student, {stages[1]} of the teacher"
    raise ConfigError(
        f"method {method.name!r}: student {named['student']} and teacher {named['teacher']} do not fit together "
        f"({said}); these methods work: {', '.join(fit) or 'none of lrkd'}"
    )


def _answers(spec: Spec, network: Network, teacher: Network) -> tuple[Output, Output]:
    """What student and teacher show of four images."""
    generator = torch.Generator().manual_seed(0)
    sharp = torch.rand(4, 3, spec.scale.size, spec.scale.size, generator=generator)
    seen = torch.rand(4, 3, network.size, network.size, generator=generator)

    def ask(one: Network, x: Tensor) -> Output:
        if isinstance(one, Embeddings):
            return one.answers(len(one))(torch.arange(4) % len(one), None)
        with evaluating(one), torch.no_grad():
            out: Output = one(x * 2 - 1)
        return out

    given = seen if spec.method.teacher in ("own-side", "itself") else sharp
    return ask(network, seen), ask(teacher, given)


def _losses(terms: Sequence[Term], network: Network, teacher: Network, s: Output, t: Output) -> dict[str, Any]:
    """Compute each term of these answers."""
    labels, logits = torch.tensor([0, 0, 1, 1]), torch.zeros(4, 2)
    hinted = s.features
    with torch.no_grad():
        if any(term.hint for term in terms):
            hinted = Hints(network.widths, teacher.widths)(s.features)
        views = (
            View(s.embedding, s.features, hinted, s.channel, s.spatial, logits, labels),
            View(t.embedding, t.features, t.features, t.channel, t.spatial, logits, labels),
        )
        return {term.name: term.function(*views) for term in terms}


def _misfit(terms: Sequence[Term], network: Network, teacher: Network, s: Output, t: Output) -> str | None:
    """Why terms cannot be computed of these answers, in a line; None where they can."""
    try:
        _losses(terms, network, teacher, s, t)
    except Exception as error:  # a user's loss may raise anything
        return first_line(error)
    return None


def _check_losses(name: str, losses: Callable[[], dict[str, Any]]) -> None:
    """Raise ConfigError for a loss that is not one number, and for one that asks a view for what no view has."""
    try:
        found = losses()
    except (AttributeError, NameError) as error:
        raise ConfigError(f"method {name!r}: a loss fails: {error}; a View has {', '.join(View._fields)}") from error
    except Exception:  # networks that do not fit, which `check` tells next, or too few images
        return
    for term, value in found.items():
        if not isinstance(value, Tensor) or value.ndim:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"method {name!r}: term {term!r}: expected a loss of one number, such as a mean, got {got}"
            )


def _fits(
    terms: Sequence[Term], network: Network, teacher: Network, head: Head | None, shown: tuple[Output, Output]
) -> bool:
    there = parts.shown(teacher, head)
    return all(parts.read(term) <= there for term in terms) and _misfit(terms, network, teacher, *shown) is None
