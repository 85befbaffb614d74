"""`lrkd embed`."""

import argparse
from pathlib import Path

import numpy as np

from lrkd.cli import photographs
from lrkd.cli.arguments import add_photographs, output_file
from lrkd.cli.output import warn
from lrkd.cli.subject import open_subject
from lrkd.files import atomic


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_photographs(parser)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help=photographs.FORMATS)
    parser.add_argument("--out", type=output_file, metavar="NPY", required=True, help="(N,D) float32, a row an image")


def run(arguments: argparse.Namespace) -> None:
    """Write the embeddings."""
    subject = open_subject(arguments.network, arguments.channels)
    found, note = photographs.embed_photographs(subject, arguments.images, arguments.side, arguments.cropped)
    with atomic(arguments.out, "wb") as file:
        np.save(file, found)
    side = arguments.side or subject.network.size
    print(f"{arguments.out}: {found.shape[0]} embeddings of {found.shape[1]} numbers, of images of {side} px")
    if note:
        warn(note)
    if why := photographs.why_not(subject):
        warn(f"{why}: train on photographs (`lrkd train --data`) for embeddings that do")
