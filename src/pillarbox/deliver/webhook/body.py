"""The body of the request in each format: what stands around the raw message, and the message from its spool.

Its length is known before it is sent, and it can be read again for each attempt; both without holding the message.
"""

from __future__ import annotations

import asyncio
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pillarbox.deliver.spool import Spool
    from pillarbox.deliver.webhook.event import Event

__all__ = ["Body", "json_body", "multipart_body", "reference_body"]


# RFC 7578 4.2: 'Each part MUST contain a Content-Disposition header field [RFC2183] where the disposition type is
# "form-data".'
_EVENT_HEAD = b'\r\nContent-Disposition: form-data; name="event"\r\nContent-Type: application/json\r\n\r\n'
_MESSAGE_HEAD = (
    b'\r\nContent-Disposition: form-data; name="message"; filename="message.eml"\r\n'
    b"Content-Type: message/rfc822\r\n\r\n"
)


class Body:
    """Octets in front of the message, the message as it is or in base64, octets behind it.

    event: the JSON alone, where it is only a part of the body.
    """

    def __init__(
        self,
        content_type: str,
        front: bytes,
        spool: Spool | None = None,
        behind: bytes = b"",
        *,
        base64: bool = False,
        event: bytes | None = None,
    ) -> None:
        self.content_type = content_type
        self.event = event
        self._front = front
        self._spool = spool
        self._behind = behind
        self._encoded = b64encode if base64 else bytes
        size = spool.size if spool else 0
        self.length = len(front) + (-(-size // 3) * 4 if base64 else size) + len(behind)

    @property
    def on_disk(self) -> bool:
        """Whether reading it may wait for the disk."""
        return self._spool is not None and self._spool.on_disk

    def blocks(self) -> Iterator[bytes]:
        """Return the octets, in a thread where ``on_disk``."""
        yield self._front
        if self._spool:
            yield from map(self._encoded, self._spool.blocks())  # see spool.BLOCK
        yield self._behind

    async def stream(self) -> AsyncIterator[bytes]:
        """Return the octets without waiting for the disk in the event loop."""
        blocks = self.blocks()
        while block := (await asyncio.to_thread(next, blocks, b"") if self.on_disk else next(blocks, b"")):
            yield block


def multipart_body(event: Event, spool: Spool) -> Body:
    """Return multipart/form-data (RFC 7578): the fields ``event``, JSON, and ``message``, message/rfc822."""
    # RFC 2046 5.1: the boundary must not appear in a part. A random one cannot be known to who wrote the message.
    boundary = secrets.token_hex(16)
    json = event.model_dump_json(by_alias=True).encode()
    line = b"--" + boundary.encode()
    front = line + _EVENT_HEAD + json + b"\r\n" + line + _MESSAGE_HEAD
    behind = b"\r\n" + line + b"--\r\n"
    return Body(f"multipart/form-data; boundary={boundary}", front, spool, behind, event=json)


def json_body(event: Event, spool: Spool) -> Body:
    """Return JSON with the message in its last value; the event's ``raw`` is an empty string."""
    front, mark, behind = event.model_dump_json(by_alias=True).encode().rpartition(b'"raw":"')
    return Body("application/json", front + mark, spool, behind, base64=True)


def reference_body(event: Event) -> Body:
    """Return the JSON alone."""
    return Body("application/json", event.model_dump_json(by_alias=True).encode())
