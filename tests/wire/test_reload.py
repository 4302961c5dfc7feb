"""``reload`` and ``stop_listening``: what changes for the next connections, and what stays for those that are open."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from pillarbox import ConfigurationError, Session, SMTPServer
from support import Client, serving


def recipients(*allowed: str) -> Any:
    def on_rcpt_to(address: Any, _session: Session) -> None:
        if address.address not in allowed:
            from pillarbox import Reject

            raise Reject(550, "not here")

    return on_rcpt_to


async def greeted(server: SMTPServer, number: int = 0) -> Client:
    address = server.addresses[number]
    client = await Client.open(address)
    await client.reply()
    return client


class TestReload:
    async def test_new_connections_have_the_new_options_and_open_ones_theirs(self) -> None:
        async with serving(auth_optional=True, size=1000) as served:
            before = await served.client()
            served.server.reload(auth_optional=True, size=2000)
            after = await served.client()
            assert (await before.ehlo())["SIZE"] == "1000"
            assert (await after.ehlo())["SIZE"] == "2000"

    async def test_what_is_not_given_has_its_default_again(self) -> None:
        async with serving(auth_optional=True, size=1000) as served:
            served.server.reload(auth_optional=True)
            assert "SIZE" not in await (await served.client()).ehlo()

    async def test_a_transaction_goes_on_with_the_handlers_it_began_with(self) -> None:
        async with serving(auth_optional=True, on_rcpt_to=recipients("a@b.example")) as served:
            client = await served.client()
            await client.ehlo()
            await client.command("MAIL FROM:<>")
            served.server.reload(auth_optional=True, on_rcpt_to=recipients("c@d.example"))
            assert (await client.command("RCPT TO:<a@b.example>")).code == 250
            fresh = await served.client()
            await fresh.ehlo()
            await fresh.command("MAIL FROM:<>")
            assert (await fresh.command("RCPT TO:<a@b.example>")).code == 550
            assert (await fresh.command("RCPT TO:<c@d.example>")).code == 250

    async def test_an_options_handler_that_is_gone_makes_place_for_the_method(self) -> None:
        class Server(SMTPServer):
            def on_rcpt_to(self, address: Any, session: Session) -> None:
                recipients("method@b.example")(address, session)

        server = Server(auth_optional=True, on_rcpt_to=recipients("option@b.example"))
        async with server:
            await server.listen(0, "127.0.0.1")
            server.reload(auth_optional=True)
            client = await greeted(server)
            await client.ehlo()
            await client.command("MAIL FROM:<>")
            assert (await client.command("RCPT TO:<option@b.example>")).code == 550
            assert (await client.command("RCPT TO:<method@b.example>")).code == 250
            await client.close()

    async def test_each_listener_keeps_or_gets_its_own(self) -> None:
        async with SMTPServer(auth_optional=True, name="old") as server:
            first = await server.listen(0, "127.0.0.1", name="first")
            await server.listen(0, "127.0.0.1", name="second")
            await server.listen(0, "127.0.0.1")
            server.reload(auth_optional=True, name="new", listeners={first: {"name": "changed"}})
            names = []
            for number in range(3):
                client = await greeted(server, number)
                names.append((await client.command("EHLO x")).lines[0].split()[0])
                await client.close()
            assert names == ["changed", "second", "new"]

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"size": "big"}, ConfigurationError),
            ({"key": "/nowhere", "cert": "/nowhere"}, ConfigurationError),
            ({"listeners": {("127.0.0.1", 1): {}}}, ValueError),
            ({"listeners": {"first": {"size": -1}}}, ConfigurationError),
            ({"listeners": {"first": {"close_timeout": 1}}}, ConfigurationError),
        ],
    )
    async def test_a_mistake_changes_nothing(self, change: dict[str, Any], error: type[Exception]) -> None:
        async with SMTPServer(auth_optional=True, size=1000) as server:
            first = await server.listen(0, "127.0.0.1")
            if "first" in change.get("listeners", {}):
                change = {"listeners": {first: change["listeners"]["first"]}}
            with pytest.raises(error):
                server.reload(auth_optional=True, name="new", **change)
            client = await greeted(server)
            assert (await client.ehlo())["SIZE"] == "1000"
            assert server.options.size == 1000
            await client.close()

    async def test_clients_are_counted_on(self) -> None:
        async with SMTPServer(auth_optional=True) as server:
            address = await server.listen(0, "127.0.0.1", max_clients=1)
            one = await greeted(server)
            server.reload(auth_optional=True, listeners={address: {"max_clients": 1}})
            two = await Client.open(address)
            assert (await two.reply()).code == 421
            await one.close()
            await two.close()

    async def test_rates_are_counted_on(self) -> None:
        rates = {"connections": "1/h"}
        async with serving(auth_optional=True, rates_per_address=rates) as served:
            await (await served.client()).ehlo()
            served.server.reload(auth_optional=True, rates_per_address=rates)
            late = await Client.open(served.address)
            assert (await late.reply()).code == 421
            await late.close()

    async def test_nothing_keeps_the_old_handlers_when_their_last_connection_is_over(self) -> None:
        class Handlers:
            def on_rcpt_to(self, _address: Any, _session: Session) -> None:
                return None

        async with SMTPServer(auth_optional=True) as server:
            old = Handlers()
            gone = weakref.ref(old)
            address = await server.listen(0, "127.0.0.1", on_rcpt_to=old.on_rcpt_to)
            client = await greeted(server)
            server.reload(auth_optional=True, listeners={address: {}})
            del old
            gc.collect()
            assert gone() is not None
            await client.command("QUIT")
            await client.close()
            while server.connections:
                await asyncio.sleep(0)
            for _ in range(5):
                await asyncio.sleep(0)
            gc.collect()
            assert gone() is None


class TestStopListening:
    async def test_open_sessions_go_on(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        async with SMTPServer(auth_optional=True) as server:
            address = await server.listen(0, "127.0.0.1")
            await server.listen(path=path)
            client = await greeted(server)
            await server.stop_listening(address)
            assert server.addresses == [path]
            assert await client.ehlo()
            assert isinstance(address, tuple)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*address)
            await server.stop_listening(path)
            assert not Path(path).exists()
            assert (await client.command("NOOP")).code == 250
            await client.close()

    async def test_an_address_that_is_none(self) -> None:
        async with SMTPServer(auth_optional=True) as server:
            await server.listen(0, "127.0.0.1")
            with pytest.raises(ValueError, match="does not listen on"):
                await server.stop_listening("/nowhere")

    async def test_listens_again_at_the_same_address(self) -> None:
        async with SMTPServer(auth_optional=True) as server:
            address = await server.listen(0, "127.0.0.1")
            assert isinstance(address, tuple)
            await server.stop_listening(address)
            assert await server.listen(address[1], "127.0.0.1") == address


class TestOldConnections:
    """``old_connections_ended`` knows also of those that are no session yet, or whose client is ignored."""

    @pytest.mark.parametrize(
        ("options", "octets"),
        [
            ({"use_proxy": ["127.0.0.1"]}, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\nQUIT\r\n"),
            ({"ignored_hosts": ["127.0.0.1"]}, b"QUIT\r\n"),
            ({"secure": True}, b""),
            ({}, b"QUIT\r\n"),
        ],
        ids=["proxy", "ignored", "handshake", "session"],
    )
    async def test_waits_for_what_was_accepted(self, options: dict[str, Any], octets: bytes) -> None:
        async with serving(auth_optional=True, **options) as served:
            reader, writer = await asyncio.open_connection(*served.address)
            for _ in range(10):  # until it is accepted, which shows nowhere
                await asyncio.sleep(0)
            served.server.reload(auth_optional=True, size=2000, **options)
            ended = asyncio.create_task(served.server.old_connections_ended())
            _, after = await asyncio.open_connection(*served.address)
            done, _ = await asyncio.wait([ended], timeout=0.1)
            assert not done
            writer.write(octets)
            writer.write_eof()
            await reader.read()
            await asyncio.wait_for(ended, 5)  # and not for the one that came later
            for each in (writer, after):
                each.close()

    async def test_waits_for_those_of_a_listener_that_is_gone(self) -> None:
        async with SMTPServer(auth_optional=True) as server:
            address = await server.listen(0, "127.0.0.1")
            client = await greeted(server)
            await server.old_connections_ended()  # nothing has changed: there are none
            await server.stop_listening(address)
            ended = asyncio.create_task(server.old_connections_ended())
            assert (await client.command("NOOP")).code == 250
            assert not ended.done()
            await client.command("QUIT")
            await asyncio.wait_for(ended, 5)
            await client.close()

    async def test_a_handler_does_not_wait_for_its_own(self) -> None:
        async def on_mail_from(_address: Any, _session: Session) -> None:
            served.server.reload(auth_optional=True)
            await served.server.old_connections_ended()

        async with serving(auth_optional=True, on_mail_from=on_mail_from) as served:
            client = await served.client()
            await client.ehlo()
            assert (await client.command("MAIL FROM:<>")).code == 250
