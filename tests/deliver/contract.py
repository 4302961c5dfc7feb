"""What every target promises, tried with each of them: ``test_contract.py`` runs these for all of ``PLACES``.

For another target write one function as below, which starts it in a folder and says how to look into it, and put it
into the table.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from pillarbox.deliver import Target, target_from_url


@dataclass
class Place:
    """A target that was started, and how to look at what it has kept.

    stored: the messages that are whole, in any order, with CRLF as their lines end. rests: all else that is there and
    should not be. spoil: make it impossible to deliver; None where a test of its own does that. exact: octets that are
    no line ends stay as they are.
    """

    target: Target
    stored: Callable[[], list[bytes]]
    rests: Callable[[], list[str]] = list
    spoil: Callable[[], None] | None = None
    exact: bool = True


Opened = Callable[[Path], AbstractAsyncContextManager[Place]]


@asynccontextmanager
async def started(url: str, **settings: object) -> AsyncIterator[Target]:
    """Start a target, and close it in the end."""
    target = target_from_url(url, settings)
    await target.start()
    try:
        yield target
    finally:
        await target.close()


@asynccontextmanager
async def maildir(folder: Path) -> AsyncIterator[Place]:
    box = folder / "Maildir"

    def stored() -> list[bytes]:
        return [path.read_bytes().replace(b"\n", b"\r\n") for path in (box / "new").iterdir()]

    def rests() -> list[str]:
        return [path.name for name in ("tmp", "cur") for path in (box / name).iterdir()]

    def spoil() -> None:
        (box / "tmp").rmdir()

    async with started(f"maildir:{box}") as target:
        yield Place(target, stored, rests, spoil, exact=False)


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Place]:
    path = folder / "mail.db"

    def stored() -> list[bytes]:
        with closing(sqlite3.connect(path)) as connection:
            return [raw for (raw,) in connection.execute("SELECT raw FROM messages JOIN message_raw USING (id)")]

    def rests() -> list[str]:
        with closing(sqlite3.connect(path)) as connection:
            raws = connection.execute("SELECT id FROM message_raw WHERE id NOT IN (SELECT id FROM messages)").fetchall()
            recipients = connection.execute(
                "SELECT address FROM recipients WHERE message NOT IN (SELECT id FROM messages)"
            ).fetchall()
        files = [found.name for found in folder.iterdir() if not found.name.startswith("mail.db")]
        return [*map(str, raws), *map(str, recipients), *files]

    def spoil() -> None:
        for file in folder.iterdir():
            file.unlink()
        path.mkdir()

    async with started(f"sqlite:{path}") as target:
        yield Place(target, stored, rests, spoil)


OWN = """
    import os
    from pathlib import Path

    from pillarbox.deliver import Settings, Target, unavailable

    class FolderSettings(Settings):
        folder: str

    class Folder(Target):
        Settings = FolderSettings

        async def deliver(self, message):
            path = Path(self.settings.folder, message.id)
            try:
                with path.open("wb") as file:
                    async for block in message:
                        file.write(block)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                path.unlink(missing_ok=True)
                raise unavailable() from error
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            return str(path)
    """


@asynccontextmanager
async def python(folder: Path) -> AsyncIterator[Place]:
    module, box = folder / "pillarbox_contract_target.py", folder / "box"
    module.write_text(dedent(OWN))
    box.mkdir()
    sys.path.insert(0, str(folder))
    try:
        async with started(f"python:{module.stem}:Folder", folder=str(box)) as target:
            yield Place(target, lambda: [path.read_bytes() for path in box.iterdir()], spoil=box.rmdir)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(module.stem, None)


PLACES: dict[str, Opened] = {
    "maildir": maildir,
    "python": python,
    "sqlite": sqlite,
}
