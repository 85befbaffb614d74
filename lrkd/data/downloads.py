"""What people download or keep before anything has prepared it, and which command brings it into our layout."""

import mimetypes
import os
from itertools import islice
from pathlib import Path

_LOOKED_AT = 1000  # entries of a folder; a data set may have a million
_LISTS = ("pairsDevTrain.txt", "peopleDevTrain.txt", "lfw-deepfunneled", "lfw-deepfunneled.tgz", "lfw_funneled")


def how_to_prepare(path: Path) -> str:
    """Say what a path seems to hold and which command prepares it.

    Args:
        path: A file or folder that was given in place of a prepared folder.

    Returns:
        The end of a sentence about the path, or "" where nothing is recognised.
    """
    if str(path) == "procedural":
        return "rendered faces are no folder; `lrkd verify RUN` without --data measures a run on its own test people"
    if path.is_file():
        tool = {".bin": "pairs_bin", ".rec": "recordio"}.get(path.suffix)
        source = path if path.suffix == ".bin" else path.parent
        return f"it is a file that {_command(tool, source, path.stem)} prepares" if tool else ""
    if not path.is_dir():
        return ""
    inside = _entries(path)
    names = {entry.name for entry in inside}
    if "train.rec" in names:
        return f"it holds train.rec, which {_command('recordio', path, path.name)} prepares"
    if names.intersection(_LISTS):
        return f"it looks like LFW, which {_command('lfw', path, path.name)} prepares"
    people = [entry for entry in inside if entry.is_dir() and any(map(_is_image, _entries(Path(entry))))]
    if people:
        return f"it holds a folder a person, which {_command('folder', path, path.name)} prepares (--align finds faces)"
    if any(map(_is_image, inside)):
        command = _command("folder", path, path.name)
        return f"its images lie side by side: move each person's into a folder of their own, then {command} prepares it"
    return ""


def _command(tool: str, source: Path, name: str) -> str:
    return f"`python -m data_prep.{tool} --source {source} --out data/{name or 'people'}`"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(islice(found, _LOOKED_AT))
    except OSError:
        return []


def _is_image(entry: os.DirEntry[str]) -> bool:
    kind = mimetypes.guess_type(entry.name)[0] or ""
    return kind.startswith("image/") and entry.is_file()
