"""Backbones: one improved residual network with optional CBAM, which returns all that distillation reads.

Networks and their parameter names follow A-SKD (arXiv 2209.14498), so that checkpoints published for it load with
`strict=True`. Attention and features are returned, never hooked.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrkd import foreign
from lrkd.errors import ConfigError, DataError


class Output(NamedTuple):
    """What a backbone returns for a batch.

    embedding (B,D); features: one map (B,C,h,w) a stage; channel and spatial: one pre-sigmoid attention map a block,
    (B,C,1,1) and (B,1,h,w). Both are empty tuples in a network without CBAM.
    """

    embedding: Tensor
    features: tuple[Tensor, ...]
    channel: tuple[Tensor, ...]
    spatial: tuple[Tensor, ...]


class Network(nn.Module):
    """A backbone, as training and evaluation see it: RGB images (B,3,size,size) in [-1,1] -> Output.

    size: side of its images in pixels. embedding: length of its embeddings. widths: channels of each feature map;
    empty in a network that shows none. parts: which fields of Output it fills.
    """

    size: int
    embedding: int
    widths: tuple[int, ...]
    parts: frozenset[str]

    def __call__(self, x: Tensor) -> Output:
        out: Output = super().__call__(x)
        return out


class PReLU(nn.PReLU):
    """PReLU, (B,C,h,w) -> (B,C,h,w). On a CPU through lerp, whose backward pass takes 40 % of the time of prelu's."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return super().forward(x)
        return torch.lerp(x.relu(), x, self.weight.to(x.dtype)[:, None, None])


class Pointwise(nn.Conv2d):
    """1x1 convolution with a stride, (B,C,h,w) -> (B,C',h/s,w/s), without a bias.

    Where oneDNN would do it on a CPU, the gradient of the weight of fewer than 16 channels in channels_last is written
    past its end (torch 2.11: a crash from about 40 px on). Picking the pixels first gives the same sums, and to the
    bit where h and w are multiples of the stride.
    """

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels < 16 and x.device.type == "cpu" and torch.is_grad_enabled():
            return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight)
        return super().forward(x)


class ChannelAttention(nn.Module):
    """CBAM's channel attention (arXiv 1807.06521): (B,C,h,w) -> pre-sigmoid (B,C,1,1).

    MLP(average over the map) + MLP(maximum over the map) with one MLP, without biases. The hidden layer has
    C // reduction units but never fewer than 4: with 1 the map of 16 channels would have rank one, and its cosine would
    say nothing. Networks from 64 channels up are as published.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.shared_mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        average, largest = (_over_pixels_on_gpu if x.is_cuda else _over_pixels)(x)
        return self.shared_mlp(average) + self.shared_mlp(largest)


class SpatialAttention(nn.Module):
    """CBAM's spatial attention with A-SKD's 3x3 kernel: (B,C,h,w) -> pre-sigmoid (B,1,h,w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat(_over_channels(x), 1))


class Block(nn.Module):
    """Improved residual block: (B,C,h,w) -> (x (B,C',h/s,w/s), channel map or None, spatial map or None).

    BN, conv, BN, PReLU, conv with the stride, BN; then channel and spatial attention on the residual; then the
    shortcut, a strided 1x1 convolution with BN where the shape changes.
    """

    def __init__(self, inside: int, outside: int, stride: int = 1, *, cbam: bool = True, reduction: int = 16) -> None:
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inside),
            nn.Conv2d(inside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
            PReLU(outside),
            nn.Conv2d(outside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.channel_layer = ChannelAttention(outside, reduction) if cbam else None
        self.spatial_layer = SpatialAttention() if cbam else None
        self.shortcut_layer = None
        if stride != 1 or inside != outside:
            self.shortcut_layer = nn.Sequential(Pointwise(inside, outside, stride), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        residual, channel, spatial = self.res_layer(x), None, None
        if self.channel_layer is not None and self.spatial_layer is not None:
            channel = self.channel_layer(residual)
            residual = residual * channel.sigmoid()
            spatial = self.spatial_layer(residual)
            residual = residual * spatial.sigmoid()
        shortcut = x if self.shortcut_layer is None else self.shortcut_layer(x)
        return shortcut + residual, channel, spatial


def _add_stages(
    network: nn.Module,
    block: Callable[[int, int, int], nn.Module],
    depths: Sequence[int],
    widths: Sequence[int],
    strides: Sequence[int],
    side: int,
) -> tuple[list[str], int]:
    """Give a network its stages of block(inside, outside, stride); their names, and the side of the last one's maps.

    widths: that of the stem, then one a stage.
    """
    names = []
    for number, (depth, inside, width, stride) in enumerate(zip(depths, widths, widths[1:], strides, strict=False), 1):
        names.append(f"layer{number}")
        rest = (block(width, width, 1) for _ in range(depth - 1))
        network.add_module(names[-1], nn.Sequential(block(inside, width, stride), *rest))
        side = -(-side // stride)
    return names, side


def check_input(x: Tensor, size: int) -> None:
    """Raise ConfigError for anything but images (B,3,size,size)."""
    if x.ndim != 4 or tuple(x.shape[1:]) != (3, size, size):
        raise ConfigError(
            f"this network takes images of shape (B,3,{size},{size}), not {tuple(x.shape)}: "
            f"resize them, or build it with another size"
        )


class IResNet(Network):
    """Improved residual network: (B,3,size,size) -> Output with embedding (B,embedding).

    depths and widths: blocks and channels of each stage. strides: of each stage's first block. stem_stride: of the
    first convolution, whose channels are `stem` (default widths[0]). dropout: before the last, fully connected layer,
    whose weight depends on size. seed: of the initialisation (Xavier uniform, PReLU .25); the global generator is left
    as it was. Raises ConfigError for an impossible shape and for an input of another size.
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
                f"depths {tuple(depths)}, widths {tuple(widths)} and strides {tuple(strides)} must have one positive "
                f"entry a stage, and size {size} and embedding {embedding} must be positive"
            )
        self.size, self.embedding, self.depths, self.widths = size, embedding, tuple(depths), tuple(widths)
        self.parts = frozenset(Output._fields if cbam else Output._fields[:2])
        stem = widths[0] if stem is None else stem
        with torch.random.fork_rng(devices=[]):  # layers draw weights at construction; _initialise replaces them all
            self.input_layer = nn.Sequential(
                nn.Conv2d(3, stem, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(stem), PReLU(stem)
            )
            block = partial(Block, cbam=cbam, reduction=reduction)
            self.stages, side = _add_stages(self, block, depths, (stem, *widths), strides, -(-size // stem_stride))
            self.output_layer = nn.Sequential(
                nn.BatchNorm2d(widths[-1]),
                nn.Dropout(dropout),
                nn.Flatten(),
                nn.Linear(widths[-1] * side * side, embedding),
                nn.BatchNorm1d(embedding),
            )
        _initialise(self, seed)

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

    depths, widths, strides: blocks, channels and first stride of each stage of `Bottleneck`s. stem: channels of the 3x3
    convolution before them (default widths[0]). last: channels of the 1x1 convolution after them, before the global
    depthwise one, whose kernel is as large as the map. No attention. seed: of the initialisation, as in `IResNet`.
    Deviations: fewer and narrower stages, and no stride in the stem, as the images are small already.
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
                f"depths {tuple(depths)}, widths {tuple(widths)}, strides {tuple(strides)}: give one entry a stage"
            )
        if min(*depths, *widths, *strides, size, embedding, last, expansion) < 1:
            raise ConfigError("depths, widths, strides, size, embedding, last and expansion must be positive")
        self.size, self.embedding, self.depths, self.widths = size, embedding, tuple(depths), tuple(widths)
        self.parts = frozenset(Output._fields[:2])
        stem = widths[0] if stem is None else stem
        with torch.random.fork_rng(devices=[]):
            self.input_layer = nn.Sequential(nn.Conv2d(3, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), PReLU(stem))
            block = partial(Bottleneck, expansion=expansion)
            self.stages, side = _add_stages(self, block, depths, (stem, *widths), strides, size)
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
        _initialise(self, seed)

    def forward(self, x: Tensor) -> Output:
        check_input(x, self.size)
        features = []
        x = self.input_layer(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
            features.append(x)
        return Output(self.output_layer(x), tuple(features), (), ())


class Hints(nn.Module):
    """Hint layers (FitNet, arXiv 1412.6550; F-SKD, 2303.04681): student maps (B,Cs,h,w) -> (B,Ct,h,w), one a stage.

    A 1x1 convolution and BN for each stage, used only in training. Raises ConfigError if the numbers of stages differ.
    """

    def __init__(self, student_widths: Sequence[int], teacher_widths: Sequence[int], *, seed: int = 0) -> None:
        super().__init__()
        if len(student_widths) != len(teacher_widths):
            raise ConfigError(
                f"hints join stages one to one: student widths {tuple(student_widths)}, "
                f"teacher widths {tuple(teacher_widths)}"
            )
        with torch.random.fork_rng(devices=[]):
            self.stages = nn.ModuleList(
                nn.Sequential(nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside))
                for inside, outside in zip(student_widths, teacher_widths, strict=True)
            )
        _initialise(self, seed)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(stage(x) for stage, x in zip(self.stages, features, strict=True))


def iresnet50(size: int = 112, embedding: int = 512, **options: Any) -> IResNet:
    """IResNet-50 with CBAM of A-SKD: (B,3,112,112) -> (B,512), 24 blocks. `options` go to IResNet."""
    return IResNet((3, 4, 14, 3), (64, 128, 256, 512), size=size, embedding=embedding, **options)


def iresnet18(size: int = 112, embedding: int = 512, **options: Any) -> IResNet:
    """IResNet-18, F-SKD's smaller student: (B,3,112,112) -> (B,512), 8 blocks. `options` go to IResNet."""
    return IResNet((2, 2, 2, 2), (64, 128, 256, 512), size=size, embedding=embedding, **options)


def small(
    size: int = 48,
    embedding: int = 128,
    widths: Sequence[int] = (16, 32, 64, 128),
    *,
    dropout: float = 0.0,
    **options: Any,
) -> IResNet:
    """The network for a CPU: (B,3,48,48) -> (B,128), one block a stage, maps of 24, 12, 6 and 3 px at 48 px."""
    options = {"stem_stride": 2, "strides": (1,) + (2,) * (len(widths) - 1), **options}
    return IResNet((1,) * len(widths), widths, size=size, embedding=embedding, dropout=dropout, **options)


def mobile(
    size: int = 16,
    embedding: int = 128,
    depths: Sequence[int] = (1, 2, 2),
    widths: Sequence[int] = (24, 48, 64),
    **options: Any,
) -> MobileFaceNet:
    """The student for small memories: (B,3,16,16), not enlarged, -> (B,128). `options` go to MobileFaceNet."""
    return MobileFaceNet(depths, widths, size=size, embedding=embedding, **options)


BUILDERS: dict[str, Callable[..., Network]] = {
    "iresnet50": iresnet50,
    "iresnet18": iresnet18,
    "small": small,
    "mobile": mobile,
}


def build(name: str, size: int | None = None, embedding: int | None = None, **options: Any) -> Network:
    """A network by its name in BUILDERS, for a checkpoint's config; None keeps the name's default.

    Raises ConfigError for an unknown name.
    """
    if name not in BUILDERS:
        raise ConfigError(f"unknown model {name!r}: choose one of {', '.join(sorted(BUILDERS))}")
    given = {"size": size, "embedding": embedding, **options}
    return BUILDERS[name](**{key: value for key, value in given.items() if value is not None})


class Foreign(IResNet):
    """A published network: RGB (B,3,112,112) in [-1,1] -> Output, whatever channel order it was trained with.

    family: whose it is, and how they test. depth: 18 to 200. channels: the order that it was trained with ("RGB" or
    "BGR"), which `load_foreign` has turned into RGB in the first layer's weights. hints: F-SKD's hint layers, or None;
    where there are some, `hints(out.features)` are the features that the original student returns. AdaFace's embedding
    is the one of length 1 that the original returns first; the length, which it returns beside it, is no part of it.
    """

    def __init__(self, found: foreign.Checkpoint, channels: str) -> None:
        cbam = found.family is foreign.ASKD
        super().__init__(
            foreign.DEPTHS[found.depth],
            found.widths,
            size=foreign.SIZE,
            embedding=found.embedding,
            stem=found.stem,
            cbam=cbam,
            dropout=0.4 if cbam or found.family.body else 0.0,
        )
        self.family, self.depth, self.channels = found.family, found.depth, channels
        if found.family.body:
            for name, inside, outside in zip(self.stages, (found.stem, *found.widths), found.widths, strict=False):
                if inside == outside:
                    self.get_submodule(name)[0].shortcut_layer = nn.MaxPool2d(1, 2)  # type: ignore[index]
            self.output_layer[-1] = nn.BatchNorm1d(found.embedding, affine=False)
        self.hints = Hints(found.widths, found.widths) if found.hints else None
        if self.hints is not None and found.hints == "conv":
            self.hints.stages = nn.ModuleList(nn.Sequential(stage[0]) for stage in self.hints.stages)  # type: ignore[index]

    def forward(self, x: Tensor) -> Output:
        out = super().forward(x)
        return out._replace(embedding=F.normalize(out.embedding)) if self.family.unit else out


def load_foreign(path: str | os.PathLike[str], *, channels: str | None = None) -> Foreign:
    """Load a published checkpoint as a network in evaluation mode, strictly: every tensor of the network has its place.

    Known are A-SKD's CBAM IResNet-50, -100 and -152, F-SKD's iresnet18 to 200, with or without hint layers, and
    AdaFace's IR-18 to 101, which expect BGR; insightface's arcface_torch iresnet18 to 200 and CVLface's IR-18 to 101,
    which expect RGB; all at 112 px. The file is read as data: no code in it is run.

    Args:
        path: A checkpoint of torch (bare, wrapped, of Lightning or DataParallel) or a safetensors file.
        channels: "RGB" or "BGR", which overrules the family's, for a file that does not say whose it is.

    Raises:
        ConfigError: `channels` is neither, or is missing where the file does not say whose it is.
        DataError: A file that cannot be read, or whose keys or shapes differ; with the keys.
    """
    found = foreign.read_checkpoint(path)
    family = found.family
    if channels is None and not family.channels:
        raise ConfigError(f"{path}: does not say whose it is: give channels, BGR for AdaFace's and RGB for CVLface's")
    order = foreign.check_channels(family.channels if channels is None else channels)
    made = Foreign(found, order).eval()
    state = made.state_dict()
    names = {name: foreign.name_in_file(family, name, found.depth) for name in state}
    wanted = {names[name]: tuple(value.shape) for name, value in state.items()}
    if said := foreign.differences(wanted, found.state):
        raise DataError(f"{path}: taken for {family.name}'s IResNet-{found.depth}, but: {said}")
    state |= {name: found.state[names[name]] for name in state if names[name] in found.state}
    if order == "BGR":
        state["input_layer.0.weight"] = state["input_layer.0.weight"].flip(1)
    made.load_state_dict(state)
    return made


def _over_pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum over the map: (B,C,h,w) -> two of (B,C,1,1).

    On a CPU in channels_last poolings are many times faster, forward and backward, than mean and amax.
    """
    return F.avg_pool2d(x, x.shape[2:]), F.adaptive_max_pool2d(x, 1)


def _over_pixels_on_gpu(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same by reductions: CUDA's pooling kernels have a thread an output, which here is a thread a map."""
    return x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)


def _over_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum over the channels: (B,C,h,w) -> two of (B,1,h,w)."""
    if x.is_cuda or not x.is_contiguous(memory_format=torch.channels_last):
        return x.mean(1, keepdim=True), x.max(1, keepdim=True).values
    # The channels of a pixel lie side by side: a product and a pooling over rows take half the time of reductions.
    (b, c, h, w), pixels = x.shape, x.permute(0, 2, 3, 1).flatten(1, 2)
    mean = pixels @ pixels.new_full((c, 1), 1 / c)
    return mean.view(b, 1, h, w), F.max_pool2d(pixels, (1, c)).view(b, 1, h, w)


def _initialise(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(m.weight, generator=generator)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
