"""What a built wheel holds, and that it works from wherever it is installed."""

import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import lrkd

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

pytest.importorskip("setuptools", minversion="77", reason="the build backend is not installed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel that the build backend makes of a copy, as it leaves folders of its own beside the sources."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("lrkd", "data_prep", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    built = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (found,) = out.glob("*.whl")
    return found


def read(wheel, name):
    """The text of the one file of that name in the wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (found,) = (entry for entry in archive.namelist() if entry.endswith(f".dist-info/{name}"))
        return archive.read(found).decode()


def test_a_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {p.relative_to(ROOT).as_posix() for room in ("lrkd", "data_prep") for p in (ROOT / room).rglob("*.py")}
    assert held == modules | {"lrkd/py.typed", "data_prep/py.typed", "data_prep/README.md"}
    assert "Apache License" in read(wheel, "licenses/LICENSE")


def test_one_version_everywhere(wheel):
    told = email.message_from_string(read(wheel, "METADATA"))
    assert told["Version"] == lrkd.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == lrkd.__version__
    assert f"version = {{{lrkd.__version__}}}" in (ROOT / "book" / "cite.md").read_text(encoding="utf-8")
    assert "version" in PROJECT["dynamic"]


def test_a_wheel_asks_for_the_dependencies_and_names_the_extras(wheel):
    told = email.message_from_string(read(wheel, "METADATA"))
    asked = [line for line in told.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(asked) == sorted(PROJECT["dependencies"])
    assert {"book", "export", "photos", "cluster", "hub"} <= set(told.get_all("Provides-Extra"))


def test_commands_of_a_wheel_run_from_any_folder(wheel, tmp_path):
    entries = configparser.ConfigParser()
    entries.read_string(read(wheel, "entry_points.txt"))
    shown = {"lrkd": f"lrkd {lrkd.__version__}", "lrkd-prep": "data_prep.folder"}
    assert set(entries["console_scripts"]) == set(shown)
    for command, text in shown.items():
        module, _, function = entries["console_scripts"][command].partition(":")
        words = ["--version"] if command == "lrkd" else []
        code = f"import sys; sys.argv = {[command, *words]}; from {module} import {function}; sys.exit({function}())"
        env = {**os.environ, "PYTHONPATH": str(wheel)}  # Python imports from a wheel as from a folder
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert text in ran.stdout


def test_every_extra_that_a_message_names_is_one():
    """`lrkd.errors.needed` ends in one line with the command that brings what is missing."""
    sources = [path for room in ("lrkd", "data_prep") for path in (ROOT / room).rglob("*.py")]
    asked = set(
        re.findall(r'needed\([^"]*"[^"]*", "(\w+)"\)', "\n".join(p.read_text(encoding="utf-8") for p in sources))
    )
    assert len(asked) > 3
    assert asked <= set(PROJECT["optional-dependencies"])
