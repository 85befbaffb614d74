"""The renderer's own answer to where to look, as a teacher: of each training image the map of its information."""

import random

import numpy as np
import torch

from lrkd.data.procedural import cache_dir
from lrkd.data.renderer import FaceModel
from lrkd.data.tables import Faces
from lrkd.errors import DataError
from lrkd.evaluation.attention import standardise
from lrkd.evaluation.fisher_maps import Derivatives, face_derivatives, fisher
from lrkd.files import atomic
from lrkd.models.wrap import Maps
from lrkd.progress import bar as progress_bar
from lrkd.study.presets import Scale

_BLOCK = 25  # images that are computed and kept together: what a stopped run has to do again


def information_maps(faces: Faces, scale: Scale, side: int, device: str = "cpu") -> np.ndarray:
    """Compute where each image tells of its person at a side, once: about .12 s an image of 48 px on one core.

    The derivatives are differences, whose maps correlate with the exact ones at .999 and take a sixth of the time.
    (Those of a render of half the size, which would be as fast, correlate at .91.)

    Args:
        faces: N rendered images.
        scale: Whose `face` they are of.
        side: In pixels.
        device: Where to compute; a GPU takes minutes for what a core takes hours.

    Returns:
        (N,side,side) float32, `Maps.information` of `fisher_maps.fisher`, kept in the cache.

    Raises:
        DataError: The faces were not rendered.
    """
    if faces.identity is None or faces.nuisance is None:
        raise DataError(f"{faces.name}: was not rendered here, so nobody knows where its information is")
    folder, model = cache_dir() / f"information-{faces.digest}-{side}px", FaceModel(**scale.face)
    folder.mkdir(parents=True, exist_ok=True)
    identity, nuisance = (torch.from_numpy(np.array(x)).to(device) for x in (faces.identity, faces.nuisance))
    noise = float(nuisance[:, model.nuisance_names.index("noise")].square().mean().sqrt()) * side / scale.size
    blocks = {folder / f"{int(b[0])}-{len(b)}.npy": b for b in torch.arange(len(faces)).split(_BLOCK)}
    order = random.SystemRandom().sample([*blocks.items()], len(blocks))  # so that processes divide the work
    for path, block in progress_bar(order, desc="information", unit="block", leave=False):
        if path.exists():
            continue
        who = identity[torch.from_numpy(faces.labels)[block]]
        slopes = face_derivatives(model, who, nuisance[block], nuisance.std(0), scale.size, step=1e-3).at_side(side)
        # Small from here on, and so a CPU's work.
        maps = [fisher(one, noise).information.float() for one in map(Derivatives, *(x.cpu() for x in slopes))]
        with atomic(path, "wb") as file:
            np.save(file, torch.stack(maps).numpy(), allow_pickle=False)
    return np.concatenate([np.load(path, allow_pickle=False) for path in blocks])


def teacher(faces: Faces, scale: Scale, side: int, scrambled: bool = False, device: str = "cpu") -> Maps:
    """Make the teacher that knows where each training image tells of its person.

    Its maps are square roots of the information, in standard deviations from their mean over the image, so that a map
    which is the same everywhere is no answer to them.

    Args:
        faces: The training images.
        scale: Whose `face` they are of.
        side: The student's.
        scrambled: Whether each map's values lie at random places, others for each image.
        device: Where to compute them.
    """
    maps = information_maps(faces, scale, side, device)
    if scrambled:
        maps = np.random.default_rng(0).permuted(maps.reshape(len(maps), -1), axis=1).reshape(maps.shape)
    return Maps(standardise(torch.from_numpy(maps).sqrt()))
