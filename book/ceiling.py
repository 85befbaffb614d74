"""Write what the pixels allow: `python -m book.ceiling`, the ideal observer on the validation people of worlds 0 and 1.

ceiling.csv: a row a genuine pair, side and protocol, the accuracy that the linear model allows. ceiling-bounds.csv: the
greatest R^2 of each number at each side. ceiling-fits.csv: pairs of the true images, each fitted by the renderer and
scored by the likelihood ratio at the fit: from the truth, and from the average face, which is all that an observer has.
What is computed of an image is kept in the cache, so a stopped command goes on.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from book.kit.ideal_observer import accuracy, correlations, explained, laplace, log_ratio
from lrkd.data.degradation import resampling_matrix
from lrkd.data.procedural import cache_dir
from lrkd.data.renderer import FaceModel
from lrkd.data.tables import Faces
from lrkd.evaluation.fisher_maps import face_derivatives
from lrkd.files import atomic
from lrkd.study import presets, worlds
from lrkd.study.experiment import commit, device_name
from lrkd.study.results import write_table

RESULTS = Path(__file__).resolve().parent / "results"
STARTS = {"truth": ((1.0, 6),), "average": ((16.0, 4), (6.0, 4), (2.5, 4), (1.0, 6))}  # noise times this, so many steps
BATCH = 4  # images that are fitted together


@dataclass(frozen=True)
class World:
    """The people of a world and how they were rendered.

    noise: the sensor's, a pixel of `size` px. mean, spread: (K,) of the nuisance. kept: which of it is no noise.
    """

    number: int
    scale: presets.Scale
    faces: Faces
    model: FaceModel
    identity: Tensor
    nuisance: Tensor
    mean: Tensor
    spread: Tensor
    kept: Tensor
    noise: float

    @property
    def names(self) -> list[str]:
        """The numbers that an image may tell, identity first."""
        return [*self.model.identity_names, *(self.model.nuisance_names[k] for k in self.kept)]

    def noise_at(self, side: int) -> float:
        """A pixel of the LR image averages (size / side)^2 pixels, and their noise."""
        return self.noise * side / self.scale.size

    def numbers(self, rows: np.ndarray) -> Tensor:
        """What made images, (N,D+K) in standard deviations from the mean."""
        nuisance = ((self.nuisance[rows] - self.mean) / self.spread)[:, self.kept]
        return torch.cat([self.identity[self.faces.labels[rows]], nuisance], 1)

    def drawn(self, numbers: Tensor, size: int, side: int) -> Tensor:
        """The images that numbers make: (N,D+K) -> (N,3,side,side), rendered at `size` px, without noise."""
        identities = self.identity.shape[1]
        table = self.model.describe().set_index("name").loc[list(self.model.nuisance_names)]
        low, high = (torch.tensor(table[end].to_numpy(np.float32))[self.kept] for end in ("low", "high"))
        plain = torch.zeros(len(numbers), len(self.mean), dtype=numbers.dtype)
        own = self.mean[self.kept] + numbers[:, identities:] * self.spread[self.kept]
        nuisance = plain.index_copy(1, self.kept, torch.clamp(own, low, high))
        image = self.model.render(numbers[:, :identities].clamp(-4, 4), nuisance, size)
        assert isinstance(image, Tensor)
        return shrunk(image, side)


def shrunk(images: Tensor, side: int) -> Tensor:
    matrix = torch.from_numpy(resampling_matrix(images.shape[-1], side, "area")).to(images)
    return matrix @ images @ matrix.T


def world(scale: presets.Scale, number: int, name: str = "validation") -> World:
    """The people of a world."""
    faces, model = worlds.people(scale, worlds.World(number), name).faces(), FaceModel(**scale.face)
    assert faces.identity is not None
    assert faces.nuisance is not None
    nuisance = torch.from_numpy(np.array(faces.nuisance))
    kept = torch.tensor([k for k, name in enumerate(model.nuisance_names) if not name.startswith("noise")])
    level = nuisance[:, model.nuisance_names.index("noise")]
    return World(
        number,
        scale,
        faces,
        model,
        torch.from_numpy(np.array(faces.identity)),
        nuisance,
        nuisance.mean(0),
        nuisance.std(0),
        kept,
        float(level.square().mean().sqrt()),
    )


def genuine(of: World, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both images of genuine pairs of evenly spaced people of the world."""
    pairs = of.faces.pairs
    assert pairs is not None
    same = np.flatnonzero(pairs.same)
    first = same[np.unique(of.faces.labels[pairs.left[same]], return_index=True)[1]]
    chosen = first[np.linspace(0, len(first) - 1, min(count, len(first))).astype(np.int64)]
    return pairs.left[chosen], pairs.right[chosen]


def kept_or(path: Path, make: Any) -> np.ndarray:
    """The array of a file, made and written where it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path, "wb") as file:
            np.save(file, make(), allow_pickle=False)
    return np.load(path, allow_pickle=False)


def shares(of: World, row: int) -> np.ndarray:
    """`explained` of an image at all sides, sharp first: (sides,D+K,D+K)."""

    def make() -> np.ndarray:
        slopes = face_derivatives(
            of.model, of.identity[of.faces.labels[row]], of.nuisance[row], of.spread, of.scale.size
        )
        found = [explained(slopes.at_side(side), of.noise_at(side)) for side in (of.scale.size, *of.scale.sides)]
        return torch.stack(found).float().numpy()

    return kept_or(cache_dir() / f"explained-{of.faces.digest}" / f"{row}.npy", make)


def ceilings(of: World, count: int) -> Iterator[dict[str, Any]]:
    """Rows of ceiling.csv. bits: on the identity, in the smaller of the two images."""
    sides, d = (of.scale.size, *of.scale.sides), of.identity.shape[1]
    for left, right in tqdm(list(zip(*genuine(of, count), strict=True)), desc="ceiling", unit="pair"):
        a, b = (torch.from_numpy(shares(of, row)[:, :d, :d]).double() for row in (left, right))
        for k, side in enumerate(sides):
            bits = float(-torch.logdet(torch.eye(d, dtype=b.dtype) - b[k]) / 2 / np.log(2))
            person = int(of.faces.labels[left])
            for endpoint, sharp in (("lr-lr", a[k]), ("hr-lr", a[0]))[: 1 if k == 0 else 2]:
                known = {"world": of.number, "person": person, "side": side, "endpoint": endpoint}
                yield {**known, "accuracy": accuracy(correlations(sharp, b[k])), "bits": bits}


def bounds(of: Sequence[World], count: int) -> pd.DataFrame:
    """Make ceiling-bounds.csv: the mean over images of what is explained of each number."""
    found = np.mean(
        [np.diagonal(shares(one, row), axis1=1, axis2=2) for one in of for row in np.concatenate(genuine(one, count))],
        0,
    )
    names, sides = of[0].names, (of[0].scale.size, *of[0].scale.sides)
    d = of[0].identity.shape[1]
    kinds = ["identity"] * d + ["nuisance"] * (len(names) - d)
    rows = [
        {"kind": kind, "name": name, "side": side, "bound": value, "images": 2 * count * len(of)}
        for side, values in zip(sides, found, strict=True)
        for kind, name, value in zip(kinds, names, values, strict=True)
    ]
    return pd.DataFrame(rows)


def fit(of: World, rows: np.ndarray, side: int, start: str) -> list[np.ndarray]:
    """Mean and covariance of the identity given each image, (1+D,D) stacked, by `laplace` from a start."""
    folder = cache_dir() / f"posteriors-{of.faces.digest}" / f"{side}-{start}"
    size, d = of.scale.size, of.identity.shape[1]
    missing = [row for row in rows if not (folder / f"{row}.npy").exists()]
    for some in tqdm(
        [missing[i : i + BATCH] for i in range(0, len(missing), BATCH)], desc=f"fits from the {start}", unit="batch"
    ):
        seen = shrunk(of.faces.batch(np.array(some)).float() / 255, side)
        at = of.numbers(np.array(some)).double() * (start == "truth")
        for factor, steps in STARTS[start]:
            at, spread = laplace(
                lambda z: of.drawn(z, size, side),
                seen,
                at.float(),
                factor * of.noise_at(side),
                steps,
                step=1e-3,
            )
        for row, mean, covariance in zip(some, at[:, :d], spread[:, :d, :d], strict=True):
            made = torch.cat([mean[None], covariance]).numpy()
            kept_or(folder / f"{row}.npy", lambda made=made: made)
    return [np.load(folder / f"{row}.npy", allow_pickle=False) for row in rows]


def fits(of: World, count: int, side: int, start: str) -> Iterator[dict[str, Any]]:
    """Rows of ceiling-fits.csv: every left image of the genuine pairs against every right one."""
    left, right = genuine(of, count)
    a, b = ([(torch.from_numpy(x[0]), torch.from_numpy(x[1:])) for x in fit(of, r, side, start)] for r in (left, right))
    for i, j in itertools.product(range(len(left)), range(len(right))):
        people = {"left": int(of.faces.labels[left[i]]), "right": int(of.faces.labels[right[j]])}
        known = {"world": of.number, "side": side, "start": start, **people, "same": i == j}
        yield {**known, "log_ratio": log_ratio(a[i], b[j])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--pairs", type=int, default=50, help="genuine pairs of each world (default: 50)")
    parser.add_argument("--fitted", type=int, default=12, help="of them fitted in each world (default: 12)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    asked = parser.parse_args()
    scale = presets.scale(asked.scale)
    found = [world(scale, number) for number in worlds.CHOOSING]
    known = {"data": "procedural", "scale": scale.name, "device": device_name("cpu"), "torch": torch.__version__}
    known["commit"] = commit()
    table = pd.DataFrame(row for one in found for row in ceilings(one, asked.pairs)).assign(**known)
    write_table(asked.out / "ceiling.csv", table)
    write_table(asked.out / "ceiling-bounds.csv", bounds(found, asked.pairs).assign(**known))
    rows: list[dict[str, Any]] = []
    for one, start in itertools.product(found, STARTS):
        rows += fits(one, asked.fitted, scale.sides[-1], start)
        write_table(asked.out / "ceiling-fits.csv", pd.DataFrame(rows).assign(**known))


if __name__ == "__main__":
    main()
