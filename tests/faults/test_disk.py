"""A disk that is full, and one that is read-only: a refusal that says "later", nothing half-written, and it recovers.

Real ones: a tmpfs of its own for each test. It takes root to mount it.
"""

from __future__ import annotations

import os
import shutil
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from program import WAIT, Start

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None, reason="root may mount a tmpfs"
)
SMALL = b"Subject: small\r\n\r\nHello.\r\n"
LARGE = SMALL + b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 20_000  # 1.4 MB


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"it may not be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def refusal(port: int, message: bytes) -> str:
    """Send a message and return the reply to its data, "" where it was accepted."""
    with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=WAIT) as client:
        try:
            client.sendmail("a@example.org", ["b@example.com"], message)
        except smtplib.SMTPDataError as error:
            return f"{error.smtp_code} {error.smtp_error!r}"
        return ""


def files(place: Path) -> list[str]:
    return sorted(path.parent.name for path in place.rglob("*") if path.is_file())


@pytest.mark.promises(
    "Nothing is lost", "A full, read-only or hanging disk is answered with 4xx, and nothing half-written stays."
)
def test_a_full_disk(start: Start, disk: Path) -> None:
    program = start("--listen", "127.0.0.1:0", "--deliver", f"maildir:{disk}/mail")
    port = program.port()
    assert refusal(port, LARGE).startswith("452 ")
    assert files(disk) == []
    assert refusal(port, SMALL) == ""
    assert files(disk) == ["new"]
    (disk / "ballast").write_bytes(b"z" * (1024 * 1024 - 64 * 1024))
    with (disk / "ballast").open("ab", buffering=0) as ballast:
        try:
            while True:
                ballast.write(b"z" * 4096)
        except OSError:
            pass
    assert refusal(port, SMALL).startswith("452 ")
    (disk / "ballast").unlink()
    assert refusal(port, SMALL) == ""
    assert files(disk) == ["new", "new"]


@pytest.mark.promises(
    "Nothing is lost", "A full, read-only or hanging disk is answered with 4xx, and nothing half-written stays."
)
def test_a_disk_that_becomes_read_only(start: Start, disk: Path) -> None:
    program = start("--listen", "127.0.0.1:0", "--deliver", f"maildir:{disk}/mail")
    port = program.port()
    assert refusal(port, SMALL) == ""
    mount("-o", "remount,ro", str(disk))
    answer = refusal(port, SMALL)
    assert answer.startswith("451 ")
    assert str(disk) not in answer
    assert files(disk) == ["new"]
    mount("-o", "remount,rw", str(disk))
    assert refusal(port, SMALL) == ""
    assert files(disk) == ["new", "new"]


def test_a_disk_that_is_read_only_from_the_start(start: Start, disk: Path) -> None:
    mount("-o", "remount,ro", str(disk))
    program = start("--listen", "127.0.0.1:0", "--deliver", f"maildir:{disk}/mail")
    assert program.wait() == 2
    assert "read-only file system" in " ".join(program.lines).lower()
