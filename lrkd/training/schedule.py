"""Schedules and options of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from lrkd.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """SGD with Nesterov momentum.

    Attributes:
        epochs: How often each image is seen.
        batch: Images a step, of all processes together.
        lr: The learning rate, or its peak.
        kind: "onecycle" rises to `lr` and falls to almost nothing; "step" divides by 10 after each milestone.
        milestones: Epochs after which "step" divides.
        momentum: Of SGD.
        weight_decay: Likewise.
        ramp: The share of all steps over which the head's margin grows from 0 to its value.

    Raises:
        ConfigError: A value is out of its range.
    """

    epochs: int
    batch: int = 128
    lr: float = 0.2
    kind: Literal["onecycle", "step"] = "onecycle"
    milestones: tuple[int, ...] = ()
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ramp: float = 0.4

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2 or not self.lr > 0:
            raise ConfigError(f"expected epochs of at least 1, a batch of at least 2 and a positive lr, got {self}")
        if self.kind not in ("onecycle", "step"):
            raise ConfigError(f"schedule.kind: expected onecycle or step, got {self.kind!r}")


# The papers' own schedules. A-SKD's code steps its scheduler before the epoch, so that its stated drops at 6/11/15/17
# come one epoch early; these are the epochs after which the rate really falls.
FSKD_SCHEDULE = Schedule(24, batch=256, lr=0.1, kind="step", milestones=(10, 14, 18, 22), ramp=0.0)
ASKD_SCHEDULE = Schedule(20, batch=128, lr=0.1, kind="step", milestones=(5, 10, 14, 16), ramp=0.0)


@dataclass(frozen=True)
class Options:
    """How a run computes, beside what it optimises.

    Attributes:
        side: LR side in pixels, a tuple of sides drawn per image, or None for HR.
        preset: Of `lrkd.data.degradation`.
        mirror: Whether images are flipped at random.
        shift: Images are translated by up to that many pixels at random, edges repeated.
        precision: "bfloat16" means autocast.
        channels_last: Whether weights and images lie in that order.
        threads: Of the CPU, None for torch's own choice; part of a result, as sums depend on it in the last bit.

    Raises:
        ConfigError: The precision is another.
    """

    side: int | tuple[int, ...] | None = None
    preset: str = "area-bicubic"
    mirror: bool = True
    shift: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision: expected float32 or bfloat16, got {self.precision!r}")


def make_scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int, steps_an_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Make the learning rate's scheduler, which is stepped after each of `steps` updates."""
    if schedule.kind == "onecycle":
        # One step more than is taken: the scheduler counts the state after the last update too.
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, schedule.lr, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False
        )
    milestones = [epoch * steps_an_epoch for epoch in schedule.milestones]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with that many CPU threads inside the block; None leaves torch's choice."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
