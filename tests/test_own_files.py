"""What the book's pages load, and their markup: the words stay, only what they are called changes."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "book" / "_ext"))
from own_files import process, told

SIGNATURE = (
    '<dl class="py"><dt>f<span class="sig-paren">(</span>\n\n<dl>\n<dd><em>a</em>,</dd>\n<dd><em>b</em></dd>\n</dl>\n\n'
    '<span class="sig-paren">)</span></dt><dd><dl>\n<dt>term</dt><dd>meaning</dd></dl></dd></dl>'
)


def test_a_signature_is_no_list_and_lists_stay():
    shown = told(SIGNATURE)
    assert re.sub(r"<[^>]+>", "", shown) == re.sub(r"<[^>]+>", "", SIGNATURE)
    assert '<div class="sig-lines">\n<div><em>a</em>,</div>\n<div><em>b</em></div>\n</div>' in shown
    assert "<dl>\n<dt>term</dt><dd>meaning</dd></dl>" in shown


def test_thebe_is_not_loaded():
    scripts = [
        SimpleNamespace(filename="_static/doctools.js", attributes={}),
        SimpleNamespace(filename="_static/sphinx-thebe.js", attributes={}),
        SimpleNamespace(filename=None, attributes={"body": "const THEBE_JS_URL = 1"}),
    ]
    context = {"script_files": scripts, "css_files": ["_static/sphinx-thebe.css", "_static/book.css"], "body": "text"}
    process(None, "index", "page.html", context, None)
    assert context == {"script_files": scripts[:1], "css_files": ["_static/book.css"], "body": "text"}


def test_the_script_of_one_page_is_loaded_there_alone():
    files = [SimpleNamespace(filename="_static/try-it.js", attributes={}), "_static/try-it.css", "_static/book.css"]
    for page, left in (("index", files[2:]), ("try-it", files)):
        context = {"script_files": list(files)}
        process(None, page, "page.html", context, None)
        assert context["script_files"] == left
