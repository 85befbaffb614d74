"""The committed runs keep their names: every configuration of book/results/runs.csv, built anew, has the same hash."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks.gpu import photographs
from lrkd.data import procedural
from lrkd.data.tables import SPLITS
from lrkd.distill import methods
from lrkd.study import networks, store, variants
from lrkd.study import spec as study_spec
from lrkd.study.grids import STUDIES, specs
from lrkd.study.presets import SCALES

RESULTS = Path(__file__).resolve().parents[2] / "book" / "results"
RUNS = pd.read_csv(RESULTS / "runs.csv", dtype=str, keep_default_na=False)
# LFW in another framing, which has the same name, and of whose teacher from outside the repository has no file.
ALIGNED, OUTSIDE = "lfw-aligned", "teacher.npy"
FRAMED = pd.concat(pd.read_csv(file, dtype=str)["config"] for file in RESULTS.glob("photo-teacher-*.csv"))
CPU = SCALES["cpu"]


def name_of(source: str) -> str:
    return "lfw" if source == ALIGNED else source


@lru_cache
def digests(source: str) -> dict[str, str]:
    """What the data of a source are, by split: of rendered faces computed without rendering one, of LFW as written."""
    if source != study_spec.PROCEDURAL:
        made = RUNS[(RUNS["data.source"] == name_of(source)) & (RUNS["config"].isin(FRAMED) == (source == ALIGNED))]
        return {split: made[f"data.{split}"].unique().item() for split in SPLITS}
    return procedural.RenderedSplits(CPU.size, CPU.identities, CPU.images, CPU.pairs, face=dict(CPU.face)).digests


class Table(SimpleNamespace):
    """A split that has a name, a digest and more people than any batch, and no image."""

    def __len__(self) -> int:
        return 10_000


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def tables(scale, source=study_spec.PROCEDURAL):
        return SimpleNamespace(
            **{part: Table(name=f"{name_of(source)}/{part}", digest=digest) for part, digest in digests(source).items()}
        )

    monkeypatch.setattr(study_spec, "splits", tables)
    monkeypatch.setattr(study_spec, "digests", lambda scale, source: (name_of(source), digests(source)))
    monkeypatch.setattr(study_spec, "_prepared", lambda source: tables(None, source))
    digest = RUNS.loc[RUNS["teacher.kind"] == "embeddings", "teacher.sha256"].unique().item()
    lent = networks.Lent(192, {"kind": "embeddings", "sha256": digest})
    kept = networks.lent_teacher
    monkeypatch.setattr(networks, "lent_teacher", lambda which, *more: lent if which == OUTSIDE else kept(which, *more))


def planned() -> list[study_spec.Spec]:
    """The runs of every study at scale cpu, of rendered faces and of LFW, and of photographs at 112 px."""
    ladder = pd.read_csv(RESULTS / "ladder.csv")
    grids = [specs(name, CPU, source, ladder) for name in STUDIES for source in ("procedural", "lfw")]
    own = specs("core", CPU, ALIGNED)
    names = ("none", "embedding-cos", "aird", "rkd", "bridge", "skd")
    outside = variants.with_methods(own, [methods.get(name) for name in names])
    grids += [own, variants.with_networks(outside, None, OUTSIDE)]
    return [spec for grid in [*grids, *photographs.grid(SCALES["gpu"], "lfw-jpeg88").values()] for spec in grid]


def test_every_committed_configuration_has_the_hash_that_it_had(no_images):
    found = {study_spec.config_hash(spec): study_spec.run_config(spec) for spec in planned()}
    lost = RUNS[~RUNS["config"].isin(list(found))]
    assert lost.empty, f"runs whose hash no study gives any more:\n{lost[['config', 'method.name', 'side', 'seed']]}"
    for row in RUNS.to_dict("records"):
        told = store.flatten(json.loads(json.dumps(found[row["config"]])))
        written = {name: value for name, value in row.items() if name not in ("config", "commit") and value}
        assert {name: str(value) for name, value in told.items() if value not in (None, "")} == written


def test_a_run_of_several_processes_is_another_where_something_sees_a_part_of_a_batch(no_images):
    """Batch norm that is not synchronised, or terms, which may compare images; of its teacher too."""
    for name, alike in (("none", True), ("rkd", False)):
        one = study_spec.Spec(methods.get(name), 6, 0, CPU)
        apart, joint = replace(one, processes=2), replace(one, processes=2, sync_norm=True)
        assert len({study_spec.config_hash(spec) for spec in (one, apart, replace(one, processes=3))}) == 3
        assert (study_spec.config_hash(joint) == study_spec.config_hash(one)) == alike
        assert study_spec.config_hash(replace(one, sync_norm=True)) == study_spec.config_hash(one), (
            "of one process it says nothing"
        )
    assert (
        study_spec.run_config(joint)["teacher"]
        == study_spec.run_config(one)["teacher"]
        != study_spec.run_config(apart)["teacher"]
    )


def test_the_batch_is_part_of_a_run_as_it_is(no_images, monkeypatch):
    one = study_spec.Spec(methods.get("none"), 6, 0, CPU, "lfw")
    before = study_spec.config_hash(one)
    monkeypatch.setattr(Table, "__len__", lambda table: one.recipe.student.batch)
    assert study_spec.config_hash(one) == before
    monkeypatch.setattr(Table, "__len__", lambda table: 48)
    assert study_spec.run_config(one)["schedule"]["batch"] == 48
    assert study_spec.config_hash(one) != before
