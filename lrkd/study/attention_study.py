"""Where the study's trained networks look, held against where the renderer says that the information is."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lrkd.data import tables
from lrkd.data.degradation import degrade
from lrkd.data.renderer import FaceModel
from lrkd.errors import ConfigError, MissingError
from lrkd.evaluation import attention
from lrkd.files import Table, atomic
from lrkd.models.layers import Network
from lrkd.progress import bar as progress_bar
from lrkd.study.attention_probes import Probes, probes
from lrkd.study.experiment import commit, device_name, ended_well, load, store_dir
from lrkd.study.measures import result_rows
from lrkd.study.presets import Scale
from lrkd.study.spec import Spec, splits
from lrkd.study.store import Run
from lrkd.training.step import normalise

LEVELS = np.linspace(0, 1, 41)  # of the quantiles that are kept of a run's likenesses to its teacher
TOP = 0.1  # share of the pixels that count as the most informative
# The columns that have an interval.
SURE = ("cosine_same", "cosine_other", "pearson_same", "pearson_other", "rank", "rank_other", "pointing", "on_top")

TABLE = Table(
    "lrkd attention",
    ("data", "scale", "role", "method", "side", "config"),
    ("data", "scale", "role", "method", "side", "config", "kind", "map"),
)


class Seen(NamedTuple):
    """A network's maps of the probes: {kind: {block: (N,1,h,w)}}, pre-sigmoid for cbam and channel; Grad-CAM of n."""

    cbam: dict[str, Tensor]
    channel: dict[str, Tensor]
    gradcam: dict[str, Tensor]


def look(network: Network, side: int | None, faces: tables.Faces, shown: Probes) -> Seen:
    """Compute a network's own attention on the probes at a side, and Grad-CAM of those with ground truth.

    Grad-CAM explains the cosine of an image's embedding with the mean embedding of the person's other images.

    Args:
        network: With CBAM.
        side: What it is shown, in pixels; None: HR images.
        faces: The test table.
        shown: The probes.

    Returns:
        The maps.

    Raises:
        ConfigError: The network has no maps of its own.
    """

    def prepare(hr: Tensor) -> Tensor:
        return normalise(hr if side is None else degrade(hr, side))

    with torch.inference_mode():
        own = network.eval()(prepare(shown.hr))
        if not own.spatial:
            raise ConfigError(f"network: expected attention maps, got a {type(network).__name__} without CBAM")
        others = faces.batch(shown.friends.ravel()).float() / 255
        found = torch.cat([network(prepare(part)).embedding for part in others.split(256)])
    mates = torch.nn.functional.normalize(found, dim=1).unflatten(0, shown.friends.shape).mean(1).clone()
    blocks = [block for stage in network.stages for block in network.get_submodule(stage).children()]  # type: ignore[union-attr]
    names = [str(number) for number in range(1, len(blocks) + 1)]
    cams = attention.grad_cam(network, blocks, prepare(shown.hr[shown.known]), mates)
    return Seen(
        dict(zip(names, own.spatial, strict=True)),
        dict(zip(names, own.channel, strict=True)),
        dict(zip(names, (cam[:, None] for cam in cams), strict=True)),
    )


def measure(seen: Seen, teacher: Seen, side: int, shown: Probes) -> list[dict[str, Any]]:
    """Measure one network's maps: a row for each kind (cbam, gradcam, channel) and map (a block's number, or fused).

    Args:
        seen: Its maps.
        teacher: Its teacher's.
        side: At which it was shown the probes, in pixels.
        shown: The probes.

    Returns:
        cosine and pearson: with the teacher's map of the same image, and of the next probe, which shows another person;
        of other than channel maps also `against_truth`. Values are means over images, those of `SURE` with 95 %
        bootstrap intervals (_low, _high); unit: an image, one a person.
    """
    size = shown.hr.shape[-1]
    table = []
    for kind in Seen._fields:
        own, taught = getattr(seen, kind), getattr(teacher, kind)
        maps = {block: (own[block], taught[block]) for block in own}
        if kind != "channel":
            maps["fused"] = (attention.fuse(list(own.values()), size), attention.fuse(list(taught.values()), size))
        for block, (student, target) in maps.items():
            row = {"kind": kind, "map": block, "images": len(student), **_means(likeness(student, target))}
            if kind != "channel":
                weights = visible(kind, block, student, size)
                row |= against_truth(weights if kind == "gradcam" else weights[shown.known], side, shown)
            table.append(row)
    return table


def against_truth(weights: np.ndarray, side: int, shown: Probes) -> dict[str, float]:
    """Compare attention on the known probes with the ground truth.

    Args:
        weights: (n,S,S), not below zero.
        side: Of the ground truth, in pixels.
        shown: The probes.

    Returns:
        Means over images, with intervals. contrast: standard deviation over mean of the weights, how far they are from
        treating all places alike. rank: rank correlation with the information at `side`; rank_other: with that of the
        next image, another person's; rank_hr: with that at HR; rank_energy: with the plain energy at `side`.
        chance_low, chance_high: what the mean rank correlation reaches at 95 % of all cyclic shifts. pointing: share of
        maps whose highest place is among the image's most informative tenth; on_top: share of attention there;
        `on_<part>`: share of attention on each mask.
    """
    size = weights.shape[-1]
    truth = enlarged(shown.information[side], size)
    own, wanted = attention.ranks(weights), attention.ranks(truth)
    best = attention.top(truth, TOP)
    found = {
        "contrast": weights.std((1, 2)) / np.maximum(weights.mean((1, 2)), 1e-12),
        "rank": attention.pearson(own, wanted),
        "rank_other": attention.pearson(own, np.roll(wanted, 1, 0)),
        "rank_hr": attention.pearson(own, attention.ranks(shown.information[size])),
        "rank_energy": attention.pearson(own, attention.ranks(enlarged(shown.energy[side], size))),
        "pointing": attention.pointing(weights, best),
        "on_top": attention.share(weights, best),
        **{f"on_{part}": attention.share(weights, mask) for part, mask in shown.masks.items()},
    }
    low, high = np.quantile(attention.shifted(own, wanted), (0.025, 0.975))
    return _means(found) | {"chance_low": low, "chance_high": high}


def _means(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    sure = [name for name in found if name in SURE]
    lows, highs = attention.interval(np.stack([found[name] for name in sure], 1))
    row = {name: float(values.mean()) for name, values in found.items()}
    for name, low, high in zip(sure, lows, highs, strict=True):
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row


def likeness(student: Tensor, teacher: Tensor) -> dict[str, np.ndarray]:
    """Compare each image's maps, (N,...) twice, by cosine and Pearson's r: with the same image's, with the next's."""
    other = teacher.roll(1, 0)
    return {
        "cosine_same": attention.cosines(student, teacher),
        "cosine_other": attention.cosines(student, other),
        "pearson_same": attention.pearson(student, teacher),
        "pearson_other": attention.pearson(student, other),
    }


def visible(kind: str, block: str, maps: Tensor, size: int) -> np.ndarray:
    """Turn maps into weights at the image's size, (N,...) into (N,size,size), not below zero.

    CBAM's through its sigmoid, which is what multiplies the features; Grad-CAM's as they are, being none or more. Fused
    maps, which are in standard deviations, through a sigmoid too.
    """
    full = attention.upsample(maps, size)
    return (full.sigmoid() if kind == "cbam" or block == "fused" else full).numpy()


def enlarged(maps: np.ndarray, size: int) -> np.ndarray:
    """Enlarge maps of LR pixels (n,h,h) to (n,size,size), bilinearly, as attention maps are."""
    return attention.upsample(torch.from_numpy(maps), size).numpy()


def baselines(side: int, shown: Probes) -> list[dict[str, Any]]:
    """Measure what needs no network as attention is.

    Args:
        side: Of the ground truth, in pixels.
        shown: The probes.

    Returns:
        A row a map. "centre": a Gaussian at the centre. "others": the mean information of the other people's images,
        which can be known of faces without looking. "random": the truth's own values at random places. "information":
        the truth, which says where it lies. "area": each mask's share of the image, and the chance of pointing.
    """
    size = shown.hr.shape[-1]
    truth = enlarged(shown.information[side], size)
    n = len(truth)
    rng = np.random.default_rng(0)
    maps = {
        "centre": np.broadcast_to(attention.centre_map(size), truth.shape),
        "others": (truth.sum(0) - truth) / (n - 1),
        "random": rng.permuted(truth.reshape(n, -1), axis=1).reshape(truth.shape),
        "information": truth,
    }
    table: list[dict[str, Any]] = [
        {"kind": "baseline", "map": name, "images": n, **against_truth(weights, side, shown)}
        for name, weights in maps.items()
    ]
    area = {f"on_{part}": float(mask.mean()) for part, mask in shown.masks.items()}
    return [*table, {"kind": "baseline", "map": "area", "images": n, "pointing": TOP, "on_top": TOP, **area}]


def gather(wanted: Sequence[Spec], where: Path | None = None) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Evaluate the finished ones among the runs; at scale cpu, on one core, half a minute and then 3 s a run.

    Runs of seed 0 leave their maps of six examples. A run whose teacher has not finished is left out.

    Args:
        wanted: The runs, teachers too.
        where: The run store.

    Returns:
        A table, one row a run, kind and map; and arrays to be seen, see `save_maps`.

    Raises:
        MissingError: No teacher has finished.
    """
    finished = [*ended_well(wanted, where)]
    scale, source = wanted[0].scale, wanted[0].source
    taught = {spec.seed: run for spec, run in finished if spec.role == "teacher"}
    if not taught:
        raise MissingError(
            f"{store_dir(where)}: no teacher of scale {scale.name} has finished: `lrkd study attention` trains it"
        )
    attention.check_packages()  # now, and not after the ground truth
    faces = splits(scale, source).test
    shown = probes(faces, scale)
    picked = _examples(faces, scale, shown)
    arrays = _truth_arrays(faces, shown, picked)
    teachers: dict[int, Seen] = {}
    table: list[dict[str, Any]] = []
    bar = progress_bar(finished, desc="attention", unit="run")
    for spec, run in bar:
        number = _teacher(spec)
        if number not in taught:
            continue
        if number not in teachers:
            teachers[number] = look(load(taught[number])[0], None, faces, shown)
        side = spec.side if isinstance(spec.side, int) else None
        seen = teachers[number] if spec.role == "teacher" else look(load(run)[0], side, faces, shown)
        known = _provenance(spec, run)
        table += [{**known, **row} for row in measure(seen, teachers[number], side or scale.size, shown)]
        if spec.seed == 0:
            arrays |= _run_arrays(spec, seen, teachers[number], picked, shown)
    for side in (scale.size, *scale.sides):
        known = {"data": faces.name.split("/")[0], "scale": scale.name, "role": "baseline", "method": "", "side": side}
        table += [{**known, "commit": commit(), **row} for row in baselines(side, shown)]
    about = {"scale": scale.name, "commit": commit(), "torch": torch.__version__, "device": device_name("cpu")}
    return pd.DataFrame(table), arrays | {"about": np.array(json.dumps(about))}


def _teacher(spec: Spec) -> int:
    """The seed of the teacher whose maps the run's are compared with; a teacher's are compared with its own."""
    return spec.seed if spec.role == "teacher" else spec.teacher_seed


def _provenance(spec: Spec, run: Run) -> dict[str, Any]:
    """The columns of a results table that name a run; commit and device are those of its training."""
    test = next(row for row in result_rows(spec, run) if row["protocol"] == "test")
    names = ("data", "scale", "role", "method", "side", "seed", "teacher_seed", "status", "accuracy")
    return {name: test[name] for name in (*names, "device", "torch", "commit", "config")}


def _examples(faces: tables.Faces, scale: Scale, shown: Probes) -> np.ndarray:
    """The first six of the known probes without glasses and patch, (E,) positions among the known."""
    assert faces.nuisance is not None
    names = FaceModel(**scale.face).nuisance_names
    columns = [names.index("glasses"), names.index("occluder")]
    clear = np.flatnonzero((faces.nuisance[shown.rows[shown.known]][:, columns] == 0).all(1))
    return (clear if len(clear) else np.arange(len(shown.known)))[:6]


def _truth_arrays(faces: tables.Faces, shown: Probes, picked: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {
        "rows": shown.rows[shown.known],
        "picked": picked,
        "examples": np.asarray(faces.images[shown.rows[shown.known][picked]]),
        "noise": np.array(shown.noise),
    }
    for side in shown.information:
        arrays[f"bits/{side}"] = shown.bits[side].astype(np.float32)
        for name in ("information", "energy", "nuisance"):
            maps = getattr(shown, name)[side]
            arrays[f"{name}/{side}/mean"] = maps.mean(0).astype(np.float32)
            if name != "nuisance":
                arrays[f"{name}/{side}"], arrays[f"{name}/{side}/most"] = pack(maps)
    return arrays


def pack(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pack maps (n,h,w), not below zero, as uint8 square roots and each map's largest value (n,), to about 1 %."""
    most = maps.reshape(len(maps), -1).max(1)
    scaled = np.sqrt(maps / np.where(most > 0, most, 1)[:, None, None])
    return (255 * scaled).round().astype(np.uint8), most.astype(np.float32)


def unpack(packed: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Return what `pack` packed, (n,h,w) float."""
    return (packed / 255.0) ** 2 * most[:, None, None]


def _run_arrays(spec: Spec, seen: Seen, teacher: Seen, picked: np.ndarray, shown: Probes) -> dict[str, np.ndarray]:
    name = "teacher" if spec.role == "teacher" else spec.method.name
    side = spec.scale.size if spec.side is None else spec.side
    arrays = {}
    for kind in Seen._fields:
        rows_of = picked if kind == "gradcam" else shown.known[picked]
        own, target = getattr(seen, kind), getattr(teacher, kind)
        for block, maps in own.items():
            where = f"{name}/{side}/{kind}/{block}"
            arrays[where] = maps[rows_of].numpy().astype(np.float16)
            if kind != "gradcam":
                found = likeness(maps, target[block])
                arrays[f"{where}/likeness"] = np.stack([np.quantile(v, LEVELS) for v in found.values()]).astype(
                    np.float16
                )
    return arrays


def save_maps(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays of `gather` as one compressed .npz, atomically; no entry needs pickle to be read.

    rows, picked: the known probes in the test table, and the examples among them; examples (E,S,S,3) uint8.
    `<map>/<side>/mean`: information, energy and nuisance, mean over the known, (side,side); `<map>/<side>` and
    `<map>/<side>/most`: information and energy of each, packed (`unpack`); `bits/<side>`: (n,).
    `<method>/<side>/<kind>/<block>`: seed 0's maps of the examples, (E,1,h,w), channel maps (E,C,1,1); and after it
    `/likeness`: (4,41) quantiles over people of cosine same, cosine other, Pearson same, Pearson other, at `LEVELS`.
    about: JSON of scale, commit, torch, device.
    """
    with atomic(path, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
