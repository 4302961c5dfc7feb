"""BDAT (RFC 3030): chunks become one message, and no octet of a chunk ever becomes a command; at every split."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pillarbox import MessageStream, MessageTooLarge, Recipient, Reject, Session
from transcript import Replay, replay, replay_every_way

BEGUN = """
S: 220
C: HELO client.example
S: 250
C: MAIL FROM:<a@example.org>
C: RCPT TO:<b@example.com>
S: 250 Accepted
S: 250 Accepted
"""
CAN_BE_USED = """
C: NOOP
S: 250 OK
"""


def delivers(*messages: bytes) -> Any:
    def check(done: Replay) -> None:
        assert done.messages == list(messages)

    return check


async def test_one_chunk_is_a_message() -> None:
    text = (
        BEGUN
        + """
        c: BDAT 14 LAST\\r\\nSubject: x\\r\\n\\r\\n
        S: 250 OK: message queued
    """
        + CAN_BE_USED
    )
    await replay_every_way(text, delivers(b"Subject: x\r\n\r\n"))


async def test_each_chunk_is_answered_and_all_are_one_message() -> None:
    text = (
        BEGUN
        + """
        c: BDAT 12\\r\\nSubject: x\\r\\n
        S: 250 12 octets received
        c: BDAT 7\\r\\n\\r\\nHello
        S: 250 7 octets received
        c: BDAT 2 LAST\\r\\n\\r\\n
        S: 250 OK: message queued
    """
        + CAN_BE_USED
    )
    await replay_every_way(text, delivers(b"Subject: x\r\n\r\nHello\r\n"))


@pytest.mark.promises(
    "Messages in chunks (BDAT)", "However commands and chunks are cut into packets, replies and message are the same."
)
async def test_a_whole_transaction_may_be_pipelined() -> None:
    text = """
        S: 220
        C: HELO client.example
        S: 250
        C: MAIL FROM:<a@example.org>
        C: RCPT TO:<b@example.com>
        c: BDAT 4\\r\\nA: b
        c: BDAT 4 LAST\\r\\n\\r\\n\\r\\n
        C: MAIL FROM:<c@example.org>
        C: RCPT TO:<d@example.com>
        c: BDAT 0\\r\\nBDAT 2 last\\r\\nxyNOOP\\r\\n
        S: 250 Accepted
        S: 250 Accepted
        S: 250 4 octets received
        S: 250 OK: message queued
        S: 250 Accepted
        S: 250 Accepted
        S: 250 0 octets received
        S: 250 OK: message queued
        S: 250 OK
    """
    await replay_every_way(text, delivers(b"A: b\r\n\r\n", b"xy"))


async def test_the_last_chunk_may_be_empty() -> None:
    text = (
        BEGUN
        + """
        c: BDAT 3\\r\\nabc
        S: 250 3 octets received
        C: BDAT 0 LAST
        S: 250 OK: message queued
    """
        + CAN_BE_USED
    )
    await replay_every_way(text, delivers(b"abc"))


async def test_an_empty_message() -> None:
    await replay_every_way(BEGUN + "C: BDAT 0 LAST\nS: 250 OK: message queued" + CAN_BE_USED, delivers(b""))


async def test_a_dot_means_nothing() -> None:
    text = BEGUN + "c: BDAT 12 LAST\\r\\n..x\\r\\n.\\r\\n.y\\r\\n\nS: 250 OK: message queued" + CAN_BE_USED
    await replay_every_way(text, delivers(b"..x\r\n.\r\n.y\r\n"))


@pytest.mark.promises(
    "Messages in chunks (BDAT)", "The size of a chunk is decimal digits; what is anything else ends the connection."
)
@pytest.mark.promises("Commands", "Keywords are ASCII: no other letter of Unicode passes for one of theirs.")
@pytest.mark.parametrize(
    "size",
    [
        "",
        "x",
        "-1",
        "+1",
        "0x10",
        "1_0",
        "\\xef\\xbc\\x91",
        "12 LAST LAST",
        "12 FIRST",
        "12 LA\\xc5\\xbfT",
        "9" * 21,
        "5 5",
    ],
)
async def test_a_size_that_is_no_number_closes(size: str) -> None:
    text = BEGUN + f"c: BDAT {size}\\r\\nRSET\\r\\n\nS: 501\nX"
    await replay(text)


@pytest.mark.promises(
    "Messages in chunks (BDAT)",
    "The octets of a chunk never become commands, also where it is refused, too large or out of place.",
)
async def test_a_chunk_without_recipients_never_becomes_commands() -> None:
    text = """
        S: 220
        C: HELO client.example
        S: 250
        C: MAIL FROM:<a@example.org>
        S: 250 Accepted
        c: BDAT 6\\r\\nQUIT\\r\\nBDAT 6 LAST\\r\\nRSET\\r\\nNOOP\\r\\n
        S: 503 Error: need RCPT command
        S: 503 Error: need RCPT command
        S: 250 OK
    """
    await replay_every_way(text, delivers())


@pytest.mark.promises(
    "Messages in chunks (BDAT)",
    "The octets of a chunk never become commands, also where it is refused, too large or out of place.",
)
@pytest.mark.parametrize(
    ("before", "refusal"), [("", "503 Error: send HELO/EHLO first"), ("HELO x", "503 Error: need MAIL command")]
)
async def test_a_chunk_without_a_transaction_never_becomes_commands(before: str, refusal: str) -> None:
    hello = f"C: {before}\nS: 250\n" if before else ""
    await replay_every_way(f"S: 220\n{hello}c: BDAT 6\\r\\nQUIT\\r\\nNOOP\\r\\n\nS: {refusal}\nS: 250 OK", delivers())


@pytest.mark.promises(
    "Messages in chunks (BDAT)",
    "The octets of a chunk never become commands, also where it is refused, too large or out of place.",
)
async def test_a_chunk_before_authentication_never_becomes_commands() -> None:
    text = """
        S: 220
        C: EHLO x
        S: *
        S: *
        S: *
        S: *
        S: *
        S: *
        S: *
        c: BDAT 6\\r\\nQUIT\\r\\nNOOP\\r\\n
        S: 530 Error: authentication Required
        S: 250 OK
    """
    await replay_every_way(text, delivers(), auth_optional=False)


@pytest.mark.promises("Messages in chunks (BDAT)", "DATA and BDAT do not mix in one message.")
async def test_data_and_chunks_do_not_mix() -> None:
    text = (
        BEGUN
        + """
        c: BDAT 3\\r\\nabc
        S: 250 3 octets received
        C: DATA
        S: 503 Error: the message has begun with BDAT
        C: RCPT TO:<c@example.com>
        S: 503 Error: the message has begun with BDAT
        C: MAIL FROM:<c@example.com>
        S: 503 Error: nested MAIL command
        C: NOOP
        S: 250 OK
        c: BDAT 1 LAST\\r\\nd
        S: 250 OK: message queued
    """
    )
    await replay_every_way(text, delivers(b"abcd"), forbid_unauth_pipelining=False)


@pytest.mark.parametrize("command", ["RSET", "HELO again.example"])
async def test_a_message_that_is_given_up_is_not_delivered(command: str) -> None:
    raised: list[BaseException] = []

    async def on_data(stream: MessageStream, session: Session) -> None:
        try:
            await stream.read()
        except ConnectionError as error:
            raised.append(error)
            raise

    text = (
        BEGUN
        + f"""
        c: BDAT 3\\r\\nabc
        S: 250 3 octets received
        C: {command}
        S: 250
        c: BDAT 6\\r\\nQUIT\\r\\n
        S: 503 Error: need MAIL command
        C: MAIL FROM:<a@example.org>
        S: 250
    """
    )
    await replay(text, on_data=on_data)
    assert len(raised) == 1


async def test_a_handler_that_swallows_the_abortion_accepts_nothing() -> None:
    async def on_data(stream: MessageStream, session: Session) -> str:
        try:
            await stream.read()
        except ConnectionError:
            return "stored"
        raise AssertionError

    await replay(BEGUN + "c: BDAT 3\\r\\nabc\nS: 250\nC: RSET\nS: 250 Flushed" + CAN_BE_USED, on_data=on_data)


@pytest.mark.promises(
    "Messages in chunks (BDAT)", "The end of the connection, or of TLS, inside a chunk delivers nothing."
)
async def test_the_end_of_the_connection_inside_a_chunk_delivers_nothing() -> None:
    raised: list[BaseException] = []

    async def on_data(stream: MessageStream, session: Session) -> None:
        try:
            await stream.read()
        except ConnectionError as error:
            raised.append(error)
            raise

    for chunk in ("BDAT 10 LAST\\r\\nabc", "BDAT 3\\r\\nabc", "BDAT 3\\r\\nabcQUIT\\r\\n"):
        conversation = Replay(on_data=on_data)
        head = [b"HELO x\r\n", b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\n"]
        said = await conversation.run([*head, chunk.encode().decode("unicode_escape").encode()])
        assert all("250 OK: message queued" not in lines for lines in said)
    assert len(raised) == 3


async def test_a_refusal_need_not_wait_for_the_last_chunk() -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        async for _ in stream:
            raise Reject(550, "No.")

    text = (
        BEGUN
        + """
        c: BDAT 6\\r\\nQUIT\\r\\nBDAT 6\\r\\nRSET\\r\\nBDAT 6 LAST\\r\\nQUIT\\r\\nNOOP\\r\\n
        S: 550 No.
        S: 503 Error: the message was refused, send RSET
        S: 503 Error: the message was refused, send RSET
        S: 250 OK
        C: RSET
        S: 250 Flushed
        c: BDAT 6 LAST\\r\\nQUIT\\r\\n
        S: 503 Error: need MAIL command
    """
    )
    await replay_every_way(text, on_data=on_data)


async def test_after_a_refusal_a_new_mail_is_enough() -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        if b"spam" in await stream.read():
            raise Reject(550, "No.")

    mail = "C: MAIL FROM:<a@example.org>\nC: RCPT TO:<b@example.com>\nS: 250\nS: 250\n"
    text = (
        BEGUN + "c: BDAT 4 LAST\\r\\nspam\nS: 550 No.\n" + mail + "c: BDAT 4 LAST\\r\\nmail\nS: 250 OK: message queued"
    )
    await replay_every_way(text, on_data=on_data)


@pytest.mark.promises(
    "Messages in chunks (BDAT)",
    "What is too large is consumed and answered with 552, and so is what follows until RSET.",
)
async def test_too_large_stays_too_large_until_reset() -> None:
    seen: list[type[BaseException]] = []

    async def on_data(stream: MessageStream, session: Session) -> None:
        try:
            await stream.read()
        except MessageTooLarge as error:
            seen.append(type(error))
            raise

    text = (
        BEGUN
        + """
        c: BDAT 6\\r\\nabcdef
        S: 250 6 octets received
        c: BDAT 6\\r\\nQUIT\\r\\n
        S: 552 Error: message exceeds fixed maximum message size 10
        c: BDAT 6 LAST\\r\\nQUIT\\r\\n
        S: 552 Error: message exceeds fixed maximum message size 10
        C: RSET
        S: 250 Flushed
        c: BDAT 6 LAST\\r\\nQUIT\\r\\n
        S: 503 Error: need MAIL command
    """
    )
    await replay_every_way(text, size=10, on_data=on_data)
    assert set(seen) == {MessageTooLarge}


async def test_what_a_handler_leaves_unread_is_still_answered_chunk_by_chunk() -> None:
    async def on_data(stream: MessageStream, session: Session) -> str:
        return "as you like"

    text = (
        BEGUN
        + """
        c: BDAT 6\\r\\nQUIT\\r\\n
        S: 250 6 octets received
        c: BDAT 6 LAST\\r\\nQUIT\\r\\n
        S: 250 as you like
    """
        + CAN_BE_USED
    )
    await replay_every_way(text, on_data=on_data)


@pytest.mark.promises(
    "The end of a message", 'With bare_newline "normalize", the default, a handler gets CR and LF only as CRLF.'
)
async def test_bare_newlines_and_a_crlf_that_two_chunks_share() -> None:
    text = (
        BEGUN
        + """
        c: BDAT 4\\r\\na\\nb\\r
        S: 250 4 octets received
        c: BDAT 4 LAST\\r\\n\\nc\\rd
        S: 250 OK: message queued
    """
    )
    await replay_every_way(text, delivers(b"a\r\nb\r\nc d"))
    await replay_every_way(text, delivers(b"a\nb\r\nc\rd"), bare_newline="accept")


@pytest.mark.promises(
    "The end of a message",
    'With "reject" a message with a bare CR or LF is read to its end and refused; then the connection ends.',
)
async def test_a_bare_newline_closes_where_it_is_refused() -> None:
    refusal = "S: 550 Error: bare <CR> or <LF> in the message\nX"
    await replay_every_way(BEGUN + "c: BDAT 4 LAST\\r\\na\\nb\\r\n" + refusal, delivers(), bare_newline="reject")
    await replay_every_way(BEGUN + "c: BDAT 4\\r\\na\\nb\\r\n" + refusal, delivers(), bare_newline="reject")


async def test_a_nul_is_refused_but_in_binary() -> None:
    text = BEGUN + "c: BDAT 3 LAST\\r\\na\\x00b\nS: {}"
    await replay_every_way(text.format("550 Error: NUL in the message"), delivers())
    binary = text.replace("MAIL FROM:<a@example.org>", "MAIL FROM:<a@example.org> BODY=BINARYMIME")
    await replay_every_way(binary.format("250 OK: message queued"), delivers(b"a\0b"), binarymime=True)


async def test_binary_content_is_untouched() -> None:
    text = (
        BEGUN.replace("<a@example.org>", "<a@example.org> BODY=BINARYMIME")
        + """
        c: BDAT 5\\r\\n\\r\\n\\n\\x00\\r
        S: 250 5 octets received
        c: BDAT 3 LAST\\r\\n\\xff\\n\\r
        S: 250 OK: message queued
    """
    )
    await replay_every_way(text, delivers(b"\r\n\n\0\r\xff\n\r"), binarymime=True)


async def test_binary_content_needs_bdat_and_the_option() -> None:
    begun = BEGUN.replace("<a@example.org>", "<a@example.org> BODY=BINARYMIME")
    await replay(begun + "C: DATA\nS: 503 Error: a message with BODY=BINARYMIME needs BDAT\n", binarymime=True)
    mail = "C: MAIL FROM:<a@b.example> BODY=BINARYMIME\nS: 501 Error: BODY must be 7BIT or 8BITMIME"
    await replay("S: 220\nC: HELO x\nS: 250\n" + mail)


@pytest.mark.promises(
    "Messages in chunks (BDAT)",
    "The octets of a chunk never become commands, also where it is refused, too large or out of place.",
)
async def test_where_bdat_is_disabled_a_chunk_never_becomes_commands() -> None:
    await replay(
        BEGUN + "c: BDAT 6\\r\\nQUIT\\r\\n\nS: 500 Error: command not recognized\nX", disabled_commands=["BDAT"]
    )


async def test_the_extensions_are_announced() -> None:
    for options, announced in (
        ({}, {"CHUNKING"}),
        ({"binarymime": True}, {"CHUNKING", "BINARYMIME"}),
        ({"hide_chunking": True}, set()),
        ({"disabled_commands": ["BDAT"]}, set()),
    ):
        said = await Replay(**options).run([b"EHLO x\r\n"])
        assert {line[4:] for line in said[1]} & {"CHUNKING", "BINARYMIME"} == announced


@pytest.mark.parametrize("swallows", [False, True])
async def test_commands_between_chunks_are_answered_in_order(swallows: bool) -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        try:
            await stream.read()
        except ConnectionError:
            if not swallows:
                raise

    text = (
        BEGUN
        + """
        c: BDAT 6\\r\\nQUIT\\r\\n
        C: NOOP
        C: HELP
        C: NONSENSE
        c: BDAT 6\\r\\nRSET\\r\\nQUIT\\r\\nBDAT 6 LAST\\r\\nRSET\\r\\n
        S: 250 6 octets received
        S: 250 OK
        S: 214
        S: 500
        S: 250 6 octets received
        S: 221 Bye
        X
    """
    )
    await replay_every_way(text, on_data=on_data, forbid_unauth_pipelining=False)


@pytest.mark.parametrize(
    "line", ["BDAT \\xff", "BDAT 6\\x01", "BDAT 6\\x00", "BDAT\\t6", "BDAT6", "BDAT " + " " * 60 + "6"]
)
async def test_a_line_that_cannot_be_read_closes(line: str) -> None:
    await replay_every_way(BEGUN + f"c: {line}\\r\\nRSET\\r\\n\nS: *\nX", delivers())


LHLO = """
S: 220
C: LHLO x
S: *
S: *
S: *
S: *
S: *
S: *
S: *
C: MAIL FROM:<a@example.org>
C: RCPT TO:<no@example.com>
C: RCPT TO:<{}@example.com>
"""


async def test_lmtp_the_last_chunk_has_a_reply_for_each_recipient_that_there_is() -> None:
    """RFC 2033 4.3: a client that sends ahead counts the recipients that were accepted, be it none."""

    def on_rcpt_to(address: Recipient, session: Session) -> None:
        if address.address.startswith("no"):
            raise Reject

    async def on_data(stream: MessageStream, session: Session) -> None:
        raise Reject(554, "No.")

    chunks = "c: BDAT 6\\r\\nQUIT\\r\\nBDAT 6 LAST\\r\\nQUIT\\r\\nNOOP\\r\\n\n"
    none = LHLO.format("no") + chunks + "S: 250\nS: 550\nS: 550\nS: 503 Error: need RCPT command\nS: 250 OK"
    await replay_every_way(none, lmtp=True, on_rcpt_to=on_rcpt_to)
    one = LHLO.format("b") + chunks + "S: 250\nS: 550\nS: 250\nS: 554 No.\nS: 503\nS: 250 OK"
    await replay_every_way(one, lmtp=True, on_rcpt_to=on_rcpt_to, on_data=on_data)
    two = LHLO.format("b") + "C: RCPT TO:<c@example.com>\n" + chunks
    replies = "S: 250\nS: 550\nS: 250\nS: 250\nS: 554 No.\nS: 503\nS: 503\nS: 250 OK"
    await replay_every_way(two + replies, lmtp=True, on_rcpt_to=on_rcpt_to, on_data=on_data)


async def test_lmtp_answers_each_chunk_once_and_the_last_for_each_recipient() -> None:
    async def on_data(stream: MessageStream, session: Session) -> list[object]:
        await stream.read()
        return ["one", Reject(452, "full")]

    text = (
        LHLO.format("c")
        + """
        S: 250
        S: 250
        S: 250
        c: BDAT 3\\r\\nabc
        S: 250 3 octets received
        c: BDAT 3 LAST\\r\\ndef
        S: 250 one
        S: 452 full
    """
    )
    await replay_every_way(text, lmtp=True, on_data=on_data)


async def test_a_handler_that_takes_too_long_for_a_chunk_has_failed() -> None:
    async def on_data(stream: MessageStream, session: Session) -> None:
        await stream.read(1)
        await asyncio.sleep(10)

    text = BEGUN + "c: BDAT 3\\r\\nabc\nS: 451 Error: local error in processing"
    await replay(text, on_data=on_data, handler_timeout=0.01)


async def test_which_of_two_reasons_is_told_does_not_depend_on_the_cuts() -> None:
    """A message that is too large and has a NUL, both by DATA and by BDAT; and a bare newline stands above both."""
    too_large = "552 Error: message exceeds fixed maximum message size 4"
    await replay_every_way(BEGUN + f"c: BDAT 8\\r\\na\\x00bcdefg\nS: {too_large}", delivers(), size=4)
    await replay_every_way(BEGUN + f"c: BDAT 8\\r\\nabcdef\\x00g\nS: {too_large}", delivers(), size=4)
    data = BEGUN + "C: DATA\nS: 354\nc: a\\x00bcdefg\\r\\n.\\r\\n\nS: "
    await replay_every_way(data + too_large, delivers(), size=4)
    bare = data.replace("fg", "\\ng") + "550 Error: bare <CR> or <LF> in the message\nX"
    await replay_every_way(bare, delivers(), size=4, bare_newline="reject")
