"""One `fit` for teachers and students, on a CPU or a GPU, with checkpoints that resume to the bit on a CPU."""

import hashlib
import io
import itertools
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from tqdm.auto import tqdm

from lrkd import parallel
from lrkd.degrade import degrade
from lrkd.degrade import sent
from lrkd.device import (
    LONG,
    Speed,
    Writer,
    compiled,
    fields_read,
    forget_compiled,
    in_advance,
    on_host,
    quick_convolutions,
    said_once,
)
from lrkd.errors import ConfigError, DataError, RunError, TrainingError
from lrkd.heads import Head
from lrkd.losses import Term, View, cosine_logits
from lrkd.models import Hints, Network, Output
from lrkd.parts import check as check_parts
from lrkd.wrap import Embeddings


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
    """A frozen HR network and the class weights of its head, which only terms on logits need.

    shuffled: it sees each image's neighbour in the batch. low: it sees the LR images that the student sees. itself: it
    is the student, which is then trained on the sharp images as on the LR ones. chosen: (N,) bool, of which training
    images its features are learned by a term that asks (`losses.regression`); None: of all.
    """

    network: Network
    head: Head | None = None
    shuffled: bool = False
    low: bool = False
    itself: bool = False
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
    speed: Speed | None = None,
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

    A teacher without terms is an error, as are terms without a teacher. A row has the means over the steps since the
    row before it. With a directory, metrics.csv and state.pt are written there every `checkpoint_every` steps, and a
    state.pt that is there is resumed: on a CPU, with the same number of threads, rows and weights end bit-identical to
    those of a run that was never stopped. Ctrl-C saves first, as does `stop`, asked after every step, when it returns
    True; both end in KeyboardInterrupt.

    observe is called after every `observe_every` steps (0: after every epoch), before they are saved, with the number
    of steps done and the hint layers; it may look, but neither draw random numbers nor change a weight.

    speed: how it is computed. Processes that `parallel.joined` has joined train together: each takes its part of every
    batch, the first writes, and random degradations are drawn anew by each.

    Raises TrainingError when a loss is not finite (with step and term) or an update leaves weights that are not: the
    checkpoint before stays. Raises RunError when state.pt is of a run with other data, networks, head, teacher or
    settings, and says which.
    """
    if bool(terms) != (teacher is not None):
        raise ConfigError(f"{len(list(terms))} terms with {'a' if teacher else 'no'} teacher: give both or neither")
    if teacher is not None:
        check_parts(terms, teacher.network, teacher.head)
        check_parts(terms, network, head, role="student")
    options, speed = options or Options(), speed or Speed()
    count, batch = len(faces.labels), schedule.batch
    if count < batch:
        raise ConfigError(f"batch is {batch}, but there are only {count} images to train on: choose a smaller batch")
    steps_an_epoch = count // batch
    steps = schedule.epochs * steps_an_epoch
    fingerprint = ""
    if directory is not None:
        fingerprint = _fingerprint(network, head, faces, schedule, options, speed, teacher, terms, seed)
    device, share = torch.device(device), parallel.part(batch)
    leader, several = parallel.rank() == 0, parallel.size() > 1
    devices = [device] if device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(threads(options.threads))
        interrupted = stack.enter_context(_deferred_interrupt())
        if devices:
            stack.enter_context(quick_convolutions())
            torch.cuda.empty_cache()  # of a run before: `_fits` and `_known` ask how much is free
        # Only dropout draws from the global generator; the first process's travels in the checkpoint.
        torch.manual_seed(seed + 1_000_003 * parallel.rank())
        generator = torch.Generator().manual_seed(seed)
        memory = torch.channels_last if options.channels_last else torch.contiguous_format
        shared = several and head.classes >= speed.shard
        if shared and any(term.name == "logits" for term in terms):
            raise ConfigError(f"logits of {head.classes} classes are not distilled where processes share the classes")
        shard = parallel.Shard(head) if shared else None
        trained = nn.ModuleDict({"network": network, "head": shard or head})
        hints = None
        if any(term.hint for term in terms) and teacher is not None:
            trained["hints"] = hints = Hints(network.widths, teacher.network.widths, seed=seed)
        _place(trained, device, memory).train()
        stack.enter_context(parallel.synchronised(trained, speed.sync_norm))
        if teacher is not None and not teacher.itself:
            _place(teacher.network, device, memory).eval()
            if teacher.head is not None:
                _place(teacher.head, device, memory).eval()
        optimizer = torch.optim.SGD(
            trained.parameters(),
            lr=schedule.lr,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            nesterov=True,
            fused=speed.uses("fused", device),
        )
        scheduler = _scheduler(optimizer, schedule, steps, steps_an_epoch)
        state = _State(trained, optimizer, scheduler, generator, fingerprint, device, shard)
        beside = stack.enter_context(Writer()) if speed.uses("beside", device) else None
        log, step = _Log(_told_apart([*COLUMNS, "identity", *(term.name for term in terms)])[len(COLUMNS) :]), 0
        # What the first process sees: it may have written the file itself just now, and the others not see it yet.
        if directory is not None and parallel.first((directory / "state.pt").exists()):
            step = state.load(directory / "state.pt", log)
        ahead = speed.uses("ahead", device, not _fits(faces, device))
        images = _resident(faces, device)
        labels = _labels(faces, head).to(device)
        chosen = None if teacher is None or teacher.chosen is None else teacher.chosen.to(device)
        if chosen is not None and tuple(chosen.shape) != (count,):
            raise ConfigError(f"teacher.chosen: shape {tuple(chosen.shape)} is not ({count},), one entry an image")
        amp, example = options.precision == "bfloat16", torch.arange(batch)[share]

        def shown(x: Tensor) -> Tensor:
            return normalise(x).contiguous(memory_format=memory)

        student: Callable[[Tensor], Output] = network
        ask: Callable[[Tensor], Output] | None = None if teacher is None else teacher.network
        known = None
        if teacher is not None and isinstance(teacher.network, Embeddings):
            known = teacher.network.answers(count, teacher.shuffled)
        elif (
            teacher is not None and not (options.shift or teacher.low or teacher.itself) and speed.uses("once", device)
        ):
            known = _known(trained, teacher, terms, images, count, options, shown, device, len(example))
        if speed.uses("compiled", device, steps - step >= LONG and not speed.sync_norm):
            x = images(example)
            small = x if network.size == x.shape[-1] else F.interpolate(x, (network.size, network.size))
            forget_compiled()
            student = compiled(network, shown(small), amp)
            if teacher is not None and known is None and not teacher.itself:
                ask = compiled(teacher.network, shown(x), amp)
        losses = parallel.together(
            trained,
            partial(_losses, trained, shard or head, student, teacher, ask, terms, options, shown),
            None if shard is None else shard.weight,
        )

        @lru_cache(maxsize=2)
        def order(epoch: int) -> Tensor:
            return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))

        def rows_of(step: int) -> Tensor:
            epoch, within = divmod(step, steps_an_epoch)
            return order(epoch)[within * batch : (within + 1) * batch][share]

        feed = (in_advance if ahead else map)(lambda index: (index, images(index)), map(rows_of, range(step, steps)))
        heard = False
        log.start()
        bar = tqdm(
            total=steps,
            initial=step,
            desc=name,
            unit="step",
            disable=not (progress and leader) or bool(os.environ.get("TQDM_DISABLE")),
            leave=False,
        )
        with bar:
            for index, x in feed:
                flip, moved = (None if drawn is None else drawn[share] for drawn in _draw(batch, options, generator))
                hr = _augment(x, flip, moved)
                here = sent(index, device)
                y, picked = labels[here], None if chosen is None else chosen[here]
                ramp = min(1.0, step / (schedule.ramp * steps)) if schedule.ramp else 1.0
                told = None if known is None else known(here, None if flip is None else sent(flip, device))
                own = torch.Generator().manual_seed(_stream(seed, step)) if several else generator
                with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                    parts = losses(hr, y, picked, ramp, told, own)
                optimizer.zero_grad(set_to_none=True)
                parts[0].sum().backward()
                optimizer.step()
                scheduler.step()
                step += 1
                log.add(step, torch.cat([parts[0].detach(), parts[1]]))
                bar.update()
                last = step == steps
                if observe is not None and step % (observe_every or steps_an_epoch) == 0:
                    if not several:  # where one process alone may look, the others do not wait
                        log.check(trained)
                    with log.stopped():
                        observe(step, hints)
                        trained.train()
                heard = heard or interrupted.is_set() or (stop is not None and stop())
                # Several stop together; asking each other takes time.
                stopped = heard if not several else step % _ASK == 0 and parallel.agreed(heard)
                save = directory is not None and (step % checkpoint_every == 0 or last or stopped)
                if save or last:
                    log.check(trained)
                if step % log_every == 0 or last:
                    row = log.row(step, batch, step / steps_an_epoch, float(scheduler.get_last_lr()[0]), ramp)
                    bar.set_postfix(loss=f"{row['loss']:.3f}", images_s=f"{row['images_per_s']:.0f}")
                if save and directory is not None:
                    write = state.saving(directory, step, log, beside is not None)
                    if leader and beside is not None:
                        beside.add(write)
                    elif leader:
                        write()
                if stopped:
                    raise KeyboardInterrupt(f"{name} stopped at step {step} of {steps}")
        if shard is not None:
            shard.give_back()
    trained.eval()
    head.eval()
    done = [0.0, *(row["step"] for row in log.rows)]
    seconds = sum(
        (after - before) * batch / row["images_per_s"]
        for row, (before, after) in zip(log.rows, itertools.pairwise(done), strict=True)
    )
    return Fitted(log.rows, hints, seconds)


def _losses(
    trained: nn.ModuleDict,
    head: Head | parallel.Shard,
    student: Callable[[Tensor], Output],
    teacher: Teacher | None,
    ask: Callable[[Tensor], Output] | None,
    terms: Sequence[Term],
    options: Options,
    shown: Callable[[Tensor], Tensor],
    hr: Tensor,
    labels: Tensor,
    chosen: Tensor | None,
    ramp: float,
    told: Output | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The weighted losses (1 + terms,), identity first, and the share of right labels (1,).

    student, ask: the networks' forward passes. told: what the teacher says, where that is known already.
    """
    side = options.side
    if side is not None:
        enlarge = trained["network"].size != side
        lr = degrade(hr, side, preset=options.preset, generator=generator, enlarge=enlarge)
    seen = hr if side is None else lr
    if teacher is not None and teacher.itself:
        s, t = _halves(student(shown(torch.cat([seen, hr]))))
        embedding, answers = torch.cat([s.embedding, t.embedding]), labels.repeat(2)
    else:
        s = student(shown(seen))
        embedding, answers = s.embedding, labels
    if isinstance(head, parallel.Shard):
        identity, right = head(embedding, answers, ramp)
    else:
        logits = head(embedding, answers, ramp=ramp)
        identity = F.cross_entropy(logits.float(), answers)
        right = (logits.detach().argmax(1) == answers).float().mean()
    losses = [identity]
    if teacher is not None and ask is not None:
        if not teacher.itself:
            with torch.no_grad():
                sharp = seen if teacher.low else hr.roll(1, 0) if teacher.shuffled else hr
                t = ask(shown(sharp)) if told is None else told
        views = _views(trained, head, teacher, s, t, labels, chosen)
        with torch.autocast(hr.device.type, enabled=False):
            losses += [term.weight * term.function(*map(_float, views)) for term in terms]
    return torch.stack(losses), right[None]


def _halves(out: Output) -> tuple[Output, Output]:
    """What a network says of the first and of the second half of a batch."""

    def part(rows: slice) -> Output:
        return Output(out.embedding[rows], *(tuple(x[rows] for x in maps) for maps in out[1:]))

    middle = len(out.embedding) // 2
    return part(slice(middle)), part(slice(middle, None))


def _views(
    trained: nn.ModuleDict,
    head: Head | parallel.Shard,
    teacher: Teacher,
    s: Output,
    t: Output,
    labels: Tensor,
    chosen: Tensor | None,
) -> tuple[View, View]:
    """What the terms see of student and teacher; logits are empty where processes share the classes."""
    plain = target = labels.new_empty(0)
    if not isinstance(head, parallel.Shard):
        with torch.autocast(labels.device.type, enabled=False):  # bfloat16 would round a logit of 30 to an eighth
            with torch.no_grad():
                if teacher.head is not None and len(t.embedding):
                    target = cosine_logits(t.embedding.float(), teacher.head.weight, teacher.head.scale)
            plain = cosine_logits(s.embedding.float(), head.weight, head.scale)
    hinted = trained["hints"](s.features) if "hints" in trained else s.features
    return (
        View(s.embedding, s.features, hinted, s.channel, s.spatial, plain, labels),
        View(t.embedding, t.features, t.features, t.channel, t.spatial, target, labels, chosen),
    )


def _known(
    trained: nn.ModuleDict,
    teacher: Teacher,
    terms: Sequence[Term],
    images: Callable[[Tensor], Tensor],
    count: int,
    options: Options,
    shown: Callable[[Tensor], Tensor],
    device: torch.device,
    batch: int,
) -> Callable[[Tensor, Tensor | None], Output] | None:
    """`device.said_once` of the teacher, for what the terms read of it; None where that is too much to keep."""
    network, head = cast(Network, trained["network"]), cast("Head | parallel.Shard", trained["head"])

    def answer(x: Tensor) -> Output:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
            out: Output = teacher.network(shown(x))
        return out

    trained.eval()
    with torch.no_grad():  # two images are enough to see which fields are read
        x = images(torch.arange(2))
        small = x if network.size == x.shape[-1] else F.interpolate(x, (network.size, network.size))
        labels = torch.zeros(2, dtype=torch.int64, device=device)
        some = None if teacher.chosen is None else teacher.chosen[:2].to(device)
        views = _views(trained, head, teacher, network(shown(small)), teacher.network(shown(x)), labels, some)
        fields = fields_read([term.function for term in terms], *map(_float, views))
    trained.train()
    fields = {{"hinted": "features", "logits": "embedding"}.get(name, name) for name in fields}
    room = torch.cuda.mem_get_info(device)[0] / 3 if device.type == "cuda" else _RESIDENT_BYTES
    found = said_once(answer, images, count, fields, options.mirror, room, batch)
    if found is None or not teacher.shuffled:
        return found
    return lambda index, flip: found(index.roll(1), None if flip is None else flip.roll(1))


def _place(module: nn.Module, device: torch.device, memory: torch.memory_format) -> nn.Module:
    return module.to(device).to(memory_format=memory)  # type: ignore[call-overload]  # torch's stubs leave it out


def _float(view: View) -> View:
    """The same view in float32: distances of bfloat16 tensors would lose what they measure."""

    def cast(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(cast(item) for item in x)
        return x.float() if x is not None and x.is_floating_point() else x

    return View(*(cast(tuple(item) if isinstance(item, Sequence) else item) for item in view))


def _draw(count: int, options: Options, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
    """Which of `count` images are mirrored (count,) and how far each is shifted (count,2), from a CPU generator."""
    flip = torch.rand(count, generator=generator) < 0.5 if options.mirror else None
    if not options.shift:
        return flip, None
    return flip, torch.randint(-options.shift, options.shift + 1, (2, count), generator=generator).T


def _augment(hr: Tensor, flip: Tensor | None, shift: Tensor | None) -> Tensor:
    """Mirrored (B,) and shifted (B,2) images, (B,3,H,W) -> the same shape."""
    size = hr.shape[-1]
    if flip is not None:
        hr = torch.where(sent(flip, hr.device)[:, None, None, None], hr.flip(3), hr)
    if shift is not None:
        drawn = sent(shift.T[..., None], hr.device)
        rows, columns = (torch.arange(size, device=hr.device) + drawn).clamp(0, size - 1)
        each = torch.arange(len(hr), device=hr.device)[:, None, None]
        hr = hr.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return hr


def _stream(seed: int, step: int) -> int:
    """The seed of this process's random degradations in a step, its own among those that train together."""
    return int(np.random.SeedSequence([seed, step, parallel.rank()]).generate_state(1)[0])


def _labels(faces: Images, head: Head) -> Tensor:
    """The labels of all images; DataError for one that the head has no class for, which a GPU would not say."""
    labels = torch.from_numpy(np.asarray(faces.labels))
    if (largest := int(labels.max())) >= head.classes:
        raise DataError(
            f"label {largest} does not fit a head of {head.classes} classes: labels are 0 to {head.classes - 1}"
        )
    return labels


# After how many steps processes that train together ask each other whether to stop.
_ASK = 10
# Images of more bytes than this stay where they lie when a CPU trains on them.
_RESIDENT_BYTES = 2e9


def _fits(faces: Images, device: torch.device, share: float = 0.3) -> bool:
    """Whether all images take less than that share of the device's free memory (2 GB on a CPU)."""
    room = share * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _RESIDENT_BYTES
    return math.prod(faces.images.shape) < room


def _resident(faces: Images, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from indices to float images (B,3,H,W) in [0,1] on the device.

    All images are put on the device once where they fit; otherwise each batch is read from where it lies.
    """
    if _fits(faces, device):
        everything = torch.from_numpy(np.array(faces.images[:])).to(device).permute(0, 3, 1, 2)
        return lambda index: everything[sent(index, device)].float() / 255

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


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names, the second of a kind as "feature-2"."""
    seen = (names[: k + 1].count(name) for k, name in enumerate(names))
    return [name if nth == 1 else f"{name}-{nth}" for name, nth in zip(names, seen, strict=True)]


# The columns of metrics.csv beside the losses by their names.
COLUMNS = ("step", "epoch", "lr", "ramp", "loss", "train_accuracy", "images_per_s")


class _Log:
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
            together = parallel.summed(torch.stack([value for _, value in self._pending])) / parallel.size()
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
        if trained is not None and not _finite(trained):
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


def _finite(module: nn.Module) -> bool:
    """Whether all weights and buffers are, in every process."""
    tensors = [x for x in module.state_dict().values() if x.is_floating_point()]
    return not parallel.agreed(not bool(torch.stack([x.isfinite().all() for x in tensors]).all()))


def _fingerprint(
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
    if parallel.size() > 1:
        parts["processes"] = [parallel.size(), speed.sync_norm, head.classes >= speed.shard]
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
        shard: parallel.Shard | None = None,
    ) -> None:
        self.trained, self.optimizer, self.scheduler = trained, optimizer, scheduler
        self.generator, self.fingerprint, self.device, self.shard = generator, fingerprint, device, shard

    def saving(self, directory: Path, step: int, log: _Log, later: bool) -> Callable[[], None]:
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

    def load(self, path: Path, log: _Log) -> int:
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
