"""A trained network as one ONNX file, in float32, half precision or 8 bits, and such a file as a network again.

The file takes RGB images in [-1,1] at the network's own size, (N,3,S,S) float32 named `images`, and gives `embedding`
(N,D); N is free. Writing needs the packages of the extra `export`; `load` needs onnxruntime and numpy alone.
"""

import copy
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lrkd import __version__, onnx_session, verify
from lrkd.data import Faces
from lrkd.errors import ConfigError, DataError, needed
from lrkd.onnx_session import first_line
from lrkd.photographs import FORMATS as PHOTOGRAPHS
from lrkd.photographs import MAX_FILE, upright
from lrkd.runs import atomic

FORMATS = ("onnx", "fp16", "int8")
INPUT, OUTPUT = "images", "embedding"
LIMIT = 2**29  # bytes; IResNet-200 has half of that
_METADATA = 4096
# Operators that lose most and gain least in 8 bits are not here: the gates of attention, the slopes of PReLU.
_QUANTISED = (
    "Add", "AveragePool", "Concat", "Conv", "Gemm", "GlobalAveragePool", "LeakyRelu", "MatMul", "Relu", "Reshape",
)  # fmt: skip


def export(
    network: nn.Module,
    path: str | os.PathLike[str],
    format: str = "onnx",
    *,
    calibration: np.ndarray | None = None,
    metadata: Mapping[str, object] | None = None,
) -> "Recogniser":
    """Write a network as one ONNX file with all its weights, and return the file opened again.

    network: IResNet, MobileFaceNet, Foreign, or any module with a `size` whose output is (B,D) or has an `.embedding`;
        it is copied, and the copy runs in evaluation mode.
    format: "onnx" is float32; "fp16" keeps weights and values in half precision (a CPU computes in float32 all the
        same); "int8" has 8-bit weights, one scale a channel, and 8-bit values, by ONNX Runtime's static quantisation.
    calibration: (M,3,S,S) float32, the network's own input for images of training people: int8 takes the range of each
        value from them.
    metadata: short texts to be kept in the file, with which `load` gives them back; colour order, range and version are
        added.

    Batch-norm is folded into the convolution or linear layer beside it. What an IResNet's block begins with stays: it
    stands before a convolution that pads with zeros, so that no bias can stand for it at the border. A PReLU whose
    slopes are at most 1 becomes max(x, slope x), which ONNX Runtime computes four times as fast. Names are shortened.

    The 8-bit products of int8 are exact on CPUs with VNNI (x86 since about 2019) and on ARM; on an older x86 they
    saturate where both factors are large.

    Raises ConfigError for a format, a network or metadata that do not fit, DataError for calibration images that do
    not, RunError for a file that cannot be written.
    """
    out, size = Path(path), getattr(network, "size", None)
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}: the formats are {', '.join(FORMATS)}")
    if not isinstance(size, int):
        raise ConfigError(f"network: {type(network).__name__} has no size in pixels: a network of lrkd.models has one")
    if format == "int8":
        if calibration is None:
            raise ConfigError("calibration is None: int8 takes its ranges from images of training people")
        _check_images(calibration, size, "calibration")
    with _packages():
        model = _converted(network, size)
        if format == "fp16":
            model = _half(model)
        elif calibration is not None and format == "int8":
            model = _quantised(model, calibration)
    _shrink(model)
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


class Recogniser(nn.Module):
    """An exported file as a network: (N,3,size,size) float32 -> (N,embedding), numpy array or CPU tensor alike.

    As a module without parameters it goes wherever a network is only looked through: `verify.embed` and what builds on
    it. metadata: the texts of the file. bytes: its length. Made by `load`.
    """

    def __init__(self, content: bytes, path: Path, threads: int | None = None) -> None:
        super().__init__()
        session = onnx_session.open(content, path, threads)
        takes, gives = session.get_inputs(), session.get_outputs()
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        fit = len(takes) == len(gives) == 1 and takes[0].name == INPUT and gives[0].name == OUTPUT
        fit = fit and takes[0].type == gives[0].type == "tensor(float)"
        fit = fit and len(takes[0].shape) == 4 and len(gives[0].shape) == 2
        if not fit or takes[0].shape[1:] != [3, takes[0].shape[3], takes[0].shape[3]]:
            said = "; ".join(f"{end.name} {end.type} {end.shape}" for end in (*takes, *gives))
            raise DataError(f"{path}: has {said}; wanted: {INPUT} float (N,3,S,S) and {OUTPUT} float (N,D)")
        fixed = [end.name for end in (*takes, *gives) if isinstance(end.shape[0], int)]
        sizes = takes[0].shape[3], gives[0].shape[1]
        if fixed or not all(isinstance(value, int) and value > 0 for value in sizes):
            raise DataError(f"{path}: wanted: images of one fixed size in batches of any; has {takes[0].shape}")
        self.size, self.embedding = sizes
        self.path, self.bytes, self._session = path, len(content), session

    def forward(self, images: Any) -> Any:
        """(N,3,S,S) float32 in [-1,1] -> (N,D) float32; raises DataError for anything else."""
        x = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
        _check_images(x, self.size, INPUT)
        try:
            (found,) = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(x)})
        except Exception as error:
            raise DataError(f"{self.path}: ONNX Runtime cannot run it ({first_line(error)})") from error
        if found.shape != (len(x), self.embedding):
            raise DataError(f"{self.path}: gave {found.shape} for {len(x)} images, not ({len(x)},{self.embedding})")
        return torch.from_numpy(found) if isinstance(images, Tensor) else found


def load(path: str | os.PathLike[str], *, threads: int | None = None, limit: int = LIMIT) -> Recogniser:
    """An exported file as a network on numpy arrays, computed by ONNX Runtime on the CPU.

    threads: that one call computes with (default: torch's). limit: bytes; a larger file is not read.

    Raises DataError, naming the file, where it cannot be read, is no ONNX file, takes its weights from other files,
    which nothing says are its own, or has another input or output than `export` gives.
    """
    return Recogniser(onnx_session.read(path, limit), Path(path), threads)


class Agreement(NamedTuple):
    """How alike a network and its exported file see the same images.

    cosine: (N,) between their embeddings. network, file: accuracy of each by the 10 folds. threshold: on the cosine of
    two of the file's embeddings, nothing subtracted, with the highest accuracy on these pairs. false_match: the share
    of their impostor pairs that lie above it.
    """

    cosine: np.ndarray
    network: float
    file: float
    threshold: float
    false_match: float


def agreement(
    network: nn.Module,
    exported: Recogniser,
    faces: Faces,
    *,
    side: int | None = None,
    preset: str = "area-bicubic",
    mirror_first: bool = False,
) -> Agreement:
    """Compare a network with its exported file on images with pairs, degraded to `side` first as `verify.embed` does.

    Cosines and threshold are of the images alone, accuracies with their mirror images, as everywhere in lrkd.
    """
    if faces.pairs is None:
        raise DataError(f"{faces.name}: has no verification pairs")
    pairs = faces.pairs
    a, b = (
        verify.embed(one, faces.images, side=side, preset=preset, mirror_first=mirror_first, device="cpu")
        for one in (network, exported)
    )
    gone = pairs.touch(faces.missing)
    right = [
        verify.kfold_verification(x[pairs.left], x[pairs.right], pairs.same, pairs.fold, missing=gone).mean
        for x in (a, b)
    ]
    alone = b[:, : exported.embedding]
    scores = verify.cosine_scores(alone[pairs.left], alone[pairs.right])
    cut, _ = verify.best_threshold(scores[~gone], pairs.same[~gone])
    wrong = float(((scores > cut) & ~gone)[~pairs.same].mean())
    return Agreement(verify.cosine_scores(a[:, : exported.embedding], alone), right[0], right[1], cut, wrong)


def inputs(
    network: nn.Module, images: Any, *, side: int | None = None, preset: str = "area-bicubic", seed: int = 0
) -> np.ndarray:
    """What `verify.embed` shows the network of uint8 images: (N,H,W,3) -> (N,3,S,S) float32, to calibrate `export`."""
    size = network.size
    assert isinstance(size, int)
    look = nn.Flatten()
    look.size = size
    seen = verify.embed(look, images, side=side, preset=preset, mirror=False, channels_last=False, seed=seed)
    return seen.reshape(len(images), 3, size, size)


def photograph(path: str | os.PathLike[str], size: int) -> np.ndarray:
    """An image file -> (size,size,3) uint8 RGB: turned upright by its EXIF, the square in its middle, brought to size.

    It is made smaller by averaging areas and larger by bicubic interpolation. No face is looked for: crop it before.

    Raises DataError, naming the file, for what is no image in PHOTOGRAPHS with 8 bits a channel, or too large a one.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such file: a photograph of a face is right")
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE + 1)
        with upright(data) as whole:
            side = min(whole.size)
            left, top = ((length - side) / 2 for length in whole.size)
            kernel = Image.Resampling.BOX if side >= size else Image.Resampling.BICUBIC
            return np.array(whole.resize((size, size), kernel, (left, top, left + side, top + side)))
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        wanted = f"an image in {', '.join(PHOTOGRAPHS)}"
        raise DataError(f"{file}: cannot be read as a photograph ({first_line(error)}): {wanted} is right") from error


def _check_images(images: Any, size: int, name: str) -> None:
    if not isinstance(images, np.ndarray) or images.dtype != np.float32 or images.shape[1:] != (3, size, size):
        said = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{name}: {said} is not float32 (N,3,{size},{size})")
    if not len(images) or not np.isfinite(images).all() or np.abs(images).max() > 1 + 1e-3:
        raise DataError(f"{name}: wanted: at least one image with values in [-1,1], of which none is not finite")


@contextmanager
def _packages() -> Iterator[None]:
    with needed("exporting", "export"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    with warnings.catch_warnings():
        # torch 2.11 deep-copies a class of its own that it has declared deprecated.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        yield


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
                    setattr(module, name, _Slope(child.weight))

    def forward(self, images: Tensor) -> Tensor:
        out = self.network(images)
        found: Tensor = getattr(out, "embedding", out)
        return found


class _Slope(nn.Module):
    """PReLU."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.steep = bool((weight > 1).any())

    def forward(self, x: Tensor) -> Tensor:
        slope = self.weight[:, None, None]
        return x + (1 - slope) * (-x).relu() if self.steep else torch.maximum(x, slope * x)


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
        raise ConfigError(f"network: {type(network).__name__} cannot be exported ({first_line(error)})") from error
    assert program is not None
    return program.model_proto


def _half(model: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True, op_block_list=[])


class _Batches:
    """A CalibrationDataReader of ONNX Runtime's."""

    def __init__(self, images: np.ndarray) -> None:
        self._rest = iter([images[start : start + 64] for start in range(0, len(images), 64)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._rest, None)
        return None if batch is None else {INPUT: batch}


def _quantised(model: Any, calibration: np.ndarray) -> Any:
    """In 8 bits, as operators of ONNX Runtime's own: a tenth smaller than pairs of operators around plain ones."""
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


_DEFAULTS = {"auto_pad": b"NOTSET", "group": 1, "dilations": {1}, "strides": {1}, "pads": {0}, "ceil_mode": 0}


def _shrink(model: Any) -> None:
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
            helper.make_attribute(a.name, helper.get_attribute_value(a)) for a in node.attribute if not _idle(node, a)
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


def _idle(node: Any, attribute: Any) -> bool:
    """Whether an attribute says what would hold without it."""
    from onnx import helper

    if attribute.name == "kernel_shape":
        return node.op_type in ("Conv", "QLinearConv")  # the weight has it
    value = helper.get_attribute_value(attribute)
    return attribute.name in _DEFAULTS and _DEFAULTS[attribute.name] == (
        set(value) if isinstance(value, list) else value
    )


def _annotate(model: Any, metadata: Mapping[str, object]) -> None:
    found = {str(key): str(value) for key, value in metadata.items()}
    if sum(len(f"{key}{value}".encode()) for key, value in found.items()) > _METADATA:
        raise ConfigError(f"metadata: more than {_METADATA} bytes: a file of this size has room for a few words")
    model.ClearField("metadata_props")
    for key, value in sorted(found.items()):
        model.metadata_props.add(key=key, value=value)
