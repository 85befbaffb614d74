"""A photograph becomes a square face: which part of it is taken, and how it is resized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lrkd.data import detection
from lrkd.data.alignment import Detector, central, warp
from lrkd.data.images import upright

MAX_SIDE = 4096  # pixels; some images of that size are in memory at once
Box = Callable[[int, int], tuple[float, float, float, float]]


def centre_pixels(side: int) -> Box:
    """The `side` x `side` square in the middle."""

    def box(width: int, height: int) -> tuple[float, float, float, float]:
        if min(width, height) < side:
            raise ValueError(f"{width}x{height} px is smaller than the crop of {side} px")
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side

    return box


def centre_share(share: float) -> Box:
    """The square in the middle whose side is `share` of the shorter side."""
    return lambda width, height: centre_pixels(max(1, round(share * min(width, height))))(width, height)


def whole_padded(width: int, height: int) -> tuple[float, float, float, float]:
    """The smallest square around the whole image; what lies outside the image is black."""
    side = max(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def convert(data: bytes, size: int, box: Box) -> np.ndarray:
    """Bytes of an image file -> (S,S,3) uint8 RGB: turned upright, cropped, resized (Lanczos, antialiased).

    Raises what `upright` raises, and ValueError on a crop too large.
    """
    with upright(data) as image:
        wanted = tuple(map(int, box(*image.size)))
        part = image if wanted == (0, 0, *image.size) else image.crop(wanted)  # type: ignore[arg-type]
        return np.asarray(part.resize((size, size), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class Framing:
    """Which part of a photograph is the face.

    Attributes:
        crop: What `meta.json` says of it.
        decode: (source, bytes of the image file, S) -> (S,S,3) uint8 RGB. It raises `NoFace` where no face is found.
        finds_faces: Whether `decode` looks for faces, so that their absence is counted even when there is none.
    """

    crop: dict[str, Any]
    decode: Callable[[str, bytes, int], np.ndarray]
    finds_faces: bool = False

    @classmethod
    def of(cls, box: Box, **crop: Any) -> Framing:
        """Frame every photograph by a box that depends on its width and height alone."""
        return cls(crop, lambda _, data, size: convert(data, size, box))

    @classmethod
    def centre(cls, share: float) -> Framing:
        """Frame the square in the middle whose side is `share` of the shorter side."""
        return cls.of(centre_share(share), kind="centre", share=share)

    @classmethod
    def whole(cls) -> Framing:
        """Frame the whole image, with black around it."""
        return cls.of(whole_padded, kind="whole")

    @classmethod
    def found(cls, detector: Detector | None = None) -> Framing:
        """Frame the largest central face, aligned by its landmarks, of those that a detector finds.

        The default is the detector of the extra `photos`; ConfigError where that is missing.
        """
        detect = detector or detection.detector()

        def decode(_: str, data: bytes, size: int) -> np.ndarray:
            with upright(data) as image:
                return warp(image, central(detect(np.asarray(image)), image.height, image.width), size)

        named: Any = detect if hasattr(detect, "__qualname__") else type(detect)
        by = {"by": "detector", "name": f"{named.__module__}:{named.__qualname__}"}
        return cls({"kind": "five points", **by}, decode, finds_faces=True)
