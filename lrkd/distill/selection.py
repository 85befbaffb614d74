"""Which of a teacher's features a student should learn: a sparse choice on a graph of faces (SKD, arXiv 1811.09998).

A re-derivation from the paper's abstract, not the authors' method: the abstract says that the most informative features
are selected by a sparse graph optimisation; energy, weights, solver and code are not public. Ours: the nodes are the
training faces with their teacher embeddings, and a in {0,1}^N, one where the student shall regress the feature, has

    maximal  sum_i u_i a_i  -  beta sum_{edges ij} w_ij a_i a_j  -  lambda |a|_1,   each edge counted once,

with u how informative a feature is (`unaries`) and w >= 0 what two features repeat or confuse (`graph`). The problem is
as hard as the independent set. `select` and `select_count` therefore say how good their answer is: `bound` is an upper
bound on every choice's objective, so an answer without a gap is optimal. Three bounds, the smallest counts:

- up to EXACT nodes HiGHS solves the integer program;
- a concave quadratic that agrees with the objective on {0,1}^N: a_i^2 = a_i there, so beta d_i (a_i - a_i^2) / 2 may be
  added, and d is taken so large that W + diag(d) has no negative eigenvalue (Hammer and Rubin 1970). A tangent plane at
  any point bounds it, converged or not. It is the tighter one where beta is large;
- the linear relaxation (roof duality: Hammer, Hansen and Simeone 1984): for any 0 <= p_ij <= beta w_ij the objective is
  at most sum p_ij + sum max(0, c_i - sum_j p_ij), c = u - lambda. The best p is a maximal flow through the graph's
  bipartite double cover, halved. It is the tighter one where beta is small, and often leaves no gap at all.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, sparse, stats
from scipy.linalg import eigvalsh_tridiagonal

from lrkd.errors import ConfigError, DataError, needed

EXACT = 32
_STEPS, _DOUBT = 400, 1e-9  # of Lanczos' method; the chance that its bound on the lowest eigenvalue is wrong
_GRAIN = 1e-12  # a gain below this share of what a node can gain or lose is rounding


class Selection(NamedTuple):
    """A choice of nodes and how far it can be from the best one.

    chosen: (N,) bool. relaxed: (N,) in [0,1], where the concave relaxation is largest.
    objective: what `chosen` reaches. bound: no choice reaches more.
    price: lambda; in `select_count`, where the objective has no lambda, the one at which about `count` nodes pay.
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
        """The gap as a share of |bound|: zero where there is none, inf where only the bound is zero."""
        return self.gap / abs(self.bound) if self.bound else (np.inf if self.gap else 0.0)


def margins(embeddings: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """How much nearer each face is to its own class than to the nearest other one: (N,D), (N,) -> (N,) in [-2,2].

    The cosine with the centre of the class's other faces (a face does not vouch for itself) minus the highest cosine
    with another class's centre; a centre is the mean of the unit embeddings. Negative: the teacher takes the face for
    somebody else's. Raises DataError for shapes that do not fit, embeddings that are zero or not finite, a single
    class, and a class of one face, which has no centre without it.
    """
    faces, labels = _faces(embeddings, labels)
    classes, own, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise DataError(f"labels: all are {classes[0]}, but a margin needs two classes at least")
    if sizes.min() < 2:
        raise DataError(f"labels: class {classes[sizes.argmin()]} has one face, but a margin needs two at least")
    sums = sparse.csr_array((np.ones(len(faces), np.float32), (own, np.arange(len(faces))))) @ faces
    centres, found = _unit(sums).T, np.empty(len(faces))
    for start in range(0, len(faces), 1024):
        part = slice(start, start + 1024)
        others = faces[part] @ centres
        others[np.arange(len(others)), own[part]] = -np.inf
        found[part] = (faces[part] * _unit(sums[own[part]] - faces[part])).sum(1) - others.max(1)
    return found


def unaries(embeddings: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """How informative each face's feature is: (N,D), (N,) -> (N,) in (0,1], the rank of its `margins` over N.

    1: the teacher's feature tells most clearly whom the face shows; near 0: it is ambiguous, or the label is wrong.
    Ranks are the calibration: beta and lambda mean the same for every teacher, whatever its temperature, and without
    edges lambda is the share of the faces that is left out. Ties share their mean. Raises what `margins` does.
    """
    found = margins(embeddings, labels)
    return stats.rankdata(found) / len(found)


def check_packages() -> None:
    """Raises ConfigError where scikit-learn is not installed, which `graph` needs and training does not."""
    with needed("selecting features", "book"):
        import sklearn.neighbors  # noqa: F401


def graph(embeddings: ArrayLike, labels: ArrayLike, k: int = 10, confusion: float = 1.0) -> sparse.csr_array:
    """Weights between faces, (N,D), (N,) -> (N,N) symmetric with a zero diagonal, in [0,1] times `confusion`.

    Two faces share an edge if one is among the k nearest of the other. Its weight is their cosine, zero if negative:
    within a class the share of one target that the other repeats (redundancy), between classes how close to each other
    two people would be pulled (confusability), which counts `confusion` times; 0 leaves redundancy alone.

    Raises ConfigError for k outside [1, N-1], a negative confusion and as `check_packages`, DataError for what is no
    (N,D) with its labels.
    """
    check_packages()
    faces, labels = _faces(embeddings, labels)
    n = len(faces)
    if not 1 <= k < n:
        raise ConfigError(f"k: {k} neighbours, but {n} faces have between 1 and {n - 1}")
    if not 0 <= confusion < np.inf:
        raise ConfigError(f"confusion: {confusion} is not a finite number of at least 0")
    from sklearn.neighbors import NearestNeighbors

    distance, near = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(faces).kneighbors()
    row, column = np.repeat(np.arange(n), k), near.ravel()
    weight = np.clip(1 - distance.ravel().astype(np.float64) ** 2 / 2, 0, 1)
    weight *= np.where(labels[row] == labels[column], 1.0, confusion)
    one_way = sparse.csr_array((weight, (row, column)), shape=(n, n))
    both = sparse.csr_array(one_way.maximum(one_way.T))
    both.eliminate_zeros()
    return both


def select(unary: ArrayLike, weights: sparse.sparray, beta: float, sparsity: float) -> Selection:
    """The choice at a price: (N,), (N,N) symmetric >= 0 -> Selection; objective as in the module's docstring.

    beta, sparsity (lambda): at least 0. Proved optimal up to EXACT nodes. Deterministic, and the same for any order of
    the nodes whose unaries differ. Raises ConfigError and DataError naming the argument and the value.
    """
    if not 0 <= sparsity < np.inf:
        raise ConfigError(f"sparsity: {sparsity} is not a finite number of at least 0")
    return _solve(unary, weights, beta, float(sparsity), None)


def select_count(unary: ArrayLike, weights: sparse.sparray, count: int, beta: float) -> Selection:
    """The best choice of exactly `count` nodes: (N,), (N,N) symmetric >= 0 -> Selection; the objective has no lambda.

    The relaxation holds the count through lambda, found by bisection in each step. Its `count` largest nodes are taken,
    of equals those with the higher unary, then swapped for others while that pays. bound is for choices of that count:
    the quadratic bound over sum a = count, and the linear one at `price` plus price * count (Lagrange).
    """
    size = np.shape(unary)[0] if np.ndim(unary) else 0
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 1 <= count <= max(size, 1):
        raise ConfigError(f"count: {count} is not a whole number from 1 to {size}, the number of nodes")
    return _solve(unary, weights, beta, 0.0, int(count))


class _Problem(NamedTuple):
    """maximise linear a - a' cost a / 2, with sum a = wanted unless None; pairs are the edges, each once."""

    linear: np.ndarray  # (N,) u, less lambda where no count is asked for
    cost: sparse.csr_array  # (N,N) beta w
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray]  # i, j, beta w_ij with i < j
    wanted: int | None

    def value(self, a: np.ndarray) -> float:
        return float(self.linear @ a - a @ (self.cost @ a) / 2)


def _solve(unary: ArrayLike, weights: sparse.sparray, beta: float, sparsity: float, count: int | None) -> Selection:
    u, w = _checked(unary, weights, beta)
    # In one order of the nodes, so that the answer hangs on no other: every sum then has the same order too.
    order = np.argsort(-u, kind="stable")
    cost = sparse.csr_array(w[order][:, order] * float(beta))
    cost.sort_indices()
    upper = sparse.triu(cost, format="coo")
    kept = upper.data > 0
    problem = _Problem(u[order] - sparsity, cost, (upper.row[kept], upper.col[kept], upper.data[kept]), count)
    relaxed, bound = _quadratic(problem)
    chosen, price = _round(problem, relaxed)
    if count is None:
        bound = min(bound, _linear_bound(problem.linear, problem.pairs))
        price = sparsity
    else:
        bound = min(bound, _linear_bound(problem.linear - price, problem.pairs) + price * count)
    if len(u) <= EXACT and kept.any():
        chosen, exact = _integer(problem)
        bound = min(bound, exact)
    objective = problem.value(chosen.astype(np.float64))
    back = np.argsort(order)
    return Selection(chosen[back], relaxed[back], objective, max(float(bound), objective), price)


def _quadratic(problem: _Problem, steps: int = 1000, tolerance: float = 1e-5) -> tuple[np.ndarray, float]:
    """Where the concave relaxation is largest (N,), and an upper bound on it.

    Projected gradient with momentum and restarts (Nesterov; O'Donoghue and Candes 2015), each node with its own step:
    as W >= 0, diag(sum_j w_ij) - W is a Laplacian, so the steps below suit the curvature. Ends where the bound is
    within `tolerance` of the value.
    """
    cost, count = problem.cost, problem.wanted
    shift = _shift(cost)
    linear = problem.linear + shift / 2
    curvature = np.maximum(cost.sum(1) + shift, 1e-6 * max(np.abs(problem.linear).max(), 1e-300))
    a = np.full(len(linear), 0.5 if count is None else count / len(linear))
    pull = cost @ a + shift * a
    ahead, ahead_pull, momentum, best = a, pull, 1.0, np.inf
    for _ in range(steps):
        slope = linear - ahead_pull
        new = _project(ahead + slope / curvature, curvature, count)
        new_pull = cost @ new + shift * new
        here = linear - new_pull
        top = np.maximum(here, 0).sum() if count is None else np.partition(here, -count)[-count:].sum()
        value = linear @ new - new @ new_pull / 2
        best = min(best, float(value + top - here @ new))
        if slope @ (new - a) < 0:
            momentum = 1.0
        faster = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        share, momentum = (momentum - 1) / faster, faster
        ahead, ahead_pull = new + share * (new - a), new_pull + share * (new_pull - pull)
        a, pull = new, new_pull
        if best - value <= tolerance * abs(best):
            break
    return a, best


def _project(x: np.ndarray, curvature: np.ndarray, count: int | None) -> np.ndarray:
    """Nearest point of the box, or of its slice sum a = count, in the metric of the curvature."""
    if count is None:
        return np.clip(x, 0, 1)
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


def _linear_bound(linear: np.ndarray, pairs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    """The roof dual. Capacities are rounded down to whole numbers: a smaller flow is a p too, so the bound holds."""
    gain, (i, j, cost) = np.maximum(linear, 0), pairs
    n, total = len(gain), float(gain.sum())
    room = np.minimum(cost, np.minimum(gain[i], gain[j]))
    if not room.any():
        return total
    unit = 1e9 / gain.max()
    nodes, source, sink = np.arange(n), np.full(n, 2 * n), np.full(n, 2 * n + 1)
    tail, head = np.concatenate([source, i, j, n + nodes]), np.concatenate([nodes, n + j, n + i, sink])
    capacity = np.floor(np.concatenate([gain, room, room, gain]) * unit).astype(np.int32)
    kept = capacity > 0
    network = sparse.csr_array((capacity[kept], (tail[kept], head[kept])), shape=(2 * n + 2, 2 * n + 2))
    return total - float(sparse.csgraph.maximum_flow(network, 2 * n, 2 * n + 1).flow_value) / unit / 2


def _round(problem: _Problem, a: np.ndarray) -> tuple[np.ndarray, float]:
    """(N,) bool from a relaxed a, and the marginal gain that parts chosen from others.

    Every node goes to the side of its marginal gain, except where a neighbour goes the same way and gains more; the
    gains of those that go add up, so the objective rises in each round, from that of the relaxed point on. With a count
    the largest are taken first, and as many enter as leave, the largest gains first.
    """
    count, price, (i, j, _) = problem.wanted, 0.0, problem.pairs
    grain = _GRAIN * float(np.abs(problem.linear).max() + problem.cost.sum(1).max())
    if count is not None:
        a = np.where(np.argsort(np.argsort(-a, kind="stable")) < count, 1.0, 0.0)
    while True:
        marginal = problem.linear - problem.cost @ a
        if count is not None:
            price = float(marginal[a > 0].min())
            price = (price + float(marginal[a == 0].max())) / 2 if count < len(a) else price
        step = (marginal > price) - a
        gain = np.abs((marginal - price) * step)
        going = (step != 0) & (gain > grain)
        same = going[i] & going[j] & (step[i] * step[j] > 0)
        left, right = i[same], j[same]
        going[np.where(gain[left] >= gain[right], right, left)] = False
        if count is not None:
            entering, leaving = (np.flatnonzero(going & (sign * step > 0)) for sign in (1, -1))
            swaps = min(len(entering), len(leaving))
            going[:] = False
            for side in (entering, leaving):
                going[side[np.argsort(-gain[side], kind="stable")[:swaps]]] = True
        if not going.any():
            return a > 0.5, price
        a = a + np.where(going, step, 0)


def _integer(problem: _Problem) -> tuple[np.ndarray, float]:
    """The best choice and its proof by HiGHS, y_ij >= a_i + a_j - 1 standing for the product a_i a_j."""
    (i, j, cost), n, edges = problem.pairs, len(problem.linear), len(problem.pairs[0])
    rows = np.arange(edges)
    sides = sparse.csr_array(
        (np.repeat([1.0, 1.0, -1.0], edges), (np.tile(rows, 3), np.concatenate([i, j, n + rows]))),
        shape=(edges, n + edges),
    )
    constraints = [optimize.LinearConstraint(sides, -np.inf, 1)]
    whole = np.concatenate([np.ones(n), np.zeros(edges)])
    if problem.wanted is not None:
        constraints.append(optimize.LinearConstraint(whole[None], problem.wanted, problem.wanted))
    unit = np.abs(problem.linear).max() or 1.0  # HiGHS's tolerances are absolute
    found = optimize.milp(
        np.concatenate([-problem.linear, cost]) / unit,
        constraints=constraints,
        integrality=whole,
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    return found.x[:n] > 0.5, float(-found.mip_dual_bound * unit)


def _checked(unary: ArrayLike, weights: sparse.sparray, beta: float) -> tuple[np.ndarray, sparse.csr_array]:
    u = np.asarray(unary, dtype=np.float64)
    if u.ndim != 1 or not len(u):
        raise DataError(f"unary: shape {u.shape} is not (N,), one number a node")
    if not np.isfinite(u).all():
        raise DataError(f"unary: number {np.flatnonzero(~np.isfinite(u))[0]} is not finite")
    if not 0 <= beta < np.inf:
        raise ConfigError(f"beta: {beta} is not a finite number of at least 0")
    if np.shape(weights) != (len(u), len(u)):
        raise DataError(f"weights: shape {np.shape(weights)} is not {(len(u), len(u))}, as {len(u)} unaries want")
    w = sparse.csr_array(weights, dtype=np.float64, copy=True)
    w.sum_duplicates()
    wrong = ~(np.isfinite(w.data) & (w.data >= 0))
    if wrong.any():
        raise DataError(f"weights: {w.data[wrong][0]} is among them, but they are finite and at least 0")
    if w.diagonal().any():
        raise DataError(f"weights: {w.diagonal().max()} is on the diagonal, which has to be zero")
    if len(w.data) and abs(w - w.T).max() > 1e-9 * w.data.max():
        raise DataError(f"weights: not symmetric, by up to {abs(w - w.T).max():.3g}")
    return u, sparse.csr_array((w + w.T) / 2)


def _faces(embeddings: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings at length one (N,D) float32, and the labels (N,)."""
    faces, names = np.asarray(embeddings, dtype=np.float32), np.asarray(labels)
    if faces.ndim != 2 or not faces.size:
        raise DataError(f"embeddings: shape {faces.shape} is not (N,D), one face a row")
    if names.shape != (len(faces),):
        raise DataError(f"labels: shape {names.shape} is not ({len(faces)},), one an embedding")
    good = np.isfinite(faces).all(1) & faces.any(1)
    if not good.all():
        raise DataError(f"embeddings: row {np.flatnonzero(~good)[0]} is zero or not finite")
    return _unit(faces), names


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
