"""Targets and users of a process: started before anything uses them, closed when nothing does, both in limited time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from pillarbox import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from pillarbox.deliver import Target
    from pillarbox.users import Users

    Part = Target | Users

__all__ = ["Parts"]

# Seconds in which all new ones have to start at a reload. At the program's start there is no such limit: that is up to
# whoever starts it.
START_TIME = 30.0
# Seconds in which each has to close, all at the same time. With ``close_timeout`` that is what the program's end may
# take, and less than what a service manager or a container waits: see contrib.
CLOSE_TIME = 5.0
# Seconds in which what was cancelled may clean up.
_PATIENCE = 2.0

_log = logging.getLogger("pillarbox.program")


class Parts:
    """What was started and is not closed yet is in ``running``."""

    def __init__(self) -> None:
        self.running: list[Part] = []
        self._closing: dict[int, asyncio.Task[None]] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._retired: dict[int, object] = {}  # which of them is to close each part that nothing new uses

    async def start(self, parts: Sequence[tuple[Part, str]], seconds: float | None = None) -> None:
        """Start all or none; raise ConfigurationError, with the place, where one cannot or the time is over."""
        loop = asyncio.get_running_loop()
        end = None if seconds is None else loop.time() + seconds
        try:
            for part, source in parts:
                try:
                    if not await _in_time(part.start(), None if end is None else end - loop.time()):
                        raise ConfigurationError(f"{part.url} did not start within {seconds:g} seconds")
                except ConfigurationError as error:
                    raise ConfigurationError(f"{source}: {error}" if source else str(error)) from error
                self.running.append(part)
        except BaseException:
            await self.close(part for part, _ in parts)
            raise

    @property
    def usable(self) -> list[Part]:
        """Those that run, without those that are being closed."""
        return [part for part in self.running if id(part) not in self._closing]

    def keep(self, parts: Iterable[Part]) -> None:
        """Let these run on that were to retire: something new uses them again."""
        for part in parts:
            self._retired.pop(id(part), None)

    def retire(self, kept: Iterable[Part], unused: Callable[[], Awaitable[None]]) -> None:
        """Close all but those that are kept when ``unused`` returns, at some time, unless they are kept again."""
        known = {id(part) for part in kept} | self._retired.keys()
        parts, this = [part for part in self.running if id(part) not in known], object()
        self._retired.update((id(part), this) for part in parts)
        if not parts:
            return

        async def retiring() -> None:
            await unused()
            await self.close([part for part in parts if self._retired.get(id(part)) is this])

        task = asyncio.create_task(retiring())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def close(self, parts: Iterable[Part]) -> None:
        """Close those of these that run; what hangs, or fails, is logged, and keeps nothing else from being closed."""
        running = {id(part) for part in self.running}
        await asyncio.gather(*(asyncio.shield(self._closed(part)) for part in parts if id(part) in running))

    async def close_all(self) -> None:
        """Close all that run, used or not."""
        for task in self._retiring:
            task.cancel()
        await self.close(list(self.running))

    def _closed(self, part: Part) -> asyncio.Task[None]:
        # One task for all who want it: a part that is being closed is not closed a second time.
        task = self._closing.get(id(part))
        if task is None:
            task = self._closing[id(part)] = asyncio.create_task(self._close(part))
        return task

    async def _close(self, part: Part) -> None:
        try:
            if not await _in_time(part.close(), CLOSE_TIME):
                _log.error("%s did not close within %g seconds, and is left behind", part.url, CLOSE_TIME)
        except Exception as error:  # noqa: BLE001 - one of the user's own: the others have to be closed too
            _log.error("%s: %s while it closed: %s", part.url, type(error).__name__, error, exc_info=error)
        finally:
            del self._closing[id(part)]
            self._retired.pop(id(part), None)
            self.running = [each for each in self.running if each is not part]


async def _in_time(work: Awaitable[None], seconds: float | None) -> bool:
    """Await some work; return False where it takes longer than so many seconds.

    Then, and where this is cancelled, it is cancelled too, and has some seconds to clean up: it may be one of the
    user's own, that hangs there as well.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=None if seconds is None else max(0.0, seconds))
        if not task.done():
            return False
        task.result()
        return True
    finally:
        if task.cancel():
            task.add_done_callback(_retrieved)
            await asyncio.wait({task}, timeout=_PATIENCE)


def _retrieved(task: asyncio.Future[None]) -> None:
    """Look at what came of it, so that asyncio does not miss who waited and no longer does."""
    if not task.cancelled():
        task.exception()
