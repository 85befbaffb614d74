"""Tables of `lrkd adapt`, as pages read them."""

from pathlib import Path

import pandas as pd

from lrkd.study.shift_bench import FPIR
from lrkd.study.shift_study import TABLE

PARTS = ("calibration", "choice", "test", "batches", "layers", "momentum", "alternatives", "mixture", "matrix")
COLUMNS = (
    *("part", "data", "scale", "method", "side", "seed", "teacher_seed", "device", "torch", "commit", "config"),
    "preset",
    *("shift", "level", "dial", "adaptation", "momentum", "batch", "order", "least", "images", "pairs", "accuracy"),
    *("accuracy_hr_lr", *(f"tpir20_at_fpir_{rate:g}" for rate in FPIR), "layer", "moved", "ratio"),
)


def read(path: Path | str) -> pd.DataFrame:
    """Read a table of `lrkd adapt`; where the file is not there yet, one with `COLUMNS` and no row."""
    found = TABLE.read(path) if Path(path).exists() else pd.DataFrame()
    return found.reindex(columns=list(COLUMNS))
