"""HAProxy before the server: its PROXY protocol, its health checks, TLS that ends there and TLS that passes through."""

from __future__ import annotations

import csv
import re
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest
import trustme

from interop.conftest import Authority, LoopFactory
from interop.fronts import (
    CLIENT,
    Backend,
    address_of,
    connected,
    connected_by_tls,
    deliver,
    has_ipv6,
    trusting,
)
from interop.peers import BIG, HOST, PASSWORD, RECIPIENT, SENDER, SIMPLE, TRICKY, USER, Background, program, run
from pillarbox import ProxyInfo
from pillarbox.smtp import proxy

if TYPE_CHECKING:
    from typing import Self

HAPROXY = "HAProxy"
HEADERS = ("send-proxy", "send-proxy-v2")
# Who connects without a header is not HAProxy.
BEHIND = {"use_proxy": [HOST]}

Behind = Callable[..., Backend]


@dataclass(frozen=True)
class Haproxy:
    """A running HAProxy: where it listens, what it logs, and its command line."""

    address: tuple[str, int]
    process: Background
    _control: str

    @property
    def port(self) -> int:
        return self.address[1]

    def say(self, command: str) -> str:
        """Give a command to its stats socket, and return the answer."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(10)
            control.connect(self._control)
            control.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: control.recv(4096), b"")).decode()

    def state(self) -> tuple[str, str]:
        """Return what it says of the server, and of the last check."""
        rows = csv.DictReader(self.say("show stat").lstrip("# ").splitlines())
        [row] = [row for row in rows if row["svname"] == "us"]
        return row["status"], row["check_status"].removeprefix("* ")  # which says that the next is under way

    def checked(self, outcome: str = "succeeded") -> re.Match[str]:
        """Wait for a health check that changes what it thinks of the server."""
        return self.process.line(f"^Health check for server smtp/us {outcome}.*")


@contextmanager
def haproxy(server: str, *lines: str, bind: str = "", host: str = HOST) -> Iterator[Haproxy]:
    """Run HAProxy with one server, ``us``: its address and the words behind it; ``lines`` go to the section."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # A Unix socket's path must be short. The socket listens before HAProxy begins: nobody need wait for that.
    with tempfile.TemporaryDirectory(prefix="pb") as name, socket.create_server((host, 0), family=family) as place:
        folder = Path(name)
        address = place.getsockname()[:2]
        section = "\n    ".join([f"bind fd@{place.fileno()} {bind}", *lines, f"server us {server}"])
        (folder / "haproxy.cfg").write_text(f"""
global
    log stdout format raw local0
    stats socket {folder}/control level admin
defaults
    mode tcp
    log global
    option log-health-checks
    timeout connect 10s
    timeout client 30s
    timeout server 30s
    timeout check 30s
listen smtp
    {section}
""")
        arguments = (program("haproxy", "haproxy"), "-db", "-f", folder / "haproxy.cfg")
        with Background(*arguments, folder=folder, descriptors=[place.fileno()]) as process:
            place.close()
            yield Haproxy(address, process, f"{folder}/control")


# --- The PROXY protocol


@pytest.mark.proves(HAPROXY, "send-proxy", "send-proxy-v2", "the client's address")
@pytest.mark.parametrize("header", HEADERS)
def test_the_client_is_the_one_before_haproxy(behind: Behind, header: str) -> None:
    backend = behind(**BEHIND)
    with haproxy(f"{HOST}:{backend.port} {header}") as front, connected(front.port) as client:
        assert deliver(client, content=TRICKY) == {}
        assert (backend.client.remote, backend.client.local) == (address_of(client), front.address)
        assert backend.client.client_hostname == f"[{CLIENT}]"
    assert backend.delivery.content == TRICKY
    assert backend.connects == [CLIENT]


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on the loopback interface")
@pytest.mark.proves(HAPROXY, "a client with IPv6, a server with IPv4")
@pytest.mark.parametrize("header", HEADERS)
def test_the_client_comes_with_ipv6(behind: Behind, header: str) -> None:
    backend = behind(**BEHIND)
    with (
        haproxy(f"{HOST}:{backend.port} {header}", host="::1") as front,
        connected(front.port, host="::1", source="::1") as client,
    ):
        deliver(client)
        assert (backend.client.remote, backend.client.local) == (address_of(client), front.address)


@pytest.mark.proves(HAPROXY, "send-proxy, send-proxy-v2 to a Unix socket")
@pytest.mark.parametrize("header", HEADERS)
def test_the_server_listens_on_a_unix_socket(behind: Behind, header: str) -> None:
    backend = behind(use_proxy=True)
    with haproxy(f"unix@{backend.path} {header}") as front, connected(front.port) as client:
        deliver(client)
        assert (backend.client.remote, backend.client.local) == (address_of(client), front.address)


@pytest.mark.proves(HAPROXY, "LMTP")
def test_lmtp(behind: Behind) -> None:
    backend = behind(**BEHIND)
    with haproxy(f"{HOST}:{backend.lmtp_port} send-proxy-v2") as front, connected(front.port) as client:
        client.ehlo_msg = "lhlo"
        assert client.ehlo()[0] == 250
        assert client.mail(SENDER)[0] == client.rcpt(RECIPIENT)[0] == 250
        assert client.data(SIMPLE)[0] == 250
        assert backend.client.remote == address_of(client)


@pytest.mark.proves(HAPROXY, "many connections at once")
@pytest.mark.parametrize("header", HEADERS)
def test_many_connections(behind: Behind, header: str) -> None:
    backend = behind(**BEHIND, ignored_hosts=["192.0.2.1"])
    smtp_source = program("smtp-source", "postfix")
    with haproxy(f"{HOST}:{backend.port} {header}") as front:
        names = ("-M", "client.example.org", "-f", SENDER, "-t", RECIPIENT, "-s", "20", "-m", "200", "-c")
        run([smtp_source, *names, f"{HOST}:{front.port}"]).expect_success()
    assert len(backend.deliveries) == 200
    assert len({seen.remote for seen in backend.seen}) > 20


def test_a_front_that_sends_no_header_is_refused(behind: Behind) -> None:
    backend = behind(**BEHIND)
    with haproxy(f"{HOST}:{backend.port}") as front, socket.create_connection(front.address, 30) as client:
        client.sendall(b"EHLO client.example.org\r\n")
        with client.makefile("rb") as replies:
            assert replies.read() == b"* BAD Invalid PROXY header\r\n"
    assert backend.connects == []


def test_a_header_that_nobody_asked_for_is_no_command(behind: Behind) -> None:
    backend = behind(greet_delay=30)  # or the greeting may be faster: then it is an unknown command
    with (
        haproxy(f"{HOST}:{backend.port} send-proxy") as front,
        socket.create_connection(front.address, 30) as client,
        client.makefile("rb") as replies,
    ):
        assert replies.readline() == b"421 mx.example.com You talk too soon\r\n"
    assert backend.seen == []


# --- What else version 2 says


class Listener:
    """Takes what HAProxy sends to a server, octet for octet."""

    def __init__(self) -> None:
        self._place = socket.create_server((HOST, 0))
        self._place.settimeout(30)
        self.port = self._place.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._place.close()

    def header(self) -> bytes:
        """Return the header of the next connection: all that comes before the server has said anything."""
        connection, _ = self._place.accept()
        with connection:
            connection.settimeout(30)
            octets = b""
            while (found := proxy.parse(octets)) is None:
                more = connection.recv(65536)
                assert more, octets
                octets += more
            assert found.length == len(octets)
            return octets


def tlvs(header: bytes) -> dict[int, bytes]:
    """Take apart what stands behind IPv4 addresses and ports."""
    found, rest = {}, header[16 + 12 :]
    while rest:
        length = int.from_bytes(rest[1:3], "big")
        found[rest[0]] = rest[3 : 3 + length]
        rest = rest[3 + length :]
    return found


AUTHORITY, CRC32C, UNIQUE_ID, SSL = 0x02, 0x03, 0x05, 0x20
EVERYTHING = "send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c,unique-id"
WORDS: tuple[tuple[str, set[int]], ...] = (
    ("send-proxy-v2", set()),
    ("send-proxy-v2 proxy-v2-options crc32c", {CRC32C}),
    ("send-proxy-v2 proxy-v2-options unique-id", {UNIQUE_ID}),
    ("send-proxy-v2 proxy-v2-options authority", {AUTHORITY}),
    ("send-proxy-v2-ssl", {SSL}),
    ("send-proxy-v2-ssl-cn", {SSL}),
    (EVERYTHING, {SSL, AUTHORITY, CRC32C, UNIQUE_ID}),
)
UNIQUE = 'unique-id-format "mail-%ci-%cp"'


@pytest.mark.proves(HAPROXY, "send-proxy-v2-ssl", "proxy-v2-options")
@pytest.mark.parametrize(("words", "kinds"), WORDS, ids=[words for words, _ in WORDS])
def test_a_header_with_tlvs_is_read_to_its_end(
    authority: Authority, tmp_path: Path, words: str, kinds: set[int]
) -> None:
    bind = f"ssl crt {pem(authority, tmp_path)}"
    with (
        Listener() as listener,
        haproxy(f"{HOST}:{listener.port} {words}", UNIQUE, bind=bind) as front,
        socket.create_connection(front.address, 30, (CLIENT, 0)) as plain,
        trusting(authority.file).wrap_socket(plain, server_hostname="localhost") as client,
    ):
        octets = listener.header()
        source = client.getsockname()
    assert set(tlvs(octets)) == kinds
    header = proxy.parse(octets)
    assert header is not None
    assert (header.source, header.destination) == (source, front.address)
    # However it comes, what is not complete is waited for.
    assert [proxy.parse(octets[:length]) for length in range(len(octets))] == [None] * len(octets)


@pytest.mark.proves(HAPROXY, "send-proxy-v2-ssl", "proxy-v2-options", "TLS that ends there")
@pytest.mark.parametrize("words", [words for words, _ in WORDS])
def test_mail_behind_a_header_with_tlvs(behind: Behind, authority: Authority, tmp_path: Path, words: str) -> None:
    backend = behind(**BEHIND)
    bind = f"ssl crt {pem(authority, tmp_path)}"
    with (
        haproxy(f"{HOST}:{backend.port} {words}", UNIQUE, bind=bind) as front,
        connected_by_tls(front.port, authority.file) as client,
    ):
        deliver(client)
        assert backend.client.remote == address_of(client)


@pytest.mark.proves(HAPROXY, "the facts of TLS, server name and unique id in send-proxy-v2")
def test_the_facts_that_the_header_has(behind: Behind, authority: Authority, tmp_path: Path) -> None:
    backend = behind(**BEHIND, allow_insecure_auth=False)
    bind = f"ssl crt {pem(authority, tmp_path)}"
    with (
        haproxy(f"{HOST}:{backend.port} {EVERYTHING}", UNIQUE, bind=bind) as front,
        connected_by_tls(front.port, authority.file) as client,
    ):
        client.ehlo()
        assert (client.has_extn("starttls"), client.has_extn("auth")) == (False, True)
        assert isinstance(client.sock, ssl.SSLSocket)
        version, cipher = client.sock.version(), client.sock.cipher()
        deliver(client)
        source = address_of(client)
    info = backend.client.proxy
    assert info is not None
    assert (info.version, info.local, info.authority, info.tlvs) == (2, False, "localhost", ())
    assert info.unique_id == f"mail-{source[0]}-{source[1]}".encode()
    assert info.tls is not None
    assert cipher is not None
    assert (info.tls.version, info.tls.cipher) == (version, cipher[0])
    assert (info.tls.certificate_on_connection, info.tls.authorized) == (False, False)
    assert info.tls.key_algorithm
    assert info.tls.signature_algorithm
    assert backend.delivery.transmission_type == "ESMTPS"


@pytest.mark.proves(HAPROXY, "client certificates in send-proxy-v2")
def test_a_client_certificate_at_haproxy(behind: Behind, authority: Authority, tmp_path: Path) -> None:
    backend = behind(**BEHIND)
    ours = trustme.CA()
    ours.cert_pem.write_to_path(tmp_path / "clients.pem")
    issued = ours.issue_cert("client.example", common_name="Änn Example")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    bind = f"ssl crt {pem(authority, tmp_path)} ca-file {tmp_path}/clients.pem verify optional"
    with (
        haproxy(f"{HOST}:{backend.port} {EVERYTHING}", UNIQUE, bind=bind) as front,
        connected_by_tls(front.port, authority.file, certificate=tmp_path / "client.pem") as client,
    ):
        deliver(client)
    info = backend.client.proxy
    assert info is not None
    assert info.tls is not None
    assert (info.tls.common_name, info.tls.certificate_on_connection) == ("Änn Example", True)
    assert (info.tls.verify, info.tls.authorized) == (0, True)


@pytest.mark.proves(HAPROXY, "send-proxy-v2 of a client without TLS")
def test_the_client_came_without_tls(behind: Behind) -> None:
    backend = behind(**BEHIND, allow_insecure_auth=False)
    with haproxy(f"{HOST}:{backend.port} {EVERYTHING}", UNIQUE) as front, connected(front.port) as client:
        client.ehlo()
        assert (client.has_extn("starttls"), client.has_extn("auth")) == (True, False)
        deliver(client)
    assert backend.client.proxy is not None
    assert backend.client.proxy.tls is None
    assert backend.delivery.transmission_type == "ESMTP"


@pytest.mark.proves(HAPROXY, "LOCAL of its health checks")
def test_health_checks_are_its_own(behind: Behind) -> None:
    seen: SimpleQueue[tuple[str, ProxyInfo | None]] = SimpleQueue()
    backend = behind(**BEHIND, on_connect=lambda session: seen.put((session.remote_address, session.proxy)))
    with haproxy(f"{HOST}:{backend.port} send-proxy-v2 check inter 50", CHECK):
        assert seen.get(timeout=30) == (HOST, ProxyInfo(2, local=True))


# --- TLS


def pem(authority: Authority, folder: Path) -> Path:
    """Write the server's key and certificate as HAProxy wants them: in one file."""
    key, cert = authority.options["key"], authority.options["cert"]
    assert isinstance(key, bytes)
    assert isinstance(cert, bytes)
    file = folder / "server.pem"
    file.write_bytes(cert + key)
    return file


@pytest.mark.proves(HAPROXY, "TLS that ends there")
@pytest.mark.parametrize("header", HEADERS)
def test_tls_ends_at_haproxy(behind: Behind, authority: Authority, tmp_path: Path, header: str) -> None:
    backend = behind(**BEHIND, allow_insecure_auth=False)
    bind = f"ssl crt {pem(authority, tmp_path)}"
    with (
        haproxy(f"{HOST}:{backend.secured_port} {header}", bind=bind) as front,
        connected_by_tls(front.port, authority.file) as client,
    ):
        assert not client.has_extn("starttls")
        client.login(USER, PASSWORD)
        deliver(client, content=BIG)
        assert backend.client.remote == address_of(client)
    assert backend.client.secure
    assert backend.delivery.transmission_type == "ESMTPSA"
    assert backend.delivery.content == BIG


@pytest.mark.proves(HAPROXY, "STARTTLS that passes through")
@pytest.mark.parametrize("header", HEADERS)
def test_starttls_passes_through(behind: Behind, authority: Authority, header: str) -> None:
    backend = behind(**BEHIND, allow_insecure_auth=False)
    with haproxy(f"{HOST}:{backend.port} {header}") as front, connected(front.port, host="localhost") as client:
        client.starttls(context=trusting(authority.file))
        client.login(USER, PASSWORD)
        deliver(client)
        assert backend.client.remote == address_of(client)
    assert backend.delivery.transmission_type == "ESMTPSA"


@pytest.mark.proves(HAPROXY, "implicit TLS that passes through")
@pytest.mark.parametrize("header", HEADERS)
def test_implicit_tls_passes_through(behind: Behind, authority: Authority, header: str) -> None:
    backend = behind(**BEHIND)
    with haproxy(f"{HOST}:{backend.tls_port} {header}") as front:
        for _ in range(3):  # header and ClientHello may come together, or not
            with connected_by_tls(front.port, authority.file) as client:
                deliver(client)
                assert backend.seen[-1].remote == address_of(client)
    assert {delivery.transmission_type for delivery in backend.deliveries} == {"ESMTPS"}


@pytest.mark.proves(HAPROXY, "implicit TLS from there to the server")
def test_haproxy_begins_tls_with_the_server(behind: Behind, authority: Authority) -> None:
    backend = behind(**BEHIND)
    to_us = f"send-proxy-v2 ssl verify required ca-file {authority.file} sni str(localhost) verifyhost localhost"
    with haproxy(f"{HOST}:{backend.tls_port} {to_us}") as front, connected(front.port) as client:
        deliver(client)
        assert backend.client.remote == address_of(client)
    assert backend.delivery.transmission_type == "ESMTPS"


# --- Health checks

CHECK = "option smtpchk EHLO check.example"
CHECKED = (
    # As normal traffic has a header, so have checks: of HAProxy's own address, as UNKNOWN or LOCAL.
    "send-proxy",
    "send-proxy-v2",
    # A check to an address of its own has none, unless it is asked for.
    "send-proxy check-send-proxy port {port}",
    "send-proxy-v2 check-send-proxy port {port}",
)


def of_haproxy(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.get_records("call") if getattr(record, "address", "") == HOST]


@pytest.mark.proves(HAPROXY, "option smtpchk, through ignored_hosts", "check-send-proxy")
@pytest.mark.parametrize("words", CHECKED)
def test_health_checks_leave_no_trace(behind: Behind, caplog: pytest.LogCaptureFixture, words: str) -> None:
    backend = behind(**BEHIND, ignored_hosts=[HOST], max_clients=1)
    words = words.format(port=backend.port)
    with haproxy(f"{HOST}:{backend.port} {words} check inter 50", CHECK) as front, connected(front.port) as client:
        assert "code: 221" in front.checked()[0]  # it went on to QUIT
        assert front.state() == ("UP", "L7OK")
        client.ehlo()  # has the only place
        front.say("set server smtp/us health down")
        front.checked()
        front.process.line("Server smtp/us is UP")
        assert front.state() == ("UP", "L7OK")
        deliver(client)
    assert backend.connects == backend.closes == [CLIENT]
    assert of_haproxy(caplog) == []


@pytest.mark.proves(HAPROXY, "option smtpchk, through ignored_hosts")
@pytest.mark.parametrize("check", ["option smtpchk", CHECK], ids=["HELO", "EHLO"])
def test_health_checks_without_a_header(behind: Behind, caplog: pytest.LogCaptureFixture, check: str) -> None:
    backend = behind(**BEHIND)
    healthy = behind(ignored_hosts=[HOST])
    words = f"send-proxy-v2 check inter 50 port {healthy.port}"
    with haproxy(f"{HOST}:{backend.port} {words}", check) as front, connected(front.port) as client:
        front.checked()
        assert front.state() == ("UP", "L7OK")
        deliver(client)
    assert (backend.connects, healthy.connects) == ([CLIENT], [])
    assert of_haproxy(caplog) == []


@pytest.mark.proves(HAPROXY, "health checks that only connect, through ignored_hosts")
def test_health_checks_that_only_connect(behind: Behind, caplog: pytest.LogCaptureFixture) -> None:
    """Checks to an address of their own bring no header, unless ``check-send-proxy`` asks for it."""
    backend = behind(**BEHIND, ignored_hosts=[HOST])
    words = f"send-proxy-v2 check inter 50 port {backend.port}"
    with haproxy(f"{HOST}:{backend.port} {words}") as front, connected(front.port) as client:
        front.checked()
        assert front.state() == ("UP", "L4OK")
        deliver(client)
    assert backend.connects == [CLIENT]
    assert of_haproxy(caplog) == []


@pytest.mark.proves(HAPROXY, "a server that closes is DOWN")
def test_a_server_that_closes_is_down(loop_factory: LoopFactory) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(Backend(loop_factory, **BEHIND, ignored_hosts=[HOST]))
        with haproxy(f"{HOST}:{backend.port} send-proxy check inter 50 fall 1", CHECK) as front:
            front.checked()
            stack.close()
            front.process.line("Server smtp/us is DOWN")
            assert front.state()[0] == "DOWN"
