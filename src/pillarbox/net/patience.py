"""How what counts elsewhere is asked: it may take a second, and where it does not answer the mail goes on."""

from __future__ import annotations

import asyncio
from logging import INFO, WARNING
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from pillarbox.logs import EventLog

# How long it may take to answer; mail does not wait for what counts it.
ANSWER_TIME = 1.0
# How long it is not asked again after it failed: each command would wait for it anew.
REST = 5.0


class Patience:
    """Asks for one server or listener, and tells the log once when answers fail, and once when they come again.

    fails: the line's beginning; again: the other line.
    """

    def __init__(self, log: EventLog, fails: str, again: str) -> None:
        self._log = log
        self._fails, self._again = fails, again
        self._failing = False
        self._asks_again = 0.0  # when it does, by the loop's clock

    async def ask(self, answer: Coroutine[Any, Any, bool]) -> bool | None:
        """Return the answer; None where there is none."""
        now = asyncio.get_running_loop().time()
        if self._failing and now < self._asks_again:
            answer.close()
            return None
        self._asks_again = now + REST  # for others meanwhile, where it fails still
        try:
            async with asyncio.timeout(ANSWER_TIME):
                result = await answer
        except Exception as error:  # noqa: BLE001 - each library has its own errors; none may stop the mail
            if not self._failing:
                self._failing = True
                self._log.event(WARNING, "rates", None, f"{self._fails}: %s", _said(error))
            return None
        if self._failing:
            self._failing = False
            self._log.event(INFO, "rates", None, self._again)
        return result


class NoPatience:
    """For what answers at once, as it counts in memory: a time-out would cost as much as the answer."""

    async def ask(self, answer: Coroutine[Any, Any, bool]) -> bool | None:
        """Return the answer."""
        return await answer


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
