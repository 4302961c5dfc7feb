"""nginx as a mail proxy before the server: XCLIENT with and without LOGIN, its PROXY header, its AUTH.

nginx asks an HTTP server whom it may let in, and where to: here that is one of the test's own.
"""

from __future__ import annotations

import re
import smtplib
import socket
import socketserver
import struct
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from interop.conftest import Authority
from interop.fronts import (
    CLIENT,
    HELLO,
    Backend,
    address_of,
    commands,
    connected,
    deliver,
    has_ipv6,
    not_let_in,
    reserved_port,
    trusting,
)
from interop.peers import (
    BIG,
    HOST,
    NOBODY,
    PASSWORD,
    RECIPIENT,
    SENDER,
    TRICKY,
    USER,
    Background,
    missing,
    program,
    run,
)

NGINX = "nginx"
NAME = "nginx.example.net"
LOGIN, NO_LOGIN = "smtp_auth plain login;", "smtp_auth none;"

Behind = Callable[..., Backend]


# --- nginx, and whom it asks


class Gatekeeper(ThreadingHTTPServer):
    """Answers nginx's questions (ngx_mail_auth_http_module): lets in who knows the password, or says none is needed."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__((HOST, 0), Question)
        self.backend = port
        self.asked: list[Mapping[str, str]] = []


class Question(BaseHTTPRequestHandler):
    server: Gatekeeper

    def do_GET(self) -> None:
        self.server.asked.append(dict(self.headers.items()))
        self.send_response(200)
        for name, value in self._answer().items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self) -> dict[str, str]:
        if self.headers["Auth-Method"] != "none" and self.headers["Auth-Pass"] != PASSWORD:
            return {"Auth-Status": "Invalid login or password", "Auth-Error-Code": "535 5.7.8"}
        return {"Auth-Status": "OK", "Auth-Server": HOST, "Auth-Port": str(self.server.backend)}

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Nginx:
    """A running nginx: where it listens, and what it asked."""

    port: int
    asked: list[Mapping[str, str]]


def mail_module() -> Path:
    """Return the path of the module that Debian has in a package of its own."""
    options = run([program("nginx", "nginx"), "-V"]).output
    folder = re.search(r"--modules-path=(\S+)", options)
    assert folder is not None, options
    file = Path(folder[1], "ngx_mail_module.so")
    return file if file.exists() else missing("nginx has no mail module (Debian package libnginx-mod-mail)")


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Run a server of the standard library in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="server")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def nginx(folder: Path, backend: int, *lines: str, host: str = HOST) -> Iterator[Nginx]:
    """Run nginx as a proxy for SMTP, with these lines in its server's block."""
    place = f"[{host}]" if ":" in host else host
    module = mail_module()
    with reserved_port(host) as port, Gatekeeper(backend) as gatekeeper:
        (folder / "nginx.conf").write_text(f"""
load_module {module};
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr notice;
events {{
    worker_connections 64;
}}
mail {{
    server_name {NAME};
    auth_http {HOST}:{gatekeeper.server_port}/;
    proxy_pass_error_message on;
    server {{
        listen {place}:{port};
        protocol smtp;
        {" ".join(lines)}
    }}
}}
""")
        arguments = (program("nginx", "nginx"), "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf")
        with serving(gatekeeper), Background(*arguments, folder=folder) as process:
            process.line(r"nginx/\d")  # it says so when it listens
            yield Nginx(port, gatekeeper.asked)


def log_in(client: smtplib.SMTP, user: str = USER, *, password: str = PASSWORD, mechanism: str = "PLAIN") -> None:
    """Log in by one mechanism: nginx closes after a failure, so that smtplib must not try the next."""
    client.ehlo()
    client.user, client.password = user, password
    client.auth(mechanism, getattr(client, f"auth_{mechanism.lower()}"))


# --- XCLIENT


@pytest.mark.proves(NGINX, "XCLIENT with ADDR, NAME and LOGIN")
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_xclient_with_login(behind: Behind, tmp_path: Path, caplog: pytest.LogCaptureFixture, mechanism: str) -> None:
    backend = behind(use_xclient=[HOST], auth_optional=False, allow_insecure_auth=False)
    with nginx(tmp_path, backend.port, LOGIN) as front, connected(front.port) as client:
        log_in(client, mechanism=mechanism)
        deliver(client, content=TRICKY)
    assert backend.delivery.content == TRICKY
    assert (backend.delivery.user, backend.delivery.method) == (USER, "XCLIENT")
    assert backend.client.remote[0] == CLIENT
    assert backend.client.client_hostname == f"[{CLIENT}]"
    assert backend.client.hello == ("EHLO", HELLO)
    assert backend.delivery.transmission_type == "ESMTPA"
    assert backend.client.x_client["LOGIN"] == USER
    assert backend.client.x_client["NAME"] == ""  # it has no resolver here
    assert commands(caplog)[:3] == [
        f"EHLO {NAME}",
        f"XCLIENT ADDR={CLIENT} LOGIN={USER} NAME=[UNAVAILABLE]",
        f"EHLO {HELLO}",
    ]
    assert backend.connects == [HOST, CLIENT]


@pytest.mark.proves(NGINX, "XCLIENT with ADDR and NAME")
@pytest.mark.parametrize("hello", ["HELO", "EHLO"])
def test_xclient_without_login(behind: Behind, tmp_path: Path, caplog: pytest.LogCaptureFixture, hello: str) -> None:
    backend = behind(use_xclient=[HOST])
    with nginx(tmp_path, backend.port, NO_LOGIN) as front, connected(front.port) as client:
        (client.helo if hello == "HELO" else client.ehlo)()
        deliver(client, content=BIG)
    assert backend.delivery.content == BIG
    assert (backend.client.remote[0], backend.client.hello) == (CLIENT, (hello, HELLO))
    said = [
        f"EHLO {NAME}",
        f"XCLIENT ADDR={CLIENT} NAME=[UNAVAILABLE]",
        f"{hello} {HELLO}",
        f"MAIL FROM:<{SENDER}>",
        f"RCPT TO:<{RECIPIENT}>",
    ]
    # It passes on what the client wrote, and smtplib of Python 3.13 writes "from:".
    assert [command.lower() for command in commands(caplog)[:5]] == [command.lower() for command in said]
    assert front.asked[0]["Auth-SMTP-Helo"] == HELLO


class Resolver(socketserver.UDPServer):
    """A name server that knows the client's name, or fails."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__((HOST, 0), Query)
        self.fails = fails


class Query(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        """Answer a query (RFC 1035 4.1): the question again, and behind it what was asked for."""
        assert isinstance(self.server, Resolver)
        query, place = self.request
        question = query[12 : query.index(b"\0", 12) + 5]
        name = b"".join(bytes([len(label)]) + label.encode() for label in HELLO.split(".")) + b"\0"
        kind = question[-4:-2]
        answers = {b"\0\x0c": name, b"\0\x01": socket.inet_aton(CLIENT)}  # PTR, A
        data = b"" if self.server.fails else answers.get(kind, b"")
        counts = struct.pack(">HHHHH", 0x8182 if self.server.fails else 0x8180, 1, bool(data), 0, 0)
        record = b"\xc0\x0c" + kind + struct.pack(">HIH", 1, 60, len(data)) + data if data else b""
        place.sendto(query[:2] + counts + question + record, self.client_address)


@pytest.mark.proves(NGINX, "XCLIENT with the NAME that it looked up, and where that failed")
@pytest.mark.parametrize("fails", [False, True], ids=["found", "failed"])
def test_xclient_with_a_name(behind: Behind, tmp_path: Path, caplog: pytest.LogCaptureFixture, fails: bool) -> None:
    backend = behind(use_xclient=[HOST])
    with Resolver(fails=fails) as resolver, serving(resolver):
        lines = (NO_LOGIN, f"resolver {HOST}:{resolver.server_address[1]} ipv6=off;", "resolver_timeout 5s;")
        with nginx(tmp_path, backend.port, *lines) as front, connected(front.port) as client:
            deliver(client)
    named = "[TEMPUNAVAIL]" if fails else HELLO
    assert commands(caplog)[1] == f"XCLIENT ADDR={CLIENT} NAME={named}"
    assert backend.client.client_hostname == (f"[{CLIENT}]" if fails else HELLO)


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on the loopback interface")
@pytest.mark.proves(NGINX, "XCLIENT with an IPv6 address")
def test_xclient_with_ipv6(behind: Behind, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = behind(use_xclient=[HOST])
    with (
        nginx(tmp_path, backend.port, NO_LOGIN, host="::1") as front,
        connected(front.port, host="::1", source="::1") as client,
    ):
        deliver(client)
    assert commands(caplog)[1] == "XCLIENT ADDR=IPV6:::1 NAME=[UNAVAILABLE]"
    assert backend.client.remote[0] == "::1"


@pytest.mark.proves(NGINX, "recipients refused by the server")
def test_a_refused_recipient_is_reported(behind: Behind, tmp_path: Path) -> None:
    backend = behind(use_xclient=[HOST])
    with nginx(tmp_path, backend.port, NO_LOGIN) as front, connected(front.port) as client:
        # The first one while nginx still speaks for the client, the second one when it only passes on.
        with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
            deliver(client, [NOBODY])
        assert refused.value.recipients[NOBODY] == (550, b"No such user here")
    with nginx(tmp_path, backend.port, NO_LOGIN) as front, connected(front.port) as client:
        assert deliver(client, [RECIPIENT, NOBODY]) == {NOBODY: (550, b"No such user here")}
    assert backend.delivery.rcpt_to == (RECIPIENT,)


@pytest.mark.proves(NGINX, "several messages in a session")
def test_several_messages(behind: Behind, tmp_path: Path) -> None:
    backend = behind(use_xclient=[HOST])
    with nginx(tmp_path, backend.port, LOGIN) as front, connected(front.port) as client:
        log_in(client)
        for _ in range(3):
            deliver(client)
    assert [delivery.user for delivery in backend.deliveries] == [USER] * 3
    assert [seen.remote[0] for seen in backend.seen] == [CLIENT] * 3


@pytest.mark.proves(NGINX, "a wrong password ends there")
def test_a_wrong_password_ends_at_nginx(behind: Behind, tmp_path: Path) -> None:
    backend = behind(use_xclient=[HOST])
    with nginx(tmp_path, backend.port, LOGIN) as front, connected(front.port) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            log_in(client, password="wrong")
        assert refused.value.smtp_code == 535
    assert backend.connects == []


@pytest.mark.proves(NGINX, "a LOGIN that the server refuses")
def test_a_login_that_the_server_refuses_is_reported(behind: Behind, tmp_path: Path) -> None:
    backend = behind(use_xclient=[HOST], on_auth=lambda auth, session: None)
    with nginx(tmp_path, backend.port, LOGIN) as front, connected(front.port) as client:
        with pytest.raises(smtplib.SMTPException) as refused:
            log_in(client)
        assert "550" in str(refused.value)
    assert backend.seen == []


@pytest.mark.proves(NGINX, "a client that the server does not let in")
def test_a_client_that_is_not_let_in(behind: Behind, tmp_path: Path) -> None:
    backend = behind(use_xclient=[HOST], on_connect=not_let_in)
    with nginx(tmp_path, backend.port, NO_LOGIN) as front, connected(front.port) as client:
        client.ehlo()
        client.mail(SENDER)
        assert client.rcpt(RECIPIENT) == (554, b"Go away")


def test_a_front_that_is_not_trusted_is_refused(behind: Behind, tmp_path: Path) -> None:
    backend = behind()
    with nginx(tmp_path, backend.port, LOGIN) as front, connected(front.port) as client:
        with pytest.raises(smtplib.SMTPException) as refused:
            log_in(client)
        assert "550" in str(refused.value)


@pytest.mark.proves(NGINX, "TLS that ends there")
def test_tls_ends_at_nginx(behind: Behind, authority: Authority, tmp_path: Path) -> None:
    backend = behind(use_xclient=[HOST])
    key, cert = authority.options["key"], authority.options["cert"]
    assert isinstance(key, bytes)
    assert isinstance(cert, bytes)
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "cert.pem").write_bytes(cert)
    files = f"ssl_certificate {tmp_path}/cert.pem; ssl_certificate_key {tmp_path}/key.pem;"
    with (
        nginx(tmp_path, backend.secured_port, LOGIN, "starttls only;", files) as front,
        connected(front.port, host="localhost") as client,
    ):
        client.starttls(context=trusting(authority.file))
        log_in(client)
        deliver(client)
    assert (backend.client.remote[0], backend.delivery.transmission_type) == (CLIENT, "ESMTPSA")


# --- What it breaks


@pytest.mark.lived_with(NGINX, "Version 1.22 sends LOGIN as it is, not as xtext: a name with a plus sign gets 501.")
def test_a_login_that_is_not_encoded(behind: Behind, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """XCLIENT_README wants xtext; nginx 1.22 sends a name as it is, where ``+41`` would mean "A".

    What is no xtext is refused, as Postfix does: whom such a name means cannot be known.
    """
    backend = behind(use_xclient=[HOST])
    name = "alice+lists@example.com"
    credential = b64encode(f"\0{name}\0{PASSWORD}".encode()).decode()
    with nginx(tmp_path, backend.port, LOGIN) as front, connected(front.port) as client:
        client.ehlo()
        code, _ = client.docmd("AUTH PLAIN", credential)
    as_it_is = f" LOGIN={name} " in commands(caplog)[1]  # newer ones encode it
    assert code == (501 if as_it_is else 235)


@pytest.mark.lived_with(NGINX, "It lets its clients send MAIL without HELO, and passes on that the server wants one.")
def test_nobody_said_hello(behind: Behind, tmp_path: Path) -> None:
    """RFC 5321 4.1.4 wants a HELO or EHLO first; nginx lets clients do without."""
    backend = behind(use_xclient=[HOST])
    with nginx(tmp_path, backend.port, NO_LOGIN) as front, connected(front.port) as client:
        assert client.docmd(f"MAIL FROM:<{SENDER}>")[0] == 250  # that is nginx; it asks the server with the recipient
        assert client.docmd(f"RCPT TO:<{RECIPIENT}>") == (503, b"Error: send HELO/EHLO first")


# --- The PROXY protocol


@pytest.mark.proves(NGINX, "proxy_protocol on")
def test_proxy_protocol(behind: Behind, tmp_path: Path) -> None:
    backend = behind(use_proxy=[HOST])
    with (
        nginx(tmp_path, backend.port, NO_LOGIN, "proxy_protocol on;", "xclient off;") as front,
        connected(front.port) as client,
    ):
        deliver(client)
        assert backend.client.remote == address_of(client)
        assert backend.client.local == (HOST, front.port)
    assert backend.connects == [CLIENT]


@pytest.mark.proves(NGINX, "proxy_protocol on, behind implicit TLS that ended there")
def test_proxy_protocol_before_a_secured_listener(behind: Behind, tmp_path: Path) -> None:
    backend = behind(use_proxy=[HOST])
    lines = (NO_LOGIN, "proxy_protocol on;", "xclient off;")
    with nginx(tmp_path, backend.secured_port, *lines) as front, connected(front.port) as client:
        deliver(client)
        assert backend.client.remote == address_of(client)
    assert backend.delivery.transmission_type == "ESMTPS"


@pytest.mark.proves(NGINX, "XCLIENT behind its own PROXY header")
@pytest.mark.parametrize("trusted", [HOST, CLIENT])
def test_xclient_behind_its_own_proxy_header(behind: Behind, tmp_path: Path, trusted: str) -> None:
    """With ``proxy_protocol on``, and xclient as it is by default: the client's address decides, as in Postfix.

    Who speaks behind a PROXY header is the client that the header names, for all that the server can know.
    """
    backend = behind(use_proxy=[HOST], use_xclient=[trusted])
    with nginx(tmp_path, backend.port, LOGIN, "proxy_protocol on;") as front, connected(front.port) as client:
        if trusted == HOST:
            with pytest.raises(smtplib.SMTPException, match="550"):
                log_in(client)
        else:
            log_in(client)
            deliver(client)
            assert (backend.client.remote, backend.delivery.user) == (address_of(client), USER)


# --- AUTH


@pytest.mark.proves(NGINX, "proxy_smtp_auth on")
@pytest.mark.parametrize("xclient", ["on", "off"])
def test_nginx_authenticates_itself(
    behind: Behind, tmp_path: Path, caplog: pytest.LogCaptureFixture, xclient: str
) -> None:
    backend = behind(use_xclient=[HOST], auth_optional=False)
    lines = (LOGIN, "proxy_smtp_auth on;", f"xclient {xclient};")
    with nginx(tmp_path, backend.port, *lines) as front, connected(front.port) as client:
        log_in(client)
        deliver(client)
    assert (backend.delivery.user, backend.delivery.method) == (USER, "PLAIN")
    assert backend.client.remote[0] == (CLIENT if xclient == "on" else HOST)
    by_xclient = [f"XCLIENT ADDR={CLIENT} NAME=[UNAVAILABLE]", f"EHLO {HELLO}"] if xclient == "on" else []
    assert commands(caplog)[: 2 + len(by_xclient)] == [f"EHLO {NAME}", *by_xclient, "AUTH PLAIN ..."]


@pytest.mark.proves(NGINX, "proxy_smtp_auth on, behind proxy_protocol")
def test_nginx_authenticates_itself_behind_a_proxy_header(behind: Behind, tmp_path: Path) -> None:
    backend = behind(use_proxy=[HOST], auth_optional=False)
    lines = (LOGIN, "proxy_smtp_auth on;", "proxy_protocol on;", "xclient off;")
    with nginx(tmp_path, backend.port, *lines) as front, connected(front.port) as client:
        log_in(client)
        deliver(client)
        assert (backend.client.remote, backend.delivery.user) == (address_of(client), USER)
