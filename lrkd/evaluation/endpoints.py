"""What a student is measured by in a world: small against small, sharp against small, and searches of a sharp gallery.

Every endpoint is the mean of (n,) booleans, what was correct, which are kept: intervals over people resample them.
"""

import numpy as np

from lrkd.data import tables
from lrkd.errors import DataError, TrainingError
from lrkd.evaluation import identification, search, verification

FPIR = 0.01
VERIFICATION = ("lr-lr", "hr-lr")
SEARCH = ("rank1", "open-set")
TEACHERS = ("rank1-teacher", "open-set-teacher")
ENDPOINTS = (*VERIFICATION, *SEARCH, *TEACHERS)


def measured(
    low: np.ndarray, high: np.ndarray | None, faces: tables.Faces, teacher: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Measure a student at every endpoint for which there are features.

    Args:
        low: (N,D), the student's features of the small images.
        high: (N,D), its features of the sharp ones. None: it does not take these.
        faces: The N images' labels, and P pairs of them.
        teacher: (N,D), the teacher's features of the sharp images. None: there is no teacher.

    Returns:
        What was correct, by endpoint. lr-lr (P,): both images of each pair small, by `kfold_verification`. hr-lr (P,):
        the left one sharp. rank1 (probes,): each person's first image is enrolled sharp, and each other image, small,
        searches all of them. open-set (probes,): as rank1, but half of the people are enrolled, and a probe counts
        where its mate comes first above the threshold at which 1 % of the other half's probes find anybody; the halves
        take turns. rank1-teacher, open-set-teacher: with the gallery as the teacher embeds it, so that nobody has to
        be enrolled again.

    Raises:
        DataError: The faces have no pairs.
        TrainingError: All images have the same embedding.
    """
    pairs = faces.pairs
    if pairs is None:
        raise DataError(f"{faces.name}: expected verification pairs, got none")

    def verified(a: np.ndarray) -> np.ndarray:
        found = verification.kfold_verification(a[pairs.left], low[pairs.right], pairs.same, pairs.fold)
        if np.ptp(found.scores) == 0:
            raise TrainingError("all embeddings are the same: the network has collapsed; lower the learning rate")
        return found.correct

    correct = {"lr-lr": verified(low)}
    if high is not None:
        correct["hr-lr"] = verified(high)
    first, rest = gallery_and_probes(faces.labels)
    for gallery, suffix in ((low if high is None else high, ""), (teacher, "-teacher")):
        if gallery is not None:
            found = gallery[first], faces.labels[first], low[rest], faces.labels[rest]
            correct[f"rank1{suffix}"] = identification.probe_ranks(*found) == 1
            correct[f"open-set{suffix}"] = both_halves(*found)
    return correct


def gallery_and_probes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows of each person's first image, and of all others: (N,) -> (people,), (N - people,)."""
    first = np.unique(labels, return_index=True)[1]
    return first, np.setdiff1d(np.arange(len(labels)), first)


def both_halves(gallery: np.ndarray, names: np.ndarray, probe: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Search with every second person enrolled, in turns: -> (P,) bool, whether a probe is found at `FPIR`."""
    correct = np.zeros(len(probe), bool)
    place = np.searchsorted(np.unique(names), names), np.searchsorted(np.unique(names), wanted)
    for half in (0, 1):
        enrolled, mated = (part % 2 == half for part in place)
        found = search.search(gallery[enrolled], names[enrolled], probe, wanted)
        threshold = identification.threshold_at_fpir(found.top[~mated], FPIR)
        correct[mated] = ((found.rank == 1) & (found.mate >= threshold))[mated]
    return correct
