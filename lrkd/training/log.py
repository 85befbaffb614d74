"""The rows of metrics.csv."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrkd.errors import TrainingError
from lrkd.training import distributed

# The columns of metrics.csv beside the losses by their names.
COLUMNS = ("step", "epoch", "lr", "ramp", "loss", "train_accuracy", "images_per_s")


class Log:
    """The rows of metrics.csv, and what has come since the last one: the steps' values and their time.

    Args:
        names: Of the losses, identity first; a name that is taken already becomes "feature-2".
        batch: Images a step.
        on_row: Called with each new row.

    Attributes:
        rows: Those of metrics.csv.
    """

    def __init__(
        self, names: Sequence[str], batch: int, on_row: Callable[[dict[str, float]], None] | None = None
    ) -> None:
        taken = [*COLUMNS, *names]
        nths = [taken[: k + 1].count(name) for k, name in enumerate(taken)][len(COLUMNS) :]
        self.names = [name if nth == 1 else f"{name}-{nth}" for name, nth in zip(names, nths, strict=True)]
        self.batch, self._on_row = batch, on_row
        self.rows: list[dict[str, float]] = []
        self._pending: list[tuple[int, Tensor]] = []  # on the device, not looked at yet
        self._since = np.empty((0, len(self.names) + 1))  # looked at
        self._clock = self._before = 0.0

    @property
    def seconds(self) -> float:
        """Return how long the steps of all rows took."""
        done = [0.0, *(row["step"] for row in self.rows)]
        return sum(
            (after - before) * self.batch / row["images_per_s"]
            for row, (before, after) in zip(self.rows, itertools.pairwise(done), strict=True)
        )

    def start(self) -> None:
        """Let time run from here."""
        self._clock = time.perf_counter() - self._before

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the time while the block runs."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began

    def add(self, step: int, values: Tensor) -> None:
        """Add the values of a step, (1 + terms + 1,): the losses and the share of right labels."""
        self._pending.append((step, values))

    def check(self, trained: nn.Module | None = None) -> None:
        """Look at what has come, and at the weights where they are given. With `row` the only wait for a GPU.

        Raises:
            TrainingError: A loss is not finite, with its first step, or the weights are not.
        """
        if self._pending:
            total = distributed.all_reduce(torch.stack([value for _, value in self._pending]))
            values = (total / distributed.world_size()).double().cpu().numpy()
            bad = ~np.isfinite(values[:, : len(self.names)])
            if bad.any():
                row = int(bad.any(1).argmax())
                term = int(bad[row].argmax())
                raise TrainingError(
                    f"step {self._pending[row][0]}: the loss term {self.names[term]!r} is {values[row, term]}; "
                    f"lower the learning rate or this term's weight (or check the images for constant ones)"
                )
            self._since, self._last = np.concatenate([self._since, values]), self._pending[-1][0]
            self._pending = []
        if trained is not None and not check_finite(trained):
            raise TrainingError(
                f"step {self._last}: the losses are finite, but after the update the weights are not; lower the "
                f"learning rate or the terms' weights"
            )

    def row(self, step: int, epoch: float, lr: float, ramp: float) -> dict[str, float]:
        """Add the row of what came since the last one, begin anew, and return it."""
        self.check()
        mean, count, now = self._since.mean(0), len(self._since), time.perf_counter()
        losses = {key: float(value) for key, value in zip(self.names, mean[:-1], strict=True)}
        row = {"step": step, "epoch": epoch, "lr": lr, "ramp": ramp, "loss": float(mean[:-1].sum()), **losses}
        pace = count * self.batch / (now - self._clock)
        self.rows.append(row | {"train_accuracy": float(mean[-1]), "images_per_s": pace})
        self._since, self._clock = self._since[:0], now
        if self._on_row is not None:
            self._on_row(self.rows[-1])
        return self.rows[-1]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; call `check` before."""
        now = time.perf_counter()
        return {"rows": list(self.rows), "since": torch.from_numpy(self._since), "seconds": now - self._clock}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint has kept."""
        self.rows, self._since, self._before = state["rows"], state["since"].cpu().numpy(), state["seconds"]


def check_finite(module: nn.Module) -> bool:
    """Return whether all weights and buffers are finite, in every process."""
    tensors = [x for x in module.state_dict().values() if x.is_floating_point()]
    return not distributed.any_process(not bool(torch.stack([x.isfinite().all() for x in tensors]).all()))
