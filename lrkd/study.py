"""Grids of (method, side, seed) -> runs, several at a time -> results tables."""

import base64
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lrkd import files, methods, race, runs, stats
from lrkd.errors import ConfigError, DataError, RunError, TrainingError
from lrkd.experiment import (
    PROCEDURAL,
    Spec,
    config,
    device_of,
    evaluation_preset,
    find_run,
    key,
    load,
    pairs_of,
    rows,
    run_name,
    selection,
    source_name,
    splits,
    store,
    teacher_spec,
    train,
)
from lrkd.files import Table, atomic
from lrkd.scales import DESIGNS, SCALES, Scale, scale

# A page imports `study` alone: what it needs of one run and of the scales stands here too.
__all__ = [
    "AIRD_METHODS",
    "COMPARED",
    "DESIGNS",
    "LIVE_METHODS",
    "PHOTO_METHODS",
    "PROCEDURAL",
    "SCALES",
    "STUDIES",
    "TRAINED_KERNELS",
    "Scale",
    "Spec",
    "at_scales",
    "config",
    "device_of",
    "evaluation_preset",
    "find_run",
    "gains",
    "gains_at_scales",
    "key",
    "load",
    "over_after",
    "pair_table",
    "pairs_of",
    "read_table",
    "run_study",
    "scale",
    "score_table",
    "selection",
    "small_images",
    "specs",
    "splits",
    "store",
    "table",
    "teacher_spec",
    "trace_table",
    "train",
    "winners",
    "write_table",
]

RESULTS = ("config", "method", "side", "seed", "protocol", "accuracy")
ORIGIN = ("scale", "device", "commit")
# The tables of `lrkd study`: results, whether each pair was right, traces, and histograms of scores.
RUNS = Table("lrkd study", ("config",), RESULTS)
PAIRS = Table("lrkd study --pairs", ("config",), ("config", "correct"))
TRACES = Table("lrkd study --traces", ("config",), ("config", "method", "seed", "step", "accuracy"))
SCORES = Table(
    "lrkd study --scores",
    ("data", "scale", "role", "method", "side", "protocol", "design", "preset"),
    ("data", "method", "side", "protocol", "low", "high", "genuine", "impostor", "runs"),
    most="runs",
)
LIVE_METHODS = ("none", "fskd", "fskd-l2", "askd", "embedding-cos")
PHOTO_METHODS = ("none", "fskd", "askd", "embedding-cos")
DEEP_METHODS = ("none", "fskd", "askd", "askd-centred", "embedding-cos", "fskd-l2")
ATTENTION_METHODS = ("none", "askd", "askd-centred", "askd-constant", "fskd")
# Weights of the ladder in units of the matched one, the middle first: what is stopped has looked near the optimum.
RUNGS = (1.0, 0.25, 4.0, 16.0, 64.0, 256.0)
LADDER_SEED = 100  # of `relations` too
# The ablations of AIRD stay out of `core`, and so do those that came with `lrkd.answer`.
COMPARED = tuple(
    name
    for name, method in methods.METHODS.items()
    if method.start is None and not name.startswith("aird-") and name not in methods.OF_WORLDS
)
AIRD_METHODS = ("none", "fskd", "askd", "embedding-cos", *(name for name in methods.METHODS if "aird" in name))
TRAINED_KERNELS = ("area-bicubic", "fskd", "askd-compat", "askd-isotropic")
INSTANCE, RELATION, RKD = (5.0, 20.0, 80.0), (1.0, 4.0, 16.0), (2.5, 10.0)
PRIMARY = ("cosine", "lp(2)")
EXPLORATORY = ("lp(1.5)", "lp(3)", "lp(4)")  # in no hypothesis: last
CONFIRMING_SEEDS = range(10, 16)
# The small student. DESIGN: of those within half a point (seeds differ by more) of the best that fits .15 MB, the one
# with the fewest multiply-adds, by study `designs` on validation people. With 512 numbers, which nobody has compared
# yet, it does not fit: LARGE_DESIGN is the largest that does. Between these two weights lies skd-all's.
SMALL_SIDE, SMALL_SIDES = 16, (6, 8, 12, 16, 24, 32)
DESIGN, LARGE_DESIGN = "plain-s", "mobile-m"
CHOOSING_SEEDS = (100, 101)
FRACTIONS, BETAS = (0.1, 0.25, 0.5, 0.75), (0.03, 0.3, 1.0)
REGRESSION_WEIGHTS = (5.0, 80.0)
CONFIRMING_TEACHERS = (2, 3)


def _core(scale: Scale, source: str) -> list[Spec]:
    """Every method of one stage, every side, 6 seeds over 2 teachers, the hardest side first.

    Of photographs four methods at the hardest side, and what resolution costs; all else too, after these, at scale gpu.
    """
    hardest, others = scale.sides[-1], (None, *scale.sides[:-1])
    if source == PROCEDURAL:
        grid = _grid(COMPARED, (hardest,), 6) + _grid(COMPARED, scale.sides[-2::-1], 6)
        grid += _grid(("none",), (None,), 6)
    else:
        grid = _grid(PHOTO_METHODS, (hardest,), 6) + _grid(("none",), others, 3)
        if scale.name == "gpu":
            grid += _grid(COMPARED, (hardest,), 6) + _grid(("none",), (None,), 6)
            grid += _grid(COMPARED, scale.sides[-2::-1], 6)
            grid = list(dict.fromkeys(grid))
    return [
        *(teacher_spec(scale, seed, source) for seed in range(2)),
        *(Spec(methods.get(name), side, seed, scale, source, teacher_seed=seed % 2) for name, side, seed in grid),
    ]


def _book(scale: Scale, source: str) -> list[Spec]:
    """What the book trains while it is built: five methods at the hardest side, no distillation at the others."""
    grid = _grid(LIVE_METHODS, scale.sides[-1:], 3) + _grid(("none",), (None, *scale.sides[:-1]), 3)
    return [
        teacher_spec(scale, 0, source),
        *(Spec(methods.get(name), side, seed, scale, source) for name, side, seed in grid),
    ]


def _deep(scale: Scale, source: str) -> list[Spec]:
    """The papers' methods, their controls and the L2 of F-SKD, the hardest side first: 3 seeds over 2 teachers."""
    return [
        *(teacher_spec(scale, seed, source) for seed in range(2)),
        *(
            Spec(methods.METHODS[name], side, seed, scale, source, seed % 2)
            for name, side, seed in _grid(DEEP_METHODS, scale.sides[::-1], 3)
        ),
    ]


def _grid(names: Iterable[str], sides: Iterable[int | None], seeds: int) -> list[tuple[str, int | None, int]]:
    """Side by side, seed by seed: a study that is stopped has compared all methods on the seeds that it has."""
    return [(name, side, seed) for side, seed, name in itertools.product(sides, range(seeds), names)]


def _attention(scale: Scale, source: str) -> list[Spec]:
    """The runs of `core` whose attention is looked at: 6 seeds at the hardest side, 3 at the others."""

    def wanted(spec: Spec) -> bool:
        seeds = 6 if spec.side == scale.sides[-1] else 3
        return spec.side is not None and spec.method.name in ATTENTION_METHODS and spec.seed < seeds

    return [spec for spec in _core(scale, source) if spec.role == "teacher" or wanted(spec)]


def _ladder(scale: Scale, source: str) -> list[Spec]:
    """Every distance of `methods.RACE` at RUNGS times its matched weight, at the hardest side, for validation."""
    return [
        teacher_spec(scale, 0, source),
        *(
            Spec(methods.weighed(name, float(f"{rung * weight:.3g}")), scale.sides[-1], LADDER_SEED, scale, source)
            for rung in RUNGS
            for name, (_, weight) in methods.RACE.items()
        ),
    ]


def _hypotheses(scale: Scale, source: str, ladder: pd.DataFrame | None = None) -> list[Spec]:
    """The runs that judge book/hypotheses.md, at the hardest side, with seeds and teachers that nothing was chosen on.

    6 seeds of none, of each distance at the weight that its ladder chose, and of A-SKD with its two controls, each with
    one of two teachers; cosine and lp(2), which are the primary comparison, with both. All but A-SKD's leave traces.
    """
    if ladder is None:
        raise ConfigError("study hypotheses takes its weights from study ladder: give its table by --ladder")
    raced = [methods.METHODS["none"], *(methods.weighed(name, weight) for name, weight in winners(ladder).items())]
    attentive = [methods.METHODS[name] for name in ("askd", "askd-centred", "askd-constant")]
    wanted = [teacher_spec(scale, teacher, source) for teacher in CONFIRMING_TEACHERS]
    for seed, method in itertools.product(CONFIRMING_SEEDS, (*raced, *attentive)):
        own = CONFIRMING_TEACHERS[seed % 2]
        crossed = method.name.partition("@")[0] in PRIMARY
        looks = 12 if method in raced else 0
        wanted += [
            Spec(method, scale.sides[-1], seed, scale, source, teacher, observations=looks)
            for teacher in CONFIRMING_TEACHERS
            if teacher == own or crossed
        ]
    return sorted(wanted, key=lambda spec: spec.method.name.partition("@")[0] in EXPLORATORY)


def winners(ladder: pd.DataFrame) -> dict[str, float]:
    """The weight of each distance of `methods.RACE` whose validation accuracy is highest in the ladder's table.

    A run that diverged loses. Raises DataError where a distance of the race has no finished run in the table.
    """
    chosen = race.brackets(race.rungs(ladder)).dropna(subset="weight").set_index("distance")["weight"]
    if missing := set(methods.RACE) - set(chosen.index):
        raise DataError(
            f"ladder: has no validation row of {', '.join(sorted(missing))}: finish `lrkd study ladder` first"
        )
    return {name: float(chosen[name]) for name in methods.RACE}


def _relations(scale: Scale, source: str) -> list[Spec]:
    """AIRD and its ablations at several weights, at the hardest side, for validation."""
    weights = [(instance, weight, 0.0) for instance in (0.0, *INSTANCE) for weight in (0.0, *RELATION)][1:]
    weights += [(instance, 0.0, weight) for instance in INSTANCE for weight in RKD]
    return [
        teacher_spec(scale, 0, source),
        *(
            Spec(method, scale.sides[-1], LADDER_SEED, scale, source)
            for method in (methods.METHODS["none"], *(methods.aird(*each) for each in weights))
        ),
    ]


def _aird(scale: Scale, source: str) -> list[Spec]:
    """AIRD, its ablations and what it is held against at the hardest side: 6 seeds over 2 teachers, for test people."""
    return [
        *(teacher_spec(scale, seed, source) for seed in range(2)),
        *(
            Spec(methods.METHODS[name], side, seed, scale, source, seed % 2)
            for name, side, seed in _grid(AIRD_METHODS, scale.sides[-1:], 6)
        ),
    ]


def _kernels(scale: Scale, source: str) -> list[Spec]:
    """Students without a teacher at the hardest side, each trained with one of `TRAINED_KERNELS`: 3 seeds."""
    none = methods.METHODS["none"]
    return [
        Spec(none, scale.sides[-1], seed, scale, source, preset=preset)
        for seed in range(3)
        for preset in TRAINED_KERNELS
    ]


def _small(scale: Scale) -> str:
    """The small student's design, whose embedding is as long as the scale's teacher's."""
    return DESIGN if scale.embedding < 512 else LARGE_DESIGN


def _designs(scale: Scale, source: str) -> list[Spec]:
    """Every design of the small student without a teacher, for validation; the chosen one at other sides too."""
    none = methods.METHODS["none"]
    return [
        Spec(none, side, seed, scale, source, design=design)
        for seed in CHOOSING_SEEDS
        for design, side in (
            *((design, SMALL_SIDE) for design in DESIGNS),
            *((_small(scale), side) for side in SMALL_SIDES if side != SMALL_SIDE and side <= scale.size),
        )
    ]


def _fractions(scale: Scale, source: str) -> list[Spec]:
    """SKD's regression at several weights, its choice at several fractions and betas, for validation.

    A fraction is tried at two weights: the usual one, at which the regression as a whole weighs what it weighs on all
    images, and that times the fraction, at which each chosen image does.
    """
    usual, half = methods.SKD_WEIGHT, FRACTIONS[len(FRACTIONS) // 2 :]
    chosen = [methods.skd(None, weight) for weight in REGRESSION_WEIGHTS]
    for fraction in FRACTIONS:
        choices = [methods.Choice(kind, fraction) for kind in ("graph", "top", "random")]
        chosen += [methods.skd(choice, weight) for choice in choices for weight in (usual, usual * fraction)]
    chosen += [methods.skd(methods.Choice("graph", fraction, beta)) for fraction in half for beta in BETAS]
    others = [methods.METHODS[name] for name in ("none", "skd-none", "skd-all")]
    return [
        teacher_spec(scale, 0, source),
        *(
            Spec(method, SMALL_SIDE, seed, scale, source, design=_small(scale))
            for seed in CHOOSING_SEEDS
            for method in (*others, *chosen)
        ),
    ]


def _selection(scale: Scale, source: str) -> list[Spec]:
    """SKD and its controls at the chosen fraction: 6 seeds over 2 teachers, for test people."""
    names = ("none", *(name for name in methods.METHODS if name.startswith("skd")))
    return [
        *(teacher_spec(scale, seed, source) for seed in range(2)),
        *(
            Spec(methods.METHODS[name], SMALL_SIDE, seed, scale, source, seed % 2, design=_small(scale))
            for seed in range(6)
            for name in names
        ),
    ]


STUDIES: dict[str, Callable[..., list[Spec]]] = {
    "core": _core,
    "book": _book,
    "deep": _deep,
    "attention": _attention,
    "ladder": _ladder,
    "hypotheses": _hypotheses,
    "relations": _relations,
    "aird": _aird,
    "kernels": _kernels,
    "designs": _designs,
    "fractions": _fractions,
    "selection": _selection,
}


def specs(name: str, scale: Scale, source: str = PROCEDURAL, ladder: pd.DataFrame | None = None) -> list[Spec]:
    """The runs of a named study, teachers first. ladder: results of study `ladder`, which `hypotheses` needs."""
    if name not in STUDIES:
        raise ConfigError(f"study is {name!r}: the studies are {', '.join(STUDIES)}")
    return STUDIES[name](scale, source, ladder) if name == "hypotheses" else STUDIES[name](scale, source)


def run_study(
    wanted: Sequence[Spec],
    where: Path | None = None,
    *,
    workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
    on_table: Callable[[pd.DataFrame], None] | None = None,
    known: pd.DataFrame | None = None,
    stop: Callable[[], bool] | None = None,
) -> pd.DataFrame:
    """Train what the store lacks and return the results table, one row a run and protocol.

    known: an earlier table, perhaps of another machine; a run that has rows there is not trained, and they are kept.

    workers: processes that train at a time; None takes one a core on a CPU (a run there uses one thread) and one on a
    GPU. With more than one, a term's function must be of a module that a new process can import. Any number of calls
    may share a store and divide its runs: each is trained once. Ctrl-C stops after the current step of each run, and
    the next call goes on there; when `stop`, asked after every step, returns True, the same happens and the table so
    far is returned. on_table is called with the table so far after every run. A run that diverges has a row with status
    "diverged"; a teacher that does is a TrainingError.
    """
    where, device = store(where), device_of(device)
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}: at least 1 is needed")
    there = set() if known is None else set(known["config"])
    missing = [spec for spec in wanted if key(spec) not in there and not find_run(spec, where).finished]
    if workers is None:
        workers = 1 if device.startswith("cuda") else os.cpu_count() or 1
    bar = tqdm(
        total=len(missing),
        desc="runs",
        unit="run",
        disable=not (progress and missing) or bool(os.environ.get("TQDM_DISABLE")),
        smoothing=0,
    )
    with bar:
        for spec in _trained(missing, where, workers, device, progress, stop or (lambda: False)):
            bar.update()
            bar.set_postfix_str(run_name(spec))
            if on_table is not None:
                on_table(table(wanted, where, known))
    return table(wanted, where, known)


def over_after(minutes: float | None) -> Callable[[], bool]:
    """A `stop` for `run_study` that says True once so many minutes have passed; None: never. ConfigError below zero."""
    if minutes is None:
        return lambda: False
    if not minutes > 0:
        raise ConfigError(f"budget is {minutes:g}: minutes above zero are right")
    end = time.monotonic() + 60 * minutes
    return lambda: time.monotonic() > end


# glibc hands freed memory back to the kernel and asks for it again, thousands of pages a step. Kept, and in huge pages
# where there are some, a step on a CPU takes about a tenth less time, and computes the same bits.
_KEEP_MEMORY = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=4294967296"


_PAUSE = 1.0  # seconds between two looks at runs that are all in the hands of other processes


def _trained(
    missing: Sequence[Spec], where: Path, workers: int, device: str, progress: bool, stop: Callable[[], bool]
) -> Iterator[Spec]:
    """The specs as their runs finish, until `stop` says so.

    They start in the given order, but for those that wait for another and those that another process is training, which
    go to the end.
    """
    workers = min(workers, len(missing))
    waiting, refused = list(missing), 0  # refused: how many runs in a row were in other hands
    if workers <= 1:
        while waiting and not stop():
            spec = waiting.pop(0)
            if _train_quietly(spec, where, device, progress, stop):
                refused = 0
                yield spec
                continue
            waiting.append(spec)
            refused += 1
            if refused >= len(waiting):
                time.sleep(_PAUSE)
                refused = 0
        return
    try:
        pickle.dumps(missing)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise ConfigError(
            f"a method cannot be sent to a worker ({error}): define its functions in a module, or take workers=1"
        ) from error
    os.environ.setdefault("GLIBC_TUNABLES", _KEEP_MEMORY)  # read by the workers when they start
    context = multiprocessing.get_context("spawn")
    event = context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (event,))
    running: dict[Future[bool], Spec] = {}
    try:
        while running or (waiting and not stop()):
            unfinished = {run_name(spec) for spec in (*waiting, *running.values())}
            ready = [spec for spec in waiting if unfinished.isdisjoint(map(run_name, spec.needs.values()))]
            if stop():
                event.set()
                ready = []
            elif ready and refused >= len(ready):
                time.sleep(_PAUSE)
                refused = 0
            for spec in ready[: workers - len(running)]:
                waiting.remove(spec)
                with _uninterrupted():
                    running[pool.submit(_train_quietly, spec, where, device, False)] = spec
            for future in wait(running, _PAUSE, FIRST_COMPLETED).done:
                spec = running.pop(future)
                if future.result():
                    refused = 0
                    yield spec
                else:
                    refused += 1
                    waiting.append(spec)
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process died, perhaps for want of memory; the same command goes on (fewer workers need less)"
        ) from error
    except BaseException:
        event.set()  # each worker saves after its current step
        raise
    finally:
        pool.shutdown(cancel_futures=True)


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


def _start_worker(event: Any) -> None:
    """Workers leave Ctrl-C to the process that started them, which tells them by the event."""
    global _stop
    _stop = event
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_the_study, daemon=True).start()


def _leave_with_the_study() -> None:
    """A worker whose study was killed would wait for its next run for ever; the run that it has resumes elsewhere."""
    if study := multiprocessing.parent_process():
        study.join()
        os._exit(1)


def _train_quietly(
    spec: Spec, where: Path, device: str, progress: bool, stop: Callable[[], bool] | None = None
) -> bool:
    """Train one run; whether it has finished, and was neither stopped nor in the hands of another process.

    Its divergence is kept as its result and stops nothing, but for a teacher's. In a worker the study's event stops it.
    """
    over = stop or _stop.is_set
    if over():
        return False
    try:
        train(spec, where, device=device, progress=progress, stop=over, wait=False)
    except TrainingError:
        if spec.role == "teacher" or not find_run(spec, where).finished:  # not finished: it was its teacher's
            raise
    except runs.Busy:
        return False
    except KeyboardInterrupt:
        if over():
            return False
        raise
    return True


def without_test(frame: pd.DataFrame) -> pd.DataFrame:
    """A table for choosing: its rows of validation people, and those of runs that diverged."""
    return frame[(frame["protocol"] == "validation") | (frame["status"] != "ok")] if len(frame) else frame


def table(wanted: Sequence[Spec], where: Path | None = None, known: pd.DataFrame | None = None) -> pd.DataFrame:
    """The results table of those runs of the study that have finished, by an earlier table or in the store."""
    kept = {} if known is None else {str(name): part.to_dict("records") for name, part in known.groupby("config")}
    found = [(spec, find_run(spec, where)) for spec in wanted]
    return pd.DataFrame(
        row for spec, run in found for row in kept.get(key(spec)) or (rows(spec, run) if run.finished else ())
    )


def pair_table(wanted: Sequence[Spec], where: Path | None = None, known: pd.DataFrame | None = None) -> pd.DataFrame:
    """Whether each test pair was right, a row a run: -> `config, correct` (base64 of packed bits, in their order)."""

    def rows(spec: Spec, run: runs.Run) -> Iterator[dict[str, Any]]:
        bits = np.packbits(_scores(run)[1].astype(bool)).tobytes()
        yield {"config": key(spec), "correct": base64.b64encode(bits).decode()}

    return _collected(wanted, where, known, rows)


def trace_table(wanted: Sequence[Spec], where: Path | None = None, known: pd.DataFrame | None = None) -> pd.DataFrame:
    """What runs with observations saw: -> `config, method, seed, teacher_seed` and the columns of trace.csv."""

    def rows(spec: Spec, run: runs.Run) -> Iterator[dict[str, Any]]:
        who = {"config": key(spec), "method": spec.method.name, "seed": spec.seed, "teacher_seed": spec.teacher_seed}
        if spec.observations:
            yield from (who | row for row in files.read_table(run.path / "trace.csv").to_dict("records"))

    return _collected(wanted, where, known, rows)


def _collected(
    wanted: Sequence[Spec],
    where: Path | None,
    known: pd.DataFrame | None,
    rows: Callable[[Spec, runs.Run], Iterator[dict[str, Any]]],
) -> pd.DataFrame:
    """Rows of the store's runs that ended well, and an earlier table's rows of runs that the store lacks."""
    kept = {} if known is None else {str(name): part.to_dict("records") for name, part in known.groupby("config")}
    table: list[dict[str, Any]] = []
    for spec in wanted:
        run = find_run(spec, where)
        table += rows(spec, run) if run.finished and run.result["status"] == "ok" else kept.get(key(spec), ())
    return pd.DataFrame(table)


def _scores(run: runs.Run) -> np.ndarray:
    """The run's scores.npy, (4,P) as `evaluate` returned it."""
    try:
        scores: np.ndarray = np.load(run.path / "scores.npy", allow_pickle=False)
        return scores
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{run.path / 'scores.npy'}: cannot be read ({error}); remove the run directory") from error


def read_table(path: Path | str, columns: Sequence[str] = RESULTS) -> pd.DataFrame:
    """A table of `lrkd study` with at least these columns; DataError when it is none."""
    return files.read_table(path, columns, "lrkd study")


def score_table(wanted: Sequence[Spec], where: Path | None = None, bins: int = 50) -> pd.DataFrame:
    """Test scores of the finished runs as histograms over [-1,1], pooled over seeds: genuine and impostor pairs.

    One row a role, method, side, protocol ("test", "test-hr-lr") and bin, with the number of runs pooled; also by
    design and preset where any run has another than the usual one.
    """
    edges = np.linspace(-1, 1, bins + 1)
    counts: dict[tuple[Any, ...], np.ndarray] = {}
    for spec in wanted:
        run = find_run(spec, where)
        if not run.finished or run.result["status"] != "ok":
            continue
        same = pairs_of(splits(spec.scale, spec.source).test).same
        scores = _scores(run)
        side = spec.scale.size if spec.side is None else spec.side
        for protocol, values in (("test", scores[0]), ("test-hr-lr", scores[2])):
            found = [np.histogram(values[kind].clip(-1, 1), edges)[0] for kind in (same, ~same)]
            preset = "" if spec.preset == Spec.preset else spec.preset
            key = (source_name(spec), spec.scale.name, spec.role, spec.method.name, side, protocol, spec.design, preset)
            counts[key] = counts.get(key, 0) + np.stack([*found, np.ones(bins, np.int64)])
    names = ("data", "scale", "role", "method", "side", "protocol", "design", "preset")
    table = pd.concat(
        [
            pd.DataFrame(
                {
                    **dict(zip(names, key, strict=True)),
                    "low": edges[:-1],
                    "high": edges[1:],
                    "genuine": genuine,
                    "impostor": impostor,
                    "runs": number,
                }
            )
            for key, (genuine, impostor, number) in counts.items()
        ]
        or [pd.DataFrame()],
        ignore_index=True,
    )
    usual = [name for name in names[-2:] if name in table and table[name].eq("").all()]
    return table.drop(columns=usual)


def at_scales(*names: str, folder: Path = Path("results")) -> tuple[dict[str, pd.DataFrame], str]:
    """The tables `NAME.csv` and `gpu-NAME.csv` of the folder that are there, and what to say of those of scale gpu.

    A key names file and scale, as a title does: "gpu-core.csv, scale gpu". The sentences name runs, device and commit,
    or the command that would write what is not measured yet.
    """
    files = [folder / f"{start}{name}.csv" for start in ("", "gpu-") for name in names]
    tables, said, missing = {}, [], [file for file in files[len(names) :] if not file.exists()]
    for file in filter(Path.exists, files):
        table = read_table(file, ("config", *ORIGIN))
        scales, *where = (", ".join(map(str, table[of].dropna().unique())) for of in ORIGIN)
        tables[f"{file.name}, scale {scales}"] = table
        if file in files[len(names) :]:
            runs = table["config"].nunique()
            said.append(f"book/results/{file.name}, {runs} runs on {where[0]}, commit {where[1]}")
    if missing:
        listed = ", ".join(f"book/results/{file.name}" for file in missing)
        said.append(f"not measured yet; on a GPU make gpu-results or lrkd study would write {listed}")
    return tables, f"At scale gpu (112 pixels): {'; '.join(said)}."


def gains(table: pd.DataFrame, baseline: str = "none") -> pd.DataFrame:
    """`stats.paired_differences` of the students on test people at the table's least side, where they have an interval.

    -> indexed by method: `side, mean, low, high, p, n`; no row while the baseline has none.
    """
    tested = table[(table["role"] == "student") & (table["protocol"] == "test")]
    hard = tested[tested["side"] == tested["side"].min()]
    if not hard.loc[hard["method"] == baseline, "accuracy"].notna().any():
        return pd.DataFrame(columns=["side", "mean", "low", "high", "p", "n"])
    found = stats.paired_differences(hard, baseline)
    return found[found["n"] > 1].set_index("method")


def tuned(name: str) -> bool:
    """Whether a method's weight was searched for in this study: AIRD's, SKD's, and those that bear it ("lp(2)@8")."""
    return "@" in name or name.startswith(("aird", "skd"))


def elsewhere(table: pd.DataFrame, couples: Iterable[tuple[str, str]] | None = None, baseline: str = "none") -> str:
    """What the other protocols say where small images meet small ones in a figure: a sentence, by the same table.

    couples: (method, baseline) to compare; by default all methods with `baseline`. At the least side; a weight in a
    method's name ("lp(2)@8") is left out. Unit: a seed, the mean over its teachers; 95 % t intervals, not corrected.
    """
    students = table[(table["role"] == "student") & (table["status"] == "ok")]
    students = students[students["side"] == students["side"].min()]
    students = students.assign(method=students["method"].str.partition("@")[0])
    told = []
    for title, protocol, value in (
        ("sharp against small", "test-hr-lr", "accuracy"),
        ("rank 1", "identification", "rank1"),
    ):
        part = students[students["protocol"] == protocol].groupby(["method", "seed"])[value].mean().unstack("method")
        wanted = [(name, baseline) for name in part if name != baseline] if couples is None else list(couples)
        both = [(part[a] - part[b]).dropna() for a, b in wanted if a in part and b in part]
        found = [stats.mean_interval(x) for x in both if len(x) > 1]
        above, below = sum(one.low > 0 for one in found), sum(one.high < 0 for one in found)
        told.append(f"{title} ({protocol}), {above} of {len(found)} above zero and {below} below")
    return f"By the same runs, with uncorrected intervals: {'; '.join(told)}."


def gains_at_scales(
    *names: str, baseline: str = "none", folder: Path = Path("results")
) -> tuple[dict[str, pd.DataFrame], str]:
    """`gains` of each of `at_scales` that has any, under its name and side; and what to say of those of scale gpu."""
    tables, said = at_scales(*names, folder=folder)
    found = {name: gains(table, baseline) for name, table in tables.items()}
    return {f"{name}, {part['side'].iloc[0]} px": part for name, part in found.items() if len(part)}, said


def small_images(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What resolution costs on test people: the HR teacher shown images of each side, and students trained at each.

    -> by what they are `side, mean, low, high, n` from the largest side down; the students have no teacher. Unit: a
    run; two teachers have no interval that says anything, and so none here.
    """
    tested = table[table["protocol"].str.fullmatch(r"test|test-at-\d+")]
    shown = tested["protocol"].str.extract(r"(\d+)")[0].astype(float).fillna(tested["side"]).astype(int)
    fed = stats.summarise(tested.assign(side=shown)[tested["role"] == "teacher"], ["side"])
    fed.loc[fed["n"] < 3, ["low", "high"]] = np.nan
    own = stats.summarise(tested[(tested["role"] == "student") & (tested["method"] == "none")], ["side"])
    parts = {"HR teacher, shown small images": fed, "trained at each size, no teacher": own}
    return {what: part.sort_values("side", ascending=False) for what, part in parts.items()}


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a results table as CSV, atomically; fractions with six digits."""
    with atomic(path) as file:
        file.write(files.table_text(frame))
