"""The end of a server with clients in every phase: what runs is finished, nothing begins, nothing is half-written."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pillarbox import AuthRequest, MessageStream, Session, SMTPServer
from program import Program, Start
from support import TIMEOUT, Client, Inbox, careless, on_both_loops, serving

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
SLOW = "slow@example.com"  # the handler takes its time over the messages of this one
EACH = 5  # so many clients are in each phase
DOWN = "421 Server shutting down"
QUEUED = "250 OK: message queued"
HALF, REST = b"Subject: x\r\n\r\nhalf\r\n", b"whole\r\n"
Address = tuple[str, int]
Finish = Callable[[Client], Awaitable[None]]


# --- Phases: how a client gets there, and what it must see once the server closes


async def hears_421(client: Client) -> None:
    assert await client.hear() == DOWN
    await client.eof()


async def hears_nothing(client: Client) -> None:
    assert await client.rest() == b""


async def greeted(client: Client) -> Finish:
    assert (await client.reply()).code == 220
    return hears_421


async def idle(client: Client) -> Finish:
    await greeted(client)
    await client.ehlo()
    return hears_421


async def mid_command(client: Client) -> Finish:
    await idle(client)
    await client.send(b"MAIL FROM:<a@exam")
    return hears_421


async def mid_auth(client: Client) -> Finish:
    await idle(client)
    assert (await client.command("AUTH LOGIN")).code == 334
    return hears_421


async def after_a_message(client: Client) -> Finish:
    await idle(client)
    assert await client.deliver() == QUEUED
    return hears_421


async def in_envelope(client: Client) -> Finish:
    await idle(client)
    await client.envelope()

    async def finish(client: Client) -> None:
        assert await client.say("RCPT TO:<second@example.com>") == "250 Accepted"
        assert str(await client.data(HALF + REST)) == QUEUED
        await hears_421(client)

    return finish


async def in_data(client: Client) -> Finish:
    await idle(client)
    return await half_sent(client)


async def half_sent(client: Client) -> Finish:
    await client.envelope()
    assert (await client.command("DATA")).code == 354
    await client.send(HALF)

    async def finish(client: Client) -> None:
        await client.send(REST + b".\r\n")
        assert await client.hear() == QUEUED
        await hears_421(client)

    return finish


async def between_chunks(client: Client) -> Finish:
    await idle(client)
    await client.envelope()
    await client.send(b"BDAT %d\r\n%b" % (len(HALF), HALF))
    assert (await client.reply()).code == 250

    async def finish(client: Client) -> None:
        await client.send(b"BDAT %d LAST\r\n%b" % (len(REST), REST))
        assert await client.hear() == QUEUED
        await hears_421(client)

    return finish


async def in_a_chunk(client: Client) -> Finish:
    await idle(client)
    await client.envelope()
    await client.send(b"BDAT %d LAST\r\n%b" % (len(HALF + REST), HALF))

    async def finish(client: Client) -> None:
        await client.send(REST)
        assert await client.hear() == QUEUED
        await hears_421(client)

    return finish


async def answer_due(client: Client) -> Finish:
    await idle(client)
    await client.envelope(SLOW)
    assert (await client.command("DATA")).code == 354
    await client.send(HALF + REST + b".\r\n")

    async def finish(client: Client) -> None:
        assert await client.hear() == QUEUED
        await hears_421(client)

    return finish


async def mid_handshake(client: Client) -> Finish:
    await idle(client)
    assert await client.say("STARTTLS") == "220 Ready to start TLS"
    return hears_nothing


async def under_tls(client: Client) -> Finish:
    await idle(client)
    await client.starttls(careless())
    await client.ehlo()
    return await half_sent(client)


async def connected(client: Client) -> Finish:
    """Perhaps only in the backlog."""

    async def finish(client: Client) -> None:
        heard = b""
        with suppress(ConnectionError):  # it was never accepted
            heard = await client.rest()
        assert heard in (b"", b"421 Server shutting down\r\n") or heard.startswith(b"220 ")

    return finish


Phase = Callable[[Client], Awaitable[Finish]]
OUTSIDE: tuple[Phase, ...] = (greeted, idle, mid_command, mid_auth, mid_handshake)
STORED: tuple[Phase, ...] = (after_a_message, in_envelope, in_data, between_chunks, in_a_chunk, answer_due, under_tls)


@asynccontextmanager
async def clients(address: Address, implicit_tls: Address | None = None) -> AsyncIterator[list[tuple[Client, Finish]]]:
    """Bring clients into every phase."""
    async with AsyncExitStack() as closing:
        there = []
        for _ in range(EACH):
            for phase in OUTSIDE + STORED:
                client = await Client.open(address)
                closing.push_async_callback(client.close)
                there.append((client, await phase(client)))
            if implicit_tls is not None:
                client = await Client.open(implicit_tls)  # its handshake never begins
                closing.push_async_callback(client.close)
                there.append((client, hears_nothing))
        for _ in range(EACH):
            client = await Client.open(address)
            closing.push_async_callback(client.close)
            there.append((client, await connected(client)))
        yield there


async def finished(there: list[tuple[Client, Finish]]) -> None:
    await asyncio.gather(*(finish(client) for client, finish in there))


async def nobody_gets_in(address: Address) -> None:
    """New connections are refused, by the kernel or with 421: none of them hangs."""
    for _ in range(EACH):
        with suppress(OSError):
            client = await Client.open(address)
            try:
                assert await client.rest() in (b"", b"421 Server shutting down\r\n")
            finally:
                await client.close()


# --- close() and async with


@pytest.mark.promises("Nothing is lost", "A signal to end lets running transactions finish; idle clients get 421.")
@on_both_loops
async def test_close_with_clients_in_every_phase() -> None:
    inbox, go = Inbox(), asyncio.Event()

    async def on_data(stream: MessageStream, session: Session) -> None:
        await inbox(stream, session)
        if str(session.envelope.mail_from) == SLOW:
            await asyncio.wait_for(go.wait(), TIMEOUT)

    async with serving(on_data=on_data, on_auth=lambda *_: True, allow_insecure_auth=True, close_timeout=30) as served:
        implicit = await served.server.listen(0, "127.0.0.1", secure=True)
        assert isinstance(implicit, tuple)
        address = served.address
        async with clients(address, implicit) as there:
            closing = asyncio.create_task(served.server.close())
            await asyncio.sleep(0)
            go.set()
            await finished(there)
            await asyncio.wait_for(closing, TIMEOUT)
            await nobody_gets_in(address)
    assert len(inbox) == EACH * len(STORED)


@on_both_loops
async def test_what_is_not_done_in_time_is_cut_off_and_not_delivered() -> None:
    inbox = Inbox()
    options: dict[str, Any] = {"on_auth": lambda *_: True, "allow_insecure_auth": True, "close_timeout": 0.2}
    async with serving(on_data=inbox, **options) as served, clients(served.address) as there:
        done = len(inbox)
        await asyncio.wait_for(served.server.close(), TIMEOUT)
        for client, _ in there:
            heard = b""
            with suppress(ConnectionError):
                heard = await client.rest()
            assert not heard or heard.endswith(b"421 Server shutting down\r\n"), heard
    assert len(inbox) == done


@pytest.mark.parametrize("hook", ["on_data", "on_rcpt_to", "on_connect", "on_auth"])
@on_both_loops
async def test_a_handler_that_closes_the_server_is_not_waited_for_by_itself(hook: str) -> None:
    async def closing(*_: Any) -> bool:
        await server.close()
        return True

    base = {"auth_optional": True, "disable_reverse_lookup": True, "allow_insecure_auth": True, "close_timeout": 60}
    server = SMTPServer({**base, hook: closing})
    address = await server.listen(0, "127.0.0.1")
    client = await Client.open(address)
    await (greeted if hook == "on_connect" else idle)(client)
    if hook in ("on_data", "on_rcpt_to"):
        assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"
        assert await client.say("RCPT TO:<b@example.com>") == "250 Accepted"
        assert str(await client.data(HALF)) == QUEUED
    if hook == "on_auth":
        assert await client.say("AUTH PLAIN AGFubgBzZWNyZXQ=") == "235 Authentication successful"
    assert await client.hear() == DOWN
    await client.eof()
    await asyncio.wait_for(server.serve_forever(), TIMEOUT)
    await client.close()


# --- Signals to run() and asyncio.run()

PROGRAM = """
import asyncio, sys, time
from pillarbox import SMTPServer

class Server(SMTPServer):
    stored = 0

    async def listen(self, *given, **more):
        bound = await super().listen(*given, **more)
        if not more:
            implicit = await self.listen(0, "127.0.0.1", secure=True)
            print(bound[1], implicit[1], flush=True)
        return bound

    async def on_auth(self, auth, session):
        return True

    async def on_rcpt_to(self, address, session):
        if address.address == "block@example.com":
            time.sleep(60)

    async def on_data(self, stream, session):
        await stream.read()
        if session.envelope.mail_from.address == "slow@example.com":
            await asyncio.sleep(1)
        self.stored += 1

async def main():
    async with server:
        await server.listen(0, "127.0.0.1")
        await server.serve_forever()

how, loop_name, close_timeout = sys.argv[1:]
if loop_name == "asyncio":
    sys.modules["uvloop"] = None
server = Server(
    auth_optional=True, disable_reverse_lookup=True, allow_insecure_auth=True, close_timeout=float(close_timeout)
)
if how == "run":
    server.run(0, "127.0.0.1")
else:
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("interrupted", end=" ")
print("stored", server.stored, flush=True)
"""

Running = tuple["subprocess.Popen[str]", Address, Address]


@asynccontextmanager
async def running(how: str = "run", loop_name: str = "uvloop", close_timeout: float = 30) -> AsyncIterator[Running]:
    if loop_name == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed here")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, how, loop_name, str(close_timeout)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            plain, implicit = map(int, process.stdout.readline().split())
            yield process, ("127.0.0.1", plain), ("127.0.0.1", implicit)
        finally:
            process.kill()


async def output(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for the end of a process."""
    return await asyncio.to_thread(process.communicate, timeout=4 * TIMEOUT)


both = pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])


@pytest.mark.promises("Nothing is lost", "A signal to end lets running transactions finish; idle clients get 421.")
@posix
@both
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_run_with_clients_in_every_phase(loop_name: str, number: signal.Signals) -> None:
    async with running(loop_name=loop_name) as (process, address, implicit):
        async with clients(address, implicit) as there:
            process.send_signal(number)
            await finished(there)
            await nobody_gets_in(address)
        assert await output(process) == (f"stored {EACH * len(STORED)}\n", "")
        assert process.returncode == 0


@posix
@pytest.mark.parametrize("number", [signal.SIGINT])
async def test_async_with_under_ctrl_c(number: signal.Signals) -> None:
    """The first one cancels the main task, and leaving the block waits for what runs."""
    async with running("async with") as (process, address, implicit):
        async with clients(address, implicit) as there:
            process.send_signal(number)
            await finished(there)
        assert await output(process) == (f"interrupted stored {EACH * len(STORED)}\n", "")
        assert process.returncode == 0


@posix
async def test_a_second_ctrl_c_leaves_the_block_at_once() -> None:
    async with running("async with", close_timeout=600) as (process, address, _):
        client = await Client.open(address)
        await in_data(client)
        process.send_signal(signal.SIGINT)
        while True:  # until the first one has arrived
            with suppress(OSError):
                await (await Client.open(address)).close()
                continue
            break
        process.send_signal(signal.SIGINT)
        out, _ = await output(process)
        assert out == "interrupted stored 0\n"
        await client.close()


@pytest.mark.promises(
    "Nothing is lost", "A second signal ends at once, and leaves no half-written message to a reader."
)
@posix
@both
@pytest.mark.parametrize("blocked", [False, True])
async def test_a_second_signal_ends_run_at_once(loop_name: str, blocked: bool) -> None:
    """Also where a handler blocks the event loop, so that the first one has had no effect yet."""
    async with running(loop_name=loop_name, close_timeout=600) as (process, address, _):
        client = await Client.open(address)
        await in_data(client)
        busy = await Client.open(address)
        await idle(busy)
        if blocked:
            await busy.send(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<block@example.com>\r\n")
            await asyncio.sleep(0.2)  # nothing tells that a handler sleeps
        process.send_signal(signal.SIGTERM)
        if not blocked:
            assert await busy.hear() == DOWN
        else:
            await asyncio.sleep(0.2)  # two of a kind at once are one
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        await output(process)
        assert process.returncode == -signal.SIGINT
        assert time.monotonic() - began < TIMEOUT
        await client.close()
        await busy.close()


# --- The program

WITHOUT_UVLOOP = [
    sys.executable,
    "-c",
    "import sys; sys.modules['uvloop'] = None; from pillarbox.cli import main; main()",
]
MODULE = [sys.executable, "-m", "pillarbox"]
BIG = b"x" * 76 + b"\r\n"


def messages(folder: Path, name: str) -> list[Path]:
    return list((folder / "Maildir" / name).iterdir())


async def big(address: Address, closing: AsyncExitStack) -> Client:
    """Send so much of a message that a part of it is on the disk, and not its end."""
    client = await Client.open(address)
    closing.push_async_callback(client.close)
    await idle(client)
    await client.envelope()
    assert (await client.command("DATA")).code == 354
    await client.send(BIG * 10_000)
    return client


async def on_disk(folder: Path, count: int) -> None:
    for _ in range(500):
        if sum(path.stat().st_size > 0 for path in messages(folder, "tmp")) == count:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"not {count} files in tmp/, but {len(messages(folder, 'tmp'))}")


@pytest.mark.promises("Nothing is lost", "A signal to end lets running transactions finish; idle clients get 421.")
@posix
@pytest.mark.parametrize("command", [MODULE, WITHOUT_UVLOOP], ids=["uvloop", "asyncio"])
async def test_the_program_finishes_what_runs(start: Start, tmp_path: Path, command: list[str]) -> None:
    program = start("--listen", "127.0.0.1:0", "--set", "disable_reverse_lookup=true", command=command)
    address = ("127.0.0.1", program.port())
    async with AsyncExitStack() as closing:
        large = [await big(address, closing) for _ in range(EACH)]
        there = []
        for _ in range(EACH):
            for phase in (greeted, idle, mid_command, in_envelope, in_data, between_chunks, in_a_chunk, mid_handshake):
                client = await Client.open(address)
                closing.push_async_callback(client.close)
                there.append((client, await phase(client)))
        await on_disk(tmp_path, EACH)
        program.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(program.line, "^SIGTERM: ")
        await finished(there)
        await nobody_gets_in(address)
        for client in large:
            await client.send(BIG + b".\r\n")
            assert await client.hear() == QUEUED
            await hears_421(client)
    assert await asyncio.to_thread(program.wait) == 0
    assert len(messages(tmp_path, "new")) == EACH * 5
    assert not messages(tmp_path, "tmp")


@posix
@pytest.mark.parametrize("command", [MODULE, WITHOUT_UVLOOP], ids=["uvloop", "asyncio"])
async def test_after_close_timeout_the_program_leaves_nothing_half(
    start: Start, tmp_path: Path, command: list[str]
) -> None:
    program = start("--listen", "127.0.0.1:0", "--set", "close_timeout=0.3", command=command)
    address = ("127.0.0.1", program.port())
    async with AsyncExitStack() as closing:
        large = [await big(address, closing) for _ in range(EACH)]
        await on_disk(tmp_path, EACH)
        program.process.send_signal(signal.SIGTERM)
        for client in large:
            assert await client.hear() == DOWN
            await client.eof()
    assert await asyncio.to_thread(program.wait) == 0
    assert not messages(tmp_path, "new")
    assert not messages(tmp_path, "tmp")
    assert not [line for line in program.lines if "rror" in line or "Traceback" in line]


def started_again(start: Start) -> tuple[Program, Address]:
    program = start("--listen", "127.0.0.1:0")
    return program, ("127.0.0.1", program.port())


@pytest.mark.promises(
    "Nothing is lost", "A second signal ends at once, and leaves no half-written message to a reader."
)
@posix
async def test_a_second_signal_leaves_no_half_message_to_a_reader(start: Start, tmp_path: Path) -> None:
    program = start("--listen", "127.0.0.1:0", "--set", "close_timeout=600")
    address = ("127.0.0.1", program.port())
    async with AsyncExitStack() as closing:
        for _ in range(EACH):
            await big(address, closing)
        whole = await Client.open(address)
        closing.push_async_callback(whole.close)
        await after_a_message(whole)
        await on_disk(tmp_path, EACH)
        program.process.send_signal(signal.SIGTERM)
        await hears_421(whole)
        assert await asyncio.to_thread(program.end, signal.SIGTERM) == -signal.SIGTERM
    left = messages(tmp_path, "tmp")  # where no reader looks
    assert len(left) == EACH
    assert len(messages(tmp_path, "new")) == 1
    program, address = started_again(start)
    client = await Client.open(address)
    await after_a_message(client)
    await client.close()
    assert await asyncio.to_thread(program.end) == 0
    assert sorted(messages(tmp_path, "tmp")) == sorted(left)  # another program's delivery could be under way there
    assert len(messages(tmp_path, "new")) == 2
    for path in left:
        os.utime(path, (0, 0))
    program, _ = started_again(start)
    assert await asyncio.to_thread(program.end) == 0
    assert not messages(tmp_path, "tmp")
    assert len(messages(tmp_path, "new")) == 2


async def test_who_is_asked_is_told() -> None:
    """A request to log in that is being decided when the server closes gets its answer."""
    asked, decided = asyncio.Event(), asyncio.Event()

    async def on_auth(auth: AuthRequest, session: Session) -> bool:
        asked.set()
        await decided.wait()
        return True

    async with serving(on_auth=on_auth, allow_insecure_auth=True) as served:
        client = await served.hello()
        await client.send(b"AUTH PLAIN AGFubgBzZWNyZXQ=\r\n")
        await asked.wait()
        closing = asyncio.create_task(served.server.close())
        await asyncio.sleep(0)
        decided.set()
        assert await client.hear() == "235 Authentication successful"
        await hears_421(client)
        await asyncio.wait_for(closing, TIMEOUT)
