"""What several benchmarks do alike; apart from those that weigh a process, which would carry torch with it."""

from pathlib import Path

import pandas as pd
import torch

from lrkd.study.experiment import device_of


def place(name: str | None) -> torch.device:
    """The device of that name (None: CUDA where it is there); a CPU computes on one thread from now on."""
    device = torch.device(device_of(name))
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device


def finish(table: pd.DataFrame, out: Path | None) -> None:
    """Print the table, and write it where a file was named."""
    print(table.to_string(index=False))
    if out:
        table.to_csv(out, index=False)
