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


def objective(a: np.ndarray, u: np.ndarray, w: sparse.csr_array, beta: float, sparsity: float = 0.0) -> float:
    """The definition, edge by edge."""
    edges = sum(w[i, j] * a[i] * a[j] for i, j in itertools.combinations(range(len(u)), 2))
    return float(u @ a - beta * edges - sparsity * np.abs(a).sum())


def brute(u: np.ndarray, w: sparse.csr_array, beta: float, sparsity: float = 0.0, count: int | None = None) -> float:
    """The best of all 2^N choices."""
    every = np.array(list(itertools.product([0.0, 1.0], repeat=len(u))))
    if count is not None:
        every = every[every.sum(1) == count]
    return float((every @ (u - sparsity) - beta / 2 * ((every @ w.toarray()) * every).sum(1)).max())


def problem(u: np.ndarray, w: sparse.csr_array, beta: float, wanted: int | None = None) -> selection._Problem:
    upper = sparse.triu(w, format="coo")
    return selection._Problem(u, w * beta, (upper.row, upper.col, beta * upper.data), wanted)


@pytest.mark.parametrize("seed", range(60))
def test_small_graphs_are_solved_exactly(seed):
    u, w = drawn(seed)
    beta, sparsity, count = BETAS[seed % 6], (0.0, 0.1, 0.4)[seed % 3], 1 + seed % len(u)
    for found, best, price in (
        (selection.select(u, w, beta, sparsity), brute(u, w, beta, sparsity), sparsity),
        (selection.select_count(u, w, count, beta), brute(u, w, beta, count=count), 0.0),
    ):
        assert found.chosen.dtype == bool
        assert found.objective == pytest.approx(objective(found.chosen, u, w, beta, price), abs=1e-9)
        assert found.objective == pytest.approx(best, abs=1e-6)
        assert 0 <= found.gap <= 1e-6 * max(1, beta)
        assert found.bound >= best - 1e-9
    assert found.chosen.sum() == count


def test_beyond_the_exact_size_the_bound_holds_and_most_answers_are_the_best(monkeypatch):
    monkeypatch.setattr(selection, "EXACT", 0)
    reached, proved = [], 0
    for seed in range(150):
        u, w = drawn(seed)
        beta, sparsity, count = BETAS[seed % 6], (0.0, 0.1, 0.4)[seed % 3], 1 + seed % len(u)
        for found, best in (
            (selection.select(u, w, beta, sparsity), brute(u, w, beta, sparsity)),
            (selection.select_count(u, w, count, beta), brute(u, w, beta, count=count)),
        ):
            rounding = 1e-9 * max(1, abs(best))
            assert found.objective <= best + rounding
            assert found.bound >= best - rounding
            if found.gap <= rounding:
                proved += 1
                assert found.objective == pytest.approx(best, abs=2 * rounding)
            reached.append(found.objective >= best - rounding)
        assert found.chosen.sum() == count
    assert proved > 100
    assert np.mean(reached) > 0.88


@pytest.mark.parametrize("seed", range(12))
def test_each_bound_holds_alone_and_whatever_the_iterate(seed):
    u, w = drawn(seed, n=9)
    beta, count = BETAS[1 + seed % 5], 1 + seed % 9
    best, held = brute(u, w, beta), brute(u, w, beta, count=count)
    for steps in (1, 2, 5, 1000):
        assert selection._quadratic(problem(u, w, beta), steps)[1] >= best - 1e-9
        assert selection._quadratic(problem(u, w, beta, count), steps)[1] >= held - 1e-9
    assert selection._linear_bound(u, problem(u, w, beta).pairs) >= best - 1e-9
    for price in (-1.0, 0.0, 0.3, 0.9):
        bound = selection._linear_bound(u - price, problem(u, w, beta).pairs) + price * count
        assert bound >= held - 1e-9


@pytest.mark.parametrize("seed", range(8))
def test_linear_bound_is_the_optimum_of_the_linear_program(seed):
    u, w = drawn(seed, n=15)
    u, beta = u - 0.2, BETAS[1 + seed % 5]
    i, j, cost = problem(u, w, beta).pairs
    sides = np.zeros((len(i), len(u) + len(i)))
    rows = np.arange(len(i))
    sides[rows, i] = sides[rows, j] = 1
    sides[rows, len(u) + rows] = -1
    program = optimize.linprog(np.concatenate([-u, cost]), sides, np.ones(len(i)), bounds=(0, 1))
    assert selection._linear_bound(u, (i, j, cost)) == pytest.approx(-program.fun, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [None, 7])
def test_relaxed_point_is_the_optimum_of_the_concave_program(seed, count):
    u, w = drawn(seed, n=15, density=0.5)
    held = problem(u, w, 0.4, count)
    relaxed, bound = selection._quadratic(held)
    shift = selection._shift(held.cost)
    matrix = held.cost.toarray() + np.diag(shift)
    other = optimize.minimize(
        lambda a: a @ matrix @ a / 2 - (u + shift / 2) @ a,
        np.full(15, 0.4),
        jac=lambda a: matrix @ a - (u + shift / 2),
        bounds=[(0, 1)] * 15,
        constraints=[{"type": "eq", "fun": lambda a: a.sum() - count}] if count else [],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    assert bound == pytest.approx(-other.fun, rel=2e-5)
    assert relaxed == pytest.approx(other.x, abs=0.02)
    assert 0 <= relaxed.min() <= relaxed.max() <= 1
    if count:
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


def test_rounding_keeps_the_value_of_the_relaxed_point():
    for seed in range(20):
        u, w = drawn(seed, n=80, density=0.2)
        held = problem(u - 0.1, w, BETAS[1 + seed % 4])
        for start in (selection._quadratic(held)[0], np.random.default_rng(seed).random(80)):
            chosen, _ = selection._round(held, start)
            a = chosen.astype(float)
            assert held.value(a) >= held.value(start) - 1e-9
            marginal = held.linear - held.cost @ a
            assert np.where(chosen, marginal, -marginal).min() >= -1e-9, "no single change pays"


@pytest.mark.parametrize("n", [20, 300])
def test_order_of_the_nodes_does_not_matter(n):
    u, w = drawn(3, n=n, density=0.1)
    order = np.random.default_rng(0).permutation(n)
    mixed = sparse.csr_array(w[order][:, order])
    for a, b in (
        (selection.select(u, w, 0.3, 0.1), selection.select(u[order], mixed, 0.3, 0.1)),
        (selection.select_count(u, w, n // 3, 0.3), selection.select_count(u[order], mixed, n // 3, 0.3)),
    ):
        assert (a.chosen[order] == b.chosen).all()
        assert (a.relaxed[order] == b.relaxed).all()
        assert (a.objective, a.bound, a.price) == (b.objective, b.bound, b.price)


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
    found = selection.select(u, w, beta, 0.35)
    assert (found.chosen == (u > 0.35)).all()
    assert found.gap == pytest.approx(0, abs=1e-9)
    found = selection.select_count(u, w, n // 4, beta)
    assert set(np.flatnonzero(found.chosen)) == set(np.argsort(-u)[: n // 4])
    assert found.gap == pytest.approx(0, abs=1e-9)


def test_equals_are_settled_by_their_place():
    found = selection.select_count(np.full(50, 0.5), sparse.csr_array((50, 50)), 20, 1.0)
    assert found.chosen.tolist() == [True] * 20 + [False] * 30


def test_a_higher_price_never_chooses_more():
    for seed in range(8):
        u, w = drawn(seed, n=12)
        counts = [selection.select(u, w, 0.4, price).chosen.sum() for price in np.linspace(0, 1, 8)]
        assert counts == sorted(counts, reverse=True)
    u, w = drawn(0, n=300, density=0.05)
    bounds = [selection.select(u, w, 0.4, price).bound for price in np.linspace(0, 1, 8)]
    assert np.all(np.diff(bounds) <= 1e-4 * bounds[0])
    assert bounds[-1] == pytest.approx(0)


def test_a_choice_at_a_price_is_within_the_bound_for_its_count():
    u, w = drawn(2, n=300, density=0.05)
    free = selection.select(u, w, 0.2, 0.3)
    held = selection.select_count(u, w, int(free.chosen.sum()), 0.2)
    assert free.objective + 0.3 * free.chosen.sum() <= held.bound + 1e-9
    assert held.relative < 0.2
    assert held.price == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("n", [8, 60])
def test_of_two_identical_faces_one_is_chosen(n):
    """Twins repeat each other wholly and share a neighbour with the next pair."""
    rng = np.random.default_rng(0)
    u, w = np.repeat(rng.uniform(0.4, 1, n // 2), 2), np.zeros((n, n))
    for k in range(0, n, 2):
        w[k, k + 1] = w[k + 1, k] = 1
        w[k, (k + 2) % n] = w[(k + 2) % n, k] = 0.01
    for found in (
        selection.select(u, sparse.csr_array(w), 5, 0.1),
        selection.select_count(u, sparse.csr_array(w), n // 2, 5),
    ):
        assert (found.chosen.reshape(-1, 2).sum(1) == 1).all()


def test_all_nodes_and_one_node():
    u, w = drawn(4, n=100, density=0.1)
    every = selection.select_count(u, w, 100, 0.5)
    assert every.chosen.all()
    assert every.gap == pytest.approx(0, abs=1e-6 * abs(every.bound))
    one = selection.select_count(u, w, 1, 0.5)
    assert np.flatnonzero(one.chosen) == [u.argmax()]
    assert selection.select([0.5], sparse.csr_array((1, 1)), 1, 0.1).chosen.all()
    assert not selection.select([0.5], sparse.csr_array((1, 1)), 1, 0.5).chosen.any()


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
        (lambda: selection.unaries(X[0], Y), DataError, r"embeddings: shape \(16,\) is not \(N,D\)"),
        (lambda: selection.unaries(X, Y[:-1]), DataError, r"labels: shape \(47,\) is not \(48,\)"),
        (
            lambda: selection.margins(np.where(X[3, 0] == X, np.nan, X), Y),
            DataError,
            "embeddings: row 3 is zero or not",
        ),
        (lambda: selection.graph(X * (np.arange(48) != 5)[:, None], Y), DataError, "embeddings: row 5 is zero or not"),
        (lambda: selection.unaries(X, np.full(48, 7)), DataError, "labels: all are 7"),
        (lambda: selection.unaries(X, np.where(np.arange(48) == 2, 99, Y)), DataError, "labels: class 99 has one face"),
        (lambda: selection.graph(X, Y, 48), ConfigError, "k: 48 neighbours, but 48 faces"),
        (lambda: selection.graph(X, Y, 0), ConfigError, "k: 0 neighbours"),
        (lambda: selection.graph(X, Y, 3, -1), ConfigError, "confusion: -1"),
        (lambda: selection.select(U[None], W, 1, 0), DataError, r"unary: shape \(1, 5\)"),
        (lambda: selection.select([], W, 1, 0), DataError, r"unary: shape \(0,\)"),
        (lambda: selection.select([0, 1, np.nan, 1, 1], W, 1, 0), DataError, "unary: number 2 is not finite"),
        (lambda: selection.select(U[:4], W, 1, 0), DataError, r"weights: shape \(5, 5\) is not \(4, 4\)"),
        (lambda: selection.select(U, -W, 1, 0), DataError, r"weights: -0\.\d+ is among them"),
        (lambda: selection.select(U, W * np.nan, 1, 0), DataError, "weights: nan is among them"),
        (lambda: selection.select(U, LOOP, 1, 0), DataError, "weights: 1.0 is on the diagonal"),
        (lambda: selection.select(U, sparse.csr_array(BENT), 1, 0), DataError, "weights: not symmetric, by up to 0.2"),
        (lambda: selection.select(U, W, -0.5, 0), ConfigError, "beta: -0.5 is not"),
        (lambda: selection.select(U, W, np.nan, 0), ConfigError, "beta: nan is not"),
        (lambda: selection.select(U, W, 1, -0.1), ConfigError, "sparsity: -0.1 is not"),
        (lambda: selection.select(U, W, 1, np.inf), ConfigError, "sparsity: inf is not"),
        (lambda: selection.select_count(U, W, 0, 1), ConfigError, "count: 0 is not a whole number from 1 to 5"),
        (lambda: selection.select_count(U, W, 6, 1), ConfigError, "count: 6 is not a whole number from 1 to 5"),
        (lambda: selection.select_count(U, W, 2.5, 1), ConfigError, "count: 2.5 is not a whole number"),
        (lambda: selection.select_count([], W, 1, 1), DataError, r"unary: shape \(0,\)"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
