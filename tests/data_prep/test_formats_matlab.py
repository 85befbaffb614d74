"""MAT-files: what scipy writes is read the same, and nothing else is believed."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from data_prep import matlab
from lrkd.errors import DataError


def cell(names: list) -> np.ndarray:
    made = np.empty((len(names), 1) if names and isinstance(names[0], str) else (len(names), 2), dtype=object)
    for i, row in enumerate(names):
        made[i] = [row] if isinstance(row, str) else list(row)
    return made


word = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=9)


@given(
    st.lists(word, min_size=1, max_size=6),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6),
    st.sampled_from([np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_what_scipy_writes_and_reads_is_read_the_same(tmp_path_factory, texts, numbers, kind, compressed):
    file = tmp_path_factory.mktemp("mat") / "a.mat"
    column = np.array([number % 200 for number in numbers], kind)[:, None]
    savemat(file, {"some_set": cell(texts), "some_ids": column}, do_compression=compressed)
    found, oracle = matlab.read(file), loadmat(file)
    assert found.keys() == {key for key in oracle if not key.startswith("__")}
    np.testing.assert_array_equal(found["some_ids"], oracle["some_ids"])
    assert found["some_set"].ravel().tolist() == texts == [item[0].item() for item in oracle["some_set"]]
    assert matlab.numbers(file, "some_ids") == [number % 200 for number in numbers]


def test_pairs_keep_their_rows(tmp_path):
    pairs = [("1_a.jpg", "1_b.jpg"), ("2_a.jpg", "3_b.jpg"), ("4_ä.jpg", "5.jpg")]
    savemat(tmp_path / "a.mat", {"p": cell(pairs)}, do_compression=True)
    assert matlab.names(tmp_path / "a.mat", "p", 2) == pairs


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/passwd", "a/b.jpg", "..\\x.jpg", ".hidden.jpg", "a\nb.jpg"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    savemat(tmp_path / "a.mat", {"p": cell([name, "b.jpg"])})
    with pytest.raises(DataError, match="expected plain file names"):
        matlab.names(tmp_path / "a.mat", "p")


def header(version: bytes = b"\0\1IM") -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + version


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def array(kind: int, shape: tuple[int, ...], body: bytes, flags: int = 0, name: bytes = b"p") -> bytes:
    dims = element(5, np.array(shape, "<i4").tobytes())
    return element(14, element(6, struct.pack("<II", kind | flags, 0)) + dims + element(1, name) + body)


def nested_cells(depth: int) -> bytes:
    """Cells that each hold the next one, which end scipy's reader by a segmentation fault."""
    start = element(6, struct.pack("<II", 1, 0)) + element(5, struct.pack("<ii", 1, 1)) + element(1, b"")
    sizes = range(len(start), depth * (len(start) + 8), len(start) + 8)
    return b"".join(struct.pack("<II", 14, size) + start for size in reversed(sizes))


BAD = {
    "empty": (b"", "no MAT-file"),
    "no header": (b"x" * 200, "no MAT-file of level 5"),
    "hdf": (b"\x89HDF" + bytes(200), "version 7.3: save it with -v7"),
    "7.3": (header(b"\0\2IM") + bytes(100), "version 7.3"),
    "cut": (header() + array(6, (1, 1), element(9, bytes(8)))[:-9], "announced|cut short"),
    "a huge element": (header() + struct.pack("<II", 14, 2**32 - 1), "4294967295 bytes are announced, 0 follow"),
    "a huge cell": (header() + array(1, (2**31 - 1, 1), b""), "an array of"),
    "huge cells": (header() + array(1, (2**31 - 1,) * 8, b""), "an array of"),
    "a cell of more than is there": (header() + array(1, (40, 1), b""), "cut short"),
    "a negative shape": (header() + array(6, (-1, 1), element(9, bytes(8))), "an array of"),
    "many dimensions": (header() + array(6, (1,) * 2000, element(9, bytes(8))), "an array of"),
    "fewer numbers": (header() + array(6, (9, 1), element(9, bytes(64))), "8 numbers for"),
    "numbers cut": (header() + array(6, (1, 1), element(9, bytes(7))), "buffer size|numbers"),
    "a structure": (header() + array(2, (1, 1), b""), "an array of class 2"),
    "an object": (header() + array(3, (1, 1), b""), "an array of class 3"),
    "a function": (header() + array(17, (1, 1), b""), "an array of class 17"),
    "sparse": (header() + array(5, (1, 1), b""), "an array of class 5"),
    "complex": (header() + array(6, (1, 1), element(9, bytes(8)), 0x800), "complex"),
    "a cell in a cell": (header() + array(1, (1, 1), array(1, (1, 1), array(4, (1, 1), b""))), "an array of class 1"),
    "two lines of text": (header() + array(4, (2, 3), element(16, b"abcdef")), "one row"),
    "no UTF-8": (header() + array(4, (1, 2), element(16, b"\xff\xff")), "utf-8"),
    "a bomb": (header() + struct.pack("<II", 15, 0), "incorrect|truncated|cut short"),
    "cells in cells without end": (header() + nested_cells(250_000), "an array of class 1"),
    "no array": (header() + element(9, bytes(8)), "in place of an array"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_clear_error(tmp_path, case):
    data, says = BAD[case]
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.mat: cannot be read as a MAT-file: .*({says})"):
        matlab.read(tmp_path / "a.mat")


def packed(data: bytes) -> bytes:
    body = zlib.compress(data)
    return struct.pack("<II", 15, len(body)) + body


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(matlab, "MAX_BYTES", 10_000)
    small = [packed(array(6, (500, 1), element(9, bytes(4000)), name=name)) for name in (b"p", b"q", b"r")]
    (tmp_path / "a.mat").write_bytes(header() + b"".join(small[:2]))
    assert matlab.read(tmp_path / "a.mat")["p"].shape == (500, 1)
    (tmp_path / "a.mat").write_bytes(header() + b"".join(small))
    with pytest.raises(DataError, match="unpacks to more than 10000 bytes"):
        matlab.read(tmp_path / "a.mat")
    (tmp_path / "a.mat").write_bytes(header() + packed(array(6, (500, 1), element(9, bytes(4000))))[:-6])
    with pytest.raises(DataError, match="a MAT-file"):
        matlab.read(tmp_path / "a.mat")
    (tmp_path / "a.mat").write_bytes(bytes(10_001))
    with pytest.raises(DataError, match="more than 10000 bytes"):
        matlab.read(tmp_path / "a.mat")


@pytest.mark.parametrize("values", [[1.5], [-1], [np.nan], [np.inf], [2**31]])
def test_other_numbers_than_ids_are_refused(tmp_path: Path, values):
    savemat(tmp_path / "a.mat", {"ids": np.array(values, np.float64), "p": cell(["a.jpg"])})
    with pytest.raises(DataError, match="whole ones of 0 or more"):
        matlab.numbers(tmp_path / "a.mat", "ids")
    with pytest.raises(DataError, match="holds text"):
        matlab.numbers(tmp_path / "a.mat", "p")
    with pytest.raises(DataError, match="a cell of file names"):
        matlab.names(tmp_path / "a.mat", "ids")
    with pytest.raises(DataError, match=r"a\.mat: holds ids, p: expected q"):
        matlab.names(tmp_path / "a.mat", "q")
    with pytest.raises(DataError, match="no such file: it comes with the data set"):
        matlab.read(tmp_path / "b.mat")


def test_text_keeps_every_sign_that_is_in_the_file(tmp_path):
    """A name that ends in a zero is not the name without it."""
    text = array(4, (1, 6), element(16, b"a.jpg\0"))
    (tmp_path / "a.mat").write_bytes(header() + text)
    with pytest.raises(DataError, match="p is one text"):
        matlab.names(tmp_path / "a.mat", "p")
    (tmp_path / "a.mat").write_bytes(header() + text * 2)
    with pytest.raises(DataError, match="'p' comes twice"):
        matlab.names(tmp_path / "a.mat", "p")
    (tmp_path / "a.mat").write_bytes(header() + array(1, (1, 1), text))
    with pytest.raises(DataError, match=r"holds 'a.jpg\\x00'"):
        matlab.names(tmp_path / "a.mat", "p")
