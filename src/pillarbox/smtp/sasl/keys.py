"""What a server keeps of a password for SCRAM (RFC 5802 3): keys that prove it and cannot be turned back into it."""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from dataclasses import dataclass, field
from typing import Literal

from pillarbox.smtp.sasl.saslprep import saslprep

Hash = Literal["sha1", "sha256"]
NAMES: dict[str, Hash] = {"SCRAM-SHA-1": "sha1", "SCRAM-SHA-256": "sha256"}
_SIZES: dict[str, int] = {"sha1": 20, "sha256": 32}
# RFC 7677 4: "the hash iteration-count SHOULD be at least 4096, but careful consideration ought to be given to using a
# significantly higher value". So many take 25 ms here; it is the client that has to do them at each login.
ITERATIONS = 100_000
_MAX_ITERATIONS = 2**31 - 1  # more than a client could count in
_SALT = 16  # octets
# RFC 5803's parts, in PostgreSQL's form. Not compiled here: that takes 1 ms, which those save who do not use it.
_TEXT = r"(SCRAM-SHA-(?:1|256))\$([1-9][0-9]{0,9}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)"

_secret = b""  # of this process, for keys that belong to nobody; made when first needed


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """The keys of one user for one hash; ``str()`` is how they are stored.

    hash: "sha256" for SCRAM-SHA-256, "sha1" for SCRAM-SHA-1. Whoever has the keys can pass for the server, has
    something to try passwords on, and together with a login overheard can log in. They stand in no ``repr``. Raises
    ValueError for what cannot be keys.
    """

    hash: Hash
    salt: bytes = field(repr=False)
    iterations: int
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        size = _SIZES.get(self.hash)
        if size is None:
            raise ValueError(f"ScramKeys: hash must be 'sha256' or 'sha1', not {self.hash!r}")
        if not 0 < self.iterations <= _MAX_ITERATIONS:
            raise ValueError(f"ScramKeys: iterations must be from 1 to {_MAX_ITERATIONS}, not {self.iterations!r}")
        if not self.salt or len(self.stored_key) != size or len(self.server_key) != size:
            raise ValueError(f"ScramKeys: salt must not be empty, and both keys must have {size} octets")

    @classmethod
    def from_password(
        cls, password: str, *, hash: Hash = "sha256", iterations: int = ITERATIONS, salt: bytes | None = None
    ) -> ScramKeys:
        """Make the keys of a password, with a salt of their own; takes 25 ms of computing.

        Raises ValueError for a password that SASLprep (RFC 4013) prohibits: control characters, unassigned ones,
        an empty one.
        """
        import hashlib
        import hmac
        import secrets  # with hashlib 8 ms, for those who use it

        prepared = saslprep(password, stored=True)
        if not prepared:
            raise ValueError("ScramKeys: the password is empty")
        given = secrets.token_bytes(_SALT) if salt is None else salt
        if hash not in _SIZES or not 0 < iterations <= _MAX_ITERATIONS:
            return cls(hash, given, iterations, b"", b"")  # which says what is wrong
        # RFC 5802 3: "SaltedPassword := Hi(Normalize(password), salt, i)", and so on; Hi is PBKDF2.
        salted = hashlib.pbkdf2_hmac(hash, prepared.encode(), given, iterations)
        client_key = hmac.digest(salted, b"Client Key", hash)
        stored_key = hashlib.new(hash, client_key).digest()
        return cls(hash, given, iterations, stored_key, hmac.digest(salted, b"Server Key", hash))

    @classmethod
    def parse(cls, text: str) -> ScramKeys:
        """Read the text form, ``SCRAM-SHA-256$4096:salt$StoredKey:ServerKey``. Raises ValueError, without the text."""
        match = re.fullmatch(_TEXT, text)
        if match is None:
            raise ValueError("ScramKeys: the text must be SCRAM-SHA-256$ITERATIONS:SALT$STORED_KEY:SERVER_KEY")
        name, iterations, *encoded = match.groups()
        try:
            salt, stored_key, server_key = (a2b_base64(part, strict_mode=True) for part in encoded)
        except Base64Error:
            raise ValueError("ScramKeys: salt and keys must be base64") from None
        return cls(NAMES[name], salt, int(iterations), stored_key, server_key)

    @classmethod
    def of_nobody(
        cls, username: str, *, hash: Hash = "sha256", iterations: int = ITERATIONS, secret: bytes | None = None
    ) -> ScramKeys:
        """Make keys that no password fits, always the same for one name: so that nobody learns which users there are.

        ``on_scram`` need not: None does it. It is for those whose other keys have another number of iterations. With
        a secret of one's own they are the same in every process.
        """
        import hashlib
        import secrets

        global _secret  # noqa: PLW0603 - one for the process, and a process that needs none makes none
        if secret is None:
            secret = _secret = _secret or secrets.token_bytes(32)
        size = _SIZES.get(hash, 0)
        shake = hashlib.shake_256(len(secret).to_bytes(4) + secret + f"{hash} {username}".encode("utf-8", "replace"))
        octets = shake.digest(_SALT + 2 * size)
        return cls(hash, octets[:_SALT], iterations, octets[_SALT : _SALT + size], octets[_SALT + size :])

    def fits(self, password: str) -> bool:
        """Whether this is the password; takes as long as making the keys."""
        import hmac

        try:
            there = self.from_password(password, hash=self.hash, iterations=self.iterations, salt=self.salt)
        except ValueError:
            return False
        return hmac.compare_digest(there.stored_key, self.stored_key)

    def __str__(self) -> str:
        salt, stored_key, server_key = map(_base64, (self.salt, self.stored_key, self.server_key))
        name = next(name for name, its_hash in NAMES.items() if its_hash == self.hash)
        return f"{name}${self.iterations}:{salt}${stored_key}:{server_key}"


def _base64(octets: bytes) -> str:
    return b64encode(octets).decode()
