"""``python:package.module:object``: users that a program of one's own knows.

The object is a subclass of ``Users``, a ``Users``, or a function ``(auth, session)``, plain or async.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from pillarbox import ConfigurationError
from pillarbox.program.objects import object_of
from pillarbox.users.contract import PASSWORD_METHODS, TOKEN_METHODS, Settings, Users

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pillarbox import AuthRequest, ScramKeys, Session

__all__ = ["class_of"]

# Not SCRAM: a function has no keys to give out.
_METHODS = (*PASSWORD_METHODS, *TOKEN_METHODS, "CRAM-MD5", "EXTERNAL", "ANONYMOUS")


def class_of(url: str) -> type[Users]:
    """Return the class of the backend that the URL names: the user's own, or one that calls the user's object."""
    found = object_of(url)
    if isinstance(found, type) and issubclass(found, Users):
        return found
    if isinstance(found, Users):
        return _Object
    if callable(found):
        return _Function
    raise ConfigurationError(f"{url}: it is neither a function (auth, session) nor pillarbox.users.Users")


class _Object(Users):
    """Hands everything on to a backend that the user's module has made."""

    def __init__(self, url: str, settings: Any) -> None:
        super().__init__(url, settings)
        self._users: Users = object_of(url)

    async def start(self) -> None:
        await self._users.start()

    def methods(self) -> tuple[str, ...]:
        return self._users.methods()

    async def authenticate(self, auth: AuthRequest, session: Session) -> str | None:
        return await self._users.authenticate(auth, session)

    async def scram_keys(self, username: str, session: Session) -> ScramKeys | Sequence[ScramKeys] | None:
        return await self._users.scram_keys(username, session)

    def keys_of_nobody(self, username: str) -> Sequence[ScramKeys]:
        return self._users.keys_of_nobody(username)

    async def close(self) -> None:
        await self._users.close()


class _FunctionSettings(Settings):
    """methods: what the function verifies."""

    methods: list[str] = Field(default=list(PASSWORD_METHODS), min_length=1)

    @field_validator("methods")
    @classmethod
    def _known(cls, given: list[str]) -> list[str]:
        for name in given:
            if name not in _METHODS:
                raise ValueError(f"a function cannot verify {name!r}, only {', '.join(_METHODS)}")
        return given


class _Function(Users):
    """A function as a backend."""

    Settings = _FunctionSettings

    def __init__(self, url: str, settings: _FunctionSettings) -> None:
        super().__init__(url, settings)
        self._function = object_of(url)

    def methods(self) -> tuple[str, ...]:
        return tuple(self.settings.methods)

    async def authenticate(self, auth: AuthRequest, session: Session) -> str | None:
        user = self._function(auth, session)
        if inspect.isawaitable(user):
            user = await user
        if user is True:  # as with the handler on_auth
            user = auth.username
        if user is None or user is False:
            return None
        if not isinstance(user, str) or not user:
            raise TypeError(f"{self.url} returned {type(user).__name__}, not the user's name or None")
        return user
