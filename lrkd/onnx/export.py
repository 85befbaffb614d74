"""A trained network as one ONNX file, in float32, half precision or 8 bits, and such a file as a network again.

The file takes RGB images in [-1,1] at the network's own size, (N,3,S,S) float32 named `images`, and gives `embedding`
(N,D); N is free. Writing needs the packages of the extra `export`; `lrkd.onnx.recogniser.load` needs onnxruntime alone.
"""

import copy
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrkd import __version__
from lrkd.errors import ConfigError, first_line, needed
from lrkd.files import atomic
from lrkd.onnx.quantise import Slope, quantised, shrink
from lrkd.onnx.recogniser import INPUT, OUTPUT, Recogniser, check_images, load

FORMATS = ("onnx", "fp16", "int8")
_METADATA = 4096


def export(
    network: nn.Module,
    path: str | os.PathLike[str],
    format: str = "onnx",
    *,
    calibration: np.ndarray | None = None,
    metadata: Mapping[str, object] | None = None,
) -> "Recogniser":
    """Write a network as one ONNX file with all its weights, and return the file opened again.

    Batch-norm is folded into the convolution or linear layer beside it. The one at the start of an IResNet's block
    remains: the convolution behind it pads with zeros, so that no bias can replace it at the border. A PReLU whose
    slopes are at most 1 becomes max(x, slope x), which ONNX Runtime computes four times as fast. Names are shortened.

    The 8-bit products of int8 are exact on CPUs with VNNI (x86 since about 2019) and on ARM; on an older x86 they
    saturate where both factors are large.

    Args:
        network: IResNet, MobileFaceNet, a published checkpoint, or any module with a `size` whose output is (B,D) or
            has an `.embedding`; it is copied, and the copy runs in evaluation mode.
        path: The file.
        format: "onnx" is float32; "fp16" keeps weights and values in half precision (a CPU computes in float32 all the
            same); "int8" has 8-bit weights, one scale a channel, and 8-bit values, by ONNX Runtime's static
            quantisation.
        calibration: (M,3,S,S) float32, the network's own input for images of training people, as
            `lrkd.onnx.recogniser.inputs` gives it: int8 takes the range of each value from them.
        metadata: Short texts to be kept in the file; colour order, range and version are added.

    Raises:
        ConfigError: The format, the network or the metadata do not fit.
        DataError: The calibration images do not fit.
        RunError: The file cannot be written.
    """
    out, size = Path(path), getattr(network, "size", None)
    if format not in FORMATS:
        raise ConfigError(f"format: expected {', '.join(FORMATS)}, got {format!r}")
    if not isinstance(size, int):
        raise ConfigError(
            f"network: expected one with a size in pixels, as in lrkd.models.backbones, got {type(network).__name__}"
        )
    if format == "int8":
        if calibration is None:
            raise ConfigError(
                "calibration: expected images of training people, of which int8 takes its ranges, got None"
            )
        check_images(calibration, size, "calibration")
    with needed("exporting", "export"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    with warnings.catch_warnings():
        # torch 2.11 deep-copies a class of its own that it has declared deprecated.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        model = _converted(network, size)
        if format == "fp16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            model = convert_float_to_float16(model, keep_io_types=True, op_block_list=[])
        elif calibration is not None and format == "int8":
            model = quantised(model, calibration)
    shrink(model)
    _annotate(model, {"channels": "RGB", "range": "[-1,1]", "lrkd": __version__, **(metadata or {})})
    content = model.SerializeToString()
    made = Recogniser(content, out)
    made(np.zeros((3, 3, size, size), np.float32))  # a batch of another size than the one it was traced with
    with atomic(out, "wb") as file:
        file.write(content)
    return made


def annotate(path: str | os.PathLike[str], metadata: Mapping[str, object]) -> None:
    """Add texts to the metadata of an exported file, in place of those of the same name."""
    import onnx

    load(path)
    model = onnx.load(str(path))
    _annotate(model, {**{entry.key: entry.value for entry in model.metadata_props}, **metadata})
    with atomic(Path(path), "wb") as file:
        file.write(model.SerializeToString())


class _Embedding(nn.Module):
    """The embedding alone, of a copy that computes the same by what ONNX Runtime computes fast."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().float()
        self.eval()
        for module in list(self.network.modules()):
            if isinstance(module, nn.Sequential):
                _fold_flattened(module)
            for name, child in module.named_children():
                if isinstance(child, nn.PReLU):
                    setattr(module, name, Slope(child.weight))

    def forward(self, images: Tensor) -> Tensor:
        out = self.network(images)
        found: Tensor = getattr(out, "embedding", out)
        return found


def _fold_flattened(layers: nn.Sequential) -> None:
    """Fold BatchNorm2d into the linear layer that follows it behind Flatten: W (s x + t) = (W s) x + W t."""
    kinds = [type(layer) for layer in layers if not isinstance(layer, nn.Dropout)]
    if kinds[:3] != [nn.BatchNorm2d, nn.Flatten, nn.Linear]:
        return
    at = {type(layer): layer for layer in reversed(layers)}
    norm, linear = at[nn.BatchNorm2d], at[nn.Linear]
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(linear, nn.Linear)
    # BN is scale and shift: what it makes of 0 and of 1, channel by channel.
    probe = torch.stack([torch.zeros(norm.num_features), torch.ones(norm.num_features)])[..., None, None]
    with torch.no_grad():
        shift, top = norm(probe).flatten(1).repeat_interleave(linear.in_features // norm.num_features, 1)
        linear.bias = nn.Parameter(linear(shift))
        linear.weight = nn.Parameter(linear.weight * (top - shift))
    layers[list(layers).index(norm)] = nn.Identity()


def _converted(network: nn.Module, size: int) -> Any:
    """The network as an onnx.ModelProto in float32, by torch's exporter, which folds batch-norm into convolutions."""
    from onnxscript import opset18

    def largest(x: Any, output_size: Any) -> Any:  # torch 2.11 has no translation; lrkd's maps all shrink to 1 x 1
        return opset18.GlobalMaxPool(x), opset18.GlobalMaxPool(x)

    try:
        program = torch.onnx.export(
            _Embedding(network).eval(),
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            verbose=False,
            opset_version=18,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            custom_translation_table={torch.ops.aten.adaptive_max_pool2d.default: largest},
        )
    except Exception as error:  # whatever torch makes of a module that it cannot follow
        raise ConfigError(
            f"network: expected one that torch can export, got {type(network).__name__} ({first_line(error)})"
        ) from error
    assert program is not None
    return program.model_proto


def _annotate(model: Any, metadata: Mapping[str, object]) -> None:
    found = {str(key): str(value) for key, value in metadata.items()}
    if sum(len(f"{key}{value}".encode()) for key, value in found.items()) > _METADATA:
        raise ConfigError(f"metadata: expected a few words, at most {_METADATA} bytes, got more")
    model.ClearField("metadata_props")
    for key, value in sorted(found.items()):
        model.metadata_props.add(key=key, value=value)
