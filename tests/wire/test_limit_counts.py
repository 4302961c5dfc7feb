"""The option limit_counts: one limit over several servers, here and by way of another process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import pytest

from pillarbox import ConfigurationError, LimitCounts, SMTPServer
from support import TIMEOUT, Client, Served, on_both_loops, recorded, serving

FULL = "421 mx.test Too many connected clients, try again in a moment"
TOO_MANY = "421 mx.test Too many connections, try again later"
WELCOME = "220 mx.test ESMTP"


@contextlib.asynccontextmanager
async def two_servers(**options: Any) -> AsyncIterator[tuple[Served, Served]]:
    """Run two servers that are told their clients' addresses by PROXY headers, and count together."""
    together: dict[str, Any] = {"limit_counts": LimitCounts(), "use_proxy": ["127.0.0.1"], "name": "mx.test"}
    together |= options
    async with serving(**together) as one, serving(**together) as other:
        yield one, other


async def greeted(served: Served, source: str = "192.0.2.1", *, port: int | None = None) -> tuple[Client, str]:
    """Return a client with this address, and what it was greeted with."""
    client = await served.connect(address=("127.0.0.1", port) if port else None)
    await client.send(f"PROXY TCP4 {source} 192.0.2.25 4000 25\r\n".encode())
    return client, await client.hear()


async def leave(client: Client) -> None:
    await client.command("QUIT")
    await client.eof()


class Elsewhere(LimitCounts):
    """Counts that are somewhere else: an answer takes its time, or never comes."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.held: dict[str, int] = {}
        self.answers: asyncio.Event = asyncio.Event()
        self.answers.set()
        self.broken = False

    async def _answer(self, question: str) -> None:
        self.asked.append(question)
        if self.broken:
            raise ConnectionError("gone")
        await self.answers.wait()

    async def enter(self, places: Mapping[str, int | None]) -> bool:
        await self._answer("enter")
        return await super().enter(places)

    def leave(self, places: Iterable[str]) -> None:
        super().leave(places)

    async def take(self, key: str, rate: str) -> bool:
        await self._answer("take")
        return await super().take(key, rate)


@on_both_loops
async def test_max_clients_over_two_servers() -> None:
    async with two_servers(max_clients=3) as (one, other):
        clients = [await greeted(each) for each in (one, other, one)]
        assert [greeting for _, greeting in clients] == [WELCOME] * 3
        for served in (one, other):
            refused, greeting = await greeted(served)
            assert greeting == FULL
            await refused.eof()
        await leave(clients[0][0])
        assert (await greeted(other))[1] == WELCOME
        assert (await greeted(one))[1] == FULL


@on_both_loops
async def test_max_clients_per_address_over_two_servers() -> None:
    async with two_servers(max_clients_per_address=2) as (one, other):
        clients = [await greeted(one), await greeted(other)]
        for served in (one, other):
            assert (await greeted(served))[1] == TOO_MANY
            assert (await greeted(served, "192.0.2.2"))[1] == WELCOME
        await leave(clients[1][0])
        assert (await greeted(one))[1] == WELCOME


async def test_a_listeners_own_max_clients_is_that_of_the_same_address() -> None:
    counts = LimitCounts()
    options: dict[str, Any] = {"limit_counts": counts, "max_clients": 3, "use_proxy": ["127.0.0.1"], "name": "mx.test"}
    async with serving(**options) as one, serving(**options) as other:
        address = await one.server.listen(0, "127.0.0.1", max_clients=1)
        assert isinstance(address, tuple)
        (listening,) = one.server._endpoints[-1]._servers[-1].sockets
        # As two processes have it: both listen on one socket.
        await other.server.listen(sock=listening.dup(), max_clients=1)
        await one.server.listen(0, "127.0.0.1", max_clients=1)  # another place, of its own
        first, greeting = await greeted(one, port=address[1])
        assert greeting == WELCOME
        assert (await greeted(one, port=address[1]))[1] == FULL
        second = one.server.addresses[-1]
        assert isinstance(second, tuple)
        assert (await greeted(one, port=second[1]))[1] == WELCOME
        # All of them count for the servers' own.
        assert (await greeted(other))[1] == WELCOME
        assert (await greeted(other))[1] == FULL
        await leave(first)
        assert (await greeted(other))[1] == WELCOME


async def test_rates_over_two_servers() -> None:
    async with two_servers(rates_per_address={"messages": "3/hour"}, rates_over_all={"recipients": "5/hour"}) as both:
        clients = [(await greeted(each))[0] for each in both]
        for client in clients:
            await client.ehlo()
        for n in range(3):
            assert await clients[n % 2].deliver() == "250 OK: message queued"
        for client in clients:
            assert (await client.command("MAIL FROM:<a@example.com>")).code == 450
        stranger, _ = await greeted(both[0], "192.0.2.2")
        await stranger.ehlo()
        assert (await stranger.command("MAIL FROM:<a@example.com>")).code == 250
        codes = [(await stranger.command("RCPT TO:<b@example.com>")).code for _ in range(3)]
        assert codes == [250, 250, 450]


async def test_after_xclient_the_real_client_counts_and_its_proxy_does_not() -> None:
    counts = LimitCounts()
    options: dict[str, Any] = {"limit_counts": counts, "max_clients_per_address": 1, "use_xclient": ["127.0.0.1"]}
    async with serving(**options, name="mx.test") as one, serving(**options, name="mx.test") as other:
        first = await one.hello()
        assert (await (await other.connect()).reply()).code == 421
        assert await first.say("XCLIENT ADDR=192.0.2.1") == WELCOME
        second = await other.hello()
        assert await second.say("XCLIENT ADDR=192.0.2.1") == TOO_MANY


async def test_nothing_is_asked_where_there_is_no_such_limit() -> None:
    counts = Elsewhere()
    async with serving(limit_counts=counts) as served:
        client = await served.hello()
        assert await client.deliver() == "250 OK: message queued"
    assert counts.asked == []


class AtOnce(Elsewhere, at_once=True):
    pass


async def test_what_answers_at_once_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillarbox.net.patience.ANSWER_TIME", 0.0)
    for kind, answers in ((Elsewhere, "250 "), (AtOnce, "450 ")):
        counts = kind()
        counts.answers.clear()
        async with serving(limit_counts=counts, rates_over_all={"messages": "1/hour"}) as served:
            await LimitCounts.take(counts, "all:messages", "1/hour")
            client = await served.hello()
            await client.send(b"MAIL FROM:<a@example.com>\r\n")
            if kind is AtOnce:
                async with asyncio.timeout(TIMEOUT):
                    while not counts.asked:
                        await asyncio.sleep(0)
                counts.answers.set()
            assert (await client.hear()).startswith(answers)


@on_both_loops
async def test_what_does_not_answer_does_not_stop_the_mail() -> None:
    counts = Elsewhere()
    counts.answers.clear()
    async with serving(limit_counts=counts, max_clients=2, rates_over_all={"messages": "1/hour"}) as served:
        with recorded(logging.INFO) as records:
            clients = [await served.hello(), await served.hello()]
            assert await clients[0].deliver() == "250 OK: message queued"
            assert await clients[0].deliver() == "250 OK: message queued"
            third = await served.connect()  # the server's own number holds
            assert await third.hear() == f"421 {served.server.options.name} " + FULL.partition("mx.test ")[2]
        told = [record.getMessage() for record in records if getattr(record, "tnx", "") == "rates"]
    assert [line.partition(":")[0] for line in told] == [
        "limit_counts fails, the limits hold for this process alone",
        "the rate store fails, rates do not hold",
    ]
    assert await LimitCounts.enter(counts, {"clients": 1})  # who was let in unasked gives nothing back


async def test_a_derived_class_that_fails_does_not_stop_the_mail() -> None:
    counts = Elsewhere()
    counts.broken = True
    async with serving(limit_counts=counts, max_clients=9) as served:
        assert await (await served.hello()).deliver() == "250 OK: message queued"
        assert await (await served.hello()).deliver() == "250 OK: message queued"
    assert counts.asked == ["enter"]  # it is asked again after five seconds


async def test_a_client_that_is_gone_while_it_is_asked_for_is_not_counted() -> None:
    counts = Elsewhere()
    counts.answers.clear()
    async with serving(limit_counts=counts, max_clients=1) as served:
        client = await served.connect()
        async with asyncio.timeout(TIMEOUT):
            while not counts.asked:
                await asyncio.sleep(0)
        await client.close()
        counts.answers.set()
        assert await (await served.hello()).say("NOOP") == "250 OK"


async def test_is_the_whole_servers_and_nothing_else() -> None:
    with pytest.raises(ConfigurationError, match=r"option limit_counts: must be a pillarbox\.LimitCounts, not dict"):
        SMTPServer(limit_counts={})  # type: ignore[arg-type]
    async with serving() as served:
        with pytest.raises(ConfigurationError, match="option limit_counts: is the whole server's"):
            await served.server.listen(0, "127.0.0.1", limit_counts=LimitCounts())
