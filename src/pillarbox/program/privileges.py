"""``--user``: root is given up for good once the addresses are bound and the keys are read."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from pillarbox import ConfigurationError

__all__ = ["Account", "account"]


@dataclass(frozen=True)
class Account:
    """The user and group that the program becomes."""

    name: str
    uid: int
    gid: int

    def become(self) -> None:
        """Change to this user, with its groups alone, so that there is no way back."""
        if os.geteuid() == self.uid and os.getegid() == self.gid:
            return
        os.initgroups(self.name, self.gid)
        os.setgid(self.gid)
        os.setuid(self.uid)
        if self.uid != 0 and _can_return():
            raise RuntimeError(f"the rights of root cannot be given up for user {self.name}")


def account(user: str) -> Account:
    """Return the account that ``user`` or ``user:group`` names; raise ConfigurationError where that cannot be."""
    if sys.platform == "win32":
        raise ConfigurationError("user: Windows has no such change of user: use a service account")
    import grp
    import pwd

    name, colon, group = user.partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        raise ConfigurationError(f"user: there is no user {name!r} on this host") from None
    try:
        gid = entry.pw_gid if not colon else int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigurationError(f"user: there is no group {group!r} on this host") from None
    found = Account(entry.pw_name, entry.pw_uid, gid)
    if os.geteuid() not in (0, found.uid):
        raise ConfigurationError(f"user: only root can become {entry.pw_name}: start as root, or leave user out")
    return found


def _can_return() -> bool:
    try:
        os.setuid(0)
    except PermissionError:
        return False
    return True
