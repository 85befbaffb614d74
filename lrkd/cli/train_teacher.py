"""`lrkd train-teacher`."""

import argparse

from lrkd.cli.arguments import add_student
from lrkd.cli.train import add_training, train
from lrkd.study import presets
from lrkd.study.spec import teacher_spec


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_student(parser)
    add_training(parser)


def run(arguments: argparse.Namespace) -> None:
    """Train a teacher on HR images, and print its folder and accuracy."""
    scale = presets.scale(arguments.scale)
    train(teacher_spec(scale, arguments.seed, arguments.data, arguments.student), arguments)
