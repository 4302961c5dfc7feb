"""Webhooks of the real program: by its configuration, through SMTP and LMTP, and with ``kill -9`` in the middle."""

from __future__ import annotations

import asyncio
import signal
import smtplib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from endpoint import OTHER_SECRET, SECRET, answering, endpoint
from program import Program, Start
from support import Client

MESSAGE = b"From: Ann <a@example.org>\r\nSubject: x\r\n\r\nHello.\r\n"


@asynccontextmanager
async def serving(start: Start, tmp_path: Path, url: str, settings: str = "", more: str = "") -> AsyncIterator[Program]:
    """Run the program with one webhook."""
    (tmp_path / "pillarbox.toml").write_text(
        f'[[listen]]\naddress = "127.0.0.1:0"\n{more}\n[[deliver]]\nurl = "{url}"\n{settings}\n'
    )
    program = await asyncio.to_thread(start, "--config", "pillarbox.toml")
    yield program
    program.process.kill()
    await asyncio.to_thread(program.wait)


async def send(port: int, content: bytes = MESSAGE) -> Exception | None:
    """Send a message in a thread; return the exception that it ends with."""

    def work() -> Exception | None:
        try:
            with closing(smtplib.SMTP("127.0.0.1", port, timeout=20)) as client:
                client.sendmail("a@example.org", "b@example.com", content)
        except (smtplib.SMTPException, OSError) as error:
            return error
        return None

    return await asyncio.to_thread(work)


async def test_from_client_to_endpoint(start: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    settings = f'secret = "{SECRET}"\nca = "ca.crt"\nheaders = {{ Authorization = "Bearer xyzzy" }}'
    async with (
        endpoint(answering(503), answering(200), tls=context) as there,
        serving(start, tmp_path, there.url + "?token=plugh", settings) as program,
    ):
        port = await asyncio.to_thread(program.port)
        assert await send(port, MESSAGE * 20_000) is None
        line = await asyncio.to_thread(program.line, r"message from <a@example\.org> .*, in (.*)")
        assert await asyncio.to_thread(program.end) == 0
    first, second = there.got
    assert line[1] == f"{there.url}?… ({second.headers['webhook-id']})"
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert second.headers["Authorization"] == "Bearer xyzzy"
    assert second.is_signed_as(second.body)
    raw = second.parts()["message"][1]
    assert raw.startswith(b"Return-Path: <a@example.org>\r\nReceived: from ")
    assert raw.endswith(MESSAGE * 20_000)
    data = second.data()
    assert [name for name, _ in data["headers"]] == ["Return-Path", "Received", "From", "Subject"]
    assert data["session"]["remote_address"] == "127.0.0.1"
    assert data["session"]["local_port"] == port
    assert f"id {data['id']}" in line[0]
    text = "\n".join(program.lines)
    assert not any(secret in text for secret in (SECRET, "xyzzy", "plugh"))


async def test_refusals_reach_the_client(start: Start, tmp_path: Path) -> None:
    answers = answering(200, {"reply": {"code": 550, "text": "No such user"}}), answering(422), answering(404)
    codes = []
    async with endpoint(*answers) as there, serving(start, tmp_path, there.url) as program:
        port = await asyncio.to_thread(program.port)
        for _ in answers:
            error = await send(port)
            assert isinstance(error, smtplib.SMTPDataError)
            codes.append(error.smtp_code)
    assert codes == [550, 554, 451]


async def test_each_recipient_has_its_reply_in_lmtp(start: Start, tmp_path: Path) -> None:
    answer = answering(200, {"recipients": {"c@example.com": {"code": 550, "text": "No such user"}}})
    async with endpoint(answer) as there, serving(start, tmp_path, there.url, more="lmtp = true") as program:
        port = await asyncio.to_thread(program.port)
        client = await Client.open(("127.0.0.1", port))
        await client.hear()
        await client.ehlo(verb="LHLO")
        await client.envelope("a@example.org", "b@example.com", "c@example.com")
        assert await client.say("DATA") == "354 End data with <CR><LF>.<CR><LF>"
        await client.send(MESSAGE + b".\r\n")
        replies = [(await client.reply()).code for _ in range(2)]
        client.writer.close()
    assert replies == [250, 550]
    assert len(there.got) == 1


def named(content: bytes) -> str:
    return content.partition(b"X-Name: ")[2].partition(b"\r\n")[0].decode()


class TestKill:
    @pytest.mark.promises(
        "Nothing is lost",
        "A webhook's message gets 250 when its endpoint has answered 2xx, and not before, kill -9 or not.",
    )
    async def test_while_the_endpoint_is_asked(self, start: Start, tmp_path: Path) -> None:
        """Nothing was acknowledged, and of the files only one with a name can be left: until the next start."""
        spool = tmp_path / "spool"
        spool.mkdir()
        asked, end = asyncio.Event(), asyncio.Event()

        async def hang(_: web.Request) -> web.StreamResponse:
            asked.set()
            await end.wait()
            return web.Response()

        async with endpoint(hang) as there:
            for form, left in (("multipart", 0), ("reference", 1)):
                asked.clear()
                settings = f'format = "{form}"\nfolder = "spool"'
                async with serving(start, tmp_path, there.url, settings) as program:
                    sending = asyncio.ensure_future(send(await asyncio.to_thread(program.port), MESSAGE * 20_000))
                    await asyncio.wait_for(asked.wait(), 10)
                    program.process.send_signal(signal.SIGKILL)
                    assert isinstance(await sending, smtplib.SMTPServerDisconnected | ConnectionError)
                    assert len(list(spool.iterdir())) == left
            end.set()
            async with serving(start, tmp_path, there.url, settings) as program:
                port = await asyncio.to_thread(program.port)
                assert not list(spool.iterdir())
                assert await send(port) is None

    @pytest.mark.promises(
        "Nothing is lost",
        "A webhook's message gets 250 when its endpoint has answered 2xx, and not before, kill -9 or not.",
    )
    async def test_under_load(self, start: Start, tmp_path: Path) -> None:
        accepted: set[str] = set()

        async def keep(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            accepted.add(named(body[body.rindex(b"message/rfc822") :]))
            return web.Response()

        async with endpoint(keep) as there, serving(start, tmp_path, there.url) as program:
            port = await asyncio.to_thread(program.port)
            enough = asyncio.Semaphore(0)
            senders = [asyncio.ensure_future(_send_many(port, number, enough)) for number in range(6)]
            for _ in range(60):
                await asyncio.wait_for(enough.acquire(), 20)
            program.process.send_signal(signal.SIGKILL)
            acknowledged = [name for names in await asyncio.gather(*senders) for name in names]
        assert len(acknowledged) >= 60
        assert set(acknowledged) <= accepted

    async def test_sigterm_lets_a_request_end(self, start: Start, tmp_path: Path) -> None:
        asked, end = asyncio.Event(), asyncio.Event()

        async def wait(_: web.Request) -> web.StreamResponse:
            asked.set()
            await end.wait()
            return web.Response()

        async with endpoint(wait) as there, serving(start, tmp_path, there.url) as program:
            sending = asyncio.ensure_future(send(await asyncio.to_thread(program.port)))
            await asyncio.wait_for(asked.wait(), 10)
            program.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(program.line, "SIGTERM: closing")
            end.set()
            assert await sending is None
            assert await asyncio.to_thread(program.wait) == 0


async def _send_many(port: int, number: int, enough: asyncio.Semaphore) -> list[str]:
    """Send until the server is gone; return the names of what got 250."""
    acknowledged: list[str] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await _replies(reader, 220)
        writer.write(b"HELO x\r\n")
        await _replies(reader, 250)
        while True:
            name = f"{number}-{len(acknowledged)}"
            writer.write(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n")
            await _replies(reader, 250, 250, 354)
            writer.write(f"X-Name: {name}\r\n\r\n{'x' * 100}\r\n".encode() * 10 + b".\r\n")
            await _replies(reader, 250)
            acknowledged.append(name)
            enough.release()
    except (OSError, EOFError):
        return acknowledged
    finally:
        writer.close()


async def _replies(reader: asyncio.StreamReader, *codes: int) -> None:
    for code in codes:
        line = await asyncio.wait_for(reader.readline(), 20)
        if not line:
            raise EOFError
        assert line.startswith(b"%d" % code), line


async def test_a_reload_reads_the_secrets_again(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    async with (
        endpoint() as there,
        serving(start, tmp_path, there.url, 'secret_file = "secret"\nformat = "json"') as program,
    ):
        port = await asyncio.to_thread(program.port)
        assert await send(port) is None
        file.write_text(f"{OTHER_SECRET}\n{SECRET}\n")
        program.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(program.line, "^reloaded$")
        assert await send(port) is None
    signed = [[got.is_signed_as(got.body, secret) for secret in (SECRET, OTHER_SECRET)] for got in there.got]
    assert signed == [[True, False], [True, True]]


async def test_what_is_wrong_ends_the_program_with_one_message(start: Start, tmp_path: Path) -> None:
    async with serving(start, tmp_path, "https://hooks.example.com/in", 'secret = "xyzzy"') as program:
        assert await asyncio.to_thread(program.wait) == 2
    assert program.lines[0].startswith("Error: pillarbox.toml, [[deliver]] 1: a secret is written whsec_")
    assert "xyzzy" not in "".join(program.lines)
