"""Files that want time or memory, not code: each is one error on the command line, at once and in little memory."""

from __future__ import annotations

import gzip
import io
import os
import re
import resource
import struct
import tarfile
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from formats import face_set, image, write_rec
from PIL import Image
from test_formats_sets import make_cfp, make_tinyface

from data_prep import align, cfp, commandline, folder, images, journal, lfw, pairs_bin, recordio, tinyface, writer
from lrkd.data.layout import read_layout
from lrkd.errors import DataError

PROBES = "Testing_Set/probe_img_ID_pairs.mat"
HEADER = ",".join(align.COLUMNS) + "\n"


@contextmanager
def little_memory(megabytes: int = 400):
    """A process that may take so much more than it has."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# ------------------------------------------------------------------------------------------------------------ archives


def tar_header(name: str, size: int, kind: bytes = b"0") -> bytearray:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return bytearray(info.tobuf(tarfile.GNU_FORMAT))


def archive(where: Path, start: bytes, block: bytes = bytes(2**20), times: int = 300) -> Path:
    with gzip.open(where / "lfw.tgz", "wb", 1) as file:
        file.write(start)
        for _ in range(times):
            file.write(block)
    return where / "lfw.tgz"


def sparse(where: Path) -> Path:
    """The old way to write holes: blocks that each say that another one follows."""
    head = tar_header("lfw/A/A_0001.jpg", 0, b"S")
    head[482] = 1
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return archive(where, bytes(head), (b"00000000001\0" * 42 + b"\1").ljust(512, b"\0") * 200)


def sparse_by_pax(where: Path) -> Path:
    """The new way: numbers at the beginning of the file, in text without an end."""
    words = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    start = bytes(tar_header("x", len(words), b"x")) + words.ljust(512, b"\0")
    return archive(where, start + bytes(tar_header("lfw/A/A_0001.jpg", 0)), times=50)


def many_entries(where: Path) -> Path:
    return archive(where, b"", bytes(tar_header("lfw/x", 0)) * 1000, 30)


ARCHIVES = {
    "a long name": (lambda d: archive(d, tar_header("././@LongLink", 2**31, b"L")), "2147483648 bytes"),
    "a pax header": (lambda d: archive(d, tar_header("x", 2**31, b"x")), "2147483648 bytes"),
    "a file of 20 GB": (lambda d: archive(d, tar_header("lfw/x", 20 * 2**30)), "entry 1 has 21474836480 bytes"),
    "bombs": (lambda d: archive(d, b"", tar_header("lfw/x", 2**25) + bytes(2**25), 8), "entry [34] has 33554432 bytes"),
    "holes": (sparse, "of type b'S'"),
    "holes by pax": (sparse_by_pax, "a sparse file"),
    "many entries": (many_entries, "entry 25001 has"),
}

# ----------------------------------------------------------------------------------------------------------- mat files


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def array(kind: int, shape: tuple[int, ...], body: bytes, name: bytes = b"") -> bytes:
    head = element(6, struct.pack("<II", kind, 0)) + element(5, np.array(shape, "<i4").tobytes())
    return element(14, head + element(1, name) + body)


def mat(where: Path, *arrays: bytes) -> Path:
    packed = (zlib.compress(data, 1) for data in arrays)
    made = make_tinyface(where)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    (made / PROBES).write_bytes(head + b"".join(struct.pack("<II", 15, len(data)) + data for data in packed))
    return made


def twice(where: Path) -> Path:
    cells = b"".join(array(4, (1, 7), element(16, b"%07d" % k)) for k in [*range(30_000), 29_999])
    ids = array(9, (30_001, 1), element(2, bytes(30_001)), b"probe_ids")
    return mat(where, array(1, (30_001, 1), cells, b"probe_set"), ids)


def put_there(make, file: str, put):
    """A set in which one file is something else."""

    def made(where: Path) -> Path:
        target = make(where) / file
        target.unlink()
        put(target)
        return where

    return made


def endless(target: Path) -> None:
    target.symlink_to("/dev/zero")


def text(data: bytes):
    return lambda target: target.write_bytes(data)


ONE = array(6, (1, 1), element(9, bytes(8)), b"probe_ids")
LISTS = {
    "a name twice among many": (tinyface, twice, "0029999 comes 2 times"),
    "numbers": (tinyface, lambda d: mat(d, array(9, (2**26, 1), element(2, bytes(2**26)), b"probe_ids")), "unpacks to"),
    "arrays": (tinyface, lambda d: mat(d, *(array(6, (0, 0), b"", b"%d" % k) for k in range(99))), "MAT-file"),
    "a shape": (tinyface, lambda d: mat(d, array(1, (0, 2**31 - 1), b"", b"probe_set"), ONE), "0 names and 1 ids"),
    "a mat pipe": (tinyface, put_there(make_tinyface, PROBES, os.mkfifo), "no such file"),
    "an endless mat": (tinyface, put_there(make_tinyface, PROBES, endless), "no such file"),
    "a list pipe": (cfp, put_there(make_cfp, "Protocol/Pair_list_F.txt", os.mkfifo), "no such file"),
    "an endless list": (cfp, put_there(make_cfp, "Protocol/Pair_list_F.txt", endless), "no such file"),
    "a long list": (cfp, put_there(make_cfp, "Protocol/Pair_list_F.txt", text(b"\n" * 2**23)), "more than 4194304"),
}

# -------------------------------------------------------------------------------------------------- pickles, records


def asked_often(where: Path) -> Path:
    """One image of 10 MB, 40,000 times: 400 GB to look at."""
    data = image() + bytes(10 * 2**20)
    many = b"B" + struct.pack("<I", len(data)) + data + b"q\x01" + b"h\x01" * 39_999
    (where / "x.bin").write_bytes(b"\x80\x02](" + many + b"e](" + b"\x88" * 20_000 + b"e\x86.")
    return where / "x.bin"


def endless_property(where: Path) -> Path:
    write_rec(where, face_set())
    with (where / "huge").open("wb") as file:
        file.truncate(20 * 2**30)
    (where / "property").symlink_to("huge")
    return where


OTHERS = {
    "an image asked for often": (pairs_bin, asked_often, "images of .* bytes in all"),
    "a huge property": (recordio, endless_property, "CLASSES,HEIGHT,WIDTH"),
}
CASES = {name: (lfw, *case) for name, case in ARCHIVES.items()} | LISTS | OTHERS


@pytest.mark.parametrize("case", CASES)
def test_it_is_one_error_at_once_and_in_little_memory(tmp_path, capsys, case):
    tool, make, says = CASES[case]
    where = tmp_path / "in"
    where.mkdir()
    source = make(where)
    begun = time.process_time()
    with little_memory():
        assert commandline.run(tool.main, ["--source", str(source), "--out", str(tmp_path / "out")]) == 2
    assert time.process_time() - begun < 5
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: ")
    assert len(said) < 30
    assert re.search(says, said[-1]), said[-1]
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------------------- images


def progressive(scans: int, side: int = 256) -> bytes:
    """A JPEG whose last scan, which says nothing new, comes again and again."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def test_a_jpeg_of_thousands_of_scans_is_not_decoded():
    assert images.convert(progressive(2), 8, images.whole_padded).shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"a JPEG of 500\d scans"):
        images.convert(progressive(5000), 8, images.whole_padded)


def tiff(*entries: tuple[int, int, int, int], order: str = "<") -> bytes:
    """A header and one directory of (tag, type, count, value)."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    return mark + struct.pack(f"{order}IH", 8, len(entries)) + body + bytes(4)


def compressed(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("1" if kind.startswith("group") else "RGB", (64, 64)).save(buffer, "TIFF", compression=kind)
    return buffer.getvalue()


SLOW = {
    "a PGM as text": (b"P2\n2000 2000\n255\n" + b"0 " * 4 * 10**6, "4000000 pixels as text or of unusual depth"),
    "a PPM of odd depth": (b"P6\n1000 1000\n200\n" + bytes(3 * 10**6), "1000000 pixels as text or of unusual depth"),
    "a PGM of 16 bits": (b"P5\n20 20\n65535\n" + bytes(800), "mode I"),
    "millions of strips": (tiff((256, 4, 1, 9), (273, 4, 2**24, 8)) + bytes(2**26 - 100), "16777216 strips"),
    "strips in the other order": (tiff((324, 3, 2**17, 8), order=">"), "131072 strips"),
    "a directory of nothing": (b"II*\0\xff\xff\xff\x7f", "cut short"),
    "a BigTIFF": (b"II+\0\x08\0\0\0\x10" + bytes(60), "version 43: 42 is read"),
    "a fax": (compressed("group4"), "compressed by group4"),
}


@pytest.mark.parametrize("case", SLOW)
def test_pgm_and_tiff_that_take_long_are_not_decoded(case):
    data, says = SLOW[case]
    begun = time.process_time()
    with little_memory(), pytest.raises(ValueError, match=says):
        images.convert(data, 8, images.whole_padded)
    assert time.process_time() - begun < 2


def test_the_terminal_hears_of_the_first_skipped_images_only(tmp_path, capsys):
    for k in range(60):
        (tmp_path / "in" / f"{k % 4}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"{k % 4}" / f"{k}.png").write_bytes(image(k, kind="PNG") if k < 24 else b"no image")
    words = ["--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--max-broken", "0.9"]
    assert commandline.run(folder.main, words) == 0
    said = capsys.readouterr().err
    assert said.count("skipped ") == writer.MAX_SAID
    assert f"and {36 - writer.MAX_SAID} more such images" in said


# ----------------------------------------------------------------------------------------------------- prepared folders


def other_array(data: bytes):
    return lambda where: (where / "images-00000.npy").write_bytes(data)


def pipe(where: Path) -> None:
    (where / "images-00000.npy").unlink()
    os.mkfifo(where / "images-00000.npy")


def zipped(where: Path) -> None:
    np.savez(where / "x.npz", images=np.zeros((6, 4, 4, 3), np.uint8))
    (where / "x.npz").rename(where / "images-00000.npy")


def lengthen(file: str, line: bytes, times: int):
    def change(where: Path) -> None:
        with (where / file).open("ab") as opened:
            opened.write(line * times)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (pipe, "no plain file"),
        (zipped, "cannot be read as .npy"),
        (other_array(b"\x93NUMPY\x02\0" + b"\xff" * 4), "cannot be read as .npy"),
        (lengthen("manifest.csv", b"9,9,x,y,z\n", 2**20), "7 or more rows for 6 images"),
        (lengthen("meta.json", b" " * 2**20, 33), "at most 33554432 are read"),
    ],
)
def test_a_prepared_folder_that_wants_time_or_memory(tmp_path, change, says):
    photos = [journal.Photo(f"p{k // 2}", f"p{k // 2}/{k}.jpg", lambda k=k: image(k)) for k in range(6)]
    writer.write(tmp_path / "x", photos, 6, lambda _: writer.Extras(), writer.Recipe("x", 4, "", "x"))
    change(tmp_path / "x")
    begun = time.process_time()
    with little_memory(100), pytest.raises(DataError, match=re.escape(says)):
        read_layout(tmp_path / "x")
    assert time.process_time() - begun < 5


# ----------------------------------------------------------------------------------------------------------- landmarks


def test_a_csv_from_a_spreadsheet_is_read(tmp_path):
    made = HEADER + "a.jpg,1,2,3,4,5,6,7,8,9,10\n"
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf" + made.replace("\n", "\r\n").encode())
    assert align.read_landmarks(tmp_path / "x.csv")["a.jpg"].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
