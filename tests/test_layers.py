"""Holds the arrows of the house: who may import whom, what third-party packages, and no loading that can run code."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A file imports only from rooms to its left, never from its own; a new file must be placed here to be let in.
ROOMS = (
    ("errors",),
    ("files", "downloads", "identity", "userfile", "onnx_session"),
    ("faces", "degrade", "stats", "pairs", "photographs"),
    ("distances", "layout", "hypotheses", "race", "foreign", "identify"),
    ("models", "heads", "losses", "data", "verify", "attention", "information", "select", "adapt", "plots", "viewers"),
    ("device", "parallel", "movable", "endpoints", "wrap", "parts"),
    ("train", "methods", "runs", "shifts"),
    ("scales", "export"),
    ("worlds",),
    ("experiment",),
    ("study", "evidence", "adaptation", "demo"),
    ("launch", "answer", "claims", "inference"),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, room in enumerate(ROOMS) for name in room}
# Arrays in, figures or tables out: pages hand them what they need. `import lrkd` alone stays light.
LONERS = {"plots", "viewers", "stats", "__init__"}
# Where data_prep meets lrkd: the readers, which are `data` and the files split off it so that they need no torch.
READERS = {"data", "layout", "pairs", "photographs", "downloads", "errors"}
BASE = {"torch", "torchvision", "numpy", "scipy", "pandas", "PIL", "safetensors", "tqdm"}
MORE = {
    "plots": {"matplotlib", "seaborn", "myst_nb"},
    "movable": {"matplotlib", "plotly"},
    "stats": {"statsmodels"},
    "attention": {"captum"},
    "viewers": {"matplotlib"},
    "export": {"onnx", "onnxruntime", "onnxscript"},
    "onnx_session": {"onnxruntime"},
    "select": {"sklearn"},
    "align": {"skimage"},
    "launch": {"submitit"},
}
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


def aliases(tree: ast.AST) -> dict[str, str]:
    """Local name -> dotted name, for every import wherever it stands."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                names[a.asname or a.name.split(".")[0]] = a.name if a.asname else a.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """`np.load` -> `numpy.load`; empty where the expression is no plain name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        left = dotted(node.value, names)
        return f"{left}.{node.attr}" if left else ""
    return ""


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that the source imports; `from lrkd import faces` gives `lrkd.data.renderer`."""
    names = aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(p for p in (package if node.level else "", node.module or "") if p)
            if base in (package, "lrkd"):
                yield from (f"{base}.{a.name}" for a in node.names)
            else:
                yield base
        elif isinstance(node, ast.Call) and dotted(node.func, names) in {"__import__", "importlib.import_module"}:
            arg = node.args[0] if node.args else None
            yield arg.value if isinstance(arg, ast.Constant) and isinstance(arg.value, str) else "<computed>"


def import_faults(source: str, name: str, package: str = "lrkd") -> list[str]:
    """What the file `name` of `package` imports and may not; empty when all is well."""
    if package == "lrkd" and name not in LEVEL and name != "__init__":
        return [f"{name}: not placed in ROOMS"]
    faults = []
    for target in imports(ast.parse(source), package):
        top, _, rest = target.partition(".")
        inner = rest.split(".")[0]
        if top == "lrkd":
            if package == "data_prep":
                allowed = inner in READERS
            elif name in LONERS:
                allowed = inner == "errors" or (name == "__init__" and inner == "__version__")
            else:
                allowed = inner == "__version__" or (inner in LEVEL and LEVEL[inner] < LEVEL[name])
        elif top == package:
            allowed = True
        else:
            allowed = top in sys.stdlib_module_names or top in BASE | MORE.get(name, set())
        if not allowed:
            faults.append(f"{package}/{name}.py imports {target}")
    return faults


def load_faults(source: str, may_subclass: bool = False) -> list[str]:
    """Calls that may run code from a file that they load, and classes made to do so.

    With `may_subclass`, a subclass of `pickle.Unpickler` with its own `find_class` is let in.
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
        bad = (
            call in UNSAFE
            or (call == "torch.load" and given.get("weights_only") is not True)
            or (
                call in {"numpy.load", "numpy.lib.format.open_memmap"} and given.get("allow_pickle", False) is not False
            )
        )
        if bad:
            faults.append(f"line {node.lineno}: {call}")
    return faults


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files("lrkd"), ids=lambda p: p.stem)
def test_lrkd_imports_only_to_its_left(path):
    assert path.parent == ROOT / "lrkd", "lrkd is flat: one file, one idea"
    assert import_faults(path.read_text(encoding="utf-8"), path.stem) == []


@pytest.mark.parametrize("path", files("data_prep"), ids=lambda p: p.stem)
def test_data_prep_meets_lrkd_at_its_readers_only(path):
    assert import_faults(path.read_text(encoding="utf-8"), path.stem, "data_prep") == []


@pytest.mark.parametrize(
    "path", [p for d in ("lrkd", "data_prep", "benchmarks", "book") for p in files(d)], ids=lambda p: p.stem
)
def test_nothing_loads_code_with_data(path):
    allowed = path.relative_to(ROOT) == UNPICKLER
    assert load_faults(path.read_text(encoding="utf-8"), allowed) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("newroom", "import torch"),
        ("faces", "from lrkd import distances"),  # its own room
        ("faces", "from lrkd.models.backbones import small"),
        ("losses", "import lrkd.training.loop"),
        ("losses", "from . import methods"),
        ("losses", "from .train import fit"),
        ("train", "def f():\n    from lrkd.study.runner import core"),  # hidden in a function
        ("train", "import importlib as i\ni.import_module('lrkd.cli.program')"),
        ("train", "import importlib\nimportlib.import_module('lrkd.' + x)"),
        ("train", "__import__('lrkd.cli.program')"),
        ("plots", "from lrkd.evaluation.verification import roc"),
        ("stats", "import matplotlib"),
        ("verify", "import sklearn.metrics"),
        ("cli", "import yaml"),
        ("cli", "import book.prepare"),
        ("study", "from data_prep import lfw"),
        ("__init__", "from lrkd.models.backbones import small"),
        ("heads", "from lrkd.nowhere import x"),
    ],
)
def test_the_arrows_can_fail(name, source):
    assert import_faults(source, name)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("faces", "from lrkd.errors import DataError\nimport numpy as np\nfrom pathlib import Path"),
        ("losses", "from lrkd import distances\nfrom .degrade import degrade\nimport torch.nn.functional as F"),
        ("plots", "import matplotlib.pyplot as plt\nfrom lrkd.errors import ConfigError"),
        ("cli", "from lrkd import __version__, study"),
    ],
)
def test_the_arrows_can_pass(name, source):
    assert import_faults(source, name) == []


def test_data_prep_rules_can_fail():
    assert import_faults("from lrkd import train", "lfw", "data_prep")
    assert import_faults("import cv2", "lfw", "data_prep")
    assert (
        import_faults("from data_prep import common\nfrom lrkd.data.tables import load_prepared", "lfw", "data_prep")
        == []
    )


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


def test_the_one_unpickler_is_let_in_with_its_own_names_only():
    assert load_faults("import pickle\nclass A(pickle.Unpickler):\n    def find_class(self, m, n): ...", True) == []
    assert load_faults("import pickle\nclass A(pickle.Unpickler): ...", True)
    assert load_faults("import pickle\npickle.Unpickler(f)", True)


def test_the_load_rule_can_pass():
    assert (
        load_faults("import numpy as np, torch, json\nnp.load(f)\ntorch.load(f, weights_only=True)\njson.load(f)") == []
    )
