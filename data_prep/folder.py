"""`python -m data_prep.folder --source DIR --out DIR`: one folder of photographs per person -> a prepared folder."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from data_prep import layout
from lrkd.errors import DataError

LICENCE = "not stated: the terms under which these photographs were given hold for this folder too"
MAX_NAMED = 200  # folders without an image that are named
HELP = """\
Turn one folder of photographs per person into a folder that lrkd reads:

  people/Ada/1.jpg  people/Ada/2.png  people/Ben/1.webp  ...

  python -m data_prep.folder --source people --out data/people-112
  python -m data_prep.folder --source people --out data/people-48 --size 48 --crop 0.8

Class ids follow the sorted folder names. Photographs are turned upright by their EXIF, cropped to the square in the
middle and resized; crop to the face beforehand, or with --crop. Links, hidden files and other formats are passed over.
Verification pairs (protocol "generated") are drawn with --seed in folds that share no person; fewer than four people,
or people with one image each, become a folder without pairs.
"""


def find(source: Path) -> tuple[list[layout.Photo], list[str], list[str]]:
    """Photographs sorted by person and file name, what was passed over, and the folders that hold no image."""
    if not source.is_dir():
        raise DataError(f"--source {source}: no such folder: one that holds a folder per person is right")
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
            if hidden or not file.name.lower().endswith(layout.SUFFIXES):
                ignored.append(where)
                continue
            photos.append(layout.Photo(person.name, where, Path(file.path).read_bytes))
            found += 1
        if not found:
            empty.append(person.name)
    if not photos:
        raise DataError(
            f"--source {source}: no folders of people with images in it: DIR/PERSON/IMAGE.jpg is right"
            + (f"; without an image are {', '.join(empty[:MAX_NAMED])}" if empty else "")
        )
    return photos, ignored, empty


def prepare(
    source: Path,
    out: Path,
    *,
    size: int = 112,
    crop: float = 1.0,
    framing: dict[str, Any] | None = None,
    name: str | None = None,
    licence: str = LICENCE,
    seed: int = 0,
    folds: int = 10,
    max_genuine: int = 15,
    tool: str = "data_prep.folder",
    **options: Any,
) -> dict[str, Any]:
    """Write the prepared folder and return its meta; `options`, and `framing` for `crop`, go to `layout.write`."""
    layout.check_out(out, source)
    photos, ignored, empty = find(source)
    if empty:
        more = f" and {len(empty) - MAX_NAMED} more" if len(empty) > MAX_NAMED else ""
        named = ", ".join(empty[:MAX_NAMED]) + more
        print(f"left out, as no image lies directly in them ({len(empty)} folders): {named}", file=sys.stderr)
    if ignored:
        print(f"passed over {len(ignored)} entries that are no image of a person: {ignored[0]} ...", file=sys.stderr)

    def extras(sources: list[str], names: list[str], labels: list[int], digests: list[str]) -> layout.Extras:
        try:
            return layout.Extras.drawn(labels, digests, None, folds, seed, max_genuine=max_genuine)
        except DataError as error:  # to embed and to identify they do
            return layout.Extras(notes=[f"no verification pairs: {error}"])

    layout.rehearse(photos, extras)
    return layout.write(
        out,
        photos,
        len(photos),
        extras,
        name=name or source.resolve().name,
        size=size,
        licence=licence,
        tool=tool,
        **(framing or {"crop": {"kind": "centre", "share": crop}, "box": layout.centre_share(crop)}),
        **options,
    )


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """The options that say what the set is called and which pairs are drawn."""
    parser.add_argument("--name", help="name of the data set (default: the source folder's)")
    parser.add_argument("--licence", default=LICENCE, help="note on the terms of use, kept in meta.json")
    parser.add_argument("--seed", type=layout.whole, default=0, help="draws the pairs (default 0)")
    parser.add_argument("--folds", type=layout.positive, default=10, help="folds, at most (default 10)")
    parser.add_argument(
        "--max-genuine",
        type=layout.positive,
        default=15,
        metavar="N",
        help="genuine pairs a person, at most",
    )


def main(argv: list[str] | None = None) -> None:
    parser = layout.parser("folder", HELP)
    parser.add_argument(
        "--crop", type=layout.share, default=1.0, metavar="P", help="side of the crop, as a share of the shorter side"
    )
    add_pairs(parser)
    options = vars(parser.parse_args(argv))
    print(layout.summary(options["out"], prepare(**options)))


if __name__ == "__main__":
    sys.exit(layout.run(main))
