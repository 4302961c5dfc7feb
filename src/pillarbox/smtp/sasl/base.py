"""What a mechanism works with: an exchange that asks and verifies, and the credential that comes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from pillarbox.smtp.grammar import has_forbidden_characters


class InvalidCredential(ValueError):
    """What the client sent is no credential of this mechanism: ``500 Error: invalid userdata``."""


@dataclass(frozen=True, slots=True)
class AuthRequest:
    """A complete credential, as ``on_auth`` gets it; what a mechanism does not have is "".

    method: the mechanism ("PLAIN", …, or "XCLIENT" for a login that a proxy vouches for). username: who the client
    is (authcid, or authzid where that is empty). authcid and authzid: the two identities of RFC 4616 as sent.
    password: of PLAIN and LOGIN; access_token: of XOAUTH2. Its secrets stand in no ``repr``.
    """

    method: str
    username: str
    password: str = field(default="", repr=False)
    authcid: str = ""
    authzid: str = ""
    access_token: str = field(default="", repr=False)
    _check: Callable[[str], bool] | None = field(default=None, repr=False)

    def validate_password(self, password: str) -> bool:
        """Whether the client knows this password, in constant time; never for XOAUTH2 and XCLIENT."""
        if self._check is not None:
            return self._check(password)
        import hmac  # with hashlib it takes 3 ms, which the first AUTH pays

        return bool(self.password) and hmac.compare_digest(self.password.encode(), password.encode())


class Exchange(Protocol):
    """One AUTH command under way."""

    @property
    def host(self) -> str:
        """The server's name."""

    async def challenge(self, octets: bytes) -> bytes:
        """Send a challenge and return the client's answer, both without their base64."""
        ...

    async def tell(self, octets: bytes) -> None:
        """Send a challenge that is no question: whatever line the client answers is dropped."""

    async def verify(self, request: AuthRequest) -> object:
        """Ask ``on_auth``; return the user or raise Reject."""
        ...


Mechanism = Callable[[Exchange, bytes | None], Awaitable[object]]
"""``await mechanism(exchange, initial_response)`` returns the user; None: no initial response came."""


def text(octets: bytes) -> str:
    """Decode a part of a credential."""
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidCredential("not UTF-8") from None


def identity(octets: bytes) -> str:
    """Decode a user name, an authcid or an authzid: no control characters in it."""
    name = text(octets)
    if has_forbidden_characters(name):
        raise InvalidCredential("control character in an identity")
    return name
