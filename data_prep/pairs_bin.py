"""`python -m data_prep.pairs_bin --source FILE --out DIR`: insightface's .bin pair sets -> a prepared folder.

Such a file is a pickle of (images, same): 2n image files as bytes or as uint8 arrays (k,) or (k,1), and n truths, 0 or
1 of any type; images 2i and 2i+1 are pair i. A pickle is a program, and a hostile one runs code or fills the memory
when it is loaded. An unpickler loads it that knows a handful of names, none of which is numpy's own code. That alone
runs no code, but a length or a place in the memory that the file claims is allocated before it is looked at, and a
dictionary of colliding keys takes hours. So the file is looked through first: only the instructions that such a file
needs, no more of them than it has room for, no length beyond it.
"""

from __future__ import annotations

import hashlib
import mmap
import pickle
import pickletools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import commandline, files, findings, writer
from data_prep.journal import Photo
from lrkd.data.images import MAX_FILE
from lrkd.errors import DataError

LICENCE = (
    "not stated in the file: the terms of the data set that it was packed from (LFW, AgeDB, CFP, CALFW, CPLFW, "
    "VGGFace2) hold; for research on face verification, do not pass the images on"
)
HELP = """\
Turn insightface's verification sets (lfw.bin, agedb_30.bin, cfp_fp.bin, cfp_ff.bin, calfw.bin, cplfw.bin, vgg2_fp.bin)
into a folder that lrkd reads. Nothing that such a file says is executed.

  python -m data_prep.pairs_bin --source downloads/agedb_30.bin --out data/agedb30-112
  lrkd verify RUN --data data/agedb30-112

The protocol is named after the file; its folds are the published ones: as many parts in a row as --folds (10).
The file does not say who the people are. A person here is what the genuine pairs and identical files tie together.
"""
MAX_BYTES = 384 * 2**20  # the largest published file has less than half of that
MAX_STEPS = 10**6  # and about half of that many instructions
# What picklers of Python 2 and 3 write for lists, tuples, bytes, truths, numbers and uint8 arrays; no dict, no object.
OPCODES = frozenset(
    """PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1 FLOAT BINFLOAT EMPTY_LIST LIST
    APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES
    BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 GLOBAL STACK_GLOBAL REDUCE BUILD PUT BINPUT
    LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET""".split()  # noqa: SIM905
)
NUMBERS = ("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
TEXT = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}


class _Bounded:
    """A file to be read from, which gives no more than is there and refuses to be asked for a huge piece."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._place = data, 0

    def tell(self) -> int:
        return self._place

    def read(self, count: int) -> bytes:
        return self._take(self._place + count)

    def readline(self) -> bytes:
        end = self._data.find(b"\n", self._place, self._place + MAX_FILE)
        return self._take(len(self._data) if end < 0 else end + 1)

    def _take(self, end: int) -> bytes:
        if end > len(self._data) or end - self._place > MAX_FILE:
            raise ValueError(f"{end - self._place} bytes are announced, {len(self._data) - self._place} follow")
        start, self._place = self._place, end
        return self._data[start:end]


class _Type:
    """Stands for `numpy.dtype` or `numpy.ndarray`: it keeps what it is called with, and the order of the bytes."""

    order = "<"

    def __init__(self, *arguments: Any) -> None:
        name = arguments[0] if arguments else None
        self.name = name.decode("latin-1") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        if state[1] in (">", b">"):
            self.order = ">"

    def read(self, data: bytes | bytearray) -> np.ndarray:
        """(k,) numbers. Raises ValueError where they are of no type in NUMBERS, or not whole."""
        if self.name not in NUMBERS:
            raise ValueError(f"numbers of type {self.name!r:.20}")
        return np.frombuffer(data, np.dtype(self.name).newbyteorder(self.order))


class _Array:
    """Stands for an array (k,), (k,1) or (1,k) of numbers, which it keeps as they are."""

    data: Any = None
    kind = _Type()

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, _, data = state
        self._fill(shape, kind, data)

    def _fill(self, shape: Any, kind: Any, data: Any) -> None:
        if not isinstance(kind, _Type) or not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
            raise ValueError("an array of something else than numbers")
        count = len(kind.read(data))
        if shape not in ((count,), (count, 1), (1, count)):
            raise ValueError(f"expected an array (k,) or (k,1), got shape {shape!s:.40} for {count} numbers")
        self.data, self.kind = data, kind


class _Unpickler(pickle.Unpickler):
    """Knows bytes-from-text and stand-ins for numpy's arrays; every other name is refused."""

    def __init__(self, file: _Bounded, budget: int) -> None:
        super().__init__(file, fix_imports=False, encoding="bytes", errors="strict")  # type: ignore[arg-type]
        self._budget = budget
        names: dict[tuple[str, str], Callable[..., Any]] = {
            ("_codecs", "encode"): self._encode,
            ("numpy", "ndarray"): _Type,
            ("numpy", "dtype"): _Type,
            ("builtins", "bytes"): lambda: b"",
            ("__builtin__", "bytes"): lambda: b"",
        }
        for core in ("numpy.core", "numpy._core"):
            names[f"{core}.multiarray", "_reconstruct"] = lambda *_: _Array()
            names[f"{core}.multiarray", "scalar"] = self._scalar
            names[f"{core}.numeric", "_frombuffer"] = self._frombuffer
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise ValueError(f"it asks for {module}.{name}")
        return self._names[module, name]

    def _encode(self, text: str, encoding: str) -> bytes:
        """Bytes as Python 3 writes them for Python 2. One text can be asked for often: no more than the file holds."""
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise ValueError("text in another encoding than latin1")
        self._budget -= len(text)
        if self._budget < 0:
            raise ValueError("it makes more bytes than it holds")
        return text.encode("latin-1")

    @staticmethod
    def _scalar(kind: Any, data: bytes) -> Any:
        """One number, as `_Array` has many."""
        if not isinstance(kind, _Type) or not isinstance(data, bytes) or len(found := kind.read(data)) != 1:
            raise ValueError("something else than a number")
        return found[0].item()

    @staticmethod
    def _frombuffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
        array = _Array()
        array._fill(shape, kind, data)
        return array


def _look(file: _Bounded, size: int) -> None:
    """ValueError where the pickle holds anything but what such a file needs; nothing is built."""
    for number, (code, value, place) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
        if code.name not in OPCODES:
            raise ValueError(f"byte {place}: the instruction {code.name}")
        if code.name in TEXT:
            value.encode("latin-1")  # wider text takes four times its length
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(value) < number + 256:
            raise ValueError(f"byte {place}: the {value}th place of the memory")
        if number > min(MAX_STEPS, 1000 + size // 8):  # a byte can make an object of 60 bytes
            raise ValueError(f"byte {place}: more than {number} instructions")


def _truths(same: Any) -> list[bool]:
    if isinstance(same, _Array):
        same = [same]
    if not isinstance(same, list | tuple):
        raise ValueError("the second part is no list of truths")
    told: list[Any] = []
    for value in same:
        told += value.kind.read(value.data).tolist() if isinstance(value, _Array) else [value]
    for number, value in enumerate(told):
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise ValueError(f"truth {number}: expected 0 or 1, of any type, got {value!s:.40}")
    return [bool(value) for value in told]


def _images(images: Any) -> list[Any]:
    if not isinstance(images, list | tuple):
        raise ValueError("the first part is no list of images")
    found = [image.data if isinstance(image, _Array) and image.kind.name == "u1" else image for image in images]
    for number, image in enumerate(found):
        if not isinstance(image, bytes | bytearray):
            what = f"an array of {image.kind.name}" if isinstance(image, _Array) else f"a {type(image).__name__}"
            raise ValueError(f"image {number}: expected the bytes of an image file, got {what}")
    return found


def read(path: Path) -> tuple[list[bytes], list[bool]]:
    """2n image files and n truths. Raises DataError for anything else, and runs nothing that the file says."""
    size = path.stat().st_size
    if not 0 < size <= MAX_BYTES:
        raise DataError(f"{path}: {size} bytes: up to {MAX_BYTES} are read")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _look(_Bounded(data), size)
            found = _Unpickler(_Bounded(data), size).load()
        if not isinstance(found, list | tuple) or len(found) != 2:
            raise ValueError("not a pair of lists")
        images, same = _images(found[0]), _truths(found[1])
        if len(images) != 2 * len(same) or not same:
            raise ValueError(f"{len(images)} images for {len(same)} pairs")
        if (total := sum(map(len, images))) > MAX_BYTES:  # one image can be asked for often
            raise ValueError(f"images of {total} bytes in all")
    except MemoryError:
        raise DataError(f"{path}: needs more memory than there is") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(
            f"{path}: no pair set ({error}): expected a pickle of (image files as bytes or uint8 arrays, a truth for "
            "each two)"
        ) from error
    return images, same


def people(digests: list[str], same: list[bool]) -> tuple[list[int], int]:
    """(2n,) whose image each is, by its first image; and how many impostor pairs that would make one person.

    Genuine pairs and identical files tie images together. Where that ties the two images of an impostor pair, none of
    its ties by identical files are kept.
    """

    def components(tie: np.ndarray) -> np.ndarray:
        parent = list(range(len(digests)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for pair in np.flatnonzero(same):
            a, b = sorted((root(2 * pair), root(2 * pair + 1)))
            parent[b] = a
        first: dict[str, int] = {}
        for i, digest in enumerate(digests):
            if tie[i]:
                a, b = sorted((root(i), root(first.setdefault(digest, i))))
                parent[b] = a
        return np.array([root(i) for i in range(len(digests))])

    tie = np.ones(len(digests), dtype=bool)
    owner = components(tie)
    wrong = ~np.array(same, dtype=bool) & (owner[0::2] == owner[1::2])
    if wrong.any():
        tie = ~np.isin(owner, owner[0::2][wrong])
        owner = components(tie)
    return owner.tolist(), int(wrong.sum())


def prepare(
    source: Path, out: Path, *, size: int = 112, folds: int = 10, name: str | None = None, **options: Any
) -> dict[str, Any]:
    """Write the prepared folder and return its meta; `options` go to `writer.Recipe`."""
    files.check_out(out, source)
    if not source.is_file():
        raise DataError(f"--source {source}: no such file: expected a .bin pair set")
    name = name or source.stem
    images, same = read(source)
    owner, wrong = people([hashlib.sha256(image).hexdigest() for image in images], same)
    if wrong:
        print(f"{source}: {wrong} impostor pairs show identical files of one person: left untied", file=sys.stderr)
    for note in findings.unaligned(str(source), images):
        print(note, file=sys.stderr)
    if len(same) < folds:
        print(f"{source}: {len(same)} folds instead of {folds}: there are no more pairs", file=sys.stderr)
    digits = len(str(len(images)))
    photos = (
        Photo(f"person-{who:0{digits}d}", f"{source.name}/{i:0{digits}d}", lambda image=image: bytes(image))  # type: ignore[misc]
        for i, (who, image) in enumerate(zip(owner, images, strict=True))
    )
    fold = np.concatenate([np.full(len(part), f) for f, part in enumerate(np.array_split(np.arange(len(same)), folds))])

    def extras(kept: writer.Kept) -> writer.Extras:
        row = {int(where.rpartition("/")[2]): index for index, where in enumerate(kept.sources)}
        there = [i for i in range(len(same)) if 2 * i in row and 2 * i + 1 in row]
        _, number = np.unique(fold[there], return_inverse=True)  # without a gap, should a fold be lost
        pairs = [(row[2 * i], row[2 * i + 1], int(same[i]), int(f), name) for i, f in zip(there, number, strict=True)]
        return writer.Extras(pairs=pairs, counts={"pairs_of_broken_images": len(same) - len(there)})

    return writer.write(
        out,
        photos,
        len(images),
        extras,
        writer.Recipe(size=size, **({"name": name, "licence": LICENCE, "tool": "data_prep.pairs_bin"} | options)),
    )


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = commandline.parser("pairs_bin", HELP)
    parser.add_argument("--folds", type=commandline.positive, default=10, metavar="N", help="folds (default 10)")
    parser.add_argument("--name", help="name of the data set and of its protocol (default: the file's)")
    parser.add_argument("--licence", default=LICENCE, help="note on the terms of use, kept in meta.json")
    options = vars(parser.parse_args(argv))
    print(commandline.summary(options["out"], prepare(**options)))


if __name__ == "__main__":
    sys.exit(commandline.run(main))
