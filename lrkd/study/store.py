"""The run store: a configuration -> a folder that is locked while it trains, resumable, and never trained twice.

`<store>/<name>-<hash>/` holds config.json, metrics.csv, state.pt while it trains, model.safetensors and result.json
when it is done. Every file appears under a temporary name and is renamed, so that what is there is whole.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkd.errors import MissingError, RunError
from lrkd.files import read_json, write_json

# Part of every run's identity. Raise it with any change after which the same configuration trains other weights.
VERSION = 1


def digest(config: Mapping[str, Any]) -> str:
    """Return the first 10 hex digits of the SHA-256 of the canonical JSON of a configuration and VERSION."""
    text = json.dumps({"version": VERSION, **config}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


class Busy(RunError):
    """Another process holds the run."""


@dataclass(frozen=True)
class Run:
    """One folder of the store."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that it was made from."""
        return read_json(self.path / "config.json")

    @property
    def finished(self) -> bool:
        """Whether the result is there: written last, so everything else is there too."""
        return (self.path / "result.json").exists()

    @property
    def result(self) -> dict[str, Any]:
        """What was measured; RunError before the run has finished."""
        if not self.finished:
            raise MissingError(f"{self.path}: this run has not finished; train it first (the same command resumes it)")
        result = read_json(self.path / "result.json")
        if "status" not in result:
            raise RunError(f"{self.path / 'result.json'}: has no status; remove the run directory to train anew")
        return result

    @contextmanager
    def lock(self, wait: bool = True, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the run for this process. The lock goes with the process, so a killed one leaves none behind.

        Args:
            wait: Whether to wait for another process.
            on_wait: Called once before waiting.

        Raises:
            Busy: Another process holds it, and `wait` is False.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if not wait:
                    raise Busy(f"{self.path}: another process is training this run; let it finish") from error
                if on_wait is not None:
                    on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def discard(run: Run) -> None:
    """Remove a run's folder in which nothing has been trained: one with its configuration alone."""
    if {path.name for path in run.path.iterdir()} <= {"config.json", ".lock"}:
        shutil.rmtree(run.path, ignore_errors=True)


def find_run(store: Path, name: str, config: Mapping[str, Any]) -> Run:
    """Return the place of this configuration in the store, whether anything is there or not."""
    return Run(store / f"{name}-{digest(config)}")


def open_run(store: Path, name: str, config: Mapping[str, Any]) -> Run:
    """Return the run of this configuration in the store, made where it is not there.

    Args:
        store: The run store.
        name: The readable part of the folder's name.
        config: Everything that determines the run, in plain values.

    Returns:
        The run.

    Raises:
        RunError: The folder of that name holds another configuration, or the store cannot be written.
    """
    run = find_run(store, name, config)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{run.path}: cannot be made ({error.strerror}); give --runs a folder to write in") from error
    plain = json.loads(json.dumps(dict(config)))
    file = run.path / "config.json"
    if not file.exists():
        write_json(file, plain)
    elif run.config != plain:
        there = run.config
        differ = sorted(key for key in {*there, *plain} if there.get(key) != plain.get(key))
        raise RunError(
            f"{file}: this run directory is of another configuration (different: {', '.join(differ)}); "
            f"move it away or choose another store"
        )
    return run


def load_run(path: Path) -> Run:
    """Open an existing run by its folder; RunError where it is none."""
    run = Run(path)
    _ = run.config
    return run


def flatten(config: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Flatten a configuration into one row, `{"a": {"b": 1}, "c": [2]}` into `{"a.b": 1, "c": "[2]"}`."""
    row: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            row |= flatten(value, f"{within}{key}.")
        else:
            row[within + key] = json.dumps(value, sort_keys=True) if isinstance(value, list) else value
    return row


def list_runs(store: Path) -> list[Run]:
    """List all runs of a store, by name."""
    return [Run(file.parent) for file in sorted(store.glob("*/config.json"))] if store.is_dir() else []
