"""An OpenSMTPD of a test's own: it has fixed folders, which are its own in namespaces."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from interop.jail import Jail, beside
from interop.mta import Log, started
from interop.peers import HOST, RECIPIENT, SENDER

if TYPE_CHECKING:
    from typing import Self

# example.com goes where the test says, all else, as its bounces, by SMTP without TLS.
_CONFIGURATION = """\
{table}
listen on socket
action "here" relay host {url}{auth} helo mta.example.org
action "elsewhere" relay host smtp+notls://{host}:{port} helo mta.example.org
match from any for domain "example.com" action "here"
match from any for any action "elsewhere"
"""
_FOLDERS = ("/var/spool", "/var/lib", "/run", "/etc/ssl/certs")
# What its package's scripts do; its programs insist on their group.
_SETUP = """\
mkdir -m 711 /var/spool/smtpd
mkdir -p /var/lib/opensmtpd/empty /run/bin
cp {smtpctl} /run/bin/sendmail
chgrp opensmtpq /run/bin/sendmail
chmod 2755 /run/bin/sendmail
cp {ca} /etc/ssl/certs/ca-certificates.crt
"""


class OpenSMTPD:
    """An OpenSMTPD that relays what is for example.com to a URL, and the rest to a port; it trusts one authority."""

    log: Log

    def __init__(self, url: str, port: int, authority: Path, *, credential: str = "") -> None:
        self._smtpd = beside("smtpd", "opensmtpd")
        self._smtpctl = beside("smtpctl", "opensmtpd")
        self._configuration = _CONFIGURATION.format(
            table=f'table credentials {{ "me" = "{credential}" }}' if credential else "",
            auth=" auth <credentials>" if credential else "",
            url=url,
            host=HOST,
            port=port,
        )
        self._authority = authority

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def _start(self, stack: ExitStack) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pb")))
        folder.chmod(0o755)
        shutil.copyfile(self._authority, folder / "ca.pem")
        setup = _SETUP.format(smtpctl=self._smtpctl, ca=folder / "ca.pem")
        self.jail = stack.enter_context(Jail(folder, users=["opensmtpd", "opensmtpq"], empty=_FOLDERS, setup=setup))
        (folder / "smtpd.conf").write_text(self._configuration)
        command = self.jail.command(self._smtpd, "-d", "-v", "-f", folder / "smtpd.conf")
        self.log = stack.enter_context(started(*command))
        self.log.find("offline scanning done")

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def sendmail(self, *recipients: str, content: bytes, options: tuple[str, ...] = ()) -> None:
        """Hand it a message by its command ``sendmail``."""
        to = recipients or (RECIPIENT,)
        done = self.jail.run("/run/bin/sendmail", "-f", SENDER, *options, *to, octets=content.replace(b"\r\n", b"\n"))
        assert done.returncode == 0, done.stdout

    def outcome(self, recipient: str) -> tuple[str, str]:
        """Wait until it logs what became of a recipient; return its word for it, and our reply."""
        found = self.log.find(rf'mta delivery .* to=<{re.escape(recipient)}> .* result="(\w+)" stat="(.*)"')
        return found[1], found[2]
