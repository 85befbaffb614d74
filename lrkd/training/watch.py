"""Where the rows of metrics.csv are shown as a run trains, beside that file: in the terminal, in TensorBoard."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from lrkd.errors import ConfigError, needed

OnRow = Callable[[Mapping[str, float]], None]
LOGS = ("table", "tensorboard")


def check_logs(names: Sequence[str]) -> None:
    """Raise ConfigError for a name that is not in LOGS, and where TensorBoard is not installed."""
    if other := [name for name in names if name not in LOGS]:
        raise ConfigError(f"log: expected {' or '.join(LOGS)}, got {other[0]!r}")
    if "tensorboard" in names:
        with needed("--log tensorboard", "tensorboard"):
            import torch.utils.tensorboard  # noqa: F401


@contextmanager
def watching(names: Sequence[str], folder: Path) -> Iterator[OnRow]:
    """Yield what is to be called with each row of a run.

    Args:
        names: Of LOGS.
        folder: The run's; TensorBoard's files are written to `tensorboard` in it.
    """
    with ExitStack() as stack:
        shown = [stack.enter_context({"table": _table, "tensorboard": _tensorboard}[name](folder)) for name in names]

        def on_row(row: Mapping[str, float]) -> None:
            for show in shown:
                show(row)

        yield on_row


@contextmanager
def _table(_: Path) -> Iterator[OnRow]:
    header: list[str] = []

    def show(row: Mapping[str, float]) -> None:
        if not header:
            header.extend(row)
            tqdm.write(" ".join(f"{name:>{max(8, len(name))}}" for name in row))
        tqdm.write(" ".join(f"{value:>{max(8, len(name))}.4g}" for name, value in row.items()))

    yield show


@contextmanager
def _tensorboard(folder: Path) -> Iterator[OnRow]:
    from torch.utils.tensorboard import SummaryWriter

    with ExitStack() as stack:
        writers: list[SummaryWriter] = []

        def show(row: Mapping[str, float]) -> None:
            step = int(row["step"])
            if not writers:  # what a stopped run had written of steps that come again is left out
                writers.append(SummaryWriter(folder / "tensorboard", purge_step=step))
                stack.callback(writers[0].close)
            for name, value in row.items():
                if name != "step":
                    writers[0].add_scalar(name, value, step)

        yield show
