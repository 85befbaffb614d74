"""Photographs of faces that `lrkd embed` and `lrkd compare` show to a network."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lrkd.cli.subject import Subject
from lrkd.data.images import NAMES
from lrkd.evaluation import embedding
from lrkd.onnx import recogniser
from lrkd.study.measures import evaluation_preset
from lrkd.study.spec import PROCEDURAL

FORMATS = f"a face in {NAMES}"


class Photographs:
    """Image files as uint8 (N,size,size,3), each read when a slice asks for it."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self._paths, self._size = paths, size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, some: slice) -> np.ndarray:
        return np.stack([recogniser.photograph(path, self._size) for path in self._paths[some]])


def embed_photographs(subject: Subject, paths: Sequence[Path], side: int | None) -> np.ndarray:
    """Embed image files, degraded to `side` pixels, without mirror images -> (N,D)."""
    images, preset = Photographs(paths, subject.network.size), evaluation_preset(subject.preset)
    return embedding.embed(subject.network, images, side=side, preset=preset, mirror=False)


def why_not(subject: Subject) -> str:
    """Say why a network does not recognise photographs; empty where it may."""
    told = str(subject.notes.get("threshold_data", "")), str(subject.notes.get("data", ""))
    if not any(name.split("/")[0] == PROCEDURAL for name in told):
        return ""
    return f"{subject.name} was trained on rendered faces ({PROCEDURAL}) and does not recognise photographs"
