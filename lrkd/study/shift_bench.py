"""The bench on which students are measured on shifted faces."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lrkd.data import tables
from lrkd.data.degradation import PRESETS, Degradation
from lrkd.data.face_quantities import AGE_HIGH, AGE_LOW
from lrkd.data.pairs import make_pairs
from lrkd.data.renderer import FaceModel
from lrkd.data.shifts import SHIFTS, Scene
from lrkd.evaluation.batchnorm import AdaBN, Adapted, FaceBN, SourcePrior
from lrkd.progress import bar as progress_bar
from lrkd.study.experiment import load
from lrkd.study.measures import evaluation_preset, pairs_of, result_rows, searched, verified
from lrkd.study.presets import Scale
from lrkd.study.spec import Spec
from lrkd.study.store import Run
from lrkd.training.step import normalise

LEVELS = (0.02, 0.05, 0.1)  # accuracy that the students without a teacher lose on validation people
DIALS = (0.125, 0.25, 0.5, 0.75, 1.0)
MOMENTA, BATCHES, BATCH = (0.1, 0.3, 0.5, 1.0), (1, 2, 8, 32, 128), 128
PRIOR = 128.0  # rows that the source counts in `SourcePrior`
FPIR = (0.3, 0.2, 0.1)
TUNED, TESTED = 1000, 500  # images that a network is shown of validation and of test people, at most 10 a person
SHUFFLED, ORDERS = "shuffled ", 4
HARM = 0.005  # half of the smallest difference in accuracy that matters in this study
MAIN = ("none", "aird")  # measured at every level
BLURRED = tuple(name for name in PRESETS if name.startswith("askd"))
FEW = 3  # seeds that calibrate, and that are measured where all would take too long
KEY = ("config", "part", "shift", "level", "dial", "adaptation", "momentum", "batch", "order", "least")


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


def cast(faces: tables.Faces, scale: Scale, side: int, preset: str, images: int) -> Cast:
    """Choose about `images` faces of evenly spaced people with two images or more, the first ten of each, and pairs.

    Pairs of rendered faces lie half the range of ages apart, as the study's own. The gallery of the open set has three
    of ten images of every second of the people.
    """
    counts = np.minimum(np.bincount(faces.labels), 10)
    able = np.flatnonzero(counts > 1)
    few = min(len(able), max(4, round(images / counts[able].mean())))
    people = able[np.linspace(0, len(able) - 1, few).astype(np.int64)]
    chosen = faces.subset(np.concatenate([np.flatnonzero(faces.labels == person)[:10] for person in people]))
    gap = None if chosen.identity is None or chosen.age is None else (chosen.age, (AGE_HIGH - AGE_LOW) / 2)
    pairs = make_pairs(chosen.labels, age_gap=gap)
    own = [np.flatnonzero(chosen.labels == label) for label in range(chosen.classes)]
    gallery = np.concatenate([mine[: max(1, 3 * len(mine) // 10)] for mine in own[::2]])
    model = None if chosen.identity is None else FaceModel(**scale.face)
    scene = Scene(replace(chosen, pairs=pairs), side, PRESETS[evaluation_preset(preset)], model=model)
    return Cast(scene, gallery, np.setdiff1d(np.arange(len(chosen)), gallery))


def batches(setting: Setting, labels: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each batch, in order; the last one reaches back, so that all are of one size."""
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
    """Embed (N,3,S,S) in [0,1], shown in these batches, as (N,D) without mirror images, as `embed` does it."""
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
    """Measure verification accuracy of the pairs, both images as they are seen."""
    return verified(low, low, shown.scene.faces).mean


def against_sharp(low: np.ndarray, high: np.ndarray, shown: Cast) -> dict[str, float]:
    """Compare probes as they are seen with sharp images: verification, and the open set (TPIR20 at FPIR .3, .2, .1)."""
    labels, mixed = shown.scene.faces.labels, verified(high, low, shown.scene.faces).mean
    mated, probes = np.isin(labels[shown.probes], labels[shown.gallery]), len(high) + shown.probes
    roles = {"gallery": shown.gallery, "probe": probes[mated], "unmated": probes[~mated]}
    found = searched(high, low, shown.scene.faces, roles, fpir=FPIR)
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
        test = next(row for row in result_rows(self.spec, self.run) if row["protocol"] == "test")
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

    def __init__(self, known: pd.DataFrame | None, on_table: Callable[[pd.DataFrame], None] | None) -> None:
        self.on_table = on_table
        self.table: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        self._known: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in [] if known is None else known.to_dict("records"):
            self._known.setdefault(row_key(row), []).append(row)

    def measure(self, part: str, shown: Cast, wanted: Iterable[tuple[Condition, Student, Setting]]) -> pd.DataFrame:
        """One part of the table: a row a condition, student and setting."""
        todo: dict[Condition, list[tuple[Student, Setting, dict[str, Any]]]] = {}
        for condition, student, setting in wanted:
            row = {"part": part, **student.known, **condition._asdict(), **setting._asdict()}
            if not self.table.setdefault(row_key(row), self._known.get(row_key(row), [])):
                todo.setdefault(condition, []).append((student, setting, row))
        count = sum(map(len, todo.values()))
        with progress_bar(total=count, desc=part, shown=count > 0) as bar:
            for condition, some in todo.items():
                x = shown.seen(condition)
                for student, setting, row in some:
                    self.table[row_key(row)] = [row | found for found in student.measured(x, setting, shown, part)]
                    bar.update()
                if self.on_table is not None:
                    self.on_table(as_table(self._known | self.table))  # a file keeps what nothing has asked for yet
        found = as_table(self.table)
        return found[found["part"] == part]


def as_table(rows: Mapping[tuple[Any, ...], Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """Lay all rows under each other."""
    return pd.DataFrame(row for some in rows.values() for row in some)


def row_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what names a measurement, the same before and after it was written as CSV."""
    return tuple(f"{value:.6g}" if isinstance(value, float | int) else value for value in (row[name] for name in KEY))
