"""What keeps a device busy while it trains, and is no part of what a run is: `Speed` says which of it is used.

Batches are read ahead, networks compiled, what a frozen teacher says of an image is computed once, and checkpoints are
written beside the training. On a CPU none of it is used unless asked for, and the bits stay as they are.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lrkd.models.layers import Output

Index = TypeVar("Index")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Speed:
    """Switches of `train.fit`; None is on where the device is a GPU (and, where said, where it pays).

    fused: the optimizer's one kernel. compiled: networks by torch.compile, None: in runs of `LONG` steps and more.
    ahead: batches of images that do not fit on the device are read one step ahead in a thread. beside: checkpoints are
    copied on the device and written by a thread. once: what the teacher says of an image is kept, where images are not
    shifted and it fits into a third of the device's memory.
    sync_norm: batch norm over the images of all processes. shard: identities from which on several processes share the
    head's weights. The last two matter under torchrun only, see `lrkd.training.distributed`.
    """

    fused: bool | None = None
    compiled: bool | None = None
    ahead: bool | None = None
    beside: bool | None = None
    once: bool | None = None
    sync_norm: bool = False
    shard: int = 50_000

    def uses(self, name: str, device: torch.device, pays: bool = True) -> bool:
        """Whether the switch of that name is on for a device."""
        given: bool | None = getattr(self, name)
        return device.type == "cuda" and pays if given is None else given


# Compiling the largest network takes minutes, which a shorter run would not earn back.
LONG = 2000


def in_advance(read: Callable[[Index], Value], indices: Iterable[Index]) -> Iterator[Value]:
    """`map(read, indices)`, with the next value read in a thread while this one is used; errors come in their place."""
    with ThreadPoolExecutor(1, "read") as pool:
        coming: Future[Value] | None = None
        for index in indices:
            following = pool.submit(read, index)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def forget_compiled() -> None:
    """Drop what runs before compiled: after eight networks of a class torch goes on without, and hardly says so."""
    torch.compiler.reset()


def compiled(network: nn.Module, example: Tensor, amp: bool) -> Callable[[Tensor], Any]:
    """The network compiled for batches like `example`, or itself, after one warning, where that cannot be done here.

    It is tried forwards and backwards on the example; weights, buffers and random numbers stay as they were.
    """
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    devices = [example.device] if example.device.type == "cuda" else []
    try:
        fast = torch.compile(network)
        with torch.random.fork_rng(devices=devices):
            cast = torch.autocast(example.device.type, torch.bfloat16, enabled=amp)
            with cast, torch.set_grad_enabled(network.training):
                out = fast(example)
            if out.embedding.requires_grad:
                out.embedding.float().sum().backward()
    except Exception as error:  # whatever compilers, drivers and missing headers make of it
        said = str(error).strip().partition("\n")[0][:200]
        warnings.warn(
            f"torch.compile does not work here ({type(error).__name__}: {said}); going on without", stacklevel=2
        )
        fast = network
    network.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, value in network.named_buffers():
            value.copy_(buffers[name])
    return fast


@contextmanager
def quick_convolutions() -> Iterator[None]:
    """cuDNN tries its algorithms for each shape and keeps the fastest; enabled is said too, as `flags` turns it off."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        yield


class Writer:
    """Runs one piece of work at a time in a thread; its error is raised by the next `add`, or where the block ends."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "write")
        self._last: Future[None] | None = None

    def add(self, work: Callable[[], None]) -> None:
        """Start the work when what was added before has ended."""
        self._wait()
        self._last = self._pool.submit(work)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()
        self._wait()

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()


def copied(value: Any, change: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    """The same nested dictionaries and lists with `change` of each tensor."""
    if isinstance(value, Tensor):
        return change(value.detach())
    if isinstance(value, dict):
        return {name: copied(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(item, change) for item in value)
    return value


def on_host(value: Any, device: torch.device) -> Callable[[], Any]:
    """A copy of nested tensors as they are now, made on the device; the function brings it to the CPU in any thread."""
    copy = copied(value)
    if device.type != "cuda":
        return lambda: copy
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(device))

    def bring() -> Any:
        stream = torch.cuda.Stream(device)  # beside the training's own
        stream.wait_event(ready)
        with torch.cuda.stream(stream):
            return copied(copy, Tensor.cpu)

    return bring


class _Watched:
    """A view that notes which of its fields are read."""

    def __init__(self, view: Any, seen: set[str]) -> None:
        self._view, self._seen = view, seen

    def __getattr__(self, name: str) -> Any:
        self._seen.add(name)
        return getattr(self._view, name)


def fields_read(functions: Sequence[Callable[[Any, Any], Any]], student: Any, teacher: Any) -> set[str]:
    """Which fields of the teacher's view the functions of (student view, teacher view) read."""
    seen: set[str] = set()
    with torch.no_grad():
        for function in functions:
            function(student, _Watched(teacher, seen))
    return seen


def said_once(
    ask: Callable[[Tensor], Output],
    images: Callable[[Tensor], Tensor],
    count: int,
    fields: set[str],
    mirror: bool,
    room: float,
    batch: int,
) -> Callable[[Tensor, Tensor | None], Output] | None:
    """What a frozen network says of each of `count` images, kept on its device; None if that takes more than `room`.

    ask: (B,3,H,W) -> Output; images: (B,) indices -> (B,3,H,W). fields: of Output, the others are empty in what comes
    back. mirror: of the mirror images too. room in bytes. The function takes (B,) indices and (B,) bool of which are
    mirrored, or None.
    """

    def wanted(x: Tensor) -> list[list[Tensor]]:
        out = ask(x)
        parts = [[out.embedding], out.features, out.channel, out.spatial]
        return [list(part) if name in fields else [] for name, part in zip(Output._fields, parts, strict=True)]

    sides = 2 if mirror else 1
    with torch.no_grad():
        first = wanted(images(torch.arange(min(2, count))))
        each = sum(x[0].numel() * x.element_size() for part in first for x in part)
        if sides * count * each > room:
            return None
        kept = [[x.new_empty((sides, count, *x.shape[1:])) for x in part] for part in first]
        for index in torch.arange(count).split(batch):
            x = images(index)
            here = index.to(x.device)
            for side, shown in enumerate((x, x.flip(3))[:sides]):
                for store, found in zip(kept, wanted(shown), strict=True):
                    for into, value in zip(store, found, strict=True):
                        into[side, here] = value

    def look_up(index: Tensor, flip: Tensor | None) -> Output:
        side = torch.zeros_like(index) if flip is None else flip.to(index)
        embedding, *others = [tuple(store[side, index] for store in part) for part in kept]
        return Output(embedding[0] if embedding else index.new_empty(0), *others)

    return look_up
