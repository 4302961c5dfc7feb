"""``kill -9`` at any moment under load: what was acknowledged is stored, and what is stored is whole.

``PILLARBOX_KILLS=100 pytest tests/faults/test_kill.py`` kills it a hundred times; the test of every day is content with
a few.
"""

from __future__ import annotations

import os
import random
import re
import socket
import threading
from pathlib import Path

import pytest

from program import WAIT, Start

KILLS = int(os.environ.get("PILLARBOX_KILLS", "3"))
CLIENTS = 8
BODY = b"".join(b"line %d of a message that takes more than one block\r\n" % number for number in range(400))
NAME = re.compile(rb"^X-Name: (\S+)$", re.MULTILINE)


class Sender(threading.Thread):
    """Sends messages until the server is gone, by DATA and BDAT in turn, and notes which got 250."""

    def __init__(self, port: int, number: int, enough: threading.Semaphore) -> None:
        super().__init__()
        self._port, self._number, self._enough = port, number, enough
        self.sent = 0
        self.acknowledged: list[bytes] = []

    def run(self) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self._port), WAIT) as client, client.makefile("rb") as replies:
                self._expect(replies, b"220")
                client.sendall(b"HELO client.example\r\n")
                self._expect(replies, b"250")
                while True:
                    self._send(client, replies)
        except (OSError, EOFError):
            return

    def _send(self, client: socket.socket, replies: object) -> None:
        name = b"%d-%d" % (self._number, self.sent)
        self.sent += 1
        content = b"X-Name: %b\r\n\r\n%bX-Name: end\r\n" % (name, BODY)
        client.sendall(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\n")
        self._expect(replies, b"250", b"250")
        if self.sent % 2:
            client.sendall(b"DATA\r\n")
            self._expect(replies, b"354")
            client.sendall(content + b".\r\n")
        else:
            client.sendall(b"BDAT %d LAST\r\n%b" % (len(content), content))
        self._expect(replies, b"250")
        self.acknowledged.append(name)
        self._enough.release()

    def _expect(self, replies: object, *codes: bytes) -> None:
        for code in codes:
            line = replies.readline()  # type: ignore[attr-defined]  # what makefile returns
            if not line.endswith(b"\n"):
                raise EOFError
            assert line.startswith(code), line


@pytest.mark.promises("Nothing is lost", "kill -9 at any moment loses no message that got 250, and leaves no torn one.")
@pytest.mark.parametrize("seed", range(KILLS))
def test_what_was_acknowledged_is_stored_and_what_is_stored_is_whole(start: Start, tmp_path: Path, seed: int) -> None:
    program = start("--listen", "127.0.0.1:0", "--deliver", "maildir:mail")
    enough = threading.Semaphore(0)
    port = program.port()
    senders = [Sender(port, number, enough) for number in range(CLIENTS)]
    for sender in senders:
        sender.start()
    for _ in range(random.Random(seed).randrange(5, 150)):
        assert enough.acquire(timeout=WAIT)
    program.process.kill()
    for sender in senders:
        sender.join(WAIT)
    acknowledged = {name for sender in senders for name in sender.acknowledged}
    stored = [path.read_bytes() for path in (tmp_path / "mail" / "new").iterdir()]
    whole = [NAME.findall(content) for content in stored]
    assert all(len(names) == 2 and names[1] == b"end" for names in whole)
    names = [names[0] for names in whole]
    assert len(names) == len(set(names))
    assert acknowledged <= set(names)
    # One for each client may have been stored and not yet answered.
    assert len(names) <= len(acknowledged) + CLIENTS
