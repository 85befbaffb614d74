"""Methods as data: which teacher, which terms. `get` a named one or a user's, or `replace` parts of one."""

import re
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args

from lrkd.distill.distances import Distance, cosine, euclidean, lp, on_unit, smooth_l1
from lrkd.distill.terms import (
    Term,
    activation_attention,
    attention,
    cross,
    embedding,
    feature,
    logits,
    octuplet,
    places,
    regression,
    relation,
    relational,
    similarity_preserving,
)
from lrkd.errors import ConfigError
from lrkd.userfile import is_reference, load_object

TeacherKind = Literal["none", "trained", "random", "shuffled", "own-side", "itself", "information", "scrambled"]
TRUTH = ("information", "scrambled")  # kinds that are told by the renderer
ALONE = ("none", "itself", *TRUTH)  # kinds without another network


@dataclass(frozen=True)
class Choice:
    """Of which training images the teacher's features are learned.

    Attributes:
        kind: "graph" (`lrkd.distill.selection`, by informativeness less redundancy), "top" (the most informative ones,
            without the graph) or "random".
        fraction: How many of all, above 0 and at most 1.
        beta: Weight of the graph's edges; at 1 / neighbours all edges of a face together weigh about as much as its
            informativeness.
        neighbours: Of a node in the graph.
    """

    kind: Literal["graph", "top", "random"]
    fraction: float
    beta: float = 0.1
    neighbours: int = 10

    def __post_init__(self) -> None:
        if self.kind not in ("graph", "top", "random") or not 0 < self.fraction <= 1:
            raise ConfigError(f"expected kind graph, top or random, and a fraction above 0 and at most 1, got {self}")


@dataclass(frozen=True)
class Method:
    """A method of distillation.

    Attributes:
        name: Letters, digits and `-_.,+*@()=`, as it is part of a folder's name.
        title: For tables and figures.
        terms: What is added to the margin head's cross-entropy.
        teacher: "trained" (on HR images), "random" (the same network, untrained), "shuffled" (the trained one, shown
            each image's neighbour in the batch), "own-side" (trained at the student's side, and shown what the student
            is shown), "itself" (the student, shown the sharp images too), "information" (the renderer's own map of
            where the image tells of the person, `lrkd.study.information`), "scrambled" (that map's values at random
            places) or "none".
        source: Where it is from.
        note: How ours deviates.
        start: The method whose finished run, of the same seed, lends its weights to begin with.
        choice: Of which images the teacher's features are learned; None: of all.
        compact: Whether the teacher's embeddings are first refitted to the training people (`lrkd.distill.bridge`).
    """

    name: str
    title: str
    terms: tuple[Term, ...] = ()
    teacher: TeacherKind = "trained"
    source: str = ""
    note: str = ""
    start: str | None = None
    choice: Choice | None = None
    compact: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w@(][\w .,+*@()=-]{0,99}", self.name):
            raise ConfigError(
                f"method: expected a name of up to 100 letters, digits and -_.,+*@()=, as it is part of a folder's "
                f"name, got {self.name!r}"
            )
        terms = (self.terms,) if isinstance(self.terms, Term) else tuple(self.terms)
        if wrong := [term for term in terms if not isinstance(term, Term)]:
            raise ConfigError(f"method {self.name!r}: expected terms of class Term, got {type(wrong[0]).__name__}")
        object.__setattr__(self, "terms", terms)
        if self.teacher not in get_args(TeacherKind):
            kinds = ", ".join(get_args(TeacherKind))
            raise ConfigError(f"method {self.name!r}: expected a teacher of {kinds}, got {self.teacher!r}")
        if (self.teacher == "none") != (not self.terms):
            raise ConfigError(
                f"method {self.name!r}: expected terms exactly when it has a teacher, "
                f"got {len(terms)} terms and teacher {self.teacher!r}"
            )

    def describe(self) -> dict[str, Any]:
        """Write what determines the training as plain values; titles and notes do not.

        Raises:
            ConfigError: A term that cannot be described, such as one with a lambda.
        """
        told = {"name": self.name, "teacher": self.teacher, "terms": [term.describe() for term in self.terms]}
        more: dict[str, Any] = {"start": self.start, "choice": None if self.choice is None else asdict(self.choice)}
        more["compact"] = self.compact or None
        return told | {key: value for key, value in more.items() if value is not None}


FSKD = (feature(cosine, weight=20.0),)
AIRD: dict[str, Any] = {
    "source": "arXiv 2409.02049",
    "note": "a re-derivation from the abstract: no equation or weight is known",
}
# SKD's fraction and beta: the best for validation people in study `fractions`. Four times its weight is no better.
SKD_FRACTION, SKD_WEIGHT = 0.75, 20.0
SELECTED = Method(
    "skd",
    "SKD, selected features",
    (regression(cosine, SKD_WEIGHT),),
    source="arXiv 1811.09998",
    note="a re-derivation from the abstract: the energy, the solver and the layers are not known",
    start="none",
    choice=Choice("graph", SKD_FRACTION, beta=0.3),
)


def _control(name: str, title: str, note: str) -> dict[str, Any]:
    return {"name": name, "title": title, "source": "control", "note": note}


def _shuffled(name: str, of: str, terms: tuple[Term, ...]) -> Method:
    note = "the teacher sees each image's neighbour in the batch"
    return Method(name, f"{of}, shuffled teacher", terms, "shuffled", source="control", note=note)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("none", "no distillation", teacher="none", note="the same degradation, head and schedule"),
        Method("logit-kd", "logits (T = 4)", (logits(1.0, 4.0),), source="arXiv 1503.02531"),
        Method("fitnet", "FitNet (MSE)", (feature(lp(2), weight=1.5),), source="arXiv 1412.6550"),
        Method("at", "activation attention", (activation_attention(1000.0),), source="arXiv 1612.03928"),
        Method("rkd", "relational (RKD)", (relational(40.0),), source="arXiv 1904.05068"),
        Method("sp", "similarity preserving", (similarity_preserving(3000.0),), source="arXiv 1907.09682"),
        Method("embedding-cos", "embedding cosine", (embedding(cosine, 20.0),), source="ours, the plainest target"),
        Method("embedding-l2", "embedding, L2", (embedding(lp(2), 200.0),), source="ours, the plainest target"),
        Method("fskd", "F-SKD (feature cosine)", FSKD, source="arXiv 2303.04681", note="L_point, the paper's claim"),
        Method(
            "fskd-cross",
            "F-SKD + relation",
            (*FSKD, cross(cosine, 4.0)),
            source="arXiv 2303.04681",
            note="L_point and L_cross, as its table scripts run it",
        ),
        Method("fskd-l1", "features, L1", (feature(lp(1), weight=20.0),), source="ours, F-SKD with another distance"),
        Method("fskd-l2", "features, L2", (feature(lp(2), weight=20.0),), source="ours, F-SKD with another distance"),
        Method(
            "fskd-unit-l2",
            "features, L2 of unit vectors",
            (feature(on_unit(euclidean), weight=10.0),),
            source="ours, F-SKD with another distance",
            note="unsquared: squared it would be twice the cosine distance, an identity and no method",
        ),
        # Of AIRD and its ablations each has the weights that were best for validation people in study `relations`.
        Method("aird", "AIRD (instance + relation)", (embedding(cosine, 20.0), relation(1.0)), **AIRD),
        Method("aird-instance", "AIRD, instance only", (embedding(cosine, 80.0),), **AIRD),
        Method("aird-relation", "AIRD, relation only", (relation(4.0),), **AIRD),
        Method("aird-rkd", "AIRD, RKD for relation", (embedding(cosine, 20.0), relational(10.0)), **AIRD),
        Method("askd", "A-SKD (attention cosine)", (attention(cosine, 5.0),), source="arXiv 2209.14498"),
        Method(
            "askd-centred",
            "A-SKD, maps centred",
            (attention(cosine, 5.0, centred=True),),
            source="ours, on arXiv 2209.14498",
            note="maps centred over the batch, so that the map common to all images carries no loss",
        ),
        Method(
            "askd-constant",
            "A-SKD, constant target",
            (attention(cosine, 5.0, constant=True),),
            source="control",
            note="towards the batch mean of the teacher's maps, which says nothing of the image",
        ),
        Method(
            "random-teacher", "F-SKD, random teacher", FSKD, teacher="random", source="control", note="never trained"
        ),
        _shuffled("shuffled-teacher", "F-SKD", FSKD),
        _shuffled("embedding-shuffled", "embedding", (embedding(cosine, 20.0),)),
        _shuffled("askd-shuffled", "A-SKD", (attention(cosine, 5.0),)),
        Method(
            "embedding-own-side",
            "embedding, teacher at the student's side",
            (embedding(cosine, 20.0),),
            teacher="own-side",
            source="control",
            note="the teacher was trained at the student's side and sees what the student sees",
        ),
        Method(
            "askd-places",
            "A-SKD, spatial maps alone",
            (places(),),
            source="ours, on arXiv 2209.14498",
            note="the teacher's spatial maps without its channel maps",
        ),
        Method(
            "askd-information",
            "A-SKD, true information",
            (places(),),
            teacher="information",
            source="ours, on arXiv 2209.14498",
            note="towards where this image tells of its person, by the renderer's derivatives at the student's side",
        ),
        Method(
            "askd-information-mean",
            "A-SKD, mean information",
            (places(constant=True),),
            teacher="information",
            source="control",
            note="towards the batch mean of these maps, which says nothing of the image",
        ),
        Method(
            "askd-information-scrambled",
            "A-SKD, scrambled information",
            (places(),),
            teacher="scrambled",
            source="control",
            note="towards the values of these maps at random places, others for each image",
        ),
        Method(
            "octuplet",
            "octuplet loss",
            (octuplet(),),
            teacher="itself",
            source="arXiv 2207.06726",
            note="added to the margin head's loss from the start, where theirs fine-tunes; a sharp image and its small "
            "version are a positive pair too; each image is shown in both forms, so a step costs twice",
        ),
        Method(
            "bridge",
            "Bridge Distillation",
            (regression(cosine, 20.0),),
            source="arXiv 2409.11786",
            note="a re-derivation from the abstract: the cross-dataset step is a linear discriminant, in closed form",
            compact=True,
        ),
        SELECTED,
        replace(SELECTED, **_control("skd-all", "SKD, all features", "nothing is selected"), choice=None),
        replace(
            SELECTED,
            **_control("skd-top", "SKD, most informative", "as many, without regard to redundancy"),
            choice=Choice("top", SKD_FRACTION),
        ),
        replace(
            SELECTED,
            **_control("skd-random", "SKD, random features", "as many, at random"),
            choice=Choice("random", SKD_FRACTION),
        ),
        replace(
            SELECTED,
            **_control("skd-none", "SKD, no regression", "the second stage with classification alone"),
            teacher="none",
            terms=(),
            choice=None,
        ),
    )
}


# Methods that only `lrkd.study.answer` compares.
OF_WORLDS = (
    *("embedding-l2", "embedding-shuffled", "askd-shuffled", "embedding-own-side", "octuplet"),
    *("askd-places", "askd-information", "askd-information-mean", "askd-information-scrambled"),
)


def aird(instance: float = 0.0, relations: float = 0.0, rkd: float = 0.0) -> Method:
    """Make AIRD or an ablation with those weights, 0 for a term that is left out; named "aird@20+4+0"."""
    terms = ((embedding, instance), (relation, relations), (relational, rkd))
    name = "+".join(f"{weight:g}" for _, weight in terms)
    return Method(f"aird@{name}", f"AIRD at {name}", tuple(term(weight=w) for term, w in terms if w), **AIRD)


def skd(choice: Choice | None, weight: float = SKD_WEIGHT) -> Method:
    """Make SKD with that choice (None: all) and that weight of the regression.

    Named `skd-all` or `skd-top@0.25`, of the graph `skd@0.25`, with its beta `skd@0.25b0.3`; and `*5` for a weight.
    """
    name, told = "skd-all", ""
    if choice is not None:
        name = "skd" if choice.kind == "graph" else f"skd-{choice.kind}"
        told = f"@{choice.fraction:g}" + ("" if choice.beta == Choice.beta else f"b{choice.beta:g}")
    told += "" if weight == SKD_WEIGHT else f"*{weight:g}"
    return replace(METHODS[name], name=name + told, choice=choice, terms=(regression(cosine, weight),))


def scaled(method: Method, factor: float) -> Method:
    """Multiply the weights of all terms by a factor; the name stays."""
    if factor == 1:
        return method
    return replace(method, terms=tuple(replace(t, weight=float(f"{t.weight * factor:.4g}")) for t in method.terms))


# Distances between features, each with about the weight at which its gradient at an untrained student is as long as
# that of the cosine at F-SKD's 20 (`python -m benchmarks.gradients`). On unit vectors the squared L2 is twice the
# cosine and no other method, so its root is there instead.
MATCHED: dict[str, tuple[Distance, float]] = {
    distance.__name__: (distance, weight)
    for distance, weight in (
        (cosine, 20.0),
        (lp(1), 20.0),
        (lp(1.5), 14.0),
        (lp(2), 8.0),
        (lp(3), 2.0),
        (lp(4), 0.4),
        (smooth_l1, 28.0),
        (on_unit(euclidean), 28.0),
    )
}


def weighed(distance: str, weight: float) -> Method:
    """Make F-SKD with a distance of MATCHED at that weight, named "lp(2)@8"; ConfigError for another distance."""
    if distance not in MATCHED:
        raise ConfigError(f"distance: expected one of {', '.join(MATCHED)}, got {distance!r}")
    term = feature(MATCHED[distance][0], weight=weight)
    return Method(f"{distance}@{weight:g}", f"features, {distance}", (term,), source="ours, F-SKD reweighed")


def get(name: str) -> Method:
    """Find a method by its name, or load a user's from a file.

    Args:
        name: One of METHODS, or "file.py:NAME" for a `Method`, a `Term` or a list of terms in a file that you trust,
            which is run.

    Returns:
        The method. Terms alone become a method of the name NAME.

    Raises:
        ConfigError: No such method, with the nearest names; or what NAME is in the file is none.
    """
    if is_reference(name):
        return _user_method(name)
    if name.endswith(".py"):
        raise ConfigError(f'method: expected "{name}:NAME", NAME being a method in that file, got {name!r}')
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f'method: expected "file.py:NAME" or one of {", ".join(METHODS)}, got {name!r}{hint}')
    return METHODS[name]


def _user_method(reference: str) -> Method:
    found = load_object(reference)
    own = reference.rpartition(":")[2]
    value = (found.value,) if isinstance(found.value, Term) else found.value
    if isinstance(value, list | tuple) and value and all(isinstance(term, Term) for term in value):
        value = Method(own, own, tuple(value), source=found.name)
    if not isinstance(value, Method):
        raise ConfigError(
            f"{reference}: expected a Method, a Term or a list of Terms, got {_kind(found.value)}; "
            f"`{own} = Term({own.lower()!r}, 1.0, your_loss)` makes one of a loss"
        )
    if value.name in METHODS:
        raise ConfigError(f"{reference}: expected a name of its own, got {value.name!r}, one of lrkd's methods")
    try:
        value.describe()
    except ConfigError as error:
        raise ConfigError(f"{reference}: {error}") from None
    return value


def _kind(value: Any) -> str:
    """What a value is, in words for a message."""
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(sorted({type(one).__name__ for one in value})) or 'nothing'}"
    return f"the class {value.__name__}" if isinstance(value, type) else f"{value!r:.40} ({type(value).__name__})"
