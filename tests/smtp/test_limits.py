"""Limits of what is no mail, in transcripts: each is replayed whole, byte by byte and cut at each place."""

from __future__ import annotations

from typing import Any

import pytest

from pillarbox import Address, Reject
from transcript import replay_every_way

HELO = "S: 220 mx.test ESMTP\nC: HELO x\nS: 250\n"
LHLO = "S: 220 mx.test LMTP\nC: LHLO x\n" + "S: 250-\n" * 6 + "S: 250 STARTTLS\n"
MAIL = "C: MAIL FROM:<a@example.com>\nS: 250 Accepted\n"
KNOWN = "C: RCPT TO:<known@example.com>\nS: 250 Accepted\n"
GUESS = "C: RCPT TO:<x@example.com>\nS: 550 No such user\n"
DATA = "C: DATA\nS: 354\nC: x\nC: .\nS: 250\n"
NOOP = "C: NOOP\nS: 250 OK\n"
UNKNOWN = "C: FOO\nS: 500 Error: command not recognized\n"
MALFORMED = "C: MAIL FROM:<\nS: 501 Error: Bad sender address syntax\n"


def only_known(address: Address, _: object) -> None:
    if not address.address.startswith("known"):
        raise Reject(550, "No such user")


DIALOGUES: dict[str, tuple[str, dict[str, Any]]] = {
    "errors of all kinds are counted together": (
        HELO + UNKNOWN + MALFORMED + "C: FOO\nS: 421 Error: too many unrecognized commands\nX",
        {"max_errors": 3},
    ),
    "the last error has its own text": (
        HELO + UNKNOWN + MALFORMED + "C: HELO\nS: 421 Error: too many errors\nX",
        {"max_errors": 3},
    ),
    "sent in one piece": (
        HELO + "C: FOO\nC: FOO\nC: FOO\nC: NOOP\nS: 500\nS: 500\nS: 421 Error: too many unrecognized commands\nX",
        {"max_errors": 3},
    ),
    "a message begins anew": (
        HELO + (UNKNOWN + MALFORMED + NOOP + MAIL + KNOWN + DATA) * 2 + "C: QUIT\nS: 221 Bye\nX",
        {"max_errors": 3, "max_junk_commands": 1},
    ),
    "RSET does not": (
        HELO + UNKNOWN + "C: RSET\nS: 250 Flushed\n" + UNKNOWN + "C: FOO\nS: 421\nX",
        {"max_errors": 3},
    ),
    "hello does not": (HELO + UNKNOWN * 2 + "C: HELO y\nS: 250\nC: FOO\nS: 421\nX", {"max_errors": 3}),
    "junk": (
        HELO + NOOP + "C: RSET\nS: 250\n" + "C: NOOP\nS: 421 Error: too many commands without a message\nX",
        {"max_junk_commands": 2},
    ),
    "the first hello is none": (HELO + "C: HELO y\nS: 250\nC: HELO z\nS: 421\nX", {"max_junk_commands": 1}),
    "what follows a refused MAIL is junk": (
        HELO
        + "C: MAIL FROM:<x@example.com>\nC: RCPT TO:<a@example.com>\nC: RCPT TO:<b@example.com>\n"
        + "S: 550 No such user\nS: 503 Error: need MAIL command\nS: 503 Error: need MAIL command\n"
        + "C: DATA\nS: 503 Error: need MAIL command\nC: NOOP\nS: 421 Error: too many commands without a message\nX",
        {"max_errors": 1, "max_junk_commands": 4, "on_mail_from": only_known},
    ),
    "refused recipients": (
        HELO + MAIL + GUESS + "C: RCPT TO:<x@example.com>\nS: 421 Error: too many refused recipients\nX",
        {"max_refused_recipients": 2},
    ),
    "refused recipients beside a good one": (
        HELO
        + MAIL
        + KNOWN
        + GUESS * 2
        + "C: RCPT TO:<known2@example.com>\nS: 452 Error: too many refused recipients\n"
        + DATA
        + MAIL
        + "C: RCPT TO:<known2@example.com>\nS: 250 Accepted\nC: QUIT\nS: 221 Bye\nX",
        {"max_refused_recipients": 2},
    ),
    "refused recipients of several transactions": (
        HELO + (MAIL + GUESS + "C: RSET\nS: 250\n") * 2 + MAIL + "C: RCPT TO:<x@example.com>\nS: 421\nX",
        {"max_refused_recipients": 3},
    ),
    "LMTP": (
        LHLO + "C: EHLO x\nS: 500\nC: EHLO x\nS: 421 Error: too many unrecognized commands\nX",
        {"max_errors": 2, "lmtp": True},
    ),
    "between two chunks": (
        HELO + MAIL + KNOWN + "C: BDAT 1\nc: x\nS: 250\n" + NOOP + "C: NOOP\nS: 421\nX",
        {"max_junk_commands": 1},
    ),
    "a BDAT that is refused is read to its end first": (
        HELO + "C: BDAT 4\nc: FOO\\n\nS: 503\nC: BDAT 4 LAST\nc: FOO\\n\nS: 421 Error: too many errors\nX",
        {"max_errors": 2},
    ),
    "failed logins": (
        HELO
        + "C: AUTH PLAIN AGFubgB4\nS: 535\n" * 2
        + "C: AUTH PLAIN AGFubgB4\nS: 421 Error: too many failed logins\nX",
        {"max_auth_failures": 2, "allow_insecure_auth": True},
    ),
    "an aborted login is an error": (
        HELO + "C: AUTH PLAIN\nS: 334 \nC: *\nS: 501\nC: AUTH PLAIN\nS: 334 \nC: *\nS: 421 Error: too many errors\nX",
        {"max_errors": 2, "allow_insecure_auth": True},
    ),
}


@pytest.mark.promises("Limits", "Errors, junk commands and refused recipients without a message end the connection.")
@pytest.mark.parametrize("name", DIALOGUES)
async def test_dialogue(name: str) -> None:
    text, options = DIALOGUES[name]
    await replay_every_way(text, **{"on_rcpt_to": only_known, **options})
