"""The targets' table, and one message for several targets."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pillarbox.deliver import Target, deliver, known_schemes, target_from_url
from pillarbox.deliver.discard import Discard
from pillarbox.deliver.maildir import Maildir
from pillarbox.errors import ConfigurationError, Reject
from pillarbox.session import Session


class Recorder:
    """A target and its delivery that write down what happens to them, and fail on demand."""

    url = "recorder:"

    def __init__(self, name: str, events: list[str], fails_at: str = "") -> None:
        self.name, self.events, self.fails_at = name, events, fails_at

    def _note(self, event: str) -> None:
        self.events.append(f"{self.name} {event}")
        if event.startswith(self.fails_at or "never"):
            raise Reject(451, self.name)

    async def start(self) -> None:
        self._note("start")

    async def open(self, session: Session) -> Recorder:
        self._note("open")
        return self

    async def write(self, block: bytes) -> None:
        self._note(f"write {block.decode()}")

    async def commit(self) -> str:
        self._note("commit")
        return f"{self.name}'s place"

    async def abort(self) -> None:
        self._note("abort")


async def blocks(*parts: bytes, error: BaseException | None = None) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if error is not None:
        raise error


class TestTable:
    @pytest.mark.parametrize(
        ("url", "kind"),
        [("maildir:x", Maildir), ("maildir:///x/y", Maildir), ("discard:", Discard), ("Discard:", Discard)],
    )
    def test_known(self, url: str, kind: type[object]) -> None:
        target = target_from_url(url)
        assert type(target) is kind
        assert target.url == url

    def test_every_scheme_can_be_imported(self) -> None:
        assert known_schemes() == ("discard", "maildir")
        assert target_from_url("discard:")

    def test_making_one_touches_nothing(self, tmp_path: Path) -> None:
        target_from_url(f"maildir:{tmp_path}/x")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            (
                "maildr:x",
                r"unknown scheme 'maildr': did you mean 'maildir'\? \(known: discard:, maildir:\)",
            ),
            ("gopher://x", r"unknown scheme 'gopher' \(known: discard:, maildir:\)"),
            ("Maildir", r"'Maildir' is no target: write SCHEME:…, for example maildir:Maildir"),
            ("", "is no target"),
            (":x", "unknown scheme ''"),
            ("discard:x", "nothing can follow discard:"),
        ],
    )
    def test_refused(self, url: str, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            target_from_url(url)


async def test_discard() -> None:
    target = target_from_url("discard:")
    await target.start()
    assert await deliver([target], Session(), blocks(b"a", b"b")) == ["discard:"]


class TestSeveral:
    def test_recorder_is_a_target(self) -> None:
        target: Target = Recorder("a", [])
        assert target.url

    @pytest.mark.promises(
        "Nothing is lost", "250 means that the program has the message on the disk: file and folder entry."
    )
    async def test_all_get_the_message_then_all_commit(self) -> None:
        events: list[str] = []
        targets = [Recorder("a", events), Recorder("b", events)]
        places = await deliver(targets, Session(), blocks(b"1", b"2"), head=b"h")
        assert places == ["a's place", "b's place"]
        assert events == [
            *("a open", "a write h", "b open", "b write h"),
            *("a write 1", "b write 1", "a write 2", "b write 2"),
            *("a commit", "b commit", "b abort", "a abort"),  # which does nothing after a commit
        ]

    @pytest.mark.parametrize("step", ["open", "write h", "write 1", "commit"])
    async def test_a_refusal_aborts_all(self, step: str) -> None:
        events: list[str] = []
        targets = [Recorder("a", events), Recorder("b", events, step), Recorder("c", events)]
        with pytest.raises(Reject) as refused:
            await deliver(targets, Session(), blocks(b"1"), head=b"h")
        assert refused.value.text == "b"
        opened = {event[0] for event in events if event.endswith("open")} - ({"b"} if step == "open" else set())
        assert {event[0] for event in events if event.endswith("abort")} == opened
        assert "c commit" not in events

    @pytest.mark.parametrize("error", [ConnectionError("gone"), Reject(552), asyncio.CancelledError()])
    async def test_a_stream_that_breaks_aborts_all(self, error: BaseException) -> None:
        events: list[str] = []
        with pytest.raises(type(error)):
            await deliver([Recorder("a", events)], Session(), blocks(b"1", error=error))
        assert events[-1] == "a abort"
        assert "a commit" not in events

    async def test_one_abort_that_fails_does_not_spare_the_others(self) -> None:
        events: list[str] = []
        targets = [Recorder("a", events), Recorder("b", events, "abort")]
        with pytest.raises(Reject):
            await deliver(targets, Session(), blocks(error=ConnectionError()))
        assert events[-2:] == ["b abort", "a abort"]

    @pytest.mark.promises(
        "Nothing is lost", "A full, read-only or hanging disk is answered with 4xx, and nothing half-written stays."
    )
    @pytest.mark.parametrize("step", ["open", "write", "commit"])
    async def test_a_target_that_hangs_is_451(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
    ) -> None:
        async def hangs(*_args: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr("pillarbox.deliver.PATIENCE", 0.01)
        monkeypatch.setattr("pillarbox.deliver.PATIENCE_WITH_ABORT", 0.01)
        events: list[str] = []
        hanging = Recorder("b", events)
        monkeypatch.setattr(hanging, step, hangs)
        monkeypatch.setattr(hanging, "abort", hangs)
        with pytest.raises(Reject) as refused:
            await deliver([Recorder("a", events), hanging], Session(), blocks(b"1"))
        assert (refused.value.code, refused.value.enhanced) == (451, "4.3.0")
        assert events[-1] == "a abort"
        assert "did not answer" in caplog.text

    @pytest.mark.promises(
        "Nothing is lost", "A full, read-only or hanging disk is answered with 4xx, and nothing half-written stays."
    )
    async def test_a_disk_that_hangs_is_451_and_leaves_nothing_when_it_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        box = Maildir(f"maildir:{tmp_path}/x")
        await box.start()
        go_on, fsync = threading.Event(), os.fsync

        def slow(descriptor: int) -> None:
            assert go_on.wait(10)
            fsync(descriptor)

        monkeypatch.setattr("pillarbox.deliver.PATIENCE", 0.01)
        monkeypatch.setattr("pillarbox.deliver.PATIENCE_WITH_ABORT", 0.01)
        monkeypatch.setattr(os, "fsync", slow)
        with pytest.raises(Reject):
            await deliver([box], Session(), blocks(b"1"))
        go_on.set()
        await asyncio.get_running_loop().shutdown_default_executor()
        assert not [*box.tmp.iterdir(), *box.new.iterdir()]

    async def test_a_timeout_of_the_targets_own_is_not_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def raises(*_args: object) -> str:
            raise TimeoutError("mine")

        target = Recorder("a", [])
        monkeypatch.setattr(target, "commit", raises)
        with pytest.raises(TimeoutError, match="mine"):
            await deliver([target], Session(), blocks(b"1"))

    async def test_two_maildirs(self, tmp_path: Path) -> None:
        targets = [Maildir(f"maildir:{tmp_path}/{name}") for name in ("a", "b")]
        for target in targets:
            await target.start()
        places = await deliver(targets, Session(), blocks(b"x\r", b"\ny"), head=b"H: 1\r\n")
        assert [Path(place).read_bytes() for place in places] == [b"H: 1\nx\ny"] * 2
        assert [Path(place).parent for place in places] == [target.new for target in targets]
