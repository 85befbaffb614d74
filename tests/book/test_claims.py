"""What was registered is what is judged: parsing, the unit of each comparison, and every road to each verdict."""

import base64
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import claims, registration
from scipy import stats as oracle

from lrkd.errors import DataError
from lrkd.evaluation.statistics import COMPARISON, compare, holm, tost

PAGE = """# Claims

## Settings

| setting | value |
|---|---|
| alpha | .05 |
| Smallest effect on accuracy | 0.01 (a point) |
| primary | `H1` |
| seeds | 10-15 |

## Hypotheses

Some words.

| id | claim | endpoint | method | baseline | test | expected |
|---|---|---|---|---|---|---|
| **H1** | a beats b | accuracy | `a` | b | superiority | greater |
| H2 | a is c | accuracy | a | c | equivalence | equal |

| another | table |
"""


def line(text: str) -> int:
    return 1 + next(i for i, one in enumerate(PAGE.splitlines()) if text in one)


def test_reads_settings_and_hypotheses():
    found = registration.read_hypotheses(PAGE)
    assert found.settings["primary"] == "H1"
    assert found.number("alpha") == 0.05
    assert found.smallest == {"accuracy": 0.01}
    assert list(found.hypotheses.columns) == list(registration.COLUMNS)
    assert found.hypotheses["id"].tolist() == ["H1", "H2"]
    assert found.hypotheses.loc[0, ["method", "expected"]].tolist() == ["a", "greater"]


def test_claims_with_a_weight_that_was_tuned_are_marked():
    sides = [("lp(2)", "none"), ("none", "lp(2)"), ("fskd", "none"), ("skd", "none")]
    judged = pd.DataFrame(sides, columns=["method", "baseline"]).assign(label=list("abcd"))
    assert claims.tuned(judged) == {"d"}
    assert claims.tuned(judged, ["lp(2)@8", "fskd", "none"]) == {"a", "b", "d"}


def test_the_books_own_file_is_read_and_its_methods_are_the_studys():
    found = registration.read_hypotheses((Path(__file__).parents[2] / "book/hypotheses.md").read_text(encoding="utf-8"))
    assert found.settings["primary"] in set(found.hypotheses["id"])
    assert set(found.smallest) == set(found.hypotheses["endpoint"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("| superiority |", "| better |", "line {}: test: expected one of superiority, equivalence, got 'better'"),
        ("| greater |", "| equal |", "line {}: expected: expected one of greater, less, got 'equal'"),
        ("a beats b | accuracy", "a beats b | speed", "line {}: endpoint: expected one of .*, got 'speed'"),
        ("a beats b |", "a beats b | a |", "line {}: .*, got 8 cells"),
        ("a beats b |", " |", "line {}: .* no empty cell"),
        ("| `a` | b |", "| b | b |", "line {}: .* two methods"),
        ("| H2 |", "| H1 |", "line {}: .* id of its own"),
    ],
)
def test_a_broken_line_is_named(old, new, message):
    assert old in PAGE
    with pytest.raises(DataError, match=message.format(line(old))):
        registration.read_hypotheses(PAGE.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("## Settings", "## Sett", "no table setting | value"),
        ("| id |", "| number |", "no table id | claim"),
        ("| alpha | .05 |", "| beta | .05 |", "no setting 'alpha'; there are beta"),
        (".05", "five", "'five', which is no number"),
        (".05", "5", "alpha: .* got 5.0"),
        ("effect on accuracy", "effect on auc", "no setting 'smallest effect on accuracy'"),
        ("0.01 (a point)", "0", "has to be above zero"),
    ],
)
def test_broken_settings_are_refused(old, new, message):
    with pytest.raises(DataError, match=message.replace("|", r"\|").replace("(", r"\(")):
        registration.read_hypotheses(PAGE.replace(old, new, 1))


def run(method, seed, teacher, accuracy, **more):
    config = f"{method}{seed}{teacher}"
    row = {"config": config, "role": "student", "method": method, "seed": seed, "teacher_seed": teacher}
    return row | {"status": "ok", "protocol": "test", "accuracy": accuracy} | more


@pytest.fixture
def results() -> pd.DataFrame:
    """a and b with both teachers for each of six seeds, c and none with one; validation rows that count not."""
    rng = np.random.default_rng(0)
    rows = [run("t", 2, np.nan, 0.9, role="teacher")]
    for seed in range(10, 16):
        for method, level in (("a@20", 0.8), ("b@3.5", 0.79), ("c", 0.8), ("none", 0.75)):
            teachers = (2, 3) if "@" in method else (np.nan,) if method == "none" else (2 + seed % 2,)
            for teacher in teachers:
                rows.append(run(method, seed, teacher, level + rng.normal(0, 0.004)))
                rows.append(rows[-1] | {"protocol": "validation", "accuracy": 0.1})
    return pd.DataFrame(rows)


EMPTY = pd.DataFrame()


def test_measured_takes_each_endpoint_from_its_file(results):
    diverged = (results["config"] == "c102") & (results["protocol"] == "test")
    results.loc[diverged, ["status", "accuracy"]] = ["diverged", np.nan]
    traces = pd.DataFrame({"config": ["a@20102"] * 2 + ["none10nan"], "accuracy": [0.5, 0.7, 0.4]})
    maps = [run("askd", 0, 0, 0.8, kind=k, map=m, side=s, rank=v) for k, m, s, v in (
        ("cbam", "fused", 6, 0.3), ("cbam", "1", 6, 0.9), ("gradcam", "fused", 6, 0.9), ("cbam", "fused", 12, 0.9)
    )]  # fmt: skip
    found = claims.measured(results, traces, pd.DataFrame(maps))
    accuracy = found["accuracy"].set_index("config")["value"]
    assert len(accuracy) == 6 * (2 + 2 + 1 + 1)
    assert accuracy["c102"] == 0.5
    assert set(found["accuracy"]["method"]) == {"a", "b", "c", "none"}
    auc = found["auc"].set_index("config")["value"]
    assert auc.to_dict() == pytest.approx({"a@20102": 0.6, "none10nan": 0.4, "c102": 0.5})
    assert found["information"]["value"].tolist() == [0.3]
    assert [len(frame) for frame in claims.measured(EMPTY, EMPTY, EMPTY).values()] == [0, 0, 0]


def test_a_seed_counts_once_by_its_own_teacher_or_by_all(results):
    runs = claims.measured(results, EMPTY, EMPTY)["accuracy"]
    own = claims.by_seed(runs)
    assert len(own) == 4 * 6
    assert not own.duplicated(["method", "seed"]).any()
    value = own.set_index(["method", "seed"])["value"]
    test = results[results["protocol"] == "test"].set_index("config")["accuracy"]
    assert value["a", 10] == test["a@20102"]
    assert value["a", 11] == test["a@20113"]
    both = claims.by_seed(runs[runs["method"].isin(["a", "b"])], crossed=True).set_index(["method", "seed"])["value"]
    assert both["b", 12] == pytest.approx((test["b@3.5122"] + test["b@3.5123"]) / 2)
    less = runs[runs["config"] != "b@3.5123"]
    assert ("b", 12) not in claims.by_seed(less, crossed=True).set_index(["method", "seed"]).index


def test_comparisons_are_those_of_the_registered_units(results):
    registered = registration.read_hypotheses(PAGE)
    runs = claims.measured(results, EMPTY, EMPTY)
    found = claims.comparisons(registered, runs).set_index("id")
    value = results[results["protocol"] == "test"].set_index(["method", "seed", "teacher_seed"])["accuracy"]
    a, b = (value[m].groupby("seed").mean() for m in ("a@20", "b@3.5"))
    assert found.loc["H1", "p"] == pytest.approx(oracle.ttest_rel(a, b).pvalue)
    own = np.array([value["a@20", s, 2 + s % 2] - value["c", s, 2 + s % 2] for s in range(10, 16)])
    assert found.loc["H2", "tost"] == pytest.approx(tost(own, 0.01).p)
    judged = claims.judge(registered.hypotheses, found.reset_index(), alpha=0.05)
    assert judged["different"].tolist() == pytest.approx(holm(found["p"]))
    assert judged["within"].tolist() == pytest.approx(holm(found["tost"]))


def test_differences_and_pairs_are_those_that_are_compared(results):
    registered = registration.read_hypotheses(PAGE)
    runs = claims.measured(results, EMPTY, EMPTY)
    found, paired = claims.comparisons(registered, runs).set_index("id"), claims.differences(registered, runs)
    assert paired.groupby("id")["difference"].mean().to_dict() == pytest.approx(found["mean"].to_dict())
    # Pairs whose share of right ones is the run's accuracy to one in a thousand.
    right = {one.config: np.arange(1000) < round(1000 * one.value) for one in runs["accuracy"].itertuples()}
    by_pair = claims.by_pair(registered, runs, right)
    for name, (a, b) in by_pair.items():
        assert a.shape == b.shape == (6, 1000)
        wanted = paired[paired["id"] == name].sort_values("seed")["difference"]
        np.testing.assert_allclose((a - b).mean(1), wanted, atol=1.1e-3)
    assert set(by_pair) == {"H1", "H2"}
    assert set(np.unique(by_pair["H1"][0])) <= {0, 0.5, 1}
    less = {config: bits for config, bits in right.items() if config not in ("c102", "b@3.5112")}
    assert [len(a) for a, _ in claims.by_pair(registered, runs, less).values()] == [5, 5]
    assert claims.by_pair(registered, runs, {}) == {}
    assert claims.differences(registered, claims.measured(EMPTY, EMPTY, EMPTY)).empty


def test_without_runs_all_is_unclear(results):
    registered = registration.read_hypotheses(PAGE)
    for part in (EMPTY, results[results["method"] == "a@20"], results[results["seed"] == 10]):
        found = claims.comparisons(registered, claims.measured(part, EMPTY, EMPTY))
        judged = claims.judge(registered.hypotheses, found, alpha=0.05)
        assert judged["verdict"].tolist() == ["unclear"] * 2
        assert judged[["different", "within"]].isna().all(axis=None)


def judged(differences, test="superiority", expected="greater", smallest=0.01, others=0) -> pd.Series:
    """The verdict on given differences, in a family with that many hypotheses that have no figures."""
    x = np.asarray(differences)
    frame = pd.DataFrame({"method": ["a"] * len(x) + ["b"] * len(x), "seed": [*range(len(x))] * 2})
    frame["accuracy"] = [*(0.5 + x), *[0.5] * len(x)]
    one = {"id": "H", "claim": "", "endpoint": "accuracy", "method": "a", "baseline": "b"}
    rows = [one | {"id": f"H{k}", "test": test, "expected": expected} for k in range(1 + others)]
    compared = compare(frame, [("a", "b")], margin=smallest).assign(id="H0")
    return claims.judge(pd.DataFrame(rows), compared, alpha=0.05).iloc[0]


WIGGLE = np.array([-1, 1, -0.5, 0.5, -0.2, 0.2]) * 0.002


@pytest.mark.parametrize(
    ("differences", "others", "wanted"),
    [
        (0.02 + WIGGLE, 0, "better"),
        (0.004 + WIGGLE, 0, "better, by less than it matters"),
        (WIGGLE, 0, "no difference that matters"),
        (-0.004 + WIGGLE, 0, "worse, by less than it matters"),
        (-0.02 + WIGGLE, 0, "worse"),
        (0.005 + 10 * WIGGLE, 0, "unclear"),
        (0.008 + 3 * WIGGLE, 11, "unclear"),  # its interval leaves out zero, but it is one of twelve
    ],
)
@pytest.mark.parametrize("registered", [("superiority", "greater"), ("superiority", "less"), ("equivalence", "equal")])
def test_every_road_to_a_verdict(differences, others, wanted, registered):
    assert judged(differences, *registered, others=others)["verdict"] == wanted


P = st.one_of(st.floats(0, 1), st.just(math.nan), st.sampled_from([0.0, 0.05, 1.0]))


@given(mean=st.floats(-1, 1), different=P, within=P, alpha=st.floats(0.001, 0.499))
def test_each_pair_of_p_has_one_verdict_and_none_has_two(mean, different, within, alpha):
    found, small = different < alpha, within < alpha
    holds = {
        "better": found and mean > 0 and not small,
        "better, by less than it matters": found and mean > 0 and small,
        "no difference that matters": small and not found,
        "worse, by less than it matters": found and mean <= 0 and small,
        "worse": found and mean <= 0 and not small,
        "unclear": not found and not small,
    }
    assert set(holds) == set(claims.VERDICTS)
    assert [word for word, true in holds.items() if true] == [claims.verdict(mean, different, within, alpha)]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-1, 1))
def test_a_verdict_turns_round_with_its_methods(different, within, mean):
    there, back = (claims.verdict(sign * mean, different, within, 0.05) for sign in (1, -1))
    swapped = {"better": "worse", "worse": "better"}
    first, *rest = there.split(",")
    assert back == (there if mean == 0 else ",".join([swapped.get(first, first), *rest]))


def test_missing_hypotheses_stay_in_the_family():
    alone, among = (judged(0.008 + 3 * WIGGLE, others=k) for k in (0, 11))
    assert among["different"] == pytest.approx(12 * alone["different"])
    assert among["within"] == pytest.approx(min(1, 12 * alone["within"]))


def test_a_hypothesis_has_one_row():
    row = pd.DataFrame([dict.fromkeys(COMPARISON, 0.0) | {"id": "H1"}] * 2)
    with pytest.raises(DataError, match="more than one row of H1"):
        claims.judge(registration.read_hypotheses(PAGE).hypotheses, row, alpha=0.05)


def test_correctness_comes_back_as_it_was_packed():
    right = np.random.default_rng(0).random((2, 21)) < 0.7
    packed = [base64.b64encode(np.packbits(row).tobytes()).decode() for row in right]
    pairs = pd.DataFrame({"config": ["x", "y"], "correct": packed})
    found = claims.correctness(pairs, 21)
    assert (found["y"] == right[1]).all()
    with pytest.raises(DataError, match="config x has 24 bits, which 30 pairs"):
        claims.correctness(pairs, 30)


# The page's tables and words


def test_the_crossed_runs_in_three_ways(results):
    registered = registration.read_hypotheses(PAGE)
    table, mixed = claims.crossed(registered, claims.measured(results, EMPTY, EMPTY))
    value = results[results["protocol"] == "test"].set_index(["method", "teacher_seed", "seed"])["accuracy"]
    a, b = (value[m].unstack().to_numpy() for m in ("a@20", "b@3.5"))
    ways = table.set_index("analysis")
    assert ways["n"].tolist() == [24, 6, 12]
    assert ways["p"].iloc[1] == pytest.approx(oracle.ttest_rel(a.mean(0), b.mean(0)).pvalue)
    assert ways["p"].iloc[2] == pytest.approx(oracle.ttest_rel(a.ravel(), b.ravel()).pvalue)
    assert ways["mean"].tolist() == pytest.approx([(a - b).mean()] * 3, rel=1e-4)
    assert (mixed.seeds, mixed.teachers) == (6, 2)
    table, mixed = claims.crossed(registered, claims.measured(EMPTY, EMPTY, EMPTY))
    assert table.empty
    assert mixed is None


def test_told_in_points_and_in_words():
    one = judged(0.02 + WIGGLE).to_frame().T
    two = one.assign(endpoint="information", id="H9", verdict="unclear", different=0.2, within=np.nan)
    lost = dict.fromkeys(("n", "lost", "mean", "low", "high", "different", "within"), np.nan)
    found = claims.told(pd.concat([one, two, one.assign(id="H10", **lost)], ignore_index=True).infer_objects())
    found = found.set_index("id")
    assert found["label"].iloc[0] == "H0: a − b"
    assert found["difference"].tolist() == ["+2.0 [+1.8, +2.2]", "+0.020 [+0.018, +0.022]", "–"]
    assert found["corrected"].tolist() == ["< .001; 1.000", "0.200; –", "–; –"]
    told = (
        'comes out as "better" (+2.0 [+1.8, +2.2] points, corrected p < .001 for a difference and 1.000 for none that '
    )
    assert found["said"].iloc[0] == told + "matters, 6 seeds)"
    told = 'comes out as "unclear" (+0.020 [+0.018, +0.022], corrected p 0.200 for a difference and – for none that '
    assert found["said"].iloc[1] == told + "matters, 6 seeds)"
    assert found["said"].iloc[2] == "is unclear for want of data"
    assert found["n"].tolist() == [6, 6, 0]


def test_state_says_what_is_missing(results):
    registered = registration.read_hypotheses(PAGE)

    def said(part):
        found = claims.comparisons(registered, claims.measured(part, EMPTY, EMPTY))
        return claims.state(registered, claims.judge(registered.hypotheses, found, alpha=0.05))

    assert said(results) == "Every claim has all of its 6 seeds."
    assert "fewer than the planned 6 seeds for H2, whose" in said(results[results["config"] != "c102"])
    assert "for all claims, whose verdicts are provisional" in said(EMPTY)
    with pytest.raises(DataError, match=r"seeds: expected .* got '6'"):
        _ = registration.read_hypotheses(PAGE.replace("10-15", "6")).seeds


def test_verdicts_are_those_of_the_steps_one_by_one(results):
    registered = registration.read_hypotheses(PAGE)
    runs = claims.measured(results, pd.DataFrame(), pd.DataFrame())
    compared = claims.comparisons(registered, runs)
    alone = claims.judge(registered.hypotheses, compared, alpha=registered.number("alpha"))
    found = claims.verdicts(registered, results)
    assert list(found.index) == list(claims.told(alone)["label"])
    assert list(found["said"]) == list(claims.told(alone)["said"])
