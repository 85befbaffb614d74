"""The student that the book ends with: how it is chosen and written, the file in the repository, and its snippet."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from kit import registration

from book import student
from lrkd.data.degradation import degrade
from lrkd.data.renderer import FaceModel
from lrkd.errors import DataError
from lrkd.evaluation import verification
from lrkd.onnx import recogniser
from lrkd.study import experiment, grids, presets, results, runner, store
from lrkd.study import spec as study_spec
from lrkd.training.step import normalise

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "book" / "results"
FILE, ABOUT = RESULTS / "student.onnx", RESULTS / "student.json"
SMOKE = presets.SCALES["smoke"]


# ------------------------------------------------------------------------------------------------ chosen and written


def table(**accuracies: tuple[float, ...]) -> pd.DataFrame:
    """Validation rows, a seed a number, and test rows that say the opposite."""
    return pd.DataFrame(
        {"role": "student", "status": "ok", "method": name, "seed": seed, "protocol": protocol}
        | {"accuracy": value if protocol == "validation" else 1 - value}
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
        for protocol in ("validation", "test")
    )


def test_the_best_method_on_validation_people_gives_its_best_seed():
    rows = table(lucky=(0.99, 0.5, 0.5), steady=(0.8, 0.9, 0.85), worse=(0.7, 0.7, 0.7))
    rows.loc[len(rows)] = ["teacher", "ok", "none", 0, "validation", 1.0]
    found = student.best(rows)
    assert (found["method"], found["seed"], found["protocol"]) == ("steady", 1, "validation")
    with pytest.raises(DataError, match="no validation row"):
        student.best(rows[rows["protocol"] == "test"])


@pytest.fixture(scope="module")
def made(smoke, tmp_path_factory):
    """The files of a study of two methods and two designs at scale smoke, and the run that they are of."""
    out, few = tmp_path_factory.mktemp("results"), {name: presets.DESIGNS[name] for name in ("mobile-xs", "plain-s")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grids, "DESIGNS", few)
        patch.setattr(grids, "DESIGN", "plain-s")
        patch.setattr(student, "ROUNDS", 1)
        wanted = [s for s in grids.specs("selection", SMOKE) if s.seed == 0 and s.method.name in ("none", "skd-none")]
        results.write_table(out / "selection.csv", runner.run_study(wanted, workers=1, device="cpu", progress=False))
        # Rows that the command does not know: a format of earlier times, a design on another machine.
        results.write_table(out / "student-formats.csv", pd.DataFrame({"format": ["int4"], "protocol": "test"}))
        other = pd.DataFrame({"design": ["cube"], "side": 16, "threads": 1, "batch": 256, "device": "another"})
        results.write_table(out / "student-sizes.csv", other)
        student.main(out)
        chosen = student.best(results.read_table(out / "selection.csv"))
        spec = next(spec for spec in wanted if study_spec.config_hash(spec) == chosen["config"])
    return out, experiment.find_run(spec)


@pytest.mark.slow
def test_a_run_of_another_study_is_refused(made, tmp_path):
    rows = results.read_table(made[0] / "selection.csv").assign(config="0123456789")
    results.write_table(tmp_path / "selection.csv", rows)
    with pytest.raises(DataError, match="0123456789: is no run of `lrkd study selection` as it is now"):
        student.main(tmp_path)


@pytest.mark.slow
def test_the_files_are_of_the_chosen_run(made):
    out, run = made
    about = json.loads((out / "student.json").read_text())
    assert about["run"] == run.path.name
    assert about["config"] == run.config
    assert about["accuracy"]["test"] == run.result["measures"]["test"]["accuracy"]
    file = recogniser.load(out / "student.onnx")
    assert (file.metadata["network"], file.size) == (run.path.name, grids.SMALL_SIDE)
    assert "threshold" in file.metadata
    network, _ = experiment.load(run)
    found = recogniser.agreement(network, file, study_spec.splits(SMOKE).test, side=file.size)
    rows = pd.read_csv(out / "student-formats.csv").set_index(["format", "protocol"])
    assert rows.index[0] == ("int4", "test"), "other rows stay"
    row = rows.loc[("int8", "test")]
    assert (row["bytes"], row["accuracy"]) == (file.bytes, pytest.approx(found.file, abs=1e-5))
    assert row["cosine"] == pytest.approx(found.cosine.mean(), abs=1e-5)


@pytest.mark.slow
def test_every_design_is_weighed(made):
    sizes = pd.read_csv(made[0] / "student-sizes.csv").set_index("design")
    assert list(sizes.index) == ["cube", "mobile-xs", "plain-s"], "other rows stay"
    for name, row in sizes.drop("cube").iterrows():
        spec = next(s for s in grids.specs("designs", SMOKE) if s.student == name and s.side == grids.SMALL_SIDE)
        network, _ = experiment.load(experiment.find_run(spec))
        assert row["parameters"] == sum(p.numel() for p in network.parameters()) < row["int8"]
        assert row["faces_per_s"] > 0
    # The first convolution of plain-s alone: 16 x 16 places, 3 x 3 x 3 weights, 8 channels.
    assert sizes.loc["plain-s", "multiply_adds"] > 256 * 27 * 8


# --------------------------------------------------------------------------------------- what the repository contains

shipped = pytest.mark.skipif(not FILE.exists(), reason="`python -m book.student` has not written the student")


@shipped
def test_the_student_is_small_and_whole():
    about, file = json.loads(ABOUT.read_text()), recogniser.load(FILE)
    assert FILE.stat().st_size <= student.LIMIT == 150_000
    assert about["run"].endswith(store.digest(about["config"]))
    assert file.metadata["network"] == about["run"]
    assert (file.size, file.embedding) == (about["config"]["side"], about["config"]["model"]["embedding"])
    assert about["rule"] == student.RULE
    row = student.best(results.read_table(RESULTS / "selection.csv"))
    assert about["run"].endswith(row["config"])
    assert about["accuracy"]["validation"] == pytest.approx(row["accuracy"], abs=1e-6)


@shipped
def test_the_formats_meet_what_was_demanded():
    rows = pd.read_csv(RESULTS / "student-formats.csv").set_index(["format", "protocol"])
    about = json.loads(ABOUT.read_text())
    for protocol in ("validation", "test"):
        part = rows.xs(protocol, level="protocol")
        assert part.loc["torch", "accuracy"] == pytest.approx(about["accuracy"][protocol], abs=1e-3)
        assert (part["accuracy"] - part.loc["torch", "accuracy"]).abs().max() <= 0.01
        assert (part.loc[["onnx", "fp16"], "cosine"] >= 0.999).all()
        assert part.loc["int8", "cosine"] >= 0.98
    assert rows.loc[("int8", "test"), "bytes"] == FILE.stat().st_size


@pytest.fixture(scope="module")
def faces():
    """(40,3,16,16) in [-1,1]: ten unseen people in the study's world, four rendered faces each."""
    world = FaceModel(**presets.SCALES["cpu"].face)
    generator = torch.Generator().manual_seed(11)
    who = world.sample_identity(10, generator).repeat_interleave(4, 0)
    sharp = world(who, world.sample_nuisance(40, generator), size=presets.SCALES["cpu"].size)
    return normalise(degrade(sharp, grids.SMALL_SIDE, enlarge=False))


@shipped
def test_the_student_knows_unseen_people(faces):
    file = recogniser.load(FILE, threads=1)
    found = file(faces)
    assert torch.equal(found, file(faces)), "the same each time"
    torch.testing.assert_close(torch.cat([file(one[None]) for one in faces]), found, atol=1e-5, rtol=0)
    alike = torch.nn.functional.cosine_similarity(found[:, None], found[None], dim=2)
    same = torch.eye(10, dtype=torch.bool).repeat_interleave(4, 0).repeat_interleave(4, 1)
    other = ~torch.eye(40, dtype=torch.bool)
    above = alike > float(file.metadata["threshold"])
    assert above[same & other].float().mean() > 0.6 > 0.4 > above[~same].float().mean()


@shipped
def test_the_student_agrees_with_its_run_as_the_table_says(faces):
    run = store.Run(experiment.store_dir() / json.loads(ABOUT.read_text())["run"])
    if not run.finished:
        pytest.skip(f"{run.path.name} is not in the run store: `python -m book.student` trains it")
    network, _ = experiment.load(run)
    with torch.inference_mode():
        own = network(faces).embedding.numpy()
    rows = pd.read_csv(RESULTS / "student-formats.csv").set_index(["format", "protocol"])
    found = verification.cosine_scores(own, recogniser.load(FILE)(faces.numpy()))
    assert found.mean() == pytest.approx(rows.loc[("int8", "test"), "cosine"], abs=0.005)


def test_the_claims_are_about_methods_of_the_study():
    registered = registration.read_hypotheses((ROOT / "book/selection-claims.md").read_text(encoding="utf-8"))
    specs = grids.specs("selection", presets.SCALES["cpu"])
    assert {*registered.hypotheses["method"], *registered.hypotheses["baseline"]} <= {s.method.name for s in specs}
    assert registered.seeds == len({s.seed for s in specs if s.role == "student"})
    assert {s.teacher_seed for s in specs} == set(map(int, registered.settings["teachers"].split(",")))


# --------------------------------------------------------------------------------------------------------- the README


@shipped
def test_the_snippet_needs_onnxruntime_and_numpy_alone():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (snippet,) = (block for block in blocks if "student.onnx" in block)
    blocked = (
        "import sys\nfor name in ('torch', 'lrkd', 'onnx', 'PIL', 'scipy', 'pandas'):\n    sys.modules[name] = None\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", blocked + snippet], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.fullmatch(r"similarity -?[01]\.\d\d, one person above \d\.\d\d\n", ran.stdout)
    file = recogniser.load(FILE, threads=1)
    noise = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    a, b = file(noise.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    assert f"similarity {a @ b / np.linalg.norm(a) / np.linalg.norm(b):.2f}" in ran.stdout
