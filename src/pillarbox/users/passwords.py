"""What may stand in a file in place of a password: argon2 and bcrypt hashes, and SCRAM keys. Nothing else is read here.

argon2-cffi and bcrypt make and check the hashes; they are imported where the first hash of their kind is met.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pillarbox import ConfigurationError, ScramKeys, saslprep

if TYPE_CHECKING:
    from argon2 import PasswordHasher

__all__ = ["KINDS", "Kind", "Secret", "make_hash", "need_libraries", "parse_secret"]

Kind = Literal["argon2", "bcrypt"]
KINDS: tuple[Kind, ...] = ("argon2", "bcrypt")

# OWASP, Password Storage Cheat Sheet: "Use Argon2id with a minimum configuration of 19 MiB of memory, an iteration
# count of 2, and 1 degree of parallelism." 24 ms here. Mail programs log in for each message, and pay it each time.
_MEMORY, _TIME, _LANES = 19_456, 2, 1  # KiB, passes, threads
_ROUNDS = 10  # of bcrypt: 2**10, 60 ms here
# What a hash in a file may ask for. More would let a few logins use up the memory, or the processor for seconds.
_MOST_MEMORY = 1024 * 1024  # KiB
_MOST_WORK = 8 * 1024 * 1024  # KiB times passes: some 10 s
_MOST_LANES = 16  # threads
_MOST_ROUNDS = 16
_MOST_ITERATIONS = 5_000_000
# bcrypt uses no more octets of a password.
_BCRYPT_OCTETS = 72

# 22 characters of salt, of which the last holds two bits, and 31 of the hash itself.
_BCRYPT = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
# The hashes of old files, by how they begin. Any computer tries out millions of passwords a second on them.
_OLD = {
    "$apr1$": "an MD5 hash of Apache's",
    "$1$": "an MD5 hash",
    "$5$": "a SHA-256 hash of crypt",
    "$6$": "a SHA-512 hash of crypt",
    "{SHA}": "a SHA-1 hash",
    "{SSHA}": "a SHA-1 hash",
    "{PLAIN}": "a plain password",
}


@dataclass(frozen=True, slots=True)
class Secret:
    """A hash, or SCRAM keys: what a password fits or does not fit. It stands in no ``repr``.

    kind: "argon2id", "argon2i", "argon2d", "bcrypt", "SCRAM-SHA-256" or "SCRAM-SHA-1".
    """

    kind: str
    text: str = field(repr=False)
    keys: ScramKeys | None = field(default=None, repr=False)

    def fits(self, password: str) -> bool:
        """Whether this is the password; takes from 20 ms to seconds of computing, the same for each password."""
        if self.keys is not None:
            return self.keys.fits(password)
        checks = _fits_bcrypt if self.kind == "bcrypt" else _fits_argon2
        # Not `any`: how many of the forms are tried is not to say which of them fits.
        return True in [checks(self.text, form.encode()) for form in _forms(password)]


def _forms(password: str) -> list[str]:
    """Return a password as it may have been hashed: prepared, and as it was typed where that is different.

    Other programs hash what was typed. Nothing is returned for a password with control characters.
    """
    # RFC 4616 2: "The presented authentication identity and password strings, as well as the database authentication
    # identity and password strings, are to be prepared before being used in the verification process."
    try:
        return list(dict.fromkeys((saslprep(password), password)))
    except ValueError:
        return []


def parse_secret(text: str) -> Secret:
    """Read a hash or keys. Raises ValueError, which says what it is but not the text itself."""
    if text.startswith("SCRAM-"):
        keys = ScramKeys.parse(text)
        if keys.iterations > _MOST_ITERATIONS:
            raise ValueError(
                f"its {keys.iterations} iterations take too long: at most {_MOST_ITERATIONS} may be asked for"
            )
        return Secret(text.partition("$")[0], text, keys)
    if text.startswith("$argon2"):
        return _parsed_argon2(text)
    if text.startswith("$2"):
        return _parsed_bcrypt(text)
    raise ValueError(f"{_what(text)}, which is not accepted")


def make_hash(password: str, kind: Kind) -> str:
    """Return a new hash; takes some 25 to 60 ms of computing. Raises ValueError for a password that it cannot hash."""
    prepared = saslprep(password)
    if not prepared:
        raise ValueError("the password is empty")
    if kind == "argon2":
        return _argon2().hash(prepared)
    octets = prepared.encode()
    if len(octets) > _BCRYPT_OCTETS:
        raise ValueError(
            f"bcrypt uses {_BCRYPT_OCTETS} octets of a password, and this one has {len(octets)}: take argon2"
        )
    import bcrypt

    return bcrypt.hashpw(octets, bcrypt.gensalt(_ROUNDS)).decode()


def need_libraries(kinds: set[str]) -> None:
    """Raise ConfigurationError where what checks these kinds of hashes is not installed."""
    try:
        if any(kind.startswith("argon2") for kind in kinds):
            import argon2  # noqa: F401 - whether it is there
        if "bcrypt" in kinds:
            import bcrypt  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"the library {error.name} that checks passwords is missing: pip install 'pillarbox[users]'"
        ) from error


# --- argon2


def _argon2() -> PasswordHasher:
    from argon2 import PasswordHasher

    return PasswordHasher(time_cost=_TIME, memory_cost=_MEMORY, parallelism=_LANES)


def _parsed_argon2(text: str) -> Secret:
    need_libraries({"argon2"})
    from argon2 import extract_parameters
    from argon2.exceptions import InvalidHashError

    try:
        asked = extract_parameters(text)
    except (InvalidHashError, ValueError, KeyError):
        raise ValueError("its argon2 hash is incomplete or damaged") from None
    if not (asked.salt_len and asked.hash_len):
        raise ValueError("its argon2 hash is incomplete or damaged")
    memory, passes, lanes = asked.memory_cost, asked.time_cost, asked.parallelism
    if memory > _MOST_MEMORY or memory * passes > _MOST_WORK or lanes > _MOST_LANES:
        asks = f"{memory // 1024} MiB, {passes} passes and {lanes} threads"
        raise ValueError(f"its argon2 hash asks for {asks} at each login, which is too much")
    return Secret(f"argon2{asked.type.name.lower()}", text)


def _fits_argon2(text: str, octets: bytes) -> bool:
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        return _argon2().verify(text, octets)
    except (VerificationError, InvalidHashError):
        return False


# --- bcrypt


def _parsed_bcrypt(text: str) -> Secret:
    match = _BCRYPT.fullmatch(text)
    if match is None or int(match[1]) < 4:
        raise ValueError("its bcrypt hash is incomplete or damaged")
    if int(match[1]) > _MOST_ROUNDS:
        raise ValueError(f"its bcrypt hash asks for 2**{match[1]} rounds at each login: at most 2**{_MOST_ROUNDS}")
    return Secret("bcrypt", text)


def _fits_bcrypt(text: str, octets: bytes) -> bool:
    import bcrypt

    return bcrypt.checkpw(octets[:_BCRYPT_OCTETS], text.encode())


def _what(text: str) -> str:
    for beginning, name in _OLD.items():
        if text.upper().startswith(beginning.upper()):
            return f"it has {name}"
    if re.fullmatch(r"[./A-Za-z0-9]{13}", text):
        return "it has a DES hash of crypt"
    return "it has no hash that is known here, or a plain password"
