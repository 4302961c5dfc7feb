"""Replies: lines, lengths, and what a handler's text may not do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox import Reject
from pillarbox.smtp.reply import LOCAL_ERROR, Reply, encode, from_reject


@given(text=st.text(max_size=2000), enhanced=st.sampled_from(["", "5.7.1"]), utf8=st.booleans())
def test_any_text_makes_well_formed_lines(text: str, enhanced: str, utf8: bool) -> None:
    octets = encode(550, text, enhanced, utf8=utf8)
    lines = octets.split(b"\r\n")
    assert lines.pop() == b""
    for number, line in enumerate(lines):
        assert len(line) + 2 <= 512
        assert line[:3] == b"550"
        assert line[3:4] == (b" " if number == len(lines) - 1 else b"-")
        assert line[4:].startswith(enhanced.encode())
        assert not any(octet < 32 or octet == 127 for octet in line)
        line.decode("utf-8")
        assert utf8 or line.isascii()


def test_a_forged_line_stays_one_line() -> None:
    assert encode(250, "OK\r\n354 go ahead\x00") == b"250 OK  354 go ahead \r\n"


def test_the_enhanced_code_stands_before_2xx_4xx_5xx_only() -> None:
    assert encode(354, "go", "2.0.0") == b"354 go\r\n"
    assert Reply(250, "2.0.0", "OK").coded == b"250 2.0.0 OK\r\n"
    assert Reply(250, "2.0.0", "OK").plain == b"250 OK\r\n"


@pytest.mark.parametrize(
    ("reject", "reply"),
    [
        (Reject(), "451 4.3.0 Error: local error in processing"),
        (Reject(451, "later"), "451 4.3.0 later"),
        (Reject(550, "no"), "550 5.0.0 no"),
        (Reject(550, "no", enhanced="5.1.1"), "550 5.1.1 no"),
        (Reject(text=""), "451 4.3.0"),
    ],
)
def test_what_a_reject_leaves_out_is_the_hooks(reject: Reject, reply: str) -> None:
    assert str(from_reject(reject, LOCAL_ERROR)) == reply


@pytest.mark.parametrize("code", [250, 399, 600, 5, "550", True])
def test_a_reject_has_a_code_that_refuses(code: int) -> None:
    with pytest.raises(ValueError, match="code must be from 400 to 599"):
        Reject(code)


@pytest.mark.parametrize("enhanced", ["2.0.0", "5.1", "5.1.x", "5.1.1.1", "4.1.1", "5.1.1000"])
def test_a_reject_has_an_enhanced_code_of_its_class(enhanced: str) -> None:
    with pytest.raises(ValueError, match="enhanced"):
        Reject(550, enhanced=enhanced)
