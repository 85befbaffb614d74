"""The house around the package: the lock, make, the book's settings, and what the repository may not contain."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lrkd.data import procedural, tables
from lrkd.distill.methods import METHODS
from lrkd.study.presets import SCALES

ROOT = Path(__file__).resolve().parent.parent


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def tracked() -> list[Path]:
    """Files of the repository; those that git would add too, so that a fault shows before the commit."""
    found = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        pytest.skip("not a git checkout")
    return [p for p in (ROOT / name for name in found.stdout.split("\0") if name) if p.is_file()]


# The lock


def lock_lines() -> list[str]:
    """A line a package, with the hashes of its files."""
    lines = text("requirements.txt").replace(" \\\n    ", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def test_lock_pins_everything_exactly_and_once():
    for line in lock_lines():
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][\w.!+]*( ; [^-]+?)?( --hash=sha256:[0-9a-f]{64})+", line), (
            line
        )
    names = [line.split("==")[0] for line in lock_lines()]
    assert len(names) == len(set(names)), "one version each, for every Python alike"


def test_lock_names_no_host_and_no_path():
    assert not re.search(r"://|--(extra-)?index-url|--find-links|\.(org|com|io)\b|(^|\s)/\w", text("requirements.txt"))


def test_lock_holds_what_pyproject_asks_for():
    project = tomllib.loads(text("pyproject.toml"))["project"]
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    pins = dict(line.split()[0].split("==") for line in lock_lines())
    assert {normal(re.match(r"[\w.-]+", d)[0]) for d in wanted} <= {normal(p) for p in pins}
    assert (pins["torch"], pins["torchvision"], pins["jupyter-book"]) == ("2.11.0", "0.26.0", "1.0.4.post1")


# make


def make(folder: Path, *args: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *args], cwd=folder, env=env, capture_output=True, text=True, check=False)


def fresh(folder: Path, python: str) -> Path:
    """A checkout without `.venv`, and a stand-in for python3 that behaves as the shell lines `python` say."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    script = folder / "python-x"
    script.write_text(f"#!/bin/sh\n{python}\n")
    script.chmod(0o755)
    return script


def test_help_is_the_default_and_names_every_target(tmp_path):
    fresh(tmp_path, "exit 1")
    shown = make(tmp_path)
    assert shown.returncode == 0
    for target in ("book", "test", "lab", "check", "clean"):
        assert f"make {target} " in shown.stdout


def test_make_refuses_another_python_and_says_which(tmp_path):
    python = fresh(tmp_path, 'test "$1" = --version && echo "Python 3.10.9" && exit 0\nexit 1')
    shown = make(tmp_path, f"PYTHON={python}", "book")
    assert shown.returncode != 0
    assert "Python 3.10.9, but lrkd needs Python 3.11 to 3.14" in shown.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("there", ["uv", "an old python3", "nothing"])
def test_make_without_a_fitting_python_has_uv_bring_one(tmp_path, monkeypatch, there):
    """On a path with what a shell needs, and with uv, or a Python from which uv can be had, or neither."""
    fresh(tmp_path, "exit 1")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("make", "mkdir", "cp", "chmod", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    makes = 'for last; do :; done; mkdir -p $last/bin; cp "$0" $last/bin/python; cp "$0" $last/bin/uv'
    stub = f'#!/bin/sh\necho "$*" >> said\ncase "$1" in -c) exit 1;; esac\ncase "$*" in *venv*) {makes};; esac\n'
    if there != "nothing":
        (tools / there.split()[-1]).write_text(stub)
        (tools / there.split()[-1]).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    shown = make(tmp_path, ".venv/.ready")
    if there == "nothing":
        assert shown.returncode != 0
        assert "lrkd needs Python 3.11 to 3.14: install one, or uv, which brings one" in shown.stderr
        assert not (tmp_path / ".venv").exists()
        return
    assert "here is no Python 3.11 to 3.14, so uv brings 3.13" in shown.stdout
    calls = (tmp_path / "said").read_text()
    assert "--python 3.13 .venv\n" in calls
    assert ("-m venv --clear .cache/uv\n" in calls) == (there == "an old python3")
    assert "--require-hashes -r requirements.txt\n" in calls


def test_make_without_the_venv_module_names_the_package(tmp_path):
    python = fresh(tmp_path, f'case "$*" in *ensurepip*) exit 1;; esac\nexec "{sys.executable}" "$@"')
    shown = make(tmp_path, f"PYTHON={python}", "test")
    assert shown.returncode != 0
    assert f"sudo apt-get install python3.{sys.version_info[1]}-venv" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_without_python_says_so(tmp_path):
    fresh(tmp_path, "exit 1")
    shown = make(tmp_path, "PYTHON=no-such-python", "test")
    assert shown.returncode != 0
    assert "no-such-python is not installed" in shown.stderr


def test_the_makefile_is_one_of_gnu_make_3_81():
    """The version that macOS has: neither its newer functions and assignments nor one shell for a whole recipe."""
    newer = r"^\.ONESHELL|^\S+\s*(!=|::=|:::=)|\$\((file|guile|intcmp|let) |^(undefine|private|load)\b"
    assert not re.search(newer, text("Makefile"), re.MULTILINE)


def test_ci_runs_the_goals():
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    assert "for goal in test-all check book browse;" in run.read_text()


# The book


def test_config_stops_at_errors_and_asks_no_other_host():
    config = yaml.safe_load(text("_config.yml"))
    sphinx = config["sphinx"]["config"]
    assert config["execute"]["execute_notebooks"] == "cache"
    assert config["execute"]["allow_errors"] is False
    assert config["execute"]["stderr_output"] == "warn"
    assert config["only_build_toc_files"] is True
    assert config["sphinx"]["recursive_update"] is True
    assert sphinx["nb_execution_raise_on_error"] is True
    assert sphinx["mathjax_path"].startswith("../vendor/")
    assert sphinx["nb_ipywidgets_js"] == {}
    assert "://" not in text("_config.yml")


def test_every_page_is_in_the_table_of_contents_and_there():
    toc = yaml.safe_load(text("book/_toc.yml"))
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    listed = {toc["root"], *chapters}
    pages = {p.stem for suffix in ("md", "ipynb") for p in (ROOT / "book").glob(f"*.{suffix}")}
    assert listed == pages


def test_api_pages_show_every_package():
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("api*.md")]
    shown = re.findall(r"^<!-- modules of ([\w.]+) -->$", "\n".join(pages), re.MULTILINE)
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "lrkd").rglob("*.py")}
    assert sorted(shown) == sorted({*packages, "kit"})


@pytest.fixture
def prepare():
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "book" / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fingerprint_sees_every_change(prepare, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("1")
    (tmp_path / "a" / "y.py").write_text("2")

    def look(**settings):
        return prepare.fingerprint(tmp_path, ["a/**/*.py"], settings)

    seen = [look(), look(LRKD_SCALE="cpu")]
    (tmp_path / "a" / "x.py").write_text("3")
    seen.append(look())
    (tmp_path / "a" / "x.py").rename(tmp_path / "a" / "z.py")
    seen.append(look())
    (tmp_path / "a" / "y.py").unlink()
    seen.append(look())
    assert len(set(seen)) == len(seen)
    (tmp_path / "a" / "notes.txt").write_text("not a source")
    assert look() == seen[-1]


def test_stale_executions_are_dropped_once(prepare, tmp_path):
    cache, stamp = tmp_path / "cache", tmp_path / "build" / "stamp"
    assert not prepare.drop_stale(cache, stamp, "1")
    cache.mkdir()
    assert not prepare.drop_stale(cache, stamp, "1")
    assert cache.exists()
    assert prepare.drop_stale(cache, stamp, "2")
    assert not cache.exists()


def test_vendored_scripts_are_complete_and_made_once(prepare, tmp_path):
    out = tmp_path / "vendor"
    prepare.vendor_scripts(out)
    script = (out / "mathjax" / "tex-mml-chtml.js").read_text(encoding="utf-8")
    assert 'VERSION="3.2.2"' in script
    assert len(list(out.glob("mathjax/output/chtml/fonts/woff-v2/*.woff"))) > 20
    for pattern in prepare.MATHJAX:
        assert list((out / "mathjax").glob(pattern)), pattern
    plotly = out / "plotly.min.js"
    assert plotly.stat().st_size > 1_000_000
    plotly.write_text("kept")
    prepare.vendor_scripts(out)
    assert plotly.read_text() == "kept"


# What the repository may not contain

# Written in halves, so that this file does not find itself.
MACHINE = re.compile(r"(?<![\w.])/(?:" + "|".join(("work/", "root/", r"home/\w", r"Users/\w", "opt/whe" + "els")) + ")")


def test_machine_paths_are_recognised():
    for bad in ("see /" + "work/main", "'/" + "root/x'", "/" + "home/me", "=/" + "Users/me"):
        assert MACHINE.search(bad)
    for good in ("a network/root/x", "../shared/data", "framework/", "https://x.test/home/"):
        assert not MACHINE.search(good), good


def test_no_machine_path_in_the_repository():
    faults = []
    for path in tracked():
        if path.suffix in {".png", ".jpg", ".npy", ".safetensors"}:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if MACHINE.search(line):
                faults.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert faults == []


def test_repository_stays_small():
    large = [f"{p.relative_to(ROOT)}: {p.stat().st_size}" for p in tracked() if p.stat().st_size > 1_000_000]
    assert large == []


# The README


def test_readme_points_at_what_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text("README.md"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", text("README.md"), re.DOTALL))
def test_readme_runs(block, tmp_path, monkeypatch):
    """In a folder that has the book's results, as a clone does; what a snippet writes goes with the folder."""
    (tmp_path / "book").symlink_to(ROOT / "book")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    exec(compile(block, "README.md", "exec"), {})


def test_what_readers_are_told_to_make_can_be_made():
    """Every `make X` of the documents is a goal; commands of lrkd are parsed by tests/cli/test_commands.py."""
    goals = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", ".github/pull_request_template.md", ".pre-commit-config.yaml"):
        told = set(re.findall(r"(?:`|^|=\S* )make ([a-z-]+)", text(name), re.MULTILINE))
        assert told <= goals, name
    assert {"book", "test", "test-all", "check"} <= goals


def test_citation_and_methods_agree_on_what_is_a_re_derivation():
    found = {
        entry["identifiers"][0]["value"]: entry["notes"] for entry in yaml.safe_load(text("CITATION.cff"))["references"]
    }
    ours = {f"arXiv:{m.source.split()[1]}" for m in METHODS.values() if "re-derivation" in m.note}
    assert ours
    assert {paper for paper, note in found.items() if "re-derivation" in note} == ours


def test_cells_of_pages_are_short():
    for page in sorted((ROOT / "book").glob("*.ipynb")):
        for cell in json.loads(page.read_text())["cells"]:
            lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
            lines = [line for line in lines if not line.startswith(("import ", "from "))]
            assert cell["cell_type"] != "code" or len(lines) < 20, f"{page.name}: {cell['id']} has {len(lines)} lines"


def test_a_figure_is_shown_once():
    """One that is still open when its cell ends is drawn there, and again where it is shown with its caption."""
    for page in sorted((ROOT / "book").glob("*.ipynb")):
        for cell in json.loads(page.read_text())["cells"]:
            code = "".join(cell["source"])
            drawn = cell["cell_type"] == "code" and "plt.subplots(" in code
            closed = any(word in code for word in ("show(", "picture(", "plt.close("))
            assert not drawn or closed, f"{page.name}: {cell['id']}"


def test_no_prose_is_taken_for_a_comment():
    """A line that begins with a percent sign is one in MyST, and lost on the built page."""
    texts = {page.name: page.read_text(encoding="utf-8").splitlines() for page in (ROOT / "book").glob("*.md")}
    for page in (ROOT / "book").glob("*.ipynb"):
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        texts[page.name] = [line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"]]
    lost = [f"{name}: {line.strip()}" for name, lines in texts.items() for line in lines if line.lstrip()[:1] == "%"]
    assert lost == []


def test_every_run_of_a_results_table_has_its_configuration_beside_it():
    folder = ROOT / "book" / "results"
    described = [pd.read_csv(folder / f"{name}.csv", dtype=str) for name in ("runs", "answer-runs", "variations-runs")]
    known = set(pd.concat(described)["config"])
    for file in sorted(folder.glob("*.csv")):
        table = pd.read_csv(file, dtype=str)
        if "config" in table and not file.stem.endswith("-people"):  # whose rows are of faces
            lacking = sorted(set(table["config"].dropna()) - known)
            assert not lacking, f"{file.name}: `make results` ends with the command that adds {', '.join(lacking[:5])}"


def test_the_results_are_of_the_faces_that_this_code_renders():
    """RENDERER_VERSION is part of what a run is: a change there parts the tables from what a build trains."""
    runs = pd.read_csv(ROOT / "book" / "results" / "runs.csv", dtype=str)
    made = runs[(runs["data.source"] == "procedural") & (runs["scale"] == "cpu")]
    cpu = SCALES["cpu"]
    found = procedural.RenderedSplits(cpu.size, cpu.identities, cpu.images, cpu.pairs, face=dict(cpu.face)).digests
    assert found == {s: made[f"data.{s}"].unique().item() for s in tables.SPLITS}
