"""The committed runs keep their names: every configuration of book/results/runs.csv, built anew, has the same hash."""

import json
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from lrkd import data, experiment, runs, study
from lrkd.scales import SCALES

RESULTS = Path(__file__).resolve().parent.parent / "book" / "results"
RUNS = pd.read_csv(RESULTS / "runs.csv", dtype=str, keep_default_na=False)
CPU = SCALES["cpu"]


@lru_cache
def digests(source: str) -> dict[str, str]:
    """What the data of a source are, by split: of rendered faces computed without rendering one, of LFW as written."""
    if source != experiment.PROCEDURAL:
        made = RUNS[RUNS["data.source"] == source]
        return {split: made[f"data.{split}"].unique().item() for split in data.SPLITS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_making", lambda folder: nullcontext())
        patch.setattr(data, "_procedural_split", lambda _, *parts: data._digest(parts[-1], *parts[:-2]))
        patch.setattr(data, "Splits", lambda *found: found)
        found = data.procedural(CPU.size, CPU.identities, CPU.images, CPU.pairs, face=dict(CPU.face), cache="nowhere")
    return dict(zip(data.SPLITS, found, strict=True))


class Table(SimpleNamespace):
    """A split that has a name, a digest and more people than any batch, and no image."""

    def __len__(self) -> int:
        return 10_000


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def tables(scale, source=experiment.PROCEDURAL):
        return SimpleNamespace(
            **{part: Table(name=f"{source}/{part}", digest=digest) for part, digest in digests(source).items()}
        )

    monkeypatch.setattr(experiment, "splits", tables)


def planned() -> list[study.Spec]:
    """The runs of every study at scale cpu, of rendered faces and of LFW."""
    ladder = pd.read_csv(RESULTS / "ladder.csv")
    grids = (study.specs(name, CPU, source, ladder) for name in study.STUDIES for source in ("procedural", "lfw"))
    return [spec for grid in grids for spec in grid]


def test_every_committed_configuration_has_the_hash_that_it_had(no_images):
    found = {experiment.key(spec): experiment.config(spec) for spec in planned()}
    lost = RUNS[~RUNS["config"].isin(list(found))]
    assert lost.empty, f"runs whose hash no study gives any more:\n{lost[['config', 'method.name', 'side', 'seed']]}"
    for row in RUNS.to_dict("records"):
        told = runs.flat(json.loads(json.dumps(found[row["config"]])))
        written = {name: value for name, value in row.items() if name not in ("config", "commit") and value}
        assert {name: str(value) for name, value in told.items() if value not in (None, "")} == written
