"""Write the student that the book ends with, and what its form costs: `python -m book.student`, after `make results`.

Of the methods of `lrkd study selection` the one with the highest mean accuracy on validation people, and of its runs
the best there; test people choose nothing. Beside student.onnx, in 8 bits: student.json, which run it is and how it was
chosen; student-formats.csv, the same network in every format; student-sizes.csv, what each design of the study weighs.
"""

import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch

from benchmarks.student_speed import Contender, race, session
from lrkd.cli import program
from lrkd.errors import DataError
from lrkd.files import Table, write_json
from lrkd.onnx import export, recogniser
from lrkd.study import experiment, grids, presets, store
from lrkd.study import spec as study_spec
from lrkd.study.experiment import commit, device_name
from lrkd.study.results import read_table

RESULTS = Path(__file__).resolve().parent / "results"
LIMIT = 150_000  # bytes: the .15 MB of arXiv 1811.09998
RULE = "the method with the highest mean validation accuracy, and of its runs the one with the highest"
BATCH, ROUNDS = 256, 9
FORMATS = Table("python -m book.student", ("format", "protocol"))  # of one student: another takes its rows' places
SIZES = Table("python -m book.student", ("design", "side", "threads", "batch", "device"))


def best(table: pd.DataFrame) -> pd.Series:
    """The validation row of a study's run that RULE names, of a results table."""
    rows = table[(table["role"] == "student") & (table["protocol"] == "validation") & (table["status"] == "ok")]
    if rows.empty:
        raise DataError("table: has no validation row of a student; finish `lrkd study selection` first")
    own = rows[rows["method"] == rows.groupby("method", sort=False)["accuracy"].mean().idxmax()]
    return own.loc[own["accuracy"].idxmax()]


def written(run: store.Run, path: Path, format: str) -> recogniser.Recogniser:
    """The run as `lrkd export` writes it: ranges of 8 bits from training people, a threshold from validation people."""
    if program.main(["export", str(run.path), "--format", format, "--out", str(path)]):
        raise DataError(f"{run.path}: could not be exported as {format}")
    return recogniser.load(path, threads=1)


def formats(run: store.Run, spec: study_spec.Spec, folder: Path) -> pd.DataFrame:
    """A row a format and protocol: bytes, mean and lowest cosine with torch's embeddings, accuracy by the 10 folds."""
    network, _ = experiment.load(run)
    faces, rows = study_spec.splits(spec.scale, spec.source), []
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    files = {format: written(run, folder / f"{format}.onnx", format) for format in export.FORMATS}
    for protocol in ("validation", "test"):
        people = getattr(faces, protocol)
        found = {format: recogniser.agreement(network, file, people, side=spec.side) for format, file in files.items()}
        rows.append(("torch", protocol, weights, 1.0, 1.0, found["onnx"].network))
        rows += [(f, protocol, files[f].bytes, x.cosine.mean(), x.cosine.min(), x.file) for f, x in found.items()]
    return pd.DataFrame(rows, columns=["format", "protocol", "bytes", "cosine", "lowest", "accuracy"])


def sizes(scale: presets.Scale, folder: Path) -> pd.DataFrame:
    """A row a design: parameters, multiply-adds a face, bytes in 8 bits, faces a second on one thread by ONNX Runtime.

    The runs are those of `lrkd study designs` with its first seed. Each round calls every design; the fastest counts.
    """
    contenders = {}
    for spec in grids.specs("designs", scale):
        if spec.side == grids.SMALL_SIDE and spec.student not in contenders:
            run, path = experiment.train(spec), folder / f"{spec.student}.onnx"
            file = written(run, path, "int8")
            contenders[spec.student] = Contender(spec.student, file.size, experiment.load(run)[0], {"int8": path})
    x = np.random.default_rng(0).uniform(-1, 1, (BATCH, 3, grids.SMALL_SIDE, grids.SMALL_SIDE)).astype(np.float32)
    calls = [
        (name, functools.partial(session(one.files["int8"], 1).run, None, {recogniser.INPUT: x}))
        for name, one in contenders.items()
    ]
    speed = {name: BATCH / min(times) for name, times in race(calls, ROUNDS, 0.1).items()}
    counts = {name: one.count() for name, one in contenders.items()}
    return pd.DataFrame(
        {
            "design": name,
            "side": one.px,
            "parameters": counts[name]["parameters"],
            "multiply_adds": counts[name]["multiply_adds"],
            "int8": one.files["int8"].stat().st_size,
            "faces_per_s": speed[name],
            "threads": 1,
            "batch": BATCH,
        }
        for name, one in contenders.items()
    )


def main(results: Path = RESULTS) -> None:
    """Choose, export, measure, and write the four files."""
    row = best(read_table(results / "selection.csv"))
    scale = presets.scale(row["scale"])
    named = {study_spec.config_hash(spec): spec for spec in grids.specs("selection", scale)}
    if row["config"] not in named:
        raise DataError(f"config {row['config']}: is no run of `lrkd study selection` as it is now: run that first")
    spec = named[row["config"]]
    run = experiment.train(spec)
    stamp = {
        "scale": scale.name,
        "device": device_name("cpu"),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "commit": commit(),
    }
    with tempfile.TemporaryDirectory(prefix="lrkd-") as folder:
        table = formats(run, spec, Path(folder))
        int8 = Path(folder, "int8.onnx")
        if int8.stat().st_size > LIMIT:
            raise DataError(f"{run.path}: has {int8.stat().st_size} bytes in 8 bits, more than {LIMIT}")
        shutil.copyfile(int8, results / "student.onnx")
        FORMATS.merge(results / "student-formats.csv", table.assign(config=row["config"], **stamp))
        SIZES.merge(results / "student-sizes.csv", sizes(scale, Path(folder)).assign(**stamp))
    accuracy = {protocol: run.result["measures"][protocol]["accuracy"] for protocol in ("validation", "test")}
    about = {"design": spec.student, "method": spec.method.name, "seed": spec.seed, "teacher_seed": spec.teacher_seed}
    told = {"run": run.path.name, "rule": RULE, **about, "accuracy": accuracy, "config": run.config, "exported": stamp}
    write_json(results / "student.json", told | {"trained": run.result["commit"]})


if __name__ == "__main__":
    main()
