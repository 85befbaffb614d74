"""Reading speed of RecordIO: records/s against Pillow's plain JPEG decode rate, on the same images in the same run.

A .rec file is made of photographs (--source, a folder of JPEG files, or else rendered smooth noise at the size of the
training sets, 112 px), or one that you have is read (--rec). Four ways take turns over the same images, and of each the
fastest of --repeats counts:
  pillow      Pillow decodes the JPEG bytes, which are in memory already, to RGB pixels: the bound
  records     the records' bytes and labels, not decoded
  images      records, decoded to RGB pixels on one thread
  prepared    `python -m data_prep.recordio` as a whole: hashed, decoded on --workers threads, written with its manifest
`of_pillow` is the rate over Pillow's.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
from PIL import Image

from benchmarks.shared import finish
from data_prep import recordio
from lrkd.data.images import upright
from lrkd.study.experiment import commit, device_name


def rendered(count: int, side: int = 112) -> list[bytes]:
    """JPEG files of about the size (8 kB) and the smoothness of aligned faces."""
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(256, size=(10, 10, 3)).astype(np.uint8))
        pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (side, side, 3))
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
        found.append(buffer.getvalue())
    return found


def write(images: list[bytes], rec: Path) -> None:
    """A .rec and .idx of these images, ten a person."""
    offset, lines = 0, []
    with rec.open("wb") as file:
        for key, image in enumerate(images):
            body = struct.pack("<IfQQ", 0, key // 10, key, 0) + image
            lines.append(f"{key}\t{offset}\n")
            offset += file.write(struct.pack("<II", recordio.MAGIC, len(body)) + body + bytes(-len(body) % 4))
    rec.with_suffix(".idx").write_text("".join(lines))


def decode(data: bytes) -> np.ndarray:
    """What anyone would write with Pillow alone."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _pixels(data: bytes) -> np.ndarray:
    with upright(data) as image:
        return np.asarray(image)


def main() -> None:
    """Measure, print, and with --out write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recordio", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--rec", type=Path, help="a train.rec to read")
    source.add_argument("--source", type=Path, metavar="DIR", help="a folder of JPEG files, with folders in it")
    parser.add_argument("--images", type=int, default=2000, help="how many, at most (default: 2000)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the fastest counts (default: 5)")
    parser.add_argument("--workers", type=int, default=2, help="decoding threads of `prepared` (default: 2)")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also merge the rows into this table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        where, rec = Path(name), arguments.rec
        if rec is None:
            rec = where / "train.rec"
            files = sorted(arguments.source.rglob("*.jpg"))[: arguments.images] if arguments.source else []
            write([file.read_bytes() for file in files] or rendered(arguments.images), rec)
        idx = rec.with_suffix(".idx") if rec.with_suffix(".idx").is_file() else None
        opened = recordio.Records(rec, idx)
        chosen = [int(number) for number in recordio.images(opened)[: arguments.images]]
        images = [opened[number].image for number in chosen]
        small = where / "small.rec"
        write(images, small)
        records = recordio.Records(small, small.with_suffix(".idx"))
        turn = 0

        def prepare() -> None:
            nonlocal turn
            turn += 1
            with contextlib.redirect_stderr(io.StringIO()), Image.open(io.BytesIO(images[0])) as first:
                side = max(first.size)
            with contextlib.redirect_stderr(io.StringIO()):
                recordio.prepare(small, where / str(turn), size=side, workers=arguments.workers)

        ways: dict[str, Callable[[], object]] = {
            "pillow": lambda: [decode(image) for image in images],
            "records": lambda: [records[number] for number in range(len(records))],
            "images": lambda: [_pixels(records[n].image) for n in range(len(records))],
            "prepared": prepare,
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.repeats):
            for way, work in ways.items():
                taken[way].append(seconds(work))
    rate = {way: len(images) / min(times) for way, times in taken.items()}
    table = pd.DataFrame(
        {
            "way": way,
            "threads": arguments.workers if way == "prepared" else 1,
            "images": len(images),
            "kb_an_image": round(float(np.mean([len(image) for image in images])) / 1000, 1),
            "records_per_s": round(rate[way]),
            "of_pillow": round(rate[way] / rate["pillow"], 2),
            "repeats": arguments.repeats,
            "load": round(os.getloadavg()[0], 1),
            "device": device_name("cpu"),
            "pillow": PIL.__version__,
            "commit": commit(),
        }
        for way in ways
    )
    finish(table, arguments.out, "way", "threads", "images", "device")


if __name__ == "__main__":
    main()
