"""The page Try it as a reader uses it: in headless Chromium, against Python, offline, by keys, from a file.

Skipped where Playwright, Chromium, the built book or the runtime that `make runtime` brings is missing.
"""

import base64
import io
import json
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_browser
from kit import try_it
from PIL import Image
from test_browser import BOOK, PHONE, browser, home, shoot, visit  # noqa: F401

from book import runtime, student_photos
from lrkd.data import alignment
from lrkd.evaluation import search, verification
from lrkd.onnx import recogniser

PAGE, STUDENT = BOOK / "try-it.html", student_photos.RESULTS / "photo-student.onnx"
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
    """Drawn faces as Python aligns them, (N,112,112,3) uint8."""
    people = loaded.evaluate("lrkdTryIt.data.people")
    drawn = [one for person in people for one in person][:6]
    images = [Image.open(io.BytesIO(base64.b64decode(one["webp"]))).convert("RGB") for one in drawn]
    return np.stack(
        [alignment.warp(image, np.array(one["points"]), 112) for image, one in zip(images, drawn, strict=True)]
    )


@pytest.fixture(scope="module")
def student() -> recogniser.Recogniser:
    return recogniser.load(STUDENT, threads=1)


PLANES = """rgb => ({side: Math.sqrt(rgb.length / 3),
    data: Float64Array.from([0, 1, 2].flatMap(plane => rgb.filter((_, i) => i % 3 === plane)), v => v / 255)})"""
EMBED = f"""async ([pictures, side, size]) => {{
    const t = lrkdTryIt, given = pictures.map({PLANES}).map(face => t.seen(face, side, size));
    const found = await t.embed(t.session, given);
    return [given.map(one => Array.from(one.data)), found.map(one => Array.from(one))]; }}"""


def embedded(page: Any, images: np.ndarray, side: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    given, found = page.evaluate(EMBED, [[one.ravel().tolist() for one in images], side, size])
    return np.array(given).reshape(len(images), 3, size, size), np.array(found)


def test_nothing_is_loaded_before_the_reader_asks(visit):  # noqa: F811
    with visit("try-it.html") as (page, faults, answers):
        button = page.locator(".try-start")
        button.wait_for()
        size = sum(file.stat().st_size for file in FILES)
        assert button.inner_text() == f"Load the recogniser ({size / 1e6:.1f} MB)"
        asked = {Path(answer.url.partition("?")[0]).name for answer in answers}
        assert not asked & set(runtime.FILES)
        assert page.locator(".try-verdict").inner_text() == "The recogniser has yet to be loaded."
        load(page)
        own = ("blob:", "data:")
        later = {Path(answer.url.partition("?")[0]).name for answer in answers if not answer.url.startswith(own)}
        assert later - asked == set(runtime.FILES)
        shoot(page, "try-it-loaded")
        assert faults == []


@exact
@pytest.mark.parametrize("side", [8, 10, 12, 16])
def test_the_browser_finds_pythons_embeddings(loaded, faces, student, side):
    given, found = embedded(loaded, faces, side, student.size)
    np.testing.assert_allclose(2 * given - 1, student_photos.shown(faces, side), atol=1e-5)
    np.testing.assert_allclose(found, search.unit(student(try_it.seen(faces, side, student.size))), atol=1e-3)


@exact
def test_occlusion_maps_are_pythons(loaded, faces, student):
    pair = try_it.seen(faces[:2], 12, student.size)
    call = f"""async ([pair, size]) => {{
        const t = lrkdTryIt, [a, b] = pair.map({PLANES}).map(face => t.seen(face, 12, size));
        const found = await t.occlusion(t.session, [a, b], t.data.patch, t.data.stride);
        return [found.similarity, found.maps.map(one => Array.from(one))]; }}"""
    score, maps = loaded.evaluate(call, [[one.ravel().tolist() for one in faces[:2]], student.size])
    wanted, expected = try_it.occlusion(student, *pair)
    assert score == pytest.approx(wanted, abs=1e-3)
    np.testing.assert_allclose(np.array(maps).reshape(expected.shape), expected, atol=1e-3)


@pytest.mark.parametrize(("width", "height", "scale"), [(200, 160, 0.6), (700, 900, 4.3), (120, 300, 1.0)])
def test_a_face_is_cut_out_as_python_cuts_it(loaded, width, height, scale):
    pixels, _ = picture(width, height, 3)
    turned = np.exp(0.2j) * scale * ((alignment.TEMPLATE - 56) @ (1, 1j)) + width / 2 + 0.4j * height
    points = np.stack([turned.real, turned.imag], 1) + np.random.default_rng(0).normal(0, scale, (5, 2))
    call = """([rgba, width, height, points]) => { const t = lrkdTryIt;
        const face = t.warp({width, height, data: rgba}, t.framed(points, t.data), 112);
        return [Array.from(face.data), face.beyond]; }"""
    rgba = np.dstack([pixels, np.full((height, width), 255, np.uint8)])
    found, beyond = loaded.evaluate(call, [rgba.ravel().tolist(), width, height, points.tolist()])
    assert beyond == pytest.approx(alignment.outside(points, width, height), abs=0.02)
    wanted = alignment.warp(Image.fromarray(pixels), points, 112)
    off = np.abs(255 * np.array(found).reshape(3, 112, 112).transpose(1, 2, 0) - wanted)
    assert np.quantile(off, 0.995) <= 1.5, "the last pixel before the picture's end may round otherwise"
    assert off.mean() < 0.6


def test_keys_choose_faces_and_lower_the_resolution_offline(opened):
    page, _, answers = opened
    page.context.set_offline(True)
    asked, first = len(answers), similarity(page)
    drawn = page.locator(".try-slot").nth(1).get_by_role("button", name="Drawn")
    drawn.press("Enter")  # another person
    slider, data = page.locator(".try-side input"), page.evaluate("lrkdTryIt.data")
    seen = [similarity(page, first)]
    for _ in range(3):
        slider.press("ArrowLeft")
        seen.append(similarity(page, seen[-1]))
        found = data["scores"][int(slider.input_value())]
        assert slider.get_attribute("aria-valuetext") == f"{found['side']} pixels a side"
        said = page.locator(".try-verdict").inner_text()
        assert "this student knows photographs alone" in said
        above = seen[-1] > found["threshold"]
        assert "No verdict" in said
        assert "Rather" not in said
        assert ("Not above the threshold" in said) == (not above)
        at = float(page.locator(".try-pair").get_attribute("x1"))
        assert at == pytest.approx(8 + 344 * (max(seen[-1], -0.5) + 0.5) / 1.5, abs=0.01)
    assert len(set(seen)) == 4
    assert {answer.url.partition(":")[0] for answer in answers[asked:]} <= {"data", "blob"}


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


FRAME = "lrkdTryIt.slots[0].crop.frame()"


def framed(page: Any) -> tuple[complex, complex]:
    """Where the frame of the first face is: its middle, and its size with its turn."""
    found = page.evaluate(FRAME)
    return complex(*found["at"]), complex(*found["size"])


@exact
def test_a_picture_without_a_face_is_framed_by_hand_and_compared(opened, student):
    page, _, answers = opened
    asked, before = len(answers), similarity(page)
    pixels, content = picture(200, 160)
    offered(page, 0, "own.png", content)
    fault = page.locator(".try-slot").nth(0).locator(".try-fault")
    fault.filter(has_text="No face was found").wait_for()
    assert page.locator(".try-verdict").inner_text() == "Frame the face by hand."
    assert similarity(page) == before
    assert framed(page) == (100 + 80j, pytest.approx(0.7 * 160))
    crop = page.locator(".try-crop").first
    for key, wanted in (
        ("ArrowRight", (100 - 0.02 * 112 + 80j, 112)),
        ("+", (100 - 0.02 * 112 + 80j, 112 / 1.05)),
        ("-", (100 - 0.02 * 112 + 80j, 112)),
        ("]", (100 - 0.02 * 112 + 80j, 112 * np.exp(-0.05j))),
    ):
        crop.press(key)
        assert framed(page) == pytest.approx(wanted)
    assert "turned by -3°" in crop.get_attribute("aria-label")
    moved = similarity(page, before)
    box = crop.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    at, size = framed(page)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 0.25 * box["width"], middle[1], steps=3)
    page.mouse.up()
    assert framed(page) == pytest.approx((at - 0.25 * 1.4 * size, size), abs=0.5)
    page.mouse.wheel(0, -100)  # the picture has the focus of the keys
    page.wait_for_function(f"size => Math.hypot(...{FRAME}.size) < size", arg=abs(size) - 1)
    own = similarity(page, moved)
    page.wait_for_timeout(300)
    own, (at, size) = similarity(page), framed(page)
    points = ((alignment.TEMPLATE + 0.5) / 112 - 0.5) @ (1, 1j) * size + at - (0.5 + 0.5j)
    face = alignment.warp(Image.fromarray(pixels), np.stack([points.real, points.imag], 1), 112)
    other = page.evaluate("Array.from(lrkdTryIt.slots[1].crop.face().data)")
    other = np.array(other).reshape(1, 3, 112, 112).transpose(0, 2, 3, 1)
    pair = try_it.seen(np.concatenate([face[None], (255 * other).round().astype(np.uint8)]), 16, 16)
    embeddings = student(pair)
    assert own == pytest.approx(verification.cosine_scores(embeddings[:1], embeddings[1:])[0], abs=0.02)
    shoot(page, "try-it-own-picture")
    assert {answer.url.partition(":")[0] for answer in answers[asked:]} <= {"data", "blob"}


def test_two_fingers_resize_and_turn(opened):
    page, _, _ = opened
    before = framed(page)
    page.evaluate(
        """() => { const canvas = document.querySelector(".try-crop"), box = canvas.getBoundingClientRect();
        canvas.setPointerCapture = () => {};
        const send = (kind, pointerId, x, y) => canvas.dispatchEvent(new PointerEvent(kind, {pointerId,
            clientX: box.x + box.width * x, clientY: box.y + box.height * y}));
        send("pointerdown", 1, 0.4, 0.5); send("pointerdown", 2, 0.6, 0.5);
        send("pointermove", 1, 0.5, 0.3); send("pointermove", 2, 0.5, 0.7);
        send("pointerup", 1, 0.5, 0.3); send("pointerup", 2, 0.5, 0.7); }"""
    )
    assert framed(page) == pytest.approx((before[0], before[1] / 2j), abs=0.01)  # twice as large, a quarter turn


def drawn_face(faces: np.ndarray, width: int = 420) -> tuple[np.ndarray, bytes]:
    """A drawn face off the middle of a picture, and its PNG."""
    image = Image.new("RGB", (width, 300), (90, 110, 140))
    image.paste(Image.fromarray(faces).resize((192, 192), Image.Resampling.BICUBIC), (180, 60))
    file = io.BytesIO()
    image.save(file, "PNG")
    return np.asarray(image), file.getvalue()


def test_a_face_is_found_and_framed(opened):
    page, _, _ = opened
    one = page.evaluate("lrkdTryIt.data.people[1][1]")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["webp"]))).convert("RGB"))
    before = similarity(page)
    offered(page, 0, "own.png", drawn_face(image)[1])
    page.locator(".try-state").filter(has_text="The face was found.").wait_for()
    similarity(page, before)
    turn = alignment.similarity(2 * np.array(one["points"]) + (180.5, 60.5), 112)
    wanted = (turn @ (55.5, 55.5, 1)) @ (1, 1j)
    size = 112 * complex(turn[0, 0], turn[1, 0])
    at, found = framed(page)
    assert abs(at - wanted) < 0.15 * abs(size)
    assert abs(found / size - 1) < 0.25
    assert "different people" not in page.locator(".try-verdict").inner_text(), "the other face is a drawn one"
    offered(page, 1, "own.png", drawn_face(image)[1])
    said = page.locator(".try-verdict").filter(has_text="of the pairs of different people pass")
    said.wait_for()
    assert re.match(r"1\.00 Rather the same person\s+Above the threshold 0\.\d\d, which \d+ %", said.inner_text())


def test_what_is_no_picture_is_said_once(opened):
    page, _, _ = opened
    before = similarity(page)
    offered(page, 1, "words.png", b"no picture")
    slot = page.locator(".try-slot").nth(1)
    slot.locator(".try-fault").filter(has_text="Your browser cannot read this file as a picture").wait_for()
    assert similarity(page) == before
    slot.get_by_role("button", name="Drawn").click()
    similarity(page, before)
    assert slot.locator(".try-fault").inner_text() == ""


def test_without_a_camera_the_page_says_so(opened):
    page, _, _ = opened
    slot = page.locator(".try-slot").nth(0)
    slot.get_by_role("button", name="Camera").click()
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
        slot = page.locator(".try-slot").nth(0)
        slot.get_by_role("button", name="Camera").click()
        page.wait_for_function("() => document.querySelector('.try-live video').videoWidth > 0")
        slot.get_by_role("button", name="Take").click()
        assert not slot.locator(".try-live").is_visible()
        assert slot.locator(".try-crop").get_attribute("aria-label").startswith("Your picture")
        assert page.evaluate("document.querySelector('.try-live video').srcObject === null")
        assert faults == []
    own.close()


def test_it_works_from_a_file(browser):  # noqa: F811
    with fresh(browser, PAGE.as_uri()) as (page, faults):
        load(page)
        assert -1 <= similarity(page) <= 1
        assert faults == []


def test_without_scripts_the_page_says_so(visit):  # noqa: F811
    with visit("try-it.html", java_script_enabled=False) as (page, _, _):
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
        assert not page.locator(".try-tool").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_tool(browser, home, scheme):  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with fresh(browser, f"{home}/try-it.html", color_scheme=scheme) as (page, _):
        load(page)
        offered(page, 0, "own.png", picture(100, 80)[1])
        offered(page, 1, "words.png", b"no picture")
        page.locator(".try-where summary").click()
        page.locator(".try-slot").nth(0).locator(".try-fault").filter(has_text="No face was found").wait_for()
        page.wait_for_timeout(700)  # colours fade in
        shoot(page, f"try-it-loaded-{scheme}")
        found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert {one["id"]: [node["html"][:160] for node in one["nodes"]] for one in serious} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_faces_slider_and_answer_are_on_one_screen(browser, home, scheme):  # noqa: F811
    with fresh(browser, f"{home}/try-it.html", color_scheme=scheme) as (page, faults):
        page.set_viewport_size(PHONE)
        page.locator(".try-start").wait_for()
        page.wait_for_timeout(300)
        first = page.locator(".try-start").bounding_box()
        assert first["y"] + first["height"] < PHONE["height"] / 2, "the button comes first"
        load(page)
        for kind in (".try-crop", ".try-own", ".try-side", ".try-verdict", ".try-pixels"):
            for box in (one.bounding_box() for one in page.locator(kind).all()):
                assert box["y"] + box["height"] <= PHONE["height"], kind
        small = "all => all.map(e => e.getBoundingClientRect()).filter(r => Math.min(r.width, r.height) < 24).length"
        assert page.locator(".try-tool :is(button:visible, .try-file)").evaluate_all(small) == 0
        shoot(page, f"try-it-loaded-phone-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        wide = "all => all.filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 99))"
        assert page.locator(".try-tool *:visible").evaluate_all(wide) == []
        assert faults == []


def test_the_answer_is_announced(loaded):
    verdict = loaded.locator(".try-verdict")
    assert (verdict.get_attribute("aria-live"), verdict.get_attribute("role")) == ("polite", "status")
    card = loaded.locator(".try-card").inner_text()
    told = recogniser.load(STUDENT).metadata
    assert told["trained_on"] in card
    assert told["not_for"] in card
