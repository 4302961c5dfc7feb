"""What the tests with real clients share: the server they deliver to, the messages, how a program is found and run."""

from __future__ import annotations

import asyncio
import os
import queue
import re
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pillarbox import AuthRequest, MessageStream, Recipient, Reject, ScramKeys, Session, SMTPServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

HOST = "127.0.0.1"
USER, PASSWORD, TOKEN = "alice", "secret", "ya29.token-of-alice"
MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2")

PLAIN, STARTTLS, IMPLICIT = "plain", "STARTTLS", "implicit TLS"
FORMS = (PLAIN, STARTTLS, IMPLICIT)

SENDER, RECIPIENT, NOBODY = "sender@example.org", "ann@example.com", "nobody@example.com"

HEADER = (
    b"From: sender@example.org\r\nTo: ann@example.com\r\nSubject: a test\r\n"
    b"Date: Sat, 07 Mar 2026 09:05:03 +0000\r\nMessage-ID: <1@example.org>\r\n"
)
# All that a client could get wrong on the way: dots that begin lines, a line of more than RFC 5321's 1,000 octets,
# empty lines, spaces at the end, octets above 127.
TRICKY = HEADER + (
    b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    b".\r\n..\r\n.a line that begins with a dot\r\n\r\n" + b"long " * 3000 + b"\r\n"
    b"  spaces at both ends  \r\n\r\nGr\xc3\xbc\xc3\x9fe\r\n.\r\nthe end.\r\n"
)
SIMPLE = HEADER + b"\r\nHello.\r\n"
BIG = HEADER + b"\r\n" + b"".join(b"%s%070d\r\n" % (b"." * (n % 7 == 0), n) for n in range(60_000))  # 4.3 MB


# --- Programs


def missing(reason: str) -> NoReturn:
    """Skip the test by name; in CI nothing may be missing, there it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"required in CI: {reason}")
    pytest.skip(reason)


def program(name: str, package: str) -> str:
    """Return the path of a program that a Debian package brings."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    return found or missing(f"{name} is not installed (Debian package {package})")


@dataclass(frozen=True)
class Outcome:
    """How a client's program ended."""

    status: int
    output: str  # what it wrote to standard output and standard error

    def expect_success(self) -> None:
        assert self.status == 0, self.output

    def expect_failure(self, *said: str) -> None:
        assert self.status != 0, self.output
        for text in said:
            assert text in self.output


def run(arguments: Sequence[str | Path], octets: bytes = b"", *, timeout: float = 60) -> Outcome:
    """Run a program with this input, to its end, in an environment that configures nothing."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": home, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            arguments,
            input=octets,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            env=environment,
            cwd=home,
            check=False,
        )
    return Outcome(done.returncode, done.stdout.decode("utf-8", "replace"))


class Background:
    """A program that serves until the test is done with it; ``line`` waits for what it says."""

    def __init__(self, *arguments: str | Path, folder: Path) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._said: list[str] = []
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
        )
        self._reader = threading.Thread(target=self._read, name="reader")

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(30)
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._lines.put(line)
        self._lines.put("")

    def line(self, pattern: str, *, timeout: float = 30) -> re.Match[str]:
        """Return the next line in which the pattern is found."""
        while True:
            line = self._lines.get(timeout=timeout)
            self._said.append(line)
            assert line, f"it ended without saying {pattern!r}: {''.join(self._said)}"
            if found := re.search(pattern, line):
                return found

    def port(self) -> int:
        """Return where it listens, as soon as it does."""
        return int(self.line(r"listening on 127\.0\.0\.1:(\d+)")[1])

    def stop(self) -> int:
        """Ask it to end as a service manager does, and return its exit status."""
        self._process.terminate()
        return self._process.wait(30)


# --- The server


@dataclass(frozen=True)
class Delivery:
    """A message as the server got it."""

    mail_from: str
    rcpt_to: tuple[str, ...]
    content: bytes
    transmission_type: str
    user: Any
    method: str | None  # of the authentication
    smtp_utf8: bool


class Server:
    """A real ``SMTPServer`` in a thread and a loop of its own, so that a test can wait for a program.

    It listens with SMTP on ``port`` and ``path`` (a Unix socket), with implicit TLS on ``tls_port``, with LMTP on
    ``lmtp_port`` and ``lmtp_path``. ``deliveries`` is complete when the client is done, since a message is noted before
    it is answered. ``problems`` holds what reached ``on_error``: a test takes out what it expects, or says in
    ``tolerated`` what may come; nothing else may be left.
    """

    port: int
    tls_port: int
    lmtp_port: int

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop], **options: Any) -> None:
        self.deliveries: list[Delivery] = []
        self.problems: queue.SimpleQueue[Exception] = queue.SimpleQueue()
        self.tolerated: tuple[type[Exception], ...] = ()
        self._folder = tempfile.TemporaryDirectory(prefix="pb")  # a Unix socket's path must be short
        self.path = f"{self._folder.name}/smtp"
        self.lmtp_path = f"{self._folder.name}/lmtp"
        self._loop_factory = loop_factory
        self._options = {
            "name": "mx.example.com",
            "disable_reverse_lookup": True,
            "auth_optional": True,
            "allow_insecure_auth": True,
            "auth_methods": MECHANISMS,
            "close_timeout": 0.0,
            "on_auth": self._on_auth,
            "on_rcpt_to": self._on_rcpt_to,
            "on_data": self._on_data,
            "on_error": self._on_error,
        } | options
        self._thread = threading.Thread(target=self._run, name="server")
        self._ready = threading.Event()
        self._failure: BaseException | None = None

    @property
    def delivery(self) -> Delivery:
        """The only message."""
        assert len(self.deliveries) == 1
        return self.deliveries[0]

    def expect_problem(self, kind: type[Exception]) -> None:
        """Take the next problem; it may come after the client is gone."""
        problem = self.problems.get(timeout=30)
        assert isinstance(problem, kind), problem

    def unexpected_problems(self) -> list[Exception]:
        """Return what is left, when the server has ended."""
        left = [self.problems.get() for _ in range(self.problems.qsize())]
        return [problem for problem in left if not isinstance(problem, self.tolerated)]

    def port_of(self, form: str) -> int:
        return self.tls_port if form == IMPLICIT else self.port

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._folder.cleanup()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.run(self._serve())
        except BaseException as failure:  # noqa: BLE001 - the test's thread raises it
            self._failure = failure
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with SMTPServer(self._options) as server:
            await server.listen(0, HOST)
            await server.listen(0, HOST, secure=True)
            await server.listen(0, HOST, lmtp=True)
            self.port, self.tls_port, self.lmtp_port = (int(address[1]) for address in server.addresses)
            await server.listen(path=self.path)
            await server.listen(path=self.lmtp_path, lmtp=True)
            self._ready.set()
            await self._stop.wait()

    # --- Handlers

    def _on_auth(self, auth: AuthRequest, session: Session) -> str | None:
        session.state["method"] = auth.method
        knows = auth.access_token == TOKEN if auth.method == "XOAUTH2" else auth.validate_password(PASSWORD)
        return USER if auth.username == USER and knows else None

    def _on_rcpt_to(self, address: Recipient, session: Session) -> None:
        if address.address == NOBODY:
            raise Reject(550, "No such user here")

    async def _on_data(self, stream: MessageStream, session: Session) -> list[Reject | None] | None:
        content = await stream.read()
        envelope = session.envelope
        assert envelope.mail_from is not None
        recipients = tuple(recipient.address for recipient in envelope.rcpt_to)
        self.deliveries.append(
            Delivery(
                mail_from=envelope.mail_from.address,
                rcpt_to=recipients,
                content=content,
                transmission_type=session.transmission_type,
                user=session.user,
                method=session.state.get("method"),
                smtp_utf8=envelope.smtp_utf8,
            )
        )
        if not session.lmtp:
            return None
        return [Reject(452, "Mailbox full") if address.startswith("full@") else None for address in recipients]

    def _on_error(self, error: Exception, session: Session | None) -> None:
        self.problems.put(error)


def all_mechanisms() -> dict[str, Any]:
    """Return the options of a ``Server`` that knows USER by password, keys, token and certificate."""
    keys = [ScramKeys.from_password(PASSWORD, hash=name, iterations=4096) for name in ("sha256", "sha1")]

    def on_auth(auth: AuthRequest, session: Session) -> str | None:
        session.state["method"] = auth.method
        if auth.method == "ANONYMOUS":
            return auth.trace
        token = auth.method in ("XOAUTH2", "OAUTHBEARER") and auth.access_token == TOKEN
        knows = auth.verified or token or auth.method == "EXTERNAL" or auth.validate_password(PASSWORD)
        return USER if auth.username == USER and knows else None

    scram = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-1")
    return {
        "auth_methods": (*MECHANISMS, *scram, "OAUTHBEARER", "EXTERNAL", "ANONYMOUS"),
        "on_auth": on_auth,
        "on_scram": lambda username, session: keys if username == USER else None,
    }


def expected_type(form: str, *, authenticated: bool = False) -> str:
    """Return RFC 3848's name for mail that came this way."""
    return "ESMTP" + ("" if form == PLAIN else "S") + ("A" if authenticated else "")
