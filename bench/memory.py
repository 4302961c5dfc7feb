"""Memory: what an idle session holds, and what a large message costs when its handler is slow."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import process
import targets
from bodies import MB, Body
from findings import Finding
from peers import ASYNCIO, OURS, Peer
from process import LoadFailed
from rounds import Setting, load, serving
from workloads import LOAD

WARM_UP = 50


def idle(peers: Iterable[Peer], setting: Setting, sessions: int, mode: str = "plain") -> Iterable[Finding]:
    """Open sessions, say EHLO and MAIL, and look at what the server's resident memory grew by."""
    secured = " under TLS" if mode == "tls" else ""
    for peer in peers:
        try:
            grown = _idle(peer, setting, sessions, mode)
        except LoadFailed as problem:
            print(f"  {peer.name}: {problem}")
            continue
        target = targets.IDLE_BYTES / 1024 if peer.name == OURS and mode == "plain" else None
        yield Finding(f"{peer.name}: an idle session of {sessions:,}{secured}", grown / 1024, "KiB", target)


def _idle(peer: Peer, setting: Setting, sessions: int, mode: str) -> float:
    with serving(peer, mode, setting) as server:
        command = [sys.executable, str(LOAD), str(server.port), "--idle", *(["--tls"] if mode == "tls" else [])]
        with load([*command, "--sessions", str(WARM_UP)]):
            pass
        process.settled_cpu_seconds(server.pid)
        before = process.memory(server.pid)
        with load([*command, "--sessions", str(sessions)]):
            process.settled_cpu_seconds(server.pid)
            return (process.memory(server.pid) - before) / sessions


def slow_handler(peers: Iterable[Peer], setting: Setting) -> Iterable[Finding]:
    """Send 25 MB to a handler that sleeps after each block: the most memory that took, above the idle session."""
    for peer in peers:
        if peer.name in (OURS, ASYNCIO):
            target = targets.SLOW_HANDLER_BYTES / MB if peer.name == OURS else None
            yield Finding(f"{peer.name}: 25 MB to a slow handler", _slow_handler(peer, setting) / MB, "MiB", target)


def _slow_handler(peer: Peer, setting: Setting) -> int:
    octets = str(Body("base64", 25 * MB).for_load(setting.folder))
    small = str(Body("base64", 1024).for_load(setting.folder))
    with serving(peer, "slow", setting) as server:
        command = [sys.executable, str(LOAD), str(server.port), "--octets"]
        with load([*command, small]) as first:  # what the first message imports is not the large one's
            first.go()
        with load([*command, octets]) as running:
            process.settled_cpu_seconds(server.pid)
            process.forget_peak(server.pid)
            before = process.memory(server.pid)
            running.go()
            return process.memory(server.pid, "VmHWM") - before
