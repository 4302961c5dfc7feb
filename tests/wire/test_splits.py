"""Commands, chunks and logins on real sockets: however their octets are cut, the replies and the message are the same.

Three things are about timing and stand elsewhere: input before the greeting, bytes behind STARTTLS, and pipelining out
of turn.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import pytest

from pillarbox import AuthRequest, Session
from pillarbox.net import wire
from splits import FORGIVING, Parts, every_way, secured, under
from support import PLAIN, Client, Inbox, Served, b64, on_both_loops, serving

Flights = list[tuple[bytes, str]]  # what is sent, and the replies to it
BEGUN: Flights = [(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n", "250 250")]
MAIL = "MAIL FROM:<a@example.com> "


def lines(*commands: bytes | str) -> bytes:
    return b"".join((c if isinstance(c, bytes) else c.encode()) + b"\r\n" for c in commands)


# "X" at the end: the server closes. What is stored stands at the end of those that deliver.
DIALOGUES: dict[str, tuple[Flights, list[bytes]]] = {
    "a message": (
        [*BEGUN, (b"DATA\r\n", "354"), (b"..a\r\n.\rb\n.\r\n\r\n.\r\n", "250"), (b"NOOP\r\n", "250")],
        [b".a\r\n b\r\n.\r\n\r\n"],
    ),
    "two messages, pipelined": (
        [
            *BEGUN,
            (b"DATA\r\n", "354"),
            (b"one\r\n.\r\n" + BEGUN[0][0], "250 250 250"),
            (b"DATA\r\n", "354"),
            (b".\r\n", "250"),
        ],
        [b"one\r\n", b""],
    ),
    "control characters": (
        [
            (
                lines(b"NO\0OP", b"NOOP \0", b"NOOP \rX", b"HELP a\x7fb", b"VRFY a\tb", b"RSET \xc2\x85"),
                "500" + " 501" * 5,
            )
        ],
        [],
    ),
    "a CR within a command": ([(b"MAIL FROM:<a@b.cc>\rRCPT TO:<b@b.cc>\r\nRCPT TO:<b@b.cc>\r\n", "501 503")], []),
    "malformed UTF-8": ([(lines(b"MAIL FROM:<a\xff@b.cc> SMTPUTF8", b"NOOP \xc3", b"RSET"), "501 501 250")], []),
    "no Unicode case": (
        [
            (
                lines("NOOP \u017f", "\u017fTARTTLS", "MA\u0131L FROM:<>", MAIL + "\u017fIZE=1", MAIL),
                "250 500 500 501 250",
            )
        ],
        [],
    ),
    "bare LF": ([(b"NOOP\nRSET\r\nMAIL FROM:<a@b.cc>\nRCPT TO:<b@b.cc>\n\n", "250 250 250 250 500")], []),
    "spaces": ([(b"noop  \r\nMail From : <a@b.cc>  \r\nRCPT TO: <b@b.cc> \r\nrset \r\n", "250 250 250 250")], []),
    "parameters": (
        [
            (
                lines(
                    MAIL + "BODY",
                    MAIL + "SIZE=",
                    MAIL + "SIZE=1 SIZE=1",
                    MAIL + "SMTPUTF8=1",
                    MAIL + "XYZ=1",
                    MAIL + "SIZE=1",
                    "RCPT TO:<b@b.cc> NOTIFY",
                    "RCPT TO:<b@b.cc> NOTIFY=NEVER NOTIFY=NEVER",
                    "RCPT TO:<b@b.cc> NOTIFY=NEVER",
                ),
                "501 501 501 501 555 250 501 501 250",
            )
        ],
        [],
    ),
    "xtext": (
        [
            (
                lines(
                    MAIL + "ENVID=a+2b",
                    MAIL + "ENVID=a+0D",
                    MAIL + "AUTH=a+00",
                    MAIL + "ENVID=a+",
                    MAIL + "ENVID=a+2B",
                    "RCPT TO:<b@b.cc> ORCPT=rfc822;a+0A",
                    "RCPT TO:<b@b.cc> ORCPT=rfc822;a+2Bb@b.cc",
                ),
                "501 501 501 501 250 501 250",
            )
        ],
        [],
    ),
    "XCLIENT": (
        [
            (lines("XCLIENT NAME=a+0D+0Ab", "XFORWARD NAME=a+2b", "XFORWARD NAME=a+2Bb"), "501 501 250"),
            (lines("XCLIENT ADDR=192.0.2.7 NAME=client.example.org"), "220"),
            (lines("XCLIENT ADDR=192.0.2.8", "MAIL FROM:<>"), "550 503"),
        ],
        [],
    ),
    "XCLIENT for one who is listed": (
        [(lines("XCLIENT ADDR=127.0.0.1"), "220"), (lines("XCLIENT ADDR=192.0.2.8", "XFORWARD NAME=x"), "550 550")],
        [],
    ),
    "HTTP": ([(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", "421 X")], []),
    "QUIT": ([(b"MAIL FROM:<>\r\nQUIT\r\nRSET\r\n", "250 221 X")], []),
    "chunks": (
        [
            *BEGUN,
            (b"BDAT 4\r\n.\r\n.BDAT 0\r\nBDAT 6 LAST\r\n\r\nQUITNOOP\r\n", "250 250 250 250"),
            *BEGUN,
            (b"BDAT 2\r\na\nBDAT 0 LAST\r\n", "250 250"),
        ],
        [b".\r\n.\r\nQUIT", b"a\r\n"],
    ),
    "chunks without recipients": (
        [(b"MAIL FROM:<>\r\nBDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nQUIT\r\nRSET\r\n", "250 503 503 250")],
        [],
    ),
    "chunks before hello": ([(b"BDAT 6\r\nQUIT\r\n", "503")], []),
    "chunks and DATA": (
        [*BEGUN, (b"BDAT 1\r\na", "250"), (b"DATA\r\n", "503"), (b"BDAT 1 LAST\r\nb", "250")],
        [b"ab"],
    ),
    "too large": (
        [*BEGUN, (b"BDAT 51\r\n" + b"QUIT\r\n" * 8 + b"QUI", "552"), (b"BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n", "552 250")],
        [],
    ),
    "a chunk that is given up": ([*BEGUN, (b"BDAT 3\r\nabcRSET\r\nBDAT 6 LAST\r\nQUIT\r\n", "250 250 503")], []),
    "a LAST in Unicode": ([*BEGUN, ("BDAT 5 LA\u017fT\r\nRSET\r\n".encode(), "501 X")], []),
    "a size that is none": ([*BEGUN, (b"BDAT 0x6\r\nRSET\r\n", "501 X")], []),
    "a size with a sign": ([*BEGUN, (b"BDAT 1\r\na", "250"), (b"BDAT +6 LAST\r\nRSET\r\n", "501 X")], []),
    "a login": ([(b"AUTH PLAIN\r\n", "334"), (PLAIN.encode() + b"\r\n", "235"), (b"AUTH PLAIN\r\n", "503")], []),
    "a login at once": ([(f"auth plain {PLAIN}\r\n".encode(), "235")], []),
    "a login in two steps": (
        [(b"AUTH LOGIN\r\n", "334"), (lines(b64("ann")), "334"), (lines(b64("secret")), "235")],
        [],
    ),
    "logins that fail": (
        [
            (b"AUTH PLAIN\r\n", "334"),
            (b"no base64!\r\n", "500"),
            (b"AUTH LOGIN\r\n", "334"),
            (b"*\r\n", "501"),
            (lines(f"AUTH PLAIN {b64(chr(0) + 'a' + chr(13) + chr(10) + chr(0) + 'x')}"), "500"),
        ],
        [],
    ),
}


def accepts(auth: AuthRequest, session: Session) -> bool:
    return auth.validate_password("secret")


OPTIONS: dict[str, Any] = {
    "allow_insecure_auth": True,
    "hide_dsn": False,
    "on_auth": accepts,
    "socket_timeout": 30.0,
    "size": 50,
    "use_xclient": ["127.0.0.1"],
    "use_xforward": ["127.0.0.1"],
    **FORGIVING,
}


@pytest.mark.promises(
    "Proxies", "XCLIENT and XFORWARD are announced to listed addresses, and refused with 550 to all others."
)
@pytest.mark.promises(
    "The end of a message", "However its octets are cut into packets, it gets the same reply and is stored the same."
)
@pytest.mark.promises(
    "Messages in chunks (BDAT)", "However commands and chunks are cut into packets, replies and message are the same."
)
@pytest.mark.promises(
    "Messages in chunks (BDAT)",
    "The octets of a chunk never become commands, also where it is refused, too large or out of place.",
)
@pytest.mark.promises(
    "Messages in chunks (BDAT)", "The size of a chunk is decimal digits; what is anything else ends the connection."
)
@pytest.mark.promises(
    "Messages in chunks (BDAT)",
    "What is too large is consumed and answered with 552, and so is what follows until RSET.",
)
@pytest.mark.promises("Messages in chunks (BDAT)", "DATA and BDAT do not mix in one message.")
@pytest.mark.promises("Commands", "However commands are cut into packets, the replies are the same.")
@pytest.mark.promises("Commands", "Control characters, NUL and malformed UTF-8 in a command are refused.")
@pytest.mark.promises("Commands", "xtext is strict, and no CR, LF or NUL comes out of it.")
@pytest.mark.promises("Commands", "An HTTP request ends the connection with 421.")
@pytest.mark.parametrize("kind", ["plain", "implicit"])
@pytest.mark.parametrize("name", DIALOGUES)
@on_both_loops
async def test_the_same_at_every_split(name: str, kind: str, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LINGER_TIME", 0.0)  # under TLS it waits for the client, which waits for it
    flights, stored = DIALOGUES[name]
    ways = list(zip_longest(*(every_way(octets) for octets, _ in flights), fillvalue=()))
    if kind != "plain" and flights[-1][1].endswith("X"):
        ways = [*ways[:2], ways[len(ways) // 2]]
    inbox = Inbox()
    async with serving(on_data=inbox, **OPTIONS, **secured(kind)) as served:
        for cuts in ways:
            client = await first_words(name, kind, served)
            for (octets, replies), cut in zip(flights, cuts, strict=True):
                await parts.send(client, octets, cut)
                for code in replies.split():
                    if code == "X":
                        await client.eof()
                    else:
                        assert (await client.reply()).code == int(code), (octets, cut)
            assert [message.content for message in inbox] == stored, cuts
            inbox.clear()
            await client.close()


async def first_words(name: str, kind: str, served: Served) -> Client:
    if name != "chunks before hello":
        return await under(kind, served)
    client = await under(kind, served)
    assert (await client.command("XCLIENT NAME=client.example.org")).code == 220  # begins again with the greeting
    return client
