"""`python -m data_prep.qmul --source DIR --out DIR`: QMUL-SurvFace -> a prepared folder with pairs and roles."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from data_prep import align, commandline, files, matlab, writer
from data_prep.journal import Photo
from data_prep.tinyface import listed, photo, splits, training
from lrkd.errors import DataError

LICENCE = (
    "QMUL-SurvFace, Queen Mary University of London (Cheng, Zhu and Gong 2018): for research that is not commercial; "
    "do not pass the images on."
)
HELP = """\
Turn QMUL-SurvFace (faces from real surveillance, about 24 x 20 px) into a folder that lrkd reads.

  python -m data_prep.qmul --source downloads/QMUL-SurvFace --out data/survface-112

DIR is what the archive unpacks to, with
  training_set/ID/*.jpg                                                          -> role train, split train
  Face_Verification_Test_Set/verification_images/, positive_pairs_names.mat and
    negative_pairs_names.mat                                   -> role verification; protocol verification, in 10 folds
  Face_Identification_Test_Set/gallery/, gallery_img_ID_pairs.mat                -> role gallery
  Face_Identification_Test_Set/mated_probe/, mated_probe_img_ID_pairs.mat        -> role probe
  Face_Identification_Test_Set/unmated_probe/                      -> role unmated, a person each
Any of the three sets may be left out. The person is the number before the first _ of a file name in the test sets.
Images keep their shape: black fills the square.
"""
FOLDS = 10
LISTS = {
    "gallery": ("gallery", "gallery_img_ID_pairs.mat", "gallery_set", "gallery_ids"),
    "probe": ("mated_probe", "mated_probe_img_ID_pairs.mat", "mated_probe_set", "mated_probe_ids"),
}
_FILE = re.compile(r"(\d+)_.+")


def person(file: Path) -> str:
    """test-001234 for 1234_cam1_1.jpg."""
    match = _FILE.fullmatch(file.name)
    if match is None:
        raise DataError(f"{file}: expected PERSON_CAMERA_NUMBER.jpg, as in 1234_cam1_1.jpg")
    return f"test-{int(match[1]):06d}"


def identification(root: Path) -> list[Photo]:
    """Gallery, mated and unmated probes; none where the set is not there."""
    test = root / "Face_Identification_Test_Set"
    if not test.is_dir():
        return []
    photos, id_of, person_of = [], {}, {}
    for role, (folder, name, names_key, ids_key) in LISTS.items():
        beside = root / "Face_Identification_Evaluation" / name
        file = test / name if (test / name).is_file() or not beside.is_file() else beside
        for path, number in listed(test / folder, file, names_key, ids_key):
            who = person(path)
            if id_of.setdefault(who, number) != number or person_of.setdefault(number, who) != who:
                raise DataError(
                    f"{file}: {path.name} has id {number}, another image of the person has {id_of[who]}, or another "
                    "person has this id: expected one id a person"
                )
            photos.append(photo(root, path, who, role))
    unmated = files.pictures(test / "unmated_probe")
    return photos + [photo(root, path, f"unknown-{path.name}", "unmated") for path in unmated]


def verification(root: Path) -> tuple[list[Photo], list[tuple[str, str, int, int, str]]]:
    """Images and pairs (sources, same, fold, protocol); none where the set is not there."""
    test = root / "Face_Verification_Test_Set"
    if not test.is_dir():
        return [], []
    photos = [photo(root, path, person(path), "verification") for path in files.pictures(test / "verification_images")]
    known = {Path(p.source).name: p for p in photos}
    pairs = []
    for same, kind in ((1, "positive"), (0, "negative")):
        file = test / f"{kind}_pairs_names.mat"
        rows = matlab.names(file, f"{kind}_pairs_names", columns=2)
        for number, (a, b) in enumerate(rows):
            for name in (a, b):
                if name not in known:
                    raise DataError(f"{file}: {name} is not in {test / 'verification_images'}")
            if (known[a].name == known[b].name) != bool(same):
                raise DataError(f"{file}: {a} and {b} are {'not ' * same}of one person")
            fold = number * FOLDS // len(rows)
            pairs.append((known[a].source, known[b].source, same, fold, "verification"))
    return photos, pairs


def find(source: Path) -> tuple[list[Photo], list[tuple[str, str, int, int, str]]]:
    """The photographs of all three sets, and the pairs."""
    sets = ("training_set", "Face_Identification_Test_Set", "Face_Verification_Test_Set")
    root = next((d for d in (source, source / "QMUL-SurvFace") if any((d / name).is_dir() for name in sets)), None)
    if root is None:
        raise DataError(f"--source {source}: none of {', '.join(sets)} in it: expected what the archive unpacks to")
    if absent := [name for name in sets if not (root / name).is_dir()]:
        print(f"not in {root}, so left out: {', '.join(absent)}", file=sys.stderr)
    photos, pairs = verification(root)
    photos, trained = photos + identification(root), training(root / "training_set", root)
    if both := sorted({p.name[-6:] for p in trained} & {p.name[-6:] for p in photos if p.name.startswith("test-")}):
        raise DataError(f"{root}: person {int(both[0])} is in training_set and in a test set: expected one of them")
    return trained + photos, pairs


def prepare(
    source: Path,
    out: Path,
    *,
    size: int = 112,
    crop: float | None = None,
    landmarks: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write the prepared folder and return its meta; `options` go to `writer.Recipe`."""
    files.check_out(out, source)
    photos, wanted = find(source)

    def extras(kept: writer.Kept) -> writer.Extras:
        extra = writer.Extras.named(kept, wanted)
        extra.splits = splits(kept.names)
        return extra

    return writer.write(
        out,
        photos,
        len(photos),
        extras,
        writer.Recipe("survface", size, LICENCE, "data_prep.qmul", align.frame(crop, landmarks), **options),
    )


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    parser = commandline.parser("qmul", HELP)
    align.add_frame(parser)
    options = vars(parser.parse_args(argv))
    print(commandline.summary(options["out"], prepare(**options)))


if __name__ == "__main__":
    sys.exit(commandline.run(main))
