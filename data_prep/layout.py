"""Photographs in, prepared folder out: decode, crop, shard, and nothing half-written under the final name."""

from __future__ import annotations

import argparse
import csv
import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from lrkd.errors import DataError, LrkdError
from lrkd.layout import MANIFEST, PAIRS, NpyWriter, file_sha256
from lrkd.pairs import Pairs
from lrkd.photographs import upright

VERSION = "1"
SHARD_BYTES = 2**31 - 2**20  # under 2 GB with its header
MAX_LIST = 4 * 2**20  # bytes of a list that comes with a data set; the longest has 160 kB
MAX_SAID = 20  # skipped images that the terminal hears of; meta.json names all
MAX_SIDE = 4096  # pixels; some images of that size are in memory at once
CHECKPOINT = 1024  # images; at most so many are decoded again after a run was killed
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Box = Callable[[int, int], tuple[float, float, float, float]]


@dataclass(frozen=True)
class Photo:
    """One image to come: whose it is, where it is from, and how to get its bytes; maybe an age and a role."""

    name: str
    source: str
    read: Callable[[], bytes]
    age: float | None = None
    role: str = ""


@dataclass
class Extras:
    """What a tool adds once it knows which photographs were kept."""

    pairs: list[tuple[int, int, int, int, str]] = field(default_factory=list)  # left, right, same, fold, protocol
    splits: dict[str, list[int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def drawn(cls, pairs: Pairs, protocol: str) -> Extras:
        """Pairs that `lrkd.pairs.make_pairs` drew, under a protocol's name."""
        columns = (pairs.left, pairs.right, pairs.same.astype(int), pairs.fold)
        rows = zip(*(column.tolist() for column in columns), [protocol] * len(pairs), strict=True)
        return cls(pairs=list(rows))


class NoFace(Exception):
    """A photograph in which the face was not found: left out and counted, but not broken."""


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


def whole_padded(width: int, height: int) -> tuple[float, float, float, float]:
    """The smallest square around the whole image; what lies outside the image is black."""
    side = max(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def convert(data: bytes, size: int, box: Box) -> np.ndarray:
    """Bytes of an image file -> (S,S,3) uint8 RGB: turned upright, cropped, resized (Lanczos, antialiased).

    Raises what `upright` raises, and ValueError on a crop too large.
    """
    with upright(data) as image:
        wanted = tuple(map(int, box(*image.size)))
        part = image if wanted == (0, 0, *image.size) else image.crop(wanted)  # type: ignore[arg-type]
        return np.asarray(part.resize((size, size), Image.Resampling.LANCZOS))


def _decoded(
    photos: Iterable[Photo], decode: Callable[[Photo, bytes], np.ndarray], workers: int
) -> Iterator[tuple[Photo, str, np.ndarray | Exception]]:
    """(photo, sha256, image or what went wrong), in order, a few images ahead on `workers` threads."""

    def work(photo: Photo) -> tuple[Photo, str, np.ndarray | Exception]:
        try:
            data = photo.read()
            return photo, hashlib.sha256(data).hexdigest(), decode(photo, data)
        except DataError:
            raise  # the whole source is wrong, not one image
        except Exception as error:  # Pillow raises nearly anything on a damaged file
            return photo, "", error

    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future] = deque()
    try:
        for photo in photos:
            waiting.append(pool.submit(work, photo))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Shards:
    """images-00000.npy ... of at most `limit` bytes each, in the order of `append`."""

    def __init__(self, folder: Path, size: int, limit: int, rows: int = 0) -> None:
        """With `rows`, go on after the first `rows` images that are there already."""
        self._folder, self._row = folder, (size, size, 3)
        self._each = max(1, (limit - 128) // (size * size * 3))  # 128 bytes of header
        self._files: list[NpyWriter] = []
        for start in range(0, rows, self._each):
            self._open(min(self._each, rows - start))
        for stale in folder.glob("images-*.npy"):
            if stale.name not in {file.path.name for file in self._files}:
                stale.unlink()

    def _open(self, rows: int = 0) -> None:
        if self._files:
            self._files[-1].close()
        self._files.append(NpyWriter(self._folder / f"images-{len(self._files):05d}.npy", self._row, rows))

    def append(self, image: np.ndarray) -> None:
        if not self._files or self._files[-1].rows == self._each:
            self._open()
        self._files[-1].append(image[None])

    def flush(self) -> None:
        if self._files:
            self._files[-1].flush()

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *error: object) -> None:
        if self._files:
            self._files[-1].__exit__(*error)

    def table(self) -> list[dict[str, Any]]:
        """File, number of images and sha256 of each shard."""
        return [{"file": f.path.name, "images": f.rows, "sha256": file_sha256(f.path)} for f in self._files]


class _Journal:
    """`OUT.partial/journal`: the photographs whose pixels are on the disk, so that a stopped run goes on after them.

    A JSON line with what the run was asked for, then one a photograph: name, source, sha256, age, role, and what was
    wrong with it if anything. What is not for the same request is not gone on with.
    """

    def __init__(self, path: Path, request: dict[str, Any]) -> None:
        self.rows: list[list[Any]] = []
        head = json.dumps(request, sort_keys=True)
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
        if lines and lines[0] == head:
            with suppress(ValueError):  # a line that was cut short ends what is known
                for line in lines[1:-1]:
                    self.rows.append(json.loads(line))
        whole = "".join(f"{line}\n" for line in (head, *lines[1 : 1 + len(self.rows)]))
        path.write_text(whole, encoding="utf-8", newline="\n")
        self.before = self._written = len(self.rows)
        self._path = path

    @property
    def kept(self) -> int:
        """How many of the photographs became rows."""
        return sum(not row[5] for row in self.rows)

    def flush(self) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in self.rows[self._written :])
        self._written = len(self.rows)

    def rest(self, photos: Iterable[Photo]) -> Iterator[Photo]:
        """The photographs after those of the journal; DataError where the source is not the same any more."""
        rest = iter(photos)
        for number, row in enumerate(self.rows[: self.before]):
            photo = next(rest, None)
            same = photo is not None and [photo.name, photo.source] == row[:2]
            if same and photo is not None and not row[5] and number in (0, self.before - 1):
                same = hashlib.sha256(photo.read()).hexdigest() == row[2]
            if not same:
                raise DataError(f"{row[1]}: changed since the run that was interrupted: start again")
        yield from rest


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """`OUT.partial`, which becomes OUT at the end, disappears on any failure, and stays when the run is stopped.

    A lock tells what a stopped run left there from one that still runs.
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
                yield partial
                for gone in (".lock", "journal"):
                    (partial / gone).unlink()
                partial.rename(out)
            except KeyboardInterrupt:
                raise
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        if error.errno in NO_SPACE:
            raise OSError(error.errno, "no space left; the unfinished folder was removed", str(out)) from error
        raise


def pictures(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name; links, hidden files and everything else are passed over.

    Raises DataError where there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder: one with images is right")
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    return [
        Path(entry.path)
        for entry in entries
        if entry.is_file(follow_symlinks=False)
        and not entry.name.startswith(".")
        and entry.name.lower().endswith(SUFFIXES)
    ]


def content(file: Path, most: int) -> bytes:
    """The bytes of a plain file. Raises DataError where there is none (a pipe would be waited for), or a longer one."""
    if not file.is_file():
        raise DataError(f"{file}: no such file: it comes with the data set")
    with file.open("rb") as opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise DataError(f"{file}: more than {most} bytes, which no such file has")
    return data


def lines(file: Path) -> list[str]:
    """The lines of a UTF-8 list that comes with a data set, without their ends. Raises DataError as `content` does."""
    try:
        return content(file, MAX_LIST).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text: {error}") from error


def check_out(out: Path) -> None:
    """DataError unless `out` does not exist or is an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"--out {out}: exists and is not an empty folder: a new name is right")


def rehearse(photos: list[Photo], extras: Callable[[list[str], list[str], list[int]], Extras]) -> None:
    """Raise what `extras` has against its options and these photographs, before `write` decodes them for hours."""
    names, labels = np.unique([photo.name for photo in photos], return_inverse=True)
    extras([photo.source for photo in photos], names.tolist(), labels.tolist())


def write(
    out: Path,
    photos: Iterable[Photo],
    total: int,
    extras: Callable[[list[str], list[str], list[int]], Extras],
    *,
    name: str,
    size: int,
    crop: dict[str, Any],
    licence: str,
    tool: str,
    box: Box | None = None,
    decode: Callable[[Photo, bytes], np.ndarray] | None = None,
    max_broken: float = 0.01,
    workers: int = 2,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write a prepared folder and return its meta. Rows keep the order of `photos`; labels follow the sorted names.

    An image becomes (S,S,3) by `box` or, instead, by `decode`, which raises `NoFace` where there is none to be seen.
    `extras(sources, names, labels)` gets the kept rows' sources, the sorted names and the rows' labels.
    A run that was stopped is gone on with where everything asked for is the same.
    Raises DataError when more than `max_broken` of the images are broken, OSError when the disk is full.
    """
    check_out(out)
    request = {"name": name, "size": size, "crop": crop, "tool": f"{tool} {VERSION}", "shard_bytes": shard_bytes}
    make = decode or (lambda photo, data: convert(data, size, box or whole_padded))
    begun = time.perf_counter()
    with _unfinished(out) as folder:
        journal = _Journal(folder / "journal", request | {"total": total})
        with (
            _Shards(folder, size, shard_bytes, journal.kept) as shards,
            tqdm(total=total, initial=journal.before, desc=name, unit="img", disable=None) as bar,
        ):
            skipped, broken = 0, sum(bool(row[5]) and not row[5].startswith("NoFace") for row in journal.rows)
            try:
                for photo, digest, image in _decoded(journal.rest(photos), make, workers):
                    bar.update()
                    wrong = f"{type(image).__name__}: {image}"[:300] if isinstance(image, Exception) else ""
                    if not isinstance(image, Exception):
                        shards.append(image)
                    journal.rows.append([photo.name, photo.source, digest, photo.age, photo.role, wrong])
                    if wrong:
                        skipped += 1
                        if skipped <= MAX_SAID:
                            tqdm.write(f"skipped {photo.source}: {image}", file=sys.stderr)
                        broken += not isinstance(image, NoFace)
                    if broken > max_broken * total:
                        raise DataError(
                            f"{broken} of {total} images are broken, the last {photo.source} ({image}): at most "
                            f"{max_broken:.1%} are right (--max-broken)"
                        )
                    if len(journal.rows) % CHECKPOINT == 0:
                        shards.flush()
                        journal.flush()
            except KeyboardInterrupt:
                shards.flush()
                journal.flush()
                raise
        kept = [row for row in journal.rows if not row[5]]
        if not kept:
            raise DataError("no image could be read")
        left_out = [{"source": row[1], "reason": row[5]} for row in journal.rows if row[5]]
        no_face = [row["source"] for row in left_out if row["reason"].startswith("NoFace")]

        people, sources, digests, ages, roles = (list(column) for column in list(zip(*kept, strict=True))[:5])
        names = sorted(set(people))
        label_of = {person: label for label, person in enumerate(names)}
        labels = [label_of[person] for person in people]
        extra = extras(sources, names, labels)
        header, columns = list(MANIFEST), [range(len(labels)), labels, people, sources, digests]
        for column, values, absent in (("age", ages, None), ("role", roles, "")):
            if any(value != absent for value in values):
                header.append(column)
                columns.append(values)
        _write_csv(folder / "manifest.csv", header, zip(*columns, strict=True))
        _write_csv(folder / "pairs.csv", PAIRS, extra.pairs)
        protocols = dict.fromkeys(pair[4] for pair in extra.pairs)
        counts = {"images": len(labels), "identities": len(names), "broken": len(left_out) - len(no_face)}
        if decode is not None:
            counts["no_face"] = len(no_face)
        if "role" in header:
            counts["roles"] = {role: roles.count(role) for role in sorted(set(roles))}
        meta = {
            "name": name,
            "size": size,
            "crop": crop,
            "counts": {
                **counts,
                **extra.counts,
                "pairs": {p: sum(pair[4] == p for pair in extra.pairs) for p in protocols},
            },
            "licence": licence,
            "tool": f"{tool} {VERSION}",
            "broken": [row for row in left_out if not row["reason"].startswith("NoFace")],
            **({"no_face": no_face} if decode is not None else {}),
            "shards": shards.table(),
            "splits": extra.splits,
        }
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in meta.items())
        (folder / "meta.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    if skipped > MAX_SAID:
        print(f"skipped {skipped - MAX_SAID} more images: meta.json names them all", file=sys.stderr)
    seconds, new = time.perf_counter() - begun, len(journal.rows) - journal.before
    print(f"{name}: {new} images in {seconds:.1f} s, {new / seconds:.0f} images/s", file=sys.stderr)
    return meta


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
    except UnicodeEncodeError as error:
        raise DataError(f"a file or folder name is not UTF-8: {error.object[:80]!r}: rename it") from error


def named_pairs(sources: list[str], wanted: list[tuple[str, str, int, int, str]]) -> Extras:
    """Pairs (source, source, same, fold, protocol) as rows; those of broken images, and repeated ones, are counted."""
    row = {where: index for index, where in enumerate(sources)}
    seen: set[tuple[int, int, str]] = set()
    kept, repeated = [], 0
    for left, right, same, fold, protocol in wanted:
        if left not in row or right not in row:
            continue
        a, b = row[left], row[right]
        pair = (min(a, b), max(a, b), protocol)
        if a == b or pair in seen:
            repeated += 1
            continue
        seen.add(pair)
        kept.append((a, b, same, fold, protocol))
    lost = len(wanted) - len(kept) - repeated
    return Extras(pairs=kept, counts={"pairs_of_broken_images": lost, "repeated_pairs": repeated})


def summary(out: Path, meta: dict[str, Any]) -> str:
    """One line for the terminal."""
    counts = meta["counts"]
    pairs = ", ".join(f"{name} {n}" for name, n in counts["pairs"].items()) or "none"
    roles = ", ".join(f"{name} {n}" for name, n in counts.get("roles", {}).items())
    lost = f"{counts['broken']} broken" + (f", {counts['no_face']} without a face" if "no_face" in counts else "")
    return (
        f"{out}: {counts['images']} images of {counts['identities']} people at {meta['size']} px, {lost}; "
        f"pairs: {pairs}" + (f"; roles: {roles}" if roles else "")
    )


# -------------------------------------------------------------------------------------------------- command line


def positive(text: str) -> int:
    """argparse type: a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: 1 or more is right")
    return value


def whole(text: str) -> int:
    """argparse type: a whole number of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: 0 or more is right")
    return value


def side(text: str) -> int:
    """argparse type: a whole number from 1 to MAX_SIDE."""
    value = positive(text)
    if value > MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text}: at most {MAX_SIDE} is right")
    return value


def share(text: str) -> float:
    """argparse type: a number in (0,1]."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: above 0 and at most 1 is right")
    return value


def parser(tool: str, text: str) -> argparse.ArgumentParser:
    """The command line of `python -m data_prep.<tool>`, with the options that all tools share."""
    parser = argparse.ArgumentParser(
        prog=f"python -m data_prep.{tool}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="what you downloaded")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="prepared folder to make")
    parser.add_argument("--size", type=side, default=112, metavar="S", help="output side in pixels (default 112)")
    parser.add_argument(
        "--max-broken",
        type=share,
        default=0.01,
        metavar="P",
        help="share of images that may be broken and skipped before it is an error (default 0.01)",
    )
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="decoding threads (default 2)")
    return parser


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
        print("interrupted: nothing is finished; the same command goes on from here", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
