"""Every command that help, README and pages show is one, the first hour runs, and each way to fail has its status."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from kit import display
from PIL import Image

from lrkd import errors
from lrkd.cli import program, runs
from lrkd.data import alignment, detection, layout, procedural, tables
from lrkd.distill import methods
from lrkd.errors import DataError
from lrkd.models.backbones import IResNet
from lrkd.study import experiment, grids, presets, results, runner, shift_bench, shift_study, spec, store

ROOT = Path(__file__).parents[2]
SMOKE = presets.SCALES["smoke"]
OURS = re.compile(
    r"(?:\S*/bin/)?(?:torchrun .*?-m lrkd|python3? -m (?:lrkd|data_prep|benchmarks|book)[\w.]*|lrkd)(?=\s|$)"
)


def texts() -> dict[str, str]:
    """What people read: help, READMEs, and the prose of all pages."""
    found = {"lrkd --help": f"```\n{program.EPILOG}\n```"}
    for path in [ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("book/**/*.md"), *ROOT.glob("book/*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        found[str(path.relative_to(ROOT))] = text
    return found


def commands(text: str) -> list[str]:
    """The commands of this package in blocks of code and between backticks, without what is said about them."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.M | re.S)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines += [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
    lines = [part for line in lines for part in line.split(" && ")]
    return [re.split(r"\s{2,}(?=[^\s-])|\s[#>]", line)[0] for line in lines if OURS.match(line)]


COMMANDS = sorted({(line, source) for source, text in texts().items() for line in commands(text)})


def test_commands_are_found():
    sources = {source for _, source in COMMANDS}
    assert {"lrkd --help", "README.md", "data_prep/README.md", "book/your-own-data.ipynb"} <= sources
    text = "`lrkd runs` and\n```sh\nlrkd train --side 6  a student\npython -m data_prep.lfw  --out x  # it\n```\n"
    assert commands(text) == ["lrkd train --side 6", "python -m data_prep.lfw  --out x", "lrkd runs"]


@pytest.mark.parametrize(("line", "source"), COMMANDS)
def test_every_command_that_is_shown_is_one(line, source, tmp_path, monkeypatch, capsys):
    """`lrkd` parses it; a tool of data_prep misses nothing but its source; a benchmark knows the options."""
    words = shlex.split(line)
    start = next(k for k, word in enumerate(words) if re.match(r"(\S*/)?lrkd$|(data_prep|benchmarks|book)\b", word))
    tool, words = words[start], [word for word in words[start + 1 :] if word != "..."]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book" / "results").mkdir(parents=True)
    if tool.endswith("lrkd"):
        parses(words, line)
    elif tool.startswith("data_prep."):
        main = importlib.import_module(tool).main
        if words == ["--help"]:
            with pytest.raises(SystemExit):
                main(words)
        elif words:
            with pytest.raises(DataError, match=r"--source |no such|cannot be read"):
                main(words)
    else:
        path = ROOT / f"{tool.replace('.', '/')}.py"
        code = path.read_text(encoding="utf-8") if "." in tool else ""
        assert all(f'"{word}"' in code for word in words if word.startswith("--")), f"{source}: {line}"


def parses(words: list[str], line: str) -> None:
    """A whole command parses; a mention, such as `lrkd verify` or `lrkd train --method`, is of what there is."""
    if not words or words == ["--help"]:
        return
    if words[-1].startswith("-") and words[-1] not in ("--list", "--unseen", "--sync-norm"):
        words = [*words, "1"]
    try:
        parsed = program.parser().parse_args(words)
    except SystemExit:
        assert len(words) == 1, line
        assert words[0] in program.parser().format_help(), line
        return
    if parsed.command == "study":
        assert parsed.name in (*grids.STUDIES, "answer", "NAME"), line
    if getattr(parsed, "scale", None):
        assert parsed.scale in presets.SCALES, line


# --------------------------------------------------------------------------------------------------- the first hour


@pytest.mark.slow
@pytest.mark.usefixtures("smoke")
def test_the_first_hour_runs(tmp_path, monkeypatch, capsys):
    """As help tells it, at scale smoke: each line after those before it, in a folder where there is nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LRKD_RUNS", "runs")
    stranger = IResNet((3, 4, 14, 3), (8, 8, 16, 16), embedding=64, seed=1)
    torch.save({"net_state_dict": stranger.state_dict()}, "last_net.ckpt")
    toys.photographs(tmp_path, people=4, images=2, size=112).rename(tmp_path / "agedb30")
    for name in ("one.jpg", "another.jpg"):
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (48, 48, 3), np.uint8)).save(name)
    # Noise, in which a detector that is installed would find no face.
    monkeypatch.setattr(
        detection, "finder", lambda: lambda image: (alignment.template(len(image))[None], np.array([95]))
    )
    # Hours at another scale: here the study is stopped early, in this process, and few settings are measured.
    monkeypatch.setattr(runner.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(
        runner, "over_after", lambda minutes: lambda: len(list(Path().glob("runs/*-3-*/result.json"))) > 1
    )
    monkeypatch.setattr(shift_bench, "DIALS", (0.5, 1.0))
    monkeypatch.setattr(shift_bench, "MOMENTA", (0.1, 1.0))
    lines = [line for line in commands(f"```\n{program.EPILOG}```") if line.startswith("lrkd")]
    for line in lines:
        words = shlex.split(line.replace("procedural-cpu", "procedural-smoke"))[1:]
        given = [path for word in words for path in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
        assert program.main(given) == 0, line
        assert capsys.readouterr().out, line
        if words[0] == "train":  # whoever tries has more than one run
            assert program.main([*given, "--seed", "1"]) == 0
            capsys.readouterr()
    assert {"results.csv", "adaptation.csv", "face.onnx"} <= {path.name for path in tmp_path.iterdir()}


# ---------------------------------------------------------------------------------------------------- what is light


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["nothing"]], ids=" ".join)
def test_version_and_help_import_nothing_heavy(words):
    code = (
        "import sys\n"
        "from lrkd.__main__ import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "print('heavy:', *{'torch', 'pandas', 'numpy', 'scipy', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_listing_a_study_renders_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LRKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(procedural, "_render", lambda *_: pytest.fail("rendered"))
    for scale in ("smoke", "cpu", "gpu"):
        assert program.main(["study", "core", "--list", "--scale", scale, "--runs", str(tmp_path / "runs")]) == 0
        assert f"procedural-{scale}-teacher-hr-s0" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_digests_without_images_are_those_of_the_images(smoke, photographs):
    for source in (spec.PROCEDURAL, photographs):
        name, found = spec.digests(SMOKE, source)
        splits = spec.splits(SMOKE, source)
        assert found == {part: getattr(splits, part).digest for part in tables.SPLITS}
        assert {getattr(splits, part).name for part in found} == {f"{name}/{part}" for part in found}


# ------------------------------------------------------------------------------------------------------ exit status


def everything(of: type[errors.LrkdError]) -> list[type[errors.LrkdError]]:
    return [of, *(inner for sub in of.__subclasses__() for inner in everything(sub))]


FAILED, ASKED = 1, 2
STATUS = {
    errors.LrkdError: FAILED,
    errors.ConfigError: ASKED,
    errors.DataError: ASKED,
    errors.RunError: FAILED,
    errors.MissingError: ASKED,
    errors.TrainingError: FAILED,
    KeyboardInterrupt: FAILED,
    BrokenPipeError: FAILED,
}


@pytest.mark.parametrize("error", [*everything(errors.LrkdError), KeyboardInterrupt, BrokenPipeError])
def test_each_error_has_the_status_that_help_says(error, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise error("why")

    monkeypatch.setattr(runs, "run", fail)
    nearest = next(base for base in error.__mro__ if base in STATUS)
    assert program.main(["runs"]) == STATUS[nearest]
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == (0 if error is BrokenPipeError else 1)
    assert "Exit status: 0 done, 1 stopped or failed while running, 2 asked for something that is not" in program.EPILOG


@pytest.mark.parametrize("words", ["", "trian", "train --side six", "study", "verify", "runs --out nowhere/t.csv"])
def test_what_the_grammar_does_not_know_is_status_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        program.main(words.split())
    assert stop.value.code == ASKED


# ---------------------------------------------------------------------------------------------- tables and raw data


@pytest.mark.parametrize(
    "words",
    [
        *(f"study book --{name} t.csv" for name in ("out", "pairs", "traces", "scores")),
        *("attention --out t.csv", "adapt --out t.csv", "verify RUN --out t.csv", "identify RUN --data x --out t.csv"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused_before_anything_is_computed(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("what,else\n1,2\n")
    for module, name in ((runner, "run_study"), (spec, "splits"), (experiment, "load"), (shift_study, "gather")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("computed"))
    assert program.main([*words.split(), *(["--scale", "smoke"] if words[0] in "sa" else [])]) == ASKED
    assert re.fullmatch(r"lrkd: t\.csv: is no such table of `lrkd [^\n]+\n", capsys.readouterr().err)
    assert Path("t.csv").read_text() == "what,else\n1,2\n"


@pytest.mark.usefixtures("smoke")
def test_a_budget_that_is_over_leaves_a_table_of_another_study_as_it_is(tmp_path, capsys):
    out = tmp_path / "results.csv"
    rows = "".join(f"{k:06d}e12,none,3,{k},test,0.{k}0\n" for k in range(300))
    out.write_text("config,method,side,seed,protocol,accuracy\n" + rows)
    before = out.read_bytes()
    words = ["study", "kernels", "--scale", "smoke", "--out", str(out), "--workers", "1", "--runs", str(tmp_path / "r")]
    assert program.main([*words, "--budget", "0.00001"]) == 0
    assert out.read_bytes() == before
    one = grids.specs("kernels", SMOKE)[0]
    experiment.train(one, tmp_path / "r", device="cpu", progress=False)
    assert program.main([*words, "--budget", "0.00001"]) == 0
    after = results.RUNS.read(out)
    assert list(after["config"][:300]) == [f"{k:06d}e12" for k in range(300)]
    assert set(after["config"][300:]) == {spec.config_hash(one)}
    assert [line.rstrip(",") for line in out.read_text().splitlines()[1:301]] == rows.splitlines()


def test_one_file_for_two_tables_is_refused(tmp_path, capsys):
    same = str(tmp_path / "t.csv")
    assert program.main(["study", "book", "--scale", "smoke", "--out", same, "--pairs", same]) == ASKED
    assert "--out, --pairs: expected a file of its own for each table" in capsys.readouterr().err


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


@pytest.mark.parametrize(
    ("files", "given", "told"),
    [
        (
            ["people/Ada/1.jpg", "people/Ben/1.PNG"],
            "people",
            "python -m data_prep.folder --source {} --out data/people",
        ),
        (
            ["faces/1.jpg", "faces/2.jpg"],
            "faces",
            "move each person's into a folder of their own, then `python -m data",
        ),
        (["casia/train.rec"], "casia", "python -m data_prep.recordio --source {} --out data/casia"),
        (["sets/agedb_30.bin"], "sets/agedb_30.bin", "python -m data_prep.pairs_bin --source {} --out data/agedb_30"),
        (["lfw/pairsDevTrain.txt"], "lfw", "python -m data_prep.lfw --source {} --out data/lfw"),
        (["else/notes.txt"], "else", "not a prepared folder"),
    ],
    ids=["people", "faces", "rec", "bin", "lfw", "else"],
)
def test_raw_data_are_told_what_prepares_them(tmp_path, capsys, files, given, told):
    for name in files:
        path = tmp_path / name
        if path.suffix.lower() in (".jpg", ".png"):
            picture(path)
        else:
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x")
    source = tmp_path / given
    words = ["train", "--scale", "smoke", "--side", "6", "--data", str(source), "--runs", str(tmp_path / "runs")]
    assert program.main(words) == ASKED
    err = capsys.readouterr().err
    assert str(source) in err
    assert told.format(source) in err
    assert not (tmp_path / "runs").exists()
    with pytest.raises(DataError, match=re.escape(told.format(source))):
        layout.read_layout(source)


def test_the_command_that_is_told_prepares_the_data(tmp_path, monkeypatch, capsys):
    for person in range(4):
        for number in range(2):
            path = tmp_path / "people" / f"p{person}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(2 * person + number).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError) as told:
        layout.read_layout("people")
    words = shlex.split(re.search(r"`python -m (.*?)`", str(told.value))[1])
    importlib.import_module(words[0]).main(words[1:])
    assert len(layout.read_layout("data/people").labels) == 8


# ------------------------------------------------------------------------------------------------------ a new term


@pytest.mark.usefixtures("smoke")
def test_the_table_of_methods_shows_a_term_that_nobody_foresaw(monkeypatch):
    from lrkd.distill.terms import Term

    term = Term("own-term", 2.5, partial(json.dumps, indent="hot", default="none", separators=(1, 2)))
    own = methods.Method("own", "a method of one's own", (term, methods.METHODS["fskd"].terms[0]))
    monkeypatch.setitem(methods.METHODS, "own", own)
    shown = []
    monkeypatch.setattr(display, "table", lambda frame, *_, **__: shown.append(frame))
    monkeypatch.setattr(display, "say", lambda **_: None)
    monkeypatch.chdir(ROOT / "book")
    names: dict[str, object] = {}
    for cell in json.loads(Path("methods-table.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert shown[0].loc["own", "adds"].startswith("2.5 × own-term(indent=hot, default=none, separators=(1, 2)) + 20 ×")
    assert set(shown[1].index) == set(methods.METHODS)


@pytest.mark.usefixtures("smoke")
def test_a_run_is_its_own_kind_of_missing(tmp_path):
    with pytest.raises(errors.MissingError):
        store.load_run(tmp_path / "nowhere")
