"""Methods as data: the published weights, descriptions that tell methods apart, unknown names, new entries."""

import json
import pickle
import re
from dataclasses import replace

import pytest

from lrkd.distill.distances import cosine, lp
from lrkd.distill.identifiers import described
from lrkd.distill.methods import MATCHED, METHODS, Choice, Method, get, skd, weighed
from lrkd.distill.terms import attention, feature, logits, regression
from lrkd.errors import ConfigError

# Weights as methods.md gives them: arXiv numbers and scripts of the authors.
PUBLISHED = {
    "none": {},
    "logit-kd": {"logits": 1.0},
    "fitnet": {"feature": 1.5},
    "at": {"at": 1000.0},
    "rkd": {"rkd": 40.0},
    "fskd": {"feature": 20.0},
    "fskd-cross": {"feature": 20.0, "cross": 4.0},
    "askd": {"attention": 5.0},
    "askd-centred": {"attention": 5.0},
    "askd-constant": {"attention": 5.0},
    "random-teacher": {"feature": 20.0},
    "shuffled-teacher": {"feature": 20.0},
}


def test_every_method_of_the_study_is_there_under_its_name():
    assert set(PUBLISHED) <= set(METHODS)
    assert all(method.name == name for name, method in METHODS.items())
    assert all(method.title and (method.source or name == "none") for name, method in METHODS.items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights(name):
    assert {term.name: term.weight for term in METHODS[name].terms} == PUBLISHED[name]


def test_published_details():
    spec = {name: [term.describe() for term in method.terms] for name, method in METHODS.items()}
    assert spec["logit-kd"][0]["temperature"] == 4.0
    assert (spec["rkd"][0]["distance_weight"], spec["rkd"][0]["angle_weight"]) == (1.0, 2.0)
    assert spec["fskd"] == [{"name": "feature", "weight": 20.0, "hint": True, "distance": "cosine", "stages": "all"}]
    assert spec["fitnet"][0]["distance"] == "lp(2)"
    assert spec["fskd-l1"][0]["distance"] == "lp(1)"
    assert spec["fskd-unit-l2"][0]["distance"] == "on_unit(euclidean)"
    assert spec["askd"][0]["distance"] == "cosine"
    assert [spec[name][0]["centred"] for name in ("askd", "askd-centred")] == [False, True]


def test_teachers():
    kinds = {name: method.teacher for name, method in METHODS.items()}
    assert {kinds[name] for name in ("none", "skd-none")} == {"none"}
    assert kinds["random-teacher"] == "random"
    shuffled = {"shuffled-teacher": "fskd", "embedding-shuffled": "embedding-cos", "askd-shuffled": "askd"}
    for control, method in shuffled.items():
        assert (kinds[control], kinds[method]) == ("shuffled", "trained")
        assert METHODS[control].terms == METHODS[method].terms
    assert METHODS["random-teacher"].terms == METHODS["fskd"].terms


def test_descriptions_are_json_and_no_two_are_the_same():
    told = [json.dumps({**method.describe(), "name": ""}, sort_keys=True) for method in METHODS.values()]
    assert len(set(told)) == len(told)
    assert all(json.loads(json.dumps(m.describe(), allow_nan=False)) for m in METHODS.values())


def test_a_description_changes_with_all_that_changes_training_and_with_nothing_else():
    base = METHODS["fskd"]
    assert replace(base, title="other", source="other", note="other").describe() == base.describe()
    others = [
        replace(base, name="other"),
        replace(base, teacher="shuffled"),
        replace(base, terms=(feature(weight=20.5),)),
        replace(base, terms=(feature(lp(2), weight=20.0),)),
        replace(base, terms=(feature(weight=20.0, stages=(3,)),)),
        replace(base, terms=(feature(weight=20.0, hint=False),)),
        replace(base, terms=(*base.terms, attention())),
        replace(base, terms=(logits(1.0, 4.0),)),
        replace(base, terms=(logits(1.0, 2.0),)),
        replace(base, start="none"),
        replace(base, choice=Choice("top", 0.5)),
        replace(base, choice=Choice("graph", 0.5)),
        replace(base, choice=Choice("graph", 0.5, beta=2.0)),
    ]
    told = [json.dumps(method.describe(), sort_keys=True) for method in (base, *others)]
    assert len(set(told)) == len(told)


def test_all_methods_travel_to_other_processes():
    for method in METHODS.values():
        assert pickle.loads(pickle.dumps(method)) == method


def test_a_method_has_terms_exactly_when_it_has_a_teacher():
    with pytest.raises(
        ConfigError, match=r"'bad': expected terms exactly when it has a teacher, got 0 terms and teacher 'trained'"
    ):
        Method("bad", "no terms")
    with pytest.raises(ConfigError, match="'bad'"):
        Method("bad", "no teacher", (feature(),), teacher="none")


@pytest.mark.parametrize(("wrong", "near"), [("fksd", "fskd"), ("ASKD", "askd"), ("embedding_cos", "embedding-cos")])
def test_an_unknown_name_is_answered_with_the_nearest_and_all(wrong, near):
    if wrong.islower():
        with pytest.raises(ConfigError, match=rf"got '{wrong}'; did you mean [^?]*{near}"):
            get(wrong)
    with pytest.raises(ConfigError) as error:
        get(wrong)
    assert all(name in str(error.value) for name in [repr(wrong), *METHODS])
    assert get(near) is METHODS[near]


def test_a_name_like_none_other_gets_no_guess():
    with pytest.raises(ConfigError) as error:
        get("zzz")
    assert not re.search("did you mean", str(error.value))


def test_a_file_without_a_name_in_it_is_asked_for_one():
    with pytest.raises(ConfigError, match=r'expected "mine.py:NAME", NAME being a method in that file, got .mine.py.$'):
        get("mine.py")


def test_matched_distances_have_their_own_names():
    assert all(described(distance) == name and weight > 0 for name, (distance, weight) in MATCHED.items())


@pytest.mark.parametrize(("name", "weight"), [("lp(2)", 8.0), ("lp(1.5)", 0.875), ("cosine", 1280.0)])
def test_a_weighed_distance_is_fskd_with_that_distance_and_weight(name, weight):
    method = weighed(name, weight)
    assert method.name.rpartition("@")[::2] == (name, f"{weight:g}")
    (term,) = method.terms
    (fskd,) = METHODS["fskd"].terms
    assert term.describe() == {**fskd.describe(), "distance": name, "weight": weight}
    assert (method.teacher, term.hint) == ("trained", True)
    assert pickle.loads(pickle.dumps(method)) == method


def test_the_matched_cosine_at_20_trains_as_fskd_does():
    assert weighed("cosine", 20).describe()["terms"] == METHODS["fskd"].describe()["terms"]
    assert feature(cosine, weight=20.0).describe() == weighed("cosine", 20.0).terms[0].describe()


def test_a_distance_without_a_matched_weight_is_refused():
    with pytest.raises(ConfigError, match=r"distance: expected one of cosine, lp\(1\), .* got 'lp\(5\)'"):
        weighed("lp(5)", 1)


def test_skd_and_its_controls_differ_in_their_choice_alone():
    bare = {
        json.dumps({**METHODS[name].describe(), "name": "", "choice": None})
        for name in ("skd", "skd-all", "skd-top", "skd-random")
    }
    assert len(bare) == 1
    none = METHODS["skd-none"].describe()
    assert (none["start"], none["terms"]) == (METHODS["skd"].start, [])
    assert "start" not in METHODS["fskd"].describe(), "older runs keep their names"


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        (Choice("graph", 0.25), "skd@0.25"),
        (Choice("graph", 0.5, 0.3), "skd@0.5b0.3"),
        (Choice("top", 0.1), "skd-top@0.1"),
        (Choice("random", 0.75), "skd-random@0.75"),
    ],
)
def test_a_choice_makes_a_method_of_its_own(choice, name):
    method = skd(choice)
    assert (method.choice, method.name, method.terms) == (choice, name, METHODS["skd"].terms)
    weighed = skd(choice, 5.0)
    assert (weighed.choice, weighed.name) == (choice, f"{name}*5")
    assert weighed.terms == (regression(cosine, 5.0),)


def test_without_a_choice_it_is_all_features():
    assert skd(None) == METHODS["skd-all"]
    assert skd(None, 5.0).name == "skd-all*5"


@pytest.mark.parametrize("bad", [{"kind": "best"}, {"fraction": 0}, {"fraction": 1.1}, {"fraction": float("nan")}])
def test_an_impossible_choice_is_refused(bad):
    with pytest.raises(
        ConfigError, match="expected kind graph, top or random, and a fraction above 0 and at most 1, got Choice"
    ):
        Choice(**({"kind": "top", "fraction": 0.5} | bad))


@pytest.mark.parametrize("name", ["a/b", "", "..", "a\\b", "a\nb", "a\0", ".hidden", "x" * 200])
def test_a_name_that_no_folder_can_have_is_refused(name):
    with pytest.raises(ConfigError, match=r"method: expected a name .* folder's name, got"):
        Method(name, "mine", (feature(),))
