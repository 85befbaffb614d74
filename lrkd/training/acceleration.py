"""What keeps a device busy while it trains, and is no part of what a run is: `Speed` says which of it is used.

Batches are prefetched, networks compiled, a step's launches replayed as one (`lrkd.training.graphs`), a frozen
teacher's answers cached (`lrkd.training.teacher_cache`), and checkpoints written in a thread. On a CPU none of it is
used unless asked for, and the bits stay as they are.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lrkd.errors import first_line

Index = TypeVar("Index")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Speed:
    """Switches of `lrkd.training.loop.fit`; None is on where the device is a GPU (and, where said, where it pays).

    Attributes:
        fused: Use the optimizer's one kernel.
        compile: Compile the networks by torch.compile; None: in runs of `LONG` steps and more.
        graph: Record a step's work and replay it; on a GPU alone, and not where processes train together.
        prefetch: Read batches of images that do not fit on the device one step ahead, in a thread.
        async_checkpoint: Copy checkpoints on the device and write them in a thread.
        cache_teacher: Keep what the teacher answers for each image, where images are not shifted and the answers fit
            into a third of the device's free memory.
        sync_norm: Batch norm over the images of all processes; matters under torchrun only.
        shard: The number of identities from which on several processes share the head's weights.
    """

    fused: bool | None = None
    compile: bool | None = None
    graph: bool | None = None
    prefetch: bool | None = None
    async_checkpoint: bool | None = None
    cache_teacher: bool | None = None
    sync_norm: bool = False
    shard: int = 50_000

    def uses(self, name: str, device: torch.device, pays: bool = True) -> bool:
        """Return whether the switch of that name is on for a device."""
        given: bool | None = getattr(self, name)
        return device.type == "cuda" and pays if given is None else given


# Compiling the largest network takes minutes, which a shorter run would not earn back.
LONG = 2000


def prefetch(read: Callable[[Index], Value], indices: Iterable[Index]) -> Iterator[Value]:
    """Yield `map(read, indices)`; the next value is read in a thread meanwhile, and errors come in their place."""
    with ThreadPoolExecutor(1, "read") as pool:
        coming: Future[Value] | None = None
        for index in indices:
            following = pool.submit(read, index)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


_compiled: set[tuple[Any, ...]] = set()  # since torch's last reset
_MOST_COMPILED = 7


def compile_network(network: nn.Module, example: Tensor, amp: bool) -> Callable[[Tensor], Any]:
    """Compile a network for batches like `example`; where that fails, warn once and return the network itself.

    It is tried forwards and backwards on the example; weights, buffers and random numbers stay as they were. A network
    of the same layers is compiled once in a process. After eight others of a class torch would stop compiling, almost
    silently: it forgets them before.

    Args:
        network: (B,3,S,S) -> Output.
        example: (B,3,S,S) in [-1,1], on the network's device.
        amp: Whether it runs under autocast to bfloat16.
    """
    what = (repr(network), network.training, amp, tuple(example.shape), example.dtype, example.device)
    if what not in _compiled and len(_compiled) >= _MOST_COMPILED:
        torch.compiler.reset()
        _compiled.clear()
    _compiled.add(what)
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
        warnings.warn(
            f"torch.compile does not work here ({type(error).__name__}: {first_line(error)}); going on without",
            stacklevel=2,
        )
        fast = network
    network.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, value in network.named_buffers():
            value.copy_(buffers[name])
    return fast


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN try its algorithms for each shape and keep the fastest; `flags` would turn cuDNN off by default."""
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


def map_tensors(value: Any, change: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    """Return the same nested dictionaries and lists with `change` of each tensor."""
    if isinstance(value, Tensor):
        return change(value.detach())
    if isinstance(value, dict):
        return {name: map_tensors(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, change) for item in value)
    return value


def snapshot(value: Any, device: torch.device) -> Callable[[], Any]:
    """Copy nested tensors on the device, now; return a function that brings the copy to the CPU, in any thread."""
    copy = map_tensors(value)
    if device.type != "cuda":
        return lambda: copy
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(device))

    def bring() -> Any:
        stream = torch.cuda.Stream(device)  # beside the training's own
        stream.wait_event(ready)
        with torch.cuda.stream(stream):
            return map_tensors(copy, Tensor.cpu)

    return bring
