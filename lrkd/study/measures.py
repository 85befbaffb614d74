"""What is measured of a trained run, and the rows of a results table."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from lrkd.data import tables
from lrkd.data.degradation import PRESETS, degrade
from lrkd.data.pairs import Pairs
from lrkd.distill.distances import cosine, gradient_split, norm_angle_split
from lrkd.distill.terms import View
from lrkd.errors import DataError, TrainingError
from lrkd.evaluation import embedding, endpoints, identification, separation
from lrkd.evaluation.verification import Verification, kfold_verification
from lrkd.models import layers
from lrkd.study.networks import label
from lrkd.study.spec import Spec, faces_of, seed_of_teacher, splits, teacher_label
from lrkd.study.store import Run
from lrkd.training.schedule import threads
from lrkd.training.step import Teacher, normalise


def observation(
    spec: Spec, faces: tables.Faces, network: layers.Network, teacher: Teacher | None, hints: Any, device: str
) -> dict[str, float]:
    """Measure a run while it trains: its accuracy, and how alike student and teacher are by stage.

    Args:
        spec: The run.
        faces: The people to look at, with pairs.
        network: The student as it is.
        teacher: The teacher; None leaves accuracy alone.
        hints: The hint layers, or None, which leaves accuracy alone.
        device: Where to compute.

    Returns:
        accuracy: by the 10 folds, without mirror images; and of stage k, over 256 evenly spaced images: cosine_k of
        student and teacher; norm_k, the ratio of their lengths; norm_share_k, how much of the squared distance is in
        the norms (`norm_angle_split`); radial_k, how much of the squared gradient of the run's own loss changes only
        the norm (`gradient_split`).
    """
    side = spec.side
    assert not isinstance(side, tuple)
    features = embedding.embed(network.to(device), faces.images, side=side, preset=spec.preset, mirror=False)
    measures = {"accuracy": verified(features, features, faces).mean}
    terms = [term for term in spec.method.terms if term.hint]
    if teacher is None or hints is None:
        return measures
    x = faces.batch(np.linspace(0, len(faces) - 1, min(256, len(faces))).astype(np.int64)).to(device).float() / 255
    y = x if side is None else degrade(x, side, preset=spec.preset, enlarge=network.size != side)
    with torch.no_grad():
        s, t = network.eval()(normalise(y)), teacher.network(normalise(x))
        mapped = hints.eval()(s.features)
    mapped = [stage.requires_grad_() for stage in mapped]
    labels = torch.zeros(len(x), dtype=torch.int64, device=device)
    views = [
        View(out.embedding, out.features, stages, out.channel, out.spatial, out.embedding, labels)
        for out, stages in ((s, mapped), (t, t.features))
    ]
    loss = torch.stack([term.weight * term.function(*views) for term in terms]).sum()
    gradients = torch.autograd.grad(loss, mapped)
    for k, (a, b, g) in enumerate(zip(mapped, t.features, gradients, strict=True), 1):
        split, pull = norm_angle_split(a.detach(), b), gradient_split(g, a.detach())
        length, other = (z.flatten(1).norm(dim=1) for z in (a.detach(), b))
        measures |= {
            f"cosine_{k}": float((1 - cosine(a.detach(), b)).mean()),
            f"norm_{k}": float((length / other).mean()),
            f"norm_share_{k}": float(split.norm.sum() / (split.norm + split.angle).sum()),
            f"radial_{k}": float(pull.norm.sum() / (pull.norm + pull.angle).sum()),
        }
    return measures


def evaluation_preset(preset: str) -> str:
    """Return the degradation to evaluate with: a preset that draws its kernels has a fixed one, as `fskd-test`."""
    return f"{preset}-test" if f"{preset}-test" in PRESETS else preset


def evaluate(
    spec: Spec, network: layers.Network, teacher: Teacher | None, hints: Any, device: str
) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Measure a trained run on validation and test people.

    Protocols: "validation" and "test" with both images at the run's side, "test-hr-lr" with the left image HR,
    "identification" with an HR gallery of each test person's first image and LR probes of the rest; for a teacher also
    "test-at-24" and so on, both images at a side that it was not trained for. A network that takes LR images at their
    own size cannot be shown HR ones: its teacher's features, which it learns, stand in for them. Without a teacher, or
    with one whose embeddings have another length, the two protocols with HR images are left out.

    Args:
        spec: The run.
        network: Its student.
        teacher: Its teacher, or None where it has none that can be shown images.
        hints: Its hint layers, or None.
        device: Where to compute.

    Returns:
        Measures by protocol, and (4,P) float32 of the P test pairs: scores and correctness of LR-LR, then of HR-LR,
        nan where these are left out.

    Raises:
        TrainingError: All embeddings are the same.
    """
    faces = splits(spec.scale, spec.source)
    side = max(spec.side) if isinstance(spec.side, tuple) else spec.side
    preset = evaluation_preset(spec.preset)

    def features(part: tables.Faces, at: int | None, by: layers.Network = network) -> np.ndarray:
        amp = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=spec.options.precision == "bfloat16")
        with threads(spec.options.threads), amp:
            return embedding.embed(by.to(device), part.images, side=at, preset=preset)

    def verification(a: np.ndarray, b: np.ndarray, part: tables.Faces) -> tuple[Verification, dict[str, float]]:
        found, same = verified(a, b, part), pairs_of(part).same
        if np.ptp(found.scores) == 0:
            raise TrainingError("all embeddings are the same: the network has collapsed; lower the learning rate")
        rates = separation.tar_at_far(found.scores, same, (0.1, 0.01, 0.001))
        return found, {
            "accuracy": found.mean,
            "tar_at_far_1e-1": float(rates[0]),
            "tar_at_far_1e-2": float(rates[1]),
            "tar_at_far_1e-3": float(rates[2]),
            "eer": separation.eer(found.scores, same),
            "d_prime": separation.d_prime(found.scores, same),
        }

    native = network.size != spec.scale.size
    low, tuned = (features(part, side) for part in (faces.test, faces.validation))
    both, test = verification(low, low, faces.test)
    measures = {"validation": verification(tuned, tuned, faces.validation)[1], "test": test}
    scores = [both.scores, both.correct, *np.full((2, len(both.scores)), np.nan)]
    gallery = network if not native else teacher.network if teacher is not None else None
    if gallery is not None and gallery.embedding == network.embedding:
        high = low if side is None else features(faces.test, None, gallery)
        mixed, measures["test-hr-lr"] = verification(high, low, faces.test)
        scores[2:] = [mixed.scores, mixed.correct]
        first, rest = endpoints.gallery_and_probes(faces.test.labels)
        ranks = searched(high, low, faces.test, {"gallery": first, "probe": len(high) + rest}, ranks=(1, 5))
        measures["identification"] = {"rank1": float(ranks["rank1"]), "rank5": float(ranks["rank5"])}
    if spec.role == "teacher":
        for at in spec.scale.sides:
            fed = features(faces.test, at)
            measures[f"test-at-{at}"] = verification(fed, fed, faces.test)[1]
    if teacher is not None:
        measures["test"] |= agreement(network, teacher.network, hints, faces.test.images, side, preset, device)
    return measures, np.stack(scores).astype(np.float32)


RIGHT = "right.npz"


def evaluate_in_world(
    spec: Spec, network: layers.Network, teacher: Teacher | None, device: str
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Measure a trained run on the people that its world shows, and on no others.

    A student is shown the sides that it was trained for, one of HR images these; a teacher HR images and, as the floor
    of what training for small images is for, the scale's sides.

    Args:
        spec: The run, with a world.
        network: Its student.
        teacher: Its teacher, or None.
        device: Where to compute.

    Returns:
        Measures by "side/endpoint", and for each the packed bits of what was right, see `lrkd.evaluation.endpoints`.
    """
    assert spec.world is not None
    faces, preset = faces_of(spec, spec.world.shown), evaluation_preset(spec.preset)

    def features(at: int | None, by: layers.Network = network) -> np.ndarray:
        amp = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=spec.options.precision == "bfloat16")
        with threads(spec.options.threads), amp:
            return embedding.embed(by.to(device), faces.images, side=at, preset=preset)

    pairs_of(faces)
    high = features(None)
    enrolled = None
    if teacher is not None and not teacher.low and not teacher.itself:
        enrolled = features(None, teacher.network)
    sides = (*spec.scale.sides, spec.scale.size) if spec.role == "teacher" else spec.sides or (spec.scale.size,)
    measures, right = {}, {}
    for side in sides:
        sharp = side == spec.scale.size
        found = endpoints.measured(high if sharp else features(side), None if sharp else high, faces, enrolled)
        for endpoint, bits in found.items():
            measures[f"{side}/{endpoint}"] = {"value": float(bits.mean()), "n": len(bits)}
            right[f"{side}/{endpoint}"] = np.packbits(bits)
    return measures, right


def pairs_of(faces: tables.Faces) -> Pairs:
    """Return a table's pairs; DataError where it has none."""
    if faces.pairs is None:
        raise DataError(f"{faces.name}: has no verification pairs")
    return faces.pairs


def verified(left: np.ndarray, right: np.ndarray, faces: tables.Faces) -> Verification:
    """Verify a table's pairs by its folds: features (N,D) of the left images and of the right ones."""
    pairs = pairs_of(faces)
    ends = left[pairs.left], right[pairs.right]
    return kfold_verification(*ends, pairs.same, pairs.fold, missing=pairs.touch(faces.missing))


def searched(
    high: np.ndarray, low: np.ndarray, faces: tables.Faces, roles: Mapping[str, np.ndarray], **asked: Any
) -> "pd.Series[Any]":
    """Search sharp images by small ones: the one row of `identification`, rows of `low` behind those of `high`."""
    labels, both = np.tile(faces.labels, 2), np.concatenate([high, low])
    missing = None if faces.missing is None else np.tile(faces.missing, 2)
    return identification.identification(both, labels, roles, missing=missing, **asked).iloc[0]


def agreement(
    network: layers.Network,
    teacher: layers.Network,
    hints: Any,
    images: Any,
    side: int | None,
    preset: str,
    device: str,
) -> dict[str, float]:
    """Compare student and teacher on 512 evenly spaced images by their mean cosine.

    Args:
        network: The student.
        teacher: The teacher, for images of the data's size.
        hints: The hint layers, or None.
        images: (N,H,W,3) uint8.
        side: What the student is shown, in pixels; None: HR images.
        preset: The degradation to it.
        device: Where to compute.

    Returns:
        `cosine_embedding`, `cosine_attention` and `cosine_features` (through the hint layers), each where both networks
        show it in the same shapes.
    """
    index = np.linspace(0, len(images) - 1, min(512, len(images))).astype(np.int64)
    x = torch.from_numpy(np.ascontiguousarray(images[index])).to(device).permute(0, 3, 1, 2).float() / 255
    native, drawn = network.size != x.shape[-1], torch.Generator().manual_seed(0)
    y = x if side is None else degrade(x, side, preset=preset, generator=drawn, enlarge=not native)

    with torch.inference_mode():
        s, t = network.eval()(normalise(y)), teacher.eval()(normalise(x))
        mapped = s.features if hints is None else hints.eval()(s.features)
        parts = {
            "cosine_embedding": ([s.embedding], [t.embedding]),
            "cosine_attention": ([*s.channel, *s.spatial], [*t.channel, *t.spatial]),
            "cosine_features": (mapped, t.features),
        }
        return {
            name: float(torch.stack([(1 - cosine(a, b)).mean() for a, b in zip(ours, theirs, strict=True)]).mean())
            for name, (ours, theirs) in parts.items()
            if len(ours) and [a.shape for a in ours] == [b.shape for b in theirs]
        }


def result_rows(spec: Spec, run: Run) -> Iterator[dict[str, Any]]:
    """Make a run's rows of a results table: one a protocol, each with where it comes from; a diverged run has one."""
    result = run.result
    if spec.world is not None:
        yield from _rows_of_world(spec, run, result)
        return
    known = {
        "data": run.config["data"]["source"],
        "scale": spec.scale.name,
        "role": spec.role,
        "method": spec.method.name,
        "side": spec.scale.size if spec.side is None else spec.side,
        "seed": spec.seed,
        "teacher_seed": seed_of_teacher(spec),
        **named_networks(spec),
        "status": result["status"],
    }
    for protocol, measures in result.get("measures", {"test": {}}).items():
        yield {**known, "protocol": protocol, **{name: measures.get(name) for name in MEASURES}, **_source(run)}


def _source(run: Run) -> dict[str, Any]:
    """The columns that say where a row comes from."""
    result = run.result
    stamped = {name: result.get(name) for name in ("seconds", "device", "torch", "commit")}
    return {**stamped, "config": run.path.name.rsplit("-", 1)[1]}


def named_networks(spec: Spec) -> dict[str, str]:
    """Return a table's columns `student` and `teacher`, where these are not the preset's own."""
    found = {"student": label(spec.student) if spec.student else "", "teacher": teacher_label(spec)}
    return {name: value for name, value in found.items() if value}


def _rows_of_world(spec: Spec, run: Run, result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a side and an endpoint. weight: of the method's first term; trained: `trained_for`."""
    assert spec.world is not None
    known = {
        "data": run.config["data"]["source"],
        "scale": spec.scale.name,
        "role": spec.role,
        "method": spec.method.name,
        "weight": spec.method.terms[0].weight if spec.method.terms else None,
        "trained": trained_for(spec),
        "setting": spec.setting,
        "world": spec.world.number,
        "epochs": spec.schedule.epochs if spec.epochs is None else spec.epochs,
        "lr": spec.schedule.lr,
        "people": spec.world.shown,
        "status": result["status"],
    }
    lost = {f"{side}/": {"value": None, "n": None} for side in spec.sides or (spec.scale.size,)}
    for where, measure in result.get("measures", lost).items():
        side, _, endpoint = where.partition("/")
        yield {**known, "side": int(side), "endpoint": endpoint, **measure, **_source(run)}


def trained_for(spec: Spec) -> str:
    """Say in words which sides a run was trained for: "6", "hr", or "hr+24+12+6"."""
    sharp = spec.side is None or (isinstance(spec.side, tuple) and spec.scale.size in spec.side)
    return "+".join([*(["hr"] if sharp else []), *map(str, spec.sides)])


MEASURES = (
    "accuracy",
    "tar_at_far_1e-1",
    "tar_at_far_1e-2",
    "tar_at_far_1e-3",
    "eer",
    "d_prime",
    "rank1",
    "rank5",
    "cosine_features",
    "cosine_attention",
    "cosine_embedding",
)
