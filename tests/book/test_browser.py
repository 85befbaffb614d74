"""The built book as a reader meets it: every page in headless Chromium, where no name but this machine's resolves.

Skipped where Playwright, Chromium or the built book is missing; `make browse` runs this file alone. Screenshots are
kept in _build/screenshots.
"""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BOOK, SHOTS = ROOT / "_build" / "html", ROOT / "_build" / "screenshots"
TOC = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]


def runs(path: str) -> bool:
    """False for the stand-in that some systems have in Chromium's place."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


FOUND = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
CHROMIUM = next(filter(runs, FOUND), None)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
MEGABYTE = 1_000_000

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.skipif(not (BOOK / "index.html").is_file(), reason="the book is not built: make book"),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


# All is drawn: formulas, and the figures that wait until a reader comes near them.
DRAWN = """async () => {
    await window.MathJax?.startup?.promise;
    await Promise.all([...document.querySelectorAll("main figure")].map(figure => figure.lrkdDraw?.()));
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def home() -> Iterator[str]:
    """The address at which the built book is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(BOOK))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    flags = [rules, "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"]
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=120_000)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def visit(browser: Any, home: str) -> Any:
    """with visit(path, more of the browser's context) as (page, what went wrong, answers): once all is drawn."""

    @contextmanager
    def go(path: str, **more: Any) -> Iterator[tuple[Any, list[str], list[Any]]]:
        faults: list[str] = []
        answers: list[Any] = []
        with browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light", **more}) as context:
            page = context.new_page()
            page.set_default_timeout(120_000)
            page.on("console", lambda said: faults.append(f"console: {said.text}") if said.type == "error" else None)
            page.on("pageerror", lambda error: faults.append(f"error: {error}"))
            page.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
            page.on("response", lambda answer: None if answer.ok else faults.append(f"{answer.status}: {answer.url}"))
            page.on("response", lambda answer: answers.append(answer))
            page.goto(f"{home}/{path}", wait_until="networkidle")
            own = (home, "data:", "blob:")
            faults += [f"another host: {answer.url}" for answer in answers if not answer.url.startswith(own)]
            if more.get("java_script_enabled", True):
                page.evaluate(DRAWN)
            yield page, faults, answers

    return go


@pytest.fixture(scope="module", params=PAGES)
def opened(request: pytest.FixtureRequest, visit: Any) -> Iterator[tuple[str, Any, list[str]]]:
    """A page of the book, opened once for all tests that look at it."""
    with visit(f"{request.param}.html") as (page, faults, _):
        yield request.param, page, faults


def shoot(page: Any, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def test_a_page_loads_from_the_book_alone(opened):
    name, page, faults = opened
    shoot(page, f"{name}-desktop-light")
    assert faults == []


def test_every_figure_is_visible_and_told(opened):
    _, page, _ = opened
    pictures = page.locator("main article img").evaluate_all(
        "all => all.map(img => ({src: img.src.slice(0, 60), wide: img.naturalWidth, alt: img.alt.trim(),"
        " shown: img.getClientRects().length || !!img.closest('details:not([open]), .static[hidden], .only-dark')}))"
    )
    assert [one for one in pictures if not (one["wide"] and one["alt"] and one["shown"])] == []
    drawn = page.locator("main figure .drawing").evaluate_all(
        "all => all.map(d => ({label: d.getAttribute('aria-label'), high: d.getBoundingClientRect().height}))"
    )
    assert [one for one in drawn if not (one["label"] and one["high"] > 50)] == []


LEFT_OVER = re.compile(r"torch\._C| at 0x[0-9a-f]+>")


def test_a_cell_shows_nothing_by_accident(opened):
    """Neither an open figure, whose alt text is then its file's name, nor the address of an object."""
    _, page, _ = opened
    assert page.locator("main img[alt^='_images/']").evaluate_all("all => all.map(img => img.alt)") == []
    said = page.locator("main .cell_output .output").all_text_contents()
    assert [text.strip()[:120] for text in said if LEFT_OVER.search(text)] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    name, page, _ = opened
    page.set_viewport_size(DESKTOP)
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(f"() => document.documentElement.dataset.theme === '{scheme}'")
    page.wait_for_timeout(500)  # colours fade in
    if scheme == "dark":
        shoot(page, f"{name}-desktop-dark")
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert {
        one["id"]: [(node["target"], node["html"][:160], node["failureSummary"][:240]) for node in one["nodes"][:4]]
        for one in found
        if one["impact"] in ("serious", "critical")
    } == {}


def test_a_page_is_readable_on_a_phone(opened):
    name, page, _ = opened
    page.set_viewport_size(PHONE)
    page.wait_for_timeout(500)  # figures are drawn anew
    with suppress(playwright.TimeoutError):  # the pages that never fit say below what is too wide
        page.wait_for_function(f"() => document.documentElement.scrollWidth <= {PHONE['width']}", timeout=20_000)
    shoot(page, f"{name}-phone")
    told = page.evaluate(
        """limit => document.documentElement.scrollWidth <= limit ? [] :
        [document.documentElement.scrollWidth, ...[...document.querySelectorAll("body *")].filter(e => {
            if (e.getBoundingClientRect().right <= limit + 1) return false;
            for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
                if (getComputedStyle(p).overflowX !== "visible") return false;
            return true;
        }).slice(0, 6).map(e => e.outerHTML.slice(0, 160))]""",
        PHONE["width"],
    )
    assert told == []


def test_on_paper_a_drawing_is_a_picture_and_folded_code_is_left_out(opened):
    """The last of a page: the theme lays tables out anew for paper."""
    _, page, _ = opened
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_function("() => document.documentElement.dataset.theme === 'dark'")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")  # as a browser does: on paper a page is light
    seen = "all => all.map(one => one.getClientRects().length > 0)"
    assert not any(page.locator("main figure:has(.static) .drawing").evaluate_all(seen))
    assert all(page.locator("main figure .static img:not(.only-dark)").evaluate_all(seen))
    assert not any(page.locator("main details.hide:not([open])").evaluate_all(seen))


def moving() -> list[str]:
    """Pages with a figure that a reader moves."""
    built = [name for name in PAGES if (BOOK / f"{name}.html").is_file()]
    return [name for name in built if 'class="controls"' in (BOOK / f"{name}.html").read_text(encoding="utf-8")]


# What the browser holds of a figure: it changes when the figure does.
STATE = """input => { const figure = input.closest("figure"), drawing = figure.querySelector(".drawing");
    if (!drawing) return figure.querySelector("img").src;
    return JSON.stringify([drawing.data, drawing.layout]) + drawing.innerHTML; }"""
LAST = "i => i.type === 'range' ? +i.value === +i.max : i.options && i.selectedIndex === i.options.length - 1"
NAME = "i => i.getAttribute('aria-label') || i.labels[0]?.textContent.trim()"


@pytest.mark.parametrize("name", moving())
def test_keys_move_every_figure(visit, name):
    with visit(f"{name}.html") as (page, faults, _):
        controls = page.locator("main .controls input, main .controls select, main .drawing [role=slider]")
        controls.first.wait_for()
        for i in range(controls.count()):
            one = controls.nth(i)
            assert one.evaluate(NAME), f"control {i} has no name"
            before = one.evaluate(STATE)
            one.press("ArrowLeft" if one.evaluate(LAST) else "ArrowRight")
            try:
                page.wait_for_function(
                    f"([input, before]) => ({STATE})(input) !== before", arg=[one.element_handle(), before]
                )
            except playwright.TimeoutError:
                pytest.fail(f"control {i} moves nothing")
        shoot(page, f"{name}-moved")
        assert faults == []


@pytest.mark.parametrize("name", moving())
def test_without_scripts_a_picture_stands_for_what_would_move(visit, name):
    with visit(f"{name}.html", java_script_enabled=False) as (page, _, _):
        figures = page.locator("main figure:has(> .controls)")
        assert figures.count()
        for i in range(figures.count()):
            assert figures.nth(i).locator(".static img, > img, .drawing > svg").first.is_visible()


def test_a_vector_follows_the_mouse(visit):
    with visit("distances.html") as (page, _, _):
        handle = page.locator("main .drawing [role=slider][data-name=s]")
        handle.scroll_into_view_if_needed()
        box, before = handle.bounding_box(), handle.get_attribute("aria-valuetext")
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + 60, box["y"] + 80, steps=4)
        page.mouse.up()
        assert handle.get_attribute("aria-valuetext") != before


def test_the_first_page_is_light_and_so_is_the_book(visit):
    with visit(f"{PAGES[0]}.html") as (_, _, answers):
        sent = {answer.url: len(answer.body()) for answer in answers}  # uncompressed
    assert sum(sent.values()) < 2 * MEGABYTE
    assert sum(file.stat().st_size for file in BOOK.rglob("*") if file.is_file()) < 60 * MEGABYTE


def test_a_page_downloads_as_its_notebook(opened):
    name, page, _ = opened
    link = page.locator("a.btn-download-source-button[href$='.ipynb']")
    assert link.count() == (ROOT / "book" / f"{name}.ipynb").is_file()
    if link.count():
        with page.expect_download() as given:
            link.dispatch_event("click")
        notebook = nbformat.read(given.value.path(), as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        unseen = {"remove-cell", "remove-input"}
        wanted = [cell.source for cell in code if unseen.isdisjoint(cell.metadata.get("tags", []))]
        shown = page.locator("main .cell_input pre").all_text_contents()
        assert [text.strip() for text in shown] == [text.strip() for text in wanted]


def test_search_finds_the_cosine(visit):
    with visit("search.html?q=cosine") as (page, faults, _):
        page.locator("ul.search li").first.wait_for()
        found = page.locator("ul.search li a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
        assert any("distances.html" in link for link in found)
        assert faults == []


def test_the_book_opens_from_a_file(browser):
    """As it does out of the archive that `make zip` packs."""
    faults: list[str] = []
    with browser.new_context() as context:
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
        page.goto((BOOK / "teacher.html").as_uri(), wait_until="networkidle")
        page.evaluate(DRAWN)
        assert page.locator("main .drawing:visible").count()
    assert faults == []


def test_pages_and_figures_are_numbered(opened):
    """Those of the main part by the toolchain, and each figure that text cites."""
    name, page, _ = opened
    numbered = [chapter["file"] for part in TOC["parts"] if part.get("numbered") for chapter in part["chapters"]]
    if name in numbered:
        assert page.locator("main article h1").first.text_content().strip().startswith(f"{1 + numbered.index(name)}. ")
    cited = page.locator("main a[href^='#fig-']").all_text_contents()
    assert all(re.fullmatch(r"Figure [\d.]+", text) for text in cited)


# Links


class Anchors(HTMLParser):
    """What a page may be linked at, and what it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id" or (tag == "a" and key == "name"):
                self.ids.add(value or "")
            elif key in ("href", "src") and value:
                self.links.append(value)


def broken(folder: Path) -> list[str]:
    """Links of the HTML files of a folder to files or anchors that are not there."""
    pages = [path for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts]  # the theme's templates
    files = {path: Anchors(path.read_text(encoding="utf-8")) for path in pages}
    faults = []
    for path, page in files.items():
        for link in page.links:
            target, anchor = urldefrag(link)
            if ":" in target.split("/")[0] or target.startswith("//"):
                continue
            file = (path.parent / unquote(target.split("?")[0])).resolve() if target else path
            there = file in files and (not anchor or unquote(anchor) in files[file].ids)
            if not (there or (file.is_file() and file not in files)):
                faults.append(f"{path.relative_to(folder)}: {link}")
    return faults


def test_every_link_leads_somewhere():
    assert broken(BOOK.resolve()) == []


def test_broken_links_are_seen(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#x">1</a><a href="#y">2</a><a href="c.csv">3</a>')
    (tmp_path / "b.html").write_text('<p id="x"><a href="a.html#z">4</a><a href="https://e.org/no">5</a></p>')
    assert broken(tmp_path) == ["a.html: #y", "a.html: c.csv", "b.html: a.html#z"]
