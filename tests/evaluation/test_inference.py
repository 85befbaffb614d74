"""From tables of study answer to verdicts, against naive recomputation."""

import base64
import itertools
import zlib

import numpy as np
import pandas as pd
import pytest
from kit import answer_claims
from scipy import stats as scipy_stats
from statsmodels.stats.power import TTestPower

from lrkd.errors import DataError
from lrkd.evaluation import inference
from lrkd.evaluation.inference import VERDICTS

GOOD = "a,fskd helps,lr-lr,fskd,none,T,6,superiority,0.005,lr-lr"


def results(worlds: int = 6, methods: tuple[str, ...] = ("none", "fskd", "askd"), noise: float = 0.01) -> pd.DataFrame:
    """A table as study answer writes it: fskd is two points better than none, askd the same."""
    rng = np.random.default_rng(0)
    rows = []
    for world, method in itertools.product(range(100, 100 + worlds), methods):
        value = 0.8 + 0.02 * (method == "fskd") + noise * rng.standard_normal()
        setting = "S" if method == "none" else "T"
        rows.append(("procedural", "student", "test", method, "6", setting, world, 6, "lr-lr", value, "ok"))
    names = ["data", "role", "people", "method", "trained", "setting", "world", "side", "endpoint", "value", "status"]
    return pd.DataFrame(rows, columns=names)


def claimed(*rows: str) -> pd.DataFrame:
    table = pd.DataFrame([row.split(",") for row in rows], columns=list(answer_claims.COLUMNS))
    return table.assign(margin=table["margin"].astype(float))


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_exactly_one_verdict_holds_and_directions_are_told_by_holm_alone():
    grid = np.linspace(-0.02, 0.02, 9)
    seen = set()
    for low, high, adjusted in itertools.product(grid, grid, (0.001, 0.5)):
        if low <= high:
            mean = (low + high) / 2
            found = inference.verdict(mean, adjusted, low, high, 0.006)
            seen.add(found)
            assert (found in ("better", "better, by less than it matters", "worse")) == (adjusted < 0.05)
            if found == "no difference that matters":
                assert -0.006 < low <= high < 0.006
    assert seen == set(VERDICTS)
    assert inference.verdict(float("nan"), 0.01, 0, 1, 0.1) == "unclear"


def test_judging_is_the_paired_t_test_over_worlds_with_holm_and_bonferroni():
    table = results()
    wanted = claimed(GOOD, "b,askd is none,lr-lr,askd,none,T,6,equivalence,0.05,lr-lr")
    judged = inference.judge(inference.entrants(table), wanted).set_index("id")
    by = table.pivot(index="world", columns="method", values="value")
    for name, method in (("a", "fskd"), ("b", "askd")):
        test = scipy_stats.ttest_rel(by[method], by["none"])
        row = judged.loc[name]
        assert row["n"] == 6
        np.testing.assert_allclose([row["mean"], row["p"]], [(by[method] - by["none"]).mean(), test.pvalue])
        np.testing.assert_allclose([row["low"], row["high"]], test.confidence_interval(0.95))
        np.testing.assert_allclose([row["low_family"], row["high_family"]], test.confidence_interval(0.975))
    small, large = sorted(judged["p"])
    np.testing.assert_allclose(sorted(judged["holm"]), [min(2 * small, 1), max(2 * small, large)])
    assert judged["verdict"].tolist() == ["better", "no difference that matters"]
    assert judged["held"].all()


def test_a_claim_that_has_no_run_yet_is_unclear_and_makes_the_others_no_easier():
    found = inference.entrants(results())
    one = inference.judge(found, claimed(GOOD))
    two = inference.judge(found, claimed(GOOD, "b,rkd helps,lr-lr,rkd,none,T,6,superiority,0.005,lr-lr"))
    assert two["verdict"].iloc[1] == "unclear"
    assert np.isnan(two["holm"].iloc[1])
    assert two["holm"].iloc[0] == pytest.approx(2 * one["holm"].iloc[0])


def test_students_without_a_teacher_stand_in_both_settings_and_mixed_sides_are_others():
    table = results(2)
    table.loc[table["method"] == "askd", "trained"] = "hr+24+12+6"
    found = inference.entrants(table)
    assert set(found.loc[found["setting"] == "T", "entrant"]) == {"none", "fskd", "askd mixed"}
    assert set(found.loc[found["setting"] == "S", "entrant"]) == {"none"}


def test_a_run_that_diverged_counts_with_chance():
    table = results(2)
    first = (table["method"] == "fskd") & (table["world"] == 100)
    table.loc[first, ["value", "status", "endpoint"]] = [np.nan, "diverged", ""]
    found = inference.entrants(table)
    values = found[found["entrant"] == "fskd"].set_index("world")["value"]
    assert values[100] == 0.5
    assert values[101] > 0.7


def test_two_runs_of_one_entrant_in_one_world_are_refused():
    found = inference.entrants(pd.concat([results(2), results(2)]))
    with pytest.raises(DataError, match="expected one run of none in world 10"):
        inference.judge(found, claimed(GOOD))


def test_power_is_that_of_the_paired_t_test_at_the_corrected_level():
    judged = inference.judge(inference.entrants(results(8)), claimed(GOOD, GOOD.replace("a,", "b,", 1)))
    told = inference.powered(judged).iloc[0]
    wanted = TTestPower().power(told["margin"] / told["sd"], 8, 0.025)
    assert told["power"] == pytest.approx(wanted, abs=1e-6)
    assert TTestPower().power(told["detectable"] / told["sd"], 8, 0.025) == pytest.approx(0.8, abs=1e-6)
    assert np.isnan(inference.powered(judged.assign(n=1))["power"]).all()


def test_names_shuffled_within_worlds_rarely_find_a_difference():
    found = inference.entrants(results(8, ("none", "fskd", "askd", "rkd")))
    wanted = claimed(*(GOOD.replace("a,", f"{k},", 1).replace("fskd,none", f"{m},none")
                       for k, m in enumerate(("fskd", "askd", "rkd"))))  # fmt: skip
    told = inference.null_simulation(found, wanted, times=100).iloc[0]
    assert (told["claims"], told["times"]) == (3, 100)
    assert told["any"] <= 0.11  # alpha .05 and nearly three standard errors of 100 shuffles
    assert inference.judge(found, wanted)["verdict"].iloc[0] == "better"


# ----------------------------------------------------------------------------------------------------------- bootstrap


def items(worlds: int = 4, people: int = 12, seed: int = 0) -> tuple[list, list, list]:
    rng = np.random.default_rng(seed)
    left = [np.concatenate([np.arange(people), rng.integers(people, size=30)]) for _ in range(worlds)]
    shift = [np.concatenate([np.zeros(people, int), rng.integers(1, people, size=30)]) for _ in range(worlds)]
    right = [(a + b) % people for a, b in zip(left, shift, strict=True)]
    values = [(rng.random(len(a)) < 0.6).astype(float) - (rng.random(len(a)) < 0.5) for a in left]
    return values, left, right


@pytest.mark.parametrize("shared", [False, True])
def test_the_crossed_bootstrap_is_worlds_and_people_drawn_one_by_one(shared):
    values, left, right = items()
    found = inference.crossed_bootstrap(values, left, right, shared=shared, resamples=4000)
    rng = np.random.default_rng(1)
    naive = []
    for _ in range(4000):
        common = np.bincount(rng.integers(12, size=12), minlength=12)
        means = []
        for world in rng.integers(4, size=4):
            times = common if shared else np.bincount(rng.integers(12, size=12), minlength=12)
            a, b = left[world], right[world]
            weight = np.where(a == b, times[a], times[a] * times[b])
            means.append((weight * values[world]).sum() / weight.sum())
        naive.append(np.mean(means))
    assert found.mean == pytest.approx(np.mean([x.mean() for x in values]))
    spread = np.std(naive)
    np.testing.assert_allclose([found.low, found.high], np.quantile(naive, [0.025, 0.975]), atol=0.15 * spread)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_bits_are_read_whether_deflated_or_not(share):
    """Of a search most are zero; random ones cannot be made shorter. A stream does not swell beyond its count."""
    right = np.random.default_rng(0).random(4001) < share
    packed = np.packbits(right).tobytes()
    for kept in (packed, min(packed, zlib.compress(packed, 9), key=len)):
        np.testing.assert_array_equal(inference.unpack(base64.b64encode(kept).decode(), 4001), right)
    bomb = base64.b64encode(zlib.compress(bytes(10**7), 9)).decode()
    assert len(inference.unpack(bomb, 10**6)) == 10**6


def test_the_bootstrap_of_a_claim_reads_the_tables():
    rng = np.random.default_rng(0)
    table = results(3, ("none", "fskd")).assign(n=40, config=[f"{k:010d}" for k in range(6)], endpoint="rank1")
    bits = {row.config: rng.random(40) < (0.9 if row.method == "fskd" else 0.2) for row in table.itertuples()}
    right = pd.DataFrame(
        [(config, 6, "rank1", 40, base64.b64encode(np.packbits(x).tobytes()).decode()) for config, x in bits.items()],
        columns=["config", "side", "endpoint", "n", "right"],
    )
    who = np.arange(10).repeat(4)
    code = base64.b64encode(who.astype("<u2").tobytes()).decode()
    people = pd.DataFrame([(world, "probe", code) for world in (100, 101, 102)], columns=["world", "what", "people"])
    claim = claimed(GOOD.replace("lr-lr", "rank1")).iloc[0].to_dict()
    found = inference.bootstrap_claim(inference.entrants(table), right, people, claim, resamples=500)
    means = {m: np.mean([bits[c].mean() for c in table.loc[table["method"] == m, "config"]]) for m in ("none", "fskd")}
    assert found.mean == pytest.approx(means["fskd"] - means["none"])
    assert 0 < found.low < found.mean < found.high
    assert found.n == 3

    photographed = inference.entrants(table.assign(data="lfw"))
    claim["setting"] = "P"

    def crossed(claim, level):
        shared = people.iloc[:1].assign(world=-1)
        return inference.bootstrap_claim(photographed, right, shared, claim, shared=True, level=level, resamples=500)

    judged = inference.judge(photographed, pd.DataFrame([claim]), estimate=crossed).iloc[0]
    told = crossed(claim, 0.95)
    assert (judged["low"], judged["high"], judged["p"]) == (told.low, told.high, told.p)
