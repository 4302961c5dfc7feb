"""Sockets that are bound before there is a server."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path

import pytest

from pillarbox import BoundSockets, ConfigurationError, SMTPServer
from support import Client, on_both_loops, serving

unix = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")


@on_both_loops
async def test_all_interfaces_are_one_listener() -> None:
    with await BoundSockets.bind(0) as bound:
        async with serving() as served:
            before = len(served.server.addresses)
            first = await served.server.listen(sock=bound.sockets, max_clients=1)
            assert served.server.addresses[before:] == bound.addresses
            assert first == bound.addresses[0]
            for address in bound.addresses:
                assert isinstance(address, tuple)
            families = {sock.family: sock.getsockname()[1] for sock in bound.sockets}
            client = await served.connect(address=("127.0.0.1", families[socket.AF_INET]))
            assert (await client.reply()).code == 220
            if socket.AF_INET6 in families and socket.has_ipv6:  # one limit for both sockets
                other = await served.connect(address=("::1", families[socket.AF_INET6]))
                assert (await other.reply()).code == 421


@unix
@on_both_loops
async def test_connections_wait_from_the_moment_it_is_bound(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with await BoundSockets.bind(path=path) as bound:
        early = await Client.open(str(path))
        server = SMTPServer(disable_reverse_lookup=True)
        await server.listen(sock=bound.sockets)
        assert (await early.reply()).code == 220
        await early.close()
        await server.close()
        assert path.exists()  # another server may be given the same sockets
    assert not path.exists()


@unix
async def test_a_stale_path_is_replaced_and_a_served_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with await BoundSockets.bind(path=path):
        with pytest.raises(OSError, match="Address already in use"):
            await BoundSockets.bind(path=path)
        path.unlink()
        path.write_text("another's by now")
    assert path.exists()


async def test_what_cannot_be_bound_is_told_with_its_name() -> None:
    with await BoundSockets.bind(0, "127.0.0.1") as bound:
        port = bound.sockets[0].getsockname()[1]
        with pytest.raises(OSError, match=r"Address already in use: '127\.0\.0\.1:\d+'") as failure:
            await BoundSockets.bind(port, "127.0.0.1")
    assert failure.value.errno == errno.EADDRINUSE


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors")
async def test_a_descriptor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        bound = await BoundSockets.bind(fd=os.dup(listening.fileno()))
        assert bound.addresses == [listening.getsockname()]
        bound.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(ValueError, match="a stream socket was expected"):
            await BoundSockets.bind(fd=datagrams.fileno())
        assert datagrams.getsockname()  # it stays its owner's
    ours, its = socket.socketpair()
    with ours, its:
        with pytest.raises(OSError, match="Invalid argument"):  # a connection
            await BoundSockets.bind(fd=ours.fileno())
        its.send(b"x")
        assert ours.recv(1) == b"x"


async def test_one_address_at_a_time() -> None:
    with pytest.raises(ConfigurationError, match="one of port, path and fd"):
        await BoundSockets.bind()
    with pytest.raises(ConfigurationError, match="one of port, path and fd"):
        await BoundSockets.bind(0, path="socket")
