"""What runs beside a handler: the commands between two chunks of the message that it reads."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Apart:
    """A task that those who wait for it neither end nor own."""

    __slots__ = ("_task",)

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._task: asyncio.Task[None] | None = asyncio.create_task(coroutine)

    async def wait(self) -> None:
        # Not `shield`: where the waiter was cancelled it may report what the task raises later as lost.
        if self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))
        if self._task is None:
            raise RuntimeError("the message was read after on_data returned")
        self._task.result()

    def cancel(self) -> None:
        # Forgotten with it: what it raised refers to the frames that waited for it, and these to this object.
        task, self._task = self._task, None
        if task is None:
            return
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()  # else asyncio would say that nobody asked for it
