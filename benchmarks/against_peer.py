"""A-SKD's published training step and 10-fold evaluation beside ours, on the same tensors, in one process, in turns.

    git clone https://github.com/gist-ailab/teaching-where-to-look PEER
    python -m benchmarks.against_peer --peer PEER

The clone's code is imported and run: look at it first. Both networks start from the same weights. That their losses and
their accuracies are equal is asserted before anything is timed. Timed is the step from two batches on the device, sharp
and small images, to the updated weights; what makes the small images is in neither. `ratio` is the peer's time over
ours, the median over the turns, with its quartiles. On a CPU both have one thread, and the seconds are that thread's.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.shared import place
from lrkd.data.degradation import degrade
from lrkd.distill import methods
from lrkd.evaluation import verification
from lrkd.files import Table
from lrkd.models import backbones
from lrkd.models.heads import ArcFace
from lrkd.study.experiment import commit, device_name
from lrkd.training.acceleration import compile_network
from lrkd.training.graphs import WARM_UP, RecordedUpdate
from lrkd.training.schedule import Options
from lrkd.training.step import StepLosses, Teacher, memory_format, move_to, normalise

CLASSES = 10_572  # CASIA-WebFace's
Step = Callable[[], torch.Tensor]


def peer_step(peer: Path, hr: torch.Tensor, lr: torch.Tensor, y: torch.Tensor) -> tuple[Step, list[torch.nn.Module]]:
    """Their train_student.py, from a batch to the optimizer's step, on one device; and the four modules in it."""
    sys.path.insert(0, str(peer))
    try:
        backbone, margin, loss, hook = (
            importlib.import_module(name)
            for name in ("model.backbone", "model.margin", "utility.distill_loss", "utility.hook")
        )
    finally:
        sys.path.remove(str(peer))
    torch.manual_seed(0)
    student, teacher = (backbone.CBAMResNet(num_layers=50, feature_dim=512).to(hr.device) for _ in range(2))
    heads = [margin.ArcMarginProduct(in_feature=512, out_feature=CLASSES, s=32.0).to(hr.device) for _ in range(2)]
    teacher.eval()
    groups = [{"params": part.parameters(), "weight_decay": 5e-4} for part in (student, heads[0])]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    entropy = torch.nn.CrossEntropyLoss()
    distil = loss.DistillLoss(SimpleNamespace(distill_attn_param=5.0), hr.device)
    seen = [hook.attention_manager(network, False, "attention_target") for network in (student, teacher)]

    def step() -> torch.Tensor:
        for manager in seen:
            manager.attention = []
        with torch.no_grad():
            heads[1](teacher(hr), y)
        out = heads[0](student(lr), y)
        low, high = ([part for block in manager.attention for part in block] for manager in seen)
        total = entropy(out, y) + distil(low, high)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return total.detach()

    return step, [student, teacher, *heads]


def our_step(
    theirs: list[torch.nn.Module], hr: torch.Tensor, lr: torch.Tensor, y: torch.Tensor, options: Options, fast: bool
) -> tuple[Step, list[torch.nn.Module]]:
    """The same with lrkd, from the same weights."""
    networks = [backbones.iresnet50() for _ in range(2)]
    margins = [ArcFace(CLASSES, 512, scale=32.0, margin=0.5) for _ in range(2)]
    for mine, their in zip([*networks, *margins], theirs, strict=True):
        mine.load_state_dict(their.state_dict())
    memory = memory_format(options)
    trained = torch.nn.ModuleDict({"network": networks[0], "head": margins[0]})
    for part in (trained, networks[1], margins[1]):
        move_to(part, hr.device, memory).train(part is trained)
    amp, gpu = options.precision == "bfloat16", hr.device.type == "cuda"

    def shown(x: torch.Tensor) -> torch.Tensor:
        return x.contiguous(memory_format=memory)

    student, ask = networks
    if fast:
        student, ask = (compile_network(network, shown(lr), amp) for network in networks)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=gpu)
    teacher = Teacher(networks[1], margins[1], terms=methods.get("askd").terms)
    losses = StepLosses(trained, options, teacher, lambda x: student(shown(lr)), ask)
    sharp = (hr + 1) / 2

    def update(*given: Any) -> torch.Tensor:
        with torch.autocast(hr.device.type, torch.bfloat16, enabled=amp):
            parts, _ = losses(*given)
        optimizer.zero_grad(set_to_none=True)
        parts.sum().backward()
        optimizer.step()
        return parts.sum().detach()

    take = RecordedUpdate(update, optimizer) if gpu else update
    return lambda: take(sharp, sharp, y, 1.0), [*networks, *margins]


def evaluations(peer: Path, pairs: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """Their 10-fold accuracy and ours, of the same random features: mostly well apart, one pair in ten mislabelled."""
    sys.path.insert(0, str(peer))
    try:
        code: Any = importlib.import_module("evaluation.eval_agedb")
    finally:
        sys.path.remove(str(peer))
    rng = np.random.default_rng(0)
    same = np.arange(pairs) % 2 == 0
    left = rng.standard_normal((pairs, 1024)).astype(np.float32)
    right = rng.standard_normal((pairs, 1024)).astype(np.float32)
    right[same] = left[same] + right[same]
    told = same ^ (rng.random(pairs) < 0.1)
    fold = np.arange(pairs) // 2 % 10
    kept = {"fl": left, "fr": right, "flag": np.where(told, 1, -1)[None], "fold": fold[None]}
    code.scipy = SimpleNamespace(io=SimpleNamespace(loadmat=lambda path: dict(kept)))  # no file between the two
    return (
        lambda: float(np.mean(code.evaluation_10_fold(""))),
        lambda: verification.kfold_verification(left, right, told, fold).mean,
    )


def in_turns(first: Callable[[], Any], second: Callable[[], Any], turns: int, device: torch.device) -> np.ndarray:
    """(turns,2) seconds of both, one after the other, after one turn that is not counted."""
    seconds, clock = np.empty((turns + 1, 2)), time.perf_counter if device.type == "cuda" else time.process_time
    for turn in range(turns + 1):
        for which, work in enumerate((first, second)):
            start = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[turn, which] = clock() - start
    return seconds[1:]


def row(what: str, seconds: np.ndarray, limit: float, device: torch.device, **more: Any) -> dict[str, Any]:
    """Medians, and the ratio peer / ours with its quartiles."""
    low, middle, high = np.quantile(seconds[:, 0] / seconds[:, 1], [0.25, 0.5, 0.75])
    return {
        "what": what,
        "peer_s": round(float(np.median(seconds[:, 0])), 4),
        "ours_s": round(float(np.median(seconds[:, 1])), 4),
        "ratio": round(middle, 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "target": limit,
        "turns": len(seconds),
        **more,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "device": device_name(str(device)),
        "torch": torch.__version__,
        "commit": commit(),
    }


def main(argv: list[str] | None = None) -> None:
    """Assert that both compute the same, time both in turns, print, and with --out write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against_peer", description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, metavar="PATH", help="a clone of A-SKD's repository")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where it is there)")
    parser.add_argument("--batch", type=int, help="images a step (default: 128; CPU: 2)")
    parser.add_argument("--turns", type=int, help="steps of each that are timed (default: 30; CPU: 5)")
    parser.add_argument("--pairs", type=int, default=6000, help="pairs of the evaluation (default: 6,000)")
    parser.add_argument("--only", choices=("equal", "default", "evaluation"), nargs="+", help="of what is compared")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also merge the rows into this table")
    arguments = parser.parse_args(argv)
    device = place(arguments.device)
    gpu = device.type == "cuda"
    batch, turns = arguments.batch or (128 if gpu else 2), arguments.turns or (30 if gpu else 5)
    generator = torch.Generator().manual_seed(0)
    sharp = torch.rand(batch, 3, 112, 112, generator=generator)
    small = degrade(sharp, 28, preset="askd-compat", generator=generator)
    hr, lr = (normalise(x).to(device) for x in (sharp, small))
    y = torch.randint(CLASSES, (batch,), generator=generator).to(device)
    default = Options(precision="bfloat16" if gpu else "float32")
    only = arguments.only or ("equal", "default", "evaluation")
    kinds = {"step, equal precision, no compile": (Options(), False, 1.3)} if "equal" in only else {}
    if gpu and "default" in only:
        kinds["step, default settings"] = (default, True, 4.0)
    rows = []
    for what, (options, fast, target) in kinds.items():
        theirs, modules = peer_step(arguments.peer, hr, lr, y)
        ours, own = our_step(modules, hr, lr, y, options, fast)
        drops = [part for module in (*modules, *own) for part in module.modules() if type(part) is torch.nn.Dropout]
        shares = [drop.p for drop in drops]
        for drop in drops:
            drop.p = 0.0  # their masks would differ
        with torch.compiler.set_stance("force_eager"):  # other shares would be compiled anew, for minutes
            losses = float(theirs()), float(ours())
        if not np.isclose(*losses, rtol=1e-4 if options.precision == "float32" else 3e-2):
            raise SystemExit(f"{what}: the losses differ, {losses[0]:.6f} and {losses[1]:.6f}; nothing was timed")
        for drop, share in zip(drops, shares, strict=True):
            drop.p = share
        for _ in range(WARM_UP if gpu else 0):
            ours()
        seconds = in_turns(theirs, ours, turns, device)
        rows.append(row(what, seconds, target, device, batch=batch, peer_says=losses[0], we_say=losses[1]))
        del theirs, ours, modules, own
    if "evaluation" in only:
        theirs, ours = evaluations(arguments.peer, arguments.pairs)
        found = theirs(), ours()
        if not np.isclose(*found, rtol=0, atol=1e-9):
            raise SystemExit(f"the accuracies differ, {found[0]} and {found[1]}; nothing was timed")
        seconds = in_turns(theirs, ours, 3, torch.device("cpu"))
        more = {"batch": arguments.pairs, "peer_says": found[0], "we_say": found[1]}
        rows.append(row("10-fold evaluation", seconds, 50.0, torch.device("cpu"), **more))
    table = pd.DataFrame(rows)
    print(table.T.to_string(header=False))
    if arguments.out:
        Table("python -m benchmarks.against_peer", ("what", "batch", "device")).merge(arguments.out, table)


if __name__ == "__main__":
    main()
