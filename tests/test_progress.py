"""Progress bars are for people who watch."""

import io
import sys

import pytest

from lrkd.progress import bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "hidden", "shown", "expected"),
    [
        (Terminal, "", True, True),
        (Terminal, "1", True, False),
        (Terminal, "", False, False),
        (io.StringIO, "", True, False),
    ],
)
def test_a_bar_is_on_a_terminal_alone(monkeypatch, stream, hidden, shown, expected):
    monkeypatch.setenv("TQDM_DISABLE", hidden)
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(bar(range(3), desc="steps", shown=shown)) == [0, 1, 2]
    assert ("steps" in sys.stderr.getvalue()) == expected
