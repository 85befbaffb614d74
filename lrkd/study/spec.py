"""A run of the study as a specification: its configuration, its name, its data."""

import functools
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lrkd import userfile
from lrkd.data import prepared, procedural, tables
from lrkd.data.degradation import PRESETS
from lrkd.data.downloads import how_to_prepare
from lrkd.distill import methods
from lrkd.distill.methods import Method
from lrkd.errors import ConfigError, DataError
from lrkd.models.backbones import BUILDERS
from lrkd.study import networks, store, worlds
from lrkd.study.presets import DESIGNS, Recipe, Scale
from lrkd.study.worlds import World
from lrkd.training.schedule import Options, Schedule

PROCEDURAL = "procedural"


@dataclass(frozen=True)
class Spec:
    """One run of the study: everything that determines its weights and its measures.

    Attributes:
        method: The method.
        side: Its images are degraded to so many pixels by `preset`; a tuple: to one drawn for each; None: HR images.
        seed: Of the first weights, the order and the augmentation.
        scale: The preset, which says what the other fields leave open.
        source: "procedural", or a prepared folder.
        teacher_seed: The seed of its teacher, where that is trained here.
        role: "student", or "teacher", which takes the teacher's schedule.
        preset: The degradation.
        observations: How often the run looks at validation images while it trains, which leaves a trace.csv.
        student: Its network: a name of `backbones.BUILDERS`; a small one of `presets.DESIGNS`, which takes LR images at
            their own size; or "file.py:function", which returns an nn.Module, perhaps made by `wrap.wrap`, and may take
            `size`, `embedding` and `seed`. "" is the preset's own.
        teacher: A name of BUILDERS, of a network that is trained here; the folder of a run; a published checkpoint
            (.ckpt, .pt, .pth, .safetensors); an .onnx file; an .npy file of embeddings, a row an image of the data's
            manifest; or "file.py:function", which returns a trained network. "" is the preset's network, trained here.
            One that is not trained here also says how long a student's embeddings are, with every method, so that
            methods can be compared. Images are brought to the teacher's size.
        processes: How many train it together; `train` sets it. Part of what the run is where something sees only a
            process's part of the batch.
        sync_norm: Whether their batch norm sees the whole batch; `train` sets it.
        world: Where it takes place, and by that the people that are measured, see `endpoints`; None: the preset's one
            set of data.
        epochs: The length, in a world over its fewer people (`worlds.epochs_on`); None: the recipe's. In a world and on
            photographs its teacher is trained as long.
        lr: The learning rate; None: the recipe's.

    Raises:
        ConfigError: A value that is none of these, or two that do not go together.
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
    student: str = ""
    teacher: str = ""
    processes: int = 1
    sync_norm: bool = False
    world: World | None = None
    epochs: int | None = None
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.student == self.scale.model:
            object.__setattr__(self, "student", "")
        if self.teacher == self.scale.model:
            object.__setattr__(self, "teacher", "")
        if self.world is not None and (self.student or self.teacher or self.observations):
            raise ConfigError("a run in a world: expected no student or teacher of its own and no observations")
        if self.world is not None and self.setting == "T" and any(term.name == "logits" for term in self.method.terms):
            raise ConfigError(
                f"method {self.method.name!r} reads logits: in setting T the teacher's classes are other people"
            )
        if self.world is not None and self.source != PROCEDURAL and self.world.setting != "S":
            raise ConfigError(
                f"setting: expected 'S', as photographs have one set of people, got {self.world.setting!r}"
            )
        if self.student and self.student not in {**BUILDERS, **DESIGNS} and not userfile.is_reference(self.student):
            raise ConfigError(
                f'student: expected a network ({", ".join([*BUILDERS, *DESIGNS])}) or "file.py:function", '
                f"got {self.student!r}"
            )
        if self.student in DESIGNS and not isinstance(self.side, int):
            raise ConfigError(f"side: {self.student!r} takes LR images of one size: expected one side, got {self.side}")
        if networks.teacher_kind(self.teacher) != "trained" and self.method.teacher in ("random", "own-side"):
            raise ConfigError(
                f"teacher: method {self.method.name!r} builds or trains its own: expected a network "
                f"({', '.join(BUILDERS)}), got {self.teacher!r}"
            )
        if self.method.teacher in methods.TRUTH and not isinstance(self.side, int):
            raise ConfigError(f"side: method {self.method.name!r} has maps of one side: expected one, got {self.side}")
        if self.preset not in PRESETS:
            raise ConfigError(f"preset: expected one of {', '.join(PRESETS)}, got {self.preset!r}")
        for name, seed in (("seed", self.seed), ("teacher-seed", self.teacher_seed)):
            if not isinstance(seed, int) or not 0 <= seed < 2**32:
                raise ConfigError(f"{name}: expected a whole number from 0 to {2**32 - 1}, got {seed}")
        for side in (self.side if isinstance(self.side, tuple) else (self.side,)) if self.side is not None else ():
            if not isinstance(side, int) or not 1 <= side <= self.scale.size:
                raise ConfigError(
                    f"side: expected 1 to {self.scale.size} pixels at scale {self.scale.name} (usual: "
                    f"{', '.join(map(str, self.scale.sides))}; leave it out for HR), got {side}"
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
                f"{self.source}: expected 2 images to train on, got {self.images}: add people or images, and prepare "
                "it again"
            )
        return found if found.batch <= self.images else replace(found, batch=self.images)

    @property
    def images(self) -> int:
        """How many there are to train on; nothing is rendered or resized for it."""
        if self.source == PROCEDURAL:
            return self.scale.identities[0] * self.scale.images
        return len(_prepared(str(self.source)).train)

    @property
    def setting(self) -> str:
        """What the teacher knows, where there is one: without, a student of few people is in S and in T the same."""
        assert self.world is not None
        own, teacher = self.world.many(self.role), self.teacher_run is not None and self.world.many("teacher")
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
    def teacher_kind(self) -> networks.TeacherKind:
        """What `teacher` names."""
        return networks.teacher_kind(self.teacher)

    @property
    def has_teacher(self) -> bool:
        """Whether it learns from what `teacher` names, be it trained or not."""
        return self.method.teacher not in methods.ALONE

    @property
    def teacher_run(self) -> "Spec | None":
        """The run that this one learns from, trained before it; None without, and for a teacher from a file."""
        if not self.has_teacher or self.method.teacher == "random" or self.teacher_kind != "trained":
            return None
        found = replace(
            teacher_spec(self.scale, self.teacher_seed, self.source, self.teacher),
            world=self.world,
            epochs=self.epochs if self.world or self.source != PROCEDURAL else None,
            processes=self.processes,
            sync_norm=self.sync_norm,
        )
        if self.method.teacher != "own-side":
            return found
        return replace(found, side=self.side, student=self.student if self.student in DESIGNS else self.teacher)

    @property
    def lent(self) -> networks.Lent | None:
        """What is known of a teacher that is not trained here."""
        if self.teacher_kind == "trained":
            return None
        return networks.lent_teacher(self.teacher, self.scale.size, self.scale.embedding, self.teacher_seed)

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
        return {name: spec for name, spec in (("teacher", self.teacher_run), ("start", self.start)) if spec is not None}

    @property
    def model(self) -> dict[str, Any]:
        """The student's arguments for `backbones.build`; of a user's function, what it is and what it is asked for."""
        scale, lent = self.scale, self.lent
        shape = {"size": scale.size, "embedding": scale.embedding if lent is None else lent.embedding}
        if self.student in DESIGNS:
            return {**shape, "size": self.side, **DESIGNS[self.student]}
        if self.student in BUILDERS:
            return {"name": self.student, **shape}
        if self.student:
            made = userfile.load_object(self.student)
            return {"function": made.name, "sha256": made.digest, **shape}
        return {"name": scale.model, **shape, **scale.model_options}


def teacher_spec(scale: Scale, seed: int = 0, source: str = PROCEDURAL, student: str = "") -> Spec:
    """Return the HR teacher of that seed; student: its network, see `Spec`, "" for the preset's."""
    return Spec(methods.get("none"), None, seed, scale, source, role="teacher", student=student)


def splits(scale: Scale, source: str = PROCEDURAL) -> tables.Splits:
    """Return the data of a scale: rendered faces, or the prepared folder `source`, brought to the scale's size."""
    cache, rendered = os.environ.get("LRKD_CACHE"), None
    if source == PROCEDURAL:
        face = tuple(sorted((name, tuple(x) if isinstance(x, list) else x) for name, x in scale.face.items()))
        rendered = (tuple(scale.identities), scale.images, tuple(scale.pairs), face, _place(scale))
    return _splits(scale.size, str(source), cache, rendered)


@functools.lru_cache(maxsize=2)
def _splits(size: int, source: str, cache: str | None, rendered: tuple[Any, ...] | None) -> tables.Splits:
    """`splits` of what it depends on. rendered: identities, images, pairs, the face's settings and the device."""
    if rendered is not None:
        identities, images, pairs, face, place = rendered
        return procedural.RenderedSplits(size, identities, images, pairs, face=dict(face), device=place).splits()
    return prepared.resized(_prepared(source), size)


def digests(scale: Scale, source: str = PROCEDURAL) -> tuple[str, dict[str, str]]:
    """Return the data's own name and each split's digest, as `splits` has them, without rendering or resizing."""
    if source == PROCEDURAL:
        counts = scale.identities, scale.images, scale.pairs
        made = procedural.RenderedSplits(scale.size, *counts, face=dict(scale.face), device=_place(scale))
        return PROCEDURAL, made.digests
    faces = _prepared(str(source))
    found = {part: prepared.resized_digest(getattr(faces, part), scale.size) for part in tables.SPLITS}
    return faces.train.name.split("/")[0], found


@functools.lru_cache(maxsize=2)
def _prepared(source: str) -> tables.Splits:
    if not Path(source).is_dir():
        told = how_to_prepare(Path(source)) or "`python -m data_prep` makes one"
        raise DataError(f"data is {source!r}: neither {PROCEDURAL!r} nor a prepared folder; {told}")
    return prepared.prepared(source)


def faces_of(spec: Spec, part: str) -> tables.Faces:
    """Return the "train", "validation" or "test" people of a run's data; of a world only those that it may look at."""
    if spec.world is not None:
        sets = spec.world.splits(spec.role)
        if part not in sets:
            raise ConfigError(f"world {spec.world.number} does not show its {part} people")
        if spec.source == PROCEDURAL:
            return _rendered(_people(spec.scale, spec.world, sets[part]), os.environ.get("LRKD_CACHE"))
    found: tables.Faces = getattr(splits(spec.scale, spec.source), part)
    return found


def _people(scale: Scale, world: World, name: str) -> procedural.People:
    return worlds.people(scale, world, name, _place(scale))


def _place(scale: Scale) -> str:
    """Where faces are rendered: on a GPU they are other data."""
    return "cuda" if scale.on_gpu and torch.cuda.is_available() else "cpu"


@functools.lru_cache(maxsize=4)
def _rendered(people: procedural.People, cache: str | None) -> tables.Faces:
    return people.faces()


def _digests(spec: Spec) -> dict[str, str]:
    """The digests of the data that a run looks at; a world's are known before anything is rendered."""
    if spec.world is None:
        return digests(spec.scale, spec.source)[1]
    sets = spec.world.splits(spec.role)
    if spec.source == PROCEDURAL:
        return {part: _people(spec.scale, spec.world, name).digest for part, name in sets.items()}
    return {part: faces_of(spec, part).digest for part in sets}


def run_config(spec: Spec) -> dict[str, Any]:
    """Return everything that determines a run's weights and measures, in plain values: what the store hashes."""
    return {
        "role": spec.role,
        "scale": spec.scale.name,
        "method": spec.method.describe(),
        "side": spec.side,
        "preset": spec.preset,
        "seed": spec.seed,
        "teacher": _teacher_config(spec),
        "teacher_seed": seed_of_teacher(spec),
        "model": spec.model,
        "head": dict(spec.scale.head),
        "schedule": asdict(spec.schedule),
        "options": asdict(spec.options),
        "data": {"source": source_name(spec), **_digests(spec)},
        **({"world": spec.world.number} if spec.world is not None else {}),
        **({"observations": spec.observations} if spec.observations else {}),
        **({"start": store.digest(run_config(spec.start))} if spec.start else {}),
        **({"processes": spec.processes, "sync_norm": spec.sync_norm} if spec.divided else {}),
    }


def _teacher_config(spec: Spec) -> Any:
    """The hash of a teacher's run, what is known of one from a file, or the name of an untrained network."""
    if spec.teacher_run is not None:
        return store.digest(run_config(spec.teacher_run))
    if not spec.has_teacher:
        return None
    return spec.teacher or None if spec.lent is None else spec.lent.config


def seed_of_teacher(spec: Spec) -> int | None:
    """Return the seed of a run's teacher; None without one, and for one that is not trained here."""
    untaught = spec.method.teacher in ("none", *methods.TRUTH)
    return None if untaught or spec.teacher_kind != "trained" else spec.teacher_seed


def teacher_label(spec: Spec) -> str:
    """Name a run's teacher as a results table does; "" for the preset's own."""
    return networks.label(spec.teacher) if spec.teacher and spec.has_teacher else ""


def source_name(spec: Spec) -> str:
    """Return the data's own name, wherever its folder lies."""
    return PROCEDURAL if spec.source == PROCEDURAL else digests(spec.scale, spec.source)[0]


def run_name(spec: Spec) -> str:
    """Return the readable part of a run's folder name."""
    sides = [spec.side] if not isinstance(spec.side, tuple) else spec.side
    where = "-".join("hr" if side is None else str(side) for side in sides)
    what = "teacher" if spec.role == "teacher" else spec.method.name
    if spec.student:
        what += f"-{_plain(networks.label(spec.student))}"
    seed = seed_of_teacher(spec)
    taught = "" if seed is None else f"-t{seed}"
    if name := teacher_label(spec):
        taught += f"-{_plain(name)}"
    if spec.world is not None:
        taught += f"-w{spec.world.number}{spec.setting}"
    return f"{source_name(spec)}-{spec.scale.name}-{what}-{where}-s{spec.seed}{taught}"


def _plain(text: str) -> str:
    """A name as part of a folder's."""
    return re.sub(r"[^\w.,+@=-]+", "-", text)[:80]


def config_hash(spec: Spec) -> str:
    """Return the hash of the run's configuration, which a results table has in its column `config`."""
    return store.digest(run_config(spec))
