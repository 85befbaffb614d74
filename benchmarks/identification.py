"""Peak memory and time of TinyFace's identification: 160,000 distractors of 512 numbers, on random features.

Sizes are TinyFace's: 3,728 probes, 4,443 gallery images of 2,569 people, and distractors. The peak is the whole
process's (Linux's VmHWM), with Python, NumPy and the features themselves in it.
"""

import argparse
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd

from lrkd.evaluation.search import search
from lrkd.files import Table

LIMIT = 2.0
PEOPLE, GALLERY, SIZE = 2569, 4443, 512


def peak() -> float:
    """The most memory that this process has had so far, in GiB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) / 2**20 if found else float("nan")


def main() -> None:
    """Measure, print, and with --out write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.identification", description=__doc__)
    parser.add_argument("--distractors", type=int, default=160_000, help="gallery images without a mate (160,000)")
    parser.add_argument("--probes", type=int, default=3728, help="probes (3,728)")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also merge the rows into this table")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    # Filled in place: a concatenation would hold the gallery twice before anything is searched.
    gallery = np.empty((GALLERY + arguments.distractors, SIZE), np.float32)
    random.standard_normal(out=gallery, dtype=np.float32)
    labels = np.concatenate([np.arange(GALLERY) % PEOPLE, np.full(arguments.distractors, -1)])
    mates = random.integers(0, GALLERY, arguments.probes)
    probes = gallery[mates] + 3 * random.standard_normal((arguments.probes, SIZE), dtype=np.float32)
    before, start = peak(), time.perf_counter()
    found = search(gallery, labels, probes, labels[mates])
    seconds, after = time.perf_counter() - start, peak()

    from lrkd.study.experiment import commit, device_name  # after the measurement: it takes memory itself

    table = pd.DataFrame(
        {
            "distractors": [arguments.distractors],
            "probes": arguments.probes,
            "features_gib": round((gallery.nbytes + probes.nbytes) / 2**30, 3),
            "peak_before_gib": round(before, 3),
            "peak_gib": round(after, 3),
            "limit_gib": LIMIT,
            "seconds": round(seconds, 1),
            "rank1": round(float((found.rank == 1).mean()), 4),
            "device": device_name("cpu"),
            "numpy": np.__version__,
            "commit": commit(),
        }
    )
    print(table.T.to_string(header=False))
    if arguments.out:
        Table("python -m benchmarks.identification", ("distractors", "probes", "device")).merge(arguments.out, table)


if __name__ == "__main__":
    main()
