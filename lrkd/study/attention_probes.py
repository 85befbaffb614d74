"""The faces on which attention is measured, with where the renderer says that the information is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrkd.data import tables
from lrkd.data.face_quantities import PARTS
from lrkd.data.renderer import FaceModel
from lrkd.errors import DataError
from lrkd.evaluation.fisher_maps import Maps, face_derivatives, fisher
from lrkd.progress import bar as progress_bar
from lrkd.study.presets import Scale


@dataclass(frozen=True)
class Probes:
    """What every run is shown: one image each of N test people, n of them with ground truth.

    rows (N,) of the test table; known (n,) of these N; friends (n,M) rows of other images of the same people.
    hr (N,3,S,S) in [0,1]. information, energy, nuisance: a side's maps of the known, (n,side,side); bits: (n,).
    masks: a part's (n,S,S), "background" for the rest. noise: standard deviation of the sensor's, per HR pixel.
    """

    rows: np.ndarray
    known: np.ndarray
    friends: np.ndarray
    hr: Tensor
    information: Mapping[int, np.ndarray]
    energy: Mapping[int, np.ndarray]
    nuisance: Mapping[int, np.ndarray]
    bits: Mapping[int, np.ndarray]
    masks: Mapping[str, np.ndarray]
    noise: float


def probes(faces: tables.Faces, scale: Scale, people: int = 192) -> Probes:
    """Choose images to look at, and compute their ground truth: about .4 s an image at 48 px, on one core.

    Args:
        faces: The rendered test table.
        scale: The preset.
        people: How many evenly spaced people to take, with one image each, drawn with a fixed seed.

    Returns:
        The probes: every third has ground truth, and up to five other images of the person.

    Raises:
        DataError: The faces were not rendered, so that nobody knows where the information is.
    """
    if faces.identity is None or faces.nuisance is None:
        raise DataError(f"{faces.name}: was not rendered here, so nobody knows where its information is")
    rng = np.random.default_rng(0)
    chosen = np.linspace(0, faces.classes - 1, min(people, faces.classes)).astype(np.int64)
    own = [rng.permutation(np.flatnonzero(faces.labels == person)) for person in chosen]
    first = np.array([images[0] for images in own])
    known = np.arange(0, len(first), 3)
    count = min(5, min(len(images) for images in own) - 1)
    model, spread = FaceModel(**scale.face), torch.from_numpy(faces.nuisance.std(0))
    identity, nuisance = torch.from_numpy(faces.identity[faces.labels[first]]), torch.from_numpy(faces.nuisance[first])
    noise = float(np.sqrt(np.square(faces.nuisance[:, model.nuisance_names.index("noise")]).mean()))
    found: dict[int, list[Maps]] = {side: [] for side in (scale.size, *scale.sides)}
    for k in progress_bar(known, desc="derivatives", unit="img", leave=False):
        slopes = face_derivatives(model, identity[k], nuisance[k], spread, scale.size)
        for side, maps in found.items():  # a pixel of the LR image averages (size / side)^2 pixels, and their noise
            maps.append(fisher(slopes.at_side(side), noise * side / scale.size))
    with torch.no_grad():
        _, masks = model.render(identity[known], nuisance[known], scale.size, masks=True)
    parts = {part: masks[part][:, 0].numpy() for part in PARTS}
    return Probes(
        rows=first,
        known=known,
        friends=np.stack([own[k][1 : count + 1] for k in known]),
        hr=faces.batch(first).float() / 255,
        **{
            name: {side: np.stack([getattr(one, name).numpy() for one in maps]) for side, maps in found.items()}
            for name in ("information", "energy", "nuisance")
        },
        bits={side: np.array([one.bits for one in maps]) for side, maps in found.items()},
        masks=parts | {"background": (1 - np.sum(list(parts.values()), 0)).clip(0, 1)},
        noise=noise,
    )
