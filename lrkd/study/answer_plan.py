"""Which runs study `answer` needs: training lengths, weight ladders, entrants."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lrkd.distill import methods
from lrkd.errors import ConfigError, DataError
from lrkd.study.presets import Scale
from lrkd.study.spec import PROCEDURAL, Spec, config_hash
from lrkd.study.worlds import CHOOSING, JUDGING, Setting, World

LENGTHS = (3, 6, 12, 24, 48)
ENOUGH = 0.005  # doubling the length must gain `none` at least this much of validation
CHOSEN_BY = ("lr-lr", "hr-lr")
# Rungs of a ladder as factors, the middle first: what is stopped has looked near what is usual. A best rung at an end
# is followed by up to MORE rungs beyond it.
WEIGHTS, RATES, MORE = (1.0, 0.25, 4.0, 1 / 16, 16.0), (1.0, 0.5, 2.0, 0.25, 4.0), 3
TEACHERS = 1000  # the teacher of world w has seed 1000 + w, and so neither the student's first weights nor its order


@dataclass(frozen=True)
class Entrant:
    """A method and what its student is shown: "small" images of one side, "mixed" sides, the sharp one too, or "hr".

    weighed_as: the entrant whose ladder it takes its weight from; "": its own. same_people: whether it needs a teacher
    of the student's own people, as the logits of classes do: there is no setting T for it.
    """

    method: str
    shown: str = "small"
    weighed_as: str = ""
    same_people: bool = False

    @property
    def name(self) -> str:
        """As results and claims call it: "fskd", "fskd mixed", "fskd hr"."""
        return self.method if self.shown == "small" else f"{self.method} {self.shown}"


MAIN = tuple(map(Entrant, ("none", "embedding-cos", "fskd", "fskd-l2", "askd")))
REST = (
    Entrant("none", "mixed"),
    Entrant("embedding-shuffled", weighed_as="embedding-cos"),
    Entrant("shuffled-teacher", weighed_as="fskd"),
    Entrant("askd-shuffled", weighed_as="askd"),
    Entrant("askd-constant", weighed_as="askd"),
    Entrant("embedding-cos", "mixed"),
    Entrant("fskd", "mixed"),
    Entrant("askd", "mixed"),
    Entrant("octuplet", "mixed"),
    Entrant("embedding-l2"),
    Entrant("aird"),
    Entrant("fskd-unit-l2"),
    Entrant("fskd-l1"),
    Entrant("fskd-cross"),
    Entrant("askd-centred"),
    Entrant("at"),
    Entrant("rkd"),
    Entrant("sp"),
    Entrant("embedding-own-side", weighed_as="embedding-cos"),
    Entrant("none", "hr"),
    Entrant("embedding-cos", "hr", weighed_as="embedding-cos"),
    Entrant("fskd", "hr", weighed_as="fskd"),
)
# Attention by intervention: towards the teacher's places, and towards what the renderer knows.
ATTENTION = (
    Entrant("askd-places"),
    Entrant("askd-information"),
    Entrant("askd-information-mean", weighed_as="askd-information"),
    Entrant("askd-information-scrambled", weighed_as="askd-information"),
)
LOGITS = Entrant("logit-kd", same_people=True)
ENTRANTS = {entrant.name: entrant for entrant in (*MAIN, *REST, LOGITS)}  # of parts ladders and worlds
PHOTOGRAPHED = tuple(ENTRANTS[name] for name in ("none", "embedding-cos", "fskd", "fskd-l2", "askd", "none mixed"))
FEW = JUDGING[:6]  # worlds of all but the main ones and of attention; seeds of photographs


def named(names: Iterable[str]) -> tuple[Entrant, ...]:
    """Find entrants by their names; ConfigError names those that do not exist."""
    names = list(names)
    if wrong := [name for name in names if name not in ENTRANTS]:
        raise ConfigError(f"entrants: expected some of {', '.join(ENTRANTS)}, got {', '.join(map(repr, wrong))}")
    return tuple(ENTRANTS[name] for name in names)


@dataclass(frozen=True)
class Place:
    """Where runs are: a scale, a source of faces, the length in epochs, the learning rate (None: the recipe's)."""

    scale: Scale
    source: str = PROCEDURAL
    epochs: int | None = None
    lr: float | None = None

    @property
    def hardest(self) -> int:
        return self.scale.sides[-1]

    def spec(
        self, entrant: Entrant, world: int, setting: Setting, factor: float = 1.0, side: int | None = None
    ) -> Spec:
        """The run of an entrant in a world, its weights times `factor`; `side` (the hardest) where it has one."""
        shown: dict[str, int | tuple[int, ...] | None] = {
            "small": self.hardest if side is None else side,
            "mixed": (self.scale.size, *self.scale.sides),
            "hr": None,
        }
        sides = shown[entrant.shown]
        method = methods.scaled(methods.get(entrant.method), factor)
        if method.teacher == "itself":  # it always shows the sharp image beside the small one
            sides = self.scale.sides
        return Spec(
            method,
            sides,
            world,
            self.scale,
            self.source,
            teacher_seed=TEACHERS + world,
            world=World(world, setting),
            epochs=self.epochs,
            lr=self.lr,
        )


def with_needs(wanted: Iterable[Spec]) -> list[Spec]:
    """List the runs, each behind those that it needs, each once (two settings may name the same run)."""
    found: dict[str, Spec] = {}
    for spec in wanted:
        for each in (*spec.needs.values(), spec):
            found.setdefault(config_hash(each), each)
    return list(found.values())


# ---------------------------------------------------------------------------------------------------------- choosing


def validation(table: pd.DataFrame, wanted: Sequence[Spec]) -> float | None:
    """Average the validation accuracy, small against small and sharp against small, of runs that a table has.

    Returns:
        The mean; None while a run is missing; -inf where one diverged. Of mixed sides the two hardest count.
    """
    values = []
    for spec in wanted:
        rows = table[(table["config"] == config_hash(spec)) & (table["people"] == "validation")]
        if rows.empty:
            return None
        if (rows["status"] != "ok").any():
            return -np.inf
        sides = spec.scale.sides[-2:] if isinstance(spec.side, tuple) else (rows["side"].iloc[0],)
        values.append(rows.loc[rows["endpoint"].isin(CHOSEN_BY) & rows["side"].isin(sides), "value"].mean())
    return float(np.mean(values))


def curve(table: pd.DataFrame) -> pd.DataFrame:
    """Show what length is worth: the mean validation accuracy of `none` over worlds and both protocols.

    Args:
        table: Of part `length`.

    Returns:
        `epochs, value, gain` (over half the length, in the worlds that have both), by rising length.
    """
    chosen = table["people"].eq("validation") & table["role"].eq("student") & table["method"].eq("none")
    rows = table[chosen & table["endpoint"].isin(CHOSEN_BY)]
    by_world = rows.groupby(["epochs", "world"])["value"].mean().unstack("world")
    gains = []
    for epochs in by_world.index:
        half = by_world.reindex([epochs / 2]).iloc[0]
        gains.append((by_world.loc[epochs] - half).mean())
    return pd.DataFrame({"epochs": by_world.index, "value": by_world.mean(axis=1).to_numpy(), "gain": gains})


def length(table: pd.DataFrame) -> int:
    """Choose the study's length: the first at which doubling gains `none` less than half a point of validation.

    Returns:
        Epochs; the longest that was tried where doubling always gained more.

    Raises:
        DataError: The table cannot tell yet.
    """
    found = curve(table)
    for row in found.itertuples():
        if row.gain < ENOUGH:
            return int(row.epochs) // 2
    if len(found) and found["epochs"].max() >= LENGTHS[-1]:
        return int(found["epochs"].max())
    raise DataError(
        f"part length: expected lengths until doubling gains the student without a teacher less than {ENOUGH:.1%}, got "
        f"{', '.join(map(str, found['epochs'])) or 'none'}: finish `lrkd study answer --part length` first"
    )


def climb(scores: Callable[[float], float | None], rungs: Sequence[float]) -> tuple[list[float], float | None]:
    """Climb a ladder until the best rung has a worse one on either side.

    Args:
        scores: Of a rung, None while it is not known.
        rungs: To begin with. A best rung at an end asks for the next one beyond it, `MORE` times.

    Returns:
        The rungs that are wanted so far, and the best one where it is known.
    """
    wanted = list(rungs)
    step = min(b / a for a, b in itertools.pairwise(sorted(rungs)))
    for _ in range(MORE + 1):
        found = [scores(rung) for rung in wanted]
        if any(value is None for value in found):
            return wanted, None
        best = wanted[int(np.argmax(np.asarray(found, np.float64)))]
        if min(wanted) < best < max(wanted):
            break
        wanted.append(best / step if best == min(wanted) else best * step)
    else:
        wanted.pop()
    return wanted, best


@dataclass(frozen=True)
class Chosen:
    """What the ladders have come to: runs that they still want, the learning rate, and the factor of each entrant."""

    wanted: list[Spec]
    lr: float | None
    factors: dict[str, float]

    @property
    def rate(self) -> float:
        """Raises DataError before the rates of `none` have been compared, at the best of which all are trained."""
        if self.lr is None:
            raise DataError("the rates of none have not been compared: finish `lrkd study answer --part ladders` first")
        return self.lr

    def knows(self, entrant: Entrant) -> bool:
        """Return whether the ladder that an entrant takes its weight from has ended."""
        return entrant.method == "none" or (entrant.weighed_as or entrant.name) in self.factors

    def factor(self, entrant: Entrant) -> float:
        """Raises DataError for an entrant whose ladder has not ended."""
        name = entrant.weighed_as or entrant.name
        if entrant.method == "none":
            return 1.0
        if name not in self.factors:
            raise DataError(f"{name}: its ladder has not ended: finish `lrkd study answer --part ladders` first")
        return self.factors[name]


def ladders(place: Place, entrants: Sequence[Entrant], table: pd.DataFrame, setting: Setting) -> Chosen:
    """Plan the rates of `none` first, then the weights of every entrant that has its own, at the rate best for it.

    Args:
        place: Where the runs are.
        entrants: Whose weights are sought; a weight that is another's is sought on that one's ladder.
        table: Of the results so far.
        setting: Of the worlds.

    Returns:
        What is still wanted, and what has been chosen.
    """
    none, usual = MAIN[0], place.spec(MAIN[0], CHOOSING[0], setting).schedule.lr

    def rated(factor: float) -> list[Spec]:
        return [replace(place, lr=float(f"{usual * factor:.4g}")).spec(none, w, setting) for w in CHOOSING]

    rungs, best = climb(lambda factor: validation(table, rated(factor)), RATES)
    wanted = [spec for factor in rungs for spec in rated(factor)]
    if best is None:
        return Chosen(wanted, None, {})
    there, factors = replace(place, lr=float(f"{usual * best:.4g}")), {}
    by_name = {**ENTRANTS, **{each.name: each for each in entrants}}
    # Entrant by entrant: a study that is stopped has whole ladders, of the first ones.
    for entrant in dict.fromkeys(by_name.get(each.weighed_as, each) for each in entrants):
        if entrant.method == "none":
            continue

        def weighed(factor: float, entrant: Entrant = entrant) -> list[Spec]:
            known: Setting = "S" if entrant.same_people else setting
            return [there.spec(entrant, w, known, factor) for w in CHOOSING]

        rungs, best = climb(lambda factor: validation(table, weighed(factor)), WEIGHTS)
        wanted += [spec for factor in rungs for spec in weighed(factor)]
        if best is not None:
            factors[entrant.name] = best
    return Chosen(wanted, there.lr, factors)
