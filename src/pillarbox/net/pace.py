"""``min_data_rate``: whether a message comes fast enough, on the average, counting only the time it is waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pillarbox.smtp.wire import Arriving

# Over how long `min_data_rate` is an average, where there is no `socket_timeout` to say it.
DATA_GRACE = 60.0


class Pace:
    """How a message comes: how much of its time is left. Made by the sweep, for a message that it sees."""

    __slots__ = ("_left", "_seen", "source")

    def __init__(self, source: Arriving, grace: float) -> None:
        self.source = source
        self._seen = source.received
        self._left = grace

    def is_too_slow(self, seconds: float, rate: float, grace: float) -> bool:
        """Take off time that the client was waited for, and add what it has sent in it."""
        received = self.source.received
        self._left = min(grace, self._left - seconds + (received - self._seen) / rate)
        self._seen = received
        return self._left <= 0.0
