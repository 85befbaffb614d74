"""What the book's pages load, and their markup: the words stay, only what they are called changes."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "book" / "_ext"))
import jupyter_client
import launch
import local_kernels
from jupyter_client.provisioning import KernelProvisionerFactory
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from own_files import lighten, numbered, process, told

SIGNATURE = (
    '<dl class="py"><dt>f<span class="sig-paren">(</span>\n\n<dl>\n<dd><em>a</em>,</dd>\n<dd><em>b</em></dd>\n</dl>\n\n'
    '<span class="sig-paren">)</span></dt><dd><dl>\n<dt>term</dt><dd>meaning</dd></dl></dd></dl>'
)


def test_no_line_ends_within_an_interval_or_before_a_percent_sign():
    one = '<span class="pasted-text">{}</span>'.format
    assert told(f"[{one('+0.6')}, {one('-1.2')}]") == f"[{one('+0.6')},&nbsp;{one('−1.2')}]"
    assert told(f"{one('[+0.6, +1.2]')} of {one('79.7')} %") == f"{one('[+0.6,&nbsp;+1.2]')} of {one('79.7')}&nbsp;%"
    assert told(f"a, {one('b')}, {one('c, d')}") == f"a, {one('b')}, {one('c, d')}"


def test_a_signature_is_no_list_and_lists_stay():
    shown = told(SIGNATURE)
    assert re.sub(r"<[^>]+>", "", shown) == re.sub(r"<[^>]+>", "", SIGNATURE)
    assert '<div class="sig-lines">\n<div><em>a</em>,</div>\n<div><em>b</em></div>\n</div>' in shown
    assert "<dl>\n<dt>term</dt><dd>meaning</dd></dl>" in shown


def test_numbers_of_the_text_have_a_minus_sign():
    text = '<span class="pasted-text">-0.5</span> and <span class="pasted-text">A-SKD</span>'
    assert told(text) == '<span class="pasted-text">−0.5</span> and <span class="pasted-text">A-SKD</span>'


def build(formulas=False):
    known = {"math": {"has_equations": {"index": formulas}}}
    return SimpleNamespace(env=SimpleNamespace(domaindata=known, toc_secnumbers={}))


def test_figures_have_numbers_and_text_says_them():
    body = (
        '<p>See <a href="#fig-two">Figure</a> and <a href="#fig-none">another</a>.</p>'
        '<figure style="margin:0"><img></figure><figure><img><figcaption>One</figcaption></figure>'
        '<figure style="margin:0" id="fig-two"><figure><img></figure><figcaption>Two</figcaption></figure>'
        "<figure><img><figcaption>Three</figcaption></figure>"
    )
    shown = numbered(body, (3,))
    assert re.findall(r"<figcaption>(.*?)</figcaption>", shown) == [
        f'<span class="caption-number">Figure {n}.</span> {said}'
        for n, said in (("3.1", "One"), ("3.2", "Two"), ("3.3", "Three"))
    ]
    assert '<a href="#fig-two">Figure 3.2</a> and <a href="#fig-none">another</a>' in shown


@pytest.mark.parametrize("formulas", [True, False])
def test_thebe_is_not_loaded_and_mathjax_where_a_formula_is(formulas):
    scripts = [
        SimpleNamespace(filename="_static/doctools.js", attributes={}),
        SimpleNamespace(filename="vendor/mathjax/tex-mml-chtml.js", attributes={}),
        SimpleNamespace(filename="_static/sphinx-thebe.js", attributes={}),
        SimpleNamespace(filename=None, attributes={"body": "const THEBE_JS_URL = 1"}),
    ]
    context = {"script_files": scripts, "css_files": ["_static/sphinx-thebe.css", "_static/book.css"], "body": "text"}
    process(build(formulas), "index", "page.html", context, None)
    assert context == {"script_files": scripts[: 1 + formulas], "css_files": ["_static/book.css"], "body": "text"}


def test_the_script_of_one_page_is_loaded_there_alone():
    files = [SimpleNamespace(filename="_static/try-it.js", attributes={}), "_static/try-it.css", "_static/book.css"]
    written = ["_static/moving.js", "_static/plane.js"]  # they stand in the pages already
    for page, left in (("index", files[2:]), ("try-it", files)):
        context = {"script_files": files + written}
        process(build(), page, "page.html", context, None)
        assert context["script_files"] == left


def test_what_nobody_asks_for_is_not_in_the_book(tmp_path):
    kept, dropped = (
        ("scripts/theme.js", "webfonts/fa-solid-900.woff2"),
        ("scripts/theme.js.map", "webfonts/fa-solid.ttf"),
    )
    for name in (*kept, *dropped, "scripts/fontawesome.js"):
        file = tmp_path / "_static" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("text")
    lighten(SimpleNamespace(outdir=tmp_path), None)
    left = {path.relative_to(tmp_path / "_static").as_posix(): path.read_text() for path in tmp_path.rglob("*.*")}
    assert left == {**dict.fromkeys(kept, "text"), "scripts/fontawesome.js": ""}


def test_kernels_have_no_port_and_each_its_own_sockets(monkeypatch):
    monkeypatch.setattr(jupyter_client, "AsyncKernelManager", jupyter_client.AsyncKernelManager)
    factory = KernelProvisionerFactory.instance()
    monkeypatch.setattr(factory, "default_provisioner_name", factory.default_provisioner_name)
    local_kernels.local()
    pages = [NotebookClient(new_notebook(cells=[new_code_cell(f"print({k})")])) for k in range(2)]
    managers = [page.create_kernel_manager() for page in pages]
    assert {manager.transport for manager in managers} == {"ipc"}
    assert len({manager.ip for manager in managers}) == 2
    assert pages[0].execute()["cells"][0]["outputs"][0]["text"] == "0\n"


PAGE = """
import sys
sys.path.insert(0, sys.argv[1])
import local_kernels
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

if __name__ == "__main__":
    local_kernels.local()
    cell = "import os, pathlib, sys, time; loaded = 'torch' in sys.modules; "
    cell += "pathlib.Path('seen').write_text(f'{os.getpid()} {loaded}'); time.sleep(600)"
    resources = {"metadata": {"path": sys.argv[2]}}
    NotebookClient(new_notebook(cells=[new_code_cell(cell)]), resources=resources).execute()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")
def test_a_forked_kernel_has_its_page_s_folder_and_ends_with_what_executes_it(tmp_path):
    """Nothing has to be imported; and a kill of what executes a page leaves no process."""
    script, folder = tmp_path / "script.py", tmp_path / "folder"
    script.write_text(PAGE)
    folder.mkdir()
    running = subprocess.Popen([sys.executable, script, Path(local_kernels.__file__).parent, folder])
    try:
        until(lambda: (folder / "seen").exists() and (folder / "seen").read_text())
        kernel, loaded = (folder / "seen").read_text().split()
        assert loaded == "True"
        running.kill()
        running.wait()
        until(lambda: not Path(f"/proc/{kernel}").exists())
    finally:
        running.kill()


def until(there: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)


# Binder and Colab


def test_buttons_stand_where_the_address_is_known(monkeypatch):
    config = SimpleNamespace(html_theme_options={"launch_buttons": {"thebe": False}, "own": 1})
    monkeypatch.delenv("LRKD_REPOSITORY", raising=False)
    launch.buttons(None, config)
    assert config.html_theme_options == {"launch_buttons": {"thebe": False}, "own": 1}
    monkeypatch.setenv("LRKD_REPOSITORY", "https://example.org/owner/lrkd/")
    launch.buttons(None, config)
    assert config.html_theme_options["repository_url"] == "https://example.org/owner/lrkd"
    assert {"binderhub_url", "colab_url"} <= set(config.html_theme_options["launch_buttons"])
    assert config.html_theme_options["own"] == 1


def test_the_first_cell_is_added_once_and_pages_stay_pages(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    page = Path(launch.ROOT / "book" / "students.ipynb").read_text(encoding="utf-8")
    (tmp_path / "a.ipynb").write_text(page, encoding="utf-8")
    for address in ("https://example.org/one/lrkd", "https://example.org/two/lrkd"):
        launch.prepend(tmp_path, address)
    found = json.loads((tmp_path / "a.ipynb").read_text(encoding="utf-8"))
    nbformat.validate(nbformat.from_dict(found))
    assert found["cells"][1:] == json.loads(page)["cells"]
    assert "two" in "".join(found["cells"][0]["source"])
    with pytest.raises(ValueError, match="not the address"):
        launch.prepend(tmp_path, 'https://x.org/";import os')


def test_the_first_cell_fetches_and_installs_what_is_missing(tmp_path):
    origin, away, stand_in = tmp_path / "origin", tmp_path / "away", tmp_path / "stand-in"
    for folder in (origin / "book" / "results", away, stand_in):
        folder.mkdir(parents=True)
    (origin / "book" / "results" / "core.csv").write_text("a\n")
    (stand_in / "pip.py").write_text("import sys\nprint('pip', *sys.argv[1:])\n")
    git = ["git", "-C", str(origin), "-c", "user.name=x", "-c", "user.email=x"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    code = "".join(launch.first_cell(f"file://{origin}")["source"]) + "\nprint(os.getcwd())"
    env = {**os.environ, "PYTHONPATH": str(stand_in)}
    for _ in range(2):  # the second time the clone is there
        ran = subprocess.run([sys.executable, "-S", "-c", code], cwd=away, env=env, capture_output=True, text=True)
        pip, folder = ran.stdout.splitlines()
        assert folder == str(away / "lrkd" / "book")
        assert pip.startswith("pip install --quiet --editable .. ipywidgets ")
        assert not {"jupyterlab", "torch"} & set(pip.split())
    inside = subprocess.run(
        [sys.executable, "-c", code], cwd=origin / "book", env=env, capture_output=True, text=True, check=True
    )
    assert inside.stdout.strip() == str(origin / "book"), "in the book's folder, with lrkd installed, nothing happens"
