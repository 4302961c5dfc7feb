"""Growth: whether the cost grows no faster than the recipients, the octets and the sessions do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import targets
from bodies import KB, MB, Body
from findings import Finding
from peers import OURS, Peer
from rounds import Setting, measure
from workloads import OPEN, OWN, SMALL, SMTP_SOURCE, Workload


@dataclass(frozen=True)
class Curve:
    """A cost (µs of CPU for a message) at each value of what grows."""

    name: str
    peer: str
    points: list[tuple[int, float]]


RECIPIENTS = [
    Workload(f"recipients-{n}", f"{n} recipients", SMTP_SOURCE, SMALL, OPEN, first=20, recipients=n)
    for n in (1, 2, 5, 10, 20, 50)
]
SIZES = [
    Workload(f"size-{n}", f"{n} octets", SMTP_SOURCE, Body("base64", n), OPEN, sessions=1, first=1 if n > MB else 20)
    for n in (KB, 10 * KB, 100 * KB, MB, 5 * MB, 25 * MB)
]
# Each session delivers in turn. Two messages on each, at least.
SESSIONS = [
    Workload(f"sessions-{n}", f"{n} sessions", OWN, SMALL, sessions=n, first=2 * n) for n in (10, 100, 1_000, 10_000)
]


def _values(workload: Workload) -> int:
    return int(workload.name.rpartition("-")[2])


def curves(peers: Sequence[Peer], setting: Setting, *, quick: bool) -> Iterable[Curve]:
    """Measure every step, for each peer; quick: without the last, which takes longest."""
    few = replace(setting, rounds=max(2, setting.rounds // 2))
    for name, steps in (("recipients", RECIPIENTS), ("octets", SIZES), ("sessions", SESSIONS)):
        workloads = steps[:-1] if quick else steps
        points: dict[str, list[tuple[int, float]]] = {peer.name: [] for peer in peers}
        for workload in workloads:
            for figure in measure(peers, workload, few):
                if figure.rounds and not figure.failure:
                    points[figure.peer].append((_values(workload), figure.median))
        yield from (Curve(name, peer, found) for peer, found in points.items() if len(found) == len(workloads))


def findings(curve: Curve) -> Iterable[Finding]:
    """Compare the last step with what the steps before it foretell."""
    last, cost = curve.points[-1]
    if curve.name == "sessions":  # a message is to cost the same, however many sessions there are
        foretold = curve.points[0][1]
    else:
        (first, low), (middle, high) = curve.points[0], curve.points[3]
        foretold = low + (high - low) / (middle - first) * (last - first)
    what = f"{curve.peer}: cost at {last:,} {curve.name} / foretold by the steps before"
    yield Finding(what, cost / foretold, "×", targets.LINEAR if curve.peer == OURS else None)
