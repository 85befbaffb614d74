"""Write whether students that were drawn to a map came to look there: `python -m book.followed`.

followed.csv: a row a run of part `attention` of study `answer` and a map of it, held against where the information is
in test people's images of its world. What the store lacks is trained first.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from book.ceiling import RESULTS
from lrkd.evaluation.attention import fuse
from lrkd.files import Table
from lrkd.study import answer, answer_plan, presets, worlds
from lrkd.study.answer_plan import ATTENTION, MAIN, Chosen, Place
from lrkd.study.attention_probes import probes
from lrkd.study.attention_study import against_truth, look, visible
from lrkd.study.experiment import commit, device_name, load, train
from lrkd.study.spec import config_hash

TABLE = Table("python -m book.followed", ("config",), ("config", "map"))
# The places of a teacher's maps need that teacher, and are not asked after here.
ASKED = (MAIN[0], *(entrant for entrant in ATTENTION if entrant.name != "askd-places"))


def rows(place: Place, chosen: Chosen, world: int, people: int = 192) -> Iterator[dict[str, Any]]:
    """The rows of followed.csv of a world: of each network its maps, block by block and fused."""
    scale = place.scale
    faces = worlds.people(scale, worlds.World(world), "test").faces()
    shown = probes(faces, scale, people)
    for entrant in tqdm(ASKED, desc=f"world {world}", unit="network"):
        spec = place.spec(entrant, world, "T", chosen.factor(entrant))
        run = train(spec, progress=False)
        assert isinstance(spec.side, int)
        own = look(load(run)[0], spec.side, faces, shown).cbam
        known = {"world": world, "method": spec.method.name, "side": spec.side, "config": config_hash(spec)}
        for block, maps in (own | {"fused": fuse(list(own.values()), scale.size)}).items():
            weights = visible("cbam", block, maps, scale.size)[shown.known]
            yield {**known, "map": block, "images": len(weights), **against_truth(weights, spec.side, shown)}


def chosen_by(scale: presets.Scale, tables: Path) -> tuple[Place, Chosen]:
    """The study's length and rate, and the weights of part `attention`, from its tables."""
    epochs = answer_plan.length(answer.read(tables, "length"))
    both = pd.concat([answer.read(tables, part) for part in ("ladders", "attention")])
    half = Place(scale, epochs=max(1, epochs // 2))
    chosen = answer_plan.ladders(half, ATTENTION, both, "T")
    return replace(half, epochs=epochs, lr=chosen.rate), chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "worlds", type=int, nargs="*", default=list(answer_plan.FEW), help="default: the six of part attention"
    )
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--tables", type=Path, default=RESULTS, help="folder of the tables")
    asked = parser.parse_args()
    place, chosen = chosen_by(presets.scale(asked.scale), asked.tables)
    known = {"data": "procedural", "scale": asked.scale, "device": device_name("cpu"), "commit": commit()}
    for world in asked.worlds:
        TABLE.merge(asked.tables / "followed.csv", pd.DataFrame(rows(place, chosen, world)).assign(**known))


if __name__ == "__main__":
    main()
