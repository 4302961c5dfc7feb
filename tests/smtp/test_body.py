"""The content of DATA: what ends it, at every split of the input."""

from __future__ import annotations

import re
from itertools import combinations, product
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pillarbox.smtp.body import DataDecoder

Mode = Literal["normalize", "reject", "accept"]


def decode(octets: bytes, cuts: list[int], mode: Mode = "normalize") -> tuple[bytes, bool, bytes, bool]:
    """Feed octets cut at these places; return message, finished, what was left, and whether it is flawed."""
    decoder = DataDecoder(mode)
    places = sorted({cut for cut in cuts if 0 < cut < len(octets)})
    parts = [octets[a:b] for a, b in zip([0, *places], [*places, len(octets)], strict=True)]
    message = b""
    while parts and not decoder.finished:
        message += decoder.feed(parts.pop(0))
    return message, decoder.finished, decoder.rest + b"".join(parts), decoder.flaw is not None


def reference(octets: bytes, mode: Mode = "normalize") -> tuple[bytes, bool, bytes, bool]:
    """Decode the slow and obvious way, with the whole input in hand."""
    data = b"\r\n" + octets
    end = data.find(b"\r\n.\r\n")
    assert end >= 0
    message = re.sub(rb"\r\n\.", b"\r\n", data[: end + 2])[2:]
    bare = re.search(rb"(?<!\r)\n|\r(?!\n)", message) is not None
    flaw = mode != "accept" and (b"\0" in message or (mode == "reject" and bare))
    if mode != "accept":
        message = re.sub(rb"\r\n|(\r)|\n", lambda found: b" " if found[1] else b"\r\n", message)
    return message, True, data[end + 5 :], flaw


BODIES = st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\0", b"\r\n", b"\r\n.", b"text"]), max_size=24).map(
    b"".join
)


@pytest.mark.promises(
    "The end of a message", "CRLF . CRLF ends a message, and nothing else does; the start of the data counts as a CRLF."
)
@given(body=BODIES, mode=st.sampled_from(["normalize", "reject", "accept"]), cuts=st.lists(st.integers(0, 60)))
@example(body=b"", mode="normalize", cuts=[1, 2])
@example(body=b"..", mode="normalize", cuts=[1])
def test_any_body_decodes_as_the_definition_says(body: bytes, mode: Mode, cuts: list[int]) -> None:
    octets = body + b"\r\n.\r\nQUIT\r\n"
    assert decode(octets, cuts, mode) == reference(octets, mode)


NEVER_AN_END = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\n.\r", b"\r\n\0.\r\n", b"\r\n.\0\r\n",
    b"\r\n.\r\r\n",
]  # fmt: skip


@pytest.mark.parametrize("mode", ["normalize", "reject", "accept"])
@pytest.mark.parametrize("sequence", NEVER_AN_END)
def test_only_crlf_dot_crlf_ends_the_data(sequence: bytes, mode: Mode) -> None:
    octets = b"a" + sequence + b"MAIL FROM:<x@y>\r\n.\r\nQUIT\r\n"
    for cuts in [[], list(range(len(octets))), *([cut] for cut in range(len(octets)))]:
        message, finished, rest, _ = decode(octets, cuts, mode)
        assert finished
        assert message.endswith(b"MAIL FROM:<x@y>\r\n")
        assert rest == b"QUIT\r\n"


@pytest.mark.promises(
    "The end of a message", "CRLF . CRLF ends a message, and nothing else does; the start of the data counts as a CRLF."
)
@pytest.mark.promises(
    "The end of a message", "However its octets are cut into packets, it gets the same reply and is stored the same."
)
@pytest.mark.parametrize("mode", ["normalize", "reject", "accept"])
@pytest.mark.parametrize("start", [b"a", b"..\r\na"])
@pytest.mark.parametrize("sequence", NEVER_AN_END)
def test_never_an_end_at_every_two_cuts(sequence: bytes, start: bytes, mode: Mode) -> None:
    octets = start + sequence + b"b\r\n.\r\nQ"
    wanted = reference(octets, mode)
    for cuts in combinations(range(1, len(octets)), 2):
        assert decode(octets, list(cuts), mode) == wanted, cuts


@pytest.mark.promises(
    "The end of a message", "However its octets are cut into packets, it gets the same reply and is stored the same."
)
@pytest.mark.parametrize("mode", ["normalize", "reject", "accept"])
def test_every_short_body_at_every_cut(mode: Mode) -> None:
    for length in range(7):
        for body in product(b"\r\n.a", repeat=length):
            octets = bytes(body) + b"\r\n.\r\n"
            wanted = reference(octets, mode)
            for cut in range(len(octets)):
                assert decode(octets, [cut], mode) == wanted, (octets, cut)


@pytest.mark.parametrize("sequence", NEVER_AN_END)
def test_what_reaches_the_handler_has_cr_and_lf_only_together(sequence: bytes) -> None:
    message, *_ = decode(b"a" + sequence + b"b\r\n.\r\n", [])
    assert re.sub(rb"\r\n", b"", message).translate(None, b"\r\n") == re.sub(rb"\r\n", b"", message)


@pytest.mark.promises("The end of a message", "A leading dot is removed behind a real CRLF only.")
@pytest.mark.parametrize(
    ("octets", "message"),
    [
        (b".\r\n", b""),
        (b"..\r\n.\r\n", b".\r\n"),
        (b"\r\n.\r\n", b"\r\n"),
        (b"a\r\n..b\r\n.\r\n", b"a\r\n.b\r\n"),
        (b"a\n..b\r\n.\r\n", b"a\r\n..b\r\n"),  # a dot goes only behind a real CRLF
        (b"a\n.\nb\r\n.\r\n", b"a\r\n.\r\nb\r\n"),
        (b"a\rb\r\r\n.\r\n", b"a b \r\n"),
        (b"a\n\r\n.\r\n", b"a\r\n\r\n"),
    ],
)
def test_dots_and_line_ends(octets: bytes, message: bytes) -> None:
    for cuts in [[], list(range(len(octets)))]:
        assert decode(octets, cuts) == (message, True, b"", False)


def test_a_nul_is_a_flaw_unless_content_is_accepted_as_it_is() -> None:
    assert decode(b"a\0b\r\n.\r\n", [])[3]
    assert not decode(b"a\0b\r\n.\r\n", [], "accept")[3]


@pytest.mark.parametrize("place", [0, 131071, 131072, 131073, 262143, 300000])
@pytest.mark.parametrize("bare", [b"\r", b"\n"])
def test_a_large_block_is_searched_to_its_end(bare: bytes, place: int) -> None:
    clean = b"\r\n".join([b"x" * 76] * 4100) + b"\r\n"
    assert not decode(clean + b".\r\n", [], "reject")[3]
    flawed = clean[:place] + (bare if clean[place - 1 : place] not in b"\r" else b"x" + bare + b"x") + clean[place:]
    assert decode(flawed + b"\r\n.\r\n", [], "reject") == reference(flawed + b"\r\n.\r\n", "reject")
    assert decode(flawed + b"\r\n.\r\n", [], "reject")[3]


@pytest.mark.parametrize("shift", range(4))
def test_a_crlf_on_the_edge_of_a_piece_is_whole(shift: int) -> None:
    body = b"x" * (131070 + shift) + b"\r\n" + b"y" * 200000 + b"\r\n"
    assert decode(body + b".\r\n", [], "reject") == (body, True, b"", False)
