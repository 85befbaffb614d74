"""Bring what the page "Try it" loads when a reader asks for it: `make runtime`, and `make book` where npm is there.

onnxruntime-web comes from the npm registry at one version, and its archive is compared with the hash below. Two of its
files are kept: the build for WebAssembly without threads, and its code, packed. The student lies beside them. All are
scripts, since a page that is opened from a file may load scripts alone. Nothing of it is in the repository.
"""

import argparse
import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE, VERSION = "onnxruntime-web", "1.18.0"  # the last whose builds for WebAssembly are plain scripts
SHA512 = "o1UKj4ABIj1gmG7ae0RKJ3/GT+3yoF0RRpfDfeoe0huzRW4FDRLfbkDETmdFAvnJEXuYDE0YT+hhkia0352StQ=="
SCRIPT, CODE = "package/dist/ort.wasm-core.min.js", "package/dist/ort-wasm-simd.wasm"
FILES = ("ort.js", "ort-code.js", "student.js")  # in the order in which the page loads them
ROOT = Path(__file__).resolve().parent.parent


class Missing(Exception):
    """What kept the runtime from being there, in one line."""


def fetched(folder: Path, seconds: float, npm: str = "npm") -> bytes:
    """The package's archive, as npm brings it into `folder`. Missing: npm or a connection is, or the hash differs."""
    options = "--silent --ignore-scripts --prefer-offline --fetch-retries=1 --fetch-retry-mintimeout=2000"
    call = [npm, "pack", f"{PACKAGE}@{VERSION}", *options.split()]
    try:
        ran = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError:
        raise Missing("npm is not installed") from None
    except subprocess.TimeoutExpired:
        raise Missing(f"npm brought nothing in {seconds:.0f} s") from None
    archives = list(folder.glob("*.tgz"))
    if ran.returncode or len(archives) != 1:
        raise Missing(f"npm could not bring {PACKAGE} {VERSION} (no connection?)")
    content = archives[0].read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
        raise Missing(f"what npm brought as {PACKAGE} {VERSION} has another sha512 than book/runtime.py says")
    return content


def unpacked(archive: Path) -> dict[str, bytes]:
    """The files of the checked archive that are kept, by their names in it."""
    with tarfile.open(archive) as package:
        return {name: package.extractfile(name).read() for name in (SCRIPT, CODE)}


def held(name: str, content: bytes) -> str:
    """A script that keeps bytes for the page."""
    return f'window.lrkdRuntime.{name} = "{base64.b64encode(content).decode()}";\n'


def bring(out: Path, student: Path, seconds: float, npm: str = "npm") -> dict[str, int]:
    """Write the files that the page loads to `out`, unless they are there: {name: bytes}. Missing leaves none."""
    stamp, version = out / "version.txt", f"{PACKAGE} {VERSION} {SHA512}\n"
    if not stamp.is_file() or stamp.read_text() != version:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        with tempfile.TemporaryDirectory(prefix="lrkd-") as name:
            archive = Path(name, "package.tgz")
            archive.write_bytes(fetched(Path(name), seconds, npm))
            kept = unpacked(archive)
        (out / "ort.js").write_bytes(kept[SCRIPT])
        (out / "ort-code.js").write_text(held("wasm", gzip.compress(kept[CODE], 9, mtime=0)))
        stamp.write_text(version)  # last: what was interrupted is done again
    (out / "student.js").write_text(held("student", student.read_bytes()))
    return {file: (out / file).stat().st_size for file in FILES}


def tell(out: Path, about: dict[str, object]) -> None:
    """What the page reads first, a few words."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "about.js").write_text(f"window.lrkdRuntime = {json.dumps(about)};\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--optional", action="store_true", help="say what is missing, and go on")
    parser.add_argument("--seconds", type=float, default=600, help="npm's time (default 600)")
    given = parser.parse_args()
    out, built = ROOT / "book" / "_extra" / "runtime", ROOT / "_build" / "html"
    try:
        sizes = bring(out, ROOT / "book" / "results" / "student.onnx", given.seconds)
    except Missing as error:
        tell(out, {"missing": str(error)})
        print(f"The page Try it stays a picture: {error}. `make runtime` brings the rest.", file=sys.stderr)
        return 0 if given.optional else 1
    tell(out, {"version": VERSION, "files": FILES, "bytes": sum(sizes.values())})
    if (built / "index.html").is_file() and not given.optional:  # a build copies it
        shutil.copytree(out, built / "runtime", dirs_exist_ok=True)
    shown = ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items())
    print(f"The page Try it can load {PACKAGE} {VERSION} and the student: {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
