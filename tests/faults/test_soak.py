"""The soak of bench/soak.py, for seconds instead of minutes; and that it would notice what it is there to notice."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"
SECONDS = float(os.environ.get("PILLARBOX_SOAK", "10"))

linux = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


@pytest.mark.promises("Nothing is lost", "With good and hostile clients at once nothing grows and no message is lost.")
@linux
@pytest.mark.timeout(SECONDS + 110)
@pytest.mark.parametrize(("target", "loop"), [("library", "uvloop"), ("library", "asyncio"), ("serve", "uvloop")])
def test_nothing_grows_and_nothing_is_lost(target: str, loop: str, tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    arguments = ["--seconds", str(SECONDS), "--target", target, "--loop", loop, "--output", file, "--keep", tmp_path]
    done = subprocess.run(
        [sys.executable, BENCH / "soak.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS + 100,
    )
    log = tmp_path / "log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text()[-5000:] if log.exists() else "")
    run = json.loads(file.read_text())[f"{target}, {loop}"]
    found = {row["what"]: row["found"] for row in run["rows"]}
    assert found["messages acknowledged"] > 50
    assert len(run["turns"]) >= 40  # no role that never comes to its end
    assert len(run["samples"]) >= SECONDS * 0.7


# --- What it would notice


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import soaking.verdict

    return soaking.verdict


def failed(rows: list[object]) -> set[str]:
    return {row.what for row in rows if row.failed}  # type: ignore[attr-defined]  # the module is found at run time


@pytest.mark.parametrize(
    ("acknowledged", "stored", "torn", "found"),
    [
        (["ack-1", "any-1"], {"ack-1": 1, "any-1": 1, "any-2": 1}, [], set()),
        (["ack-1", "ack-2"], {"ack-1": 1}, [], {"acknowledged and not stored"}),
        (["any-1"], {}, [], {"acknowledged and not stored"}),
        (["ack-1"], {"ack-1": 2}, [], {"stored twice"}),
        (["ack-1"], {"ack-1": 1}, ["ack-1"], {"torn"}),
        ([], {"not-1": 1}, [], {"stored though never whole, or smuggled"}),
        ([], {"nobody": 1}, [], {"stored though never whole, or smuggled"}),
        ([], {"ack-1": 1}, [], {"stored of good clients, not acknowledged"}),
    ],
)
def test_what_is_said_of_messages(
    verdict: ModuleType, acknowledged: list[str], stored: dict[str, int], torn: list[str], found: set[str]
) -> None:
    assert failed(verdict.of_messages(acknowledged, collections.Counter(stored), torn)) == found


def sample(second: int, resident: float) -> list[float]:
    return [second, resident, 10, 3, 5, 20, 0.001]


def test_what_is_said_of_memory(verdict: ModuleType) -> None:
    quiet = {
        "descriptors": 10,
        "tasks": 3,
        "connections": 0,
        "objects": 30_000,
        "types": {"pillarbox.session.Session": 1},
    }
    mb = 1024 * 1024
    # 60 MB at once, then up and down by 10: nothing grows. 60 KB more each second: 12 MB in the last 200 seconds.
    steady = [sample(at, min(at, 60) * mb + at % 7 * mb) for at in range(300)]
    growing = [sample(at, 60 * mb + at % 7 * mb + at * 60 * 1024) for at in range(300)]
    assert failed(verdict.of_memory(steady, quiet, quiet)) == set()
    assert failed(verdict.of_memory(growing, quiet, quiet)) == {
        "resident memory: growth in the last two thirds",
        "resident memory: growth in the last third",
    }
    left = {"descriptors": 11, "tasks": 4, "connections": 1, "objects": 40_000, "types": {"_asyncio.Future": 30}}
    assert len(failed(verdict.of_memory(steady, quiet, left))) == 5


def test_what_is_said_of_a_log(verdict: ModuleType) -> None:
    usual = ["INFO:pillarbox:TLS handshake failed: ConnectionResetError", "closed"]
    assert not verdict.of_log(usual).failed
    for line in (
        "Traceback (most recent call last):",
        "ERROR:pillarbox:internal error",
        "x: ResourceWarning: unclosed",
    ):
        assert verdict.of_log([*usual, line]).failed


def test_a_message_is_known_by_its_digest(verdict: ModuleType) -> None:
    from soaking import messages

    made = messages.message("ack", 100_000)
    assert b"\r\n.." in made.stuffed
    trace = b"Return-Path: <a@example.org>\nReceived: from x\n\tby y; Z\n"
    kept = trace + made.octets.replace(b"\r\n", b"\n")
    assert messages.judged(kept) == messages.Stored(made.id.decode(), whole=True)
    for damaged in (kept[:-1], kept + b"\n", kept.replace(b"\n.", b"\n..", 1), kept.replace(b"This is", b"This was")):
        assert not messages.judged(damaged).whole
    assert messages.judged(b"Subject: of nobody\n\n") == messages.Stored("", whole=False)
    for end in (b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r\r\n"):
        name, _ = messages.raw("any", b"before" + end + b"after\r\n")
        assert name.startswith(b"any-")
