"""Figures that a reader moves: whole without their script, and with the values that they are given."""

import json
import re

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
import pytest
from kit import movable

from lrkd.errors import DataError


@pytest.fixture
def ax():
    yield plt.subplots()[1]
    plt.close("all")


def moving():
    """A line and a slider that shifts it."""
    steps = [{"method": "restyle", "label": str(k), "args": [{"y": [[k, k + 1]]}]} for k in range(3)]
    layout = {"sliders": [{"active": 1, "currentvalue": {"prefix": "shift"}, "steps": steps}], "title": "</script>"}
    return go.Figure(go.Scatter(x=[0, 1], y=[1, 2]), layout)


def test_an_interactive_figure_is_whole_without_its_script(ax):
    ax.plot([0, 1])
    bundle = movable.show(moving(), 'A "line"\n moves', "scale <cpu>", ax)._repr_mimebundle_()
    page = bundle["text/html"]
    shown = re.sub("<script.*?</script>", "", page, flags=re.DOTALL)
    assert 'alt="A &quot;line&quot; moves" src="data:image/webp;base64,' in shown
    assert 'role="img" aria-label="A &quot;line&quot; moves"' in shown
    assert "<figcaption>scale &lt;cpu&gt;</figcaption>" in shown
    assert not plt.get_fignums(), "the static figure is closed"
    assert bundle["application/vnd.plotly.v1+json"] == json.loads(moving().to_json())


def test_an_interactive_figure_loads_the_pages_own_plotly_and_nothing_else(ax):
    page = movable.show(moving(), "a")._repr_mimebundle_()["text/html"]
    assert page.count("</script>") == 2, "a text of the figure cannot end the script"
    assert re.findall(r"""["'](\w[^"'\s]*\.js)["']""", page) == ["vendor/plotly.min.js"]
    assert "://" not in page
    data = re.search(r'<script type="application/json">(.*?)</script>', page)[1]
    assert json.loads(data)["figure"] == json.loads(moving().to_json())
    with pytest.raises(DataError, match="alt is empty"):
        movable.show(moving(), " ")


def test_a_moving_forest_starts_at_its_step_and_has_them_all():
    steps = {"2 seeds": ([1.0, -1.0], [9.0, 9.0]), "3 seeds": (np.array([0.5, -0.5]), [0.4, 0.3])}
    figure = movable.forest(["a", "b"], steps, 1, "seeds", "points")
    (dots,) = figure.data
    assert (list(dots.x), list(dots.y), list(dots.error_x.array)) == ([0.5, -0.5], ["a", "b"], [0.4, 0.3])
    (slider,) = figure.layout.sliders
    assert (slider.active, slider.currentvalue.prefix) == (1, "seeds")
    assert [step.label for step in slider.steps] == list(steps)
    assert slider.steps[0].args[0] == {"x": [[1.0, -1.0]], "error_x.array": [[9.0, 9.0]]}
    assert movable.forest([], {"2 seeds": ([], [])}).to_json(), "nothing to show is no error"


def test_two_sliders_move_one_forest():
    """The first shows a trace, the second moves all of them, so that they combine in any order."""
    steps = {
        "2 points": {"0.1": ([1.0], [0.5]), "1": ([2.0], [0.6])},
        "5": {"0.1": ([3.0], [0.7]), "1": ([4.0], [0.8])},
    }
    figure = movable.forests(["a"], steps, ("loss", "momentum"), (1, 0), "points")
    assert [trace.visible for trace in figure.data] == [False, True]
    assert [list(trace.x) for trace in figure.data] == [[1.0], [3.0]]
    loss, momentum = figure.layout.sliders
    assert (loss.active, momentum.active, momentum.currentvalue.prefix) == (1, 0, "momentum")
    assert loss.steps[0].args[0] == {"visible": [True, False]}
    assert momentum.steps[1].args[0] == {"x": [[2.0], [4.0]], "error_x.array": [[0.6], [0.8]]}
    assert figure.layout.xaxis.range[1] > 4


def test_a_moving_threshold_has_the_rates_of_the_scores_themselves():
    draw = np.random.default_rng(0)
    same, other = draw.normal(0.5, 0.2, 300).clip(-0.99, 0.99), draw.normal(0, 0.2, 500).clip(-0.99, 0.99)
    edges = np.linspace(-1, 1, 41)
    counts = [np.histogram(scores, edges)[0] for scores in (same, other)]
    figure = movable.threshold(edges, *counts, start=25)
    _, _, line, curve, dot = figure.data
    (slider,) = figure.layout.sliders
    for cut, step, far, tar in zip(edges, slider.steps, curve.x, curve.y, strict=True):
        assert (far, tar) == pytest.approx((100 * (other >= cut).mean(), 100 * (same >= cut).mean()), abs=1e-4)
        assert step.args[0]["x"] == [[pytest.approx(cut)] * 2, [far]]
        assert step.args[0]["y"][1] == [tar]
    assert (line.x[0], dot.x[0], dot.y[0]) == (pytest.approx(edges[25]), curve.x[25], curve.y[25])
    assert slider.active == 25


def test_moving_pictures_keep_every_value_of_picture_and_map():
    face, heat = np.random.default_rng(0).random((6, 6, 3)), np.arange(9.0).reshape(3, 3)
    figure = movable.pictures({"6 px": (face, np.ones((6, 6))), "3 px": (face / 2, heat)}, ("face", "map"), 1, "side")
    (slider,) = figure.layout.sliders
    (sharp, flat), (dim, large) = (step.args[0]["z"] for step in slider.steps)
    np.testing.assert_allclose(np.array(sharp) / 255, face, atol=0.5 / 255)
    assert np.array(flat).tolist() == np.ones((6, 6)).tolist()
    np.testing.assert_allclose(np.array(dim) / 255, face / 2, atol=0.5 / 255)
    np.testing.assert_allclose(large, np.kron(heat / 8, np.ones((2, 2))), atol=5e-4)
    assert np.array_equal(figure.data[1].z, large)
    assert (slider.active, slider.currentvalue.prefix) == (1, "side")
