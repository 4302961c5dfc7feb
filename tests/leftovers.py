"""What a connection leaves behind: tasks, descriptors, timers, and failures that nobody heard of."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

OPEN = Path("/proc/self/fd")
PATIENCE = 4.0  # seconds: a last reply that nobody reads is dropped after two


def descriptors() -> dict[str, str]:
    """Return the open descriptors, where the system shows them; libuv keeps one of /dev/null for a loop's life."""
    found = {}
    if OPEN.is_dir():
        for link in list(OPEN.iterdir()):
            try:
                place = str(link.readlink())
            except OSError:  # that of the listing itself
                continue
            if place != "/dev/null":
                found[link.name] = place
    return found


def timers() -> list[Any]:
    """Return the timers that will still run; uvloop does not show its own."""
    # Without the one sweep of a server, which ends itself when it next finds nobody.
    scheduled = getattr(asyncio.get_running_loop(), "_scheduled", [])
    return [timer for timer in scheduled if not timer.cancelled() and "_sweep" not in repr(timer)]


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Demand that what runs inside leaves no task, descriptor or timer, and no exception that was never retrieved."""
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(int)  # the executor's own thread, and what the loop opens for it
    gc.freeze()  # what is there already need not be looked through each time: that is most of what a test costs
    lost: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: lost.append(context))
    before = asyncio.all_tasks(), descriptors(), timers()
    try:
        yield
    except BaseException:
        gc.unfreeze()
        raise
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        gc.collect()
        if not _more_than(before):
            break
        await asyncio.sleep(0.01)
    left = _more_than(before)
    gc.unfreeze()
    loop.set_exception_handler(None)
    assert not left, left
    assert not lost, lost


def _more_than(before: tuple[set[asyncio.Task[Any]], dict[str, str], list[Any]]) -> list[Any]:
    tasks, open_then, waiting = before
    now = descriptors()
    return [
        *(asyncio.all_tasks() - tasks),
        *(f"{name} → {place}" for name, place in now.items() if open_then.get(name) != place),
        *(timer for timer in timers() if timer not in waiting),
    ]
