"""A study as jobs of a cluster, through submitit: an array of equal workers that divide the runs of one store.

Any number of processes may share a store, so a job is no list of runs but a worker that takes what is left. A job that
is preempted or out of time is put back into the queue by submitit and goes on from the checkpoints.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lrkd import userfile
from lrkd.errors import ConfigError, RunError, first_line, needed
from lrkd.study import runner
from lrkd.study.spec import Spec

# submitit's names; "local" runs the jobs as processes of this machine, as a trial.
LAUNCHERS = ("slurm", "local")


@dataclass
class Job:
    """One worker of a study: called in a job, it trains what the store lacks. Runs go to `where`, on `device`."""

    wanted: Sequence[Spec]
    where: Path
    workers: int | None = None
    device: str | None = None
    budget: float | None = None
    known: pd.DataFrame | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the users' files come first, as methods in `wanted` are defined there."""
        return {"files": userfile.LoadedFiles(), **self.__dict__}

    def __call__(self) -> int:
        """Train until nothing is left or the budget of minutes is over; return the number of runs that are there."""
        table = runner.run_study(
            self.wanted,
            self.where,
            workers=self.workers,
            device=self.device,
            progress=False,
            known=self.known,
            stop=runner.over_after(self.budget),
        )
        return 0 if table.empty else int(table["config"].nunique())

    def checkpoint(self) -> Any:
        """Return what submitit queues in place of a preempted job: the same one, as the store knows what is done."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(job: Job, count: int, launcher: str, folder: Path, parameters: Mapping[str, Any] | None = None) -> list[Any]:
    """Queue copies of a job, on Slurm as one array.

    Args:
        job: The job.
        count: How many copies.
        launcher: One of `LAUNCHERS`.
        folder: For their logs.
        parameters: Of submitit's executor, such as timeout_min, gpus_per_node, cpus_per_task, slurm_partition.

    Returns:
        submitit's jobs.

    Raises:
        ConfigError: submitit or Slurm is not there, or a parameter is not known.
    """
    if launcher not in LAUNCHERS:
        raise ConfigError(f"launcher: expected {' or '.join(LAUNCHERS)}, got {launcher!r}")
    if count < 1:
        raise ConfigError(f"jobs: expected at least 1, got {count}")
    with needed("a launcher", "cluster"):
        import submitit
        from submitit.core.utils import FailedJobError
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=launcher)
        executor.update_parameters(**{"name": "lrkd", "timeout_min": 60, **(parameters or {})})
        with executor.batch():
            jobs = [executor.submit(job) for _ in range(count)]
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError, OSError, FailedJobError) as error:
        raise ConfigError(f"launcher {launcher}: {first_line(error)}") from error
    return jobs


_EVERY = 30.0  # seconds between two looks


def wait(jobs: Sequence[Any], on_look: Callable[[], None]) -> None:
    """Wait until all jobs have ended. Ctrl-C leaves the jobs alone.

    Args:
        jobs: submitit's.
        on_look: Called from time to time.

    Raises:
        RunError: A job failed; with the end of its log.
    """
    while not all(job.done() for job in jobs):
        on_look()
        time.sleep(_EVERY)
    for job in jobs:
        if error := job.exception():
            # The last line of the job's own traceback.
            lines = re.findall(r"^[\w.]*(?:Error|Exit|Interrupt)\b.*", str(error), re.MULTILINE)
            said = lines[-1] if lines else first_line(error)
            raise RunError(f"job {job.job_id} failed: {said} (log: {job.paths.stderr}); the same command goes on")
