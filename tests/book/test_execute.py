"""The order in which `make book` executes its pages."""

from pathlib import Path

from execute import LONG, TRAINED, dealt

PAGES = sorted((Path(__file__).parents[2] / "book").glob("*.ipynb"))


def test_every_page_is_executed_once_and_long_ones_are_begun_first():
    first, last = dealt(PAGES)
    assert sorted([*first, *last]) == PAGES
    assert [page.stem for page in first][: len(LONG)] == list(LONG)
    assert [page.stem for page in last] == list(TRAINED)


def test_pages_that_look_at_trained_runs_wait_for_them():
    looks = ("experiment.train(", "runner.run_study([teacher]")
    using = {page.stem for page in PAGES if any(word in page.read_text(encoding="utf-8") for word in looks)}
    assert using == set(TRAINED)


def test_without_pages_there_is_nothing_to_do():
    assert dealt([]) == ([], [])
