"""The layers that the networks share: what a network returns, CBAM, residual blocks."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrkd.errors import ConfigError


class Output(NamedTuple):
    """What a backbone returns for a batch.

    Attributes:
        embedding: (B,D).
        features: One map (B,C,h,w) a stage.
        channel: One pre-sigmoid attention map (B,C,1,1) a block; empty in a network without CBAM.
        spatial: Likewise, (B,1,h,w).
    """

    embedding: Tensor
    features: tuple[Tensor, ...]
    channel: tuple[Tensor, ...]
    spatial: tuple[Tensor, ...]


class Network(nn.Module):
    """A backbone, as training and evaluation see it: RGB images (B,3,size,size) in [-1,1] -> Output.

    Attributes:
        size: Side of its images in pixels.
        embedding: Length of its embeddings.
        widths: Channels of each feature map; empty in a network that shows none.
        parts: Which fields of Output it fills.
        origin: Where it is from, in plain values: "model" has the arguments of `lrkd.models.backbones.build`, and a
            loaded network has the rest of its run's configuration; empty for one that was built otherwise.
    """

    size: int
    embedding: int
    widths: tuple[int, ...]
    parts: frozenset[str]
    origin: Mapping[str, Any] = {}

    def __call__(self, x: Tensor) -> Output:
        out: Output = super().__call__(x)
        return out

    @staticmethod
    def from_pretrained(source: str | os.PathLike[str], **options: Any) -> "Network":
        """Load a network from a folder or a repository, see `lrkd.models.saved.from_pretrained`."""
        from lrkd.models import saved

        return saved.from_pretrained(source, **options)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write this network into a folder, see `lrkd.models.saved.save_pretrained`."""
        from lrkd.models import saved

        saved.save_pretrained(self, folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Write this network to a repository, see `lrkd.models.saved.push_to_hub`."""
        from lrkd.models import saved

        return saved.push_to_hub(self, repo_id, **options)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model and its submodules in evaluation mode, and each back in its own afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class PReLU(nn.PReLU):
    """PReLU, (B,C,h,w) -> (B,C,h,w). On a CPU through lerp, whose backward pass takes 40 % of the time of prelu's.

    Where no gradient is wanted, prelu gives the same bits in a sixth of the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or not torch.is_grad_enabled():
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
        average, largest = (over_pixels_on_gpu if x.is_cuda else over_pixels)(x)
        return self.shared_mlp(average) + self.shared_mlp(largest)


class SpatialAttention(nn.Module):
    """CBAM's spatial attention with A-SKD's 3x3 kernel: (B,C,h,w) -> pre-sigmoid (B,1,h,w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat(over_channels(x), 1))


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


def add_stages(
    network: nn.Module,
    block: Callable[[int, int, int], nn.Module],
    depths: Sequence[int],
    widths: Sequence[int],
    strides: Sequence[int],
    side: int,
) -> tuple[list[str], int]:
    """Give a network its stages of blocks.

    Args:
        network: It gets layer1, layer2 and so on.
        block: (inside, outside, stride) -> a block.
        depths: Blocks of each stage.
        widths: Channels of the stem, then of each stage.
        strides: Of each stage's first block.
        side: Of the stem's maps.

    Returns:
        The stages' names, and the side of the last one's maps.
    """
    names = []
    for number, (depth, inside, width, stride) in enumerate(zip(depths, widths, widths[1:], strides, strict=False), 1):
        names.append(f"layer{number}")
        rest = (block(width, width, 1) for _ in range(depth - 1))
        network.add_module(names[-1], nn.Sequential(block(inside, width, stride), *rest))
        side = -(-side // stride)
    return names, side


def check_input(x: Tensor, size: int) -> None:
    """Check that a batch is one of images (B,3,size,size).

    Raises:
        ConfigError: It is not.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ConfigError(f"images: expected a tensor of floating point numbers in [-1,1], got {got}")
    if x.ndim != 4 or tuple(x.shape[1:]) != (3, size, size):
        more = ": resize them, or build the network with another size" if x.ndim == 4 and x.shape[1] == 3 else ""
        raise ConfigError(f"images: expected shape (B,3,{size},{size}), got {tuple(x.shape)}{more}")


def over_pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and maximum over the map: (B,C,h,w) -> two of (B,C,1,1).

    On a CPU in channels_last poolings are many times faster, forward and backward, than mean and amax.
    """
    return F.avg_pool2d(x, x.shape[2:]), F.adaptive_max_pool2d(x, 1)


def over_pixels_on_gpu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the same by reductions: CUDA's pooling kernels have a thread an output, which here is a thread a map."""
    return x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)


def over_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and maximum over the channels: (B,C,h,w) -> two of (B,1,h,w)."""
    if x.is_cuda or not x.is_contiguous(memory_format=torch.channels_last):
        return x.mean(1, keepdim=True), x.max(1, keepdim=True).values
    # The channels of a pixel lie side by side: a product and a pooling over rows take half the time of reductions.
    (b, c, h, w), pixels = x.shape, x.permute(0, 2, 3, 1).flatten(1, 2)
    mean = pixels @ pixels.new_full((c, 1), 1 / c)
    return mean.view(b, 1, h, w), F.max_pool2d(pixels, (1, c)).view(b, 1, h, w)


def initialise(module: nn.Module, seed: int) -> None:
    """Draw the weights of convolutions and linear layers, Xavier uniform, from a seed; their biases become 0."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(m.weight, generator=generator)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
