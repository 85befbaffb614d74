"""Several processes that train one network together, as torchrun starts them: what they share, and what each has alone.

Each takes its part of every batch. A gradient is the mean over the processes (torch's DistributedDataParallel), so that
a loss which is a mean over images is that of the whole batch; batch norm sees a part only, unless it is synchronised
(`sync_batch_norm`), and so do terms that compare images of a batch with each other. Without torchrun there is one
process, and nothing here does anything.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lrkd.errors import ConfigError


def is_initialized() -> bool:
    """Return whether there is a group of processes, if only of one, as where a GPU's collectives are tried."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if is_initialized() else 1


def rank() -> int:
    """Return which of them this one is; 0 writes files and shows progress."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def init_distributed(device: str) -> Iterator[str]:
    """Join the processes of torchrun while the block runs.

    Args:
        device: "cpu" or "cuda", what each process computes on.

    Yields:
        The device of this process, such as "cuda:1".

    Raises:
        ConfigError: The environment is not torchrun's, or there are more processes than GPUs.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield device
        return
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        value = os.environ.get(name, "")
        if not value or (name != "MASTER_ADDR" and not value.isdecimal()):
            raise ConfigError(
                f"environment: expected {name} as torchrun sets it beside WORLD_SIZE, got {value!r}; unset "
                f"WORLD_SIZE to train with one process"
            )
    if device.startswith("cuda"):
        number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= there:
            raise ConfigError(
                f"LOCAL_RANK: expected less than {there}, the number of GPUs here, got {number}; start with torchrun "
                f"--nproc-per-node {there}"
            )
        device = f"cuda:{number}"
        torch.cuda.set_device(device)
    if device.startswith("cuda"):
        dist.init_process_group("nccl", device_id=torch.device(device))  # else nccl guesses it, and says so
    else:
        dist.init_process_group("gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def local_part(batch: int) -> slice:
    """Return this process's part of a batch's rows.

    Raises:
        ConfigError: The processes cannot share the batch evenly.
    """
    if batch % world_size():
        raise ConfigError(f"batch: expected a multiple of {world_size()}, the number of processes, got {batch}")
    each = batch // world_size()
    return slice(rank() * each, (rank() + 1) * each)


def all_reduce(x: Tensor) -> Tensor:
    """Sum a tensor (...) over all processes, in place and without a gradient. Every process must call this."""
    if is_initialized():
        dist.all_reduce(x)
    return x


def any_process(said: bool) -> bool:
    """Return whether any process says so, the same in all. Every process must call this."""
    return said if world_size() == 1 else bool(all_reduce(torch.tensor(float(said), device=_place())))


def broadcast(said: bool) -> bool:
    """Return what the first process says, in all. Every process must call this."""
    return any_process(said and rank() == 0)


def barrier() -> None:
    """Wait until every process is here."""
    any_process(True)


def _place() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


class SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is that of the sum of their losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Sum over the processes."""
        return all_reduce(x.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sum the gradients over the processes."""
        return all_reduce(gradients[0].clone())


def data_parallel(
    trained: nn.Module, function: Callable[..., Any], alone: nn.Parameter | None = None
) -> Callable[..., Any]:
    """Make gradients of a function of the module's parameters means over the processes, except the one of `alone`."""
    if not is_initialized():
        return function
    whole = _Whole(trained, function)
    ignored = [name for name, value in whole.named_parameters() if value is alone]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(whole, ignored)
    return nn.parallel.DistributedDataParallel(whole, static_graph=True)


class _Whole(nn.Module):
    """A function of a module's parameters as a module, which is what torch wraps."""

    def __init__(self, trained: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.trained, self.function = trained, function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the images of all processes, each of which has equally many; torch's own knows GPUs only."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims, full = [0, *range(2, x.ndim)], x.float()
        shape = (1, -1) + (1,) * (x.ndim - 2)
        count = world_size() * x.numel() // x.shape[1]
        mean = SumOverProcesses.apply(full.sum(dims)) / count
        centred = full - mean.view(shape)
        variance = SumOverProcesses.apply(centred.square().sum(dims)) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum or 0.0)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


@contextmanager
def sync_batch_norm(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Let the module's batch norm see the images of all processes while the block runs; its weights stay the same."""
    kinds = {
        norm: type(norm)
        for norm in module.modules()
        if wanted and is_initialized() and type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)
    }
    for norm in kinds:
        norm.__class__ = SyncBatchNorm
    try:
        yield
    finally:
        for norm, kind in kinds.items():
            norm.__class__ = kind
