"""Rendering speed: images/s at 112, 56 and 48 px with 1 and 2 threads, beside a matrix product in the same run.

The product measures how fast this machine is right now: its rate in GFLOP/s is in every row, so that a figure taken on
a busy machine can be recognised.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from benchmarks.shared import finish
from lrkd.data.renderer import FaceModel
from lrkd.study.experiment import commit, device_name, device_of

LIMITS = {112: 220, 56: 900, 48: 1200}
GPU_LIMITS = {112: 3334}  # 200,000 images in a minute


def best(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and with --out write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faces", description=__doc__)
    parser.add_argument("--images", type=int, default=512, help="images a call (default: 512)")
    parser.add_argument("--repeats", type=int, default=5, help="calls, of which the fastest counts (default: 5)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, whose images come back as they do for a data set")
    parser.add_argument("--px", type=int, action="append", help="size; may be given again (CPU: 112, 56, 48; GPU: 112)")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also merge the rows into this table")
    arguments = parser.parse_args(argv)
    place, model, generator = device_of(arguments.device), FaceModel(), torch.Generator().manual_seed(0)
    gpu = place.startswith("cuda")
    identity = model.sample_identity(arguments.images, generator).to(place)
    nuisance = model.sample_nuisance(arguments.images, generator).to(place)
    a = torch.randn(1024, 1024, generator=generator).to(place)
    rows = []

    def render(size: int) -> torch.Tensor:
        return torch.as_tensor(model.images(identity, nuisance, size)).mul(255).to(torch.uint8).cpu()

    for threads in (1,) if gpu else (1, 2):
        torch.set_num_threads(threads)
        product = 2 * 1024**3 / best(lambda: (a @ a)[0, 0].item(), 20) / 1e9
        known = GPU_LIMITS if gpu else LIMITS
        for size in arguments.px or known:
            seconds = best(lambda size=size: render(size), arguments.repeats)
            rows.append(
                {
                    "px": size,
                    "threads": None if gpu else threads,
                    "images_per_s": round(arguments.images / seconds),
                    "limit" if gpu else "limit_2_threads": known.get(size),
                    "product_gflops": round(product),
                    "device": device_name(place),
                    "torch": torch.__version__,
                    "commit": commit(),
                }
            )
    finish(pd.DataFrame(rows), arguments.out, "px", "threads", "device")


if __name__ == "__main__":
    main()
