"""Pictures to choose among in a built page: lists, an image and a few lines of script, no kernel and no library."""

import base64
import html
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from lrkd.errors import DataError

_count = itertools.count(1)  # a page may have several: each has ids of its own

_SCRIPT = """
(function () {
  var all = DATA, box = document.getElementById("ID"), img = document.getElementById("ID-img");
  var lists = Array.prototype.slice.call(box.querySelectorAll("select"));
  function show() {
    var key = lists.map(function (list) { return list.value; }), found = all.which[key.join("|")];
    if (found === undefined) return;
    img.src = all.uris[found[0]];
    img.alt = all.alts[found[1]];
  }
  lists.forEach(function (list) { list.addEventListener("change", show); });
  box.hidden = false;
  show();
})();
"""


class Chooser:
    """What `chooser` makes; a page shows it as the last line of a cell."""

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
) -> Chooser:
    """One picture at a time, chosen by a labelled list for each part of its key: works with no kernel, by keyboard.

    pictures: {key: (H,W,3) uint8 or float in [0,1]}, a key for every combination of the lists' entries, which stand in
    the order of their first use; arrays that are one object are stored once. names: the lists' labels. alt: text for
    who cannot see the picture, or a function of the key that says it. width: of the picture in CSS pixels. quality: of
    the lossy WebP. Where scripts are off the first picture stays, and no list is shown. Raises DataError for a
    combination that is missing, a key of another length, and a picture of another shape than the first.
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
                raise DataError(f"pictures: {key} has shape {x.shape}; (H,W,3), all {shape}, is right")
            uris[id(picture)] = len(uris), _webp(x, quality)
        said = " ".join((alt if isinstance(alt, str) else alt(key)).split())
        which["|".join(key)] = uris[id(picture)][0], alts.setdefault(said, len(alts))
    text = _page(names, choices, which, [uri for _, uri in uris.values()], list(alts), caption, width)
    return Chooser(text, next(iter(alts)))


def overlay(images: ArrayLike, maps: ArrayLike, size: int = 144, strength: float = 0.6) -> np.ndarray:
    """Maps laid over pictures: (N,H,W,3) uint8, (N,h,w) -> (N,size,size,3) uint8, bright where a map is high.

    Both are enlarged (bilinear). Each map runs from its own lowest to its own highest value, so colours compare places
    of one picture and not pictures; a map without spread is even. The picture turns grey, so that colour is the map's.
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


def _page(
    names: Sequence[str],
    choices: list[list[str]],
    which: Mapping[str, tuple[int, int]],
    uris: list[str],
    alts: list[str],
    caption: str,
    width: int,
) -> str:
    me = f"chooser-{next(_count)}"
    lists = "".join(
        f'<label style="display:inline-block;margin:0 1.2em .4em 0">{html.escape(name)} <select>'
        + "".join(f'<option value="{html.escape(one)}">{html.escape(one)}</option>' for one in options)
        + "</select></label>"
        for name, options in zip(names, choices, strict=True)
    )
    first_uri, first_alt = next(iter(which.values()))
    data = json.dumps({"uris": uris, "alts": alts, "which": which}).replace("<", "\\u003c")
    script = _SCRIPT.replace("ID", me).replace("DATA", data)
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure style="margin:0"><div id="{me}" role="group" aria-label="Choose the picture" hidden>{lists}</div>'
        f'<img id="{me}-img" src="{uris[first_uri]}" alt="{html.escape(alts[first_alt])}" '
        f'style="width:100%;max-width:{width}px;height:auto;image-rendering:auto">{below}</figure>'
        f"<script>{script}</script>"
    )
