"""The good clients: each sends what real ones send, waits for what it is told, and notes what was acknowledged."""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
from collections.abc import Awaitable, Callable

from soaking.desk import Desk
from soaking.messages import KB, MB, Message, message
from soaking.place import PASSWORD, USER, Peer

MAIL, RCPT = b"MAIL FROM:<a@example.org>\r\n", b"RCPT TO:<b@example.com>\r\n"
EHLO, QUIT = b"EHLO client.example\r\n", b"QUIT\r\n"
# A long-lived connection ends after so many messages at the latest, and another one begins.
MANY = 300


async def _plain(desk: Desk) -> Peer:
    return await _greeted(await desk.plain())


async def _greeted(peer: Peer, hello: bytes = EHLO) -> Peer:
    await peer.ask(b"", "220")
    await peer.ask(hello, "250")
    return peer


async def _with_starttls(desk: Desk) -> Peer:
    peer = await _plain(desk)
    await peer.ask(b"STARTTLS\r\n", "220")
    await peer.start_tls()
    await peer.ask(EHLO, "250")
    return peer


async def _data(desk: Desk, peer: Peer, sent: Message, recipients: bytes = RCPT) -> None:
    """Send one message by DATA, command after command."""
    await peer.ask(MAIL, "250")
    await peer.ask(recipients, *["250"] * recipients.count(b"\n"))
    await peer.ask(b"DATA\r\n", "354")
    await peer.ask(sent.stuffed, "250")
    desk.acknowledged(sent.id)


async def _bdat(desk: Desk, peer: Peer, sent: Message) -> None:
    """Send one message in chunks, all in one flight with its envelope (RFC 3030 allows that, and many clients do)."""
    cuts = sorted(random.randrange(len(sent.octets)) for _ in range(random.randrange(5)))
    chunks = [sent.octets[a:b] for a, b in itertools.pairwise([0, *cuts, len(sent.octets)])]
    last = b"BDAT %d LAST\r\n%b" if random.random() < 0.5 else b"BDAT %d\r\n%bBDAT 0 LAST\r\n"
    said = b"".join(b"BDAT %d\r\n%b" % (len(chunk), chunk) for chunk in chunks[:-1])
    said += last % (len(chunks[-1]), chunks[-1])
    replies = len(chunks) + (b"BDAT 0" in last)
    await peer.ask(MAIL + RCPT + said, "250", "250", *["250"] * replies)
    desk.acknowledged(sent.id)


async def _bye(peer: Peer) -> None:
    await peer.ask(QUIT, "221")
    peer.drop()


# --- What one of them does


async def one_for_each_connection(desk: Desk) -> None:
    peer = await _plain(desk)
    await _data(desk, peer, message("ack", KB))
    await _bye(peer)


async def many_on_one_connection(desk: Desk) -> None:
    peer = await _plain(desk)
    for at in range(MANY):
        if not desk.fresh:
            break
        await _data(desk, peer, message("ack", random.randrange(1, 8 * KB)))
        if at % 10 == 9:
            await peer.ask(b"RSET\r\nNOOP\r\n", "250", "250")
        await desk.pause()
    await _bye(peer)


async def pipelined(desk: Desk) -> None:
    peer = await _plain(desk)
    for _ in range(MANY):
        if not desk.fresh:
            break
        sent = message("ack", random.randrange(1, 16 * KB))
        await peer.ask(MAIL + RCPT + b"DATA\r\n", "250", "250", "354")
        # RFC 2920 3.1: the end of data may be followed by the next group; a RSET here.
        await peer.ask(sent.stuffed + b"RSET\r\n", "250", "250")
        desk.acknowledged(sent.id)
        await desk.pause()
    await _bye(peer)


async def chunks(desk: Desk) -> None:
    peer = await _plain(desk)
    for size in (KB, 64 * KB, MB):
        await _bdat(desk, peer, message("ack", size))
        await desk.pause()
    await _bye(peer)


async def a_megabyte(desk: Desk) -> None:
    peer = await _plain(desk)
    await _data(desk, peer, message("ack", MB))
    await _bye(peer)


async def ten_megabytes(desk: Desk) -> None:
    peer = await desk.either(_plain, _with_starttls)
    sent = message("ack", 10 * MB)
    await (_bdat(desk, peer, sent) if random.random() < 0.5 else _data(desk, peer, sent))
    await _bye(peer)
    await desk.pause(1.0)


async def many_recipients(desk: Desk) -> None:
    peer = await _plain(desk)
    recipients = b"".join(b"RCPT TO:<reader-%d@example.com>\r\n" % number for number in range(200))
    await _data(desk, peer, message("ack", KB), recipients)
    await _bye(peer)
    await desk.pause()


async def starttls(desk: Desk) -> None:
    peer = await _with_starttls(desk)
    for _ in range(5):
        await _data(desk, peer, message("ack", 4 * KB))
    await _bye(peer)


async def implicit_tls(desk: Desk) -> None:
    peer = await _greeted(await desk.implicit())
    for size in (KB, 32 * KB, MB):
        await _data(desk, peer, message("ack", size))
        await desk.pause()
    await _bye(peer)


async def long_under_tls(desk: Desk) -> None:
    peer = await _with_starttls(desk)
    for _ in range(MANY):
        if not desk.fresh:
            break
        await _data(desk, peer, message("ack", 2 * KB))
        await desk.pause()
    await _bye(peer)


async def authenticated(desk: Desk) -> None:
    peer = await _with_starttls(desk)
    user, password = USER.encode(), PASSWORD.encode()
    if random.random() < 0.5:
        await peer.ask(b"AUTH PLAIN " + base64.b64encode(b"\0" + user + b"\0" + password) + b"\r\n", "235")
    else:
        await peer.ask(b"AUTH LOGIN\r\n", "334")
        await peer.ask(base64.b64encode(user) + b"\r\n", "334")
        await peer.ask(base64.b64encode(password) + b"\r\n", "235")
    await _data(desk, peer, message("ack", KB))
    await _bye(peer)


async def lmtp(desk: Desk) -> None:
    peer = await _greeted(await desk.unix(), b"LHLO client.example\r\n")
    for count in (1, 3, 20):
        sent = message("ack", 4 * KB)
        await peer.ask(MAIL + RCPT * count + b"DATA\r\n", *["250"] * (1 + count), "354")
        await peer.ask(sent.stuffed, *["250"] * count)  # RFC 2033 4.2: one for each
        desk.acknowledged(sent.id)
        await desk.pause()
    await _bye(peer)


async def a_slow_line(desk: Desk) -> None:
    """Send at 20 KB a second: slow, and honest."""
    peer = await _plain(desk)
    sent = message("ack", 64 * KB)
    await peer.ask(MAIL + RCPT, "250", "250")
    await peer.ask(b"DATA\r\n", "354")
    octets = sent.stuffed
    for at in range(0, len(octets), 4 * KB):
        await peer.send(octets[at : at + 4 * KB])
        await asyncio.sleep(0.2)
    await peer.ask(b"", "250")
    desk.acknowledged(sent.id)
    await _bye(peer)


# How many of each work at the same time.
ROLES: dict[Callable[[Desk], Awaitable[None]], int] = {
    one_for_each_connection: 3,
    many_on_one_connection: 3,
    pipelined: 3,
    chunks: 2,
    a_megabyte: 1,
    ten_megabytes: 1,
    many_recipients: 1,
    starttls: 2,
    implicit_tls: 2,
    long_under_tls: 2,
    authenticated: 1,
    lmtp: 2,
    a_slow_line: 2,
}
NEEDS_ACCOUNTS = {authenticated}
