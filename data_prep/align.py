"""`python -m data_prep.align --source DIR --out DIR`: photographs -> a prepared folder of aligned faces."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import commandline, files, folder
from data_prep.images import Framing
from lrkd.data.alignment import Detector, NoFace, warp
from lrkd.data.images import MAX_FILE, upright
from lrkd.errors import ConfigError, DataError

HELP = """\
Align photographs, one folder per person, by five landmarks a face: the similarity transform that brings both eyes, the
nose and the corners of the mouth closest to the template that ArcFace's training sets use at 112 px.

  python -m data_prep.align --source people                        --out data/people-112
  python -m data_prep.align --source people --landmarks people.csv --out data/people-112
  python -m data_prep.align --source people --detector mine:detect  --out data/people-112

The detector that finds them comes with pip install 'lrkd[photos]', unless you name your own or their landmarks. Of
several faces the largest central one is taken: the area less twice the squared distance from the middle counts. Where a
face is cut off, the photograph's edge goes on.

The CSV has a line an image, source,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5: the path below DIR (Ada/1.jpg), then in pixels from
the upper left pixel's centre the eye on the left of the picture, the other eye, the nose, the corners of the mouth from
left to right. A detector is any function of yours, MODULE:FUNCTION, from an image (H,W,3) uint8 RGB to the landmarks of
all faces in it (n,5,2). An image without a line, with empty fields or points that fix no face, or in which the detector
finds none is kept whole, marked as missing, counted, and named in meta.json: every protocol counts it as a miss, and
nothing is trained on it.
"""
COLUMNS = ("source", *(f"{axis}{point}" for point in range(1, 6) for axis in "xy"))


def read_landmarks(path: Path) -> dict[str, np.ndarray | None]:
    """source -> (5,2), or None where the fields are empty. Raises DataError naming the line."""
    if not path.is_file():
        raise DataError(f"--landmarks {path}: no such file: expected a CSV with {','.join(COLUMNS)}")
    try:
        text = files.content(path, MAX_FILE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: dict[str, np.ndarray | None] = {}
    try:
        for row in rows:
            if rows.line_num == 1:
                if tuple(row) != COLUMNS:
                    raise DataError(f"{path} line 1: expected {','.join(COLUMNS)}, got {','.join(row)[:80]!r}")
                continue
            if len(row) != len(COLUMNS) or row[0] in found:
                wrong = f"{len(row)} fields" if len(row) != len(COLUMNS) else f"{row[0]!r} comes twice"
                raise DataError(
                    f"{path} line {rows.line_num}: expected one line of {len(COLUMNS)} fields an image, got {wrong}"
                )
            try:
                points = np.array(row[1:], dtype=np.float64).reshape(5, 2) if any(row[1:]) else None
            except ValueError:
                points = np.full((5, 2), np.nan)
            if points is not None and not (np.abs(points) < 1e6).all():
                raise DataError(f"{path} line {rows.line_num}: expected ten numbers, got {','.join(row[1:])[:80]!r}")
            found[row[0]] = points
    except csv.Error as error:
        raise DataError(f"{path} line {rows.line_num}: cannot be read as CSV: {error}") from error
    if not found:
        raise DataError(f"{path}: no landmarks: expected {','.join(COLUMNS)} and a line an image")
    return found


def framing(landmarks: Mapping[str, np.ndarray | None] | None = None, detector: Detector | None = None) -> Framing:
    """Align faces instead of cropping them: by the landmarks of each source, or by a detector (default: ours)."""
    if landmarks is None:
        return Framing.found(detector)
    if detector is not None:
        raise ConfigError("expected landmarks or a detector, got both")

    def decode(source: str, data: bytes, size: int) -> np.ndarray:
        points = landmarks.get(source)
        if points is None:
            raise NoFace("no landmarks")
        with upright(data) as image:
            return warp(image, points, size)

    told = sorted((source, None if points is None else points.tolist()) for source, points in landmarks.items())
    digest = hashlib.sha256(repr(told).encode()).hexdigest()
    return Framing({"kind": "five points", "by": "landmarks", "sha256": digest}, decode, finds_faces=True)


def add_frame(parser: argparse.ArgumentParser, crop: float | None = None) -> None:
    """The options of the tools that can crop or align."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--crop",
        type=commandline.share,
        default=crop,
        metavar="P",
        help="side of the middle square, as a share of the shorter side (default: "
        + ("the whole image, black around it)" if crop is None else f"{crop})"),
    )
    group.add_argument(
        "--landmarks", type=Path, metavar="CSV", help="align by these instead (see python -m data_prep.align --help)"
    )


def frame(crop: float | None, landmarks: Path | None) -> Framing:
    """Make a framing of the options of `add_frame`."""
    if landmarks is not None:
        return framing(read_landmarks(landmarks))
    return Framing.whole() if crop is None else Framing.centre(crop)


def prepare(
    source: Path,
    out: Path,
    *,
    landmarks: Path | None = None,
    detector: Detector | None = None,
    size: int = 112,
    **options: Any,
) -> dict[str, Any]:
    """Write the prepared folder and return its meta; `options` go to `folder.prepare`."""
    told = None if landmarks is None else read_landmarks(landmarks)
    made = None if told is None and detector is None else framing(told, detector)
    return folder.prepare(source, out, size=size, framing=made, align=True, tool="data_prep.align", **options)


def _named(text: str) -> Detector:
    """argparse type: MODULE:FUNCTION."""
    try:
        found = pkgutil.resolve_name(text)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: expected MODULE:FUNCTION, got {error}") from error
    if not callable(found):
        raise argparse.ArgumentTypeError(f"{text}: not a function")

    def detector(image: np.ndarray) -> Any:
        return found(image)

    # What one call made in two ways may have one name of its own.
    detector.__module__, _, detector.__qualname__ = text.partition(":")
    return detector


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = commandline.parser("align", HELP)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--landmarks", type=Path, metavar="CSV", help="five landmarks an image")
    group.add_argument("--detector", type=_named, metavar="MODULE:FUNCTION", help="your function that finds them")
    folder.add_pairs(parser)
    options = vars(parser.parse_args(argv))
    drawing = commandline.bundle(options, folder.Drawing)
    print(commandline.summary(options["out"], prepare(**options, drawing=drawing)))


if __name__ == "__main__":
    sys.exit(commandline.run(main))
