"""Results tables to means, intervals and paired differences: against scipy on the cells picked by hand."""

import numpy as np
import pandas as pd
import pytest
from kit import display
from scipy import stats as oracle

from lrkd.errors import DataError
from lrkd.evaluation.statistics import holm, paired_differences, spelled, summarise


@pytest.fixture
def frame() -> pd.DataFrame:
    """Three methods at two sides over four seeds; fskd diverged once, at side 6 with seed 2; rows shuffled."""
    rng = np.random.default_rng(0)
    rows = [
        {"method": method, "side": side, "seed": seed, "accuracy": level + side / 100 + rng.normal(0, 0.02)}
        for method, level in (("none", 0.7), ("fskd", 0.75), ("askd", 0.7))
        for side in (6, 12)
        for seed in range(4)
    ]
    table = pd.DataFrame(rows)
    table.loc[(table["method"] == "fskd") & (table["side"] == 6) & (table["seed"] == 2), "accuracy"] = np.nan
    return table.sample(frac=1, random_state=1, ignore_index=True)


def cell(frame: pd.DataFrame, method: str, side: int) -> pd.Series:
    rows = frame[(frame["method"] == method) & (frame["side"] == side)]
    return rows.set_index("seed")["accuracy"].sort_index()


def test_summary_is_mean_and_t_interval_of_the_finite_values(frame: pd.DataFrame) -> None:
    table = summarise(frame, ["side", "method"])
    assert len(table) == 6
    for row in table.itertuples():
        values = cell(frame, row.method, row.side)
        kept = values.dropna()
        low, high = oracle.t.interval(0.95, len(kept) - 1, kept.mean(), oracle.sem(kept))
        assert (row.mean, row.low, row.high) == pytest.approx((kept.mean(), low, high))
        assert (row.n, row.missing) == (len(kept), values.isna().sum())


def test_summary_keeps_the_order_and_takes_one_key_and_one_value() -> None:
    rows = pd.DataFrame({"method": ["b", "a", "c", "b"], "accuracy": [0.5, 0.25, np.nan, 0.7]})
    table = summarise(rows, ["method"]).set_index("method")
    assert list(table.index) == ["b", "a", "c"]
    assert table.loc["a", ["mean", "n", "missing"]].tolist() == [0.25, 1, 0]
    assert np.isnan(table.loc["a", ["low", "high"]].astype(float)).all()
    assert table.loc["c", ["n", "missing"]].tolist() == [0, 1]
    assert np.isnan(table.loc["c", "mean"])


def test_summary_level(frame: pd.DataFrame) -> None:
    narrow, wide = (summarise(frame, ["method"], level=level) for level in (0.5, 0.99))
    assert (narrow["high"] - narrow["low"] < wide["high"] - wide["low"]).all()


def test_differences_are_the_paired_t_test_of_common_seeds(frame: pd.DataFrame) -> None:
    table = paired_differences(frame)
    assert set(zip(table["method"], table["side"], strict=True)) == {(m, s) for m in ("fskd", "askd") for s in (6, 12)}
    for row in table.itertuples():
        both = pd.concat([cell(frame, row.method, row.side), cell(frame, "none", row.side)], axis=1).dropna()
        test = oracle.ttest_rel(both.iloc[:, 0], both.iloc[:, 1])
        interval = test.confidence_interval(0.95)
        assert row.n == len(both) == (3 if (row.method, row.side) == ("fskd", 6) else 4)
        assert (row.low, row.high, row.p) == pytest.approx((interval.low, interval.high, test.pvalue))
        assert row.mean == pytest.approx((both.iloc[:, 0] - both.iloc[:, 1]).mean())


def test_what_is_common_to_a_seed_cancels(frame: pd.DataFrame) -> None:
    shifted = frame.assign(accuracy=frame["accuracy"] + frame["seed"] ** 2 + 10 * frame["side"])
    before, after = paired_differences(frame), paired_differences(shifted)
    np.testing.assert_allclose(after[["mean", "low", "high", "p"]], before[["mean", "low", "high", "p"]], rtol=1e-6)


def test_baseline_unit_and_by_are_what_they_say(frame: pd.DataFrame) -> None:
    turned = paired_differences(frame, baseline="fskd")
    forward = paired_differences(frame).set_index(["method", "side"])["mean"]
    backward = turned.set_index(["method", "side"])["mean"]
    assert backward["none", 12] == pytest.approx(-forward["fskd", 12])
    pooled = paired_differences(frame, unit=("seed", "side"), by=())
    assert pooled.set_index("method")["n"].to_dict() == {"fskd": 7, "askd": 8}


def test_partial_tables(frame: pd.DataFrame) -> None:
    """One common seed: a difference without an interval. No common seed: no row."""
    part = frame[(frame["method"] == "none") | ((frame["seed"] == 1) & (frame["side"] == 6))]
    table = paired_differences(part).set_index("method")
    assert (table["n"] == 1).all()
    assert table[["low", "high", "p"]].isna().all(axis=None)
    assert table.loc["askd", "mean"] == pytest.approx(cell(frame, "askd", 6)[1] - cell(frame, "none", 6)[1])
    alone = frame[(frame["method"] == "none") == (frame["seed"] < 2)]
    assert paired_differences(alone).empty
    assert list(paired_differences(alone).columns) == list(table.reset_index().columns)


def test_two_rows_of_one_run_are_no_pair(frame: pd.DataFrame) -> None:
    both = pd.concat([frame.assign(protocol="test"), frame.assign(protocol="test-hr-lr")], ignore_index=True)
    with pytest.raises(DataError, match="choose one protocol"):
        paired_differences(both)
    twice = pd.concat([frame, frame])  # a table that was concatenated twice holds nothing new
    pd.testing.assert_frame_equal(paired_differences(twice), paired_differences(frame))


def test_errors_name_what_is_missing(frame: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="'eer'"):
        summarise(frame, ["method"], "eer")
    with pytest.raises(DataError, match="'teacher_seed'"):
        paired_differences(frame, unit=("teacher_seed",))
    with pytest.raises(DataError, match="'nope'"):
        paired_differences(frame, baseline="nope")


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, np.nan, 0.01]), [0.5, np.nan, 0.02])
    assert np.isnan(holm([np.nan])).all()


def test_spelled() -> None:
    nan = np.nan
    rows = [(0.8069, 0.8041, 0.81), (-0.0123, -0.02, 0.004), (0.5, nan, nan), (nan, nan, nan)]
    table = pd.DataFrame(rows, index=["a", "b", "c", "d"], columns=["mean", "low", "high"])
    assert spelled(table).to_dict() == {"a": "80.7 [80.4, 81.0]", "b": "−1.2 [−2.0, 0.4]", "c": "50.0", "d": "–"}
    assert spelled(table, sign=True)["b"] == "−1.2 [−2.0, +0.4]"
    assert spelled(table, factor=1, digits=2)["a"] == "0.81 [0.80, 0.81]"


def test_verdict_follows_the_sign_of_both_ends() -> None:
    ends = [(0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.1), (np.nan, np.nan)]
    said = ["above zero", "below zero", "not told apart from zero", "not told apart from zero", "without an interval"]
    assert [display.sign(*pair) for pair in ends] == said


def test_provenance_counts_runs_not_rows() -> None:
    columns = ["config", "seed", "teacher_seed", "status", "commit"]
    teacher, a, c = ("t", 0, np.nan, "ok", "aaa"), ("a", 0, 0, "ok", "aaa"), ("c", 2, 0, "ok", "aaa")
    runs = [teacher, a, ("b", 1, 1, "diverged", "bbb"), c]
    frame = pd.DataFrame([(*run, p) for run in runs for p in ("test", "test-hr-lr")], columns=[*columns, "protocol"])
    frame = frame.assign(data="lfw", scale="cpu", device="one", torch="2.11.0")
    assert display.provenance(frame) == {
        **{"runs": 4, "seeds": 3, "teachers": 2, "diverged": 1},
        **{"data": "lfw", "scale": "cpu", "device": "one", "torch": "2.11.0", "commit": "aaa, bbb"},
    }
    with pytest.raises(DataError, match="'config'"):
        display.provenance(frame.drop(columns="config"))
