"""Stage 5: protocol 2's runs at scale cpu, many processes on the one GPU, whose launches limit such small networks.

First it is measured with how many processes the most images a second are trained on. Then the study's own command line
trains what its tables lack, part after part. They are the repository's own, copied and gone on with.
"""

import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.stage import Stage, begin
from lrkd.data.tables import Faces
from lrkd.distill import methods
from lrkd.models import backbones, heads
from lrkd.training import loop
from lrkd.training.execution import Execution
from lrkd.training.schedule import Options, Schedule
from lrkd.training.step import Teacher

RESULTS = Path(__file__).parent.parent.parent / "book" / "results"
PARTS = ("length", "ladders", "worlds")
PROCESSES = (1, 2, 4, 8, 12)
BATCH = 64


def some_steps(device: str, steps: int, size: int) -> float:
    """Train the scale's network by F-SKD on noise for that many steps; -> the time when they were done."""
    rng, names = np.random.default_rng(0), tuple(map(str, range(10)))
    labels = np.arange(BATCH * steps) % 10
    images = rng.integers(0, 256, (len(labels), size, size, 3)).astype(np.uint8)
    shown = Faces(images, labels, None, None, names, "noise", "noise")
    networks = [backbones.small(size, 128, seed=seed) for seed in range(2)]
    head, its = (heads.build("cosface", 10, 128) for _ in range(2))
    options = Options(side=6, threads=1)
    terms, schedule = methods.get("fskd").terms, Schedule(1, batch=BATCH, lr=0.01)
    teacher = Teacher(networks[1], its, terms=terms)
    loop.fit(networks[0], head, shown, schedule, options, teacher, Execution(device=device, progress=False))
    if device == "cuda":
        torch.cuda.synchronize()
    return time.time()


def rates(device: str, counts: tuple[int, ...], steps: int, size: int) -> dict[int, float]:
    """Processes side by side -> images a second that they are trained on together."""
    found = {}
    if max(counts) == 1:  # a rehearsal's
        start = time.time()
        return {1: steps * BATCH / (some_steps(device, steps, size) - start)}
    with ProcessPoolExecutor(max(counts), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(some_steps, *zip(*[(device, 5, size)] * max(counts), strict=True)))  # they start and warm up
        for count in counts:
            start = time.time()
            ended = max(pool.map(some_steps, *zip(*[(device, steps, size)] * count, strict=True)))
            found[count] = count * steps * BATCH / (ended - start)
    return found


def command(part: str, scale: str, device: str, tables: Path, workers: int, seconds: float) -> list[str]:
    """The study's command line."""
    words = [sys.executable, "-m", "lrkd", "study", "answer", "--part", part, "--scale", scale, "--device", device]
    return [*words, "--tables", str(tables), "--workers", str(workers), "--budget", f"{seconds / 60:.3f}"]


def measure(stage: Stage) -> int:
    """Measure, then train part after part; one that does not end in time is the last. -> how many failed."""
    counts, steps = ((1,), 2) if stage.rehearse else (PROCESSES, 200)
    found = rates(stage.device.type, counts, steps, 24 if stage.rehearse else 48)
    rows = [{"processes": count, "images_per_s": round(rate), **stage.stamp()} for count, rate in found.items()]
    stage.write("gpu-processes", rows)
    best = max(found, key=lambda count: found[count])
    print(f"images/s by processes: {json.dumps({k: round(v) for k, v in found.items()})}", flush=True)
    for path in (*RESULTS.glob("answer-*.csv"), RESULTS / "claims.csv"):
        if path.is_file() and not stage.rehearse:
            shutil.copyfile(path, stage.out / path.name)
    scale = "smoke" if stage.rehearse else "cpu"
    for part in PARTS[:1] if stage.rehearse else PARTS:
        if (left := stage.left - 5) <= 0:
            print(f"part {part}: no time was left", flush=True)
            break
        seconds = min(left, 2.0) if stage.rehearse else left
        words = command(part, scale, stage.device.type, stage.out, best, seconds)
        told = subprocess.run(words, check=False, capture_output=True, text=True)
        print(f"part {part}: {' '.join((told.stderr if told.returncode else told.stdout).split())[-300:]}", flush=True)
        if told.returncode:
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(measure(begin(__doc__)))
