"""Time, memory and gap of lrkd.distill.selection on 100,000 faces of 10,000 people, random embeddings of 128 numbers.

A row a stage: `margins` and `graph` (the k nearest neighbours, by scikit-learn), then `select_count` of a quarter of
the faces at each beta. The embeddings are like a trained teacher's: cosines about .8 within a class and 0 +- .2 between
classes, faces of varied quality. The peak is the whole process's (Linux's VmHWM), with Python, NumPy, scikit-learn and
the embeddings in it.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
import sklearn
from threadpoolctl import threadpool_limits

from benchmarks.identification import peak
from lrkd.distill import selection
from lrkd.files import Table

LIMIT_S, LIMIT_GIB = 60, 2.0


def embeddings(classes: int, faces: int, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """(N,size) float32 and (N,), people in order; most of the variance lies in the first 25 dimensions."""
    rng = np.random.default_rng(0)
    spread = np.exp(-np.arange(size) / 25).astype(np.float32)
    labels = np.repeat(np.arange(classes), faces)
    centres = rng.standard_normal((classes, size), dtype=np.float32)
    quality = rng.lognormal(-0.8, 0.4, (len(labels), 1)).astype(np.float32)
    return spread * (centres[labels] + quality * rng.standard_normal((len(labels), size), dtype=np.float32)), labels


def main() -> None:
    """Measure, print, and with --out write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    parser.add_argument("--classes", type=int, default=10_000, help="people (10,000)")
    parser.add_argument("--faces", type=int, default=10, help="faces of each (10)")
    parser.add_argument("--neighbours", type=int, default=10, help="k of the graph (10)")
    parser.add_argument("--beta", type=float, nargs="+", default=[0.01, 0.05, 0.1, 0.3], help="(0.01 0.05 0.1 0.3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of BLAS and scikit-learn (2)")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also merge the rows into this table")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def measure(stage: str, work: Callable[[], Any], beta: float | None = None) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        with threadpool_limits(arguments.threads):
            found = work()
        row = {
            "stage": stage,
            "beta": beta,
            "seconds": round(time.perf_counter() - wall, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "limit_s": LIMIT_S,
            "peak_gib": round(peak(), 2),
            "limit_gib": LIMIT_GIB,
        }
        if isinstance(found, selection.Selection):
            row |= {
                "chosen": int(found.chosen.sum()),
                "objective": round(found.objective, 3),
                "bound": round(found.bound, 3),
                "relative_gap": round(found.relative, 6),
            }
        rows.append(row)
        print(row, flush=True)
        return found

    features, labels = embeddings(arguments.classes, arguments.faces)
    unary = measure("margins", lambda: selection.unaries(features, labels))
    weights = measure("graph", lambda: selection.graph(features, labels, arguments.neighbours))
    for beta in arguments.beta:
        count = len(unary) // 4
        measure(
            "select_count", lambda beta=beta, count=count: selection.select_count(unary, weights, count, beta), beta
        )

    from lrkd.study.experiment import commit, device_name  # after the measurement: it takes memory itself

    table = pd.DataFrame(rows).assign(
        nodes=len(unary),
        edges=weights.nnz // 2,
        neighbours=arguments.neighbours,
        threads=arguments.threads,
        load=round(os.getloadavg()[0], 1),
        device=device_name("cpu"),
        scipy=scipy.__version__,
        sklearn=sklearn.__version__,
        commit=commit(),
    )
    if arguments.out:
        key = ("stage", "beta", "nodes", "neighbours", "threads", "device")
        Table("python -m benchmarks.selection", key).merge(arguments.out, table)


if __name__ == "__main__":
    main()
