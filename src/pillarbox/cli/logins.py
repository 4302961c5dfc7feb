"""Who may log in, as file and command line say it, and what that means for the options of each listener."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError
from pillarbox.cli.document import located, text
from pillarbox.users import users_from_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pillarbox import Options
    from pillarbox.cli.config import Listener
    from pillarbox.cli.document import Document
    from pillarbox.users import Users

__all__ = ["Backend", "backends", "with_logins"]

_EXAMPLE = "htpasswd:/etc/pillarbox/users"


@dataclass(frozen=True)
class Backend:
    """Some of those who may log in. ``source`` is the place in the configuration."""

    users: Users
    source: str


def backends(document: Document, urls: Iterable[str]) -> tuple[Backend, ...]:
    """Return who may log in: by ``--users``, or else by the file's tables ``[[users]]``."""
    given = [({"url": url}, "--users") for url in urls]
    return tuple(_backend(entry, source) for entry, source in given or document.tables("users"))


def _backend(entry: Mapping[str, Any], source: str) -> Backend:
    url = text(entry, "url", source, _EXAMPLE)
    own = {name: value for name, value in entry.items() if name != "url"}
    try:
        return Backend(users_from_url(url, own), source)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from error


def _without_auth(options: Options, users: Sequence[Backend]) -> bool:
    """Whether AUTH is not to be offered, as nobody could log in; raise ConfigurationError where mail needs a login."""
    if users or "AUTH" in options.disabled_commands:
        return False
    if not options.must_authenticate:
        return True
    if options.use_xclient:  # who is believed when it says by XCLIENT who has logged in
        return False
    raise ConfigurationError(
        "auth_optional = false, but there is nobody who could log in: say who may, by [[users]] or --users"
    )


def with_logins(listener: Listener, users: Sequence[Backend], sources: Mapping[str, str]) -> Listener:
    """Return a listener as users, or none, change what is the default there. sources: of the server's own options.

    With users everybody has to log in, unless ``auth_optional`` is stated, or the rules say who else may write to whom.
    """
    options, access = listener.options, listener.access
    changed: dict[str, Any] = {}
    place = listener.source if "auth_optional" in listener.overrides else sources.get("auth_optional", "")
    if users and not place:
        # LMTP is spoken by mail servers, which know whom they have let in.
        changed["auth_optional"] = options.lmtp or access.accept is not None or access.networks_given
        if access.networks_given and access.accept is None and not options.lmtp:
            access = access.accepting([])
    try:
        if _without_auth(options, users):
            changed["disabled_commands"] = (*options.disabled_commands, "AUTH")
    except ConfigurationError as error:
        raise ConfigurationError(located(place, str(error))) from error
    changed = {name: value for name, value in changed.items() if value != getattr(options, name)}
    return dataclasses.replace(
        listener,
        access=access,
        options=type(options).make(options, **changed) if changed else options,
        overrides={**listener.overrides, **changed},
        implied=frozenset(changed),
    )
