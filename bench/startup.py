"""Starting: how long ``import pillarbox`` takes, and ``pillarbox serve`` until it listens."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

import process
import targets
from findings import Finding
from rounds import Setting

_IMPORT = "import time; begun = time.perf_counter(); import pillarbox; print(time.perf_counter() - begun)"
_SILENT: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def times(setting: Setting) -> Iterable[Finding]:
    """Take each several times and return the medians; the first of each only fills the disk's cache."""
    often = setting.rounds + 1
    imported = statistics.median([_import() for _ in range(often)][1:])
    yield Finding("import pillarbox", imported * 1000, "ms", targets.IMPORT_SECONDS * 1000)
    listening = statistics.median([_serve() for _ in range(often)][1:])
    yield Finding("pillarbox serve until it listens", listening * 1000, "ms", targets.LISTENING_SECONDS * 1000)


def _import() -> float:
    with process.started([sys.executable, "-c", _IMPORT], process.SERVER_CORE, stdout=subprocess.PIPE) as running:
        return float(running.communicate()[0])


def _serve() -> float:
    port = process.free_port()
    command = [sys.executable, "-m", "pillarbox", "serve", "--listen", f"127.0.0.1:{port}", "--deliver", "discard:"]
    begun = time.perf_counter()
    with process.started([*command, "--log-level", "warning"], process.SERVER_CORE, **_SILENT) as running:
        while running.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return time.perf_counter() - begun
            time.sleep(0.001)
    raise process.LoadFailed(f"pillarbox serve ended with status {running.returncode}")
