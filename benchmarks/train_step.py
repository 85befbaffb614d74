"""Images/s of a training step: teacher, fskd and askd, with each switch off in turn, beside the device's matrix rate.

A step is all that `fit` does for a batch that lies on the device: mirror, degrade, both networks' forward passes,
losses, backward pass, optimizer. Its FLOPs are those of the networks and hint layers as torch counts them: a
multiply-add is two, other work is none. `share_of_matrix_rate` is their rate over that of a large matrix product in the
same precision and run. A CPU is measured on one thread in seconds of that thread, which other work on the machine
changes little, and with small defaults; switches that only a GPU profits from are left out there. With --out, a call
that was ended is continued by the next.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.shared import finish, place
from lrkd.distill import methods
from lrkd.models import backbones, heads
from lrkd.study.experiment import commit, device_name
from lrkd.training.acceleration import Speed, compile_network, cudnn_benchmark
from lrkd.training.batches import augment, draw_augmentation
from lrkd.training.graphs import WARM_UP, RecordedUpdate
from lrkd.training.schedule import Options
from lrkd.training.step import StepLosses, Teacher, memory_format, move_to

CLASSES, SIDE = 10_000, 14
STEPS = {"teacher": "none", "fskd": "fskd", "askd": "askd"}
OFF = (
    *("all on", "float32", "no channels_last", "no compile", "no graph", "no fused"),
    *("teacher each time", "equal precision"),
)


def rate(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """FLOP/s of the product of two large square matrices, the best of some; float32 as cuDNN's convolutions take it."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)  # TF32
    try:
        return 2 * size**3 / timed(lambda: a @ a, device, repeats, min)
    finally:
        torch.set_float32_matmul_precision(before)


def timed(
    work: Callable[[], object], device: torch.device, repeats: int, best: Callable[..., object] = np.median
) -> float:
    """Seconds of a call, CPU time on a CPU: the median of `repeats`, after one that is not counted (two on a GPU)."""
    gpu, seconds = device.type == "cuda", []
    clock = time.perf_counter if gpu else time.process_time
    for _ in range(repeats + 1 + gpu):
        if gpu:
            torch.cuda.synchronize(device)
        start = clock()
        work()
        if gpu:
            torch.cuda.synchronize(device)
        seconds.append(clock() - start)
    return float(best(seconds[1 + gpu :]))


def step(
    name: str, model: str, batch: int, options: Options, speed: Speed, device: torch.device
) -> Callable[[], torch.Tensor]:
    """One training step on a batch that lies on the device; every call trains on."""
    method = methods.get(STEPS[name])
    memory = memory_format(options)
    network, other = backbones.build(model), backbones.build(model, seed=1)
    head, its = (heads.build("cosface", CLASSES, network.embedding) for _ in range(2))
    taught = None if name == "teacher" else Teacher(other, its, terms=method.terms)
    trained = torch.nn.ModuleDict({"network": network, "head": head})
    if taught is not None and any(term.hint for term in method.terms):
        trained["hints"] = backbones.Hints(network.widths, taught.network.widths)
    for part in (trained, *((taught.network, taught.head) if taught else ())):
        move_to(part, device, memory).train(part is trained)
    fused = speed.uses("fused", device)
    optimizer = torch.optim.SGD(trained.parameters(), 1e-4, momentum=0.9, nesterov=True, fused=fused)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, network.size, network.size, generator=generator).to(device)
    y = torch.randint(CLASSES, (batch,), generator=generator).to(device)
    amp = options.precision == "bfloat16"

    losses = StepLosses(trained, options, taught, network, None if taught is None else taught.network)
    if speed.uses("compile", device):
        student = compile_network(network, losses.shown(x), amp)
        ask = None if taught is None else compile_network(taught.network, losses.shown(x), amp)
        losses = replace(losses, student=student, ask=ask)
    told = None
    if losses.ask is not None and speed.uses("cache_teacher", device):
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
            told = losses.ask(losses.shown(x))

    def update(*given: Any) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            parts, _ = losses(*given)
        optimizer.zero_grad(set_to_none=True)
        parts.sum().backward()
        optimizer.step()
        return parts.detach()

    recorded = device.type == "cuda" and speed.uses("graph", device)
    take = RecordedUpdate(update, optimizer) if recorded else update

    def once() -> torch.Tensor:
        hr = augment(x, *draw_augmentation(batch, options, generator))
        return take(hr, losses.small_images(hr, generator), y, 1.0, None, told)

    for _ in range(WARM_UP + 1 if recorded else 0):
        once()
    return once


def flops(name: str, model: str, once: bool) -> float:
    """FLOPs of one image in a step, the teacher's unless it was asked before; nothing is computed."""
    network = backbones.build(model).to("meta")
    x = torch.zeros(2, 3, network.size, network.size, device="meta")
    with FlopCounterMode(display=False) as counter:
        if name != "teacher" and not once:
            with torch.no_grad():
                network(x)
        out = network(x)
        ends = [out.embedding, *out.features]
        if any(term.hint for term in methods.get(STEPS[name]).terms):
            ends += backbones.Hints(network.widths, network.widths).to("meta")(out.features)
        torch.stack([end.sum() for end in ends]).sum().backward()
    return counter.get_total_flops() / 2


def row(
    name: str,
    model: str,
    batch: int,
    options: Options,
    speed: Speed,
    device: torch.device,
    work: float,
    reached: float,
    repeats: int,
) -> dict[str, Any]:
    """One step's row. work: its FLOPs an image; reached: the FLOP/s of a matrix product in its precision."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    once = step(name, model, batch, options, speed, device)
    with cudnn_benchmark():  # as in `fit`
        seconds = timed(once, device, repeats)
    return {
        "step": name,
        "model": model,
        "batch": batch,
        "switches": "",
        "images_per_s": round(batch / seconds, 2),
        "gflop_per_image": round(work / 1e9, 2),
        "share_of_matrix_rate": round(batch * work / seconds / reached, 3),
        "matrix_tflops": round(reached / 1e12, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if gpu else None,
        "threads": None if gpu else torch.get_num_threads(),
        "device": device_name(str(device)),
        "torch": torch.__version__,
        "commit": commit(),
    }


def options_of(name: str) -> Options:
    """Float32, HR for the teacher and LR images for students."""
    return Options(side=None if name == "teacher" else SIDE)


def main() -> None:
    """Measure, print, and with --out write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="cpu or cuda (default: cuda where it is there)")
    parser.add_argument("--model", default="iresnet50", choices=sorted(backbones.BUILDERS), help="default: iresnet50")
    parser.add_argument("--batch", type=int, action="append", help="may be given again (default: 128 and 512; CPU: 2)")
    parser.add_argument("--repeats", type=int, help="steps that are timed (default: 20; CPU: 3)")
    parser.add_argument("--only", nargs="+", choices=OFF, help="some of the switches' settings")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also merge the rows into this table")
    arguments = parser.parse_args()
    device = place(arguments.device)
    gpu = device.type == "cuda"
    batches = arguments.batch or ([128, 512] if gpu else [2])
    repeats = arguments.repeats or (20 if gpu else 3)
    # What is on where all is; a CPU compiles and rounds to bfloat16 slower than it trains.
    best, speed = Options(precision="bfloat16" if gpu else "float32"), Speed(compile=gpu, cache_teacher=True)
    off: dict[str, tuple[Options, Speed]] = {
        "all on": (best, speed),
        "float32": (replace(best, precision="float32"), speed),
        "no channels_last": (replace(best, channels_last=False), speed),
        "no compile": (best, replace(speed, compile=False)),
        "no graph": (best, replace(speed, graph=False)),
        "no fused": (best, replace(speed, fused=False)),
        "teacher each time": (best, replace(speed, cache_teacher=False)),
        # Convolutions in TF32, which is torch's own default, and nothing compiled: the published loop's precision.
        "equal precision": (replace(best, precision="float32"), replace(speed, compile=False, cache_teacher=False)),
    }
    if not gpu:
        for name in ("float32", "no compile", "no graph", "no fused", "equal precision"):
            del off[name]
    rates = {dtype: rate(device, getattr(torch, dtype)) for dtype in ("bfloat16", "float32")}
    counted = {(name, once): flops(name, arguments.model, once) for name in STEPS for once in (True, False)}
    part = arguments.out and arguments.out.with_suffix(".part")  # what a run that was ended has measured
    rows = pd.read_csv(part).to_dict("records") if part and part.exists() else []
    done = {(row["batch"], row["step"], row["switches"]) for row in rows}
    cells = [(b, n, o) for o in off if o in (arguments.only or OFF) for b in batches for n in STEPS]
    for batch, name, what in tqdm(cells, leave=False):
        if (name == "teacher" and what == "teacher each time") or (batch, name, what) in done:
            continue
        options, switched = off[what]
        options = replace(options, side=options_of(name).side)
        work, reached = counted[name, switched.uses("cache_teacher", device)], rates[options.precision]
        measured = row(name, arguments.model, batch, options, switched, device, work, reached, repeats)
        rows.append(measured | {"switches": what})
        if part:
            pd.DataFrame(rows).to_csv(part, index=False)
    finish(pd.DataFrame(rows), arguments.out, "step", "model", "batch", "switches", "device")
    if part:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
