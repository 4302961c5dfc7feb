"""What is delivered: one table of workloads, and how each becomes a load program's command."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from bodies import KB, MB, Body
from peers import find

LOAD = Path(__file__).resolve().parent / "load.py"
# smtp-source where it can make the load, else our own.
SMTP_SOURCE, OWN = "smtp-source", "load.py"

SMALL = Body("prose", KB)
LARGE = Body("base64", MB)


@dataclass(frozen=True)
class Workload:
    """One kind of delivery.

    mode: what the server is started for; sessions: how many connections at once; first: how many messages are
    tried to learn how long one takes; recipients: for each message.
    """

    name: str
    title: str
    tool: str
    body: Body
    options: tuple[str, ...] = ()
    mode: str = "plain"
    sessions: int = 10
    first: int = 200
    recipients: int = 1

    def smtp_source(self, port: int, messages: int, folder: Path) -> list[str]:
        """Return the command that delivers so many messages and ends."""
        program = find("smtp-source") or "smtp-source"
        command = [program, "-4", "-s", str(min(self.sessions, messages)), "-m", str(messages)]
        command += ["-r", str(self.recipients)] if self.recipients > 1 else []
        command += ["-M", "client.example", "-f", "sender@example.org", "-t", "ann@example.com", *self.options]
        return [*command, "-F", str(self.body.for_smtp_source(folder)), f"127.0.0.1:{port}"]

    def load(self, port: int, messages: int, folder: Path) -> list[str]:
        """Return the command of our own load program."""
        sessions = min(self.sessions, messages)
        command = [sys.executable, str(LOAD), str(port), "--sessions", str(sessions), "--messages", str(messages)]
        return [*command, "--octets", str(self.body.for_load(folder)), *self.options]


OPEN = ("-d",)  # smtp-source: do not disconnect after a message

_MANY = (
    Workload("open", "1 KB on an open connection", SMTP_SOURCE, SMALL, OPEN),
    Workload("each", "1 KB, one connection each", SMTP_SOURCE, SMALL, first=100),
    Workload("pipelining", "1 KB, pipelined", OWN, SMALL, ("--pipelining",)),
    Workload("50rcpt", "1 KB to 50 recipients", SMTP_SOURCE, SMALL, OPEN, first=20, recipients=50),
    Workload("1mb", "1 MB base64", SMTP_SOURCE, LARGE, OPEN, sessions=4, first=8),
    Workload("1mb-prose", "1 MB prose", SMTP_SOURCE, Body("prose", MB), OPEN, sessions=4, first=4),
    Workload("1mb-dots", "1 MB of dot-lines", SMTP_SOURCE, Body("dots", MB), OPEN, sessions=4, first=4),
    Workload("1mb-bare-lf", "1 MB of bare-LF text", OWN, Body("bare-lf", MB), sessions=4, first=4),
    Workload("25mb", "25 MB base64", SMTP_SOURCE, Body("base64", 25 * MB), OPEN, sessions=1, first=1),
    Workload("lmtp", "LMTP, 1 KB on an open connection", SMTP_SOURCE, SMALL, ("-d", "-L"), "lmtp"),
    Workload("auth", "AUTH PLAIN, one connection each", OWN, SMALL, ("--auth", "--each"), "auth", first=50),
    Workload("tls-open", "TLS, 1 KB on an open connection", OWN, SMALL, ("--tls",), "tls"),
    Workload("tls-each", "STARTTLS, one connection each", OWN, SMALL, ("--tls", "--each"), "tls", first=20),
    Workload("tls-1mb", "TLS, 1 MB base64", OWN, LARGE, ("--tls",), "tls", sessions=4, first=8),
)
WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _MANY}
