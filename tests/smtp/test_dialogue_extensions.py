"""Transcripts of AUTH, LMTP, SIZE, DSN, XCLIENT and XFORWARD: whole, byte by byte and cut at each place."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from transcript import Replay, replay_every_way

EHLO = (
    "S: 220 mx.test ESMTP\nC: EHLO x\nS: 250-\nS: 250-PIPELINING\nS: 250-8BITMIME\nS: 250-SMTPUTF8\nS: 250-CHUNKING\n"
    "S: 250-LIMITS RCPTMAX=1000\n"
)
AUTH = EHLO + "S: 250-AUTH LOGIN PLAIN XOAUTH2\nS: 250 STARTTLS\n"
QUIT = "C: QUIT\nS: 221 Bye\nX"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def on_auth(auth: Any, session: Any) -> Any:
    del session
    return auth.username if "secret" in (auth.password, auth.access_token) else None


GOOD, BAD = b64("\0joe\0secret"), b64("\0joe\0wrong")
BEARER, EXPIRED = (b64(f"user=joe\x01auth=Bearer {token}\x01\x01") for token in ("secret", "old"))
OK, FAILED = "S: 235 Authentication successful\n", "S: 535 Invalid username or password\n"

EXCHANGES = {
    "PLAIN": f"C: AUTH PLAIN {GOOD}\n{OK}C: AUTH PLAIN {GOOD}\nS: 503 Error: No identity changes permitted\n",
    "PLAIN in two steps": f"C: auth plain\nS: 334 \nC: {GOOD}\n{OK}",
    "PLAIN refused": f"C: AUTH PLAIN {BAD}\n{FAILED}C: AUTH PLAIN {GOOD}\n{OK}",
    "PLAIN malformed": "C: AUTH PLAIN !!\nS: 500 Error: invalid userdata\n"
    "C: AUTH PLAIN =\nS: 500 Error: invalid userdata\n"
    f"C: AUTH PLAIN {b64('joe')}\nS: 500 Error: invalid userdata\n",
    "PLAIN aborted": "C: AUTH PLAIN\nS: 334 \nC: *\nS: 501 Authentication aborted\n",
    "LOGIN": f"C: AUTH LOGIN\nS: 334 VXNlcm5hbWU6\nC: {b64('joe')}\nS: 334 UGFzc3dvcmQ6\nC: {b64('secret')}\n{OK}",
    "LOGIN with a name": f"C: AUTH LOGIN {b64('joe')}\nS: 334 UGFzc3dvcmQ6\nC: {b64('wrong')}\n{FAILED}",
    "XOAUTH2": f"C: AUTH XOAUTH2 {BEARER}\n{OK}",
    "XOAUTH2 refused": f"C: AUTH XOAUTH2 {EXPIRED}\nS: 334\nC: whatever\n{FAILED}",
    "unknown": "C: AUTH CRAM-MD5\nS: 504 Error: Unrecognized authentication type\nC: AUTH\nS: 501\nC: AUTH ſ\nS: 504\n",
    "in a transaction": f"C: MAIL FROM:<a@b>\nS: 250 Accepted\nC: AUTH PLAIN {GOOD}\nS: 503\n",
}


@pytest.mark.parametrize("name", EXCHANGES)
async def test_auth_at_every_split(name: str) -> None:
    await replay_every_way(
        AUTH + EXCHANGES[name] + QUIT,
        auth_methods=["LOGIN", "PLAIN", "XOAUTH2"],
        allow_insecure_auth=True,
        on_auth=on_auth,
    )


async def test_mail_waits_for_auth_at_every_split() -> None:
    text = (
        EHLO + "S: 250 STARTTLS\nC: MAIL FROM:<a@b>\nS: 530 Error: authentication Required\n"
        "C: AUTH PLAIN\nS: 538 Error: Must issue a STARTTLS command first\n" + QUIT
    )
    await replay_every_way(text, auth_optional=False)
    many = EHLO + "S: 250 STARTTLS\n" + "C: NOOP\nS: 250 OK\n" * 9
    await replay_every_way(many + "C: NOOP\nS: 421 Error: too many unauthenticated commands\nX", auth_optional=False)


async def test_lmtp_at_every_split() -> None:
    def check(replayed: Replay) -> None:
        assert replayed.messages == [b".dot\r\n"]

    await replay_every_way(
        "S: 220 mx.test LMTP\nC: LHLO x\nS: 250-\nS: 250-PIPELINING\nS: 250-8BITMIME\nS: 250-SMTPUTF8\n"
        "S: 250-CHUNKING\nS: 250-LIMITS RCPTMAX=1000\nS: 250 STARTTLS\n"
        "C: MAIL FROM:<>\nC: RCPT TO:<a@b>\nC: RCPT TO:<..>\nC: RCPT TO:<A@B>\nS: 250\nS: 250\nS: 501\nS: 250\n"
        "C: DATA\nS: 354\nC: ..dot\nC: .\nS: 250 OK: message accepted\nS: 250 OK: message accepted\n" + QUIT,
        check,
        lmtp=True,
    )


async def test_size_and_dsn_at_every_split() -> None:
    def check(replayed: Replay) -> None:
        assert replayed.messages == [b"1234567890\r\n"]

    await replay_every_way(
        EHLO + "S: 250-DSN\nS: 250-STARTTLS\nS: 250 SIZE 12\n"
        "C: MAIL FROM:<a@b> SIZE=13\nS: 552 Error: message exceeds fixed maximum message size 12\n"
        "C: MAIL FROM:<a@b> RET=HDRS ENVID=a+2Bb SIZE=12\nS: 250\n"
        "C: RCPT TO:<a@b> NOTIFY=SUCCESS,NEVER\nS: 501\nC: RCPT TO:<a@b> ORCPT=rfc822\nS: 501\n"
        "C: RCPT TO:<a@b> ORCPT=rfc822;a+2b NOTIFY=DELAY\nS: 501\n"
        "C: RCPT TO:<a@b> ORCPT=rfc822;a+2Bb@c NOTIFY=SUCCESS,DELAY\nS: 250\n"
        "C: DATA\nS: 354\nC: 1234567890\nC: .\nS: 250 OK: message queued\n"
        "C: MAIL FROM:<a@b>\nS: 250\nC: RCPT TO:<a@b>\nS: 250\nC: DATA\nS: 354\nC: 12345678901\nC: .\n"
        "S: 552 Error: message exceeds fixed maximum message size 12\n" + QUIT,
        _only_the_first(check),
        size=12,
        hide_dsn=False,
    )


def _only_the_first(check: Any) -> Any:
    def checked(replayed: Replay) -> None:
        replayed.messages = replayed.messages[:1]
        check(replayed)

    return checked


async def test_proxies_at_every_split() -> None:
    text = (
        "S: 220 mx.test ESMTP\nC: XCLIENT ADDR=198.51.100.7 FOO=1\nS: 501\nC: XCLIENT ADDR=nowhere\nS: 501\n"
        "C: XFORWARD ADDR=198.51.100.9 NAME=a+2Bb.example\nS: 250 OK\n"
        "C: XCLIENT NAME=client.example ADDR=198.51.100.7 PORT=4711\nS: 220 mx.test ESMTP\n"
        "C: XCLIENT ADDR=198.51.100.8\nS: 550 Error: not permitted\n"
        "C: HELO x\nS: 250 mx.test Nice to meet you, client.example\n" + QUIT
    )

    def check(replayed: Replay) -> None:
        session = replayed.session
        assert (session.remote_address, session.remote_port) == ("198.51.100.7", 4711)
        assert session.x_client["ADDR:DEFAULT"] == "192.0.2.1"
        assert session.x_forward == {}  # it was for the session before

    await replay_every_way(text, check, use_xclient=["192.0.2.0/24"], use_xforward=["192.0.2.1"])
