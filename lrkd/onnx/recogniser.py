"""An exported file as a network again, and how well the two agree."""

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lrkd.data.alignment import SIZE, Detector, NoFace, central, warp
from lrkd.data.images import MAX_FILE, upright
from lrkd.data.tables import Faces
from lrkd.errors import DataError, first_line
from lrkd.evaluation import embedding, verification
from lrkd.models import onnx_session

INPUT, OUTPUT = "images", "embedding"
LIMIT = 2**29  # bytes, above which a file is not read; IResNet-200 has half of that


class Recogniser(nn.Module):
    """An exported file as a network: (N,3,size,size) float32 -> (N,embedding), a numpy array or a CPU tensor.

    A module without parameters, so that `lrkd.evaluation.embedding.embed` and what builds on it take it. Made by
    `load`.

    Attributes:
        size: Of the images, in pixels.
        embedding: Numbers of an embedding.
        metadata: The texts of the file.
        path: The file.
        bytes: Its length.

    Args:
        content: The file.
        path: Its name, for messages.
        threads: That one call computes with; default: torch's number.

    Raises:
        DataError: It is not such a file.
    """

    def __init__(self, content: bytes, path: Path, threads: int | None = None) -> None:
        super().__init__()
        session = onnx_session.open(content, path, threads)
        takes, gives = session.get_inputs(), session.get_outputs()
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        fit = len(takes) == len(gives) == 1 and takes[0].name == INPUT and gives[0].name == OUTPUT
        fit = fit and takes[0].type == gives[0].type == "tensor(float)"
        fit = fit and len(takes[0].shape) == 4 and len(gives[0].shape) == 2
        if not fit or takes[0].shape[1:] != [3, takes[0].shape[3], takes[0].shape[3]]:
            said = "; ".join(f"{end.name} {end.type} {end.shape}" for end in (*takes, *gives))
            raise DataError(f"{path}: expected {INPUT} float (N,3,S,S) and {OUTPUT} float (N,D), got {said}")
        fixed = [end.name for end in (*takes, *gives) if isinstance(end.shape[0], int)]
        sizes = takes[0].shape[3], gives[0].shape[1]
        if fixed or not all(isinstance(value, int) and value > 0 for value in sizes):
            raise DataError(f"{path}: expected images of one fixed size in batches of any, got {takes[0].shape}")
        self.size, self.embedding = sizes
        self.path, self.bytes, self._session = path, len(content), session

    def forward(self, images: Any) -> Any:
        """Embed images, (N,3,S,S) float32 in [-1,1] -> (N,D) float32; DataError for anything else."""
        x = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
        check_images(x, self.size, INPUT)
        try:
            (found,) = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(x)})
        except Exception as error:
            raise DataError(f"{self.path}: ONNX Runtime cannot run it ({first_line(error)})") from error
        if found.shape != (len(x), self.embedding):
            raise DataError(f"{self.path}: expected ({len(x)},{self.embedding}) for {len(x)} images, got {found.shape}")
        return torch.from_numpy(found) if isinstance(images, Tensor) else found


def load(path: str | os.PathLike[str], *, threads: int | None = None) -> Recogniser:
    """Open an exported file as a network, computed by ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: That one call computes with; default: torch's number.

    Raises:
        ConfigError: onnxruntime is missing.
        DataError: The file cannot be read, is not an ONNX file, takes its weights from other files, or has another
            input or output than `lrkd.onnx.export.export` gives.
    """
    return Recogniser(onnx_session.read(path, LIMIT), Path(path), threads)


class Agreement(NamedTuple):
    """How alike a network and its exported file see the same images.

    Attributes:
        cosine: (N,), between the embeddings of both.
        network, file: The accuracy of each by the 10 folds.
        threshold: On the cosine of two of the file's embeddings, nothing subtracted, the one with the highest accuracy
            on these pairs.
        false_match: The share of impostor pairs above it.
        false_non_match: The share of genuine pairs that are not, or of which a face was not found.
    """

    cosine: np.ndarray
    network: float
    file: float
    threshold: float
    false_match: float
    false_non_match: float


def agreement(
    network: nn.Module,
    exported: Recogniser,
    faces: Faces,
    *,
    side: int | None = None,
    preset: str = "area-bicubic",
    mirror: bool | Literal["first"] = True,
) -> Agreement:
    """Compare a network with its exported file, both on the CPU, on images with pairs.

    Cosines and threshold are of the images alone, accuracies with their mirror images, as everywhere in lrkd.

    Args:
        network: On the CPU.
        exported: Its file.
        faces: Images with pairs.
        side, preset, mirror: As in `lrkd.evaluation.embedding.embed`.

    Raises:
        DataError: The faces have no pairs.
    """
    if faces.pairs is None:
        raise DataError(f"{faces.name}: expected verification pairs, got none")
    pairs = faces.pairs
    a, b = (embedding.embed(one, faces.images, side=side, preset=preset, mirror=mirror) for one in (network, exported))
    gone = pairs.touch(faces.missing)
    right = [
        verification.kfold_verification(x[pairs.left], x[pairs.right], pairs.same, pairs.fold, missing=gone).mean
        for x in (a, b)
    ]
    alone = b[:, : exported.embedding]
    scores = verification.cosine_scores(alone[pairs.left], alone[pairs.right])
    cut, _ = verification.best_threshold(scores[~gone], pairs.same[~gone])
    above = (scores > cut) & ~gone
    wrong = float(above[~pairs.same].mean()), float(1 - above[pairs.same].mean())
    return Agreement(verification.cosine_scores(a[:, : exported.embedding], alone), right[0], right[1], cut, *wrong)


def inputs(network: nn.Module, images: Any, *, side: int | None = None, preset: str = "area-bicubic") -> np.ndarray:
    """Return what `embed` shows the network of uint8 images, to calibrate `export`: (N,H,W,3) -> (N,3,S,S) float32."""
    size = network.size
    assert isinstance(size, int)
    look = nn.Flatten()
    look.size = size
    seen = embedding.embed(look, images, side=side, preset=preset, mirror=False)
    return seen.reshape(len(images), 3, size, size)


def photograph(path: str | os.PathLike[str], size: int, detector: Detector | None = None) -> np.ndarray:
    """Read an image file as (size,size,3) uint8 RGB: upright by its EXIF, the square in its middle, resampled.

    It is made smaller by averaging areas and larger by bicubic interpolation. With a detector it is the largest central
    face that is found, aligned; without one crop the face before.

    Raises:
        DataError: The file is not an image of `lrkd.data.images.NAMES` with 8 bits a channel, or too large; or the
            detector finds no face.
    """
    file = Path(path)
    if not file.is_file():
        found = "a folder" if file.is_dir() else "no such file"
        raise DataError(f"{file}: expected a photograph of a face, got {found}")
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE + 1)
        with upright(data) as whole:
            if detector is not None:
                points = central(detector(np.asarray(whole)), whole.height, whole.width)
                whole = Image.fromarray(warp(whole, points, max(size, SIZE)))
            side = min(whole.size)
            left, top = ((length - side) / 2 for length in whole.size)
            kernel = Image.Resampling.BOX if side >= size else Image.Resampling.BICUBIC
            return np.array(whole.resize((size, size), kernel, (left, top, left + side, top + side)))
    except NoFace as error:
        raise DataError(f"{file}: no face was found in it ({error})") from error
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise DataError(f"{file}: expected an image, got {first_line(error)}") from error


def check_images(images: Any, size: int, name: str) -> None:
    """Raise DataError for what is not (N,3,size,size) float32 with values in [-1,1]."""
    if not isinstance(images, np.ndarray) or images.dtype != np.float32 or images.shape[1:] != (3, size, size):
        said = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{name}: expected float32 (N,3,{size},{size}), got {said}")
    if not len(images) or not np.isfinite(images).all() or np.abs(images).max() > 1 + 1e-3:
        raise DataError(f"{name}: expected at least one image with finite values in [-1,1], got others or none")
