"""Arguments that several commands share, and the types of their values."""

import argparse
import os
import stat
from pathlib import Path

from lrkd.data.degradation import PRESETS
from lrkd.models.backbones import BUILDERS
from lrkd.study import presets
from lrkd.study.presets import DESIGNS
from lrkd.study.spec import PROCEDURAL


def output_file(text: str) -> Path:
    """argparse type: a file that can be written, so that hours of training do not end in a typing error.

    A link stays one, and the file that it leads to is written. What is no file, such as a device, would be replaced.
    """
    path = Path(text)
    try:
        path = path.resolve() if path.is_symlink() else path
        good = stat.S_ISREG(path.stat().st_mode)
    except (OSError, RuntimeError) as error:  # not there yet, or too long a name, or a ring of links
        good = isinstance(error, FileNotFoundError)
    if not (good and os.access(path.parent, os.W_OK | os.X_OK)):
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists and can be written, got {text}")
    return path


def side_list(text: str) -> list[int]:
    """argparse type: sides in pixels, as 12 or 12,6."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected pixels, such as 12 or 12,6, got {text!r}") from error


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add --runs."""
    parser.add_argument("--runs", type=Path, metavar="DIR", help="the run store (default: $LRKD_RUNS, else ./runs)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", help="cpu, cuda or mps (default: cuda where it is there)")


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Add what a run is trained on and where: --scale, --data, --device, --runs."""
    parser.add_argument(
        "--scale",
        metavar="PRESET",
        help=f"{', '.join(presets.SCALES)} (default: $LRKD_SCALE, else gpu where CUDA is there, else cpu)",
    )
    parser.add_argument(
        "--data",
        default=PROCEDURAL,
        metavar="DIR",
        help="a prepared folder (see python -m data_prep), or procedural (default): faces rendered here",
    )
    add_device(parser)
    add_store(parser)


def add_student(parser: argparse.ArgumentParser) -> None:
    """Add --student."""
    parser.add_argument(
        "--student",
        default="",
        metavar="NETWORK",
        help=f"{', '.join(BUILDERS)}; for LR images at their own size {', '.join(DESIGNS)}; or one of yours, as "
        "nets.py:make (default: the scale's)",
    )


def add_teacher(parser: argparse.ArgumentParser) -> None:
    """Add --teacher."""
    parser.add_argument(
        "--teacher",
        default="",
        metavar="NETWORK",
        help=f"{', '.join(BUILDERS)}, which is trained first; or a folder of a run or of save_pretrained, a published "
        "checkpoint, an .onnx, an .npy of `lrkd embed --data`, or one of yours, as nets.py:make (default: the scale's)",
    )


def add_degradation(parser: argparse.ArgumentParser, default: str | None, said: str) -> None:
    """Add --degradation."""
    parser.add_argument(
        "--degradation", default=default, metavar="NAME", help=f"{', '.join(PRESETS)} (default: {said})"
    )


def add_network(parser: argparse.ArgumentParser, metavar: str, kinds: str) -> None:
    """Add the network that a command looks at, and --channels."""
    parser.add_argument("network", type=Path, metavar=metavar, help=kinds)
    parser.add_argument("--channels", choices=("RGB", "BGR"), help="that a checkpoint expects (default: its family's)")


def add_evaluation(parser: argparse.ArgumentParser, default_sides: str) -> None:
    """Add what `verify` and `identify` share: the network, --side, --degradation, --device, --out, --unseen."""
    kinds = "a folder of a run or of save_pretrained, an .onnx of `lrkd export`, or a published checkpoint"
    add_network(parser, "NETWORK", kinds)
    parser.add_argument(
        "--side",
        type=side_list,
        action="extend",
        metavar="PX[,PX...]",
        help=f"degrade the images to these sides (default: {default_sides}); at their own side nothing is resampled, "
        "but the degradation's blur stays",
    )
    add_degradation(parser, None, "the run's, or the publication's")
    add_device(parser)
    parser.add_argument(
        "--out", type=output_file, metavar="CSV", help="also write the table; its rows join those there"
    )
    parser.add_argument("--unseen", action="store_true", help="leave out people and images that it was trained on")


def add_photographs(parser: argparse.ArgumentParser) -> None:
    """Add what `embed` and `compare` share: the network, --side and --cropped."""
    add_network(parser, "MODEL", "a run's folder or one of save_pretrained, an .onnx file, or a published checkpoint")
    parser.add_argument("--side", type=int, metavar="PX", help="degrade the images to it (default: the network's own)")
    parser.add_argument(
        "--cropped",
        action="store_true",
        help="the images are crops of faces already; else faces are found and aligned (pip install 'lrkd[photos]')",
    )
