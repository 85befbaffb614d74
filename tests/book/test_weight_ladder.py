"""The race of distances: ladders by hand, brackets, curves that are known."""

import numpy as np
import pandas as pd
import pytest
from kit.weight_ladder import COLUMNS, brackets, converged, differences, entrants, levels, read, told

from lrkd.errors import DataError
from lrkd.evaluation import statistics
from lrkd.study.grids import rungs


def ladder(accuracies: dict[str, float | None], seed: int = 100) -> pd.DataFrame:
    """Rows as `lrkd study ladder` writes them: {"lp(2)@8": accuracy}, None for a run that diverged."""
    rows = [("none", 0, "ok", "validation", 0.96)]
    for method, accuracy in accuracies.items():
        if accuracy is None:
            rows.append((method, seed, "diverged", "test", np.nan))
        else:
            rows += [(method, seed, "ok", "validation", accuracy), (method, seed, "ok", "test", 1 - accuracy)]
    return pd.DataFrame(rows, columns=["method", "seed", "status", "protocol", "accuracy"])


def test_rungs_are_the_validation_rows_and_the_diverged_runs():
    found = rungs(ladder({"lp(1.5)@14": 0.7, "cosine@20": 0.8, "cosine@1.25": 0.6, "cosine@320": None}))
    assert found.fillna(-1.0).values.tolist() == [
        ["cosine", 1.25, 100, 0.6, "ok"],
        ["cosine", 20, 100, 0.8, "ok"],
        ["cosine", 320, 100, -1, "diverged"],
        ["lp(1.5)", 14, 100, 0.7, "ok"],
    ], "neither test rows nor the teacher"
    assert len(rungs(ladder({}))) == 0


@pytest.mark.parametrize(
    ("accuracies", "weight", "bracket"),
    [
        ((0.6, 0.8, 0.7), 20, "both sides"),
        ((0.9, 0.8, 0.7), 5, "nothing below"),
        ((0.6, 0.8, 0.81), 80, "nothing above"),
        ((0.6, 0.8, None), 20, "both sides"),
        ((None, 0.8, None), 20, "both sides"),
        ((0.8, 0.8, 0.8), 5, "nothing below"),
    ],
)
def test_a_choice_is_bracketed_by_worse_rungs_on_both_sides(accuracies, weight, bracket):
    table = brackets(rungs(ladder(dict(zip(("cosine@5", "cosine@20", "cosine@80"), accuracies, strict=True)))))
    (row,) = table.to_dict("records")
    assert (row["weight"], row["bracket"], row["rungs"]) == (weight, bracket, 3)
    assert row["diverged"] == accuracies.count(None)
    assert row["accuracy"] == max(a for a in accuracies if a is not None)
    assert row["below"] + row["above"] == 2


def test_brackets_lead_spread_order_and_factor():
    found = rungs(ladder({"b@1": 0.6, "b@4": 0.65, "b@16": 0.5, "a@3": None, "a@12": None, "c@1": 0.7}))
    table = brackets(found, {"c": 2.0, "b": 1.0, "a": 3.0, "z": 9.0}).set_index("distance")
    assert list(table.index) == ["c", "b", "a"], "the order of the race, and none that has no rung"
    assert table.loc["b", ["lead", "spread", "factor"]].tolist() == pytest.approx([0.05, 0.15, 4])
    assert np.isnan(table.loc["c", "lead"]), "alone it leads nobody"
    assert table.loc["a", "bracket"] == "nothing finished"
    assert list(brackets(found)["distance"]) == ["a", "b", "c"]
    assert len(brackets(rungs(ladder({})))) == 0


def test_several_seeds_of_a_rung_are_averaged():
    both = pd.concat([ladder({"a@1": 0.6, "a@2": 0.7}), ladder({"a@1": 0.9, "a@2": 0.7}, seed=101)])
    (row,) = brackets(rungs(both)).to_dict("records")
    assert (row["weight"], row["rungs"]) == (1, 2)
    assert row["accuracy"] == pytest.approx(0.75)


def trace(method: str, seed: int, accuracy: list[float], teacher: float = 2) -> pd.DataFrame:
    steps = 10 * np.arange(1, len(accuracy) + 1)
    return pd.DataFrame(
        {
            "config": f"{method}{seed}{teacher}",
            "method": method,
            "seed": seed,
            "teacher_seed": teacher,
            "step": steps,
            "accuracy": accuracy,
        }
    )


def test_area_final_and_steps_of_known_curves():
    traces = pd.concat(
        [trace("a", 0, [0.5, 0.7, 0.6, 0.8]), trace("a", 1, [0.5] * 4), trace("b", 0, [0.9] * 4, np.nan)]
    )
    found = converged(traces.sample(frac=1, random_state=0), [0.7, 0.8]).sort_values(["method", "seed"])
    assert found["auc"].tolist() == pytest.approx([0.65, 0.5, 0.9])
    assert found["final"].tolist() == [0.8, 0.5, 0.9]
    assert found["steps_0"].fillna(-1).tolist() == [20, -1, 10], "the first time, though it falls again"
    assert found["steps_1"].fillna(-1).tolist() == [40, -1, 10]
    # For evenly spaced observations the mean is the area of the steps that end there, over the width.
    assert found["auc"].iloc[0] == pytest.approx(np.sum(np.array([0.5, 0.7, 0.6, 0.8]) * 10) / 40)
    assert len(converged(traces.iloc[:0])) == 0


def test_tables_without_a_column_are_named():
    for function in (rungs, brackets, converged):
        with pytest.raises(DataError, match=r"expected a column '(method|distance|config)', got x"):
            function(pd.DataFrame({"x": [1]}))


def results(rows: list[tuple[str, int, float | None, float | None]]) -> pd.DataFrame:
    """(method, seed, teacher, accuracy) -> rows as `lrkd study hypotheses` writes them; None: diverged."""
    named = ["method", "seed", "teacher_seed", "accuracy"]
    table = pd.DataFrame(rows, columns=named).astype({"teacher_seed": float, "accuracy": float})
    table["config"] = [f"{row.method}{row.seed}{row.teacher_seed}" for row in table.itertuples()]
    table["status"] = np.where(table["accuracy"].isna(), "diverged", "ok")
    other = table[table["status"] == "ok"].assign(protocol="validation", accuracy=0.1)
    return pd.concat([table.assign(protocol="test"), other], ignore_index=True).assign(role="student")


RACED = [
    *(("none", seed, None, 0.70 + seed / 1000) for seed in (10, 11, 12)),
    *(("cosine@20", seed, teacher, 0.80 + seed / 500 + teacher / 100) for seed in (10, 11, 12) for teacher in (2, 3)),
    *(("lp(2)@8", seed, teacher, 0.79 + seed / 1000 - teacher / 100) for seed in (10, 11) for teacher in (2, 3)),
    ("lp(2)@8", 12, 2, 0.9),
    *(("lp(4)@0.4", seed, 2 + seed % 2, None if seed == 11 else 0.75) for seed in (10, 11, 12)),
    ("askd", 10, 2, 0.99),
]


def test_entrants_are_the_test_rows_of_the_race_with_their_own_teacher_marked():
    teacher = results([("none", 2, None, 0.97)]).assign(role="teacher")
    table = entrants(pd.concat([results(RACED), teacher]), trace("cosine@20", 10, [0.5, 0.7], 2.0), (2, 3), [0.6])
    assert table["method"].value_counts().to_dict() == {"cosine": 6, "lp(2)": 5, "none": 3, "lp(4)": 3}
    assert table.groupby("method")["weight"].first().dropna().to_dict() == {"cosine": 20, "lp(2)": 8, "lp(4)": 0.4}
    assert [(row.seed, row.teacher_seed) for row in table[table["own"]].query("method == 'cosine'").itertuples()] == [
        (10, 2), (11, 3), (12, 2)
    ]  # fmt: skip
    assert table.query("method == 'none'")["own"].all()
    lost = table.query("status == 'diverged'")
    assert lost[["accuracy", "final", "auc"]].to_numpy().tolist() == [[0.5, 0.5, 0.5]], "chance"
    assert lost["steps_0"].isna().all()
    (seen,) = table[table["steps_0"].notna()].itertuples()
    assert (seen.method, seen.seed, seen.teacher_seed, seen.auc, seen.final, seen.steps_0) == (
        "cosine", 10, 2, 0.6, 0.7, 20
    )  # fmt: skip


def test_differences_pair_by_seed_and_own_teacher_and_cross_where_asked():
    raced = entrants(results(RACED), trace("x", 0, [0.5]), (2, 3))
    found = differences(raced, "none", order=["lp(4)", "cosine", "nobody"])
    assert list(found["method"]) == ["lp(4)", "cosine"]
    expected = np.array([0.80 + s / 500 + (2 + s % 2) / 100 - 0.70 - s / 1000 for s in (10, 11, 12)])
    assert found["mean"].iloc[1] == pytest.approx(expected.mean())
    assert found["p"].iloc[1] == pytest.approx(statistics.mean_interval(expected).p)
    assert found["mean"].iloc[0] == pytest.approx(np.mean([0.75 - 0.710, 0.5 - 0.711, 0.75 - 0.712]))
    assert found["holm"].tolist() == pytest.approx(statistics.holm(found["p"]))
    own, both = (differences(raced, "cosine", crossed=c).set_index("method") for c in ((), ("cosine", "lp(2)")))
    assert own.loc["lp(2)", "n"] == 3
    assert both.loc["lp(2)", "n"] == 2, "a seed with one teacher of two is not averaged with the others"
    naive = [0.79 + s / 1000 - 0.025 - (0.80 + s / 500 + 0.025) for s in (10, 11)]
    assert both.loc["lp(2)", "mean"] == pytest.approx(np.mean(naive))
    for name in ("none", "lp(4)"):
        pd.testing.assert_series_equal(own.loc[name].drop("holm"), both.loc[name].drop("holm"))


def test_files_that_are_not_there_yet_give_empty_tables_all_the_way(tmp_path):
    empty = read(tmp_path / "none.csv")
    assert list(empty) == list(COLUMNS)
    assert len(brackets(rungs(empty))) == len(converged(empty)) == 0
    raced = entrants(empty, empty, (2, 3), [0.6])
    assert len(raced) == 0
    assert len(differences(raced, "cosine", "steps_0")) == 0
    some = entrants(results(RACED), empty, (2, 3))
    assert len(differences(some, "cosine")) == 3
    assert list(differences(some, "cosine", "auc")["method"]) == [], "no trace, no area"
    results(RACED).to_csv(tmp_path / "there.csv", index=False)
    assert read(tmp_path / "there.csv")["accuracy"].notna().sum() > 3


def test_levels_are_the_end_of_none_and_the_lowest_end_of_a_distance():
    seen = [trace("none", seed, [0.5, 0.6 + seed / 100], np.nan) for seed in (10, 11, 12)]
    seen += [trace("cosine@20", 10, [0.5, 0.9], 2.0), trace("cosine@20", 10, [0.5, 0.1], 3.0)]
    raced = entrants(
        results([row for row in RACED if row[0] in ("none", "cosine@20", "lp(4)@0.4")]), pd.concat(seen), (2, 3)
    )
    names = raced["method"] + raced["seed"].astype(str)
    own_runs = ["none10", "cosine10"]
    own, diverged = (levels(raced[names.isin(some)]) for some in (own_runs, [*own_runs, "lp(4)11"]))
    assert own == pytest.approx((0.7, 0.9)), "the other teacher's run counts not"
    assert diverged == pytest.approx((0.7, 0.5)), "the diverged one does"
    assert np.isnan(levels(raced[:0])).all()


def test_words_go_by_holms_p():
    table = pd.DataFrame(
        {
            "method": ["a", "b", "c", "d"],
            "mean": [0.01, -0.02, 0.03, 0.5],
            "low": [0.005, -0.03, -0.01, np.nan],
            "high": [0.015, -0.01, 0.07, np.nan],
            "holm": [0.0001, 0.0123, 0.2, np.nan],
        }
    )
    assert told(table) == {
        "a": "+1.0 [+0.5, +1.5]; p < .001",
        "b": "−2.0 [−3.0, −1.0]; p = .012",
        "c": "+3.0 [−1.0, +7.0]; p = .200",
        "d": "+50.0",
    }
    assert told(table[:0]) == {}
