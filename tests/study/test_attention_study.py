"""What is measured of trained runs: the columns' laws, the arrays that a page reads, and the command."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from kit.display import named
from kit.gallery import Gallery

from lrkd.cli import program
from lrkd.data.degradation import degrade
from lrkd.distill import methods
from lrkd.errors import ConfigError, DataError, RunError
from lrkd.evaluation import attention
from lrkd.models import backbones
from lrkd.study import attention_probes, attention_study, experiment, presets, runner
from lrkd.study import spec as study_spec
from lrkd.training.step import normalise

SMOKE = presets.SCALES["smoke"]
SIDE = SMOKE.sides[-1]
PROBES = attention_probes.probes
WANTED = [
    study_spec.teacher_spec(SMOKE),
    *(study_spec.Spec(methods.get(name), SIDE, 0, SMOKE) for name in ("none", "askd", "fskd")),
]


@pytest.fixture(scope="module")
def shown(smoke: Path) -> Iterator[attention_probes.Probes]:
    """The probes at scale smoke, which `gather` is given too: their derivatives are taken once."""
    found = PROBES(study_spec.splits(SMOKE).test, SMOKE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_study, "probes", lambda faces, scale: found)
        yield found


@pytest.fixture(scope="module")
def gathered(shown: attention_probes.Probes) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Three finished runs at scale smoke; the fourth, fskd, is not trained."""
    runner.run_study(WANTED[:3], workers=1, device="cpu", progress=False)
    return attention_study.gather(WANTED)


def test_a_row_for_each_run_kind_and_block(gathered):
    table, _ = gathered
    runs = table[table["role"] != "baseline"]
    assert set(runs["method"]) == {"none", "askd"}
    maps = {"cbam": [*"1234", "fused"], "channel": [*"1234"], "gradcam": [*"1234", "fused"]}
    for _, part in runs.groupby("config"):
        assert {kind: list(rows["map"]) for kind, rows in part.groupby("kind")} == maps
    assert set(table.loc[table["role"] == "baseline", "side"]) == {SMOKE.size, *SMOKE.sides}
    for key in ("accuracy", "device", "torch", "commit", "config", "teacher_seed"):
        assert runs.loc[runs["method"] == "askd", key].notna().all()


def test_the_teacher_is_like_itself_and_truth_like_truth(gathered):
    table, _ = gathered
    own = table[(table["role"] == "teacher") & (table["kind"] == "cbam")]
    np.testing.assert_allclose(own[["cosine_same", "pearson_same"]], 1, atol=1e-5)
    assert (own["cosine_other"] < 1).all()
    truth = table[table["map"] == "information"]
    np.testing.assert_allclose(truth[["rank", "pointing"]], 1)
    assert (truth["rank_other"] < 1).all()
    area = table[table["map"] == "area"]
    parts = [
        name for name in table if name.startswith("on_") and name != "on_top" and not name.endswith(("low", "high"))
    ]
    np.testing.assert_allclose(area[parts].sum(axis=1), 1, atol=0.02)
    assert len(parts) == 7


def test_intervals_hold_their_means_and_chance_is_around_zero(gathered):
    table, _ = gathered
    for name in attention_study.SURE:
        rows = table.dropna(subset=[name, f"{name}_low"])
        assert len(rows)
        assert (rows[f"{name}_low"] <= rows[name] + 1e-6).all()
        assert (rows[f"{name}_high"] >= rows[name] - 1e-6).all()
    ranked = table.dropna(subset="chance_low")
    assert (ranked["chance_low"] < 0).all()
    assert (ranked["chance_high"] > 0).all()
    assert table.loc[table["kind"] == "channel", ["rank", "pointing"]].isna().to_numpy().all()


def test_a_figure_by_hand(gathered, shown):
    """askd's second block, from the network itself: likeness to its teacher, and rank correlation with the truth."""
    table, _ = gathered
    row = table[(table["method"] == "askd") & (table["kind"] == "cbam") & (table["map"] == "2")].iloc[0]
    student, teacher = (experiment.load(experiment.find_run(spec))[0] for spec in (WANTED[2], WANTED[0]))
    with torch.inference_mode():
        s = student(normalise(degrade(shown.hr, SIDE))).spatial[1]
        t = teacher(normalise(shown.hr)).spatial[1]
    assert row["cosine_same"] == pytest.approx(
        torch.cosine_similarity(s.flatten(1), t.flatten(1)).mean().item(), abs=1e-5
    )
    other = torch.cosine_similarity(s.flatten(1), t.roll(1, 0).flatten(1)).mean().item()
    assert row["cosine_other"] == pytest.approx(other, abs=1e-5)
    seen = attention.upsample(s[shown.known].sigmoid(), SMOKE.size).numpy()
    truth = attention_study.enlarged(shown.information[SIDE], SMOKE.size)
    series = [
        pd.Series(a.ravel()).corr(pd.Series(b.ravel()), method="spearman") for a, b in zip(seen, truth, strict=True)
    ]
    assert row["rank"] == pytest.approx(np.mean(series), abs=0.01)  # the sigmoid before enlarging, so not quite


def test_probes_show_a_person_once_and_friends_are_theirs(shown):
    faces = study_spec.splits(SMOKE).test
    people = faces.labels[shown.rows]
    assert len(set(people)) == len(people) == faces.classes
    assert (faces.labels[shown.friends] == people[shown.known][:, None]).all()
    assert not np.isin(shown.rows[shown.known][:, None], shown.friends).any()
    for side, maps in shown.information.items():
        assert maps.shape == (len(shown.known), side, side)
        assert np.isfinite(maps).all()
        assert (maps >= 0).all()
    bits = [shown.bits[side].mean() for side in (SMOKE.size, *SMOKE.sides)]
    assert bits == sorted(bits, reverse=True)
    np.testing.assert_allclose(np.sum(list(shown.masks.values()), 0), 1, atol=0.02)


def test_packing_keeps_a_map_to_a_percent_of_its_most(shown):
    maps = shown.information[SMOKE.size]
    again = attention_study.unpack(*attention_study.pack(maps))
    most = maps.max((1, 2), keepdims=True)
    np.testing.assert_allclose(again / most, maps / most, atol=0.004)
    assert not attention_study.unpack(*attention_study.pack(0 * maps)).any()


def test_the_command_writes_what_a_page_reads(gathered, tmp_path, capsys):
    table, arrays = gathered
    files = tmp_path / "a.csv", tmp_path / "m.npz"
    assert program.main(["attention", "--scale", "smoke", "--out", str(files[0]), "--maps", str(files[1])]) == 0
    assert "askd" in capsys.readouterr().out
    written = pd.read_csv(files[0], dtype={"map": str, "config": str, "commit": str})
    ours = written[written["config"].isin(table["config"].dropna())]
    np.testing.assert_allclose(ours["rank"], table.dropna(subset="config")["rank"], rtol=1e-4)
    with np.load(files[1], allow_pickle=False) as read:
        assert set(arrays) <= set(read)
        assert json.loads(str(read["about"]))["scale"] == "smoke"
        count = len(read["picked"])
        assert read["examples"].shape == (count, SMOKE.size, SMOKE.size, 3)
        assert read[f"askd/{SIDE}/cbam/1"].shape == (count, 1, SMOKE.size // 2, SMOKE.size // 2)
        assert read[f"askd/{SIDE}/channel/4"].shape[:2] == (count, 16)
        quantiles = read[f"teacher/{SMOKE.size}/cbam/1/likeness"]
        assert quantiles.shape == (4, len(attention_study.LEVELS))
        assert (np.diff(quantiles.astype(float), axis=1) >= 0).all()


def test_without_a_teacher_there_is_nothing_to_compare(gathered, tmp_path):
    with pytest.raises(RunError, match="no teacher of scale smoke has finished"):
        attention_study.gather(WANTED, tmp_path)


def test_without_captum_it_is_said_before_the_ground_truth_is_computed(gathered, monkeypatch):
    monkeypatch.setattr(attention_study, "probes", None)
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.delitem(sys.modules, "captum.attr", raising=False)
    with pytest.raises(ConfigError, match=r"Grad-CAM needs captum.*: pip install 'lrkd\[book\]'"):
        attention_study.gather(WANTED)


@pytest.mark.parametrize("name", ["small", "mobile"])
def test_a_network_without_maps_is_one_clear_error(shown, name):
    sizes = {"size": SMOKE.size, "embedding": 8}
    network = backbones.build(name, **sizes, **({"cbam": False} if name == "small" else {}))
    with pytest.raises(ConfigError, match=r"network: expected attention maps, got an? \w+ without CBAM"):
        attention_study.look(network, SIDE, study_spec.splits(SMOKE).test, shown)


def test_photographs_have_no_ground_truth(photographs):
    with pytest.raises(DataError, match="was not rendered here, so nobody knows"):
        PROBES(study_spec.splits(SMOKE, photographs).test, SMOKE)


@pytest.fixture(scope="module")
def gallery(gathered, tmp_path_factory) -> Gallery:
    path = tmp_path_factory.mktemp("gallery") / "maps.npz"
    attention_study.save_maps(path, gathered[1])
    return Gallery(path)


def test_the_gallery_shows_what_was_gathered(gathered, gallery, shown):
    arrays = gathered[1]
    assert (gallery.size, gallery.sides, gallery.blocks) == (SMOKE.size, list(SMOKE.sides), [*"1234"])
    assert gallery.has("askd", SIDE)
    assert not gallery.has("fskd", SIDE)
    np.testing.assert_array_equal(gallery.maps("askd", SIDE, block="2"), arrays[f"askd/{SIDE}/cbam/2"][:, 0])
    blocks = [torch.from_numpy(arrays[f"askd/{SIDE}/gradcam/{b}"]).float() for b in "1234"]
    np.testing.assert_allclose(gallery.maps("askd", SIDE, "gradcam"), attention.fuse(blocks, SMOKE.size), atol=1e-6)
    np.testing.assert_allclose(gallery.truth(SIDE), shown.information[SIDE], atol=0.004 * shown.information[SIDE].max())
    np.testing.assert_array_equal(gallery.seen(SMOKE.size)[:, ::3, ::3], arrays["examples"])
    assert (gallery.picture("fskd", SIDE) == 255).all()
    assert gallery.picture("askd", SIDE).shape == (len(gallery.picked), 3 * SMOKE.size, 3 * SMOKE.size, 3)


def test_the_pictures_are_complete_and_stored_once(gallery):
    """Every combination, in the order of the lists; whatever does not depend on the network is one object."""
    pictures = gallery.pictures(["none", "askd"], faces=2)
    count = min(2, len(gallery.picked))
    assert len(pictures) == count * 3 * len(SMOKE.sides) * 8
    low = [pictures["face 1", named(name), f"{SIDE} px", "the image"] for name in ("none", "askd")]
    assert low[0] is low[1]
    teacher = [pictures["face 1", "teacher", f"{side} px", "fused"] for side in SMOKE.sides]
    assert all(one is teacher[0] for one in teacher)
    np.testing.assert_array_equal(
        pictures["face 1", named("askd"), f"{SIDE} px", "fused"], gallery.picture("askd", SIDE)[0]
    )


def test_another_file_is_no_gallery(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    for name in ("x.npz", "nowhere.npz"):
        with pytest.raises(DataError, match=f"{name}: is no file of maps"):
            Gallery(tmp_path / name)
