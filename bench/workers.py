"""Workers: what a message costs the whole program, all its processes, with one worker and with several."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import process
import targets
from findings import Finding
from peers import OURS, PEERS, Peer
from rounds import Figure, Setting, measure
from workloads import WORKLOADS, Workload

MANY = "1000000000/second"
LIMITS: dict[str, Any] = {
    "max_clients": 100_000,
    "max_clients_per_address": 100_000,
    "rates_per_address": {"messages": MANY, "recipients": MANY},
}
# On one core the kernel has the two take turns: what is left is what the second worker costs by itself.
ONE_CORE, ALL_CORES = [process.SERVER_CORE], process.CORES
NUMBERS = (1, 2)
SESSIONS = 10


@dataclass(frozen=True)
class Comparison:
    """One worker beside two: with so many sessions for each, or the same number in all."""

    workload: str
    where: str
    cores: Sequence[int]
    sessions: str = "each"
    options: dict[str, Any] = field(default_factory=dict)
    target: float | None = targets.WORKERS

    def __str__(self) -> str:
        limits = ", limits over all" if self.options else ""
        many = f"{SESSIONS} sessions a worker" if self.sessions == "each" else f"{SESSIONS} sessions in all"
        return f"{self.workload}, {self.where}, {many}{limits}"

    @property
    def workloads(self) -> list[Workload]:
        # A turn of the event loop costs the same for one connection that has something to say as for ten: with fewer
        # of them for each worker a message costs more, as it does with one worker that has fewer.
        numbers = [SESSIONS * (number if self.sessions == "each" else 1) for number in NUMBERS]
        return [replace(WORKLOADS[self.workload], sessions=number) for number in numbers]


COMPARED = (
    Comparison("open", "one core", ONE_CORE),
    Comparison("each", "one core", ONE_CORE),
    Comparison("open", "all cores", ALL_CORES),
    Comparison("each", "all cores", ALL_CORES),
    Comparison("open", "all cores", ALL_CORES, "in all", target=None),
    Comparison("each", "all cores", ALL_CORES, "in all", target=None),
    Comparison("open", "one core", ONE_CORE, options=LIMITS),
    Comparison("each", "one core", ONE_CORE, options=LIMITS),
    Comparison("open", "all cores", ALL_CORES, options=LIMITS),
    Comparison("each", "all cores", ALL_CORES, options=LIMITS),
)


def ratios(setting: Setting) -> Iterable[Finding]:
    """Measure the program with one and with two workers side by side; the target is the ratio's."""
    begun, end = time.monotonic(), setting.deadline
    for done, each in enumerate(COMPARED):
        share = begun + (end - begun) * (done + 1) / len(COMPARED)
        yield from _compared(each, replace(setting, cores=each.cores, deadline=share))


def _compared(each: Comparison, setting: Setting) -> Iterable[Finding]:
    figures = measure([_peer(number, each) for number in NUMBERS], each.workloads, setting)
    failures = [figure.failure for figure in figures if figure.failure]
    if failures:
        print(f"  {each}: {failures[0]}")
        return
    for number, figure in zip(NUMBERS, figures, strict=True):
        yield Finding(f"{each}; {number}: median", figure.median, "µs")
        yield Finding(f"{each}; {number}: minimum", min(figure.rounds), "µs")
    yield Finding(f"{each}: two by one, median of the rounds", _ratio(figures), "", each.target)
    least = min(figures[1].rounds) / min(figures[0].rounds)
    yield Finding(f"{each}: two by one, minima", least, "", each.target)


def _ratio(figures: Sequence[Figure]) -> float:
    return statistics.median(two / one for one, two in zip(figures[0].rounds, figures[1].rounds, strict=False))


def _peer(number: int, each: Comparison) -> Peer:
    name = f"{number} on {each.where}{' with limits' if each.options else ''}"
    return replace(PEERS[OURS], name=name, command=_command(number, each.options), modes=frozenset({"plain"}))


def _command(number: int, options: dict[str, Any]) -> Callable[[int, str], list[str]]:
    def command(port: int, mode: str) -> list[str]:
        serve = [sys.executable, "-m", "pillarbox", "serve", "--workers", str(number)]
        serve += ["--listen", f"127.0.0.1:{port}", "--deliver", "discard:", "--log-level", "warning"]
        serve += ["--set", "disable_reverse_lookup=true"]
        for option, value in options.items():
            serve += ["--set", f"{option}={_toml(value)}"]
        return serve

    return command


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {json.dumps(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)
