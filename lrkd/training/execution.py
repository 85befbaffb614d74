"""How a run is carried out, beside what it learns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lrkd.models.backbones import Hints
from lrkd.training.acceleration import Speed


@dataclass(frozen=True)
class Execution:
    """How `lrkd.training.loop.fit` carries out a run: from which seed, where, with which files, watched by what.

    Attributes:
        seed: Of the order of the images, of augmentation, random degradations, dropout and hint layers.
        device: "cpu", "cuda" or "cuda:N".
        speed: Switches that keep a device busy.
        directory: Where metrics.csv and state.pt are written, and from which a run resumes; None writes nothing.
        checkpoint_every: Steps between two checkpoints.
        log_every: Steps between two rows of metrics.csv.
        progress: Whether to show a progress bar.
        name: What the progress bar and an interruption call the run.
        observe: Called with the number of steps done and the hint layers, before the step is saved. It may look, but
            neither draw random numbers nor change a weight.
        observe_every: Steps between two observations; 0: after every epoch.
        on_row: Called with each row of metrics.csv, in every process.
        stop: Asked after every step; where it returns True the run saves and ends in KeyboardInterrupt, as by Ctrl-C.
    """

    seed: int = 0
    device: str | torch.device = "cpu"
    speed: Speed = field(default_factory=Speed)
    directory: Path | None = None
    checkpoint_every: int = 200
    log_every: int = 20
    progress: bool = True
    name: str = "train"
    observe: Callable[[int, Hints | None], None] | None = None
    observe_every: int = 0
    on_row: Callable[[dict[str, float]], None] | None = None
    stop: Callable[[], bool] | None = None
