"""`lrkd`: the study from the command line. A thin face over `lrkd.study`."""

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from lrkd import __version__, adaptation, evidence, export, launch, methods, parallel, runs, study
from lrkd.data import Splits, load_prepared, make_pairs, prepared, resized, resized_faces
from lrkd.degrade import PRESETS
from lrkd.device import Speed
from lrkd.errors import ConfigError, DataError, LrkdError, RunError
from lrkd.identify import OUTSIDE
from lrkd.models import Network, load_foreign
from lrkd.verify import cosine_scores, embed, fuse, identification, kfold_verification, tar_at_far

EPILOG = """\
a first hour:
  lrkd methods                                    what there is to train
  lrkd train --method none --side 6               a student without distillation, at 6 x 6 pixels
  lrkd train --method fskd --side 6               one taught by an HR teacher (trained first, once)
  lrkd verify runs/procedural-cpu-fskd-6-s0-t0-*  its accuracy at every resolution
  lrkd verify last_net.ckpt --data agedb30        a published network's, on data of yours
  lrkd study core --out results.csv               every method, side and seed: hours; Ctrl-C and go on any time
  lrkd adapt --out adaptation.csv                 students of study aird on faces that were shifted
  lrkd export runs/procedural-* --out face.onnx   a network as one file that needs neither lrkd nor torch
  lrkd compare face.onnx one.jpg another.jpg      how alike it finds two faces

Runs are kept in --runs (default: $LRKD_RUNS, else ./runs), one folder each; none is trained twice, and a run that was
stopped goes on where it was. Exit status: 0 done, 1 stopped or failed while running, 2 asked for something that is not.
"""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="lrkd",
        description="Knowledge distillation for low-resolution face recognition.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"lrkd {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, action: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(action=action)
        return sub

    def where(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--runs", type=Path, metavar="DIR", help="the run store (default: $LRKD_RUNS, else ./runs)")

    def what(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--scale", help=f"{', '.join(study.SCALES)} (default: $LRKD_SCALE, else gpu where CUDA is there, else cpu)"
        )
        sub.add_argument(
            "--data",
            default=study.PROCEDURAL,
            metavar="PATH",
            help="a prepared folder (see python -m data_prep), or procedural (default): faces rendered here",
        )
        sub.add_argument("--device", help="cpu or cuda (default: cuda where it is there)")
        where(sub)

    command("methods", _methods, "list the methods: terms, weights, source")

    sub = command("train", _train, "train one network, its teacher first where the method has one")
    sub.add_argument("--method", default="none", help="a name that `lrkd methods` lists (default: none)")
    sub.add_argument("--side", type=int, metavar="PX", help="LR side in pixels (default: HR, not degraded)")
    sub.add_argument("--seed", type=int, default=0, help="of initialisation, order and augmentation (default: 0)")
    sub.add_argument("--teacher-seed", type=int, default=0, metavar="N", help="which teacher (default: 0)")
    sub.add_argument("--teacher", action="store_true", help="train the HR teacher itself, on its longer schedule")
    sub.add_argument("--preset", default="area-bicubic", help=f"degradation: {', '.join(PRESETS)}")
    sub.add_argument(
        "--design",
        default="",
        help=f"a student for LR images at their own size: {', '.join(study.DESIGNS)} (default: the scale's)",
    )
    sub.add_argument(
        "--sync-norm", action="store_true", help="with torchrun: batch norm over the images of all processes"
    )
    what(sub)

    def network(sub: argparse.ArgumentParser, sides: str) -> None:
        sub.add_argument(
            "network",
            type=Path,
            metavar="NETWORK",
            help="a folder of the run store, or a checkpoint of A-SKD, F-SKD or insightface's arcface_torch",
        )
        sub.add_argument("--side", type=int, action="append", metavar="PX", help=f"side; may be given again ({sides})")
        sub.add_argument(
            "--degrade",
            "--preset",
            dest="preset",
            metavar="PRESET",
            help=f"{', '.join(PRESETS)} (default: the run's, or the publication's)",
        )
        sub.add_argument("--channels", choices=("RGB", "BGR"), help="that a checkpoint expects (default: its family's)")
        sub.add_argument("--device", help="cpu or cuda (default: cuda where it is there)")
        sub.add_argument("--out", type=_output, metavar="CSV", help="also write the table")

    sub = command("verify", _verify, "accuracy of a network at every resolution, by the 10-fold protocol")
    network(sub, "default: all of the network's scale")
    sub.add_argument(
        "--data", metavar="PATH", help="a prepared folder (default for a run: the test split of its own data)"
    )
    sub.add_argument(
        "--protocol",
        help="with --data: a protocol of its pairs.csv (default: the only one; pairs are drawn where there is none)",
    )

    sub = command("identify", _identify, "ranks, distances and open sets by the roles of a prepared set")
    network(sub, "default: the images as they are")
    sub.add_argument("--data", metavar="PATH", required=True, help="a prepared folder with roles: TinyFace, SCface ...")
    sub.add_argument(
        "--split",
        help="only the people of this split, as in SCface's test; distractors and unmated probes stay (default: all)",
    )

    sub = command("study", _study, "train a whole grid of runs and write its results table")
    sub.add_argument("name", metavar="NAME", help=f"one of {', '.join(study.STUDIES)}")
    sub.add_argument("--workers", type=int, help="runs at a time (default: one a core on a CPU, one on a GPU)")
    sub.add_argument(
        "--out",
        type=_output,
        metavar="CSV",
        help="the results table, rewritten after every run; runs that it has are not trained",
    )
    sub.add_argument("--scores", type=_output, metavar="CSV", help="histograms of the test scores, written at the end")
    sub.add_argument("--pairs", type=_output, metavar="CSV", help="whether each test pair was right, run by run")
    sub.add_argument("--traces", type=_output, metavar="CSV", help="what study hypotheses saw while its runs trained")
    sub.add_argument("--ladder", type=Path, metavar="CSV", help="study ladder's table, where hypotheses takes weights")
    sub.add_argument("--budget", type=float, metavar="MINUTES", help="stop after that; the next call goes on")
    sub.add_argument("--launcher", metavar="NAME", help=f"{' or '.join(launch.LAUNCHERS)}: jobs that share the runs")
    sub.add_argument("--jobs", type=int, default=1, help="with --launcher: how many (default: 1)")
    sub.add_argument(
        "--job",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="with --launcher: a parameter of submitit, as gpus_per_node=1 or slurm_partition=long; may be given again",
    )
    sub.add_argument("--list", action="store_true", help="only list the runs and whether they are there")
    what(sub)

    sub = command("attention", _attention, "measure where the finished runs of study attention look")
    sub.add_argument("--out", type=_output, metavar="CSV", help="the table: a row a run, kind of map and block")
    sub.add_argument("--maps", type=_output, metavar="NPZ", help="maps of a few faces, and where the information is")
    what(sub)

    sub = command(
        "adapt",
        _adapt,
        "measure the finished runs of studies aird and kernels on shifted faces, with adapted batch norm",
    )
    sub.add_argument("--out", type=_output, metavar="CSV", help="the table; what it has is not measured again")
    what(sub)

    def model(sub: argparse.ArgumentParser, name: str, text: str) -> None:
        sub.add_argument("network", type=Path, metavar=name, help=f"{text}a run's folder or a published checkpoint")
        sub.add_argument("--channels", choices=("RGB", "BGR"), help="that a checkpoint expects (default: its family's)")

    sub = command("export", _export, "write a network as one ONNX file, and measure what that costs")
    model(sub, "RUN", "")
    sub.add_argument("--format", choices=export.FORMATS, default="onnx", help="default: onnx, which is float32")
    sub.add_argument("--out", type=_output, metavar="FILE", required=True, help="the file, as face.onnx")
    sub.add_argument("--data", metavar="PATH", help="with a checkpoint: a prepared folder, to calibrate and measure on")

    def photographs(sub: argparse.ArgumentParser) -> None:
        model(sub, "MODEL", "an .onnx file of `lrkd export`, ")
        sub.add_argument("--side", type=int, metavar="PX", help="degrade the images to this side first (default: not)")

    sub = command("embed", _embed_photographs, "write the embeddings of photographs of faces")
    photographs(sub)
    sub.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="a face in JPEG, PNG, BMP or WebP")
    sub.add_argument("--out", type=_output, metavar="NPY", required=True, help="(N,D) float32, a row an image")

    sub = command("compare", _compare, "say how alike a network finds two photographs of faces")
    photographs(sub)
    sub.add_argument("images", type=Path, nargs=2, metavar="IMAGE", help="a face in JPEG, PNG, BMP or WebP")

    sub = command("runs", _runs, "list the runs of the store with their accuracy")
    sub.add_argument("config", nargs="*", help="a hash of a table's column config, or how it begins: show that run")
    sub.add_argument("--of", type=Path, nargs="+", metavar="CSV", help="tables whose runs --out describes")
    sub.add_argument("--out", type=_output, metavar="CSV", help="write the configuration of each run, a row a run")
    where(sub)
    return top


def _output(text: str) -> Path:
    """argparse type: a file that can be written, so that hours of training do not end in a typing error.

    A link stays one, and the file that it leads to is written. What is no file, such as a device, would be replaced.
    """
    path = Path(text)
    try:
        path = path.resolve() if path.is_symlink() else path
        good = os.access(path.parent, os.W_OK | os.X_OK) and (path.is_file() or not path.exists())
    except (OSError, RuntimeError):  # too long a name; a ring of links
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"{text}: a file in a folder that is there and can be written is right")
    return path


def _show(frame: pd.DataFrame) -> None:
    print(frame.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}"))


def _methods(arguments: argparse.Namespace) -> None:
    _show(
        pd.DataFrame(
            {
                "method": method.name,
                "teacher": method.teacher,
                "terms": " + ".join(
                    f"{term.weight:g} {term.name}({', '.join(f'{key}={value}' for key, value in term.spec)})"
                    for term in method.terms
                ),
                "source": method.source,
            }
            for method in methods.METHODS.values()
        )
    )


def _train(arguments: argparse.Namespace) -> None:
    scale = study.scale(arguments.scale)
    if arguments.teacher and (arguments.method != "none" or arguments.side is not None):
        raise ConfigError("--teacher trains the HR teacher: leave out --method and --side")
    spec = study.Spec(
        methods.get(arguments.method),
        arguments.side,
        arguments.seed,
        scale,
        arguments.data,
        teacher_seed=arguments.teacher_seed,
        role="teacher" if arguments.teacher else "student",
        preset=arguments.preset,
        design=arguments.design,
    )
    with parallel.joined(study.device_of(arguments.device)) as device:
        run = study.train(spec, arguments.runs, device=device, speed=Speed(sync_norm=arguments.sync_norm))
        if parallel.rank():
            return
    measures = run.result["measures"]
    told = [f"{measures['test']['accuracy']:.2%} (test)", f"{measures['validation']['accuracy']:.2%} (validation)"]
    if "test-hr-lr" in measures:
        told += [f"{measures['test-hr-lr']['accuracy']:.2%} (HR against LR)"]
        told += [f"rank-1 {measures['identification']['rank1']:.2%}"]
    print(f"{run.path}\naccuracy {', '.join(told)}")


class Subject(NamedTuple):
    """A network to be measured, and how it is usually tested: on images of `size`, at `sides`; `run` of the store."""

    network: Network
    name: str
    size: int
    sides: tuple[int, ...]
    preset: str
    mirror_first: bool = False
    run: runs.Run | None = None


def _subject(arguments: argparse.Namespace) -> Subject:
    if arguments.network.is_file():
        found = load_foreign(arguments.network, channels=arguments.channels)
        family, name = found.family, f"{found.family.name} IResNet-{found.depth} ({found.channels})"
        return Subject(found, name, found.size, (found.size, 56, 28, 14), family.degradation, family.mirror_first)
    if arguments.channels:
        raise ConfigError(f"channels is {arguments.channels!r}: it goes with a checkpoint; runs of lrkd see RGB")
    run = runs.load_run(arguments.network)
    try:
        scale_name, preset, _ = run.config["scale"], run.config["preset"], run.config["data"]["test"]
        _ = run.result["source"]
    except (KeyError, TypeError) as error:
        raise RunError(f"{run.path}: config.json or result.json is not as lrkd wrote it: no {error}") from error
    (network, _head), scale = study.load(run), study.scale(scale_name)
    sides = (scale.size, *scale.sides) if network.size == scale.size else (network.size,)
    return Subject(network, run.path.name, scale.size, sides, preset, run=run)


def _embed(subject: Subject, images: Any, side: int | None, preset: str, device: str) -> np.ndarray:
    return embed(
        subject.network,
        images,
        side=None if side == subject.size else side,
        preset=preset,
        mirror_first=subject.mirror_first,
        device=device,
        progress=not os.environ.get("TQDM_DISABLE"),
    )


def _verify(arguments: argparse.Namespace) -> None:
    device = study.device_of(arguments.device)
    subject = _subject(arguments)
    if arguments.data is not None:
        whole = load_prepared(arguments.data)
        if not whole.protocols and arguments.protocol is None:
            faces = replace(whole.faces, pairs=make_pairs(whole.faces.labels))
        else:
            only = next(iter(whole.protocols)) if len(whole.protocols) == 1 else ""
            faces = whole.protocol(arguments.protocol or only)
        compared = study.pairs_of(faces)
        used = np.unique(np.concatenate([compared.left, compared.right]))
        faces = resized_faces(faces.subset(used, relabel=False), subject.size)
    elif subject.run is None:
        raise ConfigError("data is not given: a published network needs --data, a prepared folder")
    elif arguments.protocol is not None:
        raise ConfigError(f"protocol is {arguments.protocol!r}: it goes with --data only")
    else:
        run, source = subject.run, subject.run.result["source"]
        faces = study.splits(study.scale(run.config["scale"]), source).test
        if faces.digest != run.config["data"]["test"]:
            raise DataError(f"{source}: is not the data that {run.path} was tested on; give --data and --protocol")
    pairs = study.pairs_of(faces)
    preset = study.evaluation_preset(arguments.preset or subject.preset)
    table = []
    for side in arguments.side or subject.sides:
        features = _embed(subject, faces.images, side, preset, device)
        found = kfold_verification(features[pairs.left], features[pairs.right], pairs.same, pairs.fold)
        rate = tar_at_far(found.scores, pairs.same, (0.01,))[0]
        table.append(
            {
                "data": faces.name,
                "side": side,
                "accuracy": found.mean,
                "sd_of_folds": found.sd,
                "threshold": found.threshold.mean(),
                "tar_at_far_1e-2": rate,
                "pairs": len(pairs),
                "degradation": "none" if side == subject.size else preset,
                "network": subject.name,
            }
        )
    _finish(pd.DataFrame(table), arguments.out)


def _identify(arguments: argparse.Namespace) -> None:
    device = study.device_of(arguments.device)
    subject = _subject(arguments)
    whole = load_prepared(arguments.data)
    rows = {
        role: whole.rows(role, None if role in OUTSIDE else arguments.split)
        for role in whole.roles
        if role not in ("train", "verification")
    }
    if not any(map(len, rows.values())):
        raise DataError(f"{arguments.data}: has no roles: gallery, probe and so on are needed to identify")
    ends = np.cumsum([0, *map(len, rows.values())])
    roles = {role: np.arange(*ends[k : k + 2]) for k, role in enumerate(rows) if ends[k] < ends[k + 1]}
    faces = whole.faces.subset(np.concatenate(list(rows.values())), relabel=False)
    faces = resized_faces(faces, subject.size)
    preset = study.evaluation_preset(arguments.preset or subject.preset)
    tables = []
    for side in arguments.side or subject.sides[:1]:
        features = fuse(_embed(subject, faces.images, side, preset, device))
        table = identification(features, faces.labels, roles)
        table.insert(0, "data", faces.name)
        table.insert(1, "side", side)
        tables.append(table.assign(degradation="none" if side == subject.size else preset, network=subject.name))
    _finish(pd.concat(tables, ignore_index=True), arguments.out)


def _finish(table: pd.DataFrame, out: Path | None) -> None:
    _show(table)
    if out:
        study.write_table(out, table)


def _study(arguments: argparse.Namespace) -> None:
    over = study.over_after(arguments.budget)
    scale = study.scale(arguments.scale)
    ladder = study.read_table(arguments.ladder) if arguments.ladder else None
    wanted = study.specs(arguments.name, scale, arguments.data, ladder)
    if arguments.list:
        there = [(spec, study.find_run(spec, arguments.runs)) for spec in wanted]
        _show(pd.DataFrame({"run": run.path.name, "finished": run.finished} for _, run in there))
        return

    def write(frame: pd.DataFrame) -> None:
        if arguments.out:
            study.write_table(arguments.out, frame)

    known = study.read_table(arguments.out) if arguments.out and arguments.out.exists() else None
    if known is not None and arguments.scores and arguments.scores.exists():
        named = set(known["config"])
        only = [s for s in wanted if study.key(s) in named and not study.find_run(s, arguments.runs).finished]
        if only:
            raise ConfigError(
                f"{arguments.scores}: would lose {len(only)} runs, which {arguments.out} has and the store has not: "
                f"leave out --scores, or name another file"
            )
    if arguments.launcher:
        _launch(arguments, wanted, known, write)

    table = study.run_study(
        wanted,
        arguments.runs,
        workers=arguments.workers,
        device=arguments.device,
        on_table=write,
        known=known,
        stop=(lambda: True) if arguments.launcher else over,  # what jobs have left is for the next call
    )
    done = 0 if table.empty else table["config"].nunique()
    if done < len(wanted):
        why = "" if arguments.budget is None else f"The {arguments.budget:g} minutes are over: "
        print(f"{why}{done} of {len(wanted)} runs are there; the same command goes on.")
    if table.empty:
        return
    write(table)
    if arguments.scores:
        study.write_table(arguments.scores, study.score_table(wanted, arguments.runs))
    for path, collect in ((arguments.pairs, study.pair_table), (arguments.traces, study.trace_table)):
        if path:
            known = study.read_table(path, ["config"]) if path.exists() else None
            study.write_table(path, collect(wanted, arguments.runs, known))
    test = table[table["protocol"] == "test"]
    _show(test.groupby(["role", "side", "method"], sort=False)["accuracy"].agg(["mean", "std", "count"]).reset_index())


def _launch(
    arguments: argparse.Namespace,
    wanted: Sequence[study.Spec],
    known: pd.DataFrame | None,
    write: Callable[[pd.DataFrame], None],
) -> None:
    """Queue the study's jobs and wait for them, with the table so far written from time to time."""
    parameters: dict[str, Any] = {}
    for given in arguments.job:
        name, sign, value = given.partition("=")
        if not sign:
            raise ConfigError(f"job is {given!r}: NAME=VALUE is right, as gpus_per_node=1")
        parameters[name] = int(value) if value.isdecimal() else value
    where = study.store(arguments.runs).resolve()
    job = launch.Job(wanted, where, arguments.workers, arguments.device, arguments.budget, known)
    jobs = launch.submit(job, arguments.jobs, arguments.launcher, where / "jobs", parameters)
    print(f"jobs {', '.join(job.job_id for job in jobs)}; logs in {where / 'jobs'}", flush=True)

    def look() -> None:
        table = study.table(wanted, where, known)
        if not table.empty:
            write(table)

    launch.wait(jobs, look)


def _attention(arguments: argparse.Namespace) -> None:
    wanted = study.specs("attention", study.scale(arguments.scale), arguments.data)
    table, maps = evidence.gather(wanted, arguments.runs)
    if arguments.out:
        study.write_table(arguments.out, table)
    if arguments.maps:
        evidence.save_maps(arguments.maps, maps)
    fused = table[table["map"] == "fused"]
    columns = ["cosine_same", "cosine_other", "pearson_same", "pearson_other", "rank", "pointing", "accuracy"]
    _show(fused.groupby(["kind", "role", "side", "method"], sort=False)[columns].mean().reset_index())


def _adapt(arguments: argparse.Namespace) -> None:
    chosen = study.scale(arguments.scale)
    wanted = study.specs("aird", chosen, arguments.data)
    if arguments.data == study.PROCEDURAL:  # what trained them is in the matrix of kernels, which photographs lack
        others = [spec for spec in study.specs("kernels", chosen) if spec.preset != wanted[-1].preset]
        wanted = [*wanted, *others]

    def write(frame: pd.DataFrame) -> None:
        if arguments.out:
            study.write_table(arguments.out, frame)

    known = None
    if arguments.out and arguments.out.exists():
        known = study.read_table(arguments.out, ["config", *adaptation.KEY])
    device = study.device_of(arguments.device)
    table = adaptation.gather(wanted, arguments.runs, known=known, on_table=write, device=device)
    write(table)
    there = set(table["config"])
    lacking = [spec for spec in wanted if spec.role == "student" and study.key(spec) not in there]
    if missing := {f"{spec.method.name} ({spec.preset})" for spec in lacking}:
        print(f"Left out, as not all of their runs have finished: {', '.join(sorted(missing))}.")
    test = adaptation.gains(table[table["part"] == "test"])
    _show(test.groupby(["shift", "level", "method"], sort=False)[["source", "accuracy", "gain"]].mean().reset_index())


def _export(arguments: argparse.Namespace) -> None:
    subject, out = _subject(arguments), arguments.out
    faces, sides, metadata = _schooling(subject, arguments.data)
    calibration = None
    if arguments.format == "int8" and faces is not None:
        train = faces.train.images
        index = np.linspace(0, len(train) - 1, min(512, len(train))).astype(np.int64)
        parts = [
            export.inputs(subject.network, train[part], side=side, preset=subject.preset)
            for side, part in zip(sides, np.array_split(index, len(sides)), strict=True)
            if len(part)
        ]
        calibration = np.concatenate(parts)
    elif arguments.format == "int8":
        raise ConfigError("data is not given: int8 takes its ranges from training people: --data, a prepared folder")
    made = export.export(subject.network, out, arguments.format, calibration=calibration, metadata=metadata)
    row: dict[str, Any] = {"file": str(out), "format": arguments.format, "bytes": made.bytes}
    if faces is not None:
        side, preset = sides[0], study.evaluation_preset(subject.preset)
        pairs = study.pairs_of(faces.validation)
        found = export.agreement(
            subject.network, made, faces.validation, side=side, preset=preset, mirror_first=subject.mirror_first
        )
        export.annotate(out, {"threshold": f"{found.threshold:.4f}"})
        row |= {"bytes": out.stat().st_size, "cosine": found.cosine.mean(), "lowest": found.cosine.min()}
        row |= {"accuracy_torch": found.network, "accuracy_file": found.file, "threshold": found.threshold}
        row |= {"pairs": len(pairs), "data": faces.validation.name, "side": side or subject.network.size}
    _show(pd.DataFrame([row]))


def _schooling(subject: Subject, path: str | None) -> tuple[Splits | None, list[int | None], dict[str, object]]:
    """What a network was trained on, or for a checkpoint the prepared folder `path`: data, sides, and notes on them."""
    metadata: dict[str, object] = {"preset": study.evaluation_preset(subject.preset), "network": subject.name}
    if subject.run is None:
        faces = None if path is None else resized(prepared(path), subject.network.size)
        return faces, [None], metadata | {"side": subject.network.size}
    if path is not None:
        raise ConfigError(f"data is {path!r}: it goes with a checkpoint; a run is measured on its own data")
    run, source = subject.run, subject.run.result["source"]
    scale, given = study.scale(run.config["scale"]), run.config.get("side")
    faces = study.splits(scale, source)
    for part in ("train", "validation"):
        if getattr(faces, part).digest != run.config["data"].get(part):
            raise DataError(f"{source}: is not the data that {run.path} was trained on")
    # The largest first: what is trained for several sides is measured at that one.
    sides = sorted(given, reverse=True) if isinstance(given, list) else [given]
    procedural = source == study.PROCEDURAL
    licence = "Apache-2.0" if procedural else str(load_prepared(source).meta.get("licence", "that of its data"))[:200]
    metadata |= {"data": run.config["data"].get("source"), "licence": licence}
    return faces, sides, metadata | {"side": sides[0] or scale.size}


class _Photographs:
    """Image files as uint8 (N,size,size,3), each read when a slice asks for it."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self._paths, self._size = paths, size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, some: slice) -> np.ndarray:
        return np.stack([export.photograph(path, self._size) for path in self._paths[some]])


def _seen(arguments: argparse.Namespace) -> tuple[np.ndarray, dict[str, str], int]:
    """The embeddings of the images, (N,D), without mirror images; the model's notes; the side that it saw."""
    network: Any
    if arguments.network.suffix == ".onnx":
        if arguments.channels:
            raise ConfigError(f"channels is {arguments.channels!r}: it goes with a checkpoint; .onnx files take RGB")
        network = export.load(arguments.network)
        notes, preset = network.metadata, network.metadata.get("preset", "area-bicubic")
    else:
        subject = _subject(arguments)
        network, notes, preset = subject.network, {}, study.evaluation_preset(subject.preset)
    side = None if arguments.side == network.size else arguments.side
    images = _Photographs(arguments.images, network.size)
    return embed(network, images, side=side, preset=preset, mirror=False, device="cpu"), notes, side or network.size


def _embed_photographs(arguments: argparse.Namespace) -> None:
    found, _, side = _seen(arguments)
    with runs.atomic(arguments.out, "wb") as file:
        np.save(file, found)
    print(f"{arguments.out}: {found.shape[0]} embeddings of {found.shape[1]} numbers, of images of {side} px")


def _compare(arguments: argparse.Namespace) -> None:
    found, notes, side = _seen(arguments)
    cosine = float(cosine_scores(found[:1], found[1:])[0])
    print(f"cosine {cosine:.4f}")
    try:
        threshold, known = float(notes["threshold"]), int(notes["side"])
    except (KeyError, ValueError):
        print("The model carries no threshold to hold that against.")
        return
    if known != side:
        print(f"Its threshold was found at {known} px and these images have {side}: --side {known} compares there.")
        return
    where, who = ("Above", "the same person") if cosine > threshold else ("Not above", "two people")
    print(
        f"{where} {threshold:.4f}, the threshold that best told its validation pairs apart: rather {who}.\n"
        "That holds for faces cropped as those were, and it is a best guess and no proof."
    )


def _runs(arguments: argparse.Namespace) -> None:
    store = study.store(arguments.runs)
    found = runs.list_runs(store)
    if not found:
        raise RunError(f"{store}: there are no runs here; `lrkd train` makes one, --runs names another store")
    if arguments.config:
        return _show_runs(found, arguments.config)
    if bool(arguments.of) != bool(arguments.out):
        raise ConfigError("--of names the tables and --out the file that describes their runs: give both or neither")
    if arguments.of:
        return _write_configs(found, arguments.of, arguments.out)
    table = []
    for run in found:
        try:
            result: dict[str, Any] = run.result if run.finished else {"status": "not finished"}
            measures = result.get("measures")
            row = {"status": result["status"], "accuracy": measures["test"]["accuracy"] if measures else None}
        except (RunError, KeyError, TypeError):
            row = {"status": "unreadable"}
        table.append({"run": run.path.name, **row})
    _show(pd.DataFrame(table))


def _hash(run: runs.Run) -> str:
    return run.path.name.rpartition("-")[2]


def _show_runs(found: Sequence[runs.Run], wanted: Sequence[str]) -> None:
    for first in wanted:
        chosen = [run for run in found if _hash(run).startswith(first)]
        if not chosen:
            raise RunError(
                f"{first}: no run of this store has a configuration hash that begins so; --runs names another"
            )
        for run in chosen:
            told = {"run": str(run.path), "config": run.config, "result": run.result if run.finished else None}
            print(json.dumps(told, indent=1))


def _write_configs(found: Sequence[runs.Run], tables: Sequence[Path], out: Path) -> None:
    """Rows of runs that the tables name; those stay that `out` has and this store has not."""
    others = [path for path in tables if path.resolve() != out.resolve()]
    named = [study.read_table(path, ()).get("config", pd.Series(dtype=str)) for path in others]
    wanted = set().union(*(column.dropna() for column in named))
    made = [run for run in found if run.finished and _hash(run) in wanted]
    rows = [{"config": _hash(run), "commit": run.result["commit"], **runs.flat(run.config)} for run in made]
    order = ["role", "data.source", "method.name", "side", "seed", "config"]
    table = pd.DataFrame(rows, columns=None if rows else order, dtype=object)
    if out.exists():
        old = study.read_table(out, order).astype(object)
        table = pd.concat([table, old[old["config"].isin(wanted - {row["config"] for row in rows})]])
    study.write_table(out, table.sort_values(order, key=lambda column: column.astype(str)))
    print(f"{out}: {len(table)} runs of {len(wanted)} that are named")


_OF_THE_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOENT),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. Errors that a user can cause are one line on stderr."""
    try:
        try:
            arguments = parser().parse_args(words)
            arguments.action(arguments)
        finally:
            sys.stdout.flush()  # here, so that a closed pipe or a full disk is met below and not at exit
    except ConfigError as error:
        return _fail(str(error), 2)
    except LrkdError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt as error:
        said = str(error)
        return _fail(f"interrupted{': ' + said if said else ''}; the same command goes on from here", 1)
    except OSError as error:
        _drop_output()
        if isinstance(error, BrokenPipeError):  # the reader has seen enough, as `head` has
            return 1
        if error.errno not in _OF_THE_DISK:
            raise
        return _fail(f"{error.filename or 'output'}: {error.strerror}; make room or choose another file or folder", 1)
    except torch.cuda.OutOfMemoryError as error:
        said = str(error).partition(". ")[0]
        return _fail(f"the GPU's memory does not suffice ({said}); a smaller --scale needs less", 1)
    return 0


def _drop_output() -> None:
    """Give up output that cannot be written, or the interpreter complains of it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(text: str, status: int) -> int:
    print(f"lrkd: {text}", file=sys.stderr)
    return status
