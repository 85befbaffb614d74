"""The drawings: told to who cannot see them, in the colours of the page, and several on one page."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from kit import display

STATIC = Path(__file__).parents[2] / "book" / "_static"
NAMES = sorted(path.stem for path in STATIC.glob("*.svg"))


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_is_told_and_takes_the_colours_of_the_page(name):
    text = (STATIC / f"{name}.svg").read_text(encoding="utf-8")
    drawn = ET.fromstring(text)
    kinds = {one.tag.rpartition("}")[2]: one for one in drawn}
    assert drawn.get("role") == "img"
    assert drawn.get("aria-labelledby").split() == [kinds["title"].get("id"), kinds["desc"].get("id")]
    assert len(kinds["desc"].text.split()) > 20
    coloured = re.findall(r'(?:fill|stroke)(?:="|:)\s*([^;"}]+)', text.split("</style>")[1])
    assert {one for one in coloured if not re.match(r"none|currentColor|var\(--\w+\)", one)} == set()
    assert repr(display.drawing(name)).startswith("Drawing: ")


def test_drawings_of_one_page_share_no_name():
    ids = [re.findall(r'\bid="([^"]+)"', (STATIC / f"{name}.svg").read_text(encoding="utf-8")) for name in NAMES]
    assert len(NAMES) > 1
    assert sum(map(len, ids)) == len(set().union(*ids))
