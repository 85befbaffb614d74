"""What `make pdf` does: Chromium prints each page of the built book, and the parts become one file.

Its outline has the pages' titles; a link to another page of the book leads to where that page begins.
"""

import io
import shutil
import sys
from pathlib import Path
from urllib.parse import urldefrag

import yaml
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, NameObject

# Formulas are set, and figures drawn that wait until a reader comes near them.
DRAWN = """async () => {
    await window.MathJax?.startup?.promise;
    await Promise.all([...document.querySelectorAll("main figure")].map(figure => figure.lrkdDraw?.()));
}"""


def printed(pages: list[Path], chromium: str) -> list[PdfReader]:
    """A4 prints of HTML files."""
    parts = []
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=120_000)
        for path in pages:
            page = browser.new_page(color_scheme="light")
            page.set_default_timeout(300_000)
            page.goto(path.as_uri(), wait_until="load")
            page.evaluate(DRAWN)
            margin = dict.fromkeys(("top", "bottom", "left", "right"), "15mm")
            parts.append(PdfReader(io.BytesIO(page.pdf(format="A4", margin=margin, print_background=True))))
            page.close()
        browser.close()
    return parts


def lead_inside(whole: PdfWriter, first: dict[str, int]) -> int:
    """Links to the addresses of `first` lead to the page with its number, other links to files nowhere; how many do."""
    led = 0
    for page in whole.pages:
        for one in page.get("/Annots", []):
            link = one.get_object()
            to, _ = urldefrag(link["/A"].get("/URI", "") if "/A" in link else "")
            if to in first:
                target = whole.pages[first[to]].indirect_reference
                link[NameObject("/Dest")] = ArrayObject([target, NameObject("/Fit")])
                led += 1
            if to.startswith("file:"):
                del link["/A"]
    return led


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    toc = yaml.safe_load((root / "book" / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    names = [toc["root"], *chapters]
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    pages = [root / "_build" / "html" / f"{name}.html" for name in names]
    missing = [page.name for page in pages if not page.is_file()]
    if chromium is None or missing:
        why = f"not built: {', '.join(missing)}; make book" if missing else "Chromium is not installed"
        sys.exit(f"make pdf: {why}")
    whole, first = PdfWriter(), {}
    for path, part in zip(pages, printed(pages, chromium), strict=True):
        title = (part.metadata.title if part.metadata else None) or ""
        first[path.as_uri()] = len(whole.pages)
        whole.append(part, outline_item=title.split(" — ")[0])
    led = lead_inside(whole, first)
    whole.compress_identical_objects()
    out = root / "_build" / "lrkd-book.pdf"
    whole.write(out)
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB, {len(whole.pages)} pages, {led} links among them)")


if __name__ == "__main__":
    main()
