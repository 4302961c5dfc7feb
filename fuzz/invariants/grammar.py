"""Paths, parameters, domains, literals, xtext and dates: a value or a GrammarError, and what comes out is clean.

Each reader has its own invariant besides: what it returns it reads again as the same, the fast path and the slow one
agree, and what it takes and refuses of ASCII is what the RFC's ABNF does.

An input: 1 octet for the reader, and the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import plaingrammar

from pillarbox.smtp import grammar
from pillarbox.smtp.datetimes import format_datetime, parse_datetime
from pillarbox.smtp.grammar import GrammarError

_T = TypeVar("_T")
# In Unicode a domain may have more octets than as A-labels: what is longer need not be short enough when read again.
_SHORT = 60


def one(octets: bytes) -> None:
    """Try one input."""
    if octets:
        READERS[octets[0] % len(READERS)](octets[1:].decode("utf-8", "replace"))


def _read(reader: Callable[[], _T]) -> _T | None:
    """Return a value, None where the text was refused."""
    try:
        value = reader()
    except GrammarError as error:
        assert str(error).isprintable(), error
        assert str(error).isascii(), error
        return None
    for part in _texts(value):
        assert not grammar.has_forbidden_characters(part), part
    return value


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for part in value for text in _texts(part)] if isinstance(value, list | tuple) else []


def _is_plain(text: str) -> bool:
    """Whether a text is for the plain grammar: ASCII without A-labels."""
    return text.isascii() and text.isprintable() and "xn--" not in text.lower()


# --- Paths


def _strict(keyword: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        found = _read(lambda: grammar.split_path(text, keyword))
        assert found == _read(lambda: grammar._split_any_path(text, keyword, lenient=False)), "the paths disagree"
        _check_path(keyword, text, found)
        if found is not None and len(text) < _SHORT:
            address, rest = found
            again = f"{keyword}:<{address}> {rest}"
            assert grammar.split_path(again, keyword) == found, again

    return check


def _check_path(keyword: str, text: str, found: tuple[str, str] | None) -> None:
    if not _is_plain(text):
        return
    start = f"{keyword}:"
    if found is not None and found[0]:
        assert plaingrammar.is_mailbox(found[0]) or (keyword, found[0].lower()) == ("TO", "postmaster"), found
    path = text.removeprefix(start)
    if text.startswith(start) and len(path) <= 256 and path.endswith(">") and path.startswith("<"):
        taken = path == "<>" or plaingrammar.is_mailbox(path[1:-1])
        assert found is not None or not taken, "a mailbox is refused"


def _lenient(text: str) -> None:
    found = _read(lambda: grammar.split_path(text, "TO", lenient=True))
    strict = _read(lambda: grammar.split_path(text, "TO"))
    assert strict is None or found is not None, "lenient is stricter"


def _mailbox(text: str) -> None:
    found = _read(lambda: grammar.parse_mailbox(text))
    if _is_plain(text) and len(text) <= 254:
        assert (found is not None) == plaingrammar.is_mailbox(text), text
    if found is not None and len(text) < _SHORT:
        assert grammar.parse_mailbox(found) == found, found


# --- Domains and literals


def _domain(text: str) -> None:
    found = _read(lambda: grammar.parse_domain(text))
    if _is_plain(text):
        assert (found is not None) == plaingrammar.is_domain(text), text
        assert found in (None, text)
    if found is not None and len(text) < _SHORT:
        assert grammar.parse_domain(found) == found, found


def _lenient_domain(text: str) -> None:
    found = _read(lambda: grammar.parse_domain(text, lenient=True))
    assert (found is None) == grammar.has_forbidden_characters(text), text


def _literal(text: str) -> None:
    found = _read(lambda: grammar.parse_address_literal(text))
    if _is_plain(text):
        assert (found is not None) == plaingrammar.is_literal(text), text
    assert found is None or grammar.parse_address_literal(found) == found, found


def _helo(text: str) -> None:
    found = grammar.is_helo_name(text)
    if _is_plain(text) and (plaingrammar.is_literal(text) or plaingrammar.is_domain(text)):
        assert found, text
    assert not found or _is_plain(text) or "xn--" in text.lower(), text


# --- Parameters


def _parameters(text: str) -> None:
    found = _read(lambda: grammar.parse_parameters(text))
    if text.isascii() and text.isprintable():
        assert found == plaingrammar.parameters(text), text
    if found is not None:
        again = " ".join(keyword if value is None else f"{keyword}={value}" for keyword, value in found)
        assert grammar.parse_parameters(again) == found, again


def _xtext(text: str) -> None:
    found = _read(lambda: grammar.decode_xtext(text))
    octets = plaingrammar.decode_xtext(text)
    if found is not None:
        assert octets == found.encode(), text
        assert grammar.decode_xtext(grammar.encode_xtext(found)) == found, text
    elif octets is not None:
        assert grammar.has_forbidden_characters(octets.decode("utf-8", "surrogateescape")), text


def _date(text: str) -> None:
    found = _read(lambda: parse_datetime(text))
    if found is not None and found.year > 999:  # the C library pads no year
        assert parse_datetime(format_datetime(found)) == found.replace(microsecond=0), text


READERS: Sequence[Callable[[str], None]] = (
    _strict("FROM"), _lenient, _parameters, _domain, _lenient_domain, _literal, _xtext, _helo, _strict("TO"), _mailbox,
    _date,
)  # fmt: skip
