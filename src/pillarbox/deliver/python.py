"""``python:package.module:object``: a target of one's own.

The object is a subclass of ``Target``, a ``Target``, or an async function ``(message) -> str | None | sequence``.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError
from pillarbox.deliver import Target
from pillarbox.program.objects import object_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pillarbox import Recipient, Reject, Session
    from pillarbox.deliver import Message

__all__ = ["class_of"]

_WANTED = "a subclass of pillarbox.deliver.Target, an object of one, or an async function (message)"


def class_of(url: str) -> type[Target]:
    """Return the class of the target that the URL names: the user's own, or one that calls the user's object."""
    found = object_of(url)
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
        self._function = object_of(url)

    async def deliver(self, message: Message) -> str | Sequence[str | Reject]:
        answer: str | Sequence[str | Reject] | None = await self._function(message)
        return self.url if answer is None else answer


class _Object(Target):
    """Hands everything on to a target that the user's module has made."""

    def __init__(self, url: str, settings: Any = None) -> None:
        super().__init__(url, settings)
        self._target = target = object_of(url)
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
