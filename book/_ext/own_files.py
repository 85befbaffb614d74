"""Sphinx: a page loads what lies in the book, and nothing twice.

Thebe would ask another host for a kernel, and its script is declared twice, which stops it with an error on every page.
"""

from typing import Any


def process(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    for kind in ("script_files", "css_files"):
        context[kind] = [
            file
            for file in context.get(kind, [])
            if "thebe" not in f"{getattr(file, 'filename', file)} {getattr(file, 'attributes', {})}".lower()
        ]


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-page-context", process, priority=900)
    return {"parallel_read_safe": True}
