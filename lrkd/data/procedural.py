"""Rendered face tables: drawn from a seed, rendered once into a cache, and memory-mapped."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrkd.data import renderer
from lrkd.data.face_quantities import AGE_HIGH, AGE_LOW
from lrkd.data.pairs import make_pairs
from lrkd.data.shards import NpyWriter
from lrkd.data.tables import SPLITS, Faces, Splits, derived_seed, digest_of
from lrkd.errors import ConfigError, DataError, RunError
from lrkd.progress import bar as progress_bar

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROCEDURAL = 1  # part of the cache key: raise it when what `_render` writes changes


def cache_dir(cache: str | os.PathLike[str] | None = None) -> Path:
    """Name the cache: `cache`, else the environment's LRKD_CACHE, else `.cache/lrkd` under the working directory."""
    return Path(cache or os.environ.get("LRKD_CACHE") or Path(".cache") / "lrkd")


@dataclass(frozen=True)
class RenderedSplits:
    """Three splits of rendered people, known by their parameters before anything is rendered.

    Ages are spread evenly over their range for each person (one image a stratum); both images of a pair are at least
    half the range apart, genuine and impostor alike. The splits have random streams of their own, so the test faces do
    not change with the number of training identities.

    Attributes:
        size: Side of the images in pixels.
        identities: People to train, validate and test with.
        images: Images of each person.
        pairs: Verification pairs of the validation and the test split.
        folds: Folds of the pairs, or as many as there are people for.
        seed: Draws people and nuisance.
        face: Plain keyword arguments of `FaceModel` (its own seed, amplitudes, ...).
        device: Where they are rendered; a GPU rounds otherwise, and gives other data.
    """

    size: int = 48
    identities: tuple[int, int, int] = (500, 100, 200)
    images: int = 20
    pairs: tuple[int, int] = (3000, 6000)
    folds: int = 10
    seed: int = 0
    face: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def _parameters(self) -> dict[str, Any]:
        """What determines the pixels."""
        return {
            "version": _PROCEDURAL,
            "size": self.size,
            "identities": list(self.identities),
            "images": self.images,
            "seed": self.seed,
            "device": torch.device(self.device).type,
            "face": dict(self.face),
            "renderer": renderer.RENDERER_VERSION,
        }

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each split, without rendering anything."""
        key = _key(self._parameters)
        pairs = dict(zip(SPLITS, (None, *self.pairs), strict=True))
        return {split: digest_of(key, split, count, self.folds) for split, count in pairs.items()}

    def splits(self, cache: str | os.PathLike[str] | None = None) -> Splits:
        """Render the splits at the first call and memory-map them.

        They lie in `cache_dir(cache)` under a hash of the parameters and of `RENDERER_VERSION`; a second process waits
        for the first.

        Args:
            cache: The folder of the cache; None for the usual one.

        Raises:
            ConfigError: Impossible parameters.
            RunError: The cache cannot be written.
            DataError: The cache is broken.
        """
        if len(self.identities) != 3:
            raise ConfigError(f"identities: expected three counts, got {self.identities}")
        for classes in self.identities:
            _check_size(self.size, classes, self.images)
        sizes = {split: (classes, self.images) for split, classes in zip(SPLITS, self.identities, strict=True)}
        folder, key = _rendered(self._parameters, sizes, cache, self.device)
        pairs = dict(zip(SPLITS, (None, *self.pairs), strict=True))
        return Splits(*(_procedural_split(folder, split, pairs[split], self.folds, self.seed, key) for split in SPLITS))


def _check_size(size: int, identities: int, images: int) -> None:
    if size < 8 or identities < 4 or images < 2:
        raise ConfigError(
            f"expected a size of 8 px or more, 4 identities or more and 2 images or more of each, got size={size}, "
            f"identities={identities}, images={images}"
        )


@dataclass(frozen=True)
class People:
    """One set of rendered people, known by its parameters before anything is rendered: `digest` now, `faces()` later.

    Attributes:
        name: Of the set, which draws its own people and nuisance from `seed`: sets of other names or seeds share
            nobody.
        size: Side of the images in pixels.
        identities: How many people.
        images: Images of each.
        pairs: Verification pairs, or None.
        seed: Draws people and nuisance.
        face: Plain keyword arguments of `FaceModel`, as pairs.
        device: Where they are rendered; a GPU rounds otherwise, and gives other data.
        folds: Folds of the pairs.
    """

    name: str
    size: int
    identities: int
    images: int
    pairs: int | None
    seed: int
    face: tuple[tuple[str, Any], ...] = ()
    device: str = "cpu"
    folds: int = 10

    def __post_init__(self) -> None:
        _check_size(self.size, self.identities, self.images)

    @property
    def _parameters(self) -> dict[str, Any]:
        return {
            "version": _PROCEDURAL,
            "set": self.name,
            "size": self.size,
            "identities": self.identities,
            "images": self.images,
            "seed": self.seed,
            "device": self.device,
            "face": dict(self.face),
            "renderer": renderer.RENDERER_VERSION,
        }

    @property
    def digest(self) -> str:
        """The digest of `faces()`, without rendering them."""
        return digest_of(_key(self._parameters), self.name, self.pairs, self.folds)

    def faces(self, cache: str | os.PathLike[str] | None = None) -> Faces:
        """Render the table at the first call into `cache_dir(cache)` and memory-map it.

        Raises:
            ConfigError: A face that `FaceModel` does not take.
            RunError: The cache cannot be written.
            DataError: The cache is broken.
        """
        sizes = {self.name: (self.identities, self.images)}
        folder, key = _rendered(self._parameters, sizes, cache, self.device)
        return _procedural_split(folder, self.name, self.pairs, self.folds, self.seed, key)


def _key(parameters: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(parameters, sort_keys=True)
    except TypeError as error:
        face = parameters["face"]
        raise ConfigError(f"face: expected plain keyword arguments of FaceModel, got {face} ({error})") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rendered(
    parameters: Mapping[str, Any],
    sizes: Mapping[str, tuple[int, int]],
    cache: str | os.PathLike[str] | None,
    device: str | torch.device,
) -> tuple[Path, str]:
    """The folder of the cache that holds these sets, name -> (people, images of each), rendered if need be; its key."""
    key, face = _key(parameters), parameters["face"]
    try:
        model = renderer.FaceModel(**face)
    except TypeError as error:
        raise ConfigError(f"face: expected plain keyword arguments of FaceModel, got {face} ({error})") from error
    folder = cache_dir(cache) / f"procedural-{parameters['size']}px-{key}"
    if not folder.is_dir():
        with _making(folder) as temporary:
            if temporary is not None:
                _render(temporary, model, parameters, sizes, torch.device(device))
    return folder, key


def _procedural_split(folder: Path, split: str, pairs: int | None, folds: int, seed: int, key: str) -> Faces:
    arrays = {}
    for what in ("images", "labels", "age", "identity", "nuisance"):
        path = folder / f"{split}-{what}.npy"
        try:
            arrays[what] = np.load(path, mmap_mode="r" if what == "images" else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: {error}: remove {folder} and it is rendered again") from error
    classes = len(arrays["identity"])
    made = None
    if pairs is not None:
        made = make_pairs(
            arrays["labels"],
            pairs,
            min(folds, classes // 2, max(pairs // 2, 2)),
            derived_seed(seed, split, "pairs"),
            age_gap=(arrays["age"], (AGE_HIGH - AGE_LOW) / 2),
            max_genuine=None,
        )
    names = tuple(f"{split}-{i:05d}" for i in range(classes))
    digest = digest_of(key, split, pairs, folds)
    return Faces(**arrays, pairs=made, names=names, name=f"procedural/{split}", digest=digest)


def _render(
    folder: Path,
    model: renderer.FaceModel,
    parameters: Mapping[str, Any],
    sizes: Mapping[str, tuple[int, int]],
    device: torch.device,
) -> None:
    """Draw and render the sets, name -> (people, images of each), into `folder`."""
    column = model.nuisance_names.index("age")
    size, total = parameters["size"], sum(classes * images for classes, images in sizes.values())
    with torch.no_grad(), progress_bar(total=total, desc=f"faces at {size} px", unit="img") as bar:
        for split, (classes, images) in sizes.items():
            generator = torch.Generator().manual_seed(derived_seed(parameters["seed"], split))
            identity = model.sample_identity(classes, generator)
            nuisance = model.sample_nuisance(classes * images, generator).clone()
            stratum = torch.rand(classes, images, generator=generator).argsort(1)
            age = (stratum + torch.rand(classes, images, generator=generator)) / images
            nuisance[:, column] = (AGE_LOW + (AGE_HIGH - AGE_LOW) * age).flatten()
            labels = torch.arange(classes).repeat_interleave(images)
            with NpyWriter(folder / f"{split}-images.npy", (size, size, 3)) as out:
                for start in range(0, len(labels), 256):
                    rows = slice(start, start + 256)
                    x = model.images(identity[labels[rows]].to(device), nuisance[rows].to(device), size=size)
                    if not torch.isfinite(x).all():
                        raise DataError(f"FaceModel({parameters['face']}) rendered values that are not finite")
                    x = x.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
                    out.append(np.ascontiguousarray(x.cpu().numpy()))
                    bar.update(len(x))
            for what, array in (("labels", labels), ("identity", identity), ("nuisance", nuisance)):
                np.save(folder / f"{split}-{what}.npy", array.numpy())
            np.save(folder / f"{split}-age.npy", nuisance[:, column].contiguous().numpy())
    (folder / "meta.json").write_text(json.dumps({**parameters, "age_range": [AGE_LOW, AGE_HIGH]}, indent=1))


@contextmanager
def _making(folder: Path) -> Iterator[Path | None]:
    """A temporary directory that becomes `folder` on success; None if another process made it while we waited."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(folder.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.is_dir():
                yield None
                return
            temporary = folder.with_name(folder.name + ".tmp")
            shutil.rmtree(temporary, ignore_errors=True)  # of a killed process: we hold the lock, so nobody writes it
            temporary.mkdir()
            try:
                yield temporary
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise RunError(
                f"{folder.parent}: no space left for the rendered faces: free some or set LRKD_CACHE"
            ) from error
        raise RunError(
            f"{folder.parent}: {error.strerror or error}: set LRKD_CACHE to a folder that can be written"
        ) from error
