"""Tables of study answer, made up: what its parts write, with values that a test can foresee."""

import base64
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from lrkd.study import answer
from lrkd.study.answer_plan import ENTRANTS, LENGTHS, MAIN, RATES, WEIGHTS, Place
from lrkd.study.presets import SCALES
from lrkd.study.spec import config_hash

CPU = SCALES["cpu"]
TAUGHT = tuple(entrant.name for entrant in MAIN if entrant.name != "none")
FEW, PROBES = 400, 300  # pairs and probes of a judged run


def write(folder: Path, part: str, rows: list[dict]) -> None:
    pd.DataFrame(rows, columns=list(answer.COLUMNS)).to_csv(folder / f"answer-{part}.csv", index=False)


def row(method: str, **more: object) -> dict:
    usual = {"data": "procedural", "scale": "cpu", "role": "student", "method": method, "trained": "6", "setting": "S"}
    usual |= {"world": 0, "epochs": 3, "lr": 0.15, "people": "validation", "status": "ok", "side": 6, "n": FEW}
    return usual | {"endpoint": "lr-lr", "seconds": 60.0, "device": "a CPU", "config": "c"} | more


def length_rows(lengths=LENGTHS[:3], worlds=(0, 1), names=("none", *TAUGHT)) -> list[dict]:
    """`none` has .7 at 3 epochs and 4 points more at each doubling, the k-th method k more, or 2 k in world 1."""
    rows = []
    for (i, epochs), world, (k, name) in itertools.product(enumerate(lengths), worlds, enumerate(names)):
        value, slow = 0.7 + 0.04 * i + 0.01 * k * (1 + world), 10 * (1 if name == "none" else 2)
        for endpoint in ("lr-lr", "hr-lr", "rank1"):
            rows.append(row(name, world=world, epochs=epochs, endpoint=endpoint, value=value, seconds=slow * epochs))
    return rows


def judged_rows(folder: Path, worlds=(100, 101, 102), names=tuple(e.name for e in MAIN), settings="STD") -> None:
    """Write what judging runs leave, of a few pairs: each pair right by chance, of embedding-cos more often."""
    rng, rows, bits, people = np.random.default_rng(0), [], [], []
    for world in worlds:
        who = rng.integers(8, size=(2, FEW))
        shown = {"left": who[0], "right": who[1], "probe": rng.integers(8, size=PROBES)}
        for what, ids in shown.items():
            code = base64.b64encode(ids.astype("<u2").tobytes()).decode()
            whose = {"config": f"p{world}", "data": "procedural", "scale": "cpu", "world": world}
            people.append(whose | {"what": what, "people": code})
        for setting, name in itertools.product(settings, names):
            if name == "none" and setting == "T":
                continue  # the run of setting S is this one too
            config = f"{world}{setting}{name}"
            for endpoint in ("lr-lr", "hr-lr", "rank1", "open-set"):
                right = rng.random(FEW if endpoint.endswith("lr") else PROBES) < 0.6 + 0.2 * (name == "embedding-cos")
                same = {"setting": setting, "world": world, "people": "test", "config": config, "n": len(right)}
                rows.append(row(name, endpoint=endpoint, value=right.mean(), epochs=12, **same))
                code = base64.b64encode(np.packbits(right).tobytes()).decode()
                bits.append({"config": config, "side": 6, "endpoint": endpoint, "n": len(right), "right": code})
    write(folder, "worlds", rows)
    pd.DataFrame(bits).to_csv(folder / "answer-worlds-right.csv", index=False)
    pd.DataFrame(people).to_csv(folder / "answer-worlds-people.csv", index=False)


def ladder_rows(names: tuple[str, ...], best: float) -> list[dict]:
    """Rungs of the plan at 6 epochs, `best` (a factor) being best; the weight 16 times the usual diverges."""
    rows = []
    for world, factor in itertools.product((0, 1), RATES):
        place = Place(CPU, epochs=6, lr=float(f"{0.15 * factor:.4g}"))
        rows.append((place.spec(ENTRANTS["none"], world, "T"), 0.8 - 0.01 * abs(np.log2(factor))))
    for name, world, factor in itertools.product(names, (0, 1), WEIGHTS):
        spec = Place(CPU, epochs=6, lr=0.15).spec(ENTRANTS[name], world, "T", factor)
        rows.append((spec, np.nan if factor == 16 else 0.8 - 0.01 * abs(np.log2(factor / best))))
    found = []
    for spec, value in rows:
        weight = spec.method.terms[0].weight if spec.method.terms else None
        mixed = isinstance(spec.side, tuple)
        same = {"world": spec.world.number, "epochs": 6, "lr": spec.schedule.lr, "weight": weight}
        same |= {"config": config_hash(spec), "trained": "hr+24+12+6" if mixed else "6"}
        if np.isnan(value):
            found.append(row(spec.method.name, **same, status="diverged", endpoint="", value=value))
            continue
        for side, endpoint in itertools.product((24, 12, 6) if mixed else (6,), ("lr-lr", "hr-lr", "rank1")):
            far = -1 if side == 24 or endpoint == "rank1" else 0  # what must not count
            found.append(row(spec.method.name, **same, side=side, endpoint=endpoint, value=value + far))
    return found
