"""`lrkd identify`."""

import argparse
from collections.abc import Mapping

import numpy as np
import pandas as pd

from lrkd.cli.arguments import add_evaluation
from lrkd.cli.output import first_few, show, warn
from lrkd.cli.subject import embed, identifier, open_subject, warn_of_framing
from lrkd.cli.trained_on import missing_faces, roles_to_score
from lrkd.data.prepared import load_prepared, resized_faces
from lrkd.data.tables import Faces
from lrkd.errors import DataError
from lrkd.evaluation.endpoints import gallery_and_probes
from lrkd.evaluation.identification import OUTSIDE, fuse, identification
from lrkd.files import Table
from lrkd.study import experiment
from lrkd.study.measures import evaluation_preset

TABLE = Table(
    "lrkd identify",
    ("config", "data", "digest", "split", "side", "degradation", "unseen"),
    ("data", "split", "side", "degradation", "network"),
)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_evaluation(parser, "the one that the network was trained for")
    data = "a prepared folder with roles, as TinyFace has them, or of people with two images or more"
    parser.add_argument("--data", metavar="DIR", required=True, help=data)
    split = "only the people of this split, as in SCface's test; distractors and unmated probes stay (default: all)"
    parser.add_argument("--split", help=split)


def run(arguments: argparse.Namespace) -> None:
    """Identify at every side; print the table, and add it to --out."""
    TABLE.check(arguments.out)
    device = experiment.device_of(arguments.device)
    subject = open_subject(arguments.network, arguments.channels)
    whole = load_prepared(arguments.data)
    warn_of_framing(subject, arguments.data)
    rows = {
        role: whole.rows(role, None if role in OUTSIDE else arguments.split)
        for role in whole.roles
        if role not in ("train", "verification")
    }
    if not whole.roles and arguments.split is None:
        rows = _first_and_others(whole.faces)
    if not any(map(len, rows.values())):
        raise DataError(f"{arguments.data}: expected roles in its manifest, or a person with two images, got neither")
    rows = roles_to_score(subject, whole, rows, arguments.unseen)
    ends = np.cumsum([0, *map(len, rows.values())])
    roles = {role: np.arange(*ends[k : k + 2]) for k, role in enumerate(rows) if ends[k] < ends[k + 1]}
    faces = whole.faces.subset(np.concatenate(list(rows.values())), relabel=False)
    _warn_of_misses(faces, roles)
    faces = resized_faces(faces, subject.size)
    preset = evaluation_preset(arguments.degradation or subject.preset)
    tables = []
    for side in arguments.side or [subject.own]:
        features = fuse(embed(subject, faces.images, side, preset, device))
        table = identification(features, faces.labels, roles, missing=faces.missing)
        table.insert(0, "data", faces.name)
        table.insert(1, "side", side or subject.size)
        tables.append(table.assign(degradation="none" if side is None else preset, network=subject.name))
    table = pd.concat(tables, ignore_index=True)
    show(table)
    if arguments.out:
        seen = "yes" if arguments.unseen else "no"
        known = {"split": arguments.split, "config": identifier(arguments.network), "unseen": seen}
        TABLE.merge(arguments.out, table.assign(**known, digest=faces.digest))


def _first_and_others(faces: Faces) -> dict[str, np.ndarray]:
    """Roles for a folder that has none: of each person the first image is searched, and the others ask."""
    first, others = gallery_and_probes(faces.labels)
    if not len(others):
        return {}
    warn(f"{faces.name}: has no roles: the first image of each person is the gallery, the others are probes")
    return {"gallery": first, "probe": others}


def _warn_of_misses(faces: Faces, roles: Mapping[str, np.ndarray]) -> None:
    """Warn of images without a face, role by role, and of people whom the gallery lacks though probes show them."""
    gone = np.zeros(len(faces), bool) if faces.missing is None else faces.missing
    for role, some in roles.items():
        if gone[some].any():
            what = "their people's probes" if role == "gallery" else "they"
            count = {"unmated": "they raise no false alarm", "distractor": "they are not searched"}
            said = count.get(role, f"{what} count as misses")
            warn(f"{faces.name}: {role}: {missing_faces(faces, some)}: {said}")
    asked = np.concatenate(
        [np.empty(0, np.int64), *(some for role, some in roles.items() if role not in (*OUTSIDE, "gallery"))]
    )
    lacking = np.setdiff1d(faces.labels[asked], faces.labels[roles.get("gallery", asked)])
    if len(lacking):
        probes = int(np.isin(faces.labels[asked], lacking).sum())
        names = first_few(faces.names[label] for label in lacking)
        warn(f"{faces.name}: no image in the gallery shows {names}: {probes} of {len(asked)} probes are misses")
