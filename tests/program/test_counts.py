"""Limits over all workers: the same answers as in one process, and none too many where several count at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox import LimitCounts
from program import WAIT

if sys.platform == "win32":
    pytest.skip("there are no workers on Windows", allow_module_level=True)

from pillarbox.program import counts as counting
from pillarbox.program.counts import WorkersCounts
from pillarbox.program.table import NEIGHBOURS, Table

NAMES = ("clients", "clients from 192.0.2.1", "clients from 2001:db8::/64", "clients of [::]:25", "clients from \udcff")
RATE = "3/week"

# Another worker: it says when it is ready, waits for a line, does what it is told, and says what was answered.
OTHER = """
import asyncio, sys
from pillarbox.program.counts import WorkersCounts

async def main(counts):
    print("ready", flush=True)
    sys.stdin.readline()
    print({what}, flush=True)
    sys.stdin.readline()

asyncio.run(main(WorkersCounts({workers}, int(sys.argv[1]), [int(each) for each in sys.argv[2:]])))
"""


@contextmanager
def shared(workers: int) -> Iterator[WorkersCounts]:
    counts = WorkersCounts(workers)
    try:
        yield counts
    finally:
        for descriptor in counts.descriptors:
            os.close(descriptor)


class Worker:
    """A process that counts in the same memory."""

    def __init__(self, counts: WorkersCounts, number: int, what: str, workers: int) -> None:
        command = [sys.executable, "-c", OTHER.format(what=what, workers=workers), str(number)]
        self.process = subprocess.Popen(
            [*command, *map(str, counts.descriptors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=counts.descriptors,
        )
        assert self.said() == "ready"

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=WAIT)


@contextmanager
def others(counts: WorkersCounts, what: str, number: int = 2) -> Iterator[list[Worker]]:
    """Run processes that are ready to do this."""
    workers: list[Worker] = []
    try:
        workers.extend(Worker(counts, each, what, number + 1) for each in range(1, number + 1))
        yield workers
    finally:
        for worker in workers:
            worker.end()


# --- As in one process


steps = st.one_of(
    st.tuples(
        st.just("enter"),
        st.integers(0, 2),
        st.dictionaries(st.sampled_from(NAMES), st.none() | st.integers(0, 4), min_size=1, max_size=3),
    ),
    st.tuples(st.just("leave"), st.integers(0, 2), st.none()),
    st.tuples(st.sampled_from(["take", "left"]), st.integers(0, 2), st.sampled_from(NAMES)),
)


@settings(deadline=None)  # of a busy machine
@given(st.lists(steps, max_size=40))
def test_several_answer_as_one_does(done: list[Any]) -> None:
    with shared(3) as first:
        asyncio.run(_same_answers(done, [first, *(WorkersCounts(3, each, first.descriptors) for each in (1, 2))]))


async def _same_answers(done: list[Any], workers: list[WorkersCounts]) -> None:
    one = LimitCounts()
    entered: list[list[list[str]]] = [[], [], []]
    for what, number, given_ in done:
        worker = workers[number]
        if what == "enter":
            is_in = await worker.enter(given_)
            assert is_in == await one.enter(given_)
            entered[number] += [list(given_)] if is_in else []
        elif what != "leave":
            assert await getattr(worker, what)(given_, RATE) == await getattr(one, what)(given_, RATE)
        elif entered[number]:
            places = entered[number].pop()
            worker.leave(places)
            one.leave(places)
    for number in range(3):  # all of them are gone, and what they had entered is given back
        workers[0].forget(number)
    assert all([await workers[0].enter({name: 1}) for name in NAMES])


# --- Several at once


@pytest.mark.promises(
    "Limits",
    "With several workers, numbers and rates hold over all of them; what one that dies had counted is given back.",
)
@pytest.mark.parametrize(
    ("what", "most"),
    [
        ('sum([await counts.enter({"a": 3000, "b": None}) for _ in range(2000)])', 3000),
        ('sum([await counts.take("a", "3000/week") for _ in range(2000)])', 3000),
        # None is lost either where they come and go: the last one leaves an empty place.
        ('sum([await counts.enter({"a": 2}) and not counts.leave(["a"]) for _ in range(2000)])', 4000),
    ],
)
def test_at_the_same_moment(what: str, most: int) -> None:
    with shared(3) as counts, others(counts, what) as workers:
        for worker in workers:
            worker.go()
        assert sum(int(worker.said()) for worker in workers) == most


async def test_who_is_stopped_while_it_has_the_lock_is_not_waited_for() -> None:
    with shared(2) as counts, others(counts, "counts._places.lock(0)", 1) as (worker,):
        worker.go()
        worker.said()
        worker.process.send_signal(signal.SIGSTOP)
        assert await counts.enter({"clients": 1})
        assert not await counts.enter({"clients": 1})


async def test_the_lock_of_one_that_is_killed_is_free() -> None:
    with shared(2) as counts, others(counts, "counts._places.lock(0)", 1) as (worker,):
        worker.go()
        worker.said()
        worker.process.kill()
        worker.process.wait(WAIT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Table, "_wait_for", lambda *_: pytest.fail("it is locked"))
            assert await counts.enter({"clients": 1})


async def test_where_there_are_no_files_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.memfd_create", raising=False)
    with shared(2) as counts, others(counts, 'await counts.enter({"clients": 1})', 1) as (worker,):
        assert await counts.enter({"clients": 1})
        worker.go()
        assert worker.said() == "False"


# --- More names than rows


async def test_more_addresses_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "PLACES", NEIGHBOURS)
    with shared(2) as counts:
        names = [f"clients from 192.0.2.{each}" for each in range(NEIGHBOURS)]
        assert all([await counts.enter({name: 1}) for name in names])
        for _ in range(2):  # one more is not counted, and nobody else's is taken for it
            assert await counts.enter({"clients from 198.51.100.1": 1})
        assert not any([await counts.enter({name: 1}) for name in names])
        counts.leave(["clients from 198.51.100.1"])
        counts.leave([names[3]])
        assert await counts.enter({"clients from 198.51.100.2": 1})
        assert not await counts.enter({"clients from 198.51.100.2": 1})


async def test_places_that_are_entered_together_have_each_their_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "PLACES", NEIGHBOURS)  # all names are neighbours
    with shared(2) as counts:
        both = {"clients": 1, "clients from 192.0.2.1": 1}
        for _ in range(2):
            assert await counts.enter(both)
            for name in both:
                assert not await counts.enter({name: 1})
            counts.leave(both)


async def test_of_more_rates_than_rows_that_which_is_free_first_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "RATES", NEIGHBOURS)
    with shared(2) as counts:
        rates = [f"{each}/week" for each in range(1, NEIGHBOURS + 1)]  # the last one is unused again first
        for rate in rates:
            assert await counts.take(rate, rate)
        assert await counts.take("one more", "1/week")
        assert await counts.left(rates[-1], "1/week")
        assert not any([await counts.left(rate, "1/week") for rate in [*rates[:-1], "one more"]])


async def test_a_rate_that_is_unused_again_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "RATES", NEIGHBOURS)
    with shared(2) as counts:
        for each in range(NEIGHBOURS - 1):
            assert await counts.take(str(each), "1/week")
        for each in range(100):
            assert await counts.take(f"short {each}", "1000000000/second")
        assert not any([await counts.left(str(each), "1/week") for each in range(NEIGHBOURS - 1)])
