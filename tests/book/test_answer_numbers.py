"""The figures of study answer once more, from the CSV files by pandas and scipy alone, against what pages show.

Of the committed tables, as far as they go, and of made-up ones that have every part. No function here that computes
uses anything of lrkd or kit.
"""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from answers import TAUGHT, judged_rows, ladder_rows, length_rows, write
from kit import answer, why
from scipy import interpolate, stats

RESULTS = Path(__file__).resolve().parents[2] / "book" / "results"
BOTH = ["lr-lr", "hr-lr"]


@pytest.fixture(scope="module", params=["committed", "made up"])
def folder(request, tmp_path_factory):
    if request.param == "committed":
        return RESULTS
    made, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    shutil.copy(RESULTS / "claims.csv", made)
    table = pd.DataFrame(length_rows((3, 6, 12, 24)))
    table["value"] += 0.01 * rng.standard_normal(len(table)) - 0.05 * (table["epochs"] == 24)
    write(made, "length", table.to_dict("records"))
    write(made, "ladders", [*ladder_rows(("fskd", "askd mixed"), 0.25), *ladder_rows(("askd",), 4.0)[12:-6]])
    judged_rows(made, worlds=tuple(range(100, 106)))
    table = pd.read_csv(made / "answer-worlds.csv")
    lost = table["config"] == "103Tfskd"
    table.loc[lost, ["value", "n", "status", "endpoint"]] = [np.nan, np.nan, "diverged", ""]
    table.drop_duplicates().to_csv(made / "answer-worlds.csv", index=False)
    return made


def rows_of(folder: Path, part: str) -> pd.DataFrame:
    path = folder / f"answer-{part}.csv"
    if not path.exists():
        pytest.skip(f"{path.name}: not measured yet")
    table = pd.read_csv(path)
    return table[table["role"] == "student"]


def test_gains_by_length_and_at_the_same_cost(folder):
    rows = rows_of(folder, "length")
    rows = rows[rows["status"] == "ok"]
    known = {(r.method, r.world, r.endpoint, r.epochs): r.value for r in rows.itertuples()}
    timed = rows[rows["device"] == rows["device"].value_counts().index[0]]
    pace = {name: min(part["seconds"] / part["epochs"]) for name, part in timed.groupby("method")}
    found = answer.gains(answer.read(folder).length)
    alone = {(w, e) for m, w, e, _ in known if m == "none"}
    assert len(found) == sum(m != "none" and (w, e) in alone for m, w, e, _ in known)
    for one in found.itertuples():
        key = one.world, one.endpoint, one.epochs
        alone = known.get(("none", *key), np.nan)
        np.testing.assert_allclose(one.gain, known[(one.method, *key)] - alone, atol=1e-12)
        lengths = sorted(k for m, w, e, k in known if (m, w, e) == ("none", one.world, one.endpoint))
        cost = np.log([k * pace["none"] for k in lengths])
        here = np.log(one.epochs * pace[one.method])
        if not cost[0] <= here <= cost[-1]:
            assert np.isnan(one.at_cost)
            continue
        line = interpolate.make_interp_spline(cost, [known["none", one.world, one.endpoint, k] for k in lengths], k=1)
        np.testing.assert_allclose(one.at_cost, known[(one.method, *key)] - line(here), atol=1e-9)


def test_what_text_says_of_gains(folder):
    rows = rows_of(folder, "length")
    values = rows.pivot_table(index=["endpoint", "world", "epochs"], columns="method", values="value")
    gains = 100 * values[list(TAUGHT)].sub(values["none"], axis=0).groupby(["endpoint", "epochs"]).mean()
    whole = [k for k in sorted(rows["epochs"].unique()) if set(rows.loc[rows["epochs"] == k, "method"]) >= set(TAUGHT)]
    told = answer.told(answer.gains(answer.read(folder).length))
    assert (told["first"], told["last"]) == (whole[0], whole[-1])
    for (endpoint, epochs), row in gains.iterrows():
        for when in ("first", "last"):
            if endpoint in ("lr-lr", "hr-lr", "rank1") and epochs == told[when]:
                shown = [float(told[f"{name}_{endpoint}_{when}"].replace("−", "-")) for name in TAUGHT]
                np.testing.assert_allclose(shown, row, atol=0.0501)


def length_of(folder: Path) -> int | None:
    """The first length at which doubling gains `none` less than half a point of validation."""
    rows = rows_of(folder, "length")
    rows = rows[(rows["method"] == "none") & rows["endpoint"].isin(BOTH)]
    values = rows.groupby(["world", "epochs"])["value"].mean().unstack("epochs")
    for epochs in sorted(values):
        if 2 * epochs in values and (values[2 * epochs] - values[epochs]).mean() < 0.005:
            return int(epochs)
    return int(max(values)) if max(values, default=0) >= 48 else None


def test_the_studys_length(folder):
    assert answer.chosen_length(answer.read(folder).length) == length_of(folder)


def best_rung(scores: pd.DataFrame, first: int = 5, more: int = 3) -> float | None:
    """The best of rungs (index) over worlds (columns) with a worse one on either side; None: the ladder goes on."""
    if len(scores) < first or scores.shape[1] < 2 or scores.isna().any(axis=None):
        return None
    mean = scores.mean(axis=1)
    best = mean.idxmax()
    inside = min(mean.index) < best < max(mean.index)
    return float(best) if inside or len(mean) == first + more else None


def test_the_chosen_rungs(folder):
    epochs, rows = length_of(folder), rows_of(folder, "ladders")
    if epochs is None:
        pytest.skip("the study has no length yet")
    rows = rows[(rows["epochs"] == epochs // 2) & (rows["data"] == "procedural")]
    mixed = rows["trained"].astype(str).str.contains("+", regex=False)
    hardest = rows["side"].isin(sorted(rows["side"].unique())[:2]) | ~mixed
    lost = rows["status"] != "ok"
    rows = rows.assign(value=rows["value"].mask(lost, -np.inf), name=rows["method"] + np.where(mixed, " mixed", ""))
    rows = rows[(rows["endpoint"].isin(BOTH) & hardest) | lost]
    plain = rows[rows["name"] == "none"].groupby(["lr", "world"])["value"].mean().unstack("world")
    rate, wanted = best_rung(plain), {}
    for name, part in rows[(rows["name"] != "none") & (rows["lr"] == rate)].groupby("name"):
        wanted[name] = best_rung(part.groupby(["weight", "world"])["value"].mean().unstack("world"))
    wanted = {name: rung for name, rung in {"none": rate, **wanted}.items() if rung is not None}
    assert answer.ladders(answer.read(folder)).chosen == pytest.approx(wanted)


def by_hand(folder: Path) -> dict[tuple, dict[int, float]]:
    """(entrant, setting, side, endpoint) -> world -> value of each judged run; one that diverged has chance."""
    rows = rows_of(folder, "worlds")
    if (folder / "answer-attention.csv").exists():  # has runs of its own, and some that worlds have
        own = rows_of(folder, "attention")
        rows = pd.concat([rows, own[~own["config"].isin(rows["config"])]])
    rows, endpoints, found = rows[rows["people"] == "test"], rows["endpoint"].dropna().unique(), {}
    for r in rows.itertuples():
        sharp, mixed = r.trained == "hr", "+" in str(r.trained)
        name = f"{r.method}{' mixed' * mixed}{' hr' * sharp}"
        alone = r.method.startswith(("none", "octuplet", "random-teacher", "askd-information")) and r.setting == "S"
        values = {r.endpoint: r.value} if r.status == "ok" else {e: 0.5 if e in BOTH else 0.0 for e in endpoints if e}
        for setting in ("S", "T") if alone else (r.setting,):
            for endpoint, value in values.items():
                key = name, setting, "hr" if sharp else str(r.side), endpoint
                found.setdefault(key, {})[r.world] = value
    return found


def test_t_intervals_over_worlds_holm_and_verdicts(folder):
    values, claims = by_hand(folder), pd.read_csv(folder / "claims.csv", dtype=str)
    claims = claims[claims["setting"] != "P"]
    judged = answer.judged(answer.read(folder)).set_index("id")
    tested = {}
    for claim in claims.itertuples():
        name, _, other = claim.baseline.partition("@")
        method = values.get((claim.method, claim.setting, claim.side, claim.endpoint), {})
        baseline = values.get((name, claim.setting, claim.side, other or claim.endpoint), {})
        worlds = sorted(set(method) & set(baseline))
        assert judged.loc[claim.id, "n"] == len(worlds)
        if len(worlds) > 1:
            tested[claim.id] = stats.ttest_rel([method[w] for w in worlds], [baseline[w] for w in worlds])
    assert tested or folder == RESULTS
    for _, family in claims.groupby("family"):
        there = sorted((name for name in family["id"] if name in tested), key=lambda name: tested[name].pvalue)
        least = 0.0
        for k, name in enumerate(there):
            row, test = judged.loc[name], tested[name]
            least = max(least, min(1.0, (len(family) - k) * test.pvalue))
            low, high = test.confidence_interval(1 - 0.05 / len(family))
            np.testing.assert_allclose([row["p"], row["holm"]], [test.pvalue, least], rtol=1e-6)
            np.testing.assert_allclose([row["low"], row["high"]], test.confidence_interval(0.95), rtol=1e-6)
            np.testing.assert_allclose([row["low_family"], row["high_family"]], [low, high], rtol=1e-6)
            margin, mean = float(family.set_index("id").loc[name, "margin"]), row["mean"]
            if least < 0.05:
                word = "worse" if mean < 0 else "better, by less than it matters" if high < margin else "better"
            else:
                word = "no difference that matters" if max(-low, high) < margin else "unclear"
            assert row["verdict"] == word


def test_the_answer_that_the_readme_gives():
    """Its words, once more from the table: a point or two, no gain, far more, and the cosine ahead or behind."""
    values = by_hand(RESULTS)

    def gain(name: str, endpoint: str, over: str = "none", of: str | None = None, setting: str = "T") -> float:
        a, b = values[(name, setting, "6", endpoint)], values[(over, setting, "6", of or endpoint)]
        return 100 * float(np.mean([a[w] - b[w] for w in sorted(set(a) & set(b))]))

    for name in TAUGHT:
        assert 0.5 < gain(name, "lr-lr") < 1.5, "about one point where both images are small"
        assert gain(name, "hr-lr") < 0.5, "nothing, or a loss, where a sharp one meets a small one"
    assert 1.5 < gain("embedding-l2", "lr-lr") < 2.5, "the most"
    judged = answer.judged(answer.read(RESULTS))
    verdict = judged.set_index("id")["verdict"]
    alone = judged.query("endpoint == 'hr-lr' and baseline == 'none' and side == '6'")
    alone = alone[~alone["method"].str.contains(" ")]
    assert not alone["verdict"].str.startswith("better").any(), "no loss alone"
    assert (verdict[["fskd-mixed-lr-lr", "fskd-mixed-hr-lr"]] == "better").all(), "matching features adds"
    assert verdict["embedding-cosine-lr-lr"] == "worse", "between embeddings the squared L2 is ahead"
    assert gain("askd-information", "lr-lr") < 0.5, "told where to look"
    longer = rows_of(RESULTS, "length").query("endpoint == 'lr-lr' and epochs == 24")
    longer = longer.pivot(index="world", columns="method", values="value")
    assert (longer[list(TAUGHT)].sub(longer["none"], axis=0).mean() < 0.005).all(), "gone after twice the training"
    assert len(longer.dropna()) == 2, "in the two worlds that were tried"
    assert gain("none mixed", "hr-lr") > 10, "far more: students of all sizes"
    assert gain("embedding-cos", "rank1-teacher", of="rank1") > 5, "and a gallery that the teacher embeds"
    for setting in "STD":
        assert (
            abs(gain("fskd", "lr-lr", "fskd-l2", setting=setting))
            < 0.5
            < gain("fskd", "hr-lr", "fskd-l2", setting=setting)
        )


def test_what_pages_say_without_a_number():
    """Words of "What helps?", "Cosine or L2?" and "How sure are we?" that a new table could make false."""
    tables = answer.read(RESULTS)
    judged = answer.judged(tables).set_index("id")
    for setting in "TS":  # half a point for the cosine is excluded, and one for L2 is not
        row = judged.loc[f"cosine-{setting}-lr-lr"]
        assert row["low_family"] < -0.005 < row["high_family"] < 0.005
    rows = rows_of(RESULTS, "ladders").query("method == 'fskd' and trained == '6' and lr == .6 and endpoint in @BOTH")
    by_weight = rows.groupby(["endpoint", "weight"])["value"].mean().unstack("endpoint")
    chosen, other = answer.ladders(tables).chosen["fskd"], by_weight["lr-lr"].idxmax()
    assert (by_weight.loc[other] - by_weight.loc[chosen])[BOTH].between([0.02, -1], [1, -0.05]).all(), (
        "one for the other"
    )
    assert (judged.loc[[f"{name}-lr-lr" for name in TAUGHT], "low_family"] < 0.005).all(), "half a point is not shown"
    searches = judged[judged["verdict"] == "no difference that matters"]
    assert not searches["endpoint"].isin(BOTH).any(), "all on searches"
    same, different = (by_hand(RESULTS)[("embedding-cos", setting, "6", "lr-lr")] for setting in "ST")
    worlds = sorted(set(same) & set(different))
    assert stats.ttest_rel([different[w] for w in worlds], [same[w] for w in worlds]).pvalue > 0.05, "T against S"


def test_students_look_where_they_were_drawn_to():
    """ "A student looks there", and hardly because of the image at hand: words of Where networks look, the README."""
    table = pd.read_csv(RESULTS / "followed.csv").query("map == 'fused'")
    table = table.groupby("method")[["rank", "rank_low", "rank_high", "rank_other"]].mean()
    for other in ("none", "askd-information-scrambled"):
        assert table.loc["askd-information", "rank_low"] > table.loc[other, "rank_high"]
    for drawn in ("askd-information", "askd-information-mean"):
        assert abs(table.loc[drawn, "rank"] - table.loc[drawn, "rank_other"]) < 0.03


def test_where_it_holds_once_more_from_the_table():
    """The spectrum's figures on the page Why, by loops over its rows."""
    table = pd.read_csv(RESULTS / "variations.csv").query("varied == 'spectrum'")
    value = {
        (r.at, r.world, r.method if r.role == "student" else "teacher", r.endpoint): r.value
        for r in table.itertuples()
        if r.side == (48 if r.role == "teacher" else 6)
    }
    places = sorted(set(zip(table["at"], table["world"], strict=True)))
    cost = [
        np.mean([value[(a, w, "teacher", "lr-lr")] - value[(a, w, "none", "lr-lr")] for a, w in places if a == at])
        for at in sorted({at for at, _ in places})
    ]
    assert cost == sorted(cost), "the coarser the differences, the less pixels cost"
    found = why.spectrum(table)
    np.testing.assert_allclose(found["cost", "none"].groupby("at").mean(), 100 * np.array(cost))
    for (at, world), row in found.iterrows():
        for kind, method in itertools.product(("lr-lr", "hr-lr"), TAUGHT):
            expected = 100 * (value[(at, world, method, kind)] - value[(at, world, "none", kind)])
            assert row[kind, method] == pytest.approx(expected)
