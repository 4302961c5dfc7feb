"""The date-time of RFC 3339: what is read, and what is refused."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.smtp.datetimes import format_datetime, parse_datetime
from pillarbox.smtp.grammar import GrammarError

ZONES = st.timezones() | st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.just(UTC))


@given(MOMENTS, st.integers(-1439, 1439))
def test_what_python_writes_is_read(moment: datetime, minutes: int) -> None:
    text = moment.astimezone(timezone(timedelta(minutes=minutes))).isoformat()
    assert parse_datetime(text) == moment
    assert parse_datetime(text).tzinfo == UTC


@given(MOMENTS.map(lambda moment: moment.replace(microsecond=0)))
def test_what_is_written_is_read(moment: datetime) -> None:
    text = format_datetime(moment)
    if moment.year >= 1000:  # no more than the C library's years
        assert parse_datetime(text, fraction=False) == moment


@given(st.from_regex(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", fullmatch=True))
def test_what_looks_like_one_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(GrammarError):
        assert parse_datetime(text).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("1985-04-12T23:20:50.52Z", datetime(1985, 4, 12, 23, 20, 50, 520_000, UTC)),
        ("1996-12-19T16:39:57-08:00", datetime(1996, 12, 20, 0, 39, 57, 0, UTC)),
        ("1990-12-31T23:59:60Z", datetime(1991, 1, 1, tzinfo=UTC)),
        ("1937-01-01T12:00:27.87+00:20", datetime(1937, 1, 1, 11, 40, 27, 870_000, UTC)),
        ("2001-01-01t00:00:00.1234567890z", datetime(2001, 1, 1, 0, 0, 0, 123_456, UTC)),
        ("2001-01-01T00:00:00-00:00", datetime(2001, 1, 1, tzinfo=UTC)),
    ],
)
def test_the_examples(text: str, means: datetime) -> None:
    assert parse_datetime(text) == means


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2001-01-01",
        "2001-01-01T00:00Z",
        "2001-01-01T00:00:00",
        "2001-01-01 00:00:00Z",
        "2001-1-1T00:00:00Z",
        "2001-02-29T00:00:00Z",
        "2001-13-01T00:00:00Z",
        "2001-01-01T24:00:00Z",
        "2001-01-01T00:00:61Z",
        "2001-01-01T00:00:00+24:00",
        "2001-01-01T00:00:00+00:60",
        "2001-01-01T00:00:00+0000",
        "2001-01-01T00:00:00.Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:60Z",
        "٢٠٠١-01-01T00:00:00Z",
        " 2001-01-01T00:00:00Z",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(GrammarError):
        parse_datetime(text)


def test_a_fraction_only_where_it_may_be() -> None:
    with pytest.raises(GrammarError):
        parse_datetime("2001-01-01T00:00:00.5Z", fraction=False)
