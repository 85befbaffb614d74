"""Files that are whole or not there, and tables that merge: no row is lost, none becomes another number."""

import multiprocessing
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kit import shifts, weight_ladder

from lrkd import files
from lrkd.errors import DataError, RunError
from lrkd.files import Table, locked, read_table
from lrkd.study import attention_study, results, shift_study

ROOT = Path(__file__).parent.parent
RUNS = Table("lrkd study", ("config",), ("config", "accuracy"))
# As another machine wrote it: numbers of other lengths, hashes and commits that look like numbers, a column of its own.
OLD = """config,seed,accuracy,commit,note
1234e56789,0,0.50,1234e56,"by hand, once"
1234e56789,0,.750000000000000001,1234e56,
0012345678,1,1e-2,0012345,x
b2,2.0,0.123457,ab12,
"""


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(OLD)
    return path


def frame(*configs: str, **more: object) -> pd.DataFrame:
    return pd.DataFrame({"config": list(configs), "accuracy": np.full(len(configs), 1 / 3), **more})


def test_rows_that_are_not_known_stay_as_they_were_written(table):
    RUNS.merge(table, frame("new", speed=[7]))
    lines = table.read_text().splitlines()
    assert lines[0] == "config,seed,accuracy,commit,note,speed"
    assert [line.removesuffix(",") for line in lines[1:5]] == OLD.splitlines()[1:]
    assert lines[5:] == ["new,,0.333333,,,7"]


def test_rows_that_are_known_are_updated_in_their_places(table):
    RUNS.merge(table, frame("0012345678", seed=[5]))
    lines = table.read_text().splitlines()
    assert lines[3] == "0012345678,5,0.333333,0012345,x", "what the command does not know of the row stays too"
    assert lines[:3] + lines[4:] == OLD.splitlines()[:3] + OLD.splitlines()[4:]
    RUNS.merge(table, frame("1234e56789", seed=[9]))
    assert [line.split(",")[0] for line in table.read_text().splitlines()[1:]] == ["1234e56789", "0012345678", "b2"]


def test_new_rows_stand_where_their_study_has_them(tmp_path):
    """So that a table does not tell in which order its runs ended, or by how many processes."""
    whole, path = [f"r{k}" for k in range(8)], tmp_path / "t.csv"
    path.write_text("config,accuracy\nother,1\nmore,1\n")
    there: list[str] = []
    for one in np.random.default_rng(0).permutation(8):
        there = [name for name in whole if name in (*there, whole[one])]
        RUNS.merge(path, frame(*there))
        assert list(RUNS.read(path)["config"]) == ["other", "more", *there]


def test_the_same_numbers_keep_their_text(table):
    RUNS.merge(table, RUNS.read(table))
    assert table.read_text() == OLD


def test_without_rows_nothing_is_written(table):
    before = table.stat()
    RUNS.merge(table, frame())
    RUNS.merge(table, pd.DataFrame())
    assert table.stat() == before
    RUNS.merge(table.with_name("none.csv"), pd.DataFrame())
    assert [path.name for path in table.parent.iterdir()] == ["t.csv"], "no lock and no half file is left"


def test_of_two_groups_the_one_that_pools_more_stays(tmp_path):
    pooled = Table("lrkd", ("method",), most="runs")
    for runs, right in ((6, 6), (2, 6), (7, 7)):
        pooled.merge(tmp_path / "s.csv", pd.DataFrame({"method": ["a", "a"], "low": [0, 1], "runs": runs}))
        assert list(pooled.read(tmp_path / "s.csv")["runs"]) == [right, right]


@pytest.mark.parametrize("text", ["", "\n", "a,b\n1,2\n", "config\n1\n", "config,accuracy\n1,2,3,4\n", "\x00\xff"])
def test_what_is_no_such_table_is_refused_and_stays(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("latin-1"))
    for use in (RUNS.check, RUNS.read, lambda path: RUNS.merge(path, frame("a"))):
        with pytest.raises(DataError, match=re.escape(str(path))):
            use(path)
    assert path.read_bytes() == text.encode("latin-1")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_the_table(table, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunError, match=r"t\.csv: could not be written \(No space left"):
        RUNS.merge(table, frame("a"))
    assert table.read_text() == OLD
    assert len(list(table.parent.iterdir())) == 1


def add(path: Path, me: int, rows: int) -> None:
    for number in range(rows):
        RUNS.merge(path, frame(f"{me}-{number}"))


def test_processes_that_write_one_table_lose_no_row(table):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=add, args=(table, me, 20)) for me in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = list(RUNS.read(table)["config"])
    assert sorted(found[4:]) == sorted(f"{me}-{number}" for me in range(4) for number in range(20))
    assert table.read_text().startswith(OLD)
    assert len(list(table.parent.iterdir())) == 1


def hold(path: Path, started, count) -> None:
    started.wait()
    for _ in range(50):
        with locked(path):
            before = count.value
            time.sleep(0.0005)
            count.value = before + 1


def test_one_holds_the_lock_at_a_time(tmp_path):
    context = multiprocessing.get_context("fork")
    started, count = context.Event(), context.Value("i", 0, lock=False)
    holders = [context.Process(target=hold, args=(tmp_path / "t", started, count)) for _ in range(4)]
    for holder in holders:
        holder.start()
    started.set()
    for holder in holders:
        holder.join()
    assert count.value == 200
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------ one reader


def test_hashes_and_commits_are_no_numbers(table):
    for found in (
        read_table(table),
        RUNS.read(table),
        weight_ladder.read(table),
        results.read_table(table, ["config"]),
    ):
        assert list(found["config"]) == ["1234e56789", "1234e56789", "0012345678", "b2"]
        assert list(found["commit"]) == ["1234e56", "1234e56", "0012345", "ab12"]
        assert found["accuracy"].sum() == pytest.approx(0.5 + 0.75 + 0.01 + 0.123457)


def test_data_of_the_name_na_is_not_missing(tmp_path):
    (tmp_path / "t.csv").write_text("config,data,accuracy\na,NA,\nb,null,.5\nc,,1\n")
    found = read_table(tmp_path / "t.csv")
    assert found["data"].fillna("").tolist() == ["NA", "null", ""]
    assert found["accuracy"].isna().tolist() == [True, False, False]


@pytest.mark.parametrize(
    "read", [weight_ladder.read, shifts.read, results.read_table], ids=["race", "adaptation", "study"]
)
@pytest.mark.parametrize("text", ["", "a\n1\n"], ids=["empty", "other"])
def test_a_file_that_is_no_table_is_one_clear_error(tmp_path, read, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=r"t\.csv: (cannot be read as .* \(it is empty\)|is no such table)"):
        read(tmp_path / "t.csv")


def test_pages_and_package_read_tables_by_the_one_reader():
    """pandas guesses: to it the commit 1234e56 is infinity, and 0012345 has lost its zeros."""
    allowed = {"files.py", "identify.py"}  # identify reads lists of other people
    sources = [*(ROOT / "lrkd").glob("*.py"), *(ROOT / "book").glob("*.py"), *(ROOT / "book").glob("*.ipynb")]
    guessed = [
        f"{path.name}: {line.strip()}"
        for path in sources
        if path.name not in allowed
        for line in path.read_text(encoding="utf-8").splitlines()
        if "pd.read_csv" in line and "dtype=str" not in line
    ]
    # experiment.py resumes a run's own trace, which has numbers alone.
    assert [line for line in guessed if not line.startswith("experiment.py")] == []


def test_committed_tables_merge_with_themselves_to_the_byte(tmp_path):
    kinds = [
        results.RUNS,
        results.SCORES,
        results.PAIRS,
        results.TRACES,
        attention_study.TABLE,
        shift_study.TABLE,
        results.DESCRIBED,
    ]
    merged = set()
    for file in sorted((ROOT / "book" / "results").glob("*.csv")):
        header = set(file.read_text(encoding="utf-8").partition("\n")[0].split(","))
        for kind in kinds:
            if header.issuperset(kind.columns or kind.key) and file.stat().st_size < 2**18:
                copy = tmp_path / file.name
                copy.write_bytes(file.read_bytes())
                kind.merge(copy, kind.read(copy))
                assert copy.read_bytes() == file.read_bytes(), f"{file.name} as {kind.made_by}"
                merged.add(kind.made_by)
    assert {"lrkd study", "lrkd study --scores"} <= merged
