"""How a dialogue is played against a server, and where two servers answered differently."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import ssl
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

PATIENCE = 20.0  # seconds for one reply: more than any server needs, also where the machine is busy
_SYNC = b"VRFY sync@example.com\r\n"  # all of them answer it 252, in any state but within a message

Connect = Callable[[], socket.socket]


@dataclass(frozen=True)
class Step:
    """What a client says at once, and how many replies it waits for.

    ``content`` is sent only where the reply before was 3xx; ``sync`` looks for replies beyond the first ones, such as
    those to smuggled commands; ``tls`` begins TLS where the reply before was 220.
    """

    octets: bytes
    replies: int = 1
    content: bool = False
    sync: bool = False
    tls: bool = False


@dataclass(frozen=True)
class Dialogue:
    """What a client says, reply by reply. ``needs`` are the EHLO keywords without which a server is not asked."""

    name: str
    steps: tuple[Step, ...]
    needs: frozenset[str] = frozenset()


def step(said: str | Step) -> Step:
    """Return a step: text is one command line."""
    return said if isinstance(said, Step) else Step(said.encode() + b"\r\n")


def raw(octets: bytes, replies: int = 1) -> Step:
    """Return octets as they are, behind which more replies than these may come."""
    return Step(octets, replies, sync=True)


def group(*commands: str) -> Step:
    """Return commands that are sent in one piece (RFC 2920)."""
    return Step("".join(command + "\r\n" for command in commands).encode(), len(commands))


def content(octets: bytes = b"Subject: x\r\n\r\nHello.\r\n.\r\n") -> Step:
    """Return the octets behind DATA, which hold an end of data."""
    return Step(octets, content=True, sync=True)


def answer(line: str) -> Step:
    """Return a line that answers a challenge of AUTH."""
    return Step(line.encode() + b"\r\n", content=True)


TLS = Step(b"", tls=True)


# --- What came of it


@dataclass(frozen=True)
class Received:
    """A message as the server's application got it, all line ends LF: its beginning, and its length and hash."""

    sender: str
    recipients: tuple[str, ...]
    content: str
    digest: str


@dataclass(frozen=True)
class Outcome:
    """What a server answered to one step: codes, ``x`` where it closed then, ``-`` where nothing came in time."""

    codes: tuple[str, ...] = ()
    ended: str = ""
    text: str = ""
    received: Received | None = None

    @property
    def shown(self) -> str:
        """The classes: ``2``, ``5x``, or one digit for each reply."""
        return "".join(code[0] for code in self.codes) + self.ended


def marker(sender: str, recipients: Sequence[str], message: bytes) -> str:
    """Return the text with which a server of ours answers a message, so that the client sees what it received."""
    lines = message.replace(b"\r\n", b"\n").replace(b"\r", b" ")  # as Postfix and ours write a bare CR
    parts = [sender, ",".join(recipients), lines.decode("latin-1")]
    quoted = [urllib.parse.quote(part[:90], safe="@.", encoding="utf-8") for part in parts]
    return f"got {'|'.join(quoted)}|{len(lines)}:{hashlib.sha256(lines).hexdigest()[:16]}"


def _received(text: str) -> Received | None:
    found = re.search(r"got ([^|\s]*)\|([^|\s]*)\|([^|\s]*)\|(\S*)", text)
    if found is None:
        return None
    sender, recipients, message = (urllib.parse.unquote(part) for part in found.groups()[:3])
    return Received(sender, tuple(filter(None, recipients.split(","))), message, found[4])


class _Closed(Exception):
    """The server has closed the connection."""


class _Player:
    """A client that waits for each reply."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""
        self._said: list[bytes] = []

    def send(self, octets: bytes) -> None:
        with contextlib.suppress(OSError):  # what it said before it closed is read first
            self._socket.sendall(octets)

    def reply(self) -> bytes:
        """Return the next reply with all its lines; raises _Closed, or TimeoutError."""
        while True:
            lines = self._buffer.split(b"\n")
            for number, line in enumerate(lines[:-1]):
                if line[3:4] != b"-":
                    self._buffer = b"\n".join(lines[number + 1 :])
                    return b"\n".join(lines[: number + 1])
            try:
                more = self._socket.recv(65536)
            except TimeoutError:
                raise
            except OSError:
                more = b""
            if not more:
                raise _Closed
            self._buffer += more

    def start_tls(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._socket = context.wrap_socket(self._socket)

    def close(self) -> None:
        self._socket.close()

    def take(self, said: Step) -> Outcome:
        """Say one step and return what came of it."""
        replies: list[bytes] = []
        ended = ""
        try:
            self.send(said.octets)
            while len(replies) < said.replies:
                replies.append(self.reply())
            if said.sync and replies[-1][:1] != b"3":
                self.send(_SYNC)
                while (reply := self.reply())[:3] != b"252":
                    replies.append(reply)
        except TimeoutError:
            ended = "-"
        except _Closed:
            ended = "x"
        text = b" / ".join(replies).decode("utf-8", "replace").replace("\r", "")
        codes = tuple(reply[:3].decode("latin-1") for reply in replies)
        return Outcome(codes, ended, text, _received(text.replace("\n250 ", "").replace("\n250-", "")))


def play(connect: Connect, dialogue: Dialogue) -> list[Outcome]:
    """Play a dialogue: the greeting's outcome, then one for each step; it stops where the server closes."""
    connection = connect()
    connection.settimeout(PATIENCE)
    player = _Player(connection)
    outcomes = [player.take(Step(b""))]  # the greeting
    try:
        for said in dialogue.steps:
            outcomes.append(_next(player, said, outcomes[-1]))
            if outcomes[-1].ended:
                break
    finally:
        player.close()
    if outcomes[-1].shown == "x" and len(outcomes) > 1:  # seen late: it closed behind its last reply
        before = outcomes[-2]
        outcomes[-2:] = [Outcome(before.codes, "x", before.text, before.received)]
    return outcomes


def offered(connect: Connect) -> frozenset[str]:
    """Return the keywords of a server's EHLO reply."""
    text = play(connect, Dialogue("hello", (step("EHLO client.example.org"),)))[-1].text
    return frozenset(line[4:].split()[0].upper() for line in text.split("\n")[1:] if line[4:].strip())


def _next(player: _Player, said: Step, before: Outcome) -> Outcome:
    last = before.codes[-1] if before.codes else ""
    if said.tls:
        if last == "220":
            player.start_tls()
        return Outcome(before.codes)
    if said.content and last[:1] != "3":
        return Outcome(before.codes)  # nothing was said
    return player.take(said)


# --- Where two servers differ

_HELLO = re.compile(rb"(?i)(EHLO|HELO) [a-z.]+\r\n")


@dataclass(frozen=True)
class Seen:
    """Where a server answered otherwise than ours."""

    server: str
    aspect: str  # "reply", "envelope" or "content"
    octets: bytes  # of the step
    before: bytes  # the steps before it, each with the class of our reply
    ours: str
    theirs: str

    def __str__(self) -> str:
        said = "".join(f"    {line}\n" for line in self.before.decode("latin-1").splitlines())
        return f"{self.server}, {self.aspect} to {self.octets!r}: ours {self.ours}, theirs {self.theirs}, after\n{said}"


def differences(server: str, dialogue: Dialogue, ours: list[Outcome], theirs: list[Outcome]) -> Iterator[Seen]:
    """Yield where they differ; behind a difference the next thing looked at is what follows a new hello."""
    aligned = True
    before: list[str] = []
    greeting = Step(b"")
    for number, said in enumerate((greeting, *dialogue.steps)):
        if number >= len(ours) or number >= len(theirs):
            return
        one, other = ours[number], theirs[number]
        if not aligned:
            aligned = bool(_HELLO.fullmatch(said.octets)) and one.shown == other.shown == "2"
        elif one.shown != other.shown:
            yield _first(server, said, one, other, before)
            aligned = False
        elif one.received is not None and other.received is not None:
            a, b = one.received, other.received
            if (a.sender, a.recipients) != (b.sender, b.recipients):
                shown = [f"{item.sender!r} to {item.recipients!r}" for item in (a, b)]
                yield Seen(server, "envelope", said.octets, _joined(before), *shown)
            if a.digest != b.digest:
                shown = [f"{item.content!r} ({item.digest})" for item in (a, b)]
                yield Seen(server, "content", said.octets, _joined(before), *shown)
        before.append(f"{one.shown} {said.octets[:1000]!r}")


def _first(server: str, said: Step, one: Outcome, other: Outcome, before: list[str]) -> Seen:
    """Return the first command of a step that was answered differently; the whole step where that cannot be told."""
    lines = said.octets.splitlines(keepends=True)
    if not len(lines) == len(one.codes) == len(other.codes) == said.replies > 1:
        return Seen(server, "reply", said.octets, _joined(before), one.shown, other.shown)
    for line, ours, theirs in zip(lines, one.shown, other.shown, strict=False):
        if ours != theirs:
            return Seen(server, "reply", line, _joined(before), ours, theirs)
        before = [*before, f"{ours} {line[:1000]!r}"]
    return Seen(server, "reply", lines[-1], _joined(before), one.shown, other.shown)


def _joined(before: list[str]) -> bytes:
    return "\n".join(before).encode()
