"""Study `answer`: how long to train, which weights, and then what each method is worth in worlds nobody chose on.

Its parts are lists of runs that follow from the tables of the parts before: the tables are the memory, and a run
whose rows are there is not trained again. Any number of processes may share tables and run store.
"""

import base64
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrkd.errors import ConfigError, DataError, RunError
from lrkd.evaluation import endpoints
from lrkd.files import Table
from lrkd.study import results, runner
from lrkd.study.answer_plan import (
    ATTENTION,
    ENTRANTS,
    FEW,
    LENGTHS,
    LOGITS,
    MAIN,
    PHOTOGRAPHED,
    REST,
    Chosen,
    Entrant,
    Place,
    ladders,
    length,
    with_needs,
)
from lrkd.study.experiment import ended_well, find_run, git, store_dir
from lrkd.study.measures import RIGHT, pairs_of
from lrkd.study.presets import Scale
from lrkd.study.spec import PROCEDURAL, Spec, config_hash, faces_of
from lrkd.study.worlds import CHOOSING, JUDGING, Setting

PARTS = ("length", "ladders", "worlds", "attention", "photographs")


# -------------------------------------------------------------------------------------------------------------- parts


def plan(
    part: str, scale: Scale, source: str, tables: Path, entrants: Sequence[Entrant] = tuple(ENTRANTS.values())
) -> list[Spec]:
    """List the runs of a part as far as the tables so far say which they are, the most valuable first.

    Args:
        part: One of `PARTS`.
        scale: The preset.
        source: The data, as `Spec` has it.
        tables: The folder of the tables.
        entrants: Whose ladders are wanted, or who is judged; of parts `ladders` and `worlds`.

    Returns:
        The runs. Judged are those whose ladders have ended.

    Raises:
        DataError: A part before it has not ended.
        ConfigError: An unknown part, or photographs for another part than their own.
    """
    if part not in PARTS:
        raise ConfigError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
    if (part == "photographs") != (source != PROCEDURAL):
        raise ConfigError(
            f"data: expected a prepared folder for part photographs, and for that part alone, got {source!r}"
        )
    place = Place(scale, source)
    if part == "length":
        return _length(place)
    if part == "photographs":
        return _photographs(place, read(tables, part))
    epochs = length(read(tables, "length"))
    if part == "attention":
        return _attention(place, epochs, tables)
    chosen = ladders(replace(place, epochs=max(1, epochs // 2)), entrants, read(tables, "ladders"), "T")
    return chosen.wanted if part == "ladders" else _worlds(replace(place, epochs=epochs), chosen, entrants)


def _length(place: Place) -> list[Spec]:
    """The main entrants at every length in setting S, the short ones of all first."""
    return [
        replace(place, epochs=epochs).spec(entrant, world, "S")
        for epochs in LENGTHS
        for world in CHOOSING
        for entrant in MAIN
    ]


def _worlds(place: Place, chosen: Chosen, judged: Sequence[Entrant]) -> list[Spec]:
    """All entrants in setting T, the main ones in S and D, at the hardest side and then at the one before.

    Blocks of whole worlds: whatever is stopped has the same worlds for all that it compares. Raises DataError before
    the rates of `none` are known, at which all are trained.
    """
    all_of_them, hardest, easier = JUDGING, place.hardest, place.scale.sides[-2]
    blocks: list[tuple[Sequence[Entrant], Setting, Sequence[int], int]] = [
        (MAIN, "T", FEW, hardest),
        (MAIN, "S", FEW, hardest),
        (MAIN, "D", FEW[:4], hardest),
        (REST, "T", FEW, hardest),
        ((LOGITS,), "S", FEW, hardest),
        (MAIN, "T", all_of_them, hardest),
        (MAIN, "T", FEW, easier),
        (REST, "T", all_of_them, hardest),
        (REST, "T", FEW, easier),
        (MAIN, "S", FEW, easier),
        (MAIN, "D", FEW[:4], easier),
    ]
    judging = replace(place, lr=chosen.rate)
    return [
        judging.spec(entrant, world, setting, chosen.factor(entrant), side)
        for entrants, setting, worlds, side in blocks
        for world in worlds
        for entrant in entrants
        if entrant in judged and chosen.knows(entrant)
    ]


def _attention(place: Place, epochs: int, tables: Path) -> list[Spec]:
    """Ladders of attention by intervention, at the rate of part ladders, then six worlds of setting T."""
    before = read(tables, "ladders")
    half = replace(place, epochs=max(1, epochs // 2))
    chosen = ladders(half, ATTENTION, pd.concat([before, read(tables, "attention")]), "T")
    judged = replace(place, epochs=epochs, lr=chosen.rate)
    return [
        *(spec for spec in chosen.wanted if config_hash(spec) not in set(before["config"])),
        *(
            judged.spec(entrant, world, "T", chosen.factor(entrant))
            for world in FEW
            for entrant in (MAIN[0], *ATTENTION)
            if chosen.knows(entrant)
        ),
    ]


def _photographs(place: Place, table: pd.DataFrame) -> list[Spec]:
    """Ladders at half the recipe's length, then every entrant with seeds that nothing was chosen on."""
    epochs = place.scale.recipes["prepared"].student.epochs
    chosen = ladders(replace(place, epochs=max(1, epochs // 2)), PHOTOGRAPHED, table, "S")
    judged = replace(place, epochs=epochs, lr=chosen.lr)
    try:
        runs = [judged.spec(e, seed, "S", chosen.factor(e)) for seed in FEW for e in PHOTOGRAPHED]
    except DataError:  # a ladder goes on
        return chosen.wanted
    return [*chosen.wanted, *runs]


# -------------------------------------------------------------------------------------------------------------- tables

COLUMNS = (
    *("data", "scale", "role", "method", "weight", "trained", "setting", "world", "epochs", "lr", "people", "status"),
    *("side", "endpoint", "value", "n", "seconds", "device", "torch", "commit", "config"),
)


TABLE = Table("lrkd study answer", ("config",))


def table_path(tables: Path, part: str) -> Path:
    return tables / f"answer-{part}.csv"


def read(tables: Path, part: str) -> pd.DataFrame:
    """Read the table of a part; it is empty while there is none."""
    path = table_path(tables, part)
    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    return results.read_table(path, COLUMNS)


def right_table(wanted: Iterable[Spec], where: Path) -> pd.DataFrame:
    """Collect what each finished judging run had right: `config, side, endpoint, n, right` (see `inference.unpack`)."""
    rows = []
    for spec, run in ended_well(wanted, where):
        if spec.role == "teacher" or spec.world is None or not spec.world.judging:
            continue
        path = run.path / RIGHT
        try:
            with np.load(path, allow_pickle=False) as kept:
                bits = {name: kept[name].tobytes() for name in kept.files}
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read ({error}); remove the run directory") from error
        for name, packed in bits.items():
            side, _, endpoint = name.partition("/")
            code = base64.b64encode(min(packed, zlib.compress(packed, 9), key=len)).decode()
            rows.append((config_hash(spec), int(side), endpoint, run.result["measures"][name]["n"], code))
    return pd.DataFrame(rows, columns=["config", "side", "endpoint", "n", "right"])


def people_table(wanted: Iterable[Spec]) -> pd.DataFrame:
    """Collect who is shown in the pairs and by the probes of each judging world.

    Args:
        wanted: The runs.

    Returns:
        `config, data, scale, world, what, people`. what: "left", "right" (P,) and "probe"; people: base64 of
        little-endian uint16; config: of the people's digest.
    """
    rows, seen = [], set()
    for spec in wanted:
        if spec.world is None or not spec.world.judging or spec.role == "teacher":
            continue
        number = spec.world.number if spec.source == PROCEDURAL else -1
        if number in seen:
            continue
        seen.add(number)
        faces = faces_of(spec, "test")
        pairs, labels = pairs_of(faces), faces.labels
        shown = {"left": labels[pairs.left], "right": labels[pairs.right]}
        shown["probe"] = labels[endpoints.gallery_and_probes(labels)[1]]
        for what, who in shown.items():
            code = base64.b64encode(who.astype("<u2").tobytes()).decode()
            rows.append((faces.digest, faces.name.split("/")[0], spec.scale.name, number, what, code))
    return pd.DataFrame(rows, columns=["config", "data", "scale", "world", "what", "people"])


# --------------------------------------------------------------------------------------------------------------- runs


def run(
    part: str,
    scale: Scale,
    tables: Path,
    where: Path | None = None,
    *,
    source: str = PROCEDURAL,
    entrants: Sequence[Entrant] = tuple(ENTRANTS.values()),
    stop: Callable[[], bool] | None = None,
    **how: Any,
) -> pd.DataFrame:
    """Train what a part's table lacks, writing the table after every run; ladders go on as their results come in.

    Args:
        part: One of `PARTS`.
        scale: The preset.
        tables: The folder of the tables, and of claims.csv.
        where: The run store.
        source: The data, as `Spec` has it.
        entrants: As in `plan`.
        stop: Asked after every step; True ends the study there.
        how: `workers`, `device`, `progress` and `speed` of `runner.run_study`.

    Returns:
        The part's table.

    Raises:
        DataError: A part before it has not ended, or judging is to begin before the claims are committed.
    """
    stop, where = stop or (lambda: False), store_dir(where)
    path = table_path(tables, part)
    while True:
        known = read(tables, part)
        wanted = with_needs(plan(part, scale, source, tables, entrants))
        missing = [spec for spec in wanted if config_hash(spec) not in set(known["config"])]
        if stop() or not missing:
            return known
        if any(spec.world is not None and spec.world.judging for spec in missing):
            check_claims(tables)

        def write(frame: pd.DataFrame, missing: Sequence[Spec] = missing) -> None:
            if len(frame):
                TABLE.merge(path, frame)
                made = [find_run(spec, where) for spec in missing]
                results.DESCRIBED.merge(table_path(tables, "runs"), results.description(r for r in made if r.finished))
            judged = right_table(missing, where)
            if len(judged):
                TABLE.merge(tables / f"answer-{part}-right.csv", judged)
                there = set(judged["config"])
                TABLE.merge(
                    tables / f"answer-{part}-people.csv", people_table(s for s in missing if config_hash(s) in there)
                )

        runner.run_study(missing, where, on_table=write, stop=stop, **how)


def check_claims(tables: Path) -> None:
    """Raise DataError unless the claims are written down: claims.csv with the tables, committed in a checkout."""
    path = tables / "claims.csv"
    if not path.exists():
        raise DataError(f"{path}: is not there: claims are written down before the first run that judges them")
    try:
        inside = git(tables, "rev-parse", "--is-inside-work-tree") == "true"
    except (OSError, subprocess.CalledProcessError):
        return
    if inside and (
        not git(tables, "ls-files", "--", path.name) or git(tables, "status", "--porcelain", "--", path.name)
    ):
        raise DataError(f"{path}: differs from what is committed: commit the claims before judging them")


def listed(
    part: str, scale: Scale, source: str, tables: Path, entrants: Sequence[Entrant] = tuple(ENTRANTS.values())
) -> Iterator[dict[str, object]]:
    """List the runs of `plan`, the weight of each one's first term, and whether the part's table has it."""
    known = set(read(tables, part)["config"])
    for spec in with_needs(plan(part, scale, source, tables, entrants)):
        weight = next((term.weight for term in spec.method.terms), None)
        yield {"run": find_run(spec).path.name, "weight": weight, "measured": config_hash(spec) in known}
