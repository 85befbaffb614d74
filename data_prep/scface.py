"""`python -m data_prep.scface --source DIR --out DIR`: SCface -> a prepared folder with roles by distance."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import align, commandline, files, writer
from data_prep.journal import Photo
from data_prep.tinyface import photo
from lrkd.errors import DataError

LICENCE = (
    "SCface, University of Zagreb (Grgic, Delac and Grgic 2011): given to research institutions that sign the release "
    "agreement; do not pass the images on, and publish only what the agreement allows."
)
HELP = """\
Turn SCface (130 people, a mugshot each, five surveillance cameras at three distances) into a folder that lrkd reads.

  python -m data_prep.scface --source downloads/SCface_database --out data/scface-112

DIR holds mugshot_frontal_cropped_all/001_frontal.jpg ... (or, with --mugshots original, mugshot_frontal_original_all)
and surveillance_cameras_all/001_cam1_1.jpg ..., the last number being the distance:
  mugshots                     -> role gallery
  distance 1, 2, 3             -> roles distance1 (4.20 m), distance2 (2.60 m), distance3 (1.00 m)
Cameras 6 and 7 see infrared and are left out unless --cameras names them. Splits: --test people (80), drawn with
--seed, are for testing and the others (50) for training; no list of the people of the usual split comes with the set.
Images keep their shape: black fills the square.
"""
_MUGSHOT = re.compile(r"(\d{3})_frontal\.jpe?g", re.IGNORECASE)
_CAMERA = re.compile(r"(\d{3})_cam([1-7])_([1-3])\.jpe?g", re.IGNORECASE)


@dataclass(frozen=True)
class Choice:
    """Which images are taken, and how many people, drawn with `seed`, are for testing."""

    mugshots: str = "cropped"
    cameras: tuple[int, ...] = (1, 2, 3, 4, 5)
    test: int = 80
    seed: int = 0


def find(source: Path, mugshots: str, cameras: tuple[int, ...]) -> list[Photo]:
    """Mugshots, then the cameras' images by distance, camera and person."""
    root = next((d for d in (source, source / "SCface_database") if (d / "surveillance_cameras_all").is_dir()), None)
    if root is None:
        raise DataError(f"--source {source}: no surveillance_cameras_all in it: expected what the archive unpacks to")
    gallery, probes = {}, []
    for file in files.pictures(root / f"mugshot_frontal_{mugshots}_all"):
        match = _MUGSHOT.fullmatch(file.name)
        if match is None or match[1] in gallery:
            raise DataError(f"{file}: expected one 001_frontal.jpg a person")
        gallery[match[1]] = photo(root, file, f"person-{match[1]}", "gallery")
    for file in files.pictures(root / "surveillance_cameras_all"):
        match = _CAMERA.fullmatch(file.name)
        if match is None:
            if re.fullmatch(r"\d{3}_cam8\.jpe?g", file.name, re.IGNORECASE):
                continue  # infrared mugshots, in some copies of the set
            raise DataError(f"{file}: expected PERSON_CAMERA_DISTANCE.jpg, as in 001_cam1_1.jpg")
        if match[1] not in gallery:
            raise DataError(f"{file}: person {match[1]} has no mugshot")
        if int(match[2]) in cameras:
            where = photo(root, file, f"person-{match[1]}", f"distance{match[3]}")
            probes.append(((match[3], match[2], match[1]), where))
    if not gallery or not probes:
        raise DataError(
            f"{root}: {len(gallery)} mugshots and {len(probes)} images of cameras {cameras}: both are needed"
        )
    return [*gallery.values(), *(where for _, where in sorted(probes, key=lambda item: item[0]))]


def prepare(
    source: Path,
    out: Path,
    *,
    size: int = 112,
    crop: float | None = None,
    landmarks: Path | None = None,
    choice: Choice = Choice(),
    **options: Any,
) -> dict[str, Any]:
    """Write the prepared folder and return its meta; `options` go to `writer.Recipe`."""
    files.check_out(out, source)
    photos = find(source, choice.mugshots, choice.cameras)
    people = sorted({p.name for p in photos})
    if not choice.test < len(people):
        raise DataError(f"--test {choice.test}: {source} has {len(people)} people: expected fewer to test with")
    tested = set(np.random.default_rng(choice.seed).permutation(people)[: choice.test].tolist())

    def extras(kept: writer.Kept) -> writer.Extras:
        parts = {"train": lambda name: name not in tested, "test": lambda name: name in tested}
        return writer.Extras(splits={s: [k for k, n in enumerate(kept.names) if part(n)] for s, part in parts.items()})

    return writer.write(
        out,
        photos,
        len(photos),
        extras,
        writer.Recipe("scface", size, LICENCE, "data_prep.scface", align.frame(crop, landmarks), **options),
    )


def _cameras(text: str) -> tuple[int, ...]:
    """argparse type: 1,2,3."""
    words = text.split(",")
    if not all(word in tuple("1234567") for word in words):
        raise argparse.ArgumentTypeError(f"expected numbers of cameras from 1 to 7, as in 1,2,3, got {text}")
    return tuple(sorted({int(word) for word in words}))


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = commandline.parser("scface", HELP)
    align.add_frame(parser)
    parser.add_argument("--mugshots", choices=("cropped", "original"), default="cropped", help="default: cropped")
    parser.add_argument("--cameras", type=_cameras, default=(1, 2, 3, 4, 5), metavar="LIST", help="default: 1,2,3,4,5")
    parser.add_argument("--test", type=commandline.positive, default=80, metavar="N", help="people to test with (80)")
    parser.add_argument("--seed", type=commandline.whole, default=0, help="draws them (default 0)")
    options = vars(parser.parse_args(argv))
    choice = commandline.bundle(options, Choice)
    print(commandline.summary(options["out"], prepare(**options, choice=choice)))


if __name__ == "__main__":
    sys.exit(commandline.run(main))
