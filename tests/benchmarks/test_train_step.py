"""`benchmarks.train_step`: what it counts, and that a call which was ended is continued."""

import sys

import pandas as pd
import pytest
import torch

from benchmarks import train_step


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_what_was_measured_is_kept_when_the_call_is_ended(tmp_path, monkeypatch, capsys):
    words = ["--model", "small", "--batch", "2", "--repeats", "1", "--device", "cpu", "--out", str(tmp_path / "t.csv")]
    monkeypatch.setattr(sys, "argv", ["train_step", *words])
    monkeypatch.setattr(train_step, "rate", lambda *of: 1e9)
    real, asked = train_step.step, []

    def ended(*what):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(what[0])
        return real(*what)

    monkeypatch.setattr(train_step, "step", ended)
    with pytest.raises(KeyboardInterrupt):
        train_step.main()
    assert [path.name for path in tmp_path.iterdir()] == ["t.part"]
    monkeypatch.setattr(train_step, "step", lambda *what: (asked.append(what[0]), real(*what))[1])
    train_step.main()
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    table = pd.read_csv(tmp_path / "t.csv")
    assert list(table["step"]) == asked, "each once"
    assert len(table) == 2 * 3 + 2
    assert (table["images_per_s"] > 0).all()


def test_the_teachers_pass_is_counted_where_it_is_asked_each_time():
    forward = train_step.flops("askd", "small", False) - train_step.flops("askd", "small", True)
    alone = train_step.flops("teacher", "small", True)
    assert 2.5 * forward < alone < 3.1 * forward, "a backward pass is about two forward passes"
