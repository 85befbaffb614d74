"""Draw networks against what the pixels allow, for the page Why."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from kit import answer, viewers
from kit.display import BLACK, GREY, look, named
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import ArrayLike
from torch import Tensor

from lrkd.evaluation import inference
from lrkd.evaluation.endpoints import VERIFICATION
from lrkd.evaluation.separation import roc
from lrkd.files import read_table
from lrkd.study.answer_plan import MAIN

PROTOCOLS = {"lr-lr": "small against small", "hr-lr": "sharp against small"}
CHANCE = 0.5


def answers(results: Path) -> pd.DataFrame:
    """Read the verification rows of part length of study answer: validation people of two worlds, setting S.

    Judged worlds have other people and another learning rate, and are not mixed with these.
    """
    table = read_table(results / "answer-length.csv")
    table = table[(table["status"] == "ok") & table["endpoint"].isin(VERIFICATION)]
    return table.assign(network=table["method"].where(table["role"] == "student", "teacher"))


def shares(table: pd.DataFrame, ceiling: pd.DataFrame) -> pd.DataFrame:
    """Put each network on the way from chance to the ceiling of its side and protocol.

    Args:
        table: `answers`.
        ceiling: ceiling.csv.

    Returns:
        The rows of `table` that have a ceiling, with `ceiling` and `share`, 0 at chance and 1 at the ceiling.
    """
    best = ceiling.groupby(["side", "endpoint"])["accuracy"].mean().rename("ceiling")
    found = table.join(best, on=["side", "endpoint"], how="inner")
    return found.assign(share=(found["value"] - CHANCE) / (found["ceiling"] - CHANCE))


def all_shares(judged: pd.DataFrame, ceiling: pd.DataFrame) -> pd.DataFrame:
    """Put every entrant of the judged worlds, setting T, on the way from chance to the ceiling of the smallest side.

    Args:
        judged: Of study answer, as `answer.Tables` has it.
        ceiling: ceiling.csv; its worlds are others, whose ceilings differ by little.

    Returns:
        A row an entrant, the nearest to the ceiling small against small first: `student`, `worlds`, and of each
        protocol the mean accuracy and its share of the way, both in percent.
    """
    rows = inference.entrants(judged)
    rows = shares(rows[(rows["setting"] == "T") & (rows["shown"] == str(ceiling["side"].min()))], ceiling)
    mean = 100 * rows.groupby(["entrant", "endpoint"])[["value", "share"]].mean().unstack()
    count = rows.groupby("entrant")["world"].nunique()
    found = pd.DataFrame({"student": mean.index.map(answer.title), "worlds": count})
    for endpoint, title in PROTOCOLS.items():
        found[f"{title}, %"] = mean["value", endpoint]
        found[f"share of the way, {title}, %"] = mean["share", endpoint]
    return found.sort_values("share of the way, small against small, %", ascending=False)


def against(rows: pd.DataFrame, networks: Sequence[str]) -> dict[tuple[str, str], np.ndarray]:
    """Draw each network against the ceiling, by the length of its training, for `viewers.chooser`.

    Args:
        rows: `shares`.
        networks: Which, in the order of the list.

    Returns:
        {(network and side, protocol): picture}, of what was measured under all of `PROTOCOLS`.
    """
    found = {}
    for name in networks:
        for side, part in rows[rows["network"] == name].groupby("side"):
            if not set(PROTOCOLS) <= set(part["endpoint"]):
                continue
            for endpoint, title in PROTOCOLS.items():
                here = rows[(rows["side"] == side) & (rows["endpoint"] == endpoint)]
                drawn = _curve(here, here[here["network"] == name], name, f"{side} px, {title}")
                found[f"{named(name)}, {side} px", title] = viewers.picture(drawn)
    return found


def _curve(here: pd.DataFrame, own: pd.DataFrame, name: str, title: str) -> plt.Figure:
    figure, ax = plt.subplots(figsize=(5.6, 3.4))
    for other, part in here.groupby("network"):
        mean = part.groupby("epochs")["value"].mean()
        colour = look(name).colour if other == name else "#d0d0d0"
        ax.plot(mean.index, mean, color=colour, zorder=3 if other == name else 1)
    ax.plot(own["epochs"], own["value"], look(name).marker, color=look(name).colour, zorder=4)
    best = own["ceiling"].iloc[0]
    ax.axhline(best, color=BLACK, linestyle="--", linewidth=1.2)
    ax.text(1, best, f"ceiling {100 * best:.1f}", transform=ax.get_yaxis_transform(), ha="right", va="bottom")
    longest = own[own["epochs"] == own["epochs"].max()]
    ax.set_title(
        f"{named(name)}, {title}: {longest['share'].mean():.0%} of the way from chance to the ceiling", fontsize=9
    )
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(here["epochs"].unique()))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    ax.set(xlabel="epochs of training", ylabel="accuracy, %", ylim=(CHANCE, 1.03))
    return figure


def fitted(table: pd.DataFrame) -> pd.DataFrame:
    """Judge the fits of ceiling-fits.csv: of each start the area under the curve, and accuracies in percent.

    Returns:
        A row a start: `auc`; `at_zero`, the accuracy of the ratio's own threshold, with the 95 % bootstrap interval
        over people `low` and `high`; `best`, of the best threshold, which flatters; `genuine` and `impostor`, numbers
        of pairs.
    """
    rows = {}

    def at_zero(decided: np.ndarray, same: np.ndarray, weight: np.ndarray) -> float:
        wanted = np.where(same, decided, ~decided)
        return 50 * float(sum(np.average(wanted[kind], weights=weight[kind]) for kind in (same, ~same)))

    for start, part in table.groupby("start"):
        same = part["same"].to_numpy(bool)
        curve = roc(part["log_ratio"], same)
        decided, rng, drawn = part["log_ratio"].to_numpy() > 0, np.random.default_rng(0), []
        sides = [pd.MultiIndex.from_frame(part[["world", one]]).factorize()[0] for one in ("left", "right")]
        count = 1 + max(map(max, sides))
        for _ in range(1000):  # a pair counts as often as both of its people are drawn, a genuine one as its person
            times = rng.multinomial(count, np.full(count, 1 / count))
            weight = np.where(same, times[sides[0]], times[sides[0]] * times[sides[1]])
            if weight[~same].any():  # not one person alone
                drawn.append(at_zero(decided, same, weight))
        low, high = np.quantile(drawn, (0.025, 0.975))
        rows[start] = {
            "auc": float(np.trapezoid(curve.tar, curve.far)),
            "at_zero": at_zero(decided, same, np.ones(len(part))),
            "low": float(low),
            "high": float(high),
            "best": 50 * float((1 + curve.tar - curve.far).max()),
            "genuine": int(same.sum()),
            "impostor": int((~same).sum()),
        }
    return pd.DataFrame(rows).T


def ratios(ax: Axes, table: pd.DataFrame, reach: float = 60) -> Axes:
    """Draw a dot a pair: the logarithm of the likelihood ratio, of one person above and of two below, a row a start."""
    rng = np.random.default_rng(0)
    labels = []
    for start, part in table.groupby("start"):
        for same, colour, said in ((True, "#0072B2", "same person"), (False, "#D55E00", "two people")):
            x = part.loc[part["same"] == same, "log_ratio"].clip(-reach, reach)
            ax.plot(x, len(labels) + rng.uniform(-0.3, 0.3, len(x)), ".", color=colour, markersize=4, alpha=0.6)
            labels.append(f"from the {start}: {said}")
    ax.axvline(0, color=BLACK, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(labels)), labels)
    ax.set(xlabel="logarithm of the likelihood ratio (values beyond the axis at its ends)")
    return ax


def painted(image: ArrayLike, slopes: Tensor, known: ArrayLike, most: float = 0.8) -> np.ndarray:
    """Colour the parts of a face by how much of them is known.

    A pixel has the mean R^2 of the identity's numbers, each weighed by how much it changes this pixel; places that no
    number changes stay grey.

    Args:
        image: (S,S,3) uint8.
        slopes: (D,3,S,S), the image's derivatives by the identity.
        known: (D,) R^2; below zero counts as zero.
        most: The R^2 at the upper end of the colours.

    Returns:
        (S,S,3) uint8.
    """
    energy = slopes.square().sum(1).numpy()
    total = energy.sum(0)
    value = np.tensordot(np.clip(np.asarray(known, np.float64), 0, 1), energy, 1) / np.maximum(total, 1e-12)
    strength = 0.8 * np.clip(np.sqrt(total / np.quantile(total, 0.9)), 0, 1)[..., None]
    grey = np.asarray(image, np.float64).mean(2, keepdims=True) / 255
    colour = colormaps["viridis"](value / most)[..., :3]
    return (255 * ((1 - strength) * grey + strength * colour)).round().astype(np.uint8)


def numbers(ax: Axes, bound: pd.Series, lines: Mapping[str, pd.Series], count: int = 24) -> Axes:
    """Draw what is known of each number: a grey bar to its bound, a mark a network, the best visible first.

    Args:
        ax: Where to draw.
        bound: R^2 by name.
        lines: {network: R^2 by name}.
        count: How many numbers.
    """
    names = list(bound.sort_values(ascending=False).index[:count])
    ax.barh(range(len(names)), bound[names], color="#dcdcdc", label="the pixels' bound")
    for label, values in lines.items():
        colour, marker = look(label)
        ax.plot(values[names].clip(lower=0), range(len(names)), marker, color=colour, label=named(label), markersize=5)
    ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
    ax.set(xlabel="R²", xlim=(0, 1), ylim=(len(names) - 0.4, -0.6))
    ax.grid(False, axis="y")
    return ax


def spectrum(table: pd.DataFrame) -> pd.DataFrame:
    """Say what small pixels cost and each method gains, by how fine the things are that people differ in.

    Args:
        table: variations.csv.

    Returns:
        In points, a row a fineness and world, a column (kind, method): of each protocol the method minus no teacher at
        the smallest side; "cost" of "none": the sharp network on sharp images minus the student without a teacher on
        small ones. A world that lacks `none` has no row.
    """
    rows = table[(table["varied"] == "spectrum") & (table["status"] == "ok")]
    values = rows.assign(network=rows["method"].where(rows["role"] == "student", "teacher")).pivot_table(
        index=["at", "world"], columns=["endpoint", "side", "network"], values="value"
    )
    hard, sharp = rows["side"].min(), rows["side"].max()
    taught = [entrant.name for entrant in MAIN if entrant.name != "none"]
    columns = [(kind, hard, name) for kind in PROTOCOLS for name in ("none", *taught)]
    values = values.reindex(columns=[*columns, ("lr-lr", sharp, "teacher")])
    found = {(k, name): values[k, hard, name] - values[k, hard, "none"] for k in PROTOCOLS for name in taught}
    found["cost", "none"] = values["lr-lr", sharp, "teacher"] - values["lr-lr", hard, "none"]
    return 100 * pd.DataFrame(found).dropna(how="all")


def along(found: pd.DataFrame, photographs: float) -> plt.Figure:
    """Draw `spectrum`: what small pixels cost, of photographs too, then each protocol's gains; small marks: worlds."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4))
    axes[0].axhline(photographs, color=GREY, linestyle=":", label="photographs")
    titles = {"cost": "what small pixels cost"} | PROTOCOLS
    for ax, (kind, title) in zip(axes, titles.items(), strict=True):
        ax.axhline(0, color=BLACK, linestyle="--", linewidth=1)
        for name in found[kind]:
            each, (colour, marker) = found[kind, name].dropna(), look(name)
            mean = each.groupby("at").mean()
            ax.plot(each.index.get_level_values("at"), each, marker, color=colour, markersize=3.5, alpha=0.55)
            ax.plot(mean.index, mean, marker=marker, color=colour, label=named(name))
        ax.set(title=title, xticks=[0, 0.5, 1], xticklabels=["coarse", "even", "fine"], xlabel="people differ in")
    axes[0].set_ylabel("points")
    axes[1].set_ylabel("points over no teacher")
    return figure
