"""Thousands of clients that read or write as slowly as they can, and honest ones among them.

``PILLARBOX_SLOW=8000 pytest tests/faults/test_slow.py`` takes so many. ``python tests/faults/test_slow.py`` prints what
each kind costs, and what honest clients notice.
"""

from __future__ import annotations

import os
import smtplib
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pillarbox.net.descriptors import raise_limit

COUNT = int(os.environ.get("PILLARBOX_SLOW", "2000"))
TICK = 0.1  # seconds between two bytes
WINDOW = 3.0  # seconds in which the honest ones are watched
TIMEOUT = 10.0
HONEST = 4
RECEIVE_BUFFER = 4096  # what a client that does not read lets the kernel take for it, at least
# What one of them may cost the server's process, on the average over all kinds; a TLS session on asyncio's loop has
# buffers of 277 KiB.
MOST_MEMORY = 160 * 1024

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows lets a process have too few sockets"),
    pytest.mark.timeout(300),
]

# argv: the loop, and options. Ends when its standard input does.
PROGRAM = """
import asyncio, socket, sys
from pillarbox import SMTPServer

HELP = "x" * 4000  # long, so that few commands have many replies

async def on_data(stream, session):
    async for _ in stream:
        pass

def small(port=0):
    sock = socket.create_server(("127.0.0.1", port), backlog=1024)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that it is the process that keeps the replies
    return sock

async def main():
    async with SMTPServer(
        on_data=on_data, on_auth=lambda *_: True, on_help=lambda *_: HELP, auth_optional=True, allow_insecure_auth=True,
        disable_reverse_lookup=True, close_timeout=0, **eval(sys.argv[2]),
    ) as server:
        plain = await server.listen(sock=small())
        implicit = await server.listen(0, "127.0.0.1", secure=True)
        print(plain[1], implicit[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

if sys.argv[1] == "uvloop":
    import uvloop
with asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[1] == "uvloop" else None) as runner:
    runner.run(main())
"""


class Server:
    """The server's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.plain, self.implicit = map(int, process.stdout.readline().split())

    def memory(self) -> int:
        """Return what of it is in memory, in octets; 0 where the system does not say."""
        status = Path(f"/proc/{self.process.pid}/statm")
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0

    def processor_time(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(loop_name: str, **options: Any) -> Iterator[Server]:
    if loop_name == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed here")
    raise_limit()  # of the clients' process: this one
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, loop_name, repr(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Server(process)
            _, problems = process.communicate(timeout=3 * TIMEOUT)
            assert not problems, problems
            assert process.returncode == 0
        finally:
            process.kill()


# --- The slow ones


class Slow:
    """A client of one kind: ``script`` brings it where it begins to be slow, with the replies it waits for."""

    script: tuple[tuple[bytes, bytes], ...] = ()
    implicit = False

    def __init__(self, server: Server) -> None:
        self.ended = False
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(("127.0.0.1", server.implicit if self.implicit else server.plain))
        if not self.implicit:
            self._expect(b"220 ")
            self._say(b"EHLO client.example", b"250 ")
        for command, code in self.script:
            self._say(command, code)
        self.socket.setblocking(False)

    def _say(self, command: bytes, code: bytes) -> None:
        self.socket.sendall(command + b"\r\n")
        self._expect(code)

    def _expect(self, code: bytes) -> None:
        heard = b""
        while not heard.endswith(b"\r\n") or heard.splitlines()[-1][:4] != code:
            octets = self.socket.recv(4096)
            assert octets, heard
            heard += octets

    def tick(self) -> None:
        """Be slow once more."""
        if not self.ended:
            try:
                self.act()
            except BlockingIOError:
                pass
            except OSError:  # closed, and with what it had not read yet a reset
                self.ended = True

    def act(self) -> None:
        raise NotImplementedError


class Writer(Slow):
    """Sends a byte at a time, and looks whether it is still wanted."""

    octet = b"x"

    def act(self) -> None:
        self.socket.send(self.octet)
        self.ended = not self.socket.recv(4096)


class Command(Writer):
    """In the middle of a command that does not end."""

    script = ((b"NOOP", b"250 "),)


class Auth(Writer):
    """In the answer to a challenge."""

    script = ((b"AUTH LOGIN", b"334 "),)


class Data(Writer):
    """In a message."""

    script = ((b"MAIL FROM:<a@example.com>", b"250 "), (b"RCPT TO:<b@example.com>", b"250 "), (b"DATA", b"354 "))


class Chunk(Writer):
    """In a chunk of a message."""

    script = ((b"MAIL FROM:<a@example.com>", b"250 "), (b"RCPT TO:<b@example.com>", b"250 "))

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.socket.send(b"BDAT 1000000 LAST\r\n")


class Handshake(Slow):
    """In the first message of a handshake."""

    implicit = True

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._hello = iter(client_hello())

    def act(self) -> None:
        self.socket.send(bytes([next(self._hello)]))
        self.ended = not self.socket.recv(4096)


class StartTLS(Handshake):
    """The same behind STARTTLS."""

    implicit = False
    script = ((b"STARTTLS", b"220 "),)


class NeverReads(Slow):
    """Sends commands and reads none of their replies."""

    wanted = 0

    def act(self) -> None:
        with suppress(BlockingIOError):
            while self.socket.send(b"HELP\r\n" * 1000):
                pass
        if self.wanted:
            self.ended = not self.socket.recv(self.wanted)
        elif self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.ended = True


class ReadsBytes(NeverReads):
    """Sends commands and reads their replies by the byte."""

    wanted = 1


READERS: tuple[type[Slow], ...] = (NeverReads, ReadsBytes)
HANDSHAKES: tuple[type[Slow], ...] = (Handshake, StartTLS)
WRITERS: tuple[type[Slow], ...] = (Command, Auth, Data, Chunk)
KINDS = WRITERS + READERS + HANDSHAKES
# What ends them: `command_timeout` a command and an answer of AUTH, `min_data_rate` a message, `reply_timeout` who does
# not read, `handshake_timeout` a handshake. `socket_timeout` ends none, since none is silent, but is what the rate is
# averaged over.
PATIENCE = 5.0
LIMITS = dict.fromkeys(("socket_timeout", "command_timeout", "reply_timeout", "handshake_timeout"), PATIENCE)
NO_LIMITS = dict.fromkeys((*LIMITS, "min_data_rate"))


def client_hello() -> bytes:
    """Return what a client's handshake begins with."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    connection = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


class Swarm:
    """All the slow ones; they are slow from their first moment on."""

    def __init__(self) -> None:
        self.clients: list[Slow] = []
        self._next = 0.0

    def grow(self, server: Server, kinds: tuple[type[Slow], ...], count: int) -> None:
        for number in range(count):
            self.clients.append(kinds[number % len(kinds)](server))
            self.tick()

    def tick(self) -> None:
        """Be slow, if it is time."""
        if time.monotonic() >= self._next:
            for client in self.clients:
                client.tick()
            self._next = time.monotonic() + TICK

    def until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Go on until it is so, or the time is over; tell which."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                return False
            self.tick()
            time.sleep(TICK / 10)
        return True

    def left(self, kinds: tuple[type[Slow], ...]) -> int:
        return sum(isinstance(client, kinds) and not client.ended for client in self.clients)

    def close(self) -> None:
        for client in self.clients:
            client.socket.close()


# --- The honest ones


class Honest(threading.Thread):
    """Delivers messages, each over a connection of its own, and notes how long each took."""

    def __init__(self, server: Server, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._port, self._stopped = server.plain, stop
        self.took: list[float] = []
        self.problem: Exception | None = None

    def run(self) -> None:
        try:
            while not self._stopped.is_set():
                began = time.monotonic()
                with smtplib.SMTP("127.0.0.1", self._port, "client.example", TIMEOUT) as client:
                    client.sendmail("a@example.com", ["b@example.com"], "Subject: x\r\n\r\nHello\r\n")
                self.took.append(time.monotonic() - began)
        except (OSError, smtplib.SMTPException) as problem:
            self.problem = problem


@contextmanager
def honest(server: Server) -> Iterator[list[Honest]]:
    """Let honest clients come and go meanwhile."""
    stop = threading.Event()
    clients = [Honest(server, stop) for _ in range(HONEST)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        stop.set()
        for client in clients:
            client.join(TIMEOUT)


def warmed_up(server: Server) -> None:
    with honest(server) as clients:
        while not all(client.took or client.problem for client in clients):
            time.sleep(TICK / 10)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    with smtplib.SMTP_SSL("127.0.0.1", server.implicit, "client.example", timeout=TIMEOUT, context=tls) as client:
        client.noop()


@pytest.mark.promises("Limits", "Thousands of slow clients do not keep honest ones from being served.")
@pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])
def test_slow_clients_cost_little_and_hold_up_nobody(loop_name: str) -> None:
    swarm = Swarm()
    with running(loop_name, **LIMITS) as server:
        warmed_up(server)
        before = server.memory()
        most = before

        def watched() -> bool:
            nonlocal most
            most = max(most, server.memory())
            return False

        try:
            with honest(server) as clients:
                swarm.grow(server, KINDS, COUNT)
                swarm.until(watched, WINDOW)
                served = [len(client.took) for client in clients]
                assert swarm.until(lambda: not swarm.left(KINDS), 4 * TIMEOUT), {
                    kind.__name__: swarm.left((kind,)) for kind in KINDS
                }
            assert [client.problem for client in clients] == [None] * HONEST
            assert min(served) > 5, served
            assert (most - before) / COUNT < MOST_MEMORY
        finally:
            swarm.close()


# --- The figures


def figures(loop_name: str, kind: type[Slow] | None, count: int) -> str:
    """Return a row: what clients of a kind cost, and how honest ones fare beside them."""
    swarm = Swarm()
    with running(loop_name, **NO_LIMITS) as server:
        warmed_up(server)
        before = server.memory()
        if kind is not None:
            swarm.grow(server, (kind,), count)
        swarm.until(lambda: False, 1)
        memory = (server.memory() - before) / count / 1024
        busy = server.processor_time()
        swarm.until(lambda: False, WINDOW)
        busy = (server.processor_time() - busy) / WINDOW
        with honest(server) as clients:
            swarm.until(lambda: False, WINDOW)
        took = [1000 * seconds for client in clients for seconds in client.took]
        swarm.close()
    name = "nobody" if kind is None else kind.__name__
    return (
        f"{loop_name:8} {name:11} {memory:6.1f} KiB each, processor {100 * busy:3.0f} %,"
        f" honest: {len(took):5} messages, median {statistics.median(took):5.1f} ms, worst {max(took):6.1f} ms"
    )


if __name__ == "__main__":
    for each_loop in ("asyncio", "uvloop"):
        for each_kind in (None, *KINDS):
            print(figures(each_loop, each_kind, COUNT), flush=True)  # noqa: T201
