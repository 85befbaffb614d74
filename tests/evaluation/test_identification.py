"""Identification: answers worked out by hand, other libraries, galleries that do not fit in memory, bad input."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_curve, top_k_accuracy_score
from sklearn.preprocessing import normalize

from lrkd.errors import ConfigError, DataError
from lrkd.evaluation import separation
from lrkd.evaluation.identification import fuse, identification, open_set, probe_ranks, rank_k
from lrkd.evaluation.search import search
from lrkd.evaluation.templates import read_templates, template_scores, templates

rng = np.random.default_rng


def at(*degrees: float) -> np.ndarray:
    """Features (n,2) that point in these directions: the cosine of two is the cosine of their angle."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def crowd(people: int, images: int, noise: float, seed: int = 0, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Features around a centre each, and their labels."""
    random, labels = rng(seed), np.repeat(np.arange(people), images)
    centres = rng(99).normal(size=(200, size))
    return centres[labels] + noise * random.normal(size=(people * images, size)), labels


def by_distance(gallery, labels, probe, wanted, distance, **options):
    """`identification` with a role for each of SCface's distances -> its table, by distance."""
    roles = {f"distance{d}": len(gallery) + np.flatnonzero(distance == d) for d in np.unique(distance)}
    both = np.concatenate([gallery, probe]), np.concatenate([labels, wanted])
    table = identification(*both, {"gallery": np.arange(len(gallery)), **roles}, **options)
    return table.set_index(table["probe_role"].str.removeprefix("distance").astype(int))


# ------------------------------------------------------------------------------------------- TinyFace: with distractors


def test_ranks_with_distractors_by_hand():
    # Mates of person 0 at 0 and 40 degrees, of person 1 at 90; distractors at 12, 14, 78, 100, 260.
    gallery, labels = at(0, 40, 90, 12, 14, 78, 100, 260), np.array([0, 0, 1, -1, -1, -1, -1, -1])
    probe, wanted = at(1, 30, 10, 84, 93), np.array([0, 0, 0, 1, 1])
    # 1: own at 0. 30: own at 40 (10 off). 10: 12 and 14 are nearer than 0. 84: 78 is as near as 90: a tie.
    np.testing.assert_array_equal(probe_ranks(gallery, labels, probe, wanted), [1, 1, 3, 2, 1])
    np.testing.assert_allclose(rank_k(gallery, labels, probe, wanted, ranks=(1, 2, 3)), [3 / 5, 4 / 5, 1])
    found = search(gallery, labels, probe, wanted)
    np.testing.assert_allclose(found.mate, np.cos(np.radians([1, 10, 10, 6, 3])))
    np.testing.assert_allclose(found.top, np.cos(np.radians([1, 10, 2, 6, 3])))


def test_ranks_equal_scikit_learns_and_scipys():
    centres, labels = crowd(40, 1, 0.0)
    probe, wanted = crowd(40, 3, 1.5, seed=1)
    score = 1 - cdist(probe, centres, "cosine")
    for k in (1, 5, 10, 20):
        expected = top_k_accuracy_score(wanted, score, k=k, labels=labels)
        assert rank_k(centres, labels, probe, wanted, ranks=[k])[0] == pytest.approx(expected, abs=1e-15)
    noise = rng(5).normal(size=(300, 16))
    gallery, everyone = np.concatenate([centres, noise]), np.concatenate([labels, np.full(300, -1)])
    distance = cdist(probe, gallery, "cosine")
    own = np.where(wanted[:, None] == everyone, distance, np.inf).min(1)
    expected = 1 + ((distance <= own[:, None]) & (wanted[:, None] != everyone)).sum(1)
    assert expected.max() > 20
    np.testing.assert_array_equal(probe_ranks(gallery, everyone, probe, wanted), expected)


@given(st.integers(1, 60), st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_the_size_of_blocks_changes_nothing(block, seed):
    random = rng(seed)
    gallery, probe = random.normal(size=(30, 3)).round(), random.normal(size=(13, 3)).round()
    labels, wanted = random.integers(0, 9, 30), random.integers(0, 12, 13)
    for a, b in zip(search(gallery, labels, probe, wanted, block), search(gallery, labels, probe, wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_types_lengths_and_labels_do_not_matter():
    gallery, labels = crowd(9, 2, 0.3)
    probe, wanted = crowd(9, 1, 0.3, seed=2)
    expected = probe_ranks(gallery, labels, probe, wanted)
    scaled = gallery * rng(0).uniform(0.1, 9, (18, 1))
    np.testing.assert_array_equal(probe_ranks(scaled.astype(np.float32), labels, probe, wanted), expected)
    words = np.array([f"p{k}" for k in labels]), np.array([f"p{k}" for k in wanted])
    np.testing.assert_array_equal(probe_ranks(gallery, words[0], probe, words[1]), expected)


# ---------------------------------------------------------------------------------------------------- SCface: distances


def test_ranks_by_distance_by_hand_and_by_scikit_learn():
    gallery, labels = at(0, 60, 120), np.array([4, 5, 6])
    probe, wanted = at(10, 80, 100, 40, 80, 110), np.array([4, 5, 6, 4, 6, 6])
    distance = np.array([1, 1, 1, 3, 3, 3])
    table = by_distance(gallery, labels, probe, wanted, distance, ranks=(1, 2))
    # Far: 40 is nearer to 60 than to 0, 80 nearer to 60 than to 120.
    expected = {"probes": {1: 3, 3: 3}, "rank1": {1: 1, 3: 1 / 3}, "rank2": {1: 1.0, 3: 1.0}}
    assert table[["probes", "rank1", "rank2"]].to_dict() == expected
    centres, who = crowd(30, 1, 0)
    far, mine = crowd(30, 2, 2.0, seed=3)
    groups = np.arange(60) % 3
    found = by_distance(centres, who, far, mine, groups)
    for group in range(3):
        part = groups == group
        score = 1 - cdist(far[part], centres, "cosine")
        for k in (1, 5, 10, 20):
            assert found.loc[group, f"rank{k}"] == top_k_accuracy_score(mine[part], score, k=k, labels=who)


# --------------------------------------------------------------------------------------------------- SurvFace: open set


def test_open_set_by_hand():
    gallery, labels = at(0, 90), np.array([1, 2])
    mated, mates = at(5, 15, 20, 80, 40), np.array([1, 1, 1, 2, 2])  # 5, 15, 20, 10 degrees off; 40 is nearer to 1
    strangers = at(-10, -12, -30, 170, 180)  # nearest at 10, 12, 30, 80, 90 degrees
    probe, wanted = np.concatenate([mated, strangers]), np.concatenate([mates, np.full(5, -7)])
    found = open_set(gallery, labels, probe, wanted, rank=1, fpir=(0.0, 0.2, 0.4, 0.39, 1.0))
    # No false alarm: mates less than 10 degrees off, one of five. One alarm: less than 12. Two: less than 30.
    np.testing.assert_allclose(found.fpir, [0, 0.2, 0.4, 0.2, 1])
    np.testing.assert_allclose(found.tpir, [1 / 5, 2 / 5, 4 / 5, 2 / 5, 4 / 5])
    assert open_set(gallery, labels, probe, wanted, rank=2, fpir=(1.0,)).tpir == 1
    assert np.degrees(np.arccos(found.threshold[1])) == pytest.approx(12, abs=1e-6)


@given(st.integers(0, 300), st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 1.0]), st.sampled_from([1, 2, 20]))
@settings(max_examples=60, deadline=None)
def test_open_set_lies_on_scikit_learns_curve(seed, fpir, rank):
    random = rng(seed)
    gallery, probe = random.normal(size=(8, 2)).round(1) + 0.05, random.normal(size=(25, 2)).round(1) + 0.05
    labels, wanted = np.arange(8), np.concatenate([random.integers(0, 8, 12), np.full(13, 99)])
    found = open_set(gallery, labels, probe, wanted, rank=rank, fpir=(fpir,))
    score = np.round(1 - cdist(probe, gallery, "cosine"), 9)
    own = np.array([row[k] if k < 99 else row.max() for row, k in zip(score, wanted, strict=True)])
    # A mate exactly as near as the stranger who sets the threshold: the last bit of a cosine decides, here and there.
    assume(not np.intersect1d(own[wanted < 99], own[wanted == 99]).size)
    place = (score >= own[:, None]).sum(1)
    own[(place > rank) & (wanted < 99)] = -5.0
    far, tar, threshold = roc_curve(wanted < 99, own, drop_intermediate=False)
    allowed = (far <= fpir + 1e-12) & (threshold > -5)
    assert found.tpir[0] == pytest.approx(tar[allowed].max(), abs=1e-12)
    assert found.fpir[0] <= fpir + 1e-12


def test_roles_of_a_prepared_set_say_the_protocol():
    gallery, labels = at(0, 4, 90, 92), np.array([0, 0, 1, 1])
    probe, wanted = at(3, 60, 88), np.array([0, 0, 1])
    other, nobody = at(40, 200), np.array([7, 8])
    features = np.concatenate([gallery, probe, other])
    everyone = np.concatenate([labels, wanted, nobody])
    roles = {"gallery": np.arange(4), "probe": np.arange(4, 7)}
    plain = identification(features, everyone, roles, ranks=(1, 2, 3))
    assert plain.to_dict("records") == [
        {"probe_role": "probe", "probes": 3, "gallery": 4, "missed": 0, "rank1": 2 / 3, "rank2": 2 / 3, "rank3": 1.0}
    ]
    far = identification(features, everyone, roles | {"distractor": np.arange(7, 9)}, ranks=(1, 3, 4))
    assert far.loc[0, ["gallery", "rank1", "rank3", "rank4"]].tolist() == [6, 2 / 3, 2 / 3, 1]  # 40 is nearer to 60
    # Templates at 2 and 91 degrees; strangers are 38 and 109 off; mates 1, 58 and 3 off.
    found = identification(features, everyone, roles | {"unmated": np.arange(7, 9)}, fpir=(0.0, 0.5, 1.0))
    assert found.loc[0, [f"tpir20_at_fpir_{rate}" for rate in ("0", "0.5", "1")]].tolist() == [2 / 3, 1, 1]
    by = {"gallery": np.arange(4), "distance1": np.array([5, 6]), "distance3": np.array([4])}
    table = identification(features, everyone, by, ranks=(1,))
    assert table[["probe_role", "probes", "rank1"]].to_numpy().tolist() == [
        ["distance1", 2, 0.5],
        ["distance3", 1, 1.0],
    ]
    both = identification(features, everyone, by | {"unmated": np.arange(7, 9)}, fpir=(0.0, 0.5))
    assert both.filter(like="tpir20").to_numpy().tolist() == [[0.5, 1], [1, 1]], "each distance beside the strangers"
    with pytest.raises(DataError, match=r"roles: expected gallery, and probe or distance1.*got gallery"):
        identification(features, everyone, {"gallery": np.arange(4)})
    with pytest.raises(DataError, match=r"roles: expected gallery.* got none"):
        identification(features, everyone, {})


def test_a_missing_face_is_a_miss_at_every_rank_and_raises_no_alarm():
    # Persons 0 and 1 in the gallery, two probes each, two strangers; all at distinct angles.
    features = at(0, 90, 4, 86, 10, 80, 30, 200)
    labels = np.array([0, 1, 0, 1, 0, 1, 7, 8])
    roles = {"gallery": np.arange(2), "probe": np.arange(2, 6), "unmated": np.arange(6, 8)}
    rates = ["rank1", "tpir20_at_fpir_0", "tpir20_at_fpir_0.5"]

    def score(*gone: int) -> list[float]:
        missing = np.isin(np.arange(8), gone)
        row = identification(features, labels, roles, ranks=(1,), fpir=(0, 0.5), missing=missing).iloc[0]
        return [int(row["probes"]), int(row["gallery"]), int(row["missed"]), *row[rates]]

    assert score() == [4, 2, 0, 1, 1, 1]
    assert score(2) == [4, 2, 1, 0.75, 0.75, 0.75], "a probe"
    assert score(0) == [4, 1, 2, 0.5, 0.5, 0.5], "an image of the gallery: its probes, which are no strangers now"
    assert score(0, 2) == [4, 1, 2, 0.5, 0.5, 0.5], "a probe is missed once"
    assert score(6, 7) == [4, 2, 0, 1, 1, 1], "strangers without a face are rejected"
    assert score(2, 3, 4, 5) == [4, 2, 4, 0, 0, 0]
    features[6] = features[2]  # a stranger who looks like a probe's mate
    assert score()[4] == 0
    assert score(6)[4] == 1, "and raises no alarm without a face"
    with pytest.raises(DataError, match="gallery: expected images with a face, got 2"):
        score(0, 1)


def test_a_probe_whom_the_gallery_lacks_is_a_miss_of_the_protocol():
    found = identification(
        at(0, 1, 50), np.array([0, 0, 3]), {"gallery": np.array([0]), "probe": np.array([1, 2])}, ranks=(1, 5)
    )
    assert found[["probes", "missed", "rank1", "rank5"]].to_numpy().tolist() == [[2, 1, 0.5, 0.5]]


def test_open_set_refuses():
    gallery, labels, probe = at(0, 90), np.array([1, 2]), at(1, 2)
    with pytest.raises(DataError, match="got 2 of 2 with one"):
        open_set(gallery, labels, probe, [1, 2])
    with pytest.raises(DataError, match="got 0 of 2 with one"):
        open_set(gallery, labels, probe, [7, 8])
    with pytest.raises(ConfigError, match="fpir"):
        open_set(gallery, labels, probe, [1, 8], fpir=(1.2,))
    with pytest.raises(ConfigError, match="ranks"):
        open_set(gallery, labels, probe, [1, 8], rank=0)


# ------------------------------------------------------------------------------------------------------- IJB: templates


def test_templates_by_hand():
    # Template 7: two frames of one video, mean (1,1), and a photograph (1,-1): sum (2,0). Template 3: one photograph.
    features = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, -1.0], [0.0, 5.0]])
    pool = templates(features, [7, 7, 7, 3], ["Ada", "Ada", "Ada", "Ben"], ["v", "v", "p", "p"])
    np.testing.assert_array_equal(pool.ids, [3, 7])
    assert list(pool.subjects) == ["Ben", "Ada"]
    np.testing.assert_allclose(pool.features, [[0, 1], [1, 0]], atol=1e-15)
    scores, same = template_scores(pool, [7, 7, 3], [3, 7, 3])
    np.testing.assert_allclose(scores, [0, 1, 1], atol=1e-15)
    np.testing.assert_array_equal(same, [False, True, True])
    # Without media each image counts: (2,0) + (0,2) + (1,-1) = (3,1).
    np.testing.assert_allclose(templates(features[:3], [1] * 3, [1] * 3).features, [[3 / 10**0.5, 1 / 10**0.5]])


def test_templates_equal_pandas_and_scikit_learns():
    random = rng(0)
    table = pd.DataFrame(random.normal(size=(200, 5)).astype(np.float32))
    which, medium = random.integers(10, 30, 200), random.integers(0, 6, 200)
    means = table.astype(np.float64).groupby([which, medium]).mean()
    expected = normalize(means.groupby(level=0).sum())
    pool = templates(table.to_numpy(), which, which % 4, medium)
    np.testing.assert_array_equal(pool.ids, np.unique(which))
    np.testing.assert_allclose(pool.features, expected, atol=1e-12)
    left, right = random.choice(which, (2, 500))
    scores, same = template_scores(pool, left, right, block=33)
    place = {number: row for row, number in enumerate(pool.ids)}
    full = 1 - cdist(expected, expected, "cosine")
    np.testing.assert_allclose(scores, [full[place[a], place[b]] for a, b in zip(left, right, strict=True)], atol=1e-12)
    np.testing.assert_array_equal(same, left % 4 == right % 4)
    far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
    assert separation.tar_at_far(scores, same, [0.1])[0] == tar[far <= 0.1].max()


def test_templates_from_a_csv_to_a_rate(tmp_path):
    path = tmp_path / "templates.csv"
    path.write_text(
        "template,source,subject,media\n12,ada/2.jpg,Ada,f1\n12,ada/1.jpg,Ada,f1\n3,ben/1.jpg,Ben,f9\n12,x.jpg,Ada,f2\n"
        "40,x.jpg,Ada,f2\n"
    )
    sources = ["ada/1.jpg", "ada/2.jpg", "ben/1.jpg", "x.jpg"]
    table = read_templates(path, sources)
    assert table.to_dict("list") == {
        "index": [1, 0, 2, 3, 3],
        "template": ["12", "12", "3", "12", "40"],
        "subject": ["Ada", "Ada", "Ben", "Ada", "Ada"],
        "media": ["f1", "f1", "f9", "f2", "f2"],
    }
    features = at(0, 20, 90, 10)
    pool = templates(features[table["index"]], table["template"], table["subject"], table["media"])
    scores, same = template_scores(pool, ["12", "12"], ["3", "40"])
    np.testing.assert_allclose(scores, np.cos(np.radians([80, 0])), atol=1e-12)
    assert separation.tar_at_far(scores, same, [0.0])[0] == 1
    path.write_text("source,template,subject\nada/1.jpg,1,Ada\nada/2.jpg,1,Ada\n")
    assert read_templates(path, sources)["media"].nunique() == 2


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a,b\n1,2\n", r"templates\.csv: expected the columns source.* got no source, template, subject"),
        ("source,template,subject\n", "expected a row for each image"),
        ("source,template,subject\nnobody,1,A\n", r"row 1: source 'nobody' is not an image of this set"),
        ("source,template,subject\nx,1,A\nx,1,A\n", r"row 2: source 'x' is twice in its template"),
        ("source,template,subject\nx,1\n", "row 1: source 'x' has an empty template or subject"),
        ("source,template,subject\n0,x,1,A\n", "expected as many fields in a row as in the header"),
        ("", "cannot be read as CSV"),
        ('source,template,subject\n"x,1,A\n', "cannot be read as CSV"),
        ("\xff\xfe\x00", "cannot be read as CSV"),
    ],
)
def test_a_wrong_list_of_templates_is_named(tmp_path, text, match):
    (tmp_path / "templates.csv").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=match):
        read_templates(tmp_path / "templates.csv", ["x"])


def test_a_list_of_templates_has_a_length_and_is_not_unpacked(tmp_path):
    with (tmp_path / "long.csv").open("wb") as file:
        file.truncate(2**27)
    with pytest.raises(DataError, match=r"expected a list of at most .* bytes"):
        read_templates(tmp_path / "long.csv", ["x"])
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"source,template,subject\nx,1,A\n"))
    with pytest.raises(DataError):
        read_templates(tmp_path / "t.csv.gz", ["x"])


def test_a_list_of_templates_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv: cannot be read as CSV"):
        read_templates(tmp_path / "nowhere.csv", ["x"])


def test_templates_refuse():
    features = np.eye(3)
    with pytest.raises(DataError, match="subject: expected one a template, got A and B for template 1"):
        templates(features, [1, 1, 2], ["A", "B", "A"])
    with pytest.raises(DataError, match=r"media: expected \(3,\), one an image, got \(2,\)"):
        templates(features, [1, 1, 2], ["A", "A", "B"], [1, 2])
    with pytest.raises(DataError, match="got zero for template 5"):
        templates(np.array([[1.0, 0.0], [-1.0, 0.0]]), [5, 5], [1, 1])
    pool = templates(features, [1, 4, 4], [1, 2, 2])
    with pytest.raises(DataError, match="right: expected numbers of templates, got 9"):
        template_scores(pool, [1], [9])
    with pytest.raises(DataError, match=r"got \(1,\) and \(2,\)"):
        template_scores(pool, [1], [1, 4])


# -------------------------------------------------------------------------------------------------- features and memory


def test_fused_features_are_the_mean_of_the_two_halves():
    np.testing.assert_array_equal(fuse([[1.0, 2.0, 3.0, 6.0]]), [[2.0, 4.0]])
    assert fuse(np.ones((2, 4), np.float32)).dtype == np.float32
    with pytest.raises(DataError, match="expected two halves, got 3"):
        fuse(np.ones((2, 3)))


def test_a_search_refuses():
    gallery, labels = np.eye(4), np.arange(4)
    bad = np.eye(4)
    bad[2, 1] = np.nan
    with pytest.raises(DataError, match="gallery row 2: expected a finite feature"):
        search(bad, labels, gallery, labels)
    with pytest.raises(DataError, match=r"probe: expected numbers \(n,D\).* got float64 \(4,\)"):
        search(gallery, labels, np.ones(4), labels)
    with pytest.raises(DataError, match=r"probe_labels: expected \(4,\), one an image, got \(3,\)"):
        search(gallery, labels, gallery, labels[:3])
    with pytest.raises(ConfigError, match="block: expected at least 1, got 0"):
        search(gallery, labels, gallery, labels, block=0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.slow
def test_a_gallery_is_searched_in_little_more_memory_than_it_takes(tmp_path):
    """20,000 distractors; `python -m benchmarks.identification` takes 160,000, for some ten seconds."""
    out = tmp_path / "memory.csv"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.identification", "--distractors", "20000", "--probes", "200", "--out", out],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
    )
    row = pd.read_csv(out).iloc[0]
    assert row["features_gib"] > 0.045
    assert row["peak_gib"] - row["peak_before_gib"] < 0.15, "blocks, not copies of the gallery"
    assert row["rank1"] > 0.9
