"""What the stages share: their command line, and tables that are whole whenever the process is ended."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch

from lrkd.study.experiment import commit, device_name
from lrkd.study.results import write_table

Part = TypeVar("Part")


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


def chosen(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Those of a stage's parts that $LRKD_PARTS names, with commas between them; all where it does not."""
    some = os.environ.get("LRKD_PARTS")
    return {name: part for name, part in parts.items() if not some or name in some.split(",")}


@contextmanager
def shared_gpu(stage: Stage) -> Iterator[bool]:
    """Let the processes that start in the block compute on the GPU at one time, and not in turns; whether they do.

    That is what NVIDIA's multi-process service is for: a program beside the driver, which changes no setting of the
    GPU and is ended with the block. Where it is missing or fails, they take turns. One that runs already, as
    $CUDA_MPS_PIPE_DIRECTORY says, is used and left: stages can run side by side on it.
    """
    if stage.gpu and os.environ.get("CUDA_MPS_PIPE_DIRECTORY"):
        yield _computes()
        return
    control = shutil.which("nvidia-cuda-mps-control") or "/usr/local/nvidia/bin/nvidia-cuda-mps-control"
    if not stage.gpu or not Path(control).is_file():
        print("no multi-process service: processes take turns", flush=True)
        yield False
        return
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        names = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        os.environ.update(names)
        told = subprocess.run([control, "-d"], check=False, capture_output=True, text=True, timeout=20)
        works = told.returncode == 0 and _computes()
        if not works:
            print(f"the multi-process service does not work here: {(told.stdout + told.stderr).strip()[:200]}")
            _quit(control)
            for name in names:
                os.environ.pop(name)
        try:
            yield works
        finally:
            if works:
                _quit(control)
                for name in names:
                    os.environ.pop(name, None)


def _computes() -> bool:
    """Whether a new process can use the GPU."""
    words = [sys.executable, "-c", "import torch; torch.ones(8, device='cuda').sum().item()"]
    try:
        return subprocess.run(words, check=False, capture_output=True, timeout=40).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _quit(control: str) -> None:
    with suppress(subprocess.TimeoutExpired):
        subprocess.run([control], input="quit -t 1\n", text=True, check=False, capture_output=True, timeout=10)
