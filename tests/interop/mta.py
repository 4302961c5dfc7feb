"""What the tests with real MTAs share: a server that notes all it is told of a message, and how an MTA is run.

An MTA relays to our server everything it has, its bounces too: a test sees from both sides what became of a message.
"""

from __future__ import annotations

import email
import email.policy
import logging
import os
import queue
import re
import signal
import smtplib
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from interop.peers import NOBODY, Server, missing
from pillarbox import MessageStream, Recipient, Reject, Session

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from email.message import EmailMessage
    from typing import Self

    from pillarbox.session import MessageDSN, RecipientDSN, TLSInfo

SMTP, LMTP, LMTP_UNIX = "SMTP", "LMTP", "LMTP by a Unix socket"
TRANSPORTS = (SMTP, LMTP, LMTP_UNIX)

# How our server answers for some recipients: LATER and NOBODY at RCPT, in LMTP FULL and QUOTA after the data.
LATER, FULL, QUOTA = "later@example.com", "full@example.com", "quota@example.com"
PATIENCE = 30.0  # seconds for anything that an MTA has to do


def require_root(why: str) -> None:
    if os.geteuid() != 0:
        missing(f"root is needed: {why}")


# --- Our side


@dataclass(frozen=True)
class Mail:
    """A message, and all that the server was told of it."""

    session: str  # its id
    mail_from: str
    rcpt_to: tuple[str, ...]
    content: bytes
    transmission_type: str
    hello: str | None
    method: str | None  # of the authentication
    body_type: str
    smtp_utf8: bool
    dsn: MessageDSN
    recipient_dsn: dict[str, RecipientDSN]
    x_forward: dict[str, str]
    tls: TLSInfo | None

    @property
    def message(self) -> EmailMessage:
        return email.message_from_bytes(self.content, policy=email.policy.default)

    @property
    def body(self) -> bytes:
        return self.content.partition(b"\r\n\r\n")[2]

    def reported(self) -> dict[str, tuple[str, str]]:
        """Return what a delivery report says: recipient → action and status (RFC 3464 2.3)."""
        for part in self.message.walk():
            if part.get_content_type() == "message/delivery-status":
                fields: Any = part.get_payload()  # a message of headers alone for each recipient
                about = [one for one in fields if "Action" in one]
                return {address(one): (one["Action"].lower(), one["Status"]) for one in about}
        raise AssertionError("this is no delivery report")


def address(fields: EmailMessage) -> str:
    return str(fields["Final-Recipient"]).partition(";")[2].strip()


class Relayed(Server):
    """The server of the tests, for MTAs: it offers all that it can and keeps a ``Mail`` of each message."""

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop], **options: Any) -> None:
        self.mails: queue.SimpleQueue[Mail] = queue.SimpleQueue()
        self.recovers = False  # LATER is accepted now
        self._gone: set[str] = set()
        self._goes = threading.Condition()
        offers: dict[str, Any] = {
            "on_close": self._on_close,
            "hide_dsn": False,
            "hide_enhanced_status_codes": False,
            "use_xforward": ["127.0.0.1"],
        }
        super().__init__(loop_factory, **(offers | options))

    def __enter__(self) -> Self:
        super().__enter__()
        for path in (self._folder.name, self.path, self.lmtp_path):
            Path(path).chmod(0o777)  # an MTA delivers under a user of its own
        return self

    def next(self) -> Mail:
        """Wait for the next message."""
        try:
            return self.mails.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError("no message came") from None

    def settle(self) -> None:
        """Nothing unexpected has happened; from now on the MTA may be killed."""
        assert self.unexpected_problems() == []
        self.tolerated = (ConnectionError,)

    def gone(self, mail: Mail) -> None:
        """Wait until the connection that a message came by is gone."""
        with self._goes:
            assert self._goes.wait_for(lambda: mail.session in self._gone, PATIENCE)

    def _on_close(self, session: Session) -> None:
        with self._goes:
            self._gone.add(session.id)
            self._goes.notify_all()

    def _on_rcpt_to(self, address: Recipient, session: Session) -> None:
        if address.address == NOBODY:
            raise Reject(550, "No such user here", enhanced="5.1.1")
        if address.address == LATER and not self.recovers:
            raise Reject(451, "Try again later", enhanced="4.3.0")

    async def _on_data(self, stream: MessageStream, session: Session) -> list[Reject | None] | None:
        content = await stream.read()
        envelope = session.envelope
        assert envelope.mail_from is not None
        mail = Mail(
            session=session.id,
            mail_from=envelope.mail_from.address,
            rcpt_to=tuple(recipient.address for recipient in envelope.rcpt_to),
            content=content,
            transmission_type=session.transmission_type,
            hello=session.host_name_appears_as,
            method=session.state.get("method"),
            body_type=envelope.body_type,
            smtp_utf8=envelope.smtp_utf8,
            dsn=envelope.dsn,
            recipient_dsn={recipient.address: recipient.dsn for recipient in envelope.rcpt_to},
            x_forward=dict(session.x_forward),
            tls=session.tls,
        )
        self.mails.put(mail)
        if not session.lmtp:
            return None
        refusals = {
            FULL: Reject(452, "Mailbox full", enhanced="4.2.2"),
            QUOTA: Reject(552, "Over quota", enhanced="5.2.2"),
        }
        return [refusals.get(address) for address in mail.rcpt_to]


@contextmanager
def relayed(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture, **options: Any
) -> Iterator[Relayed]:
    """Run a server whose dialogues are logged; in the end nothing has gone wrong in it."""
    caplog.set_level(logging.DEBUG, "pillarbox")
    with Relayed(loop_factory, **options) as server:
        yield server
    errors = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert (server.unexpected_problems(), errors) == ([], [])


def transcript(records: Iterable[logging.LogRecord], session: str) -> list[str]:
    """Return the dialogue of one session as the server logged it: ``C:`` and ``S:`` lines."""
    said = [record.getMessage() for record in records if getattr(record, "cid", "") == session]
    return [line for line in said if line.startswith(("C: ", "S: "))]


def verbs(records: Iterable[logging.LogRecord], session: str) -> list[str]:
    """Return the verbs of one session's commands in their order."""
    return [line.split()[1] for line in transcript(records, session) if line.startswith("C: ")]


# --- The MTA's side


class Log:
    """What a program says while it runs; ``find`` waits until it has said it."""

    def __init__(self, output: IO[str]) -> None:
        self._lines: list[str] = []
        self._more = threading.Condition()
        self._ended = False
        self._output = output
        self._reader = threading.Thread(target=self._read, name="log")
        self._reader.start()

    def _read(self) -> None:
        with self._output:
            for line in self._output:
                with self._more:
                    self._lines.append(line)
                    self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def find(self, pattern: str) -> re.Match[str]:
        """Return the first line with the pattern in it, all that was said included."""
        wanted = re.compile(pattern)
        deadline = time.monotonic() + PATIENCE
        with self._more:
            while not (found := [match for line in self._lines if (match := wanted.search(line))]):
                over = self._ended or not self._more.wait(deadline - time.monotonic())
                assert not over, f"it did not say {pattern!r}:\n{self}"
        return found[0]

    def lines(self) -> list[str]:
        with self._more:
            return list(self._lines)

    def join(self) -> None:
        self._reader.join(PATIENCE)

    def __str__(self) -> str:
        return "".join(self.lines()[-200:])


@contextmanager
def started(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> Iterator[Log]:
    """Run a program that serves until the block is left; then it and its children are killed, its group as a whole."""
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"} | dict(environment or {}),
        start_new_session=True,
    )
    assert process.stdout is not None
    log = Log(process.stdout)
    try:
        yield log
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.join()


class UnixSMTP(smtplib.SMTP):
    """smtplib over a Unix socket, to hand a message to an MTA without taking a port."""

    def __init__(self, path: Path) -> None:
        super().__init__(local_hostname="user.example.org", timeout=PATIENCE)
        self._path = str(path)
        self.connect("localhost")

    def _get_socket(self, *_: object) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(self._path)
        return connection
