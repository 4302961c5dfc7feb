"""The program as it is started by people: a real process, real sockets, signals and exit status."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from program import MODULE, WAIT, Program, Start

MESSAGE = b"Subject: hello\r\nFrom: a@example.org\r\n\r\n.dot\r\nbody\r\n"
STORED = MESSAGE.replace(b"\r\n", b"\n")
WITHOUT_UVLOOP = [
    sys.executable,
    "-c",
    "import sys; sys.modules['uvloop'] = None; from pillarbox.cli import main; main()",
]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and Unix sockets")


def failed(start: Start, *arguments: str, **more: Any) -> str:
    """Return the one message of a program that could not start."""
    program = start(*arguments, **more)
    assert program.wait() == 2
    (line,) = [line for line in program.lines if line]
    return line


def send(port: int, recipients: tuple[str, ...] = ("b@example.com",), message: bytes = MESSAGE) -> None:
    with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT) as client:
        client.sendmail("a@example.org", recipients, message)


def conversation(port: int, *lines: bytes) -> socket.socket:
    """Send commands one by one and return the socket after the last reply."""
    client = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
    for line in (b"", *lines):
        client.sendall(line)
        assert client.recv(4096)[:1] in b"23"
    return client


ENVELOPE = (b"HELO x\r\n", b"MAIL FROM:<a@example.org>\r\n", b"RCPT TO:<b@example.com>\r\n", b"DATA\r\n")


def stored(folder: Path) -> list[bytes]:
    assert list((folder / "tmp").iterdir()) == []
    return [path.read_bytes() for path in sorted((folder / "new").iterdir())]


class TestDelivery:
    @pytest.mark.parametrize("command", [MODULE, WITHOUT_UVLOOP], ids=["uvloop", "asyncio"])
    def test_into_the_maildir(self, start: Start, tmp_path: Path, command: list[str]) -> None:
        program = start("--listen", "127.0.0.1:0", "--set", "name=mx.example.com", command=command)
        send(program.port())
        (content,) = stored(tmp_path / "Maildir")
        match = re.fullmatch(
            rb"Return-Path: <a@example\.org>\n"
            rb"Received: from client\.example\.org \((?:localhost )?\[127\.0\.0\.1\]\)\n"
            rb"\tby mx\.example\.com \(pillarbox\) with ESMTP id (\w{16}\.1)\n"
            rb"\tfor <b@example\.com>;\n"
            rb"\t\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}\n" + re.escape(STORED),
            content,
        )
        assert match is not None, content
        line = program.line("^message ")[0] and program.lines[-1]
        (path,) = (tmp_path / "Maildir/new").iterdir()
        assert line == (
            f"message from <a@example.org> to <b@example.com>, {len(MESSAGE)} bytes, id {match[1].decode()},"
            f" in Maildir/new/{path.name}"
        )
        assert program.end() == 0

    def test_one_line_for_many_recipients(self, start: Start, tmp_path: Path) -> None:
        program = start("--listen", "127.0.0.1:0")
        send(program.port(), tuple(f"u{number}@example.com" for number in range(12)))
        program.line(r"to <u0@example.com> .* <u9@example.com> and 2 more, \d+ bytes, id ")
        assert b"u1@" not in stored(tmp_path / "Maildir")[0]

    def test_large(self, start: Start, tmp_path: Path) -> None:
        program = start("--listen", "127.0.0.1:0")
        message = b"Subject: x\r\n\r\n" + b"0123456789" * 7 + b"\r\n"
        message += b"".join(b"%070d\r\n" % number for number in range(20_000))
        send(program.port(), message=message)
        assert stored(tmp_path / "Maildir")[0].endswith(message.replace(b"\r\n", b"\n"))

    def test_tls_is_told(self, start: Start, tmp_path: Path) -> None:
        program = start("--listen", "127.0.0.1:0")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with smtplib.SMTP("127.0.0.1", program.port(), timeout=WAIT) as client:
            client.starttls(context=context)
            client.sendmail("a@example.org", ["b@example.com"], MESSAGE)
        (content,) = stored(tmp_path / "Maildir")
        assert b"\t(using TLSv1.3 with cipher TLS_" in content
        assert b" with ESMTPS id " in content

    def test_lmtp_on_a_unix_socket(self, start: Start, tmp_path: Path) -> None:
        path = tmp_path / "lmtp"
        program = start("--listen", f"unix:{path}", "--set", "lmtp=true")
        program.line(rf"^listening on unix:{path}$")
        with smtplib.LMTP(str(path), local_hostname="client.example.org") as client:
            client.sendmail("a@example.org", ["b@example.com"], MESSAGE)
        (content,) = stored(tmp_path / "Maildir")
        assert b"Received: from client.example.org\n\tby " in content
        assert b" with LMTP id " in content
        assert program.end() == 0
        assert not path.exists()

    def test_a_socket_that_was_handed_over(self, start: Start, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            fd = listening.fileno()
            program = start("--listen", f"fd:{fd}", fds=(fd,))
            assert program.port() == listening.getsockname()[1]
            send(listening.getsockname()[1])
        assert len(stored(tmp_path / "Maildir")) == 1

    def test_several_targets(self, start: Start, tmp_path: Path) -> None:
        targets = (f"maildir:{tmp_path}/a", "discard:", "maildir:./b")
        program = start("--listen", "127.0.0.1:0", *(word for url in targets for word in ("--deliver", url)))
        send(program.port())
        program.line(rf", in {tmp_path}/a/new/\S+, discard:, b/new/\S+$")
        assert stored(tmp_path / "a") == stored(tmp_path / "b") != []
        assert not (tmp_path / "Maildir").exists()

    def test_a_place_is_logged_once(self, start: Start, tmp_path: Path) -> None:
        program = start("--listen", "127.0.0.1:0", "--deliver", "mbox:all", "--deliver", "maildir:{mailbox}")
        with smtplib.SMTP("127.0.0.1", program.port(), timeout=WAIT) as client:
            client.sendmail("a@example.org", ["b@example.com", "c@example.com"], b"Subject: x\r\n\r\nbody\r\n")
        line = program.line(r"^message from <a@example.org> to <b@example.com> <c@example.com>, .*, in (.*)$")[1]
        places = [place.removeprefix(f"{tmp_path}/") for place in line.split(", ")]
        assert [place.partition("/")[0] for place in places] == ["all", "b", "c"]

    def test_a_configuration_file(self, start: Start, tmp_path: Path) -> None:
        (tmp_path / "mail.toml").write_text("""
            [server]
            name = "mx.example.com"
            size = 1000
            [[listen]]
            address = "127.0.0.1:0"
            [[listen]]
            address = "127.0.0.1:0"
            name = "other.example.com"
            auth_optional = false
            [[deliver]]
            url = "maildir:mail"
            [[users]]
            url = "htpasswd:users"
            [access]
            accept = ["*@example.com"]
        """)
        (tmp_path / "users").touch(mode=0o600)
        program = start("mail.toml", "--set", "size=2000")
        first, second = program.port(), program.port()
        send(first)
        assert b"by mx.example.com " in stored(tmp_path / "mail")[0]
        with smtplib.SMTP("127.0.0.1", first, timeout=WAIT) as client:
            assert b"SIZE 2000" in client.ehlo()[1]
        with smtplib.SMTP("127.0.0.1", second, timeout=WAIT) as client:
            assert client.ehlo()[1].startswith(b"other.example.com ")
            assert client.mail("a@example.org")[0] == 530

    def test_a_target_that_fails_is_451_and_the_program_goes_on(self, start: Start, tmp_path: Path) -> None:
        program = start("--listen", "127.0.0.1:0")
        port = program.port()
        tmp = tmp_path / "Maildir/tmp"
        tmp.rmdir()
        with pytest.raises(smtplib.SMTPDataError) as refused:
            send(port)
        assert refused.value.smtp_code == 451
        assert b"Maildir" not in refused.value.smtp_error
        program.line(r"^error: cannot store a message in maildir:\./Maildir: .*No such file.* \[127\.0\.0\.1 \w{16}\]$")
        program.line(r"^message from <a@example.org> .* id \w{16}\.1, refused: 451 4\.3\.0 Error: ")
        tmp.mkdir()
        send(port)
        assert len(stored(tmp_path / "Maildir")) == 1

    def test_a_message_that_is_too_large_leaves_nothing(self, start: Start, tmp_path: Path) -> None:
        program = start("--listen", "127.0.0.1:0", "--set", "size=1000000")
        client = conversation(program.port(), *ENVELOPE)
        client.sendall(b"x" * 78 + b"\r\n")
        client.sendall((b"y" * 78 + b"\r\n") * 15_000 + b".\r\n")
        assert client.recv(4096).startswith(b"552 ")
        client.close()
        assert stored(tmp_path / "Maildir") == []

    @pytest.mark.promises("Nothing is lost", "A client that disappears within a message leaves no message.")
    def test_a_client_that_vanishes_leaves_nothing(self, start: Start, tmp_path: Path) -> None:
        program = start("--listen", "127.0.0.1:0", "--log-level", "debug")
        client = conversation(program.port(), *ENVELOPE)
        client.sendall((b"y" * 78 + b"\r\n") * 15_000)
        client.close()
        program.line("connection closed")
        assert stored(tmp_path / "Maildir") == []


class TestKilled:
    @pytest.mark.promises(
        "Nothing is lost", "kill -9 at any moment loses no message that got 250, and leaves no torn one."
    )
    def test_nothing_acknowledged_is_lost_and_nothing_is_torn(self, start: Start, tmp_path: Path) -> None:
        program = start("--listen", "127.0.0.1:0")
        port = program.port()
        acknowledged: list[int] = []
        enough = threading.Event()

        def load(first: int) -> None:
            number = first
            try:
                with smtplib.SMTP("127.0.0.1", port, timeout=WAIT) as client:
                    while True:
                        body = b"Subject: %d\r\n\r\n%s\r\n" % (number, b"x" * 70 * (number % 50))
                        client.sendmail("a@example.org", ["b@example.com"], body)
                        acknowledged.append(number)
                        number += 1
                        if len(acknowledged) > 100:
                            enough.set()
            except (smtplib.SMTPException, OSError):
                return

        threads = [threading.Thread(target=load, args=(1_000_000 * each,)) for each in range(1, 5)]
        for thread in threads:
            thread.start()
        assert enough.wait(WAIT)
        program.process.kill()
        for thread in threads:
            thread.join(WAIT)
        found = set()
        for path in (tmp_path / "Maildir/new").iterdir():
            head, _, body = path.read_bytes().partition(b"\n\n")
            number = int(head.rpartition(b"Subject: ")[2])
            assert body == b"x" * 70 * (number % 50) + b"\n"
            found.add(number)
        assert found >= set(acknowledged)

    def test_what_some_recipients_have_stands_in_the_log_when_others_are_refused(
        self, start: Start, tmp_path: Path
    ) -> None:
        (tmp_path / "mail.toml").write_text(
            "[[listen]]\naddress = '127.0.0.1:0'\n"
            "[[deliver]]\nurl = 'maildir:box'\nrecipients = ['*@here.example']\n"
            "[[deliver]]\nurl = 'pipe:sh -c \"exit 67\"'\nrecipients = ['*@there.example']\n"
        )
        program = start("--config", "mail.toml")
        with pytest.raises(smtplib.SMTPDataError, match=r"all but these have the message: <b@there\.example>"):
            send(program.port(), ("a@here.example", "b@there.example"))
        assert len(stored(tmp_path / "box")) == 1
        program.line(r"^message from .*, in box/new/")
        program.line(r"^message from .*, refused for <b@there\.example>: 550 5\.1\.1 ")
        program.line(r"^message from .*, refused: 554 5\.3\.0 ")


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize("command", [MODULE, WITHOUT_UVLOOP], ids=["uvloop", "asyncio"])
    def test_ends_with_status_0(self, start: Start, number: int, command: list[str]) -> None:
        program = start("--listen", "127.0.0.1:0", command=command)
        program.port()
        assert program.end(number) == 0
        assert not [line for line in program.lines if "Traceback" in line or "rror" in line]

    @pytest.mark.promises("Nothing is lost", "A signal to end lets running transactions finish; idle clients get 421.")
    def test_a_running_transaction_finishes(self, start: Start, tmp_path: Path) -> None:
        program = start("--listen", "127.0.0.1:0")
        port = program.port()
        client = conversation(port, *ENVELOPE)
        client.sendall(b"Subject: x\r\n")
        program.process.send_signal(signal.SIGTERM)
        program.line("^SIGTERM: ")
        client.sendall(b"\r\nbody\r\n.\r\n")
        assert client.recv(4096).startswith(b"250 ")
        assert program.wait() == 0
        client.close()
        assert len(stored(tmp_path / "Maildir")) == 1

    def configuring(self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
        """Return a program that reads its configuration until there is a file ``go``."""
        (tmp_path / "people.py").write_text(
            "import pathlib, sys, time\nprint('reading', file=sys.stderr, flush=True)\n"
            "while not pathlib.Path('go').exists():\n    time.sleep(0.01)\n"
            "def login(auth, session):\n    return None\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        program = start("--listen", "127.0.0.1:0", "--users", "python:people:login")
        program.line("^reading$")
        return program

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_before_there_is_anything_to_end(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        program = self.configuring(start, tmp_path, monkeypatch)
        assert program.end(number) == 0
        assert program.lines == ["reading", ""]

    def test_one_that_asks_to_read_again_what_is_just_read(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = self.configuring(start, tmp_path, monkeypatch)
        program.process.send_signal(signal.SIGHUP)
        (tmp_path / "go").touch()
        program.line("^reloaded$")
        assert program.end() == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_one_ends_at_once(self, start: Start, number: int) -> None:
        program = start("--listen", "127.0.0.1:0", "--set", "close_timeout=600", "--set", "socket_timeout=600")
        client = conversation(program.port(), *ENVELOPE)
        program.process.send_signal(signal.SIGTERM)
        program.line("^SIGTERM: ")
        assert program.end(number) == -number
        client.close()


class TestFailures:
    def test_port_in_use(self, start: Start) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert failed(start, "--listen", f"127.0.0.1:{port}") == (
                f"Error: cannot listen on 127.0.0.1:{port}: address already in use"
                " (another program listens there: stop it, or choose another address)"
            )

    def test_port_in_use_without_uvloop(self, start: Start) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            line = failed(start, "--listen", f"127.0.0.1:{port}", command=WITHOUT_UVLOOP)
            assert line.startswith(f"Error: cannot listen on 127.0.0.1:{port}: address already in use (")

    def test_second_listener_of_a_file(self, start: Start, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            file = tmp_path / "mail.toml"
            file.write_text(f"[[listen]]\naddress = '127.0.0.1:0'\n[[listen]]\naddress = '127.0.0.1:{port}'")
            line = failed(start, "--config", str(file))
            assert line.startswith(f"Error: {file}, [[listen]] 2: cannot listen on 127.0.0.1:{port}: ")

    def test_a_locale_without_the_characters_of_a_path(self, start: Start, tmp_path: Path) -> None:
        ascii_only = ["env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0", *MODULE]
        (tmp_path / "mail.toml").write_text("[[deliver]]\nurl = 'maildir:\u00fc'\n", encoding="utf-8")
        line = failed(start, "--config", "mail.toml", command=ascii_only)
        assert line.endswith("this locale has no such characters: set LC_ALL=C.UTF-8")
        program = start("--listen", "127.0.0.1:0", "--deliver", "maildir:{local}", command=ascii_only)
        with smtplib.SMTP("127.0.0.1", program.port(), "client.example.org", timeout=WAIT) as client:
            client.ehlo()
            client.mail("a@example.org", ["SMTPUTF8"])
            client.send("RCPT TO:<\u00fc@example.com>\r\n".encode())
            assert client.getreply()[0] == 553

    @pytest.mark.parametrize(
        ("address", "message"),
        [
            ("unix:missing/socket", "cannot listen on unix:missing/socket: no such file or directory (make the folder"),
            ("unix:" + "x" * 200, "AF_UNIX path too long"),
            ("unix:file", "there is a file that is no socket"),
            ("fd:99", "cannot listen on fd:99: bad file descriptor (nothing was handed over"),
            ("fd:2", "cannot listen on fd:2: socket operation on non-socket (what was handed over"),
            ("192.0.2.1:2525", "cannot listen on 192.0.2.1:2525: cannot assign requested address (no interface"),
            ("no.such.host.invalid:25", "cannot listen on no.such.host.invalid:25: "),
            ("2525", "--listen: '2525' is no address"),
        ],
    )
    def test_addresses(self, start: Start, tmp_path: Path, address: str, message: str) -> None:
        (tmp_path / "file").touch()
        assert message in failed(start, "--listen", address)

    def test_a_datagram_socket(self, start: Start) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            fd = datagrams.fileno()
            program = start("--listen", f"fd:{fd}", fds=(fd,))
            assert program.wait() == 2
            assert f"Error: cannot listen on fd:{fd}: " in program.lines[0]

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do all")
    def test_permission(self, start: Start, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        assert "permission denied (" in failed(start, "--listen", "unix:socket", "--deliver", "discard:")
        tmp_path.chmod(0o700)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[server", "mail.toml: is not TOML: "),
            ("[server]\nsise = 1", "mail.toml, [server]: unknown option 'sise': did you mean 'size'?"),
            ("[server]\nsize = 'x'", "mail.toml, [server]: option size: must be a whole number"),
            ("[server]\nkey = 'no.key'\ncert = 'no.pem'", "mail.toml, [server]: option "),
            ("[[listen]]\naddress = ':0'\nkey = 'no.key'\ncert = 'no.pem'", "mail.toml, [[listen]] 1: option "),
            ("[[deliver]]\nurl = 'maildir:mail.toml'", "mail.toml, [[deliver]] 1: maildir:mail.toml: mail.toml: "),
        ],
    )
    def test_files(self, start: Start, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "mail.toml").write_text(text)
        assert failed(start, "--config", "mail.toml").startswith(f"Error: {message}")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--config", "missing.toml"), "missing.toml: cannot be read: no such file or directory"),
            (("missing.toml",), "missing.toml: cannot be read: no such file or directory"),
            (("a.toml", "--config", "b.toml"), "FILE and --config are the same"),
            (("--set", "sise=1"), "--set sise: unknown option 'sise': did you mean 'size'?"),
            (("--set", "secured=true"), "--set secured: option secured: means nothing without secure = true"),
            (("--deliver", "maildr:x"), "--deliver: 'maildr:x': unknown scheme 'maildr': did you mean 'maildir'?"),
        ],
    )
    def test_arguments(self, start: Start, arguments: tuple[str, ...], message: str) -> None:
        assert failed(start, *arguments).startswith(f"Error: {message}")

    @pytest.mark.parametrize("command", ["serve", "check"])
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--port", "25"], "--port: no such option: write --listen HOST:PORT"),
            (["--max-clients=5"], "--max-clients: no such option: write --set max_clients=VALUE"),
            (["--lissten", ":25"], "--listen"),
            (["a.toml", "b.toml"], "unexpected extra argument (b.toml)"),
        ],
    )
    def test_what_is_no_argument(self, command: str, arguments: list[str], message: str) -> None:
        done = subprocess.run([*MODULE, command, *arguments], capture_output=True, text=True, check=False, timeout=WAIT)
        assert done.returncode == 2
        assert message in done.stderr

    def test_a_failed_start_serves_nobody(self, start: Start, tmp_path: Path) -> None:
        failed(start, "--set", "size=x")
        assert list(tmp_path.iterdir()) == []


class TestLog:
    def test_warning_is_silent(self, start: Start) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            fd = listening.fileno()
            program = start("--listen", f"fd:{fd}", "--log-level", "WARNING", "--deliver", "discard:", fds=(fd,))
            send(listening.getsockname()[1])
        assert program.end() == 0
        assert "".join(program.lines) == ""

    def test_debug_shows_the_session(self, start: Start) -> None:
        program = start("--listen", "127.0.0.1:0", "--log-level", "debug", "--deliver", "discard:")
        send(program.port())
        program.line(r"^debug: .*MAIL.* \[127\.0\.0\.1 \w{16}\]$")

    def test_a_server_name_outside_ascii_is_one_line_and_no_traceback(self, start: Start) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        written = ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            context.wrap_bio(ssl.MemoryBIO(), written, server_hostname="q" * 9).do_handshake()
        program = start("--listen", "127.0.0.1:0", "--deliver", "discard:", "--set", "secure=true")
        with socket.create_connection(("127.0.0.1", program.port()), timeout=10) as client:
            client.sendall(written.read().replace(b"q" * 9, b"\xff" * 9))
            while client.recv(1024):
                pass
        assert program.end() == 0
        log = "\n".join(program.lines)
        assert "a server name (SNI) outside ASCII: the handshake ends" in log
        assert "Traceback" not in log

    def test_logger_option_shows_nothing_twice(self, start: Start) -> None:
        program = start("--listen", "127.0.0.1:0", "--set", "logger=true", "--deliver", "discard:")
        send(program.port())
        program.end()
        assert len([line for line in program.lines if "listening" in line]) == 1
        assert len([line for line in program.lines if "message from" in line]) == 1


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT).stdout


class TestNames:
    SCRIPT = str(Path(sys.executable).with_name("pillarbox"))

    @pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("serve", "--help")])
    def test_module_and_script_are_the_same_program(self, arguments: tuple[str, ...]) -> None:
        by_module = output(*MODULE, *arguments)
        assert by_module.startswith(("pillarbox ", "Usage: pillarbox "))
        if Path(self.SCRIPT).exists():
            assert output(self.SCRIPT, *arguments) == by_module

    def test_help_fits_a_screen(self) -> None:
        lines = output(*MODULE, "serve", "--help").splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80

    def test_the_library_does_not_import_the_program(self) -> None:
        loaded = output(sys.executable, "-c", "import pillarbox, sys; print(*sys.modules)").split()
        assert not {"click", "uvloop", "pillarbox.cli", "pillarbox.deliver", "cryptography"} & set(loaded)
