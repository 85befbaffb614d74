"""Face tables: images, labels, pairs; rendered (`procedural`) or read from a prepared folder (`prepared`).

Both sources give the same `Splits` of three identity-disjoint `Faces`. Tuning looks at `validation` only.
`lrkd.pairs` makes pairs, `lrkd.layout` reads and checks prepared folders; data_prep/README.md says what is in them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

import lrkd.faces
from lrkd.errors import ConfigError, DataError
from lrkd.layout import Layout, NpyWriter, Shards, read_layout
from lrkd.pairs import Pairs, make_pairs

__all__ = [
    "Faces",
    "Pairs",
    "People",
    "Prepared",
    "Shards",
    "Splits",
    "cache_dir",
    "load_prepared",
    "make_pairs",
    "prepared",
    "procedural",
    "resized",
    "resized_faces",
]

SPLITS = ("train", "validation", "test")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROCEDURAL = 1  # part of the cache key: raise it when what `_render` writes changes


@dataclass(frozen=True, eq=False)
class Faces:
    """A table of faces.

    images    (N,H,W,3) uint8 RGB: an ndarray, a memory map or `Shards`
    labels    (N,) int64, each below `classes` = len(names)
    age       (N,) float32 or None
    pairs     verification pairs over these rows, or None
    names     one name an identity, in the order of the labels
    digest    hash of what the data is made from, for run keys
    identity  (C,64) float32 latent identities of rendered faces, or None
    nuisance  (N,K) float32 latent nuisance of rendered faces, or None
    Raises DataError where these do not fit each other.
    """

    images: Any
    labels: np.ndarray
    age: np.ndarray | None
    pairs: Pairs | None
    names: tuple[str, ...]
    name: str
    digest: str
    identity: np.ndarray | None = None
    nuisance: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape, n = tuple(self.images.shape), len(self.labels)
        if len(shape) != 4 or shape[3] != 3 or self.images.dtype != np.uint8:
            raise DataError(f"{self.name}: images are {self.images.dtype} {shape}: uint8 (N,H,W,3) is right")
        if shape[0] != n:
            raise DataError(f"{self.name}: {shape[0]} images but {n} labels: one label an image is right")
        if n == 0:
            raise DataError(f"{self.name}: no images: at least one is needed")
        if (bad := np.flatnonzero((self.labels < 0) | (self.labels >= self.classes))).size:
            raise DataError(f"{self.name}: label {self.labels[bad[0]]} in row {bad[0]}: 0..{self.classes - 1} is right")
        if self.pairs is not None and len(self.pairs):
            low = min(self.pairs.left.min(), self.pairs.right.min())
            high = max(self.pairs.left.max(), self.pairs.right.max())
            if low < 0 or high >= n:
                raise DataError(f"{self.name}: pairs name rows {low}..{high}: 0..{n - 1} is right")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """Height of the images in pixels."""
        return int(self.images.shape[1])

    def batch(self, indices: Any) -> torch.Tensor:
        """(B,) rows -> (B,3,H,W) uint8, contiguous, on the CPU."""
        images = np.asarray(self.images[np.asarray(indices, dtype=np.int64)])
        return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))

    def subset(self, indices: Any = None, *, labels: Any = None, relabel: bool = True) -> Faces:
        """The faces of some rows, or of some identities; lazy where the images are on disk.

        With `relabel` the labels become 0..C'-1 in the old order and `names` shrinks; without, both stay.
        Pairs survive where both images do.
        """
        if (indices is None) == (labels is None):
            raise ConfigError("subset takes either row indices or labels=")
        if labels is not None:
            rows = np.flatnonzero(np.isin(self.labels, np.asarray(labels, dtype=np.int64)))
        else:
            rows = np.arange(len(self))[np.asarray(indices)]
        position = np.full(len(self), -1, np.int64)
        position[rows] = np.arange(len(rows))
        kept, new = np.unique(self.labels[rows], return_inverse=True)
        images = Shards([self.images]) if isinstance(self.images, np.memmap) else self.images
        return replace(
            self,
            images=images.pick(rows) if isinstance(images, Shards) else images[rows],
            labels=new.astype(np.int64) if relabel else self.labels[rows],
            age=None if self.age is None else self.age[rows],
            pairs=None if self.pairs is None else self.pairs.keep(position),
            names=tuple(self.names[k] for k in kept) if relabel else self.names,
            identity=self.identity[kept] if relabel and self.identity is not None else self.identity,
            nuisance=None if self.nuisance is None else self.nuisance[rows],
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """Three identity-disjoint tables; tuning looks at `validation` only, `test` is for the last word."""

    train: Faces
    validation: Faces
    test: Faces

    @property
    def digest(self) -> str:
        return _digest(self.train.digest, self.validation.digest, self.test.digest)


# -------------------------------------------------------------------------------------------------------- prepared


@dataclass(frozen=True, eq=False)
class Prepared:
    """A whole prepared set, not split: every face, the data set's own pairs by protocol, and meta.json.

    roles   rows of each role that the set's identification protocol knows (gallery, probe, distractor, ...), maybe none
    splits  labels of each split that the data set defines, maybe none
    """

    faces: Faces
    protocols: dict[str, Pairs]
    meta: dict[str, Any]
    roles: dict[str, np.ndarray] = field(default_factory=dict)
    splits: dict[str, np.ndarray] = field(default_factory=dict)

    def rows(self, role: str, split: str | None = None) -> np.ndarray:
        """(n,) int64 rows of `faces` with this role, in order; with `split` those of its people only.

        `faces.labels[rows]` says who they are. Raises ConfigError for a role or split that the set does not have.
        """
        if role not in self.roles:
            raise ConfigError(f"role {role!r}: {self.faces.name} has {', '.join(self.roles) or 'none'}")
        if split is None:
            return self.roles[role]
        if split not in self.splits:
            raise ConfigError(f"split {split!r}: {self.faces.name} has {', '.join(self.splits) or 'none'}")
        rows = self.roles[role]
        return rows[np.isin(self.faces.labels[rows], self.splits[split])]

    def protocol(self, name: str) -> Faces:
        """All faces with the pairs of one protocol. Nothing keeps these people out of a training set."""
        if name not in self.protocols:
            raise ConfigError(f"protocol {name!r}: {self.faces.name} has {', '.join(self.protocols) or 'none'}")
        return replace(self.faces, pairs=self.protocols[name])


def load_prepared(path: str | os.PathLike[str], checksum: bool = False) -> Prepared:
    """Open a prepared folder whole. `checksum` also compares every pixel with the sha256 in meta.json.

    Raises DataError naming the file, the line and the value where the folder contradicts itself.
    """
    layout = read_layout(path, checksum)
    return Prepared(_faces(layout), layout.protocols, layout.meta, layout.roles, layout.splits)


def prepared(
    path: str | os.PathLike[str],
    *,
    validation: float = 0.12,
    seed: int = 0,
    protocol: str | None = None,
    folds: int = 10,
    max_genuine: int | None = 15,
    min_images: int = 2,
) -> Splits:
    """Open a prepared folder as three identity-disjoint splits; images stay on disk.

    Where the data set defines splits (LFW View 1), its test people are the test split, and a share `validation` of its
    training people, drawn with `seed`, is the validation split. Otherwise people are dealt 70/10/20 with `seed`,
    at least four to validation and test.
    Training people with fewer than `min_images` images are dropped: one image teaches nothing about what stays the
    same. Validation and test get pairs from `make_pairs`; with `protocol` the test pairs are the data set's own.
    Raises DataError for a broken folder, for a split without genuine pairs, and for a protocol whose people are not
    all in the test split.
    """
    if not 0 < validation < 1:
        raise ConfigError(f"validation={validation}: a share of the training people between 0 and 1 is right")
    layout = read_layout(path)
    whole = _faces(layout)
    people = _deal(layout, validation, seed)
    counts = np.bincount(whole.labels)
    enough = people["train"][counts[people["train"]] >= min_images]
    if not enough.size:
        raise DataError(
            f"{layout.path}: none of the {len(people['train'])} people in the train split has {min_images} images: "
            "more images a person, or a smaller min_images, are needed"
        )
    made = {}
    for split in SPLITS:
        labels = enough if split == "train" else people[split]
        part = whole.subset(labels=labels)
        pairs = None
        if split == "test" and protocol is not None:
            pairs = _own_pairs(layout, protocol, people, whole.labels)
        elif split != "train":
            try:
                pairs = make_pairs(part.labels, None, folds, _seed(seed, split), max_genuine=max_genuine)
            except DataError as error:
                raise DataError(f"{layout.path}, {split} split: {error}") from error
        digest = _digest(whole.digest, split, labels.tolist(), pairs and [pairs.left.tolist(), pairs.right.tolist()])
        made[split] = replace(part, pairs=pairs, name=f"{whole.name}/{split}", digest=digest)
    return Splits(**made)


def resized(splits: Splits, size: int) -> Splits:
    """The same splits with images of size px: `resized_faces` of each."""
    return Splits(*(resized_faces(getattr(splits, part), size) for part in SPLITS))


def resized_faces(faces: Faces, size: int) -> Faces:
    """The same table with images of size px, by antialiased bilinear interpolation, in memory where they shrink.

    Raises DataError for images smaller than that: enlarged ones would pass for HR and are none.
    """
    if size < 1:
        raise ConfigError(f"size={size}: at least one pixel is needed")
    height, width = faces.images.shape[1:3]
    if (height, width) == (size, size):
        return faces
    if min(height, width) < size:
        raise DataError(
            f"{faces.name}: its images are {height} x {width} px and this scale needs {size} px or more: prepare the "
            f"data with --size {size}, or choose a smaller scale"
        )
    images = np.empty((len(faces.images), size, size, 3), np.uint8)
    for start in range(0, len(images), 512):
        block = torch.from_numpy(np.array(faces.images[start : start + 512])).permute(0, 3, 1, 2).float()
        small = torch.nn.functional.interpolate(block, (size, size), mode="bilinear", antialias=True)
        images[start : start + 512] = small.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return replace(faces, images=images, digest=_digest(faces.digest, "resized", size))


def _faces(layout: Layout) -> Faces:
    name = str(layout.meta["name"])
    return Faces(layout.images, layout.labels, layout.age, None, layout.names, name, layout.digest)


def _deal(layout: Layout, validation: float, seed: int) -> dict[str, np.ndarray]:
    """Labels of the three splits."""
    classes = len(layout.names)
    order = np.random.default_rng(_seed(seed, "deal")).permutation(classes)
    if {"train", "validation", "test"} <= set(layout.splits):
        return layout.splits
    if layout.splits:
        order = order[np.isin(order, layout.splits["train"])]
        held = max(4, round(validation * len(order)))  # four people are the least that verification needs
        return {"train": np.sort(order[held:]), "validation": np.sort(order[:held]), "test": layout.splits["test"]}
    test = classes - max(4, round(0.2 * classes))
    held = max(0, test - max(4, round(0.1 * classes)))
    return {s: np.sort(part) for s, part in zip(SPLITS, np.split(order, (held, max(test, 0))), strict=True)}


def _own_pairs(layout: Layout, protocol: str, people: dict[str, np.ndarray], labels: np.ndarray) -> Pairs:
    """The data set's own pairs, as rows of the test split."""
    file = layout.path / "pairs.csv"
    if protocol not in layout.protocols:
        raise ConfigError(f"protocol {protocol!r}: {file} has {', '.join(layout.protocols) or 'none'}")
    pairs = layout.protocols[protocol]
    used = np.unique(labels[np.concatenate((pairs.left, pairs.right))])
    if (outside := np.setdiff1d(used, people["test"])).size:
        raise DataError(
            f"{file}: {outside.size} of {used.size} people of protocol {protocol!r} are not in the test split (first: "
            f"{layout.names[outside[0]]}): use load_prepared(path).protocol({protocol!r}) for the whole set unsplit"
        )
    rows = np.flatnonzero(np.isin(labels, people["test"]))
    position = np.full(len(labels), -1, np.int64)
    position[rows] = np.arange(len(rows))
    return Pairs(position[pairs.left], position[pairs.right], pairs.same, pairs.fold, protocol)


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
    Raises ConfigError on impossible parameters, DataError on a full disk or a broken cache.
    """
    if size < 8 or images < 2 or len(identities) != 3 or min(identities) < 4:
        raise ConfigError(
            f"size={size}, identities={identities}, images={images}: a size of 8 or more, three counts of "
            "identities of 4 or more, and 2 or more images are right"
        )
    face = dict(face or {})
    parameters = {
        "version": _PROCEDURAL,
        "size": size,
        "identities": list(identities),
        "images": images,
        "seed": seed,
        "device": torch.device(device).type,
        "face": face,
        "renderer": lrkd.faces.RENDERER_VERSION,
    }
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
            "renderer": lrkd.faces.RENDERER_VERSION,
        }

    @property
    def digest(self) -> str:
        """What `faces().digest` is, without rendering them."""
        return _digest(_key(self._parameters), self.name, self.pairs, self.folds)

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
        model = lrkd.faces.FaceModel(**face)
    except TypeError as error:
        raise ConfigError(f"face={face}: {error}: plain keyword arguments of FaceModel are right") from error
    folder = cache_dir(cache) / f"procedural-{parameters['size']}px-{key}"
    if not folder.is_dir():
        with _making(folder) as temporary:
            if temporary is not None:
                _render(temporary, model, parameters, sizes, torch.device(device), progress)
    return folder, key


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
            _seed(seed, split, "pairs"),
            age=arrays["age"],
            min_age_gap=(high - low) / 2,
            max_genuine=None,
            protocol="generated",
        )
    names = tuple(f"{split}-{i:05d}" for i in range(classes))
    digest = _digest(key, split, pairs, folds)
    return Faces(**arrays, pairs=made, names=names, name=f"procedural/{split}", digest=digest)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _seed(seed: int, *words: str) -> int:
    """An independent seed for each purpose: a hash, so that neighbouring seeds share no stream."""
    text = json.dumps([seed, *words])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _render(
    folder: Path,
    model: lrkd.faces.FaceModel,
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
            generator = torch.Generator().manual_seed(_seed(parameters["seed"], split))
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
            raise DataError(
                f"{folder.parent}: no space left for the rendered faces: free some or set LRKD_CACHE"
            ) from error
        raise DataError(
            f"{folder.parent}: {error.strerror or error}: set LRKD_CACHE to a folder that can be written"
        ) from error
