"""A margin head whose classes are shared by the processes that train together: for very many identities."""

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from lrkd.errors import ConfigError
from lrkd.models.heads import EPSILON, Head
from lrkd.training import distributed
from lrkd.training.distributed import SumOverProcesses


class Shard(nn.Module):
    """A head of which each process has a share of the classes: (B,D), (B,) -> loss (), right (), of the whole batch.

    The idea of partial FC (arXiv 2010.05222), but with all classes. Each process compares the embeddings of all with
    its classes; only maxima, sums and the labels' logits are exchanged.

    Attributes:
        weight: (C / processes, D), this process's class centres.
        start, stop: The classes that it has.
    """

    def __init__(self, head: Head) -> None:
        super().__init__()
        if head.classes < distributed.world_size():
            raise ConfigError(
                f"head: expected a class for each of {distributed.world_size()} processes, got {head.classes} classes"
            )
        self._whole = (head,)  # in a tuple: no part of this module
        each, more = divmod(head.classes, distributed.world_size())
        self.start = distributed.rank() * each + min(distributed.rank(), more)
        self.stop = self.start + each + (distributed.rank() < more)
        self.head = copy.deepcopy(head)
        self.head.weight = nn.Parameter(self.share(head.weight).detach().clone())
        self.head.classes = self.stop - self.start
        # The losses of the processes are averaged, and each is the whole one: its gradient comes once a process.
        self.head.weight.register_hook(lambda gradient: gradient / distributed.world_size())

    @property
    def weight(self) -> nn.Parameter:
        """Return this process's class centres."""
        return self.head.weight

    def share(self, whole: Tensor) -> Tensor:
        """Return this process's rows of a tensor (C,...)."""
        return whole[self.start : self.stop]

    def gathered(self, share: Tensor) -> Tensor:
        """Bring the rows of all processes together, (C,...). Every process must call this."""
        whole = share.new_zeros((self._whole[0].classes, *share.shape[1:]))
        whole[self.start : self.stop] = share
        return distributed.all_reduce(whole)

    def give_back(self) -> None:
        """Write what was learned into the head that this was made of. Every process must call this."""
        state = self.head.state_dict()
        self._whole[0].load_state_dict(state | {"weight": self.gathered(state["weight"])})

    def forward(self, embedding: Tensor, labels: Tensor, ramp: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        at = slice(distributed.rank() * len(labels), (distributed.rank() + 1) * len(labels))
        x = embedding.new_zeros((distributed.world_size() * len(labels), embedding.shape[1]), dtype=torch.float32)
        y = labels.new_zeros(len(x))
        y[at] = labels
        x = SumOverProcesses.apply(x.index_copy(0, torch.arange(at.start, at.stop, device=x.device), embedding.float()))
        y = distributed.all_reduce(y)
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
            total = SumOverProcesses.apply((logits - largest[:, None]).exp().sum(1))
            label = SumOverProcesses.apply(own * mine)
        right = (label.detach() >= largest).float().mean()
        return (total.log() + largest - label).mean(), right
