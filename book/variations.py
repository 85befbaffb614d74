"""Train the same in worlds of which one thing is changed: `python -m book.variations people`, or `spectrum`.

people: students of more and more people, each shown as many images in all, beside a teacher who stays the same.
spectrum: people who differ in coarse things, in fine ones (the study's own), and between.

Both are of validation people of worlds that nothing is judged in, at rates and weights of the ladders of study
`answer`, and go on where they were stopped: variations.csv has a row a run, side and endpoint. `python -m
book.variations differences --data DIR` writes differences.csv: how much people, and images of one person, differ by the
fineness of what differs, in rendered worlds and in photographs.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from book.ceiling import RESULTS
from lrkd.data.prepared import prepared, resized
from lrkd.data.renderer import FaceModel
from lrkd.data.tables import Faces
from lrkd.files import Table
from lrkd.study import answer, answer_plan, presets, results, runner, worlds
from lrkd.study.answer_plan import ENTRANTS, MAIN, Chosen, Place
from lrkd.study.experiment import commit, find_run
from lrkd.study.presets import Scale
from lrkd.study.spec import Spec, config_hash

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of the many people of a world
PEOPLE = (ENTRANTS["none"], ENTRANTS["embedding-cos"])
FINENESS = (0.0, 0.25, 0.5, 0.75, 1.0)  # from the study's spectrum turned round to the study's own
WORLDS = {"people": (0, 1), "spectrum": (0, 1, 2)}
BANDS = (0, 3, 6, 12, 24)  # cycles a face
PAIRS, RESAMPLES = 3000, 1000
TABLE = Table("python -m book.variations", ("config",))
DIFFERENCES = Table("python -m book.variations differences", ("source", "fineness", "low"))


@dataclass(frozen=True)
class Varied(Spec):
    """A run of a changed world. length: the epochs of its teacher, whatever its own."""

    length: int = 1

    @property
    def teacher_run(self) -> Spec | None:
        own = super().teacher_run
        return own and replace(own, epochs=self.length)


def varied(one: Spec, length: int) -> Varied:
    return Varied(**{each.name: getattr(one, each.name) for each in fields(Spec)}, length=length)


def people(scale: Scale, length: int, chosen: Chosen) -> Iterator[tuple[float, Spec]]:
    """The number of people and the run, world by world; setting T, as what is varied is whom the student sees."""
    population = scale.population
    assert population is not None
    (few, images), (many, each) = population.train, population.many
    for world in WORLDS["people"]:
        for count in (max(4, round(many * share)) for share in SHARES):
            shown = replace(scale, population=replace(population, train=(count, each)))
            epochs = max(1, round(length * few * images / (count * each)))
            place = Place(shown, epochs=epochs, lr=chosen.rate)
            yield from ((count, varied(place.spec(e, world, "T", chosen.factor(e)), length)) for e in PEOPLE)


def amplitudes(fineness: float, own: Sequence[float]) -> tuple[float, ...]:
    """How strongly people differ in low, middle and high bands: `own` at 1, turned round at 0, geometric between."""
    return tuple(round(a**fineness * b ** (1 - fineness), 4) for a, b in zip(own, reversed(own), strict=True))


def at_fineness(scale: Scale, fineness: float) -> Scale:
    """The scale with people of another spectrum; the middle band stays."""
    own = FaceModel(**scale.face).amplitudes
    return replace(scale, face={**scale.face, "amplitudes": amplitudes(fineness, own)})


def spectrum(scale: Scale, length: int, chosen: Chosen) -> Iterator[tuple[float, Spec]]:
    """The fineness and the run, teachers too, world by world; setting S, half the length, as the ladders have it."""
    for world in WORLDS["spectrum"]:
        for fineness in FINENESS:
            place = Place(at_fineness(scale, fineness), epochs=max(1, length // 2), lr=chosen.rate)
            runs = [place.spec(entrant, world, "S", chosen.factor(entrant)) for entrant in MAIN]
            yield from ((fineness, one) for one in answer_plan.with_needs(runs))


VARIED = {"people": people, "spectrum": spectrum}


def train(what: str, scale: Scale, tables: Path, **how: Any) -> pd.DataFrame:
    """Train what variations.csv lacks; `how`: of `runner.run_study`."""
    length = answer_plan.length(answer.read(tables, "length"))
    half = Place(scale, epochs=max(1, length // 2))
    return train_at(
        what, scale, tables, length, answer_plan.ladders(half, MAIN, answer.read(tables, "ladders"), "T"), **how
    )


def train_at(
    what: str, scale: Scale, tables: Path, length: int, chosen: Chosen, only: int | None = None, **how: Any
) -> pd.DataFrame:
    """`train` at a length, rates and weights; only: so many runs of the plan."""
    path, planned = tables / "variations.csv", list(VARIED[what](scale, length, chosen))[:only]
    known = set(TABLE.read(path)["config"]) if path.exists() else set()
    at = {config_hash(one): value for value, one in planned}
    missing = answer_plan.with_needs(one for _, one in planned if config_hash(one) not in known)

    def write(frame: pd.DataFrame) -> None:
        if len(frame) and len(frame := frame[frame["config"].isin(list(at))]):
            TABLE.merge(path, frame.assign(varied=what, at=frame["config"].map(at)))
            made = [find_run(one) for one in missing]
            described = results.description(run for run in made if run.finished)
            results.DESCRIBED.merge(tables / "variations-runs.csv", described)

    runner.run_study(missing, on_table=write, **how)
    return TABLE.read(path)


# --------------------------------------------------------------------------------------------------------- differences


def powers(images: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Power of the differences of pairs of images in each of BANDS, (N,S,S,3) uint8 -> (pairs,bands)."""
    grey = torch.from_numpy(np.stack([images[left], images[right]])).float().mean(-1) / 255
    power = torch.fft.fft2(grey[0] - grey[1], norm="ortho").abs().square()
    at = torch.fft.fftfreq(images.shape[1], 1 / images.shape[1])
    radius = torch.hypot(at[:, None], at[None])
    parts = [(radius >= low) & (radius < high) for low, high in itertools.pairwise(BANDS)]
    return np.stack([power[:, part].sum(1).numpy() for part in parts], 1)


def differences(faces: Faces, seed: int = 0) -> Iterator[dict[str, Any]]:
    """A row a band: the mean power of the differences between images of one person and of two, and their ratio.

    By as much as two people's images differ more than one person's, the band tells people apart. The ratio's interval
    is of 95 %, from a bootstrap over the people of the left images.
    """
    rng, labels = np.random.default_rng(seed), faces.labels
    left, other = rng.integers(0, len(labels), (2, PAIRS))
    own = np.array([rng.choice(np.flatnonzero(labels == labels[row])) for row in left])
    apart, alike = labels[left] != labels[other], own != left
    found = {}
    for kind, kept, right in (("within", alike, own), ("between", apart, other)):
        found[kind] = labels[left[kept]], powers(faces.images, left[kept], right[kept])
    draws = rng.multinomial(faces.classes, np.full(faces.classes, 1 / faces.classes), RESAMPLES)
    drawn = {k: draws[:, who] @ power / draws[:, who].sum(1, keepdims=True) for k, (who, power) in found.items()}
    ends = np.quantile(drawn["between"] / drawn["within"], (0.025, 0.975), axis=0)
    mean = {kind: power.mean(0) for kind, (_, power) in found.items()}
    for k, (low, high) in enumerate(itertools.pairwise(BANDS)):
        row = {"low": low, "high": high, **{kind: float(power[k]) for kind, power in mean.items()}}
        row |= {"ratio": row["between"] / row["within"], "ratio_low": ends[0, k], "ratio_high": ends[1, k]}
        yield row | {"pairs": int(alike.sum()), "people": faces.classes, "size": faces.size}


def write_differences(scale: Scale, data: Path | None, out: Path) -> None:
    for fineness in FINENESS:
        found = worlds.people(at_fineness(scale, fineness), worlds.World(0), "validation").faces()
        rows = pd.DataFrame(differences(found)).assign(source="procedural", fineness=fineness, commit=commit())
        DIFFERENCES.merge(out / "differences.csv", rows)
    if data is not None:
        found = resized(prepared(str(data)), scale.size).train
        rows = pd.DataFrame(differences(found)).assign(source=found.name.split("/")[0], fineness=None, commit=commit())
        DIFFERENCES.merge(out / "differences.csv", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*VARIED, "differences"])
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--data", type=Path, metavar="DIR", help="differences: a prepared folder of photographs")
    parser.add_argument("--workers", type=int, help="runs at a time (default: one a core on a CPU, one on a GPU)")
    parser.add_argument("--device", help="such as cpu or cuda:0")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="stop after that; the next call goes on")
    parser.add_argument("--tables", type=Path, default=RESULTS, help="folder of the tables")
    asked = parser.parse_args()
    if not asked.tables.is_dir():
        parser.error(f"--tables: expected a folder, got {asked.tables}")
    scale = presets.scale(asked.scale)
    if asked.what == "differences":
        return write_differences(scale, asked.data, asked.tables)
    how = {"workers": asked.workers, "device": asked.device, "stop": runner.over_after(asked.budget)}
    found = train(asked.what, scale, asked.tables, **how)
    print(f"{asked.tables / 'variations.csv'}: {found['config'].nunique()} runs")
    return None


if __name__ == "__main__":
    main()
