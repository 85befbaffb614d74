"""Sphinx: where LRKD_REPOSITORY is set, a page's buttons open it on Binder and on Colab, from the branch `launch`.

The repository does not know its own address; the build may. That branch is the repository with one more cell at the
head of each page, which fetches and installs what is not there; a downloaded page has it too. `python
book/_ext/launch.py ADDRESS` writes the cells in place: the workflow does so, and pushes the branch.
"""

import json
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

BRANCH = "launch"
# A page needs what draws and what shows it; a running notebook is better left alone, and MathJax is in it.
ROOT = Path(__file__).resolve().parents[2]
NOT = ("jupyterlab", "jupyter-book", "sphinx-mathjax-offline")

CODE = """# Away from the book's folder, as on Colab: fetch the book, and install what its pages need.
import importlib.util
import os
import subprocess
import sys

if not os.path.isdir("results"):
    if not os.path.isdir("lrkd"):
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", "ADDRESS", "lrkd"], check=True)
    os.chdir("lrkd/book")
if importlib.util.find_spec("lrkd") is None:
    packages = "PACKAGES".split()
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", "..", *packages], check=True)
    sys.path.insert(0, os.path.dirname(os.getcwd()))"""


def first_cell(address: str) -> dict[str, Any]:
    """The cell as notebooks hold it; it does nothing in the book's folder where lrkd is installed."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    wanted = [name for name in extras["book"] + extras["export"] if not name.startswith(NOT)]
    code = CODE.replace("ADDRESS", address).replace("PACKAGES", " ".join([*wanted, "myst-nb"]))
    cell = {"cell_type": "code", "id": "launch-00", "execution_count": None, "outputs": []}
    return cell | {"metadata": {"tags": ["remove-cell"]}, "source": code.splitlines(keepends=True)}


def prepend(folder: Path, address: str) -> None:
    """Put the cell at the head of each notebook of a folder, once; an address that is none is a ValueError."""
    if not re.fullmatch(r"(https://|/)[\w.~/-]+", address):
        raise ValueError(f"{address!r} is not the address of a repository: expected https://HOST/OWNER/NAME")
    for path in sorted(folder.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        old = [cell for cell in notebook["cells"] if cell.get("id") != "launch-00"]
        notebook["cells"] = [first_cell(address), *old]
        path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def buttons(app: Any, config: Any) -> None:
    address = os.environ.get("LRKD_REPOSITORY", "").rstrip("/")
    if address:
        services = {"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com"}
        config.html_theme_options |= {
            "repository_url": address,
            "repository_branch": BRANCH,
            "path_to_docs": "book",
            "launch_buttons": {**services, "notebook_interface": "jupyterlab"},
            "use_issues_button": True,
            "use_edit_page_button": True,
        }


def edit_at_home(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """A change to a page is suggested where pages are written, and not on the branch with one more cell."""
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if "url" in button:
                button["url"] = button["url"].replace(f"/edit/{BRANCH}/", "/edit/main/")


def downloads(app: Any, exception: Exception | None) -> None:
    address = os.environ.get("LRKD_REPOSITORY", "").rstrip("/")
    if address and exception is None:
        prepend(Path(app.outdir) / "_sources", address)


def setup(app: Any) -> dict[str, bool]:
    app.connect("config-inited", buttons, priority=900)
    app.connect("html-page-context", edit_at_home, priority=950)
    app.connect("build-finished", downloads)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    prepend(ROOT / "book", sys.argv[1])
