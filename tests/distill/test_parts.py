"""What losses read and networks show: against what the functions really touch, and a named error before training."""

import pytest
import torch
import toys

from lrkd.distill import terms
from lrkd.distill.methods import METHODS
from lrkd.distill.parts import PARTS, check, read, shown
from lrkd.errors import ConfigError
from lrkd.models import backbones, heads
from lrkd.models.wrap import Embeddings
from lrkd.training.step import Teacher

BARE = backbones.small(8, 8, (4, 8), cbam=False)
FULL = backbones.small(8, 8, (4, 8))
HEAD = heads.build("cosface", 4, 8)


@pytest.mark.parametrize(
    ("term", "parts"),
    [
        (terms.embedding(), {"embedding"}),
        (terms.regression(), {"embedding"}),
        (terms.relational(), {"embedding"}),
        (terms.relation(), {"embedding"}),
        (terms.feature(), {"features"}),
        (terms.feature(stages=(5, 6)), {"features"}),
        (terms.activation_attention(), {"features"}),
        (terms.similarity_preserving(), {"features"}),
        (terms.attention(), {"channel", "spatial"}),
        (terms.logits(), {"logits"}),
    ],
)
def test_a_term_reads_what_its_function_touches(term, parts):
    assert read(term) == read(term, "student") == parts


def test_the_relation_of_f_skd_reads_embeddings_of_the_teacher_only():
    assert read(terms.cross()) == {"embedding", "features"}
    assert read(terms.cross(), "student") == {"features"}


def test_a_function_of_a_user_is_looked_at_too_and_may_fail():
    def odd(student, teacher):
        return (student.embedding - teacher.features[17]).sum()

    term = terms.Term("odd", 1.0, odd)
    assert (read(term), read(term, "student")) == ({"features"}, {"embedding"})


def test_every_method_can_be_taught_by_a_full_network_with_a_head():
    full = shown(FULL, HEAD)
    assert full == set(PARTS)
    for method in METHODS.values():
        assert all(read(term) <= full for term in method.terms)


@pytest.mark.parametrize("network", [BARE, FULL, backbones.mobile(8, 8, (1, 1), (4, 8)), backbones.small(8, 8, (4,))])
def test_what_a_network_says_that_it_shows_is_what_one_pass_shows(network):
    out = network.eval()(torch.zeros(2, 3, 8, 8))
    assert shown(network) == {name for name in out._fields if len(getattr(out, name))}


def test_looking_leaves_a_network_as_it_was():
    network = backbones.small(8, 8, (4, 8)).train()
    del network.parts  # as a module that is none of lrkd's
    before, rng = toys.state(network), torch.get_rng_state()
    assert shown(network) == {"embedding", "features", "channel", "spatial"}
    assert shown(BARE) == {"embedding", "features"}
    assert toys.equal(toys.state(network), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert network.training


def test_a_missing_part_is_named_with_the_methods_that_work():
    known = {name: method.terms for name, method in METHODS.items()}
    with pytest.raises(ConfigError) as caught:
        check(METHODS["askd"].terms, BARE, name="adaface.ckpt", method="askd", methods=known)
    said, _, works = str(caught.value).partition("; these methods work: ")
    assert said == "teacher adaface.ckpt has no attention maps: method 'askd' needs them"
    assert {"fskd", "fskd-cross", "embedding-cos", "rkd"} <= set(works.split(", "))
    assert not {"askd", "logit-kd"} & set(works.split(", "))
    with pytest.raises(ConfigError, match="teacher IResNet has no head, and so no logits: method 'logit-kd' needs"):
        check(METHODS["logit-kd"].terms, FULL, method="logit-kd", methods=known)
    with pytest.raises(ConfigError, match=r"student IResNet has no attention maps: the term 'attention' needs them$"):
        check((terms.attention(),), BARE, HEAD, role="student")


TABLE = Embeddings(torch.ones(64, 8))


@pytest.mark.parametrize(
    ("teacher", "student", "term", "match"),
    [
        (Teacher(FULL), FULL, terms.logits(), "teacher IResNet has no head, and so no logits: the term 'logits'"),
        (Teacher(BARE, HEAD), FULL, terms.attention(), "teacher IResNet has no attention maps"),
        (Teacher(FULL, HEAD), BARE, terms.attention(), "student IResNet has no attention maps"),
        (Teacher(TABLE), FULL, terms.feature(), "teacher Embeddings has no feature maps: the term 'feature'"),
    ],
)
def test_training_does_not_begin_without_what_it_needs(teacher, student, term, match, tmp_path):
    with pytest.raises(ConfigError, match=match):
        toys.fit(student, HEAD, toys.faces(), schedule=toys.Schedule(1, batch=16), options=toys.OPTIONS,
                 teacher=teacher, terms=(term,), progress=False, directory=tmp_path)  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "term",
    [terms.embedding(), terms.feature(), terms.cross(), terms.attention(), terms.relational()],
    ids=lambda term: term.name,
)
def test_a_teacher_without_a_head_teaches_what_one_with_a_head_does(term):
    weights = []
    for head in (None, HEAD):
        network, own = toys.pair(1)
        toys.fit(network, own, toys.faces(), schedule=toys.Schedule(1, batch=16), options=toys.OPTIONS,
            teacher=Teacher(FULL, head), terms=(term,), progress=False)  # fmt: skip
        weights.append(toys.state(network, own))
    assert toys.equal(*weights)
