"""A message on its way through a relay: a small one is read before the next server is asked, a large one passes by."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pillarbox import Reject
from pillarbox.deliver.loops import HeaderWatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pillarbox import Envelope
    from pillarbox.deliver import Message

__all__ = ["READ_AHEAD", "Content"]

# Most messages are whole then, and a slow client keeps no connection from others.
READ_AHEAD = 256 * 1024  # octets
_HEAD = 1024  # octets: what the Received field in front of a message may have


class Content:
    """The message's octets, and what is known of them.

    Iterating raises what the message raises, and Reject where it turns out to be on a loop, or not to fit.
    """

    def __init__(self, message: Message) -> None:
        self._message = message
        self._header = HeaderWatch()
        self._is_ascii = True
        self._ahead: deque[bytes] = deque()
        self._whole = False
        self._read = 0
        self._seven_bit = self._ascii_header = False

    async def read_ahead(self) -> None:
        """Read the beginning of the message, or all of it."""
        blocks = []
        async for block in self._message:
            self._note(block)
            blocks.append(block)
            if self._read >= READ_AHEAD:
                break
        else:
            self._whole = True
        self._ahead.append(b"".join(blocks))

    @property
    def size(self) -> int | None:
        """What MAIL says: the size, or what the client said of it and what was put in front; None: not known."""
        if self._whole:
            return self._read
        sender = self._message.session.envelope.mail_from
        said = sender.args.get("SIZE") if sender else None
        # RFC 1870 6.1 takes it for an estimate.
        return int(said) + _HEAD if isinstance(said, str) and said.isdecimal() else None

    def must_fit(self, offers: Mapping[str, str], envelope: Envelope) -> None:
        """Raise Reject, here or in iterating, for what the next server does not offer to take."""
        self._seven_bit = "8BITMIME" not in offers and envelope.body_type != "binarymime"
        self._ascii_header = envelope.smtp_utf8 and "SMTPUTF8" not in offers
        self._check()

    def __aiter__(self) -> Content:
        return self

    async def __anext__(self) -> bytes:
        if self._ahead:
            return self._ahead.popleft()
        if self._whole:
            raise StopAsyncIteration
        block = await anext(self._message)
        self._note(block)
        self._check()
        return block

    def _note(self, block: bytes) -> None:
        self._read += len(block)
        self._header.feed(block)
        self._is_ascii = self._is_ascii and block.isascii()

    def _check(self) -> None:
        # RFC 6152 3: "If a server SMTP does not support the 8-bit MIME transport extension (either by not responding
        # with code 250 to the EHLO command, or by not including the EHLO keyword value 8BITMIME in its response), then
        # the client SMTP must not, under any circumstances, attempt to transfer a content that contains characters
        # outside of the US-ASCII octet range (hex 00-7F)."
        if self._seven_bit and not self._is_ascii:
            raise Reject(554, "Error: the next server does not take 8-bit content (8BITMIME)", enhanced="5.6.3")
        # RFC 6531 4.2 registers X.6.9: "UTF-8 header message cannot be transferred to one or more recipients, so the
        # message must be rejected". One that said SMTPUTF8 and did not need it goes on without.
        if self._ascii_header and not self._header.is_ascii:
            raise Reject(554, "Error: the next server does not take UTF-8 in header fields", enhanced="5.6.9")
