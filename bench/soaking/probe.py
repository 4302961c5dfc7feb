"""What only the server's own process knows: a thread answers each line of standard input with a line of JSON.

It finds the event loop and the server among the collector's objects, so that it can look into ``pillarbox serve`` too.
"""

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
from typing import Any, TypeVar

from pillarbox import SMTPServer

_Kind = TypeVar("_Kind")
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


def _only(kind: type[_Kind]) -> _Kind | None:
    # Not isinstance: it asks each object for __class__, which is some objects' own code.
    found = [each for each in gc.get_objects() if issubclass(type(each), kind)]
    return found[0] if found else None


def _addresses() -> dict[str, Any]:
    """Where the server listens, as soon as it does."""
    server = _only(SMTPServer)
    try:
        return {"addresses": server.addresses if server is not None else []}
    except AttributeError:  # it is being made
        return {"addresses": []}


class _Inside:
    """Loop and server, looked for once."""

    loop: asyncio.AbstractEventLoop | None = None
    server: SMTPServer | None = None


def _sample() -> dict[str, Any]:
    """Count what the event loop has, on the event loop; ``waited`` is how long it took to come round to it."""
    if _Inside.loop is None:
        _Inside.loop, _Inside.server = _only(asyncio.AbstractEventLoop), _only(SMTPServer)  # type: ignore[type-abstract]
    assert _Inside.loop is not None
    counted, asked = threading.Event(), time.monotonic()
    found: dict[str, Any] = {}

    def count() -> None:
        assert _Inside.server is not None
        found.update(
            waited=time.monotonic() - asked,
            tasks=len(asyncio.all_tasks()),
            connections=len(_Inside.server.connections),
        )
        counted.set()

    _Inside.loop.call_soon_threadsafe(count)
    if not counted.wait(PATIENCE):
        raise TimeoutError(f"the event loop has not come round for {PATIENCE} seconds")
    return {**found, "objects": len(gc.get_objects())}


def _collect() -> dict[str, Any]:
    """Count what is left when the collector has done its work, and of which types it is."""
    gc.collect()
    types = collections.Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
    return {**_sample(), "types": dict(types)}


_ANSWERS = {"addresses": _addresses, "sample": _sample, "collect": _collect}
