"""How many passwords are checked at once, who is next, and how many may wait: decided here, whatever strangers try.

A check takes a core and, with argon2, much memory. A few threads do them, for one client after the other; when too many
wait, some are told to come again.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_network
from typing import TYPE_CHECKING

from pillarbox import Reject
from pillarbox.users.contract import unavailable

if TYPE_CHECKING:
    from pillarbox import Session
    from pillarbox.users.passwords import Secret

__all__ = ["Checking"]

PLACES = 256  # checks that run or wait: at 24 ms in two threads the last of them waits for 3 s
PLACES_OF_ONE = 64  # of one client: a flood from one address leaves places for others


@dataclass(slots=True, eq=False)
class _Check:
    secret: Secret
    password: str = field(repr=False)
    answer: asyncio.Future[bool]


class Checking:
    """Checks passwords in ``threads`` threads; clients take turns, and each client's checks come in order."""

    def __init__(self, threads: int, *, places: int = PLACES, places_of_one: int = PLACES_OF_ONE) -> None:
        self._executor = ThreadPoolExecutor(threads, "pillarbox-passwords")
        self._threads, self._places, self._places_of_one = threads, places, places_of_one
        self._taken: Counter[str] = Counter()  # places, by client
        self._running = 0
        self._closed = False
        self._waiting: dict[str, deque[_Check]] = {}  # by client; the first is next

    async def fits(self, secret: Secret, password: str, session: Session) -> bool:
        """Whether the password fits; raises Reject where too many wait already."""
        if self._closed:
            raise unavailable()
        client = _client(session)
        if self._taken.total() >= self._places or self._taken[client] >= self._places_of_one:
            raise Reject(454, "Error: too many logins at the moment, try again later", enhanced="4.7.0")
        self._taken[client] += 1
        check = _Check(secret, password, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(client, deque()).append(check)
        self._begin()
        try:
            return await check.answer
        finally:
            self._forget(client, check)

    def close(self) -> None:
        """End the threads when they have ended what they do; who still waits is told to come again."""
        self._closed = True
        waiting = [check for checks in self._waiting.values() for check in checks]
        self._waiting.clear()
        for check in waiting:
            if not check.answer.done():
                check.answer.set_exception(unavailable())
        self._executor.shutdown(wait=False)

    def _begin(self) -> None:
        while self._waiting and self._running < self._threads:
            client, checks = next(iter(self._waiting.items()))
            del self._waiting[client]
            check = checks.popleft()
            if checks:
                self._waiting[client] = checks  # behind all others
            self._running += 1
            running = asyncio.wrap_future(self._executor.submit(check.secret.fits, check.password))
            running.add_done_callback(partial(self._ended, client, check))

    def _ended(self, client: str, check: _Check, running: asyncio.Future[bool]) -> None:
        self._running -= 1
        self._leave(client)
        failure = running.exception()
        if not check.answer.done():
            if failure is not None:
                check.answer.set_exception(failure)
            else:
                check.answer.set_result(running.result())
        self._begin()

    def _forget(self, client: str, check: _Check) -> None:
        """Take out a check that nobody waits for any more, unless it has begun: then its place is free when it ends."""
        checks = self._waiting.get(client)
        if checks is not None and check in checks:
            checks.remove(check)
            self._leave(client)
            if not checks:
                del self._waiting[client]

    def _leave(self, client: str) -> None:
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]


def _client(session: Session) -> str:
    """Return what counts as one client: an IPv4 address, a /64 of IPv6, or all of a Unix socket."""
    address = session.remote_address
    return str(ip_network((address, 64), strict=False)) if ":" in address else address
