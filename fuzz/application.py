"""The application behind the server that is fuzzed: what it does is what the client's words ask for.

Where a name or an address holds "!" and a letter, the handler that is asked about it does what ``_DEEDS`` says. So the
same words are always answered in the same way, and the fuzzer finds its way to each refusal and failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from logging import DEBUG, ERROR
from typing import Any, NoReturn

from pillarbox import Command, ConnectionLost, Extension, MessageStream, Parameter, Reject, Reply, ScramKeys, Session

FORGED = "\r\n250 forged\n.\x00\x1b[2J \u2028 ä "


class Bug(Exception):
    """What a handler raises that has a bug."""


class Swallowed(Exception):
    """What a handler raises in the place of what it got."""


class GaveUp(Bug):
    """What a handler raises that has read a part of a message.

    Whether it comes so far depends on how the message was cut: for what is behind that part, it may have been refused.
    """


def _refuse(*arguments: Any, **facts: Any) -> Callable[[str], object]:
    def deed(_: str) -> NoReturn:
        raise Reject(*arguments, **facts)

    return deed


def _forge(text: str) -> NoReturn:
    raise Reject(None, text + FORGED + text)


def _move(text: str) -> NoReturn:
    raise Reject(551, f"try <{text}ä>")


def _fail(text: str) -> NoReturn:
    raise Bug(text)


async def _later(text: str) -> object:
    await asyncio.sleep(0)
    return None


_DEEDS: Mapping[str, Callable[[str], object]] = {
    "r": _refuse(),
    "t": _refuse(enhanced="4.2.1"),
    "c": _refuse(421, "Bye"),
    "l": _refuse(450, "long " * 300),
    "f": _forge,
    "m": _move,
    "b": _fail,
    "v": lambda _: Reject(452),
    "w": _later,
}


def _deed(text: str) -> object:
    _, mark, rest = text.partition("!")
    deed = _DEEDS.get(rest[:1]) if mark else None
    return None if deed is None else deed(text)


# --- Ways to read a message


async def _all(stream: MessageStream, session: Session) -> bytes:
    return b"".join([block async for block in stream])


async def _in_sevens(stream: MessageStream, session: Session) -> bytes:
    parts = []
    while part := await stream.read(7):
        assert len(part) <= 7
        parts.append(part)
    return b"".join(parts)


async def _slowly(stream: MessageStream, session: Session) -> bytes:
    parts = []
    async for block in stream:
        for _ in range(20):
            await asyncio.sleep(0)
        parts.append(block)
    return b"".join(parts)


async def _not_at_all(stream: MessageStream, session: Session) -> None:
    return


async def _a_little(stream: MessageStream, session: Session) -> None:
    await stream.read(3)


async def _and_fails(stream: MessageStream, session: Session) -> None:
    await stream.read(3)
    raise GaveUp


async def _deaf(stream: MessageStream, session: Session) -> None:
    """Take no refusal."""
    while True:
        try:
            if not await stream.read(5):
                return
        except Reject:
            return


async def _stubborn(stream: MessageStream, session: Session) -> None:
    try:
        await stream.read()
    except Exception as error:
        raise Swallowed from error


READERS: Sequence[Callable[[MessageStream, Session], Awaitable[bytes | None]]] = (
    _all, _in_sevens, _slowly, _not_at_all, _a_little, _and_fails, _deaf, _stubborn,
)  # fmt: skip


class Log:
    """A logger that takes everything from a level up; the server's own failures are always among it."""

    def __init__(self, level: int) -> None:
        self._level = level
        self.lines: list[str] = []
        self.internal: BaseException | None = None  # a failure of the server itself

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - theirs
        """Whether records of this level are wanted."""
        return level >= self._level

    def debug(self, message: str, *parts: object, extra: object, exc_info: BaseException | None) -> None:
        """Note a line."""
        self.lines.append(message % parts)
        if message == "internal error":
            self.internal = exc_info

    info = warning = error = debug


class Application:
    """Handlers, and what they were asked: ``told`` must not depend on how the client's octets were cut."""

    def __init__(self, *, acts: bool, logs: bool = False, most_recipients: int | None = None) -> None:
        self.reader = READERS[0]
        self._acts = acts
        self._most_recipients = most_recipients
        self.log = Log(DEBUG if logs else ERROR)
        self.begin()

    def begin(self) -> None:
        """Forget what was before."""
        self.told: list[object] = []
        self.messages: list[bytes] = []
        self.errors: list[Exception] = []  # that are no mistake of this application
        self.secrets: list[str] = []
        self.log.lines.clear()
        self.log.internal = None
        self.closed = 0

    def handlers(self) -> dict[str, Any]:
        """Return the options that make a server ask this application."""
        options: dict[str, Any] = {"on_data": self.on_data, "on_error": self.on_error, "on_close": self.on_close}
        options |= {"on_secure": self.on_secure, "logger": self.log}
        if self._acts:
            names = ("on_ehlo", "on_auth", "on_scram", "on_mail_from", "on_rcpt_to", "on_reset", "on_vrfy", "on_expn")
            options |= {name: getattr(self, name) for name in (*names, "on_help", "on_connect")}
            options["extensions"] = [_EXTENSION]
        else:
            options |= {"on_auth": self.on_auth, "on_scram": self.on_scram}
        return options

    # --- Handlers

    def on_connect(self, session: Session) -> object:
        self.told.append("connect")
        # A PROXY header gives the port, XCLIENT the name.
        return _deed({1: "!r", 2: "!b", 3: "!c"}.get(session.remote_port, session.host_name_appears_as or ""))

    def on_secure(self, tls: object, session: Session) -> object:
        # RFC 3207 4.2: of what was said in plaintext nothing is kept.
        assert session.envelope.mail_from is session.user is session.username is session.opening_command is None
        assert session.host_name_appears_as is None
        for kept in (session.envelope.rcpt_to, session.x_client, session.x_forward):
            assert not kept, kept
        return _deed(session.state.get("name", ""))

    def on_ehlo(self, keywords: list[str], session: Session) -> object:
        name = session.host_name_appears_as or ""
        self.told.append(("ehlo", name))
        session.state["name"] = name
        return _deed(name) or ([*keywords, "X-MORE"] if "more" in name else None)

    def on_auth(self, auth: Any, session: Session) -> object:
        self.told.append(("auth", auth.method, auth.username, auth.authzid))
        self.secrets += [auth.password, auth.access_token]
        if auth.username.startswith("nobody"):
            return None
        return _deed(auth.username) or auth.username or "somebody"

    def on_scram(self, username: str, session: Session) -> object:
        return _deed(username) or _KEYS.get(username)

    def on_mail_from(self, address: Any, session: Session) -> object:
        self.told.append(("mail", address.address))
        if session.envelope.mt_priority:
            session.envelope.mt_priority = 1
        return _deed(address.address)

    def on_rcpt_to(self, address: Any, session: Session) -> object:
        self.told.append(("rcpt", address.address))
        return _deed(address.address)

    def on_reset(self, session: Session) -> object:
        return _deed(session.host_name_appears_as or "")

    def on_vrfy(self, text: str, session: Session) -> object:
        return _deed(text) or text + FORGED

    def on_expn(self, text: str, session: Session) -> object:
        return _deed(text) or [text + FORGED, "ä" * 300, text * 9]

    def on_help(self, text: str, session: Session) -> object:
        return _deed(text) or (text + FORGED) * 3

    async def on_data(self, stream: MessageStream, session: Session) -> object:
        self._note(session)
        message = await self.reader(stream, session)
        if message is not None:
            self.messages.append(message)
        return self._answer(session)

    def on_error(self, error: Exception, session: Session | None) -> None:
        if not isinstance(error, GaveUp | ConnectionLost):
            self.told.append(type(error).__name__)
        if not (isinstance(error, Bug | Swallowed | Reject | ConnectionLost) or str(error).startswith(_MISTAKES)):
            self.errors.append(error)
        if "!bb" in str(error):
            raise Bug

    def on_close(self, session: Session) -> object:
        self.closed += 1
        return _deed(session.host_name_appears_as or "") if self._acts else None

    def _note(self, session: Session) -> None:
        envelope = session.envelope
        assert envelope.mail_from is not None
        assert envelope.rcpt_to
        assert self._most_recipients is None or len(envelope.rcpt_to) <= self._most_recipients
        self.told += [
            ("data", session.transmission_type, session.host_name_appears_as, session.username, session.transaction),
            (envelope.mail_from, envelope.body_type, envelope.smtp_utf8, envelope.require_tls, envelope.dsn),
            (envelope.submitter, envelope.deliver_by, envelope.hold_until, envelope.mt_priority),
            list(envelope.rcpt_to),
            dict(session.x_client),
            dict(session.x_forward),
            (session.remote_address, session.client_hostname, session.error),
        ]

    def _answer(self, session: Session) -> object:
        envelope = session.envelope
        sender = str(envelope.mail_from)
        if not self._acts or "?" not in sender:
            return None
        if not session.lmtp:
            return sender + FORGED
        recipients = envelope.rcpt_to[:1] if "??" in sender else envelope.rcpt_to
        return [_for_recipient(str(recipient)) for recipient in recipients]


def _for_recipient(address: str) -> object:
    """Return what LMTP answers for one recipient."""
    if "=" in address:
        return _awaited(address)
    return Reject(550) if "?" in address else address if "*" in address else None


async def _awaited(address: str) -> object:
    await asyncio.sleep(0)
    return _deed(address.replace("=", "!", 1))


# --- An extension of the application's own


def _measure(asked: Any, value: str) -> object:
    deed = _deed(value)
    return deed if hasattr(deed, "__await__") else len(value)


async def _converse(conversation: Any, argument: str) -> Any:
    conversation.wire.out += b"334 more\r\n"
    line = await conversation.read_line()
    return _deed(line.decode("latin-1")) or _deed(argument) or Reply(250, "2.0.0", argument + FORGED)


# What the server says of this application's mistakes.
_MISTAKES = ("on_data returned", "XTALK returned", "a parameter's apply returned", "ScramKeys: the text must be")
_EXTENSION = Extension(
    "XTALK",
    [Command("XTALK", _converse)],
    mail={"XLONG": Parameter(_measure)},
    rcpt={"XFLAG": Parameter(_measure, takes_value=False)},
)
_KEYS: dict[str, Sequence[ScramKeys] | str | Awaitable[object]] = {
    "ann": [ScramKeys.from_password("secret", hash=name, iterations=4096, salt=b"salt") for name in ("sha1", "sha256")],
    "broken": "no keys",
}
