"""Several backends as one: in which order they are asked, and which mechanisms AUTH may announce."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pillarbox import ScramKeys
from pillarbox.users.contract import PASSWORD_METHODS, Users

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pillarbox import AuthRequest, Session

__all__ = ["Chain"]

# The order in which they are announced: some clients take the first that they know.
_ORDER = ("SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN", "LOGIN", "CRAM-MD5", "OAUTHBEARER", "XOAUTH2")
_GAVE_KEYS = "pillarbox.users: who gave SCRAM its keys"  # in session.state


class Chain:
    """All users of a server: ``on_auth`` and ``on_scram`` are its handlers, ``methods()`` its ``auth_methods``."""

    def __init__(self, backends: Sequence[Users]) -> None:
        self.backends = tuple(backends)

    def methods(self) -> tuple[str, ...]:
        """Return the mechanisms to announce, once the backends have started.

        That is all that some backend knows; but of SCRAM, which most clients prefer to sending a password, only what
        all backends with passwords know: the users of another could not log in.
        """
        offered = [backend.methods() for backend in self.backends]
        found = dict.fromkeys(method for methods in offered for method in methods)
        with_passwords = [methods for methods in offered if any(method in PASSWORD_METHODS for method in methods)]
        kept = [method for method in found if not _is_scram(method) or all(method in each for each in with_passwords)]
        return tuple(sorted(kept, key=lambda method: _ORDER.index(method) if method in _ORDER else len(_ORDER)))

    def cannot(self, methods: Iterable[str]) -> list[str]:
        """Return those of some mechanisms that no backend verifies: whoever announces them lets nobody in by them."""
        known = {method for backend in self.backends for method in backend.methods()}
        gives_keys = any(type(backend).scram_keys is not Users.scram_keys for backend in self.backends)
        return [method for method in methods if method not in known and not (gives_keys and _is_scram(method))]

    async def on_auth(self, auth: AuthRequest, session: Session) -> str | None:
        """Return the name that the first backend gives who knows the credential; None where none does.

        It is the session's ``username`` too: log, ``Received`` and rates are to be about the account, however its name
        was written.
        """
        session.username = user = await self._user(auth, session)
        return user

    async def _user(self, auth: AuthRequest, session: Session) -> str | None:
        if auth.method == "XCLIENT":
            return auth.username  # a proxy that is trusted with the client's address is trusted with its name too
        if _is_scram(auth.method):
            return await self._verified(auth, session)
        # An endpoint or a directory may take a login without a password for one that asks for nothing, and succeed.
        if auth.method in PASSWORD_METHODS and not auth.password:
            return None
        for backend in self.backends:
            if auth.method in backend.methods():
                user = _name(await backend.authenticate(auth, session), backend)
                if user is not None:
                    return user
        return None

    async def on_scram(self, username: str, session: Session) -> Sequence[ScramKeys]:
        """Return the keys that the first backend has for a user, or keys that no password fits."""
        session.state.pop(_GAVE_KEYS, None)
        for backend in self.backends:
            keys = await backend.scram_keys(username, session)
            if keys:
                session.state[_GAVE_KEYS] = backend
                return [keys] if isinstance(keys, ScramKeys) else keys
        return next((keys for backend in self.backends if (keys := backend.keys_of_nobody(username))), ())

    async def _verified(self, auth: AuthRequest, session: Session) -> str | None:
        # Only who gave the keys can say whose they are: another backend may have another user of that name.
        backend = session.state.pop(_GAVE_KEYS, None)
        if backend is None or not auth.verified:
            return None
        return _name(await backend.authenticate(auth, session), backend)


def _name(user: Any, backend: Users) -> str | None:
    """Return what a backend says; raise TypeError where it is no name: rules, folders and headers are made of it."""
    if user is None or (isinstance(user, str) and user and user.isprintable()):
        return user
    what = "a text that cannot be a name" if isinstance(user, str) else type(user).__name__
    raise TypeError(f"{backend.url}: authenticate returned {what}, not the user's name or None")


def _is_scram(method: str) -> bool:
    return method.startswith("SCRAM-")
