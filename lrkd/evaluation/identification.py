"""Who is this? Probes against a gallery: closed and open sets, distractors, several distances, templates.

Everywhere: a score is a cosine, higher means more alike; rates are fractions in [0,1]; G gallery and P probe features
have D numbers each. They are read in blocks and never copied whole: 160,000 distractors of 512 numbers fit in 2 GB.

A face that was not found is a failure to enrol: as a probe it is a miss at every rank, and if unmated it raises no
false alarm; it is left out of the gallery, and probes whose mates were all left out are misses too. No denominator gets
smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lrkd.errors import ConfigError, DataError
from lrkd.evaluation.search import BLOCK, Search, lost, ranks_of, rows, search, unit
from lrkd.evaluation.templates import templates

RANKS = (1, 5, 10, 20)
OUTSIDE = ("distractor", "unmated")  # roles of people whom no probe, or no gallery, shows; they are in no split


def probe_ranks(
    gallery: ArrayLike, gallery_labels: ArrayLike, probe: ArrayLike, probe_labels: ArrayLike, block: int = BLOCK
) -> np.ndarray:
    """Rank each probe's best mate, closed-set identification: `(G,D), (G,), (P,D), (P,) -> (P,)` places 1..G.

    Distractors are gallery images with any label that no probe has (TinyFace: -1, say).

    Args:
        gallery, gallery_labels, probe, probe_labels, block: As in `lrkd.evaluation.search.search`, which counts.

    Raises:
        DataError: The gallery lacks a probe's label; also as `search`.
    """
    missing = np.setdiff1d(np.asarray(probe_labels), np.asarray(gallery_labels))
    if len(missing):
        raise DataError(f"probe_labels: expected labels of the gallery, got {missing[0]}; {len(missing)} are not there")
    return search(gallery, gallery_labels, probe, probe_labels, block).rank


def rank_k(
    gallery: ArrayLike,
    gallery_labels: ArrayLike,
    probe: ArrayLike,
    probe_labels: ArrayLike,
    ranks: Sequence[int] = RANKS,
) -> np.ndarray:
    """Compute the share of probes with a mate among the first k: -> (len(ranks),).

    TinyFace's protocol has ranks 1, 5, 10, 20, and features fused with those of the mirror image (`fuse`).

    Args:
        gallery, gallery_labels, probe, probe_labels: As in `probe_ranks`.
        ranks: The k.

    Raises:
        ConfigError: A rank is no whole number of at least 1.
        DataError: As `probe_ranks`.
    """
    wanted = ranks_of(ranks)
    return _within(probe_ranks(gallery, gallery_labels, probe, probe_labels), wanted).mean(0)


def _within(found: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """(P,) ranks -> (P,len(ranks)) bool: whether a mate is among the first k; rank 0 is no mate, and a miss."""
    return (found[:, None] > 0) & (found[:, None] <= ranks)


def _shares(found: np.ndarray, groups: np.ndarray, ranks: np.ndarray) -> pd.DataFrame:
    """(P,) ranks, (P,) -> a row a group with `probes`, `rank1`, ..."""
    names = [f"rank{k}" for k in ranks]
    table = pd.DataFrame(_within(found, ranks), columns=names).groupby(groups)
    return table.mean().assign(probes=table.size())[["probes", *names]].rename_axis("group")


def identification(
    features: ArrayLike,
    labels: ArrayLike,
    roles: Mapping[str, np.ndarray],
    *,
    ranks: Sequence[int] = RANKS,
    fpir: Sequence[float] = (0.3, 0.2, 0.1),
    missing: ArrayLike | None = None,
) -> pd.DataFrame:
    """Score the protocol that the roles of a prepared set define: `(N,D), (N,), {role: rows}` -> a row a kind of probe.

    Args:
        features, labels: Those of all N images.
        roles: gallery, and distractor (TinyFace): what is searched. probe, and distance1, distance2, ... (SCface):
            whose ranks are counted. unmated (SurvFace): probes that should not be found; with them each kind gets an
            open set too, whose gallery holds one template a person, the mean of its unit features.
        ranks: The k of the shares rank1, rank5, ...
        fpir: The false positive identification rates of the open set.
        missing: (N,) bool, faces that were not found. None: there are none.

    Returns:
        Columns: probe_role; probes; gallery, how many images are searched; missed, probes that no rank can find, as
        their own face or those of all their mates are missing; rank1, ..., tpir20_at_fpir_0.3, ...

    Raises:
        ConfigError: A rank or a rate is out of range.
        DataError: The roles have no gallery or no probes, or no face was found in the gallery.
    """
    array, names = rows(features, "features"), np.asarray(labels)
    wanted, gone = ranks_of(ranks), lost(missing, len(array), "an image")
    kinds = [role for role in roles if role == "probe" or role.startswith("distance")]
    if "gallery" not in roles or not kinds:
        raise DataError(
            f"roles: expected gallery, and probe or distance1, ..., to identify, got {', '.join(roles) or 'none'}"
        )
    own = roles["gallery"][~gone[roles["gallery"]]]
    if not len(own):
        raise DataError(
            f"roles: gallery: expected images with a face, got {len(roles['gallery'])} in which none was found"
        )
    others = roles.get("distractor", np.empty(0, np.int64))
    shelf = np.concatenate([own, others[~gone[others]]])
    who = np.concatenate([np.full(len(roles[kind]), kind) for kind in kinds])
    asked = np.concatenate([roles[kind] for kind in kinds])
    found = _searched(array[shelf], names[shelf], array[asked], names[asked], gone[asked]).rank
    table = _shares(found, who, wanted)
    table.insert(1, "gallery", len(shelf))
    table.insert(2, "missed", pd.Series(found == 0).groupby(who).sum())
    if "unmated" in roles:
        pool = templates(unit(array[own]), names[own], names[own])
        for kind in kinds:
            asked = np.concatenate([roles[kind], roles["unmated"]])
            near = _searched(pool.features, pool.subjects, array[asked], names[asked], gone[asked])
            rates = _open_rates(near, np.arange(len(asked)) < len(roles[kind]), 20, fpir)
            for rate, share in zip(fpir, rates.tpir, strict=True):
                table.loc[kind, f"tpir20_at_fpir_{rate:g}"] = share
    return table.rename_axis("probe_role").reset_index()


def _searched(
    gallery: np.ndarray, gallery_labels: np.ndarray, probe: np.ndarray, probe_labels: np.ndarray, gone: np.ndarray
) -> Search:
    """`search`, in which the probes of (P,) `gone` find nothing: rank 0, and -inf for both cosines."""
    count, there = len(probe), ~gone
    found = Search(np.zeros(count, np.int64), np.full(count, -np.inf), np.full(count, -np.inf))
    if there.any():
        near = search(gallery, gallery_labels, probe[there], probe_labels[there])
        for into, values in zip(found, near, strict=True):
            into[there] = values
    return found


class OpenSet(NamedTuple):
    """True positive identification rate, measured false positive rate, and the threshold for both, (K,) each."""

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
    """Measure open-set identification, SurvFace's TPIR20 at FPIR: `(G,D), (G,), (P,D), (P,) -> OpenSet`.

    Probes whose label the gallery lacks are unmated. At a threshold t, FPIR is the share of unmated probes that have
    any gallery image at t or above, and TPIR the share of mated probes whose best mate is at t or above and among the
    first `rank`. The threshold is the lowest whose measured FPIR does not exceed the wanted one: never interpolated.

    In SurvFace a gallery entry is the mean of a person's features: `templates`.
    Deviation: F-SKD's script searches 1,000 thresholds, takes the nearest FPIR, below or above the wanted one, and
    compares the threshold with the highest score of the first 20 instead of the mate's own, which gives more.

    Args:
        gallery, gallery_labels, probe, probe_labels: As in `lrkd.evaluation.search.search`.
        rank: Among how many the mate must be.
        fpir: (K,) wanted rates.

    Raises:
        ConfigError: A rate is outside [0,1], or the rank below 1.
        DataError: There is no mated or no unmated probe.
    """
    found = search(gallery, gallery_labels, probe, probe_labels)
    return _open_rates(found, found.rank > 0, rank, fpir)


def _open_rates(found: Search, mated: np.ndarray, rank: int, fpir: Sequence[float]) -> OpenSet:
    """`open_set` of a search, with the probes (P,) that have a mate or would have one, were its face not missing."""
    wanted = np.atleast_1d(np.asarray(fpir, np.float64))
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise ConfigError(f"fpir: expected rates in [0,1], got {fpir}")
    ranks_of([rank])
    if mated.all() or not mated.any():
        raise DataError(
            "probe_labels: expected probes with a mate in the gallery and probes without, for an open set, got "
            f"{int(mated.sum())} of {len(mated)} with one"
        )
    threshold = threshold_at_fpir(found.top[~mated], wanted)
    hit = np.where((found.rank > 0) & (found.rank <= rank), found.mate, -np.inf)[mated]
    tpir = ((hit[:, None] >= threshold) & np.isfinite(hit)[:, None]).mean(0)
    false = found.top[~mated][:, None]
    return OpenSet(tpir, ((false >= threshold) & np.isfinite(false)).mean(0), threshold)


def threshold_at_fpir(top: ArrayLike, fpir: ArrayLike) -> np.ndarray:
    """Find the lowest threshold that at most a share of unmated probes reach: (U,) highest cosines, (K,) -> (K,)."""
    falling = np.sort(np.asarray(top, np.float64))[::-1]
    allowed = np.floor(np.asarray(fpir, np.float64) * len(falling) * (1 + 1e-12)).astype(np.int64)
    # Just above the first that is too many.
    return np.append(np.nextafter(falling, np.inf), -np.inf)[allowed]


def fuse(features: ArrayLike) -> np.ndarray:
    """Average an image's and its mirror image's features: `(N,2D)` of `lrkd.evaluation.embedding.embed` `-> (N,D)`.

    What identification is published with; verification has them side by side.

    Raises:
        DataError: The features have an odd number of dimensions.
    """
    array = rows(features, "features")
    if array.shape[1] % 2:
        raise DataError(f"features: expected two halves, got {array.shape[1]} dimensions")
    half = array.shape[1] // 2
    return (array[:, :half] + array[:, half:]) / 2
