"""MobileFaceNet, for students that run where there is little memory."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lrkd.errors import ConfigError
from lrkd.models.layers import Network, Output, PReLU, add_stages, check_input, initialise


class Bottleneck(nn.Module):
    """Inverted residual (arXiv 1801.04381) with MobileFaceNet's PReLU: (B,C,h,w) -> (B,C',h/s,w/s).

    A 1x1 convolution to `expansion` times as many channels, a depthwise 3x3 one with the stride, a 1x1 one back, BN
    after each; with a shortcut where the shape stays.
    """

    def __init__(self, inside: int, outside: int, stride: int = 1, *, expansion: int = 2) -> None:
        super().__init__()
        wide = inside * expansion
        self.shortcut = stride == 1 and inside == outside
        self.layers = nn.Sequential(
            nn.Conv2d(inside, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            PReLU(wide),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            PReLU(wide),
            nn.Conv2d(wide, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.shortcut else out


class MobileFaceNet(Network):
    """A small network for small images, after MobileFaceNet (arXiv 1804.07573): (B,3,size,size) -> Output.

    Deviations: fewer and narrower stages, and no stride in the stem, as the images are small already. It has no
    attention.

    Args:
        depths: Blocks (`Bottleneck`) of each stage.
        widths: Channels of each stage.
        size: Side of its images in pixels.
        embedding: Length of its embeddings.
        strides: Of each stage's first block; default: 1, then 2.
        stem: Channels of the 3x3 convolution before them; default: widths[0].
        last: Channels of the 1x1 convolution after them, before the global depthwise one, whose kernel is as large as
            the map.
        expansion: Of the bottlenecks.
        seed: Of the initialisation, as in `IResNet`.

    Raises:
        ConfigError: An impossible shape, or, of `forward`, images of another size.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        size: int = 16,
        embedding: int = 128,
        strides: Sequence[int] | None = None,
        stem: int | None = None,
        last: int = 128,
        expansion: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        strides = (1,) + (2,) * (len(widths) - 1) if strides is None else strides
        if not len(depths) == len(widths) == len(strides) > 0:
            raise ConfigError(
                f"expected one entry a stage, got depths {tuple(depths)}, widths {tuple(widths)} and strides "
                f"{tuple(strides)}"
            )
        if min(*depths, *widths, *strides, size, embedding, last, expansion) < 1:
            raise ConfigError(
                f"expected positive numbers, got depths {tuple(depths)}, widths {tuple(widths)}, strides "
                f"{tuple(strides)}, size {size}, embedding {embedding}, last {last} and expansion {expansion}"
            )
        self.size, self.embedding, self.depths, self.widths = size, embedding, tuple(depths), tuple(widths)
        self.parts = frozenset(Output._fields[:2])
        stem = widths[0] if stem is None else stem
        with torch.random.fork_rng(devices=[]):
            self.input_layer = nn.Sequential(nn.Conv2d(3, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), PReLU(stem))
            block = partial(Bottleneck, expansion=expansion)
            self.stages, side = add_stages(self, block, depths, (stem, *widths), strides, size)
            self.output_layer = nn.Sequential(
                nn.Conv2d(widths[-1], last, 1, bias=False),
                nn.BatchNorm2d(last),
                PReLU(last),
                nn.Conv2d(last, last, side, groups=last, bias=False),
                nn.BatchNorm2d(last),
                nn.Flatten(),
                nn.Linear(last, embedding, bias=False),
                nn.BatchNorm1d(embedding),
            )
        initialise(self, seed)

    def forward(self, x: Tensor) -> Output:
        check_input(x, self.size)
        features = []
        x = self.input_layer(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
            features.append(x)
        return Output(self.output_layer(x), tuple(features), (), ())
