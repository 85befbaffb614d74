"""What a function computes, as a word that can stand in a run's configuration: `described`."""

import hashlib
import inspect
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

from lrkd.errors import ConfigError


def described(function: Callable[..., Any], what: str = "function") -> str:
    """Name what a function computes, so that two with one name that compute different things are told apart.

    Args:
        function: a function of a module, a `functools.partial` of one, or an object with `__call__` whose attributes
            are plain values, such as a dataclass.
        what: what it is to the caller, for messages.

    Returns:
        One of lrkd under its own name, "lp(2)"; any other as "module.name(parameter=value)#hash", with a hash of its
        source and its default values. The functions that it calls are not looked into.

    Raises:
        ConfigError: for a lambda or a function made inside another one, as all of a place share a name, and what they
            enclose cannot be seen; and for a parameter that is no plain value.
    """
    if isinstance(function, partial):
        given = [*map(_value, function.args), *(f"{key}={_value(v)}" for key, v in sorted(function.keywords.items()))]
        name, mark, code = described(function.func, what).partition("#")
        return f"{name}({', '.join(given)}){mark}{code}"
    if isinstance(function, types.MethodType):
        owner: Any = function.__self__
        return f"{described(owner, what)}.{function.__name__}"
    plain = hasattr(function, "__qualname__")  # an instance has its class's name
    kind: Any = function if plain else type(function)
    if kind.__module__ and kind.__module__.partition(".")[0] == "lrkd":
        return str(getattr(function, "__name__", kind.__name__))
    if "<" in kind.__qualname__:
        raise ConfigError(
            f"{what} is {kind.__qualname__} of {kind.__module__}: a lambda or a function made inside another cannot be "
            f"told from its like, and one's run would pass for the other's; write it with def at the top of a module"
        )
    fields = "" if plain else f"({', '.join(f'{key}={_value(v)}' for key, v in sorted(vars(function).items()))})"
    return f"{kind.__module__}.{kind.__qualname__}{fields}#{hashlib.sha256(_source(kind).encode()).hexdigest()[:8]}"


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_value, value))})"
    if callable(value):
        return described(value)
    raise ConfigError(
        f"a parameter is a {type(value).__name__}: only plain values and functions are told from their like"
    )


def _source(function: Any) -> str:
    """The text of a function or a class, or its code where there is no text; with its default values.

    And with the digest of a user's file, see `lrkd.userfile`, all of which may be called.
    """
    defaults = [getattr(function, name, None) for name in ("__defaults__", "__kwdefaults__")]
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = repr(_code(getattr(function, "__code__", None)))
    digest = getattr(sys.modules.get(function.__module__), "__digest__", "")
    return text + repr([default for default in defaults if default]) + digest


def _code(code: types.CodeType | None) -> Any:
    """What a code object does, without where it lies."""
    if code is None:
        return None
    inside = [_code(const) if isinstance(const, types.CodeType) else const for const in code.co_consts]
    return code.co_code, inside, code.co_names, code.co_varnames
