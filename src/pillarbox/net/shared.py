"""Connections that several servers count together, by ``limit_counts``: what is asked for one, and given back.

The server's own numbers come first: who is one too many here is one too many over all, and nobody is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pillarbox.net.patience import NoPatience, Patience
from pillarbox.net.rates import patience_with

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pillarbox.counts import LimitCounts
    from pillarbox.logs import EventLog
    from pillarbox.net.connection import Connection
    from pillarbox.options import Options

ALL = "clients"
OF_NETWORK = "clients from "
_FAILS = "limit_counts fails, the limits hold for this process alone"
_AGAIN = "limit_counts answers again"


@dataclass(frozen=True, slots=True)
class SharedCounts:
    """What a server's listeners have in common of it."""

    counts: LimitCounts
    patience: Patience | NoPatience
    max_clients: int | None


def shared_counts(options: Options, log: EventLog) -> SharedCounts | None:
    """Return what a server counts together with others; None where it is alone."""
    counts = options.limit_counts
    if counts is None:
        return None
    return SharedCounts(counts, patience_with(counts, Patience(log, _FAILS, _AGAIN)), options.max_clients)


class SharedLimits:
    """The limits of one listener that hold over all who share the counts.

    places: where each connection is counted, and how many may be there; per_network: how many from one network.
    """

    __slots__ = ("_counts", "_patience", "_per_network", "_places")

    def __init__(self, shared: SharedCounts, places: Mapping[str, int | None], per_network: int | None) -> None:
        self._counts = shared.counts
        self._patience = shared.patience
        self._places, self._per_network = places, per_network

    async def admits(self, connection: Connection) -> bool:
        """Count a connection, unless as many are there as may be."""
        return not self._places or await self._enters(connection, self._places)

    async def admits_of_network(self, connection: Connection) -> bool:
        """Count a connection where its client comes from, and no longer where it was counted before."""
        place = OF_NETWORK + connection.network if connection.network is not None else None
        before = tuple(each for each in connection.places if each.startswith(OF_NETWORK))
        if place in before:
            return True
        if place is not None and not await self._enters(connection, {place: self._per_network}):
            return False
        if before:
            connection.places = tuple(each for each in connection.places if each not in before)
            self._counts.leave(before)
        return True

    def leaves(self, connection: Connection) -> None:
        """Give back the places of a connection."""
        places, connection.places = connection.places, ()
        if places:
            self._counts.leave(places)

    async def _enters(self, connection: Connection, places: Mapping[str, int | None]) -> bool:
        entered = await self._patience.ask(self._counts.enter(places))
        if entered:
            connection.places += tuple(places)
        return entered is not False


def shared_limits(
    options: Options, shared: SharedCounts | None, place: str | None, *, own_limit: bool
) -> SharedLimits | None:
    """Return what a listener asks for each connection; None where it asks nothing.

    place: what is listened on, which is what listeners of several servers may have in common; own_limit: whether
    ``max_clients`` was given for this listener alone.
    """
    if shared is None:
        return None
    places: dict[str, int | None] = {}
    if shared.max_clients is not None:
        places[ALL] = None if own_limit else shared.max_clients
    if own_limit and options.max_clients is not None and place is not None:
        places[f"{ALL} of {place}"] = options.max_clients
    if not places and options.max_clients_per_address is None:
        return None
    return SharedLimits(shared, places, options.max_clients_per_address)
