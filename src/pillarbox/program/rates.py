"""Rates over all workers: counted by the library ``throttled`` as in one process, in a table that they share."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from throttled.asyncio import MemoryStore
from throttled.asyncio.store import MemoryStoreBackend

if TYPE_CHECKING:
    from pillarbox.program.table import Place, Table

__all__ = ["TableStore"]


class _Backend(MemoryStoreBackend):
    """Keeps for each key the time when its rate is unused again: all that GCRA has to know.

    It is the monotonic clock's, which is the same in all processes.
    """

    table: Table
    place: Place  # of the key that is asked for

    def get(self, key: str) -> Any:
        row = self.table.row(self.place)
        return None if row is None else self.table.columns[0][row] or None

    def set(self, key: str, value: Any, timeout: int) -> None:
        row = self.table.row(self.place)
        if row is None:
            row = self.table.taken(self.place, self._left)
        if row is not None:
            self.table.columns[0][row] = value

    def _left(self, row: int) -> float:
        """Return for how long a row is of use."""
        until: float = self.table.columns[0][row]
        return max(0.0, until - time.monotonic())


class TableStore(MemoryStore):
    """What ``throttled`` counts in, while it has the lock of a key and its neighbours: ``with store.of(key)``."""

    _BACKEND_CLASS = _Backend
    _backend: _Backend

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._backend.table = table

    def of(self, key: str) -> Self:
        self._backend.place = self._backend.table.place(key)
        return self

    def __enter__(self) -> None:
        self._backend.table.lock(self._backend.place[0])

    def __exit__(self, *_: object) -> None:
        self._backend.table.unlock(self._backend.place[0])
