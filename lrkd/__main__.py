"""`python -m lrkd` and the command `lrkd`: Ctrl-C prints no traceback while torch is imported, which takes seconds."""

import sys


def main() -> int:
    """Run the command line; the exit status."""
    try:
        from lrkd.cli import program

        return program.main()
    except KeyboardInterrupt:
        print("lrkd: interrupted before it began", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
