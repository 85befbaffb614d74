"""Networks of published checkpoints, in RGB, as full networks."""

import os

from torch import Tensor, nn
from torch.nn import functional as F

from lrkd.errors import ConfigError, DataError
from lrkd.models import checkpoints
from lrkd.models.backbones import Hints, IResNet
from lrkd.models.layers import Output


class Foreign(IResNet):
    """A published network: RGB (B,3,112,112) in [-1,1] -> Output, whatever channel order it was trained with.

    AdaFace's embedding is the one of length 1 that the original returns first; its length, which the original returns
    beside it, is left out.

    Attributes:
        family: Whose it is, and how they test.
        depth: 18 to 200.
        channels: The order that it was trained with, "RGB" or "BGR", which `load_foreign` has turned into RGB in the
            first layer's weights.
        hints: F-SKD's hint layers, or None; `hints(out.features)` are the features that the original student returns.
    """

    def __init__(self, found: checkpoints.Checkpoint, channels: str) -> None:
        cbam = found.family is checkpoints.ASKD
        super().__init__(
            checkpoints.DEPTHS[found.depth],
            found.widths,
            size=checkpoints.SIZE,
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
    found = checkpoints.read_checkpoint(path)
    family = found.family
    if channels is None and not family.channels:
        raise ConfigError(f"{path}: expected channels, BGR for AdaFace's or RGB for CVLface's: it may be of either")
    order = checkpoints.check_channels(family.channels if channels is None else channels)
    made = Foreign(found, order).eval()
    state = made.state_dict()
    names = {name: checkpoints.name_in_file(family, name, found.depth) for name in state}
    wanted = {names[name]: tuple(value.shape) for name, value in state.items()}
    if said := checkpoints.differences(wanted, found.state):
        raise DataError(f"{path}: expected the tensors of {family.name}'s IResNet-{found.depth}, got others: {said}")
    state |= {name: found.state[names[name]] for name in state if names[name] in found.state}
    if order == "BGR":
        state["input_layer.0.weight"] = state["input_layer.0.weight"].flip(1)
    made.load_state_dict(state)
    return made
