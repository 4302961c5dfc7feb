"""Which targets take which message: a route is a target with the recipients and listeners that it is for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pillarbox.program.patterns import Patterns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pillarbox import Recipient
    from pillarbox.deliver import Target

__all__ = ["OPTIONAL_PATIENCE", "PATIENCE", "Part", "Route", "Routes"]

# RFC 5321 4.5.3.2.6: "DATA Termination: 10 Minutes." So long a client waits; a target that hangs is answered before.
PATIENCE = 300.0  # seconds
# An optional target's failure is not to fail the message: nor is it to wear out clients that wait for a minute or two.
OPTIONAL_PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class Route:
    """A target, for whom it is, and how much depends on it.

    recipients: those it takes. listeners: addresses as they are written in the configuration; empty for all. optional:
    its failure does not fail the message. timeout: seconds that it may take for a message, without the time in which
    the client sends. source: the place in the file, or empty.
    """

    target: Target
    recipients: Patterns = field(default_factory=lambda: Patterns(["*"]))
    listeners: frozenset[str] = frozenset()
    optional: bool = False
    timeout: float = PATIENCE
    source: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """What one route has to do for one message."""

    route: Route
    recipients: tuple[Recipient, ...]


class Routes:
    """The routes of one listener, in the order in which they commit: those that are required first."""

    def __init__(self, routes: Iterable[Route], listener: str) -> None:
        there = [route for route in routes if not route.listeners or listener in route.listeners]
        self.all = tuple(sorted(there, key=lambda route: route.optional))
        self.take_all = any(route.recipients.all for route in self.all)
        self.simple = self.all[0] if len(self.all) == 1 and self.take_all else None

    def of(self, recipient: str) -> list[Route]:
        """Return the routes of one recipient."""
        return [route for route in self.all if recipient in route.recipients]
