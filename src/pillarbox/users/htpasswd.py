"""``htpasswd:PATH``: users with hashes or SCRAM keys in a file, which is read again when it changes."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from hashlib import shake_256
from typing import TYPE_CHECKING

from pydantic import Field

from pillarbox import ConfigurationError, ScramKeys, log_fields, saslprep
from pillarbox.program.paths import local_path
from pillarbox.users.accounts import parse_accounts
from pillarbox.users.checking import Checking
from pillarbox.users.contract import PASSWORD_METHODS, Settings, Users, acts_as_itself, unavailable
from pillarbox.users.watched import WatchedFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pillarbox import AuthRequest, Session
    from pillarbox.users.accounts import Accounts

__all__ = ["HtpasswdSettings", "HtpasswdUsers"]

_OTHERS_MAY_READ = 0o004
_ADVICE = {
    FileNotFoundError: ": make it with 'pillarbox user add FILE NAME'",
    PermissionError: ": give it to the group that the program runs as, which may read it: chgrp, chmod g+r",
}

_log = logging.getLogger("pillarbox.users")


class HtpasswdSettings(Settings):
    """parallel: how many passwords are checked at once; each takes a core, and the memory that its hash asks for."""

    parallel: int = Field(default=2, ge=1, le=64)


class HtpasswdUsers(Users):
    """The backend ``htpasswd:PATH``; a relative path begins at the working directory, ``~`` is the home directory."""

    Settings = HtpasswdSettings

    def __init__(self, url: str, settings: HtpasswdSettings) -> None:
        super().__init__(url, settings)
        self._file = WatchedFile(local_path(url), self._parsed, whole=_ends)
        self.path = self._file.path
        self._checking = Checking(settings.parallel)
        self._methods: tuple[str, ...] = PASSWORD_METHODS
        self._accounts: Accounts | None = None

    def same_as(self, other: Users) -> bool:
        """Whether a reload may go on with the other: not where the file has come to other mechanisms meanwhile."""
        return super().same_as(other) and isinstance(other, HtpasswdUsers) and other.announces_its_file()

    def announces_its_file(self) -> bool:
        """Whether ``methods`` are still those of what the file holds; also where it is no good file now."""
        try:
            accounts = self._file.current(patient=False)  # the event loop waits
        except OSError:
            return True
        return bool(accounts.problems) or self._methods == _methods(accounts)

    async def start(self) -> None:
        """Read the file: every line of it must be good now; later a line that is not locks out its user alone."""
        try:
            accounts = await asyncio.to_thread(self._file.current)
            mode = await asyncio.to_thread(lambda: self._file.path.stat().st_mode)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigurationError(f"{self.url}: {reason}{_ADVICE.get(type(error), '')}") from error
        if accounts.problems:
            raise ConfigurationError(f"{self._file.path}, {accounts.problems[0]}")
        if mode & _OTHERS_MAY_READ:
            _log.warning("%s can be read by everybody: chmod o= %s", self._file.path, self._file.path)
        self._methods = _methods(accounts)

    def methods(self) -> tuple[str, ...]:
        """Return those of passwords, and those of SCRAM for which all users had keys at the start, or a reload."""
        return self._methods

    async def authenticate(self, auth: AuthRequest, session: Session) -> str | None:
        """Check a password; a name that nobody has takes as long as one that somebody has."""
        if not acts_as_itself(auth):
            return None
        if auth.verified:
            return auth.username
        accounts = await self._current(session)
        account = accounts.get(_prepared(auth.username))
        checked = account or accounts.somebody(auth.username)
        if checked is None:  # nobody is in the file
            return None
        fits = await self._checking.fits(checked.secrets()[0], auth.password, session)
        return account.name if fits and account is not None else None

    async def scram_keys(self, username: str, session: Session) -> Sequence[ScramKeys]:
        """Return the keys of a user; none for one who has a hash alone."""
        account = (await self._current(session)).get(username)
        return account.scram_keys() if account is not None else ()

    def keys_of_nobody(self, username: str) -> Sequence[ScramKeys]:
        """Return keys with as many iterations, and as long a salt, as those of a user."""
        accounts = self._accounts
        like = accounts.somebody(username, with_keys=True) if accounts is not None else None
        if accounts is None or like is None:
            return ()
        secret = accounts.salt
        nobody = [
            (keys, ScramKeys.of_nobody(username, hash=keys.hash, iterations=keys.iterations, secret=secret))
            for keys in like.scram_keys()
        ]
        return [replace(made, salt=shake_256(made.salt).digest(len(keys.salt))) for keys, made in nobody]

    async def close(self) -> None:
        """End the threads."""
        self._checking.close()

    async def _current(self, session: Session) -> Accounts:
        try:
            return await asyncio.to_thread(self._file.current)
        except OSError as error:
            fields = log_fields(session, "users", "auth")
            _log.error("%s cannot be read, nobody in it can log in: %s", self._file.path, error.strerror, extra=fields)
            raise unavailable() from error

    def _parsed(self, content: bytes) -> Accounts:
        accounts = parse_accounts(content)
        if self._accounts is not None:  # at the start these are errors
            self._warn(accounts)
        self._accounts = accounts
        return accounts

    def _warn(self, accounts: Accounts) -> None:
        for problem in accounts.problems:
            _log.error("%s, %s", self._file.path, problem)
        announced = {method for method in self._methods if method.startswith("SCRAM-")}
        without = [account.name for account in accounts.values() if not announced <= set(account.keys)]
        if without:
            names = ", ".join(without[:10])
            _log.warning(
                "%s: SCRAM is announced until a reload (SIGHUP), and has no keys of: %s", self._file.path, names
            )


def _ends(content: bytes) -> bool:
    """Whether this is no file that is being written: such a one is empty, or ends within a line."""
    return content.endswith(b"\n")


def _methods(accounts: Accounts) -> tuple[str, ...]:
    return (*accounts.mechanisms(), *PASSWORD_METHODS)


def _prepared(username: str) -> str:
    try:
        return saslprep(username)
    except ValueError:
        return ""  # nobody's name
