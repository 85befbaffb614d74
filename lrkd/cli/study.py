"""`lrkd study`."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lrkd.cli.arguments import add_setting, add_student, add_teacher, output_file
from lrkd.cli.output import show
from lrkd.distill import methods
from lrkd.errors import ConfigError
from lrkd.study import answer, answer_plan, cluster, experiment, grids, presets, results, runner, variants
from lrkd.study.spec import Spec, config_hash


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(grids.STUDIES)}, or answer")
    parser.add_argument(
        "--methods",
        type=lambda text: text.split(","),
        action="extend",
        metavar="METHOD[,METHOD...]",
        help="only these; one that the study lacks, such as mine.py:METHOD, runs wherever it distils (default: all)",
    )
    add_student(parser)
    add_teacher(parser)
    _add_tables(parser)
    _add_execution(parser)
    parser.add_argument(
        "--ladder", type=Path, metavar="CSV", help="study ladder's table, for study hypotheses' weights"
    )
    parser.add_argument("--part", metavar="PART", help=f"of study answer: {', '.join(answer.PARTS)}")
    parser.add_argument(
        "--tables",
        type=Path,
        metavar="DIR",
        help="where study answer has its tables, its claims.csv too (default: book/results)",
    )
    parser.add_argument(
        "--entrants",
        type=lambda text: text.split(","),
        action="extend",
        metavar="NAME[,NAME...]",
        help="of study answer, parts ladders and worlds: only these have their ladders or are judged, so that machines "
        f"can divide the work: {', '.join(answer_plan.ENTRANTS)} (default: all)",
    )
    add_setting(parser)


def _add_tables(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=output_file,
        metavar="CSV",
        help="the results table, added to after every run; runs that it has are not trained, and other rows stay",
    )
    for name, said in (
        ("scores", "histograms of the test scores, written at the end"),
        ("pairs", "whether each test pair was right, run by run"),
        ("traces", "what study hypotheses saw while its runs trained"),
    ):
        parser.add_argument(f"--{name}", type=output_file, metavar="CSV", help=said)


def _add_execution(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, help="runs at a time (default: one a core on a CPU, one on a GPU)")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="stop after that; the next call goes on")
    parser.add_argument(
        "--launcher", metavar="NAME", help=f"{' or '.join(cluster.LAUNCHERS)}: jobs that share the runs"
    )
    parser.add_argument("--jobs", type=int, default=1, help="with --launcher: how many (default: 1)")
    parser.add_argument(
        "--job",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="with --launcher: a parameter of submitit, as gpus_per_node=1 or slurm_partition=long; may be given again",
    )
    parser.add_argument("--list", action="store_true", help="only list the runs and whether they are there")


def run(arguments: argparse.Namespace) -> None:
    """Train the study's runs, write its tables and print the means."""
    over = runner.over_after(arguments.budget)
    scale = presets.scale(arguments.scale)
    if (arguments.name == "answer") != bool(arguments.part):
        raise ConfigError(f"--part goes with study answer: {', '.join(answer.PARTS)}")
    if arguments.entrants and arguments.part not in ("ladders", "worlds"):
        raise ConfigError("--entrants goes with study answer, --part ladders or --part worlds")
    if arguments.name == "answer":
        return _answer(arguments, scale, over)
    wanted = _wanted(arguments, scale)
    if arguments.list:
        there = [(spec, experiment.find_run(spec, arguments.runs)) for spec in wanted]
        return show(pd.DataFrame({"run": one.path.name, "finished": one.finished} for _, one in there))
    known = _known_rows(arguments)
    _check_scores(arguments, wanted, known)

    def write(frame: pd.DataFrame) -> None:
        if arguments.out and not frame.empty:
            results.RUNS.merge(arguments.out, results.without_test(frame) if arguments.name == "ladder" else frame)

    if arguments.launcher:
        _launch(arguments, wanted, known, write)
    table = runner.run_study(
        wanted,
        arguments.runs,
        workers=arguments.workers,
        device=arguments.device,
        on_table=write,
        known=known,
        stop=(lambda: True) if arguments.launcher else over,  # what jobs have left is for the next call
    )
    done = 0 if table.empty else table["config"].nunique()
    if done < len(wanted):
        why = "" if arguments.budget is None else f"The {arguments.budget:g} minutes are over: "
        print(f"{why}{done} of {len(wanted)} runs are there; the same command goes on.")
    if not table.empty:
        _write_tables(arguments, wanted)
        _show_means(table, "validation" if arguments.name == "ladder" else "test")


def _wanted(arguments: argparse.Namespace, scale: presets.Scale) -> list[Spec]:
    """The study's runs, with the methods and networks that are asked for."""
    ladder = results.read_table(arguments.ladder) if arguments.ladder else None
    wanted = grids.specs(arguments.name, scale, arguments.data, ladder)
    if arguments.methods:
        wanted = variants.with_methods(wanted, [methods.get(name) for name in arguments.methods])
    return variants.with_networks(wanted, arguments.student, arguments.teacher)


def _write_tables(arguments: argparse.Namespace, wanted: Sequence[Spec]) -> None:
    if arguments.scores:
        results.SCORES.merge(arguments.scores, results.score_table(wanted, arguments.runs))
    if arguments.pairs:
        results.PAIRS.merge(arguments.pairs, results.pair_table(wanted, arguments.runs))
    if arguments.traces:
        results.TRACES.merge(arguments.traces, results.trace_table(wanted, arguments.runs))


def _show_means(table: pd.DataFrame, protocol: str) -> None:
    table = table[table["protocol"] == protocol]
    by = [name for name in ("role", "side", "method", "student", "teacher") if name in table]
    means = table.groupby(by, sort=False, dropna=False)["accuracy"].agg(["mean", "std", "count"])
    show(means.reset_index())


def _known_rows(arguments: argparse.Namespace) -> pd.DataFrame | None:
    """The results table that is there; DataError, before anything is trained, for a file that cannot be added to."""
    kinds = {"out": results.RUNS, "scores": results.SCORES, "pairs": results.PAIRS, "traces": results.TRACES}
    given = {name: getattr(arguments, name) for name in kinds if getattr(arguments, name)}
    if len(set(given.values())) < len(given):
        raise ConfigError(f"{', '.join(f'--{name}' for name in given)}: expected a file of its own for each table")
    for name, path in given.items():
        kinds[name].check(path)
    return results.RUNS.read(arguments.out) if arguments.out and arguments.out.exists() else None


def _check_scores(arguments: argparse.Namespace, wanted: Sequence[Spec], known: pd.DataFrame | None) -> None:
    """Raise ConfigError where new histograms would lack runs that the old ones have."""
    if known is None or not arguments.scores or not arguments.scores.exists():
        return
    named = set(known["config"])
    there = [spec for spec in wanted if config_hash(spec) in named]
    if lost := [spec for spec in there if not experiment.find_run(spec, arguments.runs).finished]:
        raise ConfigError(
            f"{arguments.scores}: would lose {len(lost)} runs, which {arguments.out} has and the store has not: "
            f"leave out --scores, or name another file"
        )


def _answer(arguments: argparse.Namespace, scale: presets.Scale, over: Callable[[], bool]) -> None:
    if arguments.methods or arguments.student or arguments.teacher:
        raise ConfigError("study answer: expected no --methods, --student or --teacher: its plan is fixed")
    tables = arguments.tables or Path("book") / "results"
    if not tables.is_dir():
        raise ConfigError(f"tables is {tables}: no such folder; --tables names the one with the tables of study answer")
    entrants = answer_plan.named(arguments.entrants or answer_plan.ENTRANTS)
    if arguments.list:
        return show(pd.DataFrame(answer.listed(arguments.part, scale, arguments.data, tables, entrants)))
    table = answer.run(
        arguments.part,
        scale,
        tables,
        arguments.runs,
        source=arguments.data,
        entrants=entrants,
        workers=arguments.workers,
        device=arguments.device,
        stop=over,
    )
    left = sum(not row["measured"] for row in answer.listed(arguments.part, scale, arguments.data, tables, entrants))
    print(f"{answer.table_path(tables, arguments.part)}: {table['config'].nunique()} runs; {left} are still to come.")


def _launch(
    arguments: argparse.Namespace,
    wanted: Sequence[Spec],
    known: pd.DataFrame | None,
    write: Callable[[pd.DataFrame], None],
) -> None:
    """Queue the study's jobs and wait for them, with the table so far written from time to time."""
    parameters: dict[str, Any] = {}
    for given in arguments.job:
        name, sign, value = given.partition("=")
        if not sign:
            raise ConfigError(f"job: expected NAME=VALUE, such as gpus_per_node=1, got {given!r}")
        parameters[name] = int(value) if value.isdecimal() else value
    where = experiment.store_dir(arguments.runs).resolve()
    job = cluster.Job(wanted, where, arguments.workers, arguments.device, arguments.budget, known)
    jobs = cluster.submit(job, arguments.jobs, arguments.launcher, where / "jobs", parameters)
    print(f"jobs {', '.join(job.job_id for job in jobs)}; logs in {where / 'jobs'}", flush=True)

    cluster.wait(jobs, lambda: write(results.results_table(wanted, where, known)))
