"""What is told of a run: the tables of the terminal and the JSON file, from the same results."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import targets
from findings import Finding
from growth import Curve
from peers import ASYNCIO, OURS
from rounds import Figure
from workloads import WORKLOADS

# A list of numbers alone, which is read better on one line.
_NUMBERS = re.compile(r"\[[-\d.,\s]+\]")


@dataclass
class Results:
    """All that a run found, in the order in which it was found."""

    machine: dict[str, object]
    options: dict[str, object]
    left_out: dict[str, str] = field(default_factory=dict)
    figures: dict[str, list[Figure]] = field(default_factory=dict)  # by workload
    findings: list[Finding] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # that each step took


@dataclass(frozen=True)
class Ratio:
    """Ours by theirs: the median of the rounds' ratios, since what disturbs a round disturbs both."""

    workload: str
    ours: str
    peer: str
    median: float
    low: float
    high: float
    target: float | None

    @property
    def verdict(self) -> str:
        return "" if self.target is None else targets.verdict(self.median, self.target)


def ratios(results: Results) -> Iterator[Ratio]:
    for workload, figures in results.figures.items():
        measured = {figure.peer: figure for figure in figures if not figure.failure and figure.rounds}
        for ours in (OURS, ASYNCIO):
            for peer, figure in measured.items():
                if ours in measured and peer not in (OURS, ASYNCIO):
                    yield _ratio(workload, measured[ours], figure)


def _ratio(workload: str, ours: Figure, theirs: Figure) -> Ratio:
    each = [a / b for a, b in zip(ours.rounds, theirs.rounds, strict=True)]
    target = targets.RATIOS.get(workload, {}).get(theirs.peer) if ours.peer == OURS else None
    return Ratio(workload, ours.peer, theirs.peer, statistics.median(each), min(each), max(each), target)


# --- The terminal


def table(rows: list[list[str]]) -> str:
    """Lay out rows in columns: the first to the left, the others to the right."""
    first, *others = (max(len(cell) for cell in column) for column in zip(*rows, strict=True))
    return "\n".join(
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))]).rstrip()
        for name, *cells in rows
    )


def workload_table(workload: str, results: Results) -> str:
    """Lay out one workload: microseconds, spread, ours by theirs, target."""
    by_peer = {ratio.peer: ratio for ratio in ratios(results) if ratio.workload == workload and ratio.ours == OURS}
    rows = [["", "µs CPU", "spread", "messages", "ours/theirs", "target", ""]]
    rows += [_row(figure, by_peer.get(figure.peer)) for figure in results.figures[workload]]
    failures = [f"  {f.peer}: {f.failure}" for f in results.figures[workload] if f.failure]
    return "\n".join([f"\n{WORKLOADS[workload].title} ({workload})", table(rows), *failures])


def _row(figure: Figure, ratio: Ratio | None) -> list[str]:
    if figure.failure or not figure.rounds:
        return [figure.peer, "-", "", "", "", "", "left out"]
    row = [figure.peer, f"{figure.median:,.1f}", f"±{figure.spread:.1%}", f"{figure.messages:,}"]
    if ratio is None:
        return [*row, "", "", ""]
    target = "" if ratio.target is None else f"≤ {ratio.target:.2f}"
    return [*row, f"{ratio.median:.3f}", target, ratio.verdict]


def findings_table(findings: list[Finding]) -> str:
    rows = [["", "measured", "", "target", ""]]
    for found in findings:
        target = "" if found.target is None else f"≤ {found.target:,.4g}"
        rows.append([found.what, f"{found.value:,.2f}", found.unit, target, found.verdict])
    return table(rows)


def ran_on(results: Results) -> str:
    machine = results.machine
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in machine.items() if name != "versions"]
    versions = machine["versions"]
    assert isinstance(versions, dict)
    lines += [f"  {peer}: {version}" for peer, version in versions.items()]
    lines += [f"  {peer} is left out: {reason}" for peer, reason in results.left_out.items()]
    return "\n".join(lines)


def summary(results: Results) -> str:
    """List the verdicts alone: what is not met comes first."""
    held = [
        (f"{r.workload}: ours / {r.peer} = {r.median:.3f}, target ≤ {r.target}", r.verdict) for r in ratios(results)
    ]
    held += [(f"{f.what} = {f.value:,.2f} {f.unit}, target ≤ {f.target}", f.verdict) for f in results.findings]
    judged = sorted((verdict != "NOT MET", text, verdict) for text, verdict in held if verdict)
    return "\n".join(f"{verdict:>8}  {text}" for _, text, verdict in judged)


# --- The file


def write(results: Results, file: Path) -> None:
    """Write everything, the single rounds too, so that a reader can check the medians."""
    found = {
        "machine": results.machine,
        "options": results.options,
        "left_out": results.left_out,
        "notes": results.notes,
        "seconds": results.seconds,
        "workloads": {
            name: {
                "title": WORKLOADS[name].title,
                "peers": [_figure(figure) for figure in figures],
            }
            for name, figures in results.figures.items()
        },
        "ratios": [asdict(ratio) | {"verdict": ratio.verdict} for ratio in ratios(results)],
        "findings": [asdict(finding) | {"verdict": finding.verdict} for finding in results.findings],
        "growth": [asdict(curve) for curve in results.curves],
    }
    file.parent.mkdir(exist_ok=True)
    laid_out = json.dumps(found, indent=1, ensure_ascii=False)
    file.write_text(_NUMBERS.sub(lambda found: " ".join(found[0].split()), laid_out) + "\n", encoding="utf-8")


def _figure(figure: Figure) -> dict[str, object]:
    if figure.failure or not figure.rounds:
        return {"peer": figure.peer, "left_out": figure.failure}
    rounds = [round(each, 2) for each in figure.rounds]
    median, spread = round(figure.median, 2), round(figure.spread, 4)
    return {"peer": figure.peer, "us": rounds, "median_us": median, "spread": spread, "messages": figure.messages}
