"""Photographs in, prepared folder out: decode, crop, shard, and nothing half-written under the final name."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from data_prep import findings, images
from data_prep.files import check_out, unfinished
from data_prep.images import Framing
from data_prep.journal import Journal, Photo
from lrkd.data.alignment import NoFace
from lrkd.data.layout import MANIFEST, PAIRS
from lrkd.data.pairs import make_pairs, mark_copies
from lrkd.data.shards import NpyWriter, file_sha256
from lrkd.errors import DataError

VERSION = "1"
SHARD_BYTES = 2**31 - 2**20  # under 2 GB with its header
MAX_SAID = 20  # skipped images that the terminal hears of; meta.json names all
CHECKPOINT = 1024  # images; at most so many are decoded again after a run was killed
Item = TypeVar("Item")
Made = tuple[str, np.ndarray, str]  # sha256, image, and why no face was found in it, if none was


class Kept(NamedTuple):
    """The rows that were kept: source, label and sha256 of each, and the sorted names that the labels count."""

    sources: list[str]
    names: list[str]
    labels: list[int]
    digests: list[str]


@dataclass(frozen=True)
class Recipe:
    """What to make of the photographs.

    Attributes:
        name: The data set's name.
        size: Side of the images in pixels.
        licence: A note on the terms of use.
        tool: The tool that writes it, as in "data_prep.lfw".
        framing: Which part of a photograph is the face.
        max_broken: Share of images that may be broken and left out.
        workers: Threads that decode.
        shard_bytes: The most bytes in one .npy file.
    """

    name: str
    size: int
    licence: str
    tool: str
    framing: Framing = field(default_factory=Framing.whole)
    max_broken: float = 0.01
    workers: int = 2
    shard_bytes: int = SHARD_BYTES

    def request(self, total: int) -> dict[str, Any]:
        """Give all that determines what is written, for the journal of a run that may be stopped."""
        return {
            "name": self.name,
            "size": self.size,
            "crop": self.framing.crop,
            "tool": f"{self.tool} {VERSION}",
            "shard_bytes": self.shard_bytes,
            "total": total,
        }


@dataclass
class Extras:
    """What a tool adds once it knows which photographs were kept.

    Attributes:
        pairs: (left, right, same, fold, protocol) of each verification pair; left and right are rows.
        splits: Labels of each split.
        counts: Further counts for `meta.json`.
        notes: Lines for the terminal.
    """

    pairs: list[tuple[int, int, int, int, str]] = field(default_factory=list)
    splits: dict[str, list[int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def drawn(
        cls, kept: Kept, count: int | None, folds: int, seed: int, *, protocol: str = "generated", **options: Any
    ) -> Extras:
        """Draw pairs by `lrkd.data.pairs.make_pairs` among images that are no copies of earlier ones.

        Args:
            kept: The rows.
            count: Pairs wanted, or None for as many as there are; a note says where there are fewer.
            folds: Folds wanted; a note says where there are fewer.
            seed: Draws the pairs.
            protocol: The name of their protocol.
            **options: `age_gap` and `max_genuine` of `make_pairs`.

        Raises:
            DataError: There are no such pairs.
        """
        labels = mark_copies(np.array(kept.labels), np.array(kept.digests))
        pairs = make_pairs(labels, count, folds, seed, at_most=True, **options)
        columns = (pairs.left, pairs.right, pairs.same.astype(int), pairs.fold)
        rows = zip(*(column.tolist() for column in columns), [protocol] * len(pairs), strict=True)
        made, notes = int(pairs.fold.max()) + 1, []
        if made < folds or len(pairs) < (count or 0):
            wanted = f"{folds}" if count is None else f"{folds} with {count}"
            notes = [f"{made} folds with {len(pairs)} pairs instead of {wanted}: the people and images give no more"]
        return cls(pairs=list(rows), notes=notes)

    @classmethod
    def named(cls, kept: Kept, wanted: list[tuple[str, str, int, int, str]]) -> Extras:
        """Turn pairs (source, source, same, fold, protocol) into rows; count those of broken images, and repeats."""
        row = {where: index for index, where in enumerate(kept.sources)}
        seen: set[tuple[int, int, str]] = set()
        pairs, repeated = [], 0
        for left, right, same, fold, protocol in wanted:
            if left not in row or right not in row:
                continue
            a, b = row[left], row[right]
            pair = (min(a, b), max(a, b), protocol)
            if a == b or pair in seen:
                repeated += 1
                continue
            seen.add(pair)
            pairs.append((a, b, same, fold, protocol))
        lost = len(wanted) - len(pairs) - repeated
        return cls(pairs=pairs, counts={"pairs_of_broken_images": lost, "repeated_pairs": repeated})


Adder = Callable[[Kept], Extras]


def decode_all(
    photos: Iterable[Photo], make: Callable[[Photo], Item], workers: int
) -> Iterator[tuple[Photo, Item | Exception]]:
    """Give each photograph with what was made of it or what went wrong, in order, a few ahead on `workers` threads."""

    def work(photo: Photo) -> tuple[Photo, Item | Exception]:
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


class ShardWriter:
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

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._files:
            self._files[-1].__exit__(*error)

    def table(self) -> list[dict[str, Any]]:
        """File, number of images and sha256 of each shard."""
        return [{"file": f.path.name, "images": f.rows, "sha256": file_sha256(f.path)} for f in self._files]


def rehearse(photos: list[Photo], extras: Adder) -> None:
    """Raise what `extras` has against its options and these photographs, before `write` decodes them for hours."""
    names, labels = np.unique([photo.name for photo in photos], return_inverse=True)
    sources = [photo.source for photo in photos]
    extras(Kept(sources, names.tolist(), labels.tolist(), sources))  # as if no two were copies


def write(out: Path, photos: Iterable[Photo], total: int, extras: Adder, recipe: Recipe) -> dict[str, Any]:
    """Write a prepared folder. Rows keep the order of `photos`; labels follow the sorted names.

    A photograph in which no face is found, or which is missing, stays a row, marked as missing. Copies, and people of
    the training split who are in another one too, are said on the terminal. A run that was stopped is gone on with
    where everything asked for is the same.

    Args:
        out: The folder to make: new, or empty.
        photos: The photographs.
        total: How many there are.
        extras: Gives pairs, splits and further counts of the rows that were kept.
        recipe: What to make of the photographs.

    Returns:
        The content of `meta.json`.

    Raises:
        DataError: More than `recipe.max_broken` of the images are broken, or there is no face in any.
        OSError: The disk is full.
    """
    check_out(out)
    begun = time.perf_counter()
    with unfinished(out) as folder:
        journal = Journal(folder / "journal", recipe.request(total))
        shards = _fill(folder, photos, total, journal, recipe)
        kept, columns = _table(journal)
        extra = extras(kept)
        people, missing = columns["name"], columns.get("missing", [0] * len(kept.labels))
        copied, notes = findings.copies(people, kept.sources, kept.digests)
        notes += [*findings.between(extra.splits, kept.names, kept.labels, kept.digests), *extra.notes]
        no_face = [source for source, absent in zip(kept.sources, missing, strict=True) if absent]
        if no_face:
            found = f"no face found in {len(no_face)} of {len(missing)} images, which count as misses: {no_face[0]} ..."
            notes.insert(0, found)
        _write_csv(folder / "manifest.csv", columns, zip(*columns.values(), strict=True))
        _write_csv(folder / "pairs.csv", PAIRS, extra.pairs)
        meta = _meta(recipe, journal, kept, columns.get("role", []), no_face)
        protocols = dict.fromkeys(pair[4] for pair in extra.pairs)
        pairs = {p: sum(pair[4] == p for pair in extra.pairs) for p in protocols}
        meta["counts"] |= {**copied, **extra.counts, "pairs": pairs}
        meta |= {"shards": shards, "splits": extra.splits}
        write_meta(folder, meta)
    for note in notes:
        print(note, file=sys.stderr)
    seconds, new = time.perf_counter() - begun, len(journal.rows) - journal.before
    print(f"{recipe.name}: {new} images in {seconds:.1f} s, {new / seconds:.0f} images/s", file=sys.stderr)
    return meta


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write `meta.json` with one key a line."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in meta.items())
    (folder / "meta.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def _fill(folder: Path, photos: Iterable[Photo], total: int, journal: Journal, recipe: Recipe) -> list[dict[str, Any]]:
    """Decode the photographs that the journal does not have yet into shards; -> the table of all shards."""
    with (
        ShardWriter(folder, recipe.size, recipe.shard_bytes, len(journal.kept)) as shards,
        tqdm(total=total, initial=journal.before, desc=recipe.name, unit="img", disable=None) as bar,
    ):
        skipped, broken = 0, len(journal.rows) - len(journal.kept)
        try:
            for photo, made in decode_all(journal.rest(photos), _maker(recipe), recipe.workers):
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
                if broken > recipe.max_broken * total:
                    raise DataError(
                        f"expected at most {recipe.max_broken:.1%} broken images (--max-broken), got {broken} of "
                        f"{total}, the last {photo.source} ({made})"
                    )
                if len(journal.rows) % CHECKPOINT == 0:
                    shards.flush()
                    journal.flush()
        except KeyboardInterrupt:
            shards.flush()
            journal.flush()
            raise
    if skipped > MAX_SAID:
        print(f"and {skipped - MAX_SAID} more such images: meta.json names them all", file=sys.stderr)
    return shards.table()


def _maker(recipe: Recipe) -> Callable[[Photo], Made]:
    """What turns a photograph into a row; where it shows no face, into the whole of it, or black if it is not there."""

    def make(photo: Photo) -> Made:
        try:
            data = photo.read()
        except NoFace as error:
            digest = hashlib.sha256(os.fsencode(photo.source)).hexdigest()  # of no bytes, all such would be copies
            return digest, np.zeros((recipe.size, recipe.size, 3), np.uint8), str(error)
        digest = hashlib.sha256(data).hexdigest()
        try:
            return digest, recipe.framing.decode(photo.source, data, recipe.size), ""
        except NoFace as error:
            return digest, images.convert(data, recipe.size, images.whole_padded), str(error)

    return make


def _table(journal: Journal) -> tuple[Kept, dict[str, list[Any]]]:
    """The rows that were kept, and the columns of `manifest.csv`; age, role and missing where any row has one."""
    if not journal.kept:
        raise DataError("expected at least one image that can be read, got none")
    people, sources, digests, ages, roles, reasons, missing = (list(c) for c in zip(*journal.kept, strict=True))
    if all(missing):
        raise DataError(f"no face was found in any of {len(people)} images, the first {sources[0]}: {reasons[0]}")
    names = sorted(set(people))
    label_of = {person: label for label, person in enumerate(names)}
    kept = Kept(sources, names, [label_of[person] for person in people], digests)
    columns: dict[str, list[Any]] = dict(
        zip(MANIFEST, (list(range(len(people))), kept.labels, people, sources, digests), strict=True)
    )
    if any(age is not None for age in ages):
        columns["age"] = ages
    if any(roles):
        columns["role"] = roles
    if any(missing):
        columns["missing"] = [int(value) for value in missing]
    return kept, columns


def _meta(recipe: Recipe, journal: Journal, kept: Kept, roles: list[str], no_face: list[str]) -> dict[str, Any]:
    """What `meta.json` says of the images."""
    left_out = [{"source": row[1], "reason": row[5]} for row in journal.rows if row[5] and not row[6]]
    counts: dict[str, Any] = {"images": len(kept.labels), "identities": len(kept.names), "broken": len(left_out)}
    if recipe.framing.finds_faces or no_face:
        counts["no_face"] = len(no_face)
    if roles:
        counts["roles"] = {role: roles.count(role) for role in sorted(set(roles))}
    return {
        "name": recipe.name,
        "size": recipe.size,
        "crop": recipe.framing.crop,
        "counts": counts,
        "licence": recipe.licence,
        "tool": f"{recipe.tool} {VERSION}",
        "broken": left_out,
        **({"no_face": no_face} if "no_face" in counts else {}),
    }


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
    except UnicodeEncodeError as error:
        raise DataError(f"a file or folder name is not UTF-8: {error.object[:80]!r}: rename it") from error
