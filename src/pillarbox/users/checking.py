"""How many passwords are checked at once, and how many may wait for it: decided here, whatever strangers try.

A check takes a core and, with argon2, much memory. A few threads do them; when too many clients come at once, some are
told to come again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from typing import TYPE_CHECKING

from pillarbox import Reject

if TYPE_CHECKING:
    from pillarbox import Session
    from pillarbox.users.passwords import Secret

__all__ = ["Checking"]

PLACES = 256  # checks that run or wait: at 24 ms in two threads the last of them waits for 3 s
PLACES_OF_ONE = 64  # of one client: a flood from one address leaves places for others


class Checking:
    """Checks passwords in ``threads`` threads, in the order in which they come."""

    def __init__(self, threads: int, *, places: int = PLACES, places_of_one: int = PLACES_OF_ONE) -> None:
        self._executor = ThreadPoolExecutor(threads, "pillarbox-passwords")
        self._places, self._places_of_one = places, places_of_one
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()  # by client

    async def fits(self, secret: Secret, password: str, session: Session) -> bool:
        """Whether the password fits; raises Reject where too many wait already."""
        client = _client(session)
        self._take(client)
        # A check cannot be stopped: also when its client has gone, the place is free only when it has ended.
        future = self._executor.submit(secret.fits, password)
        future.add_done_callback(lambda _: self._give_back(client))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the threads when they have checked what clients still wait for."""
        self._executor.shutdown(wait=False)

    def _take(self, client: str) -> None:
        with self._lock:
            if self._taken.total() >= self._places or self._taken[client] >= self._places_of_one:
                raise Reject(454, "Error: too many logins at the moment, try again later", enhanced="4.7.0")
            self._taken[client] += 1

    def _give_back(self, client: str) -> None:
        with self._lock:
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]


def _client(session: Session) -> str:
    """Return what counts as one client: an IPv4 address, a /64 of IPv6, or all of a Unix socket."""
    address = session.remote_address
    return str(ip_network((address, 64), strict=False)) if ":" in address else address
