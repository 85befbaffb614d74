"""The student for photographs and a published network on LFW, by side and framing, and where the student fails.

`python -m book.photo_sides --aligned DIR --centre DIR --source LFW --model TFLITE` on LFW as `python -m data_prep.lfw`
wrote it with and without --align, at 112 px. Nobody whom the student was trained on is shown: of View 2 the pairs
without such people, as many genuine as impostor ones in each fold, and for rank 1 View 1's test people, of each of whom
the first image is searched. The network of others is that of `benchmarks.outside_teacher`; its people are not known.
Mirror images are left out.

photo-sides.csv has a row a network, framing and side; photo-failures.csv the student's errors at its own side, on
aligned faces, by how large the face is in the picture and by how far it is turned, from the five landmarks.
Intervals are of 95 %, from a bootstrap over people.
"""

import argparse
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from benchmarks import outside_teacher
from book.student_photos import RESULTS, SIDE, lost
from data_prep import lfw
from lrkd.data import alignment, detection
from lrkd.data.degradation import degrade
from lrkd.data.pairs import Pairs
from lrkd.data.prepared import Prepared, load_prepared, prepared
from lrkd.data.tables import Splits
from lrkd.errors import DataError
from lrkd.evaluation import embedding
from lrkd.evaluation.search import search
from lrkd.evaluation.separation import bootstrap_identities
from lrkd.evaluation.verification import Verification, kfold_verification
from lrkd.files import Table
from lrkd.onnx import recogniser
from lrkd.study.experiment import commit

SIDES = (8, 12, 16, 24, 32, 48)
THIRDS = 3
COMMAND = "python -m book.photo_sides"
TABLES = Table(COMMAND, ("network", "framing", "side")), Table(COMMAND, ("network", "by", "third"))
Embed = Callable[[np.ndarray, int], np.ndarray]


def student(path: Path) -> tuple[str, Embed]:
    """The name of an exported file, and its embeddings of uint8 images at a side, as `lrkd verify` shows them."""
    network = recogniser.load(path)
    return path.name, lambda images, side: embedding.embed(network, images, side=side, mirror=False)


def outside(path: Path) -> tuple[str, Embed]:
    """The name of the published network, and its embeddings of uint8 images at a side."""
    return path.name, lambda images, side: outside_teacher.embeddings(
        path, degraded(images, side), np.arange(len(images))
    )


def degraded(images: np.ndarray, side: int) -> np.ndarray:
    """(N,S,S,3) uint8 images with `side` pixels, enlarged again."""
    found = np.empty(images.shape, np.uint8)
    for k in range(0, len(images), 256):
        x = torch.from_numpy(images[k : k + 256]).permute(0, 3, 1, 2).float() / 255
        found[k : k + 256] = (degrade(x, side) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return found


def shown(whole: Prepared, trained: set[str]) -> tuple[Pairs, np.ndarray, np.ndarray]:
    """View 2's pairs without people whom a network was trained on, half of each fold genuine; gallery and probes."""
    faces = whole.faces
    seen = np.array([faces.names[label] in trained for label in faces.labels])
    rest = whole.protocols["view2"].keep(np.where(seen, -1, np.arange(len(faces))))
    pairs = None if rest is None else rest.balanced()
    test = np.flatnonzero(np.isin(faces.labels, whole.splits["test"]) & ~seen)
    gallery = test[np.unique(faces.labels[test], return_index=True)[1]]
    if pairs is None or not len(gallery) < len(test):
        raise DataError(f"{faces.name}: expected LFW whole, with people whom the student was not trained on")
    return pairs, gallery, np.setdiff1d(test, gallery)


def taught(whole: Prepared, splits: Splits) -> set[str]:
    """The names of all people whom a student may have been trained on, those with a single photograph too."""
    known = {whole.faces.names[label] for label in whole.splits["train"]}
    return known - {splits.validation.names[label] for label in np.unique(splits.validation.labels)}


def measured(
    features: np.ndarray, whole: Prepared, pairs: Pairs, gallery: np.ndarray, probes: np.ndarray
) -> tuple[dict[str, Any], Verification, np.ndarray]:
    """What says in a row how good a network is, its verification, and which probes are found at rank 1.

    features: (N,D), of the rows that are shown.
    """
    labels, gone = whole.faces.labels, lost(whole.faces)
    ends = features[pairs.left], features[pairs.right], pairs.same
    verified = kfold_verification(*ends, pairs.fold, missing=pairs.touch(gone))
    right = bootstrap_identities(verified.correct, labels[pairs.left], labels[pairs.right])
    there = gallery[~gone[gallery]]
    hits = (search(features[there], labels[there], features[probes], labels[probes]).rank == 1) & ~gone[probes]
    first = bootstrap_identities(hits, labels[probes], labels[probes])
    row = {"pairs": len(pairs), "accuracy": right.estimate, "low": right.low, "high": right.high}
    row |= {"missed": int(pairs.touch(gone).sum()), "gallery": len(there), "probes": len(probes)}
    return row | {"rank1": first.estimate, "rank1_low": first.low, "rank1_high": first.high}, verified, hits


def landmarks(source: Path, wanted: dict[str, int], count: int) -> np.ndarray:
    """(count,5,2): the landmarks, in the photographs' own pixels, of the images that are wanted, stem -> row."""
    find, found = detection.detector(), np.full((count, 5, 2), np.nan)
    images, _ = lfw.find(source)
    for photo in lfw.archived(images, True):
        if (row := wanted.get(Path(photo.source).stem)) is not None:
            with Image.open(io.BytesIO(photo.read())) as image:
                faces = find(np.asarray(image.convert("RGB")))
                if len(faces):
                    found[row] = alignment.central(faces, image.height, image.width)
    return found


def poses(points: np.ndarray) -> dict[str, np.ndarray]:
    """How faces are in their pictures, (N,5,2) landmarks -> (N,) each: size and turns.

    The size is that of the aligned square in pixels. A turn is how far the nose is from the middle of eyes and mouth,
    in shares of the distance between the eyes, along their line and across it; across, the median face is not turned.
    """
    z = points @ (1, 1j)
    nose = (z[:, 2] - (z[:, :2].mean(1) + z[:, 3:].mean(1)) / 2) / (z[:, 1] - z[:, 0])
    upright = nose.imag - np.nanmedian(nose.imag)
    return {"size": alignment.extent(points), "turned aside": np.abs(nose.real), "turned up or down": np.abs(upright)}


def failures(verified: Verification, pairs: Pairs, labels: np.ndarray, told: dict[str, np.ndarray]) -> Iterator[Any]:
    """A row a quantity and third of the pairs: errors among genuine and impostor pairs.

    A pair has the smaller of its two sizes and the larger of its two turns.
    """
    for by, value in told.items():
        ends = np.stack([value[pairs.left], value[pairs.right]])
        worse = ends.min(0) if by == "size" else ends.max(0)
        edges = np.nanquantile(worse, np.linspace(0, 1, THIRDS + 1))
        third = np.searchsorted(edges[1:-1], worse, side="right")
        for part in range(THIRDS):
            row = {"by": by, "third": part + 1, "from": edges[part], "to": edges[part + 1]}
            for kind, same in (("genuine", True), ("impostor", False)):
                some = np.flatnonzero((third == part) & (pairs.same == same) & np.isfinite(worse))
                who = labels[pairs.left[some]], labels[pairs.right[some]]
                rate = bootstrap_identities(~verified.correct[some], *who)
                row |= {kind: len(some), f"{kind}_errors": rate.estimate}
                row |= {f"{kind}_low": rate.low, f"{kind}_high": rate.high}
            yield row


def main() -> None:
    """Measure, print, and write both tables."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--aligned", required=True, metavar="DIR", help="LFW, aligned, at 112 px")
    parser.add_argument("--centre", required=True, metavar="DIR", help="LFW, cropped to the middle, at 112 px")
    parser.add_argument("--source", type=Path, required=True, metavar="LFW", help="what data_prep.lfw took")
    parser.add_argument(
        "--model", type=Path, metavar="TFLITE", help="MobileFaceNet.tflite (default: the student alone)"
    )
    parser.add_argument("--student", type=Path, default=RESULTS / "photo-student.onnx", metavar="ONNX")
    parser.add_argument("--out", type=Path, default=RESULTS / "photo-sides.csv", metavar="CSV")
    parser.add_argument("--failures", type=Path, default=RESULTS / "photo-failures.csv", metavar="CSV")
    arguments = parser.parse_args()
    outs = arguments.out, arguments.failures
    for table, out in zip(TABLES, outs, strict=True):
        table.check(out)
    networks = [student(arguments.student), *([outside(arguments.model)] if arguments.model else [])]
    sets = {"five points": load_prepared(arguments.aligned), "centre": load_prepared(arguments.centre)}
    trained = taught(sets["five points"], prepared(arguments.aligned))
    rows, own = [], None
    for framing, whole in sets.items():
        faces = whole.faces
        pairs, gallery, probes = shown(whole, trained)
        used = np.unique(np.concatenate([pairs.left, pairs.right, gallery, probes]))
        images = np.stack([faces.images[int(row)] for row in used])
        for name, embed in networks:
            for side in SIDES:
                found = embed(images, side)
                features = np.zeros((len(faces), found.shape[1]), np.float32)
                features[used] = found
                row, verified, _ = measured(features, whole, pairs, gallery, probes)
                rows.append({"network": name, "framing": framing, "side": side, **row})
                print(rows[-1], flush=True)
                if (name, framing, side) == (networks[0][0], "five points", SIDE):
                    own = verified, pairs, faces
    assert own is not None
    verified, pairs, faces = own
    assert faces.sources is not None
    wanted = {Path(faces.sources[row]).stem: int(row) for row in np.unique([pairs.left, pairs.right])}
    told = poses(landmarks(arguments.source, wanted, len(faces)))
    failed = [{"network": networks[0][0], **row} for row in failures(verified, pairs, faces.labels, told)]
    for table, out, found in zip(TABLES, outs, (rows, failed), strict=True):
        frame = pd.DataFrame(found).round(4).assign(commit=commit())
        print(frame.to_string(index=False))
        table.merge(out, frame)


if __name__ == "__main__":
    main()
