"""A next server that does what a test wants: it follows a script, and notes every octet that it was sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

HANGS, CLOSES = None, b""
Answer = bytes | None | Callable[["Heard"], bytes | None]

EHLO = b"250-next.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 0\r\n"


@dataclass
class Heard:
    """One connection: its commands in order, and its message as it came, with dots and maybe without an end."""

    commands: list[str] = field(default_factory=list)
    data: bytes = b""
    ended: bool = False  # the message came to its end
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    flights: list[int] = field(default_factory=list)  # how many commands came at once

    def verbs(self) -> list[str]:
        return [command.split(" ", 1)[0] for command in self.commands]


@dataclass
class Next:
    """The server. ``answers``: by verb, "greeting" and "end" (of the message); what is not there is 250 or 354."""

    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    open: int = 0
    most_open: int = 0

    def url(self, scheme: str = "smtp") -> str:
        return f"{scheme}://127.0.0.1:{self.port}"

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait until something has happened here."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(ready)

    async def _note(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = Heard()
        self.heard.append(heard)
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            if await self._say("greeting", b"220 next.example\r\n", heard, writer):
                await self._converse(heard, reader, writer)
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()
            heard.closed.set()
        await self._note()

    async def _converse(self, heard: Heard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rest = b""
        while octets := await reader.read(65536):
            *lines, rest = (rest + octets).split(b"\r\n")
            heard.flights.append(len(lines))
            for line in lines:
                heard.commands.append(line.decode())
                await self._note()
                if not await self._obey(line.split(b" ")[0].decode(), heard, reader, writer):
                    return

    async def _obey(self, verb: str, heard: Heard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        usual = {"EHLO": EHLO, "LHLO": EHLO, "DATA": b"354 go on\r\n", "QUIT": b"221 bye\r\n"}
        if not await self._say(verb, usual.get(verb, b"250 ok\r\n"), heard, writer):
            return False
        if verb != "DATA" or not self._is_go(heard):
            return verb != "QUIT"
        while not (heard.data.endswith(b"\r\n.\r\n") or heard.data == b".\r\n"):
            octets = await reader.read(65536)
            if not octets:
                return False
            heard.data += octets
            await self._note()
            if "early" in self.answers and not await self._say("early", b"", heard, writer):
                return False
        heard.ended = True
        return await self._say("end", b"250 queued as 1\r\n", heard, writer)

    def _is_go(self, heard: Heard) -> bool:
        return bool((self._answer("DATA", b"354", heard) or b"").startswith(b"354"))

    def _answer(self, what: str, usual: bytes, heard: Heard) -> bytes | None:
        answer = self.answers.get(what, usual)
        return answer(heard) if callable(answer) else answer

    async def _say(self, what: str, usual: bytes, heard: Heard, writer: asyncio.StreamWriter) -> bool:
        answer = self._answer(what, usual, heard)
        if answer is HANGS:
            await asyncio.Event().wait()
        writer.write(answer or b"")
        await writer.drain()
        return answer != CLOSES


@asynccontextmanager
async def next_server(**answers: Answer) -> AsyncIterator[Next]:
    """Run one on a free port."""
    there = Next(answers=answers)
    tasks: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(there.serve(reader, writer))
        tasks.add(task)

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    there.port = server.sockets[0].getsockname()[1]
    try:
        yield there
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
