"""The command line that all tools share: options, exit codes, and one line for the terminal."""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from data_prep.images import MAX_SIDE
from lrkd.errors import LrkdError

Options = TypeVar("Options")


def positive(text: str) -> int:
    """argparse type: a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def whole(text: str) -> int:
    """argparse type: a whole number of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def side(text: str) -> int:
    """argparse type: a whole number from 1 to MAX_SIDE."""
    value = positive(text)
    if value > MAX_SIDE:
        raise argparse.ArgumentTypeError(f"expected at most {MAX_SIDE}, got {text}")
    return value


def share(text: str) -> float:
    """argparse type: a number in (0,1]."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected above 0 and at most 1, got {text}")
    return value


def parser(tool: str, text: str) -> argparse.ArgumentParser:
    """The command line of `python -m data_prep.<tool>`, with the options that all tools share."""
    parser = argparse.ArgumentParser(
        prog=f"python -m data_prep.{tool}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="what you downloaded")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="prepared folder to make")
    parser.add_argument("--size", type=side, default=112, metavar="S", help="output side in pixels (default 112)")
    parser.add_argument(
        "--max-broken",
        type=share,
        default=0.01,
        metavar="P",
        help="share of images that may be broken and skipped before it is an error (default 0.01)",
    )
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="decoding threads (default 2)")
    return parser


def bundle(options: dict[str, Any], kind: type[Options]) -> Options:
    """Take the fields of a dataclass out of parsed options and make one of them."""
    return kind(**{part.name: options.pop(part.name) for part in fields(kind)})  # type: ignore[arg-type]


def run(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Exit code of a tool: 0; 2 for bad input; 1 for a failure at run time; 130 for Ctrl-C. One line, no traceback."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of a damaged tag in an image that is read all the same
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            main(argv)
        return 0
    except LrkdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing is finished; the same command goes on from here", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def summary(out: Path, meta: dict[str, Any]) -> str:
    """One line for the terminal."""
    counts = meta["counts"]
    pairs = ", ".join(f"{name} {n}" for name, n in counts["pairs"].items()) or "none"
    roles = ", ".join(f"{name} {n}" for name, n in counts.get("roles", {}).items())
    lost = f"{counts['broken']} broken" + (f", {counts['no_face']} without a face" if "no_face" in counts else "")
    return (
        f"{out}: {counts['images']} images of {counts['identities']} people at {meta['size']} px, {lost}; "
        f"pairs: {pairs}" + (f"; roles: {roles}" if roles else "")
    )
