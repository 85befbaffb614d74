"""A training step recorded as a CUDA graph: its hundreds of launches become one.

Networks as small as the study's at scale cpu take a GPU less time than their launches take a CPU.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lrkd.errors import first_line

WARM_UP = 3  # steps before recording, in which cuDNN chooses its algorithms and the optimizer makes its state


class RecordedUpdate:
    """An update of the weights, recorded after `WARM_UP` calls and replayed from then on.

    What changes from step to step lies in tensors that a replay reads: the arguments, and the learning rate, of which a
    recording would keep the value. Where the work cannot be recorded (it asks the GPU for a value, say), that is said
    once, and it is computed as it is.

    Args:
        update: Tensors, numbers, None and tuples of them -> a tensor on the GPU. Nothing in it may draw from the CPU's
            generators or wait for the GPU.
        optimizer: The one that it steps.
    """

    def __init__(self, update: Callable[..., Tensor], optimizer: torch.optim.Optimizer) -> None:
        self._update, self._optimizer = update, optimizer
        self._calls, self._graph = 0, None  # type: int, torch.cuda.CUDAGraph | None
        self._given: tuple[Any, ...] = ()
        self._rates: list[Tensor] = []
        self._found: Tensor | None = None

    def __call__(self, *given: Any) -> Tensor:
        """Take a step and return what `update` returns, in memory of its own."""
        self._calls += 1
        if self._calls <= WARM_UP or (self._graph is None and self._calls > WARM_UP + 1):
            return self._aside(*given)
        if self._graph is None:
            device = next(_tensors(given)).device
            self._given = tuple(_own(value, device) for value in given)
            try:
                self._graph = self._record(device)
            except RuntimeError as error:
                said = first_line(error)
                warnings.warn(f"a step cannot be recorded as a CUDA graph ({said}); going on without", stacklevel=2)
                return self._aside(*given)
        for into, value in zip(self._given, given, strict=True):
            _write(into, value)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()
        assert self._found is not None
        return self._found.clone()

    def _aside(self, *given: Any) -> Tensor:
        """Compute on a stream of its own, as what was computed on the usual one cannot be recorded afterwards."""
        usual, own = torch.cuda.current_stream(), torch.cuda.Stream()
        own.wait_stream(usual)
        with torch.cuda.stream(own):
            found = self._update(*given)
        usual.wait_stream(own)
        return found

    def _record(self, device: torch.device) -> torch.cuda.CUDAGraph:
        groups, graph = self._optimizer.param_groups, torch.cuda.CUDAGraph()
        rates = [group["lr"] for group in groups]
        self._rates = [torch.tensor(float(rate), device=device) for rate in rates]
        self._optimizer.zero_grad(set_to_none=True)
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            # Threads that read images or write checkpoints may allocate meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._found = self._update(*self._given)
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
        return graph


def _own(value: Any, device: torch.device) -> Any:
    """Make the same of tensors that a graph can read at every replay; numbers become tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, float):
        return torch.tensor(value, device=device)
    if isinstance(value, tuple):
        items = [_own(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _write(into: Any, value: Any) -> None:
    """Bring the values of a step to where the graph reads them."""
    if isinstance(value, tuple):
        for a, b in zip(into, value, strict=True):
            _write(a, b)
    elif isinstance(value, Tensor):
        into.copy_(value, non_blocking=True)
    elif isinstance(value, float):
        into.fill_(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
