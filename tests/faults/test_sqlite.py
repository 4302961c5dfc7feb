"""What a SQLite file goes through: ``kill -9`` under load, and a disk that is full. Nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from faults.test_disk import LARGE, SMALL, mount, pytestmark, refusal
from faults.test_kill import CLIENTS, KILLS, NAME, Sender, content
from program import WAIT, Start

on_a_small_disk = pytestmark


def stored(file: Path) -> list[bytes]:
    """Return the messages, without what the server put in front, of a file that is sound."""
    with closing(sqlite3.connect(file, timeout=WAIT)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.execute("INSERT INTO search (search, rank) VALUES ('integrity-check', 1)")
        connection.rollback()
        found = connection.execute("SELECT raw, size FROM messages LEFT JOIN message_raw USING (id)").fetchall()
        lost = connection.execute("SELECT id FROM message_raw WHERE id NOT IN (SELECT id FROM messages)").fetchall()
    assert lost == []
    assert all(len(raw) == size for raw, size in found)
    return [raw for raw, _ in found]


def named(file: Path) -> dict[bytes, bytes]:
    """Return the messages of ``Sender`` by their name."""
    messages = {}
    for octets in stored(file):
        name = NAME.search(octets.replace(b"\r\n", b"\n"))
        assert name is not None, f"torn in its head: {octets!r}"
        assert name[1] not in messages, f"{name[1]!r} is stored twice"
        messages[name[1]] = octets[octets.index(b"X-Name:") :]
    return messages


@pytest.mark.promises("Nothing is lost", "kill -9 at any moment loses no message that got 250, and leaves no torn one.")
@pytest.mark.parametrize("seed", range(KILLS))
def test_what_was_acknowledged_is_stored_after_a_kill(start: Start, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    program = start("--listen", "127.0.0.1:0", "--deliver", "sqlite:mail.db")
    enough = threading.Semaphore(0)
    port = program.port()
    senders = [Sender(port, number, enough) for number in range(CLIENTS)]
    for sender in senders:
        sender.start()
    for _ in range(chance.randrange(5, 150)):
        assert enough.acquire(timeout=WAIT)
    time.sleep(chance.random() * 0.02)  # or each kill would come right behind a reply
    program.process.kill()
    for sender in senders:
        sender.join(WAIT)
        assert not sender.is_alive()
    assert {file.name for file in tmp_path.iterdir()} <= {"mail.db", "mail.db-wal", "mail.db-shm"}  # no spool
    found = named(tmp_path / "mail.db")
    lines = {name: count for sender in senders for name, count in sender.sent.items()}
    acknowledged = {name for sender in senders for name in sender.acknowledged}
    assert acknowledged <= set(found)
    for name, octets in found.items():
        assert octets == content(name, lines[name]), f"{name!r} is torn"
    assert set(found) - acknowledged <= {list(sender.sent)[-1] for sender in senders if sender.answering}
    print(f"kill {seed}: {len(acknowledged)} acknowledged, {len(found)} stored")  # noqa: T201 - for -rP
    again = start("--listen", "127.0.0.1:0", "--deliver", "sqlite:mail.db")
    assert refusal(again.port(), SMALL) == ""
    assert again.end() == 0
    assert len(stored(tmp_path / "mail.db")) == len(found) + 1


def used(disk: Path) -> int:
    """Return the octets that are in use, also by files without a name."""
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of two megabytes: the write-ahead log and its index need the first of them."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.promises(
    "Nothing is lost", "A full, read-only or hanging disk is answered with 4xx, and nothing half-written stays."
)
@on_a_small_disk
def test_a_full_disk(start: Start, disk: Path) -> None:
    program = start("--listen", "127.0.0.1:0", "--deliver", f"sqlite:{disk}/mail.db")
    port = program.port()
    assert refusal(port, LARGE).startswith("452 ")
    assert stored(disk / "mail.db") == []
    assert refusal(port, SMALL) == ""
    accepted = 1
    while not (answer := refusal(port, SMALL + (b"y" * 70 + b"\r\n") * 1000)):
        accepted += 1
    assert answer.startswith("452 ")
    assert str(disk) not in answer
    assert 1 < accepted < 40
    assert len(stored(disk / "mail.db")) == accepted
    mount("-o", "remount,size=8m", str(disk))
    assert refusal(port, LARGE) == ""
    assert len(stored(disk / "mail.db")) == accepted + 1
    assert program.end() == 0
    assert [file.name for file in disk.iterdir()] == ["mail.db"]


@on_a_small_disk
def test_a_disk_that_gets_full_with_several_messages_on_it(start: Start, disk: Path) -> None:
    program = start("--listen", "127.0.0.1:0", "--deliver", f"sqlite:{disk}/mail.db")
    port = program.port()
    message = SMALL + (b"y" * 70 + b"\r\n") * 6_000  # 430 kB
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda _: refusal(port, message), range(6)))
    assert all(answer.startswith("452 ") for answer in answers if answer)
    assert answers.count("") < 6  # none, where all of them filled the disk together
    assert [octets.endswith(message) for octets in stored(disk / "mail.db")] == [True] * answers.count("")
    mount("-o", "remount,size=8m", str(disk))  # those that are stored may have taken the rest
    assert not refusal(port, SMALL)
    assert used(disk) - sum(file.stat().st_blocks * 512 for file in disk.iterdir()) < 64 * 1024  # nothing else is left


@pytest.mark.skipif(sys.platform != "linux", reason="the children of a process are looked for in /proc")
def test_workers_write_to_one_file_while_one_of_them_is_killed(start: Start, tmp_path: Path) -> None:
    program = start("--listen", "127.0.0.1:0", "--deliver", "sqlite:mail.db", "--workers", "3")
    enough = threading.Semaphore(0)
    port = program.port()
    senders = [Sender(port, number, enough) for number in range(CLIENTS)]
    for sender in senders:
        sender.start()
    workers = children(program.process.pid)
    assert len(workers) >= 3
    for _ in range(60):
        assert enough.acquire(timeout=WAIT)
    os.kill(workers[-1], signal.SIGKILL)
    deadline = time.monotonic() + WAIT
    while any(sender.is_alive() for sender in senders) and time.monotonic() < deadline:
        enough.acquire(timeout=0.5)
        if sum(len(sender.acknowledged) for sender in senders) > 150:
            break
    assert program.end() == 0
    for sender in senders:
        sender.join(WAIT)
        assert not sender.is_alive()
    found = named(tmp_path / "mail.db")
    lines = {name: count for sender in senders for name, count in sender.sent.items()}
    acknowledged = {name for sender in senders for name in sender.acknowledged}
    assert len(acknowledged) > 60
    assert acknowledged <= set(found)
    for name, octets in found.items():
        assert octets == content(name, lines[name]), f"{name!r} is torn"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
