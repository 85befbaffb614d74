"""Show study `answer` as far as its tables go: gains by length, ladders, verdicts, power, shuffled names."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from kit import answer_claims, figures
from kit.display import BLACK, GREY, Look, look, named
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from lrkd.distill import methods
from lrkd.errors import DataError
from lrkd.evaluation import inference
from lrkd.files import read_table
from lrkd.study import answer, answer_plan
from lrkd.study.answer_plan import CHOSEN_BY, MAIN, Place
from lrkd.study.presets import SCALES
from lrkd.study.spec import config_hash
from lrkd.study.worlds import SETTINGS

NAMES = {
    "lr-lr": "small against small",
    "hr-lr": "sharp against small",
    "rank1": "rank 1",
    "open-set": "open set",
    "rank1-teacher": "rank 1, the teacher's gallery",
    "open-set-teacher": "open set, the teacher's gallery",
}
TAUGHT = tuple(entrant.name for entrant in MAIN if entrant.name != "none")
OPEN = "not judged yet"


class Tables(NamedTuple):
    """The tables of study `answer`; one that is not there yet is empty.

    Attributes:
        length, ladders, judged: Rows of results; judged are worlds, attention and photographs together.
        right, people: What each judged run had right, and who was shown.
        claims: What was claimed beforehand.
    """

    length: pd.DataFrame
    ladders: pd.DataFrame
    judged: pd.DataFrame
    right: pd.DataFrame
    people: pd.DataFrame
    claims: pd.DataFrame


def read(folder: Path = Path("results")) -> Tables:
    """Read what a folder has of them, and its claims.csv."""

    def both(end: str, columns: Sequence[str]) -> pd.DataFrame:
        found = pd.DataFrame(columns=list(columns))
        for path in (folder / f"answer-{part}{end}.csv" for part in ("worlds", "attention", "photographs")):
            if path.exists():  # parts may share runs, and worlds' people
                own = read_table(path, columns)
                own = own[~own["config"].isin(found["config"])]
                found = pd.concat([found, own], ignore_index=True) if len(found) else own
        return found

    judging = both("-right", ("config", "side", "endpoint", "n", "right"))
    people = both("-people", ("config", "data", "scale", "world", "what", "people"))
    parts = (answer.read(folder, part) for part in ("length", "ladders"))
    return Tables(*parts, both("", answer.COLUMNS), judging, people, answer_claims.read(folder / "claims.csv"))


def origin(part: str, folder: Path = Path("results")) -> str:
    """Begin a caption: "From book/results/answer-PART.csv", or the command that would write it."""
    if answer.table_path(folder, part).exists():
        return f"From book/results/answer-{part}.csv"
    return f"Not measured yet: answer-{part}.csv, which lrkd study answer --part {part} writes"


def title(entrant: str) -> str:
    """An entrant's name on pages: its method's title, and how it was trained."""
    name, _, how = entrant.partition(" ")
    trained = {"mixed": ", mixed sides", "hr": ", sharp images"}.get(how, "")
    return named(name) + trained


# -------------------------------------------------------------------------------------------------------------- length


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """Subtract `none` from each method, world by world, at the same length and at the same cost.

    Args:
        table: Of part `length`.

    Returns:
        `method, world, endpoint, epochs, seconds, gain, at_cost`. gain: at as many epochs. seconds: of training, the
        epochs times the least seconds an epoch that a run of the method took, on the device with most runs (what else
        a machine does makes runs slower, never faster). at_cost: minus what `none` has after as many seconds, between
        two of its lengths interpolated over the logarithm; nan where it was not trained for so long.
    """
    rows = table[(table["role"] == "student") & (table["people"] == "validation") & (table["status"] == "ok")]
    columns = ["method", "world", "endpoint", "epochs", "seconds", "gain", "at_cost"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    timed = rows[rows["device"] == rows["device"].mode().iloc[0]]
    pace = (timed["seconds"] / timed["epochs"]).groupby(timed["method"]).min()
    rows = rows.assign(seconds=rows["epochs"] * rows["method"].map(pace))
    found = []
    for _, part in rows.groupby(["world", "endpoint"]):
        base, others = part[part["method"] == "none"].sort_values("epochs"), part[part["method"] != "none"]
        if base.empty:
            continue
        same = others["epochs"].map(base.set_index("epochs")["value"])
        cost = np.interp(np.log(others["seconds"]), np.log(base["seconds"]), base["value"], left=np.nan, right=np.nan)
        found.append(others.assign(gain=others["value"] - same, at_cost=others["value"] - cost))
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def by_length(found: pd.DataFrame, endpoints: Iterable[str] = ("lr-lr", "hr-lr", "rank1")) -> Figure:
    """Draw `gains` against epochs and against seconds, a row of panels an endpoint; small marks are worlds."""
    endpoints = tuple(endpoints)
    figure, axes = plt.subplots(
        len(endpoints), 2, figsize=(7.4, 0.6 + 2.1 * len(endpoints)), sharex="col", sharey="row", squeeze=False
    )
    for row, endpoint in zip(axes, endpoints, strict=True):
        part = found[found["endpoint"] == endpoint]
        for ax, (x, y) in zip(row, (("epochs", "gain"), ("seconds", "at_cost")), strict=True):
            ax.axhline(0, color=BLACK, linestyle="--", linewidth=1)
            for method, lines in part.groupby("method", sort=False):
                colour, marker = look(str(method))
                each = lines.dropna(subset=y)
                mean = each.groupby(x)[y].mean()
                ax.plot(each[x], 100 * each[y], marker, color=colour, markersize=3.5, alpha=0.55)
                ax.plot(mean.index, 100 * mean, color=colour, marker=marker, label=title(str(method)))
            ax.set_xscale("log", base=2)
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter("{x:.0f}")
        row[0].set(title=NAMES.get(endpoint, endpoint), ylabel="points over no teacher")
    if len(found):
        axes[0, 0].xaxis.set_major_locator(FixedLocator(sorted(found["epochs"].unique())))
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    axes[0, 1].set_title("… at the same cost")
    axes[-1, 0].set_xlabel("epochs of training")
    axes[-1, 1].set_xlabel("seconds of training")
    return figure


def at(found: pd.DataFrame, endpoint: str, epochs: int) -> pd.Series:
    """The mean of `gains` over worlds in points, by method; nan for one that is not there."""
    part = found[(found["endpoint"] == endpoint) & (found["epochs"] == epochs)]
    return 100 * part.groupby("method")["gain"].mean().reindex(TAUGHT).astype(float)


def lengths(found: pd.DataFrame) -> list[int]:
    """At how many epochs all main methods have gains, in rising order."""
    counted = found.groupby("epochs")["method"].nunique()
    return [int(epochs) for epochs in counted.index[counted >= len(TAUGHT)]]


def told(found: pd.DataFrame) -> dict[str, str | int]:
    """What text says of `gains`: the `first` and the `last` of `lengths`, and "METHOD_ENDPOINT_first" as `points`."""
    there = lengths(found) or [0]
    ends = {"first": there[0], "last": there[-1]}
    values: dict[str, str | int] = dict(ends)
    for endpoint, when in itertools.product(("lr-lr", "hr-lr", "rank1"), ends):
        gained = at(found, endpoint, ends[when])
        values |= {f"{name}_{endpoint}_{when}": points(gained[name]) for name in TAUGHT}
    return values


def points(value: float) -> str:
    """A difference in points as text has it, "+1.2" or "−0.3"; what is not measured is "(not measured yet)"."""
    return "(not measured yet)" if np.isnan(value) else f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")


def chosen_length(table: pd.DataFrame) -> int | None:
    """The study's length by `answer_plan.length`; None while the table of part `length` cannot tell."""
    try:
        return answer_plan.length(table)
    except DataError:
        return None


# ------------------------------------------------------------------------------------------------------------- ladders


class Ladders(NamedTuple):
    """What the ladders show.

    Attributes:
        rungs: `entrant, world, rung, value`: a weight, or the learning rate of `none`; the mean validation accuracy of
            both protocols, nan where the run diverged. And `lr-lr`, `hr-lr`, that of each.
        chosen: The rung by entrant, of ladders that have ended.
    """

    rungs: pd.DataFrame
    chosen: dict[str, float]

    def best(self, entrant: str, by: str) -> float:
        """The rung that one of the columns of `rungs` would have chosen; nan without a ladder."""
        means = self.rungs[self.rungs["entrant"] == entrant].groupby("rung")[by].mean()
        return float(means.idxmax()) if means.notna().any() else np.nan


def ladders(tables: Tables, setting: str = "T") -> Ladders:
    """Read the ladders of rendered faces that the plan asks for by now; empty before the study has its length."""
    epochs, table = chosen_length(tables.length), tables.ladders
    nothing = pd.DataFrame(columns=["entrant", "world", "rung", "value", *CHOSEN_BY])
    if epochs is None or table.empty:
        return Ladders(nothing, {})
    place = Place(SCALES[table["scale"].iloc[0]], epochs=max(1, epochs // 2))
    found = answer_plan.ladders(place, tuple(answer_plan.ENTRANTS.values()), table, setting)  # type: ignore[arg-type]
    rows = table[table["config"].isin([config_hash(spec) for spec in found.wanted])]
    rows = inference.named(rows[(rows["role"] == "student") & (rows["people"] == "validation")])
    if rows.empty:
        return Ladders(nothing, {})
    hardest = rows.groupby("config")["side"].rank("dense") <= 2  # of mixed sides the two hardest count
    rows = rows[(rows["endpoint"].isin(CHOSEN_BY) & hardest) | (rows["status"] != "ok")]
    rows = rows.assign(rung=rows["lr"].where(rows["method"] == "none", rows["weight"]).astype(float))
    means = rows.groupby(["entrant", "world", "rung"], sort=False)["value"].mean()
    each = rows.groupby(["entrant", "world", "rung", "endpoint"])["value"].mean().unstack().reindex(columns=CHOSEN_BY)
    rungs = means.to_frame().join(each).reset_index()
    chosen = {"none": found.lr} if found.lr is not None else {}
    for name, factor in found.factors.items():
        chosen[name] = methods.METHODS[name.partition(" ")[0]].terms[0].weight * factor
    return Ladders(rungs, chosen)


def climbed(found: Ladders, columns: int = 3) -> Figure:
    """Draw a panel a ladder, means over worlds: of both protocols, and thin, of each; a star: chosen, a cross: lost."""
    names = list(dict.fromkeys(found.rungs["entrant"]))
    columns = max(1, min(columns, len(names)))
    rows = max(1, -(-len(names) // columns))
    size = 0.4 + 2.4 * columns, 0.4 + 2.1 * rows
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        part = found.rungs[found.rungs["entrant"] == name]
        mean = 100 * part.groupby("rung")["value"].apply(lambda values: values.mean(skipna=False))
        colour, marker = look(name.partition(" ")[0])
        for endpoint, line in zip(CHOSEN_BY, (":", "--"), strict=True):
            each = 100 * part.groupby("rung")[endpoint].mean()
            ax.plot(each.index, each, line, color=GREY, linewidth=1.2, label=NAMES[endpoint])
        ax.plot(mean.index, mean, color=colour, marker=marker)
        for rung in mean.index[mean.isna()]:
            ax.plot(rung, 0.03, "X", color=BLACK, transform=ax.get_xaxis_transform())
        if name in found.chosen:
            ax.plot(found.chosen[name], mean[found.chosen[name]], "*", color=BLACK, markersize=12)
        ax.set_xscale("log", base=2)
        crowded = len(mean) > 5 or max(mean.index) >= 1000
        ax.xaxis.set_major_locator(FixedLocator(list(mean.index)[:: 1 + crowded]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 100 else f"{x:.2g}")
        ax.tick_params(axis="x", labelsize=8)
        ax.set_title(title(name).replace(", mixed", "\nmixed"), fontsize=9)
        ax.set_xlabel("learning rate" if name.startswith("none") else "weight", fontsize=9)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    figures.legend(axes[0, 0])
    figure.supylabel("validation accuracy, %", fontsize=10)
    return figure


# ------------------------------------------------------------------------------------------------------------ verdicts


def judged(tables: Tables) -> pd.DataFrame:
    """Judge all claims by `inference.judge`: over worlds; on photographs over seeds crossed with people."""
    found, on = inference.entrants(tables.judged), tables.claims["setting"] == answer_claims.PHOTOGRAPHS

    def crossed(claim: Mapping[str, object], level: float) -> inference.Estimate:
        return inference.bootstrap_claim(found, tables.right, tables.people, claim, shared=True, level=level)

    parts = (inference.judge(found, tables.claims[~on]), inference.judge(found, tables.claims[on], estimate=crossed))
    return pd.concat(parts, ignore_index=True)


def compared(
    tables: Tables, endpoints: Iterable[str] = ("lr-lr", "hr-lr", "rank1"), resamples: int = 0
) -> pd.DataFrame:
    """Compare the main methods with `none`, and the features' cosine with their L2, in each setting.

    Args:
        tables: Of the study.
        endpoints: Which.
        resamples: Of the crossed bootstrap, which takes a second for each interval; 0: none is computed.

    Returns:
        The columns of `judged` with `boot_low, boot_high` (crossed bootstrap of worlds and people, 95 %), by endpoint,
        comparison and setting. What was not claimed beforehand is "not registered" and has no correction; a comparison
        with fewer than two worlds is `OPEN`.
    """
    keys = ["endpoint", "method", "baseline", "setting", "side"]
    pairs, side = [*((name, "none") for name in TAUGHT), ("fskd", "fskd-l2")], tables.claims["side"].iloc[0]
    asked = pd.DataFrame([(e, *pair, s, side) for e in endpoints for pair in pairs for s in SETTINGS], columns=keys)
    margin = asked["endpoint"].map(tables.claims.groupby("endpoint")["margin"].min())
    plain = asked.assign(id="", claim="", test="superiority", margin=margin, family="described")
    table = inference.judge(
        inference.entrants(tables.judged), pd.concat([tables.claims, plain], ignore_index=True).drop_duplicates(keys)
    )
    table = asked.merge(table, on=keys)
    described = table["family"] == "described"
    table.loc[described, ["holm", "low_family", "high_family"]] = np.nan
    table["verdict"] = table["verdict"].mask(described, "not registered").mask(table["n"] < 2, OPEN)
    found, ends = inference.entrants(tables.judged), np.full((len(table), 2), np.nan)
    for k, claim in enumerate(table.to_dict("records")):
        if resamples and claim["n"] > 1:
            one = inference.bootstrap_claim(found, tables.right, tables.people, claim, resamples=resamples)
            ends[k] = one.low, one.high
    return table.assign(boot_low=ends[:, 0], boot_high=ends[:, 1])


def forest(table: pd.DataFrame) -> Figure:
    """Draw `compared`, a panel an endpoint: the t interval over worlds, and thin and grey below it the bootstrap."""
    there = table[table["n"] > 1]
    parts = dict(iter(there.groupby("endpoint", sort=False)))
    heights = [0.6 + 0.3 * len(part) for part in parts.values()] or [1.0]
    figure, axes = plt.subplots(len(heights), 1, squeeze=False, figsize=(7.4, sum(heights)), height_ratios=heights)
    for ax, (name, part) in zip(axes[:, 0], parts.items(), strict=False):
        margin = 100 * part["margin"].min()
        ax.axvspan(-margin, margin, color="#ededed", zorder=0)
        labels = [f"{_pair(row.method, row.baseline)}, {row.setting}" for row in part.itertuples()]
        ends = 100 * part[["mean", "low", "high", "boot_low", "boot_high"]].to_numpy(np.float64).T
        styles = [look(method) for method in part["method"]]
        figures.forest(ax, labels, *ends[:3], n=[int(n) for n in part["n"]], styles=styles)
        ax.hlines(np.arange(len(part)) + 0.25, *ends[3:], color=GREY, linewidth=1.2)
        ax.set_title(NAMES.get(str(name), str(name)))
    if not parts:
        axes[0, 0].set_axis_off()
        axes[0, 0].text(0.5, 0.5, OPEN, ha="center", va="center", color=GREY)
    axes[-1, 0].set_xlabel("difference, points")
    return figure


def _pair(method: str, baseline: str) -> str:
    return title(method) if baseline == "none" else f"{title(method)} − {title(baseline)}"


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Set `compared` in words: a row an endpoint and comparison, a column a setting."""
    words = table.assign(
        measure=table["endpoint"].map(NAMES),
        comparison=[_pair(row.method, row.baseline) for row in table.itertuples()],
        said=[said(row) for row in table.to_dict("records")],
    )
    wide = words.pivot_table(
        index=["measure", "comparison"], columns="setting", values="said", aggfunc="first", sort=False
    )
    return wide.reset_index().rename_axis(columns=None)


def said(row: Mapping[str, object]) -> str:
    """A row of `judged` or `compared` in words: "better: +1.2 [+0.8, +1.6] points, 6 worlds", or `OPEN`."""
    n, (mean, low, high) = int(row["n"]), (100 * float(row[name]) for name in ("mean", "low", "high"))  # type: ignore
    if n < 2:
        return OPEN
    unit = "seeds" if row["setting"] == answer_claims.PHOTOGRAPHS else "worlds"
    return f"{row['verdict']}: {mean:+.1f} [{low:+.1f}, {high:+.1f}] points, {n} {unit}".replace("-", "−")


def by_claim(table: pd.DataFrame) -> pd.DataFrame:
    """Set rows of `judged` in words: a row a claim, a column an endpoint."""
    words = table.assign(said=[said(row) for row in table.to_dict("records")], endpoint=table["endpoint"].map(NAMES))
    wide = words.pivot_table(index="claim", columns="endpoint", values="said", aggfunc="first", sort=False)
    return wide.fillna("").reset_index().rename_axis(columns=None)


def numbers(table: pd.DataFrame, ids: str) -> dict[str, str]:
    """What text says of claims of `judged`, ids in a row: by each the mean in points, its range, verdict and worlds."""
    found = {}
    for row in table.set_index("id", drop=False).loc[ids.split()].to_dict("records"):
        ends = ", ".join(f"{100 * row[end]:+.1f}".replace("-", "−") for end in ("low", "high"))
        one = {
            "": points(100 * row["mean"]),
            "_range": f"[{ends}]",
            "_verdict": row["verdict"] if row["n"] > 1 else OPEN,
        }
        found |= {f"{row['id']}{end}": value for end, value in (one | {"_n": str(int(row["n"]))}).items()}
    return found


def level(tables: Tables, entrant: str, endpoint: str, setting: str = "T") -> float:
    """The mean over judged worlds at the hardest side, in percent; of an entrant on sharp images, there."""
    rows = inference.entrants(tables.judged)
    shown = "hr" if entrant.endswith(" hr") else tables.claims["side"].iloc[0]
    rows = rows[(rows["entrant"] == entrant) & (rows["endpoint"] == endpoint) & (rows["setting"] == setting)]
    return 100 * float(rows.loc[rows["shown"] == shown, "value"].mean())


def panels(table: pd.DataFrame, ids: Mapping[str, Mapping[str, str]], **how: Any) -> Figure:
    """Draw chosen claims of `judged` with their t intervals over worlds, on one axis of points for all panels.

    Args:
        table: Of `judged`.
        ids: {a panel's title: {a line's label: a claim's id}}; claims that were not judged are left out.
        **how: As `figures.forests`.
    """
    rows, parts, styles = table[table["n"] > 1].set_index("id"), {}, {}
    for name, lines in ids.items():
        there = {label: one for label, one in lines.items() if one in rows.index}
        parts[name] = rows.loc[list(there.values())].set_index(pd.Index(there))
        styles |= {label: entrant_look(rows.loc[one, "method"]) for label, one in there.items()}
    bands = {name: 100 * part["margin"].min() for name, part in parts.items() if len(part)}
    figure = figures.forests(parts, "difference in points", band=bands, styles=styles, **how)
    ends = [100 * part[["low", "high"]].to_numpy(float) for part in parts.values() if len(part)]
    reach = np.concatenate(ends) if ends else np.zeros((1, 2))
    for ax in figure.axes:
        ax.set_xlim(min(reach.min() - 1, -2), max(reach.max() + 1, 2))
    return figure


def entrant_look(entrant: str) -> Look:
    """How an entrant is drawn: as its method, with a diamond where it was trained otherwise."""
    name, _, how = entrant.partition(" ")
    return Look(look(name).colour, "D") if how else look(name)


def counted(table: pd.DataFrame) -> str:
    """Say in a sentence how many of these claims have been judged."""
    there = int((table["n"] > 1).sum())
    if not there:
        return f"None of these {len(table)} claims has been judged yet."
    return f"{there} of these {len(table)} claims have been judged so far, by two worlds or more."


def worlds(tables: Tables) -> dict[str, int]:
    """In how many worlds all main entrants have been judged at the hardest side, by setting."""
    found = inference.entrants(tables.judged)
    names = {entrant.name for entrant in MAIN}
    found = found[found["entrant"].isin(names) & (found["shown"] == tables.claims["side"].iloc[0])]
    there = found.groupby(["setting", "world"])["entrant"].nunique()
    return {
        s: int((there.get(s, pd.Series(dtype=int)) == len(names)).sum()) for s in (*SETTINGS, answer_claims.PHOTOGRAPHS)
    }


def state(tables: Tables) -> str:
    """Say in a sentence how much has been judged."""
    counts = worlds(tables)
    if not any(counts[s] for s in SETTINGS):
        return "Nothing has been judged so far: the worlds for judging have not run yet."
    told = [f"{counts[s]} world{'s' * (counts[s] != 1)} in setting {s}" for s in SETTINGS]
    return f"Judged so far, all main methods: {told[0]}, {told[1]} and {told[2]}."


# ------------------------------------------------------------------------------------------------ power, and on nothing


def powers(tables: Tables) -> pd.DataFrame:
    """Say what the worlds so far can detect: `inference.powered` of the claims with two worlds or more."""
    table = inference.powered(judged(tables))
    return table[table["n"] > 1].reset_index(drop=True)


def on_nothing(tables: Tables, times: int = 100) -> pd.DataFrame:
    """Run the pipeline with names shuffled within worlds, by `inference.null_simulation`; empty where nothing can be.

    Claims with fewer than two worlds are left out, as they cannot raise a false alarm, and those that compare two
    measures, which differ whatever the names are.
    """
    known, on = judged(tables), tables.claims["setting"] != answer_claims.PHOTOGRAPHS
    on &= ~tables.claims["baseline"].str.contains("@")
    able = tables.claims[on & (known.set_index("id").loc[tables.claims["id"], "n"] > 1).to_numpy()]
    if able.empty:
        return pd.DataFrame(columns=["family", "claims", "per_claim", "any", "times"])
    return inference.null_simulation(inference.entrants(tables.judged), able, times)
