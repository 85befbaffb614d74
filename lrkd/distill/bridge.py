"""The cross-dataset step of Bridge Distillation (arXiv 2409.11786): a teacher's embeddings refitted to other people.

A re-derivation from the abstract: a private teacher's knowledge is first distilled into compact features of public
faces, and from there into a student for low resolution by regression and classification together. No equation is known:
the compact head here is a linear discriminant, in closed form.
"""

import numpy as np

from lrkd.errors import ConfigError

_SHRUNK = 0.1  # share of the mean variance in the scatter within people, of whom many have two images


def compact_head(features: np.ndarray, labels: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit the head that separates these people best: `x -> (x - mean) directions`.

    With S_w and S_b the scatter within and between people, the directions are the eigenvectors of S_b v = l S_w v with
    the largest l (Fisher 1936), S_w shrunk towards a multiple of the identity.

    Args:
        features: (N,D) a teacher's embeddings of the public people.
        labels: (N,) who they are.
        length: Numbers that remain of D.

    Returns:
        The mean (D,) and the directions (D,length), the best first, float32; within people the variance is one along
        each of them.

    Raises:
        ConfigError: `length` is not from 1 to D.
    """
    from scipy.linalg import eigh

    count, size = features.shape
    if not 1 <= length <= size:
        raise ConfigError(f"length: expected 1 to {size}, the teacher's, got {length}")
    centred = features.astype(np.float64) - features.mean(0)
    people, index = np.unique(labels, return_inverse=True)
    means = np.zeros((len(people), size))
    np.add.at(means, index, centred)
    means /= np.bincount(index)[:, None]
    inside = centred - means[index]
    within, between = inside.T @ inside / count, means[index].T @ means[index] / count
    within = (1 - _SHRUNK) * within + np.eye(size) * (_SHRUNK * np.trace(within) / size + 1e-12)
    directions = eigh(between, within, subset_by_index=(size - length, size - 1))[1][:, ::-1]
    return features.mean(0).astype(np.float32), directions.astype(np.float32)
