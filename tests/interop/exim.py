"""An Exim of a test's own: its spool, its configuration and its processes, in a view of the machine of their own."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interop.jail import Jail, beside
from interop.mta import LMTP, LMTP_UNIX, SMTP
from interop.peers import HOST, RECIPIENT, SENDER, SIMPLE, Server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

# example.com goes by the transport that is asked for, all else, as its bounces, by SMTP.
_CONFIGURATION = """\
exim_path = {exim}
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
log_selector = +all
primary_hostname = mta.example.org
keep_environment =
host_lookup =
tls_advertise_hosts =
acl_smtp_rcpt = {rcpt}
acl_smtp_data = accept
dsn_advertise_hosts = *
smtputf8_advertise_hosts = *
untrusted_set_sender = *
remote_max_parallel = 1

begin acl
verified:
  accept verify = recipient/callout=30s,no_cache

begin routers
here:
  driver = {router}
  domains = example.com
{route}
elsewhere:
  driver = manualroute
  route_list = * {host}
  self = send
  transport = smtp

begin transports
remote:
  driver = smtp
  hosts_try_fastopen =
{remote}
smtp:
  driver = smtp
  port = {port}
lmtp_unix:
  driver = lmtp
  socket = {lmtp_path}
  batch_max = 100

begin authenticators
{authenticators}
begin retry
* * F,1h,10m
"""
_REMOTE = "  route_list = * {host}\n  self = send\n  transport = remote\n"
_UNIX = "  transport = lmtp_unix\n"


class Exim:
    """An Exim that takes mail for anyone and relays it to a server; ``remote`` has options of its smtp transport."""

    def __init__(
        self,
        server: Server,
        transport: str = SMTP,
        *,
        remote: Mapping[str, Any] | None = None,
        authenticators: str = "",
        rcpt: str = "accept",
    ) -> None:
        self._exim = beside("exim4", "exim4-daemon-light")
        lmtp = transport == LMTP
        self._options: dict[str, Any] = {
            "port": server.lmtp_port if lmtp else server.port,
            "protocol": "lmtp" if lmtp else "smtp",
            "hosts_try_chunking": "*",
            "message_linelength_limit": "100000",  # a longer line would make it bounce the message
        } | dict(remote or {})
        self._facts = {
            "exim": self._exim,
            "host": HOST,
            "port": server.port,
            "lmtp_path": server.lmtp_path,
            "router": "accept" if transport == LMTP_UNIX else "manualroute",
            "route": _UNIX if transport == LMTP_UNIX else _REMOTE.format(host=HOST),
            "authenticators": authenticators,
            "rcpt": rcpt,
        }

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def _start(self, stack: ExitStack) -> None:
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pb")))
        self._folder.chmod(0o755)
        self._jail = stack.enter_context(Jail(self._folder, users=["Debian-exim"]))
        remote = "".join(f"  {name} = {self._readable(value)}\n" for name, value in self._options.items())
        configuration = _CONFIGURATION.format(folder=self._folder, remote=remote, **self._facts)
        (self._folder / "conf").write_text(configuration)
        for name in ("spool", "log"):
            (self._folder / name).mkdir()
            self._jail.run("chown", "Debian-exim:Debian-exim", self._folder / name)

    def _readable(self, value: Any) -> Any:
        """Copy a file to where Exim's own user may read it."""
        if not isinstance(value, Path):
            return value
        copy = self._folder / value.name
        shutil.copyfile(value, copy)
        return copy

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def exim(self, *arguments: str, octets: bytes = b"") -> str:
        """Run it with its own configuration, and return what it writes."""
        return self._jail.run(self._exim, "-C", self._folder / "conf", *arguments, octets=octets).stdout.decode()

    def dialogue(self, *commands: str, content: bytes | None = None, deliver: bool = True) -> str:
        """Speak SMTP with it on its standard input; it is done when all that can be delivered at once is."""
        lines = ["EHLO user.example.org", *commands, *(["DATA"] if content is not None else [])]
        data = b"" if content is None else re.sub(rb"(?m)^\.", b"..", content) + b".\r\n"
        octets = "".join(f"{line}\r\n" for line in lines).encode() + data + b"QUIT\r\n"
        return self.exim("-odf" if deliver else "-odqs", "-bs", octets=octets)

    def send(
        self,
        *recipients: str,
        content: bytes = SIMPLE,
        sender: str = SENDER,
        options: str = "BODY=8BITMIME",
        rcpt_options: str = "",
        deliver: bool = True,
    ) -> None:
        """Hand it a message."""
        to = [f"RCPT TO:<{recipient}> {rcpt_options}".rstrip() for recipient in recipients or (RECIPIENT,)]
        said = self.dialogue(f"MAIL FROM:<{sender}> {options}".rstrip(), *to, content=content, deliver=deliver)
        assert "250 OK id=" in said, said

    def log(self) -> str:
        return (self._folder / "log" / "mainlog").read_text()

    def outcome(self, recipient: str) -> str:
        """Return the line of the log that says what became of a recipient: "=>" sent, "**" failed, "==" kept."""
        lines = re.findall(rf"(?:=>|->|\*\*|==) (?:\S+ )?<?{re.escape(recipient)}>? .*", self.log())
        assert len(lines) == 1, self.log()
        return str(lines[0])

    def queue(self) -> list[str]:
        """Return the recipients that wait in its queue."""
        return re.findall(r"^ {8,}(\S+@\S+)$", self.exim("-bp"), re.MULTILINE)
