"""Limits over all workers: each counts in memory that it shares with the others, and asks nobody.

A question to the supervisor, for each connection and each command that has a rate, would cost 30 to 50 µs.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from pillarbox import LimitCounts
from pillarbox.program.table import Place, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pillarbox.program.rates import TableStore

__all__ = ["WorkersCounts"]

# So many addresses may have connections at the same time, and so many addresses and accounts have used a rate. Those
# for whom there is no row are not counted; of the rates, that is forgotten which would be unused first.
PLACES = 1 << 17
RATES = 1 << 17
# One for all places, as a connection enters several at a time.
_PLACES_LOCK = 0


class WorkersCounts(LimitCounts, at_once=True):
    """The counts of so many workers, for the one with this number, from 0. Raise OSError where there is no memory.

    descriptors: of the memory, where the supervisor has made it.
    """

    def __init__(self, workers: int, number: int = 0, descriptors: Sequence[int | None] = (None, None)) -> None:
        super().__init__()
        places, rates = descriptors
        self._places = Table(PLACES, workers, "Q", places)
        self._used = Table(RATES, 1, "d", rates)
        self._own = self._places.columns[number]

    @property
    def descriptors(self) -> list[int]:
        """What a worker needs to have the same memory."""
        return [self._places.descriptor, self._used.descriptor]

    def forget(self, number: int) -> None:
        """Give back what a worker had entered: it is gone."""
        column = self._places.columns[number]
        column[:] = memoryview(bytes(column.nbytes)).cast("Q")

    # --- Connections

    async def enter(self, places: Mapping[str, int | None]) -> bool:
        self._places.lock(_PLACES_LOCK)
        try:
            rows: list[int | None] = []
            for name in places:
                rows.append(self._row(self._places.place(name), rows))
            for row, most in zip(rows, places.values(), strict=True):
                if row is not None and most is not None and self._number(row) >= most:
                    return False
            for row in rows:
                if row is not None:
                    self._own[row] += 1
        finally:
            self._places.unlock(_PLACES_LOCK)
        return True

    def leave(self, places: Iterable[str]) -> None:
        # Without the lock: nobody else changes this worker's number, nor takes the row before it is 0.
        for name in places:
            row = self._places.row(self._places.place(name))
            if row is not None and self._own[row]:
                self._own[row] -= 1

    def _row(self, place: Place, others: Sequence[int | None]) -> int | None:
        """Return the row of a place, or a free one that is none of the others', in which nothing is entered yet."""
        row = self._places.row(place)
        if row is not None:
            return row
        return self._places.taken(place, lambda each: None if each in others or self._number(each) else 0.0)

    def _number(self, row: int) -> int:
        return sum([column[row] for column in self._places.columns])

    # --- Rates

    @cached_property
    def _store(self) -> TableStore:
        from pillarbox.program.rates import TableStore

        return TableStore(self._used)

    def rate_store(self) -> TableStore:
        return self._store

    async def take(self, key: str, rate: str) -> bool:
        with self._store.of(key):
            return await super().take(key, rate)

    async def left(self, key: str, rate: str) -> bool:
        with self._store.of(key):
            return await super().left(key, rate)
