"""Who is measured: how each server is started, what it can do, and where it comes from if it is not here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
GO_BINARY = HERE / ".build" / "go-smtp"
GO_SOURCE = HERE / "servers" / "go-smtp" / "main.go"
NODE = HERE / "servers" / "smtp-server"
GO_PACKAGES = ("golang-github-emersion-go-smtp-dev", "golang-github-emersion-go-sasl-dev")

EVERYTHING = frozenset({"plain", "tls", "auth", "lmtp"})


@dataclass(frozen=True)
class Peer:
    """One server. ``missing`` says what it lacks here, "" if nothing."""

    name: str
    command: Callable[[int, str], list[str]]
    version: Callable[[], str]
    missing: Callable[[], str]
    modes: frozenset[str] = field(default=EVERYTHING)


def find(program: str) -> str | None:
    return shutil.which(program, path=SBIN)


def output(*command: str) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()


# --- Python


def _python(module: str, *more: str) -> Callable[[int, str], list[str]]:
    return lambda port, mode: [sys.executable, "-m", f"servers.{module}", str(port), mode, *more]


def _distribution(*names: str) -> Callable[[], str]:
    return lambda: ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _packages(*modules: str) -> Callable[[], str]:
    def missing() -> str:
        lacking = [module for module in modules if importlib.util.find_spec(module) is None]
        return f"the Python package {' and '.join(lacking)} is not installed" if lacking else ""

    return missing


# --- smtp-sink


def _sink(port: int, mode: str) -> list[str]:
    command = [find("smtp-sink") or "smtp-sink", "-4", "-m", "15000", "-t", "600"]
    if os.geteuid() == 0:
        command += ["-u", "postfix"]
    return [*command, *(["-L"] if mode == "lmtp" else []), f"127.0.0.1:{port}", "1024"]


def _sink_version() -> str:
    return "Postfix " + output(find("postconf") or "postconf", "-d", "-h", "mail_version")


def _sink_missing() -> str:
    return "" if find("smtp-sink") else "smtp-sink is not installed (Debian: postfix)"


# --- go-smtp


def _go_missing() -> str:
    if not find("go"):
        return f"go is not installed (Debian: golang, {', '.join(GO_PACKAGES)})"
    if not (GO_BINARY.exists() and GO_BINARY.stat().st_mtime >= GO_SOURCE.stat().st_mtime):
        return _built()
    return ""


def _built() -> str:
    GO_BINARY.parent.mkdir(exist_ok=True)
    # Debian's packaged sources, and nothing from the network.
    environment = os.environ | {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": ""}
    command = ["go", "build", "-o", str(GO_BINARY), "."]
    build = subprocess.run(command, cwd=GO_SOURCE.parent, env=environment, capture_output=True, text=True, check=False)
    said = build.stderr.strip().splitlines()
    return "" if build.returncode == 0 else f"it does not build: {said[0] if said else build.returncode}"


def _go_version() -> str:
    library = output("dpkg-query", "-W", "-f", "${Version}", GO_PACKAGES[0])
    return f"go-smtp {library or 'of unknown version'}, {output('go', 'version').removeprefix('go version ')}"


# --- smtp-server


def _node_missing() -> str:
    if not find("node"):
        return "node is not installed (Debian: nodejs, npm)"
    here = (NODE / "node_modules" / "smtp-server").is_dir()
    return "" if here else "smtp-server is not installed (npm ci --prefix bench/servers/smtp-server)"


def _node_version() -> str:
    package = json.loads((NODE / "node_modules" / "smtp-server" / "package.json").read_text(encoding="utf-8"))
    return f"smtp-server {package['version']}, node {output('node', '--version')}"


# --- The table: ours first, the floor last

_OURS = _packages("pillarbox")
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("pillarbox", _python("pillarbox_server"), _distribution("pillarbox", "uvloop"), _packages("uvloop")),
        Peer(
            "pillarbox-asyncio",
            _python("pillarbox_server", "--loop", "asyncio"),
            _distribution("pillarbox"),
            _OURS,
        ),
        Peer("smtp-sink", _sink, _sink_version, _sink_missing, EVERYTHING - {"tls"}),
        Peer("go-smtp", lambda port, mode: [str(GO_BINARY), str(port), mode], _go_version, _go_missing),
        Peer(
            "smtp-server",
            lambda port, mode: [find("node") or "node", str(NODE / "server.mjs"), str(port), mode],
            _node_version,
            _node_missing,
        ),
        Peer("aiosmtpd", _python("aiosmtpd_server"), _distribution("aiosmtpd"), _packages("aiosmtpd")),
        Peer(
            "aiosmtpd-uvloop",
            _python("aiosmtpd_server", "--loop", "uvloop"),
            _distribution("aiosmtpd", "uvloop"),
            _packages("aiosmtpd", "uvloop"),
        ),
        Peer("floor", _python("floor_server"), _distribution("uvloop"), _packages("uvloop"), EVERYTHING - {"tls"}),
    )
}
OURS, ASYNCIO = "pillarbox", "pillarbox-asyncio"


def source_revision() -> str:
    """Return what of pillarbox was measured, as git names it."""
    return re.sub(r"\s+", " ", output("git", "-C", str(HERE), "describe", "--always", "--dirty"))
