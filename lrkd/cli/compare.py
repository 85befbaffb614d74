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
    found = photographs.embed_photographs(subject, arguments.images, arguments.side)
    notes, cosine = subject.notes, float(cosine_scores(found[:1], found[1:])[0])
    print(f"cosine {cosine:.4f}")
    if why := photographs.why_not(subject):
        print(
            f"No verdict: {why}.\nA threshold from rendered faces does not hold there: two people may well lie above "
            "it. Train on photographs (`lrkd train --data`) and `lrkd export` that run."
        )
        return
    try:
        threshold, known = float(notes["threshold"]), int(notes["side"])
    except (KeyError, ValueError):
        print("The model carries no threshold to hold that against: `lrkd export` finds one, and its file carries it.")
        return
    side = arguments.side or subject.network.size
    if known != side:
        print(f"Its threshold was found at {known} px and these images have {side}: --side {known} compares there.")
        return
    where, who = ("Above", "the same person") if cosine > threshold else ("Not above", "two people")
    data, rate = notes.get("threshold_data"), notes.get("false_match_rate")
    of = f"the pairs of {data}" if data else "its validation pairs"
    matches = f", {rate} of whose impostor pairs lie above it" if rate else ""
    print(
        f"{where} {threshold:.4f}, the threshold that best told {of} apart{matches}: rather {who}.\n"
        "That holds for faces cropped as those were, and it is a best guess and no proof."
    )
