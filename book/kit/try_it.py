"""Prepare a recogniser in a built page: what its script is given, and in Python what that script reproduces.

A picture of H pixels is shrunk to a side that the reader chooses, then brought to the network's own, by the mean of
areas where it gets smaller and by bicubic interpolation where it gets larger: `seen` here, and book/_static/try-it.js.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from kit import display

from lrkd.data.degradation import resampling_matrix
from lrkd.data.renderer import FaceModel
from lrkd.data.tables import Faces
from lrkd.errors import DataError
from lrkd.evaluation import search, separation, verification
from lrkd.onnx.recogniser import Recogniser

FARS = (0.01, 0.1)
BINS = 200  # of the scores from -1 to 1
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


class Scores(NamedTuple):
    """Cosines of test pairs at one side; a pair is taken for one person where its cosine is not below the threshold.

    Attributes:
        side: Pixels.
        genuine: (BINS,) counts from -1 to 1.
        impostor: (BINS,) counts.
        threshold: By FAR.
        accepted: Share of genuine pairs by FAR.
    """

    side: int
    genuine: np.ndarray
    impostor: np.ndarray
    threshold: dict[float, float]
    accepted: dict[float, float]


def scores(recogniser: Recogniser, faces: Faces, sides: Sequence[int]) -> list[Scores]:
    """Score the pairs of faces as a page runs a network: both pictures of a pair at one side, nothing subtracted.

    Raises:
        DataError: The faces have no pairs.
    """
    if faces.pairs is None:
        raise DataError(f"{faces.name}: has no verification pairs")
    pairs, found = faces.pairs, []
    for side in sides:
        blocks = (np.asarray(faces.images[start : start + 256]) for start in range(0, len(faces), 256))
        features = np.concatenate([recogniser(seen(block, side, recogniser.size)) for block in blocks])
        values = verification.cosine_scores(features[pairs.left], features[pairs.right])
        counts = [np.histogram(values[pairs.same == kind], BINS, (-1, 1))[0] for kind in (True, False)]
        curve = separation.roc(values, pairs.same)
        at = {far: int(np.searchsorted(curve.far, far * (1 + 1e-12), side="right")) - 1 for far in FARS}
        cuts = {far: float(curve.threshold[k]) for far, k in at.items()}
        found.append(Scores(side, counts[0], counts[1], cuts, {far: float(curve.tar[k]) for far, k in at.items()}))
    return found


def strangers(world: FaceModel, people: int, images: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw people who are in no data set.

    A person's pictures go from young to old in even steps; all else is drawn at random.

    Returns:
        uint8 (people,images,size,size,3), and their ages in years (people,images).
    """
    generator = torch.Generator().manual_seed(seed)
    who = world.sample_identity(people, generator).repeat_interleave(images, 0)
    how = world.sample_nuisance(people * images, generator)
    table = world.describe().set_index("name")
    age = torch.linspace(table.loc["age", "low"], table.loc["age", "high"], images + 2)[1:-1].repeat(people)
    how[:, world.nuisance_names.index("age")] = age
    faces = world.images(who, how, size=size)
    assert isinstance(faces, torch.Tensor)
    rgb = faces.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return rgb.reshape(people, images, size, size, 3), age.reshape(people, images).numpy()


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


def painted(inputs: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Paint occlusion maps on their pictures, as the page does.

    The picture is grey; vermilion where the similarity falls, blue where it rises, in full at the largest of all maps.

    Args:
        inputs: (N,3,S,S) in [-1,1].
        maps: (N,S,S).

    Returns:
        (N,S,S,3) uint8.
    """
    grey = 0.6 * 127.5 * (inputs.transpose(0, 2, 3, 1) + 1) @ np.array([0.299, 0.587, 0.114]) + 90
    share = np.abs(maps) / max(np.abs(maps).max(), 1e-9)
    colour = np.where((maps > 0)[..., None], (213.0, 94.0, 0.0), (0.0, 114.0, 178.0))
    return (grey[..., None] + share[..., None] * (colour - grey[..., None])).round().astype(np.uint8)


class Tool(NamedTuple):
    """What `tool` makes; a page shows it as the last line of a cell."""

    text: str

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return "A recogniser to try, in a built page"


def tool(
    pictures: np.ndarray, ages: np.ndarray, found: Sequence[Scores], size: int, still: Any, caption: str = ""
) -> Tool:
    """Make the figure that book/_static/try-it.js brings to life.

    Args:
        pictures: Of `strangers`.
        ages: Of `strangers`.
        found: Of `scores`, a stop of the slider each.
        size: Pixels a side of the network's input.
        still: A figure of `kit.display.show`, shown until the recogniser is loaded, and for good where it cannot be.
        caption: Shown below.
    """
    people = [
        {
            "name": chr(ord("A") + k),
            "pictures": [
                {"age": round(float(age)), "rgb": base64.b64encode(np.ascontiguousarray(one).tobytes()).decode()}
                for one, age in zip(own, years, strict=True)
            ],
        }
        for k, (own, years) in enumerate(zip(pictures, ages, strict=True))
    ]
    data: Mapping[str, Any] = {
        "side": pictures.shape[2],
        "size": size,
        "patch": PATCH,
        "stride": STRIDE,
        "people": people,
        "scores": [
            {
                "side": one.side,
                "genuine": one.genuine.tolist(),
                "impostor": one.impostor.tolist(),
                "cuts": [{"far": far, "at": round(cut, 6)} for far, cut in one.threshold.items()],
            }
            for one in found
        ],
    }
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return Tool(
        f'<figure class="try-it" style="margin:0"><div class="try-still">{still._repr_html_()}</div>{below}'
        "<noscript><p>Scripts are off: the picture shows what the recogniser would show.</p></noscript>"
        f"{display.embedded(data)}</figure>"
    )
