"""Laws of the face renderer: a pure, smooth function of identity and nuisance, at any size, in any batch."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from lrkd.data.face_quantities import AGE_HIGH, AGE_LOW, PARTS
from lrkd.data.renderer import RENDERER_VERSION, FaceModel
from lrkd.errors import ConfigError

# torch's forward mode imports its own scripted decompositions, which warn.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return FaceModel(seed=0)


@pytest.fixture(scope="module")
def people(model: FaceModel) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return model.sample_identity(16, g), model.sample_nuisance(16, g)


def column(model: FaceModel, name: str) -> int:
    return model.nuisance_names.index(name)


def with_nuisance(model: FaceModel, n: int, **values: float) -> torch.Tensor:
    nuisance = model.neutral(n)
    for name, value in values.items():
        nuisance[:, column(model, name)] = value
    return nuisance


@pytest.mark.parametrize("size", [6, 48, 57, 112])
def test_shape_range_and_dtype(model: FaceModel, people: tuple, size: int) -> None:
    images = model(*(x[:5] for x in people), size=size)
    assert images.shape == (5, 3, size, size)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std(dim=(1, 2, 3)).min() > 0.02


def test_extreme_inputs_stay_finite(model: FaceModel) -> None:
    table = model.describe().query("group == 'nuisance'")
    for bound in ("low", "high"):
        identity = torch.full((1, 64), 4.0 if bound == "high" else -4.0, requires_grad=True)
        nuisance = torch.tensor(table[bound].to_numpy(), dtype=torch.float32)[None].requires_grad_()
        image = model.render(identity, nuisance, 48)
        assert torch.isfinite(image).all()
        image.sum().backward()
        assert torch.isfinite(identity.grad).all()
        assert torch.isfinite(nuisance.grad).all()


def test_render_is_a_pure_function(model: FaceModel, people: tuple) -> None:
    state = torch.get_rng_state()
    first = model.render(*people, 48)
    assert torch.equal(first, model.render(*people, 48))
    assert torch.equal(first, FaceModel(seed=0).render(*people, 48))
    assert torch.equal(state, torch.get_rng_state())


def test_batch_does_not_change_an_image(model: FaceModel, people: tuple) -> None:
    together = model.render(*people, 112)
    for i in (0, 7, 15):
        alone = model.render(people[0][i : i + 1], people[1][i : i + 1], 112)
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-4, rtol=0)


def test_images_in_threads_are_the_rendered_images(model: FaceModel, people: tuple) -> None:
    threads = torch.get_num_threads()
    many = model.images(*people, size=112, workers=3)
    assert torch.get_num_threads() == threads
    assert not many.requires_grad
    torch.testing.assert_close(many, model.render(*people, 112), atol=2e-4, rtol=0)
    with pytest.raises(ConfigError, match="identities but"):
        model.images(people[0], people[1][:3], size=112, workers=2)


def test_seeds(model: FaceModel, people: tuple) -> None:
    a, b = (model.sample_identity(4, torch.Generator().manual_seed(s)) for s in (1, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, model.sample_identity(4, torch.Generator().manual_seed(2)))
    assert torch.equal(model.sample_nuisance(3), model.sample_nuisance(3))
    other = FaceModel(seed=1).render(*people, 48)
    assert (other - model.render(*people, 48)).abs().mean() > 0.002  # another world has other skin and moles


@pytest.mark.parametrize("size", [112, 96])
def test_sizes_agree(model: FaceModel, people: tuple, size: int) -> None:
    nuisance = people[1].clone()
    nuisance[:, column(model, "noise")] = 0
    fine = avg_pool2d(model.render(people[0], nuisance, size), 2)
    coarse = model.render(people[0], nuisance, size // 2)
    assert (fine - coarse).abs().mean() < 0.008
    assert (fine - coarse).abs().mean() < 0.15 * fine.std(dim=0).mean()


def test_reverse_and_forward_mode_agree_with_finite_differences(model: FaceModel, people: tuple) -> None:
    x, q = people[0][:2].double(), people[1][:2].double()
    q[:, column(model, "mouth_open")] = 0.4
    g = torch.Generator().manual_seed(5)
    dx, dq = torch.randn(x.shape, generator=g).double(), 0.1 * torch.randn(q.shape, generator=g).double()

    def image(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return model.render(a, b, 24)

    h = 1e-6
    for tangent in ((dx, 0 * dq), (0 * dx, dq)):
        value, forward = torch.func.jvp(image, (x, q), tangent)
        numeric = (image(x + h * tangent[0], q + h * tangent[1]) - image(x - h * tangent[0], q - h * tangent[1])) / (
            2 * h
        )
        assert torch.isfinite(forward).all()
        assert numeric.abs().max() > 0.01
        # At a few pixels a kink (a texel border, the clamp of the range) lies between the two differences.
        assert ((forward - numeric).abs() < 1e-5 + 1e-4 * numeric.abs()).double().mean() > 0.999
        weight = torch.randn(value.shape, generator=g).double()
        _, pull = torch.func.vjp(image, x, q)
        back = sum((a * b).sum() for a, b in zip(pull(weight), tangent, strict=True))
        torch.testing.assert_close(back, (forward * weight).sum())


def test_jacobian_by_vmapped_forward_mode(model: FaceModel, people: tuple) -> None:
    x, q = people[0][0].double(), people[1][:1].double()
    jacobian = torch.func.jacfwd(lambda z: model.render(z[None], q, 16)[0])(x)
    assert jacobian.shape == (3, 16, 16, 64)
    assert torch.isfinite(jacobian).all()
    tangent = torch.func.jvp(lambda z: model.render(z[None], q, 16)[0], (x,), (torch.eye(64, dtype=x.dtype)[3],))[1]
    torch.testing.assert_close(jacobian[..., 3], tangent)


def test_every_identity_dimension_changes_the_image(model: FaceModel) -> None:
    base = torch.zeros(1, 64, dtype=torch.float64)
    q = with_nuisance(model, 1, age=50.0, smile=0.3).double()
    jacobian = torch.func.jacfwd(lambda z: model.render(z, q, 64)[0])(base).squeeze()
    energy = jacobian.flatten(0, 2).square().sum(0)
    assert energy.min() > 1e-4, [n for n, e in zip(model.identity_names, energy, strict=True) if e <= 1e-4]


def test_every_nuisance_dimension_changes_the_image(model: FaceModel, people: tuple) -> None:
    q = with_nuisance(model, 1, glasses=1.0, occluder=1.0, noise=0.02, mouth_open=0.3, blob2=1, blob4=1)
    plain = model.render(people[0][:1], q, 64)
    table = model.describe().query("group == 'nuisance'").reset_index()
    for i, row in table.iterrows():
        moved = q.clone()
        moved[:, i] = row["high"] if abs(row["high"] - q[0, i]) > abs(row["low"] - q[0, i]) else row["low"]
        assert (model.render(people[0][:1], moved, 64) - plain).abs().max() > 0.004, row["name"]


def test_bands_lie_where_their_names_say(model: FaceModel) -> None:
    """Resolution destroys `high` first: the share of its energy that survives averaging to 6 px is the smallest."""
    identity, nuisance = torch.zeros(1, 64, dtype=torch.float64), model.neutral(1).double()
    jacobian = torch.func.jacfwd(lambda z: model.render(z, nuisance, 48)[0])(identity).squeeze().permute(3, 0, 1, 2)
    kept = avg_pool2d(jacobian, 8).square().sum((1, 2, 3)) * 64
    share = (
        pd.Series((kept / jacobian.square().sum((1, 2, 3))).numpy())
        .groupby(model.describe()["group"][:64].to_numpy())
        .median()
    )
    assert share["high"] < share["mid"] < share["low"]


def test_identity_outweighs_nothing_and_nuisance_moves_pixels(model: FaceModel, people: tuple) -> None:
    neutral = model.neutral(16)
    by_identity = model.render(people[0], neutral, 48).var(0).mean()
    by_nuisance = model.render(people[0][:1].expand(16, -1), people[1], 48).var(0).mean()
    assert by_identity > 1e-3
    assert by_nuisance > by_identity  # in pixels the nuisance is the stronger: recognition has to learn


def test_age_greys_the_hair_and_deepens_folds(model: FaceModel) -> None:
    z = torch.zeros(1, 64)
    young, old = (model.quantities(z, with_nuisance(model, 1, age=a)) for a in (AGE_LOW, AGE_HIGH))
    for name in ("hair_grey", "nasolabial", "forehead_lines", "crows_feet"):
        assert old[name].item() > young[name].item() + 1
    # Identity drifts in its own way: two people do not age by the same difference.
    g = torch.Generator().manual_seed(0)
    z = model.sample_identity(2, g)
    young, old = (model.quantities(z, with_nuisance(model, 2, age=a)) for a in (AGE_LOW, AGE_HIGH))
    assert (old["eye_size"] - young["eye_size"]).std() > 1e-5


def test_amplitudes_and_nuisance_scale_tune_the_spread(people: tuple) -> None:
    flat = FaceModel(amplitudes=(0, 0, 0), ageing=0.0)
    images = flat.render(people[0], flat.neutral(16), 32)
    torch.testing.assert_close(images, images[:1].expand_as(images), atol=1e-4, rtol=0)
    calm = FaceModel(nuisance_scale=0.0).sample_nuisance(50)
    assert calm[:, column(flat, "yaw")].std() == 0
    assert calm[:, column(flat, "glasses")].sum() == 0
    wild = FaceModel(nuisance_scale=2.0).sample_nuisance(500)
    assert wild[:, column(flat, "yaw")].std() == pytest.approx(0.28, rel=0.15)


def test_masks(model: FaceModel, people: tuple) -> None:
    images, masks = model.render(people[0], people[1], 64, masks=True)
    assert torch.equal(images, model.render(people[0], people[1], 64))
    assert tuple(sorted(masks)) == tuple(sorted(PARTS))
    total = sum(masks.values())
    for name, mask in masks.items():
        assert mask.shape == (16, 1, 64, 64), name
        assert mask.min() >= 0
        assert mask.max() <= 1
        assert mask.mean() > 0.003, name
    assert total.max() < 1.01
    assert total.mean() < 0.9


def centre(mask: torch.Tensor) -> torch.Tensor:
    axis = torch.linspace(-1, 1, mask.shape[-1])
    weight = mask.sum((1, 2, 3))
    return torch.stack([(mask * axis).sum((1, 2, 3)) / weight, (mask * axis[:, None]).sum((1, 2, 3)) / weight], 1)


def test_masks_follow_the_pose(model: FaceModel, people: tuple) -> None:
    z = people[0][:3]

    def centres(**pose: float) -> dict[str, torch.Tensor]:
        return {k: centre(m) for k, m in model.render(z, with_nuisance(model, 3, **pose), 64, masks=True)[1].items()}

    still, turned, moved, nodded = centres(), centres(yaw=0.3), centres(shift_x=0.1, shift_y=-0.1), centres(pitch=0.25)
    for part in ("eyes", "nose", "mouth", "brows"):
        assert (turned[part][:, 0] - still[part][:, 0] > 0.04).all(), part
        assert (nodded[part][:, 1] - still[part][:, 1] > 0.02).all(), part
        torch.testing.assert_close(moved[part] - still[part], torch.tensor([[0.1, -0.1]] * 3), atol=0.01, rtol=0)
    # The nose stands out, so it moves more than the skin as a whole.
    assert (turned["nose"][:, 0] > turned["skin"][:, 0] + 0.02).all()
    order = [still[p][:, 1] for p in ("hair", "brows", "eyes", "nose", "mouth")]
    assert all((a < b).all() for a, b in pairwise(order))


def test_mirror_of_a_symmetric_face(model: FaceModel) -> None:
    """Turned left is turned right in a mirror, but for what a world has on one side: moles, texture, strands."""
    z = torch.zeros(1, 64)
    flat = dict.fromkeys((f"background{k}_{c}" for k in ("", "2") for c in ("red", "green", "blue")), 0.5)
    left, right = (
        model.render(z, with_nuisance(model, 1, yaw=y, light_azimuth=2 * y, **flat), 32) for y in (-0.2, 0.2)
    )
    assert (left - right.flip(3)).abs().mean() < 0.25 * (left - right).abs().mean()


def test_describe_covers_every_column_and_samples_obey_it(model: FaceModel) -> None:
    table = model.describe()
    assert isinstance(table, pd.DataFrame)
    assert list(table["name"]) == [*model.identity_names, *model.nuisance_names]
    assert table["name"].is_unique
    assert (table["group"] != "nuisance").sum() == model.identity_dim == 64
    assert (table["group"] == "nuisance").sum() == model.nuisance_dim
    assert set(table["group"]) == {"low", "mid", "high", "nuisance"}
    assert table["meaning"].str.len().min() > 2
    assert table["unit"].str.len().min() > 0
    assert (table["low"] < table["high"]).all()
    g = torch.Generator().manual_seed(1)
    samples = torch.cat([model.sample_identity(3000, g), model.sample_nuisance(3000, g)], 1).numpy().astype(np.float64)
    assert (samples >= table["low"].to_numpy() - 1e-6).all()
    assert (samples <= table["high"].to_numpy() + 1e-6).all()
    plain = table["name"].isin(["yaw", "pitch", "roll", "exposure", "age", *model.identity_names]).to_numpy()
    np.testing.assert_allclose(samples.std(0)[plain], table["sd"].to_numpy()[plain], rtol=0.08)
    neutral = model.neutral(2).numpy()
    bounds = table.query("group == 'nuisance'")
    assert (neutral >= bounds["low"].to_numpy()).all()
    assert (neutral <= bounds["high"].to_numpy()).all()


def test_quantities_stay_in_the_described_range(model: FaceModel) -> None:
    table = model.describe().set_index("name")
    z = model.sample_identity(500, torch.Generator().manual_seed(2))
    still = FaceModel(seed=0, ageing=0.0)
    for name, value in still.quantities(z, still.neutral(500)).items():
        if name in model.identity_names:
            assert value.min() >= table.loc[name, "quantity_low"] - 1e-5, name
            assert value.max() <= table.loc[name, "quantity_high"] + 1e-5, name


def test_empty_batch(model: FaceModel) -> None:
    assert model.render(torch.zeros(0, 64), model.neutral(0), 16).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("identity", "nuisance", "size", "message"),
    [
        ((2, 63), None, 16, "identity has shape"),
        ((64,), None, 16, "identity has shape"),
        ((2, 64), (2, 3), 16, "nuisance has shape"),
        ((3, 64), None, 16, "3 identities but 2 nuisances"),
        ((2, 64), None, 0, "size=0"),
        ((2, 64), None, -4, "size=-4"),
        ((2, 64), None, 16.5, "size=16.5"),
    ],
)
def test_bad_input(model: FaceModel, identity: tuple, nuisance: tuple | None, size: int, message: str) -> None:
    q = model.neutral(2) if nuisance is None else torch.zeros(nuisance)
    with pytest.raises(ConfigError, match=message):
        model.render(torch.zeros(identity), q, size)


def test_bad_construction_and_integer_identity(model: FaceModel) -> None:
    with pytest.raises(ConfigError, match="amplitudes"):
        FaceModel(amplitudes=(1.0, 2.0))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nuisance_scale"):
        FaceModel(nuisance_scale=float("nan"))
    with pytest.raises(ConfigError, match="floating point"):
        model.render(torch.zeros(1, 64, dtype=torch.long), model.neutral(1), 16)


def test_the_renderer_of_this_version_renders_these_pixels() -> None:
    """Whoever changes what is rendered raises RENDERER_VERSION, and takes these figures anew."""
    model, g = FaceModel(seed=0, amplitudes=(0.4, 1.3, 1.5)), torch.Generator().manual_seed(7)
    faces = model(model.sample_identity(3, g), model.sample_nuisance(3, g), size=48) * 255
    blocks = adaptive_avg_pool2d(faces, 3).mean(1).flatten(1)
    known = [
        [112.8, 136.4, 120.6, 120.7, 155.1, 124.3, 123.7, 127.6, 133.6],
        [129.9, 103.4, 129.7, 126.9, 141.0, 132.5, 130.7, 107.8, 129.3],
        [102.1, 138.9, 112.1, 126.4, 179.0, 125.1, 112.7, 140.5, 129.0],
    ]
    np.testing.assert_allclose(blocks, known, atol=0.1)
    edges = (faces[:, :, 1:] - faces[:, :, :-1]).abs().mean((1, 2, 3))
    np.testing.assert_allclose(edges, [4.724, 5.311, 4.283], atol=0.01)
    assert RENDERER_VERSION.startswith("d76c1c49")


@pytest.mark.parametrize(
    "wrong",
    [
        {"ageing": math.nan},
        {"ageing": -1.0},
        {"ageing": "old"},
        {"seed": -1},
        {"seed": 0.5},
        {"seed": True},
        {"nuisance_scale": math.inf},
        {"nuisance_scale": None},
        {"amplitudes": 1.0},
        {"amplitudes": (1.0, 1.0)},
        {"amplitudes": (1.0, 1.0, math.nan)},
        {"amplitudes": "abc"},
        {"device": "nowhere"},
    ],
    ids=str,
)
def test_a_world_that_cannot_be_is_refused_by_the_name_of_the_argument(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FaceModel(**wrong)
