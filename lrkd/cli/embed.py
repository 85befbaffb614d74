"""`lrkd embed`."""

import argparse
from pathlib import Path

import numpy as np

from lrkd.cli import photographs
from lrkd.cli.arguments import add_photographs, output_file
from lrkd.cli.output import warn
from lrkd.cli.subject import open_subject, warn_of_framing
from lrkd.data.prepared import load_prepared, resized_faces
from lrkd.errors import ConfigError
from lrkd.files import atomic


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_photographs(parser)
    parser.add_argument("images", type=Path, nargs="*", metavar="IMAGE", help=photographs.FORMATS)
    parser.add_argument(
        "--data", metavar="DIR", help="instead of images a prepared folder, a row a line of its manifest"
    )
    parser.add_argument("--out", type=output_file, metavar="NPY", required=True, help="(N,D) float32, a row an image")


def run(arguments: argparse.Namespace) -> None:
    """Write the embeddings."""
    if bool(arguments.images) == bool(arguments.data):
        raise ConfigError("expected images, or --data with a prepared folder, got both or neither")
    subject = open_subject(arguments.network, arguments.channels)
    if arguments.data:
        warn_of_framing(subject, arguments.data)
        images = resized_faces(load_prepared(arguments.data).faces, subject.size).images
        found = photographs.embed_plain(subject, images, arguments.side)
    else:
        found = photographs.embed_photographs(subject, arguments.images, arguments.side, arguments.cropped).features
    with atomic(arguments.out, "wb") as file:
        np.save(file, found)
    side = arguments.side or subject.own or subject.network.size
    print(f"{arguments.out}: {found.shape[0]} embeddings of {found.shape[1]} numbers, of images of {side} px")
    if why := photographs.why_not(subject):
        warn(f"{why}: train on photographs (`lrkd train --data`) for embeddings that do")
