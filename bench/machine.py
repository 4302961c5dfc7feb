"""What a run ran on: processor, kernel, versions and load, so that a figure is never read without them."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import process
from peers import Peer, find, output, source_revision


def description(peers: Iterable[Peer]) -> dict[str, object]:
    """Return it as it goes into the JSON file."""
    return {
        "processor": _processor(),
        "cores": len(process.CORES),
        "server_core": process.SERVER_CORE,
        "load_core": process.LOAD_CORE,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version.split()[0],
        "smtp-source": "Postfix " + output(find("postconf") or "postconf", "-d", "-h", "mail_version"),
        "revision": source_revision(),
        "load_average": load_average(),
        "versions": {peer.name: peer.version() for peer in peers},
    }


def load_average() -> list[float]:
    return [round(average, 2) for average in os.getloadavg()]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"
