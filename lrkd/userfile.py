"""What a user keeps in a file of their own: a method, a loss, a network, named as "file.py:NAME"."""

import hashlib
import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from lrkd.errors import ConfigError


class UserObject(NamedTuple):
    """An object from a user's file. name: "file.py:NAME". digest: of the file's content, for a run's config."""

    value: Any
    name: str
    digest: str


def is_reference(text: str) -> bool:
    """Whether a text names an object in a file, as "nets.py:make" does, rather than one of lrkd's own."""
    return text.rpartition(":")[0].endswith(".py")


def load_object(reference: str) -> UserObject:
    """Load an object from a Python file outside the package. The file is run: it must be one that you trust.

    Its folder can be imported from while it is run. Its digest covers the file alone, not what it imports.

    Args:
        reference: "path/to/file.py:NAME".

    Returns:
        The object, with the file's name and digest (64 hexadecimal digits of SHA-256).

    Raises:
        ConfigError: No such file or no such name, a file that raises, or whose module name is taken.
    """
    path, _, name = reference.rpartition(":")
    if not is_reference(reference) or not name.isidentifier():
        raise ConfigError(f'expected "file.py:NAME", got {reference!r}')
    file = Path(path).expanduser()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{reference}: cannot read {file} ({error.strerror}): expected a Python file") from error
    module = _run(file.resolve(), content)
    if not hasattr(module, name):
        there = [key for key, value in vars(module).items() if not key.startswith("_") and _own(value, module)]
        near = get_close_matches(name, there, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{file}: has no {name!r}; {hint}it has {', '.join(there) or 'nothing of its own'}")
    return UserObject(getattr(module, name), f"{file.name}:{name}", hashlib.sha256(content).hexdigest())


class LoadedFiles:
    """The users' files that this process has loaded: another one that unpickles this loads them too.

    It goes before what is defined in such files, whose modules the other process could not import.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_files, tuple(
            str(module.__file__)
            for module in list(sys.modules.values())
            if "__digest__" in getattr(module, "__dict__", {})
        )


def _load_files(*paths: str) -> LoadedFiles:
    for path in paths:
        _run(Path(path), Path(path).read_bytes())
    return LoadedFiles()


def _own(value: Any, module: ModuleType) -> bool:
    """Whether a value is defined in the module; an object that is neither a function nor a class is taken to be."""
    if isinstance(value, type | FunctionType):
        return value.__module__ == module.__name__
    return not isinstance(value, ModuleType)


def _run(file: Path, content: bytes) -> ModuleType:
    """The file as a module under its own name, by which pickle and inspect find what it defines; run once a content."""
    name, digest = file.stem, hashlib.sha256(content).hexdigest()
    known = sys.modules.get(name)
    if known is not None and (known.__file__, vars(known).get("__digest__")) == (str(file), digest):
        return known
    if not hasattr(known, "__digest__") and _origin(name) not in (None, str(file)):
        raise ConfigError(f"{file}: the name {name!r} is taken by another module: expected another file name")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    try:
        exec(compile(content, str(file), "exec"), vars(module))
    except Exception as error:
        del sys.modules[name]
        line = getattr(error, "lineno", None) or _line(error, file)
        raise ConfigError(f"{file}, line {line}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(file.parent))
    vars(module)["__digest__"] = digest
    return module


def _origin(name: str) -> str | None:
    """Where an import of that name finds a module, in this process or another; None where there is none."""
    try:
        found = importlib.util.find_spec(name)
    except ValueError:  # loaded, and made by hand: it says nothing of where it is from
        return ""
    return None if found is None else str(Path(found.origin or "").resolve())


def _line(error: Exception, file: Path) -> int:
    """The last line of the file that the error passed through."""
    found, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            found = trace.tb_lineno
        trace = trace.tb_next
    return found
