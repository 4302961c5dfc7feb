"""Every target in turn, for so many seconds each: ``make fuzz-all SECONDS=10``, as CI does.

Prints a line for each: executions, edges of the code (``cov``) and features (``ft``) that its inputs reach, the most
memory. Ends with 1 where something was found, and says how to keep it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# To begin takes a few seconds, and the last input may take some more.
GRACE = 120
_DONE = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+)")
_MEMORY = re.compile(r"peak_rss_mb:\s+(\d+)")
KEEP = """\
A finding of {target}: {names}
To see it:  make fuzz TARGET={target} ARGS={first}
To keep it: give the file a name that says what it shows, and commit it: tests/test_fuzz.py replays it. Then mend the
server.
"""


def main() -> None:
    """Run them all."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    targets = sorted(path.stem for path in (HERE / "invariants").glob("[a-z]*.py"))
    held = [_holds(target, seconds) for target in targets]  # all of them, whatever one finds
    sys.exit(0 if all(held) else 1)


def _holds(target: str, seconds: int) -> bool:
    before = _findings(target)
    # One seed: the same inputs each time, as far as they depend on that, so that what is found is of the change.
    limits = [f"-max_total_time={seconds}", "-seed=1", "-print_final_stats=1"]
    command = [sys.executable, str(HERE / "fuzz.py"), target, *limits]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=seconds + GRACE, check=False
    )
    found = _DONE.search(done.stderr)
    if done.returncode == 0 and found is not None:
        memory = _MEMORY.search(done.stderr)
        print(f"{target}: {found[1]} executions, cov {found[2]}, ft {found[3]}, {memory[1] if memory else '?'} MB")
        return True
    print(done.stdout[-5000:], done.stderr[-5000:], sep="\n")
    new = sorted(_findings(target) - before)
    if new:
        print(KEEP.format(target=target, names=", ".join(new), first=new[0]))
    return False


def _findings(target: str) -> set[str]:
    return {str(path.relative_to(HERE.parent)) for path in (HERE / "findings" / target).glob("*")}


if __name__ == "__main__":
    main()
