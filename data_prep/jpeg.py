"""`python -m data_prep.jpeg --source DIR --out DIR`: a prepared folder <-> the same as JPEGs, for carrying it about."""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep import commandline, files, writer
from data_prep.images import MAX_SIDE
from data_prep.journal import Photo
from lrkd.data.images import MAX_FILE, upright
from lrkd.data.layout import read_layout
from lrkd.errors import DataError

HELP = """\
Pack a prepared folder as JPEGs, or unpack what was packed; --source says which by what it holds.

  python -m data_prep.jpeg --source data/lfw-112 --out data/lfw-112-jpeg
  python -m data_prep.jpeg --source data/lfw-112-jpeg --out data/lfw-112-again

LFW at 112 px takes 498 MB prepared and 42 MB packed. Pixels change a little, so the data set's name gets the quality:
its results are not those of the folder that was packed.
"""
IMAGES = "images.zip"
TEXTS = ("manifest.csv", "pairs.csv")
MAX_IMAGES = 10**6  # of the packed form, which is for small sets


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """`OUT.partial`, which becomes OUT when the block ends well and disappears when not."""
    files.check_out(out)
    part = out.with_name(out.name + ".partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def pack(source: Path, out: Path, quality: int = 88, workers: int = 2) -> dict[str, Any]:
    """Write the images of a prepared folder as JPEGs with half the colour resolution into one archive; -> its meta."""
    found = read_layout(source)
    count = len(found.images)
    if count > MAX_IMAGES:
        raise DataError(f"{source}: {count} images: at most {MAX_IMAGES} are packed")

    def coded(row: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(found.images[row]).save(buffer, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
        return buffer.getvalue()

    meta = {key: value for key, value in found.meta.items() if key != "shards"}
    meta |= {"name": f"{meta['name']}-jpeg{quality}", "jpeg": {"quality": quality, "subsampling": "4:2:0"}}
    with _whole(out) as folder, ThreadPoolExecutor(workers) as pool:
        with zipfile.ZipFile(folder / IMAGES, "w", zipfile.ZIP_STORED) as archive:
            for start in tqdm(range(0, count, 1024), desc="packing", disable=None):
                for row, data in enumerate(pool.map(coded, range(start, min(start + 1024, count))), start):
                    archive.writestr(zipfile.ZipInfo(f"{row:06d}.jpg"), data)  # without a date: the same bytes again
        for name in TEXTS:
            shutil.copyfile(source / name, folder / name)
        writer.write_meta(folder, meta)
    return meta


def unpack(source: Path, out: Path, workers: int = 2) -> dict[str, Any]:
    """Decode what `pack` wrote into a prepared folder; -> its meta. DataError for a broken image or archive."""
    for name in ("meta.json", *TEXTS):
        if not (source / name).is_file():
            raise DataError(f"{source}: {name} is missing: not a packed folder, or not a whole one")
    try:
        meta = json.loads(files.content(source / "meta.json", files.MAX_LIST))
        size, count = int(meta["size"]), int(meta["counts"]["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source / 'meta.json'}: not the meta.json of a packed folder ({error})") from error
    if not (1 <= size <= MAX_SIDE and 1 <= count <= MAX_IMAGES):
        raise DataError(f"{source / 'meta.json'}: expected up to {MAX_IMAGES} images, got {count} images of {size} px")

    def decode(photo: Photo) -> np.ndarray:
        with upright(photo.read()) as image:
            if image.size != (size, size):
                raise ValueError(f"expected {size} x {size} px, got {image.width} x {image.height}")
            return np.asarray(image)

    with _whole(out) as folder:
        try:
            with zipfile.ZipFile(source / IMAGES) as archive:
                listed = archive.infolist()
                if [item.filename for item in listed] != [f"{row:06d}.jpg" for row in range(count)]:
                    raise DataError(f"{source / IMAGES}: does not hold 000000.jpg to {count - 1:06d}.jpg in this order")
                if (largest := max(item.file_size for item in listed)) > MAX_FILE:
                    raise DataError(f"{source / IMAGES}: an image of {largest} bytes: at most {MAX_FILE} are read")
                photos = (Photo("", item.filename, partial(archive.read, item)) for item in listed)
                with writer.ShardWriter(folder, size, writer.SHARD_BYTES) as shards:
                    for photo, image in writer.decode_all(photos, decode, workers):
                        if isinstance(image, Exception):
                            raise DataError(f"{source / IMAGES}: {photo.source} cannot be decoded ({image})")
                        shards.append(image)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise DataError(f"{source / IMAGES}: broken or cut short ({error}): pack the folder again") from error
        for name in TEXTS:
            shutil.copyfile(source / name, folder / name)
        meta["shards"] = shards.table()
        writer.write_meta(folder, meta)
        read_layout(folder)
    return meta


def _quality(text: str) -> int:
    if not 1 <= (value := int(text)) <= 95:
        raise argparse.ArgumentTypeError(f"expected 1 to 95, got {text}")
    return value


def main(argv: list[str] | None = None) -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.jpeg", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="a prepared folder, or a packed one")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--quality", type=_quality, default=88, metavar="Q", help="of the JPEGs (default 88)")
    parser.add_argument("--workers", type=commandline.positive, default=2, metavar="N", help="threads (default 2)")
    given = parser.parse_args(argv)
    if (given.source / IMAGES).is_file():
        meta = unpack(given.source, given.out, given.workers)
    else:
        meta = pack(given.source, given.out, given.quality, given.workers)
    print(f"{given.out}: {meta['name']}, {meta['counts']['images']} images at {meta['size']} px")


if __name__ == "__main__":
    sys.exit(commandline.run(main))
