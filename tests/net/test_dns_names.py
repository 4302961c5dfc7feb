"""Names of addresses: what is believed, remembered and given up; and one true lookup through the hosts file."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pillarbox.net.dns import DNSResolver, HostNames, is_host_name

if TYPE_CHECKING:
    from collections.abc import Sequence


class Fake:
    """A resolver that answers from tables, counts, and can be held back."""

    def __init__(self, names: dict[str, Any] | None = None, addresses: dict[str, Any] | None = None) -> None:
        self.names = names or {}
        self.addresses = addresses or {}
        self.asked: list[str] = []
        self.arrived = asyncio.Event()
        self.released = asyncio.Event()
        self.released.set()

    async def reverse(self, ip: str) -> Any:
        return await self._answer(ip, self.names)

    async def forward(self, name: str) -> Any:
        return await self._answer(name, self.addresses)

    async def _answer(self, question: str, table: dict[str, Any]) -> Any:
        self.asked.append(question)
        self.arrived.set()
        await self.released.wait()
        answer = table[question]
        if isinstance(answer, BaseException):
            raise answer
        return answer


class ReverseOnly:
    async def reverse(self, ip: str) -> Sequence[str]:
        return ["mx.example.com"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_the_first_name_without_its_trailing_dot() -> None:
    names = HostNames(Fake({"192.0.2.1": ["mx.example.com.", "other.example.com"]}))
    assert await names.name_of("192.0.2.1") == "mx.example.com"


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [""],
        ["."],
        ["mx.example.com\r\nX-Evil: 1"],
        ["mx example.com"],
        ["mx..example.com"],
        ["<script>.example.com"],
        ["мх.example.com"],
        ["-rf.example.com"],
        ["203.0.113.9"],
        ["[203.0.113.9]"],
        ["a" * 64 + ".example.com"],
        [".".join(["a" * 50] * 6)],
        [b"mx.example.com"],
        [None],
        None,
        42,
        OSError("no network"),
        ValueError("a\nbug"),
        asyncio.CancelledError(),
    ],
)
async def test_a_failure_or_a_strange_answer_gives_the_address(answer: object) -> None:
    names = HostNames(Fake({"192.0.2.1": answer}))
    assert await names.name_of("192.0.2.1") == "[192.0.2.1]"
    assert names.cached("192.0.2.1") == "[192.0.2.1]"


async def test_a_resolver_that_forgot_async_is_a_failure() -> None:
    class Plain:
        def reverse(self, ip: str) -> Sequence[str]:
            return ["mx.example.com"]

    resolver: Any = Plain()
    assert await HostNames(resolver).name_of("2001:db8::1") == "[2001:db8::1]"


async def test_a_single_string_is_one_name() -> None:
    assert await HostNames(Fake({"192.0.2.1": "mx.example.com"})).name_of("192.0.2.1") == "mx.example.com"


@pytest.mark.parametrize("name", ["localhost", "MX1.Example.COM", "xn--bcher-kva.example", "_a.example", "1.2.3.a"])
def test_host_names(name: str) -> None:
    assert is_host_name(name)


async def test_a_slow_answer_is_given_up() -> None:
    fake = Fake({"192.0.2.1": ["mx.example.com"]})
    fake.released.clear()
    names = HostNames(fake, timeout=0.001)
    assert await names.name_of("192.0.2.1") == "[192.0.2.1]"
    assert names.cached("192.0.2.1") == "[192.0.2.1]"


async def test_answers_and_failures_are_kept_each_for_its_time() -> None:
    clock = Clock()
    fake = Fake({"192.0.2.1": ["mx.example.com"], "192.0.2.2": []})
    names = HostNames(fake, ttl=300, failure_ttl=60, clock=clock)
    assert names.cached("192.0.2.1") is None
    for _ in range(2):
        assert await names.name_of("192.0.2.1") == "mx.example.com"
        assert await names.name_of("192.0.2.2") == "[192.0.2.2]"
    assert fake.asked == ["192.0.2.1", "192.0.2.2"]
    clock.now = 61
    assert (names.cached("192.0.2.1"), names.cached("192.0.2.2")) == ("mx.example.com", None)
    clock.now = 301
    assert names.cached("192.0.2.1") is None


async def test_the_cache_is_bounded() -> None:
    fake = Fake({f"192.0.2.{n}": [f"h{n}.example.com"] for n in range(10)})
    names = HostNames(fake, size=4)
    for ip in fake.names:
        await names.name_of(ip)
    assert sum(names.cached(ip) is not None for ip in fake.names) == 4


async def test_those_who_ask_together_share_one_query() -> None:
    fake = Fake({"192.0.2.1": ["mx.example.com"]})
    fake.released.clear()
    names = HostNames(fake)
    waiters = [asyncio.create_task(names.name_of("192.0.2.1")) for _ in range(5)]
    await fake.arrived.wait()
    fake.released.set()
    assert await asyncio.gather(*waiters) == ["mx.example.com"] * 5
    assert fake.asked == ["192.0.2.1"]


async def test_a_cancelled_waiter_leaves_the_query_to_the_others() -> None:
    fake = Fake({"192.0.2.1": ["mx.example.com"]})
    fake.released.clear()
    names = HostNames(fake)
    first, second = (asyncio.create_task(names.name_of("192.0.2.1")) for _ in range(2))
    await fake.arrived.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    fake.released.set()
    assert await second == "mx.example.com"
    assert fake.asked == ["192.0.2.1"]


async def test_close_gives_up_what_is_asked() -> None:
    fake = Fake({"192.0.2.1": ["mx.example.com"]})
    fake.released.clear()
    names = HostNames(fake)
    waiter = asyncio.create_task(names.name_of("192.0.2.1"))
    await fake.arrived.wait()
    await names.close()
    assert await waiter == "[192.0.2.1]"


@pytest.mark.parametrize(
    ("addresses", "ip", "confirmed"),
    [
        (["192.0.2.9", "192.0.2.1"], "192.0.2.1", True),
        (["::ffff:192.0.2.1"], "192.0.2.1", True),
        (["2001:0DB8:0:0::1"], "2001:db8::1", True),
        (["192.0.2.2"], "192.0.2.1", False),
        ([], "192.0.2.1", False),
        (["nonsense"], "192.0.2.1", False),
        (None, "192.0.2.1", False),
        (OSError("no network"), "192.0.2.1", False),
        (["192.0.2.1"], "nonsense", False),
    ],
)
async def test_a_name_is_confirmed_by_its_addresses(addresses: object, ip: str, confirmed: bool) -> None:
    fake = Fake(addresses={"mx.example.com": addresses})
    names = HostNames(fake)
    assert await names.confirms("MX.example.com", ip) is confirmed
    assert await names.confirms("mx.example.com", ip) is confirmed
    assert len(fake.asked) <= 1, "the answer is kept, whichever it was"


async def test_what_is_no_name_is_never_asked_for() -> None:
    fake = Fake()
    assert not await HostNames(fake).confirms("[192.0.2.1]", "192.0.2.1")
    assert fake.asked == []


async def test_nothing_is_confirmed_without_forward() -> None:
    names = HostNames(ReverseOnly())
    assert await names.name_of("192.0.2.1") == "mx.example.com"
    assert not await names.confirms("mx.example.com", "192.0.2.1")


async def _through_the_hosts_file() -> None:
    resolver = DNSResolver()
    names = HostNames(resolver)
    try:
        name = await names.name_of("127.0.0.1")
        assert name == names.cached("127.0.0.1")
        assert "localhost" in await resolver.reverse("127.0.0.1")
        assert await names.confirms("localhost", "127.0.0.1")
        assert not await names.confirms("localhost", "192.0.2.1")
        assert await names.name_of("no address") == "[no address]"
        assert await names.name_of("fe80::1%eth0") == "[fe80::1%eth0]"
    finally:
        await names.close()
        await resolver.close()
        await resolver.close()


def test_a_true_lookup_on_asyncio() -> None:
    asyncio.run(_through_the_hosts_file())


def test_a_true_lookup_on_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")
    uvloop.run(_through_the_hosts_file())


async def test_close_ends_a_query_that_the_network_does_not_answer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.setblocking(False)
        resolver = DNSResolver()
        resolver._resolver().nameservers = [f"127.0.0.1:{silent.getsockname()[1]}"]
        names = HostNames(resolver)
        waiter = asyncio.create_task(names.name_of("192.0.2.1"))
        await asyncio.get_running_loop().sock_recv(silent, 512)
        await names.close()
        await resolver.close()
        assert await waiter == "[192.0.2.1]"


async def test_nothing_is_imported_or_opened_before_the_first_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("opened")

    monkeypatch.setattr("aiodns.DNSResolver.__init__", refuse)
    resolver = DNSResolver()
    await HostNames(resolver).close()
    await resolver.close()
