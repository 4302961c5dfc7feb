"""Connections: timeouts, limits, and the name of the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from pillarbox import Address, MessageStream, Recipient, Session
from support import TIMEOUT, Client, Sessions, careless, on_both_loops, serving


async def test_greet_delay() -> None:
    async with serving(greet_delay=0.3, name="mx.example.net") as served:
        began = time.monotonic()
        client = await served.connect()
        assert await client.hear() == "220 mx.example.net ESMTP"
        assert time.monotonic() - began >= 0.28


async def test_who_talks_within_the_greet_delay_talks_too_soon() -> None:
    async with serving(greet_delay=TIMEOUT, name="mx.example.net") as served:
        client = await served.connect()
        await client.send(b"EHLO client.example\r\n")
        assert await client.hear() == "421 mx.example.net You talk too soon"
        await client.eof()


async def test_input_before_the_greeting_is_refused_without_a_delay_too() -> None:
    connected, sent = asyncio.Event(), asyncio.Event()

    async def on_connect(session: Session) -> None:
        connected.set()
        await sent.wait()

    async with serving(on_connect=on_connect, name="mx.example.net") as served:
        client = await served.connect()
        await connected.wait()
        await client.send(b"EHLO client.example\r\n")
        sent.set()
        assert await client.hear() == "421 mx.example.net You talk too soon"
        await client.eof()


@pytest.mark.parametrize("where", ["command", "half a command", "data", "auth"])
async def test_socket_timeout(where: str) -> None:
    async with serving(socket_timeout=0.25, allow_insecure_auth=True) as served:
        client = await served.hello()
        if where == "half a command":
            await client.send(b"NOO")
        if where == "data":
            await client.envelope()
            assert (await client.command("DATA")).code == 354
        if where == "auth":
            assert (await client.command("AUTH LOGIN")).code == 334
        assert await client.hear() == "421 Timeout - closing connection"
        await client.eof()


async def test_socket_timeout_under_tls() -> None:
    async with serving(socket_timeout=0.25) as served:
        client = await served.hello()
        await client.starttls(careless())
        assert await client.hear() == "421 Timeout - closing connection"
        await client.eof()


async def test_time_in_a_handler_is_not_the_clients_silence() -> None:
    async def on_rcpt_to(address: Recipient, session: Session) -> None:
        await asyncio.sleep(0.6)

    async with serving(socket_timeout=0.25, on_rcpt_to=on_rcpt_to) as served:
        client = await served.hello()
        await client.envelope()


async def test_close_timeout_cuts_a_transaction() -> None:
    async with serving(close_timeout=0.3) as served:
        client = await served.hello()
        await client.envelope()
        began = time.monotonic()
        closing = asyncio.create_task(served.server.close())
        assert await client.hear() == "421 Server shutting down"
        assert time.monotonic() - began >= 0.28
        await client.eof()
        await asyncio.wait_for(closing, TIMEOUT)


async def test_handler_timeout() -> None:
    async def forever(*_: object) -> None:
        await asyncio.Event().wait()

    async with serving(handler_timeout=0.2, on_rcpt_to=forever) as served:
        client = await served.hello()
        assert await client.say("MAIL FROM:<a@example.com>") == "250 Accepted"
        assert (await client.command("RCPT TO:<b@example.com>")).code == 451
        assert await client.say("NOOP") == "250 OK"


async def test_handler_timeout_does_not_count_waiting_for_the_client() -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        await stream.read()

    async with serving(handler_timeout=0.2, on_data=on_data) as served:
        client = await served.hello()
        await client.envelope()
        assert (await client.command("DATA")).code == 354
        for _ in range(4):
            await client.send(b"line\r\n")
            await asyncio.sleep(0.1)
        await client.send(b".\r\n")
        assert await client.hear() == "250 OK: message queued"


async def test_max_clients() -> None:
    async with serving(max_clients=2, name="mx.example.net") as served:
        first, second = await served.client(), await served.client()
        third = await served.connect()
        assert await third.hear() == "421 mx.example.net Too many connected clients, try again in a moment"
        await third.eof()
        assert len(served.server.connections) == 2
        assert await first.say("QUIT") == "221 Bye"
        await first.eof()
        fourth = await served.client()
        assert await fourth.say("NOOP") == "250 OK"
        assert await second.say("NOOP") == "250 OK"


async def test_max_clients_on_implicit_tls_closes_before_the_handshake() -> None:
    async with serving(max_clients=1, secure=True) as served:
        await served.client(careless())
        plain = await served.connect()
        await plain.eof()


async def test_max_clients_forgets_those_that_failed() -> None:
    async with serving(max_clients=1, secure=True) as served:
        for _ in range(3):
            client = await served.connect()
            await client.send(b"EHLO client.example\r\n")
            await client.rest()
        client = await served.client(careless())
        assert await client.say("NOOP") == "250 OK"


async def test_max_clients_counts_across_listeners() -> None:
    async with serving(max_clients=1) as served:
        await served.server.listen(0, "127.0.0.1")
        await served.client()
        second = await served.connect(address=served.server.addresses[1])
        assert (await second.reply()).code == 421


# --- The client's name


class Names:
    """A resolver that answers from a list, and counts."""

    def __init__(self, *answers: Sequence[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def reverse(self, ip: str) -> Sequence[str]:
        self.asked.append(ip)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def hello_text(client: Client) -> str:
    assert (await client.reply()).code == 220
    return await client.say("HELO liar.example")


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (["host.example.net", "other.example.net"], "host.example.net"),
        (["host.example.net."], "host.example.net"),
        ([], "[127.0.0.1]"),
        (OSError("no DNS here"), "[127.0.0.1]"),
        (["evil\r\n250 host"], "[127.0.0.1]"),
        (["192.0.2.1"], "[127.0.0.1]"),
    ],
)
async def test_resolver(answer: Sequence[str] | Exception, name: str) -> None:
    resolver, sessions = Names(answer), Sessions()
    async with serving(
        resolver=resolver,
        disable_reverse_lookup=False,
        helo_response="%.0s%s".replace("%.0s", "%s "),
        on_connect=sessions,
    ) as served:
        for _ in range(2):  # the second time from the cache, failures too
            client = await served.connect()
            assert (await hello_text(client)).endswith(f" {name}")
    assert resolver.asked == ["127.0.0.1"]
    assert [session.client_hostname for session in sessions] == [name, name]


async def test_a_slow_resolver_is_not_waited_for() -> None:
    class Slow:
        async def reverse(self, ip: str) -> Sequence[str]:
            await asyncio.Event().wait()
            return []

    async with serving(resolver=Slow(), disable_reverse_lookup=False, helo_response="%s %s", name="mx") as served:
        began = time.monotonic()
        client = await served.connect()
        assert await hello_text(client) == "250 mx [127.0.0.1]"
        assert 1.4 < time.monotonic() - began < 4
        began = time.monotonic()
        client = await served.connect()  # remembered
        assert await hello_text(client) == "250 mx [127.0.0.1]"
        assert time.monotonic() - began < 1


async def test_disable_reverse_lookup_asks_nobody() -> None:
    resolver = Names(["host.example.net"])
    async with serving(resolver=resolver, disable_reverse_lookup=True, helo_response="%s %s", name="mx") as served:
        client = await served.connect()
        assert await hello_text(client) == "250 mx [127.0.0.1]"
    assert resolver.asked == []


async def test_the_systems_own_resolver_knows_127_0_0_1() -> None:
    async with serving(disable_reverse_lookup=False, helo_response="%s %s", name="mx") as served:
        client = await served.connect()
        assert await hello_text(client) in ("250 mx localhost", "250 mx [127.0.0.1]")


@on_both_loops
async def test_a_handler_that_blocks_the_event_loop_costs_nobody_the_patience() -> None:
    def on_mail_from(address: Address, session: Session) -> None:
        time.sleep(0.6)  # what nobody should do, and some do

    async with serving(socket_timeout=0.25, on_mail_from=on_mail_from) as served:
        waiting = await served.hello()
        busy = await served.hello()
        assert (await busy.command("MAIL FROM:<a@example.org>")).code == 250
        assert (await waiting.command("NOOP")).code == 250
