"""The page Why: shares of the way to the ceiling, coloured faces, its commands at scale smoke, and the page itself."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from kit import answer, why
from scipy.optimize import minimize
from test_pages_by_scale import run

from book import ceiling, known, metamers
from book.kit import ideal_observer
from book.kit.ideal_observer import accuracy, correlations
from lrkd.study import presets

SMOKE = presets.SCALES["smoke"]


def rows() -> pd.DataFrame:
    table = pd.DataFrame(
        [("none", 6, "lr-lr", 3, 0.7), ("none", 6, "lr-lr", 6, 0.8), ("teacher", 12, "hr-lr", 6, 0.9)],
        columns=["network", "side", "endpoint", "epochs", "value"],
    )
    best = pd.DataFrame([(6, "lr-lr", 0.85), (6, "lr-lr", 0.95), (12, "hr-lr", 1.0)])
    return why.shares(table, best.set_axis(["side", "endpoint", "accuracy"], axis=1))


def test_a_share_is_of_the_way_from_chance_to_the_ceiling():
    np.testing.assert_allclose(rows()["share"], [0.2 / 0.4, 0.3 / 0.4, 0.4 / 0.5])


def test_the_spectrum_is_each_students_distance_from_its_own_worlds():
    def run(world: int, method: str, side: int, endpoint: str, value: float, role: str = "student") -> tuple:
        return "spectrum", "ok", 0.25, world, role, method, side, endpoint, value

    table = pd.DataFrame(
        [
            *(run(w, "none", 6, end, 0.7 + 0.1 * w) for w in (0, 1) for end in ("lr-lr", "hr-lr")),
            *(run(w, "none", 24, "lr-lr", 0.99) for w in (0, 1)),
            *(run(w, "none", 48, "lr-lr", 0.95, "teacher") for w in (0, 1)),
            run(0, "fskd", 6, "lr-lr", 0.72),
            run(0, "fskd", 6, "hr-lr", 0.69),
        ],
        columns=["varied", "status", "at", "world", "role", "method", "side", "endpoint", "value"],
    )
    found = why.spectrum(table)
    np.testing.assert_allclose(found["cost", "none"], [25, 15])
    np.testing.assert_allclose(found.loc[(0.25, 0), [("lr-lr", "fskd"), ("hr-lr", "fskd")]].astype(float), [2, -1])
    assert found["lr-lr"].loc[(0.25, 1)].isna().all()
    assert found["lr-lr"]["askd"].isna().all()


def test_shares_of_all_entrants_are_their_means_on_the_way_to_the_ceiling():
    tables = answer.read(ceiling.RESULTS)
    best = pd.read_csv(ceiling.RESULTS / "ceiling.csv")
    found = why.all_shares(tables.judged, best).set_index("student")
    hard = best["side"].min()
    top = best[(best["side"] == hard) & (best["endpoint"] == "hr-lr")]["accuracy"].mean()
    for name in ("none", "fskd", "embedding-l2"):
        mine = tables.judged.query("method == @name and people == 'test' and endpoint == 'hr-lr' and side == @hard")
        mine = mine[(mine["setting"] == ("S" if name == "none" else "T")) & (mine["trained"].astype(str) == str(hard))]
        row = found.loc[answer.title(name)]
        assert row["worlds"] == mine["world"].nunique()
        assert row["share of the way, sharp against small, %"] == pytest.approx(
            100 * (mine["value"].mean() - 0.5) / (top - 0.5)
        )
    assert found["share of the way, small against small, %"].is_monotonic_decreasing


def test_every_choice_has_a_picture_and_what_was_not_measured_is_none():
    measured = rows()
    both = pd.concat([measured, measured[measured["network"] == "none"].assign(endpoint="hr-lr", value=0.6)])
    found = why.against(both, ["none", "teacher"])
    assert list(found) == [("no teacher, 6 px", title) for title in why.PROTOCOLS.values()]
    one, other = found.values()
    assert one.shape == other.shape
    assert (one != other).any()


def test_fits_are_judged_by_their_order_and_their_sign():
    scores = {"a": ([3.0, 2.0], [1.0, -1.0]), "b": ([1.0, -2.0], [-1.0, 2.0])}
    table = pd.DataFrame(
        [
            (start, k == 0, x, 0, who, who if k == 0 else 1 - who)
            for start, both in scores.items()
            for k, part in enumerate(both)
            for who, x in enumerate(part)
        ],
        columns=["start", "same", "log_ratio", "world", "left", "right"],
    )
    found = why.fitted(table)
    assert found.loc["a", ["auc", "at_zero", "best"]].to_list() == [1, 75, 100]
    assert found.loc["b", ["auc", "at_zero"]].to_list() == [0.25, 50]
    assert (found["low"] <= found["at_zero"]).all()
    assert (found["high"] >= found["at_zero"]).all()


def test_a_face_is_coloured_where_a_number_acts():
    """The left half is moved by a number that is known, the right by one that is not, the middle row by none."""
    slopes = torch.zeros(2, 3, 6, 6)
    slopes[0, :, :, :3], slopes[1, :, :, 3:] = 1, 1
    slopes[:, :, 3] = 0
    image = np.full((6, 6, 3), 100, np.uint8)
    found = why.painted(image, slopes, [0.8, -0.5])
    assert (found[3] == 100).all()
    assert (found[0, :3] == found[0, 0]).all()
    assert found[0, 0].mean() > found[0, 5].mean()
    np.testing.assert_array_equal(why.painted(image, slopes, [0.8, 0]), found)


@pytest.fixture(scope="module")
def world(smoke):
    return ceiling.world(SMOKE, 0)


@pytest.mark.slow
def test_the_ceiling_is_that_of_its_images_and_is_computed_once(world, monkeypatch):
    found = pd.DataFrame(ceiling.ceilings(world, 2))
    assert len(found) == 2 * (2 * len(SMOKE.sides) + 1)
    d = world.identity.shape[1]
    left, right = (torch.from_numpy(ceiling.shares(world, r[1])[:, :d, :d]).double() for r in ceiling.genuine(world, 2))
    one = found[found["person"] == world.faces.labels[ceiling.genuine(world, 2)[0][1]]].set_index(["endpoint", "side"])
    assert one.loc[("lr-lr", 3), "accuracy"] == pytest.approx(accuracy(correlations(left[-1], right[-1])))
    assert one.loc[("hr-lr", 3), "accuracy"] == pytest.approx(accuracy(correlations(left[0], right[-1])))
    by_side = found[found["endpoint"] == "lr-lr"].groupby("side")["accuracy"].mean()
    assert by_side.is_monotonic_increasing
    monkeypatch.setattr(ceiling, "face_derivatives", None)
    table = ceiling.bounds([world], 2)
    assert len(table) == len(world.names) * (1 + len(SMOKE.sides))
    assert table["bound"].between(0, 1).all()


@pytest.mark.slow
def test_true_numbers_make_the_image_and_a_fit_from_them_stays(world, monkeypatch):
    """What is drawn from an image's numbers is the image but for noise and rounding."""
    monkeypatch.setattr(ceiling, "STARTS", {"truth": ((1.0, 1),)})
    row = ceiling.genuine(world, 2)[0]
    seen = ceiling.shrunk(world.faces.batch(row).float() / 255, 3)
    drawn = world.drawn(world.numbers(row), SMOKE.size, 3)
    assert float((seen - drawn).square().mean().sqrt()) < 3 * world.noise_at(3)
    found = pd.DataFrame(ceiling.fits(world, 2, 3, "truth"))
    assert list(found["same"]) == [True, False, False, True]
    assert np.isfinite(found["log_ratio"]).all()


def test_what_is_known_is_asked_of_new_people(smoke, world):
    faces = known.probes(SMOKE, 0, 8)
    assert faces.digest != world.faces.digest
    assert len(faces) == 8 * known.IMAGES
    found = pd.DataFrame(known.rows(SMOKE, 0, 1, 8))
    assert {"pixels", "untrained"} <= set(found["method"])
    assert set(found["name"]) == set(world.names)
    assert (found["r2"] <= 1).all()
    there = set(zip(found["method"], found["side"], strict=True))
    assert list(known.rows(SMOKE, 0, 1, 8, there)) == [], "what the table has is not asked again"


def test_what_is_fixed_is_what_the_best_vector_keeps():
    """No vector is nearer to the targets than their mean, or mean direction; and both parts make the whole."""
    rng = np.random.default_rng(0)
    targets, own = rng.normal(1, 1, (9, 4)), rng.normal(0, 1, 4)
    found = metamers.split(own, targets)

    def cosine(x):
        return np.mean([1 - x @ t / np.linalg.norm(x) / np.linalg.norm(t) for t in targets])

    def square(x):
        return np.mean([np.sum((x - t) ** 2) for t in targets])

    assert found["cosine_fixed"] + found["cosine_open"] == pytest.approx(cosine(own))
    assert found["l2_fixed"] + found["l2_open"] == pytest.approx(square(own))
    for kind, distance in (("cosine", cosine), ("l2", square)):
        best = minimize(distance, targets.mean(0)).fun
        assert found[f"{kind}_fixed"] == pytest.approx(best, abs=1e-6)
    assert metamers.split(3 * targets[0], targets[:1])["cosine_fixed"] == pytest.approx(0)
    assert metamers.split(own, targets)["length"] < 1


@pytest.mark.slow
def test_draws_look_like_the_image(world, monkeypatch):
    monkeypatch.setattr(metamers, "metamers", partial(ideal_observer.metamers, steps=1))
    row = ceiling.genuine(world, 1)[0][0]
    found = metamers.drawn(world, row, 3, 2)
    own = world.numbers(np.array([row])).numpy()[0]
    assert found.shape == (2, len(own) + 1)
    assert (np.abs(found[:, :-1] - own).max(1) > 0.1).all(), "others"
    seen = ceiling.shrunk(world.faces.batch(np.array([row])).float() / 255, 3)
    left = (world.drawn(torch.from_numpy(found[:, :-1]).float(), SMOKE.size, 3) - seen) / world.noise_at(3)
    np.testing.assert_allclose(left.flatten(1).square().mean(1).sqrt(), found[:, -1], rtol=1e-2)


@pytest.mark.slow
def test_the_page_runs_on_the_committed_tables(smoke, tmp_path, monkeypatch):
    (tmp_path / "results").symlink_to(ceiling.RESULTS)
    names, said = run("why", tmp_path, monkeypatch)
    assert 50 < said["reached"] < said["ideal"] <= 100
    assert 0 < said["share_none"] <= said["share_top"] < 100
    bound = names["bound"].groupby(["side", "kind"]).mean()
    assert bound[names["hard"], "identity"] < bound[names["scale"].size, "identity"]
