"""Who may log in: one contract for every backend, and the table that finds a backend by its URL's scheme.

A backend lives as long as the program. Several are asked in order, by ``Chain``.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError
from pillarbox.program.settings import likely
from pillarbox.users.chain import Chain
from pillarbox.users.contract import Settings, Users, acts_as_itself, unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Chain",
    "Settings",
    "Users",
    "acts_as_itself",
    "known_schemes",
    "unavailable",
    "users_class",
    "users_from_url",
]

# Other distributions offer backends under this group: the name is the scheme, the object a subclass of Users.
ENTRY_POINTS = "pillarbox.users"

_BACKENDS = {
    "dovecot": ("pillarbox.users.dovecot", "DovecotUsers"),
    "htpasswd": ("pillarbox.users.htpasswd", "HtpasswdUsers"),
    "http": ("pillarbox.users.http", "HTTPUsers"),
    "https": ("pillarbox.users.http", "HTTPUsers"),
    "jwt": ("pillarbox.users.jwt", "JWTUsers"),
    "python": ("pillarbox.users.python", "PythonUsers"),
}


def known_schemes() -> tuple[str, ...]:
    """Return the schemes that ``users_from_url`` knows, sorted."""
    return tuple(sorted({*_BACKENDS, *_offered()}))


def users_class(url: str) -> type[Users]:
    """Return the class of the backend that a URL names; raise ConfigurationError for an unknown scheme."""
    scheme, colon, _ = url.partition(":")
    scheme = scheme.lower()
    if not colon:
        raise ConfigurationError(f"{url!r} names no users: write SCHEME:…, for example htpasswd:{url or 'users'}")
    if scheme in _BACKENDS:
        module, name = _BACKENDS[scheme]
        found = getattr(import_module(module), name)
    elif scheme in (offered := _offered()):
        found = offered[scheme].load()
    else:
        known = ", ".join(f"{each}:" for each in known_schemes())
        hint = likely(scheme, list(known_schemes()))
        raise ConfigurationError(f"users: unknown scheme {scheme!r}{hint} (known: {known})")
    if not (isinstance(found, type) and issubclass(found, Users)):
        raise ConfigurationError(f"{scheme}: {found!r} is no subclass of pillarbox.users.Users")
    return found


def users_from_url(url: str, settings: Mapping[str, Any] | None = None) -> Users:
    """Return the backend that a URL names, with the settings of its table; it touches nothing before its ``start``.

    Raises ConfigurationError for an unknown scheme, and for a URL or settings that the backend cannot use.
    """
    kind = users_class(url)
    return kind(url, kind.Settings.from_table(settings or {}))


def _offered() -> dict[str, Any]:
    return {point.name.lower(): point for point in entry_points(group=ENTRY_POINTS)}
