"""Studies that several processes share, and studies with a budget: no run is trained twice, and none is lost."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from lrkd.cli import program
from lrkd.distill import methods
from lrkd.study import experiment, grids, store
from lrkd.study import spec as study_spec
from lrkd.study.presets import SCALES
from lrkd.study.runner import run_study
from lrkd.study.spec import Spec, teacher_spec

SMOKE = SCALES["smoke"]
WANTED = [teacher_spec(SMOKE), *(Spec(methods.get("fskd"), side, 0, SMOKE) for side in (12, 6, 3))]
pytestmark = pytest.mark.usefixtures("smoke")


def weights(spec: Spec, where: Path) -> bytes:
    return (experiment.find_run(spec, where).path / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(smoke):
    """The study in one go."""
    run_study(WANTED, smoke / "whole", workers=1, device="cpu", progress=False)
    return smoke / "whole"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_a_run_in_other_hands_waits_for_its_turn_and_stops_no_other(whole, tmp_path, workers):
    for spec in WANTED[:1]:
        experiment.train(spec, tmp_path, device="cpu", progress=False)
    held = store.open_run(tmp_path, study_spec.run_name(WANTED[1]), study_spec.run_config(WANTED[1])).lock(wait=False)
    held.__enter__()
    seen = []

    def let_go() -> None:
        while not all(experiment.find_run(spec, tmp_path).finished for spec in WANTED[2:]):
            time.sleep(0.05)
        held.__exit__(None, None, None)

    threading.Thread(target=let_go, daemon=True).start()
    table = run_study(
        WANTED,
        tmp_path,
        workers=workers,
        device="cpu",
        progress=False,
        on_table=lambda table: seen.append(table["side"].nunique()),
    )
    assert seen[0] < 4 == seen[-1], "the table grew meanwhile; not after each run, where two end together"
    assert seen == sorted(seen)
    assert table["config"].nunique() == 4
    assert [weights(spec, tmp_path) for spec in WANTED] == [weights(spec, whole) for spec in WANTED]


SHARE = """
import sys, time
from pathlib import Path
from lrkd.cli import program
from lrkd.study import experiment, grids
sys.path.insert(0, {tests!r})
from test_runner_shared import WANTED
log, me = Path({log!r}), sys.argv[1]
grids.STUDIES["shared"] = lambda scale, source: WANTED
whole = experiment.fit
def fit(*args, **more):
    with log.open("a") as file:
        file.write(f"{{me}} {{args[-1].name}}\\n")
    time.sleep(2)  # long enough that the other one gets its share
    return whole(*args, **more)
experiment.fit = fit
Path(me).touch()
while not (Path("a").exists() and Path("b").exists()):
    time.sleep(0.05)
words = ["--workers", "1", "--runs", "runs", "--device", "cpu", "--out", f"{{me}}.csv"]
sys.exit(program.main(["study", "shared", *words]))
"""


@pytest.mark.slow
def test_two_processes_divide_a_study_and_train_nothing_twice(whole, tmp_path):
    code = SHARE.format(tests=str(Path(__file__).parent), log=str(tmp_path / "log"))
    path = os.pathsep.join((str(Path(__file__).parents[2]), str(Path(__file__).parent)))
    both = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
        for name in "ab"
    ]
    assert [process.wait() for process in both] == [0, 0]
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert Counter(name for _, name in lines) == Counter(map(study_spec.run_name, WANTED)), "each once"
    assert {who for who, _ in lines} == {"a", "b"}
    assert [weights(spec, tmp_path / "runs") for spec in WANTED] == [weights(spec, whole) for spec in WANTED]
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_a_budget_stops_between_two_steps_and_the_next_call_ends_on_the_same_bits(whole, tmp_path, workers):
    count = itertools.count()
    limit = 4 if workers == 1 else 2  # steps of the teacher; looks of the study at its workers
    table = run_study(
        WANTED, tmp_path, workers=workers, progress=False, stop=lambda: next(count) >= limit, device="cpu"
    )
    assert table.empty
    if workers == 1:
        assert (experiment.find_run(WANTED[0], tmp_path).path / "state.pt").exists()
    run_study(WANTED, tmp_path, workers=workers, device="cpu", progress=False)
    assert [weights(spec, tmp_path) for spec in WANTED] == [weights(spec, whole) for spec in WANTED]


def test_the_command_says_when_its_budget_is_over(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(grids.STUDIES, "shared", lambda scale, source: WANTED)
    words = ["study", "shared", "--workers", "1", "--device", "cpu", "--runs"]
    assert program.main([*words, str(tmp_path), "--out", str(tmp_path / "t.csv"), "--budget", "1e-6"]) == 0
    assert capsys.readouterr().out == "The 1e-06 minutes are over: 0 of 4 runs are there; the same command goes on.\n"
    assert not (tmp_path / "t.csv").exists(), "an empty table would be no table"
    assert program.main([*words, str(whole), "--budget", "100"]) == 0
    assert "over" not in capsys.readouterr().out
    for budget in ("0", "-1", "nan"):
        assert program.main([*words, str(tmp_path), "--budget", budget]) == 2
        assert "minutes above zero" in capsys.readouterr().err
