"""What `make runtime` brings: only archives with the right hash, and of those only what a page loads."""

import base64
import gzip
import hashlib
import io
import json
import re
import sys
import tarfile
from pathlib import Path

import pytest

from book import runtime

CODE, SCRIPT = b"\0asm code" * 50, b"var ort = {};"


@pytest.fixture
def archives(tmp_path, monkeypatch) -> dict[str, Path]:
    """An archive of each package as npm brings it, with a file more, whose hash is the right one."""
    found = {}
    for name, package in runtime.KEPT.items():
        path = found[name] = tmp_path / f"{name}.archive"
        with tarfile.open(path, "w:gz") as files:
            for file in (package.script, *package.held.values(), "package/dist/other.js"):
                content = {package.script: SCRIPT, package.held.get("wasm"): CODE}.get(file, file.encode())
                entry = tarfile.TarInfo(file)
                entry.size = len(content)
                files.addfile(entry, io.BytesIO(content))
        sha512 = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        monkeypatch.setitem(runtime.KEPT, name, package._replace(sha512=sha512))
    return found


@pytest.fixture
def npm(tmp_path):
    """A stand-in for npm that does what the lines of shell say; "$2" is NAME@VERSION."""

    def made(lines: str) -> str:
        script = tmp_path / "npm"
        script.write_text(f"#!/bin/sh\n{lines}\n")
        script.chmod(0o755)
        return str(script)

    return made


def copies(archives: dict[str, Path]) -> str:
    return f'case "$2" in onnxruntime*) cp {archives["ort"]} a.tgz;; *) cp {archives["faces"]} a.tgz;; esac'


@pytest.fixture
def student(tmp_path) -> Path:
    (tmp_path / "student.onnx").write_bytes(b"student")
    return tmp_path / "student.onnx"


def kept(text: str, name: str) -> bytes:
    return base64.b64decode(re.search(rf'^window\.lrkdRuntime\.{name} = "([^"]*)";$', text, re.MULTILINE)[1])


def test_the_files_hold_what_the_archives_and_the_student_are(tmp_path, archives, npm, student):
    out = tmp_path / "out"
    sizes = runtime.bring(out, student, 60, npm(copies(archives)))
    assert sizes == {name: (out / name).stat().st_size for name in runtime.FILES}
    assert sorted(path.name for path in out.iterdir()) == sorted([*runtime.FILES, "version.txt"])
    assert (out / "ort.js").read_bytes() == (out / "faces.js").read_bytes() == SCRIPT
    assert gzip.decompress(kept((out / "ort-code.js").read_text(), "wasm")) == CODE
    weights = (out / "faces-code.js").read_text()
    assert {name: kept(weights, name).decode() for name in runtime.FACES.held} == runtime.FACES.held
    assert kept((out / "student.js").read_text(), "student") == b"student"
    student.write_bytes(b"another")
    runtime.bring(out, student, 60, "no-such-npm")  # what is there is not brought again, but the student is the newest
    assert kept((out / "student.js").read_text(), "student") == b"another"


@pytest.mark.parametrize("name", ["ort", "faces"])
def test_another_archive_is_refused_and_nothing_is_left(name, tmp_path, archives, npm, student):
    out = tmp_path / "out"
    with archives[name].open("ab") as file:
        file.write(b"more")
    with pytest.raises(runtime.Missing, match=f"{runtime.KEPT[name].name}.* has another sha512"):
        runtime.bring(out, student, 60, npm(copies(archives)))
    assert not out.exists()


@pytest.mark.parametrize(
    ("lines", "seconds", "said"),
    [
        ("echo ENOTFOUND >&2; exit 1", 60, r"could not bring .* \(no connection\?\)"),
        ("exit 0", 60, "could not bring"),
        ("exec sleep 60", 0.2, "brought nothing in 0 s"),
    ],
)
def test_what_npm_cannot_do_is_said_in_a_line(tmp_path, npm, student, lines, seconds, said):
    with pytest.raises(runtime.Missing, match=said) as caught:
        runtime.bring(tmp_path / "out", student, seconds, npm(lines))
    assert "\n" not in str(caught.value)


def test_a_build_goes_on_without_npm_and_the_page_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    for words, code in ((["--optional"], 0), ([], 1)):
        monkeypatch.setattr(sys, "argv", ["runtime.py", *words])
        assert runtime.main() == code
        assert re.fullmatch(r".*npm is not installed.*make runtime.*\n", capsys.readouterr().err)
    about = (tmp_path / "book/_extra/runtime/about.js").read_text()
    assert json.loads(about.partition(" = ")[2].rstrip(";\n")) == {"missing": "npm is not installed"}


@pytest.mark.parametrize("package", runtime.KEPT.values(), ids=lambda package: package.name)
def test_the_repository_pins_and_does_not_keep_it(package):
    assert re.fullmatch(r"\d+\.\d+\.\d+", package.version)
    assert len(base64.b64decode(package.sha512)) == 64
    assert "book/_extra/" in (runtime.ROOT / ".gitignore").read_text().splitlines()
