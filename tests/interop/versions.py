"""Which version of a peer ran: each program is asked itself, once in a run."""

from __future__ import annotations

import gzip
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from json import loads
from os import defpath, environ, pathsep
from pathlib import Path

from interop.jail import BESIDE

HERE = Path(__file__).parent
_PATH = pathsep.join([environ.get("PATH", defpath), "/usr/sbin"])
_NUMBER = r"\d[\w.:+~-]*"


def _program(*command: str, after: str = "") -> Callable[[], str | None]:
    """Ask a program; ``after`` is what stands before the number in its answer."""
    return lambda: _asked(command, after)


def _asked(command: tuple[str, ...], after: str) -> str | None:
    found = shutil.which(command[0], path=_PATH)
    if found is None:
        return None
    try:
        done = subprocess.run(
            [found, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    number = re.search(rf"{after}({_NUMBER})", done.stdout.decode("utf-8", "replace"))
    return number[1].rstrip(".:") if number else None


def _debian(package: str) -> Callable[[], str | None]:
    return _program("dpkg-query", "--show", "--showformat=${Version}", package)


def _unpacked(package: str) -> Callable[[], str | None]:
    """Look into a package that .ci/run unpacked, or else ask for the installed one."""

    def ask() -> str | None:
        for changes in (BESIDE / package).glob(f"usr/share/doc/{package}/changelog.Debian.gz"):
            with gzip.open(changes, "rt", encoding="utf-8", errors="replace") as text:
                if found := re.search(rf"\(({_NUMBER})\)", text.readline()):
                    return found[1]
        return _debian(package)()

    return ask


def _python(distribution: str) -> Callable[[], str | None]:
    def ask() -> str | None:
        try:
            return version(distribution)
        except PackageNotFoundError:
            return None

    return ask


def _node(package: str) -> Callable[[], str | None]:
    def ask() -> str | None:
        about = HERE / "node_modules" / package / "package.json"
        return str(loads(about.read_text(encoding="utf-8"))["version"]) if about.is_file() else None

    return ask


# How a peer's name begins, in small letters → how its version is found; the first row that fits.
_WAYS: dict[str, Callable[[], str | None]] = {
    "aiosmtplib": _python("aiosmtplib"),
    "curl": _program("curl", "--version", after="curl "),
    "dovecot": _program("dovecot", "--version"),
    "exim": _unpacked("exim4-daemon-light"),
    "go net/smtp": _program("go", "version", after="go version go"),
    "go-smtp": _debian("golang-github-emersion-go-smtp-dev"),
    "haproxy": _program("haproxy", "-v", after="[Hh][Aa]-?[Pp]roxy version "),
    "jakarta mail": _debian("libjakarta-mail-java"),
    "msmtp": _program("msmtp", "--version", after="msmtp version "),
    "nginx": _program("nginx", "-v", after="nginx/"),
    "nodemailer": _node("nodemailer"),
    "opensmtpd": _unpacked("opensmtpd"),
    "postfix": _debian("postfix"),
    "smtp-sink": _debian("postfix"),
    "smtp-source": _debian("postfix"),
    "smtplib": platform.python_version,
    "swaks": _program("swaks", "--version", after="swaks version "),
}


@cache
def version_of(peer: str) -> str:
    """Return the version of a peer, or "" where it is not installed; who has no row is taken for a Debian package."""
    name = peer.lower().removeprefix("to ")
    ways = [way for beginning, way in _WAYS.items() if name.startswith(beginning)]
    way = ways[0] if ways else _debian(name.split(" ", 1)[0])
    return way() or ""


@cache
def system() -> str:
    """Return what the run stands on: the system and Python."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        name = platform.system()
    return f"{name}, Python {platform.python_version()}"
