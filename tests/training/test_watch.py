"""What is shown as a run trains is what metrics.csv has, and nothing of it changes a weight."""

import csv
import sys

import pytest
import toys

from lrkd.cli import program
from lrkd.errors import ConfigError
from lrkd.training import watch
from lrkd.training.execution import Execution
from lrkd.training.loop import fit
from lrkd.training.schedule import Schedule


def train(folder, names):
    """The final weights and the rows of a run with a row every two of its eight steps."""
    network, head = toys.pair()
    with watch.watching(names, folder) as on_row:
        how = Execution(directory=folder, on_row=on_row, log_every=2, checkpoint_every=2, progress=False)
        fitted = fit(network, head, toys.faces(), Schedule(2, batch=16, lr=0.1), execution=how)
    return toys.state(network, head), fitted.rows


def test_every_row_is_shown_and_the_weights_are_the_same(tmp_path, capsys):
    (tmp_path / "plain").mkdir()
    plain, _ = train(tmp_path / "plain", ())
    shown, rows = train(tmp_path, ["table"])
    assert toys.equal(plain, shown)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == list(rows[0])
    assert len(lines) == len(rows) == 4
    for line, row in zip(lines, rows, strict=True):
        assert [float(cell) for cell in line.split()] == pytest.approx(list(row.values()), rel=1e-3)
    assert len({len(line) for line in (header, *lines)}) == 1, "columns lie below one another"


def test_tensorboard_has_the_numbers_of_the_file(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(events.Tags()["scalars"]) == {*rows[0]} - {"step"}
    for name in events.Tags()["scalars"]:
        found = events.Scalars(name)
        assert [event.step for event in found] == [int(float(row["step"])) for row in rows]
        assert [event.value for event in found] == pytest.approx([float(row[name]) for row in rows], rel=1e-5)


def test_a_log_that_is_not_there_is_named_before_training(monkeypatch, capsys):
    with pytest.raises(ConfigError, match="log: expected table or tensorboard, got 'wandb'"):
        watch.check_logs(["wandb"])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"--log tensorboard needs .*: pip install 'lrkd\[tensorboard\]'"):
        watch.check_logs(["table", "tensorboard"])


@pytest.mark.usefixtures("smoke")
def test_the_command_shows_a_table(tmp_path, capsys):
    words = ["train", "--method", "none", "--side", "4", "--seed", "91", "--log", "table", "--runs", str(tmp_path)]
    assert program.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["step", "epoch", "lr", "ramp"]
    assert lines[-1].startswith("accuracy ")
