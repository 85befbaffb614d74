"""Stage 2: what a GPU computes is what a CPU computes, by every path that only a GPU takes.

A check compares tensors by |a - b| / |b|, of a training step the updates of all weights. In exact checks cuDNN computes
in float32; elsewhere it takes TF32, as `fit` lets it. What is checked first is what the tables rest on.
"""

import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.gpu.stage import Stage, begin, chosen
from lrkd.data import degradation
from lrkd.data.renderer import FaceModel
from lrkd.data.tables import Faces
from lrkd.distill import methods
from lrkd.evaluation import embedding
from lrkd.models import backbones, heads, layers
from lrkd.training import batches, loop
from lrkd.training.acceleration import Speed
from lrkd.training.execution import Execution
from lrkd.training.partial_classes import Shard
from lrkd.training.schedule import Options, Schedule
from lrkd.training.step import Teacher

EXACT, STEPS, TF32 = 2e-3, 1e-2, 5e-2  # of several steps: a maximum that falls elsewhere is a small jump
Weights = dict[str, Tensor]
Found = tuple[float, float, str]  # error, tolerance, message
CLASSES, BATCH = 8, 16
PLAIN = Speed(fused=False, compile=False, graph=False, prefetch=False, async_checkpoint=False, cache_teacher=False)


def faces(count: int = 64, size: int = 24) -> Faces:
    """Noise with a pattern a class: nothing to learn from, but something to differ in."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % CLASSES
    images = rng.integers(60, 196, (CLASSES, size, size, 3))[labels] + rng.integers(-60, 60, (count, size, size, 3))
    names = tuple(f"p{k}" for k in range(CLASSES))
    return Faces(images.astype(np.uint8), labels, None, None, names, "check", f"check-{count}-{size}")


def networks(name: str = "small", seed: int = 0) -> tuple[layers.Network, heads.Head]:
    """A network without dropout, whose masks would differ, and its head."""
    network = backbones.small(24, 32, (8, 8, 16, 16), seed=seed, dropout=0.0)
    if name != "small":
        network = backbones.build(name, seed=seed, dropout=0.0)
    return network, heads.build("cosface", CLASSES, network.embedding, seed=seed, scale=16.0, margin=0.15)


@contextmanager
def exact() -> Iterator[None]:
    """`fit` computes convolutions in float32 and in a fixed order."""

    @contextmanager
    def plain() -> Iterator[None]:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield

    with patch.object(loop, "cudnn_benchmark", plain):
        yield


def trained(
    device: torch.device,
    method: str = "fskd",
    epochs: int = 1,
    speed: Speed = PLAIN,
    name: str = "small",
    **more: Any,
) -> Weights:
    """How far `fit` moved each weight, on the CPU. An epoch is one step unless more faces are given."""
    what = methods.get(method)
    network, head = networks(name)

    def weights() -> Weights:
        named = [*network.named_parameters(), *head.named_parameters("head")]
        return {key: value.detach().cpu().clone() for key, value in named}

    before = weights()
    shown = more.pop("faces", None) or faces(BATCH, network.size)
    teacher = None
    if what.terms:
        chosen = torch.arange(len(shown)) % 2 == 0 if what.choice else None
        kind = what.teacher
        taught = (network, head) if kind == "itself" else networks(name, 9)
        how = {"shuffled": kind == "shuffled", "low": kind == "own-side", "itself": kind == "itself"}
        teacher = Teacher(*taught, **how, chosen=chosen, terms=what.terms)
    options = more.pop("options", Options(side=6, threads=1))
    schedule = Schedule(epochs, batch=BATCH, lr=0.1, kind="step", ramp=0.0)
    execution = Execution(device=device, speed=speed, progress=False, **more)
    loop.fit(network, head, shown, schedule, options, teacher, execution)
    return {key: value - before[key] for key, value in weights().items()}


def apart(a: Weights, b: Weights) -> float:
    """|a - b| / |b| over all tensors; not a number where one is not finite."""
    off = torch.stack([(a[key] - b[key]).double().square().sum() for key in b]).sum()
    return float((off / torch.stack([value.double().square().sum() for value in b.values()]).sum()).sqrt())


def relative(a: Tensor, b: Tensor) -> float:
    return apart({"": a.detach().cpu()}, {"": b.detach().cpu()})


CPU = torch.device("cpu")


def check_step(method: str, stage: Stage) -> Found:
    with exact():
        return apart(trained(stage.device, method), trained(CPU, method)), EXACT, "one step on both"


def check_usual_step(stage: Stage) -> Found:
    found = trained(stage.device, "askd", options=Options(side=(6, 12, 24), shift=2, threads=1), speed=Speed())
    wanted = trained(CPU, "askd", options=Options(side=(6, 12, 24), shift=2, threads=1))
    return apart(found, wanted), TF32, "one step as `fit` takes it, random sides and shifts, TF32"


def check_bfloat16(stage: Stage) -> Found:
    name, side = ("small", 6) if stage.rehearse else ("iresnet18", 14)
    steps = [
        trained(stage.device, "none", name=name, options=Options(side=side, precision=precision, threads=1))
        for precision in ("bfloat16", "float32")
    ]
    a, b = (torch.cat([value.flatten() for value in step.values()]) for step in steps)
    return 1 - float(torch.cosine_similarity(a, b, dim=0)), 0.1, f"1 - cosine of the updates of {name}, bfloat16"


def check_switch(stage: Stage, method: str = "fskd", tolerance: float = STEPS, **switch: Any) -> Found:
    many, options = faces(), Options(side=6, threads=1)
    with exact():
        usual = trained(stage.device, method, 2, PLAIN, faces=many, options=options)
        fast = trained(stage.device, method, 2, Speed(**PLAIN.__dict__ | switch), faces=many, options=options)
    return apart(fast, usual), tolerance, f"eight steps with {switch} beside those without"


def check_prefetch(stage: Stage) -> Found:
    with patch.object(batches, "fits_on_device", lambda *of: False):
        return check_switch(stage, prefetch=True)


class _Killed(Exception):
    pass


def check_resume(stage: Stage, async_checkpoint: bool) -> Found:
    many, speed = faces(), Speed(**PLAIN.__dict__ | {"async_checkpoint": async_checkpoint})

    def killed(step: int, _: Any) -> None:
        if step == 5:
            raise _Killed

    with exact(), tempfile.TemporaryDirectory() as folder:
        whole = trained(stage.device, "askd", 2, speed, faces=many)
        where: dict[str, Any] = {"faces": many, "directory": Path(folder), "checkpoint_every": 2}
        with suppress(_Killed):
            trained(stage.device, "askd", 2, speed, observe=killed, observe_every=1, **where)
        found = trained(stage.device, "askd", 2, speed, **where)
    return apart(found, whole), STEPS, "killed after step 5 of 8, its checkpoint of step 4"


def check_faces(stage: Stage) -> Found:
    model, generator = FaceModel(), torch.Generator().manual_seed(0)
    identity, nuisance = model.sample_identity(8, generator), model.sample_nuisance(8, generator)
    a, b = (torch.as_tensor(model.images(identity.to(d), nuisance.to(d), 112)).cpu() for d in (stage.device, CPU))
    return float((a - b).abs().quantile(0.999)), 1 / 255, "99.9 % of the pixels' differences, in [0,1]"


def check_degradation(preset: str, stage: Stage) -> Found:
    x = torch.rand(8, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    a, b = (
        degradation.degrade(x.to(d), (12, 24, 48), preset=preset, generator=torch.Generator().manual_seed(1)).cpu()
        for d in (stage.device, CPU)
    )
    return relative(a, b), 1e-2 if degradation.PRESETS[preset].jpeg else 1e-4, "sides drawn an image"


def check_head(name: str, stage: Stage) -> Found:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(BATCH, 32, generator=generator), torch.arange(BATCH) % CLASSES
    found = []
    for d in (stage.device, CPU):
        head = heads.build(name, CLASSES, 32).to(d)
        loss = nn.functional.cross_entropy(head(x.to(d), y.to(d)), y.to(d))
        found.append(torch.autograd.grad(loss, head.weight)[0])
    return relative(*found), EXACT, "gradient of the class centres"


def check_embedding(stage: Stage) -> Found:
    some, network = faces().images, networks()[0].eval()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        a, b = (torch.from_numpy(embedding.embed(network.to(d), some, side=6)) for d in (stage.device, CPU))
    return relative(a, b), EXACT, "features and those of mirror images"


def check_pooling(stage: Stage) -> Found:
    x = torch.randn(4, 8, 14, 14, generator=torch.Generator().manual_seed(0)).to(stage.device)
    a, b = (torch.cat(pool(x), 1) for pool in (layers.over_pixels_on_gpu, layers.over_pixels))
    return relative(a, b), 1e-5, "mean and maximum over a map by reductions and by pooling"


@contextmanager
def group(stage: Stage) -> Iterator[None]:
    """A group of this one process; NCCL's on a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = {"device_id": torch.device("cuda", 0)} if stage.gpu else {}
        backend = "nccl" if stage.gpu else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/meeting", world_size=1, rank=0, **how)
        try:
            yield
        finally:
            dist.destroy_process_group()


def check_group(stage: Stage) -> Found:
    with exact():
        alone = trained(stage.device, "fskd", 2, faces=faces())
    with group(stage), exact():
        found = trained(stage.device, "fskd", 2, Speed(**PLAIN.__dict__ | {"sync_norm": True}), faces=faces())
    return apart(found, alone), STEPS, "DistributedDataParallel and synchronised batch norm, a group of one"


def check_shard(stage: Stage) -> Found:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(BATCH, 32, generator=generator).to(stage.device), (torch.arange(BATCH) % CLASSES)
    y, head = y.to(stage.device), heads.build("cosface", CLASSES, 32).to(stage.device)
    whole = torch.autograd.grad(nn.functional.cross_entropy(head(x, y), y), head.weight)[0]
    with group(stage):
        shard = Shard(head)
        found = torch.autograd.grad(shard(x, y)[0], shard.weight)[0]
    return relative(found, whole), EXACT, "gradient of the class centres, a group of one"


def check_export(stage: Stage) -> Found:
    from lrkd.onnx import export

    network = networks()[0].eval().to(stage.device)
    x = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with tempfile.TemporaryDirectory() as folder, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        made = export.export(network, Path(folder) / "student.onnx")
        with torch.no_grad():
            wanted = network(x.to(stage.device)).embedding
        return relative(torch.from_numpy(np.asarray(made(x.numpy()))), wanted), EXACT, "the file's embeddings"


def checks(stage: Stage) -> dict[str, Callable[[Stage], Found]]:
    """Name -> check, the most important first and the slowest last."""
    found: dict[str, Callable[[Stage], Found]] = {
        "rendered faces": check_faces,
        "usual step": check_usual_step,
        "bfloat16": check_bfloat16,
        "pooling": check_pooling,
        **{f"step of {name}": partial(check_step, name) for name in methods.METHODS},
        **{name: partial(check_switch, **{name: True}) for name in ("fused", "async_checkpoint")},
        **{
            f"recorded {name}": partial(check_switch, method=name, graph=True, fused=True)
            for name in ("fskd", "askd", "aird", "octuplet", "skd")
            if name in methods.METHODS
        },
        "cached teacher": partial(check_switch, cache_teacher=True),
        "prefetched": check_prefetch,
        "embedding": check_embedding,
        "resumed": partial(check_resume, async_checkpoint=False),
        "resumed, asynchronous checkpoints": partial(check_resume, async_checkpoint=True),
        **{f"head {name}": partial(check_head, name) for name in ("cosface", "arcface", "adaface")},
        **{f"degradation {name}": partial(check_degradation, name) for name in degradation.PRESETS},
        "group of one": check_group,
        "sharded head": check_shard,
        "export": check_export,
    }
    found["compiled"] = partial(check_switch, compile=True, tolerance=TF32)
    if stage.rehearse:  # each kind once; the tests have the rest on a CPU
        kinds = {
            name.partition(" ")[0] if name.startswith(("step", "head", "degr", "rec")) else name: name for name in found
        }
        found = {name: found[name] for name in kinds.values() if name not in ("export", "compiled")}
    return found


def measure(stage: Stage) -> int:
    """Write gpu-correctness.csv, a row a check; -> how many failed. Checks that there is no time for are named too."""
    rows: list[dict[str, Any]] = []
    for name, check in chosen(checks(stage)).items():
        error, tolerance, said, passed = float("nan"), float("nan"), "no time was left", False
        if stage.left > 0:
            try:
                error, tolerance, said = check(stage)
                passed = error <= tolerance
            except Exception as wrong:  # whatever a GPU has against it is what the table is for
                place = traceback.extract_tb(wrong.__traceback__)[-1]
                where = f"{type(wrong).__name__} in {place.name}, line {place.lineno}"
                said = f"{where}: {' '.join(str(wrong).split())}"[:400]
        row = {"name": name, "passed": passed, "largest_error": error, "tolerance": tolerance, "message": said}
        rows.append({**row, **stage.stamp()})
        if not passed:
            print(f"{name}: {error:.2g} is above {tolerance:.2g}; {said}", flush=True)
        stage.write("gpu-correctness", rows)
    return sum(not row["passed"] for row in rows)


if __name__ == "__main__":
    raise SystemExit(measure(begin(__doc__)) > 0)
