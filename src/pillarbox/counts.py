"""Where connections and rates are counted: in memory, for all servers that are given the same ``LimitCounts``.

What is counted under which name is decided by those who count (``net``); here are only numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from throttled.asyncio import BaseStore

# So many keys of rates are remembered in memory, at 500 octets each, and 900 where they are the longest account names.
KEPT = 100_000


class LimitCounts:
    """Counts that several servers have together, so that one limit holds over all of them.

        counts = LimitCounts()
        first = SMTPServer(max_clients=100, limit_counts=counts)
        second = SMTPServer(max_clients=100, limit_counts=counts)

    This one counts in memory, for servers in one event loop. For servers in several processes derive from it, and let
    the four methods ask the process that counts: they are waited for one second, and what they raise is logged; where
    there is no answer each process counts for itself, and mail goes on. With ``class Mine(LimitCounts, at_once=True)``
    they are not timed, which costs as much as a short answer, and must neither wait nor raise.
    """

    at_once: ClassVar[bool] = True
    """Whether the methods answer without waiting; False for derived classes that do not say so."""

    def __init_subclass__(cls, *, at_once: bool = False, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.at_once = at_once

    def __init__(self) -> None:
        self._there: dict[str, int] = {}
        self._rates: Rates | None = None

    async def enter(self, places: Mapping[str, int | None]) -> bool:
        """Count one more connection in each of these places; False, and nothing is counted, where one is full.

        places: name → how many may be there (None: any number). A call that is cancelled has counted nothing.
        """
        there = self._there
        if any(most is not None and there.get(place, 0) >= most for place, most in places.items()):
            return False
        for place in places:
            there[place] = there.get(place, 0) + 1
        return True

    def leave(self, places: Iterable[str]) -> None:
        """Take a connection out of the places that it had entered. Must not wait, nor raise."""
        for place in places:
            self._there[place] -= 1
            if not self._there[place]:
                del self._there[place]

    async def take(self, key: str, rate: str) -> bool:
        """Count one more under a key; False, and nothing is counted, where its rate (``"60/minute"``) is used up."""
        return await self._counted().take(key, rate)

    async def left(self, key: str, rate: str) -> bool:
        """Whether one more would be allowed; nothing is counted."""
        return await self._counted().left(key, rate)

    def rate_store(self) -> BaseStore:
        """Return the store of the library ``throttled`` in which rates are counted; asked for once."""
        from throttled.asyncio import MemoryStore

        return MemoryStore(options={"MAX_SIZE": KEPT})

    def _counted(self) -> Rates:
        if self._rates is None:
            self._rates = Rates(self.rate_store())
        return self._rates


class Rates:
    """Rates counted in a store of the library ``throttled``, which is for one event loop."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self._limiters: dict[str, Any] = {}

    async def take(self, key: str, rate: str) -> bool:
        result = await self._limiter(rate).limit(key)
        return not result.limited

    async def left(self, key: str, rate: str) -> bool:
        state = await self._limiter(rate).peek(key)
        return bool(state.remaining >= 1)

    def _limiter(self, rate: str) -> Any:
        limiter = self._limiters.get(rate)
        if limiter is None:
            from throttled.asyncio import RateLimiterType, Throttled

            # GCRA: so many at once, and then one more each time its share of the period has passed; one number a key.
            gcra = RateLimiterType.GCRA.value
            limiter = Throttled(using=gcra, quota=rate, store=self.store, key_prefix="pillarbox").limiter
            self._limiters[rate] = limiter
        return limiter
