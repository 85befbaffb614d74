"""The batches of a run: the order of the images, reading them, and augmentation."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lrkd.data.degradation import to_device
from lrkd.models.heads import Head, check_labels
from lrkd.training import distributed
from lrkd.training.acceleration import prefetch
from lrkd.training.schedule import Options


class Images(Protocol):
    """What `fit` needs of `data.Faces`: uint8 images (N,H,W,3), int64 labels (N,), the number of classes, a digest."""

    @property
    def images(self) -> Any: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def digest(self) -> str: ...


class Batches:
    """The batches of all epochs, each image once an epoch, in an order that the seed and the epoch determine.

    Images that do not fill a last batch are left out of their epoch. Of processes that train together, each gets its
    part of every batch.

    Attributes:
        images: (B,) indices -> (B,3,H,W) in [0,1] on the device.
        labels: (N,) int64 on the device.
        resident: Whether all images lie on the device.
        per_epoch: The number of batches in an epoch.
    """

    def __init__(self, faces: Images, head: Head, batch: int, seed: int, device: torch.device) -> None:
        self.count, self.batch, self.seed, self.device = len(faces.labels), batch, seed, device
        self.per_epoch, self.share = self.count // batch, distributed.local_part(batch)
        self.resident = fits_on_device(faces, device)
        self.images = image_reader(faces, device, self.resident)
        labels = torch.from_numpy(np.asarray(faces.labels))
        check_labels(labels, head.classes)  # which a GPU would not say
        self.labels = labels.to(device)

    def example(self) -> Tensor:
        """Return a batch of images (B,3,H,W), the same each time."""
        return self.images(torch.arange(self.batch)[self.share])

    def indices(self, start: int, stop: int) -> Iterator[Tensor]:
        """Yield the indices (B,) of the images of steps `start` to `stop` - 1."""
        for step in range(start, stop):
            epoch, within = divmod(step, self.per_epoch)
            if step == start or not within:
                order = torch.from_numpy(np.random.default_rng([self.seed, epoch]).permutation(self.count))
            yield order[within * self.batch : (within + 1) * self.batch][self.share]

    def read(self, start: int, stop: int, ahead: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield indices (B,) and images (B,3,H,W) of those steps, read one step ahead where asked."""
        return (prefetch if ahead else map)(lambda index: (index, self.images(index)), self.indices(start, stop))


def draw_augmentation(count: int, options: Options, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
    """Draw which of `count` images are mirrored (count,) and how far each is shifted (count,2), on the CPU."""
    flip = torch.rand(count, generator=generator) < 0.5 if options.mirror else None
    if not options.shift:
        return flip, None
    return flip, torch.randint(-options.shift, options.shift + 1, (2, count), generator=generator).T


def augment(hr: Tensor, flip: Tensor | None, shift: Tensor | None) -> Tensor:
    """Mirror (B,) and shift (B,2) images, (B,3,H,W) -> the same shape."""
    size = hr.shape[-1]
    if flip is not None:
        hr = torch.where(to_device(flip, hr.device)[:, None, None, None], hr.flip(3), hr)
    if shift is not None:
        drawn = to_device(shift.T[..., None], hr.device)
        rows, columns = (torch.arange(size, device=hr.device) + drawn).clamp(0, size - 1)
        each = torch.arange(len(hr), device=hr.device)[:, None, None]
        hr = hr.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return hr


# Images of more bytes than this stay where they lie when a CPU trains on them.
RESIDENT_BYTES = 2e9


def fits_on_device(faces: Images, device: torch.device) -> bool:
    """Return whether all images take less than 30 % of the device's free memory (2 GB on a CPU)."""
    room = 0.3 * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else RESIDENT_BYTES
    return math.prod(faces.images.shape) < room


def image_reader(faces: Images, device: torch.device, resident: bool) -> Callable[[Tensor], Tensor]:
    """Make a function from indices (B,) to float images (B,3,H,W) in [0,1] on the device.

    Args:
        faces: The images.
        device: Where they are needed.
        resident: Whether to put all of them on the device once; otherwise each batch is read from where it lies.
    """
    if resident:
        everything = torch.from_numpy(np.array(faces.images[:])).to(device).permute(0, 3, 1, 2)
        return lambda index: everything[to_device(index, device)].float() / 255

    def read(index: Tensor) -> Tensor:
        part = torch.from_numpy(np.ascontiguousarray(faces.images[index.numpy()]))
        if device.type == "cuda":
            part = part.pin_memory().to(device, non_blocking=True)
        return part.permute(0, 3, 1, 2).float() / 255

    return read
