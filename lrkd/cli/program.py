"""`lrkd`: the commands, each in a file of this package, of which one alone is imported, when it is called."""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from lrkd import __version__
from lrkd.errors import LrkdError

EPILOG = """\
a first hour:
  lrkd methods                                    what there is to train
  lrkd train --method none --side 6               a student without distillation, at 6 x 6 pixels
  lrkd train --method fskd --side 6               one taught by an HR teacher (trained first, once)
  lrkd verify runs/procedural-cpu-fskd-6-s0-t0-*  its accuracy at every resolution
  lrkd verify last_net.ckpt --data agedb30        a published network's, on data of yours
  lrkd study core --out results.csv               every method, side and seed: hours; Ctrl-C and go on any time
  lrkd adapt --out adaptation.csv                 students of study aird on faces that were shifted
  lrkd export runs/procedural-cpu-fskd-6-s0-t0-* --out face.onnx
                                                  the network as one file that needs neither lrkd nor torch
  lrkd compare face.onnx one.jpg another.jpg      how alike it finds two faces

--method and --student also take one of yours, as mine.py:METHOD and nets.py:make; --teacher a checkpoint too.
Runs are kept in --runs (default: $LRKD_RUNS, else ./runs), one folder each; none is trained twice, and a run that was
stopped goes on where it was. A table that is there is added to: no row of another command is lost.
Exit status: 0 done, 1 stopped or failed while running, 2 asked for something that is not there or not right.
"""


class Command(NamedTuple):
    """A command of the grammar; its module in this package has `options(parser)` and `run(arguments)`."""

    name: str
    help: str
    more: str = ""

    @property
    def module(self) -> str:
        """The module's full name."""
        return f"lrkd.cli.{self.name.replace('-', '_')}"


_FILES = "book/results/photo-student.onnx is for photographs; on them student.onnx is worse than comparing pixels."
COMMANDS = (
    Command("methods", "list the methods: terms, weights, source"),
    Command("train", "train one network, its teacher first where the method has one"),
    Command("train-teacher", "train a teacher on HR images, on its longer schedule"),
    Command("verify", "accuracy of a network at every resolution, by the 10-fold protocol"),
    Command("identify", "ranks, distances and open sets by the roles of a prepared set"),
    Command("study", "train a whole grid of runs and write its results table"),
    Command("attention", "measure where the finished runs of study attention look"),
    Command("adapt", "measure finished runs on shifted faces, with adapted batch norm", "Those of aird and kernels."),
    Command("export", "write a network as one ONNX file, and measure what that costs"),
    Command("embed", "write the embeddings of photographs of faces", _FILES),
    Command("compare", "say how alike a network finds two photographs of faces", _FILES),
    Command("runs", "list the runs of the store with their accuracy"),
    Command("completion", "complete words: source what it prints, from a file, in bash or zsh"),
)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Commands and what they do side by side, the epilog as it is."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=120)


class _Parser(argparse.ArgumentParser):
    """The parser of a command, which imports its module when it is called: torch alone takes seconds."""

    command: Command | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Add the command's options, then parse as usual."""
        if self.command is not None:
            module = importlib.import_module(self.command.module)
            self.command = None
            module.options(self)
            self.set_defaults(run=module.run)
        return super().parse_known_args(args, namespace)


def parser() -> argparse.ArgumentParser:
    """Build the command line's grammar."""
    top = argparse.ArgumentParser(
        prog="lrkd",
        description="Knowledge distillation for low-resolution face recognition.",
        epilog=EPILOG,
        formatter_class=_Help,
    )
    top.add_argument("--version", action="version", version=f"lrkd {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for command in COMMANDS:
        said = f"{command.help[0].upper()}{command.help[1:]}. {command.more}".rstrip()
        commands.add_parser(command.name, help=command.help, description=said).command = command
    return top


_OF_THE_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOENT),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; errors that a user can cause are one line on stderr.

    Args:
        words: The command's words; default: those of the process.

    Returns:
        The exit status: 0 done, 1 stopped or failed while running, 2 asked for what is not there or not right.
    """
    try:
        try:
            arguments = parser().parse_args(words)
            arguments.run(arguments)
        finally:
            sys.stdout.flush()  # here, so that a closed pipe or a full disk is met below and not at exit
    except LrkdError as error:
        return _fail(str(error), error.status)
    except KeyboardInterrupt as error:
        said = str(error)
        return _fail(f"interrupted{': ' + said if said else ''}; the same command goes on from here", 1)
    except OSError as error:
        if error.filename is None:
            _drop_output()
        if isinstance(error, BrokenPipeError):  # the reader has seen enough, as `head` has
            return 1
        if error.errno not in _OF_THE_DISK:
            raise
        return _fail(f"{error.filename or 'output'}: {error.strerror}; make room or choose another file or folder", 1)
    except (RuntimeError, TypeError) as error:
        if "MPS" in str(error):  # an operator or a type that Apple's GPUs lack
            return _fail(f"{str(error).partition('. ')[0]}; --device cpu computes it", 1)
        if type(error).__name__ != "OutOfMemoryError":  # torch's; it may not have been imported
            raise
        said = str(error).partition(". ")[0]
        return _fail(f"the GPU's memory does not suffice ({said}); a smaller --scale needs less", 1)
    return 0


def _drop_output() -> None:
    """Give up output that cannot be written, or the interpreter complains of it at exit."""
    with suppress(OSError):  # whatever a buffer still holds, or that it has no file under it
        sys.stdout.flush()
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(text: str, status: int) -> int:
    print(f"lrkd: {text}", file=sys.stderr)
    return status
