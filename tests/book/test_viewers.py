"""The chooser of pictures: what its page holds, and that every choice leads to its own picture."""

import base64
import io
import json
import re

import numpy as np
import pytest
from kit.viewers import chooser, overlay, plane
from PIL import Image

from lrkd.errors import DataError

ONE, TWO = np.zeros((8, 8, 3)), np.full((8, 8, 3), 255, np.uint8)
PICTURES = {("a", "x"): ONE, ("a", "y"): TWO, ("b & <c>", "x"): TWO, ("b & <c>", "y"): ONE}


def page() -> str:
    return chooser(PICTURES, ("letter", "side"), lambda key: f"picture {' '.join(key)}", "Below.")._repr_html_()


def stored(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])


def test_each_choice_shows_its_picture_and_says_so():
    found = stored(page())
    assert set(found["which"]) == {"|".join(key) for key in PICTURES}
    for key, picture in PICTURES.items():
        uri, alt = found["which"]["|".join(key)]
        kind, _, content = found["uris"][uri].partition(",")
        assert kind == "data:image/webp;base64"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))
        np.testing.assert_allclose(shown, picture, atol=3)
        assert found["alts"][alt] == f"picture {' '.join(key)}"


def test_a_picture_used_twice_is_stored_once():
    assert len(stored(page())["uris"]) == 2


def test_lists_are_labelled_in_order_and_escaped():
    text = page()
    lists = stored(text)["controls"]
    assert [(one["name"], one["range"]) for one in lists] == [("letter", False), ("side", False)]
    assert [one["options"] for one in lists] == [["a", "b & <c>"], ["x", "y"]]
    assert "<c>" not in text
    assert "<figcaption>Below.</figcaption>" in text


def test_without_scripts_the_first_picture_stands_alone():
    text = page()
    before = text.partition("<script>")[0]
    assert 'alt="picture a x"' in before
    assert re.search(r'<div class="controls"[^>]* hidden>', before)
    assert stored(text)["uris"][0] in before


def test_two_on_a_page_do_not_clash():
    assert " id=" not in page()


def test_nothing_is_requested():
    text = re.sub(r'data:image/webp;base64,[^"]*', "", page())
    assert "://" not in text
    assert not re.search(r"\b(?:fetch|import|XMLHttpRequest|link)\b", text)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ({}, "none to choose among"),
        ({("a", "x"): ONE, ("b", "y"): TWO}, r"has no \('a', 'y'\)"),
        ({("a",): ONE}, r"key \('a',\) is not one text a list \(letter, side\)"),
        ({("a", "x|y"): ONE}, r"without \|"),
        ({("a", "x"): ONE, ("a", "y"): ONE[:4]}, r"\('a', 'y'\) has shape \(4, 8, 3\)"),
        ({("a", "x"): ONE[..., 0]}, r"has shape \(8, 8\)"),
    ],
)
def test_bad_input_is_named(pictures, message):
    with pytest.raises(DataError, match=message):
        chooser(pictures, ("letter", "side"), "alt")


def test_an_alt_text_may_be_one_for_all():
    made = chooser(PICTURES, ("letter", "side"), "one for all")
    assert stored(made._repr_html_())["alts"] == ["one for all"]
    assert repr(made) == "Chooser: one for all"


def test_overlays_are_brightest_where_the_map_is_high():
    images = np.full((2, 8, 8, 3), 120, np.uint8)
    maps = np.zeros((2, 4, 4))
    maps[0, 1, 2] = 3.0
    found = overlay(images, maps, 16).astype(int).sum(3)
    assert found.shape == (2, 16, 16)
    assert np.unravel_index(found[0].argmax(), (16, 16)) in {(y, x) for y in range(4, 8) for x in range(8, 12)}
    assert np.ptp(found[1]) == 0
    np.testing.assert_array_equal(overlay(images, 5 * maps + 2, 16), overlay(images, maps, 16))
    np.testing.assert_array_equal(overlay(images[:1], maps[:1], 8, strength=0)[0], images[0])


def test_a_slider_holds_the_entries_of_its_list():
    lists = stored(chooser(PICTURES, ("letter", "side"), "alt", sliders=("side",))._repr_html_())["controls"]
    assert [(one["name"], one["range"]) for one in lists] == [("letter", False), ("side", True)]
    assert lists[1]["options"] == ["x", "y"]


def test_two_vectors_stand_where_they_were_put_before_a_script_runs():
    text = plane((0.75, 2.9), (2.0, 1.2), "two vectors", "No <data>.")._repr_html_()
    before = text.partition("<script>")[0]
    assert re.findall(r'data-name="(\w)".*?translate\(([-\d.]+),([-\d.]+)\)', before) == [
        ("t", "200.0", "-120.0"),
        ("s", "75.0", "-290.0"),
    ]
    assert before.count('tabindex="0"') == 2
    assert 'role="group" aria-label="two vectors"' in before
    assert "<figcaption>No &lt;data&gt;.</figcaption>" in before
    assert "://" not in text


def test_a_caption_links_to_its_results():
    text = chooser(PICTURES, ("letter", "side"), "alt", "From book/results/a-b.csv & more.")._repr_html_()
    assert 'From <a href="results/a-b.csv">book/results/a-b.csv</a> &amp; more.' in text
