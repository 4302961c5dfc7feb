"""What only the server's own process knows: a thread answers each line of standard input with a line of JSON."""

from __future__ import annotations

import asyncio
import collections
import gc
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from pillarbox import SMTPServer

# A loop that does not come round in this time hangs.
PATIENCE = 30.0


def watch() -> None:
    """Begin to answer; the end of the input ends the process, so that none is left when the runner is killed."""
    threading.Thread(target=_answer, name="probe", daemon=True).start()


def _answer() -> None:
    try:
        for question in sys.stdin:
            print(json.dumps(_ANSWERS[question.strip()]()), flush=True)
    except Exception:  # noqa: BLE001 - into the log, where the runner finds it
        traceback.print_exc()
    os._exit(1)


class Watched(SMTPServer):
    """A server that the probe can ask; there is one in a process."""

    only: Watched | None = None
    loop: asyncio.AbstractEventLoop

    async def listen(self, *arguments: Any, **more: Any) -> tuple[str, int] | str:
        """Listen, and be known from now on."""
        Watched.only, self.loop = self, asyncio.get_running_loop()
        return await super().listen(*arguments, **more)


def _addresses() -> dict[str, Any]:
    """Where the server listens, as soon as it does."""
    return {"addresses": Watched.only.addresses if Watched.only is not None else []}


def _on_the_loop(question: Callable[[Watched], dict[str, Any]]) -> dict[str, Any]:
    """Let the event loop answer; ``waited`` is how long it took to come round to it."""
    server, asked, answered, found = Watched.only, time.monotonic(), threading.Event(), dict[str, Any]()
    assert server is not None

    def answer() -> None:
        found.update(waited=time.monotonic() - asked, **question(server))
        answered.set()

    server.loop.call_soon_threadsafe(answer)
    if not answered.wait(PATIENCE):
        raise TimeoutError(f"the event loop has not come round for {PATIENCE} seconds")
    return found


def _counts(server: Watched) -> dict[str, Any]:
    return {"tasks": len(asyncio.all_tasks()), "connections": len(server.connections)}


def _left(server: Watched) -> dict[str, Any]:
    """Count what is left when the collector has done its work, and of which types it is."""
    # On the loop, and while nothing else is done: a tuple that is still being made must not be seen by anybody.
    gc.collect()
    types = collections.Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
    return {**_counts(server), "objects": types.total(), "types": dict(types)}


_ANSWERS: dict[str, Callable[[], dict[str, Any]]] = {
    "addresses": _addresses,
    "sample": lambda: _on_the_loop(_counts),
    "collect": lambda: _on_the_loop(_left),
}
