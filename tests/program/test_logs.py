"""The program's log as it is read: JSON by programs, lines in colour by people, transcripts of some clients."""

from __future__ import annotations

import json
import os
import re
import smtplib
import subprocess
import sys
import threading
from base64 import b64encode
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from program import MODULE, WAIT, Program, Start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="terminals")


def send(port: int, *recipients: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT) as client:
        client.sendmail("a@example.org", recipients or ["b@example.com"], b"Subject: x\r\n\r\nbody\r\n")


def records(program: Program) -> list[dict[str, Any]]:
    return [json.loads(line) for line in program.lines if line]


class TestJSON:
    def test_is_what_programs_get(self, start: Start) -> None:
        program = start("--listen", "127.0.0.1:0", "--log-format", "json", "--set", "disable_reverse_lookup=true")
        port = int(program.line(r'"message": "listening on 127\.0\.0\.1:(\d+)"')[1])
        send(port, "b@example.com", "c@example.com")
        assert program.end() == 0
        first, message, *_, last = records(program)
        assert first["level"] == "info"
        assert first["pid"] == program.process.pid
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
        assert last["message"] == "closed"
        assert message["message"].startswith(
            "message from <a@example.org> to <b@example.com> <c@example.com>, 20 bytes"
        )
        assert {name: message[name] for name in ("mail_from", "rcpt_to", "bytes", "outcome", "address", "tnx")} == {
            "mail_from": "a@example.org",
            "rcpt_to": ["b@example.com", "c@example.com"],
            "bytes": 20,
            "outcome": "stored",
            "address": "127.0.0.1",
            "tnx": "message",
        }
        assert message["id"] == f"{message['cid']}.1"
        assert "user" not in message  # nobody has logged in

    def test_without_a_terminal_it_is_the_default(self, start: Start) -> None:
        program = start("--listen", "127.0.0.1:0", "--log-format", "auto")
        assert json.loads(program.line("listening on").string)["logger"] == "pillarbox.program"

    def test_a_traceback_is_one_record(self, start: Start, tmp_path: Path) -> None:
        (tmp_path / "Maildir").mkdir()
        program = start("--listen", "127.0.0.1:0", "--log-format", "json")
        port = int(program.line(r"127\.0\.0\.1:(\d+)")[1])
        for folder in ("tmp", "new"):
            (tmp_path / "Maildir" / folder).rmdir()
        with pytest.raises(smtplib.SMTPDataError):
            send(port)
        program.end()
        errors = [record for record in records(program) if record["level"] == "error"]
        assert ["cannot store a message" in record["message"] for record in errors] == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="a pipe that can be locked")
@pytest.mark.parametrize(("workers", "blocking"), [("2", True), ("2", False), ("1", False)])
def test_long_lines_stay_whole_where_the_reader_is_slow(tmp_path: Path, workers: str, blocking: bool) -> None:
    """A system writes no more than PIPE_BUF in one piece, and between two pieces another process may write.

    Who started the program may have made the pipe not block, as for itself.
    """
    command = [*MODULE, "serve", "--workers", workers, "--listen", "127.0.0.1:0", "--deliver", "discard:"]
    recipients = [f"{number:060}@{'.'.join(['d' * 60] * 3)}.example" for number in range(10)]
    read = b""
    import fcntl

    def messages(port: int) -> None:
        for _ in range(20):
            send(port, *recipients)

    def end_after(clients: list[Future[None]]) -> None:
        wait(clients)
        program.terminate()

    pipe, its = os.pipe()
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)  # it is full with the half of such a line
    os.set_blocking(its, blocking)
    with subprocess.Popen(command, cwd=tmp_path, stderr=its) as program, ThreadPoolExecutor(5) as clients:
        os.close(its)
        ending = threading.Timer(WAIT, program.kill)
        ending.start()
        while not (found := re.search(rb"listening on 127\.0\.0\.1:(\d+)", read)):
            read += os.read(pipe, 4096)
        done = [clients.submit(messages, int(found[1])) for _ in range(4)]
        clients.submit(end_after, done)
        while octets := os.read(pipe, 4096):
            read += octets
        ending.cancel()
    os.close(pipe)
    lines = [json.loads(line) for line in read.splitlines()]
    assert sum("outcome" in line for line in lines) == 80


class TestTerminal:
    @pytest.mark.parametrize(("environment", "colours"), [({}, True), ({"NO_COLOR": "1"}, False)])
    def test_a_line_for_people(self, tmp_path: Path, environment: dict[str, str], colours: bool) -> None:
        ours, its = os.openpty()
        env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | environment
        command = [*MODULE, "serve", "--listen", "127.0.0.1:0", "--set", "disable_reverse_lookup=true"]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=its, env=env)
        os.close(its)
        try:
            with os.fdopen(ours, "rb", buffering=0) as terminal:
                first = self.line(terminal)
                match = re.search(rb"127\.0\.0\.1:(\d+)", first)
                assert match is not None
                send(int(match[1]))
                line = self.line(terminal)
        finally:
            process.terminate()
            process.wait(WAIT)
        assert (b"\x1b[" in line) is colours
        plain = re.sub(rb"\x1b\[[0-9;]*m", b"", line).decode()
        assert re.match(r"\d\d:\d\d:\d\d message from <a@example.org> to <b@example.com>, 20 bytes, id ", plain)

    def line(self, terminal: Any) -> bytes:
        octets = b""
        while not octets.endswith(b"\n"):
            octets += terminal.read(1)
        return octets


RICH = """
class Console:
    def __init__(self, file, **_):
        self.print = file.write

class Traceback:
    def from_exception(kind, error, trace, **_):
        while trace.tb_next:
            trace = trace.tb_next
        return str(trace.tb_frame.f_locals)
"""


class TestTraceback:
    def test_shows_no_local_variables_and_begins_no_line(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """structlog shows tracebacks by rich where that is installed, with the variables of each frame."""
        (tmp_path / "mine.py").write_text(
            "def login(auth, session):\n    found = auth.password\n"
            "    raise LookupError(f'no {auth.username}\\nmessage from <x>\\x1b[31m')\n"
        )
        (tmp_path / "rich").mkdir()
        (tmp_path / "rich" / "__init__.py").touch()
        for name in ("console", "traceback"):
            (tmp_path / "rich" / f"{name}.py").write_text(RICH)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        program = start("--listen", "127.0.0.1:0", "--users", "python:mine:login", "--set", "allow_insecure_auth=true")
        with smtplib.SMTP("127.0.0.1", program.port(), timeout=WAIT) as client:
            client.ehlo()
            assert client.docmd("AUTH", "PLAIN " + b64encode(b"\0joe\0geheim").decode())[0] == 454
        assert program.end() == 0
        log = "\n".join(program.lines)
        assert "in login\n" in log
        assert "geheim" not in log
        assert "\x1b" not in log
        assert [line for line in program.lines if re.match("Traceback|LookupError|message from", line)] == []


def test_no_address_turns_a_line_round(start: Start) -> None:
    program = start("--listen", "127.0.0.1:0", "--deliver", "discard:")
    with smtplib.SMTP("127.0.0.1", program.port(), "client.example.org", timeout=WAIT) as client:
        client.ehlo()
        client.sendmail("a\u202e\u2066\u2028@example.org", ["b@example.com"], b"x\r\n", ["SMTPUTF8"])
    program.line(r"^message from <a\?\?\?@example\.org> to <b@example\.com>, ")


class TestTranscripts:
    @pytest.mark.promises("The program", "A transcript shows no password.")
    def test_of_those_that_are_listed(self, start: Start) -> None:
        program = start(
            *("--listen", "127.0.0.1:0", "--transcript", "127.0.0.0/8", "--log-level", "warning"),
            *("--set", "allow_insecure_auth=true", "--set", "auth_failure_delay=0", "--set", "auth_optional=true"),
        )
        port = port_of(program.process.pid)
        with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT) as client:
            client.ehlo()
            client.docmd("AUTH", "PLAIN " + b64encode(b"\0joe\0geheim").decode())
            client.docmd("AUTH", "LOGIN")
            client.docmd(b64encode(b"joe").decode())
            client.docmd(b64encode(b"geheim").decode())
        program.line("C: QUIT")
        program.end()
        lines = "\n".join(program.lines)
        assert re.search(r"^debug: C: EHLO client\.example\.org \[127\.0\.0\.1 \w{16}\]$", lines, re.MULTILINE)
        assert "debug: S: 250" in lines
        assert "geheim" not in lines
        assert b64encode(b"geheim").decode() not in lines
        assert b64encode(b"\0joe\0geheim").decode() not in lines
        assert "listening" not in lines  # that is no transcript

    def test_not_of_others(self, start: Start) -> None:
        program = start("--listen", "127.0.0.1:0", "--transcript", "192.0.2.1")
        send(program.port())
        program.end()
        assert not [line for line in program.lines if "C: " in line or "S: " in line]

    def test_all(self, start: Start) -> None:
        program = start("--listen", "127.0.0.1:0", "--transcript", "all")
        send(program.port())
        program.line("C: DATA")

    def test_no_network(self, start: Start) -> None:
        program = start("--transcript", "everyone")
        assert program.wait() == 2
        assert "transcript: 'everyone' does not appear to be an IPv4 or IPv6 network" in program.lines[0]


def port_of(pid: int) -> int:
    """Return where a process listens that does not tell, from the kernel's tables."""
    import time

    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        inodes = set()
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(descriptor.readlink()))
            except OSError:
                continue
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                return int(fields[1].partition(":")[2], 16)
        time.sleep(0.02)
    raise AssertionError("it does not listen")
