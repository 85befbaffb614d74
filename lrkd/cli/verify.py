"""`lrkd verify`."""

import argparse
from typing import Any

import numpy as np
import pandas as pd

from lrkd.cli.arguments import add_evaluation
from lrkd.cli.output import show, warn
from lrkd.cli.subject import embed, identifier, open_subject
from lrkd.cli.trained_on import missing_faces
from lrkd.cli.trial import Request, Trial, load_trial
from lrkd.evaluation.separation import tar_at_far
from lrkd.evaluation.verification import Verification
from lrkd.files import Table
from lrkd.study import experiment
from lrkd.study.measures import evaluation_preset

TABLE = Table(
    "lrkd verify",
    ("config", "data", "digest", "protocol", "side", "degradation", "threshold_from", "unseen"),
    ("data", "side", "accuracy", "network"),
)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_evaluation(parser, "the images as they are, then all sides of the network's scale")
    parser.add_argument("--data", metavar="DIR", help="a prepared folder (default for a run: its own test people)")
    parser.add_argument(
        "--protocol",
        help="with --data: a protocol of its pairs.csv (default: the only one; pairs are drawn where there is none)",
    )
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument(
        "--threshold",
        type=float,
        metavar="COSINE",
        help="judge by this and not by folds, which one pair suffices for; it is a plain cosine, as `lrkd export` "
        "finds one, and the table's column threshold of folds is none: a mean is subtracted before",
    )
    cut.add_argument(
        "--threshold-from",
        metavar="PROTOCOL",
        help="judge by the best threshold of another protocol (default: of view1-train for view1-test, which is one "
        "fold, and so on)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Verify at every side; print the table, and add it to --out."""
    TABLE.check(arguments.out)
    device = experiment.device_of(arguments.device)
    subject = open_subject(arguments.network, arguments.channels)
    asked = arguments.data, arguments.protocol, arguments.threshold, arguments.threshold_from, arguments.unseen
    trial = load_trial(Request(*asked), subject)
    preset = evaluation_preset(arguments.degradation or subject.preset)
    rows = []
    for side in arguments.side or subject.sides:
        found = trial.score(embed(subject, trial.faces.images, side, preset, device))
        degradation = "none" if side is None else preset
        setting = {"data": trial.faces.name, "side": side or subject.size}
        rows.append(setting | _measures(trial, found) | {"degradation": degradation, "network": subject.name})
    _warn_of_gaps(trial, found)
    table = pd.DataFrame(rows)
    show(table)
    if trial.threshold is None:
        print("The thresholds hold for cosines after the mean embedding is subtracted: none is one for --threshold.")
    if arguments.out:
        seen = "yes" if arguments.unseen else "no"
        known = {"protocol": trial.pairs.protocol, "config": identifier(arguments.network), "unseen": seen}
        TABLE.merge(arguments.out, table.assign(**known, digest=trial.faces.digest))


def _measures(trial: Trial, found: Verification) -> dict[str, Any]:
    pairs = trial.pairs
    both = len(np.unique(pairs.same)) == 2
    return {
        "accuracy": found.mean,
        "sd_of_folds": found.sd,
        "folds": len(found.accuracy),
        "threshold": found.threshold.mean(),
        "threshold_from": trial.threshold_from,
        "tar_at_far_1e-2": tar_at_far(found.scores, pairs.same, (0.01,))[0] if both else np.nan,
        "pairs": len(pairs),
        "missed": int(pairs.touch(trial.faces.missing).sum()),
    }


def _warn_of_gaps(trial: Trial, found: Verification) -> None:
    faces, pairs = trial.faces, trial.pairs
    share = np.mean(pairs.same)
    if 0.05 < abs(share - 0.5) < 0.5:
        guess = f"calling all of them genuine, or none, scores {max(share, 1 - share):.1%}"
        warn(f"{faces.name}: {pairs.same.sum()} of {len(pairs)} pairs are genuine: {guess}")
    if trial.threshold_from == "other folds" and len(found.accuracy) < trial.folds:
        warn(f"{faces.name}: {len(found.accuracy)} folds, as the others of {trial.folds} have no pairs")
    if missed := int(pairs.touch(faces.missing).sum()):
        warn(f"{faces.name}: {missing_faces(faces)}: {missed} pairs count as rejected, genuine ones as errors")
