"""`make gpu-results`: stages end at their limits and leave whole files; what came back is taken up, or refused."""

import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from kit import gains

from benchmarks import gpu_results
from benchmarks.gpu import answer, merge, photographs
from benchmarks.gpu.deep import DeepTaught
from benchmarks.gpu.stage import Stage, chosen
from lrkd.errors import RunError
from lrkd.models import backbones
from lrkd.study import presets
from lrkd.study import spec as study_spec
from lrkd.study.results import read_table

GPU = presets.SCALES["gpu"]
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_rehearsal_runs_every_stage_on_a_cpu(tmp_path):
    words = [sys.executable, "-m", "benchmarks.gpu_results", "--rehearse", "--out", str(tmp_path / "out")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LRKD_")}
    environment |= {"OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [*words, "--budget", "60"], cwd=ROOT, capture_output=True, text=True, timeout=1800, env=environment
    )
    assert told.returncode == 0, told.stdout + told.stderr
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [*(f"{name}.zip" for name in gpu_results.PLANS), "summary.csv"]
    assert len(files) <= 8
    assert merge.merge(tmp_path / "out", tmp_path) == 2, "nothing of a rehearsal is taken up"
    held = {}
    for name in gpu_results.PLANS:
        with zipfile.ZipFile(tmp_path / "out" / f"{name}.zip") as archive:
            held |= {item: archive.read(item).decode() for item in archive.namelist()}
    assert {"gpu-device.csv", "gpu-correctness.csv", "gpu-train-step.csv", "gpu-faces.csv", "gpu-profile.csv"} <= set(
        held
    )
    assert {"gpu-lfw-core.csv", "gpu-lfw-mixed.csv", "gpu-processes.csv", "answer-length.csv"} <= set(held)
    table = read_table(_written(tmp_path, held["gpu-lfw-core.csv"]))
    assert set(table["method"]) == {"none", "fskd-l2"}
    assert set(table["data"]) == {"noise-jpeg88"}
    mixed = read_table(_written(tmp_path, held["gpu-lfw-mixed.csv"]))
    assert set(mixed["side"]) == set(presets.SCALES["smoke"].sides), "measured at every side"


def _written(folder, text):
    path = folder / "table.csv"
    path.write_text(text)
    return path


STUB = """
import subprocess, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
(out / "gpu-stub.csv").write_text("a\\n1\\n")
print("said something", flush=True)
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A function that runs one stage, whose code is given, within so many seconds."""
    (tmp_path / "benchmarks" / "gpu").mkdir(parents=True)
    for folder in ("benchmarks", "benchmarks/gpu"):
        (tmp_path / folder / "__init__.py").touch()
    monkeypatch.setattr(gpu_results, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_results, "GRACE", 1.0)
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def run(plans, budget=60.0):
        for name, (code, _) in plans.items():
            (tmp_path / "benchmarks/gpu" / f"s{name}.py").write_text(STUB + code)
        found = {name: gpu_results.Plan(f"s{name}", seconds) for name, (_, seconds) in plans.items()}
        rows = gpu_results.run_all(budget, tmp_path / "out", False, tmp_path / "work", found)
        return {row["stage"]: row["status"] for row in rows}, tmp_path / "out"

    return run


@pytest.mark.slow
def test_a_stage_that_hangs_or_crashes_does_not_stop_the_next(stage, tmp_path):
    worker = f"""
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path({str(tmp_path)!r}, "child").write_text(str(child.pid))
time.sleep(600)
"""
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    start = time.monotonic()
    said, out = stage({"hangs": (worker, 3.0), "crashes": (crash, 60.0), "works": ("", 60.0)})
    assert said == {"hangs": "ran out", "crashes": "failed (-9)", "works": "ok"}
    assert time.monotonic() - start < 60
    for name in said:
        with zipfile.ZipFile(out / f"{name}.zip") as archive:
            assert archive.read("gpu-stub.csv") == b"a\n1\n", "what it had written is there"
            assert b"said something" in archive.read("log.txt")
    assert list(pd.read_csv(out / "summary.csv")["status"]) == list(said.values())
    child, end = int((tmp_path / "child").read_text()), time.monotonic() + 10
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _runs(child), "what a stage started ends with it"


def test_what_a_later_stage_needs_is_prepared_from_the_start_and_ends_with_the_stages(stage, tmp_path, monkeypatch):
    plans = {
        "first": gpu_results.Plan("sfirst", 60.0),
        "last": gpu_results.Plan("slast", 60.0, warms=True),
    }
    monkeypatch.setattr(gpu_results, "Plan", lambda module, seconds: plans[module[1:]])
    code = f"""
import os
if os.environ.get("LRKD_WARM"):
    Path({str(tmp_path)!r}, "warm").write_text(f"{{os.getpid()}} {{os.environ['OMP_NUM_THREADS']}}")
    time.sleep(600)
"""
    wait = f"""
while not Path({str(tmp_path)!r}, "warm").exists():
    time.sleep(0.05)
"""
    said, _ = stage({"first": (wait, 60.0), "last": (code, 60.0)})
    assert said == {"first": "ok", "last": "ok"}
    process, threads = map(int, (tmp_path / "warm").read_text().split())
    assert threads == 1
    end = time.monotonic() + 10
    while _runs(process) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _runs(process)


def _runs(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, and nobody has asked how


@pytest.mark.slow
def test_what_there_is_no_time_for_is_named(stage):
    said, _ = stage({"long": ("time.sleep(600)", 600.0), "late": ("", 60.0)}, budget=4.0)
    assert said == {"long": "ran out", "late": "no time was left"}


def test_photographs_come_by_value():
    tables = photographs.grid(GPU, "faces")
    wanted = photographs.in_order(tables)
    listed = [repr(spec) for specs in tables.values() for spec in specs]
    assert sorted(map(repr, wanted)) == sorted(listed)
    assert len(set(listed)) == len(listed), "each once"
    assert [spec.role for spec in wanted[:2]] == ["teacher"] * 2
    seed = [(s.method.name, s.side) for s in wanted[2:8]]
    assert seed == [*((name, 14) for name in photographs.METHODS), ("none", (112, 56, 28, 14))]
    assert all(spec.seed == 0 for spec in wanted[2:8])
    assert all(spec.seed == 1 for spec in wanted[8:14])
    later = [(spec.side, type(spec)) for spec in wanted[2 + 6 * 6 :]]
    assert later == [(28, study_spec.Spec)] * 15 + [(14, DeepTaught)] * 9
    assert {spec.model["name"] for spec in wanted} == {"iresnet18"}


def test_a_deeper_teacher_is_another_run(tmp_path):
    deep = photographs.grid(GPU, "faces")["gpu-lfw-deep"][0]
    assert deep.teacher_run.model["name"] == "iresnet50"
    assert sum(p.numel() for p in backbones.build(**deep.model).parameters()) < 3e7


@pytest.mark.parametrize("copied", [True, False])
def test_the_commit_can_be_told_whatever_git_says_where_the_files_were_copied_to(tmp_path, monkeypatch, copied):
    from lrkd.study import experiment

    if copied:
        monkeypatch.setattr(experiment, "__file__", str(tmp_path / "experiment.py"))
    experiment.commit.cache_clear()
    monkeypatch.setenv("LRKD_COMMIT", "abc1234")
    assert experiment.commit() == "abc1234"
    if not copied:
        experiment.commit.cache_clear()
        return
    experiment.commit.cache_clear()
    monkeypatch.delenv("LRKD_COMMIT")
    assert experiment.commit() == "unknown"
    experiment.commit.cache_clear()


def test_the_commit_of_a_repository_that_the_package_is_installed_in_is_not_its_own(tmp_path, monkeypatch):
    from lrkd.study import experiment

    package = tmp_path / ".venv" / "lrkd"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / ".gitignore").write_text(".venv\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@localhost"]
    for words in (["init", "-q"], ["add", ".gitignore"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    monkeypatch.setattr(experiment, "__file__", str(package / "study" / "experiment.py"))
    monkeypatch.delenv("LRKD_COMMIT", raising=False)
    experiment.commit.cache_clear()
    assert experiment.commit() == "unknown"
    subprocess.run([*git, "add", "-f", str(package / "__init__.py")], check=True, capture_output=True)
    experiment.commit.cache_clear()
    assert experiment.commit().endswith("+"), "tracked, and not committed yet"
    experiment.commit.cache_clear()


RUN = {"data": "lfw", "scale": "gpu", "role": "student", "method": "none", "side": 14, "seed": 0, "teacher_seed": None}
ROW = {
    **RUN,
    "protocol": "test",
    "accuracy": 0.8,
    "device": "a GPU",
    "torch": "2.11.0",
    "commit": "abc1234",
    "config": "c0",
}


@pytest.fixture
def back(tmp_path, monkeypatch):
    """A function that packs tables as they come back, and merges them into an empty folder of results."""
    monkeypatch.setattr(merge, "known_commit", lambda commit: commit == "abc1234")
    (tmp_path / "results").mkdir()

    def taken(tables, cut=None):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        with zipfile.ZipFile(out / "1.zip", "w") as archive:
            for name, content in tables.items():
                archive.writestr(
                    name, content if isinstance(content, str) else pd.DataFrame(content).to_csv(index=False)
                )
            archive.writestr("log.txt", "")
        if cut:
            (out / "1.zip").write_bytes((out / "1.zip").read_bytes()[:cut])
        return merge.merge(out, tmp_path / "results"), tmp_path / "results"

    return taken


def test_what_fits_is_taken_up_and_runs_that_are_there_stay(back):
    status, results = back({"gpu-lfw-core.csv": [ROW], "gpu-faces.csv": [ROW]})
    assert status == 0
    again = [ROW | {"accuracy": 0.7}, ROW | {"seed": 1, "config": "c1"}]
    assert back({"gpu-lfw-core.csv": again})[0] == 0
    table = read_table(results / "gpu-lfw-core.csv")
    assert list(table["accuracy"]) == [0.8, 0.8]
    assert list(table["config"]) == ["c0", "c1"]
    _, said = gains.at_scales("lfw-core", folder=results)
    assert "gpu-lfw-core.csv, 2 runs on a GPU, commit abc1234" in said, "pages pick it up"


def test_a_table_of_two_stages_is_joined(back, tmp_path):
    with zipfile.ZipFile(_folder(tmp_path / "out") / "2.zip", "w") as archive:
        archive.writestr("gpu-steps.csv", pd.DataFrame([ROW | {"step": "b"}]).to_csv(index=False))
    status, results = back({"gpu-steps.csv": [ROW | {"step": "a"}]})
    assert status == 0
    assert list(read_table(results / "gpu-steps.csv", ("step",))["step"]) == ["a", "b"]
    with zipfile.ZipFile(tmp_path / "out" / "2.zip", "w") as archive:
        archive.writestr("gpu-steps.csv", pd.DataFrame([ROW]).to_csv(index=False))
    assert back({"gpu-steps.csv": [ROW | {"step": "a"}]})[0] == 2, "other columns"


def test_what_was_measured_before_stays_unless_it_is_measured_again(back):
    step = {key: value for key, value in ROW.items() if key != "config"} | {"model": "small", "switches": "none"}
    old = [step | {"step": "a", "batch": 2, "ms": 1}, *(step | {"step": "b", "batch": n, "ms": 2} for n in (2, 4))]
    assert back({"gpu-train-step.csv": old})[0] == 0
    status, results = back({"gpu-train-step.csv": [old[1] | {"ms": 3}], "claims.csv": [ROW]})
    assert status == 0
    table = read_table(results / "gpu-train-step.csv", ("step",))
    assert {(r.step, r.batch): r.ms for r in table.itertuples()} == {("a", 2): 1, ("b", 2): 3, ("b", 4): 2}
    assert not (results / "claims.csv").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "book" / "results").glob("gpu-*.csv")), ids=lambda path: path.stem)
def test_each_committed_table_can_be_merged_with_itself(path):
    table = merge.read(path, path.name)
    assert merge.joined(path.name, table, table).equals(table)


def test_a_gpu_without_memory_left_is_shared_by_fewer(tmp_path, monkeypatch, capsys):
    asked = []

    def run(part, *_, workers, **how):
        asked.append((part, workers.count))
        if workers.count > 2:
            raise RunError("a worker process died")
        return pd.DataFrame({"config": ["a"]})

    monkeypatch.setattr(answer.answer, "run", run)
    monkeypatch.setattr(answer, "processes", lambda *_: 5)
    monkeypatch.setattr(answer, "ORDER", ("ladders", "worlds"))
    monkeypatch.setattr(answer, "RESULTS", tmp_path / "none")
    assert answer.measure(Stage(tmp_path, time.monotonic() + 60, torch.device("cpu"), rehearse=False)) == 0
    assert asked == [("ladders", 5), ("ladders", 2), ("worlds", 2)]
    assert "part ladders, 5 processes: a worker process died" in capsys.readouterr().out


def test_parts_are_named_by_the_environment(monkeypatch):
    parts = {"a": 1, "b": 2, "c": 3}
    monkeypatch.delenv("LRKD_PARTS", raising=False)
    assert chosen(parts) == parts
    monkeypatch.setenv("LRKD_PARTS", "c,a")
    assert chosen(parts) == {"a": 1, "c": 3}


def test_photographs_that_the_tables_have_are_not_trained_on_again(tmp_path, monkeypatch):
    (tmp_path / "gpu-lfw-core.csv").write_text("method,config\nfskd,1234567890\n")
    (tmp_path / "gpu-lfw-mixed.csv").write_text("method,config\nnone,12345e7890\n")
    monkeypatch.setattr(photographs, "RESULTS", tmp_path)
    assert photographs.measured() == {"1234567890", "12345e7890"}


def _folder(path):
    path.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize(
    ("tables", "cut", "match"),
    [
        ({"gpu-lfw-core.csv": [ROW | {"more": 1}]}, None, "more"),
        ({"gpu-lfw-core.csv": [ROW | {"commit": "fffffff"}]}, None, "fffffff"),
        ({"gpu-lfw-core.csv": [ROW | {"commit": "abc1234+"}]}, None, r"abc1234\+"),
        ({"gpu-lfw-core.csv": [ROW | {"config": "other"}]}, None, "configuration changed"),
        ({"gpu-lfw-core.csv": [{"device": "a"}]}, None, "no column"),
        ({"gpu-new.csv": "a,b\n1,2"}, None, "whole line"),
        ({"../escape.csv": [ROW]}, None, "escape"),
        ({"gpu-new.csv": [ROW]}, 60, "not whole"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(back, capsys, tables, cut, match):
    _, results = back({"gpu-lfw-core.csv": [ROW]})
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    capsys.readouterr()
    status, _ = back({"gpu-other.csv": [ROW], **tables}, cut)
    assert status == 2
    said = capsys.readouterr().out
    assert re.search(match, said), said
    assert {path.name: path.read_bytes() for path in results.iterdir()} == before


def test_a_commit_is_known_when_it_is_of_this_past():
    told = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if told.returncode:
        pytest.skip("not in a checkout")
    assert merge.known_commit(told.stdout.strip())
    assert not merge.known_commit("0" * 40)
    assert not merge.known_commit("unknown")
