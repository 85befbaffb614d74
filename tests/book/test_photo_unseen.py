"""The photograph student on sets that nobody chose with: what is compared, and what a threshold lets pass."""

from dataclasses import replace

import numpy as np
import pytest
from test_photo_sides import lfw

from book import photo_unseen
from book.student_photos import SIDE, pixels
from lrkd.errors import DataError


def a_set():
    whole = lfw()
    return replace(whole, protocols={"generated": whole.protocols["view2"]})


def knows(labels: np.ndarray):
    """A network that gives each image its person's own direction."""
    return lambda images, side: np.eye(labels.max() + 1, dtype=np.float32)[labels]


def test_who_knows_everybody_is_always_right():
    whole = a_set()
    found = photo_unseen.row(whole, knows(whole.faces.labels), 0.5)[0]
    assert (found["accuracy"], found["rank1"], found["at_threshold"], found["false_matches"]) == (1, 1, 1, 0)
    assert (found["people"], found["gallery"], found["probes"]) == (40, 40, 80)
    assert found["side"] == SIDE


def test_a_threshold_below_all_lets_everybody_pass():
    whole = a_set()
    found = photo_unseen.row(whole, knows(whole.faces.labels), -1.0)[0]
    assert found["false_matches"] == 1
    assert found["at_threshold"] == whole.protocols["generated"].same.mean()
    assert found["accuracy"] == 1, "folds have thresholds of their own"


def test_a_face_that_was_not_found_matches_nobody():
    whole = a_set()
    pairs, missing = whole.protocols["generated"], np.arange(len(whole.faces)) == 0
    found, _ = photo_unseen.row(
        replace(whole, faces=replace(whole.faces, missing=missing)), knows(whole.faces.labels), -1.0
    )
    assert found["false_matches"] == 1 - pairs.touch(missing)[~pairs.same].mean()
    assert found["at_threshold"] == (pairs.same & ~pairs.touch(missing) | ~pairs.same & pairs.touch(missing)).mean()


def test_pixels_have_no_threshold_and_tell_patterns_apart():
    found, _ = photo_unseen.row(a_set(), lambda images, _: pixels(images), None)
    assert found["rank1"] == 1
    assert "false_matches" not in found


def test_who_is_compared_with_the_student_is_judged_on_the_same_pairs():
    whole = a_set()
    knowing, first = photo_unseen.row(whole, knows(whole.faces.labels), None)
    rng = np.random.default_rng(0)
    guessing, _ = photo_unseen.row(whole, lambda images, side: rng.standard_normal((len(images), 8)), None, first)
    assert "ahead" not in knowing
    for name in ("accuracy", "rank1"):
        ahead = guessing["ahead" if name == "accuracy" else "rank1_ahead"]
        assert ahead == pytest.approx(knowing[name] - guessing[name])
        assert ahead > 0
    same, _ = photo_unseen.row(whole, knows(whole.faces.labels), None, first)
    assert [same[name] for name in ("ahead", "ahead_low", "ahead_high", "rank1_ahead")] == [0, 0, 0, 0]


def test_a_folder_without_pairs_is_refused():
    with pytest.raises(DataError, match="expected a folder with pairs"):
        photo_unseen.row(replace(a_set(), protocols={}), knows(np.zeros(1, int)), None)
