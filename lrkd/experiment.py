"""One run of the study: a spec -> its configuration -> trained, evaluated and stored."""

import functools
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrkd import data, endpoints, heads, methods, models, parallel, runs, select, verify, worlds
from lrkd.degrade import PRESETS, degrade
from lrkd.device import Speed
from lrkd.distances import cosine, gradient_split, norm_angle_split
from lrkd.downloads import how_to_prepare
from lrkd.errors import ConfigError, DataError, RunError, TrainingError
from lrkd.losses import View
from lrkd.methods import Method
from lrkd.runs import Run
from lrkd.scales import DESIGNS, Recipe, Scale
from lrkd.train import Options, Schedule, Teacher, fit, load_model, normalise, save_model, threads
from lrkd.worlds import World

PROCEDURAL = "procedural"


def store(path: str | os.PathLike[str] | None = None) -> Path:
    """The run store: `path`, else the environment's LRKD_RUNS, else `runs` under the working directory."""
    return Path(path or os.environ.get("LRKD_RUNS") or "runs")


@dataclass(frozen=True)
class Spec:
    """One run of the study. teacher_seed tells teachers apart; role "teacher" takes its schedule.

    side: images degraded to it, as `degrade` does, by `preset`; None is HR, images as they are.

    observations: how often the run looks at validation images while it trains, which leaves a trace.csv beside it.
    design: a student of `scales.DESIGNS`, which takes LR images at their own size; "" is the scale's own network.
    processes, sync_norm: how many train it together, and whether their batch norm sees the whole batch; `train` sets
    both. They are part of what the run is where something sees only a process's part of the batch.
    world: where it takes place, and by that the people that are measured, see `endpoints`; None: the scale's one set of
    data, all of whose people are. epochs: the length, over the fewer people of a world (`worlds.epochs_on`); lr: the
    learning rate; None: the recipe's.
    """

    method: Method
    side: int | tuple[int, ...] | None
    seed: int
    scale: Scale
    source: str = PROCEDURAL
    teacher_seed: int = 0
    role: str = "student"
    preset: str = "area-bicubic"
    observations: int = 0
    design: str = ""
    processes: int = 1
    sync_norm: bool = False
    world: World | None = None
    epochs: int | None = None
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.world is not None and (self.design or self.observations):
            raise ConfigError("a run in a world has neither a design nor observations")
        if self.world is not None and self.setting == "T" and any(term.name == "logits" for term in self.method.terms):
            raise ConfigError(f"method is {self.method.name!r}: in setting T the teacher's classes are other people")
        if self.world is not None and self.source != PROCEDURAL and self.world.setting != "S":
            raise ConfigError(f"setting is {self.world.setting!r}: photographs have one set of people, setting S")
        if self.design and self.design not in DESIGNS:
            raise ConfigError(f"design is {self.design!r}: the designs are {', '.join(DESIGNS)}")
        if self.design and not isinstance(self.side, int):
            raise ConfigError(f"side is {self.side}: design {self.design!r} takes LR images of one side")
        if self.design and _paired(self.method):
            fit = [name for name, method in methods.METHODS.items() if not _paired(method)]
            raise ConfigError(
                f"method is {self.method.name!r}: it holds the student's maps against the teacher's one to one, and "
                f"design {self.design!r} has fewer; with a design go {', '.join(fit)}"
            )
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
        """The recipe's, at the run's own length and rate; a batch is never more than the images that there are."""
        found = self.recipe.teacher if self.role == "teacher" else self.recipe.student
        if self.world is not None and self.source == PROCEDURAL:
            epochs = found.epochs if self.epochs is None else self.epochs
            found = replace(found, epochs=worlds.epochs_on(self.scale, self.world, self.role, epochs))
        elif self.epochs is not None:
            found = replace(found, epochs=self.epochs)
        found = found if self.lr is None else replace(found, lr=self.lr)
        if self.world is not None and self.source == PROCEDURAL:
            return found
        if self.images < 2:
            raise DataError(
                f"{self.source}: has {self.images} image to train on: add people or images, and prepare it again"
            )
        return found if found.batch <= self.images else replace(found, batch=self.images)

    @property
    def images(self) -> int:
        """How many there are to train on."""
        return len(splits(self.scale, self.source).train)

    @property
    def setting(self) -> str:
        """What the teacher knows, where there is one: without, a student of few people is in S and in T the same."""
        assert self.world is not None
        own, teacher = self.world.many(self.role), self.teacher is not None and self.world.many("teacher")
        return "D" if own else "T" if teacher else "S"

    @property
    def sides(self) -> tuple[int, ...]:
        """The LR sides that it was trained for, without the sharp image among them, from the largest down."""
        given = self.side if isinstance(self.side, tuple) else (self.side,)
        return tuple(sorted({side for side in given if side is not None and side != self.scale.size}, reverse=True))

    @property
    def options(self) -> Options:
        return replace(self.scale.options, side=self.side, preset=self.preset, shift=self.recipe.shift)

    @property
    def teacher(self) -> "Spec | None":
        """The run that this one learns from."""
        if self.method.teacher in ("none", "random", "itself"):
            return None
        found = teacher_spec(self.scale, self.teacher_seed, self.source)
        found = replace(found, world=self.world, epochs=self.epochs, processes=self.processes, sync_norm=self.sync_norm)
        return replace(found, side=self.side) if self.method.teacher == "own-side" else found

    @property
    def divided(self) -> bool:
        """Whether something sees only a process's part of a batch: batch norm, or terms, which may compare images."""
        return self.processes > 1 and not (self.sync_norm and not self.method.terms)

    @property
    def start(self) -> "Spec | None":
        """The run whose weights this one begins with."""
        return None if self.method.start is None else replace(self, method=methods.get(self.method.start))

    @property
    def needs(self) -> "dict[str, Spec]":
        """The runs that must be there before this one: "teacher" and "start", where it has them."""
        return {name: spec for name, spec in (("teacher", self.teacher), ("start", self.start)) if spec is not None}

    @property
    def model(self) -> dict[str, Any]:
        """The student's arguments for `models.build`."""
        scale = self.scale
        if self.design:
            return {"size": self.side, "embedding": scale.embedding, **DESIGNS[self.design]}
        return {"name": scale.model, "size": scale.size, "embedding": scale.embedding, **scale.model_options}


def _paired(method: Method) -> bool:
    """Whether it needs a student with as many maps as its teacher; hint layers join them one to one."""
    return any(term.paired or term.hint for term in method.terms)


def teacher_spec(scale: Scale, seed: int = 0, source: str = PROCEDURAL) -> Spec:
    """The HR teacher of that seed."""
    return Spec(methods.get("none"), None, seed, scale, source, role="teacher")


def splits(scale: Scale, source: str = PROCEDURAL) -> data.Splits:
    """The data of a scale: rendered faces, or the prepared folder `source`, brought to the scale's size."""
    cache, rendered = os.environ.get("LRKD_CACHE"), None
    if source == PROCEDURAL:
        place = "cuda" if scale.on_gpu and torch.cuda.is_available() else "cpu"
        face = tuple(sorted((name, tuple(x) if isinstance(x, list) else x) for name, x in scale.face.items()))
        rendered = (tuple(scale.identities), scale.images, tuple(scale.pairs), face, place)
    return _splits(scale.size, str(source), cache, rendered)


@functools.lru_cache(maxsize=2)
def _splits(size: int, source: str, cache: str | None, rendered: tuple[Any, ...] | None) -> data.Splits:
    """`splits` of what it depends on. rendered: identities, images, pairs, the face's settings and the device."""
    if rendered is not None:
        identities, images, pairs, face, place = rendered
        return data.procedural(size, identities, images, pairs, face=dict(face), device=place)
    return data.resized(_prepared(source), size)


def digests(scale: Scale, source: str = PROCEDURAL) -> tuple[str, dict[str, str]]:
    """The data's own name and each split's digest, as `splits` has them; but nothing is rendered, nothing resized."""
    if source == PROCEDURAL:
        place = "cuda" if scale.on_gpu and torch.cuda.is_available() else "cpu"
        counts = scale.identities, scale.images, scale.pairs
        return PROCEDURAL, data.procedural_digests(scale.size, *counts, face=dict(scale.face), device=place)
    faces = _prepared(str(source))
    found = {part: data.resized_digest(getattr(faces, part), scale.size) for part in data.SPLITS}
    return faces.train.name.split("/")[0], found


@functools.lru_cache(maxsize=2)
def _prepared(source: str) -> data.Splits:
    if not Path(source).is_dir():
        told = how_to_prepare(Path(source)) or "`python -m data_prep` makes one"
        raise DataError(f"data is {source!r}: neither {PROCEDURAL!r} nor a prepared folder; {told}")
    return data.prepared(source)


def faces_of(spec: Spec, part: str) -> data.Faces:
    """The "train", "validation" or "test" people of a run's data; of a world only those that the run may look at."""
    if spec.world is not None:
        sets = spec.world.splits(spec.role)
        if part not in sets:
            raise ConfigError(f"world {spec.world.number} does not show its {part} people")
        if spec.source == PROCEDURAL:
            return _rendered(_people(spec.scale, spec.world, sets[part]), os.environ.get("LRKD_CACHE"))
    found: data.Faces = getattr(splits(spec.scale, spec.source), part)
    return found


def _people(scale: Scale, world: World, name: str) -> data.People:
    place = "cuda" if scale.on_gpu and torch.cuda.is_available() else "cpu"
    return worlds.people(scale, world, name, place)


@functools.lru_cache(maxsize=4)
def _rendered(people: data.People, cache: str | None) -> data.Faces:
    return people.faces()


def _digests(spec: Spec) -> dict[str, str]:
    """The digests of the data that a run looks at; a world's are known before anything is rendered."""
    if spec.world is None:
        return digests(spec.scale, spec.source)[1]
    sets = spec.world.splits(spec.role)
    if spec.source == PROCEDURAL:
        return {part: _people(spec.scale, spec.world, name).digest for part, name in sets.items()}
    return {part: faces_of(spec, part).digest for part in sets}


def config(spec: Spec) -> dict[str, Any]:
    """Everything that determines a run's weights and measures, in plain values: what the run store hashes."""
    return {
        "role": spec.role,
        "scale": spec.scale.name,
        "method": spec.method.describe(),
        "side": spec.side,
        "preset": spec.preset,
        "seed": spec.seed,
        "teacher": None if spec.teacher is None else runs.digest(config(spec.teacher)),
        "teacher_seed": None if spec.method.teacher == "none" else spec.teacher_seed,
        "model": spec.model,
        "head": dict(spec.scale.head),
        "schedule": asdict(spec.schedule),
        "options": asdict(spec.options),
        "data": {"source": source_name(spec), **_digests(spec)},
        **({"world": spec.world.number} if spec.world is not None else {}),
        **({"observations": spec.observations} if spec.observations else {}),
        **({"start": runs.digest(config(spec.start))} if spec.start else {}),
        **({"processes": spec.processes, "sync_norm": spec.sync_norm} if spec.divided else {}),
    }


def source_name(spec: Spec) -> str:
    """The data's own name, wherever its folder lies."""
    return PROCEDURAL if spec.source == PROCEDURAL else digests(spec.scale, spec.source)[0]


def run_name(spec: Spec) -> str:
    """The readable part of a run's folder name."""
    sides = [spec.side] if not isinstance(spec.side, tuple) else spec.side
    where = "-".join("hr" if side is None else str(side) for side in sides)
    what = "teacher" if spec.role == "teacher" else spec.method.name + (f"-{spec.design}" if spec.design else "")
    taught = "" if spec.method.teacher == "none" else f"-t{spec.teacher_seed}"
    if spec.world is not None:
        taught += f"-w{spec.world.number}{spec.setting}"
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
    wait: bool = True,
    speed: Speed | None = None,
) -> Run:
    """The spec's run, from the store or trained now (its teacher first), evaluated on validation and test.

    wait: whether to wait for another process that trains the run or one that it needs, or to raise runs.Busy.
    speed: how it is computed, which is no part of what it is. Processes that `parallel.joined` has joined train it
    together, and all must call this; without `Speed.sync_norm`, and with terms, it is another run than one process's.

    Raises TrainingError for a run that diverged, now or at an earlier call: that is a result, and it is kept. Raises
    ConfigError, before anything is trained, where a package is missing that the method's choice needs.
    """
    speed = speed or (Speed() if spec.world is None else Speed(once=True))
    spec = replace(spec, processes=parallel.size(), sync_norm=speed.sync_norm and parallel.size() > 1)
    device, choice = device_of(device), spec.method.choice
    if choice is not None and choice.kind != "random" and not find_run(spec, where).finished:
        select.check_packages()
    run = find_run(spec, where)
    if not parallel.first(run.finished):
        how: dict[str, Any] = {"device": device, "progress": progress, "stop": stop, "wait": wait, "speed": speed}
        lent = {name: train(need, where, **how) for name, need in spec.needs.items()}
        runs.open_run(store(where), run_name(spec), config(spec))

        def say() -> None:
            tqdm.write(f"{run.path}: waiting for another process that trains this run")

        with run.lock(wait, on_wait=say) if parallel.rank() == 0 else nullcontext():
            if not parallel.first(run.finished):
                try:
                    _train(spec, run, lent, device, progress, checkpoint_every, stop, speed)
                except (ConfigError, DataError):
                    if parallel.rank() == 0:
                        runs.discard(run)
                    raise
            parallel.first(True)  # until the first process has measured and written, the others wait here
    if run.result["status"] != "ok":
        raise TrainingError(f"{run.path}: {run.result['reason']}")
    return run


def _build(spec: Spec, seed: int, classes: int) -> tuple[models.Network, heads.Head]:
    options = {key: value for key, value in spec.scale.head.items() if key != "name"}
    head = heads.build(spec.scale.head["name"], classes, spec.scale.embedding, seed=seed, **options)
    return models.build(**spec.model, seed=seed), head


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
    if progress and asked > spec.schedule.batch and parallel.rank() == 0:
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
    leader = parallel.rank() == 0
    if parallel.size() > 1:
        stamp |= {"processes": parallel.size(), "sync_norm": speed.sync_norm}
    try:
        fitted = fit(
            network,
            head,
            faces,
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
            speed=speed,
            **(_observed(spec, run, network, teacher, device) if leader else {}),
        )
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
        runs.write_json(run.path / "result.json", {"status": "diverged", "reason": str(error), **stamp})
        return
    save_model(run.path / "model.safetensors", network, head, run.config)
    with runs.atomic(run.path / (RIGHT if isinstance(kept, dict) else "scores.npy"), "wb") as file:
        if isinstance(kept, dict):
            np.savez(file, allow_pickle=False, **kept)
        else:
            np.save(file, kept)
    result = {"status": "ok", "measures": measures, "seconds": fitted.seconds, **stamp}
    runs.write_json(run.path / "result.json", result)
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
    choice: methods.Choice, faces: data.Faces, teacher: Run, device: str = "cpu"
) -> tuple[np.ndarray, select.Selection]:
    """How informative the teacher's feature of each image is (N,), and which of them `lrkd.select` chooses.

    The images are embedded as they are, without their mirror images.
    """
    network, _ = load(teacher)
    features = verify.embed(network, faces.images, mirror=False, device=device)
    unary = select.unaries(features, faces.labels)
    edges = select.graph(features, faces.labels, choice.neighbours)
    beta = choice.beta if choice.kind == "graph" else 0.0
    return unary, select.select_count(unary, edges, max(1, round(choice.fraction * len(faces))), beta)


def _observed(spec: Spec, run: Run, network: models.Network, teacher: Teacher | None, device: str) -> dict[str, Any]:
    """The arguments with which `fit` writes the run's trace.csv, a row an observation; none for a run without."""
    if not spec.observations:
        return {}
    faces = splits(spec.scale, spec.source)
    steps = spec.schedule.epochs * (len(faces.train) // spec.schedule.batch)
    path = run.path / "trace.csv"
    before = pd.read_csv(path).to_dict("records") if path.exists() else []

    def observe(step: int, hints: Any) -> None:
        rows = [row for row in before if row["step"] < step]
        before[:] = [*rows, {"step": step, **observation(spec, faces.validation, network, teacher, hints, device)}]
        runs.write_rows(path, before)

    return {"observe": observe, "observe_every": max(1, steps // spec.observations)}


def observation(
    spec: Spec, faces: data.Faces, network: models.Network, teacher: Teacher | None, hints: Any, device: str
) -> dict[str, float]:
    """Accuracy on the pairs of `faces`, and for a method with a term on the hinted features how each stage stands.

    Accuracy is by the 10 folds, without mirror images. Of stage k, over 256 evenly spaced images: cosine_k of student
    and teacher, norm_k = |s|/|t|, norm_share_k = how much of |s-t|^2 is in the norms (`norm_angle_split`), and radial_k
    = how much of the squared gradient of the run's own loss changes only the norm (`gradient_split`).
    """
    pairs, side = pairs_of(faces), spec.side
    assert not isinstance(side, tuple)
    features = verify.embed(network, faces.images, side=side, preset=spec.preset, mirror=False, device=device)
    found = verify.kfold_verification(
        features[pairs.left], features[pairs.right], pairs.same, pairs.fold, missing=pairs.touch(faces.missing)
    )
    measures = {"accuracy": found.mean}
    terms = [term for term in spec.method.terms if term.hint]
    if teacher is None or hints is None:
        return measures
    x = faces.batch(np.linspace(0, len(faces) - 1, min(256, len(faces))).astype(np.int64)).to(device).float() / 255
    y = x if side is None else degrade(x, side, preset=spec.preset, enlarge=network.size != side)
    with torch.no_grad():
        s, t = network.eval()(normalise(y)), teacher.network(normalise(x))
        mapped = hints.eval()(s.features)
    mapped = [stage.requires_grad_() for stage in mapped]
    labels = torch.zeros(len(x), dtype=torch.int64, device=device)
    views = [
        View(out.embedding, out.features, stages, out.channel, out.spatial, out.embedding, labels)
        for out, stages in ((s, mapped), (t, t.features))
    ]
    loss = torch.stack([term.weight * term.function(*views) for term in terms]).sum()
    gradients = torch.autograd.grad(loss, mapped)
    for k, (a, b, g) in enumerate(zip(mapped, t.features, gradients, strict=True), 1):
        split, pull = norm_angle_split(a.detach(), b), gradient_split(g, a.detach())
        length, other = (z.flatten(1).norm(dim=1) for z in (a.detach(), b))
        measures |= {
            f"cosine_{k}": float((1 - cosine(a.detach(), b)).mean()),
            f"norm_{k}": float((length / other).mean()),
            f"norm_share_{k}": float(split.norm.sum() / (split.norm + split.angle).sum()),
            f"radial_{k}": float(pull.norm.sum() / (pull.norm + pull.angle).sum()),
        }
    return measures


def load(run: Run) -> tuple[models.Network, heads.Head]:
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
    spec: Spec, network: models.Network, teacher: Teacher | None, hints: Any, device: str
) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Measures by protocol, and (4,P) float32 of the test pairs: LR-LR scores and correctness, HR-LR the same.

    Protocols: "validation" and "test" with both images at the run's side, "test-hr-lr" with the left image HR,
    "identification" with an HR gallery of each test person's first image and LR probes of the rest; for a teacher also
    "test-at-24" and so on, both images at a side that it was not trained for. A network that takes LR images at their
    own size cannot be shown HR ones: its teacher's features, which it learns, stand in for them; without a teacher the
    two protocols with HR images are left out, and their scores are nan.
    """
    faces = splits(spec.scale, spec.source)
    side = max(spec.side) if isinstance(spec.side, tuple) else spec.side
    preset = evaluation_preset(spec.preset)

    def features(part: data.Faces, at: int | None, by: models.Network = network) -> np.ndarray:
        amp = torch.bfloat16 if spec.options.precision == "bfloat16" else None
        with threads(spec.options.threads):
            return verify.embed(by, part.images, side=at, preset=preset, device=device, amp=amp, channels_last=True)

    def verification(a: np.ndarray, b: np.ndarray, part: data.Faces) -> tuple[verify.Verification, dict[str, float]]:
        pairs = pairs_of(part)
        found = verify.kfold_verification(
            a[pairs.left], b[pairs.right], pairs.same, pairs.fold, missing=pairs.touch(part.missing)
        )
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

    pairs, native = pairs_of(faces.test), network.size != spec.scale.size
    low, tuned = (features(part, side) for part in (faces.test, faces.validation))
    both, test = verification(low, low, faces.test)
    measures = {"validation": verification(tuned, tuned, faces.validation)[1], "test": test}
    scores = [both.scores, both.correct, *np.full((2, len(pairs)), np.nan)]
    if not native or teacher is not None:
        high = low if side is None else features(faces.test, None, teacher.network if native and teacher else network)
        mixed, measures["test-hr-lr"] = verification(high, low, faces.test)
        scores[2:] = [mixed.scores, mixed.correct]
        first = np.unique(faces.test.labels, return_index=True)[1]
        rest = np.setdiff1d(np.arange(len(faces.test.labels)), first)
        gone = None if faces.test.missing is None else np.tile(faces.test.missing, 2)
        ranks = verify.identification(
            np.concatenate([high, low]),
            np.tile(faces.test.labels, 2),
            {"gallery": first, "probe": len(high) + rest},
            ranks=(1, 5),
            missing=gone,
        ).iloc[0]
        measures["identification"] = {"rank1": float(ranks["rank1"]), "rank5": float(ranks["rank5"])}
    if spec.role == "teacher":
        for at in spec.scale.sides:
            fed = features(faces.test, at)
            measures[f"test-at-{at}"] = verification(fed, fed, faces.test)[1]
    if teacher is not None:
        measures["test"] |= agreement(network, teacher.network, hints, faces.test.images, side, preset, device)
    return measures, np.stack(scores).astype(np.float32)


RIGHT = "right.npz"


def evaluate_in_world(
    spec: Spec, network: models.Network, teacher: Teacher | None, device: str
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Measures by "side/endpoint", and for each the packed bits of what was right, see `lrkd.endpoints`.

    Only the people that the world shows are looked at. A student is shown the sides that it was trained for, one of HR
    images these; a teacher HR images and, as the floor of what training for small images is for, the scale's sides.
    """
    assert spec.world is not None
    faces, preset = faces_of(spec, spec.world.shown), evaluation_preset(spec.preset)

    def features(at: int | None, by: models.Network = network) -> np.ndarray:
        amp = torch.bfloat16 if spec.options.precision == "bfloat16" else None
        with threads(spec.options.threads):
            return verify.embed(by, faces.images, side=at, preset=preset, device=device, amp=amp, channels_last=True)

    pairs_of(faces)
    high = features(None)
    enrolled = None
    if teacher is not None and not teacher.low and not teacher.itself:
        enrolled = features(None, teacher.network)
    sides = (*spec.scale.sides, spec.scale.size) if spec.role == "teacher" else spec.sides or (spec.scale.size,)
    measures, right = {}, {}
    for side in sides:
        sharp = side == spec.scale.size
        found = endpoints.measured(high if sharp else features(side), None if sharp else high, faces, enrolled)
        for endpoint, bits in found.items():
            measures[f"{side}/{endpoint}"] = {"value": float(bits.mean()), "n": len(bits)}
            right[f"{side}/{endpoint}"] = np.packbits(bits)
    return measures, right


def pairs_of(faces: data.Faces) -> data.Pairs:
    """The table's pairs; DataError where it has none."""
    if faces.pairs is None:
        raise DataError(f"{faces.name}: has no verification pairs")
    return faces.pairs


def agreement(
    network: models.Network,
    teacher: models.Network,
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
    native, drawn = network.size != x.shape[-1], torch.Generator().manual_seed(0)
    y = x if side is None else degrade(x, side, preset=preset, generator=drawn, enlarge=not native)

    def mean(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
        return float(torch.stack([(1 - cosine(s, t)).mean() for s, t in zip(a, b, strict=True)]).mean())

    with torch.inference_mode():
        s, t = network.eval()(normalise(y)), teacher.eval()(normalise(x))
        alike = {"cosine_embedding": mean([s.embedding], [t.embedding])}
        if native:  # no map of it is as large as the teacher's
            return alike
        mapped = s.features if hints is None else hints.eval()(s.features)
        alike["cosine_attention"] = mean([*s.channel, *s.spatial], [*t.channel, *t.spatial])
        return alike | {"cosine_features": mean(mapped, t.features)}


def rows(spec: Spec, run: Run) -> Iterator[dict[str, Any]]:
    """The run's rows of a results table: one a protocol, each with where it comes from. A diverged run has one."""
    result = run.result
    if spec.world is not None:
        yield from _rows_of_world(spec, run, result)
        return
    teacher = None if spec.method.teacher == "none" else spec.teacher_seed
    known = {
        "data": run.config["data"]["source"],
        "scale": spec.scale.name,
        "role": spec.role,
        "method": spec.method.name,
        "side": spec.scale.size if spec.side is None else spec.side,
        "seed": spec.seed,
        "teacher_seed": teacher,
        **({"design": spec.design} if spec.design else {}),
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


def _rows_of_world(spec: Spec, run: Run, result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a side and an endpoint. weight: of the method's first term; trained: `trained_for`."""
    assert spec.world is not None
    known = {
        "data": run.config["data"]["source"],
        "scale": spec.scale.name,
        "role": spec.role,
        "method": spec.method.name,
        "weight": spec.method.terms[0].weight if spec.method.terms else None,
        "trained": trained_for(spec),
        "setting": spec.setting,
        "world": spec.world.number,
        "epochs": spec.schedule.epochs if spec.epochs is None else spec.epochs,
        "lr": spec.schedule.lr,
        "people": spec.world.shown,
        "status": result["status"],
    }
    source = {
        "seconds": result.get("seconds"),
        "device": result["device"],
        "torch": result["torch"],
        "commit": result["commit"],
        "config": run.path.name.rsplit("-", 1)[1],
    }
    lost = {f"{side}/": {"value": None, "n": None} for side in spec.sides or (spec.scale.size,)}
    for where, measure in result.get("measures", lost).items():
        side, _, endpoint = where.partition("/")
        yield {**known, "side": int(side), "endpoint": endpoint, **measure, **source}


def trained_for(spec: Spec) -> str:
    """The sides that a run was trained for in words: "6", "hr", or "hr+24+12+6"."""
    sharp = spec.side is None or (isinstance(spec.side, tuple) and spec.scale.size in spec.side)
    return "+".join([*(["hr"] if sharp else []), *map(str, spec.sides)])


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
