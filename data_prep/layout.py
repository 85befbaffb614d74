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

from data_prep import findings
from lrkd.data.images import upright
from lrkd.data.layout import MANIFEST, PAIRS, NpyWriter, file_sha256
from lrkd.data.pairs import firsts, make_pairs
from lrkd.errors import DataError, LrkdError

VERSION = "1"
SHARD_BYTES = 2**31 - 2**20  # under 2 GB with its header
MAX_LIST = 4 * 2**20  # bytes of a list that comes with a data set; the longest has 160 kB
MAX_SAID = 20  # skipped images that the terminal hears of; meta.json names all
MAX_SIDE = 4096  # pixels; some images of that size are in memory at once
CHECKPOINT = 1024  # images; at most so many are decoded again after a run was killed
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".pgm", ".ppm", ".tif", ".tiff")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Box = Callable[[int, int], tuple[float, float, float, float]]
Adder = Callable[[list[str], list[str], list[int], list[str]], "Extras"]  # see `write`


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
    notes: list[str] = field(default_factory=list)  # for the terminal

    @classmethod
    def drawn(
        cls, labels: list[int], digests: list[str], count: int | None, folds: int, seed: int, **options: Any
    ) -> Extras:
        """Pairs by `lrkd.data.pairs.make_pairs` among the images that are no copies of others; fewer of them are said.

        Raises DataError where there are none.
        """
        once = firsts(np.array(digests))
        pairs = make_pairs(np.array(labels), count, folds, seed, among=once, at_most=True, **options)
        columns = (pairs.left, pairs.right, pairs.same.astype(int), pairs.fold)
        rows = zip(*(column.tolist() for column in columns), [pairs.protocol] * len(pairs), strict=True)
        made, notes = int(pairs.fold.max()) + 1, []
        if made < folds or len(pairs) < (count or 0):
            wanted = f"{folds}" if count is None else f"{folds} with {count}"
            notes = [f"{made} folds with {len(pairs)} pairs instead of {wanted}: the people and images give no more"]
        return cls(pairs=list(rows), notes=notes)


class NoFace(Exception):
    """A photograph in which the face was not found: not broken, but a row that every protocol counts as a miss."""


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


Made = tuple[str, np.ndarray, str]  # sha256, image, and why no face was found in it, if none was


def _maker(size: int, decode: Callable[[Photo, bytes], np.ndarray]) -> Callable[[Photo], Made]:
    """What turns a photograph into a row; where it shows no face, into the whole of it, or black if it is not there."""

    def make(photo: Photo) -> Made:
        try:
            data = photo.read()
        except NoFace as error:
            digest = hashlib.sha256(os.fsencode(photo.source)).hexdigest()  # of no bytes, all such would be copies
            return digest, np.zeros((size, size, 3), np.uint8), str(error)
        digest = hashlib.sha256(data).hexdigest()
        try:
            return digest, decode(photo, data), ""
        except NoFace as error:
            return digest, convert(data, size, whole_padded), str(error)

    return make


def _decoded(
    photos: Iterable[Photo], make: Callable[[Photo], Made], workers: int
) -> Iterator[tuple[Photo, Made | Exception]]:
    """Each photograph with what was made of it or what went wrong, in order, a few ahead on `workers` threads."""

    def work(photo: Photo) -> tuple[Photo, Made | Exception]:
        try:
            return photo, make(photo)
        except DataError:
            raise  # the whole source is wrong, not one image
        except Exception as error:  # Pillow raises nearly anything on a damaged file
            return photo, error

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

    A JSON line with what the run was asked for, then one a photograph: name, source, sha256, age, role, what was wrong
    with it if anything, and whether that is a face that was not found. What is not for the same request is not gone on
    with.
    """

    def __init__(self, path: Path, request: dict[str, Any]) -> None:
        self.rows: list[list[Any]] = []
        head = json.dumps(request | {"columns": 7}, sort_keys=True)
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
    def kept(self) -> list[list[Any]]:
        """The photographs that became rows."""
        return [row for row in self.rows if not row[5] or row[6]]

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


def check_out(out: Path, source: Path | None = None) -> None:
    """DataError unless `out` does not exist or is an empty folder, and lies outside of the folder `source`."""
    if source is not None and source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise DataError(
            f"--out {out}: is inside --source {source}, where the next run would take it for photographs: a folder "
            "outside is right"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"--out {out}: exists and is not an empty folder: a new name is right")


def rehearse(photos: list[Photo], extras: Adder) -> None:
    """Raise what `extras` has against its options and these photographs, before `write` decodes them for hours."""
    names, labels = np.unique([photo.name for photo in photos], return_inverse=True)
    sources = [photo.source for photo in photos]
    extras(sources, names.tolist(), labels.tolist(), sources)  # as if no two were copies


def write(
    out: Path,
    photos: Iterable[Photo],
    total: int,
    extras: Adder,
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

    An image becomes (S,S,3) by `box` or, instead, by `decode`, which raises `NoFace` where there is none to be seen, as
    a photograph's `read` does where it is missing: both stay rows, marked as missing.
    `extras(sources, names, labels, digests)` gets the kept rows' sources, the sorted names, the rows' labels and
    sha256. Copies, and people in both of two splits, are said on the terminal.
    A run that was stopped is gone on with where everything asked for is the same.
    Raises DataError when more than `max_broken` of the images are broken, OSError when the disk is full.
    """
    check_out(out)
    request = {"name": name, "size": size, "crop": crop, "tool": f"{tool} {VERSION}", "shard_bytes": shard_bytes}
    make = _maker(size, decode or (lambda photo, data: convert(data, size, box or whole_padded)))
    begun, notes = time.perf_counter(), []
    with _unfinished(out) as folder:
        journal = _Journal(folder / "journal", request | {"total": total})
        with (
            _Shards(folder, size, shard_bytes, len(journal.kept)) as shards,
            tqdm(total=total, initial=journal.before, desc=name, unit="img", disable=None) as bar,
        ):
            skipped, broken = 0, len(journal.rows) - len(journal.kept)
            try:
                for photo, made in _decoded(journal.rest(photos), make, workers):
                    bar.update()
                    if isinstance(made, Exception):
                        wrong, absent, digest = f"{type(made).__name__}: {made}"[:300], False, ""
                        broken += 1
                    else:
                        digest, image, wrong = made
                        absent = bool(wrong)
                        shards.append(image)
                    journal.rows.append([photo.name, photo.source, digest, photo.age, photo.role, wrong, absent])
                    if wrong:
                        skipped += 1
                        if skipped <= MAX_SAID:
                            what = "no face found in" if absent else "skipped"
                            tqdm.write(f"{what} {photo.source}: {wrong if absent else made}", file=sys.stderr)
                    if broken > max_broken * total:
                        raise DataError(
                            f"{broken} of {total} images are broken, the last {photo.source} ({made}): at most "
                            f"{max_broken:.1%} are right (--max-broken)"
                        )
                    if len(journal.rows) % CHECKPOINT == 0:
                        shards.flush()
                        journal.flush()
            except KeyboardInterrupt:
                shards.flush()
                journal.flush()
                raise
        kept = journal.kept
        if not kept:
            raise DataError("no image could be read")
        people, sources, digests, ages, roles, reasons, missing = (list(column) for column in zip(*kept, strict=True))
        if all(missing):
            raise DataError(f"no face was found in any of {len(kept)} images, the first {sources[0]}: {reasons[0]}")
        left_out = [{"source": row[1], "reason": row[5]} for row in journal.rows if row[5] and not row[6]]
        no_face = [source for source, absent in zip(sources, missing, strict=True) if absent]
        if no_face:
            notes.append(
                f"no face found in {len(no_face)} of {len(kept)} images, which count as misses: {no_face[0]} ..."
            )

        names = sorted(set(people))
        label_of = {person: label for label, person in enumerate(names)}
        labels = [label_of[person] for person in people]
        extra = extras(sources, names, labels, digests)
        copied, said = findings.copies(people, sources, digests)
        notes += [*said, *findings.between(extra.splits, names, labels, digests), *extra.notes]
        header, columns = list(MANIFEST), [range(len(labels)), labels, people, sources, digests]
        for column, values, absent in (("age", ages, None), ("role", roles, ""), ("missing", missing, False)):
            if any(value != absent for value in values):
                header.append(column)
                columns.append([int(value) for value in values] if column == "missing" else values)
        _write_csv(folder / "manifest.csv", header, zip(*columns, strict=True))
        _write_csv(folder / "pairs.csv", PAIRS, extra.pairs)
        protocols = dict.fromkeys(pair[4] for pair in extra.pairs)
        counts: dict[str, Any] = {"images": len(labels), "identities": len(names), "broken": len(left_out)}
        if decode is not None or no_face:
            counts["no_face"] = len(no_face)
        if "role" in header:
            counts["roles"] = {role: roles.count(role) for role in sorted(set(roles))}
        meta = {
            "name": name,
            "size": size,
            "crop": crop,
            "counts": {
                **counts,
                **copied,
                **extra.counts,
                "pairs": {p: sum(pair[4] == p for pair in extra.pairs) for p in protocols},
            },
            "licence": licence,
            "tool": f"{tool} {VERSION}",
            "broken": left_out,
            **({"no_face": no_face} if "no_face" in counts else {}),
            "shards": shards.table(),
            "splits": extra.splits,
        }
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in meta.items())
        (folder / "meta.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    if skipped > MAX_SAID:
        print(f"and {skipped - MAX_SAID} more such images: meta.json names them all", file=sys.stderr)
    for note in notes:
        print(note, file=sys.stderr)
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
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of a damaged tag in an image that is read all the same
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
