"""``python:MODULE:OBJECT``: an object of one's own is found as Python finds it, and then in the working directory.

What is wrong with it is said at the start, with what was found.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["object_of"]


def object_of(url: str) -> Any:
    """Return the object that a URL names, and import its module; raise ConfigurationError where there is none."""
    name, colon, path = url.partition(":")[2].partition(":")
    if not (colon and _is_dotted(name) and _is_dotted(path)):
        example = "python:mypackage.mymodule:MyClass"
        raise ConfigurationError(f"{url!r} names no object: write python:MODULE:OBJECT, for example {example}")
    module = found = _module(url, name)
    for attribute in path.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            place = getattr(module, "__file__", None) or "a part of Python"
            raise ConfigurationError(f"{url}: {name} ({place}) has no {path!r}") from None
    return found


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _module(url: str, name: str) -> ModuleType:
    # `python -m pillarbox` looks in the working directory, the script `pillarbox` would not. Last, so that no file
    # there can take the place of a module of Python or of an installed package.
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:  # noqa: PTH109 - what sys.path holds are texts
        sys.path.append(here)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigurationError(f"{url}: {_failure(error)}") from error
        raise ConfigurationError(
            f"{url}: there is no module {error.name!r}: install it into the Python of pillarbox ({sys.executable}),"
            f" or start pillarbox in its folder (this is {here}), or name the folder in PYTHONPATH"
        ) from None
    except Exception as error:
        raise ConfigurationError(f"{url}: {_failure(error)}") from error


def _failure(error: Exception) -> str:
    """Say what went wrong in the user's module, and where."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({error.filename}, line {error.lineno})"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
