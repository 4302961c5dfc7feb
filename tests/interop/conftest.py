"""Fixtures of the tests with real clients: a certificate, and a server of its own for each test."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from interop import postfix
from interop.fronts import Backend
from interop.peers import HOST, USER, Server, all_mechanisms
from interop.versions import system, version_of

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Serving = Callable[..., AbstractContextManager[Server]]


@dataclass(frozen=True)
class Authority:
    """Whom the clients trust: ``file`` holds the authority, ``options`` are the server's key and certificate.

    ``client`` is a key with its certificate for a client, signed by the same authority.
    """

    file: Path
    stranger: Path  # an authority that did not sign the server's certificate
    client: Path
    options: dict[str, bytes | list[bytes]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note in the run's report what a test shows of which peer, for docs/peers.md, also where it is skipped then.

    ``@pytest.mark.proves("Postfix smtp", "CHUNKING")`` is what the peer does and the server takes;
    ``@pytest.mark.lived_with("Postfix smtp", "It …")`` is what it does that no RFC says, and the server bears.
    """
    for item in items:
        for kind in ("proves", "lived_with"):
            for marker in item.iter_markers(kind):
                peer, *said = marker.args
                item.user_properties += [(f"{kind} {peer}", what) for what in said]


@pytest.fixture(autouse=True)
def which_peers(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Note the versions of the test's peers, and on what it runs."""
    markers = [*request.node.iter_markers("proves"), *request.node.iter_markers("lived_with")]
    for peer in dict.fromkeys(marker.args[0] for marker in markers):
        record_property(f"version {peer}", version_of(peer))
    if markers:
        record_property("system", system())


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("authority")
    ours, stranger = trustme.CA(), trustme.CA()
    issued = ours.issue_cert("localhost", HOST)
    ours.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "stranger.pem")
    ours.issue_cert("alice@example.org", common_name=USER).private_key_and_cert_chain_pem.write_to_path(
        folder / "client.pem"
    )
    chain = [blob.bytes() for blob in issued.cert_chain_pems]
    options: dict[str, bytes | list[bytes]] = {"key": issued.private_key_pem.bytes(), "cert": b"".join(chain)}
    return Authority(folder / "ca.pem", folder / "stranger.pem", folder / "client.pem", options)


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
def serving(authority: Authority, loop_factory: LoopFactory) -> Serving:
    """Return what makes a server with options of the test's own; nothing unexpected may have come up in the end."""

    @contextmanager
    def serve(**options: Any) -> Iterator[Server]:
        with Server(loop_factory, **authority.options | options) as running:
            yield running
        assert running.unexpected_problems() == []

    return serve


@pytest.fixture
def certified(authority: Authority, serving: Serving) -> Iterator[Server]:
    """A server that asks for a client's certificate, and takes it for a login."""
    options = {"request_cert": True, "ca": authority.file.read_bytes(), "auth_methods": ["EXTERNAL"]}
    with serving(**options) as running:
        yield running


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


@pytest.fixture
def behind(
    authority: Authority, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[..., Backend]]:
    """Start servers for fronts to stand before, with options of their own; what is asked of ``server`` holds for them.

    Their transcripts are in the log.
    """
    caplog.set_level(logging.DEBUG, "pillarbox")
    started: list[Backend] = []
    with ExitStack() as stack:

        def start(**options: Any) -> Backend:
            started.append(stack.enter_context(Backend(loop_factory, **authority.options | options)))
            return started[-1]

        yield start
    errors = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert ([backend.unexpected_problems() for backend in started], errors) == ([[]] * len(started), [])
