"""What others built as a network here: any `nn.Module`, any ONNX file, any table of embeddings."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrkd.errors import ConfigError, DataError, first_line
from lrkd.models import onnx_session
from lrkd.models.checkpoints import check_channels
from lrkd.models.layers import Network, Output, check_input, evaluating

Range = tuple[float, float]


class Input(nn.Module):
    """RGB images in [-1,1], which every network here takes -> what another network takes, (B,3,S,S) both.

    Args:
        channels: "RGB" or "BGR".
        mean: Of each channel, in the network's order, where black is 0 and white is 1, as torchvision has them.
        std: Likewise.
        range: Instead of mean and std, the values of black and white, such as (0, 255).

    Raises:
        ConfigError: Something else is given.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        channels: str = "RGB",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        range: Range | None = None,
    ) -> None:
        super().__init__()
        self.flip = check_channels(channels) == "BGR"
        if (mean is None) != (std is None) or (mean is not None and range is not None):
            raise ConfigError(f"expected mean and std, or range, or none; got mean={mean}, std={std}, range={range}")
        if mean is None or std is None:
            low, high = (-1.0, 1.0) if range is None else range
            mean, std = [-low / (high - low) if high > low else 0.0] * 3, [1 / (high - low) if high > low else 0.0] * 3
        offsets, factors = (torch.tensor(value, dtype=torch.float64) for value in (mean, std))
        fit = offsets.shape == factors.shape == (3,) and bool((factors > 0).all() and torch.isfinite(factors).all())
        if not fit or not torch.isfinite(offsets).all():
            raise ConfigError(f"expected 3 means, 3 positive stds, a range that grows; got {mean}, {std}, {range}")
        self.told = f"{channels}, mean={tuple(mean)}, std={tuple(std)}"
        self.register_buffer("scale", (0.5 / factors).float().view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((0.5 - offsets) / factors).float().view(3, 1, 1), persistent=False)

    def extra_repr(self) -> str:
        return self.told

    def forward(self, x: Tensor) -> Tensor:
        return (x.flip(1) if self.flip else x) * self.scale.to(x.dtype) + self.shift.to(x.dtype)


class Wrapped(Network):
    """A module of someone else's that returns what losses read. Made by `wrap`."""

    def __init__(self, module: nn.Module, size: int, features: Sequence[str], given: Input) -> None:
        super().__init__()
        self.size, self.names, self.input = size, tuple(features), given
        self.module = _with_features(module, self.names) if features else module
        self.train(module.training)
        with evaluating(self), torch.no_grad():
            out = self(torch.zeros(2, 3, size, size))
        kind = type(module).__name__
        _check_shape(f"{kind}: expected embeddings", out.embedding, "(B,D)")
        for number, part in enumerate(out.features):
            name = self.names[number] if self.names else f"feature {number}"
            _check_shape(f"{kind}: expected {name!r}", part, "(B,C,h,w)")
        self.embedding, self.widths = out.embedding.shape[1], tuple(part.shape[1] for part in out.features)
        self.parts = frozenset(field for field in Output._fields if len(getattr(out, field)))

    def forward(self, x: Tensor) -> Output:
        check_input(x, self.size)
        out = self.module(self.input(x))
        if isinstance(out, Output):
            return out
        if self.names:
            return Output(out[_EMBEDDING], tuple(out[name] for name in self.names), (), ())
        return Output(_first(out), (), (), ())


_EMBEDDING = "embedding"


def _check_shape(expected: str, part: Any, shape: str) -> None:
    if not isinstance(part, Tensor) or part.ndim != shape.count(",") + 1:
        got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
        raise ConfigError(f"{expected} of shape {shape}, got {got}")


def wrap(
    module: nn.Module,
    size: int,
    features: Sequence[str] = (),
    *,
    channels: str = "RGB",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    range: Range | None = None,
) -> Wrapped:
    """Make any module return what losses read: its embedding, and the feature maps that it is asked for.

    Features are found by `torchvision.models.feature_extraction`, which traces the module with torch.fx. It has no
    attention maps: a method that needs them says so before training.

    Args:
        module: (B,3,size,size) -> embeddings (B,D), or a tuple, list or dict whose first entry they are. It is not
            copied: training the result trains it.
        size: Side of its images in pixels.
        features: Names of modules or nodes whose results, (B,C,h,w) each, are the features, such as "layer1".
        channels: The order of its channels, "RGB" or "BGR".
        mean: Of each channel, in its order, where black is 0 and white is 1; with std.
        std: Likewise.
        range: The values of black and white in its images, such as (0, 1); default: (-1, 1).

    Returns:
        A network with `size`, `embedding` and `widths`, the last two found by one pass.

    Raises:
        ConfigError: A module that cannot be traced, a name that it does not have, or results of another shape.
    """
    return Wrapped(module, size, features, Input(channels, mean, std, range))


def _first(out: Any) -> Any:
    """The first entry of whatever a network returns: its embedding."""
    if hasattr(out, "embedding"):
        return out.embedding
    while isinstance(out, tuple | list | dict) and out:
        out = out.get(_EMBEDDING, next(iter(out.values()))) if isinstance(out, dict) else out[0]
    return out


def _with_features(module: nn.Module, names: Sequence[str]) -> nn.Module:
    from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor

    kind, training = type(module).__name__, module.training
    if len(set(names)) < len(names) or _EMBEDDING in names:
        raise ConfigError(f"features: {', '.join(names)}: expected each once, and none named {_EMBEDDING!r}")
    nodes, there, ends = [], set[str](), set[str]()
    try:
        for mode in (True, False):
            tracer = NodePathTracer(leaf_modules=[], autowrap_functions=())
            graph = tracer.trace(module.train(mode))
            end = tracer.node_to_qualname[_first(next(node for node in graph.nodes if node.op == "output").args[0])]
            nodes.append({end: _EMBEDDING, **{name: name for name in names}})
            ends.add(end)
            there = set(tracer.node_to_qualname.values())
    except Exception as error:  # torch.fx raises whatever the module's own code makes of a proxy
        said = first_line(error)
        raise ConfigError(
            f"features: {kind} cannot be traced ({said}); without features the methods on embeddings work"
        ) from error
    finally:
        module.train(training)
    for name in names:
        if any(f"{end}.".startswith(f"{name}.") for end in ends):
            raise ConfigError(f"features: {name!r} is the embedding of {kind}: expected what comes before it")
        if not any(node == name or node.startswith(f"{name}.") for node in there):
            known = dict.fromkeys(node.split(".")[0] for node in sorted(there))
            raise ConfigError(f"features: {kind} has no {name!r}; it has {', '.join(known)}")
    made: nn.Module = create_feature_extractor(
        module, train_return_nodes=nodes[0], eval_return_nodes=nodes[1], suppress_diff_warning=True
    )
    return made.train(training)


class OnnxNetwork(Network):
    """An ONNX file as a frozen network on the CPU, which shows its embedding alone. Made by `onnx_network`."""

    parts = frozenset({"embedding"})

    def __init__(self, path: Path, session: Any, size: int, given: Input, batch: int | None) -> None:
        super().__init__()
        self.path, self.size, self.widths, self.input = path, size, (), given
        self._session, self._batch = session, batch
        self._takes, self._gives = session.get_inputs()[0], _output(session)
        out = self(torch.zeros(2, 3, size, size)).embedding
        if out.ndim != 2:
            raise DataError(f"{path}: expected embeddings (B,D), got {tuple(out.shape)} from {self._gives!r}")
        self.embedding = out.shape[1]

    def forward(self, x: Tensor) -> Output:
        check_input(x, self.size)
        images = self.input(x.detach().float().cpu()).numpy()
        images = images.astype(np.float16 if "float16" in self._takes.type else np.float32, copy=False)
        parts = [images] if self._batch is None else np.split(images, range(self._batch, len(images), self._batch))
        found = np.concatenate([self._answer(part) for part in parts])
        return Output(torch.from_numpy(found).float().to(x.device), (), (), ())

    def _answer(self, images: np.ndarray) -> np.ndarray:
        count = len(images)
        if self._batch is not None and count < self._batch:  # the last of a file that takes so many and no fewer
            images = np.concatenate([images, images[-1:].repeat(self._batch - count, 0)])
        try:
            (found,) = self._session.run([self._gives], {self._takes.name: np.ascontiguousarray(images)})
        except Exception as error:
            raise DataError(f"{self.path}: ONNX Runtime cannot run it ({first_line(error)})") from error
        if found.ndim == 0 or len(found) != len(images):
            raise DataError(f"{self.path}: expected a row an image, got {found.shape} for {len(images)} images")
        return found[:count]


def onnx_network(
    path: str | os.PathLike[str],
    size: int | None = None,
    channels: str | None = None,
    range: Range | None = None,
) -> OnnxNetwork:
    """Open an ONNX file as a frozen network, computed by ONNX Runtime on the CPU in batches of any size.

    What is not given is taken from the file: its input's shape, and the metadata `channels` and `range` of a file
    that `lrkd export` wrote.

    Args:
        path: A file with one input (N,3,S,S), N free or fixed; its first output with two axes is the embedding.
        size: Side of its images in pixels, where the file leaves it open.
        channels: "RGB" or "BGR".
        range: The values of black and white in its images, such as (-1, 1) or (0, 255).

    Raises:
        ConfigError: Something is neither given nor in the file, or size is another than the file's.
        DataError: The file cannot be read or run, takes weights from other files, or has other inputs.
    """
    file = Path(path)
    content = onnx_session.read(file)
    session = onnx_session.open(content, file)
    takes, told = session.get_inputs(), dict(session.get_modelmeta().custom_metadata_map)
    shape = takes[0].shape if len(takes) == 1 else []
    if len(shape) != 4 or shape[1] not in (3, None) or (shape[2] != shape[3] and isinstance(shape[3], int)):
        said = "; ".join(f"{end.name} {end.shape}" for end in takes)
        raise DataError(f"{file}: expected one input (N,3,S,S), got {said}")
    fixed = shape[3] if isinstance(shape[3], int) else None
    if size is not None and fixed is not None and size != fixed:
        raise ConfigError(f"{file}: size is {size}, but the file takes images of {fixed} px")
    found, named = size or fixed, re.fullmatch(r"\[(-?[\d.]+),(-?[\d.]+)\]", told.get("range", ""))
    channels = channels or told.get("channels")
    range = range or ((float(named[1]), float(named[2])) if named else None)
    wanted = {"size": (found, "such as 112"), "channels": (channels, "RGB or BGR")}
    wanted["range"] = (range, "such as (-1, 1), (0, 1) or (0, 255)")
    for name, (value, such) in wanted.items():
        if value is None:
            raise ConfigError(f"{file}: does not say its {name}: expected {name}, {such}")
    assert found is not None
    assert channels is not None
    batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
    made = OnnxNetwork(file, session, found, Input(channels, range=range), batch)
    digest = np.frombuffer(hashlib.sha256(content).digest(), np.uint8).copy()
    made.register_buffer("digest", torch.from_numpy(digest))  # as a fingerprint reads a teacher's state
    return made


def _output(session: Any) -> str:
    """The first output with two axes, or else the first: some files give the embedding's length beside it."""
    ends = session.get_outputs()
    return str(next((end.name for end in ends if len(end.shape) == 2), ends[0].name))


class Embeddings(Network):
    """A table of a teacher's embeddings, a row a training image, which answers by the image's number.

    (N,D) float32. An image and its mirror image have one row, and so has a shifted one. There are no features, no
    attention maps and nothing to show an image to.
    """

    parts = frozenset({"embedding"})
    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.size, self.embedding, self.widths = 0, table.shape[1], ()
        self.register_buffer("table", table)

    def __len__(self) -> int:
        return len(self.table)

    def forward(self, x: Tensor) -> Output:
        raise ConfigError("a table of embeddings knows the training images alone, by their numbers")

    def answers(self, count: int, shuffled: bool = False) -> Callable[[Tensor, Tensor | None], Output]:
        """Return what `fit` asks: (B,) numbers of images on the table's device, and which are mirrored -> their rows.

        Args:
            count: The images that are trained on.
            shuffled: Whether each image gets the row of its neighbour in the batch.

        Raises:
            DataError: The table has another number of rows.
        """
        if len(self) != count:
            raise DataError(f"expected embeddings of the {count} images that are trained on, got {len(self)}")

        def answer(index: Tensor, flip: Tensor | None) -> Output:
            return Output(self.table[index.roll(1) if shuffled else index], (), (), ())

        return answer


class Maps(Embeddings):
    """A table of one spatial map a training image, (N,h,w) float32, which is all that this teacher shows.

    A mirror image has the mirrored map.
    """

    parts = frozenset({"spatial"})

    def answers(self, count: int, shuffled: bool = False) -> Callable[[Tensor, Tensor | None], Output]:
        """As those of `Embeddings`, with the map as the attention of one block."""
        rows = super().answers(count, shuffled)

        def answer(index: Tensor, flip: Tensor | None) -> Output:
            found = rows(index, flip).embedding[:, None]
            if flip is not None:
                turned = flip.roll(1) if shuffled else flip
                found = torch.where(turned[:, None, None, None], found.flip(3), found)
            return Output(found.new_empty(0), (), (), (found,))

        return answer


def load_embeddings(
    path: str | os.PathLike[str], rows: np.ndarray | None = None, count: int | None = None
) -> Embeddings:
    """Read embeddings.npy, a row an image of a prepared folder's manifest, as a teacher.

    Args:
        path: A file of NumPy, (N,D) of floating point.
        rows: (M,) rows of the manifest that are trained on, in the order of training; default: all.
        count: The images in the manifest, where it is known.

    Raises:
        DataError: It cannot be read, is no table of finite numbers, has a row of zeros, or another number of rows.
    """
    file = Path(path)
    try:
        table = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file}: cannot be read as an array of NumPy ({first_line(error)})") from error
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.dtype.kind != "f" or not table.size:
        said = f"{table.dtype} {table.shape}" if isinstance(table, np.ndarray) else "several arrays"
        raise DataError(f"{file}: expected floating point (N,D), a row an image of the manifest, got {said}")
    needed = count if count is not None else None if rows is None or not len(rows) else int(np.max(rows)) + 1
    if needed is not None and (len(table) != needed if count is not None else len(table) < needed):
        raise DataError(
            f"{file}: expected {needed} rows, one an image of the manifest, got {len(table)}; is --data the folder "
            "whose images they are of?"
        )
    found = torch.from_numpy(np.array(table if rows is None else table[rows], dtype=np.float32))
    norm = found.norm(dim=1)
    if (bad := (~torch.isfinite(norm) | (norm == 0)).nonzero()).numel():
        where = int(bad[0]) if rows is None else int(rows[int(bad[0])])
        raise DataError(f"{file}: row {where} is zero or not finite: expected an embedding")
    return Embeddings(found)
