"""The pages of the program over HTTP, for operators: ``/metrics``, ``/healthz`` and ``/readyz``.

Served by aiohttp in the event loop of the program (the extra ``metrics``).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from pillarbox.program.metrics import missing

if TYPE_CHECKING:
    from aiohttp import web

    from pillarbox import BoundSockets
    from pillarbox.program.metrics import Snapshots

__all__ = ["Status"]

# What asks these pages has nothing to send.
_LARGEST_REQUEST = 1024
# How long (seconds, twice) the end waits for a client that does not take its answers.
_LAST_ANSWERS = 1.0


class Status:
    """The pages.

    collect: returns what the page is to show. why_not_ready: returns why the program is not ready, or nothing.
    """

    def __init__(self, collect: Callable[[], Awaitable[Snapshots]], why_not_ready: Callable[[], str]) -> None:
        """Raise ConfigurationError where the extra is not installed."""
        try:
            from aiohttp import web
            from aiohttp.http_exceptions import HttpProcessingError

            from pillarbox.program.page import page
        except ImportError as error:
            raise missing(error) from error
        self._why_not_ready = why_not_ready
        self._collect = collect
        self._page = page
        self._web = web
        self._logger = logging.getLogger("aiohttp.server")
        # What is no HTTP gets 400: a scan of ports is to leave no tracebacks in the log.
        self._quiet = lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
        app = web.Application(client_max_size=_LARGEST_REQUEST)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/readyz", self._readiness)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_LAST_ANSWERS)

    async def start(self, sockets: BoundSockets) -> None:
        """Answer on these sockets."""
        self._logger.addFilter(self._quiet)
        await self._runner.setup()
        for sock in sockets.sockets:
            await self._web.SockSite(self._runner, sock).start()

    async def close(self) -> None:
        """Answer no more."""
        await self._runner.cleanup()
        self._logger.removeFilter(self._quiet)

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = self._page(await self._collect(), request.headers.get("Accept", ""))
        return self._web.Response(body=body, headers={"Content-Type": content_type})

    async def _health(self, _: web.Request) -> web.Response:
        return self._web.Response(text="ok\n")

    async def _readiness(self, _: web.Request) -> web.Response:
        if why_not := self._why_not_ready():
            return self._web.Response(status=503, text=f"not ready: {why_not}\n")
        return self._web.Response(text="ready\n")
