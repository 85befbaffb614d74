"""Stages 3 and 5: images a second of a training step, of rendering and of the tiny student; a profile of the step.

What needs no compiler comes first, while it works. A clone of
A-SKD's repository in $LRKD_PEER is run beside ours.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import against_peer, faces, student_speed, train_step
from benchmarks.gpu.stage import Stage, begin, chosen
from lrkd.study.experiment import commit
from lrkd.study.results import write_table
from lrkd.training.acceleration import Speed, cudnn_benchmark
from lrkd.training.schedule import Options

KERNELS = 25  # of a profile, the longest
_BEST, _FAST = Options(precision="bfloat16"), Speed(compile=True, cache_teacher=False)
EAGER = {
    "equal precision": (Options(), replace(_FAST, compile=False)),
    "no compile": (_BEST, replace(_FAST, compile=False)),
}
COMPILED = {"teacher each time": (_BEST, _FAST), "all on": (_BEST, replace(_FAST, cache_teacher=True))}


class Steps:
    """Rows of gpu-train-step.csv."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.rows, self.rates = stage, [], {}  # type: Stage, list[dict[str, Any]], dict[str, float]
        self.model, self.batch, self.repeats = ("small", 2, 1) if stage.rehearse else ("iresnet50", 128, 10)

    def add(self, name: str, switches: str, options: Options, speed: Speed, batch: int | None = None) -> None:
        """Measure the step of that name, and write what is known so far."""
        stage = self.stage
        options = replace(options, side=train_step.options_of(name).side)
        if stage.rehearse:
            options, speed = replace(options, precision="float32"), replace(speed, compile=False)
        if (precision := options.precision) not in self.rates:
            repeats = 1 if stage.rehearse else 10
            self.rates[precision] = train_step.rate(stage.device, getattr(torch, precision), repeats)
        work = train_step.flops(name, self.model, speed.uses("cache_teacher", stage.device))
        found = train_step.row(
            *(name, self.model, batch or self.batch, options, speed, stage.device),
            *(work, self.rates[precision], self.repeats),
        )
        self.rows.append(found | {"switches": switches})
        stage.write("gpu-train-step", self.rows)

    def of(self, settings: dict[str, tuple[Options, Speed]], names: tuple[str, ...]) -> None:
        """Each of the steps with each of the settings, as long as there is time."""
        for switches, (options, speed) in settings.items():
            for name in names:
                if self.stage.left > 5 and not (name != "teacher" and switches == "all on"):
                    self.add(name, switches, options, speed)


def kernels(stage: Stage, steps: Steps, switches: str, options: Options, speed: Speed) -> list[dict[str, Any]]:
    """The longest kernels of A-SKD's step (on a CPU, operations), and the share of the time that none was running."""
    count, options = 3, replace(options, side=train_step.SIDE)
    if stage.rehearse:
        count, options = 1, replace(options, precision="float32")
    once = train_step.step("askd", steps.model, steps.batch, options, speed, stage.device)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if stage.gpu else [])]
    with cudnn_benchmark():
        for _ in range(count):
            once()
        if stage.gpu:
            torch.cuda.synchronize()
        with profile(activities=kinds) as watched:
            start = time.perf_counter()
            for _ in range(count):
                once()
            if stage.gpu:
                torch.cuda.synchronize()
            spent = time.perf_counter() - start
    kind, clock = (DeviceType.CUDA, "self_device_time_total") if stage.gpu else (DeviceType.CPU, "self_cpu_time_total")
    events = [event for event in watched.key_averages() if event.device_type == kind]
    events = sorted(events, key=lambda event: -getattr(event, clock))
    busy = sum(getattr(event, clock) for event in events) / 1e6
    named = [(event.key[:120], event.count, getattr(event, clock) / 1e6) for event in events[:KERNELS]]
    rows = [("(idle)", 0, max(0.0, spent - busy)), ("(other)", 0, busy - sum(row[2] for row in named)), *named]
    where = {"step": "askd", "model": steps.model, "batch": steps.batch, "switches": switches}
    return [
        {
            **where,
            "kernel": name,
            "calls": round(calls / count, 1),
            "ms_a_step": 1e3 * seconds / count,
            "share": seconds / spent,
            **stage.stamp(),
        }
        for name, calls, seconds in rows
    ]


def student(stage: Stage) -> None:
    """gpu-student-speed.csv: the book's student as a replayed graph, by batch."""
    batches, rounds, least = ((2,), 1, 0.0) if stage.rehearse else ((256, 16_384, 65_536), 3, 0.1)
    devices = ("cuda",) if stage.gpu else ()
    table = student_speed.measure(str(student_speed.STUDENT), batches, rounds, least, 0, True, devices)
    if len(table):
        write_table(stage.out / "gpu-student-speed.csv", table.assign(torch=torch.__version__, commit=commit()))


def rendering(stage: Stage) -> None:
    """gpu-faces.csv."""
    words = ["--images", "4096", "--repeats", "3"]
    if stage.rehearse:
        words = ["--images", "2", "--repeats", "1", "--px", "48"]
    faces.main([*words, "--device", stage.device.type, "--out", str(stage.out / "gpu-faces.csv")])


def beside(stage: Stage, what: str) -> None:
    """gpu-against-peer.csv, or a row of it; nothing without a clone."""
    peer, out = os.environ.get("LRKD_PEER"), stage.out / "gpu-against-peer.csv"
    if not peer or stage.rehearse:
        print("LRKD_PEER names no clone of A-SKD's repository: not run beside it" if not peer else "no peer rehearsed")
        return
    before = pd.read_csv(out) if out.exists() else pd.DataFrame()
    part = out.with_suffix(".part")
    against_peer.main(["--peer", peer, "--only", what, "--turns", "12", "--device", "cuda", "--out", str(part)])
    write_table(out, pd.concat([before, pd.read_csv(part)], ignore_index=True))
    part.unlink()


def warm(stage: Stage) -> None:
    """Compile what is to be measured, so that torch's cache on the disk has it when it is."""
    os.nice(5)  # what else goes on comes first
    for name, (options, speed) in (("askd", COMPILED["teacher each time"]), ("teacher", COMPILED["all on"])):
        options = replace(options, side=train_step.options_of(name).side)
        train_step.step(name, "iresnet50", 128, options, speed, stage.device)()
        print(f"{name} is compiled, {stage.left:.0f} s left", flush=True)


Parts = dict[str, Callable[[], None]]
NAMES = ("askd", "teacher", "fskd")


def watch(steps: Steps, switches: str, settings: tuple[Options, Speed]) -> Callable[[], None]:
    """Make a part that writes gpu-profile.csv."""

    def work() -> None:
        steps.stage.write("gpu-profile", kernels(steps.stage, steps, switches, *settings))

    return work


def plain(stage: Stage) -> Parts:
    """What needs no compiler."""
    steps = Steps(stage)
    parts: Parts = {
        "faces": lambda: rendering(stage),
        "student": lambda: student(stage),
        "steps": lambda: steps.of(EAGER, NAMES),
        "peer": lambda: beside(stage, "equal"),
        "profile": watch(steps, "no compile", EAGER["no compile"]),
        "no graph": lambda: steps.add(
            "askd", "no compile, no graph", _BEST, replace(_FAST, compile=False, graph=False)
        ),
    }
    if stage.rehearse:
        parts["steps"] = lambda: steps.add("askd", "no compile", *EAGER["no compile"])
        del parts["no graph"]
    return parts


def compiled(stage: Stage) -> Parts:
    """What the compiler has to do with."""
    steps = Steps(stage)
    if stage.rehearse:
        return {"compiled": lambda: steps.add("askd", "rehearsed", *COMPILED["teacher each time"])}
    return {
        "compiled": lambda: steps.of(COMPILED, NAMES),
        "profile, compiled": watch(steps, "teacher each time", COMPILED["teacher each time"]),
        "peer, default": lambda: beside(stage, "default"),
        "batch 512": lambda: steps.add("askd", "teacher each time", *COMPILED["teacher each time"], batch=512),
    }


def run(stage: Stage, parts: Parts) -> int:
    """Run the parts in their order, each as long as there is time. -> how many failed."""
    failed = 0
    for name, part in chosen(parts).items():
        if stage.left < 2:
            print(f"{name}: no time was left", flush=True)
            continue
        try:
            part()
        except (Exception, SystemExit) as error:  # the next part has a chance all the same
            failed += 1
            print(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
    return failed


if __name__ == "__main__":
    begun = begin(__doc__)
    raise SystemExit(run(begun, plain(begun)) > 0)
