"""Write what networks know of a face: `python -m book.known`, after study `answer --part length`.

known.csv: a row a network and a number of the renderer, the R^2 of a ridge regression on its embeddings, validated
over people whom no run has seen. The networks are those of worlds 0 and 1 that are in the store and not in the table;
beside them the pixels, an untrained network, and the teacher shown sharp and small images. With --train those that a
shuffled teacher taught are trained first.
"""

import argparse
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from book import ceiling
from book.kit.linear_probe import linear_r2
from lrkd.data.renderer import FaceModel
from lrkd.data.tables import Faces
from lrkd.evaluation.embedding import embed
from lrkd.files import Table
from lrkd.models.layers import Network
from lrkd.study import presets, results, runner, teaching, worlds
from lrkd.study.answer_plan import ENTRANTS, Place, with_needs
from lrkd.study.experiment import commit, device_name, find_run, load
from lrkd.study.spec import Spec, config_hash

PEOPLE, IMAGES = 1000, 6
SHUFFLED = ("embedding-shuffled", "shuffled-teacher")
TABLE = Table("python -m book.known", ("world", "method", "side"))


def probes(scale: presets.Scale, number: int, people: int) -> Faces:
    """People of a world whom no run of it has seen."""
    own = worlds.people(scale, worlds.World(number), "validation")
    return replace(own, name="probes", identities=people, images=IMAGES, pairs=None).faces()


def networks(scale: presets.Scale, number: int, epochs: int) -> Iterator[tuple[dict[str, Any], Network, int | None]]:
    """The networks of a world that have finished, with what they are and the side of the images they are shown."""
    place = Place(scale, epochs=epochs)
    teachers: dict[str, Spec] = {}
    specs = [place.spec(entrant, number, "S") for entrant in ENTRANTS.values() if entrant.shown == "small"]
    for spec in specs:
        run = find_run(spec)
        if not run.finished or run.result["status"] != "ok":
            continue
        assert isinstance(spec.side, int)
        known = {"role": "student", "method": spec.method.name, "side": spec.side, "config": config_hash(spec)}
        yield known, load(run)[0], spec.side
        if spec.teacher_run is not None and spec.method.teacher == "trained":
            teachers[config_hash(spec.teacher_run)] = spec.teacher_run
    for name, spec in teachers.items():
        network = load(find_run(spec))[0]
        for side in (None, place.hardest):
            known = {"role": "teacher", "method": "teacher", "side": side or scale.size, "config": name}
            yield known, network, side
    untrained = {"role": "control", "method": "untrained", "side": place.hardest, "config": None}
    yield untrained, teaching.build(specs[0], 1, 2)[0], place.hardest


def rows(
    scale: presets.Scale, number: int, epochs: int, people: int, there: Container[tuple[str, int]] = ()
) -> Iterator[dict[str, Any]]:
    """The rows of known.csv of a world; there: (method, side) that it has already."""
    faces, model = probes(scale, number, people), FaceModel(**scale.face)
    assert faces.identity is not None
    assert faces.nuisance is not None
    kept = [k for k, name in enumerate(model.nuisance_names) if not name.startswith("noise")]
    targets = np.concatenate([faces.identity[faces.labels], faces.nuisance[:, kept]], 1)
    names = [*(("identity", name) for name in model.identity_names)]
    names += [("nuisance", model.nuisance_names[k]) for k in kept]

    def told(known: dict[str, Any], features: np.ndarray) -> Iterator[dict[str, Any]]:
        found = linear_r2(features, targets, faces.labels)
        own = {"world": number, "epochs": epochs, **known, "images": len(faces)}
        yield from ({**own, "kind": kind, "name": name, "r2": r} for (kind, name), r in zip(names, found, strict=True))

    for known, network, side in tqdm(networks(scale, number, epochs), desc=f"world {number}", unit="network"):
        if (known["method"], known["side"]) not in there:
            yield from told(known, embed(network, faces.images, side=side, mirror=False))
    side = scale.sides[-1]
    if ("pixels", side) in there:
        return
    blocks = torch.arange(len(faces)).split(500)
    pixels = torch.cat([ceiling.shrunk(faces.batch(some.numpy()).float() / 255, side) for some in blocks])
    yield from told({"role": "control", "method": "pixels", "side": side, "config": None}, pixels.flatten(1).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", type=int, nargs="*", default=list(worlds.CHOOSING), help="default: 0 1")
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--epochs", type=int, default=12, help="how long the runs were trained (default: 12)")
    parser.add_argument("--people", type=int, default=PEOPLE, help=f"of each world (default: {PEOPLE})")
    parser.add_argument("--out", type=Path, default=ceiling.RESULTS, help="folder of the table")
    parser.add_argument("--train", action="store_true", help="train the students of a shuffled teacher first")
    asked = parser.parse_args()
    scale, path = presets.scale(asked.scale), asked.out / "known.csv"
    if asked.train:
        place = Place(scale, epochs=asked.epochs)
        taught = [place.spec(ENTRANTS[name], number, "S") for number in asked.worlds for name in SHUFFLED]
        runner.run_study(with_needs(taught))
        results.DESCRIBED.merge(asked.out / "answer-runs.csv", results.description(find_run(one) for one in taught))
    table = TABLE.read(path) if path.exists() else pd.DataFrame(columns=[*TABLE.key])
    known = {"data": "procedural", "scale": scale.name, "device": device_name("cpu"), "torch": torch.__version__}
    for number in asked.worlds:
        own = table[table["world"] == number]
        there = set(zip(own["method"], own["side"], strict=True))
        found = pd.DataFrame(rows(scale, number, asked.epochs, asked.people, there))
        TABLE.merge(path, found.assign(**known, commit=commit()))


if __name__ == "__main__":
    main()
