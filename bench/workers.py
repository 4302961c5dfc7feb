"""Workers: what a message costs the whole program, all its processes, with one worker and with several."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import process
import targets
from findings import Finding
from peers import OURS, PEERS, Peer
from rounds import Figure, Setting, measure
from workloads import WORKLOADS

MANY = "1000000000/second"
LIMITS: dict[str, Any] = {
    "max_clients": 100_000,
    "max_clients_per_address": 100_000,
    "rates_per_address": {"messages": MANY, "recipients": MANY},
}
# On one core the kernel has the two take turns: what is left is what the second worker costs by itself.
ONE_CORE, ALL_CORES = [process.SERVER_CORE], process.CORES
NUMBERS = (1, 2)


def ratios(setting: Setting) -> Iterable[Finding]:
    """Measure the program with one and with two workers side by side; the target is the ratio's."""
    on_one, on_all = replace(setting, cores=ONE_CORE), replace(setting, cores=ALL_CORES)
    for workload in ("open", "each"):
        yield from _compared(workload, "on one core", on_one, {}, targets.WORKERS)
        yield from _compared(workload, f"on {len(ALL_CORES)} cores", on_all, {}, targets.WORKERS)
        yield from _compared(workload, "on one core, with limits over all", on_one, LIMITS, None)


def _compared(
    workload: str, where: str, setting: Setting, options: dict[str, Any], target: float | None
) -> Iterable[Finding]:
    peers = [_peer(number, where, options) for number in NUMBERS]
    figures = measure(peers, WORKLOADS[workload], setting)
    for number, figure in zip(NUMBERS, figures, strict=True):
        if figure.failure:
            print(f"  {figure.peer}: {figure.failure}")
            return
        kind = f"{workload}, {where}, {number} worker{'s' if number > 1 else ''}"
        yield Finding(f"{kind}: median", figure.median, "µs")
        yield Finding(f"{kind}: minimum", min(figure.rounds), "µs")
    yield Finding(f"{workload}, {where}: two by one, median of the rounds", _ratio(figures), "", target)
    yield Finding(
        f"{workload}, {where}: two by one, minima", min(figures[1].rounds) / min(figures[0].rounds), "", target
    )


def _ratio(figures: Sequence[Figure]) -> float:
    return statistics.median(two / one for one, two in zip(figures[0].rounds, figures[1].rounds, strict=False))


def _peer(number: int, where: str, options: dict[str, Any]) -> Peer:
    name = f"{number} workers {where}"
    return replace(PEERS[OURS], name=name, command=_command(number, options), modes=frozenset({"plain"}))


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
