"""`make gpu-results`: every table of scale gpu, the most valuable first, until the minutes are over.

Each line is a command that anyone can type. It trains and measures what its table lacks and goes on where it was
stopped, so that the whole may be called again and again. Photographs come from the prepared LFW in $LRKD_DATA, A-SKD's
published code from the clone in $LRKD_PEER; without them their lines are left out, and named.
"""

import argparse
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "book" / "results"
_LFW = "lrkd study core --scale gpu --data {data} --out {results}/gpu-lfw-core.csv"
_DEEP = "lrkd study deep --scale gpu50 --out {results}/gpu-deep.csv"
# Each with the most minutes that it is given. What that stops returns at the end; within a study the hardest side and
# what the pages show come first, seed by seed, so that what is stopped has whole comparisons.
LINES = (
    (_LFW, 30),
    ("lrkd study ladder --scale gpu --out {results}/gpu-ladder.csv", math.inf),
    (
        "lrkd study hypotheses --scale gpu --ladder {results}/gpu-ladder.csv --out {results}/gpu-hypotheses.csv"
        " --pairs {results}/gpu-hypotheses-pairs.csv --traces {results}/gpu-hypotheses-traces.csv",
        math.inf,
    ),
    (_DEEP, 25),
    ("python -m benchmarks.train_step --out {results}/gpu-train-step.csv", 20),
    ("python -m benchmarks.against_peer --peer {peer} --out {results}/gpu-against-peer.csv", 10),
    ("python -m benchmarks.faces --device cuda --out {results}/gpu-faces.csv", 2),
    ("python -m benchmarks.student_speed --out {results}/gpu-student-speed.csv", 5),
    ("lrkd study selection --scale gpu --out {results}/gpu-selection.csv", math.inf),
    ("lrkd study core --scale gpu --out {results}/gpu-core.csv", math.inf),
    (_DEEP, math.inf),
    (_LFW, math.inf),
    ("lrkd study aird --scale gpu --out {results}/gpu-aird.csv", math.inf),
    ("lrkd attention --scale gpu --out {results}/gpu-attention.csv", math.inf),
)
WANTED = {"data": ("LRKD_DATA", "prepared LFW"), "peer": ("LRKD_PEER", "clone of A-SKD's repository")}


def run(words: Sequence[str], minutes: float) -> int | None:
    """The command's exit status; None where it was ended, as so many minutes were over."""
    module = {"lrkd": ["-m", "lrkd"], "python": []}[words[0]]
    try:
        return subprocess.run([sys.executable, *module, *words[1:]], check=False, timeout=60 * minutes).returncode
    except subprocess.TimeoutExpired:
        return None


def plan(
    lines: Sequence[tuple[str, float]],
    minutes: float,
    given: Mapping[str, str | None],
    call: Callable[[Sequence[str], float], int | None] = run,
) -> list[str]:
    """Run the lines within the minutes, each within its own; -> those that were not run, each with the reason.

    Studies are told their budget and stop by themselves; anything else is ended. A line that fails is named, and the
    next one is run.
    """
    end, left = time.monotonic() + 60 * minutes, []
    for line, most in lines:
        rest = min(most, (end - time.monotonic()) / 60)
        if missing := [where for name, where in WANTED.items() if f"{{{name}}}" in line and not given.get(name)]:
            left.append(f"{line}: {' names no '.join(missing[0])}")
            continue
        quoted = {name: shlex.quote(given.get(name) or "") for name in WANTED}
        words = shlex.split(line.format(results=shlex.quote(str(RESULTS)), **quoted))
        if words[0] != "lrkd" and Path(words[-1]).exists():  # a speed table that is there is kept
            continue
        if rest <= 0:
            left.append(f"{line}: no time was left")
            continue
        if words[:2] == ["lrkd", "study"]:
            words += ["--budget", f"{max(rest, 0.01):.2f}"]
            rest += 10  # for the last step, its checkpoint and the tables
        print(f"-- {shlex.join(words)}", flush=True)
        status = call(words, rest)
        if status is None:
            left.append(f"{line}: was ended, as its minutes were over")
        elif status:
            left.append(f"{line}: ended with status {status}")
    return left


def main() -> None:
    """Run what there is time for and say what was left."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_results", description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=170, metavar="MINUTES", help="default: 170")
    arguments = parser.parse_args()
    left = plan(LINES, arguments.budget, {name: os.environ.get(where) for name, (where, _) in WANTED.items()})
    run(["lrkd", "runs", "--of", *map(str, sorted(RESULTS.glob("*.csv"))), "--out", str(RESULTS / "runs.csv")], 10)
    for line in left:
        print(f"not run: {line}")
    sys.exit(any("ended with status" in line for line in left))


if __name__ == "__main__":
    main()
