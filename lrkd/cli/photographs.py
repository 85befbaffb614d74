"""Photographs of faces that `lrkd embed` and `lrkd compare` show to a network."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lrkd.cli.output import warn
from lrkd.cli.subject import Subject
from lrkd.data import detection
from lrkd.data.alignment import Detector, NoFace
from lrkd.errors import ConfigError
from lrkd.evaluation import embedding
from lrkd.onnx import recogniser
from lrkd.study.measures import evaluation_preset
from lrkd.study.spec import PROCEDURAL

FORMATS = "a photograph of a face in JPEG, PNG, BMP or WebP"


def _detector(path: Path) -> Detector:
    """Find the faces of one photograph, and say so where there are several."""

    def detect(image: np.ndarray) -> np.ndarray:
        faces = detection.detector()(image)
        if len(faces) > 1:
            warn(f"{path}: {len(faces)} faces were found: the largest central one is taken")
        if not len(faces):
            raise NoFace("where the image is a crop of a face already, say --cropped")
        return faces

    return detect


class Photographs:
    """Image files as uint8 (N,size,size,3), each read when a slice asks for it; their faces found, unless cropped."""

    def __init__(self, paths: Sequence[Path], size: int, cropped: bool) -> None:
        self._paths, self._size, self._cropped = paths, size, cropped

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, some: slice) -> np.ndarray:
        detectors = [None if self._cropped else _detector(path) for path in self._paths[some]]
        pairs = zip(self._paths[some], detectors, strict=True)
        return np.stack([recogniser.photograph(path, self._size, detector) for path, detector in pairs])


def embed_photographs(
    subject: Subject, paths: Sequence[Path], side: int | None, cropped: bool = False
) -> tuple[np.ndarray, str]:
    """Embed the faces of image files, degraded to `side` pixels, without mirror images.

    Args:
        subject: The network.
        paths: The image files.
        side: Pixels; None: the network's own.
        cropped: Whether the images are crops of faces already; so they are taken where the detector is missing.

    Returns:
        (N,D), and a note where no face was looked for, else "".

    Raises:
        DataError: An image that cannot be read, or in which no face is found.
    """
    note = ""
    if not cropped:
        try:
            detection.detector()
        except ConfigError as error:
            cropped, note = True, f"the images were taken for crops of faces: {error}"
    images, preset = Photographs(paths, subject.network.size, cropped), evaluation_preset(subject.preset)
    return embedding.embed(subject.network, images, side=side, preset=preset, mirror=False), note


def why_not(subject: Subject) -> str:
    """Say why a network does not recognise photographs; empty where it may."""
    told = str(subject.notes.get("threshold_data", "")), str(subject.notes.get("data", ""))
    if not any(name.split("/")[0] == PROCEDURAL for name in told):
        return ""
    return f"{subject.name} was trained on rendered faces ({PROCEDURAL}) and does not recognise photographs"
