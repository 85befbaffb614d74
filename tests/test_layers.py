"""Who may import whom, what a bare PyTorch image has to have, and no loading that can run code."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# The one place that may read a pickle that is not torch's: insightface's pair sets have no other form.
UNPICKLER = Path("data_prep/pairs_bin.py")
UNSAFE = {
    *(f"{module}.{call}" for module in ("pickle", "cloudpickle", "dill") for call in ("load", "loads", "Unpickler")),
    "joblib.load",
    "pandas.read_pickle",
    "shelve.open",
    "marshal.load",
    "marshal.loads",
}


def python(program: str, *arguments: str) -> None:
    """Run a program in a process of its own, from the repository."""
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_arrows_point_down_and_every_room_has_a_place():
    contract = PYPROJECT["tool"]["importlinter"]["contracts"][0]
    placed = {room.strip() for layer in contract["layers"] for room in layer.split(":")}
    rooms = {path.parent.name for path in (ROOT / "lrkd").glob("*/__init__.py")}
    assert rooms <= placed
    python("from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))")


@pytest.mark.slow
def test_training_and_evaluating_need_the_dependencies_alone():
    """Every module imports without what the extras bring, so that they run in any PyTorch image."""
    extras = {"matplotlib", "seaborn", "plotly", "sklearn", "statsmodels", "captum", "skimage", "submitit"}
    extras |= {"onnx", "onnxscript", "onnxruntime"}
    python(
        "import importlib, pkgutil, sys\n"
        "sys.modules |= dict.fromkeys(sys.argv[1:])\n"
        "import lrkd\n"
        "for module in pkgutil.walk_packages(lrkd.__path__, 'lrkd.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n",
        *sorted(extras),
    )


def test_preparing_photographs_needs_no_torch():
    """data_prep meets lrkd through the layout on disk."""
    python(
        "import importlib, pkgutil, sys\n"
        "sys.modules |= dict.fromkeys(['torch', 'torchvision', 'book', 'kit'])\n"
        "import data_prep\n"
        "for module in pkgutil.iter_modules(data_prep.__path__, 'data_prep.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "met = {name.split('.')[1] for name in sys.modules if name.startswith('lrkd.')}\n"
        "assert met <= {'data', 'errors', 'files'}, met\n"
    )


def test_importing_the_package_is_light():
    python("import sys, lrkd, lrkd.data; assert not {'torch', 'pandas'} & set(sys.modules)")


def aliases(tree: ast.AST) -> dict[str, str]:
    """Local name -> dotted name, for every import, at any depth."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                names[a.asname or a.name.split(".")[0]] = a.name if a.asname else a.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """`np.load` -> `numpy.load`; empty for an expression that is not a plain name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        left = dotted(node.value, names)
        return f"{left}.{node.attr}" if left else ""
    return ""


def load_faults(source: str, may_subclass: bool = False) -> list[str]:
    """Calls that may run code from a file that they load, and classes made to do so.

    With `may_subclass`, a subclass of `pickle.Unpickler` with its own `find_class` is allowed.
    """
    tree = ast.parse(source)
    names = aliases(tree)
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(dotted(base, names) in UNSAFE for base in node.bases):
            own = any(isinstance(item, ast.FunctionDef) and item.name == "find_class" for item in node.body)
            if not (may_subclass and own):
                faults.append(f"line {node.lineno}: class {node.name}")
        if not isinstance(node, ast.Call):
            continue
        call = dotted(node.func, names)
        given = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else "<computed>" for k in node.keywords}
        pickles = call in {"numpy.load", "numpy.lib.format.open_memmap"} and given.get("allow_pickle", False)
        if call in UNSAFE or pickles or (call == "torch.load" and given.get("weights_only") is not True):
            faults.append(f"line {node.lineno}: {call}")
    return faults


def files() -> list[Path]:
    folders = ("lrkd", "data_prep", "benchmarks", "book")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_loads_code_with_data(path):
    assert load_faults(path.read_text(encoding="utf-8"), path.relative_to(ROOT) == UNPICKLER) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle as p\np.load(f)",
        "from pickle import loads\nloads(b)",
        "import torch\ntorch.load(f)",
        "from torch import load as read\nread(f, weights_only=False)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import numpy\nnumpy.load(f, allow_pickle=flag)",
        "import pandas as pd\npd.read_pickle(f)",
        "import pickle\nclass A(pickle.Unpickler):\n    def find_class(self, m, n): ...",
        "from pickle import Unpickler as U\nclass A(U): ...",
    ],
)
def test_the_load_rule_can_fail(source):
    assert load_faults(source)


def test_the_one_unpickler_is_allowed_with_its_own_names_only():
    assert load_faults("import pickle\nclass A(pickle.Unpickler):\n    def find_class(self, m, n): ...", True) == []
    assert load_faults("import pickle\nclass A(pickle.Unpickler): ...", True)
    assert load_faults("import pickle\npickle.Unpickler(f)", True)


def test_the_load_rule_can_pass():
    plain = "import numpy as np, torch, json\nnp.load(f)\ntorch.load(f, weights_only=True)\njson.load(f)"
    assert load_faults(plain) == []


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(told.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "without"),
    [
        ("import lrkd, lrkd.errors, lrkd.files", {"torch", "numpy", "pandas", "scipy"}),
        ("import lrkd.data, lrkd.data.layout, lrkd.data.images", {"torch", "pandas"}),  # what data_prep reads with
        ("import lrkd.evaluation.search, lrkd.evaluation.statistics", {"torch", "matplotlib", "statsmodels"}),
        ("import lrkd.onnx.export", {"onnx", "onnxruntime", "onnxscript", "matplotlib"}),
    ],
)
def test_an_import_is_light(statement, without):
    assert loaded_by(statement) & without == set()
