"""`python -m data_prep.tinyface --source DIR --out DIR`: TinyFace -> a prepared folder with roles."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from data_prep import align, commandline, files, matlab, writer
from data_prep.journal import Photo
from lrkd.data.alignment import NoFace
from lrkd.errors import DataError

LICENCE = (
    "TinyFace, Queen Mary University of London (Cheng, Zhu and Gong 2018): for research that is not commercial; do not "
    "pass the images on."
)
HELP = """\
Turn TinyFace (native low-resolution faces, about 20 px) into a folder that lrkd reads.

  python -m data_prep.tinyface --source downloads/tinyface --out data/tinyface-112

DIR is what the archive unpacks to, with
  Training_Set/ID/*.jpg                                                      -> role train, split train
  Testing_Set/Gallery_Match/*.jpg,  gallery_match_img_ID_pairs.mat beside it -> role gallery
  Testing_Set/Probe/*.jpg,          probe_img_ID_pairs.mat beside it         -> role probe
  Testing_Set/Gallery_Distractor/*.jpg                                       -> role distractor, a person each
The training set and the distractors may be left out. Images keep their shape: black fills the square.

The aligned faces that AdaFace's authors gave out, which are what recent figures are of, are read too:

  python -m data_prep.tinyface --source downloads/aligned_pad_0.1_pad_high --out data/tinyface-112

DIR holds Probe, Gallery_Match and maybe Train/ID and Gallery_Distractor; the person is the number before the first _ of
a file name. Where the owners' lists are found beside it (tinyface/Testing_Set/*.mat), they rule, and an image that they
name and that is not there is a face that was not found: it stays, and counts as a miss.
"""
LISTS = {
    "gallery": ("Gallery_Match", "gallery_match_img_ID_pairs.mat", "gallery_set", "gallery_ids"),
    "probe": ("Probe", "probe_img_ID_pairs.mat", "probe_set", "probe_ids"),
}

# Where TinyFace's own lists are, seen from the folder that the aligned faces lie in.
BESIDE = ("tinyface/Testing_Set", "tinyface/tinyface/Testing_Set", "Testing_Set")


def listed(folder: Path, file: Path, names_key: str, ids_key: str) -> list[tuple[Path, int]]:
    """The images that a .mat file lists, with their ids. Raises DataError where list and folder disagree."""
    names = [name for (name,) in matlab.names(file, names_key)]
    ids = matlab.numbers(file, ids_key)
    if len(names) != len(ids):
        raise DataError(f"{file}: expected one id an image, got {len(names)} names and {len(ids)} ids")
    if names and (most := Counter(names).most_common(1)[0])[1] > 1:
        raise DataError(f"{file}: {most[0]} comes {most[1]} times: expected each name once")
    there = {path.name: path for path in files.pictures(folder)}
    if gone := [name for name in names if name not in there]:
        raise DataError(f"{file}: {gone[0]} is not in {folder} ({len(gone)} such names)")
    if extra := sorted(set(there) - set(names)):
        raise DataError(f"{folder}: {extra[0]} is not in {file.name} ({len(extra)} such images)")
    return [(there[name], number) for name, number in zip(names, ids, strict=True)]


def training(folder: Path, root: Path, prefix: str = "train-") -> list[Photo]:
    """A folder of people's folders, which are numbers, as photographs of role train; none where it is not there."""
    photos = []
    for person in sorted(folder.iterdir()) if folder.is_dir() else ():
        if person.is_symlink() or not person.is_dir() or person.name.startswith("."):
            continue
        if not (person.name.isascii() and person.name.isdigit()):
            raise DataError(f"{person}: expected folders named by a person's number")
        name = f"{prefix}{int(person.name):06d}"
        photos += [photo(root, file, name, "train") for file in files.pictures(person)]
    return photos


def photo(root: Path, file: Path, name: str, role: str) -> Photo:
    return Photo(name, file.relative_to(root).as_posix(), file.read_bytes, role=role)


def find(source: Path) -> list[Photo]:
    """Training images, gallery, probes and distractors, in that order."""
    roots = [d for d in (source, source / "tinyface", source / "tinyface" / "tinyface") if holds(d)]
    if not roots:
        if (
            found := next((d for d in (source, *sorted(source.glob("aligned*"))) if holds_aligned(d)), None)
        ) is not None:
            return aligned(found)
        raise DataError(
            f"--source {source}: no Testing_Set in it, and no Probe with Gallery_Match: expected what TinyFace's "
            "archive unpacks to, or aligned_pad_0.1_pad_high"
        )
    root = roots[0]
    photos = training(root / "Training_Set", root)
    test = root / "Testing_Set"
    for role, (folder, file, names_key, ids_key) in LISTS.items():
        images = listed(test / folder, test / file, names_key, ids_key)
        photos += [photo(root, path, f"test-{number:06d}", role) for path, number in images]
    return photos + distractors(test, root)


def distractors(test: Path, root: Path) -> list[Photo]:
    """Images of people that no probe shows, a person each; none where the folder is not there."""
    folder = test / "Gallery_Distractor"
    if not folder.is_dir():
        print(f"no {folder}: the gallery has no distractors", file=sys.stderr)
        return []
    return [photo(root, path, f"unknown-{path.name}", "distractor") for path in files.pictures(folder)]


def aligned(root: Path) -> list[Photo]:
    """The same roles from faces that others have aligned, which may have lost some, and renamed .jpg to .png."""
    photos = training(root / "Train", root)
    lists = next((d for d in (root, *(root.parent / d for d in BESIDE)) if (d / LISTS["probe"][1]).is_file()), None)
    for role, (folder, file, names_key, ids_key) in LISTS.items():
        there: dict[str, Path] = {}
        for path in files.pictures(root / folder):
            if there.setdefault(path.stem, path) != path:
                raise DataError(f"{path}: {there[path.stem].name} is there too: expected one image of that name")
        told = {stem: person(path) for stem, path in there.items()}
        if lists is not None:
            names = [name for (name,) in matlab.names(lists / file, names_key)]
            numbers = matlab.numbers(lists / file, ids_key)
            if len(names) != len(numbers):
                raise DataError(
                    f"{lists / file}: expected one id an image, got {len(names)} names and {len(numbers)} ids"
                )
            told = {Path(name).stem: number for name, number in zip(names, numbers, strict=True)}
            if extra := sorted(set(there) - set(told)):
                raise DataError(f"{there[extra[0]]}: is not in {lists / file} ({len(extra)} such images)")
        for stem, number in told.items():
            name = f"test-{number:06d}"
            photos.append(
                photo(root, there[stem], name, role)
                if stem in there
                else Photo(name, f"{folder}/{stem}", absent, role=role)
            )
    return photos + distractors(root, root)


def person(file: Path) -> int:
    """12 for 12_3.jpg."""
    number = file.name.partition("_")[0]
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise DataError(f"{file}: expected PERSON_NUMBER.jpg, as in 12_3.jpg, where no list says who it is")
    return int(number)


def absent() -> bytes:
    raise NoFace("in the list, but not among the aligned faces")


def holds(folder: Path) -> bool:
    return (folder / "Testing_Set").is_dir()


def holds_aligned(folder: Path) -> bool:
    return (folder / "Probe").is_dir() and (folder / "Gallery_Match").is_dir()


def splits(names: list[str]) -> dict[str, list[int]]:
    """Labels of the people to train and to test with, by their prefix; people known to nobody are in neither."""
    found = {s: [k for k, name in enumerate(names) if name.startswith(f"{s}-")] for s in ("train", "test")}
    return found if all(found.values()) else {}


def prepare(
    source: Path,
    out: Path,
    *,
    size: int = 112,
    crop: float | None = None,
    landmarks: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write the prepared folder and return its meta; `options` go to `writer.Recipe`."""
    files.check_out(out, source)
    photos = find(source)
    return writer.write(
        out,
        photos,
        len(photos),
        lambda kept: writer.Extras(splits=splits(kept.names)),
        writer.Recipe("tinyface", size, LICENCE, "data_prep.tinyface", align.frame(crop, landmarks), **options),
    )


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = commandline.parser("tinyface", HELP)
    align.add_frame(parser)
    options = vars(parser.parse_args(argv))
    print(commandline.summary(options["out"], prepare(**options)))


if __name__ == "__main__":
    sys.exit(commandline.run(main))
