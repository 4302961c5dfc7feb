"""How often a message was handed on already: its Received fields are counted, and nothing else."""

from __future__ import annotations

import pytest

from pillarbox import Reject
from pillarbox.deliver.loops import MOST_HOPS, HeaderWatch

HOP = b"Received: from a\r\n\tby b; Sat, 07 Mar 2026 09:05:03 +0000\r\n"


def watched(*blocks: bytes) -> HeaderWatch:
    watch = HeaderWatch()
    for block in blocks:
        watch.feed(block)
    return watch


HEADER = (
    b"Return-Path: <a@b>\r\nReceived: one\r\n\tReceived: folded\r\nRECEIVED : two\r\nX-Received: no\r\n"
    b"Received-SPF: no\r\nreceived:three\r\nReceived\r\nSubject: Received: no\r\n\r\nReceived: in the body\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_only_received_fields_of_the_header_section_count(size: int) -> None:
    watch = watched(*(HEADER[i : i + size] for i in range(0, len(HEADER), size)))
    assert (watch.hops, watch.ended) == (3, True)


@pytest.mark.parametrize("size", [1, 30, 4096])
def test_the_hundredth_passes_and_the_next_does_not(size: int) -> None:
    def blocks(hops: int) -> list[bytes]:
        octets = HOP * hops + b"\r\n"
        return [octets[i : i + size] for i in range(0, len(octets), size)]

    assert watched(*blocks(MOST_HOPS)).hops == 100
    with pytest.raises(Reject) as refused:
        watched(*blocks(MOST_HOPS + 1))
    assert str(refused.value) == "554 5.4.6 Error: too many hops, this is a mail loop"


def test_of_a_long_line_little_is_kept() -> None:
    watch = watched(b"Received: ", *[b"x" * 100_000] * 3, b"\r", b"\nReceived: y\r\n\r\n")
    assert (watch.hops, watch.ended) == (2, True)
    assert len(watched(*[b"x" * 100_000] * 3)._line) < 100


def test_a_bare_lf_may_be_a_lines_end() -> None:
    assert watched(b"Received: a\nReceived: b\n\nReceived: c\n").hops == 2


@pytest.mark.parametrize(
    ("octets", "is_ascii"),
    [(b"Subject: x\r\n\r\n\xc3\xa4", True), (b"Subject: \xc3\xa4\r\n\r\n", False), (b"Subject: \xc3", False)],
)
def test_octets_above_127_in_the_header_section(octets: bytes, is_ascii: bool) -> None:
    assert watched(octets).is_ascii is is_ascii
    assert watched(*(octets[i : i + 1] for i in range(len(octets)))).is_ascii is is_ascii
