"""data_prep: what people download becomes the prepared layout, whole or not at all."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import __main__ as prep
from data_prep import agedb, align, commandline, folder, images, journal, lfw, scface, writer
from data_prep.files import SUFFIXES
from lrkd.data import images as images_
from lrkd.data.prepared import load_prepared, prepared
from lrkd.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "lfw"
PEOPLE = {"Ada": 4, "Ben_X": 3, "Cy": 1, "Dee": 2, "Eve": 3, "Fay": 1, "Gus": 2, "Hal": 2, "Ida": 1, "Joe": 3}
TRAIN, TEST = ("Ada", "Ben_X", "Cy", "Dee", "Joe"), ("Eve", "Fay", "Gus", "Hal", "Ida")


def photograph(seed: int, width: int = 250, height: int = 250) -> Image.Image:
    """Something smooth with structure, so that JPEG and resizing have work to do."""
    small = np.random.default_rng(seed).integers(256, size=(9, 9, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(seed: int, **size: int) -> bytes:
    buffer = io.BytesIO()
    photograph(seed, **size).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_lists(where: Path) -> None:
    def people(names):
        return "".join(f"{name}\t{PEOPLE[name]}\n" for name in names)

    (where / "peopleDevTrain.txt").write_text(f"{len(TRAIN)}\n" + people(TRAIN))
    (where / "peopleDevTest.txt").write_text(f"{len(TEST)}\n" + people(TEST))
    (where / "people.txt").write_text(f"2\n{len(TRAIN)}\n" + people(TRAIN) + f"{len(TEST)}\n" + people(TEST))
    (where / "lfw-names.txt").write_text(people(PEOPLE))
    (where / "pairsDevTrain.txt").write_text("2\nAda\t1\t2\nJoe\t3\t1\nAda\t1\tCy\t1\nDee\t2\tJoe\t1\n")
    (where / "pairsDevTest.txt").write_text("1\nEve\t1\t3\nGus\t1\tHal\t2\n")
    (where / "pairs.txt").write_text(
        "2\t2\nAda\t1\t2\nDee\t1\t2\nAda\t4\tCy\t1\nBen_X\t2\tJoe\t3\nEve\t1\t3\nGus\t1\t2\nIda\t1\tGus\t2\nFay\t1\tHal\t2\n"
    )


def pack(where: Path, extra=()) -> None:
    """lfw-deepfunneled.tgz from the unpacked folder, in sorted order, with `extra` members first."""
    with tarfile.open(where / "lfw-deepfunneled.tgz", "w:gz") as tar:
        for member, data in extra:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        tar.add(where / "lfw-deepfunneled", "lfw-deepfunneled")


@pytest.fixture
def download(tmp_path):
    """A small LFW, unpacked, with all of its lists."""
    where = tmp_path / "download"
    seed = 0
    for name, count in PEOPLE.items():
        (where / "lfw-deepfunneled" / name).mkdir(parents=True)
        for i in range(1, count + 1):
            (where / "lfw-deepfunneled" / name / f"{name}_{i:04d}.jpg").write_bytes(jpeg(seed))
            seed += 1
    write_lists(where)
    return where


@pytest.fixture
def archived(download):
    pack(download)
    for file in sorted((download / "lfw-deepfunneled").rglob("*.jpg")):
        file.unlink()
    for person in (download / "lfw-deepfunneled").iterdir():
        person.rmdir()
    (download / "lfw-deepfunneled").rmdir()
    return download


def contents(where: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in where.iterdir()}


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def one_line(capsys) -> str:
    """The last line on stderr, which is all there is of an error."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


# ------------------------------------------------------------------------------------------------------------- lfw


def test_lfw_writes_the_layout(download, tmp_path):
    out = tmp_path / "out"
    meta = lfw.prepare(download, out, size=48)
    assert sorted(contents(out)) == ["images-00000.npy", "manifest.csv", "meta.json", "pairs.csv"]
    assert meta == json.loads((out / "meta.json").read_text())
    images = np.load(out / "images-00000.npy", mmap_mode="r", allow_pickle=False)
    assert images.shape == (sum(PEOPLE.values()), 48, 48, 3)
    manifest = rows(out / "manifest.csv")
    assert list(manifest[0]) == ["index", "label", "name", "source", "sha256"]
    for i, row in enumerate(manifest):
        source = download / "lfw-deepfunneled" / row["source"]
        assert (int(row["index"]), row["name"]) == (i, source.parent.name)
        assert int(row["label"]) == sorted(PEOPLE).index(row["name"])
        assert row["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        with Image.open(source) as image:  # the naive crop: 250 - 114 = 136 = 2 * 68
            want = image.crop((68, 68, 182, 182)).resize((48, 48), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(images[i], np.asarray(want))
    assert meta["splits"] == {
        "train": [sorted(PEOPLE).index(name) for name in TRAIN],
        "test": [sorted(PEOPLE).index(name) for name in TEST],
    }
    assert meta["counts"]["pairs"] == {"view1-train": 4, "view1-test": 2, "view2": 8}
    assert meta["crop"] == {"kind": "centre", "pixels": 114}
    assert "rights" in meta["licence"]


def test_lfw_pairs_are_the_files_pairs(download, tmp_path):
    lfw.prepare(download, tmp_path / "out", size=8)
    source = [row["source"] for row in rows(tmp_path / "out" / "manifest.csv")]
    got = [
        (Path(source[int(p["left"])]).stem, Path(source[int(p["right"])]).stem, p["same"], p["fold"])
        for p in rows(tmp_path / "out" / "pairs.csv")
        if p["protocol"] == "view2"
    ]
    assert got == [
        ("Ada_0001", "Ada_0002", "1", "0"),
        ("Dee_0001", "Dee_0002", "1", "0"),
        ("Ada_0004", "Cy_0001", "0", "0"),
        ("Ben_X_0002", "Joe_0003", "0", "0"),
        ("Eve_0001", "Eve_0003", "1", "1"),
        ("Gus_0001", "Gus_0002", "1", "1"),
        ("Ida_0001", "Gus_0002", "0", "1"),
        ("Fay_0001", "Hal_0002", "0", "1"),
    ]


def test_lfw_is_read_by_lrkd(download, tmp_path):
    lfw.prepare(download, tmp_path / "out", size=12)
    whole = load_prepared(tmp_path / "out", checksum=True)
    assert {name: len(pairs) for name, pairs in whole.protocols.items()} == {
        "view1-train": 4,
        "view1-test": 2,
        "view2": 8,
    }
    assert whole.faces.names == tuple(sorted(PEOPLE))


def test_archive_and_folder_give_the_same_bytes(download, tmp_path):
    lfw.prepare(download, tmp_path / "a", size=16)
    pack(download)
    lfw.prepare(download / "lfw-deepfunneled.tgz", tmp_path / "b", size=16)
    (download / "lfw-deepfunneled").rename(download / "lfw")
    lfw.prepare(download, tmp_path / "c", size=16)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


@pytest.mark.parametrize("workers", [1, 3])
def test_shards_end_where_they_should(archived, tmp_path, workers):
    image = 16 * 16 * 3
    lfw.prepare(archived, tmp_path / "one", size=16)
    lfw.prepare(archived, tmp_path / "many", size=16, shard_bytes=128 + 5 * image + 1, workers=workers)
    shards = sorted((tmp_path / "many").glob("*.npy"))
    assert [len(np.load(s)) for s in shards] == [5, 5, 5, 5, 2]
    assert all(s.stat().st_size <= 128 + 5 * image + 1 for s in shards)
    np.testing.assert_array_equal(
        np.concatenate([np.load(s) for s in shards]), np.load(tmp_path / "one" / "images-00000.npy")
    )
    for file in ("manifest.csv", "pairs.csv"):
        assert (tmp_path / "many" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    np.testing.assert_array_equal(
        load_prepared(tmp_path / "many", checksum=True).faces.images[3:12],
        np.load(tmp_path / "one" / "images-00000.npy")[3:12],
    )


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_links_and_paths_out_of_the_archive_are_passed_over(download, tmp_path):
    lfw.prepare(download, tmp_path / "plain", size=8)
    evil = jpeg(99)
    pack(
        download,
        [
            (member("../Eve/Eve_0009.jpg"), evil),
            (member("lfw/../../Eve/Eve_0008.jpg"), evil),
            (member("/Eve/Eve_0007.jpg"), evil),
            (member("lfw/Eve/Eve_0006.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""),
            (member("lfw/Eve/Eve_0005.jpg", tarfile.LNKTYPE, "lfw/Eve/Eve_0001.jpg"), b""),
            (member("lfw/Eve/._Eve_0001.jpg"), b"resource fork"),
            (member("lfw/README"), b"hello"),
        ],
    )
    lfw.prepare(download / "lfw-deepfunneled.tgz", tmp_path / "out", size=8)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["download", "out", "plain"]


def test_symbolic_links_in_the_folder_are_passed_over(download, tmp_path):
    lfw.prepare(download, tmp_path / "plain", size=8)
    images = download / "lfw-deepfunneled"
    (images / "Ada" / "Ada_0009.jpg").symlink_to(images / "Ada" / "Ada_0001.jpg")
    (images / "Zoe").symlink_to(images / "Ada")
    lfw.prepare(download, tmp_path / "out", size=8)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def cut_archive(where: Path) -> None:
    data = (where / "lfw-deepfunneled.tgz").read_bytes()
    (where / "lfw-deepfunneled.tgz").write_bytes(data[: len(data) // 2])


def not_an_archive(where: Path) -> None:
    (where / "lfw-deepfunneled.tgz").write_bytes(b"<html>404</html>")


def twice(where: Path) -> None:
    with tarfile.open(where / "lfw-deepfunneled.tgz", "w:gz") as tar:
        for _ in range(2):
            info, data = member("lfw/Ada/Ada_0001.jpg"), jpeg(0)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def replace(file: str, old: str, new: str):
    return lambda where: (where / file).write_text((where / file).read_text().replace(old, new, 1))


BAD_LFW = [
    (cut_archive, "lfw-deepfunneled.tgz: broken, cut short, or not LFW"),
    (not_an_archive, "lfw-deepfunneled.tgz: broken, cut short, or not LFW"),
    (twice, "Ada_0001 comes twice"),
    (lambda w: (w / "lfw-deepfunneled.tgz").unlink(), "no images in it"),
    (replace("pairs.txt", "Ada\t1\t2", "Ada\t1\t7"), "pairs.txt line 2: Ada_0007 is not in"),
    (replace("pairs.txt", "Ada\t1\t2", "Ada\t1\tx"), r"pairs\.txt line 2: expected a whole number, got 'x'"),
    (
        replace("pairs.txt", "Ada\t1\t2", "Ada\t1\tBen_X\t2"),
        r"pairs\.txt line 2: expected NAME I J, a genuine pair, got 'Ada 1 Ben_X 2'",
    ),
    (
        replace("pairs.txt", "Ada\t4\tCy\t1", "Ada\t1\t4"),
        r"pairs\.txt line 4: expected NAME I NAME J, an impostor pair, got 'Ada 1 4'",
    ),
    (replace("pairs.txt", "2\t2", "10\t300"), r"pairs\.txt: expected 6000 pairs by its first line, got 8"),
    (lambda w: (w / "pairs.txt").write_text(""), "pairs.txt line 1"),
    (lambda w: (w / "pairs.txt").write_bytes(b"\xff\xfe"), "pairs.txt: not UTF-8"),
    (replace("peopleDevTest.txt", "Eve\t3", "Ada\t4"), "Ada is in both peopleDevTrain.txt and peopleDevTest.txt"),
    (replace("peopleDevTest.txt", "Eve\t3", "Eve\t4"), "peopleDevTest.txt: Eve has 4 images: .* holds 3"),
    (replace("peopleDevTest.txt", "Eve\t3", "Eve"), r"peopleDevTest\.txt line 2: expected NAME COUNT, got 'Eve'"),
    (replace("peopleDevTest.txt", "Fay\t1", "Eve\t3"), "peopleDevTest.txt line 3: Eve comes twice"),
    (replace("lfw-names.txt", "Ada\t4", "Ada\t5"), "lfw-names.txt: Ada has 5 images: .* holds 4"),
    (
        lambda w: (w / "peopleDevTest.txt").unlink(),
        r"download: expected both or neither of peopleDevTrain\.txt and peopleDevTest\.txt, got one",
    ),
]


@pytest.mark.parametrize(("change", "says"), BAD_LFW, ids=[says[:40] for _, says in BAD_LFW])
def test_bad_lfw_downloads_are_one_clear_error(archived, tmp_path, change, says):
    change(archived)
    with pytest.raises(DataError, match=says):
        lfw.prepare(archived, tmp_path / "out", size=8)
    assert [p.name for p in tmp_path.iterdir()] == ["download"]


def test_whatever_tarfile_raises_is_one_clear_error(archived, tmp_path, monkeypatch):
    def wrong(*_, **__):
        raise TypeError("ord() expected a character")  # as it does on a header that damage found with fuzzing had

    monkeypatch.setattr(tarfile, "open", wrong)
    with pytest.raises(DataError, match=r"lfw-deepfunneled.tgz: broken, cut short, or not LFW \(ord"):
        lfw.prepare(archived, tmp_path / "out")


def test_lists_that_are_not_there_are_left_out(archived, tmp_path, capsys):
    for file in archived.glob("*.txt"):
        if file.name != "pairs.txt":
            file.unlink()
    meta = lfw.prepare(archived, tmp_path / "out", size=8)
    assert list(meta["counts"]["pairs"]) == ["view2"]
    assert meta["splits"] == {}
    assert "peopleDevTrain.txt" in capsys.readouterr().err


def test_a_few_broken_images_are_skipped_named_and_counted(download, tmp_path, capsys):
    images = download / "lfw-deepfunneled"
    (images / "Cy" / "Cy_0001.jpg").write_bytes(b"not a jpeg")
    (images / "Eve" / "Eve_0003.jpg").write_bytes(jpeg(5)[:-600])
    meta = lfw.prepare(download, tmp_path / "out", size=8, max_broken=0.1)
    assert [b["source"] for b in meta["broken"]] == ["Cy/Cy_0001.jpg", "Eve/Eve_0003.jpg"]
    assert (meta["counts"]["broken"], meta["counts"]["images"], meta["counts"]["identities"]) == (2, 20, 9)
    assert meta["counts"]["pairs"] == {"view1-train": 3, "view1-test": 1, "view2": 6}
    assert meta["counts"]["pairs_of_broken_images"] == 4
    err = capsys.readouterr().err
    assert "Cy/Cy_0001.jpg" in err
    assert "Eve/Eve_0003.jpg" in err
    names = load_prepared(tmp_path / "out", checksum=True).faces.names  # labels without Cy have no gap
    assert "Cy" not in names
    assert len(names) == 9


def test_too_many_broken_images_are_an_error(download, tmp_path):
    (download / "lfw-deepfunneled" / "Cy" / "Cy_0001.jpg").write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"expected .*, got 1 of 22, the last Cy/Cy_0001\.jpg \(0 bytes that are no ",
    ):
        lfw.prepare(download, tmp_path / "out", size=8)
    assert [p.name for p in tmp_path.iterdir()] == ["download"]


def test_a_crop_larger_than_the_image_is_broken(download, tmp_path):
    with pytest.raises(DataError, match=r"250x250 px is smaller than the crop of 251 px"):
        lfw.prepare(download, tmp_path / "out", size=8, crop=251)


# ---------------------------------------------------------------------------------------------------------- images


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def whole(width: int, height: int) -> tuple[float, float, float, float]:
    return 0, 0, width, height


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
def test_every_8_bit_mode_becomes_rgb(mode):
    grey = Image.fromarray(np.full((20, 20, 3), (200, 200, 200), np.uint8))
    grey = grey.quantize(4) if mode == "P" else grey.convert(mode)
    data = encoded(grey, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    image = images.convert(data, 10, whole)
    assert (image.shape, image.dtype) == ((10, 10, 3), np.uint8)
    if mode != "1":
        assert np.abs(image.astype(int) - 200).max() <= 3


def test_transparent_palettes_do_not_warn():
    image = photograph(1, 20, 20).quantize(16)
    data = encoded(image, "PNG", transparency=bytes(range(0, 256, 16)))
    assert images.convert(data, 10, whole).shape == (10, 10, 3)


def test_photographs_are_turned_upright():
    upright = photograph(2, 60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    turned = images.convert(encoded(stored, "PNG", exif=exif), 20, images.centre_pixels(40))
    np.testing.assert_array_equal(turned, images.convert(encoded(upright, "PNG"), 20, images.centre_pixels(40)))


def test_shrinking_is_antialiased():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (114, 57)))
    assert np.abs(images.convert(encoded(stripes, "PNG"), 19, whole).astype(int) - 127.5).max() < 12


@pytest.mark.parametrize(("share", "box"), [(1.0, (100, 0, 300, 200)), (0.5, (150, 50, 250, 150))])
def test_centre_share_is_of_the_shorter_side(share, box):
    assert images.centre_share(share)(400, 200) == box
    assert images.centre_share(share)(200, 400) == (box[1], box[0], box[3], box[2])


def test_sixteen_bits_and_bombs_are_broken(monkeypatch):
    deep = Image.fromarray(np.full((20, 20), 40000, np.uint16))
    with pytest.raises(ValueError, match="8 bits a channel"):
        images.convert(encoded(deep, "PNG"), 10, whole)
    monkeypatch.setattr(images_, "MAX_PIXELS", 1599)
    with pytest.raises(Image.DecompressionBombError, match="1600 pixels: at most 1599 are decoded"):
        images.convert(encoded(photograph(3, 40, 40), "PNG"), 10, whole)
    monkeypatch.setattr(images_, "MAX_FILE", 100)
    with pytest.raises(ValueError, match="at most 100"):
        images.convert(bytes(101), 10, whole)


# ---------------------------------------------------------------------------------------------------------- folder


@pytest.fixture
def album(tmp_path):
    """Six people, sorted differently from how they are made, in every format."""
    where = tmp_path / "album"
    formats = ("jpg", "JPEG", "png", "bmp", "webp")
    for k, name in enumerate(("zoë", "Ada", "ben, jr", 'Cy "C"', "dee", "Eve")):
        (where / name).mkdir(parents=True)
        for i in range(4):
            suffix = formats[(k + i) % 5]
            kind = {"jpg": "JPEG", "jpeg": "JPEG"}.get(suffix.lower(), suffix.upper())
            (where / name / f"{i}.{suffix}").write_bytes(encoded(photograph(10 * k + i, 60 + i, 50), kind))
    return where


def test_folder_writes_the_layout(album, tmp_path, capsys):
    (album / "notes.txt").write_text("x")
    (album / ".cache").mkdir()
    (album / "link").symlink_to(album / "Ada")
    (album / "Ada" / "9.jpg").symlink_to(album / "Ada" / "0.JPEG")
    (album / "Ada" / "movie.mp4").write_text("x")
    (album / "Ada" / ".hidden.jpg").write_text("x")
    meta = folder.prepare(album, tmp_path / "out", size=24, crop=0.8)
    assert "passed over 6 entries" in capsys.readouterr().err
    manifest = rows(tmp_path / "out" / "manifest.csv")
    names = sorted(("zoë", "Ada", "ben, jr", 'Cy "C"', "dee", "Eve"))
    assert len(manifest) == 24
    images = np.load(tmp_path / "out" / "images-00000.npy", allow_pickle=False)
    for i, row in enumerate(manifest):
        file = album / row["source"]
        assert names.index(file.parent.name) == int(row["label"])
        assert row["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        with Image.open(file) as image:
            left, top = (image.width - 40) // 2, (image.height - 40) // 2
            want = (
                image.convert("RGB").crop((left, top, left + 40, top + 40)).resize((24, 24), Image.Resampling.LANCZOS)
            )
        np.testing.assert_array_equal(images[i], np.asarray(want))
    assert meta["name"] == "album"
    assert meta["splits"] == {}
    whole = load_prepared(tmp_path / "out", checksum=True)
    assert whole.faces.names == tuple(names)
    pairs = whole.protocols["generated"]
    assert set(pairs.fold.tolist()) == {0, 1, 2}
    assert pairs.same.sum() == 6 * 6
    again = folder.prepare(album, tmp_path / "again", size=24, crop=0.8)
    assert again == meta
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    folder.prepare(album, tmp_path / "other", size=24, crop=0.8, drawing=folder.Drawing(seed=1))
    assert contents(tmp_path / "out")["pairs.csv"] != contents(tmp_path / "other")["pairs.csv"]


def test_a_folder_of_many_people_is_split_by_lrkd(tmp_path):
    for k in range(40):
        (tmp_path / "in" / f"{k:02d}").mkdir(parents=True)
        for i in range(2):
            (tmp_path / "in" / f"{k:02d}" / f"{i}.png").write_bytes(encoded(photograph(2 * k + i, 12, 12), "PNG"))
    folder.prepare(tmp_path / "in", tmp_path / "out", size=8)
    splits = prepared(tmp_path / "out")
    assert (splits.train.classes, splits.validation.classes, splits.test.classes) == (28, 4, 8)
    np.testing.assert_array_equal(
        splits.test.images[0],
        load_prepared(tmp_path / "out").protocol("generated").images[int(splits.test.names[0]) * 2],
    )


def one_image_each(where: Path) -> None:
    for file in where.glob("*/[123].*"):
        file.unlink()


def no_people(where: Path) -> None:
    for file in sorted(where.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


def not_utf8(where: Path) -> None:
    os.rename(os.fsencode(where / "Ada"), os.fsencode(where) + b"/\xff\xfe")  # noqa: PTH104


BAD_FOLDER = [
    (no_people, "no folders of people with images in it"),
    (not_utf8, "not UTF-8"),
    (
        lambda where: (where / "Ada" / "2.bmp").write_bytes(b"BM"),
        r"expected .*, got 1 of 24, the last Ada/2\.bmp \(2 bytes that are no image",
    ),
]


@pytest.mark.parametrize(("change", "says"), BAD_FOLDER, ids=[says[:30] for _, says in BAD_FOLDER])
def test_bad_folders_are_one_clear_error(album, tmp_path, change, says):
    change(album)
    with pytest.raises(DataError, match=says):
        folder.prepare(album, tmp_path / "out", size=8)
    assert [p.name for p in tmp_path.iterdir()] == ["album"]


def test_a_folder_of_broken_images_only(album, tmp_path):
    for file in album.glob("*/*"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="expected at least one image that can be read, got none"):
        folder.prepare(album, tmp_path / "out", max_broken=1.0)


# ---------------------------------------------------------------------------------------------------- command line


def call(tool, *argv: object) -> int:
    return commandline.run(tool.main, [str(word) for word in argv])


def test_the_commands_say_what_they_wrote(archived, album, tmp_path, capsys):
    assert call(lfw, "--source", archived, "--out", tmp_path / "a", "--size", 16, "--crop", 200) == 0
    assert (
        "22 images of 10 people at 16 px, 0 broken; pairs: view1-train 4, view1-test 2, view2 8"
        in capsys.readouterr().out
    )
    assert json.loads((tmp_path / "a" / "meta.json").read_text())["crop"]["pixels"] == 200
    assert call(folder, "--source", album, "--out", tmp_path / "b", "--licence", "mine", "--name", "us") == 0
    assert "24 images of 6 people at 112 px" in capsys.readouterr().out
    assert json.loads((tmp_path / "b" / "meta.json").read_text())["licence"] == "mine"


def test_an_out_that_holds_something_is_refused_and_kept(album, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    assert call(folder, "--source", album, "--out", tmp_path / "out") == 2
    assert "expected a new name or an empty folder" in one_line(capsys)
    assert (tmp_path / "out" / "precious").read_text() == "x"
    (tmp_path / "out" / "precious").unlink()
    assert call(folder, "--source", album, "--out", tmp_path / "out", "--size", 8) == 0


def test_a_folder_in_the_making_is_not_touched(album, tmp_path, capsys):
    (tmp_path / "out.partial").mkdir()
    with (tmp_path / "out.partial" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert call(folder, "--source", album, "--out", tmp_path / "out") == 2
    assert "another run writes it" in one_line(capsys)
    assert (tmp_path / "out.partial").is_dir()


@pytest.mark.parametrize("tool", [lfw, folder])
def test_bad_options_exit_with_2(tool, tmp_path, capsys):
    assert call(tool, "--source", tmp_path / "nowhere", "--out", tmp_path / "out") == 2
    assert "nowhere: no such folder" in one_line(capsys)
    for words in (["--size", "0"], ["--size", "big"], ["--max-broken", "2"], ["--crop", "-1"], ["--wrong"]):
        with pytest.raises(SystemExit) as stop:
            call(tool, "--source", tmp_path, "--out", tmp_path / "out", *words)
        assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        call(tool, "--help")
    assert stop.value.code == 0
    assert "python -m data_prep." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tool", "words", "says"),
    [
        (folder, ["--seed", "-1"], "--seed: expected 0 or more, got -1"),
        (align, ["--landmarks", "x", "--seed", "-1"], "--seed: expected 0 or more, got -1"),
        (agedb, ["--seed", "-2"], "--seed: expected 0 or more, got -2"),
        (scface, ["--seed", "-1"], "--seed: expected 0 or more, got -1"),
        (lfw, ["--size", "4097"], "--size: expected at most 4096, got 4097"),
        (folder, ["--size", "112000"], "--size: expected at most 4096, got 112000"),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(tool, words, says, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(tool, "--source", tmp_path / "nowhere", "--out", tmp_path / "out", *words)
    assert f"argument {says}" in capsys.readouterr().err
    assert (commandline.whole("0"), commandline.side("4096")) == (0, 4096)


def test_pairs_that_cannot_be_drawn_cost_no_decoding(album, tmp_path, monkeypatch):
    (tmp_path / "aged").mkdir()
    for k in range(8):
        (tmp_path / "aged" / f"{k}_P{k // 2}_{20 + k % 2 * 40}_f.jpg").touch()
    monkeypatch.setattr(writer, "write", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ConfigError, match="folds: expected at least 2, got 1"):
        folder.prepare(album, tmp_path / "out", drawing=folder.Drawing(folds=1))
    with pytest.raises(ConfigError, match="count: expected an even number"):
        agedb.prepare(tmp_path / "aged", tmp_path / "out", drawing=agedb.Drawing(pairs=5, folds=2))
    with pytest.raises(DataError, match="4 people, 0 of them with a genuine pair"):
        agedb.prepare(tmp_path / "aged", tmp_path / "out", drawing=agedb.Drawing(pairs=4, folds=2, gap=50))


def start(code: str, *argv: object, **options) -> subprocess.Popen:
    """A tool in a process of its own, after a patch."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, argv)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


SLOW = """
    import sys, time
    from data_prep import commandline, folder, images, writer
    convert, seen, writer.CHECKPOINT = images.convert, [], 4
    def slow(*a):
        seen.append(1)
        if len(seen) == 10:
            print("half way", flush=True)
        time.sleep(0.02 if len(seen) < 10 else 0.5)
        return convert(*a)
    images.convert = slow
    sys.exit(commandline.run(folder.main))
"""


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_an_interrupted_run_is_gone_on_with_and_looks_unfinished(album, tmp_path, sign, capsys):
    options = ("--source", album, "--out", tmp_path / "out", "--size", 16)
    process = start(SLOW, *options)
    assert process.stdout.readline() == "half way\n"
    assert (tmp_path / "out.partial").is_dir()
    assert not (tmp_path / "out").exists()
    process.send_signal(sign)
    _, err = process.communicate(timeout=60)
    assert not (tmp_path / "out").exists()
    if sign != signal.SIGKILL:
        assert process.returncode == 130
        assert err.splitlines()[-1] == "interrupted: nothing is finished; the same command goes on from here"
        assert "Traceback" not in err
    assert not (tmp_path / "out.partial" / "meta.json").exists()
    (tmp_path / "out.partial" / "images-00009.npy").write_bytes(b"of a killed run with more shards")
    with (tmp_path / "out.partial" / "journal").open("a") as journal:
        journal.write('["cut sho')
    folder.prepare(album, tmp_path / "out", size=16)
    done = int(capsys.readouterr().err.split("album: ")[1].split(" images")[0])
    assert 0 < done <= 20, "goes on after the first checkpoint of 4"
    folder.prepare(album, tmp_path / "calm", size=16)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")
    assert not (tmp_path / "out.partial").exists()


def stop_half_way(album, out, monkeypatch, **options) -> None:
    """An interrupt while the 15th image is decoded."""
    convert, seen = images.convert, []

    def interrupted(*a):
        seen.append(1)
        if len(seen) == 15:
            raise KeyboardInterrupt
        return convert(*a)

    with monkeypatch.context() as patch:
        patch.setattr(images, "convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            folder.prepare(album, out, workers=1, **options)


@pytest.mark.parametrize("other", [{"size": 24}, {"crop": 0.5}, {"name": "other"}, {"shard_bytes": 5000}])
def test_a_stopped_run_is_not_mixed_with_another_request(album, tmp_path, monkeypatch, other):
    stop_half_way(album, tmp_path / "out", monkeypatch, size=16)
    folder.prepare(album, tmp_path / "out", **{"size": 16} | other)
    folder.prepare(album, tmp_path / "calm", **{"size": 16} | other)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def test_what_a_stopped_run_left_outlives_a_wrong_option(album, tmp_path, monkeypatch):
    stop_half_way(album, tmp_path / "out", monkeypatch, size=16)
    left = contents(tmp_path / "out.partial")
    with pytest.raises(ConfigError, match="folds: expected at least 2, got 1"):
        folder.prepare(album, tmp_path / "out", size=16, drawing=folder.Drawing(folds=1))
    assert contents(tmp_path / "out.partial") == left


@pytest.mark.parametrize("shard_bytes", [128 + 16 * 16 * 3 * 4, 10**6])
def test_a_stopped_run_that_left_out_broken_images_goes_on(album, tmp_path, monkeypatch, shard_bytes):
    (album / "Ada" / "0.JPEG").write_bytes(b"no image")
    options = {"size": 16, "max_broken": 0.5, "shard_bytes": shard_bytes}
    stop_half_way(album, tmp_path / "out", monkeypatch, **options)
    folder.prepare(album, tmp_path / "out", **options)
    folder.prepare(album, tmp_path / "calm", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def test_a_source_that_changed_is_not_gone_on_with(album, tmp_path, monkeypatch):
    stop_half_way(album, tmp_path / "out", monkeypatch, size=16)
    (album / "Ada" / "1.png").rename(album / "Ada" / "1b.png")
    with pytest.raises(DataError, match=r"Ada/1.png: changed since the run that was interrupted: start again"):
        folder.prepare(album, tmp_path / "out", size=16)
    stop_half_way(album, tmp_path / "out", monkeypatch, size=16)
    (album / "Ada" / "0.JPEG").write_bytes(jpeg(77))
    with pytest.raises(DataError, match="changed since the run"):
        folder.prepare(album, tmp_path / "out", size=16)
    folder.prepare(album, tmp_path / "out", size=16)


def test_a_full_disk_is_one_line_and_leaves_nothing(album, tmp_path):
    full = """
        import resource, sys
        from data_prep import commandline, folder, images, writer
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        sys.exit(commandline.run(folder.main))
    """
    process = start(full, "--source", album, "--out", tmp_path / "out", "--size", 48)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines() == [f"error: {tmp_path / 'out'}: no space left; the unfinished folder was removed"]
    assert out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["album"]


@pytest.mark.parametrize("word", ["--list", "tinyfaces"])
def test_a_word_that_is_no_tool_is_status_2(capsys, word):
    assert prep.main([word]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: expected one of recordio, ")
    assert repr(word) in err


def test_what_is_read_is_what_help_says():
    """Each suffix that is taken for a photograph is of a format that is read and named."""
    named = set(re.split(", | OR ", images_.NAMES.upper()))
    assert named == {*images_.FORMATS, "PGM"}
    assert {Image.registered_extensions()[suffix] for suffix in SUFFIXES} == set(images_.FORMATS)
    assert images_.NAMES in folder.HELP


def test_the_list_of_tools_is_whole():
    out = subprocess.run(
        [sys.executable, "-m", "data_prep"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    tools = {f.stem for f in (ROOT / "data_prep").glob("[a-z]*.py") if "def main" in f.read_text()}
    assert {"lfw", "folder", "recordio", "align"} <= tools
    for tool in tools:
        assert f"data_prep.{tool} " in out
    assert set(prep.NAMES) == tools


def test_a_tool_is_called_by_its_name(capsys, tmp_path):
    assert prep.main(["folder", "--source", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert "nowhere: no such folder" in one_line(capsys)
    assert prep.main(["no-such-tool"]) == 2
    assert "expected one of recordio, " in one_line(capsys)


def test_preparing_data_needs_no_torch():
    code = """
        import sys
        from importlib import import_module
        from pkgutil import iter_modules
        import data_prep
        for module in iter_modules(data_prep.__path__):
            if module.name != "__main__":
                import_module(f"data_prep.{module.name}")
        print({"torch", "skimage", "pandas"} & set(sys.modules))
    """
    out, err = start(code).communicate(timeout=60)
    assert (out, err) == ("set()\n", "")


# -------------------------------------------------------------------------------------------------------- real LFW


@pytest.mark.skipif(not (REAL / "pairs.txt").is_file(), reason=f"no LFW in {REAL}")
def test_the_real_lfw_lists_and_first_images():
    counts = {name: lfw.read_pairs(REAL / file) for name, file in lfw.PROTOCOLS.items()}
    assert {name: len(pairs) for name, pairs in counts.items()} == {
        "view1-train": 2200,
        "view1-test": 1000,
        "view2": 6000,
    }
    assert sum(pair.same for pair in counts["view2"]) == 3000
    folds = [{stem[:-5] for p in counts["view2"] if p.fold == f for stem in p[:2]} for f in range(10)]
    assert sum(map(len, folds)) == len(set().union(*folds))
    train, test = (lfw.read_people(REAL / lfw.DEVELOPMENT[split]) for split in ("train", "test"))
    assert (len(train), len(test), len(set(train) & set(test))) == (4038, 1711, 0)
    assert sum(train.values()) + sum(test.values()) == 13233
    assert lfw.read_people(REAL / "people.txt") == train | test
    archive, texts = lfw.find(REAL)
    assert texts == REAL
    stream = lfw.archived(archive, True)
    for photo in (next(stream) for _ in range(5)):
        assert train.get(photo.name, 0) + test.get(photo.name, 0) > 0
        image = images.convert(photo.read(), 48, images.centre_pixels(114))
        assert image.shape == (48, 48, 3)
        assert image.std() > 15
    stream.close()


# --------------------------------------------------------------------------------------------------- roles and bombs


def with_roles(where: Path, change=lambda text: text) -> Path:
    photos = [
        journal.Photo(f"p{k % 2}", f"{k}", lambda k=k: jpeg(k), role=("probe", "gallery")[k % 2]) for k in range(4)
    ]
    writer.write(
        where,
        photos,
        4,
        lambda *_: writer.Extras(splits={"train": [0], "test": [1]}),
        writer.Recipe("x", 8, "", "x"),
    )
    (where / "manifest.csv").write_text(change((where / "manifest.csv").read_text()))
    return where


def test_roles_are_handed_out_as_rows(tmp_path):
    whole = load_prepared(with_roles(tmp_path / "a"))
    assert {role: rows.tolist() for role, rows in whole.roles.items()} == {"gallery": [1, 3], "probe": [0, 2]}
    assert whole.rows("probe").tolist() == [0, 2]
    assert whole.rows("probe", "train").tolist() == [0, 2]
    assert whole.rows("probe", "test").tolist() == []
    assert whole.faces.age is None


@pytest.mark.parametrize("role", ["", "Probe", "a b", "../x", "1st"])
def test_a_role_is_a_word(tmp_path, role):
    folder = with_roles(tmp_path / "a", lambda text: text.replace(",probe", f",{role}", 1))
    with pytest.raises(DataError, match=rf"manifest.csv line 2: role: expected a word of a-z.*, got '{role}'"):
        load_prepared(folder)


@pytest.mark.slow
def test_bombs_take_less_than_a_gigabyte(tmp_path):
    """Two images just below the limit, transparent and lying on their side; one that claims far more; one program."""
    exif = Image.Exif()
    exif[0x0112] = 6
    bomb = encoded(Image.new("RGBA", (8190, 8190)), "PNG", compress_level=1, exif=exif)
    head = b"IHDR" + (200_000).to_bytes(4, "big") * 2 + bomb[24:29]
    claims = bomb[:12] + head + zlib.crc32(head).to_bytes(4, "big") + bomb[33:]
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    for k, data in enumerate((bomb, bomb, claims, script)):
        (tmp_path / str(k)).write_bytes(data)
    code = """
        import sys
        from pathlib import Path
        from data_prep import journal, writer
        where = Path(sys.argv[1])
        photos = [journal.Photo("p", str(k), (where / str(k)).read_bytes) for k in range(4)]
        recipe = writer.Recipe("x", 8, "", "x", max_broken=0.5, workers=4)
        writer.write(where / "out", photos, 4, lambda _: writer.Extras(), recipe)
        # Not ru_maxrss: that of a new process begins with what its parent had.
        print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    """
    out, err = start(code, tmp_path).communicate(timeout=300)
    assert int(out) < 1024 * 1024, err
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    broken = {row["source"]: row["reason"] for row in meta["broken"]}
    assert "DecompressionBomb" in broken["2"]
    assert "no image in JPEG, PNG, BMP, WebP" in broken["3"]
    assert len(broken) == 2


# --------------------------------------------------------------------------------- what people bring, and what is odd


def image_of(seed: int, kind: str, **options) -> bytes:
    return encoded(photograph(seed, 20, 20).convert(options.pop("mode", "RGB")), kind, **options)


def people_of(where: Path, **people: dict[str, bytes]) -> Path:
    for person, files in people.items():
        (where / person).mkdir(parents=True)
        for name, data in files.items():
            (where / person / name).write_bytes(data)
    return where


@pytest.mark.parametrize("counts", [(1,), (3,), (2, 2), (3, 3, 3), (1, 1, 1, 1, 1)])
def test_few_people_and_people_without_pairs_are_a_folder_without_pairs(tmp_path, capsys, counts):
    people = {f"p{k}": {f"{i}.png": image_of(10 * k + i, "PNG") for i in range(n)} for k, n in enumerate(counts)}
    meta = folder.prepare(people_of(tmp_path / "in", **people), tmp_path / "out", size=8)
    whole = load_prepared(tmp_path / "out", checksum=True)
    assert (len(whole.faces), whole.faces.classes, whole.protocols) == (sum(counts), len(counts), {})
    assert meta["counts"]["pairs"] == {}
    assert f"no verification pairs: {len(counts)} people" in capsys.readouterr().err


def test_fewer_folds_and_pairs_are_said(album, tmp_path, capsys):
    folder.prepare(album, tmp_path / "out", size=8)
    assert set(load_prepared(tmp_path / "out").protocols["generated"].fold.tolist()) == {0, 1, 2}
    assert "3 folds with 72 pairs instead of 10:" in capsys.readouterr().err
    for k in range(12):
        (tmp_path / "aged").mkdir(exist_ok=True)
        (tmp_path / "aged" / f"{k}_P{k // 2}_{20 + k % 2 * 40}_f.jpg").write_bytes(jpeg(k, width=20, height=20))
    agedb.prepare(tmp_path / "aged", tmp_path / "aged-out", size=8)
    pairs = load_prepared(tmp_path / "aged-out").protocols["agedb30"]
    assert (len(pairs), int(pairs.same.sum()), set(pairs.fold.tolist())) == (12, 6, {0, 1, 2})
    assert "3 folds with 12 pairs instead of 10 with 6000:" in capsys.readouterr().err


def test_a_folder_without_an_image_is_left_out_and_every_one_is_named(album, tmp_path, capsys):
    folder.prepare(album, tmp_path / "want", size=8)
    for name in ("nobody", "nested"):
        (album / name / "2020").mkdir(parents=True)
    (album / "nested" / "2020" / "1.jpg").write_bytes(jpeg(1))
    (album / "words").mkdir()
    (album / "words" / "notes.txt").write_text("x")
    folder.prepare(album, tmp_path / "out", size=8)
    assert "in them (3 folders): nested, nobody, words\n" in capsys.readouterr().err
    assert contents(tmp_path / "out") == contents(tmp_path / "want")


@pytest.mark.parametrize("tool", [folder, lfw, agedb])
def test_an_out_inside_the_source_is_refused(album, tmp_path, capsys, tool):
    assert call(tool, "--source", album, "--out", album / "prepared") == 2
    assert "expected a folder outside --source" in one_line(capsys)
    assert not (album / "prepared").exists()


def test_a_prepared_folder_in_the_source_is_no_person(album, tmp_path, capsys):
    folder.prepare(album, tmp_path / "out", size=8)
    (tmp_path / "out").rename(album / "prepared")
    folder.prepare(album, tmp_path / "again", size=8)
    assert contents(album / "prepared") == contents(tmp_path / "again")
    assert "passed over 1 entries that are no image of a person: prepared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suffix", "kind", "options"),
    [
        ("pgm", "PPM", {"mode": "L"}),
        ("ppm", "PPM", {}),
        ("tif", "TIFF", {}),
        ("TIFF", "TIFF", {"mode": "L", "compression": "tiff_lzw"}),
        ("tiff", "TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_pgm_and_tiff_are_read_as_pillow_reads_them(tmp_path, suffix, kind, options):
    files = {f"{i}.{suffix}": image_of(i, kind, **options) for i in range(2)}
    folder.prepare(people_of(tmp_path / "in", a=files), tmp_path / "out", size=8)
    found = load_prepared(tmp_path / "out").faces.images
    for row, data in enumerate(files.values()):
        with Image.open(io.BytesIO(data)) as opened:
            want = opened.convert("RGB").resize((8, 8), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(found[row], np.asarray(want))


def test_a_tiff_is_turned_upright_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = photograph(2, 60, 40).transpose(Image.Transpose.ROTATE_90)
    turned = images.convert(encoded(stored, "TIFF", exif=exif), 20, images.centre_pixels(40))
    want = images.convert(encoded(photograph(2, 60, 40), "TIFF"), 20, images.centre_pixels(40))
    np.testing.assert_array_equal(turned, want)


def test_copies_are_said_and_left_out_of_drawn_pairs(tmp_path, capsys):
    people = {f"p{chr(97 + k)}": {f"{i}.png": image_of(10 * k + i, "PNG") for i in range(3)} for k in range(5)}
    people["pa"]["copy.png"] = people["pa"]["0.png"]
    people["pb"]["other.png"] = people["pc"]["1.png"]
    meta = folder.prepare(people_of(tmp_path / "in", **people), tmp_path / "out", size=8)
    said = capsys.readouterr().err
    assert "1 images are copies of another one of the same person: pa/0.png and pa/copy.png" in said
    assert (
        "1 images are copies of somebody else's (1 times two people that may be one): pb/other.png and pc/1.png" in said
    )
    assert (meta["counts"]["copies"], meta["counts"]["copies_of_others"]) == (1, 1)
    whole = load_prepared(tmp_path / "out")
    pairs, digest = whole.protocols["generated"], whole.faces.sha256
    assert not (digest[pairs.left] == digest[pairs.right]).any()
    used = {whole.faces.sources[row] for row in np.concatenate((pairs.left, pairs.right))}
    assert not used & {"pa/copy.png", "pc/1.png"}
    assert "pb/other.png" in used


def test_people_in_both_of_two_splits_are_said(download, tmp_path, capsys):
    images = download / "lfw-deepfunneled"
    (images / "Eve" / "Eve_0001.jpg").write_bytes((images / "Ada" / "Ada_0002.jpg").read_bytes())
    lfw.prepare(download, tmp_path / "out", size=8)
    said = capsys.readouterr().err
    assert "people of the train split are in the test split: 1 people (first Eve) with 3 of 9 images, 1 of them" in said
