"""What TinyFace and QMUL-SurvFace keep in .mat files: lists of names and of numbers, read without trusting the file.

MAT-files of level 5, as MathWorks describes them: a header of 128 bytes, then elements of a type, a length and data,
compressed or not. Cells of text and arrays of numbers are read, with every length checked against what is there;
structures, objects, sparse and complex arrays are refused, and so are files that unpack to more than `MAX_BYTES`.
Not `scipy.io.loadmat`: it dies of a segmentation fault on a file of nested cells, allocates what a shape claims before
it looks for the data, and unpacks without a limit; the tests here compare with it on good files.
"""

from __future__ import annotations

import struct
import zlib
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep import files
from lrkd.errors import DataError

MAX_BYTES = 16 * 2**20  # the largest published list has less than a third
MAX_ARRAYS = 64
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
MATRIX, COMPRESSED = 14, 15
CELL, CHAR, NUMERIC = 1, 4, range(6, 16)


class _Element(NamedTuple):
    kind: int
    data: memoryview
    end: int


class _Reader:
    def __init__(self, order: str) -> None:
        self.order = order  # "<" or ">"

    def element(self, data: memoryview, place: int) -> _Element:
        """The element at `place`; ValueError where it reaches beyond the data."""
        if place + 8 > len(data):
            raise ValueError("cut short")
        kind, length = struct.unpack_from(f"{self.order}II", data, place)
        if kind >> 16:  # a small one: its data stand in the tag
            length, kind, start, end = kind >> 16, kind & 0xFFFF, place + 4, place + 8
            if length > 4:
                raise ValueError(f"a small element of {length} bytes")
        else:
            start = place + 8
            end = start + length
            if kind != COMPRESSED:
                end = (end + 7) & ~7
        if start + length > len(data):
            raise ValueError(f"{length} bytes are announced, {len(data) - start} follow")
        return _Element(kind, data[start : start + length], min(end, len(data)))

    def matrix(self, data: memoryview, inside: bool = False) -> tuple[str, np.ndarray | str]:
        """Name and value: numbers, text or, outermost, a cell of texts."""
        flags = self.element(data, 0)
        dims = self.element(data, flags.end)
        name = self.element(data, dims.end)
        if flags.kind != 6 or len(flags.data) != 8 or dims.kind != 5 or len(dims.data) % 4:
            raise ValueError("no array")
        word = struct.unpack_from(f"{self.order}I", flags.data)[0]
        shape = tuple(int(n) for n in np.frombuffer(dims.data, f"{self.order}i4"))
        count, kind = prod(shape), word & 0xFF
        if min(shape, default=-1) < 0 or len(shape) > 8 or count > len(data):
            raise ValueError(f"an array of {shape}")
        if word & 0x800:
            raise ValueError("complex numbers")
        title, place = bytes(name.data).decode("latin-1"), name.end
        if kind == CELL and not inside:
            value = np.empty(count, dtype=object)
            for number in range(count):
                item = self.element(data, place)
                if item.kind != MATRIX:
                    raise ValueError("a cell that holds no array")
                text = self.matrix(item.data, inside=True)[1]
                if not isinstance(text, str):
                    raise ValueError("a cell that holds no text")
                value[number], place = text, item.end
            return title, value.reshape(shape, order="F")
        if kind not in (CHAR, *NUMERIC):
            raise ValueError(f"expected text, numbers or cells of text, got an array of class {kind}")
        values = self.element(data, place)
        if kind == CHAR:
            if shape[0] > 1 or values.kind not in TEXTS:
                raise ValueError("text that is not in one row")
            byte = "-le" if self.order == "<" else "-be"
            code = TEXTS[values.kind] + (byte if "16" in TEXTS[values.kind] else "")
            return title, bytes(values.data).decode(code)
        if values.kind not in NUMBERS:
            raise ValueError(f"numbers of type {values.kind}")
        numbers = np.frombuffer(values.data, np.dtype(NUMBERS[values.kind]).newbyteorder(self.order))
        if len(numbers) != count:
            raise ValueError(f"{len(numbers)} numbers for {shape}")
        return title, numbers.reshape(shape, order="F")


def read(path: Path) -> dict[str, np.ndarray | str]:
    """Name -> array of numbers, text, or object array of str for a cell. Raises DataError naming the file."""
    try:
        data = memoryview(files.content(path, MAX_BYTES))
        if bytes(data[:4]) == b"\x89HDF" or bytes(data[124:128]) in (b"\0\2IM", b"\2\0MI"):
            raise ValueError("a MAT-file of version 7.3: save it with -v7")
        order = {b"\0\1IM": "<", b"\1\0MI": ">"}.get(bytes(data[124:128]))
        if order is None:
            raise ValueError("no MAT-file of level 5")
        reader, found, place, unpacked = _Reader(order), {}, 128, 0
        while place < len(data):
            item = reader.element(data, place)
            place = item.end
            if item.kind == COMPRESSED:
                loose = zlib.decompressobj()
                inner = loose.decompress(bytes(item.data), MAX_BYTES - unpacked + 1)
                unpacked += len(inner)
                if unpacked > MAX_BYTES or loose.unconsumed_tail:
                    raise ValueError(f"unpacks to more than {MAX_BYTES} bytes")
                if not loose.eof:
                    raise ValueError("compressed data are cut short")
                item = reader.element(memoryview(inner), 0)
            if item.kind != MATRIX:
                raise ValueError(f"an element of type {item.kind} in place of an array")
            name, value = reader.matrix(item.data)
            if name in found or len(found) == MAX_ARRAYS:
                raise ValueError(f"{name[:80]!r} comes twice, or after {MAX_ARRAYS} others")
            found[name] = value
        return found
    except DataError:
        raise
    except (ValueError, struct.error, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a MAT-file: {error}") from error


def names(path: Path, key: str, columns: int = 1) -> list[tuple[str, ...]]:
    """A cell of plain file names as rows of `columns`. Raises DataError for anything else, paths among it."""
    value = _get(path, key)
    if value.dtype != object or value.size % columns or (columns > 1 and value.shape[-1] != columns):
        raise DataError(f"{path}: {key}: expected a cell of file names (n, {columns}), got {value.dtype} {value.shape}")
    flat = value.reshape(-1, columns)
    for name in flat.flat:
        if not name or name.startswith(".") or not name.isprintable() or "/" in name or "\\" in name:
            raise DataError(f"{path}: {key} holds {name[:80]!r}: expected plain file names")
    return [tuple(row) for row in flat.tolist()]


def numbers(path: Path, key: str) -> list[int]:
    """An array of whole numbers of 0 or more, as one list. Raises DataError for anything else."""
    value = _get(path, key)
    flat = value.reshape(-1, order="F")
    if value.dtype == object:
        raise DataError(f"{path}: {key} holds text: expected whole numbers")
    whole = flat.astype(np.float64)
    if not ((whole >= 0) & (whole < 2**31)).all() or (whole % 1).any():
        raise DataError(f"{path}: {key} holds other numbers than whole ones of 0 or more")
    found: list[int] = whole.astype(np.int64).tolist()
    return found


def _get(path: Path, key: str) -> np.ndarray:
    found = read(path)
    if key not in found:
        raise DataError(f"{path}: holds {', '.join(found)[:80] or 'nothing'}: expected {key}")
    value = found[key]
    if isinstance(value, str):
        raise DataError(f"{path}: {key} is one text: expected a cell of file names, or an array of numbers")
    return value
