"""`python -m data_prep.folder --source DIR --out DIR`: one folder of photographs per person -> a prepared folder."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import commandline, files, writer
from data_prep.images import Framing
from data_prep.journal import Photo
from lrkd.errors import DataError

LICENCE = "not stated: the terms under which these photographs were given hold for this folder too"
MAX_NAMED = 200  # folders without an image that are named
HELP = """\
Turn one folder of photographs per person into a folder that lrkd reads:

  people/Ada/1.jpg  people/Ada/2.png  people/Ben/1.webp  ...

  python -m data_prep.folder --source people --out data/people-112
  python -m data_prep.folder --source people --out data/people-48 --size 48 --crop 0.8

Class ids follow the sorted folder names. Photographs are turned upright by their EXIF, cropped to the square in the
middle and resized: crop to the face beforehand or with --crop, or let --align find and align the faces (pip install
'lrkd[photos]'; of several the largest central one; an image without one is a miss in every protocol). Links, hidden
files and other formats are passed over.
Verification pairs (protocol "generated") are drawn with --seed in folds that share no person; fewer than four people,
or people with one image each, become a folder without pairs.
"""


@dataclass(frozen=True)
class Drawing:
    """Which pairs are drawn: in so many folds at most, with so many genuine pairs a person at most."""

    folds: int = 10
    seed: int = 0
    max_genuine: int = 15


def find(source: Path) -> tuple[list[Photo], list[str], list[str]]:
    """Photographs sorted by person and file name, what was passed over, and the folders that hold no image."""
    if not source.is_dir():
        raise DataError(f"--source {source}: no such folder: expected one that holds a folder per person")
    photos, ignored, empty = [], [], []
    for person in sorted(os.scandir(source), key=lambda entry: entry.name):
        if person.name.startswith(".") or not person.is_dir(follow_symlinks=False):
            ignored.append(person.name)
            continue
        if (Path(person.path) / "meta.json").is_file():  # a prepared folder that lies here
            ignored.append(person.name)
            continue
        found = 0
        for file in sorted(os.scandir(person.path), key=lambda entry: entry.name):
            where = f"{person.name}/{file.name}"
            hidden = file.name.startswith(".") or not file.is_file(follow_symlinks=False)
            if hidden or not file.name.lower().endswith(files.SUFFIXES):
                ignored.append(where)
                continue
            photos.append(Photo(person.name, where, Path(file.path).read_bytes))
            found += 1
        if not found:
            empty.append(person.name)
    if not photos:
        raise DataError(
            f"--source {source}: no folders of people with images in it: expected DIR/PERSON/IMAGE.jpg"
            + (f"; without an image are {', '.join(empty[:MAX_NAMED])}" if empty else "")
        )
    return photos, ignored, empty


def prepare(
    source: Path,
    out: Path,
    *,
    size: int = 112,
    crop: float = 1.0,
    align: bool = False,
    framing: Framing | None = None,
    drawing: Drawing = Drawing(),
    **options: Any,
) -> dict[str, Any]:
    """Write the prepared folder and return its meta; `options`, and `framing` for `crop`, go to `writer.Recipe`."""
    files.check_out(out, source)
    photos, ignored, empty = find(source)
    framing = framing or (Framing.found() if align else Framing.centre(crop))
    if empty:
        more = f" and {len(empty) - MAX_NAMED} more" if len(empty) > MAX_NAMED else ""
        named = ", ".join(empty[:MAX_NAMED]) + more
        print(f"left out, as no image lies directly in them ({len(empty)} folders): {named}", file=sys.stderr)
    if ignored:
        print(f"passed over {len(ignored)} entries that are no image of a person: {ignored[0]} ...", file=sys.stderr)

    def extras(kept: writer.Kept) -> writer.Extras:
        try:
            return writer.Extras.drawn(kept, None, drawing.folds, drawing.seed, max_genuine=drawing.max_genuine)
        except DataError as error:  # to embed and to identify they do
            return writer.Extras(notes=[f"no verification pairs: {error}"])

    writer.rehearse(photos, extras)
    named = {"licence": LICENCE, "tool": "data_prep.folder"} | options
    named["name"] = named.get("name") or source.resolve().name
    return writer.write(
        out,
        photos,
        len(photos),
        extras,
        writer.Recipe(size=size, framing=framing, **named),
    )


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """The options that say what the set is called and which pairs are drawn."""
    parser.add_argument("--name", help="name of the data set (default: the source folder's)")
    parser.add_argument("--licence", default=LICENCE, help="note on the terms of use, kept in meta.json")
    parser.add_argument("--seed", type=commandline.whole, default=0, help="draws the pairs (default 0)")
    parser.add_argument("--folds", type=commandline.positive, default=10, help="folds, at most (default 10)")
    parser.add_argument(
        "--max-genuine",
        type=commandline.positive,
        default=15,
        metavar="N",
        help="genuine pairs a person, at most",
    )


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = commandline.parser("folder", HELP)
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--crop",
        type=commandline.share,
        default=1.0,
        metavar="P",
        help="side of the crop, as a share of the shorter side",
    )
    group.add_argument("--align", action="store_true", help="find and align the faces instead")
    add_pairs(parser)
    options = vars(parser.parse_args(argv))
    drawing = commandline.bundle(options, Drawing)
    print(commandline.summary(options["out"], prepare(**options, drawing=drawing)))


if __name__ == "__main__":
    sys.exit(commandline.run(main))
