"""When the program notices that files of keys and certificates are others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pillarbox.program import files
from program import WAIT

WATCHED = ["one", "two"]


class Watched:
    """Files that are looked at, and what is told of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = ["one"]
        self.answers: Iterator[bool] = iter(())
        self.told: asyncio.Queue[str] = asyncio.Queue()
        self.looked = asyncio.Event()

    def files(self) -> list[str]:
        self.looked.set()
        return [str(self.folder / name) for name in self.names]

    async def tell(self) -> bool:
        self.told.put_nowait((self.folder / "one").read_text())
        return next(self.answers, True)


@pytest.fixture
async def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setattr(files, "INTERVAL", 0.05)
    for name in WATCHED:
        (tmp_path / name).write_text("old")
    watched = Watched(tmp_path)
    task = asyncio.create_task(files.changed(watched.files, watched.tell))
    await watched.looked.wait()
    yield watched
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_what_changes_while_another_file_begins_to_be_watched(watched: Watched) -> None:
    """A reload names it, and a renewal comes at the same time."""
    watched.names = WATCHED
    (watched.folder / "one").write_text("newer")
    assert await asyncio.wait_for(watched.told.get(), WAIT) == "newer"


async def test_what_could_not_be_used_is_tried_again(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "AGAIN", 0.1)
    watched.answers = iter([False, False, True])
    (watched.folder / "one").write_text("newer")
    for _ in range(3):
        assert await asyncio.wait_for(watched.told.get(), WAIT) == "newer"
    for _ in range(4):  # longer than it waits for another time
        watched.looked.clear()
        await watched.looked.wait()
    assert watched.told.empty()


async def test_a_system_without_threads_for_a_moment(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = asyncio.to_thread, asyncio.Event()

    async def to_thread(*arguments: Any) -> Any:
        if not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        return await real(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    await asyncio.wait_for(refused.wait(), WAIT)
    (watched.folder / "one").write_text("newer")
    assert await asyncio.wait_for(watched.told.get(), WAIT) == "newer"
