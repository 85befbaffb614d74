"""Studies as jobs, through submitit's local executor: equal workers that divide the runs of one store."""

import pickle
from collections import Counter
from pathlib import Path

import pytest
from test_runner_shared import WANTED, weights

from lrkd.cli import program
from lrkd.errors import ConfigError, RunError
from lrkd.study import cluster, experiment, grids, results

pytestmark = [
    pytest.mark.usefixtures("smoke"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.fixture
def job(tmp_path):
    return cluster.Job(WANTED, tmp_path, workers=1, device="cpu")


def test_a_job_trains_what_is_left_and_counts_what_is_there(job, tmp_path):
    experiment.train(WANTED[0], tmp_path, device="cpu", progress=False)
    early = cluster.Job(WANTED, tmp_path, workers=1, device="cpu", budget=1e-9)
    assert early() == 1, "the teacher, as the budget left no time for a student"
    assert job() == 4
    assert job() == 4


def test_a_preempted_job_is_queued_again_as_it_is(job):
    again = job.checkpoint()
    assert again.function is job
    assert pickle.loads(pickle.dumps(job)).wanted == WANTED


@pytest.mark.slow
def test_the_command_divides_a_study_among_local_jobs(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(grids.STUDIES, "shared", lambda scale, source: WANTED)
    monkeypatch.setattr(cluster, "_EVERY", 0.2)
    table = tmp_path / "t.csv"
    words = ["study", "shared", "--device", "cpu", "--workers", "1", "--runs", str(tmp_path / "runs")]
    assert (
        program.main([*words, "--launcher", "local", "--jobs", "2", "--job", "timeout_min=9", "--out", str(table)]) == 0
    )
    said = capfd.readouterr().out
    assert said.startswith("jobs ")
    assert "runs are there" not in said, "all are"
    assert Counter(results.read_table(table).groupby("config").first()["role"]) == {"teacher": 1, "student": 3}
    assert all(weights(spec, tmp_path / "runs") for spec in WANTED)
    assert len(list((tmp_path / "runs" / "jobs").glob("*_log.out"))) == 2


@pytest.mark.slow
def test_a_job_that_fails_is_named_with_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_EVERY", 0.2)
    (tmp_path / "file").touch()
    job = cluster.Job(WANTED, tmp_path / "file", workers=1, device="cpu")
    jobs = cluster.submit(job, 1, "local", tmp_path / "jobs")
    with pytest.raises(RunError, match=r"job \d+ failed: .*RunError: .*cannot be made.*_log\.err\); the same command"):
        cluster.wait(jobs, lambda: None)


@pytest.mark.parametrize(
    ("count", "launcher", "parameters", "match"),
    [
        (1, "pbs", {}, "launcher: expected slurm or local, got 'pbs'"),
        (0, "local", {}, "jobs: expected at least 1, got 0"),
        (1, "local", {"gpu_per_node": 1}, "launcher local: .*gpu_per_node"),
        (1, "local", {"timeout_min": "abc"}, "launcher local: "),
    ],
)
def test_what_cannot_be_launched(job, tmp_path, count, launcher, parameters, match):
    with pytest.raises(ConfigError, match=match):
        cluster.submit(job, count, launcher, tmp_path / "jobs", parameters)


def test_a_folder_for_logs_that_cannot_be_made(job, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"launcher local: .*file"):
        cluster.submit(job, 1, "local", tmp_path / "file" / "jobs")


def test_slurm_that_is_not_there_and_parameters_that_are_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(Path(tmp_path)))
    monkeypatch.setitem(grids.STUDIES, "shared", lambda scale, source: WANTED)
    words = ["study", "shared", "--device", "cpu", "--runs", str(tmp_path), "--launcher", "slurm"]
    assert program.main(words) == 2
    assert "launcher slurm: " in capsys.readouterr().err
    assert program.main([*words, "--job", "timeout_min"]) == 2
    assert "expected NAME=VALUE" in capsys.readouterr().err
