"""What every target promises, tried with each of them: ``test_contract.py`` runs these for all of ``PLACES``.

For another target write one function as below, which starts it in a folder and says how to look into it, and put it
into the table. Where it can refuse single recipients, write another one that refuses ``NOBODY``, for ``REFUSING``.
"""

from __future__ import annotations

import base64
import json
import mailbox
import os
import re
import sqlite3
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import mkstemp
from textwrap import dedent
from unittest.mock import patch

from aiohttp import BodyPartReader, web

from endpoint import answering, endpoint
from pillarbox import MessageStream, Recipient, Reject, Session
from pillarbox.deliver import Target, target_from_url
from pillarbox.deliver.stdout import Stdout
from support import ca_pem, issued, pem, serving

NOBODY = "nobody@example.com"


@dataclass
class Place:
    """A target that was started, and how to look at what it has kept.

    stored: the messages that are whole, in any order, with CRLF as their lines end; None where nothing is kept. rests:
    all else that is there and should not be. spoil: make it impossible to deliver; None where a test of its own does
    that. exact: bare CR and LF stay as they are; refuses_bare: or the message is refused. takes_back: what is cancelled
    before the answer is not there; where it has left this program it may be, but whole.
    """

    target: Target
    stored: Callable[[], list[bytes]] | None
    rests: Callable[[], list[str]] = list
    spoil: Callable[[], object] | None = None
    exact: bool = True
    refuses_bare: bool = False
    takes_back: bool = True


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


def with_crlf(octets: bytes) -> bytes:
    return octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


@asynccontextmanager
async def discard(folder: Path) -> AsyncIterator[Place]:
    async with started("discard:") as target:
        yield Place(target, None)


@asynccontextmanager
async def maildir(folder: Path) -> AsyncIterator[Place]:
    box = folder / "Maildir"

    def stored() -> list[bytes]:
        return [with_crlf(path.read_bytes()) for path in (box / "new").iterdir()]

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


# --- Mbox, standard output, commands


def in_mbox(path: Path) -> list[bytes]:
    """Return the messages as Python's own reader finds them, unquoted."""
    with closing(mailbox.mbox(path, create=False)) as box:
        found = [box.get_bytes(key) for key in box.iterkeys()]
    return [with_crlf(re.sub(rb"^>(>*From )", rb"\1", each, flags=re.MULTILINE)) for each in found]


@asynccontextmanager
async def mbox(folder: Path) -> AsyncIterator[Place]:
    path = folder / "box"

    def rests() -> list[str]:
        return [found.name for found in folder.iterdir() if found != path]

    def spoil() -> None:
        path.unlink()
        path.mkdir()

    async with started(f"mbox:{path}") as target:
        yield Place(target, lambda: in_mbox(path), rests, spoil, exact=False)


@asynccontextmanager
async def stdout(folder: Path) -> AsyncIterator[Place]:
    path = folder / "output"

    def stored() -> list[bytes]:
        found = []
        for line in path.read_bytes().split(b"\n"):
            with suppress(ValueError):  # cut off: what was written cannot be taken back
                parsed = json.loads(line)
                octets = parsed.get("message", "").encode() or base64.b64decode(parsed.get("message_base64", ""))
                assert len(octets) == parsed["size"]
                found.append(octets)
        return found

    def spoil() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        assert isinstance(target, Stdout)
        os.dup2(writing, target._descriptor)
        os.close(writing)

    with path.open("ab", buffering=0) as file, patch("pillarbox.deliver.stdout.OUTPUT", file.fileno()):
        async with started("stdout:", format="json") as target:
            yield Place(target, stored, spoil=spoil)


STORE = 'cat >"$0/.$$" && mv "$0/.$$" "$0/$$" || exit 75'


@asynccontextmanager
async def pipe(folder: Path) -> AsyncIterator[Place]:
    box = folder / "box"
    box.mkdir()

    def stored() -> list[bytes]:
        return [path.read_bytes() for path in box.iterdir() if not path.name.startswith(".")]

    async with started(f"pipe:sh -c '{STORE}' {box}", line_ends="crlf") as target:
        yield Place(target, stored, spoil=lambda: box.rename(folder / "gone"), takes_back=False)


# --- Endpoints and next servers: real ones, which keep messages in files


@dataclass
class Box:
    """A folder for messages that appear in it when they are whole."""

    folder: Path
    closed: bool = False
    numbers: count[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.folder.mkdir()

    @asynccontextmanager
    async def arriving(self) -> AsyncIterator[Callable[[bytes], object]]:
        descriptor, name = mkstemp(dir=self.folder, prefix=".")
        with os.fdopen(descriptor, "wb") as file:
            yield file.write
        Path(name).rename(self.folder / str(next(self.numbers)))

    def stored(self) -> list[bytes]:
        return [path.read_bytes() for path in self.folder.iterdir() if not path.name.startswith(".")]

    def spoil(self) -> None:
        self.closed = True


def keeping(box: Box) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def multipart(request: web.Request) -> web.Response:
        if box.closed:
            return web.Response(status=503)
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            if part.name == "message":
                async with box.arriving() as write:
                    while block := await part.read_chunk(65_536):
                        write(block)
        return web.Response()

    multipart.reads_nothing = True  # type: ignore[attr-defined]
    return multipart


def taking(box: Box) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def reference(request: web.Request) -> web.Response:
        event = await request.json()
        Path(event["data"]["message"]["path"]).rename(box.folder / str(next(box.numbers)))
        return web.Response()

    reference.reads_nothing = True  # type: ignore[attr-defined]
    return reference


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued("127.0.0.1").configure_cert(context)
    return context


def authority(folder: Path) -> str:
    path = folder / "ca.pem"
    path.write_text(ca_pem())
    return str(path)


@asynccontextmanager
async def http(folder: Path) -> AsyncIterator[Place]:
    box = Box(folder / "box")
    async with endpoint(keeping(box)) as there, started(there.url, attempts=1) as target:
        yield Place(target, box.stored, spoil=box.spoil, takes_back=False)


@asynccontextmanager
async def https(folder: Path) -> AsyncIterator[Place]:
    box = Box(folder / "box")
    async with (
        endpoint(keeping(box), tls=server_tls()) as there,
        started(there.url, attempts=1, ca=authority(folder)) as target,
    ):
        yield Place(target, box.stored, spoil=box.spoil, takes_back=False)


@asynccontextmanager
async def reference(folder: Path) -> AsyncIterator[Place]:
    box, spool = Box(folder / "box"), folder / "spool"
    spool.mkdir()

    def rests() -> list[str]:
        return [path.name for path in spool.iterdir()]

    settings = {"format": "reference", "folder": str(spool), "attempts": 1}
    async with endpoint(taking(box)) as there, started(there.url, **settings) as target:
        yield Place(target, box.stored, rests, lambda: spool.rename(folder / "gone"), takes_back=False)


@asynccontextmanager
async def next_server(folder: Path, scheme: str, **options: object) -> AsyncIterator[tuple[Box, str]]:
    box = Box(folder / "box")

    async def on_data(stream: MessageStream, session: Session) -> None:
        if box.closed:
            raise Reject(451, "not now")
        async with box.arriving() as write:
            async for block in stream:
                write(block)

    secure = scheme == "smtps"
    more = {
        "lmtp": scheme == "lmtp",
        "secure": secure,
        "size": 1_000_000_000,
        "bare_newline": "accept",  # and so NUL
        **(pem("127.0.0.1") if secure else {}),
    }
    async with serving(on_data=on_data, **more, **options) as served:
        yield box, f"{scheme}://127.0.0.1:{served.address[1]}"


@asynccontextmanager
async def lmtp(folder: Path) -> AsyncIterator[Place]:
    async with next_server(folder, "lmtp") as (box, url), started(url) as target:
        yield Place(target, box.stored, spoil=box.spoil, refuses_bare=True, takes_back=False)


@asynccontextmanager
async def smtp(folder: Path) -> AsyncIterator[Place]:
    async with next_server(folder, "smtp") as (box, url), started(url) as target:
        yield Place(target, box.stored, spoil=box.spoil, refuses_bare=True, takes_back=False)


@asynccontextmanager
async def smtps(folder: Path) -> AsyncIterator[Place]:
    async with next_server(folder, "smtps") as (box, url), started(url, ca=authority(folder)) as target:
        yield Place(target, box.stored, spoil=box.spoil, refuses_bare=True, takes_back=False)


PLACES: dict[str, Opened] = {
    "discard": discard,
    "http": http,
    "http reference": reference,
    "https": https,
    "lmtp": lmtp,
    "maildir": maildir,
    "mbox": mbox,
    "pipe": pipe,
    "python": python,
    "smtp": smtp,
    "smtps": smtps,
    "sqlite": sqlite,
    "stdout": stdout,
}

# --- Targets that refuse NOBODY and take messages for all others


@asynccontextmanager
async def maildirs(folder: Path) -> AsyncIterator[Place]:
    for name in ("b", "c"):
        (folder / name / "new").mkdir(parents=True)

    def stored() -> list[bytes]:
        return [with_crlf(path.read_bytes()) for path in folder.glob("*/new/*")]

    async with started(f"maildir:{folder}/{{local}}", create=False) as target:
        yield Place(target, stored)


@asynccontextmanager
async def mboxes(folder: Path) -> AsyncIterator[Place]:
    for name in ("b", "c"):
        (folder / name).touch()

    async with started(f"mbox:{folder}/{{local}}", create=False) as target:
        yield Place(target, lambda: [each for path in folder.iterdir() for each in in_mbox(path)])


@asynccontextmanager
async def pipes(folder: Path) -> AsyncIterator[Place]:
    box = folder / "box"
    box.mkdir()
    command = f"pipe:sh -c 'test \"$1\" = nobody && exit 67; {STORE}' {box} {{local}}"
    async with started(command, line_ends="crlf") as target:
        yield Place(target, lambda: [path.read_bytes() for path in box.iterdir()])


@asynccontextmanager
async def webhooks(folder: Path) -> AsyncIterator[Place]:
    async with (
        endpoint(answering(200, {"recipients": {NOBODY: {"code": 550}}})) as there,
        started(there.url) as target,
    ):
        yield Place(target, lambda: [got.parts()["message"][1] for got in there.got])


def refuse_nobody(recipient: Recipient, session: Session) -> None:
    if recipient.address == NOBODY:
        raise Reject(550, "No such user here", enhanced="5.1.1")


@asynccontextmanager
async def lmtp_server(folder: Path) -> AsyncIterator[Place]:
    async with next_server(folder, "lmtp", on_rcpt_to=refuse_nobody) as (box, url), started(url) as target:
        yield Place(target, box.stored)


@asynccontextmanager
async def smtp_server(folder: Path) -> AsyncIterator[Place]:
    async with next_server(folder, "smtp", on_rcpt_to=refuse_nobody) as (box, url), started(url) as target:
        yield Place(target, box.stored)


REFUSING: dict[str, Opened] = {
    "http": webhooks,
    "lmtp": lmtp_server,
    "maildir": maildirs,
    "mbox": mboxes,
    "pipe": pipes,
    "smtp": smtp_server,
}
