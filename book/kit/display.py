"""Show things on pages: styles, captions, tables, sentences with numbers."""

import base64
import html
import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from lrkd.distill import methods
from lrkd.errors import DataError
from lrkd.evaluation.statistics import check_columns

BLACK, GREY = "#000000", "#7a7a7a"
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SEQUENTIAL = "cividis"
_STATIC = Path(__file__).resolve().parents[1] / "_static"


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
    "askd-places": Look(VERMILLION, "^"),
    "askd-information": Look(PURPLE, "p"),
    "askd-information-mean": Look(PURPLE, "P"),
    "askd-information-scrambled": Look(BLACK, "v"),
    "at": Look(ORANGE, "^"),
    "askd-shuffled": Look(GREY, "<"),
    "octuplet": Look(ORANGE, "s"),
    "embedding-cos": Look(GREEN, "s"),
    "embedding-l2": Look(GREEN, "p"),
    "embedding-own-side": Look(GREEN, "h"),
    "embedding-shuffled": Look(GREY, ">"),
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

# Names that are no method's title without what its brackets say.
_SHORT = {
    "none": "no teacher",
    "rkd": "RKD",
    **{f"lp({p:g})": f"L{p:g}" for p in (1, 1.5, 2, 3, 4)},
    "smooth_l1": "smooth L1",
    "on_unit(euclidean)": "L2 of unit vectors",
}
NAMES = {name: method.title.partition(" (")[0] for name, method in methods.METHODS.items()} | _SHORT
# At the head of a label, behind a claim's number, and behind a minus; what follows is kept: "askd, 6 px", "fskd †".
_NAMED = re.compile(rf"(^|^\w+: | − )({'|'.join(map(re.escape, sorted(NAMES, key=len, reverse=True)))})(?=$|,| [−†+])")

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
    """Return the look of a method, the same on every page; one that has none is a purple square."""
    return LOOKS.get(method, Look(PURPLE, "s"))


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Return a look for each label: a method's own, and for other labels colours and markers in their order."""
    spare = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False)
    return {label: LOOKS[label] if label in LOOKS else Look(*next(spare)) for label in labels}


def named(label: str) -> str:
    """Put display names in the place of methods' and distances' own: "fskd − lp(2)" is "F-SKD − L2"."""
    return _NAMED.sub(lambda found: found[1] + NAMES[found[2]], label)


def linked(caption: str) -> str:
    """A caption as HTML: `x` is code, and a file of results a link to it, as the book carries them beside its pages."""
    said = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(caption))
    return re.sub(r"book/results/([\w-]+\.\w+)", r'<a href="results/\1">\g<0></a>', said)


def opened(name: str = "") -> str:
    """The first tag of a figure; text may link to the one that has a name."""
    own = f' id="fig-{name}"' if name else ""
    return f'<figure style="margin:0"{own}>'


def figcaption(caption: str) -> str:
    """The caption of a figure as HTML, nothing where it is empty."""
    return f"<figcaption>{linked(caption)}</figcaption>" if caption else ""


def embedded(data: Mapping[str, Any]) -> str:
    """Write data for a script of the page, as JSON in an element that shows nothing; no text in it can end it."""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'


def moving(script: str, data: Mapping[str, Any], before: str, caption: str, name: str = "") -> str:
    """Write the HTML of a figure that a script of `book/_static` moves.

    Args:
        script: The file's name. It runs behind the figure, also in JupyterLab, and reads the data there.
        data: What it is given, as JSON.
        before: The figure's own HTML, whole without the script.
        caption: Shown below.
        name: As that of `show`.
    """
    code = (_STATIC / script).read_text(encoding="utf-8")
    return f"{opened(name)}{before}{figcaption(caption)}{embedded(data)}<script>{code}</script></figure>"


class Drawing(NamedTuple):
    """A drawing as a page or JupyterLab shows it: SVG in the page itself, so that it takes the page's colours."""

    svg: str
    caption: str
    name: str = ""

    def _repr_html_(self) -> str:
        return f"{opened(self.name)}{self.svg}{figcaption(self.caption)}</figure>"

    def __repr__(self) -> str:
        return (
            f"Drawing: {' '.join(html.unescape(re.findall('<desc[^>]*>(.*?)</desc>', self.svg, re.DOTALL)[0]).split())}"
        )


def drawing(name: str, caption: str = "") -> Drawing:
    """Show `book/_static/<name>.svg`, whose title and description tell it to a reader who cannot see it."""
    return Drawing((_STATIC / f"{name}.svg").read_text(encoding="utf-8"), caption, name)


_READABLE = 540  # pixels: narrower, the text in a figure of a page's width cannot be read
_PHONE = 330  # pixels that a phone shows of a figure: wider, it says that it scrolls
_DARK, _LIGHT = 0.35, "#e8e8e8"  # what is darker is text or an axis, and has this colour in the dark


class Shown:
    """A figure as a page or JupyterLab shows it: a WebP image with alt text, and its caption.

    In the dark the page inverts lines and text; a figure with pictures has a second image, as faces must stay faces.
    """

    def __init__(
        self, image: bytes, alt: str, caption: str, width: int, *, dark: bytes = b"", name: str = "", least: int = 0
    ) -> None:
        self.image, self.alt, self.caption, self.width, self.dark, self.name = image, alt, caption, width, dark, name
        self.least = min(width, least or _READABLE)  # on a phone a wide figure scrolls in its own box, by keys too

    def _repr_html_(self) -> str:
        def img(image: bytes, kind: str, more: str = "") -> str:
            return (
                f'<img class="{kind}" alt="{html.escape(self.alt)}" '
                f'src="data:image/webp;base64,{base64.b64encode(image).decode()}" '
                f'style="width:100%;min-width:{self.least}px;max-width:{self.width}px;height:auto{more}">'
            )

        both = img(self.image, "only-light") + img(self.dark, "only-dark", ";display:none") if self.dark else ""
        kind = ' class="wide"' if self.least > _PHONE else ""
        shown = f'<div{kind} style="overflow-x:auto" tabindex="0">{both or img(self.image, "dark-light plot")}</div>'
        return f"{opened(self.name)}{shown}{figcaption(self.caption)}</figure>"

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def show(
    figure: Figure | Axes, alt: str, caption: str = "", *, dpi: int = 160, name: str = "", least: int = 0
) -> Shown:
    """Show a figure on a page, as the last line of a cell; the figure is closed.

    Args:
        figure: A figure, or the axes of one.
        alt: What a reader who cannot see it has to know.
        caption: Shown below (scale, n, interval).
        dpi: Pixels an inch; an inch is 100 CSS pixels wide, or less where the page is narrower.
        name: Text links to it as `<a href="#fig-NAME">Figure</a>`, which becomes its number.
        least: CSS pixels below which it scrolls instead of shrinking; 0: as a figure of a page's width does.

    Raises:
        DataError: The alt text is empty.
    """
    if not alt.strip():
        raise DataError("alt is empty: say what the figure shows to a reader who cannot see it")
    fig = figure if isinstance(figure, Figure) else figure.get_figure(root=True)
    assert fig is not None
    drawn = _drawn(fig, dpi).convert("RGB")
    coloured = any(ax.images or ax.findobj(QuadMesh) for ax in fig.axes)
    dark = _webp(_drawn(_in_the_dark(fig), dpi)) if coloured else b""
    plt.close(fig)
    said = " ".join(alt.split())
    return Shown(_webp(drawn), said, caption, round(100 * drawn.width / dpi), dark=dark, name=name, least=least)


def _drawn(fig: Figure, dpi: int) -> Image.Image:
    """The figure's pixels; what lies beyond its edge is kept."""
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.05, facecolor=fig.get_facecolor())
    with Image.open(file) as image:
        image.load()
        return image


def _in_the_dark(fig: Figure) -> Figure:
    """Change a figure of pictures for a dark page: no ground, and light text but for that within a matrix."""
    fig.patch.set_alpha(0)
    for ax in fig.axes:
        ax.patch.set_alpha(0)
        inside = set(ax.texts) if ax.findobj(QuadMesh) else set()
        for one in set(ax.findobj(Text)) - inside:
            if sum(to_rgb(one.get_color())) < 3 * _DARK:
                one.set_color(_LIGHT)
        for line in ax.lines:
            if sum(to_rgb(line.get_color())) < 3 * _DARK:
                line.set_color(_LIGHT)
        for spine in ax.spines.values():
            spine.set_edgecolor(_LIGHT)
        ax.tick_params(color=_LIGHT, labelcolor=_LIGHT)
    for text in (*fig.texts, *(text for box in fig.legends for text in box.get_texts())):
        text.set_color(_LIGHT)
    for text in (fig._supxlabel, fig._supylabel, fig._suptitle):  # type: ignore[attr-defined]
        if text is not None:
            text.set_color(_LIGHT)
    return fig


def _webp(image: Image.Image) -> bytes:
    """The shorter of the exact file, which it is for lines and text, and that of quality 90, for pictures of faces."""
    files = []
    for how in ({"lossless": True}, {"quality": 90}):
        image.save(file := io.BytesIO(), "WEBP", method=4, **how)
        files.append(file.getvalue())
    return min(files, key=len)


def _whole(cell: str) -> str:
    """HTML in which no interval is broken over two lines."""
    return re.sub(r"\[[^][<>]{3,30}\]", r'<span style="white-space:nowrap">\g<0></span>', cell)


class Table(NamedTuple):
    """A table as a page or JupyterLab shows it, with its caption below."""

    frame: pd.DataFrame
    caption: str
    sides: tuple[str, ...]  # to which each column is set

    def _repr_html_(self) -> str:
        def row(cells: Iterable[Any], kind: str) -> str:
            scope = ' scope="col"' if kind == "th" else ""
            marks = (f'<{kind}{scope} style="text-align:{side};padding:2px 9px{wide}">' for side, wide in columns)
            told = (f"{mark}{_whole(linked(str(cell)))}</{kind}>" for mark, cell in zip(marks, cells, strict=True))
            return f"<tr>{''.join(told)}</tr>"

        # A column of sentences would else become as narrow as its longest word before the table scrolls.
        longest = (max(map(len, self.frame.iloc[:, k].astype(str)), default=0) for k in range(len(self.sides)))
        columns = [
            (side, ";min-width:12em" if most > 40 else "") for side, most in zip(self.sides, longest, strict=True)
        ]
        body = "".join(row(cells, "td") for cells in self.frame.itertuples(index=False))
        below = f"<p><em>{linked(self.caption)}</em></p>" if self.caption else ""
        head = row(self.frame.columns, "th")
        # Formulas in \( \) are set; what is wider than the page scrolls in its own box, by keys too.
        table = f'<table class="dataframe mathjax_process"><thead>{head}</thead><tbody>{body}</tbody></table>'
        return f'<div style="overflow-x:auto" tabindex="0">{table}</div>{below}'

    def __repr__(self) -> str:
        return self.frame.to_string(index=False)


def table(frame: pd.DataFrame, formats: Mapping[str, str] | str = "{:.1f}", caption: str = "") -> Table:
    """Show a frame on a page, its named index as first columns.

    Args:
        frame: What is shown; a missing value is a dash.
        formats: Of floats, for all or by column name.
        caption: Shown below (units, scale, n, interval).
    """
    shown = frame.reset_index() if any(name is not None for name in frame.index.names) else frame.copy()
    sides = tuple("right" if pd.api.types.is_numeric_dtype(kind) else "left" for kind in shown.dtypes)
    for name in shown.columns:
        if name in ("method", "student", "baseline", "network", "distance"):
            shown[name] = [named(value) if isinstance(value, str) else value for value in shown[name]]
        if pd.api.types.is_float_dtype(shown[name]):
            form = formats if isinstance(formats, str) else formats.get(name, "{:.1f}")
            shown[name] = [("–" if pd.isna(v) else form.format(v).replace("-", "−")) for v in shown[name]]
    return Table(shown, caption, sides)


def say(**values: Any) -> None:
    """Hand numbers and words to the text of a page, which shows them by `{glue:text}`; NumPy scalars become plain."""
    from myst_nb import glue  # only a page needs it

    for name, value in values.items():
        glue(name, np.asarray(value).item(), display=False)


def sign(low: float, high: float) -> str:
    """Say what an interval says about its sign: "above zero", "below zero", or why neither."""
    if np.isnan(low) or np.isnan(high):
        return "without an interval"
    return "above zero" if low > 0 else "below zero" if high < 0 else "not told apart from zero"


def provenance(frame: pd.DataFrame) -> dict[str, int | str]:
    """Summarise where a results table comes from, by its own columns.

    Returns:
        Counts of runs (a `config` each), seeds, teachers (distinct `teacher_seed`) and diverged runs; and the values of
        data, scale, device, torch and commit in their order, joined by commas.
    """
    texts = ("data", "scale", "device", "torch", "commit")
    check_columns(frame, ["config", "seed", "teacher_seed", "status", *texts])
    found: dict[str, int | str] = {
        "runs": int(frame["config"].nunique()),
        "seeds": int(frame["seed"].nunique()),
        "teachers": int(frame["teacher_seed"].nunique()),
        "diverged": int(frame.loc[frame["status"] != "ok", "config"].nunique()),
    }
    return found | {name: ", ".join(map(str, frame[name].dropna().unique())) for name in texts}
