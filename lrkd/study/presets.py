"""The scales of the study: how large its images, networks, data and schedules are."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lrkd.errors import ConfigError
from lrkd.training.schedule import FSKD_SCHEDULE, Options, Schedule


@dataclass(frozen=True)
class Recipe:
    """How a teacher and its students are trained on one kind of data."""

    teacher: Schedule
    student: Schedule
    shift: int = 0


@dataclass(frozen=True)
class Population:
    """How many people a world has, and images of each: (people, images); pairs of (validation, test).

    train: whom a student is shown. many: whom a teacher of settings T and D knows. Many people with few images each
    make a search worth its name and keep evaluating cheap.
    """

    train: tuple[int, int]
    many: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]
    pairs: tuple[int, int]


@dataclass(frozen=True)
class Scale:
    """How large a study is: image size in pixels, LR sides, network, head, schedules, seeds.

    identities: of the procedural train, validation and test split; images: of each; pairs: of validation and test.
    recipes: for "procedural" and for "prepared" data. on_gpu: faces are rendered on a GPU where there is one, which
    rounds otherwise than a CPU: they are other data, and other runs. population: of its worlds, see `worlds`.
    thorough: whether study `core` compares every method on photographs too.
    """

    name: str
    size: int
    sides: tuple[int, ...]
    model: str
    embedding: int
    head: Mapping[str, Any]
    identities: tuple[int, int, int]
    images: int
    pairs: tuple[int, int]
    recipes: Mapping[str, Recipe]
    options: Options = field(default_factory=Options)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    face: Mapping[str, Any] = field(default_factory=dict)
    on_gpu: bool = False
    population: Population | None = None
    thorough: bool = False


_COSFACE = {"name": "cosface", "scale": 16.0, "margin": 0.15}

SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(
            "smoke",
            size=24,
            sides=(12, 6, 3),
            model="small",
            embedding=32,
            head=_COSFACE,
            identities=(16, 8, 8),
            images=6,
            pairs=(40, 60),
            recipes={
                "procedural": Recipe(Schedule(1, batch=32, lr=0.05), Schedule(1, batch=32, lr=0.05)),
                "prepared": Recipe(Schedule(1, batch=8, lr=0.05), Schedule(1, batch=8, lr=0.05), shift=1),
            },
            options=Options(threads=1),
            model_options={"widths": (8, 8, 16, 16)},
            population=Population((16, 6), (24, 8), (8, 6), (16, 6), pairs=(40, 60)),
        ),
        Scale(
            "cpu",
            size=48,
            sides=(24, 12, 6),
            model="small",
            embedding=128,
            head=_COSFACE,
            identities=(500, 100, 200),
            images=20,
            pairs=(3000, 6000),
            recipes={
                "procedural": Recipe(Schedule(7, batch=64, lr=0.15), Schedule(3, batch=64, lr=0.15)),
                "prepared": Recipe(Schedule(16), Schedule(16), shift=2),
            },
            options=Options(threads=1),
            # Little identity in the low frequencies: what 6 px destroy is what tells these people apart.
            face={"amplitudes": (0.4, 1.3, 1.5)},
            population=Population((500, 20), (4000, 10), (100, 20), (1000, 6), pairs=(3000, 6000)),
        ),
        Scale(
            "gpu",
            size=112,
            sides=(56, 28, 14),
            model="iresnet18",
            embedding=512,
            head={"name": "cosface", "scale": 32.0, "margin": 0.4},
            # A guess of what a GPU can show in hours for a grid of all methods; no GPU has shown it yet.
            identities=(1500, 500, 500),
            images=20,
            pairs=(6000, 6000),
            recipes={
                "procedural": Recipe(Schedule(8, batch=256, lr=0.1), Schedule(6, batch=256, lr=0.1)),
                "prepared": Recipe(Schedule(40, batch=128, lr=0.1), Schedule(40, batch=128, lr=0.1), shift=4),
            },
            options=Options(precision="bfloat16"),
            on_gpu=True,
            population=Population((1500, 20), (6000, 10), (500, 20), (1000, 6), pairs=(6000, 6000)),
            thorough=True,
        ),
        Scale(
            "full",
            size=112,
            sides=(56, 28, 14),
            model="iresnet50",
            embedding=512,
            head={"name": "cosface", "scale": 32.0, "margin": 0.4},
            identities=(50_000, 1000, 1000),
            images=20,
            pairs=(6000, 6000),
            recipes={
                "procedural": Recipe(FSKD_SCHEDULE, FSKD_SCHEDULE),
                "prepared": Recipe(FSKD_SCHEDULE, FSKD_SCHEDULE, shift=4),
            },
            options=Options(precision="bfloat16"),
            on_gpu=True,
        ),
    )
}
# The papers' teacher and student, IResNet-50 with CBAM, on the same faces.
SCALES["gpu50"] = replace(SCALES["gpu"], name="gpu50", model="iresnet50", thorough=False)


# Students that take LR images at their own size, from small to larger than .15 MB: separable ("mobile") and plain
# convolutions. `lrkd study designs` compares them on validation people.
_PLAIN = {"name": "small", "cbam": False, "stem_stride": 1, "strides": (2, 2, 2)}
DESIGNS: dict[str, Mapping[str, Any]] = {
    "mobile-xs": {"name": "mobile", "depths": (1, 1, 1), "widths": (16, 24, 32), "last": 64},
    "mobile-s": {"name": "mobile", "depths": (1, 2, 2), "widths": (16, 32, 48), "last": 96},
    "mobile-m": {"name": "mobile", "depths": (1, 2, 2), "widths": (24, 48, 64), "last": 128},
    "mobile-l": {"name": "mobile", "depths": (1, 2, 3), "widths": (24, 48, 72), "last": 144},
    "mobile-xl": {"name": "mobile", "depths": (2, 3, 3), "widths": (32, 64, 96), "last": 192},
    "plain-s": {**_PLAIN, "widths": (8, 16, 32), "strides": (1, 2, 2)},
    "plain-m": {**_PLAIN, "widths": (16, 24, 48)},
    "plain-l": {**_PLAIN, "widths": (16, 32, 64)},
    "plain-xl": {**_PLAIN, "widths": (24, 48, 80)},
}


def scale(name: str | None = None) -> Scale:
    """Return the scale of that name; None reads LRKD_SCALE, else takes gpu where CUDA is there and cpu where not."""
    name = name or os.environ.get("LRKD_SCALE") or ("gpu" if torch.cuda.is_available() else "cpu")
    if not isinstance(name, str) or name not in SCALES:
        raise ConfigError(f"scale: expected one of {', '.join(SCALES)}, got {name!r}")
    return SCALES[name]
