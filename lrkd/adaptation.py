"""How trained students fare on shifted faces, with and without adapted batch norm: what `lrkd adapt` measures.

Everything is chosen on validation people, with students that had no teacher: how far to turn each shift's dial, how
much FaceBN adapts, and from which batch size on. Test people are for the last word.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lrkd import data, verify
from lrkd.adapt import AdaBN, Adapted, FaceBN, SourcePrior
from lrkd.degrade import KERNELS, PRESETS, Degradation
from lrkd.errors import MissingError
from lrkd.experiment import Spec, evaluation_preset, find_run, load, pairs_of, rows, splits, store
from lrkd.faces import AGE_HIGH, AGE_LOW, FaceModel
from lrkd.files import Table
from lrkd.runs import Run
from lrkd.scales import Scale
from lrkd.shifts import SHIFTS, Scene
from lrkd.train import normalise, threads

LEVELS = (0.02, 0.05, 0.1)  # accuracy that the students without a teacher lose on validation people
DIALS = (0.125, 0.25, 0.5, 0.75, 1.0)
MOMENTA, BATCHES, BATCH = (0.1, 0.3, 0.5, 1.0), (1, 2, 8, 32, 128), 128
PRIOR = 128.0  # rows that the source counts in `SourcePrior`
FPIR = (0.3, 0.2, 0.1)
TUNED, TESTED = 1000, 500  # images that a network is shown of validation and of test people, at most 10 a person
SHUFFLED, ORDERS = "shuffled ", 4
HARM = 0.005  # half of the smallest difference in accuracy that matters in this study
MAIN = ("none", "aird")  # measured at every level
_BLURRED = tuple(name for name in PRESETS if name.startswith("askd"))
FEW = 3  # seeds that calibrate, and that are measured where all would take too long
PARTS = ("calibration", "choice", "test", "batches", "layers", "momentum", "alternatives", "mixture", "matrix")
KEY = ("config", "part", "shift", "level", "dial", "adaptation", "momentum", "batch", "order", "least")

COLUMNS = (
    *("part", "data", "scale", "method", "side", "seed", "teacher_seed", "device", "torch", "commit", "config"),
    "preset",
    *("shift", "level", "dial", "adaptation", "momentum", "batch", "order", "least", "images", "pairs", "accuracy"),
    *("accuracy_hr_lr", *(f"tpir20_at_fpir_{rate:g}" for rate in FPIR), "layer", "moved", "ratio"),
)

TABLE = Table("lrkd adapt", KEY)


class Setting(NamedTuple):
    """How a network meets its faces. order: "shuffled 0" (and on), "sorted" by person, "one person" a batch, "domains"
    one after the other; batch: rows at a time; adaptation: "source", "facebn", "online", "prior" or "adabn".
    """

    adaptation: str = "source"
    momentum: float = 0.0
    batch: int = BATCH
    order: str = f"{SHUFFLED}0"
    least: int = 1

    def adapted(self, network: nn.Module, see: Callable[[], object]) -> AbstractContextManager[Any]:
        """The context in which the network is shown them."""
        match self.adaptation:
            case "facebn" | "online":
                online = self.adaptation == "online"
                return FaceBN(network, self.momentum, online=online, least=self.least)
            case "prior":
                return SourcePrior(network, PRIOR)
            case "adabn":
                return AdaBN(network, see)
        return nullcontext()


class Condition(NamedTuple):
    """What is done to the faces: a shift at a dial, and the level that it was calibrated for.

    shift: "none", a name of `SHIFTS`, "half dark" (every second image dark), "kernel lanczos" and so on, "side 12".
    """

    shift: str = "none"
    level: float = 0.0
    dial: float = 0.0


@dataclass(frozen=True)
class Cast:
    """The faces of a split that are shown, and the rows of an open set: half of the people are in the gallery."""

    scene: Scene
    gallery: np.ndarray
    probes: np.ndarray

    def seen(self, condition: Condition) -> Tensor:
        """What a network is shown, (N,3,S,S) in [0,1]."""
        what, _, name = condition.shift.rpartition(" ")
        scene = self.scene
        if what == "kernel":
            preset = PRESETS.get(name) or Degradation(name, name)
            return scene._replace(degradation=preset).seen()
        if what == "side":
            return scene._replace(side=int(name)).seen()
        shifted = scene if name == "none" else SHIFTS[name](scene, condition.dial)
        x = shifted.seen()
        if what == "half":
            x[::2] = scene.seen()[::2]
        return x

    def sharp(self) -> Tensor:
        """The unshifted HR images, as a gallery has them."""
        return self.scene._replace(side=self.scene.faces.size).seen()


def cast(faces: data.Faces, scale: Scale, side: int, preset: str, images: int) -> Cast:
    """About `images` faces of evenly spaced people with two images or more, the first ten of each, and pairs of them.

    Pairs of rendered faces lie half the range of ages apart, as the study's own. The gallery of the open set has three
    of ten images of every second of the people.
    """
    counts = np.minimum(np.bincount(faces.labels), 10)
    able = np.flatnonzero(counts > 1)
    few = min(len(able), max(4, round(images / counts[able].mean())))
    people = able[np.linspace(0, len(able) - 1, few).astype(np.int64)]
    chosen = faces.subset(np.concatenate([np.flatnonzero(faces.labels == person)[:10] for person in people]))
    gap = None if chosen.identity is None else (AGE_HIGH - AGE_LOW) / 2
    pairs = data.make_pairs(chosen.labels, age=chosen.age, min_age_gap=gap)
    own = [np.flatnonzero(chosen.labels == label) for label in range(chosen.classes)]
    gallery = np.concatenate([mine[: max(1, 3 * len(mine) // 10)] for mine in own[::2]])
    model = None if chosen.identity is None else FaceModel(**scale.face)
    scene = Scene(replace(chosen, pairs=pairs), side, PRESETS[evaluation_preset(preset)], model=model)
    return Cast(scene, gallery, np.setdiff1d(np.arange(len(chosen)), gallery))


def batches(setting: Setting, labels: np.ndarray) -> list[np.ndarray]:
    """The rows of each batch, in their order; the last one reaches back to rows before, so that all are of one size."""
    count = len(labels)
    if setting.order == "one person":
        return [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if setting.order == "sorted":
        order = np.argsort(labels, kind="stable")
    elif setting.order == "domains":
        order = np.concatenate([np.arange(0, count, 2), np.arange(1, count, 2)])
    else:
        order = np.random.default_rng(int(setting.order.removeprefix(SHUFFLED))).permutation(count)
    last = max(0, count - setting.batch)
    return [order[min(start, last) :][: setting.batch] for start in range(0, count, setting.batch)]


def features(network: nn.Module, x: Tensor, given: Sequence[np.ndarray], device: str = "cpu") -> np.ndarray:
    """(N,3,S,S) in [0,1], shown in these batches -> (N,D), without mirror images; as `verify.embed` does it."""
    found: np.ndarray | None = None
    with torch.inference_mode():
        for part in given:
            shown = normalise(x[part].to(device)).contiguous(memory_format=torch.channels_last)
            out = network(shown).embedding.float().cpu().numpy()
            found = np.empty((len(x), out.shape[1]), np.float32) if found is None else found
            found[part] = out
    assert found is not None
    return found


def accuracy(low: np.ndarray, shown: Cast) -> float:
    """Verification accuracy of the pairs, both images as they are seen."""
    pairs = pairs_of(shown.scene.faces)
    gone = pairs.touch(shown.scene.faces.missing)
    return verify.kfold_verification(low[pairs.left], low[pairs.right], pairs.same, pairs.fold, missing=gone).mean


def against_sharp(low: np.ndarray, high: np.ndarray, shown: Cast) -> dict[str, float]:
    """Probes as they are seen against sharp images: verification, and the open set (TPIR20 at FPIR .3, .2, .1)."""
    pairs, labels = pairs_of(shown.scene.faces), shown.scene.faces.labels
    gone = pairs.touch(shown.scene.faces.missing)
    mixed = verify.kfold_verification(high[pairs.left], low[pairs.right], pairs.same, pairs.fold, missing=gone).mean
    mated, probes = np.isin(labels[shown.probes], labels[shown.gallery]), len(high) + shown.probes
    missing = shown.scene.faces.missing
    found = verify.identification(
        np.concatenate([high, low]),
        np.tile(labels, 2),
        {"gallery": shown.gallery, "probe": probes[mated], "unmated": probes[~mated]},
        fpir=FPIR,
        missing=None if missing is None else np.tile(missing, 2),
    ).iloc[0]
    return {"accuracy_hr_lr": mixed, **{name: float(found[name]) for name in (f"tpir20_at_fpir_{r:g}" for r in FPIR)}}


class Student:
    """A finished run of the store; its network is loaded when it is wanted first."""

    def __init__(self, spec: Spec, run: Run, device: str) -> None:
        self.spec, self.run, self.device = spec, run, device
        self._sharp: dict[Setting, np.ndarray] = {}

    @functools.cached_property
    def network(self) -> nn.Module:
        """The trained network, in evaluation mode."""
        return load(self.run)[0].to(self.device)

    @functools.cached_property
    def known(self) -> dict[str, Any]:
        """The columns that name the run; commit, device and torch are those of its training."""
        test = next(row for row in rows(self.spec, self.run) if row["protocol"] == "test")
        names = ("data", "scale", "method", "side", "seed", "teacher_seed", "device", "torch", "commit", "config")
        return {**{name: test[name] for name in names}, "preset": self.spec.preset}

    def features(self, x: Tensor, setting: Setting, labels: np.ndarray) -> tuple[np.ndarray, Adapted | None]:
        """The images' features under that setting, (N,D), and what adapted the network."""
        given = batches(setting, labels)
        context = setting.adapted(self.network, lambda: features(self.network, x, given, self.device))
        with context as adapted:
            return features(self.network, x, given, self.device), adapted

    def sharp(self, setting: Setting, shown: Cast) -> np.ndarray:
        """The features of the sharp images, adapted to themselves as the probes are; always of one cast."""
        if setting not in self._sharp:
            self._sharp[setting] = self.features(shown.sharp(), setting, shown.scene.faces.labels)[0]
        return self._sharp[setting]

    def measured(self, x: Tensor, setting: Setting, shown: Cast, part: str) -> list[dict[str, Any]]:
        """The measures of one row; of "layers" a row each: the mean's shift in standard deviations, variance ratio."""
        low, adapted = self.features(x, setting, shown.scene.faces.labels)
        if part == "layers" and adapted is not None:
            moved = adapted.table().rename(columns={"shift": "moved"})
            return moved[["layer", "moved", "ratio"]].to_dict("records")
        sharp = against_sharp(low, self.sharp(setting, shown), shown) if part == "test" else {}
        return [
            {"images": len(x), "pairs": len(pairs_of(shown.scene.faces)), "accuracy": accuracy(low, shown), **sharp}
        ]


class Bench:
    """The rows that are wanted, measured where an earlier table lacks them, condition by condition."""

    def __init__(
        self, known: pd.DataFrame | None, on_table: Callable[[pd.DataFrame], None] | None, progress: bool
    ) -> None:
        self.on_table, self.progress = on_table, progress
        self.table: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        self._known: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in [] if known is None else known.to_dict("records"):
            self._known.setdefault(_key(row), []).append(row)

    def measure(self, part: str, shown: Cast, wanted: Iterable[tuple[Condition, Student, Setting]]) -> pd.DataFrame:
        """One part of the table: a row a condition, student and setting."""
        todo: dict[Condition, list[tuple[Student, Setting, dict[str, Any]]]] = {}
        for condition, student, setting in wanted:
            row = {"part": part, **student.known, **condition._asdict(), **setting._asdict()}
            if not self.table.setdefault(_key(row), self._known.get(_key(row), [])):
                todo.setdefault(condition, []).append((student, setting, row))
        count = sum(map(len, todo.values()))
        quiet = not self.progress or not count or bool(os.environ.get("TQDM_DISABLE"))
        with tqdm(total=count, desc=part, disable=quiet) as bar:
            for condition, some in todo.items():
                x = shown.seen(condition)
                for student, setting, row in some:
                    self.table[_key(row)] = [row | found for found in student.measured(x, setting, shown, part)]
                    bar.update()
                if self.on_table is not None:
                    self.on_table(_table(self._known | self.table))  # a file keeps what nothing has asked for yet
        return self.frame(part)

    def frame(self, part: str | None = None) -> pd.DataFrame:
        """The rows so far, or those of one part."""
        found = _table(self.table)
        return found if part is None else found[found["part"] == part]


def _table(rows: Mapping[tuple[Any, ...], Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    return pd.DataFrame(row for some in rows.values() for row in some)


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What names a measurement, the same before and after it was written as CSV."""
    return tuple(f"{value:.6g}" if isinstance(value, float | int) else value for value in (row[name] for name in KEY))


def read(path: Path | str) -> pd.DataFrame:
    """A table of `lrkd adapt`; where the file is not there yet, one with `COLUMNS` and no row."""
    found = TABLE.read(path) if Path(path).exists() else pd.DataFrame()
    return found.reindex(columns=list(COLUMNS))


def calibration(table: pd.DataFrame) -> pd.DataFrame:
    """At which dial the students without a teacher lose each level on validation people: -> `shift, level, dial, most`.

    Their mean loss over seeds, made to rise by its running maximum, is read off between the measured dials. most: the
    loss at the strongest; dial is nan where that does not reach the level.
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
    """Rows that are adapted, with `source`, the value of the same run and condition unadapted, and `gain` above it.

    Unit: a run. Of one part of the table. What the unadapted network says does not depend on batches and their order.
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
    """What is best for validation people, by gains in accuracy of students without a teacher, at the middle level.

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
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the finished students among the runs, at their lowest side: -> a table of parts, a row a measurement.

    calibration, choice: on validation people, see the functions of these names. test: every student at every level,
    unadapted and by FaceBN as it was chosen, also against sharp images: the middle level of all, the others of `MAIN`.
    Each seed meets the test faces in an order of its own, so that an interval over seeds contains what the order does.
    Then only on rendered faces, and of students without a teacher: momentum (others), alternatives (to FaceBN), batches
    (sizes and orders), mixture, layers (what pure batch statistics move); of `MAIN`: matrix (kernels and sides). The
    matrix of kernels has students that were trained with other presets too; all else is of the first student's preset.
    dial, level: of the shift; order, batch, ...: see `Setting`. Parts come in the order of their worth.

    known: an earlier table, perhaps of another machine: what it has is not measured again. on_table is called with the
    table so far after every condition. At scale cpu about a quarter of an hour on one idle core. MissingError where no
    student without a teacher has finished.
    """
    scale, source = wanted[0].scale, wanted[0].source
    low = min((spec.side for spec in wanted if isinstance(spec.side, int)), default=0)
    named = [(spec, find_run(spec, where)) for spec in wanted if spec.role == "student" and spec.side == low]
    finished = [Student(spec, run, device) for spec, run in named if run.finished and run.result["status"] == "ok"]
    students = [student for student in finished if student.spec.preset == named[0][0].preset]
    plain = [student for student in students if student.spec.method.name == "none"]
    first = [student for student in plain if student.spec.seed < FEW]
    if not first:
        raise MissingError(
            f"{store(where)}: no student without a teacher of scale {scale.name}, {low} px and a seed below {FEW} has "
            "finished, and it calibrates the shifts: `lrkd study aird` trains it"
        )
    faces = splits(scale, source)
    preset = evaluation_preset(students[0].spec.preset)
    with threads(scale.options.threads):
        tuned, tested = cast(faces.validation, scale, low, preset, TUNED), cast(faces.test, scale, low, preset, TESTED)
        bench = Bench(known, on_table, progress)
        shifts = [name for name, shift in SHIFTS.items() if tuned.scene.model is not None or not shift.rendered]
        dialled = [Condition(), *(Condition(name, 0.0, dial) for name in shifts for dial in DIALS)]
        dials = calibration(bench.measure("calibration", tuned, product(dialled, first, [Setting()])))
        levels = {
            level: [Condition(*row) for row in part[["shift", "level", "dial"]].itertuples(index=False)]
            for level, part in dials.dropna().groupby("level")
        }
        small, middle, large = ([Condition(), *levels.get(level, [])] for level in LEVELS)

        def swept(sizes: Sequence[int]) -> list[Setting]:
            return [Setting("facebn", a, batch) for a in MOMENTA for batch in sizes]

        asked = list(product(middle, first[:2], [Setting(), *swept(BATCHES[-1:])]))
        asked += product(_risky(middle), first[:2], swept(BATCHES[2:-1]))
        asked += product(middle[:1], first[:1], swept(BATCHES[1:2]))  # each takes as long as ten others
        best = choice(bench.measure("choice", tuned, asked))
        chosen = Setting("facebn", best.momentum, BATCH, least=best.least)

        few = [one for one in students if one.spec.seed < FEW]
        main = [one for one in students if one.spec.method.name in MAIN]
        both = [one for one in main if one in few]
        bench.measure("test", tested, _met(middle, both, [Setting(), chosen]))
        rendered = tested.scene.model is not None
        if rendered:
            bench.measure("layers", tested, product(large, first, [Setting("facebn", 1.0)]))
            bench.measure("batches", tested, _batches(middle, first, best.momentum))
        bench.measure("test", tested, _met(middle, few, [Setting(), chosen]))
        if not rendered:
            return bench.frame()
        halves = [one._replace(shift=f"half {one.shift}") for one in _risky(middle)[1:]]
        mixed = [Setting(), chosen, chosen._replace(order="domains")]
        bench.measure("mixture", tested, _met(halves, first, mixed))
        rivals = [Setting("online", MOMENTA[0], least=best.least), Setting("prior", PRIOR), Setting("adabn", 1.0)]
        bench.measure("alternatives", tested, _met(middle, first, rivals))
        kernels = [Condition(f"kernel {name}") for name in dict.fromkeys((preset, *KERNELS, *_BLURRED))]
        bench.measure("matrix", tested, [
            *_met([*kernels, *_sides(scale, low)], both, [Setting(), chosen]),
            *_met(kernels, [one for one in finished if one not in students], [Setting(), chosen]),
        ])  # fmt: skip
        others = [Setting("facebn", a, BATCH, least=best.least) for a in MOMENTA if a != best.momentum]
        bench.measure("momentum", tested, _met(middle, first, others))
        bench.measure("test", tested, _met(large[1:], main, [Setting(), chosen]))
        bench.measure("momentum", tested, _met(large[1:], first, others))
        bench.measure("test", tested, _met(middle, students, [Setting(), chosen]))
        bench.measure("test", tested, _met(small[1:], both, [Setting(), chosen]))
        return bench.frame()


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


def _sides(scale: Scale, side: int) -> list[Condition]:
    """Sides that no student was trained with."""
    sides = [side // 2, *range(side - 2, side), side + 1, *(2**k * side for k in (1, 2, 3))]
    return [Condition(f"side {at}") for at in sorted(set(sides)) if 1 <= at <= scale.size and at != side]
