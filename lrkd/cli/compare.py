"""`lrkd compare`."""

import argparse
from pathlib import Path

from lrkd.cli import photographs
from lrkd.cli.arguments import add_photographs
from lrkd.cli.output import warn
from lrkd.cli.subject import open_subject
from lrkd.evaluation.verification import cosine_scores


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_photographs(parser)
    parser.add_argument("images", type=Path, nargs=2, metavar="IMAGE", help=photographs.FORMATS)


def run(arguments: argparse.Namespace) -> None:
    """Print the cosine of the two, and on which side of the network's threshold it lies."""
    subject = open_subject(arguments.network, arguments.channels)
    found, note = photographs.embed_photographs(subject, arguments.images, arguments.side, arguments.cropped)
    notes, cosine = subject.notes, float(cosine_scores(found[:1], found[1:])[0])
    if note:
        warn(note)
    print(f"similarity {cosine:.4f}")
    if why := photographs.why_not(subject):
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
    side = arguments.side or subject.network.size
    if known != side:
        print(f"Its threshold was found at {known} px and these images have {side}: --side {known} compares there.")
        return
    where, who = ("Above", "the same person") if cosine > threshold else ("Not above", "two people")
    of = notes.get("threshold_data") or "its validation people"
    print(f"{where} the threshold {threshold:.4f}: rather {who}.")
    if rate := notes.get("false_match_rate"):
        print(f"That threshold takes a share of {rate} of the impostor pairs of {of} for one person.")
    data, faces = notes.get("trained_on") or notes.get("data") or "data that it does not name", notes.get("faces")
    print(
        f"The model was trained on {data}{f', faces framed by {faces}' if faces else ''}. The verdict holds for faces "
        "like those, and it is a best guess and no proof."
    )
