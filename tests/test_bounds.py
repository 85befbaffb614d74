"""Sizes that keep the package readable: lines of a file, of a function and of the whole, and parameters of a call."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE, FUNCTION, PARAMETERS = 400, 80, 7
# Of the package, lines that hold code: a bound that counted docstrings would be met by leaving them out. 10,000 are
# wanted. It was 11,350 before recorded steps, what people share networks by, face finding and attention's
# interventions came, and 12,300 before photographs got a verdict only where a threshold holds for them;
# raise it for nothing else, and lower it with whatever is deleted.
CODE = 11_859
# "file" or "file:function" -> why it is longer or takes more; at most five.
EXCEPTIONS: dict[str, str] = {
    "lrkd/models/backbones.py:__init__": "an IResNet's hyperparameters, which configurations pass by their names",
    "lrkd/models/mobile.py:__init__": "MobileFaceNet's hyperparameters, which configurations pass by their names",
    "lrkd/study/runner.py:run_study": "what a study, a table and a budget need, each by its own name",
}


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


def code_lines(source: str) -> int:
    """How many lines hold code: neither blank nor of comments and docstrings alone."""
    beside = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    held = {line for t in tokens if t.type not in beside for line in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if first is not None and ast.get_docstring(node, clean=False) is not None:
                held -= set(range(first.lineno, first.end_lineno + 1))
    return len(held)


def test_the_package_is_small():
    assert sum(map(code_lines, sources().values())) <= CODE


def test_lines_of_code_are_counted_by_hand():
    assert (
        code_lines('"""Doc."""\n\n# why\nx = (\n    1,\n)\n\n\ndef f():\n    """A\n\n    b."""\n    return 1  # one\n')
        == 5
    )
    assert code_lines("") == 0


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
