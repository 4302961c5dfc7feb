"""Write docs/speed.md from the last whole run of the benchmark; ``make docs`` runs this, a test keeps the page true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("speed.md")
RESULTS = Path(__file__).parent.parent / "bench" / "results" / "latest.json"

_HEAD = """\
<!-- Made by docs/make_speed.py from bench/results/latest.json: run "make bench", then "make docs". -->

# Speed

What a message costs the server in CPU time, user and system, by the kernel's account, beside other servers in the same
run: one core for the server, default options, a handler that reads and drops, no logging below a warning.

![CPU time of a message for each workload and server](../bench/results/latest.svg)

"""

_TAIL = """\

[bench/README.md](../bench/README.md) says how a figure is taken and what each workload is; `make bench` repeats it all.
"floor" is no server: a uvloop protocol class that answers canned replies. It shows what no server in Python can go
below.

## What makes your server slower or faster

- **uvloop** takes a third of what asyncio's own event loop takes for small messages. It comes
  with pillarbox where there is one for the system: run your program with it, as `pillarbox serve` does.
- **A handler that is not set costs nothing**: `on_mail_from`, `on_rcpt_to` and the others are only called where there
  is one. One that is set costs about 1 µs a call, and what it does itself.
- **A line in the log for each message** costs {log_line}; it is written at level INFO, and a logger that is not
  set to that level costs nothing.
- **`async for block in stream`** takes a message as it arrives, in blocks of up to 256 KiB; while the handler does not
  ask for the next one, the client waits. `stream.read()` has it all in memory.
- **`bare_newline="accept"`** saves the search for bare newlines, 0.35 ms a megabyte. It hands out what was sent as it
  was sent: whoever passes such a message on must know how.
- **Memory**: {idle} for an idle session in plaintext under uvloop, {idle_tls} under TLS; a
  message of 25 MB to a slow handler, {slow} more.
"""


def page() -> str:
    """Return the text of the page."""
    run = json.loads(RESULTS.read_text(encoding="utf-8"))
    machine = run["machine"]
    where = f"{machine['processor']}, {machine['kernel']}, Python {machine['python']}"
    lines = [
        f"Measured on {run['options']['started'][:10]}: {where}; {_versions(machine['versions'])}.",
        "",
        *_table(run["workloads"]),
    ]
    found = {finding["what"]: f"{finding['value']:.1f} {finding['unit']}" for finding in run["findings"]}
    facts = {
        "log_line": found["the log line of a message (INFO)"],
        "idle": found["pillarbox: an idle session of 4,000"],
        "idle_tls": found["pillarbox: an idle session of 1,000 under TLS"],
        "slow": found["pillarbox: 25 MB to a slow handler"],
    }
    return _HEAD + "\n".join(lines) + "\n" + _TAIL.format(**facts)


def _versions(versions: dict[str, str]) -> str:
    return "; ".join(dict.fromkeys(versions.values()))


def _table(workloads: dict[str, Any]) -> list[str]:
    peers = list(dict.fromkeys(peer["peer"] for each in workloads.values() for peer in each["peers"]))
    lines = [
        "| µs of CPU a message (median) | " + " | ".join(peers) + " |",
        "|---|" + "---:|" * len(peers),
    ]
    for each in workloads.values():
        took = {peer["peer"]: f"{peer['median_us']:,.0f}" for peer in each["peers"] if peer.get("median_us")}
        lines.append(f"| {each['title']} | " + " | ".join(took.get(peer, "") for peer in peers) + " |")
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
