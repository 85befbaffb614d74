"""Who is this? Probes against a gallery: closed and open sets, distractors, several distances, templates.

Everywhere: a score is a cosine, higher means more alike; rates are fractions in [0,1]; G gallery and P probe features
have D numbers each. They are read in blocks and never copied whole: 160,000 distractors of 512 numbers fit in 2 GB.
`lrkd.verify` offers all of it too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse

from lrkd.errors import ConfigError, DataError

__all__ = [
    "OpenSet", "Search", "Templates", "cmc", "fuse", "identification", "open_set", "probe_ranks", "rank_k",
    "rank_table", "read_templates", "search", "template_scores", "templates",
]  # fmt: skip

RANKS = (1, 5, 10, 20)
OUTSIDE = ("distractor", "unmated")  # roles of people whom no probe, or no gallery, shows: of no split
MAX_LIST = 64 * 2**20  # bytes; IJB-C's list has 469,375 rows and about 15 MB
TIE = 1e-9
BLOCK = 2048


class Search(NamedTuple):
    """(P,) each: the place 1..G of the best mate (0 where the gallery has none), its cosine, the highest cosine."""

    rank: np.ndarray
    mate: np.ndarray
    top: np.ndarray


def search(
    gallery: ArrayLike, gallery_labels: ArrayLike, probe: ArrayLike, probe_labels: ArrayLike, block: int = BLOCK
) -> Search:
    """Compare every probe with the whole gallery: `(G,D), (G,), (P,D), (P,) -> Search`, in float64.

    rank: 1 + the gallery images of other identities whose cosine is at least that of the best mate: ties (to 1e-9)
    count against, so that a collapsed network ranks last, not first. mate is -inf for a probe without a mate.
    block: gallery images, and probes, of one matrix product.

    Raises DataError for shapes that do not fit each other and features that are not finite.
    """
    shelf, wanted = rows(gallery, "gallery"), rows(probe, "probe")
    shelf_labels, wanted_labels = np.asarray(gallery_labels), np.asarray(probe_labels)
    if shelf.shape[1] != wanted.shape[1]:
        raise DataError(f"probe: {wanted.shape[1]} dimensions, but the gallery has {shelf.shape[1]}")
    for name, labels, count in (("gallery", shelf_labels, len(shelf)), ("probe", wanted_labels, len(wanted))):
        if labels.shape != (count,):
            raise DataError(f"{name}_labels: shape {labels.shape} is not ({count},), one an image")
    if block < 1:
        raise ConfigError(f"block: {block} is not at least 1")
    known = np.flatnonzero(np.isin(shelf_labels, wanted_labels))  # the only ones that can be a mate
    found = Search(np.zeros(len(wanted), np.int64), np.full(len(wanted), -np.inf), np.full(len(wanted), -np.inf))
    for part in _blocks(len(wanted), block):
        a, names = unit(wanted[part]), wanted_labels[part, None]
        for some in _blocks(len(known), block):
            score = a @ unit(shelf[known[some]]).T
            score[names != shelf_labels[known[some]]] = -np.inf
            np.maximum(found.mate[part], score.max(1), out=found.mate[part])
        level = found.mate[part, None] - TIE
        for some in _blocks(len(shelf), block):
            score = a @ unit(shelf[some]).T
            np.maximum(found.top[part], score.max(1), out=found.top[part])
            found.rank[part] += ((score >= level) & (names != shelf_labels[some])).sum(1)
    found.rank[:] = np.where(np.isfinite(found.mate), found.rank + 1, 0)
    return found


def probe_ranks(
    gallery: ArrayLike, gallery_labels: ArrayLike, probe: ArrayLike, probe_labels: ArrayLike, block: int = BLOCK
) -> np.ndarray:
    """Closed-set identification: `(G,D), (G,), (P,D), (P,) -> (P,)`, the place 1..G of each probe's best mate.

    As `search` counts it; distractors are gallery images with any label that no probe has (TinyFace: -1, say).

    Raises DataError for a probe whose label the gallery lacks.
    """
    missing = np.setdiff1d(np.asarray(probe_labels), np.asarray(gallery_labels))
    if len(missing):
        raise DataError(f"probe_labels: {missing[0]} is not in the gallery; {len(missing)} labels are not")
    return search(gallery, gallery_labels, probe, probe_labels, block).rank


def rank_k(
    gallery: ArrayLike,
    gallery_labels: ArrayLike,
    probe: ArrayLike,
    probe_labels: ArrayLike,
    ranks: Sequence[int] = RANKS,
) -> np.ndarray:
    """Share of probes with a mate among the first k: -> (len(ranks),). The arguments and errors of `probe_ranks`.

    TinyFace's protocol with ranks 1, 5, 10, 20, the features fused with those of the mirror image (`fuse`).
    """
    wanted = _ranks(ranks)
    found = probe_ranks(gallery, gallery_labels, probe, probe_labels)
    return (found[:, None] <= wanted).mean(0)


def rank_table(
    gallery: ArrayLike,
    gallery_labels: ArrayLike,
    probe: ArrayLike,
    probe_labels: ArrayLike,
    group: ArrayLike,
    ranks: Sequence[int] = RANKS,
) -> pd.DataFrame:
    """`rank_k` for each group of probes (P,): -> a row a group with `probes`, `rank1`, ... SCface: group = distance."""
    wanted, groups = _ranks(ranks), np.asarray(group)
    found = probe_ranks(gallery, gallery_labels, probe, probe_labels)
    if groups.shape != found.shape:
        raise DataError(f"group: shape {groups.shape} is not {found.shape}, one a probe")
    table = pd.DataFrame({f"rank{k}": found <= k for k in wanted}).groupby(groups)
    return table.mean().assign(probes=table.size())[["probes", *(f"rank{k}" for k in wanted)]].rename_axis("group")


def identification(
    features: ArrayLike,
    labels: ArrayLike,
    roles: Mapping[str, np.ndarray],
    *,
    ranks: Sequence[int] = RANKS,
    fpir: Sequence[float] = (0.3, 0.2, 0.1),
) -> pd.DataFrame:
    """The protocol that the roles of a prepared set say: `(N,D), (N,), {role: rows}` -> a row a kind of probe.

    gallery, and distractor (TinyFace): what is searched. probe, and distance1, distance2, ... (SCface): whose ranks are
    counted. unmated (SurvFace): probes that should not be found; with them comes each kind's open set, whose gallery
    holds one template a person, the mean of its unit features. Columns: probes, gallery, rank1, ..., tpir20_at_fpir_0.3

    Raises DataError for roles without a gallery or without probes.
    """
    array, names = rows(features, "features"), np.asarray(labels)
    kinds = [role for role in roles if role == "probe" or role.startswith("distance")]
    if "gallery" not in roles or not kinds:
        raise DataError(
            f"roles: {', '.join(roles) or 'none'}: gallery, and probe or distance1, ..., are needed to identify"
        )
    shelf = np.concatenate([roles["gallery"], roles.get("distractor", np.empty(0, np.int64))])
    who = np.concatenate([np.full(len(roles[kind]), kind) for kind in kinds])
    asked = np.concatenate([roles[kind] for kind in kinds])
    table = rank_table(array[shelf], names[shelf], array[asked], names[asked], who, ranks)
    table.insert(1, "gallery", len(shelf))
    if "unmated" in roles:
        own = roles["gallery"]
        pool = templates(unit(array[own]), names[own], names[own])
        for kind in kinds:
            asked = np.concatenate([roles[kind], roles["unmated"]])
            found = open_set(pool.features, pool.subjects, array[asked], names[asked], fpir=fpir)
            for rate, share in zip(fpir, found.tpir, strict=True):
                table.loc[kind, f"tpir20_at_fpir_{rate:g}"] = share
    return table.rename_axis("probe_role").reset_index()


def cmc(ranks: ArrayLike, length: int = 20) -> np.ndarray:
    """Cumulative match curve of `probe_ranks`: `(P,) -> (length,)`, the share of probes at rank 1, 2, ... or better."""
    return (np.asarray(ranks)[:, None] <= np.arange(1, length + 1)).mean(0)


class OpenSet(NamedTuple):
    """(K,) each: true positive identification rate, measured false positive rate, and the threshold for both."""

    tpir: np.ndarray
    fpir: np.ndarray
    threshold: np.ndarray


def open_set(
    gallery: ArrayLike,
    gallery_labels: ArrayLike,
    probe: ArrayLike,
    probe_labels: ArrayLike,
    *,
    rank: int = 20,
    fpir: Sequence[float] = (0.3, 0.2, 0.1),
) -> OpenSet:
    """Open-set identification, SurvFace's TPIR20 at FPIR: `(G,D), (G,), (P,D), (P,) -> OpenSet` for K = len(fpir).

    Probes whose label the gallery lacks are unmated. At a threshold t, FPIR is the share of unmated probes that have
    any gallery image at t or above, and TPIR the share of mated probes whose best mate is at t or above and among the
    first `rank`. The threshold is the lowest whose measured FPIR does not exceed the wanted one: never interpolated.

    In SurvFace a gallery entry is the mean of a person's features: `templates`.
    Deviation: F-SKD's script searches 1,000 thresholds, takes the nearest FPIR, below or above the wanted one, and
    compares the threshold with the highest score of the first 20 instead of the mate's own, which gives more.

    Raises DataError where there is no mated or no unmated probe.
    """
    wanted = np.atleast_1d(np.asarray(fpir, np.float64))
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise ConfigError(f"fpir: {fpir} holds a rate outside [0,1]")
    _ranks([rank])
    found = search(gallery, gallery_labels, probe, probe_labels)
    mated = found.rank > 0
    if mated.all() or not mated.any():
        raise DataError(
            f"probe_labels: {int(mated.sum())} of {len(mated)} probes have a mate in the gallery; an open set needs "
            "probes with a mate and probes without"
        )
    threshold = threshold_at_fpir(found.top[~mated], wanted)
    hit = np.where(found.rank <= rank, found.mate, -np.inf)[mated]
    tpir = ((hit[:, None] >= threshold) & np.isfinite(hit)[:, None]).mean(0)
    return OpenSet(tpir, (found.top[~mated][:, None] >= threshold).mean(0), threshold)


def threshold_at_fpir(top: ArrayLike, fpir: ArrayLike) -> np.ndarray:
    """The lowest threshold that at most a share `fpir` of unmated probes reach: (U,) highest cosines, (K,) -> (K,)."""
    falling = np.sort(np.asarray(top, np.float64))[::-1]
    allowed = np.floor(np.asarray(fpir, np.float64) * len(falling) * (1 + 1e-12)).astype(np.int64)
    # Just above the first that is too many.
    found: np.ndarray = np.append(np.nextafter(falling, np.inf), -np.inf)[allowed]
    return found


class Templates(NamedTuple):
    """T templates by rising number: their numbers (T,), subjects (T,), and unit features (T,D) float64."""

    ids: np.ndarray
    subjects: np.ndarray
    features: np.ndarray


def templates(
    features: ArrayLike, template: ArrayLike, subject: ArrayLike, media: ArrayLike | None = None
) -> Templates:
    """Pool the images of each template, as IJB-B and -C do: `(N,D), (N,), (N,) -> Templates`.

    The mean of a medium's images (the frames of a video), the sum of a template's media, then unit length. Without
    `media` every image is its own. Features go in as they are: a longer one weighs more.

    Raises DataError for a template of two subjects, and for one whose features add up to nothing.
    """
    array = rows(features, "features")
    which, who = np.asarray(template), np.asarray(subject)
    medium = np.arange(len(array)) if media is None else np.asarray(media)
    for name, values in (("template", which), ("subject", who), ("media", medium)):
        if values.shape != (len(array),):
            raise DataError(f"{name}: shape {values.shape} is not ({len(array)},), one an image")
    ids, first, index = np.unique(which, return_index=True, return_inverse=True)
    if (who[first][index] != who).any():
        bad = int(np.argmax(who[first][index] != who))
        raise DataError(f"subject: template {which[bad]} is of {who[first][index][bad]} and of {who[bad]}")
    groups = pd.Series(np.ones(len(array))).groupby([index, medium])
    weight = 1 / groups.transform("sum").to_numpy()
    pool = sparse.csr_array((weight, (index, np.arange(len(array)))), shape=(len(ids), len(array)))
    pooled = np.empty((len(ids), array.shape[1]))
    for columns in _blocks(array.shape[1], 32):
        pooled[:, columns] = pool @ array[:, columns].astype(np.float64)
    if not (pooled != 0).any(1).all():
        raise DataError(f"features: those of template {ids[np.argmin((pooled != 0).any(1))]} add up to nothing")
    return Templates(ids, who[first], unit(pooled))


def read_templates(path: str | os.PathLike[str], sources: Sequence[str]) -> pd.DataFrame:
    """An IJB-style list of templates as CSV: -> `index, template, subject, media`, a row an image of a template.

    The file has the columns `source`, `template`, `subject` and maybe `media` (else each image is its own). `sources`
    are the names of the N images whose features are at hand, as a prepared set's manifest has them, in their order:
    `index` is the row of the features. An image may be in several templates.

    Raises DataError for a file that is no such table, an unknown source, and an image that is twice in a template.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_LIST:
            raise DataError(f"{file}: {file.stat().st_size} bytes: a list of at most {MAX_LIST} is right")
        table = pd.read_csv(file, dtype=str, keep_default_na=False, compression=None)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # pandas' and the decoder's errors are ValueErrors
        raise DataError(f"{file}: cannot be read as CSV: {str(error).splitlines()[0]}") from error
    if missing := [name for name in ("source", "template", "subject") if name not in table]:
        raise DataError(f"{file}: no column {', '.join(missing)}: source, template, subject and maybe media are right")
    if not isinstance(table.index, pd.RangeIndex):  # what pandas makes of fields without a column
        raise DataError(f"{file}: its rows have more fields than its header: as many are right")
    if table.empty:
        raise DataError(f"{file}: has no rows: one an image of a template is right")
    found = pd.Series(np.arange(len(sources)), index=list(sources))
    if not found.index.is_unique:
        raise DataError(f"sources: {found.index[found.index.duplicated()][0]!r} comes twice")
    table["index"] = found.reindex(table["source"]).to_numpy()
    for what, bad in {
        "is no image of this set": table["index"].isna(),
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
    """Pairs of templates by their numbers: `(n,), (n,) -> (n,) cosines, (n,) same subject`, for `lrkd.verify.roc`.

    Raises DataError for a number that is no template.
    """
    ends = []
    for name, numbers in (("left", np.asarray(left)), ("right", np.asarray(right))):
        place = np.minimum(np.searchsorted(pool.ids, numbers), len(pool.ids) - 1)
        if (pool.ids[place] != numbers).any():
            raise DataError(f"{name}: {numbers[np.argmax(pool.ids[place] != numbers)]} is no template")
        ends.append(place)
    if ends[0].shape != ends[1].shape or ends[0].ndim != 1:
        raise DataError(f"left, right: shapes {ends[0].shape}, {ends[1].shape} are not (n,), one a pair")
    scores = np.empty(len(ends[0]))
    for part in _blocks(len(scores), block):
        np.einsum("nd,nd->n", pool.features[ends[0][part]], pool.features[ends[1][part]], out=scores[part])
    return scores, pool.subjects[ends[0]] == pool.subjects[ends[1]]


def fuse(features: ArrayLike) -> np.ndarray:
    """`lrkd.verify.embed`'s `(N,2D) -> (N,D)`: the mean of an image's and its mirror image's features.

    What identification is published with; verification has them side by side.
    """
    array = rows(features, "features")
    if array.shape[1] % 2:
        raise DataError(f"features: {array.shape[1]} dimensions are no two halves")
    half = array.shape[1] // 2
    fused: np.ndarray = (array[:, :half] + array[:, half:]) / 2
    return fused


def unit(x: np.ndarray) -> np.ndarray:
    """(n,D) -> (n,D) float64 of unit length; zero stays zero."""
    x = x.astype(np.float64, copy=False)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    unit: np.ndarray = x / np.where(norm > 0, norm, 1)
    return unit


def rows(array: ArrayLike, name: str) -> np.ndarray:
    """(n,D) as it is, if it is that and finite; DataError with the first row that is not."""
    found = np.asarray(array)
    if found.ndim != 2 or 0 in found.shape or found.dtype.kind not in "fiu":
        raise DataError(
            f"{name}: {found.dtype} {found.shape} is not numbers (n,D), at least one feature of one dimension"
        )
    for part in _blocks(len(found), 16384):
        finite = np.isfinite(found[part]).all(1)
        if not finite.all():
            row = part.start + int(np.argmin(finite))
            raise DataError(f"{name}: the feature in row {row} is not finite; a diverged network gives such features")
    return found


def _ranks(ranks: Sequence[int]) -> np.ndarray:
    wanted = np.asarray(ranks)
    if wanted.dtype.kind != "i" or (wanted < 1).any():
        raise ConfigError(f"ranks: {ranks} holds a rank that is not a whole number of at least 1")
    return wanted


def _blocks(count: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, count)) for start in range(0, count, block))
