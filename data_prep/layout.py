"""Photographs in, prepared folder out: decode, crop, shard, and nothing half-written under the final name."""

from __future__ import annotations

import argparse
import csv
import errno
import fcntl
import hashlib
import io
import json
import shutil
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from lrkd.errors import DataError, LrkdError
from lrkd.layout import MANIFEST, PAIRS, NpyWriter, file_sha256

VERSION = "1"
SHARD_BYTES = 2**31 - 2**20  # under 2 GB with its header
MAX_FILE = 64 * 2**20  # a larger file is no photograph of a face
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Box = Callable[[int, int], tuple[float, float, float, float]]


@dataclass(frozen=True)
class Photo:
    """One image to come: whose it is, where it is from, and how to get its bytes."""

    name: str
    source: str
    read: Callable[[], bytes]


@dataclass
class Extras:
    """What a tool adds once it knows which photographs were kept."""

    pairs: list[tuple[int, int, int, int, str]] = field(default_factory=list)  # left, right, same, fold, protocol
    splits: dict[str, list[int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def centre_pixels(side: int) -> Box:
    """The `side` x `side` square in the middle."""

    def box(width: int, height: int) -> tuple[float, float, float, float]:
        if min(width, height) < side:
            raise ValueError(f"{width}x{height} px is smaller than the crop of {side} px")
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side

    return box


def centre_share(share: float) -> Box:
    """The square in the middle whose side is `share` of the shorter side."""
    return lambda width, height: centre_pixels(max(1, round(share * min(width, height))))(width, height)


def convert(data: bytes, size: int, box: Box) -> np.ndarray:
    """Bytes of an image file -> (S,S,3) uint8 RGB: turned upright, cropped, resized (Lanczos, antialiased).

    Raises whatever Pillow raises on a broken image, and ValueError on more than 8 bits a channel or a crop too large.
    """
    if len(data) > MAX_FILE:
        raise ValueError(f"{len(data)} bytes: at most {MAX_FILE} are read")
    with Image.open(io.BytesIO(data)) as opened:
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"mode {opened.mode}: 8 bits a channel are needed")
        opened.load()
        image = ImageOps.exif_transpose(opened)
        if image.mode != "RGB":
            image = image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")
        image = image.crop(tuple(map(int, box(*image.size))))  # type: ignore[arg-type]
        return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def _decoded(
    photos: Iterable[Photo], size: int, box: Box, workers: int
) -> Iterator[tuple[Photo, str, np.ndarray | Exception]]:
    """(photo, sha256, image or what went wrong), in order, a few images ahead on `workers` threads."""

    def work(photo: Photo) -> tuple[Photo, str, np.ndarray | Exception]:
        try:
            data = photo.read()
            return photo, hashlib.sha256(data).hexdigest(), convert(data, size, box)
        except Exception as error:  # Pillow raises nearly anything on a damaged file
            return photo, "", error

    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future] = deque()
    try:
        for photo in photos:
            waiting.append(pool.submit(work, photo))
            if len(waiting) > 8 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Shards:
    """images-00000.npy ... of at most `limit` bytes each, in the order of `append`."""

    def __init__(self, folder: Path, size: int, limit: int) -> None:
        self._folder, self._row = folder, (size, size, 3)
        self._each = max(1, (limit - 128) // (size * size * 3))  # 128 bytes of header
        self._files: list[NpyWriter] = []

    def append(self, image: np.ndarray) -> None:
        if not self._files or self._files[-1].rows == self._each:
            if self._files:
                self._files[-1].close()
            self._files.append(NpyWriter(self._folder / f"images-{len(self._files):05d}.npy", self._row))
        self._files[-1].append(image[None])

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *error: object) -> None:
        if self._files:
            self._files[-1].__exit__(*error)

    def table(self) -> list[dict[str, Any]]:
        """File, number of images and sha256 of each shard."""
        return [{"file": f.path.name, "images": f.rows, "sha256": file_sha256(f.path)} for f in self._files]


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """`OUT.partial`, which becomes OUT at the end and disappears on any failure or Ctrl-C.

    What a killed run left there is removed by the next one; a lock tells it from one that still runs.
    """
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        with (partial / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"{partial}: another run writes it: wait for it, or choose another --out") from None
            try:
                for stale in partial.iterdir():
                    if stale.name != ".lock":
                        stale.unlink()
                yield partial
                (partial / ".lock").unlink()
                partial.rename(out)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        if error.errno in NO_SPACE:
            raise OSError(error.errno, "no space left; the unfinished folder was removed", str(out)) from error
        raise


def check_out(out: Path) -> None:
    """DataError unless `out` does not exist or is an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"--out {out}: exists and is not an empty folder: a new name is right")


def write(
    out: Path,
    photos: Iterable[Photo],
    total: int,
    extras: Callable[[list[str], list[str], list[int]], Extras],
    *,
    name: str,
    size: int,
    crop: dict[str, Any],
    box: Box,
    licence: str,
    tool: str,
    max_broken: float = 0.01,
    workers: int = 2,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write a prepared folder and return its meta. Rows keep the order of `photos`; labels follow the sorted names.

    `extras(sources, names, labels)` gets the kept rows' sources, the sorted names and the rows' labels.
    Raises DataError when more than `max_broken` of the images are broken, OSError when the disk is full.
    """
    check_out(out)
    people, sources, digests = [], [], []
    broken: list[dict[str, str]] = []
    with _unfinished(out) as folder:
        with (
            _Shards(folder, size, shard_bytes) as shards,
            tqdm(total=total, desc=name, unit="img", disable=None) as bar,
        ):
            for photo, digest, image in _decoded(photos, size, box, workers):
                bar.update()
                if isinstance(image, Exception):
                    broken.append({"source": photo.source, "reason": f"{type(image).__name__}: {image}"[:300]})
                    tqdm.write(f"skipped {photo.source}: {image}", file=sys.stderr)
                    if len(broken) > max_broken * total:
                        raise DataError(
                            f"{len(broken)} of {total} images are broken, the last {photo.source} ({image}): at most "
                            f"{max_broken:.1%} are right (--max-broken)"
                        )
                    continue
                shards.append(image)
                people.append(photo.name)
                sources.append(photo.source)
                digests.append(digest)
        if not people:
            raise DataError("no image could be read")

        names = sorted(set(people))
        label_of = {person: label for label, person in enumerate(names)}
        labels = [label_of[person] for person in people]
        extra = extras(sources, names, labels)
        rows = zip(range(len(labels)), labels, people, sources, digests, strict=True)
        _write_csv(folder / "manifest.csv", MANIFEST, rows)
        _write_csv(folder / "pairs.csv", PAIRS, extra.pairs)
        protocols = dict.fromkeys(pair[4] for pair in extra.pairs)
        counts = {"images": len(labels), "identities": len(names), "broken": len(broken), **extra.counts}
        meta = {
            "name": name,
            "size": size,
            "crop": crop,
            "counts": {**counts, "pairs": {p: sum(pair[4] == p for pair in extra.pairs) for p in protocols}},
            "licence": licence,
            "tool": f"{tool} {VERSION}",
            "broken": broken,
            "shards": shards.table(),
            "splits": extra.splits,
        }
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in meta.items())
        (folder / "meta.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return meta


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
    except UnicodeEncodeError as error:
        raise DataError(f"a file or folder name is not UTF-8: {error.object[:80]!r}: rename it") from error


def summary(out: Path, meta: dict[str, Any]) -> str:
    """One line for the terminal."""
    counts = meta["counts"]
    pairs = ", ".join(f"{name} {n}" for name, n in counts["pairs"].items()) or "none"
    return (
        f"{out}: {counts['images']} images of {counts['identities']} people at {meta['size']} px, "
        f"{counts['broken']} broken; pairs: {pairs}"
    )


# -------------------------------------------------------------------------------------------------- command line


def positive(text: str) -> int:
    """argparse type: a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: 1 or more is right")
    return value


def share(text: str) -> float:
    """argparse type: a number in (0,1]."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: above 0 and at most 1 is right")
    return value


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all tools share."""
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="what you downloaded")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="prepared folder to make")
    parser.add_argument("--size", type=positive, default=112, metavar="S", help="output side in pixels (default 112)")
    parser.add_argument(
        "--max-broken",
        type=share,
        default=0.01,
        metavar="P",
        help="share of images that may be broken and skipped before it is an error (default 0.01)",
    )
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="decoding threads (default 2)")


def run(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Exit code of a tool: 0; 2 for bad input; 1 for a failure at run time; 130 for Ctrl-C. One line, no traceback."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            main(argv)
        return 0
    except LrkdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
