"""Photographs of faces that `lrkd embed` and `lrkd compare` show to a network."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
CUT = 0.1  # of an aligned face may lie outside its photograph; with more, more pairs of LFW are judged wrong
DOUBTED = 80  # percent; of LFW's faces 99 in 100 are found with 87 or more
WRONG = {
    "false_match_rate": ("impostor", 0.25),
    "false_non_match_rate": ("genuine", 0.5),
}  # the most that a threshold may have


class Shown(NamedTuple):
    """Embeddings (N,D), whether faces were found and aligned, and the largest share of one outside its photograph."""

    features: np.ndarray
    aligned: bool
    cut: float


def _face(find: detection.Finder, path: Path, cut: list[float], image: np.ndarray) -> np.ndarray:
    """The landmarks of the face that a photograph is of, (1,5,2), after warnings of what is doubtful."""
    faces, certainty = find(image)
    if not len(faces):
        raise NoFace("where the image is a crop of a face already, say --cropped")
    face = central(faces, *image.shape[:2])
    taken = np.abs(faces - face).sum((1, 2)).argmin()
    told = ["{:.0f} px wide at ({:.0f},{:.0f})".format(*row) for row in np.c_[extent(faces), faces.mean(1)]]
    if len(faces) > 1:
        others = first_few(told[:taken] + told[taken + 1 :])
        warn(f"{path}: {len(faces)} faces found: the largest central one is taken, {told[taken]}; the others: {others}")
    if certainty[taken] < DOUBTED:
        warn(f"{path}: the detector is only {certainty[taken]} % sure of the face {told[taken]}")
    cut.append(outside(face, image.shape[1], image.shape[0]))
    if cut[-1] > CUT:
        warn(f"{path}: {cut[-1]:.0%} of the aligned face lies outside the image: take one with more around the face")
    return face[None]


def embed_photographs(subject: Subject, paths: Sequence[Path], side: int | None, cropped: bool = False) -> Shown:
    """Embed the faces of image files, degraded to `side` pixels, without mirror images.

    Args:
        subject: The network.
        paths: The image files.
        side: Pixels; None: those that the network was trained for.
        cropped: Whether the images are crops of faces already; where the detector is missing they are taken for such,
            after a warning.

    Raises:
        DataError: An image that cannot be read, or in which no face is found.
    """
    find, missing, cut, size = None, None, [0.0], subject.network.size
    try:
        find = None if cropped else detection.finder()
    except ConfigError as error:
        missing = error
    detectors = [None if find is None else partial(_face, find, path, cut) for path in paths]
    images = np.stack([recogniser.photograph(path, size, one) for path, one in zip(paths, detectors, strict=True)])
    if missing:
        warn(f"the images were taken for crops of faces: {missing}")
    return Shown(embed_plain(subject, images, side), find is not None, max(cut))


def embed_plain(subject: Subject, images: Any, side: int | None) -> np.ndarray:
    """Embed uint8 images (N,S,S,3), not mirrored, degraded to `side` pixels or those that it was trained for: (N,D)."""
    side = side or (None if subject.own == images.shape[1] else subject.own)
    return embedding.embed(subject.network, images, side=side, preset=evaluation_preset(subject.preset), mirror=False)


def why_not(subject: Subject) -> str:
    """Say why a network does not recognise photographs; empty where it may."""
    told = [subject.notes.get(name, "").split("/")[0] for name in ("threshold_data", "data")]
    why = f"{subject.name} was trained on rendered faces ({PROCEDURAL}) and does not recognise photographs"
    return why if PROCEDURAL in told else ""


def no_verdict(subject: Subject, shown: Shown, side: int) -> str:
    """Say why the network's threshold tells nothing of these photographs at `side` pixels; empty where it does."""
    notes, framed = subject.notes, "centre" if shown.aligned else "five points"
    if why := why_not(subject):
        told = "`lrkd train --data` with photographs and `lrkd export` make one that does"
        return f"{why}.\nA threshold from rendered faces does not hold there: {told}"
    try:
        threshold, known = float(notes["threshold"]), int(notes["side"])
        rates = {name: float(notes.get(name, 0)) for name in WRONG}
    except (KeyError, ValueError):
        return "the model carries no threshold to hold that against: `lrkd export` finds one, and its file carries it"
    if known != side:
        return f"its threshold was found at {known} px and these images have {side}: --side {known} compares there"
    if notes.get("faces") == framed:
        return (
            f"its threshold holds for faces framed by {framed}, and these were {'' if shown.aligned else 'not '}aligned"
        )
    if shown.cut > CUT:
        return "its threshold does not hold for a face of which part lies outside the image"
    for name, (pairs, most) in WRONG.items():
        if not rates[name] <= most or not -1 < threshold < 1:
            of = f"{pairs} pairs of {notes.get('threshold_data') or 'its validation people'}"
            return f"its threshold {threshold:.4f} is worth little: it is wrong in {rates[name]:.1%} of the {of}"
    return ""
