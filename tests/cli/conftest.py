"""Fixtures for the commands that talk to servers: a server, whom clients trust, and the program in this process."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner, Result

from interop.peers import HOST, Server
from pillarbox.cli import program

Run = Callable[..., Result]
Serving = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what runs the program with these arguments."""
    monkeypatch.delenv("PILLARBOX_PASSWORD", raising=False)

    def run(*arguments: str | Path, octets: bytes = b"") -> Result:
        return CliRunner().invoke(program, [str(each) for each in arguments], input=octets, prog_name="pillarbox")

    return run


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    """An authority, and the file that makes a client trust it (SSL_CERT_FILE)."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return authority, path


@pytest.fixture
def serving(authority: tuple[trustme.CA, Path]) -> Serving:
    """Return what starts a server, with options of the test's own; its certificate is for 127.0.0.1."""

    @contextmanager
    def serve(*names: str, **options: object) -> Iterator[Server]:
        issued = authority[0].issue_cert(*(names or (HOST, "localhost")))
        pems = {"key": issued.private_key_pem.bytes(), "cert": issued.cert_chain_pems[0].bytes()}
        with Server(asyncio.new_event_loop, **pems | options) as server:
            yield server

    return serve


@pytest.fixture
def server(serving: Serving) -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def trusting(authority: tuple[trustme.CA, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients trust the server's certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", os.fspath(authority[1]))


@pytest.fixture
def saying() -> Iterator[Callable[[bytes], int]]:
    """Return what listens on a port and says these octets to whoever connects, and what the client says is dropped."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def say(octets: bytes) -> int:
        listener = socket.create_server((HOST, 0))
        listeners.append(listener)
        thread = threading.Thread(target=_say, args=(listener, octets), daemon=True)
        thread.start()
        threads.append(thread)
        port: int = listener.getsockname()[1]
        return port

    yield say
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(10)


def _say(listener: socket.socket, octets: bytes) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(10)
            try:
                connection.sendall(octets)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                pass


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
