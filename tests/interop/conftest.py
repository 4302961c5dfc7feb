"""Fixtures of the tests with real clients: a certificate, and a server of its own for each test."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from interop import postfix
from interop.peers import HOST, USER, Server, all_mechanisms

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@dataclass(frozen=True)
class Authority:
    """Whom the clients trust: ``file`` holds the authority, ``options`` are the server's key and certificate."""

    file: Path
    stranger: Path  # an authority that did not sign the server's certificate
    options: dict[str, bytes | list[bytes]]


@pytest.fixture(autouse=True)
def what_it_proves(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Note in the run's report what a test shows of which peer: ``@pytest.mark.proves("Postfix smtp", "CHUNKING")``."""
    for marker in request.node.iter_markers("proves"):
        peer, *shown = marker.args
        for what in shown:
            record_property(f"proves {peer}", what)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("authority")
    ours, stranger = trustme.CA(), trustme.CA()
    issued = ours.issue_cert("localhost", HOST)
    ours.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "stranger.pem")
    chain = [blob.bytes() for blob in issued.cert_chain_pems]
    options: dict[str, bytes | list[bytes]] = {"key": issued.private_key_pem.bytes(), "cert": b"".join(chain)}
    return Authority(folder / "ca.pem", folder / "stranger.pem", options)


@pytest.fixture
def loop_factory() -> LoopFactory:
    """The server's loop: uvloop where it is installed, as for the program."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


@pytest.fixture
def server(authority: Authority, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture) -> Iterator[Server]:
    """A running server; nothing unexpected may have reached ``on_error``, or the log as an error, in the end."""
    with Server(loop_factory, **authority.options) as running:
        yield running
    errors = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert (running.unexpected_problems(), errors) == ([], [])


@pytest.fixture
def relay(authority: Authority, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture) -> Iterator[postfix.Start]:
    """What starts a server and a Postfix that relays to it."""
    with postfix.relays(authority, loop_factory, caplog) as start:
        yield start


@dataclass(frozen=True)
class ClientCertificate:
    """A certificate that names USER, with its key, in one file."""

    file: Path
    authority: bytes


@pytest.fixture
def client_certificate(tmp_path: Path) -> ClientCertificate:
    authority = trustme.CA()
    issued = authority.issue_cert(common_name=USER)
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    return ClientCertificate(tmp_path / "client.pem", authority.cert_pem.bytes())


@pytest.fixture
def sasl_server(
    authority: Authority, loop_factory: LoopFactory, client_certificate: ClientCertificate
) -> Iterator[Server]:
    """A server with every mechanism; it asks for a client's certificate and does without."""
    asking = {"request_cert": True, "reject_unauthorized": False, "ca": client_certificate.authority}
    with Server(loop_factory, **authority.options, **all_mechanisms(), **asking) as running:
        yield running
    assert running.unexpected_problems() == []
