"""Faces that are not like the training faces: shifts of known kind, each with a dial from 0 to 1.

A `Scene` says how networks come to see a table of faces: images, LR side, degradation. A shift turns a scene into
another, `SHIFTS["dark"](scene, 0.5)`; shifts compose, but of kernel and resolution the later one counts. Dial 0 is the
scene itself, to the bit; 1 is the shift's `strong`, in its `unit`. What is drawn at random comes from a seed and not
from the dial, so that a larger dial does more of the same to each image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrkd.data.degradation import PRESETS, Degradation, degrade
from lrkd.data.renderer import FaceModel
from lrkd.data.tables import Faces
from lrkd.errors import ConfigError, DataError

BLOCK = 512


class Scene(NamedTuple):
    """Faces degraded to `side` px; `weight` of what is seen is degraded by `other`, or to `lower` px, instead.

    model: drew the faces.
    """

    faces: Faces
    side: int
    degradation: Degradation = PRESETS["area-bicubic"]
    other: Degradation | None = None
    lower: int | None = None
    weight: float = 0.0
    model: FaceModel | None = None

    def seen(self, seed: int = 0) -> Tensor:
        """What a network is shown, at HR size: -> (N,3,S,S) float32 in [0,1]; noise from `seed`."""
        draw, parts = torch.Generator().manual_seed(seed), []
        for start in range(0, len(self.faces), BLOCK):
            x = self.faces.batch(np.arange(start, min(start + BLOCK, len(self.faces)))).float() / 255
            y = degrade(x, self.side, preset=self.degradation, generator=draw)
            if self.weight:
                away = degrade(x, self.lower or self.side, preset=self.other or self.degradation, generator=draw)
                y = y.lerp(away, self.weight)
            parts.append(y)
        return torch.cat(parts)


@dataclass(frozen=True)
class Shift:
    """A kind of shift. strong: the value at dial 1, in `unit`; rendered: whether it draws the faces anew.

    A call raises ConfigError for a dial outside [0,1], and DataError for faces that were not rendered where the shift
    draws them anew.
    """

    name: str
    title: str
    strong: float
    unit: str
    change: Callable[[Scene, float], Scene]
    rendered: bool = False

    def value(self, dial: float) -> float:
        """The dial in the shift's unit."""
        return dial * self.strong

    def __call__(self, scene: Scene, dial: float) -> Scene:
        if not 0 <= dial <= 1:
            raise ConfigError(f"dial: {dial} is not in [0,1], from no shift to the strongest")
        if self.rendered and (scene.model is None or scene.faces.identity is None or scene.faces.nuisance is None):
            raise DataError(
                f"{scene.faces.name}: shift {self.name!r} draws faces anew, and these were not rendered here"
            )
        return self.change(scene, self.value(dial)) if dial else scene


def _images(scene: Scene, change: Callable[[Tensor], Tensor]) -> Scene:
    """The scene with other images: (B,3,H,H) float in [0,1] -> the same, a block at a time."""
    images = np.empty(scene.faces.images.shape, np.uint8)
    for start in range(0, len(images), BLOCK):
        x = change(scene.faces.batch(np.arange(len(images))[start : start + BLOCK]).float() / 255)
        images[start : start + BLOCK] = x.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return scene._replace(faces=replace(scene.faces, images=images))


def _noise(scene: Scene, sd: float) -> Scene:
    return scene._replace(degradation=replace(scene.degradation, noise=sd))


def _jpeg(scene: Scene, lost: float) -> Scene:
    return _images(scene, lambda x: degrade(x, scene.faces.size, preset=Degradation(jpeg=round(100 - lost))))


def _blur(scene: Scene, share: float) -> Scene:
    sigma = share * scene.faces.size
    taps = 2 * min(int(np.ceil(3 * sigma)), scene.faces.size - 1) + 1
    return scene._replace(degradation=replace(scene.degradation, blur=(sigma, sigma), blur_taps=taps, blur_at="hr"))


def _dark(scene: Scene, stops: float) -> Scene:
    return _images(scene, lambda x: x * 2 ** (-stops / 2.2))  # light falls; pixels are its 1/2.2th power


def _backlit(scene: Scene, strength: float) -> Scene:
    """The middle darkens, the surroundings whiten, with a soft ellipse between."""
    v, u = torch.meshgrid(*2 * [torch.linspace(-1, 1, scene.faces.size)], indexing="ij")
    face = torch.sigmoid(8 * (1 - torch.hypot(u / 0.65, v / 0.85)))
    return _images(scene, lambda x: x * (1 - strength * face) + strength * (1 - x) * (1 - face))


def _patch(scene: Scene, share: float) -> Scene:
    """A square in one colour over each image, its side `share` of the image's; it grows about its centre."""
    rng, size = np.random.default_rng(0), scene.faces.size
    places = rng.uniform(0.25, 0.75, (len(scene.faces), 2))
    colours = rng.integers(0, 256, (len(scene.faces), 1, 1, 3))
    at = (np.arange(size) + 0.5) / size
    rows, columns = (np.abs(at - places[:, [axis]]) < share / 2 for axis in (0, 1))
    hidden = (rows[:, :, None] & columns[:, None, :])[..., None]
    images = np.where(hidden, colours.astype(np.uint8), np.asarray(scene.faces.images))
    return scene._replace(faces=replace(scene.faces, images=images))


def _kernel(scene: Scene, weight: float) -> Scene:
    return scene._replace(other=PRESETS["askd-compat"], weight=weight)


def _fewer(scene: Scene, share: float) -> Scene:
    """Fewer pixels than the side: between two whole numbers the images of both are mixed."""
    side = max(1.0, scene.side * (1 - share))
    lower = int(side)
    return scene._replace(side=lower + 1, lower=lower, weight=lower + 1 - side)


def _drawn(scene: Scene, change: Mapping[str, Callable[[Tensor], Tensor]]) -> Scene:
    """The faces rendered anew with some of their nuisances changed."""
    faces, model = scene.faces, scene.model
    assert faces.identity is not None
    assert faces.nuisance is not None
    assert model is not None
    nuisance = torch.from_numpy(faces.nuisance.copy())
    for name, function in change.items():
        column = model.nuisance_names.index(name)
        nuisance[:, column] = function(nuisance[:, column])
    x = model.images(torch.from_numpy(faces.identity)[torch.from_numpy(faces.labels)], nuisance, size=faces.size)
    images = x.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return scene._replace(faces=replace(faces, images=images, nuisance=nuisance.numpy()))


def _pose(scene: Scene, wider: float) -> Scene:
    """Yaw and pitch times 1 + wider, as far as the renderer turns a head."""
    return _drawn(
        scene,
        {
            "yaw": lambda x: (x * (1 + wider)).clamp(-0.6, 0.6),
            "pitch": lambda x: (x * (1 + wider)).clamp(-0.35, 0.35),
        },
    )


def _age(scene: Scene, wider: float) -> Scene:
    """Ages 1 + wider times as far from 48 years: gaps grow, and faces come older and younger than any in training."""
    return _drawn(scene, {"age": lambda x: 48 + (x - 48) * (1 + wider)})


def _surveillance(scene: Scene, strength: float) -> Scene:
    """Dark, noisy, compressed, and of at most 12 of 48 pixels a side."""
    scene = scene._replace(side=min(scene.side, scene.faces.size // 4))
    return _noise(_jpeg(_dark(scene, 4 * strength), 80 * strength), 0.02 * strength)


SHIFTS: dict[str, Shift] = {
    shift.name: shift
    for shift in (
        Shift("noise", "camera noise", 0.04, "standard deviation at LR size, of the range of intensities", _noise),
        Shift("blur", "lens blur", 0.15, "standard deviation, of the image's side", _blur),
        Shift("jpeg", "JPEG", 95, "quality below 100", _jpeg),
        Shift("dark", "dark", 8, "stops of light", _dark),
        Shift("backlit", "backlit", 0.6, "share of the face's light that is lost", _backlit),
        Shift("occlusion", "a patch", 0.15, "its side, of the image's", _patch),
        Shift("kernel", "another kernel", 1, "weight of askd-compat", _kernel),
        Shift("resolution", "fewer pixels", 0.5, "of the side in pixels that is lost", _fewer),
        Shift("pose", "turned heads", 4, "times wider than in training", _pose, rendered=True),
        Shift("age", "age gap", 1.5, "times wider than in training", _age, rendered=True),
        Shift("surveillance", "surveillance", 1, "of 4 stops, JPEG 20, noise 0.02", _surveillance),
    )
}
