"""How much there is to read: the main part of the book, without its appendix."""

import json
import re
from pathlib import Path

import yaml

BOOK = Path(__file__).parents[2] / "book"
APPENDIX = {"Appendix", "Reference", "Programming interface"}  # parts of _toc.yml that nobody reads from end to end
# What is read in an evening.
WORDS = 15_000


def prose(text: str) -> int:
    """The words of MyST, where a formula or an inserted number is one; fences and markup are none."""
    text = re.sub(r"^(:::|```).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$|\{[\w:]+\}`[^`]*`", " formula ", text, flags=re.DOTALL)
    return len(re.findall(r"\w[\w'’.,-]*", re.sub(r"\]\([^)]*\)", "", text)))


def main_part() -> list[str]:
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
    parts = [part for part in toc["parts"] if part["caption"] not in APPENDIX]
    return [toc["root"], *(chapter["file"] for part in parts for chapter in part["chapters"])]


def words(page: str) -> int:
    if (text := BOOK / f"{page}.md").is_file():
        return prose(text.read_text(encoding="utf-8"))
    cells = json.loads((BOOK / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    return sum(prose("".join(cell["source"])) for cell in cells if cell["cell_type"] == "markdown")


def test_words_are_counted_as_a_reader_would():
    assert prose("A *word* and {glue:text}`one:.1f` % of $a + b$, see [this page](index.ipynb).") == 9
    assert prose(":::{admonition} What you will learn\n- two words\n:::\n$$\na\n$$") == 3


def test_the_main_part_is_short():
    pages = {page: words(page) for page in main_part()}
    assert sum(pages.values()) <= WORDS, pages
