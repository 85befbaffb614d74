"""Objects from files of a user: found, run once, told apart by content; what is wrong is named with the file."""

import hashlib
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from lrkd.errors import ConfigError
from lrkd.userfile import LoadedFiles, is_reference, load_object

ROOT = Path(__file__).parents[1]


@pytest.fixture
def write(tmp_path):
    """Write a file; the modules that a test loads are forgotten afterwards."""
    before = set(sys.modules)

    def make(text: str, name: str = "my_nets.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    yield make
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_the_object_comes_with_a_digest_of_the_file(write):
    text = "LENGTH = 3\n\n\ndef make(size):\n    return [size] * LENGTH\n"
    path = write(text)
    found = load_object(f"{path}:make")
    assert found.value(2) == [2, 2, 2]
    assert found.name == "my_nets.py:make"
    assert found.digest == hashlib.sha256(text.encode()).hexdigest()
    assert load_object(f"{path}:make").value is found.value, "the file is run once"
    assert b"my_nets" in pickle.dumps(found.value), "other processes find it"
    assert "LENGTH" in inspect.getsource(found.value)


def test_a_changed_file_is_another_object_with_another_digest(write):
    first = load_object(f"{write('A = 1')}:A")
    second = load_object(f"{write('A = 2')}:A")
    assert (first.value, second.value) == (1, 2)
    assert first.digest != second.digest


def test_a_file_may_import_its_neighbour(write):
    write("WIDTH = 7", "my_widths.py")
    assert load_object(f"{write('from my_widths import WIDTH as A')}:A").value == 7


def test_another_process_loads_the_file_first(write):
    """As a worker or a job does, which could not import it."""
    before = list(sys.path)
    found = load_object(f"{write('def make(): return 5')}:make")
    assert sys.path == before
    code = f"import pickle; print(pickle.loads({pickle.dumps((LoadedFiles(), found.value))!r})[1]())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "5\n"


def test_the_same_name_in_another_folder_is_the_newer_file(write, tmp_path):
    first = load_object(f"{write('A = 1')}:A")
    (tmp_path / "other").mkdir()
    second = load_object(f"{write('A = 1', 'other/my_nets.py')}:A")
    assert second == first, "moving a file changes nothing"
    write("A = 3")
    assert load_object(f"{tmp_path / 'my_nets.py'}:A").value == 3


@pytest.mark.parametrize(
    ("reference", "match"),
    [
        ("my_nets.py", r'expected "file.py:NAME", got \'my_nets.py\''),
        ("my_nets.py:", r'expected "file.py:NAME"'),
        ("fskd", r'expected "file.py:NAME", got \'fskd\''),
        ("my_nets.py:a b", r'expected "file.py:NAME"'),
        ("none.py:make", r"none.py:make: cannot read none.py \(No such file"),
    ],
)
def test_a_wrong_reference_says_what_is_right(reference, match):
    with pytest.raises(ConfigError, match=match):
        load_object(reference)


def test_a_name_that_is_not_there_is_answered_with_those_that_are(write):
    path = write("import math\nfrom pathlib import Path\nMINE = 1\n\n\ndef make():\n    pass\n")
    with pytest.raises(ConfigError, match=r"my_nets.py: has no 'mak'; did you mean make\? it has MINE, make$"):
        load_object(f"{path}:mak")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("A = 1\nB = nothing\n", r"my_nets.py, line 2: NameError: name 'nothing'"),
        ("A = (\n", r"my_nets.py, line 1: SyntaxError"),
        ("import not_there_at_all\n", r"line 1: ModuleNotFoundError: .*not_there_at_all"),
    ],
)
def test_a_file_that_raises_is_named_with_the_line_and_left_out(write, text, match):
    path = write(text)
    with pytest.raises(ConfigError, match=match):
        load_object(f"{path}:A")
    assert "my_nets" not in sys.modules


def test_a_name_of_another_module_is_not_taken_from_it(write):
    for name in ("random", "antigravity"):  # loaded; never loaded, but what another process would find
        path = write("A = 1", f"{name}.py")
        with pytest.raises(ConfigError, match=rf"{name}.py: the name '{name}' is taken"):
            load_object(f"{path}:A")


def test_references_are_told_from_names():
    assert is_reference("a/nets.py:make")
    assert not any(map(is_reference, ("fskd", "lp(2)", "runs/x", "adaface.ckpt", "C:nets.py")))
