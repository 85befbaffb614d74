"""From the tables of study `answer` to verdicts: the unit is a world, methods are paired by it.

A world draws people, teacher, initialisation and order anew, so the t interval over worlds covers them all. Where all
units have the same people (photographs, where the unit is a seed) the crossed bootstrap covers people too.
"""

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lrkd.distill import methods
from lrkd.errors import DataError, check_inside
from lrkd.evaluation import separation
from lrkd.evaluation.endpoints import VERIFICATION
from lrkd.evaluation.power import detectable, power
from lrkd.evaluation.statistics import Estimate, check_columns, holm, mean_interval

VERDICTS = ("better", "better, by less than it matters", "no difference that matters", "worse", "unclear")


def entrants(table: pd.DataFrame) -> pd.DataFrame:
    """Prepare a table of `lrkd.study.answer` for `judge`: its judged students, one row a measure.

    A student without a teacher is one run in the settings S and T; here it has a row in both. Photographs have setting
    "P", as claims call it. A run that diverged is counted at chance: half of the pairs, none of the probes.

    Returns:
        The table's columns, `entrant` (the method, with "mixed" or "hr" where it was trained so), and `shown` ("6",
        "hr").

    Raises:
        DataError: A column is not there.
    """
    check_columns(
        table,
        ["data", "role", "people", "method", "trained", "setting", "world", "side", "endpoint", "value", "status"],
    )
    rows = named(table[(table["role"] == "student") & (table["people"] == "test")])
    rows["shown"] = rows["side"].astype(str).where(rows["trained"] != "hr", "hr")
    rows["setting"] = rows["setting"].where(rows["data"] == "procedural", "P")
    rows = _diverged(rows)
    alone = [name for name in rows["method"].unique() if methods.get(name).teacher in (*methods.ALONE, "random")]
    both = rows[rows["method"].isin(alone) & (rows["setting"] == "S")].assign(setting="T")
    return pd.concat([rows, both], ignore_index=True)


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the column `entrant` to rows of study answer: the method, with "mixed" or "hr" where it was trained so."""
    trained = rows["trained"].astype(str)
    how = np.where(trained.str.contains("+", regex=False), " mixed", np.where(trained == "hr", " hr", ""))
    return rows.assign(entrant=rows["method"].astype(str) + how)


def _diverged(rows: pd.DataFrame) -> pd.DataFrame:
    """Give a run that diverged, which has one row a side without an endpoint, chance at every endpoint."""
    lost = rows["status"] != "ok"
    if not lost.any():
        return rows
    every = rows.loc[~lost, ["endpoint"]].drop_duplicates()
    chance = rows[lost].drop(columns=["endpoint", "value"]).drop_duplicates().merge(every, how="cross")
    chance["value"] = np.where(chance["endpoint"].isin(VERIFICATION), 0.5, 0.0)
    return pd.concat([rows[~lost], chance], ignore_index=True)


def _cells(found: pd.DataFrame) -> dict[object, np.ndarray]:
    """Values by (setting, shown, endpoint, entrant), by rising world, nan where it lacks one; DataError for two."""
    cell = ["setting", "shown", "endpoint", "entrant"]
    twice = found[found.duplicated([*cell, "world"])]
    for *where, entrant, world in twice[[*cell, "world"]].itertuples(index=False):
        raise DataError(f"results: expected one run of {entrant} in world {world}, got two ({', '.join(where)})")
    values = found.pivot(index=cell, columns="world", values="value")
    return dict(zip(values.index, values.to_numpy(np.float64), strict=True))


def verdict(mean: float, adjusted: float, low: float, high: float, margin: float, alpha: float = 0.05) -> str:
    """Choose the one of VERDICTS that holds; exactly one does, whatever the numbers.

    Args:
        mean: Of the differences; only its sign is used.
        adjusted: Holm's p of the two-sided test, which decides whether there is a difference.
        low, high: The interval at level 1 - alpha over the number of claims in the family, which decides whether the
            difference matters: it lies inside the margins (two one-sided tests, Schuirmann 1987, corrected by
            Bonferroni) or not.
        margin: The smallest difference that matters.
        alpha: The level.
    """
    if not np.isfinite([mean, adjusted, low, high]).all():
        return "unclear"
    if adjusted < alpha:
        if mean < 0:
            return "worse"
        return "better, by less than it matters" if high < margin else "better"
    return "no difference that matters" if -margin < low and high < margin else "unclear"


def judge(
    found: pd.DataFrame,
    claims: pd.DataFrame,
    alpha: float = 0.05,
    estimate: Callable[[Mapping[str, object], float], Estimate] | None = None,
) -> pd.DataFrame:
    """Judge each claim. Unit: a world.

    A claim with fewer than two worlds has no test, is unclear, and is still counted in its family.

    Args:
        found: As `entrants` gives it.
        claims: Rows of claims.csv, margin a number; `book/kit/answer_claims.py` reads and checks them.
        alpha: The level of a family.
        estimate: (claim, level) -> its interval, in place of the paired t over worlds: `bootstrap_claim` with the same
            people for all units, on photographs, where a t over seeds would leave people out.

    Returns:
        The claims' columns and `n` (worlds that have both), `mean, low, high, p` (paired t, level 1 - alpha), `holm`
        (in the family), `low_family, high_family` (level 1 - alpha / the family's claims), `verdict`, `held` (whether
        it is what was claimed), `sd` of the differences.

    Raises:
        DataError: An entrant has two runs in one world.
    """
    cells, rows = _cells(found), []
    for claim in claims.to_dict("records"):
        x = _differences(cells, claim)
        count = int((claims["family"] == claim["family"]).sum())
        row = {"n": len(x), "mean": x.mean() if len(x) else np.nan}
        if len(x) > 1:
            levels = 1 - alpha, 1 - alpha / count
            plain, family = (estimate(claim, v) if estimate else mean_interval(x, v) for v in levels)
            row |= {"low": plain.low, "high": plain.high, "p": plain.p, "low_family": family.low}
            row |= {"high_family": family.high, "sd": float(x.std(ddof=1))}
        rows.append(claim | row)
    table = pd.DataFrame(rows, columns=JUDGED)
    table["p"] = table["p"].astype(float)
    # A claim without a test keeps its place in the family: what is not run yet must not make the others easier.
    table["holm"] = (
        table.groupby("family", sort=False)["p"].transform(lambda p: holm(p.fillna(1.0))).where(table["p"].notna())
    )
    table["verdict"] = [
        verdict(row.mean, row.holm, row.low_family, row.high_family, row.margin, alpha) for row in table.itertuples()
    ]
    wanted = {"superiority": ("better", "better, by less than it matters"), "equivalence": (VERDICTS[2],)}
    table["held"] = [v in wanted[test] for v, test in zip(table["verdict"], table["test"], strict=True)]
    return table


JUDGED = [
    *("id", "claim", "endpoint", "method", "baseline", "setting", "side", "test", "margin", "family"),
    *("n", "mean", "low", "high", "p", "holm", "low_family", "high_family", "verdict", "held", "sd"),
]


def powered(judged: pd.DataFrame, alpha: float = 0.05, target: float = 0.8) -> pd.DataFrame:
    """Add to the table of `judge` what its worlds could have detected, at alpha over the family's claims.

    Returns:
        The table with `power` (to detect a difference as large as the margin) and `detectable` (the least difference
        that is detected with power `target`), at the standard deviation that was seen; nan where there is none.
    """
    size = judged.groupby("family")["id"].transform("size")
    rows = []
    for n, sd, margin, count in zip(judged["n"], judged["sd"], judged["margin"], size, strict=True):
        if n < 2 or not sd > 0:
            rows.append((np.nan, np.nan))
        else:
            rows.append((power(margin / sd, n, alpha / count), detectable(n, target, alpha / count) * sd))
    return judged.assign(**dict(zip(("power", "detectable"), np.reshape(rows, (-1, 2)).T, strict=True)))


def _differences(cells: Mapping[object, np.ndarray], claim: Mapping[str, object]) -> np.ndarray:
    """Subtract a claim's baseline from its method, in the worlds that have both, by rising world: (n,)."""
    name, _, other = str(claim["baseline"]).partition("@")
    setting, side, endpoint = claim["setting"], claim["side"], claim["endpoint"]
    method = cells.get((setting, side, endpoint, claim["method"]))
    baseline = cells.get((setting, side, other or endpoint, name))
    if method is None or baseline is None:
        return np.empty(0)
    return (method - baseline)[~np.isnan(method - baseline)]


# ----------------------------------------------------------------------------------------------------------- bootstrap


def unpack(code: str, count: int) -> np.ndarray:
    """Decode the `right` of a table `answer-*-right.csv`, base64 of bits, deflated where shorter -> (count,) bool."""
    packed, size = base64.b64decode(code), -(-count // 8)
    plain = packed if len(packed) >= size else zlib.decompressobj().decompress(packed, size)
    return np.unpackbits(np.frombuffer(plain, np.uint8), count=count).astype(bool)


def ids(code: str) -> np.ndarray:
    """Decode the `people` of a table `answer-*-people.csv` -> (n,) int64."""
    return np.frombuffer(base64.b64decode(code), "<u2").astype(np.int64)


def crossed_bootstrap(
    differences: Sequence[ArrayLike],
    left: Sequence[ArrayLike],
    right: Sequence[ArrayLike],
    *,
    shared: bool = False,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Estimate the mean difference of two methods, resampling worlds and their people together, methods paired.

    Each resample draws W worlds with replacement and, in each, people by
    `lrkd.evaluation.separation.bootstrap_identities`. With people anew in each world the spread between worlds has
    their variance already, and this adds it once more: it errs to the safe side there, and the t interval over worlds
    comes first.

    Args:
        differences: W arrays (n_w,), correct as 1 or 0 of one method minus the other, item by item (a pair or a probe).
        left, right: W arrays (n_w,), who is shown; of a probe the same person twice.
        shared: The worlds are seeds with the same people (photographs): one draw of people serves all of them, and the
            two are crossed.
        level: Of the interval.
        resamples: How many.
        seed: Of all draws.

    Returns:
        The mean; p is twice the smaller share of resamples on one side of zero, with one added, as it is never none.

    Raises:
        ConfigError: `level` or `resamples` is out of range.
        DataError: There are fewer than two worlds, or lists of different lengths.
    """
    if not len(differences) == len(left) == len(right) >= 2:
        counts = f"{len(differences)}, {len(left)} and {len(right)}"
        raise DataError(f"differences, left, right: expected two or more worlds in each, got {counts}")
    check_inside("level", level, 0, 1)
    values = [np.asarray(x, np.float64) for x in differences]
    draws = []  # (W, R) each world's mean under R draws of people
    for number, (x, a, b) in enumerate(zip(values, left, right, strict=True)):
        rng = np.random.default_rng(seed if shared else [seed, number])
        draws.append(separation.bootstrap_identities(x, a, b, resamples=resamples, generator=rng).draws)
    count, kept = len(values), min(map(len, draws))  # a draw without any item is left out
    rng = np.random.default_rng([seed, 10**6])
    worlds = rng.integers(count, size=(kept, count))
    people = np.arange(kept)[:, None] if shared else rng.integers(kept, size=(kept, count))
    found = np.stack([d[:kept] for d in draws])[worlds, people].mean(1)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    p = min(1.0, 2 * (1 + min(int((found <= 0).sum()), int((found >= 0).sum()))) / (1 + kept))
    return Estimate(float(np.mean([x.mean() for x in values])), float(low), float(high), p, count)


def bootstrap_claim(
    results: pd.DataFrame,
    right: pd.DataFrame,
    people: pd.DataFrame,
    claim: Mapping[str, object],
    *,
    shared: bool = False,
    **options: int | float,
) -> Estimate:
    """Apply `crossed_bootstrap` to one claim.

    Args:
        results: As `entrants` gives it.
        right, people: The tables answer-*-right.csv and answer-*-people.csv.
        claim: A row of the claims.
        shared, options: As in `crossed_bootstrap`.

    Raises:
        DataError: Fewer than two worlds have both runs.
    """
    name, _, other = str(claim["baseline"]).partition("@")
    ends = []
    for entrant, endpoint in ((claim["method"], claim["endpoint"]), (name, other or claim["endpoint"])):
        chosen = (results["entrant"] == entrant) & (results["endpoint"] == endpoint)
        chosen &= (results["setting"] == claim["setting"]) & (results["shown"] == claim["side"])
        rows = results[chosen].merge(right, on=["config", "side", "endpoint"], suffixes=("", "_bits"))
        ends.append({row.world: unpack(row.right, int(row.n)) for row in rows.itertuples()})
    who = {(row.world, row.what): ids(row.people) for row in people.itertuples()}
    worlds = sorted(set(ends[0]) & set(ends[1]))
    paired = str(claim["endpoint"]) in VERIFICATION
    sides = ("left", "right") if paired else ("probe", "probe")
    shown = [[who[-1 if shared else world, side] for world in worlds] for side in sides]
    values = [ends[0][world].astype(float) - ends[1][world] for world in worlds]
    return crossed_bootstrap(values, *shown, shared=shared, **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ null simulation


def null_simulation(
    found: pd.DataFrame, claims: pd.DataFrame, times: int = 200, alpha: float = 0.05, seed: int = 0
) -> pd.DataFrame:
    """Run the whole pipeline where there is nothing to find: entrants' names are shuffled within each world.

    All entrants, the baselines too, change names among those of the same world, setting and side, alike at every
    endpoint that has the same entrants: what correlates keeps doing so.

    Args:
        found, claims, alpha: As in `judge`.
        times: How many shuffles.
        seed: Of the shuffles.

    Returns:
        A row a family: `family, claims, per_claim` (share of claims with p below alpha), `any` (share of shuffles with
        a "better" or "worse" in the family; at most alpha where the correction holds), `times`.
    """
    rng = np.random.default_rng(seed)
    cell = ["world", "setting", "shown", "endpoint"]
    found = found.sort_values([*cell, "entrant"], ignore_index=True)
    numbers, names = pd.factorize(found["world"].astype(str) + "/" + found["entrant"])
    group = found.groupby(cell, sort=True).ngroup().to_numpy()
    rows = []
    for _ in range(times):
        drawn = rng.random(len(names))[numbers]
        renamed = found["entrant"].to_numpy()[np.lexsort((drawn, group))]  # rows lie group by group already
        shuffled = found.assign(entrant=renamed)
        judged = judge(shuffled, claims, alpha)
        directed = judged["verdict"].isin(["better", "better, by less than it matters", "worse"])
        rows += [
            {
                "family": family,
                "claims": len(part),
                "per_claim": (part["p"] < alpha).mean(),
                "any": directed[part.index].any(),
            }
            for family, part in judged.groupby("family", sort=False)
        ]
    table = pd.DataFrame(rows).groupby("family", sort=False).mean().reset_index()
    return table.assign(claims=table["claims"].astype(int), times=times)
