"""`lrkd`: the study from the command line. A thin face over `lrkd.study.runner`."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lrkd import __version__
from lrkd.errors import ConfigError, DataError, LrkdError, MissingError, RunError
from lrkd.files import Table, atomic, read_table

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from lrkd.data.overlap import Overlap
    from lrkd.data.pairs import Pairs
    from lrkd.data.tables import Faces, Splits
    from lrkd.evaluation.verification import Verification
    from lrkd.models.layers import Network
    from lrkd.onnx import recogniser
    from lrkd.study import presets
    from lrkd.study import spec as study_spec
    from lrkd.study import store as run_store

EPILOG = """\
a first hour:
  lrkd methods                                    what there is to train
  lrkd train --method none --side 6               a student without distillation, at 6 x 6 pixels
  lrkd train --method fskd --side 6               one taught by an HR teacher (trained first, once)
  lrkd verify runs/procedural-cpu-fskd-6-s0-t0-*  its accuracy at every resolution
  lrkd verify last_net.ckpt --data agedb30        a published network's, on data of yours
  lrkd study core --out results.csv               every method, side and seed: hours; Ctrl-C and go on any time
  lrkd adapt --out adaptation.csv                 students of study aird on faces that were shifted
  lrkd export runs/procedural-cpu-fskd-6-s0-t0-* --out face.onnx
                                                  the network as one file that needs neither lrkd nor torch
  lrkd compare face.onnx one.jpg another.jpg      how alike it finds two faces

Runs are kept in --runs (default: $LRKD_RUNS, else ./runs), one folder each; none is trained twice, and a run that was
stopped goes on where it was. A table that is there is added to: no row of another command is lost.
Exit status: 0 done, 1 stopped or failed while running, 2 asked for something that is not there or not right.
"""


class _Command(argparse.ArgumentParser):
    """A command, whose options are added when it is called: the names that they list take seconds to import."""

    options: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Add the options, then parse as usual."""
        if self.options is not None:
            add, self.options = self.options, None
            add(self)
        return super().parse_known_args(args, namespace)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="lrkd",
        description="Knowledge distillation for low-resolution face recognition.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"lrkd {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Command)

    def command(
        name: str,
        action: Callable[[argparse.Namespace], None],
        options: Callable[[argparse.ArgumentParser], None] | None,
        text: str,
        more: str = "",
    ) -> None:
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".rstrip())
        sub.options = options
        sub.set_defaults(action=action)

    command("methods", _methods, None, "list the methods: terms, weights, source")
    command("train", _train, _train_options, "train one network, its teacher first where the method has one")
    command("verify", _verify, _verify_options, "accuracy of a network at every resolution, by the 10-fold protocol")
    command("identify", _identify, _identify_options, "ranks, distances and open sets by the roles of a prepared set")
    command("study", _study, _study_options, "train a whole grid of runs and write its results table")
    command("attention", _attention, _attention_options, "measure where the finished runs of study attention look")
    command(
        "adapt",
        _adapt,
        _adapt_options,
        "measure the finished runs of studies aird and kernels on shifted faces, with adapted batch norm",
    )
    command("export", _export, _export_options, "write a network as one ONNX file, and measure what that costs")
    book = "The book's own student.onnx knows rendered faces: on photographs it is worse than comparing pixels."
    command("embed", _embed_photographs, _embed_options, "write the embeddings of photographs of faces", book)
    command("compare", _compare, _compare_options, "say how alike a network finds two photographs of faces", book)
    command("runs", _runs, _runs_options, "list the runs of the store with their accuracy")
    return top


def _where(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--runs", type=Path, metavar="DIR", help="the run store (default: $LRKD_RUNS, else ./runs)")


def _what(sub: argparse.ArgumentParser) -> None:
    from lrkd.study import presets
    from lrkd.study import spec as study_spec

    sub.add_argument(
        "--scale", help=f"{', '.join(presets.SCALES)} (default: $LRKD_SCALE, else gpu where CUDA is there, else cpu)"
    )
    sub.add_argument(
        "--data",
        default=study_spec.PROCEDURAL,
        metavar="PATH",
        help="a prepared folder (see python -m data_prep), or procedural (default): faces rendered here",
    )
    sub.add_argument("--device", help="cpu or cuda (default: cuda where it is there)")
    _where(sub)


def _train_options(sub: argparse.ArgumentParser) -> None:
    from lrkd.data.degradation import PRESETS
    from lrkd.study.presets import DESIGNS

    pass

    sub.add_argument("--method", default="none", help="a name that `lrkd methods` lists (default: none)")
    sub.add_argument("--side", type=int, metavar="PX", help="LR side in pixels (default: HR, not degraded)")
    sub.add_argument("--seed", type=int, default=0, help="of initialisation, order and augmentation (default: 0)")
    sub.add_argument("--teacher-seed", type=int, default=0, metavar="N", help="which teacher (default: 0)")
    sub.add_argument("--teacher", action="store_true", help="train the HR teacher itself, on its longer schedule")
    sub.add_argument("--preset", default="area-bicubic", help=f"degradation: {', '.join(PRESETS)}")
    sub.add_argument(
        "--design",
        default="",
        help=f"a student for LR images at their own size: {', '.join(DESIGNS)} (default: the scale's)",
    )
    sub.add_argument(
        "--sync-norm", action="store_true", help="with torchrun: batch norm over the images of all processes"
    )
    _what(sub)


def _network(sub: argparse.ArgumentParser, sides: str) -> None:
    from lrkd.data.degradation import PRESETS

    sub.add_argument(
        "network",
        type=Path,
        metavar="NETWORK",
        help="a folder of the run store, an .onnx file of `lrkd export`, or a checkpoint of A-SKD, F-SKD or "
        "insightface's arcface_torch",
    )
    sub.add_argument(
        "--side",
        type=int,
        action="append",
        metavar="PX",
        help=f"degrade the images to this side; may be given again ({sides}); at their own side nothing is "
        "resampled, but the preset's blur stays",
    )
    sub.add_argument(
        "--degrade",
        "--preset",
        dest="preset",
        metavar="PRESET",
        help=f"{', '.join(PRESETS)} (default: the run's, or the publication's)",
    )
    sub.add_argument("--channels", choices=("RGB", "BGR"), help="that a checkpoint expects (default: its family's)")
    sub.add_argument("--device", help="cpu or cuda (default: cuda where it is there)")
    sub.add_argument("--out", type=_output, metavar="CSV", help="also write the table: its rows join those there")
    sub.add_argument("--unseen", action="store_true", help="leave out people and images on which the run was trained")


def _verify_options(sub: argparse.ArgumentParser) -> None:
    _network(sub, "default: the images as they are, then all sides of the network's scale")
    sub.add_argument(
        "--data", metavar="PATH", help="a prepared folder (default for a run: the test split of its own data)"
    )
    sub.add_argument(
        "--protocol",
        help="with --data: a protocol of its pairs.csv (default: the only one; pairs are drawn where there is none)",
    )
    cut = sub.add_mutually_exclusive_group()
    cut.add_argument(
        "--threshold", type=float, metavar="COSINE", help="judge by this and not by folds, which one pair suffices for"
    )
    cut.add_argument(
        "--threshold-from",
        metavar="PROTOCOL",
        help="judge by the best threshold of another protocol (default: of view1-train for view1-test, which is one "
        "fold, and so on)",
    )


def _identify_options(sub: argparse.ArgumentParser) -> None:
    _network(sub, "default: the images as they are")
    sub.add_argument("--data", metavar="PATH", required=True, help="a prepared folder with roles: TinyFace, SCface ...")
    sub.add_argument(
        "--split",
        help="only the people of this split, as in SCface's test; distractors and unmated probes stay (default: all)",
    )


def _study_options(sub: argparse.ArgumentParser) -> None:
    from lrkd.study import answer, cluster, grids

    sub.add_argument("name", metavar="NAME", help=f"one of {', '.join(grids.STUDIES)}, or answer")
    sub.add_argument("--workers", type=int, help="runs at a time (default: one a core on a CPU, one on a GPU)")
    sub.add_argument(
        "--out",
        type=_output,
        metavar="CSV",
        help="the results table, added to after every run; runs that it has are not trained, and other rows stay",
    )
    sub.add_argument("--scores", type=_output, metavar="CSV", help="histograms of the test scores, written at the end")
    sub.add_argument("--pairs", type=_output, metavar="CSV", help="whether each test pair was right, run by run")
    sub.add_argument("--traces", type=_output, metavar="CSV", help="what study hypotheses saw while its runs trained")
    sub.add_argument("--ladder", type=Path, metavar="CSV", help="study ladder's table, where hypotheses takes weights")
    sub.add_argument("--part", metavar="PART", help=f"of study answer: {', '.join(answer.PARTS)}")
    sub.add_argument(
        "--tables",
        type=Path,
        metavar="DIR",
        help="where study answer has its tables, its claims.csv too (default: book/results)",
    )
    sub.add_argument("--budget", type=float, metavar="MINUTES", help="stop after that; the next call goes on")
    sub.add_argument("--launcher", metavar="NAME", help=f"{' or '.join(cluster.LAUNCHERS)}: jobs that share the runs")
    sub.add_argument("--jobs", type=int, default=1, help="with --launcher: how many (default: 1)")
    sub.add_argument(
        "--job",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="with --launcher: a parameter of submitit, as gpus_per_node=1 or slurm_partition=long; may be given again",
    )
    sub.add_argument("--list", action="store_true", help="only list the runs and whether they are there")
    _what(sub)


def _attention_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=_output, metavar="CSV", help="the table: a row a run, kind of map and block")
    sub.add_argument("--maps", type=_output, metavar="NPZ", help="maps of a few faces, and where the information is")
    _what(sub)


def _adapt_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=_output, metavar="CSV", help="the table; what it has is not measured again")
    _what(sub)


def _model(sub: argparse.ArgumentParser, name: str, text: str) -> None:
    sub.add_argument("network", type=Path, metavar=name, help=f"{text}a run's folder or a published checkpoint")
    sub.add_argument("--channels", choices=("RGB", "BGR"), help="that a checkpoint expects (default: its family's)")


def _export_options(sub: argparse.ArgumentParser) -> None:
    from lrkd.onnx.export import FORMATS

    _model(sub, "RUN", "")
    sub.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx, which is float32")
    sub.add_argument("--out", type=_output, metavar="FILE", required=True, help="the file, as face.onnx")
    sub.add_argument("--data", metavar="PATH", help="with a checkpoint: a prepared folder, to calibrate and measure on")


def _photographs(sub: argparse.ArgumentParser) -> None:
    _model(sub, "MODEL", "an .onnx file of `lrkd export`, ")
    sub.add_argument("--side", type=int, metavar="PX", help="degrade the images to this side first (default: not)")


def _embed_options(sub: argparse.ArgumentParser) -> None:
    _photographs(sub)
    sub.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="a face in JPEG, PNG, BMP or WebP")
    sub.add_argument("--out", type=_output, metavar="NPY", required=True, help="(N,D) float32, a row an image")


def _compare_options(sub: argparse.ArgumentParser) -> None:
    _photographs(sub)
    sub.add_argument("images", type=Path, nargs=2, metavar="IMAGE", help="a face in JPEG, PNG, BMP or WebP")


def _runs_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("config", nargs="*", help="a hash of a table's column config, or how it begins: show that run")
    sub.add_argument("--of", type=Path, nargs="+", metavar="CSV", help="tables whose runs --out describes")
    sub.add_argument("--out", type=_output, metavar="CSV", help="write the configuration of each run, a row a run")
    _where(sub)


# What each command's table is known by. Those of a study have theirs in lrkd.study.runner.
VERIFIED = Table(
    "lrkd verify",
    ("config", "data", "protocol", "side", "degradation", "threshold_from", "unseen"),
    ("data", "side", "accuracy", "network"),
)
IDENTIFIED = Table(
    "lrkd identify",
    ("config", "data", "split", "side", "degradation", "unseen"),
    ("data", "side", "degradation", "network"),
)
DESCRIBED = Table("lrkd runs", ("config",), ("role", "data.source", "method.name", "side", "seed", "config"))


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
    import pandas as pd

    from lrkd.distill import methods

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
    from lrkd.distill import methods
    from lrkd.study import experiment, presets
    from lrkd.study import spec as study_spec
    from lrkd.training import distributed
    from lrkd.training.acceleration import Speed

    pass

    scale = presets.scale(arguments.scale)
    if arguments.teacher and (arguments.method != "none" or arguments.side is not None):
        raise ConfigError("--teacher trains the HR teacher: leave out --method and --side")
    spec = study_spec.Spec(
        methods.get(arguments.method),
        arguments.side,
        arguments.seed,
        scale,
        arguments.data,
        teacher_seed=arguments.teacher_seed,
        role="teacher" if arguments.teacher else "student",
        preset=arguments.preset,
        student=arguments.design,
    )
    with distributed.init_distributed(experiment.device_of(arguments.device)) as device:
        run = experiment.train(spec, arguments.runs, device=device, speed=Speed(sync_norm=arguments.sync_norm))
        if distributed.rank():
            return
    measures = run.result["measures"]
    told = [f"{measures['test']['accuracy']:.2%} (test)", f"{measures['validation']['accuracy']:.2%} (validation)"]
    if "test-hr-lr" in measures:
        told += [f"{measures['test-hr-lr']['accuracy']:.2%} (HR against LR)"]
        told += [f"rank-1 {measures['identification']['rank1']:.2%}"]
    print(f"{run.path}\naccuracy {', '.join(told)}")


class Subject(NamedTuple):
    """A network to be measured, and how it is usually tested.

    It is shown images of `size`, degraded to `sides`, of which None is not at all; `run` of the store; `notes`: what an
    exported file, or a run, says of its data.
    """

    network: Network | recogniser.Recogniser
    name: str
    size: int
    sides: tuple[int | None, ...]
    preset: str
    mirror_first: bool = False
    run: run_store.Run | None = None
    notes: Mapping[str, str] = {}


def _subject(arguments: argparse.Namespace) -> Subject:
    from lrkd.models.published import load_foreign
    from lrkd.study import experiment, presets
    from lrkd.study import store as run_store

    pass

    if arguments.network.suffix == ".onnx":
        return _exported(arguments.network, arguments.channels)
    if arguments.network.is_file():
        found = load_foreign(arguments.network, channels=arguments.channels)
        family, name = found.family, f"{found.family.name} IResNet-{found.depth} ({found.channels})"
        return Subject(found, name, found.size, (None, 56, 28, 14), family.degradation, family.mirror_first)
    if arguments.channels:
        raise ConfigError(f"channels is {arguments.channels!r}: it goes with a checkpoint; runs of lrkd see RGB")
    run = run_store.load_run(arguments.network)
    try:
        scale_name, preset, config = run.config["scale"], run.config["preset"], run.config["data"]
        _ = run.result["source"], config["test"]
    except (KeyError, TypeError) as error:
        raise RunError(f"{run.path}: config.json or result.json is not as lrkd wrote it: no {error}") from error
    (network, _head), scale = experiment.load(run), presets.scale(scale_name)
    sides = (None, *scale.sides) if network.size == scale.size else (network.size,)
    notes = {"data": str(config.get("source"))}
    return Subject(network, run.path.name, scale.size, sides, preset, run=run, notes=notes)


def _exported(path: Path, channels: str | None) -> Subject:
    """A file of `lrkd export`, shown what its metadata says; a file that says nothing is shown images of its size."""
    from lrkd.onnx import recogniser

    if channels:
        raise ConfigError(f"channels is {channels!r}: it goes with a checkpoint; .onnx files take RGB")
    network = recogniser.load(path)
    notes = network.metadata
    for name, right in (("channels", "RGB"), ("range", "[-1,1]")):
        if notes.get(name, right) != right:
            raise DataError(f"{path}: metadata {name}: expected {right}, got {notes[name]!r}")
    try:
        size, side = (int(notes.get(name, network.size)) for name in ("images", "side"))
    except ValueError as error:
        raise DataError(f"{path}: metadata images, side: expected pixels ({error})") from error
    if not 1 <= side <= size or size < network.size:
        raise DataError(f"{path}: metadata: images {size} and side {side} do not fit a network of {network.size} px")
    sides = (network.size,) if size > network.size else (None,) if side == size else (None, side)
    name, preset = notes.get("network", path.name), notes.get("preset", "area-bicubic")
    return Subject(network, name, size, sides, preset, notes.get("mirror") == "first", notes=notes)


def _embed(subject: Subject, images: Any, side: int | None, preset: str, device: str) -> np.ndarray:
    from lrkd.evaluation.embedding import embed

    mirror: Literal["first"] | bool = "first" if subject.mirror_first else True
    return embed(subject.network.to(device), images, side=side, preset=preset, mirror=mirror)


def _warn(text: str) -> None:
    print(f"lrkd: warning: {text}", file=sys.stderr)


def _few(names: Iterable[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def _trained_on(subject: Subject, tested: Faces, unseen: bool) -> Overlap | None:
    """Who and what of `tested` the network learnt from; None where nobody knows."""
    from lrkd.data.overlap import overlap
    from lrkd.study import presets
    from lrkd.study import spec as study_spec

    pass

    why = "it is no run of the store"
    if subject.run is not None:
        run, source = subject.run, subject.run.result["source"]
        if source == study_spec.PROCEDURAL:  # rendered people are in no photograph
            return None
        try:
            train = study_spec.splits(presets.scale(run.config["scale"]), source).train
            if train.digest == run.config["data"].get("train"):
                return overlap(train, tested)
            why = f"{source} has changed since"
        except DataError as error:
            why = str(error)
        _warn(f"whether people of {tested.name} were trained on is not known: {why}")
    if unseen:
        raise ConfigError(f"--unseen: what {subject.name} was trained on is not known: {why}")
    return None


def _without_the_seen(subject: Subject, faces: Faces, pairs: Pairs, unseen: bool) -> Pairs:
    """The pairs over `faces` to be scored: all, after a warning about those trained on, or with `unseen` the others."""
    import numpy as np

    rows = np.unique(np.concatenate([pairs.left, pairs.right]))
    found = _trained_on(subject, faces.subset(rows, relabel=False), unseen)
    if not found:
        return pairs
    seen = np.zeros(len(faces), bool)
    seen[rows] = found.rows
    shown = pairs.touch(seen)
    said = f"{faces.name}: {subject.name} was trained on {found}: {shown.sum()} of {len(pairs)} pairs"
    if not unseen:
        _warn(f"{said} show them; --unseen scores the rest alone")
        return pairs
    rest = pairs.keep(np.where(seen, -1, np.arange(len(faces))))
    if rest is None:
        raise DataError(f"{said} show them, and --unseen leaves no pair to score")
    _warn(f"{said} show them and are left out")
    return rest


class Trial(NamedTuple):
    """What `lrkd verify` scores: faces, their pairs, once in `folds`, and maybe pairs for a threshold, `reference`."""

    faces: Faces
    pairs: Pairs
    folds: int
    reference: Pairs | None = None


def _trial(arguments: argparse.Namespace, subject: Subject) -> Trial:
    """The pairs that are asked for, and the images that they need, at the network's size."""
    import numpy as np

    from lrkd.data.prepared import load_prepared, resized_faces
    from lrkd.study import presets
    from lrkd.study import spec as study_spec
    from lrkd.study.measures import pairs_of

    pass

    path, protocol, source = arguments.data, arguments.protocol, arguments.threshold_from
    if path is None:
        if subject.run is None:
            raise ConfigError("data is not given: a published or exported network needs --data, a prepared folder")
        for name, value in (("protocol", protocol), ("threshold-from", source)):
            if value is not None:
                raise ConfigError(f"{name} is {value!r}: it goes with --data only")
        run, own = subject.run, subject.run.result["source"]
        faces = study_spec.splits(presets.scale(run.config["scale"]), own).test
        if faces.digest != run.config["data"]["test"]:
            raise DataError(f"{own}: is not the data that {run.path} was tested on; give --data and --protocol")
        pairs = pairs_of(faces)
        return Trial(faces, _without_the_seen(subject, faces, pairs, arguments.unseen), int(pairs.fold.max()) + 1)
    whole = load_prepared(path)
    if not whole.protocols and protocol is None:
        pairs = _drawn(path, whole.faces)
    else:
        protocol = protocol or (next(iter(whole.protocols)) if len(whole.protocols) == 1 else "")
        pairs = pairs_of(whole.protocol(protocol))
    twin = f"{str(protocol).removesuffix('-test')}-train"
    if source is None and arguments.threshold is None and np.ptp(pairs.fold) == 0 and twin in whole.protocols:
        source = twin
    reference = None if source is None else pairs_of(whole.protocol(source))
    folds, pairs = int(pairs.fold.max()) + 1, _without_the_seen(subject, whole.faces, pairs, arguments.unseen)
    ends = [end for some in (pairs, reference) if some is not None for end in (some.left, some.right)]
    used = np.unique(np.concatenate(ends))
    place = np.full(len(whole.faces), -1, np.int64)
    place[used] = np.arange(len(used))
    faces = resized_faces(whole.faces.subset(used, relabel=False), subject.size)
    moved = [None if some is None else some.keep(place) for some in (pairs, reference)]
    assert moved[0] is not None
    return Trial(faces, moved[0], folds, moved[1])


def _drawn(path: str, faces: Faces) -> Pairs:
    """Pairs for a folder that has none of its own."""
    from lrkd.data.pairs import make_pairs, mark_copies

    try:
        return make_pairs(mark_copies(faces.labels, faces.sha256))
    except DataError as error:
        raise DataError(
            f"{path}: has no verification pairs, and none can be drawn ({error}); without pairs `lrkd identify` ranks "
            "by the roles of a prepared set, and `lrkd embed` writes the embeddings of photographs"
        ) from error


def _score(trial: Trial, features: np.ndarray, threshold: float | None) -> Verification:
    """By folds, or by a threshold that is given or that the reference's pairs give."""
    from lrkd.evaluation.verification import fit_threshold, fixed_verification, kfold_verification

    pairs, reference = trial.pairs, trial.reference
    ends = features[pairs.left], features[pairs.right], pairs.same
    missing = pairs.touch(trial.faces.missing)
    if threshold is not None:
        return fixed_verification(*ends, threshold, missing=missing)
    if reference is None:
        return kfold_verification(*ends, pairs.fold, missing=missing)
    taught = features[reference.left], features[reference.right], reference.same
    cut, mean = fit_threshold(*taught, missing=reference.touch(trial.faces.missing))
    return fixed_verification(*ends, cut, mean=mean, missing=missing)


def _verify(arguments: argparse.Namespace) -> None:
    import numpy as np
    import pandas as pd

    from lrkd.evaluation.separation import tar_at_far
    from lrkd.study import experiment
    from lrkd.study.measures import evaluation_preset

    pass

    VERIFIED.check(arguments.out)
    device = experiment.device_of(arguments.device)
    subject = _subject(arguments)
    trial = _trial(arguments, subject)
    faces, pairs = trial.faces, trial.pairs
    preset = evaluation_preset(arguments.preset or subject.preset)
    missed = int(pairs.touch(faces.missing).sum())
    by = "given" if arguments.threshold is not None else "other folds"
    if trial.reference is not None:
        by = trial.reference.protocol
    table = []
    for side in arguments.side or subject.sides:
        found = _score(trial, _embed(subject, faces.images, side, preset, device), arguments.threshold)
        both = len(np.unique(pairs.same)) == 2
        table.append(
            {
                "data": faces.name,
                "side": side or subject.size,
                "accuracy": found.mean,
                "sd_of_folds": found.sd,
                "folds": len(found.accuracy),
                "threshold": found.threshold.mean(),
                "threshold_from": by,
                "tar_at_far_1e-2": tar_at_far(found.scores, pairs.same, (0.01,))[0] if both else np.nan,
                "pairs": len(pairs),
                "missed": missed,
                "degradation": "none" if side is None else preset,
                "network": subject.name,
            }
        )
    if by == "other folds" and len(found.accuracy) < trial.folds:
        _warn(f"{faces.name}: {len(found.accuracy)} folds, as the others of {trial.folds} have no pairs")
    if missed:
        _warn(f"{faces.name}: {_unfound(faces)}: {missed} pairs count as rejected, genuine ones as errors")
    _finish(pd.DataFrame(table), arguments.out, VERIFIED, protocol=pairs.protocol, **_told(arguments))


def _unfound(faces: Faces, rows: np.ndarray | None = None) -> str:
    """How many of the images (of the rows) show no face that was found, and the first of them."""
    import numpy as np

    gone = np.zeros(len(faces), bool) if faces.missing is None else faces.missing
    at = np.flatnonzero(gone) if rows is None else rows[gone[rows]]
    first = "" if faces.sources is None else f" ({_few(faces.sources[row] for row in at)})"
    return f"no face was found in {len(at)} image{'s' * (len(at) != 1)}{first}"


def _identify(arguments: argparse.Namespace) -> None:
    import numpy as np
    import pandas as pd

    from lrkd.data.prepared import load_prepared, resized_faces
    from lrkd.evaluation.identification import OUTSIDE, fuse, identification
    from lrkd.study import experiment
    from lrkd.study.measures import evaluation_preset

    pass
    pass
    pass

    IDENTIFIED.check(arguments.out)
    device = experiment.device_of(arguments.device)
    subject = _subject(arguments)
    whole = load_prepared(arguments.data)
    rows = {
        role: whole.rows(role, None if role in OUTSIDE else arguments.split)
        for role in whole.roles
        if role not in ("train", "verification")
    }
    if not any(map(len, rows.values())):
        raise DataError(f"{arguments.data}: has no roles: gallery, probe and so on are needed to identify")
    rows = _roles_unseen(subject, whole.faces, rows, arguments.unseen)
    ends = np.cumsum([0, *map(len, rows.values())])
    roles = {role: np.arange(*ends[k : k + 2]) for k, role in enumerate(rows) if ends[k] < ends[k + 1]}
    faces = whole.faces.subset(np.concatenate(list(rows.values())), relabel=False)
    _say_misses(faces, roles)
    faces = resized_faces(faces, subject.size)
    preset = evaluation_preset(arguments.preset or subject.preset)
    tables = []
    for side in arguments.side or subject.sides[:1]:
        features = fuse(_embed(subject, faces.images, side, preset, device))
        table = identification(features, faces.labels, roles, missing=faces.missing)
        table.insert(0, "data", faces.name)
        table.insert(1, "side", side or subject.size)
        tables.append(table.assign(degradation="none" if side is None else preset, network=subject.name))
    table = pd.concat(tables, ignore_index=True)
    _finish(table, arguments.out, IDENTIFIED, split=arguments.split, **_told(arguments))


def _roles_unseen(
    subject: Subject, faces: Faces, roles: Mapping[str, np.ndarray], unseen: bool
) -> dict[str, np.ndarray]:
    """The rows of each role to be scored: all, after a warning about those trained on, or with `unseen` the others."""
    import numpy as np

    rows = np.unique(np.concatenate(list(roles.values())))
    found = _trained_on(subject, faces.subset(rows, relabel=False), unseen)
    if not found:
        return dict(roles)
    seen = np.zeros(len(faces), bool)
    seen[rows] = found.rows
    counts = _few((f"{seen[some].sum()} of {len(some)} {role}" for role, some in roles.items()), len(roles))
    said = f"{faces.name}: {subject.name} was trained on {found}: {counts}"
    if not unseen:
        _warn(f"{said}; --unseen scores the rest alone")
        return dict(roles)
    rest = {role: some[~seen[some]] for role, some in roles.items()}
    asked = [role for role in rest if role == "probe" or role.startswith("distance")]
    if not len(rest.get("gallery", ())) or not any(len(rest[role]) for role in asked):
        raise DataError(f"{said}; --unseen leaves no gallery or no probes to score")
    _warn(f"{said}; they are left out")
    return rest


def _say_misses(faces: Faces, roles: Mapping[str, np.ndarray]) -> None:
    """Warn of images without a face, role by role, and of people whom the gallery lacks though probes show them."""
    import numpy as np

    from lrkd.evaluation.identification import OUTSIDE

    gone = np.zeros(len(faces), bool) if faces.missing is None else faces.missing
    for role, some in roles.items():
        if gone[some].any():
            what = "their people's probes" if role == "gallery" else "they"
            count = {"unmated": "they raise no false alarm", "distractor": "they are not searched"}
            said = count.get(role, f"{what} count as misses")
            _warn(f"{faces.name}: {role}: {_unfound(faces, some)}: {said}")
    asked = np.concatenate(
        [np.empty(0, np.int64), *(some for role, some in roles.items() if role not in (*OUTSIDE, "gallery"))]
    )
    lacking = np.setdiff1d(faces.labels[asked], faces.labels[roles.get("gallery", asked)])
    if len(lacking):
        probes = int(np.isin(faces.labels[asked], lacking).sum())
        names = _few(faces.names[label] for label in lacking)
        _warn(f"{faces.name}: no image in the gallery shows {names}: {probes} of {len(asked)} probes are misses")


def _finish(table: pd.DataFrame, out: Path | None, kind: Table, **known: str | None) -> None:
    """Print the table, and add it to a file with what tells its rows from those of other calls."""
    _show(table)
    if out:
        kind.merge(out, table.assign(**known))


def _told(arguments: argparse.Namespace) -> dict[str, str]:
    """What tells the rows of this call from those of others, beside what the table shows."""
    return {"config": _origin(arguments.network), "unseen": "yes" if arguments.unseen else "no"}


def _origin(network: Path) -> str:
    """What tells networks apart in a table: a run's hash, the beginning of the SHA-256 of a checkpoint."""
    if network.is_dir():
        return network.resolve().name.rpartition("-")[2]
    with network.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:10]


def _study(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from lrkd.study import answer, experiment, grids, presets, results, runner

    over = runner.over_after(arguments.budget)
    scale = presets.scale(arguments.scale)
    if (arguments.name == "answer") != bool(arguments.part):
        raise ConfigError(f"--part goes with study answer: {', '.join(answer.PARTS)}")
    if arguments.name == "answer":
        return _answer(arguments, scale, over)
    ladder = results.read_table(arguments.ladder) if arguments.ladder else None
    wanted = grids.specs(arguments.name, scale, arguments.data, ladder)
    if arguments.list:
        there = [(spec, experiment.find_run(spec, arguments.runs)) for spec in wanted]
        _show(pd.DataFrame({"run": run.path.name, "finished": run.finished} for _, run in there))
        return
    known = _known(arguments)
    _keep_scores(arguments, wanted, known)

    def write(frame: pd.DataFrame) -> None:
        if arguments.out:
            results.RUNS.merge(arguments.out, results.without_test(frame) if arguments.name == "ladder" else frame)

    if arguments.launcher:
        _launch(arguments, wanted, known, write)

    table = runner.run_study(
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
        results.SCORES.merge(arguments.scores, results.score_table(wanted, arguments.runs))
    if arguments.pairs:
        results.PAIRS.merge(arguments.pairs, results.pair_table(wanted, arguments.runs))
    if arguments.traces:
        results.TRACES.merge(arguments.traces, results.trace_table(wanted, arguments.runs))
    test = table[table["protocol"] == ("validation" if arguments.name == "ladder" else "test")]
    _show(test.groupby(["role", "side", "method"], sort=False)["accuracy"].agg(["mean", "std", "count"]).reset_index())


def _known(arguments: argparse.Namespace) -> pd.DataFrame | None:
    """The results table that is there; DataError, before anything is trained, for a file that cannot be added to."""
    from lrkd.study import results

    kinds = {"out": results.RUNS, "scores": results.SCORES, "pairs": results.PAIRS, "traces": results.TRACES}
    given = {name: getattr(arguments, name) for name in kinds if getattr(arguments, name)}
    if len(set(given.values())) < len(given):
        raise ConfigError(f"{', '.join(f'--{name}' for name in given)}: expected a file of its own for each table")
    for name, path in given.items():
        kinds[name].check(path)
    return results.RUNS.read(arguments.out) if arguments.out and arguments.out.exists() else None


def _keep_scores(arguments: argparse.Namespace, wanted: Sequence[study_spec.Spec], known: pd.DataFrame | None) -> None:
    """Raise ConfigError where new histograms would lack runs that the old ones have."""
    from lrkd.study import experiment
    from lrkd.study import spec as study_spec

    if known is not None and arguments.scores and arguments.scores.exists():
        named = set(known["config"])
        only = [
            s
            for s in wanted
            if study_spec.config_hash(s) in named and not experiment.find_run(s, arguments.runs).finished
        ]
        if only:
            raise ConfigError(
                f"{arguments.scores}: would lose {len(only)} runs, which {arguments.out} has and the store has not: "
                f"leave out --scores, or name another file"
            )


def _answer(arguments: argparse.Namespace, scale: presets.Scale, over: Callable[[], bool]) -> None:
    import pandas as pd

    from lrkd.study import answer

    tables = arguments.tables or Path("book") / "results"
    if not tables.is_dir():
        raise ConfigError(f"tables is {tables}: no such folder; --tables names the one with the tables of study answer")
    if arguments.list:
        return _show(pd.DataFrame(answer.listed(arguments.part, scale, tables, arguments.data)))
    table = answer.run(
        arguments.part,
        scale,
        tables,
        arguments.runs,
        source=arguments.data,
        workers=arguments.workers,
        device=arguments.device,
        stop=over,
    )
    left = sum(not row["there"] for row in answer.listed(arguments.part, scale, tables, arguments.data))
    print(f"{answer.table_path(tables, arguments.part)}: {table['config'].nunique()} runs; {left} are still to come.")


def _launch(
    arguments: argparse.Namespace,
    wanted: Sequence[study_spec.Spec],
    known: pd.DataFrame | None,
    write: Callable[[pd.DataFrame], None],
) -> None:
    """Queue the study's jobs and wait for them, with the table so far written from time to time."""
    from lrkd.study import cluster, experiment, results

    parameters: dict[str, Any] = {}
    for given in arguments.job:
        name, sign, value = given.partition("=")
        if not sign:
            raise ConfigError(f"job is {given!r}: NAME=VALUE is right, as gpus_per_node=1")
        parameters[name] = int(value) if value.isdecimal() else value
    where = experiment.store_dir(arguments.runs).resolve()
    job = cluster.Job(wanted, where, arguments.workers, arguments.device, arguments.budget, known)
    jobs = cluster.submit(job, arguments.jobs, arguments.launcher, where / "jobs", parameters)
    print(f"jobs {', '.join(job.job_id for job in jobs)}; logs in {where / 'jobs'}", flush=True)

    def look() -> None:
        table = results.results_table(wanted, where, known)
        if not table.empty:
            write(table)

    cluster.wait(jobs, look)


def _attention(arguments: argparse.Namespace) -> None:
    from lrkd.study import attention_study, grids, presets

    attention_study.TABLE.check(arguments.out)
    wanted = grids.specs("attention", presets.scale(arguments.scale), arguments.data)
    table, maps = attention_study.gather(wanted, arguments.runs)
    if arguments.out:
        attention_study.TABLE.merge(arguments.out, table)
    if arguments.maps:
        attention_study.save_maps(arguments.maps, maps)
    fused = table[table["map"] == "fused"]
    columns = ["cosine_same", "cosine_other", "pearson_same", "pearson_other", "rank", "pointing", "accuracy"]
    _show(fused.groupby(["kind", "role", "side", "method"], sort=False)[columns].mean().reset_index())


def _adapt(arguments: argparse.Namespace) -> None:
    from lrkd.study import experiment, grids, presets, shift_study
    from lrkd.study import spec as study_spec

    shift_study.TABLE.check(arguments.out)
    chosen = presets.scale(arguments.scale)
    wanted = grids.specs("aird", chosen, arguments.data)
    if arguments.data == study_spec.PROCEDURAL:  # what trained them is in the matrix of kernels, which photographs lack
        others = [spec for spec in grids.specs("kernels", chosen) if spec.preset != wanted[-1].preset]
        wanted = [*wanted, *others]

    def write(frame: pd.DataFrame) -> None:
        if arguments.out:
            shift_study.TABLE.merge(arguments.out, frame)

    known = shift_study.TABLE.read(arguments.out) if arguments.out and arguments.out.exists() else None
    device = experiment.device_of(arguments.device)
    table = shift_study.gather(wanted, arguments.runs, known=known, on_table=write, device=device)
    write(table)
    there = set(table["config"])
    lacking = [spec for spec in wanted if spec.role == "student" and study_spec.config_hash(spec) not in there]
    if missing := {f"{spec.method.name} ({spec.preset})" for spec in lacking}:
        print(f"Left out, as not all of their runs have finished: {', '.join(sorted(missing))}.")
    test = shift_study.gains(table[table["part"] == "test"])
    _show(test.groupby(["shift", "level", "method"], sort=False)[["source", "accuracy", "gain"]].mean().reset_index())


def _export(arguments: argparse.Namespace) -> None:
    import numpy as np
    import pandas as pd

    from lrkd.onnx import export, recogniser
    from lrkd.study.measures import evaluation_preset, pairs_of

    subject, out = _subject(arguments), arguments.out
    if isinstance(subject.network, recogniser.Recogniser):
        raise ConfigError(f"{arguments.network}: is exported already: a run's folder or a checkpoint is right")
    faces, sides, metadata = _schooling(subject, arguments.data)
    calibration = None
    if arguments.format == "int8" and faces is not None:
        train = faces.train.images
        index = np.linspace(0, len(train) - 1, min(512, len(train))).astype(np.int64)
        parts = [
            recogniser.inputs(subject.network, train[part], side=side, preset=subject.preset)
            for side, part in zip(sides, np.array_split(index, len(sides)), strict=True)
            if len(part)
        ]
        calibration = np.concatenate(parts)
    elif arguments.format == "int8":
        raise ConfigError("data is not given: int8 takes its ranges from training people: --data, a prepared folder")
    made = export.export(subject.network, out, arguments.format, calibration=calibration, metadata=metadata)
    row: dict[str, Any] = {"file": str(out), "format": arguments.format, "bytes": made.bytes}
    if faces is not None:
        side, preset = sides[0], evaluation_preset(subject.preset)
        pairs = pairs_of(faces.validation)
        found = recogniser.agreement(
            subject.network.cpu(),
            made,
            faces.validation,
            side=side,
            preset=preset,
            mirror="first" if subject.mirror_first else True,
        )
        told = {"threshold_data": faces.validation.name, "false_match_rate": f"{found.false_match:.4f}"}
        export.annotate(out, {"threshold": f"{found.threshold:.4f}", **told})
        row |= {"bytes": out.stat().st_size, "cosine": found.cosine.mean(), "lowest": found.cosine.min()}
        row |= {"accuracy_torch": found.network, "accuracy_file": found.file, "threshold": found.threshold}
        row |= {"pairs": len(pairs), "data": faces.validation.name, "side": side or subject.network.size}
    _show(pd.DataFrame([row]))


def _schooling(subject: Subject, path: str | None) -> tuple[Splits | None, list[int | None], dict[str, object]]:
    """What a network was trained on, or for a checkpoint the prepared folder `path`: data, sides, and notes on them."""
    from lrkd.data.prepared import load_prepared, prepared, resized
    from lrkd.study import presets
    from lrkd.study import spec as study_spec
    from lrkd.study.measures import evaluation_preset

    pass

    metadata: dict[str, object] = {"preset": evaluation_preset(subject.preset), "network": subject.name}
    metadata |= {"images": subject.size} | ({"mirror": "first"} if subject.mirror_first else {})
    if subject.run is None:
        faces = None if path is None else resized(prepared(path), subject.network.size)
        return faces, [None], metadata | {"side": subject.network.size}
    if path is not None:
        raise ConfigError(f"data is {path!r}: it goes with a checkpoint; a run is measured on its own data")
    run, source = subject.run, subject.run.result["source"]
    scale, given = presets.scale(run.config["scale"]), run.config.get("side")
    faces = study_spec.splits(scale, source)
    for part in ("train", "validation"):
        if getattr(faces, part).digest != run.config["data"].get(part):
            raise DataError(f"{source}: is not the data that {run.path} was trained on")
    # The largest first: what is trained for several sides is measured at that one.
    sides = sorted(given, reverse=True) if isinstance(given, list) else [given]
    procedural = source == study_spec.PROCEDURAL
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
        import numpy as np

        from lrkd.onnx import recogniser

        return np.stack([recogniser.photograph(path, self._size) for path in self._paths[some]])


def _seen(arguments: argparse.Namespace) -> tuple[np.ndarray, Subject, int]:
    """The embeddings of the images, (N,D), without mirror images; the network; the side that it saw."""
    from lrkd.evaluation.embedding import embed
    from lrkd.study.measures import evaluation_preset

    pass

    subject = _subject(arguments)
    size = subject.network.size
    images, preset = _Photographs(arguments.images, size), evaluation_preset(subject.preset)
    found = embed(subject.network.cpu(), images, side=arguments.side, preset=preset, mirror=False)
    return found, subject, arguments.side or size


def _rendered(subject: Subject) -> str:
    """Why a network says nothing of photographs; empty where it may."""
    from lrkd.study import spec as study_spec

    told = str(subject.notes.get("threshold_data", "")), str(subject.notes.get("data", ""))
    if not any(name.split("/")[0] == study_spec.PROCEDURAL for name in told):
        return ""
    return f"{subject.name} was trained on rendered faces ({study_spec.PROCEDURAL}) and does not recognise photographs"


def _embed_photographs(arguments: argparse.Namespace) -> None:
    import numpy as np

    found, subject, side = _seen(arguments)
    with atomic(arguments.out, "wb") as file:
        np.save(file, found)
    print(f"{arguments.out}: {found.shape[0]} embeddings of {found.shape[1]} numbers, of images of {side} px")
    if why := _rendered(subject):
        _warn(f"{why}: train on photographs (`lrkd train --data`) for embeddings that do")


def _compare(arguments: argparse.Namespace) -> None:
    from lrkd.evaluation.verification import cosine_scores

    found, subject, side = _seen(arguments)
    notes, cosine = subject.notes, float(cosine_scores(found[:1], found[1:])[0])
    print(f"cosine {cosine:.4f}")
    if why := _rendered(subject):
        print(
            f"No verdict: {why}.\nA threshold from rendered faces does not hold there: two people may well lie above "
            "it. Train on photographs (`lrkd train --data`) and `lrkd export` that run."
        )
        return
    try:
        threshold, known = float(notes["threshold"]), int(notes["side"])
    except (KeyError, ValueError):
        print("The model carries no threshold to hold that against.")
        return
    if known != side:
        print(f"Its threshold was found at {known} px and these images have {side}: --side {known} compares there.")
        return
    where, who = ("Above", "the same person") if cosine > threshold else ("Not above", "two people")
    told, rate = notes.get("threshold_data"), notes.get("false_match_rate")
    of = f"the pairs of {told}" if told else "its validation pairs"
    matches = f", {rate} of whose impostor pairs lie above it" if rate else ""
    print(
        f"{where} {threshold:.4f}, the threshold that best told {of} apart{matches}: rather {who}.\n"
        "That holds for faces cropped as those were, and it is a best guess and no proof."
    )


def _runs(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from lrkd.study import experiment
    from lrkd.study import store as run_store

    store = experiment.store_dir(arguments.runs)
    found = run_store.list_runs(store)
    if not found:
        raise MissingError(f"{store}: there are no runs here; `lrkd train` makes one, --runs names another store")
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


def _hash(run: run_store.Run) -> str:
    return run.path.name.rpartition("-")[2]


def _show_runs(found: Sequence[run_store.Run], wanted: Sequence[str]) -> None:
    for first in wanted:
        chosen = [run for run in found if _hash(run).startswith(first)]
        if not chosen:
            raise MissingError(
                f"{first}: no run of this store has a configuration hash that begins so; --runs names another"
            )
        for run in chosen:
            told = {"run": str(run.path), "config": run.config, "result": run.result if run.finished else None}
            print(json.dumps(told, indent=1))


def _write_configs(found: Sequence[run_store.Run], tables: Sequence[Path], out: Path) -> None:
    """Add the configurations of the runs that the tables name."""
    import pandas as pd

    from lrkd.study import store as run_store

    DESCRIBED.check(out)
    others = [path for path in tables if path.resolve() != out.resolve()]
    named = [read_table(path).get("config", pd.Series(dtype=str)) for path in others]
    wanted = set().union(*(column.dropna() for column in named))
    made = [run for run in found if run.finished and _hash(run) in wanted]
    rows = [{"config": _hash(run), "commit": run.result["commit"], **run_store.flatten(run.config)} for run in made]
    order = list(DESCRIBED.columns)
    table = pd.DataFrame(rows, columns=None if rows else order, dtype=object)
    DESCRIBED.merge(out, table.sort_values(order, key=lambda column: column.astype(str)))
    there = len(wanted & set(DESCRIBED.read(out)["config"]))
    print(f"{out}: {there} runs of {len(wanted)} that are named")


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
    except LrkdError as error:
        return _fail(str(error), error.status)
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
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; it may not have been imported
            raise
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
