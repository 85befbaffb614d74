"""The grids of runs of each study."""

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from lrkd.distill import methods
from lrkd.errors import ConfigError, DataError
from lrkd.evaluation.statistics import check_columns
from lrkd.study.presets import DESIGNS, Scale
from lrkd.study.spec import PROCEDURAL, Spec, teacher_spec

LIVE_METHODS = ("none", "fskd", "fskd-l2", "askd", "embedding-cos")
PHOTO_METHODS = ("none", "fskd", "askd", "embedding-cos")
DEEP_METHODS = ("none", "fskd", "askd", "askd-centred", "embedding-cos", "fskd-l2")
ATTENTION_METHODS = ("none", "askd", "askd-centred", "askd-constant", "fskd")
# Weights of the ladder in units of the matched one, the middle first: what is stopped has looked near the optimum.
RUNGS = (1.0, 0.25, 4.0, 16.0, 64.0, 256.0)
LADDER_SEED = 100  # of `relations` too
# The ablations of AIRD stay out of `core`, and so do those that came later.
COMPARED = tuple(
    name
    for name, method in methods.METHODS.items()
    if method.start is None and not name.startswith("aird-") and name not in methods.OF_WORLDS and not method.compact
)
AIRD_METHODS = ("none", "fskd", "askd", "embedding-cos", *(name for name in methods.METHODS if "aird" in name))
TRAINED_KERNELS = ("area-bicubic", "fskd", "askd-compat", "askd-isotropic")
INSTANCE, RELATION, RKD = (5.0, 20.0, 80.0), (1.0, 4.0, 16.0), (2.5, 10.0)
PRIMARY = ("cosine", "lp(2)")
EXPLORATORY = ("lp(1.5)", "lp(3)", "lp(4)")  # in no hypothesis: last
CONFIRMING_SEEDS = range(10, 16)
# The small student. DESIGN: of those within half a point (seeds differ by more) of the best that fits .15 MB, the one
# with the fewest multiply-adds, by study `designs` on validation people. With 512 numbers, which nobody has compared
# yet, it does not fit: LARGE_DESIGN is the largest that does. Between these two weights lies skd-all's.
SMALL_SIDE, SMALL_SIDES = 16, (6, 8, 12, 16, 24, 32)
DESIGN, LARGE_DESIGN = "plain-s", "mobile-m"
CHOOSING_SEEDS = (100, 101)
FRACTIONS, BETAS = (0.1, 0.25, 0.5, 0.75), (0.03, 0.3, 1.0)
REGRESSION_WEIGHTS = (5.0, 80.0)
CONFIRMING_TEACHERS = (2, 3)


def _core(scale: Scale, source: str) -> list[Spec]:
    """Every method of one stage, every side, 6 seeds over 2 teachers, the hardest side first.

    Of photographs four methods at the hardest side, and what resolution costs; all else too, after these, at a
    thorough scale.
    """
    hardest, others = scale.sides[-1], (None, *scale.sides[:-1])
    if source == PROCEDURAL:
        grid = _grid(COMPARED, (hardest,), 6) + _grid(COMPARED, scale.sides[-2::-1], 6)
        grid += _grid(("none",), (None,), 6)
    else:
        grid = _grid(PHOTO_METHODS, (hardest,), 6) + _grid(("none",), others, 3)
        if scale.thorough:
            grid += _grid(COMPARED, (hardest,), 6) + _grid(("none",), (None,), 6)
            grid += _grid(COMPARED, scale.sides[-2::-1], 6)
            grid = list(dict.fromkeys(grid))
    return _taught(scale, source, grid)


def _book(scale: Scale, source: str) -> list[Spec]:
    """What the book trains while it is built: a teacher, and five students at the hardest side, on a CPU briefly."""
    epochs = 2 if scale.name == "cpu" and source == PROCEDURAL else None
    students = [Spec(methods.get(name), scale.sides[-1], 0, scale, source, epochs=epochs) for name in LIVE_METHODS]
    return [teacher_spec(scale, 0, source), *students]


def _deep(scale: Scale, source: str) -> list[Spec]:
    """The papers' methods, their controls and the L2 of F-SKD, the hardest side first: 3 seeds over 2 teachers."""
    return _taught(scale, source, _grid(DEEP_METHODS, scale.sides[::-1], 3))


def _grid(names: Iterable[str], sides: Iterable[int | None], seeds: int) -> list[tuple[str, int | None, int]]:
    """Side by side, seed by seed: a study that is stopped has compared all methods on the seeds that it has."""
    return [(name, side, seed) for side, seed, name in itertools.product(sides, range(seeds), names)]


def _taught(scale: Scale, source: str, grid: Iterable[tuple[str, int | None, int]], student: str = "") -> list[Spec]:
    """Two teachers, and then the students of a grid: even seeds have the first teacher, odd ones the second."""
    return [
        *(teacher_spec(scale, seed, source) for seed in range(2)),
        *(Spec(methods.METHODS[n], side, seed, scale, source, seed % 2, student=student) for n, side, seed in grid),
    ]


def _attention(scale: Scale, source: str) -> list[Spec]:
    """The runs of `core` whose attention is looked at: 6 seeds at the hardest side, 3 at the others."""

    def wanted(spec: Spec) -> bool:
        seeds = 6 if spec.side == scale.sides[-1] else 3
        return spec.side is not None and spec.method.name in ATTENTION_METHODS and spec.seed < seeds

    return [spec for spec in _core(scale, source) if spec.role == "teacher" or wanted(spec)]


def _ladder(scale: Scale, source: str) -> list[Spec]:
    """Every distance of `methods.MATCHED` at RUNGS times its matched weight, at the hardest side, for validation."""
    return [
        teacher_spec(scale, 0, source),
        *(
            Spec(methods.weighed(name, float(f"{rung * weight:.3g}")), scale.sides[-1], LADDER_SEED, scale, source)
            for rung in RUNGS
            for name, (_, weight) in methods.MATCHED.items()
        ),
    ]


def _hypotheses(scale: Scale, source: str, ladder: pd.DataFrame | None = None) -> list[Spec]:
    """The runs that judge book/hypotheses.md, at the hardest side, with seeds and teachers that nothing was chosen on.

    6 seeds of none, of each distance at the weight that its ladder chose, and of A-SKD with its two controls, each with
    one of two teachers; cosine and lp(2), which are the primary comparison, with both. All but A-SKD's leave traces.
    """
    if ladder is None:
        raise ConfigError("study hypotheses takes its weights from study ladder: give its table by --ladder")
    raced = [methods.METHODS["none"], *(methods.weighed(name, weight) for name, weight in winners(ladder).items())]
    attentive = [methods.METHODS[name] for name in ("askd", "askd-centred", "askd-constant")]
    wanted = [teacher_spec(scale, teacher, source) for teacher in CONFIRMING_TEACHERS]
    for seed, method in itertools.product(CONFIRMING_SEEDS, (*raced, *attentive)):
        own = CONFIRMING_TEACHERS[seed % 2]
        crossed = method.name.partition("@")[0] in PRIMARY
        looks = 12 if method in raced else 0
        wanted += [
            Spec(method, scale.sides[-1], seed, scale, source, teacher, observations=looks)
            for teacher in CONFIRMING_TEACHERS
            if teacher == own or crossed
        ]
    return sorted(wanted, key=lambda spec: spec.method.name.partition("@")[0] in EXPLORATORY)


def rungs(ladder: pd.DataFrame) -> pd.DataFrame:
    """Take the runs of a ladder from the table of `lrkd study ladder`.

    Args:
        ladder: The table. The teacher's rows are left out, and all whose method has no weight in its name ("lp(2)@8").

    Returns:
        One row a run, sorted: `distance, weight, seed, accuracy, status`. accuracy: on the validation people, nan for a
        run that diverged.
    """
    check_columns(ladder, ["method", "seed", "status", "protocol", "accuracy"])
    kept = ladder["method"].astype(str).str.contains("@")
    kept &= (ladder["protocol"] == "validation") | (ladder["status"] != "ok")
    found = ladder[kept]
    parts = [name.rpartition("@") for name in found["method"]]
    table = pd.DataFrame(
        {
            "distance": [part[0] for part in parts],
            "weight": [float(part[2]) for part in parts],
            "seed": found["seed"].to_numpy(),
            "accuracy": found["accuracy"].where(found["status"] == "ok").to_numpy(np.float64),
            "status": found["status"].to_numpy(),
        }
    )
    return table.sort_values(["distance", "weight", "seed"], ignore_index=True)


def winners(ladder: pd.DataFrame) -> dict[str, float]:
    """Choose the weight of each distance of `methods.MATCHED` whose validation accuracy is highest in the table.

    A run that diverged loses. Raises DataError where a distance has no finished run in the table.
    """
    mean = rungs(ladder).groupby(["distance", "weight"])["accuracy"].mean().dropna()
    chosen = dict(mean.groupby("distance").idxmax())
    if missing := methods.MATCHED.keys() - chosen:
        raise DataError(
            f"ladder: has no validation row of {', '.join(sorted(missing))}: finish `lrkd study ladder` first"
        )
    return {name: float(chosen[name][1]) for name in methods.MATCHED}


def _relations(scale: Scale, source: str) -> list[Spec]:
    """AIRD and its ablations at several weights, at the hardest side, for validation."""
    weights = [(instance, weight, 0.0) for instance in (0.0, *INSTANCE) for weight in (0.0, *RELATION)][1:]
    weights += [(instance, 0.0, weight) for instance in INSTANCE for weight in RKD]
    return [
        teacher_spec(scale, 0, source),
        *(
            Spec(method, scale.sides[-1], LADDER_SEED, scale, source)
            for method in (methods.METHODS["none"], *(methods.aird(*each) for each in weights))
        ),
    ]


def _aird(scale: Scale, source: str) -> list[Spec]:
    """AIRD, its ablations and what it is held against at the hardest side: 6 seeds over 2 teachers, for test people."""
    return _taught(scale, source, _grid(AIRD_METHODS, scale.sides[-1:], 6))


def _kernels(scale: Scale, source: str) -> list[Spec]:
    """Students without a teacher at the hardest side, each trained with one of `TRAINED_KERNELS`: 3 seeds."""
    none = methods.METHODS["none"]
    return [
        Spec(none, scale.sides[-1], seed, scale, source, preset=preset)
        for seed in range(3)
        for preset in TRAINED_KERNELS
    ]


def _small(scale: Scale) -> str:
    """The small student's design, whose embedding is as long as the scale's teacher's."""
    return DESIGN if scale.embedding < 512 else LARGE_DESIGN


def _designs(scale: Scale, source: str) -> list[Spec]:
    """Every design of the small student without a teacher, for validation; the chosen one at other sides too."""
    none = methods.METHODS["none"]
    return [
        Spec(none, side, seed, scale, source, student=design)
        for seed in CHOOSING_SEEDS
        for design, side in (
            *((design, SMALL_SIDE) for design in DESIGNS),
            *((_small(scale), side) for side in SMALL_SIDES if side != SMALL_SIDE and side <= scale.size),
        )
    ]


def _fractions(scale: Scale, source: str) -> list[Spec]:
    """SKD's regression at several weights, its choice at several fractions and betas, for validation.

    A fraction is tried at two weights: the usual one, at which the regression as a whole weighs what it weighs on all
    images, and that times the fraction, at which each chosen image does.
    """
    usual, half = methods.SKD_WEIGHT, FRACTIONS[len(FRACTIONS) // 2 :]
    chosen = [methods.skd(None, weight) for weight in REGRESSION_WEIGHTS]
    for fraction in FRACTIONS:
        choices = [methods.Choice(kind, fraction) for kind in ("graph", "top", "random")]
        chosen += [methods.skd(choice, weight) for choice in choices for weight in (usual, usual * fraction)]
    chosen += [methods.skd(methods.Choice("graph", fraction, beta)) for fraction in half for beta in BETAS]
    others = [methods.METHODS[name] for name in ("none", "skd-none", "skd-all")]
    return [
        teacher_spec(scale, 0, source),
        *(
            Spec(method, SMALL_SIDE, seed, scale, source, student=_small(scale))
            for seed in CHOOSING_SEEDS
            for method in (*others, *chosen)
        ),
    ]


def _selection(scale: Scale, source: str) -> list[Spec]:
    """SKD and its controls at the chosen fraction: 6 seeds over 2 teachers, for test people."""
    names = ("none", *(name for name in methods.METHODS if name.startswith("skd")))
    return _taught(scale, source, _grid(names, (SMALL_SIDE,), 6), _small(scale))


STUDIES: dict[str, Callable[..., list[Spec]]] = {
    "core": _core,
    "book": _book,
    "deep": _deep,
    "attention": _attention,
    "ladder": _ladder,
    "hypotheses": _hypotheses,
    "relations": _relations,
    "aird": _aird,
    "kernels": _kernels,
    "designs": _designs,
    "fractions": _fractions,
    "selection": _selection,
}


def specs(name: str, scale: Scale, source: str = PROCEDURAL, ladder: pd.DataFrame | None = None) -> list[Spec]:
    """List the runs of a named study, teachers first.

    Args:
        name: One of `STUDIES`.
        scale: The preset.
        source: The data, as `Spec` has it.
        ladder: Results of study `ladder`, which `hypotheses` needs.

    Returns:
        The runs, in the order in which to train them.

    Raises:
        ConfigError: No such study.
    """
    if name not in STUDIES:
        raise ConfigError(f"study: expected one of {', '.join(STUDIES)}, got {name!r}")
    return STUDIES[name](scale, source, ladder) if name == "hypotheses" else STUDIES[name](scale, source)
