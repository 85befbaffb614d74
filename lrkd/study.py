"""Grids of (method, side, seed) -> runs -> results tables; the scales that say how large everything is."""

import functools
import itertools
import multiprocessing
import os
import pickle
import platform
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrkd import data, heads, methods, models, runs, verify
from lrkd.degrade import PRESETS, degrade
from lrkd.distances import cosine
from lrkd.errors import ConfigError, DataError, RunError, TrainingError
from lrkd.methods import Method
from lrkd.runs import Run
from lrkd.train import FSKD_SCHEDULE, Options, Schedule, Teacher, fit, load_model, normalise, save_model, threads

PROCEDURAL = "procedural"


@dataclass(frozen=True)
class Recipe:
    """How a teacher and its students are trained on one kind of data."""

    teacher: Schedule
    student: Schedule
    shift: int = 0


@dataclass(frozen=True)
class Scale:
    """How large a study is: image size in pixels, LR sides, network, head, schedules, seeds.

    identities: of the procedural train, validation and test split; images: of each; pairs: of validation and test.
    recipes: for "procedural" and for "prepared" data.
    """

    name: str
    size: int
    sides: tuple[int, ...]
    model: str
    embedding: int
    head: Mapping[str, Any]
    identities: tuple[int, int, int]
    images: int
    pairs: tuple[int, int]
    recipes: Mapping[str, Recipe]
    options: Options = field(default_factory=Options)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    face: Mapping[str, Any] = field(default_factory=dict)


_COSFACE = {"name": "cosface", "scale": 16.0, "margin": 0.15}

SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(
            "smoke",
            size=24,
            sides=(12, 6, 3),
            model="small",
            embedding=32,
            head=_COSFACE,
            identities=(16, 8, 8),
            images=6,
            pairs=(40, 60),
            recipes={
                "procedural": Recipe(Schedule(1, batch=32, lr=0.05), Schedule(1, batch=32, lr=0.05)),
                "prepared": Recipe(Schedule(1, batch=8, lr=0.05), Schedule(1, batch=8, lr=0.05), shift=1),
            },
            options=Options(threads=1),
            model_options={"widths": (8, 8, 16, 16)},
        ),
        Scale(
            "cpu",
            size=48,
            sides=(24, 12, 6),
            model="small",
            embedding=128,
            head=_COSFACE,
            identities=(500, 100, 200),
            images=20,
            pairs=(3000, 6000),
            recipes={
                "procedural": Recipe(Schedule(7, batch=64, lr=0.15), Schedule(3, batch=64, lr=0.15)),
                "prepared": Recipe(Schedule(16), Schedule(16), shift=2),
            },
            options=Options(threads=1),
            # Little identity in the low frequencies: what 6 px destroy is what tells these people apart.
            face={"amplitudes": (0.4, 1.3, 1.5)},
        ),
        Scale(
            "gpu",
            size=112,
            sides=(56, 28, 14),
            model="iresnet18",
            embedding=512,
            head={"name": "cosface", "scale": 32.0, "margin": 0.4},
            identities=(10_000, 500, 500),
            images=20,
            pairs=(6000, 6000),
            recipes={
                "procedural": Recipe(Schedule(8, batch=256, lr=0.1), Schedule(6, batch=256, lr=0.1)),
                "prepared": Recipe(Schedule(40, batch=128, lr=0.1), Schedule(40, batch=128, lr=0.1), shift=4),
            },
            options=Options(precision="bfloat16"),
        ),
        Scale(
            "full",
            size=112,
            sides=(56, 28, 14),
            model="iresnet50",
            embedding=512,
            head={"name": "cosface", "scale": 32.0, "margin": 0.4},
            identities=(50_000, 1000, 1000),
            images=20,
            pairs=(6000, 6000),
            recipes={
                "procedural": Recipe(FSKD_SCHEDULE, FSKD_SCHEDULE),
                "prepared": Recipe(FSKD_SCHEDULE, FSKD_SCHEDULE, shift=4),
            },
            options=Options(precision="bfloat16"),
        ),
    )
}


def scale(name: str | None = None) -> Scale:
    """The scale of that name; None reads LRKD_SCALE, else takes gpu where CUDA is there and cpu where not."""
    name = name or os.environ.get("LRKD_SCALE") or ("gpu" if torch.cuda.is_available() else "cpu")
    if name not in SCALES:
        raise ConfigError(f"scale is {name!r}: the scales are {', '.join(SCALES)}")
    return SCALES[name]


def store(path: str | os.PathLike[str] | None = None) -> Path:
    """The run store: `path`, else the environment's LRKD_RUNS, else `runs` under the working directory."""
    return Path(path or os.environ.get("LRKD_RUNS") or "runs")


@dataclass(frozen=True)
class Spec:
    """One run of the study. side None is HR; teacher_seed tells teachers apart; role "teacher" takes its schedule."""

    method: Method
    side: int | tuple[int, ...] | None
    seed: int
    scale: Scale
    source: str = PROCEDURAL
    teacher_seed: int = 0
    role: str = "student"
    preset: str = "area-bicubic"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"preset is {self.preset!r}: the degradations are {', '.join(PRESETS)}")
        for name, seed in (("seed", self.seed), ("teacher-seed", self.teacher_seed)):
            if not isinstance(seed, int) or not 0 <= seed < 2**32:
                raise ConfigError(f"{name} is {seed}: a whole number from 0 to {2**32 - 1} is right")
        for side in (self.side if isinstance(self.side, tuple) else (self.side,)) if self.side is not None else ():
            if not isinstance(side, int) or not 1 <= side <= self.scale.size:
                raise ConfigError(
                    f"side is {side}: at scale {self.scale.name} it is from 1 to {self.scale.size} pixels "
                    f"(usual: {', '.join(map(str, self.scale.sides))}; leave it out for HR)"
                )

    @property
    def recipe(self) -> Recipe:
        return self.scale.recipes["procedural" if self.source == PROCEDURAL else "prepared"]

    @property
    def schedule(self) -> Schedule:
        return self.recipe.teacher if self.role == "teacher" else self.recipe.student

    @property
    def options(self) -> Options:
        return replace(self.scale.options, side=self.side, preset=self.preset, shift=self.recipe.shift)

    @property
    def teacher(self) -> "Spec | None":
        """The run that this one learns from."""
        if self.method.teacher in ("none", "random"):
            return None
        return teacher_spec(self.scale, self.teacher_seed, self.source)


def teacher_spec(scale: Scale, seed: int = 0, source: str = PROCEDURAL) -> Spec:
    """The HR teacher of that seed."""
    return Spec(methods.get("none"), None, seed, scale, source, role="teacher")


def splits(scale: Scale, source: str = PROCEDURAL) -> data.Splits:
    """The data of a scale: rendered faces, or the prepared folder `source`, brought to the scale's size."""
    return _splits(scale.name, str(source), os.environ.get("LRKD_CACHE"))


@functools.lru_cache(maxsize=2)
def _splits(name: str, source: str, cache: str | None) -> data.Splits:
    size = SCALES[name]
    if source == PROCEDURAL:
        return data.procedural(size.size, size.identities, size.images, size.pairs, face=dict(size.face))
    if not Path(source).is_dir():
        raise DataError(
            f"data is {source!r}: neither {PROCEDURAL!r} nor a prepared folder; `python -m data_prep` makes one"
        )
    return data.resized(data.prepared(source), size.size)


def config(spec: Spec) -> dict[str, Any]:
    """Everything that determines a run's weights and measures, in plain values: what the run store hashes."""
    faces = splits(spec.scale, spec.source)
    return {
        "role": spec.role,
        "scale": spec.scale.name,
        "method": spec.method.describe(),
        "side": spec.side,
        "preset": spec.preset,
        "seed": spec.seed,
        "teacher": None if spec.teacher is None else runs.digest(config(spec.teacher)),
        "teacher_seed": None if spec.method.teacher == "none" else spec.teacher_seed,
        "model": {
            "name": spec.scale.model,
            "size": spec.scale.size,
            "embedding": spec.scale.embedding,
            **spec.scale.model_options,
        },
        "head": dict(spec.scale.head),
        "schedule": asdict(spec.schedule),
        "options": asdict(spec.options),
        "data": {
            "source": source_name(spec),
            **{part: getattr(faces, part).digest for part in data.SPLITS},
        },
    }


def source_name(spec: Spec) -> str:
    """The data's own name, wherever its folder lies."""
    return splits(spec.scale, spec.source).train.name.split("/")[0]


def run_name(spec: Spec) -> str:
    """The readable part of a run's folder name."""
    sides = [spec.side] if not isinstance(spec.side, tuple) else spec.side
    where = "-".join("hr" if side is None else str(side) for side in sides)
    what = "teacher" if spec.role == "teacher" else spec.method.name
    taught = "" if spec.method.teacher == "none" else f"-t{spec.teacher_seed}"
    return f"{source_name(spec)}-{spec.scale.name}-{what}-{where}-s{spec.seed}{taught}"


def key(spec: Spec) -> str:
    """The hash of the run's configuration, which a results table has in its column `config`."""
    return runs.digest(config(spec))


def find_run(spec: Spec, where: Path | None = None) -> Run:
    """The spec's place in the store, whether anything is there or not."""
    return runs.find_run(store(where), run_name(spec), config(spec))


def train(
    spec: Spec,
    where: Path | None = None,
    *,
    device: str | None = None,
    progress: bool = True,
    checkpoint_every: int = 100,
    stop: Callable[[], bool] | None = None,
) -> Run:
    """The spec's run, from the store or trained now (its teacher first), evaluated on validation and test.

    Raises TrainingError for a run that diverged, now or at an earlier call: that is a result, and it is kept.
    """
    device = device_of(device)
    run = runs.open_run(store(where), run_name(spec), config(spec))
    if not run.finished:
        teacher = (
            None if spec.teacher is None else train(spec.teacher, where, device=device, progress=progress, stop=stop)
        )
        with run.lock(on_wait=lambda: tqdm.write(f"{run.path}: waiting for another process that trains this run")):
            if not run.finished:
                _train(spec, run, teacher, device, progress, checkpoint_every, stop)
    if run.result["status"] != "ok":
        raise TrainingError(f"{run.path}: {run.result['reason']}")
    return run


def _build(spec: Spec, seed: int, classes: int) -> tuple[models.IResNet, heads.Head]:
    scale = spec.scale
    network = models.build(
        scale.model, size=scale.size, embedding=scale.embedding, seed=seed, **dict(scale.model_options)
    )
    options = {key: value for key, value in scale.head.items() if key != "name"}
    return network, heads.build(scale.head["name"], classes, scale.embedding, seed=seed, **options)


def _train(
    spec: Spec,
    run: Run,
    teacher_run: Run | None,
    device: str,
    progress: bool,
    every: int,
    stop: Callable[[], bool] | None,
) -> None:
    faces = splits(spec.scale, spec.source)
    network, head = _build(spec, spec.seed, faces.train.classes)
    teacher = None
    if teacher_run is not None:
        teacher = Teacher(*load(teacher_run), shuffled=spec.method.teacher == "shuffled")
    elif spec.method.teacher == "random":
        teacher = Teacher(*_build(spec, 1000 + spec.teacher_seed, faces.train.classes))
    stamp = {"source": spec.source, "device": device_name(device), "torch": torch.__version__, "commit": commit()}
    try:
        fitted = fit(
            network,
            head,
            faces.train,
            schedule=spec.schedule,
            options=spec.options,
            teacher=teacher,
            terms=spec.method.terms,
            seed=spec.seed,
            device=device,
            directory=run.path,
            checkpoint_every=every,
            progress=progress,
            name=run_name(spec),
            stop=stop,
        )
        measures, scores = evaluate(spec, network, teacher, fitted.hints, device)
    except TrainingError as error:
        (run.path / "state.pt").unlink(missing_ok=True)
        runs.write_json(run.path / "result.json", {"status": "diverged", "reason": str(error), **stamp})
        return
    save_model(run.path / "model.safetensors", network, head, run.config)
    with runs.atomic(run.path / "scores.npy", "wb") as file:
        np.save(file, scores)
    result = {"status": "ok", "measures": measures, "seconds": fitted.seconds, **stamp}
    runs.write_json(run.path / "result.json", result)
    (run.path / "state.pt").unlink(missing_ok=True)


def load(run: Run) -> tuple[models.IResNet, heads.Head]:
    """Network and head of a finished run, in evaluation mode.

    Raises RunError for a run that has not finished or has diverged, and where the file does not fit its config.
    """
    if run.result["status"] != "ok":
        raise RunError(f"{run.path}: this run diverged and left no network ({run.result.get('reason')})")
    path = run.path / "model.safetensors"
    tensors, made = load_model(path)
    try:
        model = dict(made["model"])
        network = models.build(model.pop("name"), **model)
        parts = {
            part: {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{part}.")}
            for part in ("network", "head")
        }
        options = {key: value for key, value in made["head"].items() if key != "name"}
        head = heads.build(made["head"]["name"], len(parts["head"]["weight"]), network.embedding, **options)
        network.load_state_dict(parts["network"])
        head.load_state_dict(parts["head"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{path}: its tensors do not fit its config ({str(error).partition(chr(10))[0]})") from error
    return network.eval(), head.eval()


def evaluation_preset(preset: str) -> str:
    """The degradation to evaluate with: a preset that draws its kernels has a fixed one beside it (`fskd-test`)."""
    return f"{preset}-test" if f"{preset}-test" in PRESETS else preset


def evaluate(
    spec: Spec, network: models.IResNet, teacher: Teacher | None, hints: Any, device: str
) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Measures by protocol, and (4,P) float32 of the test pairs: LR-LR scores and correctness, HR-LR the same.

    Protocols: "validation" and "test" with both images at the run's side, "test-hr-lr" with the left image HR,
    "identification" with an HR gallery of each test person's first image and LR probes of the rest; for a teacher also
    "test-at-24" and so on, both images at a side that it was not trained for.
    """
    faces = splits(spec.scale, spec.source)
    side = max(spec.side) if isinstance(spec.side, tuple) else spec.side
    preset = evaluation_preset(spec.preset)

    def features(part: data.Faces, at: int | None) -> np.ndarray:
        amp = torch.bfloat16 if spec.options.precision == "bfloat16" else None
        with threads(spec.options.threads):
            return verify.embed(
                network, part.images, side=at, preset=preset, device=device, amp=amp, channels_last=True
            )

    def verification(a: np.ndarray, b: np.ndarray, pairs: data.Pairs) -> tuple[verify.Verification, dict[str, float]]:
        found = verify.kfold_verification(a[pairs.left], b[pairs.right], pairs.same, pairs.fold)
        if np.ptp(found.scores) == 0:
            raise TrainingError("all embeddings are the same: the network has collapsed; lower the learning rate")
        rates = verify.tar_at_far(found.scores, pairs.same, (0.1, 0.01, 0.001))
        return found, {
            "accuracy": found.mean,
            "tar_at_far_1e-1": float(rates[0]),
            "tar_at_far_1e-2": float(rates[1]),
            "tar_at_far_1e-3": float(rates[2]),
            "eer": verify.eer(found.scores, pairs.same),
            "d_prime": verify.d_prime(found.scores, pairs.same),
        }

    low = features(faces.test, side)
    high = low if side is None else features(faces.test, None)
    pairs = pairs_of(faces.test)
    both, test = verification(low, low, pairs)
    mixed, cross = verification(high, low, pairs)
    tuned = features(faces.validation, side)
    _, validation = verification(tuned, tuned, pairs_of(faces.validation))
    first = np.unique(faces.test.labels, return_index=True)[1]
    rest = np.setdiff1d(np.arange(len(faces.test.labels)), first)
    ranks = verify.rank_k(high[first], faces.test.labels[first], low[rest], faces.test.labels[rest], (1, 5))
    measures = {
        "validation": validation,
        "test": test,
        "test-hr-lr": cross,
        "identification": {"rank1": float(ranks[0]), "rank5": float(ranks[1])},
    }
    if spec.role == "teacher":
        for at in spec.scale.sides:
            fed = features(faces.test, at)
            measures[f"test-at-{at}"] = verification(fed, fed, pairs)[1]
    if teacher is not None:
        measures["test"] |= agreement(network, teacher.network, hints, faces.test.images, side, preset, device)
    return measures, np.stack([both.scores, both.correct, mixed.scores, mixed.correct]).astype(np.float32)


def pairs_of(faces: data.Faces) -> data.Pairs:
    """The table's pairs; DataError where it has none."""
    if faces.pairs is None:
        raise DataError(f"{faces.name}: has no verification pairs")
    return faces.pairs


def agreement(
    network: models.IResNet,
    teacher: models.IResNet,
    hints: Any,
    images: Any,
    side: int | None,
    preset: str,
    device: str,
    count: int = 512,
) -> dict[str, float]:
    """Mean cosine of student and teacher on `count` evenly spaced images: features (hinted), maps, embedding."""
    index = np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)
    x = torch.from_numpy(np.ascontiguousarray(images[index])).to(device).permute(0, 3, 1, 2).float() / 255
    y = x if side is None else degrade(x, side, preset=preset, generator=torch.Generator().manual_seed(0))

    def mean(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
        return float(torch.stack([(1 - cosine(s, t)).mean() for s, t in zip(a, b, strict=True)]).mean())

    with torch.inference_mode():
        s, t = network.eval()(normalise(y)), teacher.eval()(normalise(x))
        mapped = s.features if hints is None else hints.eval()(s.features)
        return {
            "cosine_features": mean(mapped, t.features),
            "cosine_attention": mean([*s.channel, *s.spatial], [*t.channel, *t.spatial]),
            "cosine_embedding": mean([s.embedding], [t.embedding]),
        }


def rows(spec: Spec, run: Run) -> Iterator[dict[str, Any]]:
    """The run's rows of a results table: one a protocol, each with where it comes from. A diverged run has one."""
    result = run.result
    teacher = None if spec.method.teacher == "none" else spec.teacher_seed
    known = {
        "data": run.config["data"]["source"],
        "scale": spec.scale.name,
        "role": spec.role,
        "method": spec.method.name,
        "side": spec.scale.size if spec.side is None else spec.side,
        "seed": spec.seed,
        "teacher_seed": teacher,
        "status": result["status"],
    }
    source = {
        "seconds": result.get("seconds"),
        "device": result["device"],
        "torch": result["torch"],
        "commit": result["commit"],
        "config": run.path.name.rsplit("-", 1)[1],
    }
    for protocol, measures in result.get("measures", {"test": {}}).items():
        yield {**known, "protocol": protocol, **{name: measures.get(name) for name in MEASURES}, **source}


MEASURES = (
    "accuracy",
    "tar_at_far_1e-1",
    "tar_at_far_1e-2",
    "tar_at_far_1e-3",
    "eer",
    "d_prime",
    "rank1",
    "rank5",
    "cosine_features",
    "cosine_attention",
    "cosine_embedding",
)

LIVE_METHODS = ("none", "fskd", "fskd-l2", "askd", "embedding-cos")
PHOTO_METHODS = ("none", "fskd", "askd", "embedding-cos")


def _core(scale: Scale, source: str) -> list[Spec]:
    """Every method, every side, 6 seeds over 2 teachers, the strongest degradation first; photographs: four methods."""
    hardest, others = scale.sides[-1], (None, *scale.sides[:-1])
    if source == PROCEDURAL:
        grid = _grid(methods.METHODS, (hardest,), 6) + _grid(methods.METHODS, scale.sides[-2::-1], 6)
        grid += _grid(("none",), (None,), 6)
    else:
        grid = _grid(PHOTO_METHODS, (hardest,), 6) + _grid(("none",), others, 3)
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


def _grid(names: Iterable[str], sides: Iterable[int | None], seeds: int) -> list[tuple[str, int | None, int]]:
    """Side by side, seed by seed: a study that is stopped has compared all methods on the seeds that it has."""
    return [(name, side, seed) for side, seed, name in itertools.product(sides, range(seeds), names)]


STUDIES: dict[str, Callable[[Scale, str], list[Spec]]] = {"core": _core, "book": _book}


def specs(name: str, scale: Scale, source: str = PROCEDURAL) -> list[Spec]:
    """The runs of a named study, teachers first."""
    if name not in STUDIES:
        raise ConfigError(f"study is {name!r}: the studies are {', '.join(STUDIES)}")
    return STUDIES[name](scale, source)


def run_study(
    wanted: Sequence[Spec],
    where: Path | None = None,
    *,
    workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
    on_table: Callable[[pd.DataFrame], None] | None = None,
    known: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Train what the store lacks and return the results table, one row a run and protocol.

    known: an earlier table, perhaps of another machine; a run that has rows there is not trained, and they are kept.

    workers: processes that train at a time; None takes one a core on a CPU (a run there uses one thread) and one on a
    GPU. With more than one, a term's function must be of a module that a new process can import. Any number of calls
    may share a store: a run is trained once. Ctrl-C stops after the current step of each run, and the next call goes on
    there. on_table is called with the table so far after every run. A run that diverges has a row with status
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
        for spec in _trained(missing, where, workers, device, progress):
            bar.update()
            bar.set_postfix_str(run_name(spec))
            if on_table is not None:
                on_table(table(wanted, where, known))
    return table(wanted, where, known)


def _trained(missing: Sequence[Spec], where: Path, workers: int, device: str, progress: bool) -> Iterator[Spec]:
    """The specs as their runs finish. They start in the given order, but for those whose teacher is being trained."""
    workers = min(workers, len(missing))
    if workers <= 1:
        for spec in missing:
            _train_quietly(spec, where, device, progress)
            yield spec
        return
    try:
        pickle.dumps(missing)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise ConfigError(
            f"a method cannot be sent to a worker ({error}): define its functions in a module, or take workers=1"
        ) from error
    context = multiprocessing.get_context("spawn")
    event = context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (event,))
    waiting, running = list(missing), dict[Future[None], Spec]()
    try:
        while waiting or running:
            unfinished = {run_name(spec) for spec in (*waiting, *running.values())}
            ready = [spec for spec in waiting if spec.teacher is None or run_name(spec.teacher) not in unfinished]
            for spec in ready[: workers - len(running)]:
                waiting.remove(spec)
                with _uninterrupted():
                    running[pool.submit(_train_quietly, spec, where, device, False)] = spec
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                yield running.pop(future)
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
    """Ctrl-C is ignored in the block, and by processes that start there from their first instruction on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_stop: Any = None


def _start_worker(event: Any) -> None:
    """Workers leave Ctrl-C to the process that started them, which tells them by the event."""
    global _stop
    _stop = event
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _train_quietly(spec: Spec, where: Path, device: str, progress: bool) -> None:
    """Train one run; its divergence is kept as its result and stops nothing, but for a teacher's."""
    if _stop is not None and _stop.is_set():
        return
    try:
        train(spec, where, device=device, progress=progress, stop=None if _stop is None else _stop.is_set)
    except TrainingError:
        if spec.role == "teacher" or not find_run(spec, where).finished:  # not finished: it was its teacher's
            raise
    except KeyboardInterrupt:
        if _stop is None:
            raise


def table(wanted: Sequence[Spec], where: Path | None = None, known: pd.DataFrame | None = None) -> pd.DataFrame:
    """The results table of those runs of the study that have finished, by an earlier table or in the store."""
    kept = {} if known is None else {str(name): part.to_dict("records") for name, part in known.groupby("config")}
    found = [(spec, find_run(spec, where)) for spec in wanted]
    return pd.DataFrame(
        row for spec, run in found for row in kept.get(key(spec)) or (rows(spec, run) if run.finished else ())
    )


def read_table(path: Path) -> pd.DataFrame:
    """A results table that `write_table` wrote; DataError when it is none."""
    try:
        frame = pd.read_csv(path, dtype={"config": str, "commit": str})
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a results table ({error})") from error
    if missing := {"config", "method", "side", "seed", "protocol", "accuracy"} - set(frame):
        raise DataError(f"{path}: is no results table of `lrkd study`: it has no column {', '.join(sorted(missing))}")
    return frame


def score_table(wanted: Sequence[Spec], where: Path | None = None, bins: int = 50) -> pd.DataFrame:
    """Test scores of the finished runs as histograms over [-1,1], pooled over seeds: genuine and impostor pairs.

    One row a role, method, side, protocol ("test", "test-hr-lr") and bin, with the number of runs pooled.
    """
    edges = np.linspace(-1, 1, bins + 1)
    counts: dict[tuple[Any, ...], np.ndarray] = {}
    for spec in wanted:
        run = find_run(spec, where)
        if not run.finished or run.result["status"] != "ok":
            continue
        same = pairs_of(splits(spec.scale, spec.source).test).same
        try:
            scores = np.load(run.path / "scores.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"{run.path / 'scores.npy'}: cannot be read ({error}); remove the run directory") from error
        side = spec.scale.size if spec.side is None else spec.side
        for protocol, values in (("test", scores[0]), ("test-hr-lr", scores[2])):
            found = [np.histogram(values[kind].clip(-1, 1), edges)[0] for kind in (same, ~same)]
            key = (source_name(spec), spec.scale.name, spec.role, spec.method.name, side, protocol)
            counts[key] = counts.get(key, 0) + np.stack([*found, np.ones(bins, np.int64)])
    names = ("data", "scale", "role", "method", "side", "protocol")
    return pd.concat(
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


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a results table as CSV, atomically; fractions with six digits."""
    with runs.atomic(path) as file:
        frame.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")


@functools.lru_cache
def commit() -> str:
    """The short commit of the source tree, with "+" when lrkd/ has changes, or "unknown" outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device_of(name: str | None = None) -> str:
    """The device of that name; None is CUDA where it is there, else the CPU. ConfigError for one that is not there."""
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    name = name or ("cuda" if "cuda" in there else "cpu")
    if name not in there:
        raise ConfigError(f"device is {name!r}: this machine has {', '.join(there)}")
    return name


def device_name(device: str) -> str:
    """What computes: the GPU's name, or the CPU's model."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
