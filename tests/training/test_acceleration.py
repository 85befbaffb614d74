"""What keeps a device busy changes nothing in what is computed; on a CPU it is asked for, as a GPU would use it."""

import itertools
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from torch import nn

from lrkd.distill import terms as distill_terms
from lrkd.distill.terms import embedding, feature
from lrkd.errors import RunError
from lrkd.models import backbones
from lrkd.training import acceleration, batches, checkpoint, teacher_cache
from lrkd.training.acceleration import Speed, Writer, prefetch
from lrkd.training.schedule import Options, Schedule
from lrkd.training.step import Teacher


def test_switches_are_on_where_the_device_is_a_gpu_and_it_pays():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert Speed().uses("fused", gpu)
    assert not Speed().uses("fused", cpu)
    assert not Speed().uses("compile", gpu, False)
    assert Speed(compile=True).uses("compile", gpu, False)
    assert Speed(prefetch=True).uses("prefetch", cpu)
    assert not Speed(prefetch=False).uses("prefetch", gpu)


def test_the_fastest_convolutions_are_cudnns():
    before = torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark
    with acceleration.cudnn_benchmark():
        assert (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark) == (True, True)
    assert (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark) == before


def test_reading_in_advance_is_a_map_whose_next_value_is_read_meanwhile():
    read = []
    values = prefetch(lambda k: (read.append(k), threading.current_thread().name)[1] and k * k, range(5))
    assert next(values) == 0
    end = time.monotonic() + 10
    while read != [0, 1]:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert list(values) == [1, 4, 9, 16]
    assert list(prefetch(str, [])) == []

    def fail(k: int) -> int:
        if k == 2:
            raise OSError("image 2 is gone")
        return k

    values = prefetch(fail, range(5))
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(OSError, match="image 2 is gone"):
        next(values)


def test_images_that_are_read_in_advance_give_the_same_bits(tmp_path, monkeypatch):
    faces = toys.faces()
    np.save(tmp_path / "x.npy", faces.images)
    mapped = replace(faces, images=np.load(tmp_path / "x.npy", mmap_mode="r"))
    plain, _ = toys.train(faces=faces)
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 100)
    assert toys.equal(toys.train(faces=mapped, speed=Speed(prefetch=True))[0], plain)


# ------------------------------------------------------------------------------------------------------- checkpoints


def test_a_writer_takes_one_piece_at_a_time_and_says_what_went_wrong():
    done, gate = [], threading.Event()
    with Writer() as writer:
        writer.add(lambda: [gate.wait(), done.append(1)][1])
        assert not done
        gate.set()
        writer.add(lambda: done.append(2))
    assert done == [1, 2], "what was added last is done when the block ends"
    with Writer() as writer:
        writer.add(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            writer.add(lambda: done.append(3))
    with pytest.raises(ZeroDivisionError), Writer() as writer:
        writer.add(lambda: 1 / 0)
    assert done == [1, 2]


def test_a_copy_for_later_is_of_now():
    weights = {"a": [torch.zeros(2)], "b": (torch.ones(1), None), "step": 3}
    bring = acceleration.snapshot(weights, torch.device("cpu"))
    weights["a"][0] += 5
    found = bring()
    assert torch.equal(found["a"][0], torch.zeros(2))
    assert found["b"][1] is None
    assert found["step"] == 3


def test_checkpoints_that_are_written_beside_the_training_resume_to_the_same_bits(tmp_path):
    whole, _ = toys.train(epochs=4)
    count = itertools.count(1)
    with pytest.raises(KeyboardInterrupt):
        toys.train(
            epochs=4,
            directory=tmp_path,
            stop=lambda: next(count) == 9,
            checkpoint_every=2,
            speed=Speed(async_checkpoint=True),
        )
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 9, "what was added last is there"
    assert toys.equal(toys.train(epochs=4, directory=tmp_path, speed=Speed(async_checkpoint=True))[0], whole)
    assert {path.name for path in tmp_path.iterdir()} == {"state.pt", "metrics.csv"}


def test_a_disk_that_is_full_beside_the_training_stops_it(tmp_path, monkeypatch):
    def full(path, content):
        raise RunError(f"{path}: could not be written")

    monkeypatch.setattr(checkpoint, "write_whole", full)
    with pytest.raises(RunError, match="could not be written"):
        toys.train(directory=tmp_path, checkpoint_every=2, speed=Speed(async_checkpoint=True))


# ---------------------------------------------------------------------------------------------------------- compiling


def test_a_compiled_network_trains_alike_and_trying_it_leaves_no_trace(monkeypatch):
    used = []

    def eager(network: nn.Module):
        return lambda x: (used.append(network), network(x))[1]

    monkeypatch.setattr(torch, "compile", eager)
    plain, _ = toys.train(dropout=0.3)
    fast, _ = toys.train(dropout=0.3, speed=Speed(compile=True))
    assert toys.equal(fast, plain)
    assert len(set(map(id, used))) == 2, "student and teacher"


def test_a_machine_that_cannot_compile_says_so_once_and_trains(monkeypatch):
    def broken(network: nn.Module):
        def call(x: torch.Tensor):
            network(x)  # some of it ran: batch norm has counted
            raise RuntimeError("no compiler here\nand a long story")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    plain, _ = toys.train(distil=False)
    with pytest.warns(
        UserWarning, match=r"torch.compile does not work here \(RuntimeError: no compiler here\)"
    ) as said:
        slow, _ = toys.train(distil=False, speed=Speed(compile=True))
    assert len(said) == 1
    assert toys.equal(slow, plain)


@pytest.mark.slow
def test_the_same_layers_are_compiled_once_and_others_however_many_came_before(monkeypatch):
    torch.compiler.reset()
    acceleration._compiled.clear()
    limit, graphs = torch._dynamo.config.recompile_limit, []

    def counted(graph, inputs):
        graphs.append(1)
        return graph

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: real(network, backend=counted))
    x = torch.rand(4, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(3):
            acceleration.compile_network(backbones.small(8, 8, (4, 8), seed=seed).train(), x, False)
        assert len(graphs) == 1
        for width in range(4, 4 + limit + 1):
            acceleration.compile_network(backbones.small(8, 8, (4, 4 * width)).train(), x, False)
    assert len(graphs) == 1 + limit + 1


def test_what_torch_really_traces_is_the_same_network():
    network = backbones.small(8, 8, (4, 8)).train()
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.compile(network, backend="aot_eager", fullgraph=True)
        found = traced(x)
    torch.testing.assert_close(found.embedding, network(x).embedding, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ the teacher, once


def watched(**more):
    """A run whose teacher counts the images that it is shown."""
    network, head = toys.pair()
    teacher = Teacher(*toys.pair(9), shuffled=more.pop("shuffled", False))
    shown = []
    teacher.network.register_forward_pre_hook(lambda module, inputs: shown.append(len(inputs[0])))
    options = more.pop("options", Options(side=4, threads=1))
    terms = more.pop("terms", (feature(weight=2.0), embedding()))
    schedule = Schedule(6, 16, lr=0.05)
    how = {"schedule": schedule, "options": options, "teacher": teacher, "terms": terms, "log_every": 1}
    fitted = toys.fit(network, head, toys.faces(), progress=False, **how, **more)
    return [row["loss"] for row in fitted.rows], sum(shown)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("mirror", "sides"), [(True, 2), (False, 1)])
def test_what_the_teacher_says_of_an_image_is_asked_once(mirror, sides, shuffled):
    options = Options(side=4, threads=1, mirror=mirror)
    each, asked = watched(options=options, shuffled=shuffled)
    once, rarely = watched(options=options, shuffled=shuffled, speed=Speed(cache_teacher=True))
    assert once == pytest.approx(each, rel=1e-4)
    assert asked == 6 * 64
    assert rarely == sides * 64 + 2 + 2, "every image, and a look at two first"


def test_a_teacher_that_is_asked_once_is_not_compiled(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "compile", lambda network: (made.append(network), network)[1])
    watched(speed=Speed(cache_teacher=True, compile=True))
    assert len(made) == 1
    watched(options=Options(side=4, shift=1, threads=1), speed=Speed(cache_teacher=True, compile=True))
    assert len(made) == 3


def test_logits_are_exact_where_all_else_is_rounded():
    class Seen(Exception):
        pass

    def look(student, teacher):
        raise Seen(student.logits.detach(), teacher.logits)

    term = replace(embedding(), function=look)
    with pytest.raises(Seen) as found:
        watched(options=Options(side=4, precision="bfloat16", threads=1), terms=(term,))
    for logits in found.value.args:
        assert not torch.equal(logits, logits.bfloat16().float())


def test_shifted_images_are_asked_about_each_time_and_so_are_too_many(monkeypatch):
    assert watched(options=Options(side=4, shift=1, threads=1), speed=Speed(cache_teacher=True))[1] == 6 * 64
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 100)
    assert watched(speed=Speed(cache_teacher=True))[1] == 6 * 64 + 2 + 2


def test_only_what_the_terms_read_is_kept(monkeypatch):
    asked = []
    whole = teacher_cache.fields_read
    monkeypatch.setattr(teacher_cache, "fields_read", lambda *args: (asked.append(whole(*args)), asked[-1])[1])
    watched(terms=(embedding(),), speed=Speed(cache_teacher=True))
    watched(terms=(distill_terms.attention(), distill_terms.logits()), speed=Speed(cache_teacher=True))
    watched(terms=(distill_terms.cross(),), speed=Speed(cache_teacher=True))
    assert asked == [{"embedding"}, {"channel", "spatial", "embedding"}, {"features", "embedding", "labels"}]


class Own(nn.Module):
    """A backbone of one's own: what `fit` needs of one, and no class of lrkd's."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inside = toys.pair(seed)[0]
        self.size, self.widths, self.embedding = self.inside.size, self.inside.widths, self.inside.embedding

    def forward(self, x):
        return self.inside(x)


def test_a_teacher_is_asked_once_of_a_backbone_of_ones_own_too():
    found = []
    for once in (False, True):
        network, head = Own(0), toys.pair()[1]
        teacher = Teacher(Own(9), toys.pair(9)[1])
        options = Options(side=4, threads=1)
        more = {"schedule": Schedule(1, 16), "options": options, "terms": (feature(), embedding()), "progress": False}
        toys.fit(network, head, toys.faces(), teacher=teacher, speed=Speed(cache_teacher=once), **more)
        found.append(toys.state(network, head))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key].float(), value.float(), rtol=1e-3, atol=1e-4)
