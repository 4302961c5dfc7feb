"""Starting: how long ``import pillarbox`` takes, and ``pillarbox serve`` until it listens."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
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
    with tempfile.TemporaryDirectory() as compiled:
        environment = _with_bytecode(compiled)
        imported = statistics.median([_import(environment) for _ in range(often)][1:])
        listening = statistics.median([_serve(environment) for _ in range(often)][1:])
    yield Finding("import pillarbox", imported * 1000, "ms", targets.IMPORT_SECONDS * 1000)
    yield Finding("pillarbox serve until it listens", listening * 1000, "ms", targets.LISTENING_SECONDS * 1000)


def _with_bytecode(folder: str) -> dict[str, str]:
    """Return an environment in which modules are compiled once, as pip does it when it installs them."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return environment | {"PYTHONPYCACHEPREFIX": folder}


def _import(environment: dict[str, str]) -> float:
    command = [sys.executable, "-c", _IMPORT]
    with process.started(command, process.SERVER_CORE, stdout=subprocess.PIPE, env=environment) as running:
        return float(running.communicate()[0])


def _serve(environment: dict[str, str]) -> float:
    port = process.free_port()
    command = [sys.executable, "-m", "pillarbox", "serve", "--listen", f"127.0.0.1:{port}", "--deliver", "discard:"]
    begun = time.perf_counter()
    command += ["--log-level", "warning"]
    with process.started(command, process.SERVER_CORE, env=environment, **_SILENT) as running:
        while running.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return time.perf_counter() - begun
            time.sleep(0.001)
    raise process.LoadFailed(f"pillarbox serve ended with status {running.returncode}")
