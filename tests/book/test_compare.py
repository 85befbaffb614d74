"""Two builds of the book, compared: every word and number of a table counts, addresses and pictures do not."""

import json

import compare
import pytest


def notebook(*outputs, page="index"):
    cell = {"cell_type": "code", "id": f"{page}-02", "source": [], "outputs": list(outputs)}
    return json.dumps({"cells": [{"cell_type": "markdown", "id": f"{page}-01", "source": []}, cell]})


def table(number):
    cells = f"<table><tr><th>accuracy</th></tr><tr><td>{number} &amp; more</td></tr></table>"
    return {"data": {"text/html": [f'<div style="a">{cells}</div>'], "text/plain": ["anything"]}}


@pytest.fixture
def build(tmp_path):
    def make(name, *outputs):
        folder = tmp_path / name / "executed" / "hash"
        folder.mkdir(parents=True)
        (folder / "base.ipynb").write_text(notebook(*outputs))
        return str(tmp_path / name)

    return make


def test_equal_builds_are_equal_whatever_their_folders_and_addresses(build, capsys):
    text = "<object at 0x{}>\n"
    same = [build(k, table("1.5"), {"text": [text.format(k)]}) for k in ("1a", "2b")]
    assert compare.main(same) == 0
    assert "1 cells" in capsys.readouterr().out


def test_a_number_that_differs_is_shown_with_its_page(build, capsys):
    assert compare.main([build("a", table("1.5")), build("b", table("1.6"))]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["index, code cell 1", "- 1.5 & more\t", "+ 1.6 & more\t"]


def test_a_number_in_a_sentence_counts(build):
    glued = [{"data": {compare.GLUED: value}, "metadata": {}} for value in ("0.5", "0.6")]
    assert compare.main([build("a", glued[0]), build("b", glued[1])]) == 1


def test_a_folder_without_pages_is_no_comparison(build, tmp_path, capsys):
    assert compare.main([build("a", table("1")), str(tmp_path / "none")]) == 2
    assert "expected executed notebooks" in capsys.readouterr().err
