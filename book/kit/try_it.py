"""Prepare a recogniser in a built page: what its script is given, and in Python what that script reproduces.

A face is framed as `lrkd.data.alignment.warp` frames it, by five landmarks or by hand, shrunk to a side that the reader
chooses, then brought to the network's own: by the mean of areas where it gets smaller and by bicubic interpolation
where it gets larger, `seen` here. book/_static/try-it.js does the same.
"""

import base64
import io
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from kit import display, figures
from matplotlib.figure import Figure
from PIL import Image

from lrkd.data.alignment import SIZE, template
from lrkd.data.degradation import resampling_matrix
from lrkd.data.renderer import FaceModel
from lrkd.errors import DataError
from lrkd.evaluation import search
from lrkd.onnx.recogniser import Recogniser

PATCH, STRIDE = 4, 2  # pixels of the network's input: what is covered at once, and the step to the next


def seen(images: np.ndarray, side: int, size: int) -> np.ndarray:
    """Return what the network is given of pictures.

    Args:
        images: (N,H,H,3) uint8.
        side: 1 to H, the resolution of the picture; where it is `size`, the result is what the study embeds.
        size: Pixels a side of the network's input.

    Returns:
        (N,3,size,size) float32 in [-1,1].

    Raises:
        DataError: Images or side are not as above.
    """
    x = np.asarray(images)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] != x.shape[2] or x.shape[3] != 3 or not 1 <= side <= x.shape[1]:
        raise DataError(f"images: {x.dtype} {x.shape} at side {side} is not uint8 (N,H,H,3) with a side of 1 to H")
    down = resampling_matrix(x.shape[1], side, "area")
    own = resampling_matrix(side, size, "area" if side > size else "bicubic") @ down
    rows = np.tensordot(x / 255, own, (2, 1))  # (N,H,3,size)
    found = np.tensordot(rows, own, (1, 1))  # (N,3,size,size), across and then down
    return (2 * found.clip(0, 1) - 1).astype(np.float32).transpose(0, 1, 3, 2)


class Drawn(NamedTuple):
    """Pictures of people who exist nowhere.

    Attributes:
        images: uint8 (people,pictures,S,S,3).
        ages: Years (people,pictures).
        points: (people,pictures,5,2) landmarks in pixels, as `lrkd.data.alignment` has them.
    """

    images: np.ndarray
    ages: np.ndarray
    points: np.ndarray


def strangers(world: FaceModel, people: int, pictures: int, size: int, seed: int) -> Drawn:
    """Draw people who are in no data set.

    A person's pictures go from young to old in even steps; all else is drawn at random. Where the eyes, the nose and
    the mouth are is known but for the turn of the head, which moves them little.
    """
    generator = torch.Generator().manual_seed(seed)
    who = world.sample_identity(people, generator).repeat_interleave(pictures, 0)
    how = world.sample_nuisance(people * pictures, generator)
    table = world.describe().set_index("name")
    age = torch.linspace(table.loc["age", "low"], table.loc["age", "high"], pictures + 2)[1:-1].repeat(people)
    how[:, world.nuisance_names.index("age")] = age
    faces = world.images(who, how, size=size)
    rgb = faces.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    p = {name: value.flatten().double().numpy() for name, value in world.quantities(who, how).items()}
    eyes, mouth = p["eye_spacing"] - 1j * p["eye_height"], p["mouth_width"] - 1j * p["mouth_height"]
    five = np.stack([-eyes, eyes.conj(), 1j * p["nose_length"], -mouth, mouth.conj()], 1)
    five = five * np.exp(p["scale"] + 1j * p["roll"])[:, None] + (p["shift_x"] + 1j * p["shift_y"])[:, None]
    points = (np.stack([five.real, five.imag], 2) + 1) * size / 2 - 0.5
    shape = people, pictures
    return Drawn(rgb.reshape(*shape, size, size, 3), age.reshape(shape).numpy(), points.reshape(*shape, 5, 2))


def occlusion(recogniser: Recogniser, left: np.ndarray, right: np.ndarray) -> tuple[float, np.ndarray]:
    """Measure by how much the similarity of two inputs falls where each is covered.

    A patch of PATCH pixels takes the mean colour of its picture, one at a time and in steps of STRIDE; a pixel has the
    mean over the patches that covered it.

    Args:
        recogniser: The network.
        left: (3,S,S).
        right: (3,S,S).

    Returns:
        The similarity, and (2,S,S) falls; below zero the similarity rises.
    """
    pair, size = np.stack([left, right]), recogniser.size
    steps = range(0, size - PATCH + 1, STRIDE)
    places = [(slice(top, top + PATCH), slice(start, start + PATCH)) for top in steps for start in steps]
    covered = np.repeat(pair, len(places), axis=0).reshape(2, len(places), *left.shape)
    for k, place in enumerate(places):
        covered[:, k, :, *place] = pair.mean((2, 3))[..., None, None]
    features = search.unit(recogniser(np.concatenate([pair, *covered]).astype(np.float32)).astype(np.float64))
    whole, hidden = features[:2], features[2:].reshape(2, len(places), -1)
    similarity = float(whole[0] @ whole[1])
    falls = similarity - np.stack([hidden[0] @ whole[1], hidden[1] @ whole[0]])
    total, count = np.zeros((2, size, size)), np.zeros((size, size))
    for k, place in enumerate(places):
        total[:, *place] += falls[:, k, None, None]
        count[place] += 1
    return similarity, total / np.maximum(count, 1)


def counts(row: Any, kind: str) -> np.ndarray:
    """The counts of `python -m book.student_photos scores` in a row of its table; `kind` is genuine or impostor."""
    return np.array(str(getattr(row, kind)).split(), np.int64)


def distributions(table: pd.DataFrame) -> Figure:
    """Draw the cosines of photo-scores.csv, a panel a side, each with its threshold."""
    fig, axes = plt.subplots(1, len(table), figsize=(9, 2.8), sharex=True, sharey=True, squeeze=False)
    for ax, row in zip(axes[0], table.itertuples(), strict=True):
        genuine, impostor = counts(row, "genuine"), counts(row, "impostor")
        bars = [kind.reshape(-1, 5).sum(1) for kind in (genuine, impostor)]
        figures.score_histogram(ax, np.linspace(-1, 1, len(bars[0]) + 1), *bars, xlabel="cosine")
        ax.axvline(row.threshold, color=display.BLACK, linestyle="--", linewidth=1.2)
        ax.set(xlim=(-0.5, 1))
        ax.set_title(f"{row.side} px: {row.threshold:.2f}", fontsize=10)
    return fig


class Tool(NamedTuple):
    """What `tool` makes; a page shows it as the last line of a cell."""

    text: str

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return "A recogniser to try, in a built page"


def tool(network: Recogniser, table: pd.DataFrame, drawn: Drawn) -> Tool:
    """Make the figure that book/_static/try-it.js brings to life.

    Args:
        network: The student, whose metadata say what it is.
        table: Of `python -m book.student_photos scores`, a stop of the slider each row.
        drawn: For a reader without a picture.
    """
    people = [
        [
            {"age": round(float(age)), "webp": _webp(image), "points": points.round(2).tolist()}
            for image, age, points in zip(images, ages, fives, strict=True)
        ]
        for images, ages, fives in zip(*drawn, strict=True)
    ]
    rows = [
        {"genuine": counts(row, "genuine").tolist(), "impostor": counts(row, "impostor").tolist()}
        | {name: getattr(row, name) for name in ("side", "threshold", "false_match_rate", "people")}
        for row in table.itertuples()
    ]
    data: dict[str, Any] = {
        "size": network.size,
        "template": template(SIZE).tolist(),
        "aligned": SIZE,
        "patch": PATCH,
        "stride": STRIDE,
        "people": people,
        "scores": rows,
        "card": {name: network.metadata[name] for name in ("trained_on", "not_for", "threshold_data")},
    }
    return Tool(
        '<figure class="try-it" style="margin:0"><noscript><p>Scripts are off, and the recogniser needs them.</p>'
        f"</noscript>{display.embedded(data)}</figure>"
    )


def _webp(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", lossless=True)
    return base64.b64encode(file.getvalue()).decode()
