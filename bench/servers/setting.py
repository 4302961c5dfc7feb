"""What the Python servers share: the certificate that the runner made, and the event loops."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

# The runner tells every server, in whatever language, where they are.
KEY = os.environ.get("BENCH_KEY", "")
CERTIFICATE = os.environ.get("BENCH_CERT", "")

LoopFactory = Callable[[], "asyncio.AbstractEventLoop"]


def _asyncio() -> LoopFactory:
    import asyncio

    return asyncio.new_event_loop


def _uvloop() -> LoopFactory:
    import uvloop

    return uvloop.new_event_loop


LOOPS: dict[str, Callable[[], Any]] = {"asyncio": _asyncio, "uvloop": _uvloop}
