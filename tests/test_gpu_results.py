"""`make gpu-results`: what there is time for is run in order, what is left is named, and every line is a command."""

import shlex

import pytest

from benchmarks import gpu_results
from lrkd import cli, study


@pytest.mark.parametrize("line", [line for line in gpu_results.LINES if line.startswith("lrkd")])
def test_every_line_is_a_study_that_is_there(line, tmp_path):
    words = shlex.split(line.format(results=tmp_path, data="faces"))
    given = cli.parser().parse_args([*words[1:], "--budget", "3"])
    assert given.name in study.STUDIES
    assert given.scale in study.SCALES
    assert given.out.name.startswith("gpu-")


def test_lines_share_the_minutes_and_what_is_left_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_results, "RESULTS", tmp_path)
    (tmp_path / "there.csv").touch()
    called, clock = [], iter((0, 0, 0, 60, 120, 540, 600, 600))
    monkeypatch.setattr(gpu_results.time, "monotonic", lambda: next(clock))

    def call(words):
        called.append(list(words))
        return int(words[2] == "fails")

    lines = (
        "python -m speed --out {results}/there.csv",
        "lrkd study lfw --data {data}",
        "lrkd study one --out {results}/one.csv",
        "lrkd study fails",
        "lrkd study late",
        "lrkd study core",
    )
    left = gpu_results.plan(lines, 10, None, call)
    assert called == [
        ["lrkd", "study", "one", "--out", str(tmp_path / "one.csv"), "--budget", "9.00"],
        ["lrkd", "study", "fails", "--budget", "8.00"],
        ["lrkd", "study", "late", "--budget", "1.00"],
    ]
    assert left == [
        "lrkd study lfw --data {data}: LRKD_DATA names no prepared LFW",
        "lrkd study fails: ended with status 1",
        "lrkd study core: no time was left",
    ]
    assert "-- lrkd study one" in capsys.readouterr().out
