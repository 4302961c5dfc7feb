"""Refusals of one kind, told in two lines: one when they begin, one when they are over, with their number.

A line for each would let whoever is refused fill the disk.
"""

from __future__ import annotations

import asyncio
from logging import INFO, WARNING
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pillarbox.logs import EventLog
    from pillarbox.session import Session

# They are over when nobody was refused for so long: a server at its limit would else begin anew with each that leaves.
QUIET = 10.0  # seconds


class Refusals:
    """The connections that are refused for one reason.

    began: the line when they begin; over: the line when they are over, with a place for their number.
    """

    __slots__ = ("_began", "_log", "_over", "_timer", "count")

    def __init__(self, log: EventLog, began: str, over: str) -> None:
        self._log = log
        self._began, self._over = began, over
        self._timer: asyncio.TimerHandle | None = None
        self.count = 0

    def note(self, session: Session | None = None, *parts: object) -> None:
        """Count one; the first is logged as a warning, with ``parts`` in the line."""
        self.count += 1
        if self.count == 1:
            self._log.event(WARNING, "refused", session, self._began, *parts)
            self._watch()

    def end(self) -> None:
        """Say that they are over, if they ever began."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.count:
            count, self.count = self.count, 0
            self._log.event(INFO, "refused", None, self._over, count)

    def _watch(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(QUIET, self._look, self.count)

    def _look(self, before: int) -> None:
        if self.count > before:
            self._watch()
        else:
            self.end()
