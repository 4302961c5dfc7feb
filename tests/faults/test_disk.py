"""A disk that is full, read-only, frozen or gone: a refusal that says "later", nothing half-written, and it recovers.

Real ones: a tmpfs of its own for each test, and an ext4 that is frozen. It takes root to mount them.
"""

from __future__ import annotations

import os
import shutil
import smtplib
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


def test_a_disk_that_gets_full_with_several_messages_on_it(start: Start, disk: Path) -> None:
    """Which of them fit is chance; each is stored whole or refused, and leaves nothing."""
    program = start("--listen", "127.0.0.1:0", "--deliver", f"maildir:{disk}/mail")
    port = program.port()
    message = SMALL + (b"y" * 70 + b"\r\n") * 6_000  # 430 kB: the disk takes two of them
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda _: refusal(port, message), range(6)))
    stored = answers.count("")
    assert stored <= 2  # all may have begun before one was whole
    assert all(answer.startswith("452 ") for answer in answers if answer)
    assert files(disk) == ["new"] * stored
    for path in (disk / "mail" / "new").iterdir():
        assert path.read_bytes().endswith(message.replace(b"\r\n", b"\n"))
        path.unlink()
    assert refusal(port, message) == ""


def test_a_disk_that_gets_full_between_two_chunks(start: Start, disk: Path) -> None:
    program = start("--listen", "127.0.0.1:0", "--deliver", f"maildir:{disk}/mail")
    with smtplib.SMTP("127.0.0.1", program.port(), "client.example.org", timeout=WAIT) as client:
        client.ehlo()
        for attempt in (LARGE, SMALL):  # refused, and then the same connection is good for another
            client.mail("a@example.org")
            client.rcpt("b@example.com")
            half = len(attempt) // 2
            codes = []
            for octets, last in ((attempt[:half], ""), (attempt[half:], " LAST")):
                client.send(b"BDAT %d%b\r\n" % (len(octets), last.encode()) + octets)
                codes.append(client.getreply()[0])
            assert codes == ([250, 452] if attempt is LARGE else [250, 250])
    assert files(disk) == ["new"]


def test_a_disk_without_inodes(start: Start, disk: Path) -> None:
    program = start("--listen", "127.0.0.1:0", "--deliver", f"maildir:{disk}/mail")
    port = program.port()
    mount("-o", "remount,nr_inodes=7", str(disk))  # root, mail, tmp, new and cur have five
    answers = [refusal(port, SMALL) for _ in range(4)]
    stored = answers.count("")
    assert all(answer.startswith("452 ") for answer in answers if answer)
    assert 0 < stored < 4
    assert files(disk) == ["new"] * stored
    mount("-o", "remount,nr_inodes=100", str(disk))
    assert refusal(port, SMALL) == ""


@pytest.mark.parametrize("gone", ["new", "tmp", ""])
def test_a_folder_that_is_removed(start: Start, disk: Path, gone: str) -> None:
    program = start("--listen", "127.0.0.1:0", "--deliver", f"maildir:{disk}/mail")
    port = program.port()
    shutil.rmtree(disk / "mail" / gone)
    answer = refusal(port, SMALL)
    assert answer.startswith("451 ")
    assert str(disk) not in answer
    assert files(disk) == []
    for name in ("tmp", "new", "cur"):
        (disk / "mail" / name).mkdir(parents=True, exist_ok=True)
    assert refusal(port, SMALL) == ""
    assert files(disk) == ["new"]


@pytest.mark.promises(
    "Nothing is lost", "A full, read-only or hanging disk is answered with 4xx, and nothing half-written stays."
)
def test_a_full_disk_under_an_mbox(start: Start, disk: Path) -> None:
    program = start("--listen", "127.0.0.1:0", "--deliver", f"mbox:{disk}/box")
    port = program.port()
    assert refusal(port, SMALL) == ""
    before = (disk / "box").read_bytes()
    assert refusal(port, LARGE).startswith("452 ")
    assert (disk / "box").read_bytes() == before
    assert refusal(port, SMALL) == ""
    assert (disk / "box").read_bytes().startswith(before)
    assert [path.name for path in disk.iterdir()] == ["box"]


@pytest.mark.parametrize("url", ["mbox:box", "pipe:/usr/bin/touch ran", "stdout:"])
def test_no_room_for_what_waits_until_it_is_whole(
    start: Start, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(disk))
    program = start("--listen", "127.0.0.1:0", "--deliver", url)
    port = program.port()
    assert refusal(port, LARGE).startswith("452 ")
    assert list(disk.iterdir()) == []
    assert not (tmp_path / "ran").exists()
    assert (tmp_path / "box").exists() is (url == "mbox:box")
    assert refusal(port, SMALL) == ""
    assert (tmp_path / "ran").exists() is url.startswith("pipe:")


def test_a_full_disk_under_one_of_several_maildirs(start: Start, disk: Path, tmp_path: Path) -> None:
    """Where a link cannot reach: the copy fails, and the message is taken out of the first again."""
    (tmp_path / "mail").mkdir()
    (tmp_path / "mail" / "b").symlink_to(disk)
    program = start("--listen", "127.0.0.1:0", "--deliver", "maildir:mail/{local}")
    with smtplib.SMTP("127.0.0.1", program.port(), "client.example.org", timeout=WAIT) as client:
        with pytest.raises(smtplib.SMTPDataError) as refused:
            client.sendmail("a@example.org", ["a@example.com", "b@example.com"], LARGE)
        assert refused.value.smtp_code == 452
        assert files(tmp_path / "mail") == files(disk) == []
        assert client.sendmail("a@example.org", ["a@example.com", "b@example.com"], SMALL) == {}
    assert files(tmp_path / "mail") == files(disk) == ["new"]


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """Give an ext4 that can be frozen; it is thawed whatever becomes of the test, or nobody could end it."""
    if shutil.which("fsfreeze") is None or shutil.which("mkfs.ext4") is None:
        pytest.skip("fsfreeze and mkfs.ext4 are not here")
    image, place = tmp_path / "image", tmp_path / "ext4"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(8 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    mount("-o", "loop", str(image), str(place))
    dead_man = threading.Timer(WAIT, thaw, [place])
    dead_man.start()
    yield place
    dead_man.cancel()
    thaw(place)
    subprocess.run(["umount", "-l", str(place)], check=True)


def thaw(place: Path) -> None:
    subprocess.run(["fsfreeze", "--unfreeze", str(place)], check=False, capture_output=True)


def test_a_disk_that_hangs(start: Start, frozen: Path) -> None:
    """A client is answered in time, and what was not promised is not there when the disk comes back."""
    program = start("--listen", "127.0.0.1:0", "--deliver", f"maildir:{frozen}/mail", "--set", "handler_timeout=1")
    port = program.port()
    assert refusal(port, SMALL) == ""
    subprocess.run(["fsfreeze", "--freeze", str(frozen)], check=True)
    answer = refusal(port, SMALL)
    thaw(frozen)
    assert answer.startswith("451 ")
    assert refusal(port, SMALL) == ""
    assert program.end() == 0  # which waits for the threads
    assert files(frozen) == ["new", "new"]
