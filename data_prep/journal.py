"""What a run has done so far, so that one that was stopped goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkd.errors import DataError


@dataclass(frozen=True)
class Photo:
    """One image to come: whose it is, where it is from, and how to get its bytes; maybe an age and a role."""

    name: str
    source: str
    read: Callable[[], bytes]
    age: float | None = None
    role: str = ""


class Journal:
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
