"""The control channel between a supervisor and its worker: calls with answers, in both directions, over one socket.

Lines of JSON, one for all that is said in one turn of the event loop. Not pickle: a worker may have fewer rights.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    import socket

__all__ = ["Channel", "Handlers"]

Handlers = Mapping[str, Callable[..., Any]]

# A turn's questions are some KiB, a configuration is seldom more than 100: what is longer is no channel's.
LONGEST = 16 * 1024 * 1024

_log = logging.getLogger("pillarbox.program")


class Channel(asyncio.Protocol):
    """One end. Its handlers answer the other's calls: plain or ``async`` functions of values that JSON can hold."""

    def __init__(self, handlers: Handlers) -> None:
        self._loop = asyncio.get_running_loop()
        self.handlers = dict(handlers)
        self.closed: asyncio.Future[None] = self._loop.create_future()  # fulfilled when the other end is gone
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._unsent: list[list[Any]] = []
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._last = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def over(cls, sock: socket.socket, handlers: Handlers) -> Self:
        """Return the channel over a connected Unix socket, which becomes the channel's."""
        _, channel = await asyncio.get_running_loop().create_unix_connection(lambda: cls(handlers), sock=sock)
        return channel

    def call(self, name: str, *arguments: Any) -> asyncio.Future[Any]:
        """Ask the other end; the answer raises ConnectionError where it goes away, RuntimeError where it failed."""
        answer = self._loop.create_future()
        answer.add_done_callback(_retrieved)
        if self._transport is None:
            answer.set_exception(ConnectionError("the other process is gone"))
            return answer
        self._last += 1
        self._waiting[self._last] = answer
        self._send([self._last, name, *arguments])
        return answer

    def tell(self, name: str, *arguments: Any) -> None:
        """Say something that has no answer; to nobody where the other end is gone."""
        if self._transport is not None:
            self._send([0, name, *arguments])

    def close(self) -> None:
        """Send what is unsent, and close."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    # --- Out

    def _send(self, item: list[Any]) -> None:
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(item)

    def _flush(self) -> None:
        if self._unsent and self._transport is not None:
            self._transport.write(json.dumps(self._unsent).encode() + b"\n")
        self._unsent = []

    # --- In

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if b"\n" not in data:
            if len(self._buffer) > LONGEST and self._transport is not None:
                self._transport.abort()
            return
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            for number, *item in json.loads(line):
                if number < 0:
                    self._answered(-number, *item)
                else:
                    self._asked(number, *item)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the other process is gone"))
        if not self.closed.done():
            self.closed.set_result(None)

    def _answered(self, number: int, result: Any, failure: str | None = None) -> None:
        answer = self._waiting.pop(number, None)
        if answer is None or answer.done():
            return
        if failure is None:
            answer.set_result(result)
        else:
            answer.set_exception(RuntimeError(failure))

    def _asked(self, number: int, name: str, *arguments: Any) -> None:
        task = self._loop.create_task(self._answer(number, name, arguments))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            result = self.handlers[name](*arguments)
            if hasattr(result, "__await__"):
                result = await result
            answer = [-number, result]
        except Exception as error:  # noqa: BLE001 - whatever it was, the other end waits for an answer
            if not number:
                _log.exception("%s, told by the other process, failed", name)
            answer = [-number, None, str(error) or type(error).__name__]
        if number and self._transport is not None:
            self._send(answer)


def _retrieved(answer: asyncio.Future[Any]) -> None:
    """Look at the outcome, so that asyncio does not miss who waited and no longer does."""
    if not answer.cancelled():
        answer.exception()
