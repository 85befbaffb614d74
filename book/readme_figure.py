"""Write the README's pictures: `python book/readme_figure.py`, after `lrkd study core`."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from kit import display, figures
from PIL import Image

from lrkd.data.degradation import degrade
from lrkd.data.renderer import FaceModel
from lrkd.distill import methods
from lrkd.evaluation import statistics
from lrkd.files import read_table


def figure(table: pd.DataFrame) -> display.Shown:
    """A results table of `lrkd study core` -> the first page's forest plot, at its hardest side."""
    test = table[(table["role"] == "student") & (table["protocol"] == "test")]
    hard = test[test["side"] == test["side"].min()]
    gains = statistics.paired_differences(hard)
    display.style()
    ax = plt.subplots(figsize=(8, 1.2 + 0.28 * len(gains)))[1]
    figures.verdict(ax, gains, {name: method.title for name, method in methods.METHODS.items()})
    ax.set_title(f"What distillation gains at {hard['side'].min()} pixels a side (95 % intervals over paired seeds)")
    return display.show(ax, "Accuracy gained over no distillation, by method.", dpi=100)


def faces(people: int = 2, sides: tuple[int, ...] = (112, 28, 14, 6), size: int = 112) -> bytes:
    """Draw rendered people, each as seen with so many pixels a side, in one row as a WebP picture."""
    world, generator = FaceModel(seed=0), torch.Generator().manual_seed(2)
    sharp = world(world.sample_identity(people, generator), world.sample_nuisance(people, generator), size=size)
    row = []
    for face in sharp.unbind():
        for side in sides:
            tiny = degrade(face[None], side, enlarge=False)[0]
            pixels = (tiny.permute(1, 2, 0) * 255).round().byte().numpy()
            row.append(np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)))
    file = io.BytesIO()
    Image.fromarray(np.concatenate(row, axis=1)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def main() -> None:
    here = Path(__file__).resolve().parent
    (here / "readme-faces.webp").write_bytes(faces())
    (here / "readme-forest.webp").write_bytes(figure(read_table(here / "results" / "core.csv")).image)


if __name__ == "__main__":
    main()
