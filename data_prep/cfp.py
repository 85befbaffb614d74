"""`python -m data_prep.cfp --source DIR --out DIR`: Celebrities in Frontal-Profile -> a prepared folder."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from data_prep import align, commandline, files, writer
from data_prep.journal import Photo
from lrkd.errors import DataError

LICENCE = (
    "Celebrities in Frontal-Profile in the Wild (Sengupta et al. 2016): photographs whose rights stay with their "
    "owners, for research that is not commercial; do not pass the images on."
)
HELP = """\
Turn CFP (500 people, 10 frontal and 4 profile images each) into a folder that lrkd reads.

  python -m data_prep.cfp --source downloads/cfp-dataset --out data/cfp-112

DIR holds Data/Images/001/frontal/01.jpg ..., Data/Images/001/profile/01.jpg ..., and in Protocol the files
Pair_list_F.txt, Pair_list_P.txt and Split/FF/01/same.txt, diff.txt ... (-> protocol ff), Split/FP/... (-> protocol fp):
7,000 pairs each, in 10 folds. Roles: frontal, profile.
"""
_LINE = re.compile(r"(\d+)\s+(?:\S*/)?Images/(\d+)/(frontal|profile)/(\d+)\.jpg", re.IGNORECASE)
_PAIR = re.compile(r"\s*(\d+)\s*,\s*(\d+)\s*")
POSES = {"F": "frontal", "P": "profile"}


def read_list(path: Path, pose: str) -> dict[int, str]:
    """Pair_list_F.txt and Pair_list_P.txt: number -> source, as in 001/frontal/01.jpg."""
    found: dict[int, str] = {}
    for number, line in enumerate(files.lines(path), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match[3].lower() != pose or int(match[1]) in found:
            raise DataError(
                f"{path} line {number}: expected NUMBER .../Images/001/{pose}/01.jpg, once, got {line[:80]!r}"
            )
        found[int(match[1])] = f"{match[2]}/{pose}/{match[4]}.jpg"
    return found


def read_pairs(path: Path, left: dict[int, str], right: dict[int, str]) -> list[tuple[str, str]]:
    """same.txt or diff.txt: two numbers of the lists a line."""
    found = []
    for number, line in enumerate(files.lines(path), 1):
        if not line.strip():
            continue
        match = _PAIR.fullmatch(line)
        if match is None or int(match[1]) not in left or int(match[2]) not in right:
            raise DataError(f"{path} line {number}: expected two numbers of the lists, as in 3,14, got {line[:80]!r}")
        found.append((left[int(match[1])], right[int(match[2])]))
    return found


def find(source: Path) -> tuple[Path, list[Photo]]:
    """The folder of Data and Protocol, and the photographs sorted by person, pose and number."""
    root = next((d for d in (source, source / "cfp-dataset") if (d / "Data" / "Images").is_dir()), None)
    if root is None:
        raise DataError(f"--source {source}: no Data/Images in it: expected what CFP's archive unpacks to")
    photos = []
    for person in sorted((root / "Data" / "Images").iterdir()):
        if person.is_symlink() or not person.is_dir() or person.name.startswith("."):
            continue
        for pose in POSES.values():
            for file in files.pictures(person / pose) if (person / pose).is_dir() else ():
                where = f"{person.name}/{pose}/{file.name}"
                photos.append(Photo(person.name, where, file.read_bytes, role=pose))
    if not photos:
        raise DataError(f"{root}: no images in it: expected Data/Images/001/frontal/01.jpg")
    return root, photos


def prepare(
    source: Path,
    out: Path,
    *,
    size: int = 112,
    crop: float | None = 1.0,
    landmarks: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write the prepared folder and return its meta; `options` go to `writer.Recipe`."""
    files.check_out(out, source)
    root, photos = find(source)
    lists = {pose: read_list(root / "Protocol" / f"Pair_list_{pose}.txt", name) for pose, name in POSES.items()}
    person_of = {photo.source: photo.name for photo in photos}
    wanted: list[tuple[str, str, int, int, str]] = []
    for protocol in ("FF", "FP"):
        folder = root / "Protocol" / "Split" / protocol
        parts = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        if not parts:
            raise DataError(f"{folder}: no folds in it: expected 01/same.txt, 01/diff.txt, ...")
        for fold, part in enumerate(parts):
            for same in (1, 0):
                file = part / ("same.txt" if same else "diff.txt")
                for a, b in read_pairs(file, lists[protocol[0]], lists[protocol[1]]):
                    for image in (a, b):
                        if image not in person_of:
                            raise DataError(f"{file}: {image} is not in {root / 'Data' / 'Images'}")
                    if (person_of[a] == person_of[b]) != bool(same):
                        raise DataError(f"{file}: {a} and {b} are {'not ' * same}of one person")
                    wanted.append((a, b, same, fold, protocol.lower()))

    return writer.write(
        out,
        photos,
        len(photos),
        lambda kept: writer.Extras.named(kept, wanted),
        writer.Recipe("cfp", size, LICENCE, "data_prep.cfp", align.frame(crop, landmarks), **options),
    )


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = commandline.parser("cfp", HELP)
    align.add_frame(parser, 1.0)
    options = vars(parser.parse_args(argv))
    print(commandline.summary(options["out"], prepare(**options)))


if __name__ == "__main__":
    sys.exit(commandline.run(main))
