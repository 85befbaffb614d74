"""Files that are whole or not there: atomic writing, and tables that merge and never lose a row.

A results table is text: what a command does not know stays as it was, character by character.
"""

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lrkd.errors import DataError, MissingError, RunError

if TYPE_CHECKING:
    import pandas as pd

# Columns that are never numbers, whatever they look like: a commit such as 1234e56 is none, nor is 0012345.
TEXT = (
    *("config", "commit", "trained", "torch", "device", "data", "scale", "role", "method", "network", "run", "name"),
    *(
        "student",
        "teacher",
        "protocol",
        "split",
        "status",
        "preset",
        "degradation",
        "design",
        "part",
        "layer",
        "map",
        "kind",
        "correct",
    ),
)


@contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes its name only when the block ends well; a full disk is a RunError that names it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise RunError(
            f"{path}: could not be written ({error.strerror}); what was there before is unchanged: make room or "
            f"choose another folder, then repeat the command"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole: under a temporary name first, then renamed.

    Unlike `atomic` it always takes the same temporary name, so that the next run overwrites what a killed
    one has left.

    Raises:
        RunError: The disk is full, or refuses; what was there stays.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RunError(
            f"{path}: could not be written ({error.strerror}); what was there before is unchanged: make room, "
            f"then repeat the command to resume"
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file for this process, while others wait; the lock lies beside the file and goes with the block.

    Raises:
        RunError: The folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    while True:
        try:
            file = lock.open("w")
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held the lock before has removed its file, and another process may hold a new one by now.
            if not os.fstat(file.fileno()).st_nlink:
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    with atomic(path) as file:
        json.dump(value, file, indent=1, sort_keys=True, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; RunError that names it when it is missing or broken."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError(f"{path}: no such file, so this is not a run directory of lrkd") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as JSON ({error}); remove the run directory to train anew") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: holds no JSON object; remove the run directory to train anew")
    return value


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with equal keys as CSV, atomically; numbers in full precision."""
    with atomic(path) as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path | str, columns: Sequence[str] = (), made_by: str = "lrkd") -> "pd.DataFrame":
    """Read a results table; the columns of `TEXT` stay text, and an empty cell is a missing value.

    Args:
        path: The CSV file.
        columns: Those that it must have.
        made_by: The command that writes such tables, for the message.

    Raises:
        DataError: The file cannot be read, or lacks one of the columns.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=[""])
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: cannot be read as a results table (it is empty); remove it") from error
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())  # pandas ends some of its messages with a new line
        raise DataError(f"{path}: cannot be read as a results table ({said})") from error
    if not isinstance(frame.index, pd.RangeIndex):  # so pandas takes what is too much
        raise DataError(f"{path}: cannot be read as a results table (it has rows with more cells than its header)")
    if missing := [name for name in columns if name not in frame]:
        raise DataError(f"{path}: is no such table of `{made_by}`: it has no column {', '.join(sorted(missing))}")
    return frame


def table_text(frame: "pd.DataFrame") -> str:
    """A table as the text of a CSV file; fractions with six digits."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


@dataclass(frozen=True)
class Table:
    """A kind of results table that commands add to.

    made_by: the command that writes it. key: the columns whose values say what a row is of, such as a run; all rows
    with one key are written together, and replaced together. A column of the key that a file lacks is empty there.
    columns: those without which a file is no such table. most: a column of counts; of two groups of rows with one key
    the one with the greater count stays.
    """

    made_by: str
    key: tuple[str, ...]
    columns: tuple[str, ...] = ()
    most: str = ""

    def read(self, path: Path | str) -> "pd.DataFrame":
        """Read the table; DataError where the file is none of this kind."""
        return read_table(path, self.columns or self.key, self.made_by)

    def check(self, path: Path | None) -> None:
        """Raise DataError where a file is there that is no such table: before hours of work, and not after them."""
        if path is not None and path.exists():
            self.read(path)

    def merge(self, path: Path, frame: "pd.DataFrame") -> None:
        """Write rows into the file: those that it knows in their places, new ones behind them; all others stay.

        Other processes may write the same file: each sees what was written before it. Without rows a file
        that is there is not touched.

        Raises:
            DataError: The file is no such table; it stays.
            RunError: The file cannot be written; it stays.
        """
        if frame.empty and (path.exists() or not len(frame.columns)):
            return
        header, made = _parsed(table_text(frame))
        with locked(path):
            there, rows = list[str](), list[list[str]]()
            if path.exists():
                self.read(path)
                there, rows = _parsed(path.read_text(encoding="utf-8-sig"))
            columns = [*there, *(name for name in header if name not in there)]
            old = [dict(zip(there, row, strict=False)) for row in rows]
            with atomic(path) as file:
                writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(self._merged(old, [dict(zip(header, row, strict=True)) for row in made]))

    def _merged(self, old: Sequence[dict[str, str]], new: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """The rows of both: new ones in the places of old ones with their key, or behind what they follow, or last."""
        before, after = self._by_key(old), self._by_key(new)
        if self.most:
            after = {key: rows for key, rows in after.items() if self._count(rows) >= self._count(before.get(key, []))}
        first: dict[tuple[str, ...], int] = {}
        for number, row in enumerate(old):
            first.setdefault(self._key(row), number)
        placed: list[tuple[float, dict[str, str]]]
        placed = [(number, row) for number, row in enumerate(old) if self._key(row) not in after]
        at = next((first[key] - 0.5 for key in after if key in first), len(old))
        for key, rows in after.items():
            if key in first:
                at = first[key]
                was = before[key] if len(before[key]) == len(rows) else [{}] * len(rows)
                rows = [_updated(*both) for both in zip(was, rows, strict=True)]
            placed += [(at, row) for row in rows]
        return [row for _, row in sorted(placed, key=itemgetter(0))]

    def _by_key(self, rows: Sequence[dict[str, str]]) -> dict[tuple[str, ...], list[dict[str, str]]]:
        groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
        for row in rows:
            groups.setdefault(self._key(row), []).append(row)
        return groups

    def _key(self, row: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(_plain(row.get(name, "")) for name in self.key)

    def _count(self, rows: Sequence[Mapping[str, str]]) -> float:
        return max((float(row.get(self.most) or 0) for row in rows), default=0.0)


def _updated(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """The new row, with what it does not know, and where a number is the same to six digits, as it was written."""
    return {**old, **{name: old[name] if _same(name, old.get(name), cell) else cell for name, cell in new.items()}}


def _same(column: str, old: str | None, new: str) -> bool:
    if old is None or column in TEXT:
        return False
    try:
        return f"{float(old):.6g}" == f"{float(new):.6g}"
    except ValueError:
        return False


def _plain(cell: str) -> str:
    """A cell as it is compared: 6, 6.0 and 6.00 are one value, as pandas writes whole numbers beside missing ones."""
    head, point, tail = cell.partition(".")
    return head if point and tail.strip("0") == "" and head.lstrip("-").isdecimal() else cell


def _parsed(text: str) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a CSV."""
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    return header, [row for row in rows if row]
