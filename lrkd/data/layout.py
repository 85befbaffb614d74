"""The on-disk layout of prepared faces: how it is read, and that what is read is checked.

A prepared folder holds `images-00000.npy` ... (uint8 n,S,S,3), `manifest.csv`, `pairs.csv` and `meta.json`; what is in
them is written down in data_prep/README.md. Nothing here knows about training, and nothing runs code from a file.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrkd.data.downloads import how_to_prepare
from lrkd.data.pairs import Pairs
from lrkd.data.shards import Shards, file_sha256
from lrkd.errors import DataError

MANIFEST = ("index", "label", "name", "source", "sha256")
PAIRS = ("left", "right", "same", "fold", "protocol")
META = ("name", "size", "crop", "counts")
MAX_META = 32 * 2**20  # bytes; the largest names 170,000 broken images
MAX_PAIRS = 5 * 10**6
ROLE = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, eq=False)
class Layout:
    """What a prepared folder holds, checked: row i of `images`, `labels`, `age` and `sources` is one photograph."""

    path: Path
    images: Shards
    labels: np.ndarray  # (N,) int64
    missing: np.ndarray  # (N,) bool, from an optional manifest column `missing`: no face was found in this photograph
    sha256: np.ndarray  # (N,) S64, of the bytes of each source image
    age: np.ndarray | None  # (N,) float32, from an optional manifest column `age`
    roles: dict[str, np.ndarray]  # rows of each role, from an optional manifest column `role`; each row has one
    names: tuple[str, ...]  # (C,) sorted; label i is names[i]
    sources: tuple[str, ...]  # (N,)
    protocols: dict[str, Pairs]
    meta: dict[str, Any]
    splits: dict[str, np.ndarray]  # labels of each split that the data set defines, maybe none
    digest: str


def read_layout(path: str | os.PathLike[str], checksum: bool = False) -> Layout:
    """Open a prepared folder; images stay on disk. With `checksum` every pixel is read and compared with meta.json.

    Raises DataError naming the file, the line, the value and what is expected.
    """
    folder = Path(path)
    if not folder.is_dir():
        told = how_to_prepare(folder) or "expected one written by `python -m data_prep.lfw` or `.folder`"
        raise DataError(f"{folder}: no such folder: {told}")
    for needed in ("meta.json", "manifest.csv", "pairs.csv"):
        if not (folder / needed).is_file():
            told = how_to_prepare(folder) or "not a prepared folder, or one that was not finished"
            raise DataError(f"{folder}: {needed} is missing: {told}")
    meta = _read_meta(folder / "meta.json")
    images = _read_images(folder, meta, checksum)
    rows = _read_manifest(folder / "manifest.csv", len(images))
    protocols = _read_pairs(folder / "pairs.csv", rows.labels)
    splits = _read_splits(folder / "meta.json", meta, rows.names)
    digest = hashlib.sha256()
    for file in ("meta.json", "manifest.csv", "pairs.csv"):
        digest.update((folder / file).read_bytes())
    return Layout(
        path=folder,
        images=images,
        protocols=protocols,
        meta=meta,
        splits=splits,
        digest=digest.hexdigest()[:16],
        **rows._asdict(),
    )


def framing(folder: str | os.PathLike[str]) -> str:
    """Return how a prepared folder frames its faces, as "centre" or "five points"; "" where nothing says it."""
    try:
        crop = _read_meta(Path(folder) / "meta.json")["crop"]
    except DataError:
        return ""
    return str(crop.get("kind", "")) if isinstance(crop, dict) else ""


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_META:
            raise DataError(f"{path}: {path.stat().st_size} bytes: at most {MAX_META} are read")
        meta = json.loads(path.read_text(encoding="utf-8"))
    except DataError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(meta, dict) or (missing := [key for key in META if key not in meta]):
        raise DataError(f"{path}: {missing if isinstance(meta, dict) else 'an object'} is missing: {META} are needed")
    if not isinstance(meta["size"], int) or isinstance(meta["size"], bool) or meta["size"] < 1:
        raise DataError(f"{path}: size: expected the height of the images in pixels, got {meta['size']!r}")
    return meta


def _read_images(folder: Path, meta: dict[str, Any], checksum: bool) -> Shards:
    files = sorted(folder.glob("images-*.npy"))
    wanted = [f"images-{i:05d}.npy" for i in range(len(files))]
    if not files or [file.name for file in files] != wanted:
        gone = next((w for w, file in zip(wanted, files, strict=True) if w != file.name), "images-00000.npy")
        raise DataError(f"{folder}: {gone} is missing: shards are numbered from 00000 without a gap")
    side, parts = meta["size"], []
    for file in files:
        if not file.is_file():  # a pipe would be waited for
            raise DataError(f"{file}: expected an array as data_prep writes it, got no plain file")
        try:
            part = np.lib.format.open_memmap(file, mode="r")
        except Exception as error:  # numpy's reader of headers raises nearly anything
            raise DataError(f"{file}: cannot be read as .npy, broken or cut short: {error}") from error
        if part.dtype != np.uint8 or part.ndim != 4 or part.shape[1:] != (side, side, 3):
            raise DataError(f"{file}: expected uint8 (n,{side},{side},3) by meta.json, got {part.dtype} {part.shape}")
        parts.append(part)
    shards = meta.get("shards")
    if shards is not None:
        written = {str(s.get("file")): s for s in shards if isinstance(s, dict)} if isinstance(shards, list) else {}
        if set(written) != set(wanted):
            raise DataError(f"{folder}: meta.json lists the shards {sorted(written)}, the folder holds {wanted}")
        for file, part in zip(files, parts, strict=True):
            if written[file.name].get("images") != len(part):
                raise DataError(f"{file}: {len(part)} images: meta.json says {written[file.name].get('images')}")
            if checksum and file_sha256(file) != written[file.name].get("sha256"):
                raise DataError(f"{file}: its sha256 is not the one in meta.json: the pixels were changed or damaged")
    return Shards(parts)


def _read_csv(path: Path, columns: Sequence[str], most: int) -> tuple[dict[str, list[str]], list[int]]:
    """Columns by name, and the line that each row ends on; of more than `most` rows no more than one is read."""
    rows, lines = [], []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if missing := [c for c in columns if c not in header]:
                raise DataError(f"{path}: no column {', '.join(missing)}: expected the header {','.join(columns)}")
            for row in reader:
                if len(row) != len(header):
                    raise DataError(f"{path} line {reader.line_num}: expected {len(header)} fields, got {len(row)}")
                rows.append(row)
                lines.append(reader.line_num)
                if len(rows) > most:
                    break
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 CSV: {error}") from error
    return {name: [row[k] for row in rows] for k, name in enumerate(header)}, lines


def _integers(path: Path, name: str, values: list[str], lines: list[int]) -> np.ndarray:
    """(N,) int64; the first value that is no whole number is an error."""
    for value, line in zip(values, lines, strict=True):
        if not (value.isascii() and value.removeprefix("-").isdigit() and len(value) < 19):
            raise DataError(f"{path} line {line}: {name}: expected a whole number, got {value!r}")
    return np.array(values, dtype=np.int64) if values else np.empty(0, np.int64)


def _refuse(path: Path, lines: list[int], bad: np.ndarray, say: Callable[[int], str]) -> None:
    """DataError for the first row of the mask `bad`."""
    if bad.any():
        row = int(np.argmax(bad))
        more = int(bad.sum()) - 1
        raise DataError(f"{path} line {lines[row]}: {say(row)}" + (f" (and {more} more such rows)" if more else ""))


def _repeats(values: list[Any]) -> np.ndarray:
    """(N,) bool: this value came before."""
    first: dict[Any, int] = {}
    return np.array([first.setdefault(value, row) != row for row, value in enumerate(values)], dtype=bool)


class _Rows(NamedTuple):
    """What manifest.csv says of the images, as `Layout` has it."""

    labels: np.ndarray
    missing: np.ndarray
    sha256: np.ndarray
    age: np.ndarray | None
    roles: dict[str, np.ndarray]
    names: tuple[str, ...]
    sources: tuple[str, ...]


def _read_manifest(path: Path, images: int) -> _Rows:
    columns, lines = _read_csv(path, MANIFEST, images)
    if len(lines) != images:
        count = f"{len(lines)}{' or more' if len(lines) > images else ''}"
        raise DataError(f"{path}: expected one row an image, got {count} rows for {images} images in the .npy files")
    index = _integers(path, "index", columns["index"], lines)
    _refuse(
        path, lines, index != np.arange(images), lambda r: f"index: expected {r} (rows count from 0), got {index[r]}"
    )
    labels = _integers(path, "label", columns["label"], lines)
    _refuse(path, lines, labels < 0, lambda r: f"label: expected 0 or more, got {labels[r]}")
    person, source, digest = columns["name"], columns["source"], columns["sha256"]
    hexadecimal = set("0123456789abcdef")
    _refuse(
        path,
        lines,
        np.array([len(d) != 64 or not hexadecimal.issuperset(d) for d in digest], dtype=bool),
        lambda r: f"sha256: expected 64 lower-case hexadecimal digits, got {digest[r]!r}",
    )
    _refuse(path, lines, _repeats(source), lambda r: f"source {source[r]!r} comes twice: expected one row an image")

    classes = int(labels.max()) + 1
    if classes > images:
        raise DataError(f"{path}: expected labels 0..C-1 without a gap, got label {classes - 1} for {images} images")
    missing = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    if missing.size:
        raise DataError(
            f"{path}: no image has label {missing[0]} (of 0..{classes - 1}; {missing.size} such empty identities): "
            "expected labels without a gap"
        )
    first = np.unique(labels, return_index=True)[1]
    names = tuple(person[row] for row in first)
    _refuse(
        path,
        lines,
        np.array([person[r] != names[labels[r]] for r in range(images)], dtype=bool),
        lambda r: f"label {labels[r]}: expected one name, got {person[r]!r} here and {names[labels[r]]!r} above",
    )
    for label in range(1, classes):
        if names[label] <= names[label - 1]:
            raise DataError(
                f"{path} line {lines[first[label]]}: expected labels in the order of the names, got "
                f"{names[label - 1]!r} for {label - 1} and {names[label]!r} for {label}"
            )
    age = None
    if "age" in columns:
        try:
            age = np.array(columns["age"], dtype=np.float32)
        except ValueError as error:
            raise DataError(f"{path}: column age: expected numbers ({error})") from error
        _refuse(path, lines, ~np.isfinite(age), lambda r: f"age: expected a finite number, got {columns['age'][r]!r}")
    roles = {}
    if "role" in columns:
        role = np.array(columns["role"], dtype=object)
        odd = np.array([ROLE.fullmatch(value) is None for value in columns["role"]], dtype=bool)
        _refuse(path, lines, odd, lambda r: f"role: expected a word of a-z, 0-9 and _, as in 'probe', got {role[r]!r}")
        roles = {name: np.flatnonzero(role == name) for name in sorted(set(columns["role"]))}
    missing = np.zeros(images, dtype=bool)
    if "missing" in columns:
        told = columns["missing"]
        odd = np.array([value not in ("0", "1") for value in told], dtype=bool)
        _refuse(path, lines, odd, lambda r: f"missing: expected 1 where no face was found, else 0, got {told[r]!r}")
        missing = np.array(told) == "1"
    return _Rows(labels, missing, np.array(digest, dtype="S64"), age, roles, names, tuple(source))


def _read_pairs(path: Path, labels: np.ndarray) -> dict[str, Pairs]:
    columns, lines = _read_csv(path, PAIRS, MAX_PAIRS)
    if len(lines) > MAX_PAIRS:
        raise DataError(f"{path}: expected at most {MAX_PAIRS} pairs, got more")
    left, right, same, fold = (_integers(path, name, columns[name], lines) for name in PAIRS[:4])
    protocol = columns["protocol"]
    n = len(labels)
    for name, value in (("left", left), ("right", right)):
        bad = (value < 0) | (value >= n)
        _refuse(path, lines, bad, lambda r, name=name, value=value: f"{name}: expected 0..{n - 1}, got {value[r]}")  # type: ignore[misc]
    _refuse(path, lines, (same != 0) & (same != 1), lambda r: f"same: expected 0 or 1, got {same[r]}")
    _refuse(path, lines, fold < 0, lambda r: f"fold: expected 0 or more, got {fold[r]}")
    _refuse(path, lines, left == right, lambda r: f"image {left[r]} is paired with itself: expected two images")
    equal = labels[left] == labels[right]
    _refuse(
        path,
        lines,
        equal != (same == 1),
        lambda r: (
            f"same: expected {int(equal[r])}, as the labels are {labels[left[r]]} and {labels[right[r]]}, got {same[r]}"
        ),
    )
    low, high = np.minimum(left, right), np.maximum(left, right)
    repeated = _repeats(list(zip(protocol, low.tolist(), high.tolist(), strict=True)))
    _refuse(path, lines, repeated, lambda r: f"pair {left[r]},{right[r]} comes twice in protocol {protocol[r]!r}")
    which = np.array(protocol, dtype=object)
    found = {}
    for name in dict.fromkeys(protocol):
        rows = np.flatnonzero(which == name)
        found[name] = Pairs(left[rows], right[rows], same[rows] == 1, fold[rows], name)
    return found


def _read_splits(path: Path, meta: dict[str, Any], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    splits = meta.get("splits") or {}
    if not isinstance(splits, dict) or not all(isinstance(labels, list) for labels in splits.values()):
        raise DataError(f"{path}: splits is no object of lists: expected {{'train': [labels], 'test': [labels]}}")
    if splits and not {"train", "test"} <= set(splits) <= {"train", "validation", "test"}:
        raise DataError(f"{path}: splits: expected train and test, and maybe validation, got {sorted(splits)}")
    owner: dict[int, str] = {}
    for split, labels in splits.items():
        for label in labels:
            if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(names):
                raise DataError(f"{path}: splits.{split} holds {label!r}: expected labels 0..{len(names) - 1}")
            if label in owner:
                raise DataError(
                    f"{path}: label {label} ({names[label]}) is in splits.{owner[label]} and splits.{split}: "
                    "expected identities in one split only"
                )
            owner[label] = split
        if not labels:
            raise DataError(f"{path}: splits.{split} is empty: expected at least one label")
    return {split: np.array(sorted(labels), dtype=np.int64) for split, labels in splits.items()}
