"""What `make book` does before the build: put the scripts that pages load into the book, drop stale executions.

A built page asks no other host for anything: MathJax and plotly.js are copied from the installed packages.
jupyter-cache knows a page's cells but not what they import, so that after a change in lrkd/ it would show old values.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import files
from pathlib import Path

# The combined component, its fonts, TeX packages that load on demand, and speech for readers who listen (English).
MATHJAX = (
    "tex-mml-chtml.js",
    "output/chtml/fonts/woff-v2/*.woff",
    "input/tex/extensions/*.js",
    "a11y/*.js",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
)
# What a page's result depends on besides its cells.
SOURCES = (
    "lrkd/**/*.py",
    "data_prep/**/*.py",
    "book/kit/**/*.py",
    "book/_static/*.js",
    "tests/data/**/*",
    "book/*.md",
    "book/results/*",
    "benchmarks/*.csv",
    "requirements.txt",
)
SETTINGS = ("LRKD_SCALE", "LRKD_DATA", "LRKD_RUNS")


def vendor_scripts(out: Path) -> None:
    """Write MathJax and plotly.js under `out`, unless they are there at the installed versions."""
    import plotly
    from plotly.offline import get_plotlyjs

    package = files("sphinx-mathjax-offline") or []
    record = next(f for f in package if f.name == "tex-mml-chtml.js")
    mathjax = Path(str(record.locate())).parent
    versions = f"plotly {plotly.__version__}, {record.hash}, {MATHJAX}\n"
    stamp = out / "versions.txt"
    if stamp.is_file() and stamp.read_text() == versions:
        return
    shutil.rmtree(out, ignore_errors=True)
    for pattern in MATHJAX:
        for source in sorted(mathjax.glob(pattern)):
            target = out / "mathjax" / source.relative_to(mathjax)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    (out / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    stamp.write_text(versions)


def carry(results: Path, out: Path) -> None:
    """Copy the files of results beside the pages, whose captions link to them; what went away goes there too."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(results, out, ignore=shutil.ignore_patterns("*.md"))


def fingerprint(root: Path, patterns: Iterable[str], settings: Mapping[str, str]) -> str:
    """Names and contents of the files, and the settings, as one hash; a file that goes away changes it too."""
    total = hashlib.sha256(repr(sorted(settings.items())).encode())
    for path in sorted({p for pattern in patterns for p in root.glob(pattern) if p.is_file()}):
        total.update(f"{path.relative_to(root).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def drop_stale(cache: Path, stamp: Path, now: str) -> bool:
    """Empty `cache` unless `stamp` holds `now`; True where something was emptied."""
    if stamp.is_file() and stamp.read_text() == now:
        return False
    stale = cache.exists()
    shutil.rmtree(cache, ignore_errors=True)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(now)  # after the removal: an interrupted one is done again
    return stale


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    vendor_scripts(root / "book" / "_extra" / "vendor")
    carry(root / "book" / "results", root / "book" / "_extra" / "results")
    settings = {name: os.environ.get(name, "") for name in SETTINGS} | {"python": sys.version}
    now = fingerprint(root, SOURCES, settings)
    if drop_stale(root / "_build" / ".jupyter_cache", root / "_build" / "executed.sha256", now):
        print("The package, the results or the settings changed: the pages are executed anew.")


if __name__ == "__main__":
    main()
