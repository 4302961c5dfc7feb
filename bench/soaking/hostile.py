"""The hostile clients: whatever they do, they leave nothing in the server, and no message that was never whole.

A role ends by itself within seconds; that the server closes first, answers anything or nothing is all right.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import socket
from collections.abc import Awaitable, Callable

from soaking.desk import Desk
from soaking.messages import KB, MB, message, raw
from soaking.place import CONTEXT, USER, Peer

EHLO = b"EHLO hostile.example\r\n"
MAIL, RCPT = b"MAIL FROM:<h@example.org>\r\n", b"RCPT TO:<b@example.com>\r\n"
PATIENCE = 3.0  # seconds that a hostile client waits for anything
FLOOD = 100


async def _listen(peer: Peer, seconds: float = PATIENCE) -> bytes:
    """Take what is said until the server closes, or the time is over."""
    heard = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while octets := await peer.reader.read(65536):
                heard += octets
    return heard


async def _greeted(desk: Desk, *said: bytes) -> Peer:
    """Connect, say EHLO, and say each of these and take one reply to it."""
    peer = await desk.plain()
    await peer.reply()
    for command in (EHLO, *said):
        await peer.send(command)
        await peer.reply()
    return peer


# --- What no command is


async def garbage(desk: Desk) -> None:
    peer = await _greeted(desk)
    for _ in range(random.randrange(1, 30)):
        await peer.send(os.urandom(random.randrange(1, 2 * KB)) + random.choice([b"\r\n", b"\n", b""]))
        await desk.pause()
    await _listen(peer, 0.5)


async def endless_line(desk: Desk) -> None:
    peer = await _greeted(desk)
    for _ in range(64):
        await peer.send(b"A" * 16 * KB)
    await _listen(peer)


async def slow_line(desk: Desk) -> None:
    peer = await _greeted(desk)
    for octet in b"MAIL FROM:<slow@":
        await peer.send(bytes([octet]))
        await desk.pause(0.3)


async def nul(desk: Desk) -> None:
    peer = await _greeted(desk, b"MAIL FROM:<a\0@example.org>\r\n", b"\0\0\0\r\n", MAIL, RCPT, b"DATA\r\n")
    await peer.send(message("not", 100).octets + b"a\0b\r\n.\r\n")
    await _listen(peer, 0.5)


async def http(desk: Desk) -> None:
    peer = await desk.plain()
    await peer.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\n" + MAIL)
    await _listen(peer)


# --- Time


async def early_talk(desk: Desk) -> None:
    peer = await desk.plain()
    await peer.send(EHLO + MAIL + RCPT + b"DATA\r\n" + message("not", 100).stuffed)
    await _listen(peer, 0.5)


async def silent(desk: Desk) -> None:
    peer = await desk.either(Desk.plain, Desk.onto_tls_port, Desk.unix)
    await _listen(peer, random.choice([0.5, 5.0, 15.0]))


async def silent_in_data(desk: Desk) -> None:
    peer = await _greeted(desk, MAIL, RCPT, b"DATA\r\n")
    await peer.send(message("not", 4 * KB).octets)
    await _listen(peer, random.choice([1.0, 15.0]))


async def half_open(desk: Desk) -> None:
    peer = await _greeted(desk, *random.choice([(), (MAIL,), (MAIL, RCPT, b"DATA\r\n")]))
    await peer.send(message("not", KB).octets)
    with contextlib.suppress(RuntimeError):  # uvloop: it is gone already
        peer.half_close()
    await _listen(peer)


async def never_reading(desk: Desk) -> None:
    """Ask much, and read nothing of the answers."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KB)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", desk.place.plain))
        flood = random.choice([b"NOOP\r\n" * 50_000, MAIL + RCPT * 10_000, b"VRFY a\r\n" * 40_000])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.choice([2.0, 14.0])):
                await loop.sock_recv(client, 100)
                await loop.sock_sendall(client, EHLO)
                await asyncio.sleep(0.1)
                await loop.sock_sendall(client, flood)
                await asyncio.sleep(14)


async def never_reading_lmtp(desk: Desk) -> None:
    """Send many good messages, each with more replies than a socket's buffer holds, and read none of them."""
    peer = await desk.unix()
    await peer.reply()
    await peer.send(b"LHLO hostile.example\r\n")
    await peer.reply()
    peer.stop_reading()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(random.choice([2.0, 14.0])):
            for _ in range(20):
                sent = message("any", KB).octets
                await peer.send(MAIL + RCPT * 900 + b"BDAT %d LAST\r\n%b" % (len(sent), sent))
            await asyncio.sleep(14)


# --- Resets


async def _reset_after(desk: Desk, *said: bytes, then: bytes = b"") -> None:
    peer = await _greeted(desk, *said)
    await peer.send(then)
    await asyncio.sleep(random.choice([0.0, 0.01]))
    peer.reset()


async def reset_at_greeting(desk: Desk) -> None:
    peer = await desk.either(Desk.plain, Desk.onto_tls_port, Desk.unix)
    peer.reset()


async def reset_at_command(desk: Desk) -> None:
    await _reset_after(desk, MAIL, then=RCPT[: random.randrange(len(RCPT) + 1)])


async def reset_at_auth(desk: Desk) -> None:
    peer = await _under_tls(desk)
    await peer.send(b"AUTH LOGIN\r\n")
    await peer.reply()
    peer.reset()


async def reset_at_handshake(desk: Desk) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(random.randrange(1, 600))
    await _reset_after(desk, b"STARTTLS\r\n", then=hello[: random.randrange(len(hello))])


async def reset_in_data(desk: Desk) -> None:
    sent = message("not", random.choice([KB, MB]))
    await _reset_after(desk, MAIL, RCPT, b"DATA\r\n", then=sent.stuffed[:-4])


async def reset_before_the_reply(desk: Desk) -> None:
    """It may be stored or not: the client does not know, and nobody told it."""
    await _reset_after(desk, MAIL, RCPT, b"DATA\r\n", then=message("any", random.choice([KB, MB])).stuffed)


async def reset_in_a_chunk(desk: Desk) -> None:
    sent = message("not", 256 * KB).octets
    await _reset_after(desk, MAIL, RCPT, then=b"BDAT %d LAST\r\n%b" % (len(sent), sent[:-1]))


# --- TLS


async def _under_tls(desk: Desk) -> Peer:
    peer = await _greeted(desk, b"STARTTLS\r\n")
    await peer.start_tls()
    await peer.send(EHLO)
    await peer.reply()
    return peer


async def tls_garbage(desk: Desk) -> None:
    if random.random() < 0.5:
        peer = await _greeted(desk, b"STARTTLS\r\n")
    else:
        peer = await desk.onto_tls_port()
    await peer.send(random.choice([b"\x16\x03\x01", b"\x80", b""]) + os.urandom(random.randrange(1, 4 * KB)))
    await _listen(peer)


async def plaintext_onto_tls(desk: Desk) -> None:
    peer = await desk.onto_tls_port()
    await peer.send(EHLO + MAIL + RCPT)
    await _listen(peer)


async def commands_behind_starttls(desk: Desk) -> None:
    peer = await _greeted(desk)
    await peer.send(b"STARTTLS\r\n" + EHLO + MAIL + RCPT + b"DATA\r\n" + message("not", 100).stuffed)
    await _listen(peer)


async def handshakes(desk: Desk) -> None:
    """Do nothing but the dearest thing, again and again."""
    for _ in range(5):
        peer = await desk.implicit()
        peer.reset()


async def vanishing_under_tls(desk: Desk) -> None:
    peer = await _under_tls(desk)
    await peer.send(MAIL)
    await peer.reply()
    await peer.send(RCPT + b"BDAT 100000\r\n" + b"x" * 1000)
    await random.choice([_away, _reset])(peer)


async def _away(peer: Peer) -> None:
    """Close without TLS's goodbye."""
    peer.drop()


async def _reset(peer: Peer) -> None:
    peer.reset()


# --- AUTH, trust


async def wrong_passwords(desk: Desk) -> None:
    peer = await _under_tls(desk)
    for guess in range(5):
        token = base64.b64encode(b"\0" + USER.encode() + b"\0guess%d" % guess)
        await peer.send(b"AUTH PLAIN " + token + b"\r\n")
        await peer.reply()


async def broken_credentials(desk: Desk) -> None:
    peer = await _under_tls(desk)
    for said in (b"AUTH PLAIN ====\r\n", b"AUTH LOGIN\r\n", b"*\r\n", b"AUTH NONE\r\n", b"AUTH PLAIN " + b"A" * 13_000):
        await peer.send(said)
        await peer.reply()


async def proxies_that_are_none(desk: Desk) -> None:
    said = [b"XCLIENT ADDR=192.0.2.1 LOGIN=alice\r\n", b"XFORWARD ADDR=192.0.2.1\r\n", b"XCLIENT\r\n"]
    peer = await _greeted(desk, *said)
    await peer.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
    await _listen(peer, 0.2)


# --- Messages


SMUGGLING = (b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\n.\r", b"\r\n.\r\r\n")


async def smuggling(desk: Desk) -> None:
    """Hide a second message behind what some server takes for the end of the first."""
    peer = await _greeted(desk, MAIL, RCPT, b"DATA\r\n")
    second = EHLO + MAIL + RCPT + b"DATA\r\n" + message("not", 100).stuffed.removesuffix(b"\r\n.\r\n")
    name, sent = raw("any", b"Hello" + random.choice(SMUGGLING) + second + b"\r\n")
    await peer.send(sent + b".\r\n")
    if (await peer.reply()).startswith("250"):
        desk.acknowledged(name)


async def a_thousand_recipients(desk: Desk) -> None:
    peer = await _greeted(desk, MAIL)
    await peer.send(b"".join(b"RCPT TO:<r%d@example.com>\r\n" % number for number in range(1_010)))
    for _ in range(1_010):
        await peer.reply()


async def too_large(desk: Desk) -> None:
    peer = await _greeted(desk, MAIL, RCPT, b"DATA\r\n")
    await peer.send(message("not", 18 * MB).stuffed)
    await peer.reply()


async def chunks_that_lie(desk: Desk) -> None:
    lies = [
        b"BDAT -1 LAST\r\n",
        b"BDAT 99999999999999999999\r\nx",
        b"BDAT 1e3 LAST\r\n",
        b"BDAT 0x10\r\n",
        b"BDAT 100000 LAST\r\n" + message("not", 100).octets,
        b"BDAT 5\r\nhelloDATA\r\n" + message("not", 100).stuffed,
        b"RSET\r\nBDAT %d LAST\r\n" % (len(EHLO) * 100) + EHLO * 100,
    ]
    peer = await _greeted(desk, MAIL, RCPT)
    await peer.send(random.choice(lies))
    await _listen(peer, 0.5)


async def out_of_turn(desk: Desk) -> None:
    peer = await _greeted(desk)
    await peer.send(MAIL + RCPT + b"DATA\r\n" + message("not", 100).stuffed + b"QUIT\r\n")
    await _listen(peer)


async def parameters(desk: Desk) -> None:
    said = [b"SIZE=99999999999", b"SIZE=", b"BODY", b"BODY=9BIT", b"AUTH=+0", b"X=Y", b"SIZE=1 SIZE=2", b"=" * 3000]
    await _greeted(desk, *[b"MAIL FROM:<a@example.org> " + each + b"\r\n" for each in said])


# --- Numbers


async def flood(desk: Desk) -> None:
    """Open many connections at once, and leave."""
    ways = (desk.plain, desk.onto_tls_port)
    await asyncio.gather(*[ways[number % 2]() for number in range(FLOOD)], return_exceptions=True)
    await asyncio.sleep(random.uniform(0, 1))


async def flood_of_handshakes(desk: Desk) -> None:
    """Begin many handshakes, and finish none."""
    hello = _client_hello()
    peers = await asyncio.gather(*[desk.onto_tls_port() for _ in range(20)])
    for peer in peers:
        await peer.send(hello)
    await asyncio.sleep(random.choice([0.2, 6.0]))


def _client_hello() -> bytes:
    import ssl

    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        CONTEXT.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


_ONE_OF_EACH: tuple[Callable[[Desk], Awaitable[None]], ...] = (
    garbage,
    endless_line,
    slow_line,
    nul,
    http,
    early_talk,
    half_open,
    reset_at_greeting,
    reset_at_command,
    reset_at_auth,
    reset_at_handshake,
    reset_in_data,
    reset_before_the_reply,
    reset_in_a_chunk,
    tls_garbage,
    plaintext_onto_tls,
    commands_behind_starttls,
    handshakes,
    vanishing_under_tls,
    wrong_passwords,
    broken_credentials,
    proxies_that_are_none,
    smuggling,
    a_thousand_recipients,
    too_large,
    chunks_that_lie,
    out_of_turn,
    parameters,
    flood,
    flood_of_handshakes,
)
# How many of each are at it at the same time; those that mostly wait are more.
ROLES = dict.fromkeys(_ONE_OF_EACH, 1) | {silent: 5, silent_in_data: 3, never_reading: 3, never_reading_lmtp: 2}
