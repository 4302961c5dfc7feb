"""Replies: lines, lengths, and what a handler's text may not do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pillarbox
from pillarbox import Reject
from pillarbox.smtp import reply as replies
from pillarbox.smtp.reply import LOCAL_ERROR, TABLE, Reply, encode, from_reject


@pytest.mark.promises(
    "Replies and logs",
    "A reply line has at most 512 octets (but for challenges of AUTH); longer text becomes several lines.",
)
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


# --- The table

# Subject and detail, of those that IANA's registry of enhanced status codes has (RFC 5248), what is used here.
REGISTERED = {
    *("0.0", "1.0", "1.1", "1.3", "1.5", "1.7", "3.0", "3.2", "3.4", "3.6", "4.2"),  # RFC 3463, RFC 6710
    *("5.0", "5.1", "5.2", "5.3", "5.4", "5.6"),  # RFC 3463, RFC 4954
    *("6.0", "6.7", "6.8"),  # RFC 3463, RFC 6531
    *("7.0", "7.1", "7.8", "7.10", "7.11"),  # RFC 3463, RFC 4954, RFC 5248
}


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: str(entry.reply))
def test_the_code_and_the_enhanced_code_of_a_reply_go_together(entry: replies.Entry) -> None:
    answer = entry.reply
    if answer.code == 354:  # RFC 2034 4: none for 3xx
        assert answer.enhanced == ""
        return
    level, _, rest = answer.enhanced.partition(".")
    assert level == str(answer.code)[0]
    assert rest in REGISTERED
    assert answer.plain.isascii()
    assert entry.when


def test_a_reply_is_made_in_the_table_and_nowhere_else() -> None:
    source = Path(pillarbox.__file__).parent
    for path in source.rglob("*.py"):
        if path.parent.name == "deliver":  # a relay reads replies of others
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Reply":
                assert path.name == "reply.py", f"{path}:{node.lineno}: enter it in the table of smtp/reply.py"


def test_every_fixed_reply_is_in_the_table() -> None:
    fixed = {name for name, value in vars(replies).items() if isinstance(value, Reply)}
    entered = {id(entry.reply) for entry in TABLE}
    assert {name for name in fixed if id(getattr(replies, name)) not in entered} == set()
    assert len(fixed) > 60
