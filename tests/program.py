"""The program as a process of its own: its lines, its port, its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

MODULE = [sys.executable, "-m", "pillarbox"]
WAIT = 20.0
LINES = ("--log-format", "text")  # as on a terminal; elsewhere the program logs JSON


class Program:
    """A running ``pillarbox serve`` and the lines that it has written."""

    def __init__(self, *arguments: str, cwd: Path, command: list[str] = MODULE, fds: tuple[int, ...] = ()) -> None:
        self.cwd = cwd
        self.lines: list[str] = []
        self._queue: Queue[str] = Queue()
        self.process = subprocess.Popen(
            [*command, "serve", *LINES, *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONWARNINGS": "error"},
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=fds,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                self._queue.put(line.rstrip("\n"))
        self._queue.put("")

    def line(self, pattern: str) -> re.Match[str]:
        """Wait for a line that matches."""
        deadline = time.monotonic() + WAIT
        while True:
            try:
                text = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                pytest.fail(f"no line {pattern!r} in {self.lines}")
            self.lines.append(text)
            if match := re.search(pattern, text):
                return match
            if not text and self.process.poll() is not None:
                pytest.fail(f"ended without a line {pattern!r}: {self.lines}")

    def port(self) -> int:
        return int(self.line(r"^listening on 127\.0\.0\.1:(\d+)$")[1])

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(WAIT)
        self._reader.join(WAIT)
        while not self._queue.empty():
            self.lines.append(self._queue.get())
        return status


Start = Callable[..., Program]


class Configured:
    """A program with a configuration file that the test changes."""

    def __init__(self, start: Start, folder: Path, text: str, *arguments: str, **more: Any) -> None:
        self.path = folder / "pillarbox.toml"
        self.path.write_text(text)
        self.program: Program = start("--config", "pillarbox.toml", *arguments, **more)
        self.port = self.program.port()

    def change(self, text: str, answer: str = r"^reloaded$") -> str:
        self.path.write_text(text)
        self.program.process.send_signal(signal.SIGHUP)
        return self.program.line(answer)[0]
