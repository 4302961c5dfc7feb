"""Transcripts of the dialogue: each is replayed whole, byte by byte and cut at each place."""

from __future__ import annotations

from typing import Any

import pytest

from pillarbox import Reject
from transcript import replay, replay_every_way

GREET = "S: 220 mx.test ESMTP\n"
OFFERED = "S: 250-\nS: 250-PIPELINING\nS: 250-8BITMIME\nS: 250-SMTPUTF8\nS: 250-CHUNKING\nS: 250-LIMITS RCPTMAX=1000\n"
EHLO = GREET + "C: EHLO client.example\n" + OFFERED + "S: 250 STARTTLS\n"
MAIL = EHLO + "C: MAIL FROM:<a@example.com>\nS: 250 Accepted\n"
RCPT = MAIL + "C: RCPT TO:<b@example.com>\nS: 250 Accepted\n"
DATA = RCPT + "C: DATA\nS: 354 End data with <CR><LF>.<CR><LF>\n"
QUIT = "C: QUIT\nS: 221 Bye\nX"

DIALOGUES = {
    "a message": DATA + "C: Subject: x\nC: \nC: Hello\nC: .\nS: 250 OK: message queued\n" + QUIT,
    "two messages": DATA
    + "C: one\nC: .\nS: 250 OK: message queued\n"
    + "C: MAIL FROM:<>\nC: RCPT TO:<b@example.com>\nC: RCPT TO:<c@example.com>\nS: 250 Accepted\nS: 250 Accepted\n"
    + "S: 250 Accepted\nC: DATA\nS: 354\nC: two\nC: .\nS: 250 OK: message queued\n"
    + QUIT,
    "verbs in any case": GREET
    + "C: ehLO x\nS: *\nS: *\nS: *\nS: *\nS: *\nS: *\nS: *\nC: mail from:<a@b>\nS: 250 Accepted\n"
    + QUIT,
    "HELO has no keywords": GREET + "C: HELO x\nS: 250 mx.test Nice to meet you, [192.0.2.1]\n" + QUIT,
    "hello without a name": GREET + "C: EHLO\nS: 501 Error: syntax: EHLO hostname\n" + QUIT,
    "spaces before the name": GREET + "C: HELO   x \nS: 250 mx.test Nice to meet you, [192.0.2.1]\n" + QUIT,
    "hello with two names": GREET + "C: HELO a b\nS: 501 Error: syntax: HELO hostname\n" + QUIT,
    "before hello": GREET
    + "C: MAIL FROM:<a@b>\nS: 503 Error: send HELO/EHLO first\nC: RCPT TO:<a@b>\nS: 503 Error: send HELO/EHLO first\n"
    + "C: DATA\nS: 503 Error: send HELO/EHLO first\nC: AUTH PLAIN\nS: 503 Error: send HELO/EHLO first\n"
    + QUIT,
    "out of order": EHLO
    + "C: RCPT TO:<a@b>\nS: 503 Error: need MAIL command\nC: DATA\nS: 503 Error: need MAIL command\n"
    + "C: MAIL FROM:<a@b>\nS: 250 Accepted\nC: DATA\nS: 503 Error: need RCPT command\n"
    + "C: MAIL FROM:<a@b>\nS: 503 Error: nested MAIL command\n"
    + QUIT,
    "RSET": MAIL + "C: RSET\nS: 250 Flushed\nC: RCPT TO:<a@b>\nS: 503 Error: need MAIL command\n" + QUIT,
    "hello resets": MAIL
    + "C: EHLO x\nS: *\nS: *\nS: *\nS: *\nS: *\nS: *\nS: *\nC: DATA\nS: 503 Error: need MAIL command\n"
    + QUIT,
    "small verbs": EHLO
    + "C: NOOP\nS: 250 OK\nC: NOOP with words\nS: 250 OK\nC: HELP\nS: 214\nC: VRFY a@b\nS: 252\nC: VRFY\nS: 501\n"
    + "C: RSET now\nS: 501 Error: syntax: RSET\nC: DATA now\nS: 503\nC: QUIT now\nS: 501 Error: syntax: QUIT\n"
    + QUIT,
    "bad addresses": EHLO
    + "C: MAIL FROM:a@b\nS: 501 Error: Bad sender address syntax\n"
    + "C: MAIL TO:<a@b>\nS: 501 Error: Bad sender address syntax\n"
    + "C: MAIL FROM : <a@b>\nS: 250 Accepted\n"
    + "C: RCPT TO:<>\nS: 501 Error: Bad recipient address syntax\n"
    + "C: RCPT TO:<a..b@c>\nS: 501 Error: Bad recipient address syntax\n"
    + "C: RCPT TO: <postmaster>\nS: 250 Accepted\n"
    + QUIT,
    "control characters": EHLO
    + "c: MAIL FROM:<a\\x01@b>\\r\\n\nS: 501 Error: control characters or malformed UTF-8 in the command\n"
    + "c: NOOP \\x00\\r\\n\nS: 501 Error: control characters or malformed UTF-8 in the command\n"
    + "c: NO\\x00OP\\r\\n\nS: 500 Error: command not recognized\n"
    + "c: MAIL FROM:<\\xff@b>\\r\\n\nS: 501\nc: MAIL FROM:<a@b>\\rX\\r\\n\nS: 501\n"
    + QUIT,
    "no Unicode case folding": EHLO + "C: MAIL FROM:<a@b> ſIZE=1\nS: 501\nC: \u212aELO x\nS: 500\n" + QUIT,
    "parameters": EHLO
    + "C: MAIL FROM:<a@b> SIZE=1 BODY=8BITMIME\nS: 250 Accepted\nC: RSET\nS: 250 Flushed\n"
    + "C: MAIL FROM:<a@b> BODY\nS: 501\nC: MAIL FROM:<a@b> SIZE=\nS: 501\nC: MAIL FROM:<a@b> SIZE=x\nS: 501\n"
    + "C: MAIL FROM:<a@b> SIZE=1 SIZE=1\nS: 501\nC: MAIL FROM:<a@b> FOO=1\nS: 555\n"
    + "C: MAIL FROM:<a@b> BODY=BINARYMIME\nS: 501\nC: MAIL FROM:<a@b> SMTPUTF8=1\nS: 501\n"
    + "C: MAIL FROM:<a@b> REQUIRETLS\nS: 530\nC: MAIL FROM:<a@b> AUTH=<>\nS: 250 Accepted\n"
    + "C: RCPT TO:<a@b> NOTIFY\nS: 501\nC: RCPT TO:<a@b> FOO\nS: 555\nC: RCPT TO:<a@b> NOTIFY=NEVER\nS: 250 Accepted\n"
    + QUIT,
    "UTF-8 needs SMTPUTF8": EHLO
    + "C: MAIL FROM:<ä@b>\nS: 550\nC: MAIL FROM:<ä@b> SMTPUTF8\nS: 250 Accepted\nC: RCPT TO:<ö@b>\nS: 250 Accepted\n"
    + "C: RSET\nS: 250 Flushed\nC: MAIL FROM:<a@b>\nS: 250 Accepted\nC: RCPT TO:<ö@b>\nS: 553\n"
    + QUIT,
    "unknown verbs": EHLO
    + "C: FOO\nS: 500 Error: command not recognized\n" * 9
    + "C: FOO\nS: 421 Error: too many unrecognized commands\nX",
    "a message forgives": EHLO
    + "C: FOO\nS: 500 Error: command not recognized\n" * 9
    + "C: MAIL FROM:<a@b>\nS: 250\nC: RCPT TO:<a@b>\nS: 250\nC: DATA\nS: 354\nC: .\nS: 250 OK: message queued\n"
    + "C: FOO\nS: 500 Error: command not recognized\n"
    + QUIT,
    "HTTP": GREET + "C: GET / HTTP/1.1\nS: 421 HTTP requests not allowed\nX",
    "a line too long": EHLO + f"C: NOOP {'x' * 4100}\nS: 500 Error: Command line too long\n" + QUIT,
    "trailing spaces": EHLO + "C: NOOP  \nS: 250 OK\nC: MAIL FROM:<a@b>  \nS: 250 Accepted\n" + QUIT,
    "bare LF ends a command": GREET + "c: HELO x\\n\nS: 250\nc: NOOP\\n\nS: 250 OK\n" + QUIT,
    "pipelined": EHLO
    + "C: MAIL FROM:<a@b>\nC: RCPT TO:<c@d>\nC: RCPT TO:<x>\nC: NOOP\nS: 250 Accepted\nS: 250 Accepted\n"
    + "S: 501 Error: Bad recipient address syntax\nS: 250 OK\n"
    + QUIT,
    "vanishing": DATA + "C: half a mess",
}


@pytest.mark.promises("Commands", "However commands are cut into packets, the replies are the same.")
@pytest.mark.parametrize("name", [name for name in DIALOGUES if name != "a line too long"])
async def test_dialogue_at_every_split(name: str) -> None:
    await replay_every_way(DIALOGUES[name])


async def test_a_line_too_long() -> None:
    await replay(DIALOGUES["a line too long"])


OUT_OF_TURN = {
    "EHLO": GREET + "C: EHLO x\nC: NOOP\nS: 554 Error: SMTP protocol synchronization\nX",
    "STARTTLS": EHLO + "C: STARTTLS\nC: EHLO x\nS: 554 Error: SMTP protocol synchronization\nX",
    "part of a line behind STARTTLS": EHLO + "C: STARTTLS\nc: EH\nS: 554 Error: SMTP protocol synchronization\nX",
    "DATA": RCPT + "C: DATA\nC: QUIT\nS: 554 Error: SMTP protocol synchronization\nX",
    "refused DATA": EHLO + "C: DATA\nC: QUIT\nS: 554 Error: SMTP protocol synchronization\nX",
    "AUTH": EHLO + "C: AUTH PLAIN AGEAYg==\nC: QUIT\nS: 554 Error: SMTP protocol synchronization\nX",
}


@pytest.mark.parametrize("name", OUT_OF_TURN)
async def test_input_out_of_turn(name: str) -> None:
    await replay(OUT_OF_TURN[name], hide_starttls=False)


async def test_input_out_of_turn_that_is_permitted() -> None:
    replayed = await replay(RCPT + "C: DATA\nC: text\nC: .\nS: 354\nS: 250\n" + QUIT, forbid_unauth_pipelining=False)
    assert replayed.messages == [b"text\r\n"]
    refused = "C: DATA\nC: MAIL FROM:<a@b>\nS: 503 Error: need MAIL command\nS: 554\nX"
    await replay(EHLO + refused, forbid_unauth_pipelining=False)
    await replay(EHLO + "C: STARTTLS\nC: NOOP\nS: 554\nX", forbid_unauth_pipelining=False)


@pytest.mark.promises(
    "TLS", "Nothing said before the handshake counts after it: hello, envelope, login, XCLIENT, XFORWARD."
)
async def test_starttls_forgets_everything() -> None:
    def on_auth(auth: Any, session: Any) -> bool:
        return True

    text = (
        EHLO.replace("S: 250 STARTTLS", "S: 250-AUTH LOGIN PLAIN\nS: 250 STARTTLS")
        + "C: AUTH PLAIN AGEAYg==\nS: 235\nC: MAIL FROM:<a@b>\nS: 250\n"
        + "C: STARTTLS\nS: 220 Ready to start TLS\nC: RCPT TO:<a@b>\nS: 503 Error: send HELO/EHLO first\n"
        + "C: STARTTLS\nS: 503 Error: TLS already active\n"
        + "C: EHLO x\n"
        + OFFERED
        + "S: 250 AUTH LOGIN PLAIN\n"
        + "C: MAIL FROM:<a@b>\nS: 530 Error: authentication Required\n"
        + QUIT
    )
    replayed = await replay(text, allow_insecure_auth=True, auth_optional=False, on_auth=on_auth)
    assert replayed.session.user is None
    assert replayed.session.transmission_type == "ESMTPS"


async def test_lmtp_answers_for_each_recipient() -> None:
    async def on_data(stream: Any, session: Any) -> list[Any]:
        async def later() -> str:
            return "late"

        return [None, "fine", Reject(550, "no"), later()]

    text = (
        "S: 220 mx.test LMTP\nC: EHLO x\nS: 500 Error: EHLO not allowed in LMTP server\n"
        "C: MAIL FROM:<a@b>\nS: 503 Error: send LHLO first\n"
        "C: LHLO x\nS: 250-\nS: 250-PIPELINING\nS: 250-8BITMIME\nS: 250-SMTPUTF8\nS: 250-CHUNKING\n"
        "S: 250-LIMITS RCPTMAX=1000\nS: 250 STARTTLS\n"
        "C: MAIL FROM:<a@b>\nC: RCPT TO:<a@b>\nC: RCPT TO:<A@b>\nC: RCPT TO:<c@d>\nC: RCPT TO:<e@f>\n"
        "S: 250\nS: 250\nS: 250\nS: 250\nS: 250\nC: DATA\nS: 354\nC: x\nC: .\n"
        "S: 250 OK: message accepted\nS: 250 fine\nS: 550 no\nS: 250 late\n" + QUIT
    )
    await replay(text, lmtp=True, on_data=on_data)


async def test_enhanced_codes_stand_on_every_line_but_the_greetings() -> None:
    await replay_every_way(
        "S: 220 mx.test ESMTP\nC: HELO x\nS: 250 mx.test Nice to meet you, [192.0.2.1]\n"
        "C: MAIL FROM:<a@b>\nS: 250 2.1.0 Accepted\nC: RCPT TO:<a@b>\nS: 250 2.1.5 Accepted\n"
        "C: DATA\nS: 354 End data with <CR><LF>.<CR><LF>\nC: .\nS: 250 2.6.0 OK: message queued\n"
        "C: FOO\nS: 500 5.5.2 Error: command not recognized\nC: DATA\nS: 503 5.5.1 Error: need MAIL command\n"
        "C: MAIL FROM:<..>\nS: 501 5.1.3 Error: Bad sender address syntax\n"
        "C: QUIT\nS: 221 2.0.0 Bye\nX",
        hide_enhanced_status_codes=False,
    )
