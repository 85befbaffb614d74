"""Gains over a baseline are those of the committed tables, computed once more."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kit import gains

from lrkd.study import results

RESULTS = Path(__file__).parents[2] / "book/results"


def test_tables_of_both_scales_lie_beside_each_other_and_what_is_missing_is_said(tmp_path):
    real = results.read_table(RESULTS / "selection.csv")
    results.write_table(tmp_path / "core.csv", real)
    tables, said = gains.at_scales("core", folder=tmp_path)
    assert list(tables) == ["core.csv, scale cpu"]
    assert said == (
        "At scale gpu (112 pixels): not measured yet; on a GPU make gpu-results or lrkd study would write "
        "book/results/gpu-core.csv."
    )
    part = real[real["seed"] < 2].assign(scale="gpu", device="a GPU", commit="abc")
    part.loc[part.index[0], ["device", "commit"]] = np.nan  # as a row of a baseline has it, which is no run
    results.write_table(tmp_path / "gpu-core.csv", part)
    tables, said = gains.at_scales("core", "deep", folder=tmp_path)
    assert list(tables) == ["core.csv, scale cpu", "gpu-core.csv, scale gpu"]
    pd.testing.assert_frame_equal(tables["core.csv, scale cpu"], real)
    runs = part["config"].nunique()
    assert f"): book/results/gpu-core.csv, {runs} runs on a GPU, commit abc; not measured yet; " in said
    assert "gpu-deep.csv" in said
    assert gains.at_scales("nothing", folder=tmp_path)[0] == {}


def test_gains_are_the_paired_differences_at_the_least_side_that_have_an_interval():
    table = results.read_table(RESULTS / "core.csv")
    found = gains.gains(table)
    tested = table[(table["role"] == "student") & (table["protocol"] == "test")]
    accuracy = tested[tested["side"] == 6].pivot(index="seed", columns="method", values="accuracy")
    assert found.loc["fskd", "mean"] == pytest.approx((accuracy["fskd"] - accuracy["none"]).mean())
    assert set(found["side"]) == {6}
    assert gains.gains(table[table["seed"] == 0]).empty, "one seed has no interval"
    assert gains.gains(table[table["method"] != "none"]).empty
    assert list(gains.gains(table[table["role"] == "teacher"])) == ["side", "mean", "low", "high", "p", "n"]
    frames, said = gains.gains_at_scales("core", folder=RESULTS)
    assert next(iter(frames)) == "core.csv, scale cpu, 6 px"
    assert "At scale gpu" in said


def test_what_small_images_cost_is_read_from_a_table():
    table = results.read_table(RESULTS / "core.csv")
    fed, own = gains.small_images(table).values()
    assert list(fed["side"]) == list(own["side"]) == [48, 24, 12, 6]
    at = table[(table["role"] == "teacher") & (table["protocol"] == "test-at-12")]["accuracy"]
    assert fed.set_index("side").loc[12, "mean"] == pytest.approx(at.mean())
    assert fed["low"].isna().all()
    assert own["low"].notna().all()
    assert (own["n"] == 6).all()


def test_elsewhere_counts_the_intervals_of_the_other_protocols():
    rng = np.random.default_rng(0)
    true = {"none": (0, 0), "up@3": (0.1, 0), "down": (-0.1, 0.1)}
    rows = [
        {"role": "student", "status": "ok", "side": side, "method": name, "seed": seed, "protocol": protocol, value: v}
        for side in (6, 12)
        for name, gain in true.items()
        for seed in range(4)
        for k, (protocol, value) in enumerate((("test-hr-lr", "accuracy"), ("identification", "rank1")))
        for v in [0.5 + gain[k] * (side == 6) + rng.normal(0, 0.001)]
    ]
    said = gains.elsewhere(pd.DataFrame(rows), [("up", "none"), ("down", "none")])
    assert "sharp against small (test-hr-lr), 1 of 2 above zero and 1 below" in said
    assert "rank 1 (identification), " in said
    assert gains.elsewhere(pd.DataFrame(rows)) == said
    assert "1 of 1 above zero" in gains.elsewhere(pd.DataFrame(rows), baseline="down", couples=[("none", "down")])


@pytest.mark.parametrize("name", ["aird", "aird-rkd", "skd", "lp(2)@8"])
def test_what_was_tuned_is_marked(name):
    assert gains.tuned(name)
    assert not gains.tuned("fskd")
