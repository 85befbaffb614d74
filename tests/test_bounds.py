"""Sizes that keep the package readable: lines of a file, of a function and of the whole, and parameters of a call."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WHOLE, FILE, FUNCTION, PARAMETERS = 10_000, 400, 80, 7
# "file" or "file:function" -> why it is longer or takes more; at most five.
EXCEPTIONS: dict[str, str] = {}


def sources() -> dict[str, str]:
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "lrkd").rglob("*.py"))
    }


def excesses(source: str, name: str) -> Iterator[tuple[str, str]]:
    """What of a file is out of bounds: (its name in EXCEPTIONS, what was measured)."""
    if (lines := len(source.splitlines())) > FILE:
        yield name, f"{lines} lines, expected at most {FILE}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            own = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            taken = len([word for word in own if word not in ("self", "cls")])
            if lines > FUNCTION:
                yield f"{name}:{node.name}", f"{lines} lines, expected at most {FUNCTION}"
            if taken > PARAMETERS:
                yield f"{name}:{node.name}", f"{taken} parameters, expected at most {PARAMETERS}"


def test_files_functions_and_calls_are_short():
    found = [excess for name, source in sources().items() for excess in excesses(source, name)]
    assert [f"{where}: {said}" for where, said in found if where not in EXCEPTIONS] == []
    assert set(EXCEPTIONS) <= {where for where, _ in found}, "an exception that is not needed any more"


def test_exceptions_are_few_and_have_a_reason():
    assert len(EXCEPTIONS) <= 5
    assert all(len(reason.split()) > 3 for reason in EXCEPTIONS.values())


def test_the_package_is_small():
    assert sum(len(source.splitlines()) for source in sources().values()) <= WHOLE


@pytest.mark.parametrize(
    ("source", "where", "said"),
    [
        ("x = 1\n" * 401, "a.py", "401 lines"),
        ("def f():\n" + "    x = 1\n" * 80, "a.py:f", "81 lines"),
        ("class A:\n    def f(self, a, b, c, d, *, e, g, h, i): ...\n", "a.py:f", "8 parameters"),
    ],
)
def test_the_bounds_can_fail(source, where, said):
    ((found, measured),) = excesses(source, "a.py")
    assert (found, measured.partition(",")[0]) == (where, said)


@pytest.mark.parametrize(
    "source",
    [
        "x = 1\n" * 400,
        "def f():\n" + "    x = 1\n" * 79,
        "class A:\n    def f(self, a, b, c, d, *rest, e, g, h, **more): ...\n",
    ],
)
def test_the_bounds_can_pass(source):
    assert list(excesses(source, "a.py")) == []
