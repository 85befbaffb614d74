"""`make gpu-results`: its grid is issued in order, what there is time for is run, what is left is named."""

import math
import shlex
from collections import Counter

import pytest

from benchmarks import gpu_results
from lrkd import cli, models, study

GPU = study.SCALES["gpu"]
STUDIES = [line for line, _ in gpu_results.LINES if line.startswith("lrkd")]


@pytest.mark.parametrize("line", STUDIES)
def test_every_line_is_a_command_that_is_there(line, tmp_path):
    words = shlex.split(line.format(results=tmp_path, data="faces"))
    given = cli.parser().parse_args([*words[1:], *(["--budget", "3"] if words[1] == "study" else [])])
    assert given.scale in study.SCALES
    assert given.out.name.startswith("gpu-")
    assert words[1] == "attention" or given.name in study.STUDIES


def cells(name, scale=GPU, source=study.PROCEDURAL):
    """{(method, side): {(seed, teacher)}} of a study's students."""
    found = {}
    for spec in study.specs(name, scale, source):
        if spec.role == "student":
            found.setdefault((spec.method.name, spec.side), set()).add((spec.seed, spec.teacher_seed))
    return found


def test_the_grid_is_as_large_as_was_asked_for(tmp_path):
    asked = {line.split()[2] for line in STUDIES if line.split()[1] == "study"}
    assert asked == {"core", "ladder", "hypotheses", "deep", "selection", "aird"}
    assert (GPU.size, GPU.sides, GPU.model) == (112, (56, 28, 14), "iresnet18")
    six = {(seed, seed % 2) for seed in range(6)}
    for source in (study.PROCEDURAL, str(tmp_path)):
        grid = cells("core", GPU, source)
        assert len(study.COMPARED) == 18
        assert set(grid) == {(name, side) for name in study.COMPARED for side in (14, 28, 56)} | {("none", None)}
        assert all(seeds == six for seeds in grid.values())
        assert len(study.specs("core", GPU, source)) == 2 + 18 * 3 * 6 + 6, "no run twice"
    others = set(study.methods.METHODS) - set(study.COMPARED)
    assert others == {name for study_ in ("aird", "selection") for name, _ in cells(study_)} - set(study.COMPARED)
    deep = cells("deep", study.SCALES["gpu50"])
    papers = ("none", "fskd", "askd", "askd-centred", "embedding-cos", "fskd-l2")
    assert set(deep) == {(name, side) for name in papers for side in (14, 28, 56)}
    assert all(seeds == {(0, 0), (1, 1), (2, 0)} for seeds in deep.values())
    assert study.SCALES["gpu50"].model == "iresnet50"
    rungs = Counter(name.partition("@")[0] for name, _ in cells("ladder"))
    assert rungs == dict.fromkeys(study.methods.RACE, len(study.RUNGS))


def test_photographs_start_with_what_the_page_shows(tmp_path):
    students = [spec for spec in study.specs("core", GPU, str(tmp_path)) if spec.role == "student"]
    first = len(study.PHOTO_METHODS)
    assert [spec.method.name for spec in students[:first]] == list(study.PHOTO_METHODS)
    assert [spec.side for spec in students[: 6 * first]] == [14] * 6 * first
    small = [spec for spec in study.specs("core", study.SCALES["cpu"], str(tmp_path)) if spec.role == "student"]
    assert {spec.method.name for spec in small} == set(study.PHOTO_METHODS), "at scale cpu as it was"


def test_the_small_student_fits_beside_a_teacher_of_any_length():
    for scale in ("cpu", "gpu"):
        students = [spec for spec in study.specs("selection", study.SCALES[scale]) if spec.design]
        weights = {sum(p.numel() for p in models.build(**spec.model).parameters()) for spec in students[:1]}
        assert max(weights) < 130_000, "in 8 bits less than .15 MB, with the rest of the file"


def test_lines_share_the_minutes_and_what_is_left_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_results, "RESULTS", tmp_path)
    (tmp_path / "there.csv").touch()
    called, clock = [], iter((0, 0, 0, 60, 120, 180, 240, 540, 600, 600))
    monkeypatch.setattr(gpu_results.time, "monotonic", lambda: next(clock))

    def call(words, minutes):
        called.append([*words, minutes])
        return {"fails": 1, "slow": None}.get(words[-1].split("=")[-1], 0)

    lines = (
        "python -m speed --out {results}/there.csv",
        "lrkd study lfw --data {data}",
        "lrkd study one --out {results}/one.csv",
        "python -m against --peer {peer}",
        "lrkd attention --out=fails",
        "lrkd attention --out=slow",
        "lrkd study late",
        "lrkd study core",
    )
    most = {"lrkd study one --out {results}/one.csv": 5}
    given = {"data": None, "peer": "a clone"}
    left = gpu_results.plan([(line, most.get(line, math.inf)) for line in lines], 10, given, call)
    assert called == [
        ["lrkd", "study", "one", "--out", str(tmp_path / "one.csv"), "--budget", "5.00", 15],
        ["python", "-m", "against", "--peer", "a clone", 8],
        ["lrkd", "attention", "--out=fails", 7],
        ["lrkd", "attention", "--out=slow", 6],
        ["lrkd", "study", "late", "--budget", "1.00", 11],
    ]
    assert left == [
        "lrkd study lfw --data {data}: LRKD_DATA names no prepared LFW",
        "lrkd attention --out=fails: ended with status 1",
        "lrkd attention --out=slow: was ended, as its minutes were over",
        "lrkd study core: no time was left",
    ]
    assert "-- lrkd study one" in capsys.readouterr().out


def test_a_command_that_takes_too_long_is_ended():
    assert gpu_results.run(["python", "-c", "import time; time.sleep(60)"], 0.01) is None
    assert gpu_results.run(["python", "-c", "raise SystemExit(3)"], 1) == 3
