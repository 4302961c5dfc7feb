"""The parameters that say when and to whom a message is to be delivered: BY, HOLDFOR, HOLDUNTIL, MT-PRIORITY, RRVS.

What they ask for is the application's to do: here they are read and checked.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from pillarbox.extension import Asked
from pillarbox.session import RRVS, DeliverBy, Recipient
from pillarbox.smtp.datetimes import format_datetime, parse_datetime
from pillarbox.smtp.grammar import GrammarError
from pillarbox.smtp.reply import Refused, too_soon_to_deliver, wrong_parameter

# RFC 2852 4: 'by-value = by-time";"by-mode[by-trace]', 'by-time = ["-" / "+"]1*9digit', 'by-mode = "N" / "R"',
# 'by-trace = "T"'.
_BY = re.compile(r"([+-]?[0-9]{1,9});([NnRr])([Tt]?)")
# RFC 4865 4: an interval has at most nine digits.
_INTERVAL = re.compile(r"[0-9]{1,9}")
# RFC 6710: from -9 to 9, without a plus and without a negative zero.
_PRIORITY = re.compile(r"-[1-9]|[0-9]")


def deliver_by(asked: Asked, value: str) -> None:
    """BY: by when the message is to be delivered, and what becomes of it if it is late (RFC 2852 4)."""
    match = _BY.fullmatch(value)
    if match is None:
        raise Refused(wrong_parameter("BY must be seconds;N or seconds;R, and T behind it"))
    seconds = int(match[1])
    returned = match[2] in "Rr"
    # RFC 2852 4: "a <= zero value is not allowed with a by-mode of "R"".
    if returned and seconds <= 0:
        raise Refused(wrong_parameter("BY with R needs a time above 0"))
    least = asked.options.deliver_by
    if returned and least is not True and seconds < least:
        raise Refused(too_soon_to_deliver(least))
    asked.envelope.deliver_by = DeliverBy(seconds, "return" if returned else "notify", bool(match[3]))


def hold_for(asked: Asked, value: str) -> None:
    """HOLDFOR: for how many seconds the message is to be held (RFC 4865 4)."""
    if not _INTERVAL.fullmatch(value):
        raise Refused(wrong_parameter("HOLDFOR must be a number of seconds"))
    _hold(asked, "HOLDFOR", timedelta(seconds=int(value)), datetime.now(UTC))


def hold_until(asked: Asked, value: str) -> None:
    """HOLDUNTIL: until when the message is to be held (RFC 4865 4); what is past already holds nothing."""
    now = datetime.now(UTC)
    _hold(asked, "HOLDUNTIL", _datetime("HOLDUNTIL", value) - now, now)


def _hold(asked: Asked, keyword: str, interval: timedelta, now: datetime) -> None:
    # RFC 4865 4 lets MAIL have one of the two.
    if asked.envelope.hold_until is not None:
        raise Refused(wrong_parameter("HOLDFOR and HOLDUNTIL exclude each other"))
    longest = timedelta(seconds=asked.options.future_release or 0)
    if interval > longest:
        raise Refused(wrong_parameter(f"{keyword} is more than {longest // timedelta(seconds=1)} seconds away"))
    asked.envelope.hold_until = now + interval


def future_release(longest: int) -> str:
    """Return what EHLO announces: the longest interval, and the date and time that it reaches to now (RFC 4865 4)."""
    last = datetime.now(UTC) + timedelta(seconds=longest)
    return f"FUTURERELEASE {longest} {format_datetime(last)}"


def mt_priority(asked: Asked, value: str) -> None:
    """MT-PRIORITY: how urgent the message is (RFC 6710 4)."""
    if not _PRIORITY.fullmatch(value):
        raise Refused(wrong_parameter("MT-PRIORITY must be from -9 to 9"))
    asked.envelope.mt_priority = int(value)


def rrvs(asked: Asked, value: str) -> None:
    """RRVS: since when the mailbox must have had the same owner (RFC 7293 3)."""
    text, semicolon, action = value.partition(";")
    # RFC 7293 3.1: its date-time has no fraction of a second; behind it may stand C or R, and without it is R.
    if semicolon and action not in ("C", "c", "R", "r"):
        raise Refused(wrong_parameter("RRVS must be a date-time, and ;C or ;R behind it"))
    since = _datetime("RRVS", text, fraction=False)
    if isinstance(asked.address, Recipient):
        asked.address.rrvs = RRVS(since, "continue" if action in ("C", "c") else "reject")


def _datetime(keyword: str, text: str, *, fraction: bool = True) -> datetime:
    try:
        return parse_datetime(text, fraction=fraction)
    except GrammarError as problem:
        raise Refused(wrong_parameter(f"{keyword} must be a date-time of RFC 3339")) from problem
