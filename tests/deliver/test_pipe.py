"""The pipe target with real commands: what they are told, what their end means, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import smtplib
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from messages import begun, message, session_for
from pillarbox import ConfigurationError, Recipient, Reject, Session
from pillarbox.deliver import pipe, target_from_url
from pillarbox.deliver.pipe import OUTPUT, Pipe
from pillarbox.deliver.spool import BUFFER
from program import MODULE, WAIT, Start
from support import on_both_loops

CONTENT = b"Subject: x\r\n\r\n.body\r\n"

Scripts = Callable[..., str]


@pytest.fixture
def script(tmp_path: Path) -> Scripts:
    """Make a command that is a Python script; it finds its folder in ``here``."""

    def made(code: str, name: str = "command") -> str:
        path = tmp_path / name
        head = f"#!{sys.executable} -IS\nimport json, os, signal, sys, time\nhere = {str(tmp_path)!r}\n"
        path.write_text(head + textwrap.dedent(code))
        path.chmod(0o700)
        return str(path)

    return made


# Notes arguments, environment and message in a file of its own.
NOTES = """
    with open(f"{here}/{os.getpid()}.ran", "w") as file:
        content = sys.stdin.buffer.read().decode("latin-1")
        json.dump({"arguments": sys.argv[1:], "environment": dict(os.environ), "content": content}, file)
"""


def notes(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.ran"))]


async def started(command: str, **settings: Any) -> Pipe:
    target = target_from_url(f"pipe:{command}", settings)
    assert isinstance(target, Pipe)
    await target.start()
    return target


def lmtp(*recipients: str) -> Session:
    session = session_for(*recipients)
    session.lmtp = True
    return session


class TestCommand:
    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("pipe:", "names no command"),
            ("pipe:  ", "names no command"),
            ("pipe:''", "names no command"),
            ("pipe:cat 'x", "No closing quotation"),
            ("pipe:cat {lokal}", r"unknown field \{lokal\}: did you mean 'local'"),
            ("pipe:{local} x", "cannot depend on the message"),
        ],
    )
    def test_refused(self, url: str, reason: str) -> None:
        with pytest.raises(ConfigurationError, match=reason):
            target_from_url(url)

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"per": "message"}, r"\{local\} is one recipient's"),
            ({"per": "day"}, "per"),
            ({"processes": 0}, "processes"),
            ({"line_ends": "cr"}, "line_ends"),
        ],
    )
    def test_settings_refused(self, settings: dict[str, Any], reason: str) -> None:
        with pytest.raises(ConfigurationError, match=reason):
            target_from_url("pipe:cat {local}", settings)

    @pytest.mark.parametrize("command", ["no-such-command-anywhere", "/no/such", "/etc/passwd", "/"])
    async def test_that_is_not_there(self, command: str) -> None:
        with pytest.raises(ConfigurationError, match=f"{command}: there is no such command, or it may not be run"):
            await started(command)

    async def test_is_looked_up_once(self, script: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script(NOTES)
        with monkeypatch.context() as before:
            before.setenv("PATH", str(tmp_path))
            target = await started("command")
        await target.deliver(message(CONTENT))
        assert len(notes(tmp_path)) == 1

    async def test_no_shell_sees_it(self, script: Scripts, tmp_path: Path) -> None:
        words = r"""'two words' "$HOME" ; '|' '>x' `id` *"""
        target = await started(f"{script(NOTES)} {words}")
        await target.deliver(message(CONTENT))
        assert notes(tmp_path)[0]["arguments"] == ["two words", "$HOME", ";", "|", ">x", "`id`", "*"]

    async def test_fields(self, script: Scripts, tmp_path: Path) -> None:
        target = await started(f"{script(NOTES)} -u {{user}} --to={{mailbox}}:{{domain}} {{sender}} {{id}} {{client}}")
        session = session_for("Joe+tag@Example.com")
        session.user, session.remote_address = "joe smith", "192.0.2.7"
        await target.deliver(message(CONTENT, session=session))
        assert notes(tmp_path)[0]["arguments"] == [
            "-u", "joe smith", "--to=joe:example.com", "a@example.org", f"{session.id}.1", "192.0.2.7",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("command", "address", "code"),
        [
            ("{local}", "-rf@example.com", 553),
            ("{local}", '"-rf x"@example.com', 553),
            ("x{local}", "-rf@example.com", 0),
            ("-{local}", "-rf@example.com", 0),
            ("{local}", '"../x"@example.com', 553),
            ("{sender}", "b@example.com", 553),
            ("--from={sender}", "b@example.com", 0),
            ("{user}", "b@example.com", 530),
        ],
    )
    async def test_what_cannot_stand_in_it_is_refused(
        self, script: Scripts, tmp_path: Path, command: str, address: str, code: int
    ) -> None:
        target = await started(f"{script(NOTES)} {command}", per="recipient")
        session = session_for(address, sender="-oX@example.org")
        answers = await target.deliver(message(CONTENT, session=session))
        if code:
            (refusal,) = list(answers)
            assert isinstance(refusal, Reject)
            assert refusal.code == code
            assert notes(tmp_path) == []
            with pytest.raises(Reject):
                await target.verify(Recipient(address), session)
        else:
            await target.verify(Recipient(address), session)
            assert len(notes(tmp_path)) == 1

    async def test_environment(self, script: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET", "of the operator")
        monkeypatch.setenv("SENDER", "of the operator")
        target = await started(script(NOTES))
        session = session_for("b@example.com", '"a\\ b"@example.com')
        session.host_name_appears_as, session.remote_address, session.user = "client\x00.example\n", "192.0.2.7", "joe"
        session.client_hostname = "host.example.net"
        await target.deliver(message(CONTENT, session=session))
        environment = notes(tmp_path)[0]["environment"]
        for name in ("HOME", "LOGNAME", "PATH", "TZ", "USER", "LC_CTYPE"):
            environment.pop(name, None)
        assert environment == {
            "SENDER": "a@example.org",
            "RECIPIENT": 'b@example.com\n"a\\ b"@example.com',
            "CLIENT_ADDRESS": "192.0.2.7",
            "CLIENT_HOSTNAME": "host.example.net",
            "CLIENT_HELO": "client?.example?",
            "CLIENT_PROTOCOL": session.transmission_type,
            "SASL_USERNAME": "joe",
            "MESSAGE_ID": f"{session.id}.1",
            "LANG": "C.UTF-8",
        }


class Said:
    """Collect what commands have said."""

    def __enter__(self) -> list[str]:
        self.said: list[str] = []
        self.handler = logging.Handler()
        self.handler.emit = lambda record: self.said.append(str(record.args[-1]))  # type: ignore[method-assign, index]
        logger = logging.getLogger("pillarbox.deliver")
        self.level = logger.level
        logger.addHandler(self.handler)
        logger.setLevel(logging.INFO)
        return self.said

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("pillarbox.deliver")
        logger.removeHandler(self.handler)
        logger.setLevel(self.level)


@on_both_loops
async def test_descriptors_are_not_handed_down(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)  # as a socket of the service manager is
    try:
        target = await started("/bin/ls -l /proc/self/fd", line_ends="lf")
        with Said() as said:
            await target.deliver(message(CONTENT))
    finally:
        os.close(reading)
        os.close(writing)
    (listing,) = said
    numbers = dict(re.findall(r" (\d+) -> (.*)", listing))
    assert set(numbers) == {"0", "1", "2", "3"}
    assert numbers["3"].startswith("/proc/")  # ls's own


class TestMessage:
    @pytest.mark.parametrize(
        ("settings", "expected"),
        [({}, "Subject: x\n\n.body\n"), ({"line_ends": "crlf"}, "Subject: x\r\n\r\n.body\r\n")],
    )
    async def test_line_ends(self, script: Scripts, tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
        target = await started(script(NOTES), **settings)
        assert await target.deliver(message(CONTENT)) == [target.url]
        assert notes(tmp_path)[0]["content"] == expected

    async def test_large(self, script: Scripts, tmp_path: Path) -> None:
        target = await started(script(NOTES))
        await target.deliver(message(*[b"0123456789abcd\r\n" * 4096] * 40))
        assert notes(tmp_path)[0]["content"] == "0123456789abcd\n" * 4096 * 40

    @pytest.mark.parametrize("size", [10, BUFFER * 2])
    async def test_half_a_message_starts_nothing(self, script: Scripts, tmp_path: Path, size: int) -> None:
        target = await started(script(NOTES))
        delivery = await begun(target, b"x" * size)
        await delivery.abort()
        assert notes(tmp_path) == []

    async def test_a_command_need_not_read_it(self) -> None:
        target = await started("/bin/true")
        await target.deliver(message(b"x" * BUFFER * 4))

    async def test_without_proc(self, script: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        original = os.open

        def opened(path: Any, *more: Any) -> int:
            if str(path).startswith("/proc/self/fd"):
                raise FileNotFoundError
            return original(path, *more)

        target = await started(script(NOTES), per="recipient")
        monkeypatch.setattr(os, "open", opened)
        await target.deliver(message(CONTENT, session=session_for("a@example.com", "b@example.com")))
        assert [note["content"] for note in notes(tmp_path)] == ["Subject: x\n\n.body\n"] * 2


class TestRuns:
    async def test_one_for_all(self, script: Scripts, tmp_path: Path) -> None:
        target = await started(script(NOTES))
        answers = await target.deliver(message(CONTENT, session=session_for("a@example.com", "b@example.com")))
        assert answers == [target.url] * 2
        assert [note["environment"]["RECIPIENT"] for note in notes(tmp_path)] == ["a@example.com\nb@example.com"]

    @pytest.mark.parametrize(("more", "settings"), [(" {local}", {}), ("", {"per": "recipient"})])
    async def test_one_for_each(self, script: Scripts, tmp_path: Path, more: str, settings: dict[str, Any]) -> None:
        target = await started(script(NOTES) + more, **settings)
        session = session_for("a@example.com", "b@example.com")
        await target.deliver(message(CONTENT, session=session))
        ran = notes(tmp_path)
        assert sorted(note["environment"]["RECIPIENT"] for note in ran) == ["a@example.com", "b@example.com"]
        assert {note["content"] for note in ran} == {"Subject: x\n\n.body\n"}

    async def test_more_addresses_than_a_variable_takes(self, script: Scripts, tmp_path: Path) -> None:
        recipients = [f"{'x' * 190}{number:04}@example.com" for number in range(1000)]
        target = await started(script(NOTES))
        answers = await target.deliver(message(CONTENT, session=session_for(*recipients)))
        assert len(answers) == 1000
        ran = [note["environment"]["RECIPIENT"].split("\n") for note in notes(tmp_path)]
        assert 2 < len(ran) < 10
        assert sorted(address for some in ran for address in some) == recipients

    async def test_in_lmtp_each_has_its_own_end(self, script: Scripts) -> None:
        command = script("sys.exit({'bad': 67, 'later': 75}.get(sys.argv[1], 0))")
        target = await started(f"{command} {{local}}")
        answers = await target.deliver(
            message(CONTENT, session=lmtp("a@x.example", "bad@x.example", "later@x.example"))
        )
        assert [each.code if isinstance(each, Reject) else each for each in answers] == [target.url, 550, 451]

    async def test_in_smtp_later_for_one_is_later_for_all(self, script: Scripts) -> None:
        command = script("sys.exit({'bad': 67, 'later': 75}.get(sys.argv[1], 0))")
        target = await started(f"{command} {{local}}")
        with pytest.raises(Reject) as refused:
            await target.deliver(
                message(CONTENT, session=session_for("a@x.example", "bad@x.example", "later@x.example"))
            )
        assert refused.value.code == 451
        answers = await target.deliver(message(CONTENT, session=session_for("a@x.example", "bad@x.example")))
        assert [each.code if isinstance(each, Reject) else each for each in answers] == [target.url, 550]

    async def test_not_more_at_once_than_allowed(self, script: Scripts, tmp_path: Path) -> None:
        command = script("""
            open(f"{here}/{os.getpid()}.on", "w").close()
            print(len([name for name in os.listdir(here) if name.endswith(".on")]))
            time.sleep(0.02)
            os.unlink(f"{here}/{os.getpid()}.on")
        """)
        target = await started(command, processes=2)
        with Said() as said:
            await asyncio.gather(*(target.deliver(message(CONTENT)) for _ in range(8)))
        assert len(said) == 8
        assert {int(number) for number in said} <= {1, 2}


class TestEnd:
    @pytest.mark.parametrize(
        ("status", "reply"),
        [
            (0, None),
            (64, "554 5.3.0 Error: command line usage error"),
            (65, "554 5.6.0 Error: data format error"),
            (66, "554 5.3.0 Error: cannot open input"),
            (67, "550 5.1.1 Error: user unknown"),
            (68, "550 5.1.2 Error: host name unknown"),
            (69, "554 5.3.0 Error: service unavailable"),
            (70, "554 5.3.0 Error: internal software error"),
            (71, "451 4.3.0 Error: system resource problem"),
            (72, "554 5.3.0 Error: critical OS file missing"),
            (73, "550 5.2.0 Error: cannot create user output file"),
            (74, "554 5.3.0 Error: input/output error"),
            (75, "451 4.3.0 Error: temporary failure"),
            (76, "554 5.5.0 Error: remote error in protocol"),
            (77, "550 5.7.0 Error: permission denied"),
            (78, "554 5.3.5 Error: local configuration error"),
            (1, "554 5.3.0 Error: the command failed"),
            (255, "554 5.3.0 Error: the command failed"),
            (-9, "451 4.3.0 Error: the message cannot be stored now, try again later"),
            (-11, "451 4.3.0 Error: the message cannot be stored now, try again later"),
        ],
    )
    async def test_is_the_reply(self, status: int, reply: str | None, caplog: pytest.LogCaptureFixture) -> None:
        code = f"exit {status}" if status >= 0 else f"kill {status} $$"
        target = await started(f"/bin/sh -c 'echo why; {code}'")
        caplog.set_level(logging.INFO, "pillarbox.deliver")
        try:
            (answer,) = list(await target.deliver(message(CONTENT)))
        except Reject as refusal:
            answer = refusal
        assert str(answer) == (reply or target.url)
        (record,) = caplog.records
        shown = f"status {status}" if status >= 0 else f"signal {-status}"
        assert record.getMessage() == f"{target.url} ended with {shown}: why"
        assert record.levelname == ("INFO" if reply is None else "ERROR")

    async def test_what_it_says_is_bounded_and_never_holds_it_up(self, caplog: pytest.LogCaptureFixture) -> None:
        target = await started("/bin/sh -c 'head -c 1000000 /dev/zero | tr \"\\\\0\" x; exit 75'")
        with pytest.raises(Reject):
            await target.deliver(message(CONTENT))
        (record,) = caplog.records
        assert str(record.args[-1]) == "x" * OUTPUT  # type: ignore[index]

    async def test_that_could_not_begin(self, script: Scripts, caplog: pytest.LogCaptureFixture) -> None:
        command = script(NOTES)
        target = await started(command)
        Path(command).unlink()
        with pytest.raises(Reject) as refused:
            await target.deliver(message(CONTENT))
        assert (refused.value.code, refused.value.enhanced) == (451, "4.3.0")
        assert command in caplog.text
        assert "Traceback" not in caplog.text

    async def test_a_process_in_the_background_is_not_waited_for(self, tmp_path: Path) -> None:
        # It keeps the command's output open, as a daemon does that closes nothing.
        target = await started(f"/bin/sh -c 'sleep 30 & echo $! > {tmp_path}/pid'")
        began = time.monotonic()
        await target.deliver(message(CONTENT))
        assert time.monotonic() - began < 10
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    @pytest.mark.parametrize("told", [True, False], ids=["pidfd", "polled"])
    async def test_leaves_no_zombie(self, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
        if not told:
            monkeypatch.delattr(os, "pidfd_open", raising=False)
            monkeypatch.setattr(pipe, "PAUSE", 0.001)
        target = await started("/bin/true")
        for _ in range(3):
            await target.deliver(message(CONTENT))
        await until(lambda: not children())


def children() -> list[str]:
    """Return the processes that this one has started and that still run, or were not waited for."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(path.parent.name)
    return found


def is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@on_both_loops
async def test_cancelling_kills_the_whole_group(tmp_path: Path) -> None:
    target = await started(f"/bin/sh -c 'trap \"\" TERM; sleep 60 & echo $$ $! > {tmp_path}/pids; wait; sleep 60'")
    delivery = asyncio.create_task(target.deliver(message(CONTENT)))
    await until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().count(" ") == 1)
    delivery.cancel()
    with pytest.raises(asyncio.CancelledError):
        await delivery
    shell, sleep = map(int, (tmp_path / "pids").read_text().split())
    await until(lambda: not is_there(shell) and not is_there(sleep))
    await until(lambda: not children())


class TestCancelled:
    async def test_while_it_is_being_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop, reached, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        original = subprocess.Popen

        def slow(*arguments: Any, **more: Any) -> Any:
            output = os.fstat(more["stdout"]).st_ino
            loop.call_soon_threadsafe(reached.set)
            assert go_on.wait(10)
            assert os.fstat(more["stdout"]).st_ino == output  # it is not closed yet, and another's
            return original(*arguments, **more)

        target = await started("/bin/sleep 60")
        monkeypatch.setattr(subprocess, "Popen", slow)
        delivery = asyncio.create_task(target.deliver(message(CONTENT)))
        await reached.wait()
        delivery.cancel()
        for _ in range(10):  # turns of the loop, in which the delivery begins to give up
            await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await delivery
        await until(lambda: not children())

    async def test_who_waits_for_a_place_starts_nothing(self, script: Scripts, tmp_path: Path) -> None:
        command = script("open(f'{here}/{os.getpid()}.ran', 'w').close(); time.sleep(60)")
        target = await started(command, processes=1)
        deliveries = [asyncio.create_task(target.deliver(message(CONTENT))) for _ in range(2)]
        await until(lambda: len(list(tmp_path.glob("*.ran"))) == 1)
        for delivery in deliveries:
            delivery.cancel()
        await asyncio.wait(deliveries)
        assert len(list(tmp_path.glob("*.ran"))) == 1
        await until(lambda: not children())

    async def test_when_it_has_ended_already(self, script: Scripts, tmp_path: Path) -> None:
        command = script("""
            with open(f"{here}/begun", "w") as file:
                file.write(str(os.getpid()))
            while not os.path.exists(f"{here}/end"):
                time.sleep(0.005)
        """)
        target = await started(command)
        delivery = asyncio.create_task(target.deliver(message(CONTENT)))
        begun = tmp_path / "begun"
        await until(lambda: begun.exists() and bool(begun.read_text()))
        (tmp_path / "end").touch()
        os.waitid(os.P_PID, int(begun.read_text()), os.WEXITED | os.WNOWAIT)  # the loop has not heard of it yet
        delivery.cancel()
        assert await delivery == [target.url]

    async def test_when_some_have_it_in_lmtp(self, script: Scripts, tmp_path: Path) -> None:
        """As where ``timeout`` is over: what a command has done cannot be undone, so it is not to be done again."""
        command = script("if sys.argv[1] == 'b': open(f'{here}/begun', 'w').close(); time.sleep(60)")
        target = await started(f"{command} {{local}}", processes=1)
        session = lmtp("a@x.example", "b@x.example", "c@x.example")
        delivery = asyncio.create_task(target.deliver(message(CONTENT, session=session)))
        await until((tmp_path / "begun").exists)
        delivery.cancel()
        answers = await delivery
        assert [each.code if isinstance(each, Reject) else each for each in answers] == [target.url, 451, 451]
        await until(lambda: not children())


# --- The program


def send(port: int) -> str:
    with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT) as client:
        try:
            client.sendmail("a@example.org", ["joe@example.com"], b"Subject: x\r\n\r\nbody\r\n")
        except smtplib.SMTPDataError as error:
            return f"{error.smtp_code} {error.smtp_error!r}"
        return "250"


def test_the_program(start: Start, script: Scripts, tmp_path: Path) -> None:
    program = start("--listen", "127.0.0.1:0", "--deliver", f"pipe:{script(NOTES)} {{local}}")
    assert send(program.port()) == "250"
    program.line(r"^message from .*, in pipe:")
    (note,) = notes(tmp_path)
    assert note["arguments"] == ["joe"]
    assert note["environment"]["CLIENT_HELO"] == "client.example.org"
    assert re.match("Return-Path: <a@example.org>\nReceived: from ", note["content"])


def test_a_command_that_takes_too_long(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mail.toml").write_text(f"""
        [[listen]]
        address = "127.0.0.1:0"
        [[deliver]]
        url = "pipe:/bin/sh -c 'echo $$ > {tmp_path}/pid; sleep 60'"
        timeout = 0.5
    """)
    program = start("--config", "mail.toml")
    assert send(program.port()).startswith("451 ")
    program.line("did not answer in 0.5 seconds")
    assert not is_there(int((tmp_path / "pid").read_text()))


def test_a_locale_without_the_characters_of_an_address(start: Start, script: Scripts, tmp_path: Path) -> None:
    """The environment is in UTF-8 all the same, as its LANG says; what cannot be a word is refused."""
    ascii_only = ["env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0", *MODULE]
    command = script("open(f'{here}/ran', 'wb').write(os.environb[b'SENDER'] + b' ' + os.environb[b'RECIPIENT'])")
    for url, reply in ((f"pipe:{command}", 250), (f"pipe:{command} {{local}}", 553)):
        program = start("--listen", "127.0.0.1:0", "--deliver", url, command=ascii_only)
        with smtplib.SMTP("127.0.0.1", program.port(), "client.example.org", timeout=WAIT) as client:
            client.ehlo()
            client.docmd("MAIL", "FROM:<a@example.org> SMTPUTF8")
            client.send("RCPT TO:<\u00fc@example.com>\r\n".encode())
            assert client.getreply()[0] == reply
            if reply == 250:
                assert client.data(CONTENT)[0] == 250
    assert (tmp_path / "ran").read_text("utf-8") == "a@example.org \u00fc@example.com"
