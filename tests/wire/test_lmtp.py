"""LMTP (RFC 2033) over a Unix socket: a reply for each recipient, as soon as it is known, in order."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pillarbox import MessageStream, Recipient, Reject, Session, SMTPServer
from support import TIMEOUT, Client, Inbox, internal_errors, on_both_loops, recorded

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no Unix sockets for asyncio")


@asynccontextmanager
async def lmtp(path: Path, **options: Any) -> AsyncIterator[Client]:
    """Yield a client that has said LHLO through a Unix socket to a server with enhanced codes."""
    chosen: dict[str, Any] = {"hide_enhanced_status_codes": False, "auth_optional": True, "lmtp": True, **options}
    with internal_errors() as found:
        async with SMTPServer(**chosen) as server:
            await server.listen(path=path / "lmtp")
            client = await Client.open(str(path / "lmtp"))
            assert (await client.reply()).code == 220
            extensions = await client.ehlo(verb="LHLO")
            # RFC 2033 5: what an LMTP server must have.
            assert {"PIPELINING", "ENHANCEDSTATUSCODES"} <= set(extensions)
            try:
                yield client
            finally:
                await client.close()
    assert not found, found


def begin(*recipients: str) -> bytes:
    lines = ["MAIL FROM:<from@example.com>", *(f"RCPT TO:<{recipient}@example.com>" for recipient in recipients)]
    return "".join(f"{line}\r\n" for line in lines).encode()


async def hear(client: Client, count: int) -> list[str]:
    return [await client.hear() for _ in range(count)]


async def nothing_said(client: Client) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.readexactly(1), 0.1)


@pytest.mark.parametrize("kind", ["tasks", "coroutines", "futures"])
@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
@on_both_loops
async def test_replies_leave_one_by_one(kind: str, verb: str, tmp_path: Path) -> None:
    turns = [asyncio.Event() for _ in range(3)]

    async def deliver(number: int) -> object:
        await turns[number].wait()
        return [None, "second", Reject(552, "Mailbox full", enhanced="5.2.2")][number]

    async def on_data(stream: MessageStream, session: Session) -> list[Any]:
        await stream.read()
        coroutines = [deliver(number) for number in range(3)]
        if kind == "coroutines":
            return coroutines
        return [asyncio.create_task(each) if kind == "tasks" else asyncio.gather(each) for each in coroutines][:3]

    async with lmtp(tmp_path, on_data=on_data if kind != "futures" else _with_futures(turns)) as client:
        if verb == "DATA":
            await client.send(begin("a", "b", "c") + b"DATA\r\n")
            assert (await hear(client, 5))[-1].startswith("354 ")
            await client.send(b"hello\r\n.\r\n")
        else:
            await client.send(begin("a", "b", "c") + b"BDAT 7 LAST\r\nhello\r\n")
            await hear(client, 4)
        turns[1].set()  # the second is known, but the first comes first
        await nothing_said(client)
        turns[0].set()
        assert await client.hear() == "250 2.6.0 OK: message accepted"
        assert await client.hear() == "250 2.6.0 second"
        await nothing_said(client)
        turns[2].set()
        assert await client.hear() == "552 5.2.2 Mailbox full"
        assert await client.say("NOOP") == "250 2.0.0 OK"


def _with_futures(turns: list[asyncio.Event]) -> Any:
    """Return an ``on_data`` whose list holds plain futures that something else completes."""
    answers: list[object] = [None, "second", Reject(552, "Mailbox full", enhanced="5.2.2")]
    workers: list[asyncio.Task[None]] = []

    async def work(turn: asyncio.Event, future: asyncio.Future[object], answer: object) -> None:
        await turn.wait()
        future.set_result(answer)

    async def on_data(stream: MessageStream, session: Session) -> list[Any]:
        await stream.read()
        futures = [asyncio.get_running_loop().create_future() for _ in answers]
        workers.extend(asyncio.create_task(work(*each)) for each in zip(turns, futures, answers, strict=True))
        return futures

    return on_data


async def test_a_recipient_given_twice_has_two_replies(tmp_path: Path) -> None:
    inbox = Inbox()
    async with lmtp(tmp_path, on_data=inbox) as client:
        await client.send(begin("a", "b", "a") + b"BDAT 0 LAST\r\nNOOP\r\n")
        assert await hear(client, 4) == ["250 2.1.0 Accepted"] + ["250 2.1.5 Accepted"] * 3
        assert await hear(client, 4) == ["250 2.6.0 OK: message accepted"] * 3 + ["250 2.0.0 OK"]
    assert inbox[0].recipients == ["a@example.com", "b@example.com", "a@example.com"]


def refuse_some(address: Recipient, session: Session) -> None:
    if address.address.startswith("no"):
        raise Reject


async def test_whole_transactions_sent_ahead(tmp_path: Path) -> None:
    """RFC 2033 4.2 and 4.3 let a client count: a reply for each recipient that was accepted."""
    inbox = Inbox()
    async with lmtp(tmp_path, on_data=inbox, on_rcpt_to=refuse_some) as client:
        await client.send(
            begin("a", "no", "b") + b"BDAT 3\r\nabcBDAT 3 LAST\r\ndef" + begin("c") + b"BDAT 1 LAST\r\nx" + begin("d")
        )
        codes = [int(line[:3]) for line in await hear(client, 4 + 1 + 2 + 2 + 1 + 2)]
        assert codes == [250, 250, 550, *[250] * 9]
    assert [message.content for message in inbox] == [b"abcdef", b"x"]
    assert [message.recipients for message in inbox] == [["a@example.com", "b@example.com"], ["c@example.com"]]


async def test_data_without_a_recipient_is_refused(tmp_path: Path) -> None:
    async with lmtp(tmp_path, on_rcpt_to=refuse_some) as client:
        await client.send(begin("no"))
        assert [line[:3] for line in await hear(client, 2)] == ["250", "550"]
        assert await client.say("DATA") == "503 5.5.1 Error: need RCPT command"
        assert await client.say("NOOP") == "250 2.0.0 OK"


async def test_the_last_chunk_without_a_recipient_has_no_reply(tmp_path: Path) -> None:
    inbox = Inbox()
    async with lmtp(tmp_path, on_rcpt_to=refuse_some, on_data=inbox) as client:
        await client.send(begin("no", "no") + b"BDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nQUIT\r\nRSET\r\n" + begin("a"))
        heard = await hear(client, 7)
        assert [line[:3] for line in heard] == ["250", "550", "550", "503", "250", "250", "250"]
        assert heard[4] == "250 2.0.0 Flushed"
        await client.send(b"BDAT 1 LAST\r\nx")
        assert await client.hear() == "250 2.6.0 OK: message accepted"
    assert [message.content for message in inbox] == [b"x"]


async def test_before_lhlo_a_last_chunk_is_refused_once(tmp_path: Path) -> None:
    async with lmtp(tmp_path) as client:
        other = await Client.open(str(tmp_path / "lmtp"))
        assert (await other.reply()).code == 220
        await other.send(b"BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n")
        assert await hear(other, 2) == ["503 5.5.1 Error: send LHLO first", "250 2.0.0 OK"]
        await other.close()
        assert (await client.command("NOOP")).code == 250


async def test_a_refused_chunk_and_the_last_one_behind_it(tmp_path: Path) -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        raise Reject(554, "No", enhanced="5.7.1")

    async with lmtp(tmp_path, on_data=on_data) as client:
        await client.send(begin("a", "b") + b"BDAT 3\r\nabcBDAT 3\r\nabcBDAT 3 LAST\r\ndefNOOP\r\n")
        assert [line[:3] for line in await hear(client, 3)] == ["250"] * 3
        assert await hear(client, 5) == [
            "554 5.7.1 No",
            "503 5.5.1 Error: the message was refused, send RSET",
            *["503 5.5.1 Error: the message was refused, send RSET"] * 2,
            "250 2.0.0 OK",
        ]


# --- Awaitables that nobody waits for


class Deliveries:
    """A coroutine, a task and a future for each message, and what became of them."""

    def __init__(self, then: BaseException | None = None, *, reads: bool = True, extra: int = 0) -> None:
        self.begun: list[str] = []
        self.made: list[Any] = []
        self._then = then
        self._reads = reads
        self._extra = extra

    async def _deliver(self, name: str) -> None:
        self.begun.append(name)
        await asyncio.Event().wait()

    async def __call__(self, stream: MessageStream, session: Session) -> list[Any]:
        try:
            if self._reads:
                await stream.read()
        except (ConnectionError, Reject):
            pass
        task = asyncio.create_task(self._deliver("task"))
        future = asyncio.get_running_loop().create_future()
        self.made = [task, future]
        return [self._deliver("coroutine"), task, future][: 3 + self._extra]

    async def check(self) -> None:
        """See that all were let go of; a coroutine that was not would warn, which fails a test."""
        for _ in range(100):
            if len(self.made) == 2 and all(each.done() for each in self.made):
                break
            await asyncio.sleep(0.02)
        assert [each.cancelled() for each in self.made] == [True, True]
        assert "coroutine" not in self.begun


@pytest.mark.promises("Nothing is lost", "A client that disappears within a message leaves no message.")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("said", [b"DATA\r\nhalf", b"BDAT 10 LAST\r\nhalf", b"BDAT 4\r\nhalf"])
@pytest.mark.parametrize("reads", [True, False])
async def test_a_client_that_goes_leaves_nothing_to_deliver(said: bytes, reads: bool, tmp_path: Path) -> None:
    deliveries = Deliveries(reads=reads)
    with recorded(logging.INFO) as records:
        async with lmtp(tmp_path, on_data=deliveries, forbid_unauth_pipelining=False) as client:
            await client.send(begin("a", "b", "c"))
            await hear(client, 4)
            await client.send(said)
            client.writer.write_eof()
            await client.rest()
            await deliveries.check()
    assert [record.getMessage() for record in records if getattr(record, "tnx", "") == "message"] == []


@pytest.mark.filterwarnings("error")
async def test_a_message_given_up_between_chunks_is_not_delivered(tmp_path: Path) -> None:
    deliveries = Deliveries()
    async with lmtp(tmp_path, on_data=deliveries) as client:
        await client.send(begin("a", "b", "c") + b"BDAT 4\r\nhalfRSET\r\n")
        assert (await hear(client, 6))[-1] == "250 2.0.0 Flushed"
        await deliveries.check()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("said", [b"DATA\r\ntoo much\r\n.\r\n", b"BDAT 8 LAST\r\ntoo much"])
async def test_a_message_that_is_too_large_is_not_delivered(said: bytes, tmp_path: Path) -> None:
    deliveries = Deliveries()
    async with lmtp(tmp_path, on_data=deliveries, size=4, forbid_unauth_pipelining=False) as client:
        await client.send(begin("a", "b", "c"))
        await hear(client, 4)
        await client.send(said)
        if said.startswith(b"DATA"):
            assert (await client.reply()).code == 354
        assert [line[:9] for line in await hear(client, 3)] == ["552 5.3.4"] * 3
        await deliveries.check()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("recipients", ["ab", "abcd"])
async def test_a_list_of_another_length_is_not_delivered(recipients: Iterable[str], tmp_path: Path) -> None:
    deliveries = Deliveries()
    errors: list[BaseException] = []
    options: dict[str, Any] = {"on_data": deliveries, "on_error": lambda error, session: errors.append(error)}
    async with lmtp(tmp_path, **options) as client:
        await client.send(begin(*recipients) + b"BDAT 0 LAST\r\n")
        heard = await hear(client, 1 + 2 * len(list(recipients)))
        assert {line[:9] for line in heard[len(list(recipients)) + 1 :]} == {"451 4.3.0"}
        await deliveries.check()
    assert [type(error) for error in errors] == [ValueError]


@pytest.mark.filterwarnings("error")
async def test_a_list_in_smtp_is_not_delivered(tmp_path: Path) -> None:
    deliveries = Deliveries()
    errors: list[BaseException] = []
    options: dict[str, Any] = {"on_data": deliveries, "on_error": lambda error, session: errors.append(error)}
    async with SMTPServer(auth_optional=True, **options) as server:
        await server.listen(path=tmp_path / "smtp")
        client = await Client.open(str(tmp_path / "smtp"))
        assert (await client.reply()).code == 220
        await client.ehlo()
        assert await client.deliver() == "451 Error: local error in processing"  # 250 would be a promise
        await deliveries.check()
        await client.close()
    assert [type(error) for error in errors] == [TypeError]


@pytest.mark.filterwarnings("error")
async def test_what_is_under_way_ends_with_the_server(tmp_path: Path) -> None:
    """After ``close_timeout`` the client hears 421 for what is not answered, and will send it again."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    never = Deliveries()

    async def on_data(stream: MessageStream, session: Session) -> list[Any]:
        return ["done", hang(), *await never(stream, session)]

    chosen: dict[str, Any] = {"auth_optional": True, "lmtp": True, "on_data": on_data, "close_timeout": 0.1}
    async with SMTPServer(**chosen) as server:
        await server.listen(path=tmp_path / "lmtp")
        client = await Client.open(str(tmp_path / "lmtp"))
        assert (await client.reply()).code == 220
        await client.ehlo(verb="LHLO")
        await client.send(begin(*"abcde") + b"BDAT 0 LAST\r\n")
        assert (await hear(client, 7))[-1] == "250 done"
        await asyncio.wait_for(begun.wait(), TIMEOUT)
        await asyncio.wait_for(server.close(), TIMEOUT)
        assert await client.hear() == "421 Server shutting down"
        assert ended.is_set()
        await never.check()
        await client.close()
