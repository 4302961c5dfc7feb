"""Where messages go: one contract for every target, and the table that finds a target by its URL's scheme.

A target lives as long as the program. Its ``deliver`` reads a message while it arrives and returns when it is durable.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar

from pillarbox import ConfigurationError, Reject
from pillarbox.program.settings import Settings, likely

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
    from importlib.metadata import EntryPoint

    from pillarbox import Recipient, Session

__all__ = ["Message", "Settings", "Target", "known_schemes", "settled", "target_from_url", "unavailable"]

# Other distributions offer targets under this group: the name is the scheme, the object a subclass of Target.
ENTRY_POINTS = "pillarbox.targets"
PATIENCE_WITH_CLEANING = 5.0  # seconds

_TARGETS = {
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
}


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
        log. It may be cancelled at any await; what was kept must then be removed again.
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


def known_schemes() -> tuple[str, ...]:
    """Return the schemes that ``target_from_url`` knows, sorted."""
    return tuple(sorted({*_TARGETS, *_offered()}))


def target_class(url: str) -> type[Target]:
    """Return the class of the target that a URL names; raise ConfigurationError for an unknown scheme."""
    scheme, colon, _ = url.partition(":")
    scheme = scheme.lower()
    if not colon:
        raise ConfigurationError(f"{url!r} is no target: write SCHEME:…, for example maildir:{url or 'Maildir'}")
    if scheme in _TARGETS:
        module, name = _TARGETS[scheme]
        found = getattr(import_module(module), name)
        if scheme == "python":  # the class depends on the URL
            found = found(url)
    elif scheme in (offered := _offered()):
        found = _loaded(offered[scheme])
    else:
        hint = likely(scheme, list(known_schemes()))
        raise ConfigurationError(f"{_without_password(url)!r}: unknown scheme {scheme!r}{hint} (known: {_known()})")
    return _checked(found, scheme)


def target_from_url(url: str, settings: Mapping[str, Any] | None = None) -> Target:
    """Return the target that a URL names, with the settings of its table; it touches nothing before its ``start``.

    Raises ConfigurationError for an unknown scheme, and for a URL or settings that the target cannot use.
    """
    kind = target_class(url)
    checked = kind.Settings.from_table(settings or {})
    try:
        target = kind(url, checked)
        _ = target.url
    except ConfigurationError:
        raise
    except Exception as error:
        if kind.__module__.startswith(f"{__name__}."):  # a bug of ours
            raise
        raise ConfigurationError(
            f"{_without_password(url)}: {kind.__name__}(url, settings) failed: {type(error).__name__}: {error}"
        ) from error
    return target


def _checked(found: Any, scheme: str) -> type[Target]:
    if not (isinstance(found, type) and issubclass(found, Target)):
        raise ConfigurationError(f"{scheme}: {found!r} is no subclass of pillarbox.deliver.Target")
    if found.deliver is Target.deliver:
        raise ConfigurationError(f"{scheme}: {found.__name__} has no method deliver")
    if not issubclass(found.Settings, Settings):
        raise ConfigurationError(f"{scheme}: {found.__name__}.Settings is no subclass of pillarbox.deliver.Settings")
    return found


def _loaded(point: EntryPoint) -> Any:
    """Return what another distribution offers."""
    try:
        return point.load()
    except Exception as error:
        raise ConfigurationError(
            f"{point.name}: {point.value}, which {point.dist.name if point.dist else 'a distribution'} offers,"
            f" cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def _offered() -> dict[str, EntryPoint]:
    return {point.name.lower(): point for point in entry_points(group=ENTRY_POINTS)}


def _known() -> str:
    return ", ".join(f"{scheme}:" for scheme in known_schemes())


def _without_password(url: str) -> str:
    scheme, slashes, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    return f"{scheme}{slashes}{user.partition(':')[0]}{at}{host}{slash}{path}"
