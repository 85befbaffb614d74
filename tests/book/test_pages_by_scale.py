"""Pages that show scale gpu beside scale cpu, with its file and without it: their code runs here, cell by cell."""

import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import yaml
from kit import display, figures

from lrkd.distill import methods
from lrkd.study import grids, presets, results, runner, spec

BOOK = Path(__file__).parents[2] / "book"
SMOKE = presets.SCALES["smoke"]
pytestmark = pytest.mark.usefixtures("smoke")


@pytest.fixture(scope="module")
def measured(smoke, photographs):
    """A table of photographs at scale smoke, really measured, in the place of one of scale gpu."""
    wanted = [spec.teacher_spec(SMOKE, seed, photographs) for seed in range(2)]
    wanted += [
        spec.Spec(methods.METHODS[name], SMOKE.sides[-1], seed, SMOKE, photographs, seed % 2)
        for name in grids.PHOTO_METHODS
        for seed in range(2)
    ]
    return runner.run_study(wanted, smoke / "photographs", workers=1, device="cpu", progress=False)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(BOOK / "results", tmp_path / "book" / "results")
    (tmp_path / "benchmarks").symlink_to(BOOK.parent / "benchmarks")
    for file in (tmp_path / "book" / "results").glob("gpu-*"):
        file.unlink()
    return tmp_path / "book"


def run(page, folder, monkeypatch):
    """The page's code in that folder; -> its names, and what it said."""
    said = {}
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LRKD_DATA", raising=False)
    monkeypatch.setattr(display, "say", said.update)
    names = {}
    for cell in json.loads((BOOK / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    plt.close("all")
    return names, said


@pytest.mark.slow
def test_real_faces_with_a_table_of_scale_gpu_and_without(folder, measured, monkeypatch):
    _, said = run("real-faces", folder, monkeypatch)
    assert (
        "not measured yet; on a GPU make gpu-results or lrkd study would write book/results/gpu-lfw-core.csv"
        in said["at_gpu"]
    )
    shown = []
    monkeypatch.setattr(figures, "forests", lambda tables, *more, **how: shown.append(tables) or plt.figure())
    results.write_table(folder / "results/gpu-lfw-core.csv", measured)
    _, more = run("real-faces", folder, monkeypatch)
    assert [name.partition(",")[0] for name in shown[0]] == ["lfw-core.csv", "gpu-lfw-core.csv"]
    assert set(list(shown[0].values())[1].index) <= {"fskd", "askd", "embedding-cos"}
    assert f"gpu-lfw-core.csv, {measured['config'].nunique()} runs on" in more["at_gpu"]
    stays = {key: value for key, value in more.items() if key != "at_gpu" and not key.startswith("big_")}
    assert stays == {key: value for key, value in said.items() if key != "at_gpu"}, "what is said of scale cpu stays"


@pytest.mark.slow
def test_scale_counts_the_tables_that_are_there(folder, measured, monkeypatch):
    _, said = run("scale", folder, monkeypatch)
    assert (said["tables"], said["lacks"]) == (0, said["asked"])
    assert said["lacking"]
    results.write_table(folder / "results/gpu-lfw-core.csv", measured)
    names, said = run("scale", folder, monkeypatch)
    assert (said["tables"], said["lacks"]) == (1, said["asked"] - 1)
    assert len(names["found"]) == 4 * 2, "a row a student on test people"


TOC = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
APPENDIX = {chapter["file"] for part in TOC["parts"] if part["caption"] == "Appendix" for chapter in part["chapters"]}


@pytest.mark.parametrize(
    "page", sorted({*APPENDIX, "real-faces", "recogniser"} - {"three-epochs", "faces-detail", "recogniser-detail"})
)
def test_a_page_that_shows_a_whole_table_says_what_scale_gpu_has(page):
    """The pages that nobody reads from end to end say it, and those of photographs and of the finished recogniser."""
    cells = json.loads((BOOK / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    code, text = (
        "".join(line for cell in cells if cell["cell_type"] == kind for line in cell["source"])
        for kind in ("code", "markdown")
    )
    assert "results/" in code
    assert "at_gpu" in code
    assert "{glue:text}`at_gpu`" in text
