"""What `make book` does before Sphinx: train the runs that pages share, and execute the pages that jupyter-cache lacks.

Sphinx would execute them one after another. Here each core has one, at a lower priority than the training, which leaves
cores free now and then. A page that fails here is left to Sphinx, which says where and why.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import yaml
from _ext.local_kernels import local
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

ROOT = Path(__file__).resolve().parent.parent
# Pages that look at the runs that are trained here, and those of the others that take long; each the longest first.
TRAINED = ("students", "teacher", "recogniser-detail", "distances", "attention", "your-own-data")
LONG = ("sixty-lines", "add-a-method", "is-it-real", "faces")


def dealt(pages: list[Path]) -> tuple[list[Path], list[Path]]:
    """Divide pages into those that need no run and those of TRAINED, each in the order in which to begin them."""
    last = [page for page in pages if page.stem in TRAINED]
    first = [page for page in pages if page.stem not in TRAINED]
    last.sort(key=lambda page: TRAINED.index(page.stem))
    first.sort(key=lambda page: LONG.index(page.stem) if page.stem in LONG else len(LONG))
    return first, last


def begin() -> None:
    os.nice(10)
    # More threads than cores wait for each other: a page would take many times longer than with one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TQDM_DISABLE"] = "1"


def execute(page: Path) -> str:
    """Execute a page that the cache lacks; returns what to say of it, '' where the cache has it."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text())["execute"]
    cache = get_cache(ROOT / settings["cache"])
    cache.add_nb_to_project(str(page))
    found = load_executor("local-serial", cache).run_and_cache(filter_uris=[str(page)], timeout=settings["timeout"])
    return f"{page.name}: {'executed' if found.succeeded else 'failed'}" if found.all() else ""


def main() -> int:
    first, last = dealt(sorted((ROOT / "book").glob("*.ipynb")))
    local()
    multiprocessing.set_start_method("fork")  # or processes that Python 3.14 starts would not know the last line
    with ProcessPoolExecutor(os.cpu_count(), initializer=begin) as pool:
        begun = [pool.submit(execute, page) for page in first]
        try:
            trained = subprocess.run([sys.executable, "-m", "lrkd", "study", "book"], check=False).returncode
            begun += [] if trained else [pool.submit(execute, page) for page in last]
            for done in as_completed([] if trained else begun):
                if said := done.exception() or done.result():
                    print(said, flush=True)
        except KeyboardInterrupt:
            trained = 130
        if trained:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGINT)  # it stops its kernel, which a kill would leave
    return trained


if __name__ == "__main__":
    sys.exit(main())
