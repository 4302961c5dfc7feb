"""Every target keeps what the contract promises (``contract.py`` has the table of them)."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path

import pytest

from deliver.contract import NOBODY, PLACES, REFUSING, Place
from messages import begun, message, session_for
from pillarbox import MessageTooLarge, Reject
from pillarbox.deliver import Message, Target, known_schemes
from pillarbox.deliver.spool import Spool

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
    return (place.stored is None or sorted(place.stored()) == sorted(contents)) and place.rests() == []


async def answers_of(delivery: Awaitable[str | Sequence[str | Reject]]) -> Sequence[str | Reject]:
    """Return the answers for one recipient, in whichever way they are given."""
    try:
        answer = await delivery
    except Reject as refused:
        return [refused]
    return [answer] if isinstance(answer, str) else answer


def test_every_target_is_tried() -> None:
    tried = {name.partition(" ")[0] for name in PLACES}
    assert tried == set(known_schemes()), "write a Place in contract.py for what is missing"


@SIZES
async def test_it_is_stored_whole_and_once_and_the_answer_is_for_all_recipients(place: Place, content: bytes) -> None:
    recipients = ("b@example.com", "c@example.com")
    answer = await place.target.deliver(message(*in_blocks(content), session=session_for(*recipients)))
    answers = [answer] * len(recipients) if isinstance(answer, str) else list(answer)
    assert [type(each) for each in answers] == [str] * len(recipients)
    assert holds(place, content)


async def test_every_octet_stays_as_it_is(place: Place) -> None:
    octets = bytes(set(range(256)) - set(b"\r\n"))
    content = b"Subject: \xff\0\x80 \xc3\xa4\r\n\r\n" + octets + b"\r\n.\r\n..\r\nFrom me\r\n>From me\r\n.\r\n"
    await place.target.deliver(message(*in_blocks(content, 7)))
    assert holds(place, content)


async def test_bare_cr_and_lf(place: Place) -> None:
    """Only ``bare_newline = "accept"`` lets them in: they stay, or are line ends, or the message is refused."""
    content = b"Subject: x\r\n\r\na\rb\nc\r\n.\nd\r.\r\r\n"
    if place.refuses_bare:
        with pytest.raises(Reject) as refused:
            await place.target.deliver(message(content))
        assert refused.value.code == 554
        assert holds(place)
        return
    await place.target.deliver(message(content))
    if place.exact:
        assert holds(place, content)
    else:
        assert place.stored is not None
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
    stored, attempts = 0, (*range(8), 20, 50, 100, 400)
    for turns in attempts:
        delivery = await begun(place.target, *in_blocks(content))
        committing = asyncio.ensure_future(delivery.commit())
        for _ in range(turns):
            await asyncio.sleep(0)
        await delivery.cancel()
        await asyncio.wait([committing])
        stored += not delivery.task.cancelled()
        assert place.rests() == []
        assert not place.takes_back or holds(place, *[content] * stored)
    there = [] if place.stored is None else place.stored()
    assert set(there) <= {content}
    assert place.stored is None or stored <= len(there) <= len(attempts)


@SIZES
async def test_what_is_cancelled_when_its_spool_is_closed_is_there(
    place: Place, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is done then but to forget the octets that were kept aside."""
    close, loop, reached, go_on = Spool.close, asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def slow(spool: Spool) -> None:
        close(spool)
        loop.call_soon_threadsafe(reached.set)
        if threading.current_thread() is not threading.main_thread():
            assert go_on.wait(10)

    monkeypatch.setattr(Spool, "close", slow)
    delivery = await begun(place.target, *in_blocks(content))
    committing = asyncio.ensure_future(delivery.commit())
    closing = asyncio.ensure_future(reached.wait())
    await asyncio.wait([committing, closing], return_when=asyncio.FIRST_COMPLETED)
    delivery.task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait([delivery.task, committing])
    closing.cancel()
    assert not delivery.task.cancelled()
    assert place.stored is None or place.stored() == [content]


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
    size = 16 * MIB

    async def arriving() -> AsyncIterator[bytes]:
        for _ in range(size // 65_536):
            yield b"x" * 65_534 + b"\r\n"

    large = message()
    large._blocks = arriving()
    tracemalloc.start()
    try:
        await place.target.deliver(large)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * MIB
    assert place.stored is None or [len(content) for content in place.stored()] == [size]


async def test_a_failure_says_nothing_of_the_inside_and_says_later(place: Place, tmp_path: Path) -> None:
    if place.spoil is None:
        pytest.skip("a test of its own shows it")
    place.spoil()
    for content in (SMALL, LARGE):
        [answer] = await answers_of(place.target.deliver(message(*in_blocks(content))))
        assert isinstance(answer, Reject)
        assert (answer.code or 0) // 100 == 4
        assert str(tmp_path) not in str(answer)


async def test_it_can_be_closed_without_a_message(place: Place) -> None:
    assert holds(place)


def again(target: Target) -> Target:
    """Return what a reload makes of the same configuration."""
    return type(target)(target.url, target.settings)


async def test_a_reload_without_a_change_goes_on_with_it(place: Place) -> None:
    assert again(place.target).same_as(place.target)
    assert place.target.same_as(again(place.target))
    assert not place.target.same_as(again(Other("other:", None)))
    assert not again(Other("other:", None)).same_as(place.target)


class Other(Target):
    """A target of another kind."""

    async def deliver(self, message: Message) -> str:
        raise NotImplementedError


async def test_an_old_one_and_a_new_one_at_the_same_place(place: Place) -> None:
    """After a reload the old one goes on until its sessions have ended."""
    delivery = await begun(place.target, *in_blocks(LARGE))
    new = again(place.target)
    await new.start()
    try:
        await asyncio.gather(delivery.commit(), new.deliver(message(*in_blocks(LARGE))))
        await place.target.close()
        await new.deliver(message(SMALL))
    finally:
        await new.close()
    assert holds(place, LARGE, LARGE, SMALL)


async def test_it_can_be_closed_twice_and_started_again(place: Place) -> None:
    await place.target.close()
    await place.target.close()
    await place.target.start()
    await place.target.deliver(message(*in_blocks(LARGE)))
    assert holds(place, LARGE)


@SIZES
async def test_closing_it_while_a_message_is_under_way(place: Place, content: bytes) -> None:
    """That comes where a delivery did not end when it was told to: the message is whole, or refused for now."""
    delivery = await begun(place.target, *in_blocks(content))
    await place.target.close()
    [answer] = await answers_of(delivery.commit())
    if isinstance(answer, Reject):
        assert (answer.code or 0) // 100 == 4
        assert holds(place)
    else:
        assert holds(place, content)


@pytest.mark.parametrize("name", sorted(REFUSING))
async def test_each_recipient_has_its_own_answer_in_lmtp(name: str, tmp_path: Path) -> None:
    session = session_for("b@example.com", NOBODY, "c@example.com")
    session.lmtp = True
    async with REFUSING[name](tmp_path) as place:
        answers = await place.target.deliver(message(SMALL, session=session))
        assert [isinstance(answer, Reject) and answer.code for answer in answers] == [False, 550, False]
        assert place.stored is not None
        assert set(place.stored()) == {SMALL}
