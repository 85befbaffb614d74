"""Show what a reader moves in a built page without a library or a kernel: pictures to choose, vectors to drag."""

import base64
import html
import io
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from kit import display
from numpy.typing import ArrayLike
from PIL import Image

from lrkd.errors import DataError


class Chooser:
    """What `chooser` and `plane` make; a page shows it as the last line of a cell."""

    def __init__(self, text: str, alt: str) -> None:
        self.text, self.alt = text, alt

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Chooser: {self.alt}"


def chooser(
    pictures: Mapping[tuple[str, ...], ArrayLike],
    names: Sequence[str],
    alt: Callable[[tuple[str, ...]], str] | str,
    caption: str = "",
    *,
    width: int = 384,
    quality: int = 80,
    sliders: Collection[str] = (),
    name: str = "",
    lines: bool = False,
) -> Chooser:
    """Show one picture at a time, chosen by a labelled list for each part of its key, with no kernel and by keys too.

    Where scripts are off the first picture stays, and no list is shown.

    Args:
        pictures: {key: (H,W,3) uint8 or float in [0,1]}, a key for every combination of the lists' entries, which are
            in the order of their first use; arrays that are one object are stored once.
        names: The lists' labels.
        alt: Text for readers who cannot see the picture, or a function of the key that returns it.
        caption: Shown below.
        width: Of the picture in CSS pixels.
        quality: Of the lossy WebP.
        sliders: Those of `names` that are a slider instead of a list.
        name: As that of `display.show`.
        lines: Whether the pictures are of lines and text, which turn light in the dark, and not of faces.

    Raises:
        DataError: A combination is missing, a key has another length, or a picture another shape than the first.
    """
    if not pictures:
        raise DataError("pictures: there are none to choose among")
    for key in pictures:
        if len(key) != len(names) or any("|" in part for part in key):
            raise DataError(f"pictures: key {key} is not one text a list ({', '.join(names)}), without |")
    choices = [list(dict.fromkeys(key[place] for key in pictures)) for place in range(len(names))]
    for key in itertools.product(*choices):
        if key not in pictures:
            raise DataError(f"pictures: has no {key}, but every combination of the lists can be chosen")
    shape = np.shape(next(iter(pictures.values())))
    uris: dict[int, tuple[int, str]] = {}
    alts: dict[str, int] = {}
    which = {}
    for key, picture in pictures.items():
        if id(picture) not in uris:
            x = np.asarray(picture)
            if x.shape != shape or x.ndim != 3 or x.shape[2] != 3:
                raise DataError(f"pictures: {key} has shape {x.shape}; expected (H,W,3) as the first, {shape}")
            uris[id(picture)] = len(uris), _webp(x, quality)
        said = " ".join((alt if isinstance(alt, str) else alt(key)).split())
        which["|".join(key)] = uris[id(picture)][0], alts.setdefault(said, len(alts))
    first_uri, first_alt = next(iter(which.values()))
    texts = list(alts)
    data = {
        "controls": [
            {"name": label, "options": options, "range": label in sliders}
            for label, options in zip(names, choices, strict=True)
        ],
        "uris": [uri for _, uri in uris.values()],
        "alts": texts,
        "which": which,
    }
    kind = ' class="dark-light plot"' if lines else ""
    before = (
        '<div class="controls" role="group" aria-label="Choose the picture" hidden></div>'
        f'<img{kind} src="{data["uris"][first_uri]}" '
        f'alt="{html.escape(texts[first_alt])}" '
        f'style="width:100%;max-width:{width}px;height:auto;image-rendering:auto">'
    )
    return Chooser(display.moving("moving.js", data, before, caption, name), texts[0])


def picture(figure: Any) -> np.ndarray:
    """Draw a matplotlib figure as (H,W,3) uint8, for `chooser`; the figure is closed."""
    import matplotlib.pyplot as plt  # only a page needs it

    figure.set_dpi(160)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return pixels


def plane(student: ArrayLike, teacher: ArrayLike, alt: str, caption: str = "") -> Chooser:
    """Show two vectors of the plane that a reader drags or moves by arrow keys, with the pull of three distances.

    The cosine, lp(2) and lp(1) are computed anew at each move, with the length of their pull on the student (minus the
    gradient) and its share along the student, which only changes a length. Where scripts are off the two vectors stay,
    without pulls.

    Args:
        student: (2,) where it begins, in [-2, 3.5] by [0.15, 3.6].
        teacher: (2,), likewise.
        alt: What a reader who cannot see it has to know.
        caption: Shown below.
    """
    places = {name: [float(x) for x in np.asarray(v)] for name, v in (("t", teacher), ("s", student))}
    colours = {"cosine": "#0072B2", "squared L2": "#D55E00", "L1": "#007A59"}
    arms = "".join(
        f'<line stroke="black" stroke-width="2.5" x2="{100 * x:.1f}" y2="{-100 * y:.1f}"/>'
        f'<g role="slider" tabindex="0" data-name="{name}" aria-label="{spoken} {name}" aria-valuemin="-180" '
        f'aria-valuemax="180" aria-valuenow="0" transform="translate({100 * x:.1f},{-100 * y:.1f})" '
        f'style="cursor:grab;touch-action:none"><circle r="16"/>'
        f'<text fill="white" text-anchor="middle" dy=".32em" font-size="20">{name}</text></g>'
        for (name, (x, y)), spoken in zip(places.items(), ("the teacher's", "the student's"), strict=True)
    )
    pulls = "".join(f'<line class="pull" stroke="{colour}" stroke-width="5"/>' for colour in colours.values())
    cells = 3 * "<td></td>"
    rows = "".join(
        f'<tr><th scope="row"><span style="color:{colour}" aria-hidden="true">■</span> {name}</th>{cells}</tr>'
        for name, colour in colours.items()
    )
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("distance", "value", "pull", "of it along s"))
    before = (
        '<p class="controls" hidden>Drag s or t, or choose one with Tab: the arrow keys left '
        "and right turn it, up and down change its length.</p>"
        f'<div class="drawing" role="group" aria-label="{html.escape(alt)}" style="max-width:560px">'
        f'<svg viewBox="-210 -385 590 400" style="width:100%;height:auto">'
        f'<path d="M-205 0H375M0 10V-380" stroke="#7a7a7a" fill="none"/>'
        f'<line class="gap" stroke="#7a7a7a" stroke-width="2" stroke-dasharray="8 6"/>{pulls}{arms}</svg></div>'
        f'<table class="dataframe" hidden><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    )
    return Chooser(display.moving("plane.js", places, before, caption), alt)


def overlay(images: ArrayLike, maps: ArrayLike, size: int = 144, strength: float = 0.6) -> np.ndarray:
    """Lay maps over pictures, bright where a map is high.

    Both are enlarged (bilinear). Each map runs from its own lowest to its own highest value, so colours compare places
    of one picture and not pictures; a map without spread is even. The picture turns grey, so that colour is the map's.

    Args:
        images: (N,H,W,3) uint8.
        maps: (N,h,w).
        size: Pixels a side of the result.
        strength: Of the map, 0 to 1.

    Returns:
        (N,size,size,3) uint8.
    """
    from matplotlib import colormaps  # only a page needs it

    found = []
    for image, values in zip(np.asarray(images), np.asarray(maps, dtype=np.float32), strict=True):
        grey = np.asarray(Image.fromarray(image).convert("L").resize((size, size), Image.Resampling.BILINEAR)) / 255
        full = np.asarray(Image.fromarray(values).resize((size, size), Image.Resampling.BILINEAR))
        spread = np.ptp(full)
        heat = colormaps["inferno"]((full - full.min()) / spread if spread > 0 else np.full_like(full, 0.5))[..., :3]
        found.append((1 - strength) * grey[..., None] + strength * heat)
    return (255 * np.stack(found)).round().astype(np.uint8)


def _webp(x: np.ndarray, quality: int) -> str:
    pixels = x if x.dtype == np.uint8 else (x.clip(0, 1) * 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
