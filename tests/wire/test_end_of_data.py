"""Where a message ends (SMTP smuggling, CVE-2023-51764 and its kin), on every kind of connection, at every split."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest

from splits import KINDS, Parts, every_way, secured, under
from support import Client, Inbox, Served, on_both_loops, serving

CONNECTIONS = pytest.mark.parametrize("kind", KINDS)
MODES = pytest.mark.parametrize("mode", ["normalize", "reject", "accept"])

NEVER_AN_END = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\n.\r", b"\r\n\0.\r\n", b"\r\n.\0\r\n",
    b"\r\n.\r\r\n", b"\n\r.\r\n", b"\r\n. \r\n", b"\r\n.\t\r\n", b"\r\r\n.\r", b"\r\n.\n\r\n",
]  # fmt: skip
SMUGGLED = b"RSET\r\nMAIL FROM:<evil@example.com>\r\n"


def as_stored(content: bytes, mode: str) -> bytes:
    """Return what the definition makes of content without an end of data in it."""
    content = re.sub(rb"(\A|\r\n)\.", rb"\1", content)
    return content if mode == "accept" else re.sub(rb"\r\n|(\r)|\n", lambda m: b" " if m[1] else b"\r\n", content)


class Sender:
    """A client that sends a message again and again, on a new connection where the last one was closed."""

    def __init__(self, kind: str, served: Served, parts: Parts) -> None:
        self._kind, self._served, self._parts = kind, served, parts
        self._client: Client | None = None

    async def send(self, octets: bytes, cuts: tuple[int, ...], *, closes: bool = False) -> int:
        """Send the octets of a message and its end; return the reply's code."""
        client = self._client or await under(self._kind, self._served)
        await client.send(b"MAIL FROM:<from@example.com>\r\nRCPT TO:<to@example.com>\r\nDATA\r\n")
        assert [(await client.reply()).code for _ in range(3)] == [250, 250, 354]
        await self._parts.send(client, octets, cuts)
        code = (await client.reply()).code
        if closes:
            await client.eof()
            await client.close()
        else:
            assert await client.say("NOOP") == "250 OK"  # it was one message and nothing is left of it
        self._client = None if closes else client
        return code


def places(octets: bytes, trick: bytes, kind: str, mode: str) -> list[tuple[int, ...]]:
    """Return all ways, or only those about the trick: where each takes a connection under TLS of its own, for one."""
    if octets.startswith(b"a") and (kind == "plain" or mode != "reject"):
        return every_way(octets)
    at = octets.index(b"a" + trick) + 1
    return every_way(octets, at, at + len(trick) + 1)


@pytest.mark.promises(
    "The end of a message", "CRLF . CRLF ends a message, and nothing else does; the start of the data counts as a CRLF."
)
@pytest.mark.promises(
    "The end of a message", "However its octets are cut into packets, it gets the same reply and is stored the same."
)
@pytest.mark.promises(
    "The end of a message", 'With bare_newline "normalize", the default, a handler gets CR and LF only as CRLF.'
)
@pytest.mark.promises(
    "The end of a message",
    'With "reject" a message with a bare CR or LF is read to its end and refused; then the connection ends.',
)
@pytest.mark.promises("The end of a message", 'With "accept" the content is untouched.')
@CONNECTIONS
@MODES
@on_both_loops
async def test_what_never_ends_the_data(mode: str, kind: str, parts: Parts) -> None:
    inbox = Inbox()
    async with serving(on_data=inbox, bare_newline=mode, **secured(kind)) as served:
        sender = Sender(kind, served, parts)
        for start, trick in product((b"a", b"..\r\na"), NEVER_AN_END):  # a dot before it is another way through
            octets = start + trick + SMUGGLED + b".\r\n"
            bare = re.search(rb"(?<!\r)\n|\r(?!\n)", octets) is not None
            closes = mode == "reject" and bare
            refused = closes or (b"\0" in trick and mode != "accept")
            for cuts in places(octets, trick, kind, mode):
                assert await sender.send(octets, cuts, closes=closes) == (550 if refused else 250), (trick, cuts)
                stored = [message.content for message in inbox]
                inbox.clear()
                assert stored == ([] if refused else [as_stored(octets[:-3], mode)]), (trick, cuts)
                assert mode == "accept" or not re.search(rb"(?<!\r)\n|\r(?!\n)", b"".join(stored))


@pytest.mark.promises(
    "The end of a message", "CRLF . CRLF ends a message, and nothing else does; the start of the data counts as a CRLF."
)
@pytest.mark.promises(
    "The end of a message", "However its octets are cut into packets, it gets the same reply and is stored the same."
)
@pytest.mark.promises("The end of a message", "A leading dot is removed behind a real CRLF only.")
@CONNECTIONS
@MODES
@on_both_loops
async def test_the_end_of_data_and_dots(mode: str, kind: str, parts: Parts) -> None:
    """The start counts as a CRLF, and a dot goes only behind a real one."""
    bodies = [b"", b"..\r\n", b".a\r\n", b"\r\n", b"..\r\n..\r\n", b"a\r\n..\r\n.b\r\n", b"a\r\n...\r\n"]
    bare = [b"a\n..b\r\n", b"a\r..b\r\n", b"\n..\r\n", b"a\n\r..\r\n"]
    inbox = Inbox()
    async with serving(on_data=inbox, bare_newline=mode, **secured(kind)) as served:
        sender = Sender(kind, served, parts)
        for body in bodies + (bare if mode != "reject" else []):
            octets = body + b".\r\n"
            for cuts in every_way(octets):
                assert await sender.send(octets, cuts) == 250
                assert inbox.pop().content == as_stored(body, mode), (body, cuts)


OFFERED = {"binarymime": True}
NULS: list[tuple[str, dict[str, Any], str, bool]] = [
    *((verb, {}, "", True) for verb in ("DATA", "BDAT")),
    *((verb, {"bare_newline": "reject"}, "", True) for verb in ("DATA", "BDAT")),
    *((verb, {"bare_newline": "accept"}, "", False) for verb in ("DATA", "BDAT")),
    *((verb, OFFERED, " BODY=8BITMIME", True) for verb in ("DATA", "BDAT")),
    ("BDAT", OFFERED, " BODY=BINARYMIME", False),  # with DATA it would have no end
]


@pytest.mark.promises(
    "The end of a message",
    "A NUL in a message is refused with 550, unless BINARYMIME or bare_newline accept allows it.",
)
@pytest.mark.parametrize(("verb", "options", "mail", "refused"), NULS)
@on_both_loops
async def test_a_nul(verb: str, options: dict[str, Any], mail: str, refused: bool, parts: Parts) -> None:
    inbox = Inbox()
    async with serving(on_data=inbox, hide_enhanced_status_codes=False, **options) as served:
        client = await served.hello()
        for body in (b"\0\r\n", b"a\0b\r\n", b"a\r\n\0\r\n"):
            octets = body + b".\r\n" if verb == "DATA" else b"BDAT %d LAST\r\n" % len(body) + body
            for cuts in every_way(octets):
                assert (await client.command(f"MAIL FROM:<a@example.com>{mail}")).code == 250
                assert (await client.command("RCPT TO:<b@example.com>")).code == 250
                if verb == "DATA":
                    assert (await client.command("DATA")).code == 354
                await parts.send(client, octets, cuts)
                assert (await client.hear()).startswith("550 5.6.0 " if refused else "250 2.6.0 ")
                assert [inbox.pop().content for _ in inbox] == ([] if refused else [body])
