"""Fuzzing with atheris: ``make fuzz TARGET=dialogue``; libFuzzer's own arguments may follow.

    python fuzz/fuzz.py dialogue [-max_total_time=60] [-runs=10000]

Begins with the seeds of ``fuzz/corpus/TARGET`` and the findings of ``fuzz/findings/TARGET``, keeps what it learns in
``fuzz/.learned/TARGET``, and writes an input that breaks an invariant to ``fuzz/findings/TARGET``: the tests replay it.
With the name of a file, it only tries that one.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
# Octets of an input; MB of memory, and seconds for one input, which are a finding where they are crossed.
LIMITS = ("-max_len=2048", "-rss_limit_mb=1024", "-timeout=60")
TARGETS = sorted(path.stem for path in (HERE / "invariants").glob("[a-z]*.py"))


_failures: list[BaseException | None] = []


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    _failures.append(what.exc_value)


def _one(target: Callable[[bytes], None], octets: bytes) -> None:
    target(octets)
    assert not _failures, _failures


def main() -> None:
    """Fuzz one target until it is stopped, or something breaks."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python fuzz/fuzz.py {'|'.join(TARGETS)} [libFuzzer's arguments]")
    name = sys.argv[1]
    with atheris.instrument_imports(include=["pillarbox"]):
        target = importlib.import_module(f"invariants.{name}")
    learned, findings = HERE / ".learned" / name, HERE / "findings" / name
    folders = [learned, HERE / "corpus" / name, findings]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    sys.unraisablehook = _unraisable
    warnings.simplefilter("error", RuntimeWarning)  # a coroutine that nobody awaited
    arguments = [sys.argv[0], f"-artifact_prefix={findings}/", f"-dict={HERE}/smtp.dict", *LIMITS]
    files = any(not argument.startswith("-") for argument in sys.argv[2:])
    arguments += [*([] if files else map(str, folders)), *sys.argv[2:]]
    atheris.Setup(arguments, lambda octets: _one(target.one, octets))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
