"""What a run computes is in its name: functions that compute different things have different names, or are refused."""

import pickle
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import toys
from torch import Tensor
from torch.nn import functional as F

from lrkd.distill import terms as distill_terms
from lrkd.distill.distances import cosine, euclidean, lp, on_unit, smooth_l1
from lrkd.distill.identifiers import described
from lrkd.distill.methods import METHODS, weighed
from lrkd.distill.terms import Term
from lrkd.errors import ConfigError
from lrkd.training.schedule import Schedule
from lrkd.training.step import Teacher


def taxi(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    return scale * (a - b).abs().flatten(1).sum(1)


@dataclass(frozen=True)
class Power:
    p: float

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().pow(self.p).flatten(1).sum(1)


def pulled(student, teacher, by: float = 1.0) -> Tensor:
    return by * (student.embedding - teacher.embedding).square().mean()


def written(source: str, name: str = "mine", module: str = "theirs"):
    """A function of a user's module, of which no file is left."""
    made: dict = {"__name__": module}
    exec(source, made)
    return made[name]


def test_distances_of_lrkd_are_named_as_in_committed_runs():
    named = {cosine: "cosine", smooth_l1: "smooth_l1", lp(2): "lp(2)", lp(1.5): "lp(1.5)"}
    named |= {on_unit(euclidean): "on_unit(euclidean)", on_unit(lp(3)): "on_unit(lp(3))"}
    assert {distance: described(distance) for distance in named} == named


def test_what_differs_in_a_parameter_or_in_its_source_has_another_name():
    functions = [
        lp(2),
        lp(2.0000001),
        taxi,
        partial(taxi, scale=2.0),
        partial(taxi, scale=3.0),
        Power(2.0),
        Power(3.0),
        on_unit(taxi),
        on_unit(Power(2.0)),
        written("def mine(a, b): return a - b"),
        written("def mine(a, b): return b - a"),
        written("def mine(a, b): return a - b", module="others"),
        written("k = 1\ndef mine(a, b, k=k): return a - b"),
        written("k = 2\ndef mine(a, b, k=k): return a - b"),
        written("def mine(a, b): return sum(x - 1 for x in a)"),
        written("def mine(a, b): return sum(x - 2 for x in a)"),
        F.smooth_l1_loss,
        torch.dist,
    ]
    named = [described(function) for function in functions]
    assert len(set(named)) == len(named)
    assert named == [described(function) for function in functions], "the same at every call"
    assert described(written("def mine(a, b): return a - b")) == described(written("\n\ndef mine(a, b): return a - b"))
    assert all(" at 0x" not in name for name in named)


def test_a_function_keeps_its_name_in_another_process():
    for function in (taxi, Power(2.0), partial(taxi, scale=2.0)):
        assert described(pickle.loads(pickle.dumps(function))) == described(function)


def local():
    def mine(a: Tensor, b: Tensor) -> Tensor:
        return taxi(a, b)

    return mine


@pytest.mark.parametrize("distance", [lambda a, b: taxi(a, b), local()], ids=["lambda", "local"])
def test_a_lambda_is_refused_wherever_a_term_is_described(distance, tmp_path):
    for function in (distance, on_unit(distance), partial(distance), partial(taxi, scale=distance)):
        with pytest.raises(
            ConfigError, match=r"expected a function written with def at the top of a module, got .*(lambda>|<locals>)"
        ):
            described(function)
    makers = (
        distill_terms.feature,
        distill_terms.cross,
        distill_terms.attention,
        distill_terms.embedding,
        distill_terms.regression,
    )
    terms = [*(make(distance) for make in makers), Term("mine", 1.0, lambda s, t: pulled(s, t))]
    for term in terms:
        with pytest.raises(ConfigError, match=r"lambda>|<locals>"):
            term.describe()
    method = replace(METHODS["fskd"], terms=terms[:1])
    with pytest.raises(ConfigError, match=r"distance: expected .* got .*(lambda>|<locals>).* of test_identifiers"):
        method.describe()
    network, head = toys.pair()
    more = {"schedule": Schedule(1, 16), "teacher": Teacher(*toys.pair(9)), "terms": terms[:1], "progress": False}
    with pytest.raises(ConfigError, match="expected a function written with def"):
        toys.fit(network, head, toys.faces(), directory=tmp_path, **more)
    assert list(tmp_path.iterdir()) == []
    toys.fit(network, head, toys.faces(), **more)  # what leaves nothing on disk can be mixed up with nothing


def test_a_parameter_that_is_no_plain_value_is_refused():
    with pytest.raises(ConfigError, match=r"parameter: expected .* got a Tensor"):
        described(partial(taxi, scale=torch.ones(3)))


def test_terms_of_one_name_with_other_functions_are_described_otherwise():
    terms = [
        Term("mine", 1.0, pulled),
        Term("mine", 1.0, partial(pulled, by=2.0)),
        Term("mine", 1.0, partial(pulled, by=3.0)),
        Term("mine", 1.0, written("def mine(s, t): return s.embedding.mean()")),
        Term("mine", 1.0, written("def mine(s, t): return t.embedding.mean()")),
        Term("embedding", 1.0, pulled),
        distill_terms.embedding(cosine, 1.0),
        distill_terms.embedding(taxi, 1.0),
        distill_terms.embedding(partial(taxi, scale=2.0), 1.0),
        replace(distill_terms.regression(cosine, 1.0), name="embedding"),
    ]
    told = [str(term.describe()) for term in terms]
    assert len(set(told)) == len(told)
    assert all(a != b for k, a in enumerate(terms) for b in terms[:k])


def test_terms_of_lrkd_are_described_by_their_parameters_alone():
    for method in METHODS.values():
        for term in method.terms:
            assert "function" not in term.describe(), term.name
            assert term == pickle.loads(pickle.dumps(term))
            assert hash(term) == hash(pickle.loads(pickle.dumps(term)))
    assert distill_terms.feature(lp(2), 8.0).describe() == weighed("lp(2)", 8.0).terms[0].describe()
    assert distill_terms.attention().describe() == {
        "name": "attention",
        "weight": 5.0,
        "hint": False,
        "distance": "cosine",
        "centred": False,
    }
    assert distill_terms.attention(constant=True).spec[-1] == ("constant", True)
    assert distill_terms.feature(lp(2), 8.0) == weighed("lp(2)", 8.0).terms[0] != distill_terms.feature(lp(3), 8.0)
