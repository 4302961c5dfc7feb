"""One message for several targets: who gets it, who keeps it, and what each recipient is told."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from messages import blocks, session_for
from pillarbox import ConnectionLost, Reject, Session
from pillarbox.deliver import Message, Settings, Target
from pillarbox.deliver.maildir import Maildir
from pillarbox.program.access import Access, AccessSettings
from pillarbox.program.fanout import Delivered, deliver, one_reply, outcome
from pillarbox.program.patterns import Patterns
from pillarbox.program.recipients import Recipients
from pillarbox.program.routes import Route, Routes

LATER = Reject(451, "later", enhanced="4.3.0")
NEVER = Reject(550, "never", enhanced="5.1.1")


class Recorder(Target):
    """A target that writes down what happens to it, and answers or fails as it is told."""

    def __init__(self, name: str, events: list[str], answer: object = None, at: str = "end") -> None:
        super().__init__(f"{name}:", Settings())
        self.name, self.events = name, events
        self.answer, self.at = answer, at

    async def deliver(self, message: Message) -> str | Sequence[str | Reject]:
        try:
            self._note("begin")
            async for block in message:
                self._note(block.decode())
            self._note("end")
        except BaseException:
            self.events.append(f"{self.name} nothing kept")
            raise
        self.events.append(f"{self.name} kept")
        return self.answer if isinstance(self.answer, list) else f"{self.name}'s place"

    def _note(self, event: str) -> None:
        self.events.append(f"{self.name} {event}")
        if event == self.at and isinstance(self.answer, BaseException):
            raise self.answer


class Hanging(Target):
    """A target that takes the whole message, and then no end."""

    def __init__(self) -> None:
        super().__init__("hanging:", Settings())
        self.asked = asyncio.Event()
        self.cancelled = 0

    async def deliver(self, message: Message) -> str:
        async for _ in message:
            pass
        self.asked.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError


async def delivered(
    routes: Sequence[Route], session: Session | None = None, source: AsyncIterator[bytes] | None = None
) -> list[str | Reject]:
    session = session or session_for()
    done = await done_by(routes, session, source)
    return outcome(session.envelope.rcpt_to, done)


async def done_by(
    routes: Sequence[Route], session: Session, source: AsyncIterator[bytes] | None = None
) -> list[Delivered]:
    parts = Recipients("mx.example.com", Routes(routes, "here"), Access(AccessSettings.from_table({}))).parts(
        session.envelope.rcpt_to
    )
    return await deliver(parts, session, source or blocks(b"1", b"2"), lambda _part: b"h")


def routes(*targets: Target, **more: object) -> list[Route]:
    return [Route(target, **more) for target in targets]  # type: ignore[arg-type]


class TestSeveral:
    @pytest.mark.promises(
        "Nothing is lost", "250 means that the program has the message on the disk: file and folder entry."
    )
    async def test_all_get_the_message_then_each_makes_it_durable_in_order(self) -> None:
        events: list[str] = []
        answers = await delivered(routes(Recorder("a", events), Recorder("b", events)))
        assert answers == ["a's place, b's place"]
        for name in "ab":
            assert [event for event in events if event[0] == name] == [
                f"{name} {event}" for event in ("begin", "h", "1", "2", "end", "kept")
            ]
        assert events.index("a kept") < events.index("b end")

    @pytest.mark.parametrize("at", ["begin", "h", "1", "end"])
    @pytest.mark.parametrize("refusal", [LATER, NEVER])
    async def test_one_that_refuses_all_ends_the_others(self, at: str, refusal: Reject) -> None:
        events: list[str] = []
        session = session_for()
        answers = await delivered(
            routes(Recorder("a", events), Recorder("b", events, refusal, at), Recorder("c", events)), session
        )
        assert one_reply(session.envelope.rcpt_to, answers) is refusal
        assert "c kept" not in events
        if at != "end":  # a was first, and is done when b is asked to end
            assert "a kept" not in events

    @pytest.mark.parametrize("error", [ConnectionLost("gone"), Reject(552), asyncio.CancelledError()])
    @pytest.mark.parametrize("number", [1, 2])
    async def test_a_stream_that_breaks_leaves_nothing(self, error: BaseException, number: int) -> None:
        events: list[str] = []
        targets = [Recorder(name, events) for name in "ab"[:number]]
        with pytest.raises(type(error)):
            await delivered(routes(*targets), source=blocks(b"1", error=error))
        assert not {f"{target.name} kept" for target in targets} & set(events)
        begun = {event[0] for event in events}
        assert {event[0] for event in events if event.endswith("nothing kept")} == begun

    async def test_a_target_that_takes_a_broken_message_for_a_whole_one(self) -> None:
        class Deaf(Target):
            async def deliver(self, message: Message) -> str:
                try:
                    async for _ in message:
                        pass
                except ConnectionError:
                    pass
                return "somewhere"

        with pytest.raises(ConnectionLost):
            await delivered(routes(Deaf("deaf:", Settings())), source=blocks(error=ConnectionLost("gone")))

    @pytest.mark.parametrize("number", [1, 2])
    async def test_a_bug_is_451_with_a_traceback_in_the_log(
        self, number: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        events: list[str] = []
        buggy = Recorder("b", events, ValueError("a secret"))
        (answer,) = await delivered(routes(*[Recorder("a", events)][: number - 1], buggy))
        assert str(answer) == "451 4.3.0 Error: the message cannot be stored now, try again later"
        (record,) = caplog.records
        assert record.exc_info is not None

    @pytest.mark.parametrize("wrong", [["x", "y"], [None], None, True, 250, b"x"])
    async def test_a_wrong_answer_is_a_bug(self, caplog: pytest.LogCaptureFixture, wrong: Any) -> None:
        class Wrong(Target):
            async def deliver(self, message: Message) -> str:
                answer: str = wrong
                return answer

        answers = await delivered(routes(Wrong("wrong:", Settings())))
        assert isinstance(answers[0], Reject)
        assert "must return a text, or a text or Reject for each of the 1 recipients" in caplog.text

    async def test_the_slowest_slows_the_client(self) -> None:
        sent = 0

        async def source() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(100):
                sent += 1
                yield b"x"

        class Slow(Target):
            async def deliver(self, message: Message) -> str:
                async for _ in message:
                    await go_on.wait()
                return "slow"

        go_on = asyncio.Event()
        task = asyncio.create_task(delivered(routes(Slow("s:", Settings()), Recorder("a", [])), source=source()))
        for _ in range(50):
            await asyncio.sleep(0)
        assert sent < 5
        go_on.set()
        await task
        assert sent == 100

    async def test_one_that_does_not_read_to_the_end(self) -> None:
        class Early(Target):
            async def deliver(self, message: Message) -> str:
                await anext(aiter(message))
                return "early"

        source = blocks(*[b"x"] * 20)
        assert await delivered(routes(Early("e:", Settings()), Recorder("a", [])), source=source) == [
            "early, a's place"
        ]


class TestTime:
    @pytest.mark.promises(
        "Nothing is lost", "A full, read-only or hanging disk is answered with 4xx, and nothing half-written stays."
    )
    @pytest.mark.parametrize("number", [1, 2])
    async def test_a_target_that_hangs_is_451(self, caplog: pytest.LogCaptureFixture, number: int) -> None:
        class Hanging(Target):
            async def deliver(self, message: Message) -> str:
                async for _ in message:
                    pass
                await asyncio.Event().wait()
                return ""

        hanging = Hanging("hanging:", Settings())
        (answer,) = await delivered(routes(*[Recorder("a", [])][: number - 1], hanging, timeout=0.02))
        assert str(answer).startswith("451 4.3.0")
        assert "hanging: did not answer in 0.02 seconds" in caplog.text

    @pytest.mark.parametrize("number", [1, 2])
    async def test_the_clients_time_is_not_the_targets(self, number: int) -> None:
        async def slow_client() -> AsyncIterator[bytes]:
            for _ in range(4):
                await asyncio.sleep(0.1)
                yield b"x"

        events: list[str] = []
        targets = [Recorder(name, events) for name in "ab"[:number]]
        (answer,) = await delivered(routes(*targets, timeout=0.3), source=slow_client())
        assert isinstance(answer, str)

    async def test_a_timeout_of_the_targets_own_is_a_bug_of_it(self, caplog: pytest.LogCaptureFixture) -> None:
        (answer,) = await delivered(routes(Recorder("a", [], TimeoutError("mine"))))
        assert isinstance(answer, Reject)
        assert "TimeoutError: mine" in caplog.text

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

        monkeypatch.setattr("pillarbox.deliver.PATIENCE_WITH_CLEANING", 0.01)
        monkeypatch.setattr(os, "fsync", slow)
        (answer,) = await delivered(routes(box, timeout=0.02))
        assert isinstance(answer, Reject)
        go_on.set()
        await asyncio.to_thread(box._threads.shutdown)
        assert not [path for path in (tmp_path / "x").rglob("*") if path.is_file()]

    async def test_optional_ones_are_waited_for_together(self) -> None:
        """Several that hang cost the client no more time than one."""

        class Together(Target):
            async def deliver(self, message: Message) -> str:
                async for _ in message:
                    pass
                assert "a kept" in events
                async with asyncio.timeout(5):
                    await all_asked.wait()
                return self.url

        events: list[str] = []
        all_asked = asyncio.Barrier(3)
        optional = [Route(Together(f"{number}:", Settings()), optional=True) for number in range(3)]
        assert await delivered([*optional, *routes(Recorder("a", events))]) == ["a's place, 0:, 1:, 2:"]

    async def test_one_that_does_not_read_keeps_no_other_from_the_end(self) -> None:
        """As one that is to connect first, to a host that does not answer."""

        class Connecting(Target):
            async def deliver(self, message: Message) -> str:
                async with asyncio.timeout(5):
                    await asked.wait()
                return self.url

        class Asked(Target):
            async def deliver(self, message: Message) -> str:
                async for _ in message:
                    pass
                asked.set()
                return self.url

        asked = asyncio.Event()
        optional = [Route(target, optional=True) for target in (Connecting("a:", Settings()), Asked("b:", Settings()))]
        answers = await delivered([*optional, *routes(Recorder("c", []))], source=blocks(b"1"))
        assert answers == ["c's place, a:, b:"]


class TestRecipients:
    async def test_each_target_gets_its_own(self) -> None:
        seen: dict[str, list[str]] = {}

        class Noting(Target):
            async def deliver(self, message: Message) -> str:
                seen[self.url] = [recipient.address for recipient in message.recipients]
                return self.url

        wanted = {"all:": ["*"], "com:": ["*@example.com"], "org:": ["*@example.org"], "none:": ["*@example.net"]}
        each = [Route(Noting(url, Settings()), Patterns(patterns)) for url, patterns in wanted.items()]
        answers = await delivered(each, session_for("a@example.com", "b@example.org", "c@EXAMPLE.com"))
        assert seen == {
            "all:": ["a@example.com", "b@example.org", "c@EXAMPLE.com"],
            "com:": ["a@example.com", "c@EXAMPLE.com"],
            "org:": ["b@example.org"],
        }
        assert answers == ["all:, com:", "all:, org:", "all:, com:"]

    async def test_one_reply_names_who_has_not_got_it(self) -> None:
        session = session_for("a@example.com", "b@example.com")
        answers = await delivered(routes(Recorder("a", [], ["here", NEVER]), Recorder("b", [])), session)
        refusal = one_reply(session.envelope.rcpt_to, answers)
        assert str(refusal) == "554 5.3.0 Error: all but these have the message: <b@example.com> (never)"

    async def test_one_reply_is_later_if_that_may_help_anyone(self) -> None:
        session = session_for("a@example.com", "b@example.com", "c@example.com")
        answers = await delivered(routes(Recorder("a", [], ["here", NEVER, LATER]), Recorder("b", [])), session)
        assert one_reply(session.envelope.rcpt_to, answers) is LATER

    async def test_in_lmtp_each_has_its_own(self) -> None:
        session = session_for("a@example.com", "b@example.com", "c@example.com")
        session.lmtp = True
        each = [
            Route(Recorder("a", [], LATER), Patterns(["a@*"])),
            Route(Recorder("b", [], ["here", NEVER]), Patterns(["b@*", "c@*"])),
        ]
        assert await delivered(each, session) == [LATER, "here", NEVER]


class TestOptional:
    @pytest.mark.parametrize("failure", [NEVER, LATER, ValueError("bug")])
    @pytest.mark.parametrize("at", ["begin", "1", "end"])
    async def test_its_failure_is_not_the_messages(self, failure: Exception, at: str) -> None:
        events: list[str] = []
        optional = Route(Recorder("o", events, failure, at), optional=True)
        assert await delivered([optional, *routes(Recorder("a", events))]) == ["a's place"]
        assert "a kept" in events

    async def test_it_keeps_nothing_that_was_refused(self) -> None:
        events: list[str] = []
        answers = await delivered([Route(Recorder("o", events), optional=True), *routes(Recorder("a", events, LATER))])
        assert answers == [LATER]
        assert "o nothing kept" in events

    @pytest.mark.parametrize("lmtp", [False, True])
    async def test_what_is_cancelled_while_only_it_hangs_is_delivered(self, lmtp: bool) -> None:
        """As by ``handler_timeout``, or when the program ends: the client is not to send it again."""
        hangs = Hanging()
        session = session_for("a@example.com", "b@example.com")
        session.lmtp = lmtp
        each = [
            Route(Recorder("a", [], ["here"]), Patterns(["a@*"])),
            Route(Recorder("b", [], [NEVER]), Patterns(["b@*"])),
            Route(hangs, optional=True),
        ]
        delivery = asyncio.create_task(delivered(each, session))
        await hangs.asked.wait()
        delivery.cancel()
        assert await delivery == ["here", NEVER]
        assert hangs.cancelled

    async def test_what_is_cancelled_before_all_have_it_is_not(self) -> None:
        hangs = Hanging()
        delivery = asyncio.create_task(delivered(routes(Recorder("a", []), hangs, Recorder("c", []))))
        await hangs.asked.wait()
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivery

    async def test_what_a_required_one_cannot_take_back_is_delivered(self) -> None:
        class Durable(Hanging):
            async def deliver(self, message: Message) -> str:
                try:
                    return await super().deliver(message)
                except asyncio.CancelledError:
                    return "there"

        durable = Durable()
        delivery = asyncio.create_task(delivered(routes(Recorder("a", []), durable)))
        await durable.asked.wait()
        delivery.cancel()
        assert await delivery == ["a's place, there"]

    @pytest.mark.parametrize("number", [1, 2])
    async def test_where_there_are_no_others_one_must_take_the_message(self, number: int) -> None:
        targets = [Recorder(name, [], LATER) for name in "ab"[:number]]
        assert await delivered(routes(*targets, optional=True)) == [LATER]
