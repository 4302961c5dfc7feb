"""Where messages go: one contract for every target, and the table that finds a target by its URL's scheme.

A target lives as long as the program and opens one delivery for each message. A message counts as
delivered when every delivery's ``commit`` has returned, and not before.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from pillarbox import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Sequence

    from pillarbox import Session

__all__ = ["Delivery", "Target", "deliver", "known_schemes", "target_from_url"]

_TARGETS = {
    "discard": ("pillarbox.deliver.discard", "Discard"),
    "maildir": ("pillarbox.deliver.maildir", "Maildir"),
}


class Delivery(Protocol):
    """One message on its way to one target: ``write`` its blocks, then ``commit`` or ``abort``."""

    async def write(self, block: bytes) -> None:
        """Take the next bytes, with CRLF line ends; raise Reject if they cannot be taken."""
        ...

    async def commit(self) -> str:
        """Return when the message is durable, with the place where it is, for the log; else raise Reject."""
        ...

    async def abort(self) -> None:
        """Leave nothing behind; does nothing after a commit. May be called twice, and while another call waits."""
        ...


class Target(Protocol):
    """A place where messages go. Its class is made from the URL: ``Maildir("maildir:PATH")``."""

    @property
    def url(self) -> str:
        """The URL that the target was made from."""
        ...

    async def start(self) -> None:
        """Make ready, once, before the first message; raise ConfigurationError if that is impossible."""
        ...

    async def open(self, session: Session) -> Delivery:
        """Begin the delivery of the session's message; raise Reject if it cannot be taken."""
        ...


def known_schemes() -> tuple[str, ...]:
    """Return the schemes that ``target_from_url`` knows, sorted."""
    return tuple(sorted(_TARGETS))


def target_from_url(url: str) -> Target:
    """Return the target that a URL names; it touches nothing before its ``start``.

    Raises ConfigurationError for an unknown scheme, and for a URL that the target cannot use.
    """
    scheme, colon, _ = url.partition(":")
    if not colon:
        raise ConfigurationError(f"{url!r} is no target: write SCHEME:…, for example maildir:{url or 'Maildir'}")
    if scheme.lower() not in _TARGETS:
        raise ConfigurationError(f"{url!r}: unknown scheme {scheme!r}{_likely(scheme)} (known: {_known()})")
    module, name = _TARGETS[scheme.lower()]
    target: Target = getattr(import_module(module), name)(url)
    return target


def _known() -> str:
    return ", ".join(f"{scheme}:" for scheme in known_schemes())


def _likely(scheme: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(scheme.lower(), known_schemes(), n=1)
    return f": did you mean {close[0]!r}?" if close else ""


async def deliver(
    targets: Sequence[Target], session: Session, blocks: AsyncIterable[bytes], *, head: bytes = b""
) -> list[str]:
    """Stream one message to all targets, ``head`` in front of it; return where each of them has it.

    Raises what a target or the stream raises, and then aborts every delivery. Targets commit in order: one
    that has committed before another failed keeps the message, and gets it again when the client retries.
    """
    async with AsyncExitStack() as leaving:
        deliveries = []
        for target in targets:
            delivery = await target.open(session)
            leaving.push_async_callback(delivery.abort)
            deliveries.append(delivery)
            await delivery.write(head)
        async for block in blocks:
            for delivery in deliveries:
                await delivery.write(block)
        return [await delivery.commit() for delivery in deliveries]
