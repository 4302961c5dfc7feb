"""What a soak is held to: each row says what was found, and what it may be at most."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from soaking.messages import MB
from soaking.sampling import FIELDS

# What the fit may show, in MiB over this part of the run. An allocator needs minutes to come to its most, with so many
# sizes at a time, and then it stays; what leaks goes on: 200 octets for each message are 3 MiB in the last third. A run
# of seconds is all beginning: on a busy machine large messages come together late, for a step of 100 MiB that stays.
PARTS = {"two thirds": (2 / 3, 8.0), "third": (1 / 3, 2.0)}
GROWTH_OF_SHORT_RUN = 160.0
SHORT = 120  # seconds
# Objects of the garbage collector: caches (of names, of compiled patterns) may fill; what each message or connection
# left behind would be thousands.
OBJECTS = 3_000
# Of those that stand for a connection or a part of one hardly any: some are made once, when they are first needed.
OURS, OBJECTS_OF_OURS = ("pillarbox.", "asyncio.", "_asyncio.", "uvloop.", "ssl.", "_ssl."), 20
TROUBLE = re.compile(
    "Traceback|[Ii]nternal error|never retrieved|never awaited|was destroyed|Warning:|CRITICAL|Fatal|Segmentation"
)


@dataclass(frozen=True)
class Row:
    """One line of the table; ``bound``: the most that is right, None where it is information."""

    what: str
    found: float
    bound: float | None = 0
    unit: str = ""

    @property
    def failed(self) -> bool:
        """Whether it is not as it has to be."""
        return self.bound is not None and self.found > self.bound


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the straight line that fits best (least squares)."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def growth(samples: Sequence[Sequence[float]], part: float) -> float:
    """Return what the fit over the last part of the run says that resident memory grew by in that time, in MiB."""
    seconds, at = FIELDS.index("seconds"), FIELDS.index("rss")
    last = [(row[seconds], row[at] / MB) for row in samples[round(len(samples) * (1 - part)) :]]
    return slope(last) * (last[-1][0] - last[0][0]) if len(last) > 1 else 0.0


def of_memory(samples: Sequence[Sequence[float]], before: dict[str, Any], after: dict[str, Any]) -> list[Row]:
    """Judge what the server holds."""
    short = len(samples) < SHORT * 0.8
    grown = [
        Row(
            f"resident memory: growth in the last {name}",
            growth(samples, part),
            GROWTH_OF_SHORT_RUN if short else bound,
            "MiB",
        )
        for name, (part, bound) in PARTS.items()
    ]
    return [
        *grown,
        Row("descriptors left behind", abs(after["descriptors"] - before["descriptors"])),
        Row("tasks left behind", abs(after["tasks"] - before["tasks"])),
        Row("sessions left behind", after["connections"]),
        Row("objects left behind", after["objects"] - before["objects"], OBJECTS),
        Row("objects left behind, of pillarbox and asyncio", _ours(after) - _ours(before), OBJECTS_OF_OURS),
    ]


def _ours(found: dict[str, Any]) -> int:
    return sum(count for name, count in found["types"].items() if name.startswith(OURS))


def of_messages(acknowledged: Iterable[str], times: collections.Counter[str], torn: Sequence[str]) -> list[Row]:
    """Judge what is stored."""
    told = set(acknowledged)
    untold = collections.Counter(name[:3] for name in times if name not in told)
    return [
        Row("messages acknowledged", len(told), None),
        Row("acknowledged and not stored", sum(1 for name in told if not times[name])),
        Row("stored twice", sum(1 for count in times.values() if count > 1)),
        Row("torn", len(torn)),
        Row("stored though never whole, or smuggled", sum(1 for name in times if name[:3] not in ("ack", "any"))),
        Row("stored of good clients, not acknowledged", untold["ack"]),
        Row("stored of clients that left before the reply", untold["any"], None),
    ]


def of_log(lines: Iterable[str]) -> Row:
    """Judge what the server logged."""
    return Row("errors in the log that nobody handled", sum(1 for line in lines if TROUBLE.search(line)))


def grown_types(before: dict[str, int], after: dict[str, int]) -> list[tuple[str, int]]:
    """Return the types of which most objects were left behind: where to look when something grew."""
    more = collections.Counter(after)
    more.subtract(before)
    return [(name, count) for name, count in more.most_common(8) if count > 0]
