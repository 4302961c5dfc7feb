"""A file that is read again when it has changed: whether it has is decided here, by one ``stat``."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WatchedFile"]

# A second change within the grain of a file system's clock would not show; two seconds are the coarsest there is (FAT).
_SETTLES = 2.0
# So long a file that seems to be half written is waited for (seconds): most editors write into the file itself.
_PATIENCE = 1.0
_PAUSE = 0.02

_Content = TypeVar("_Content")


class WatchedFile(Generic[_Content]):
    """A file's content as ``parse`` makes it; may be asked from several threads.

    whole: whether some content is all of the file; what is not, and was written just now, is waited for.
    """

    def __init__(
        self, path: Path, parse: Callable[[bytes], _Content], *, whole: Callable[[bytes], bool] | None = None
    ) -> None:
        self.path = path
        self._parse = parse
        self._whole = whole
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._content: _Content | None = None

    def current(self, *, patient: bool = True) -> _Content:
        """Return what the file holds now; raises OSError, and what ``parse`` raises.

        patient: wait for the rest of a file that is being written, up to a second.
        """
        with self._lock:
            if self._content is None or self._seen is None or self._seen != _signature(self.path.stat()):
                self._read(_PATIENCE if patient else 0.0)
            assert self._content is not None  # noqa: S101 - `_read` has set it or raised
            return self._content

    def _read(self, patience: float) -> None:
        status, content = self._all_of_it(time.monotonic() + patience)
        self._content = self._parse(content)
        settled = abs(time.time() - status.st_mtime) > _SETTLES
        self._seen = _signature(status) if settled else None

    def _all_of_it(self, deadline: float) -> tuple[os.stat_result, bytes]:
        while True:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                content = file.read()
            is_new = time.time() - status.st_mtime < _PATIENCE and time.monotonic() < deadline
            if self._whole is None or self._whole(content) or not is_new:
                return status, content
            time.sleep(_PAUSE)


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
