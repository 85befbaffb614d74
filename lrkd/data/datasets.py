"""What people of PyTorch have, a `Dataset` of (image, label) or a `DataLoader` of one, as a table of faces here."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lrkd.data.tables import digest_of
from lrkd.errors import DataError


class DatasetFaces:
    """The images and labels of a dataset, read when they are asked for; its own order and batches are not used.

    An image is what torchvision's datasets give: a PIL image, uint8 (H,W,3), or a tensor (3,H,W), either uint8 or
    floating point in [0,1]. All have one size. Transforms that draw at random are left out: `fit` mirrors and shifts.

    Attributes:
        images: This object itself, read as an array: uint8 (N,H,W,3).
        labels: (N,) int64; from `targets` where the dataset has them, else by reading all of it once.
        shape: Of the images, (N,H,W,3).
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, data: Any) -> None:
        base: Any = data.dataset if isinstance(data, DataLoader) else data
        self.data = base
        if not hasattr(self.data, "__getitem__") or not hasattr(self.data, "__len__") or not len(self.data):
            got = f"{type(self.data).__name__} {'of none' if hasattr(self.data, '__len__') else 'without'}"
            raise DataError(f"expected a dataset with a length and numbered images, got {got}")
        self.shape = (len(self.data), *self._image(0).shape)

    @property
    def images(self) -> DatasetFaces:
        return self

    @cached_property
    def labels(self) -> np.ndarray:
        found = getattr(self.data, "targets", None)
        if found is None:
            found = [self._entry(row)[1] for row in range(len(self))]
        try:
            labels = np.asarray(found).reshape(len(self))
            whole = labels.astype(np.int64)
        except (TypeError, ValueError) as error:
            raise DataError(f"labels: expected {len(self)} whole numbers, as `fit` needs, got {error}") from error
        if labels.dtype == object or (whole != labels).any():
            odd = labels[whole != labels].tolist() or [labels[0]]
            raise DataError(f"labels: expected {len(self)} whole numbers, as `fit` needs, got {odd[0]!r}")
        return whole

    @property
    def digest(self) -> str:
        """Of the labels alone; a checkpoint compares pixels too."""
        return digest_of("dataset", self.shape, self.labels.tolist())

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.stack([self._image(int(row)) for row in np.atleast_1d(np.arange(len(self))[rows])])

    def _entry(self, row: int) -> tuple[Any, Any]:
        entry = self.data[row]
        if isinstance(entry, tuple | list) and len(entry) > 1:
            return entry[0], entry[1]
        return entry, None

    def _image(self, row: int) -> np.ndarray:
        given = image = self._entry(row)[0]
        if isinstance(image, torch.Tensor) and image.ndim == 3:
            image = image.detach().cpu().permute(1, 2, 0).numpy()
        elif hasattr(image, "convert"):
            image = image.convert("RGB")
        found = np.asarray(image)
        if found.dtype.kind == "f" and found.size and found.min() >= 0 and found.max() <= 1:
            found = np.rint(found * 255).astype(np.uint8)
        wanted = getattr(self, "shape", (0, *found.shape))[1:]
        if found.dtype != np.uint8 or found.shape != wanted or found.ndim != 3 or found.shape[2] != 3:
            raw = np.asarray(given) if isinstance(given, np.ndarray | torch.Tensor) else found
            said = f" from {found.min():g} to {found.max():g}" if found.dtype.kind == "f" and found.size else ""
            what = f"{raw.dtype} {raw.shape}{said}" if raw.dtype != object else f"a {type(given).__name__}"
            raise DataError(
                f"image {row}: expected RGB of one size, a tensor (3,H,W), an array (H,W,3) or PIL's, uint8 or in "
                f"[0,1] and not normalised, in a pair (image, label), got {what}"
            )
        return found


def as_faces(data: Any) -> Any:
    """Return a dataset, a loader or a list of (image, label) as `DatasetFaces`, and anything else as it is."""
    return DatasetFaces(data) if isinstance(data, Dataset | DataLoader | list) else data
