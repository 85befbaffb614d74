"""One run of the study: a spec -> its configuration -> trained, evaluated and stored."""

import functools
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrkd import files, userfile
from lrkd.data import tables
from lrkd.distill import methods
from lrkd.distill.selection import Selection, check_packages, graph, select_count, unaries
from lrkd.errors import ConfigError, DataError, RunError, TrainingError, first_line
from lrkd.models import heads, layers
from lrkd.models.saved import load_model, load_network, part_of, save_model
from lrkd.models.wrap import Embeddings, Maps
from lrkd.study import information, networks, teaching
from lrkd.study import store as run_store
from lrkd.study.measures import RIGHT, evaluate, evaluate_in_world, observation
from lrkd.study.spec import PROCEDURAL, Spec, faces_of, run_config, run_name, splits
from lrkd.study.store import Run
from lrkd.training import distributed
from lrkd.training.acceleration import Speed
from lrkd.training.execution import Execution
from lrkd.training.loop import fit
from lrkd.training.step import Teacher
from lrkd.training.watch import check_logs, watching


def store_dir(path: str | os.PathLike[str] | None = None) -> Path:
    """Return the run store: `path`, else the environment's LRKD_RUNS, else `runs` under the working directory."""
    return Path(path or os.environ.get("LRKD_RUNS") or "runs")


def find_run(spec: Spec, where: Path | None = None) -> Run:
    """Return a spec's place in the store, whether anything is there or not."""
    return run_store.find_run(store_dir(where), run_name(spec), run_config(spec))


def ended_well(wanted: Iterable[Spec], where: Path | None = None) -> Iterator[tuple[Spec, Run]]:
    """Go through those of the runs that the store has finished and that did not diverge."""
    for spec in wanted:
        run = find_run(spec, where)
        if run.finished and run.result["status"] == "ok":
            yield spec, run


def train(
    spec: Spec,
    where: Path | None = None,
    *,
    device: str | None = None,
    progress: bool | Sequence[str] = True,
    stop: Callable[[], bool] | None = None,
    wait: bool = True,
    speed: Speed | None = None,
) -> Run:
    """Return a spec's run, from the store or trained now (its teacher first), measured on validation and test people.

    Processes that train together (`lrkd.training.distributed`) must all call this. Without `Speed.sync_norm`, or with
    terms, theirs is another run than one process's.

    Args:
        spec: What to train.
        where: The run store; default: `store_dir()`.
        device: Such as "cpu" or "cuda:0"; default: a GPU where there is one.
        progress: Whether to show a bar; or names of `lrkd.training.watch.LOGS`, which are shown beside it.
        stop: Asked after every step; True saves the run and ends in KeyboardInterrupt.
        wait: Whether to wait for another process that trains this run or one that it needs.
        speed: How it is computed, which does not change what it is.

    Returns:
        The finished run.

    Raises:
        TrainingError: The run diverged, now or at an earlier call: that is a result, and it is kept.
        ConfigError: Before anything is trained or written: a package is missing, or the networks lack what the method
            needs (`check`).
        Busy: Another process trains the run, and `wait` is False.
    """
    # Compiling a network of the smaller scales takes a GPU longer than training it.
    kept = None if spec.world is None else True
    speed = speed or Speed(cache_teacher=kept, compile=None if spec.scale.on_gpu else False)
    spec = replace(spec, processes=distributed.world_size(), sync_norm=speed.sync_norm and distributed.world_size() > 1)
    device = device_of(device)
    run = find_run(spec, where)
    if run.finished:
        run_store.open_run(store_dir(where), run_name(spec), run_config(spec))  # refuses another configuration
    if not distributed.broadcast(run.finished):
        check(spec)
        check_logs(logs := () if isinstance(progress, bool) else progress)
        how: dict[str, Any] = {"device": device, "progress": progress, "stop": stop, "wait": wait, "speed": speed}
        lent = {name: train(need, where, **how) for name, need in spec.needs.items()}
        if spec.has_teacher and spec.teacher_kind == "run":
            lent["teacher"] = run_store.load_run(Path(spec.teacher).expanduser())
        run_store.open_run(store_dir(where), run_name(spec), run_config(spec))

        def say() -> None:
            tqdm.write(f"{run.path}: waiting for another process that trains this run")

        with run.lock(wait, on_wait=say) if distributed.rank() == 0 else nullcontext():
            if not distributed.broadcast(run.finished):
                try:
                    on_gpu = device.startswith("cuda")
                    execution = Execution(
                        seed=spec.seed,
                        device=device,
                        directory=run.path,
                        checkpoint_every=1000 if on_gpu else 100,  # a GPU takes a thousand in a second or two
                        progress=progress is not False,
                        name=run_name(spec),
                        stop=stop,
                        speed=speed,
                    )
                    with watching(logs if distributed.rank() == 0 else (), run.path) as on_row:
                        _train(spec, run, lent, replace(execution, on_row=on_row))
                except (ConfigError, DataError):
                    if distributed.rank() == 0:
                        run_store.discard(run)
                    raise
            distributed.barrier()  # until the first process has measured and written, the others wait here
    if run.result["status"] != "ok":
        raise TrainingError(f"{run.path}: {run.result['reason']}")
    return run


def check(spec: Spec) -> None:
    """Raise ConfigError where a run's method needs what its networks do not show, or a package that is not there.

    Nothing is trained for it and nothing written: networks that lrkd would train first are looked at untrained.
    """
    choice = spec.method.choice
    if choice is not None and choice.kind != "random":
        check_packages()
    if not spec.method.terms:
        return
    network, head = teaching.build(spec, spec.seed, 2)
    teacher: layers.Network
    shown: heads.Head | None = head
    if spec.method.teacher == "itself":
        teacher = network
    elif spec.method.teacher in methods.TRUTH:
        assert isinstance(spec.side, int)
        teacher, shown = Maps(torch.rand(4, spec.side, spec.side)), None
    elif spec.method.teacher == "random":
        teacher, shown = teaching.untrained_teacher(spec, 2)
    elif spec.teacher_run is not None:
        teacher, shown = teaching.build(spec.teacher_run, 0, 2)
    elif spec.teacher_kind == "run":
        teacher, shown = _lent_run(spec, run_store.load_run(Path(spec.teacher).expanduser()))
    else:
        teacher, shown = teaching.lent_network(spec, faces_of(spec, "train")), None
    teaching.check(spec, (network, head), teacher, shown)


def _lent_run(spec: Spec, run: Run) -> tuple[layers.Network, heads.Head | None]:
    """Network and head of a teacher's run; without the head where its classes are other people."""
    network, head = load(run)
    same = run.config["data"].get("train") == run_config(spec)["data"]["train"]
    return networks.resized(network, spec.scale.size), head if same else None


def _teacher(
    spec: Spec, lent: Mapping[str, Run], student: tuple[layers.Network, heads.Head], device: str
) -> Teacher | None:
    """Who teaches a run, as its method has it."""
    kind, faces = spec.method.teacher, faces_of(spec, "train")
    if kind == "none":
        return None
    if kind == "itself":
        return Teacher(*student, itself=True)
    if kind == "random":
        return Teacher(*teaching.untrained_teacher(spec, faces.classes))
    if kind in methods.TRUTH:
        assert isinstance(spec.side, int)
        return Teacher(information.teacher(faces, spec.scale, spec.side, kind == "scrambled", device))
    network: layers.Network
    head: heads.Head | None = None
    if "teacher" in lent:
        network, head = _lent_run(spec, lent["teacher"]) if spec.teacher_kind == "run" else load(lent["teacher"])
    else:
        network = teaching.lent_network(spec, faces)
    chosen = _chosen(spec, lent.get("teacher", network), device)
    if spec.method.compact:
        network = networks.compacted(network, faces, device)
    return Teacher(network, head, kind == "shuffled", low=kind == "own-side", chosen=chosen)


def _train(spec: Spec, run: Run, lent: Mapping[str, Run], execution: Execution) -> None:
    device, speed = str(execution.device), execution.speed
    faces = faces_of(spec, "train")
    asked = (spec.recipe.teacher if spec.role == "teacher" else spec.recipe.student).batch
    if execution.progress and asked > spec.schedule.batch and distributed.rank() == 0:
        _say(f"{spec.source}: a batch is all of its {len(faces)} training images, as they are fewer than {asked}")
    network, head = load(lent["start"]) if "start" in lent else teaching.build(spec, spec.seed, faces.classes)
    teacher = _teacher(spec, lent, (network, head), device)
    source = spec.source if spec.source == PROCEDURAL else str(Path(spec.source).resolve())  # from other folders too
    stamp: dict[str, Any] = {"source": source, "device": device_name(device), "torch": torch.__version__}
    stamp["commit"] = commit()
    if userfile.is_reference(spec.student):
        path, _, function = spec.student.rpartition(":")
        stamp["student"] = f"{Path(path).expanduser().resolve()}:{function}"
    leader = distributed.rank() == 0
    if distributed.world_size() > 1:
        stamp |= {"processes": distributed.world_size(), "sync_norm": speed.sync_norm}
    try:
        taught = None if teacher is None else replace(teacher, terms=spec.method.terms)
        watched = _observed(spec, run, network, teacher, device) if leader else {}
        fitted = fit(network, head, faces, spec.schedule, spec.options, taught, replace(execution, **watched))
        if not leader:
            return
        kept: np.ndarray | dict[str, np.ndarray]
        seeing = None if teacher is None or isinstance(teacher.network, Embeddings) else teacher
        if spec.world is None:
            measures, kept = evaluate(spec, network, seeing, fitted.hints, device)
        else:
            measures, kept = evaluate_in_world(spec, network, seeing, device)
    except TrainingError as error:
        if not leader:
            return
        (run.path / "state.pt").unlink(missing_ok=True)
        files.write_json(run.path / "result.json", {"status": "diverged", "reason": str(error), **stamp})
        return
    save_model(run.path / "model.safetensors", network, head, run.config)
    with files.atomic(run.path / (RIGHT if isinstance(kept, dict) else "scores.npy"), "wb") as file:
        if isinstance(kept, dict):
            np.savez(file, allow_pickle=False, **kept)
        else:
            np.save(file, kept)
    result = {"status": "ok", "measures": measures, "seconds": fitted.seconds, **stamp}
    files.write_json(run.path / "result.json", result)
    (run.path / "state.pt").unlink(missing_ok=True)


@functools.lru_cache(maxsize=32)
def _say(text: str) -> None:
    """Say it once."""
    tqdm.write(text)


def _chosen(spec: Spec, teacher: Run | layers.Network, device: str) -> Tensor | None:
    """(N,) bool: the training images of which the teacher's features are learned, None for all."""
    choice = spec.method.choice
    if choice is None:
        return None
    faces = faces_of(spec, "train")
    if choice.kind != "random":
        return torch.from_numpy(selection(choice, faces, teacher, device)[1].chosen)
    drawn = np.random.default_rng(spec.seed).permutation(len(faces)) < max(1, round(choice.fraction * len(faces)))
    return torch.from_numpy(drawn)


@functools.lru_cache(maxsize=8)
def selection(
    choice: methods.Choice, faces: tables.Faces, teacher: Run | layers.Network, device: str = "cpu"
) -> tuple[np.ndarray, Selection]:
    """Choose training images by the teacher's embeddings of them as they are, without their mirror images.

    Args:
        choice: The method's.
        faces: The N training images.
        teacher: Its run or its network.
        device: Where to embed.

    Returns:
        How informative the embedding of each image is (N,), and which of them `lrkd.distill.selection` chooses.
    """
    features = networks.embedded(load(teacher)[0] if isinstance(teacher, Run) else teacher, faces, device)
    unary = unaries(features, faces.labels)
    edges = graph(features, faces.labels, choice.neighbours)
    beta = choice.beta if choice.kind == "graph" else 0.0
    return unary, select_count(unary, edges, max(1, round(choice.fraction * len(faces))), beta)


def _observed(spec: Spec, run: Run, network: layers.Network, teacher: Teacher | None, device: str) -> dict[str, Any]:
    """The fields of Execution with which `fit` writes the run's trace.csv; none for a run without observations."""
    if not spec.observations:
        return {}
    faces = splits(spec.scale, spec.source)
    steps = spec.schedule.epochs * (len(faces.train) // spec.schedule.batch)
    path = run.path / "trace.csv"
    before = pd.read_csv(path).to_dict("records") if path.exists() else []

    def observe(step: int, hints: Any) -> None:
        rows = [row for row in before if row["step"] < step]
        before[:] = [*rows, {"step": step, **observation(spec, faces.validation, network, teacher, hints, device)}]
        files.write_rows(path, before)

    return {"observe": observe, "observe_every": max(1, steps // spec.observations)}


def load(run: Run) -> tuple[layers.Network, heads.Head]:
    """Load network and head of a finished run, in evaluation mode.

    Where the network is a user's function, the file that has it is run.

    Raises:
        RunError: The run has not finished, or has diverged, or its file does not fit its configuration.
        ConfigError: The file of a user's function is gone, or is another than it was.
    """
    if run.result["status"] != "ok":
        raise RunError(f"{run.path}: this run diverged and left no network ({run.result.get('reason')})")
    path = run.path / "model.safetensors"
    tensors, made = load_model(path)
    own = None
    if isinstance(model := made.get("model"), dict) and "function" in model:
        own = networks.rebuild(model, run.result.get("student"), run.path)
    network, weights = load_network(path, own), part_of(tensors, "head")
    try:
        head = heads.build(classes=len(weights["weight"]), dim=network.embedding, **made["head"])
        head.load_state_dict(weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{path}: its tensors do not fit its config ({first_line(error)})") from error
    return network, head.eval()


def git(folder: Path, *words: str) -> str:
    """Ask git of a folder; OSError or CalledProcessError where it has no answer."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]  # or a process that dies leaves its lock
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@functools.lru_cache
def commit() -> str:
    """Return the short commit of the source tree, with "+" when lrkd/ has changes.

    LRKD_COMMIT says it where the files were copied to another machine; "unknown" without either, as for an installed
    package, which may lie in a repository of its user's.
    """
    if told := os.environ.get("LRKD_COMMIT"):
        return told
    here = Path(__file__).parents[1]
    try:
        git(here, "ls-files", "--error-unmatch", "__init__.py")
        changed = git(here, "status", "--porcelain", "--", ".")
        return git(here, "rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device_of(name: str | None = None) -> str:
    """Return the device of that name; None is CUDA where it is there, else the CPU. ConfigError for an absent one.

    Apple's "mps" has to be named; nothing here has been tried on it.
    """
    there = ["cpu", *(["mps"] if torch.backends.mps.is_available() else [])]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    name = name or ("cuda" if "cuda" in there else "cpu")
    if name not in there:
        raise ConfigError(f"device: expected one of {', '.join(there)} on this machine, got {name!r}")
    return name


def device_name(device: str) -> str:
    """Return what computes: the GPU's name, or the CPU's model."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
