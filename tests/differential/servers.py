"""The servers that are compared: ours, Postfix's smtpd, aiosmtpd and npm's smtp-server, each on a place of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme

from differential.play import Connect, marker
from interop.mta import PATIENCE
from interop.peers import Background, missing, program
from interop.postfix import Postfix
from pillarbox import AuthRequest, MessageStream, Session, SMTPServer
from pillarbox.options import declarations

if TYPE_CHECKING:
    from aiosmtpd.smtp import SMTP, Envelope
    from aiosmtpd.smtp import Session as TheirSession

HOST = "127.0.0.1"
USER, PASSWORD = "alice", "secret"
SIZE = 1_000_000
NODE = Path(__file__).parent.parent.parent / "bench/servers/smtp-server"

# A dialogue may be wrong more often than an ordinary client.
_LIMITS = {
    "max_errors": 1000,
    "max_junk_commands": 1000,
    "max_refused_recipients": 1000,
    "max_auth_failures": 1000,
    "auth_failure_delay": 0.001,
}
UNLIMITED: dict[str, Any] = {name: value for name, value in _LIMITS.items() if name in declarations()}


class Certificate:
    """A key and its certificate, as files and as what they hold."""

    def __init__(self, folder: Path) -> None:
        issued = trustme.CA().issue_cert("localhost")
        self.key, self.cert = folder / "key.pem", folder / "cert.pem"
        issued.private_key_pem.write_to_path(self.key)
        issued.cert_chain_pems[0].write_to_path(self.cert)


def connector(port: int) -> Connect:
    """Return what connects to a port of this machine."""
    return lambda: socket.create_connection((HOST, port), timeout=PATIENCE)


@contextmanager
def _in_a_thread(start: Callable[[], Any]) -> Iterator[int]:
    """Run a server that ``start`` begins, in a loop of its own; yield its port."""
    ready, ports = threading.Event(), list[int]()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with start() as port:
            ports.append(port)
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serve())
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        assert ports, "it did not start"
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE)


# --- Ours


def _on_auth(auth: AuthRequest, session: Session) -> bool:
    return auth.username == USER and auth.validate_password(PASSWORD)


async def _on_data(stream: MessageStream, session: Session) -> str:
    message = await stream.read()
    envelope = session.envelope
    return marker(str(envelope.mail_from), [str(recipient) for recipient in envelope.rcpt_to], message)


@contextmanager
def pillarbox(certificate: Certificate) -> Iterator[Connect]:
    """Run our server."""

    @asynccontextmanager
    async def start() -> Any:
        server = SMTPServer(
            name="mx.example.com",
            disable_reverse_lookup=True,
            auth_optional=True,
            allow_insecure_auth=True,
            hide_dsn=False,
            size=SIZE,
            close_timeout=0.0,
            key=certificate.key,
            cert=certificate.cert,
            on_auth=_on_auth,
            on_data=_on_data,
            **UNLIMITED,
        )
        async with server:
            await server.listen(0, HOST)
            yield int(server.addresses[0][1])

    with _in_a_thread(start) as port:
        yield connector(port)


# --- Postfix

_OPEN = {
    "default_transport": "discard",
    "relay_transport": "discard",
    "mynetworks": "0.0.0.0/0 [::]/0",
    "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
    "disable_vrfy_command": "no",
    "smtpd_peername_lookup": "no",
    "smtpd_error_sleep_time": "0",
    "smtpd_soft_error_limit": "1000",
    "smtpd_hard_error_limit": "1000",
    "smtpd_junk_command_limit": "1000",
    "smtpd_client_connection_count_limit": "0",
    "smtpd_discard_ehlo_keywords": "",  # DSN and CHUNKING too
    "message_size_limit": str(SIZE),
    "smtputf8_enable": "yes",
    # What is the default since 3.9.
    "smtpd_forbid_unauth_pipelining": "yes",
    "smtpd_forbid_bare_newline": "normalize",
    "smtpd_forbid_bare_newline_exclusions": "",
    "smtpd_tls_security_level": "may",
}


@contextmanager
def postfix(certificate: Certificate) -> Iterator[Connect]:
    """Run a Postfix that takes everything and keeps nothing; it is reached by a Unix socket."""
    files = {"smtpd_tls_key_file": certificate.key, "smtpd_tls_cert_file": certificate.cert}
    with Postfix(**_OPEN, **files) as running:
        yield running.connect


# --- aiosmtpd


class _Handler:
    async def handle_DATA(self, server: SMTP, session: TheirSession, envelope: Envelope) -> str:
        assert isinstance(envelope.original_content, bytes)
        return "250 " + marker(str(envelope.mail_from), list(map(str, envelope.rcpt_tos)), envelope.original_content)


def _authenticator(server: SMTP, session: TheirSession, envelope: Envelope, mechanism: str, data: Any) -> Any:
    from aiosmtpd.smtp import AuthResult

    # Not handled: it is aiosmtpd that replies to a failure.
    return AuthResult(success=(data.login, data.password) == (USER.encode(), PASSWORD.encode()), handled=False)


@contextmanager
def aiosmtpd(certificate: Certificate) -> Iterator[Connect]:
    """Run aiosmtpd."""
    try:
        from aiosmtpd.smtp import SMTP
    except ImportError:
        missing("the Python package aiosmtpd is not installed")
    logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # it logs each command that it does not know
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.cert, certificate.key)

    def protocol() -> SMTP:
        return SMTP(
            _Handler(),
            hostname="mx.example.com",
            enable_SMTPUTF8=True,
            data_size_limit=SIZE,
            tls_context=context,
            authenticator=_authenticator,
            auth_require_tls=False,
            command_call_limit=None,
        )

    @asynccontextmanager
    async def start() -> Any:
        server = await asyncio.get_running_loop().create_server(protocol, HOST, 0)
        async with server:
            yield server.sockets[0].getsockname()[1]

    with _in_a_thread(start) as port:
        yield connector(port)


# --- smtp-server


@contextmanager
def smtp_server(certificate: Certificate) -> Iterator[Connect]:
    """Run npm's smtp-server."""
    node = program("node", "nodejs")
    if not (NODE / "node_modules/smtp-server").is_dir():
        missing("smtp-server is not installed (npm ci --prefix bench/servers/smtp-server)")
    script = Path(__file__).parent / "server.mjs"
    arguments: list[str | Path] = [node, script, NODE, certificate.key, certificate.cert]
    with Background(*arguments, folder=certificate.key.parent) as running:
        yield connector(running.port())


THEIRS = {"Postfix": postfix, "aiosmtpd": aiosmtpd, "smtp-server": smtp_server}
