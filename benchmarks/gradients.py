"""How long the gradient of each distance is at an untrained student, and the weights that make them equally long.

The constants of `methods.MATCHED` are rounded from the last column. Features: those of a student before its first step,
through fresh hint layers, on training images at the hardest side; the teacher's, on the same images at HR. The length
is the mean over images of one image's gradient by stage; `length` is the root of the stages' sum of squares.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.shared import finish
from lrkd.data.degradation import degrade
from lrkd.distill import methods
from lrkd.distill.distances import Distance, on_unit
from lrkd.models import backbones
from lrkd.study import experiment, presets
from lrkd.study import spec as study_spec
from lrkd.study.experiment import commit, device_name
from lrkd.training.schedule import threads
from lrkd.training.step import normalise

REFERENCE, WEIGHT = "cosine", 20.0  # F-SKD's


def lengths(distance: Distance, student: list[Tensor], teacher: list[Tensor]) -> list[float]:
    """(B,C,h,w) a stage, twice -> a stage each, the mean over images of |d distance / d student features|."""
    found = []
    for a, b in zip(student, teacher, strict=True):
        x = a.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(distance(x, b).sum(), x)
        found.append(float(gradient.flatten(1).norm(dim=1).mean()))
    return found


def measure(scale: presets.Scale, images: int, seed: int, store: Path | None = None) -> pd.DataFrame:
    """A row a distance of MATCHED, raw and on unit vectors; the teacher is trained where the store lacks it."""
    spec = study_spec.Spec(methods.get("fskd"), scale.sides[-1], seed, scale)
    teacher, _ = experiment.load(experiment.train(study_spec.teacher_spec(scale), store, device="cpu", progress=False))
    options = dict(scale.model_options)
    network = backbones.build(scale.model, size=scale.size, embedding=scale.embedding, seed=seed, **options).train()
    hints = backbones.Hints(network.widths, teacher.widths, seed=seed).train()
    faces = study_spec.splits(scale).train
    x = faces.batch(np.linspace(0, len(faces) - 1, images).astype(np.int64)).float() / 255
    with torch.no_grad(), threads(1):
        t = list(teacher(normalise(x)).features)
        s = list(hints(network(normalise(degrade(x, scale.sides[-1], preset=spec.preset))).features))
    kinds: dict[str, Callable[[Distance], Distance]] = {"raw": lambda d: d, "unit": on_unit}
    rows = []
    for kind, on in kinds.items():
        for name, (distance, _) in methods.MATCHED.items():
            if kind == "unit" and name.startswith("on_unit"):
                continue
            stages = lengths(on(distance), s, t)
            rows.append(
                {"distance": name, "features": kind}
                | {f"stage_{k}": value for k, value in enumerate(stages, 1)}
                | {"length": float(np.linalg.norm(stages))}
            )
    table = pd.DataFrame(rows)
    base = table.loc[(table["distance"] == REFERENCE) & (table["features"] == "raw"), "length"].item()
    return table.assign(matched_weight=WEIGHT * base / table["length"])


def main() -> None:
    """Measure, print, and with --out write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=__doc__)
    parser.add_argument("--scale", help=f"{', '.join(presets.SCALES)} (default: $LRKD_SCALE, else by the machine)")
    parser.add_argument("--images", type=int, default=256, help="training images (default: 256)")
    parser.add_argument("--seed", type=int, default=100, help="of the student's weights (default: 100)")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also merge the rows into this table")
    arguments = parser.parse_args()
    scale = presets.scale(arguments.scale)
    table = measure(scale, arguments.images, arguments.seed)
    table = table.assign(
        scale=scale.name, images=arguments.images, device=device_name("cpu"), torch=torch.__version__, commit=commit()
    )
    measured = table.select_dtypes("float").columns
    table[measured] = table[measured].map(lambda value: float(f"{value:.4g}"))
    finish(table, arguments.out, "distance", "features", "scale")


if __name__ == "__main__":
    main()
