"""The errors that a user can cause. Each message names the file or option, the value, and what would be right."""

from collections.abc import Iterator
from contextlib import contextmanager


class LrkdError(ValueError):
    """Base of every error that the command line reports in one line, without a traceback."""


class ConfigError(LrkdError):
    """A method, scale, side, preset or other option that does not exist or does not fit."""


class DataError(LrkdError):
    """Data on disk that is missing, broken, or does not match its manifest."""


class RunError(LrkdError):
    """A run directory that is locked, half-written, or belongs to another configuration."""


class TrainingError(LrkdError):
    """A training run that cannot go on: a loss that is not finite, an impossible schedule."""


@contextmanager
def needed(for_what: str, extra: str) -> Iterator[None]:
    """Around the import of packages that not everybody needs: ConfigError that names what is missing, and its extra."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{for_what} needs {error.name}: pip install 'lrkd[{extra}]'") from error
