"""Image files of people, which are hostile until decoded: a few formats, limits, and EXIF's orientation."""

import io
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_FILE = 64 * 2**20  # bytes; a larger file is no photograph of a face
MAX_PIXELS = 2**26  # turned or with an alpha channel, such an image takes .6 GB while it is decoded
MAX_SLOW = 2**20  # values of a PGM or PPM that Pillow reads one at a time, a million in two seconds
MAX_STRIPS = 2**16  # of a TIFF; Pillow makes an object of each that a file claims
COMPRESSIONS = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "jpeg")  # of a TIFF
MAX_SCANS = 200  # a progressive JPEG has about ten; one with thousands keeps the decoder busy for minutes
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")  # no others: some of Pillow's readers start other programs
NAMES = "JPEG, PNG, BMP, WebP, PGM, PPM or TIFF"  # of FORMATS, for messages; Pillow's PPM is PGM as well
_ORIENTATION = 0x0112
_ORDERS = {b"II": "<", b"MM": ">"}
_BYTES = (1, 2, 7)  # types of a TIFF's entries that are text or opaque, and may be long
_LARGE = threading.Lock()  # images of more than 16 million pixels are held one at a time: memory

_BLOCK = 2**26  # Pillow's own 16 MB come from each thread's heap, which keeps them when they are freed; these go back
_SETTING = threading.Lock()
_inside: list[int] = []  # the process's own block size, once for each image that is open


@contextmanager
def _large_blocks() -> Iterator[None]:
    """Pillow's memory in blocks of `_BLOCK` bytes, a setting of the whole process, until the last image is closed."""
    with _SETTING:
        _inside.append(_inside[0] if _inside else Image.core.get_block_size())
        Image.core.set_block_size(_BLOCK)
    try:
        yield
    finally:
        with _SETTING:
            own = _inside.pop()
            if not _inside:
                Image.core.set_block_size(own)


@contextmanager
def upright(data: bytes) -> Iterator[Image.Image]:
    """Bytes of an image file -> RGB, turned upright by its EXIF, for as long as the block lasts.

    Raises whatever Pillow raises on a broken image or a decompression bomb, ValueError on more than 8 bits a channel.
    """
    if len(data) > MAX_FILE:
        raise ValueError(f"{len(data)} bytes: at most {MAX_FILE} are read")
    if data[:2] == b"\xff\xd8" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"a JPEG of {scans} scans: at most {MAX_SCANS} are decoded")
    if data[:2] in _ORDERS:
        _check_directory(data)
    try:
        found = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"{len(data)} bytes that are no image in {NAMES}") from None
    with found as opened:
        pixels = opened.width * opened.height
        most = MAX_PIXELS // 2 if opened.format == "WEBP" else MAX_PIXELS  # its decoder keeps four copies
        if pixels > most:
            raise Image.DecompressionBombError(f"{pixels} pixels: at most {most} are decoded")
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"mode {opened.mode}: 8 bits a channel are needed")
        if opened.format == "PPM" and opened.tile[0][0] != "raw" and pixels * len(opened.getbands()) > MAX_SLOW:
            raise ValueError(f"{pixels} pixels as text or of unusual depth: at most {MAX_SLOW} values are decoded")
        if opened.format == "TIFF" and opened.info.get("compression") not in COMPRESSIONS:
            raise ValueError(
                f"a TIFF compressed by {opened.info.get('compression')}: {', '.join(COMPRESSIONS)} are read"
            )
        with _large_blocks(), _LARGE if pixels > 2**24 else nullcontext():
            opened.load()
            if opened.getexif().get(_ORIENTATION, 1) != 1:
                ImageOps.exif_transpose(opened, in_place=True)
            image: Image.Image = opened
            if "transparency" in opened.info:
                image = image.convert("RGBA")
            if image.mode != "RGB":
                image = image.convert("RGB")
            try:
                yield image
            finally:  # else the pixels may live on until Python next looks for cycles
                opened.close()
                image.close()


def _check_directory(data: bytes) -> None:
    """Raise ValueError for a TIFF whose first directory claims more numbers an entry than a photograph needs."""
    order = _ORDERS[data[:2]]
    try:
        version, place = struct.unpack_from(f"{order}HI", data, 2)
        if version != 42:
            raise ValueError(f"a TIFF of version {version}: 42 is read")
        entries = struct.unpack_from(f"{order}H", data, place)[0]
        told = [struct.unpack_from(f"{order}HHI", data, place + 2 + 12 * number) for number in range(entries)]
    except struct.error as error:
        raise ValueError(f"a TIFF that is cut short: {error}") from error
    if (most := max((count for _, kind, count in told if kind not in _BYTES), default=0)) > MAX_STRIPS:
        raise ValueError(f"a TIFF of {most} strips: at most {MAX_STRIPS} are read")


def dimensions(data: bytes) -> tuple[int, int] | None:
    """(width, height) that the bytes of an image file claim, undecoded; None where they are no image."""
    try:
        if data[:2] in _ORDERS:
            _check_directory(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            return opened.size
    except Exception:  # Pillow raises nearly anything on a damaged file
        return None
