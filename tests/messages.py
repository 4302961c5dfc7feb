"""Messages for targets, without a server: what a target gets, block by block, and what becomes of it."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from pillarbox import Address, Recipient, Reject, Session
from pillarbox.deliver import Message, Target


def session_for(*recipients: str, sender: str = "a@example.org", **more: object) -> Session:
    """Return a session whose envelope is complete."""
    session = Session()
    session.envelope.mail_from = Address(sender)
    session.envelope.rcpt_to = [Recipient(recipient) for recipient in recipients or ("b@example.com",)]
    for name, value in more.items():
        setattr(session.envelope, name, value)
    return session


async def blocks(*parts: bytes, error: BaseException | None = None) -> AsyncIterator[bytes]:
    """Give the blocks of a message, and then the error, if there is one."""
    for part in parts:
        yield part
    if error is not None:
        raise error


def message(*parts: bytes, session: Session | None = None, error: BaseException | None = None) -> Message:
    """Return a message with these blocks for all recipients of a session."""
    session = session or session_for()
    return Message(session, session.envelope.rcpt_to, blocks(*parts, error=error))


class Begun:
    """A delivery that is under way, and waits for what the test does next."""

    def __init__(self, target: Target, session: Session | None = None) -> None:
        session = session or session_for()
        self._blocks: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(1)
        self.task = asyncio.ensure_future(target.deliver(Message(session, session.envelope.rcpt_to, self._arriving())))

    async def _arriving(self) -> AsyncIterator[bytes]:
        while (block := await self._blocks.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            yield block

    async def write(self, block: bytes) -> None:
        """Hand over a block; returns when the one before it was taken, or the delivery is over."""
        await self._put(block)

    async def commit(self) -> str | Sequence[str | Reject]:
        """Say that the message is whole; return what the target answers."""
        await self._put(None)
        return await asyncio.shield(self.task)

    async def place(self) -> str:
        """Say that the message is whole; return the one place where it is."""
        answer = await self.commit()
        assert isinstance(answer, str)
        return answer

    async def abort(self, error: BaseException | None = None) -> None:
        """Let the client disappear in the middle."""
        await self._put(error or ConnectionError("gone"))
        with suppress(ConnectionError, Reject, asyncio.CancelledError):
            await self.task

    async def cancel(self) -> None:
        """Cancel the delivery, as the server does when it is cut off."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def _put(self, block: bytes | BaseException | None) -> None:
        putting = asyncio.ensure_future(self._blocks.put(block))
        await asyncio.wait([putting, self.task], return_when=asyncio.FIRST_COMPLETED)
        if not putting.done():
            putting.cancel()


async def begun(target: Target, *parts: bytes, session: Session | None = None) -> Begun:
    """Begin a delivery and hand over some blocks."""
    delivery = Begun(target, session)
    for part in parts:
        await delivery.write(part)
    return delivery


def kept(action: Callable[[], object]) -> int:
    """Return how much memory (octets) is still in use when something is over."""
    gc.collect()
    tracemalloc.start()
    try:
        action()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
