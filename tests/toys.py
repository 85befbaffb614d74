"""Faces and networks small enough to train in a blink, for the tests of training, and a run that can be killed."""

import contextlib
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lrkd.data.tables import Faces
from lrkd.distill.terms import Term, attention, feature
from lrkd.models import backbones, heads, layers
from lrkd.training import loop
from lrkd.training.execution import Execution
from lrkd.training.loop import Fitted
from lrkd.training.schedule import Options, Schedule
from lrkd.training.step import Teacher

OPTIONS = Options(threads=1)


def faces(classes: int = 4, images: int = 16, size: int = 8, seed: int = 0) -> Faces:
    """Noisy copies of one coarse random pattern a class, easy to tell apart; other seeds, other noise."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(1000).integers(40, 216, (classes, 4, 4, 3))
    labels = rng.permutation(np.repeat(np.arange(classes), images))
    clean = patterns[labels].repeat(size // 4, 1).repeat(size // 4, 2)
    noisy = (clean + rng.integers(-30, 31, clean.shape)).astype(np.uint8)
    names = tuple(f"p{k}" for k in range(classes))
    return Faces(noisy, labels.astype(np.int64), None, None, names, "toy", f"toy-{classes}-{images}-{size}-{seed}")


def pair(seed: int = 0, head: str = "cosface", dropout: float = 0.0) -> tuple[backbones.IResNet, heads.Head]:
    """A network of two blocks for 8 px and its head for four classes."""
    network = backbones.small(8, 8, (4, 8), seed=seed, dropout=dropout)
    return network, heads.build(head, 4, 8, seed=seed, scale=16.0, margin=0.1)


def state(*modules: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters and buffers."""
    return {
        f"{k}.{name}": value.clone() for k, module in enumerate(modules) for name, value in module.state_dict().items()
    }


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def fit(
    network: layers.Network,
    head: heads.Head,
    faces: Faces,
    *,
    schedule: Schedule,
    options: Options | None = None,
    teacher: Teacher | None = None,
    terms: tuple[Term, ...] = (),
    **execution: Any,
) -> Fitted:
    """Call `lrkd.training.loop.fit` with the fields of Execution as keywords, and the terms beside their teacher."""
    taught = None if teacher is None else replace(teacher, terms=terms)
    return loop.fit(network, head, faces, schedule, options, taught, Execution(**execution))


def train(
    seed: int = 0, epochs: int = 2, *, distil: bool = True, head: str = "cosface", dropout: float = 0.0, **more: Any
) -> tuple[dict[str, torch.Tensor], Fitted]:
    """A whole run of epochs * 4 steps -> the final weights of network and head, and what `fit` returned."""
    network, classes = pair(seed, head, dropout)
    terms: tuple[Term, ...] = (feature(weight=2.0), attention()) if distil else ()
    found = fit(
        network,
        classes,
        more.pop("faces", None) or faces(),
        schedule=more.pop("schedule", Schedule(epochs, batch=16, lr=0.05)),
        options=more.pop("options", Options(side=(2, 4), shift=1, threads=1)),
        teacher=Teacher(*pair(99)) if distil else None,
        terms=terms,
        seed=seed,
        progress=False,
        **more,
    )
    return state(network, classes), found


def photographs(folder: Path, people: int, images: int, size: int = 28) -> Path:
    """Pictures in one folder a person, brought to the prepared layout: `folder`/prepared, named "people"."""
    from PIL import Image  # here, so that a run to be killed starts sooner

    from data_prep.folder import prepare

    rng = np.random.default_rng(0)
    for person in range(people):
        (folder / "source" / f"person{person:02d}").mkdir(parents=True)
        pattern = rng.integers(40, 216, (3, 3, 3)).repeat(10, 0).repeat(10, 1)
        for k in range(images):
            pixels = (pattern + rng.integers(-30, 31, pattern.shape)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "source" / f"person{person:02d}" / f"{k}.png")
    prepare(folder / "source", folder / "prepared", size=size, name="people")
    return folder / "prepared"


KILLED: dict[str, Any] = {"epochs": 15, "head": "adaface", "dropout": 0.2, "checkpoint_every": 2}


def kill(folder: Path, kills: int, seed: int) -> None:
    """Train the `KILLED` run in a process that is killed at `kills` random moments, then let it finish.

    Prints how many steps each process had counted when it died. The moments are drawn from `seed`: after some steps,
    and a random part of a step later, so that any line of a step or of a save may be the last.
    """
    draw = random.Random(seed)
    for attempt in range(kills + 1):
        last = attempt == kills
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            weights, _ = train(directory=folder, stop=lambda writer=writer: not os.write(writer, b"."), **KILLED)
            torch.save(weights, folder / "final.pt")
            os._exit(0)
        os.close(writer)
        wanted, steps, since, pace = draw.randint(1, 9), 0, time.perf_counter(), 0.02
        while (last or steps < wanted) and os.read(reader, 1):
            steps += 1
            if steps > 1:  # before the first the process started
                pace = time.perf_counter() - since
            since = time.perf_counter()
        if not last:
            time.sleep(draw.random() * pace)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        os.close(reader)
        print(steps, -os.waitstatus_to_exitcode(status), flush=True)


def killer(*_: Any, **__: Any) -> None:
    """A worker's task that ends its process, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    kill(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
