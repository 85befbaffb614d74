"""Images in several .npy files: read as one array without reading them, and written in pieces."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrkd.errors import DataError


class Shards:
    """Rows of several (n_i,H,W,3) uint8 arrays as one (N,H,W,3) array-like; nothing is read until it is indexed.

    `rows` picks and orders rows of the concatenation, which makes a subset of a memory-mapped set free.
    An int gives one image (H,W,3); a slice, an integer array or a boolean mask gives an ndarray (n,H,W,3).
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, parts: Sequence[Any], rows: np.ndarray | None = None) -> None:
        if not parts:
            raise DataError("no image arrays: at least one is needed")
        for i, part in enumerate(parts):
            if part.ndim != 4 or part.dtype != np.uint8 or part.shape[1:] != parts[0].shape[1:] or part.shape[3] != 3:
                raise DataError(
                    f"image array {i} is {part.dtype} {tuple(part.shape)}: all must be uint8 (n,H,W,3) of one size"
                )
        self._parts = list(parts)
        self._ends = np.cumsum([len(p) for p in parts])
        total = int(self._ends[-1])
        if rows is not None:
            rows = np.asarray(rows, dtype=np.int64)
            if rows.size and (rows.min() < 0 or rows.max() >= total):
                raise DataError(f"row {rows.min() if rows.min() < 0 else rows.max()} of {total} images: out of range")
        self._rows = rows
        self.shape: tuple[int, ...] = (total if rows is None else len(rows), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, tuple):
            raise TypeError("index the first axis only, or take np.asarray(images) first")
        if isinstance(key, int | np.integer):
            if not -len(self) <= key < len(self):
                raise IndexError(f"index {key} is out of range for {len(self)} images")
            return self._take(np.array([key % len(self)]))[0]
        if isinstance(key, slice):
            return self._take(np.arange(*key.indices(len(self))))
        index = np.asarray(key)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise IndexError(f"mask of shape {index.shape} for {len(self)} images")
            index = np.flatnonzero(index)
        if index.size == 0:
            index = index.astype(np.int64)
        if index.size and (index.min() < -len(self) or index.max() >= len(self)):
            raise IndexError(f"indices {index.min()}..{index.max()} are out of range for {len(self)} images")
        return self._take(index % max(len(self), 1))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("images on disk cannot become an array without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def pick(self, rows: np.ndarray) -> Shards:
        """These rows, in this order, as `Shards` of the same arrays: nothing is read."""
        return Shards(self._parts, rows if self._rows is None else self._rows[rows])

    def _take(self, index: np.ndarray) -> np.ndarray:
        rows = index if self._rows is None else self._rows[index]
        part_of = np.searchsorted(self._ends, rows, side="right")
        out = np.empty((*index.shape, *self.shape[1:]), np.uint8)
        for p in np.unique(part_of):
            mine = part_of == p
            start = 0 if p == 0 else self._ends[p - 1]
            out[mine] = self._parts[p][rows[mine] - start]
        return out


class NpyWriter:
    """A uint8 .npy file of unknown length, written in pieces; the header's row count is filled in at the end.

    Plain writes, not a memory map: on a full disk a map dies of SIGBUS where a write raises OSError.
    """

    def __init__(self, path: Path, row: tuple[int, ...], rows: int = 0) -> None:
        """With `rows`, go on with a file after its first `rows` rows; DataError where it holds fewer."""
        self.path, self.row, self.rows = path, row, rows
        self._file = path.open("r+b" if rows else "wb")
        self._header()
        if rows:
            end = self._file.tell() + rows * math.prod(row)
            if self._file.seek(0, os.SEEK_END) < end:
                raise DataError(f"{path}: shorter than {rows} rows: it cannot be continued")
            self._file.truncate(end)
            self._file.seek(end)

    def _header(self) -> None:
        # numpy pads the header so that the first axis may grow: its length does not depend on the row count
        shape = (self.rows, *self.row)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})

    def append(self, images: np.ndarray) -> None:
        """(n,H,W,3) uint8."""
        if images.dtype != np.uint8 or images.shape[1:] != self.row:
            raise DataError(f"{self.path}: {images.dtype} {images.shape} does not fit uint8 (n,{self.row})")
        self._file.write(images.tobytes())
        self.rows += len(images)

    def flush(self) -> None:
        """What was appended is on the disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Fill in the header: only now is the file whole."""
        with self._file:
            self._file.seek(0)
            self._header()

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.close()
        else:
            self._file.close()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
