r"""``dovecot:PATH``: Dovecot says who may log in, on the socket that it has for other servers.

The protocol is that of Dovecot's "auth-protocol.txt", quoted below: lines of fields with TAB between them, a handshake,
then requests by number, which are answered in any order. Nothing of what is sent is logged.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from base64 import b64encode
from typing import TYPE_CHECKING

from pydantic import Field

from pillarbox import ConfigurationError, log_fields
from pillarbox.program.paths import local_path
from pillarbox.users.contract import PASSWORD_METHODS, Settings, Users, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pillarbox import AuthRequest, Session

__all__ = ["DovecotSettings", "DovecotUsers"]

# "The maximum line length isn't defined, but it's currently expected to fit into 8192 bytes." One that is longer would
# end the connection, and with it everybody else's requests.
_LONGEST = 4096  # octets of a credential, before its base64
_MOST_PIDS = 1 << 22  # no process of Linux has a higher number

_log = logging.getLogger("pillarbox.users")


class DovecotSettings(Settings):
    """service: as what Dovecot knows us (``%s`` in its configuration). timeout: seconds for an answer."""

    service: str = Field(default="smtp", pattern=r"^[A-Za-z0-9_-]{1,32}$")
    timeout: float = Field(default=30.0, gt=0)


class DovecotUsers(Users):
    """The backend ``dovecot:PATH``; PATH is a socket of its service auth, such as ``/run/dovecot/auth-client``."""

    Settings = DovecotSettings

    def __init__(self, url: str, settings: DovecotSettings) -> None:
        super().__init__(url, settings)
        self._path = local_path(url)
        self._connecting = asyncio.Lock()
        self._connection: _Connection | None = None
        self._closed = False

    async def start(self) -> None:
        """Connect: a socket that is not there, or that speaks something else, is found now."""
        try:
            await self._connected()
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            raise ConfigurationError(f"{self.url}: {_reason(error)}") from error

    def methods(self) -> tuple[str, ...]:
        """Return PLAIN and LOGIN: both give a name and a password, which Dovecot gets as PLAIN."""
        return PASSWORD_METHODS

    async def authenticate(self, auth: AuthRequest, session: Session) -> str | None:
        """Ask Dovecot, which also decides on an authzid (its master users)."""
        credential = [auth.authzid, auth.authcid or auth.username, auth.password]
        message = "\0".join(credential).encode()
        if any("\0" in part for part in credential) or len(message) > _LONGEST:
            return None
        try:
            async with asyncio.timeout(self.settings.timeout):
                answer = await self._asked(list(_fields(session, self.settings.service)), message)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            fields = log_fields(session, "users", "auth")
            _log.error("%s: %s", self.url, _reason(error), extra=fields)
            raise unavailable() from error
        return self._user(answer, session)

    async def close(self) -> None:
        """Close the connection; who still waits is told to come again."""
        self._closed = True
        if self._connection is not None:
            await self._connection.close()

    async def _asked(self, fields: list[str], message: bytes) -> list[str]:
        connection = await self._connected()
        try:
            return await connection.ask(fields, message)
        except (OSError, EOFError):  # Dovecot was reloaded: once more, on a new connection
            return await (await self._connected()).ask(fields, message)

    async def _connected(self) -> _Connection:
        async with self._connecting:
            if self._closed:
                raise EOFError("it is closed")
            if self._connection is None or self._connection.lost:
                async with asyncio.timeout(self.settings.timeout):
                    self._connection = await _Connection.open(self._path)
            return self._connection

    def _user(self, answer: list[str], session: Session) -> str | None:
        verdict, _, *fields = answer
        given = dict(field.partition("=")[::2] for field in fields)
        if verdict == "OK" and (user := _unescaped(given.get("user", ""))) and user.isprintable():
            return user
        # Of temp: "This is a temporary internal failure, e.g. connection was lost to SQL database."
        if "temp" in given or given.get("code") == "temp_fail" or verdict == "OK":
            _log.error(
                "%s: Dovecot has a temporary failure, or names no user",
                self.url,
                extra=log_fields(session, "users", "auth"),
            )
            raise unavailable()
        return None


class _Connection:
    """One connection to Dovecot with its requests under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._waiting: dict[str, asyncio.Future[list[str]]] = {}
        self._numbers = itertools.count(1)
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, path: Path) -> _Connection:
        """Connect and do the handshake; raises OSError, EOFError, and ValueError for what is no Dovecot."""
        connection = cls(*await asyncio.open_unix_connection(str(path)))
        try:
            await connection._greet()
        except BaseException:
            connection._writer.close()
            raise
        connection._task = asyncio.create_task(connection._read(), name="dovecot")
        return connection

    @property
    def lost(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._task is None or self._task.done()

    async def ask(self, fields: list[str], message: bytes) -> list[str]:
        """Return the fields of the answer; raises EOFError where the connection is lost before."""
        if self.lost:
            raise EOFError("the connection was closed")
        # "ID is a connection-specific unique request identifier. It must be a 32bit number, so typically you'd just
        # increment it by one."
        number = str(next(self._numbers) & 0xFFFFFFFF)
        future: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            # Of resp: "This must be the last parameter."
            self._send("AUTH", number, "PLAIN", *fields, "resp=" + b64encode(message).decode())
            return await future
        except asyncio.CancelledError:
            self._send("CANCEL", number)
            raise
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Close; who still waits gets EOFError."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _send(self, *fields: str) -> None:
        self._writer.write("\t".join(fields).encode() + b"\n")

    async def _greet(self) -> None:
        # "Both client and server should check that they support the same major version number." "CPID, SPID and specify
        # client and server PIDs. They should be unique identifiers for the specific process." Those of processes in
        # two containers are not; a random number above them is.
        self._send("VERSION", "1", "1")
        self._send("CPID", str(_MOST_PIDS + secrets.randbelow(1 << 30)))
        mechanisms = set()
        version = ""
        while (line := await self._line())[0] != "DONE":
            name, value, *_ = (*line, "")
            if name == "VERSION":
                version = value
            elif name == "MECH":
                mechanisms.add(value)
        if version != "1":
            raise ValueError(f"Dovecot speaks version {version or '?'} of its protocol, and not 1")
        if "PLAIN" not in mechanisms:
            raise ValueError("Dovecot offers no PLAIN there: add plain to its auth_mechanisms")

    async def _line(self) -> list[str]:
        line = await self._reader.readline()  # ValueError for more than 64 KiB
        if not line.endswith(b"\n"):
            raise EOFError("the connection was closed")
        return line[:-1].decode("utf-8", "replace").split("\t")

    async def _read(self) -> None:
        """Give each answer to who waits for it, until the connection ends."""
        failure: Exception = EOFError("the connection was closed")
        try:
            while True:
                answer = await self._line()
                if answer[0] == "CONT" and len(answer) > 1:
                    # PLAIN has said all it has; an empty answer lets Dovecot come to its end.
                    self._send("CONT", answer[1], "")
                elif answer[0] in ("OK", "FAIL") and len(answer) > 1:
                    future = self._waiting.pop(answer[1], None)
                    if future is not None and not future.done():
                        future.set_result(answer)
        except (OSError, EOFError, ValueError) as error:
            failure = error if isinstance(error, OSError) else EOFError(str(error))
        finally:
            self._writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(failure)
            self._waiting.clear()


def _fields(session: Session, service: str) -> Iterable[str]:
    yield f"service={service}"
    yield "nologin"
    # Of secured: "Remote user has secured transport to auth client (eg. localhost, SSL, TLS)".
    if session.secure:
        yield "secured"
    if session.local_address:
        yield f"lip={session.local_address}"
        yield f"lport={session.local_port}"
    if session.remote_address:
        yield f"rip={session.remote_address}"
        yield f"rport={session.remote_port}"
    yield f"session={session.id}"


def _unescaped(field: str) -> str:
    r"""Undo "tab-escaping", where "\001 is used as the escape character"."""
    first, *others = field.split("\x01")
    special = {"0": "\0", "1": "\x01", "t": "\t", "r": "\r", "l": "\n"}
    return first + "".join(special.get(part[:1], part[:1]) + part[1:] for part in others)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "Dovecot does not answer"
    if isinstance(error, OSError):
        return f"Dovecot's socket: {(error.strerror or str(error)).lower()}"
    return str(error)
