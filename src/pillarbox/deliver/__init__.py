"""Where messages go: one contract for every target, and the table that finds a target by its URL's scheme.

A target lives as long as the program and opens one delivery for each message. A message counts as
delivered when every delivery's ``commit`` has returned, and not before.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypeVar

from pillarbox import ConfigurationError, Reject, log_fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Sequence

    from pillarbox import Session

__all__ = ["Delivery", "Target", "deliver", "known_schemes", "target_from_url"]

# RFC 5321 4.5.3.2.6: "DATA Termination: 10 Minutes." So long a client waits; a target that hangs is answered before.
PATIENCE = 300.0  # seconds, for each step of a delivery
PATIENCE_WITH_ABORT = 5.0

_log = logging.getLogger("pillarbox.deliver")
_Result = TypeVar("_Result")

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
            delivery = await _in_time(target.open(session), session)
            leaving.push_async_callback(_abort, delivery)
            deliveries.append(delivery)
            await _in_time(delivery.write(head), session)
        async for block in blocks:
            for delivery in deliveries:
                await _in_time(delivery.write(block), session)
        return [await _in_time(delivery.commit(), session) for delivery in deliveries]


async def _in_time(step: Awaitable[_Result], session: Session) -> _Result:
    limit = asyncio.timeout(PATIENCE)
    try:
        async with limit:
            return await step
    except TimeoutError:
        if not limit.expired():
            raise
        fields = log_fields(session, "deliver", "deliver")
        _log.error("the target did not answer in %d seconds", PATIENCE, extra=fields)
        raise Reject(451, "Error: the message cannot be stored now, try again later", enhanced="4.3.0") from None


async def _abort(delivery: Delivery) -> None:
    try:
        async with asyncio.timeout(PATIENCE_WITH_ABORT):
            await delivery.abort()
    except TimeoutError:  # it hangs; what it began ends when it no longer does, and the client is not to wait for that
        return
