"""What the tests of users share: a server that asks backends, and clients that log in to it in every way."""

from __future__ import annotations

import asyncio
import smtplib
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pillarbox import Session
from pillarbox.users import Chain, Users
from scram_client import ScramClient
from support import TIMEOUT, Client, Served, b64, serving

WELCOME = "235 Authentication successful"
WRONG = "535 Invalid username or password"
LATER = "454 Temporary authentication failure"


@asynccontextmanager
async def asking(*backends: Users, **options: Any) -> AsyncIterator[Served]:
    """Run a server on a free port for which these backends say who may log in."""
    chain = Chain(backends)
    try:
        for backend in backends:
            await backend.start()
        handlers = {"auth_methods": chain.methods(), "on_auth": chain.on_auth, "on_scram": chain.on_scram}
        async with serving(**handlers, allow_insecure_auth=True, max_auth_failures=None, **options) as served:
            yield served
    finally:
        for backend in backends:
            await backend.close()


@asynccontextmanager
async def started(backend: Users) -> AsyncIterator[Users]:
    """Start a backend, and close it."""
    try:
        await backend.start()
        yield backend
    finally:
        await backend.close()


async def offered(served: Served) -> list[str]:
    """Return the mechanisms that AUTH announces."""
    client = await served.client()
    return (await client.ehlo())["AUTH"].split()


async def plain(served: Served, name: str, password: str, authzid: str = "") -> str:
    """Log in with PLAIN on a connection of its own, and return the reply."""
    client = await served.hello()
    return await client.say("AUTH PLAIN " + b64(f"{authzid}\0{name}\0{password}"))


async def scram(served: Served, name: str, password: str, method: str = "SCRAM-SHA-256", header: str = "n,,") -> str:
    """Log in with SCRAM, and return the last reply; the server must have proven itself."""
    client = await served.hello()
    hash_name = "sha256" if method.endswith("256") else "sha1"
    exchange = ScramClient(name, password, hash_name, header=header)
    final = exchange.final((await client.say(f"AUTH {method} {exchange.first()}")).removeprefix("334 "))
    answer = await client.say(final)
    assert answer.startswith("334 "), answer
    if not b64decode(answer[4:]).startswith(b"e="):
        assert exchange.believes(answer[4:])
    return await client.say("")


async def bearer(served: Served, token: str, name: str = "", method: str = "OAUTHBEARER") -> tuple[str, str]:
    """Log in with a token; return what the server told before it refused ("" if it did not), and the last reply."""
    client = await served.hello()
    if method == "XOAUTH2":
        message = f"user={name}\x01auth=Bearer {token}\x01\x01"
    else:
        message = f"n,{f'a={name}' if name else ''},\x01auth=Bearer {token}\x01\x01"
    answer = await client.say(f"AUTH {method} {b64(message)}")
    if answer.startswith("334 "):
        return b64decode(answer[4:]).decode(), await client.say("")
    return "", answer


async def by_smtplib(served: Served, name: str, password: str) -> int:
    """Log in as Python's own client does, with whatever it chooses, and return the reply's code."""

    def log_in() -> int:
        with smtplib.SMTP(*served.address, "client.example", timeout=TIMEOUT) as client:
            try:
                return client.login(name, password)[0]
            except smtplib.SMTPAuthenticationError as error:
                return error.smtp_code

    return await asyncio.to_thread(log_in)


async def connected_from(served: Served, source: str) -> Client:
    """Return a client with another address, that has said EHLO."""
    reader, writer = await asyncio.open_connection(*served.address, local_addr=(source, 0))
    client = Client(reader, writer)
    served.clients.append(client)
    assert (await client.reply()).code == 220
    await client.ehlo()
    return client


def session(address: str = "192.0.2.7") -> Session:
    """Return a client's session."""
    return Session(remote_address=address, remote_port=4711, local_address="192.0.2.1", local_port=587)
