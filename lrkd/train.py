"""One `fit` for teachers and students, on a CPU or a GPU, with checkpoints that resume to the bit on a CPU."""

import io
import itertools
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from tqdm.auto import tqdm

from lrkd.degrade import degrade
from lrkd.errors import ConfigError, RunError, TrainingError
from lrkd.heads import Head
from lrkd.losses import Term, View, cosine_logits
from lrkd.models import Hints, Network


class Images(Protocol):
    """What `fit` needs of `data.Faces`: uint8 images (N,H,W,3), int64 labels (N,), the number of classes, a digest."""

    @property
    def images(self) -> Any: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def digest(self) -> str: ...


@dataclass(frozen=True)
class Schedule:
    """SGD with Nesterov momentum over `epochs`; "onecycle" peaks at `lr`, "step" divides by 10 after each milestone.

    ramp: the share of all steps over which the head's margin grows from 0 to its value.
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
            raise ConfigError(f"{self}: epochs must be at least 1, batch at least 2 and lr positive")
        if self.kind not in ("onecycle", "step"):
            raise ConfigError(f"schedule kind is {self.kind!r}: choose onecycle or step")


# The papers' own schedules. A-SKD's code steps its scheduler before the epoch, so that its stated drops at 6/11/15/17
# come one epoch early; these are the epochs after which the rate really falls.
FSKD_SCHEDULE = Schedule(24, batch=256, lr=0.1, kind="step", milestones=(10, 14, 18, 22), ramp=0.0)
ASKD_SCHEDULE = Schedule(20, batch=128, lr=0.1, kind="step", milestones=(5, 10, 14, 16), ramp=0.0)


@dataclass(frozen=True)
class Options:
    """How a run computes, beside what it optimises.

    side: LR side in pixels, a tuple of sides drawn per image, or None for HR. preset: of `lrkd.degrade`. mirror: random
    horizontal flips. shift: random translations of up to that many pixels, edges repeated. precision "bfloat16" means
    autocast. threads: of the CPU, None for torch's own choice; part of a result, as sums depend on it in the last bit.
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
            raise ConfigError(f"precision is {self.precision!r}: choose float32 or bfloat16")


@dataclass(frozen=True)
class Teacher:
    """A frozen HR network and the class weights of its head.

    shuffled: it sees each image's neighbour in the batch. chosen: (N,) bool, of which training images its features are
    learned by a term that asks (`losses.regression`); None: of all.
    """

    network: Network
    head: Head
    shuffled: bool = False
    chosen: Tensor | None = None


@dataclass(frozen=True)
class Fitted:
    """What `fit` leaves beside the trained network: the rows of metrics.csv, the hint layers (or None), the seconds."""

    rows: list[dict[str, float]]
    hints: Hints | None
    seconds: float


def normalise(images: Tensor) -> Tensor:
    """[0,1] -> [-1,1], what every network here takes."""
    return images * 2 - 1


def fit(
    network: Network,
    head: Head,
    faces: Images,
    *,
    schedule: Schedule,
    options: Options | None = None,
    teacher: Teacher | None = None,
    terms: Sequence[Term] = (),
    seed: int = 0,
    device: str | torch.device = "cpu",
    directory: Path | None = None,
    checkpoint_every: int = 200,
    log_every: int = 20,
    progress: bool = True,
    name: str = "train",
    observe: Callable[[int, Hints | None], None] | None = None,
    observe_every: int = 0,
    stop: Callable[[], bool] | None = None,
) -> Fitted:
    """Train network and head in place on `faces`, logging a row every `log_every` steps.

    A network whose own size is the LR side is shown LR images as they are; any other, LR images at HR size.

    A teacher without terms is an error, as are terms without a teacher. With a directory, metrics.csv and state.pt are
    written there every `checkpoint_every` steps, and a state.pt that is there is resumed: on a CPU, with the same
    number of threads, the weights end bit-identical to those of a run that was never stopped. Ctrl-C saves first, as
    does `stop`, asked after every step, when it returns True; both end in KeyboardInterrupt.

    observe is called after every `observe_every` steps (0: after every epoch), before they are saved, with the number
    of steps done and the hint layers; it may look, but neither draw random numbers nor change a weight.

    Raises TrainingError when a loss is not finite (with step and term), RunError when state.pt is of another run.
    """
    if bool(terms) != (teacher is not None):
        raise ConfigError(f"{len(list(terms))} terms with {'a' if teacher else 'no'} teacher: give both or neither")
    options = options or Options()
    count, batch = len(faces.labels), schedule.batch
    if count < batch:
        raise ConfigError(f"batch is {batch}, but there are only {count} images to train on: choose a smaller batch")
    steps_an_epoch = count // batch
    steps = schedule.epochs * steps_an_epoch
    fingerprint = json.dumps(
        [asdict(schedule), asdict(options), seed, faces.digest, [term.describe() for term in terms]], sort_keys=True
    )
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), threads(options.threads), _deferred_interrupt() as interrupted:
        torch.manual_seed(seed)  # only dropout draws from the global generator; it travels in the checkpoint
        generator = torch.Generator().manual_seed(seed)
        memory = torch.channels_last if options.channels_last else torch.contiguous_format
        trained = nn.ModuleDict({"network": network, "head": head})
        hints = None
        if any(term.hint for term in terms) and teacher is not None:
            trained["hints"] = hints = Hints(network.widths, teacher.network.widths, seed=seed)
        _place(trained, device, memory).train()
        if teacher is not None:
            _place(teacher.network, device, memory).eval()
            _place(teacher.head, device, memory).eval()
        optimizer = torch.optim.SGD(
            trained.parameters(),
            lr=schedule.lr,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            nesterov=True,
            fused=device.type == "cuda",
        )
        scheduler = _scheduler(optimizer, schedule, steps, steps_an_epoch)
        state = _State(trained, optimizer, scheduler, generator, fingerprint, device)
        rows: list[dict[str, float]] = []
        step = 0
        if directory is not None and (directory / "state.pt").exists():
            step, rows = state.load(directory / "state.pt")
        images = _resident(faces, device)
        labels = torch.from_numpy(np.asarray(faces.labels)).to(device)
        chosen = None if teacher is None or teacher.chosen is None else teacher.chosen.to(device)
        if chosen is not None and tuple(chosen.shape) != (count,):
            raise ConfigError(f"teacher.chosen: shape {tuple(chosen.shape)} is not ({count},), one entry an image")
        names = ["identity", *(term.name for term in terms)]
        pending: list[tuple[int, Tensor]] = []
        clock, since = time.perf_counter(), step
        bar = tqdm(
            total=steps,
            initial=step,
            desc=name,
            unit="step",
            disable=not progress or bool(os.environ.get("TQDM_DISABLE")),
            leave=False,
        )
        with bar:
            while step < steps:
                epoch, within = divmod(step, steps_an_epoch)
                if within == 0 or step == since:
                    order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))
                index = order[within * batch : (within + 1) * batch]
                hr = _augment(images(index), options, generator)
                here = index.to(device)
                y, picked = labels[here], None if chosen is None else chosen[here]
                ramp = min(1.0, step / (schedule.ramp * steps)) if schedule.ramp else 1.0
                with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
                    parts = _losses(trained, head, teacher, terms, hr, y, picked, ramp, options, generator, memory)
                optimizer.zero_grad(set_to_none=True)
                parts[0].sum().backward()
                optimizer.step()
                scheduler.step()
                step += 1
                pending.append((step, torch.cat([parts[0].detach(), parts[1]])))
                bar.update()
                if observe is not None and step % (observe_every or steps_an_epoch) == 0:
                    began = time.perf_counter()
                    observe(step, hints)
                    trained.train()
                    clock += time.perf_counter() - began
                last = step == steps
                stopped = interrupted.is_set() or (stop is not None and stop())
                save = directory is not None and (step % checkpoint_every == 0 or last or stopped)
                if step % log_every == 0 or save or last:
                    values = _checked(pending, names)
                    elapsed = time.perf_counter() - clock
                    speed = (step - since) * batch / elapsed
                    clock, since = time.perf_counter(), step
                    if step % log_every == 0 or last:
                        rows.append(
                            {
                                "step": step,
                                "epoch": step / steps_an_epoch,
                                "lr": float(scheduler.get_last_lr()[0]),
                                "ramp": ramp,
                                "loss": float(values[:-1].sum()),
                                **{key: float(value) for key, value in zip(names, values[:-1], strict=True)},
                                "train_accuracy": float(values[-1]),
                                "images_per_s": speed,
                            }
                        )
                        bar.set_postfix(loss=f"{rows[-1]['loss']:.3f}", images_s=f"{speed:.0f}")
                    pending = []
                if save and directory is not None:
                    state.save(directory, step, rows)
                if stopped:
                    raise KeyboardInterrupt(f"{name} stopped at step {step} of {steps}")
    trained.eval()
    done = [0.0, *(row["step"] for row in rows)]
    seconds = sum(
        (after - before) * batch / row["images_per_s"]
        for row, (before, after) in zip(rows, itertools.pairwise(done), strict=True)
    )
    return Fitted(rows, hints, seconds)


def _losses(
    trained: nn.ModuleDict,
    head: Head,
    teacher: Teacher | None,
    terms: Sequence[Term],
    hr: Tensor,
    labels: Tensor,
    chosen: Tensor | None,
    ramp: float,
    options: Options,
    generator: torch.Generator,
    memory: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """The weighted losses (1 + terms,), identity first, and the share of right labels (1,)."""
    network, side = trained["network"], options.side
    if side is not None:
        lr = degrade(hr, side, preset=options.preset, generator=generator, enlarge=network.size != side)
    s = network(normalise(hr if side is None else lr).contiguous(memory_format=memory))
    logits = head(s.embedding, labels, ramp=ramp)
    losses = [F.cross_entropy(logits.float(), labels)]
    if teacher is not None:
        with torch.no_grad():
            shown = hr.roll(1, 0) if teacher.shuffled else hr
            t = teacher.network(normalise(shown).contiguous(memory_format=memory))
            target = cosine_logits(t.embedding.float(), teacher.head.weight, teacher.head.scale)
        hinted = trained["hints"](s.features) if "hints" in trained else s.features
        plain = cosine_logits(s.embedding.float(), head.weight, head.scale)
        student_view = View(s.embedding, s.features, hinted, s.channel, s.spatial, plain, labels)
        teacher_view = View(t.embedding, t.features, t.features, t.channel, t.spatial, target, labels, chosen)
        with torch.autocast(hr.device.type, enabled=False):
            views = [_float(view) for view in (student_view, teacher_view)]
            losses += [term.weight * term.function(*views) for term in terms]
    right = (logits.detach().argmax(1) == labels).float().mean()
    return torch.stack(losses), right[None]


def _place(module: nn.Module, device: torch.device, memory: torch.memory_format) -> nn.Module:
    return module.to(device).to(memory_format=memory)  # type: ignore[call-overload]  # torch's stubs leave it out


def _float(view: View) -> View:
    """The same view in float32: distances of bfloat16 tensors would lose what they measure."""

    def cast(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(cast(item) for item in x)
        return x.float() if x is not None and x.is_floating_point() else x

    return View(*(cast(tuple(item) if isinstance(item, Sequence) else item) for item in view))


def _augment(hr: Tensor, options: Options, generator: torch.Generator) -> Tensor:
    """Random mirror and shift, (B,3,H,W) -> the same shape, drawn per image from a CPU generator."""
    size = hr.shape[-1]
    if options.mirror:
        flip = torch.rand(len(hr), generator=generator) < 0.5
        hr = torch.where(flip.to(hr.device)[:, None, None, None], hr.flip(3), hr)
    if options.shift:
        drawn = torch.randint(-options.shift, options.shift + 1, (2, len(hr), 1), generator=generator).to(hr.device)
        rows, columns = (torch.arange(size, device=hr.device) + drawn).clamp(0, size - 1)
        each = torch.arange(len(hr), device=hr.device)[:, None, None]
        hr = hr.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return hr


# Images of more bytes than this stay where they lie when a CPU trains on them.
_RESIDENT_BYTES = 2e9


def _resident(faces: Images, device: torch.device, share: float = 0.3) -> Callable[[Tensor], Tensor]:
    """A function from indices to float images (B,3,H,W) in [0,1] on the device.

    All images are put on the device once when they take less than that share of its free memory (2 GB on a CPU);
    otherwise each batch is read from where it lies.
    """
    total = math.prod(faces.images.shape)
    room = share * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _RESIDENT_BYTES
    if total < room:
        everything = torch.from_numpy(np.array(faces.images[:])).to(device).permute(0, 3, 1, 2)
        return lambda index: everything[index.to(device)].float() / 255

    def read(index: Tensor) -> Tensor:
        part = torch.from_numpy(np.ascontiguousarray(faces.images[index.numpy()]))
        if device.type == "cuda":
            part = part.pin_memory().to(device, non_blocking=True)
        return part.permute(0, 3, 1, 2).float() / 255

    return read


def _scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int, steps_an_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if schedule.kind == "onecycle":
        # One step more than is taken: the scheduler counts the state after the last update too.
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, schedule.lr, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False
        )
    milestones = [epoch * steps_an_epoch for epoch in schedule.milestones]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


def _checked(pending: Sequence[tuple[int, Tensor]], names: Sequence[str]) -> np.ndarray:
    """Mean of the pending steps' values; TrainingError at the first that is not finite. The only wait for a GPU."""
    values = torch.stack([value for _, value in pending]).double().cpu().numpy()
    bad = ~np.isfinite(values[:, : len(names)])
    if bad.any():
        row = int(bad.any(1).argmax())
        term = names[int(bad[row].argmax())]
        raise TrainingError(
            f"step {pending[row][0]}: the loss term {term!r} is {values[row, names.index(term)]}; "
            f"lower the learning rate or this term's weight (or check the images for constant ones)"
        )
    return values.mean(0)


class _State:
    """Everything that a run needs to go on, in one file."""

    def __init__(
        self,
        trained: nn.ModuleDict,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        generator: torch.Generator,
        fingerprint: str,
        device: torch.device,
    ) -> None:
        self.trained, self.optimizer, self.scheduler = trained, optimizer, scheduler
        self.generator, self.fingerprint, self.device = generator, fingerprint, device

    def save(self, directory: Path, step: int, rows: list[dict[str, float]]) -> None:
        state = {
            "fingerprint": self.fingerprint,
            "step": step,
            "rows": rows,
            "trained": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "rng": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        buffer = io.BytesIO()  # a file that torch writes itself hides a full disk behind another error
        torch.save(state, buffer)
        if rows:  # before the state: a run that is killed in between then writes these rows again
            lines = [",".join(rows[0]), *(",".join(f"{value:.8g}" for value in row.values()) for row in rows)]
            _write(directory / "metrics.csv", ("\n".join(lines) + "\n").encode())
        _write(directory / "state.pt", buffer.getvalue())

    def load(self, path: Path) -> tuple[int, list[dict[str, float]]]:
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            if state["fingerprint"] != self.fingerprint:
                raise RunError(f"{path}: this checkpoint is of another run; train in another folder, or remove it")
            self.trained.load_state_dict(state["trained"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.generator.set_state(state["generator"].cpu())
            torch.set_rng_state(state["rng"].cpu())
            if state["cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)
            return state["step"], state["rows"]
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


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that a step is finished and saved; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
