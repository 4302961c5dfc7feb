"""A process of clients, good or hostile: each role goes round and round until the time is over.

    python -m soaking.clients good|hostile PLACE.json NOTES SECONDS

NOTES: the file of acknowledged ids. With 0 seconds each role has one turn. At the end it says as JSON how many turns
each role had, and what went wrong with good ones.
"""

from __future__ import annotations

import asyncio
import collections
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TextIO

from soaking import good, hostile
from soaking.desk import Desk
from soaking.place import Place, Refused

Role = Callable[[Desk], Awaitable[None]]
TURN = 60.0  # seconds: no turn takes longer
KEPT = 20  # problems that are shown


class Crowd:
    """All clients of one kind."""

    def __init__(self, place: Place, notes: TextIO, until: float) -> None:
        self._place, self._notes, self._until = place, notes, until
        self.turns: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []

    async def work(self, role: Role, *, forgiving: bool) -> None:
        """Play one role; the first turn is had in any case. ``forgiving``: the server may do as it likes."""
        while True:
            desk = Desk(self._place, self._notes, self._until)
            try:
                async with asyncio.timeout(TURN):
                    await role(desk)
                self.turns[role.__name__] += 1
            except (OSError, EOFError, Refused) as problem:  # OSError: TimeoutError and ssl.SSLError too
                self._note(role.__name__, problem, forgiving=forgiving)
            finally:
                desk.leave()
            if not desk.open:
                return
            await desk.pause()

    def _note(self, role: str, problem: Exception, *, forgiving: bool) -> None:
        if forgiving and not isinstance(problem, TimeoutError):
            self.turns[role] += 1
        else:
            self.problems.append(f"{role}: {type(problem).__name__} {problem}")


async def play(kind: str, place: Place, notes: TextIO, seconds: float) -> Crowd:
    """Let all roles of this kind work, each as often as it says."""
    crowd = Crowd(place, notes, time.monotonic() + seconds)
    roles = good.ROLES if kind == "good" else hostile.ROLES
    absent = set() if place.accounts else good.NEEDS_ACCOUNTS
    async with asyncio.TaskGroup() as group:
        for role, count in roles.items():
            for _ in range(0 if role in absent else count if seconds else 1):
                group.create_task(crowd.work(role, forgiving=kind == "hostile"))
    return crowd


def main() -> None:
    kind, place, file, seconds = sys.argv[1:]
    where = Place(**json.loads(Path(place).read_text(encoding="utf-8")))
    with (
        Path(file).open("a", encoding="ascii", buffering=1) as notes,
        asyncio.Runner(loop_factory=_loop_factory()) as runner,
    ):
        crowd = runner.run(play(kind, where, notes, float(seconds)))
    print(json.dumps({"turns": crowd.turns, "problems": crowd.problems[:KEPT], "failed": len(crowd.problems)}))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
