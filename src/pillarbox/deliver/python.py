"""``python:package.module:object``: a target of one's own, found as Python finds it, and then in the working directory.

The object is a subclass of ``Target``, a ``Target``, or an async function ``(message) -> str | None | sequence``. What
is wrong with it is said at the start, with what was found.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError
from pillarbox.deliver import Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from pillarbox import Recipient, Reject, Session
    from pillarbox.deliver import Message

__all__ = ["class_of"]

_WANTED = "a subclass of pillarbox.deliver.Target, an object of one, or an async function (message)"


def class_of(url: str) -> type[Target]:
    """Return the class of the target that the URL names: the user's own, or one that calls the user's object."""
    found = _object(url)
    kind = found if isinstance(found, type) else type(found)
    if issubclass(kind, Target):
        if kind.deliver is not Target.deliver:
            return kind if kind is found else _Object
    elif kind is not found and _is_async(found):
        return _Function
    raise ConfigurationError(f"{url}: is {_described(found)}, not {_WANTED}")


class _Function(Target):
    """Calls an async function for each message."""

    def __init__(self, url: str, settings: Any = None) -> None:
        super().__init__(url, settings)
        self._function = _object(url)

    async def deliver(self, message: Message) -> str | Sequence[str | Reject]:
        answer: str | Sequence[str | Reject] | None = await self._function(message)
        return self.url if answer is None else answer


class _Object(Target):
    """Hands everything on to a target that the user's module has made."""

    def __init__(self, url: str, settings: Any = None) -> None:
        super().__init__(url, settings)
        self._target = target = _object(url)
        self.__dict__.update(final=target.final, relays=target.relays)

    async def start(self) -> None:
        await self._target.start()

    @property
    def verifies(self) -> bool:
        verifies: bool = self._target.verifies
        return verifies

    async def verify(self, recipient: Recipient, session: Session) -> None:
        await self._target.verify(recipient, session)

    async def deliver(self, message: Message) -> str | Sequence[str | Reject]:
        answer: str | Sequence[str | Reject] = await self._target.deliver(message)
        return answer

    async def close(self) -> None:
        await self._target.close()


# --- The object


def _object(url: str) -> Any:
    name, colon, path = url.partition(":")[2].partition(":")
    if not (colon and _is_dotted(name) and _is_dotted(path)):
        raise ConfigurationError(f"{url!r}: write python:MODULE:OBJECT, for example python:mypackage.targets:Archive")
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


def _is_async(found: Any) -> bool:
    return inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(getattr(found, "__call__", None))  # noqa: B004 - callable() does not say whether it is async


def _described(found: Any) -> str:
    kind = found if isinstance(found, type) else type(found)
    if issubclass(kind, Target):
        return f"the class {kind.__name__} without a method deliver"
    if kind is found:
        return f"the class {kind.__name__}"
    if inspect.isasyncgenfunction(found):
        return "an async generator (a function with yield)"
    if inspect.isroutine(found):
        return "a function without async"
    return f"an object of {type(found).__name__}"
