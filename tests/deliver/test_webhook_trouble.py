"""Webhooks: endpoints, disks and clients that fail, and what is left then."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
import tracemalloc
from contextlib import ExitStack
from pathlib import Path

import pytest
from aiohttp import web

from endpoint import HELLO, NOT_NOW, SECRET, answering, endpoint, refused, webhook
from messages import begun, message, session_for
from pillarbox import Reject
from pillarbox.deliver.spool import BUFFER as MEMORY

pytestmark = pytest.mark.usefixtures("in_no_time")


class TestTrouble:
    async def test_the_next_attempt_is_the_same_event(self) -> None:
        async with (
            endpoint(answering(503), answering(200)) as there,
            webhook(there.url, secret=SECRET, format="json") as target,
        ):
            assert isinstance((await target.deliver(message(HELLO)))[0], str)
        first, second = there.got
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.body == second.body
        assert second.is_signed_as(second.body)

    async def test_a_large_message_is_sent_whole_again(self) -> None:
        async with endpoint(answering(503), answering(200)) as there, webhook(there.url) as target:
            await target.deliver(message(HELLO * 10_000))
        assert [got.parts()["message"][1] == HELLO * 10_000 for got in there.got] == [True, True]

    async def test_retry_after(self) -> None:
        async with endpoint(answering(429, Retry_After="1"), answering(200)) as there, webhook(there.url) as target:
            begun = time.monotonic()
            await target.deliver(message(HELLO))
        assert time.monotonic() - begun >= 1
        assert int(there.got[1].headers["webhook-timestamp"]) > int(there.got[0].headers["webhook-timestamp"])

    @pytest.mark.parametrize("after", ["3600", "Fri, 31 Dec 2100 23:59:59 GMT"])
    async def test_retry_after_more_than_the_client_waits(self, after: str) -> None:
        async with endpoint(answering(503, Retry_After=after)) as there, webhook(there.url) as target:
            assert await refused(target) == NOT_NOW
        assert there.begun == 1

    @pytest.mark.parametrize("after", ["", "x", "-1", "Fri, 31 Dec 1999 23:59:59 GMT", "²"])
    async def test_retry_after_that_asks_for_nothing(self, after: str) -> None:
        async with endpoint(answering(503, Retry_After=after), answering(200)) as there, webhook(there.url) as target:
            await target.deliver(message(HELLO))
        assert there.begun == 2

    async def test_nobody_there(self, caplog: pytest.LogCaptureFixture) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        async with webhook(f"http://127.0.0.1:{port}/in?token=xyzzy", attempts=2) as target:
            assert await refused(target) == NOT_NOW
        assert "Cannot connect to host 127.0.0.1" in caplog.text
        assert "xyzzy" not in caplog.text

    @pytest.mark.parametrize(
        "octets",
        [
            b"",
            b"nonsense\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        ],
        ids=["closes", "no HTTP", "half an answer"],
    )
    async def test_a_broken_server(self, octets: bytes, caplog: pytest.LogCaptureFixture) -> None:
        asked = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1
            await reader.readuntil(b"--\r\n")
            writer.write(octets)
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with webhook(f"http://127.0.0.1:{port}/?token=xyzzy", attempts=2) as target:
                assert await refused(target) == NOT_NOW
        assert asked == 2
        assert "xyzzy" not in caplog.text

    async def test_a_hanging_endpoint(self, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
        ends = asyncio.Event()
        caplog.set_level(logging.INFO, "pillarbox.deliver")

        async def hang(_: web.Request) -> web.StreamResponse:
            await ends.wait()
            return web.Response()

        async with endpoint(hang) as there:
            async with webhook(there.url, give_up_after=0.3, format="reference", folder=str(tmp_path)) as target:
                assert await refused(target) == NOT_NOW
                assert not list(tmp_path.iterdir())
            async with webhook(there.url, request_timeout=0.1, attempts=2) as target:
                assert await refused(target) == NOT_NOW
            ends.set()
        first, again, second = caplog.messages
        assert first == f"cannot hand a message to {there.url}: no answer in 0.3 seconds"
        assert again.startswith(f"attempt 1 at {there.url} failed: ")
        assert second.startswith(f"cannot hand a message to {there.url}: ")

    async def test_an_endpoint_that_accepts_no_connection(self, caplog: pytest.LogCaptureFixture) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as waiting:
            address = full.getsockname()
            for _ in range(8):  # until the kernel lets no more in
                client = waiting.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(address)
            async with webhook(f"http://127.0.0.1:{address[1]}/", connect_timeout=0.2, attempts=1) as target:
                assert await refused(target) == NOT_NOW
        assert "Timeout" in caplog.text

    async def test_an_endpoint_that_does_not_read(self) -> None:
        stop = asyncio.Event()

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await stop.wait()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0, limit=1024) as server:
            port = server.sockets[0].getsockname()[1]
            async with webhook(f"http://127.0.0.1:{port}/", give_up_after=0.5) as target:
                assert await refused(target, b"x" * 20_000_000) == NOT_NOW
            stop.set()

    async def test_an_answer_before_all_was_read_counts(self) -> None:
        async def too_large(_: web.Request) -> web.StreamResponse:
            return web.Response(status=413)  # aiohttp, as nginx, throws away for a while what still comes

        too_large.reads_nothing = True  # type: ignore[attr-defined]
        async with endpoint(too_large) as there, webhook(there.url) as target:
            [answer] = await target.deliver(message(*[b"x" * 65536] * 800))
        assert str(answer) == "552 5.3.4 Error: message too large"


class TestSpool:
    @pytest.mark.promises("Storage", "What is looked for in a message for a webhook takes bounded time and memory.")
    async def test_memory_has_a_bound(self) -> None:
        """50 MB go through in blocks: message, signature, search for parts and request."""

        async def count(request: web.Request) -> web.StreamResponse:
            size = 0
            async for block, _ in request.content.iter_chunks():
                size += len(block)
            return web.Response(status=200 if size > 50_000_000 else 500)

        count.reads_nothing = True  # type: ignore[attr-defined]
        head = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nHello.\r\n--b\r\n\r\n"
        block = b"0123456789abcdef" * 4096
        async with endpoint(count) as there, webhook(there.url, secret=SECRET) as target:
            tracemalloc.start()
            try:
                answers = await target.deliver(message(head, *(block for _ in range(800))))
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert isinstance(answers[0], str)
        assert peak < 3_000_000

    @pytest.mark.promises("Nothing is lost", "A client that disappears within a message leaves no message.")
    @pytest.mark.parametrize("form", ["multipart", "reference"])
    @pytest.mark.parametrize("size", [10, 3 * MEMORY])
    async def test_a_client_that_disappears_leaves_nothing(self, form: str, size: int, tmp_path: Path) -> None:
        async with endpoint() as there, webhook(there.url, format=form, folder=str(tmp_path)) as target:
            await (await begun(target, b"x" * size, b"y")).abort()
            await (await begun(target, b"x" * size, b"y")).cancel()
            with pytest.raises(ConnectionError):
                await target.deliver(message(b"x" * size, error=ConnectionError("gone")))
        assert not there.got
        assert not list(tmp_path.iterdir())

    async def test_cancelled_while_the_endpoint_is_asked(self, tmp_path: Path) -> None:
        async def hang(_: web.Request) -> web.StreamResponse:
            await asyncio.sleep(30)
            return web.Response()

        async with endpoint(hang) as there, webhook(there.url, format="reference", folder=str(tmp_path)) as target:
            delivery = asyncio.ensure_future(target.deliver(message(HELLO)))
            await asyncio.wait_for(there.asked.wait(), 10)
            assert len(list(tmp_path.iterdir())) == 1
            delivery.cancel()
            with pytest.raises(asyncio.CancelledError):
                await delivery
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
    async def test_a_full_disk(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        full = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 - the spool closes it
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full)
        async with endpoint() as there, webhook(there.url) as target:
            reply = await refused(target, b"x" * 3 * MEMORY)
        assert reply == "452 4.3.1 Error: insufficient system storage, try again later"
        assert "No space left on device" in caplog.text
        assert not there.got

    async def test_a_folder_that_has_gone(self, tmp_path: Path) -> None:
        folder = tmp_path / "spool"
        folder.mkdir()
        async with endpoint() as there, webhook(there.url, folder=str(folder)) as target:
            folder.rmdir()
            assert await refused(target, b"x" * 3 * MEMORY) == NOT_NOW
            await target.deliver(message(HELLO))  # a small one needs no file

    @pytest.mark.parametrize(("form", "limit"), [("multipart", 1000), ("json", 1000), ("json", None)])
    async def test_too_large(self, form: str, limit: int | None) -> None:
        size = limit or 10 * 1024 * 1024
        settings = {"max_size": limit} if limit else {}
        async with endpoint() as there, webhook(there.url, format=form, **settings) as target:
            assert await refused(target, b"x" * (size + 1)) == "552 5.3.4 Error: message too large"
            await target.deliver(message(b"x" * size))
            session = session_for()
            assert session.envelope.mail_from is not None
            for announced, taken in ((size, True), (size + 1, False)):
                session.envelope.mail_from.args["SIZE"] = str(announced)
                if taken:
                    await target.verify(session.envelope.rcpt_to[0], session)
                else:
                    with pytest.raises(Reject, match="message too large"):
                        await target.verify(session.envelope.rcpt_to[0], session)
        assert len(there.got) == 1
