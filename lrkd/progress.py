"""Progress bars: on a terminal or in a notebook, none in a pipe or a log, and none where TQDM_DISABLE is set."""

import os
from typing import Any

from tqdm.auto import tqdm

_IN_NOTEBOOK = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)  # whose output says it is no terminal


def bar(*arguments: Any, shown: bool = True, **options: Any) -> Any:
    """Make a tqdm bar, or where `shown` is false one that shows nothing; the rest is as in `tqdm.auto.tqdm`."""
    hidden = not shown or bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(*arguments, disable=True if hidden else False if _IN_NOTEBOOK else None, **options)
