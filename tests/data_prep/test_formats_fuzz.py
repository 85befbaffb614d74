"""Thousands of damaged files against every reader: one named error each, no crash, no code, no hang."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
from formats import MAGIC, part
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from data_prep import matlab, pairs_bin, recordio
from lrkd.errors import DataError

NAMES = [
    "recordio", "recordio scanned", "property", "pairs_bin", "matlab", "landmarks", "cfp lists", "cfp pairs",
    "lfw pairs", "lfw people", "lfw archive", "prepared folder", "checkpoint", "templates", "images",
]  # fmt: skip
injury = st.tuples(st.integers(0, fuzz.KINDS - 1), st.integers(0, 2**20), st.integers(0, 2**16))
quick = settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def watch():
    return fuzz.Watch()


@pytest.fixture(scope="module")
def all_readers(tmp_path_factory):
    where = tmp_path_factory.mktemp("fuzz")
    (where / "case").mkdir()
    found = {reader.name: reader for reader in fuzz.readers(where)}
    for reader in found.values():  # what is imported at first use is no fault
        fuzz.run(reader, 50, -1, where, fuzz.Watch(deaf=True))
    return where / "case", found


def clear(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def test_every_reader_is_here(all_readers):
    assert list(all_readers[1]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_good_files_are_read(all_readers, watch, name):
    folder, found = all_readers
    for files in found[name].seeds:
        assert fuzz.attempt(found[name], files, folder, watch)[0] == "read"
    clear(folder)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused(all_readers, watch, name):
    folder, found = all_readers
    reader = found[name]

    @given(st.sampled_from(reader.seeds), st.sampled_from(reader.damaged), st.lists(injury, min_size=1, max_size=4))
    @quick
    def law(files, damaged, injuries):
        data = fuzz.damage(files[damaged], injuries, reader.seeds[0][reader.damaged[-1]])
        assert fuzz.attempt(reader, files | {damaged: data}, folder, watch)[0] in ("read", "refused")

    law()
    clear(folder)


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_read_or_refused(all_readers, watch, name):
    folder, found = all_readers
    reader = found[name]

    @given(st.sampled_from(reader.damaged), st.binary(max_size=200))
    @settings(quick, max_examples=40)
    def law(damaged, data):
        assert fuzz.attempt(reader, reader.seeds[0] | {damaged: data}, folder, watch)[0] in ("read", "refused")

    law()
    clear(folder)


# Files that follow the grammar, word by word, reach deeper than damaged ones.

small = st.integers(0, 255).map(lambda n: bytes([n]))
text = st.sampled_from(
    [b"os", b"system", b"numpy", b"ndarray", b"dtype", b"_codecs", b"encode", b"u1", b"latin1", b"b1"]
)
step = st.one_of(
    st.sampled_from([b"]", b"(", b"e", b"a", b"t", b"l", b")", b"\x85", b"\x86", b"\x87", b"R", b"b", b"\x88", b"N"]),
    st.sampled_from([b"\x93", b"\x94", b"\x81", b"}", b"s", b"u", b"o", b"0", b"2", b"Q", b"K\x01", b"M\x04\x00"]),
    st.sampled_from([b"c_codecs\nencode\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cos\nsystem\n"]),
    st.sampled_from([b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy._core.numeric\n_frombuffer\n"]),
    st.sampled_from([b"cnumpy.core.multiarray\nscalar\n", b"cbuiltins\nbytes\n", b"cbuiltins\neval\n"]),
    st.one_of(text, st.binary(max_size=9)).map(lambda b: b"U" + bytes([len(b)]) + b),
    text.map(lambda b: b"\x8c" + bytes([len(b)]) + b),
    st.binary(max_size=9).map(lambda b: b"C" + bytes([len(b)]) + b),
    small.map(lambda n: b"q" + n),
    small.map(lambda n: b"h" + n),
)


@given(st.lists(step, max_size=14))
@settings(quick, max_examples=500)
def test_any_program_of_a_pickle_is_read_or_refused(tmp_path_factory, watch, steps):
    file = tmp_path_factory.getbasetemp() / "program.bin"
    file.write_bytes(b"\x80\x02" + b"".join(steps) + b".")
    watch.seen.clear()
    try:
        with watch.watching():
            images, same = pairs_bin.read(file)
    except DataError:
        return
    finally:
        assert not watch.seen
    assert len(images) == 2 * len(same) > 0


@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from([b"", MAGIC, bytes(24), bytes(40), b"abc"])), max_size=8))
@settings(quick, max_examples=300)
def test_any_parts_are_records_or_refused(tmp_path_factory, parts):
    file = tmp_path_factory.getbasetemp() / "parts.rec"
    file.write_bytes(b"".join(part(kind % 8, data) for kind, data in parts))
    try:
        records = recordio.Records(file)
        [records[number] for number in recordio.images(records)]
    except DataError:
        return
    assert len(records) <= len(parts)


element = st.tuples(st.sampled_from([1, 2, 4, 5, 6, 9, 14, 16, 17, 99]), st.binary(max_size=12))
shape = st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**31 - 1]), max_size=4)


def packed(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


@given(st.integers(0, 20), shape, st.lists(element, max_size=4), st.booleans())
@settings(quick, max_examples=300)
def test_any_elements_of_a_mat_file_are_read_or_refused(tmp_path_factory, kind, sizes, elements, nested):
    file = tmp_path_factory.getbasetemp() / "elements.mat"
    body = b"".join(packed(*item) for item in elements)
    dims = packed(5, struct.pack(f"<{len(sizes)}i", *sizes))
    array = packed(6, struct.pack("<II", kind, 0)) + dims + packed(1, b"x") + (packed(14, body) if nested else body)
    file.write_bytes(b"MATLAB".ljust(124) + b"\0\1IM" + packed(14, array))
    try:
        found = matlab.read(file)
    except DataError:
        return
    assert isinstance(found["x"], str) or found["x"].size == math.prod(sizes)
