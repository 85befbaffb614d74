"""The run store: digests, whole files, locks that die with their holder, foreign and broken folders."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lrkd.errors import RunError
from lrkd.files import atomic, read_json, write_json, write_rows
from lrkd.study import store
from lrkd.study.store import Run, digest, find_run, list_runs, load_run, open_run

CONFIG = {"method": {"name": "fskd", "terms": [{"weight": 20.0}]}, "side": 6, "seed": 0, "teacher": None}


def changed(**more):
    return {**CONFIG, **more}


# ------------------------------------------------------------------------------------------------------------ digest


def test_the_digest_does_not_see_the_order_of_keys_nor_tuples_from_lists():
    turned = json.loads(json.dumps(dict(reversed(CONFIG.items()))))
    assert digest(turned) == digest(CONFIG)
    assert digest(changed(side=(6, 12))) == digest(changed(side=[6, 12]))
    assert len(digest(CONFIG)) == 10
    assert int(digest(CONFIG), 16) >= 0


@pytest.mark.parametrize(
    "other",
    [
        changed(side=12),
        changed(side=None),
        changed(seed=1),
        changed(side="6"),
        changed(teacher=""),
        changed(method={"name": "fskd", "terms": [{"weight": 20.000001}]}),
        changed(method={"name": "fskd", "terms": []}),
        changed(extra=0),
        {key: value for key, value in CONFIG.items() if key != "teacher"},
    ],
)
def test_the_digest_changes_with_every_value(other):
    assert digest(other) != digest(CONFIG)


def test_the_digest_changes_with_the_version(monkeypatch):
    before = digest(CONFIG)
    monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
    assert digest(CONFIG) != before


def test_the_digest_is_the_same_tomorrow(monkeypatch):
    """A written-down value, from sha256sum: results on disk are found by it."""
    monkeypatch.setattr(store, "VERSION", 1)
    assert digest({"a": 1, "b": [True, None, "é"]}) == "18e17f1e6e"


# ------------------------------------------------------------------------------------------------------- whole files


def test_an_atomic_write_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    with atomic(path) as file:
        file.write("one")
        assert not path.exists()
    assert path.read_text() == "one"

    def stopped() -> None:
        with atomic(path) as file:
            file.write("half a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_full_disk_keeps_what_was_there_and_is_named(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"x\.json: could not be written \(No space left on device\).*is unchanged"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_json_and_rows_come_back(tmp_path):
    write_json(tmp_path / "x.json", {"b": [1, 0.1, None], "a": "é"})
    assert read_json(tmp_path / "x.json") == {"a": "é", "b": [1, 0.1, None]}
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert read_json(tmp_path / "x.json")["a"] == "é"
    rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1e-17}]
    write_rows(tmp_path / "x.csv", rows)
    with (tmp_path / "x.csv").open() as file:
        assert [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)] == rows


# ----------------------------------------------------------------------------------------------------------- folders


def test_opening_makes_a_folder_named_by_the_digest_and_finding_makes_none(tmp_path):
    found = find_run(tmp_path / "store", "a-name", CONFIG)
    assert not (tmp_path / "store").exists()
    run = open_run(tmp_path / "store", "a-name", CONFIG)
    assert run == found
    assert run.path.name == f"a-name-{digest(CONFIG)}"
    assert run.config == CONFIG
    assert open_run(tmp_path / "store", "a-name", json.loads(json.dumps(CONFIG))) == run
    assert open_run(tmp_path / "store", "a-name", changed(seed=1)) != run


def test_a_folder_of_another_configuration_is_refused_and_left_alone(tmp_path):
    run = open_run(tmp_path, "r", CONFIG)
    write_json(run.path / "config.json", changed(seed=5, side=None))
    before = (run.path / "config.json").read_bytes()
    with pytest.raises(RunError, match=r"config\.json: .*another configuration \(different: seed, side\)"):
        open_run(tmp_path, "r", CONFIG)
    assert (run.path / "config.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "\0"])
def test_a_broken_configuration_is_named(tmp_path, text):
    run = open_run(tmp_path, "r", CONFIG)
    (run.path / "config.json").write_text(text)
    for use in (lambda: run.config, lambda: load_run(run.path), lambda: open_run(tmp_path, "r", CONFIG)):
        with pytest.raises(RunError, match=r"config\.json: .*remove the run directory"):
            use()


def test_bytes_that_are_no_text(tmp_path):
    run = open_run(tmp_path, "r", CONFIG)
    (run.path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match=r"config\.json: cannot be read as JSON"):
        load_run(run.path)


@pytest.mark.parametrize("kind", ["nothing", "empty folder", "file"])
def test_what_is_no_run_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "r"
    if kind == "file":
        path.write_text("hello")
    elif kind == "empty folder":
        path.mkdir()
    with pytest.raises(RunError, match=r"r/config\.json: no such file, so this is not a run directory"):
        load_run(path)


def test_a_store_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be made \(Not a directory\); give --runs a folder"):
        open_run(tmp_path / "file" / "store", "r", CONFIG)


def test_a_result_is_there_when_the_run_has_finished_and_not_before(tmp_path):
    run = open_run(tmp_path, "r", CONFIG)
    assert not run.finished
    with pytest.raises(RunError, match="has not finished; train it first"):
        _ = run.result
    write_json(run.path / "result.json", {"status": "ok"})
    assert run.finished
    assert run.result == {"status": "ok"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"measures": {}}'])
def test_a_broken_result_is_named(tmp_path, text):
    run = open_run(tmp_path, "r", CONFIG)
    (run.path / "result.json").write_text(text)
    with pytest.raises(RunError, match=r"result\.json: .*remove the run directory"):
        _ = run.result


def test_runs_are_listed_by_name_and_strangers_are_not(tmp_path):
    made = [open_run(tmp_path, name, CONFIG) for name in ("b", "a", "c")]
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("")
    assert list_runs(tmp_path) == sorted(made, key=lambda run: run.path.name)
    assert list_runs(tmp_path / "nowhere") == []
    assert list_runs(tmp_path / "file") == []


# ------------------------------------------------------------------------------------------------------------- locks

HOLDER = """
import sys, time
from pathlib import Path
sys.modules["torch"] = None  # the store needs none, and starts in a blink without
from lrkd.study.store import Run
with Run(Path(sys.argv[1])).lock(wait=False):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(run: Run, seconds: float) -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert child.stdout.readline() == "held\n"
    return child


def test_a_lock_excludes_another_process_and_dies_with_its_holder(tmp_path):
    run = open_run(tmp_path, "r", CONFIG)
    with holder(run, 100) as child:
        with pytest.raises(RunError, match="another process is training this run"), run.lock(wait=False):
            pytest.fail("two at a time")
        child.send_signal(signal.SIGKILL)
        child.wait()
        with run.lock(wait=False):
            pass
    with run.lock(wait=False):  # given back
        pass


def test_a_waiting_process_says_so_once_and_goes_on(tmp_path):
    run, said = open_run(tmp_path, "r", CONFIG), []
    with holder(run, 0.5) as child:
        with run.lock(on_wait=lambda: said.append("waiting")):
            assert child.wait(10) == 0, "the lock came when the other process was done"
        assert said == ["waiting"]
    with run.lock(on_wait=lambda: said.append("again")):
        assert said == ["waiting"]
