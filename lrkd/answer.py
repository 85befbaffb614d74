"""Study `answer`: how long to train, which weights, and then what each method is worth in worlds nobody chose on.

Its four parts are lists of runs that follow from the tables of the parts before: the tables are the memory, and a run
whose rows are there is not trained again. Any number of processes may share tables and run store.
"""

import base64
import fcntl
import itertools
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lrkd import endpoints, methods, study
from lrkd.errors import ConfigError, DataError, RunError
from lrkd.experiment import PROCEDURAL, RIGHT, Spec, faces_of, find_run, key, pairs_of, store
from lrkd.methods import Method
from lrkd.scales import Scale
from lrkd.worlds import CHOOSING, JUDGING, Setting, World

PARTS = ("length", "ladders", "worlds", "photographs")
LENGTHS = (3, 6, 12, 24, 48)
ENOUGH = 0.005  # doubling the length must gain `none` at least this much of validation
CHOSEN_BY = ("lr-lr", "hr-lr")
# Rungs of a ladder as factors, the middle first: what is stopped has looked near what is usual. A best rung at an end
# is followed by up to MORE rungs beyond it.
WEIGHTS, RATES, MORE = (1.0, 0.25, 4.0, 1 / 16, 16.0), (1.0, 0.5, 2.0, 0.25, 4.0), 3
TEACHERS = 1000  # the teacher of world w has seed 1000 + w, and so neither the student's first weights nor its order


@dataclass(frozen=True)
class Entrant:
    """A method and what its student is shown: "small" images of one side, "mixed" sides, the sharp one too, or "hr".

    weighed_as: the entrant whose ladder it takes its weight from; "": its own. same_people: whether it needs a teacher
    of the student's own people, as the logits of classes do: there is no setting T for it.
    """

    method: str
    shown: str = "small"
    weighed_as: str = ""
    same_people: bool = False

    @property
    def name(self) -> str:
        """As results and claims call it: "fskd", "fskd mixed", "fskd hr"."""
        return self.method if self.shown == "small" else f"{self.method} {self.shown}"


MAIN = tuple(map(Entrant, ("none", "embedding-cos", "fskd", "fskd-l2", "askd")))
REST = (
    Entrant("none", "mixed"),
    Entrant("embedding-shuffled", weighed_as="embedding-cos"),
    Entrant("shuffled-teacher", weighed_as="fskd"),
    Entrant("askd-shuffled", weighed_as="askd"),
    Entrant("askd-constant", weighed_as="askd"),
    Entrant("embedding-cos", "mixed"),
    Entrant("fskd", "mixed"),
    Entrant("askd", "mixed"),
    Entrant("octuplet", "mixed"),
    Entrant("embedding-l2"),
    Entrant("aird"),
    Entrant("fskd-unit-l2"),
    Entrant("fskd-l1"),
    Entrant("fskd-cross"),
    Entrant("askd-centred"),
    Entrant("at"),
    Entrant("rkd"),
    Entrant("sp"),
    Entrant("embedding-own-side", weighed_as="embedding-cos"),
    Entrant("none", "hr"),
    Entrant("embedding-cos", "hr", weighed_as="embedding-cos"),
    Entrant("fskd", "hr", weighed_as="fskd"),
)
LOGITS = Entrant("logit-kd", same_people=True)
ENTRANTS = {entrant.name: entrant for entrant in (*MAIN, *REST, LOGITS)}
PHOTOGRAPHED = tuple(ENTRANTS[name] for name in ("none", "embedding-cos", "fskd", "fskd-l2", "askd", "none mixed"))
SEEDS = JUDGING[:6]  # of photographs


@dataclass(frozen=True)
class Place:
    """Where runs are: a scale, a source of faces, the length in epochs, the learning rate (None: the recipe's)."""

    scale: Scale
    source: str = PROCEDURAL
    epochs: int | None = None
    lr: float | None = None

    @property
    def hardest(self) -> int:
        return self.scale.sides[-1]

    def spec(
        self, entrant: Entrant, world: int, setting: Setting, factor: float = 1.0, side: int | None = None
    ) -> Spec:
        """The run of an entrant in a world, its weights times `factor`; `side` (the hardest) where it has one."""
        shown: dict[str, int | tuple[int, ...] | None] = {
            "small": self.hardest if side is None else side,
            "mixed": (self.scale.size, *self.scale.sides),
            "hr": None,
        }
        sides = shown[entrant.shown]
        method = methods.scaled(methods.get(entrant.method), factor)
        if method.teacher == "itself":  # it always shows the sharp image beside the small one
            sides = self.scale.sides
        return self._spec(method, sides, World(world, setting))

    def _spec(self, method: Method, side: int | tuple[int, ...] | None, world: World) -> Spec:
        return Spec(
            method,
            side,
            world.number,
            self.scale,
            self.source,
            teacher_seed=TEACHERS + world.number,
            world=world,
            epochs=self.epochs,
            lr=self.lr,
        )


def with_needs(wanted: Iterable[Spec]) -> list[Spec]:
    """The runs, each behind those that it needs, none twice (two settings may name the same run)."""
    found: dict[str, Spec] = {}
    for spec in wanted:
        for each in (*spec.needs.values(), spec):
            found.setdefault(key(each), each)
    return list(found.values())


# ---------------------------------------------------------------------------------------------------------- choosing


def validation(table: pd.DataFrame, wanted: Sequence[Spec]) -> float | None:
    """Mean validation accuracy, small against small and sharp against small, of runs that the table has.

    None while one of them is missing; -inf where one diverged. Of mixed sides the two hardest count.
    """
    values = []
    for spec in wanted:
        rows = table[(table["config"] == key(spec)) & (table["people"] == "validation")]
        if rows.empty:
            return None
        if (rows["status"] != "ok").any():
            return -np.inf
        sides = spec.scale.sides[-2:] if isinstance(spec.side, tuple) else (rows["side"].iloc[0],)
        values.append(rows.loc[rows["endpoint"].isin(CHOSEN_BY) & rows["side"].isin(sides), "value"].mean())
    return float(np.mean(values))


def curve(table: pd.DataFrame) -> pd.DataFrame:
    """Length -> mean validation of `none` over worlds and both protocols, of the table of part `length`.

    -> `epochs, value, gain` (over half the length, in the worlds that have both), by rising length.
    """
    chosen = table["people"].eq("validation") & table["role"].eq("student") & table["method"].eq("none")
    rows = table[chosen & table["endpoint"].isin(CHOSEN_BY)]
    by_world = rows.groupby(["epochs", "world"])["value"].mean().unstack("world")
    gains = []
    for epochs in by_world.index:
        half = by_world.reindex([epochs / 2]).iloc[0]
        gains.append((by_world.loc[epochs] - half).mean())
    return pd.DataFrame({"epochs": by_world.index, "value": by_world.mean(axis=1).to_numpy(), "gain": gains})


def length(table: pd.DataFrame) -> int:
    """The study's length: the first at which doubling gains `none` less than half a point of validation.

    The longest that was tried where doubling always gained more. Raises DataError while the table cannot tell.
    """
    found = curve(table)
    for row in found.itertuples():
        if row.gain < ENOUGH:
            return int(row.epochs) // 2
    if len(found) and found["epochs"].max() >= LENGTHS[-1]:
        return int(found["epochs"].max())
    raise DataError(
        f"part length: doubling gained none {ENOUGH:.1%} or more at {', '.join(map(str, found['epochs'])) or 'no'} "
        "epochs: finish `lrkd study answer --part length` first"
    )


def climb(scores: Callable[[float], float | None], rungs: Sequence[float]) -> tuple[list[float], float | None]:
    """A ladder: the rungs that are wanted so far, and the best one once there is a worse one on either side of it.

    scores: of a rung, None while it is not known. A best rung at an end asks for the next one beyond, MORE times.
    """
    wanted = list(rungs)
    step = min(b / a for a, b in itertools.pairwise(sorted(rungs)))
    for _ in range(MORE + 1):
        found = [scores(rung) for rung in wanted]
        if any(value is None for value in found):
            return wanted, None
        best = wanted[int(np.argmax(np.asarray(found, np.float64)))]
        if min(wanted) < best < max(wanted):
            break
        wanted.append(best / step if best == min(wanted) else best * step)
    else:
        wanted.pop()
    return wanted, best


@dataclass(frozen=True)
class Chosen:
    """What the ladders have come to: runs that they still want, the learning rate, and the factor of each entrant."""

    wanted: list[Spec]
    lr: float | None
    factors: dict[str, float]

    def factor(self, entrant: Entrant) -> float:
        """Raises DataError for an entrant whose ladder has not ended."""
        name = entrant.weighed_as or entrant.name
        if entrant.method == "none":
            return 1.0
        if name not in self.factors:
            raise DataError(f"{name}: its ladder has not ended: finish `lrkd study answer --part ladders` first")
        return self.factors[name]


def ladders(place: Place, entrants: Sequence[Entrant], table: pd.DataFrame, setting: Setting) -> Chosen:
    """Rates of `none` first, then the weights of every entrant that has its own, at the rate that was best for it."""
    none, usual = MAIN[0], place.spec(MAIN[0], CHOOSING[0], setting).schedule.lr

    def rated(factor: float) -> list[Spec]:
        return [replace(place, lr=float(f"{usual * factor:.4g}")).spec(none, w, setting) for w in CHOOSING]

    rungs, best = climb(lambda factor: validation(table, rated(factor)), RATES)
    wanted = [spec for factor in rungs for spec in rated(factor)]
    if best is None:
        return Chosen(wanted, None, {})
    there, factors = replace(place, lr=float(f"{usual * best:.4g}")), {}
    ladder: list[tuple[int, list[Spec]]] = []
    for entrant in entrants:
        if entrant.method == "none" or entrant.weighed_as:
            continue

        def weighed(factor: float, entrant: Entrant = entrant) -> list[Spec]:
            known: Setting = "S" if entrant.same_people else setting
            return [there.spec(entrant, w, known, factor) for w in CHOOSING]

        rungs, best = climb(lambda factor: validation(table, weighed(factor)), WEIGHTS)
        ladder += [(k, weighed(factor)) for k, factor in enumerate(rungs)]
        if best is not None:
            factors[entrant.name] = best
    # Entrant by entrant: a study that is stopped has whole ladders, of the first ones.
    return Chosen([*wanted, *(spec for _, rung in ladder for spec in rung)], there.lr, factors)


# -------------------------------------------------------------------------------------------------------------- parts


def plan(part: str, scale: Scale, source: str, tables: Path) -> list[Spec]:
    """The runs of a part as far as the tables so far say which they are, the most valuable first.

    Raises DataError where a part before it has not ended, ConfigError for an unknown part and for photographs
    that are none.
    """
    if part not in PARTS:
        raise ConfigError(f"part is {part!r}: the parts are {', '.join(PARTS)}")
    if (part == "photographs") != (source != PROCEDURAL):
        raise ConfigError(f"data is {source!r}: photographs are a prepared folder, and only part photographs takes one")
    place = Place(scale, source)
    if part == "length":
        return _length(place)
    if part == "photographs":
        return _photographs(place, read(tables, part))
    epochs = length(read(tables, "length"))
    chosen = ladders(replace(place, epochs=max(1, epochs // 2)), tuple(ENTRANTS.values()), read(tables, "ladders"), "T")
    return chosen.wanted if part == "ladders" else _worlds(replace(place, epochs=epochs, lr=chosen.lr), chosen)


def _length(place: Place) -> list[Spec]:
    """The main entrants at every length in setting S, the short ones of all first."""
    return [
        replace(place, epochs=epochs).spec(entrant, world, "S")
        for epochs in LENGTHS
        for world in CHOOSING
        for entrant in MAIN
    ]


def _worlds(place: Place, chosen: Chosen) -> list[Spec]:
    """All entrants in setting T, the main ones in S and D, at the hardest side and then at the one before.

    Blocks of whole worlds: whatever is stopped has the same worlds for all that it compares.
    """
    few, all_of_them, hardest, easier = JUDGING[:6], JUDGING, place.hardest, place.scale.sides[-2]
    blocks: list[tuple[Sequence[Entrant], Setting, Sequence[int], int]] = [
        (MAIN, "T", few, hardest),
        (REST, "T", few, hardest),
        ((*MAIN, LOGITS), "S", few, hardest),
        (MAIN, "D", few[:4], hardest),
        (MAIN, "T", few, easier),
        ((*MAIN, *REST), "T", all_of_them, hardest),
        (REST, "T", few, easier),
        (MAIN, "S", few, easier),
        (MAIN, "D", few[:4], easier),
    ]
    return [
        place.spec(entrant, world, setting, chosen.factor(entrant), side)
        for entrants, setting, worlds, side in blocks
        for world in worlds
        for entrant in entrants
    ]


def _photographs(place: Place, table: pd.DataFrame) -> list[Spec]:
    """Ladders at half the recipe's length, then every entrant with seeds that nothing was chosen on."""
    epochs = place.scale.recipes["prepared"].student.epochs
    chosen = ladders(replace(place, epochs=max(1, epochs // 2)), PHOTOGRAPHED, table, "S")
    judged = replace(place, epochs=epochs, lr=chosen.lr)
    try:
        runs = [judged.spec(e, seed, "S", chosen.factor(e)) for seed in SEEDS for e in PHOTOGRAPHED]
    except DataError:  # a ladder goes on
        return chosen.wanted
    return [*chosen.wanted, *runs]


# -------------------------------------------------------------------------------------------------------------- tables

COLUMNS = (
    *("data", "scale", "role", "method", "weight", "trained", "setting", "world", "epochs", "lr", "people", "status"),
    *("side", "endpoint", "value", "n", "seconds", "device", "torch", "commit", "config"),
)


def table_path(tables: Path, part: str) -> Path:
    return tables / f"answer-{part}.csv"


def read(tables: Path, part: str) -> pd.DataFrame:
    """The table of a part, empty while there is none."""
    path = table_path(tables, part)
    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    return study.read_table(path, COLUMNS)


def merge(path: Path, rows: pd.DataFrame) -> None:
    """Write the rows into a table, in place of those of the same runs; other processes may do the same meanwhile."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            old = study.read_table(path, ("config",))
            old = old[~old["config"].isin(rows["config"])]
            rows = pd.concat([old, rows], ignore_index=True) if len(old) else rows
        study.write_table(path, rows)


def right_table(wanted: Iterable[Spec], where: Path) -> pd.DataFrame:
    """What each finished judging run had right: -> `config, side, endpoint, n, right` (base64 of packed bits)."""
    rows = []
    for spec in wanted:
        run = find_run(spec, where)
        if spec.role == "teacher" or spec.world is None or not spec.world.judging or not run.finished:
            continue
        if run.result["status"] != "ok":
            continue
        path = run.path / RIGHT
        try:
            with np.load(path, allow_pickle=False) as kept:
                bits = {name: kept[name].tobytes() for name in kept.files}
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read ({error}); remove the run directory") from error
        for name, packed in bits.items():
            side, _, endpoint = name.partition("/")
            count = run.result["measures"][name]["n"]
            code = base64.b64encode(packed).decode()
            rows.append({"config": key(spec), "side": int(side), "endpoint": endpoint, "n": count, "right": code})
    return pd.DataFrame(rows, columns=["config", "side", "endpoint", "n", "right"])


def people_table(wanted: Iterable[Spec]) -> pd.DataFrame:
    """Who is shown in the pairs and by the probes of each judging world: -> `config, data, scale, world, what, people`.

    what: "left", "right" (P,) and "probe"; people: base64 of little-endian uint16. config: of the people's digest.
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
            row = {"data": faces.name.split("/")[0], "scale": spec.scale.name, "world": number}
            rows.append({"config": faces.digest, **row, "what": what, "people": code})
    return pd.DataFrame(rows, columns=["config", "data", "scale", "world", "what", "people"])


# --------------------------------------------------------------------------------------------------------------- runs


def run(
    part: str,
    scale: Scale,
    tables: Path,
    where: Path | None = None,
    *,
    source: str = PROCEDURAL,
    workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
    stop: Callable[[], bool] | None = None,
) -> pd.DataFrame:
    """Train what the part's table lacks, writing it after every run; -> the table.

    Ladders go on as their results come in. Raises DataError where a part before it has not ended, and where
    judging is to begin before the claims are committed.
    """
    stop, where = stop or (lambda: False), store(where)
    path = table_path(tables, part)
    while True:
        known = read(tables, part)
        wanted = with_needs(plan(part, scale, source, tables))
        missing = [spec for spec in wanted if key(spec) not in set(known["config"])]
        if stop() or not missing:
            return known
        if any(spec.world is not None and spec.world.judging for spec in missing):
            check_claims(tables)

        def write(frame: pd.DataFrame, missing: Sequence[Spec] = missing) -> None:
            if len(frame):
                merge(path, frame)
            judged = right_table(missing, where)
            if len(judged):
                merge(tables / f"answer-{part}-right.csv", judged)
                there = set(judged["config"])
                merge(tables / f"answer-{part}-people.csv", people_table(s for s in missing if key(s) in there))

        frame = study.run_study(
            missing,
            where,
            workers=workers,
            device=device,
            progress=progress,
            on_table=write,
            stop=stop,
        )
        write(frame)


def check_claims(tables: Path) -> None:
    """Refuse to judge before the claims are written down: claims.csv beside the tables, and committed in a checkout."""
    path = tables / "claims.csv"
    if not path.exists():
        raise DataError(f"{path}: is not there: claims are written down before the first run that judges them")

    def git(*words: str) -> str:
        told = subprocess.run(["git", "-C", str(tables), *words], capture_output=True, text=True, check=True)
        return told.stdout.strip()

    try:
        inside = git("rev-parse", "--is-inside-work-tree") == "true"
    except (OSError, subprocess.CalledProcessError):
        return
    if inside and (not git("ls-files", "--", path.name) or git("status", "--porcelain", "--", path.name)):
        raise DataError(f"{path}: differs from what is committed: commit the claims before judging them")


def listed(part: str, scale: Scale, tables: Path, source: str = PROCEDURAL) -> Iterator[dict[str, object]]:
    """The runs of a part, whether the table has them."""
    known = set(read(tables, part)["config"])
    for spec in with_needs(plan(part, scale, source, tables)):
        yield {"run": find_run(spec).path.name, "there": key(spec) in known}
