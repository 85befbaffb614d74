"""Sphinx: a line `<!-- modules of lrkd.data -->` of a page becomes a section for each module of that package.

So the API pages hold no list that a new file would have to be added to.
"""

import importlib
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

MARK = re.compile(r"^<!-- modules of ([\w.]+) -->$", re.MULTILINE)
SECTION = """## `{0}`

```{{eval-rst}}
.. automodule:: {0}
   :members:
   :undoc-members:
```
"""


def sections(package: str) -> str:
    """Write a section for each module of a package, in alphabetical order; packages inside it are left out."""
    folders = importlib.import_module(package).__path__
    return "\n".join(
        SECTION.format(f"{package}.{found.name}") for found in pkgutil.iter_modules(folders) if not found.ispkg
    )


def expand(app: Any, name: str, source: list[str]) -> None:
    source[0] = MARK.sub(lambda found: sections(found[1]), source[0])


def setup(app: Any) -> dict[str, bool]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where kit lies
    app.connect("source-read", expand)
    return {"parallel_read_safe": True}
