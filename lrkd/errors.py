"""The errors that a user can cause. Each message names the file or option, the value, and what would be right."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class LrkdError(ValueError):
    """Base of every error that the command line reports in one line, without a traceback.

    status: with which it ends: 1 for what stopped or failed while running, 2 for what was asked for and is not.
    """

    status: ClassVar[int] = 1


class ConfigError(LrkdError):
    """A method, scale, side, preset or other option that does not exist or does not fit."""

    status = 2


class DataError(LrkdError):
    """Data on disk that is missing, broken, or does not match its manifest."""

    status = 2


class RunError(LrkdError):
    """A run directory that is locked, half-written, or belongs to another configuration."""


class MissingError(RunError):
    """A run, or a whole store of them, that is not there or has not finished."""

    status = 2


class TrainingError(LrkdError):
    """A training run that cannot go on: a loss that is not finite, an impossible schedule."""


@contextmanager
def needed(for_what: str, extra: str, only: str = "") -> Iterator[None]:
    """Around the import of what not everybody needs: ConfigError that names it, its extra and where `only` that is."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{for_what} needs {error.name}: pip install 'lrkd[{extra}]'{only}") from error


def check_inside(name: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError for a value outside the open interval (low, high)."""
    if not low < value < high:
        raise ConfigError(f"{name}: expected a number between {low:g} and {high:g}, exclusive, got {value}")


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, without colours, or its class."""
    return re.sub(r"\x1b\[\d+m", "", str(error)).strip().partition("\n")[0][:200] or type(error).__name__
