"""`lrkd verify`, `identify` and `compare` on prepared folders: training people, misses, thresholds, exported files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toys
from PIL import Image

from lrkd.cli import verify
from lrkd.cli.program import main
from lrkd.data.prepared import load_prepared, resized_faces
from lrkd.distill import methods
from lrkd.evaluation.embedding import embed
from lrkd.evaluation.identification import fuse, rank_k
from lrkd.evaluation.verification import fit_threshold, fixed_verification, kfold_verification
from lrkd.onnx import export, recogniser
from lrkd.study import experiment, presets
from lrkd.study import spec as study_spec

SMOKE = presets.SCALES["smoke"]
pytestmark = pytest.mark.usefixtures("smoke")


@pytest.fixture(scope="module")
def trained(smoke, photographs):
    """A run that was trained on the photographs, at 6 px."""
    spec = study_spec.Spec(methods.get("none"), 6, 0, SMOKE, photographs)
    return experiment.train(spec, smoke / "evaluation", device="cpu", progress=False)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The same network as an .onnx file."""
    path = tmp_path_factory.mktemp("file") / "face.onnx"
    assert main(["export", str(trained.path), "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def stranger(exported, tmp_path_factory):
    """The file as one of other data, so that nobody of the photographs can have been trained on."""
    path = Path(shutil.copy(exported, tmp_path_factory.mktemp("stranger") / "face.onnx"))
    export.annotate(path, {"data": "elsewhere", "network": "stranger"})
    return path


@pytest.fixture
def folder(photographs, tmp_path):
    """The photographs, to be changed."""
    return Path(shutil.copytree(photographs, tmp_path / "people"))


@pytest.fixture
def called(capsys, tmp_path):
    """Call the command line -> exit status, its table (None where it wrote none), stderr."""

    def call(*words: object, out: bool = True) -> tuple[int, pd.DataFrame | None, str]:
        capsys.readouterr()
        path = tmp_path / "t.csv"
        path.unlink(missing_ok=True)
        status = main([*map(str, words), *(["--out", str(path)] if out else [])])
        return status, pd.read_csv(path, keep_default_na=False) if path.exists() else None, capsys.readouterr().err

    return call


def change(folder: Path, name: str, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    table = pd.read_csv(folder / name, dtype=str)
    edit(table).to_csv(folder / name, index=False)


def learnt(photographs: str) -> np.ndarray:
    """(N,) bool: the rows of the folder that the run was trained on."""
    faces = load_prepared(photographs).faces
    names = set(study_spec.splits(SMOKE, photographs).train.names)
    return np.array([faces.names[label] in names for label in faces.labels])


def features(run, faces, side=6) -> np.ndarray:
    """What the run's network makes of a whole table, in its order."""
    shown = resized_faces(faces, SMOKE.size)
    return embed(experiment.load(run)[0], shown.images, side=side)


# ------------------------------------------------------------------------------------------------ who was trained on


def test_verify_says_who_was_trained_on_and_scores_the_rest(called, trained, photographs):
    whole = load_prepared(photographs)
    pairs, seen = whole.protocols["generated"], learnt(photographs)
    shown = seen[pairs.left] | seen[pairs.right]
    assert 0 < shown.sum() < len(pairs)
    words = ("verify", trained.path, "--data", photographs, "--side", 6)
    status, table, err = called(*words)
    people = len(study_spec.splits(SMOKE, photographs).train.names)
    assert (status, table["pairs"].item()) == (0, len(pairs))
    assert f"was trained on {people} people (first person" in err
    assert f": {shown.sum()} of {len(pairs)} pairs show them; --unseen scores the rest alone\n" in err
    status, table, err = called(*words, "--unseen")
    assert status == 0
    x, rest = features(trained, whole.faces), pairs.keep(np.where(seen, -1, np.arange(len(seen))))
    even = rest.balanced()
    assert len(even) < len(rest) == (~shown).sum(), "more impostor pairs show somebody of the training people"
    assert f"pairs show them and are left out, and {len(rest) - len(even)} more, so that half of each fold" in err
    expected = kfold_verification(x[even.left], x[even.right], even.same, even.fold)
    assert table["pairs"].item() == len(even)
    assert table["accuracy"].item() == pytest.approx(expected.mean, abs=1e-6)
    folds, before = len(set(even.fold)), pairs.fold.max() + 1
    assert table["folds"].item() == folds
    assert (f"{folds} folds, as the others of {before} have no pairs" in err) == (folds < before)


def test_who_guesses_is_right_in_half_of_what_is_left(called, exported, trained, photographs, monkeypatch):
    """Of unbalanced pairs the threshold of the others would be right more often: here all have one cosine."""
    monkeypatch.setenv("LRKD_RUNS", str(trained.path.parent))
    monkeypatch.setattr(verify, "embed", lambda _, images, *more: np.tile([[1.0, 0]], (len(images), 1)))
    _, table, _ = called("verify", exported, "--data", photographs, "--side", 6, "--unseen")
    assert table["accuracy"].item() == 0.5


def test_unbalanced_pairs_are_said(called, stranger, folder):
    def fewer(table: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([table[table["same"] == "1"].groupby("fold").head(2), table[table["same"] == "0"]])

    assert called("verify", stranger, "--data", folder, "--side", 6)[2] == ""
    change(folder, "pairs.csv", fewer)
    pairs = load_prepared(folder).protocols["generated"]
    err = called("verify", stranger, "--data", folder, "--side", 6)[2]
    assert f"people: {pairs.same.sum()} of {len(pairs)} pairs are genuine: calling all of them genuine" in err
    assert f"scores {1 - pairs.same.mean():.1%}" in err


def test_a_file_that_names_this_data_may_know_its_people(called, exported, photographs, folder, tmp_path):
    """All of them, or where the set has splits those of its training split; whose run is not here."""
    pairs = load_prepared(photographs).protocols["generated"]
    err = called("verify", exported, "--data", photographs, "--side", 6)[2]
    assert f"was trained on people, whose training people it may know: {len(pairs)} of {len(pairs)} pairs show" in err
    status, _, err = called("verify", exported, "--data", photographs, "--unseen")
    assert (status, "and --unseen leaves no pairs of both kinds to score" in err) == (2, True)
    meta = json.loads((folder / "meta.json").read_text())
    meta |= {"name": "people-jpeg88", "splits": {"train": list(range(12)), "test": list(range(12, 24))}}
    (folder / "meta.json").write_text(json.dumps(meta))
    whole = load_prepared(folder)
    shown = pairs.touch(whole.faces.labels < 12)
    err = called("verify", exported, "--data", folder, "--side", 6)[2]
    assert (
        f"people-jpeg88: {recogniser.load(exported).metadata['network']} was trained on people, whose training" in err
    )
    assert f"may know: {shown.sum()} of {len(pairs)} pairs show them; --unseen scores" in err
    rest = pairs.keep(np.where(whole.faces.labels < 12, -1, np.arange(len(whole.faces))))
    status, table, _ = called("verify", exported, "--data", folder, "--side", 6, "--unseen")
    assert (status, table["pairs"].item()) == (0, len(rest.balanced()))
    status, table, err = called("identify", exported, "--data", folder, "--unseen")
    assert (status, table["gallery"].item()) == (0, 12)
    meta["name"] = "others"
    (folder / "meta.json").write_text(json.dumps(meta))
    assert called("verify", exported, "--data", folder, "--side", 6)[2] == ""
    err = called("verify", exported, "--data", folder, "--side", 6, "--unseen")[2]
    assert "was trained is not known: it was trained on people, and its run is not in the store" in err


def test_tables_keep_rows_of_other_data_of_the_same_name(called, trained, photographs, tmp_path):
    """A folder that was prepared in two ways has one name."""
    other, out = Path(shutil.copytree(photographs, tmp_path / "other")), tmp_path / "table.csv"
    change(other, "manifest.csv", lambda t: t.assign(source=t["source"] + ".again"))
    for command in ("verify", "identify"):
        for data in (photographs, other, photographs):
            assert called(command, trained.path, "--data", data, "--side", 6, "--out", out, out=False)[0] == 0
        table = pd.read_csv(out)
        assert list(table["data"]) == ["people"] * len(table)
        assert table.groupby("digest").size().nunique() == 1
        assert table["digest"].nunique() == 2
        out.unlink()


def test_a_table_of_pairs_is_none_of_searches_nor_the_other_way(called, trained, photographs, tmp_path):
    for one, other in (("verify", "identify"), ("identify", "verify")):
        out = tmp_path / f"{one}.csv"
        assert called(one, trained.path, "--data", photographs, "--side", 6, "--out", out, out=False)[0] == 0
        before = out.read_bytes()
        status, _, err = called(other, trained.path, "--data", photographs, "--side", 6, "--out", out, out=False)
        assert (status, out.read_bytes()) == (2, before)
        assert f"is no such table of `lrkd {other}`" in err


def test_no_word_where_nobody_was_trained_on(called, trained, photographs):
    status, _, err = called("verify", trained.path, "--side", 6)
    assert (status, err) == (0, ""), "its own test people"
    rendered = experiment.train(study_spec.Spec(methods.get("none"), 6, 0, SMOKE), device="cpu", progress=False)
    status, _, err = called("verify", rendered.path, "--data", photographs, "--side", 6, "--unseen")
    assert (status, err) == (0, ""), "rendered people are in no photograph"


def test_unseen_with_nothing_left_is_an_error(called, trained, photographs, folder):
    seen = learnt(photographs)
    change(folder, "pairs.csv", lambda t: t[seen[t["left"].astype(int)] & seen[t["right"].astype(int)]])
    status, _, err = called("verify", trained.path, "--data", folder, "--side", 6, "--unseen")
    assert status == 2
    assert "and --unseen leaves no pairs of both kinds to score" in err
    faces = load_prepared(photographs).faces
    change(folder, "manifest.csv", lambda t: t.assign(role=np.where(seen, "probe", "gallery")))
    status, _, err = called("identify", trained.path, "--data", folder, "--unseen")
    assert status == 2
    assert "--unseen leaves no gallery or no probes" in err
    assert faces.classes == 24


def test_unseen_needs_to_know_what_was_trained_on(called, trained, stranger, photographs, tmp_path):
    status, _, err = called("verify", stranger, "--data", photographs, "--unseen")
    assert status == 2
    assert "stranger was trained is not known: it was trained on elsewhere, and its run is not in the store" in err
    moved = Path(shutil.copytree(trained.path, tmp_path / trained.path.name))
    result = json.loads((moved / "result.json").read_text())
    (moved / "result.json").write_text(json.dumps({**result, "source": str(tmp_path / "gone")}))
    status, table, err = called("verify", moved, "--data", photographs, "--side", 6)
    assert (status, len(table)) == (0, 1)
    assert f"warning: whether {moved.name} was trained on people of people is not known" in err
    assert called("verify", moved, "--data", photographs, "--unseen")[0] == 2


def test_identify_says_who_was_trained_on_and_scores_the_rest(called, trained, photographs, folder):
    faces, seen = load_prepared(photographs).faces, learnt(photographs)
    first = np.zeros(len(faces), bool)
    first[np.unique(faces.labels, return_index=True)[1]] = True
    change(folder, "manifest.csv", lambda t: t.assign(role=np.where(first, "gallery", "probe")))
    words = ("identify", trained.path, "--data", folder, "--side", 6)
    status, table, err = called(*words)
    assert (status, table["probes"].item()) == (0, (~first).sum())
    counts = f"{(seen & first).sum()} of {first.sum()} gallery, {(seen & ~first).sum()} of {(~first).sum()} probe"
    assert f": {counts}; --unseen scores the rest alone\n" in err
    status, table, err = called(*words, "--unseen")
    assert status == 0
    assert f": {counts}; they are left out\n" in err
    x, shelf, asked = fuse(features(trained, faces)), first & ~seen, ~first & ~seen
    expected = rank_k(x[shelf], faces.labels[shelf], x[asked], faces.labels[asked])
    np.testing.assert_allclose(table[["rank1", "rank5", "rank10", "rank20"]].to_numpy(float)[0], expected)
    assert (table["probes"].item(), table["gallery"].item()) == (asked.sum(), shelf.sum())


# ------------------------------------------------------------------------------------------------------------ misses


def test_verify_counts_pairs_of_missing_faces_as_rejected(called, exported, trained, folder):
    change(folder, "manifest.csv", lambda t: t.assign(missing=["1", *["0"] * (len(t) - 1)]))
    whole = load_prepared(folder)
    pairs = whole.protocols["generated"]
    gone = (pairs.left == 0) | (pairs.right == 0)
    status, table, err = called("verify", exported, "--data", folder, "--side", 6)
    assert status == 0
    assert table[["pairs", "missed"]].to_numpy().tolist() == [[len(pairs), gone.sum()]]
    assert f"no face was found in 1 image ({whole.faces.sources[0]}): {gone.sum()} pairs count as rejected" in err
    x = features(trained, whole.faces)
    expected = kfold_verification(x[pairs.left], x[pairs.right], pairs.same, pairs.fold, missing=gone)
    assert table["accuracy"].item() == pytest.approx(expected.mean, abs=1e-6)


def test_identify_names_a_missing_image_of_the_gallery_and_counts_its_probes(called, exported, folder):
    roles = ["gallery", "probe", "probe", "probe"] * 24
    change(folder, "manifest.csv", lambda t: t.assign(role=roles, missing=["1", "0", "0", "0", "0", "1"] + ["0"] * 90))
    sources = load_prepared(folder).faces.sources
    status, table, err = called("identify", exported, "--data", folder)
    assert status == 0
    assert table[["probes", "gallery", "missed"]].to_numpy().tolist() == [[72, 23, 4]]
    assert table["rank20"].item() <= 68 / 72
    assert f"gallery: no face was found in 1 image ({sources[0]}): their people's probes count as misses" in err
    assert f"probe: no face was found in 1 image ({sources[5]}): they count as misses" in err


def test_a_folder_without_roles_is_identified_by_the_first_image_of_each_person(called, exported, trained, folder):
    change(folder, "manifest.csv", lambda t: t.drop(columns="role", errors="ignore"))
    faces = load_prepared(folder).faces
    status, table, err = called("identify", exported, "--data", folder, "--side", 6)
    assert (status, table["gallery"].item(), table["probes"].item()) == (0, 24, 72)
    assert "has no roles: the first image of each person is the gallery" in err
    x, order = fuse(features(trained, faces)), np.argsort(faces.labels, kind="stable").reshape(24, 4)
    shelf, asked = order[:, 0], order[:, 1:].ravel()
    expected = rank_k(x[shelf], faces.labels[shelf], x[asked], faces.labels[asked])
    np.testing.assert_allclose(table[["rank1", "rank5", "rank10", "rank20"]].iloc[0], expected, atol=1e-6)
    single = toys.photographs(folder.parent / "single", people=4, images=1)
    status, _, err = called("identify", exported, "--data", single)
    assert status == 2
    assert "or a person with two images, got neither" in err


def test_identify_counts_probes_whom_the_gallery_lacks(called, exported, folder):
    roles = ["probe", "probe", "probe", "probe", *["gallery", "probe", "probe", "probe"] * 23]
    change(folder, "manifest.csv", lambda t: t.assign(role=roles))
    status, table, err = called("identify", exported, "--data", folder)
    assert (status, table["missed"].item(), table["probes"].item()) == (0, 4, 73)
    assert "no image in the gallery shows person00: 4 of 73 probes are misses" in err


# --------------------------------------------------------------------------------- thresholds, folds and few people


@pytest.fixture
def view1(folder):
    """Two protocols of one fold: pairs of the first half of the folds, and of the rest."""

    def halves(table: pd.DataFrame) -> pd.DataFrame:
        early = table["fold"].astype(int) < 5
        return table.assign(fold="0", protocol=np.where(early, "view1-train", "view1-test"))

    change(folder, "pairs.csv", halves)
    return folder


def test_view_1_is_scored_by_the_threshold_of_its_training_pairs(called, stranger, trained, view1):
    words = ("verify", stranger, "--data", view1, "--side", 6)
    status, table, err = called(*words, "--protocol", "view1-test")
    assert (status, err) == (0, "")
    whole = load_prepared(view1)
    x, (a, b) = features(trained, whole.faces), (whole.protocols[f"view1-{part}"] for part in ("train", "test"))
    threshold, mean = fit_threshold(x[a.left], x[a.right], a.same)
    expected = fixed_verification(x[b.left], x[b.right], b.same, threshold, mean=mean)
    assert table[["threshold_from", "folds", "sd_of_folds"]].to_numpy().tolist() == [["view1-train", 1, ""]]
    assert table["accuracy"].item() == pytest.approx(expected.mean, abs=1e-6)
    assert table["threshold"].item() == pytest.approx(threshold, abs=1e-4)
    status, table, _ = called(*words, "--protocol", "view1-train", "--threshold-from", "view1-test")
    assert (status, table["threshold_from"].item(), table["pairs"].item()) == (0, "view1-test", len(a))
    status, _, err = called(*words, "--protocol", "view1-train")
    assert status == 2
    assert f"folds: expected at least 2, but all {len(a)} pairs are in fold 0" in err
    assert "--threshold of `lrkd verify`" in err
    status, _, err = called(*words, "--protocol", "view1-test", "--threshold-from", "view3")
    assert (status, err) == (2, "lrkd: protocol 'view3': people has view1-train, view1-test\n")


def test_one_pair_is_scored_at_a_given_threshold(called, stranger, trained, folder):
    change(folder, "pairs.csv", lambda t: t.head(1))
    whole = load_prepared(folder)
    (pair,) = whole.protocols.values()
    x = features(trained, whole.faces)
    expected = fixed_verification(x[pair.left], x[pair.right], pair.same, 0.5)
    words = ("verify", stranger, "--data", folder, "--side", 6)
    status, table, err = called(*words, "--threshold", 0.5)
    assert (status, err) == (0, "")
    found = table[["accuracy", "pairs", "threshold", "threshold_from", "tar_at_far_1e-2"]].to_numpy().tolist()
    assert found == [[expected.mean, 1, 0.5, "given", ""]]
    status, _, err = called(*words, "--threshold", 62)
    assert (status, err) == (2, "lrkd: threshold: expected a cosine, from -1 to 1, got 62.0\n")
    with pytest.raises(SystemExit):
        called(*words, "--threshold", 0.5, "--threshold-from", "x")


def test_a_folder_of_three_people_has_no_pairs_and_is_told_what_does_without(called, exported, tmp_path):
    small = toys.photographs(tmp_path / "three", people=3, images=2)
    change(small, "pairs.csv", lambda t: t.head(0))
    status, table, err = called("verify", exported, "--data", small)
    assert (status, table) == (2, None)
    assert "has no verification pairs, and none can be drawn (3 people" in err
    assert "`lrkd identify`" in err
    assert "`lrkd embed`" in err
    assert called("identify", exported, "--data", small)[1]["probes"].item() == 3


# ----------------------------------------------------------------------------------- sides, exported files, verdicts


def test_a_side_is_degraded_to_even_the_images_own_and_no_side_is_not(called, trained, photographs):
    whole = load_prepared(photographs)
    pairs = whole.protocols["generated"]
    found = {}
    for preset in ("askd-compat", "area-bicubic"):
        words = ("verify", trained.path, "--data", photographs, "--degradation", preset, "--unseen")
        for side in (None, SMOKE.size):
            status, table, _ = called(*words, *([] if side is None else ["--side", side]))
            assert status == 0
            row = table.iloc[0]
            assert (row["side"], row["degradation"]) == (SMOKE.size, "none" if side is None else preset)
            found[preset, side] = row["threshold"]
    assert found["askd-compat", None] == found["area-bicubic", None] == found["area-bicubic", SMOKE.size]
    shown = resized_faces(whole.faces, SMOKE.size)
    x = embed(experiment.load(trained)[0], shown.images, side=SMOKE.size, preset="askd-compat")
    even = pairs.keep(np.where(learnt(photographs), -1, np.arange(len(x)))).balanced()
    blurred = kfold_verification(x[even.left], x[even.right], even.same, even.fold)
    assert found["askd-compat", SMOKE.size] == pytest.approx(blurred.threshold.mean(), abs=1e-5)
    assert found["askd-compat", SMOKE.size] != pytest.approx(found["askd-compat", None], abs=1e-5)


def test_an_exported_file_is_measured_as_its_run(called, trained, exported, photographs):
    words = ("--data", photographs, "--side", 24, "--side", 6)
    tables = [called("verify", network, *words)[1] for network in (trained.path, exported)]
    numbers = ["accuracy", "sd_of_folds", "threshold", "tar_at_far_1e-2"]
    np.testing.assert_allclose(*(table[numbers] for table in tables), atol=1e-4)
    others = [table.drop(columns=[*numbers, "config"]) for table in tables]  # a run's hash is no file's
    assert others[0].equals(others[1])
    status, table, _ = called("verify", exported, "--data", photographs)
    assert (status, table["side"].tolist(), table["degradation"].tolist()) == (0, [24, 6], ["none", "area-bicubic"])


def test_an_exported_file_whose_run_lies_in_the_store_knows_its_people(
    called, trained, exported, photographs, monkeypatch
):
    words = ("--data", photographs, "--side", 6, "--unseen")
    monkeypatch.setenv("LRKD_RUNS", str(trained.path.parent))
    (_, run, said), (status, file, err) = called("verify", trained.path, *words), called("verify", exported, *words)
    assert (status, err) == (0, said)
    pd.testing.assert_frame_equal(run.drop(columns="config"), file.drop(columns="config"), atol=1e-4)
    assert called("verify", exported)[0] == 0, "its own test people"
    monkeypatch.setenv("LRKD_RUNS", str(trained.path))
    assert called("verify", exported)[0] == 2


def test_rendered_faces_are_no_folder_and_are_told_what_measures_them(called, exported):
    status, _, err = called("verify", exported, "--data", "procedural")
    assert status == 2
    assert "`lrkd verify RUN` without --data measures a run on its own test people" in err


def test_the_thresholds_of_folds_are_said_to_be_none_for_the_option(trained, photographs, capsys):
    words = ["verify", str(trained.path), "--data", photographs, "--side", "6"]
    said = "none is one for --threshold"
    assert main(words) == 0
    assert said in capsys.readouterr().out
    assert main([*words, "--threshold", "0.5"]) == 0
    assert said not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    assert "it is a plain cosine" in " ".join(capsys.readouterr().out.split())


def test_compare_without_a_threshold_says_what_finds_one(trained, tmp_path, capsys):
    for name in ("a.tiff", "b.pgm"):
        Image.fromarray(np.full((24, 24), 99, np.uint8)).save(tmp_path / name)
    assert main(["compare", str(trained.path), str(tmp_path / "a.tiff"), str(tmp_path / "b.pgm"), "--cropped"]) == 0
    assert "`lrkd export` finds one" in capsys.readouterr().out


def test_what_a_file_says_of_itself_is_checked(called, exported, photographs, tmp_path):
    metadata = recogniser.load(exported).metadata
    assert (metadata["images"], metadata["side"], metadata["data"]) == ("24", "6", "people")
    assert metadata["threshold_data"] == "people/validation"
    copied = Path(shutil.copy(exported, tmp_path / "c.onnx"))
    for changed, said in (
        ({"channels": "BGR"}, "metadata channels: expected RGB, got 'BGR'"),
        ({"range": "[0,1]"}, "metadata range: expected [-1,1], got '[0,1]'"),
        ({"images": "many"}, "metadata images, side: expected pixels"),
        ({"side": 99}, "metadata: images 24 and side 99 do not fit a network of 24 px"),
    ):
        export.annotate(copied, {**metadata, **changed})
        status, _, err = called("verify", copied, "--data", photographs)
        assert status == 2
        assert said in err
    status, _, err = called("export", exported, "--format", "onnx")
    assert status == 2
    assert "is exported already" in err
    status, _, err = called("verify", exported)
    assert (status, "needs --data" in err) == (2, True)


def test_compare_says_which_data_and_how_many_false_matches_a_threshold_stands_for(exported, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (2, 30, 30, 3), dtype=np.uint8)
    paths = [str(tmp_path / f"{k}.png") for k in range(2)]
    for path, array in zip(paths, noise, strict=True):
        Image.fromarray(array).save(path)
    metadata = recogniser.load(exported).metadata
    assert main(["compare", str(exported), *paths, "--side", "6", "--cropped"]) == 0
    said = capsys.readouterr().out
    assert f"a share of {metadata['false_match_rate']} of the impostor pairs of people/validation" in said
    assert "The model was trained on people, faces framed by centre." in said
    assert "No verdict" not in said


def test_the_false_match_rate_is_that_of_the_validation_pairs(exported, trained, photographs):
    faces = study_spec.splits(SMOKE, photographs).validation
    pairs, file = faces.pairs, recogniser.load(exported)
    x = embed(file, faces.images, side=6, mirror=False)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = (unit[pairs.left] * unit[pairs.right]).sum(1)
    rate = (scores[~pairs.same] > float(file.metadata["threshold"])).mean()
    assert float(file.metadata["false_match_rate"]) == pytest.approx(rate, abs=1e-4)
