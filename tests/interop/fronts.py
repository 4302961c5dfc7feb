"""What the tests with real fronts share: the server behind them, the client before them, their processes and ports."""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interop.peers import HOST, RECIPIENT, SENDER, SIMPLE, Server
from pillarbox import Reject

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from pillarbox import AuthRequest, MessageStream, ProxyInfo, Session, SMTPServer

# Where clients come from: what the server says of it can only have come through the front.
CLIENT = "127.0.0.9"
HELLO = "client.example.org"


# --- Behind the front


@dataclass(frozen=True)
class Seen:
    """The client of a message, as the server saw it."""

    remote: tuple[str, int]
    local: tuple[str, int]
    client_hostname: str
    hello: tuple[str | None, str | None]
    secure: bool
    x_client: dict[str, str]
    proxy: ProxyInfo | None


class Backend(Server):
    """The server, as one that stands behind a front: it notes who it is told the client is.

    It listens also with ``secured``, on ``secured_port``. ``connects`` and ``closes`` hold the addresses that
    ``on_connect`` and ``on_close`` were called for.
    """

    secured_port: int

    def __init__(self, loop_factory: Callable[..., Any], **options: Any) -> None:
        self.seen: list[Seen] = []
        self.connects: list[str] = []
        self.closes: list[str] = []
        notes = {
            "on_connect": lambda session: self.connects.append(session.remote_address),
            "on_close": lambda session: self.closes.append(session.remote_address),
        }
        super().__init__(loop_factory, **notes | options)

    @property
    def client(self) -> Seen:
        """The client of the only message."""
        assert len(self.seen) == 1
        return self.seen[0]

    async def _listen(self, server: SMTPServer) -> None:
        await super()._listen(server)
        self.secured_port = int((await server.listen(0, HOST, secure=True, secured=True))[1])

    def _on_auth(self, auth: AuthRequest, session: Session) -> str | None:
        if auth.method == "XCLIENT":  # the front has seen the password
            session.state["method"] = auth.method
            return auth.username
        return super()._on_auth(auth, session)

    async def _on_data(self, stream: MessageStream, session: Session) -> list[Reject | None] | None:
        answer = await super()._on_data(stream, session)
        self.seen.append(
            Seen(
                remote=(session.remote_address, session.remote_port),
                local=(session.local_address, session.local_port),
                client_hostname=session.client_hostname,
                hello=(session.opening_command, session.host_name_appears_as),
                secure=session.secure,
                x_client=dict(session.x_client),
                proxy=session.proxy,
            )
        )
        return answer


def not_let_in(session: Session) -> None:
    """Refuse the client, but not the front that speaks for it."""
    if session.remote_address == CLIENT:
        raise Reject(554, "Go away")


def commands(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the commands that the server got, as its transcript has them."""
    said = (record.getMessage() for record in caplog.get_records("call"))
    return [line[3:].rstrip() for line in said if line.startswith("C: ")]


# --- Before the front


@contextmanager
def connected(port: int, *, host: str = HOST, source: str = CLIENT) -> Iterator[smtplib.SMTP]:
    """Connect a client from its own address."""
    with smtplib.SMTP(host, port, local_hostname=HELLO, timeout=30, source_address=(source, 0)) as client:
        yield client


@contextmanager
def connected_by_tls(port: int, trusted: Path, *, certificate: Path | None = None) -> Iterator[smtplib.SMTP_SSL]:
    """Connect a client by implicit TLS; it checks the server's certificate, and may have one of its own."""
    context = trusting(trusted)
    if certificate is not None:
        context.load_cert_chain(certificate)
    with smtplib.SMTP_SSL(
        "localhost", port, local_hostname=HELLO, timeout=30, source_address=(CLIENT, 0), context=context
    ) as client:
        yield client


def trusting(authority: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority))


def address_of(client: smtplib.SMTP) -> tuple[str, int]:
    """Return the address that a client has of its own, and so the one that the server has to see."""
    assert client.sock is not None
    name: tuple[str, int] = client.sock.getsockname()[:2]
    return name


def deliver(client: smtplib.SMTP, to: Iterable[str] = (RECIPIENT,), content: bytes = SIMPLE) -> dict[str, Any]:
    """Send a message; return the recipients that were refused."""
    return client.sendmail(SENDER, list(to), content)


# --- The front


@contextmanager
def reserved_port(host: str = HOST) -> Iterator[int]:
    """Keep a port for a program that wants to be told one; it sets SO_REUSEADDR, as servers do."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as place:
        # Bound but not listening: no one gets this port who asks for any, yet a listener may have it.
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, 0))
        yield place.getsockname()[1]


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True
