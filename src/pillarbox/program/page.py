"""The metrics page: every metric stands in one table, with its name, its labels and the place where its number is.

Made by the official client of Prometheus (the extra ``metrics``) in both of its formats.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pillarbox import __version__
from pillarbox.program.metrics import Snapshots, total

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["PROCESS", "TABLE", "Entry", "page"]


@dataclass(frozen=True)
class Entry:
    """One metric. place: the keys that lead to its number; below it there is a mapping for each label."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    place: tuple[str, ...]
    labels: tuple[str, ...] = ()


def _server(name: str) -> tuple[str, ...]:
    return ("server", name)


TABLE = (
    Entry("pillarbox_open_connections", "gauge", "Connections that are open.", _server("open_connections")),
    Entry("pillarbox_running_transactions", "gauge", "Mail transactions under way.", _server("running_transactions")),
    Entry("pillarbox_connections_total", "counter", "Connections that were let in.", _server("connections")),
    Entry(
        "pillarbox_refused_connections_total",
        "counter",
        "Connections that were not let in.",
        _server("refused_connections"),
        ("reason",),
    ),
    Entry(
        "pillarbox_lost_connections_total",
        "counter",
        "Connections that the network broke.",
        _server("lost_connections"),
    ),
    Entry(
        "pillarbox_tls_handshakes_total",
        "counter",
        "TLS handshakes: how (starttls, implicit), and the version or failed.",
        _server("handshakes"),
        ("how", "result"),
    ),
    Entry(
        "pillarbox_sessions_total",
        "counter",
        "Sessions that are over: how they were secured (none, starttls, implicit, proxy), and the version of TLS.",
        _server("sessions"),
        ("tls", "version"),
    ),
    Entry(
        "pillarbox_authenticated_sessions_total",
        "counter",
        "Sessions that are over and had a login.",
        _server("authenticated_sessions"),
    ),
    Entry(
        "pillarbox_logins_total",
        "counter",
        "Answers to AUTH: accepted, refused (5xx), deferred (4xx).",
        _server("logins"),
        ("mechanism", "outcome"),
    ),
    Entry("pillarbox_commands_total", "counter", "Commands; unknown verbs are one.", _server("commands"), ("verb",)),
    Entry("pillarbox_replies_total", "counter", "Replies.", _server("replies"), ("code",)),
    Entry("pillarbox_recipients_total", "counter", "Recipients that RCPT accepted.", _server("recipients")),
    Entry(
        "pillarbox_messages_total",
        "counter",
        "Messages: accepted, refused (5xx), deferred (4xx), aborted (the client did not send the end).",
        _server("messages"),
        ("outcome",),
    ),
    Entry("pillarbox_message_bytes_total", "counter", "Octets of all messages.", _server("message_bytes")),
    Entry(
        "pillarbox_message_duration_seconds",
        "histogram",
        "From DATA, or the first BDAT, to the answer.",
        _server("message_seconds"),
    ),
    Entry(
        "pillarbox_session_duration_seconds",
        "histogram",
        "From connect to close.",
        _server("session_seconds"),
    ),
    Entry(
        "pillarbox_refusals_total",
        "counter",
        "Refusals: limit (an option), handler (what refused), failure (what failed), protocol (what was wrong).",
        _server("refusals"),
        ("kind", "reason"),
    ),
    Entry(
        "pillarbox_deliveries_total",
        "counter",
        "Recipients that a target was given: delivered, refused (5xx), deferred (4xx).",
        ("deliveries", "outcomes"),
        ("target", "outcome"),
    ),
    Entry(
        "pillarbox_delivery_duration_seconds",
        "histogram",
        "How long a target took for a message, from its beginning to the answer.",
        ("deliveries", "seconds"),
        ("target",),
    ),
)
# The names that all clients of Prometheus use, for each worker.
PROCESS = {
    "process_cpu_seconds_total": "User and system CPU time, in seconds.",
    "process_resident_memory_bytes": "Resident memory.",
    "process_virtual_memory_bytes": "Virtual memory.",
    "process_start_time_seconds": "When the process began, in seconds since 1970.",
    "process_open_fds": "Open descriptors.",
    "process_max_fds": "The most there may be.",
}


def page(snapshots: Snapshots, accept: str) -> tuple[bytes, str]:
    """Return the page and its content type, in the format that an Accept field asks for."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(snapshots))
    try:
        encoder, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is none
        encoder, content_type = choose_encoder("")
    return encoder(registry), content_type


class _Page(Collector):
    """What is on one page: made for each request, since all of it is a snapshot."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        build = {"version": __version__, "python": platform.python_version()}
        yield InfoMetricFamily("pillarbox_build", "The program.", build)
        yield GaugeMetricFamily("pillarbox_workers", "Processes that serve.", len(self._snapshots.live))
        sums = total(self._snapshots)
        for entry in TABLE:
            yield _family(entry, sums)
        for name, help_ in PROCESS.items():
            yield self._of_processes(name, help_)

    def _of_processes(self, name: str, help_: str) -> Metric:
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        family = kind(name, help_, labels=("worker",))
        for worker, snapshot in self._snapshots.live.items():
            if name in snapshot["process"]:
                family.add_metric([worker], snapshot["process"][name])
        return family


def _family(entry: Entry, sums: Mapping[str, Any]) -> Metric:
    found: Any = sums
    for key in entry.place:
        found = found.get(key, {})
    values = _labelled(found, len(entry.labels))
    if entry.kind == "histogram":
        histogram = HistogramMetricFamily(entry.name, entry.help, labels=entry.labels)
        for labels, value in values:
            histogram.add_metric(labels, *_buckets(value))
        return histogram
    family = (CounterMetricFamily if entry.kind == "counter" else GaugeMetricFamily)(
        entry.name, entry.help, labels=entry.labels
    )
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _labelled(found: Any, depth: int) -> Iterable[tuple[list[str], Any]]:
    if found == {}:  # nobody has told anything yet
        return
    if depth == 0:
        yield [], found
        return
    for label, below in found.items():
        for labels, value in _labelled(below, depth - 1):
            yield [label, *labels], value


def _buckets(durations: Mapping[str, Any]) -> tuple[list[tuple[str, float]], float]:
    """Return the buckets as the page has them, each with all that are shorter, and the sum."""
    ends = [*(str(float(bound)) for bound in durations["bounds"]), "+Inf"]
    count, buckets = 0, []
    for end, more in zip(ends, durations["counts"], strict=True):
        count += more
        buckets.append((end, float(count)))
    return buckets, durations["sum"]
