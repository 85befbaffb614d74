"""`python -m benchmarks.gpu.cost`: what the stages would take at a GPU's nominal rate, by counted FLOPs; nothing runs.

FLOPs are those of the networks, counted by torch on tensors without memory, a multiply-add as two. The seconds are a
floor at the share of the nominal rate that is wanted, without compiling, starting and evaluating.
"""

from typing import NamedTuple

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import train_step
from benchmarks.gpu.photographs import EPOCHS
from lrkd.models import backbones
from lrkd.models.layers import Network
from lrkd.study.presets import SCALES

NOMINAL = {"bfloat16": 989e12, "TF32": 495e12, "float32": 67e12}  # of an H100 SXM, dense, by its datasheet
WANTED = 0.35
IMAGES = 5_160  # of LFW View 1 that are trained on: people with two photographs or more, without the validation people
REPEATS = 12  # with the warm-up


_MODELS = ("iresnet50", "iresnet18", "small")


class Cost(NamedTuple):
    """Work of a stage: what, images, FLOPs an image, and in which precision."""

    stage: str
    what: str
    images: float
    flops: float
    precision: str = "bfloat16"


def forward(network: Network) -> float:
    """FLOPs of an image."""
    x = torch.zeros(2, 3, network.size, network.size, device="meta")
    with FlopCounterMode(display=False) as counter:
        network.to("meta")(x)
    return counter.get_total_flops() / 2


def costs() -> list[Cost]:
    """The work of stages 3, 4 and 6."""
    step = {(name, model): train_step.flops(name, model, False) for name in train_step.STEPS for model in _MODELS}
    images = EPOCHS * IMAGES
    seed = [step["teacher", "iresnet18"]] * 2 + [step["fskd", "iresnet18"]] * 3 + [step["askd", "iresnet18"]]
    found = [
        Cost("3", f"{name}, IResNet-50, {precision}", 128 * REPEATS, step[name, "iresnet50"], precision)
        for name in train_step.STEPS
        for precision in ("bfloat16", "TF32")
    ]
    found += [Cost("4", "a teacher", images, step["teacher", "iresnet18"])]
    found += [Cost("4", "a seed at one side, six methods", images, sum(seed))]
    found += [
        Cost("4", "a student of IResNet-50", images, step["teacher", "iresnet18"] + forward(backbones.iresnet50()))
    ]
    found += [Cost("4", "an IResNet-50 teacher", images, step["teacher", "iresnet50"])]
    small = SCALES["cpu"].population
    assert small is not None
    shown = small.train[0] * small.train[1]
    lengths = 2 * (3 + 6 + 12 + 24 + 48) * shown
    found += [Cost("6", "part length", lengths, 2 * step["teacher", "small"] + 4 * step["fskd", "small"], "TF32")]
    return found


def main() -> None:
    """Print the table."""
    rows = [
        {
            "stage": cost.stage,
            "what": cost.what,
            "images": f"{cost.images:,.0f}",
            "GFLOP/image": f"{cost.flops / 1e9:.2f}",
            "TFLOP": f"{cost.images * cost.flops / 1e12:,.0f}",
            "seconds at 35 %": f"{cost.images * cost.flops / NOMINAL[cost.precision] / WANTED:.2f}",
        }
        for cost in costs()
    ]
    table = pd.DataFrame(rows)
    print("| " + " | ".join(table.columns) + " |\n|" + "---|" * len(table.columns))
    for row in table.itertuples(index=False):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
