"""The server object: what it listens on, what it says of itself, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pillarbox import ConfigurationError, MessageStream, Options, Session, SMTPServer
from support import TIMEOUT, Client, Inbox, careless, names_in, on_both_loops, pem, serving, trusting

BASE: dict[str, Any] = {"disable_reverse_lookup": True, "auth_optional": True}
unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


@asynccontextmanager
async def talking(address: tuple[str, int] | str, name: str | None = None) -> AsyncIterator[Client]:
    """Connect, and check the greeting."""
    client = await Client.open(address)
    try:
        greeting = await client.hear()
        assert greeting.startswith("220 ")
        assert name is None or f" {name} " in greeting
        yield client
    finally:
        await client.close()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A path for a Unix socket: those are short (104 octets on macOS), pytest's own are not."""
    with TemporaryDirectory(prefix="pb") as folder:
        yield Path(folder) / "s"


# --- What it listens on


@on_both_loops
async def test_a_port() -> None:
    async with SMTPServer(**BASE) as server:
        bound = await server.listen(0, "127.0.0.1")
        assert isinstance(bound, tuple)
        assert bound[0] == "127.0.0.1"
        assert bound[1] > 0
        assert server.addresses == [bound]
        async with talking(bound) as client:
            assert await client.say("NOOP") == "250 OK"


async def test_host_none_is_all_interfaces() -> None:
    async with SMTPServer(**BASE) as server:
        await server.listen(0)
        hosts = {address[0] for address in server.addresses}
        assert "0.0.0.0" in hosts
        for address in server.addresses:
            assert isinstance(address, tuple)
            host = "::1" if ":" in address[0] else "127.0.0.1"
            async with talking((host, address[1])):
                pass


async def test_ipv6_and_mapped_addresses_are_normal() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except (OSError, ValueError):
        pytest.skip("no dual stack here")
    async with SMTPServer(**BASE) as server:
        await server.listen(sock=listening)
        port = listening.getsockname()[1]
        async with talking(("127.0.0.1", port)):
            session = server.connections[0]
            assert (session.remote_address, session.local_address) == ("127.0.0.1", "127.0.0.1")
        async with talking(("::1", port)):
            session = server.connections[-1]
            assert (session.remote_address, session.client_hostname) == ("::1", "[::1]")


@unix
@on_both_loops
async def test_a_unix_socket() -> None:
    with TemporaryDirectory(prefix="pb") as folder:
        path = Path(folder) / "s"
        async with SMTPServer(**BASE) as server:
            assert await server.listen(path=path) == str(path)
            assert server.addresses == [str(path)]
            async with talking(str(path)) as client:
                session = server.connections[0]
                assert (session.remote_address, session.client_hostname) == ("", "localhost")
                await client.ehlo()
                assert await client.deliver() == "250 OK: message queued"
        assert not path.exists()


@unix
async def test_a_unix_peer_is_named_localhost_with_lookups_too(short_path: Path) -> None:
    async with SMTPServer(auth_optional=True, helo_response="%s %s", name="mx") as server:
        await server.listen(path=short_path)
        async with talking(str(short_path)) as client:
            assert await client.say("HELO x") == "250 mx localhost"


@unix
@on_both_loops
async def test_a_stale_unix_socket_is_replaced() -> None:
    with TemporaryDirectory(prefix="pb") as folder:
        path = Path(folder) / "s"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        assert path.exists()
        async with SMTPServer(**BASE) as server:
            await server.listen(path=path)
            async with talking(str(path)):
                pass


@unix
@on_both_loops
async def test_a_live_unix_socket_is_not_taken() -> None:
    with TemporaryDirectory(prefix="pb") as folder:
        path = Path(folder) / "s"
        async with SMTPServer(**BASE, name="first") as first:
            await first.listen(path=path)
            async with SMTPServer(**BASE) as second:
                with pytest.raises(OSError, match="in use"):
                    await second.listen(path=path)
            async with talking(str(path), "first"):
                pass


@unix
async def test_a_file_is_not_replaced(short_path: Path) -> None:
    short_path.write_text("precious")
    async with SMTPServer(**BASE) as server:
        with pytest.raises(OSError, match="no socket"):
            await server.listen(path=short_path)
    assert short_path.read_text() == "precious"


@unix
async def test_only_its_own_unix_socket_is_removed(short_path: Path) -> None:
    first = SMTPServer(**BASE)
    await first.listen(path=short_path)
    short_path.unlink()
    async with SMTPServer(**BASE, name="second") as second:
        await second.listen(path=short_path)
        await first.close()
        async with talking(str(short_path), "second"):
            pass


@on_both_loops
async def test_a_bound_socket() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    async with SMTPServer(**BASE) as server:
        bound = await server.listen(sock=sock)
        async with talking(bound):
            pass


@posix
@on_both_loops
async def test_a_descriptor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        descriptor = os.dup(sock.fileno())
    async with SMTPServer(**BASE) as server:
        bound = await server.listen(fd=descriptor)
        assert bound[1] > 0  # type: ignore[operator]
        async with talking(bound):
            pass


@unix
@on_both_loops
async def test_a_unix_descriptor() -> None:
    with TemporaryDirectory(prefix="pb") as folder:
        path = str(Path(folder) / "s")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            sock.listen()
            descriptor = os.dup(sock.fileno())
        async with SMTPServer(**BASE) as server:
            assert await server.listen(fd=descriptor) == path
            async with talking(path):
                pass


async def test_several_listeners_with_options_of_their_own() -> None:
    inbox = Inbox()
    async with SMTPServer(**BASE, name="both", on_data=inbox) as server:
        first = await server.listen(0, "127.0.0.1")
        second = await server.listen(0, "127.0.0.1", lmtp=True, name="lmtp", size=1000)
        third = await server.listen(0, "127.0.0.1", secure=True)
        assert server.addresses == [first, second, third]
        async with talking(first, "both") as client:
            assert "SIZE" not in await client.ehlo()
            assert await client.deliver() == "250 OK: message queued"
        async with talking(second, "lmtp") as client:
            assert (await client.ehlo(verb="LHLO"))["SIZE"] == "1000"
            assert await client.deliver() == "250 OK: message accepted"
        client = await Client.open(third, careless())
        assert (await client.reply()).code == 220
        await client.close()
    assert len(inbox) == 2


@pytest.mark.parametrize("given", [{}, {"port": 0, "path": "x"}, {"path": "x", "fd": 3}])
async def test_listen_takes_one_thing(given: dict[str, Any]) -> None:
    async with SMTPServer(**BASE) as server:
        with pytest.raises(ConfigurationError, match="one of port, path, sock and fd"):
            await server.listen(**given)


async def test_a_misspelt_override_is_an_error() -> None:
    async with SMTPServer(**BASE) as server:
        with pytest.raises(ConfigurationError, match="did you mean 'banner'"):
            await server.listen(0, "127.0.0.1", baner="x")  # type: ignore[call-arg]
        with pytest.raises(ConfigurationError, match="option secured"):
            await server.listen(0, "127.0.0.1", secured=True)
        assert server.addresses == []


@unix
@on_both_loops
async def test_a_listen_that_is_cancelled_leaves_nothing_behind() -> None:
    with TemporaryDirectory(prefix="pb") as folder:
        for turns in range(8):
            path = Path(folder) / str(turns)
            async with SMTPServer(**BASE) as server:
                listening = asyncio.create_task(server.listen(path=path))
                for _ in range(turns):
                    await asyncio.sleep(0)
                listening.cancel()
                await asyncio.wait([listening])
                for _ in range(8):
                    await asyncio.sleep(0)
                assert bool(server.addresses) is path.exists() is not listening.cancelled()


async def test_a_port_in_use() -> None:
    async with SMTPServer(**BASE) as server:
        bound = await server.listen(0, "127.0.0.1")
        assert isinstance(bound, tuple)
        with pytest.raises(OSError, match="in use"):
            await server.listen(bound[1], bound[0])
        assert len(server.addresses) == 1


@pytest.mark.parametrize("options", [Options(**BASE, name="given"), {**BASE, "name": "given"}])
async def test_options_as_an_object_or_a_mapping_with_overrides(options: Any) -> None:
    async with SMTPServer(options, banner="hi") as server:
        address = await server.listen(0, "127.0.0.1")
        client = await Client.open(address)
        assert await client.hear() == "220 given ESMTP hi"
        await client.close()


# --- serve_socket, connections


@on_both_loops
async def test_serve_socket() -> None:
    async with SMTPServer(**BASE, name="handed.in") as server:
        ours, theirs = socket.socketpair()
        await server.serve_socket(theirs)
        reader, writer = await asyncio.open_connection(sock=ours)
        client = Client(reader, writer)
        assert await client.hear() == "220 handed.in ESMTP"
        assert len(server.connections) == 1
        await client.ehlo()
        assert await client.deliver() == "250 OK: message queued"
        assert await client.say("QUIT") == "221 Bye"
        await client.eof()
        await client.close()


async def test_connections_are_the_live_ones() -> None:
    closed: asyncio.Queue[None] = asyncio.Queue()
    async with serving(on_close=lambda _: closed.put_nowait(None)) as served:
        assert served.server.connections == []
        first, _ = await served.client(), await served.client()
        assert len(served.server.connections) == 2
        assert all(isinstance(session, Session) for session in served.server.connections)
        await first.say("QUIT")
        await first.eof()
        await asyncio.wait_for(closed.get(), TIMEOUT)
        for _ in range(100):
            if len(served.server.connections) == 1:
                break
            await asyncio.sleep(0.01)
        assert len(served.server.connections) == 1


# --- The end


@on_both_loops
async def test_close_ends_idle_sessions_at_once() -> None:
    async with serving(close_timeout=30) as served:
        idle, said_hello, secured = await served.client(), await served.hello(), await served.hello()
        await secured.starttls(careless())
        forever = asyncio.create_task(served.server.serve_forever())
        began = time.monotonic()
        await asyncio.wait_for(served.server.close(), TIMEOUT)
        assert time.monotonic() - began < 3
        for client in (idle, said_hello, secured):
            assert await client.hear() == "421 Server shutting down"
            await client.eof()
        await asyncio.wait_for(forever, TIMEOUT)
        assert served.server.connections == []
        with pytest.raises(OSError):  # noqa: PT011 - refused, or reset
            await Client.open(("127.0.0.1", said_hello.writer.get_extra_info("peername")[1]))


async def test_close_is_quick_while_nothing_was_said_under_implicit_tls() -> None:
    async with serving(secure=True) as served:
        await served.connect()
        await asyncio.wait_for(served.server.close(), TIMEOUT)


@on_both_loops
async def test_a_running_transaction_finishes() -> None:
    inbox = Inbox()
    async with serving(on_data=inbox, close_timeout=30) as served:
        begun, sending = await served.hello(), await served.hello()
        await begun.envelope()
        await sending.envelope()
        assert (await sending.command("DATA")).code == 354
        await sending.send(b"half\r\n")
        closing = asyncio.create_task(served.server.close())
        idle = asyncio.create_task(asyncio.sleep(0))
        await idle
        assert await begun.say("RCPT TO:<b@example.com>") == "250 Accepted"
        assert str(await begun.data(b"hello\r\n")) == "250 OK: message queued"
        assert await begun.hear() == "421 Server shutting down"
        await begun.eof()
        await sending.send(b"whole\r\n.\r\n")
        assert await sending.hear() == "250 OK: message queued"
        assert await sending.hear() == "421 Server shutting down"
        await sending.eof()
        await asyncio.wait_for(closing, TIMEOUT)
    assert [message.content for message in inbox] == [b"hello\r\n", b"half\r\nwhole\r\n"]


@pytest.mark.parametrize("end", ["RSET", "EHLO client.example"])
async def test_an_aborted_transaction_ends_it_too(end: str) -> None:
    async with serving(close_timeout=30) as served:
        client = await served.hello()
        await client.envelope()
        closing = asyncio.create_task(served.server.close())
        await asyncio.sleep(0)
        assert (await client.command(end)).code == 250
        assert await client.hear() == "421 Server shutting down"
        await client.eof()
        await asyncio.wait_for(closing, TIMEOUT)


@pytest.mark.promises("Nothing is lost", "A signal to end lets running transactions finish; idle clients get 421.")
@pytest.mark.parametrize("hang", ["handler", "data", "connect"])
async def test_close_timeout_cuts(hang: str) -> None:
    reached = asyncio.Event()

    async def waiting(*_: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    async def reading(stream: MessageStream, session: Session) -> None:
        reached.set()
        await stream.read()

    hooks = {"handler": ("on_rcpt_to", waiting), "data": ("on_data", reading), "connect": ("on_connect", waiting)}
    name, function = hooks[hang]
    async with serving(close_timeout=0.2, **{name: function}) as served:
        client = await served.connect()
        if hang != "connect":
            await client.reply()
            await client.ehlo()
            await client.say("MAIL FROM:<a@example.com>")
            await client.send(b"RCPT TO:<b@example.com>\r\n")
        if hang == "data":
            await client.reply()
            assert (await client.command("DATA")).code == 354
            await client.send(b"half\r\n")
        await asyncio.wait_for(reached.wait(), TIMEOUT)
        began = time.monotonic()
        closing = asyncio.create_task(served.server.close())
        assert await client.hear() == "421 Server shutting down"
        await client.eof()
        await asyncio.wait_for(closing, TIMEOUT)
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("why", ["bad PROXY header", "too many clients", "too soon", "out of turn"])
async def test_close_while_the_last_reply_is_on_its_way(why: str) -> None:
    """Who was refused with input unread is still read for a moment, so that no reset destroys the reply."""
    options: dict[str, Any] = {"use_proxy": True} if why == "bad PROXY header" else {}
    options |= {"max_clients": 1} if why == "too many clients" else {}
    options |= {"greet_delay": TIMEOUT} if why == "too soon" else {}
    async with serving(**options) as served:
        if why == "too many clients":
            await served.client()
        client = await (served.hello() if why == "out of turn" else served.connect())
        await client.send(b"EHLO client.example\r\nNOOP\r\n")
        assert (await client.line())[:3] in (b"421", b"554", b"* B")
        began = time.monotonic()
        await asyncio.wait_for(served.server.close(), TIMEOUT)
        assert time.monotonic() - began < 3
        await client.eof()


async def test_close_twice_and_from_two_places() -> None:
    async with serving() as served:
        await asyncio.wait_for(asyncio.gather(served.server.close(), served.server.close()), TIMEOUT)
        await served.server.close()
        with pytest.raises(RuntimeError, match="closed"):
            await served.server.listen(0, "127.0.0.1")
        assert served.server.addresses == []


async def test_a_server_that_never_listened_closes() -> None:
    async with SMTPServer(**BASE) as server:
        with pytest.raises(RuntimeError, match="listen"):
            await server.serve_forever()


async def test_async_with_closes() -> None:
    async with SMTPServer(**BASE) as server:
        address = await server.listen(0, "127.0.0.1")
        client = await Client.open(address)
        await client.reply()
    assert await client.hear() == "421 Server shutting down"
    await client.eof()
    await client.close()


async def test_on_close_is_called_for_all_when_the_server_closes() -> None:
    closed: list[str] = []
    async with serving(on_close=lambda session: closed.append(session.id)) as served:
        for _ in range(3):
            await served.client()
        ids = {session.id for session in served.server.connections}
        await served.server.close()
    assert set(closed) == ids
    assert len(closed) == 3


@on_both_loops
async def test_update_secure_context_reaches_every_listener_but_no_open_connection() -> None:
    async with SMTPServer(**BASE, **pem("old.example.net")) as server:
        addresses = [await server.listen(0, "127.0.0.1", secure=secure) for secure in (False, True)]
        open_one = await Client.open(addresses[1], trusting(), "old.example.net")
        assert (await open_one.reply()).code == 220
        server.update_secure_context(**pem("new.example.net"))
        assert await open_one.say("NOOP") == "250 OK"
        assert names_in(open_one) == {"old.example.net"}
        await open_one.close()
        plain = await Client.open(addresses[0])
        await plain.reply()
        await plain.starttls(trusting(), "new.example.net")
        assert await plain.say("NOOP") == "250 OK"
        await plain.close()
        implicit = await Client.open(addresses[1], trusting(), "new.example.net")
        assert (await implicit.reply()).code == 220
        await implicit.close()


# --- run()

PROGRAM = """
import sys
from pillarbox import SMTPServer

class Printing(SMTPServer):
    async def listen(self, *given, **more):
        bound = await super().listen(*given, **more)
        print(bound if isinstance(bound, str) else bound[1], flush=True)
        return bound

    async def on_data(self, stream, session):
        print("message", len(await stream.read()), flush=True)

Printing(auth_optional=True, disable_reverse_lookup=True, close_timeout=float(sys.argv[1])).run(0, "127.0.0.1")
print("returned", flush=True)
"""


@contextmanager
def running(close_timeout: float = 10) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(close_timeout)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, ("127.0.0.1", int(process.stdout.readline()))
        finally:
            process.kill()


@pytest.mark.promises("Nothing is lost", "A signal to end lets running transactions finish; idle clients get 421.")
@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_run_drains_and_returns_on_a_signal(number: signal.Signals) -> None:
    with running() as (process, address):
        async with talking(address) as idle, talking(address) as busy:
            await busy.ehlo()
            await busy.envelope()
            process.send_signal(number)
            assert await idle.hear() == "421 Server shutting down"
            await idle.eof()
            assert str(await busy.data(b"hello\r\n")) == "250 OK: message queued"
            assert await busy.hear() == "421 Server shutting down"
            await busy.eof()
        out, err = await asyncio.to_thread(process.communicate, timeout=TIMEOUT)
        assert out == "message 7\nreturned\n"
        assert err == ""
        assert process.returncode == 0


@posix
async def test_a_second_signal_ends_run_at_once() -> None:
    with running(close_timeout=60) as (process, address):
        async with talking(address) as idle, talking(address) as busy:
            await busy.ehlo()
            await busy.envelope()
            process.send_signal(signal.SIGTERM)
            assert await idle.hear() == "421 Server shutting down"
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.communicate, timeout=TIMEOUT)
            assert process.returncode == -signal.SIGTERM
