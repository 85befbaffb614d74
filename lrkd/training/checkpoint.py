"""What a run needs to go on, in one file."""

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrkd.errors import RunError
from lrkd.files import write_whole
from lrkd.models.heads import Head
from lrkd.models.layers import Network
from lrkd.training import distributed
from lrkd.training.acceleration import Writer, snapshot
from lrkd.training.batches import Images
from lrkd.training.execution import Execution
from lrkd.training.log import Log
from lrkd.training.partial_classes import Shard
from lrkd.training.schedule import Options, Schedule
from lrkd.training.step import Teacher, TrainingStep


def fingerprint(
    network: Network,
    head: Head,
    faces: Images,
    schedule: Schedule,
    options: Options,
    teacher: Teacher | None,
    execution: Execution,
) -> str:
    """Describe what a run is, by part, as JSON: what a caller makes by its settings, what a caller brings by its bytes.

    The weights that the network starts with are no part of it, as a checkpoint replaces them.
    """
    some = np.unique(np.linspace(0, len(faces.labels) - 1, 1024).astype(np.int64))
    labels, pixels = np.asarray(faces.labels), np.asarray(faces.images[some])
    parts: dict[str, Any] = {
        "schedule": asdict(schedule),
        "options": asdict(options),
        "seed": execution.seed,
        "data": [faces.digest, list(faces.images.shape), _digest([labels, pixels])],
        "terms": [] if teacher is None else [term.describe() for term in teacher.terms],
        "network": _shape(network),
        "head": _shape(head),
        "teacher": None,
        "chosen": None,
    }
    if teacher is not None:
        lent = [module for module in (teacher.network, teacher.head) if module is not None]
        weights = [entry for module in lent for entry in module.state_dict().items()]
        said = [*map(_shape, lent), [name for name, _ in weights], teacher.shuffled]
        parts["teacher"] = [
            said,
            _digest([x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() for _, x in weights]),
        ]
        if teacher.chosen is not None:
            parts["chosen"] = _digest([teacher.chosen.cpu().numpy()])
    if (processes := distributed.world_size()) > 1:
        speed = execution.speed
        parts["processes"] = [processes, speed.sync_norm, head.classes >= speed.shard]
    return json.dumps(parts, sort_keys=True)


def _shape(module: nn.Module) -> list[Any]:
    """A module as it was built: its layers, its own settings, and the shapes of its weights."""
    own = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, int | float | str) and key != "training" and not key.startswith("_")
    }
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    return [type(module).__qualname__, repr(module), own, shapes]


def _digest(arrays: Iterable[np.ndarray]) -> str:
    found = hashlib.sha256()
    for x in arrays:
        found.update(np.ascontiguousarray(x).data)
    return found.hexdigest()[:16]


class Checkpoint:
    """Everything that a run needs to go on, in the file state.pt of a directory, and its rows in metrics.csv.

    Args:
        directory: Where the files are.
        step: The run's step, which holds weights, optimizer, scheduler and generator.
        fingerprint: What the run is; a file of another one is refused.
        writer: Writes in a thread; None: `save` returns when the files are written.
    """

    def __init__(self, directory: Path, step: TrainingStep, fingerprint: str, writer: Writer | None = None) -> None:
        self.directory, self.step, self.fingerprint, self.writer = directory, step, fingerprint, writer

    def save(self, done: int, log: Log) -> None:
        """Write the state after `done` steps. Every process must call this; the first writes.

        Raises:
            RunError: The disk is full, or refuses; the files that were there stay.
        """
        step, logged = self.step, log.state()
        state: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "step": done,
            "log": logged,
            "trained": step.trained.state_dict(),
            "optimizer": step.optimizer.state_dict(),
            "scheduler": step.scheduler.state_dict(),
            "generator": step.generator.get_state(),
            "rng": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(step.device) if step.device.type == "cuda" else None,
        }
        if isinstance(shard := step.trained["head"], Shard):
            self._reshape(state, shard, shard.gathered)
        if distributed.rank():
            return
        bring = (lambda: state) if self.writer is None else snapshot(state, step.device)

        def write() -> None:
            buffer = io.BytesIO()  # a file that torch writes itself hides a full disk behind another error
            torch.save(bring(), buffer)
            if rows := logged["rows"]:  # before the state: a run that is killed in between then writes these rows again
                lines = [",".join(rows[0]), *(",".join(f"{value:.8g}" for value in row.values()) for row in rows)]
                write_whole(self.directory / "metrics.csv", ("\n".join(lines) + "\n").encode())
            write_whole(self.directory / "state.pt", buffer.getvalue())

        if self.writer is None:
            write()
        else:
            self.writer.add(write)

    def resume(self, log: Log) -> int:
        """Bring everything to what the file has, if it is there, and return the number of steps done.

        Raises:
            RunError: The file is of another run, or cannot be read.
        """
        path, step = self.directory / "state.pt", self.step
        # What the first process sees: it may have written the file itself just now, and the others not see it yet.
        if not distributed.broadcast(path.exists()):
            return 0
        try:
            state = torch.load(path, map_location=step.device, weights_only=True)
            if state["fingerprint"] != self.fingerprint:
                there, here = (dict(json.loads(text)) for text in (state["fingerprint"], self.fingerprint))
                differ = ", ".join(sorted(key for key in {*there, *here} if there.get(key) != here.get(key)))
                raise RunError(
                    f"{path}: expected a checkpoint of this run, got one of another run (different: {differ}); train "
                    f"in another folder, or remove it"
                )
            if isinstance(shard := step.trained["head"], Shard):
                self._reshape(state, shard, shard.share)
            step.trained.load_state_dict(state["trained"])
            step.optimizer.load_state_dict(state["optimizer"])
            step.scheduler.load_state_dict(state["scheduler"])
            step.generator.set_state(state["generator"].cpu())
            torch.set_rng_state(state["rng"].cpu())
            if state["cuda"] is not None and step.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"].cpu(), step.device)
            log.load(state["log"])
            return int(state["step"])
        except RunError:
            raise
        except Exception as error:  # whatever a broken or hostile file makes of the readers
            raise RunError(
                f"{path}: this checkpoint cannot be read ({type(error).__name__}); remove it to start anew"
            ) from error

    def _reshape(self, state: dict[str, Any], shard: Shard, change: Callable[[Tensor], Tensor]) -> None:
        """The weights that processes share, and their momentum, as a state has them: whole, or this process's rows."""
        state["trained"] = state["trained"] | {"head.head.weight": change(state["trained"]["head.head.weight"])}
        at = next(k for k, weight in enumerate(self.step.trained.parameters()) if weight is shard.weight)
        if at in (moments := state["optimizer"]["state"]):
            buffer = change(moments[at]["momentum_buffer"])
            changed = moments | {at: moments[at] | {"momentum_buffer": buffer}}
            state["optimizer"] = state["optimizer"] | {"state": changed}
