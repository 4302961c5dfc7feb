"""The log: what the one line for each message costs, at level INFO, into a stream that drops it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import targets
from findings import Finding
from peers import OURS, PEERS, Peer
from rounds import Setting, measure
from workloads import WORKLOADS


def cost(setting: Setting) -> Iterable[Finding]:
    """Measure the same server at WARNING and at INFO, side by side."""
    silent = PEERS[OURS]
    telling = replace(silent, name="pillarbox-info", command=_at_info(silent))
    quiet, loud = measure([silent, telling], WORKLOADS["open"], setting)
    if quiet.failure or loud.failure:
        print(f"  {quiet.failure or loud.failure}")
        return
    difference = loud.median - quiet.median
    yield Finding("the log line of a message (INFO)", difference, "µs", targets.LOG_LINE_MICROSECONDS)


def _at_info(peer: Peer) -> Callable[[int, str], list[str]]:
    return lambda port, _mode: peer.command(port, "info")
