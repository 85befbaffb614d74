"""`lrkd completion`."""

import argparse
import importlib

from lrkd.cli import program

_SCRIPT = """\
[ -z "$ZSH_VERSION" ] || {{ autoload -Uz bashcompinit && bashcompinit; }}
_lrkd() {{
  local typed="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then words="{names}"
  elif [ "${{typed#-}}" != "$typed" ]; then case "${{COMP_WORDS[1]}}" in
{cases}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$typed"))
}}
complete -o default -F _lrkd lrkd
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Add nothing."""


def run(arguments: argparse.Namespace) -> None:
    """Print a script for bash and zsh that completes commands and their options, and files elsewhere."""
    cases = []
    for command in program.COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(command.module).options(parser)
        words = (word for action in parser._actions for word in action.option_strings if word.startswith("--"))
        cases.append(f'    {command.name}) words="{" ".join(words)}";;')
    print(_SCRIPT.format(names=" ".join(command.name for command in program.COMMANDS), cases="\n".join(cases)), end="")
