"""Figures: what is drawn is what was given, methods look the same everywhere, and colour alone says nothing."""

import importlib.util
import io
import itertools
import re
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from answers import length_rows
from kit import display as display_
from kit import figures
from kit.display import COLOURS, LOOKS, Look, looks, say, show, style
from matplotlib.colors import to_rgb
from PIL import Image
from scipy import stats as oracle
from skimage.color import rgb2lab

from lrkd.errors import DataError
from lrkd.evaluation.statistics import mean_interval, paired_differences


@pytest.fixture(autouse=True)
def book_style():
    with plt.rc_context():
        style()
        yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


def drawn(ax):
    """The figure as it is saved: warnings of the layout would be errors here."""
    ax.figure.canvas.draw()
    return ax


# Looks


def test_no_two_methods_look_alike_and_one_of_your_own_is_drawn_too():
    assert display_.look("yours") not in LOOKS.values()
    assert len(set(LOOKS.values())) == len(LOOKS)
    assert display_.look("fskd") == looks(["x", "fskd", "y"])["fskd"]


def test_labels_that_are_no_methods_differ():
    labels = [f"line {i}" for i in range(len(COLOURS))]
    assert len({look.colour for look in looks(labels).values()}) == len(labels)


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def seen(colour: str, kind: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    out = (np.array(BLIND[kind]) @ linear).clip(0, 1) if kind in BLIND else linear
    return rgb2lab(np.where(out <= 0.0031308, out * 12.92, 1.055 * out ** (1 / 2.4) - 0.055)[None, None])[0, 0]


@pytest.mark.parametrize("kind", ["all cones", *BLIND])
def test_colours_are_told_apart_without_red_or_green_cones(kind):
    for a, b in itertools.combinations({look.colour for look in LOOKS.values()}, 2):
        far = float(np.linalg.norm(seen(a, kind) - seen(b, kind)))
        markers = [{look.marker for look in LOOKS.values() if look.colour == c} for c in (a, b)]
        assert far > 12 or not markers[0] & markers[1], (a, b, far)
    assert np.linalg.norm(seen("#d62728", "deutan") - seen("#2ca02c", "deutan")) < 12, "red and green must fail"


def test_a_method_has_one_name_wherever_a_label_has_it():
    labels = ("fskd", "askd, 6 px", "H1: cosine − lp(2) †", "none", "a method of none", "fskd-unit-l2")
    wanted = [
        "F-SKD",
        "A-SKD, 6 px",
        "H1: cosine − L2 †",
        "no teacher",
        "a method of none",
        "features, L2 of unit vectors",
    ]
    assert list(map(display_.named, labels)) == wanted
    assert len(set(display_.NAMES.values())) == len(display_.NAMES)


# Showing


def test_a_figure_of_pictures_has_another_image_in_the_dark():
    images = np.random.default_rng(0).random((1, 2, 8, 8, 3))
    page = show(figures.image_grid(plt.subplots()[1], images, ["row"]), "Faces.", name="faces")._repr_html_()
    assert re.findall(r'<img class="([\w-]+)" alt="Faces\."', page) == ["only-light", "only-dark"]
    assert page.startswith('<figure style="margin:0" id="fig-faces">')
    assert ";display:none" in page, "in JupyterLab, which knows neither class"
    lines = show(plt.subplots()[1], "Lines.")._repr_html_()
    assert re.findall(r'<img class="([\w -]+)"', lines) == ["dark-light plot"]


def test_a_shown_figure_says_what_it_shows_and_is_closed(ax):
    shown = show(ax.figure, alt='Accuracy of "none"\n  <rises>', caption="cpu & 3 seeds")
    page = shown._repr_html_()
    assert 'alt="Accuracy of &quot;none&quot; &lt;rises&gt;"' in page
    assert "<figcaption>cpu &amp; 3 seeds</figcaption>" in page
    assert re.search(r'src="data:image/webp;base64,[A-Za-z0-9+/=]+"', page)
    assert "://" not in page
    width, _ = Image.open(io.BytesIO(shown.image)).size
    assert width == pytest.approx(6.4 * 160, rel=0.1)
    assert f"max-width:{round(width / 1.6)}px" in page
    assert plt.get_fignums() == []
    assert repr(shown) == 'Figure: Accuracy of "none" <rises>'
    other = plt.subplots()[1]
    assert show(other, "given by its axes").image[8:12] == b"WEBP"


def test_a_figure_is_the_same_bytes_each_time():
    first, second = (show(figures.curves(plt.subplots()[1], [0, 1], {"a": [1, 2]}).figure, "a").image for _ in "ab")
    assert first == second


def test_a_figure_without_alt_text_is_refused(ax):
    with pytest.raises(DataError, match="alt is empty"):
        show(ax.figure, alt=" \n")


def test_a_caption_links_to_its_results():
    shown = display_.table(pd.DataFrame({"a": [1]}), caption="From book/results/core.csv, 6 px & up.")._repr_html_()
    assert '<a href="results/core.csv">book/results/core.csv</a>, 6 px &amp; up.' in shown


def test_a_table_has_its_index_its_formats_and_its_caption():
    frame = pd.DataFrame(
        {"gain": [1.25, -0.5], "p": [0.0123, np.nan], "n": [6, 1]}, pd.Index(["a<b", "c"], name="method")
    )
    shown = display_.table(frame, {"gain": "{:+.1f}", "p": "{:.2g}"}, caption="scale & seeds")
    cells = [re.findall(r"<t[hd] [^>]*>(.*?)</t[hd]>", row) for row in shown._repr_html_().split("</tr>")]
    assert [c for c in cells if c] == [
        ["method", "gain", "p", "n"],
        ["a&lt;b", "+1.2", "0.012", "6"],
        ["c", "−0.5", "–", "1"],
    ]
    assert re.findall("text-align:(.)", shown._repr_html_())[:4] == ["l", "r", "r", "r"]
    assert "</thead><tbody></tbody>" in display_.table(frame.iloc[:0])._repr_html_()
    assert shown._repr_html_().endswith("<p><em>scale &amp; seeds</em></p>")
    assert repr(shown).split() == ["method", "gain", "p", "n", "a<b", "+1.2", "0.012", "6", "c", "−0.5", "–", "1"]
    assert frame["gain"].tolist() == [1.25, -0.5], "the frame itself is not changed"


def test_a_column_of_sentences_stays_readable_and_one_of_numbers_takes_no_room():
    frame = pd.DataFrame({"claim": ["one short", "a claim that takes more than one line " * 2], "n": [3, 6]})
    page = display_.table(frame)._repr_html_()
    assert page.count("min-width") == 3, "the header and both rows of the first column"
    assert "min-width" not in display_.table(frame.iloc[:0])._repr_html_()


def test_an_interval_is_not_broken_over_lines():
    page = display_.table(pd.DataFrame({"gain": ["+0.9 [+0.6, +1.2]; p < .001"]}))._repr_html_()
    assert '+0.9 <span style="white-space:nowrap">[+0.6, +1.2]</span>; p' in page


def test_a_pivot_has_one_header():
    wide = pd.DataFrame({"method": ["a"], "seed": [0], "accuracy": [0.5]}).pivot(
        index="method", columns="seed", values="accuracy"
    )
    assert display_.table(wide)._repr_html_().count("<th ") == 2


def test_nothing_that_is_drawn_is_cut_off(ax):
    narrow, wide = (show(figures.forest(plt.subplots()[1], [label], [1], [0], [2]), "a") for label in ("a", "a" * 60))
    assert wide.width >= narrow.width
    pixels = np.asarray(Image.open(io.BytesIO(wide.image)).convert("L"))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, -4:] == 255).all()


# Figures


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_image_grid_puts_each_image_at_its_label(ax, dtype):
    values = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 6, 3), dtype=np.uint8)
    given = values if dtype == np.uint8 else (values / 255).astype(dtype)
    drawn(figures.image_grid(ax, given, ["r0", "r1"], ["c0", "c1", "c2"], gap=2))
    sheet = ax.images[0].get_array()
    assert sheet.shape == (2 * 8 + 2, 3 * 6 + 2 * 2, 4)
    for (i, y), (j, x) in itertools.product(enumerate(ax.get_yticks()), enumerate(ax.get_xticks())):
        top, left = round(y - 3.5), round(x - 2.5)
        np.testing.assert_allclose(sheet[top : top + 8, left : left + 6, :3], values[i, j] / 255, atol=1e-6)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["r0", "r1"]
    assert (sheet[8:10, :, 3] == 0).all(), "between images the page is seen"


def test_image_grid_errors(ax):
    with pytest.raises(DataError, match=r"\(2, 3, 3, 8, 8\)"):
        figures.image_grid(ax, np.zeros((2, 3, 3, 8, 8)))
    with pytest.raises(DataError, match="columns: 2 labels for 3"):
        figures.image_grid(ax, np.zeros((2, 3, 8, 8, 3)), columns=["a", "b"])


def test_curves_draw_lines_bands_and_a_legend(ax):
    x = {"none": [0, 1, 2], "fskd": [0, 1]}
    drawn(
        figures.curves(
            ax, x, {"none": [1, 2, 3], "fskd": [0.5, 0.6]}, "epoch", "loss", {"none": ([0, 1, 2], [2, 3, 4])}
        )
    )
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[0, 1], [1, 2], [2, 3]], [[0, 0.5], [1, 0.6]]]
    assert [line.get_color() for line in ax.lines] == [display_.look(name).colour for name in x]
    low, high = ax.collections[0].get_datalim(ax.transData).intervaly
    assert (low, high) == (0, 4)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    (names,) = ax.figure.legends
    assert [t.get_text() for t in names.get_texts()] == ["no teacher", "F-SKD"]
    assert not names.get_window_extent().overlaps(ax.get_window_extent()), "no legend lies over data"


def test_roc_leaves_out_what_a_log_axis_cannot_show(ax):
    drawn(figures.roc(ax, {"none": ([0, 0.01, 0.1, 1], [0.2, 0.4, 0.7, 1])}))
    assert ax.lines[0].get_xydata().tolist() == [[0.01, 0.4], [0.1, 0.7], [1, 1]]
    assert ax.get_xscale() == "log"
    assert ax.get_xlim() == (0.01, 1)
    assert ax.xaxis.get_major_formatter()(0.01) == "1"


def test_score_histogram_is_in_percent_of_its_own_kind(ax):
    drawn(figures.score_histogram(ax, [-1, 0, 1], [1, 3], [30, 10], threshold=0.25))
    outlines = [area.get_paths()[0] for area in ax.collections]
    inside = [[max(y for y in range(100) if line.contains_point((x, y))) for x in (-0.5, 0.5)] for line in outlines]
    assert inside == [[25, 75], [75, 25]]
    assert ax.lines[0].get_xdata()[0] == 0.25
    figures.score_histogram(plt.subplots()[1], [-1, 0, 1], [0, 0], [0, 0])  # nothing scored is no division by zero


def test_forest_writes_what_it_draws(ax):
    drawn(figures.forest(ax, ["fskd", "askd"], [4.0, -0.26], [3.0, np.nan], [5.0, np.nan], n=[6, 1], xlabel="points"))
    assert [t.get_text() for t in ax.texts] == ["+4.0 [+3.0, +5.0]  n=6", "−0.3  n=1"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["F-SKD", "A-SKD"]
    assert ax.lines[0].get_xdata().tolist() == [3, 5]
    assert ax.lines[1].get_marker() == display_.look("fskd").marker
    bottom, top = ax.get_ylim()
    assert bottom > top, "the first label stands on top"


def test_forests_of_several_tables_have_their_names():
    table = pd.DataFrame(
        {"mean": [0.02, -0.01], "low": [0.01, -0.03], "high": [0.03, 0.01], "n": [6, 5]}, ["fskd", "x"]
    )
    figure = figures.forests({"a": table}, "points")
    assert [ax.get_title(loc="left") for ax in figure.axes] == [""]
    figure = figures.forests({"a": table, "b": table[:0]}, "points", band=1, styles={"x": Look("red", "o")})
    upper = figure.axes[0]
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["a", "b"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "points"]
    assert [text.get_text() for text in upper.texts] == ["+2.0 [+1.0, +3.0]  n=6", "−1.0 [−3.0, +1.0]  n=5"]
    assert upper.lines[3].get_color() == "red"
    plt.close("all")


def test_verdict_is_the_paired_differences_in_points_greatest_first(ax):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        [
            {"method": method, "side": 6, "seed": seed, "accuracy": gain + rng.normal(0.77, 0.01)}
            for method, gain in (("none", 0), ("askd", 0.01), ("fskd", 0.05))
            for seed in range(6)
        ]
    )
    drawn(figures.verdict(ax, paired_differences(frame), {"fskd": "F-SKD"}))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["F-SKD", "A-SKD"]
    values = {name: part["accuracy"].to_numpy() for name, part in frame.groupby("method")}
    wanted = oracle.ttest_rel(values["fskd"], values["none"]).confidence_interval(0.95)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [100 * wanted.low, 100 * wanted.high])
    assert ax.texts[0].get_text().endswith("n=6")


def test_the_readme_figure_is_small_and_shows_each_main_method():
    spec = importlib.util.spec_from_file_location(
        "readme_figure", Path(figures.__file__).parents[1] / "readme_figure.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    faces = script.faces(people=1, sides=(16, 4), size=16)
    for image in (script.figure(pd.DataFrame(length_rows())).image, faces):
        assert image[8:12] == b"WEBP"
        assert len(image) < 50_000
    pixels = np.asarray(Image.open(io.BytesIO(faces)))
    assert pixels.shape == (16, 32, 3)
    assert len(np.unique(pixels[:, :16].reshape(-1, 3), axis=0)) > len(np.unique(pixels[:, 16:].reshape(-1, 3), axis=0))


def test_by_side_draws_intervals_where_they_are(ax):
    lines = {"none": ([0.77, 0.9], [0.76, 0.88], [0.78, 0.92]), "fskd": ([0.8, np.nan], [0.79, np.nan], [0.83, np.nan])}
    drawn(figures.by_side(ax, [6, 12], lines))
    none, fskd = ax.containers
    assert none.lines[0].get_ydata().tolist() == [0.77, 0.9]
    np.testing.assert_allclose(none.lines[0].get_xdata(), [6, 12], rtol=0.03)
    np.testing.assert_allclose(fskd.lines[2][0].get_segments()[0][:, 1], [0.79, 0.83])
    assert len(fskd.lines[0].get_xdata()) == 1
    assert [t.get_text() for t in ax.get_xticklabels()] == ["6", "12"]


def test_seeds_show_every_seed_and_the_interval_of_stats(ax):
    values = {"none": [0.76, 0.78, 0.77], "fskd": [0.8]}
    drawn(figures.seeds(ax, values))
    wanted = mean_interval(values["none"])
    reach, mean, dots, alone, dot = ax.lines
    np.testing.assert_allclose(reach.get_xdata(), [wanted.low, wanted.high])
    np.testing.assert_allclose(mean.get_xdata(), [0.77, 0.77])
    assert dots.get_xdata().tolist() == values["none"]
    assert (dots.get_ydata() == 0).all()
    assert (alone.get_xdata()[0], dot.get_ydata().tolist()) == (0.8, [1])


def test_matrix_writes_every_value_legibly_and_leaves_gaps(ax):
    values = np.array([[0.0, 50.0], [100.0, np.nan]])
    drawn(figures.matrix(ax, values, ["a", "b"], ["c", "d"], label="accuracy, %"))
    texts = {tuple(int(place) for place in t.get_position()): t for t in ax.texts}  # the middle of a cell
    assert {at: t.get_text() for at, t in texts.items()} == {(0, 0): "0.0", (1, 0): "50.0", (0, 1): "100.0"}
    assert (texts[0, 0].get_color(), texts[0, 1].get_color()) == ("w", ".15"), "light on dark, and dark on light"
    with pytest.raises(DataError, match=r"\(2, 2\) is not \(1 rows, 2 columns\)"):
        figures.matrix(ax, values, ["a"], ["c", "d"])


def test_numbers_reach_the_text(monkeypatch):
    heard = {}
    monkeypatch.setattr("myst_nb.glue", lambda name, value, display: heard.update({name: (value, display)}))
    say(accuracy=np.float32(0.5), seeds=np.int64(6), scale="cpu")
    assert heard == {"accuracy": (0.5, False), "seeds": (6, False), "scale": ("cpu", False)}
    assert [type(value) for value, _ in heard.values()] == [float, int, str]


def test_forests_have_a_band_each_and_no_estimate_of_minus_zero():
    table = pd.DataFrame({"mean": [-0.0002], "low": [-0.0004], "high": [0.02], "n": [6]}, ["none"])
    figure = figures.forests({"a": table, "b": table}, "points", band={"a": 0.5, "b": 2.0})
    bands = [ax.patches[0].get_x() for ax in figure.axes]
    assert bands == [-0.5, -2.0]
    assert "+0.0 [−0.0, +2.0]  n=6" in [text.get_text() for text in figure.axes[0].texts]
    plt.close(figure)


@pytest.mark.parametrize(
    "page",
    ["attention", "core-table", "distances", "race", "real-faces", "recogniser", "students-that-adapt", "three-epochs"],
)
def test_a_forest_of_small_images_says_what_the_other_protocols_show(page):
    """Of the older tables, whose forests have small images on both sides; those of study `answer` have a panel each."""
    assert "gains.elsewhere(" in (Path(__file__).parents[2] / "book" / f"{page}.ipynb").read_text(encoding="utf-8")
