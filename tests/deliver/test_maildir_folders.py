"""A Maildir for each recipient: one message for several, folders that are made, quotas, and the real Dovecot."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doveadm import doveadm
from messages import begun, message, session_for
from pillarbox import Address, Recipient, Reject, Session
from pillarbox.deliver import Message, maildir, maildirquota, target_from_url
from pillarbox.deliver.maildir import BUFFER, Maildir

CONTENT = b"Subject: x\r\n\r\nbody\r\n"
STORED = CONTENT.replace(b"\r\n", b"\n")
THREE = ("a@example.com", "b@example.com", "c@example.net")

Boxes = Callable[..., Maildir]


@pytest.fixture
async def boxes(tmp_path: Path) -> Boxes:
    def made(template: str = "{domain}/{local}", **settings: Any) -> Maildir:
        target = target_from_url(f"maildir:{tmp_path}/mail/{template}", settings)
        assert isinstance(target, Maildir)
        (tmp_path / "mail").mkdir(exist_ok=True)
        return target

    return made


def stored(tmp_path: Path) -> dict[str, list[bytes]]:
    """Return the messages in the Maildirs that there are; nothing may lie in tmp/ or cur/."""
    found = {}
    for new in sorted((tmp_path / "mail").rglob("new")):
        assert not [*(new.parent / "tmp").iterdir(), *(new.parent / "cur").iterdir()]
        found[str(new.parent.relative_to(tmp_path / "mail"))] = [path.read_bytes() for path in sorted(new.iterdir())]
    return found


def lmtp(*recipients: str) -> Session:
    session = session_for(*recipients)
    session.lmtp = True
    return session


async def answers(box: Maildir, session: Session, content: bytes = CONTENT) -> list[str]:
    """Return for each recipient the code of the refusal, or ""."""
    given = await box.deliver(message(content, session=session))
    if isinstance(given, str):
        return [""] * len(session.envelope.rcpt_to)
    return [str(each) if isinstance(each, Reject) else "" for each in given]


async def verified(box: Maildir, address: str, size: str | None = None) -> str:
    session = session_for(address)
    session.envelope.mail_from = Address("a@example.org", {"SIZE": size} if size else {})
    try:
        await box.verify(Recipient(address), session)
    except Reject as refusal:
        return str(refusal)
    return ""


class TestSeveralRecipients:
    async def test_one_file_with_a_name_in_each_folder(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes()
        await box.start()
        places = await box.deliver(message(CONTENT, session=session_for(*THREE)))
        assert [Path(str(place)).parent for place in places] == [
            tmp_path / "mail" / name / "new" for name in ("example.com/a", "example.com/b", "example.net/c")
        ]
        assert stored(tmp_path) == {"example.com/a": [STORED], "example.com/b": [STORED], "example.net/c": [STORED]}
        assert len({Path(str(place)).stat().st_ino for place in places}) == 1

    async def test_two_in_the_same_folder_get_one_file(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{mailbox}")
        await box.start()
        session = session_for("joe@example.com", "Joe+tag@example.com", "ann@example.com")
        first, second, third = map(str, await box.deliver(message(CONTENT, session=session)))
        assert first == second != third
        assert stored(tmp_path) == {"ann": [STORED], "joe": [STORED]}

    async def test_folders_that_are_one_by_a_link_get_one_file(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}")
        await box.start()
        (tmp_path / "mail" / "info").symlink_to("joe")
        place = await box.deliver(message(CONTENT, session=session_for("info@x.example", "joe@x.example")))
        assert str(place).startswith(f"{tmp_path}/mail/joe/new/")
        assert list(map(len, stored(tmp_path).values())) == [1]

    @pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
    async def test_copies_where_there_are_no_links(
        self, boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def fails(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(Path, "hardlink_to", fails)
        box = boxes()
        await box.start()
        places = await box.deliver(message(CONTENT, session=session_for(*THREE)))
        assert set(map(len, stored(tmp_path).values())) == {1}
        status = [Path(str(place)).stat() for place in places]
        assert len({each.st_ino for each in status}) == 3
        assert {stat.S_IMODE(each.st_mode) for each in status} == {0o600}

    async def test_links_that_lead_round_in_a_circle(
        self, boxes: Boxes, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        await boxes().start()
        (tmp_path / "mail" / "example.com").symlink_to("example.com")
        with pytest.raises(Reject) as refused:
            await answers(boxes(), session_for(*THREE))
        assert (refused.value.code, refused.value.enhanced) == (451, "4.3.0")
        [record] = caplog.records
        assert record.exc_info is None
        assert str(tmp_path) in record.getMessage()
        assert stored(tmp_path) == {}

    async def test_large(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes()
        await box.start()
        blocks = [b"0123456789abcd\r\n" * 4096] * 20
        delivery = await begun(box, *blocks, session=session_for(*THREE))
        await delivery.commit()
        assert {content for (content,) in stored(tmp_path).values()} == {b"0123456789abcd\n" * 4096 * 20}

    @pytest.mark.parametrize("size", [1, BUFFER * 2])
    async def test_a_client_that_disappears_leaves_nothing(self, boxes: Boxes, tmp_path: Path, size: int) -> None:
        box = boxes()
        await box.start()
        delivery = await begun(box, b"x" * size, session=session_for(*THREE))
        await delivery.abort()
        assert not any(stored(tmp_path).values())


def blocked(tmp_path: Path, name: str) -> None:
    """Let no message into a folder: "new" is a file."""
    folder = tmp_path / "mail" / name
    (folder / "tmp").mkdir(parents=True)
    (folder / "cur").mkdir()
    (folder / "new").write_bytes(b"")


class TestOneFails:
    @pytest.mark.parametrize("position", [0, 1, 2])
    async def test_in_smtp_nobody_has_it(self, boxes: Boxes, tmp_path: Path, position: int) -> None:
        box = boxes("{local}")
        await box.start()
        blocked(tmp_path, "abc"[position])
        with pytest.raises(Reject) as refused:
            await answers(box, session_for(*THREE))
        assert (refused.value.code, refused.value.enhanced) == (451, "4.3.0")
        assert not [path for path in (tmp_path / "mail").rglob("*") if path.is_file() and path.read_bytes()]

    @pytest.mark.parametrize("position", [0, 1, 2])
    async def test_in_lmtp_the_others_have_it(self, boxes: Boxes, tmp_path: Path, position: int) -> None:
        box = boxes("{local}")
        await box.start()
        blocked(tmp_path, "abc"[position])
        found = await answers(box, lmtp(*THREE))
        assert [bool(text) for text in found] == [number == position for number in range(3)]
        assert found[position].startswith("451 4.3.0")
        (tmp_path / "mail" / "abc"[position] / "new").unlink()
        kept = [path for path in (tmp_path / "mail").rglob("*") if path.is_file()]
        assert sorted(path.parent.parent.name for path in kept) == sorted(set("abc") - {"abc"[position]})

    @pytest.mark.parametrize("position", [0, 1, 2])
    async def test_who_is_refused_when_it_lies_there_does_not_keep_it(
        self, boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int
    ) -> None:
        """The client sends it again: it is not to be there twice, nor in what the note counts."""
        name = "abc"[position]

        def fails(folder: Path) -> None:
            if folder.parent.name == name and any(folder.iterdir()):
                raise OSError(errno.EIO, "broken")

        box = boxes("{local}", quota=1000)
        await box.start()
        monkeypatch.setattr(maildir, "sync_folder", fails)
        found = await answers(box, lmtp(*THREE))
        assert [text[:9] for text in found] == ["451 4.3.0" if each == name else "" for each in "abc"]
        assert stored(tmp_path) == {each: [] if each == name else [STORED] for each in "abc"}
        sizes = [int(line.split()[0]) for line in note(tmp_path, name).splitlines()[1:]]
        assert sum(sizes) == 0

    async def test_all_fail_in_lmtp(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}")
        await box.start()
        for name in "abc":
            blocked(tmp_path, name)
        with pytest.raises(Reject):
            await answers(box, lmtp(*THREE))

    async def test_a_name_that_cannot_be_a_folder(self, boxes: Boxes, tmp_path: Path) -> None:
        # Refused at RCPT already; for a target that is optional nobody is asked there.
        box = boxes("{local}")
        await box.start()
        assert (await verified(box, '"../x"@example.com')).startswith("553 5.1.3")
        found = await answers(box, session_for('"../x"@example.com', "b@example.com"))
        assert [text[:9] for text in found] == ["553 5.1.3", ""]
        assert stored(tmp_path) == {"b": [STORED]}

    async def test_cancelled_when_some_have_it(
        self, boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        box = boxes("{local}")
        await box.start()
        session = session_for(*THREE)
        delivery = await begun(box, CONTENT, session=session)
        hardlink_to, cancelled = Path.hardlink_to, threading.Event()
        loop = asyncio.get_running_loop()

        def cancelling(path: Path, target: Path) -> None:
            hardlink_to(path, target)
            if not cancelled.is_set():
                loop.call_soon_threadsafe(delivery.task.cancel)
                loop.call_soon_threadsafe(cancelled.set)
                assert cancelled.wait(10)

        monkeypatch.setattr(Path, "hardlink_to", cancelling)
        with pytest.raises(asyncio.CancelledError):
            await delivery.commit()
        assert stored(tmp_path) == {"a": [], "b": [], "c": []}


class TestFolders:
    async def test_are_made_as_they_come(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{domain}/{local}/Maildir")
        await box.start()
        assert list((tmp_path / "mail").iterdir()) == []
        assert await answers(box, session_for("b@example.com")) == [""]
        for folder in (tmp_path / "mail").rglob("*"):
            if folder.is_dir():
                assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    async def test_are_made_again_when_they_were_removed(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}")
        await box.start()
        await answers(box, session_for("b@example.com"))
        shutil.rmtree(tmp_path / "mail" / "b")
        with pytest.raises(Reject):
            await answers(box, session_for("b@example.com"))
        assert await answers(box, session_for("b@example.com")) == [""]

    async def test_nothing_is_made_where_the_disk_is_not_there(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}")
        await box.start()
        (tmp_path / "mail").rmdir()
        with pytest.raises(Reject):
            await answers(box, session_for("b@example.com"))
        assert not (tmp_path / "mail").exists()

    async def test_only_those_that_are_there(self, boxes: Boxes, tmp_path: Path) -> None:
        await boxes("{local}").start()
        await answers(boxes("{local}"), session_for("b@example.com"))
        box = boxes("{local}", create=False)
        await box.start()
        assert await verified(box, "b@example.com") == ""
        assert (await verified(box, "c@example.com")).startswith("550 5.1.1")
        assert await answers(box, session_for("b@example.com")) == [""]
        found = await answers(box, session_for("c@example.com", "b@example.com"))
        assert [text[:9] for text in found] == ["550 5.1.1", ""]
        assert sorted(path.name for path in (tmp_path / "mail").iterdir()) == ["b"]

    async def test_stale_files_are_removed_where_mail_comes_in(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}")
        await box.start()
        tmp = tmp_path / "mail" / "b" / "tmp"
        tmp.mkdir(parents=True)
        (tmp / "old").write_bytes(b"")
        os.utime(tmp / "old", (1, 1))
        await answers(box, session_for("b@example.com"))
        assert list(tmp.iterdir()) == []


def note(tmp_path: Path, name: str = "b") -> str:
    return (tmp_path / "mail" / name / "maildirsize").read_text()


class TestQuota:
    async def test_of_bytes(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}", quota=2 * len(STORED) + 5)
        await box.start()
        assert await answers(box, session_for("b@example.com")) == [""]
        assert await answers(box, session_for("b@example.com")) == [""]
        with pytest.raises(Reject) as refused:
            await answers(box, session_for("b@example.com"))
        assert (refused.value.code, refused.value.enhanced) == (452, "4.2.2")
        assert stored(tmp_path) == {"b": [STORED] * 2}
        assert note(tmp_path) == f"{2 * len(STORED) + 5}S\n{2 * len(STORED)} 2\n"

    async def test_of_messages(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}", quota_messages=1)
        await box.start()
        assert await answers(box, lmtp("b@example.com", "c@example.com")) == ["", ""]
        found = await answers(box, lmtp("b@example.com", "d@example.com"))
        assert [text[:9] for text in found] == ["452 4.2.2", ""]
        assert (await verified(box, "b@example.com")).startswith("452 4.2.2")
        assert await verified(box, "e@example.com") == ""
        next((tmp_path / "mail" / "b" / "new").iterdir()).unlink()  # the user has read it
        (tmp_path / "mail" / "b" / "maildirsize").unlink()
        assert await answers(box, lmtp("b@example.com")) == [""]

    async def test_of_the_other_unit(self, boxes: Boxes) -> None:
        box = boxes("{local}", quota="1KiB", quota_messages=10)
        assert (box.quota.size, box.quota.messages) == (1024, 10)

    async def test_one_who_is_full_refuses_the_message_in_smtp(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}", quota_messages=1)
        await box.start()
        await answers(box, session_for("b@example.com"))
        with pytest.raises(Reject):
            await answers(box, session_for("a@example.com", "b@example.com", "c@example.com"))
        assert stored(tmp_path) == {"a": [], "b": [STORED], "c": []}

    async def test_the_announced_size_is_enough_for_a_refusal(self, boxes: Boxes) -> None:
        box = boxes("{local}", quota=100)
        await box.start()
        await answers(box, session_for("b@example.com"), b"x" * 60)
        await answers(box, session_for("b@example.com"), b"x")
        with pytest.raises(Reject):
            await answers(box, session_for("b@example.com"), b"x" * 60)  # which counts
        assert await verified(box, "b@example.com", "30") == ""
        assert (await verified(box, "b@example.com", "60")).startswith("452 4.2.2")

    async def test_a_message_that_would_never_fit(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}", quota=100)
        await box.start()
        assert (await verified(box, "b@example.com", "101")).startswith("552 5.2.3")
        with pytest.raises(Reject, match="larger than the mailbox may be") as refused:
            await answers(box, session_for("a@example.com", "b@example.com"), b"x" * 101)
        assert (refused.value.code, refused.value.enhanced) == (552, "5.2.3")
        assert stored(tmp_path) == {"a": [], "b": []}

    async def test_what_is_taken_back_does_not_count(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}", quota=1000)
        await box.start()
        await answers(box, session_for("b@example.com"))
        blocked(tmp_path, "c")
        with pytest.raises(Reject):
            await answers(box, session_for("c@example.com", "b@example.com"))
        sizes = [tuple(map(int, line.split())) for line in note(tmp_path).splitlines()[1:]]
        assert (sum(size for size, _ in sizes), sum(count for _, count in sizes)) == (len(STORED), 1)

    @pytest.mark.parametrize(
        "content",
        ["", "nonsense\n", "100S\n5 x\n", "100S\n-5 1\n", "7S,7C\n0 0\n", "100S\n" + "0 0\n" * 2000, "100S\n99 1"],
        ids=["empty", "nonsense", "no number", "below zero", "other limits", "too long", "cut off"],
    )
    async def test_a_note_that_cannot_be_used_is_made_anew(self, boxes: Boxes, tmp_path: Path, content: str) -> None:
        box = boxes("{local}", quota=100)
        await box.start()
        await answers(box, session_for("b@example.com"))
        (tmp_path / "mail" / "b" / "maildirsize").write_text(content)
        assert await answers(box, session_for("b@example.com")) == [""]
        assert note(tmp_path) == f"100S\n{len(STORED)} 1\n{len(STORED)} 1\n"

    async def test_what_others_have_noted_counts(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}", quota=100)
        await box.start()
        await answers(box, session_for("b@example.com"))
        (tmp_path / "mail" / "b" / "maildirsize").write_text("100S\n99 1\n")
        assert (await verified(box, "b@example.com", "30")).startswith("452 4.2.2")  # said lately, and in one line
        with (tmp_path / "mail" / "b" / "maildirsize").open("a") as file:
            file.write("-60 -1\n")
        assert await verified(box, "b@example.com", "30") == ""

    async def test_without_limits_of_ours_the_note_is_kept_up(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}")
        await box.start()
        await answers(box, session_for("b@example.com"))
        (tmp_path / "mail" / "b" / "maildirsize").write_text("5S\n4 1\n")  # Dovecot's
        assert await answers(box, session_for("b@example.com")) == [""]
        assert note(tmp_path) == f"5S\n4 1\n{len(STORED)} 1\n"

    async def test_messages_everywhere_count(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}", quota=100)
        await box.start()
        for name in ("cur", ".Sent/cur", ".Sent/new"):
            (tmp_path / "mail" / "b" / name).mkdir(parents=True)
        (tmp_path / "mail" / "b" / "cur" / "1.x,S=40:2,S").write_bytes(b"the name is believed")
        (tmp_path / "mail" / "b" / ".Sent" / "cur" / "2.x").write_bytes(b"x" * 40)
        with pytest.raises(Reject):
            await answers(box, session_for("b@example.com"), b"x" * 30)
        assert note(tmp_path) == "100S\n80 2\n"

    async def test_an_old_note_that_says_full_is_not_believed(self, boxes: Boxes, tmp_path: Path) -> None:
        box = boxes("{local}", quota=100)
        await box.start()
        await answers(box, session_for("b@example.com"))
        path = tmp_path / "mail" / "b" / "maildirsize"
        path.write_text("100S\n99 1\n")
        long_ago = time.time() - maildirquota._STALE - 60
        os.utime(path, (long_ago, long_ago))
        assert await answers(box, session_for("b@example.com")) == [""]


# --- The real Dovecot


async def test_dovecot_reads_the_messages_and_keeps_the_quota() -> None:
    with doveadm("maildir:{folder}/mail/joe") as dovecot:
        box = target_from_url(f"maildir:{dovecot.folder}/mail/{{local}}", {"quota": "10KiB", "quota_messages": 3})
        await box.start()

        async def send(text: str) -> None:
            content = f"Subject: {text}\r\nFrom: a@example.org\r\n\r\n.{text}\r\n".encode()
            await box.deliver(message(content, session=session_for("joe@example.com")))

        async def subjects() -> list[str]:
            fetched = await asyncio.to_thread(dovecot.run, "fetch", "hdr.subject", "ALL")
            return re.findall(r"^hdr\.subject: (.*)$", fetched, re.MULTILINE)

        await send("one")
        await send("two")
        assert await subjects() == ["one", "two"]
        assert "\n.one\n" in await asyncio.to_thread(dovecot.run, "fetch", "body", "subject", "one")
        quota = await asyncio.to_thread(dovecot.run, "-f", "tab", "quota", "get")
        assert re.findall(r"STORAGE\t(\d+)\t(\d+)", quota) == [("1", "10")]  # the limits are ours
        assert re.findall(r"MESSAGE\t(\d+)\t(\d+)", quota) == [("2", "3")]
        await send("three")
        with pytest.raises(Reject):
            await send("four")
        await asyncio.to_thread(dovecot.run, "expunge", "mailbox", "INBOX", "subject", "one")
        await send("five")  # Dovecot has noted that there is room
        assert await subjects() == ["two", "three", "five"]


async def test_only_some_recipients_are_this_targets(boxes: Boxes, tmp_path: Path) -> None:
    box = boxes("{local}")
    await box.start()
    session = session_for(*THREE)

    async def blocks() -> Any:
        yield CONTENT

    place = await box.deliver(Message(session, session.envelope.rcpt_to[1:2], blocks()))
    assert str(place).startswith(f"{tmp_path}/mail/b/new/")
    assert stored(tmp_path) == {"b": [STORED]}
