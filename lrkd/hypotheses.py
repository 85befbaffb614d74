"""What was claimed before the runs, read from the page where it was written down, and what became of each claim."""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from lrkd.errors import DataError
from lrkd.stats import COMPARISON, Mixed, compare, holm, mixed_model, paired_differences, spelled

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
    rows = [("mixed model: seed, teacher, seed by method", *mixed[:4], mixed.n)]
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


def judge(
    hypotheses: pd.DataFrame, comparisons: pd.DataFrame, *, alpha: float, smallest: Mapping[str, float]
) -> pd.DataFrame:
    """Each hypothesis with its figures, `adjusted` p, `verdict` (confirmed, refuted, undecided) and `reason`.

    comparisons: rows of `stats.compare` with the `id` of their hypothesis; one that is missing leaves its hypothesis
    undecided. Unit: that of the comparisons, a seed. The family of Holm's correction is all hypotheses, those without
    figures too (as p = 1): the paired t test's p for superiority, TOST's for equivalence. smallest: by endpoint the
    effect that matters, which was also the margin of TOST; an endpoint without one refutes by the sign alone.

    Superiority is confirmed by an adjusted p below alpha with the expected sign; refuted by one with the other sign, or
    where the interval of level 1 - 2 alpha (one-sided, not corrected) ends below the smallest effect that matters.
    Equivalence is confirmed by an adjusted p below alpha, refuted where that interval lies wholly beyond the margin.
    All else is undecided: for want of seeds, as a rule, and no evidence for "the same".
    """
    figures = comparisons.drop(columns=["endpoint", "method", "baseline"], errors="ignore")
    if figures["id"].duplicated().any():
        raise DataError(f"comparisons: more than one row of {figures.loc[figures['id'].duplicated(), 'id'].iloc[0]}")
    table = hypotheses.merge(figures, how="left", on="id")
    own = table["p"].where(table["test"] == "superiority", table["tost"]).astype(float)
    table["adjusted"] = np.where(own.isna(), np.nan, holm(own.fillna(1.0)))
    said = [_verdict(row, alpha, smallest.get(row["endpoint"])) for _, row in table.iterrows()]
    table["verdict"], table["reason"] = zip(*said, strict=True) if said else ([], [])
    return table


def _verdict(row: pd.Series, alpha: float, smallest: float | None) -> tuple[str, str]:
    if not np.isfinite(row["adjusted"]):
        return "undecided", "fewer than two units of both methods"
    sure = row["adjusted"] < alpha
    if row["test"] == "equivalence":
        if sure:
            return "confirmed", "the difference lies within the margin"
        if smallest is not None and (row["low90"] > smallest or row["high90"] < -smallest):
            return "refuted", "the difference lies beyond the margin"
        return "undecided", "neither shown to lie within the margin nor beyond it"
    sign = 1 if row["expected"] == "greater" else -1
    most = row["high90"] if sign > 0 else -row["low90"]
    negligible = smallest is not None and most < smallest
    if sure and sign * row["mean"] > 0:
        return "confirmed", "the expected sign" + (", yet less than the smallest effect that matters" * negligible)
    if sure:
        return "refuted", "the opposite sign"
    if negligible:
        return "refuted", "less than the smallest effect that matters"
    return "undecided", "neither shown to be there nor to be too small to matter"


def told(judged: pd.DataFrame) -> pd.DataFrame:
    """`judge` -> the same with text columns: `label`, `difference`, `corrected` and `said`.

    difference: "+4.1 [+3.2, +5.0]" in points (information as it is); corrected: the adjusted p; said: the end of a
    sentence that begins with the claim.
    """
    inner = judged["endpoint"] == "information"
    points, plain = spelled(judged, sign=True), spelled(judged, factor=1, digits=3, sign=True)
    table = judged.assign(
        label=judged["id"] + ": " + judged["method"] + " − " + judged["baseline"],
        n=judged["n"].fillna(0).astype(int),
        lost=judged["lost"].fillna(0).astype(int),
        difference=points.where(~inner, plain),
        corrected=["–" if np.isnan(p) else "< .001" if p < 0.0005 else f"{p:.3f}" for p in judged["adjusted"]],
    )
    table["said"] = [
        f"is {row.verdict} ({row.reason}: {row.difference}{'' if row.endpoint == 'information' else ' points'}, "
        f"corrected p {row.corrected}, {row.n} seeds)"
        if row.n > 1
        else "is undecided for want of data"
        for row in table.itertuples()
    ]
    return table


def verdicts(
    registered: Registration,
    results: pd.DataFrame,
    traces: pd.DataFrame | None = None,
    attention: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The files of a study -> `told` of what it says to the registered claims, indexed by their labels."""
    nothing = pd.DataFrame()
    runs = measured(results, nothing if traces is None else traces, nothing if attention is None else attention)
    alpha, smallest = registered.number("alpha"), registered.smallest
    judged = judge(registered.hypotheses, comparisons(registered, runs), alpha=alpha, smallest=smallest)
    return told(judged).set_index("label", drop=False).rename_axis(None)


def state(registered: Registration, judged: pd.DataFrame) -> str:
    """Whether the runs that were planned are there, as a sentence."""
    short = judged.loc[~(judged["n"] >= registered.seeds), "id"]
    if short.empty:
        return f"Every claim has all of its {registered.seeds} seeds."
    which = "all claims" if len(short) == len(judged) else ", ".join(short)
    return f"Not complete: fewer than the planned {registered.seeds} seeds for {which}, whose verdicts are provisional."
