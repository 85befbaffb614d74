"""Write the README's pictures from the committed table: `python book/readme_figure.py`, after `lrkd study answer`."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
import torch
from kit import answer, display
from PIL import Image

from lrkd.data.degradation import degrade
from lrkd.data.renderer import FaceModel
from lrkd.study import answer as study


def figure(table: pd.DataFrame) -> display.Shown:
    """The table of study `answer`, part `length` -> the first page's figure."""
    display.style()
    return display.show(answer.by_length(answer.gains(table)), "Gain over no distillation by length.", dpi=100)


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
    (here / "readme-gains.webp").write_bytes(figure(study.read(here / "results", "length")).image)


if __name__ == "__main__":
    main()
