"""One `fit` for teachers and students, on a CPU or a GPU, with checkpoints that resume to the bit on a CPU.

A network whose own size is the LR side is shown LR images as they are; any other, LR images at HR size. A row of
metrics.csv has the means over the steps since the row before it. With `Execution.directory` a state.pt that is there is
resumed: on a CPU, with the same number of threads, rows and weights end bit-identical to those of a run that was never
stopped. Ctrl-C saves first and ends in KeyboardInterrupt.

Processes that `lrkd.training.distributed.init_distributed` has joined train together: each takes its part of every
batch and draws its own random degradations; the first writes.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lrkd.data.datasets import as_faces
from lrkd.distill.parts import check as check_parts
from lrkd.errors import ConfigError
from lrkd.models.backbones import Hints
from lrkd.models.heads import Head
from lrkd.models.layers import Network
from lrkd.progress import bar as progress_bar
from lrkd.training import distributed
from lrkd.training.acceleration import LONG, Writer, cudnn_benchmark
from lrkd.training.batches import Batches, Images
from lrkd.training.checkpoint import Checkpoint, fingerprint
from lrkd.training.execution import Execution
from lrkd.training.log import Log
from lrkd.training.partial_classes import Shard
from lrkd.training.schedule import Options, Schedule, threads
from lrkd.training.step import Teacher, TrainingStep, memory_format, move_to
from lrkd.training.teacher_cache import stored_answers


@dataclass(frozen=True)
class Fitted:
    """What `fit` leaves beside the trained network.

    Attributes:
        rows: Those of metrics.csv.
        hints: The hint layers, where a term has some.
        seconds: How long the steps took.
    """

    rows: list[dict[str, float]]
    hints: Hints | None
    seconds: float


# After how many steps processes that train together ask each other whether to stop.
_ASK = 10


def fit(
    network: Network,
    head: Head,
    faces: Images | DataLoader | Dataset,
    schedule: Schedule,
    options: Options | None = None,
    teacher: Teacher | None = None,
    execution: Execution | None = None,
) -> Fitted:
    """Train network and head in place on `faces`; options default to `Options()`, execution to `Execution()`.

    A `Dataset` of (image, label), or the one of a `DataLoader`, is read as `lrkd.data.datasets.DatasetFaces`; order
    and batches are those of `schedule` and the seed.

    Raises:
        ConfigError: What was given does not fit together.
        DataError: The head has no class for a label.
        TrainingError: A loss is not finite (with step and term), or an update leaves weights that are not; the
            checkpoint before stays.
        RunError: state.pt is of a run with other data, networks, head, teacher or settings, or cannot be written.
    """
    faces, options, how = cast(Images, as_faces(faces)), options or Options(), execution or Execution()
    _check(network, head, faces, schedule, teacher, how)
    device, speed = torch.device(how.device), how.speed
    made_of = fingerprint(network, head, faces, schedule, options, teacher, how) if how.directory else ""
    with ExitStack() as stack:
        interrupted = stack.enter_context(_computing(device, options, how.seed))
        trained = _on_device(network, head, teacher, options, how)
        stack.enter_context(distributed.sync_batch_norm(trained, speed.sync_norm))
        batches = Batches(faces, head, schedule.batch, how.seed, device)
        step = TrainingStep(trained, teacher, schedule, options, how, batches.per_epoch)
        log = Log(["identity", *(term.name for term in (teacher.terms if teacher else ()))], schedule.batch, how.on_row)
        writer = stack.enter_context(Writer()) if speed.uses("async_checkpoint", device) else None
        checkpoint = Checkpoint(how.directory, step, made_of, writer) if how.directory else None

        start, steps, heard = checkpoint.resume(log) if checkpoint else 0, step.steps, False
        pays = steps - start >= LONG and not speed.sync_norm
        step.start(
            batches,
            stored_answers(step.losses, batches, speed),
            compiled=speed.uses("compile", device, pays),
            recorded=device.type == "cuda" and distributed.world_size() == 1 and speed.uses("graph", device),
        )

        feed = batches.read(start, steps, speed.uses("prefetch", device, not batches.resident))
        shown = how.progress and distributed.rank() == 0
        bar = progress_bar(total=steps, initial=start, desc=how.name, unit="step", shown=shown, leave=False)
        stack.enter_context(bar)
        hints = cast("Hints | None", trained["hints"] if "hints" in trained else None)  # noqa: SIM401
        log.start()
        for done, (index, images) in enumerate(feed, start + 1):
            log.add(done, step(done - 1, index, images))
            bar.update()
            if how.observe is not None and done % (how.observe_every or batches.per_epoch) == 0:
                if distributed.world_size() == 1:  # where one process alone may look, the others do not wait
                    log.check(trained)
                with log.stopped():
                    how.observe(done, hints)
                    trained.train()
            heard = heard or interrupted.is_set() or (how.stop is not None and how.stop())
            stopped = _all_stop(heard, done)
            save = checkpoint is not None and (done % how.checkpoint_every == 0 or done == steps or stopped)
            if save or done == steps:
                log.check(trained)
            if done % how.log_every == 0 or done == steps:
                rate = float(step.scheduler.get_last_lr()[0])
                row = log.row(done, done / batches.per_epoch, rate, step.ramp(done - 1))
                bar.set_postfix(loss=f"{row['loss']:.3f}", images_s=f"{row['images_per_s']:.0f}")
            if save and checkpoint is not None:
                checkpoint.save(done, log)
            if stopped:
                raise KeyboardInterrupt(f"{how.name} stopped at step {done} of {steps}")
        if isinstance(trained["head"], Shard):
            trained["head"].give_back()
    trained.eval()
    head.eval()
    return Fitted(log.rows, hints, log.seconds)


def _check(
    network: Network, head: Head, faces: Images, schedule: Schedule, teacher: Teacher | None, how: Execution
) -> None:
    """Raise ConfigError for what does not fit together, before anything is computed."""
    if not hasattr(faces, "labels"):
        raise ConfigError(
            f"faces: expected a Dataset of (image, label) or a table of faces, got {type(faces).__name__}"
        )
    if not hasattr(network, "embedding"):  # a backbone of one's own need be no class of ours
        kind = type(network).__name__
        raise ConfigError(f"network: expected a Network, got {kind}: `lrkd.models.wrap.wrap` makes one of any module")
    if not hasattr(head, "classes"):
        raise ConfigError(f"head: expected one of `lrkd.models.heads.build`, got {type(head).__name__}")
    if head.weight.shape[1] != network.embedding:
        raise ConfigError(
            f"head: expected one for embeddings of {network.embedding} numbers, as the network's are, got one for "
            f"{head.weight.shape[1]}"
        )
    count = len(faces.labels)
    if count < schedule.batch:
        raise ConfigError(f"batch: expected at most {count}, the number of training images, got {schedule.batch}")
    if teacher is None:
        return
    if not teacher.terms:
        raise ConfigError("teacher: expected at least one term, got none")
    check_parts(teacher.terms, teacher.network, teacher.head)
    check_parts(teacher.terms, network, head, role="student")
    if teacher.chosen is not None and tuple(teacher.chosen.shape) != (count,):
        raise ConfigError(f"teacher.chosen: expected shape ({count},), got {tuple(teacher.chosen.shape)}")
    if _shares_classes(head, how) and any(term.name == "logits" for term in teacher.terms):
        raise ConfigError(
            f"terms: expected none on logits where processes share the classes (from {how.speed.shard} on), got "
            f"'logits' with {head.classes} classes"
        )


def _shares_classes(head: Head, how: Execution) -> bool:
    return distributed.world_size() > 1 and head.classes >= how.speed.shard


def _on_device(
    network: Network, head: Head, teacher: Teacher | None, options: Options, how: Execution
) -> nn.ModuleDict:
    """Put everything on the device; -> what is trained: "network", "head", and "hints" where a term asks for them."""
    device, memory = torch.device(how.device), memory_format(options)
    trained = nn.ModuleDict({"network": network, "head": Shard(head) if _shares_classes(head, how) else head})
    if teacher is not None and any(term.hint for term in teacher.terms):
        trained["hints"] = Hints(network.widths, teacher.network.widths, seed=how.seed)
    move_to(trained, device, memory).train()
    if teacher is not None and not teacher.itself:
        for module in (teacher.network, teacher.head):
            if module is not None:
                move_to(module, device, memory).eval()
    return trained


def _all_stop(heard: bool, done: int) -> bool:
    """Whether to stop: several processes stop together, and ask each other now and then, as that takes time."""
    return heard if distributed.world_size() == 1 else done % _ASK == 0 and distributed.any_process(heard)


@contextmanager
def _computing(device: torch.device, options: Options, seed: int) -> Iterator[threading.Event]:
    """Compute as a run does, reproducibly; the event is set by Ctrl-C."""
    on_gpu = device.type == "cuda"
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if on_gpu else []))
        stack.enter_context(threads(options.threads))
        if on_gpu:
            stack.enter_context(cudnn_benchmark())
            torch.cuda.empty_cache()  # of a run before, as it is asked how much memory is free
        # Only dropout draws from the global generator; the first process's travels in the checkpoint.
        torch.manual_seed(seed + 1_000_003 * distributed.rank())
        yield stack.enter_context(_deferred_interrupt())


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
