"""Do the tests and intervals of lrkd.evaluation.statistics keep their promises? 2,000 simulated studies each.

A row a promise: the wanted rate (a test's level, an interval's coverage), the rate found, its standard error, and
whether the two agree within three of those errors; where they do not, `note` says what is known about it. Six seeds, as
in the study, unless `seeds` says otherwise.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats as oracle
from tqdm import tqdm

from benchmarks.shared import finish
from lrkd.evaluation import mixed_model, power, separation, statistics
from lrkd.evaluation.statistics import mean_interval
from lrkd.study.experiment import commit

ALPHA = 0.05
Draw = Callable[[np.random.Generator], bool]


def crossed(rng: np.random.Generator, seeds: int = 6, teachers: int = 2) -> pd.DataFrame:
    """Two methods without a difference, every seed with every teacher: parts of seed, teacher, both, and the rest."""
    seed, teacher, own = rng.normal(0, 2, (seeds, 1)), rng.normal(0, 1, teachers), rng.normal(0, 1, (2, seeds, 1))
    y = seed + teacher + own + rng.normal(0, 1, (2, seeds, teachers))
    index = pd.MultiIndex.from_product([("a", "b"), range(seeds), range(teachers)])
    return pd.Series(y.ravel(), index.set_names(["method", "seed", "teacher_seed"]), name="accuracy").reset_index()


def mixed(rng: np.random.Generator) -> float:
    """p of the mixed model, which takes Student's distribution."""
    return mixed_model.mixed_model(crossed(rng), "a", "b").p


def normal(p: float, seeds: int = 6) -> float:
    """The p that the same ratio has under the normal distribution, as the library would say."""
    return float(2 * oracle.norm.sf(oracle.t.isf(p / 2, seeds - 1)))


def found_by_t(rng: np.random.Generator, n: int, d_z: float) -> bool:
    """Whether n seeds show a true effect."""
    return statistics.mean_interval(rng.normal(d_z, 1, n)).p < ALPHA


def skewed(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n,) exponential values of mean zero."""
    return rng.exponential(1, n) - 1


def holds(interval: tuple[float, float], truth: float = 0) -> bool:
    """Whether the interval has the truth in it."""
    return interval[0] <= truth <= interval[1]


def by(rng: np.random.Generator, unit: str, seeds: int = 6, items: int = 1000) -> float:
    """p of two methods without a difference, whose runs differ by a tenth of what the items of one run do."""
    a, b = rng.normal(0, 0.1, (2, seeds, 1)) + rng.normal(0, 1, (2, seeds, items))
    return float(statistics.by_unit(a, b).set_index("unit").loc[unit, "p"])


def identities(rng: np.random.Generator, people: int = 60, pairs: int = 600) -> bool:
    """Whether the interval over identities holds the mean difference, zero, of pairs that differ by person."""
    left = np.arange(pairs) % people
    same = np.arange(pairs) < pairs // 2
    right = np.where(same, left, (left + 1 + rng.integers(people - 1, size=pairs)) % people)
    own = rng.normal(0, 1, people)
    values = (own[left] + own[right]) / 2 + rng.normal(0, 1, pairs)
    found = separation.bootstrap_identities(values, left, right, resamples=400, generator=rng)
    return holds((found.low, found.high))


def promises(resamples: int) -> list[tuple[str, float, int, Draw, str]]:
    """Name, wanted rate, seeds, one simulated study -> whether it happened, and what to know about it."""

    def boot(x: np.ndarray, rng: np.random.Generator, method: str = "percentile") -> bool:
        return holds(statistics.bootstrap_interval(x, resamples=resamples, method=method, generator=rng))

    few = "undercovers with few seeds: the t interval comes first, the bootstrap is shown beside it"
    uneven = "skewed differences: six seeds do not suffice for the normal theory"
    ten = int(power.seeds_needed(1))
    discrete = "exact, so its level is the largest multiple of 2/64 that is not above .05"
    return [
        ("paired t: false alarms", ALPHA, 6, lambda r: statistics.mean_interval(r.normal(size=6)).p < ALPHA, ""),
        ("paired t, skewed: false alarms", ALPHA, 6, lambda r: mean_interval(skewed(r, 6)).p < ALPHA, uneven),
        ("t interval: coverage", 0.95, 6, lambda r: holds(statistics.mean_interval(r.normal(size=6))[1:3]), ""),
        ("Wilcoxon: false alarms", 2 / 64, 6, lambda r: statistics.wilcoxon(r.normal(size=6)) < ALPHA, discrete),
        ("TOST at the margin: false alarms", ALPHA, 6, lambda r: statistics.tost(r.normal(4, 1, 6), 4).p < ALPHA, ""),
        ("bootstrap over seeds, percentile: coverage", 0.95, 6, lambda r: boot(r.normal(size=6), r), few),
        ("bootstrap over seeds, BCa: coverage", 0.95, 6, lambda r: boot(r.normal(size=6), r, "BCa"), few),
        ("bootstrap over seeds, percentile, skewed: coverage", 0.95, 6, lambda r: boot(skewed(r, 6), r), few),
        ("bootstrap over seeds, BCa, skewed: coverage", 0.95, 6, lambda r: boot(skewed(r, 6), r, "BCa"), few),
        ("bootstrap over seeds, percentile: coverage", 0.95, 30, lambda r: boot(r.normal(size=30), r), few),
        ("bootstrap over identities: coverage", 0.95, 1, identities, "errs to the safe side: see verify"),
        (
            "Holm, five true nulls: any false alarm",
            ALPHA,
            6,
            lambda r: bool((statistics.holm(oracle.ttest_1samp(r.normal(size=(6, 5)), 0).pvalue) < ALPHA).any()),
            "",
        ),
        ("power for d_z 1.5: detections", power.power(1.5, 6), 6, lambda r: found_by_t(r, 6, 1.5), ""),
        ("seeds needed for d_z 1: detections", power.power(1, ten), ten, lambda r: found_by_t(r, ten, 1), ""),
        ("mixed model, crossed: false alarms", ALPHA, 6, lambda r: mixed(r) < ALPHA, ""),
        ("mixed model, normal p: false alarms", ALPHA, 6, lambda r: normal(mixed(r)) < ALPHA, "why Student's is taken"),
        ("seeds as unit, runs differ: false alarms", ALPHA, 6, lambda r: by(r, "seed") < ALPHA, ""),
        ("items as unit, runs differ: false alarms", ALPHA, 6, lambda r: by(r, "item") < ALPHA, "pseudo-replication"),
    ]  # fmt: skip


def main() -> None:
    """Simulate, print, and with --out write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics", description=__doc__)
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies a promise (default: 2000)")
    parser.add_argument("--resamples", type=int, default=1000, help="resamples of a bootstrap (default: 1000)")
    parser.add_argument("--only", default="", metavar="WORDS", help="the promises whose name holds these words")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also merge the rows into this table")
    arguments = parser.parse_args()
    rows = []
    for number, (name, wanted, seeds, draw, note) in enumerate(promises(arguments.resamples)):
        if arguments.only not in name:
            continue
        rng = np.random.default_rng([20, number])
        found = float(np.mean([draw(rng) for _ in tqdm(range(arguments.studies), name, leave=False)]))
        error = (wanted * (1 - wanted) / arguments.studies) ** 0.5
        rows.append(
            {
                "promise": name,
                "seeds": seeds,
                "wanted": round(wanted, 4),
                "found": round(found, 4),
                "standard_error": round(error, 4),
                "kept": abs(found - wanted) <= 3 * error,
                "studies": arguments.studies,
                "note": note,
                "commit": commit(),
            }
        )
    finish(pd.DataFrame(rows), arguments.out, "promise", "seeds")


if __name__ == "__main__":
    main()
