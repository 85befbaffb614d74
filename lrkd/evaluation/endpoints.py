"""What a student is measured by in a world: small against small, sharp against small, and searches of a sharp gallery.

Every endpoint is the mean of (n,) booleans, what was right, which are kept: intervals over people resample them.
"""

import numpy as np

from lrkd.data import tables
from lrkd.errors import TrainingError
from lrkd.evaluation import identification, search, verification

FPIR = 0.01
VERIFICATION = ("lr-lr", "hr-lr")
SEARCH = ("rank1", "open-set")
TEACHERS = ("rank1-teacher", "open-set-teacher")
ENDPOINTS = (*VERIFICATION, *SEARCH, *TEACHERS)


def measured(
    low: np.ndarray, high: np.ndarray | None, faces: tables.Faces, teacher: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Features of small images (N,D), of the sharp ones by the student and by its teacher, if any -> right by endpoint.

    lr-lr: both images of each pair small, (P,) by `verify.kfold_verification`. hr-lr: the left one sharp.
    rank1: each person's first image is enrolled sharp, and each other image, small, searches all of them, (probes,).
    open-set: as rank1, but half of the people are enrolled, and a probe counts where its mate comes first above the
    threshold at which 1 % of the other half's probes find anybody; the halves take turns, so that everyone is searched
    for. rank1-teacher, open-set-teacher: the gallery as the teacher embeds it, so that nobody need be enrolled again.

    Raises TrainingError for a network that gives all images the same embedding.
    """
    pairs = faces.pairs
    assert pairs is not None

    def verified(a: np.ndarray) -> np.ndarray:
        found = verification.kfold_verification(a[pairs.left], low[pairs.right], pairs.same, pairs.fold)
        if np.ptp(found.scores) == 0:
            raise TrainingError("all embeddings are the same: the network has collapsed; lower the learning rate")
        return found.correct

    right = {"lr-lr": verified(low)}
    if high is not None:
        right["hr-lr"] = verified(high)
    first, rest = gallery_and_probes(faces.labels)
    for gallery, suffix in ((low if high is None else high, ""), (teacher, "-teacher")):
        if gallery is not None:
            found = gallery[first], faces.labels[first], low[rest], faces.labels[rest]
            right[f"rank1{suffix}"] = identification.probe_ranks(*found) == 1
            right[f"open-set{suffix}"] = both_halves(*found)
    return right


def gallery_and_probes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each person's first image, and of all others: (N,) -> (people,), (N - people,)."""
    first = np.unique(labels, return_index=True)[1]
    return first, np.setdiff1d(np.arange(len(labels)), first)


def both_halves(
    gallery: np.ndarray, names: np.ndarray, probe: np.ndarray, wanted: np.ndarray, fpir: float = FPIR
) -> np.ndarray:
    """(P,) bool: whether the probe is found at that false positive rate, while every second person is enrolled."""
    right = np.zeros(len(probe), bool)
    place = np.searchsorted(np.unique(names), names), np.searchsorted(np.unique(names), wanted)
    for half in (0, 1):
        enrolled, mated = (part % 2 == half for part in place)
        found = search.search(gallery[enrolled], names[enrolled], probe, wanted)
        threshold = identification.threshold_at_fpir(found.top[~mated], fpir)
        right[mated] = ((found.rank == 1) & (found.mate >= threshold))[mated]
    return right
