"""Everything that a GPU is wanted for, in minutes: checks, speeds, photographs at 112 px, the study's worlds.

    python3 -m benchmarks.gpu_results --budget 9 --out DIR          on a GPU, from the repository's root
    python3 -m benchmarks.gpu_results --rehearse --out DIR          on a CPU, as small as it gets
    python3 -m benchmarks.gpu_results --merge DIR                   into book/results, where DIR has come back

Nothing is installed. The stages come by value; each is a process of its own that is ended at its limit, so that neither
a crash nor a hang of one stops the next. While a stage runs, its tables are packed every few seconds into one file in
DIR: what was measured is there when the machine is taken away. $LRKD_DATA names the photographs (`data_prep.jpeg` makes
them fit), $LRKD_PEER a clone of A-SKD's code, $LRKD_COMMIT the commit, where the files lie outside a checkout.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACK_EVERY = 10.0  # seconds
REHEARSAL = b"a rehearsal"  # in an archive: nothing of it is taken up
GRACE = 5.0  # between a stage's own limit and its end, and between asking it to end and ending it


@dataclass(frozen=True)
class Plan:
    """A stage: its module, the most seconds that it gets, whether it prepares itself while those before it run."""

    module: str
    seconds: float
    warms: bool = False


PLANS = {
    "1-device": Plan("rates", 30),
    "2-correctness": Plan("correctness", 60),
    "3-speeds": Plan("speeds", 60),
    "4-photographs": Plan("photographs", 200),
    "5-compiled": Plan("compiled", 50, warms=True),
    "6-answer": Plan("answer", float("inf"), warms=True),
}


def start(module: str, out: Path, seconds: float, rehearse: bool, **more: str) -> subprocess.Popen[bytes]:
    """A stage as a process with a session of its own, so that its workers end with it; what it says goes to a log."""
    out.mkdir(parents=True, exist_ok=True)
    known = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}  # else torch is slow
    words = [sys.executable, "-m", f"benchmarks.gpu.{module}", "--out", str(out), "--seconds", f"{seconds:.1f}"]
    with (out / "log.txt").open("ab") as log:
        return subprocess.Popen(
            words + ["--rehearse"] * rehearse,
            cwd=ROOT,
            env=known | {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"} | more,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a stage and what it started: asked first, then not asked."""
    for sign, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + wait
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll() is not None and sign == signal.SIGTERM:
            continue  # its workers may have outlived it
    process.wait()


def pack(folder: Path, target: Path, comment: bytes = b"") -> None:
    """The tables and the log of a stage as one file, which is whole at every moment."""
    part = target.with_name(f".{target.name}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = comment
        for path in sorted((*folder.glob("*.csv"), *folder.glob("log.txt"))):
            archive.write(path, path.name)
    part.replace(target)


def last_words(folder: Path) -> str:
    """The end of a stage's log in a line."""
    log = folder / "log.txt"
    words = log.read_text(errors="replace").split() if log.exists() else []
    return " ".join(words)[-300:]


def run(name: str, plan: Plan, seconds: float, work: Path, out: Path, rehearse: bool) -> dict[str, str]:
    """A stage within its limit -> its row of summary.csv."""
    folder, begun = work / name, time.monotonic()
    process = start(plan.module, folder, seconds, rehearse)
    packed = begun
    try:
        while process.poll() is None and time.monotonic() < begun + seconds + GRACE:
            time.sleep(0.1)
            if time.monotonic() > packed + PACK_EVERY:
                pack(folder, out / f"{name}.zip", REHEARSAL * rehearse)
                packed = time.monotonic()
        status = {None: "ran out", 0: "ok"}.get(process.poll(), f"failed ({process.poll()})")
    finally:
        end(process)
        pack(folder, out / f"{name}.zip", REHEARSAL * rehearse)
    row = {"stage": name, "status": status, "seconds": f"{time.monotonic() - begun:.0f}", "said": last_words(folder)}
    print(f"{name}: {status}, {row['seconds']} s. {row['said']}", flush=True)
    return row


def run_all(
    budget: float, out: Path, rehearse: bool, work: Path, plans: Mapping[str, Plan] = PLANS
) -> list[dict[str, str]]:
    """The stages one after the other within `budget` seconds; summary.csv is written after each."""
    out.mkdir(parents=True, exist_ok=True)
    until, rows = time.monotonic() + budget, []
    warming = {
        name: start(plan.module, work / f"{name}-warm", budget, rehearse, LRKD_WARM="1", OMP_NUM_THREADS="1")
        for name, plan in plans.items()
        if plan.warms and not rehearse
    }
    try:
        for name, plan in plans.items():
            left = until - time.monotonic() - GRACE
            if left < 1:
                rows.append({"stage": name, "status": "no time was left", "seconds": "0", "said": ""})
                print(f"{name}: no time was left", flush=True)
            else:
                # The limits are a GPU's; a CPU that others use as well may take longer.
                rows.append(run(name, plan, min(plan.seconds * (20 if rehearse else 1), left), work, out, rehearse))
            if name in warming:
                print(f"{name}, prepared: {last_words(work / f'{name}-warm')}", flush=True)
            part = out / ".summary.csv.part"
            with part.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            part.replace(out / "summary.csv")
    finally:
        for process in warming.values():
            end(process)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages, or merge what they left; 1 where a stage failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_results", description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=9, metavar="MINUTES", help="for all of it (default: 9)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for what is measured, at most eight small files")
    parser.add_argument(
        "--only", nargs="+", metavar="N", choices=[name[0] for name in PLANS], help="some of the stages"
    )
    parser.add_argument(
        "--limit", nargs="+", type=float, metavar="S", help="seconds for each of them, in place of ours"
    )
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, as small as it gets; nothing is kept of it")
    parser.add_argument("--merge", type=Path, metavar="DIR", help="take what was measured into book/results")
    given = parser.parse_args(argv)
    if (given.out is None) == (given.merge is None):
        parser.error("expected --out DIR to measure or --merge DIR to take up, got both or neither")
    if given.merge is not None:
        from benchmarks.gpu.merge import merge

        return merge(given.merge)
    with tempfile.TemporaryDirectory(prefix="lrkd-gpu-") as temporary:
        work = Path(temporary)
        if given.rehearse:  # neither runs nor rendered faces of it are for anybody
            os.environ |= {"LRKD_RUNS": str(work / "runs"), "LRKD_CACHE": str(work / "cache")}
        plans = {name: plan for name, plan in PLANS.items() if given.only is None or name[0] in given.only}
        if given.limit is not None:
            if len(given.limit) != len(plans):
                parser.error(f"--limit: expected {len(plans)}, one for each of the stages, got {len(given.limit)}")
            limits = zip(plans.items(), given.limit, strict=True)
            plans = {name: replace(plan, seconds=seconds) for (name, plan), seconds in limits}
        rows = run_all(60 * given.budget, given.out.resolve(), given.rehearse, work, plans)
    return int(any(row["status"] != "ok" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
