"""What the tests that train share; `toys` beside this file has networks and faces small enough to train in a blink."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import toys

# A command that a shell starts in the background ignores Ctrl-C, and so would all that it starts: tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of this session that takes the place of the user's cache and run store; no progress bars."""
    folder = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRKD_CACHE", str(folder / "cache"))
        patch.setenv("LRKD_RUNS", str(folder / "runs"))
        patch.setenv("LRKD_SCALE", "smoke")
        patch.setenv("TQDM_DISABLE", "1")
        yield folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prepared folder of 24 people with four noisy 28 px pictures each, through data_prep's own writer."""
    return str(toys.photographs(tmp_path_factory.mktemp("photographs"), people=24, images=4))
