"""Limits: what each costs a message or a connection, and what a connection costs that is refused."""

from __future__ import annotations

import json
import socket
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import process
from findings import Finding
from peers import OURS, PEERS, Peer
from rounds import Setting, measure, serving
from workloads import WORKLOADS

MANY = "1000000000/second"
OFF: dict[str, Any] = dict.fromkeys((
    "max_recipients", "max_errors", "max_junk_commands", "max_refused_recipients", "max_auth_failures",
    "command_timeout", "reply_timeout", "min_data_rate",
))  # fmt: skip
# Beside a server without any of them, in the same rounds.
OPEN: dict[str, dict[str, Any]] = {
    "none": OFF,
    "the defaults": {},
    "rates per address of messages and recipients": {"rates_per_address": {"messages": MANY, "recipients": MANY}},
    "the same, and over all": {
        "rates_per_address": {"messages": MANY, "recipients": MANY},
        "rates_over_all": {"messages": MANY, "recipients": MANY},
    },
}
EACH: dict[str, dict[str, Any]] = {
    "none": OFF,
    "the defaults": {},
    "max_clients_per_address": {"max_clients_per_address": 1_000_000},
    "a rate per address of connections": {"rates_per_address": {"connections": MANY}},
}
REFUSED: dict[str, dict[str, Any]] = {
    "max_clients": {"max_clients": 1},
    "max_clients_per_address": {"max_clients_per_address": 1},
    "a rate per address of connections": {"rates_per_address": {"connections": "1/week"}},
}


def cost(setting: Setting) -> Iterable[Finding]:
    """Measure servers with these limits side by side, and the refusals one after the other."""
    yield from _beside_none(OPEN, "open", "a message", setting)
    yield from _beside_none(EACH, "each", "a connection with a message", setting)
    for name, options in REFUSED.items():
        yield Finding(f"a connection that is refused by {name}", _refusal(options, setting), "µs")


def _beside_none(variants: dict[str, dict[str, Any]], workload: str, what: str, setting: Setting) -> Iterable[Finding]:
    figures = measure([_peer(name, options) for name, options in variants.items()], WORKLOADS[workload], setting)
    without = figures[0]
    for figure in figures:
        if figure.failure or without.failure:
            print(f"  {figure.peer}: {figure.failure or without.failure}")
        elif figure is without:
            yield Finding(f"{what}, without limits", figure.median, "µs")
        else:
            more = statistics.median(b - a for a, b in zip(without.rounds, figure.rounds, strict=False))
            yield Finding(f"{what}: {figure.peer} add", more, "µs")


def _peer(name: str, options: dict[str, Any]) -> Peer:
    ours = PEERS[OURS]
    return replace(ours, name=name, command=_with(ours, options))


def _with(ours: Peer, options: dict[str, Any]) -> Callable[[int, str], list[str]]:
    return lambda port, mode: [*ours.command(port, mode), "--options", json.dumps(options)]


def _refusal(options: dict[str, Any], setting: Setting, connections: int = 3_000) -> float:
    rounds = []
    with (
        serving(_peer("refusing", options), "plain", setting) as server,
        socket.create_connection(("127.0.0.1", server.port)) as holder,
    ):
        holder.recv(512)
        for _ in range(max(3, setting.rounds)):
            before = process.settled_cpu_seconds(server.pid)
            for _ in range(connections):
                _knock(server.port)
            rounds.append((process.settled_cpu_seconds(server.pid) - before) / connections)
    return statistics.median(rounds) * 1e6


def _knock(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        said = client.recv(512)
        assert said.startswith(b"421"), said
        assert not client.recv(512)
