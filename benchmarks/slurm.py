"""A one-node Slurm from Debian's packages, started here for as long as a study runs on it through submitit.

    apt-get install slurm-wlm munge        (as root, as is this script; it leaves nothing running)

Two jobs of an array divide a study (a teacher and six students of scale smoke). Once the first run is there both are
sent the signal that Slurm sends before it preempts a job or its time is over; submitit queues them again, and they go
on. Fails when a job has not started twice, a run is missing, or the table is not that of a study without Slurm.
"""

import argparse
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from lrkd.distill import methods
from lrkd.study import cluster, experiment, presets, results, runner
from lrkd.study import spec as study_spec

CONF = """\
ClusterName=trial
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
SlurmdPort={port1}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
MinJobAge=300
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=trial Nodes=ALL Default=YES MaxTime=60 State=UP
"""


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """A munged, a slurmctld and a slurmd of our own, in `folder`, while the block runs."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    folder.chmod(0o711)
    port = 26000 + os.getpid() % 1000
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, port=port, port1=port + 1000, cpus=os.cpu_count()))
    os.environ["SLURM_CONF"] = str(conf)
    files = {"key-file": key} | {f"{name}-file": folder / f"munged.{name}" for name in ("pid", "log", "seed")}
    munged = [f"--{name}={path}" for name, path in files.items()]
    commands = (
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munged],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf), "-N", host],
    )
    log = (folder / "daemons.log").open("w")
    running = []
    try:
        for command in commands:
            running.append(subprocess.Popen(command, stdout=log, stderr=log))
            time.sleep(2)
        for _ in range(60):
            found = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
            if "idle" in found.stdout:
                break
            time.sleep(1)
        else:
            raise SystemExit(f"the node did not come up: {found.stdout}{found.stderr}; logs in {folder}")
        yield
    finally:
        subprocess.run(["scancel", "--user", "root"], check=False)
        for _ in range(60):  # a job that has said its result is still ending, and would wait for these for ever
            queue = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=False)
            if not queue.stdout.strip():
                break
            time.sleep(1)
        for process in reversed(running):
            process.terminate()
            process.wait()
        log.close()


def trial(scale: presets.Scale, source: str) -> list[study_spec.Spec]:
    """A teacher and six students."""
    students = [study_spec.Spec(methods.get("fskd"), 6, seed, scale, source) for seed in range(6)]
    return [study_spec.teacher_spec(scale, 0, source), *students]


def main() -> None:
    """Start Slurm, run the study on it, compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slurm", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="smoke", help="of the study (default: smoke)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with runs and logs")
    arguments = parser.parse_args()
    wanted = trial(presets.scale(arguments.scale), study_spec.PROCEDURAL)
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    study_spec.splits(wanted[0].scale)  # rendered before the jobs want it
    try:
        run(wanted, folder)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)


def run(wanted: list[study_spec.Spec], folder: Path) -> None:
    """The study on Slurm, with one job requeued, and the same study without."""
    store, began, signalled = folder / "runs", time.monotonic(), False
    with slurm(folder):
        version = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, check=True).stdout.strip()
        job = cluster.Job(wanted, store, workers=1, device="cpu")
        jobs = cluster.submit(job, 2, "slurm", folder / "jobs", {"cpus_per_task": 1, "timeout_min": 30})
        print(f"{version}: jobs {', '.join(one.job_id for one in jobs)}", flush=True)

        def look() -> None:
            nonlocal signalled
            done = sum(experiment.find_run(spec, store).finished for spec in wanted)
            queue = subprocess.run(["squeue", "-h", "-r", "-o", "%i %T"], capture_output=True, text=True, check=True)
            said = ", ".join(queue.stdout.splitlines())
            print(f"{time.monotonic() - began:.0f} s: {done} of {len(wanted)} runs; {said}", flush=True)
            if done and not signalled:
                for one in jobs:
                    subprocess.run(["scancel", "--signal=USR2", one.job_id], check=True)
                signalled = True

        cluster._EVERY = 1.0
        cluster.wait(jobs, look)
    table = results.results_table(wanted, store)
    alone = runner.run_study(wanted, folder / "alone", workers=1, device="cpu", progress=False)
    differ = ["seconds", "commit"]
    pd.testing.assert_frame_equal(table.drop(columns=differ), alone.drop(columns=differ))
    starts = sum(path.read_text().count("Starting with JobEnvironment") for path in (folder / "jobs").glob("*_log.out"))
    if starts < 4:
        raise SystemExit(f"the two jobs started {starts} times in all, expected at least 4: see {folder / 'jobs'}")
    print(f"{len(wanted)} runs by two jobs that started {starts} times in all; the table is that without Slurm")


if __name__ == "__main__":
    main()
