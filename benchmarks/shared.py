"""What all benchmarks do alike; apart from those that weigh a process, which would carry torch with it."""

from pathlib import Path

import pandas as pd
import torch

from lrkd.files import Table
from lrkd.study.experiment import device_of


def place(name: str | None) -> torch.device:
    """Choose the device of that name (None: CUDA where there is one); a CPU computes on one thread from now on."""
    device = torch.device(device_of(name))
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device


def finish(table: pd.DataFrame, out: Path | None, *key: str) -> None:
    """Print a table, and merge it into the file that was named.

    Args:
        table: What was measured, a row a measurement.
        out: The CSV file. None: there is none.
        key: The columns that say what a row measured. Rows of the file with another key stay.
    """
    print(table.to_string(index=False))
    if out:
        Table("python -m benchmarks", key).merge(out, table)
