"""`make gpu-results`: every table of scale gpu, the most valuable first, until the minutes are over.

Each line is a command that anyone can type. It trains and measures what its table lacks and goes on where it was
stopped, so that the whole may be called again and again. Photographs come from the prepared LFW in $LRKD_DATA; without
it their line is left out, and named.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "book" / "results"
# {data}: the prepared LFW. What takes seconds to minutes comes first, the widest grid last.
LINES = (
    "python -m benchmarks.train_step --out {results}/train-step.csv",
    "lrkd study core --scale gpu --data {data} --out {results}/gpu-lfw.csv",
    "lrkd study ladder --scale gpu --out {results}/gpu-ladder.csv",
    "lrkd study hypotheses --scale gpu --ladder {results}/gpu-ladder.csv --out {results}/gpu-hypotheses.csv"
    " --pairs {results}/gpu-hypotheses-pairs.csv --traces {results}/gpu-hypotheses-traces.csv",
    "lrkd study deep --scale gpu50 --out {results}/gpu-deep.csv",
    "lrkd study selection --scale gpu --out {results}/gpu-selection.csv",
    "lrkd study core --scale gpu --out {results}/gpu-core.csv",
)


def run(words: Sequence[str]) -> int:
    """The command's exit status."""
    module = {"lrkd": ["-m", "lrkd"], "python": []}[words[0]]
    return subprocess.run([sys.executable, *module, *words[1:]], check=False).returncode


def plan(
    lines: Sequence[str], minutes: float, data: str | None, call: Callable[[Sequence[str]], int] = run
) -> list[str]:
    """Run the lines within the minutes; -> those that were not run, each with the reason.

    Studies are given what is left as their budget. A line that fails is named, and the next one is run.
    """
    end, left = time.monotonic() + 60 * minutes, []
    for line in lines:
        rest = (end - time.monotonic()) / 60
        if "{data}" in line and not data:
            left.append(f"{line}: LRKD_DATA names no prepared LFW")
            continue
        if rest <= 0:
            left.append(f"{line}: no time was left")
            continue
        words = shlex.split(line.format(results=RESULTS, data=shlex.quote(data or "")))
        if words[0] == "lrkd":
            words += ["--budget", f"{rest:.2f}"]
        elif Path(words[-1]).exists():  # a speed table that is there is kept
            continue
        print(f"-- {shlex.join(words)}", flush=True)
        if status := call(words):
            left.append(f"{line}: ended with status {status}")
    return left


def main() -> None:
    """Run what there is time for and say what was left."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_results", description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=170, metavar="MINUTES", help="default: 170")
    arguments = parser.parse_args()
    left = plan(LINES, arguments.budget, os.environ.get("LRKD_DATA"))
    for line in left:
        print(f"not run: {line}")
    sys.exit(any("ended with status" in line for line in left))


if __name__ == "__main__":
    main()
