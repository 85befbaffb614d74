"""Which of a teacher's features a student should learn: a sparse choice on a graph of faces (SKD, arXiv 1811.09998).

A re-derivation from the paper's abstract, not the authors' method: the abstract says that the most informative features
are selected by a sparse graph optimisation; energy, weights, solver and code are not public. Ours: the nodes are the
training faces with their teacher embeddings, and a in {0,1}^N, one where the student shall regress the feature, has

    maximal  sum_i u_i a_i  -  beta sum_{edges ij} w_ij a_i a_j   with  sum_i a_i = count,   each edge counted once,

with u how informative a feature is (`unaries`) and w >= 0 what two features repeat or confuse (`graph`). The problem is
as hard as the independent set, so `select_count` says how good its answer is: no choice of that many nodes reaches more
than `bound`. It comes from a concave quadratic that agrees with the objective on {0,1}^N: a_i^2 = a_i there, so
beta d_i (a_i - a_i^2) / 2 may be added, and d is taken so large that W + diag(d) has no negative eigenvalue (Hammer and
Rubin 1970). A tangent plane at any point bounds it, converged or not.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse, stats
from scipy.linalg import eigvalsh_tridiagonal

from lrkd.errors import ConfigError, DataError, needed

_STEPS, _DOUBT = 400, 1e-9  # of Lanczos' method; the chance that its bound on the lowest eigenvalue is wrong
_GRAIN = 1e-12  # a gain below this share of what a node can gain or lose is rounding


class Selection(NamedTuple):
    """A choice of nodes and how far it can be from the best one.

    Attributes:
        chosen: (N,) bool.
        relaxed: (N,) in [0,1], where the concave relaxation is largest.
        objective: What `chosen` reaches.
        bound: No choice of as many nodes reaches more.
        price: The marginal gain that separates the chosen nodes from the others.
    """

    chosen: np.ndarray
    relaxed: np.ndarray
    objective: float
    bound: float
    price: float

    @property
    def gap(self) -> float:
        """bound - objective, never negative; zero proves the choice optimal."""
        return self.bound - self.objective

    @property
    def relative(self) -> float:
        """The gap as a share of `|bound|`: zero where there is none, inf where only the bound is zero."""
        return self.gap / abs(self.bound) if self.bound else (np.inf if self.gap else 0.0)


def margins(embeddings: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Measure how much nearer each face is to its own class than to the nearest other one.

    The cosine with the centre of the class's other faces (a face does not vouch for itself) minus the highest cosine
    with another class's centre; a centre is the mean of the unit embeddings.

    Args:
        embeddings: (N,D) of the teacher, of any length.
        labels: (N,).

    Returns:
        (N,) in [-2,2]. Negative: the teacher takes the face for somebody else's.

    Raises:
        DataError: Shapes that do not fit, an embedding that is zero or not finite, a single class, or a class of one
            face, which has no centre without it.
    """
    faces, labels = _faces(embeddings, labels)
    classes, own, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise DataError(f"labels: expected two classes at least, got {classes[0]} alone")
    if sizes.min() < 2:
        raise DataError(f"labels: expected two faces a class at least, got one of class {classes[sizes.argmin()]}")
    sums = sparse.csr_array((np.ones(len(faces), np.float32), (own, np.arange(len(faces))))) @ faces
    centres, found = _unit(sums).T, np.empty(len(faces))
    for start in range(0, len(faces), 1024):
        part = slice(start, start + 1024)
        others = faces[part] @ centres
        others[np.arange(len(others)), own[part]] = -np.inf
        found[part] = (faces[part] * _unit(sums[own[part]] - faces[part])).sum(1) - others.max(1)
    return found


def unaries(embeddings: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Rank how informative each face's feature is, by its `margins`.

    Ranks are the calibration: beta means the same for every teacher, whatever its temperature. Ties share their mean.

    Args:
        embeddings: (N,D) of the teacher.
        labels: (N,).

    Returns:
        (N,) in (0,1], the rank over N. 1: the teacher's feature tells most clearly whom the face shows; near 0: it is
        ambiguous, or the label is wrong.

    Raises:
        DataError: As `margins`.
    """
    found = margins(embeddings, labels)
    return stats.rankdata(found) / len(found)


def check_packages() -> None:
    """Raise ConfigError where scikit-learn is not installed, which `graph` needs and training does not."""
    with needed("selecting features", "book"):
        import sklearn.neighbors  # noqa: F401


def graph(embeddings: ArrayLike, labels: ArrayLike, k: int = 10, confusion: float = 1.0) -> sparse.csr_array:
    """Join each face to its nearest ones, weighted by what two features repeat or confuse.

    Two faces share an edge if one is among the k nearest of the other. Its weight is their cosine, zero if negative:
    within a class the share of one target that the other repeats (redundancy), between classes how close to each other
    two people would be pulled (confusability).

    Args:
        embeddings: (N,D) of the teacher.
        labels: (N,).
        k: Neighbours of a face, from 1 to N-1.
        confusion: Factor for edges between classes; 0 leaves redundancy alone.

    Returns:
        (N,N) symmetric with a zero diagonal, in [0,1] within a class.

    Raises:
        ConfigError: k or confusion out of range, or no scikit-learn.
        DataError: Shapes that do not fit, or an embedding that is zero or not finite.
    """
    check_packages()
    faces, labels = _faces(embeddings, labels)
    n = len(faces)
    if not 1 <= k < n:
        raise ConfigError(f"k: expected 1 to {n - 1} neighbours of {n} faces, got {k}")
    if not 0 <= confusion < np.inf:
        raise ConfigError(f"confusion: expected a finite number of at least 0, got {confusion}")
    from sklearn.neighbors import NearestNeighbors

    distance, near = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(faces).kneighbors()
    row, column = np.repeat(np.arange(n), k), near.ravel()
    weight = np.clip(1 - distance.ravel().astype(np.float64) ** 2 / 2, 0, 1)
    weight *= np.where(labels[row] == labels[column], 1.0, confusion)
    one_way = sparse.csr_array((weight, (row, column)), shape=(n, n))
    both = sparse.csr_array(one_way.maximum(one_way.T))
    both.eliminate_zeros()
    return both


def select_count(unary: ArrayLike, weights: sparse.sparray, count: int, beta: float) -> Selection:
    """Choose exactly `count` nodes; the objective is that of the module's docstring.

    The relaxation's `count` largest nodes are taken, of equals those with the higher unary, then swapped for others
    while that pays. Deterministic, and the same for any order of the nodes whose unaries differ.

    Args:
        unary: (N,) u.
        weights: (N,N) w, symmetric, at least 0, with a zero diagonal.
        count: How many, from 1 to N.
        beta: Weight of the edges, at least 0.

    Returns:
        The choice, what it reaches and what no choice exceeds.

    Raises:
        ConfigError: `count` or `beta` out of range.
        DataError: `unary` or `weights` of another shape, not finite, negative or asymmetric.
    """
    u, w = _checked(unary, weights, beta)
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 1 <= count <= len(u):
        raise ConfigError(f"count: expected a whole number from 1 to {len(u)}, the number of nodes, got {count}")
    # In one order of the nodes, so that the answer depends on no other: every sum then has the same order too.
    order = np.argsort(-u, kind="stable")
    linear, cost = u[order], sparse.csr_array(w[order][:, order] * float(beta))
    cost.sort_indices()
    relaxed, bound = _relax(linear, cost, int(count))
    chosen, price = _round(linear, cost, relaxed, int(count))
    back = np.argsort(order)
    objective = _value(linear, cost, chosen)
    return Selection(chosen[back] > 0, relaxed[back], objective, max(bound, objective), price)


def _value(linear: np.ndarray, cost: sparse.csr_array, a: np.ndarray) -> float:
    """The objective; cost is beta w, in which each edge is there twice."""
    return float(linear @ a - a @ (cost @ a) / 2)


def _relax(
    linear: np.ndarray, cost: sparse.csr_array, count: int, steps: int = 1000, tolerance: float = 1e-5
) -> tuple[np.ndarray, float]:
    """Where the concave relaxation over sum a = count is largest (N,), and an upper bound on it.

    Projected gradient with momentum and restarts (Nesterov; O'Donoghue and Candes 2015), each node with its own step:
    as W >= 0, diag(sum_j w_ij) - W is a Laplacian, so the steps below suit the curvature. Ends where the bound is
    within `tolerance` of the value.
    """
    shift = _shift(cost)
    curvature = np.maximum(cost.sum(1) + shift, 1e-6 * max(np.abs(linear).max(), 1e-300))
    linear = linear + shift / 2
    a = np.full(len(linear), count / len(linear))
    pull = cost @ a + shift * a
    ahead, ahead_pull, momentum, best = a, pull, 1.0, np.inf
    for _ in range(steps):
        slope = linear - ahead_pull
        new = _project(ahead + slope / curvature, curvature, count)
        new_pull = cost @ new + shift * new
        here = linear - new_pull
        value = linear @ new - new @ new_pull / 2
        best = min(best, float(value + np.partition(here, -count)[-count:].sum() - here @ new))
        if slope @ (new - a) < 0:
            momentum = 1.0
        faster = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        share, momentum = (momentum - 1) / faster, faster
        ahead, ahead_pull = new + share * (new - a), new_pull + share * (new_pull - pull)
        a, pull = new, new_pull
        if best - value <= tolerance * abs(best):
            break
    return a, best


def _project(x: np.ndarray, curvature: np.ndarray, count: int) -> np.ndarray:
    """Nearest point of the box's slice sum a = count, in the metric of the curvature, by bisection."""
    low, high = float(((x - 1) * curvature).min()), float((x * curvature).max())
    for _ in range(60):
        middle = (low + high) / 2
        if np.clip(x - middle / curvature, 0, 1).sum() > count:
            low = middle
        else:
            high = middle
    return np.clip(x - high / curvature, 0, 1)


def _shift(cost: sparse.csr_array) -> np.ndarray:
    """(N,) d >= 0 such that cost + diag(d) has no negative eigenvalue: a multiple of the rows' lengths.

    The multiple is minus the lowest eigenvalue of the matrix scaled by those lengths, from Lanczos' method with a
    random start, made larger by what the method may have missed: after k steps more than a share e of the spectrum's
    width with a chance below 1.648 sqrt(N) exp(-sqrt(e) (2k-1)) (Kuczynski and Wozniakowski 1992, theorem 4.2).
    scipy's eigsh has no such guarantee, and its value, up to a thousandth of the width away, changes committed choices.
    """
    n = cost.shape[0]
    length = np.sqrt(cost.multiply(cost).sum(1))
    scale = 1 / np.sqrt(np.where(length > 0, length, 1))
    vector, before = np.random.default_rng(0).standard_normal(n), np.zeros(n)
    vector /= np.linalg.norm(vector)
    diagonal: list[float] = []
    beside: list[float] = [0.0]
    while len(diagonal) < _STEPS:
        next_ = scale * (cost @ (scale * vector)) - beside[-1] * before
        diagonal.append(float(vector @ next_))
        next_ -= diagonal[-1] * vector
        beside.append(float(np.linalg.norm(next_)))
        if beside[-1] < 1e-10:  # nothing is left to find
            break
        before, vector = vector, next_ / beside[-1]
    values = eigvalsh_tridiagonal(np.array(diagonal), np.array(beside[1:-1]))
    missed = (np.log(2 * 1.648 * np.sqrt(n) / _DOUBT) / (2 * _STEPS - 1)) ** 2 if len(diagonal) == _STEPS else 1e-9
    width = (values[-1] - values[0]) / (1 - 2 * missed)
    return max(missed * width - values[0], 0.0) * length


def _round(linear: np.ndarray, cost: sparse.csr_array, relaxed: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """(N,) of 0 and 1 from a relaxed point, and the marginal gain that separates chosen from others.

    The largest nodes are taken first. Then those whose marginal gain is on the other side of the price change over,
    except where a neighbour moves the same way and gains more: the gains of those that move add up, so the objective
    rises in each round. As many enter as leave, the largest gains first.
    """
    edges = sparse.triu(cost, format="coo")
    i, j = edges.row[edges.data > 0], edges.col[edges.data > 0]
    grain = _GRAIN * float(np.abs(linear).max() + cost.sum(1).max())
    a = np.zeros(len(linear))
    a[np.argsort(-relaxed, kind="stable")[:count]] = 1
    while True:
        marginal = linear - cost @ a
        price = float(marginal[a > 0].min())
        price = (price + float(marginal[a == 0].max())) / 2 if count < len(a) else price
        step = (marginal > price) - a
        gain = np.abs((marginal - price) * step)
        moves = (step != 0) & (gain > grain)
        same = moves[i] & moves[j] & (step[i] * step[j] > 0)
        left, right = i[same], j[same]
        moves[np.where(gain[left] >= gain[right], right, left)] = False
        entering, leaving = (np.flatnonzero(moves & (sign * step > 0)) for sign in (1, -1))
        swaps = min(len(entering), len(leaving))
        if not swaps:
            return a, price
        for side in (entering, leaving):
            first = side[np.argsort(-gain[side], kind="stable")[:swaps]]
            a[first] += step[first]


def _checked(unary: ArrayLike, weights: sparse.sparray, beta: float) -> tuple[np.ndarray, sparse.csr_array]:
    u = np.asarray(unary, dtype=np.float64)
    if u.ndim != 1 or not len(u):
        raise DataError(f"unary: expected (N,), one number a node, got shape {u.shape}")
    if not np.isfinite(u).all():
        raise DataError(
            f"unary: expected finite numbers, got {u[~np.isfinite(u)][0]} at {np.flatnonzero(~np.isfinite(u))[0]}"
        )
    if not 0 <= beta < np.inf:
        raise ConfigError(f"beta: expected a finite number of at least 0, got {beta}")
    if np.shape(weights) != (len(u), len(u)):
        raise DataError(f"weights: expected shape {(len(u), len(u))} for {len(u)} unaries, got {np.shape(weights)}")
    w = sparse.csr_array(weights, dtype=np.float64, copy=True)
    w.sum_duplicates()
    wrong = ~(np.isfinite(w.data) & (w.data >= 0))
    if wrong.any():
        raise DataError(f"weights: expected finite numbers of at least 0, got {w.data[wrong][0]}")
    if w.diagonal().any():
        raise DataError(f"weights: expected zeros on the diagonal, got {w.diagonal().max()}")
    if len(w.data) and abs(w - w.T).max() > 1e-9 * w.data.max():
        raise DataError(f"weights: expected a symmetric matrix, got differences of up to {abs(w - w.T).max():.3g}")
    return u, sparse.csr_array((w + w.T) / 2)


def _faces(embeddings: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings at length one (N,D) float32, and the labels (N,)."""
    faces, names = np.asarray(embeddings, dtype=np.float32), np.asarray(labels)
    if faces.ndim != 2 or not faces.size:
        raise DataError(f"embeddings: expected (N,D), one face a row, got shape {faces.shape}")
    if names.shape != (len(faces),):
        raise DataError(f"labels: expected shape ({len(faces)},), one an embedding, got {names.shape}")
    good = np.isfinite(faces).all(1) & faces.any(1)
    if not good.all():
        raise DataError(
            f"embeddings: expected finite rows that are not zero, got another at row {np.flatnonzero(~good)[0]}"
        )
    return _unit(faces), names


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
