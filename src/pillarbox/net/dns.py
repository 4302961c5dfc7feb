"""Names of addresses are found and judged here: a lookup never blocks the loop, and no failure leaves this module.

``DNSResolver`` asks the DNS; ``HostNames`` is what the server uses: it limits the time, checks what came back
(a PTR record says what the owner of the address likes) and remembers answers and failures.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from pillarbox.errors import PROGRAM_ENDS

if TYPE_CHECKING:
    import aiodns
    from cachetools import TLRUCache

    from pillarbox.options import Resolver

Question = TypeVar("Question", bound=Hashable)
Answer = TypeVar("Answer")

# RFC 5891 4.2.3.1 and RFC 1123 2.1: letters, digits and hyphens, none at the front; '_' is seen in the wild. The last
# label is not a number, or a PTR of "192.0.2.1" would pass for another client's address.
_LABEL = "[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")


def is_host_name(name: str) -> bool:
    """Whether this can be a host name in ASCII (A-labels), without a trailing dot."""
    # RFC 1035 2.3.4: "names           255 octets or less"
    return len(name) <= 255 and _HOST_NAME.fullmatch(name) is not None


class DNSResolver:
    """The system's hosts file and DNS, through c-ares. One for each event loop; ``close`` it there.

    Both lookups raise what aiodns raises; ``HostNames`` is where that ends.
    """

    # c-ares doubles the pause for the second try, so that no query outlives its askers by long.
    _TIMEOUT = 0.75
    _TRIES = 2

    def __init__(self) -> None:
        self._aiodns: aiodns.DNSResolver | None = None

    async def reverse(self, ip: str) -> Sequence[str]:
        """Return the host names of an address, the first PTR record's first."""
        found = await self._resolver().gethostbyaddr(ip)
        return [found.name, *found.aliases]

    async def forward(self, name: str) -> Sequence[str]:
        """Return the addresses of a host name, IPv4 and IPv6."""
        found = await self._resolver().getaddrinfo(name)
        return [_decoded(node.addr[0]) for node in found.nodes]

    async def close(self) -> None:
        """Give up what is asked and release the channel."""
        resolver, self._aiodns = self._aiodns, None
        if resolver is not None:
            await resolver.close()

    def _resolver(self) -> aiodns.DNSResolver:
        # Made at the first lookup: the import takes 50 ms, and c-ares answers into the loop that runs now.
        if self._aiodns is None:
            import aiodns
            import pycares

            # A PTR name is complete: a search list would look "www" up as the neighbour's "www.example.com".
            flags = pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_EDNS
            self._aiodns = aiodns.DNSResolver(timeout=self._TIMEOUT, tries=self._TRIES, flags=flags)
        return self._aiodns


class HostNames:
    """The host names of clients, remembered: ``ttl`` and ``failure_ttl`` seconds, ``size`` of them at most.

    The resolver needs ``async reverse(ip)``, and ``async forward(name)`` for ``confirms``; whatever it raises is
    a failure, as is an answer that takes longer than ``timeout`` seconds. Call ``close`` on the loop that asked;
    the resolver stays its maker's to close.
    """

    def __init__(
        self,
        resolver: Resolver,
        *,
        timeout: float = 1.5,
        size: int = 4096,
        ttl: float = 300.0,
        failure_ttl: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolver = resolver
        limits = _Limits(timeout, size, ttl, failure_ttl, clock)
        self._names: _Answers[str, str] = _Answers(self._reverse, _literal, limits)
        self._confirmed: _Answers[tuple[str, str], bool] = _Answers(self._resolves_to, lambda _: False, limits)

    def cached(self, ip: str) -> str | None:
        """Return what ``name_of`` would, if that needs no lookup."""
        return self._names.known(ip)

    async def name_of(self, ip: str) -> str:
        """Return the client's host name, or ``[ip]`` where none can be had in time."""
        return await self._names.get(ip)

    async def confirms(self, name: str, ip: str) -> bool:
        """Whether the name resolves back to the address; False where that cannot be found out in time."""
        return is_host_name(name) and await self._confirmed.get((name.lower(), ip))

    async def close(self) -> None:
        """Give up the lookups under way; whoever waits for one gets a failure."""
        await self._names.close()
        await self._confirmed.close()

    async def _reverse(self, ip: str) -> str:
        found = await self._resolver.reverse(ip)
        # A string is a sequence of strings too: its first is a letter.
        name = (found if isinstance(found, str) else found[0]).removesuffix(".")
        return name if is_host_name(name) else _literal(ip)

    async def _resolves_to(self, question: tuple[str, str]) -> bool:
        name, ip = question
        forward: Callable[[str], Awaitable[Sequence[str]]] | None = getattr(self._resolver, "forward", None)
        if forward is None:
            return False
        wanted = _normalised(ip)
        return any(_normalised(address) == wanted for address in await forward(name))


class _Limits(NamedTuple):
    timeout: float
    size: int
    ttl: float
    failure_ttl: float
    clock: Callable[[], float]


class _Answers(Generic[Question, Answer]):
    """Answers to one kind of question: limited in time, cached, and asked once for all who wait."""

    def __init__(
        self,
        ask: Callable[[Question], Awaitable[Answer]],
        failure: Callable[[Question], Answer],
        limits: _Limits,
    ) -> None:
        self._ask = ask
        self._failure = failure
        self._timeout = limits.timeout

        def expires(question: Question, answer: Answer, now: float) -> float:
            return now + (limits.failure_ttl if answer == failure(question) else limits.ttl)

        from cachetools import TLRUCache

        self._kept: TLRUCache[Question, Answer] = TLRUCache(limits.size, expires, limits.clock)
        self._asked: dict[Question, asyncio.Task[Answer]] = {}

    def known(self, question: Question) -> Answer | None:
        return self._kept.get(question)

    async def get(self, question: Question) -> Answer:
        known = self._kept.get(question)
        if known is not None:
            return known
        task = self._asked.get(question) or self._start(question)
        await asyncio.wait((task,))  # unlike awaiting the task: a waiter that is cancelled does not cancel it
        return self._failure(question) if task.cancelled() else task.result()

    async def close(self) -> None:
        tasks = list(self._asked.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _start(self, question: Question) -> asyncio.Task[Answer]:
        task = asyncio.create_task(self._answer(question))
        self._asked[question] = task
        task.add_done_callback(partial(self._keep, question))
        return task

    async def _answer(self, question: Question) -> Answer:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._ask(question)
        except (asyncio.CancelledError, *PROGRAM_ENDS):
            raise
        except BaseException:  # noqa: BLE001 - the resolver is the user's, its answers are a stranger's
            return self._failure(question)

    def _keep(self, question: Question, task: asyncio.Task[Answer]) -> None:
        del self._asked[question]
        # A resolver may raise CancelledError of its own accord: a failure like any other.
        self._kept[question] = self._failure(question) if task.cancelled() else task.result()


def _literal(ip: str) -> str:
    return f"[{ip}]"


def _decoded(address: Any) -> str:
    return address.decode("ascii") if isinstance(address, bytes) else str(address)


def _normalised(address: str) -> IPv4Address | IPv6Address:
    """Parse an address; the IPv4 address inside ``::ffff:192.0.2.1`` is that address."""
    parsed = ip_address(address)
    return getattr(parsed, "ipv4_mapped", None) or parsed
