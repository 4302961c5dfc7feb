"""The real Dovecot as a reader of a mailbox: ``doveadm`` without any service."""

from __future__ import annotations

import getpass
import grp
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interop.peers import program

PATIENCE = 30


@dataclass(frozen=True)
class Doveadm:
    """A folder that Dovecot's user may read, and the command."""

    folder: Path
    _command: str
    _user: str

    def run(self, *arguments: str) -> str:
        """Run doveadm and return what it says; all that was put into the folder becomes its user's."""
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.rglob("*")):
                shutil.chown(path, self._user)
        done = subprocess.run(
            [self._command, "-c", str(self.folder / "conf"), *arguments],
            env={**os.environ, "USER": self._user, "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def doveadm(location: str) -> Iterator[Doveadm]:
    """Give a Dovecot whose mail is at a place of a folder of its own: ``maildir:{folder}/mail``."""
    command = program("doveadm", "dovecot-core")
    folder = Path(tempfile.mkdtemp(prefix="pb"))  # not tmp_path: Dovecot's user has to get there
    folder.chmod(0o755)
    root = os.geteuid() == 0
    user, group = ("dovecot", "dovecot") if root else (getpass.getuser(), grp.getgrgid(os.getegid()).gr_name)
    (folder / "conf").write_text(f"""
base_dir = {folder}/run
state_dir = {folder}/state
log_path = /dev/stderr
protocols =
ssl = no
first_valid_uid = 1
mail_uid = {user}
mail_gid = {group}
mail_location = {location.format(folder=folder)}
mail_plugins = quota
plugin {{
    quota = maildir:User
}}
""")
    try:
        yield Doveadm(folder, command, user)
    finally:
        shutil.rmtree(folder)
