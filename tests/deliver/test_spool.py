"""A message that is kept until it is whole."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import tempfile
import threading
from pathlib import Path

import pytest

from messages import message
from pillarbox import Reject, Session
from pillarbox.deliver.disk import Steps, Threads
from pillarbox.deliver.spool import BUFFER, Spool


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be the folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def spooled(*parts: bytes, lf: bool = False) -> tuple[Spool, Steps]:
    steps = Steps("x:", Session(), Threads("x:"))
    spool = Spool(steps, lf=lf)
    await spool.fill(message(*parts))
    return spool, steps


@pytest.mark.parametrize("size", [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, BUFFER * 3])
async def test_gives_what_it_got_as_often_as_asked(size: int, folder: Path) -> None:
    content = os.urandom(size)
    spool, steps = await spooled(*(content[i : i + 65_536] for i in range(0, size, 65_536)))
    assert spool.size == size
    for _ in range(2):
        assert b"".join(spool.blocks()) == content
        with os.fdopen(spool.descriptor(), "rb") as file:
            assert file.read() == content
    assert list(folder.iterdir()) == []  # kill -9 leaves nothing there
    await steps.end(spool.close)


@pytest.mark.parametrize("size", [1, 2, 3, BUFFER])
async def test_line_ends_at_every_split(size: int) -> None:
    content = b"\r\na\rb\nc\r\r\nd\n\r\r\n" * (1 if size < 9 else BUFFER // 4) + b"\r"
    spool, steps = await spooled(*(content[i : i + size] for i in range(0, len(content), size)), lf=True)
    assert b"".join(spool.blocks()) == content.replace(b"\r\n", b"\n")
    assert spool.size == len(content.replace(b"\r\n", b"\n"))
    await steps.end(spool.close)


async def test_what_is_small_touches_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "open", fails)
    spool, steps = await spooled(b"x" * (BUFFER - 1))
    assert len(b"".join(spool.blocks())) == BUFFER - 1
    await steps.end(spool.close)


async def test_a_reader_cannot_change_it() -> None:
    spool, steps = await spooled(b"x" * 10)
    descriptor = spool.descriptor()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(descriptor, b"y")
    os.close(descriptor)
    await steps.end(spool.close)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
async def test_a_disk_without_room_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *_, **__: open("/dev/full", "r+b"))  # noqa: SIM115
    steps = Steps("x:", Session(), Threads("x:"))
    spool = Spool(steps, lf=False)
    with pytest.raises(Reject) as refused:
        await spool.fill(message(*[b"x" * 65_536] * 8))
    assert refused.value.code == 452
    await steps.end(spool.close)


async def test_a_step_that_fails_when_it_was_given_up_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for it any more: the log has no traceback."""
    steps, go_on = Steps("x:", Session(), Threads("x:")), threading.Event()

    def hang() -> None:
        go_on.wait(10)
        steps.go_on()

    step = asyncio.ensure_future(steps.run(hang))
    await asyncio.sleep(0)
    step.cancel()
    await asyncio.wait([step])
    ending = asyncio.ensure_future(steps.end(lambda: None))
    await asyncio.sleep(0)
    go_on.set()
    await ending
    await asyncio.sleep(0.01)
    gc.collect()
    assert caplog.records == []


async def test_a_disk_that_hangs_holds_up_nobody_else() -> None:
    """Its threads are its own, and what still waits for one is forgotten when it is given up."""
    hanging, go_on = Threads("x:"), threading.Event()
    ran: list[str] = []
    held = [Steps("x:", Session(), hanging) for _ in range(100)]
    running = [asyncio.ensure_future(steps.run(go_on.wait, 10)) for steps in held]
    waiting = Steps("x:", Session(), hanging)
    step = asyncio.ensure_future(waiting.run(ran.append, "a message"))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await Steps("y:", Session(), Threads("y:")).run(lambda: "stored") == "stored"
        step.cancel()
        await asyncio.wait([step])
        await waiting.end(lambda: ran.append("cleaned"))
    go_on.set()
    await asyncio.wait(running)
    hanging.shutdown()
    assert ran == ["cleaned"]
