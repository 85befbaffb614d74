"""What `make runtime` brings: only an archive with the right hash, and of that only what a page loads."""

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
def archive(tmp_path, monkeypatch) -> Path:
    """An archive as npm brings it, with a file more, whose hash is the right one."""
    path = tmp_path / "archive"
    with tarfile.open(path, "w:gz") as package:
        for name, content in ((runtime.SCRIPT, SCRIPT), (runtime.CODE, CODE), ("package/dist/ort.js", b"other")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            package.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(runtime, "SHA512", base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode())
    return path


@pytest.fixture
def npm(tmp_path):
    """A stand-in for npm that does what the lines of shell say."""

    def made(lines: str) -> str:
        script = tmp_path / "npm"
        script.write_text(f"#!/bin/sh\n{lines}\n")
        script.chmod(0o755)
        return str(script)

    return made


@pytest.fixture
def student(tmp_path) -> Path:
    (tmp_path / "student.onnx").write_bytes(b"student")
    return tmp_path / "student.onnx"


def kept(text: str, name: str) -> bytes:
    return base64.b64decode(re.fullmatch(rf'window\.lrkdRuntime\.{name} = "([^"]*)";\n', text)[1])


def test_the_files_hold_what_the_archive_and_the_student_are(tmp_path, archive, npm, student):
    out = tmp_path / "out"
    sizes = runtime.bring(out, student, 60, npm(f"cp {archive} package.tgz"))
    assert sizes == {name: (out / name).stat().st_size for name in runtime.FILES}
    assert sorted(path.name for path in out.iterdir()) == sorted([*runtime.FILES, "version.txt"])
    assert (out / "ort.js").read_bytes() == SCRIPT
    assert gzip.decompress(kept((out / "ort-code.js").read_text(), "wasm")) == CODE
    assert kept((out / "student.js").read_text(), "student") == b"student"
    student.write_bytes(b"another")
    runtime.bring(out, student, 60, "no-such-npm")  # what is there is not brought again, but the student is the newest
    assert kept((out / "student.js").read_text(), "student") == b"another"


def test_another_archive_is_refused_and_nothing_is_left(tmp_path, archive, npm, student):
    out = tmp_path / "out"
    with pytest.raises(runtime.Missing, match="another sha512"):
        runtime.bring(out, student, 60, npm(f"cp {archive} package.tgz; echo more >> package.tgz"))
    assert list(out.iterdir()) == []


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


def test_the_repository_pins_and_does_not_keep_it():
    assert re.fullmatch(r"\d+\.\d+\.\d+", runtime.VERSION)
    assert len(base64.b64decode(runtime.SHA512)) == 64
    assert "book/_extra/" in (runtime.ROOT / ".gitignore").read_text().splitlines()
