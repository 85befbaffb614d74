"""Soft shapes of which faces are drawn: differentiable, and never sharper than a pixel."""

from __future__ import annotations

import torch
from torch import Tensor

_H = 0.8493218002880191  # sqrt(log2(e) / 2): exp(-x^2 / 2) = exp2(-(_H x)^2), and exp2 is the fast one on a CPU


def edge(distance: Tensor, px: Tensor | float, width: float = 0.004) -> Tensor:
    """Draw a soft step at distance 0, `width` wide but never sharper than a pixel."""
    return step(distance, 1 / (width + 0.28 * px))


def step(x: Tensor, slope: Tensor | float) -> Tensor:
    """Rise from 0 to 1 around x = 0."""
    return torch.sigmoid((x * slope).clamp(-40, 40))  # beyond that are subnormal numbers, slow on a CPU


def line(distance: Tensor, sigma: float, px: Tensor | float) -> Tensor:
    """Draw a Gaussian ridge at distance 0; below a pixel it widens and pales, so that its integral stays."""
    narrow = (sigma * sigma + 0.1 * px * px) ** -0.5
    return torch.exp2(-(distance * (_H * narrow)).square()) * (sigma * narrow)


def bump(x: Tensor, y: Tensor, sx: Tensor | float, sy: Tensor | float) -> Tensor:
    """Draw a Gaussian spot of standard deviations `sx` and `sy`."""
    a, b = x * (_H / sx), y * (_H / sy)
    return torch.exp2(-torch.addcmul(a.square(), b, b))


def ridge(x: Tensor, sigma: Tensor | float) -> Tensor:
    """Draw a Gaussian ridge at x = 0."""
    return torch.exp2(-(x * (_H / sigma)).square())


def plateau(x: Tensor, reach: Tensor | float) -> Tensor:
    """Give 1 inside `|x| < reach`, falling as `exp(-(x/reach)^4)`."""
    return torch.exp2(-1.4427 * (x * (1 / reach)).square().square())


def softplus(x: Tensor, width: float) -> Tensor:
    """Give x where it is positive and 0 elsewhere, with a bend of `width` between."""
    return 0.5 * (x + torch.sqrt(x * x + width * width))


def squircle(x2: Tensor, y2: Tensor, squareness: Tensor | float) -> Tensor:
    """Give the squircle's radius (1 on the outline) from the squared coordinates."""
    cross = x2 * y2
    return torch.sqrt(x2 + y2 - squareness * cross / (1 + 0.15 * cross) + 1e-6)


def rgb(*channels: Tensor) -> Tensor:
    """Stack three (N,S,S) channels to (N,3,S,S)."""
    return torch.stack(channels, dim=1)
