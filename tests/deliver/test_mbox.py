"""The mbox target: appended whole under both locks, readable by everyone, and as it was when anything fails."""

from __future__ import annotations

import asyncio
import errno
import gc
import mailbox
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from doveadm import doveadm
from messages import begun, message, session_for
from pillarbox import ConfigurationError, Recipient, Reject, Session
from pillarbox.deliver import disk, mboxfile, settled, target_from_url
from pillarbox.deliver.mbox import Mbox
from pillarbox.deliver.mboxfile import STALE, MboxFile
from pillarbox.deliver.mboxformat import Quoted, from_line
from pillarbox.deliver.spool import BUFFER

CONTENT = b"Subject: x\r\n\r\nbody\r\n"
STORED = b"Subject: x\n\nbody\n"
HEAD = re.compile(rb"^From (\S+) \w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\n", re.MULTILINE)
BOOT = Path("/proc/sys/kernel/random/boot_id")
THREE = ("a@example.com", "b@example.com", "c@example.net")

Boxes = Callable[..., Mbox]


@pytest.fixture
async def boxes(tmp_path: Path) -> Boxes:
    def made(template: str = "box", **settings: Any) -> Mbox:
        target = target_from_url(f"mbox:{tmp_path}/mail/{template}", settings)
        assert isinstance(target, Mbox)
        return target

    return made


@pytest.fixture
async def box(boxes: Boxes) -> Mbox:
    target = boxes()
    await target.start()
    return target


def mbox_file(tmp_path: Path) -> Path:
    return tmp_path / "mail" / "box"


def contents(path: Path) -> list[bytes]:
    """Return the messages of a file without From_ lines and the empty lines behind them; nothing else is there."""
    beside = [entry.name for entry in path.parent.iterdir() if entry.name.startswith((path.name, "."))]
    assert beside == [path.name]
    first, *found = HEAD.split(path.read_bytes())
    assert first == b""
    assert all(part.endswith(b"\n\n") for part in found[1::2])
    return [part.removesuffix(b"\n") for part in found[1::2]]


def lmtp(*recipients: str) -> Session:
    session = session_for(*recipients)
    session.lmtp = True
    return session


class TestStart:
    async def test_makes_the_file_for_the_owner_alone(self, box: Mbox, tmp_path: Path) -> None:
        assert mbox_file(tmp_path).read_bytes() == b""
        assert stat.S_IMODE(mbox_file(tmp_path).stat().st_mode) == 0o600
        assert stat.S_IMODE(mbox_file(tmp_path).parent.stat().st_mode) == 0o700
        assert contents_or_none(mbox_file(tmp_path)) == []

    @pytest.mark.parametrize("kind", ["folder", "pipe", "link", "second name"])
    async def test_what_is_no_mailbox(self, boxes: Boxes, tmp_path: Path, kind: str) -> None:
        path = mbox_file(tmp_path)
        path.parent.mkdir()
        (tmp_path / "other").write_bytes(b"")
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(tmp_path / "other")
        else:
            path.hardlink_to(tmp_path / "other")
        with pytest.raises(ConfigurationError, match=rf"mbox:{path}: {path}: "):
            await boxes().start()

    async def test_a_folder_that_may_not_be_written(
        self, boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(ConfigurationError, match="mail: permission denied"):
            await boxes().start()


def contents_or_none(path: Path) -> list[bytes]:
    return contents(path) if path.stat().st_size else []


async def test_a_new_file_is_in_its_folder_for_good(
    box: Mbox, boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it was made long before its first message: at the start, or while another program was at it."""
    made: list[Path] = []
    monkeypatch.setattr(mboxfile, "sync_folder", made.append)
    mbox_file(tmp_path).unlink()
    await boxes().start()
    assert made == [tmp_path / "mail"]
    await box.deliver(message(CONTENT))
    assert made == [tmp_path / "mail"]


class TestFormat:
    async def test_messages_one_behind_the_other(self, box: Mbox, tmp_path: Path) -> None:
        for body in (b"1\r\n", b"2\r\n"):
            assert await box.deliver(message(body)) == str(mbox_file(tmp_path))
        assert contents(mbox_file(tmp_path)) == [b"1\n", b"2\n"]

    async def test_a_message_without_a_last_line_end(self, box: Mbox, tmp_path: Path) -> None:
        await box.deliver(message(b"1\r\n2"))
        await box.deliver(message(b"3\r\n\r"))
        assert contents(mbox_file(tmp_path)) == [b"1\n2\n", b"3\n\r\n"]

    async def test_a_binary_message_keeps_its_line_ends(self, box: Mbox, tmp_path: Path) -> None:
        await box.deliver(message(b"a\r\nFrom \0\nb\r\n", session=session_for(body_type="binarymime")))
        assert contents(mbox_file(tmp_path)) == [b"a\r\n>From \0\nb\r\n"]

    @pytest.mark.parametrize(
        ("sender", "shown"),
        [("a@b.example", "a@b.example"), ("", "MAILER-DAEMON"), ('"a b"@c.example', '"a_b"@c.example'), ("ä@ö", "ä@ö")],
    )
    def test_the_line_in_front(self, sender: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((2026, 3, 7, 9, 5, 3, 5, 66, 0)))
        assert from_line(session_for(sender=sender)) == f"From {shown} Sat Mar  7 09:05:03 2026\n".encode()

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
    def test_quoting_at_every_split(self, size: int) -> None:
        lines = [
            b"From x",
            b">From x",
            b">>>From x",
            b" From x",
            b"xFrom ",
            b"From",
            b"F",
            b"Fro",
            b"",
            b">",
            b">>From",
        ]
        data = b"\n".join(lines * 2) + b"\nFrom "
        quoted = Quoted()
        done = b"".join(quoted(data[i : i + size]) for i in range(0, len(data), size)) + quoted.rest()
        assert done == re.sub(rb"^(>*From )", rb">\1", data, flags=re.MULTILINE)

    async def test_python_reads_it(self, box: Mbox, tmp_path: Path) -> None:
        for number in range(3):
            await box.deliver(message(b"Subject: %d\r\n\r\nFrom here\r\n\r\nFrom there\r\n" % number))
        read = mailbox.mbox(mbox_file(tmp_path), create=False)
        assert [each["Subject"] for each in read] == ["0", "1", "2"]
        assert [each.get_payload() for each in read] == [">From here\n\n>From there\n"] * 3
        read.close()

    async def test_dovecot_reads_it(self, box: Mbox, tmp_path: Path) -> None:
        for number in range(3):
            await box.deliver(message(b"Subject: %d\r\nFrom: a@x\r\n\r\nFrom here\r\n" % number))
        assert await asyncio.to_thread(read_by_dovecot, mbox_file(tmp_path)) == ["0", "1", "2"]

    @pytest.mark.parametrize("end", [b"", b"x", b"x\n", b"x\n\n"])
    async def test_what_others_have_left_gets_its_empty_line(self, box: Mbox, tmp_path: Path, end: bytes) -> None:
        first = b"From a@b Sat Mar  7 09:05:03 2026\n\n" + end if end else b""
        mbox_file(tmp_path).write_bytes(first)
        await box.deliver(message(CONTENT))
        assert contents(mbox_file(tmp_path))[-1] == STORED
        assert len(contents(mbox_file(tmp_path))) == (2 if end else 1)


def read_by_dovecot(path: Path) -> list[str]:
    """Return the subjects that the real Dovecot finds in a copy of the file."""
    with doveadm("mbox:{folder}/mail:INBOX={folder}/mail/box") as dovecot:
        (dovecot.folder / "mail").mkdir()
        shutil.copyfile(path, dovecot.folder / "mail" / "box")
        return re.findall(r"^hdr\.subject: (.*)$", dovecot.run("fetch", "hdr.subject", "ALL"), re.MULTILINE)


class TestRecipients:
    async def test_a_file_for_each(self, boxes: Boxes, tmp_path: Path) -> None:
        target = boxes("{domain}/{mailbox}")
        await target.start()
        session = session_for(*THREE, "b+x@example.com")
        places = await target.deliver(message(CONTENT, session=session))
        names = ("example.com/a", "example.com/b", "example.net/c", "example.com/b")
        assert places == [f"{tmp_path}/mail/{name}" for name in names]
        assert [contents(Path(str(place))) for place in places] == [[STORED]] * 4

    async def test_folders_that_are_one_by_a_link(self, boxes: Boxes, tmp_path: Path) -> None:
        target = boxes("{local}/box")
        await target.start()
        (tmp_path / "mail" / "info").symlink_to("joe")
        (tmp_path / "mail" / "joe").mkdir()
        await target.deliver(message(CONTENT, session=session_for("info@x.example", "joe@x.example")))
        assert contents(tmp_path / "mail" / "joe" / "box") == [STORED]

    async def test_links_that_lead_round_in_a_circle(
        self, boxes: Boxes, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        target = boxes("{local}/box")
        await target.start()
        (tmp_path / "mail" / "a").symlink_to("a")
        with pytest.raises(Reject) as refused:
            await target.deliver(message(CONTENT, session=session_for("b@example.com", "a@example.com")))
        assert (refused.value.code, refused.value.enhanced) == (451, "4.3.0")
        [record] = caplog.records
        assert record.exc_info is None
        assert str(tmp_path) in record.getMessage()
        assert not (tmp_path / "mail" / "b" / "box").exists()

    async def test_in_smtp_all_or_nobody(self, boxes: Boxes, tmp_path: Path) -> None:
        target = boxes("{local}")
        await target.start()
        await target.deliver(message(CONTENT, session=session_for(*THREE)))
        (tmp_path / "mail" / "b").unlink()
        (tmp_path / "mail" / "b").mkdir()
        with pytest.raises(Reject) as refused:
            await target.deliver(message(CONTENT, session=session_for(*THREE)))
        assert (refused.value.code, refused.value.enhanced) == (451, "4.3.0")
        assert [contents(tmp_path / "mail" / name) for name in "ac"] == [[STORED]] * 2

    async def test_in_lmtp_each(self, boxes: Boxes, tmp_path: Path) -> None:
        target = boxes("{local}")
        await target.start()
        (tmp_path / "mail" / "b").mkdir()
        answers = await target.deliver(message(CONTENT, session=lmtp(*THREE)))
        assert [isinstance(answer, Reject) for answer in answers] == [False, True, False]
        assert [contents(tmp_path / "mail" / name) for name in "ac"] == [[STORED]] * 2

    async def test_only_files_that_are_there(self, boxes: Boxes, tmp_path: Path) -> None:
        target = boxes("{local}", create=False)
        await target.start()
        (tmp_path / "mail" / "a").write_bytes(b"")
        session = session_for("a@example.com", "b@example.com")
        await target.verify(Recipient("a@example.com"), session)
        with pytest.raises(Reject) as refused:
            await target.verify(Recipient("b@example.com"), session)
        assert (refused.value.code, refused.value.enhanced) == (550, "5.1.1")
        found = await target.deliver(message(CONTENT, session=session))
        assert [isinstance(answer, Reject) and answer.code for answer in found] == [False, 550]
        assert sorted(path.name for path in (tmp_path / "mail").iterdir()) == ["a"]

    async def test_nobody_is_called_like_a_lock(self, boxes: Boxes) -> None:
        target = boxes("{local}")
        await target.start()
        for address in ("joe.lock@example.com", "Joe.LOCK@example.com"):
            with pytest.raises(Reject) as refused:
                await target.verify(Recipient(address), session_for())
            assert refused.value.code == 550


class TestLocks:
    @pytest.mark.parametrize("other", ["python", "lock file", "fcntl"])
    async def test_another_program_is_waited_for(self, box: Mbox, tmp_path: Path, other: str) -> None:
        path = mbox_file(tmp_path)
        with Holding(path, other) as process:
            delivery = asyncio.create_task(box.deliver(message(CONTENT)))
            await asyncio.sleep(0.2)
            assert not delivery.done()
            assert path.read_bytes() == b""
            process.communicate("go on\n")
        await asyncio.wait_for(delivery, 10)
        assert contents(path) == [STORED]

    async def test_but_not_for_ever(self, boxes: Boxes, tmp_path: Path) -> None:
        target = boxes(lock_timeout=0.1)
        await target.start()
        with Holding(mbox_file(tmp_path), "python") as process:
            with pytest.raises(Reject) as refused:
                await target.deliver(message(CONTENT))
            process.communicate("go on\n")
        assert (refused.value.code, refused.value.enhanced) == (450, "4.2.0")
        assert mbox_file(tmp_path).read_bytes() == b""

    async def test_python_cannot_lock_it_while_we_append(
        self, box: Mbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried = []

        def appending(_: MboxFile, blocks: Any) -> None:
            command = [sys.executable, "-c", LOCK, str(mbox_file(tmp_path)), "python"]
            tried.append(subprocess.run(command, check=False, capture_output=True, text=True))

        monkeypatch.setattr(MboxFile, "append", appending)
        await box.deliver(message(CONTENT))
        assert "ExternalClashError" in tried[0].stderr

    @pytest.mark.parametrize(
        ("content", "age", "stale"),
        [
            ("", 0, False),
            ("", STALE + 60, True),
            ("0", 0, False),  # procmail's
            ("0", STALE + 60, True),
            ("PID\n", STALE + 60, False),  # liblockfile's: the process is there
            ("999999999\n", 0, True),
            ("999999999:HOST", 0, True),  # Dovecot's
            ("999999999:another.example.com", STALE + 60, False),
        ],
    )
    async def test_a_lock_that_was_left(
        self, boxes: Boxes, tmp_path: Path, content: str, age: float, stale: bool
    ) -> None:
        target = boxes(lock_timeout=0.01)
        await target.start()
        content = content.replace("PID", str(os.getpid())).replace("HOST", socket.gethostname())
        lock = tmp_path / "mail" / "box.lock"
        lock.write_text(content)
        os.utime(lock, (time.time() - age,) * 2)
        if stale:
            await target.deliver(message(CONTENT))
            assert contents(mbox_file(tmp_path)) == [STORED]
        else:
            with pytest.raises(Reject):
                await target.deliver(message(CONTENT))
            assert lock.read_text() == content

    async def test_a_file_that_was_replaced_is_opened_anew(
        self, box: Mbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fcntl

        path, lockf = mbox_file(tmp_path), fcntl.lockf

        def replaced_meanwhile(*arguments: Any) -> None:
            monkeypatch.setattr(fcntl, "lockf", lockf)
            (tmp_path / "new").write_bytes(b"")
            (tmp_path / "new").rename(path)
            lockf(*arguments)

        monkeypatch.setattr(fcntl, "lockf", replaced_meanwhile)
        await box.deliver(message(CONTENT))
        assert contents(path) == [STORED]

    async def test_many_at_once_in_one_process(self, boxes: Boxes, tmp_path: Path) -> None:
        targets = [boxes("{local}"), boxes("{local}")]  # as after a reload
        await targets[0].start()
        names = [f"{name}@example.com" for name in "ab"]
        await asyncio.gather(
            *(
                targets[number % 2].deliver(
                    message(b"%d\r\n" % number, session=session_for(*names[:: 1 - 2 * (number % 2)]))
                )
                for number in range(20)
            )
        )
        for name in "ab":
            assert sorted(contents(tmp_path / "mail" / name)) == sorted(b"%d\n" % number for number in range(20))

    async def test_many_processes_at_once(self, tmp_path: Path) -> None:
        path = mbox_file(tmp_path)
        path.parent.mkdir()
        senders = [subprocess.Popen([sys.executable, "-c", SEND, str(path), str(number)]) for number in range(3)]
        with subprocess.Popen([sys.executable, "-c", ADD, str(path)]) as python:
            pass
        assert [process.wait(60) for process in (*senders, python)] == [0] * 4
        found = mailbox.mbox(path, create=False)
        subjects = [str(each["Subject"]) for each in found]
        assert sorted(subjects) == sorted([f"{number}-{n}" for number in range(3) for n in range(15)] + ["python"] * 15)
        assert all(len(each.get_payload()) == (20_000 if each["Subject"] != "python" else 5) for each in found)
        found.close()


LOCK = """
import fcntl, mailbox, os, sys
path, other = sys.argv[1:]
if other == "python":
    box = mailbox.mbox(path)
    box.lock()
elif other == "fcntl":
    file = open(path, "r+")
    fcntl.lockf(file, fcntl.LOCK_EX)
else:
    open(path + ".lock", "x").close()
print("locked", flush=True)
input()
if other == "python":
    box.unlock()
elif other == "lock file":
    os.unlink(path + ".lock")
"""

# A process of the program, and one that is another program.
SEND = """
import asyncio, sys
from pathlib import Path
from pillarbox import Address, Recipient, Session
from pillarbox.deliver import Message, target_from_url

async def blocks(n):
    yield b"Subject: %s-%d\\r\\n\\r\\n" % (sys.argv[2].encode(), n)
    yield (b"x" * 199 + b"\\r\\n") * 100

async def main():
    target = target_from_url("mbox:" + sys.argv[1])
    await target.start()
    session = Session()
    session.envelope.mail_from = Address("a@example.org")
    for n in range(15):
        await target.deliver(Message(session, [Recipient("b@example.com")], blocks(n)))

asyncio.run(main())
"""
ADD = """
import mailbox, sys, time
for _ in range(15):
    box = mailbox.mbox(sys.argv[1])
    while True:
        try:
            box.lock()
            break
        except mailbox.ExternalClashError:
            time.sleep(0.01)
    box.add(b"Subject: python\\n\\nbody\\n")
    box.flush()
    box.unlock()
    box.close()
"""


class Holding:
    """Hold the file as another program does, in a process of its own."""

    def __init__(self, path: Path, other: str) -> None:
        self._command = [sys.executable, "-c", LOCK, str(path), other]

    def __enter__(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "locked\n"
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class TestFailure:
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
    @pytest.mark.parametrize("call", ["write", "fsync"])
    @pytest.mark.parametrize("size", [10, BUFFER * 2])
    async def test_the_file_is_as_it_was(
        self, box: Mbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, size: int
    ) -> None:
        await box.deliver(message(CONTENT))
        before = mbox_file(tmp_path).read_bytes()
        original, calls = getattr(os, call), []

        def fails_late(*arguments: object) -> object:
            calls.append(arguments)
            if len(calls) == (1 if call == "fsync" else 3):
                raise OSError(number, os.strerror(number))
            return original(*arguments)

        with monkeypatch.context() as broken:
            broken.setattr(os, call, fails_late)
            with pytest.raises(Reject) as refused:
                await box.deliver(message(b"x" * size + b"\r\n"))
        assert refused.value.code == (452 if number == errno.ENOSPC else 451)
        assert mbox_file(tmp_path).read_bytes() == before
        assert contents(mbox_file(tmp_path)) == [STORED]

    @pytest.mark.parametrize("size", [10, BUFFER * 2])
    async def test_a_client_that_disappears(self, box: Mbox, tmp_path: Path, size: int) -> None:
        delivery = await begun(box, b"x" * size)
        await delivery.abort()
        assert mbox_file(tmp_path).read_bytes() == b""
        assert [path.name for path in (tmp_path / "mail").iterdir()] == ["box"]

    async def test_cancelled_while_it_appends(self, box: Mbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        await box.deliver(message(CONTENT))
        fsync, loop, reached, go_on = os.fsync, asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def slow(descriptor: int) -> None:
            loop.call_soon_threadsafe(reached.set)
            assert go_on.wait(10)
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", slow)
        delivery = asyncio.create_task(box.deliver(message(b"x" * 100)))
        await reached.wait()
        delivery.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await delivery
        assert contents(mbox_file(tmp_path)) == [STORED]

    async def test_cancelled_when_it_is_there_already(
        self, box: Mbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who has no lock any more takes nothing back: another program may have read it, or appended."""
        close, loop, reached, go_on = MboxFile.close, asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def slow(file: MboxFile) -> None:
            close(file)
            loop.call_soon_threadsafe(reached.set)
            assert go_on.wait(10)

        monkeypatch.setattr(MboxFile, "close", slow)
        delivery = asyncio.create_task(box.deliver(message(CONTENT)))
        await reached.wait()
        delivery.cancel()
        await asyncio.sleep(0)
        go_on.set()
        assert await delivery == str(mbox_file(tmp_path))
        assert contents(mbox_file(tmp_path)) == [STORED]

    @pytest.mark.parametrize("some", [False, True])
    async def test_cancelled_when_some_have_it_in_lmtp(
        self, boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, some: bool
    ) -> None:
        """As where ``timeout`` is over while another program has the mailbox of the next one."""
        target, loop, reached, opened = boxes("{local}"), asyncio.get_running_loop(), asyncio.Event(), MboxFile.open
        await target.start()
        (tmp_path / "mail" / "b.lock").write_text(f"{os.getpid()}\n")

        def opening(path: Path, *, create: bool) -> MboxFile:
            if path.name == "b":
                loop.call_soon_threadsafe(reached.set)
            return opened(path, create=create)

        monkeypatch.setattr(MboxFile, "open", opening)
        names = ("a@x.org", "b@x.org", "c@x.org")[not some :]
        delivery = asyncio.create_task(target.deliver(message(CONTENT, session=lmtp(*names))))
        await asyncio.wait_for(reached.wait(), 10)
        delivery.cancel()
        if not some:
            with pytest.raises(asyncio.CancelledError):
                await delivery
            return
        answers = await delivery
        assert [str(answer)[:3] for answer in answers] == [str(tmp_path)[:3], "451", "451"]
        assert contents(tmp_path / "mail" / "a") == [STORED]
        assert not (tmp_path / "mail" / "c").exists()

    async def test_cancelled_while_the_disk_hangs(
        self, box: Mbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is waited for once, and what comes of it later is taken back and nothing to report."""
        loop, reached, go_on, fsync = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), os.fsync
        waits: list[Awaitable[object]] = []

        async def waited(cleaning: Awaitable[object]) -> None:
            waits.append(cleaning)
            await settled(cleaning)

        def hangs(descriptor: int) -> None:
            loop.call_soon_threadsafe(reached.set)
            assert go_on.wait(10)
            fsync(descriptor)

        monkeypatch.setattr("pillarbox.deliver.PATIENCE_WITH_CLEANING", 0.01)
        monkeypatch.setattr(disk, "settled", waited)
        monkeypatch.setattr(os, "fsync", hangs)
        delivery = asyncio.create_task(box.deliver(message(CONTENT)))
        await asyncio.wait_for(reached.wait(), 10)
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivery
        assert len(waits) == 1
        go_on.set()
        await asyncio.to_thread(box._threads.shutdown)
        await asyncio.sleep(0)  # what the thread has handed to the loop
        del delivery
        gc.collect()
        assert contents_or_none(mbox_file(tmp_path)) == []
        assert not [record for record in caplog.records if record.name == "asyncio"]

    async def test_when_it_cannot_be_taken_back_the_next_one_does_it(
        self, box: Mbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object) -> None:
            raise OSError(errno.EIO, "broken")

        await box.deliver(message(CONTENT))
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fails)
            broken.setattr(os, "ftruncate", fails)
            with pytest.raises(Reject):
                await box.deliver(message(b"half\r\n"))
        await box.deliver(message(b"whole\r\n"))
        assert contents(mbox_file(tmp_path)) == [STORED, b"whole\n"]


# Appends, and is killed when so many octets of the message are in the file.
KILLED = """
import os, signal, sys
path, most = sys.argv[1], int(sys.argv[2])
write = os.write
def written(descriptor, data):
    global most
    if os.path.samestat(os.fstat(descriptor), os.stat(path)):
        done = write(descriptor, data[:most])
        most -= done
        if most <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return write(descriptor, data)
os.write = written
fsync = os.fsync
def synced(descriptor):
    if most < 100_000 and os.path.samestat(os.fstat(descriptor), os.stat(path)):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = synced
exec(sys.stdin.read())
"""


class TestKilled:
    @pytest.mark.parametrize(
        ("recovery", "octets"),
        [("start", 1), ("delivery", 3), ("start", 60), ("delivery", 5_000), ("start", 20_100), ("delivery", 99_999)],
    )
    async def test_half_a_message_is_cut_off(
        self, boxes: Boxes, tmp_path: Path, octets: int, recovery: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = mbox_file(tmp_path)
        target = boxes("box" if recovery == "start" else "{local}")
        await target.start()
        session = session_for("box@example.com")
        await target.deliver(message(CONTENT, session=session))
        before = path.read_bytes()
        command = [sys.executable, "-c", KILLED, str(path), str(octets)]
        killed = await asyncio.to_thread(subprocess.run, command, input=SEND, text=True, check=False)
        assert killed.returncode == -9
        assert len(path.read_bytes()) > len(before)
        assert path.with_name("box.lock").exists()
        if recovery == "start":
            await target.start()
            assert path.read_bytes() == before
        await target.deliver(message(b"next\r\n", session=session))
        assert contents(path) == [STORED, b"next\n"]
        assert "of a message whose delivery was killed" in caplog.text

    async def test_what_another_program_has_appended_since_stays(self, box: Mbox, tmp_path: Path) -> None:
        path = mbox_file(tmp_path)
        await box.deliver(message(CONTENT))
        command = [sys.executable, "-c", KILLED, str(path), "5000"]
        await asyncio.to_thread(subprocess.run, command, input=SEND, text=True, check=False)
        with path.open("ab") as file:  # it has only fcntl locks, and so did not see ours
            file.write(b"\n\nFrom x@y Sat Mar  7 09:05:03 2026\n\nkeep me\n\n")
        await box.deliver(message(b"next\r\n"))
        found = contents(path)
        assert (found[0], found[-2], found[-1]) == (STORED, b"\nkeep me\n", b"next\n")

    @pytest.mark.skipif(not BOOT.exists(), reason="only Linux says which start of the host this is")
    async def test_after_a_power_cut_what_was_acknowledged_stays(
        self, box: Mbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The message is on the disk then, but not yet that its lock is gone: so it is on some file systems."""
        path, append, locks = mbox_file(tmp_path), MboxFile.append, []

        def appending(file: MboxFile, blocks: Any) -> None:
            append(file, blocks)
            locks.append(path.with_name("box.lock").read_text())

        monkeypatch.setattr(MboxFile, "append", appending)
        await box.deliver(message(CONTENT))
        path.with_name("box.lock").write_text(locks[0].replace(BOOT.read_text().strip(), "the-start-before"))
        await box.start()
        assert contents(path) == [STORED]

    async def test_where_no_system_says_that_the_host_has_started_anew(
        self, box: Mbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There it is acknowledged when its lock cannot come back."""
        lock, synced = mbox_file(tmp_path).with_name("box.lock"), []
        monkeypatch.setattr(mboxfile, "_boot", lambda: "-")
        monkeypatch.setattr(mboxfile, "sync_folder", lambda folder: synced.append((folder, lock.exists())))
        await box.deliver(message(CONTENT))
        assert synced == [(tmp_path / "mail", False)]
