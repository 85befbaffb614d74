"""A face brought to where ArcFace's training sets have it, by five landmarks, and the face that a photograph is of.

Landmarks are (5,2), x and y in pixels from the upper left pixel's centre: the eye on the left of the picture, the other
eye, the nose, the corners of the mouth from left to right.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

# Of ArcFace's aligned 112 px sets (arXiv 1801.07698).
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
SIZE = 112
Detector = Callable[[np.ndarray], np.ndarray]


class NoFace(Exception):
    """A photograph in which the face was not found: not broken, but a row that every protocol counts as a miss."""


def template(size: int) -> np.ndarray:
    """Return the (5,2) landmarks of an aligned face of size px."""
    return (TEMPLATE + 0.5) * size / SIZE - 0.5


def similarity(points: np.ndarray, size: int) -> np.ndarray:
    """Compute the map from a pixel of the aligned face to one of the photograph.

    The inverse of the similarity that brings the landmarks closest to the template by least squares (Umeyama 1991). In
    the plane, with x + iy as one number, that is a linear regression.

    Args:
        points: (5,2) landmarks.
        size: Pixels a side of the aligned face.

    Returns:
        (2,3).

    Raises:
        NoFace: Points that fix none.
    """
    points = np.asarray(points, np.float64)
    seen, wanted = (x @ (1, 1j) for x in (np.where(np.isfinite(points).all(), points, 0), template(size)))
    centred = seen - seen.mean()
    spread = np.square(np.abs(centred)).sum()
    turn = np.vdot(centred, wanted) / spread if spread > 0 else 0j
    if not 1e-4 < abs(turn) < 1e4:
        raise NoFace("these landmarks fix no similarity: expected five points that are not all the same")
    back, shift = 1 / turn, seen.mean() - wanted.mean() / turn
    return np.array([[back.real, -back.imag, shift.real], [back.imag, back.real, shift.imag]])


def outside(points: np.ndarray, width: int, height: int) -> float:
    """Return the share, in [0,1], of an aligned face that lies outside its photograph of width x height pixels."""
    matrix = similarity(points, SIZE)
    places = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1) @ matrix[:, :2].T + matrix[:, 2]
    return float(((places < -0.5) | (places >= (width - 0.5, height - 0.5))).any(2).mean())


def warp(image: Image.Image, points: np.ndarray, size: int, edge: bool = True) -> np.ndarray:
    """Cut an aligned face out of a photograph.

    Bilinear; a face that is more than twice as large is first averaged over blocks of whole pixels.

    Args:
        image: RGB.
        points: (5,2) landmarks in its pixels.
        size: Pixels a side.
        edge: Whether the photograph's edge goes on where it ends; else black is there.

    Returns:
        (size,size,3) uint8.

    Raises:
        NoFace: Points that fix no similarity, or of a face of which one pixel would be larger than the photograph.
    """
    matrix = similarity(points, size)
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    if scale > min(image.size):
        raise NoFace(f"these landmarks are of a face far larger than the {image.width} x {image.height} px around it")
    block = max(1, math.floor(scale))
    turn, shift = matrix[:, :2] / block, (matrix[:, 2] - (block - 1) / 2) / block
    shift = shift + 0.5 - turn @ (0.5, 0.5)  # Pillow counts from the upper left pixel's corner
    around = image.reduce(block) if block > 1 else image
    if edge:  # in black, people who are cut off alike would look alike
        corners = np.array([(0, 0), (size, 0), (0, size), (size, size)]) @ turn.T + shift
        low, high = np.floor(corners.min(0)).astype(int) - 1, np.ceil(corners.max(0)).astype(int) + 1
        x, y = (np.arange(low[k], high[k]).clip(0, around.size[k] - 1) for k in (0, 1))
        around, shift = Image.fromarray(np.asarray(around)[y[:, None], x]), shift - low
    data = (*turn[0], shift[0], *turn[1], shift[1])
    return np.asarray(around.transform((size, size), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR))


def extent(faces: np.ndarray) -> np.ndarray:
    """Return the (n,) pixels a side of the aligned squares around landmarks (n,5,2) so far apart."""
    return SIZE * np.sqrt(faces.var(1).sum(1) / TEMPLATE.var(0).sum())


def central(faces: np.ndarray, height: int, width: int) -> np.ndarray:
    """Choose the largest central face: the greatest area less twice the squared distance from the middle.

    insightface's rule; the area is that of the aligned square.

    Args:
        faces: (n,5,2) landmarks.
        height, width: Of the photograph, in pixels.

    Returns:
        (5,2).

    Raises:
        NoFace: n is 0.
        ValueError: Another shape.
    """
    found = np.asarray(faces, dtype=np.float64)
    if found.size == 0:
        raise NoFace("the detector found no face")
    if found.ndim != 3 or found.shape[1:] != (5, 2):
        raise ValueError(f"the detector: expected landmarks (n,5,2), got {found.shape}")
    away = np.square(found.mean(1) - ((width - 1) / 2, (height - 1) / 2)).sum(1)
    return found[np.argmax(extent(found) ** 2 - 2 * away)]
