"""Who may send what to whom: the rules of ``[access]``, asked at MAIL and RCPT.

A client that has logged in, or comes from ``networks``, may write to anyone; all others to those of ``accept``.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pillarbox import ConfigurationError, Networks, Reject
from pillarbox.program.patterns import Patterns, checked, expression, lines, local_part, normal
from pillarbox.program.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pillarbox import Address, Session

__all__ = ["Access", "AccessSettings", "everyone"]

_EVERYONE = "*"  # the key of `senders` that stands for all users without one of their own
_USER = "{user}"
_BRACES = re.compile(r"\{[^{}@]*\}")
# No network of one's own is larger than 10.0.0.0/8, or fc00::/7; halves of the Internet are.
_LARGEST = 7


class AccessSettings(Settings):
    """The table ``[access]``, and the same keys in a ``[[listen]]``."""

    accept: list[str] | None = Field(
        None, description="Recipients that anyone may write to, as patterns; without it all, where nothing is relayed."
    )
    networks: list[str] = Field([], description="Clients that may write to anyone without AUTH.")
    senders: dict[str, list[str]] | None = Field(
        None, description="What a user who has logged in may put into MAIL FROM: user, or *, and patterns with {user}."
    )


class Access:
    """The rules of one listener; raises ConfigurationError for what is no pattern or network."""

    def __init__(self, settings: AccessSettings, folder: Path | None = None) -> None:
        self.accept = None if settings.accept is None else Patterns(settings.accept, folder)
        self.settings = settings
        self._folder = folder
        try:
            self._networks = Networks(settings.networks)
        except ValueError as error:
            raise ConfigurationError(f"networks: {error}") from error
        # One name, however an editor or a keyboard composes its accents.
        own = [(_composed(user), _Senders(patterns, folder)) for user, patterns in (settings.senders or {}).items()]
        self._senders = None if settings.senders is None else dict(own)

    @property
    def networks_given(self) -> bool:
        """Whether some clients may write to anyone without AUTH."""
        return bool(self.settings.networks)

    @property
    def everywhere(self) -> bool:
        """Whether these are all clients there are."""
        return everyone(self.settings.networks)

    @property
    def open_to_all(self) -> bool:
        """Whether anybody may write to anyone."""
        return self.everywhere or self.accept is None or self.accept.unbounded

    def accepting(self, accept: list[str]) -> Access:
        """Return the same rules with other recipients that anyone may write to."""
        return Access(self.settings.model_copy(update={"accept": accept}), self._folder)

    @property
    def looks_at_senders(self) -> bool:
        """Whether MAIL is looked at."""
        return self._senders is not None

    @property
    def looks_at_recipients(self) -> bool:
        """Whether RCPT is looked at."""
        return self.accept is not None

    def check_sender(self, sender: Address, session: Session) -> None:
        """Raise Reject for a reverse path that is another's; that of a report (``<>``) is everyone's."""
        if self._senders is None or session.user is None or not sender.address:
            return
        user = str(session.user)
        own = self._senders.get(_composed(user)) or self._senders.get(_EVERYONE)
        if own is None or not own.allow(sender.address, user):
            raise Reject(553, f"Error: <{sender.address}> is no address of {user}", enhanced="5.7.1")

    def is_near(self, session: Session) -> bool:
        """Whether this client may write to anyone without AUTH."""
        return session.remote_address in self._networks

    def check_recipient(self, address: str, session: Session) -> None:
        """Raise Reject for a recipient that this client may not write to."""
        if self.accept is None or session.user is not None or address in self.accept or self.is_near(session):
            return
        raise Reject(550, "Error: relaying denied: log in, or write to an address of this server", enhanced="5.7.1")


def everyone(listed: bool | Iterable[str]) -> bool:
    """Whether a list of peers means all there are, or so many that there is no difference."""
    return Networks(listed).shortest_prefix < _LARGEST


class _Senders:
    """The reverse paths of one user: patterns, in which ``{user}`` stands for the user's name."""

    def __init__(self, patterns: list[str], folder: Path | None) -> None:
        read = [_checked(pattern, place) for pattern, place in lines(patterns, folder or Path())]
        wanted = [pattern for pattern in read if not pattern.startswith("!")]
        # Nothing but exceptions: from everything, as in all lists of patterns.
        self._wanted = _OfUser(wanted or ["*"] if read else [])
        self._not_wanted = _OfUser([pattern[1:] for pattern in read if pattern.startswith("!")])

    def allow(self, address: str, user: str) -> bool:
        return self._wanted.match(address, user) and not self._not_wanted.match(address, user)


class _OfUser:
    """Patterns of one kind, wanted or not: those with ``{user}``, and the others."""

    def __init__(self, patterns: list[str]) -> None:
        self._fixed = Patterns([pattern for pattern in patterns if _USER not in pattern])
        self._made = [pattern for pattern in patterns if _USER in pattern]

    def match(self, address: str, user: str) -> bool:
        plain = normal(address)
        return address in self._fixed or any(_of_user(pattern, user).fullmatch(plain) for pattern in self._made)


def _composed(user: str) -> str:
    return unicodedata.normalize("NFC", user)


def _checked(pattern: str, place: str) -> str:
    """Return a pattern as it is compared; ``{user}`` stands for a name, or for a whole address."""
    if other := next((each for each in _BRACES.findall(pattern) if each != _USER), None):
        raise ConfigurationError(f"{place}: {other} stands for nothing here, only {_USER} does")
    if _USER not in pattern:
        return checked(pattern, place)
    checked(pattern.replace(_USER, "user@host"), place)
    body = pattern.strip().removeprefix("!")
    return ("!" if pattern.strip() != body else "") + normal(body, is_pattern=True)


def _of_user(pattern: str, user: str) -> re.Pattern[str]:
    """Return the expression for a pattern with ``{user}``: a user's name is no pattern, whatever stands in it."""
    own = re.escape(normal(user) if "@" in user else normal(f"{local_part(user)}@").removesuffix("@"))
    return re.compile(expression(pattern, lambda part: own.join(map(re.escape, part.split(_USER)))), re.DOTALL)
