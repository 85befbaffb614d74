"""A method in a user's own file: found, trained as written, another run when the file changes, and refused by name."""

import json
import pickle
import sys
from dataclasses import replace

import pytest
import torch
import toys

from lrkd.distill import methods
from lrkd.errors import ConfigError
from lrkd.training.step import Teacher

LOSS = """
import torch
from lrkd.distill.methods import METHODS, Method
from lrkd.distill.terms import Term, embedding


def half_squared(student, teacher):
    return (student.embedding - teacher.embedding).square().sum(1).mean() / 2


TERM = Term("half", 2.0, half_squared)
TERMS = [TERM, embedding(weight=3.0)]
MINE = Method("mine", "half the squared distance", TERM, source="a test")
"""


@pytest.fixture
def write(tmp_path):
    """Write a file; the modules that a test loads are forgotten afterwards."""
    before = set(sys.modules)

    def make(text: str, name: str = "mine_own.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    yield make
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_method_a_term_and_a_list_of_terms_are_methods(write):
    path = write(LOSS)
    mine, term, terms = (methods.get(f"{path}:{name}") for name in ("MINE", "TERM", "TERMS"))
    assert (mine.name, mine.title) == ("mine", "half the squared distance")
    assert mine.terms == term.terms == terms.terms[:1]
    assert (term.name, terms.name) == ("TERM", "TERMS")
    assert [one.weight for one in terms.terms] == [2.0, 3.0]
    assert pickle.loads(pickle.dumps(mine)) == mine


def test_its_description_has_the_digest_of_the_file(write):
    told = [methods.get(f"{write(text)}:MINE").describe() for text in (LOSS, LOSS + "# a comment\n", LOSS)]
    assert told[0] == told[2] != told[1]
    assert {key for key in told[0] if told[0][key] != told[1][key]} == {"terms"}
    json.dumps(told)


def test_it_trains_as_the_same_terms_written_here_do(write):
    mine = methods.get(f"{write(LOSS)}:MINE")
    same = methods.METHODS["embedding-l2"].terms[0]  # the mean of 2 half squares over D numbers
    weights = []
    for terms in (mine.terms, (replace(same, weight=toys.pair(1)[0].embedding * 1.0),)):
        network, head = toys.pair(1)
        toys.fit(network, head, toys.faces(), schedule=toys.Schedule(1, batch=16), options=toys.OPTIONS,
            teacher=Teacher(*toys.pair(9)), terms=terms, progress=False)  # fmt: skip
        weights.append(toys.state(network, head))
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("MINE = 3", r"mine_own.py:MINE: expected a Method, a Term or a list of Terms, got 3 \(int\)"),
        ("MINE = []", r"got a list of nothing"),
        ("MINE = [1, 'a']", r"got a list of int, str"),
        (
            "def MINE(student, teacher):\n    return 0",
            r"got <function MINE .*\(function\); `MINE = Term\('mine', 1.0, your_loss\)` makes",
        ),
        ("class MINE:\n    pass", r"got the class MINE"),
        ("from lrkd.distill.methods import METHODS\nMINE = METHODS['fskd']", r"expected a name of its own, got 'fskd'"),
        (
            "from lrkd.distill.terms import Term\nMINE = Term('x', 1.0, lambda s, t: 0)",
            r"mine_own.py:MINE: the function of the term 'x': expected a function written with def .* got <lambda>",
        ),
        (
            "from lrkd.distill.methods import Method\nMINE = Method('x', 'x', (1,))",
            r"mine_own.py, line 2: ConfigError: method 'x': expected terms of class Term, got int",
        ),
        (
            "from lrkd.distill.methods import Method\nMINE = Method('x', 'x', teacher='best')",
            r"method 'x': expected a teacher of none, trained, .* got 'best'",
        ),
        ("OTHER = 3", r"has no 'MINE'; it has OTHER"),
    ],
)
def test_anything_else_is_refused_with_what_would_be_right(write, text, match):
    with pytest.raises(ConfigError, match=match):
        methods.get(f"{write(text)}:MINE")
