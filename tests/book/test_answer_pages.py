"""What pages show of study answer: of whole tables, of a few rows, of none."""

import shutil
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from answers import judged_rows, ladder_rows, length_rows, row, write
from kit import answer, display
from scipy import stats

from lrkd.distill import methods

CLAIMS = Path(__file__).resolve().parents[2] / "book" / "results" / "claims.csv"


@pytest.fixture(autouse=True)
def book_style():
    with plt.rc_context():
        display.style()
        yield
    plt.close("all")


@pytest.fixture
def folder(tmp_path):
    shutil.copy(CLAIMS, tmp_path)
    return tmp_path


# -------------------------------------------------------------------------------------------------------------- nothing


def test_no_table_at_all_is_said_and_nothing_fails(folder):
    tables = answer.read(folder)
    gains = answer.gains(tables.length)
    assert gains.empty
    assert answer.lengths(gains) == []
    assert answer.chosen_length(tables.length) is None
    assert answer.at(gains, "lr-lr", 3).isna().all()
    assert answer.told(gains)["fskd_hr-lr_last"] == "(not measured yet)"
    found = answer.ladders(tables)
    assert found.rungs.empty
    assert found.chosen == {}
    compared = answer.compared(tables, resamples=10)
    assert set(compared["verdict"]) == {answer.OPEN}
    assert (answer.cells(compared)[["S", "T", "D"]] == answer.OPEN).all(axis=None)
    assert set(map(answer.said, answer.judged(tables).to_dict("records"))) == {answer.OPEN}
    assert answer.state(tables).startswith("Nothing has been judged so far")
    assert set(answer.by_claim(answer.judged(tables)).iloc[:, 1:].stack()) == {answer.OPEN, ""}
    assert answer.counted(answer.judged(tables)).startswith("None of these")
    assert answer.powers(tables).empty
    assert answer.on_nothing(tables).empty
    for figure in (answer.by_length(gains), answer.climbed(found), answer.forest(compared)):
        assert display.show(figure, "nothing yet").width > 0


# --------------------------------------------------------------------------------------------------------------- length


def test_a_gain_is_over_none_in_the_same_world_at_the_same_length(folder):
    write(folder, "length", length_rows())
    found = answer.gains(answer.read(folder).length)
    k = {name: i for i, name in enumerate(answer.TAUGHT, 1)}
    np.testing.assert_allclose(found["gain"], 0.01 * found["method"].map(k) * (1 + found["world"]))
    assert answer.lengths(found) == [3, 6, 12]
    np.testing.assert_allclose(answer.at(found, "hr-lr", 6), [1.5, 3.0, 4.5, 6.0])
    told = answer.told(found)
    assert (told["first"], told["last"], told["fskd_rank1_last"]) == (3, 12, "+3.0")
    assert answer.points(-0.26) == "−0.3"


def test_at_the_same_cost_none_has_trained_for_longer(folder):
    write(folder, "length", length_rows())
    found = answer.gains(answer.read(folder).length)
    early = found[found["epochs"] < 12]  # a method's epoch takes twice as long: none has doubled its training
    np.testing.assert_allclose(early["at_cost"], early["gain"] - 0.04, atol=1e-9)
    assert found.loc[found["epochs"] == 12, "at_cost"].isna().all(), "none was not trained for so long"


def test_a_machine_that_does_something_else_meanwhile_does_not_make_a_method_dear(folder):
    rows = length_rows()
    rows[0]["seconds"] *= 50
    other = [one | {"device": "a GPU", "seconds": 0.1} for one in length_rows((24,), names=("none",))]
    write(folder, "length", rows + other)
    found = answer.gains(answer.read(folder).length)
    np.testing.assert_allclose(found["seconds"], 20 * found["epochs"])


def test_what_only_one_world_or_method_has_is_shown_and_a_run_that_diverged_is_not(folder):
    lost = row("askd", world=1, status="diverged", endpoint="", value=np.nan)
    write(folder, "length", [*length_rows((3,), worlds=(0,), names=("none", "fskd")), lost])
    found = answer.gains(answer.read(folder).length)
    assert set(found["method"]) == {"fskd"}
    assert answer.lengths(found) == []
    figure = answer.by_length(found)
    assert len(figure.axes) == 6
    assert display.show(figure, "one world").width > 0


# -------------------------------------------------------------------------------------------------------------- ladders


def test_ladders_show_their_rungs_and_what_was_chosen(folder):
    write(folder, "length", length_rows((3, 6, 12, 24), names=("none",)))
    rows = ladder_rows(("fskd", "askd mixed"), 0.25)
    table = pd.DataFrame(length_rows((3, 6, 12, 24), names=("none",)))
    table.loc[table["epochs"] == 24, "value"] -= 0.04  # the study's length is 12
    write(folder, "length", table.to_dict("records"))
    write(folder, "ladders", rows)
    found = answer.ladders(answer.read(folder))
    usual = {name: methods.METHODS[name].terms[0].weight for name in ("fskd", "askd")}
    assert found.chosen == {"none": 0.15, "fskd": usual["fskd"] / 4, "askd mixed": usual["askd"] / 4}
    best = found.rungs.dropna().groupby(["entrant", "world"])["value"].max()
    np.testing.assert_allclose(best, 0.8)
    lost = found.rungs[found.rungs["value"].isna()]
    assert set(lost["rung"]) == {16 * weight for weight in usual.values()}
    assert len(found.rungs) == 2 * 5 * 3
    figure = answer.climbed(found)
    stars = [ax.get_title(loc="left") for ax in figure.axes if any(line.get_marker() == "*" for line in ax.lines)]
    assert stars == ["no teacher", "F-SKD", "A-SKD\nmixed sides"]
    assert display.show(figure, "three ladders").width > 0


def test_a_ladder_that_goes_on_has_no_star(folder):
    table = pd.DataFrame(length_rows((3, 6, 12, 24), names=("none",)))
    table.loc[table["epochs"] == 24, "value"] -= 0.04
    write(folder, "length", table.to_dict("records"))
    write(folder, "ladders", ladder_rows(("fskd",), 0.25)[:-8])
    found = answer.ladders(answer.read(folder))
    assert set(found.chosen) == {"none"}
    assert set(found.rungs["entrant"]) == {"none", "fskd"}


# ------------------------------------------------------------------------------------------------------------- verdicts


def test_the_forest_has_the_t_interval_over_worlds_and_the_bootstrap_beside_it(folder):
    judged_rows(folder)
    tables = answer.read(folder)
    found = answer.compared(tables, ("lr-lr", "rank1"), resamples=50)
    assert len(found) == 2 * 5 * 3
    assert (found["n"] == 3).all()
    one = found.set_index(["endpoint", "method", "baseline", "setting"]).loc[("lr-lr", "embedding-cos", "none", "T")]
    values = tables.judged[tables.judged["endpoint"] == "lr-lr"].pivot(
        index="world", columns=["method", "setting"], values="value"
    )
    test = stats.ttest_rel(values["embedding-cos", "T"], values["none", "S"])
    np.testing.assert_allclose([one["low"], one["high"], one["p"]], [*test.confidence_interval(), test.pvalue])
    assert one["boot_low"] < one["mean"] < one["boot_high"]
    claimed = found["id"] != ""
    assert set(found.loc[~claimed, "verdict"]) == {"not registered"}
    assert found.loc[~claimed, "holm"].isna().all()
    assert found.loc[claimed, "holm"].notna().all()
    known = answer.judged(tables).set_index("id")
    assert found.loc[claimed, "verdict"].tolist() == known.loc[found.loc[claimed, "id"], "verdict"].tolist()
    figure = answer.forest(found)
    assert [len(ax.get_yticks()) for ax in figure.axes] == [15, 15]
    assert len(answer.cells(found)) == 10
    wide = answer.by_claim(known[known["method"] == "fskd"].reset_index())
    assert set(wide["claim"]) == set(known.loc[known["method"] == "fskd", "claim"])
    assert wide.notna().all(axis=None)
    assert "of these" in answer.counted(known)
    said = answer.numbers(known.reset_index(), "embedding-cos-lr-lr")
    one = known.loc["embedding-cos-lr-lr"]
    assert said["embedding-cos-lr-lr"] == answer.points(100 * one["mean"])
    assert (said["embedding-cos-lr-lr_verdict"], said["embedding-cos-lr-lr_n"]) == (one["verdict"], "3")
    figure = answer.panels(known.reset_index(), {"a": {"cosine": "embedding-cos-lr-lr"}, "b": {"none yet": "no-such"}})
    assert [[label.get_text() for label in ax.get_yticklabels()] for ax in figure.axes] == [["cosine"], []]
    assert len({ax.get_xlim() for ax in figure.axes}) == 1
    plain = tables.judged.query("method == 'none' and endpoint == 'lr-lr' and setting == 'S'")  # it is one run for T
    assert answer.level(tables, "none", "lr-lr") == pytest.approx(100 * plain["value"].mean())
    assert answer.said(found.iloc[0]).endswith(" points, 3 worlds")


def test_worlds_that_are_not_whole_are_not_counted(folder):
    judged_rows(folder, settings="ST")
    path = folder / "answer-worlds.csv"
    table = pd.read_csv(path)
    table[~((table["method"] == "askd") & (table["world"] == 102))].to_csv(path, index=False)
    tables = answer.read(folder)
    assert answer.worlds(tables) == {"S": 2, "T": 2, "D": 0, "P": 0}
    assert "2 worlds in setting T" in answer.state(tables)
    found = answer.compared(tables).set_index(["endpoint", "method", "baseline", "setting"])
    assert found.loc[("lr-lr", "askd", "none", "T"), "n"] == 2
    assert found.loc[("lr-lr", "fskd", "none", "T"), "n"] == 3
    assert found.loc[("lr-lr", "fskd", "none", "D"), "verdict"] == answer.OPEN
    assert found["boot_low"].isna().all(), "no bootstrap was asked for"


def test_one_world_judges_nothing(folder):
    judged_rows(folder, worlds=(100,))
    tables = answer.read(folder)
    assert set(answer.compared(tables)["verdict"]) == {answer.OPEN}
    assert answer.powers(tables).empty
    assert answer.on_nothing(tables, 2).empty
    assert "1 world in setting T" in answer.state(tables)


def test_power_and_the_pipeline_on_nothing(folder):
    judged_rows(folder)
    tables = answer.read(folder)
    able = answer.powers(tables)
    assert able["power"].between(0, 1).all()
    assert (able["detectable"] > 0).all()
    found = answer.on_nothing(tables, 5)
    assert set(found["family"]) == set(able.loc[~able["baseline"].str.contains("@"), "family"])
    assert not found["family"].str.endswith("-teacher").any(), "two measures differ whatever the names are"
    assert found[["per_claim", "any"]].stack().between(0, 1).all()


def test_photographs_are_judged_by_seeds_and_people_together(folder):
    judged_rows(folder, settings="S")
    for end in ("", "-right", "-people"):
        table = pd.read_csv(folder / f"answer-worlds{end}.csv")
        if end == "":
            table["data"] = "lfw"
        if end == "-people":
            table = table[table["world"] == 100].assign(world=-1)
        table.to_csv(folder / f"answer-photographs{end}.csv", index=False)
        (folder / f"answer-worlds{end}.csv").unlink()
    tables = answer.read(folder)
    known = answer.judged(tables).set_index("id")
    assert known.loc["photo-cosine-lr-lr", "n"] == 3
    assert known.loc["cosine-S-lr-lr", "n"] == 0
    assert answer.said(known.loc["photo-cosine-lr-lr"]).endswith("3 seeds")
    assert answer.worlds(tables) == {"S": 0, "T": 0, "D": 0, "P": 3}
