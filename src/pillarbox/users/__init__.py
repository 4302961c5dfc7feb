"""Who may log in: one contract for every backend, and the table that finds a backend by its URL's scheme.

A backend lives as long as the program. Several are asked in order, by ``Chain``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pillarbox.program.schemes import Schemes
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
_SCHEMES = Schemes(
    Users,
    __name__,
    methods=("methods", "authenticate"),
    group="pillarbox.users",
    example="htpasswd:users",
    built_in={
        "dovecot": ("pillarbox.users.dovecot", "DovecotUsers"),
        "htpasswd": ("pillarbox.users.htpasswd", "HtpasswdUsers"),
        "http": ("pillarbox.users.http", "HTTPUsers"),
        "https": ("pillarbox.users.http", "HTTPUsers"),
        "jwt": ("pillarbox.users.jwt", "JWTUsers"),
        "python": ("pillarbox.users.python", "class_of"),
    },
)


def known_schemes() -> tuple[str, ...]:
    """Return the schemes that ``users_from_url`` knows, sorted."""
    return _SCHEMES.known()


def users_class(url: str) -> type[Users]:
    """Return the class of the backend that a URL names; raise ConfigurationError where there is none."""
    return _SCHEMES.class_of(url)


def users_from_url(url: str, settings: Mapping[str, Any] | None = None) -> Users:
    """Return the backend that a URL names, with the settings of its table; it touches nothing before its ``start``.

    Raises ConfigurationError for an unknown scheme, and for a URL or settings that the backend cannot use.
    """
    return _SCHEMES.made(url, settings or {})
