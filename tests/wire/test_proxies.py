"""Behind a proxy, on real sockets and both event loops: what PROXY headers bring, and what they must not."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from ipaddress import ip_address
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pillarbox import ProxyInfo, ProxyTLS, Session
from pillarbox.smtp.proxy import crc32c
from support import PLAIN, TIMEOUT, Client, Sessions, careless, on_both_loops, pem, serving, trusting

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 25\r\n"
BAD = b"* BAD Invalid PROXY header\r\n"
ANYONE: dict[str, Any] = {"auth_optional": False, "on_auth": lambda *_: True}


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def v2(*tlvs: bytes, command: int = 0x21, family: int = 0x11) -> bytes:
    """Return a header with a checksum in front of these TLVs."""
    addresses = b"" if family == 0 else ip_address("192.0.2.7").packed + ip_address("198.51.100.1").packed
    ports = b"" if family == 0 else struct.pack("!HH", 51234, 25)
    rest = addresses + ports + tlv(0x03, bytes(4)) + b"".join(tlvs)
    whole = SIGNATURE + bytes([command, family]) + struct.pack("!H", len(rest)) + rest
    return whole.replace(tlv(0x03, bytes(4)), tlv(0x03, struct.pack("!I", crc32c(whole))), 1)


TLS = tlv(0x20, b"\x01\0\0\0\0" + tlv(0x21, b"TLSv1.3") + tlv(0x23, b"TLS_AES_128_GCM_SHA256"))
NO_TLS = tlv(0x20, b"\0\0\0\0\0")
FACTS = v2(tlv(0x02, b"MX.example.com"), tlv(0x05, b"id-1"), TLS, tlv(0xEA, b"\x01vpce-1"))


async def behind(served: Any, header: bytes, *cuts: int) -> Client:
    """Return a client that was greeted behind this header."""
    client: Client = await served.connect()
    for begin, end in zip((0, *cuts), (*cuts, len(header)), strict=True):
        await client.send(header[begin:end])
        await asyncio.sleep(0)
    assert (await client.reply()).code == 220
    return client


@pytest.mark.promises("Proxies", "However a PROXY header is cut into packets, it means the same.")
@on_both_loops
async def test_what_the_header_says_is_in_the_session() -> None:
    sessions = Sessions()
    async with serving(use_proxy=["127.0.0.1"], on_connect=sessions) as served:
        size = len(FACTS)
        for cuts in ((), tuple(range(1, size)), *((place,) for place in range(1, size, 7))):
            client = await behind(served, FACTS, *cuts)
            assert sessions.pop().proxy == ProxyInfo(
                2,
                authority="MX.example.com",
                unique_id=b"id-1",
                tls=ProxyTLS("TLSv1.3", "TLS_AES_128_GCM_SHA256"),
                tlvs=((0xEA, b"\x01vpce-1"),),
            )
            await client.close()
        await behind(served, V1)
        assert sessions.pop().proxy == ProxyInfo(1)
    async with serving(on_connect=sessions) as served:
        await served.client()
        assert sessions.pop().proxy is None


@on_both_loops
async def test_tls_at_the_proxy_makes_the_session_secure() -> None:
    secured: list[Any] = []
    async with serving(
        use_proxy=["127.0.0.1"], hide_requiretls=False, on_secure=lambda *facts: secured.append(facts), **ANYONE
    ) as served:
        client = await behind(served, FACTS)
        offered = await client.ehlo()
        assert "STARTTLS" not in offered
        assert {"AUTH", "REQUIRETLS"} <= set(offered)
        assert await client.say("STARTTLS") == "503 Error: TLS already active"
        assert await client.say(f"AUTH PLAIN {PLAIN}") == "235 Authentication successful"
        assert (await client.command("MAIL FROM:<a@example.com> REQUIRETLS")).code == 250
        session = served.server.connections[0]
        assert (session.secure, session.transmission_type) == (True, "ESMTPSA")
        assert (session.tls, session.servername) == (None, "mx.example.com")
    assert secured == []


@pytest.mark.parametrize("header", [V1, v2(), v2(NO_TLS), v2(tlv(0x02, b"mx.example.com")), v2(TLS, command=0x20)])
async def test_without_the_tls_of_a_client_the_session_is_not_secure(header: bytes) -> None:
    async with serving(use_proxy=["127.0.0.1"], **ANYONE) as served:
        client = await behind(served, header)
        offered = await client.ehlo()
        assert "STARTTLS" in offered
        assert "AUTH" not in offered
        assert (await client.command(f"AUTH PLAIN {PLAIN}")).code == 538
        session = served.server.connections[0]
        assert (session.secure, session.transmission_type, session.servername) == (False, "ESMTP", None)
        await client.starttls(careless())
        await client.ehlo()
        assert await client.say(f"AUTH PLAIN {PLAIN}") == "235 Authentication successful"


@on_both_loops
async def test_tls_at_the_proxy_and_again_here() -> None:
    async with serving(use_proxy=["127.0.0.1"], secure=True, **pem()) as served:
        client = await served.connect()
        await client.send(FACTS)
        await client.handshake(trusting())
        assert (await client.reply()).code == 220
        await client.ehlo()
        session = served.server.connections[0]
        assert session.tls is not None
        assert session.proxy is not None
        assert session.proxy.tls is not None
        assert session.servername == "localhost"  # what was asked of this server
        assert session.transmission_type == "ESMTPS"


async def test_with_secured_and_facts() -> None:
    async with serving(use_proxy=["127.0.0.1"], secure=True, secured=True, **ANYONE) as served:
        for header in (FACTS, v2(NO_TLS), V1):
            client = await behind(served, header)
            offered = await client.ehlo()
            assert "AUTH" in offered
            assert "STARTTLS" not in offered


async def test_xclient_keeps_the_tls_of_the_proxy() -> None:
    async with serving(use_proxy=["127.0.0.1"], use_xclient=["192.0.2.7"]) as served:
        client = await behind(served, FACTS)
        assert (await client.command("XCLIENT ADDR=192.0.2.9")).code == 220
        assert "STARTTLS" not in await client.ehlo()
        session = served.server.connections[0]
        assert session.secure
        assert session.proxy is not None
        assert session.proxy.unique_id == b"id-1"


@on_both_loops
async def test_a_health_check_of_the_proxy_itself() -> None:
    async with serving(use_proxy=["127.0.0.1"]) as served:
        for header in (v2(command=0x20), v2(command=0x20, family=0), SIGNATURE + b"\x20\x00\x00\x00"):
            client = await behind(served, header)
            session = served.server.connections[0]
            here = client.writer.get_extra_info("sockname")[:2]
            assert (session.remote_address, session.remote_port) == here
            assert session.proxy == ProxyInfo(2, local=True)
            assert await client.say("QUIT") == "221 Bye"
            await client.eof()
            while served.server.connections:
                await asyncio.sleep(0)


@pytest.mark.promises(
    "Proxies", "A PROXY header has limits of length and time, and a malformed one ends the connection."
)
@pytest.mark.parametrize(
    "header",
    [
        FACTS.replace(b"id-1", b"id-2"),  # the checksum is that of another header
        v2(tlv(0x05, bytes(129))),
        v2(tlv(0x20, b"\x01\0\0\0\0\x21\0\x09TLSv1.3")),
        v2(b"\x02\xff\xff"),
        v2(tlv(0x04, bytes(4097 - len(v2()) - 3))),
        v2(family=0x43),
        V1.replace(b" 25", b" 025"),
    ],
)
@on_both_loops
async def test_a_broken_header_ends_the_connection(header: bytes) -> None:
    called: list[Session] = []
    async with serving(use_proxy=["127.0.0.1"], on_connect=called.append, on_close=called.append) as served:
        for octets in (header, header + b"EHLO client.example\r\nMAIL FROM:<a@example.com>\r\n"):
            client = await served.connect()
            await client.send(octets)
            assert await client.rest() == BAD
        assert called == []
        await behind(served, v2(tlv(0x04, bytes(4096 - len(v2()) - 3))))  # as long as any may be


# --- Who must, and who must not


@pytest.mark.promises("Proxies", "A PROXY header is read from listed addresses only.")
async def test_the_header_of_a_peer_that_is_not_listed_is_no_more_than_bad_commands() -> None:
    sessions = Sessions()
    async with serving(use_proxy=["192.0.2.1"], on_connect=sessions) as served:
        client = await served.client()
        await client.send(V1)
        assert await client.hear() == "500 Error: command not recognized"
        assert await client.say("NOOP") == "250 OK"
        await client.send(SIGNATURE + b"\x21\x11\x00\x0c" + bytes(12))
        # 2.2: it "was specially designed in order to be incompatible with a wide range of protocols": it holds a QUIT.
        answers = (await client.rest()).split(b"\r\n")
        assert {answer[:3] for answer in answers[:-2]} <= {b"500"}
        assert answers[-2] == b"221 Bye"
    assert [(session.remote_address, session.proxy) for session in sessions] == [("127.0.0.1", None)]


@on_both_loops
async def test_it_talks_too_soon_like_everyone_else() -> None:
    async with serving(use_proxy=["192.0.2.1"], greet_delay=5, name="mx.example.net") as served:
        for header in (V1, FACTS):
            client = await served.connect()
            await client.send(header)
            assert await client.hear() == "421 mx.example.net You talk too soon"
            await client.eof()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
@pytest.mark.parametrize(
    ("peers", "must"), [(True, True), (["*"], True), (["127.0.0.1", "*"], True), (["0.0.0.0/0", "::/0"], False)]
)
async def test_unix_sockets_are_meant_by_everyone_alone(peers: Any, must: bool) -> None:
    with TemporaryDirectory(prefix="pb") as folder:
        path = f"{folder}/s"
        async with serving(use_proxy=peers) as served:
            await served.server.listen(path=path)
            client = await served.connect(address=path)
            if must:
                await client.send(FACTS)
            assert (await client.reply()).code == 220
            assert (served.server.connections[0].proxy is not None) == must


# --- Slow, early and large


@pytest.mark.promises(
    "Proxies", "A PROXY header has limits of length and time, and a malformed one ends the connection."
)
@on_both_loops
async def test_a_header_that_comes_in_drops_does_not_win_time() -> None:
    async with serving(use_proxy=True, proxy_timeout=0.3) as served:
        client = await served.connect()
        ended = asyncio.create_task(client.rest())
        sent = 0
        for octet in FACTS * 10:
            if ended.done():
                break
            await client.send(bytes([octet]))
            sent += 1
            await asyncio.wait([ended], timeout=0.02)
        assert await asyncio.wait_for(ended, TIMEOUT) == BAD
        assert sent < len(FACTS)


@pytest.mark.promises(
    "Proxies", "A second PROXY header is not read, and what follows the first one before the greeting is refused."
)
@on_both_loops
async def test_commands_in_the_segment_of_the_header_are_early() -> None:
    async with serving(use_proxy=True, name="mx.example.net") as served:
        for header in (V1, FACTS, SIGNATURE + b"\x20\x00\x00\x00"):
            for more in (b"E", b"EHLO x\r\n", V1, FACTS, b"x" * 300_000):
                client = await served.connect()
                await client.send(header + more)
                assert await client.hear() == "421 mx.example.net You talk too soon"
                await client.close()


@pytest.mark.promises("TLS", "What is no handshake ends the connection, and nothing of it is run.")
@on_both_loops
async def test_octets_that_are_no_handshake_behind_the_header() -> None:
    async with serving(use_proxy=True, secure=True, **pem()) as served:
        for more in (b"EHLO x\r\n", b"\x16\x03\x01" + b"x" * 300_000):
            client = await served.connect()
            await client.send(FACTS + more)
            with suppress(ConnectionError):
                assert b"220" not in await client.rest()
        client = await served.connect()  # and others are served
        await client.send(FACTS)
        await client.handshake(trusting())
        assert (await client.reply()).code == 220
