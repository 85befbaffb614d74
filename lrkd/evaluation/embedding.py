"""Images into embeddings, batch by batch."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lrkd.data.datasets import as_faces
from lrkd.data.degradation import Degradation, degrade
from lrkd.errors import ConfigError, DataError, TrainingError
from lrkd.models.layers import evaluating
from lrkd.progress import bar as progress_bar


def embed(
    model: nn.Module,
    images: Any,
    *,
    side: int | None = None,
    preset: str | Degradation = "area-bicubic",
    mirror: bool | Literal["first"] = True,
    batch: int = 256,
    seed: int = 0,
) -> np.ndarray:
    """Embed images: uint8 `(N,H,W,3)` -> `(N,2D)` float32, each image's feature beside that of its mirror image.

    The network is shown RGB in [-1,1] in channels_last, on the device that it is on, under the caller's autocast where
    there is one. It runs in evaluation mode without gradients; afterwards every submodule is in its own mode again. A
    progress bar appears on a terminal.

    Args:
        model: Returns a tensor (B,D) or something with such an `.embedding`.
        images: An array, a memory map, or anything with a length and slices that are such arrays; read `batch` at a
            time. Of a `Dataset` or a `DataLoader` the images in their order, see `lrkd.data.datasets.DatasetFaces`.
        side: Degrade to this side first, and enlarge again unless it is the model's own `size`, to which what is larger
            is brought. None: as they are. At the images' own side `degrade` resamples nothing, but the preset's blur,
            noise and JPEG remain.
        preset: As in `lrkd.data.degradation.degrade`.
        mirror: False gives (N,D). "first" degrades the mirror image itself, as A-SKD does, instead of mirroring the
            degraded image; the two differ only for kernels that are not symmetric, such as nearest.
        batch: Images that the network is shown together.
        seed: Of the preset's random draws.

    Raises:
        ConfigError: `batch` or `side` does not fit.
        DataError: There are no images, or not of this type and shape.
        TrainingError: An embedding is not finite; a diverged network would otherwise score exactly 50 %.
    """
    images = as_faces(images)
    if batch < 1:
        raise ConfigError(f"batch: expected at least 1, got {batch}")
    if len(images) == 0:
        raise DataError("images: expected at least one, got none")
    place = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    size = getattr(model, "size", None)
    found = []
    with evaluating(model), torch.inference_mode():
        for start in progress_bar(range(0, len(images), batch), "embed", unit="batch", delay=1, leave=False):
            with torch.autocast(place.type, enabled=False):
                x = _pixels(images[start : start + batch]).to(place).float() / 255
                if mirror == "first":
                    x = torch.cat([x, x.flip(3)])
                if side is not None:
                    x = degrade(x, side, preset=preset, generator=generator, enlarge=size != side)
                    if isinstance(size, int) and x.shape[3] > size:
                        x = interpolate(x, (size, size), mode="bilinear", antialias=True)
                if mirror and mirror != "first":
                    x = torch.cat([x, x.flip(3)])
                x = ((x - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
            out = model(x)
            out = getattr(out, "embedding", out).float().cpu()
            _check_finite(out, model, start, len(x) // (2 if mirror else 1))
            found.append(torch.cat(out.chunk(2), dim=1) if mirror else out)
    return torch.cat(found).numpy()


def _pixels(block: Any) -> Tensor:
    """uint8 (B,H,W,3) -> (B,3,H,W), a copy: memory maps are read-only."""
    array = np.array(block)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
        raise DataError(f"images: expected uint8 (N,H,W,3), got {array.dtype} {array.shape}")
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def _check_finite(out: Tensor, model: nn.Module, start: int, count: int) -> None:
    """Raise TrainingError for the first image of a batch, `count` images from `start` on, whose embedding is not."""
    finite = out.isfinite().all(1)
    if not finite.all():
        bad = start + int((~finite).nonzero()[0, 0]) % count
        raise TrainingError(
            f"{type(model).__name__}: image {bad}: expected a finite embedding, got one that is not: the network has "
            "diverged (lower the learning rate or a term's weight)"
        )
