"""The order in which `make book` executes its pages."""

from pathlib import Path

from execute import FIRST, LONG, dealt

PAGES = sorted((Path(__file__).parents[2] / "book").glob("*.ipynb"))


def test_each_worker_begins_with_a_long_page():
    for workers in (1, 2, 8):
        found = dealt(PAGES, workers)
        assert sorted(found) == PAGES
        share = -(-len(PAGES) // (4 * workers))  # what `Pool.map` hands out at a time
        begun = [page.stem for page in found[::share]]
        assert begun[: len(LONG)] == list(LONG)[: len(begun)]


def test_pages_that_are_named_exist():
    assert {page.stem for page in PAGES} >= {FIRST, *LONG}
    assert dealt([], 2) == []
