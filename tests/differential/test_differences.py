"""The same dialogues against this server and real ones: where they differ, a line of the table says what decides.

``DIFFERENTIAL_SEEDS=3000:6000`` plays those random dialogues instead of the usual ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

import pytest

from differential.dialogues import DIALOGUES
from differential.differences import DIFFERENCES, explained
from differential.entry import OPEN, POLICY, Difference
from differential.play import Connect, Dialogue, Seen, differences, offered, play
from differential.randomly import dialogue
from differential.servers import THEIRS, Certificate, pillarbox

_AT_ONCE = 16  # smtp-server looks a tenth of a second for early talk: most of a run is waiting
SEEDS = range(*map(int, os.environ.get("DIFFERENTIAL_SEEDS", "0:400").split(":")))


class Pair:
    """Our server, and another one that is compared with it."""

    def __init__(self, name: str, ours: Connect, theirs: Connect) -> None:
        self.name, self.ours, self.theirs = name, ours, theirs
        self.offers = offered(theirs)

    def seen(self, one: Dialogue) -> list[Seen]:
        """Play a dialogue against both; return where they differ."""
        if not one.needs <= self.offers:
            return []
        return list(differences(self.name, one, play(self.ours, one), play(self.theirs, one)))

    def all_seen(self, dialogues: Iterable[Dialogue]) -> list[tuple[Dialogue, Seen]]:
        dialogues = list(dialogues)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = pool.map(self.seen, dialogues)
            return [(one, seen) for one, several in zip(dialogues, found, strict=True) for seen in several]

    def smallest(self, one: Dialogue) -> Dialogue:
        """Leave out what a dialogue does not need to show a difference that has no line in the table."""
        number = 0
        while number < len(one.steps):
            shorter = replace(one, steps=one.steps[:number] + one.steps[number + 1 :])
            if any(explained(seen) is None for seen in self.seen(shorter)):
                one = shorter
            else:
                number += 1
        return one


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module", params=THEIRS)
def pair(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[Pair]:
    start: AbstractContextManager[Connect] = THEIRS[request.param](certificate)
    with ExitStack() as stack:
        theirs = stack.enter_context(start)
        yield Pair(request.param, stack.enter_context(pillarbox(certificate)), theirs)


def _all_explained(pair: Pair, found: list[tuple[Dialogue, Seen]]) -> None:
    left = {one.name: one for one, seen in found if explained(seen) is None}
    if left:
        small = [pair.smallest(one) for one in list(left.values())[:3]]
        shown = [f"{one.name}: {seen}" for one in small for seen in pair.seen(one)]
        pytest.fail("not in tests/differential/differences.py:\n" + "\n".join(shown), pytrace=False)


@pytest.mark.timeout(300)
def test_each_scripted_difference_is_in_the_table_and_each_line_of_the_table_is_seen(pair: Pair) -> None:
    found = pair.all_seen(DIALOGUES)
    _all_explained(pair, found)
    shown = {explained(seen) for _, seen in found}
    listed = [entry for entry in DIFFERENCES if pair.name in entry.theirs]
    assert [entry.what for entry in listed if entry not in shown] == [], "no dialogue shows this any more"


@pytest.mark.timeout(900)
def test_each_random_difference_is_in_the_table(pair: Pair) -> None:
    found = pair.all_seen(map(dialogue, SEEDS))
    assert found, "no random dialogue differed in anything: were they played?"
    _all_explained(pair, found)


def test_there_is_a_dialogue_for_each_name() -> None:
    assert len({one.name for one in DIALOGUES}) == len(DIALOGUES) >= 150


@pytest.mark.parametrize("entry", DIFFERENCES, ids=lambda entry: entry.what)
def test_each_line_names_what_decides(entry: Difference) -> None:
    assert re.match(rf"RFC \d{{4}} [\d.]+[:,]|{POLICY}|{OPEN}", entry.decides)
    assert entry.theirs
    assert entry.theirs.keys() <= THEIRS.keys()


def test_a_seed_makes_always_the_same_dialogue() -> None:
    assert dialogue(7) == dialogue(7) != dialogue(8)
