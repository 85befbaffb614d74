"""Grids of (method, side, seed) -> runs, several at a time -> results tables."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from lrkd import userfile
from lrkd.errors import ConfigError, RunError, TrainingError
from lrkd.progress import bar as progress_bar
from lrkd.study import store
from lrkd.study.experiment import device_of, find_run, store_dir, train
from lrkd.study.results import results_table
from lrkd.study.spec import Spec, config_hash, run_name
from lrkd.training.acceleration import Speed


def run_study(
    wanted: Sequence[Spec],
    where: Path | None = None,
    *,
    workers: "int | Workers | None" = None,
    device: str | None = None,
    progress: bool = True,
    on_table: Callable[[pd.DataFrame], None] | None = None,
    known: pd.DataFrame | None = None,
    stop: Callable[[], bool] | None = None,
    speed: Speed | None = None,
) -> pd.DataFrame:
    """Train what the store lacks and return the results table.

    Any number of calls may share a store and divide its runs: each is trained once. Ctrl-C stops after the current step
    of each run, and the next call goes on there. A run that diverges has a row with status "diverged".

    Args:
        wanted: The runs, in the order in which to train them; those that they need come before them.
        where: The run store; default: `store_dir()`.
        workers: Processes that train at a time; default: one a core on a CPU (a run there uses one thread), one on a
            GPU. With more than one, a term's function must be of a module or a user's file, which they can import.
            Several studies one after the other may share `Workers`.
        device: Such as "cpu" or "cuda:0"; default: a GPU where there is one.
        progress: Whether to show a bar.
        on_table: Called with the table so far after every run, or after several where it takes longer than a tenth of
            the time between two, and at the end.
        known: An earlier table, perhaps of another machine; a run that has rows there is not trained, and they stay.
        stop: Asked after every step; True saves each run and returns the table so far.
        speed: How runs are computed; default: as `lrkd.study.experiment.train` chooses.

    Returns:
        One row a run and protocol.

    Raises:
        TrainingError: A teacher diverged.
        RunError: A worker process died.
    """
    where, device = store_dir(where), device_of(device)
    if isinstance(workers, int) and workers < 1:
        raise ConfigError(f"workers: expected at least 1, got {workers}")
    there = set() if known is None else set(known["config"])
    missing = [spec for spec in wanted if config_hash(spec) not in there and not find_run(spec, where).finished]
    if workers is None:
        workers = 1 if device.startswith("cuda") else os.cpu_count() or 1
    bar = progress_bar(total=len(missing), desc="runs", unit="run", shown=progress and bool(missing), smoothing=0)
    how, pause, written = _How(where, device, stop or (lambda: False), speed), 0.0, False
    with bar:
        for spec in _trained(missing, workers, how, progress):
            bar.update()
            bar.set_postfix_str(run_name(spec))
            written = on_table is not None and (now := time.monotonic()) >= pause
            if on_table is not None and written:
                on_table(results_table(wanted, where, known))
                pause = time.monotonic() + 9 * (time.monotonic() - now)
    table = results_table(wanted, where, known)
    if on_table is not None and not written:
        on_table(table)
    return table


def over_after(minutes: float | None) -> Callable[[], bool]:
    """Make a `stop` for `run_study` that says True once so many minutes have passed; None: never."""
    if minutes is None:
        return lambda: False
    if not minutes > 0:
        raise ConfigError(f"budget: expected minutes above zero, got {minutes:g}")
    end = time.monotonic() + 60 * minutes
    return lambda: time.monotonic() > end


# glibc hands freed memory back to the kernel and asks for it again, thousands of pages a step. Kept, and in huge pages
# where there are some, a step on a CPU takes about a tenth less time, and computes the same bits.
_KEEP_MEMORY = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=4294967296"


_PAUSE = 1.0  # seconds between two looks at runs that are all in the hands of other processes


class _How(NamedTuple):
    """What all runs of a study have in common, as `run_study` has it."""

    where: Path
    device: str
    stop: Callable[[], bool]
    speed: Speed | None


class Workers:
    """Processes that train runs, for one study or several; they start with the first run.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        os.environ.setdefault("GLIBC_TUNABLES", _KEEP_MEMORY)  # read by the workers when they start
        context = multiprocessing.get_context("spawn")
        self.count, self._event = count, context.Event()
        self._pool = ProcessPoolExecutor(count, context, _start_worker, (self._event, userfile.LoadedFiles()))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        if kind is not None:
            self.stop()
        self._pool.shutdown(cancel_futures=True)

    def submit(self, spec: Spec, how: _How) -> "Future[bool]":
        """Start a run where a process is free; whether it has finished is what comes of it."""
        with _uninterrupted():
            return self._pool.submit(_train_quietly, spec, how._replace(stop=_told_to_stop), False)

    def stop(self) -> None:
        """Let each process save after its current step, and take no run any more."""
        self._event.set()


def _trained(missing: Sequence[Spec], workers: "int | Workers", how: _How, progress: bool) -> Iterator[Spec]:
    """The specs as their runs finish, until `stop` says so.

    They start in the given order, but for those that wait for another and those that another process is training, which
    go to the end.
    """
    if not missing:
        return
    if isinstance(workers, Workers):
        yield from _trained_by(workers, missing, how)
    elif min(workers, len(missing)) == 1:
        yield from _trained_here(missing, how, progress)
    else:
        with Workers(min(workers, len(missing))) as own:
            yield from _trained_by(own, missing, how)


def _trained_here(missing: Sequence[Spec], how: _How, progress: bool) -> Iterator[Spec]:
    """By this process."""
    waiting, refused = list(missing), 0  # refused: how many runs in a row were in other hands
    while waiting and not how.stop():
        spec = waiting.pop(0)
        if _train_quietly(spec, how, progress):
            refused = 0
            yield spec
            continue
        waiting.append(spec)
        refused += 1
        if refused >= len(waiting):
            time.sleep(_PAUSE)
            refused = 0


def _trained_by(workers: Workers, missing: Sequence[Spec], how: _How) -> Iterator[Spec]:
    """By worker processes."""
    _check_sendable(missing)
    waiting, refused = list(missing), 0
    running: dict[Future[bool], Spec] = {}
    try:
        while running or (waiting and not how.stop()):
            ready = _ready(waiting, running.values(), how.where) if len(running) < workers.count else []
            if how.stop():
                workers.stop()
                ready = []
            elif ready and refused >= len(ready):
                time.sleep(_PAUSE)
                refused = 0
            while ready and len(running) < workers.count:
                waiting.remove(ready[0])
                running[workers.submit(ready[0], how)] = ready[0]
                ready = _ready(waiting, running.values(), how.where)
            for future in wait(running, _PAUSE, FIRST_COMPLETED).done:
                spec = running.pop(future)
                if future.result():
                    refused = 0
                    yield spec
                else:
                    refused += 1
                    waiting.append(spec)
    except (BrokenProcessPool, torch.OutOfMemoryError) as error:
        raise RunError(
            "a worker process died, perhaps for want of memory; the same command goes on (fewer workers need less)"
        ) from error


def _check_sendable(missing: Sequence[Spec]) -> None:
    """Raise ConfigError for a method that no other process can be sent."""
    try:
        pickle.dumps(missing)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise ConfigError(
            f"a method cannot be sent to a worker ({error}): define its functions in a module, or take workers=1"
        ) from error


def _ready(waiting: Collection[Spec], running: Collection[Spec], where: Path) -> list[Spec]:
    """Those that need no run of either list, nor one that a running student has to train first.

    Teachers of two lengths have one name, so it is their hashes that count.
    """
    needed = [need for spec in running for need in spec.needs.values() if not find_run(need, where).finished]
    unfinished = {config_hash(spec) for spec in (*waiting, *running, *needed)}
    return [spec for spec in waiting if unfinished.isdisjoint(map(config_hash, spec.needs.values()))]


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block has ended; a process that starts in it never sees one, not in its first instruction.

    A process inherits what is blocked, but no handler. Another thread may take the signal all the same: hence both.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
        if noted:
            signal.raise_signal(signal.SIGINT)


_stop: Any = None


def _start_worker(event: Any, files: userfile.LoadedFiles) -> None:
    """Workers leave Ctrl-C to the process that started them, which tells them by the event.

    files: unpickling them has loaded the users' files, in which methods may be defined.
    """
    global _stop
    _stop = event
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_the_study, daemon=True).start()


def _leave_with_the_study() -> None:
    """A worker whose study was killed would wait for its next run for ever; the run that it has resumes elsewhere."""
    if study := multiprocessing.parent_process():
        study.join()
        os._exit(1)


def _told_to_stop() -> bool:
    """Whether the study has told this worker to stop."""
    return bool(_stop.is_set())


def _train_quietly(spec: Spec, how: _How, progress: bool) -> bool:
    """Train one run; whether it has finished, and was neither stopped nor in the hands of another process.

    Its divergence is kept as its result and stops nothing, but for a teacher's.
    """
    if how.stop():
        return False
    try:
        train(spec, how.where, device=how.device, progress=progress, stop=how.stop, wait=False, speed=how.speed)
    except TrainingError:
        if spec.role == "teacher" or not find_run(spec, how.where).finished:  # not finished: it was its teacher's
            raise
    except store.Busy:
        return False
    except KeyboardInterrupt:
        if how.stop():
            return False
        raise
    return True
