"""One run of the study: a spec -> its configuration -> trained, evaluated and stored."""

import functools
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrkd import files
from lrkd.data import tables
from lrkd.distill import methods
from lrkd.distill.selection import Selection, check_packages, graph, select_count, unaries
from lrkd.errors import ConfigError, DataError, RunError, TrainingError
from lrkd.evaluation import embedding
from lrkd.models import backbones, heads, layers
from lrkd.study import store as run_store
from lrkd.study.measures import RIGHT, evaluate, evaluate_in_world, observation
from lrkd.study.spec import PROCEDURAL, Spec, faces_of, run_config, run_name, splits, teacher_spec
from lrkd.study.store import Run
from lrkd.training import distributed
from lrkd.training.acceleration import Speed
from lrkd.training.checkpoint import load_model, save_model
from lrkd.training.execution import Execution
from lrkd.training.loop import fit
from lrkd.training.step import Teacher


def store_dir(path: str | os.PathLike[str] | None = None) -> Path:
    """The run store: `path`, else the environment's LRKD_RUNS, else `runs` under the working directory."""
    return Path(path or os.environ.get("LRKD_RUNS") or "runs")


def find_run(spec: Spec, where: Path | None = None) -> Run:
    """The spec's place in the store, whether anything is there or not."""
    return run_store.find_run(store_dir(where), run_name(spec), run_config(spec))


def train(
    spec: Spec,
    where: Path | None = None,
    *,
    device: str | None = None,
    progress: bool = True,
    checkpoint_every: int = 100,
    stop: Callable[[], bool] | None = None,
    wait: bool = True,
    speed: Speed | None = None,
) -> Run:
    """The spec's run, from the store or trained now (its teacher first), evaluated on validation and test.

    wait: whether to wait for another process that trains the run or one that it needs, or to raise runs.Busy.
    speed: how it is computed, which is no part of what it is. Processes that `init_distributed` has joined train it
    together, and all must call this; without `Speed.sync_norm`, and with terms, it is another run than one process's.

    Raises TrainingError for a run that diverged, now or at an earlier call: that is a result, and it is kept. Raises
    ConfigError, before anything is trained, where a package is missing that the method's choice needs.
    """
    speed = speed or (Speed() if spec.world is None else Speed(cache_teacher=True))
    spec = replace(spec, processes=distributed.world_size(), sync_norm=speed.sync_norm and distributed.world_size() > 1)
    device, choice = device_of(device), spec.method.choice
    if choice is not None and choice.kind != "random" and not find_run(spec, where).finished:
        check_packages()
    run = find_run(spec, where)
    if not distributed.broadcast(run.finished):
        how: dict[str, Any] = {"device": device, "progress": progress, "stop": stop, "wait": wait, "speed": speed}
        lent = {name: train(need, where, **how) for name, need in spec.needs.items()}
        run_store.open_run(store_dir(where), run_name(spec), run_config(spec))

        def say() -> None:
            tqdm.write(f"{run.path}: waiting for another process that trains this run")

        with run.lock(wait, on_wait=say) if distributed.rank() == 0 else nullcontext():
            if not distributed.broadcast(run.finished):
                try:
                    _train(spec, run, lent, device, progress, checkpoint_every, stop, speed)
                except (ConfigError, DataError):
                    if distributed.rank() == 0:
                        run_store.discard(run)
                    raise
            distributed.barrier()  # until the first process has measured and written, the others wait here
    if run.result["status"] != "ok":
        raise TrainingError(f"{run.path}: {run.result['reason']}")
    return run


def _build(spec: Spec, seed: int, classes: int) -> tuple[layers.Network, heads.Head]:
    options = {key: value for key, value in spec.scale.head.items() if key != "name"}
    head = heads.build(spec.scale.head["name"], classes, spec.scale.embedding, seed=seed, **options)
    return backbones.build(**spec.model, seed=seed), head


def _train(
    spec: Spec,
    run: Run,
    lent: Mapping[str, Run],
    device: str,
    progress: bool,
    every: int,
    stop: Callable[[], bool] | None,
    speed: Speed,
) -> None:
    faces = faces_of(spec, "train")
    asked = (spec.recipe.teacher if spec.role == "teacher" else spec.recipe.student).batch
    if progress and asked > spec.schedule.batch and distributed.rank() == 0:
        _say(f"{spec.source}: a batch is all of its {len(faces)} training images, as they are fewer than {asked}")
    network, head = load(lent["start"]) if "start" in lent else _build(spec, spec.seed, faces.classes)
    teacher = None
    if "teacher" in lent:
        chosen = _chosen(spec, lent["teacher"], device)
        kind = spec.method.teacher
        teacher = Teacher(*load(lent["teacher"]), kind == "shuffled", low=kind == "own-side", chosen=chosen)
    elif spec.method.teacher == "itself":
        teacher = Teacher(network, head, itself=True)
    elif spec.method.teacher == "random":
        untaught = teacher_spec(spec.scale, spec.teacher_seed, spec.source)
        teacher = Teacher(*_build(untaught, 1000 + spec.teacher_seed, faces.classes))
    source = spec.source if spec.source == PROCEDURAL else str(Path(spec.source).resolve())  # from other folders too
    stamp: dict[str, Any] = {"source": source, "device": device_name(device), "torch": torch.__version__}
    stamp["commit"] = commit()
    leader = distributed.rank() == 0
    if distributed.world_size() > 1:
        stamp |= {"processes": distributed.world_size(), "sync_norm": speed.sync_norm}
    try:
        taught = None if teacher is None else replace(teacher, terms=spec.method.terms)
        execution = Execution(
            seed=spec.seed,
            device=device,
            directory=run.path,
            checkpoint_every=every,
            progress=progress,
            name=run_name(spec),
            stop=stop,
            speed=speed,
            **(_observed(spec, run, network, teacher, device) if leader else {}),
        )
        fitted = fit(network, head, faces, spec.schedule, spec.options, taught, execution)
        if not leader:
            return
        kept: np.ndarray | dict[str, np.ndarray]
        if spec.world is None:
            measures, kept = evaluate(spec, network, teacher, fitted.hints, device)
        else:
            measures, kept = evaluate_in_world(spec, network, teacher, device)
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


def _chosen(spec: Spec, teacher: Run, device: str) -> Tensor | None:
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
    choice: methods.Choice, faces: tables.Faces, teacher: Run, device: str = "cpu"
) -> tuple[np.ndarray, Selection]:
    """How informative the teacher's feature of each image is (N,), and which of them `lrkd.distill.selection` chooses.

    The images are embedded as they are, without their mirror images.
    """
    network, _ = load(teacher)
    features = embedding.embed(network.to(device), faces.images, mirror=False)
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
    """Network and head of a finished run, in evaluation mode.

    Raises RunError for a run that has not finished or has diverged, and where the file does not fit its config.
    """
    if run.result["status"] != "ok":
        raise RunError(f"{run.path}: this run diverged and left no network ({run.result.get('reason')})")
    path = run.path / "model.safetensors"
    tensors, made = load_model(path)
    try:
        model = dict(made["model"])
        network = backbones.build(model.pop("name"), **model)
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


@functools.lru_cache
def commit() -> str:
    """The short commit of the source tree, with "+" when lrkd/ has changes.

    Outside a checkout what LRKD_COMMIT says, as where the files were copied to a machine without git; else "unknown".
    """
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("LRKD_COMMIT") or "unknown"


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
