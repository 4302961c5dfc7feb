"""How a figure is taken: servers side by side, interleaved rounds, the server's CPU time for each message."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import process
from peers import Peer
from process import LoadFailed
from workloads import OWN, Workload

HERE = Path(__file__).resolve().parent
TRIES = 3
# However short the time: a median of fewer says nothing.
FEWEST_ROUNDS = 3


@dataclass
class Setting:
    """What the whole run shares.

    seconds: of one round; warm_up: seconds for each server before its first; deadline: when (monotonic) no further
    round begins.
    """

    folder: Path
    rounds: int
    seconds: float
    warm_up: float = 0.0
    deadline: float = float("inf")
    environment: dict[str, str] = field(default_factory=dict)
    cores: Sequence[int] = (process.SERVER_CORE,)  # the server's

    servers: Servers = field(default_factory=lambda: Servers())  # noqa: PLW0108 - it stands below

    def time_is_up(self) -> bool:
        return time.monotonic() > self.deadline


@dataclass
class Server:
    """A peer that is running, and whether it has been warmed up."""

    peer: Peer
    port: int
    pid: int
    warm: bool = False


@contextlib.contextmanager
def serving(peer: Peer, mode: str, setting: Setting) -> Iterator[Server]:
    """Start a peer on the server's core, and wait until it greets."""
    port = process.free_port()
    environment = os.environ | setting.environment
    silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = peer.command(port, mode)
    with process.started(command, setting.cores, cwd=HERE, env=environment, **silent) as running:
        process.wait_for_greeting(port, running)
        yield Server(peer, port, running.pid)


class Servers:
    """The servers that are running: one for each peer and mode, kept from workload to workload, so that it is warm.

    What waits costs nothing: none of them does anything until it is spoken to.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._running: dict[tuple[str, str], Server] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *problem: object) -> None:
        self._stack.close()

    def get(self, peer: Peer, mode: str, setting: Setting) -> Server:
        """Return the peer's server, started if it is not running. Raises LoadFailed where it does not greet."""
        key = peer.name, mode
        if key not in self._running:
            self._running[key] = self._stack.enter_context(serving(peer, mode, setting))
        return self._running[key]


# --- One load


@dataclass(frozen=True)
class Delivered:
    """What one load cost: CPU seconds of the server, seconds of the clock, messages."""

    cpu: float
    wall: float
    messages: int

    @property
    def microseconds(self) -> float:
        return self.cpu / self.messages * 1e6


def deliver(server: Server, workload: Workload, messages: int, folder: Path) -> Delivered:
    """Deliver so many messages. Raises LoadFailed with what the server said against it."""
    if workload.tool == OWN:
        return _with_our_own(server, workload.load(server.port, messages, folder))
    return _with_smtp_source(server, workload.smtp_source(server.port, messages, folder), messages)


def _with_smtp_source(server: Server, command: list[str], messages: int) -> Delivered:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    before, begun = process.cpu_seconds(server.pid), time.monotonic()
    with process.started(command, process.LOAD_CORE, **pipes) as source:
        said = source.communicate(timeout=120)[0]
    wall = time.monotonic() - begun
    if source.returncode:
        raise LoadFailed((said.strip().splitlines() or ["smtp-source failed"])[-1].removeprefix("smtp-source: "))
    return Delivered(process.settled_cpu_seconds(server.pid) - before, wall, messages)


class Load:
    """Our own load program: it has opened its sessions when this returns, and delivers when it is told."""

    def __init__(self, running: subprocess.Popen[str]) -> None:
        self._running = running
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self._running.stdout is not None
        line = self._running.stdout.readline()
        if line == "ready\n":
            return {}
        said: dict[str, Any] = json.loads(line or '{"refused": "the load program ended"}')
        if "refused" in said:
            raise LoadFailed(said["refused"])
        return said

    def go(self) -> dict[str, Any]:
        """Let it deliver, and return what it says of it."""
        assert self._running.stdin is not None
        self._running.stdin.write("\n")
        self._running.stdin.flush()
        return self._read()


@contextlib.contextmanager
def load(command: Sequence[str]) -> Iterator[Load]:
    """Start it; at the end of the block its sessions are closed."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with process.started(command, process.LOAD_CORE, **pipes) as running:
        yield Load(running)


def _with_our_own(server: Server, command: list[str]) -> Delivered:
    with load(command) as running:
        before, begun = process.settled_cpu_seconds(server.pid), time.monotonic()
        done = running.go()
        wall = time.monotonic() - begun
        return Delivered(process.settled_cpu_seconds(server.pid) - before, wall, done["messages"])


# --- Many


@dataclass
class Figure:
    """What one peer needed for a message, in microseconds of CPU, round by round; or why there is nothing."""

    peer: str
    rounds: list[float] = field(default_factory=list)
    messages: int = 0
    failure: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.rounds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


def measure(peers: Sequence[Peer], workload: Workload | Sequence[Workload], setting: Setting) -> list[Figure]:
    """Measure the peers side by side: A B C A B C, after a warm-up each. One that fails is noted and left out.

    workload: for all of them, or one for each.
    """
    figures = [Figure(peer.name) for peer in peers]
    workloads = [workload] * len(peers) if isinstance(workload, Workload) else workload
    running = [
        (server, figure, load)
        for peer, figure, load in zip(peers, figures, workloads, strict=True)
        if (server := _prepared(peer, figure, load, setting)) is not None
    ]
    for number in range(setting.rounds):
        if number >= FEWEST_ROUNDS and setting.time_is_up():  # whole rounds only
            break
        for server, figure, load in running:
            _round(server, figure, load, setting)
    return figures


def _prepared(peer: Peer, figure: Figure, workload: Workload, setting: Setting) -> Server | None:
    try:
        server = setting.servers.get(peer, workload.mode, setting)
        figure.messages = _messages_for(server, workload, setting)
    except (LoadFailed, subprocess.TimeoutExpired) as problem:
        figure.failure = str(problem)
        return None
    return server


def _round(server: Server, figure: Figure, workload: Workload, setting: Setting) -> None:
    if figure.failure:
        return
    try:
        figure.rounds.append(deliver(server, workload, figure.messages, setting.folder).microseconds)
    except (LoadFailed, subprocess.TimeoutExpired) as problem:
        figure.failure = str(problem)


def _messages_for(server: Server, workload: Workload, setting: Setting) -> int:
    """Warm the server up, and return how many messages fill one round."""
    tried = deliver(server, workload, workload.first, setting.folder)
    if not server.warm:  # Node compiles what runs often: after some thousand messages it needs a third of the time
        deliver(server, workload, _filling(tried, workload, setting.warm_up), setting.folder)
        server.warm = True
    for _ in range(TRIES):
        if tried.wall > 0.8 * setting.seconds:
            break
        tried = deliver(server, workload, _filling(tried, workload, setting.seconds), setting.folder)
    return _filling(tried, workload, setting.seconds)


def _filling(tried: Delivered, workload: Workload, seconds: float) -> int:
    least = workload.sessions  # one message on each, or there would be fewer
    return max(least, min(50_000, round(tried.messages * seconds / tried.wall)))
