"""One message for all its targets: read once, while it arrives, and answered for each recipient."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pillarbox import Reject, log_fields
from pillarbox.deliver import PATIENCE_WITH_CLEANING, Message, unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from pillarbox import Recipient, Session
    from pillarbox.program.routes import Part

__all__ = ["Delivered", "deliver", "one_reply", "outcome"]

_log = logging.getLogger("pillarbox.deliver")


@dataclass(frozen=True, slots=True)
class Delivered:
    """What came of a part: for each of its recipients a place, or the refusal.

    seconds: how long it took. ended: when it was over, in seconds since 1970.
    """

    part: Part
    answers: tuple[str | Reject, ...]
    seconds: float = 0.0
    ended: float = 0.0

    @property
    def refused(self) -> bool:
        """Whether any recipient was."""
        return any(isinstance(answer, Reject) for answer in self.answers)


async def deliver(
    parts: Sequence[Part], session: Session, blocks: AsyncIterator[bytes], head: Callable[[Part], bytes]
) -> list[Delivered]:
    """Hand one message to all parts; return what each made of it, in order. Raises what ``blocks`` raises.

    All read it while it arrives; then each that is required makes it durable, in order, and then all optional ones at
    once. In SMTP, where there is one reply for all, the first required target that refuses for now, or refuses all,
    ends the others, which keep nothing. Where this is cancelled when all that are required are done, it returns: the
    message is delivered.
    """
    if len(parts) == 1:  # a task of its own would cost as much as the rest of this function
        message = Message(session, parts[0].recipients, blocks, head(parts[0]))
        return [await _delivered(parts[0], message)]
    return await _Several(parts, session, head).deliver(blocks)


async def _delivered(part: Part, message: Message) -> Delivered:
    """Let one target do its part, in its time; what it raises becomes a refusal, but for what the stream raised."""
    route = part.route
    limit = message.limit = asyncio.timeout(route.timeout)
    begun = time.monotonic()  # the clock of uvloop's loop stands still while it works
    try:
        async with limit:
            answer = await route.target.deliver(message)
        answers = _answers(answer, part)
    except asyncio.CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - a bug of a target must not harm the others
        if message.broken is not None:
            raise message.broken from None
        answers = (_refusal(error, part, message.session, expired=limit.expired()),) * len(part.recipients)
    if message.broken is not None:  # the target took the broken message for a whole one
        raise message.broken
    return Delivered(part, answers, time.monotonic() - begun, time.time())


def _answers(answer: str | Sequence[str | Reject], part: Part) -> tuple[str | Reject, ...]:
    if isinstance(answer, str):
        return (answer,) * len(part.recipients)
    answers = tuple(answer) if isinstance(answer, Iterable) else ()
    if len(answers) != len(part.recipients) or not all(isinstance(each, str | Reject) for each in answers):
        raise TypeError(
            f"{type(part.route.target).__name__}.deliver must return a text, or a text or Reject for each of the"
            f" {len(part.recipients)} recipients, not {answer!r}"
        )
    return answers


def _refusal(error: Exception, part: Part, session: Session, *, expired: bool) -> Reject:
    if isinstance(error, Reject):
        return error
    fields = log_fields(session, "deliver", "deliver")
    url = part.route.target.url
    if expired:
        _log.error("%s did not answer in %g seconds", url, part.route.timeout, extra=fields)
    else:
        _log.error("%s: %s: %s", url, type(error).__name__, error, extra=fields, exc_info=error)
    return unavailable()


# --- Several targets


class _Several:
    """One message on its way to several targets: a task for each, and a block at a time for all."""

    def __init__(self, parts: Sequence[Part], session: Session, head: Callable[[Part], bytes]) -> None:
        self._lmtp = session.lmtp
        self._recipients = len(session.envelope.rcpt_to)
        self._branches = [
            _Branch(part, Message(session, part.recipients, (feed := _Feed()), head(part)), feed) for part in parts
        ]
        self._whole = False  # the message has come to its end
        self._running = [branch.task for branch in self._branches]  # those that ``_end`` has not ended

    async def deliver(self, blocks: AsyncIterator[bytes]) -> list[Delivered]:
        try:
            async for block in blocks:
                for branch in self._branches:
                    await branch.feed.put(block)
                if any(self._ends_all(branch) for branch in self._branches):
                    break
            else:
                self._whole = True
                await self._make_durable()
            return self._results()
        except asyncio.CancelledError:
            await self._end()
            if not self._is_delivered():
                raise
            return self._results()
        finally:
            await self._end()

    def _results(self) -> list[Delivered]:
        return [branch.task.result() for branch in self._branches if self._is_over(branch)]

    def _is_delivered(self) -> bool:
        """Whether all that are required are done with the whole message, so that it must not be sent again."""
        required = [branch for branch in self._branches if not branch.part.route.optional]
        return self._whole and bool(required) and all(map(self._is_over, required))

    async def _make_durable(self) -> None:
        for branch in self._branches:
            if not branch.part.route.optional:
                await branch.feed.put(None)
                await asyncio.wait([branch.task])
                if self._ends_all(branch):
                    return
        # Together: the client waits, and for several that hang no longer than for one.
        optional = [branch for branch in self._branches if branch.part.route.optional]
        await asyncio.gather(*(branch.feed.put(None) for branch in optional))
        if optional:
            await asyncio.wait([branch.task for branch in optional])

    def _is_over(self, branch: _Branch) -> bool:
        return branch.task.done() and not branch.task.cancelled()

    def _ends_all(self, branch: _Branch) -> bool:
        """Whether what a branch refuses decides the one reply, so that the others need not go on."""
        if self._lmtp or branch.part.route.optional or not self._is_over(branch):
            return False
        refusals = [answer for answer in branch.task.result().answers if isinstance(answer, Reject)]
        return len(refusals) == self._recipients or any(_code(refusal) < 500 for refusal in refusals)

    async def _end(self) -> None:
        """Let who has not finished keep nothing, once; a target that hangs is not waited for."""
        unfinished, self._running = [task for task in self._running if not task.done()], []
        for task in unfinished:
            task.cancel()
        if unfinished:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_WITH_CLEANING):
                    await asyncio.wait(unfinished)


class _Branch:
    """One target among several."""

    def __init__(self, part: Part, message: Message, feed: _Feed) -> None:
        self.part = part
        self.feed = feed
        self.task = asyncio.create_task(_delivered(part, message))
        self.task.add_done_callback(feed.end)


class _Feed:
    """The blocks for one target: at most one waits, so that the slowest target slows the client."""

    def __init__(self) -> None:
        self._blocks: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._ended = False

    def __aiter__(self) -> _Feed:
        return self

    async def __anext__(self) -> bytes:
        block = await self._blocks.get()
        if block is None:
            raise StopAsyncIteration
        return block

    async def put(self, block: bytes | None) -> None:
        """Hand over a block, or the end, when there is room; does nothing for a target that is done."""
        if not self._ended:
            await self._blocks.put(block)

    def end(self, _: object) -> None:
        """Forget what waits: nobody reads on."""
        self._ended = True
        while not self._blocks.empty():
            self._blocks.get_nowait()


# --- The reply

# For a recipient whose target was stopped because another one refused.
_NOT_TRIED = unavailable()


def outcome(recipients: Sequence[Recipient], deliveries: Sequence[Delivered]) -> list[str | Reject]:
    """Return for each recipient a place, or why it has not got the message: what a required target refused.

    Where only optional targets are for a recipient, one of them must take it.
    """
    refused: dict[int, Reject] = {}
    optional: dict[int, Reject] = {}
    places: dict[int, list[str]] = {}
    for done in deliveries:
        for recipient, answer in zip(done.part.recipients, done.answers, strict=True):
            if isinstance(answer, str):
                places.setdefault(id(recipient), []).append(answer)
            else:
                (optional if done.part.route.optional else refused).setdefault(id(recipient), answer)
    return [_of_one(id(recipient), refused, places, optional) for recipient in recipients]


def _of_one(
    key: int, refused: dict[int, Reject], places: dict[int, list[str]], optional: dict[int, Reject]
) -> str | Reject:
    if key in refused:
        return refused[key]
    if key in places:
        return ", ".join(places[key])
    return optional.get(key, _NOT_TRIED)


def one_reply(recipients: Sequence[Recipient], answers: Sequence[str | Reject]) -> Reject | None:
    """Return the refusal of a message in SMTP, where all recipients share one reply; None if all have it."""
    refusals = [answer for answer in answers if isinstance(answer, Reject)]
    if not refusals:
        return None
    # Later, if that may help anyone: those that have the message get it again.
    for refusal in sorted(refusals, key=lambda refusal: refusal is _NOT_TRIED):
        if _code(refusal) < 500:
            return unavailable() if refusal is _NOT_TRIED else refusal  # one that is raised keeps its frames
    if len(refusals) == len(answers):
        return refusals[0]
    # RFC 5321 6.1: who accepts a message takes over the duty to deliver it or to report. Nothing is sent from here, so
    # the client has to report, and its report has to say who has the message.
    lost = [
        f"<{to.address}> ({answer.text})"
        for to, answer in zip(recipients, answers, strict=True)
        if isinstance(answer, Reject)
    ]
    return Reject(554, f"Error: all but these have the message: {', '.join(lost)}"[:400], enhanced="5.3.0")


def _code(refusal: Reject) -> int:
    return refusal.code or 450  # on_data's default
