"""The lines of a users' file: ``name:secret``, and for one name a line for each secret. What they mean is read here.

A secret is a hash or SCRAM keys (``passwords``). Empty lines and lines that begin with ``#`` mean nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from codecs import BOM_UTF8
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from pillarbox import ConfigurationError, saslprep
from pillarbox.users.passwords import Secret, parse_secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pillarbox import ScramKeys

__all__ = ["Account", "Accounts", "name_in", "parse_accounts", "stored_name", "with_secrets", "without"]

_LONGEST_NAME = 255  # octets: what RFC 4616 2 has every server accept


@dataclass(slots=True)
class Account:
    """One user: at most one hash, and keys for the hashes of SCRAM."""

    name: str
    hash: Secret | None = None
    keys: dict[str, Secret] = field(default_factory=dict)  # by mechanism

    def secrets(self) -> list[Secret]:
        """Return all, the one that checks a password first."""
        return [*([self.hash] if self.hash else []), *(self.keys[kind] for kind in sorted(self.keys, reverse=True))]

    def scram_keys(self) -> list[ScramKeys]:
        """Return the keys for SCRAM; empty for a user with a hash alone."""
        return [secret.keys for secret in self.keys.values() if secret.keys is not None]


class Accounts(dict[str, Account]):
    """All accounts of a file by prepared name, in its order; ``problems`` tells of lines that mean nothing."""

    problems: Sequence[str] = ()

    def mechanisms(self) -> tuple[str, ...]:
        """Return the mechanisms of SCRAM that every user has keys for."""
        each = [set(account.keys) for account in self.values()]
        return tuple(sorted(set.intersection(*each), reverse=True)) if each else ()

    def somebody(self, username: str, *, with_keys: bool = False) -> Account | None:
        """Return an account in place of one that does not exist, always the same for one name.

        What is done for it takes as long as for a real one and looks the same, so that nobody learns which names exist.
        """
        chosen = self._with_keys if with_keys else self._all
        if not chosen:
            return None
        return chosen[int.from_bytes(hmac.digest(self.salt, username.encode(), "sha256")[:8]) % len(chosen)]

    # Strangers ask for names that nobody has as often as they like: the lists are made once.

    @cached_property
    def _all(self) -> list[Account]:
        return list(self.values())

    @cached_property
    def _with_keys(self) -> list[Account]:
        return [account for account in self.values() if account.keys]

    @cached_property
    def salt(self) -> bytes:
        """What makes these choices unforeseeable, the same in all processes that read the file."""
        # Of the first account alone: so the choices stay when others are added.
        first = next(iter(self.values()), None)
        text = first.secrets()[0].text if first else ""
        return hashlib.sha256(b"pillarbox.users nobody " + text.encode()).digest()


def parse_accounts(content: bytes) -> Accounts:
    """Read a file; lines that are wrong are left out, and told of in ``problems``."""
    accounts, problems = Accounts(), []
    # Some editors put a mark of the byte order in front: it is no part of a line.
    for number, line in enumerate(content.removeprefix(BOM_UTF8).split(b"\n"), 1):
        try:
            _read_line(accounts, line.decode())
        except UnicodeDecodeError:
            problems.append(f"line {number}: is not UTF-8")
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    accounts.problems = problems
    return accounts


def _read_line(accounts: Accounts, line: str) -> None:
    line = line.strip()
    if not line or line.startswith("#"):
        return
    given, colon, text = line.partition(":")
    if not colon:
        raise ValueError("has no colon: write name:hash")
    name = stored_name(given)
    try:
        secret = parse_secret(text)
    except ConfigurationError as error:  # what checks it is not installed
        raise ValueError(f"user {name}: {error}") from None
    except ValueError as error:
        raise ValueError(f"user {name}: {error}: set the password again with 'pillarbox user add'") from None
    account = accounts.get(name) or Account(name)
    if secret.kind in account.keys or (secret.keys is None and account.hash is not None):
        what = "hashes" if secret.keys is None else f"{secret.kind} keys"
        raise ValueError(f"user {name}: has two {what}: remove one line")
    if secret.keys is None:
        account.hash = secret
    else:
        account.keys[secret.kind] = secret
    accounts[name] = account


def stored_name(given: str) -> str:
    """Return a user's name as it is stored and compared; raise ValueError for what cannot be one."""
    try:
        name = saslprep(given, stored=True)
    except ValueError as error:
        raise ValueError(f"{given!r} cannot be a user's name: {error}") from None
    if not name or name != name.strip():
        raise ValueError(f"{given!r} cannot be a user's name: it is empty, or has a space at an end")
    if ":" in name or name.startswith("#"):
        raise ValueError(f"{given!r} cannot be a user's name: it holds a colon, or begins with #")
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"a user's name has at most {_LONGEST_NAME} octets")
    return name


# --- Changing lines; those of others stay as they are


def name_in(line: str) -> str | None:
    """Return whose line this is; None for comments and for what is no line of a user."""
    given, colon, _ = line.strip().partition(":")
    if not colon or given.startswith("#"):
        return None
    try:
        return stored_name(given)
    except ValueError:
        return None


def with_secrets(lines: Sequence[str], name: str, secrets: Sequence[str]) -> list[str]:
    """Return the lines with these secrets for a user, in the place of the old ones or at the end."""
    place = next((number for number, line in enumerate(lines) if name_in(line) == name), len(lines))
    return [*lines[:place], *(f"{name}:{secret}" for secret in secrets), *without(lines[place:], name)]


def without(lines: Sequence[str], name: str) -> list[str]:
    """Return the lines that are not this user's."""
    return [line for line in lines if name_in(line) != name]


def names_in(lines: Sequence[str]) -> Iterator[str]:
    """Return all names once, in order."""
    return iter(dict.fromkeys(name for line in lines if (name := name_in(line)) is not None))
