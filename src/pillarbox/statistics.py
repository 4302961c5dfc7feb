"""What a server counts: one object of plain numbers, and every number is counted in one place of the code.

Counting is adding one to what is there already: nothing is formatted, no key comes from a client.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# A message that is faster than the first is nearly every one: it is counted without a search.
MESSAGE_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
SESSION_BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
# The key of all verbs that the server does not know: a client must not be able to make keys.
UNKNOWN = "unknown"
# Replies have codes from 200 to 599.
_CODES = 600
# What is true of a moment: it means nothing any more when the server is gone.
_GAUGES = ("open_connections", "running_transactions")


class Durations:
    """How long something took, in seconds: how often (by length) and in sum.

    bounds: the upper end of each bucket; counts: how many fell into each, and behind them those above all bounds.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def snapshot(self) -> dict[str, Any]:
        """Return it as a mapping that JSON can hold."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}


class Statistics:
    """What a server has done since it was made; read it at any time, and write nothing. Hosts ignored are left out.

    connections: those that were let in. refused_connections: by reason: ``closing``, ``descriptors``,
    ``max_clients``, ``address`` (too many of it, or too fast) and ``proxy_header``. lost_connections: the network
    broke them.

    handshakes: ``starttls`` or ``implicit`` → TLS version, or ``failed`` → number. sessions: those that are over: how
    they were secured (these two, ``proxy``, or ``none``) → TLS version or "" → number. authenticated_sessions: those of
    them with a login. logins: mechanism (``OTHER``: not offered) → ``accepted``, ``refused`` or ``deferred`` (4xx) →
    number.

    commands: by verb; all that are not known under ``unknown``. recipients: accepted by RCPT. messages: ``accepted``,
    ``refused`` (5xx), ``deferred`` (4xx), and ``aborted`` where the end never came; in LMTP one is accepted if a
    recipient is. message_bytes: octets of all of them.

    refusals: ``limit`` → the option, ``handler`` → the hook that raised Reject, ``failure`` → the hook that failed,
    ``protocol`` → what was wrong → number.

    message_seconds: from DATA (or the first BDAT) to the answer; session_seconds: from connect to close.
    """

    __slots__ = (
        "_live",
        "_tallies",
        "authenticated_sessions",
        "connections",
        "handshakes",
        "logins",
        "lost_connections",
        "message_bytes",
        "message_seconds",
        "messages",
        "other_replies",
        "refusals",
        "refused_connections",
        "session_seconds",
        "sessions",
    )

    def __init__(self, live: Callable[[], Iterable[bool]] = tuple) -> None:
        self._live = live  # for each open connection: whether it is in a transaction
        self.connections = 0
        self.refused_connections: dict[str, int] = {}
        self.lost_connections = 0
        self.handshakes: dict[str, dict[str, int]] = {"starttls": {}, "implicit": {}}
        self.sessions: dict[str, dict[str, int]] = {"none": {"": 0}, "proxy": {"": 0}, "starttls": {}, "implicit": {}}
        self.authenticated_sessions = 0
        self.logins: dict[str, dict[str, int]] = {}
        # One number says how often a verb was answered so, by code: an index costs half of a key, and one half of two.
        # At 0 stand the commands whose replies are counted among the others.
        self._tallies: dict[str, list[int]] = {UNKNOWN: [0]}
        self.other_replies = [0] * _CODES
        self.messages = {"accepted": 0, "refused": 0, "deferred": 0, "aborted": 0}
        self.message_bytes = 0
        self.message_seconds = Durations(MESSAGE_BOUNDS)
        self.session_seconds = Durations(SESSION_BOUNDS)
        self.refusals: dict[str, dict[str, int]] = {"limit": {}, "handler": {}, "failure": {}, "protocol": {}}

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(tuple(self._live()))

    @property
    def running_transactions(self) -> int:
        """How many of them are in a mail transaction."""
        return sum(self._live())

    def tally(self, verb: str) -> list[int]:
        """Return where commands of a verb are counted: by the code of their reply, or at 0."""
        return self._tallies.setdefault(verb, [0] * _CODES)

    def unknown_command(self) -> None:
        """Count a command that is not known."""
        self._tallies[UNKNOWN][0] += 1

    @property
    def commands(self) -> dict[str, int]:
        """Commands by verb, and all that are not known under ``unknown``."""
        return {verb: sum(tally) for verb, tally in self._tallies.items()}

    @property
    def replies(self) -> dict[int, int]:
        """Replies by code."""
        sums = [sum(counts) for counts in zip(self.other_replies, *self._whole_tallies(), strict=True)]
        return {code: count for code, count in enumerate(sums) if code and count}

    def _whole_tallies(self) -> list[list[int]]:
        return [tally for verb, tally in self._tallies.items() if verb != UNKNOWN]

    @property
    def recipients(self) -> int:
        """RCPT commands that were accepted."""
        return self.tally("RCPT")[250]

    def snapshot(self) -> dict[str, Any]:
        """Return all of it as a mapping that JSON can hold: numbers, and mappings and lists of them."""
        live = tuple(self._live())
        found: dict[str, Any] = {"open_connections": len(live), "running_transactions": sum(live)}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, Durations):
                found[name] = value.snapshot()
            elif isinstance(value, dict) and name != "_tallies":
                found[name] = _copied(value)
            elif isinstance(value, int):
                found[name] = value
        found["commands"], found["recipients"] = self.commands, self.recipients
        found["replies"] = {str(code): count for code, count in self.replies.items()}
        return found

    @staticmethod
    def merged(snapshots: Iterable[Mapping[str, Any]], ended: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """Return the sum of snapshots, as of several processes with one port; any such mappings can be added up.

        ended: the last snapshots of servers that are gone: what they counted stays, what was true of a moment does not.
        """
        found: dict[str, Any] = {}
        for snapshot in snapshots:
            _add(found, snapshot)
        for snapshot in ended:
            _add(found, {name: value for name, value in snapshot.items() if name not in _GAUGES})
        return found


def count(counts: dict[str, int], key: str) -> None:
    """Count one more under a key that may be new."""
    counts[key] = counts.get(key, 0) + 1


def _copied(value: dict[str, Any]) -> dict[str, Any]:
    return {key: _copied(below) if isinstance(below, dict) else below for key, below in value.items()}


def _add(there: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            _add(there.setdefault(name, {}), value)
        elif name == "bounds":  # the same everywhere
            there[name] = list(value)
        elif isinstance(value, list):
            before = there.get(name, [0] * len(value))
            there[name] = [one + other for one, other in zip(before, value, strict=True)]
        else:
            there[name] = there.get(name, 0) + value
