"""The Maildir target: whole, durable files with LF line ends, and nothing left behind by what failed."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
import stat
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from messages import Begun, begun, message, session_for
from pillarbox import MessageStream
from pillarbox.deliver import Message, maildir
from pillarbox.deliver.disk import Threads
from pillarbox.deliver.maildir import BUFFER, STALE, Maildir
from pillarbox.errors import ConfigurationError, Reject
from pillarbox.session import Session
from support import serving

FOLDERS = ("cur", "new", "tmp")


@pytest.fixture
async def box(tmp_path: Path) -> Maildir:
    target = Maildir(f"maildir:{tmp_path}/Maildir")
    await target.start()
    return target


def files(box: Maildir) -> dict[str, list[bytes]]:
    """Return the content of all files, by folder."""
    return {name: [path.read_bytes() for path in sorted((box.paths.base / name).iterdir())] for name in FOLDERS}


def holds(*messages: bytes) -> dict[str, list[bytes]]:
    return {"cur": [], "new": list(messages), "tmp": []}


def folder_of(box: Maildir, name: str) -> Path:
    return box.paths.base / name


async def finished(delivery: Begun, block: bytes) -> None:
    await delivery.write(block)
    await delivery.commit()


class TestStart:
    async def test_makes_the_folders_for_the_owner_alone(self, tmp_path: Path) -> None:
        box = Maildir(f"maildir:{tmp_path}/deep/er/Maildir")
        await box.start()
        for folder in (box.paths.base, *(box.paths.base / name for name in FOLDERS)):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    async def test_takes_what_is_there(self, box: Maildir) -> None:
        (folder_of(box, "new") / "one").write_bytes(b"x")
        await box.start()
        assert files(box) == holds(b"x")

    async def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "Maildir").write_bytes(b"")
        with pytest.raises(ConfigurationError, match=r"maildir:.*/Maildir: (not a directory|file exists)"):
            await Maildir(f"maildir:{tmp_path}/Maildir").start()

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
    async def test_no_permission(self, box: Maildir) -> None:
        folder_of(box, "new").chmod(0o500)
        with pytest.raises(ConfigurationError, match="new: permission denied"):
            await box.start()

    async def test_no_permission_as_access_tells(self, box: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: path != folder_of(box, "new"))
        with pytest.raises(ConfigurationError, match="new: permission denied"):
            await box.start()

    async def test_cleans_stale_files(self, box: Maildir) -> None:
        long_ago = time.time() - STALE - 60
        for name, when in (("stale", long_ago), ("fresh", time.time())):
            (folder_of(box, "tmp") / name).write_bytes(name.encode())
            os.utime(folder_of(box, "tmp") / name, (when, when))
        await box.start()
        assert files(box)["tmp"] == [b"fresh"]

    async def test_what_was_read_or_written_lately_is_not_stale(self, box: Maildir) -> None:
        long_ago = time.time() - STALE - 60
        for name, times in (("read", (time.time(), long_ago)), ("written", (long_ago, time.time()))):
            (folder_of(box, "tmp") / name).write_bytes(b"")
            os.utime(folder_of(box, "tmp") / name, times)
        await box.start()
        assert len(files(box)["tmp"]) == 2


class TestURL:
    @pytest.mark.parametrize(
        ("url", "path"),
        [
            ("maildir:Maildir", "Maildir"),
            ("maildir:./x", "x"),
            ("maildir:../x", "../x"),
            ("maildir:/var/mail/in", "/var/mail/in"),
            ("maildir:///var/mail/in", "/var/mail/in"),
            ("MAILDIR:a b%20?c", "a b%20?c"),
        ],
    )
    def test_path(self, url: str, path: str) -> None:
        assert Maildir(url).paths.fixed == Path(path)

    def test_home(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert Maildir("maildir:~/Mail").paths.fixed == tmp_path / "Mail"

    @pytest.mark.parametrize(
        "url", ["maildir:", "maildir://", "maildir://host/x", "maildir:a\0b", "maildir:~nobody-here/x"]
    )
    def test_refused(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="maildir:"):
            Maildir(url)


class TestNames:
    async def test_form(self, box: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "ho/st:1")
        before = int(time.time())
        place = Path(await (await begun(box, b"x")).place())
        match = re.fullmatch(r"(\d+)\.M(\d{1,6})P(\d+)Q(\d+)\.ho\\057st\\0721,S=1", place.name)
        assert match is not None
        assert before <= int(match[1]) <= time.time()
        assert int(match[3]) == os.getpid()

    @pytest.mark.promises(
        "Storage",
        "No file name is made of what a client says, but of a recipient where the path asks for it: one harmless name.",
    )
    async def test_nothing_that_a_client_says_stands_in_it(self, box: Maildir) -> None:
        async def on_data(stream: MessageStream, session: Session) -> str:
            return str(await box.deliver(Message(session, session.envelope.rcpt_to, stream)))

        quoted = '"../../evil;$(touch x)|*"@example.com'
        async with serving(on_data=on_data, use_xclient=["127.0.0.1"]) as served:
            client = await served.client()
            assert (await client.command("XCLIENT NAME=..evil LOGIN=../../evil")).code == 501
            await client.ehlo("../../evil")
            await client.envelope(quoted, quoted)
            head = b"Message-ID: <../../evil>\r\nSubject: ../../evil\r\nX-UIDL: ../evil\r\n\r\n../../evil\r\n"
            assert (await client.data(head + b".." + b"../../evil\r\n")).code == 250
        (stored,) = [path for path in box.paths.base.rglob("*") if path.is_file()]
        assert stored.parent == folder_of(box, "new")
        assert re.fullmatch(
            r"[0-9]+\.M[0-9]+P[0-9]+Q[0-9]+\." + re.escape(socket.gethostname()) + r",S=\d+", stored.name
        )

    async def test_unique_even_in_the_same_microsecond(self, box: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
        deliveries = [await begun(box, b"%d" % number) for number in range(50)]
        places = await asyncio.gather(*(delivery.place() for delivery in deliveries))
        assert len(set(places)) == 50
        assert len(files(box)["new"]) == 50


class TestDelivery:
    async def test_stores_lf_for_the_owner_alone(self, box: Maildir) -> None:
        delivery = await begun(box, b"Subject: x\r\n", b"\r\nbody\r\n")
        assert files(box) == holds()
        place = Path(await delivery.place())
        assert files(box) == holds(b"Subject: x\n\nbody\n")
        assert place.parent == folder_of(box, "new")
        assert stat.S_IMODE(place.stat().st_mode) == 0o600

    async def test_empty_message(self, box: Maildir) -> None:
        await (await begun(box)).commit()
        assert files(box) == holds(b"")

    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    async def test_line_ends_at_every_split(self, box: Maildir, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(maildir, "BUFFER", 1)  # each block goes to the disk alone
        data = b"\r\n\r\na\rb\nc\r\r\nd\n\r\r\n\r"
        await (await begun(box, *(data[i : i + size] for i in range(0, len(data), size)))).commit()
        assert files(box) == holds(data.replace(b"\r\n", b"\n"))

    async def test_a_binary_message_stays_as_it_is(self, box: Maildir) -> None:
        delivery = await begun(box, session=session_for(body_type="binarymime"))
        for block in (b"Content-Transfer-Encoding: binary\r", b"\n\r\n\0\r\n\n\r"):
            await delivery.write(block)
        await delivery.commit()
        assert files(box) == holds(b"Content-Transfer-Encoding: binary\r\n\r\n\0\r\n\n\r")

    async def test_a_small_message_changes_threads_once(self, box: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def counted(threads: Threads, *args: Any) -> Any:
            calls.append(args)
            return original(threads, *args)

        original = Threads.submit
        monkeypatch.setattr(Threads, "submit", counted)
        await (await begun(box, *[b"x" * 1000] * 100)).commit()
        assert len(calls) == 1

    async def test_a_large_message_is_not_kept_in_memory(self, box: Maildir) -> None:
        delivery = await begun(box, *[b"0123456789abcd\r\n" * 4096] * 160)  # 10 MiB
        (writing,) = folder_of(box, "tmp").iterdir()
        assert writing.stat().st_size > 9_000_000
        await delivery.commit()
        assert files(box) == holds(b"0123456789abcd\n" * 4096 * 160)

    async def test_what_comes_by_two_octets_takes_no_more_memory(self, box: Maildir) -> None:
        """As a client may send it: each block is an object, forty times as large as what it holds."""

        async def trickling() -> AsyncIterator[bytes]:
            for number in range(BUFFER // 2 - 1):
                yield number.to_bytes(4)[2:]

        trickle = message()
        trickle._blocks = trickling()
        tracemalloc.start()
        try:
            await box.deliver(trickle)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 6 * BUFFER

    @pytest.mark.promises(
        "Nothing is lost", "250 means that the program has the message on the disk: file and folder entry."
    )
    async def test_file_and_folder_reach_the_disk_in_order(self, box: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
        events: list[str] = []
        fsync, rename = os.fsync, Path.rename

        def noted_fsync(descriptor: int) -> None:
            events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
            fsync(descriptor)

        def noted_rename(path: Path, target: Path) -> Path:
            events.append("rename")
            return rename(path, target)

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(Path, "rename", noted_rename)
        await (await begun(box, b"x")).commit()
        assert events == ["file", "rename", "folder"]

    @pytest.mark.parametrize("size", [0, 1, BUFFER, 3 * BUFFER + 1])
    async def test_abort_leaves_nothing(self, box: Maildir, size: int) -> None:
        delivery = await begun(box, b"x" * size)
        await delivery.abort()
        assert files(box) == holds()

    async def test_short_writes(self, box: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
        write = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
        await (await begun(box, b"0123456789")).commit()
        assert files(box) == holds(b"0123456789")


class TestFailure:
    @pytest.mark.promises(
        "Nothing is lost", "A full, read-only or hanging disk is answered with 4xx, and nothing half-written stays."
    )
    @pytest.mark.parametrize(
        ("number", "code", "enhanced"),
        [
            (errno.ENOSPC, 452, "4.3.1"),
            (errno.EDQUOT, 452, "4.3.1"),
            (errno.EACCES, 451, "4.3.0"),
            (errno.EIO, 451, "4.3.0"),
            (errno.EMFILE, 451, "4.3.0"),
        ],
    )
    @pytest.mark.parametrize("call", ["open", "write", "fsync"])
    @pytest.mark.parametrize("size", [10, BUFFER])
    async def test_is_a_reply_and_a_log_line(
        self,
        box: Maildir,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        number: int,
        code: int,
        enhanced: str,
        call: str,
        size: int,
    ) -> None:
        def fails(*_args: object) -> None:
            raise OSError(number, os.strerror(number), "/secret/path")

        delivery = await begun(box)
        with monkeypatch.context() as broken:
            broken.setattr(os, call, fails)
            with pytest.raises(Reject) as refused:
                await finished(delivery, b"x" * size)
        await delivery.abort()
        assert (refused.value.code, refused.value.enhanced) == (code, enhanced)
        assert "secret" not in str(refused.value)
        assert os.strerror(number) not in str(refused.value)
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert os.strerror(number) in record.getMessage()
        assert box.url in record.getMessage()
        assert files(box) == holds()

    @pytest.mark.promises(
        "Nothing is lost", "250 means that the program has the message on the disk: file and folder entry."
    )
    async def test_folder_entry_that_is_not_durable_is_no_delivery(
        self, box: Maildir, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(folder: Path) -> None:
            raise OSError(errno.EIO, "broken")

        monkeypatch.setattr(maildir, "sync_folder", fails)
        delivery = await begun(box, b"x")
        with pytest.raises(Reject):
            await delivery.commit()
        await delivery.abort()
        assert files(box) == holds()

    async def test_folder_removed_while_running(self, box: Maildir) -> None:
        folder_of(box, "tmp").rmdir()
        delivery = await begun(box, b"x")
        with pytest.raises(Reject):
            await delivery.commit()
        await delivery.abort()


class TestCancelled:
    @pytest.mark.parametrize("call", ["open", "write", "fsync"])
    async def test_in_the_middle_of_disk_work_leaves_nothing(
        self, box: Maildir, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        original = getattr(os, call)
        loop = asyncio.get_running_loop()
        reached, go_on = asyncio.Event(), threading.Event()

        def slow(*args: object) -> object:
            loop.call_soon_threadsafe(reached.set)
            assert go_on.wait(10)
            return original(*args)

        monkeypatch.setattr(os, call, slow)
        delivery = await begun(box, b"x")
        committing = asyncio.create_task(delivery.commit())
        await reached.wait()
        cancelling = asyncio.create_task(delivery.cancel())
        await asyncio.sleep(0)
        assert not cancelling.done()  # it waits for the thread
        go_on.set()
        await cancelling
        with pytest.raises(asyncio.CancelledError):
            await committing
        assert files(box) == holds()

    async def test_before_its_thread_ran(self, box: Maildir) -> None:
        delivery = await begun(box, b"x")
        committing = asyncio.create_task(delivery.commit())
        await asyncio.sleep(0)
        await delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await committing
        assert files(box) == holds()
