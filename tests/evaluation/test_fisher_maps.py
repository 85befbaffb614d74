"""Identity information: forward-mode derivatives against finite differences, and the algebra against dense matrices."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from lrkd.data.degradation import degrade
from lrkd.data.renderer import FaceModel
from lrkd.errors import ConfigError, DataError
from lrkd.evaluation.fisher_maps import Derivatives, derivatives, face_derivatives, fisher


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return FaceModel(seed=0)


@pytest.fixture(scope="module")
def face(model: FaceModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Identity, nuisance and spread of the nuisance of one face, in double precision."""
    generator = torch.Generator().manual_seed(3)
    nuisance = model.sample_nuisance(200, generator).double()
    return model.sample_identity(1, generator)[0].double(), nuisance[0], nuisance.std(0)


def toy(seed: int = 0, identity: int = 4, nuisance: int = 3, side: int = 4) -> Derivatives:
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(rows, 3, side, side, generator=generator, dtype=torch.float64) for rows in (identity, nuisance))
    return Derivatives(*made)


def test_derivatives_are_those_of_finite_differences(model, face):
    """Central differences of the renderer itself, along random directions of identity and of nuisance."""
    identity, nuisance, spread = face
    found = face_derivatives(model, identity, nuisance, spread, 16)
    kept = torch.tensor([not name.startswith("noise") for name in model.nuisance_names])
    assert found.identity.shape == (64, 3, 16, 16)
    assert found.nuisance.shape == (int(kept.sum()), 3, 16, 16)
    generator = torch.Generator().manual_seed(5)
    of = torch.randn(64, generator=generator, dtype=torch.float64)
    by = torch.randn(len(spread), generator=generator, dtype=torch.float64) * kept
    step = 1e-6

    def image(sign: float, moved_identity: bool) -> torch.Tensor:
        z = identity + sign * step * of * moved_identity
        n = nuisance + sign * step * by * spread * (not moved_identity)
        return model.render(z[None], n[None], 16)[0]

    slopes = [(image(1, which) - image(-1, which)) / (2 * step) for which in (True, False)]
    expected = torch.tensordot(of, found.identity, 1), torch.tensordot(by[kept], found.nuisance, 1)
    for measured, ours in zip(slopes, expected, strict=True):
        assert measured.abs().max() > 0.05
        torch.testing.assert_close(ours, measured, rtol=1e-4, atol=1e-6)


def test_rows_and_chunks_change_nothing():
    def function(x: torch.Tensor) -> torch.Tensor:
        return (x @ torch.arange(24.0).reshape(2, 12)).sin().view(-1, 3, 2, 2)

    at = torch.tensor([[0.1, 0.2], [0.3, -0.4]])
    whole = derivatives(function, at)
    assert whole.shape == (2, 2, 3, 2, 2)
    torch.testing.assert_close(derivatives(function, at, chunk=1), whole)
    torch.testing.assert_close(derivatives(function, at[1:])[0], whole[1])
    expected = torch.autograd.functional.jacobian(function, at).diagonal(dim1=0, dim2=4).movedim(-1, 0)
    torch.testing.assert_close(whole.movedim(1, -1), expected.movedim(4, -1))
    with pytest.raises(DataError, match=r"at: expected \(N,D\), one point a row, got \(2,\)"):
        derivatives(function, at[0])


def test_differences_give_nearly_the_same_maps(model, face):
    exact, near = (fisher(face_derivatives(model, *face, 16, step), 0.01).information for step in (0, 1e-3))
    assert torch.corrcoef(torch.stack([exact.flatten(), near.flatten()]))[0, 1] > 0.999
    torch.testing.assert_close(near.sum(), exact.sum(), rtol=0.02, atol=0)

    def line(x: torch.Tensor) -> torch.Tensor:
        return (x @ torch.arange(24.0).reshape(2, 12)).view(-1, 3, 2, 2)

    at = torch.tensor([[0.1, 0.2], [0.3, -0.4]])
    torch.testing.assert_close(derivatives(line, at, chunk=2, step=0.5), derivatives(line, at))


def test_shrunken_derivatives_are_the_derivatives_of_the_shrunken_image(model, face):
    """LR pixels average blocks of HR pixels, and enlarged they are what `degrade` makes of the derivatives."""
    identity, nuisance, spread = face
    found = face_derivatives(model, identity, nuisance, spread, 16)
    low = found.at_side(4)
    expected = found.identity.view(64, 3, 4, 4, 4, 4).mean((3, 5))
    torch.testing.assert_close(low.identity, expected)
    enlarged = degrade(0.5 + 1e-3 * found.identity, 4)  # inside [0,1], where it does not clamp
    up = torch.nn.functional.interpolate(0.5 + 1e-3 * low.identity, (16, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(enlarged, up, rtol=0, atol=1e-9)


def test_information_is_that_of_the_dense_matrices():
    found, noise = toy(), 0.3
    maps = fisher(found, noise)
    j, n = (x.flatten(1).numpy() for x in found)
    covariance = noise**2 * np.eye(j.shape[1]) + n.T @ n
    white = j @ np.linalg.inv(sqrtm(covariance).real)
    np.testing.assert_allclose(maps.information, (white**2).sum(0).reshape(3, 4, 4).sum(0), rtol=1e-8)
    matrix = j @ np.linalg.inv(covariance) @ j.T
    assert float(maps.information.sum()) == pytest.approx(np.trace(matrix))
    assert maps.bits == pytest.approx(np.linalg.slogdet(np.eye(4) + matrix)[1] / 2 / np.log(2))
    np.testing.assert_allclose(maps.energy, (j**2).sum(0).reshape(3, 4, 4).sum(0))
    np.testing.assert_allclose(maps.nuisance, (n**2).sum(0).reshape(3, 4, 4).sum(0))


def test_what_nuisance_can_imitate_is_no_information():
    found, noise = toy(), 0.3
    free = fisher(Derivatives(found.identity, 0 * found.nuisance), noise)
    torch.testing.assert_close(free.information, free.energy / noise**2)
    strong = fisher(Derivatives(found.identity, 1e6 * found.identity), noise)
    assert float(strong.information.sum()) < 1e-6 * float(free.information.sum())
    assert strong.bits < 1e-6
    projected, _ = torch.linalg.qr(found.nuisance.flatten(1).T)
    rest = found.identity.flatten(1) - found.identity.flatten(1) @ projected @ projected.T
    limit = fisher(Derivatives(found.identity, 1e6 * found.nuisance), noise)
    torch.testing.assert_close(
        limit.information, rest.square().sum(0).view(3, 4, 4).sum(0) / noise**2, rtol=1e-4, atol=1e-8
    )


def test_fewer_pixels_never_hold_more(model, face):
    identity, nuisance, spread = face
    found = face_derivatives(model, identity, nuisance, spread, 16)
    bits = [fisher(found.at_side(side), 0.015 * side / 16).bits for side in (16, 8, 4, 2)]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] > 1


def test_bad_input_is_named(model, face):
    identity, nuisance, spread = face
    with pytest.raises(ConfigError, match="noise: expected a standard deviation above zero, got 0"):
        fisher(toy(), 0)
    with pytest.raises(DataError, match=r"spread: expected \(53,\) finite numbers"):
        face_derivatives(model, identity, nuisance, spread[:3], 16)


@pytest.mark.parametrize("step", [0, 1e-3])
def test_several_faces_have_each_its_own_derivatives(model, step):
    """To the rounding of a difference, which is the image's over the step."""
    generator = torch.Generator().manual_seed(3)
    identity, nuisance = model.sample_identity(3, generator), model.sample_nuisance(3, generator)
    spread = model.sample_nuisance(100).std(0)
    together = face_derivatives(model, identity, nuisance, spread, 12, step=step)
    for k, face in enumerate(zip(identity, nuisance, strict=True)):
        for found, alone in zip(together, face_derivatives(model, *face, spread, 12, step=step), strict=True):
            torch.testing.assert_close(found[k], alone, rtol=1e-4, atol=1e-3 if step else 1e-5)
