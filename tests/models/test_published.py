"""Published checkpoints: the original networks from their structure as the oracle; wrong and hostile files."""

import argparse
import collections
import contextlib
import gzip
import json
import pickle
import re
import shutil
import sys
import time
import types
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import toys
from PIL import Image
from test_backbones import naive_forward, naive_norm, naive_prelu, norm_names, published_names
from torch import Tensor
from torch.nn import functional as F

from lrkd.cli.program import main
from lrkd.data.pairs import make_pairs
from lrkd.data.prepared import load_prepared
from lrkd.distill import terms
from lrkd.distill.parts import check
from lrkd.errors import ConfigError, DataError
from lrkd.evaluation import embedding as embedding_
from lrkd.evaluation.embedding import embed
from lrkd.evaluation.identification import fuse, rank_k
from lrkd.evaluation.verification import kfold_verification
from lrkd.models import backbones, checkpoints, heads, published
from lrkd.models.published import load_foreign
from lrkd.training.step import Teacher

State = dict[str, Tensor]
DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}
WIDE, NARROW = (64, 128, 256, 512), (4, 5, 6, 7)


def iresnet_names(depths, widths=WIDE, embedding=512, hints: str = "") -> dict[str, tuple[int, ...]]:
    """Names and shapes of insightface's arcface_torch iresnet at 112 px, and of F-SKD's, in order, from the facts."""
    table = {"conv1.weight": (widths[0], 3, 3, 3)} | norm_names("bn1", widths[0]) | {"prelu.weight": (widths[0],)}
    inside = widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
        for k in range(depth):
            at = f"layer{stage}.{k}"
            table |= norm_names(f"{at}.bn1", inside) | {f"{at}.conv1.weight": (width, inside, 3, 3)}
            table |= norm_names(f"{at}.bn2", width) | {f"{at}.prelu.weight": (width,)}
            table |= {f"{at}.conv2.weight": (width, width, 3, 3)} | norm_names(f"{at}.bn3", width)
            if k == 0:
                table |= {f"{at}.downsample.0.weight": (width, inside, 1, 1)} | norm_names(f"{at}.downsample.1", width)
            inside = width
    for stage, width in enumerate(widths, 1):
        if hints:
            table |= {f"hint_layer{stage}.hint.weight": (width, width, 1, 1)}
        if hints == "conv+bn":
            table |= norm_names(f"hint_layer{stage}.bn", width)
    table |= norm_names("bn2", inside) | {"fc.weight": (embedding, inside * 49), "fc.bias": (embedding,)}
    return table | norm_names("features", embedding)


def narrow_askd_names(depths) -> dict[str, tuple[int, ...]]:
    """A-SKD's names with 64 channels in every stage, which is as narrow as its attention allows."""
    small = {128: 64, 256: 64, 512: 64, 512 * 49: 64 * 49, 8: 4, 16: 4, 32: 4}
    last = ("output_layer.3.bias", "output_layer.4.")
    narrow = {
        name: shape if name.startswith(last) else tuple(small.get(n, n) for n in shape)
        for name, shape in published_names(depths).items()
    }
    return narrow | {"output_layer.3.weight": (512, 64 * 49)}


def filled(names: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Values with which activations stay near 1, and which no simplification could hide behind."""
    g, state = torch.Generator().manual_seed(seed), {}
    for name, shape in names.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            state[name] = torch.rand(shape, generator=g) * 0.5 + 0.5
        elif len(shape) == 1:
            state[name] = torch.randn(shape, generator=g) * 0.2
        else:
            state[name] = torch.randn(shape, generator=g) / torch.Size(shape[1:]).numel() ** 0.5
    return state


def plain_iresnet(x: Tensor, state: State, depths) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The original's forward from its names: embedding, features, and the features behind the hint layers."""
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    x = naive_prelu(naive_norm(x, state, "bn1"), state["prelu.weight"])
    features, hinted = [], []
    for stage, depth in enumerate(depths, 1):
        for k in range(depth):
            at, stride = f"layer{stage}.{k}", 2 if k == 0 else 1
            r = F.conv2d(naive_norm(x, state, f"{at}.bn1"), state[f"{at}.conv1.weight"], padding=1)
            r = naive_prelu(naive_norm(r, state, f"{at}.bn2"), state[f"{at}.prelu.weight"])
            r = naive_norm(F.conv2d(r, state[f"{at}.conv2.weight"], padding=1, stride=stride), state, f"{at}.bn3")
            if k == 0:
                x = F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=2)
                x = naive_norm(x, state, f"{at}.downsample.1")
            x = x + r
        features.append(x)
        if f"hint_layer{stage}.hint.weight" in state:
            h = F.conv2d(x, state[f"hint_layer{stage}.hint.weight"])
            hinted.append(naive_norm(h, state, f"hint_layer{stage}.bn") if f"hint_layer{stage}.bn.bias" in state else h)
    x = naive_norm(x, state, "bn2").flatten(1) @ state["fc.weight"].T + state["fc.bias"]
    return naive_norm(x, state, "features"), features, hinted


def ir_names(depths, widths=NARROW, embedding=9) -> dict[str, tuple[int, ...]]:
    """Names and shapes of AdaFace's and CVLface's IR networks at 112 px, in order, from the facts."""
    table = {"input_layer.0.weight": (widths[0], 3, 3, 3)} | norm_names("input_layer.1", widths[0])
    table |= {"input_layer.2.weight": (widths[0],)} | norm_names("output_layer.0", widths[-1])
    table |= {"output_layer.3.weight": (embedding, widths[-1] * 49), "output_layer.3.bias": (embedding,)}
    last = norm_names("output_layer.4", embedding)
    table |= {name: shape for name, shape in last.items() if not name.endswith(("weight", "bias"))}
    inside, number = widths[0], 0
    for depth, width in zip(depths, widths, strict=True):
        for _ in range(depth):
            at = f"body.{number}"
            if inside != width:
                table |= {f"{at}.shortcut_layer.0.weight": (width, inside, 1, 1)}
                table |= norm_names(f"{at}.shortcut_layer.1", width)
            table |= norm_names(f"{at}.res_layer.0", inside) | {f"{at}.res_layer.1.weight": (width, inside, 3, 3)}
            table |= norm_names(f"{at}.res_layer.2", width) | {f"{at}.res_layer.3.weight": (width,)}
            table |= {f"{at}.res_layer.4.weight": (width, width, 3, 3)} | norm_names(f"{at}.res_layer.5", width)
            inside, number = width, number + 1
    return table


def plain_ir(x: Tensor, state: State, depths) -> tuple[Tensor, list[Tensor]]:
    """The forward of these networks from their names: embedding, of whatever length, and the features of the stages."""
    x = naive_norm(F.conv2d(x, state["input_layer.0.weight"], padding=1), state, "input_layer.1")
    x = naive_prelu(x, state["input_layer.2.weight"])
    features, number = [], 0
    for depth in depths:
        for k in range(depth):
            at, stride = f"body.{number}", 2 if k == 0 else 1
            r = F.conv2d(naive_norm(x, state, f"{at}.res_layer.0"), state[f"{at}.res_layer.1.weight"], padding=1)
            r = naive_prelu(naive_norm(r, state, f"{at}.res_layer.2"), state[f"{at}.res_layer.3.weight"])
            r = F.conv2d(r, state[f"{at}.res_layer.4.weight"], padding=1, stride=stride)
            r = naive_norm(r, state, f"{at}.res_layer.5")
            x = x[:, :, ::stride, ::stride]
            if f"{at}.shortcut_layer.0.weight" in state:
                x = naive_norm(F.conv2d(x, state[f"{at}.shortcut_layer.0.weight"]), state, f"{at}.shortcut_layer.1")
            x, number = x + r, number + 1
        features.append(x)
    x = naive_norm(x, state, "output_layer.0").flatten(1) @ state["output_layer.3.weight"].T
    x = x + state["output_layer.3.bias"]
    mean, var = state["output_layer.4.running_mean"], state["output_layer.4.running_var"]
    return (x - mean) / (var + 1e-5).sqrt(), features


def double(state: State) -> State:
    return {k: v.double() if v.is_floating_point() else v for k, v in state.items()}


def images(count: int = 1) -> Tensor:
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(3)) * 2 - 1


def saved(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def near(found, expected) -> None:
    """Equal to 1e-5, of the largest value where that is above 1."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5 * max(1.0, float(b.abs().max())))


# ---------------------------------------------------------------------------------------------- the original networks


@pytest.mark.parametrize(("depth", "wide"), [(50, True), (100, False), (152, False)])
def test_an_a_skd_checkpoint_gives_the_original_embedding_features_and_maps(tmp_path, depth, wide):
    depths = DEPTHS[depth]
    state = filled(published_names(depths) if wide else narrow_askd_names(depths))
    made = load_foreign(saved(tmp_path / "last_net.ckpt", {"iters": 47000, "net_state_dict": state}))
    assert (made.family.name, made.depth, made.channels, made.size) == ("A-SKD", depth, "BGR", 112)
    assert not made.training
    rgb = images()
    with torch.inference_mode():
        out = made(rgb)
        embedding, features, channel, spatial = naive_forward(rgb.flip(1).double(), double(state), depths, (2,) * 4, 1)
    assert len(out.channel) == len(out.spatial) == sum(depths)
    for found, expected in (
        ([out.embedding], [embedding]),
        (out.features, features),
        (out.channel, channel),
        (out.spatial, spatial),
    ):
        near(found, expected)


@pytest.mark.parametrize("hints", ["", "conv", "conv+bn"])
@pytest.mark.parametrize(("depth", "widths"), [(18, NARROW), (50, NARROW)])
def test_an_f_skd_checkpoint_gives_the_original_embedding_and_features(tmp_path, depth, widths, hints):
    state = filled(iresnet_names(DEPTHS[depth], widths, hints=hints))
    made = load_foreign(saved(tmp_path / "net.ckpt", {"iters": 1, "net_state_dict": state}))
    assert (made.family.name, made.depth, made.channels) == ("F-SKD", depth, "BGR")
    rgb = images()
    with torch.inference_mode():
        out = made(rgb)
        embedding, features, hinted = plain_iresnet(rgb.flip(1).double(), double(state), DEPTHS[depth])
        near([out.embedding], [embedding])
        near(out.features, features)
        assert out.channel == out.spatial == ()
        if hints:
            near(made.hints(out.features), hinted)
        else:
            assert made.hints is None


@pytest.mark.parametrize(("depth", "widths"), [(18, WIDE), (34, NARROW), (50, NARROW), (100, NARROW), (200, NARROW)])
def test_an_arcface_torch_checkpoint_gives_the_original_embedding_from_rgb(tmp_path, depth, widths):
    state = filled(iresnet_names(DEPTHS[depth], widths))
    made = load_foreign(saved(tmp_path / "backbone.pth", collections.OrderedDict(state)))
    assert (made.family.name, made.depth, made.channels) == ("arcface_torch", depth, "RGB")
    with torch.inference_mode():
        embedding, features, _ = plain_iresnet(images().double(), double(state), DEPTHS[depth])
        out = made(images())
    near([out.embedding], [embedding])
    near(out.features, features)


class ModelCheckpoint:
    """Of Lightning: the class itself is a key of old checkpoints, and what it holds a value."""

    __module__ = "pytorch_lightning.callbacks.model_checkpoint"


@pytest.fixture
def lightning(monkeypatch):
    """What Lightning keeps beside the weights, with its classes where it has them while the file is written only."""
    module = types.ModuleType(ModelCheckpoint.__module__)
    module.ModelCheckpoint = ModelCheckpoint
    with monkeypatch.context() as patched:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patched.setitem(sys.modules, name, types.ModuleType(name))
        patched.setitem(sys.modules, module.__name__, module)

        def write(path: Path, state: State) -> Path:
            kept = ModelCheckpoint()
            kept.best_model_score = np.float64(0.9)
            beside = {"callbacks": {ModelCheckpoint: {"best": kept, "score": np.float64(0.9)}}, "epoch": 3}
            beside["hyper_parameters"] = {"arguments": argparse.Namespace(lr=0.1), "root": Path("data")}
            return saved(path, {**beside, "state_dict": state, "optimizer_states": [{"state": {}}]})

        yield write
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize("depth", [18, 50, 100])
def test_an_adaface_checkpoint_gives_the_original_embedding_from_bgr(tmp_path, lightning, depth):
    state = filled(ir_names(DEPTHS[depth]))
    head = {"head.kernel": torch.zeros(9, 20), "head.t": torch.zeros(1)}
    path = lightning(tmp_path / "adaface.ckpt", {f"model.{k}": v for k, v in state.items()} | head)
    made = load_foreign(path)
    assert (made.family.name, made.depth, made.channels, made.size) == ("AdaFace", depth, "BGR", 112)
    assert (made.embedding, made.widths) == (9, NARROW)
    rgb = images(2)
    with torch.inference_mode():
        out = made(rgb)
        raw, features = plain_ir(rgb.flip(1).double(), double(state), DEPTHS[depth])
    near([out.embedding], [raw / raw.norm(dim=1, keepdim=True)])  # what the original returns first; the norm is second
    near(out.features, features)
    assert out.channel == out.spatial == ()


@pytest.mark.parametrize("prefix", ["net.", "model.net."])
@pytest.mark.parametrize("depth", [18, 100])
def test_a_cvlface_checkpoint_gives_the_original_embedding_from_rgb(tmp_path, depth, prefix):
    state = filled(ir_names(DEPTHS[depth]))
    named = {f"{prefix}{k}": v for k, v in state.items()}
    path = tmp_path / "model.safetensors"
    if prefix == "net.":
        path = saved(tmp_path / "model.pt", named)
    else:
        safetensors.torch.save_file(named, path)
    made = load_foreign(path)
    assert (made.family.name, made.depth, made.channels) == ("CVLface", depth, "RGB")
    with torch.inference_mode():
        out = made(images(2))
        embedding, features = plain_ir(images(2).double(), double(state), DEPTHS[depth])
    near([out.embedding], [embedding])
    near(out.features, features)


def test_an_adaface_checkpoint_teaches_features_relations_and_embeddings_without_a_head(tmp_path, lightning):
    state = filled(ir_names(DEPTHS[18]))
    teacher = load_foreign(lightning(tmp_path / "adaface.ckpt", {f"model.{k}": v for k, v in state.items()}))
    student, head = backbones.small(112, 9, NARROW, cbam=False), heads.build("cosface", 2, 9)
    before = toys.state(teacher)
    fitted = toys.fit(
        student,
        head,
        toys.faces(2, 4, 112),
        schedule=toys.Schedule(1, batch=4, lr=0.01),
        options=replace(toys.OPTIONS, channels_last=False),
        teacher=Teacher(teacher),
        terms=(terms.feature(), terms.cross(), terms.embedding()),
        progress=False,
    )
    assert all(np.isfinite(list(row.values())).all() for row in fitted.rows)
    assert toys.equal(toys.state(teacher), before)
    with pytest.raises(ConfigError, match="teacher Foreign has no attention maps: the term 'attention' needs them"):
        check((terms.attention(),), teacher)


def test_an_ir_file_that_does_not_say_whose_it_is_asks_for_the_channels(tmp_path):
    path = saved(tmp_path / "ir.pth", filled(ir_names(DEPTHS[18])))
    with pytest.raises(ConfigError, match=r"ir\.pth: expected channels, BGR for AdaFace's or RGB for CVLface's"):
        load_foreign(path)
    assert load_foreign(path, channels="BGR").channels == "BGR"


@pytest.fixture(scope="module")
def narrow() -> State:
    return filled(iresnet_names(DEPTHS[18], NARROW, embedding=9))


def test_other_wrappings_of_the_same_tensors_give_the_same_network(tmp_path, narrow):
    plain = load_foreign(saved(tmp_path / "a.pth", narrow)).state_dict()
    wrapped = {
        "parallel": {f"module.{k}": v for k, v in narrow.items()},
        "resumable": {"epoch": 3, "global_step": 9, "state_dict_backbone": narrow, "state_dict_softmax_fc": {}},
        "parameters": {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in narrow.items()},
        "without counters": {k: v for k, v in narrow.items() if not k.endswith("num_batches_tracked")},
        "twice": {"epoch": 1, "model": {"state_dict": {f"module.{k}": v for k, v in narrow.items()}}},
        "compiled": {"model_state_dict": {f"_orig_mod.{k}": v for k, v in narrow.items()}},
        "with a head": {f"backbone.{k}": v for k, v in narrow.items()} | {"head.weight": torch.zeros(9, 2)},
        **{name: {name: narrow} for name in ("state_dict", "model", "backbone", "network")},
    }
    for name, content in wrapped.items():
        made = load_foreign(saved(tmp_path / f"{name}.pth", content))
        assert made.family is checkpoints.ARCFACE
        for key, value in made.state_dict().items():
            assert key.endswith("num_batches_tracked") or torch.equal(value, plain[key]), (name, key)
    torch.save(narrow, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load_foreign(tmp_path / "old.pth").state_dict()["output_layer.3.weight"], narrow["fc.weight"])


def test_half_precision_is_read_as_float32(tmp_path, narrow):
    half = {k: v.half() if v.is_floating_point() else v for k, v in narrow.items()}
    made = load_foreign(saved(tmp_path / "fp16.pth", half))
    assert made.output_layer[3].weight.dtype == torch.float32
    assert torch.equal(made.output_layer[3].weight.data, half["fc.weight"].float())


def test_the_channel_order_can_be_overruled(tmp_path, narrow):
    path = saved(tmp_path / "a.pth", narrow)
    rgb, bgr = load_foreign(path), load_foreign(path, channels="BGR")
    with torch.inference_mode():
        torch.testing.assert_close(rgb(images().flip(1)).embedding, bgr(images()).embedding, rtol=0, atol=1e-5)
        assert not torch.allclose(rgb(images()).embedding, bgr(images()).embedding)
    with pytest.raises(ConfigError, match="channels: expected 'RGB' or 'BGR', got 'bgr'"):
        load_foreign(path, channels="bgr")


# --------------------------------------------------------------------------------------------------------- wrong ones


def without(state: State, *keys: str) -> State:
    return {k: v for k, v in state.items() if k not in keys}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda s: without(s, "layer2.1.bn3.weight"),
            r"arcface_torch's IResNet-18, got others: missing: layer2\.1\.bn3\.weight$",
        ),
        (lambda s: s | {"conv_bridge.weight": torch.zeros(1)}, r"got others: unexpected: conv_bridge\.weight$"),
        (
            lambda s: s | {"fc.weight": torch.zeros(9, 16 * 7)},
            r"of another shape: fc\.weight \(9, 112\) instead of \(9, 343\)$",
        ),
        (
            lambda s: without(s, *(k for k in s if k.startswith("layer4.1."))),
            r"IResNet-18, got others: missing: layer4\.1\.bn1\.weight, .* and \d+ more$",
        ),
        (
            lambda s: without(s, *(k for k in s if k.startswith(("bn2", "fc", "features")))),
            r"missing: fc\.weight, fc\.bias|missing: bn2\.weight",
        ),
        (lambda s: {"weight": torch.zeros(10, 9)}, r"got the keys weight \(this looks like a margin head"),
        (
            lambda s: {"a.b": torch.zeros(1), "c": torch.zeros(1)},
            r"expected a network of A-SKD, F-SKD, arcface_torch, AdaFace or CVLface, got the keys a\.b, c",
        ),
        (lambda s: s | {"fc.bias": torch.full((9,), torch.nan)}, r"expected finite values, got others in fc\.bias"),
        (lambda s: s | {"fc.bias": [1.0]}, r"expected dense tensors, got list at fc\.bias"),
        (lambda s: s | {"fc.bias": torch.zeros(1).expand(10**12)}, r"expected dense tensors, got Tensor at fc\.bias"),
        (
            lambda s: s | {"layer1.0.conv1.weight": torch.zeros(10**6, 1, 1, 1)},
            r"layer1\.0\.conv1\.weight \(1000000, 1, 1, 1\)",
        ),
        (lambda s: {}, "expected a state dict of .*, got none"),
        (lambda s: {3: torch.zeros(1)}, "expected a state dict of .*, got none"),
        (lambda s: {"net_state_dict": [1, 2]}, "expected a state dict of .*, got none"),
        (lambda s: torch.zeros(3), "expected a state dict of .*, got none"),
    ],
)
def test_a_wrong_checkpoint_says_what_differs(tmp_path, narrow, change, match):
    path = saved(tmp_path / "net.pth", change(dict(narrow)))
    with pytest.raises(DataError, match=match) as caught:
        load_foreign(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_f_skd_file_with_other_attention_names_its_keys(tmp_path, narrow):
    state = narrow | {"layer1.0.attention.ChannelGate.mlp.1.weight": torch.zeros(1, 4)}
    with pytest.raises(DataError, match=r"F-SKD's IResNet-18, got others: unexpected: .*attention\.ChannelGate"):
        load_foreign(saved(tmp_path / "net.ckpt", {"net_state_dict": state}))


class Whole(torch.nn.Module):
    """A module of some class."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 3)


def test_another_format_is_named_with_what_would_be_right(tmp_path, narrow):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(torch.nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 4, 4)), tmp_path / "script.pt")
    saved(tmp_path / "module.pth", torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))
    saved(tmp_path / "wrapped.pth", {"model": Whole()})
    (tmp_path / "network.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    (tmp_path / "network.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "face.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "face.jpg")
    (tmp_path / "network.pth.gz").write_bytes(gzip.compress(b"x"))
    np.save(tmp_path / "embeddings.npy", np.zeros(3))
    saved(tmp_path / "head.pt", {"head.kernel": torch.zeros(9, 20), "head.t": torch.zeros(1)})
    saved(tmp_path / "two.pth", {f"{who}.{k}": v for who in ("student", "teacher") for k, v in narrow.items()})
    for name, match in {
        "script.pt": "TorchScript archive, which holds code: .*state_dict",
        "module.pth": r"expected a state_dict\(\), got a whole module",
        "wrapped.pth": r"expected a state_dict\(\), got a whole module",
        "network.onnx": r"an ONNX file: lrkd\.models\.wrap\.onnx_network reads it",
        "network.h5": "an HDF5 file",
        "face.png": "an image",
        "face.jpg": "an image",
        "network.pth.gz": "compressed by gzip",
        "embeddings.npy": "a NumPy array",
        "head.pt": "looks like a margin head",
        "two.pth": r"expected one network, got 2 \(student\., teacher\.\)",
    }.items():
        with pytest.raises(DataError, match=match) as caught:
            load_foreign(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ hostile


class Runs:
    """What unpickles by calling a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def pickled(path: Path) -> bytes:
    """The names and shapes of a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def text(length: int) -> bytes:
    """A text in a pickle, the name of an encoding where it is as long as that."""
    return b"X" + length.to_bytes(4, "little") + (b"latin1" if length == 6 else b"x" * length)


def hostile(path: Path, narrow: State) -> dict[str, Path]:
    """Files that would run code, claim memory, or unpack to more than they hold."""
    made = {}
    mark = str(path / "mark")
    for name, thing in {
        "code": Runs(open, mark, "w"),
        "eval": Runs(eval, f"open({mark!r}, 'w')"),
        "memory": Runs(bytearray, 2**40),
    }.items():
        made[name] = path / f"{name}.pth"
        torch.save({**narrow, "fc.bias": thing}, made[name])
        made[f"{name} of before"] = path / f"{name}-old.pth"
        torch.save({"fc.bias": thing}, made[f"{name} of before"], _use_new_zipfile_serialization=False)
        made[f"{name} alone"] = path / f"{name}.pkl"
        made[f"{name} alone"].write_bytes(pickle.dumps(thing, protocol=4))
    good = saved(path / "good.pth", narrow)
    made["compressed"] = path / "compressed.pth"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(made["compressed"], "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    called = b"\x80\x02cbuiltins\nbytearray\n(\x8a\x06" + (2**33).to_bytes(6, "little") + b"tR."
    made["an archive behind a pickle"] = path / "both.pth"
    made["an archive behind a pickle"].write_bytes(called + good.read_bytes())
    tensor = pickled(good)
    for name, pickles in {
        "two pickles": [called, tensor],
        "two pickles, turned round": [tensor, called],
        "many steps": [b"\x80\x02" + b"N0" * 2**20 + b"}."],
        "a long pickle": [b"\x80\x02]" + b"N0" * 2**22 + b"}."],
        "copies": [
            b"\x80\x02c_codecs\nencode\nq\x01"
            + text(2**20)
            + b"q\x02"
            + text(6)
            + b"q\x03]"
            + b"h\x01h\x02h\x03\x86Ra" * 10**5
            + b"."
        ],
    }.items():
        made[name] = path / f"{name}.pth"
        with zipfile.ZipFile(made[name], "w") as new, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for content in pickles:
                new.writestr("archive/data.pkl", content)
            new.writestr("archive/version", "3\n")
    shared = torch.zeros(2**20, dtype=torch.half)
    made["shared"] = saved(path / "shared.pth", {f"layer1.{k}.conv1.weight": shared for k in range(1000)})
    made["complex"] = saved(path / "complex.pth", {**narrow, "fc.bias": torch.zeros(9, dtype=torch.complex64)})
    made["a long name"] = saved(path / "long.pth", {**narrow, "x" * 10**6: torch.zeros(1)})
    data = good.read_bytes()
    for name, content in {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "text": b"{}",
        "end only": data[-400:],
        "junk before": b"junk" * 9 + data,
    }.items():
        made[name] = path / f"{name}.pth"
        made[name].write_bytes(content)
    made["folder"] = path
    made["nowhere"] = path / "nowhere.pth"
    return made


def test_hostile_and_broken_files_are_one_error_and_run_nothing(tmp_path, narrow):
    for name, path in hostile(tmp_path, narrow).items():
        begun = time.process_time()
        with pytest.raises(DataError) as caught:
            load_foreign(path)
        assert time.process_time() - begun < 5, name
        assert str(path) in str(caught.value), name
        assert "\n" not in str(caught.value), name
        assert len(str(caught.value)) < 2000, name
        wanted = {
            "code": "asks for 'io.open'|asks for '.*open'",
            "eval": "eval",
            "memory": "bytearray",
            "an archive behind a pickle": "bytearray",
            "two pickles": "two entries",
            "two pickles, turned round": "two entries",
            "many steps": "at most 1000000 instructions",
            "a long pickle": "bytes of names",
            "copies": "encoded texts of at most 4096 characters, got one of 1048576",
            "shared": "expected tensors of at most",
            "complex": "expected dense tensors, got Tensor at fc.bias",
        }.get(name)
        assert wanted is None or caught.match(wanted), name
    assert not (tmp_path / "mark").exists()


def test_a_flipped_byte_is_an_error_or_a_network(tmp_path, narrow):
    data = saved(tmp_path / "good.pth", narrow).read_bytes()
    g = torch.Generator().manual_seed(0)
    for place in torch.randint(len(data), (20,), generator=g).tolist() + list(range(0, 1500, 60)):
        broken = bytearray(data)
        broken[place] ^= 1 << int(torch.randint(8, (1,), generator=g))
        (tmp_path / "bad.pth").write_bytes(broken)
        with contextlib.suppress(DataError):
            assert isinstance(load_foreign(tmp_path / "bad.pth"), published.Foreign)


# ---------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """Eight pictures of 112 px, two a person, through data_prep's own writer."""
    return toys.photographs(tmp_path_factory.mktemp("people"), people=4, images=2, size=112)


@pytest.fixture
def called(capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return (status, *capsys.readouterr())

    return call


def a_skd_sees(picture: np.ndarray, side: int) -> Tensor:
    """(H,W,3) RGB -> (2,3,H,W): the image and its mirror image as A-SKD's test degrades them, from the facts."""
    both = np.stack([picture, picture[:, ::-1]])[..., ::-1]  # to BGR
    x = torch.from_numpy(both.copy()).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    x = F.interpolate(F.interpolate(x, side), len(picture))  # nearest, down and up
    weights = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / 2.0) ** 2)
    blur = (weights / weights.sum()).view(1, 1, 5, 1).expand(3, 1, 5, 1)  # along the vertical only
    return F.conv2d(F.pad(x, (0, 0, 2, 2), mode="reflect"), blur, groups=3)


def test_verify_evaluates_an_a_skd_checkpoint_by_its_published_protocol(tmp_path, people, called):
    path = saved(tmp_path / "last_net.ckpt", {"net_state_dict": filled(narrow_askd_names(DEPTHS[50]))})
    out = tmp_path / "table.csv"
    status, shown, err = called(
        *(
            "verify",
            path,
            "--data",
            people,
            "--side",
            14,
            "--degradation",
            "askd-compat",
            "--device",
            "cpu",
            "--out",
            out,
        )
    )
    assert (status, err) == (0, "")
    table = pd.read_csv(out)
    assert len(table) == 1
    assert len(shown.splitlines()) == 3
    row = table.iloc[0]
    assert (row["degradation"], row["network"], row["side"]) == ("askd-compat", "A-SKD IResNet-50 (BGR)", 14)
    whole = load_prepared(people)
    pairs, network = whole.protocols["generated"], load_foreign(path)
    with torch.inference_mode():
        rows = [
            network(a_skd_sees(picture, 14).flip(1)).embedding.flatten() for picture in np.asarray(whole.faces.images)
        ]
    features = torch.stack(rows).numpy()
    expected = kfold_verification(features[pairs.left], features[pairs.right], pairs.same, pairs.fold)
    assert row["threshold"] == pytest.approx(expected.threshold.mean(), abs=1e-5)
    assert row["accuracy"] == pytest.approx(expected.mean, abs=1e-5)


def test_verify_takes_four_sides_and_the_publications_own_degradation(tmp_path, people, called, narrow):
    path = saved(tmp_path / "net.ckpt", {"net_state_dict": narrow})
    assert called("verify", path, "--data", people, "--out", tmp_path / "a.csv")[0] == 0
    table = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    assert list(table["side"]) == [112, 56, 28, 14]
    assert list(table["degradation"]) == ["none", *["fskd-test"] * 3]
    assert called("verify", path, "--data", people, "--channels", "RGB", "--out", tmp_path / "b.csv")[0] == 0
    other = pd.read_csv(tmp_path / "b.csv")
    assert set(other["network"]) == {"F-SKD IResNet-18 (RGB)"}
    assert not np.allclose(table["threshold"], other["threshold"])


def test_verify_draws_pairs_where_a_set_has_none(tmp_path, people, called, narrow):
    path = saved(tmp_path / "net.pth", narrow)
    folder = Path(shutil.copytree(people, tmp_path / "people"))
    (folder / "pairs.csv").write_text((people / "pairs.csv").read_text().splitlines()[0] + "\n")
    words = ("verify", path, "--side", 112, "--out", tmp_path / "t.csv")
    assert called(*words, "--data", folder)[0] == 0
    drawn = make_pairs(load_prepared(folder).faces.labels)
    assert pd.read_csv(tmp_path / "t.csv")["pairs"].item() == len(drawn) > 0
    status, _, err = called(*words, "--data", folder, "--protocol", "view2")
    assert (status, err) == (2, "lrkd: protocol 'view2': people has none\n")


def test_verify_sees_only_the_images_that_are_compared(tmp_path, people, called, narrow, monkeypatch):
    path = saved(tmp_path / "net.pth", narrow)
    folder = Path(shutil.copytree(people, tmp_path / "people"))
    pairs = pd.read_csv(folder / "pairs.csv")
    fewer = pairs[~pairs[["left", "right"]].isin([0]).any(axis=1)]  # no pair with the first image
    assert fewer.groupby("fold")["same"].nunique().eq(2).all()
    words = ("verify", path, "--data", folder, "--side", 112, "--out", tmp_path / "t.csv")
    fewer.to_csv(folder / "pairs.csv", index=False)
    seen = []
    monkeypatch.setattr(
        embedding_, "embed", lambda network, images, **rest: seen.append(len(images)) or embed(network, images, **rest)
    )
    assert called(*words)[0] == 0
    whole = load_prepared(folder)
    kept = whole.protocols["generated"]
    assert seen == [len(np.union1d(kept.left, kept.right))] == [7]
    features = embed(load_foreign(path), whole.faces.images)
    wanted = kfold_verification(features[kept.left], features[kept.right], kept.same, kept.fold)
    found = pd.read_csv(tmp_path / "t.csv").iloc[0]
    assert found["accuracy"] == pytest.approx(wanted.mean)
    assert found["threshold"] == pytest.approx(wanted.threshold.mean(), abs=1e-5)


def test_identify_takes_the_people_of_a_split_and_every_distractor(tmp_path, people, called, narrow):
    path = saved(tmp_path / "net.pth", narrow)
    folder = Path(shutil.copytree(people, tmp_path / "people"))
    manifest = pd.read_csv(folder / "manifest.csv")
    manifest["role"] = ["gallery", "probe"] * 3 + ["distractor"] * 2
    manifest.to_csv(folder / "manifest.csv", index=False)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"splits": {"train": [0], "test": [1, 2]}}))
    out = tmp_path / "t.csv"
    for words, probes, gallery in (([], 3, 5), (["--split", "test"], 2, 4), (["--split", "train"], 1, 3)):
        assert called("identify", path, "--data", folder, "--out", out, *words)[0] == 0
        row = pd.read_csv(out).iloc[-1]  # the rows of other splits stay
        assert (row["probes"], row["gallery"]) == (probes, gallery)
    faces = load_prepared(folder).faces
    features = fuse(embed(load_foreign(path), faces.images))
    shelf, asked = [0, 6, 7], [1]
    expected = rank_k(features[shelf], faces.labels[shelf], features[asked], faces.labels[asked])
    np.testing.assert_allclose(row[["rank1", "rank5", "rank10", "rank20"]].astype(float), expected)
    status, shown, err = called("identify", path, "--data", folder, "--split", "tset")
    assert (status, shown, err) == (2, "", "lrkd: split 'tset': people has train, test\n")


def test_identify_measures_by_roles(tmp_path, people, called, narrow):
    path = saved(tmp_path / "net.pth", narrow)
    folder = Path(shutil.copytree(people, tmp_path / "people"))
    manifest = pd.read_csv(folder / "manifest.csv")
    manifest["role"] = ["gallery", "probe"] * 3 + ["distractor"] * 2
    manifest.to_csv(folder / "manifest.csv", index=False)
    status, _, err = called(
        "identify", path, "--data", folder, "--out", tmp_path / "t.csv", "--side", 112, "--side", 28
    )
    assert (status, err) == (0, "")
    table = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
    assert list(table["side"]) == [112, 28]
    assert table["probes"].eq(3).all()
    assert table["gallery"].eq(5).all()
    faces = load_prepared(folder).faces
    features = fuse(embed(load_foreign(path), faces.images))
    shelf = [0, 2, 4, 6, 7]
    expected = rank_k(features[shelf], faces.labels[shelf], features[[1, 3, 5]], faces.labels[[1, 3, 5]])
    np.testing.assert_allclose(table.loc[0, ["rank1", "rank5", "rank10", "rank20"]].astype(float), expected, atol=1e-6)


def test_the_command_line_says_what_is_missing(tmp_path, people, called, narrow):
    path = saved(tmp_path / "net.pth", narrow)
    wrong = saved(tmp_path / "wrong.pth", without(narrow, "fc.bias"))
    small = toys.photographs(tmp_path / "small", people=4, images=2, size=28)
    for status, said, words in (
        (2, "needs --data DIR", ("verify", path)),
        (2, r"missing: fc\.bias", ("verify", wrong, "--data", people)),
        (2, "its images are 28 x 28 px and this scale needs 112 px", ("verify", path, "--data", small)),
        (
            2,
            "preset: unknown degradation 'nope'",
            ("verify", path, "--data", people, "--degradation", "nope", "--side", 14),
        ),
        (2, "device: expected .*got 'tpu'", ("verify", path, "--data", people, "--device", "tpu")),
    ):
        found, shown, err = called(*words)
        assert (found, shown) == (status, "")
        assert re.fullmatch(r"lrkd: [^\n]+\n", err)
        assert re.search(said, err), err
