"""Transparency on the way out: whatever the blocks, the next server gets the octets that were given."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox.deliver.dots import BareNewline, Dots
from pillarbox.smtp.body import DataDecoder


def sent(*blocks: bytes) -> bytes:
    dots = Dots()
    return b"".join([dots.block(block) for block in blocks]) + dots.end()


def received(octets: bytes) -> bytes:
    """Return what a receiver makes of it, by RFC 5321 4.5.2 word for word."""
    lines = octets.split(b"\r\n")
    assert lines[-2:] == [b".", b""], "the end is at the end"
    assert b"." not in lines[:-2], "and nowhere else"
    return b"".join(line.removeprefix(b".") + b"\r\n" for line in lines[:-2])


def cut(octets: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(octets) + 1) for place in places), len(octets)]
    return [octets[start:end] for start, end in itertools.pairwise(edges)]


lines = st.lists(st.text("..\n\r \x00aä", max_size=4).map(lambda text: re.sub("[\r\n]", "", text).encode()), max_size=8)
texts = lines.map(lambda all_lines: b"".join(line + b"\r\n" for line in all_lines))


@pytest.mark.promises(
    "Handing on", "A message that is handed on ends where it ended: dots are doubled, and CR and LF leave as CRLF only."
)
@given(texts, st.lists(st.integers(0, 100), max_size=6))
@settings(max_examples=300, deadline=None)
def test_what_is_received_is_what_was_given(text: bytes, places: list[int]) -> None:
    assert received(sent(*cut(text, places))) == text


@pytest.mark.promises(
    "Handing on", "A message that is handed on ends where it ended: dots are doubled, and CR and LF leave as CRLF only."
)
@pytest.mark.parametrize("text", [b".\r\n..\r\n.\r\n", b"a\r\n.\r\n\r\n.b\r\n", b"..\r\n.a.\r\n\r\n.", b"", b"x"])
def test_dots_at_every_two_cuts(text: bytes) -> None:
    whole = text if not text or text.endswith(b"\r\n") else text + b"\r\n"  # DATA has no other way
    for places in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        octets = sent(*cut(text, list(places)))
        assert received(octets) == whole
        decoder = DataDecoder("reject")  # our own server makes the same of it
        assert decoder.feed(octets) == whole
        assert decoder.finished


@pytest.mark.promises(
    "Handing on", "A message that is handed on ends where it ended: dots are doubled, and CR and LF leave as CRLF only."
)
@pytest.mark.parametrize(
    "text", [b"a\nb\r\n", b"a\rb\r\n", b"\n.\r\nMAIL FROM:<x>", b"a\r\r\nb", b"a\r\n\r", b"\r\n.\r", b"\n", b"\r"]
)
def test_a_bare_cr_or_lf_never_leaves(text: bytes) -> None:
    for places in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        with pytest.raises(BareNewline):
            sent(*cut(text, list(places)))
