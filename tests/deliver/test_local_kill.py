"""``kill -9`` under load, for the targets of this host: what got 250 is stored, and after a new start all is whole.

Like ``tests/faults/test_kill.py``, whose clients these are; ``PILLARBOX_KILLS`` says how often here too.
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from faults.test_kill import CLIENTS, NAME, Sender, content
from program import WAIT, Program, Start

KILLS = int(os.environ.get("PILLARBOX_KILLS", "2"))
HEAD = re.compile(rb"^From \S+ \w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\n", re.MULTILINE)


def load(port: int, chance: random.Random) -> tuple[list[Sender], threading.Semaphore]:
    """Start clients, and return when some messages have been acknowledged."""
    enough = threading.Semaphore(0)
    senders = [Sender(port, number, enough) for number in range(CLIENTS)]
    for sender in senders:
        sender.start()
    for _ in range(chance.randrange(5, 60)):
        assert enough.acquire(timeout=WAIT)
    time.sleep(chance.random() * 0.02)
    return senders, enough


def one_more(program: Program) -> Sender:
    """Send until one message is acknowledged, and end the program in order."""
    last = Sender(program.port(), CLIENTS, enough := threading.Semaphore(0))
    last.start()
    while not last.acknowledged:
        assert enough.acquire(timeout=WAIT)
    assert program.end() == 0
    last.join(WAIT)
    return last


def in_mbox(path: Path) -> dict[bytes, bytes]:
    """Return the messages of an mbox file by name."""
    first, *parts = HEAD.split(path.read_bytes())
    assert first == b""
    return by_name([part.removesuffix(b"\n") for part in parts])


def in_maildirs(folder: Path) -> dict[bytes, bytes]:
    return by_name([path.read_bytes() for path in folder.glob("*/new/*")])


def by_name(messages: list[bytes]) -> dict[bytes, bytes]:
    found = {}
    for octets in messages:
        name = NAME.search(octets)
        assert name is not None, f"torn in its head: {octets!r}"
        assert name[1] not in found, f"{name[1]!r} is stored twice"
        found[name[1]] = octets[name.start() :]
    return found


def holds_all(stored: dict[bytes, bytes], senders: list[Sender]) -> None:
    """What was acknowledged is stored, and what is stored is whole."""
    lines = {name: count for sender in senders for name, count in sender.sent.items()}
    assert {name for sender in senders for name in sender.acknowledged} <= set(stored)
    for name, octets in stored.items():
        assert octets == content(name, lines[name]).replace(b"\r\n", b"\n"), f"{name!r} is torn"


@pytest.mark.promises("Nothing is lost", "kill -9 at any moment loses no message that got 250, and leaves no torn one.")
@pytest.mark.parametrize("seed", range(KILLS))
@pytest.mark.parametrize("url", ["mbox:mail/box", "maildir:mail/{local}"])
def test_the_program(start: Start, tmp_path: Path, url: str, seed: int) -> None:
    (tmp_path / "mail").mkdir()
    program = start("--listen", "127.0.0.1:0", "--deliver", url)
    senders, _ = load(program.port(), random.Random(seed))
    program.process.kill()
    for sender in senders:
        sender.join(WAIT)
        assert not sender.is_alive()
    last = one_more(start("--listen", "127.0.0.1:0", "--deliver", url))
    stored = in_mbox(tmp_path / "mail" / "box") if url.startswith("mbox:") else in_maildirs(tmp_path / "mail")
    holds_all(stored, [*senders, last])
    assert [path.name for path in tmp_path.glob("mail/*.lock")] == []


def test_a_worker(start: Start, tmp_path: Path) -> None:
    """One of two processes that append to the same mailbox is killed: the other goes on, and cuts off its half."""
    program = start("--listen", "127.0.0.1:0", "--deliver", "mbox:box", "--workers", "2")
    senders, enough = load(program.port(), random.Random(0))
    killed = int(Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children").read_text().split()[0])
    os.kill(killed, signal.SIGKILL)
    for _ in range(10):
        assert enough.acquire(timeout=WAIT)
    assert program.end() == 0
    for sender in senders:
        sender.join(WAIT)
    holds_all(in_mbox(tmp_path / "box"), senders)
