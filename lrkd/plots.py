"""Every figure of the book as arrays + Axes -> Axes, in one style, safe for colour-blind readers.

Colours are Okabe and Ito's (their yellow left out: too pale for a line); a method has one colour and one marker on all
pages, so that it is told apart without colour too. `style()` once, then draw, then `show(fig, alt=...)`.
"""

import base64
import html
import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import ArrayLike
from PIL import Image
from scipy import stats

from lrkd.errors import DataError

BLACK, GREY = "#000000", "#7a7a7a"
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SEQUENTIAL = "cividis"


class Look(NamedTuple):
    """How a method is drawn."""

    colour: str
    marker: str


LOOKS: dict[str, Look] = {
    "teacher": Look(GREY, "*"),
    "none": Look(BLACK, "o"),
    "fskd": Look(BLUE, "o"),
    "fskd-cross": Look(BLUE, "s"),
    "fskd-l1": Look(SKY, "v"),
    "fskd-l2": Look(SKY, "^"),
    "fskd-unit-l2": Look(SKY, "D"),
    "fitnet": Look(SKY, "s"),
    "askd": Look(VERMILLION, "o"),
    "askd-centred": Look(VERMILLION, "D"),
    "askd-constant": Look(VERMILLION, "s"),
    "at": Look(ORANGE, "^"),
    "embedding-cos": Look(GREEN, "s"),
    "aird": Look(GREEN, "^"),
    "aird-instance": Look(GREEN, "8"),
    "aird-relation": Look(GREEN, "v"),
    "aird-rkd": Look(PURPLE, "v"),
    "logit-kd": Look(PURPLE, "o"),
    "rkd": Look(PURPLE, "^"),
    "sp": Look(PURPLE, "D"),
    "random-teacher": Look(GREY, "X"),
    "shuffled-teacher": Look(GREY, "P"),
    "skd": Look(BLUE, "*"),
    "skd-all": Look(GREEN, "o"),
    "skd-top": Look(ORANGE, "v"),
    "skd-random": Look(GREY, "D"),
    "skd-none": Look(BLACK, "X"),
}

STYLE: dict[str, Any] = {
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "legend.frameon": False,
    "image.cmap": SEQUENTIAL,
    "image.interpolation": "auto",  # plain pixels where enlarged, smoothed where an image has more than the page
}


def style() -> None:
    """Set the book's style for all figures that follow."""
    for key, value in STYLE.items():
        plt.rcParams[key] = value  # type: ignore[index]


def look(method: str) -> Look:
    """Colour and marker of a method, the same on every page; one that the study does not know is a purple square."""
    return LOOKS.get(method, Look(PURPLE, "s"))


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label: a method's own, and for other labels colours and markers in their order."""
    spare = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False)
    return {label: LOOKS[label] if label in LOOKS else Look(*next(spare)) for label in labels}


def _told(caption: str) -> str:
    """A caption as HTML, in which each file of results is a link to it: the book carries them beside its pages."""
    return re.sub(r"book/results/([\w-]+\.\w+)", r'<a href="results/\1">\g<0></a>', html.escape(caption))


_READABLE = 540  # pixels: narrower, the text in a figure of a page's width cannot be read


class Shown:
    """A figure as a page or JupyterLab shows it: a WebP image with alt text, and its caption."""

    def __init__(self, image: bytes, alt: str, caption: str, width: int) -> None:
        self.image, self.alt, self.caption, self.width = image, alt, caption, width

    def _repr_html_(self) -> str:
        below = f"<figcaption>{_told(self.caption)}</figcaption>" if self.caption else ""
        least = min(self.width, _READABLE)  # on a phone a wide figure scrolls in its own box, by keys too
        return (
            '<figure style="margin:0"><div style="overflow-x:auto" tabindex="0">'
            f'<img alt="{html.escape(self.alt)}" '
            f'src="data:image/webp;base64,{base64.b64encode(self.image).decode()}" '
            f'style="width:100%;min-width:{least}px;max-width:{self.width}px;height:auto"></div>{below}</figure>'
        )

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def show(figure: Figure | Axes, alt: str, caption: str = "", dpi: int = 160) -> Shown:
    """The figure (or that of the axes) for a page, as the last line of a cell; the figure is closed.

    alt: what a reader who cannot see it has to know; caption: shown below (scale, n, interval). An inch is 100 pixels
    wide, or less where the page is narrower. Raises DataError without an alt text.
    """
    if not alt.strip():
        raise DataError("alt is empty: say what the figure shows to a reader who cannot see it")
    fig = figure if isinstance(figure, Figure) else figure.get_figure(root=True)
    assert fig is not None
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.05)
    plt.close(fig)
    with Image.open(file) as drawn:  # what lies beyond the figure's edge is kept
        width, image = drawn.width, _webp(drawn.convert("RGB"))
    return Shown(image, " ".join(alt.split()), caption, round(100 * width / dpi))


def _webp(image: Image.Image) -> bytes:
    """The shorter of the exact file, which it is for lines and text, and that of quality 90, for pictures of faces."""
    files = []
    for how in ({"lossless": True}, {"quality": 90}):
        image.save(file := io.BytesIO(), "WEBP", method=4, **how)
        files.append(file.getvalue())
    return min(files, key=len)


# plotly's own sliders and menus are drawings that no key reaches: each becomes an element of the browser. The library
# is asked for when a reader comes near. The picture is shown until the script has drawn, on paper, and for good where
# scripts are off or vendor/plotly.min.js is not beside the page.
_DRAW = """
(function () {
  var here = document.currentScript.parentElement, figure = SPEC, layout = figure.layout, lists = [];
  function library() {
    return window.lrkdPlotly = window.lrkdPlotly || new Promise(function (ready) {
      var script = document.createElement("script");
      script.src = "vendor/plotly.min.js";
      script.onload = ready;
      document.head.append(script);
    });
  }
  (layout.sliders || []).forEach(function (one) { lists.push([one, one.steps, "range"]); });
  (layout.updatemenus || []).forEach(function (one) { lists.push([one, one.buttons, "select"]); });
  delete layout.sliders;
  delete layout.updatemenus;
  function control(drawing, one, steps, kind) {
    var label = document.createElement("label"), said = document.createElement("output");
    var input = document.createElement(kind === "range" ? "input" : "select");
    label.style.cssText = "display:flex;gap:.6em;align-items:center;margin:.2em 0";
    label.append((one.currentvalue && one.currentvalue.prefix) || one.name || "", input);
    if (kind === "range") {
      Object.assign(input, {type: "range", min: 0, max: steps.length - 1, step: 1});
      input.style.flex = "0 1 22em";
      label.append(said);
    } else steps.forEach(function (step, i) { input.append(new Option(step.label, i)); });
    input.value = one.active || 0;
    function tell() {
      said.textContent = steps[input.value].label;
      if (kind === "range") input.setAttribute("aria-valuetext", said.textContent);  // a select says its option itself
    }
    input.addEventListener("input", function () {
      var step = steps[input.value];
      window.Plotly[step.method].apply(null, [drawing].concat(step.args));
      tell();
    });
    tell();
    return label;
  }
  function draw() {
    var drawing = here.querySelector(".drawing"), panel = here.querySelector(".controls");
    drawing.hidden = false;
    var config = {responsive: true, displayModeBar: false};
    return window.Plotly.newPlot(drawing, figure.data, layout, config).then(function () {
      lists.forEach(function (list) { panel.append(control(drawing, list[0], list[1], list[2])); });
      here.querySelectorAll(".static").forEach(function (one) { one.hidden = true; });
    });
  }
  var drawn, near = new IntersectionObserver(function (seen) {
    if (seen.some(function (one) { return one.isIntersecting; })) here.lrkdDraw();
  }, {rootMargin: "600px"});
  here.lrkdDraw = function () {
    near.disconnect();
    return drawn = drawn || library().then(draw);
  };
  near.observe(here);
})();
"""


class Interactive(NamedTuple):
    """A plotly figure as a page or JupyterLab shows it, with a picture for where it cannot move, and its caption."""

    spec: str  # JSON
    alt: str
    caption: str
    still: Shown | None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        below = f"<figcaption>{_told(self.caption)}</figcaption>" if self.caption else ""
        still = f'<div class="static">{self.still._repr_html_()}</div>' if self.still else ""
        script = _DRAW.replace("SPEC", self.spec.replace("<", "\\u003c"))
        page = (
            f'<figure style="margin:0"><div class="controls"></div>'
            f'<div class="drawing" role="img" aria-label="{html.escape(self.alt)}" hidden></div>{still}{below}'
            f"<script>{script}</script></figure>"
        )
        # JupyterLab has a renderer of its own for the second; a built page takes the first.
        return {"text/html": page, "application/vnd.plotly.v1+json": json.loads(self.spec), "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def interactive(figure: Any, alt: str, caption: str = "", static: Figure | Axes | None = None) -> Interactive:
    """A plotly figure that a reader can move with no kernel, for a page, as the last line of a cell.

    Sliders and drop-down menus of the figure become the browser's own, which keys move too; their steps may restyle,
    relayout or update. alt: what a reader who cannot see it has to know; static: a matplotlib figure of its first
    state, which stands there until the script has drawn, and for good without scripts; it is closed. plotly.js comes
    from vendor/plotly.min.js beside the page. Raises DataError without an alt text.
    """
    if not alt.strip():
        raise DataError("alt is empty: say what the figure shows to a reader who cannot see it")
    said = " ".join(alt.split())
    return Interactive(figure.to_json(), said, caption, None if static is None else show(static, said))


def moving_forest(
    labels: Sequence[str],
    steps: Mapping[str, tuple[ArrayLike, ArrayLike]],
    start: int = 0,
    name: str = "",
    xlabel: str = "",
    reach: float | None = None,
) -> Any:
    """`forest` with a slider, for `interactive`: {a step's label: ((n,) estimates, (n,) half widths)} of n labels.

    start: the step that is shown first; name: what the slider moves. reach: of the axis to both sides of zero; None:
    what suits the narrower half of the steps.
    """
    shown = [(np.asarray(x, np.float64).tolist(), np.asarray(half, np.float64).tolist()) for x, half in steps.values()]
    ends = sorted(float(np.max(np.abs(x) + np.asarray(half), initial=0.0)) for x, half in map(np.asarray, shown))
    moves = [
        {"method": "restyle", "label": label, "args": [{"x": [x], "error_x.array": [half]}]}
        for label, (x, half) in zip(steps, shown, strict=True)
    ]
    own = 1.3 * ends[len(ends) // 2] or 1.0
    return _slid(labels, [shown[start]], 0, [(start, name, moves)], own if reach is None else reach, xlabel)


def moving_forests(
    labels: Sequence[str],
    steps: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    names: tuple[str, str],
    start: tuple[int, int] = (0, 0),
    xlabel: str = "",
) -> Any:
    """`moving_forest` with two sliders, named `names`: {a step's label: {a step's of the other: (estimates, half)}}.

    Every step of the first has the same steps of the second. Both start at `start`.
    """
    first, inner = list(steps), list(next(iter(steps.values())))

    def at(label: str, place: int) -> list[list[float]]:
        return [np.asarray(steps[one][label][place], np.float64).tolist() for one in first]

    shown = list(zip(at(inner[start[1]], 0), at(inner[start[1]], 1), strict=True))
    seen = [[k == place for k in range(len(first))] for place in range(len(first))]
    moves = (
        [{"method": "restyle", "label": one, "args": [{"visible": on}]} for one, on in zip(first, seen, strict=True)],
        [{"method": "restyle", "label": b, "args": [{"x": at(b, 0), "error_x.array": at(b, 1)}]} for b in inner],
    )
    ends = np.abs([at(b, 0) for b in inner]) + np.array([at(b, 1) for b in inner])
    reach = 1.1 * float(np.nanquantile(ends, 0.9)) if np.isfinite(ends).any() else 1.0
    return _slid(labels, shown, start[0], list(zip(start, names, moves, strict=True)), reach, xlabel)


def _slid(
    labels: Sequence[str],
    shown: Sequence[tuple[list[float], list[float]]],
    visible: int,
    sliders: Sequence[tuple[int, str, list[dict[str, Any]]]],
    reach: float,
    xlabel: str,
) -> Any:
    """A forest plot of traces (estimates, half widths), one of them visible, with sliders (place, name, moves)."""
    import plotly.graph_objects as go

    traces = [
        go.Scatter(
            x=x,
            y=list(labels),
            error_x={"type": "data", "array": half, "thickness": 3, "color": BLUE},
            mode="markers",
            marker={"size": 9, "color": BLUE},
            visible=k == visible,
        )
        for k, (x, half) in enumerate(shown)
    ]
    layout = go.Layout(
        sliders=[{"active": place, "currentvalue": {"prefix": name}, "steps": moves} for place, name, moves in sliders],
        height=110 + 36 * len(labels),
        template="simple_white",
        showlegend=False,
        margin={"l": 10, "r": 10, "t": 10, "b": 50},
    )
    figure = go.Figure(traces, layout).update_yaxes(autorange="reversed", automargin=True)
    return figure.update_xaxes(range=[-reach, reach], zeroline=True, showgrid=True, title=xlabel)


def moving_pictures(
    steps: Mapping[str, tuple[ArrayLike, ArrayLike]], titles: tuple[str, str], start: int = 0, name: str = ""
) -> Any:
    """A picture, and a map of values below it, that a slider changes, for `interactive`.

    {a step's label: ((S,S,3) picture in [0,1], (s,s) values of at least zero)}: a map of fewer pixels is drawn as large
    as the picture, and each is shown as a share of its own maximum. start: the step that is shown first; name: what the
    slider moves.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    shown = []
    for image, values in steps.values():
        pixels, heat = (255 * np.asarray(image, np.float64)).round().astype(int), np.asarray(values, np.float64)
        near = np.arange(len(pixels)) * len(heat) // len(pixels)
        share = heat / (heat.max(initial=0.0) or 1.0)
        shown.append([pixels.tolist(), share[near][:, near].round(3).tolist()])
    moves = [
        {"method": "restyle", "label": label, "args": [{"z": both}, [0, 1]]}
        for label, both in zip(steps, shown, strict=True)
    ]
    figure = make_subplots(2, 1, subplot_titles=titles, vertical_spacing=0.08)
    figure.add_trace(go.Image(z=shown[start][0], hoverinfo="skip"), 1, 1)
    bar = {"title": "share of the<br>maximum", "len": 0.45, "y": 0.22}
    figure.add_trace(go.Heatmap(z=shown[start][1], zmin=0, zmax=1, colorscale="Cividis", colorbar=bar), 2, 1)
    figure.update_layout(
        sliders=[{"active": start, "currentvalue": {"prefix": name}, "steps": moves}],
        height=700,
        template="simple_white",
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
    )
    figure.update_xaxes(visible=False, constrain="domain").update_yaxes(visible=False)
    return figure.update_yaxes(autorange="reversed", scaleanchor="x2", constrain="domain", row=2)


def moving_threshold(edges: ArrayLike, genuine: ArrayLike, impostor: ArrayLike, start: int) -> Any:
    """Scores, and the ROC below, with a threshold that a slider moves, for `interactive`.

    (n+1,) edges, (n,) counts of pairs twice, as in `score_histogram`; the threshold stands at an edge, first at that
    of index `start`, and pairs above it pass. Rates are in percent of the pairs of a kind.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    at = np.asarray(edges, np.float64).round(6).tolist()
    shares = [100 * np.asarray(counts, np.float64) / max(np.sum(counts), 1) for counts in (genuine, impostor)]
    true, false = (np.append(share[::-1].cumsum()[::-1], 0.0).round(6).tolist() for share in shares)
    top = max(float(share.max(initial=0.0)) for share in shares)
    moves = [
        {
            "method": "restyle",
            "label": f"{cut:.2f}: {tar:.1f} % of the same person pass, {far:.1f} % of different people",
            "args": [{"x": [[cut, cut], [far]], "y": [[0, top], [tar]]}, [2, 4]],
        }
        for cut, tar, far in zip(at, true, false, strict=True)
    ]
    figure = make_subplots(2, 1, vertical_spacing=0.2)
    middle = [(left + right) / 2 for left, right in itertools.pairwise(at)]
    for name, share, colour in zip(("same person", "different people"), shares, (BLUE, ORANGE), strict=True):
        bars = {"color": colour, "opacity": 0.6}
        figure.add_trace(go.Bar(x=middle, y=share.round(4).tolist(), name=name, marker=bars), 1, 1)
    line, dot = ({"color": BLACK, "dash": "dash"}, {"color": BLACK, "size": 11})
    figure.add_trace(go.Scatter(x=[at[start]] * 2, y=[0, top], mode="lines", name="threshold", line=line), 1, 1)
    figure.add_trace(go.Scatter(x=false, y=true, mode="lines", line={"color": BLUE}, showlegend=False), 2, 1)
    figure.add_trace(go.Scatter(x=[false[start]], y=[true[start]], marker=dot, showlegend=False), 2, 1)
    figure.update_layout(
        sliders=[{"active": start, "currentvalue": {"prefix": "threshold"}, "steps": moves}],
        height=640,
        barmode="overlay",
        bargap=0,
        template="simple_white",
        margin={"l": 10, "r": 10, "t": 10, "b": 50},
        legend={"orientation": "h", "y": 1.08},
    )
    figure.update_xaxes(title="score", row=1).update_yaxes(title="% of the pairs of a kind", row=1)
    figure.update_xaxes(title="false accepts, % of impostor pairs", range=[-2, 102], row=2)
    return figure.update_yaxes(title="true accepts, % of genuine pairs", range=[-2, 102], row=2)


class Table(NamedTuple):
    """A table as a page or JupyterLab shows it, with its caption below."""

    frame: pd.DataFrame
    caption: str
    sides: tuple[str, ...]  # to which each column is set

    def _repr_html_(self) -> str:
        def row(cells: Iterable[Any], kind: str) -> str:
            scope = ' scope="col"' if kind == "th" else ""
            marks = (f'<{kind}{scope} style="text-align:{side};padding:2px 9px">' for side in self.sides)
            told = (f"{mark}{_told(str(cell))}</{kind}>" for mark, cell in zip(marks, cells, strict=True))
            return f"<tr>{''.join(told)}</tr>"

        body = "".join(row(cells, "td") for cells in self.frame.itertuples(index=False))
        below = f"<p><em>{_told(self.caption)}</em></p>" if self.caption else ""
        head = row(self.frame.columns, "th")
        # Formulas in \( \) are set; what is wider than the page scrolls in its own box, by keys too.
        table = f'<table class="dataframe mathjax_process"><thead>{head}</thead><tbody>{body}</tbody></table>'
        return f'<div style="overflow-x:auto" tabindex="0">{table}</div>{below}'

    def __repr__(self) -> str:
        return self.frame.to_string(index=False)


def table(frame: pd.DataFrame, formats: Mapping[str, str] | str = "{:.1f}", caption: str = "") -> Table:
    """The frame for a page, its named index as first columns: floats as `formats` says (for all, or by column name).

    caption: shown below (units, scale, n, interval). A value that is missing is a dash.
    """
    shown = frame.reset_index() if any(name is not None for name in frame.index.names) else frame.copy()
    sides = tuple("right" if pd.api.types.is_numeric_dtype(kind) else "left" for kind in shown.dtypes)
    for name in shown.columns:
        if pd.api.types.is_float_dtype(shown[name]):
            form = formats if isinstance(formats, str) else formats.get(name, "{:.1f}")
            shown[name] = [("–" if pd.isna(v) else form.format(v).replace("-", "−")) for v in shown[name]]
    return Table(shown, caption, sides)


def say(**values: Any) -> None:
    """Hand numbers and words to the text of a page, which shows them by `{glue:text}`; NumPy scalars become plain."""
    from myst_nb import glue  # only a page needs it

    for name, value in values.items():
        glue(name, np.asarray(value).item(), display=False)


def image_grid(
    ax: Axes,
    images: ArrayLike,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    gap: int | None = None,
) -> Axes:
    """(R,C,H,W,3) images, uint8 or float in [0,1], as a grid with labels at the left and on top.

    gap: pixels of white between images; None: a twentieth of an image.
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
    sheet = np.ones((r, h + gap, c, w + gap, 3))
    sheet[:, :h, :, :w] = x.transpose(0, 2, 1, 3, 4)
    ax.imshow(sheet.reshape(r * (h + gap), c * (w + gap), 3)[: -gap or None, : -gap or None])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    ax.set_yticks(np.arange(r) * (h + gap) + (h - 1) / 2 if rows else [], rows or [])
    ax.set_xticks(np.arange(c) * (w + gap) + (w - 1) / 2 if columns else [], columns or [])
    return ax


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
    """{label: (n,) y} over (n,) x, or over {label: (n,) x}; bands: {label: (low, high)}. A label that is a method's
    name has its colour. percent: y are fractions, shown in percent. Markers only where there are at most 20 points.
    """
    own = looks(lines) | dict(styles or {})
    for label, y in lines.items():
        at = np.asarray(x[label] if isinstance(x, Mapping) else x)
        marker = own[label].marker if len(at) <= 20 else ""
        ax.plot(at, np.asarray(y), color=own[label].colour, marker=marker, label=label)
        if bands and label in bands:
            low, high = bands[label]
            ax.fill_between(at, np.asarray(low), np.asarray(high), color=own[label].colour, alpha=0.18, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    if len(lines) > 1:
        ax.legend()
    return ax


def roc(ax: Axes, lines: Mapping[str, tuple[ArrayLike, ArrayLike]], styles: Mapping[str, Look] | None = None) -> Axes:
    """{label: (FAR, TAR)}, fractions, rising: share of impostor pairs accepted (log axis) against genuine accepted."""
    own = looks(lines) | dict(styles or {})
    least = 1.0
    for label, (far, tar) in lines.items():
        false, true = np.asarray(far, dtype=np.float64), np.asarray(tar, dtype=np.float64)
        seen = false > 0
        least = min(least, false[seen].min(initial=1.0))
        ax.step(false[seen], true[seen], where="post", color=own[label].colour, label=label)
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
    ax.legend(loc="lower right")
    return ax


def score_histogram(
    ax: Axes,
    edges: ArrayLike,
    genuine: ArrayLike,
    impostor: ArrayLike,
    threshold: float | None = None,
    xlabel: str = "cosine of the two embeddings",
) -> Axes:
    """(n+1,) edges, (n,) counts twice, drawn as percent of the pairs of a kind; where both lie, a threshold errs."""
    at = np.asarray(edges, dtype=np.float64)
    for name, counts, colour in (("same person", genuine, BLUE), ("different people", impostor, ORANGE)):
        share = np.asarray(counts, dtype=np.float64)
        share = 100 * share / max(share.sum(), 1)
        ax.stairs(share, at, fill=True, alpha=0.35, color=colour, label=name)
        ax.stairs(share, at, color=colour, linewidth=1.5)
    if threshold is not None:
        ax.axvline(threshold, color=BLACK, linestyle="--", linewidth=1.2, label=f"threshold {threshold:.2f}")
    ax.set(xlabel=xlabel, ylabel="% of the pairs of a kind", ylim=(0, None))
    ax.legend()
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
    """One line a label, first on top: (n,) estimates with their (n,) lows and highs, and the numbers at the right.

    reference: where a dashed line stands; n: units behind each; styles: a look a label, where labels are no methods. A
    low or high that is not finite (of one unit) leaves the interval out.
    """
    middle, low, high = (np.asarray(v, dtype=np.float64) for v in (estimates, lows, highs))
    own = list(styles) if styles is not None else [look(label) for label in labels]
    for i, (m, a, b) in enumerate(zip(middle, low, high, strict=True)):
        ax.plot([a, b], [i, i], color=own[i].colour, linewidth=2.2, solid_capstyle="butt")
        ax.plot(m, i, own[i].marker, color=own[i].colour, markersize=7, markeredgecolor="white", markeredgewidth=0.7)
        count = "" if n is None else f"  n={n if isinstance(n, int) else n[i]}"
        interval = f" [{fmt.format(a)}, {fmt.format(b)}]" if np.isfinite([a, b]).all() else ""
        text = f"{fmt.format(m)}{interval}{count}".replace("-", "−")
        ax.annotate(text, (1.02, i), xycoords=ax.get_yaxis_transform(), va="center", fontsize=9)
    if reference is not None:
        ax.axvline(reference, color=BLACK, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(labels)), labels)
    ax.set(xlabel=xlabel, ylim=(len(labels) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    return ax


def forests(
    tables: Mapping[str, pd.DataFrame],
    xlabel: str,
    *,
    band: float = 0,
    styles: Mapping[str, Look] | None = None,
    width: float = 7.4,
    line: float = 0.34,
) -> Figure:
    """A forest for each table, one below the other; where there are several, each under its name and over its own axis.

    tables: `mean, low, high` (fractions, shown in percentage points) and `n`, a row a label of the index, in order.
    band: half the width of the grey one, in points. styles: looks of labels that are no methods. width, and height of a
    line: inches.
    """
    heights = [0.6 + line * max(len(table), 1) for table in tables.values()]
    size = (width, sum(heights))
    figure, axes = plt.subplots(len(tables), 1, squeeze=False, figsize=size, height_ratios=heights)
    for ax, (name, table) in zip(axes[:, 0], tables.items(), strict=True):
        if band:
            ax.axvspan(-band, band, color="#ededed", zorder=0)
        mean, low, high = 100 * table[["mean", "low", "high"]].to_numpy(np.float64).T
        labels = list(map(str, table.index))
        own = [(styles or {}).get(label, look(label)) for label in labels]
        forest(ax, labels, mean, low, high, n=[int(count) for count in table["n"]], styles=own)
        ax.set_title(name if len(tables) > 1 else "")
    axes[-1, 0].set_xlabel(xlabel)
    return figure


def verdict(ax: Axes, differences: pd.DataFrame, titles: Mapping[str, str] | None = None) -> Axes:
    """The book's answer: every method's accuracy minus that without distillation, in percentage points, greatest first.

    differences: columns method, mean, low, high (fractions) and n (seeds), a row a method, as
    `stats.paired_differences` gives them at one side. titles: a method's name in words.
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
    """{label: ((n,) mean, low, high)} against (n,) sides in pixels on a log2 axis; NaN where a label has no figure.

    percent: values are fractions, shown in percent. Labels stand a little apart, so that intervals do not hide others.
    """
    at, own = np.asarray(sides, dtype=np.float64), looks(lines) | dict(styles or {})
    for i, (label, values) in enumerate(lines.items()):
        mean, low, high = (np.asarray(v, dtype=np.float64) for v in values)
        seen = np.isfinite(mean)
        x = at[seen] * 2 ** (0.04 * (i - (len(lines) - 1) / 2))
        reach = np.nan_to_num(np.stack([mean - low, high - mean])[:, seen]).clip(0)
        colour, marker = own[label]
        ax.errorbar(x, mean[seen], reach, color=colour, marker=marker, capsize=2.5, linewidth=1.5, label=label)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted(set(at.tolist()))))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend()
    return ax


def seeds(
    ax: Axes,
    values: Mapping[str, ArrayLike],
    styles: Mapping[str, Look] | None = None,
    xlabel: str = "test accuracy, %",
    percent: bool = True,
    level: float = 0.95,
) -> Axes:
    """{label: (n,) values}, a line each, first on top: a dot a seed, a bar at the mean, its t interval where n > 1.

    percent: values are fractions, shown in percent.
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
    ax.set_yticks(range(len(values)), list(values))
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
    """(R,C) values as a heat map with the number in each cell; NaN stays empty. low, high: ends of the colour scale."""
    x = np.asarray(values, dtype=np.float64)
    if x.shape != (len(rows), len(columns)):
        raise DataError(f"values: shape {x.shape} is not ({len(rows)} rows, {len(columns)} columns)")
    image = ax.imshow(x, cmap=SEQUENTIAL, vmin=low, vmax=high, aspect="auto")
    for i, j in zip(*np.nonzero(np.isfinite(x)), strict=True):
        red, green, blue, _ = image.cmap(image.norm(x[i, j]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        ax.text(j, i, fmt.format(x[i, j]), ha="center", va="center", color="white" if dark else "black")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    if label:
        bar = ax.figure.colorbar(image, ax=ax, label=label)
        bar.outline.set_visible(False)
    return ax
