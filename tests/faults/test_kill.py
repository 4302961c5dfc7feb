"""``kill -9`` at any moment under load: what was acknowledged is stored, and what is stored is whole.

``PILLARBOX_KILLS=100 pytest tests/faults/test_kill.py`` kills it a hundred times, and with ``-rP`` says where the
kills hit; the test of every day is content with a few. It shows what a process can lose, not what a power cut can: the
order of fsync, rename and answer is tested in ``tests/deliver``.
"""

from __future__ import annotations

import os
import random
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pytest

from program import WAIT, Start

KILLS = int(os.environ.get("PILLARBOX_KILLS", "3"))
CLIENTS = 8
NAME = re.compile(rb"^X-Name: (\S+)$", re.MULTILINE)
LINE = b"of a message that is known to the last octet"


def content(name: bytes, lines: int) -> bytes:
    """Return a message of so many lines that is like no other, as it is sent."""
    return b"X-Name: %b\r\n\r\n%b" % (name, b"".join(b"%b %d %b\r\n" % (name, n, LINE) for n in range(lines)))


@dataclass(eq=False)
class Sender(threading.Thread):
    """Sends messages until the server is gone, by DATA, BDAT and BDAT in chunks in turn, and notes which got 250."""

    port: int
    number: int
    enough: threading.Semaphore
    sent: dict[bytes, int] = field(default_factory=dict)  # name → lines
    acknowledged: list[bytes] = field(default_factory=list)
    answering: bool = False  # all of a message has left, and its reply has not come

    def __post_init__(self) -> None:
        super().__init__()
        self._random = random.Random(self.number)

    def run(self) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self.port), WAIT) as client, client.makefile("rb") as replies:
                self._expect(replies, b"220")
                client.sendall(b"EHLO client.example\r\n")
                while not replies.readline().startswith(b"250 "):
                    pass
                while True:
                    self._send(client, replies)
        except (OSError, EOFError):
            return

    def _send(self, client: socket.socket, replies: BinaryIO) -> None:
        name = b"%d-%d" % (self.number, len(self.sent))
        # Mostly small; some are larger than what is kept in memory, so that half of them is on the disk at times.
        lines = self.sent[name] = self._random.choice([1, 30, 400, 400, 10_000])
        octets = content(name, lines)
        client.sendall(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\n")
        self._expect(replies, b"250", b"250")
        (self._by_data, self._by_one_chunk, self._by_chunks)[len(self.sent) % 3](client, replies, octets)
        self.answering = True
        self._expect(replies, b"250")
        self.answering = False
        self.acknowledged.append(name)
        self.enough.release()

    def _by_data(self, client: socket.socket, replies: BinaryIO, octets: bytes) -> None:
        client.sendall(b"DATA\r\n")
        self._expect(replies, b"354")
        client.sendall(octets + b".\r\n")

    def _by_one_chunk(self, client: socket.socket, _: BinaryIO, octets: bytes) -> None:
        client.sendall(b"BDAT %d LAST\r\n%b" % (len(octets), octets))

    def _by_chunks(self, client: socket.socket, replies: BinaryIO, octets: bytes) -> None:
        half = len(octets) // 2
        client.sendall(b"BDAT %d\r\n%b" % (half, octets[:half]))
        self._expect(replies, b"250")
        client.sendall(b"BDAT %d LAST\r\n%b" % (len(octets) - half, octets[half:]))

    def _expect(self, replies: BinaryIO, *codes: bytes) -> None:
        for code in codes:
            line = replies.readline()
            if not line.endswith(b"\n") or line.startswith(b"421 "):
                raise EOFError
            assert line.startswith(code), line


def stored_in(folder: Path) -> dict[bytes, bytes]:
    """Return the messages of a folder by name, without what the server put in front of them."""
    found = {}
    for path in folder.iterdir():
        octets = path.read_bytes()
        name = NAME.search(octets)
        assert name is not None, f"torn in its head: {octets!r}"
        assert name[1] not in found, f"{name[1]!r} is stored twice"
        found[name[1]] = octets[name.start() :]
    return found


@pytest.mark.promises("Nothing is lost", "kill -9 at any moment loses no message that got 250, and leaves no torn one.")
@pytest.mark.parametrize("seed", range(KILLS))
def test_what_was_acknowledged_is_stored_and_what_is_stored_is_whole(start: Start, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    program = start("--listen", "127.0.0.1:0", "--deliver", "maildir:mail")
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
    lines = {name: count for sender in senders for name, count in sender.sent.items()}
    acknowledged = {name for sender in senders for name in sender.acknowledged}
    stored = stored_in(tmp_path / "mail" / "new")
    assert acknowledged <= set(stored)
    for name, octets in stored.items():
        assert octets == content(name, lines[name]).replace(b"\r\n", b"\n"), f"{name!r} is torn"
    # What was stored and not answered: only of clients that waited for just that answer.
    unanswered = set(stored) - acknowledged
    assert unanswered <= {list(sender.sent)[-1] for sender in senders if sender.answering}
    halves = list((tmp_path / "mail" / "tmp").iterdir())
    assert len(halves) + len(unanswered) <= CLIENTS
    print(  # noqa: T201 - for -rP
        f"kill {seed}: {len(acknowledged)} acknowledged, all stored; {len(unanswered)} stored without an answer,"
        f" {len(halves)} unfinished in tmp/, {sum(s.answering for s in senders)} clients waiting for their reply"
    )
    again = start("--listen", "127.0.0.1:0", "--deliver", "maildir:mail")
    last = Sender(again.port(), CLIENTS, enough)
    last.start()
    while not last.acknowledged:
        assert enough.acquire(timeout=WAIT)
    assert again.end() == 0  # it takes mail again, and what was torn stays where nobody reads it
    last.join(WAIT)
    assert set(stored) | set(last.acknowledged) <= set(stored_in(tmp_path / "mail" / "new"))
