"""Standard output: whole messages one behind the other, as a real program with a real pipe or file behind it."""

from __future__ import annotations

import asyncio
import base64
import errno
import fcntl
import json
import mailbox
import os
import smtplib
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from messages import begun, message, session_for
from pillarbox import ConfigurationError, Reject
from pillarbox.deliver import stdout, target_from_url
from pillarbox.deliver.disk import Steps
from pillarbox.deliver.spool import BUFFER
from pillarbox.deliver.stdout import Stdout
from program import LINES, MODULE, WAIT

CONTENT = b"Subject: x\r\n\r\nFrom here\r\n"
STORED = b"Subject: x\n\n>From here\n\n"

Outputs = Callable[..., "Output"]


class Output:
    """A target whose standard output is the writing end of a pipe."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.reading, self.writing = os.pipe()
        monkeypatch.setattr(stdout, "OUTPUT", self.writing)
        target = target_from_url("stdout:", settings)
        assert isinstance(target, Stdout)
        self.target = target

    async def start(self) -> Stdout:
        await self.target.start()
        os.close(self.writing)
        return self.target

    def waiting(self) -> int:
        """Return how many octets are in the pipe."""
        return int.from_bytes(fcntl.ioctl(self.reading, termios.FIONREAD, bytes(4)), sys.byteorder)

    async def rest(self) -> bytes:
        """Close our end; return what is in the pipe."""
        await self.target.close()
        return await asyncio.to_thread(self._read)

    def _read(self) -> bytes:
        with open(self.reading, "rb", closefd=False) as file:
            return file.read()


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Outputs]:
    made: list[Output] = []

    def make(**settings: Any) -> Output:
        made.append(Output(monkeypatch, **settings))
        return made[-1]

    yield make
    for output in made:
        os.close(output.reading)


class TestMbox:
    async def test_messages(self, outputs: Outputs) -> None:
        output = outputs()
        target = await output.start()
        for _ in range(2):
            assert await target.deliver(message(CONTENT)) == "stdout:"
        first, second, third = (await output.rest()).split(b"From a@example.org ")
        assert first == b""
        assert second.partition(b"\n")[2] == third.partition(b"\n")[2] == STORED

    async def test_whole_ones_however_many_come_at_once(self, outputs: Outputs, tmp_path: Path) -> None:
        output = outputs()
        target = await output.start()
        reading = asyncio.create_task(asyncio.to_thread(output._read))
        bodies = [b"%d\r\n" % number * 30_000 for number in range(8)]
        await asyncio.gather(*(target.deliver(message(b"\r\n", body)) for body in bodies))
        await target.close()
        (tmp_path / "box").write_bytes(await reading)
        read = mailbox.mbox(tmp_path / "box")
        assert sorted(str(each.get_payload()) for each in read) == sorted(
            body.replace(b"\r\n", b"\n").decode() for body in bodies
        )
        read.close()

    async def test_a_client_that_disappears(self, outputs: Outputs) -> None:
        output = outputs()
        delivery = await begun(await output.start(), b"x" * BUFFER * 2)
        await delivery.abort()
        assert await output.rest() == b""


class TestJSON:
    async def test_text(self, outputs: Outputs) -> None:
        output = outputs(format="json")
        target = await output.start()
        content = 'Subject: Grüße\r\n\r\n"quotes" \\ \t \x07 \u2028\r\n'
        session = session_for("b@example.com", "c@example.com")
        session.user, session.remote_address = "joe", "192.0.2.7"
        await target.deliver(message(content.encode(), session=session))
        line = await output.rest()
        assert line.count(b"\n") == 1
        found = json.loads(line)
        assert found.pop("received").endswith("+00:00")
        assert found == {
            "id": f"{session.id}.1",
            "mail_from": "a@example.org",
            "rcpt_to": ["b@example.com", "c@example.com"],
            "client_address": "192.0.2.7",
            "client_hostname": "localhost",
            "client_helo": None,
            "protocol": session.transmission_type,
            "user": "joe",
            "size": len(content.encode()),
            "message": content,
        }

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 200_000, 200_001])
    async def test_what_is_no_text(self, outputs: Outputs, size: int) -> None:
        output = outputs(format="json")
        target = await output.start()
        reading = asyncio.create_task(asyncio.to_thread(output._read))
        await target.deliver(message(b"\xff" * size))
        await target.close()
        found = json.loads(await reading)
        assert "message" not in found
        assert base64.b64decode(found["message_base64"], validate=True) == b"\xff" * size

    async def test_characters_at_the_ends_of_blocks(self, outputs: Outputs) -> None:
        output = outputs(format="json")
        target = await output.start()
        reading = asyncio.create_task(asyncio.to_thread(output._read))
        content = "x" + "ä€𐍈" * 50_000
        await target.deliver(message(content.encode()))
        await target.close()
        assert json.loads(await reading)["message"] == content

    def test_no_other_format(self) -> None:
        with pytest.raises(ConfigurationError, match="format"):
            target_from_url("stdout:", {"format": "xml"})


class TestReader:
    async def test_that_goes_away(self, outputs: Outputs, caplog: pytest.LogCaptureFixture) -> None:
        output = outputs()
        target = await output.start()
        reading, output.reading = output.reading, os.open(os.devnull, os.O_RDONLY)
        os.close(reading)
        with pytest.raises(Reject) as refused:
            await target.deliver(message(CONTENT))
        assert (refused.value.code, refused.value.enhanced) == (451, "4.3.0")
        (record,) = caplog.records
        assert record.getMessage() == (
            "cannot store a message in stdout:: [Errno 32] nobody reads standard output any more"
        )
        assert record.exc_info is None
        await target.close()

    async def test_that_is_slow_holds_the_client_up(self, outputs: Outputs) -> None:
        output = outputs()
        target = await output.start()
        content = b"x" * 999_998 + b"\r\n"
        delivery = asyncio.create_task(target.deliver(message(content)))
        await asyncio.sleep(0.1)
        assert not delivery.done()
        reading = asyncio.create_task(asyncio.to_thread(output._read))
        await delivery
        await target.close()
        assert len(await reading) > 999_998

    async def test_that_hangs_in_the_middle(self, outputs: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stdout, "PAUSE", 0.01)
        output = outputs(format="json")
        target = await output.start()
        delivery = asyncio.create_task(target.deliver(message(b"x" * 999_998 + b"\r\n")))
        async with asyncio.timeout(10):
            while output.waiting() < 10_000:
                await asyncio.sleep(0.01)
        delivery.cancel()  # as after 300 s
        with pytest.raises(asyncio.CancelledError):
            await delivery
        reading = asyncio.create_task(asyncio.to_thread(output._read))
        await target.deliver(message(CONTENT))
        await target.close()
        half, whole, nothing = (await reading).split(b"\n")
        assert half.endswith(b"xxx")
        assert json.loads(whole)["message"] == CONTENT.decode()
        assert nothing == b""

    async def test_that_hangs_before_anything_of_a_message_was_written(
        self, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So no line is cut off, and none is empty."""
        loop, waiting, wait = asyncio.get_running_loop(), asyncio.Event(), Stdout._wait
        output = outputs(format="json")
        target = await output.start()
        full = b"x" * fcntl.fcntl(target._descriptor, fcntl.F_GETPIPE_SZ)
        os.write(target._descriptor, full)

        def noted(self: Stdout, steps: Steps) -> None:
            loop.call_soon_threadsafe(waiting.set)
            wait(self, steps)

        monkeypatch.setattr(stdout, "PAUSE", 0.01)
        monkeypatch.setattr(Stdout, "_wait", noted)
        delivery = asyncio.create_task(target.deliver(message(CONTENT)))
        await asyncio.wait_for(waiting.wait(), 10)
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivery
        assert os.read(output.reading, len(full)) == full
        await target.deliver(message(CONTENT))
        (line,) = (await output.rest()).splitlines()
        assert json.loads(line)["message"] == CONTENT.decode()

    async def test_another_process_of_the_program_is_waited_for(self, outputs: Outputs) -> None:
        output = outputs()
        target = await output.start()
        code = "import fcntl, sys; fcntl.lockf(1, fcntl.LOCK_EX); print('locked', file=sys.stderr, flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=target._descriptor,
            stderr=subprocess.PIPE,
        ) as other:
            assert other.stdin is not None
            assert other.stderr is not None
            assert other.stderr.readline() == b"locked\n"
            delivery = asyncio.create_task(target.deliver(message(CONTENT)))
            await asyncio.sleep(0.1)
            assert not delivery.done()
            other.communicate(b"\n")
        await delivery
        assert (await output.rest()).endswith(STORED)

    async def test_an_output_that_knows_no_locks(self, outputs: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_: object) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(fcntl, "lockf", fails)
        output = outputs()
        target = await output.start()
        await target.deliver(message(CONTENT))
        assert (await output.rest()).endswith(STORED)


class TestURL:
    def test_nothing_follows(self) -> None:
        with pytest.raises(ConfigurationError, match="nothing can follow"):
            target_from_url("stdout:x")

    async def test_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stdout, "OUTPUT", 1_000_000)
        with pytest.raises(ConfigurationError, match="there is no standard output"):
            await target_from_url("stdout:").start()


# --- The program


@contextmanager
def serving(tmp_path: Path, output: Any, *more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the program with this standard output."""
    command = [*MODULE, "serve", *LINES, "--listen", "127.0.0.1:0", "--deliver", "stdout:", *more]
    with subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=subprocess.PIPE, text=True) as process:
        ending = threading.Timer(WAIT, process.kill)
        ending.start()
        try:
            assert process.stderr is not None
            while not (line := process.stderr.readline()).startswith("listening on 127.0.0.1:"):
                assert "workers:" in line, line
            yield process, int(line.rpartition(":")[2])
        finally:
            process.kill()
            process.communicate()
            ending.cancel()


def send(port: int, *, content: bytes = CONTENT) -> int:
    with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT) as client:
        try:
            client.sendmail("a@example.org", ["b@example.com"], content)
        except smtplib.SMTPDataError as error:
            return error.smtp_code
        return 250


def test_a_file(tmp_path: Path) -> None:
    with (tmp_path / "box").open("wb") as file, serving(tmp_path, file) as (process, port):
        assert send(port) == send(port) == 250
        process.kill()  # what was acknowledged is there
        process.wait(WAIT)
    read = mailbox.mbox(tmp_path / "box")
    assert [each["Subject"] for each in read] == ["x", "x"]
    read.close()


def test_a_pipe_that_nobody_reads_any_more(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with serving(tmp_path, writing) as (process, port):
        os.close(writing)
        assert send(port) == 250
        os.close(reading)
        assert send(port) == 451
        process.terminate()
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(WAIT) == 0
    assert "error: cannot store a message in stdout:: [Errno 32] nobody reads standard output any more" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("workers", ["1", "2"])
def test_started_without_a_standard_output(tmp_path: Path, workers: str) -> None:
    """Its number must not become that of a socket or a file, which would get the messages."""
    command = [*MODULE, "serve", *LINES, "--listen", "127.0.0.1:0", "--deliver", "stdout:", "--workers", workers]
    closed = ["sh", "-c", 'exec "$@" <&- >&-', "sh", *command]
    done = subprocess.run(closed, cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=WAIT, check=False)
    assert (done.returncode, done.stderr) == (2, "Error: stdout:: there is no standard output\n")


def test_a_reader_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        with serving(tmp_path, writing, "--set", "close_timeout=0.5") as (process, port):
            os.close(writing)
            with (
                suppress(smtplib.SMTPException),  # the program says 421, and not to QUIT
                smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT) as client,
            ):
                client.ehlo()
                client.mail("a@example.org")
                client.rcpt("b@example.com")
                client.docmd("DATA")
                client.send(b"x" * 998 + b"\r\n" + b"y\r\n" * 200_000 + b".\r\n")
                os.read(reading, 1)  # it has begun
                process.terminate()
                assert process.wait(WAIT) == 0
    finally:
        os.close(reading)


def test_two_processes_share_a_pipe(tmp_path: Path) -> None:
    bodies = [b"%d\r\n" % number * 20_000 for number in range(12)]
    reading, writing = os.pipe()
    with serving(tmp_path, writing, "--workers", "2") as (process, port), ThreadPoolExecutor(13) as threads:
        os.close(writing)
        output = threads.submit(lambda: b"".join(iter(lambda: os.read(reading, 65536), b"")))
        replies = list(threads.map(lambda body: send(port, content=b"\r\n" + body), bodies))
        process.terminate()
        assert process.wait(WAIT) == 0
        (tmp_path / "box").write_bytes(output.result(WAIT))
    os.close(reading)
    assert replies == [250] * 12
    read = mailbox.mbox(tmp_path / "box")
    stored = [str(each.get_payload()) for each in read]
    assert sorted(stored) == sorted(body.replace(b"\r\n", b"\n").decode() for body in bodies)
    read.close()
