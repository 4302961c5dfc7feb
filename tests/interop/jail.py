"""A view of the machine in which an MTA that is not installed finds the users and the folders it was built for.

Debian's MTAs exclude each other, so that only one can be installed; the others are unpacked (.ci/run). What they need
besides lies in namespaces of their own: the machine itself is left as it is, and two tests do not meet.
"""

from __future__ import annotations

import grp
import pwd
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from interop.mta import PATIENCE, require_root
from interop.peers import missing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

# Debian's MTAs exclude each other: one is installed, the others are unpacked here.
BESIDE = Path(__file__).parents[2] / ".ci" / "beside"
_PROGRAMS = ("usr/sbin", "usr/bin", "usr/libexec/opensmtpd")
_FIRST_ID = 64_800  # Debian leaves 60000 to 64999 to packages


def beside(name: str, package: str) -> Path:
    """Return the path of an MTA's program, as it is installed or unpacked."""
    unpacked = [str(BESIDE / package / folder) for folder in _PROGRAMS]
    found = shutil.which(name, path=":".join([*(f"/{folder}" for folder in _PROGRAMS), *unpacked]))
    return Path(found or missing(f"{name} is neither installed nor unpacked (Debian package {package})"))


class Jail:
    """Namespaces with these users and empty folders; ``run`` and ``command`` start programs in them.

    Whatever still runs there is killed by the kernel when the block is left, or this process dies.
    """

    def __init__(self, folder: Path, *, users: Sequence[str], empty: Sequence[str] = (), setup: str = "") -> None:
        require_root("namespaces are made by it")
        self._folder = folder
        self._users = users
        self._script = "\n".join(["set -e", *self._mounts(empty), setup, "echo ready", "exec cat"])

    def _mounts(self, empty: Sequence[str]) -> list[str]:
        files = [f"mount --bind {shlex.quote(str(self._folder / name))} /etc/{name}" for name in ("passwd", "group")]
        return files + [f"mount -t tmpfs -o mode=755 none {folder}" for folder in empty]

    def _write_users(self) -> None:
        passwd, group = Path("/etc/passwd").read_text(), Path("/etc/group").read_text()
        for number, user in enumerate(self._users, _FIRST_ID):
            if user not in {entry.pw_name for entry in pwd.getpwall()}:
                passwd += f"{user}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin\n"
            if user not in {entry.gr_name for entry in grp.getgrall()}:
                group += f"{user}:x:{number}:\n"
        (self._folder / "passwd").write_text(passwd)
        (self._folder / "group").write_text(group)

    def __enter__(self) -> Self:
        self._write_users()
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._keeper = subprocess.Popen(
            [*spaces, "sh", "-c", self._script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._keeper.stdout is not None
        said = self._keeper.stdout.readline()
        if said != "ready\n":
            self.__exit__()
            pytest.skip(f"namespaces cannot be made here: {said}")  # CI, too, cannot install a permission
        self._first = Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children").read_text().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.communicate(timeout=PATIENCE)  # closes its input: the first process ends, and all others with it

    def command(self, *arguments: str | Path) -> list[str | Path]:
        """Return the command that runs a program in here."""
        return ["nsenter", "-t", self._first, "--mount", "--pid", "--", *arguments]

    def run(self, *arguments: str | Path, octets: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a program in here to its end."""
        return subprocess.run(
            self.command(*arguments),
            input=octets,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            check=False,
        )
