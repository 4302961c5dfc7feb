"""Where messages go: one contract for every target, and the table that finds a target by its URL's scheme.

A target lives as long as the program. Its ``deliver`` reads a message while it arrives and returns when it is durable.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from pillarbox import Reject
from pillarbox.program.schemes import Schemes
from pillarbox.program.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence

    from pillarbox import Recipient, Session

__all__ = ["Message", "Settings", "Target", "known_schemes", "settled", "target_from_url", "unavailable"]

PATIENCE_WITH_CLEANING = 5.0  # seconds


class Message:
    """One message on its way to one target: ``async for block in message`` gives its octets while they arrive.

    First comes the trace that the program writes (``Received``, and for final delivery ``Return-Path``), then the
    message as it was sent, without transparency dots; lines end with CRLF. The end of the iteration says that the
    message is whole. It raises in the middle where the client disappears or the message is refused: then nothing may be
    kept.

    session: as the handlers have it, with the envelope. recipients: those that this target is to take, at least one.
    id: the session's id and the number of the transaction, as in the log.
    """

    __slots__ = ("_blocks", "_head", "broken", "id", "limit", "recipients", "session")

    def __init__(
        self, session: Session, recipients: Sequence[Recipient], blocks: AsyncIterator[bytes], head: bytes = b""
    ) -> None:
        self.session = session
        self.recipients = tuple(recipients)
        self.id = f"{session.id}.{session.transaction}"
        self._head = head
        self._blocks = blocks
        self.broken: BaseException | None = None  # what the client's end of the stream has raised
        self.limit: asyncio.Timeout | None = None  # the target's patience, which waiting for the client does not use up

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head
        limit = self.limit
        if limit is None or limit.expired():
            return await self._next()
        before, now = limit.when(), asyncio.get_running_loop().time
        asked = now()
        limit.reschedule(None)
        try:
            return await self._next()
        finally:
            if before is not None:
                limit.reschedule(before + now() - asked)

    async def _next(self) -> bytes:
        try:
            return await anext(self._blocks)
        except StopAsyncIteration:
            raise
        except BaseException as error:
            self.broken = error
            raise


class Target:
    """A place where messages go: subclass it, and write ``deliver``.

    Settings: the keys that its table ``[[deliver]]`` may have, a subclass of ``deliver.Settings``.
    final: whether mailboxes are here, so that messages get a Return-Path (RFC 5321 4.4).
    relays: whether messages leave for another mail server, so that loops and open relays are looked for.
    """

    Settings: ClassVar[type[Settings]] = Settings
    final: ClassVar[bool] = True
    relays: ClassVar[bool] = False

    def __init__(self, url: str, settings: Any) -> None:
        """Check URL and settings without touching anything; raise ConfigurationError."""
        self.url = url  # as it may be shown: without a password
        self.settings = settings

    def same_as(self, other: Target) -> bool:
        """Whether a reload may go on with the other, which runs already, instead of starting this one.

        ``url`` has no password: a target that knows more than URL and settings, or reads files, has to compare those.
        """
        return type(self) is type(other) and self.url == other.url and self.settings == other.settings

    @property
    def verifies(self) -> bool:
        """Whether ``verify`` has anything to look at with these settings; where it has not, RCPT costs nothing."""
        return type(self).verify is not Target.verify

    async def start(self) -> None:
        """Make ready, once, before the first message; raise ConfigurationError if that is impossible."""

    async def verify(self, recipient: Recipient, session: Session) -> None:
        """Raise Reject at RCPT for a recipient that could not be delivered to."""

    async def deliver(self, message: Message) -> str | Sequence[str | Reject]:
        """Read a message and return when it is durable, with the place where it is, for the log.

        The answer is one text for all recipients, or as many entries as the message has recipients, each a place or the
        Reject for that recipient. Raise Reject to refuse all. What else is raised is a bug: 451 and a traceback in the
        log. It may be cancelled at any await; what was kept must then be removed again, or, where it is durable
        already and cannot be, its place returned in spite of it.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Give back what ``start`` took; no message is under way."""


def unavailable() -> Reject:
    """Return the refusal for a failure of ours; what failed is for the log, not for the client."""
    # RFC 5321 4.2.3: "451 Requested action aborted: error in processing"; RFC 3463 3.4: "X.3.0 Other or undefined mail
    # system status".
    return Reject(451, "Error: the message cannot be stored now, try again later", enhanced="4.3.0")


async def settled(cleaning: Awaitable[object]) -> None:
    """Wait until something is cleaned up, but not longer than 5 s if it hangs: it goes on, the client does not wait."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_WITH_CLEANING):
            await asyncio.shield(cleaning)


# Other distributions offer targets under this group: the name is the scheme, the object a subclass of Target.
_SCHEMES = Schemes(
    Target,
    __name__,
    methods=("deliver",),
    group="pillarbox.targets",
    example="maildir:Maildir",
    built_in={
        "discard": ("pillarbox.deliver.discard", "Discard"),
        "http": ("pillarbox.deliver.webhook", "Webhook"),
        "https": ("pillarbox.deliver.webhook", "Webhook"),
        "lmtp": ("pillarbox.deliver.relay", "Relay"),
        "maildir": ("pillarbox.deliver.maildir", "Maildir"),
        "mbox": ("pillarbox.deliver.mbox", "Mbox"),
        "pipe": ("pillarbox.deliver.pipe", "Pipe"),
        "python": ("pillarbox.deliver.python", "class_of"),
        "smtp": ("pillarbox.deliver.relay", "Relay"),
        "smtps": ("pillarbox.deliver.relay", "Relay"),
        "sqlite": ("pillarbox.deliver.sqlite", "SQLite"),
        "stdout": ("pillarbox.deliver.stdout", "Stdout"),
    },
)


def known_schemes() -> tuple[str, ...]:
    """Return the schemes that ``target_from_url`` knows, sorted."""
    return _SCHEMES.known()


def target_class(url: str) -> type[Target]:
    """Return the class of the target that a URL names; raise ConfigurationError where there is none."""
    return _SCHEMES.class_of(url)


def target_from_url(url: str, settings: Mapping[str, Any] | None = None) -> Target:
    """Return the target that a URL names, with the settings of its table; it touches nothing before its ``start``.

    Raises ConfigurationError for an unknown scheme, and for a URL or settings that the target cannot use.
    """
    return _SCHEMES.made(url, settings or {})
