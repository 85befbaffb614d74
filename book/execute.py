"""What `make book` does before Sphinx: train the runs that pages share, and execute the pages that jupyter-cache lacks.

Sphinx would execute them one after another; here it is one on each core at a time. FIRST needs no run, and takes what
the training leaves free. A page that fails here is left to Sphinx, which says where and why.
"""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml
from _ext.local_kernels import local
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

ROOT = Path(__file__).resolve().parent.parent
FIRST = "sixty-lines"
# What trains or measures much, the longest first.
LONG = ("add-a-method", "students", "distances", "teacher", "faces", "is-it-real")


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


def execute(pages: list[Path]) -> None:
    """Execute pages that the cache lacks, in this order."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text())["execute"]
    cache, names = get_cache(ROOT / settings["cache"]), list(map(str, pages))
    for name in names:
        cache.add_nb_to_project(name)
    # More threads than cores wait for each other: a page would take many times longer than with one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TQDM_DISABLE"] = "1"
    local()
    multiprocessing.set_start_method("fork")  # or processes that Python 3.14 starts would not know the last line
    logging.basicConfig(format="%(message)s")
    log = logging.getLogger("pages")
    log.setLevel(logging.INFO)
    load_executor("local-parallel", cache, log).run_and_cache(filter_uris=names, timeout=settings["timeout"])


def main() -> int:
    """Train and execute; with the name of a page, execute that one alone, when nothing else wants the core."""
    pages = {page.stem: page for page in sorted((ROOT / "book").glob("*.ipynb"))}
    if sys.argv[1:]:
        os.nice(19)
        execute([pages[name] for name in sys.argv[1:]])
        return 0
    first = subprocess.Popen([sys.executable, __file__, FIRST])
    try:
        trained = subprocess.run([sys.executable, "-m", "lrkd", "study", "book"], check=False).returncode
    except KeyboardInterrupt:
        trained = 130
    if trained:
        first.send_signal(signal.SIGINT)  # it stops its kernel, which a kill would leave
    first.wait()
    if not trained:
        execute(dealt([page for name, page in pages.items() if name != FIRST], os.cpu_count() or 1))
    return trained


if __name__ == "__main__":
    sys.exit(main())
