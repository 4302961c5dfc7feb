"""A private Dovecot whose service auth alone is used."""

from __future__ import annotations

import getpass
import grp
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interop.peers import Background, missing, program, run


@dataclass
class DovecotAuth:
    """A running Dovecot: where its socket is."""

    folder: Path

    @property
    def socket(self) -> Path:
        return self.folder / "auth-test"

    @property
    def url(self) -> str:
        return f"dovecot:{self.socket}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it; again, where it has ended."""
        with Background(self._command, "-F", "-c", self.folder / "dovecot.conf", folder=self.folder) as process:
            process.line("starting up")
            yield

    @property
    def _command(self) -> str:
        return program("dovecot", "dovecot-core")


@contextmanager
def dovecot_auth(passdb: str, *lines: str, files: dict[str, str] | None = None) -> Iterator[DovecotAuth]:
    """Write a configuration with this passdb; ``{folder}`` is where the files are."""
    version = run([program("dovecot", "dovecot-core"), "--version"]).output
    if not version.startswith("2.3."):
        missing(f"Dovecot {version.split()[0]} wants a configuration of another form than 2.3")
    # Not tmp_path: Unix sockets want short paths, and Dovecot's users have to get there.
    folder = Path(tempfile.mkdtemp(prefix="pb"))
    folder.chmod(0o755)
    user, group = (
        ("dovecot", "dovecot") if os.geteuid() == 0 else (getpass.getuser(), grp.getgrgid(os.getegid()).gr_name)
    )
    login = "dovenull" if os.geteuid() == 0 else user
    for name, content in (files or {}).items():
        (folder / name).write_text(content)
    more = "\n".join(lines)
    (folder / "dovecot.conf").write_text(f"""
base_dir = {folder}/run
state_dir = {folder}/state
log_path = /dev/stderr
protocols =
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {login}
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_failure_delay = 0
passdb {{
{passdb.replace("{folder}", str(folder))}
}}
userdb {{
    driver = static
    args = uid={user} gid={group} home=/nonexistent allow_all_users=yes
}}
service anvil {{
    chroot =
    unix_listener anvil-auth-penalty {{
        mode = 0
    }}
}}
service auth {{
    unix_listener {folder}/auth-test {{
        mode = 0666
    }}
}}
{more}
""")
    try:
        yield DovecotAuth(folder)
    finally:
        shutil.rmtree(folder)
