"""What a run needs to go on, in one file, and the file of a trained network."""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from lrkd.distill.terms import Term
from lrkd.errors import RunError
from lrkd.models.heads import Head
from lrkd.models.layers import Network
from lrkd.training import distributed
from lrkd.training.acceleration import Speed, on_host
from lrkd.training.log import Log
from lrkd.training.schedule import Options, Schedule
from lrkd.training.step import Images, Teacher


def fingerprint(
    network: Network,
    head: Head,
    faces: Images,
    schedule: Schedule,
    options: Options,
    speed: Speed,
    teacher: Teacher | None,
    terms: Sequence[Term],
    seed: int,
) -> str:
    """What a run is, by part, as JSON: by its settings what a caller makes anew, by its bytes what he brings.

    The weights that the network starts with are no part of it, as a checkpoint replaces them.
    """
    some = np.unique(np.linspace(0, len(faces.labels) - 1, 1024).astype(np.int64))
    labels, pixels = np.asarray(faces.labels), np.asarray(faces.images[some])
    parts: dict[str, Any] = {
        "schedule": asdict(schedule),
        "options": asdict(options),
        "seed": seed,
        "data": [faces.digest, list(faces.images.shape), _digest([labels, pixels])],
        "terms": [term.describe() for term in terms],
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
    if distributed.size() > 1:
        parts["processes"] = [distributed.size(), speed.sync_norm, head.classes >= speed.shard]
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


class CheckpointState:
    """Everything that a run needs to go on, in one file."""

    def __init__(
        self,
        trained: nn.ModuleDict,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        generator: torch.Generator,
        fingerprint: str,
        device: torch.device,
        shard: distributed.Shard | None = None,
    ) -> None:
        self.trained, self.optimizer, self.scheduler = trained, optimizer, scheduler
        self.generator, self.fingerprint, self.device, self.shard = generator, fingerprint, device, shard

    def saving(self, directory: Path, step: int, log: Log, later: bool) -> Callable[[], None]:
        """The state as it is now; the function writes it, in another thread too if it is to be called `later`."""
        logged = log.state()
        kept = logged["rows"]
        state: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "step": step,
            "log": logged,
            "trained": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "rng": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        if self.shard is not None:
            self._reshape(state, self.shard.gathered)
        bring = on_host(state, self.device) if later else lambda: state

        def write() -> None:
            buffer = io.BytesIO()  # a file that torch writes itself hides a full disk behind another error
            torch.save(bring(), buffer)
            if kept:  # before the state: a run that is killed in between then writes these rows again
                lines = [",".join(kept[0]), *(",".join(f"{value:.8g}" for value in row.values()) for row in kept)]
                _write(directory / "metrics.csv", ("\n".join(lines) + "\n").encode())
            _write(directory / "state.pt", buffer.getvalue())

        return write

    def _reshape(self, state: dict[str, Any], change: Callable[[Tensor], Tensor]) -> None:
        """The weights that processes share, and their momentum, as a state has them: whole, or this process's rows."""
        assert self.shard is not None
        state["trained"] = state["trained"] | {"head.head.weight": change(state["trained"]["head.head.weight"])}
        at = next(k for k, weight in enumerate(self.trained.parameters()) if weight is self.shard.weight)
        if at in (moments := state["optimizer"]["state"]):
            buffer = change(moments[at]["momentum_buffer"])
            changed = moments | {at: moments[at] | {"momentum_buffer": buffer}}
            state["optimizer"] = state["optimizer"] | {"state": changed}

    def load(self, path: Path, log: Log) -> int:
        """Bring everything to what the file has; -> the number of steps done."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            if state["fingerprint"] != self.fingerprint:
                there, here = (dict(json.loads(text)) for text in (state["fingerprint"], self.fingerprint))
                differ = ", ".join(sorted(key for key in {*there, *here} if there.get(key) != here.get(key)))
                raise RunError(
                    f"{path}: this checkpoint is of another run (different: {differ}); train in another folder, or "
                    f"remove it"
                )
            if self.shard is not None:
                self._reshape(state, self.shard.share)
            self.trained.load_state_dict(state["trained"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.generator.set_state(state["generator"].cpu())
            torch.set_rng_state(state["rng"].cpu())
            if state["cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)
            log.load(state["log"])
            return int(state["step"])
        except RunError:
            raise
        except Exception as error:  # whatever a broken or hostile file makes of the readers
            raise RunError(
                f"{path}: this checkpoint cannot be read ({type(error).__name__}); remove it to start anew"
            ) from error


def _write(path: Path, content: bytes) -> None:
    """Write a file whole: under a temporary name first, then renamed."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RunError(
            f"{path}: could not be written ({error.strerror}); what was there before is unchanged: make room, "
            f"then repeat the command to resume"
        ) from error


def save_model(path: Path, network: Network, head: Head, config: dict[str, Any]) -> None:
    """Network and head as one safetensors file that carries its config, from which it can be rebuilt alone."""
    tensors = {f"network.{key}": value.contiguous().cpu() for key, value in network.state_dict().items()}
    tensors |= {f"head.{key}": value.contiguous().cpu() for key, value in head.state_dict().items()}
    _write(path, safetensors_bytes(tensors, {"config": json.dumps(config, sort_keys=True)}))


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the config of a file written by `save_model`; RunError when it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads(file.metadata()["config"])
            return {key: file.get_tensor(key) for key in file.keys()}, config  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: is no model written by lrkd ({error})") from error
