"""Backbones: published names and shapes, the forward pass against a naive one, seeds, sizes, bad input."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lrkd.errors import ConfigError
from lrkd.models import layers, mobile
from lrkd.models.backbones import Hints, IResNet, build, iresnet18, iresnet50, small

Table = dict[str, tuple[int, ...]]


def norm_names(prefix: str, channels: int) -> Table:
    table: Table = {f"{prefix}.{n}": (channels,) for n in ("weight", "bias", "running_mean", "running_var")}
    return table | {f"{prefix}.num_batches_tracked": ()}


def published_names(depths: tuple[int, ...]) -> Table:
    """Names and shapes of A-SKD's network at 112 px, in order, written from the facts."""
    table: Table = {"input_layer.0.weight": (64, 3, 3, 3)} | norm_names("input_layer.1", 64)
    table |= {"input_layer.2.weight": (64,)}
    inside = 64
    for stage, (depth, width) in enumerate(zip(depths, (64, 128, 256, 512), strict=True), 1):
        for k in range(depth):
            at = f"layer{stage}.{k}"
            table |= norm_names(f"{at}.res_layer.0", inside)
            table |= {f"{at}.res_layer.1.weight": (width, inside, 3, 3)} | norm_names(f"{at}.res_layer.2", width)
            table |= {f"{at}.res_layer.3.weight": (width,), f"{at}.res_layer.4.weight": (width, width, 3, 3)}
            table |= norm_names(f"{at}.res_layer.5", width)
            table |= {f"{at}.channel_layer.shared_mlp.0.weight": (width // 16, width, 1, 1)}
            table |= {f"{at}.channel_layer.shared_mlp.2.weight": (width, width // 16, 1, 1)}
            table |= {f"{at}.spatial_layer.conv.weight": (1, 2, 3, 3)}
            if k == 0:
                table |= {f"{at}.shortcut_layer.0.weight": (width, inside, 1, 1)}
                table |= norm_names(f"{at}.shortcut_layer.1", width)
            inside = width
    table |= norm_names("output_layer.0", 512)
    table |= {"output_layer.3.weight": (512, 512 * 7 * 7), "output_layer.3.bias": (512,)}
    return table | norm_names("output_layer.4", 512)


@pytest.mark.parametrize(("builder", "depths"), [(iresnet50, (3, 4, 14, 3)), (iresnet18, (2, 2, 2, 2))])
def test_names_and_shapes_are_the_published_ones(builder, depths):
    found = {name: tuple(value.shape) for name, value in builder().state_dict().items()}
    assert list(found.items()) == list(published_names(depths).items())


@pytest.mark.parametrize(
    ("name", "parameters", "blocks"),
    [("iresnet50", 43_814_000, 24), ("iresnet18", 24_112_784, 8), ("small", 459_160, 4)],
)
def test_number_of_parameters_and_blocks(name, parameters, blocks):
    model = build(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len([m for m in model.modules() if isinstance(m, layers.Block)]) == blocks


def test_a_residual_network_at_112_px_returns_every_map_with_its_shape():
    with torch.no_grad():
        out = iresnet18().eval()(torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)))
    shapes = [(64, 56), (128, 28), (256, 14), (512, 7)]
    assert out.embedding.shape == (1, 512)
    assert [f.shape for f in out.features] == [(1, c, s, s) for c, s in shapes]
    assert [c.shape for c in out.channel] == [(1, c, 1, 1) for c, _ in shapes for _ in range(2)]
    assert [s.shape for s in out.spatial] == [(1, 1, s, s) for _, s in shapes for _ in range(2)]


# The same mathematics without modules: from a state dict, with sums and loops.


def naive_norm(x: Tensor, state: dict[str, Tensor], at: str) -> Tensor:
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, var, weight, bias = (
        state[f"{at}.{n}"].view(shape) for n in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def naive_prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope[None, :, None, None] * x)


def naive_block(
    x: Tensor, state: dict[str, Tensor], at: str, stride: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    r = naive_norm(x, state, f"{at}.res_layer.0")
    r = F.conv2d(r, state[f"{at}.res_layer.1.weight"], padding=1)
    r = naive_prelu(naive_norm(r, state, f"{at}.res_layer.2"), state[f"{at}.res_layer.3.weight"])
    r = F.conv2d(r, state[f"{at}.res_layer.4.weight"], padding=1, stride=stride)
    r = naive_norm(r, state, f"{at}.res_layer.5")
    channel = spatial = None
    if f"{at}.spatial_layer.conv.weight" in state:
        first, second = (state[f"{at}.channel_layer.shared_mlp.{i}.weight"][:, :, 0, 0] for i in (0, 2))
        flat = r.flatten(2)
        pooled = (flat.sum(2) / flat.shape[2], flat.sort(2).values[:, :, -1])
        channel = sum((p @ first.T).clamp(min=0) @ second.T for p in pooled)[:, :, None, None]
        r = r / (1 + torch.exp(-channel))
        stacked = torch.stack((r.sum(1) / r.shape[1], r.sort(1).values[:, -1]), 1)
        spatial = F.conv2d(stacked, state[f"{at}.spatial_layer.conv.weight"], padding=1)
        r = r / (1 + torch.exp(-spatial))
    if f"{at}.shortcut_layer.0.weight" in state:
        x = F.conv2d(x, state[f"{at}.shortcut_layer.0.weight"], stride=stride)
        x = naive_norm(x, state, f"{at}.shortcut_layer.1")
    return x + r, channel, spatial


def naive_forward(x: Tensor, state: dict[str, Tensor], depths, strides, stem_stride):
    x = F.conv2d(x, state["input_layer.0.weight"], padding=1, stride=stem_stride)
    x = naive_prelu(naive_norm(x, state, "input_layer.1"), state["input_layer.2.weight"])
    features, channels, spatials = [], [], []
    for stage, (depth, stride) in enumerate(zip(depths, strides, strict=True), 1):
        for k in range(depth):
            x, channel, spatial = naive_block(x, state, f"layer{stage}.{k}", stride if k == 0 else 1)
            channels.append(channel)
            spatials.append(spatial)
        features.append(x)
    x = naive_norm(x, state, "output_layer.0").flatten(1)
    x = x @ state["output_layer.3.weight"].T + state["output_layer.3.bias"]
    return naive_norm(x, state, "output_layer.4"), features, channels, spatials


def randomised(model: IResNet, seed: int = 0) -> IResNet:
    """Statistics, slopes and weights that no simplification could hide behind; float64, evaluation mode."""
    g = torch.Generator().manual_seed(seed)
    for name, value in model.double().state_dict().items():
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            value.copy_(torch.rand(value.shape, generator=g) + 0.2)
        elif value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.randn(value.shape, generator=g) * 0.3)
    return model.eval()


CASES = {
    "small": (lambda: small(size=24, embedding=10), (1, 1, 1, 1), (1, 2, 2, 2), 2, 24),
    "deep": (
        lambda: IResNet((2, 1), (8, 12), size=13, embedding=5, reduction=2, strides=(2, 2), stem=6),
        (2, 1),
        (2, 2),
        1,
        13,
    ),
    "plain": (lambda: IResNet((1, 2), (4, 4), size=9, embedding=5, cbam=False, strides=(1, 2)), (1, 2), (1, 2), 1, 9),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients_equal_a_naive_recomputation(case, layout):
    builder, depths, strides, stem_stride, size = CASES[case]
    model = randomised(builder()).to(memory_format=layout)
    state = {
        k: v.detach().clone().contiguous().requires_grad_(v.is_floating_point()) for k, v in model.state_dict().items()
    }
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    out = model(x.contiguous(memory_format=layout))
    embedding, features, channels, spatials = naive_forward(x, state, depths, strides, stem_stride)

    torch.testing.assert_close(out.embedding, embedding)
    torch.testing.assert_close(list(out.features), features)
    if case == "plain":
        assert out.channel == out.spatial == ()
        maps, naive_maps = [], []
    else:
        maps, naive_maps = [*out.channel, *out.spatial], [*channels, *spatials]
        torch.testing.assert_close(maps, naive_maps)
        assert min(m.min().item() for m in maps) < 0, "maps are pre-sigmoid"

    (out.embedding.pow(2).sum() + sum(m.pow(2).sum() for m in maps)).backward()
    (embedding.pow(2).sum() + sum(m.pow(2).sum() for m in naive_maps)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, msg=lambda m, name=name: f"{name}: {m}")


def test_block_50_of_the_published_size_equals_the_naive_one():
    block = layers.Block(64, 128, 2).eval()
    state = {f"b.{k}": v for k, v in block.state_dict().items()}
    x = torch.randn(2, 64, 14, 14, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(block(x), naive_block(x, state, "b", 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_prelu_equals_torchs_in_value_and_gradients(layout):
    x = torch.randn(4, 5, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x.contiguous(memory_format=layout)
    x[0, 0, 0, 0] = 0.0
    ours, slopes = layers.PReLU(5).double(), torch.tensor([-0.5, 0.0, 0.25, 1.0, 3.0], dtype=torch.float64)
    ours.weight.data.copy_(slopes)
    a, b, slopes = x.clone().requires_grad_(), x.clone().requires_grad_(), slopes.requires_grad_()
    left, right = ours(a), F.prelu(b, slopes)
    torch.testing.assert_close(left, right)
    with torch.no_grad():
        assert torch.equal(ours(a), left)  # the bits do not depend on whether a gradient is wanted
    weights = torch.randn(left.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (left * weights).sum().backward()
    (right * weights).sum().backward()
    torch.testing.assert_close((a.grad, ours.weight.grad), (b.grad, slopes.grad))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # from inside torch.func.jvp
def test_forward_mode_derivatives_agree_with_finite_differences():
    model = randomised(small(size=16, embedding=6))
    g = torch.Generator().manual_seed(2)
    x, v = (torch.randn(2, 3, 16, 16, generator=g, dtype=torch.float64) for _ in range(2))
    _, tangent = torch.func.jvp(lambda x: model(x).embedding, (x,), (v,))
    step = 1e-7
    with torch.no_grad():
        difference = (model(x + step * v).embedding - model(x - step * v).embedding) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "last"), [(48, 3), (56, 4), (64, 4), (112, 7)])
def test_the_small_network_takes_other_sizes(size, last):
    out = small(size=size).eval()(torch.zeros(2, 3, size, size))
    assert out.embedding.shape == (2, 128)
    assert out.features[-1].shape == (2, 128, last, last)
    assert [f.shape[1] for f in out.features] == [16, 32, 64, 128]


@pytest.mark.parametrize("shape", [(2, 3, 56, 56), (2, 1, 48, 48), (3, 48, 48), (2, 48, 48, 3), (2, 3, 48, 47)])
def test_a_wrong_input_is_a_clear_error(shape):
    with pytest.raises(ConfigError, match=r"images: expected shape \(B,3,48,48\), got"):
        small()(torch.zeros(shape))
    with pytest.raises(ConfigError, match=r"images: expected a tensor of floating point .*, got torch.uint8"):
        small()(torch.zeros(shape, dtype=torch.uint8))


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    a, b, c = small(seed=3), small(seed=3), small(seed=4)
    h, k = Hints((4,), (6,), seed=1), Hints((4,), (6,), seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(before.sum().item())
    d = small(seed=3)
    torch.set_rng_state(before)
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name])
        assert torch.equal(value, d.state_dict()[name]), f"{name} depends on the global generator"
        if value.ndim > 1:
            assert not torch.equal(value, c.state_dict()[name])
    assert not torch.equal(h.state_dict()["stages.0.0.weight"], k.state_dict()["stages.0.0.weight"])


def test_convolutions_start_xavier_uniform():
    weight = iresnet18().state_dict()["layer3.1.res_layer.1.weight"]
    bound = math.sqrt(6 / (9 * 256 + 9 * 256))
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_dropout_acts_in_training_only_and_the_small_network_has_none():
    x = torch.zeros(64, 3, 16, 16)
    dropping = small(size=16, dropout=0.5, seed=0)
    rates = [m.p for net in (small(), iresnet18(), dropping) for m in net.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates == [0.0, 0.4, 0.5]
    assert torch.equal(dropping.eval()(x).embedding, dropping(x).embedding)
    before = torch.get_rng_state()
    small(size=16)(x)
    assert torch.equal(torch.get_rng_state(), before), "training the small network must not need randomness"


def test_bfloat16_autocast_stays_near_float32():
    g = torch.Generator().manual_seed(0)
    model = small(size=24).to(memory_format=torch.channels_last)
    x = torch.rand(32, 3, 24, 24, generator=g).contiguous(memory_format=torch.channels_last)
    exact = model(x).embedding
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x).embedding
    rough.float().pow(2).mean().backward()
    assert F.cosine_similarity(exact, rough.float()).min() > 0.99
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_network_built_by_name_is_the_one_that_its_config_says():
    model = build("small", size=56, embedding=32, seed=5)
    assert (model.size, model.embedding, model.widths) == (56, 32, (16, 32, 64, 128))
    twin = small(56, 32, seed=5)
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())
    assert small(widths=(8, 8)).eval()(torch.zeros(1, 3, 48, 48)).features[-1].shape == (1, 8, 12, 12)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"model: expected one of iresnet18, iresnet50, mobile, small, got 'resnet'"):
        build("resnet", 112, 512)


@pytest.mark.parametrize("bad", [{"depths": (1,)}, {"widths": (4, 0)}, {"size": 0}, {"embedding": -1}, {"strides": ()}])
def test_an_impossible_shape_is_a_clear_error(bad):
    with pytest.raises(ConfigError, match="one positive entry a stage"):
        IResNet(**({"depths": (1, 1), "widths": (4, 4), "strides": (1, 2)} | bad))


# ----------------------------------------------------------------------------------------------------- MobileFaceNet


def naive_bottleneck(block: mobile.Bottleneck, x: Tensor) -> Tensor:
    """The block in words: widen, filter each channel by itself, narrow; add where nothing changed shape."""
    y = x
    for layer in block.layers:
        if isinstance(layer, torch.nn.Conv2d) and layer.groups > 1:
            channels = y.split(1, 1)
            kernels = layer.weight.split(1)
            y = torch.cat([F.conv2d(c, k, None, layer.stride, 1) for c, k in zip(channels, kernels, strict=True)], 1)
        elif isinstance(layer, torch.nn.Conv2d):
            y = torch.einsum("bchw,oc->bohw", y, layer.weight[:, :, 0, 0])
        elif isinstance(layer, torch.nn.BatchNorm2d):
            mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), unbiased=False, keepdim=True)
            scale, shift = layer.weight[None, :, None, None], layer.bias[None, :, None, None]
            y = (y - mean) / (variance + layer.eps).sqrt() * scale + shift
        else:
            y = torch.where(y > 0, y, y * layer.weight[None, :, None, None])
    return x + y if x.shape == y.shape else y


@pytest.mark.parametrize(("outside", "stride"), [(6, 1), (6, 2), (10, 1), (10, 2)])
def test_a_bottleneck_equals_the_naive_one(outside, stride):
    g = torch.Generator().manual_seed(0)
    block = mobile.Bottleneck(6, outside, stride, expansion=3).double().train()
    for p in block.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64)
    x = torch.randn(5, 6, 9, 9, generator=g, dtype=torch.float64)
    torch.testing.assert_close(block(x), naive_bottleneck(block, x))


@pytest.mark.parametrize("size", [6, 8, 12, 16, 24, 32])
def test_the_mobile_network_takes_small_images_as_they_are(size):
    model = build("mobile", size=size, seed=3).eval()
    out = model(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
    assert out.embedding.shape == (2, 128)
    assert out.channel == out.spatial == ()
    sides = [math.ceil(size / shrunk) for shrunk in (1, 2, 4)]
    assert [tuple(f.shape[1:]) for f in out.features] == [
        (width, side, side) for width, side in zip((24, 48, 64), sides, strict=True)
    ]
    assert sum(p.numel() for p in model.parameters()) < 100_000
    again = build("mobile", size=size, seed=3).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


def test_the_mobile_network_refuses_what_cannot_be():
    with pytest.raises(ConfigError, match=r"images: expected shape \(B,3,16,16\), got \(1, 3, 48, 48\)"):
        build("mobile")(torch.zeros(1, 3, 48, 48))
    with pytest.raises(ConfigError, match="expected one entry a stage"):
        build("mobile", depths=(1,))
    with pytest.raises(ConfigError, match="expected positive numbers"):
        build("mobile", last=0)


def test_hints_turn_student_widths_into_teacher_widths():
    g = torch.Generator().manual_seed(0)
    hints = Hints((4, 6), (8, 10))
    maps = [torch.randn(5, 4, 7, 7, generator=g), torch.randn(5, 6, 3, 3, generator=g)]
    out = hints(maps)
    assert [o.shape for o in out] == [(5, 8, 7, 7), (5, 10, 3, 3)]
    for stage, x, y in zip(hints.stages, maps, out, strict=True):
        raw = torch.einsum("oc,bchw->bohw", stage[0].weight[:, :, 0, 0], x)
        mean, var = raw.mean((0, 2, 3), keepdim=True), raw.var((0, 2, 3), correction=0, keepdim=True)
        torch.testing.assert_close(y, (raw - mean) / (var + 1e-5).sqrt(), rtol=1e-4, atol=1e-5)


def test_hints_need_as_many_stages_on_both_sides():
    with pytest.raises(ConfigError, match=r"got widths \(4,\) and \(8, 8\)"):
        Hints((4,), (8, 8))


# ------------------------------------------------------------------------------------------------- narrow shortcuts

NARROW = """
import sys, torch
from lrkd.models.backbones import small
torch.set_num_threads(1)
for widths in ((3, 8), (8, 16), (15, 16)):
    network = small(48, 8, widths, stem_stride=1, cbam=False).to(memory_format=torch.channels_last)
    for _ in range(3):
        x = torch.randn(4, 3, 48, 48).contiguous(memory_format=torch.channels_last)
        network(x).embedding.sum().backward()
print("whole")
"""


def test_a_narrow_network_trains_on_large_maps():
    """Torch 2.11's own convolution writes past the end of a gradient there, and the process dies: so in another one."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", NARROW], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr[-500:]


@pytest.mark.parametrize(("inside", "stride"), [(3, 2), (8, 2), (8, 3), (15, 2), (16, 2), (8, 1)])
@pytest.mark.parametrize("size", [5, 6, 12])
def test_a_pointwise_convolution_is_torchs(inside, stride, size):
    g = torch.Generator().manual_seed(0)
    layer = layers.Pointwise(inside, 4, stride).double()
    x = torch.randn(2, inside, size, size, generator=g, dtype=torch.float64, requires_grad=True)
    found = layer(x)
    wanted = torch.nn.functional.conv2d(x, layer.weight, stride=stride)
    torch.testing.assert_close(found, wanted)
    pull = torch.randn(found.shape, generator=g, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad(y, (x, layer.weight), pull) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b)
    assert list(layer.state_dict()) == ["weight"]


def test_a_map_is_pooled_alike_on_a_gpu():
    x = torch.randn(3, 8, 7, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = []
    for pooled in (layers.over_pixels, layers.over_pixels_on_gpu):
        mean, largest = pooled(x)
        assert mean.shape == largest.shape == (3, 8, 1, 1)
        weight = torch.arange(8.0)[:, None, None] + 1
        found.append((mean, largest, *torch.autograd.grad(((mean + 2 * largest) * weight).sum(), x)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
