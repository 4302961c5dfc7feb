"""What a mechanism is and works with: an exchange that asks and verifies, and the credential that comes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from pillarbox.smtp.grammar import has_forbidden_characters

if TYPE_CHECKING:
    from pillarbox.session import Session
    from pillarbox.smtp.sasl.keys import ScramKeys


class InvalidCredential(ValueError):
    """What the client sent is no credential of this mechanism: ``500 Error: invalid userdata``."""


@dataclass(frozen=True, slots=True)
class AuthRequest:
    """A complete credential, as ``on_auth`` gets it; what a mechanism does not have is "".

    method: the mechanism ("PLAIN", …, or "XCLIENT" for a login that a proxy vouches for). username: who the client
    is (authcid, or authzid where that is empty; for EXTERNAL the other way round). authcid and authzid: who has proven
    something, and as whom they want to act (RFC 4422 2). verified: the mechanism has proven the authcid itself (SCRAM),
    and there is no password to check. password: of PLAIN and LOGIN; access_token: of XOAUTH2 and OAUTHBEARER. trace:
    what ANONYMOUS says of itself. properties: what else OAUTHBEARER says ("host", "port"). Its secrets stand in no
    ``repr``.
    """

    method: str
    username: str
    password: str = field(default="", repr=False)
    authcid: str = ""
    authzid: str = ""
    access_token: str = field(default="", repr=False)
    _check: Callable[[str], bool] | None = field(default=None, repr=False)
    verified: bool = False
    trace: str = ""
    properties: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)

    def validate_password(self, password: str) -> bool:
        """Whether the client knows this password, in constant time; never where the mechanism has none.

        For SCRAM it makes the keys once more, which takes as long as when they were made; ``verified`` says as much.
        """
        if self._check is not None:
            return self._check(password)
        import hmac  # with hashlib it takes 3 ms, which the first AUTH pays

        return bool(self.password) and hmac.compare_digest(self.password.encode(), password.encode())


class Exchange(Protocol):
    """One AUTH command under way (RFC 4954 4), as a mechanism sees it."""

    @property
    def host(self) -> str:
        """The server's name."""

    @property
    def session(self) -> Session:
        """The client's session; ``session.tls`` tells of its certificate and of channel bindings."""

    @property
    def offered(self) -> Collection[str]:
        """The names of the mechanisms that this session may use."""

    async def challenge(self, octets: bytes) -> bytes:
        """Send a challenge and return the client's answer, both without their base64.

        A client that gives up (``*``), or answers what is no base64, ends the exchange here.
        """
        ...

    async def tell(self, octets: bytes) -> None:
        """Tell the client why it fails, before Reject is raised; whatever line it answers is dropped."""

    async def verify(self, request: AuthRequest) -> object:
        """Ask ``on_auth``; return the user or raise Reject."""
        ...

    async def scram_keys(self, username: str) -> Sequence[ScramKeys]:
        """Ask ``on_scram`` for a user's keys; none for a user whom it does not know."""
        ...


class Mechanism(ABC):
    """A SASL mechanism (RFC 4422): a subclass is one of your own, for the option ``auth_methods``.

    name: 1 to 20 characters of A-Z, 0-9, hyphen and underscore (RFC 4422 3.1). One object serves all connections.
    needs_handler: a handler without which it cannot work ("on_scram"); ``listen()`` refuses to do without.
    """

    name: str = ""
    needs_handler: ClassVar[str | None] = None

    @abstractmethod
    async def authenticate(self, exchange: Exchange, initial: bytes | None) -> object:
        """Return the user, mostly by ``await exchange.verify(AuthRequest(…))``.

        initial: what came with the command, without its base64; None: nothing did, so ask with
        ``exchange.challenge(b"")``. Raises Reject (535 by default), InvalidCredential (500) for what is malformed;
        None or False is 535. Anything else is a bug: 454.
        """

    def offered(self, session: Session) -> bool:
        """Whether this session may use it, as it is now: asked for EHLO and for AUTH, which is 504 where it may not."""
        return True


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
