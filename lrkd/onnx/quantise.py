"""8-bit precision, and smaller files."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrkd.onnx.recogniser import INPUT, OUTPUT

# Operators that lose most and gain least in 8 bits are not here: the gates of attention, the slopes of PReLU.
_QUANTISED = (
    "Add", "AveragePool", "Concat", "Conv", "Gemm", "GlobalAveragePool", "LeakyRelu", "MatMul", "Relu", "Reshape",
)  # fmt: skip


# What an operator takes where an attribute is not given, for those that the exporter writes out all the same.
_DEFAULTS = {"auto_pad": b"NOTSET", "group": 1, "dilations": {1}, "strides": {1}, "pads": {0}, "ceil_mode": 0}


class Slope(nn.Module):
    """PReLU as max(x, slope x) where all slopes are at most 1, else as x + (1 - slope) relu(-x)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.steep = bool((weight > 1).any())

    def forward(self, x: Tensor) -> Tensor:
        slope = self.weight[:, None, None]
        return x + (1 - slope) * (-x).relu() if self.steep else torch.maximum(x, slope * x)


class _Batches:
    """A CalibrationDataReader of ONNX Runtime's."""

    def __init__(self, images: np.ndarray) -> None:
        self._rest = iter([images[start : start + 64] for start in range(0, len(images), 64)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._rest, None)
        return None if batch is None else {INPUT: batch}


def quantised(model: Any, calibration: np.ndarray) -> Any:
    """Quantise to 8 bits, in ONNX Runtime's own operators: a tenth smaller than pairs of operators around plain ones.

    Args:
        model: The onnx.ModelProto in float32.
        calibration: (M,3,S,S) float32, images of which the range of each value is taken.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="lrkd-") as folder:
        whole, plain, small = (Path(folder, f"{name}.onnx") for name in ("whole", "plain", "small"))
        onnx.save(model, str(whole))
        quant_pre_process(str(whole), str(plain), skip_symbolic_shape=True)
        nodes = onnx.load(str(plain)).graph.node
        # ONNX Runtime 1.31 leaves a Relu out, and lets its input begin at zero unless others take that too.
        takers = Counter(name for node in nodes for name in node.input)
        shared = [node.name for node in nodes if node.op_type == "Relu" and takers[node.input[0]] > 1]
        quantize_static(
            str(plain),
            str(small),
            _Batches(calibration),
            quant_format=QuantFormat.QOperator,
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_exclude=shared,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(str(small))


def shrink(model: Any) -> None:
    """Leave out, in place, what a reader does not need: names, notes, defaults, and what is there twice."""
    from onnx import helper, numpy_helper

    graph, names = model.graph, {"": "", INPUT: INPUT, OUTPUT: OUTPUT}
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"

    def short(name: str) -> str:
        number = len(names)
        return names.setdefault(name, digits[number // 36] + digits[number % 36] if number < 1296 else f"x{number}")

    known: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    weights = []
    for weight in graph.initializer:
        plain = numpy_helper.from_array(numpy_helper.to_array(weight))
        key = plain.data_type, tuple(plain.dims), plain.raw_data
        if key in known:
            names[weight.name] = known[key]
            continue
        plain.name = known[key] = short(weight.name)
        weights.append(plain)
    for node in graph.node:
        kept = [
            helper.make_attribute(a.name, helper.get_attribute_value(a))
            for a in node.attribute
            if not _is_default(node, a)
        ]
        ends = [short(name) for name in node.input], [short(name) for name in node.output]
        node.CopyFrom(helper.make_node(node.op_type, *ends, domain=node.domain))
        node.attribute.extend(kept)
    for field in ("initializer", "value_info", "metadata_props", "doc_string", "quantization_annotation"):
        graph.ClearField(field)
    graph.initializer.extend(weights)
    for end in (*graph.input, *graph.output):
        end.ClearField("metadata_props")
        end.type.tensor_type.shape.dim[0].dim_param = "N"
    used = {node.domain for node in graph.node}
    opsets = [entry for entry in model.opset_import if entry.domain in used]
    for field in ("opset_import", "metadata_props", "doc_string", "functions", "producer_version"):
        model.ClearField(field)
    model.opset_import.extend(opsets)
    graph.name = model.producer_name = "lrkd"


def _is_default(node: Any, attribute: Any) -> bool:
    """Return whether an attribute says what would hold without it."""
    from onnx import helper

    if attribute.name == "kernel_shape":
        return node.op_type in ("Conv", "QLinearConv")  # the weight has it
    value = helper.get_attribute_value(attribute)
    return attribute.name in _DEFAULTS and _DEFAULTS[attribute.name] == (
        set(value) if isinstance(value, list) else value
    )
