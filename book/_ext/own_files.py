"""Sphinx: a page loads what lies in the book, nothing twice or in vain, and its markup is what it says.

Thebe would ask another host for a kernel, and its script is declared twice, which stops it with an error on every page.
A signature of several lines is written as a list of definitions without terms, and the bibliography as a list without
items: a screen reader would announce both as what they are not. The theme brings its icons twice, as a font and as a
script of 1.5 MB on each page; what draws them is the font. The first page would load MathJax for formulas of others.
"""

import itertools
import re
from pathlib import Path
from typing import Any

OPEN, CLOSE = r'<span class="sig-paren">\(</span>', r'<span class="sig-paren">\)</span>'
LINK = re.compile(r'(<a href="#(fig-[\w-]+)">)(.*?)</a>')
SIGNATURE = re.compile(rf"({OPEN}\s*)<dl>(.*?)</dl>(?=\s*{CLOSE})", re.DOTALL)


def told(body: str) -> str:
    """A signature's parameters as plain blocks, a line each; the bibliography without a role that its entries deny; a
    minus sign where a number of the text is below zero; and no line that ends within an interval or before its %."""

    def blocks(found: re.Match[str]) -> str:
        inner = found[2].replace("<dd>", "<div>").replace("</dd>", "</div>")
        return f'{found[1]}<div class="sig-lines">{inner}</div>'

    body = re.sub(r'(<span class="pasted-text">)-(?=\d)', r"\1−", body)
    body = re.sub(r'(\[<span class="pasted-text">[^<]*</span>,) (?=<span class="pasted-text">)', r"\1&nbsp;", body)
    body = re.sub(r'(<span class="pasted-text">\[[^<\]]*,) (?=[^<]*\])', r"\1&nbsp;", body)
    body = re.sub(r'(<span class="pasted-text">[^<]*</span>) %', r"\1&nbsp;%", body)
    return SIGNATURE.sub(blocks, body).replace('role="list" class="citation-list"', 'class="citation-list"')


def numbered(body: str, page: tuple[int, ...]) -> str:
    """Number the figures of a page that have a caption, and say the number where text links to one."""
    count, named, parts = itertools.count(1), {}, re.split(r"(?=<figure\b)", body)
    name = ""
    for k, part in enumerate(parts[1:], 1):
        own = re.match(r'[^>]* id="(fig-[\w-]+)"', part)
        name = own[1] if own else name
        if "<figcaption>" in part:
            number = "Figure " + ".".join(map(str, (*page, next(count))))
            parts[k] = part.replace("<figcaption>", f'<figcaption><span class="caption-number">{number}.</span> ', 1)
            named[name] = number
        if "</figcaption></figure>" in part or not own:  # what moves has its still picture within, and then its caption
            name = ""
    return LINK.sub(lambda found: f"{found[1]}{named.get(found[2], found[3])}</a>", "".join(parts))


OWN = "try-it"  # the page whose script and style sheet no other page loads
WRITTEN = ("moving.js", "plane.js")  # scripts that stand in the pages, behind the figures that they move


def process(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    formulas = app.env.domaindata["math"]["has_equations"].get(page)
    vain = ["thebe", *WRITTEN, *([] if formulas else ["mathjax"]), *([] if page == OWN else [f"{OWN}."])]

    def wanted(file: Any) -> bool:
        words = f"{getattr(file, 'filename', file)} {getattr(file, 'attributes', {})}".lower()
        return not any(one in words for one in vain)

    for kind in ("script_files", "css_files"):
        context[kind] = list(filter(wanted, context.get(kind, [])))
    if "body" in context:
        number = app.env.toc_secnumbers.get(page, {}).get("") or ()
        context["body"] = numbered(told(context["body"]), number)


def lighten(app: Any, exception: Exception | None) -> None:
    """Empty the script of icons; drop sources of scripts, and fonts in a format that only old browsers ask for."""
    static = Path(app.outdir) / "_static"
    for path in (*static.rglob("*.map"), *static.rglob("fa-*.ttf")):
        path.unlink()
    for path in static.glob("scripts/fontawesome.js"):
        path.write_text("")


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-page-context", process, priority=900)
    app.connect("build-finished", lighten)
    return {"parallel_read_safe": True}
