"""Backbones: one improved residual network with optional CBAM, which returns all that distillation reads.

Networks and their parameter names follow A-SKD (arXiv 2209.14498), so that checkpoints published for it load with
`strict=True`. Attention and features are returned, never hooked.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from inspect import signature
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lrkd.errors import ConfigError
from lrkd.models.layers import Block, Network, Output, PReLU, add_stages, check_input, initialise
from lrkd.models.mobile import MobileFaceNet


class IResNet(Network):
    """Improved residual network: (B,3,size,size) -> Output with embedding (B,embedding).

    Args:
        depths: Blocks of each stage.
        widths: Channels of each stage.
        size: Side of its images in pixels, on which the last layer's weight depends.
        embedding: Length of its embeddings.
        cbam: Whether blocks have attention.
        reduction: Of the channel attention's hidden layer.
        dropout: Before the last, fully connected layer.
        stem: Channels of the first convolution; default: widths[0].
        stem_stride: Its stride.
        strides: Of each stage's first block.
        seed: Of the initialisation (Xavier uniform, PReLU .25); the global generator is left as it was.

    Raises:
        ConfigError: An impossible shape, or, of `forward`, images of another size.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        size: int = 112,
        embedding: int = 512,
        cbam: bool = True,
        reduction: int = 16,
        dropout: float = 0.4,
        stem: int | None = None,
        stem_stride: int = 1,
        strides: Sequence[int] = (2, 2, 2, 2),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not len(depths) == len(widths) == len(strides) > 0 or min(*depths, *widths, *strides, size, embedding) < 1:
            raise ConfigError(
                f"expected one positive entry a stage, a positive size and embedding, got depths {tuple(depths)}, "
                f"widths {tuple(widths)}, strides {tuple(strides)}, size {size} and embedding {embedding}"
            )
        self.size, self.embedding, self.depths, self.widths = size, embedding, tuple(depths), tuple(widths)
        self.parts = frozenset(Output._fields if cbam else Output._fields[:2])
        stem = widths[0] if stem is None else stem
        with torch.random.fork_rng(devices=[]):  # layers draw weights at construction; _initialise replaces them all
            self.input_layer = nn.Sequential(
                nn.Conv2d(3, stem, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(stem), PReLU(stem)
            )
            block = partial(Block, cbam=cbam, reduction=reduction)
            self.stages, side = add_stages(self, block, depths, (stem, *widths), strides, -(-size // stem_stride))
            self.output_layer = nn.Sequential(
                nn.BatchNorm2d(widths[-1]),
                nn.Dropout(dropout),
                nn.Flatten(),
                nn.Linear(widths[-1] * side * side, embedding),
                nn.BatchNorm1d(embedding),
            )
        initialise(self, seed)

    def forward(self, x: Tensor) -> Output:
        check_input(x, self.size)
        features, channels, spatials = [], [], []
        x = self.input_layer(x)
        for name in self.stages:
            for block in self.get_submodule(name).children():
                x, channel, spatial = block(x)
                if channel is not None:
                    channels.append(channel)
                    spatials.append(spatial)
            features.append(x)
        return Output(self.output_layer(x), tuple(features), tuple(channels), tuple(spatials))


class Hints(nn.Module):
    """Hint layers (FitNet, arXiv 1412.6550; F-SKD, 2303.04681): student maps (B,Cs,h,w) -> (B,Ct,h,w), one a stage.

    A 1x1 convolution and BN for each stage, used only in training.

    Raises:
        ConfigError: The numbers of stages differ.
    """

    def __init__(self, student_widths: Sequence[int], teacher_widths: Sequence[int], *, seed: int = 0) -> None:
        super().__init__()
        if len(student_widths) != len(teacher_widths):
            raise ConfigError(
                f"hints: expected as many stages of the student as of the teacher, got widths {tuple(student_widths)} "
                f"and {tuple(teacher_widths)}"
            )
        with torch.random.fork_rng(devices=[]):
            self.stages = nn.ModuleList(
                nn.Sequential(nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside))
                for inside, outside in zip(student_widths, teacher_widths, strict=True)
            )
        initialise(self, seed)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(stage(x) for stage, x in zip(self.stages, features, strict=True))


Builder = TypeVar("Builder", bound=Callable[..., Network])


def _recorded(builder: Builder) -> Builder:
    """Have a builder write down in the network how it was called."""

    @wraps(builder)
    def build_and_record(*given: Any, **named: Any) -> Network:
        bound = signature(builder).bind(*given, **named)
        bound.apply_defaults()
        options = bound.arguments.pop("options")
        made = builder(*given, **named)
        made.origin = {"model": {"name": builder.__name__, **bound.arguments, **options}}
        return made

    return cast(Builder, build_and_record)


@_recorded
def iresnet50(size: int = 112, embedding: int = 512, **options: Any) -> IResNet:
    """Build IResNet-50 with CBAM of A-SKD: (B,3,112,112) -> (B,512), 24 blocks. `options` go to IResNet."""
    return IResNet((3, 4, 14, 3), (64, 128, 256, 512), size=size, embedding=embedding, **options)


@_recorded
def iresnet18(size: int = 112, embedding: int = 512, **options: Any) -> IResNet:
    """Build IResNet-18, F-SKD's smaller student: (B,3,112,112) -> (B,512), 8 blocks. `options` go to IResNet."""
    return IResNet((2, 2, 2, 2), (64, 128, 256, 512), size=size, embedding=embedding, **options)


@_recorded
def small(
    size: int = 48,
    embedding: int = 128,
    widths: Sequence[int] = (16, 32, 64, 128),
    *,
    dropout: float = 0.0,
    **options: Any,
) -> IResNet:
    """Build the network for a CPU: (B,3,48,48) -> (B,128), one block a stage, maps of 24, 12, 6 and 3 px at 48 px."""
    options = {"stem_stride": 2, "strides": (1,) + (2,) * (len(widths) - 1), **options}
    return IResNet((1,) * len(widths), widths, size=size, embedding=embedding, dropout=dropout, **options)


@_recorded
def mobile(
    size: int = 16,
    embedding: int = 128,
    depths: Sequence[int] = (1, 2, 2),
    widths: Sequence[int] = (24, 48, 64),
    **options: Any,
) -> MobileFaceNet:
    """Build the student for small memories: (B,3,16,16) -> (B,128). `options` go to MobileFaceNet."""
    return MobileFaceNet(depths, widths, size=size, embedding=embedding, **options)


BUILDERS: dict[str, Callable[..., Network]] = {
    "iresnet50": iresnet50,
    "iresnet18": iresnet18,
    "small": small,
    "mobile": mobile,
}


def build(name: str, size: int | None = None, embedding: int | None = None, **options: Any) -> Network:
    """Build a network by its name in BUILDERS, as a checkpoint's config has it.

    Args:
        name: A key of BUILDERS.
        size: Side of its images in pixels; None: the default of that network.
        embedding: Length of its embeddings; None: likewise.
        options: Its builder's others.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in BUILDERS:
        raise ConfigError(f"model: expected one of {', '.join(sorted(BUILDERS))}, got {name!r}")
    given = {"size": size, "embedding": embedding, **options}
    return BUILDERS[name](**{key: value for key, value in given.items() if value is not None})
