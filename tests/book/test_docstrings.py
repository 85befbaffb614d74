"""The API pages' docstrings are valid reStructuredText in Google style, as Sphinx's napoleon reads them."""

import importlib
import inspect
import pkgutil
from typing import TypeVar

import kit
import pytest
from docutils.core import publish_doctree
from docutils.nodes import system_message

import lrkd

sphinx = pytest.importorskip("sphinx.ext.napoleon")

MODULES = [
    found.name
    for package in (lrkd, kit)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not found.ispkg and not found.name.endswith("__main__")
]


def own(one):
    """Its docstring, not that of a class which it inherits from: those of torch have roles that only Sphinx knows.

    A type variable has none of its own.
    """
    return inspect.cleandoc("" if isinstance(one, TypeVar) else one.__doc__ or "")


def docstrings(module):
    """(name, docstring) of a module and of all that it defines and shows: functions, classes, their methods."""
    yield module.__name__, own(module)
    for name, one in vars(module).items():
        if getattr(one, "__module__", None) != module.__name__ or name.startswith("_"):
            continue
        yield f"{module.__name__}.{name}", own(one)
        for part, inner in vars(one).items() if inspect.isclass(one) else ():
            if not part.startswith("_") and (callable(inner) or isinstance(inner, property)):
                yield f"{module.__name__}.{name}.{part}", own(inner)


def faults(docstring):
    """What docutils says of a docstring; `x` is code, as the book's default_role says."""
    config = sphinx.Config(napoleon_use_rtype=False, napoleon_use_ivar=True)
    text = str(sphinx.GoogleDocstring(docstring, config))
    settings = {"report_level": 5, "halt_level": 6, "file_insertion_enabled": False}
    tree = publish_doctree(f".. default-role:: code\n\n{text}", settings_overrides=settings)
    said = [*tree.findall(system_message), *tree.transform_messages]
    return [" ".join(found.astext().split()) for found in said]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_are_read_without_a_warning(name):
    found = {what: faults(text) for what, text in docstrings(importlib.import_module(name))}
    assert {what: said for what, said in found.items() if said} == {}


@pytest.mark.parametrize("text", ["The norm |a - b|.", "All *arguments.", "x: first\n    more\ny: second"])
def test_markup_by_accident_is_seen(text):
    assert faults(text)
