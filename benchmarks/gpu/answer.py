"""Stage 6: protocol 2's runs at scale cpu, many processes on the one GPU, whose launches limit such small networks.

First it is measured with how many processes the most images a second are trained on ($LRKD_PROCESSES says it instead).
Then the study trains what its tables lack, part after part. They are the repository's own, copied and gone on with.
Under LRKD_WARM the faces of the worlds are rendered, which is a CPU's work, and their maps of information computed.
"""

import json
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from benchmarks.gpu.photographs import RESULTS, photographs
from benchmarks.gpu.stage import Stage, begin, chosen, shared_gpu
from lrkd.data.tables import Faces
from lrkd.distill import methods
from lrkd.errors import LrkdError, RunError
from lrkd.models import backbones, heads
from lrkd.study import answer, worlds
from lrkd.study.answer_plan import ATTENTION, FEW, MAIN, Place
from lrkd.study.information import information_maps
from lrkd.study.presets import SCALES
from lrkd.study.runner import Workers
from lrkd.study.spec import PROCEDURAL, faces_of
from lrkd.training import loop
from lrkd.training.acceleration import Speed
from lrkd.training.execution import Execution
from lrkd.training.schedule import Options, Schedule
from lrkd.training.step import Teacher

ORDER = ("ladders", "worlds", "attention", "photographs", "length")  # the most valuable first
PROCESSES = (1, 4, 8, 14)
GIB = 4.5  # of the GPU's memory, that a process was seen to take
SPEED = Speed(cache_teacher=True, compile=False)  # compiling takes longer than it saves; steps are recorded
BATCH = 64


def some_steps(device: str, steps: int, size: int) -> float:
    """Train the scale's network by F-SKD on noise for that many steps; -> the time when they were done."""
    rng, names = np.random.default_rng(0), tuple(map(str, range(10)))
    labels = np.arange(BATCH * min(steps, 20)) % 10
    images = rng.integers(0, 256, (len(labels), size, size, 3)).astype(np.uint8)
    shown = Faces(images, labels, None, None, names, "noise", "noise")
    networks = [backbones.small(size, 128, seed=seed) for seed in range(2)]
    head, its = (heads.build("cosface", 10, 128) for _ in range(2))
    options = Options(side=6, threads=1)
    terms, schedule = methods.get("fskd").terms, Schedule(max(1, steps // 20), batch=BATCH, lr=0.01)
    teacher = Teacher(networks[1], its, terms=terms)
    how = Execution(device=device, speed=Speed() if device == "cpu" else SPEED, progress=False)
    loop.fit(networks[0], head, shown, schedule, options, teacher, how)
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
        list(pool.map(some_steps, *zip(*[(device, 20, size)] * max(counts), strict=True)))  # they start and warm up
        for count in counts:
            start = time.time()
            ended = max(pool.map(some_steps, *zip(*[(device, steps, size)] * count, strict=True)))
            found[count] = count * steps * BATCH / (ended - start)
    return found


def render(world: int) -> None:
    """Render all that the runs of a world look at."""
    place = Place(SCALES["cpu"])
    for entrant in MAIN[:2]:
        spec = place.spec(entrant, world, "T")
        for each in (spec, *spec.needs.values()):
            faces_of(each, "train")
        assert spec.world is not None
        faces_of(spec, spec.world.shown)


def warm(stage: Stage) -> int:
    """Render the worlds, those that come first first, in processes of one thread: more would hold each other up.

    Of those that attention is judged in, the GPU computes the maps of information meanwhile.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    os.nice(10)  # what else goes on comes first
    every = (*worlds.CHOOSING, *worlds.JUDGING)
    count = min(len(every), max(1, (os.cpu_count() or 2) - 4))  # beside what else goes on
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        for world, _ in zip(every, pool.map(render, every), strict=True):
            spec = Place(SCALES["cpu"]).spec(ATTENTION[1], world, "T")
            if stage.gpu and world in (*worlds.CHOOSING, *FEW):
                information_maps(faces_of(spec, "train"), spec.scale, Place(spec.scale).hardest, stage.device.type)
                print(f"maps of world {world}, {stage.left:.0f} s left", flush=True)
    print(f"rendered, {stage.left:.0f} s left", flush=True)
    return 0


def processes(stage: Stage, service: bool) -> int:
    """With how many processes it is fastest: measured, and written to gpu-processes.csv, unless it is given."""
    if (given := os.environ.get("LRKD_PROCESSES")) and not stage.rehearse:
        return int(given)
    counts, steps = ((1,), 20) if stage.rehearse else (PROCESSES, 400)
    if stage.gpu:
        free = torch.cuda.mem_get_info()[0] / 2**30
        counts = tuple(n for n in counts if n * GIB < free) or (1,)
    found = rates(stage.device.type, counts, steps, 24 if stage.rehearse else 48)
    how = {"multi_process_service": service, **stage.stamp()}
    stage.write("gpu-processes", [{"processes": n, "images_per_s": round(rate), **how} for n, rate in found.items()])
    print(f"images/s by processes: {json.dumps({k: round(v) for k, v in found.items()})}", flush=True)
    return max(found, key=lambda count: found[count])


def train(stage: Stage, workers: Workers, parts: list[str], end: float) -> None:
    """Train part after part until the time is over; what has ended is taken from the list."""
    scale = SCALES["smoke" if stage.rehearse else "cpu"]
    many, speed = (1, None) if stage.rehearse else (workers, SPEED)
    while parts:
        part, began = parts[0], time.monotonic()
        source = (photographs(stage) or "") if part == "photographs" else PROCEDURAL
        if not source:
            del parts[0]
            continue
        how = {
            "source": source,
            "workers": many,
            "device": stage.device.type,
            "progress": False,
            "speed": speed,
        }
        table = answer.run(part, scale, stage.out, stop=lambda: time.monotonic() > end, **how)
        print(f"part {part}: {table['config'].nunique()} runs, {time.monotonic() - began:.0f} s", flush=True)
        del parts[0]


def measure(stage: Stage) -> int:
    """Measure, then train part after part; one that does not end in time is the last. -> how many failed."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of each of many processes
    for path in (*RESULTS.glob("answer-*.csv"), RESULTS / "claims.csv"):
        if path.is_file() and not stage.rehearse:
            shutil.copyfile(path, stage.out / path.name)
    parts = list(chosen(dict.fromkeys(ORDER)))[-1 if stage.rehearse else 0 :]
    with shared_gpu(stage) as service:
        best, end = processes(stage, service), time.monotonic() + (2 if stage.rehearse else stage.left - 8)
        while parts and best:
            try:
                with Workers(best) as workers:
                    train(stage, workers, parts, end)
            except RunError as error:  # perhaps for want of the GPU's memory, which others use as well
                print(f"part {parts[0]}, {best} processes: {error}", flush=True)
                best //= 2
            except LrkdError as error:
                print(f"part {parts[0]}: {error}", flush=True)
                return 1
    return int(bool(parts))


if __name__ == "__main__":
    begun = begin(__doc__)
    raise SystemExit(warm(begun) if os.environ.get("LRKD_WARM") else measure(begun))
