"""The benchmark's entry: what is measured, in which order and for how long; ``make bench`` starts it.

    python bench/run.py [--quick] [--workloads open,1mb,memory] [--peers pillarbox,smtp-sink] [--rounds N]

It stops by itself, and ends only what it started.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import certificate
import chart
import growth
import latency
import limits
import logline
import machine
import memory
import process
import report
import startup
import workers
from findings import Finding
from peers import ASYNCIO, OURS, PEERS, Peer, find
from rounds import Setting, measure
from workloads import WORKLOADS

RESULTS = Path(__file__).resolve().parent / "results"
MINUTES, QUICK_MINUTES = 14.0, 1.8
# Left out of a quick run.
TOO_LONG = {"25mb", "1mb-prose", "tls-1mb", "growth", "limits", "workers"}
# What is left of the time is shared out by these; a step that needs less leaves it to those behind it.
HEAVY = {
    "growth": 6,
    "25mb": 2,
    "open": 2,
    "lmtp": 2,
    "auth": 2,
    "tls-open": 2,
    "limits": 3,
    "workers": 4,
}  # these start their servers

Scene = Callable[[list[Peer], Setting, report.Results, bool], Iterable[Finding]]


def _startup(peers: list[Peer], setting: Setting, results: report.Results, quick: bool) -> Iterable[Finding]:
    return startup.times(setting)


def _log_line(peers: list[Peer], setting: Setting, results: report.Results, quick: bool) -> Iterable[Finding]:
    return logline.cost(setting)


def _limits(peers: list[Peer], setting: Setting, results: report.Results, quick: bool) -> Iterable[Finding]:
    return limits.cost(setting)


def _workers(peers: list[Peer], setting: Setting, results: report.Results, quick: bool) -> Iterable[Finding]:
    return workers.ratios(setting)


def _memory(peers: list[Peer], setting: Setting, results: report.Results, quick: bool) -> Iterable[Finding]:
    ours = [peer for peer in peers if peer.name in (OURS, ASYNCIO)]
    yield from memory.idle(peers, setting, 500 if quick else 4_000)
    yield from memory.idle(ours, setting, 200 if quick else 1_000, "tls")
    yield from memory.slow_handler(peers, setting)


def _latency(peers: list[Peer], setting: Setting, results: report.Results, quick: bool) -> Iterable[Finding]:
    return latency.beside_open_sessions(peers, setting, 1_000 if quick else 10_000)


def _growth(peers: list[Peer], setting: Setting, results: report.Results, quick: bool) -> Iterable[Finding]:
    compared = [peer for peer in peers if peer.name in (OURS, "smtp-sink")]
    for curve in growth.curves(compared, setting, quick=quick):
        results.curves.append(curve)
        yield from growth.findings(curve)


SCENES: dict[str, Scene] = {
    "startup": _startup,
    "log-line": _log_line,
    "limits": _limits,
    "workers": _workers,
    "latency": _latency,
    "memory": _memory,
    "growth": _growth,
}


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    process.allow_many_descriptors()
    peers, left_out = present([PEERS[name] for name in given.peers])
    options = {name: value for name, value in vars(given).items() if name != "output"}
    results = report.Results(machine.description(peers), options | {"started": time.strftime("%Y-%m-%d %H:%M:%S")})
    results.left_out = left_out
    print(report.ran_on(results))
    if len(process.CORES) < 2:
        results.notes.append("there is one core: server and load share it")
    with tempfile.TemporaryDirectory(prefix="pillarbox-bench-") as folder, contextlib.suppress(KeyboardInterrupt):
        run(given, peers, results, Path(folder))
    finish(given, results)
    return 0


def present(wanted: Iterable[Peer]) -> tuple[list[Peer], dict[str, str]]:
    """Return the peers that are here, and of the others what they lack."""
    if not find("smtp-source"):
        sys.exit("bench: smtp-source is not installed (Debian: postfix), and most of the load is its")
    lacking = {peer.name: peer.missing() for peer in wanted}
    return [peer for peer in wanted if not lacking[peer.name]], {name: why for name, why in lacking.items() if why}


def run(given: argparse.Namespace, peers: list[Peer], results: report.Results, folder: Path) -> None:
    begun = time.monotonic()
    warm_up = 0.2 if given.quick else 3.0
    setting = Setting(folder, given.rounds, given.seconds, warm_up, environment=certificate.write(folder))
    with setting.servers:
        steps(given, peers, setting, results)
    results.options["took_seconds"] = round(time.monotonic() - begun)


def steps(given: argparse.Namespace, peers: list[Peer], setting: Setting, results: report.Results) -> None:
    """Measure one after the other, each with its share of the time that is left."""
    names, end = given.workloads, time.monotonic() + given.minutes * 60
    for at, name in enumerate(names):
        now, shares = time.monotonic(), [HEAVY.get(each, 1) for each in names[at:]]
        if now > end:
            results.notes.append(f"the time was up before {', '.join(names[at:])}")
            break
        setting.deadline = now + (end - now) * shares[0] / sum(shares)
        step(name, peers, setting, results, quick=given.quick)
        results.seconds[name] = round(time.monotonic() - now, 1)


def step(name: str, peers: list[Peer], setting: Setting, results: report.Results, *, quick: bool) -> None:
    """Measure one workload or scene, and print its table at once."""
    if name in WORKLOADS:
        workload = WORKLOADS[name]
        able = [peer for peer in peers if workload.mode in peer.modes]
        results.figures[name] = measure(able, workload, setting)
        print(report.workload_table(name, results), flush=True)
        return
    print(f"\n{name}", flush=True)
    found = list(SCENES[name](peers, setting, results, quick))
    results.findings += found
    print(report.findings_table(found), flush=True)


def finish(given: argparse.Namespace, results: report.Results) -> None:
    results.options["load_average_at_the_end"] = machine.load_average()
    print("\nTargets (rounds' ratios, medians)\n" + report.summary(results))
    for note in results.notes:
        print(f"note: {note}")
    # Only a whole run replaces what the documentation shows.
    file = given.output or RESULTS / ("latest.json" if given.whole else "partial.json")
    report.write(results, file)
    chart.write(file, file.with_suffix(".svg"))
    print(f"\n{results.options.get('took_seconds', '?')} s; written: {file} and {file.stem}.svg")


def arguments() -> argparse.Namespace:
    everything = [*WORKLOADS, *SCENES]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small counts, two minutes at most: to see that it works")
    parser.add_argument("--workloads", type=names_of(everything), help=", ".join(everything))
    parser.add_argument("--peers", type=names_of(list(PEERS)), default=list(PEERS), help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int, help="interleaved rounds of each workload (7; quick: 3)")
    parser.add_argument("--seconds", type=float, help="of one round (0.4; quick: 0.15)")
    parser.add_argument("--minutes", type=float, help="no round begins later than this (15; quick: 2)")
    parser.add_argument("--output", type=Path, help="the JSON file; the chart is written beside it")
    given = parser.parse_args()
    given.workloads = given.workloads or [name for name in everything if not (given.quick and name in TOO_LONG)]
    given.whole = not given.quick and given.workloads == everything and given.peers == list(PEERS)
    given.rounds = given.rounds or (3 if given.quick else 7)
    given.seconds = given.seconds or (0.15 if given.quick else 0.4)
    given.minutes = given.minutes or (QUICK_MINUTES if given.quick else MINUTES)
    return given


def names_of(known: list[str]) -> Callable[[str], list[str]]:
    def chosen(words: str) -> list[str]:
        names = [name.strip() for name in words.split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return chosen


if __name__ == "__main__":
    sys.exit(main())
