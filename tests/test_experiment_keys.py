"""The committed runs keep their names: every configuration of book/results/runs.csv, built anew, has the same hash."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from lrkd import data, experiment, methods, runs, study
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


def test_a_run_of_several_processes_is_another_where_something_sees_a_part_of_a_batch(no_images):
    """Batch norm that is not synchronised, or terms, which may compare images; of its teacher too."""
    for name, alike in (("none", True), ("rkd", False)):
        one = study.Spec(methods.get(name), 6, 0, CPU)
        apart, joint = replace(one, processes=2), replace(one, processes=2, sync_norm=True)
        assert len({experiment.key(spec) for spec in (one, apart, replace(one, processes=3))}) == 3
        assert (experiment.key(joint) == experiment.key(one)) == alike
        assert experiment.key(replace(one, sync_norm=True)) == experiment.key(one), "of one process it says nothing"
    assert (
        experiment.config(joint)["teacher"] == experiment.config(one)["teacher"] != experiment.config(apart)["teacher"]
    )


def test_the_batch_is_part_of_a_run_as_it_is(no_images, monkeypatch):
    one = study.Spec(methods.get("none"), 6, 0, CPU)
    before = experiment.key(one)
    monkeypatch.setattr(Table, "__len__", lambda table: one.recipe.student.batch)
    assert experiment.key(one) == before
    monkeypatch.setattr(Table, "__len__", lambda table: 48)
    assert experiment.config(one)["schedule"]["batch"] == 48
    assert experiment.key(one) != before
