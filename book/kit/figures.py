"""Draw every figure of the book: arrays + Axes -> Axes, in one style, safe for colour-blind readers.

Colours are those of Okabe and Ito without yellow, which is too pale for a line. A method has one colour and one marker
on all pages, so that it can be recognised without colour. Call `display.style()` once, draw, then `display.show(figure,
alt=...)`.
"""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from kit.display import BLACK, BLUE, ORANGE, SEQUENTIAL, Look, look, looks, named
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import ArrayLike
from scipy import stats

from lrkd.errors import DataError


def image_grid(
    ax: Axes,
    images: ArrayLike,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    gap: int | None = None,
) -> Axes:
    """Draw images as a grid, with labels at the left and on top.

    Args:
        ax: Where to draw.
        images: (R,C,H,W,3), uint8 or float in [0,1].
        rows: R labels.
        columns: C labels.
        gap: Pixels between images; None: a twentieth of an image.

    Raises:
        DataError: The images have another shape, or there are more or fewer labels.
    """
    x = np.asarray(images)
    if x.ndim != 5 or x.shape[-1] != 3:
        raise DataError(f"images: shape {x.shape} is not (rows, columns, height, width, 3)")
    x = x / 255 if x.dtype == np.uint8 else x.clip(0, 1)
    r, c, h, w, _ = x.shape
    for name, labels, count in (("rows", rows, r), ("columns", columns, c)):
        if labels is not None and len(labels) != count:
            raise DataError(f"{name}: {len(labels)} labels for {count} {name} of images")
    gap = max(1, h // 20) if gap is None else gap
    sheet = np.zeros((r, h + gap, c, w + gap, 4))  # between images the page is seen
    sheet[:, :h, :, :w, :3], sheet[:, :h, :, :w, 3] = x.transpose(0, 2, 1, 3, 4), 1
    ax.imshow(sheet.reshape(r * (h + gap), c * (w + gap), 4)[: -gap or None, : -gap or None])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    ax.set_yticks(np.arange(r) * (h + gap) + (h - 1) / 2 if rows else [], list(map(named, rows or [])))
    ax.set_xticks(np.arange(c) * (w + gap) + (w - 1) / 2 if columns else [], list(map(named, columns or [])))
    return ax


def legend(ax: Axes, columns: int = 3) -> None:
    """Name the lines of all axes of a figure above them, each label once: no legend lies over data."""
    figure = ax.figure
    for old in figure.legends[:]:
        old.remove()
    found = {}
    for one in figure.axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found, loc="outside upper left", ncols=columns, fontsize=9)


def curves(
    ax: Axes,
    x: ArrayLike | Mapping[str, ArrayLike],
    lines: Mapping[str, ArrayLike],
    xlabel: str = "",
    ylabel: str = "",
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    styles: Mapping[str, Look] | None = None,
    percent: bool = False,
) -> Axes:
    """Draw lines; a label that is a method's name has its colour.

    Args:
        ax: Where to draw.
        x: (n,) for all lines, or {label: (n,)}; up to 20 points have markers.
        lines: {label: (n,) y}.
        xlabel: Below.
        ylabel: At the left.
        bands: {label: (low, high)}.
        styles: Looks of labels that are not methods.
        percent: The values are fractions, shown in percent.
    """
    own = looks(lines) | dict(styles or {})
    for label, y in lines.items():
        at = np.asarray(x[label] if isinstance(x, Mapping) else x)
        marker = own[label].marker if len(at) <= 20 else ""
        ax.plot(at, np.asarray(y), color=own[label].colour, marker=marker, label=named(label))
        if bands and label in bands:
            low, high = bands[label]
            ax.fill_between(at, np.asarray(low), np.asarray(high), color=own[label].colour, alpha=0.18, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    if len(lines) > 1:
        legend(ax)
    return ax


def roc(ax: Axes, lines: Mapping[str, tuple[ArrayLike, ArrayLike]], styles: Mapping[str, Look] | None = None) -> Axes:
    """Draw receiver operating characteristics over a logarithmic axis of false accepts.

    Args:
        ax: Where to draw.
        lines: {label: (FAR, TAR)}, rising fractions: impostor pairs accepted, genuine pairs accepted.
        styles: Looks of labels that are not methods.
    """
    own = looks(lines) | dict(styles or {})
    least = 1.0
    for label, (far, tar) in lines.items():
        false, true = np.asarray(far, dtype=np.float64), np.asarray(tar, dtype=np.float64)
        seen = false > 0
        least = min(least, false[seen].min(initial=1.0))
        ax.step(false[seen], true[seen], where="post", color=own[label].colour, label=named(label))
    ax.set_xscale("log")
    ax.set(
        xlim=(least, 1),
        ylim=(0, 1.01),
        xlabel="false accepts, % of impostor pairs",
        ylabel="true accepts, % of genuine pairs",
    )
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    if len(lines) > 1:
        legend(ax)
    return ax


def score_histogram(
    ax: Axes,
    edges: ArrayLike,
    genuine: ArrayLike,
    impostor: ArrayLike,
    threshold: float | None = None,
    xlabel: str = "cosine of the two embeddings",
) -> Axes:
    """Draw the scores of genuine and impostor pairs; where both are, a threshold errs.

    Args:
        ax: Where to draw.
        edges: (n+1,) of the bins.
        genuine: (n,) counts, drawn as percent of the pairs of their kind.
        impostor: (n,) counts, likewise.
        threshold: A dashed line.
        xlabel: Below.
    """
    import seaborn as sns  # takes a second, and most pages need none

    at = np.asarray(edges, dtype=np.float64)
    for name, counts, colour in (("same person", genuine, BLUE), ("different people", impostor, ORANGE)):
        share = np.asarray(counts, dtype=np.float64)
        share = 100 * share / max(share.sum(), 1)
        bars = {"x": (at[:-1] + at[1:]) / 2, "weights": share, "bins": at.tolist(), "element": "step"}
        sns.histplot(**bars, alpha=0.35, color=colour, linewidth=1.5, label=name, ax=ax)
    if threshold is not None:
        ax.axvline(threshold, color=BLACK, linestyle="--", linewidth=1.2, label=f"threshold {threshold:.2f}")
    ax.set(xlabel=xlabel, ylabel="% of the pairs of a kind", ylim=(0, None))
    legend(ax)
    return ax


def forest(
    ax: Axes,
    labels: Sequence[str],
    estimates: ArrayLike,
    lows: ArrayLike,
    highs: ArrayLike,
    reference: float | None = 0,
    n: Sequence[int] | int | None = None,
    xlabel: str = "",
    styles: Sequence[Look] | None = None,
    fmt: str = "{:+.1f}",
) -> Axes:
    """Draw an estimate and its interval a label, first on top, with the numbers at the right.

    Args:
        ax: Where to draw.
        labels: n of them.
        estimates: (n,).
        lows: (n,); an interval with an end that is not finite (of one unit) is left out.
        highs: (n,).
        reference: Where a dashed line is drawn.
        n: Units behind each.
        xlabel: Below.
        styles: A look a label, where labels are not methods.
        fmt: Of the numbers.
    """
    middle, low, high = (np.asarray(v, dtype=np.float64) for v in (estimates, lows, highs))
    own = list(styles) if styles is not None else [look(label) for label in labels]
    for i, (m, a, b) in enumerate(zip(middle, low, high, strict=True)):
        ax.plot([a, b], [i, i], color=own[i].colour, linewidth=2.2, solid_capstyle="butt")
        ax.plot(m, i, own[i].marker, color=own[i].colour, markersize=7, markeredgecolor="white", markeredgewidth=0.7)
        count = "" if n is None else f"  n={n if isinstance(n, int) else n[i]}"
        told = [fmt.format(value) for value in (m, a, b)]  # an end "-0.0" says on which side of zero it is
        told[0] = told[0] if told[0].strip("+-0.") else fmt.format(0.0)
        interval = f" [{told[1]}, {told[2]}]" if np.isfinite([a, b]).all() else ""
        text = f"{told[0]}{interval}{count}".replace("-", "−")
        ax.annotate(text, (1.02, i), xycoords=ax.get_yaxis_transform(), va="center", fontsize=9)
    if reference is not None:
        ax.axvline(reference, color=BLACK, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(labels)), list(map(named, labels)))
    ax.set(xlabel=xlabel, ylim=(len(labels) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    return ax


def forests(
    tables: Mapping[str, pd.DataFrame],
    xlabel: str,
    *,
    band: float | Mapping[str, float] = 0,
    styles: Mapping[str, Look] | None = None,
    width: float = 7.4,
    line: float = 0.34,
    marked: Callable[[str], bool] = lambda label: False,
) -> Figure:
    """Draw a forest for each table, one below the other; several have their names and their own axes.

    Args:
        tables: `mean, low, high` (fractions, shown in percentage points) and `n`, a row a label of the index, in order.
        xlabel: Below.
        band: Half the width of a grey one around zero, in points; of each table.
        styles: Looks of labels that are not methods.
        width: Inches.
        line: Inches a label.
        marked: Which labels get a dagger.
    """
    heights = [0.6 + line * max(len(table), 1) for table in tables.values()]
    size = (width, sum(heights))
    figure, axes = plt.subplots(len(tables), 1, squeeze=False, figsize=size, height_ratios=heights)
    for ax, (name, table) in zip(axes[:, 0], tables.items(), strict=True):
        if half := band.get(name, 0) if isinstance(band, Mapping) else band:
            ax.axvspan(-half, half, color="#ededed", zorder=0)
        mean, low, high = 100 * table[["mean", "low", "high"]].to_numpy(np.float64).T
        labels = list(map(str, table.index))
        own = [(styles or {}).get(label, look(label)) for label in labels]
        named = [label + " †" * marked(label) for label in labels]
        forest(ax, named, mean, low, high, n=[int(count) for count in table["n"]], styles=own)
        ax.set_title(name if len(tables) > 1 else "")
    axes[-1, 0].set_xlabel(xlabel)
    return figure


def verdict(ax: Axes, differences: pd.DataFrame, titles: Mapping[str, str] | None = None) -> Axes:
    """Draw the book's answer: each method's accuracy minus that without distillation, greatest first.

    Args:
        ax: Where to draw.
        differences: `method, mean, low, high` (fractions, shown in percentage points) and `n` (seeds), a row a method,
            as `lrkd.evaluation.statistics.paired_differences` gives them at one side.
        titles: A method's name in words.
    """
    rows = differences.sort_values("mean", ascending=False)
    names = list(rows["method"])
    mean, low, high = 100 * rows[["mean", "low", "high"]].to_numpy(np.float64).T
    return forest(
        ax,
        [(titles or {}).get(name, name) for name in names],
        mean,
        low,
        high,
        n=[int(count) for count in rows["n"]],
        xlabel="test accuracy minus that without distillation, percentage points",
        styles=[look(name) for name in names],
    )


def by_side(
    ax: Axes,
    sides: ArrayLike,
    lines: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    styles: Mapping[str, Look] | None = None,
    ylabel: str = "test accuracy, %",
    xlabel: str = "side of the LR image, pixels",
    percent: bool = True,
) -> Axes:
    """Draw values with intervals against the side of the image, on a log2 axis.

    Args:
        ax: Where to draw.
        sides: (n,) pixels.
        lines: {label: ((n,) mean, low, high)}, NaN where a label has no value; labels are a little apart, so that
            intervals do not hide others.
        styles: Looks of labels that are not methods.
        ylabel: At the left.
        xlabel: Below.
        percent: The values are fractions, shown in percent.
    """
    at, own = np.asarray(sides, dtype=np.float64), looks(lines) | dict(styles or {})
    for i, (label, values) in enumerate(lines.items()):
        mean, low, high = (np.asarray(v, dtype=np.float64) for v in values)
        seen = np.isfinite(mean)
        x = at[seen] * 2 ** (0.04 * (i - (len(lines) - 1) / 2))
        reach = np.nan_to_num(np.stack([mean - low, high - mean])[:, seen]).clip(0)
        colour, marker = own[label]
        ax.errorbar(x, mean[seen], reach, color=colour, marker=marker, capsize=2.5, linewidth=1.5, label=named(label))
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted(set(at.tolist()))))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(lines) > 1:
        legend(ax)
    return ax


def seeds(
    ax: Axes,
    values: Mapping[str, ArrayLike],
    styles: Mapping[str, Look] | None = None,
    xlabel: str = "test accuracy, %",
    percent: bool = True,
    level: float = 0.95,
) -> Axes:
    """Draw a dot a seed, a bar at the mean, and its t interval where there is more than one; first label on top.

    Args:
        ax: Where to draw.
        values: {label: (n,)}.
        styles: Looks of labels that are not methods.
        xlabel: Below.
        percent: The values are fractions, shown in percent.
        level: Of the interval.
    """
    own = looks(values) | dict(styles or {})
    for i, (label, given) in enumerate(values.items()):
        x, (colour, marker) = np.asarray(given, dtype=np.float64), own[label]
        if len(x) > 1:
            error = stats.sem(x)
            reach = stats.t.ppf((1 + level) / 2, len(x) - 1) * error
            ax.plot(
                [x.mean() - reach, x.mean() + reach],
                [i, i],
                color=colour,
                linewidth=7,
                alpha=0.25,
                solid_capstyle="butt",
            )
        ax.plot([x.mean()] * 2, [i - 0.25, i + 0.25], color=colour, linewidth=2)
        ax.plot(x, np.full(len(x), i), marker, color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.5)
    ax.set_yticks(range(len(values)), list(map(named, values)))
    ax.set(xlabel=xlabel, ylim=(len(values) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    if percent:
        ax.xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    return ax


def matrix(
    ax: Axes,
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    fmt: str = "{:.1f}",
    label: str = "",
    low: float | None = None,
    high: float | None = None,
) -> Axes:
    """Draw a heat map with the number in each cell.

    Args:
        ax: Where to draw.
        values: (R,C); NaN stays empty.
        rows: R labels.
        columns: C labels.
        fmt: Of the numbers.
        label: Of a colour bar; none is drawn without.
        low: Lower end of the colour scale; None: the least value.
        high: Upper end; None: the greatest.

    Raises:
        DataError: The values have another shape than the labels.
    """
    import seaborn as sns

    x = np.asarray(values, dtype=np.float64)
    if x.shape != (len(rows), len(columns)):
        raise DataError(f"values: shape {x.shape} is not ({len(rows)} rows, {len(columns)} columns)")
    told = [[fmt.format(value) for value in row] for row in x]
    sns.heatmap(
        x,
        annot=told,
        fmt="",
        mask=~np.isfinite(x),
        cmap=SEQUENTIAL,
        vmin=low,
        vmax=high,
        cbar=bool(label),
        cbar_kws={"label": label},
        xticklabels=list(map(named, columns)),
        yticklabels=list(map(named, rows)),
        ax=ax,
    )
    ax.tick_params(length=0, rotation=0)
    ax.grid(False)
    return ax
