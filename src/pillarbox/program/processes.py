"""A worker's process: how it is started, and how it has ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pillarbox.program.worker import ORIGINAL_PATH, SIGNALS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["described", "exit_of", "spawn"]


def described(status: int) -> str:
    """Say how a process has ended."""
    if status >= 0:
        return f"ended with status {status}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def spawn(number: int, control: int, listening: list[list[int]], memory: list[int]) -> subprocess.Popen[bytes]:
    """Start a worker's process, by exec: what this one has become is not to be inherited."""
    inherited = [control, *memory, *(descriptor for listener in listening for descriptor in listener)]
    # -u: one write for each line of the log, so that the lines of several workers do not mix.
    command = [sys.executable, "-Pu", "-m", "pillarbox", "worker", str(number), str(control)]
    # Until it has handlers of its own, a signal to the whole group of processes would end it with a traceback.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return subprocess.Popen(  # noqa: S603 - it is this very program
            command, pass_fds=inherited, stdin=subprocess.DEVNULL, env=_environment()
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment() -> Mapping[str, str]:
    """Return an environment in which a worker finds the modules that this process finds, and no others."""
    environment = dict(os.environ)
    if "PYTHONPATH" in environment:
        environment[ORIGINAL_PATH] = environment["PYTHONPATH"]
    # `-m` would put the working directory in front: with -P it is there only if it is here.
    environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return environment


def exit_of(process: subprocess.Popen[bytes]) -> asyncio.Future[int]:
    """Return what a process's end fulfils, with its status. Where nothing can wait for it, kill it; raise OSError."""
    loop = asyncio.get_running_loop()
    exited: asyncio.Future[int] = loop.create_future()

    def note(status: int) -> None:
        if not exited.done():
            exited.set_result(status)

    def wait() -> None:
        status = process.wait()
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(note, status)

    # A thread: its channel may outlive a process, in one that it has forked.
    try:
        threading.Thread(target=wait, name=f"worker {process.pid}", daemon=True).start()
    except RuntimeError as error:  # the system has no more threads
        process.kill()
        process.wait()
        raise OSError(str(error)) from error
    return exited
