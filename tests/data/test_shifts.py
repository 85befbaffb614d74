"""Shifts: nothing at dial 0, more of the same to each image as the dial turns, the same from the same seed."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lrkd.data import tables
from lrkd.data.degradation import PRESETS, Degradation, degrade
from lrkd.data.renderer import FaceModel
from lrkd.data.shifts import SHIFTS, Scene
from lrkd.errors import ConfigError, DataError
from lrkd.evaluation import embedding

SIZE, SIDE = 24, 6
MODEL = FaceModel(seed=3)
ON_IMAGES = [name for name, shift in SHIFTS.items() if not shift.rendered]
PIXELS = ["jpeg", "dark", "backlit", "occlusion", "pose", "age"]  # that change the HR images, not their degradation


def rendered(people: int = 3, images: int = 4) -> tables.Faces:
    draw = torch.Generator().manual_seed(0)
    identity, nuisance = MODEL.sample_identity(people, draw), MODEL.sample_nuisance(people * images, draw)
    labels = np.arange(people).repeat(images)
    x = MODEL.images(identity[labels], nuisance, size=SIZE).clamp(0, 1).mul(255).round().byte()
    names = tuple(f"p{k}" for k in range(people))
    table = tables.Faces(x.permute(0, 2, 3, 1).numpy(), labels, nuisance[:, 0].numpy(), None, names, "toy", "toy")
    return replace(table, identity=identity.numpy(), nuisance=nuisance.numpy())


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(rendered(), SIDE, model=MODEL)


def change(scene: Scene, name: str, dial: float, seed: int = 0) -> float:
    """Root mean square change of what a network is shown."""
    return float((SHIFTS[name](scene, dial).seen(seed) - scene.seen(seed)).square().mean().sqrt())


@pytest.mark.parametrize("name", SHIFTS)
def test_dial_zero_is_the_scene_itself(scene, name):
    assert SHIFTS[name](scene, 0) is scene
    assert SHIFTS[name](scene, 0.0).faces.images is scene.faces.images


@pytest.mark.parametrize("name", SHIFTS)
def test_a_larger_dial_changes_more(scene, name):
    grown = [change(scene, name, dial) for dial in (0, 0.25, 0.5, 1)]
    assert grown[0] == 0
    assert np.all(np.diff(grown) > 0)
    assert SHIFTS[name].value(0.25) == pytest.approx(SHIFTS[name].strong / 4)


@pytest.mark.parametrize("name", SHIFTS)
def test_the_same_from_the_same_seed_and_in_the_same_range(scene, name):
    again = [SHIFTS[name](scene, 0.7).seen(seed=4) for _ in range(2)]
    assert torch.equal(*again)
    assert again[0].shape == (len(scene.faces), 3, SIZE, SIZE)
    assert again[0].dtype == torch.float32
    assert 0 <= again[0].min() <= again[0].max() <= 1
    drawn = not torch.equal(again[0], SHIFTS[name](scene, 0.7).seen(seed=5))
    assert drawn == (name in ("noise", "surveillance"))


@pytest.mark.parametrize("name", SHIFTS)
def test_nothing_is_written_to_the_faces(scene, name):
    before, latent = scene.faces.images.copy(), scene.faces.nuisance.copy()
    shifted = SHIFTS[name](scene, 1)
    np.testing.assert_array_equal(scene.faces.images, before)
    np.testing.assert_array_equal(scene.faces.nuisance, latent)
    assert shifted.faces.images.dtype == np.uint8
    assert (shifted.faces.images is not scene.faces.images) == (name in [*PIXELS, "surveillance"])
    np.testing.assert_array_equal(shifted.faces.labels, scene.faces.labels)


def test_what_is_seen_is_what_embed_shows_a_network(scene):
    seen = []

    class Watch(torch.nn.Module):
        size = SIZE

        def forward(self, x):
            seen.append(x)
            return x.flatten(1)

    embedding.embed(Watch(), scene.faces.images, side=SIDE, mirror=False, batch=5)
    np.testing.assert_allclose((torch.cat(seen) + 1) / 2, scene.seen(), atol=1e-6)


def test_noise_grows_on_each_pixel(scene):
    """At LR size and before enlarging, so that twice the dial is twice the change where nothing is clipped."""
    grey = np.full_like(scene.faces.images, 128)
    plain = scene._replace(faces=replace(scene.faces, images=grey), side=SIZE)
    one, two = (SHIFTS["noise"](plain, dial).seen() - plain.seen() for dial in (0.5, 1.0))
    torch.testing.assert_close(two, 2 * one, atol=1e-6, rtol=1e-4)
    assert two.std().item() == pytest.approx(SHIFTS["noise"].strong, rel=0.05)


def test_blur_is_a_gaussian_of_that_width(scene):
    image = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    image[0, SIZE // 2, SIZE // 2] = 255
    table = tables.Faces(image, np.zeros(1, np.int64), None, None, ("p",), "dot", "dot")
    seen = SHIFTS["blur"](Scene(table, SIZE), 0.5).seen()[0, 0]
    at = torch.arange(SIZE) - SIZE // 2
    spread = (seen.sum(0) * at.square()).sum() / seen.sum()
    assert spread.sqrt().item() == pytest.approx(0.5 * SHIFTS["blur"].strong * SIZE, rel=0.05)


def test_dark_is_less_light(scene):
    """A stop halves the light, which is the pixel's value to the power 2.2."""
    dark = SHIFTS["dark"](scene, 2 / SHIFTS["dark"].strong).faces.images / 255.0
    light = scene.faces.images / 255.0
    np.testing.assert_allclose(dark, (light**2.2 / 4) ** (1 / 2.2), atol=0.5 / 255 + 1e-6)


def test_jpeg_is_pillow_s_to_a_few_steps(scene):
    """Both call libjpeg; colour is subsampled by both."""
    ours = SHIFTS["jpeg"](scene, 60 / 95).faces.images
    for mine, image in zip(ours, scene.faces.images, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=40)
        assert np.abs(mine.astype(int) - np.asarray(Image.open(file)).astype(int)).mean() < 2


def test_backlit_darkens_the_middle_and_whitens_the_corners(scene):
    lit, plain = SHIFTS["backlit"](scene, 1).faces.images.astype(int), scene.faces.images.astype(int)
    middle = slice(SIZE // 2 - 3, SIZE // 2 + 3)
    assert (lit[:, middle, middle] <= plain[:, middle, middle]).all()
    assert (lit[:, :2, :2] >= plain[:, :2, :2]).all()


def test_patches_grow_about_their_centres(scene):
    def hidden(dial):
        return (SHIFTS["occlusion"](scene, dial).faces.images != scene.faces.images).any(-1)

    small, large = hidden(0.6), hidden(1.0)
    assert (small <= large).all()
    side = SHIFTS["occlusion"].strong * SIZE
    assert large.sum((1, 2)).max() <= (side + 1) ** 2
    assert large.any((1, 2)).all()


def test_half_a_kernel_is_the_mean_of_both(scene):
    x = scene.faces.batch(np.arange(len(scene.faces))).float() / 255
    mean = (degrade(x, SIDE) + degrade(x, SIDE, preset="askd-compat")) / 2
    torch.testing.assert_close(SHIFTS["kernel"](scene, 0.5).seen(), mean)
    torch.testing.assert_close(SHIFTS["kernel"](scene, 1).seen(), degrade(x, SIDE, preset="askd-compat"))


def test_fewer_pixels_are_those_of_the_sides_between(scene):
    x, wide = scene.faces.batch(np.arange(len(scene.faces))).float() / 255, scene._replace(side=6)

    def seen(side: float) -> torch.Tensor:
        return SHIFTS["resolution"](wide, (6 - side) / 6 / SHIFTS["resolution"].strong).seen()

    for side in (3, 4, 5):
        torch.testing.assert_close(seen(side), degrade(x, side))
    torch.testing.assert_close(seen(4.25), 0.25 * degrade(x, 5) + 0.75 * degrade(x, 4))
    assert SHIFTS["resolution"](scene._replace(side=1), 1).lower == 1


def test_heads_turn_and_ages_part_in_the_renderer_s_own_terms(scene):
    names = MODEL.nuisance_names
    before = scene.faces.nuisance
    pose, age = (SHIFTS[name](scene, 0.5).faces.nuisance for name in ("pose", "age"))
    yaw, old = names.index("yaw"), names.index("age")
    np.testing.assert_allclose(pose[:, yaw], (3 * before[:, yaw]).clip(-0.6, 0.6), rtol=1e-5)
    np.testing.assert_allclose(age[:, old] - 48, 1.75 * (before[:, old] - 48), rtol=1e-4, atol=1e-3)
    others = [k for k, name in enumerate(names) if name not in ("yaw", "pitch")]
    np.testing.assert_array_equal(pose[:, others], before[:, others])


def test_drawn_anew_without_a_change_is_the_same_picture(scene):
    from lrkd.data.shifts import _drawn

    again = _drawn(scene, {}).faces.images.astype(int)
    assert np.abs(again - scene.faces.images).max() <= 1


def test_shifts_compose(scene):
    both = SHIFTS["noise"](SHIFTS["dark"](scene, 0.5), 0.5)
    assert both.degradation.noise == SHIFTS["noise"].value(0.5)
    np.testing.assert_array_equal(both.faces.images, SHIFTS["dark"](scene, 0.5).faces.images)


def test_surveillance_has_at_most_a_quarter_of_the_pixels(scene):
    assert SHIFTS["surveillance"](scene._replace(side=SIZE), 0.5).side == SIZE // 4
    assert SHIFTS["surveillance"](scene._replace(side=3), 0.5).side == 3


def test_the_degradation_of_the_scene_is_kept(scene):
    other = scene._replace(degradation=PRESETS["fskd-test"])
    assert SHIFTS["noise"](other, 1).degradation == Degradation("bilinear", "bilinear", noise=SHIFTS["noise"].strong)


@pytest.mark.parametrize("dial", [-0.1, 1.01, float("nan")])
def test_a_dial_is_from_0_to_1(scene, dial):
    with pytest.raises(ConfigError, match=rf"dial: {dial} is not in \[0,1\]"):
        SHIFTS["dark"](scene, dial)


@pytest.mark.parametrize("name", ["pose", "age"])
def test_photographs_cannot_be_drawn_anew(scene, name):
    plain = replace(scene.faces, identity=None, nuisance=None)
    for faces, model in ((plain, MODEL), (scene.faces, None)):
        with pytest.raises(DataError, match=f"shift '{name}' draws faces anew, and these were not rendered here"):
            SHIFTS[name](Scene(faces, SIDE, model=model), 0)


def test_photographs_take_all_other_shifts(scene):
    plain = Scene(replace(scene.faces, identity=None, nuisance=None), SIDE)
    for name in ON_IMAGES:
        assert change(plain, name, 0.5) == pytest.approx(change(scene, name, 0.5))
