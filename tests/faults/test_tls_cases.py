"""Client certificates and server names, case by case: who gets in, who learns what, and that nothing else runs.

The clients are blocking ones in threads, so that each says what it saw: at its handshake, or at its first read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from faults.authority import CLIENT, SERVER, Authority, Identity
from pillarbox import HandshakeFailed, MessageStream, Session, TLSInfo
from support import TIMEOUT, Served, on_both_loops, recorded, serving

FORMS = pytest.mark.parametrize("secure", [False, True], ids=["starttls", "implicit"])
VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
MESSAGE = (
    b"EHLO client.example\r\n",
    b"MAIL FROM:<a@example.org>\r\n",
    b"RCPT TO:<b@example.com>\r\n",
    b"DATA\r\n",
    b"Subject: x\r\n\r\nx\r\n.\r\n",
)


@lru_cache
def authority(name: str = "ours") -> Authority:
    return Authority(f"Authority {name}")


@lru_cache
def server_identity(name: str = "localhost") -> Identity:
    return authority("of servers").issue(name, SERVER)


@lru_cache
def client_identity(kind: str) -> Identity | None:
    if kind == "self-signed":
        return Authority("ann").identity
    if kind == "none":
        return None
    # The wrong one has the same name, and another key.
    issuer = Authority("Authority ours") if kind == "wrong authority" else authority()
    purpose = SERVER if kind == "wrong purpose" else CLIENT
    return issuer.issue("ann.example", purpose, days=-1 if kind == "expired" else 80)


def client_context(folder: Path, kind: str = "none", version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=authority("of servers").identity.cert)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if (identity := client_identity(kind)) is not None:
        identity.show(context, folder)
    return context


# --- A client that tells what it saw


@dataclass
class Seen:
    """What a client saw."""

    handshake: str = ""  # what its own handshake failed with
    read: str = ""  # what its first read failed with; "closed" where it ended
    replies: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)  # in the certificate of the server
    session: ssl.SSLSession | None = None
    reused: bool | None = None


def connected(served: Served) -> socket.socket:
    """Connect, and with STARTTLS go to the moment where the handshake begins."""
    plain = socket.create_connection(served.address, TIMEOUT)
    if not served.server.options.secure:
        for said, code in ((b"", b"220"), (b"EHLO client.example\r\n", b"250"), (b"STARTTLS\r\n", b"220")):
            plain.sendall(said)
            assert plain.recv(4096).startswith(code)
    return plain


def visit(
    served: Served,
    context: ssl.SSLContext,
    name: str | None,
    *,
    session: ssl.SSLSession | None = None,
    hasty: bool = False,
) -> Seen:
    """Do a handshake and send a message; ``hasty``: all of it at once, before anything is read."""
    seen = Seen()
    with connected(served) as plain:
        try:
            tls = context.wrap_socket(plain, server_hostname=name, session=session)
        except OSError as error:
            seen.handshake = _reason(error)
            return seen
        with tls, contextlib.suppress(OSError):
            seen.names, seen.reused = _names(tls), tls.session_reused
            _converse(tls, seen, greeted=served.server.options.secure, hasty=hasty)
            seen.session = tls.session
            tls.unwrap()
    return seen


def _converse(tls: ssl.SSLSocket, seen: Seen, *, greeted: bool, hasty: bool) -> None:
    try:
        if hasty:  # before the server may have looked at the certificate (TLS 1.3)
            tls.sendall(b"".join(MESSAGE))
        if greeted or hasty:
            _hear(tls, seen)
        for said in MESSAGE:
            tls.sendall(said)
            _hear(tls, seen)
    except OSError as error:
        seen.read = _reason(error)


def _hear(tls: ssl.SSLSocket, seen: Seen) -> None:
    if not (octets := tls.recv(4096)):
        raise ConnectionResetError("closed")
    seen.replies.append(octets[:3].decode())


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or "closed")


def _names(tls: ssl.SSLSocket) -> set[str]:
    der = tls.getpeercert(binary_form=True)
    assert der is not None
    found = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return set(found.value.get_values_for_type(x509.DNSName))


# --- A server that tells what it did


@dataclass
class Told:
    """What reached the handlers."""

    called: list[str] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def facts(self) -> list[TLSInfo]:
        """Return what ``session.tls`` says of each handshake."""
        return [session.tls for session in self.sessions if session.tls is not None]

    def handlers(self) -> dict[str, Any]:
        async def on_data(stream: MessageStream, session: Session) -> None:
            self.called.append("on_data")
            await stream.read()

        def on_secure(tls: object, session: Session) -> None:
            self.called.append("on_secure")
            self.sessions.append(session)

        def on_mail_from(address: object, session: Session) -> None:
            self.called.append("on_mail_from")

        def on_error(error: Exception, session: Session | None) -> None:
            self.errors.append(error)
            self.over.set()

        return {"on_data": on_data, "on_secure": on_secure, "on_mail_from": on_mail_from, "on_error": on_error}


# --- Client certificates

KINDS = ("none", "good", "self-signed", "expired", "wrong authority", "wrong purpose")


def lets_in(kind: str, *, required: bool) -> bool:
    return kind == "good" or (kind == "none" and not required)


def asking(*, required: bool, secure: bool) -> dict[str, Any]:
    """Return the options of a server that asks for a certificate."""
    known = {"request_cert": True, "reject_unauthorized": required, "ca": authority().identity.cert}
    return {**known, "secure": secure, **server_identity().options}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("required", [True, False], ids=["required", "optional"])
@FORMS
@VERSIONS
@on_both_loops
async def test_client_certificates(
    kind: str, required: bool, secure: bool, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    told, context = Told(), client_context(tmp_path, kind, version)
    let_in = lets_in(kind, required=required)
    async with serving(**asking(required=required, secure=secure), **told.handlers()) as served:
        seen = await asyncio.to_thread(visit, served, context, "localhost", hasty=not let_in)
        if not let_in:
            await asyncio.wait_for(told.over.wait(), TIMEOUT)
    if let_in:
        assert seen.replies == [*(["220"] if secure else []), "250", "250", "250", "354", "250"]
        assert told.called == ["on_secure", "on_mail_from", "on_data"]
        assert [(tls.authorized, tls.peer_certificate is not None) for tls in told.facts()] == [(kind == "good",) * 2]
        return
    assert told.called == seen.replies == []
    assert [type(error) for error in told.errors] == [HandshakeFailed]
    # RFC 8446 4.4.4: the client is done when it has sent its Finished, so that it learns of it at its first read. No
    # alert tells it why: neither event loop sends the one that OpenSSL has written.
    if version == ssl.TLSVersion.TLSv1_3:
        assert (seen.handshake, seen.read) == ("", "closed")
    else:
        assert seen.handshake


@pytest.mark.parametrize("kind", KINDS)
@FORMS
@on_both_loops
async def test_what_is_logged_of_a_client_certificate(kind: str, secure: bool, tmp_path: Path) -> None:
    context = client_context(tmp_path, kind)
    with recorded(logging.INFO) as records:
        async with serving(**asking(required=True, secure=secure)) as served:
            await asyncio.to_thread(visit, served, context, "localhost", hasty=kind != "good")
    said = [f"{record.levelname} {record.getMessage()}" for record in records if "TLS" in record.getMessage()]
    reason = "PEER_DID_NOT_RETURN_A_CERTIFICATE" if kind == "none" else "CERTIFICATE_VERIFY_FAILED"
    assert said == ([] if kind == "good" else [f"INFO TLS handshake failed: {reason}"])
    assert [getattr(record, "address", "") for record in records if "TLS" in record.getMessage()] in ([], ["127.0.0.1"])


# --- Server names

A, B = "a.example", "xn--bcher-kva.example"
LONGEST = ".".join(["q" * 61] * 4)[:-1] + "q"  # 247 octets: RFC 1035 2.3.4 has "255 octets or less" for all of it


def hosting(*, secure: bool, **more: Any) -> dict[str, Any]:
    """Return the options of a server with several names."""
    hosts = {"A.example": server_identity(A).options, "bücher.example": server_identity(B).options}
    return {"secure": secure, "sni_options": hosts, **server_identity().options, **more}


@pytest.mark.parametrize(
    ("asked", "shown", "recorded_name"),
    [
        (A, A, A),
        ("A.EXAMPLE", A, A),
        (B, B, B),
        ("bücher.example", B, B),
        ("unknown.example", "localhost", "unknown.example"),
        ("a.example.org", "localhost", "a.example.org"),
        (LONGEST, "localhost", LONGEST),
        (None, "localhost", None),
    ],
)
@FORMS
@VERSIONS
@on_both_loops
async def test_server_names(
    asked: str | None, shown: str, recorded_name: str | None, secure: bool, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    told, context = Told(), client_context(tmp_path, version=version)
    async with serving(**hosting(secure=secure), **told.handlers()) as served:
        seen = await asyncio.to_thread(visit, served, context, asked)
    assert seen.names == {shown}
    assert seen.replies[-1] == "250"
    assert [(session.servername, tls.servername) for session, tls in zip(told.sessions, told.facts(), strict=True)] == [
        (recorded_name, recorded_name)
    ]


def hello(name: bytes) -> bytes:
    """Return a ClientHello for a name that Python's own client would not send."""
    placeholder, outgoing = b"q" * 60 + b".example", ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=placeholder.decode()).do_handshake()
    sent = outgoing.read()
    assert sent.count(placeholder) == 1
    return sent.replace(placeholder, name.ljust(len(placeholder), b"q"))


@pytest.mark.parametrize(
    "name",
    [b"b\xfccher.example", b"\xff" * 68, b"../../etc/passwd", b"a\r\nX: y", b"a.example\0.", b"*.example", b".."],
    ids=repr,
)
@FORMS
# Python decodes the name before it asks us: for octets above 127 it writes a traceback to standard error, and an alert.
@pytest.mark.filterwarnings("ignore:Exception ignored in. b:pytest.PytestUnraisableExceptionWarning")
@on_both_loops
async def test_octets_that_are_no_name(name: bytes, secure: bool, tmp_path: Path) -> None:
    told, asked = Told(), []

    def meet(served: Served) -> bytes:
        with connected(served) as plain:
            plain.settimeout(TIMEOUT)
            plain.sendall(hello(name))
            return plain.recv(5)

    def sni_callback(server_name: str) -> None:
        asked.append(server_name)

    options = hosting(secure=secure, sni_callback=sni_callback)
    async with serving(**options, **told.handlers()) as served:
        first = await asyncio.to_thread(meet, served)
        assert first[:1] in (b"\x16", b"\x15", b"")  # it goes on, it says what is wrong, or it closes
        await asyncio.wait_for(told.over.wait(), TIMEOUT)
        seen = await asyncio.to_thread(visit, served, client_context(tmp_path), A)
    assert seen.names == {A}
    assert asked == [A]  # nobody was asked about what is no name
    assert [session.servername for session in told.sessions] == [A]


def _raise(_: str) -> ssl.SSLContext:
    raise LookupError("the table is gone")


def _other_context(_: str) -> ssl.SSLContext:
    """Return a context that asks for less than the server: only its certificate and authorities count."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        server_identity("chosen.example").show(context, Path(folder))
    return context


@pytest.mark.parametrize(
    ("sni_callback", "shown", "problems"),
    [(_raise, A, 1), (lambda _: None, A, 0), (_other_context, "chosen.example", 0), (lambda _: "a.pem", A, 1)],
    ids=["raises", "none", "another", "no context"],
)
@FORMS
@on_both_loops
async def test_what_a_callback_does(sni_callback: Any, shown: str, problems: int, secure: bool, tmp_path: Path) -> None:
    with recorded(logging.ERROR) as records:
        async with serving(**hosting(secure=secure, sni_callback=sni_callback)) as served:
            seen = await asyncio.to_thread(visit, served, client_context(tmp_path), A)
    assert seen.names == {shown}
    assert seen.replies[-1] == "250"
    assert [record.getMessage() for record in records] == [
        f"sni_callback failed for {A}, the default is used"
    ] * problems


@FORMS
@on_both_loops
async def test_another_context_asks_for_no_less(secure: bool, tmp_path: Path) -> None:
    """A context of a callback that asks for no certificate does not let in who has none."""
    told = Told()
    options = {**asking(required=True, secure=secure), "sni_callback": _other_context}
    async with serving(**options, **told.handlers()) as served:
        seen = await asyncio.to_thread(visit, served, client_context(tmp_path), A, hasty=True)
        await asyncio.wait_for(told.over.wait(), TIMEOUT)
    assert told.called == seen.replies == []


@pytest.mark.parametrize("asks", [False, True], ids=["no client certificate", "client certificate"])
@FORMS
@VERSIONS
@on_both_loops
async def test_resumption_under_another_name(asks: bool, secure: bool, version: ssl.TLSVersion, tmp_path: Path) -> None:
    told, context = Told(), client_context(tmp_path, "good", version)
    options = hosting(secure=secure) | (asking(required=True, secure=secure) if asks else {})
    async with serving(**options, **told.handlers()) as served:
        first = await asyncio.to_thread(visit, served, context, A)
        again = await asyncio.to_thread(visit, served, context, A, session=first.session)
        other = await asyncio.to_thread(visit, served, context, B, session=first.session)
    names = [session.servername for session in told.sessions]
    assert first.reused is False
    if version == ssl.TLSVersion.TLSv1_2:
        # OpenSSL resumes a session of TLS 1.2 as that of the name it began with.
        assert (again.reused, other.reused, names) == (True, True, [A, A, A])
    elif asks:  # no tickets: who shows itself to one name's authorities has to do it again for another's
        assert (again.reused, other.reused, names) == (False, False, [A, A, B])
        assert other.names == {B}
    else:  # a ticket of TLS 1.3 is good for every name; the certificate that was checked is the first one's
        assert (again.reused, other.reused, names) == (True, True, [A, A, B])
    assert [tls.authorized for tls in told.facts()] == [asks] * 3
    assert other.replies[-1] == "250"
