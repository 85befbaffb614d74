"""What would meet two devices on a GPU meets them here: torch's fake tensors have a device and no memory.

They know shapes, types and devices, and fail where a GPU would; their backward pass and their speed are not tried.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lrkd.data import degradation
from lrkd.data.degradation import PRESETS, degrade
from lrkd.data.renderer import FaceModel
from lrkd.distill import methods
from lrkd.distill.terms import Term
from lrkd.models import backbones, heads
from lrkd.training import batches, distributed, step
from lrkd.training.schedule import Options
from lrkd.training.step import StepLosses, Teacher
from lrkd.training.teacher_cache import cache_answers

GPU = torch.device("cuda")


@pytest.fixture
def fake(monkeypatch):
    """Tensors that are made in the test are fake; pinned memory needs a driver and is left out."""
    for module in (step, batches, degradation):
        monkeypatch.setattr(module, "to_device", lambda x, device: x.to(device))
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        yield mode


def placed(module: nn.Module) -> nn.Module:
    """The module on the GPU; `Module.to` cannot move what is fake."""
    for part in module.modules():
        for name, value in part._parameters.items():
            part._parameters[name] = None if value is None else nn.Parameter(value.detach().to(GPU))
        for name, value in part._buffers.items():
            part._buffers[name] = None if value is None else value.to(GPU)
    return module


def test_fake_tensors_notice_two_devices(fake):
    with pytest.raises(RuntimeError, match=r"device"):
        torch.ones(2, device=GPU) + torch.ones(2)


def one_step(terms: tuple[Term, ...], kind: str, choice: bool, precision: str, name: str, head: str) -> Tensor:
    """What `fit` does with a batch up to the backward pass, on the GPU -> the losses."""
    options = Options(side=(6, 12, 24), precision=precision, shift=2)
    network, other = (backbones.build(name, 24, 32, seed=seed) for seed in range(2))
    own, its = (heads.build(head, 20, network.embedding) for _ in range(2))
    picked = torch.ones(8, dtype=torch.bool, device=GPU) if choice else None
    how = {"shuffled": kind == "shuffled", "low": kind == "own-side", "itself": kind == "itself", "terms": terms}
    teacher = Teacher(*((network, own) if how["itself"] else (other, its)), **how, chosen=picked) if terms else None
    trained = nn.ModuleDict({"network": network, "head": own})
    if any(term.hint for term in terms):
        trained["hints"] = backbones.Hints(network.widths, other.widths)
    for part in (trained, other, its):
        placed(part)

    generator = torch.Generator().manual_seed(0)
    hr = batches.augment(
        torch.rand(8, 3, network.size, network.size, device=GPU), *batches.draw_augmentation(8, options, generator)
    )
    labels = torch.zeros(8, dtype=torch.int64, device=GPU)
    ask = None if teacher is None else teacher.network
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
        compute = StepLosses(trained, options, teacher, network, ask)
        losses, right = compute(hr, compute.small_images(hr, generator), labels, 1.0, picked)
    assert (losses.device.type, losses.dtype, right.device.type) == ("cuda", torch.float32, "cuda")
    return losses


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", methods.METHODS)
def test_every_methods_step_stays_on_the_gpu(fake, name, precision):
    method = methods.METHODS[name]
    losses = one_step(method.terms, method.teacher, bool(method.choice), precision, "small", "cosface")
    assert losses.shape == (1 + len(method.terms),)


@pytest.mark.parametrize("head", heads.HEADS)
@pytest.mark.parametrize("name", ["small", "mobile"])
def test_every_heads_step_stays_on_the_gpu(fake, head, name):
    assert one_step((), "none", False, "bfloat16", name, head).shape == (1,)


def test_an_update_stays_on_the_gpu(fake):
    network = placed(backbones.small(24, 32, (8, 8, 16, 16)))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert {state["momentum_buffer"].device.type for state in optimizer.state.values()} == {"cuda"}


def test_a_synchronised_norm_stays_on_the_gpu(fake, monkeypatch):
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda x, *of: None)
    network = placed(backbones.small(24, 32, (8, 8, 16, 16)).train())
    with distributed.sync_batch_norm(network, True):
        assert any(type(part) is distributed.SyncBatchNorm for part in network.modules())
        assert network(torch.rand(4, 3, 24, 24, device=GPU)).embedding.device.type == "cuda"


@pytest.mark.parametrize("preset", [name for name in PRESETS if PRESETS[name].jpeg is None])
def test_every_degradation_stays_on_the_gpu(fake, preset):
    generator = torch.Generator().manual_seed(0)
    x = degrade(torch.rand(4, 3, 48, 48, device=GPU), 12, preset=preset, generator=generator)
    assert x.device.type == "cuda"


def test_faces_are_rendered_on_the_gpu(fake):
    model, generator = FaceModel(), torch.Generator().manual_seed(0)
    identity, nuisance = model.sample_identity(4, generator), model.sample_nuisance(4, generator)
    assert model.images(identity.to(GPU), nuisance.to(GPU), size=48).device.type == "cuda"


def test_what_a_teacher_said_is_kept_on_the_gpu(fake):
    network, images = placed(backbones.small().eval()), torch.rand(10, 3, 48, 48, device=GPU)
    read = {"images": lambda index: images[index.to(GPU)], "device": GPU}
    some = SimpleNamespace(**read, count=10, batch=4, share=slice(0, 4))
    answers = cache_answers(network, some, {"features", "embedding"}, True, 1e9)
    told = answers(torch.arange(4, device=GPU), torch.ones(4, dtype=torch.bool, device=GPU))
    assert {x.device.type for x in (told.embedding, *told.features)} == {"cuda"}
    assert told.channel == told.spatial == ()
