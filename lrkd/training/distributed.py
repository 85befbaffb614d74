"""Several processes that train one network together, as torchrun starts them: what they share, and what each has alone.

Each takes its part of every batch. A gradient is the mean over the processes (torch's DistributedDataParallel), so that
a loss which is a mean over images is that of the whole batch; batch norm sees a part only, unless it is `synchronised`,
and so do terms that compare images of a batch with each other. Without torchrun there is one process, and nothing here
does anything.
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from lrkd.errors import ConfigError
from lrkd.models.heads import EPSILON, Head


def _grouped() -> bool:
    """Whether there is a group of processes, if only of one, as where a GPU's collectives are tried."""
    return dist.is_available() and dist.is_initialized()


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """Which of them this one is; 0 writes files and speaks."""
    return dist.get_rank() if size() > 1 else 0


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the processes of torchrun while the block runs; -> the device of this one, whose kind `device` says.

    Raises ConfigError for an environment that is not torchrun's, and for more processes than there are GPUs.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield device
        return
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        value = os.environ.get(name, "")
        if not value or (name != "MASTER_ADDR" and not value.isdecimal()):
            raise ConfigError(
                f"{name} is {value!r} in the environment, where WORLD_SIZE asks for several processes: torchrun sets "
                f"both; unset WORLD_SIZE to train with one"
            )
    if device.startswith("cuda"):
        number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= there:
            raise ConfigError(
                f"LOCAL_RANK is {number}, and the GPUs here are {there}: torchrun --nproc-per-node {there} is right"
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


def part(batch: int) -> slice:
    """This process's part of a batch's rows. Raises ConfigError for a batch that cannot be dealt evenly."""
    if batch % size():
        raise ConfigError(f"batch is {batch}: {size()} processes share it evenly when it is a multiple of {size()}")
    each = batch // size()
    return slice(rank() * each, (rank() + 1) * each)


def summed(x: Tensor) -> Tensor:
    """The sum over all processes, (...) -> (...), in place; no gradient."""
    if _grouped():
        dist.all_reduce(x)
    return x


def agreed(said: bool) -> bool:
    """Whether any process says so, for all alike. Every process must ask."""
    return said if size() == 1 else bool(summed(torch.tensor(float(said), device=_place())))


def first(said: bool) -> bool:
    """What the first process says. Every process must ask; it is also where they wait for each other."""
    return agreed(said and rank() == 0)


def _place() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is that of the sum of their losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return summed(x.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return summed(gradients[0].clone())


def together(trained: nn.Module, function: Callable[..., Any], alone: nn.Parameter | None = None) -> Callable[..., Any]:
    """The function of the module's parameters, with gradients that are means over the processes but for `alone`'s."""
    if not _grouped():
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


class _Norm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the images of all processes, on any device; each has equally many."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims, full = [0, *range(2, x.ndim)], x.float()
        shape = (1, -1) + (1,) * (x.ndim - 2)
        count = size() * x.numel() // x.shape[1]
        mean = _Sum.apply(full.sum(dims)) / count
        centred = full - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
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
def synchronised(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Batch norm of the module is over all processes while the block runs; its weights and buffers stay the same."""
    kinds = {
        norm: type(norm)
        for norm in module.modules()
        if wanted and _grouped() and type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)
    }
    for norm in kinds:
        norm.__class__ = _Norm
    try:
        yield
    finally:
        for norm, kind in kinds.items():
            norm.__class__ = kind


class Shard(nn.Module):
    """A head of which each process has a share of the classes: (B,D), (B,) -> loss (), right (), of the whole batch.

    The idea of partial FC (arXiv 2010.05222), with all classes. The embeddings of all processes meet each share; only
    maxima, sums and the labels' logits travel back. `weight` (C / processes, D) is this process's alone.
    """

    def __init__(self, head: Head) -> None:
        super().__init__()
        if head.classes < size():
            raise ConfigError(f"a head of {head.classes} classes cannot be shared by {size()} processes")
        self._whole = (head,)  # in a tuple: no part of this module
        each, more = divmod(head.classes, size())
        self.start = rank() * each + min(rank(), more)
        self.stop = self.start + each + (rank() < more)
        self.head = copy.deepcopy(head)
        self.head.weight = nn.Parameter(self.share(head.weight).detach().clone())
        self.head.classes = self.stop - self.start
        # The losses of the processes are averaged, and each holds the whole one: its gradient came size() times.
        self.head.weight.register_hook(lambda gradient: gradient / size())

    @property
    def weight(self) -> nn.Parameter:
        """This process's class centres."""
        return self.head.weight

    def share(self, whole: Tensor) -> Tensor:
        """(C,...) -> this process's rows."""
        return whole[self.start : self.stop]

    def gathered(self, share: Tensor) -> Tensor:
        """This process's rows -> (C,...), on every process. Every process must ask."""
        whole = share.new_zeros((self._whole[0].classes, *share.shape[1:]))
        whole[self.start : self.stop] = share
        return summed(whole)

    def give_back(self) -> None:
        """Write what was learned into the head that this was made of. Every process must ask."""
        state = self.head.state_dict()
        self._whole[0].load_state_dict(state | {"weight": self.gathered(state["weight"])})

    def forward(self, embedding: Tensor, labels: Tensor, ramp: float = 1.0) -> tuple[Tensor, Tensor]:
        at = slice(rank() * len(labels), (rank() + 1) * len(labels))
        x = embedding.new_zeros((size() * len(labels), embedding.shape[1]), dtype=torch.float32)
        y = labels.new_zeros(len(x))
        y[at] = labels
        x = _Sum.apply(x.index_copy(0, torch.arange(at.start, at.stop, device=x.device), embedding.float()))
        y = summed(y)
        mine = (y >= self.start) & (y < self.stop)
        near = (y - self.start).clamp(0, self.head.classes - 1)
        with torch.autocast(x.device.type, enabled=False):
            logits = self.head(x, near, ramp=ramp)
            # Rows whose label is elsewhere were given a margin at the nearest class here: it is taken back.
            plain = (F.normalize(x) * F.normalize(self.weight)[near]).sum(1).clamp(-1 + EPSILON, 1 - EPSILON)
            own = torch.where(mine, logits.gather(1, near[:, None])[:, 0], self.head.scale * plain)
            logits = logits.scatter(1, near[:, None], own[:, None])
            largest = logits.detach().amax(1)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
            total = _Sum.apply((logits - largest[:, None]).exp().sum(1))
            label = _Sum.apply(own * mine)
        right = (label.detach() >= largest).float().mean()
        return (total.log() + largest - label).mean(), right
