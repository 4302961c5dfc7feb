"""What a process of the program counts, as a mapping that JSON can hold, so that one page can tell of all processes.

The server counts by itself (``SMTPServer.statistics``); deliveries are counted here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pillarbox import ConfigurationError, Durations, Reject, Statistics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pillarbox import Session
    from pillarbox.program.fanout import Delivered

__all__ = ["Counted", "Deliveries", "History", "Snapshots", "missing", "outcome", "total"]

# A local disk syncs in milliseconds; another mail server may take the 300 s that it is given.
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Deliveries:
    """What came of deliveries, by target: there are as many as the configuration has."""

    def __init__(self, targets: Iterable[str] = ()) -> None:
        self._outcomes: dict[str, dict[str, int]] = {}
        self._seconds: dict[str, Durations] = {}
        for target in targets:  # so that they are on the page before the first message
            self._add(target)

    def _add(self, target: str) -> None:
        self._outcomes[target] = {"delivered": 0, "refused": 0, "deferred": 0}
        self._seconds[target] = Durations(_BOUNDS)

    def note(self, done: Delivered, _: Session) -> None:
        """Count one delivery: an observer of the receiver."""
        target = done.part.route.target.url
        if target not in self._outcomes:
            self._add(target)
        outcomes = self._outcomes[target]
        for answer in done.answers:
            outcomes[outcome(answer)] += 1
        self._seconds[target].add(done.seconds)

    def snapshot(self) -> dict[str, Any]:
        """Return all of it as a mapping that JSON can hold."""
        return {
            "outcomes": {target: dict(outcomes) for target, outcomes in self._outcomes.items()},
            "seconds": {target: durations.snapshot() for target, durations in self._seconds.items()},
        }


def outcome(answer: str | Reject) -> str:
    """Return what one recipient's answer is counted as: delivered, refused (5xx) or deferred (4xx)."""
    if isinstance(answer, str):
        return "delivered"
    return "refused" if (answer.code or 450) >= 500 else "deferred"  # 450 is on_data's default


# --- One process, and all of them


class Counted:
    """What this process has counted; raises ConfigurationError where the extra is not installed."""

    def __init__(self, statistics: Statistics, targets: Iterable[str] = ()) -> None:
        try:
            from prometheus_client import ProcessCollector
        except ImportError as error:
            raise missing(error) from error
        self.deliveries = Deliveries(targets)
        self._statistics = statistics
        self._process = ProcessCollector(registry=None)

    def snapshot(self) -> dict[str, Any]:
        """Return all of it as a mapping that JSON can hold: it can be sent to another process that makes the page."""
        return {
            "server": self._statistics.snapshot(),
            "deliveries": self.deliveries.snapshot(),
            # What the system says; nothing where there is no /proc.
            "process": {sample.name: sample.value for family in self._process.collect() for sample in family.samples},
        }


def missing(error: ImportError) -> ConfigurationError:
    """Return the error for what the extra would have installed."""
    return ConfigurationError(f"metrics need {error.name}: pip install 'pillarbox[metrics]'")


@dataclass(frozen=True)
class Snapshots:
    """What a page shows. live: of the processes that run, by their number. ended: of those that have ended."""

    live: Mapping[str, Mapping[str, Any]]
    ended: tuple[Mapping[str, Any], ...] = ()


def total(snapshots: Snapshots) -> dict[str, Any]:
    """Return what all processes have counted together."""
    live = snapshots.live.values()
    return {
        "server": Statistics.merged([each["server"] for each in live], [each["server"] for each in snapshots.ended]),
        "deliveries": Statistics.merged([each["deliveries"] for each in (*live, *snapshots.ended)]),
    }


@dataclass
class History:
    """What a supervisor knows of its workers: their last snapshots, and the sum of those that have ended.

    A counter must not fall when a worker is replaced: what it had counted when it was last asked stays in the sum.
    """

    _last: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _ended: Mapping[str, Any] | None = None

    def note(self, worker: str, snapshot: Mapping[str, Any]) -> None:
        """Keep what a worker has counted until now."""
        self._last[worker] = snapshot

    def end(self, worker: str) -> None:
        """Add what a worker that is gone had counted to the sum."""
        last = self._last.pop(worker, None)
        if last is not None:
            gone = (last,) if self._ended is None else (last, self._ended)
            self._ended = total(Snapshots({}, gone))

    def snapshots(self) -> Snapshots:
        """Return what is known now."""
        return Snapshots(dict(self._last), () if self._ended is None else (self._ended,))
