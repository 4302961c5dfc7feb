"""Proxies: use_proxy, proxy_timeout, ignored_hosts, use_xclient, use_xforward."""

from __future__ import annotations

import logging
import socket
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pillarbox import Session
from support import Sessions, careless, recorded, serving

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 25\r\n"
EVERYONE: list[Any] = [True, ["*"], ["127.0.0.1"], ["127.0.0.0/8"], ["192.0.2.1", "127.0.0.0/24"]]
NOBODY: list[Any] = [False, [], ["192.0.2.1"], ["192.0.2.0/24", "2001:db8::/32"]]


@pytest.mark.parametrize("peers", EVERYONE)
async def test_use_proxy(peers: Any) -> None:
    sessions = Sessions()
    async with serving(use_proxy=peers, on_connect=sessions) as served:
        client = await served.connect()
        await client.send(V1)
        assert (await client.reply()).code == 220
        first = (await client.command("EHLO client.example")).lines[0]
        assert first.endswith("[192.0.2.7]")
    session = sessions[0]
    assert (session.remote_address, session.remote_port) == ("192.0.2.7", 51234)
    assert (session.local_address, session.local_port) == ("198.51.100.1", 25)


@pytest.mark.promises("Proxies", "A PROXY header is read from listed addresses only.")
@pytest.mark.parametrize("peers", NOBODY)
async def test_peers_that_are_not_listed_begin_with_no_header(peers: Any) -> None:
    async with serving(use_proxy=peers) as served:
        client = await served.client()
        assert await client.say("NOOP") == "250 OK"
    async with serving(use_proxy=peers, greet_delay=5) as served:
        client = await served.connect()
        await client.send(V1)
        assert (await client.reply()).code == 421  # it talks too soon, as everyone else would


async def test_the_name_is_looked_up_for_the_address_of_the_header() -> None:
    class Names:
        async def reverse(self, ip: str) -> list[str]:
            return [f"host-{ip.replace('.', '-')}.example.net"]

    async with serving(use_proxy=True, resolver=Names(), disable_reverse_lookup=False) as served:
        client = await served.connect()
        await client.send(V1)
        assert (await client.reply()).code == 220
        assert (await client.command("EHLO x")).lines[0].endswith("host-192-0-2-7.example.net")


@pytest.mark.promises(
    "Proxies", "A PROXY header has limits of length and time, and a malformed one ends the connection."
)
async def test_proxy_timeout() -> None:
    sessions = Sessions()
    async with serving(use_proxy=True, proxy_timeout=0.2, on_connect=sessions) as served:
        client = await served.connect()
        await client.send(V1[:20])
        assert await client.line() == b"* BAD Invalid PROXY header\r\n"
        await client.eof()
    assert sessions == []


@pytest.mark.parametrize("peers", [["127.0.0.1"], ["127.0.0.0/8"]])
async def test_ignored_hosts(peers: list[str]) -> None:
    called: list[str] = []
    with recorded(logging.DEBUG) as records:
        async with serving(
            ignored_hosts=peers,
            max_clients=1,
            on_connect=lambda _: called.append("connect"),
            on_close=lambda _: called.append("close"),
        ) as served:
            for _ in range(3):  # not counted either
                client = await served.client()
                assert await client.say("EHLO check.example") != ""
            assert served.server.connections == []
            assert await client.say("QUIT") == "221 Bye"
            await client.eof()
            during = [r for r in records if getattr(r, "address", "")]
    assert called == []
    assert during == []


async def test_nothing_that_an_ignored_host_does_is_logged() -> None:
    with recorded(logging.DEBUG) as records:
        async with serving(ignored_hosts=["127.0.0.1"], allow_insecure_auth=True) as served:
            client = await served.hello()
            assert (await client.command("AUTH PLAIN AGEAYg==")).code == 535
            assert (await client.command("MAIL FROM:<bad>")).code == 501
            assert await client.deliver() == "250 OK: message queued"
            await client.say("QUIT")
            await client.eof()
    assert [r.getMessage() for r in records if getattr(r, "address", "")] == []


async def test_an_ignored_host_that_only_knocks_at_implicit_tls_is_not_logged() -> None:
    with recorded(logging.DEBUG) as records:
        async with serving(ignored_hosts=["127.0.0.1"], secure=True) as served:
            client = await served.connect()
            await client.close()
            other = await served.client(careless())
            await other.close()
    assert [r.getMessage() for r in records if getattr(r, "address", "")] == []


@pytest.mark.parametrize("sent", [b"", V1[:20]])
async def test_an_ignored_host_that_leaves_before_its_proxy_header_is_not_logged(sent: bytes) -> None:
    with recorded(logging.DEBUG) as records:
        async with serving(ignored_hosts=["127.0.0.1"], use_proxy=True) as served:
            client = await served.connect()
            await client.send(sent)
            await client.close()
    assert [r.getMessage() for r in records if getattr(r, "address", "")] == []


@pytest.mark.parametrize("sent", [b"", b"EHLO client.example\r\n"])
async def test_a_proxy_that_sends_no_header_is_logged_also_where_its_own_checks_are_ignored(sent: bytes) -> None:
    with recorded(logging.INFO) as records:
        async with serving(ignored_hosts=["127.0.0.1"], use_proxy=True, proxy_timeout=0.2) as served:
            client = await served.connect()
            await client.send(sent)
            assert await client.line() == b"* BAD Invalid PROXY header\r\n"
            await client.eof()
    assert [r.getMessage()[:21] for r in records if getattr(r, "address", "")] == ["no valid PROXY header"]


async def test_ignored_hosts_are_meant_behind_the_proxy_header() -> None:
    sessions = Sessions()
    async with serving(ignored_hosts=["192.0.2.7"], use_proxy=True, on_connect=sessions) as served:
        ignored = await served.connect()
        await ignored.send(V1)
        assert (await ignored.reply()).code == 220
        assert served.server.connections == []
        other = await served.connect()
        await other.send(V1.replace(b"192.0.2.7", b"192.0.2.8"))
        assert (await other.reply()).code == 220
        assert len(served.server.connections) == 1
    assert [session.remote_address for session in sessions] == ["192.0.2.8"]


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
async def test_a_unix_listener_behind_a_proxy() -> None:
    with TemporaryDirectory(prefix="pb") as folder:
        path = f"{folder}/s"
        async with serving(use_proxy=True) as served:
            await served.server.listen(path=path)
            client = await served.connect(address=path)
            await client.send(V1)
            assert (await client.reply()).code == 220
            assert served.server.connections[0].remote_address == "192.0.2.7"


# --- XCLIENT and XFORWARD

VERBS = pytest.mark.parametrize("verb", ["XCLIENT", "XFORWARD"])


@pytest.mark.promises(
    "Proxies", "XCLIENT and XFORWARD are announced to listed addresses, and refused with 550 to all others."
)
@VERBS
@pytest.mark.parametrize("peers", EVERYONE)
async def test_listed_peers_may(verb: str, peers: Any) -> None:
    async with serving(**{f"use_{verb.lower()}": peers}) as served:
        client = await served.client()
        offered = (await client.ehlo())[verb].split()
        assert {"NAME", "ADDR", "PORT", "PROTO", "HELO"} <= set(offered)
        answer = await client.command(f"{verb} NAME=client.example.org ADDR=192.0.2.7")
        assert answer.code == (220 if verb == "XCLIENT" else 250)


@pytest.mark.promises(
    "Proxies", "XCLIENT and XFORWARD are announced to listed addresses, and refused with 550 to all others."
)
@VERBS
@pytest.mark.parametrize("peers", NOBODY)
async def test_others_may_not(verb: str, peers: Any) -> None:
    async with serving(**{f"use_{verb.lower()}": peers}) as served:
        client = await served.client()
        assert verb not in await client.ehlo()
        assert (await client.command(f"{verb} NAME=client.example.org")).code == 550
        assert await client.say("NOOP") == "250 OK"


@VERBS
async def test_true_is_warned_of(verb: str) -> None:
    for trusted, warnings in ((True, 1), (["127.0.0.1"], 0)):
        with recorded(logging.WARNING) as records:
            async with serving(**{f"use_{verb.lower()}": trusted}):
                pass
        assert len([record for record in records if verb in record.getMessage()]) == warnings


@pytest.mark.promises(
    "Proxies", "XCLIENT that is accepted begins again with the greeting, and forgets what was said before."
)
async def test_what_xclient_changes() -> None:
    connected: list[str] = []

    def on_connect(session: Session) -> None:
        connected.append(session.remote_address)

    async with serving(use_xclient=True, use_xforward=True, name="mx.example.net", on_connect=on_connect) as served:
        client = await served.hello()
        answer = await client.say(
            "XCLIENT ADDR=IPv6:2001:DB8:0::7 PORT=2525 NAME=client.example.org PROTO=ESMTP HELO=h.example DESTPORT=587"
        )
        assert answer == "220 mx.example.net ESMTP"
        session = served.server.connections[0]
        assert (session.remote_address, session.remote_port) == ("2001:db8::7", 2525)
        assert session.client_hostname == "client.example.org"
        assert session.local_port == 587
        assert session.x_client["ADDR:DEFAULT"] == "127.0.0.1"
        assert session.x_client["NAME"] == "client.example.org"
        assert session.x_client["HELO"] == "h.example"
        assert await client.say("MAIL FROM:<a@example.com>") == "503 Error: send HELO/EHLO first"
        offered = await client.ehlo()
        assert not {"XCLIENT", "XFORWARD"} & set(offered)
        assert (await client.command("XCLIENT NAME=x")).code == 550
        assert (await client.command("XFORWARD NAME=x")).code == 550
    assert connected == ["127.0.0.1", "2001:db8::7"]


async def test_xforward_fills_x_forward_only() -> None:
    async with serving(use_xforward=["127.0.0.1"]) as served:
        client = await served.hello()
        assert await client.say("XFORWARD NAME=c+2Bd.example ADDR=192.0.2.7 PORT=99 IDENT=42") == "250 OK"
        assert await client.say("XFORWARD SOURCE=LOCAL HELO=[UNAVAILABLE]") == "250 OK"
        session = served.server.connections[0]
        assert session.x_forward == {
            "NAME": "c+d.example",
            "ADDR": "192.0.2.7",
            "PORT": "99",
            "IDENT": "42",
            "SOURCE": "LOCAL",
            "HELO": "",
        }
        assert session.remote_address == "127.0.0.1"
        assert session.client_hostname == "[127.0.0.1]"
        assert await client.deliver() == "250 OK: message queued"
