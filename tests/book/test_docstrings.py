"""The API page's reading of plain docstrings: it may change the markup, never the words."""

import re
import sys
from pathlib import Path

import pytest
from docutils.core import publish_doctree
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "book" / "_ext"))
from plain_docstrings import plain


def read(docstring: str):
    """The docutils tree; a warning raises."""
    settings = {"halt_level": 2, "report_level": 5, "file_insertion_enabled": False}
    return publish_doctree("\n".join(plain(docstring.split("\n"))), settings_overrides=settings)


@pytest.mark.parametrize(
    "docstring",
    [
        "The norm |a - b|^2 = (|a| - |b|)^2: (B,...) -> (B,).",
        "A star * alone, a trailing_ underscore, *args and a back\\slash.",
        "down, up: a kernel of `KERNELS`, or several\n    that go on here.\nnoise: none\n    at all.",
        "A line\n    that hangs\nand comes back.",
        "Code `(B,)`s and ``x`` and `render(a, b) -> c` over\ntwo lines `a +\nb`.",
    ],
)
def test_plain_text_is_read_without_a_warning_and_whole(docstring):
    shown = re.sub(r"[\s`]+", "", read(docstring).astext())
    assert shown == re.sub(r"[\s`]+", "", docstring)


@given(st.lists(st.text("ab |*_\\,.()^", max_size=30), max_size=6))
def test_any_signs_are_read_as_they_stand(lines):
    docstring = "\n".join(f"w {line.strip()} w" for line in lines)
    assert re.sub(r"\s+", "", read(docstring).astext()) == re.sub(r"\s+", "", docstring)


def test_named_lines_become_a_list():
    tree = read("side: LR side\n    in pixels.\n`seed`: an int.")
    assert [n.astext().replace("\n", " ") for n in tree.findall() if n.tagname == "list_item"] == [
        "side: LR side in pixels.",
        "seed: an int.",
    ]
    assert [n.astext() for n in tree.findall() if n.tagname == "strong"] == ["side"]
    assert [n.astext() for n in tree.findall() if n.tagname == "literal"] == ["seed"]


def test_ready_markup_is_left_alone():
    text = [":class:`Path` stays", "", "- a list", "", ">>> 1 | 2", "3"]
    assert plain(text)[: len(text)] == text
