"""`python -m data_prep.recordio --source DIR --out DIR`: insightface's train.rec -> a prepared folder.

The format, from dmlc's and MXNet's description of it; all numbers are little endian:
a file is parts one after another, each at a multiple of 4 bytes: the word `MAGIC`, a word whose upper 3 bits say
whether the part is a whole record (0), the first (1), a middle (2) or the last one (3), and whose lower 29 bits are its
length, then so many bytes, then zeros up to a multiple of 4. A record in several parts was cut where it held the magic
word itself, which stands between them again when it is read. A record of a face set is a header of 24 bytes (flag,
label, id, id2), then `flag` labels of 4 bytes if flag > 0, then an image file. Record 0 has no image but the numbers of
the first and of one past the last record of identities, which have none either; images are 1 ... first - 1. An
identity's record has two labels, the numbers of its first and of one past its last image.
"""

from __future__ import annotations

import mmap
import struct
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep import commandline, files, findings, writer
from data_prep.journal import Photo
from lrkd.data.images import MAX_FILE
from lrkd.errors import DataError

MAGIC = 0xCED7230A
MAX_PARTS = 1024
CARRIED = 2**20  # bytes; larger images are read again when it is their turn, so that few are held at a time
SAMPLE = 200  # images whose size is looked at beforehand
LICENCE = (
    "not stated in the file: the terms of the data set that it was packed from hold (for CASIA-WebFace, MS1M, Glint "
    "and WebFace: research that is not commercial; do not pass the images on)"
)
HELP = """\
Turn insightface's RecordIO training sets (CASIA-WebFace, MS1MV2, MS1MV3, Glint360K, WebFace) into a folder that lrkd
reads, without mxnet:

  python -m data_prep.recordio --source downloads/faces_webface_112x112 --out data/casia-112
  python -m data_prep.recordio --source downloads/ms1m/train.rec --out data/ms1m-48 --size 48

DIR holds train.rec and what there is of train.idx and property; without train.idx the file is scanned first.
The images are taken whole: they are aligned already. A person's name is the record's label with leading zeros.
112 px take 38 kB an image: 19 GB for CASIA-WebFace, 195 GB for MS1MV3; 48 px take 7 kB.
"""
_WORDS = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_GLUE = struct.pack("<I", MAGIC)


class Record(NamedTuple):
    """One record: its number, where it begins, its labels (1,) or (flag,), and the bytes of its image, maybe none."""

    key: int
    offset: int
    labels: np.ndarray
    image: bytes


class Records:
    """The records of a .rec file in the order in which they stand there; nothing is read until it is asked for.

    `idx` lists where they begin; without it the file is scanned. Safe to read from several threads.
    Raises DataError, naming the file and the place, for anything that is not as in the description above.
    """

    def __init__(self, rec: Path, idx: Path | None = None) -> None:
        self.path = rec
        try:
            with rec.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise DataError(f"{rec}: empty: expected a RecordIO file") from error
        self._size = len(self._map)
        if idx is None:
            self.keys, self._starts = self._scan()
        else:
            self.keys, self._starts = _read_idx(idx, self._size)
            if self._starts[0] != 0:
                raise DataError(f"{idx}: the first record begins at byte {self._starts[0]} of {rec.name}: expected 0")
        self._ends = np.append(self._starts[1:], self._size)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Record:
        offset = int(self._starts[number])
        spans, end = self._parts(offset)
        if end != self._ends[number]:
            raise DataError(
                f"{self.path}: the record at byte {offset} ends at {end}, the next is at {self._ends[number]}"
            )
        body = _GLUE.join(self._map[a:b] for a, b in spans)
        flag, label, _, _ = self._header(offset, body)
        cut = _HEADER.size + 4 * flag
        if cut > len(body):
            raise DataError(f"{self.path}: the record at byte {offset} has {len(body)} bytes: {flag} labels need {cut}")
        labels = np.frombuffer(body, "<f4", flag, _HEADER.size) if flag else np.array([label], "<f4")
        return Record(int(self.keys[number]), offset, labels, body[cut:])

    def _header(self, offset: int, body: bytes) -> tuple[int, float, int, int]:
        if len(body) < _HEADER.size:
            raise DataError(f"{self.path}: the record at byte {offset} has {len(body)} bytes: a header has 24")
        return _HEADER.unpack_from(body)

    def _parts(self, offset: int) -> tuple[list[tuple[int, int]], int]:
        """Where the parts of the record at `offset` stand, and where the next record begins."""
        spans: list[tuple[int, int]] = []
        place, total, wanted = offset, 0, (0, 1)
        while True:
            if place + 8 > self._size:
                raise DataError(f"{self.path}: cut short in the record at byte {offset}")
            magic, word = _WORDS.unpack_from(self._map, place)
            kind, length = word >> 29, word & (2**29 - 1)
            if magic != MAGIC or kind not in wanted:
                raise DataError(f"{self.path}: no record begins at byte {place}: damaged, or not a RecordIO file")
            end = place + 8 + length
            place = (end + 3) & ~3
            total += length
            if place > self._size or total > MAX_FILE or len(spans) == MAX_PARTS:
                raise DataError(
                    f"{self.path}: the record at byte {offset} claims {total} bytes in {len(spans) + 1} parts: "
                    f"expected at most {MAX_FILE} in {MAX_PARTS}, inside the file's {self._size}: damaged "
                    "or cut short"
                )
            spans.append((end - length, end))
            if kind in (0, 3):
                return spans, place
            wanted = (2, 3)

    def _scan(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys and beginnings of all records; the keys are the headers' ids, or 0, 1, ... where those repeat."""
        keys, starts, place = array("Q"), array("q"), 0
        while place < self._size:
            spans, end = self._parts(place)
            body = self._map[spans[0][0] : min(spans[0][1], spans[0][0] + _HEADER.size)]
            if len(spans) > 1 and len(body) < _HEADER.size:  # the magic word stood in the header
                body = _GLUE.join(self._map[a:b] for a, b in spans)[: _HEADER.size]
            keys.append(self._header(place, body)[2])
            starts.append(place)
            place = end
        ids = np.array(keys, dtype=np.uint64)
        unique = len(np.unique(ids)) == len(ids) and int(ids.max()) < 2**62
        return (ids.astype(np.int64) if unique else np.arange(len(ids))), np.array(starts, dtype=np.int64)


def _read_idx(path: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets, by offset."""
    keys, offsets = array("q"), array("q")
    with path.open("rb") as file:
        while line := file.readline(64):
            words = line.split()
            good = len(words) == 2 and all(w.isdigit() and len(w) < 19 for w in words) and len(line) < 64
            if not good or int(words[1]) >= size or len(keys) * 32 > size:
                raise DataError(
                    f"{path} line {len(keys) + 1}: expected KEY, a tab and OFFSET, below the {size} bytes of "
                    f"the .rec file, got {line[:40]!r}"
                )
            keys.append(int(words[0]))
            offsets.append(int(words[1]))
    if not keys:
        raise DataError(f"{path}: empty: expected a line for each record; without the file the .rec file is scanned")
    order = np.argsort(np.array(offsets, dtype=np.int64), kind="stable")
    found, starts = np.array(keys, dtype=np.int64)[order], np.array(offsets, dtype=np.int64)[order]
    for what, values in (("key", np.sort(found)), ("offset", starts)):
        if (twice := values[1:][values[1:] == values[:-1]]).size:
            raise DataError(f"{path}: {what} {twice[0]} comes twice: expected each once")
    return found, starts


def read_property(path: Path) -> int:
    """`property` holds "CLASSES,HEIGHT,WIDTH": the number of classes."""
    with path.open("rb") as file:
        text = file.read(100).strip()
    words = text.split(b",")
    if len(words) != 3 or not all(word.isdigit() and 0 < int(word) < 2**31 for word in words):
        raise DataError(f"{path}: expected CLASSES,HEIGHT,WIDTH, as in 10572,112,112, got {text!r}")
    return int(words[0])


def find(source: Path) -> tuple[Path, Path | None, Path | None]:
    """The .rec file, and its .idx and property where they are there."""
    rec = source / "train.rec" if source.is_dir() else source
    if not rec.is_file():
        raise DataError(f"--source {source}: no such folder or no train.rec in it: expected one with train.rec")
    idx, about = rec.with_suffix(".idx"), rec.with_name("property")
    return rec, idx if idx.is_file() else None, about if about.is_file() else None


def images(records: Records) -> np.ndarray:
    """(n,) which of the records are images: those that record 0 names, or all where there is no such record.

    Record 0 has its numbers in float32, which has no odd ones above 2**24, and some recipes write them one too high. So
    the first record of identities, which has no image, is looked for around the one that record 0 names.
    Raises DataError where record 0 names records that the file does not have.
    """
    zero = np.flatnonzero(records.keys == 0)
    if not zero.size:
        return np.arange(len(records))
    head = records[int(zero[0])]
    if head.image or len(head.labels) < 2:
        return np.arange(len(records))
    first, last = (float(label) for label in head.labels[:2])
    rounded = float(np.spacing(np.float32(max(first, last, 1)))) if np.isfinite([first, last]).all() else 0
    slack = max(1, int(rounded))
    if not 1 <= first <= last <= len(records) + 1 + slack or first % 1:
        raise DataError(
            f"{records.path}: record 0 says that identities are the records {first} to {last}: expected whole "
            f"numbers up to {len(records)}"
        )
    near = np.flatnonzero(np.abs(records.keys - first) <= slack)
    near = near[np.argsort(records.keys[near])]
    found = next((int(records.keys[n]) for n in near if records.keys[n] and _is_identity(records[int(n)])), None)
    end = found or int(first) + (slack + 1 if rounded > 1 else 0)
    chosen = np.flatnonzero((records.keys > 0) & (records.keys < end))
    if abs(len(chosen) - (end - 1)) > (0 if found or rounded <= 1 else 2 * slack + 1):
        raise DataError(
            f"{records.path}: record 0 tells of the images 1 to {end - 1}, {len(chosen)} of them are there: the "
            ".idx belongs to another file, or one of the two was cut short"
        )
    return chosen


def _is_identity(record: Record) -> bool:
    """A record of an identity: no image, and the numbers of its first and of one past its last image."""
    return not record.image and len(record.labels) > 1


def prepare(source: Path, out: Path, *, size: int = 112, name: str | None = None, **options: Any) -> dict[str, Any]:
    """Write the prepared folder and return its meta; `options` go to `writer.Recipe`."""
    files.check_out(out, source)
    rec, idx, about = find(source)
    classes = read_property(about) if about is not None else None
    records = Records(rec, idx)
    chosen = images(records)

    sample = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), SAMPLE)).astype(int)]
    for note in findings.unaligned(str(rec), (records[int(number)].image for number in sample)):
        print(note, file=sys.stderr)

    def photos() -> Iterator[Photo]:
        for number in chosen:
            key, offset, labels, image = records[number]
            label = float(labels[0])
            if not 0 <= label < 2**24 or label != int(label) or (classes is not None and label >= classes):
                limit = 2**24 if classes is None else classes
                raise DataError(f"{rec}: the record at byte {offset} has label {label}: expected 0..{limit - 1}")
            read = (lambda image=image: image) if len(image) < CARRIED else (lambda n=number: records[n].image)
            yield Photo(f"{int(label):08d}", f"{rec.name}/{key}", read)  # type: ignore[misc]

    name = name or rec.resolve().parent.name
    meta = writer.write(
        out,
        photos(),
        len(chosen),
        lambda *_: writer.Extras(),
        writer.Recipe(size=size, **({"name": name, "licence": LICENCE, "tool": "data_prep.recordio"} | options)),
    )
    if classes is not None and meta["counts"]["identities"] != classes:
        print(f"{about}: {classes} classes; images of {meta['counts']['identities']} were there", file=sys.stderr)
    return meta


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = commandline.parser("recordio", HELP)
    parser.add_argument("--name", help="name of the data set (default: the folder's)")
    parser.add_argument("--licence", default=LICENCE, help="note on the terms of use, kept in meta.json")
    options = vars(parser.parse_args(argv))
    print(commandline.summary(options["out"], prepare(**options)))


if __name__ == "__main__":
    sys.exit(commandline.run(main))
