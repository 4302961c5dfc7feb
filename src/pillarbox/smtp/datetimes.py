"""Dates and times as parameters and EHLO have them: the date-time of RFC 3339, here always in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from pillarbox.smtp.grammar import GrammarError

# RFC 3339 5.6: 'date-time = full-date "T" full-time', 'time-secfrac = "." 1*DIGIT', 'time-offset = "Z" /
# time-numoffset'; "T" and "Z" may be in lower case.
_DATE_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)


def parse_datetime(text: str, *, fraction: bool = True) -> datetime:
    """Return the moment of a date-time, in UTC and to the microsecond; raises GrammarError.

    fraction: whether seconds may have one.
    """
    match = _DATE_TIME.fullmatch(text)
    if match is None or (match[7] is not None and not fraction):
        raise GrammarError(f"{text!a} is not a date-time of RFC 3339")
    try:
        return _moment(match)
    except (ValueError, OverflowError):
        raise GrammarError(f"{text!a} is no date and time that there is") from None


def _moment(match: re.Match[str]) -> datetime:
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    # RFC 3339 5.7: a leap second has the number 60. `datetime` has none: it is the first of the next minute.
    leap = second == 60
    microsecond = int((match[7] or "0")[:6].ljust(6, "0"))
    local = datetime(year, month, day, hour, minute, 59 if leap else second, microsecond, UTC)
    return local - _offset(match) + timedelta(seconds=leap)


def _offset(match: re.Match[str]) -> timedelta:
    if match[8] is None:
        return timedelta(0)
    hours, minutes = int(match[9]), int(match[10])
    # RFC 3339 5.6: "time-numoffset = ("+" / "-") time-hour ":" time-minute".
    if hours > 23 or minutes > 59:
        raise ValueError("no such offset")
    return timedelta(hours=hours, minutes=minutes) * (-1 if match[8] == "-" else 1)


def format_datetime(moment: datetime) -> str:
    """Return a moment, which must be in UTC, as date-time in whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
