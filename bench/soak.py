"""The soak: good and hostile clients at one server for some minutes; nothing may grow, and nothing may be lost.

    python bench/soak.py [--seconds 300] [--target library|serve] [--loop uvloop|asyncio] [--output FILE]

It needs Linux, talks over loopback only and stops by itself. The server and two processes of clients run beside it. It
prints a table, writes bench/results/soak.json (runs shorter than two minutes: partial.soak.json) and ends with status 1
where a bound was crossed. --keep FOLDER leaves log and notes there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from soaking import verdict
from soaking.place import LIMITS
from soaking.sampling import FIELDS, Sampler, Server
from soaking.store import Store
from soaking.verdict import Row

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
MODULES = {"library": "soaking.library", "serve": "soaking.program"}
# What may not happen to a client, whatever else does.
KINDS = {"good": "good clients refused, dropped or left waiting", "hostile": "hostile clients left waiting"}
# After the clients have gone, every session has ended by its own time-outs.
SETTLING = 3 * (LIMITS["socket_timeout"] or 0.0)
ENDING = 120.0  # seconds that clients may need for the turn they are in
READY = 20.0


@dataclass
class Run:
    """What one run found."""

    rows: list[Row] = field(default_factory=list)
    turns: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    samples: list[list[float]] = field(default_factory=list)


def main() -> int:
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    with tempfile.TemporaryDirectory(prefix="pillarbox-soak-") as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        if any(folder.iterdir()):
            sys.exit(f"soak: {folder} is not empty, and what is in it would be counted")
        begun = time.strftime("%Y-%m-%d %H:%M:%S")
        run = soak(given, folder)
    _write(given, run, begun)
    print(_table(run))
    return 1 if any(row.failed for row in run.rows) else 0


def soak(given: argparse.Namespace, folder: Path) -> Run:
    """Start all, let it run, and judge it."""
    run, log = Run(), folder / "log"
    with Store(folder) as store, _started(MODULES[given.target], str(folder), given.loop, stderr=log) as process:
        server = Server(process)
        place = _place(server, folder, given.target)
        # Each role once: what is opened or made at the first use is no growth.
        _clients(place, folder, 0, run)
        before = server.settled(SETTLING)
        with Sampler(server) as sampler:
            _clients(place, folder, given.seconds, run)
        if sampler.failure is not None:
            run.notes.append(str(sampler.failure))
        run.samples = sampler.rows
        after = server.settled(SETTLING, descriptors=before["descriptors"])
        run.rows += verdict.of_memory(run.samples, before, after)
        more = verdict.grown_types(before["types"], after["types"])
        run.notes += [f"more of {name}: {count}" for name, count in more]
        run.rows.append(Row("exit status of the server", _end(process)))
    acknowledged = [name for kind in KINDS for name in (folder / kind).read_text(encoding="ascii").split()]
    run.rows += verdict.of_messages(acknowledged, store.times, store.torn)
    run.rows.append(Row("half-written files left", len(store.left_over)))
    run.rows.append(verdict.of_log(log.read_text("utf-8", "replace").splitlines()))
    run.rows += _from_samples(run.samples)
    return run


def _from_samples(samples: list[list[float]]) -> Iterator[Row]:
    """Yield what the samples say besides: information."""
    for name, what, unit, scale in (
        ("rss", "resident memory, the most", "MiB", 1024 * 1024),
        ("connections", "sessions at a time, the most", "", 1),
        ("waited", "the event loop's answer took, the longest", "s", 1),
    ):
        yield Row(what, max((row[FIELDS.index(name)] for row in samples), default=0) / scale, None, unit)


# --- Processes


@contextlib.contextmanager
def _started(module: str, *arguments: str, stderr: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start a module of ours; it is ended, and waited for, at the end of the block."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "always::ResourceWarning"}
    with contextlib.ExitStack() as files:
        errors = files.enter_context(stderr.open("ab")) if stderr else None
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()


def _end(process: subprocess.Popen[str]) -> int:
    """Ask the server to end, and return its status; a signal's is positive too."""
    process.terminate()
    try:
        return abs(process.wait((LIMITS["close_timeout"] or 0.0) + READY))
    except subprocess.TimeoutExpired:
        return 1


def _place(server: Server, folder: Path, target: str) -> Path:
    """Wait until the server listens, and write down where, for the clients."""
    end = time.monotonic() + READY
    while len(addresses := server.ask("addresses")["addresses"]) < 3:
        if time.monotonic() > end:
            raise TimeoutError("the server does not listen")
        time.sleep(0.1)
    file = folder / "place.json"
    place = {"plain": addresses[0][1], "tls": addresses[1][1], "lmtp": addresses[2], "accounts": target == "library"}
    file.write_text(json.dumps(place), encoding="utf-8")
    return file


def _clients(place: Path, folder: Path, seconds: float, run: Run) -> None:
    """Let both kinds of clients work, at the same time, and note what they say at their end."""
    with contextlib.ExitStack() as both:
        crowds = {
            kind: both.enter_context(_started("soaking.clients", kind, str(place), str(folder / kind), str(seconds)))
            for kind in KINDS
        }
        said = {kind: _said(crowd, seconds + ENDING) for kind, crowd in crowds.items()}
    for kind, crowd in said.items():
        run.rows.append(Row(KINDS[kind] + (" (first turns)" if not seconds else ""), crowd["failed"]))
        run.notes += crowd["problems"]
        for role, count in crowd["turns"].items():
            run.turns[f"{kind}: {role}"] = run.turns.get(f"{kind}: {role}", 0) + count


def _said(crowd: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """Return what a process of clients said at its end; one that broke off has failed."""
    output = crowd.communicate(timeout=seconds)[0]
    if crowd.returncode:
        return {"turns": {}, "problems": [f"clients ended with status {crowd.returncode}"], "failed": 1}
    said: dict[str, Any] = json.loads(output)
    return said


# --- What is written


def _table(run: Run) -> str:
    lines = [f"{'':6} {'found':>10} {'at most':>8}"]
    for row in run.rows:
        state = "" if row.bound is None else "FAILED" if row.failed else "ok"
        bound = "" if row.bound is None else f"{row.bound:,g}"
        lines.append(f"{state:6} {f'{row.found:,.6g}':>10} {bound:>8} {row.unit:4} {row.what}")
    turns = ", ".join(f"{role} {count:,}" for role, count in run.turns.items())
    return "\n".join([*lines, "", f"Turns: {turns}", *[f"note: {note}" for note in run.notes]])


def _write(given: argparse.Namespace, run: Run, begun: str) -> None:
    """Put the run in the place of the last one of its kind."""
    file = given.output or RESULTS / ("soak.json" if given.seconds >= verdict.SHORT else "partial.soak.json")
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known[f"{given.target}, {given.loop}"] = {
        "started": begun,
        "seconds": given.seconds,
        "target": given.target,
        "loop": given.loop,
        "machine": _machine(),
        "rows": [{**asdict(row), "failed": row.failed} for row in run.rows],
        "turns": run.turns,
        "notes": run.notes,
        "fields": FIELDS,
        "samples": run.samples,
    }
    # A line for each run, and not one for each number of each sample.
    runs = ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in sorted(known.items()))
    file.write_text("{\n" + runs + "\n}\n", encoding="utf-8")


def _machine() -> dict[str, Any]:
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    return {
        "processor": facts.get("model name\t", "unknown").strip(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300, help="so long the clients work (300)")
    parser.add_argument("--target", choices=sorted(MODULES), default="library", help="library (default) or serve")
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop", help="the server's event loop")
    parser.add_argument("--output", type=Path, help="the JSON file")
    parser.add_argument("--keep", type=Path, help="a folder for log and notes, which is kept")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
