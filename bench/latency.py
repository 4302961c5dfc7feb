"""Latency: how long ten busy sessions wait, alone and beside thousands that are open."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Iterable, Iterator

import targets
from bodies import KB, Body
from findings import Finding
from peers import ASYNCIO, OURS, Peer
from rounds import Server, Setting, load, serving
from workloads import LOAD

BUSY = 10
# Each idle client holds so many: a process may have 20,000 files open, often fewer.
A_CLIENT_HOLDS = 5_000


def beside_open_sessions(peers: Iterable[Peer], setting: Setting, sessions: int) -> Iterable[Finding]:
    """Take the latency without and with the open sessions in turn; the target is on the change of the medians."""
    for peer in peers:
        if peer.name not in (OURS, ASYNCIO):
            continue
        alone, beside = [], []
        with serving(peer, "plain", setting) as server:
            _latency(server, setting)  # warm-up
            for number in range(max(2, setting.rounds // 2)):
                if number > 1 and setting.time_is_up():
                    break
                alone.append(_latency(server, setting))
                with open_sessions(server, sessions):
                    beside.append(_latency(server, setting))
        before, after = statistics.median(alone), statistics.median(beside)
        yield Finding(f"{peer.name}: median latency of {BUSY} busy sessions alone", before * 1e6, "µs")
        yield Finding(f"{peer.name}: the same beside {sessions:,} open ones", after * 1e6, "µs")
        target = targets.LATENCY_CHANGE * 100 if peer.name == OURS else None
        yield Finding(f"{peer.name}: change", (after / before - 1) * 100, "%", target)


def _latency(server: Server, setting: Setting) -> float:
    octets = str(Body("prose", KB).for_load(setting.folder))
    seconds = str(max(0.3, setting.seconds * 2))
    command = [sys.executable, str(LOAD), str(server.port), "--octets", octets, "--sessions", str(BUSY)]
    with load([*command, "--latency", seconds]) as running:
        median: float = running.go()["median"]
        return median


@contextlib.contextmanager
def open_sessions(server: Server, sessions: int) -> Iterator[None]:
    """Hold so many sessions after EHLO and MAIL, in as many processes as it takes."""
    with contextlib.ExitStack() as stack:
        for begun in range(0, sessions, A_CLIENT_HOLDS):
            here = str(min(A_CLIENT_HOLDS, sessions - begun))
            stack.enter_context(load([sys.executable, str(LOAD), str(server.port), "--idle", "--sessions", here]))
        yield
