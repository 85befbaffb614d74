"""`python -m data_prep.lfw --source DIR --out DIR`: Labeled Faces in the Wild -> a prepared folder."""

from __future__ import annotations

import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data_prep import commandline, files, writer
from data_prep.images import Framing, centre_pixels
from data_prep.journal import Photo
from lrkd.data.images import MAX_FILE
from lrkd.errors import DataError

LICENCE = (
    "Labeled Faces in the Wild, University of Massachusetts Amherst (Huang et al. 2007, deep funneling 2012). "
    "Photographs from news sites, whose rights stay with their owners: for research on face verification; do not pass "
    "the images on."
)
HELP = """\
Turn a download of Labeled Faces in the Wild into a folder that lrkd reads.

  python -m data_prep.lfw --source downloads/lfw --out data/lfw-112
  python -m data_prep.lfw --source downloads/lfw --out data/lfw-48 --size 48

DIR holds lfw-deepfunneled.tgz or the unpacked lfw-deepfunneled/ (or lfw/), and beside it what there is of
  pairs.txt                              View 2: 6,000 pairs in 10 folds            -> protocol view2
  pairsDevTrain.txt, pairsDevTest.txt    View 1: 2,200 and 1,000 pairs              -> view1-train, view1-test
  peopleDevTrain.txt, peopleDevTest.txt  View 1: people to train and to test with   -> splits train and test
  people.txt, lfw-names.txt              how many images each person has            -> checked
The archive is read as a stream and never unpacked. The default crop, the middle 114 of 250 px, holds the face from brow
to chin in the aligned images. --align finds the faces instead and brings their landmarks to ArcFace's places (pip
install 'lrkd[photos]').
"""
PROTOCOLS = {"view1-train": "pairsDevTrain.txt", "view1-test": "pairsDevTest.txt", "view2": "pairs.txt"}
DEVELOPMENT = {"train": "peopleDevTrain.txt", "test": "peopleDevTest.txt"}
FOLDERS = ("lfw-deepfunneled", "lfw_funneled", "lfw-funneled", "lfw")
MAX_MEMBERS = 25_000  # LFW has 18,983
MAX_HEADER = 2**16  # bytes of what is no file, as of a long name
MAX_RATIO = 10  # bytes out of one byte of the archive; photographs hardly get smaller
_FILE = re.compile(r"(?P<person>.+)_(?P<number>\d{4})\.jpe?g", re.IGNORECASE)


class Pair(NamedTuple):
    """Two images, by name: `Ada_Lovelace_0001`."""

    left: str
    right: str
    same: bool
    fold: int


def _lines(path: Path) -> list[list[str]]:
    return [line.split() for line in files.lines(path) if line.strip()]


def _number(path: Path, line: int, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"{path} line {line}: expected a whole number, got {text!r}")
    return int(text)


def read_pairs(path: Path) -> list[Pair]:
    """pairs.txt ("10 300": folds, pairs of a kind a fold) and pairsDev*.txt ("1100"): genuine first in each fold."""
    lines = _lines(path)
    if not lines or len(lines[0]) > 2:
        raise DataError(f"{path} line 1: expected the number of folds and of pairs, as in '10 300', or of pairs")
    header = [_number(path, 1, text) for text in lines[0]]
    folds, each = header if len(header) == 2 else (1, header[0])
    if len(lines) - 1 != 2 * folds * each:
        raise DataError(f"{path}: expected {2 * folds * each} pairs by its first line, got {len(lines) - 1}")
    pairs = []
    for i, words in enumerate(lines[1:]):
        same = i % (2 * each) < each
        if len(words) != (3 if same else 4):
            kind = "NAME I J, a genuine pair" if same else "NAME I NAME J, an impostor pair"
            raise DataError(f"{path} line {i + 2}: expected {kind}, got {' '.join(words)!r}")
        left, i1, right, i2 = (words[0], words[1], words[0], words[2]) if same else words
        a, b = (_number(path, i + 2, text) for text in (i1, i2))
        pairs.append(Pair(f"{left}_{a:04d}", f"{right}_{b:04d}", same, i // (2 * each)))
    return pairs


def read_people(path: Path) -> dict[str, int]:
    """people*.txt and lfw-names.txt: images of each person. Lines that hold a count alone are headings."""
    people = {}
    for number, words in enumerate(_lines(path), 1):
        if len(words) == 1 and words[0].isdigit():
            continue
        if len(words) != 2:
            raise DataError(f"{path} line {number}: expected NAME COUNT, got {' '.join(words)!r}")
        if words[0] in people:
            raise DataError(f"{path} line {number}: {words[0]} comes twice")
        people[words[0]] = _number(path, number, words[1])
    return people


def find(source: Path) -> tuple[Path, Path]:
    """The images (an archive or a folder of people), and the folder of the text files."""
    if source.is_file():
        return source, source.parent
    if not source.is_dir():
        raise DataError(
            f"--source {source}: no such folder: expected one with lfw-deepfunneled.tgz or the unpacked folder"
        )
    for name in FOLDERS:
        if (source / name).is_dir():
            inner = source / name / name  # as some mirrors pack it
            return (inner if inner.is_dir() else source / name), source
    for archive in sorted((*source.glob("lfw*.tgz"), *source.glob("lfw*.tar.gz"))):
        return archive, source
    texts = source if any((source / name).is_file() for name in PROTOCOLS.values()) else source.parent
    return source, texts


def _person(path: str) -> str | None:
    """Whose image this path is: .../PERSON/PERSON_0001.jpg; None for anything else."""
    parts = PurePosixPath(path).parts
    match = _FILE.fullmatch(parts[-1]) if len(parts) >= 2 else None
    if match is None or match["person"] != parts[-2] or ".." in parts or path.startswith("/"):
        return None
    return parts[-2]


class _Member(tarfile.TarInfo):
    """Refuses what no archive of photographs holds before tarfile takes it into memory, which it does at any length."""

    # What reads a header in every Python; `frombuf` is passed by in newer ones.
    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type == tarfile.GNUTYPE_SPARSE or (not self.isreg() and self.size > MAX_HEADER):
            raise ValueError(f"{self.name[:80]!r} is of type {self.type!r}, with {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _proc_gnusparse_10(self, *_: object) -> None:
        raise ValueError("a sparse file")


def archived(archive: Path, read: bool) -> Iterator[Photo]:
    """Images of a .tgz in its order, streamed; links and paths that lead out of it are passed over."""
    most = MAX_FILE + MAX_RATIO * archive.stat().st_size
    try:
        with tarfile.open(archive, "r|*", tarinfo=_Member) as tar:
            for number, member in enumerate(tar):
                end = member.offset_data + member.size
                if member.size > MAX_FILE or end > most or number == MAX_MEMBERS:
                    raise ValueError(f"entry {number + 1} has {member.size} bytes and ends {end} after unpacking")
                person = _person(member.name) if member.isreg() else None
                if person is None:
                    continue
                data = b""
                if read:
                    file = tar.extractfile(member)
                    data = file.read() if file is not None else b""
                name = PurePosixPath(member.name).name
                yield Photo(person, f"{person}/{name}", lambda data=data: data)  # type: ignore[misc]
    except OSError:
        raise
    except Exception as error:  # tarfile raises nearly anything on a damaged header, TypeError among it
        raise DataError(f"{archive}: broken, cut short, or not LFW ({error}): download it again") from error


def _unpacked(folder: Path) -> Iterator[Photo]:
    """Images of a folder of people, sorted; links are passed over."""
    for person in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not person.is_dir(follow_symlinks=False):
            continue
        for file in sorted(os.scandir(person.path), key=lambda entry: entry.name):
            source = f"{person.name}/{file.name}"
            if file.is_file(follow_symlinks=False) and _person(source) is not None:
                yield Photo(person.name, source, Path(file.path).read_bytes)


def prepare(
    source: Path, out: Path, *, size: int = 112, crop: int = 114, align: bool = False, **options: Any
) -> dict[str, Any]:
    """Write the prepared folder and return its meta; `options` go to `writer.Recipe`."""
    files.check_out(out, source)
    images, texts = find(source)
    listed = [(p.name, p.source) for p in (archived(images, False) if images.is_file() else _unpacked(images))]
    if not listed:
        raise DataError(f"{images}: no images in it: expected PERSON/PERSON_0001.jpg")
    stems = Counter(_stem(where) for _, where in listed)
    if (twice := stems.most_common(1)[0])[1] > 1:
        raise DataError(f"{images}: {twice[0]} comes twice: expected one image of that name")

    protocols = {name: read_pairs(texts / f) for name, f in PROTOCOLS.items() if (texts / f).is_file()}
    development = {split: read_people(texts / f) for split, f in DEVELOPMENT.items() if (texts / f).is_file()}
    counts = Counter(person for person, _ in listed)
    _check(texts, images, protocols, development, stems, counts)
    absent = [f for f in (*PROTOCOLS.values(), *DEVELOPMENT.values()) if not (texts / f).is_file()]
    if absent:
        print(f"not in {texts}, so left out: {', '.join(absent)}", file=sys.stderr)

    def extras(kept: writer.Kept) -> writer.Extras:
        row = {_stem(where): index for index, where in enumerate(kept.sources)}
        known = [(name, pair) for name, pairs in protocols.items() for pair in pairs]
        there = [(name, pair) for name, pair in known if pair.left in row and pair.right in row]
        label = {name: k for k, name in enumerate(kept.names)}
        return writer.Extras(
            pairs=[(row[pair.left], row[pair.right], int(pair.same), pair.fold, name) for name, pair in there],
            splits={split: sorted(label[p] for p in people if p in label) for split, people in development.items()},
            counts={"pairs_of_broken_images": len(known) - len(there)},
        )

    framing = Framing.found() if align else Framing.of(centre_pixels(crop), kind="centre", pixels=crop)
    return writer.write(
        out,
        archived(images, True) if images.is_file() else _unpacked(images),
        len(listed),
        extras,
        writer.Recipe("lfw", size, LICENCE, "data_prep.lfw", framing, **options),
    )


def _stem(source: str) -> str:
    return PurePosixPath(source).stem


def _check(
    texts: Path,
    images: Path,
    protocols: dict[str, list[Pair]],
    development: dict[str, dict[str, int]],
    stems: Counter[str],
    counts: Counter[str],
) -> None:
    """The text files and the images tell the same story; found out before an hour of decoding, not after."""
    if len(development) == 1:
        raise DataError(f"{texts}: expected both or neither of {' and '.join(DEVELOPMENT.values())}, got one")
    if development and (both := sorted(set(development["train"]) & set(development["test"]))):
        raise DataError(f"{texts}: {both[0]} is in both {' and '.join(DEVELOPMENT.values())}: expected one of them")
    for name, pairs in protocols.items():
        for i, pair in enumerate(pairs):
            for image in (pair.left, pair.right):
                if image not in stems:
                    raise DataError(f"{texts / PROTOCOLS[name]} line {i + 2}: {image} is not in {images}")
    for name in (*DEVELOPMENT.values(), "people.txt", "lfw-names.txt"):
        for person, wanted in read_people(texts / name).items() if (texts / name).is_file() else ():
            if counts[person] != wanted:
                raise DataError(f"{texts / name}: {person} has {wanted} images: {images} holds {counts[person]}")


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = commandline.parser("lfw", HELP)
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--crop",
        type=commandline.positive,
        default=114,
        metavar="N",
        help="side of the crop in pixels of 250 (default 114)",
    )
    group.add_argument("--align", action="store_true", help="find and align the faces instead")
    options = vars(parser.parse_args(argv))
    print(commandline.summary(options["out"], prepare(**options)))


if __name__ == "__main__":
    sys.exit(commandline.run(main))
