"""`python -m data_prep.agedb --source DIR --out DIR`: AgeDB's raw folder -> a prepared folder with ages."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import align, commandline, files, writer
from data_prep.journal import Photo
from lrkd.errors import DataError

LICENCE = (
    "AgeDB, Imperial College London (Moschoglou et al. 2017): given on request, for research that is not commercial; "
    "do not pass the images on."
)
HELP = """\
Turn the raw images of AgeDB into a folder that lrkd reads, with the age of each face.

  python -m data_prep.agedb --source downloads/AgeDB --out data/agedb-112
  python -m data_prep.agedb --source downloads/AgeDB --out data/agedb-112 --landmarks agedb-landmarks.csv

DIR holds NUMBER_NAME_AGE_SEX.jpg, as in 0_MariaCallas_35_f.jpg. Protocol agedb30: pairs of images at least --gap years
apart, genuine and impostor alike, in folds that share no person, drawn with --seed. The owners' own pairs of 112 px
faces come as insightface's agedb_30.bin: python -m data_prep.pairs_bin.
"""
_FILE = re.compile(r"(?P<number>\d+)_(?P<name>.+)_(?P<age>\d{1,3})_(?P<sex>[mf])\.jpe?g", re.IGNORECASE)


@dataclass(frozen=True)
class Drawing:
    """Which pairs are drawn: at least `gap` years apart, so many in so many folds."""

    gap: int = 30
    pairs: int = 6000
    folds: int = 10
    seed: int = 0


def find(source: Path) -> list[Photo]:
    """The photographs, by number. Raises DataError for a file name that says no name and age."""
    inner = source / "AgeDB"
    photos = []
    for file in files.pictures(inner if inner.is_dir() else source):
        match = _FILE.fullmatch(file.name)
        if match is None:
            raise DataError(f"{file}: expected NUMBER_NAME_AGE_SEX.jpg, as in 0_MariaCallas_35_f.jpg")
        photos.append((int(match["number"]), Photo(match["name"], file.name, file.read_bytes, int(match["age"]))))
    if not photos:
        raise DataError(f"{source}: no images in it: expected a folder of NUMBER_NAME_AGE_SEX.jpg")
    return [photo for _, photo in sorted(photos, key=lambda item: (item[0], item[1].source))]


def prepare(
    source: Path,
    out: Path,
    *,
    size: int = 112,
    crop: float | None = 1.0,
    landmarks: Path | None = None,
    drawing: Drawing = Drawing(),
    **options: Any,
) -> dict[str, Any]:
    """Write the prepared folder and return its meta; `options` go to `writer.Recipe`."""
    files.check_out(out, source)
    photos = find(source)
    age_of = {photo.source: photo.age for photo in photos}

    def extras(kept: writer.Kept) -> writer.Extras:
        ages = np.array([age_of[where] for where in kept.sources], dtype=np.float64)
        count, folds, seed, gap = drawing.pairs, drawing.folds, drawing.seed, drawing.gap
        try:
            return writer.Extras.drawn(kept, count, folds, seed, protocol=f"agedb{gap}", age_gap=(ages, gap))
        except DataError as error:
            raise DataError(f"{source}: pairs {gap} years apart: {error} (--pairs, --folds, --gap)") from error

    writer.rehearse(photos, extras)
    return writer.write(
        out,
        photos,
        len(photos),
        extras,
        writer.Recipe("agedb", size, LICENCE, "data_prep.agedb", align.frame(crop, landmarks), **options),
    )


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = commandline.parser("agedb", HELP)
    align.add_frame(parser, 1.0)
    parser.add_argument(
        "--gap", type=commandline.positive, default=30, metavar="YEARS", help="least age gap (default 30)"
    )
    parser.add_argument("--pairs", type=commandline.positive, default=6000, metavar="N", help="how many (default 6000)")
    parser.add_argument("--folds", type=commandline.positive, default=10, metavar="N", help="folds (default 10)")
    parser.add_argument("--seed", type=commandline.whole, default=0, help="draws the pairs (default 0)")
    options = vars(parser.parse_args(argv))
    drawing = commandline.bundle(options, Drawing)
    print(commandline.summary(options["out"], prepare(**options, drawing=drawing)))


if __name__ == "__main__":
    sys.exit(commandline.run(main))
