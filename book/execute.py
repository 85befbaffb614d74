"""What `make book` does before Sphinx: execute the pages that jupyter-cache lacks, one on each core at a time.

Sphinx would execute them one after another. A page that fails here is left to it, which says where and why.
"""

import logging
import os
from pathlib import Path

import yaml
from _ext.local_kernels import local
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

# What trains or measures much, the longest first.
LONG = ("students", "sixty-lines", "add-a-method", "distances", "teacher", "is-it-real")


def dealt(pages: list[Path], workers: int) -> list[Path]:
    """Order pages so that each worker begins with a long one: `Pool.map` hands out a quarter of a share at a time."""
    long = sorted((page for page in pages if page.stem in LONG), key=lambda page: LONG.index(page.stem))
    short = [page for page in pages if page.stem not in LONG]
    size = -(-len(pages) // (4 * workers))
    found = []
    while long or short:
        found += long[:1] + short[: size - len(long[:1])]
        long, short = long[1:], short[size - len(long[:1]) :]
    return found


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    settings = yaml.safe_load((root / "_config.yml").read_text())["execute"]
    cache = get_cache(root / settings["cache"])
    pages = [str(page) for page in dealt(sorted((root / "book").glob("*.ipynb")), os.cpu_count() or 1)]
    for page in pages:
        cache.add_nb_to_project(page)
    # More threads than cores wait for each other: a page would take many times longer than with one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    local()
    logging.basicConfig(format="%(message)s")
    log = logging.getLogger("pages")
    log.setLevel(logging.INFO)
    executor = load_executor("local-parallel", cache, log)
    executor.run_and_cache(filter_uris=pages, timeout=settings["timeout"])


if __name__ == "__main__":
    main()
