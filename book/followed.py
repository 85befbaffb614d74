"""Write whether students that were drawn to a map came to look there: `python -m book.followed`.

followed.csv: a row a run of part `attention` of study `answer` and a map of it, held against where the information is
in test people's images of its world; runs that need a teacher are left out. What the store lacks is trained first,
about twenty minutes a world on two cores for its maps of information, and five a run.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from book.ceiling import RESULTS
from lrkd.evaluation.attention import fuse
from lrkd.files import Table
from lrkd.study import answer, answer_plan, presets, worlds
from lrkd.study.attention_probes import probes
from lrkd.study.attention_study import against_truth, look, visible
from lrkd.study.experiment import commit, device_name, load, train
from lrkd.study.spec import PROCEDURAL, Spec, config_hash

TABLE = Table("python -m book.followed", ("config",), ("config", "map"))


def rows(specs: Sequence[Spec], people: int = 192) -> Iterator[dict[str, Any]]:
    """The rows of followed.csv of runs of one world: of each network its maps, block by block and fused."""
    scale, world = specs[0].scale, specs[0].world
    assert world is not None
    faces = worlds.people(scale, world, world.shown).faces()
    shown = probes(faces, scale, people)
    for spec in tqdm(specs, desc=f"world {world.number}", unit="network"):
        run = train(spec, progress=False)
        assert isinstance(spec.side, int)
        own = look(load(run)[0], spec.side, faces, shown).cbam
        known = {"world": world.number, "method": spec.method.name, "side": spec.side, "config": config_hash(spec)}
        for block, maps in (own | {"fused": fuse(list(own.values()), scale.size)}).items():
            weights = visible("cbam", block, maps, scale.size)[shown.known]
            yield {**known, "map": block, "images": len(weights), **against_truth(weights, spec.side, shown)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "worlds", type=int, nargs="*", default=list(answer_plan.FEW), help="default: the six of part attention"
    )
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--tables", type=Path, default=RESULTS, help="folder of the tables")
    asked = parser.parse_args()
    planned = answer.plan("attention", presets.scale(asked.scale), PROCEDURAL, asked.tables)
    # The places of a teacher's maps need that teacher, and are not asked after here.
    judged = [spec for spec in planned if spec.world is not None and spec.world.judging and spec.teacher_run is None]
    known = {"data": "procedural", "scale": asked.scale, "device": device_name("cpu"), "commit": commit()}
    for world in asked.worlds:
        own = [spec for spec in judged if spec.world is not None and spec.world.number == world]
        if not own:
            parser.error(f"worlds: expected some of {', '.join(map(str, answer_plan.FEW))}, got {world}")
        TABLE.merge(asked.tables / "followed.csv", pd.DataFrame(rows(own)).assign(**known))


if __name__ == "__main__":
    main()
