"""What the server has stored, by id: from the notes of the library's handler, or from the Maildir."""

from __future__ import annotations

import collections
import threading
from pathlib import Path

from soaking.messages import judged


class Store:
    """How often each message was stored, and which were torn."""

    def __init__(self, folder: Path) -> None:
        self.times: collections.Counter[str] = collections.Counter()
        self.torn: list[str] = []
        self.left_over: list[str] = []
        self._notes, self._mail = folder / "stored", folder / "mail"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_mail, name="reader")

    def __enter__(self) -> Store:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Read the rest; the server has ended."""
        self._stop.set()
        self._thread.join()
        self._take_mail()
        self._take_notes()
        if self._mail.is_dir():
            self.left_over = sorted(path.name for path in (self._mail / "tmp").iterdir())

    def _read_mail(self) -> None:
        while not self._stop.wait(0.5):
            self._take_mail()

    def _take_mail(self) -> None:
        """Read each message and remove it, as a POP3 server would: the disk is not to fill up."""
        for file in (self._mail / "new").glob("*"):
            found = judged(file.read_bytes())
            file.unlink()
            self._note(found.id or f"nobody ({file.name})", whole=found.whole)

    def _take_notes(self) -> None:
        if self._notes.exists():
            for line in self._notes.read_text(encoding="ascii").splitlines():
                name, verdict = line.split(" ")
                self._note(name, whole=verdict == "whole")

    def _note(self, name: str, *, whole: bool) -> None:
        self.times[name] += 1
        if not whole:
            self.torn.append(name)
