"""What was claimed before the runs, read from the page where it was written down, and what became of each claim."""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from lrkd.errors import DataError
from lrkd.evaluation.mixed_model import Mixed, mixed_model
from lrkd.evaluation.statistics import COMPARISON, compare, holm, paired_differences, spelled

COLUMNS = ("id", "claim", "endpoint", "method", "baseline", "test", "expected")
ENDPOINTS = ("accuracy", "auc", "information")
CHANCE = 0.5
EXPECTED = {"superiority": ("greater", "less"), "equivalence": ("equal",)}


class Registration(NamedTuple):
    """The settings as written (names in lower case -> text), and the hypotheses, a row each with `COLUMNS`."""

    settings: dict[str, str]
    hypotheses: pd.DataFrame

    def number(self, name: str) -> float:
        """A setting that is a number, such as "alpha"; DataError where it is missing or none."""
        if name not in self.settings:
            raise DataError(f"hypotheses: no setting {name!r}; there are {', '.join(self.settings)}")
        found = re.match(r"[-+]?(\d+\.?\d*|\.\d+)", self.settings[name])
        if not found:
            raise DataError(f"hypotheses: setting {name!r} is {self.settings[name]!r}, which is no number")
        return float(found[0])

    @property
    def seeds(self) -> int:
        """How many seeds each claim is to have: of the setting "seeds", written "10-15"."""
        found = re.fullmatch(r"(\d+)\D+(\d+)", self.settings.get("seeds", ""))
        if not found or int(found[2]) <= int(found[1]):
            raise DataError(f"hypotheses: setting 'seeds' is {self.settings.get('seeds')!r}; right is, say, 10-15")
        return int(found[2]) - int(found[1]) + 1

    @property
    def smallest(self) -> dict[str, float]:
        """By endpoint the smallest effect that matters, in the endpoint's own unit (accuracy: a fraction)."""
        found = {name: self.number(f"smallest effect on {name}") for name in self.hypotheses["endpoint"].unique()}
        for name, effect in found.items():
            if not effect > 0:
                raise DataError(f"hypotheses: the smallest effect on {name} is {effect}; it has to be above zero")
        return found


def read_hypotheses(text: str) -> Registration:
    """The markdown of `book/hypotheses.md` -> its settings and hypotheses.

    Under "## Settings" a table `setting | value`, with `alpha` and, for each endpoint that a hypothesis has, `smallest
    effect on <endpoint>`; under "## Hypotheses" one with `COLUMNS`: endpoint is one of `ENDPOINTS`, test is
    `superiority` (expected `greater` or `less`) or `equivalence` (`equal`). Backticks and asterisks around a cell are
    taken off, ids are unique.
    Raises DataError that names the line.
    """
    settings = {row[0].lower(): row[1] for _, row in _table(text, "Settings", ("setting", "value"))}
    rows: list[dict[str, str]] = []
    for line, row in _table(text, "Hypotheses", COLUMNS):
        cell = dict(zip(COLUMNS, row, strict=True))
        for name, wanted in (("endpoint", ENDPOINTS), ("test", EXPECTED), ("expected", EXPECTED.get(cell["test"], ()))):
            if cell[name] not in wanted:
                raise DataError(f"hypotheses, line {line}: {name} is {cell[name]!r}; right: {', '.join(wanted)}")
        if not all(row) or cell["id"] in {other["id"] for other in rows} or cell["method"] == cell["baseline"]:
            raise DataError(
                f"hypotheses, line {line}: {' | '.join(row)!r} needs an id of its own, two methods, and no empty cell"
            )
        rows.append(cell)
    found = Registration(settings, pd.DataFrame(rows, columns=list(COLUMNS)))
    if not 0 < found.number("alpha") < 0.5:
        raise DataError(f"hypotheses: alpha is {found.number('alpha')}; right is a number between 0 and 0.5")
    _ = found.smallest
    return found


def _table(text: str, section: str, columns: Iterable[str]) -> list[tuple[int, list[str]]]:
    """(line number, cells) of the first table under the heading."""
    wanted, rows, inside = list(columns), [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            inside = line.lstrip("#").strip().lower() == section.lower()
        elif inside and line.lstrip().startswith("|"):
            cells = [cell.strip().strip("`*").strip() for cell in line.strip().strip("|").split("|")]
            if len(cells) != len(wanted):
                raise DataError(f"hypotheses, line {number}: {len(cells)} cells; right are {' | '.join(wanted)}")
            rows.append((number, cells))
        elif inside and rows:
            break
    if len(rows) < 2 or [cell.lower() for cell in rows[0][1]] != wanted or set("".join(rows[1][1])) - set("-: "):
        where = f", line {rows[0][0]}" if rows else ""
        raise DataError(f"hypotheses{where}: no table {' | '.join(wanted)} with a line of dashes under ## {section}")
    return rows[2:]


def measured(results: pd.DataFrame, traces: pd.DataFrame, attention: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The files of `lrkd study hypotheses` and `lrkd attention` -> by endpoint its values, run by run.

    Columns `config, method, seed, teacher_seed, value`; "cosine@20" stands under its distance's name, "cosine".
    accuracy: protocol test; auc: mean over the observations of a run that was observed; a run that diverged has chance
    (0.5) in both. information: rank correlation of CBAM's fused spatial attention with the identity information, at
    the least side that the file has. Unit: a run. The empty frame of a file that is not there yet gives no rows.
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
    """Runs of one endpoint -> one row a method and seed: `method, seed, value`. Unit: a seed.

    A seed's run is the one with its own teacher, whose number is odd where the seed's is (or that has none). crossed:
    the mean over the teachers, of seeds that have as many as any; runs without a teacher are left out.
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
    """`measured` -> the row of `stats.compare` of each hypothesis, with `id` and `endpoint`; none without runs of both.

    Unit: a seed, with its own teacher; for the primary hypothesis the mean over all teachers.
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
    """`measured` -> `id, seed, difference`: method minus baseline, seed by seed, as `comparisons` takes them."""
    rows = []
    for one, there, crossed in _registered(registered, runs):
        wide = by_seed(there, crossed).pivot(index="seed", columns="method", values="value")
        both = (wide[one["method"]] - wide[one["baseline"]]).dropna()
        rows.append(pd.DataFrame({"id": one["id"], "seed": both.index, "difference": both.to_numpy()}))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["id", "seed", "difference"])


def by_pair(
    registered: Registration, runs: Mapping[str, pd.DataFrame], right: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`measured` and `correctness` -> by hypothesis on accuracy two (S,P), method and baseline: was each pair right?

    In the rows are the seeds that both have, as `comparisons` takes them: a share where teachers are averaged.
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
    """The primary comparison with its teachers, in three ways: `analysis, mean, low, high, p, n`, and the mixed model.

    The mixed model (unit: a run), the t test over seeds of their means over teachers (unit: a seed), and the t test
    that takes runs of one seed under two teachers for independent (unit: a seed and teacher). Without runs: no rows.
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
    """The file of whether each test pair was right -> {config: (count,) bool}, in the order of the pairs."""
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
    """One of `VERDICTS` for method minus baseline, by two corrected p: against zero, and for "within the margin".

    A difference that is found and lies within the margin is "better" or "worse, by less than it matters"; one that is
    found and was not shown to, "better" or "worse"; without one, "no difference that matters" where what there may be
    lies within the margin, else "unclear". So every pair of p has one verdict, and no pair has two. nan: not shown.
    """
    found, small = different < alpha, alike < alpha
    if found:
        return ("better" if mean > 0 else "worse") + ", by less than it matters" * small
    return "no difference that matters" if small else "unclear"


def judge(hypotheses: pd.DataFrame, comparisons: pd.DataFrame, *, alpha: float) -> pd.DataFrame:
    """Each hypothesis with its figures, corrected p (`different`, `within`) and `verdict` of its method.

    comparisons: rows of `stats.compare` with the `id` of their hypothesis; one that is missing leaves its hypothesis
    unclear. Unit: that of the comparisons, a seed. different: the paired t test's p against zero; within: that of TOST
    against the margin; each corrected by Holm over all hypotheses, those without figures too (as p = 1). Of the two
    null hypotheses of one claim at most one is true. For the words see `verdict`.
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
    """`judge` -> the same with text columns: `label`, `difference`, `corrected` and `said`.

    difference: "+4.1 [+3.2, +5.0]" in points (information as it is); corrected: both corrected p; said: the end of a
    sentence that begins with the claim.
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


def _p(value: float) -> str:
    return "–" if np.isnan(value) else "< .001" if value < 0.0005 else f"{value:.3f}"


def verdicts(
    registered: Registration,
    results: pd.DataFrame,
    traces: pd.DataFrame | None = None,
    attention: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The files of a study -> `told` of what it says to the registered claims, indexed by their labels."""
    nothing = pd.DataFrame()
    runs = measured(results, nothing if traces is None else traces, nothing if attention is None else attention)
    judged = judge(registered.hypotheses, comparisons(registered, runs), alpha=registered.number("alpha"))
    return told(judged).set_index("label", drop=False).rename_axis(None)


def state(registered: Registration, judged: pd.DataFrame) -> str:
    """Whether the runs that were planned are there, as a sentence."""
    short = judged.loc[~(judged["n"] >= registered.seeds), "id"]
    if short.empty:
        return f"Every claim has all of its {registered.seeds} seeds."
    which = "all claims" if len(short) == len(judged) else ", ".join(short)
    return f"Not complete: fewer than the planned {registered.seeds} seeds for {which}, whose verdicts are provisional."
