"""insightface's RecordIO: read exactly, and anything else is one clear error."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from formats import MAGIC, MINI, face_set, image, part, record, write_rec
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import commandline, recordio
from lrkd.data import images
from lrkd.data.prepared import load_prepared
from lrkd.errors import DataError


def read(rec: Path, idx: bool = True) -> list[recordio.Record]:
    records = recordio.Records(rec, rec.with_suffix(".idx") if idx else None)
    return [records[number] for number in recordio.images(records)]


@pytest.mark.parametrize("idx", [True, False])
def test_a_file_of_the_original_library_is_read_exactly(idx):
    wanted = json.loads((MINI / "manifest.json").read_text())
    found = {str(r.key): [int(r.labels[0]), hashlib.sha256(r.image).hexdigest()] for r in read(MINI / "train.rec", idx)}
    assert found == wanted["record_sha256"]
    assert len(found) == wanted["images"]


def test_the_identities_records_of_the_original_library_have_no_image():
    records = recordio.Records(MINI / "train.rec", MINI / "train.idx")
    rest = [records[n] for n in set(range(len(records))) - set(recordio.images(records).tolist())]
    assert sorted((r.key, *r.labels.tolist()) for r in rest) == [
        (0, 31.0, 37.0),
        *((30 + k, 5.0 * k - 4, 5.0 * k + 1) for k in range(1, 7)),
    ]
    assert all(r.image == b"" for r in rest)


@pytest.mark.parametrize("idx", [True, False])
def test_it_becomes_a_prepared_folder(tmp_path, idx):
    wanted = json.loads((MINI / "manifest.json").read_text())["record_sha256"]
    source = shutil.copytree(MINI, tmp_path / "mini")
    if not idx:
        (source / "train.idx").unlink()
    meta = recordio.prepare(source, tmp_path / "out", size=112)
    whole = load_prepared(tmp_path / "out", checksum=True)
    assert meta["counts"] == {"images": 30, "identities": 6, "broken": 0, "pairs": {}}
    assert whole.faces.names == tuple(f"{k:08d}" for k in range(6))
    lines = (tmp_path / "out" / "manifest.csv").read_text().splitlines()[1:]
    rows = {line.split(",")[3].split("/")[1]: [int(line.split(",")[1]), line.split(",")[4]] for line in lines}
    assert rows == wanted
    first = read(MINI / "train.rec")[0]
    with images.upright(first.image) as image:
        np.testing.assert_array_equal(whole.faces.images[0], np.asarray(image))


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2**20), min_size=1, max_size=3),
            st.lists(st.one_of(st.binary(max_size=12), st.just(MAGIC), st.just(b"\0\0\0\0")), max_size=8).map(b"".join),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_records_come_back_as_they_were_written(tmp_path_factory, made):
    """With the magic word anywhere in them, with one label or many, with and without .idx."""
    where = tmp_path_factory.mktemp("rec")
    rec = write_rec(where, [(k + 1, record(k + 1, labels, data, v)) for k, (labels, data, v) in enumerate(made)])
    for idx in (rec.with_suffix(".idx"), None):
        records = recordio.Records(rec, idx)
        assert len(records) == len(made)
        for k, (labels, data, _) in enumerate(made):
            found = records[k]
            assert (found.key, found.image, found.labels.tolist()) == (k + 1, data, labels)


def test_the_magic_word_inside_a_header_is_put_back(tmp_path):
    key = struct.unpack("<I", MAGIC)[0]
    rec = write_rec(tmp_path, [(1, record(key, [3.0], b"abc")), (2, record(2, [3.0], b""))])
    assert (rec.read_bytes()[4:8]) == struct.pack("<I", 1 << 29 | 8)
    records = recordio.Records(rec)
    assert (records.keys.tolist(), records[0].image) == ([key, 2], b"abc")


def test_records_whose_ids_repeat_are_numbered_by_their_place(tmp_path):
    rec = write_rec(tmp_path, [(5, record(7, [0.0], b"a")), (6, record(7, [1.0], b"b"))], idx=False)
    assert [r.key for r in map(recordio.Records(rec).__getitem__, (0, 1))] == [0, 1]


def test_vector_labels_name_the_person_first(tmp_path):
    write_rec(tmp_path / "in", face_set(vector=True))
    recordio.prepare(tmp_path / "in", tmp_path / "out", size=16)
    assert load_prepared(tmp_path / "out").faces.labels.tolist() == [0, 0, 1, 1, 1]


def test_a_set_without_record_0_is_all_images(tmp_path):
    write_rec(tmp_path, [(k, record(k, [k % 2], image(k))) for k in range(4)])
    assert [r.key for r in read(tmp_path / "train.rec")] == [0, 1, 2, 3]
    write_rec(tmp_path, [(k, record(k, [k % 2], image(k))) for k in range(1, 4)])
    assert [r.key for r in read(tmp_path / "train.rec")] == [1, 2, 3]


def test_order_of_the_index_does_not_matter(tmp_path):
    rec = write_rec(tmp_path, face_set())
    idx = rec.with_suffix(".idx")
    before = read(rec)
    idx.write_text("\n".join(reversed(idx.read_text().splitlines())))
    after = read(rec)
    assert [r.image for r in before] == [r.image for r in after]


def test_many_threads_read_the_same(tmp_path):
    records = recordio.Records(MINI / "train.rec")
    want, got = [records[k].image for k in range(len(records))], {}

    def work(worker: int) -> None:
        got[worker] = [records[k].image for k in range(len(records))] * 3

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found == want * 3 for found in got.values())


def test_a_broken_image_is_counted_and_a_missing_class_is_said(tmp_path, capsys):
    records = face_set((3, 3))
    records[1] = (2, record(2, [0], b"no image"))
    write_rec(tmp_path / "in", records)
    (tmp_path / "in" / "property").write_text("7,24,24")
    meta = recordio.prepare(tmp_path / "in", tmp_path / "out", size=16, max_broken=0.2)
    assert meta["broken"][0]["source"] == "train.rec/2"
    assert (meta["counts"]["images"], meta["counts"]["broken"]) == (5, 1)
    assert "7 classes; images of 2 were there" in capsys.readouterr().err


def cut(where: Path) -> None:
    rec = where / "train.rec"
    rec.write_bytes(rec.read_bytes()[:-30])


def swap(where: Path) -> None:
    """The index of another set, which has as many records."""
    write_rec(where / "other", face_set((3, 2), seed=9))
    shutil.copy(where / "other" / "train.idx", where / "train.idx")


def poke(name: str, place: int, data: bytes):
    def change(where: Path) -> None:
        old = bytearray((where / name).read_bytes())
        old[place : place + len(data)] = data
        (where / name).write_bytes(old)

    return change


def lines(change):
    return lambda where: (where / "train.idx").write_text(
        "\n".join(change((where / "train.idx").read_text().splitlines()))
    )


BROKEN = [
    (cut, r"claims 32 bytes in 1 parts: .* damaged or cut short"),
    (lambda w: (w / "train.rec").write_bytes((w / "train.rec").read_bytes()[:-36]), r"cut short in the record at byte"),
    (lambda w: (w / "train.rec").write_bytes(b""), r"train.rec: empty"),
    (lambda w: (w / "train.idx").write_bytes(b""), r"train.idx: empty"),
    (lambda w: (w / "train.rec").unlink(), r"no train.rec in it"),
    (lambda w: (w / "train.rec").write_bytes(image(0)), r"train.idx line \d: .* below the \d+ bytes"),
    (poke("train.rec", 0, b"X"), r"no record begins at byte 0"),
    (poke("train.rec", 4, b"\xff\xff\xff\x1f"), r"claims 536870911 bytes in 1 parts"),
    (poke("train.rec", 4, b"\xff\xff\xff\x3f"), r"claims 536870911 bytes in 1 parts"),
    (poke("train.rec", 7, b"\x40"), r"no record begins at byte 0"),
    (poke("train.rec", 4, b"\x08\0\0\0"), r"the record at byte 0 ends at 16, the next is at"),
    (poke("train.rec", 8, b"\xff\xff\xff\xff"), r"4294967295 labels need"),
    (
        poke("train.rec", 12, struct.pack("<f", -1)),
        r"train\.rec: the record at byte 0 has label -1\.0: expected 0\.\.16777215",
    ),
    (poke("train.rec", 12, struct.pack("<f", 1.5)), r"label 1.5"),
    (poke("train.rec", 12, struct.pack("<f", np.nan)), r"label nan"),
    (poke("train.rec", 12, struct.pack("<f", np.inf)), r"label inf"),
    (poke("train.rec", 12, struct.pack("<f", 9e9)), r"label 8999999488"),
    (swap, r"no record begins at byte \d+|the next is at"),
    (lines(lambda x: x[:-1]), r"ends at \d+, the next is at \d+"),
    (lines(lambda x: x[1:]), r"the first record begins at byte"),
    (lines(lambda x: [*x[:2], *x[3:]]), r"tells of the images 1 to 5, 4 of them are there"),
    (lines(lambda x: [x[0], *x]), r"train.idx: key 1 comes twice"),
    (lines(lambda x: [x[0].replace("1\t", "77\t"), *x]), r"train.idx: offset 0 comes twice"),
    (
        lines(lambda x: ["one\t0", *x]),
        r"train\.idx line 1: expected KEY, a tab and OFFSET, below the 4312 bytes of the \.rec file, got b'one\\t0\\n'",
    ),
    (lines(lambda x: ["1", *x]), r"train.idx line 1"),
    (lines(lambda x: [*x, "9\t99999999"]), r"train.idx line 9"),
    (lines(lambda x: [*x, "9" * 70]), r"train.idx line 9"),
    (lines(lambda x: [*x, "-9\t0"]), r"train.idx line 9"),
    (
        lambda w: (w / "property").write_text("2,24"),
        "property: expected CLASSES,HEIGHT,WIDTH, as in 10572,112,112, got b'2,24'",
    ),
    (
        lambda w: (w / "property").write_text("1,24,24"),
        r"train\.rec: the record at byte 1676 has label 1\.0: expected 0\.\.0",
    ),
    (lambda w: (w / "property").write_bytes(b"\xff" * 2**20), "property: expected CLASSES.*, got b'"),
]


@pytest.mark.parametrize(("change", "says"), BROKEN, ids=[says[:40] for _, says in BROKEN])
def test_broken_files_are_one_clear_error(tmp_path, change, says):
    write_rec(tmp_path / "in", face_set())
    change(tmp_path / "in")
    with pytest.raises(DataError, match=says):
        recordio.prepare(tmp_path / "in", tmp_path / "out", size=8)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("labels", [(0.0, 5.0), (2.5, 5.0), (np.nan, 5.0), (9.0, 5.0), (1.0, np.inf), (99.0, 100.0)])
def test_a_record_0_that_cannot_be_is_refused(tmp_path, labels):
    rec = write_rec(tmp_path, [(1, record(1, [0.0], image(1))), (0, record(0, labels))])
    with pytest.raises(DataError, match="record 0 says that identities are the records"):
        read(rec)


def test_endless_parts_are_refused(tmp_path):
    (tmp_path / "train.rec").write_bytes(part(1, b"") + part(2, b"") * 5000 + part(3, b""))
    with pytest.raises(
        DataError,
        match=r"train\.rec: the record at byte 0 claims 0 bytes in 1025 parts: expected at most 67108864 in 1024, insi",
    ):
        recordio.Records(tmp_path / "train.rec")


def test_parts_that_claim_more_than_an_image_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(recordio, "MAX_FILE", 1000)
    (tmp_path / "train.rec").write_bytes(part(1, bytes(600)) + part(3, bytes(600)))
    with pytest.raises(DataError, match="claims 1200 bytes in 2 parts: expected at most 1000"):
        recordio.Records(tmp_path / "train.rec")


def test_large_images_are_read_again_when_it_is_their_turn(tmp_path, monkeypatch):
    write_rec(tmp_path / "in", face_set())
    recordio.prepare(tmp_path / "in", tmp_path / "a", size=16)
    monkeypatch.setattr(recordio, "CARRIED", 1)
    recordio.prepare(tmp_path / "in", tmp_path / "b", size=16)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_the_command(tmp_path, capsys):
    argv = ["--source", str(MINI / "train.rec"), "--out", str(tmp_path / "out"), "--size", "16", "--name", "mini"]
    assert commandline.run(recordio.main, argv) == 0
    said = capsys.readouterr()
    assert "30 images of 6 people at 16 px, 0 broken; pairs: none" in said.out
    assert "mini: 30 images in" in said.err
    assert "images/s" in said.err


# ------------------------------------------------------------------------------------- numbers that float32 rounds


class Sparse:
    """Records with the keys around `first` only, as many as there would be, and a number of record 0 in float32."""

    path = Path("train.rec")

    def __init__(self, first: int, told: float, identities: int = 3) -> None:
        self.first = first
        self.keys = np.arange(first + identities)
        self.told = np.float32(told), np.float32(first + identities)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> recordio.Record:
        if number == 0:
            return recordio.Record(0, 0, np.array(self.told), b"")
        if number < self.first:
            return recordio.Record(number, 0, np.zeros(1), b"image")
        return recordio.Record(number, 0, np.array([1.0, 5.0], np.float32), b"")


@pytest.mark.parametrize("first", [100, 2**24 - 1, 2**24, 2**24 + 1, 2**24 + 3, 2**25 + 1, 2**25 + 2, 2**25 + 6])
def test_images_end_where_the_first_identity_stands(first):
    """Rounded up, an identity would count as a broken image; rounded down, an image would be lost."""
    chosen = recordio.images(Sparse(first, first))
    assert (int(chosen[0]), int(chosen[-1]), len(chosen)) == (1, first - 1, first - 1)


@pytest.mark.parametrize("idx", [True, False])
def test_a_record_0_that_is_one_too_high_is_no_broken_image(tmp_path, idx):
    records = face_set((2, 3))
    write_rec(tmp_path / "want", records, idx)
    records[-1] = (0, record(0, [7.0, 9.0]))
    write_rec(tmp_path / "in", records, idx)
    for name in ("want", "in"):
        meta = recordio.prepare(tmp_path / name, tmp_path / f"{name}-out", size=8, name="x")
        assert (meta["counts"]["images"], meta["broken"]) == (5, [])
    for file in (tmp_path / "want-out").iterdir():
        assert file.read_bytes() == (tmp_path / "in-out" / file.name).read_bytes()


def test_images_that_are_not_aligned_are_said(tmp_path, capsys):
    write_rec(tmp_path / "in", [(k, record(k, [k % 2], image(k, 250 if k < 3 else 112, 112))) for k in range(1, 5)])
    recordio.prepare(tmp_path / "in", tmp_path / "out", size=8)
    assert "train.rec: 50% of 4 images are larger than the 112 px of aligned faces (up to 250 x 112)" in (
        capsys.readouterr().err
    )
