"""Limits over all workers: a worker asks, the supervisor counts, and takes back what a worker that died had counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from pillarbox import LimitCounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pillarbox.program.channel import Channel, Handlers

__all__ = ["AskedCounts", "WorkersCounts"]


class AskedCounts(LimitCounts):
    """The worker's side: each method asks over the channel."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    async def enter(self, places: Mapping[str, int | None]) -> bool:
        answer = self._channel.call("enter", dict(places))
        try:
            return bool(await asyncio.shield(answer))
        except asyncio.CancelledError:
            # Who waited has given up, and is not counted; if the answer comes after all it says the contrary.
            answer.add_done_callback(lambda late: self._give_back(late, places))
            raise

    def _give_back(self, late: asyncio.Future[Any], places: Iterable[str]) -> None:
        if not late.cancelled() and late.exception() is None and late.result():
            self.leave(places)

    def leave(self, places: Iterable[str]) -> None:
        self._channel.tell("leave", list(places))

    async def take(self, key: str, rate: str) -> bool:
        return bool(await self._channel.call("take", key, rate))

    async def left(self, key: str, rate: str) -> bool:
        return bool(await self._channel.call("left", key, rate))


class WorkersCounts:
    """The supervisor's side for one worker: what it holds of the counts that all have together."""

    def __init__(self, counts: LimitCounts) -> None:
        self._counts = counts
        self._held: Counter[str] = Counter()

    @property
    def handlers(self) -> Handlers:
        """What answers the worker's questions."""
        return {"enter": self._enter, "leave": self._leave, "take": self._counts.take, "left": self._counts.left}

    def give_back(self) -> None:
        """Take back all that the worker holds: it is gone."""
        self._leave(list(self._held.elements()))

    async def _enter(self, places: dict[str, int | None]) -> bool:
        if not await self._counts.enter(places):
            return False
        self._held.update(places.keys())
        return True

    def _leave(self, places: list[str]) -> None:
        for place in places:
            if self._held[place] > 0:
                self._counts.leave([place])
                self._held[place] -= 1
                if not self._held[place]:
                    del self._held[place]  # addresses are many
