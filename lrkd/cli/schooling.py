"""What a network was trained on: the data that an exported file is calibrated and measured with."""

from typing import NamedTuple

import numpy as np

from lrkd.cli.subject import Subject
from lrkd.data.prepared import load_prepared, prepared, resized
from lrkd.data.tables import Splits
from lrkd.errors import ConfigError, DataError
from lrkd.onnx import recogniser
from lrkd.study import presets
from lrkd.study.measures import evaluation_preset
from lrkd.study.spec import PROCEDURAL, splits

CALIBRATION_IMAGES = 512


class Schooling(NamedTuple):
    """The data, the sides that it was trained for, the largest first, and notes on both for the exported file."""

    faces: Splits | None
    sides: list[int | None]
    metadata: dict[str, object]


def load_schooling(subject: Subject, path: str | None) -> Schooling:
    """Load what a run was trained on; for a checkpoint the prepared folder `path`, where it is given.

    Raises:
        ConfigError: A path is given for a run.
        DataError: The run's data have changed.
    """
    metadata: dict[str, object] = {"preset": evaluation_preset(subject.preset), "network": subject.name}
    metadata |= {"images": subject.size} | ({"mirror": "first"} if subject.mirror_first else {})
    metadata |= {name: told for name, told in subject.notes.items() if told}
    if subject.run is None:
        faces = None if path is None else resized(prepared(path), subject.size)
        return Schooling(faces, [subject.own], metadata | {"side": subject.own or subject.network.size})
    if path is not None:
        raise ConfigError(f"data: expected none with a run, which is measured on its own data, got {path!r}")
    run, source = subject.run, subject.run.result["source"]
    scale, given = presets.scale(run.config["scale"]), run.config.get("side")
    faces = splits(scale, source)
    for part in ("train", "validation"):
        if getattr(faces, part).digest != run.config["data"].get(part):
            raise DataError(f"{source}: is not the data that {run.path} was trained on")
    # The largest first: what is trained for several sides is measured at that one.
    sides = sorted(given, reverse=True) if isinstance(given, list) else [given]
    told = {"licence": "Apache-2.0"} if source == PROCEDURAL else load_prepared(source).meta
    licence = str(told.get("licence", "that of its data"))[:200]
    return Schooling(faces, sides, metadata | {"licence": licence, "side": sides[0] or scale.size})


def calibration_inputs(subject: Subject, taught: Schooling) -> np.ndarray:
    """What the network is shown of training people, (M,3,S,S) float32, in equal parts at each of its sides."""
    assert taught.faces is not None
    train = taught.faces.train.images
    index = np.linspace(0, len(train) - 1, min(CALIBRATION_IMAGES, len(train))).astype(np.int64)
    parts = [
        recogniser.inputs(subject.network, train[part], side=side, preset=subject.preset)
        for side, part in zip(taught.sides, np.array_split(index, len(taught.sides)), strict=True)
        if len(part)
    ]
    return np.concatenate(parts)
