"""One `fit` for teachers and students, on a CPU or a GPU, with checkpoints that resume to the bit on a CPU."""

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from lrkd.data.degradation import to_device
from lrkd.distill.parts import check as check_parts
from lrkd.distill.terms import Term
from lrkd.errors import ConfigError
from lrkd.models.backbones import Hints
from lrkd.models.heads import Head
from lrkd.models.layers import Network, Output
from lrkd.models.wrap import Embeddings
from lrkd.training import distributed
from lrkd.training.acceleration import LONG, Speed, Writer, compiled, forget_compiled, in_advance, quick_convolutions
from lrkd.training.checkpoint import CheckpointState, fingerprint
from lrkd.training.log import COLUMNS, Log, distinct_names
from lrkd.training.schedule import Options, Schedule, make_scheduler, threads
from lrkd.training.step import (
    Images,
    Teacher,
    augment,
    cache_teacher,
    checked_labels,
    draw_augmentation,
    fits_on_device,
    move_to,
    normalise,
    resident_images,
    step_losses,
    stream_seed,
)


@dataclass(frozen=True)
class Fitted:
    """What `fit` leaves beside the trained network: the rows of metrics.csv, the hint layers (or None), the seconds."""

    rows: list[dict[str, float]]
    hints: Hints | None
    seconds: float


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
    made_of = ""
    if directory is not None:
        made_of = fingerprint(network, head, faces, schedule, options, speed, teacher, terms, seed)
    device, share = torch.device(device), distributed.part(batch)
    leader, several = distributed.rank() == 0, distributed.size() > 1
    devices = [device] if device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(threads(options.threads))
        interrupted = stack.enter_context(_deferred_interrupt())
        if devices:
            stack.enter_context(quick_convolutions())
            torch.cuda.empty_cache()  # of a run before: `_fits` and `_known` ask how much is free
        # Only dropout draws from the global generator; the first process's travels in the checkpoint.
        torch.manual_seed(seed + 1_000_003 * distributed.rank())
        generator = torch.Generator().manual_seed(seed)
        memory = torch.channels_last if options.channels_last else torch.contiguous_format
        shared = several and head.classes >= speed.shard
        if shared and any(term.name == "logits" for term in terms):
            raise ConfigError(f"logits of {head.classes} classes are not distilled where processes share the classes")
        shard = distributed.Shard(head) if shared else None
        trained = nn.ModuleDict({"network": network, "head": shard or head})
        hints = None
        if any(term.hint for term in terms) and teacher is not None:
            trained["hints"] = hints = Hints(network.widths, teacher.network.widths, seed=seed)
        move_to(trained, device, memory).train()
        stack.enter_context(distributed.synchronised(trained, speed.sync_norm))
        if teacher is not None and not teacher.itself:
            move_to(teacher.network, device, memory).eval()
            if teacher.head is not None:
                move_to(teacher.head, device, memory).eval()
        optimizer = torch.optim.SGD(
            trained.parameters(),
            lr=schedule.lr,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            nesterov=True,
            fused=speed.uses("fused", device),
        )
        scheduler = make_scheduler(optimizer, schedule, steps, steps_an_epoch)
        state = CheckpointState(trained, optimizer, scheduler, generator, made_of, device, shard)
        beside = stack.enter_context(Writer()) if speed.uses("beside", device) else None
        log, step = Log(distinct_names([*COLUMNS, "identity", *(term.name for term in terms)])[len(COLUMNS) :]), 0
        # What the first process sees: it may have written the file itself just now, and the others not see it yet.
        if directory is not None and distributed.first((directory / "state.pt").exists()):
            step = state.load(directory / "state.pt", log)
        ahead = speed.uses("ahead", device, not fits_on_device(faces, device))
        images = resident_images(faces, device)
        labels = checked_labels(faces, head).to(device)
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
            known = cache_teacher(trained, teacher, terms, images, count, options, shown, device, len(example))
        if speed.uses("compiled", device, steps - step >= LONG and not speed.sync_norm):
            x = images(example)
            small = x if network.size == x.shape[-1] else F.interpolate(x, (network.size, network.size))
            forget_compiled()
            student = compiled(network, shown(small), amp)
            if teacher is not None and known is None and not teacher.itself:
                ask = compiled(teacher.network, shown(x), amp)
        losses = distributed.together(
            trained,
            partial(step_losses, trained, shard or head, student, teacher, ask, terms, options, shown),
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
                flip, moved = (
                    None if drawn is None else drawn[share] for drawn in draw_augmentation(batch, options, generator)
                )
                hr = augment(x, flip, moved)
                here = to_device(index, device)
                y, picked = labels[here], None if chosen is None else chosen[here]
                ramp = min(1.0, step / (schedule.ramp * steps)) if schedule.ramp else 1.0
                told = None if known is None else known(here, None if flip is None else to_device(flip, device))
                own = torch.Generator().manual_seed(stream_seed(seed, step)) if several else generator
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
                stopped = heard if not several else step % _ASK == 0 and distributed.agreed(heard)
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


# After how many steps processes that train together ask each other whether to stop.
_ASK = 10


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
