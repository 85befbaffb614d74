"""The bookkeeping of a recorded step, with a recording that computes the work anew, as a CPU has none."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from lrkd.distill import methods
from lrkd.models import backbones, heads
from lrkd.models.layers import Output
from lrkd.training import graphs
from lrkd.training.graphs import RecordedUpdate

RATES = [0.5, 0.25, 0.125, 0.1, 0.05, 0.025, 0.01]


@pytest.fixture
def recorder(monkeypatch):
    """CUDA's recording, played by a graph that calls the work again with the tensors that it was recorded with."""

    class Stream:
        def wait_stream(self, other):
            pass

    class Graph:
        replays = 0

        def replay(self):
            type(self).replays += 1
            update = self.of
            rates = [group["lr"] for group in update._optimizer.param_groups]
            for group, rate in zip(update._optimizer.param_groups, update._rates, strict=True):
                group["lr"] = rate
            update._found.copy_(update._update(*update._given))
            for group, rate in zip(update._optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)

    def record(self, device):
        graph = Graph()
        graph.of = self
        self._rates = [torch.tensor(0.0) for _ in self._optimizer.param_groups]
        self._found = torch.zeros(2)
        return graph

    monkeypatch.setattr(RecordedUpdate, "_record", record)
    return Graph


def trained(recorded):
    """The weights after seven updates, in which everything changes that may change."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 6))
    optimizer = torch.optim.SGD([weight], 1.0, momentum=0.9, nesterov=True, foreach=False)

    def update(x, ramp, told, chosen):
        loss = ((weight * x * ramp - told.embedding) ** 2).sum() + told.features[0].sum() * weight.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return torch.stack([loss.detach(), weight.detach().sum()])

    step = RecordedUpdate(update, optimizer) if recorded else update
    generator, values = torch.Generator().manual_seed(0), []
    for k, rate in enumerate(RATES):
        optimizer.param_groups[0]["lr"] = rate
        told = Output(torch.rand(6, generator=generator), (torch.rand(1, generator=generator),), (), ())
        values.append(step(torch.rand(6, generator=generator), k / 7, told, None))
    return torch.stack(values), weight.detach(), optimizer.param_groups[0]["lr"]


def test_a_replayed_step_reads_what_changes(recorder):
    (plain, weights, _), (found, replayed, rate) = trained(False), trained(True)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(replayed, weights)
    assert rate == RATES[-1]  # the schedule goes on with numbers
    assert recorder.replays == len(RATES) - graphs.WARM_UP


def test_what_cannot_be_recorded_is_said_once_and_computed(recorder, monkeypatch):
    @contextmanager
    def refuse(graph, **how):
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    plain = trained(False)
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    for name, value in (("Stream", _NoStream), ("current_stream", _NoStream), ("CUDAGraph", object)):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    with pytest.warns(UserWarning, match="cannot be recorded as a CUDA graph .operation not permitted") as said:
        found = trained(True)
    assert len(said) == 1
    torch.testing.assert_close(found[0], plain[0])
    assert found[2] == RATES[-1]


class _NoStream:
    def wait_stream(self, other):
        pass


@pytest.mark.parametrize("name", sorted(heads.HEADS))
def test_a_head_takes_its_ramp_as_a_tensor_too(name):
    x, y = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    found = [heads.build(name, 4, 16)(x, y, ramp=ramp) for ramp in (0.3, torch.tensor(0.3))]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_nothing_in_a_steps_losses_draws_or_waits(name):
    """A graph would keep what is drawn, and cannot wait: all of it happens in `small_images` and before."""
    from lrkd.training.schedule import Options
    from lrkd.training.step import StepLosses, Teacher

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), name
            return function(*args, **(kwargs or {}))

    method = methods.get(name)
    network, other = (backbones.small(24, 32, (8, 8, 16, 16), seed=seed) for seed in range(2))
    head, its = (heads.build("cosface", 8, 32) for _ in range(2))
    trained = torch.nn.ModuleDict({"network": network, "head": head})
    if any(term.hint for term in method.terms):
        trained["hints"] = backbones.Hints(network.widths, other.widths)
    taught = None
    if method.terms:
        itself = method.teacher == "itself"
        taught = Teacher(*((network, head) if itself else (other.eval(), its)), itself=itself, terms=method.terms)
    losses = StepLosses(trained, Options(side=6), taught, network, None if taught is None else taught.network)
    hr, labels = torch.rand(8, 3, 24, 24, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    seen, chosen = losses.small_images(hr, torch.Generator().manual_seed(0)), torch.arange(8) % 2 == 0
    # Heads ask about labels on a CPU alone: `fit` has asked once.
    head.forward = lambda embedding, labels, ramp: 16 * embedding @ head.weight.T
    with Watched():
        values, _ = losses(hr, seen, labels, torch.tensor(0.5), chosen if method.choice else None)
        values.sum().backward()
    assert len(values) == 1 + len(method.terms)
