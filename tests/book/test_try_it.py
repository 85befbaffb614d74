"""The page Try it as a reader uses it: in headless Chromium, against Python, offline, by keys, from a file.

Skipped where Playwright, Chromium, the built book or the runtime that `make runtime` brings is missing.
"""

import base64
import io
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_browser
import torch
from kit import try_it
from PIL import Image
from test_browser import BOOK, PHONE, browser, home, shoot, visit  # noqa: F401

from book import runtime
from lrkd.data.degradation import degrade
from lrkd.evaluation import embedding, search, verification
from lrkd.onnx import recogniser
from lrkd.training.step import normalise

PAGE, STUDENT = BOOK / "try-it.html", Path(__file__).resolve().parents[2] / "book" / "results" / "student.onnx"
FILES = [BOOK / "runtime" / name for name in runtime.FILES]
pytestmark = [
    *test_browser.pytestmark,
    pytest.mark.skipif(not PAGE.is_file(), reason="the built book has no page Try it: make book"),
    pytest.mark.skipif(not all(file.is_file() for file in FILES), reason="the runtime is not there: make runtime"),
]
# Elsewhere native 8-bit products saturate, which those of WebAssembly do not: see lrkd.onnx.export.export.
CPU = Path("/proc/cpuinfo")
exact = pytest.mark.skipif(
    platform.machine() in ("x86_64", "AMD64") and not (CPU.is_file() and "vnni" in CPU.read_text()),
    reason="this processor's 8-bit products saturate",
)


def load(page: Any) -> None:
    page.locator(".try-start").click()
    page.locator(".try-similarity").wait_for()


def similarity(page: Any, before: float | None = None) -> float:
    """What the page found; with `before`, once it is another."""
    if before is not None:
        page.wait_for_function(f"() => +document.querySelector('.try-it').dataset.similarity !== {before!r}")
    return float(page.locator(".try-it").get_attribute("data-similarity"))


@pytest.fixture
def opened(visit) -> Iterator[tuple[Any, list[str], list[Any]]]:  # noqa: F811
    with visit("try-it.html") as (page, faults, answers):
        load(page)
        yield page, faults, answers
        assert faults == []


@pytest.fixture(scope="module")
def loaded(visit) -> Iterator[Any]:  # noqa: F811
    """The page for questions that change nothing in it."""
    with visit("try-it.html") as (page, _, _):
        load(page)
        yield page


@pytest.fixture(scope="module")
def faces(loaded) -> np.ndarray:
    """The page's own pictures, (N,H,H,3) uint8."""
    data = loaded.evaluate("lrkdTryIt.data")
    rgb = [base64.b64decode(one["rgb"]) for person in data["people"] for one in person["pictures"]]
    return np.stack([np.frombuffer(one, np.uint8).reshape(data["side"], data["side"], 3) for one in rgb])


@pytest.fixture(scope="module")
def student() -> recogniser.Recogniser:
    return recogniser.load(STUDENT, threads=1)


EMBED = """async ([pictures, hr, side, size]) => {
    const t = lrkdTryIt, given = pictures.map(rgb => t.seen(t.fromBytes(rgb, hr, 3), side, size));
    const found = await t.embed(t.session, given);
    return [given.map(one => Array.from(one.data)), found.map(one => Array.from(one))]; }"""


def embedded(page: Any, images: np.ndarray, side: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    given, found = page.evaluate(EMBED, [[one.ravel().tolist() for one in images], images.shape[1], side, size])
    return np.array(given).reshape(len(images), 3, size, size), np.array(found)


def test_nothing_is_loaded_before_the_reader_asks(visit):  # noqa: F811
    with visit("try-it.html") as (page, faults, answers):
        button = page.locator(".try-start")
        button.wait_for()
        size = sum(file.stat().st_size for file in FILES)
        assert button.inner_text() == f"Load the recogniser ({size / 1e6:.1f} MB)"
        asked = {Path(answer.url.partition("?")[0]).name for answer in answers}
        assert not asked & set(runtime.FILES)
        assert page.locator(".try-still img").is_visible()
        assert not page.locator(".try-tool").is_visible()
        load(page)
        later = {Path(answer.url.partition("?")[0]).name for answer in answers if not answer.url.startswith("blob:")}
        assert later - asked == set(runtime.FILES)
        shoot(page, "try-it-loaded")
        assert faults == []


@exact
@pytest.mark.parametrize("side", [6, 11, 16, 20, 48])
def test_the_browser_finds_pythons_embeddings(loaded, faces, student, side):
    given, found = embedded(loaded, faces, side, student.size)
    wanted = try_it.seen(faces, side, student.size)
    np.testing.assert_allclose(2 * given - 1, wanted, atol=1e-6)
    np.testing.assert_allclose(found, search.unit(student(wanted)), atol=1e-3)


@exact
def test_at_its_own_side_they_are_those_of_the_study(loaded, faces, student):
    _, found = embedded(loaded, faces, student.size, student.size)
    wanted = embedding.embed(student, faces, side=student.size, mirror=False)
    np.testing.assert_allclose(found, search.unit(wanted), atol=1e-3)


@exact
def test_occlusion_maps_are_pythons(loaded, faces, student):
    pair = try_it.seen(faces[:2], 12, student.size)
    call = """async ([pair, size]) => {
        const t = lrkdTryIt, [a, b] = pair.map(rgb => t.seen(t.fromBytes(rgb, 48, 3), 12, size));
        const found = await t.occlusion(t.session, [a, b], t.data.patch, t.data.stride);
        return [found.similarity, found.maps.map(one => Array.from(one))]; }"""
    score, maps = loaded.evaluate(call, [[one.ravel().tolist() for one in faces[:2]], student.size])
    wanted, expected = try_it.occlusion(student, *pair)
    assert score == pytest.approx(wanted, abs=1e-3)
    np.testing.assert_allclose(np.array(maps).reshape(expected.shape), expected, atol=1e-3)


def test_keys_choose_faces_and_lower_the_resolution_offline(opened):
    page, _, answers = opened
    page.context.set_offline(True)
    asked, first = len(answers), similarity(page)
    box = page.locator(".try-slot").nth(1)
    box.locator("input[type=radio]:checked").press("ArrowRight")  # another person
    other = similarity(page, first)
    slider = page.locator(".try-side input")
    data, seen = page.evaluate("lrkdTryIt.data"), [other]
    for _ in range(3):
        slider.press("ArrowLeft")
        seen.append(similarity(page, seen[-1]))
        found = data["scores"][int(slider.input_value())]
        assert slider.get_attribute("aria-valuetext") == f"{found['side']} pixels a side"
        said = page.locator(".try-result").inner_text()
        assert f"at {found['side']} pixels" in said
        for cut in found["cuts"]:
            verdict = "the same person" if seen[-1] >= cut["at"] else "different people"
            assert f"{verdict} at a FAR of {100 * cut['far']:g} %" in said
        at = float(page.locator(".try-pair").get_attribute("x1"))
        assert at == pytest.approx(8 + 344 * (seen[-1] + 1) / 2, abs=0.01)
    assert len(set(seen)) == 4
    assert len(answers) == asked


def picture(width: int, height: int, seed: int = 0) -> tuple[np.ndarray, bytes]:
    """Coarse noise, and its PNG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "PNG")
    return np.asarray(image), file.getvalue()


def offered(page: Any, slot: int, name: str, content: bytes) -> None:
    chooser = page.locator(".try-slot").nth(slot).locator("input[type=file]")
    chooser.set_input_files({"name": name, "mimeType": "image/png", "buffer": content})


@exact
def test_a_picture_of_ones_own_is_cropped_and_compared(opened, faces, student):
    page, _, answers = opened
    asked, before = len(answers), similarity(page)
    pixels, content = picture(200, 160)
    offered(page, 0, "own.png", content)
    own = similarity(page, before)
    square = torch.from_numpy(pixels[:, 20:180].copy()).permute(2, 0, 1)[None].double() / 255
    given = degrade(degrade(square, 48, enlarge=False), 16, enlarge=False)
    chosen = page.evaluate("[...document.querySelectorAll('.try-slot')[1].querySelectorAll('input[type=radio]')]"
                           ".findIndex(one => one.checked)")  # fmt: skip
    one, other = student(normalise(given).float().numpy()), student(try_it.seen(faces[[chosen]], 16, 16))
    assert own == pytest.approx(verification.cosine_scores(one, other)[0], abs=1e-3)
    assert page.locator(".try-slot").nth(0).locator("input:checked").count() == 0
    crop = page.locator(".try-slot").nth(0).locator(".try-crop canvas")
    said = crop.get_attribute("aria-label")
    assert "Square of 160 pixels, 20 from the left and 0 from the top" in said
    for key, words in (
        ("-", "154 pixels, 23 from"),
        ("ArrowLeft", "154 pixels, 17 from"),
        ("+", "160 pixels, 14 from"),
    ):
        crop.press(key)
        assert words in crop.get_attribute("aria-label")
    moved = similarity(page, own)
    box = crop.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"], box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    assert "Square of 160 pixels, 40 from the left" in crop.get_attribute("aria-label")
    dragged = similarity(page, moved)
    corner = box["x"] + box["width"] - 3, box["y"] + box["height"] - 3
    page.mouse.move(*corner)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.5 * box["height"], steps=3)
    page.mouse.up()
    assert "40 from the left" in crop.get_attribute("aria-label")
    assert int(crop.get_attribute("aria-label").split()[2]) < 140
    similarity(page, dragged)
    shoot(page, "try-it-own-picture")
    assert [answer.url for answer in answers[asked:] if not answer.url.startswith(("data:", "blob:"))] == []


def test_what_is_no_picture_is_said_once(opened):
    page, _, _ = opened
    before = similarity(page)
    offered(page, 1, "words.png", b"no picture")
    fault = page.locator(".try-slot").nth(1).locator(".try-fault")
    fault.filter(has_text="is no picture that your browser can read").wait_for()
    assert similarity(page) == before
    offered(page, 1, "own.png", picture(60, 90)[1])
    similarity(page, before)
    assert fault.inner_text() == ""


def test_without_a_camera_the_page_says_so(opened):
    page, _, _ = opened
    slot = page.locator(".try-slot").nth(0)
    slot.get_by_role("button", name="Use the camera").click()
    slot.locator(".try-fault").filter(has_text="There is no camera that this page may use").wait_for()


@contextmanager
def fresh(one: Any, address: str, **more: Any) -> Iterator[tuple[Any, list[str]]]:
    """The page in a context of its own, before anything is loaded, and its errors."""
    faults: list[str] = []
    with one.new_context(viewport=test_browser.DESKTOP, **more) as context:
        page = context.new_page()
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address, wait_until="networkidle")
        yield page, faults


def test_a_camera_gives_a_picture(browser, home):  # noqa: F811
    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-sandbox", "--disable-gpu"]
    own = browser.browser_type.launch(executable_path=test_browser.CHROMIUM, args=flags, timeout=120_000)
    with fresh(own, f"{home}/try-it.html") as (page, faults):
        load(page)
        before, slot = similarity(page), page.locator(".try-slot").nth(0)
        slot.get_by_role("button", name="Use the camera").click()
        page.wait_for_function("() => document.querySelector('.try-live video').videoWidth > 0")
        slot.get_by_role("button", name="Take the picture").click()
        similarity(page, before)
        assert not slot.locator(".try-live").is_visible()
        assert page.evaluate("document.querySelector('.try-live video').srcObject === null")
        assert faults == []
    own.close()


def test_it_works_from_a_file(browser):  # noqa: F811
    with fresh(browser, PAGE.as_uri()) as (page, faults):
        load(page)
        assert -1 <= similarity(page) <= 1
        assert faults == []


def test_without_scripts_the_picture_stands_alone(visit):  # noqa: F811
    with visit("try-it.html", java_script_enabled=False) as (page, _, _):
        assert page.locator(".try-still img").is_visible()
        assert not page.locator(".try-it button, .try-it input").filter(visible=True).count()
        assert "Scripts are off" in page.locator(".try-it noscript").inner_text()


@pytest.mark.parametrize("about", [json.dumps({"missing": "npm is not installed"}), None])
def test_without_the_runtime_the_page_says_what_brings_it(browser, home, about):  # noqa: F811
    with fresh(browser, "about:blank") as (page, _):
        script = {"body": f"window.lrkdRuntime = {about};", "content_type": "text/javascript"}
        page.route("**/runtime/about.js", lambda route: route.fulfill(**(script if about else {"status": 404})))
        page.goto(f"{home}/try-it.html", wait_until="networkidle")
        said = page.locator(".try-state").inner_text()
        assert "is not in this copy of the book" in said
        assert "make runtime brings it" in said
        assert ("(npm is not installed)" in said) == bool(about)
        assert not page.locator(".try-start").is_visible()
        assert page.locator(".try-still img").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_tool(browser, home, scheme):  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with fresh(browser, f"{home}/try-it.html", color_scheme=scheme) as (page, _):
        load(page)
        offered(page, 0, "own.png", picture(100, 80)[1])
        offered(page, 1, "words.png", b"no picture")
        page.locator(".try-crop canvas").first.wait_for()
        page.wait_for_timeout(700)  # colours fade in
        shoot(page, f"try-it-loaded-{scheme}")
        found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert {one["id"]: [node["html"][:160] for node in one["nodes"]] for one in serious} == {}


def test_the_tool_fits_a_phone(opened):
    page, _, _ = opened
    offered(page, 0, "own.png", picture(900, 700)[1])
    page.locator(".try-crop canvas").first.wait_for()
    page.set_viewport_size(PHONE)
    page.wait_for_timeout(300)
    shoot(page, "try-it-loaded-phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    wide = "all => all.filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 99))"
    assert page.locator(".try-tool *:visible").evaluate_all(wide) == []
