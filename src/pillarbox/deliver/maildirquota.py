"""How full a Maildir is: the file ``maildirsize`` of Maildir++, which Dovecot and Courier read and keep too.

Its first line has the limits, ``1000000S,1000C``; each further line is a number of bytes and one of messages, and their
sums are what the folder holds. A delivery appends a line. The file is never locked: two deliveries at the same moment
may both find room, and go over by one message.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pillarbox import Reject

__all__ = ["Quota"]

FILE = "maildirsize"
# As Dovecot and Courier have it: a longer file is written anew, and so is one that says "full" and has lines of
# deliveries in it or is as old as this: a user may have deleted messages since.
_LONGEST = 5120  # bytes
_STALE = 15 * 60.0  # seconds
_SIZE_IN_NAME = re.compile(r",S=(\d+)")


class _Usage(NamedTuple):
    size: int
    messages: int
    exact: bool  # counted lately, so that "full" can be believed


@dataclass(frozen=True)
class Quota:
    """The limits of each Maildir; 0 stands for none. Its methods touch the disk."""

    size: int  # bytes
    messages: int

    def __bool__(self) -> bool:
        return bool(self.size or self.messages)

    def check(self, folder: Path, size: int, *, recount: bool = True) -> None:
        """Raise Reject where a message of ``size`` bytes has no room; without ``recount`` as far as the file says."""
        if self.size and size > self.size:
            # RFC 3463 3.3, X.2.3: "This code should be used as a permanent failure."
            raise Reject(552, "Error: the message is larger than the mailbox may be", enhanced="5.2.3")
        usage = self._read(folder)
        if usage is None or (not usage.exact and self._exceeded(usage, size)):
            if not recount:
                return
            usage = self._recount(folder)
        if self._exceeded(usage, size):
            # RFC 3463 3.3: "The mailbox is full because the user has exceeded a per-mailbox administrative quota or
            # physical capacity."
            raise Reject(452, "Error: the mailbox is full, try again later", enhanced="4.2.2")

    def add(self, folder: Path, size: int, count: int) -> None:
        """Note that so much was stored (or, below zero, taken away), where the file is there, whoever's limits it has.

        A note that fails is made up for by the next count.
        """
        with suppress(OSError):
            descriptor = os.open(f"{folder}/{FILE}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                os.write(descriptor, f"{size} {count}\n".encode())
            finally:
                os.close(descriptor)

    def _exceeded(self, usage: _Usage, size: int) -> bool:
        too_large = self.size and usage.size + size > self.size
        return bool(too_large or (self.messages and usage.messages >= self.messages))

    def _read(self, folder: Path) -> _Usage | None:
        """Return what the file says; None where it is missing, too long, broken, or has other limits."""
        try:
            with (folder / FILE).open("rb") as file:
                content, age = file.read(_LONGEST + 1), time.time() - os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        head, *lines = content.decode("ascii", "replace").splitlines() or [""]
        if len(content) > _LONGEST or not content.endswith(b"\n") or _limits(head) != (self.size, self.messages):
            return None
        try:
            pairs = [(int(size), int(count)) for size, count in (line.split() for line in lines)]
        except ValueError:
            return None
        size, count = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
        return _Usage(size, count, len(lines) == 1 and age < _STALE) if size >= 0 and count >= 0 else None

    def _recount(self, folder: Path) -> _Usage:
        sizes = list(_sizes(folder))
        usage = _Usage(sum(sizes), len(sizes), exact=True)
        with suppress(OSError):  # the count holds for this message all the same
            self._write(folder, usage)
        return usage

    def _write(self, folder: Path, usage: _Usage) -> None:
        limits = [f"{self.size}S"] if self.size else []
        limits += [f"{self.messages}C"] if self.messages else []
        # In tmp/, where it is removed some day if it stays there.
        descriptor, name = tempfile.mkstemp(dir=folder / "tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"{','.join(limits)}\n{usage.size} {usage.messages}\n")
            Path(name).rename(folder / FILE)
        except BaseException:
            Path(name).unlink()
            raise


def _limits(line: str) -> tuple[int, int]:
    found = {limit[-1:]: int(limit[:-1]) for limit in line.split(",") if limit[:-1].isdigit()}
    return found.get("S", 0), found.get("C", 0)


def _sizes(folder: Path) -> Iterator[int]:
    """Give the sizes of all messages, in the folders beside the inbox too, as Dovecot counts them."""
    beside = [entry for entry in folder.glob(".*") if entry.is_dir()]
    for place in (folder, *beside):
        for name in ("new", "cur"):
            with suppress(FileNotFoundError):
                for entry in os.scandir(place / name):
                    if not entry.name.startswith("."):
                        yield from _size(entry)


def _size(entry: os.DirEntry[str]) -> Iterator[int]:
    named = _SIZE_IN_NAME.search(entry.name)
    with suppress(FileNotFoundError):  # a reader has moved or removed it
        yield int(named[1]) if named else entry.stat().st_size
