"""What a backend of users is: it says who a credential belongs to, and knows nothing of the other backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pillarbox import Reject
from pillarbox.program.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pillarbox import AuthRequest, ScramKeys, Session

__all__ = ["PASSWORD_METHODS", "TOKEN_METHODS", "Settings", "Users", "acts_as_itself", "unavailable"]

PASSWORD_METHODS = ("PLAIN", "LOGIN")
TOKEN_METHODS = ("OAUTHBEARER", "XOAUTH2")


class Users:
    """Those who may log in: subclass it, and write ``methods`` and ``authenticate``.

    Settings: the keys that its table ``[[users]]`` may have, a subclass of ``users.Settings``.
    """

    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, url: str, settings: Any) -> None:
        """Check URL and settings without touching anything; raise ConfigurationError."""
        self.url = url  # as it may be shown
        self.settings = settings

    def same_as(self, other: Users) -> bool:
        """Whether a reload may go on with the other, which runs already, instead of starting this one."""
        return type(self) is type(other) and self.url == other.url and self.settings == other.settings

    async def start(self) -> None:
        """Make ready, once, before the first login; raise ConfigurationError if that is impossible."""

    def methods(self) -> tuple[str, ...]:
        """Return the mechanisms that all its users can log in with; asked after ``start``."""
        raise NotImplementedError

    async def authenticate(self, auth: AuthRequest, session: Session) -> str | None:
        """Return the user's name; None where the credential is wrong or not one of these users: the next is asked.

        It is asked about the methods that it names, and with ``auth.verified`` about users whose keys it gave out.
        Raise Reject to say no for all backends; anything else that is raised is a bug, and the client gets 454.
        """
        raise NotImplementedError

    async def scram_keys(self, username: str, session: Session) -> ScramKeys | Sequence[ScramKeys] | None:
        """Return the keys of a user for SCRAM; None for one who has none here."""
        return None

    def keys_of_nobody(self, username: str) -> Sequence[ScramKeys]:
        """Return keys for a name that nobody has, which look like those of its users; none: the library makes them."""
        return ()

    async def close(self) -> None:
        """Give back what ``start`` took; no login is under way."""


def acts_as_itself(auth: AuthRequest) -> bool:
    """Whether a client wants to act as nobody else than it has proven to be (RFC 4422 2)."""
    return auth.authzid in ("", auth.username)


def unavailable() -> Reject:
    """Return the refusal where nobody can tell now; why is for the log, not for the client."""
    # RFC 4954 6, of 454 4.7.0: "This response to the AUTH command indicates that the authentication failed due to a
    # temporary server failure."
    return Reject(454, "Temporary authentication failure", enhanced="4.7.0")
