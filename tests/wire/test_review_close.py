"""What a review found in listeners, connections and their end; each test holds one finding shut."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pillarbox import ConfigurationError, Session, SMTPServer
from support import TIMEOUT, Sessions, careless, internal_errors, issued, on_both_loops, pem, serving

BASE: dict[str, Any] = {"disable_reverse_lookup": True, "auth_optional": True}
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 25\r\n"
ROUNDS = 20


def reset(sock: socket.socket) -> None:
    """Close so that the other side hears a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def until_the_end(sock: socket.socket) -> bytes:
    """Return what is heard until the other side ends it; TimeoutError if it does not."""
    heard = b""
    with sock, contextlib.suppress(ConnectionError):
        while octets := sock.recv(4096):
            heard += octets
    return heard


# --- close()


@pytest.mark.parametrize("secure", [False, True])
@on_both_loops
async def test_no_connection_outlives_close(secure: bool) -> None:
    with internal_errors() as found:
        for number in range(ROUNDS):
            server = SMTPServer(**BASE, secure=secure, close_timeout=1)
            address = await server.listen(0, "127.0.0.1")
            assert isinstance(address, tuple)
            clients = [socket.create_connection(address, timeout=TIMEOUT) for _ in range(5)]
            for _ in range(number % 4):
                await asyncio.sleep(0)
            await asyncio.wait_for(server.close(), TIMEOUT)
            assert not server._connections.all
            for client in clients:
                heard = await asyncio.to_thread(until_the_end, client)
                assert not heard or heard.endswith(b"421 Server shutting down\r\n")
            assert not server._connections.all
    assert not found, "\n".join(found)


@on_both_loops
async def test_close_is_quick_while_a_handshake_has_not_begun() -> None:
    async with serving(close_timeout=5) as served:
        client = await served.hello()
        assert await client.say("STARTTLS") == "220 Ready to start TLS"
        began = time.monotonic()
        await asyncio.wait_for(served.server.close(), TIMEOUT)
        assert time.monotonic() - began < 3
        await client.eof()


@pytest.mark.parametrize("used_before", [False, True])
@on_both_loops
async def test_a_closed_server_takes_nothing_more(used_before: bool) -> None:
    server = SMTPServer(**BASE)
    pairs = [socket.socketpair(), socket.socketpair()]
    if used_before:
        await server.serve_socket(pairs[0][1])
    await asyncio.wait_for(server.close(), TIMEOUT)
    with pytest.raises(RuntimeError, match="closed"):
        await server.serve_socket(pairs[1][1])
    with pytest.raises(RuntimeError, match="closed"):
        await server.listen(0, "127.0.0.1")
    assert not server._connections.all
    for sock in (*pairs[0], *pairs[1]):
        sock.close()


PROGRAM = """
import asyncio, gc, smtplib, ssl, sys
from pillarbox import SMTPServer

async def main(clients):
    server = SMTPServer(auth_optional=True, disable_reverse_lookup=True)
    host, port = await server.listen(0, "127.0.0.1")

    def connect():
        client = smtplib.SMTP(host, port, timeout=5)
        client.starttls(context=ssl._create_unverified_context())
        assert client.ehlo()[0] == 250
        return client

    for _ in range(3):
        clients.append(await asyncio.to_thread(connect))
    await server.close()

clients = []
if sys.argv[1] == "uvloop":
    import uvloop
with asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[1] == "uvloop" else None) as runner:
    runner.run(main(clients))
gc.collect()
for client in clients:
    client.close()
print("done")
"""


@pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])
def test_close_leaves_no_transport_open(loop_name: str) -> None:
    if loop_name == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed here")
    program = [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", PROGRAM, loop_name]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=30, check=False)
    assert ran.stdout == "done\n", ran.stderr
    assert "ResourceWarning" not in ran.stderr
    assert "Exception ignored" not in ran.stderr


# --- Clients that leave


@pytest.mark.parametrize("use_proxy", [True, ["127.0.0.1"], False])
@on_both_loops
async def test_who_is_gone_at_once_is_nobody(use_proxy: Any) -> None:
    sessions = Sessions()
    async with serving(use_proxy=use_proxy, on_connect=sessions) as served:
        for number in range(ROUNDS):
            reset(socket.create_connection(served.address, timeout=TIMEOUT))
            for _ in range(number % 4):
                await asyncio.sleep(0)
        last = await served.connect()  # accepted behind all of them
        if use_proxy:
            await last.send(V1)
        assert (await last.reply()).code == 220
    addresses = [session.remote_address for session in sessions]
    assert "" not in addresses
    if use_proxy:
        assert addresses == ["192.0.2.7"]


@pytest.mark.parametrize("count", [10, 5_000, 20_000])
@on_both_loops
async def test_a_reset_behind_input_that_nobody_read(count: int) -> None:
    connected, go, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def on_connect(session: Session) -> None:
        connected.set()
        await go.wait()

    # Where the server did something wrong, `serving` says so.
    async with serving(on_connect=on_connect, on_close=lambda _: closed.set()) as served:
        with socket.create_connection(served.address, timeout=TIMEOUT) as sock:
            sock.setblocking(False)
            await asyncio.wait_for(connected.wait(), TIMEOUT)
            sending = asyncio.get_running_loop().sock_sendall(sock, b"NOOP\r\n" * count)
            await asyncio.wait_for(sending, TIMEOUT)
            await asyncio.sleep(0.05)  # the server has read what it takes
            reset(sock)
        await asyncio.sleep(0.05)  # and has heard of the reset, where it still reads
        go.set()
        await asyncio.wait_for(closed.wait(), TIMEOUT)
        assert (await (await served.client()).command("NOOP")).code == 250


HELP = b"214 See https://www.rfc-editor.org/rfc/rfc5321 for details\r\n"


@pytest.mark.promises("Memory", "A client that reads no replies is paused, and then the connection ends.")
@on_both_loops
async def test_replies_that_nobody_reads_do_not_pile_up() -> None:
    count, go = 20_000, asyncio.Event()

    async def on_mail_from(*_: object) -> None:
        await go.wait()  # meanwhile the commands arrive

    async with serving(on_mail_from=on_mail_from, max_junk_commands=None) as served:
        client = await served.narrow()
        assert (await client.reply()).code == 220
        await client.ehlo()
        connection = next(iter(served.server._connections.all))
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(b"MAIL FROM:<a@example.com>\r\n" + b"HELP\r\n" * count)
        await asyncio.sleep(0.1)
        go.set()
        for _ in range(20):
            queued = connection._transport.get_write_buffer_size() + len(connection.out)
            assert queued < 2**20
            await asyncio.sleep(0.01)
        assert queued  # it is the client that is waited for
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert await client.hear() == "250 Accepted"
        heard = await asyncio.wait_for(client.reader.readexactly(len(HELP) * count), 4 * TIMEOUT)
        assert heard == HELP * count
        assert await client.say("NOOP") == "250 OK"


# --- Listeners


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses, as nobody does")
async def test_a_busy_servers_path_is_not_taken() -> None:
    with TemporaryDirectory(prefix="pb") as folder, contextlib.ExitStack() as open_sockets:
        path = str(Path(folder) / "s")
        busy = open_sockets.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(path)
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100):
                waiting = open_sockets.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(path)
        inode = Path(path).stat().st_ino
        async with SMTPServer(**BASE) as server:
            with pytest.raises(OSError, match="in use") as raised:
                await server.listen(path=path)
            assert raised.value.errno == errno.EADDRINUSE
            assert server.addresses == []
        assert Path(path).stat().st_ino == inode


async def test_one_context_does_not_serve_two_maps_of_names() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued("localhost").configure_cert(context)
    first, second = {"a.test": pem("a.test")}, {"b.test": pem("b.test")}
    async with SMTPServer(**BASE, ssl_context=context, sni_options=first) as server:
        for _ in range(2):
            await server.listen(0, "127.0.0.1")
        served = context.sni_callback
        with pytest.raises(ConfigurationError, match="ssl_context") as raised:
            await server.listen(0, "127.0.0.1", sni_options=second)
        assert context.sni_callback is served  # the refused names did not reach it
        assert raised.value.option == "ssl_context"
        assert len(server.addresses) == 2


@pytest.mark.parametrize("port", [70_000, 65_536, -1])
async def test_a_port_that_cannot_be(port: int) -> None:
    async with SMTPServer(**BASE) as server:
        with pytest.raises(ConfigurationError, match="port"):
            await server.listen(port)
        with pytest.raises(ConfigurationError, match="port"):
            await server.listen(port=port, host="127.0.0.1")
        assert server.addresses == []


async def test_max_clients_of_a_listener_counts_its_own() -> None:
    async with serving() as served:
        limited = await served.server.listen(0, "127.0.0.1", max_clients=1)
        await served.client()
        await served.client()
        one = await served.connect(address=limited)
        assert (await one.reply()).code == 220
        two = await served.connect(address=limited)
        assert (await two.reply()).code == 421
        await two.eof()
        await served.client()
        assert await one.say("QUIT") == "221 Bye"
        await one.eof()
        three = await served.connect(address=limited)
        assert (await three.reply()).code == 220


async def test_max_clients_of_the_server_counts_all() -> None:
    async with serving(max_clients=2) as served:
        other = await served.server.listen(0, "127.0.0.1")
        await served.client()
        assert (await (await served.connect(address=other)).reply()).code == 220
        for address in (served.address, other):
            assert (await (await served.connect(address=address)).reply()).code == 421


# --- No limit


@on_both_loops
async def test_without_timeouts_a_slow_client_is_served() -> None:
    async with serving(
        socket_timeout=None, close_timeout=None, handshake_timeout=None, proxy_timeout=None, use_proxy=True
    ) as served:
        client = await served.connect()
        await client.send(V1[:20])
        await asyncio.sleep(0.2)
        await client.send(V1[20:])
        assert (await client.reply()).code == 220
        await asyncio.sleep(0.5)
        await client.ehlo()
        await client.starttls(careless())
        await client.ehlo()
        await client.envelope()
        closing = asyncio.create_task(served.server.close())
        assert await client.say("DATA") == "354 End data with <CR><LF>.<CR><LF>"
        await client.send(b"half\r\n")
        await asyncio.sleep(0.2)
        await client.send(b"whole\r\n.\r\n")
        assert await client.hear() == "250 OK: message queued"
        assert await client.hear() == "421 Server shutting down"
        await asyncio.wait_for(closing, TIMEOUT)
