"""``python:package.module:object``: users that a program of one's own knows."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from pillarbox import ConfigurationError
from pillarbox.users.contract import PASSWORD_METHODS, Settings, Users

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pillarbox import AuthRequest, ScramKeys, Session

__all__ = ["PythonSettings", "PythonUsers"]


class PythonSettings(Settings):
    """methods: what a function verifies. All else in the table is for a class, which checks it by its own Settings."""

    model_config = ConfigDict(extra="allow")

    methods: list[str] = Field(default=list(PASSWORD_METHODS))


class PythonUsers(Users):
    """The backend ``python:package.module:object``: a function ``(auth, session)``, a ``Users`` class or object."""

    Settings = PythonSettings

    def __init__(self, url: str, settings: PythonSettings) -> None:
        super().__init__(url, settings)
        self._module, colon, self._name = url.partition(":")[2].partition(":")
        parts = [*self._module.split("."), *self._name.split(".")]
        if not (colon and all(part.isidentifier() for part in parts)):
            raise ConfigurationError(f"{url!r} names no object: write python:package.module:object")
        self._users: Users

    async def start(self) -> None:
        """Import the object, and start it where it is a backend itself."""
        self._users = self._made(self._imported())
        await self._users.start()

    def methods(self) -> tuple[str, ...]:
        """Return what the object says; of a function the setting ``methods``."""
        return self._users.methods()

    async def authenticate(self, auth: AuthRequest, session: Session) -> str | None:
        """Ask the object."""
        return await self._users.authenticate(auth, session)

    async def scram_keys(self, username: str, session: Session) -> ScramKeys | Sequence[ScramKeys] | None:
        """Ask the object."""
        return await self._users.scram_keys(username, session)

    def keys_of_nobody(self, username: str) -> Sequence[ScramKeys]:
        """Ask the object."""
        return self._users.keys_of_nobody(username)

    async def close(self) -> None:
        """Close the object; there is none where it could not be imported."""
        if hasattr(self, "_users"):
            await self._users.close()

    def _imported(self) -> Any:
        try:
            found = import_module(self._module)
        except ModuleNotFoundError as error:
            hint = "is it installed, or its folder in PYTHONPATH?"
            raise ConfigurationError(f"{self.url}: there is no module {error.name!r}: {hint}") from error
        except Exception as error:
            raise ConfigurationError(f"{self.url}: {self._module} cannot be imported: {error!r}") from error
        try:
            for part in self._name.split("."):
                found = getattr(found, part)
        except AttributeError as error:
            raise ConfigurationError(f"{self.url}: {self._module} has no {self._name}") from error
        return found

    def _made(self, found: Any) -> Users:
        more = self.settings.model_extra or {}
        if isinstance(found, type) and issubclass(found, Users):
            given = {**more, **self.settings.model_dump(include=self.settings.model_fields_set & {"methods"})}
            return found(self.url, found.Settings.from_table(given))
        if more:
            raise ConfigurationError(f"unknown key {next(iter(more))!r}: only a class of Users has settings of its own")
        if isinstance(found, Users):
            return found
        if not callable(found):
            raise ConfigurationError(f"{self.url}: it is neither a function (auth, session) nor pillarbox.users.Users")
        return _Function(self.url, self.settings, found)


class _Function(Users):
    """A function as a backend."""

    def __init__(self, url: str, settings: PythonSettings, function: Callable[[AuthRequest, Session], Any]) -> None:
        super().__init__(url, settings)
        self._function = function

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
