"""``--user``: root is given up for good once the addresses are bound and the keys are read."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pillarbox import ConfigurationError

__all__ = ["Account", "account", "account_named"]

# What only the first message or handshake, or an error, loads: by then the user may be one who cannot read it.
_NEEDED_LATER = (
    "aiodns",
    "cachetools",
    "cryptography.hazmat.backends.openssl.backend",
    "cryptography.x509",
    "email.utils",
)

_log = logging.getLogger("pillarbox.program")


@dataclass(frozen=True)
class Account:
    """The user and group that the program becomes."""

    name: str
    uid: int
    gid: int

    def become(self) -> None:
        """Change to this user, with its groups alone, so that there is no way back.

        Raise ConfigurationError where that is not allowed: root may be without its capabilities, and who is this user
        already cannot have another group.
        """
        if os.geteuid() == self.uid and os.getegid() == self.gid:
            return
        for module in _NEEDED_LATER:
            with suppress(ImportError):
                import_module(module)
        try:
            os.initgroups(self.name, self.gid)
            os.setgid(self.gid)
            os.setuid(self.uid)
        except PermissionError as error:
            raise ConfigurationError(
                f"user: this process may not become {self.name} with group {self.gid}: start as root,"
                " with CAP_SETUID and CAP_SETGID, or leave user out"
            ) from error
        if self.uid != 0 and _can_return():
            raise RuntimeError(f"the rights of root cannot be given up for user {self.name}")
        if not os.access(os.__file__, os.R_OK):
            _log.warning(
                "user %s may not read Python's modules in %s: what is loaded later may fail; install it elsewhere",
                self.name,
                Path(os.__file__).parent,
            )


def account(user: str) -> Account:
    """Return the account to become; raise ConfigurationError where there is none, or this process cannot become it."""
    found = account_named(user)
    if os.geteuid() not in (0, found.uid):
        raise ConfigurationError(f"user: only root can become {found.name}: start as root, or leave user out")
    return found


def account_named(user: str) -> Account:
    """Return the account that ``user`` or ``user:group`` names; raise ConfigurationError where there is none."""
    if sys.platform == "win32":
        raise ConfigurationError("user: Windows has no such change of user: use a service account")
    import grp
    import pwd

    name, colon, group = user.partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError, ValueError):  # a number that is too large, a name with a NUL
        raise ConfigurationError(f"user: there is no user {name!r} on this host") from None
    try:
        gid = entry.pw_gid if not colon else _number(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise ConfigurationError(f"user: there is no group {group!r} on this host") from None
    return Account(entry.pw_name, entry.pw_uid, gid)


def _number(group: str) -> int:
    if int(group) >= 1 << 32:
        raise ValueError
    return int(group)


def _can_return() -> bool:
    try:
        os.setuid(0)
    except PermissionError:
        return False
    return True
