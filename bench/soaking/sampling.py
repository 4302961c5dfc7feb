"""What the server has, once a second: from outside by /proc, from inside by its probe."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIELDS = ("seconds", "rss", "descriptors", "threads", "tasks", "connections", "waited")


class Server:
    """The server's process: questions to its probe, and what the kernel says of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, question: str) -> dict[str, Any]:
        """Return what the probe answers. Raises RuntimeError where the server is gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise RuntimeError("the server ended, or its event loop hangs: see its log")
        found: dict[str, Any] = json.loads(answer)
        return found

    def outside(self) -> dict[str, int]:
        """Return resident octets, open descriptors and threads."""
        folder = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return {
            "rss": int(status["VmRSS"].split()[0]) * 1024,
            "descriptors": sum(1 for _ in (folder / "fd").iterdir()),
            "threads": int(status["Threads"]),
        }

    def settled(self, seconds: float, *, descriptors: int | None = None) -> dict[str, Any]:
        """Return all that is left when no connection is (and so many descriptors are), or when the time is over."""
        end = time.monotonic() + seconds
        while True:
            now = {**self.ask("sample"), **self.outside()}
            quiet = not now["connections"] and descriptors in (None, now["descriptors"])
            if quiet or time.monotonic() > end:
                return {**self.ask("collect"), **self.outside()}
            time.sleep(0.2)


@dataclass
class Sampler:
    """Takes a sample each second, in a thread, until it is stopped."""

    server: Server
    rows: list[list[float]] = field(default_factory=list)
    failure: Exception | None = None

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        begun = time.monotonic()
        try:
            while not self._stop.wait(1.0):
                found = {**self.server.ask("sample"), **self.server.outside(), "seconds": time.monotonic() - begun}
                self.rows.append([round(found[name], 3) for name in FIELDS])
        except (RuntimeError, OSError) as failure:
            self.failure = failure
