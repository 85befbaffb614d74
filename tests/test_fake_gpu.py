"""What would meet two devices on a GPU meets them here: torch's fake tensors have a device and no memory.

They know shapes, types and devices, and fail where a GPU would; their backward pass and their speed are not tried.
"""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lrkd import heads, methods, models, train
from lrkd.degrade import PRESETS, degrade
from lrkd.device import said_once
from lrkd.faces import FaceModel
from lrkd.train import Options, Teacher

GPU = torch.device("cuda")


@pytest.fixture
def fake(monkeypatch):
    """Tensors that are made in the test are fake; pinned memory needs a driver and is left out."""
    monkeypatch.setattr(train, "_sent", lambda x, device: x.to(device))
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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", methods.METHODS)
def test_every_methods_step_stays_on_the_gpu(fake, name, precision):
    method, options = methods.METHODS[name], Options(side=6, precision=precision, shift=2)
    network, other = (models.small(seed=seed) for seed in range(2))
    head, its = (heads.build("cosface", 20, network.embedding) for _ in range(2))
    picked = torch.ones(8, dtype=torch.bool, device=GPU) if method.choice else None
    teacher = Teacher(other, its, method.teacher == "shuffled", picked) if method.terms else None
    trained = nn.ModuleDict({"network": network, "head": head})
    if any(term.hint for term in method.terms):
        trained["hints"] = models.Hints(network.widths, other.widths)
    for part in (trained, other, its):
        placed(part)

    def shown(x: Tensor) -> Tensor:
        return train.normalise(x).contiguous(memory_format=torch.channels_last)

    generator = torch.Generator().manual_seed(0)
    hr = train._augment(torch.rand(8, 3, 48, 48, device=GPU), *train._draw(8, options, generator))
    labels = torch.zeros(8, dtype=torch.int64, device=GPU)
    ask = None if teacher is None else other
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
        losses, right = train._losses(
            trained, head, network, teacher, ask, method.terms, options, shown, hr, labels, picked, 1.0, None, generator
        )
    assert (losses.device.type, losses.dtype, right.device.type) == ("cuda", torch.float32, "cuda")
    assert losses.shape == (1 + len(method.terms),)


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
    network, images = placed(models.small().eval()), torch.rand(10, 3, 48, 48, device=GPU)
    ask = said_once(network, lambda index: images[index.to(GPU)], 10, {"features", "embedding"}, True, 1e9, 4)
    told = ask(torch.arange(4, device=GPU), torch.ones(4, dtype=torch.bool, device=GPU))
    assert {x.device.type for x in (told.embedding, *told.features)} == {"cuda"}
    assert told.channel == told.spatial == ()
