"""Stage 4: the comparisons that matter, trained to the end on photographs (LFW View 1) at 112 px.

IResNet-18, 14 px, seed by seed: whatever is stopped has compared all methods on the seeds that it has. Then 28 px, then
students of an IResNet-50. $LRKD_DATA names the photographs: a prepared folder, or one that `data_prep.jpeg` packed.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.gpu.deep import DeepTaught
from benchmarks.gpu.stage import Stage, begin, shared_gpu
from data_prep import journal, jpeg, writer
from lrkd.data.prepared import prepared
from lrkd.distill import methods
from lrkd.study import experiment, results, runner
from lrkd.study import spec as study_spec
from lrkd.study.measures import MEASURES, evaluate, result_rows
from lrkd.study.presets import SCALES, Scale
from lrkd.study.spec import Spec
from lrkd.training.acceleration import Speed

RESULTS = Path(__file__).parent.parent.parent / "book" / "results"
METHODS = ("none", "embedding-cos", "fskd", "fskd-l2", "askd")
DEEP_METHODS = ("embedding-cos", "fskd", "fskd-l2")  # whose terms need no map for map of the teacher
SEEDS, MORE_SEEDS = range(6), range(3)
EPOCHS = 20  # half of the preset's, so that two seeds of all methods fit into some minutes
WORKERS = 4  # of one GPU, which one process with IResNet-18 leaves waiting between batches
SPEED = Speed(compile=False)  # compiling takes longer than what it would save in so short a time
LAST = 8.0  # seconds for the last step, its checkpoint and the tables


def grid(scale: Scale, source: str) -> dict[str, list[Spec]]:
    """Table -> its runs, those of the first table first."""
    epochs = None if scale.name == "smoke" else EPOCHS

    def student(name: str, side: int, seed: int, kind: type[Spec] = Spec) -> Spec:
        return kind(methods.get(name), side, seed, scale, source, teacher_seed=seed % 2, epochs=epochs)

    hardest, easier = scale.sides[-1], scale.sides[-2]
    return {
        "gpu-lfw-core": [
            *(replace(study_spec.teacher_spec(scale, seed, source), epochs=epochs) for seed in range(2)),
            *(student(name, hardest, seed) for seed in SEEDS for name in METHODS),
            *(student(name, easier, seed) for seed in MORE_SEEDS for name in METHODS),
        ],
        "gpu-lfw-mixed": [
            Spec(methods.get("none"), (scale.size, *scale.sides), seed, scale, source, epochs=epochs) for seed in SEEDS
        ],
        "gpu-lfw-deep": [student(name, hardest, seed, DeepTaught) for seed in MORE_SEEDS for name in DEEP_METHODS],
    }


def in_order(tables: dict[str, list[Spec]]) -> list[Spec]:
    """All runs, the most valuable first: teachers, then seed by seed with its mixed run, then what is further out."""
    core, mixed, deep = (tables[name] for name in ("gpu-lfw-core", "gpu-lfw-mixed", "gpu-lfw-deep"))
    hardest = core[0].scale.sides[-1]
    first = sorted((s for s in core if s.side == hardest), key=lambda s: s.seed)
    found = [spec for spec in core if spec.role == "teacher"]
    for seed in SEEDS:
        found += [s for s in first if s.seed == seed] + [s for s in mixed if s.seed == seed]
    return [*found, *(s for s in core if s not in found), *deep]


def mixed_rows(wanted: Sequence[Spec], where: Path, device: str, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of students of mixed sides, measured at each side as one that was trained for it; `known` are kept."""
    found, there = list(known), {row["config"] for row in known}
    for spec in wanted:
        run = experiment.find_run(spec, where)
        if not run.finished or run.result["status"] != "ok" or run.path.name.rsplit("-", 1)[1] in there:
            continue
        network, _ = experiment.load(run)
        plain = next(iter(result_rows(spec, run)))
        for side in spec.scale.sides:
            measures, _ = evaluate(replace(spec, side=side), network, None, None, device)
            for protocol, values in measures.items():
                own = {name: values.get(name) for name in MEASURES}
                found.append(plain | own | {"side": side, "method": "none mixed", "protocol": protocol})
    return found


def toy(folder: Path, people: int = 16, images: int = 4, size: int = 24) -> Path:
    """A packed folder of noise for a rehearsal."""
    rng, photos = np.random.default_rng(0), []
    for k in range(people):
        pattern = rng.integers(60, 196, (size, size, 3))
        for i in range(images):
            buffer = io.BytesIO()
            Image.fromarray((pattern + rng.integers(-60, 60, pattern.shape)).astype(np.uint8)).save(buffer, "PNG")
            photos.append(journal.Photo(f"p{k:02d}", f"p{k:02d}/{i}.png", buffer.getvalue))

    def extras(kept: writer.Kept) -> writer.Extras:
        return writer.Extras.drawn(kept, None, 4, 0)

    writer.write(folder / "prepared", photos, len(photos), extras, writer.Recipe("noise", size, "", "toy"))
    jpeg.pack(folder / "prepared", folder / "packed")
    return folder / "packed"


def photographs(stage: Stage) -> str | None:
    """The prepared folder, unpacked if need be; None where there is none."""
    work = stage.out.parent
    given = toy(work / "toy") if stage.rehearse else Path(os.environ.get("LRKD_DATA") or "")
    if not given.is_dir() or given == Path():
        print("LRKD_DATA names no folder of photographs: not trained on them", flush=True)
        return None
    if not (given / jpeg.IMAGES).is_file():
        return str(given)
    if not (work / "unpacked").is_dir():
        jpeg.unpack(given, work / "unpacked", workers=os.cpu_count() or 1)
    return str(work / "unpacked")


def measured() -> set[str]:
    """The configurations of the runs that the repository's tables have."""
    paths = RESULTS.glob("gpu-lfw-*.csv")
    return {config for path in paths for config in pd.read_csv(path, dtype={"config": str})["config"]}


def measure(stage: Stage) -> int:
    """Train and write the tables after every run until the time is over."""
    source = photographs(stage)
    if source is None:
        return 1
    scale, where = SCALES["smoke" if stage.rehearse else "gpu"], experiment.store_dir()
    tables = grid(scale, source)
    wanted = in_order(tables)
    if stage.rehearse:
        names = ("none", "fskd-l2")
        wanted = [s for s in wanted if s.seed == 0 and s.method.name in names and type(s) is Spec and s.side != 6]
    else:  # seeds that the repository's tables have are not trained again, but for who teaches
        known = measured()
        wanted = [s for s in wanted if s.role == "teacher" or study_spec.config_hash(s) not in known]
    print(f"{prepared(source).train.name}: {len(wanted)} runs", flush=True)
    mixed: list[dict[str, Any]] = []

    def write(_: pd.DataFrame) -> None:
        mixed[:] = mixed_rows([s for s in wanted if s in tables["gpu-lfw-mixed"]], where, stage.device.type, mixed)
        for name in ("gpu-lfw-core", "gpu-lfw-deep"):
            found = results.results_table([spec for spec in wanted if spec in tables[name]], where)
            if len(found):
                results.write_table(stage.out / f"{name}.csv", found)
        if mixed:
            stage.write("gpu-lfw-mixed", mixed)

    workers = 1 if stage.rehearse else WORKERS
    with shared_gpu(stage):
        table = runner.run_study(
            wanted,
            where,
            workers=workers,
            device=stage.device.type,
            progress=False,
            on_table=write,
            stop=lambda: stage.left < LAST,
            speed=None if stage.rehearse else SPEED,
        )
    done = table["config"].nunique() if len(table) else 0
    print(f"{done} of {len(wanted)} runs, {workers} at a time", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(measure(begin(__doc__)))
