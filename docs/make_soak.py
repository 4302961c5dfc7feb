"""Write docs/soak.md from the last long runs of the soak; ``make docs`` runs this, a test keeps the page true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("soak.md")
RESULTS = Path(__file__).parent.parent / "bench" / "results" / "soak.json"

_HEAD = """\
<!-- Made by docs/make_soak.py from bench/results/soak.json: run "make soak", then "make docs". -->

# Soak

What a server holds, and what it has stored, after some minutes with many clients, good and hostile ones at the same
time: plaintext, STARTTLS, implicit TLS, and LMTP on a Unix socket, all over loopback.

- `library` is `SMTPServer` with a handler that notes each message, and does not answer before the note is on the disk.
- `serve` is `pillarbox serve` with a Maildir, from which the test reads each message, and removes it.

Each message says who it is and what its body hashes to. The good clients note what was acknowledged; none of them may
be refused or kept waiting. Descriptors, tasks, sessions and objects (those that the garbage collector knows) are
counted when each client has had one turn, and again when all have left; memory is a straight line fitted (least
squares) to what was resident in each second of the last two thirds, and of the last third alone: at first an allocator
takes more with each new mixture of sizes, and then it has enough. How many messages there were says nothing of speed:
the clients pause, and the machine may do other work besides.

"""

_TAIL = """\

## Again

    make soak                                        # five minutes, the library on uvloop
    make soak ARGS="--target serve"                  # the program
    make soak ARGS="--loop asyncio --seconds 600"

It ends with status 1 where a bound was crossed. The table is made from
[bench/results/soak.json](../bench/results/soak.json), which has every second of each run and how often each client had
its turn. A short one of ten seconds for each target is among the tests (`tests/faults/test_soak.py`).

## Who was there

How many turns each client had; what each does is in `bench/soaking/good.py` and `bench/soaking/hostile.py`.

{turns}
"""


def page() -> str:
    """Return the text of the page."""
    runs: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return _HEAD + "\n".join([*map(_ran, runs.values()), "", *_table(runs)]) + "\n" + _TAIL.format(turns=_turns(runs))


def _ran(run: dict[str, Any]) -> str:
    machine = run["machine"]
    where = f"{machine['cores']} cores of {machine['processor']}, {machine['kernel']}, Python {machine['python']}"
    return f"- `{run['target']}` on {run['loop']}: {run['started'][:10]}, {run['seconds']:g} seconds; {where}."


def _table(runs: dict[str, Any]) -> list[str]:
    """Return a line for each figure, with a column for each run; a figure that failed is marked."""
    names = list(dict.fromkeys(row["what"] for run in runs.values() for row in run["rows"]))
    found = {run: {row["what"]: row for row in each["rows"]} for run, each in runs.items()}
    lines = ["| | " + " | ".join(runs) + " | at most |", "|---|" + "---:|" * (len(runs) + 1)]
    for name in names:
        rows = [found[run].get(name) for run in runs]
        bound = next(row["bound"] for row in rows if row is not None)
        lines.append(f"| {name} | {' | '.join(map(_cell, rows))} | {'' if bound is None else f'{bound:,g}'} |")
    return lines


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    value = row["found"]
    number = f"{value:,.2f}" if isinstance(value, float) and not value.is_integer() else f"{value:,.0f}"
    return f"{number} {row['unit']}".strip() + (" **failed**" if row["failed"] else "")


def _turns(runs: dict[str, Any]) -> str:
    names = sorted(dict.fromkeys(name for run in runs.values() for name in run["turns"]))
    lines = ["| | " + " | ".join(runs) + " |", "|---|" + "---:|" * len(runs)]
    for name in names:
        counts = " | ".join(f"{run['turns'].get(name, 0):,}" for run in runs.values())
        lines.append(f"| {name.replace('_', ' ')} | {counts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
