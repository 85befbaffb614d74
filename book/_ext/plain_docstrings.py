"""Sphinx: lrkd's docstrings are plain text for readers of the code; this makes them fit for the API page.

They write `name` for code, |x| for a norm, and parameters as `name: meaning` with deeper lines that continue it.
reStructuredText would read these as roles, substitutions and broken block quotes.
"""

import re
from itertools import groupby
from typing import Any

# Code in one or two backticks, roles and links stay; everything between is text.
CODE = re.compile(r"(?P<keep>``.+?``|:[\w:]+:`[^`]+`|`[^`]+ <[^`>]+>`__?)|`(?P<code>[^`]+)`", re.DOTALL)
MARKUP = re.compile(r"[\\|*_]")
ITEM = re.compile(r"(?P<name>[^\s:`][^:`]{0,60}|`[^`]+`): +\S")
READY = ("- ", "* ", ">>> ", ".. ", ":")


def inline(text: str) -> str:
    """Signs that mean something to reStructuredText are escaped; `code` becomes ``code``."""
    parts, end = [], 0
    for match in CODE.finditer(text):
        code = match["keep"] or f"``{match['code'].strip()}``"
        # A literal has to stand apart: an escaped space keeps `(B,)`s together to the eye.
        glue = "\\ " if re.match(r"\w", text[match.end() :]) else ""
        before = "\\ " if match.start() and re.match(r"\w", text[match.start() - 1]) else ""
        parts += [MARKUP.sub(r"\\\g<0>", text[end : match.start()]), before, code, glue]
        end = match.end()
    return "".join([*parts, MARKUP.sub(r"\\\g<0>", text[end:])])


def paragraph(lines: list[str]) -> list[str]:
    """One paragraph: as it is, as a list of named items, or with its line breaks kept where its indents vary."""
    if lines[0].startswith(READY):
        return lines
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    heads = [line for line in lines if not line[margin].isspace()]
    deeper = len(heads) < len(lines)
    if all(ITEM.match(line, margin) for line in heads) and (deeper or len(heads) > 1):
        out = []
        for line in inline("\n".join(lines)).split("\n"):
            body = line[margin:]
            if body[0].isspace():
                out.append(f"  {body.strip()}")
            else:
                name, _, meaning = body.partition(": ")
                out.append(f"- {name}: {meaning}" if name.startswith("``") else f"- **{name}**: {meaning}")
        return out
    if deeper:
        return [f"| {' ' * (len(line) - len(line.lstrip()) - margin)}{inline(line.strip())}" for line in lines]
    return inline("\n".join(lines)).split("\n")


def plain(docstring: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText that says the same."""
    out: list[str] = []
    for blank, lines in groupby(docstring, key=lambda line: not line.strip()):
        out += [""] if blank else paragraph(list(lines))
    return [*out, ""]


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if name.startswith("lrkd"):
        lines[:] = plain(lines)


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
