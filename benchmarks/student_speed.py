"""Faces a second of the smallest student, beside its peers and the machine's own limits, all measured in one run.

Each round calls every network and engine once, so that a machine that is busy for a while is so for all; a rate is the
median over the rounds, a ratio the median of the rounds' ratios. Multiply-adds are counted by torch.utils.flop_counter;
what a matrix product and a copy reach in the same run is in every row, and the share of it that the network reaches.
"""

import argparse
import copy
import functools
import gc
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lrkd.files import Table
from lrkd.models import backbones, layers
from lrkd.onnx import export, recogniser
from lrkd.study import experiment, presets, store
from lrkd.study.experiment import commit, device_name

STUDENT = Path("book/results/student.onnx")
PAPER = {"cpu": 418, "gpu": 9433}  # faces/s of arXiv 1811.09998, on hardware that it does not name
TARGET = {"cpu": 4180, "gpu": 943_300}
MOST = 4e10  # multiply-adds a call on a CPU: larger batches are cut, or IResNet-18 at 112 px would take minutes
# Speed does not depend on training: designs of the study at 16 px, and the networks of `models`.
UNTRAINED: dict[str, Callable[[], layers.Network]] = {
    **backbones.BUILDERS,
    **{name: functools.partial(backbones.build, size=16, **design) for name, design in presets.DESIGNS.items()},
}
PRODUCT = {"cpu": 1024, "cuda": 8192}


@dataclass
class Contender:
    """A network in every form: a module (None where only a file is there), and ONNX files by format."""

    name: str
    px: int
    module: nn.Module | None
    files: dict[str, Path] = field(default_factory=dict)

    def count(self) -> dict[str, float]:
        """Parameters, and a face's multiply-adds and MB of float32 that its layers read and write (without weights)."""
        if self.module is None:
            return {}
        moved = []

        def note(_: nn.Module, given: tuple[Any, ...], made: Any) -> None:
            moved.extend(x.numel() for x in (*given, made) if isinstance(x, Tensor))

        leaves = [m for m in self.module.modules() if not list(m.children())]
        hooks = [leaf.register_forward_hook(note) for leaf in leaves]
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            self.module(torch.zeros(1, 3, self.px, self.px))
        for hook in hooks:
            hook.remove()
        return {
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "multiply_adds": counter.get_total_flops() / 2,
            "mb_moved": 4 * sum(moved) / 1e6,
        }


def student(given: str) -> Contender:
    """The student: an .onnx file (with its run's config beside it as .json), a run's folder, or a name of UNTRAINED."""
    path = Path(given)
    if given in UNTRAINED:
        module = UNTRAINED[given]().eval()
        return Contender(given, module.size, module)
    if path.is_dir():
        module, _ = experiment.load(store.load_run(path))
        return Contender(path.name, module.size, module)
    file, config = recogniser.load(path), path.with_suffix(".json")
    found = backbones.build(**json.loads(config.read_text())["config"]["model"]).eval() if config.is_file() else None
    return Contender(path.name, file.size, found, {"onnx as it is": path})


def peers(px: int, embedding: int = 128) -> list[Contender]:
    """torchvision's smallest MobileNet and ShuffleNet at the student's input, and IResNet-18 at 112 px."""
    made = [
        ("mobilenet_v3_small", torchvision.models.mobilenet_v3_small(num_classes=embedding)),
        ("shufflenet_v2_x0_5", torchvision.models.shufflenet_v2_x0_5(num_classes=embedding)),
    ]
    for _, module in made:
        module.size = px
    found = [Contender(name, px, module.eval()) for name, module in made]
    return [*found, Contender("iresnet18", 112, backbones.iresnet18(cbam=False).eval())]


def write_files(contender: Contender, folder: Path, generator: np.random.Generator) -> None:
    """ONNX files in float32 and 8 bits; their speed does not depend on what they were calibrated on."""
    if contender.module is None:
        return
    seen = generator.uniform(-1, 1, (32, 3, contender.px, contender.px)).astype(np.float32)
    for format in ("onnx", "int8"):
        path = folder / f"{contender.name}-{format}.onnx"
        try:
            export.export(contender.module, path, format, calibration=seen)
            contender.files[format] = path
        except ValueError as error:
            print(f"left out: {contender.name} as {format}: {error}", file=sys.stderr)


def session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def calls(contender: Contender, threads: int, batch: int, device: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """(engine, a function that embeds one batch) for each way to run the network on this device."""
    x = torch.rand(batch, 3, contender.px, contender.px, generator=torch.Generator().manual_seed(0)) * 2 - 1
    module = contender.module
    if device == "cuda":
        if module is not None:
            yield "torch bf16, CUDA graph", graphed(module, x)
        return
    if module is not None:
        last = copy.deepcopy(module).to(memory_format=torch.channels_last)
        y = x.contiguous(memory_format=torch.channels_last)
        yield "torch", lambda: module(x)
        yield "torch channels_last", lambda: last(y)
    for format, path in contender.files.items():
        yield (
            f"onnxruntime {format}",
            functools.partial(session(path, threads).run, None, {recogniser.INPUT: x.numpy()}),
        )


def graphed(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """A call that replays the network on the GPU, in bfloat16 and channels_last, as one captured graph."""
    network = copy.deepcopy(module).cuda().to(torch.bfloat16, memory_format=torch.channels_last)
    y = x.cuda().to(torch.bfloat16, memory_format=torch.channels_last)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which still copies the weights
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(y)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        network(y)

    def call(held: Any = (network, y)) -> None:
        graph.replay()
        torch.cuda.synchronize()

    return call


def seconds(work: Callable[[], object], least: float) -> float:
    """Of one call: the mean over as many as take `least` seconds."""
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < least or not done:
        work()
        done += 1
    return spent / done


def limits(device: str) -> dict[str, float]:
    """What the machine reaches now: GFLOP/s of a float32 (GPU: bfloat16) product, GB/s read and written by a copy."""
    n = PRODUCT[device]
    a = torch.rand(n, n, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    b = torch.rand(2**26, device=device)
    c, wait = torch.empty_like(b), torch.cuda.synchronize if device == "cuda" else (lambda: None)
    product = min(seconds(lambda: (a @ a, wait()), 0.1) for _ in range(5))
    copied = min(seconds(lambda: (c.copy_(b), wait()), 0.1) for _ in range(5))
    return {"product_gflops": 2 * n**3 / product / 1e9, "copy_gb_s": 2 * 4 * b.numel() / copied / 1e9}


def race(entries: list[tuple[Any, Callable[[], object]]], rounds: int, least: float) -> dict[Any, list[float]]:
    """Seconds a call, a list over the rounds for each entry; one call of each goes before and is not counted."""
    found: dict[Any, list[float]] = {key: [] for key, _ in entries}
    for _, work in entries:
        work()
    for _ in range(rounds):
        for key, work in entries:
            found[key].append(seconds(work, least))
    return found


_PEAK = r"""
import re, sys
import numpy as np, onnxruntime
def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
before = peak()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
opened = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
opened.run(None, {"images": np.zeros((int(sys.argv[2]), 3, int(sys.argv[3]), int(sys.argv[3])), np.float32)})
print(before, peak())
"""


def torch_peak(module: nn.Module, batch: int, px: int, out: Any) -> None:
    """In a process of its own: MiB before and after a batch."""

    def peak() -> float:
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024 if found else nan

    torch.set_num_threads(1)
    before = peak()
    with torch.inference_mode():
        module(torch.zeros(batch, 3, px, px))
    out.put((before, peak()))


def memory(contender: Contender, batch: int) -> dict[str, tuple[float, float]]:
    """Engine -> MiB of a fresh process with its packages loaded, and its peak after one batch on one thread."""
    found = {}
    for format, path in contender.files.items():
        words = [sys.executable, "-c", _PEAK, str(path), str(batch), str(contender.px)]
        before, after = map(float, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
        found[f"onnxruntime {format}"] = before, after
    if contender.module is not None:
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        process = context.Process(target=torch_peak, args=(contender.module, batch, contender.px, queue))
        process.start()
        found["torch"] = queue.get(timeout=300)
        process.join()
    return found


def measure(
    given: str,
    batches: tuple[int, ...],
    rounds: int,
    least: float,
    seed: int,
    alone: bool = False,
    devices: tuple[str, ...] = ("cpu", "cuda"),
) -> pd.DataFrame:
    """A row a network, engine, number of threads and batch; on a GPU alone there are no files to write and weigh."""
    torch.manual_seed(seed)
    own = student(given)
    contenders = [own, *([] if alone else peers(own.px))]
    rows = []
    with tempfile.TemporaryDirectory(prefix="lrkd-") as folder, torch.inference_mode():
        for contender in contenders if "cpu" in devices else ():
            with torch.inference_mode(False):
                write_files(contender, Path(folder), np.random.default_rng(seed))
        known = {contender.name: contender.count() for contender in contenders}
        taken = {one.name: memory(one, max(batches)) if "cpu" in devices else {} for one in contenders}
        settings = [("cpu", threads, batch) for threads in (1, 2) for batch in batches if "cpu" in devices]
        if "cuda" in devices and torch.cuda.is_available():
            settings += [("cuda", 0, batch) for batch in (*batches, 4096)]  # 256 of these faces do not fill a GPU
        for device, threads, batch in settings:
            torch.set_num_threads(threads or 1)
            reached, entries, size = limits(device), [], {}
            for contender in contenders:
                each = known[contender.name].get("multiply_adds", 0)
                cut = batch if device == "cuda" else max(1, min(batch, int(MOST / each) if each else batch))
                size[contender.name] = cut
                for engine, work in calls(contender, threads, cut, device):
                    entries.append(((contender.name, engine), work))
            times = race(entries, rounds, least)
            for (name, engine), spent in times.items():
                rates = [size[name] / value for value in spent]
                rate, counted = statistics.median(rates), known[name]
                like = engine if (own.name, engine) in times else next((e for n, e in times if n == own.name), "")
                # An .onnx file alone has no engine on a GPU.
                base = [size[own.name] / value for value in times.get((own.name, like), [nan] * len(spent))]
                ratio = statistics.median(b / r for b, r in zip(base, rates, strict=True))
                before, peak = taken[name].get(engine, (nan, nan))
                rows.append(
                    {
                        "network": name,
                        "engine": engine,
                        "device": device_name(device),
                        "threads": threads,
                        "px": next(c.px for c in contenders if c.name == name),
                        "batch": size[name],
                        "faces_per_s": rate,
                        "lowest": min(rates),
                        "highest": max(rates),
                        "student_is_faster": ratio,
                        **counted,
                        "file_bytes": _bytes(contenders, name, engine),
                        **reached,
                        "share_of_product": 2e-9 * rate * counted.get("multiply_adds", nan) / reached["product_gflops"],
                        "share_of_copy": 1e-3 * rate * counted.get("mb_moved", nan) / reached["copy_gb_s"],
                        "process_mib": before,
                        "peak_mib": peak,
                    }
                )
            del entries
            gc.collect()
    return pd.DataFrame(rows)


def _bytes(contenders: list[Contender], name: str, engine: str) -> float:
    path = next(c for c in contenders if c.name == name).files.get(engine.removeprefix("onnxruntime "))
    return path.stat().st_size if path else nan


def main() -> None:
    """Measure, print, and with --out write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.student_speed", description=__doc__)
    parser.add_argument(
        "--student",
        default=str(STUDENT),
        help=f"an .onnx file, a run's folder, or untrained: {', '.join(UNTRAINED)} (default: {STUDENT})",
    )
    parser.add_argument("--batch", type=int, action="append", help="faces a call; may be given again (1 and 256)")
    parser.add_argument("--rounds", type=int, default=9, help="of which the median counts (default: 9)")
    parser.add_argument("--least", type=float, default=0.1, metavar="S", help="seconds of each a round (default: .1)")
    parser.add_argument("--alone", action="store_true", help="leave the peers out")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default: 0)")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also merge the rows into this table")
    arguments = parser.parse_args()
    given = arguments.student
    if given not in UNTRAINED and not Path(given).exists():
        parser.error(f"{given} is not there: --student mobile-m (untrained, as fast), a run's folder, or an .onnx file")
    batches, quick = tuple(arguments.batch or (1, 256)), (arguments.rounds, arguments.least)
    table = measure(given, batches, *quick, arguments.seed, arguments.alone)
    import onnxruntime

    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    table = table.assign(rounds=arguments.rounds, seed=arguments.seed, **versions, commit=commit())
    shown = ["network", "engine", "threads", "batch", "faces_per_s", "student_is_faster", "share_of_product"]
    print(table[shown].to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    own = table[table["network"] == table["network"].iloc[0]]
    for where, found in (("cpu", own[own["threads"] == 2]), ("gpu", own[own["threads"] == 0])):
        if len(found):
            best = found.loc[found["faces_per_s"].idxmax()]
            print(
                f"{where}: {best['faces_per_s']:,.0f} faces/s ({best['engine']}, batch {best['batch']}); target "
                f"{TARGET[where]:,}, the paper's {PAPER[where]:,} on hardware that it does not name"
            )
        else:
            print(f"{where}: not measured, there is none, or only an .onnx file without its .json")
    if arguments.out:
        key = ("network", "engine", "device", "threads", "px", "batch")
        Table("python -m benchmarks.student_speed", key).merge(arguments.out, table)


if __name__ == "__main__":
    main()
