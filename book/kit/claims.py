"""Judge what became of each claim that was written down before the runs."""

import base64
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pandas as pd
from kit import gains
from kit.registration import ENDPOINTS, Registration

from lrkd.errors import DataError
from lrkd.evaluation.mixed_model import Mixed, mixed_model
from lrkd.evaluation.statistics import COMPARISON, compare, holm, paired_differences, spelled

CHANCE = 0.5


def measured(results: pd.DataFrame, traces: pd.DataFrame, attention: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Collect the values of each endpoint, run by run.

    A method is named without what follows an at sign: "cosine@20" is "cosine". Accuracy is that of the protocol test;
    auc the mean over the observations of a run that was observed; a run that diverged has chance (0.5) in both.
    Information is the rank correlation of CBAM's fused spatial attention with the identity information, at the least
    side that the file has. The empty frame of a file that is not there yet gives no rows.

    Args:
        results: Table of `lrkd study hypotheses`.
        traces: Its traces.
        attention: Table of `lrkd attention`.

    Returns:
        By endpoint a frame `config, method, seed, teacher_seed, value`. Unit: a run.
    """
    keys = ["config", "method", "seed", "teacher_seed"]
    nothing = pd.DataFrame(columns=[*keys, "value"])
    found = dict.fromkeys(ENDPOINTS, nothing)
    if len(results):
        runs = results[(results["role"] == "student") & (results["protocol"] == "test")]
        lost = runs["status"] != "ok"
        found["accuracy"] = runs[keys].assign(value=runs["accuracy"].mask(lost, CHANCE))
        if len(traces):
            auc = runs["config"].map(traces.groupby("config")["accuracy"].mean()).mask(lost, CHANCE)
            found["auc"] = runs[keys].assign(value=auc).dropna(subset="value")
    if len(attention):
        rows = attention[(attention["role"] == "student") & (attention["kind"] == "cbam")]
        rows = rows[rows["map"] == "fused"]
        rows = rows[rows["side"] == rows["side"].min()]
        found["information"] = rows[keys].assign(value=rows["rank"])
    return {
        name: frame.assign(method=frame["method"].astype(str).str.partition("@")[0]) if len(frame) else frame
        for name, frame in found.items()
    }


def by_seed(runs: pd.DataFrame, crossed: bool = False) -> pd.DataFrame:
    """Reduce the runs of one endpoint to one row a method and seed.

    Args:
        runs: Of `measured`.
        crossed: False: a seed's run is the one with its own teacher, whose number is odd where the seed's is (or that
            has none). True: the mean over the teachers, of seeds that have as many as any; runs without a teacher are
            left out.

    Returns:
        `method, seed, value`. Unit: a seed.
    """
    rows = _counting(runs, crossed)
    if crossed:
        return rows.groupby(["method", "seed"])["value"].mean().reset_index()
    return rows[["method", "seed", "value"]]


def _counting(runs: pd.DataFrame, crossed: bool) -> pd.DataFrame:
    """The runs that count as `by_seed` says."""
    if not crossed:
        return runs[runs["teacher_seed"].isna() | (runs["teacher_seed"] % 2 == runs["seed"] % 2)]
    rows = runs.dropna(subset="teacher_seed")
    count = rows.groupby(["method", "seed"])["value"].transform("count")
    return rows[count == count.max()]


def _registered(
    registered: Registration, runs: Mapping[str, pd.DataFrame]
) -> Iterator[tuple[pd.Series, pd.DataFrame, bool]]:
    """Each hypothesis whose two methods have runs, these runs, and whether they are crossed with the teachers."""
    for _, one in registered.hypotheses.iterrows():
        there = runs[one["endpoint"]]
        there = there[there["method"].isin([one["method"], one["baseline"]])]
        crossed = one["id"] == registered.settings.get("primary")
        if there["method"].nunique() == 2 and _counting(there, crossed)["method"].nunique() == 2:
            yield one, there, crossed


def comparisons(
    registered: Registration, runs: Mapping[str, pd.DataFrame], *, resamples: int = 2000, generator: int = 0
) -> pd.DataFrame:
    """Compare each hypothesis's two methods with `lrkd.evaluation.statistics.compare`.

    Args:
        registered: What was claimed.
        runs: Of `measured`.
        resamples: Of the bootstrap.
        generator: Its seed.

    Returns:
        A row a hypothesis with runs of both methods, with `id` and `endpoint`. Unit: a seed with its own teacher; for
        the primary hypothesis the mean over all teachers.
    """
    rows = []
    for one, there, crossed in _registered(registered, runs):
        row = compare(
            by_seed(there, crossed),
            [(one["method"], one["baseline"])],
            margin=registered.smallest[one["endpoint"]],
            value="value",
            alpha=registered.number("alpha"),
            resamples=resamples,
            generator=generator,
        )
        rows.append(row.assign(id=one["id"], endpoint=one["endpoint"]))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["id", "endpoint", *COMPARISON])


def differences(registered: Registration, runs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return method minus baseline, seed by seed, as `comparisons` takes them: `id, seed, difference`."""
    rows = []
    for one, there, crossed in _registered(registered, runs):
        wide = by_seed(there, crossed).pivot(index="seed", columns="method", values="value")
        both = (wide[one["method"]] - wide[one["baseline"]]).dropna()
        rows.append(pd.DataFrame({"id": one["id"], "seed": both.index, "difference": both.to_numpy()}))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["id", "seed", "difference"])


def by_pair(
    registered: Registration, runs: Mapping[str, pd.DataFrame], right: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tell of each pair whether the methods of a hypothesis on accuracy were right about it.

    Args:
        registered: What was claimed.
        runs: Of `measured`.
        right: Of `correctness`.

    Returns:
        By hypothesis two (S,P), method and baseline, with a row a seed that both have, as `comparisons` takes them;
        where teachers are averaged, the share of them that were right.
    """
    found = {}
    for one, there, crossed in _registered(registered, runs):
        there = there[there["config"].isin(list(right))]
        seeds: dict[tuple[str, int], list[np.ndarray]] = {}
        for row in _counting(there, crossed).itertuples():
            seeds.setdefault((row.method, row.seed), []).append(right[row.config])
        both = [s for name, s in seeds if name == one["method"] and (one["baseline"], s) in seeds]
        if one["endpoint"] == "accuracy" and both:
            a, b = (np.stack([np.mean(seeds[one[k], s], axis=0) for s in both]) for k in ("method", "baseline"))
            found[str(one["id"])] = a, b
    return found


def crossed(registered: Registration, runs: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, Mixed | None]:
    """Compare the methods of the primary hypothesis with its teachers, in three ways.

    The mixed model (unit: a run); the t test over seeds of their means over teachers (unit: a seed); and the t test
    that takes runs of one seed under two teachers for independent (unit: a seed and teacher).

    Returns:
        `analysis, mean, low, high, p, n`, and the mixed model. Without runs: no rows, and None.
    """
    columns = ["analysis", "mean", "low", "high", "p", "n"]
    found = [one for one in _registered(registered, runs) if one[2]]
    if not found:
        return pd.DataFrame(columns=columns), None
    one, there, _ = found[0]
    there = there.dropna(subset="teacher_seed")
    mixed = mixed_model(there, one["method"], one["baseline"], "value")
    said = f" ({mixed.note})" if mixed.note else ""
    rows = [("mixed model: seed, teacher, seed by method" + said, *mixed[:4], mixed.n)]
    for name, unit, frame in (
        ("t test, unit: a seed", ["seed"], by_seed(there, crossed=True)),
        ("t test, unit: a seed and teacher", ["seed", "teacher_seed"], there),
    ):
        row = paired_differences(frame[["method", *unit, "value"]], one["baseline"], unit, (), "value").iloc[:1]
        rows += [(name, *cells) for cells in row[columns[1:]].itertuples(index=False)]
    return pd.DataFrame(rows, columns=columns), mixed


def correctness(pairs: pd.DataFrame, count: int) -> dict[str, np.ndarray]:
    """Unpack the file of whether each test pair was right.

    Args:
        pairs: `config` and `correct`, bits in base 64.
        count: Pairs of the test.

    Returns:
        {config: (count,) bool}, in the order of the pairs.
    """
    found = {}
    for config, text in zip(pairs["config"], pairs["correct"], strict=True):
        bits = np.frombuffer(base64.b64decode(text), np.uint8)
        if len(bits) != -(-count // 8):
            raise DataError(f"pairs: config {config} has {8 * len(bits)} bits, which {count} pairs do not fill")
        found[config] = np.unpackbits(bits, count=count).astype(bool)
    return found


VERDICTS = (
    *("better", "better, by less than it matters", "no difference that matters"),
    *("worse, by less than it matters", "worse", "unclear"),
)


def verdict(mean: float, different: float, alike: float, alpha: float) -> str:
    """Choose one of `VERDICTS` for method minus baseline.

    A difference that is found and lies within the margin is "better" or "worse, by less than it matters"; one that is
    found and was not shown to lie there, "better" or "worse"; without one, "no difference that matters" where what
    there may be lies within the margin, else "unclear". So every pair of p has one verdict.

    Args:
        mean: Method minus baseline.
        different: Corrected p against zero; NaN where not shown.
        alike: Corrected p for "within the margin"; NaN where not shown.
        alpha: Level of both tests.
    """
    found, small = different < alpha, alike < alpha
    if found:
        return ("better" if mean > 0 else "worse") + ", by less than it matters" * small
    return "no difference that matters" if small else "unclear"


def judge(hypotheses: pd.DataFrame, comparisons: pd.DataFrame, *, alpha: float) -> pd.DataFrame:
    """Judge each hypothesis by its corrected p.

    Both p are corrected by Holm over all hypotheses, those without figures too (as p = 1). Of the two null hypotheses
    of one claim at most one is true.

    Args:
        hypotheses: With `COLUMNS`.
        comparisons: Of `comparisons`; a hypothesis without a row is unclear.
        alpha: Level of the tests.

    Returns:
        Each hypothesis with its figures, `different` (paired t test against zero), `within` (TOST against the margin)
        and the `verdict` of its method. Unit: that of the comparisons, a seed.
    """
    figures = comparisons.drop(columns=["endpoint", "method", "baseline"], errors="ignore")
    if figures["id"].duplicated().any():
        raise DataError(f"comparisons: more than one row of {figures.loc[figures['id'].duplicated(), 'id'].iloc[0]}")
    table = hypotheses.merge(figures, how="left", on="id")
    for name, own in (("different", table["p"].astype(float)), ("within", table["tost"].astype(float))):
        table[name] = np.where(own.isna(), np.nan, holm(own.fillna(1.0)))
    each = zip(table["mean"], table["different"], table["within"], strict=True)
    return table.assign(verdict=[verdict(*row, alpha) for row in each])


def told(judged: pd.DataFrame) -> pd.DataFrame:
    """Put what `judge` found into words.

    Returns:
        The same with text columns: `label`; `difference`, "+4.1 [+3.2, +5.0]" in points (information as it is);
        `corrected`, both corrected p; `said`, the end of a sentence that begins with the claim.
    """
    inner = judged["endpoint"] == "information"
    points, plain = spelled(judged, sign=True), spelled(judged, factor=1, digits=3, sign=True)
    p = {name: [_p(value) for value in judged[name]] for name in ("different", "within")}
    table = judged.assign(
        label=judged["id"] + ": " + judged["method"] + " − " + judged["baseline"],
        n=judged["n"].fillna(0).astype(int),
        lost=judged["lost"].fillna(0).astype(int),
        difference=points.where(~inner, plain),
        corrected=[f"{a}; {b}" for a, b in zip(*p.values(), strict=True)],
    )
    said = []
    for row in table.itertuples():
        figures = f"{row.difference}{'' if row.endpoint == 'information' else ' points'}, corrected p "
        figures += f"{_p(row.different)} for a difference and {_p(row.within)} for none that matters, {row.n} seeds"
        said.append(f'comes out as "{row.verdict}" ({figures})' if row.n > 1 else "is unclear for want of data")
    table["said"] = said
    return table


def tuned(judged: pd.DataFrame, names: Iterable[str] = ()) -> set[str]:
    """Find the claims in which a weight was searched for in this study, of the method or of the baseline.

    Args:
        judged: Of `told`, whose methods are named without what follows an at sign.
        names: Those that the table of runs has, "lp(2)@8"; default: as judged.

    Returns:
        Their labels.
    """
    sides = [judged["method"], judged["baseline"]]
    known = {name.partition("@")[0] for name in [*names, *pd.concat(sides)] if gains.tuned(name)}
    return set(judged["label"][sides[0].isin(known) | sides[1].isin(known)])


def _p(value: float) -> str:
    return "–" if np.isnan(value) else "< .001" if value < 0.0005 else f"{value:.3f}"


def verdicts(
    registered: Registration,
    results: pd.DataFrame,
    traces: pd.DataFrame | None = None,
    attention: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Judge the registered claims by the files of a study: `told`, indexed by label."""
    nothing = pd.DataFrame()
    runs = measured(results, nothing if traces is None else traces, nothing if attention is None else attention)
    judged = judge(registered.hypotheses, comparisons(registered, runs), alpha=registered.number("alpha"))
    return told(judged).set_index("label", drop=False).rename_axis(None)


def state(registered: Registration, judged: pd.DataFrame) -> str:
    """Say in a sentence whether the planned runs are there."""
    short = judged.loc[~(judged["n"] >= registered.seeds), "id"]
    if short.empty:
        return f"Every claim has all of its {registered.seeds} seeds."
    which = "all claims" if len(short) == len(judged) else ", ".join(short)
    return f"Not complete: fewer than the planned {registered.seeds} seeds for {which}, whose verdicts are provisional."
