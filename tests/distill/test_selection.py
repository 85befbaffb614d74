"""The selection of features: optimal where it says so, within its bounds always."""

import itertools

import numpy as np
import pytest
from scipy import optimize, sparse

from lrkd.distill import selection
from lrkd.errors import ConfigError, DataError

BETAS = (0.0, 0.05, 0.2, 0.5, 2.0, 50.0)


def drawn(seed: int, n: int | None = None, density: float | None = None) -> tuple[np.ndarray, sparse.csr_array]:
    """Unaries in [0,1] and a random graph with weights in [0,1]."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 11)) if n is None else n
    there = rng.random((n, n)) < (rng.random() if density is None else density)
    upper = np.triu(rng.random((n, n)) * there, 1)
    return rng.random(n), sparse.csr_array(upper + upper.T)


def objective(a: np.ndarray, u: np.ndarray, w: sparse.csr_array, beta: float) -> float:
    """The definition, edge by edge."""
    return float(u @ a - beta * sum(w[i, j] * a[i] * a[j] for i, j in itertools.combinations(range(len(u)), 2)))


def brute(u: np.ndarray, w: sparse.csr_array, beta: float, count: int) -> float:
    """The best of all choices of that many nodes."""
    every = np.array(list(itertools.product([0.0, 1.0], repeat=len(u))))
    every = every[every.sum(1) == count]
    return float((every @ u - beta / 2 * ((every @ w.toarray()) * every).sum(1)).max())


def test_the_bound_holds_and_most_answers_are_the_best():
    """Against every choice there is, on graphs of up to ten nodes."""
    reached = []
    for seed in range(200):
        u, w = drawn(seed)
        beta, count = BETAS[seed % 6], 1 + seed % len(u)
        found, best = selection.select_count(u, w, count, beta), brute(u, w, beta, count)
        rounding = 1e-9 * max(1, abs(best))
        assert found.chosen.dtype == bool
        assert found.chosen.sum() == count
        assert found.objective == pytest.approx(objective(found.chosen, u, w, beta), abs=rounding)
        assert found.objective <= best + rounding
        assert found.bound >= best - rounding
        assert found.gap >= 0
        reached.append(found.objective >= best - rounding)
    assert np.mean(reached) > 0.88


@pytest.mark.parametrize("seed", range(12))
def test_the_bound_holds_whatever_the_iterate(seed):
    u, w = drawn(seed, n=9)
    beta, count = BETAS[1 + seed % 5], 1 + seed % 9
    best = brute(u, w, beta, count)
    for steps in (1, 2, 5, 1000):
        assert selection._relax(u, w * beta, count, steps)[1] >= best - 1e-9


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 7])
def test_relaxed_point_is_the_optimum_of_the_concave_program(seed, count):
    u, w = drawn(seed, n=15, density=0.5)
    relaxed, bound = selection._relax(u, w * 0.4, count)
    shift = selection._shift(w * 0.4)
    matrix = 0.4 * w.toarray() + np.diag(shift)
    other = optimize.minimize(
        lambda a: a @ matrix @ a / 2 - (u + shift / 2) @ a,
        np.full(15, 0.4),
        jac=lambda a: matrix @ a - (u + shift / 2),
        bounds=[(0, 1)] * 15,
        constraints=[{"type": "eq", "fun": lambda a: a.sum() - count}],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    assert bound == pytest.approx(-other.fun, rel=2e-5)
    assert relaxed == pytest.approx(other.x, abs=0.02)
    assert 0 <= relaxed.min() <= relaxed.max() <= 1
    assert relaxed.sum() == pytest.approx(count)


def blocks(*sizes: int) -> sparse.csr_array:
    return sparse.csr_array(sparse.block_diag([np.ones((s, s)) - np.eye(s) for s in sizes]))


def star(leaves: int) -> sparse.csr_array:
    dense = np.zeros((leaves + 1, leaves + 1))
    dense[0, 1:] = dense[1:, 0] = 1
    return sparse.csr_array(dense)


@pytest.mark.parametrize(
    "cost",
    [
        blocks(2),
        blocks(2, 2, 2, 1),
        blocks(10, 3, 2),
        star(30),
        sparse.csr_array(sparse.block_diag([star(100).toarray(), blocks(8).toarray()])),
        sparse.csr_array((5, 5)),
        *(drawn(seed, n=700, density=0.02)[1] * 3 for seed in range(3)),
    ],
)
def test_shift_leaves_no_negative_eigenvalue_and_is_not_larger_than_it_must(cost):
    shift = selection._shift(cost)
    lowest = np.linalg.eigvalsh(cost.toarray() + np.diag(shift))[0]
    assert lowest >= -1e-9
    if cost.nnz:
        assert np.linalg.eigvalsh(cost.toarray() + np.diag(shift) * 0.95)[0] < 0


def test_no_swap_of_two_nodes_without_an_edge_pays():
    for seed in range(20):
        u, w = drawn(seed, n=60, density=0.2)
        beta, count = BETAS[1 + seed % 4], 10 + seed
        for start in (selection._relax(u, w * beta, count)[0], np.random.default_rng(seed).random(60)):
            a, price = selection._round(u, w * beta, start, count)
            assert set(a) <= {0, 1}
            assert a.sum() == count
            marginal = u - beta * (w @ a)
            inside, outside = np.flatnonzero(a > 0), np.flatnonzero(a == 0)
            assert min(marginal[inside].min(), marginal[outside].max()) <= price
            free = w[inside][:, outside].toarray() == 0
            pays = marginal[outside][None] - marginal[inside][:, None] > 1e-9
            assert not (free & pays).any()


@pytest.mark.parametrize("n", [20, 300])
def test_order_of_the_nodes_does_not_matter(n):
    u, w = drawn(3, n=n, density=0.1)
    order = np.random.default_rng(0).permutation(n)
    mixed = sparse.csr_array(w[order][:, order])
    a, b = selection.select_count(u, w, n // 3, 0.3), selection.select_count(u[order], mixed, n // 3, 0.3)
    assert (a.chosen[order] == b.chosen).all()
    assert (a.relaxed[order] == b.relaxed).all()
    assert a[2:] == b[2:]


def test_same_twice_and_arguments_untouched():
    u, w = drawn(5, n=200, density=0.1)
    before = u.copy(), w.copy()
    a, b = (selection.select_count(u, w, 50, 0.2) for _ in range(2))
    assert (a.chosen == b.chosen).all()
    assert a[2:] == b[2:]
    assert (u == before[0]).all()
    assert abs(w - before[1]).max() == 0


@pytest.mark.parametrize("n", [12, 400])
@pytest.mark.parametrize("free", ["beta", "weights"])
def test_without_a_penalty_the_top_unaries_are_chosen(n, free):
    u, w = drawn(1, n=n)
    beta = 0.0 if free == "beta" else 3.0
    w = w if free == "beta" else sparse.csr_array((n, n))
    found = selection.select_count(u, w, n // 4, beta)
    assert set(np.flatnonzero(found.chosen)) == set(np.argsort(-u)[: n // 4])
    assert found.gap == pytest.approx(0, abs=1e-9)


def test_equals_are_settled_by_their_place():
    found = selection.select_count(np.full(50, 0.5), sparse.csr_array((50, 50)), 20, 1.0)
    assert found.chosen.tolist() == [True] * 20 + [False] * 30


@pytest.mark.parametrize("n", [8, 60])
def test_of_two_identical_faces_one_is_chosen(n):
    """Twins repeat each other wholly and share a neighbour with the next pair."""
    rng = np.random.default_rng(0)
    u, w = np.repeat(rng.uniform(0.4, 1, n // 2), 2), np.zeros((n, n))
    for k in range(0, n, 2):
        w[k, k + 1] = w[k + 1, k] = 1
        w[k, (k + 2) % n] = w[(k + 2) % n, k] = 0.01
    found = selection.select_count(u, sparse.csr_array(w), n // 2, 5)
    assert (found.chosen.reshape(-1, 2).sum(1) == 1).all()


def test_all_nodes_and_one_node():
    u, w = drawn(4, n=100, density=0.1)
    every = selection.select_count(u, w, 100, 0.5)
    assert every.chosen.all()
    assert every.gap == pytest.approx(0, abs=1e-6 * abs(every.bound))
    one = selection.select_count(u, w, 1, 0.5)
    assert np.flatnonzero(one.chosen) == [u.argmax()]


@pytest.mark.parametrize(
    ("value", "bound", "share"),
    [(9.0, 10.0, 0.1), (-3.0, -2.0, 0.5), (4.0, 4.0, 0.0), (0.0, 0.0, 0.0), (-1.0, 0.0, np.inf)],
)
def test_gap_and_its_share(value, bound, share):
    found = selection.Selection(np.ones(1, bool), np.ones(1), value, bound, 0.0)
    assert found.gap == bound - value
    assert found.relative == share


# Faces


def people(seed: int = 0, classes: int = 8, faces: int = 6, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes) * 3, faces))
    centres = rng.standard_normal((classes, size))
    return (centres[labels // 3] + 0.6 * rng.standard_normal((len(labels), size))).astype(np.float32), labels


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_margins_are_what_their_definition_says():
    x, y = people()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    wanted = []
    for i, name in enumerate(y):
        own = unit[(y == name) & (np.arange(len(y)) != i)].mean(0)
        wanted.append(cosine(x[i], own) - max(cosine(x[i], unit[y == other].mean(0)) for other in set(y) - {name}))
    assert selection.margins(x, y) == pytest.approx(wanted, abs=1e-5)
    assert selection.unaries(x, y) == pytest.approx([np.mean(np.array(wanted) <= m) for m in wanted])


def test_margins_do_not_change_with_length_order_or_names():
    x, y = people()
    found, order = selection.margins(x, y), np.random.default_rng(0).permutation(len(y))
    assert selection.margins(x * np.linspace(0.1, 9, len(y))[:, None], y) == pytest.approx(found, abs=1e-5)
    assert selection.margins(x[order], y[order]) == pytest.approx(found[order], abs=1e-5)
    assert selection.margins(x, np.array([f"person {k}" for k in y])) == pytest.approx(found, abs=1e-5)


def test_a_wrong_label_is_the_least_informative():
    x, y = people(classes=10, faces=20)
    wrong = y.copy()
    wrong[7] = (y[7] + 3) % 30
    assert selection.unaries(x, wrong)[7] <= 1 / len(y)
    assert selection.unaries(x, y)[7] > 0.01


def test_graph_is_the_nearest_neighbours():
    x, y = people()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    close = unit @ unit.T
    np.fill_diagonal(close, -np.inf)
    near = np.zeros(close.shape, bool)
    np.put_along_axis(near, np.argsort(-close, axis=1)[:, :4], True, axis=1)
    wanted = np.where(near | near.T, np.maximum(close, 0), 0)
    found = selection.graph(x, y, 4)
    assert found.toarray() == pytest.approx(wanted, abs=1e-5)
    assert abs(found - found.T).max() == 0
    assert not found.diagonal().any()
    same = y[:, None] == y
    assert (wanted * ~same).any()
    doubled = selection.graph(x, y, 4, confusion=2).toarray()
    assert doubled == pytest.approx(wanted * np.where(same, 1, 2), abs=1e-5)
    assert selection.graph(x, y, 4, confusion=0).toarray() == pytest.approx(wanted * same, abs=1e-5)


def test_copies_of_a_face_repeat_each_other_wholly():
    x, y = people()
    x[y == 0] = x[y == 0][0]
    found = selection.graph(x, y, 5).toarray()[np.ix_(y == 0, y == 0)]
    assert found == pytest.approx(1 - np.eye(6), abs=1e-5)


def test_faces_to_choice():
    x, y = people(classes=20, faces=10)
    x[1] = x[np.flatnonzero(y == y[1])[-1]] * 1.001  # all but a copy
    u, w = selection.unaries(x, y), selection.graph(x, y)
    found = selection.select_count(u, w, 100, 0.05)
    top = selection.select_count(u, w, 100, 0.0)
    assert found.chosen.sum() == top.chosen.sum() == 100
    assert (found.chosen != top.chosen).any()
    assert found.objective > objective(top.chosen, u, w, 0.05)
    assert found.relative < 0.05


# What is refused

X, Y = people()
U, W = drawn(0, n=5)
LOOP = W + sparse.eye_array(5)
BENT = W.toarray() + np.triu(np.full((5, 5), 0.2), 1)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: selection.unaries(X[0], Y), DataError, r"embeddings: expected \(N,D\), .* got shape \(16,\)"),
        (
            lambda: selection.unaries(X, Y[:-1]),
            DataError,
            r"labels: expected shape \(48,\), one an embedding, got \(47,\)",
        ),
        (
            lambda: selection.margins(np.where(X[3, 0] == X, np.nan, X), Y),
            DataError,
            "embeddings: expected finite rows .* at row 3",
        ),
        (
            lambda: selection.graph(X * (np.arange(48) != 5)[:, None], Y),
            DataError,
            "embeddings: expected finite rows .* at row 5",
        ),
        (lambda: selection.unaries(X, np.full(48, 7)), DataError, "labels: expected two classes at least, got 7 alone"),
        (
            lambda: selection.unaries(X, np.where(np.arange(48) == 2, 99, Y)),
            DataError,
            "labels: expected two faces a class at least, got one of class 99",
        ),
        (lambda: selection.graph(X, Y, 48), ConfigError, "k: expected 1 to 47 neighbours of 48 faces, got 48"),
        (lambda: selection.graph(X, Y, 0), ConfigError, "k: expected .* got 0"),
        (lambda: selection.graph(X, Y, 3, -1), ConfigError, "confusion: expected .* got -1"),
        (lambda: selection.select_count(U[None], W, 1, 1), DataError, r"unary: expected .* got shape \(1, 5\)"),
        (lambda: selection.select_count([], W, 1, 1), DataError, r"unary: expected .* got shape \(0,\)"),
        (
            lambda: selection.select_count([0, 1, np.nan, 1, 1], W, 1, 1),
            DataError,
            "unary: expected finite numbers, got nan at 2",
        ),
        (
            lambda: selection.select_count(U[:4], W, 1, 1),
            DataError,
            r"weights: expected shape \(4, 4\) .* got \(5, 5\)",
        ),
        (lambda: selection.select_count(U, -W, 1, 1), DataError, r"weights: expected .* got -0\.\d+"),
        (lambda: selection.select_count(U, W * np.nan, 1, 1), DataError, "weights: expected .* got nan"),
        (lambda: selection.select_count(U, LOOP, 1, 1), DataError, "weights: expected zeros on the diagonal, got 1.0"),
        (
            lambda: selection.select_count(U, sparse.csr_array(BENT), 1, 1),
            DataError,
            "weights: expected a symmetric .* up to 0.2",
        ),
        (lambda: selection.select_count(U, W, 1, -0.5), ConfigError, "beta: expected .* got -0.5"),
        (lambda: selection.select_count(U, W, 1, np.nan), ConfigError, "beta: expected .* got nan"),
        (
            lambda: selection.select_count(U, W, 0, 1),
            ConfigError,
            "count: expected a whole number from 1 to 5, .* got 0",
        ),
        (
            lambda: selection.select_count(U, W, 6, 1),
            ConfigError,
            "count: expected a whole number from 1 to 5, .* got 6",
        ),
        (lambda: selection.select_count(U, W, 2.5, 1), ConfigError, "count: expected a whole number .* got 2.5"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
