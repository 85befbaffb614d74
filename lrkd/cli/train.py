"""`lrkd train`."""

import argparse
from contextlib import suppress
from pathlib import Path

from lrkd.cli.arguments import add_degradation, add_setting, add_student, add_teacher, side_list
from lrkd.cli.subject import open_subject, warn_of_framing
from lrkd.distill import methods
from lrkd.errors import ConfigError, LrkdError
from lrkd.study import experiment, presets
from lrkd.study.spec import Spec
from lrkd.training import distributed
from lrkd.training.acceleration import Speed
from lrkd.training.watch import LOGS


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    method = "one that `lrkd methods` lists, or of yours, as mine.py:METHOD (default: none)"
    parser.add_argument("--method", default="none", help=method)
    add_student(parser)
    add_teacher(parser)
    parser.add_argument(
        "--side",
        type=side_list,
        action="extend",
        metavar="PX[,PX...]",
        help="LR side in pixels; of several, one is drawn for each image (default: HR, not degraded)",
    )
    add_training(parser)
    parser.add_argument("--teacher-seed", type=int, default=0, metavar="N", help="which teacher (default: 0)")
    add_degradation(parser, "area-bicubic", "area-bicubic")


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add what `train` and `train-teacher` share: --seed, --sync-norm, --log, --scale, --data, --device, --runs."""
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, order and augmentation (default: 0)")
    parser.add_argument("--sync-norm", action="store_true", help="with torchrun: batch norm over all processes' images")
    parser.add_argument(
        "--log",
        action="append",
        choices=LOGS,
        help="beside metrics.csv and the bar: a table in the terminal, or files for TensorBoard in the run's folder",
    )
    add_setting(parser)


def run(arguments: argparse.Namespace) -> None:
    """Train a student, and print its folder and accuracy."""
    sides = sorted(set(arguments.side or ()), reverse=True)
    spec = Spec(
        methods.get(arguments.method),
        sides[0] if len(sides) == 1 else tuple(sides) or None,
        arguments.seed,
        presets.scale(arguments.scale),
        arguments.data,
        teacher_seed=arguments.teacher_seed,
        preset=arguments.degradation,
        student=arguments.student,
        teacher=arguments.teacher,
    )
    if arguments.teacher and not spec.has_teacher:
        said = "leave it out, or choose a method that learns from one, such as --method embedding-cos"
        raise ConfigError(f"teacher: method {spec.method.name!r} has none, got {arguments.teacher!r}: {said}")
    if spec.has_teacher and spec.teacher_kind in ("run", "onnx"):
        with suppress(LrkdError):  # where the teacher is loaded it says what is wrong
            warn_of_framing(open_subject(Path(spec.teacher).expanduser()), spec.source)
    train(spec, arguments)


def train(spec: Spec, arguments: argparse.Namespace) -> None:
    """Train a run, with the processes of torchrun where there are some, and print its folder and accuracy."""
    with distributed.init_distributed(experiment.device_of(arguments.device)) as device:
        speed, shown = Speed(sync_norm=arguments.sync_norm), arguments.log or True
        made = experiment.train(spec, arguments.runs, device=device, speed=speed, progress=shown)
        if distributed.rank():
            return
    measures = made.result["measures"]
    told = [f"{measures['test']['accuracy']:.2%} (test)", f"{measures['validation']['accuracy']:.2%} (validation)"]
    if "test-hr-lr" in measures:
        told += [f"{measures['test-hr-lr']['accuracy']:.2%} (HR against LR)"]
        told += [f"rank-1 {measures['identification']['rank1']:.2%}"]
    print(f"{made.path}\naccuracy on {spec.source}: {', '.join(told)}")
