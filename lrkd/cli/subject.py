"""A NETWORK argument: a run, an exported file or a published checkpoint, and how each is usually tested."""

import hashlib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from lrkd.cli.output import warn
from lrkd.data.layout import framing
from lrkd.errors import ConfigError, DataError, MissingError, RunError
from lrkd.evaluation import embedding
from lrkd.models.layers import Network
from lrkd.models.published import load_foreign
from lrkd.models.saved import FILE, from_pretrained, is_shared
from lrkd.onnx import recogniser
from lrkd.study import experiment, presets
from lrkd.study.store import Run, load_run


class Subject(NamedTuple):
    """A network to be measured, and how it is usually tested.

    It is shown images of `size` pixels, degraded to `sides`, of which None is not at all. own: the side that it was
    trained for, of several the largest. run: of the store, also that of which a file was exported. notes:
    what an exported file, or a run, says of its data.
    """

    network: Network | recogniser.Recogniser
    name: str
    size: int
    sides: tuple[int | None, ...]
    preset: str
    mirror_first: bool = False
    run: Run | None = None
    notes: Mapping[str, str] = {}
    own: int | None = None


def open_subject(path: Path, channels: str | None = None) -> Subject:
    """Load the network that a NETWORK argument names.

    Args:
        path: A run's folder or one of `save_pretrained`, an .onnx file of `lrkd export`, or a published checkpoint.
        channels: "RGB" or "BGR", where a checkpoint expects another order than its family.

    Raises:
        ConfigError: channels are given for what is no checkpoint.
        DataError: A file that cannot be read, or whose metadata do not fit.
        RunError: A run that has not finished, or has diverged, or a path where there is nothing.
    """
    if not path.exists():
        places = [place for place in (path.parent, experiment.store_dir()) if place.is_dir()]
        there = {found.name: str(found) for place in places for found in place.iterdir()}
        close = ", ".join(there[name] for name in get_close_matches(path.name, there))
        raise MissingError(f"{path}: no such file, run or folder{f'; did you mean {close}?' if close else ''}")
    if channels and (path.is_dir() or path.suffix == ".onnx"):
        raise ConfigError(f"channels: expected none with a run or an .onnx file, which take RGB, got {channels!r}")
    if path.suffix == ".onnx":
        return _exported(path)
    if path.is_file():
        found = load_foreign(path, channels=channels)
        family, name = found.family, f"{found.family.name} IResNet-{found.depth} ({found.channels})"
        return Subject(found, name, found.size, (None, 56, 28, 14), family.degradation, family.mirror_first)
    return _trained(path)


def _trained(path: Path) -> Subject:
    """A run, or a network that was shared; one that was only built has no more than its architecture beside it."""
    run, notes = None, {}
    if is_shared(path):
        network = from_pretrained(path)
        config = {"scale": "", "preset": "area-bicubic", "data": {}, **network.origin}
    else:
        run = load_run(path)
        config = run.config
        try:
            _ = config["scale"], config["preset"], config["data"]["test"]
            notes = {"faces": framing(run.result["source"])}
        except (KeyError, TypeError) as error:
            raise RunError(f"{path}: config.json or result.json is not as lrkd wrote it: no {error}") from error
        network, _head = experiment.load(run)
    scale = presets.scale(config["scale"]) if config["scale"] else None
    size, usual = (network.size, ()) if scale is None else (scale.size, scale.sides)
    trained = config.get("side")
    given = {one or size for one in (trained if isinstance(trained, list) else [trained])}
    sides = (None, *sorted({*usual, *given} - {size}, reverse=True)) if network.size == size else (network.size,)
    own = None if size in given else max(given)
    notes |= {"data": str(config["data"].get("source") or "")}
    return Subject(network, path.name, size, sides, config["preset"], run=run, notes=notes, own=own)


def _exported(path: Path) -> Subject:
    """A file of `lrkd export`, shown what its metadata says; a file that says nothing is shown images of its size."""
    network = recogniser.load(path)
    notes = network.metadata
    for name, expected in (("channels", "RGB"), ("range", "[-1,1]")):
        if notes.get(name, expected) != expected:
            raise DataError(f"{path}: metadata {name}: expected {expected}, got {notes[name]!r}")
    try:
        size, side = (int(notes.get(name, network.size)) for name in ("images", "side"))
    except ValueError as error:
        raise DataError(f"{path}: metadata images, side: expected pixels ({error})") from error
    if not 1 <= side <= size or size < network.size:
        raise DataError(f"{path}: metadata: images {size} and side {side} do not fit a network of {network.size} px")
    sides = (network.size,) if size > network.size else (None,) if side == size else (None, side)
    name, preset = notes.get("network", path.name), notes.get("preset", "area-bicubic")
    try:
        run = load_run(experiment.store_dir() / Path(name).name)
        _ = run.result["source"]
    except (RunError, KeyError):  # a checkpoint's file, or one whose run is elsewhere
        run = None
    return Subject(network, name, size, sides, preset, notes.get("mirror") == "first", run, notes, sides[-1])


def warn_of_framing(subject: Subject, folder: str) -> None:
    """Warn where a network was trained on aligned faces and the folder's are crops of the middle, or the reverse."""
    told, here, name = subject.notes.get("faces"), framing(folder), subject.name
    if {told, here} == {"centre", "five points"}:
        how = f"prepare it {'with' if told == 'five points' else 'without'} --align"
        warn(f"{folder}: its faces are framed by {here}, those that {name} was trained on by {told}: {how}")


def embed(subject: Subject, images: Any, side: int | None, preset: str, device: str) -> np.ndarray:
    """Embed uint8 images (N,S,S,3), degraded to `side` pixels, and their mirror images -> (N,2D)."""
    mirror: Literal["first"] | bool = "first" if subject.mirror_first else True
    network = subject.network
    if isinstance(network, torch.nn.Module):
        network = network.to(device)
    return embedding.embed(network, images, side=side, preset=preset, mirror=mirror)


def identifier(path: Path) -> str:
    """Identify a network in a table's column `config`: a run's hash, or the first digits of a file's SHA-256."""
    if path.is_dir() and not is_shared(path):
        return path.resolve().name.rpartition("-")[2]
    with (path / FILE if path.is_dir() else path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:10]
