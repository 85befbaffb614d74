"""Lay the maps of networks over faces, for the page on attention."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from kit import viewers
from kit.display import named

from lrkd.data.degradation import degrade
from lrkd.errors import DataError
from lrkd.evaluation import attention
from lrkd.study.attention_study import unpack


class Gallery:
    """What `lrkd attention --maps` wrote: seed 0's maps over the examples, and where the information is.

    Pictures are (E,P,P,3) uint8, with P three times the image's size. A network is a method's name, or "teacher", with
    its side.

    Attributes:
        size: Pixels a side of the images.
        sides: The LR sides, falling.
        about: Scale, commit, torch, device.

    Raises:
        DataError: The file was not written by `lrkd attention`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                self.arrays = dict(file)
            self.about: dict[str, Any] = json.loads(str(self.arrays["about"]))
            self.examples, self.picked = self.arrays["examples"], self.arrays["picked"]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise DataError(f"{path}: is no file of maps of `lrkd attention` ({error})") from error
        self.size = self.examples.shape[1]
        found = {int(key.split("/")[1]) for key in self.arrays if key.startswith("information/")}
        self.sides = sorted(found - {self.size}, reverse=True)

    def has(self, name: str, side: int) -> bool:
        """Tell whether the file has that network."""
        return f"{name}/{side}/cbam/1" in self.arrays

    def maps(self, name: str, side: int, kind: str = "cbam", block: str = "fused") -> np.ndarray:
        """Return a network's maps of the examples, pre-sigmoid but for "gradcam": (E,h,w), of kind "channel" (E,C)."""
        if block != "fused":
            found = self.arrays[f"{name}/{side}/{kind}/{block}"].astype(np.float32)
            return found[..., 0, 0] if kind == "channel" else found[:, 0]
        return attention.fuse(
            [torch.from_numpy(self.maps(name, side, kind, b)) for b in self.blocks], self.size
        ).numpy()

    @property
    def blocks(self) -> list[str]:
        """The blocks' numbers."""
        return sorted({key.split("/")[3] for key in self.arrays if key.startswith("teacher/")}, key=int)

    def truth(self, side: int, kind: str = "information") -> np.ndarray:
        """Return the information or "energy" of all known images, (n,side,side)."""
        return unpack(self.arrays[f"{kind}/{side}"], self.arrays[f"{kind}/{side}/most"])

    def seen(self, side: int) -> np.ndarray:
        """Return the examples as a network at that side sees them, (E,P,P,3)."""
        return self._at(side).repeat(3, 1).repeat(3, 2)

    def overlay(self, side: int, maps: np.ndarray, strength: float = 0.6) -> np.ndarray:
        """Lay maps (E,h,w) over the examples at that side; fewer maps give fewer pictures."""
        return viewers.overlay(self._at(side)[: len(maps)], maps, 3 * self.size, strength)

    def picture(self, name: str, side: int, kind: str = "cbam", block: str = "fused") -> np.ndarray:
        """Lay a network's maps over the examples; white where the file has no such network."""
        if not self.has(name, side):
            return np.full((len(self.examples), 3 * self.size, 3 * self.size, 3), 255, np.uint8)
        return self.overlay(side, self.maps(name, side, kind, block))

    def pictures(self, names: Sequence[str], faces: int = 4) -> dict[tuple[str, str, str, str], np.ndarray]:
        """Return all there is for `viewers.chooser`: (face, network, resolution, map) -> picture; the teacher sees HR.

        Maps: fused, each block, Grad-CAM, where the information is, and the image itself.
        """

        def layers(name: str, side: int) -> dict[str, list[np.ndarray]]:
            found = {"fused": self.picture(name, side)}
            found |= {f"block {block}": self.picture(name, side, block=block) for block in self.blocks}
            found["Grad-CAM, fused"] = self.picture(name, side, "gradcam")
            return {label: list(pictures) for label, pictures in found.items()}

        truth = {
            side: list(self.overlay(side, np.sqrt(self.truth(side)[self.picked]))) for side in (self.size, *self.sides)
        }
        plain = {side: list(self.seen(side)) for side in truth}
        networks = [("teacher", self.size), *((name, side) for name in names for side in self.sides)]
        laid = {
            at: layers(*at) | {"where the information is": truth[at[1]], "the image": plain[at[1]]} for at in networks
        }
        return {
            (f"face {face + 1}", named(name), f"{side} px", label): pictures[face]
            for face in range(min(faces, len(self.examples)))
            for name in (*names, "teacher")  # the first is shown first, and a resolution matters to students alone
            for side in self.sides[::-1]
            for label, pictures in laid[name, self.size if name == "teacher" else side].items()
        }

    def _at(self, side: int) -> np.ndarray:
        return degrade(torch.from_numpy(self.examples).movedim(3, 1), side).movedim(1, 3).numpy()
