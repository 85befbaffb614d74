"""Checkpoints that others published, as data: read without running code from the file, and their names beside ours.

Three families, told apart by their names: A-SKD's CBAM networks (arXiv 2209.14498), F-SKD's (2303.04681) and
insightface's arcface_torch. `lrkd.models.load_foreign` makes a network of what is read here.
"""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrkd.errors import ConfigError, DataError

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}
MAX_BYTES = 2 * 2**30
MAX_PICKLE = 8 * 2**20
MAX_STEPS = 10**6  # of a pickle; IResNet-200 with its optimizer has a quarter of that
SIZE = 112
STAGES = (1, 2, 3, 4)
WIDTHS = (64, 128, 256, 512)
WRAPPERS = ("net_state_dict", "state_dict_backbone")  # of A-SKD and F-SKD; of arcface_torch's resumable checkpoints

# What a pickle of weights names; torch's own list has more, `bytearray` of any length among it.
_ALLOWED = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch\.storage \w+|torch (float|half|bfloat|int)\d*|"
    r"torch\._utils _rebuild_(tensor_v2|parameter)"
)


class Family(NamedTuple):
    """A publication's habits: the channel order that its networks expect, and how it tests.

    degradation: a preset of `lrkd.degrade`. mirror_first: whether the mirror image is taken before it is degraded.
    """

    name: str
    channels: str
    degradation: str
    mirror_first: bool


ASKD = Family("A-SKD", "BGR", "askd-compat", True)
FSKD = Family("F-SKD", "BGR", "fskd-test", False)
ARCFACE = Family("arcface_torch", "RGB", "area-bicubic", False)


class Checkpoint(NamedTuple):
    """A published file: its family, its network's shape, and its tensors (float32) under the file's own names."""

    family: Family
    depth: int
    widths: tuple[int, ...]
    stem: int
    embedding: int
    hints: str  # "", "conv" or "conv+bn"
    state: dict[str, Tensor]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and recognise a checkpoint, weights only.

    The depth is the published one that is nearest to the blocks in the file, so that what is missing can be named.
    Raises DataError for a file that cannot be read, that asks for code, that says more than it holds, whose values are
    not finite, or that is none of the three.
    """
    file = Path(path)
    loaded = _load(file)
    inside = next((key for key in WRAPPERS if isinstance(loaded, Mapping) and key in loaded), "")
    named = loaded[inside] if inside else loaded
    if not isinstance(named, Mapping) or not named or not all(isinstance(key, str) for key in named):
        raise DataError(f"{file}: holds no state dict: A-SKD's, F-SKD's or arcface_torch's checkpoint is right")
    if all(key.startswith("module.") for key in named):  # of DataParallel
        named = {key.removeprefix("module."): value for key, value in named.items()}
    for key, value in named.items():
        if not isinstance(value, Tensor) or not value.is_contiguous() or value.is_complex():
            kind = f"{key[:200]} is {type(value).__name__}, no dense tensor"
            raise DataError(f"{file}: {kind}: a state dict of tensors is right")
    held = sum(value.numel() * value.element_size() for value in named.values())
    if held > (size := file.stat().st_size):
        raise DataError(f"{file}: its tensors have {held} bytes and the file {size}: tensors of their own are right")
    state = {key: _finite(file, key, value) for key, value in named.items()}
    hints = any(key.startswith("hint_layer") for key in state)
    if any(key.startswith(("input_layer.", "output_layer.")) for key in state):
        family, first, last = ASKD, "input_layer.0.weight", "output_layer.3.weight"
    elif any(re.match(r"layer\d+\.\d+\.conv1\.", key) for key in state):
        family, first, last = FSKD if inside == WRAPPERS[0] or hints else ARCFACE, "conv1.weight", "fc.weight"
    else:
        shown = _list(state)
        head = " (this looks like a margin head: the file of the network is right)" if len(state) == 1 else ""
        raise DataError(f"{file}: is no network of A-SKD, F-SKD or arcface_torch; its keys are {shown}{head}")
    conv = "res_layer.1" if family is ASKD else "conv1"
    return Checkpoint(
        family,
        _nearest_depth(state),
        tuple(_rows(state, f"layer{n}.0.{conv}.weight", width) for n, width in zip(STAGES, WIDTHS, strict=True)),
        _rows(state, first, WIDTHS[0]),
        _rows(state, last, WIDTHS[-1]),
        "" if not hints else "conv+bn" if any(".bn." in key for key in state if key.startswith("hint_")) else "conv",
        state,
    )


_OUTSIDE = {"input_layer.0": "conv1", "input_layer.1": "bn1", "input_layer.2": "prelu"}
_OUTSIDE |= {"output_layer.0": "bn2", "output_layer.3": "fc", "output_layer.4": "features"}
_INSIDE = ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")


def name_in_file(family: Family, name: str) -> str:
    """A parameter of `lrkd.models.Foreign` as the family's files name it."""
    name = name.removeprefix("network.")
    if hint := re.fullmatch(r"hints\.stages\.(\d)\.(\d)\.(\w+)", name):
        return f"hint_layer{int(hint[1]) + 1}.{'hint' if hint[2] == '0' else 'bn'}.{hint[3]}"
    if family is ASKD:
        return name
    if block := re.fullmatch(r"(layer\d+\.\d+)\.res_layer\.(\d)\.(\w+)", name):
        return f"{block[1]}.{_INSIDE[int(block[2])]}.{block[3]}"
    place, _, last = name.rpartition(".")
    return f"{_OUTSIDE[place]}.{last}" if place in _OUTSIDE else name.replace("shortcut_layer", "downsample")


def check_channels(channels: str) -> str:
    """The channel order "RGB" or "BGR"; ConfigError for anything else."""
    if channels not in ("RGB", "BGR"):
        raise ConfigError(f"channels: {channels!r} is neither 'RGB' nor 'BGR'")
    return channels


def differences(wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> str:
    """What is missing, unexpected or of another shape, in words; empty when all fits.

    A missing `num_batches_tracked` is no difference: files older than torch 0.4.1 lack it, and only training reads it.
    """
    missing = [key for key in wanted if key not in state and not key.endswith(".num_batches_tracked")]
    other = [
        f"{key} {tuple(state[key].shape)} instead of {shape}"
        for key, shape in wanted.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    said = {"missing": missing, "unexpected": [key for key in state if key not in wanted], "of another shape": other}
    return "; ".join(f"{what}: {_list(keys)}" for what, keys in said.items() if keys)


def _list(keys: Iterable[str], most: int = 4) -> str:
    names = list(keys)
    return ", ".join(name[:200] for name in names[:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )


def _load(file: Path) -> Any:
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{file}: {size} bytes: a checkpoint of at most {MAX_BYTES} is right")
        _look_inside(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # torch, zipfile and pickletools raise nearly anything on a damaged file
        said = (str(error).splitlines() or [""])[0][:200]
        raise DataError(
            f"{file}: cannot be read as a checkpoint of weights only ({type(error).__name__}: {said})"
        ) from error


def _look_inside(file: Path) -> None:
    """DataError for pickles that name more than tensors need, and for archives that unpack to more than they hold."""
    with file.open("rb") as stream:
        if stream.read(4) != b"PK\3\4":  # as torch tells the two apart, whatever else a file may be
            stream.seek(0)
            _check_names(file, stream, 5)  # before torch 1.6: magic number, version, system, objects, storages
            return
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise DataError(f"{file}: holds compressed entries: torch.save writes none")
        if len({entry.filename.lower() for entry in entries}) != len(entries):
            raise DataError(f"{file}: holds two entries of one name: torch.save writes none")
        for entry in entries:
            if entry.filename.lower().endswith(".pkl"):
                if entry.file_size > MAX_PICKLE:
                    raise DataError(f"{file}: {entry.file_size} bytes of names: at most {MAX_PICKLE} are right")
                _check_names(file, archive.read(entry), 1)


def _check_names(file: Path, source: Any, pickles: int) -> None:
    steps = 0
    for _ in range(pickles):
        for operation, argument, _place in pickletools.genops(source):
            steps += 1
            if steps > MAX_STEPS:
                raise DataError(
                    f"{file}: its pickle has more than {MAX_STEPS} instructions: names and tensors need less"
                )
            if operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                raise DataError(f"{file}: its pickle uses {operation.name}: torch.save writes none")
            if operation.name == "GLOBAL" and not _ALLOWED.fullmatch(str(argument)):
                raise DataError(f"{file}: asks for {str(argument).replace(' ', '.')!r}, which no tensor needs")


def _finite(file: Path, key: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    if not value.isfinite().all():
        raise DataError(
            f"{file}: {key[:200]} holds values that are not finite: a network that diverged, or a damaged file"
        )
    return value.float()


def _nearest_depth(state: Mapping[str, Tensor]) -> int:
    blocks = {found[1] for key in state if (found := re.match(r"(layer\d+\.\d+)\.", key))}
    counts = [sum(block.startswith(f"layer{n}.") for block in blocks) for n in STAGES]
    return min(DEPTHS, key=lambda depth: sum(abs(a - b) for a, b in zip(DEPTHS[depth], counts, strict=True)))


def _rows(state: Mapping[str, Tensor], key: str, usual: int) -> int:
    """Length of a tensor's first axis where it is there and no longer than what is published, which it else is."""
    return len(state[key]) if key in state and state[key].ndim and 1 <= len(state[key]) <= usual else usual
