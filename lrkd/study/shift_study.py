"""How trained students fare on shifted faces, with and without adapted batch norm: what `lrkd adapt` measures.

Everything is chosen on validation people, with students that had no teacher: how far to turn each shift's dial, how
much FaceBN adapts, and from which batch size on. Test people are for the last word.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lrkd.data.degradation import KERNELS
from lrkd.data.shifts import SHIFTS
from lrkd.errors import MissingError
from lrkd.files import Table
from lrkd.study.experiment import ended_well, store_dir
from lrkd.study.measures import evaluation_preset
from lrkd.study.shift_bench import (
    BATCH,
    BATCHES,
    BLURRED,
    DIALS,
    FEW,
    HARM,
    KEY,
    LEVELS,
    MAIN,
    MOMENTA,
    ORDERS,
    PRIOR,
    SHUFFLED,
    TESTED,
    TUNED,
    Bench,
    Cast,
    Condition,
    Setting,
    Student,
    as_table,
    cast,
)
from lrkd.study.spec import Spec, splits
from lrkd.training.schedule import threads

TABLE = Table("lrkd adapt", KEY)


def calibration(table: pd.DataFrame) -> pd.DataFrame:
    """Find at which dial the students without a teacher lose each level on validation people.

    Their mean loss over seeds, made to rise by its running maximum, is read off between the measured dials.

    Args:
        table: With part calibration.

    Returns:
        `shift, level, dial, most`. most: the loss at the strongest; dial is nan where that does not reach the level.
    """
    part = table[table["part"] == "calibration"]
    mean = part.groupby(["shift", "dial"], sort=False)["accuracy"].mean()
    found = []
    for shift in [name for name in part["shift"].unique() if name != "none"]:
        own = mean[shift].sort_index()
        loss = np.maximum.accumulate([0.0, *(mean["none", 0.0] - own)])
        for level in LEVELS:
            dial = round(float(np.interp(level, loss, [0.0, *own.index])), 3) if loss[-1] >= level else np.nan
            found.append((shift, level, dial, loss[-1]))
    return pd.DataFrame(found, columns=["shift", "level", "dial", "most"])


def gains(table: pd.DataFrame, value: str = "accuracy") -> pd.DataFrame:
    """Compare adapted rows with the same run and condition unadapted, in one part of the table. Unit: a run.

    What the unadapted network says does not depend on batches and their order.

    Returns:
        The adapted rows, with `source`, the unadapted value, and `gain` above it.
    """
    keys = ["config", "shift", "level", "dial"]
    plain = table[table["adaptation"] == "source"].drop_duplicates(keys)[[*keys, value]]
    found = table[table["adaptation"] != "source"].merge(plain.rename(columns={value: "source"}), on=keys)
    return found.assign(gain=found[value] - found["source"])


class Choice(NamedTuple):
    """FaceBN's momentum and guard by validation people; score: `momentum, batch, unshifted, shifted, score` (gains)."""

    momentum: float
    least: int
    score: pd.DataFrame


def choice(table: pd.DataFrame) -> Choice:
    """Choose what is best for validation people, by gains of students without a teacher, at the middle level.

    momentum: the highest mean of the gain on unshifted faces and that over the shifts, at batches of `BATCH`. least:
    the batch size from which on it costs unshifted faces less than `HARM` (twice the largest where it always does).
    """
    found = gains(table[table["part"] == "choice"])
    mean = found.groupby(["momentum", "batch", "shift"])["gain"].mean().unstack()
    score = pd.DataFrame({"unshifted": mean["none"], "shifted": mean.drop(columns="none").mean(axis=1)})
    score["score"] = score.mean(axis=1)
    momentum = float(score["score"].xs(BATCH, level="batch").idxmax())
    least = 2 * BATCH
    for batch, gain in score["unshifted"].xs(momentum, level="momentum").sort_index(ascending=False).items():
        if gain < -HARM:
            break
        least = int(batch)
    return Choice(momentum, least, score.reset_index())


def gather(
    wanted: Sequence[Spec],
    where: Path | None = None,
    *,
    known: pd.DataFrame | None = None,
    on_table: Callable[[pd.DataFrame], None] | None = None,
    device: str = "cpu",
) -> pd.DataFrame:
    """Measure the finished students among the runs, at their lowest side.

    Parts of the table, in the order of their worth: calibration, choice: on validation people, see the functions of
    these names. test: every student at every level, unadapted and by FaceBN as it was chosen, also against sharp
    images: the middle level of all, the others of `MAIN`. Each seed meets the test faces in an order of its own, so
    that an interval over seeds contains what the order does. Then only on rendered faces, and of students without a
    teacher: momentum (others), alternatives (to FaceBN), batches (sizes and orders), mixture, layers (what pure batch
    statistics move); of `MAIN`: matrix (kernels and sides). The matrix of kernels has students that were trained with
    other presets too; all else is of the first student's preset. dial, level: of the shift; order, batch, ...: see
    `Setting`. At scale cpu about a quarter of an hour on one idle core.

    Args:
        wanted: The runs.
        where: The run store.
        known: An earlier table, perhaps of another machine: what it has is not measured again.
        on_table: Called with the table so far after every condition.
        device: Where to compute.

    Returns:
        A row a measurement.

    Raises:
        MissingError: No student without a teacher has finished.
    """
    scale, source = wanted[0].scale, wanted[0].source
    low = min((spec.side for spec in wanted if isinstance(spec.side, int)), default=0)
    named = [spec for spec in wanted if spec.role == "student" and spec.side == low]
    finished = [Student(spec, run, device) for spec, run in ended_well(named, where)]
    students = [student for student in finished if student.spec.preset == named[0].preset]
    group = Group(finished, students)
    if not group.plain:
        raise MissingError(
            f"{store_dir(where)}: no student without a teacher of scale {scale.name}, {low} px and a seed below {FEW} "
            "has finished, and it calibrates the shifts: `lrkd study aird` trains it"
        )
    faces = splits(scale, source)
    with threads(scale.options.threads):
        tuned = cast(faces.validation, scale, low, group.preset, TUNED)
        tested = cast(faces.test, scale, low, group.preset, TESTED)
        bench = Bench(known, on_table)
        levels = _levels(bench, tuned, group.plain)
        best = _chosen(bench, tuned, group.plain, levels[1])
        _measure(bench, tested, group, levels, best)
    return as_table(bench.table)


class Group(NamedTuple):
    """Students of one side: those that have finished, and of these those of one preset."""

    finished: list[Student]
    students: list[Student]

    @property
    def preset(self) -> str:
        """How all are tested."""
        return evaluation_preset(self.students[0].spec.preset)

    @property
    def plain(self) -> list[Student]:
        """Those without a teacher, of the first few seeds."""
        return [one for one in self.few if one.spec.method.name == "none"]

    @property
    def few(self) -> list[Student]:
        """Those of the first few seeds."""
        return [one for one in self.students if one.spec.seed < FEW]

    @property
    def main(self) -> list[Student]:
        """Those of the methods that are measured at every level."""
        return [one for one in self.students if one.spec.method.name in MAIN]


def _levels(bench: Bench, tuned: Cast, plain: Sequence[Student]) -> list[list[Condition]]:
    """No shift and then every shift, at the dial that costs students without a teacher each of `LEVELS`."""
    shifts = [name for name, shift in SHIFTS.items() if tuned.scene.model is not None or not shift.rendered]
    dialled = [Condition(), *(Condition(name, 0.0, dial) for name in shifts for dial in DIALS)]
    dials = calibration(bench.measure("calibration", tuned, product(dialled, plain, [Setting()])))
    found = {
        level: [Condition(*row) for row in part[["shift", "level", "dial"]].itertuples(index=False)]
        for level, part in dials.dropna().groupby("level")
    }
    return [[Condition(), *found.get(level, [])] for level in LEVELS]


def _chosen(bench: Bench, tuned: Cast, plain: Sequence[Student], middle: Sequence[Condition]) -> Choice:
    """FaceBN's momentum and guard."""

    def swept(sizes: Sequence[int]) -> list[Setting]:
        return [Setting("facebn", a, batch) for a in MOMENTA for batch in sizes]

    asked = list(product(middle, plain[:2], [Setting(), *swept(BATCHES[-1:])]))
    asked += product(_risky(middle), plain[:2], swept(BATCHES[2:-1]))
    asked += product(middle[:1], plain[:1], swept(BATCHES[1:2]))  # each takes as long as ten others
    return choice(bench.measure("choice", tuned, asked))


def _measure(bench: Bench, tested: Cast, group: Group, levels: Sequence[Sequence[Condition]], best: Choice) -> None:
    """Everything on test people, in the order of its worth."""
    small, middle, large = levels
    both = [Setting(), chosen := Setting("facebn", best.momentum, BATCH, least=best.least)]
    plain, few, main = group.plain, group.few, group.main
    shortest = [one for one in main if one in few]
    bench.measure("test", tested, _met(middle, shortest, both))
    rendered = tested.scene.model is not None
    if rendered:
        bench.measure("layers", tested, product(large, plain, [Setting("facebn", 1.0)]))
        bench.measure("batches", tested, _batches(middle, plain, best.momentum))
    bench.measure("test", tested, _met(middle, few, both))
    if not rendered:
        return
    halves = [one._replace(shift=f"half {one.shift}") for one in _risky(middle)[1:]]
    bench.measure("mixture", tested, _met(halves, plain, [*both, chosen._replace(order="domains")]))
    rivals = [Setting("online", MOMENTA[0], least=best.least), Setting("prior", PRIOR), Setting("adabn", 1.0)]
    bench.measure("alternatives", tested, _met(middle, plain, rivals))
    kernels = [Condition(f"kernel {name}") for name in dict.fromkeys((group.preset, *KERNELS, *BLURRED))]
    sides = _sides(tested.scene.faces.size, tested.scene.side)
    bench.measure("matrix", tested, [
        *_met([*kernels, *sides], shortest, both),
        *_met(kernels, [one for one in group.finished if one not in group.students], both),
    ])  # fmt: skip
    others = [Setting("facebn", a, BATCH, least=best.least) for a in MOMENTA if a != best.momentum]
    bench.measure("momentum", tested, _met(middle, plain, others))
    bench.measure("test", tested, _met(large[1:], main, both))
    bench.measure("momentum", tested, _met(large[1:], plain, others))
    bench.measure("test", tested, _met(middle, group.students, both))
    bench.measure("test", tested, _met(small[1:], shortest, both))


def _met(
    conditions: Iterable[Condition], students: Iterable[Student], settings: Iterable[Setting]
) -> Iterator[tuple[Condition, Student, Setting]]:
    """Every combination; what adapts meets shuffled faces in the order of the student's seed."""
    for condition, student, setting in product(conditions, students, settings):
        own = setting.adaptation != "source" and setting.order.startswith(SHUFFLED)
        yield condition, student, setting._replace(order=f"{SHUFFLED}{student.spec.seed}") if own else setting


def _risky(conditions: Sequence[Condition]) -> list[Condition]:
    """No shift, and the one that changes statistics most plainly."""
    return [one for one in conditions if one.shift in ("none", "dark")]


def _batches(
    conditions: Sequence[Condition], students: Sequence[Student], momentum: float
) -> Iterator[tuple[Condition, Student, Setting]]:
    """Batch sizes and orders, without a guard; and the source prior, which needs none. The smallest sizes once."""
    most = Setting("facebn", momentum, TESTED // 2)
    ordered = [Setting("facebn", momentum, batch, "sorted") for batch in BATCHES[2:]]
    again = [
        Setting(adaptation, number, batch, f"{SHUFFLED}{k}")
        for adaptation, number in (("facebn", momentum), ("prior", PRIOR))
        for batch, k in product(BATCHES[2:], range(ORDERS))
    ]
    ways = [Setting(), *again, most, *ordered, Setting("facebn", momentum, 10, "one person")]
    yield from product(_risky(conditions), students, ways)
    yield from product(conditions[:1], students, [Setting("facebn", momentum, batch) for batch in BATCHES[:2]])


def _sides(size: int, side: int) -> list[Condition]:
    """Sides that no student was trained with."""
    sides = [side // 2, *range(side - 2, side), side + 1, *(2**k * side for k in (1, 2, 3))]
    return [Condition(f"side {at}") for at in sorted(set(sides)) if 1 <= at <= size and at != side]
