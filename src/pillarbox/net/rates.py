"""Rates: what an address, an account and all clients together may do in a time; counted by the library ``throttled``.

In this process (at most ``KEPT`` addresses and accounts, those seen last), or in Redis for several that share it.
"""

from __future__ import annotations

import asyncio
import unicodedata
from hashlib import sha256
from logging import INFO, WARNING
from typing import TYPE_CHECKING, Any

from pillarbox.networks import Networks, client_network

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pillarbox.logs import EventLog
    from pillarbox.options import Options
    from pillarbox.session import Session

# So many keys are remembered in memory, at 500 octets each, and 900 where they are the longest account names.
KEPT = 100_000
# How long a store may take to answer; mail does not wait for what counts it.
STORE_TIME = 1.0
# How long a store that failed is not asked again: each command would wait for it anew.
STORE_REST = 5.0
# An account's name is the client's: a longer one is kept as its digest.
_LONGEST_KEY = 200


class RateStores:
    """Where a server's listeners count their rates: each place opened once."""

    def __init__(self) -> None:
        self._stores: dict[str, Any] = {}

    def store(self, url: str) -> Any:
        """Return the store that ``rate_store`` names."""
        if url not in self._stores:
            self._stores[url] = _opened(url)
        return self._stores[url]

    async def close(self) -> None:
        """Close what is open."""
        for url, store in self._stores.items():
            if url != "memory":
                client = store._backend.get_client()  # noqa: SLF001 - there is no other way to close it
                await client.aclose()
                await client.connection_pool.disconnect()
        self._stores.clear()


def _opened(url: str) -> Any:
    from throttled.asyncio import MemoryStore, RedisStore

    if url == "memory":
        return MemoryStore(options={"MAX_SIZE": KEPT})
    times = {"SOCKET_TIMEOUT": STORE_TIME, "SOCKET_CONNECT_TIMEOUT": STORE_TIME}
    return RedisStore(server=url, options=times)


def rates(options: Options, stores: RateStores, log: EventLog) -> ClientRates | None:
    """Return the rates of a listener; None where it has none."""
    given = (options.rates_per_address, options.rates_per_account, options.rates_over_all)
    return ClientRates(options, stores.store(options.rate_store), log) if any(given) else None


class ClientRates:
    """The rates of one listener: ``smtp.limits.Rates``."""

    def __init__(self, options: Options, store: Any, log: EventLog) -> None:
        self._per_address = _limiters(options.rates_per_address, store)
        self._per_account = _limiters(options.rates_per_account, store)
        self._over_all = _limiters(options.rates_over_all, store)
        self._unlimited = Networks(options.unlimited_hosts)
        self._waits = options.rate_store != "memory"
        self._log = log
        self._store_fails = False
        self._asks_again = 0.0  # when it does, by the loop's clock

    def limits(self, what: str) -> bool:
        return what in self._per_address or what in self._per_account or what in self._over_all

    async def take(self, what: str, session: Session, account: str | None = None) -> bool:
        for limiter, key in self._concerned(what, session, account):
            result = await self._asked(limiter.limit(key))
            if result is not None and result.limited:  # the others do not count what is refused
                return False
        return True

    async def left(self, what: str, session: Session) -> bool:
        return await self._all_left(self._concerned(what, session, None))

    async def account_left(self, what: str, account: str) -> bool:
        limiter = self._per_account.get(what)
        return limiter is None or await self._all_left([(limiter, _account_key(what, account))])

    async def _all_left(self, concerned: list[tuple[Any, str]]) -> bool:
        for limiter, key in concerned:
            state = await self._asked(limiter.peek(key))
            if state is not None and state.remaining < 1:
                return False
        return True

    def _concerned(self, what: str, session: Session, account: str | None) -> list[tuple[Any, str]]:
        """Return who counts this, each with the key under which it is counted."""
        found: list[tuple[Any, str]] = []
        limited = session.remote_address not in self._unlimited
        if limited and session.remote_address and what in self._per_address:
            found.append((self._per_address[what], f"address:{what}:{client_network(session.remote_address)}"))
        if account and what in self._per_account:
            found.append((self._per_account[what], _account_key(what, account)))
        if limited and what in self._over_all:
            found.append((self._over_all[what], f"all:{what}"))
        return found

    async def _asked(self, answer: Any) -> Any:
        """Return what the store says; None where it does not answer: mail goes on, and the log tells, once."""
        if not self._waits:  # memory answers at once, and a time-out would cost as much as the answer
            return await answer
        now = asyncio.get_running_loop().time()
        if self._store_fails and now < self._asks_again:
            answer.close()
            return None
        self._asks_again = now + STORE_REST  # for others meanwhile, where it fails still
        try:
            async with asyncio.timeout(STORE_TIME):
                result = await answer
        except Exception as error:  # noqa: BLE001 - a store's library has its own errors; none may stop the mail
            if not self._store_fails:
                self._store_fails = True
                self._log.event(WARNING, "rates", None, "the rate store fails, rates do not hold: %s", _said(error))
            return None
        if self._store_fails:
            self._store_fails = False
            self._log.event(INFO, "rates", None, "the rate store answers again")
        return result


def _limiters(given: Mapping[str, str] | None, store: Any) -> dict[str, Any]:
    from throttled.asyncio import RateLimiterType, Throttled

    return {
        # GCRA: so many at once, and then one more each time its share of the period has passed; one number a key.
        what: Throttled(using=RateLimiterType.GCRA.value, quota=rate, store=store, key_prefix="pillarbox").limiter
        for what, rate in (given or {}).items()
    }


def _account_key(what: str, account: str) -> str:
    # Most applications take a name in any case: who writes it in another way has no budget of its own.
    account = unicodedata.normalize("NFKC", account).casefold().strip()
    if len(account) > _LONGEST_KEY:
        account = sha256(account.encode("utf-8", "surrogateescape")).hexdigest()
    return f"account:{what}:{account}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
