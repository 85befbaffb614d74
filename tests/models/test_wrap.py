"""What others built as a network: its own numbers, in its own channels and range; one error for what does not fit."""

import copy

import numpy as np
import onnx
import pytest
import torch
import torchvision
import toys
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from lrkd.distill import terms as distill_terms
from lrkd.distill.distances import cosine
from lrkd.distill.parts import shown
from lrkd.errors import ConfigError, DataError
from lrkd.models import backbones
from lrkd.models.wrap import Embeddings, Input, load_embeddings, onnx_network, wrap
from lrkd.onnx import export
from lrkd.training.step import Teacher

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(count: int = 3, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Plain(nn.Module):
    """Two stages and an embedding of 5; what else it returns is up to it."""

    def __init__(self, returns=lambda x: x) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer1 = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
            self.layer2 = nn.Conv2d(6, 7, 3, 2, 1)
            self.fc = nn.Linear(7, 5)
        self.returns = returns

    def forward(self, x):
        x = self.layer2(self.layer1(x))
        return self.returns(self.fc(x.mean((2, 3))))


def unit_and_norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """As AdaFace's networks do."""
    norm = torch.norm(x, 2, 1, True)
    return torch.div(x, norm), norm


# ------------------------------------------------------------------------------------------------------------- modules


def test_a_torchvision_network_gives_its_own_embedding_and_features():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        resnet = torchvision.models.resnet18(num_classes=10)
    resnet.eval()
    names = ["layer1", "layer2", "layer3", "layer4"]
    made = wrap(resnet, 32, names, mean=MEAN, std=STD).eval()
    assert (made.size, made.embedding, made.widths) == (32, 10, (64, 128, 256, 512))
    x = images(2, 32)
    with torch.no_grad():
        out = made(x)
        y = torchvision.transforms.functional.normalize((x + 1) / 2, MEAN, STD)
        torch.testing.assert_close(out.embedding, resnet(y), rtol=0, atol=1e-5)
        y = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(y))))
        for name, found in zip(names, out.features, strict=True):
            y = resnet.get_submodule(name)(y)
            torch.testing.assert_close(found, y, rtol=0, atol=1e-4)
    assert out.channel == out.spatial == ()
    assert shown(made) == {"embedding", "features"}


@pytest.mark.parametrize("features", [(), ("layer1", "layer2")])
def test_a_network_that_returns_more_gives_its_first_as_the_embedding(features):
    made = wrap(Plain(unit_and_norm), 16, features).eval()
    with torch.no_grad():
        expected = F.normalize(Plain().eval()(images()))
        torch.testing.assert_close(made(images()).embedding, expected, rtol=0, atol=1e-6)
    assert made.widths == ((6, 7) if features else ())


@pytest.mark.parametrize("returns", [lambda x: {"norm": x[:, :1], "embedding": x}, lambda x: [(x, 1), 2]])
def test_dictionaries_and_lists_are_looked_into(returns):
    assert wrap(Plain(returns), 16).embedding == wrap(Plain(returns), 16, ["layer1"]).embedding == 5


@pytest.mark.parametrize(
    ("how", "same"),
    [
        ({}, lambda x: x),
        ({"channels": "BGR"}, lambda x: x.flip(1)),
        ({"range": (0, 255)}, lambda x: (x + 1) * 127.5),
        ({"range": (0, 1)}, lambda x: (x + 1) / 2),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, lambda x: x),
        (
            {"channels": "BGR", "mean": MEAN, "std": STD},
            lambda x: ((x.flip(1) + 1) / 2 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None],
        ),
    ],
)
def test_images_arrive_in_the_networks_own_channels_and_range(how, same):
    torch.testing.assert_close(Input(**how)(images()), same(images()), rtol=1e-6, atol=1e-5)
    with torch.no_grad():
        found = wrap(Plain(), 16, **how).eval()(images()).embedding
        torch.testing.assert_close(found, Plain().eval()(same(images())), rtol=1e-4, atol=1e-4)


def test_the_wrapped_module_is_trained_and_saved_and_stays_in_its_mode():
    module = Plain()
    made = wrap(module, 16, ["layer1"])
    assert made.training
    assert all(part.training for part in made.modules())
    assert not wrap(Plain().eval(), 16, ["layer1"]).module.training
    before = copy.deepcopy(made.state_dict())
    made(images()).embedding.sum().backward()
    assert module.fc.weight.grad is not None, "no copy is trained"
    assert {name.removeprefix("module.") for name in before} == set(module.state_dict())
    other = wrap(Plain(), 16, ["layer1"])
    other.load_state_dict(before)


def test_a_network_of_lrkds_stays_what_it_is():
    network = backbones.small(16, 8, (8, 12)).eval()
    made = wrap(network, 16, channels="BGR").eval()
    assert (made.embedding, made.widths) == (8, (8, 12))
    with torch.no_grad():
        torch.testing.assert_close(made(images()).channel, network(images().flip(1)).channel)
    assert shown(made) == {"embedding", "features", "channel", "spatial"}


class Loop(nn.Module):
    """Cannot be traced."""

    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: wrap(Plain(), 16, ["layer3"]), r"Plain has no 'layer3'; it has .*layer1, layer2"),
        (lambda: wrap(Plain(), 16, ["fc"]), "'fc' is the embedding of Plain"),
        (lambda: wrap(Plain(), 16, ["mean"]), r"Plain: expected 'mean' of shape \(B,C,h,w\), got \(2, 7\)"),
        (lambda: wrap(Plain(), 16, ["layer1", "layer1"]), "expected each once"),
        (lambda: wrap(Loop(), 16, ["x"]), r"Loop cannot be traced \(.*\); without features"),
        (lambda: wrap(nn.Conv2d(3, 4, 3), 16), r"Conv2d: expected embeddings of shape \(B,D\), got \(2, 4, 14, 14\)"),
        (lambda: wrap(Plain(lambda x: None), 16), "expected embeddings of shape .*, got NoneType"),
        (lambda: wrap(Plain(), 16, channels="bgr"), "expected 'RGB' or 'BGR', got 'bgr'"),
        (lambda: wrap(Plain(), 16, mean=MEAN), "expected mean and std, or range"),
        (lambda: wrap(Plain(), 16, mean=MEAN, std=(1, 0, 1)), "3 positive stds"),
        (lambda: wrap(Plain(), 16, range=(1, 1)), "a range that grows"),
        (lambda: wrap(Plain(), 16)(images(2, 8)), r"images: expected shape \(B,3,16,16\), got \(2, 3, 8, 8\)"),
    ],
)
def test_what_does_not_fit_is_one_error(call, match):
    with pytest.raises(ConfigError, match=match):
        call()


def test_a_wrapped_student_is_trained_by_a_teacher_without_a_head():
    student = wrap(Plain(), 8, ["layer1", "layer2"])
    _, head = toys.pair()
    before = copy.deepcopy(student.state_dict())
    head = type(head)(4, 5, scale=16.0, margin=0.1)
    teacher = backbones.small(8, 5, (4, 8))
    terms = (distill_terms.feature(), distill_terms.embedding())
    toys.fit(student, head, toys.faces(), schedule=toys.Schedule(1, batch=16), options=toys.OPTIONS,
        teacher=Teacher(teacher), terms=terms, progress=False)  # fmt: skip
    assert not torch.equal(student.state_dict()["module.fc.weight"], before["module.fc.weight"])


# ---------------------------------------------------------------------------------------------------------- ONNX files


def an_onnx(path, batch="N", side=4, channels=3, more=(), metadata=None, name="data", kind=TensorProto.FLOAT):
    """A file whose embedding is the image's values, weighed one by one; batch may be fixed, the side open."""
    count = channels * 16
    nodes = [helper.make_node("Flatten", [name], ["flat"]), helper.make_node("Mul", ["flat", "w"], ["out"])]
    nodes += [helper.make_node("ReduceMax", ["flat"], [end], axes=[1], keepdims=0) for end in more]
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    weights = [numpy_helper.from_array(np.linspace(0, 1, count).astype(dtype), "w")]
    ends = [helper.make_tensor_value_info(end, kind, [batch]) for end in more]
    ends.append(helper.make_tensor_value_info("out", kind, [batch, count]))
    takes = [helper.make_tensor_value_info(name, kind, [batch, channels, side, side])]
    graph = helper.make_graph(nodes, "g", takes, ends, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    for key, value in (metadata or {}).items():
        made.metadata_props.add(key=key, value=value)
    path.write_bytes(made.SerializeToString())
    return path


def weighed(x: Tensor) -> Tensor:
    return x.flatten(1) * torch.linspace(0, 1, 48)


@pytest.mark.parametrize("batch", ["N", 1, 2, 4])
@pytest.mark.parametrize("side", [4, "S"])
def test_an_onnx_file_gives_its_embedding_for_any_batch(tmp_path, batch, side):
    path = an_onnx(tmp_path / "m.onnx", batch, side)
    made = onnx_network(path, size=4, channels="BGR", range=(0, 255))
    assert (made.size, made.embedding, made.widths) == (4, 48, ())
    for count in (1, 2, 3, 5):
        x = images(count, 4)
        out = made(x)
        torch.testing.assert_close(out.embedding, weighed((x.flip(1) + 1) * 127.5), rtol=1e-5, atol=1e-3)
        assert out.features == out.channel == out.spatial == ()
    assert shown(made) == {"embedding"}
    assert not list(made.parameters())
    assert not out.embedding.requires_grad


def test_half_precision_and_a_norm_beside_the_embedding(tmp_path):
    path = an_onnx(tmp_path / "m.onnx", more=("norm",), kind=TensorProto.FLOAT16)
    made = onnx_network(path, channels="RGB", range=(-1, 1))
    out = made(images(2, 4))
    assert out.embedding.dtype == torch.float32
    torch.testing.assert_close(out.embedding, weighed(images(2, 4)), rtol=0, atol=2e-3)


def test_an_exported_file_says_what_it_takes(tmp_path):
    network = backbones.small(16, 8, (8, 12)).eval()
    export.export(network, tmp_path / "own.onnx")
    made = onnx_network(tmp_path / "own.onnx")
    assert (made.size, made.embedding) == (16, 8)
    with torch.no_grad():
        torch.testing.assert_close(made(images()).embedding, network(images()).embedding, rtol=0, atol=1e-4)


def test_metadata_are_read_and_arguments_come_first(tmp_path):
    path = an_onnx(tmp_path / "m.onnx", metadata={"channels": "BGR", "range": "[0,255]"})
    x = images(2, 4)
    torch.testing.assert_close(onnx_network(path)(x).embedding, weighed((x.flip(1) + 1) * 127.5), rtol=1e-5, atol=1e-3)
    found = onnx_network(path, channels="RGB", range=(-1, 1))(x).embedding
    torch.testing.assert_close(found, weighed(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("file", "how", "error", "match"),
    [
        ({}, {}, ConfigError, "does not say its channels: expected channels, RGB or BGR"),
        ({}, {"channels": "RGB"}, ConfigError, r"does not say its range: expected range, such as \(-1, 1\)"),
        ({"side": "S"}, {"channels": "RGB", "range": (0, 1)}, ConfigError, "does not say its size"),
        ({}, {"size": 8, "channels": "RGB", "range": (0, 1)}, ConfigError, "size is 8, but the file takes .* 4 px"),
        ({"channels": 1}, {"channels": "RGB", "range": (0, 1)}, DataError, r"expected one input \(N,3,S,S\), got data"),
    ],
)
def test_what_a_file_does_not_say_is_asked_for(tmp_path, file, how, error, match):
    path = an_onnx(tmp_path / "m.onnx", **file)
    with pytest.raises(error, match=match) as caught:
        onnx_network(path, **how)
    assert str(path) in str(caught.value)


def test_a_file_that_takes_weights_from_elsewhere_or_is_none_is_refused(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no file")
    made = onnx.load(an_onnx(tmp_path / "m.onnx"))
    made.graph.initializer[0].data_location = TensorProto.EXTERNAL
    made.graph.initializer[0].external_data.add(key="location", value="secret")
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    for name, match in {
        "x.onnx": "expected an ONNX file",
        "m.onnx": "from another file",
        "none.onnx": "cannot be read",
    }.items():
        with pytest.raises(DataError, match=match):
            onnx_network(tmp_path / name, 4, "RGB", (0, 1))


# ---------------------------------------------------------------------------------------------------------- embeddings


def trained(teacher: Teacher, term: distill_terms.Term) -> dict[str, Tensor]:
    network, head = toys.pair(1)
    options = toys.Options(threads=1, mirror=False)
    toys.fit(network, head, toys.faces(), schedule=toys.Schedule(2, batch=16), options=options,
        teacher=teacher, terms=(term,), progress=False)  # fmt: skip
    return toys.state(network, head)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_table_teaches_what_its_network_teaches(tmp_path, shuffled):
    network, _ = toys.pair(2)
    x = torch.from_numpy(toys.faces().images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        table = network.eval()(x).embedding.numpy()
    everything = np.zeros((2 * len(table), 8), np.float32)
    rows = np.random.default_rng(0).permutation(len(everything))[: len(table)]
    everything[rows] = table
    np.save(tmp_path / "embeddings.npy", everything)
    read = load_embeddings(tmp_path / "embeddings.npy", rows, count=len(everything))
    np.testing.assert_array_equal(read.table, table)
    term = distill_terms.embedding(cosine, 5.0)
    by_table, by_network = (trained(Teacher(one, shuffled=shuffled), term) for one in (read, network))
    for name, value in by_network.items():
        torch.testing.assert_close(by_table[name], value, rtol=1e-3, atol=1e-4)
    assert not toys.equal(by_table, trained(Teacher(read, shuffled=not shuffled), term))


def test_a_table_of_other_images_is_refused():
    table = torch.ones(9, 8)
    with pytest.raises(DataError, match="expected embeddings of the 64 images that are trained on, got 9"):
        trained(Teacher(Embeddings(table)), distill_terms.embedding())
    with pytest.raises(ConfigError, match="knows the training images alone"):
        Embeddings(table)(images())


@pytest.mark.parametrize(
    ("array", "count", "match"),
    [
        (np.ones((4, 3), np.float32), 5, "expected 5 rows, one an image of the manifest, got 4; is --data the folder"),
        (np.ones((4, 3), np.int64), None, r"expected floating point \(N,D\), .* got int64 \(4, 3\)"),
        (np.ones(4, np.float32), None, r"got float32 \(4,\)"),
        (np.zeros((2, 3), np.float32), None, "row 0 is zero or not finite"),
        (np.array([[1.0, 1], [np.nan, 1]]), None, "row 1 is zero or not finite"),
        (np.array([["a"]], dtype=object), None, "cannot be read as an array"),
    ],
)
def test_a_file_that_is_no_table_of_embeddings_is_one_error(tmp_path, array, count, match):
    path = tmp_path / "embeddings.npy"
    np.save(path, array)
    with pytest.raises(DataError, match=match) as caught:
        load_embeddings(path, count=count)
    assert str(path) in str(caught.value)
