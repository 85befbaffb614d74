"""Adapted batch norm: the source at a = 0, torch's training mode at a = 1, and a model that is left as it was."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lrkd.errors import ConfigError
from lrkd.evaluation import embedding
from lrkd.evaluation.batchnorm import AdaBN, Adapted, FaceBN, SourcePrior, moments
from lrkd.models import backbones

EPS = 1e-5


def lived(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with statistics and affine weights as if it had been trained, in a mixture of modes."""
    draw = torch.Generator().manual_seed(seed)
    for k, m in enumerate(module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)):
        for value, low, high in ((m.running_mean, -1, 1), (m.running_var, 0.5, 2), (m.weight, 0.5, 2), (m.bias, -1, 1)):
            value.data.uniform_(low, high, generator=draw)
        m.num_batches_tracked.fill_(k)
        m.train(k % 2 == 0)
    return model


@pytest.fixture
def model() -> nn.Module:
    return lived(backbones.build("mobile", size=8, embedding=6, depths=(1, 1), widths=(4, 6), last=6))


def pixels(count: int = 12, seed: int = 0, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def tiny(seed: int = 0) -> nn.Sequential:
    """Convolution, BatchNorm2d, PReLU, linear, BatchNorm1d in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5)
        return lived(nn.Sequential(*layers).double()).eval()


def batches(count: int = 3, rows: int = 6) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [k + torch.randn(rows + k, 3, 4, 4, generator=draw, dtype=torch.float64) for k in range(count)]


def by_hand(net: nn.Sequential, x: torch.Tensor, mix) -> torch.Tensor:
    """The network's forward pass written out; mix(layer, mean, biased variance) is what the layer normalises with."""
    conv, first, prelu, _, linear, second = net

    def normal(layer, h, axes):
        shape = (1, -1) + (1,) * (h.ndim - 2)
        mean = h.sum(axes) / (h.numel() / h.shape[1])
        var = ((h - mean.view(shape)) ** 2).sum(axes) / (h.numel() / h.shape[1])
        mean, var = mix(layer, mean, var)
        h = (h - mean.view(shape)) / (var.view(shape) + EPS) ** 0.5
        return h * layer.weight.view(shape) + layer.bias.view(shape)

    h = normal(first, F.conv2d(x, conv.weight, conv.bias), (0, 2, 3))
    h = torch.where(h > 0, h, h * prelu.weight.view(1, -1, 1, 1))
    return normal(second, h.flatten(1) @ linear.weight.T + linear.bias, (0,))


def toward(a):
    return lambda bn, mean, var: ((1 - a) * bn.running_mean + a * mean, (1 - a) * bn.running_var + a * var)


def snapshot(net: nn.Module) -> tuple:
    """All bits, where they lie, modes, and what hangs on each module."""
    state = [(name, value.data_ptr(), value._version, value.clone()) for name, value in net.state_dict().items()]
    return state, [(m.training, sorted(vars(m)), len(m._forward_hooks)) for m in net.modules()]


def columns(context: Adapted, *names: str) -> np.ndarray:
    return context.table()[list(names)].to_numpy()


def same(a: tuple, b: tuple) -> bool:
    return a[1] == b[1] and all(x[:3] == y[:3] and torch.equal(x[3], y[3]) for x, y in zip(a[0], b[0], strict=True))


@pytest.mark.parametrize("options", [{}, {"mirror": False}])
@pytest.mark.parametrize("amp", [False, True])
def test_zero_is_the_source_to_the_bit_and_the_model_is_restored(model, options, amp):
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        check_zero_is_the_source(model, options)


def check_zero_is_the_source(model, options):
    before, images = snapshot(model), pixels()
    source = embedding.embed(model, images, batch=5, **options)
    for context in (FaceBN(model, 0.0, least=1), FaceBN(model, 1.0, least=11), SourcePrior(model, float("inf"))):
        with context:
            assert np.array_equal(embedding.embed(model, images, batch=5, **options), source)
        assert (columns(context, "shift", "ratio", "batches", "kept") == (0, 1, 0, 3)).all()
        assert same(snapshot(model), before)
    with FaceBN(model, 0.3, least=1) as bn:
        moved = embedding.embed(model, images, batch=5, **options)
    assert not np.allclose(moved, source, atol=1e-2)
    assert same(snapshot(model), before)
    assert (columns(bn, "batches", "kept") == (3, 0)).all()
    assert (bn.table()["shift"] > 0).all()
    assert np.array_equal(embedding.embed(model, images, batch=5, **options), source)


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_one_is_torchs_training_mode(model, amp):
    network = lived(backbones.small(16, 6, (4, 6)))  # attention, BatchNorm1d at the end, no dropout
    for net, size in ((model, 8), (network, 16)):
        x = torch.randn(9, 3, size, size, generator=torch.Generator().manual_seed(0))
        x = x.contiguous(memory_format=torch.channels_last)
        trained = copy.deepcopy(net).train()
        with torch.inference_mode(), torch.autocast("cpu", dtype=amp, enabled=amp is not None):
            with FaceBN(net, 1.0, least=1):
                found = net(x).embedding
            expected = trained(x).embedding
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, **({} if amp is None else {"rtol": 0.1, "atol": 0.1}))


@pytest.mark.parametrize("a", [0.1, 0.5, 0.9, 1.0])
def test_a_whole_network_by_hand(a):
    net = tiny()
    for x in batches():
        with FaceBN(net, a, least=1):
            torch.testing.assert_close(net(x), by_hand(net, x, toward(a)), rtol=1e-10, atol=1e-10)
        with SourcePrior(net, 10):
            torch.testing.assert_close(net(x), by_hand(net, x, toward(len(x) / (10 + len(x)))), rtol=1e-10, atol=1e-10)
        with FaceBN(copy.deepcopy(net), 1.0, least=1) as pure, SourcePrior(net, 0):
            assert torch.equal(net(x), pure.model(x))


@pytest.mark.parametrize("prior", [None, 8.0])
def test_online_is_a_loop_from_the_source_on_and_small_batches_add_nothing(prior):
    net, state, seen, a = tiny(), {}, 0, 0.3
    made = (lambda: FaceBN(net, a, online=True, least=6)) if prior is None else None
    context = made() if made else SourcePrior(net, prior, online=True, least=6)

    def mix(bn, mean, var):
        old = state.get(bn, (bn.running_mean, bn.running_var))
        new = [(1 - a) * o + a * b for o, b in zip(old, (mean, var), strict=True)] if learns else old
        state[bn] = new
        return new

    few = torch.ones(5, 3, 4, 4, dtype=torch.float64)
    for again in range(2):  # entered again, it starts at the source again
        state, seen, first = {}, 0, None
        with context:
            for x in [few, *batches(), few]:
                learns = len(x) >= 6
                if prior is not None:
                    seen += len(x) * learns
                    a = len(x) / (prior + seen)
                found = net(x).detach()
                torch.testing.assert_close(found, by_hand(net, x, mix).detach(), rtol=1e-10, atol=1e-10)
                first = found if first is None else first
        assert torch.equal(first, net(few))
        assert not torch.allclose(found, first)
        assert (columns(context, "batches", "kept") == (4, 1)).all(), again


def test_pure_batch_statistics_know_no_order_within_a_batch(model):
    images, order = pixels(16), np.random.default_rng(1).permutation(16)
    with FaceBN(model, 1.0, least=1):
        found, shuffled = embedding.embed(model, images), embedding.embed(model, images[order])
        halves = embedding.embed(model, images, batch=8)
    np.testing.assert_allclose(shuffled, found[order], atol=1e-4)
    assert not np.allclose(halves, found, atol=1e-2)  # but they know which faces share a batch


def test_the_guard_counts_rows_and_mirror_images_are_two(model):
    for mirror, least, guarded in ((True, 24, False), (True, 25, True), (False, 12, False), (False, 13, True)):
        source = embedding.embed(model, pixels(), mirror=mirror)
        with FaceBN(model, 0.5, least=least):
            found = embedding.embed(model, pixels(), mirror=mirror)
        assert np.array_equal(found, source) == guarded, (mirror, least)


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_adabn_layer_by_layer_is_the_set_as_one_batch(size):
    net, x = tiny(), torch.cat(batches())
    before = snapshot(net)

    def see():
        return torch.cat([net(part) for part in x.split(size)]).detach()

    with FaceBN(net, 1.0, least=1):
        whole = net(x).detach()
    conv, first, prelu, flat, linear, _ = net
    seen = torch.cat(
        [
            linear(flat(prelu(F.batch_norm(conv(part), None, None, first.weight, first.bias, True))))
            for part in x.split(size)
        ]
    )  # what one pass shows the second layer

    with AdaBN(net, see, passes=2) as layered:
        torch.testing.assert_close(see(), whole, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(net(x[:1]).detach(), whole[:1], rtol=1e-9, atol=1e-9)  # no batch any more
    assert same(snapshot(net), before)
    assert (layered.table()["kept"] == 0).all()

    def once(bn, mean, var):
        return (mean, var) if bn is first else (seen.mean(0), seen.var(0, correction=0))

    with AdaBN(net, see) as single:
        torch.testing.assert_close(see(), by_hand(net, x, once).detach(), rtol=1e-9, atol=1e-9)
    assert torch.allclose(by_hand(net, x, once), whole) == (size == 100)
    assert list(single.table()["layer"]) == ["1", "5"]


def test_adabn_layer_by_layer_through_embed_does_not_depend_on_batches_or_order(model):
    images, order, found = pixels(), np.random.default_rng(1).permutation(12), []
    for shown, batch in ((images, 256), (images[order], 5)):
        with AdaBN(model, lambda shown=shown, batch=batch: embedding.embed(model, shown, batch=batch), passes=10):
            found.append(embedding.embed(model, images, batch=7))
    np.testing.assert_allclose(*found, atol=1e-3)
    assert not np.allclose(found[0], embedding.embed(model, images), atol=1e-2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([(), (3,), (2, 3)]), st.integers(0, 99))
def test_moments_are_those_of_numpy(rows, channels, tail, seed):
    x = torch.randn(rows, channels, *tail, generator=torch.Generator().manual_seed(seed)) * 3 + 50
    flat = x.double().numpy().swapaxes(0, 1).reshape(channels, -1)
    for given_, tolerance in ((x.double(), 1e-10), (x, 1e-3), (x.bfloat16(), 2.0)):
        found = moments(given_)
        assert (
            found.mean.dtype
            == found.var.dtype
            == (torch.float64 if given_ is not x and tolerance < 1 else torch.float32)
        )
        np.testing.assert_allclose(found.mean.numpy(), flat.mean(1), atol=tolerance)
        np.testing.assert_allclose(found.var.numpy(), flat.var(1), atol=tolerance * 3, rtol=tolerance)


def test_the_table_measures_in_the_sources_deviations():
    bn = nn.BatchNorm1d(2, eps=1e-12).double().eval()
    bn.running_mean.copy_(torch.tensor([1.0, 0.0]))
    bn.running_var.copy_(torch.tensor([4.0, 1.0]))
    x = torch.tensor([[5.0, -1.0], [9.0, 1.0]], dtype=torch.float64)  # means 7, 0; variances 4, 1
    with FaceBN(bn, 0.5, least=1) as half:
        bn(x)
        bn(x)
    row = half.table().iloc[0]
    assert (row["layer"], row["channels"], row["batches"], row["kept"]) == ("", 2, 2, 0)
    assert row["shift"] == pytest.approx(((3 / 2) ** 2 / 2) ** 0.5)  # half of 6 is 1.5 deviations, the other none
    assert row["ratio"] == pytest.approx(1)
    with FaceBN(bn, 1.0, least=1) as whole:
        bn(3 * x)
    assert whole.table()["ratio"][0] == pytest.approx(9)


def test_a_model_without_statistics_is_unchanged():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    bare = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192, track_running_stats=False))
    for net in (plain, bare):
        source = embedding.embed(net, pixels())
        with FaceBN(net, 1.0, least=1) as bn, SourcePrior(net, 1):
            assert np.array_equal(embedding.embed(net, pixels()), source)
        assert bn.table().empty
        assert list(bn.table()) == ["layer", "channels", "batches", "kept", "shift", "ratio"]
        assert all(m.training for m in net.modules())


def test_no_gradient_reaches_anything_through_the_statistics(model):
    with FaceBN(model, 0.5, online=True, least=1):
        embedding.embed(model, pixels())
        assert all(p.grad is None for p in model.parameters())
        x = torch.randn(4, 3, 8, 8, requires_grad=True)
        model(x).embedding[0].sum().backward()  # also after inference mode has left its tensors behind
    assert x.grad[0].abs().sum() > 0
    assert (x.grad[1:] == 0).all()  # statistics are constants: no face sees another's


def test_restored_after_an_exception_and_wherever_the_model_was(model):
    model.output_layer.train()
    before = snapshot(model)
    with pytest.raises(ConfigError, match="expected shape"), FaceBN(model, 0.5):
        model(torch.zeros(2, 3, 9, 9))
    assert same(snapshot(model), before)
    with pytest.raises(KeyError), AdaBN(model, lambda: {}["nothing"]):
        pass
    assert same(snapshot(model), before)


def test_twice_is_refused_and_the_first_stays(model):
    images, context = pixels(), FaceBN(model, 0.5, least=1)
    before = snapshot(model)
    with context:
        found = embedding.embed(model, images)
        for second in (context, FaceBN(model, 0.1), AdaBN(model.output_layer, print), SourcePrior(model, 1)):
            with pytest.raises(ConfigError, match="expected one that is not adapted"), second:
                pass
        assert np.array_equal(embedding.embed(model, images), found)
        model.train()
        with pytest.raises(ConfigError, match=r"but input_layer\.1 is in training"):
            model(torch.zeros(2, 3, 8, 8))
    assert same(snapshot(model), before)
    with context:
        assert np.array_equal(embedding.embed(model, images), found)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda m: FaceBN(m, 1.5), "momentum: expected .* got 1.5"),
        (lambda m: FaceBN(m, float("nan")), "momentum: expected .* got nan"),
        (lambda m: FaceBN(m, 0.5, least=0), "least: expected 1 row .* got 0"),
        (lambda m: SourcePrior(m, -1), "prior: expected 0 rows or more, got -1"),
        (lambda m: SourcePrior(m, float("nan")), "prior: expected 0 rows or more, got nan"),
        (lambda m: AdaBN(m, print, passes=0), "passes: expected 1 or more, got 0"),
    ],
)
def test_what_does_not_fit_is_said(model, make, says):
    with pytest.raises(ConfigError, match=says):
        make(model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("amp", [False, True])
def test_on_a_gpu_as_on_the_cpu(model, amp):
    with FaceBN(model, 0.3, online=True, least=1):
        here = embedding.embed(model, pixels(), batch=5)
    with FaceBN(model.cuda(), 0.3, online=True, least=1), torch.autocast("cuda", torch.bfloat16, enabled=amp):
        there = embedding.embed(model, pixels(), batch=5)
    np.testing.assert_allclose(there, here, **({"rtol": 0.2, "atol": 0.2} if amp else {"atol": 1e-3}))
