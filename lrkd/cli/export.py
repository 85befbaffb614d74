"""`lrkd export`."""

import argparse
from typing import Any, Literal

import pandas as pd

from lrkd.cli.arguments import add_network, output_file
from lrkd.cli.output import show
from lrkd.cli.schooling import Schooling, calibration_inputs, load_schooling
from lrkd.cli.subject import Subject, open_subject
from lrkd.errors import ConfigError
from lrkd.onnx import export, recogniser
from lrkd.study.measures import evaluation_preset, pairs_of


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_network(parser, "RUN", "a run's folder or one of save_pretrained, or a published checkpoint")
    parser.add_argument("--format", choices=export.FORMATS, default="onnx", help="default: onnx, which is float32")
    parser.add_argument("--out", type=output_file, metavar="FILE", required=True, help="the file, as face.onnx")
    parser.add_argument("--data", metavar="DIR", help="unless it is a run: a prepared folder, to calibrate and measure")


def run(arguments: argparse.Namespace) -> None:
    """Write the file, compare it with its network, and print what that costs."""
    subject, out = open_subject(arguments.network, arguments.channels), arguments.out
    if isinstance(subject.network, recogniser.Recogniser):
        raise ConfigError(f"{arguments.network}: is exported already: expected a run's folder or a checkpoint")
    taught = load_schooling(subject, arguments.data)
    calibration = None
    if arguments.format == "int8":
        if taught.faces is None:
            raise ConfigError("data is not given: int8 takes its ranges from training people: --data DIR has them")
        calibration = calibration_inputs(subject, taught)
    made = export.export(subject.network, out, arguments.format, calibration=calibration, metadata=taught.metadata)
    row: dict[str, Any] = {"file": str(out), "format": arguments.format, "bytes": made.bytes}
    if taught.faces is not None:
        row |= _compared(subject, taught, made)
        row["bytes"] = out.stat().st_size
    show(pd.DataFrame([row]))


def _compared(subject: Subject, taught: Schooling, made: recogniser.Recogniser) -> dict[str, Any]:
    """Measure network and file on validation people, and note the threshold that is found there in the file."""
    assert taught.faces is not None
    validation, side, preset = taught.faces.validation, taught.sides[0], evaluation_preset(subject.preset)
    mirror: Literal["first"] | bool = "first" if subject.mirror_first else True
    found = recogniser.agreement(subject.network, made, validation, side=side, preset=preset, mirror=mirror)
    rates = {"false_match": found.false_match, "false_non_match": found.false_non_match}
    notes = {"threshold": f"{found.threshold:.4f}", "threshold_data": validation.name}
    export.annotate(made.path, notes | {f"{name}_rate": f"{rate:.4f}" for name, rate in rates.items()})
    return {
        "cosine": found.cosine.mean(),
        "lowest": found.cosine.min(),
        "accuracy_torch": found.network,
        "accuracy_file": found.file,
        "threshold": found.threshold,
        **rates,
        "pairs": len(pairs_of(validation)),
        "data": validation.name,
        "side": side or subject.network.size,
    }
