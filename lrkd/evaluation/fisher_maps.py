"""Maps of Fisher information on identity: the renderer's derivatives by identity, against those by nuisance.

Around one face the renderer is linear: image = image0 + sum_d z_d J_d + sum_k n_k N_k + noise, with z the identity and
n the nuisance, both in units of their standard deviation in the data. J_d and N_k are images too, the derivatives. What
J changes, an observer can use only as far as neither N nor the noise could have caused it: `fisher` measures how far.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lrkd.data.degradation import resampling_matrix
from lrkd.data.renderer import FaceModel
from lrkd.errors import ConfigError, DataError


def derivatives(function: Callable[[Tensor], Tensor], at: Tensor, chunk: int = 128, step: float = 0) -> Tensor:
    """Compute forward-mode derivatives, one `torch.func.jvp` a dimension, or differences.

    Args:
        function: (N,D) -> (N,3,S,S), whose rows do not depend on one another, such as the renderer with its other
            argument fixed.
        at: (N,D), the points.
        chunk: Images of tangents that are computed together, where derivatives are exact.
        step: Of forward differences, which are a fraction of the work: the function is then shown `at`, and (N*D,D),
            each point D times in turn. 0: exact derivatives.

    Returns:
        (N,D,3,S,S).

    Raises:
        DataError: `at` is not (N,D).
    """
    if at.ndim != 2:
        raise DataError(f"at: expected (N,D), one point a row, got {tuple(at.shape)}")

    basis = torch.eye(at.shape[1], dtype=at.dtype, device=at.device)
    if step:
        with torch.no_grad():
            moved = function((at[:, None] + step * basis).flatten(0, 1)).unflatten(0, (len(at), -1))
            return (moved - function(at)[:, None]) / step

    def along(direction: Tensor) -> Tensor:
        return torch.func.jvp(function, (at,), (direction.expand_as(at),))[1]

    with warnings.catch_warnings():  # torch 2.11 warns of its own torch.jit.script at the first use of forward mode
        warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)
        size = max(1, chunk // max(1, len(at)))
        return torch.func.vmap(along, chunk_size=size)(basis).transpose(0, 1).detach()


class Derivatives(NamedTuple):
    """A face's derivatives, each by a standard deviation of the data: what one such step adds to the image.

    Attributes:
        identity: (D,3,S,S), or (N,D,3,S,S) of as many faces.
        nuisance: (K,3,S,S), or (N,K,3,S,S).
    """

    identity: Tensor
    nuisance: Tensor

    def at_side(self, side: int, kernel: str = "area") -> "Derivatives":
        """Shrink the derivatives to `side` pixels by a kernel: (...,3,S,S) -> (...,3,side,side).

        Shrinking is linear, so it does to a derivative what it does to an image. The way up again, by which a network
        sees the LR image at HR size, can be undone, so it neither adds nor takes information and is left out.
        """
        matrix = torch.from_numpy(resampling_matrix(self.identity.shape[-1], side, kernel)).to(self.identity)
        return Derivatives(matrix @ self.identity @ matrix.T, matrix @ self.nuisance @ matrix.T)


def face_derivatives(
    model: FaceModel, identity: Tensor, nuisance: Tensor, spread: Tensor, size: int, step: float = 0
) -> Derivatives:
    """Compute the derivatives of one rendered face at `size` pixels, or of several together, as a GPU likes it.

    The mixing weights and the level of the sensor noise are left out: `fisher` takes noise separately.

    Args:
        model: The renderer.
        identity: (64,), of unit standard deviation in the data, or (N,64).
        nuisance: (K,), or (N,K).
        spread: (K,), the standard deviation of each nuisance in the data.
        size: Of the image, in pixels.
        step: As `derivatives` has it, in standard deviations.

    Raises:
        DataError: `spread` is not of the nuisances, or has values that are negative or not finite.
    """
    kept = [k for k, name in enumerate(model.nuisance_names) if not name.startswith("noise")]
    if spread.shape != nuisance.shape[-1:] or not (torch.isfinite(spread).all() and (spread >= 0).all()):
        raise DataError(f"spread: expected {tuple(nuisance.shape[-1:])} finite numbers >= 0, got {spread.tolist()}")

    who, how = torch.atleast_2d(identity), torch.atleast_2d(nuisance)

    def identify(z: Tensor) -> Tensor:  # each face once, or several times in turn
        return model.image(z, how.repeat_interleave(len(z) // len(who), 0), size)

    def vary(some: Tensor) -> Tensor:  # (.,len(kept)) in standard deviations from each face's own
        full = some.new_zeros(len(some), how.shape[1])
        full = full.index_copy(1, torch.tensor(kept, device=some.device), some * spread[kept])
        each, own = (x.repeat_interleave(len(some) // len(x), 0) for x in (who, how))
        return model.image(each, own + full, size)

    found = derivatives(identify, who, step=step), derivatives(vary, 0 * how[:, kept], step=step)
    return Derivatives(*(found if identity.ndim == 2 else (slopes[0] for slopes in found)))


class Maps(NamedTuple):
    """What each pixel of one face says of identity, (S,S) each.

    Attributes:
        energy: `|d image / d identity|^2`, summed over colours and the identity's dimensions.
        nuisance: The same by nuisance.
        information: The energy that is left after whitening by nuisance and noise. Its sum over the pixels is the trace
            of the Fisher information on the identity.
        bits: Mutual information of a standard normal identity and the linearised image, one number.
    """

    energy: Tensor
    nuisance: Tensor
    information: Tensor
    bits: float


def fisher(found: Derivatives, noise: float) -> Maps:
    """Compute each pixel's Fisher information on the identity, against nuisance and noise, for one face.

    With C = noise^2 I + N^T N the covariance of the image over nuisance and noise (N: the nuisance's derivatives as
    rows), W = J C^(-1/2) are the identity's derivatives in units of what else could have caused them; the map is W^2
    summed over dimensions and colours. It is never negative, and its sum is trace(J C^-1 J^T), the Fisher information.
    Directions that nuisance can imitate count little however large they are: where nuisance is much stronger than the
    noise, this is the identity's derivative with the nuisance's directions projected out, over noise^2. Without
    nuisance it is the plain energy over noise^2. bits = log2 det(I + W W^T) / 2. C^(-1/2) is applied through the
    eigenvectors of N N^T, which is small.

    Args:
        found: The face's derivatives.
        noise: The standard deviation of a pixel's noise, above zero, in units of the intensity range.

    Raises:
        ConfigError: `noise` is not above zero.
    """
    if not noise > 0:
        raise ConfigError(f"noise: expected a standard deviation above zero, got {noise}")
    shape = found.identity.shape
    j, n = found.identity.flatten(1).double(), found.nuisance.flatten(1).double()
    values, vectors = torch.linalg.eigh(n @ n.T)
    kept = values > 1e-10 * values.max().clamp(min=1e-30)
    values = values[kept]
    basis = (vectors[:, kept] / values.sqrt()).T @ n  # orthonormal rows that span the nuisance
    shrink = 1 - noise / (noise**2 + values).sqrt()
    white = (j - ((j @ basis.T) * shrink) @ basis) / noise

    def per_pixel(rows: Tensor) -> Tensor:
        return rows.square().sum(0).view(shape[1:]).sum(0)

    spectrum = torch.linalg.eigvalsh(white @ white.T).clamp(min=0)
    return Maps(per_pixel(j), per_pixel(n), per_pixel(white), float(torch.log2(1 + spectrum).sum() / 2))
