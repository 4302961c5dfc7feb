"""Every target keeps what the contract promises (``contract.py`` has the table of them)."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deliver.contract import PLACES, Place
from messages import begun, message, session_for
from pillarbox import MessageTooLarge, Reject

MIB = 1024 * 1024
SMALL = b"Subject: small\r\n\r\nHello.\r\n"
LINE = b"of a message that is larger than what a target keeps in memory\r\n"
LARGE = b"Subject: large\r\n\r\n" + LINE * 20_000  # 1.3 MB
SIZES = pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])


@pytest.fixture(params=sorted(PLACES))
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with PLACES[request.param](tmp_path) as opened:
        yield opened


def in_blocks(content: bytes, size: int = 65_536) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


def holds(place: Place, *contents: bytes) -> bool:
    return sorted(place.stored()) == sorted(contents) and place.rests() == []


@SIZES
async def test_it_is_stored_whole_and_once_and_the_answer_is_for_all_recipients(place: Place, content: bytes) -> None:
    recipients = ("b@example.com", "c@example.com")
    answer = await place.target.deliver(message(*in_blocks(content), session=session_for(*recipients)))
    answers = [answer] * len(recipients) if isinstance(answer, str) else list(answer)
    assert [type(each) for each in answers] == [str] * len(recipients)
    assert holds(place, content)


async def test_every_octet_stays_as_it_is(place: Place) -> None:
    content = b"Subject: \xff\0\x80 \xc3\xa4\r\n\r\n" + bytes(range(256)) * 2 + b"\r\n.\r\n..\r\nFrom me\r\n"
    await place.target.deliver(message(content))
    if place.exact:
        assert holds(place, content)
    else:
        assert len(place.stored()) == 1


async def test_an_empty_message(place: Place) -> None:
    await place.target.deliver(message())
    assert holds(place, b"")


@pytest.mark.parametrize("error", [ConnectionError("gone"), MessageTooLarge(), Reject(550, "no")], ids=repr)
@SIZES
async def test_nothing_stays_of_what_breaks_off(place: Place, content: bytes, error: Exception) -> None:
    with pytest.raises((type(error), Reject)):  # whichever: the program raises again what the client's end raised
        await place.target.deliver(message(*in_blocks(content), error=error))
    assert holds(place)
    await place.target.deliver(message(SMALL))
    assert holds(place, SMALL)


@SIZES
async def test_nothing_stays_of_what_is_cancelled_while_it_arrives(place: Place, content: bytes) -> None:
    delivery = await begun(place.target, *in_blocks(content))
    await delivery.cancel()
    assert delivery.task.cancelled()
    assert holds(place)


@SIZES
async def test_what_is_cancelled_while_it_becomes_durable_is_not_there(place: Place, content: bytes) -> None:
    """At whichever moment: either it was stored, or nothing of it is there."""
    stored = []
    for turns in (*range(8), 20, 50, 100, 400):
        delivery = await begun(place.target, *in_blocks(content))
        committing = asyncio.ensure_future(delivery.commit())
        for _ in range(turns):
            await asyncio.sleep(0)
        await delivery.cancel()
        await asyncio.wait([committing])
        if not delivery.task.cancelled():
            stored.append(content)
        assert holds(place, *stored)


async def test_several_at_once_are_not_mixed(place: Place) -> None:
    contents = [b"Subject: %d\r\n\r\n" % number + b"%d\r\n" % number * 100_000 for number in range(4)]
    deliveries = [await begun(place.target) for _ in contents]
    for blocks in zip(*(in_blocks(content) for content in contents), strict=True):
        for delivery, block in zip(deliveries, blocks, strict=True):
            await delivery.write(block)
    await asyncio.gather(*(delivery.commit() for delivery in deliveries))
    assert holds(place, *contents)


async def test_one_that_breaks_off_does_not_harm_another(place: Place) -> None:
    first, second = await begun(place.target, SMALL), await begun(place.target, LARGE)
    await asyncio.gather(first.abort(), second.commit())
    assert holds(place, LARGE)


async def test_a_large_message_is_not_kept_in_memory(place: Place) -> None:
    size = 24 * MIB

    async def arriving() -> AsyncIterator[bytes]:
        for _ in range(size // 65_536):
            yield bytes(65_534) + b"\r\n"

    large = message()
    large._blocks = arriving()
    tracemalloc.start()
    try:
        await place.target.deliver(large)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB
    assert [len(content) for content in place.stored()] == [size]


async def test_a_failure_says_nothing_of_the_inside_and_says_later(place: Place, tmp_path: Path) -> None:
    if place.spoil is None:
        pytest.skip("a test of its own shows it")
    place.spoil()
    for content in (SMALL, LARGE):
        with pytest.raises(Reject) as refused:
            await place.target.deliver(message(*in_blocks(content)))
        assert refused.value.code is not None
        assert refused.value.code // 100 == 4
        assert str(tmp_path) not in str(refused.value)


async def test_it_can_be_closed_without_a_message(place: Place) -> None:
    assert holds(place)
