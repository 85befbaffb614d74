"""What the stages share: their command line, and tables that are whole whenever the process is ended."""

import argparse
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lrkd.study.experiment import commit, device_name
from lrkd.study.results import write_table


@dataclass(frozen=True)
class Stage:
    """What a stage was told: the folder for its tables, when it must be over, the device, whether it is a rehearsal."""

    out: Path
    end: float
    device: torch.device
    rehearse: bool

    @property
    def left(self) -> float:
        """Seconds until its limit."""
        return self.end - time.monotonic()

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def stamp(self) -> dict[str, str]:
        """The columns that say where a figure comes from."""
        return {"device": device_name(str(self.device)), "torch": torch.__version__, "commit": commit()}

    def write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """NAME.csv in the stage's folder, whole at every moment; called again as rows are added."""
        write_table(self.out / f"{name}.csv", pd.DataFrame(list(rows)))


def begin(what: str) -> Stage:
    """The stage that the command line asks for. A CPU, which is what is rehearsed on, computes on one thread."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the tables")
    parser.add_argument("--seconds", type=float, required=True, metavar="S", help="after which it should have ended")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, as small as it gets")
    given = parser.parse_args()
    device = torch.device("cpu" if given.rehearse else "cuda")
    if device.type == "cpu":
        torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    return Stage(given.out, time.monotonic() + given.seconds, device, given.rehearse)
