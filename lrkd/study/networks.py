"""The networks that a run names: its student, and a teacher that somebody else trained."""

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrkd import userfile
from lrkd.data.tables import Faces
from lrkd.distill.bridge import compact_head
from lrkd.errors import ConfigError, DataError, LrkdError
from lrkd.evaluation import embedding
from lrkd.models.backbones import BUILDERS
from lrkd.models.layers import Network, Output
from lrkd.models.published import load_foreign
from lrkd.models.saved import FILE, from_pretrained, is_shared, load_model
from lrkd.models.wrap import Embeddings, load_embeddings, onnx_network, wrap
from lrkd.study import store

# trained: by lrkd, as a run that comes first; all others are as they are.
TeacherKind = Literal["trained", "run", "shared", "checkpoint", "onnx", "embeddings", "function"]
SUFFIXES: dict[str, TeacherKind] = {
    **dict.fromkeys((".ckpt", ".pt", ".pth", ".safetensors"), "checkpoint"),
    ".onnx": "onnx",
    ".npy": "embeddings",
}


def teacher_kind(reference: str) -> TeacherKind:
    """Tell what a run's `teacher` names; ConfigError where it is nothing of the kind."""
    if not reference or reference in BUILDERS:
        return "trained"
    if userfile.is_reference(reference):
        return "function"
    path = Path(reference).expanduser()
    if path.is_dir():
        return "shared" if is_shared(path) else "run"
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"teacher: expected a network ({', '.join(BUILDERS)}), a folder of a run or of save_pretrained, weights "
            f'({", ".join(SUFFIXES)}) or "file.py:function", got {reference!r}'
        )
    return SUFFIXES[path.suffix]


def label(reference: str) -> str:
    """Name a student or teacher in a table: a file without its folder."""
    return reference if reference in BUILDERS else Path(reference).name


@dataclass(frozen=True)
class Lent:
    """What a run's configuration holds of a teacher from a file: the length of its embeddings, and what it is."""

    embedding: int
    config: Any


def lent_teacher(reference: str, size: int, embedding: int, seed: int) -> Lent:
    """Read of a teacher that is not trained here what determines it; the content of its file, not where it lies.

    Args:
        reference: What `teacher_kind` calls anything but "trained".
        size: Side of the images that a "file.py:function" is asked for, in pixels.
        embedding: Length of the embeddings that it is asked for.
        seed: The seed that it is asked for.

    Raises:
        ConfigError: It does not say what is needed, such as its size.
        DataError: It cannot be read.
        RunError: A run that has not finished.
    """
    kind = teacher_kind(reference)
    if kind == "function":
        made = userfile.load_object(reference)
        return _lent_by_function(made, size, embedding, seed)
    path = Path(reference).expanduser()
    if kind == "run":
        run = store.load_run(path)
        _ = run.result
        weights = path / "model.safetensors"
        return Lent(_head_length(weights, _stamp(weights)), store.digest(run.config))
    return _lent_by_file(path, kind, _stamp(path / FILE if kind == "shared" else path))


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does: its time and its length."""
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"teacher: expected a file that can be read, got {path} ({error.strerror})") from error
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=8)
def _head_length(path: Path, stamp: tuple[int, int]) -> int:
    return int(load_model(path)[0]["head.weight"].shape[1])


@lru_cache(maxsize=8)
def _lent_by_file(path: Path, kind: TeacherKind, stamp: tuple[int, int]) -> Lent:
    with (path / FILE if kind == "shared" else path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Lent(load_teacher(str(path)).embedding, {"kind": kind, "sha256": digest})


@lru_cache(maxsize=8)
def _lent_by_function(made: userfile.UserObject, size: int, embedding: int, seed: int) -> Lent:
    network = make_network(made, size, embedding, seed)
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(name.encode())
        found.update(np.ascontiguousarray(value.detach().cpu().reshape(-1).view(torch.uint8).numpy()).data)
    return Lent(network.embedding, {"function": made.name, "sha256": made.digest, "weights": found.hexdigest()[:16]})


def load_teacher(
    reference: str,
    size: int = 0,
    embedding: int = 0,
    seed: int = 0,
    rows: np.ndarray | None = None,
    count: int | None = None,
) -> Network:
    """Load a teacher from a file, a folder of `save_pretrained` or a function, in evaluation mode.

    Args:
        reference: What `teacher_kind` calls anything but "trained" and "run".
        size: Side of the images that a function is asked for, in pixels.
        embedding: Length of the embeddings that it is asked for.
        seed: The seed that it is asked for.
        rows: (N,) rows of a table of embeddings that belong to the training images; default: all.
        count: How many rows that table should have.

    Returns:
        The network; its images may have another size than the study's.
    """
    kind = teacher_kind(reference)
    if kind == "function":
        return make_network(userfile.load_object(reference), size, embedding, seed).eval()
    path = Path(reference).expanduser()
    if kind == "embeddings":
        return load_embeddings(path, rows, count)
    if kind == "shared":
        return from_pretrained(path)
    return (onnx_network(path) if kind == "onnx" else load_foreign(path)).eval()


def make_network(made: userfile.UserObject, size: int, embedding: int, seed: int) -> Network:
    """Call a user's function that returns a network, with those of `size`, `embedding` and `seed` that it names.

    What it draws from torch's global generator is drawn from `seed` too. A plain module is wrapped, and then shows its
    embedding alone.

    Raises:
        ConfigError: It is no function, fails, or returns something else than an nn.Module.
    """
    if not callable(made.value):
        raise ConfigError(
            f"{made.name}: expected a function that returns an nn.Module, got {type(made.value).__name__}"
        )
    known = inspect.signature(made.value).parameters
    given = {name: value for name, value in (("size", size), ("embedding", embedding), ("seed", seed)) if name in known}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = made.value(**given)
        except LrkdError:
            raise
        except Exception as error:
            told = ", ".join(f"{name}={value}" for name, value in given.items())
            raise ConfigError(f"{made.name}: called with ({told}): {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{made.name}: expected an nn.Module, got {type(network).__name__}")
    return network if isinstance(network, Network) else wrap(network, size)


class Resized(Network):
    """A network for images of another size than its own, brought to it by antialiased bilinear interpolation."""

    def __init__(self, network: Network, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.embedding, self.widths = network.embedding, network.widths
        if (parts := getattr(network, "parts", None)) is not None:
            self.parts = parts

    def forward(self, x: Tensor) -> Output:
        own = self.network.size
        out: Output = self.network(F.interpolate(x, (own, own), mode="bilinear", antialias=True))
        return out


def resized(network: Network, size: int) -> Network:
    """The network as one for images of `size` px; a table of embeddings is shown none."""
    return network if network.size == size or isinstance(network, Embeddings) else Resized(network, size)


def embedded(network: Network, faces: Faces, device: str) -> np.ndarray:
    """Return a teacher's embeddings (N,D) of training images as they are, without their mirror images."""
    if isinstance(network, Embeddings):
        return network.table.cpu().numpy()
    return embedding.embed(resized(network, faces.size).to(device), faces.images, mirror=False)


class Compacted(Network):
    """A network whose embeddings pass through a compact head."""

    mean: Tensor
    directions: Tensor

    def __init__(self, network: Network, mean: Tensor, directions: Tensor) -> None:
        super().__init__()
        self.network, self.size, self.embedding, self.widths = network, network.size, network.embedding, network.widths
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)

    def forward(self, x: Tensor) -> Output:
        out: Output = self.network(x)
        return out._replace(embedding=(out.embedding - self.mean) @ self.directions)


def compacted(network: Network, faces: Faces, device: str) -> Network:
    """The teacher with a head that is fitted to these people, of as many numbers: `lrkd.distill.bridge`."""
    features = embedded(network, faces, device)
    mean, directions = (torch.from_numpy(x) for x in compact_head(features, faces.labels, network.embedding))
    if isinstance(network, Embeddings):
        return Embeddings((torch.from_numpy(features) - mean) @ directions)
    return Compacted(network, mean, directions)


def rebuild(model: Mapping[str, Any], where: str | None, run: Path) -> Network:
    """Make the network of a run whose student is a user's function anew, from the file that it was in.

    Args:
        model: What the run's configuration has of it.
        where: "file.py:function" with its folder, as the run's result has it.
        run: The run's folder. A file in it is not run: who sends a run does not send code.

    Returns:
        The network, untrained.

    Raises:
        ConfigError: The file is gone, or its content is another.
    """
    wanted = f"{run}: expected the file of its network {model.get('function')}"
    path = Path(str(where).rpartition(":")[0])
    if where is None or not path.is_absolute() or path.resolve().is_relative_to(run.resolve()) or not path.is_file():
        raise ConfigError(f"{wanted} at {where}, got no file there: put it back")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != model.get("sha256"):
        raise ConfigError(f"{wanted} as it was at {where}, got another content (sha256 {digest[:12]}...)")
    return make_network(userfile.load_object(where), model.get("size", 0), model.get("embedding", 0), 0)
