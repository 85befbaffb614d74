"""The command line: every command, and for every bad input one clear line, exit status 1 or 2, nothing lost."""

import contextlib
import csv
import errno
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.abc import MetaPathFinder
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
import toys

from lrkd import __main__, __version__
from lrkd.cli.program import COMMANDS, main
from lrkd.distill import methods
from lrkd.distill.terms import feature
from lrkd.study import experiment, grids, runner, spec
from lrkd.study import store as run_store
from lrkd.study.presets import SCALES
from lrkd.study.spec import Spec

ROOT = Path(__file__).parents[2]
NAMES = [command.name for command in COMMANDS]
SMOKE = SCALES["smoke"]
pytestmark = pytest.mark.usefixtures("smoke")


@pytest.fixture(scope="module")
def store(smoke):
    return smoke / "cli"


@pytest.fixture
def lrkd_(capsys, store):
    """Call the command line in this process -> exit status, stdout, stderr. Runs go to the store of these tests."""

    def call(*words: object, runs: Path | None = store) -> tuple[int, str, str]:
        given = [str(word) for word in words]
        if given and given[0] in ("train", "train-teacher", "study", "runs") and runs is not None:
            given += ["--runs", str(runs)]
        try:
            status = main(given)
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def refused(lrkd_):
    """A command that must fail with that status and one line on stderr that matches."""

    def call(status: int, match: str, *words: object, **more) -> None:
        found, out, err = lrkd_(*words, **more)
        assert found == status, err
        assert out == ""
        assert re.fullmatch(r"lrkd: [^\n]+\n", err), "one line"
        assert re.search(match, err), err

    return call


@pytest.fixture
def trained(lrkd_, store) -> Path:
    """A student's finished run."""
    run = experiment.find_run(Spec(methods.get("none"), 6, 0, SMOKE), store)
    if not run.finished:
        assert lrkd_("train", "--side", 6, "--device", "cpu")[0] == 0
    return run.path


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """The same run in a store of its own, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "store" / trained.name))


def process(*words: object, **more) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "lrkd", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
    )


# ---------------------------------------------------------------------------------------------------------- commands


def test_help_teaches_every_command(lrkd_):
    status, out, err = lrkd_("--help")
    assert (status, err) == (0, "")
    assert all(re.search(rf"^    {name}\s", out, re.MULTILINE) for name in NAMES)
    assert len(out.splitlines()) <= 45, "one screen"
    assert "a first hour:" in out
    for name in NAMES:
        status, out, err = lrkd_(name, "--help", runs=None)
        assert (status, err) == (0, "")
        assert out.startswith(f"usage: lrkd {name}")
    for word in ("--method", "--student", "--teacher", "--side", "--seed", "--scale", "--data", "lrkd methods"):
        assert word in lrkd_("train", "--help", runs=None)[1]


def test_version(lrkd_):
    assert lrkd_("--version") == (0, f"lrkd {__version__}\n", "")


def test_methods_lists_all_with_terms_and_source(lrkd_):
    status, out, err = lrkd_("methods")
    assert (status, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert list(lines) == list(methods.METHODS)
    assert "20 feature(distance=cosine, stages=all) + 4 cross(distance=cosine)" in lines["fskd-cross"]
    assert "arXiv 2209.14498" in lines["askd"]


def test_train_trains_the_teacher_first_once_and_the_student_once(lrkd_, store, monkeypatch):
    status, out, err = lrkd_("train", "--method", "fskd", "--side", 6, "--seed", 3, "--teacher-seed", 1)
    assert (status, err) == (0, "")
    path = Path(out.splitlines()[0])
    assert re.fullmatch(r"procedural-smoke-fskd-6-s3-t1-[0-9a-f]{10}", path.name)
    assert list(store.glob("procedural-smoke-teacher-hr-s1-*"))
    measures = run_store.load_run(path).result["measures"]
    for name in ("test", "validation", "test-hr-lr"):
        assert f"{measures[name]['accuracy']:.2%}" in out
    monkeypatch.setattr(experiment, "fit", lambda *args, **more: pytest.fail("trained twice"))
    assert lrkd_("train", "--method", "fskd", "--side", 6, "--seed", 3, "--teacher-seed", 1) == (0, out, "")
    assert lrkd_("train-teacher", "--seed", 1)[0] == 0


def test_verify_measures_at_every_side(lrkd_, trained, tmp_path):
    status, out, err = lrkd_("verify", trained, "--out", tmp_path / "v.csv")
    assert (status, err) == (0, "")
    table = pd.read_csv(tmp_path / "v.csv")
    assert list(table["side"]) == [24, 12, 6, 3]
    assert len(out.splitlines()) == 6
    at_six = table[table["side"] == 6]["accuracy"].item()
    assert at_six == pytest.approx(run_store.load_run(trained).result["measures"]["test"]["accuracy"], abs=1e-5)
    status, out, _ = lrkd_("verify", trained, "--side", 6, "--side", 5, "--degradation", "askd-compat")
    assert status == 0
    assert [line.split()[1] for line in out.splitlines()[1:3]] == ["6", "5"]


def test_verify_on_other_data(lrkd_, refused, trained, photographs):
    status, out, err = lrkd_("verify", trained, "--data", photographs, "--side", 24)
    assert (status, err) == (0, "")
    assert out.splitlines()[1].split()[0] == "people"
    refused(2, "protocol 'nope': people has generated", "verify", trained, "--data", photographs, "--protocol", "nope")
    refused(2, r"nowhere: no such folder", "verify", trained, "--data", "nowhere")


def test_a_study_lists_trains_and_writes_its_tables(lrkd_, tmp_path, monkeypatch, store):
    def two(scale, source):
        teacher = spec.teacher_spec(scale, 1, source)
        return [teacher, *(Spec(methods.get(name), None, 0, scale, source) for name in ("none", "askd"))]

    monkeypatch.setitem(grids.STUDIES, "two", two)
    status, out, _ = lrkd_("study", "two", "--list", runs=tmp_path)
    assert status == 0
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["False"] * 3
    assert not list(tmp_path.iterdir()), "looking trains nothing"
    words = ("study", "two", "--workers", 1, "--out", tmp_path / "t.csv", "--scores", tmp_path / "s.csv")
    status, out, err = lrkd_(*words, runs=tmp_path / "r")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [(row[0], row[2], row[-1]) for row in rows] == [
        *(("teacher", "none", "1"), ("student", "none", "1"), ("student", "askd", "1"))
    ], "teachers and students are not mixed"
    table = pd.read_csv(tmp_path / "t.csv")
    assert set(table["status"]) == {"ok"}
    assert table["config"].nunique() == 3
    assert pd.read_csv(tmp_path / "s.csv")["runs"].eq(1).all()
    status, out, _ = lrkd_("study", "two", "--list", runs=tmp_path / "r")
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["True"] * 3


def observed(scale, source):
    """A teacher, and a student that looks at itself while it trains."""
    plain = Spec(methods.get("none"), 6, 7, scale, source)
    return [spec.teacher_spec(scale, 1, source), plain, replace(plain, method=methods.get("fskd"), observations=1)]


def test_a_study_writes_pairs_and_traces_and_keeps_what_the_store_lacks(lrkd_, tmp_path, monkeypatch):
    monkeypatch.setitem(grids.STUDIES, "observed", observed)
    files = {name: tmp_path / f"{name}.csv" for name in ("out", "pairs", "traces")}
    words = (
        "study",
        "observed",
        "--workers",
        1,
        *(word for name, path in files.items() for word in (f"--{name}", path)),
    )
    assert lrkd_(*words, runs=tmp_path / "r")[0] == 0
    first = {name: path.read_bytes() for name, path in files.items()}
    pairs, traces = pd.read_csv(files["pairs"]), pd.read_csv(files["traces"])
    assert set(pairs["config"].astype(str)) == set(pd.read_csv(files["out"])["config"].astype(str))
    assert list(pairs) == ["config", "correct"]
    assert set(traces["method"]) == {"fskd"}, "the only run that looked"
    assert lrkd_(*words, runs=tmp_path / "empty")[0] == 0
    assert {name: path.read_bytes() for name, path in files.items()} == first, "known runs stay"
    assert not (tmp_path / "empty").exists()


def test_scores_that_would_lose_runs_are_refused_before_training(lrkd_, refused, tmp_path, monkeypatch):
    monkeypatch.setitem(grids.STUDIES, "observed", observed)
    words = ("study", "observed", "--workers", 1, "--out", tmp_path / "t.csv", "--scores", tmp_path / "s.csv")
    assert lrkd_(*words, runs=tmp_path / "r")[0] == 0
    before = (tmp_path / "s.csv").read_bytes()
    assert lrkd_(*words, runs=tmp_path / "r")[0] == 0, "a store that has them all loses none"
    refused(2, r"s\.csv: would lose 3 runs, which .*t\.csv has and the store has not", *words, runs=tmp_path / "empty")
    assert (tmp_path / "s.csv").read_bytes() == before


def test_hypotheses_take_their_weights_from_a_ladder(lrkd_, refused, tmp_path):
    refused(2, "takes its weights from study ladder: give its table by --ladder", "study", "hypotheses")
    (tmp_path / "l.csv").write_text("a\n1\n")
    refused(2, r"l\.csv: is no such table", "study", "hypotheses", "--ladder", tmp_path / "l.csv")
    names = [f"{name}@{k}" for k, name in enumerate(methods.MATCHED, 1)]
    rows = [
        {
            "method": name,
            "protocol": "validation",
            "accuracy": 0.7,
            "config": name,
            "side": 6,
            "seed": 0,
            "status": "ok",
        }
        for name in names
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "l.csv", index=False)
    status, out, _ = lrkd_("study", "hypotheses", "--ladder", tmp_path / "l.csv", "--list", runs=tmp_path / "none")
    assert status == 0
    assert all(f"-{name}-" in out for name in names), "the weights of the table"
    assert not (tmp_path / "none").exists()
    pd.DataFrame(rows[1:]).to_csv(tmp_path / "l.csv", index=False)
    refused(2, "ladder: has no validation row of cosine", "study", "hypotheses", "--ladder", tmp_path / "l.csv")


def test_runs_lists_finished_open_and_broken_ones(lrkd_, copied):
    open_one = copied.with_name("procedural-smoke-open")
    open_one.mkdir()
    shutil.copy(copied / "config.json", open_one)
    shutil.copytree(copied, copied.with_name("procedural-smoke-broken"))
    shutil.copytree(copied, copied.with_name("procedural-smoke-odd"))
    (copied.with_name("procedural-smoke-broken") / "result.json").write_text("{")
    (copied.with_name("procedural-smoke-odd") / "result.json").write_text('{"status": "ok", "measures": {"a": 1}}')
    status, out, err = lrkd_("runs", runs=copied.parent)
    assert (status, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()[1:]}
    accuracy = run_store.load_run(copied).result["measures"]["test"]["accuracy"]
    assert f"{accuracy:.4g}" in lines[copied.name]
    assert "not finished" in lines["procedural-smoke-open"]
    assert "unreadable" in lines["procedural-smoke-broken"]
    assert "unreadable" in lines["procedural-smoke-odd"]


def test_a_hash_of_a_table_leads_to_its_configuration(lrkd_, refused, copied, tmp_path):
    one = copied.name.rpartition("-")[2]
    status, out, _ = lrkd_("runs", one[:6], runs=copied.parent)
    assert status == 0
    assert json.loads(out)["config"] == run_store.load_run(copied).config
    refused(2, "zz: no run of this store has a configuration hash that begins so", "runs", "zz", runs=copied.parent)
    table, told = tmp_path / "t.csv", tmp_path / "runs.csv"
    pd.DataFrame({"config": [one, one, "0123456789"], "accuracy": 0.5}).to_csv(table, index=False)
    words = ("runs", "--of", table, told, "--out", told)
    told.write_text("config,role,data.source,method.name,side,seed\n0123456789,student,far,fskd,6,0\nabc,x,x,x,x,x\n")
    for _ in range(2):
        assert lrkd_(*words, runs=copied.parent)[0] == 0
        found = pd.read_csv(told, dtype=str).set_index("config")
        assert list(found.index) == ["0123456789", "abc", one], "what this store has not stays"
        flat = run_store.flatten(run_store.load_run(copied).config)
        assert {key: found.loc[one, key] for key in ("seed", "model.name", "schedule.lr")} == {
            key: str(flat[key]) for key in ("seed", "model.name", "schedule.lr")
        }
    before, where = told.read_text(), {"runs": copied.parent}
    refused(2, "cannot be read as a results table", "runs", "--of", tmp_path / "no.csv", "--out", told, **where)
    refused(2, "t.csv: is no such table of `lrkd runs`", "runs", "--of", told, "--out", table, **where)
    refused(2, "give both or neither", "runs", "--out", told, **where)
    assert told.read_text() == before


# --------------------------------------------------------------------------------------------------------- bad words


@pytest.mark.parametrize(
    ("match", "words"),
    [
        (r"method: expected .*one of none, .* got 'fksd'; did you mean .*fskd", "train --method fksd"),
        (r"side: expected 1 to 24 pixels at scale smoke .*got 25", "train --side 25"),
        (r"side: expected .*got 0", "train --side 0"),
        (r"scale: expected one of smoke, cpu, gpu, full, gpu50, got 'huge'", "train --scale huge"),
        (r"scale: expected .*got 'huge'", "study book --scale huge"),
        (r"preset: expected one of area-bicubic.*got 'jpeg'", "train --degradation jpeg"),
        (r"seed: expected a whole number from 0 .*got -1", "train --seed -1"),
        (r"teacher-seed: expected a whole number .*got -1", "train --method fskd --teacher-seed -1"),
        (r"device: expected one of cpu.* on this machine, got 'tpu'", "train --device tpu"),
        (r"device: expected one of cpu.* on this machine, got 'tpu'", "study book --device tpu"),
        (r"study: expected one of core, book.*got 'nore'", "study nore"),
        (r"workers: expected at least 1, got 0", "study book --workers 0"),
        (r"entrants: expected some of none.*got 'fksd'", "study answer --part worlds --tables . --entrants none,fksd"),
        (r"--entrants goes with study answer, --part ladders", "study answer --part length --entrants none"),
        (r"--entrants goes with study answer, --part ladders", "study book --entrants none"),
    ],
)
def test_what_does_not_exist_is_status_2(refused, smoke, match, words):
    empty = smoke / "never made"
    refused(2, match, *words.split(), runs=empty)
    assert not empty.exists(), "nothing was begun"


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_where_there_is_none(refused):
    refused(2, "device: expected one of cpu on this machine, got 'cuda'", "train", "--device", "cuda")


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ("required: COMMAND", ""),
        ("invalid choice: 'trian'", "trian"),
        ("argument --side: expected pixels, such as 12 or 12,6, got 'six'", "train --side six"),
        ("argument --seed: invalid int value: '1.5'", "train --seed 1.5"),
        ("required: NAME", "study"),
        ("required: NETWORK", "verify"),
        ("unrecognized arguments: --sides", "train --sides 6"),
        (
            "argument --out: expected a file in a folder that exists and can be written, got nowhere/t.csv",
            "study book --out nowhere/t.csv",
        ),
        (
            "argument --scores: expected a file in a folder that exists and can be written, got /",
            "study book --scores /",
        ),
    ],
)
def test_what_the_grammar_does_not_know_is_status_2_with_the_usage(lrkd_, match, words):
    status, out, err = lrkd_(*words.split())
    assert (status, out) == (2, "")
    assert err.startswith("usage: lrkd")
    assert match in err.splitlines()[-1]


def test_what_is_no_file_is_not_replaced_and_a_link_stays_a_link(lrkd_, copied, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "ring").symlink_to("ring")
    for name in ("pipe", "ring", "a" * 300):
        status, out, err = lrkd_("runs", "--of", tmp_path / "t.csv", "--out", tmp_path / name)
        assert (status, out) == (2, "")
        assert "expected a file in a folder that exists" in err
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "t.csv").write_text("config\nabc\n")
    (tmp_path / "link.csv").symlink_to("there.csv")
    assert lrkd_("runs", "--of", tmp_path / "t.csv", "--out", tmp_path / "link.csv", runs=copied.parent)[0] == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "there.csv").is_file()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "x: File name too long; make room or choose another"),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"),
            r"does not suffice \(CUDA out of memory\); a smaller",
        ),
        (NotImplementedError("The operator 'aten::x' is not on MPS. Set a"), "is not on MPS; --device cpu computes it"),
        (TypeError("Cannot convert a MPS Tensor to float64"), "MPS Tensor to float64; --device cpu computes it"),
    ],
)
def test_errors_of_the_machine_are_one_line(refused, monkeypatch, error, said):
    monkeypatch.setattr(run_store, "list_runs", Mock(side_effect=error))
    refused(1, said, "runs")


def test_the_environment_is_checked_too(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("LRKD_SCALE", "huge")
    refused(2, "scale: expected .*got 'huge'", "train")
    monkeypatch.setenv("LRKD_SCALE", "smoke")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LRKD_RUNS", str(tmp_path / "file" / "store"))
    refused(1, r"store/procedural-smoke-none.*Not a directory.*--runs a folder", "train", runs=None)


# ----------------------------------------------------------------------------------------------------------- bad runs


def test_verify_wants_a_finished_run(refused, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("LRKD_RUNS", str(trained.parent))
    refused(2, r"nowhere: no such file, run or folder$", "verify", tmp_path / "nowhere")
    close = rf"{trained.name}\.ckpt: no such file, run or folder; did you mean {trained}"
    refused(2, close, "verify", f"{trained.name}.ckpt")
    (tmp_path / "last_net.ckpt").touch()
    refused(2, r"did you mean .*/last_net\.ckpt\?", "verify", tmp_path / "lost_net.ckpt", "--data", "x")
    refused(2, r"config\.json: no such file, so this is not a run", "verify", tmp_path)
    refused(2, r"config\.json: cannot be read as a checkpoint of weights only", "verify", trained / "config.json")
    unfinished = run_store.open_run(tmp_path, "r", run_store.load_run(trained).config)
    refused(2, "this run has not finished; train it first", "verify", unfinished.path)
    refused(2, "side", "verify", trained, "--side", 99)
    refused(2, "preset", "verify", trained, "--degradation", "nope")
    refused(2, "protocol: expected --data with it, got 'view2'", "verify", trained, "--protocol", "view2")


def test_a_diverged_run_is_one_line_for_train_and_for_verify(refused, monkeypatch, store):
    boom = replace(methods.get("fskd"), name="boom", terms=(feature(weight=1e39),))
    monkeypatch.setitem(methods.METHODS, "boom", boom)
    for _ in range(2):
        refused(1, r"step 1: the loss term 'feature' is inf; lower the", "train", "--method", "boom", "--side", 6)
    path = experiment.find_run(Spec(boom, 6, 0, SMOKE), store).path
    refused(1, r"this run diverged and left no network \(step 1: the loss term 'feature' is inf", "verify", path)


@pytest.mark.parametrize("file", ["config.json", "result.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "gone"])
def test_a_damaged_run_is_named(refused, copied, file, damage):
    path = copied / file
    whole = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "noise": b"\xff\x00{["}[damage])
    wanted = "this run has not finished" if (file, damage) == ("result.json", "gone") else re.escape(file)
    refused(2 if damage == "gone" and file != "model.safetensors" else 1, wanted, "verify", copied)


@pytest.mark.parametrize(("file", "text"), [("config.json", "{}"), ("result.json", '{"status": "ok"}')])
def test_a_run_that_lrkd_did_not_write_is_named(refused, copied, file, text):
    (copied / file).write_text(text)
    refused(1, r"config\.json or result\.json is not as lrkd wrote it: no '", "verify", copied)


def test_a_run_directory_of_another_configuration_is_refused_and_kept(refused, copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "seed": 8}))
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    refused(1, r"another configuration \(different: seed\)", "train", "--side", 6, runs=copied.parent)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_a_broken_checkpoint_is_named_and_removing_it_helps(lrkd_, refused, copied, trained):
    for name in ("result.json", "model.safetensors", "scores.npy"):
        (copied / name).unlink()
    (copied / "state.pt").write_bytes(b"PK broken")
    words = ("train", "--side", 6)
    refused(1, r"state\.pt: this checkpoint cannot be read .*; remove it to start anew", *words, runs=copied.parent)
    (copied / "state.pt").unlink()
    assert lrkd_(*words, runs=copied.parent)[0] == 0
    assert (copied / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_a_store_without_runs(refused, tmp_path):
    refused(2, "there are no runs here; `lrkd train` makes one", "runs", runs=tmp_path)
    refused(2, "there are no runs here", "runs", runs=tmp_path / "nowhere")


# ----------------------------------------------------------------------------------------------------------- bad data


def rewrite(path: Path, change) -> None:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(change(rows))


def meta(folder: Path, **more) -> None:
    path = folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def short(folder: Path) -> None:
    rewrite(folder / "manifest.csv", lambda rows: rows[:-1])


def gap(folder: Path) -> None:
    rewrite(folder / "manifest.csv", lambda rows: [[r[0], "95" if r[1] == "23" else r[1], *r[2:]] for r in rows])


def negative(folder: Path) -> None:
    rewrite(folder / "manifest.csv", lambda rows: [[r[0], "-1" if r[1] == "3" else r[1], *r[2:]] for r in rows])


def single(folder: Path) -> None:
    """Each image a person of its own."""
    rewrite(folder / "pairs.csv", lambda rows: rows[:1])
    rewrite(
        folder / "manifest.csv", lambda rows: [rows[0], *([r[0], r[0], f"p{int(r[0]):03d}", *r[3:]] for r in rows[1:])]
    )


def cut(folder: Path) -> None:
    path = folder / "images-00000.npy"
    path.write_bytes(path.read_bytes()[:5000])


def images(folder: Path, *shape: int) -> None:
    np.save(folder / "images-00000.npy", np.zeros(shape, np.uint8))
    meta(folder, size=shape[1], shards=None)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (short, r"manifest\.csv: expected one row an image, got 95 rows for 96 images"),
        (gap, r"manifest\.csv: no image has label 23"),
        (negative, r"manifest\.csv line \d+: label: expected 0 or more, got -1"),
        (
            single,
            r"of its 96 people 67 are there to train on .*, and none of these has 2 images: add people, or images",
        ),
        (cut, r"images-00000\.npy: cannot be read as \.npy"),
        (
            lambda folder: meta(folder, size=48),
            r"images-00000\.npy: expected uint8 \(n,48,48,3\) by meta.json, got uint8 \(96, 28, 28, 3\)",
        ),
        (lambda folder: images(folder, 96, 16, 16, 3), r"16 x 16 px and this scale needs 24 px.*--size 24"),
        (lambda folder: (folder / "meta.json").unlink(), r"meta\.json is missing: not a prepared folder"),
        (lambda folder: (folder / "meta.json").write_text("{"), r"meta\.json: not JSON"),
        (lambda folder: (folder / "pairs.csv").write_bytes(b"\xff\xfe"), r"pairs\.csv"),
    ],
    ids=["short", "gap", "negative", "single", "cut", "size", "small", "no meta", "broken meta", "binary pairs"],
)
def test_broken_data_is_named(refused, photographs, tmp_path, damage, match):
    folder = Path(shutil.copytree(photographs, tmp_path / "people"))
    damage(folder)
    refused(2, match, "train", "--side", 6, "--data", folder, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_data_that_is_no_folder(refused, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "nowhere"):
        refused(2, rf"data is '{path}': neither 'procedural' nor a prepared folder", "train", "--data", path)
        refused(2, rf"data is '{path}'", "study", "core", "--data", path)


def test_verify_says_when_the_data_have_changed(lrkd_, refused, photographs, tmp_path):
    folder = Path(shutil.copytree(photographs, tmp_path / "people"))
    assert lrkd_("train", "--side", 6, "--data", folder, runs=tmp_path / "runs")[0] == 0
    run = next((tmp_path / "runs").iterdir())
    assert lrkd_("verify", run, "--side", 6)[0] == 0
    meta(folder, licence="another note")
    spec._splits.cache_clear()
    spec._prepared.cache_clear()
    refused(2, r"is not the data that .* was tested on", "verify", run)
    shutil.rmtree(folder)
    spec._splits.cache_clear()
    spec._prepared.cache_clear()
    refused(2, r"neither 'procedural' nor a prepared folder", "verify", run)


# ------------------------------------------------------------------------------------------------ stops and full disks


def test_ctrl_c_while_training_is_one_line_and_nothing_is_lost(refused, lrkd_, trained, monkeypatch, tmp_path):
    plain, steps = torch.optim.SGD.step, []

    def press(*args, **more):
        steps.append(1)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return plain(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", press)
        refused(
            1,
            r"interrupted: procedural-smoke-none-6-s0 stopped at step 2 of 3; the same command goes on from here",
            *("train", "--side", 6),
            runs=tmp_path,
        )
    assert lrkd_("train", "--side", 6, runs=tmp_path)[0] == 0
    assert len(steps) == 2
    assert (tmp_path / trained.name / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_ctrl_c_elsewhere_is_one_line(refused, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "find_run", stop)
    refused(1, r"interrupted; the same command goes on from here", "train", "--side", 6)


def test_ctrl_c_while_the_command_line_is_imported(monkeypatch, capsys):
    class Interrupted(MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "lrkd.cli.program":
                raise KeyboardInterrupt
            return None

    monkeypatch.delitem(sys.modules, "lrkd.cli.program")
    monkeypatch.delattr("lrkd.cli.program")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert __main__.main() == 1
    assert capsys.readouterr().err == "lrkd: interrupted before it began\n"


@pytest.mark.slow
def test_ctrl_c_on_a_study_of_two_workers(lrkd_, tmp_path):
    """As a terminal sends it: to the study and its workers alike, while they train."""
    assert lrkd_("train-teacher", runs=tmp_path)[0] == 0
    child = process("study", "book", "--workers", 2, "--runs", tmp_path, start_new_session=True)
    limit = time.monotonic() + 120
    while not list(tmp_path.glob("*-none-3-*/result.json")) and time.monotonic() < limit and child.poll() is None:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out) == (1, ""), err
    assert re.fullmatch(r"lrkd: interrupted[^\n]*; the same command goes on from here\n", err)
    done = [run for run in run_store.list_runs(tmp_path) if run.finished]
    assert 1 < len(done) < 25
    assert all(run.result["status"] == "ok" for run in done)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(lrkd_, tmp_path, trained):
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    child = process("train", "--side", 6, "--runs", tmp_path, preexec_fn=small)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out) == (1, "")
    assert re.fullmatch(r"lrkd: \S+state\.pt: could not be written \(File too large\); [^\n]*make room.*\n", err), err
    (run,) = tmp_path.iterdir()
    assert not [path.name for path in run.iterdir() if "part" in path.name or path.name == "state.pt"]
    assert lrkd_("train", "--side", 6, runs=tmp_path)[0] == 0
    assert (run / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_a_closed_pipe_is_silent():
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does that has seen enough
    child = process("methods", stdout=writer)
    os.close(writer)
    assert (child.communicate(timeout=120)[1], child.returncode) == ("", 1)


def test_words_are_completed(tmp_path, lrkd_):
    """By bash itself: a command, an option of a command, and nothing but files elsewhere."""
    bash = shutil.which("bash") or pytest.skip("bash is not installed")
    status, script, err = lrkd_("completion", runs=None)
    assert (status, err) == (0, "")

    def completed(*words: str) -> set[str]:
        given = f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; _lrkd"
        told = subprocess.run(
            [bash, "-c", f'{script}{given}; echo "${{COMPREPLY[@]}}"'], capture_output=True, text=True, check=True
        )
        assert told.stderr == ""
        return set(told.stdout.split())

    assert completed("lrkd", "") == set(NAMES)
    assert completed("lrkd", "tr") == {"train", "train-teacher"}
    assert {"--method", "--side", "--student", "--log"} <= completed("lrkd", "train", "--")
    assert completed("lrkd", "train", "--teacher") == {"--teacher", "--teacher-seed"}
    assert completed("lrkd", "verify", "run") == set()


def test_a_terminal_without_colours_gets_none():
    """NO_COLOR, which argparse reads from Python 3.14 on; a pipe gets none either."""
    shown, terminal = os.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "xterm-256color"}
    with os.fdopen(shown, "rb", 0) as read:
        child = subprocess.Popen([sys.executable, "-m", "lrkd", "--help"], stdout=terminal, env=env)
        os.close(terminal)
        told = b""
        with contextlib.suppress(OSError):  # as a terminal ends
            while more := read.read(4096):
                told += more
    assert child.wait() == 0
    assert b"a first hour" in told
    assert b"\x1b" not in told


def test_a_full_disk_under_stdout_is_one_line(monkeypatch, capsys):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["methods"]) == 1
        assert re.fullmatch(r"lrkd: output: No space left on device; [^\n]+\n", capsys.readouterr().err)
        full.write("what comes later is dropped, as at the interpreter's exit")
        full.flush()


@pytest.mark.slow
def test_a_worker_that_dies_is_one_line(lrkd_, refused, tmp_path, monkeypatch):
    grid = [spec.teacher_spec(SMOKE, seed) for seed in range(2)]
    monkeypatch.setitem(grids.STUDIES, "die", lambda *_: grid)
    monkeypatch.setattr(runner, "_train_quietly", toys.killer)
    refused(1, r"a worker process died.*the same command goes on", "study", "die", "--workers", 2, runs=tmp_path)
