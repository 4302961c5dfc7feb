"""A Postfix of a test's own: its queue, its configuration and its processes, apart from the machine's."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interop.mta import (
    LMTP_UNIX,
    PATIENCE,
    SMTP,
    Log,
    Mail,
    Relayed,
    UnixSMTP,
    relayed,
    require_root,
    started,
    transcript,
    verbs,
)
from interop.peers import HOST, RECIPIENT, SENDER, SIMPLE, missing, program

if TYPE_CHECKING:
    from typing import Self

    import pytest

    from interop.conftest import Authority, LoopFactory

_DAEMONS = Path("/usr/lib/postfix/sbin")

# No chroot, and of the daemons only those that take mail, keep it and pass it on. None has a port.
_MASTER = """\
postlog  unix-dgram n - n - 1 postlogd
input    unix n - n - - smtpd
pickup   unix n - n - 1 pickup
cleanup  unix n - n - 0 cleanup
qmgr     unix n - n - 1 qmgr
rewrite  unix - - n - - trivial-rewrite
bounce   unix - - n - 0 bounce
defer    unix - - n - 0 bounce
trace    unix - - n - 0 bounce
proxymap unix - - n - - proxymap
tlsmgr   unix - - n - 1 tlsmgr
tlsproxy unix - - n - 0 tlsproxy
anvil    unix - - n - 1 anvil
scache   unix - - n - 1 scache
showq    unix n - n - - showq
error    unix - - n - - error
retry    unix - - n - - error
smtp     unix - - n - - smtp
lmtp     unix - - n - - lmtp
discard  unix - - n - - discard
"""
_FOLDERS = dict.fromkeys(
    ("active", "bounce", "corrupt", "defer", "deferred", "hold", "incoming", "private", "saved", "trace"),
    0o700,
) | {"maildrop": 0o730, "public": 0o710}


class Postfix:
    """A running Postfix that takes mail for anyone; ``settings`` are main.cf's."""

    log: Log

    def __init__(self, **settings: Any) -> None:
        program("postfix", "postfix")
        require_root("Postfix does not start otherwise")
        if not _DAEMONS.is_dir():
            missing(f"Postfix's daemons are not in {_DAEMONS} (Debian package postfix)")
        self._settings = settings

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def _start(self, stack: ExitStack) -> None:
        # Not pytest's folder: Postfix's own user must get in, and a Unix socket's path must be short.
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pb")))
        self._folder.chmod(0o755)
        self._make_folders()
        self._configure()
        self.log = stack.enter_context(started(_DAEMONS / "master", "-c", self._folder, "-s"))
        self.log.find("daemon started")

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make_folders(self) -> None:
        queue = self._folder / "queue"
        for name in ("data", "queue", "queue/pid"):
            (self._folder / name).mkdir(mode=0o755)
        for name, mode in _FOLDERS.items():
            (queue / name).mkdir()
            (queue / name).chmod(mode)
            shutil.chown(queue / name, "postfix", "postdrop" if mode & 0o070 else None)
        shutil.chown(self._folder / "data", "postfix")

    def _configure(self) -> None:
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": self._folder / "queue",
            "data_directory": self._folder / "data",
            "mail_owner": "postfix",
            "setgid_group": "postdrop",
            "maillog_file": "/dev/stdout",
            "myhostname": "mta.example.org",
            "inet_interfaces": "127.0.0.1",
            "mynetworks": "127.0.0.0/8",
            "mydestination": "",
            "local_recipient_maps": "",
            "alias_maps": "",
            "relay_domains": "example.com",
            "notify_classes": "",
            "in_flow_delay": "0",  # it would hold each message for a second
            "smtp_dns_support_level": "disabled",
            "lmtp_dns_support_level": "disabled",
            # A line of a message stays one line, however long.
            "smtp_line_length_limit": "0",
            "lmtp_line_length_limit": "0",
        } | self._settings
        lines = [f"{name} = {value}\n" for name, value in settings.items()]
        (self._folder / "main.cf").write_text("".join(lines))
        (self._folder / "master.cf").write_text(_MASTER)
        for name in ("main.cf", "master.cf"):
            os.utime(self._folder / name, (1, 1))  # it waits two seconds for a file that was written just now

    @property
    def path(self) -> Path:
        """The Unix socket of its SMTP server."""
        return self._folder / "queue/public/input"

    def connect(self) -> socket.socket:
        """Return a connection to its SMTP server, of which nothing is read yet."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(str(self.path))
        return connection

    def client(self) -> UnixSMTP:
        """Return a client of its SMTP server that has said EHLO."""
        smtp = UnixSMTP(self.path)
        smtp.ehlo()
        return smtp

    def take(
        self, sender: str, recipients: list[str], content: bytes, *, options: tuple[str, ...] = (), **per_rcpt: Any
    ) -> None:
        """Hand it a message by SMTP; ``options`` are parameters of MAIL, ``rcpt_options`` of RCPT."""
        with self.client() as smtp:
            assert smtp.sendmail(sender, recipients, content, options, **per_rcpt) == {}

    def sendmail(self, *arguments: str, content: bytes) -> None:
        """Hand it a message by its command ``sendmail``."""
        command: list[str | Path] = [program("sendmail", "postfix"), "-C", self._folder, *arguments]
        done = subprocess.run(command, input=content, capture_output=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr

    def flush(self) -> None:
        """Have it try again at once what waits in its queue."""
        command: list[str | Path] = [program("postqueue", "postfix"), "-c", self._folder, "-f"]
        subprocess.run(command, timeout=PATIENCE, check=True)

    def queue(self) -> dict[str, str]:
        """Return what waits in its queue: recipient → why."""
        command: list[str | Path] = [program("postqueue", "postfix"), "-c", self._folder, "-j"]
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True, env=os.environ)
        entries = [json.loads(line) for line in done.stdout.splitlines()]
        return {to["address"]: to.get("delay_reason", "") for entry in entries for to in entry["recipients"]}


MESSAGES = 4


@dataclass
class Relay:
    """A Postfix and the server it relays to."""

    server: Relayed
    postfix: Postfix
    records: list[logging.LogRecord]

    def send(self, *recipients: str, content: bytes = SIMPLE, sender: str = SENDER, **more: Any) -> None:
        self.postfix.take(sender, list(recipients or (RECIPIENT,)), content, **more)

    def sent(self, to: str, status: str = "sent", dsn: str = "2") -> str:
        """Wait until Postfix logs what became of this recipient, and return its reason."""
        found = self.postfix.log.find(rf"to=<{re.escape(to)}>.* dsn={re.escape(dsn)}.* status={status} \((.*)\)")
        return found[1]

    def verbs(self, mail: Mail) -> list[str]:
        return verbs(self.records, mail.session)

    def transcript(self, mail: Mail) -> list[str]:
        return transcript(self.records, mail.session)

    def one_after_the_other(self) -> list[str]:
        """Send some messages, each when the one before was answered, and return the sessions that they came by."""
        sessions = []
        for number in range(MESSAGES):
            self.send(f"user{number}@example.com", content=SIMPLE + b"%d\r\n" % number)
            mail = self.server.next()
            assert mail.body == b"Hello.\r\n%d\r\n" % number
            sessions.append(mail.session)
            self.sent(f"user{number}@example.com")
        return sessions

    def spoken(self) -> list[str]:
        """Return the dialogue as Postfix logs it (debug_peer_list): "> VERB" as it is sent, "<" for each reply line."""
        lines = [re.search(rf" ([<>]) {HOST}\S* (\S+)", line) for line in self.postfix.log.lines()]
        return [f"> {one[2]}" if one[1] == ">" else "<" for one in lines if one]


Start = Callable[..., Relay]


@contextmanager
def relays(authority: Authority, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture) -> Iterator[Start]:
    """Yield what starts a server (``options`` are its own) and a Postfix that relays to it (``settings`` are its own).

    example.com goes by the transport that is asked for, all else, as its bounces, by SMTP.
    """
    with ExitStack() as stack:

        def start(transport: str = SMTP, *, options: dict[str, Any] | None = None, **settings: Any) -> Relay:
            server = stack.enter_context(relayed(loop_factory, caplog, **authority.options, **(options or {})))
            smtp = f"smtp:[{HOST}]:{server.port}"  # with implicit TLS where the option `secure` says so
            lmtp = f"lmtp:unix:{server.lmtp_path}" if transport == LMTP_UNIX else f"lmtp:inet:{HOST}:{server.lmtp_port}"
            places = {"default_transport": smtp, "relay_transport": smtp if transport == SMTP else lmtp}
            postfix = stack.enter_context(Postfix(**(places | settings)))
            stack.callback(server.settle)  # before Postfix is killed, and with it the connections that it keeps
            return Relay(server, postfix, caplog.get_records("call"))

        yield start
