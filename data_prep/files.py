"""Files that come with a data set, which may be anything, and the folder to make, which is whole or not there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrkd.errors import DataError

MAX_LIST = 4 * 2**20  # bytes of a list that comes with a data set; the longest has 160 kB
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".pgm", ".ppm", ".tif", ".tiff")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def pictures(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name; links, hidden files and everything else are passed over.

    Raises DataError where there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with images, got none")
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
            f"--out {out}: expected a folder outside --source {source}, where the next run would take it for "
            "photographs"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"--out {out}: expected a new name or an empty folder, got one that holds something")


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
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
