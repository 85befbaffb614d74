"""A method and a backbone from files outside the package, through train, verify, study and export."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lrkd import userfile
from lrkd.cli.program import main
from lrkd.distill import methods
from lrkd.errors import ConfigError
from lrkd.onnx import recogniser
from lrkd.study import experiment, grids, variants
from lrkd.study import store as run_store
from lrkd.study.grids import specs
from lrkd.study.presets import SCALES

pytestmark = pytest.mark.usefixtures("smoke")
SMOKE = SCALES["smoke"]

# What a user writes: a loss in three lines, and torchvision's own ResNet, smaller.
MINE = """
from lrkd.distill.methods import Method
from lrkd.distill.terms import Term

def pooled(student, teacher):
    mine, theirs = student.hinted[-1].mean((2, 3)), teacher.features[-1].mean((2, 3))
    return (mine - theirs).abs().mean()

MINE = Method("pooled-l1", "pooled features, L1", (Term("pooled-l1", 2.0, pooled, hint=True),))
NONE = Method("none", "no distillation", teacher="none")
OTHER = pooled
"""
NETS = """
from torchvision.models.resnet import BasicBlock, ResNet
from lrkd.models.wrap import wrap

def make(size, embedding):
    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=embedding)
    return wrap(network, size, features=["layer1", "layer2", "layer3", "layer4"])
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The two files; the modules that they add are forgotten afterwards."""
    folder, before = tmp_path_factory.mktemp("own"), set(sys.modules)
    (folder / "pooled_of_mine.py").write_text(MINE)
    (folder / "nets_of_mine.py").write_text(NETS)
    yield folder
    for name in set(sys.modules) - before:
        if name.endswith("_of_mine"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def method(files):
    return f"{files / 'pooled_of_mine.py'}:MINE"


@pytest.fixture(scope="module")
def student(files):
    return f"{files / 'nets_of_mine.py'}:make"


@pytest.fixture
def call(capsys):
    """Call the command line, which must succeed -> its output."""

    def called(*words: object) -> str:
        capsys.readouterr()
        status = main(list(map(str, words)))
        out, err = capsys.readouterr()
        assert status == 0, err
        return out

    return called


@pytest.fixture(scope="module")
def trained(files, method, student):
    """The run of `lrkd train` with both."""
    words = ("train", "--method", method, "--student", student, "--side", "6", "--runs", str(files / "runs"))
    assert main([*words, "--device", "cpu"]) == 0
    (path,) = (files / "runs").glob("*pooled-l1*")
    return path


def test_the_run_is_named_by_both_and_holds_their_content(trained):
    config = run_store.load_run(trained).config
    assert trained.name.startswith("procedural-smoke-pooled-l1-nets_of_mine.py-make-6-s0-t0-")
    assert config["model"]["function"] == "nets_of_mine.py:make"
    assert config["model"]["sha256"] == userfile.load_object(f"{trained.parents[1] / 'nets_of_mine.py'}:make").digest
    mine = methods.get(f"{trained.parents[1] / 'pooled_of_mine.py'}:MINE")
    assert config["method"] == json.loads(json.dumps(mine.describe()))


def test_it_is_verified_and_exported_as_any_run(call, trained, tmp_path):
    out = call("verify", trained, "--side", "12,6", "--device", "cpu", "--out", tmp_path / "t.csv")
    table = pd.read_csv(tmp_path / "t.csv")
    assert (list(table["side"]), len(out.splitlines())) == ([12, 6], 4)
    measured = run_store.load_run(trained).result["measures"]["test"]["accuracy"]
    assert table["accuracy"].iloc[1] == pytest.approx(measured, abs=1e-5)
    call("export", trained, "--out", tmp_path / "mine.onnx")
    again = pd.read_csv(tmp_path / "t.csv", dtype=str)
    assert again["network"].eq(trained.name).all()
    network, _ = experiment.load(run_store.load_run(trained))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 24, 24)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).embedding.numpy()
    np.testing.assert_allclose(recogniser.load(tmp_path / "mine.onnx")(images), expected, atol=1e-4)


@pytest.mark.slow
def test_a_study_compares_it_with_others_in_two_processes(call, files, method, student, trained, tmp_path, monkeypatch):
    monkeypatch.setitem(grids.STUDIES, "few", lambda *given: [s for s in specs("book", *given[:2]) if s.seed == 0])
    words = ("study", "few", "--methods", f"none,{method}", "--student", student, "--teacher", "small", "--workers", 2)
    out = tmp_path / "t.csv"
    assert "pooled-l1" in call(*words, "--runs", files / "runs", "--device", "cpu", "--out", out)
    table = pd.read_csv(out)
    table = table[table["protocol"] == "test"]
    found = table[table["role"] == "student"]
    assert set(found["method"]) == {"none", "pooled-l1"}
    assert set(found["student"]) == {"nets_of_mine.py:make"}
    mine = found[found["method"] == "pooled-l1"]
    assert list(mine["side"]) == [SMOKE.sides[-1]]
    assert len(list(files.glob("runs/*-pooled-l1-*-3-*/result.json"))) == 1


def test_a_changed_file_is_another_run(method, files):
    before = methods.get(method).describe()
    path = Path(method.rpartition(":")[0])
    text = path.read_text()
    try:
        path.write_text(text + "# another thought\n")
        assert methods.get(method).describe() != before
    finally:
        path.write_text(text)
    assert methods.get(method).describe() == before


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("OTHER", "expected a Method, a Term or a list of Terms, got .*function"),
        ("NONE", "expected a name of its own, got 'none'"),
        ("MIME", "has no 'MIME'; did you mean MINE"),
    ],
)
def test_what_is_no_method_of_ones_own_is_named(files, name, match):
    with pytest.raises(ConfigError, match=match):
        methods.get(f"{files / 'pooled_of_mine.py'}:{name}")


def test_a_method_of_ones_own_runs_wherever_a_study_distils(method):
    grid, mine = specs("book", SMOKE), methods.get(method)
    assert variants.with_networks(grid) == grid
    distilled = {(s.side, s.seed) for s in grid if s.method.teacher == "trained"}
    found = variants.with_methods(grid, [methods.METHODS["none"], mine])
    assert {(s.side, s.seed) for s in found if s.method == mine} == distilled
    kept = [s for s in found if s.method != mine]
    assert kept == [s for s in grid if s.method.name == "none"]
    assert len(found) == len(kept) + len(distilled)


def test_another_teacher_takes_the_place_of_the_studys():
    grid = specs("core", SMOKE)
    found = variants.with_networks(grid, "mobile", "iresnet18")
    teachers = [s for s in found if s.role == "teacher"]
    assert [(s.seed, s.student) for s in teachers] == [(0, "iresnet18"), (1, "iresnet18")]
    assert all(s.student == "mobile" for s in found if s.role == "student")
    assert all(s.teacher_run in teachers for s in found if s.teacher_run is not None)
