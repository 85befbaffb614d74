"""The rows of metrics.csv."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrkd.errors import TrainingError
from lrkd.training import distributed


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names, the second of a kind as "feature-2"."""
    seen = (names[: k + 1].count(name) for k, name in enumerate(names))
    return [name if nth == 1 else f"{name}-{nth}" for name, nth in zip(names, seen, strict=True)]


# The columns of metrics.csv beside the losses by their names.
COLUMNS = ("step", "epoch", "lr", "ramp", "loss", "train_accuracy", "images_per_s")


class Log:
    """The rows of metrics.csv, and what has come since the last one: the steps' values and their time.

    names: of the losses, identity first. values: (1 + terms + 1,) a step, the losses and the share of right labels.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.rows: list[dict[str, float]] = []
        self._pending: list[tuple[int, Tensor]] = []  # on the device, not looked at yet
        self._since = np.empty((0, len(names) + 1))  # looked at
        self._clock = self._before = 0.0

    def start(self) -> None:
        """Time runs from here."""
        self._clock = time.perf_counter() - self._before

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time does not run in the block."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began

    def add(self, step: int, values: Tensor) -> None:
        """The values of a step."""
        self._pending.append((step, values))

    def check(self, trained: nn.Module | None = None) -> None:
        """TrainingError at the first step with a loss that is not finite, and for weights that are not.

        With `row` the only wait for a GPU.
        """
        if self._pending:
            together = distributed.summed(torch.stack([value for _, value in self._pending])) / distributed.size()
            values = together.double().cpu().numpy()
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

    def row(self, step: int, batch: int, epoch: float, lr: float, ramp: float) -> dict[str, float]:
        """Add the row of what came since the last one, and begin anew."""
        self.check()
        mean, count, now = self._since.mean(0), len(self._since), time.perf_counter()
        losses = {key: float(value) for key, value in zip(self.names, mean[:-1], strict=True)}
        row = {"step": step, "epoch": epoch, "lr": lr, "ramp": ramp, "loss": float(mean[:-1].sum()), **losses}
        self.rows.append(row | {"train_accuracy": float(mean[-1]), "images_per_s": count * batch / (now - self._clock)})
        self._since, self._clock = self._since[:0], now
        return self.rows[-1]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; call `check` before."""
        now = time.perf_counter()
        return {"rows": list(self.rows), "since": torch.from_numpy(self._since), "seconds": now - self._clock}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint has kept."""
        self.rows, self._since, self._before = state["rows"], state["since"].cpu().numpy(), state["seconds"]


def check_finite(module: nn.Module) -> bool:
    """Whether all weights and buffers are, in every process."""
    tensors = [x for x in module.state_dict().values() if x.is_floating_point()]
    return not distributed.agreed(not bool(torch.stack([x.isfinite().all() for x in tensors]).all()))
