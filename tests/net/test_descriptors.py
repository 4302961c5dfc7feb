"""How far the limit of descriptors is raised, how they are shared out, and what the log says of refusals."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator

import pytest

from pillarbox.net import descriptors, refusals
from pillarbox.net.descriptors import Descriptors
from support import recorded, serving

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
INFINITY = -1


class Resource:
    """The module ``resource`` of a system that allows a process so much."""

    RLIMIT_NOFILE = 7
    RLIM_INFINITY = INFINITY

    def __init__(self, soft: int, hard: int, most: int) -> None:
        self.limits = soft, hard
        self._most = most

    def getrlimit(self, _: int) -> tuple[int, int]:
        return self.limits

    def setrlimit(self, _: int, limits: tuple[int, int]) -> None:
        if limits[0] > self._most:
            raise ValueError("invalid argument")
        self.limits = limits


@pytest.fixture(autouse=True)
def raised_anew() -> Iterator[None]:
    descriptors.raise_limit.cache_clear()
    yield
    descriptors.raise_limit.cache_clear()


@pytest.mark.parametrize(
    ("soft", "hard", "most", "raised"),
    [
        (1024, 524_288, 2**30, 524_288),
        (1024, 2**30, 2**30, 2**19),
        (2**20, 2**30, 2**30, 2**20),  # it is never lowered
        (256, INFINITY, 2**30, 2**19),
        (256, INFINITY, 10_240, 10_240),  # macOS
        (256, INFINITY, 1000, 256),
        (4096, 4096, 2**30, 4096),
        (INFINITY, INFINITY, 2**30, INFINITY),
    ],
)
def test_the_limit_is_raised(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, most: int, raised: int) -> None:
    system = Resource(soft, hard, most)
    monkeypatch.setattr(descriptors, "resource", system)
    descriptors.raise_limit()
    assert system.limits == (raised, hard)


def test_it_is_raised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    system = Resource(256, 4096, 2**30)
    monkeypatch.setattr(descriptors, "resource", system)
    descriptors.raise_limit()
    system.limits = 1024, 4096  # the application wants it so
    table = Descriptors()
    table.measure(1)
    assert system.limits == (1024, 4096)
    assert table.limit == 1024


@pytest.mark.parametrize("limit", [64, 256, 1024, 4096, 20_000, 524_288])
@pytest.mark.parametrize("listeners", [0, 1, 3])
def test_connections_leave_room(monkeypatch: pytest.MonkeyPatch, limit: int, listeners: int) -> None:
    monkeypatch.setattr(descriptors, "resource", Resource(limit, limit, limit))
    table = Descriptors()
    table.measure(listeners)
    assert 0 < table.most < table.room < limit
    assert table.room + listeners * table.batch() * descriptors.TURNS <= limit
    assert table.room - table.most >= min(table.room // 2, descriptors.FILES)


def test_without_a_limit_all_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "resource", Resource(INFINITY, INFINITY, INFINITY))
    table = Descriptors()
    table.measure(1)
    assert table.room == table.most == sys.maxsize
    assert table.batch() == descriptors.BATCH


def lines(records: list[logging.LogRecord]) -> list[str]:
    refused = [record for record in records if getattr(record, "tnx", "") == "refused"]
    return [f"{record.levelname} {record.getMessage()}" for record in refused]


BEGAN = "WARNING new connections are refused: too many connected clients (max_clients is 1)"


async def test_refusals_are_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "QUIET", 0.1)
    with recorded(logging.INFO) as records:
        async with serving(max_clients=1) as served:
            await served.client()
            for count in (3, 2):
                for _ in range(count):
                    assert (await (await served.connect()).reply()).code == 421
                began = [record for record in records if record.levelname == "WARNING"][-1]
                assert getattr(began, "address", "") == "127.0.0.1"
                for _ in range(100):
                    if "accepted again" in records[-1].getMessage():
                        break
                    await asyncio.sleep(0.02)
    assert lines(records) == [
        BEGAN,
        "INFO connections are accepted again; refused above max_clients: 3",
        BEGAN,
        "INFO connections are accepted again; refused above max_clients: 2",
    ]


async def test_refusals_are_told_at_the_latest_when_the_server_closes() -> None:
    with recorded(logging.INFO) as records:
        async with serving(max_clients=1) as served:
            other = await served.server.listen(0, "127.0.0.1", max_clients=1)
            await served.client()
            assert (await (await served.connect()).reply()).code == 421
            assert (await (await served.connect(address=other)).reply()).code == 220
            assert (await (await served.connect(address=other)).reply()).code == 421
            assert (await (await served.connect(address=other)).reply()).code == 421
    # The listener that has a limit of its own has its own lines.
    assert lines(records) == [
        BEGAN,
        BEGAN,
        "INFO connections are accepted again; refused above max_clients: 1",
        "INFO connections are accepted again; refused above max_clients: 2",
    ]
