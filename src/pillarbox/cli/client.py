"""A connection to another server, for ``send`` and ``probe``: how it is opened, and made TLS, is decided here.

The protocol is the standard library's: of the client libraries ``smtplib`` alone speaks LMTP and gives each reply as it
came, and a command that waits for one server gains nothing from asyncio.
"""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar

from pillarbox.cli.status import Failure, Status
from pillarbox.cli.transcript import Transcript, plain

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from pillarbox.cli.peer import Peer

PATIENCE = (10.0, 60.0)  # seconds: to connect and be greeted, and for each reply

LONGEST_REPLY = 65536  # octets

_Result = TypeVar("_Result")
Answer = tuple[int, bytes]  # a reply: its code, and its lines
Context = Callable[[], ssl.SSLContext]  # asked once it is known who is there


class Client(smtplib.SMTP):
    """A connection to ``peer``. Use it as a context manager; ``open`` connects. What goes wrong raises ``Failure``."""

    def __init__(
        self, peer: Peer, transcript: Transcript | None = None, *, patience: tuple[float, float] = PATIENCE
    ) -> None:
        super().__init__(local_hostname=own_name())  # does not connect yet
        self.peer = peer
        self.transcript = transcript or Transcript(shown=False)
        self._to_connect, self._to_reply = patience
        self.times: dict[str, float] = {}  # seconds that each step took
        self.greeting: Answer = (-1, b"")
        self.command_encoding = "utf-8"  # of ASCII the same bytes
        if peer.lmtp:
            self.ehlo_msg = "lhlo"

    # --- From connection to greeting

    def open(self, context: Context) -> Answer:
        """Connect and return the greeting, which may be a refusal; ``context`` is for implicit TLS."""
        self.sock = self._timed("connect", self._connected)
        self.file = None
        if self.peer.implicit_tls:
            self._shake_hands(context())
        self.greeting = self._timed("greeting", self._greeted)
        return self.greeting

    def _connected(self) -> socket.socket:
        self.transcript.note(f"connecting to {self.peer}")
        try:
            if self.peer.path:
                return _to_path(self.peer.path, self._to_connect)
            return socket.create_connection((self.peer.host, self.peer.port), self._to_connect)
        except (OSError, ValueError) as error:  # ValueError: a name that IDNA cannot encode
            raise Failure(f"cannot connect to {self.peer}: {_reason(error)}", Status.UNREACHABLE) from error

    def _greeted(self) -> Answer:
        try:
            code, text = self.getreply()
        except smtplib.SMTPServerDisconnected as error:
            hint = "" if self.peer.implicit_tls else "; if it waits for TLS, write smtps://"
            problem = f"{self.peer} sent no greeting ({error}){hint}"
            raise Failure(problem, Status.PROTOCOL) from error
        if code < 0:
            raise Failure(f"{self.peer} does not speak SMTP", Status.PROTOCOL)
        self.wait_up_to(self._to_reply)
        return code, text

    # --- TLS

    @property
    def tls(self) -> ssl.SSLSocket | None:
        """The connection, where it is TLS."""
        return self.sock if isinstance(self.sock, ssl.SSLSocket) else None

    @property
    def local(self) -> bool:
        """Whether the server is on this host, where nobody sits in between."""
        if self.peer.path:
            return True
        return ip_address(self._socket.getpeername()[0].partition("%")[0]).is_loopback

    def upgrade(self, context: Context) -> Answer:
        """Say STARTTLS; return the reply, TLS is there if it is 220. What EHLO said before no longer holds.

        A certificate that does not verify raises ssl.SSLCertVerificationError, as with ``open``.
        """
        code, text = self.docmd("STARTTLS")
        if code == 220:
            # RFC 3207 4.2: "The client MUST discard any knowledge obtained from the server, such as the list of SMTP
            # service extensions, which was not obtained from the TLS negotiation itself." What is read but not yet
            # used goes too: it came in plaintext.
            self.file = None
            self.ehlo_resp = self.helo_resp = None
            self.esmtp_features, self.does_esmtp = {}, False
            self._shake_hands(context())
        return code, text

    def _shake_hands(self, context: ssl.SSLContext) -> None:
        plaintext = self._socket
        name = self.peer.host or "localhost"
        try:
            self.sock = self._timed("tls", lambda: context.wrap_socket(plaintext, server_hostname=name))
        except ssl.SSLCertVerificationError:
            self.close()
            raise  # what that means depends on who asks
        except (OSError, ValueError) as error:
            self.close()
            raise Failure(f"TLS with {self.peer} failed: {_tls_reason(error)}", Status.PROTOCOL) from error
        self.transcript.note(f"TLS: {self.sock.version()}, {(self.sock.cipher() or ('?',))[0]}")

    # --- The conversation

    def hello(self) -> Answer:
        """Say EHLO (LHLO), or HELO to a server that is older; return the reply to the last of them."""
        answer = self._timed("ehlo", self.ehlo)
        return answer if answer[0] == 250 or self.peer.lmtp or answer[0] == 421 else self.helo()

    def putcmd(self, cmd: str, args: str = "") -> None:
        """Send a command, and show it."""
        verb, _, rest = cmd.partition(" ") if not args else (cmd, "", args)
        self.transcript.command(verb, rest)
        super().putcmd(cmd, args)

    def takes(self, blocks: Iterable[bytes]) -> bool:
        """Send a message; False where the server went or stopped reading: it may have said why, see ``getreply``."""
        try:
            for block in blocks:
                self._socket.sendall(block)
        except OSError:
            return False
        return True

    def getreply(self) -> Answer:
        """Read a reply, and show it."""
        connection = self._socket
        patience = connection.gettimeout()
        self.file = _Lines(self.file or connection.makefile("rb"), connection)
        try:
            code, text = super().getreply()
        finally:
            if connection.fileno() >= 0:  # smtplib closes what does not answer
                connection.settimeout(patience)
        self.transcript.reply(code, text)
        return code, text

    def wait_up_to(self, seconds: float | None = None) -> None:
        """Wait so long, and no longer, for each reply from now on; None: as long as for any."""
        self._socket.settimeout(self._to_reply if seconds is None else seconds)

    def leave(self) -> None:
        """Say QUIT, where there is still somebody to say it to."""
        if self.sock is not None:
            with suppress(smtplib.SMTPException, OSError):
                self.docmd("QUIT")
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    @property
    def _socket(self) -> socket.socket:
        if self.sock is None:
            raise smtplib.SMTPServerDisconnected("the connection is closed")
        return self.sock

    def _timed(self, step: str, do: Callable[[], _Result]) -> _Result:
        begin = time.monotonic()
        try:
            return do()
        finally:
            self.times[step] = time.monotonic() - begin


class _Lines:
    """The lines of one reply, where smtplib reads them: it has an end, and comes in time, if only in small pieces."""

    def __init__(self, file: Any, connection: socket.socket) -> None:
        self.file: Any = file.file if isinstance(file, _Lines) else file
        self._connection = connection
        patience = connection.gettimeout()  # for the whole reply; the socket has it for each piece
        self._deadline = None if patience is None else time.monotonic() + patience
        self._left = LONGEST_REPLY

    def readline(self, limit: int) -> bytes:
        if self._left <= 0:
            raise OSError("the reply does not end")
        line = b""
        while len(line) < limit and not line.endswith(b"\n"):
            ahead = self._ahead()
            if not ahead:
                break
            line += self.file.read(min(ahead.find(b"\n") + 1 or len(ahead), limit - len(line)))
        self._left -= len(line)
        return line

    def _ahead(self) -> bytes:
        """Return what has come, after waiting for it; nothing at the end."""
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._connection.settimeout(left)
        ahead: bytes = self.file.peek(1)
        return ahead

    def close(self) -> None:
        self.file.close()


def _to_path(path: str, patience: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(patience)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def tls_context(*, verified: bool) -> ssl.SSLContext:
    """Return a client's context; one that does not verify also lets any name pass."""
    context = ssl.create_default_context()
    if not verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def own_name() -> str:
    """Return what EHLO says: this host's name, or an address literal where that is none (RFC 5321 4.1.4)."""
    name = socket.gethostname()
    return name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name) else "[127.0.0.1]"


def told(answer: Answer) -> str:
    """Return a reply as one line of text."""
    code, text = answer
    return f"{code} {plain(b' '.join(text.splitlines()))}".rstrip()


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    text = str(getattr(error, "strerror", None) or error)
    return text[:1].lower() + text[1:]


def _tls_reason(error: OSError | ValueError) -> str:
    reason = getattr(error, "reason", None)
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return "the server does not speak TLS here (smtp:// is plaintext first, with STARTTLS)"
    if isinstance(error, ConnectionError | ssl.SSLEOFError):
        return "the server closed the connection"
    return str(reason).replace("_", " ").lower() if reason else _reason(error)
