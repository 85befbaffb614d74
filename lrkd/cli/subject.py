"""A NETWORK argument: a run, an exported file or a published checkpoint, and how each is usually tested."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from lrkd.errors import ConfigError, DataError, RunError
from lrkd.evaluation import embedding
from lrkd.models.layers import Network
from lrkd.models.published import load_foreign
from lrkd.onnx import recogniser
from lrkd.study import experiment, presets
from lrkd.study.store import Run, load_run


class Subject(NamedTuple):
    """A network to be measured, and how it is usually tested.

    It is shown images of `size` pixels, degraded to `sides`, of which None is not at all. run: of the
    store, also that of which a file was exported. notes:
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


def open_subject(path: Path, channels: str | None = None) -> Subject:
    """Load the network that a NETWORK argument names.

    Args:
        path: A run's folder, an .onnx file of `lrkd export`, or a published checkpoint.
        channels: "RGB" or "BGR", where a checkpoint expects another order than its family.

    Raises:
        ConfigError: channels are given for what is no checkpoint.
        DataError: A file that cannot be read, or whose metadata do not fit.
        RunError: A run that has not finished, or has diverged.
    """
    if path.suffix == ".onnx":
        return _exported(path, channels)
    if path.is_file():
        found = load_foreign(path, channels=channels)
        family, name = found.family, f"{found.family.name} IResNet-{found.depth} ({found.channels})"
        return Subject(found, name, found.size, (None, 56, 28, 14), family.degradation, family.mirror_first)
    if channels:
        raise ConfigError(f"channels: expected none with a run, which takes RGB, got {channels!r}")
    run = load_run(path)
    try:
        scale_name, preset, config = run.config["scale"], run.config["preset"], run.config["data"]
        _ = run.result["source"], config["test"]
    except (KeyError, TypeError) as error:
        raise RunError(f"{run.path}: config.json or result.json is not as lrkd wrote it: no {error}") from error
    (network, _head), scale = experiment.load(run), presets.scale(scale_name)
    trained = run.config.get("side")
    own = {side for side in (trained if isinstance(trained, list) else [trained]) if side not in (None, scale.size)}
    sides = (None, *sorted({*scale.sides, *own}, reverse=True)) if network.size == scale.size else (network.size,)
    notes = {"data": str(config.get("source"))}
    return Subject(network, run.path.name, scale.size, sides, preset, run=run, notes=notes)


def _exported(path: Path, channels: str | None) -> Subject:
    """A file of `lrkd export`, shown what its metadata says; a file that says nothing is shown images of its size."""
    if channels:
        raise ConfigError(f"channels: expected none with an .onnx file, which takes RGB, got {channels!r}")
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
    return Subject(network, name, size, sides, preset, notes.get("mirror") == "first", run, notes)


def embed(subject: Subject, images: Any, side: int | None, preset: str, device: str) -> np.ndarray:
    """Embed uint8 images (N,S,S,3), degraded to `side` pixels, and their mirror images -> (N,2D)."""
    mirror: Literal["first"] | bool = "first" if subject.mirror_first else True
    network = subject.network
    if isinstance(network, torch.nn.Module):
        network = network.to(device)
    return embedding.embed(network, images, side=side, preset=preset, mirror=mirror)


def identifier(path: Path) -> str:
    """Identify a network in a table's column `config`: a run's hash, or the first digits of a file's SHA-256."""
    if path.is_dir():
        return path.resolve().name.rpartition("-")[2]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:10]
