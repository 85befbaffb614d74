"""Which of the tested people and images a network was trained on: a warning, or with --unseen the others alone."""

from collections.abc import Mapping

import numpy as np

from lrkd.cli.output import first_few, warn
from lrkd.cli.subject import Subject
from lrkd.data.overlap import overlap
from lrkd.data.pairs import Pairs
from lrkd.data.prepared import Prepared
from lrkd.data.tables import Faces
from lrkd.errors import ConfigError, DataError
from lrkd.study import presets
from lrkd.study import spec as study_spec


def _overlap(subject: Subject, whole: Prepared, rows: np.ndarray, unseen: bool) -> tuple[str, np.ndarray] | None:
    """Whom of these rows the network learnt from, and (N,) bool where; None where that is nobody or is not known."""
    faces = whole.faces
    tested = faces.subset(rows, relabel=False)
    own, seen = str(subject.notes.get("data") or "").partition("/")[0], np.zeros(len(faces), bool)
    if own == study_spec.PROCEDURAL:
        return None  # rendered people are in no photograph
    why = "nothing names its data"
    if own:
        why = f"it was trained on {own}, and its run is not in the store ($LRKD_RUNS, else ./runs) to say on whom"
    if subject.run is not None:
        run, source = subject.run, subject.run.result["source"]
        try:
            train = study_spec.splits(presets.scale(run.config["scale"]), source).train
            if train.digest == run.config["data"].get("train"):
                found = overlap(train, tested)
                seen[rows] = found.rows
                return (str(found), seen) if found else None
            why = f"{source} has changed since"
        except DataError as error:
            why = str(error)
        if not unseen:
            warn(f"whether {subject.name} was trained on people of {tested.name} is not known: {why}")
    elif own and own in (faces.name, faces.name.rpartition("-")[0]):  # data_prep.jpeg adds -jpeg88
        seen[rows] = np.isin(tested.labels, whole.splits.get("train", tested.labels))
        return (f"{own}, whose training people it may know", seen) if seen.any() else None
    if unseen:
        raise ConfigError(f"--unseen: on whom {subject.name} was trained is not known: {why}")
    return None


def pairs_to_score(subject: Subject, whole: Prepared, pairs: Pairs, unseen: bool) -> Pairs:
    """Keep the pairs to be scored: all, after a warning about those trained on, or with `unseen` the others.

    Of the others each fold keeps as many genuine as impostor pairs: an impostor pair shows two people who may have been
    trained on, so more of them go, and guessing would be right more often than not. Where only the name of the training
    set is known, and it is this set's, those whom the set itself gives to training count as seen.

    Raises:
        ConfigError: With `unseen`, where nobody knows what the network was trained on.
        DataError: With `unseen`, where no pair is left.
    """
    met = _overlap(subject, whole, np.unique(np.concatenate([pairs.left, pairs.right])), unseen)
    if met is None:
        return pairs
    found, seen = met
    shown = pairs.touch(seen)
    said = f"{whole.faces.name}: {subject.name} was trained on {found}: {shown.sum()} of {len(pairs)} pairs"
    if not unseen:
        warn(f"{said} show them; --unseen scores the rest alone")
        return pairs
    rest = pairs.keep(np.where(seen, -1, np.arange(len(seen))))
    even = None if rest is None else rest.balanced()
    if rest is None or even is None:
        raise DataError(f"{said} show them, and --unseen leaves no pairs of both kinds to score")
    cut = f", and {len(rest) - len(even)} more, so that half of each fold is genuine" if len(rest) > len(even) else ""
    warn(f"{said} show them and are left out{cut}")
    return even


def roles_to_score(
    subject: Subject, whole: Prepared, roles: Mapping[str, np.ndarray], unseen: bool
) -> dict[str, np.ndarray]:
    """Keep the rows of each role to be scored: all, after a warning, or with `unseen` those not trained on.

    Raises:
        ConfigError: With `unseen`, where nobody knows what the network was trained on.
        DataError: With `unseen`, where no gallery or no probe is left.
    """
    met = _overlap(subject, whole, np.unique(np.concatenate(list(roles.values()))), unseen)
    if met is None:
        return dict(roles)
    found, seen = met
    counts = first_few((f"{seen[some].sum()} of {len(some)} {role}" for role, some in roles.items()), len(roles))
    said = f"{whole.faces.name}: {subject.name} was trained on {found}: {counts}"
    if not unseen:
        warn(f"{said}; --unseen scores the rest alone")
        return dict(roles)
    rest = {role: some[~seen[some]] for role, some in roles.items()}
    asked = [role for role in rest if role == "probe" or role.startswith("distance")]
    if not len(rest.get("gallery", ())) or not any(len(rest[role]) for role in asked):
        raise DataError(f"{said}; --unseen leaves no gallery or no probes to score")
    warn(f"{said}; they are left out")
    return rest


def missing_faces(faces: Faces, rows: np.ndarray | None = None) -> str:
    """Say how many of the images (of the rows) show no face that was found, and name the first of them."""
    gone = np.zeros(len(faces), bool) if faces.missing is None else faces.missing
    at = np.flatnonzero(gone) if rows is None else rows[gone[rows]]
    first = "" if faces.sources is None else f" ({first_few(faces.sources[row] for row in at)})"
    return f"no face was found in {len(at)} image{'s' * (len(at) != 1)}{first}"
