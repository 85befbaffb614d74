"""Images into embeddings, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from lrkd.data.degradation import Degradation, degrade
from lrkd.errors import ConfigError, DataError, TrainingError


def embed(
    model: nn.Module,
    images: Any,
    *,
    side: int | None = None,
    preset: str | Degradation = "area-bicubic",
    mirror: bool = True,
    mirror_first: bool = False,
    batch: int = 256,
    device: torch.device | str | None = None,
    seed: int = 0,
    amp: torch.dtype | None = None,
    channels_last: bool = True,
    progress: bool = False,
) -> np.ndarray:
    """Features of images: uint8 `(N,H,W,3) -> (N,2D)` float32, those of the image beside those of its mirror image.

    images: an array, a memory map, or anything with a length and slices that are such arrays; read `batch` at a time.
    side: degrade to this side first, and enlarge again unless it is the model's own `size`; None: as they are. At the
        images' own side `degrade` resamples nothing, but the preset's blur, noise and JPEG remain.
    preset: as in `degrade`, with random draws from `seed`.
    mirror: False gives (N,D). mirror_first: degrade the mirror image itself, as A-SKD does, instead of mirroring the
    degraded image; only kernels that are not symmetric, such as nearest, tell the two apart.
    device: where to run; None: where the model is (else the model is moved, and stays).
    amp: autocast to this dtype. channels_last: memory format of the network's input. progress: show a bar.

    The network sees RGB in [-1,1]. It runs in eval mode without gradients; every submodule's own mode is put back. It
    returns a tensor (B,D) or something with such an `.embedding`.

    Raises DataError for images of another type or shape, TrainingError for an embedding that is not finite (a diverged
    network would otherwise score exactly 50 %).
    """
    if batch < 1:
        raise ConfigError(f"batch: {batch} is not at least 1")
    if len(images) == 0:
        raise DataError("images: there are none to embed")
    place = torch.device(device or next((weight.device for weight in model.parameters()), "cpu"))
    model.to(place)
    generator = torch.Generator().manual_seed(seed)
    found = []
    with evaluating(model), torch.inference_mode():
        for start in tqdm(range(0, len(images), batch), desc="embed", unit="batch", disable=not progress, leave=False):
            block = np.array(images[start : start + batch])  # a copy: memory maps are read-only
            if block.dtype != np.uint8 or block.ndim != 4 or block.shape[3] != 3:
                raise DataError(f"images: {block.dtype} {block.shape} is not uint8 (N,H,W,3)")
            x = torch.from_numpy(block).permute(0, 3, 1, 2).to(place).float() / 255
            if mirror and mirror_first:
                x = torch.cat([x, x.flip(3)])
            if side is not None:
                enlarge = getattr(model, "size", None) != side
                x = degrade(x, side, preset=preset, generator=generator, enlarge=enlarge)
            x = (x - 0.5) / 0.5
            if mirror and not mirror_first:
                x = torch.cat([x, x.flip(3)])
            if channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(place.type, dtype=amp, enabled=amp is not None):
                out = model(x)
            out = getattr(out, "embedding", out).float().cpu()
            if not out.isfinite().all():
                bad = start + int((~out.isfinite().all(1)).nonzero()[0, 0]) % len(block)
                raise TrainingError(
                    f"{type(model).__name__}: the embedding of image {bad} is not finite; the network has diverged "
                    "(lower the learning rate or a term's weight)"
                )
            found.append(torch.cat(out.chunk(2), dim=1) if mirror else out)
    return torch.cat(found).numpy()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
