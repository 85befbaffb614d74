"""`lrkd compare`."""

import argparse
from pathlib import Path

from lrkd.cli import photographs
from lrkd.cli.arguments import add_photographs
from lrkd.cli.subject import open_subject
from lrkd.evaluation.verification import cosine_scores


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_photographs(parser)
    parser.add_argument("images", type=Path, nargs=2, metavar="IMAGE", help=photographs.FORMATS)


def run(arguments: argparse.Namespace) -> None:
    """Print the cosine of the two, and on which side of the network's threshold it lies."""
    subject = open_subject(arguments.network, arguments.channels)
    shown = photographs.embed_photographs(subject, arguments.images, arguments.side, arguments.cropped)
    notes, cosine = subject.notes, float(cosine_scores(shown.features[:1], shown.features[1:])[0])
    print(f"similarity {cosine:.4f}")
    if why := photographs.no_verdict(subject, shown, arguments.side or subject.own or subject.network.size):
        print(f"No verdict: {why}.")
        return
    threshold = float(notes["threshold"])
    where, who = ("Above", "the same person") if cosine > threshold else ("Not above", "two people")
    print(f"{where} the threshold {threshold:.4f}: rather {who}.")
    if rate := notes.get("false_match_rate"):
        of = notes.get("threshold_data") or "its validation people"
        print(f"That threshold takes a share of {rate} of the impostor pairs of {of} for one person.")
    data, faces = notes.get("trained_on") or notes.get("data") or "data that it does not name", notes.get("faces")
    print(
        f"The model was trained on {data}{f', faces framed by {faces}' if faces else ''}. The verdict holds for faces "
        "like those, and it is a best guess and no proof."
    )
