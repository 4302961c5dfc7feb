"""HAProxy in front of the server: PROXY headers as the program that they come from sends them."""

from __future__ import annotations

import smtplib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from interop.conftest import Authority, LoopFactory
from interop.peers import HOST, RECIPIENT, SENDER, SIMPLE, Server, program
from pillarbox import ProxyInfo, Session

CONFIGURATION = """
defaults
  mode tcp
  timeout connect 10s
  timeout client 20s
  timeout server 20s
listen plain
  bind fd@{plain}
  unique-id-format ab-%cp
  server mail {target} {sends}
listen tls
  bind fd@{tls} ssl crt {certificate} ca-file {ca} verify optional
  unique-id-format ab-%cp
  server mail {target} {sends}
"""
V2 = "send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,crc32c,unique-id,authority"


@dataclass
class Front:
    """HAProxy's two ports, and the sessions of the server behind it."""

    plain: int
    tls: int
    sessions: list[Session]
    server: Server


def listening(stack: ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_server((HOST, 0)))


@contextmanager
def haproxy(
    sends: str, folder: Path, authority: Authority, loop_factory: LoopFactory, **options: Any
) -> Iterator[Front]:
    """Run HAProxy on sockets that are open already, so that nobody has to wait for it."""
    path = program("haproxy", "haproxy")
    sessions: list[Session] = []
    with ExitStack() as stack:
        options = {"use_proxy": [HOST], "on_connect": sessions.append, "allow_insecure_auth": False} | options
        server = stack.enter_context(Server(loop_factory, **authority.options, **options))
        plain, tls = listening(stack), listening(stack)
        certificate = folder / "front.pem"
        certificate.write_bytes(b"".join([authority.options["key"], authority.options["cert"]]))  # type: ignore[list-item]
        text = CONFIGURATION.format(
            plain=plain.fileno(),
            tls=tls.fileno(),
            certificate=certificate,
            ca=authority.file,
            target=f"{HOST}:{server.port}",
            sends=sends,
        )
        (folder / "haproxy.cfg").write_text(text)
        process = subprocess.Popen(
            [path, "-db", "-f", str(folder / "haproxy.cfg")],
            pass_fds=[plain.fileno(), tls.fileno()],
            stdin=subprocess.DEVNULL,
        )
        try:
            yield Front(plain.getsockname()[1], tls.getsockname()[1], sessions, server)
        finally:
            process.kill()
            process.wait(30)


def deliver(client: smtplib.SMTP) -> tuple[str, int]:
    """Deliver a message and return where the client was."""
    assert client.sock is not None
    here: tuple[str, int] = client.sock.getsockname()[:2]
    client.sendmail(SENDER, [RECIPIENT], SIMPLE)
    client.quit()
    return here


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.file))


@pytest.mark.proves("HAProxy", "PROXY v1")
def test_version_1(tmp_path: Path, authority: Authority, loop_factory: LoopFactory) -> None:
    with haproxy("send-proxy", tmp_path, authority, loop_factory) as front:
        here = deliver(smtplib.SMTP(HOST, front.plain, timeout=30))
        (session,) = front.sessions
    assert (session.remote_address, session.remote_port) == here
    assert session.local_port == front.plain
    assert session.proxy == ProxyInfo(1)


@pytest.mark.proves("HAProxy", "PROXY v2", "PROXY v2 TLVs", "PROXY v2 CRC-32C")
def test_version_2(tmp_path: Path, authority: Authority, loop_factory: LoopFactory) -> None:
    with haproxy(V2, tmp_path, authority, loop_factory) as front:
        with smtplib.SMTP(HOST, front.plain, timeout=30) as client:
            client.ehlo()
            assert client.has_extn("starttls")
            assert not client.has_extn("auth")
            here = deliver(client)
        (session,) = front.sessions
    assert (session.remote_address, session.remote_port) == here
    assert session.proxy is not None
    assert session.proxy.unique_id == f"ab-{here[1]}".encode()
    assert (session.proxy.version, session.proxy.local, session.proxy.tls, session.proxy.tlvs) == (2, False, None, ())
    assert front.server.delivery.transmission_type == "ESMTP"


@pytest.mark.proves("HAProxy", "TLS at the proxy")
def test_tls_at_the_proxy(tmp_path: Path, authority: Authority, loop_factory: LoopFactory) -> None:
    with haproxy(V2, tmp_path, authority, loop_factory) as front:
        with smtplib.SMTP_SSL("localhost", front.tls, timeout=30, context=trusting(authority)) as client:
            client.ehlo()
            assert not client.has_extn("starttls")
            assert client.has_extn("auth")
            version, cipher = client.sock.version(), client.sock.cipher()[0]  # type: ignore[union-attr]
            deliver(client)
        (session,) = front.sessions
    assert front.server.delivery.transmission_type == "ESMTPS"
    assert session.proxy is not None
    assert session.proxy.tls is not None
    tls = session.proxy.tls
    assert (tls.version, tls.cipher) == (version, cipher)
    assert (tls.certificate_on_connection, tls.authorized) == (False, False)
    assert (session.proxy.authority, session.servername) == ("localhost", "localhost")
    assert tls.key_algorithm
    assert tls.signature_algorithm


@pytest.mark.proves("HAProxy", "client certificates at the proxy")
def test_a_client_certificate_at_the_proxy(tmp_path: Path, authority: Authority, loop_factory: LoopFactory) -> None:
    ours = trustme.CA()
    issued = ours.issue_cert("client.example", common_name="Änn Example")
    ours.cert_pem.write_to_path(tmp_path / "clients.pem")
    context = trusting(authority)
    with issued.private_key_and_cert_chain_pem.tempfile() as file:
        context.load_cert_chain(file)
    known = Authority(tmp_path / "clients.pem", authority.stranger, authority.options)
    with haproxy(V2, tmp_path, known, loop_factory) as front:
        with smtplib.SMTP_SSL("localhost", front.tls, timeout=30, context=context) as client:
            deliver(client)
        (session,) = front.sessions
    assert session.proxy is not None
    assert session.proxy.tls is not None
    tls = session.proxy.tls
    assert (tls.common_name, tls.certificate_on_connection, tls.verify, tls.authorized) == (
        "Änn Example",
        True,
        0,
        True,
    )


@pytest.mark.proves("HAProxy", "PROXY v2 LOCAL")
def test_its_health_checks_are_its_own(tmp_path: Path, authority: Authority, loop_factory: LoopFactory) -> None:
    seen: list[Session] = []
    checked = threading.Event()

    def on_connect(session: Session) -> None:
        seen.append(session)
        checked.set()

    sends = f"{V2} check check-send-proxy inter 200ms"
    with haproxy(sends, tmp_path, authority, loop_factory, on_connect=on_connect) as front:
        front.server.tolerated = (Exception,)  # a check leaves as soon as it is connected
        assert checked.wait(30)
    assert seen[0].proxy == ProxyInfo(2, local=True)
    assert seen[0].remote_address == HOST


@pytest.mark.proves("HAProxy", "PROXY header before implicit TLS")
def test_tls_through_the_proxy(tmp_path: Path, authority: Authority, loop_factory: LoopFactory) -> None:
    with haproxy(V2, tmp_path, authority, loop_factory, secure=True) as front:
        with smtplib.SMTP_SSL("localhost", front.plain, timeout=30, context=trusting(authority)) as client:
            deliver(client)
        (session,) = front.sessions
    assert session.tls is not None
    assert front.server.delivery.transmission_type == "ESMTPS"
