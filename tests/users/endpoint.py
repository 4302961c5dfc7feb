"""A real HTTP server, aiohttp's, that answers as a test wants and writes down what it was asked."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from support import issued

Answer = Callable[[Any], Any]  # what was asked → a response, or what becomes one as JSON


@dataclass
class Endpoint:
    """Where it is, and what it was asked."""

    url: str
    asked: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@asynccontextmanager
async def endpoint(answer: Answer, *, tls: bool = False, port: int = 0) -> AsyncIterator[Endpoint]:
    """Serve ``/login`` by HTTP, or by HTTPS with a certificate for localhost."""

    async def handle(request: web.Request) -> web.StreamResponse:
        asked = await request.json() if request.can_read_body else None
        found.asked.append(asked)
        found.headers.append(dict(request.headers))
        answered = answer(asked)
        if hasattr(answered, "__await__"):
            answered = await answered
        return answered if isinstance(answered, web.StreamResponse) else web.json_response(answered)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued("localhost").configure_cert(context)
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context)
    await site.start()
    real_port = runner.addresses[0][1]
    found = Endpoint(f"https://localhost:{real_port}/login" if tls else f"http://127.0.0.1:{real_port}/login")
    try:
        yield found
    finally:
        await runner.cleanup()
