"""Templates: several images of a person as one embedding, by IJB's protocol."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse

from lrkd.errors import DataError, first_line
from lrkd.evaluation.search import blocks, rows, unit

MAX_LIST = 64 * 2**20  # bytes; IJB-C's list has 469,375 rows and about 15 MB


class Templates(NamedTuple):
    """T templates by rising number: their numbers (T,), their subjects (T,), and unit features (T,D) float64."""

    ids: np.ndarray
    subjects: np.ndarray
    features: np.ndarray


def templates(
    features: ArrayLike, template: ArrayLike, subject: ArrayLike, media: ArrayLike | None = None
) -> Templates:
    """Pool the images of each template, as IJB-B and -C do: `(N,D), (N,), (N,) -> Templates`.

    The mean of a medium's images (the frames of a video), the sum of a template's media, then unit length. Features go
    in as they are: a longer one weighs more.

    Args:
        features: (N,D).
        template, subject, media: (N,), of each image. Without `media` every image is a medium of its own.

    Raises:
        DataError: A template has two subjects, or features that add up to zero.
    """
    array = rows(features, "features")
    which, who = np.asarray(template), np.asarray(subject)
    medium = np.arange(len(array)) if media is None else np.asarray(media)
    for name, values in (("template", which), ("subject", who), ("media", medium)):
        if values.shape != (len(array),):
            raise DataError(f"{name}: expected ({len(array)},), one an image, got {values.shape}")
    ids, first, index = np.unique(which, return_index=True, return_inverse=True)
    if (who[first][index] != who).any():
        bad = int(np.argmax(who[first][index] != who))
        raise DataError(
            f"subject: expected one a template, got {who[first][index][bad]} and {who[bad]} for template {which[bad]}"
        )
    groups = pd.Series(np.ones(len(array))).groupby([index, medium])
    weight = 1 / groups.transform("sum").to_numpy()
    pool = sparse.csr_array((weight, (index, np.arange(len(array)))), shape=(len(ids), len(array)))
    pooled = np.empty((len(ids), array.shape[1]))
    for columns in blocks(array.shape[1], 32):
        pooled[:, columns] = pool @ array[:, columns].astype(np.float64)
    if not (pooled != 0).any(1).all():
        bad = ids[np.argmin((pooled != 0).any(1))]
        raise DataError(f"features: expected a sum that has a direction, got zero for template {bad}")
    return Templates(ids, who[first], unit(pooled))


def read_templates(path: str | os.PathLike[str], sources: Sequence[str]) -> pd.DataFrame:
    """Read an IJB-style list of templates from CSV: -> `index, template, subject, media`, a row an image of a template.

    Args:
        path: A file with the columns `source`, `template`, `subject` and maybe `media` (else each image is its own).
            An image may be in several templates.
        sources: The names of the N images whose features are at hand, in their order, as a prepared set's manifest has
            them; `index` is the row of the features.

    Raises:
        DataError: The file is no such table, names an unknown source, or has an image twice in a template.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_LIST:
            raise DataError(f"{file}: expected a list of at most {MAX_LIST} bytes, got {file.stat().st_size}")
        table = pd.read_csv(file, dtype=str, keep_default_na=False, compression=None)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # pandas' and the decoder's errors are ValueErrors
        raise DataError(f"{file}: cannot be read as CSV: {first_line(error)}") from error
    if missing := [name for name in ("source", "template", "subject") if name not in table]:
        raise DataError(
            f"{file}: expected the columns source, template, subject and maybe media, got no {', '.join(missing)}"
        )
    if not isinstance(table.index, pd.RangeIndex):  # what pandas makes of fields without a column
        raise DataError(f"{file}: expected as many fields in a row as in the header, got more")
    if table.empty:
        raise DataError(f"{file}: expected a row for each image of a template, got none")
    found = pd.Series(np.arange(len(sources)), index=list(sources))
    if not found.index.is_unique:
        raise DataError(f"sources: expected each name once, got {found.index[found.index.duplicated()][0]!r} twice")
    table["index"] = found.reindex(table["source"]).to_numpy()
    for what, bad in {
        "is not an image of this set": table["index"].isna(),
        "is twice in its template": table.duplicated(["source", "template"]),
        "has an empty template or subject": (table[["template", "subject"]].fillna("") == "").any(axis=1),
    }.items():
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(f"{file} row {row + 1}: source {table['source'][row]!r} {what}")
    if "media" not in table:
        table["media"] = np.arange(len(table)).astype(str)
    return table.astype({"index": np.int64})[["index", "template", "subject", "media"]]


def template_scores(
    pool: Templates, left: ArrayLike, right: ArrayLike, block: int = 16384
) -> tuple[np.ndarray, np.ndarray]:
    """Score pairs of templates: `(n,), (n,) -> (n,) cosines, (n,) same subject`, for `lrkd.evaluation.separation.roc`.

    Args:
        pool: The templates.
        left, right: Their numbers, a pair each.
        block: Pairs that are scored together.

    Raises:
        DataError: A number is that of no template, or the shapes differ.
    """
    ends = []
    for name, numbers in (("left", np.asarray(left)), ("right", np.asarray(right))):
        place = np.minimum(np.searchsorted(pool.ids, numbers), len(pool.ids) - 1)
        if (pool.ids[place] != numbers).any():
            bad = numbers[np.argmax(pool.ids[place] != numbers)]
            raise DataError(f"{name}: expected numbers of templates, got {bad}, which is none")
        ends.append(place)
    if ends[0].shape != ends[1].shape or ends[0].ndim != 1:
        raise DataError(f"left, right: expected (n,) each, one a pair, got {ends[0].shape} and {ends[1].shape}")
    scores = np.empty(len(ends[0]))
    for part in blocks(len(scores), block):
        np.einsum("nd,nd->n", pool.features[ends[0][part]], pool.features[ends[1][part]], out=scores[part])
    return scores, pool.subjects[ends[0]] == pool.subjects[ends[1]]
