"""Draw figures with plotly that a reader moves in a built page, by the browser's sliders and with no kernel.

A function makes the plotly figure, and `show` puts it on the page beside its picture.
"""

import html
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from kit import display
from kit.display import BLACK, BLUE, ORANGE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lrkd.errors import DataError


class Interactive(NamedTuple):
    """A plotly figure as a page or JupyterLab shows it, with its caption and a picture for where it cannot move.

    Attributes:
        spec: JSON of the figure.
        alt: What a reader who cannot see it has to know.
        caption: Shown below.
        still: The picture.
    """

    spec: str  # JSON
    alt: str
    caption: str
    still: display.Shown | None
    name: str = ""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        still = f'<div class="static">{self.still._repr_html_()}</div>' if self.still else ""
        figure = json.loads(self.spec)
        before = (
            '<div class="controls" role="group" aria-label="Move the figure" hidden></div>'
            f'<div class="drawing" role="img" aria-label="{html.escape(self.alt)}" hidden></div>{still}'
        )
        page = display.moving("moving.js", {"figure": figure}, before, self.caption, self.name)
        # JupyterLab has a renderer of its own for the second; a built page takes the first.
        return {"text/html": page, "application/vnd.plotly.v1+json": figure, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def show(figure: Any, alt: str, caption: str = "", static: Figure | Axes | None = None, name: str = "") -> Interactive:
    """Show a plotly figure that a reader can move with no kernel, as the last line of a cell.

    Sliders and drop-down menus of the figure become the browser's own, which keys move too; their steps may restyle,
    relayout or update. plotly.js comes from vendor/plotly.min.js beside the page.

    Args:
        figure: Of plotly.
        alt: What a reader who cannot see it has to know.
        caption: Shown below.
        static: A matplotlib figure of its first state, shown until the script has drawn, and for good without scripts;
            it is closed.
        name: As that of `display.show`.

    Raises:
        DataError: The alt text is empty.
    """
    if not alt.strip():
        raise DataError("alt is empty: say what the figure shows to a reader who cannot see it")
    said = " ".join(alt.split())
    return Interactive(figure.to_json(), said, caption, None if static is None else display.show(static, said), name)


def forest(
    labels: Sequence[str],
    steps: Mapping[str, tuple[ArrayLike, ArrayLike]],
    start: int = 0,
    name: str = "",
    xlabel: str = "",
    reach: float | None = None,
) -> Any:
    """Make a forest plot (`figures.forest`) with a slider, for `show`.

    Args:
        labels: n of them.
        steps: {a step's label: ((n,) estimates, (n,) half widths)}.
        start: The step that is shown first.
        name: What the slider moves.
        xlabel: Below.
        reach: Of the axis to both sides of zero; None: what suits the narrower half of the steps.
    """
    shown = [(np.asarray(x, np.float64).tolist(), np.asarray(half, np.float64).tolist()) for x, half in steps.values()]
    ends = sorted(float(np.max(np.abs(x) + np.asarray(half), initial=0.0)) for x, half in map(np.asarray, shown))
    moves = [
        {"method": "restyle", "label": label, "args": [{"x": [x], "error_x.array": [half]}]}
        for label, (x, half) in zip(steps, shown, strict=True)
    ]
    own = 1.3 * ends[len(ends) // 2] or 1.0
    return _slid(labels, [shown[start]], 0, [(start, name, moves)], own if reach is None else reach, xlabel)


def forests(
    labels: Sequence[str],
    steps: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    names: tuple[str, str],
    start: tuple[int, int] = (0, 0),
    xlabel: str = "",
) -> Any:
    """Make a `forest` with two sliders.

    Args:
        labels: n of them.
        steps: {a step's label: {a step's of the other: ((n,) estimates, (n,) half widths)}}; every step of the first
            has the same steps of the second.
        names: What the two sliders move.
        start: The steps that are shown first.
        xlabel: Below.
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
            y=list(map(display.named, labels)),
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


def pictures(
    steps: Mapping[str, tuple[ArrayLike, ArrayLike]], titles: tuple[str, str], start: int = 0, name: str = ""
) -> Any:
    """Make a picture, and a map of values below it, that a slider changes, for `show`.

    Args:
        steps: {a step's label: ((S,S,3) picture in [0,1], (s,s) values of at least zero)}; a map of fewer pixels is
            drawn as large as the picture, and each is shown as a share of its own maximum.
        titles: Of picture and map.
        start: The step that is shown first.
        name: What the slider moves.
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


def threshold(edges: ArrayLike, genuine: ArrayLike, impostor: ArrayLike, start: int) -> Any:
    """Make a histogram of scores, and the ROC below, with a threshold that a slider moves, for `show`.

    Rates are in percent of the pairs of a kind; pairs above the threshold pass.

    Args:
        edges: (n+1,) of the bins; the threshold is at one of them.
        genuine: (n,) counts of pairs.
        impostor: (n,) counts of pairs.
        start: The index of the edge that is shown first.
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
