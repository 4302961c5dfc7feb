"""Processes: how each is started on its core, what the kernel says it used, and that it ends with the run."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CORES = sorted(os.sched_getaffinity(0))
# Interrupts go to the first core more often than not, so the server has the last one.
SERVER_CORE, LOAD_CORE = CORES[-1], CORES[0]
TICKS = os.sysconf("SC_CLK_TCK")
# So that a runner that is killed leaves nothing behind.
_WITH_US = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


class LoadFailed(Exception):
    """The load could not be delivered; the text is what the server or the load program said."""


def allow_many_descriptors() -> int:
    """Raise the limit of open files as far as it goes, for us and all that we start; return it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@contextlib.contextmanager
def started(command: Sequence[str], cores: int | Sequence[int], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a program on one core, or on these; it is ended, and waited for, at the end of the block."""
    os.sched_setaffinity(
        0, {cores} if isinstance(cores, int) else cores
    )  # inherited from the start: Go counts its cores once
    try:
        process = subprocess.Popen([*_WITH_US, *command], text=True, **options)
    finally:
        os.sched_setaffinity(0, {LOAD_CORE})
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_greeting(port: int, process: subprocess.Popen[str], seconds: float = 15) -> None:
    """Return when the server greets. Raises LoadFailed where it ended or never did."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LoadFailed(f"the server ended with status {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as client:
            if client.recv(512).startswith(b"220"):
                client.sendall(b"QUIT\r\n")
                client.recv(512)
                return
        time.sleep(0.02)
    raise LoadFailed("the server never greeted")


# --- What the kernel says


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _tree(int(child))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time, user and system, of all threads of a process and its children so far."""
    return sum(map(_cpu_seconds, _tree(pid)))


def _cpu_seconds(pid: int) -> float:
    try:  # the scheduler's own account, in nanoseconds; a thread that ended is missing, and servers keep theirs
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except OSError:  # a kernel without it: hundredths of a second
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def settled_cpu_seconds(pid: int) -> float:
    """Return the same when what the load left behind, closing for example, is done."""
    before = cpu_seconds(pid)
    for _ in range(100):
        time.sleep(0.01)
        now = cpu_seconds(pid)
        if now - before < 20e-6:
            return now
        before = now
    return before


def memory(pid: int, field: str = "VmRSS") -> int:
    """Return the resident octets of a process and its children; ``VmHWM``: the most since ``forget_peak``."""
    total = 0
    for each in _tree(pid):
        for line in Path(f"/proc/{each}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                total += int(line.split()[1]) * 1024
    return total


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")
