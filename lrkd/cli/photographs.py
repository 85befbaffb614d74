"""Photographs of faces that `lrkd embed` and `lrkd compare` show to a network."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrkd.cli.output import first_few, warn
from lrkd.cli.subject import Subject
from lrkd.data import detection
from lrkd.data.alignment import NoFace, central, extent, outside
from lrkd.data.images import NAMES
from lrkd.errors import ConfigError
from lrkd.evaluation import embedding
from lrkd.onnx import recogniser
from lrkd.study.measures import evaluation_preset
from lrkd.study.spec import PROCEDURAL

FORMATS = f"a photograph of a face in {NAMES}"
CUT = 0.05  # of an aligned face may lie outside its photograph; beyond that the edge that goes on is part of the face
DOUBTED = 80  # percent; of LFW's faces 99 in 100 are found with 87 or more
WRONG = {"false_match_rate": ("one person", 0.25), "false_non_match_rate": ("two people", 0.5)}  # at most


class Shown(NamedTuple):
    """Embeddings (N,D); whether faces were found and aligned; which are cut off by their image's edge, with the share."""

    features: np.ndarray
    aligned: bool
    cut: Mapping[Path, float]


class Photographs:
    """Image files as uint8 (N,size,size,3), each read when a slice asks for it; with a finder their faces, aligned."""

    def __init__(self, paths: Sequence[Path], size: int, find: detection.Finder | None) -> None:
        self._paths, self._size, self._find = paths, size, find
        self.cut: dict[Path, float] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, some: slice) -> np.ndarray:
        detectors = [None if self._find is None else partial(self._face, path) for path in self._paths[some]]
        pairs = zip(self._paths[some], detectors, strict=True)
        return np.stack([recogniser.photograph(path, self._size, detector) for path, detector in pairs])

    def _face(self, path: Path, image: np.ndarray) -> np.ndarray:
        """The landmarks of the face that a photograph is of, (1,5,2); warnings of what is doubtful."""
        assert self._find is not None
        faces, certainty = self._find(image)
        if not len(faces):
            raise NoFace("where the image is a crop of a face already, say --cropped")
        face = central(faces, *image.shape[:2])
        taken = np.abs(faces - face).sum((1, 2)).argmin()
        told = [
            f"{wide:.0f} px wide around ({x:.0f},{y:.0f})"
            for wide, (x, y) in zip(extent(faces), faces.mean(1), strict=True)
        ]
        if len(faces) > 1:
            others = first_few(told[:taken] + told[taken + 1 :])
            warn(
                f"{path}: {len(faces)} faces were found: taken is the largest central one, {told[taken]}; not {others}"
            )
        if certainty[taken] < DOUBTED:
            warn(f"{path}: the detector is only {certainty[taken]} % sure that there is a face, {told[taken]}")
        share = outside(face, image.shape[1], image.shape[0])
        if share > CUT:
            self.cut[path] = share
            warn(f"{path}: {share:.0%} of the aligned face lie outside the image: take one with more around the face")
        return face[None]


def embed_photographs(subject: Subject, paths: Sequence[Path], side: int | None, cropped: bool = False) -> Shown:
    """Embed the faces of image files, degraded to `side` pixels, without mirror images.

    Args:
        subject: The network.
        paths: The image files.
        side: Pixels; None: those that the network was trained for.
        cropped: Whether the images are crops of faces already; they are taken for such where the detector is missing,
            after a warning.

    Raises:
        DataError: An image that cannot be read, or in which no face is found.
    """
    find = None
    if not cropped:
        try:
            find = detection.finder()
        except ConfigError as error:
            warn(f"the images were taken for crops of faces: {error}")
    images, preset = Photographs(paths, subject.network.size, find), evaluation_preset(subject.preset)
    side = side or subject.own
    side = None if side == subject.network.size else side
    features = embedding.embed(subject.network, images, side=side, preset=preset, mirror=False)
    return Shown(features, find is not None, images.cut)


def why_not(subject: Subject) -> str:
    """Say why a network does not recognise photographs; empty where it may."""
    told = str(subject.notes.get("threshold_data", "")), str(subject.notes.get("data", ""))
    if not any(name.split("/")[0] == PROCEDURAL for name in told):
        return ""
    return f"{subject.name} was trained on rendered faces ({PROCEDURAL}) and does not recognise photographs"


def no_verdict(subject: Subject, shown: Shown, side: int) -> str:
    """Say why the network's threshold tells nothing of these photographs at `side` pixels; empty where it does."""
    notes = subject.notes
    if why := why_not(subject):
        return (
            f"{why}.\nA threshold from rendered faces does not hold there: two people may well lie above it. Train on "
            "photographs (`lrkd train --data`) and `lrkd export` that run"
        )
    try:
        threshold, known = float(notes["threshold"]), int(notes["side"])
        rates = {name: float(notes.get(name, 0)) for name in WRONG}
    except (KeyError, ValueError):
        return "the model carries no threshold to hold that against: `lrkd export` finds one, and its file carries it"
    if known != side:
        return f"its threshold was found at {known} px and these images have {side}: --side {known} compares there"
    if (framed := notes.get("faces")) == ("centre" if shown.aligned else "five points"):
        got = "found and aligned" if shown.aligned else "taken as they are"
        return f"its threshold was found on faces framed by {framed}, and these were {got}: it does not hold for them"
    if shown.cut:
        return "part of a face lies outside its image, and the threshold does not hold for what was filled in there"
    if not -1 < threshold < 1:
        return f"its threshold {threshold:.4f} is no cosine that could separate anybody"
    for name, (taken, most) in WRONG.items():
        if not rates[name] <= most:
            kind = "impostor" if taken == "one person" else "genuine"
            of = f"the {kind} pairs of {notes.get('threshold_data') or 'its validation people'}"
            return f"at its threshold {threshold:.4f} the network takes {rates[name]:.1%} of {of} for {taken}"
    return ""
