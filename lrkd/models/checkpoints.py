"""Checkpoints that others published, as data: read without running code from the file, and their names beside ours.

Families, recognised by the names of their tensors: A-SKD's CBAM networks (arXiv 2209.14498), F-SKD's (2303.04681),
insightface's arcface_torch, and the IR networks of AdaFace (2204.00964) and CVLface. `lrkd.models.published` makes a
network of what is read here.
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
from safetensors.torch import load_file
from torch import Tensor

from lrkd.errors import ConfigError, DataError, first_line

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
MAX_TEXT = 4096  # characters, where a pickle encodes texts, as numpy's numbers do: each time makes a copy
MAX_STEPS = 10**6  # of a pickle; IResNet-200 with its optimizer has a quarter of that
SIZE = 112
STAGES = (1, 2, 3, 4)
WIDTHS = (64, 128, 256, 512)
# Under which names checkpoints keep the network's tensors: A-SKD and F-SKD, arcface_torch's resumable ones, Lightning.
WRAPPERS = (
    "net_state_dict", "state_dict_backbone", "state_dict", "model_state_dict",
    "model", "backbone", "network", "net", "ema",
)  # fmt: skip

# What a pickle of weights names; torch's own list has more, `bytearray` of any length among it.
_ALLOWED = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch\.storage \w+|torch (float|half|bfloat|int)\d*|"
    r"torch\._utils _rebuild_(tensor_v2|parameter)"
)
# What training frameworks keep beside the weights, as AdaFace's Lightning checkpoints do: `_Ignored` takes its place.
_BESIDE = re.compile(
    r"(pytorch_lightning|lightning\w*|omegaconf|easydict|yacs|argparse|pathlib|numpy)(\.\w+)* \w+|"
    r"collections defaultdict|_codecs encode"
)
_MODULE = re.compile(r"torch\.nn\.(modules\.)?\w+(\.\w+)* [A-Z]\w+")
_MAGIC: dict[bytes | tuple[bytes, ...], str] = {
    b"\x89HDF": "an HDF5 file (Keras)",
    b"\x1f\x8b": "a file compressed by gzip",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x93NUMPY": "a NumPy array",
    (b"\x89PNG", b"\xff\xd8\xff"): "an image",
}


class Family(NamedTuple):
    """A publication's habits: how it names and builds its networks, and how it tests.

    Attributes:
        name: As it is called in messages.
        channels: The order that its networks expect, "" where a file does not say.
        degradation: A preset of `lrkd.data.degradation`.
        mirror_first: Whether the mirror image is taken before it is degraded.
        body: Whether it numbers the blocks of all stages in one row (`body.N`); then blocks that only halve the map
            have no convolution in their shortcut, and the last batch norm has no weights.
        unit: Whether its embeddings have length 1; AdaFace's networks return the length beside them.
    """

    name: str
    channels: str
    degradation: str
    mirror_first: bool
    body: bool = False
    unit: bool = False


ASKD = Family("A-SKD", "BGR", "askd-compat", True)
FSKD = Family("F-SKD", "BGR", "fskd-test", False)
ARCFACE = Family("arcface_torch", "RGB", "area-bicubic", False)
ADAFACE = Family("AdaFace", "BGR", "area-bicubic", False, body=True, unit=True)
CVLFACE = Family("CVLface", "RGB", "area-bicubic", False, body=True)
BODY = Family("AdaFace or CVLface", "", "area-bicubic", False, body=True)
FAMILIES = "A-SKD, F-SKD, arcface_torch, AdaFace or CVLface"


class Checkpoint(NamedTuple):
    """A published file.

    Attributes:
        family: Whose it is.
        depth: 18 to 200, a key of `DEPTHS`.
        widths: Channels of the four stages.
        stem: Channels of the first convolution.
        embedding: Length of the embeddings.
        hints: "", "conv" or "conv+bn", the hint layers that the file has.
        state: Its tensors, float32, under the file's own names.
    """

    family: Family
    depth: int
    widths: tuple[int, ...]
    stem: int
    embedding: int
    hints: str
    state: dict[str, Tensor]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and recognise a checkpoint, weights only: torch's or safetensors, bare or in one of `WRAPPERS`.

    The depth is the published one that is nearest to the blocks in the file, so that what is missing can be named.

    Raises:
        DataError: The file cannot be read, asks for code, claims more memory than it has bytes, has values that are
            not finite, is of another format, or of none of the families.
    """
    file = Path(path)
    named: Any = _load(file)
    wrapper = ""
    while isinstance(named, Mapping) and (inside := next((key for key in WRAPPERS if key in named), "")):
        wrapper, named = inside, named[inside]
    if not isinstance(named, Mapping) or not named or not all(isinstance(key, str) for key in named):
        raise DataError(f"{file}: expected a state dict of {FAMILIES}, got none")
    prefix = _prefix(file, named)
    named = {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}
    for key, value in named.items():
        if not isinstance(value, Tensor) or not value.is_contiguous() or value.is_complex():
            raise DataError(f"{file}: expected dense tensors, got {type(value).__name__} at {key[:200]}")
    held = sum(value.numel() * value.element_size() for value in named.values())
    if held > (size := file.stat().st_size):
        raise DataError(f"{file}: expected tensors of at most {size} bytes, the file's own, got {held}")
    state = {key: _finite(file, key, value) for key, value in named.items()}
    family = _family(file, state, wrapper, prefix)
    depth = _nearest_depth(family, state)
    hints = any(key.startswith("hint_layer") for key in state)
    first, *convolutions, last = (
        name_in_file(family, name, depth)
        for name in (
            "input_layer.0.weight",
            *(f"layer{stage}.0.res_layer.1.weight" for stage in STAGES),
            "output_layer.3.weight",
        )
    )
    return Checkpoint(
        family,
        depth,
        tuple(_rows(state, name, width) for name, width in zip(convolutions, WIDTHS, strict=True)),
        _rows(state, first, WIDTHS[0]),
        _rows(state, last, WIDTHS[-1]),
        "" if not hints else "conv+bn" if any(".bn." in key for key in state if key.startswith("hint_")) else "conv",
        state,
    )


def _prefix(file: Path, names: Iterable[str]) -> str:
    """The prefix of the network's first layer; tensors without it, such as those of a head, are left out."""
    found = (re.fullmatch(r"((?:\w+\.)*)(?:input_layer\.0|conv1)\.weight", name) for name in names)
    prefixes = sorted({one[1] for one in found if one and not re.search(r"(layer\d+|body)\.", one[1])})
    if len(prefixes) > 1:
        raise DataError(f"{file}: expected one network, got {len(prefixes)} ({_list(prefixes)})")
    return prefixes[0] if prefixes else ""


def _family(file: Path, state: Mapping[str, Tensor], wrapper: str, prefix: str) -> Family:
    if any(re.match(r"body\.\d+\.", key) for key in state):
        return CVLFACE if prefix.endswith("net.") else ADAFACE if prefix.endswith("model.") else BODY
    if any(key.startswith(("input_layer.", "output_layer.")) for key in state):
        return ASKD
    if any(re.match(r"layer\d+\.\d+\.conv1\.", key) for key in state):
        return FSKD if wrapper == WRAPPERS[0] or any(key.startswith("hint_layer") for key in state) else ARCFACE
    flat = all(value.ndim < 3 for value in state.values())
    head = " (this looks like a margin head, not like its network)" if flat else ""
    raise DataError(f"{file}: expected a network of {FAMILIES}, got the keys {_list(state)}{head}")


_OUTSIDE = {"input_layer.0": "conv1", "input_layer.1": "bn1", "input_layer.2": "prelu"}
_OUTSIDE |= {"output_layer.0": "bn2", "output_layer.3": "fc", "output_layer.4": "features"}
_INSIDE = ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")


def name_in_file(family: Family, name: str, depth: int) -> str:
    """Return the name that the family's files give to a parameter of `lrkd.models.published.Foreign` of that depth."""
    if hint := re.fullmatch(r"hints\.stages\.(\d)\.(\d)\.(\w+)", name):
        return f"hint_layer{int(hint[1]) + 1}.{'hint' if hint[2] == '0' else 'bn'}.{hint[3]}"
    if family is ASKD:
        return name
    if family.body:
        block = re.fullmatch(r"layer(\d+)\.(\d+)\.(.+)", name)
        return name if block is None else f"body.{sum(DEPTHS[depth][: int(block[1]) - 1]) + int(block[2])}.{block[3]}"
    if block := re.fullmatch(r"(layer\d+\.\d+)\.res_layer\.(\d)\.(\w+)", name):
        return f"{block[1]}.{_INSIDE[int(block[2])]}.{block[3]}"
    place, _, last = name.rpartition(".")
    return f"{_OUTSIDE[place]}.{last}" if place in _OUTSIDE else name.replace("shortcut_layer", "downsample")


def check_channels(channels: str) -> str:
    """Return the channel order.

    Raises:
        ConfigError: It is neither "RGB" nor "BGR".
    """
    if channels not in ("RGB", "BGR"):
        raise ConfigError(f"channels: expected 'RGB' or 'BGR', got {channels!r}")
    return channels


def differences(wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> str:
    """Say what is missing, unexpected or of another shape; return "" when all fits.

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


class _Ignored:
    """Takes the place of what a training framework kept beside the weights: accepts anything and does nothing."""

    def __new__(cls, *_: Any) -> _Ignored:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None: ...


def _load(file: Path) -> Any:
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{file}: expected a checkpoint of at most {MAX_BYTES} bytes, got {size}")
        with file.open("rb") as stream:
            head = stream.read(9)
        for magic, kind in _MAGIC.items():
            if head.startswith(magic):
                raise DataError(f"{file}: expected a checkpoint of torch or a safetensors file, got {kind}")
        if file.suffix.lower() == ".onnx":
            raise DataError(f"{file}: expected a checkpoint, got an ONNX file: lrkd.models.wrap.onnx_network reads it")
        if head[8:] == b"{":  # behind the length of the header
            return load_file(file)
        beside = [(_Ignored, name) for name in _look_inside(file)]
        with torch.serialization.safe_globals(beside):  # type: ignore[arg-type]  # pairs are taken too
            return torch.load(file, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # torch, zipfile and pickletools raise nearly anything on a damaged file
        raise DataError(
            f"{file}: cannot be read as a checkpoint of weights only ({type(error).__name__}: {first_line(error)})"
        ) from error


def _look_inside(file: Path) -> set[str]:
    """What the pickles name beside tensors; DataError where they name more, or where a file unpacks to more than it is.

    `weights_only=True` keeps code out, but neither `bytearray(2**40)` nor a pickle whose every byte makes an object.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"PK\3\4":  # as torch distinguishes the two formats, whatever else a file may be
            stream.seek(0)
            return _names(file, stream, 5)  # before torch 1.6: magic number, version, system, objects, storages
    beside: set[str] = set()
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise DataError(
                f"{file}: expected a state_dict(), got a TorchScript archive, which holds code: load it with "
                "torch.jit.load where you trust it, and save its state_dict()"
            )
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise DataError(f"{file}: expected uncompressed entries, as torch.save writes, got compressed ones")
        if len({entry.filename.lower() for entry in entries}) != len(entries):
            raise DataError(f"{file}: expected one entry a name, as torch.save writes, got two entries of one name")
        for entry in entries:
            if entry.filename.lower().endswith(".pkl"):
                if entry.file_size > MAX_PICKLE:
                    raise DataError(f"{file}: expected at most {MAX_PICKLE} bytes of names, got {entry.file_size}")
                beside |= _names(file, archive.read(entry), 1)
    return beside


def _names(file: Path, source: Any, pickles: int) -> set[str]:
    asked: list[str] = []
    longest = 0
    try:
        steps = 0
        for _ in range(pickles):
            for operation, argument, _place in pickletools.genops(source):
                steps += 1
                if steps > MAX_STEPS:
                    raise DataError(
                        f"{file}: expected a pickle of at most {MAX_STEPS} instructions, as names and tensors need"
                    )
                if operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                    raise DataError(f"{file}: expected a pickle of torch.save, got one with {operation.name}")
                if operation.name.endswith("UNICODE"):
                    longest = max(longest, len(str(argument)))
                if operation.name == "GLOBAL" and not _ALLOWED.fullmatch(str(argument)):
                    asked.append(str(argument))
    finally:  # what it asks for says more than where it breaks
        if any(map(_MODULE.fullmatch, asked)):
            raise DataError(f"{file}: expected a state_dict(), got a whole module, which runs code when it is loaded")
        for name in asked:
            if not _BESIDE.fullmatch(name):
                raise DataError(f"{file}: expected tensors, got a pickle that asks for {name.replace(' ', '.')!r}")
        if "_codecs encode" in asked and longest > MAX_TEXT:
            raise DataError(f"{file}: expected encoded texts of at most {MAX_TEXT} characters, got one of {longest}")
    return {name.replace(" ", ".") for name in asked}


def _finite(file: Path, key: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    if not value.isfinite().all():
        raise DataError(
            f"{file}: expected finite values, got others in {key[:200]}: a network that diverged, or a damaged file"
        )
    return value.float()


def _nearest_depth(family: Family, state: Mapping[str, Tensor]) -> int:
    if family.body:
        through = {found[0] for key in state if (found := re.match(r"body\.\d+\.", key))}
        return min(DEPTHS, key=lambda depth: abs(sum(DEPTHS[depth]) - len(through)))
    blocks = {found[1] for key in state if (found := re.match(r"(layer\d+\.\d+)\.", key))}
    counts = [sum(block.startswith(f"layer{n}.") for block in blocks) for n in STAGES]
    return min(DEPTHS, key=lambda depth: sum(abs(a - b) for a, b in zip(DEPTHS[depth], counts, strict=True)))


def _rows(state: Mapping[str, Tensor], key: str, usual: int) -> int:
    """Length of a tensor's first axis where it is there and no longer than what is published, which it else is."""
    return len(state[key]) if key in state and state[key].ndim and 1 <= len(state[key]) <= usual else usual
