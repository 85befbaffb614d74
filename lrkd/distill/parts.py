"""What a loss reads of a network, and what a network shows, so that what is missing is named before training."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch

from lrkd.distill.terms import Term, View
from lrkd.errors import ConfigError
from lrkd.models.heads import Head
from lrkd.models.layers import Network, Output, evaluating

# The parts of a network's answer, and what they are called.
PARTS = {
    "embedding": "embedding",
    "features": "feature maps",
    "channel": "attention maps",
    "spatial": "attention maps",
    "logits": "head, and so no logits",
}
Role = Literal["student", "teacher"]


class Watched:
    """A view that notes in `seen` which of its parts are read, a student's hinted features as its features."""

    def __init__(self, view: View) -> None:
        self._view, self.seen = view, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.seen.add("features" if name == "hinted" else name)
        return getattr(self._view, name)


def _example() -> View:
    """What a network of four stages shows of four images of two people."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 2, 2), (4, 1, 1), (1, 2, 2))
    features, channel, spatial = (tuple(torch.rand(4, *s, generator=generator) for _ in range(4)) for s in shapes)
    embedding, logits = torch.rand(4, 8, generator=generator), torch.rand(4, 2, generator=generator)
    return View(embedding, features, features, channel, spatial, logits, torch.tensor([0, 0, 1, 1]))


def read(term: Term, role: Role = "teacher") -> frozenset[str]:
    """Find which of PARTS a term reads of the student or of the teacher, by calling it on a small example.

    What a function would read after an error of its own, on this example, is not known.
    """
    student, teacher = Watched(_example()), Watched(_example())
    with suppress(Exception), torch.no_grad():  # a function of the user's makes anything of shapes it does not expect
        term.function(student, teacher)  # type: ignore[arg-type]
    return frozenset((teacher if role == "teacher" else student).seen & PARTS.keys())


def shown(network: Network, head: Head | None = None) -> frozenset[str]:
    """Find which of PARTS a network shows: its own word, or else one pass in evaluation mode; logits are its head's."""
    found = getattr(network, "parts", None)
    if found is None:
        at = next(network.parameters(), torch.empty(0)).device
        with evaluating(network), torch.no_grad():
            out = network(torch.zeros(2, 3, network.size, network.size, device=at))
        found = {name for name in Output._fields if len(getattr(out, name))}
    return frozenset(found) | ({"logits"} if head is not None else set())


def check(
    terms: Iterable[Term],
    network: Network,
    head: Head | None = None,
    *,
    role: Role = "teacher",
    name: str = "",
    method: str = "",
    methods: Mapping[str, Sequence[Term]] | None = None,
) -> None:
    """Raise ConfigError where a term reads what the network does not show.

    Args:
        terms: What is to be computed.
        network: The student or the teacher, which `role` says.
        head: Its class weights, or None; logits need them.
        name: What to call the network, such as its file.
        method: What to call that which has the terms; default: the term itself.
        methods: Methods to choose from, name -> terms; those that would work are named.
    """
    there = shown(network, head)
    if there == PARTS.keys():
        return  # nothing can be missing, and no function is called that might count its calls
    for term in terms:
        if lacking := read(term, role) - there:
            words = " and no ".join(dict.fromkeys(PARTS[part] for part in PARTS if part in lacking))
            who = f"{role} {name or type(network).__name__}"
            fit = [key for key, own in (methods or {}).items() if all(read(one, role) <= there for one in own)]
            works = f"; these methods work: {', '.join(fit)}" if fit else ""
            what = f"method {method!r}" if method else f"the term {term.name!r}"
            raise ConfigError(f"{who} has no {words}: {what} needs them{works}")
