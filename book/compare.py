"""Compare what two builds of the book show: `python book/compare.py BEFORE AFTER`.

Each is a folder of executed notebooks, or of a jupyter cache (`_build/.jupyter_cache`). Text and the text of HTML
tables are compared, output by output; pictures are not. Exits with 1 where they differ.
"""

import argparse
import difflib
import html
import json
import re
import sys
from pathlib import Path
from typing import Any

TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
GLUED = "application/papermill.record/text/plain"  # what {glue:text} shows within a sentence


def page_name(path: Path, notebook: dict[str, Any]) -> str:
    """Name the page of an executed notebook; in a cache all files have one name, and cells have that of their page."""
    first = next((str(cell["id"]) for cell in notebook["cells"] if cell["cell_type"] == "code"), path.stem)
    return re.sub(r"-\d+$", "", first)


def shown(output: dict[str, Any]) -> list[str]:
    """List the lines of an output that hold words and numbers: a table's rows, printed text, a glued value."""
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items() if "json" not in kind}
    if tables := TABLE.findall(data.get("text/html", "")):
        rows = "\n".join(tables).replace("</tr>", "\n").replace("</td>", "\t").replace("</th>", "\t")
        return html.unescape(re.sub(r"<[^>]+>", "", rows)).splitlines()
    text = "".join(output.get("text", "")) or data.get(GLUED) or data.get("text/plain", "")
    return re.sub(r" at 0x[0-9a-f]+", "", text).splitlines()


def read(folder: Path) -> dict[str, list[str]]:
    """Read all executed notebooks below a folder: {page and cell: lines shown}."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        page = page_name(path, notebook)
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(code, 1):
            lines = [line for output in cell.get("outputs", []) for line in shown(output)]
            found[f"{page}, code cell {number}"] = lines
    return found


def differences(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """List what differs, as `difflib` shows it, under the page and cell."""
    found = []
    for cell in sorted(before.keys() | after.keys()):
        old, new = before.get(cell, []), after.get(cell, [])
        if old != new:
            found += [cell, *(line for line in difflib.ndiff(old, new) if line[0] in "+-")]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    given = parser.parse_args(arguments)
    before, after = read(given.before), read(given.after)
    for folder, cells in ((given.before, before), (given.after, after)):
        if not cells:
            print(f"{folder}: expected executed notebooks, got none", file=sys.stderr)
            return 2
    found = differences(before, after)
    print("\n".join(found) or f"{len(after)} cells: all text and tables are the same")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
