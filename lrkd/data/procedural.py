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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from lrkd.data import renderer
from lrkd.data.pairs import make_pairs
from lrkd.data.shards import NpyWriter
from lrkd.data.tables import SPLITS, Faces, Splits, derived_seed, digest_of
from lrkd.errors import ConfigError, DataError, RunError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROCEDURAL = 1  # part of the cache key: raise it when what `_render` writes changes


# ------------------------------------------------------------------------------------------------------ procedural


def cache_dir(cache: str | os.PathLike[str] | None = None) -> Path:
    """`cache`, else the environment's LRKD_CACHE, else `.cache/lrkd` under the working directory."""
    return Path(cache or os.environ.get("LRKD_CACHE") or Path(".cache") / "lrkd")


def procedural(
    size: int = 48,
    identities: tuple[int, int, int] = (500, 100, 200),
    images: int = 20,
    pairs: tuple[int, int] = (3000, 6000),
    *,
    folds: int = 10,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    face: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> Splits:
    """Rendered faces: `identities` = people in (train, validation, test), `images` of each, at `size` px.

    Ages are spread evenly over their range for each person (one image a stratum); the `pairs` = (validation, test) are
    at least half the range apart, genuine and impostor alike, in `folds` folds or as
    many as there are people for. The three splits have random streams of their own, so
    the test faces do not change with the number of training identities. `seed` draws people and nuisance; `face` goes
    to `FaceModel` (its own seed, amplitudes, ...). Rendered once into `cache_dir(cache)` under a hash of the parameters
    and of `RENDERER_VERSION`, and memory-mapped; a second process waits for the first.
    Raises ConfigError on impossible parameters, RunError on a full disk, DataError on a broken cache.
    """
    if size < 8 or images < 2 or len(identities) != 3 or min(identities) < 4:
        raise ConfigError(
            f"size={size}, identities={identities}, images={images}: a size of 8 or more, three counts of "
            "identities of 4 or more, and 2 or more images are right"
        )
    parameters = _parameters(size, identities, images, seed, device, face)
    sizes = {split: (classes, images) for split, classes in zip(SPLITS, identities, strict=True)}
    folder, key = _rendered(parameters, sizes, cache, device, progress)
    wanted = dict(zip(SPLITS, (None, *pairs), strict=True))
    return Splits(*(_procedural_split(folder, split, wanted[split], folds, seed, key) for split in SPLITS))


@dataclass(frozen=True)
class People:
    """One set of rendered people, known by its parameters before anything is rendered: `digest` now, `faces()` later.

    name: of the set, which draws its own people and nuisance from `seed`: sets of other names or seeds share nobody.
    identities, images: how many people, and images of each. pairs: verification pairs, or None. face: plain keyword
    arguments of `FaceModel`, as pairs. device: where it is rendered; a GPU rounds otherwise, and gives other data.
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
        if self.size < 8 or self.images < 2 or self.identities < 4:
            raise ConfigError(
                f"size={self.size}, identities={self.identities}, images={self.images}: a size of 8 or more, 4 people "
                "or more and 2 images or more of each are right"
            )

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
        """What `faces().digest` is, without rendering them."""
        return digest_of(_key(self._parameters), self.name, self.pairs, self.folds)

    def faces(self, cache: str | os.PathLike[str] | None = None, progress: bool | None = None) -> Faces:
        """The table itself, rendered at the first call into `cache_dir(cache)` and memory-mapped, as `procedural`'s.

        Raises ConfigError on a face that `FaceModel` does not take, DataError on a full disk or a broken cache.
        """
        sizes = {self.name: (self.identities, self.images)}
        folder, key = _rendered(self._parameters, sizes, cache, self.device, progress)
        return _procedural_split(folder, self.name, self.pairs, self.folds, self.seed, key)


def _key(parameters: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(parameters, sort_keys=True)
    except TypeError as error:
        face = parameters["face"]
        raise ConfigError(f"face={face}: {error}: plain keyword arguments of FaceModel are right") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rendered(
    parameters: Mapping[str, Any],
    sizes: Mapping[str, tuple[int, int]],
    cache: str | os.PathLike[str] | None,
    device: str | torch.device,
    progress: bool | None,
) -> tuple[Path, str]:
    """The folder of the cache that holds these sets, name -> (people, images of each), rendered if need be; its key."""
    key, face = _key(parameters), parameters["face"]
    try:
        model = renderer.FaceModel(**face)
    except TypeError as error:
        raise ConfigError(f"face={face}: {error}: plain keyword arguments of FaceModel are right") from error
    folder = cache_dir(cache) / f"procedural-{parameters['size']}px-{key}"
    if not folder.is_dir():
        with _making(folder) as temporary:
            if temporary is not None:
                _render(temporary, model, parameters, sizes, torch.device(device), progress)
    return folder, key


def procedural_digests(
    size: int,
    identities: tuple[int, int, int],
    images: int,
    pairs: tuple[int, int],
    *,
    folds: int = 10,
    seed: int = 0,
    device: str | torch.device = "cpu",
    face: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The digest of each split that `procedural` makes of these arguments, without rendering anything."""
    key = _key(_parameters(size, identities, images, seed, device, face))
    wanted = dict(zip(SPLITS, (None, *pairs), strict=True))
    return {split: digest_of(key, split, count, folds) for split, count in wanted.items()}


def _parameters(
    size: int,
    identities: tuple[int, int, int],
    images: int,
    seed: int,
    device: str | torch.device,
    face: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What determines the pixels of rendered faces."""
    return {
        "version": _PROCEDURAL,
        "size": size,
        "identities": list(identities),
        "images": images,
        "seed": seed,
        "device": torch.device(device).type,
        "face": dict(face or {}),
        "renderer": renderer.RENDERER_VERSION,
    }


def _procedural_split(folder: Path, split: str, pairs: int | None, folds: int, seed: int, key: str) -> Faces:
    arrays = {}
    for what in ("images", "labels", "age", "identity", "nuisance"):
        path = folder / f"{split}-{what}.npy"
        try:
            arrays[what] = np.load(path, mmap_mode="r" if what == "images" else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: {error}: remove {folder} and it is rendered again") from error
    try:
        low, high = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["age_range"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{folder / 'meta.json'}: {error!r}: remove {folder} and it is rendered again") from error
    classes = len(arrays["identity"])
    made = None
    if pairs is not None:
        made = make_pairs(
            arrays["labels"],
            pairs,
            min(folds, classes // 2, max(pairs // 2, 2)),
            derived_seed(seed, split, "pairs"),
            age_gap=(arrays["age"], (high - low) / 2),
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
    progress: bool | None,
) -> None:
    """Draw and render the sets, name -> (people, images of each), into `folder`."""
    table = model.describe().set_index("name")
    low, high = float(table.loc["age", "low"]), float(table.loc["age", "high"])
    column = model.nuisance_names.index("age")
    size, total = parameters["size"], sum(classes * images for classes, images in sizes.values())
    # None: on a terminal only.
    quiet = True if os.environ.get("TQDM_DISABLE") else None if progress is None else not progress
    with torch.no_grad(), tqdm(total=total, desc=f"faces at {size} px", unit="img", disable=quiet) as bar:
        for split, (classes, images) in sizes.items():
            generator = torch.Generator().manual_seed(derived_seed(parameters["seed"], split))
            identity = model.sample_identity(classes, generator)
            nuisance = model.sample_nuisance(classes * images, generator).clone()
            stratum = torch.rand(classes, images, generator=generator).argsort(1)
            age = (stratum + torch.rand(classes, images, generator=generator)) / images
            nuisance[:, column] = (low + (high - low) * age).flatten()
            labels = torch.arange(classes).repeat_interleave(images)
            with NpyWriter(folder / f"{split}-images.npy", (size, size, 3)) as out:
                for start in range(0, len(labels), 256):
                    rows = slice(start, start + 256)
                    x = model.images(identity[labels[rows]].to(device), nuisance[rows].to(device), size=size)
                    assert isinstance(x, torch.Tensor)
                    if not torch.isfinite(x).all():
                        raise DataError(f"FaceModel({parameters['face']}) rendered values that are not finite")
                    x = x.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
                    out.append(np.ascontiguousarray(x.cpu().numpy()))
                    bar.update(len(x))
            for what, array in (("labels", labels), ("identity", identity), ("nuisance", nuisance)):
                np.save(folder / f"{split}-{what}.npy", array.numpy())
            np.save(folder / f"{split}-age.npy", nuisance[:, column].contiguous().numpy())
    (folder / "meta.json").write_text(json.dumps({**parameters, "age_range": [low, high]}, indent=1))


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
