"""Rates: what an address, an account and all clients together may do in a time; counted by the library ``throttled``.

In memory (at most ``counts.KEPT`` addresses and accounts, those seen last), or in Redis for several that share it.
"""

from __future__ import annotations

import unicodedata
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pillarbox.counts import LimitCounts, Rates
from pillarbox.net.patience import ANSWER_TIME, NoPatience, Patience
from pillarbox.networks import Networks, client_network
from pillarbox.smtp.sasl.saslprep import saslprep

if TYPE_CHECKING:
    from pillarbox.logs import EventLog
    from pillarbox.options import Options
    from pillarbox.session import Session

# An account's name is the client's: a longer one is kept as its digest.
_LONGEST_KEY = 200
_FAILS = "the rate store fails, rates do not hold"
_AGAIN = "the rate store answers again"


class RateStores:
    """Where a server's listeners count their rates: each place opened once."""

    def __init__(self, counts: LimitCounts | None) -> None:
        self._memory = counts or LimitCounts()
        self._redis: dict[str, Rates] = {}

    def rates(self, url: str, log: EventLog) -> tuple[LimitCounts | Rates, Patience | NoPatience]:
        """Return what counts where ``rate_store`` says, and how it is asked."""
        if url == "memory":
            return self._memory, patience_with(self._memory, Patience(log, _FAILS, _AGAIN))
        if url not in self._redis:
            self._redis[url] = Rates(_redis(url))
        return self._redis[url], Patience(log, _FAILS, _AGAIN)

    async def close(self) -> None:
        """Close what is open."""
        for rates in self._redis.values():
            client = rates.store._backend.get_client()  # noqa: SLF001 - there is no other way to close it
            await client.aclose()
            await client.connection_pool.disconnect()
        self._redis.clear()


def patience_with(counts: LimitCounts, patience: Patience) -> Patience | NoPatience:
    """Return how these counts are asked: they may be anywhere."""
    return NoPatience() if counts.at_once else patience


def _redis(url: str) -> Any:
    from throttled.asyncio import RedisStore

    return RedisStore(server=url, options={"SOCKET_TIMEOUT": ANSWER_TIME, "SOCKET_CONNECT_TIMEOUT": ANSWER_TIME})


def rates(options: Options, stores: RateStores, log: EventLog) -> ClientRates | None:
    """Return the rates of a listener; None where it has none."""
    given = (options.rates_per_address, options.rates_per_account, options.rates_over_all)
    return ClientRates(options, stores, log) if any(given) else None


class ClientRates:
    """The rates of one listener: ``smtp.limits.Rates``."""

    def __init__(self, options: Options, stores: RateStores, log: EventLog) -> None:
        self._per_address = options.rates_per_address or {}
        self._per_account = options.rates_per_account or {}
        self._over_all = options.rates_over_all or {}
        self._unlimited = Networks(options.unlimited_hosts)
        self._counts, self._patience = stores.rates(options.rate_store, log)

    def limits(self, what: str) -> bool:
        return what in self._per_address or what in self._per_account or what in self._over_all

    async def take(self, what: str, session: Session, account: str | None = None) -> bool:
        for rate, key in self._concerned(what, session, account):
            # The others do not count what is refused.
            if await self._patience.ask(self._counts.take(key, rate)) is False:
                return False
        return True

    async def left(self, what: str, session: Session) -> bool:
        return await self._all_left(self._concerned(what, session, None))

    async def account_left(self, what: str, account: str) -> bool:
        rate = self._per_account.get(what)
        return rate is None or await self._all_left([(rate, _account_key(what, account))])

    async def _all_left(self, concerned: list[tuple[str, str]]) -> bool:
        for rate, key in concerned:
            if await self._patience.ask(self._counts.left(key, rate)) is False:
                return False
        return True

    def _concerned(self, what: str, session: Session, account: str | None) -> list[tuple[str, str]]:
        """Return each rate that this counts for, with the key under which it is counted."""
        found: list[tuple[str, str]] = []
        limited = session.remote_address not in self._unlimited
        if limited and session.remote_address and what in self._per_address:
            found.append((self._per_address[what], f"address:{what}:{client_network(session.remote_address)}"))
        if account and what in self._per_account:
            found.append((self._per_account[what], _account_key(what, account)))
        if limited and what in self._over_all:
            found.append((self._over_all[what], f"all:{what}"))
        return found


def _account_key(what: str, account: str) -> str:
    # Most applications take a name in any case, and prepare it: who writes it in another way, or with characters that
    # preparing takes out (a soft hyphen), has no budget of its own.
    with suppress(ValueError):  # where it cannot be prepared
        account = saslprep(account)
    account = unicodedata.normalize("NFKC", account).casefold().strip()
    if len(account) > _LONGEST_KEY:
        account = sha256(account.encode("utf-8", "surrogateescape")).hexdigest()
    return f"account:{what}:{account}"
