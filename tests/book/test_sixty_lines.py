"""The page Distillation in 60 lines: as short as it says, in plain torch, and whole without what the page hides."""

import ast
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from kit import display

BOOK = Path(__file__).parents[2] / "book"
CELLS = [
    ("".join(cell["source"]), cell["metadata"].get("tags", []))
    for cell in json.loads((BOOK / "sixty-lines.ipynb").read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "code"
]
HIDDEN = {"remove-cell", "remove-input", "hide-cell", "hide-input"}
SHOWN = [source for source, tags in CELLS if not HIDDEN & set(tags)]
SCIENCE = [source for source, tags in CELLS if not {*HIDDEN, "remove-output"} & set(tags)]  # figures have the latter
OF_LRKD = next(i for i, source in enumerate(SCIENCE) if "lrkd.training.loop" in source)


def statements(source: str) -> list[str]:
    """The lines of code, without imports, comments and blank lines."""
    imports = {
        line
        for node in ast.parse(source).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate(source.splitlines(), 1)
    return [line for number, line in lines if number not in imports and line.strip() and line.strip()[0] != "#"]


def test_the_method_has_about_60_lines_from_the_network_to_the_students():
    first, last = (
        next(i for i, one in enumerate(SCIENCE) if word in one) for word in ("class CBAM", "students, losses")
    )
    assert sum(len(statements(source)) for source in SCIENCE[first : last + 1]) <= 66
    assert max(len(line) for source in SCIENCE for line in source.splitlines()) <= 100  # a page has no room for more
    loop = next(source for source in SCIENCE if source.startswith("def train"))
    assert len(loop[loop.index("    for epoch") :].splitlines()) <= 15
    assert all(len(statements(source)) < 20 for source in SHOWN)


def test_with_lrkd_it_has_six():
    assert len(statements(SCIENCE[OF_LRKD])) == 0
    assert len(statements(SCIENCE[OF_LRKD + 1])) == 6


def test_what_comes_before_takes_data_alone_from_this_package():
    for source in SHOWN:
        if "lrkd.training.loop" in source:
            break
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("lrkd", "kit")):
                assert node.module == "lrkd.data.procedural"
        assert "kit" not in source


@pytest.mark.slow
@pytest.mark.usefixtures("smoke")
def test_a_reader_who_copies_the_visible_cells_has_all_of_it(monkeypatch):
    monkeypatch.setattr(display, "say", lambda **values: None)
    names: dict = {}
    for source in SHOWN:
        exec(source, names)
        if source.startswith("people, images"):  # as scale smoke has them
            names |= {"people": 16, "tested": 20, "long": 1, "short": 1, "seeds": 2}
    plt.close("all")
    assert names["ours"] == pytest.approx(names["theirs"], rel=1e-3)
    assert len(names["ours"]) == 3
