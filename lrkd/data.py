"""Face tables: images, labels, pairs; rendered (`procedural`) or read from a prepared folder (`prepared`).

Both sources give the same `Splits` of three identity-disjoint `Faces`. Tuning looks at `validation` only.
The layout of a prepared folder is described in data_prep/README.md; `data_prep` writes it, this file reads it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from lrkd.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROCEDURAL = 1  # part of the cache key: raise it when what `_render` writes changes


class Shards:
    """Rows of several (n_i,H,W,3) uint8 arrays as one (N,H,W,3) array-like; nothing is read until it is indexed.

    `rows` picks and orders rows of the concatenation, which makes a subset of a memory-mapped set free.
    An int gives one image (H,W,3); a slice, an integer array or a boolean mask gives an ndarray (n,H,W,3).
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, parts: Sequence[Any], rows: np.ndarray | None = None) -> None:
        if not parts:
            raise DataError("no image arrays: at least one is needed")
        for i, part in enumerate(parts):
            if part.ndim != 4 or part.dtype != np.uint8 or part.shape[1:] != parts[0].shape[1:] or part.shape[3] != 3:
                raise DataError(
                    f"image array {i} is {part.dtype} {tuple(part.shape)}: all must be uint8 (n,H,W,3) of one size"
                )
        self._parts = list(parts)
        self._ends = np.cumsum([len(p) for p in parts])
        total = int(self._ends[-1])
        if rows is not None:
            rows = np.asarray(rows, dtype=np.int64)
            if rows.size and (rows.min() < 0 or rows.max() >= total):
                raise DataError(f"row {rows.min() if rows.min() < 0 else rows.max()} of {total} images: out of range")
        self._rows = rows
        self.shape: tuple[int, ...] = (total if rows is None else len(rows), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, tuple):
            raise TypeError("index the first axis only, or take np.asarray(images) first")
        if isinstance(key, int | np.integer):
            if not -len(self) <= key < len(self):
                raise IndexError(f"index {key} is out of range for {len(self)} images")
            return self._take(np.array([key % len(self)]))[0]
        if isinstance(key, slice):
            return self._take(np.arange(*key.indices(len(self))))
        index = np.asarray(key)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise IndexError(f"mask of shape {index.shape} for {len(self)} images")
            index = np.flatnonzero(index)
        if index.size == 0:
            index = index.astype(np.int64)
        if index.size and (index.min() < -len(self) or index.max() >= len(self)):
            raise IndexError(f"indices {index.min()}..{index.max()} are out of range for {len(self)} images")
        return self._take(index % max(len(self), 1))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("images on disk cannot become an array without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def _take(self, index: np.ndarray) -> np.ndarray:
        rows = index if self._rows is None else self._rows[index]
        part_of = np.searchsorted(self._ends, rows, side="right")
        out = np.empty((*index.shape, *self.shape[1:]), np.uint8)
        for p in np.unique(part_of):
            mine = part_of == p
            start = 0 if p == 0 else self._ends[p - 1]
            out[mine] = self._parts[p][rows[mine] - start]
        return out


@dataclass(frozen=True, eq=False)
class Pairs:
    """Verification pairs: `left`, `right` (P,) int64 rows of the images, `same` (P,) bool, `fold` (P,) int64."""

    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    fold: np.ndarray
    protocol: str = "generated"

    def __len__(self) -> int:
        return len(self.left)

    def keep(self, position: np.ndarray) -> Pairs | None:
        """Pairs after images moved: `position` (N,) gives each old row's new row, or -1 if it is gone."""
        left, right = position[self.left], position[self.right]
        ok = (left >= 0) & (right >= 0)
        return Pairs(left[ok], right[ok], self.same[ok], self.fold[ok], self.protocol) if ok.any() else None


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
        images = self.images
        on_disk = isinstance(images, Shards | np.memmap)
        if isinstance(images, Shards):
            base = rows if images._rows is None else images._rows[rows]
            images = Shards(images._parts, base)
        else:
            images = Shards([images], rows) if on_disk else images[rows]
        return replace(
            self,
            images=images,
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
        return hashlib.sha256(
            "".join((self.train.digest, self.validation.digest, self.test.digest)).encode()
        ).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------- pairs


def make_pairs(
    labels: np.ndarray,
    count: int | None = None,
    folds: int = 10,
    seed: int = 0,
    *,
    age: np.ndarray | None = None,
    min_age_gap: float | None = None,
    max_genuine: int | None = 15,
    protocol: str = "generated",
) -> Pairs:
    """(N,) labels -> verification pairs, half genuine, in identity-disjoint folds.

    `count` pairs in all (even), or as many as there are with at most `max_genuine` genuine pairs a person. People are
    dealt to the folds so that each fold holds about the same number of genuine pairs; every fold has as many
    impostor as genuine pairs; its impostors are two of its own people, drawn uniformly over people, then over their
    images. No pair comes twice. With `min_age_gap` both kinds are at least that far apart in `age`, so age alone
    tells nothing.
    Raises DataError where the labels cannot give that many.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if folds < 2:
        raise ConfigError(f"folds={folds}: at least 2 are needed")
    if count is not None and (count < 2 * folds or count % 2):
        raise ConfigError(
            f"count={count}: an even number of at least {2 * folds} (a pair of each kind a fold) is right"
        )
    if min_age_gap is not None and age is None:
        raise ConfigError("min_age_gap needs the ages")
    ages = None if min_age_gap is None or age is None else np.asarray(age, dtype=np.float64)
    gap = min_age_gap or 0.0
    rng = np.random.default_rng(seed)
    sizes = np.unique(labels, return_counts=True)[1]
    if len(sizes) < 2 * folds:
        raise DataError(
            f"{len(sizes)} identities cannot fill {folds} folds: two a fold, {2 * folds} in all, are needed"
        )
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])

    genuine = []
    for rows in members:
        i, j = np.triu_indices(len(rows), 1)
        if ages is not None:
            far = np.abs(ages[rows[i]] - ages[rows[j]]) >= gap
            i, j = i[far], j[far]
        pick = rng.permutation(len(i))[:max_genuine]
        genuine.append(np.stack((rows[i[pick]], rows[j[pick]]), axis=1))
    order = rng.permutation(len(members))
    order = order[np.argsort([-len(genuine[k]) for k in order], kind="stable")]

    blocks = []
    for f in range(folds):
        people = order[f::folds]
        pool = np.concatenate([genuine[k] for k in people])
        turn = np.concatenate([np.arange(len(genuine[k])) for k in people])  # one pair a person, then a second, ...
        need = len(pool) if count is None else count // 2 // folds + (f < count // 2 % folds)
        if len(pool) < max(need, 1):
            raise DataError(
                f"fold {f} has {len(pool)} genuine pairs of {max(need, 1)}: more images a person, fewer pairs or folds "
                "are needed"
            )
        pool = pool[np.lexsort((rng.random(len(pool)), turn))][:need]
        others = _impostors([members[k] for k in people], need, rng, ages, gap, f, len(labels))
        both = np.concatenate((pool, others))
        blocks.append((both, np.arange(2 * need) < need, np.full(2 * need, f)))
    both, same, fold = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return Pairs(both[:, 0].copy(), both[:, 1].copy(), same, fold.astype(np.int64), protocol)


def _impostors(
    members: list[np.ndarray],
    need: int,
    rng: np.random.Generator,
    ages: np.ndarray | None,
    gap: float,
    fold: int,
    n: int,
) -> np.ndarray:
    """(need,2) different rows of two different people, by rejection."""
    sizes = np.array([len(rows) for rows in members])
    rows, starts, m = np.concatenate(members), np.cumsum(sizes) - sizes, len(members)
    keys = np.empty(0, np.int64)
    for _ in range(200):
        a = rng.integers(m, size=2 * need + 32)
        b = (a + rng.integers(1, m, size=len(a))) % m
        left, right = (rows[starts[k] + (rng.random(len(k)) * sizes[k]).astype(np.int64)] for k in (a, b))
        if ages is not None:
            far = np.abs(ages[left] - ages[right]) >= gap
            left, right = left[far], right[far]
        keys = np.concatenate((keys, np.minimum(left, right) * n + np.maximum(left, right)))
        keys = keys[np.sort(np.unique(keys, return_index=True)[1])]
        if len(keys) >= need:
            return np.stack(np.divmod(keys[:need], n), axis=1)
    raise DataError(f"fold {fold} has {len(keys)} impostor pairs of {need}: give more identities, fewer pairs or folds")


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
    at least half the range apart, genuine and impostor alike. The three splits have random streams of their own, so
    the test faces do not change with the number of training identities. `seed` draws people and nuisance; `face` goes
    to `FaceModel` (its own seed, amplitudes, ...). Rendered once into `cache_dir(cache)` under a hash of the parameters
    and of faces.py, and memory-mapped; a second process waits for the first.
    Raises ConfigError on impossible parameters, DataError on a full disk or a broken cache.
    """
    if size < 8 or images < 2 or len(identities) != 3 or min(identities) < 2:
        raise ConfigError(
            f"size={size}, identities={identities}, images={images}: a size of 8 or more, three counts of "
            "identities of 2 or more, and 2 or more images are right"
        )
    import lrkd.faces

    face = dict(face or {})
    parameters = {
        "version": _PROCEDURAL,
        "size": size,
        "identities": list(identities),
        "images": images,
        "seed": seed,
        "device": torch.device(device).type,
        "face": face,
        "renderer": hashlib.sha256(Path(lrkd.faces.__file__).read_bytes()).hexdigest(),
    }
    try:
        text = json.dumps(parameters, sort_keys=True)
    except TypeError as error:
        raise ConfigError(f"face={face}: FaceModel arguments must be plain numbers, strings and lists") from error
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = cache_dir(cache) / f"procedural-{size}px-{key}"
    if not folder.is_dir():
        with _making(folder) as temporary:
            if temporary is not None:
                _render(temporary, parameters, torch.device(device), progress)
    wanted = dict(zip(SPLITS, (None, *pairs), strict=True))
    return Splits(*(_procedural_split(folder, split, wanted[split], folds, seed, key) for split in SPLITS))


def _procedural_split(folder: Path, split: str, pairs: int | None, folds: int, seed: int, key: str) -> Faces:
    arrays = {}
    for what in ("images", "labels", "age", "identity", "nuisance"):
        path = folder / f"{split}-{what}.npy"
        try:
            arrays[what] = np.load(path, mmap_mode="r" if what == "images" else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: {error}: remove {folder} and it is rendered again") from error
    low, high = json.loads((folder / "meta.json").read_text())["age_range"]
    classes = len(arrays["identity"])
    made = None
    if pairs is not None:
        made = make_pairs(
            arrays["labels"],
            pairs,
            min(folds, classes // 2),
            _seed(seed, split, "pairs"),
            age=arrays["age"],
            min_age_gap=(high - low) / 2,
            max_genuine=None,
            protocol="generated",
        )
    names = tuple(f"{split}-{i:05d}" for i in range(classes))
    return Faces(**arrays, pairs=made, names=names, name=f"procedural/{split}", digest=f"{key}-{split}")


def _seed(seed: int, *words: str) -> int:
    """An independent seed for each purpose: a hash, so that neighbouring seeds share no stream."""
    text = json.dumps([seed, *words])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _render(folder: Path, parameters: dict[str, Any], device: torch.device, progress: bool | None) -> None:
    """Draw and render the three splits into `folder`."""
    import lrkd.faces

    model = lrkd.faces.FaceModel(**parameters["face"]).to(device)
    table = model.describe().set_index("name")
    low, high = float(table.loc["age", "low"]), float(table.loc["age", "high"])
    column = model.nuisance_names.index("age")
    size, images = parameters["size"], parameters["images"]
    total = sum(parameters["identities"]) * images
    quiet = None if progress is None else not progress
    with torch.no_grad(), tqdm(total=total, desc=f"faces at {size} px", unit="img", disable=quiet) as bar:
        for split, classes in zip(SPLITS, parameters["identities"], strict=True):
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
                    x = model.render(identity[labels[rows]].to(device), nuisance[rows].to(device), size=size)
                    if not torch.isfinite(x).all():
                        raise DataError(f"FaceModel({parameters['face']}) rendered values that are not finite")
                    x = x.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
                    out.append(np.ascontiguousarray(x.cpu().numpy()))
                    bar.update(len(x))
            for what, array in (("labels", labels), ("identity", identity), ("nuisance", nuisance)):
                np.save(folder / f"{split}-{what}.npy", array.numpy())
            np.save(folder / f"{split}-age.npy", nuisance[:, column].contiguous().numpy())
    (folder / "meta.json").write_text(json.dumps({**parameters, "age_range": [low, high]}, indent=1))


class NpyWriter:
    """A uint8 .npy file of unknown length, written in pieces; the header's row count is filled in at the end.

    Plain writes, not a memory map: on a full disk a map dies of SIGBUS where a write raises OSError.
    """

    def __init__(self, path: Path, row: tuple[int, ...]) -> None:
        self.path, self.row, self.rows = path, row, 0
        self._file = path.open("wb")
        self._header()

    def _header(self) -> None:
        # numpy pads the header so that the first axis may grow: its length does not depend on the row count
        shape = (self.rows, *self.row)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})

    def append(self, images: np.ndarray) -> None:
        """(n,H,W,3) uint8."""
        if images.dtype != np.uint8 or images.shape[1:] != self.row:
            raise DataError(f"{self.path}: {images.dtype} {images.shape} does not fit uint8 (n,{self.row})")
        self._file.write(images.tobytes())
        self.rows += len(images)

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._file.seek(0)
                self._header()
        finally:
            self._file.close()


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
