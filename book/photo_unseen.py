"""The student for photographs on people and cameras that nobody trained on or chose with.

`python -m book.photo_unseen DIR ... [--model TFLITE]`, each DIR a folder of faces that `python -m data_prep.folder
--align` wrote at 112 px, with pairs. At the student's side, photo-unseen.csv has a row a set and a network: the
student, the plain correlation of its pixels, and a published network of others. Verification takes each fold's
threshold from the others, or the one in the student's own file; of a search each person's first image is the gallery.
Mirror images are left out. Intervals are of 95 %, from a bootstrap over people; `ahead` is by how much the student has
more pairs right than this network, and `rank1_ahead` more probes, on the same ones.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from book.photo_sides import Embed, measured, outside, student
from book.student_photos import RESULTS, SIDE, pixels
from lrkd.data.prepared import Prepared, load_prepared
from lrkd.errors import DataError, LrkdError
from lrkd.evaluation.separation import Interval, bootstrap_identities
from lrkd.evaluation.verification import cosine_scores
from lrkd.files import Table
from lrkd.onnx import recogniser
from lrkd.study.experiment import commit

COMMAND = "python -m book.photo_unseen"
TABLE = Table(COMMAND, ("data", "digest", "network"))


class Outcome(NamedTuple):
    """Which pairs are right, and which probes are found at rank 1."""

    correct: np.ndarray
    hits: np.ndarray


def row(
    whole: Prepared, embed: Embed, threshold: float | None, student: Outcome | None = None
) -> tuple[dict[str, Any], Outcome]:
    """What a network makes of a set.

    threshold: of plain cosines, whose errors are given beside the folds' own. student: what is compared with it.
    """
    faces, pairs = whole.faces, next(iter(whole.protocols.values()), None)
    if pairs is None:
        raise DataError(
            f"{faces.name}: expected a folder with pairs, got one without: more people or images are needed"
        )
    gallery = np.unique(faces.labels, return_index=True)[1]
    features = embed(np.asarray(faces.images[:]), SIDE)
    probes = np.setdiff1d(np.arange(len(faces)), gallery)
    found, verified, hits = measured(features, whole, pairs, gallery, probes)
    known = {
        "data": faces.name,
        "digest": faces.digest,
        "people": faces.classes,
        "images": len(faces),
        "side": SIDE,
        **found,
    }
    if threshold is not None:
        passed = cosine_scores(features[pairs.left], features[pairs.right]) > threshold
        passed &= ~pairs.touch(faces.missing)  # a face that was not found matches nobody
        known |= {"threshold": threshold, "at_threshold": float((passed == pairs.same).mean())}
        known["false_matches"] = float(passed[~pairs.same].mean())
    if student is not None:
        left, right, who = faces.labels[pairs.left], faces.labels[pairs.right], faces.labels[probes]
        known |= ends("ahead", bootstrap_identities(student.correct, left, right, other=verified.correct))
        known |= ends("rank1_ahead", bootstrap_identities(student.hits, who, who, other=hits))
    return known, Outcome(verified.correct, hits)


def ends(name: str, interval: Interval) -> dict[str, float]:
    """Columns of an interval."""
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("data", nargs="+", type=Path, metavar="DIR", help="faces, aligned, at 112 px")
    parser.add_argument("--model", type=Path, metavar="TFLITE", help="MobileFaceNet.tflite (default: without it)")
    parser.add_argument("--student", type=Path, default=RESULTS / "photo-student.onnx", metavar="ONNX")
    parser.add_argument("--out", type=Path, default=RESULTS / "photo-unseen.csv", metavar="CSV")
    arguments = parser.parse_args()
    TABLE.check(arguments.out)
    name, embed = student(arguments.student)
    cut = float(recogniser.load(arguments.student).metadata["threshold"])
    networks: list[tuple[str, Embed, float | None]] = [(name, embed, cut), ("pixels", lambda x, _: pixels(x), None)]
    networks += [(*outside(arguments.model), None)] if arguments.model else []
    rows = []
    try:
        for whole in map(load_prepared, arguments.data):
            own = None  # the student's, who comes first
            for who, how, threshold in networks:
                found, outcome = row(whole, how, threshold, own)
                own = own or outcome
                rows.append({"network": who, **found})
    except LrkdError as error:
        parser.error(str(error))
    frame = pd.DataFrame(rows).round(4).assign(commit=commit())
    print(frame.to_string(index=False))
    TABLE.merge(arguments.out, frame)


if __name__ == "__main__":
    main()
